"""Everything that exists, while the stream goes on (F39-F46): under TRUNCATE and DDL, for several teams at once, with a
zombie, gently, and in bounded memory."""
import statistics
import threading
import time

import pytest

from tests.support import scratch
from tests.support.world import MemoryWatch

T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL, filler text)"
FILL = "INSERT INTO t SELECT g, 0, repeat(md5(g::text), 6) FROM generate_series(1, %s) g"


def slowly(world, rows_per_second=4000, **more):
    """So that a snapshot of some thousand rows has many chunks, and lasts long enough to meet something."""
    world.config["snapshots"] = {"chunk_bytes": "64KiB", "rows_per_second": rows_per_second, **more}


def under_way(world, schema="team", table="t", least=200):
    """Waits until some of the table has come."""
    def some():
        try:
            return world.tgt(f"SELECT count(*) >= {least} FROM {schema}.{table}")[0][0]
        except Exception:  # the sink may not have made it yet
            return False
    scratch.until(some, lambda: f"rows of {schema}.{table} have come:" + world.logs(), 20)


def said(sink, event, times=1, seconds=40):
    scratch.until(lambda: sink.text().count(f"event={event} ") >= times or not sink.running(), lambda: f"{times} x {event}:" + sink.world.logs(), seconds)
    assert sink.running(), sink.tail()


def finished(world, sink, name, times=1, seconds=40):
    said(sink, "snapshot-finished", times, seconds)


class Background(threading.Thread):
    """A statement that may have to wait for a lock."""

    def __init__(self, world, *statements):
        super().__init__(daemon=True)
        self.world, self.statements, self.failure = world, statements, None
        self.start()

    def run(self):
        try:
            for statement in self.statements:
                self.world.src(statement)
        except Exception as error:
            self.failure = error

    def waits(self):
        return self.world.src("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    def end(self):
        self.join(20)
        assert not self.is_alive() and self.failure is None, self.failure


def test_F39_truncate_under_a_snapshot(each_world):
    """Single, multi and cascade: what was read before is gone, what comes after is there."""
    world = each_world
    slowly(world)
    world.src(TABLE + "; CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES t, v text);"
              "CREATE TABLE other (id int PRIMARY KEY, v text)")
    world.src(FILL, [6000])
    world.src("INSERT INTO child SELECT g, g, 'c' FROM generate_series(1, 3000) g; INSERT INTO other SELECT g, 'o' FROM generate_series(1, 3000) g")
    world.connector()
    tables = {name: {"from": f"public.{name}"} for name in ("t", "child", "other")}
    pairs = [(f"SELECT * FROM {name}", f"SELECT * FROM team.{name}") for name in tables]
    file = world.sink_file("team", tables, snapshot="auto")
    sink = world.sink(file)
    under_way(world)
    world.src("TRUNCATE t CASCADE; INSERT INTO t SELECT g, 1, 'again' FROM generate_series(3, 4000) g; INSERT INTO child VALUES (1, 5, 'new')")
    world.src("TRUNCATE other; INSERT INTO other VALUES (1, 'first after')")
    finished(world, sink, "team")
    world.wait_equal(pairs)
    # Once more onto a table that is ready, several at once.
    world.src("INSERT INTO other SELECT g, 'o' FROM generate_series(2, 3000) g")
    world.run("snapshot", "-c", file, "--sink", "team", check=0)
    said(sink, "snapshot-began", 2)
    world.src("TRUNCATE t, child, other RESTART IDENTITY; INSERT INTO t VALUES (1, 2, 'last')")
    finished(world, sink, "team", 2)
    world.wait_equal(pairs)
    world.check_bus(sample=100, truth=True)


def test_F40_what_partitions_do_without_a_word(each_world):
    """Attached, detached, dropped and truncated leaves: Postgres says nothing (P51), and asking again makes it right."""
    world = each_world
    slowly(world)
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL, filler text) PARTITION BY RANGE (id);"
              + "".join(f"CREATE TABLE t{n} PARTITION OF t FOR VALUES FROM ({1000 * n}) TO ({1000 * n + 1000});" for n in range(5))
              + "CREATE TABLE apart (LIKE t INCLUDING ALL); INSERT INTO apart SELECT g, 7, 'attached' FROM generate_series(9000, 9199) g")
    world.src("INSERT INTO t SELECT g, 0, repeat(md5(g::text), 6) FROM generate_series(0, 4999) g")
    world.connector()
    file = world.sink_file("team", T, snapshot="auto")
    sink = world.sink(file)
    under_way(world)
    world.src("ALTER TABLE t ATTACH PARTITION apart FOR VALUES FROM (9000) TO (9500)")
    world.src("ALTER TABLE t DETACH PARTITION t1")
    world.src("TRUNCATE t2")
    world.src("DROP TABLE t3; UPDATE t SET v = v + 1 WHERE id < 100; UPDATE t SET id = id + 9100 WHERE id BETWEEN 200 AND 220")
    finished(world, sink, "team")
    assert world.run("snapshot", "-c", file, "--sink", "team")[0] == 0
    finished(world, sink, "team", 2)
    world.wait_equal(PAIR)
    world.check_bus(sample=100)


