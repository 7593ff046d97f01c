"""DDL over the whole bridge (P30-P39, T21-T25, F35-F40, F67): what a sink does by itself, what it stops for and goes on
after, and what `stale` in the stream, or a row that is missing, makes it ask for."""
import json
import os
import random
import re
import subprocess

import pytest

from tests.support import scratch

REFUSED, FENCED = 4, 3
ALL = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"


@pytest.fixture(scope="module")
def bus_put():
    path = os.path.join(scratch.ROOT, "build", "release", "tests", "support", "bus_put")
    subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, os.path.relpath(path, scratch.ROOT)], check=True)
    return path


def equal(world, *tables, where="", seconds=30):
    """Every column that the source has now; what it dropped stays in the target and is not looked at."""
    pairs = []
    for table in tables:
        columns = world.src(ALL, [f"public.{table}"])[0][0]
        pairs.append((f"SELECT {columns} FROM public.{table}{where}", f"SELECT {columns} FROM team.{table}"))
    world.wait_equal(pairs, seconds)


def types(world, table):
    return dict(world.tgt("SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
                          [f"team.{table}"]))


def start(world, tables, mode="auto", **more):
    world.file = world.sink_file("team", {t: {"from": f"public.{t}"} for t in tables} if not isinstance(tables, dict) else tables, snapshot=mode, **more)
    world.team = world.sink(world.file)
    return world.team


def again(world):
    """The sink once more; it has to have stopped."""
    world.team = world.sink(world.file)
    return world.team


def statement(sink):
    """The ALTER that a sink asks for when it stops."""
    assert sink.wait_exit() == REFUSED, sink.tail()
    line = sink.wait_log(r"event=sink-stopped[^\n]*").group(0).replace('\\"', '"')
    return re.search(r"ALTER T[^;]*", line).group(0)


def put_stale(world, bus_put, table, why, columns=None):
    """As the connector says it, exactly where the sink stands: its last change was one of the table's."""
    assert world.connector_process.stop() == 0
    n, epoch, pos = world.tgt("SELECT n, epoch, pos FROM team.spate_sink")[0]
    v = world.tgt("SELECT fitted FROM team.spate_table WHERE table_name = %s", [table])[0][0]
    line = {"spate": 1, "op": "stale", "at": n, "epoch": epoch, "schema": "public", "table": table, "end": pos.split(".")[0],
            "ts": "2026-11-21T09:14:03.123456Z", "source": world.stream, "v": v, "why": why}
    if columns:
        line["columns"] = columns
    local = world.bus["local"]
    scratch.run_with_input([bus_put, local["path"], local["hot"], world.stream], (json.dumps(line, separators=(",", ":")) + "\n").encode())
    world.connector()


