"""How a sink applies: conditions, TRUNCATE, deferrable constraints, huge transactions, zombies, starting anew."""
import re
import signal

from tests.support import scratch


def table(**more):
    return {"t": {"from": "public.t", **more}}


def position(world, sink="team", schema="team"):
    return world.tgt(f"SELECT n, generation, applied, missing FROM {schema}.spate_sink WHERE sink = '{sink}'")[0]


def test_rows_enter_and_leave_a_condition(world):
    """T13: what stops matching is deleted, what starts matching appears, whatever else changes in the batch."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, status text, note text)")
    world.connector()
    world.sink(world.sink_file("team", table(where="status = 'paid' -- only those", columns={"id": "id", "note": "upper(note) -- loud"})))
    pairs = [("SELECT id, upper(note) FROM t WHERE status = 'paid'", "SELECT id, note FROM team.t")]
    for sql in ("INSERT INTO t SELECT i, CASE i % 3 WHEN 0 THEN 'paid' WHEN 1 THEN 'open' END, 'n' || i FROM generate_series(1, 300) i",
                "UPDATE t SET status = 'open' WHERE id % 6 = 0", "UPDATE t SET status = 'paid' WHERE id % 5 = 0",
                "UPDATE t SET status = NULL WHERE id % 7 = 0", "UPDATE t SET id = id + 1000 WHERE id < 50",
                "DELETE FROM t WHERE id % 11 = 0",
                "BEGIN; UPDATE t SET status = 'paid'; UPDATE t SET status = 'open' WHERE id % 2 = 0; UPDATE t SET note = note || '!'; COMMIT"):
        world.src(sql)
    world.wait_equal(pairs)
    assert position(world)[3] == 0


def test_truncate_of_several_tables_and_of_referenced_ones(world):
    """T17: TRUNCATE all at once; DELETE where the team's own foreign key forbids it."""
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.u (id int PRIMARY KEY); CREATE TABLE team.mine (u int REFERENCES team.u DEFERRABLE)")
    world.connector()
    world.sink(world.sink_file("team", {"t": {"from": "public.t"}, "u": {"from": "public.u"}, "copy": {"from": "public.t"}}))
    world.src("INSERT INTO t SELECT generate_series(1, 20); INSERT INTO u SELECT generate_series(1, 20); INSERT INTO other VALUES (1)")
    world.wait_equal([("SELECT * FROM u", "SELECT * FROM team.u")])
    world.tgt("INSERT INTO team.mine VALUES (3)")
    world.src("BEGIN; INSERT INTO t VALUES (99); TRUNCATE t, u, other; INSERT INTO t VALUES (5); INSERT INTO u VALUES (3); COMMIT; TRUNCATE other")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t"), ("SELECT * FROM t", "SELECT * FROM team.copy"), ("SELECT * FROM u", "SELECT * FROM team.u")])
    assert world.tgt("SELECT u FROM team.mine") == [(3,)]


def test_deferrable_unique_constraints_stay(world):
    """T7: a swap of another unique value inside one transaction."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int, w text, UNIQUE (v) DEFERRABLE INITIALLY DEFERRED)")
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.t (id int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY IMMEDIATE, w text)")
    world.connector()
    sink = world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t SELECT i, i, repeat(md5(i::text), 500) FROM generate_series(1, 9) i")
    world.src("BEGIN; UPDATE t SET v = 2 WHERE id = 1; UPDATE t SET v = 3 WHERE id = 2; UPDATE t SET v = 1 WHERE id = 3; COMMIT")
    world.src("BEGIN; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (40, 4, 'x'); UPDATE t SET v = -v; COMMIT")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert sink.running()


def test_a_new_version_in_the_middle_of_a_huge_transaction(world):
    """P35: the target's parser is needed while pieces wait in an open transaction."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    sink = world.sink(world.sink_file("team", table(columns={"id": "id", "v": "v"})))
    world.src("INSERT INTO t VALUES (0, 'first')")
    world.wait_rows("SELECT * FROM team.t", [(0, "first")])
    world.src("BEGIN; INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 120000) i; ALTER TABLE t ADD COLUMN w int;"
              "UPDATE t SET w = 1, v = v || '!' WHERE id % 10 = 0; INSERT INTO t SELECT i, 'w', 2 FROM generate_series(200000, 260000) i; COMMIT")
    world.wait_equal([("SELECT id, v FROM t", "SELECT id, v FROM team.t")])
    assert sink.running()


