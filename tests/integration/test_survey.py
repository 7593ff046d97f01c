"""What Postgres does not send is said in the stream (P31-P34, P47, P51, P55-P57, F19, F20, F38, F40): `stale`, once for
each cause, also for what happened while no connector was there; and nothing where nothing was missed."""
import json

import pytest

from tests.support import scratch
from tests.support.world import World

EVERY = "100ms"


def schemas(world):
    """What stands on _schemas, as far as it can be read without waiting for more."""
    process = world.spawn("schemas", "tap", "-c", world.connector_file(), "--stream", world.stream + "._schemas", "--from", "oldest")
    try:
        scratch.until(lambda: '"op":"epoch"' in process.text(), "the epoch's record", 10)
        return [json.loads(line) for line in process.text().splitlines() if line.startswith("{") and line.endswith("}")]
    finally:
        process.kill()


class Ear:
    """Everything that is said of staleness, by a tap that stays."""

    def __init__(self, world, **postgres):
        self.world, self.done = world, 0
        world.config["source"]["postgres"].update({"catalog_every": EVERY, **postgres})
        self.tap = None
        world.src("CREATE TABLE sentinel (id int PRIMARY KEY, v int)")

    def start(self, **more):
        self.connector = self.world.connector(**more)
        # A baseline is no news: it has to be there before anything happens.
        scratch.until(self.baseline, lambda: "the baseline is written: " + self.connector.tail(), 30)
        if not self.tap:
            self.tap = self.world.spawn("tap", "tap", "-c", self.world.connector_file(), "--from", "oldest", "--op", "stale")
        return self.connector

    def records(self):
        return [r for r in schemas(self.world) if r["op"] == "storage"]

    def baseline(self):
        return any(r["table"] == "" for r in self.records())

    def said(self):
        return [json.loads(line) for line in self.tap.text(whole=True).splitlines() if line.startswith("{")]

    def heard(self, seconds=20):
        """What was said up to the sentinel's own word: (table, why, columns), in order."""
        self.world.src("ALTER TABLE sentinel ALTER v TYPE int USING v + 0")

        def word():
            return any(m["table"] == "sentinel" for m in self.said()[self.done:])

        scratch.until(word, lambda: f"the sentinel's stale; said: {self.said()[self.done:]}\n{self.connector.tail()}", seconds)
        all_said = self.said()
        news = [m for m in all_said[self.done:] if m["table"] != "sentinel"]
        self.done = len(all_said)
        return sorted((f"{m['schema']}.{m['table']}", m["why"], *m.get("columns", [])) for m in news)

    def after(self, sql):
        for statement in sql if isinstance(sql, list) else [sql]:
            self.world.src(statement)
        return self.heard()


@pytest.fixture
def ear(source):
    world = World(source, None)
    yield Ear(world)
    world.close()


SET_UP = """
CREATE TABLE t (id int PRIMARY KEY, v int, w varchar(10), gone text);
INSERT INTO t SELECT g, g, 'w', 'g' FROM generate_series(1, 50) g;
CREATE TABLE p (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3);
INSERT INTO p SELECT g, 1 + g % 3, 'x' FROM generate_series(1, 30) g;
"""

