"""Tables of every shape (P40-P54, P88, F33-F36, F66), source and sink compared exactly: by the stream, and the same rows once more
by a snapshot for a sink that comes at the end.

All shapes stand in one world: a connector, a sink that mirrors every table, and SQL of each shape's own."""

import io
import re

import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.world import World

BIG = "(SELECT string_agg(md5((%s)::text || x), '') FROM generate_series(1, 200) x)"


def big(seed):
    """SQL of a text that is stored out of line."""
    return BIG % seed


class Shape:
    """tables: what the sink mirrors, each under its name without the dot. before: rows that are there when the sink comes.
    steps: what happens then; each text is one round trip, so that several statements in it are one transaction.
    same: (source SELECT, target table) instead of the whole table. filters: what stands behind FOR TABLE ..., per table."""

    def __init__(self, make, tables, before="", steps=(), same=None, filters=None, since=0):
        self.make, self.tables, self.before, self.steps = make, tables, before, steps
        self.same, self.filters, self.since = same or {}, filters or {}, since


SHAPES = {
    "identity default": Shape(
        "CREATE TABLE d (id int PRIMARY KEY, v text, w int)", ["d"], "INSERT INTO d SELECT g, 'v' || g, g FROM generate_series(1, 20) g",
        ["UPDATE d SET v = NULL WHERE id < 5; DELETE FROM d WHERE id IN (6, 7)", "UPDATE d SET id = id + 100 WHERE id > 15; INSERT INTO d VALUES (6, 'again', 1)"]),
    "identity index": Shape(
        "CREATE TABLE i (id int PRIMARY KEY, code text NOT NULL, part int NOT NULL, v text); CREATE UNIQUE INDEX i_u ON i (part, code);"
        "ALTER TABLE i REPLICA IDENTITY USING INDEX i_u", ["i"], "INSERT INTO i SELECT g, 'c' || g % 3, g, 'v' FROM generate_series(1, 10) g",
        ["UPDATE i SET v = 'w' WHERE id < 4", "UPDATE i SET id = id + 50 WHERE id > 7", "UPDATE i SET code = 'x' || code, part = -part WHERE id IN (1, 2); DELETE FROM i WHERE id = 3"]),
    "identity full": Shape(
        "CREATE TABLE f (id int PRIMARY KEY, v text, l text); ALTER TABLE f REPLICA IDENTITY FULL", ["f"], f"INSERT INTO f SELECT g, NULL, {big('g')} FROM generate_series(1, 4) g",
        ["UPDATE f SET v = 'w' WHERE id < 3", "UPDATE f SET id = 10 WHERE id = 2; DELETE FROM f WHERE id = 3", "UPDATE f SET l = NULL WHERE id = 4"]),
    "F35 identity changes while it runs": Shape(
        "CREATE TABLE r (id int PRIMARY KEY, v int, l text)", ["r"], f"INSERT INTO r SELECT g, g, {big('g')} FROM generate_series(1, 6) g",
        ["UPDATE r SET v = 1 WHERE id = 1", "ALTER TABLE r REPLICA IDENTITY FULL", "UPDATE r SET v = 2 WHERE id = 2; UPDATE r SET id = 20 WHERE id = 2",
         "UPDATE r SET v = 3 WHERE id = 3; ALTER TABLE r REPLICA IDENTITY DEFAULT; UPDATE r SET id = 30, v = 33 WHERE id = 3", "DELETE FROM r WHERE id = 4",
         "ALTER TABLE r REPLICA IDENTITY FULL; DELETE FROM r WHERE id = 5; ALTER TABLE r REPLICA IDENTITY DEFAULT; UPDATE r SET v = 6 WHERE id = 6"]),
    "F66 keys swapped inside a transaction": Shape(
        "CREATE TABLE swap (id int PRIMARY KEY, v text, l text); CREATE TABLE swap2 (a int, b text, v int, PRIMARY KEY (a, b))", ["swap", "swap2"],
        f"INSERT INTO swap SELECT g, 'v' || g, {big('g * 7')} FROM generate_series(1, 6) g; INSERT INTO swap2 SELECT g % 2, g::text, g FROM generate_series(1, 6) g",
        ["UPDATE swap SET id = -1 WHERE id = 1; UPDATE swap SET id = 1 WHERE id = 2; UPDATE swap SET id = 2 WHERE id = -1",
         # A ring of three, each large value left as it was: it must follow its row.
         "UPDATE swap SET id = -3 WHERE id = 3; UPDATE swap SET id = 3 WHERE id = 4; UPDATE swap SET id = 4 WHERE id = 5; UPDATE swap SET id = 5 WHERE id = -3",
         "DELETE FROM swap WHERE id = 6; UPDATE swap SET id = 6 WHERE id = 1; INSERT INTO swap VALUES (1, 'new', 'short')",
         "UPDATE swap SET id = -id", "UPDATE swap2 SET a = 1 - a", "UPDATE swap2 SET b = 'x' || b, v = -v WHERE a = 1; UPDATE swap2 SET a = 1 WHERE a = 0"]),
    "F34 unchanged large values": Shape(
        "CREATE TABLE toast (id int PRIMARY KEY, v int, l text, m bytea); ALTER TABLE toast ALTER l SET STORAGE EXTERNAL", ["toast"],
        f"INSERT INTO toast SELECT g, g, {big('g')}, decode({big('g + 9')}, 'hex') FROM generate_series(1, 6) g",
        ["UPDATE toast SET v = -v WHERE id = 1", "UPDATE toast SET id = 20 WHERE id = 2", "UPDATE toast SET id = 30, v = 0 WHERE id = 3; UPDATE toast SET id = 31 WHERE id = 30",
         f"UPDATE toast SET l = NULL WHERE id = 4; UPDATE toast SET id = 40 WHERE id = 4; UPDATE toast SET l = {big(5)} WHERE id = 40",
         f"INSERT INTO toast VALUES (7, 7, {big(7)}, NULL); UPDATE toast SET v = 8 WHERE id = 7; UPDATE toast SET id = 8 WHERE id = 7",
         "DELETE FROM toast WHERE id = 5; UPDATE toast SET id = 5 WHERE id = 6"]),
    "P43 a key that is stored out of line": Shape(
        "CREATE TABLE toastkey (k text PRIMARY KEY, v int, l text); ALTER TABLE toastkey ALTER k SET STORAGE EXTERNAL", ["toastkey"],
        f"INSERT INTO toastkey SELECT substr({big('g')}, 1, 2300), g, {big('g + 5')} FROM generate_series(1, 4) g",
        ["UPDATE toastkey SET v = -v WHERE v = 1", "UPDATE toastkey SET k = 'short' WHERE v = 2", f"UPDATE toastkey SET k = substr({big(77)}, 1, 2400) WHERE v = 3", "DELETE FROM toastkey WHERE v = 4"]),
    "P50 partitions through their root": Shape(
        "CREATE TABLE part (id int, region text NOT NULL, v text, l text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);"
        "CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('de', 'fr') PARTITION BY RANGE (id);"
        "CREATE TABLE part_eu_1 PARTITION OF part_eu FOR VALUES FROM (0) TO (100); CREATE TABLE part_eu_2 PARTITION OF part_eu DEFAULT;"
        "CREATE TABLE part_us (v text, l text, region text NOT NULL, id int NOT NULL); ALTER TABLE part ATTACH PARTITION part_us FOR VALUES IN ('us')", ["part"],
        f"INSERT INTO part SELECT g, (ARRAY['de', 'us', 'fr'])[1 + g % 3], 'v' || g, {big('g')} FROM generate_series(90, 110) g",
        ["UPDATE part SET region = 'us' WHERE id < 95 AND region = 'de'", "UPDATE part SET id = id + 100 WHERE id BETWEEN 98 AND 99; UPDATE part SET v = 'w' WHERE id > 105",
         "CREATE TABLE part_jp PARTITION OF part FOR VALUES IN ('jp'); INSERT INTO part VALUES (1, 'jp', 'new', NULL); UPDATE part SET region = 'jp' WHERE id = 100",
         "DELETE FROM part WHERE id = 101; INSERT INTO part_us (id, region, v) VALUES (500, 'us', 'into the leaf')"]),
    "P52 TRUNCATE of a partitioned table": Shape(
        "CREATE TABLE tpart (id int PRIMARY KEY, v int) PARTITION BY HASH (id); CREATE TABLE tpart_0 PARTITION OF tpart FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE tpart_1 PARTITION OF tpart FOR VALUES WITH (MODULUS 2, REMAINDER 1)", ["tpart"], "INSERT INTO tpart SELECT g, g FROM generate_series(1, 10) g",
        ["TRUNCATE tpart; INSERT INTO tpart VALUES (3, 3)", "INSERT INTO tpart VALUES (4, 4); UPDATE tpart SET id = 40 WHERE id = 4"]),
    "inheritance": Shape(
        "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent)", ["parent", "child"],
        "INSERT INTO parent VALUES (1, 'p'), (2, 'p'); INSERT INTO child VALUES (1, 'c', 10), (3, 'c', 30)",
        ["UPDATE parent SET v = v || '+'", "DELETE FROM ONLY parent WHERE id = 2; UPDATE child SET id = 4 WHERE id = 3", "TRUNCATE ONLY parent; INSERT INTO parent VALUES (9, 'nine')"],
        same={"parent": "SELECT * FROM ONLY parent"}),
    "P38 generated columns": Shape(
        "CREATE TABLE gen (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, z text)", ["gen"], "INSERT INTO gen SELECT g, g FROM generate_series(1, 5) g",
        ["UPDATE gen SET a = 7 WHERE id = 1", "UPDATE gen SET id = 20, z = 'z' WHERE id = 2; DELETE FROM gen WHERE id = 3"], same={"gen": "SELECT id, a, z FROM gen"}),
    "T19 identity columns": Shape(
        "CREATE TABLE ident (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY, v text, s serial)", ["ident"],
        "INSERT INTO ident (v) SELECT 'v' || g FROM generate_series(1, 5) g",
        ["INSERT INTO ident (v) VALUES ('more')", "UPDATE ident SET id = DEFAULT WHERE v = 'v1'; INSERT INTO ident (id, v) OVERRIDING SYSTEM VALUE VALUES (1000, 'mine')"]),
    "F39 TRUNCATE": Shape(
        "CREATE TABLE t1 (id serial PRIMARY KEY, v int); CREATE TABLE t2 (id int PRIMARY KEY, t1 int REFERENCES t1); CREATE TABLE t3 (id int PRIMARY KEY)", ["t1", "t2", "t3"],
        "INSERT INTO t1 (v) SELECT g FROM generate_series(1, 5) g; INSERT INTO t2 SELECT g, g FROM generate_series(1, 5) g; INSERT INTO t3 SELECT g FROM generate_series(1, 5) g",
        ["TRUNCATE t1 CASCADE; INSERT INTO t1 (v) VALUES (6)", "INSERT INTO t2 VALUES (6, 6); TRUNCATE t3, t2, t1 RESTART IDENTITY; INSERT INTO t1 (v) VALUES (1); INSERT INTO t2 VALUES (1, 1)",
         "INSERT INTO t3 VALUES (1); SAVEPOINT a; TRUNCATE t3; ROLLBACK TO a; INSERT INTO t3 VALUES (2)"]),
    "P18 COPY": Shape("CREATE TABLE copied (id int PRIMARY KEY, v text)", ["copied"], "", [("copied", "".join(f"{n}\tvalue {n}\n" for n in range(3000)))]),
    "savepoints": Shape(
        "CREATE TABLE saved (id int PRIMARY KEY, v int)", ["saved"], "INSERT INTO saved SELECT g, 0 FROM generate_series(1, 5) g",
        ["UPDATE saved SET v = 1; SAVEPOINT a; UPDATE saved SET v = 2; DELETE FROM saved WHERE id = 1; SAVEPOINT b; INSERT INTO saved VALUES (10, 1); ROLLBACK TO b;"
         "INSERT INTO saved VALUES (11, 1); RELEASE a; SAVEPOINT c; UPDATE saved SET id = 100 WHERE id = 2; ROLLBACK TO c; UPDATE saved SET v = 3 WHERE id = 3",
         "INSERT INTO saved SELECT g, g FROM generate_series(200, 210) g; SAVEPOINT a; DELETE FROM saved; ROLLBACK TO a"]),
    "P48 a row filter": Shape(
        "CREATE TABLE filtered (id int PRIMARY KEY, v int NOT NULL, w text); ALTER TABLE filtered REPLICA IDENTITY FULL", ["filtered"],
        "INSERT INTO filtered SELECT g, g, 'w' FROM generate_series(1, 20) g",
        ["UPDATE filtered SET v = v + 10 WHERE id IN (9, 10)", "UPDATE filtered SET v = 1 WHERE id = 15", "UPDATE filtered SET w = 'inside' WHERE v > 10; UPDATE filtered SET w = 'outside' WHERE v <= 10",
         "UPDATE filtered SET id = id + 100 WHERE id > 18; DELETE FROM filtered WHERE id IN (2, 17)"],
        same={"filtered": "SELECT * FROM filtered WHERE v > 10"}, filters={"filtered": "WHERE (v > 10)"}, since=150000),
    "P49 a list of columns": Shape(
        "CREATE TABLE listed (hidden text, id int PRIMARY KEY, a int, l text, late text)", ["listed"], f"INSERT INTO listed SELECT 'secret', g, g, {big('g')}, 'x' FROM generate_series(1, 5) g",
        ["UPDATE listed SET hidden = 'more' WHERE id = 1", "UPDATE listed SET a = -a, late = 'y' WHERE id = 2; UPDATE listed SET id = 30 WHERE id = 3", "INSERT INTO listed VALUES ('s', 6, 6, 'l', 'x'); DELETE FROM listed WHERE id = 4"],
        same={"listed": "SELECT id, a, l FROM listed"}, filters={"listed": "(id, a, l)"}, since=150000),
    "a filter on partitions": Shape(
        "CREATE TABLE fpart (id int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (id); ALTER TABLE fpart REPLICA IDENTITY FULL;"
        "CREATE TABLE fpart_0 PARTITION OF fpart FOR VALUES FROM (0) TO (10); CREATE TABLE fpart_1 PARTITION OF fpart DEFAULT;"
        "ALTER TABLE fpart_0 REPLICA IDENTITY FULL; ALTER TABLE fpart_1 REPLICA IDENTITY FULL", ["fpart"], "INSERT INTO fpart SELECT g, g % 4 FROM generate_series(1, 20) g",
        ["UPDATE fpart SET v = 1 - v WHERE v < 2", "UPDATE fpart SET id = id + 1000 WHERE id < 6 AND v = 3; UPDATE fpart SET id = 100, v = 0 WHERE id = 12"],
        same={"fpart": "SELECT * FROM fpart WHERE v > 0"}, filters={"fpart": "WHERE (v > 0)"}, since=150000),
    "names of the catalog's own": Shape(
        'CREATE TABLE "user" ("select" int PRIMARY KEY, "from" text, "tableoid2" int, "Ctid" text)', ["user"], "INSERT INTO \"user\" VALUES (1, 'a', 2, 'b')",
        ['UPDATE "user" SET "from" = \'c\'', 'UPDATE "user" SET "select" = 5; INSERT INTO "user" VALUES (1, NULL, NULL, NULL)']),
    "a key and nothing else": Shape("CREATE TABLE bare (id int PRIMARY KEY)", ["bare"], "INSERT INTO bare VALUES (1), (2)",
                                    ["UPDATE bare SET id = id", "UPDATE bare SET id = id + 10; DELETE FROM bare WHERE id = 12; INSERT INTO bare VALUES (1)"]),
    "columns dropped and added before": Shape(
        "CREATE TABLE holes (gone int, id int PRIMARY KEY, v text, gone2 text); INSERT INTO holes VALUES (1, 1, 'v', 'x'); ALTER TABLE holes DROP gone, DROP gone2, ADD late int DEFAULT 7, ADD later text", ["holes"], "INSERT INTO holes VALUES (2, 'w', 8, 'l')",
        ["UPDATE holes SET v = 'x' WHERE id = 1", "UPDATE holes SET id = 3 WHERE id = 1; DELETE FROM holes WHERE id = 2"]),
    "rules, triggers and ON CONFLICT": Shape(
        "CREATE TABLE fired (id int PRIMARY KEY, v int, n int DEFAULT 0); CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.n := NEW.n + 1; RETURN NEW; END$$;"
        "CREATE TRIGGER b BEFORE INSERT OR UPDATE ON fired FOR EACH ROW EXECUTE FUNCTION bump(); CREATE RULE keep AS ON DELETE TO fired WHERE OLD.id = 1 DO INSTEAD UPDATE fired SET v = -1 WHERE id = OLD.id", ["fired"],
        "INSERT INTO fired SELECT g, g FROM generate_series(1, 5) g",
        ["INSERT INTO fired VALUES (2, 20), (9, 9) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v", "DELETE FROM fired WHERE id < 4; WITH moved AS (UPDATE fired SET v = 0 WHERE id = 5 RETURNING n) INSERT INTO fired SELECT 40, n FROM moved"]),
}


