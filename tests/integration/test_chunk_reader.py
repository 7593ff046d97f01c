"""What a reader thread makes of a table (HAZARDS 6.6, P48, P50, P79, P90, P92, P95): chunks read by the connector's own
code, driven by tests/support/chunk_read.c against a real server."""
import json
import os
import subprocess
import threading
import time

import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.world import World

PAGE = 1 << 16
MANY = 1 << 30


@pytest.fixture(scope="module")
def program():
    if os.environ.get("CHUNK_READ"):
        return os.environ["CHUNK_READ"]
    path = os.path.join(scratch.ROOT, "build", "release", "tests", "support", "chunk_read")
    subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, os.path.relpath(path, scratch.ROOT)], check=True)
    return path


class Reader:
    def __init__(self, program, url, parallel=1):
        self.process = subprocess.Popen([program, url, "spate", str(parallel)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        errors="surrogateescape")

    def order(self, *words):
        self.process.stdin.write("\t".join(str(w) for w in words) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"chunk_read ended: {self.process.wait()}"
        return json.loads(line)

    def plan(self, table, columns="*", *where, schema="public"):
        self.order("plan", schema, table, columns, *where)
        return self.answer()["leaves"]

    def take(self):
        self.order("take")
        return self.answer()

    def range(self, leaf=0, first=0, behind=1 << 30, limit=MANY):
        self.order("range", leaf, first * PAGE, behind * PAGE, limit)
        return self.take()

    def tids(self, leaf, first, behind, limit):
        self.order("range", leaf, first, behind, limit)
        return self.take()

    def keys(self, *values, limit=MANY):
        self.order("keys", limit, *values)
        return self.take()

    def close(self):
        if not self.process.stdin.closed:
            self.process.stdin.close()
        assert self.process.wait(20) == 0


@pytest.fixture
def lab(source, program):
    """A database with a publication of everything in it, and readers of it."""
    if not source.running():
        source.start()
    world, readers = World(source, None), []

    def reader(role="postgres", parallel=1):
        readers.append(Reader(program, source.dsn(world.db, role), parallel))
        return readers[-1]

    world.reader = reader
    world.src("CREATE PUBLICATION spate FOR ALL TABLES WITH (publish_via_partition_root)")
    yield world
    for one in readers:
        one.close()
    world.close()


def source_connection(lab, autocommit=False):
    return lab.source.connect(lab.db, autocommit=autocommit)


def rows(chunk):
    assert chunk["outcome"] == "done", chunk["error"]
    return [row["after"] for row in chunk["rows"]]


def ids(chunk):
    return [row["id"] for row in rows(chunk)]


def test_ranges_cover_a_table_exactly_once_in_physical_order(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 3000) g;"
            "UPDATE t SET v = 'moved' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0")
    r = lab.reader()
    pages = r.plan("t")[0]["pages"]
    seen = []
    for first in range(0, pages, 5):
        chunk = r.range(0, first, first + 5)
        assert chunk["reached"] == (first + 5) * PAGE and chunk["pages"] == pages
        seen += ids(chunk)
    assert r.range(0, pages, pages + 100)["rows"] == []
    assert seen == [i for (i,) in lab.src("SELECT id FROM t ORDER BY ctid")] and len(seen) == len(set(seen)) > 2000
    assert all(row["key"] == {"id": row["after"]["id"]} and row["key_len"] > 4 for row in r.range(0, 0, 1)["rows"])


def test_a_range_is_read_by_its_pages_alone(lab):
    """Not by walking the table or an index, whatever the conditions and whatever role and database prefer (P92)."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g; ANALYZE t;"
            f"ALTER DATABASE \"{lab.db}\" SET enable_tidscan = off")
    r = lab.reader()
    r.plan("t", "*", "id", ">=", "5", "id", "<", "10")
    lab.src("SELECT pg_stat_reset()")
    assert ids(r.range(0, 0, 10)) == [5, 6, 7, 8, 9]
    r.close()  # a server process tells what it did when it ends
    scratch.until(lambda: lab.src("SELECT heap_blks_read + heap_blks_hit > 0 FROM pg_statio_user_tables WHERE relname = 't'") == [(True,)],
                  lambda: "the statistics say that the table was read", 15)
    (blocks, sequential, by_index), = lab.src(
        "SELECT heap_blks_read + heap_blks_hit, seq_scan, idx_scan FROM pg_statio_user_tables JOIN pg_stat_user_tables USING (relid)"
        " WHERE relid = 't'::regclass")
    assert (blocks, sequential, by_index) == (10, 0, 0)


def test_values_come_as_postgres_prints_them(lab):
    """Escapes of COPY, NULL beside its look-alikes, TOAST, and settings of other people (P79)."""
    odd = "tab\there\nnew\rline\\ back\\\\ \\N \\. \b\f\v \"quoted\" ä"
    lab.src(f"ALTER DATABASE \"{lab.db}\" SET timezone = 'Asia/Tokyo'; ALTER DATABASE \"{lab.db}\" SET datestyle = 'German'")
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz, b bytea, n numeric(10,2), j jsonb, a text[], big text, f float8, gone int);"
            "ALTER TABLE t DROP gone; ALTER TABLE t ADD \"Sp ce\"\"d\" text")
    lab.src("SET timezone = 'UTC'; INSERT INTO t VALUES (1, %s, '2026-03-01 12:00:00', '\\x00ff', 1.5, '{\"a\": [1, null]}', %s, repeat('y', 300000), 0.1, 'z'),"
            " (2, %s, NULL, NULL, NULL, NULL, NULL, NULL, 'NaN', NULL), (3, '', NULL, NULL, NULL, NULL, '{}', '', NULL, '')", (odd, [odd, None], "\\N"))
    r = lab.reader()
    r.plan("t")
    first, second, third = rows(r.range())
    assert first == {"id": 1, "v": odd, "at": "2026-03-01 12:00:00+00", "b": "\\x00ff", "n": "1.50", "j": {"a": [1, None]}, "a": first["a"],
                     "big": "y" * 300000, "f": 0.1, 'Sp ce"d': "z"}
    assert lab.src("SELECT %s::text[] = a FROM t WHERE id = 1", (first["a"],)) == [(True,)]
    assert second == {"id": 2, "v": "\\N", "at": None, "b": None, "n": None, "j": None, "a": None, "big": None, "f": "NaN", 'Sp ce"d': None}
    assert (third["v"], third["a"], third["n"]) == ("", "{}", None)


def test_only_what_was_asked_for_and_the_key(lab):
    lab.src("CREATE TABLE t (a int, id int, v text, w text, PRIMARY KEY (id, a)); INSERT INTO t VALUES (1, 2, 'v', 'w')")
    r = lab.reader()
    r.plan("t", "w")
    assert rows(r.range()) == [{"a": 1, "id": 2, "w": "w"}]
    assert r.range()["rows"][0]["key"] == {"id": 2, "a": 1}


def test_conditions_are_values_and_never_sql(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text, d date, n numeric(6,1), c char(4)); "
            "INSERT INTO t VALUES (1, '''; drop table t; --', '2026-01-01', 1.0, 'ab'), (2, 'x', '2026-06-01', 1.1, 'abc'), (3, NULL, NULL, NULL, NULL)")
    r = lab.reader()

    def of(*where):
        r.plan("t", "*", *where)
        return ids(r.range())

    assert of("v", "=", "'; drop table t; --") == [1]
    assert of("v", "<>", "'; drop table t; --") == [2]
    assert of("v", "=", "') OR true --") == []
    assert of("v", "is", "") == [3] and of("v", "is not", "") == [1, 2]
    assert of("d", ">=", "2026-02-01", "id", ">", "1") == [2]
    assert of("n", ">", "1.04") == [2]  # a value is not rounded to what the column holds
    assert of("c", "=", "abc") == [2] and of("c", "<", "abcdef") == [1, 2]
    r.plan("t", "*", "d", ">", "no date of mine")
    bad = r.range()
    assert (bad["outcome"], bad["verdict"]) == ("failed", "quarantine") and "condition on d" in bad["error"]
    assert "no date of mine" not in bad["error"]
    assert of("id", "=", "1") == [1]


def test_operators_of_types_from_elsewhere(lab):
    """search_path is pg_catalog, which knows nothing of them (X41); a domain and an enum as well."""
    lab.src("CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);"
            "CREATE TABLE t (id citext PRIMARY KEY, m mood, p positive); INSERT INTO t VALUES ('Ab', 'sad', 1), ('cd', 'glad', 2)")
    r = lab.reader()
    r.plan("t", "*", "id", "=", "AB")
    assert ids(r.range()) == ["Ab"]
    r.plan("t", "*", "id", "<>", "aB", "m", ">", "sad", "p", "<=", "2")
    assert ids(r.range()) == ["cd"]
    r.plan("t")
    assert ids(r.keys("CD", "none", "ab")) == ["cd", "Ab"]


def test_keys_are_looked_up_in_their_order(lab):
    lab.src("CREATE TABLE t (a text, b int, id int, PRIMARY KEY (b, a)); "
            "INSERT INTO t SELECT 'k\"\\{,}' || g, g % 3, g FROM generate_series(1, 5000) g; ANALYZE t")
    r = lab.reader()
    r.plan("t")
    chunk = r.keys("1", 'k"\\{,}7', "0", 'k"\\{,}9', "0", 'k"\\{,}7', "2", 'k"\\{,}2')
    assert ids(chunk) == [7, 9, 2] and chunk["reached"] == 4
    chunk = r.keys("1", 'k"\\{,}7', "0", 'k"\\{,}9', "2", 'k"\\{,}2', limit=1)
    assert ids(chunk) == [7] and chunk["reached"] == 1
    bad = r.keys("x", "y")
    assert (bad["outcome"], bad["verdict"]) == ("failed", "quarantine") and "one of the keys" in bad["error"]


def test_partitions_leaf_by_leaf_with_the_roots_filter(lab):
    """P48, P50: leaves may have their columns in another order."""
    if lab.source.version() < 150000:
        pytest.skip("needs PostgreSQL 15: publications have no row filter before")
    lab.src("DROP PUBLICATION spate; CREATE TABLE p (id int, k text, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);"
            "CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a');"
            "CREATE TABLE p_b (v text, extra int, k text NOT NULL, id int NOT NULL, PRIMARY KEY (id, k)); ALTER TABLE p_b DROP extra;"
            "ALTER TABLE p ATTACH PARTITION p_b FOR VALUES IN ('b'); CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);"
            "INSERT INTO p SELECT g, CASE WHEN g % 2 = 0 THEN 'a' ELSE 'b' END, 'v' || g FROM generate_series(1, 10) g;"
            "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);"
            "CREATE PUBLICATION spate FOR TABLE p WHERE (id > 3), ONLY parent WITH (publish_via_partition_root)")
    r = lab.reader()
    assert len(r.plan("p")) == 2
    assert rows(r.range(0)) == [{"id": i, "k": "a", "v": f"v{i}"} for i in (4, 6, 8, 10)]
    assert rows(r.range(1)) == [{"id": i, "k": "b", "v": f"v{i}"} for i in (5, 7, 9)]
    assert ids(r.keys("6", "a", "2", "a", "5", "b")) == [6, 5]
    r.plan("parent")
    assert ids(r.range()) == [1] and ids(r.keys("1", "2")) == [1]


def test_a_table_that_is_another_one_is_not_read(lab):
    """P90, P95: whatever changes what a row means, or where it stands, changes the stamp."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text, w int); INSERT INTO t SELECT g FROM generate_series(1, 100) g")
    r = lab.reader()
    for change, shape in (("VACUUM FULL t", False), ("TRUNCATE t", False), ("ALTER TABLE t ADD x int", True), ("ALTER TABLE t RENAME x TO y", True),
                          ("ALTER TABLE t DROP y", True), ("ALTER TABLE t ALTER w TYPE bigint", True), ("ALTER TABLE t REPLICA IDENTITY FULL", True),
                          ("ALTER TABLE t DROP CONSTRAINT t_pkey", True), ("ALTER TABLE t ADD PRIMARY KEY (id)", True),
                          ("DROP PUBLICATION spate; CREATE PUBLICATION spate FOR TABLE t, other", True),
                          ("ALTER PUBLICATION spate SET TABLE t (id, v, w)", True), ("ALTER PUBLICATION spate SET TABLE t (id, v, w) WHERE (id > 5)", True),
                          ("ALTER TABLE t SET SCHEMA elsewhere; CREATE TABLE t (id int PRIMARY KEY, v text, w int)", True),
                          ("DROP TABLE t", True)):
        if "SET TABLE t (" in change and lab.source.version() < 150000:
            continue  # there are no lists of columns yet
        if "other" in change:
            lab.src("CREATE TABLE other (id int PRIMARY KEY); CREATE SCHEMA elsewhere")
        r.plan("t")
        assert r.range(0, 0, 1)["outcome"] == "done"
        assert r.range(0, 0, 1)["outcome"] == "done", f"before {change}: nothing has changed"
        for statement in change.split("; "):
            lab.src(statement)
        chunk = r.range(0, 0, 1)
        assert (chunk["outcome"], chunk["rows"]) == ("changed", []), change
        if "SCHEMA" not in change and "PRIMARY KEY" not in change:
            assert r.keys("1")["outcome"] == ("changed" if shape else "done"), change
        if "SCHEMA" in change:
            lab.src("ALTER PUBLICATION spate ADD TABLE t")


