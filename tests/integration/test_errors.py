"""HAZARDS 8: every row of the table in docs/operating.md is provoked on a real server or broker, here or where the table of
this file says; what is done about it is what the table says."""
import os
import re

import psycopg2
import psycopg2.extras
import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy
from tests.support.world import World

# Row of the table -> the tests that provoke it: file, and the start of the test's name.
ROWS = {
    "connection": ["test_faults::test_wrong_host_and_port", "test_faults::test_source_restarted", "test_faults::test_walsender_terminated",
                   "test_faults::test_network_cut", "test_faults::test_target_down"],
    "slot-in-use": ["test_errors::test_a_slot_in_use"],
    "limits": ["test_errors::test_limits_of_the_source"],
    "login-or-right": ["test_faults::test_wrong_password", "test_faults::test_a_mended_password", "test_errors::test_no_line_in_pg_hba",
                       "test_rights::test_"],
    "slot-or-wal-gone": ["test_fences::test_slot_missing", "test_fences::test_slot_dropped", "test_fences::test_slot_invalidated",
                         "test_errors::test_limits_of_the_source_and_wal_that_was_removed"],
    "publication-too-young": ["test_errors::test_a_publication_that_is_younger"],
    "wal-level-or-protocol": ["test_faults::test_wal_level_below_logical", "test_errors::test_a_server_of_another_protocol"],
    "value-too-large": ["test_errors::test_a_value_that_the_server_cannot_send"],
    "bad-bytes": ["test_errors::test_bytes_that_the_server_cannot_convert"],
    "target-transient": ["test_errors::test_on_the_target"],
    "target-row": ["test_errors::test_on_the_target", "test_sink_refusals::test_a_refused_row"],
    "target-prepared": ["test_errors::test_on_the_target"],
    "target-degraded": ["test_faults::test_a_full_target_disk", "test_errors::test_on_the_target"],
    "kafka-fatal": ["bus_kafka_config_test::_FATAL", "bus_kafka_config_test::_FENCED", "bus_kafka_faults_test::what_is_acknowledged"],
    "kafka-delivery": ["bus_kafka_faults_test::a_failed_delivery", "test_failpoints::kafka_report"],
    "kafka-operator": ["test_kafka::test_a_topic_deleted_while_running", "test_kafka_security::test_rights_that_are_missing",
                       "test_kafka::test_a_topic_made_smaller"],
}
PLACES = {"bus_kafka_config_test": "tests/unit/bus_kafka_config_test.c", "bus_kafka_faults_test": "tests/contract/bus_kafka_faults_test.c"}


