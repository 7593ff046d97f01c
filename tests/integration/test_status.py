"""Somewhere to look while it runs: /status, /metrics and /health of connector and sinks, and the watch on the slot."""
import json
import re
import socket
import urllib.error
import urllib.request

import psycopg2
import psycopg2.extras
import pytest

from tests.support import scratch
from tests.support.world import World

ANY = "127.0.0.1:0"  # any free port; the log says which


def address(process):
    return "http://" + process.wait_log(r"event=status-listening .*?address=(\S+)").group(1)


def get(url, method="GET"):
    """(status code, headers, text); an answer is an answer, whatever its code."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def status(process):
    return json.loads(get(address(process) + "/status")[2])


def wait_status(process, condition, what, seconds=30):
    """Waits until the status page satisfies the condition, and returns it."""
    seen = []

    def look():
        seen[:] = [status(process)]
        return condition(seen[0])

    scratch.until(look, lambda: f"{what}; it is {json.dumps(seen[:1])[:1500]}\n{process.tail()}", seconds, 0.05)
    return seen[0]


def metrics(process):
    """{series: value}; holds the page against the text format's rules on the way (version 0.0.4)."""
    code, headers, text = get(address(process) + "/metrics")
    assert code == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert text.endswith("\n")
    found, family, kinds, done = {}, None, {}, set()
    for line in text.splitlines():
        head = re.fullmatch(r"# HELP ([a-z_]+) (\S.*)", line)
        if head:
            assert head.group(1) not in done and head.group(1) not in kinds, f"{head.group(1)} twice"
            done.add(family)
            family = head.group(1)
            continue
        head = re.fullmatch(r"# TYPE ([a-z_]+) (counter|gauge)", line)
        if head:
            assert head.group(1) == family, line
            assert (head.group(2) == "counter") == family.endswith("_total"), line
            kinds[family] = head.group(2)
            continue
        sample = re.fullmatch(r'([a-z_]+)\{([a-z_]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\["\\n])*")*)\} (\d+(?:\.\d+)?)', line)
        assert sample, f"not a sample: {line}"
        assert sample.group(1) == family, f"{line} stands under {family}"
        series = f"{sample.group(1)}{{{sample.group(2)}}}"
        assert series not in found, f"{series} twice"
        found[series] = float(sample.group(3))
    assert set(kinds) == {series.split("{")[0] for series in found}, "a family without a sample"
    assert not [name for name in kinds if re.search(r"_(ms|us|milliseconds|kb|mib|mb)(_|$)", name)], "base units only"
    return found


def health(process, page="/health"):
    code, _, text = get(address(process) + page)
    return code, json.loads(text)


def listening(world, **more):
    """The connector's file with pages, and a look at the slot ten times a second."""
    world.config["source"]["postgres"].update({"watch": "100ms", **more})
    world.config["status"] = {"listen": ANY}
    return world.connector_file()


T = {"t": {"from": "public.t"}}


