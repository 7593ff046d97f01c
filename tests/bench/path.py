"""The path of a change, side by side in one run: rates, ratios, CPU seconds and peak private memory.

  a  a bare libpq reader that throws everything away, reading at every wake-up and pausing 200 us when dry (P97)
  b  the connector to the local bus
  c  a sink alone, from a full bus to a table
  d  connector and sink together
  e  CREATE SUBSCRIPTION

With BUS=kafka, against one broker on the same machine:

  a1 the bare reader, to see what the bus costs
  k  the bare reader publishing a constant payload with the connector's producer settings
  b  the connector to Kafka
  c  a sink alone from Kafka, and
  cl the same sink from the local bus

Every row drains the same WAL from a slot of its own, made before the load. The exit status says whether the goals hold.
usage: [BUS=kafka] path.py [ROWS_IN_ONE_TRANSACTION [SINGLE_ROW_TRANSACTIONS]]
"""
import os
import statistics
import subprocess
import sys
import threading
import time

import psycopg2

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from tests.support import cluster, kafka, scratch  # noqa: E402

SPATE = os.environ.get("SPATE", os.path.join(scratch.ROOT, "build/release/spate"))
BARE = os.path.join(scratch.ROOT, "build/release/tests/bench/pg_bare_reader")
KAFKA = os.environ.get("BUS") == "kafka"
SLOTS = ("a1", "k", "b", "l") if KAFKA else ("a0", "a1", "b", "d", "e")
PAIRS = 3  # of sinks, one after the other; the medians count
MOST_MB = 64  # of a connector over Kafka, whatever the transaction's size
TABLE = """CREATE TABLE public.bench (id bigint PRIMARY KEY, customer integer NOT NULL, amount numeric(12,2) NOT NULL,
           status text NOT NULL, placed timestamptz NOT NULL)"""
