"""Topics on a real broker: made with settings that keep records, or held against them; every refusal carries the command that
mends it (HAZARDS K7, K9, K11, K13, K26)."""
import re

import pytest

from tests.support import kafka as kafka_support
from tests.support import scratch

COMMAND = re.compile(r"Run: kafka-configs\.sh (--bootstrap-server \S+ --alter --entity-type topics --entity-name (\S+) --add-config ([^\s\"]+))")


@pytest.fixture
def kafka_world(kafka_world):
    kafka_world.src("CREATE TABLE t (id int PRIMARY KEY)")
    return kafka_world


def bus(world, **kafka):
    world.bus["kafka"].update(kafka)
    return world.bus


def mend(world, words, through_java=False):
    """Runs the command that stands in the words."""
    found = COMMAND.search(words)
    assert found, words
    key, value = found.group(3).split("=")
    if through_java:
        kafka_support.java(kafka_support.VERSION, "kafka.admin.ConfigCommand", *found.group(1).split())
    else:
        world.kafka.wire.set(found.group(2), **{key.replace(".", "_"): value})
    scratch.until(lambda: world.kafka.wire.settings(found.group(2))[key] == value, f"{key} of {found.group(2)} is {value}")


def refused(world, code=4):
    """Starts a connector that must stop by itself; returns its words."""
    process = world.connector(ready=False)
    assert process.wait_exit() == code, process.tail()
    return process.text()


def flows(world):
    """A row comes through."""
    world.connector()
    world.src("INSERT INTO t VALUES (1)")
    assert [m for m in world.messages("*.t", count=1) if m["op"] == "insert"]


def test_topics_are_made_with_settings_that_keep_records(kafka_world):
    flows(kafka_world)
    wire, stream = kafka_world.kafka.wire, kafka_world.stream
    for suffix, cleanup, retention in (("", "delete", "604800000"), ("._schemas", "compact", None), ("._control", "delete", "604800000"),
                                       ("._peers", "delete", "3600000")):
        has = wire.settings(stream + suffix)
        assert len(wire.metadata(stream + suffix)["topics"][stream + suffix]) == 1
        assert has["cleanup.policy"] == cleanup, (suffix, has)
        assert retention is None or has["retention.ms"] == retention, (suffix, has)
        assert has["unclean.leader.election.enable"] == "false" and has["message.timestamp.type"] == "LogAppendTime", has
        assert has["max.message.bytes"] == str(16 << 20) and has["retention.bytes"] == "-1" and has["min.insync.replicas"] == "1", has
    # One broker, one replica: said once, though there are four topics.
    log = kafka_world.connector_process.text()
    assert log.count("setting=replicas=1") == 1 and "K13" in log, log
    assert log.count("level=warn") == 1 + ("event=kafka-version" in log), log  # and nothing else is complained of


def test_what_the_file_says_about_topics_is_done(kafka_world):
    bus(kafka_world, retention="1h", max_message_bytes="1MiB", replication_factor=1, min_insync_replicas=1)
    flows(kafka_world)
    has = kafka_world.kafka.wire.settings(kafka_world.stream)
    assert has["retention.ms"] == "3600000" and has["max.message.bytes"] == str(1 << 20), has


@pytest.mark.parametrize("suffix, setting, words", [
    ("", {"cleanup_policy": "compact"}, ["cleanup.policy=compact", "K26"]),
    ("", {"cleanup_policy": "delete,compact"}, ["K26"]),
    ("._schemas", {"cleanup_policy": "delete"}, ["table descriptions"]),
    ("", {"max_message_bytes": 4000}, ["max.message.bytes=4000"]),
], ids=["compacted", "compacted-and-deleted", "schemas-not-kept", "small-records"])
def test_a_setting_that_loses_records_is_refused_with_its_remedy(kafka_world, suffix, setting, words):
    topic = kafka_world.stream + suffix
    kafka_world.kafka.wire.create_topic(topic, **setting)
    said = refused(kafka_world)
    for word in [topic, *words]:
        assert word in said, said
    mend(kafka_world, said, through_java=setting == {"cleanup_policy": "compact"})
    flows(kafka_world)


