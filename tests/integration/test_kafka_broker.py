"""Brokers that fail under the bus: down at the start and for long, killed again and again, without a majority, without room
(F50, F51, K13, K18). Nothing is confirmed meanwhile that they do not hold, and it goes on by itself."""
import os
import subprocess
import time

import pytest

from tests.support import kafka as kafka_support
from tests.support import scratch, workloads
from tests.support.cluster import Cluster
from tests.support.world import World, lsn

T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]


@pytest.fixture
def broken(source, target, own_kafka):
    """A world over a broker that the test may break."""
    for node in own_kafka.nodes:
        if not node.running():
            node.launch()
        node.proxy.heal()
        node.wait_ready()
    world = World(source, target, kafka=own_kafka)
    yield world
    for node in own_kafka.nodes:
        if not node.running():
            node.start()
    world.close()


def flowing(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", T))
    world.src("INSERT INTO t SELECT g, 'before' FROM generate_series(1, 50) g")
    world.wait_equal(PAIR)
    return connector, sink


def confirmed(world):
    return lsn(world.source.one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [world.slot()]))


def test_broker_down_at_the_very_first_start(broken):
    """Both sides wait, say for whom, and go on by themselves."""
    world = broken
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.kafka.kill()
    connector = world.connector(ready=False)
    sink = world.sink(world.sink_file("team", T))
    for process in (connector, sink):
        line = process.wait_log(rf"[^\n]*no (connection to|answer from) the brokers {world.kafka.brokers}[^\n]*").group(0)
        assert process.running() and "level=warn event=waiting-for-bus" in line, line
    world.kafka.start()
    world.wait_streaming(connector)
    world.src("INSERT INTO t VALUES (1, 'a')")
    world.wait_equal(PAIR)
    assert connector.running() and sink.running()


def test_broker_down_while_changes_pile_up(broken):
    """F51: under a running connector and at a start; it is said, the source's WAL is seen to grow, nothing is confirmed, and
    there is no hole afterwards."""
    world = broken
    world.config["source"]["postgres"].update(watch="200ms", retained_warning="4MiB")
    world.config["stop_deadline"] = "1s"
    connector, sink = flowing(world)
    world.kafka.kill()
    mark = world.emit_marker()
    world.src("INSERT INTO t SELECT g, repeat('down ', 100) FROM generate_series(100, 20000) g")
    connector.wait_log(rf"level=warn[^\n]*{world.kafka.brokers}[^\n]*", 20)
    assert world.slot() in connector.wait_log(r"[^\n]*event=slot-retains retained_bytes=(\d+)[^\n]*").group(0)
    assert confirmed(world) <= mark and connector.running() and sink.running()
    assert connector.stop() == 5  # what was published is not known to be safe, so it comes again
    before = confirmed(world)
    connector = world.connector(ready=False)
    connector.wait_log(r"event=waiting-for-bus")
    world.src("INSERT INTO t SELECT g, 'still down' FROM generate_series(20001, 21000) g")
    assert confirmed(world) == before <= mark
    world.kafka.start()
    world.wait_streaming(connector)
    world.wait_equal(PAIR)
    found = world.check_bus(sample=100)
    assert found["holes"] == 0 and confirmed(world) > before and sink.running()


def test_broker_killed_and_restarted_under_load(broken, seed):
    """F50, K18, K4; make soak does it for long."""
    world = broken
    workloads.prepare(world)
    connector = world.connector()
    sink = world.sink(world.sink_file("mirror", workloads.MIRROR))
    workloads.load(world)
    node = world.kafka.nodes[0]
    with workloads.Loads(world, seed):
        for how in (node.kill, node.stop, node.kill):
            how()
            before = confirmed(world)
            node.start()
            scratch.until(lambda: confirmed(world) > before, lambda: "changes are confirmed again:\n" + connector.tail(), 30)
    world.wait_equal(workloads.mirror_pairs("mirror"))
    found = world.check_bus(sample=200)
    assert connector.running() and sink.running()
    duplicates, holes = world.tgt("SELECT duplicates, holes FROM mirror.spate_sink")[0]
    print(f"   three restarts of the broker: {found['n']} changes, {found['repeats']} repeated, {found['holes']} holes healed; sink: {duplicates} duplicates, "
          f"{holes} holes")


