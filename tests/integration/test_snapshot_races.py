"""What happens to a table exactly while a chunk of it is read (F42), and a zombie's chunks (F46). The moments are failpoints."""
import json
import os
import signal
import subprocess

import pytest

from tests.support import scratch
from tests.support.world import World

BINARY = os.path.join(scratch.ROOT, "build/failpoints/spate")
T = {"t": {"from": "public.t", "columns": {"id": "id", "v": "v", "filler": "filler"}, "key": ["id"]}}
PAIR = [("SELECT id, v, filler FROM t", "SELECT * FROM team.t")]
FILL = "INSERT INTO t SELECT g, 0, repeat(md5(g::text), 6) FROM generate_series(1, 1500) g"


@pytest.fixture(scope="module", autouse=True)
def with_failpoints():
    subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, "VARIANT=failpoints", "compile"], check=True)
    before = os.environ.get("SPATE")
    os.environ["SPATE"] = BINARY
    yield
    os.environ.pop("SPATE")
    if before:
        os.environ["SPATE"] = before


def stopped(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        return stat.read().rsplit(") ", 1)[1][0] == "T"


def until_stopped(process, name):
    scratch.until(lambda: stopped(process), lambda: f"{process.name} stops at {name}:\n{process.tail()}", 30)
    assert f" name={name} action=stop " in process.text(), process.tail()


@pytest.fixture(scope="module", params=["local", "kafka"])
def stage(request, source, target):
    """One world for all races of a bus; each has a team of its own."""
    world = World(source, target, kafka=request.getfixturevalue("kafka") if request.param == "kafka" else None)
    world.config["snapshots"] = {"chunk_bytes": "64KiB", "parallel": 1}
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int, filler text)")
    world.connector()
    yield world
    found = world.check_bus(sample=20)  # without truth: a rewrite changes values and says nothing (P32)
    world.close()
    assert found["chunks"] > 1, found


RACES = {
    "truncate": "TRUNCATE t",
    "truncate and fill": "BEGIN; TRUNCATE t; INSERT INTO t SELECT g, 1, 'after' FROM generate_series(700, 2000) g; COMMIT",
    "add a column": "ALTER TABLE t ADD COLUMN more text DEFAULT 'd'; UPDATE t SET v = 5 WHERE id % 10 = 0",
    "rewrite": "ALTER TABLE t ALTER v TYPE int USING v + 100",
    "vacuum full": "VACUUM FULL t",
    "move all rows": "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET id = id + 10000 WHERE id % 5 = 0; UPDATE t SET v = v + 1",
}


@pytest.mark.parametrize("moment", ["connector_chunk_locked", "connector_chunk_ready"])
@pytest.mark.parametrize("race", RACES)
def test_F42_a_table_changes_while_a_chunk_is_read(stage, race, moment, request):
    """At the lock the change has to wait for the chunk; before the next chunk it comes in between."""
    world = stage
    number = next(world.marks)
    name = f"team{number}"
    world.src("TRUNCATE t; ALTER TABLE t DROP COLUMN IF EXISTS more; " + FILL)
    assert world.connector_process.stop() == 0
    connector = world.connector(env={"SPATE_FP": f"{moment}=stop@2"})
    sink = world.sink(world.sink_file(name, T, snapshot="auto"), name=name)
    until_stopped(connector, moment)
    client = subprocess.Popen(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", world.source.dsn(world.db)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              preexec_fn=scratch.child_setup())
    client.stdin.write(RACES[race] + ";\n")
    client.stdin.close()
    scratch.until(lambda: client.poll() is not None or world.src("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"),
                  "the change is made, or waits for the chunk")
    connector.process.send_signal(signal.SIGCONT)
    assert client.wait(20) == 0, client.stderr.read()
    client.stderr.close()
    sink.wait_log(rf"event=snapshot-finished [^\n]*\bsink={name}\b", 30)
    world.src("INSERT INTO t (id, v) VALUES (99999, 1)")
    world.wait_equal([("SELECT id, v, filler FROM t", f"SELECT * FROM {name}.t")])
    assert sink.stop() == 0


def test_F46_a_zombies_chunk(stage):
    """A connector sleeps with a chunk in its hand; another takes over, answers the request and goes on; then the first one
    wakes and puts its chunk into the stream. Nobody takes it, unless it is true where it stands."""
    world = stage
    world.src("TRUNCATE t; " + FILL)
    world.config["snapshots"] = {"chunk_bytes": "64KiB", "parallel": 1, "rows_per_second": 700}
    assert world.connector_process.stop() == 0
    a = world.connector(env={"SPATE_FP": "connector_chunk_half=stop@2"}, name="a")
    sink = world.sink(world.sink_file("zombie", T, snapshot="auto"), name="zombie")
    until_stopped(a, "connector_chunk_half")
    world.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [world.slot()])
    scratch.until(lambda: not world.source.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active", [world.slot()]), "the slot is free")
    b = world.connector(ready=bool(world.kafka), name="b")
    if world.kafka:
        world.src("UPDATE t SET v = 7 WHERE id % 2 = 0; DELETE FROM t WHERE id % 7 = 0")
        scratch.until(lambda: "event=snapshot-begin" in b.text(), lambda: "the request goes on:" + world.logs(), 40)
        world.wait_rows("SELECT count(*) > 0 FROM zombie.t WHERE v = 7", [(True,)])
    a.process.send_signal(signal.SIGCONT)
    sink.wait_log(r"event=snapshot-finished", 40)
    world.wait_equal([("SELECT id, v, filler FROM t", "SELECT * FROM zombie.t")])
    if world.kafka:
        lines = [json.loads(value) for _, _, value in world.kafka.consume(world.stream)]
        last = stale = 0
        for line in lines:
            last = max(last, line.get("n", 0))
            stale += line["op"] == "read" and line["at"] < last
        print(f"\n   {stale} rows of the zombie stood in the stream where they were true no more", flush=True)
        assert stale > 50, "the zombie's chunk came: else this test shows nothing"
    if world.kafka:
        a.kill()
        world.connector_process = b
    else:
        b.kill()
        world.connector_process = a
