"""A snapshot beside COPY, side by side in one run.

  copy     COPY TO STDOUT of the same table into a bare libpq reader that throws it away
  publish  the same reader, each line onto a local bus: what the bus costs
  p1, p2   the snapshot onto the local bus, from the request to ranges-end, with `parallel: 1` and `2`

The rounds are interleaved and the medians count. Then, with a sink of its own for each: how long a new sink waits for its
first row, and how long a committed row takes to be visible in a target, alone and while a snapshot runs.

The exit status says whether the goals hold.
usage: snapshot.py [ROWS [ROUNDS]]
"""
import contextlib
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time

import psycopg2

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests.bench.path import SETTINGS, Watch  # noqa: E402
from tests.support import cluster, scratch  # noqa: E402
from tests.support.world import World  # noqa: E402

PEER = os.environ.get("SNAPSHOT_PEER", os.path.join(scratch.ROOT, "build/release/tests/bench/snapshot_peer"))
# An order as shops have them: ten columns, 270 bytes as COPY writes it.
TABLE = """CREATE TABLE public.bench (id bigint PRIMARY KEY, customer integer NOT NULL, status text NOT NULL, total numeric(12,2),
           paid boolean, placed timestamptz NOT NULL, address text, note text, tags text[], doc jsonb)"""
ROW = """i, i % 5000, 'shipped', (i % 100000) / 100.0, i % 2 = 0, '2026-01-01Z'::timestamptz + i * interval '1 second',
         'Some Street ' || i || ', 12345 Some Town', repeat('lorem ipsum ', 6), '{urgent,gift}',
         jsonb_build_object('k', i, 'list', '[1, 2, 3]'::jsonb, 'note', 'as the customer wrote it')"""
PINGS = 300
FIRST_S, ADDED_MS = 1.0, 100


