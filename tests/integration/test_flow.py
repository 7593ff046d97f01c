"""The walk of one row change, on real servers: every operation, every tuple state, two teams, the tools."""
import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.support import scratch, workloads
from tests.support.world import World, binary, lsn

MIRROR_T = {"t": {"from": "public.t"}}


def same(*tables, schema="team"):
    return [(f"SELECT * FROM public.{t}", f"SELECT * FROM {schema}.{t}") for t in tables]


def test_every_operation_reaches_the_target(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text, n numeric)")
    world.connector()
    world.sink(world.sink_file("team", MIRROR_T))
    world.src("INSERT INTO t SELECT i, 'row ' || i, i / 3.0 FROM generate_series(1, 100) i")
    world.src("UPDATE t SET v = NULL WHERE id % 10 = 0")
    world.src("DELETE FROM t WHERE id > 90")
    world.src("UPDATE t SET id = id + 1000 WHERE id <= 5")
    world.wait_equal(same("t"))
    assert world.tgt("SELECT count(*), count(v), max(id) FROM team.t") == [(90, 81, 1005)]
    world.src("TRUNCATE t")
    world.src("INSERT INTO t VALUES (7, 'after', 1)")
    world.wait_equal(same("t"))
    assert world.tgt("SELECT id FROM team.t") == [(7,)]
    found = world.check_bus()
    assert found["ops"]["insert"] == 101 and found["ops"]["truncate"] == 1 and found["validated"] == found["messages"]