def test_a_sink_follows_what_it_can(world):
    """T21, F37: columns added, dropped, renamed and widened, in transactions and between them; values that no message
    carried (P32, F38) come by themselves. Nothing has to be typed."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v varchar(5), n int, must int NOT NULL, f real, d numeric(6,2)); "
              "INSERT INTO t SELECT g, 'v' || g, g, g, g, g FROM generate_series(1, 50) g")
    world.connector()
    sink = start(world, ["t"])
    equal(world, "t")
    world.tgt("ALTER TABLE team.t ALTER COLUMN must SET NOT NULL")
    # The team alters its own table under prepared statements (T23).
    world.tgt("ALTER TABLE team.t ALTER COLUMN n TYPE bigint, ADD COLUMN own text")
    world.src("INSERT INTO t VALUES (1000, 'z', 1, 1, 1, 1); UPDATE t SET n = n + 1 WHERE id < 5")
    equal(world, "t")
    # In a transaction: the shape changes between two changes of it (P35).
    world.src("BEGIN; INSERT INTO t VALUES (51, 'a', 1, 1, 1, 1); ALTER TABLE t ADD COLUMN late text; INSERT INTO t VALUES (52, 'b', 1, 1, 1, 1, 'here'); "
              "ALTER TABLE t DROP COLUMN must; INSERT INTO t VALUES (53, 'c', 1, 1, 1, 'there'); COMMIT")
    equal(world, "t")
    # What existed has a default now, and no message says so.
    world.src("ALTER TABLE t ADD COLUMN c int DEFAULT 7, ADD COLUMN r float8 DEFAULT random(); INSERT INTO t (id) VALUES (54)")
    equal(world, "t")
    world.src("ALTER TABLE t ALTER COLUMN v TYPE varchar(20), ALTER COLUMN n TYPE bigint, ALTER COLUMN f TYPE float8, ALTER COLUMN d TYPE numeric(12,2), "
              "ALTER COLUMN id TYPE bigint; INSERT INTO t (id, v, n, d) VALUES (5000000000, 'longer than five', 5000000000, 1234567.89)")
    equal(world, "t")
    assert types(world, "t") == {**types(world, "t"), "id": "bigint", "n": "bigint", "v": "character varying(20)", "f": "double precision", "d": "numeric(12,2)"}
    # A rename is another column, and the old one stays as it is (P34).
    world.src("ALTER TABLE t RENAME COLUMN n TO m; UPDATE t SET m = m + 1 WHERE id = 1")
    equal(world, "t")
    assert {"n", "m", "must"} <= types(world, "t").keys()
    assert sink.running() and not re.search("level=error", sink.text()), sink.tail()
    # Away while it happens: what is queued is of three versions.
    assert sink.stop() == 0
    world.src("INSERT INTO t (id, m) VALUES (60, 1); ALTER TABLE t DROP COLUMN m; INSERT INTO t (id) VALUES (61)")
    world.connector_process.stop()
    world.src("ALTER TABLE t ADD COLUMN o text; INSERT INTO t (id, o) VALUES (62, 'o'); ALTER TABLE t ALTER COLUMN v TYPE text; INSERT INTO t (id, v) VALUES (63, repeat('x', 30))")
    world.connector()
    again(world)
    equal(world, "t")
    assert types(world, "t")["v"] == "text"


def test_what_cannot_be_followed(world):
    """T21, F67: the sink stops with a statement; once it was run, everything comes again. A version that is past does
    not hold it up, and what it wrote before is in the target."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, '1'), (2, '2')")
    world.connector()
    sink = start(world, ["t"])
    equal(world, "t")
    assert sink.stop() == 0
    world.src("INSERT INTO t VALUES (3, '3'); ALTER TABLE t ALTER COLUMN v TYPE int USING v::int; INSERT INTO t VALUES (4, 4)")
    sink = again(world)
    world.tgt(statement(sink))
    sink = again(world)
    equal(world, "t")
    sink.wait_log("event=version-passed-by")
    # While it runs.
    world.src("INSERT INTO t VALUES (5, 5)")
    world.src("ALTER TABLE t ALTER COLUMN v TYPE text USING 'v' || v; INSERT INTO t VALUES (6, 'six')")
    alter = statement(sink)
    assert world.tgt("SELECT count(*) FROM team.t WHERE id = 5") == [(1,)]
    world.tgt(alter)
    sink = again(world)
    equal(world, "t")
    # Another key: the statement is one that can be run.
    world.src("ALTER TABLE t ADD COLUMN other int; UPDATE t SET other = id; ALTER TABLE t DROP COLUMN id, ADD PRIMARY KEY (other); INSERT INTO t VALUES ('x', 100)")
    world.tgt(statement(sink))
    sink = again(world)
    equal(world, "t")
    # Where there is no row nothing can be lost by another type.
    world.src("TRUNCATE t")
    equal(world, "t")
    world.src("ALTER TABLE t ALTER COLUMN v TYPE date USING NULL; INSERT INTO t VALUES ('2026-11-21', 1)")
    equal(world, "t")
    world.src("TRUNCATE t")
    equal(world, "t")
    world.src("ALTER TABLE t ALTER COLUMN v TYPE text; INSERT INTO t VALUES ('text', 1)")
    equal(world, "t")
    # The team took a column away: that is not the source's doing, and what it held would be NULL.
    assert sink.stop() == 0
    world.tgt("ALTER TABLE team.t DROP COLUMN v")
    assert 'ADD COLUMN "v" text' in statement(again(world))


