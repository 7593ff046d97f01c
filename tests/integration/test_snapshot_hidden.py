"""What is committed and visible to nobody yet (P91, HAZARDS 6.6): a snapshot waits for it when the stream has said it
before, also when that was another session of the connector."""
import os
import signal
import subprocess
import threading

import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.world import World, lsn


@pytest.fixture(scope="module")
def nobody():
    """A source whose commits can be made to hang behind a standby that does not exist: in the WAL, and not visible."""
    cluster = Cluster("nobody", max_prepared_transactions=5).start()
    yield cluster
    cluster.destroy()


@pytest.fixture
def hidden(nobody, target):
    world = World(nobody, target)
    yield world
    hang(nobody, False)
    world.close()


def hang(cluster, whether):
    names = "nobody" if whether else ""
    cluster.configure(synchronous_standby_names=f"'{names}'")
    cluster.process.send_signal(signal.SIGHUP)
    with cluster.connect() as connection, connection.cursor() as cursor:
        def is_set():
            cursor.execute("SHOW synchronous_standby_names")
            return cursor.fetchone()[0] == names

        scratch.until(is_set, lambda: "synchronous_standby_names is " + names, 10)


class Hanging(threading.Thread):
    """A transaction whose commit hangs."""

    def __init__(self, world, statement, commit="COMMIT"):
        super().__init__(daemon=True)
        self.connection = world.source.connect(world.db)
        self.statement, self.commit = statement, commit
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(statement)
            cursor.execute("SELECT pg_current_xact_id()::text::int8 % (1::int8 << 32), pg_backend_pid()")
            self.xid, self.pid = cursor.fetchone()
        self.start()
        scratch.until(lambda: world.src("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", [self.pid]),
                      lambda: f"the commit of {statement} hangs", 10)
        self.committed = lsn(world.src("SELECT pg_current_wal_insert_lsn()::text")[0][0])

    def run(self):
        with self.connection.cursor() as cursor:
            cursor.execute(self.commit)
        self.connection.close()


def begin(world, *statements):
    connection = world.source.connect(world.db)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for statement in statements:
            cursor.execute(statement)
        cursor.execute("SELECT pg_current_xact_id()::text::int8 % (1::int8 << 32)")
        return connection, cursor.fetchone()[0]