ROW = "i, i % 5000, (i % 100000) / 100.0, 'paid', '2026-01-01Z'::timestamptz + i * interval '1 second'"
# The load is not what is measured, so it may be fast; no checkpoint falls into one row and not into another.
SETTINGS = {"max_wal_size": "20GB", "shared_buffers": "256MB", "checkpoint_timeout": "1h", "synchronous_commit": "off"}
POLL = 0.02
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def private_mb(pid):
    """Anonymous memory: shared-memory segments count apart."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Watch:
    """Samples processes by a label: peak private memory, and CPU seconds up to the last sample."""

    def __init__(self):
        self.pids, self.peak, self.cpu, self.base = {}, {}, {}, {}
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.loop, daemon=True)

    def add(self, label, pid):
        self.pids[label] = pid
        self.base[label] = cpu_seconds(pid)
        return self

    def sample(self):
        for label, pid in list(self.pids.items()):
            try:
                self.peak[label] = max(self.peak.get(label, 0.0), private_mb(pid))
                self.cpu[label] = cpu_seconds(pid) - self.base[label]
            except (OSError, IndexError):
                pass

    def loop(self):
        while not self.stopped.wait(0.05):
            self.sample()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.sample()
        self.stopped.set()
        self.thread.join()


class Bench:
    def __init__(self, rows, singles):
        self.rows, self.singles = rows, singles
        self.source = cluster.Cluster("benchsrc", **SETTINGS).start()
        self.target = cluster.Cluster("benchtgt", **SETTINGS).start()
        self.broker = kafka.KafkaCluster("bench").start() if KAFKA else None
        self.dir = scratch.directory("spate-bench-")
        self.results, self.peaks, self.asking = {}, {}, {}

    def walsender(self, slot):
        return scratch.until(lambda: self.ask(self.source, "SELECT active_pid FROM pg_replication_slots "
                                              "WHERE slot_name = %s AND active", [slot]), f"slot {slot} is read", every=0.002)

    def ask(self, cluster_, text, args=None):
        """Over a connection that stays open: asking must not cost what is measured. None: the question has no answer yet."""
        if cluster_ not in self.asking:
            self.asking[cluster_] = cluster_.connect().cursor()
        try:
            self.asking[cluster_].execute(text, args)
            row = self.asking[cluster_].fetchone()
            return row and row[0]
        except psycopg2.errors.UndefinedTable:
            return None

    def confirmed(self, slot):
        return self.ask(self.source, "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s",
                        [self.until, slot])

    def load(self, name, statement):
        self.source.sql("DROP TABLE IF EXISTS public.bench")
        self.source.sql(TABLE)
        self.source.sql("DROP PUBLICATION IF EXISTS bench")
        self.source.sql("CREATE PUBLICATION bench FOR TABLE public.bench")
        for slot in SLOTS:
            self.source.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        self.source.sql(statement)
        # A few bytes behind the load, so that a keepalive or commit beyond it always comes.
        self.until = self.source.one("SELECT pg_current_wal_insert_lsn()::text")
        self.source.sql("SELECT pg_logical_emit_message(true, 'bench', 'end')")
        self.name = name

    def drop_slots(self):
        for slot in SLOTS:
            scratch.until(lambda s=slot: not self.source.sql(
                "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", [s]), f"slot {slot} is free")
            self.source.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [slot])

    def record(self, row, seconds, changes, watch=None):
        rate = changes / seconds
        extra = ""
        if watch:
            extra = "  ".join(f"{label}: {watch.cpu.get(label, 0):.1f} s cpu, {watch.peak.get(label, 0):.1f} MB"
                              for label in watch.pids)
        self.results[self.name, row] = rate
        if watch:
            self.peaks[self.name, row] = max(watch.peak.values(), default=0)
        print(f"  {row:4} {seconds:7.2f} s {rate / 1000:8.1f} k/s   {extra}", flush=True)

    def bare(self, row, slot, pause, changes, *publish):
        process = subprocess.Popen([BARE, f"{self.source.dsn()} replication=database", slot, "bench", self.until, str(pause), *publish],
                                   stdout=subprocess.PIPE, text=True, preexec_fn=scratch.child_setup())
        with Watch() as watch:
            watch.add("reader", process.pid)
            out = process.communicate(timeout=600)[0]
        if process.returncode:
            raise scratch.Failure(f"bare reader exited with {process.returncode}")
        self.record(row, float(out.split()[1]), changes, watch)

    def spawn(self, *argv):
        log = open(os.path.join(self.dir, f"{argv[0]}.log"), "ab")
        return subprocess.Popen([SPATE, *argv], stdout=log, stderr=log, preexec_fn=scratch.child_setup())

    def connector_file(self, slot):
        path = os.path.join(self.dir, f"connector-{self.name}-{slot}.yaml")
        hot = scratch.hot_directory()  # removed at the end, as the derived one would not be
        self.bus = f"{{local: {{path: {os.path.join(self.dir, f'bus-{self.name}-{slot}')}, hot: {hot}}}}}"
        if KAFKA and slot == "b":
            self.bus = f'{{kafka: {{brokers: "{self.broker.brokers}"}}}}'
        self.stream, self.connector_path = f"bench_{self.name}_{slot}", path
        with open(path, "w") as out:
            out.write(f'connector: {self.stream}\nsource:\n  postgres: {{url: "{self.source.dsn()}", publication: bench, slot: {slot}}}\n'
                      f"bus: {self.bus}\n")
        return path

    def sink_file(self, name):
        path = os.path.join(self.dir, f"sink-{self.name}-{name}.yaml")
        with open(path, "w") as out:
            out.write(f'sink: {name}\nfrom: {self.stream}\nbus: {self.bus}\n'
                      f'into: {{postgres: {{url: "{self.target.dsn()}", schema: {name}}}}}\n'
                      f"snapshot: manual\ntables:\n  bench: {{from: public.bench}}\n")  # what is measured comes by the stream
        self.target.sql(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        self.target.sql(f"CREATE SCHEMA {name}")
        return path

    def stop(self, process):
        process.terminate()
        if process.wait(30):
            raise scratch.Failure(f"exit code {process.returncode}; logs in {self.dir}")

    def wait(self, process, condition, what):
        def done():
            if process.poll() is not None:
                raise scratch.Failure(f"spate exited with {process.returncode} before: {what}\n{self.tail()}")
            return condition()
        scratch.until(done, what, 900, every=POLL)

    def tail(self):
        lines = []
        for name in os.listdir(self.dir):
            if name.endswith(".log"):
                with open(os.path.join(self.dir, name), errors="replace") as log:
                    lines += log.readlines()[-5:]
        return "".join(lines)

    def sunk(self, sink, changes):
        """The position is in the rows' transaction, so it is the cheapest witness."""
        n = self.ask(self.target, f"SELECT n FROM {sink}.spate_sink WHERE sink = %s", [sink])
        return n is not None and n >= changes

    def check(self, sink, changes):
        count = self.target.one(f"SELECT count(*) FROM {sink}.bench")
        if count != changes:
            raise scratch.Failure(f"{sink}.bench has {count} rows, not {changes}")

    def connector_alone(self, row, slot, changes):
        """Leaves it running: a sink may follow."""
        connector = self.spawn("connector", "-c", self.connector_file(slot))
        self.walsender(slot)  # like the bare reader's, its time begins with START_REPLICATION
        begin = time.monotonic()
        with Watch() as watch:
            watch.add("connector", connector.pid)
            self.wait(connector, lambda: self.confirmed(slot), f"slot {slot} confirmed")
            self.record(row, time.monotonic() - begin, changes, watch)
        return connector

    def streams(self, log, mark):
        """Whether a line after `mark` says that the sink is in place."""
        with open(log, "rb") as lines:
            lines.seek(mark)
            return b"event=streaming" in lines.read()

    def sink_alone(self, row, changes):
        config, log = self.sink_file(row), os.path.join(self.dir, "sink.log")
        mark = os.path.getsize(log) if os.path.exists(log) else 0
        sink = self.spawn("sink", "-c", config)
        # Like the connector's, its time begins when it is in place.
        scratch.until(lambda: self.streams(log, mark), f"sink {row} streams", every=0.002)
        begin = time.monotonic()
        with Watch() as watch:
            watch.add("sink", sink.pid)
            self.wait(sink, lambda: self.sunk(row, changes), f"sink {row} has all")
            self.record(row, time.monotonic() - begin, changes, watch)
        self.stop(sink)
        self.check(row, changes)

    def message_bytes(self):
        """How large our messages are, so that the constant payload is neither larger nor smaller."""
        tap = subprocess.run([SPATE, "tap", "-c", self.connector_path, "--from", "oldest", "-n", "100"], stdout=subprocess.PIPE, check=True)
        lines = [line for line in tap.stdout.splitlines() if b'"op":"insert"' in line]
        return str(sum(map(len, lines)) // len(lines) + len('{"id":100000}'))

    def run_kafka(self, changes):
        self.bare("a1", "a1", 200, changes)
        connector = self.connector_alone("b", "b", changes)
        size = self.message_bytes()
        self.stop(connector)
        kafka_bus, kafka_stream = self.bus, self.stream
        topic = f"constant_{self.name}"
        self.broker.wire.create_topic(topic)
        self.bare("k", "k", 200, changes, self.broker.brokers, topic, size)
        self.stop(self.connector_alone("bl", "l", changes))
        local_bus, local_stream = self.bus, self.stream
        rates = {"c": [], "cl": []}
        for _ in range(PAIRS):
            for row, self.bus, self.stream in (("c", kafka_bus, kafka_stream), ("cl", local_bus, local_stream)):
                self.sink_alone(row, changes)
                rates[row].append(self.results[self.name, row])
        for row, seen in rates.items():
            self.results[self.name, row] = statistics.median(seen)

    def goals_kafka(self):
        met = True
        print()
        for name in ("one", "many"):
            for what, value, goal in (("b / k", self.results[name, "b"] / self.results[name, "k"], 0.8),
                                      ("c / cl", self.results[name, "c"] / self.results[name, "cl"], 0.9),
                                      (f"{MOST_MB} MB / b's", MOST_MB / self.peaks[name, "b"], 1.0)):
                holds = value >= goal
                met = met and holds
                print(f"  {name:5} {what:12} {value:6.2f}   goal {goal:.2f}   {'pass' if holds else 'falls short'}")
        return met

    def run(self, changes):
        for attempt, pause in ((0, 0), (1, 200)):
            self.bare(f"a{attempt}", f"a{attempt}", pause, changes)

        connector = self.connector_alone("b", "b", changes)
        self.sink_alone("c", changes)
        self.stop(connector)

        config = self.connector_file("d")
        sink_config = self.sink_file("d")
        begin = time.monotonic()
        connector = self.spawn("connector", "-c", config)
        sink = self.spawn("sink", "-c", sink_config)
        with Watch() as watch:
            watch.add("connector", connector.pid).add("sink", sink.pid)
            self.wait(sink, lambda: self.sunk("d", changes), "sink d has all")
            self.record("d", time.monotonic() - begin, changes, watch)
        self.stop(sink)
        self.stop(connector)
        self.check("d", changes)

        self.target.sql("DROP TABLE IF EXISTS public.bench")
        self.target.sql(TABLE)
        self.target.sql(f"CREATE SUBSCRIPTION bench CONNECTION '{self.source.dsn()}' PUBLICATION bench "
                        "WITH (create_slot = false, slot_name = 'e', copy_data = false, enabled = false, synchronous_commit = off)")
        begin = time.monotonic()
        self.target.sql("ALTER SUBSCRIPTION bench ENABLE")
        # The position first: it is cheap to ask for; the count afterwards is the proof.
        scratch.until(lambda: self.ask(self.target, "SELECT latest_end_lsn >= %s FROM pg_stat_subscription "
                                       "WHERE subname = 'bench'", [self.until])
                      and self.ask(self.target, "SELECT count(*) FROM public.bench") == changes, "subscription has all", 900, every=POLL)
        self.record("e", time.monotonic() - begin, changes)
        self.target.sql("ALTER SUBSCRIPTION bench DISABLE")
        self.target.sql("ALTER SUBSCRIPTION bench SET (slot_name = NONE)")
        self.target.sql("DROP SUBSCRIPTION bench")

    def goals(self):
        met = True
        print()
        for name in ("one", "many"):
            best = max(self.results[name, "a0"], self.results[name, "a1"])
            rows = [("b / best a", self.results[name, "b"] / best, 0.95),
                    ("d / e", self.results[name, "d"] / self.results[name, "e"], 1.0)]
            if name == "many":
                rows.append(("c / e", self.results[name, "c"] / self.results[name, "e"], 2.0))
            for what, ratio, goal in rows:
                holds = ratio >= goal
                met = met and holds
                print(f"  {name:5} {what:12} {ratio:6.2f}   goal {goal:.2f}   {'pass' if holds else 'falls short'}")
        return met


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1000000
    singles = int(sys.argv[2]) if len(sys.argv) > 2 else 300000
    scratch.install_handlers()
    bench = Bench(rows, singles)
    print(f"one: a transaction of {rows} rows")
    bench.load("one", f"INSERT INTO public.bench SELECT {ROW} FROM generate_series(1, {rows}) i")
    run = bench.run_kafka if KAFKA else bench.run
    run(rows)
    bench.drop_slots()
    print(f"many: {singles} single-row transactions")
    bench.load("many", f"""DO $$ BEGIN FOR i IN 1..{singles} LOOP
               INSERT INTO public.bench SELECT {ROW}; COMMIT; END LOOP; END $$""")
    run(singles)
    sys.exit(0 if (bench.goals_kafka() if KAFKA else bench.goals()) else 1)


if __name__ == "__main__":
    main()