def make(world):
    """The tables, and the publication that a person would make."""
    version = world.source.version()
    shapes = {name: shape for name, shape in SHAPES.items() if version >= shape.since}
    for shape in shapes.values():
        world.src(shape.make)
        if shape.before:
            world.src(shape.before)
    # Beside them: what must never arrive, and what must not disturb.
    world.src("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY); INSERT INTO unlogged VALUES (1);"
              "CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING; CREATE TABLE loose (v int); ALTER TABLE loose REPLICA IDENTITY FULL;"
              "CREATE TABLE lax (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text); ALTER TABLE lax REPLICA IDENTITY FULL")
    listed = [f'"{table}" {shape.filters.get(table, "")}' for shape in shapes.values() for table in shape.tables if table != "child"]  # which comes with its parent
    world.src(f"CREATE PUBLICATION spate FOR TABLE {', '.join(listed)}, loose, lax, nothing WITH (publish_via_partition_root = true)")
    world.src('CREATE PUBLICATION other FOR TABLE d, swap, "user"; CREATE PUBLICATION inserts FOR ALL TABLES WITH (publish = \'insert\')')
    return shapes


def pairs(shapes, schema):
    return [(shape.same.get(table, f'SELECT * FROM "{table}"'), f'SELECT * FROM {schema}."{table}"') for shape in shapes.values() for table in shape.tables]