def test_every_tuple_state_on_the_bus(world):
    """P40-P47: what the message says for each replica identity, and that unchanged large values survive."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, small int, large text);"
              "CREATE TABLE full_t (id int PRIMARY KEY, small int, large text); ALTER TABLE full_t REPLICA IDENTITY FULL;"
              "CREATE TABLE idx_t (id int PRIMARY KEY, code text NOT NULL, v int); CREATE UNIQUE INDEX idx_u ON idx_t (code);"
              "ALTER TABLE idx_t REPLICA IDENTITY USING INDEX idx_u")
    world.connector()
    world.sink(world.sink_file("team", {name: {"from": "public." + name} for name in ("t", "full_t")}, snapshot="manual"))
    value = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) g)"
    for table in ("t", "full_t"):
        world.src(f"INSERT INTO {table} VALUES (1, 1, {value})")
        world.src(f"UPDATE {table} SET small = 2")              # P40, P44
        world.src(f"UPDATE {table} SET id = 2")                 # P41, P42
        world.src(f"UPDATE {table} SET small = NULL, large = NULL")
        world.src(f"DELETE FROM {table}")
        world.src(f"INSERT INTO {table} VALUES (3, 3, {value}); UPDATE {table} SET id = 4, small = 5")
    world.src("INSERT INTO idx_t VALUES (1, 'a', 1); UPDATE idx_t SET v = 2; UPDATE idx_t SET code = 'b'; DELETE FROM idx_t")
    world.wait_equal(same("t", "full_t"))
    seen = {}
    for message in world.messages():
        seen.setdefault(message.get("table"), []).append(message)
    t = seen["t"]
    assert [m["op"] for m in t] == ["insert", "update", "update", "update", "delete", "insert", "update"]
    assert t[1]["unchanged"] == ["large"] and t[1]["after"] == {"id": 1, "small": 2} and t[1]["before"] is None
    assert t[2]["key"] == {"id": 2} and t[2]["before"] == {"id": 1} and t[2]["unchanged"] == ["large"]
    assert t[3]["after"] == {"id": 2, "small": None, "large": None} and t[3]["unchanged"] == []
    assert t[4]["key"] == {"id": 2} and t[4]["before"] == {"id": 2} and t[4]["after"] is None
    full = seen["full_t"]
    assert all(m["unchanged"] == [] for m in full)
    assert full[1]["before"]["small"] == 1 and len(full[1]["after"]["large"]) == 12800
    assert full[2]["key"] == {"id": 2} and full[2]["before"]["id"] == 1 and full[2]["after"]["large"] == full[2]["before"]["large"]
    assert full[4]["key"] == {"id": 2} and full[4]["before"] == {"id": 2, "small": None, "large": None}
    index = seen["idx_t"]
    assert [m["key"] for m in index] == [{"code": "a"}, {"code": "a"}, {"code": "b"}, {"code": "b"}]
    assert index[2]["before"] == {"code": "a"}
    world.check_bus()


VALUES = {
    "int2": ["-32768", "32767"], "int4": ["-2147483648", "0"], "int8": ["9007199254740991", "9007199254740992", "-9223372036854775808"],
    "float4": ["1.1", "NaN", "-Infinity", "1e-45", "-0"], "float8": ["0.1", "1e-320", "1.7976931348623157e308", "Infinity", "-0", "1e20"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1e1000", "0.00000000000000000001", "12.50"], "bool": ["t", "f"],
    "text": ["", "quote \" back \\ slash", "line\nfeed\ttab\r", "\x01\x1f\x7f", "äöü € 😀 \u2028", "{\"$bytes\":\"AA==\"}", "\\x00"],
    "bytea": ["\\x", "\\x00ff5c22", "abc"], "date": ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"],
    "timestamptz": ["infinity", "294276-12-31 23:59:59.999999+00", "4714-11-24 00:00:00+00 BC", "2026-11-21 09:14:03.1+05:30"],
    "timestamp": ["-infinity", "1970-01-01 00:00:00"], "time": ["24:00:00", "00:00:00.000001"], "timetz": ["24:00:00+15:59"],
    "interval": ["1 year -2 mons +3 days -04:05:06.7", "0", "-178000000 years"], "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a":1,"a":2}', '" \\u0000"', "3", "null"], "jsonb": ['{"k": [1, 2.50, {"x": null}]}', "[]", "3", "null", '"text"', '{"$bytes": "AA=="}', '{"a":"\\"}"}'],
    "int4[]": ["{1,NULL,3}", "{}", "{{1,2},{3,4}}", "[0:1]={7,8}"], "text[]": ['{a,"b,c","d\\"e",NULL,""}'], "int4range": ["empty", "[1,5)", "(,)"],
    "tstzmultirange": ["{[2020-01-01,2021-01-01)}", "{}"], "inet": ["10.0.0.1/8", "::1"], "macaddr": ["08:00:2b:01:02:03"], "point": ["(1.5,NaN)"],
    "bit(5)": ["10101"], "varbit": [""], "char(4)": ["ab"], "varchar(3)": ["abc"], "\"char\"": ["x"], "name": ["n"], "oid": ["4294967295"],
    "money": ["-12.34"], "xml": ["<a>1</a>"], "tsvector": ["'a':1 'b'"], "pg_lsn": ["16/B374D848"], "regclass": ["pg_class"], "hstore_like": ["(1,\"a b\",)"],
    "mood": ["sad", "very happy"], "posint": ["5"],
}


def test_every_value_survives_bit_for_bit(world):
    world.src("CREATE TYPE mood AS ENUM ('sad', 'very happy'); CREATE DOMAIN posint AS int CHECK (value > 0);"
              "CREATE TYPE hstore_like AS (a int, b text, c text)")
    for side in (world.tgt,):
        side("CREATE TYPE mood AS ENUM ('sad', 'very happy'); CREATE TYPE hstore_like AS (a int, b text, c text)")
    tables = {}
    for number, (kind, values) in enumerate(VALUES.items()):
        world.src(f"CREATE TABLE v{number} (id int PRIMARY KEY, v {kind})")
        tables[f"v{number}"] = {"from": f"public.v{number}"}
    world.connector()
    sink = world.sink(world.sink_file("team", tables))
    for number, (kind, values) in enumerate(VALUES.items()):
        for row, value in enumerate([*values, None]):
            world.src(f"INSERT INTO v{number} VALUES (%s, %s)", [row, value])
    # As text, since a type that the target lacks stands there as text, and NaN in a point equals nothing.
    world.wait_equal([(f"SELECT id, v::text FROM v{n}", f"SELECT id, v::text FROM team.v{n}") for n in range(len(VALUES))])
    world.check_bus()
    assert sink.running()


def test_odd_names(world):
    """P85: names with quotes, dots, spaces, newlines and letters of any kind."""
    world.src('CREATE SCHEMA "S.x"; CREATE TABLE "S.x"."we""ird t\nable é" ("Id ""x""" int PRIMARY KEY, "select" text, "a.b" int)')
    world.connector(file=world.connector_file(tables=['"S.x".*']))
    world.sink(world.sink_file("team", {"t": {"from": '"S.x"."we""ird t\nable é"', "columns": {"id": '"Id ""x"""', "sel": '"select"', "dot": '"a.b"'}, "key": ["id"]}}))
    world.src('INSERT INTO "S.x"."we""ird t\nable é" VALUES (1, \'one\', 2), (2, \'two\', NULL)')
    world.wait_rows("SELECT * FROM team.t ORDER BY id", [(1, "one", 2), (2, "two", None)])
    world.check_bus()


