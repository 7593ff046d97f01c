"""spate bus beside a connector and a sink that run: who is there, how far, and how much lies between."""
import json
import os
import signal
import urllib.request

from tests.support import scratch

T = {"t": {"from": "public.t"}}


def bus(world, *words):
    return json.loads(world.run("bus", *words, "--json", "-c", world.connector_file(), check=0)[1])


def topics(world):
    return {topic["topic"]: topic for topic in bus(world, "ls")["topics"]}


def reader(world, name):
    found = [r for r in bus(world, "readers", "shop")["readers"] if r["reader"] == name]
    return found[0] if found else {}


def until(condition, what):
    return scratch.until(condition, lambda: what, 20, 0.1)


def test_what_stands_on_the_bus_and_who_is_there(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.tgt("CREATE SCHEMA billing; CREATE TABLE billing.t (id int PRIMARY KEY, v text)")
    connector = world.connector(file=world.connector_file(status={"listen": "127.0.0.1:0"}))
    sink = world.sink(world.sink_file("billing", T))
    world.src("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 1000) g")
    world.wait_rows("SELECT count(*) FROM billing.t", [(1000,)], sink=sink)

    seen = topics(world)
    assert set(seen) == {"shop", "shop._schemas", "shop._control", "shop._peers"}
    assert [w["who"].split(" on ")[0] for w in seen["shop"]["writers"]] == [f"process {connector.pid}"]
    assert f"process {connector.pid}" in {w["who"].split(" on ")[0] for w in seen["shop._control"]["writers"]}
    assert seen["shop._schemas"]["kept"] and seen["shop._peers"]["volatile"] and seen["shop._control"]["shared"]
    assert all(topic["in_memory"] and topic["stopped"] is None for topic in seen.values())

    # A sink that stands still falls behind, in bytes, records and seconds; and catches up.
    assert until(lambda: reader(world, "billing").get("alive"), "the sink is known by its name")
    address = connector.wait_log(r"event=status-listening .*?address=(\S+)").group(1)
    page = json.loads(urllib.request.urlopen(f"http://{address}/status", timeout=10).read())
    assert (page["bus_readers"], page["bus_holders"], page["bus_held_bytes"], page["bus_held_by"]) == (1, 0, None, None)
    os.kill(sink.pid, signal.SIGSTOP)
    world.src("INSERT INTO t SELECT g, 'b' FROM generate_series(1001, 3000) g")
    until(lambda: reader(world, "billing")["lag_records"] >= 2000, "it falls behind")
    behind = reader(world, "billing")
    assert behind["alive"] and behind["pid"] == sink.pid and behind["hold"] == "no" and not behind["gap"]
    assert behind["lag_bytes"] > 2000 * 100
    until(lambda: reader(world, "billing")["lag_seconds"] > behind["lag_seconds"], "the oldest of them ages")
    os.kill(sink.pid, signal.SIGCONT)
    until(lambda: reader(world, "billing")["lag_records"] < 1000, "it catches up")
    assert sink.stop() == 0
    until(lambda: not reader(world, "billing")["alive"], "it is gone")

    text = world.run("bus", "inspect", "shop", "--verify", "-c", world.connector_file(), check=0)[1]
    assert f"process {connector.pid}" in text and "good" in text and "!" not in text
    # The position that a tap shows is one that inspect knows, and no word of the row is in what it says.
    at = world.run("tap", "-c", world.connector_file(), "--from", "oldest", "--pos", "-n", "1")[1].split("\t")[0]
    header = bus(world, "inspect", "shop", "--at", at)
    assert header["position"] == at and header["value_bytes"] > 50 and set(header) & {"value", "key"} == set()
    connector.kill()
    assert topics(world)["shop"]["writers"] == []