def test_an_unfinished_transaction_holds_no_locks(world):
    """The connector dies in the middle of a transaction: the sink gives its locks back, and reads it again later."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t VALUES (0, 'first')")
    world.wait_rows("SELECT * FROM team.t", [(0, "first")])
    world.src("INSERT INTO t SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 150000) i")
    open_piece = ("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'spate sink%' AND state = 'idle in transaction'"
                  " AND datname = current_database()")
    scratch.until(lambda: world.tgt("SELECT 1 FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace"
                                    " WHERE c.relname = 't' AND n.nspname = 'team' AND l.mode = 'RowExclusiveLock'"), "a piece is applied", 60, every=0.005)
    connector.kill()
    assert world.tgt("SELECT count(*) FROM team.t") == [(1,)]
    sink.wait_log("event=transaction-unfinished", 30)
    scratch.until(lambda: not world.tgt(open_piece), "no transaction is open", 10)
    world.connector()
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")], seconds=120)
    assert sink.running() and position(world)[0] == 150001


def test_a_zombie_is_fenced(world):
    """T3: whoever finds another generation than its own writes nothing more."""
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    sink = world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    world.tgt("UPDATE team.spate_sink SET generation = generation + 1")
    world.src("INSERT INTO t VALUES (2)")
    assert sink.wait_exit() == 3
    sink.wait_log("another process has taken over")
    assert world.tgt("SELECT * FROM team.t") == [(1,)]


def test_a_position_that_somebody_changed_is_noticed(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    sink = world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    world.tgt("UPDATE team.spate_sink SET n = n - 1")
    world.src("INSERT INTO t VALUES (2)")
    assert sink.wait_exit() == 3
    sink.wait_log("was changed by somebody else")
    assert world.tgt("SELECT * FROM team.t") == [(1,)]


def test_restart_begins_anew(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int)")
    world.connector()
    file = world.sink_file("team", table())
    sink = world.sink(file)
    world.src("INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i; UPDATE t SET v = -v WHERE id > 100")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert sink.stop() == 0
    world.tgt("DELETE FROM team.t WHERE id > 50")
    assert world.run("sink", "-c", file, "--restart", "nobody", check=None)[0] == 2
    again = world.sink(file, arguments=("--restart", "team"))
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert again.stop() == 0
    once_more = world.sink(file)  # the plain INSERTs of T33 met rows on the way, and that is no error
    once_more.wait_log("event=streaming")
    assert once_more.stop() == 0


def test_changes_of_rows_that_are_not_there_are_counted(world):
    """T12: rows older than the stream."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL;"
              "INSERT INTO t SELECT i, i, repeat('x', 9000) FROM generate_series(1, 5) i")
    world.connector()
    sink = world.sink(world.sink_file("team", table(), snapshot="manual"))
    sink.wait_log("event=streaming")
    world.src("UPDATE t SET v = 0 WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE t SET id = 30, v = 1 WHERE id = 3;"
              "UPDATE t SET large = 'whole' WHERE id = 4; INSERT INTO t VALUES (6, 6, 'new')")
    world.wait_rows("SELECT id, v, large FROM team.t ORDER BY id", [(4, 4, "whole"), (6, 6, "new")])
    assert sink.stop() == 0
    assert position(world)[3] == 3
    sink.wait_log("missing=3")


