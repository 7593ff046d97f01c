"""The sink's own copy: rows that enter `where` late, expressions over several columns, keys that move, while Postgres does
not send long values again that did not change (T11, T13, P42, P44, F34)."""
import random

import pytest

from tests.support import scratch

LONG = "(SELECT string_agg(md5({0}::text || g), '') FROM generate_series(1, 200) g)"  # 6 400 bytes that do not compress
WORDS = {"late": {"from": "public.t", "where": "v % 2 = 1 AND length(coalesce(large, '')) <> 7",
                  "columns": {"id": "id", "both": "coalesce(large, '-') || ':' || v", "large": "large"}, "key": ["id"]}}
LATE = "SELECT id, coalesce(large, '-') || ':' || v, large FROM t WHERE v % 2 = 1 AND length(coalesce(large, '')) <> 7"


def make(world, more=""):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL, large text, other text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL;" + more)


def copies(world, schema="team"):
    return [r[0] for r in world.tgt("SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relkind = 'r' "
                                    "AND relname ~ '^spate_(copy|mark|list|new)_'", [schema])]


def missing(world, schema="team"):
    return world.tgt(f"SELECT missing FROM {schema}.spate_sink")[0][0]


def change(rnd, keys=14):
    """One statement of any kind; in most the long value stays, and is not sent."""
    a, b = rnd.sample(range(keys), 2)
    return rnd.choices([
        f"UPDATE t SET v = v + 1 WHERE id = {a}", f"UPDATE t SET v = v + 1 WHERE id % 3 = {a % 3}",
        f"UPDATE t SET large = {LONG.format(rnd.randrange(10**6))} WHERE id = {a}", f"UPDATE t SET large = {rnd.choice(['NULL', repr('short'), repr('7 bytes')])} WHERE id = {a}",
        f"UPDATE t SET id = {b} WHERE id = {a} AND NOT EXISTS (SELECT FROM t WHERE id = {b})",
        f"UPDATE t SET id = {b}, v = v + 1 WHERE id = {a} AND NOT EXISTS (SELECT FROM t WHERE id = {b})",
        # two rows change places, by way of a third
        f"UPDATE t SET id = -1 WHERE id = {a}; UPDATE t SET id = {a} WHERE id = {b}; UPDATE t SET id = {b}, v = v + 1 WHERE id = -1",
        f"DELETE FROM t WHERE id = {a}", f"INSERT INTO t VALUES ({a}, {rnd.randrange(9)}, {LONG.format(rnd.randrange(10**6))}) ON CONFLICT DO NOTHING",
        f"DELETE FROM t WHERE id = {a}; INSERT INTO t VALUES ({a}, 1, {LONG.format(a)})", "UPDATE t SET other = 'not used by any'", "TRUNCATE t"],
        weights=[8, 3, 3, 2, 3, 3, 2, 2, 4, 2, 1, 0.3])[0]


def fill(world):
    world.src(f"INSERT INTO t SELECT i, i, {LONG.format('i')} FROM generate_series(0, 13) i")


def test_any_changes(world, seed):
    """T11, T13, P42, F34: two projections of one table, by small batches and by large ones; nothing asked of the source."""
    rnd = random.Random(seed)
    make(world)
    world.connector()
    sink = world.sink(world.sink_file("team", {**WORDS, "plain": {"from": "public.t"}}),
                      world.sink_file("other", {"half": {"from": "public.t", "where": "v > 3", "columns": {"id": "id", "v": "v"}},
                                                "odd": {"from": "public.t", "where": "other IS NULL"}}, on_snapshot="swap"))
    fill(world)
    pairs = [(LATE, "SELECT * FROM team.late"), ("SELECT * FROM t", "SELECT * FROM team.plain"), ("SELECT id, v FROM t WHERE v > 3", "SELECT * FROM other.half"),
             ("SELECT * FROM t WHERE other IS NULL", "SELECT * FROM other.odd")]
    world.wait_equal(pairs)
    for batch in range(10):
        statements = [change(rnd) for _ in range(rnd.randrange(1, 25))]
        if batch % 2:
            statements = ["BEGIN; " + "; ".join(statements) + "; COMMIT"]
        if batch == 5:  # more than a small batch
            statements.append(f"INSERT INTO t SELECT i, i, {LONG.format('i')} FROM generate_series(1000, 1700) i; UPDATE t SET v = v + 1 WHERE id > 1200")
        for statement in statements:
            world.src(statement)
        world.wait_equal(pairs)
    assert sink.running() and missing(world) == 0 and missing(world, "other") == 0
    # A copy for each projection that needs one: `plain` takes each column as it is, and `half` uses none that can be missing.
    assert len(copies(world)) == 1 and len(copies(world, "other")) == 1
    assert world.tgt("SELECT table_name, copy IS NOT NULL FROM team.spate_table ORDER BY 1") == [("late", True), ("plain", False)]


