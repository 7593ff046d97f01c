"""The bus on Kafka, on one broker that is not harmed: what an independent reader finds there, what happens to a topic that
somebody changes, and who may write. test_kafka_topics.py is about making topics, test_kafka_broker.py about brokers that fail."""
import json
import os
import subprocess

import pytest

from tests.support import scratch
from tests.support.kafka_wire import KafkaError
from tests.support.world import MemoryWatch, binary

REFUSED, FENCED = 4, 3
T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]
# The topic is looked at every half second, and not twice a minute.
QUICK = {"properties": {"topic.metadata.refresh.interval.ms": "500"}}


def flowing(world, rows=10, **kafka):
    world.bus["kafka"].update(kafka)
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", T, snapshot="manual"))
    world.src("INSERT INTO t SELECT g, 'before' FROM generate_series(1, %s) g", [rows])
    world.wait_equal(PAIR)
    return connector, sink


def test_an_independent_reader_finds_every_change(kafka_world, kafka):
    """Every operation and tuple state; the record's key is the row's key as JSON, its value the line that a tap prints."""
    world = kafka_world
    world.src("CREATE TABLE t (id int PRIMARY KEY, small int, large text); CREATE TABLE two (a int, b text, PRIMARY KEY (a, b));"
              "CREATE TABLE nokey (v int); ALTER TABLE nokey REPLICA IDENTITY FULL")
    world.connector()
    world.sink(world.sink_file("team", {"t": {"from": "public.t"}, "two": {"from": "public.two"}}))
    world.sink(world.sink_file("other", {"odd": {"from": "public.two", "columns": {"a": "a", "b": "b"}, "key": ["a", "b"]}}), name="other")
    world.src("INSERT INTO t VALUES (1, 1, (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) g)), (2, 2, NULL)")
    world.src("UPDATE t SET small = 5 WHERE id = 1; UPDATE t SET id = 10 WHERE id = 1; DELETE FROM t WHERE id = 2")
    world.src("INSERT INTO two VALUES (1, 'x \"quoted\"'), (2, 'ä'); INSERT INTO nokey VALUES (1); UPDATE nokey SET v = 2; TRUNCATE nokey")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t"), ("SELECT * FROM two", "SELECT * FROM team.two"),
                      ("SELECT * FROM two", "SELECT * FROM other.odd")])
    assert world.tgt("SELECT id, small, length(large) FROM team.t") == [(10, 5, 12800)]
    found = world.check_bus()  # through kcat: numbers, positions, schemas, keys
    assert found["repeats"] == found["holes"] == 0 and found["validated"] == found["messages"]
    records = kafka.consume(world.stream)
    lines = [value.decode() for _, _, value in records]
    keys = {json.loads(value)["n"]: key for _, key, value in records if "n" in json.loads(value)}
    changes = [json.loads(line) for line in lines if '"n":' in line[:60]]
    assert [m["op"] for m in changes][:5] == ["insert", "insert", "update", "update", "delete"]
    assert keys[1] == b'{"id":1}' and keys[4] == b'{"id":10}' and changes[3]["unchanged"] == ["large"]
    assert keys[6] == '{"a":1,"b":"x \\"quoted\\""}'.encode() and json.loads(keys[7]) == {"a": 2, "b": "ä"}
    assert {m["op"]: keys[m["n"]] for m in changes if m.get("table") == "nokey" or m["op"] == "truncate"} == {"insert": None, "update": None, "truncate": None}
    printed = subprocess.Popen([binary(), "tap", "-c", world.connector_file(), "--from", "oldest"], stdout=subprocess.PIPE, text=True,
                               preexec_fn=scratch.child_setup())
    try:
        assert [printed.stdout.readline().rstrip("\n") for _ in lines] == lines
    finally:
        printed.kill()
        printed.communicate()