def delays(world, schema, stop):
    """Commit to visible, for a row every few milliseconds, until told to stop."""
    found, number = [], 0
    while not stop.is_set():
        number += 1
        world.src("INSERT INTO ping VALUES (%s) ON CONFLICT (id) DO NOTHING", [number])
        begin = time.monotonic()
        scratch.until(lambda: world.tgt(f"SELECT 1 FROM {schema}.ping WHERE id = %s", [number]), "the bystander goes on", 30, 0.002)
        found.append(time.monotonic() - begin)
    return found


def test_F45_three_teams_at_once_and_one_thinks_better_of_it(each_world):
    """All get everything, the one that cancelled when it asks again; and who asked for nothing is not kept waiting."""
    world = each_world
    slowly(world, 3000)
    world.src(TABLE + "; CREATE TABLE ping (id int PRIMARY KEY)")
    world.src(FILL, [6000])
    world.connector()
    bystander = world.sink(world.sink_file("bystander", {"ping": {"from": "public.ping"}}, snapshot="auto"), name="bystander")
    finished(world, bystander, "bystander")
    stop, found = threading.Event(), []
    watcher = threading.Thread(target=lambda: found.extend(delays(world, "bystander", stop)), daemon=True)
    watcher.start()
    files = [world.sink_file(name, T, snapshot="auto") for name in ("one", "two", "three")]
    sinks = [world.sink(file, name=f"sink-{number}") for number, file in enumerate(files)]
    for name in ("one", "two", "three"):
        under_way(world, name)
    request = sinks[2].wait_log(r"event=snapshot-asked [^\n]*\brequest=(\S+)").group(1)
    world.src("UPDATE t SET v = v + 1 WHERE id % 3 = 0; DELETE FROM t WHERE id % 50 = 0; UPDATE t SET id = id + 10000 WHERE id % 77 = 0")
    assert world.run("snapshot", "-c", files[2], "--cancel", request)[0] == 0
    for number, name in enumerate(("one", "two")):
        finished(world, sinks[number], name)
        world.wait_equal([("SELECT * FROM t", f"SELECT * FROM {name}.t")])
    stop.set()
    watcher.join(30)
    assert "event=snapshot-finished" not in sinks[2].text(), "it was cancelled"
    assert world.run("snapshot", "-c", files[2], "--sink", "three")[0] == 0
    finished(world, sinks[2], "three")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM three.t")])
    counted = world.check_bus(sample=100, truth=True)
    assert counted["ops"]["snapshot-begin"] >= 5, counted
    late = sorted(found)[int(len(found) * 0.95)]
    print(f"\n   {len(found)} rows beside three snapshots: half were there after {statistics.median(found) * 1000:.0f} ms, 95 % after {late * 1000:.0f} ms", flush=True)
    assert len(found) > 20 and late < 1.0, found


def test_a_request_that_waits_keeps_no_other_waiting(each_world):
    """One team's table is locked for long, in the middle; the other team is served meanwhile."""
    world = each_world
    slowly(world, 2000)
    world.src(TABLE + "; CREATE TABLE held (LIKE t INCLUDING ALL)")
    world.src(FILL, [4000])
    world.src("INSERT INTO held SELECT * FROM t")
    world.connector()
    waits = world.sink(world.sink_file("waits", {"held": {"from": "public.held"}}, snapshot="auto"), name="waits")
    under_way(world, "waits", "held")
    with world.source.connect(world.db, autocommit=False) as lock, lock.cursor() as cursor:
        cursor.execute("LOCK TABLE held IN ACCESS EXCLUSIVE MODE")
        sink = world.sink(world.sink_file("team", T, snapshot="auto"))
        finished(world, sink, "team", seconds=20)
        world.wait_equal(PAIR)
        assert "event=snapshot-finished" not in waits.text()
        lock.rollback()
    finished(world, waits, "waits")
    world.wait_equal([("SELECT * FROM held", "SELECT * FROM waits.held")])
    world.check_bus(sample=50, truth=True)