def test_what_is_passed_by_moves_the_position(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE busy (id int PRIMARY KEY)")
    world.connector()
    sink = world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t VALUES (1); INSERT INTO busy SELECT generate_series(1, 1000)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    scratch.until(lambda: position(world)[0] >= 1001, "the position moves without rows", 25)
    assert sink.running()


def test_merges_go_by_the_key(world):
    """T34: staging tables have no statistics, and a scan of a large target would be minutes per batch."""
    world.src("CREATE TABLE t (id int PRIMARY KEY, v int, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL")
    world.connector()
    world.sink(world.sink_file("team", table()))
    # The planner finds no use for an index on a table of one row; a plan of that time must not be kept.
    world.src("INSERT INTO t VALUES (0, 0, repeat('x', 5000))")
    world.wait_rows("SELECT count(*) FROM team.t", [(1,)])
    world.tgt("ALTER TABLE team.t SET (autovacuum_enabled = off)")
    world.tgt("VACUUM ANALYZE team.t")
    world.src("UPDATE t SET v = 1 WHERE id = 0; INSERT INTO t VALUES (-1, 0)")
    world.src("DELETE FROM t WHERE id = -1; UPDATE t SET id = -2 WHERE id = 0")
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    world.src("DELETE FROM t")
    world.src("INSERT INTO t SELECT i, i, CASE WHEN i <= 400 THEN repeat('x', 5000) END FROM generate_series(1, 30000) i")
    world.wait_rows("SELECT count(*) FROM team.t", [(30000,)])

    def scans():
        return world.tgt("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relid = 'team.t'::regclass")[0]

    # What the session did so far (making the table scans it once) is counted when its statistics arrive.
    scratch.until(lambda: world.tgt("SELECT 1 FROM pg_stat_user_tables WHERE relid = 'team.t'::regclass AND n_tup_ins >= 30000"),
                  "the statistics of the load", 30)
    before = scans()
    world.src("UPDATE t SET v = v + 1 WHERE id <= 400; DELETE FROM t WHERE id BETWEEN 500 AND 700; UPDATE t SET v = 7 WHERE id > 29000")
    world.src("UPDATE t SET v = v + 1 WHERE id = 1; DELETE FROM t WHERE id = 2")
    # 400 partial rows, 202 deletes: the statistics arrive when the session is idle.
    scratch.until(lambda: scans()[1] >= before[1] + 602, lambda: f"rows are found by the key's index: {before} became {scans()}", 20)
    assert scans()[0] == before[0]
    # Few enough rows for the statements that were prepared and used when the table had one row.
    before = scans()
    world.src("DELETE FROM t WHERE id BETWEEN 1000 AND 1149")
    world.src("UPDATE t SET v = v + 1 WHERE id BETWEEN 3 AND 152")
    scratch.until(lambda: scans()[1] >= before[1] + 300, lambda: f"rows are found by the key's index: {before} became {scans()}", 20)
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])


def test_a_stop_in_the_middle_of_a_wait_for_a_lock(world):
    """T25: the target is locked by somebody; SIGTERM ends the sink within its deadline, and nothing is lost."""
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    file = world.sink_file("team", table(), stop_deadline="4s")
    sink = world.sink(file)
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    locker = world.target.connect(world.db, autocommit=False)
    try:
        locker.cursor().execute("LOCK TABLE team.t IN ACCESS EXCLUSIVE MODE")
        world.src("INSERT INTO t VALUES (2)")
        scratch.until(lambda: world.tgt("SELECT 1 FROM pg_stat_activity WHERE application_name = 'spate sink team' AND wait_event_type = 'Lock'"),
                      "the sink waits for the lock", 20)
        sink.process.send_signal(signal.SIGTERM)
        assert sink.wait_exit(8) == 0, sink.tail()
    finally:
        locker.close()
    again = world.sink(file)
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
    assert again.running()