def test_a_connector_from_waiting_to_streaming(world):
    """Waits for the bus that another process owns, takes over, and counts what the source did."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    first = world.connector()
    world.src("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 20) g")
    world.messages("public.t", count=20)

    second = world.connector(name="second", ready=False, file=listening(world))
    waiting = wait_status(second, lambda s: s["state"] == "waiting-for-bus" and s["detail"], "it waits for the bus")
    assert str(first.pid) in waiting["detail"]
    assert waiting["n"] == 0 and waiting["bus_end"] is None  # nothing was read, so nothing is claimed
    code, page = health(second)
    assert (code, page["live"], page["ready"]) == (503, True, False) and "waiting for the bus" in page["reason"]
    assert health(second, "/health/live")[0] == 200  # a restart would not help
    # The slot is looked at meanwhile (P60).
    wait_status(second, lambda s: s["slot_active"] and s["slot_retained_bytes"] >= 0, "the slot is looked at")

    assert first.stop() == 0
    streaming = wait_status(second, lambda s: s["state"] == "streaming", "it takes over")
    assert streaming["epoch"] == 1 and streaming["durable_n"] == 20 and streaming["bus"] == "local" and streaming["topic"] == "shop"
    world.src("INSERT INTO t SELECT g, 'b' FROM generate_series(21, 30) g; UPDATE t SET v = 'c' WHERE id <= 7; DELETE FROM t WHERE id > 27;"
              "TRUNCATE t; SELECT pg_logical_emit_message(true, 'spate-test', 'x')")
    done = wait_status(second, lambda s: s["durable_n"] == 42 and s["lag_seconds"] == 0 and s["lag_changes"] == 0, "all is durable")
    assert done["changes_total"] == {"insert": 10, "update": 7, "delete": 3, "truncate": 1, "message": 1}  # of this process
    assert done["n"] == 42 == world.messages()[-2]["n"]  # the last one is the marker
    assert done["sessions_total"] == 1 and done["last_error"] is None and done["published_bytes_total"] > 22 * 100
    assert (done["slot_exists"], done["slot_wal_status"], done["version"]) == (True, "reserved", world.run("--version")[1].split()[1])
    # Its own memory, and apart from it what it shares with everybody on the bus.
    assert 0 < done["memory_private_bytes"] < 32 << 20 and done["memory_shared_bytes"] > 0 and done["memory_file_bytes"] > 0
    # Caught up: what was confirmed is all that the source has, as soon as a heartbeat carried it.
    wait_status(second, lambda s: s["lag_bytes"] == 0 and s["confirmed_lsn"] == s["source_lsn"] == s["slot_confirmed_lsn"], "all is confirmed")
    code, page = health(second)
    assert (code, page) == (200, {"live": True, "ready": True, "reason": "streaming"})
    series = metrics(second)
    assert series['spate_connector_changes_total{connector="shop",op="insert"}'] == 10
    assert series['spate_connector_state{connector="shop",state="streaming"}'] == 1
    assert series['spate_connector_state{connector="shop",state="retrying"}'] == 0
    assert series['spate_connector_slot_wal_status{connector="shop",state="reserved"}'] == 1
    assert second.stop() == 0
    with pytest.raises(OSError):
        get(address(second) + "/status")


def test_lag_and_retained_wal_grow_and_shrink(world):
    """While somebody else reads from the slot, WAL piles up: seen on the page, and told at each doubling."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SCHEMA private; CREATE TABLE private.noise (x text)")
    world.connector().stop()
    holder = psycopg2.connect(world.source.dsn(world.db), connection_factory=psycopg2.extras.LogicalReplicationConnection)
    holder.cursor().start_replication(slot_name=world.slot(), options={"proto_version": "1", "publication_names": "spate"})

    connector = world.connector(ready=False, file=listening(world, retained_warning="1MiB"))
    waiting = wait_status(connector, lambda s: s["state"] == "waiting-for-slot", "the slot is in use")
    assert "in use" in waiting["last_error"] and waiting["last_error_sqlstate"] == "55006" and waiting["last_error_verdict"] == "retry"
    code, page = health(connector)
    assert code == 503 and world.slot() in page["reason"]
    before = wait_status(connector, lambda s: s["slot_active"] and s["lag_bytes"] is not None, "the slot is looked at")
    write = "INSERT INTO private.noise SELECT repeat(md5(g::text), 30) FROM generate_series(1, %s) g"
    world.src(write, [3000])
    grown = wait_status(connector, lambda s: s["slot_retained_bytes"] > 2 << 20 and s["lag_bytes"] > before["lag_bytes"] + (2 << 20), "lag grows")
    assert grown["lag_seconds"] > before["lag_seconds"] and grown["retries_total"] >= 1
    told = connector.wait_log(r"level=warn event=slot-retains retained_bytes=(\d+) behind_bytes=\d+ text=([^\n]*)")
    assert int(told.group(1)) >= 1 << 20 and world.slot() in told.group(2) and "connector is behind" in told.group(2)
    lines = connector.text().count("event=slot-retains")
    world.src(write, [4000])
    scratch.until(lambda: connector.text().count("event=slot-retains") > lines, lambda: f"a doubling is told\n{connector.tail()}")

    holder.close()
    wait_status(connector, lambda s: s["state"] == "streaming" and s["ready"], "the slot is ours")
    caught_up = wait_status(connector, lambda s: s["lag_bytes"] == 0 and s["lag_seconds"] == 0 and s["heartbeats_total"], "lag is gone")
    assert caught_up["sessions_total"] == 1 and caught_up["durable_n"] == 0

    def released():
        world.source.sql("CHECKPOINT")  # writes what lets a slot give WAL back
        return re.search("level=info event=slot-released", connector.text())

    scratch.until(released, lambda: f"the slot gives WAL back\n{connector.tail()}", 30, 0.2)
    wait_status(connector, lambda s: s["slot_retained_bytes"] < 1 << 20, "little is retained")