# (what is done, what followers are told). ALTER TYPE touches the rows of all columns behind the one it is about, and a
# rewrite those of columns whose default it writes out: more may be named then than was changed (ROUGH), never less.
ROUGH = "and perhaps others"
NEWS = [
    ("ALTER TABLE t ADD COLUMN a int DEFAULT 7", [("public.t", "columns", "a")]),
    ("ALTER TABLE t ADD COLUMN b float DEFAULT random(), ADD COLUMN c int DEFAULT 5", [("public.t", "columns", "b", "c", ROUGH)]),
    ("ALTER TABLE t ALTER v TYPE int USING v + 1", [("public.t", "columns", "v", ROUGH)]),
    ("ALTER TABLE t ALTER v TYPE bigint", [("public.t", "columns", "v", ROUGH)]),
    ("ALTER TABLE t RENAME COLUMN a TO other", [("public.t", "columns", "other")]),
    ("CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE t ADD COLUMN m mood, ADD COLUMN ms mood[]", []),
    ("ALTER TYPE mood ADD VALUE 'glad'", []),
    ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", [("public.t", "columns", "m", "ms")]),
    ("CREATE TYPE pair AS (x int, y text); CREATE TYPE nest AS (a pair[], m mood); ALTER TABLE t ADD COLUMN pr pair, ADD COLUMN deep nest", []),
    ("ALTER TYPE pair ADD ATTRIBUTE z int", [("public.t", "columns", "pr", "deep")]),  # rows print otherwise, and are not sent
    ("ALTER TYPE pair RENAME ATTRIBUTE y TO yy", []),
    ("ALTER TYPE pair DROP ATTRIBUTE x", [("public.t", "columns", "pr", "deep")]),
    ("CREATE TYPE wide AS (" + ", ".join(f"a{i} int" for i in range(300)) + ")", []),
    ("ALTER TYPE mood ADD VALUE 'sadder'", []),
    (["ALTER TABLE t DROP COLUMN gone", "ALTER TABLE t ADD COLUMN gone text"], []),  # each seen by itself, or:
    ("ALTER TABLE t DROP COLUMN w, ADD COLUMN w varchar(10)", [("public.t", "columns", "w")]),
    ("VACUUM FULL t", [("public.t", "rewritten")]),
    ("CLUSTER t USING t_pkey", [("public.t", "rewritten")]),
    ("ALTER TABLE p ADD COLUMN d int DEFAULT 7", [("public.p", "columns", "d")]),
    ("ALTER TABLE p ALTER v TYPE text USING v || 'y'", [("public.p", "columns", "v", ROUGH)]),
    ("CREATE TABLE p4 PARTITION OF p FOR VALUES IN (4); INSERT INTO p VALUES (100, 4, 'x')", []),
    ("CREATE TABLE p5 (id int NOT NULL, k int NOT NULL, v text, d int); INSERT INTO p5 VALUES (101, 5, 'x'); ALTER TABLE p ATTACH PARTITION p5 FOR VALUES IN (5)",
     [("public.p", "partitions")]),
    (["ALTER TABLE p DETACH PARTITION p5", "DROP TABLE p5"], [("public.p", "partitions")]),
    ("DROP TABLE p3", [("public.p", "partitions")]),
    ("TRUNCATE p2", [("public.p", "rewritten")]),
    ("TRUNCATE p", []),
    ("TRUNCATE t", []),
    ("BEGIN; TRUNCATE t; INSERT INTO t (id, v) VALUES (1, 1); COMMIT", []),
]

# None of it changes a row that a follower has, or every such change is sent.
QUIET = [
    "ALTER TABLE t ADD COLUMN plain int", "ALTER TABLE t ALTER plain SET DEFAULT 8", "ALTER TABLE t ALTER w TYPE text",
    "ANALYZE", "VACUUM t", "CREATE INDEX ON t (v)", "REINDEX TABLE t", "GRANT SELECT ON t TO PUBLIC", "GRANT SELECT (v) ON t TO PUBLIC",
    "COMMENT ON TABLE t IS 'x'; COMMENT ON COLUMN t.v IS 'y'", "ALTER TABLE t SET (fillfactor = 50, autovacuum_enabled = false)",
    "ALTER TABLE t ALTER v SET STATISTICS 50", "ALTER TABLE t ADD CHECK (v > -1000000)", "ALTER TABLE t ADD UNIQUE (v)",
    "ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (v) REFERENCES t (v) NOT VALID", "ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE t ENABLE TRIGGER ALL",
"ALTER TABLE t ALTER v SET NOT NULL; ALTER TABLE t ALTER v DROP NOT NULL", "ALTER TABLE t DROP COLUMN plain",
    "ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t REPLICA IDENTITY DEFAULT", "ALTER TABLE t CLUSTER ON t_pkey",
    "INSERT INTO t (id, v) SELECT g, g FROM generate_series(1000, 1100) g; DELETE FROM t WHERE id > 1050", "ALTER TABLE t OWNER TO CURRENT_USER",
    "CREATE TEMP TABLE mine (id int)", "CREATE SCHEMA apart; CREATE TABLE apart.x (id int)", "CREATE TABLE p6 PARTITION OF p FOR VALUES IN (6)",
]