def test_what_is_only_unwise_is_warned_about(kafka_world):
    kafka_world.kafka.wire.create_topic(kafka_world.stream, message_timestamp_type="CreateTime", retention_ms=60000,
                                        retention_bytes=1 << 30, unclean_leader_election_enable="true", min_insync_replicas=2)
    flows(kafka_world)
    said = kafka_world.connector_process.text()
    for setting in ("message.timestamp.type", "retention.ms", "retention.bytes", "unclean.leader.election.enable", "min.insync.replicas"):
        assert len(re.findall(rf"level=warn event=topic-setting topic={kafka_world.stream} setting={re.escape(setting)} ", said)) == 1, said


def test_more_than_one_partition_is_refused(kafka_world):
    """K11: there transactions would lose their order. Connectors and readers both say so."""
    kafka_world.kafka.wire.create_topic(kafka_world.stream, partitions=2)
    said = refused(kafka_world)
    assert "2 partitions" in said and "K11" in said and "--new-epoch" in said, said
    code, _, err = kafka_world.run("tap", "-c", kafka_world.connector_file())
    assert code == 4 and "2 partitions" in err, err


def test_topics_are_not_made_unless_that_is_wanted(kafka_world):
    """K9: nobody makes them by asking for them either."""
    bus(kafka_world, create=False)
    wire, stream = kafka_world.kafka.wire, kafka_world.stream
    process = kafka_world.connector(ready=False)
    process.wait_log(rf"there is no topic {stream}, and bus\.kafka\.create is false")
    assert stream not in wire.topics()
    for suffix in ("", "._schemas", "._control", "._peers"):
        wire.create_topic(stream + suffix, cleanup_policy="compact" if suffix == "._schemas" else "delete")
    kafka_world.wait_streaming(process)


def test_names_that_kafka_takes_for_the_same(kafka_world):
    """'.' and '_' are one in Kafka's own measurements, so it refuses the second name."""
    stream = kafka_world.stream
    kafka_world.kafka.wire.create_topic(stream.replace("_", "."))
    try:
        said = refused(kafka_world)
        assert "another name" in said and stream in said, said
    finally:
        kafka_world.kafka.wire.delete_topic(stream.replace("_", "."))


def test_the_command_line_names_brokers(kafka_world):
    """--bus and SPATE_BUS take kafka:HOST:PORT; a position is the driver's name and the offset."""
    flows(kafka_world)
    where = "kafka:" + kafka_world.kafka.brokers
    listed = kafka_world.run("bus", "ls", "--bus", where, check=0)[1].split()
    assert {kafka_world.stream, f"{kafka_world.stream}._schemas"} <= set(listed)
    assert "is for the local bus" in kafka_world.run("bus", "readers", "--bus", where, check=2)[2]
    code, out, err = kafka_world.run("tap", "--bus", where, "--stream", kafka_world.stream, "--from", "oldest", "-n", "1", "--pos", "*.t", check=0)
    position = re.match(r"(kafka:\d+)\t\{", out).group(1)
    _, again, _ = kafka_world.run("tap", "--stream", kafka_world.stream, "--from", position, "-n", "1", "--pos", env={"SPATE_BUS": where}, check=0)
    assert again == out
    assert "event=" not in err, err  # a person watches


def test_a_bus_is_named_once(world):
    for more, words in ((dict(local={"path": world.dir}, kafka={"brokers": "127.0.0.1:1"}), "both set"),
                        (dict(kafka={"properties": {"linger.ms": "1"}}), "no brokers"),
                        (dict(kafka={"brokers": "127.0.0.1:1", "properties": {"acks": "1"}}), "bus.kafka.properties.acks (line"),
                        (dict(kafka={"brokers": "127.0.0.1:1", "properties": {"retires": "1"}}), "did you mean retries?")):
        for argv in (("connector",), ("tap",)):
            file = world.connector_file(bus=more)
            code, _, err = world.run(*argv, "-c", file)
            assert code == 2 and words in err, (argv, err)