def test_types_that_the_target_lacks_are_text(world):
    world.src("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN cents AS int CHECK (VALUE >= 0); CREATE TYPE pair AS (a int, b text);"
              "CREATE TABLE t (id int PRIMARY KEY, m mood, c cents, p pair, ms mood[])")
    world.connector()
    sink = world.sink(world.sink_file("team", table()))
    world.src("INSERT INTO t VALUES (1, 'sad', 5, ROW(1, 'x,y'), '{ok,sad}'), (2, NULL, NULL, NULL, '{}')")
    world.wait_rows("SELECT id, m, c, p, ms FROM team.t ORDER BY id", [(1, "sad", 5, '(1,"x,y")', "{ok,sad}"), (2, None, None, None, "{}")])
    types = dict(world.tgt("SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'team.t'::regclass AND attnum > 0"))
    assert types == {"id": "integer", "m": "text", "c": "integer", "p": "text", "ms": "text"}
    assert re.search(r"type-unknown-in-target.*public\.mood", sink.text())


def test_two_processes_take_turns(world):
    """T3: whoever waits and gets the lock is a new owner, also one that owned the sink before."""
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    file = world.sink_file("team", table(), snapshot="manual")  # counts what the stream brought
    first = world.sink(file, name="first")
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    first.process.send_signal(signal.SIGSTOP)
    try:
        world.tgt("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'spate sink team'")
        second = world.sink(file, name="second")
        second.wait_log("event=streaming")
        world.src("INSERT INTO t VALUES (2)")
        world.wait_rows("SELECT count(*) FROM team.t", [(2,)])
    finally:
        first.process.send_signal(signal.SIGCONT)
    first.wait_log("event=waiting-for-owner")
    assert second.stop() == 0
    world.src("INSERT INTO t VALUES (3)")
    world.wait_rows("SELECT id FROM team.t ORDER BY id", [(1,), (2,), (3,)])
    assert first.running() and position(world)[1] == 3 and position(world)[2] == 3


def test_what_would_lose_rows_in_silence_is_refused(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.connector()
    world.tgt("CREATE SCHEMA team")
    file = world.sink_file("team", table())
    made = "CREATE %s TABLE team.t (id int %s, v text)"
    cases = [
        (made % ("UNLOGGED", "PRIMARY KEY"), "SET LOGGED"),
        (made % ("", "PRIMARY KEY") + "; CREATE RULE no AS ON INSERT TO team.t DO INSTEAD NOTHING", "DROP RULE"),
        (made % ("", "PRIMARY KEY DEFERRABLE"), "ADD PRIMARY KEY"),
        (made % ("", "PRIMARY KEY") + "; CREATE UNIQUE INDEX \"Odd\" ON team.t (v)", "DROP INDEX"),
        (made % ("", "PRIMARY KEY") + "; ALTER TABLE team.t ADD CONSTRAINT \"Odd\" UNIQUE (v)", "DEFERRABLE INITIALLY DEFERRED"),
        (made % ("", "UNIQUE, more int NOT NULL"), "DROP NOT NULL"),
        ("CREATE TABLE team.t (id text PRIMARY KEY, v text)", "USING id::integer"),
        ("CREATE TABLE team.t (id int PRIMARY KEY, v varchar(3))", "USING v::text"),
        ("CREATE TABLE team.t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)", "DROP IDENTITY"),
        (made % ("", ""), "ADD UNIQUE"),
        (made % ("", "PRIMARY KEY") + "; CREATE TABLE team.kid (t int REFERENCES team.t ON DELETE CASCADE)", "DEFERRABLE INITIALLY DEFERRED"),
        (made % ("", "PRIMARY KEY") + "; CREATE TABLE team.kid (t int REFERENCES team.t)", "DEFERRABLE INITIALLY DEFERRED"),
        ("CREATE TABLE team.t (id int PRIMARY KEY)", "ADD COLUMN"),
        (made % ("", "PRIMARY KEY") + "; CREATE FUNCTION team.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
         "CREATE TRIGGER \"All\" BEFORE INSERT ON team.t FOR EACH ROW EXECUTE FUNCTION team.f()", "DISABLE TRIGGER"),
    ]
    for sql, words in cases:
        world.tgt(sql)
        code, _out, log = world.run("sink", "-c", file)
        assert code == 4 and words in log, (sql, log)
        remedy = re.search(r"(ALTER TABLE|DROP RULE|DROP INDEX)[^;]*;", log).group(0).replace('\\"', '"')
        assert words in remedy
        world.tgt(remedy)  # typed as it stands there
        sink = world.sink(file)
        sink.wait_log("event=streaming")
        assert sink.stop() == 0
        world.tgt("DROP TABLE team.t CASCADE; DROP TABLE IF EXISTS team.kid")


def test_tables_that_refer_to_each_other(world):
    """A15: a parent that is deleted and inserted again keeps its children, and the order of tables does not matter."""
    world.src("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE q (id int PRIMARY KEY, aid int REFERENCES a DEFERRABLE INITIALLY DEFERRED)")
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.a (id int PRIMARY KEY, v text);"
              "CREATE TABLE team.q (id int PRIMARY KEY, aid int REFERENCES team.a DEFERRABLE)")
    world.connector()
    sink = world.sink(world.sink_file("team", {"q": {"from": "public.q"}, "a": {"from": "public.a"}}))
    world.src("BEGIN; INSERT INTO q SELECT i, i FROM generate_series(1, 500) i; INSERT INTO a SELECT i, 'v' FROM generate_series(1, 500) i; COMMIT")
    world.src("BEGIN; DELETE FROM a WHERE id = 2; INSERT INTO a VALUES (2, 'again'); DELETE FROM a WHERE id = 3; DELETE FROM q WHERE id = 3; COMMIT")
    world.src("BEGIN; UPDATE a SET id = id + 1000; UPDATE q SET aid = aid + 1000; COMMIT")
    world.wait_equal([("SELECT * FROM a", "SELECT * FROM team.a"), ("SELECT * FROM q", "SELECT * FROM team.q")])
    assert sink.running()