def mirror(shapes):
    return {table: {"from": f"public.{table}"} for shape in shapes.values() for table in shape.tables}


@pytest.fixture(scope="module")
def stage(source, target):
    for cluster in (source, target):
        if not cluster.running():
            cluster.start()
    world = World(source, target)
    world.shapes = make(world)
    world.connector()
    # T19: the team made this one itself, with a key that it would give out too.
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.ident (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n int, v text, s int)")
    world.sink(world.sink_file("team", mirror(world.shapes)), name="team")
    world.wait_equal(pairs(world.shapes, "team"))
    yield world
    world.close()


def run(world, step):
    if isinstance(step, tuple):
        with world.source.connect(world.db) as connection, connection.cursor() as cursor:
            cursor.copy_expert(f"COPY {step[0]} FROM STDIN", io.StringIO(step[1]))
        connection.close()
    else:
        world.src(f"BEGIN; {step}; COMMIT")


@pytest.mark.parametrize("number", range(max(len(shape.steps) for shape in SHAPES.values())))
def test_what_happens_to_them_arrives(stage, number):
    """One step of every shape, and then the picture: a later step must not mend an earlier one."""
    for shape in stage.shapes.values():
        for step in shape.steps[number:number + 1]:
            run(stage, step)
    stage.wait_equal(pairs(stage.shapes, "team"))


