"""L7 with everything: a sink that holds stops the reading from Postgres and never the keepalives; one that does not is
overtaken, says exactly what it missed, and comes back by itself. And what the connector's file says of keeping counts."""
import re
import signal
import time

import pytest

from tests.support import scratch
from tests.support.world import World, lsn

T = {"t": {"from": "public.t"}}
PAIRS = [("SELECT id, length(v) FROM t ORDER BY id", "SELECT id, length(v) FROM team.t ORDER BY id")]
LIMIT = 4 << 20


@pytest.fixture
def small(source, target):
    world = World(source, target, heartbeat="200ms")
    world.bus["local"].update(segment_bytes="1MiB", retention_bytes="4MiB")
    world.src(f"ALTER DATABASE {world.db} SET wal_sender_timeout = '2s'")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    yield world
    world.close()


class Filler:
    """Transactions of a quarter of a megabyte."""

    def __init__(self, world):
        self.world, self.last = world, 0

    def one(self):
        self.world.src(f"INSERT INTO t SELECT {self.last} + g, repeat('x', 2500) FROM generate_series(1, 100) g")
        self.last += 100

    def until(self, condition, what, seconds=40):
        def look():
            found = condition()
            if not found:
                self.one()
            return found
        return scratch.until(look, what, seconds, 0.02)


def sender(world):
    return world.source.sql("SELECT r.pid, s.confirmed_flush_lsn::text FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid"
                            " WHERE s.slot_name = %s", [world.slot()])


def bus(world, *argv, check=0):
    return world.run("bus", *argv, "-c", world.connector_file(), check=check)[1]


def test_L7_a_held_bus_stops_the_reading_and_never_the_keepalives(small):
    world, fill = small, Filler(small)
    connector = world.connector()
    sink = world.sink(world.sink_file("team", T, hold=True))
    fill.one()
    world.wait_rows("SELECT count(*) FROM team.t", [(100,)])
    scratch.until(lambda: "holds" in bus(world, "readers"), lambda: "the sink holds: " + bus(world, "readers"))

    sink.process.send_signal(signal.SIGSTOP)
    fill.until(lambda: "event=bus-held " in connector.text(), lambda: "the archive is at its limit: " + connector.tail())
    text = connector.text()
    assert re.search(r"event=bus-hold-behind topic=shop reader=team percent=([5-9]\d|100) ", text), text
    assert "spate bus release team" in text
    # Nothing is confirmed any more once what was taken is durable; the connection lives for three times its timeout.
    confirmed = []

    def stands():
        confirmed.append(sender(world)[0][1])
        fill.one()
        return len(confirmed) > 3 and len(set(confirmed[-3:])) == 1

    scratch.until(stands, "the slot stands", 30, 0.5)
    pid, place = sender(world)[0]
    end = time.monotonic() + 6
    while time.monotonic() < end:
        fill.one()
        assert sender(world) == [(pid, place)], "neither gone, nor further, nor another one: " + connector.tail()
        time.sleep(0.3)
    assert connector.running() and "timeout" not in connector.text()
    assert lsn(place) < lsn(world.src("SELECT pg_current_wal_lsn()::text")[0][0])

    # It goes on, and so does the connector, over the connection that it has. Nothing was lost.
    sink.process.send_signal(signal.SIGCONT)
    world.wait_rows("SELECT count(*) FROM team.t", [(fill.last,)], 60)
    world.wait_equal(PAIRS)
    assert sender(world)[0][0] == pid
    assert "event=stale" not in sink.text() and "snapshot" not in sink.text().split("event=snapshot-finished")[-1]

    # A transaction that is larger than the limit: who has read all of it that there is keeps nobody waiting.
    world.src(f"INSERT INTO t SELECT {fill.last} + g, repeat('y', 100000) FROM generate_series(1, 100) g")
    fill.last += 100
    world.wait_rows("SELECT count(*) FROM team.t", [(fill.last,)], 60)

    # Once more, and now nobody waits for it: what it missed it says, and asks for everything.
    sink.process.send_signal(signal.SIGSTOP)
    before = connector.text().count("event=bus-held ")
    fill.until(lambda: connector.text().count("event=bus-held ") > before, lambda: "held again: " + connector.tail())
    behind = lsn(sender(world)[0][1])
    assert "team" in bus(world, "release", "team")
    mark = world.emit_marker()
    scratch.until(lambda: lsn(sender(world)[0][1]) > mark > behind, lambda: "the connector goes on: " + connector.tail(), 40)
    assert "released" in bus(world, "readers")
    # What the frozen sink has mapped stays whole for it: more goes than that.
    took = connector.text().count("event=bus-retention ")
    fill.until(lambda: connector.text().count("event=bus-retention ") >= took + 3, lambda: "retention takes: " + connector.tail())
    sink.process.send_signal(signal.SIGCONT)
    said = sink.wait_log(r"event=stale .*STALE: changes n=(\d+) to n=(\d+) of epoch 1 \((\d+) of them\) are not on the bus "
                         r"\(retention took local:([0-9a-f]{16}) to local:([0-9a-f]{16})\)")
    assert int(said[2]) - int(said[1]) + 1 == int(said[3])
    assert int(said[4], 16) < int(said[5], 16) and int(said[5], 16) % (1 << 20) == 0
    sink.wait_log("event=asks-anew")
    world.wait_equal(PAIRS)
    scratch.until(lambda: re.search(r"holds", bus(world, "readers")), lambda: "it holds again: " + bus(world, "readers"))
    assert (sink.stop(), connector.stop()) == (0, 0)