def test_two_teams_in_their_own_words(world):
    world.src("CREATE TABLE orders (id int PRIMARY KEY, status text, cents bigint, mail text); ALTER TABLE orders REPLICA IDENTITY FULL")
    world.connector()
    billing = world.sink_file("billing", {"invoices": {"from": "public.orders", "where": "status = 'paid'",
                                                       "columns": {"invoice": "id", "total": "(cents / 100.0)::numeric(12,2)", "mail": "lower(mail)"}, "key": ["invoice"]}})
    search = world.sink_file("search", {"purchases": {"from": "public.orders"}})
    world.sink(billing, search)
    world.src("INSERT INTO orders SELECT i, CASE i % 3 WHEN 0 THEN 'paid' WHEN 1 THEN 'open' END, i * 37, 'A' || i || '@X.org' FROM generate_series(1, 300) i")
    world.src("UPDATE orders SET status = 'paid' WHERE id % 3 = 1 AND id < 100")     # enter
    world.src("UPDATE orders SET status = NULL WHERE id % 3 = 0 AND id > 200")        # leave: NULL is out
    world.src("UPDATE orders SET cents = cents + 1 WHERE status = 'paid'")            # stay
    world.src("DELETE FROM orders WHERE id % 50 = 0")
    pairs = [("SELECT id, (cents / 100.0)::numeric(12,2), lower(mail) FROM orders WHERE status = 'paid'", "SELECT invoice, total, mail FROM billing.invoices"),
             ("SELECT * FROM orders", "SELECT * FROM search.purchases")]
    world.wait_equal(pairs)
    assert world.tgt("SELECT count(*) FROM billing.invoices")[0][0] > 50