def test_F35_no_identity_for_a_while(stage):
    """The whole row, nothing at all, the primary key again. While there is none rows can only be added."""
    stage.src("ALTER TABLE d REPLICA IDENTITY FULL; UPDATE d SET w = -1 WHERE id = 1")
    stage.src("ALTER TABLE d REPLICA IDENTITY NOTHING; INSERT INTO d VALUES (5001, 'while it had none', 1)")
    stage.src("ALTER TABLE d REPLICA IDENTITY DEFAULT; UPDATE d SET w = -2 WHERE id IN (1, 5001)")
    stage.wait_equal(pairs({"d": SHAPES["identity default"]}, "team"))


def test_F35_another_key(source, target):
    """The identity becomes another index, and the primary key again. Two keys cannot hold at once, so the sink stops; the
    statements that it names, and nothing else, bring it back, and nothing was lost."""
    world = World(source, target)
    same = [("SELECT * FROM r", "SELECT * FROM team.r")]
    file = world.sink_file("team", {"r": {"from": "public.r"}})

    def settle(sink):
        for _ in range(8):
            scratch.until(lambda: not sink.running() or world.check_tables(same)[0] == 0, lambda: "equal, or stopped: " + sink.tail(), 30, 0.1)
            if sink.running():
                return sink
            world.tgt(re.search(r": (ALTER TABLE [^;]*);", sink.tail(1).replace('\\"', '"')).group(1))
            sink = world.sink(file)
        raise scratch.Failure("it never comes to rest: " + sink.tail())

    try:
        world.src("CREATE TABLE r (id int PRIMARY KEY, code int NOT NULL UNIQUE, v text); INSERT INTO r SELECT g, g * 10, 'v' FROM generate_series(1, 5) g")
        world.connector()
        sink = world.sink(file)
        world.wait_equal(same)
        for change in ("ALTER TABLE r REPLICA IDENTITY USING INDEX r_code_key; UPDATE r SET v = 'x' WHERE id = 1; UPDATE r SET id = 20 WHERE id = 2; UPDATE r SET code = 300 WHERE id = 3; DELETE FROM r WHERE id = 4",
                       "ALTER TABLE r REPLICA IDENTITY DEFAULT; UPDATE r SET v = 'y' WHERE id = 1; UPDATE r SET id = 30 WHERE id = 3; UPDATE r SET code = 500 WHERE id = 5; INSERT INTO r VALUES (6, 60, NULL)"):
            world.src(change)
            sink = settle(sink)
    finally:
        world.close()


