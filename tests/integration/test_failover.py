"""Standbys: a stream that goes on after one of them was promoted (P73, P74), and one that is read from a standby (P77)."""
import pytest

from tests.support import scratch, servers
from tests.support.cluster import Cluster
from tests.support.world import World

SAME = [("SELECT * FROM t", "SELECT * FROM team.t")]


def newest(least):
    """The server that this run is about when it is new enough, else the newest there is."""
    major = int(servers.major())
    return None if major >= least else servers.NEWEST


class Pair:
    """A primary, its standby by way of a physical slot, a world on them. kept_behind: logical slots wait for the standby."""

    def __init__(self, target, kept_behind=True):
        settings = {"synchronized_standby_slots": "phys"} if kept_behind else {}
        self.primary = Cluster("prim", major=newest(17), **settings).start()
        self.primary.sql("SELECT pg_create_physical_replication_slot('phys', true)")
        self.world = World(self.primary, target)
        self.standby = Cluster("stby", standby_of=self.primary, primary_slot_name="phys", hot_standby_feedback="on", sync_replication_slots="on").start()
        self.world.config["source"]["postgres"].update(failover=True, url=f"postgres://postgres@/{self.world.db}?host={self.primary.dir},{self.standby.dir}"
                                                       f"&port={self.primary.port},{self.standby.port}&target_session_attrs=primary")

    def begin(self):
        self.world.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'before' FROM generate_series(1, 20) g")
        connector = self.world.connector()
        sink = self.world.sink(self.world.sink_file("team", {"t": {"from": "public.t"}}))
        self.world.wait_equal(SAME)
        scratch.until(self.kept, lambda: f"the standby keeps the slot: {self.standby.sql('SELECT * FROM pg_replication_slots')} {self.standby.tail()}", 60, 0.3)
        return connector, sink

    def kept(self):
        """Synced, and to be had after a promotion. The worker naps for longer and longer; a reload wakes it."""
        self.standby.sql("SELECT pg_reload_conf()")
        return self.standby.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND synced AND NOT temporary", [self.world.slot()])

    def fail_over(self):
        self.primary.kill()
        if not self.standby.running():
            self.standby.start()
        self.standby.promote()
        self.world.source = self.standby

    def close(self):
        self.world.stop_all()
        self.world.source = self.standby
        self.world.close()
        self.standby.destroy()
        self.primary.destroy()


def test_P74_the_stream_goes_on_where_the_standby_took_over(target):
    pair = Pair(target)
    world = pair.world
    try:
        connector, sink = pair.begin()
        world.src("UPDATE t SET v = 'last words' WHERE id < 5; INSERT INTO t VALUES (100, 'last words')")
        world.wait_equal(SAME)
        pair.fail_over()
        world.src("UPDATE t SET v = 'after' WHERE id BETWEEN 3 AND 8; DELETE FROM t WHERE id = 20; INSERT INTO t VALUES (200, 'after')")
        world.wait_equal(SAME)
        connector.wait_log(r"event=epoch epoch=2 [^\n]*previous=continues [^\n]*a standby took over: timeline 2")
        assert "event=snapshot-" not in sink.text().split("event=snapshot-finished")[-1], "nobody needs anything again"
        # From here on it is an ordinary stream: the next start asks no more questions.
        assert connector.stop() == 0
        world.src("INSERT INTO t VALUES (201, 'while it was away')")
        again = world.connector()
        world.wait_equal(SAME)
        assert "event=epoch " not in again.text()
        world.check_bus()
    finally:
        pair.close()


def test_P73_what_the_new_primary_never_had_breaks_the_stream(target):
    """Without synchronized_standby_slots the bus runs ahead of the standby; its changes would be phantoms."""
    pair = Pair(target, kept_behind=False)
    world = pair.world
    try:
        connector, _ = pair.begin()
        connector.wait_log("kind=failover-ahead [^\n]*ALTER SYSTEM SET synchronized_standby_slots")
        pair.standby.kill()
        world.src("INSERT INTO t VALUES (100, 'a phantom')")
        world.wait_equal(SAME)
        pair.fail_over()
        assert connector.wait_exit(60) == 3
        said = connector.text()
        assert "timeline 2" in said and "the bus goes beyond that" in said and "--new-epoch" in said
        # A new epoch, everything anew: the phantom goes.
        world.connector("--new-epoch")
        world.wait_equal(SAME)
        assert not world.tgt("SELECT 1 FROM team.t WHERE id = 100")
    finally:
        pair.close()