def test_the_network_to_the_broker_goes_away(broken):
    """Cut, deaf and half deaf connections: nothing lost, nothing twice at the target."""
    world = broken
    connector, sink = flowing(world)
    proxy = world.kafka.proxies[0]
    for number, fault in enumerate(("cut", "blackhole", "half", "half-out")):
        if fault != "cut":
            proxy.mode = fault
        world.src("INSERT INTO t SELECT g, %s FROM generate_series(%s, %s) g", [fault, 1000 * number + 1000, 1000 * number + 1999])
        passed = dict(proxy.passed)
        if fault == "cut":
            proxy.cut()
        elif fault.startswith("half"):  # one direction still moves
            scratch.until(lambda: proxy.passed != passed, "bytes in one direction", 10)
        else:
            scratch.until(lambda: world.src("SELECT count(*) FROM t")[0][0] >= 50 + 1000 * (number + 1), "the rows are there")
        proxy.mode = "pass"
        if fault != "cut":
            proxy.cut()
        world.wait_equal(PAIR)
    assert connector.running() and sink.running()
    assert world.check_bus(sample=20)["n"] >= 4050


@pytest.fixture(scope="module")
def three():
    from tests.conftest import need_kafka
    need_kafka()
    cluster = kafka_support.KafkaCluster("kafka3", nodes=3).start()
    yield cluster
    cluster.destroy()


def test_three_brokers(source, target, three):
    """A leader that goes away costs nothing; with too few replicas in sync nothing is confirmed, and it goes on afterwards."""
    world = World(source, target, kafka=three)
    connector, sink = flowing(world)
    settings = three.wire.settings(world.stream)
    assert (settings["min.insync.replicas"], len(three.wire.partition(world.stream)["replicas"])) == ("2", 3)

    leader = three.wire.leader(world.stream)
    three.nodes[leader - 1].kill()
    world.src("INSERT INTO t SELECT g, 'other leader' FROM generate_series(100, 5000) g")
    scratch.until(lambda: three.wire.leader(world.stream) != leader, "another broker leads", 30)
    world.wait_equal(PAIR)
    three.nodes[leader - 1].start()
    scratch.until(lambda: len(three.wire.partition(world.stream)["isr"]) == 3, "all replicas are in sync", 30)

    # Two brokers down: the one that is left may not take anything alone.
    leader = three.wire.leader(world.stream)
    others = [node for node in three.nodes if node.number != leader]
    for node in others:
        node.kill()
    before = world.emit_marker()
    world.src("INSERT INTO t SELECT g, 'alone' FROM generate_series(10000, 10100) g")
    end = time.monotonic() + 2
    while time.monotonic() < end:  # nothing happens: that takes a while to see
        assert confirmed(world) <= before, "confirmed although only one broker has it"
        time.sleep(0.1)
    for node in others:
        node.start()
    world.wait_equal(PAIR)
    scratch.until(lambda: confirmed(world) > before, lambda: "confirmed again: " + connector.tail(), 30)
    assert world.check_bus(sample=100)["holes"] == 0 and connector.running() and sink.running()
    world.close()


@pytest.fixture
def small_disk():
    if os.getuid() != 0:
        pytest.skip("needs root to mount a small file system")
    path = scratch.directory("spate-small-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0777", "tmpfs", path]).returncode:
        pytest.skip("needs root that may mount a small file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_broker_without_room(source, target, small_disk):
    """Its disk is full: it takes nothing, and gives up. Nothing is confirmed; with room it goes on, without a hole."""
    from tests.conftest import need_kafka
    need_kafka()
    scratch_dir = scratch.directory("spate-kmeta-")
    kafka = kafka_support.KafkaCluster("kafka-full", data=lambda number: os.path.join(small_disk, "data"),
                                       settings={"metadata.log.dir": os.path.join(scratch_dir, "meta")}).start()
    world = World(source, target, kafka=kafka)
    connector, sink = flowing(world)
    filler = os.path.join(small_disk, "filler")
    room = os.statvfs(small_disk)
    with open(filler, "wb") as file:
        file.write(bytes(max(0, room.f_bavail * room.f_frsize - (1 << 20))))
    world.src("INSERT INTO t SELECT g, md5(random()::text) || md5(random()::text) || md5(random()::text) FROM generate_series(1000, 40000) g")
    scratch.until(lambda: not kafka.running(), lambda: "the broker gives up: " + kafka.nodes[0].tail(), 60)
    stopped_at = confirmed(world)
    behind = world.emit_marker()
    assert stopped_at < behind
    connector.wait_log(rf"level=warn[^\n]*{kafka.brokers}[^\n]*", 20)
    assert confirmed(world) == stopped_at and connector.running()
    os.unlink(filler)
    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    kafka.start()
    world.wait_equal(PAIR)
    assert world.check_bus(sample=100)["holes"] == 0 and connector.running() and sink.running()
    world.close()
    kafka.destroy()