def test_P88_without_a_key_the_bus_has_it_whole(stage):
    """No primary key under FULL, or one that may be violated for a moment: each message says so, and nobody invents a key. With
    identity NOTHING the primary key is one."""
    stage.src("INSERT INTO lax VALUES (1, 'a'), (2, 'b'); UPDATE lax SET id = 3 - id")
    lax = [(m["op"], m["key"], m["before"], m["after"]) for m in stage.messages() if m.get("table") == "lax" and "n" in m]
    assert [change[:2] for change in lax] == [("insert", None)] * 2 + [("update", None)] * 2
    assert sorted((before["v"], before["id"], after["id"]) for _, _, before, after in lax[2:]) == [("a", 1, 2), ("b", 2, 1)]
    stage.src("INSERT INTO loose VALUES (1), (1), (NULL); UPDATE loose SET v = 2 WHERE v = 1; DELETE FROM loose WHERE v IS NULL; INSERT INTO nothing VALUES (4)")
    seen = [m for m in stage.messages() if m.get("table") in ("loose", "nothing") and "n" in m]
    assert [(m["op"], m["key"], m["before"], m["after"]) for m in seen if m["table"] == "loose"] == [
        ("insert", None, None, {"v": 1}), ("insert", None, None, {"v": 1}), ("insert", None, None, {"v": None}),
        ("update", None, {"v": 1}, {"v": 2}), ("update", None, {"v": 1}, {"v": 2}), ("delete", None, {"v": None}, None)]
    assert [(m["op"], m["key"], m["after"]) for m in seen if m["table"] == "nothing"] == [("insert", {"id": 4}, {"id": 4})]