def test_a_restart_publishes_nothing_again(kafka_world):
    world = kafka_world
    connector, sink = flowing(world, 2000)
    for _ in range(2):
        assert connector.stop() == 0 and sink.stop() == 0
        connector, sink = world.connector(), world.sink(world.sink_file("team", T, snapshot="manual"))
        sink.wait_log("event=streaming")
    connector.kill()
    world.connector()
    world.src("INSERT INTO t VALUES (5000, 'after')")
    world.wait_equal(PAIR)
    found = world.check_bus(sample=20)
    assert found["repeats"] == 0 and found["ops"]["insert"] == 2001
    assert world.tgt("SELECT duplicates, holes FROM team.spate_sink") == [(0, 0)]


def test_a_message_too_large_for_the_topic(kafka_world, kafka):
    """F53, K7: the connector stops with the table, the sizes and the remedy; nothing behind it was published; a larger
    limit lets it go on."""
    world = kafka_world
    connector, _ = flowing(world)
    assert connector.stop() == 0
    kafka.wire.set(world.stream, max_message_bytes=100000)
    connector = world.connector()
    world.src("INSERT INTO t VALUES (50, repeat('x', 90000))")
    world.wait_equal(PAIR)
    world.src("INSERT INTO t VALUES (51, repeat('y', 200000)); INSERT INTO t VALUES (52, 'behind it')")
    assert connector.wait_exit() == REFUSED, connector.tail()
    line = connector.wait_log(r"[^\n]*public\.t[^\n]*").group(0)
    assert "max.message.bytes" in line and "insert" in line and "yyyy" not in line, line
    last = json.loads(kafka.consume(world.stream)[-1][2])
    assert last["op"] == "heartbeat" or last["key"] == {"id": 50}, "something behind the large message was published"
    again = world.connector(ready=False)
    assert again.wait_exit() == REFUSED, again.tail()
    kafka.wire.set(world.stream, max_message_bytes=16777216)
    world.connector()
    world.wait_equal(PAIR)
    found = world.check_bus()
    assert found["holes"] == 0


def test_a_topic_made_smaller_while_running(kafka_world, kafka):
    """K7: the broker refuses what the connector took for small enough. No hole: it begins again behind what is safe."""
    world = kafka_world
    connector, _ = flowing(world)
    kafka.wire.set(world.stream, max_message_bytes=50000)
    world.src("INSERT INTO t SELECT g, 'small' FROM generate_series(100, 200) g; INSERT INTO t VALUES (201, (SELECT string_agg(md5(g::text), '') FROM"
              " generate_series(1, 5000) g)); INSERT INTO t VALUES (202, 'behind')")
    assert connector.wait_exit() == REFUSED, connector.tail()
    connector.wait_log(r"max\.message\.bytes")
    kafka.wire.set(world.stream, max_message_bytes=16777216)
    world.connector()
    world.wait_equal(PAIR)
    assert world.check_bus()["holes"] == 0


def gone(kafka, topic):
    try:
        kafka.wire.partition(topic)
        return False
    except KafkaError:
        return True


def new_epoch(world, sink):
    """The only way on: what was lost is said, and the sink is reloaded."""
    world.connector("--new-epoch")
    assert sink.wait_exit() == FENCED, sink.tail()
    assert "STALE" in sink.wait_log(r"[^\n]*--restart[^\n]*").group(0)
    restart(world)


def restart(world):
    world.tgt("TRUNCATE team.t")
    world.sink(world.sink_file("team", T, snapshot="manual"), name="again", arguments=("--restart", "team"))
    world.src("UPDATE t SET id = id")  # every row once more
    world.wait_equal(PAIR)


def test_a_topic_deleted_while_running(kafka_world, kafka):
    """F54: the connector stops as fenced; it does not make the topic anew in silence."""
    world = kafka_world
    connector, sink = flowing(world, **QUICK)
    kafka.wire.delete_topic(world.stream)
    scratch.until(lambda: gone(kafka, world.stream), "the topic is gone")
    world.src("INSERT INTO t VALUES (60, 'lost')")
    assert connector.wait_exit() == FENCED, connector.tail()
    assert "--new-epoch" in connector.text()
    again = world.connector(ready=False)
    assert again.wait_exit() == FENCED, again.tail()
    new_epoch(world, sink)


