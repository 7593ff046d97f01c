"""A broken identity is never repaired in silence: exit 3, words, and --new-epoch as the only way on (P58-P60, P73-P76)."""
import json
import shutil

import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.world import World

FENCED = 3
T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]


@pytest.fixture
def running(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.sink(world.sink_file("team", T, snapshot="manual"))
    world.src("INSERT INTO t SELECT g, 'before' FROM generate_series(1, 50) g")
    world.wait_equal(PAIR)
    return world


def fenced(world, words, *arguments):
    connector = world.connector(*arguments, ready=False)
    code = connector.wait_exit(30)
    assert code == FENCED, f"exit {code}: {connector.tail()}"
    line = connector.wait_log(rf"(?i)[^\n]*{words}[^\n]*").group(0)
    assert "--new-epoch" in line
    return line


def drop_slot(world):
    scratch.until(lambda: not world.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", [world.slot()]), "the slot is free")
    world.source.sql("SELECT pg_drop_replication_slot(%s)", [world.slot()])


def broken_epoch_then_reload(world):
    """The way on of a sink that never asks by itself: a new epoch; it stops as stale; its table is reloaded by hand and it
    begins anew."""
    sink = world.processes[1]
    connector = world.connector("--new-epoch")
    assert sink.wait_exit() == FENCED, sink.tail()
    sink.wait_log(r"(?i)--restart")
    epochs = [m for m in world.messages() if m["op"] == "epoch"]
    assert [e["epoch"] for e in epochs] == [1, 2] and epochs[1]["previous"] == "broken" and epochs[1]["follower"] == "snapshot"
    assert epochs[0]["uuid"] != epochs[1]["uuid"]
    rows = world.src("SELECT * FROM t")
    world.tgt("TRUNCATE team.t")
    for row in rows:
        world.tgt("INSERT INTO team.t VALUES (%s, %s)", row)
    world.sink(world.sink_file("team", T, snapshot="manual"), name="again", arguments=("--restart", "team"))
    world.src("INSERT INTO t VALUES (1000, 'after'); UPDATE t SET v = 'after' WHERE id < 5; DELETE FROM t WHERE id = 6")
    world.wait_equal(PAIR)
    world.check_bus()
    # The next start is an ordinary one.
    assert connector.stop() == 0
    world.connector()
    world.src("INSERT INTO t VALUES (1001, 'and on')")
    world.wait_equal(PAIR)


def test_slot_missing(running):
    running.connector_process.stop()
    drop_slot(running)
    running.src("INSERT INTO t VALUES (60, 'never seen')")
    line = fenced(running, "does not exist")
    assert running.slot() in line
    assert not running.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [running.slot()])  # none was made
    broken_epoch_then_reload(running)


def test_slot_recreated(running):
    running.connector_process.stop()
    drop_slot(running)
    running.src("INSERT INTO t VALUES (60, 'never seen')")
    running.source.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [running.slot()], running.db)
    line = fenced(running, "stands at")
    assert running.slot() in line
    broken_epoch_then_reload(running)


def test_slot_moved(running):
    running.connector_process.kill()
    running.src("INSERT INTO t VALUES (60, 'skipped')")
    scratch.until(lambda: not running.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", [running.slot()]), "the slot is free")
    running.source.sql("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [running.slot()], running.db)
    fenced(running, "stands at")
    broken_epoch_then_reload(running)


def test_slot_dropped_while_running(running):
    running.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [running.slot()])
    end = [0]

    def gone():
        try:
            running.source.sql("SELECT pg_drop_replication_slot(%s)", [running.slot()])
            return True
        except Exception:
            running.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [running.slot()])
            end[0] += 1
            return False

    scratch.until(gone, "the slot is dropped under the connector", 20, every=0.001)
    connector = running.connector_process
    assert connector.wait_exit() == FENCED, connector.tail()
    connector.wait_log("--new-epoch")