def test_P24_logical_messages(stage):
    """Transactional ones are changes of the stream; others come at once, also from what is rolled back, and are none."""
    stage.src("SELECT pg_logical_emit_message(true, 'shapes', 'kept'), pg_logical_emit_message(false, 'shapes', 'passing')")
    connection = stage.source.connect(stage.db, autocommit=False)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO bare VALUES (77); SELECT pg_logical_emit_message(true, 'shapes', 'undone'), pg_logical_emit_message(false, 'shapes', 'passing too')")
    connection.rollback()
    connection.close()
    assert [m["content"] for m in stage.messages() if m["op"] == "message" and m["prefix"] == "shapes"] == ["kept"]
    assert stage.check_bus()["messages"]


def test_P54_what_is_not_published_stays_out(stage):
    stage.src("CREATE TEMP TABLE passing (id int PRIMARY KEY); INSERT INTO passing VALUES (1); INSERT INTO unlogged VALUES (2)")
    stage.src("CREATE TABLE unpublished (id int PRIMARY KEY); INSERT INTO unpublished VALUES (1)")
    assert not {"passing", "unlogged", "unpublished", "part_us", "part_eu_1", "tpart_0"} & {m.get("table") for m in stage.messages()}


def test_zz_the_same_rows_by_a_snapshot(stage):
    """Row filter and column list hold there too, a partitioned table is one table, a parent is without its children."""
    late = stage.sink(stage.sink_file("late", mirror(stage.shapes)), name="late")
    stage.wait_equal(pairs(stage.shapes, "late"))
    assert late.stop() == 0
    stage.check_bus(truth=True)