def test_a_table_of_another_role_is_left_alone(world):
    """T21: its owner alters it, as the sink says."""
    role = f"{world.name}_team"
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, '1')")
    world.tgt(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {world.db} TO {role}; CREATE SCHEMA team AUTHORIZATION {role}; "
              f"CREATE TABLE team.t (id int PRIMARY KEY, v text); GRANT ALL ON team.t TO {role}")
    try:
        world.connector()
        world.file = world.sink_file("team", {"t": {"from": "public.t"}}, url=world.target.url(world.db, user=role))
        sink = again(world)
        equal(world, "t")
        world.src("ALTER TABLE t ADD COLUMN w int DEFAULT 3; INSERT INTO t VALUES (2, '2', 2)")
        world.tgt(statement(sink))
        again(world)
        equal(world, "t")
    finally:
        world.stop_all()
        world.tgt(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_locks_are_waited_for_and_named(world):
    """T22, T25: whoever holds the table is named; readers are not held up meanwhile; then it goes on."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)")
    world.connector()
    sink = start(world, ["t"])
    equal(world, "t")
    holder = world.target.connect(world.db)
    try:
        cursor = holder.cursor()
        cursor.execute("BEGIN; SET application_name = 'a long report'; SELECT * FROM team.t")
        world.src("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (2, 2, 2)")
        sink.wait_log("event=follow-waits.*a long report")
        cursor.execute("COMMIT")
    finally:
        holder.close()
    equal(world, "t")


def test_labels_of_an_enum(world):
    """T21: a label that the target's type lacks is added; the text of one that was renamed comes again; arrays, too."""
    kinds = "CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"'); CREATE TYPE size AS ENUM ('s', 'm')"
    world.src(kinds + "; CREATE TABLE t (id int PRIMARY KEY, m mood, s size[]); INSERT INTO t VALUES (1, 'sad', '{s,m}')")
    world.tgt(kinds)
    world.connector()
    sink = start(world, ["t"])
    equal(world, "t")
    assert types(world, "t") == {"id": "integer", "m": "mood", "s": "size[]"}, types(world, "t")
    world.src("ALTER TYPE mood ADD VALUE 'o, \\ h' BEFORE 'sad'; ALTER TYPE size ADD VALUE 'x l'")
    world.src("INSERT INTO t SELECT g, (ARRAY['sad', 'o, \\ h']::mood[])[1 + g % 2], '{{s,\"x l\"},{m,NULL}}' FROM generate_series(2, 40) g")
    equal(world, "t")
    world.src("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
    world.src("INSERT INTO t VALUES (50, 'blue')")
    equal(world, "t")
    assert sink.running()
    assert sink.text().count("event=label-added") == 3, sink.text()


def test_stale(world, bus_put):
    """What no message carries (P32, P33): everything is asked for again where it concerns the table, once for each time;
    a sink that does not ask by itself says with which command."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int, w int); INSERT INTO t SELECT g, g FROM generate_series(1, 20) g")
    world.connector()
    sink = start(world, {"t": {"from": "public.t"}, "narrow": {"from": "public.t", "columns": {"id": "id", "v": "v"}, "key": ["id"]}}, mode="manual")
    world.src("INSERT INTO t VALUES (21, 21)")
    world.wait_rows("SELECT id FROM team.t UNION ALL SELECT id FROM team.narrow", [(21,), (21,)])
    put_stale(world, bus_put, "t", "columns", ["w"])
    sink.wait_log("event=table-stale.*table=team.t .*why=columns.*spate snapshot -c .* --sink team")
    assert world.tgt("SELECT table_name, outdated, snapshotted FROM team.spate_table ORDER BY 1") == [("narrow", None, False), ("t", "columns", False)]
    # It is said again at a start, and the command does what it says. From then on the tables hold what exists.
    assert sink.stop() == 0
    sink = again(world)
    sink.wait_log("event=table-stale.*table=team.t ")
    world.run("snapshot", "-c", world.file, "--sink", "team", check=0)
    sink.wait_log("event=snapshot-finished")
    equal(world, "t")
    assert world.tgt("SELECT table_name, outdated, snapshotted FROM team.spate_table ORDER BY 1") == [("narrow", None, True), ("t", None, True)]
    # A row that must be there, and is not: it may have been lost before `stale` tells of it (P33). What asks by itself
    # goes on, and says it aloud.
    assert sink.stop() == 0
    world.file = world.sink_file("team", {"t": {"from": "public.t"}}, snapshot="auto")
    sink = again(world)
    sink.wait_log("event=streaming")
    world.tgt("DELETE FROM team.t WHERE id IN (2, 3)")
    world.src("DELETE FROM t WHERE id = 2")
    sink.wait_log("level=error event=row-missing")
    sink.wait_log("event=snapshot-finished")
    equal(world, "t")
    # Whoever goes on deleting there is another writer: it stops, and what it says to do is the way out.
    world.tgt("DELETE FROM team.t WHERE id = 1")
    world.src("DELETE FROM t WHERE id = 1")
    assert sink.wait_exit() == FENCED
    command = sink.wait_log(r"event=sink-stopped.*`spate (sink -c \S+ --restart team)`").group(1).split()
    world.team = sink = world.spawn("sink", *command)
    sink.wait_log("event=snapshot-finished")
    equal(world, "t")


def test_tables_that_come_late_and_go(world):
    """A table that is not published yet is waited for, and named; the others go on. One that comes is asked for."""
    world.src("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    world.config["source"]["postgres"]["catalog_every"] = "1s"
    connector = world.connector()
    sink = start(world, ["a", "b"])
    sink.wait_log("event=waiting-for-table.*public.b")
    equal(world, "a")
    world.src("CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b SELECT g, 'before' FROM generate_series(1, 100) g")
    world.src("ALTER PUBLICATION spate ADD TABLE b")
    world.src("INSERT INTO b VALUES (0, 'after'); UPDATE b SET v = 'x' WHERE id = 7; INSERT INTO a VALUES (2)")
    equal(world, "a", "b")
    assert sink.running() and "level=error" not in sink.text()
    connector.wait_log(r'event=stale table="public.b" .*\(published\)')  # what comes and goes between two looks is not missed
    # Another table under its name, with other columns (P31): what the old one had is gone.
    world.src("DROP TABLE b; CREATE TABLE b (id int PRIMARY KEY, v text, w int); ALTER PUBLICATION spate ADD TABLE b")
    world.src("INSERT INTO b VALUES (200, 'new', 3)")
    equal(world, "b")
    connector.wait_log(r'event=stale table="public.b" .*\(recreated\)')
    # It goes.
    world.src("DROP TABLE b")
    sink.wait_log("event=source-table-gone.*public.b")
    # A new sink asks for what is not there just now.
    third = world.sink(world.sink_file("third", {"a": {"from": "public.a"}, "b": {"from": "public.b"}}), name="third")
    third.wait_log("event=streaming")
    world.wait_rows("SELECT id FROM third.a ORDER BY 1", [(1,), (2,)])
    world.src("CREATE TABLE b (id int PRIMARY KEY, v text, w int); INSERT INTO b VALUES (300, 'third', 3)")
    world.wait_rows("SELECT id FROM third.b", [(300,)])
    assert third.running() and "level=error" not in third.text()
    # All of a sink's tables may be late.
    other = world.sink(world.sink_file("other", {"c": {"from": "public.c"}}), name="other")
    other.wait_log("event=waiting-for-table.*public.c")
    world.src("CREATE TABLE c (id int PRIMARY KEY); ALTER PUBLICATION spate ADD TABLE c; INSERT INTO c VALUES (1)")
    world.wait_rows("SELECT * FROM other.c", [(1,)])


def test_versions_and_names(world):
    """P30, P34, P36, P39: a schema is published when the table's shape is another one, and not otherwise; numbers outlive
    restarts. A table under another name is another table."""

    def published(process=None):
        return re.findall(r'event=schema table="([^"]*)" v=(\d+)', world.connector_process.text(whole=True))

    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    start(world, ["t", "u"])
    world.src("INSERT INTO t VALUES (1, 'one')")
    equal(world, "t")
    one = [("public.t", "1")]
    assert published() == one
    for quiet in ("TRUNCATE t", "CREATE INDEX ON t (md5(v))", "COMMENT ON TABLE t IS 'x'", "ALTER TABLE t ALTER COLUMN v SET DEFAULT 'd'", "ANALYZE t",
                  "ALTER TABLE t ALTER COLUMN v SET STORAGE EXTERNAL", "CREATE TABLE n (LIKE t)"):
        world.src(quiet)
        world.src("INSERT INTO t VALUES ((SELECT 1 + coalesce(max(id), 1) FROM t), repeat('x', 3000))")
    equal(world, "t")
    assert published() == one
    world.src("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (100, 'a', 1)")
    equal(world, "t")
    for identity in ("FULL", "DEFAULT"):
        world.src(f"ALTER TABLE t REPLICA IDENTITY {identity}")
        world.src("UPDATE t SET id = id + 1000 WHERE id = (SELECT max(id) FROM t); DELETE FROM t WHERE id = (SELECT min(id) FROM t); UPDATE t SET w = 3")
        equal(world, "t")
    two = one + [("public.t", "2"), ("public.t", "3"), ("public.t", "2")]
    assert published() == two
    assert world.connector_process.stop() == 0
    world.connector()
    world.src("INSERT INTO t VALUES (200, 'b', 2)")
    equal(world, "t")
    assert published() == two
    # Another name, then the old one again: nothing of one is mixed into the other.
    world.src("ALTER TABLE t RENAME TO u")
    world.src("INSERT INTO u VALUES (300, 'c', 3)")
    equal(world, "u")
    world.src("CREATE SCHEMA away; ALTER TABLE u SET SCHEMA away; INSERT INTO away.u VALUES (400, 'd', 4)")
    world.src("ALTER TABLE away.u SET SCHEMA public; ALTER TABLE u RENAME TO t; UPDATE t SET w = 5")
    equal(world, "t")
    world.check_bus()


class Storm:
    """Statements that a team runs while it works; every one of them leaves something that a sink can follow."""

    def __init__(self, world, seed):
        self.world, self.random, self.number = world, random.Random(seed), 0
        self.small, self.spare = [], []  # columns of type int; and (column, type) of others

    def ddl(self):
        what = self.random.choice(["add", "constant", "volatile", "drop", "rename", "widen", "identity", "truncate", "rewrite", "again", "inside"])
        self.number += 1
        new = f"c{self.number}"
        if what in ("add", "inside"):
            self.small.append(new)
            add = f"ALTER TABLE t ADD COLUMN {new} int"
            return add if what == "add" else f"BEGIN; {self.dml()}; {add}; {self.dml()}; COMMIT"
        if what in ("constant", "volatile"):
            self.spare.append((new, "float8"))
            return f"ALTER TABLE t ADD COLUMN {new} float8 DEFAULT {'1.5' if what == 'constant' else 'random()'}"
        if what == "rewrite":
            return "ALTER TABLE t ALTER COLUMN v TYPE text USING v || '.'"
        if what == "truncate" and self.random.random() < 0.7 or what in ("drop", "rename", "again") and not self.spare or what == "widen" and not self.small:
            return self.dml()
        if what == "widen":
            column = self.small.pop()
            self.spare.append((column, "bigint"))
            return f"ALTER TABLE t ALTER COLUMN {column} TYPE bigint; UPDATE t SET {column} = 5000000000 WHERE id % 7 = 1"
        if what == "identity":
            return f"ALTER TABLE t REPLICA IDENTITY {self.random.choice(['FULL', 'DEFAULT'])}"
        if what == "truncate":
            return "TRUNCATE t"
        column, kind = self.spare.pop(self.random.randrange(len(self.spare)))
        if what == "drop":
            return f"ALTER TABLE t DROP COLUMN {column}"
        self.spare.append((new if what == "rename" else column, kind))
        if what == "rename":
            return f"ALTER TABLE t RENAME COLUMN {column} TO {new}"
        return f"ALTER TABLE t DROP COLUMN {column}, ADD COLUMN {column} {kind}"

    def dml(self):
        key = self.random.randrange(1, 400)
        return self.random.choice([
            f"INSERT INTO t (id, v) SELECT g, repeat(md5(g::text), {self.random.choice([1, 100])}) FROM generate_series({key}, {key + 20}) g ON CONFLICT (id) DO UPDATE SET v = 'again'",
            f"UPDATE t SET k = k + 1 WHERE id > {key}", f"DELETE FROM t WHERE id BETWEEN {key} AND {key + 5}",
            f"UPDATE t SET id = id + 1000 WHERE id BETWEEN {key} AND {key + 3} AND id < 1000 AND NOT EXISTS (SELECT FROM t x WHERE x.id BETWEEN {key} + 1000 AND {key} + 1003)"])


def test_a_storm_of_ddl(world, seed):
    """F37, F38: DDL in and out of transactions under load, while connector and sink are killed; what a rewrite made of
    rows comes without being asked for by anybody."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, k int DEFAULT 0, v text); ALTER TABLE t ALTER COLUMN v SET STORAGE EXTERNAL; "
              "INSERT INTO t (id, v) SELECT g, repeat('x', 3000) FROM generate_series(1, 300) g")
    world.config["source"]["postgres"]["catalog_every"] = "1s"
    world.connector()
    start(world, ["t"])
    storm = Storm(world, seed)
    for round in range(20):
        for _ in range(3):
            world.src(storm.dml())
        world.src(storm.ddl())
        if round % 7 == 6:
            victim = storm.random.choice(["connector", "sink", "both"])
            if victim != "sink":
                world.connector_process.kill()
                world.connector()
            if victim != "connector":
                world.team.kill()
                again(world)
        elif world.team.process.poll() is not None:
            pytest.fail(f"the sink stopped:\n{world.team.tail()}")
    equal(world, "t", seconds=60)
    world.check_bus()