def test_a_sink_that_does_not_hold_is_overtaken_and_says_what_it_missed(small):
    world, fill = small, Filler(small)
    connector = world.connector()
    file = world.sink_file("team", T, snapshot="manual")
    sink = world.sink(file)
    fill.one()
    world.wait_rows("SELECT count(*) FROM team.t", [(100,)])
    assert sink.stop() == 0
    fill.until(lambda: connector.text().count("event=bus-retention ") >= 3, lambda: "retention takes: " + connector.tail())
    world.messages(count=1)  # the oldest that is left can be read
    connector.kill()
    connector = world.connector()
    fill.one()
    took = connector.text().count("event=bus-retention ")
    fill.until(lambda: connector.text().count("event=bus-retention ") > took, lambda: "it goes on: " + connector.tail())
    listed = bus(world, "ls", "--json")
    assert "held" not in connector.text().replace("bus-hold", ""), connector.tail()
    sink = world.sink(file)
    assert sink.wait_exit() == 3, listed
    said = sink.wait_log(r"STALE: changes n=(\d+) to n=(\d+) .*\(retention took local:[0-9a-f]{16} to local:[0-9a-f]{16}\)")
    assert int(said[1]) < int(said[2])
    # With `snapshot: auto` it does what there is to do.
    sink = world.sink(world.sink_file("team", T))
    sink.wait_log("event=asks-anew")
    world.wait_equal(PAIRS)
    assert (sink.stop(), connector.stop()) == (0, 0)


def test_what_is_kept_is_the_connectors_to_say(small):
    """A guest's defaults change nothing, of the stream or of the topics beside it; a restart of the connector does."""
    world = small
    world.bus["local"]["retention"] = "36h"
    connector = world.connector()
    file = world.sink_file("team", T)
    guest = {**world.sink_config("team", T), "bus": {"local": {key: value for key, value in world.bus["local"].items() if "retention" not in key}}}
    world.write("team.yaml", guest)
    sink = world.sink(file)
    world.src("INSERT INTO t VALUES (1, 'one')")
    world.wait_rows("SELECT count(*) FROM team.t", [(1,)])

    def manifest(topic):
        with open(f"{world.bus['local']['path']}/{topic}/manifest") as text:
            return dict(line.split(" ", 1) for line in text.read().splitlines())

    for topic in ("shop", "shop._control"):
        assert (manifest(topic)["retention_ms"], manifest(topic)["retention_bytes"], manifest(topic)["keeps"]) == ("129600000", str(LIMIT), "0"), topic
    assert manifest("shop._schemas")["keeps"] == "1"
    assert connector.stop() == 0
    world.bus["local"]["retention"] = "0s"
    connector = world.connector()
    scratch.until(lambda: manifest("shop")["retention_ms"] == manifest("shop._control")["retention_ms"] == "0", "the new word counts")
    assert (sink.stop(), connector.stop()) == (0, 0)


def test_hold_is_refused_where_nobody_can(source, target):
    world = World(source, target)
    try:
        file = world.sink_file("team", T, hold=True, bus={"kafka": {"brokers": "127.0.0.1:1"}})
        code, _, text = world.run("sink", "-c", file)
        assert code == 2 and "hold" in text and "retention.ms" in text, text
    finally:
        world.close()