def test_P50_each_partition_for_itself(source, target):
    """publish_via_partition_root = false: leaves are tables of their own; a row that moves is a delete here and an insert there."""
    world = World(source, target)
    try:
        world.src("CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF p FOR VALUES FROM (0) TO (10);"
                  "CREATE TABLE high PARTITION OF p FOR VALUES FROM (10) TO (1000); CREATE PUBLICATION spate FOR TABLE p; INSERT INTO p SELECT g, 'v' FROM generate_series(1, 20) g")
        world.connector()
        tables = {name: {"from": f"public.{name}"} for name in ("low", "high")}
        same = [(f"SELECT * FROM {name}", f"SELECT * FROM team.{name}") for name in tables]
        world.sink(world.sink_file("team", tables))
        world.wait_equal(same)
        world.src("UPDATE p SET id = id + 100 WHERE id IN (3, 4, 15); UPDATE p SET v = 'w' WHERE id > 16; TRUNCATE low; INSERT INTO p VALUES (5, 'five')")
        world.src("CREATE TABLE top PARTITION OF p DEFAULT; UPDATE p SET id = id + 5000 WHERE id IN (5, 20)")
        world.wait_equal(same)
        moved = [m for m in world.messages() if m.get("table") == "top" and "n" in m]
        assert [(m["op"], m["key"]["id"]) for m in moved] == [("insert", 5005), ("insert", 5020)]
        assert not [m for m in world.messages() if m.get("table") == "p" and "n" in m]
        world.check_bus()
    finally:
        world.close()


def test_P38_generated_columns_that_are_published(source, target):
    """From 18 on a publication may hold stored generated columns; virtual ones never travel."""
    if source.version() < 180000:
        pytest.skip("needs PostgreSQL 18: no publication before has generated columns")
    world = World(source, target)
    try:
        world.src("CREATE TABLE g (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, thrice int GENERATED ALWAYS AS (a * 3) VIRTUAL, z text);"
                  "CREATE TABLE h (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, z text);"
                  "CREATE PUBLICATION spate FOR TABLE g, h (id, twice) WITH (publish_generated_columns = stored); INSERT INTO g SELECT i, i FROM generate_series(1, 5) i; INSERT INTO h VALUES (1, 1), (2, 2)")
        world.connector()
        world.sink(world.sink_file("team", {"g": {"from": "public.g"}, "h": {"from": "public.h"}}))
        same = [("SELECT id, a, twice, z FROM g", "SELECT * FROM team.g"), ("SELECT id, twice FROM h", "SELECT * FROM team.h")]
        world.wait_equal(same)
        world.src("UPDATE g SET a = 9 WHERE id = 1; UPDATE g SET id = 20 WHERE id = 2; DELETE FROM g WHERE id = 3; UPDATE h SET a = 5, z = 'z' WHERE id = 1; INSERT INTO g VALUES (6, NULL)")
        world.wait_equal(same)
        world.src("ALTER PUBLICATION spate SET (publish_generated_columns = none); UPDATE g SET a = 11 WHERE id = 4")
        versions = [sorted(m["after"]) for m in world.messages() if m.get("table") == "g" and m.get("after") and "n" in m]
        assert versions[0] == ["a", "id", "twice", "z"] and versions[-1] == ["a", "id", "z"]
    finally:
        world.close()