def test_ordinary_life_leaves_the_stamp(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 100) g")
    r = lab.reader()
    r.plan("t")
    for ordinary in ("VACUUM t", "ANALYZE t", "CREATE INDEX ON t (v)", "UPDATE t SET v = 'x'", "GRANT SELECT ON t TO pg_monitor",
                     "CREATE TABLE another (id int)", "ALTER TABLE t SET (fillfactor = 50)", "REINDEX TABLE t"):
        lab.src(ordinary)
        assert r.range(0, 0, 1)["outcome"] == "done", ordinary


def test_a_lock_that_is_not_granted_is_not_waited_for(lab):
    """P90: others queue behind whoever waits."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    r = lab.reader()
    r.plan("t")
    holder = source_connection(lab)
    with holder.cursor() as cursor:
        cursor.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        chunk = r.range()
        assert chunk["outcome"] == "busy" and 1.5 < time.monotonic() - began < 4
    holder.rollback()
    assert ids(r.range()) == [1]
    holder.close()


def test_the_snapshot_is_taken_under_the_lock(lab):
    """P90: a TRUNCATE that was first is seen, never half; the chunk that waited for it finds another table."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT g FROM generate_series(1, 100) g")
    r = lab.reader()
    r.plan("t")
    holder = source_connection(lab)
    with holder.cursor() as cursor:
        cursor.execute("TRUNCATE t")
        r.order("range", 0, 0, 10 * PAGE, MANY)
        scratch.until(lambda: lab.src("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)], lambda: "the reader waits", 10)
    holder.commit()
    holder.close()
    assert r.take()["outcome"] == "changed"


def test_position_and_snapshot_fit_what_was_read(lab):
    """Every transaction that the snapshot sees began its commit before L; one that runs is not seen."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    r = lab.reader()
    r.plan("t")
    other = source_connection(lab)
    with other.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (2)")
        cursor.execute("SELECT pg_current_xact_id()::text::bigint")
        (xid,), = cursor.fetchall()
        chunk = r.range()
        assert ids(chunk) == [1] and chunk["xmin"] <= xid and (chunk["xip"] > 0 or chunk["xmax"] <= xid)
        r.order("look")
        look = r.take()
        assert look["xmin"] <= xid and look["lsn"] >= chunk["lsn"] > 0
    other.commit()
    chunk = r.range()
    assert ids(chunk) == [1, 2] and chunk["xmin"] > xid
    (flushed,), = lab.src("SELECT pg_current_wal_insert_lsn() - '0/0'")
    assert chunk["lsn"] <= flushed and chunk["lsn"] % 8192 not in (24, 40)
    other.close()


def test_a_nudge_is_a_transaction_with_a_message(lab):
    lab.src("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (lab.slot(),))
    r = lab.reader()
    r.order("nudge")
    assert r.take()["outcome"] == "done"
    text = "".join(data for (data,) in lab.src("SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", (lab.slot(),)))
    assert "transactional: 1 prefix: spate" in text
    lab.src("SELECT pg_drop_replication_slot(%s)", (lab.slot(),))


def test_too_much_is_cut_between_two_rows(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;"
            "INSERT INTO t SELECT g, repeat('x', 10000) FROM generate_series(1, 200) g")
    r = lab.reader()
    pages = r.plan("t")[0]["pages"]
    at, seen, chunks = 0, [], 0
    while at < pages * PAGE:
        chunk = r.tids(0, at, pages * PAGE, 100000)
        seen += ids(chunk)
        assert chunk["bytes"] < 220000 and at < chunk["reached"] and chunk["lsn"] > 0
        at, chunks = chunk["reached"], chunks + 1
    assert seen == list(range(1, 201)) and chunks > 10
    one = r.tids(0, 0, pages * PAGE, 10)
    assert ids(one) == [1]  # one row is always taken


def test_a_range_that_was_expected_to_fit_is_read_again(lab):
    """Compressed, the table looks small: the COPY is called off, and its range cut."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 20000) FROM generate_series(1, 500) g")
    r = lab.reader()
    pages = r.plan("t")[0]["pages"]
    before = canceled(lab)
    chunk = r.tids(0, 0, pages * PAGE, 1000000)
    assert ids(chunk) == list(range(1, len(chunk["rows"]) + 1)) and 40 <= len(chunk["rows"]) <= 100 and canceled(lab) == before + 1
    rest = r.tids(0, chunk["reached"], pages * PAGE, 100000000)
    assert ids(rest) == list(range(len(chunk["rows"]) + 1, 501)) and rest["reached"] == pages * PAGE


def test_a_slow_range_is_read_in_a_smaller_piece(lab):
    """P92: no snapshot is held for long. Each row costs the server as much as sixty megabytes, and none is wanted."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text, filler text); ALTER TABLE t ALTER filler SET STORAGE PLAIN;"
            "INSERT INTO t VALUES (1, repeat('x', 60000000), repeat('y', 3000))")
    lab.src("INSERT INTO t SELECT g, v, filler FROM t, generate_series(2, 80) g")
    r = lab.reader()
    pages = r.plan("t", "*", "v", "<", "a")[0]["pages"]
    chunk = r.tids(0, 0, (pages + 100) * PAGE, MANY)
    assert chunk["outcome"] == "done" and chunk["rows"] == []
    assert 0 < chunk["reached"] < pages * PAGE and chunk["took_us"] < 2000000 and chunk["lsn"] > 0


def canceled(lab):
    with open(lab.source.log, errors="replace") as log:
        return log.read().count("canceling statement")


def test_memory_does_not_follow_the_size_of_rows(lab):
    """Rows of a megabyte, in chunks of a megabyte: a few of them at a time in memory. Nothing is called off for that,
    which would be an error in the server's log each time."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    lab.src("INSERT INTO t SELECT g, repeat('x', 1000000) FROM generate_series(1, 100) g")
    before = canceled(lab)
    r = lab.reader()
    r.plan("t")
    r.order("pace", 1 << 20)
    total = r.answer()
    assert total["rows"] == 100 and total["bytes"] > 100 * 10**6 and total["most"] < 4 * 10**6 and canceled(lab) == before
    r.order("memory")
    assert r.answer()["kib"] < 48 * 1024


def test_chunks_grow_to_what_is_wanted(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 80) FROM generate_series(1, 100000) g")
    r = lab.reader()
    r.plan("t")
    r.order("pace", 1 << 20)
    total = r.answer()
    assert total["rows"] == 100000 and total["cut"] == 0 and total["most"] <= 2 << 20
    assert total["chunks"] < 2 * total["bytes"] / (1 << 20) + 6


def test_rights(lab):
    """Permission and row-level security: words, and the statement that helps. No shortened snapshot (P92, 6.6)."""
    role = f"reader_{os.getpid()}"
    lab.src(f"CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'secret'); CREATE ROLE {role} LOGIN")
    try:
        r = lab.reader(role)
        r.plan("t")
        bad = r.range()
        assert (bad["outcome"], bad["verdict"], bad["sqlstate"]) == ("failed", "quarantine", "42501")
        assert f'GRANT SELECT ON "public"."t" TO "{role}"' in bad["error"]
        lab.src(f"GRANT SELECT ON t TO {role}")
        assert ids(r.range()) == [1]
        lab.src("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        bad = r.range()
        assert (bad["outcome"], bad["verdict"]) == ("failed", "quarantine") and f'ALTER ROLE "{role}" BYPASSRLS' in bad["error"]
        lab.src(f"ALTER ROLE {role} BYPASSRLS")
        assert ids(r.range()) == [1]
    finally:
        lab.src(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_connection_that_ends_is_made_anew(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    r = lab.reader()
    r.plan("t")
    assert ids(r.range()) == [1]
    lab.src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'spate_test_snapshot'")
    lost = r.range()
    if lost["outcome"] != "done":
        assert (lost["outcome"], lost["verdict"]) == ("failed", "retry")
    assert ids(r.range()) == [1]


def test_what_runs_is_called_off_at_once(lab):
    """The server stops too, and the connection serves the next chunk."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 100) g")
    r = lab.reader()
    r.plan("t")
    holder = source_connection(lab)
    with holder.cursor() as cursor:
        cursor.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        r.order("range", 0, 0, PAGE, MANY)
        r.order("range", 0, 0, PAGE, MANY)
        scratch.until(lambda: lab.src("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)], lambda: "the reader waits", 10)
        began = time.monotonic()
        r.order("cancel")
        for _ in range(2):
            chunk = r.take()
            assert (chunk["outcome"], chunk["verdict"]) == ("failed", "retry") and "called off" in chunk["error"]
        assert time.monotonic() - began < 1.2
        assert lab.src("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]
    holder.rollback()
    holder.close()
    assert len(ids(r.range(0, 0, 1))) == 100


def test_closing_does_not_wait_for_the_source(lab):
    lab.src("CREATE TABLE t (id int PRIMARY KEY)")
    r = lab.reader(parallel=2)
    r.plan("t")
    holder = source_connection(lab)
    with holder.cursor() as cursor:
        cursor.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        for _ in range(4):
            r.order("range", 0, 0, PAGE, MANY)
        scratch.until(lambda: lab.src("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(2,)], lambda: "both readers wait", 10)
        began = time.monotonic()
        r.process.stdin.close()
        assert r.process.wait(10) == 0 and time.monotonic() - began < 2
    holder.rollback()
    holder.close()


@pytest.fixture(scope="module")
def pair():
    """A primary and a hot standby of it."""
    primary = Cluster("chunkprim").start()
    primary.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT g FROM generate_series(1, 100) g; CREATE PUBLICATION spate FOR ALL TABLES")
    standby = Cluster("chunkstby", standby_of=primary)
    yield primary, standby.start()
    standby.destroy()
    primary.destroy()


def test_a_standby_tells_less(pair, program):
    """pg_current_snapshot() of a standby does not name what runs: only what is older than all of it counts as seen. L is
    what was received, since rows are visible a moment before the replay position moves (6.6)."""
    primary, standby = pair
    other = primary.connect(autocommit=False)
    with other.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (101)")
        cursor.execute("SELECT pg_current_xact_id()::text::bigint")
        (xid,), = cursor.fetchall()
        primary.sql("INSERT INTO t VALUES (102)")
        scratch.until(lambda: standby.one("SELECT count(*) FROM t") == 101, lambda: "the standby has the row", 20)
        r = Reader(program, standby.dsn())
        try:
            r.plan("t")
            chunk = r.range()
            assert len(ids(chunk)) == 101 and chunk["xmin"] <= xid and chunk["xmax"] <= xid
            received = standby.one("SELECT pg_last_wal_receive_lsn() - '0/0'")
            assert 0 < chunk["lsn"] <= received
            r.order("look")
            look = r.take()
            assert look["xmax"] <= xid and look["lsn"] > 0
            r.order("nudge")
            nudge = r.take()
            assert nudge["outcome"] == "failed" and nudge["verdict"] != "retry", nudge  # it would be tried for ever
        finally:
            r.close()
    other.close()


def test_writers_beside_it(lab):
    """Whatever moves meanwhile: each chunk is one picture, and no chunk has a key twice (6.6)."""
    lab.src("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 5000) g")
    stop = threading.Event()

    def write():
        other = source_connection(lab, autocommit=True)
        with other.cursor() as cursor:
            number = 0
            while not stop.is_set():
                number += 1
                cursor.execute("UPDATE t SET v = %s WHERE id BETWEEN %s AND %s", (number, number * 37 % 5000, number * 37 % 5000 + 200))
        other.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        r = lab.reader()
        r.plan("t")
        for _ in range(20):
            seen = ids(r.range())
            assert len(seen) == len(set(seen)) == 5000
    finally:
        stop.set()
        writer.join()