def fits(told, want):
    return len(told) == len(want) and all(t == w or (w[-1] == ROUGH and t[:2] == w[:2] and set(w[2:-1]) <= set(t[2:]))
                                          for t, w in zip(told, want))


def test_every_cause_is_said_once(ear):
    """P32, P51, F38, F40: by what was done, while a connector streams."""
    ear.world.src(SET_UP)
    ear.start()
    assert ear.heard() == []
    wrong = [(sql, told, want) for sql, want in NEWS if not fits(told := ear.after(sql), want)]
    # A drop and an add that are seen apart leave old values under the name: either is right, silence is not.
    wrong = [w for w in wrong if not (isinstance(w[0], list) and not w[2] and w[1] == [("public.t", "columns", "gone")])]
    assert not wrong, wrong
    for sql in QUIET:
        ear.world.src(sql)
    assert ear.heard() == []
    # What is remembered is one record for each table, and bears no row and no name of a column.
    assert {r["table"] for r in ear.records()} >= {"", "t", "p", "sentinel"}
    assert "other" not in json.dumps(ear.records())


def test_what_happened_while_no_connector_was_there(ear):
    """The same, all at once, after a stop; and nothing is said twice by the next start."""
    ear.world.src(SET_UP + "CREATE TABLE q (id int PRIMARY KEY, v int); CREATE TABLE r (id int PRIMARY KEY); CREATE TABLE s (id int PRIMARY KEY)")
    ear.start()
    assert ear.heard() == []
    assert ear.connector.stop() == 0
    ear.world.src("ALTER TABLE t ADD COLUMN a int DEFAULT 7; TRUNCATE r; CREATE TABLE p4 PARTITION OF p FOR VALUES IN (4); DROP TABLE s; CREATE TABLE s (id int PRIMARY KEY)")
    ear.world.src("ALTER PUBLICATION spate ADD TABLE s")
    ear.world.src("ALTER TABLE p DETACH PARTITION p1; DROP TABLE p1")
    ear.world.src("VACUUM FULL q")
    ear.start()
    want = [("public.p", "partitions"), ("public.q", "rewritten"), ("public.s", "recreated"), ("public.t", "columns", "a")]
    assert ear.heard() == want
    assert ear.connector.stop() == 0
    ear.start()
    assert ear.heard() == []
    # A new epoch that goes on has the same followers; one that breaks has none, and begins with a baseline.
    assert ear.connector.stop() == 0
    ear.world.src("ALTER TABLE q ADD COLUMN a int DEFAULT 7")
    ear.connector = ear.world.connector("--new-epoch")
    assert ear.heard() == [("public.q", "columns", "a")]


def test_a_publication_of_ours_follows_the_globs(ear):
    """F20, P47, P56: a table that is made later is added, unless that would break the application's UPDATE."""
    ear.start()
    ear.world.src("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1); CREATE TABLE keyless (id int); CREATE SCHEMA apart; CREATE TABLE apart.x (id int PRIMARY KEY)")
    ear.connector.wait_log('event=table-added table="public.later"')
    ear.connector.wait_log('event=table-left-out .*keyless.* ADD PRIMARY KEY')
    assert ear.heard() == [("public.later", "published")]
    assert ear.world.src("SELECT tablename FROM pg_publication_tables WHERE pubname = 'spate' ORDER BY 1") == [("later",), ("sentinel",)]
    ear.world.src("ALTER TABLE keyless ADD PRIMARY KEY (id)")
    ear.connector.wait_log('event=table-added table="public.keyless"')
    assert ear.connector.text().count("event=table-left-out") == 1
    assert ear.heard() == [("public.keyless", "published")]
    # One that was found is left as it is.
    ear.world.src("COMMENT ON PUBLICATION spate IS 'somebody else'; CREATE TABLE other (id int PRIMARY KEY)")
    assert ear.heard() == [] and ear.heard() == []
    assert ear.world.src("SELECT 1 FROM pg_publication_tables WHERE tablename = 'other'") == []