def test_slot_invalidated(target):
    own = Cluster("inval", max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB").start()
    world = World(own, target)
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SCHEMA private; CREATE TABLE private.noise (x text)")
    connector = world.connector()
    world.sink(world.sink_file("team", T, snapshot="manual"))
    world.src("INSERT INTO t VALUES (1, 'a')")
    world.wait_equal(PAIR)
    connector.stop()

    def lost():
        world.src("INSERT INTO private.noise SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g; SELECT pg_switch_wal()")
        own.sql("CHECKPOINT")
        return own.one("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [world.slot()]) == "lost"

    scratch.until(lost, "the slot is invalidated", 60)
    line = fenced(world, "invalidated")
    assert "lost" in line and "max_slot_wal_keep_size" in line
    broken_epoch_then_reload(world)
    world.close()
    own.destroy()


def test_another_cluster_at_the_same_address(running, target):
    """F28: same names, same rows, another system identifier."""
    running.connector_process.stop()
    other = Cluster("other", own_initdb=True).start()
    other.create_database(running.db)
    other.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION spate FOR TABLE t", db=running.db)
    other.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [running.slot()], running.db)
    running.config["source"]["postgres"]["url"] = other.url(running.db)
    line = fenced(running, "another cluster")
    assert "system identifier" in line
    other.destroy()


def test_wal_went_back(target):
    """F27: the data directory is put back to an older copy."""
    own = Cluster("back").start()
    world = World(own, target)
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    world.src("INSERT INTO t VALUES (1, 'a')")
    world.messages("public.t", count=1)
    own.stop("fast", 20)
    copy = own.data + ".copy"
    scratch.run(["cp", "-a", own.data, copy])
    own.start()
    world.wait_streaming(connector)
    world.src("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(2, 3000) g")
    world.messages("public.t", count=3000)
    assert connector.stop() == 0
    own.stop("fast", 20)
    shutil.rmtree(own.data)
    scratch.run(["mv", copy, own.data])
    own.start()
    fenced(world, "(went back|older)")
    world.close()
    own.destroy()


def test_bus_wiped(running):
    running.connector_process.stop()
    for process in running.processes:
        process.kill()
    import os
    stream = os.path.join(running.bus["local"]["path"])
    removed = 0
    for base, folders, _files in list(os.walk(stream)) + list(os.walk(running.hot)):
        for folder in folders:
            if folder == "shop":  # the stream's topic, not _schemas
                shutil.rmtree(os.path.join(base, folder))
                removed += 1
    assert removed
    fenced(running, "(stream is empty|removed or lost)")


def test_new_epoch_where_nothing_was_lost_is_followed(running):
    """Continuity holds, the epoch names the previous one, and sinks go on by themselves."""
    assert running.connector_process.stop() == 0
    running.src("INSERT INTO t VALUES (100, 'between')")
    running.connector("--new-epoch")
    running.src("INSERT INTO t VALUES (101, 'after')")
    running.wait_equal(PAIR)
    epochs = [m for m in running.messages() if m["op"] == "epoch"]
    assert epochs[1]["epoch"] == 2 and epochs[1]["previous"] == {"epoch": 1, "n": 50}
    assert running.processes[1].running()
    running.check_bus()


def test_a_first_start_takes_an_existing_slot(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION spate FOR TABLE t")
    world.source.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [world.slot()], world.db)
    world.src("INSERT INTO t VALUES (1, 'was waiting in the slot')")
    world.config["source"]["postgres"]["create"] = False
    world.connector()
    world.sink(world.sink_file("team", T, snapshot="manual"))
    world.src("INSERT INTO t VALUES (2, 'then')")
    world.wait_equal(PAIR)
    world.check_bus()


def test_a_slot_of_another_plugin_is_refused(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION spate FOR TABLE t")
    world.source.sql("SELECT pg_create_physical_replication_slot(%s)", [world.slot()])
    connector = world.connector(ready=False)
    assert connector.wait_exit() in (1, 2, 4)
    connector.wait_log(world.slot())
    world.source.sql("SELECT pg_drop_replication_slot(%s)", [world.slot()])