def test_P74_a_slot_becomes_one_that_standbys_keep(source, target):
    world = World(source, target)
    try:
        world.src("CREATE TABLE t (id int PRIMARY KEY)")
        assert world.connector().stop() == 0
        world.config["source"]["postgres"]["failover"] = True
        if source.version() < 170000:
            code, _, said = world.run("connector", "-c", world.connector_file())
            assert code == 4 and "source.postgres.failover is true, and the server is PostgreSQL" in said and "come with PostgreSQL 17" in said
            return
        connector = world.connector()
        connector.wait_log("event=slot-failover")
        connector.wait_log("kind=failover-no-standby")
        assert source.sql("SELECT failover FROM pg_replication_slots WHERE slot_name = %s", [world.slot()]) == [(True,)]
    finally:
        world.close()


@pytest.fixture(scope="module")
def readable():
    """A standby that may be decoded from (16+): (primary, standby)."""
    primary = Cluster("prim", major=newest(16)).start()
    primary.sql("SELECT pg_create_physical_replication_slot('phys', true)")
    standby = Cluster("stby", standby_of=primary, primary_slot_name="phys", hot_standby_feedback="on").start()
    yield primary, standby
    standby.destroy()
    primary.destroy()


class StandbyWorld(World):
    """SQL goes to the primary, the connector to the standby, whose slots wait for what the primary says is running (P77)."""

    def __init__(self, primary, standby, target):
        super().__init__(primary, target)
        self.standby = standby
        self.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'before' FROM generate_series(1, 3000) g;"
                 "CREATE PUBLICATION spate FOR TABLE t")
        self.config["source"]["postgres"]["url"] = standby.url(self.db)
        scratch.until(lambda: standby.sql("SELECT 1 FROM pg_database WHERE datname = %s", [self.db])
                      and standby.sql("SELECT 1 FROM pg_publication", db=self.db), "the standby has the publication")

    def wait_streaming(self, process, seconds=30):
        def active():
            if not process.running():
                raise scratch.Failure(f"{process.name} exited with {process.process.returncode}:\n{process.tail()}")
            self.source.sql("SELECT pg_log_standby_snapshot()")
            return self.standby.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active_pid IN (SELECT pid FROM pg_stat_replication WHERE state IN ('catchup', 'streaming'))", [self.slot()])

        scratch.until(active, lambda: f"the connector streams from the standby:\n{process.tail()}", seconds, 0.3)

    def close(self):
        self.stop_all()
        self.standby.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [self.db])
        super().close()


def test_P77_a_standby_as_the_source(readable, target):
    """Stream and snapshot, with nobody to write to: no nudge, positions by what was received."""
    world = StandbyWorld(*readable, target)
    try:
        connector = world.connector()
        sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
        world.src("UPDATE t SET v = 'meanwhile' WHERE id % 7 = 0")
        world.wait_equal(SAME)
        world.src("INSERT INTO t VALUES (5000, 'new'); DELETE FROM t WHERE id < 10; UPDATE t SET id = id + 10000 WHERE id < 20")
        world.wait_equal(SAME)
        assert connector.stop() == 0
        world.src("TRUNCATE t; INSERT INTO t VALUES (1, 'again')")
        again = world.connector()
        world.wait_equal(SAME)
        late = world.sink(world.sink_file("late", {"t": {"from": "public.t"}}), name="late")
        world.wait_equal([("SELECT * FROM t", "SELECT * FROM late.t")])
        world.check_bus()
        assert again.stop() == 0 and sink.stop() == 0 and late.stop() == 0
        assert "level=error" not in again.text()
    finally:
        world.close()