def documented():
    """Rows of docs/operating.md: {id: (what is seen, what is done)}."""
    with open(os.path.join(scratch.ROOT, "docs/operating.md")) as file:
        part = file.read().split("## Errors, and what is done about them", 1)[1].split("\n## ", 1)[0]
    return {row[0]: row[1:] for row in re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \|$", part, re.M)}


def in_code():
    """{code or class: what is done} of config/REFERENCE.md, which is printed from the program's own tables."""
    with open(os.path.join(scratch.ROOT, "config/REFERENCE.md")) as file:
        part = file.read().split("## Errors of Postgres", 1)[1].split("\n## Figures", 1)[0]
    return dict(re.findall(r"^\| `([\w.]+)` \| (?:\w+ \| )?(.*?) \|", part, re.M))


def test_the_table_the_code_and_the_tests_are_one():
    rows, code = documented(), in_code()
    assert set(rows) == set(ROWS)
    for row, tests in ROWS.items():
        for test in tests:
            place, name = test.split("::")
            path = os.path.join(scratch.ROOT, PLACES.get(place, f"tests/integration/{place}.py"))
            with open(path) as file:
                assert name in file.read(), f"{row}: {path} has no {name}"
    kinds = {"connection": "again", "slot-in-use": "again", "limits": "slowly", "login-or-right": "operator", "slot-or-wal-gone": "fence",
             "target-transient": "again", "target-row": "row", "target-degraded": "slowly"}
    for row, kind in kinds.items():
        codes = re.findall(r"`([0-9A-Z]{5})`", rows[row][0])
        assert codes
        for state in codes:
            found = code.get(state) or code.get(state[:2] + "...")
            assert found and found.split(",")[0] == kind, f"{row}: {state} is {found} in the program, and {kind} in the table"
    for state in re.findall(r"`([0-9A-Z]{5})`", rows["target-prepared"][0]):
        assert "prepared anew" in (code.get(state) or code.get(state[:2] + "...")), state
    for name in re.findall(r"`(_?[A-Z_]{6,})`", " ".join(rows[r][0] for r in rows if r.startswith("kafka"))):
        assert name in code, name


# ---- the source ----


def role(world, name, attributes=""):
    world.source.sql(f"DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN REPLICATION {attributes}")
    world.src(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")


def as_role(world, name, **more):
    postgres = {**world.config["source"]["postgres"], "url": world.source.url(world.db, name), **more}
    return world.connector_file(source={"postgres": postgres})


def test_a_slot_in_use(world):
    """55006 (P62): the owner is named; when it goes, the stream begins."""
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    first = world.connector()
    first.stop()
    holder = psycopg2.connect(world.source.dsn(world.db) + " application_name=somebody",
                              connection_factory=psycopg2.extras.LogicalReplicationConnection)
    holder.cursor().start_replication(slot_name=world.slot(), decode=False, options={"proto_version": 1, "publication_names": "spate"})
    connector = world.connector(ready=False)
    line = connector.wait_log(r"[^\n]*event=disconnected[^\n]*").group(0)
    assert "55006" in line and "somebody" in line and "server process" in line, line
    holder.close()
    world.wait_streaming(connector)


def test_limits_of_the_source_and_wal_that_was_removed(target):
    """53300 and 53400: every 10 s, with the setting's name (P64)."""
    own = Cluster("limits", max_replication_slots=1).start()
    world = World(own, target)
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    own.sql("SELECT pg_create_physical_replication_slot('taken')")
    connector = world.connector(ready=False)
    line = connector.wait_log(r"[^\n]*event=disconnected[^\n]*53400[^\n]*").group(0)
    assert "max_replication_slots" in line
    connector.wait_log("event=reconnecting in_ms=10000")
    connector.kill()
    own.sql("SELECT pg_drop_replication_slot('taken')")
    role(world, "few", "CONNECTION LIMIT 0")
    connector = world.connector(file=as_role(world, "few"), ready=False)
    line = connector.wait_log(r"[^\n]*event=disconnected[^\n]*53300[^\n]*").group(0)
    assert "few" in line and ("CONNECTION LIMIT" in line or "max_connections" in line), line
    connector.wait_log("event=reconnecting in_ms=10000")
    own.sql("ALTER ROLE few CONNECTION LIMIT -1")
    world.wait_streaming(connector)
    connector.stop()

    # 58P01 (P60): WAL that the slot needs is gone, and the slot looks healthy.
    world.src("INSERT INTO t VALUES (1)")
    need = own.one("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots")
    for i in range(3):
        world.src("INSERT INTO t VALUES (%s); SELECT pg_switch_wal()", [10 + i])
    own.sql("CHECKPOINT")
    own.stop()
    os.remove(os.path.join(own.data, "pg_wal", need))
    own.start()
    connector = world.connector(ready=False)
    assert connector.wait_exit() == 3, connector.tail()
    assert "pg_drop_replication_slot" in connector.tail() and "--new-epoch" in connector.tail() and "lost" in connector.tail()
    world.close()
    own.destroy()


def test_no_line_in_pg_hba(target):
    """28000: every 30 s; the message says what the server looked for."""
    own = Cluster("hba")
    with open(os.path.join(own.data, "pg_hba.conf"), "r+") as hba:
        lines = hba.read()
        hba.seek(0)
        hba.write("local all stranger reject\n" + lines)
    own.start()
    world = World(own, target)
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    role(world, "stranger")
    connector = world.connector(file=as_role(world, "stranger"), ready=False)
    line = connector.wait_log(r"[^\n]*event=disconnected[^\n]*").group(0)
    assert "28000" in line and "pg_hba.conf" in line and "stranger" in line, line
    connector.wait_log("event=reconnecting in_ms=30000")
    connector.stop()
    world.close()
    own.destroy()


def test_a_publication_that_is_younger_than_a_change(world):
    """P55: creating it does not help for what was changed before; on 18 and later the server passes it by."""
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector().stop()
    world.src("DROP PUBLICATION spate; INSERT INTO t VALUES (1)")
    connector = world.connector(ready=False, file=world.connector_file())
    assert connector.wait_exit() == 4 and "publication" in connector.tail(), connector.tail()
    world.src("CREATE PUBLICATION spate FOR TABLE t WITH (publish_via_partition_root = true)")
    if world.source.one("SHOW server_version_num") >= "180000":
        return
    connector = world.connector(ready=False)
    assert connector.wait_exit() == 4, connector.tail()
    assert "did not exist when the change" in connector.tail() and "pg_drop_replication_slot" in connector.tail(), connector.tail()
    world.src("SELECT pg_drop_replication_slot(%s)", [world.slot()])
    world.connector("--new-epoch")


@pytest.mark.parametrize("told,instead", [(b"proto_version '1'", b"proto_version '9'"), (b"publication_names '", b"publication_namez '")])
def test_a_server_of_another_protocol(world, told, instead):
    """0A000, XX000 unrecognized option: stop."""
    world.source.sql("DO $$BEGIN CREATE ROLE wire LOGIN SUPERUSER PASSWORD 'wire'; EXCEPTION WHEN duplicate_object THEN NULL; END$$")
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    proxy = Proxy(world.source.port)
    proxy.rewrite = lambda data: data.replace(told, instead)
    postgres = {**world.config["source"]["postgres"], "url": world.source.tcp_url(world.db, "wire", "wire", port=proxy.port)}
    connector = world.connector(file=world.connector_file(source={"postgres": postgres}), ready=False)
    assert connector.wait_exit() == 4, connector.tail()
    assert "pgoutput" in connector.tail() and "14 or later" in connector.tail(), connector.tail()
    proxy.close()


@pytest.mark.parametrize("encoding,bad,state", [("EUC_JP", "8fa2f7", "22P05"), ("SQL_ASCII", "e920ff", "22021")])
def test_bytes_that_the_server_cannot_convert(source, target, encoding, bad, state):
    """P83: a character that UTF8 lacks; the slot cannot pass it. Bytes of SQL_ASCII pass as they are."""
    world = World(source, target)
    source.sql(f'DROP DATABASE "{world.db}"')
    source.sql(f"CREATE DATABASE \"{world.db}\" TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    if encoding == "SQL_ASCII":
        world.src("SET client_encoding = 'SQL_ASCII'; INSERT INTO t SELECT 1, convert_from(%s::bytea, 'SQL_ASCII')", ["\\x" + bad])
        assert world.messages("public.t", count=1)[0]["after"]["v"] == {"$bytes": "6SD/"}
    else:
        world.src("INSERT INTO t SELECT 1, convert_from(%s::bytea, %s)", ["\\x" + bad, encoding])
        assert connector.wait_exit(20) == 4, connector.tail()
        line = connector.tail(1)
        assert state in line and "no counterpart in UTF8" in line and "pg_drop_replication_slot" in line and "jsonb" not in line, line
    world.close()


def test_a_value_that_the_server_cannot_send(world):
    """P87: the text of a bytea beyond half a gigabyte. The connector stops with the place and the way past it."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v bytea)")
    connector = world.connector()
    world.src("INSERT INTO t VALUES (1, convert_to(repeat('x', 560000000), 'UTF8'))")  # a few MB, compressed
    assert connector.wait_exit(60) == 4, connector.tail()
    line = connector.tail(1)
    assert "XX000" in line and "pg_drop_replication_slot" in line and "too large" in line, line


# ---- the target ----

FILES = {  # sink -> columns
    "unique": None, "fk": None, "chk": None,
    "short": {"id": "id", "v": "v"},
    "range": {"id": "id", "n": "n::int2"},
    "text": {"id": "id", "v": "v::int"},
    "json": {"id": "id", "j": "j::jsonb"},
    "column": {"id": "id", "v": "v"},
    "gone": {"id": "id", "v": "v"},
    "fine": {"id": "id", "v": "v"},
    "forgets": {"id": "id", "v": "v"},
    "busy": {"id": "id", "v": "v"},
}
REFUSED = {"unique": "23505", "fk": "23503", "chk": "23514", "short": "22001", "range": "22003", "text": "22P02", "json": "22P05",
           "column": "", "gone": ""}


def test_on_the_target(world):
    """Twelve sinks in one process, and an error for each: refused rows stop their sink alone, with table, key, number and
    remedy; what passes is waited out; statements that were prepared are prepared anew."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text, n bigint, j json)")
    world.connector()
    world.src("INSERT INTO t VALUES (1, '1', 1, '1')")
    files = [world.sink_file(name, {"t": {"from": "public.t", **({"columns": columns, "key": ["id"]} if columns else {})}})
             for name, columns in FILES.items()]
    sink = world.sink(*files)
    for name in FILES:
        world.wait_rows(f'SELECT count(*) FROM "{name}".t', [(1,)])
    world.tgt("""
        CREATE UNIQUE INDEX ON "unique".t (v); CREATE TABLE fk.other (id int PRIMARY KEY); INSERT INTO fk.other VALUES (1);
        ALTER TABLE fk.t ADD FOREIGN KEY (id) REFERENCES fk.other; ALTER TABLE chk.t ADD CHECK (id < 2);
        ALTER TABLE short.t ALTER v TYPE varchar(2); ALTER TABLE "column".t DROP COLUMN v; DROP TABLE gone.t;
        CREATE SEQUENCE fine.once; CREATE FUNCTION fine.f() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN IF nextval('fine.once') = 1 THEN RAISE EXCEPTION SQLSTATE '0A000'; END IF; RETURN NULL; END $$;
        CREATE TRIGGER once AFTER INSERT ON fine.t FOR EACH STATEMENT EXECUTE FUNCTION fine.f();
        CREATE SEQUENCE forgets.once; CREATE FUNCTION forgets.f() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN IF nextval('forgets.once') = 1 THEN EXECUTE 'DEALLOCATE ALL'; END IF; RETURN NULL; END $$;
        CREATE TRIGGER once AFTER INSERT ON forgets.t FOR EACH STATEMENT EXECUTE FUNCTION forgets.f();
        CREATE SEQUENCE busy.nth; CREATE TABLE busy.held (); CREATE FUNCTION busy.f() RETURNS trigger LANGUAGE plpgsql AS
          $$ DECLARE n bigint := nextval('busy.nth'); BEGIN
             IF n = 1 THEN RAISE EXCEPTION SQLSTATE '40001'; ELSIF n = 2 THEN RAISE EXCEPTION SQLSTATE '40P01'; END IF;
             LOCK TABLE busy.held IN ACCESS EXCLUSIVE MODE NOWAIT; RETURN NULL; END $$;
        CREATE TRIGGER nth AFTER INSERT ON busy.t FOR EACH STATEMENT EXECUTE FUNCTION busy.f()""")
    holder = world.target.connect(world.db, autocommit=False)
    holder.cursor().execute("LOCK TABLE busy.held")
    world.src("INSERT INTO t VALUES (77, '1', 99999, '{\"a\": \"\\u0000\"}'), (78, 'abc', 2, '2')")
    for name, state in REFUSED.items():
        line = sink.wait_log(rf"[^\n]*event=sink-stopped sink={name} [^\n]*").group(0)
        assert state in line, line
        if state:
            assert re.search(r"7[78]", line) and "n=" in line and "table" in line, line
        else:
            assert re.search(r"ALTER TABLE|--restart|does not exist|is not there|gone", line), line
    for state in ("40001", "40P01", "55P03"):
        sink.wait_log(rf"event=retry sink=busy [^\n]*{state}|sqlstate={state}[^\n]*")
    holder.rollback()
    holder.close()
    for name in ("fine", "forgets", "busy"):
        world.wait_rows(f"SELECT id FROM {name}.t ORDER BY id", [(1,), (77,), (78,)], sink=sink)
    # 25006: a server that only reads, for a while.
    try:
        world.target.sql(f'ALTER DATABASE "{world.db}" SET default_transaction_read_only = on')
        world.target.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", [world.db])
        world.src("INSERT INTO t VALUES (79, 'x', 3, '3')")
        line = sink.wait_log(r"[^\n]*25006[^\n]*").group(0)
        assert "read-only" in line, line
    finally:
        world.target.sql(f'ALTER DATABASE "{world.db}" RESET default_transaction_read_only')
    world.wait_rows("SELECT count(*) FROM fine.t", [(4,)], 40, sink=sink)
    assert sink.running()