def test_a_transaction_that_stays_open_holds_wal(world):
    """The connector is not behind, and the words say who is."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SCHEMA private; CREATE TABLE private.noise (x text)")
    world.config["heartbeat"] = "100ms"
    connector = world.connector(file=listening(world, retained_warning="1MiB"))
    open_one = world.source.connect(world.db, autocommit=False)
    open_one.cursor().execute("INSERT INTO t VALUES (1, 'open')")
    world.src("INSERT INTO private.noise SELECT repeat(md5(g::text), 30) FROM generate_series(1, 8000) g")
    told = connector.wait_log(r"event=slot-retains [^\n]*connector is not behind[^\n]*")
    assert "pg_stat_activity" in told.group(0)
    open_one.rollback()
    open_one.close()


def test_a_broker_that_is_not_there(world):
    """Nothing is on the bus and nothing is read; the page says for what it waits, and the slot is watched (P60)."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION spate FOR TABLE t")
    world.source.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [world.slot()], world.db)
    world.config["bus"] = {"kafka": {"brokers": "127.0.0.1:1"}}
    connector = world.connector(ready=False, file=listening(world, retained_warning="1MiB"))
    first = wait_status(connector, lambda s: s["state"] == "waiting-for-bus" and s["slot_exists"], "it waits for the broker")
    world.src("INSERT INTO t SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 3000) g")
    grown = wait_status(connector, lambda s: s["lag_bytes"] > 2 << 20 and s["detail"], "the lag is seen without a broker")
    assert "127.0.0.1:1" in grown["detail"] and grown["lag_seconds"] > first["lag_seconds"] and not grown["ready"]
    connector.wait_log("event=slot-retains")
    assert connector.stop() == 0