@pytest.mark.parametrize("away", [False, True])
def test_P55_a_publication_that_was_gone_for_a_moment(source, target, away):
    """From 18 on the server leaves out in silence what happens without the publication. It was made again: followers are
    told to take its tables anew, whether the connector was there or not."""
    if source.version() < 180000:
        pytest.skip("needs PostgreSQL 18: a server before refuses to decode without the publication")
    world = World(source, target)
    same = [("SELECT * FROM t", "SELECT * FROM team.t")]
    try:
        world.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 5) g; CREATE PUBLICATION spate FOR TABLE t")
        world.config["source"]["postgres"]["catalog_every"] = "1s"
        connector = world.connector()
        world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
        world.wait_equal(same)
        # What is not remembered yet cannot be missed.
        scratch.until(lambda: scratch.run(["grep", "-rqa", '"op":"storage"', world.bus["local"]["path"]], check=False).returncode == 0, "the table is remembered")
        if away:
            assert connector.stop() == 0
        world.src("DROP PUBLICATION spate")
        world.src("UPDATE t SET v = 'unheard' WHERE id = 1")
        world.src("CREATE PUBLICATION spate FOR TABLE t")
        if away:
            connector = world.connector()
        world.wait_equal(same)
        connector.wait_log("event=publication-changed")
    finally:
        world.close()


def test_a_publication_of_inserts_alone(source, target):
    """What it leaves out never reaches the bus, and the connector says so."""
    world = World(source, target)
    try:
        world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION spate FOR TABLE t WITH (publish = 'insert')")
        connector = world.connector()
        connector.wait_log("about=publication|finding=publication|publish = 'insert, update, delete, truncate'")
        world.src("INSERT INTO t VALUES (1), (2); UPDATE t SET id = 3 WHERE id = 1; DELETE FROM t; INSERT INTO t VALUES (9)")
        assert [(m["op"], m["key"]["id"]) for m in world.messages() if m.get("table") == "t" and "n" in m] == [("insert", 1), ("insert", 2), ("insert", 9)]
    finally:
        world.close()


def test_F33_prepared_transactions(target):
    """PREPARE, a restart of the server, COMMIT PREPARED: applied once, when it was committed; what is rolled back never."""
    source = Cluster("prepared", max_prepared_transactions=5, fsync=True).start()
    world = World(source, target)
    try:
        world.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'first')")
        world.connector()
        world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
        same = [("SELECT * FROM t", "SELECT * FROM team.t")]
        world.wait_equal(same)
        for name, rows in (("kept", "INSERT INTO t VALUES (2, 'kept'); SAVEPOINT a; INSERT INTO t VALUES (3, 'undone'); ROLLBACK TO a; UPDATE t SET v = 'kept' WHERE id = 1"),
                           ("undone", "INSERT INTO t VALUES (4, 'undone')")):
            connection = source.connect(world.db, autocommit=False)
            with connection.cursor() as cursor:
                cursor.execute(rows)
                cursor.execute(f"PREPARE TRANSACTION '{name}'")
            connection.close()
        world.src("INSERT INTO t VALUES (5, 'meanwhile')")
        world.wait_equal(same)
        source.restart()
        world.src("INSERT INTO t VALUES (6, 'after the restart')")
        world.src("COMMIT PREPARED 'kept'")
        world.src("ROLLBACK PREPARED 'undone'")
        world.wait_equal(same)
        assert world.tgt("SELECT id, v FROM team.t ORDER BY id") == [(1, "kept"), (2, "kept"), (5, "meanwhile"), (6, "after the restart")]
        world.check_bus()
    finally:
        world.close()
        source.destroy()