def test_a_dropped_table_is_not_made_anew(world):
    """A17: an empty table in its place would hold later rows only, and nobody would know."""
    world.src("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    world.connector()
    file = world.sink_file("team", table())
    sink = world.sink(file)
    world.src("INSERT INTO t VALUES (1)")
    world.wait_rows("SELECT * FROM team.t", [(1,)])
    world.tgt("DROP TABLE team.t")
    world.src("INSERT INTO t VALUES (2)")
    assert sink.wait_exit() == 4
    sink.wait_log("was dropped")
    assert world.run("sink", "-c", file)[0] == 4
    # Begun anew on purpose, it is made again; a table that is new in the file is made as well, and that is said.
    again = world.sink(file, arguments=("--restart", "team"))
    world.wait_rows("SELECT * FROM team.t ORDER BY id", [(1,), (2,)])
    assert again.stop() == 0
    more = world.sink(world.sink_file("team", {**table(), "u": {"from": "public.u"}}))
    more.wait_log("level=warn event=table-created .*team.u")
    world.src("INSERT INTO u VALUES (7)")
    world.wait_rows("SELECT * FROM team.u", [(7,)])
    world.tgt("DROP TABLE team.spate_sink")
    world.src("INSERT INTO u VALUES (8)")
    assert more.wait_exit() == 3, more.tail()
    more.wait_log("position table")


def test_a_place_that_is_gone_is_seen_where_a_load_begins(world):
    """The next that the sink does is to begin a load, and not to move its place: the words are the same."""
    world.src("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TABLE u (id int PRIMARY KEY)")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", table(), snapshot="auto"))
    sink.wait_log("event=snapshot-finished")
    assert sink.stop() == 0 and connector.stop() == 0
    sink = world.sink(world.sink_file("team", {**table(), "u": {"from": "public.u"}}, snapshot="auto"))
    sink.wait_log("event=snapshot-asked")
    world.tgt("DROP TABLE team.spate_sink")
    world.connector()
    assert sink.wait_exit() == 3, sink.tail()
    sink.wait_log("position table")