def test_a_port_that_is_taken_stops_nothing(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    taken.listen(1)
    port = taken.getsockname()[1]
    world.config["status"] = {"listen": str(port)}  # a bare port is loopback
    connector = world.connector()
    line = connector.wait_log(r"level=warn event=status-unavailable [^\n]*").group(0)
    assert str(port) in line and "already in use" in line
    taken.close()
    assert address(connector) == f"http://127.0.0.1:{port}"
    assert health(connector)[0] == 200


def test_listening_beyond_this_machine_is_said_aloud(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.config["status"] = {"listen": "0.0.0.0:0"}
    connector = world.connector()
    line = connector.wait_log(r"level=warn event=status-listening [^\n]*").group(0)
    assert "not loopback" in line
    # Without the option there is nothing to look at.
    assert connector.stop() == 0
    del world.config["status"]
    assert "event=status-" not in world.connector().text()


def test_addresses_that_are_none(world):
    for listen in ["nowhere", "127.0.0.1", "127.0.0.1:65536", "::1:9187", "db.example:80", ":9187", ""]:
        world.config["status"] = {"listen": listen}
        code, _, words = world.run("connector", "-c", world.connector_file())
        assert code == 2 and "status.listen" in words and "connector.yaml" in words, words
        code, _, words = world.run("sink", "-c", world.sink_file("team", T, status={"listen": listen}))
        assert code == 2 and "status.listen" in words and "team.yaml" in words, words


def test_two_places_for_one_process(world):
    files = [world.sink_file(name, T, status={"listen": f"127.0.0.1:{port}"}) for name, port in (("one", 9188), ("two", 9189))]
    code, _, words = world.run("sink", "-c", files[0], "-c", files[1])
    assert code == 2 and "one.yaml" in words and "two.yaml" in words and "9188" in words and "9189" in words


def test_sinks_that_wait_follow_and_stop(world):
    """Each has its own state; one that stopped stays visible with its reason, and without a value of its rows."""
    secret = "geheim-5f1d"
    world.env["TEAM_PASSWORD"] = secret
    world.src("CREATE TABLE t (id text PRIMARY KEY, v text)")
    a = world.sink_file("a", T, status={"listen": ANY}, snapshot="manual")
    b = world.sink_config("b", T, snapshot="manual")
    b["into"]["postgres"]["password_env"] = "TEAM_PASSWORD"
    sinks = world.sink(a, world.write("b.yaml", b))
    waiting = wait_status(sinks, lambda s: all(x["state"] == "waiting-for-connector" and x["detail"] for x in s["sinks"].values()), "they wait")
    assert not waiting["ready"] and waiting["live"] and health(sinks)[0] == 503 and health(sinks, "/health/live")[0] == 200

    world.connector()
    both = wait_status(sinks, lambda s: s["ready"], "both follow")
    assert {x["state"] for x in both["sinks"].values()} == {"streaming"}
    world.src("INSERT INTO t SELECT 'k' || g, 'a' FROM generate_series(1, 100) g; UPDATE t SET v = 'b'")
    done = wait_status(sinks, lambda s: all(x["n"] == 200 and x["lag_seconds"] == 0 for x in s["sinks"].values()), "both have it")
    assert 0 < done["memory_private_bytes"] < 64 << 20 and done["memory_shared_bytes"] > 0
    assert set(metrics(sinks)) >= {f'spate_sinks_memory_{kind}_bytes{{version="{done["version"]}"}}' for kind in ("private", "shared", "file")}
    one = done["sinks"]["a"]
    assert (one["applied_total"], one["heard_n"], one["lag_changes"], one["lag_bytes"], one["lag_messages"]) == (200, 200, 0, 0, None)
    assert one["pending_changes"] == 0 and one["batches_total"] >= 1 and one["apply_seconds_total"] > 0 and one["epoch"] == 1
    assert re.fullmatch(r"[0-9A-F]{16}\.[0-9A-F]{8}", one["pos"]) and one["bus_position"].startswith("local:")
    assert [(x, y) for x, y in world.tgt("SELECT n, pos FROM a.spate_sink")] == [(200, one["pos"])]
    assert health(sinks)[0] == 200
    # Rows that are not there are counted.
    world.tgt("DELETE FROM a.t WHERE id = 'k1'")
    world.src("DELETE FROM t WHERE id = 'k1'")
    wait_status(sinks, lambda s: s["sinks"]["a"]["missing_total"] == 1 and s["sinks"]["b"]["missing_total"] == 0, "the missing row is counted")

    world.tgt("ALTER TABLE b.t ADD CHECK (v <> 'verboten-77')")
    world.src("INSERT INTO t VALUES ('schluessel-42', 'verboten-77')")
    stopped = wait_status(sinks, lambda s: s["sinks"]["b"]["state"] == "refused" and s["sinks"]["a"]["n"] == 202, "one stops, the other goes on")
    b = stopped["sinks"]["b"]
    assert "check_violation" in b["last_error"] and '"b"."t"' in b["last_error"] and "n=202" in b["last_error"]
    assert (b["last_error_sqlstate"], b["last_error_verdict"], b["n"], b["bus_end"], b["lag_bytes"]) == ("23514", "fatal", 201, None, None)
    assert stopped["sinks"]["a"]["ready"] and not stopped["ready"]
    world.src("INSERT INTO t VALUES ('later', 'a')")
    later = wait_status(sinks, lambda s: s["sinks"]["a"]["n"] == 203 and s["sinks"]["b"]["lag_seconds"] > b["lag_seconds"], "its lag grows")
    assert later["sinks"]["a"]["lag_seconds"] == 0 or later["sinks"]["a"]["lag_seconds"] < 5
    code, page = health(sinks)
    assert code == 503 and page["live"] and not page["ready"] and page["reason"].startswith("sink b: refused: ")
    assert page["sinks"]["a"] == {"live": True, "ready": True, "reason": "streaming"}
    series = metrics(sinks)
    assert series['spate_sink_state{sink="b",state="refused"}'] == 1 and series['spate_sink_ready{sink="a"}'] == 1
    assert series['spate_sink_applied_total{sink="a"}'] >= 202
    sinks.wait_log("schluessel-42")  # the log names the row's key, which is for the operator's eyes
    for page in ("/status", "/metrics", "/health"):
        text = get(address(sinks) + page)[2]
        assert "schluessel" not in text and "verboten" not in text and secret not in text, page
    assert sinks.stop() == 4


def test_a_sink_whose_target_is_away_or_slow(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    away = world.sink_file("away", T, url="postgres://postgres@127.0.0.1:1/x?sslmode=disable", status={"listen": ANY})
    sinks = world.sink(away, world.sink_file("slow", T, snapshot="manual"))
    seen = wait_status(sinks, lambda s: s["sinks"]["away"]["retries_total"] >= 2 and s["sinks"]["slow"]["state"] == "streaming", "one retries")
    one = seen["sinks"]["away"]
    assert one["state"] in ("retrying", "opening") and "cannot connect to the target" in one["last_error"] and one["last_error_verdict"] == "retry"
    assert "away" in health(sinks)[1]["reason"]

    world.src("INSERT INTO t VALUES (1, 'a')")
    wait_status(sinks, lambda s: s["sinks"]["slow"]["n"] == 1, "it follows")
    lock = world.target.connect(world.db, autocommit=False)
    lock.cursor().execute("LOCK TABLE slow.t")
    world.src("INSERT INTO t VALUES (2, 'a')")
    world.src("INSERT INTO t VALUES (3, 'a')")
    behind = wait_status(sinks, lambda s: s["sinks"]["slow"]["lag_seconds"] > 0.3, "it is behind")["sinks"]["slow"]
    assert behind["n"] == 1 and behind["state"] == "streaming" and behind["live"]
    lock.rollback()
    lock.close()
    wait_status(sinks, lambda s: s["sinks"]["slow"]["n"] == 3 and s["sinks"]["slow"]["lag_seconds"] == 0, "it has caught up")
    # The second process of one name waits for the first.
    second = world.sink(world.sink_file("slow", T, status={"listen": ANY}), name="second")
    wait_status(second, lambda s: s["sinks"]["slow"]["state"] == "waiting-for-owner", "the second one waits")


def test_over_kafka(kafka_world):
    """The bus and its unit, and the number of messages that a sink is behind."""
    world = kafka_world
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector(file=listening(world))
    sink = world.sink(world.sink_file("team", T, status={"listen": ANY}, snapshot="manual"))
    world.src("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 500) g")
    seen = wait_status(connector, lambda s: s["durable_n"] == 500 and s["lag_changes"] == 0 and s["lag_seconds"] == 0, "all is durable")
    assert seen["bus"] == "kafka" and seen["bus_durable"] == seen["bus_end"] and seen["bus_end"].startswith("kafka:")
    assert seen["changes_total"]["insert"] == 500 and seen["bus_retention_seconds"] == 7 * 86400
    one = wait_status(sink, lambda s: s["sinks"]["team"]["n"] == 500 and s["sinks"]["team"]["lag_seconds"] == 0, "the sink has it")["sinks"]["team"]
    assert (one["bus"], one["lag_messages"], one["lag_bytes"], one["applied_total"]) == ("kafka", 0, None, 500)
    metrics(connector)
    metrics(sink)


def test_a_broker_that_goes_away_and_comes_back(source, target, own_kafka):
    """F13: what is read and not durable shows as lag, WAL that piles up is told, and afterwards nothing is missing."""
    world = World(source, target, kafka=own_kafka)
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector(file=listening(world, retained_warning="1MiB"))
    sink = world.sink(world.sink_file("team", T, status={"listen": ANY}))
    world.src("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g")
    wait_status(sink, lambda s: s["sinks"]["team"]["n"] == 100, "all is well")
    own_kafka.nodes[0].freeze()
    try:
        world.src("INSERT INTO t SELECT g, repeat(md5(g::text), 30) FROM generate_series(101, 4000) g")
        behind = wait_status(connector, lambda s: s["lag_changes"] > 0 and s["lag_seconds"] > 0.5 and s["lag_bytes"] > 1 << 20, "it is behind")
        assert behind["durable_n"] == 100 and behind["state"] == "streaming" and behind["live"]
        wait_status(connector, lambda s: s["lag_seconds"] > behind["lag_seconds"] + 1, "its lag grows")
        connector.wait_log("event=slot-retains [^\n]*The connector is behind")
    finally:
        own_kafka.nodes[0].thaw()
    done = wait_status(connector, lambda s: s["durable_n"] == 4000 and s["lag_changes"] == 0 and s["lag_seconds"] == 0, "it has caught up", 60)
    assert done["changes_total"]["insert"] >= 4000  # what was sent twice counts twice; its number does not
    wait_status(sink, lambda s: s["sinks"]["team"]["n"] == 4000 and s["sinks"]["team"]["lag_messages"] == 0, "the sink as well", 60)
    assert world.tgt("SELECT count(*), count(DISTINCT id) FROM team.t") == [(4000, 4000)]
    world.close()
