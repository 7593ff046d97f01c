"""What a sink cannot do exactly it refuses, at start and at a new schema version, with the remedy."""
import pytest

from tests.support import scratch

REFUSED = 4


def table(**more):
    return {"t": {"from": "public.t", **more}}


# name -> (source SQL, target SQL or None, the team's tables, words that the refusal must have)
CASES = {
    "key is not the source's key": (
        "CREATE TABLE t (id int PRIMARY KEY, other int NOT NULL)", None, table(columns={"other": "other"}, key=["other"]), r"key"),
    "key is wider than the source's": (
        "CREATE TABLE t (id int PRIMARY KEY, v int)", None, table(key=["id", "v"]), r"key"),
    "source table has no key": (
        "CREATE TABLE t (id int); ALTER TABLE t REPLICA IDENTITY FULL", None, table(), r"key"),
    "expression is not immutable": (
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)", None, table(columns={"id": "id", "day": "at::date"}, key=["id"]),
        r"(immutable|AT TIME ZONE)"),
    "expression has a subquery": (
        "CREATE TABLE t (id int PRIMARY KEY, v int)", None, table(columns={"id": "id", "m": "(SELECT max(x) FROM (VALUES (1)) AS y (x))"}, key=["id"]),
        r"(subquer|immutable|index expression)"),
    "expression uses a column that is not there": (
        "CREATE TABLE t (id int PRIMARY KEY, amount int)", None, table(columns={"id": "id", "x": "amuont + 1"}, key=["id"]), r"amuont"),
    "assignment would shorten": (
        "CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE team.t (id int PRIMARY KEY, v varchar(5))", table(), r"(cast|varchar|character varying)"),
    "assignment would round": (
        "CREATE TABLE t (id int PRIMARY KEY, v numeric)", "CREATE TABLE team.t (id int PRIMARY KEY, v numeric(10,2))", table(), r"(cast|numeric\(10,2\))"),
    "another immediate unique constraint": (
        "CREATE TABLE t (id int PRIMARY KEY, v int)", "CREATE TABLE team.t (id int PRIMARY KEY, v int UNIQUE)", table(), r"(unique|deferrable)"),
    "row trigger": (
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "CREATE TABLE team.t (id int PRIMARY KEY, v int); CREATE FUNCTION team.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER drop_all BEFORE INSERT ON team.t FOR EACH ROW EXECUTE FUNCTION team.f()", table(), r"trigger"),
    "target table lacks the key's index": (
        "CREATE TABLE t (id int PRIMARY KEY, v int)", "CREATE TABLE team.t (id int, v int)", table(), r"(PRIMARY KEY|UNIQUE)"),
    "target column is missing": (
        "CREATE TABLE t (id int PRIMARY KEY, v int)", "CREATE TABLE team.t (id int PRIMARY KEY)", table(), r"ALTER TABLE .*ADD COLUMN"),
    "target column has the wrong type": (
        "CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE team.t (id int PRIMARY KEY, v int)", table(), r"(ALTER TABLE|cast)"),
    "target column must not be null": (
        "CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE team.t (id int PRIMARY KEY, must int NOT NULL)", table(), r"must"),
    "exclusion constraint": (
        "CREATE TABLE t (id int PRIMARY KEY, r int4range)",
        "CREATE TABLE team.t (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))", table(), r"exclu"),
    "nondeterministic key": (
        "CREATE TABLE t (id text PRIMARY KEY)",
        "CREATE COLLATION team.nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
        "CREATE TABLE team.t (id text COLLATE team.nd PRIMARY KEY)", table(), r"collation"),
}


@pytest.mark.parametrize("case", CASES, ids=[name.replace(" ", "-").replace("'", "") for name in CASES])
def test_refused_at_start(world, case):
    source_sql, target_sql, tables, words = CASES[case]
    world.src(source_sql)
    if target_sql:
        world.tgt("CREATE SCHEMA team; " + target_sql)
    world.connector()
    sink = world.sink(world.sink_file("team", tables))
    assert sink.wait_exit() == REFUSED, sink.tail()
    line = sink.wait_log(rf"(?i)[^\n]*{words}[^\n]*").group(0)
    assert "level=error" in sink.text() and ("team" in line or "public.t" in line), line


def test_the_remedy_mends_it(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.t (id int PRIMARY KEY)")
    world.connector()
    file = world.sink_file("team", table())
    sink = world.sink(file)
    assert sink.wait_exit() == REFUSED
    world.tgt(sink.wait_log(r"ALTER TABLE [^;\n]*? ADD COLUMN [^;\n]*").group(0).replace('\\"', '"'))
    world.src("INSERT INTO t VALUES (1, 'paid')")
    sink = world.sink(file)
    world.wait_rows("SELECT * FROM team.t", [(1, "paid")])


def test_a_table_that_another_sink_owns(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    first = world.sink(world.sink_file("first", table(), schema="team"))
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    second = world.sink(world.sink_file("second", table(), schema="team"), name="second")
    assert second.wait_exit() == REFUSED
    second.wait_log(r"first")
    assert first.running()


def test_refused_at_a_new_version(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", table(columns={"id": "id", "v": "v"})))
    world.src("INSERT INTO t VALUES (1, 'x')")
    world.wait_rows("SELECT * FROM team.t", [(1, "x")])
    world.src("ALTER TABLE t DROP v; INSERT INTO t VALUES (2)")
    assert sink.wait_exit() == REFUSED
    sink.wait_log("columns.v")


def test_a_refused_row_stops_only_its_sink(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, v int)")
    world.tgt("CREATE SCHEMA strict; CREATE TABLE strict.t (id int PRIMARY KEY, v int CONSTRAINT small CHECK (v < 100))")
    world.connector()
    strict = world.sink_file("strict", table())
    sink = world.sink(strict, world.sink_file("mild", {"t": {"from": "public.t"}, "u": {"from": "public.u"}}))
    world.src("INSERT INTO t VALUES (1, 1)")
    world.wait_rows("SELECT id FROM strict.t", [(1,)])
    world.src("BEGIN; INSERT INTO u VALUES (1, 1); INSERT INTO t SELECT i, i FROM generate_series(2, 60) i; INSERT INTO t VALUES (777, 700); COMMIT")
    line = sink.wait_log(r"[^\n]*23514[^\n]*").group(0)
    bad = [m for m in world.messages("public.t", "--op", "insert", count=61) if m["key"] == {"id": 777}][0]
    assert "777" in line and str(bad["n"]) in line and "small" in line and "strict" in line, line
    world.src("INSERT INTO t VALUES (61, 61); DELETE FROM t WHERE id = 3")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM mild.t"), ("SELECT * FROM u", "SELECT * FROM mild.u")])
    assert sink.running()
    assert world.tgt("SELECT id FROM strict.t") == [(1,)]  # nothing of that transaction
    # After mending, it goes on where it was.
    world.tgt("ALTER TABLE strict.t DROP CONSTRAINT small")
    again = world.sink(strict, name="again")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM strict.t")])
    assert again.running()


def test_a_swap_of_unique_keys_in_one_transaction(world):
    """F66, T17: deletes before upserts, so that a swap does not collide with itself."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i")
    world.src("BEGIN; UPDATE t SET id = -1 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = -1;"
              "DELETE FROM t WHERE id = 9; INSERT INTO t VALUES (9, 'again'); UPDATE t SET id = id + 10 WHERE id > 5; COMMIT")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