def test_bounded_and_gentle(world):
    """Neither a large table nor a large transaction beside it makes memory grow; no transaction lasts; nothing is written."""
    world.src(TABLE)
    world.src(FILL, [120000])  # 27 MB
    world.config["snapshots"] = {"nudge": False}
    connector = world.connector()
    watch = MemoryWatch(lambda: connector)
    # An autovacuum that analyzes the new table takes an xid as well: none of them meanwhile.
    world.source.sql("ALTER SYSTEM SET autovacuum = off")
    world.source.sql("SELECT pg_reload_conf()")
    scratch.until(lambda: not world.source.sql("SELECT 1 FROM pg_stat_activity WHERE backend_type LIKE 'autovacuum%%'"), "autovacuum is gone", 20)
    xid = world.src("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
    sink = world.sink(world.sink_file("team", T, snapshot="auto"))
    sink_watch = MemoryWatch(lambda: sink)
    longest, polls = {"connector": 0.0}, 0

    def poll():
        nonlocal polls
        for age, in world.src("SELECT extract(epoch FROM clock_timestamp() - xact_start)::float FROM pg_stat_activity WHERE datname = current_database() "
                              "AND application_name LIKE 'spate%%' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND backend_type = 'client backend'"):
            longest["connector"] = max(longest["connector"], age or 0)
        polls += 1
        return "event=snapshot-finished" in sink.text()

    scratch.until(lambda: poll() or world.tgt("SELECT 1 FROM pg_class WHERE relname = 't'") and world.tgt("SELECT count(*) > 10000 FROM team.t")[0][0],
                  "a part of it has come", 40)
    assert world.src("SELECT pg_snapshot_xmax(pg_current_snapshot())::text") == xid, "somebody wrote to the source"
    world.source.sql("ALTER SYSTEM RESET autovacuum")
    world.source.sql("SELECT pg_reload_conf()")
    change = Background(world, "UPDATE t SET v = 1 WHERE id % 2 = 0")
    scratch.until(poll, lambda: "it is finished:" + world.logs(), 90, 0.01)
    change.end()
    world.wait_equal(PAIR)
    peak, sink_peak = watch.stop(), sink_watch.stop()
    print(f"\n   27 MB read beside a transaction of 60 000 rows: connector {peak} kB, sink {sink_peak} kB, its longest transaction {longest['connector']:.2f} s", flush=True)
    assert watch.samples > 20 and peak < 24 * 1024 and sink_peak < 32 * 1024, (peak, sink_peak)
    assert polls > 20 and longest["connector"] < 2, longest


def test_rows_that_went_while_nobody_listened(each_world):
    """A sink that lost its place asks by itself: what was deleted meanwhile goes, and what is there stays readable."""
    world = each_world
    world.src(TABLE)
    world.src(FILL, [2000])
    connector = world.connector()
    file = world.sink_file("team", T, snapshot="auto")
    sink = world.sink(file)
    finished(world, sink, "team")
    world.wait_equal(PAIR)
    assert (sink.stop(), connector.stop()) == (0, 0)
    world.source.sql("SELECT pg_drop_replication_slot(%s)", [world.slot()])
    world.src("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = 9 WHERE id % 7 = 0; UPDATE t SET id = id + 5000 WHERE id % 11 = 0")
    world.connector("--new-epoch")
    fewest = []
    sink = world.sink(file)

    def done():
        fewest.append(world.tgt("SELECT count(*) FROM team.t")[0][0])
        return "event=snapshot-finished" in sink.text()

    scratch.until(done, lambda: "it asked, and was answered:" + world.logs(), 40, 0.005)
    world.wait_equal(PAIR)
    assert min(fewest) >= world.src("SELECT count(*) FROM t")[0][0], "a reader saw a half-empty table"
    world.check_bus(sample=50)