class Bench:
    def __init__(self, rows, rounds):
        self.rows, self.rounds = rows, rounds
        self.source = cluster.Cluster("benchsrc", **SETTINGS).start()
        self.target = cluster.Cluster("benchtgt", **SETTINGS).start()
        self.seconds, self.requests = {}, 0
        self.goals = []

    def world(self, parallel):
        world = World(self.source, self.target, heartbeat="1s")
        del world.bus["local"]["segment_bytes"]
        world.hot = world.bus["local"]["hot"] = scratch.hot_directory()
        world.config["snapshots"] = {"parallel": parallel}
        return world

    def load(self, world):
        world.src(f"ALTER DATABASE \"{world.db}\" SET synchronous_commit = on")  # as commits are whose latency counts (P98)
        world.src(TABLE)
        world.src("CREATE TABLE public.ping (id bigint PRIMARY KEY)")
        world.src(f"INSERT INTO public.bench SELECT {ROW} FROM generate_series(1, {self.rows}) i")
        world.src("ANALYZE public.bench")
        self.source.sql("CHECKPOINT")

    def peer(self, *argv):
        done = subprocess.run([PEER, *argv], stdout=subprocess.PIPE, text=True, timeout=600, preexec_fn=scratch.child_setup())
        if done.returncode:
            raise scratch.Failure(f"snapshot_peer {argv[0]} exited with {done.returncode}")
        said = json.loads(done.stdout)
        if said["rows"] != self.rows:
            raise scratch.Failure(f"snapshot_peer {argv[0]} met {said['rows']} rows, not {self.rows}")
        return said

    def record(self, name, said, extra=""):
        self.seconds.setdefault(name, []).append(said["seconds"])
        print(f"  {name:8} {said['seconds']:7.2f} s {said['rows'] / said['seconds'] / 1000:8.1f} k/s "
              f"{said['bytes'] / said['rows']:6.0f} B a row   {extra}", flush=True)

    def request(self, world, name, connector):
        said, watch = self.ask(world, connector)
        self.record(name, said, f"first row after {said['first'] * 1000:.0f} ms, connector: {watch.cpu['connector']:.1f} s cpu, "
                                f"{watch.peak['connector']:.1f} MB")

    def ask(self, world, connector):
        self.requests += 1
        local = world.bus["local"]
        with Watch() as watch:
            watch.add("connector", connector.pid)
            return self.peer("request", local["path"], local["hot"], world.stream, "bench", f"bench-{self.requests}"), watch

    def rates(self):
        world = self.world(1)
        self.load(world)
        dsn = self.source.dsn(world.db)
        for _ in range(self.rounds):
            self.record("copy", self.peer("copy", dsn, "bench"))
            place, hot = scratch.directory("spate-bench-"), scratch.hot_directory()
            self.record("publish", self.peer("publish", dsn, "bench", os.path.join(place, "bus"), hot, "lines"))
            subprocess.run(["rm", "-rf", place, hot], check=True)
            for parallel in (1, 2):
                world.config["snapshots"] = {"parallel": parallel}
                connector = world.connector()
                self.request(world, f"p{parallel}", connector)
                if connector.stop():
                    raise scratch.Failure(connector.tail())
                world.src("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [world.slot()])
                subprocess.run(["rm", "-rf", world.bus["local"]["path"], world.hot], check=True)
                os.mkdir(world.hot)
        median = {name: statistics.median(seen) for name, seen in self.seconds.items()}
        print()
        self.goal("copy / p1", median["copy"] / median["p1"], 0.8)
        self.goal("copy / p2", median["copy"] / median["p2"], 0.8)
        self.goal("publish / p1", median["publish"] / median["p1"], None)
        return world

    def goal(self, what, value, least):
        if least is None:
            print(f"  {what:24} {value:8.2f}")
            return
        holds = value >= least
        self.goals.append(holds)
        print(f"  {what:24} {value:8.2f}   goal {least:.2f}   {'pass' if holds else 'falls short'}", flush=True)

    # Latency.
    def pings(self, world, schema, first, count, enough=None):
        """Milliseconds from a commit to its row's being visible in the target, one after the other."""
        taken = []
        with contextlib.closing(self.source.connect(world.db)) as writer, contextlib.closing(self.target.connect(world.db)) as reader:
            write, read = writer.cursor(), reader.cursor()
            for i in range(first, first + count):
                if enough is not None and enough():
                    break
                begin = time.monotonic()
                write.execute("INSERT INTO public.ping VALUES (%s)", [i])
                while True:
                    read.execute(f"SELECT 1 FROM {schema}.ping WHERE id = %s", [i])
                    if read.fetchone():
                        break
                    if time.monotonic() - begin > 30:
                        raise scratch.Failure(f"row {i} is not in the target after 30 s")
                    time.sleep(0.0005)
                taken.append((time.monotonic() - begin) * 1000)
        return taken

    def latencies(self, world):
        world.config["snapshots"] = {"parallel": 2}
        connector = world.connector()
        sink = world.sink(world.sink_file("pings", {"ping": {"from": "public.ping"}}), name="pings")
        world.src("INSERT INTO public.ping VALUES (0)")
        world.wait_rows("SELECT count(*) FROM pings.ping", [(1,)], 60, sink)
        alone = self.pings(world, "pings", 1, PINGS)
        over = threading.Event()
        failed, rates = [], []

        def ask():
            try:
                while not over.is_set():
                    rates.append(self.rows / self.ask(world, connector)[0]["seconds"] / 1000)
            except Exception as error:
                failed.append(error)
            over.set()

        asking = threading.Thread(target=ask)
        asking.start()
        busy = self.pings(world, "pings", PINGS + 1, PINGS, over.is_set)
        over.set()
        asking.join()
        if failed:
            raise failed[0]
        at = {name: (statistics.median(seen), statistics.quantiles(seen, n=100)[98]) for name, seen in (("alone", alone), ("beside", busy))}
        for name, (middle, high) in at.items():
            print(f"  commit to visible, {name:6}  p50 {middle:6.1f} ms   p99 {high:6.1f} ms")
        print(f"  beside {len(rates)} snapshots, {statistics.median(rates):.1f} k/s each")
        added = at["beside"][1] - at["alone"][1]
        self.goal(f"{ADDED_MS} ms / added p99", ADDED_MS / max(added, 1.0), 1.0)
        return connector

    def first_row(self, world):
        """From the request, whose time stands in the sink's log, to a row in the target."""
        sink = world.sink(world.sink_file("fresh", {"bench": {"from": "public.bench"}}), name="fresh")
        asked = scratch.until(lambda: re.search(r"^time=(\S+) .*event=snapshot-asked", sink.text(), re.M), lambda: f"the sink asks: {sink.tail()}", 60, 0.002)
        asked = datetime.datetime.fromisoformat(asked.group(1).replace("Z", "+00:00")).timestamp()
        first = scratch.until(lambda: self.any_row(world), lambda: f"a row is in the target: {sink.tail()}", 60, 0.005)
        world.wait_rows("SELECT count(*) FROM fresh.bench", [(self.rows,)], 600, sink)
        print(f"  a new sink: first row {first - asked:.2f} s after its request, all rows {time.time() - asked:.1f} s after it")
        self.goal(f"{FIRST_S:.0f} s / first row", FIRST_S / max(first - asked, 0.001), 1.0)

    def any_row(self, world):
        try:
            return time.time() if self.target.sql("SELECT 1 FROM fresh.bench LIMIT 1", None, world.db) else None
        except psycopg2.errors.UndefinedTable:
            return None


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1000000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    scratch.install_handlers()
    bench = Bench(rows, rounds)
    print(f"a table of {rows} rows")
    world = bench.rates()
    bench.latencies(world)
    bench.first_row(world)
    world.close()
    sys.exit(0 if all(bench.goals) else 1)


if __name__ == "__main__":
    main()