class Running:
    """spate_rebuild_running of the connector itself."""

    def __init__(self, url):
        path = os.path.join(scratch.ROOT, "build/release/tests/support/connector_running")
        subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, os.path.relpath(path, scratch.ROOT)], check=True)
        self.process = subprocess.Popen([path, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self.read()

    def read(self):
        found = {}
        for line in self.process.stdout:
            if line == ".\n":
                return found
            xid, started = line.split()
            found[int(xid)] = int(started)
        raise scratch.Failure("connector_running ended")

    def still(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def test_P91_who_may_have_been_delivered_and_is_not_visible(hidden):
    w = hidden
    w.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    w.src("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN")
    other = World(w.source, None, name=w.name + "_other")
    other.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    before = w.src("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8")[0][0]
    idle, idle_xid = begin(w, "INSERT INTO t VALUES (1)")
    prepared, prepared_xid = begin(w, "INSERT INTO t VALUES (2)")
    with prepared.cursor() as cursor:
        cursor.execute(f"PREPARE TRANSACTION '{w.name}'")
    active, active_xid = begin(w, "INSERT INTO t VALUES (3)")

    def sleep():
        try:
            with active.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(600)")
        except Exception:  # cancelled at the end
            pass

    sleeper = threading.Thread(target=sleep, daemon=True)
    sleeper.start()
    hang(w.source, True)
    hanging = Hanging(w, "INSERT INTO t VALUES (4)")
    elsewhere = Hanging(other, "INSERT INTO t VALUES (5)")
    told = Running(w.source.url(w.db))
    untold = Running(w.source.url(w.db, user="stranger"))
    after = w.src("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8")[0][0]
    try:
        assert set(told.first) == {prepared_xid, active_xid, hanging.xid}
        assert all(before <= started <= after for started in told.first.values()), (before, told.first, after)
        # Of other people's sessions a role like any other knows no more than that they are: none is left out.
        assert set(untold.first) == {prepared_xid, active_xid, hanging.xid, idle_xid}
        assert untold.first[prepared_xid] > 0
        assert [untold.first[xid] for xid in (active_xid, hanging.xid, idle_xid)] == [0, 0, 0]
        # COMMIT PREPARED hangs just so, and its backend's transaction is not the one that waits.
        resolver = threading.Thread(target=w.src, args=(f"COMMIT PREPARED '{w.name}'",), daemon=True)
        resolver.start()
        scratch.until(lambda: w.src("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'COMMIT PREPARED%%'"),
                      lambda: "COMMIT PREPARED hangs", 10)
        again = Running(w.source.url(w.db))
        assert prepared_xid in again.first and again.first[prepared_xid] == told.first[prepared_xid]
        again.close()
        hang(w.source, False)
        for thread in (hanging, elsewhere, resolver):
            thread.join(10)
        assert set(told.still()) == {active_xid}
        active.cancel()
        sleeper.join(10)
        assert told.still() == {}
        assert set(untold.still()) <= {idle_xid, active_xid}
    finally:
        hang(w.source, False)
        told.close()
        untold.close()
        for connection in (idle, prepared, active):
            connection.close()
        other.close()
        w.src("DROP ROLE stranger")


@pytest.mark.parametrize("restart", [False, True], ids=["same session", "after a restart"])
def test_P91_a_snapshot_waits_for_what_was_delivered_and_is_not_visible(hidden, restart):
    w = hidden
    w.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 10) g")
    w.config["heartbeat"] = "100ms"
    w.connector()
    hang(w.source, True)
    hanging = Hanging(w, "INSERT INTO t VALUES (11, 'new'); UPDATE t SET v = 'new' WHERE id = 1; DELETE FROM t WHERE id = 2")
    scratch.until(lambda: lsn(w.src("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [w.slot()])[0][0])
                  >= hanging.committed, lambda: "it is delivered and confirmed; " + w.connector_process.tail(), 20)
    if restart:
        w.connector_process.stop()
        w.connector()
    snapshot = w.snapshot("--tables", "t", "--follow")
    try:
        waits = f"transaction {hanging.xid} is " + ("not over, and an earlier session" if restart else "")
        scratch.until(lambda: waits in snapshot.text(), lambda: "it says for whom it waits:\n" + snapshot.tail() + w.connector_process.tail(), 15)
        assert snapshot.running() and '"key"' not in snapshot.text()
    finally:
        hang(w.source, False)
    hanging.join(10)
    scratch.until(lambda: not snapshot.running(), lambda: "the snapshot ends: " + snapshot.tail() + w.connector_process.tail(), 20)
    rows = {line.split('"id":')[1].split("}")[0]: line for line in snapshot.text().splitlines() if '"after"' in line}
    assert sorted(map(int, rows)) == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11], snapshot.text()
    assert "new" in rows["1"] and "new" in rows["11"]


def test_a_request_for_one_row_ends(world):
    """Its only chunk answers a key; nobody takes a token from that, so ranges-end must not name one."""
    w = world
    w.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one'), (2, 'two')")
    w.connector()
    for where, found in (("id = 2", 1), ("id = 3", 0)):
        _, out, _ = w.run("snapshot", "-c", w.connector_file(), "--tables", "t", "--where", where, check=0)
        assert out.count('"key":{"id":2}') == found and len(out.splitlines()) == found


def test_P31_a_table_that_is_replaced_while_it_is_read(world):
    """The stream says nothing of the rows that went away with the old table; those that were read of it must not stay."""
    w = world
    w.config["snapshots"] = {"chunk_bytes": "64KiB", "rows_per_second": 2000, "parallel": 1}
    w.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 6000) g")
    w.connector()
    sink = w.sink(w.sink_file("team", {"t": {"from": "public.t"}}, snapshot="auto"))

    def some():
        try:
            return 1000 < w.tgt("SELECT count(*) FROM team.t")[0][0] < 5000
        except Exception:  # not made yet
            return False

    scratch.until(some, lambda: "a part of the table is there: " + sink.tail() + w.connector_process.tail(), 30)
    w.src("""BEGIN; CREATE TABLE t_new (id int PRIMARY KEY, v text); INSERT INTO t_new SELECT g, 'new' FROM generate_series(5001, 7000) g;
             ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t;
             ALTER PUBLICATION spate DROP TABLE t_old; ALTER PUBLICATION spate ADD TABLE t; COMMIT""")
    w.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert "replaced" in sink.text() and sink.running()
