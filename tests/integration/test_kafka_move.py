"""docs/operating.md, "Emptying the bus on purpose, or moving to another one", step by step: nothing is lost, nothing is loaded anew."""
import os

from tests.support import scratch

T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]


def move(world, bus, sink):
    """Steps 1 to 5."""
    assert world.connector_process.stop() == 0
    n = int(world.connector_process.wait_log(r"event=stopped .*\bn=(\d+)").group(1))
    world.wait_rows("SELECT n FROM team.spate_sink", [(n,)], sink=sink)
    assert sink.stop() == 0
    world.src("UPDATE t SET v = v || '.' WHERE id % 3 = 0; INSERT INTO t SELECT max(id) + 1, 'while it moved' FROM t")
    world.bus = world.config["bus"] = bus
    world.connector()
    stale = world.sink(world.sink_file("team", T), name="stale")
    assert stale.wait_exit() == 3, stale.tail()
    stale.wait_log(r"--restart team")
    sink = world.sink(world.sink_file("team", T), arguments=("--restart", "team"))
    world.wait_equal(PAIR)
    world.src("DELETE FROM t WHERE id % 5 = 0; INSERT INTO t SELECT max(id) + 1, 'moved' FROM t")
    world.wait_equal(PAIR)
    return sink


def test_a_stream_moves_between_buses(kafka_world):
    world = kafka_world
    kafka, local = world.bus, {"local": {"path": os.path.join(world.dir, "bus"), "hot": world.hot, "segment_bytes": "4MiB"}}
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t SELECT g, 'before' FROM generate_series(1, 100) g")
    world.wait_equal(PAIR)
    sink = move(world, local, sink)
    for suffix in ("", "._schemas", "._control", "._peers"):  # what lies there is of before
        world.kafka.wire.delete_topic(world.stream + suffix)
    scratch.until(lambda: not [name for name in world.kafka.wire.topics() if name.startswith(world.stream)], "the topics are gone")
    sink = move(world, kafka, sink)
    assert world.tgt("SELECT missing, holes FROM team.spate_sink") == [(0, 0)]
    assert sink.stop() == 0