def test_a_topic_deleted_and_made_anew_while_running(kafka_world, kafka):
    """F54, K10: the same name, other records. The offsets begin anew, which the writer sees."""
    world = kafka_world
    connector, sink = flowing(world, 500, **QUICK)
    kafka.wire.delete_topic(world.stream)
    scratch.until(lambda: gone(kafka, world.stream), "the topic is gone")
    kafka.wire.create_topic(world.stream, retention_ms=604800000, message_timestamp_type="LogAppendTime", max_message_bytes=16777216)
    world.src("INSERT INTO t SELECT g, 'after' FROM generate_series(600, 610) g")
    assert connector.wait_exit() == FENCED, connector.tail()
    connector.wait_log("--new-epoch")  # the writer saw other offsets, or recovery an empty stream: whichever looks first
    new_epoch(world, sink)


def test_a_topic_deleted_and_made_anew_while_stopped(kafka_world, kafka):
    """K10, K14: the slot stands beyond what the new topic holds."""
    world = kafka_world
    connector, sink = flowing(world, 500)
    assert connector.stop() == 0 and sink.stop() == 0
    kafka.wire.delete_topic(world.stream)
    scratch.until(lambda: gone(kafka, world.stream), "the topic is gone")
    again = world.connector(ready=False)
    assert again.wait_exit() == FENCED, again.tail()
    again.wait_log("--new-epoch")
    sink = world.sink(world.sink_file("team", T, snapshot="manual"))
    sink.wait_log(r"level=warn event=position-beyond-the-end")  # and STALE after a minute, unless a lagging broker catches up
    sink.kill()
    world.connector("--new-epoch")
    restart(world)


def test_partitions_added_while_running(kafka_world, kafka):
    """F55, K11: it stops before it publishes anything elsewhere."""
    world = kafka_world
    connector, _ = flowing(world, **QUICK)
    kafka.wire.add_partitions(world.stream, 4)
    assert connector.wait_exit() == FENCED, connector.tail()
    line = connector.wait_log(r"[^\n]*partitions[^\n]*").group(0)
    assert world.stream in line and "--new-epoch" in line
    world.src("INSERT INTO t VALUES (70, 'not published')")
    ends = [json.loads(value).get("key") for _, _, value in kafka.consume(world.stream)]
    assert {"id": 70} not in ends
    again = world.connector(ready=False)
    assert again.wait_exit() in (FENCED, REFUSED), again.tail()
    again.wait_log("partitions")


def test_retention_overtakes_a_stopped_sink(kafka_world, kafka):
    """F56, K24: it says how many messages are lost from where to where, and does not go on by itself."""
    world = kafka_world
    _, sink = flowing(world, 20)
    assert sink.stop() == 0
    for n in range(5):
        world.src("INSERT INTO t SELECT g, 'missed' FROM generate_series(%s, %s) g", [100 + 10 * n, 109 + 10 * n])
    world.emit_marker()
    scratch.until(lambda: kafka.wire.offsets(world.stream)[1] >= 71, "all is on the bus")
    assert kafka.wire.delete_records(world.stream, 50) == 50
    sink = world.sink(world.sink_file("team", T, snapshot="manual"), name="stale")
    assert sink.wait_exit() == FENCED, sink.tail()
    line = sink.wait_log(r"[^\n]*--restart[^\n]*").group(0)
    position = world.tgt("SELECT bus_position, n FROM team.spate_sink")[0]
    assert "50" in line and position[1] == 20 and ("20" in line or "21" in line), (position, line)
    world.tgt("TRUNCATE team.t")
    world.sink(world.sink_file("team", T, snapshot="manual"), name="again", arguments=("--restart", "team"))
    world.src("UPDATE t SET id = id")
    world.wait_equal(PAIR)