def test_tables_come_and_go(source):
    """P31, P33, P56, F20: added, removed, renamed, unlogged, and another filter; each said within a moment."""
    world = World(source, None)
    ear = Ear(world, create=False)
    world.src("CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (1, 1); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1); CREATE TABLE c (id int PRIMARY KEY)")
    world.src("CREATE PUBLICATION spate FOR TABLE a, sentinel")
    world.src("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [world.slot()])
    ear.start()
    assert ear.after("ALTER PUBLICATION spate ADD TABLE b") == [("public.b", "published")]
    ear.connector.wait_log('event=table-added table="public.b"')
    # Its schema is there, and every row from now on.
    assert any(r["op"] == "schema" and r["table"] == "b" for r in schemas(world))
    assert ear.after("ALTER PUBLICATION spate DROP TABLE b") == []
    assert 'ALTER PUBLICATION \\"spate\\" ADD TABLE \\"public\\".\\"b\\"' in ear.connector.wait_log('event=table-removed table="public.b".*').group(0)
    assert ear.after("ALTER PUBLICATION spate ADD TABLE b") == [("public.b", "published")]
    assert ear.after(["ALTER PUBLICATION spate DROP TABLE b; ALTER PUBLICATION spate ADD TABLE b"]) == [("public.b", "published")]
    assert ear.after("ALTER TABLE b RENAME TO bb") == [("public.bb", "published")]
    ear.connector.wait_log('event=table-renamed table="public.b"')
    assert ear.after("CREATE SCHEMA elsewhere; ALTER TABLE bb SET SCHEMA elsewhere") == [("elsewhere.bb", "published")]
    assert ear.after("ALTER SCHEMA elsewhere RENAME TO \"else.where\"") == [("else.where.bb", "published")]
    assert ear.after(["DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY); ALTER PUBLICATION spate ADD TABLE a"]) == [("public.a", "recreated")]
    if source.version() >= 150000:
        assert ear.after("ALTER PUBLICATION spate SET TABLE a WHERE (id > 5), sentinel") == [("public.a", "published")]
        assert ear.after("ALTER PUBLICATION spate SET TABLE a WHERE (id > 6), sentinel") == [("public.a", "published")]
        assert ear.after("ALTER PUBLICATION spate SET TABLE a WHERE (id > 6), sentinel") == []
    # F19: it is dropped and made again.
    world.src("DROP PUBLICATION spate")
    ear.connector.wait_log("event=publication-gone")
    world.close()


def test_everything_is_published(source):
    """P33: FOR ALL TABLES, where a table may be unlogged for a while, or for a moment."""
    world = World(source, None)
    ear = Ear(world, create=False)
    world.src("CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION spate FOR ALL TABLES")
    world.src("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [world.slot()])
    ear.start()
    assert ear.after("ALTER TABLE a SET UNLOGGED") == []
    assert 'ALTER TABLE \\"public\\".\\"a\\" SET LOGGED' in ear.connector.wait_log('event=table-unlogged table="public.a".*').group(0)
    assert ear.after("INSERT INTO a VALUES (1); ALTER TABLE a SET LOGGED") == [("public.a", "logged")]
    assert ear.after(["ALTER TABLE a SET UNLOGGED; INSERT INTO a VALUES (2); ALTER TABLE a SET LOGGED"]) == [("public.a", "rewritten")]
    assert ear.after("CREATE TABLE later (id int PRIMARY KEY)") == [("public.later", "published")]
    # Partitions are published by themselves here; one that was made in its place never had a row that was not sent.
    assert ear.after("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)") == []
    assert ear.after("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1)") == []
    assert ear.connector.stop() == 0
    # What a nightly VACUUM FULL does may be only logged.
    ear.world.config["source"]["postgres"]["rewrites"] = "say"
    ear.start()
    assert ear.after("VACUUM FULL a") == []
    ear.connector.wait_log('event=table-rewritten table="public.a"')
    assert ear.after("ALTER TABLE a ADD COLUMN x float DEFAULT random()") == [("public.a", "columns", "x")]
    # The slot is the same, and F19: everything is another publication's.
    world.src("DROP PUBLICATION spate; CREATE PUBLICATION spate FOR ALL TABLES")
    assert {t for t, why in ear.heard() if why == "published"} >= {"public.a", "public.later", "public.p1"}
    world.close()
