"""What others leave in the stream's topic (F58, F60, K15, K29): lines that are none of ours, damage, messages of a newer
version, and old messages once more, as a zombie's late batches bring them. Over both buses."""
import os
import re
import subprocess

import pytest

from tests.support import scratch
from tests.support.cluster import free_port

T = {"t": {"from": "public.t"}}
PAIR = [("SELECT * FROM t", "SELECT * FROM team.t")]
REFUSED = 4


@pytest.fixture(scope="module")
def bus_put():
    path = os.path.join(scratch.ROOT, "build", "release", "tests", "support", "bus_put")
    subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, os.path.relpath(path, scratch.ROOT)], check=True)
    return path


@pytest.fixture
def put(each_world, bus_put):
    """Appends lines to the stream. Only one process writes a local topic, so there the connector is stopped for it."""
    world = each_world

    def put(*lines, again=True):
        data = "".join(line + "\n" for line in lines).encode()
        if world.kafka:
            world.kafka.produce(world.stream, data)
            return
        running = world.connector_process.running()
        if running:
            assert world.connector_process.stop() == 0
        local = world.bus["local"]
        scratch.run_with_input([bus_put, local["path"], local["hot"], world.stream], data)
        if running and again:
            world.connector()

    return put


@pytest.fixture
def running(each_world):
    """Fifty rows in the target, connector and sink at work."""
    world = each_world
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.file = world.sink_file("team", T)
    world.team = world.sink(world.file)
    world.src("INSERT INTO t SELECT g, 'before' FROM generate_series(1, 50) g")
    world.wait_equal(PAIR)
    return world


def stops_at_a_record(world, words):
    """The sink's last words, and the place that they name."""
    assert world.team.wait_exit() == REFUSED, world.team.tail()
    line = world.team.wait_log(rf"event=sink-stopped [^\n]*{words}[^\n]*").group(0)
    return line, re.search(r"topic \S+ at ((?:kafka|local):[0-9a-f]+)", line).group(1)


def test_a_foreign_record_is_passed_by_on_request_only(running, put):
    world = running
    put("hello, is anybody there?")
    world.src("INSERT INTO t SELECT g, 'after' FROM generate_series(51, 60) g")
    line, place = stops_at_a_record(world, "no message of ours")
    assert f"spate sink -c {world.file} --skip team={place}" in line and "after n=50 of epoch 1" in line
    # It stops again, whatever it is told about other places.
    elsewhere = "kafka:0" if world.kafka else f"local:{64:016x}"
    world.team = world.sink(world.file, arguments=("--skip", f"team={elsewhere}"))
    assert stops_at_a_record(world, "no message of ours")[1] == place
    assert world.tgt("SELECT count(*) FROM team.t") == [(50,)]

    world.team = world.sink(world.file, arguments=("--skip", f"team={place}"))
    world.wait_equal(PAIR)
    world.team.wait_log(rf"event=record-skipped sink=team topic={re.escape(world.stream)} pos={place} after_n=50")
    assert world.tgt("SELECT skipped FROM team.spate_sink") == [([elsewhere, place],)]
    # The next start knows it, even one that begins anew.
    assert world.team.stop() == 0
    world.tgt("TRUNCATE team.t")
    world.team = world.sink(world.file, arguments=("--restart", "team"))
    world.wait_equal(PAIR)
    assert world.team.stop() == 0


def test_words_about_orders_that_make_no_sense(running):
    world = running
    assert world.team.stop() == 0
    for order, words in (("other=kafka:1", "none of the files is the sink"), ("team", "expected NAME=POSITION"),
                         ("team=nowhere:1", "is no position of the")):
        code, _, errors = world.run("sink", "-c", world.file, "--skip", order)
        assert code == 2 and words in errors, (order, code, errors)
    # The row of an older version has no room for such an order: it is made.
    world.tgt("ALTER TABLE team.spate_sink DROP COLUMN skipped")
    world.team = world.sink(world.file)
    world.src("INSERT INTO t VALUES (51, 'after')")
    world.wait_equal(PAIR)
    assert world.tgt("SELECT skipped FROM team.spate_sink") == [([],)]


def test_a_place_on_another_bus_is_left_by_restart_only(running):
    """A team moves from the local bus to Kafka or back: what is stored means nothing there."""
    world = running
    assert world.team.stop() == 0
    world.tgt("UPDATE team.spate_sink SET bus_position = CASE WHEN bus_position LIKE 'kafka:%' THEN 'local:0000000000001000' ELSE 'kafka:66' END")
    world.team = world.sink(world.file)
    assert world.team.wait_exit() == 3, world.team.tail()
    line = world.team.wait_log("event=sink-stopped [^\n]*another kind of bus[^\n]*").group(0)
    assert f"`spate sink -c {world.file} --restart team`" in line
    world.tgt("TRUNCATE team.t")
    world.team = world.sink(world.file, arguments=("--restart", "team"))
    world.wait_equal(PAIR)