def test_retention_overtakes_a_frozen_sink(kafka_world, kafka):
    """K24: the same under a running reader."""
    world = kafka_world
    _, sink = flowing(world, 20)
    os.kill(sink.pid, 19)
    world.src("INSERT INTO t SELECT g, repeat('missed', 2000) FROM generate_series(100, 3000) g")
    scratch.until(lambda: kafka.wire.offsets(world.stream)[1] >= 2920, "all is on the bus")
    kafka.wire.delete_records(world.stream, 2900)
    os.kill(sink.pid, 18)
    # What it had in memory it may still apply; then it is stale, or it had everything.
    assert sink.wait_exit() == FENCED, sink.tail()
    sink.wait_log(r"[^\n]*--restart[^\n]*")


def test_two_connectors_on_one_slot(kafka_world):
    """F5, P62: Kafka has no owner of a topic; the slot has. The second waits and names the first; then it takes over."""
    world = kafka_world
    first, _ = flowing(world)
    second = world.connector(ready=False, name="second")
    line = second.wait_log(r"[^\n]*active[^\n]*").group(0)
    assert world.slot() in line
    world.src("INSERT INTO t SELECT g, 'both' FROM generate_series(100, 200) g")
    world.wait_equal(PAIR)
    first.kill()
    scratch.until(lambda: "event=streaming" in second.text(), lambda: "the second goes on: " + second.tail(), 20)
    world.src("INSERT INTO t SELECT g, 'second' FROM generate_series(300, 400) g")
    world.wait_equal(PAIR)
    assert world.check_bus()["repeats"] == 0


def test_two_connectors_with_slots_of_their_own_on_one_topic(kafka_world):
    """Nobody can lock a topic, so each must see that the other writes it: the second is fenced with words."""
    world = kafka_world
    first, _ = flowing(world)
    config = json.loads(json.dumps(world.config))
    config["source"]["postgres"]["slot"] = world.slot() + "_b"
    second = world.connector(ready=False, file=world.write("second.yaml", config), name="second")
    assert second.wait_exit() == FENCED, second.tail()
    line = second.wait_log(r"[^\n]*--new-epoch[^\n]*").group(0)
    assert world.slot() in line
    world.src("INSERT INTO t SELECT g, 'still' FROM generate_series(100, 200) g")
    world.wait_equal(PAIR)
    assert first.running()
    world.check_bus()


def test_a_large_transaction(kafka_world, kafka):
    """Memory is a constant, whatever a transaction's size (this one takes 100 MB on the bus); a kill in the middle publishes
    what is missing."""
    world = kafka_world
    rows = int(os.environ.get("LARGE_ROWS", "400000"))
    connector, sink = flowing(world)
    watch, sink_watch = MemoryWatch(lambda: world.connector_process), MemoryWatch(lambda: sink)
    start = kafka.wire.offsets(world.stream)[1]
    world.src("INSERT INTO t SELECT g, 'row number ' || g FROM generate_series(100, %s) g", [99 + rows])
    scratch.until(lambda: kafka.wire.offsets(world.stream)[1] > start + rows // 4, "a quarter of it is on the bus", 60)
    connector.kill()
    world.connector()
    world.wait_rows("SELECT count(*) FROM team.t", [(rows + 10,)], seconds=120, sink=sink)
    world.wait_equal(PAIR)
    peak, sink_peak = watch.stop(), sink_watch.stop()
    found = world.check_bus(sample=20000, seconds=200)
    print(f"   Kafka, {rows} rows: private memory at most: connector {peak} kB, sink {sink_peak} kB; {found['repeats']} repeated")
    assert found["ops"]["insert"] == rows + 10 and found["holes"] == 0
    assert watch.samples > 50 and peak < 64 * 1024 and sink_peak < 64 * 1024, (peak, sink_peak)