@pytest.mark.parametrize("ends", ["sweep", "swap"])
def test_everything_comes_into_the_copy(world, ends):
    """T16, P94: rows from before, rows that left while nobody listened, changes while it loads; readers of swap see one picture."""
    make(world)
    fill(world)
    world.connector()
    file = world.sink_file("team", WORDS, on_snapshot=ends)
    sink = world.sink(file)
    pairs = [(LATE, "SELECT * FROM team.late")]
    world.wait_equal(pairs)
    world.src("UPDATE t SET v = v + 1")  # whatever matched goes, whatever did not comes, and no long value was sent
    world.wait_equal(pairs)
    assert sink.stop() == 0
    world.tgt("INSERT INTO team.late VALUES (77, 'gone', 'gone')")
    world.tgt(f"UPDATE team.{copies(world)[0]} SET k0 = k0 + 500 WHERE k0 > 9")
    sink = world.sink(file, arguments=("--restart", "team"))
    world.src("UPDATE t SET v = v + 1 WHERE id % 2 = 0; UPDATE t SET id = id + 100 WHERE id = 3")
    world.wait_equal(pairs)
    scratch.until(lambda: world.tgt("SELECT snapshotted FROM team.spate_table") == [(True,)], "all rows came", 30)
    world.wait_equal(pairs)
    assert world.tgt(f"SELECT k0 FROM team.{copies(world)[0]} ORDER BY 1") == world.src("SELECT id FROM t ORDER BY 1")
    assert len(copies(world)) == 1 and sink.running()