def test_a_sink_tells_a_silent_bus_from_a_missing_connector(kafka_world):
    """Somebody has to look after the one, and to wait for the other."""
    world = kafka_world
    nobody = world.sink_config("team", T)
    nobody["bus"] = {"kafka": {"brokers": f"127.0.0.1:{free_port()}"}}
    silent = world.sink(world.write("nobody.yaml", nobody), name="silent")
    early = world.sink(world.sink_file("early", T), name="early")
    silent.wait_log("level=warn event=waiting-for-bus sink=team")
    early.wait_log("level=info event=waiting-for-connector sink=early")
    assert "waiting-for-connector" not in silent.text() and "waiting-for-bus" not in early.text()
    assert silent.stop() == 0 and early.stop() == 0


def test_a_damaged_change_cannot_get_lost(running, put):
    """Skipped on request, its number is missing: no table is silently wrong."""
    world = running
    world.team.stop()
    line = ('{"spate":1,"op":"insert","n":51,"epoch":1,"schema":"public","table":"t","pos":"00000000016B3748.00000001","end":')
    put(line)
    world.team = world.sink(world.file)
    _, place = stops_at_a_record(world, "no message of ours")
    # The real number 51 follows: nothing was lost, and the sink goes on.
    world.src("INSERT INTO t VALUES (51, 'after')")
    world.team = world.sink(world.file, arguments=("--skip", f"team={place}"))
    world.wait_equal(PAIR)


def test_a_sink_that_is_too_old_stops(running, put):
    world = running
    put('{"spate":2,"op":"insert","n":51,"epoch":1,"novelty":true}', again=False)
    line, place = stops_at_a_record(world, "newer version")
    assert "upgrade this sink" in line and "--skip" not in line
    world.team = world.sink(world.file, arguments=("--skip", f"team={place}"))
    stops_at_a_record(world, "newer version")
    # Nor does a connector that is too old number anything behind it.
    world.connector_process.stop()
    assert world.connector(ready=False).wait_exit() != 0
    world.connector_process.wait_log("format 2[^\n]*install a spate that is at least as new")
    assert world.tgt("SELECT count(*), max(n) FROM team.t, team.spate_sink") == [(50, 50)]


def stream(world):
    """The stream's lines up to a marker that is written now, which is one change more."""
    count = len(world.messages())
    if world.kafka:
        return [value.decode() for _, _, value in world.kafka.consume(world.stream)]
    code, out, errors = world.run("tap", "-c", world.connector_file(), "--from", "oldest", "--count", str(count))
    assert code == 0, errors
    return out.splitlines()


def test_a_zombies_late_batches_are_dropped_and_counted(running, put):
    """K15, F58: old changes again behind newer ones, half a transaction, a heartbeat, the epoch's opening. A connector that
    starts behind them goes on with the right number, also when Postgres sends old transactions again (P15)."""
    world = running
    world.src("CHECKPOINT")  # a crash takes the slot back to here, or further
    world.src("INSERT INTO t SELECT g, 'one' FROM generate_series(51, 55) g")
    world.src("UPDATE t SET v = 'two' WHERE id > 40")
    world.wait_equal(PAIR)
    lines = stream(world)
    changes = [line for line in lines if '"n":' in line[:40]]
    epochs = [line for line in lines if '"op":"epoch"' in line]
    assert len(changes) == 71 and len(epochs) == 1
    late = changes[3:20] + epochs + changes[50:53] + [line for line in lines if '"op":"heartbeat"' in line][-1:]
    world.connector_process.kill()  # as a machine that is switched off
    put(*late)
    world.connector()
    world.src("INSERT INTO t SELECT g, 'three' FROM generate_series(56, 60) g")
    world.wait_equal(PAIR)
    # The source crashes: its slot goes back behind what the zombie wrote last.
    put(*changes[10:14])
    world.source.kill()
    world.source.start_after_kill()
    world.wait_streaming(world.connector_process)
    world.src("DELETE FROM t WHERE id < 10")
    world.wait_equal(PAIR)
    assert world.team.stop() == 0
    duplicates, holes, n = world.tgt("SELECT duplicates, holes, n FROM team.spate_sink")[0]
    assert n == 85 and holes == 0
    assert duplicates >= 20 + 1 + 4
    numbers = [int(re.search(r'"n":(\d+)', line[:60]).group(1)) for line in stream(world) if '"n":' in line[:60]]
    assert sorted(set(numbers)) == list(range(1, 87))