def test_a_sink_that_starts_later_has_all_the_bus_holds_and_then_follows(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.sink(world.sink_file("early", MIRROR_T))
    world.src("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 500) i")
    world.wait_equal(same("t", schema="early"))
    world.sink(world.sink_file("late", MIRROR_T), name="late")
    world.src("UPDATE t SET v = 'y' WHERE id < 10; DELETE FROM t WHERE id = 11")
    world.wait_equal(same("t", schema="late") + same("t", schema="early"))


def test_a_restart_publishes_nothing_twice(world):
    """F3: an orderly stop leaves nothing to repeat; the checker counts numbers."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    world.sink(world.sink_file("team", MIRROR_T))
    for turn in range(4):
        world.src(f"INSERT INTO t SELECT i, 'turn' FROM generate_series({turn * 50 + 1}, {turn * 50 + 50}) i")
        begin = time.monotonic()
        assert connector.stop() == 0
        assert time.monotonic() - begin < 10
        connector = world.connector()
    world.wait_equal(same("t"))
    found = world.check_bus()
    assert found["ops"]["insert"] == 200


def test_stopping_under_load_confirms_what_is_durable(world, seed):
    workloads.prepare(world)
    connector = world.connector()
    workloads.load(world)
    with workloads.Loads(world, seed):
        world.src("SELECT 1")
        scratch.until(lambda: world.src("SELECT count(*) FROM w1_counters")[0][0] > 200, "the load runs")
        begin = time.monotonic()
        assert connector.stop() == 0
        assert time.monotonic() - begin < 10
    confirmed = world.source.one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [world.slot()])
    connector = world.connector()
    ends = [int(m["end"], 16) for m in world.messages(until_end=lsn(confirmed) - 1) if m.get("end")]
    assert max(ends) >= lsn(confirmed)  # nothing was confirmed that the bus does not carry
    world.check_bus(sample=50)


def test_a_second_signal_ends_at_once(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    connector = world.connector()
    # Back pressure is not needed: two signals in a row are enough to see that neither is lost.
    connector.process.send_signal(signal.SIGSTOP)
    connector.process.send_signal(signal.SIGTERM)
    connector.process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    connector.process.send_signal(signal.SIGCONT)
    code = connector.wait_exit(5)
    assert time.monotonic() - begin < 3
    assert code in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)
    world.connector()
    world.src("INSERT INTO t VALUES (1)")
    world.check_bus()


def test_sink_stops_in_order_and_goes_on(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    file = world.sink_file("team", MIRROR_T)
    sink = world.sink(file)
    world.src("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 50) i")
    world.wait_equal(same("t"))
    assert sink.stop() == 0
    world.src("UPDATE t SET v = 'b' WHERE id > 25")
    world.sink(file)
    world.wait_equal(same("t"))


def test_a_second_connector_waits_and_names_the_owner(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    first = world.connector()
    second = world.connector(ready=False, name="second")
    found = second.wait_log(rf"\b{first.pid}\b")
    assert found and second.running() and first.running()
    assert first.stop() == 0
    world.wait_streaming(second)
    world.src("INSERT INTO t VALUES (1)")
    assert world.check_bus()["ops"]["insert"] == 1
    assert second.stop() == 0


def test_a_second_sink_waits_and_names_the_owner(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    file = world.sink_file("team", MIRROR_T)
    first = world.sink(file)
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    second = world.sink(file, name="second")
    second.wait_log(rf"\b{first.pid}\b")
    assert second.running()
    first.kill()
    world.src("INSERT INTO t VALUES (2)")
    world.wait_rows("SELECT * FROM team.t ORDER BY 1", [(1,), (2,)])
    assert second.running()


def test_tap_filters(world):
    world.src("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE SCHEMA o; CREATE TABLE o.a (id int PRIMARY KEY)")
    world.connector(file=world.connector_file(tables=["public.*", "o.*"]))
    world.src("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2); INSERT INTO o.a VALUES (3)")
    world.src("UPDATE a SET id = 4; DELETE FROM b; TRUNCATE a, b")
    config = world.connector_file(tables=["public.*", "o.*"])

    def tap(*arguments, count):
        code, out, err = world.run("tap", "-c", config, "--from", "oldest", "-n", str(count), *arguments, check=0)
        return [(m["op"], m.get("schema"), m.get("table")) for m in map(json.loads, out.splitlines())]

    world.messages()
    assert tap("public.a", count=3) == [("insert", "public", "a"), ("update", "public", "a"), ("truncate", None, None)]
    assert tap("*.a", "--op", "insert", count=2) == [("insert", "public", "a"), ("insert", "o", "a")]
    assert tap("--op", "delete,truncate", count=2) == [("delete", "public", "b"), ("truncate", None, None)]
    assert tap(count=2)[0][0] == "epoch"
    code, out, err = world.run("tap", "-c", config, "--op", "isnert")
    assert code == 2 and "insert" in err
    env = {"SPATE_BUS": world.bus["local"]["path"]}
    positions = world.run("tap", "-c", config, "--from", "oldest", "--pos", "-n", "3", check=0)[1].splitlines()
    position, line = positions[2].split("\t")
    assert world.run("tap", "-c", config, "--from", position, "-n", "1", check=0)[1].rstrip("\n") == line
    assert world.run("tap", "--op", "insert")[0] == 2  # no bus named
    del env


def test_tap_follows_and_a_closed_pipe_ends_it_quietly(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    log = open(os.path.join(world.dir, "tap.err"), "wb")
    tap = subprocess.Popen([binary(), "tap", "-c", world.connector_file(), "--from", "oldest", "public.t"], stdout=subprocess.PIPE, stderr=log,
                           preexec_fn=scratch.child_setup())
    world.src("INSERT INTO t VALUES (1)")
    assert json.loads(tap.stdout.readline())["after"] == {"id": 1}
    tap.stdout.close()
    world.src("INSERT INTO t VALUES (2)")
    assert tap.wait(10) == 0
    log.close()
    assert open(os.path.join(world.dir, "tap.err")).read() == ""


def test_messages_of_rolled_back_and_empty_transactions_do_not_exist(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.src("INSERT INTO t VALUES (1, 'kept')")
    with world.source.connect(world.db, autocommit=False) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (2, 'gone')")
        connection.rollback()
        cursor.execute("INSERT INTO t VALUES (3, 'outer'); SAVEPOINT s; INSERT INTO t VALUES (4, 'inner'); ROLLBACK TO s; INSERT INTO t VALUES (5, 'after')")
        connection.commit()
    world.src("CREATE TABLE elsewhere (id int)")
    assert [m["key"]["id"] for m in world.messages("public.t", count=3)] == [1, 3, 5]


def test_an_idle_source_is_confirmed_by_heartbeats(world):
    """P4: WAL that holds nothing for us must not pile up behind the slot."""
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA private; CREATE TABLE private.noise (x int)")
    world.connector()
    world.src("INSERT INTO private.noise SELECT generate_series(1, 20000)")
    here = world.src("SELECT pg_current_wal_lsn()::text")[0][0]
    scratch.until(lambda: world.source.one("SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s", [here, world.slot()]),
                  f"the slot is confirmed up to {here}", 20)
    found = world.check_bus()
    assert found["ops"].get("heartbeat", 0) >= 1 and "insert" not in found["ops"]


def test_schema_changes_while_running(world):
    """P31, P35: a new column becomes a new schema version in the stream's order, inside a transaction too."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.sink(world.sink_file("team", {"t": {"from": "public.t", "columns": {"id": "id", "v": "v"}, "key": ["id"]}}))
    world.src("INSERT INTO t VALUES (1, 'a')")
    world.src("BEGIN; INSERT INTO t VALUES (2, 'b'); ALTER TABLE t ADD COLUMN extra int DEFAULT 5; INSERT INTO t VALUES (3, 'c', 6); COMMIT")
    world.src("ALTER TABLE t DROP COLUMN extra; INSERT INTO t VALUES (4, 'd')")
    world.wait_equal([("SELECT id, v FROM t", "SELECT id, v FROM team.t")])
    messages = world.messages("public.t", count=4)
    assert [sorted(m["after"]) for m in messages] == [["id", "v"], ["id", "v"], ["extra", "id", "v"], ["id", "v"]]
    versions = [m["v"] for m in messages]
    assert versions[0] == versions[1] == versions[3] != versions[2]  # seen before: the same v
    world.check_bus()


def test_no_secret_and_no_row_value_in_a_log(world, target):
    """I6: passwords by URL, by environment and by file; row values never above debug."""
    for cluster in (world.source, target):
        cluster.sql("DROP ROLE IF EXISTS secretive")
        cluster.sql("CREATE ROLE secretive LOGIN SUPERUSER PASSWORD 'Hush-Hush-42'")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text, mail text UNIQUE)")
    password = world.write("password", "Hush-Hush-42\n")
    world.config["source"]["postgres"].update(url=world.source.tcp_url(world.db, "secretive", "Hush-Hush-42"))
    connector = world.connector()
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.t (id int PRIMARY KEY, v text CHECK (v <> 'Private-Value'), mail text)")
    config = world.sink_config("team", MIRROR_T, url=target.tcp_url(world.db, "secretive"))
    config["into"]["postgres"]["password_file"] = password
    sink = world.sink(world.write("team.yaml", config))
    other = world.sink_config("other", MIRROR_T, url=target.tcp_url(world.db, "secretive"))
    other["into"]["postgres"]["password_env"] = "TEAM_SECRET"
    second = world.sink(world.write("other.yaml", other), name="second", env={"TEAM_SECRET": "Hush-Hush-42"})
    world.src("INSERT INTO t VALUES (1, 'Public', 'm@x')")
    world.wait_rows("SELECT id FROM team.t", [(1,)])
    world.wait_rows("SELECT id FROM other.t", [(1,)])
    world.src("INSERT INTO t VALUES (2, 'Private-Value', 'Mail-Value')")
    assert sink.wait_exit() == 4
    wrong = world.config["source"]["postgres"]["url"].replace("Hush-Hush-42", "Wrong-Secret-43")
    connector.stop()
    bad = world.connector(file=world.write("bad.yaml", {**world.config, "source": {"postgres": {**world.config["source"]["postgres"], "url": wrong}}}),
                          ready=False, name="bad")
    bad.wait_log("password")
    everything = "".join(open(os.path.join(world.dir, name), errors="replace").read() for name in os.listdir(world.dir) if name.endswith(".log"))
    assert len(everything) > 500
    for word in ("Hush-Hush", "Wrong-Secret", "Private-Value", "Mail-Value"):
        assert word not in everything
    for process in (second, bad):
        process.kill()
    scratch.until(lambda: not world.source.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'secretive'"), "the role's sessions are gone")