def test_a_copy_comes_and_goes(world):
    """REPLICA IDENTITY changes while it runs: a copy that becomes necessary has everything come again; one that does not
    need to be there any more is kept up until the next load. What the file takes out goes."""
    make(world, "ALTER TABLE t REPLICA IDENTITY FULL;")
    fill(world)
    world.connector()
    file = world.sink_file("team", WORDS)
    sink = world.sink(file)
    pairs = [(LATE, "SELECT * FROM team.late")]
    world.wait_equal(pairs)
    world.src("UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    assert copies(world) == []  # no cost where it is not needed
    world.src("ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = v + 1 WHERE id < 5")
    sink.wait_log("event=own-copy")
    world.wait_equal(pairs)
    scratch.until(lambda: world.tgt("SELECT snapshotted, copy IS NOT NULL FROM team.spate_table") == [(True, True)], "all rows came", 30)
    world.src("UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    for identity in ("FULL", "DEFAULT"):  # nothing has to come again for this
        world.src(f"ALTER TABLE t REPLICA IDENTITY {identity}; UPDATE t SET v = v + 1 WHERE id % 3 = 1; UPDATE t SET id = id + 50 WHERE id = 4")
        world.src("UPDATE t SET v = v + 1")
        world.wait_equal(pairs)
    assert sink.text().count("event=snapshot-finished") == 2 and missing(world) <= 5  # before everything was asked for
    world.src("ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    assert sink.stop() == 0
    sink = world.sink(file)
    sink.wait_log("event=streaming")
    assert world.snapshot("--sink", "team").wait_exit(60) == 0
    scratch.until(lambda: copies(world) == [] and world.tgt("SELECT snapshotted, copy FROM team.spate_table") == [(True, None)], "the copy is gone", 30)
    world.src("ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    assert len(copies(world)) == 1 and sink.stop() == 0
    sink = world.sink(world.sink_file("team", {"u": {"from": "public.t", "columns": {"id": "id"}}}))
    sink.wait_log("event=snapshot-finished")
    scratch.until(lambda: copies(world) == [], "the copy is gone", 10)


def test_other_columns(world):
    """P35: the source's columns that it uses change, in a transaction that changes rows before and after; the file changes."""
    make(world)
    fill(world)
    world.connector()
    file = world.sink_file("team", WORDS)
    sink = world.sink(file)
    pairs = [(LATE, "SELECT * FROM team.late")]
    world.wait_equal(pairs)
    world.src("BEGIN; UPDATE t SET v = v + 1; ALTER TABLE t ALTER v TYPE bigint; UPDATE t SET v = v + 1 WHERE id < 7; COMMIT")
    world.src("UPDATE t SET v = v + 1 WHERE id > 4")
    world.wait_equal(pairs)
    scratch.until(lambda: world.tgt("SELECT snapshotted FROM team.spate_table") == [(True,)], "all rows came", 60)
    world.src("UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    assert sink.running()
    assert sink.stop() == 0
    # The team changes its mind.
    WORDS_NOW = {"late": {**WORDS["late"], "where": "other IS NULL AND v % 3 = 0"}}
    sink = world.sink(world.sink_file("team", WORDS_NOW))
    pairs = [("SELECT id, coalesce(large, '-') || ':' || v, large FROM t WHERE other IS NULL AND v % 3 = 0", "SELECT * FROM team.late")]
    world.wait_equal(pairs)
    world.src("UPDATE t SET v = v + 1; UPDATE t SET other = 'x' WHERE id = 5; UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    assert sink.running()


def test_a_lost_copy_is_made_again(world):
    make(world)
    fill(world)
    world.connector()
    file = world.sink_file("team", WORDS)
    sink = world.sink(file)
    pairs = [(LATE, "SELECT * FROM team.late")]
    world.wait_equal(pairs)
    assert sink.stop() == 0
    world.tgt(f"DROP TABLE team.{copies(world)[0]}")
    sink = world.sink(file)
    world.src("UPDATE t SET v = v + 1")
    world.wait_equal(pairs)
    assert missing(world) == 0 or sink.running()


def test_nothing_is_made_up_for_rows_that_never_came(world):
    """snapshot: manual: what is not known stays away, is counted, and a whole row makes it known."""
    make(world)
    fill(world)
    world.connector()
    sink = world.sink(world.sink_file("team", WORDS, snapshot="manual"))
    sink.wait_log("event=streaming")
    world.src(f"UPDATE t SET v = v + 1; UPDATE t SET id = 50 WHERE id = 2; UPDATE t SET v = 7, large = {LONG.format('id')} WHERE id = 4; UPDATE t SET v = v + 2 WHERE id = 4;"
              "DELETE FROM t WHERE id = 6; UPDATE t SET id = 60 WHERE id = 4")
    world.wait_equal([(LATE + " AND id = 60", "SELECT * FROM team.late")])
    # 14 partial, a move, and two that went: a whole row tells nothing of whether it was there
    assert sink.stop() == 0
    assert missing(world) == 17


def test_plans_go_by_the_key(world):
    """T34: neither the copy nor the team's table is scanned for a batch."""
    make(world)
    world.connector()
    world.sink(world.sink_file("team", WORDS))
    world.src(f"INSERT INTO t VALUES (0, 0, {LONG.format(1)})")
    scratch.until(lambda: copies(world) and world.tgt(f"SELECT k0 FROM team.{copies(world)[0]}") == [(0,)], "the row is in the copy", 30)
    copy = copies(world)[0]
    world.tgt(f"ALTER TABLE team.late SET (autovacuum_enabled = off); ALTER TABLE team.{copy} SET (autovacuum_enabled = off)")
    world.tgt("VACUUM ANALYZE team.late")
    world.src("UPDATE t SET v = 1 WHERE id = 0; UPDATE t SET v = 2; UPDATE t SET id = -1")
    world.src(f"INSERT INTO t SELECT i, i, CASE WHEN i <= 400 THEN {LONG.format('i')} END FROM generate_series(1, 20000) i")
    world.wait_equal([(LATE, "SELECT * FROM team.late")])

    def scans():
        return world.tgt(f"SELECT relname::text, seq_scan, idx_scan, n_tup_ins FROM pg_stat_user_tables WHERE relid IN ('team.late'::regclass, 'team.{copy}'::regclass) ORDER BY 1")

    scratch.until(lambda: [s for s in scans() if s[3] >= 10000] == scans(), "the statistics of the load", 30)
    before = scans()
    world.src("UPDATE t SET v = v + 1 WHERE id <= 400")
    world.src("UPDATE t SET v = v + 1 WHERE id BETWEEN 3 AND 152; UPDATE t SET id = -10 - id WHERE id < 40; DELETE FROM t WHERE id > 19000")
    # 550 partial rows, 40 moves, 1 000 deletes
    scratch.until(lambda: all(now[2] >= then[2] + 1500 for now, then in zip(scans(), before)), lambda: f"found by the key: {before} became {scans()}", 20)
    assert [s[1] for s in scans()] == [s[1] for s in before]
    world.wait_equal([(LATE, "SELECT * FROM team.late")])


def test_a_key_that_is_widened(world):
    """The copy's key holds what the source's does, and what an older version of it did."""
    make(world)
    fill(world)
    world.connector()
    file = world.sink_file("team", {"late": {"from": "public.t", "where": "v % 2 = 1"}})
    sink = world.sink(file)
    pairs = [("SELECT * FROM t WHERE v % 2 = 1", "SELECT * FROM team.late")]
    world.wait_equal(pairs)
    world.src(f"ALTER TABLE t ALTER id TYPE bigint; INSERT INTO t VALUES (5000000000, 1, {LONG.format(1)}); UPDATE t SET v = v + 1")
    world.src("UPDATE t SET v = v + 1; UPDATE t SET id = id + 6000000000 WHERE id < 5")
    world.wait_equal(pairs)
    assert world.tgt(f"SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'team.{copies(world)[0]}'::regclass AND attname = 'k0'") == [("bigint",)]
    assert sink.running()
