"""A table of a sink while all its rows come anew (6.6): which rows a change may touch, what is read again, what is swept.

A driver (tests/support/sinks_drive.c) stands for everything before the target, so that schedules which a real
connector rarely makes are met here by the hundred: it is told which changes, rows of chunks and steps come, dies where
it is told to, and goes on from what stands in the target.
"""
import os
import random
import re
import signal
import subprocess
import threading

import pytest

from tests.support import scratch

SQL = "SELECT id, a, b FROM team.%s ORDER BY id"
FAILPOINTS = ["sink_load_begin", "sink_chunk_applied", "sink_sweep", "sink_swept", "sink_sent", "sink_commit", "sink_committed"]


@pytest.fixture(scope="module")
def tool():
    path = os.path.join(scratch.ROOT, "build", "failpoints", "tests", "support", "sinks_drive")
    subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, "VARIANT=failpoints", os.path.relpath(path, scratch.ROOT)], check=True)
    return path


class Dead(Exception):
    pass


class Drive:
    def __init__(self, tool, world, ends="sweep", tables=("t",)):
        self.tool, self.world, self.ends, self.tables = tool, world, ends, tables
        self.process = None

    def open(self, failpoints=None):
        self.close()
        env = {**os.environ, **({"SPATE_FP": failpoints} if failpoints else {})}
        self.process = subprocess.Popen([self.tool, self.world.target.url(self.world.db), "team", self.ends, *self.tables], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, bufsize=1,
                                        preexec_fn=scratch.child_setup())
        line = self.process.stdout.readline()
        assert line == "open\n", line + self.process.stderr.read()
        return self

    def close(self):
        if self.process:
            self.process.stdin.close()
            code, words = self.process.wait(20), self.process.stderr.read()
            self.process.stdout.close()
            self.process.stderr.close()
            self.process = None
            assert code in (0, -signal.SIGKILL), words

    def say(self, line):
        """The answer to a line; Dead when the failpoint was met."""
        try:
            self.process.stdin.write(line + "\n")
        except BrokenPipeError:
            raise Dead from None
        answer = self.process.stdout.readline()
        if not answer:
            assert self.process.wait(10) == -signal.SIGKILL, self.process.stderr.read()
            raise Dead
        return answer.rstrip("\n")

    def ok(self, *lines):
        for line in lines:
            answer = self.say(line)
            assert answer.startswith("ok"), f"{line}: {answer}"
        return answer[3:]

    def place(self):
        row = self.world.tgt("SELECT bus_position FROM team.spate_sink")
        return int(row[0][0].split(":")[1], 16) if row and row[0][0] is not None else None


@pytest.fixture
def drive(tool, world):
    made = []

    def make(**more):
        made.append(Drive(tool, world, **more))
        return made[-1].open()

    yield make
    for one in made:
        if one.process:
            one.process.kill()
        one.close()


def rows(world, table="t"):
    return world.tgt(SQL % table)


def own_tables(world):
    return [r[0] for r in world.tgt("SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'team' "
                                    "AND relkind = 'r' AND relname ~ '^spate_(mark|list|new)_'")]


# ---- any schedule ----

class Source:
    """The truth, and the log that tells it. A chunk brings the state of its rows where it stands in the log; a row that
    was changed since the snapshot began may be left out of it, as the connector leaves out what it cannot place."""

    KEYS = 12

    def __init__(self, rand, partial):
        self.random, self.partial, self.rows, self.log, self.touched = rand, partial, {}, [], set()

    def value(self):
        return f"v{self.random.randrange(10**6)}"

    def change(self):
        key, rand = self.random.randrange(self.KEYS), self.random
        kind = rand.random()
        self.touched.add(key)
        if kind < 0.02:
            self.log.append("t t")
            self.rows.clear()
        elif key not in self.rows:
            self.rows[key] = (rand.randrange(100), self.value())
            self.log.append(f"i t {key} {self.rows[key][0]} {self.rows[key][1]}")
        elif kind < 0.2:
            del self.rows[key]
            self.log.append(f"d t {key}")
        else:
            a, b = rand.randrange(100), self.rows[key][1]
            sent = "-" if self.partial and rand.random() < 0.7 else self.value()
            new = key
            if kind < 0.45:
                new = rand.choice([k for k in range(self.KEYS) if k not in self.rows] or [key])
                self.touched.add(new)
            del self.rows[key]
            self.rows[new] = (a, b if sent == "-" else sent)
            self.log.append(f"u t {key} {a} {sent}" if new == key else f"m t {key} {new} {a} {sent}")

    def read(self, keys, may_drop=True):
        dropped = {k for k in keys if may_drop and k in self.touched and self.random.random() < 0.5}
        for key in keys:
            if key in self.rows and key not in dropped:
                self.log.append(f"r t {key} {self.rows[key][0]} {self.rows[key][1]}")
        return dropped

    def expected(self):
        return [(k, a, b) for k, (a, b) in sorted(self.rows.items())]


def consume(drive, source, done, commit_rate):
    """Says what the log holds beyond `done`; "|NO TOKEN" ends a chunk, which is never cut."""
    at, pending = done, False
    while at < len(source.log):
        line = source.log[at]
        at += 1
        if line.startswith("|"):
            drive.ok(f"commit {at} t {line[1:]}")
            pending = False
        elif line.startswith("begin"):
            if pending:
                drive.ok(f"commit {at - 1}")
            drive.ok(line, f"commit {at}")
            pending = False
        else:
            drive.ok(line)
            pending = True
            if line[0] not in "rk" and source.random.random() < commit_rate:
                pending = source.random.random() < 0.2
                drive.ok("piece" if pending else f"commit {at}")
    drive.ok(f"commit {at}")
    return at


def whole_chunk(source, no, keys):
    source.read(keys)
    source.log.append(f"|{no} token{no}")


def schedule(source, scope, chunks):
    source.touched.clear()
    source.log.append(f"begin {scope} q1 t")
    keys = list(range(Source.KEYS))
    for no in range(1, chunks + 1):
        for _ in range(source.random.randrange(8)):
            source.change()
        whole_chunk(source, no, keys[(no - 1) * len(keys) // chunks:no * len(keys) // chunks])
    for _ in range(source.random.randrange(8)):
        source.change()


def run_through(drive, source, no):
    """To the end of the log, then what has to be read again, until the list is empty."""
    place = drive.place()
    drive_done = consume(drive, source, place if place is not None else 0, 0.3)
    for _ in range(50):
        asked = [int(k) for k in re.findall(r'"id":\s*"?(\d+)', drive.ok("keys t 5"))]
        if not asked:
            return
        for _ in range(source.random.randrange(3)):
            source.change()
        no += 1
        dropped = source.read(asked)
        source.log += [f"k t {key}" for key in asked if key not in dropped]
        source.log.append(f"|{no} token{no}")
        drive_done = consume(drive, source, drive_done, 0.3)
    raise AssertionError("the re-read list never became empty")


COPIED = "t~a >= 20 and right(b, 1) <> '3'"


def copied(rows):
    """What COPIED makes of the source's rows, as sinks_drive.c has it."""
    return [(k, a, f"{b}.{a}") for k, a, b in rows if a >= 20 and not b.endswith("3")]


PROJECTIONS = {"empty": list, "marked": list, "shadow": list, "where": lambda rows: [row for row in rows if row[1] >= 20],
               "empty copy": copied, "marked copy": copied, "shadow copy": copied}


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_any_schedule_ends_with_what_exists(drive, world, seed, kind):
    """T11, T14-T16, P94: partial updates and key moves before, between and after the chunks, rows that moved past the
    reader, stale rows; F44: dead in any state, and on from what is stored."""
    for number in range(6):
        rand = random.Random(f"{seed}.{kind}.{number}")
        tables = ("t=a >= 20",) if kind == "where" else (COPIED,) if "copy" in kind else ("t",)
        sink = drive(ends="swap" if "shadow" in kind else "sweep", tables=tables)
        source, project = Source(rand, partial=kind != "where"), PROJECTIONS[kind]
        for _ in range(20):
            source.change()
        old = []
        if "empty" not in kind:
            old = [(k, 1000 + k, "stale") for k in rand.sample(range(Source.KEYS + 4), 9)]
            if "copy" in kind and number % 3:  # else the copy is new, and the table is not
                sink.ok(*(f"i t {k} {a} {b}" for k, a, b in old), "commit 0")
                old = project(old)
            else:
                world.tgt("INSERT INTO team.t VALUES " + ", ".join(map(str, old)))
        source.log.clear()  # nobody listened
        schedule(source, "all", rand.randrange(1, 5))
        kills = rand.sample(FAILPOINTS, 3) if number % 2 else []
        while True:
            point = kills.pop() if kills else None
            sink.open(f"{point}=kill@{rand.choice([1, 1, 2, 5])}" if point else None)
            try:
                if "request=q1" in sink.ok("state t") or not sink.place():
                    run_through(sink, source, 100)
                    if "shadow" in kind:
                        assert rows(world) == sorted(old), f"{kind} {number}: readers saw something else before the end"
                    sink.ok("finish t")
                break
            except Dead:
                continue
        state = sink.open().ok("state t")
        assert state.startswith("none ready=1 changed=0 request= ") and state.endswith(" missing=0"), state
        assert rows(world) == project(source.expected()), f"seed {seed}, {kind}, run {number}:\n" + "\n".join(source.log)
        assert own_tables(world) == []
        for _ in range(10):  # and the stream goes on
            source.change()
        consume(sink, source, sink.place(), 0.5)
        assert rows(world) == project(source.expected())
        sink.close()
        world.tgt("DROP SCHEMA team CASCADE")


def test_a_copy_never_mixes_what_it_has_of_a_row(drive, world, seed):
    """T11: the source's columns change to and fro: a row that was kept with others is not known, so what does not come whole
    makes no row of old and new values; before and after all rows came, and killed in between."""
    def copied(kept):
        return [(k, a, f"{b}.{a}") for k, a, b in kept if a >= 20]

    for number in range(4):
        sink, rand = drive(tables=("t~a >= 20",)), random.Random(f"{seed}.mix.{number}")
        source, ever, v, no = Source(rand, partial=True), set(), 1, 1
        source.touched = set()
        for step in range(12):
            if step in (4, 9):  # everything comes, in one piece
                source.log += [f"begin all q{step} t"]
                sink.ok(f"v t {v}")
                consume(sink, source, sink.place() or 0, 0.3)
                source.read(range(Source.KEYS), may_drop=False)
                source.log.append("|1 x")
                consume(sink, source, sink.place(), 0.3)
                assert sink.ok("keys t 9") == "[]"
                sink.ok("finish t")
                assert sink.ok("state t").startswith("none ready=1 changed=0") and rows(world) == copied(source.expected())
            if step not in (5, 10) and rand.random() < 0.6:
                v = rand.choice([1, 2, 3])
            source.partial = v != 3
            sink.ok(f"v t {v}")
            for _ in range(rand.randrange(1, 9)):
                source.change()
                ever |= set(copied(source.expected()))
            try:
                consume(sink, source, sink.place() or 0, 0.5)
            except AssertionError as stopped:  # complete, and its columns are as they were: the row must be there
                raise AssertionError(f"seed {seed}, run {number}, v {v}:\n" + "\n".join(source.log)) from stopped
            assert set(rows(world)) <= ever, f"seed {seed}, run {number}:\n" + "\n".join(source.log)
            if step in (5, 10) and "changed=0" in sink.ok("state t") and "ready=1" in sink.ok("state t"):
                assert rows(world) == copied(source.expected())
            if rand.random() < 0.3:
                sink.open()
        sink.close()
        world.tgt("DROP SCHEMA team CASCADE")


def test_truncate_ends_what_was_known(drive, world):
    """F39: of rows that are gone nothing is to be read again, and no mark keeps another from taking their place."""
    for ends in ("sweep", "swap"):
        sink = drive(ends=ends)
        world.tgt("INSERT INTO team.t VALUES (1, 1, 'stale'), (9, 9, 'stale')")
        sink.open().ok("begin all q1 t", "commit 1", "r t 1 1 one", "r t 2 2 two", "u t 5 5 -", "commit 2 t 1 x")
        assert sink.ok("keys t 9") == '[{"id":5}]'
        sink.ok("t t", "commit 3")
        assert sink.ok("keys t 9") == "[]"
        assert all(world.tgt(f"SELECT count(*) FROM team.{table}") == [(0,)] for table in own_tables(world))
        assert len(rows(world)) == (0 if ends == "sweep" else 2)
        sink.ok("i t 7 7 seven", "m t 7 1 8 -", "r t 3 3 three", "commit 4 t 2 y", "finish t")
        assert rows(world) == [(1, 8, "seven"), (3, 3, "three")]
        sink.close()
        world.tgt("DROP SCHEMA team CASCADE")


def test_a_conditional_snapshot_adds_and_corrects_and_removes_nothing(drive, world):
    sink = drive()
    sink.ok("i t 1 1 one", "i t 2 2 two", "commit 1", "begin all q1 t", "commit 2", "r t 1 1 one", "r t 2 2 two", "commit 3 t 1 x", "finish t")
    sink.ok("begin some q2 t", "commit 4")
    assert sink.ok("state t").startswith("add ready=1")
    # A partial update of a row that is not there is asked for again; one that moves there takes the place.
    sink.ok("r t 1 10 corrected", "r t 5 5 added", "u t 6 6 -", "m t 5 2 50 -", "commit 5 t 1 y")
    assert sink.ok("keys t 10") == '[{"id":6}]'
    sink.ok("r t 6 6 six", "k t 6", "commit 6 t 2 z")
    assert sink.ok("keys t 10") == "[]"
    sink.ok("finish t")
    assert rows(world) == [(1, 10, "corrected"), (2, 50, "added"), (6, 6, "six")]
    assert sink.ok("state t").startswith("none ready=1")
    sink.ok("begin some q3 t", "commit 7", "abandon kept t")
    assert sink.ok("state t").startswith("none ready=1")
    sink.ok("abandon stale t")
    assert sink.ok("state t").startswith("none ready=0")


def complete(sink, at=1, count=5, table="t"):
    """A table of rows 1..count that holds exactly what exists."""
    sink.ok(f"begin all whole {table}", f"commit {at}", *(f"r {table} {i} {i} v{i}" for i in range(1, count + 1)), f"commit {at + 1} {table} 1 x", f"finish {table}")


@pytest.mark.parametrize("change", ["u t 9 1 -", "d t 9", "m t 9 10 1 -"])
def test_a_complete_table_that_lacks_a_row_stops_the_sink(drive, world, change):
    """T11, T12: named by table and number, nothing of the batch applied; a table that was never complete goes on."""
    sink = drive()
    sink.ok("i t 1 1 one", change, "commit 1")
    assert sink.ok("state t").endswith("missing=1")
    complete(sink, 2)
    for extra in ("", "piece"):
        answer = [sink.say(line) for line in ["i t 20 20 new", "u t 2 22 -", *filter(None, [extra]), change, "i t 21 1 x", "commit 5"]][-1]
        assert answer.startswith("fail exit=3") and '"team"."t"' in answer and "--restart team" in answer, answer
        number = int(re.search(r" n=(\d+)", answer)[1])
        assert ("to n=" in answer) == bool(extra)  # the pieces before are gone, and cannot be tried again
        assert rows(world) == [(i, i, f"v{i}") for i in range(1, 6)]
        last = number
    assert last > 0
    sink.ok("u t 2 22 -", "d t 3", "m t 4 40 4 -", "i t 50 1 x", "d t 50", "d t 1", "i t 1 7 again", "commit 9")
    assert rows(world) == [(1, 7, "again"), (2, 22, "v2"), (5, 5, "v5"), (40, 4, "v4")]


def test_a_changed_projection_has_to_be_loaded_anew(drive, world):
    """The stored hash is that of the lines which the rows were written by; until they came anew nothing is judged by them."""
    sink = drive()
    complete(sink)
    assert "changed=0" in sink.open().ok("state t")
    sink.tables = ("t=a > 2",)
    assert "ready=1 changed=1" in sink.open().ok("state t")
    sink.ok("begin all q2 t", "commit 3")
    assert "ready=0 changed=0" in sink.ok("state t")
    sink.ok("r t 2 2 v2", "r t 3 3 v3", "commit 4 t 1 x", "finish t")
    assert rows(world) == [(3, 3, "v3")]
    assert "ready=1 changed=0" in sink.open().ok("state t")


def test_readers_never_see_a_half_empty_table(drive, world):
    """sweep: rows go at the end only, all at once; swap: the old picture, then the new one, and nothing between. What the
    team hung on the table stays."""
    for ends in ("sweep", "swap"):
        sink = drive(ends=ends)
        world.tgt("INSERT INTO team.t SELECT i, i, 'old' FROM generate_series(1, 3000) i; ALTER TABLE team.t ADD COLUMN own text DEFAULT 'mine';"
                  "CREATE VIEW team.v AS SELECT * FROM team.t; CREATE INDEX by_a ON team.t (a)")
        seen, stop = set(), threading.Event()

        def watch():
            connection = world.target.connect(world.db)
            cursor = connection.cursor()
            while not stop.is_set():
                cursor.execute("SELECT count(*), count(*) FILTER (WHERE b = 'old'), sum(a) FROM team.v")
                seen.add(tuple(map(int, cursor.fetchone())))
            connection.close()

        sink.open()
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            sink.ok("begin all q1 t", "commit 1")
            for no in range(4):
                sink.ok(*(f"r t {i} {i} {'old' if i % 2 else 'new'}" for i in range(1001 + no * 700, 1701 + no * 700)), f"commit {no + 2} t {no + 1} x")
            scratch.until(lambda: seen, "the reader has read")
            sink.ok("finish t")
            scratch.until(lambda: {s[0] for s in seen} >= {2800}, "the reader has seen the end", 10)
        finally:
            stop.set()
            watcher.join()
        assert world.tgt("SELECT min(id), max(id), count(*), count(own) FROM team.v") == [(1001, 3800, 2800, 2800)]
        if ends == "swap":
            old, new = (3000, 3000, 3000 * 3001 // 2), (2800, 1400, sum(range(1001, 3801)))
            assert seen == {old, new}
        else:
            assert all(s[0] == 2800 or 3000 <= s[0] <= 3800 for s in seen), seen
        assert own_tables(world) == []
        sink.close()
        world.tgt("DROP SCHEMA team CASCADE")


def test_what_did_not_change_is_not_written_at_the_exchange(drive, world):
    """swap takes over what differs, and what is only equal to it (1.0 and 1.00) is not the same."""
    sink = drive(ends="swap")
    complete(sink, count=6)
    before = dict(world.tgt("SELECT id, xmin::text FROM team.t"))
    sink.ok("begin all q2 t", "commit 3", "r t 1 1 v1", "r t 2 2 V2", "r t 3 3 ~", "r t 7 7 v7", "commit 4 t 1 x", "finish t")
    after = dict(world.tgt("SELECT id, xmin::text FROM team.t"))
    assert rows(world) == [(1, 1, "v1"), (2, 2, "V2"), (3, 3, None), (7, 7, "v7")]
    assert after[1] == before[1] and after[2] != before[2] and after[3] != before[3]


@pytest.mark.parametrize("ends", ["sweep", "swap"])
@pytest.mark.parametrize("made", [
    "CREATE TABLE team.t (id int PRIMARY KEY, a int, b text) PARTITION BY RANGE (id);"
    "CREATE TABLE team.t1 PARTITION OF team.t FOR VALUES FROM (MINVALUE) TO (3); CREATE TABLE team.t2 PARTITION OF team.t FOR VALUES FROM (3) TO (MAXVALUE)",
    "CREATE TABLE team.t (own int GENERATED ALWAYS AS IDENTITY, id int UNIQUE NOT NULL, twice int GENERATED ALWAYS AS (a * 2) STORED,"
    "a bigint CHECK (a > 0), b text, j json DEFAULT '{}', UNIQUE (b) DEFERRABLE INITIALLY DEFERRED)",
], ids=["partitions", "own columns"])
def test_whatever_the_team_made_of_its_table(drive, world, made, ends):
    """Partitions, generated and identity columns, wider types, deferrable constraints: they are the team's, and stay; T7: a
    row that is gone holds on to a unique value that another one has now."""
    world.tgt("CREATE SCHEMA team;" + made + "; INSERT INTO team.t (id, a, b) VALUES (1, 1, 'one'), (2, 2, 'two'), (4, 4, 'four')")
    sink = drive(ends=ends)
    sink.ok("begin all q1 t", "commit 1", "r t 1 1 one", "r t 2 2 four", "u t 5 5 -", "commit 2 t 1 x", "r t 6 6 six", "m t 6 3 7 -", "commit 3 t 2 y")
    assert sink.ok("keys t 5") == '[{"id":5}]'
    sink.open().ok("r t 5 5 two", "k t 5", "commit 4 t 3 z", "finish t")
    assert rows(world) == [(1, 1, "one"), (2, 2, "four"), (3, 7, "six"), (5, 5, "two")]
    if "own" in made:
        assert world.tgt("SELECT count(DISTINCT own), bool_and(twice = a * 2), bool_and(j::text = '{}') FROM team.t") == [(4, True, True)]
    assert own_tables(world) == [] and world.tgt("SELECT count(*) FROM pg_sequences") in ([(0,)], [(1,)])


def test_tables_that_refer_to_each_other_end_together(drive, world):
    """A row may come before the one that it refers to, and its old version stay after that one went."""
    sink = drive(tables=("p", "c", "x"))
    world.tgt("ALTER TABLE team.c ADD FOREIGN KEY (a) REFERENCES team.p DEFERRABLE INITIALLY DEFERRED;"
              "INSERT INTO team.p VALUES (1, 1, 'old'), (2, 2, 'old'); INSERT INTO team.c VALUES (1, 1, 'old'), (2, 2, 'old'); INSERT INTO team.x VALUES (1, 1, 'old')")
    sink.open().ok("begin all q1 c p x", "commit 1")
    assert [sink.ok(f"state {t}").split()[0] for t in "pcx"] == ["shadow", "shadow", "marked"]
    sink.ok("r c 5 5 new", "r c 1 1 new", "commit 2 c 1 x", "d p 2", "r p 1 1 new", "commit 3 p 1 x", "i p 5 5 new", "commit 4")
    assert [len(rows(world, t)) for t in "pcx"] == [2, 2, 1]
    sink.ok("finish c p x")
    assert rows(world, "p") == [(1, 1, "new"), (5, 5, "new")] and rows(world, "c") == [(1, 1, "new"), (5, 5, "new")] and rows(world, "x") == []
    # The parent alone, in place: somebody else's row holds on to what is gone, and the words say what to do.
    sink.ok("begin all q2 p", "commit 5", "r p 1 1 new", "commit 6 p 1 x")
    assert sink.ok("state p").startswith("marked")
    answer = sink.say("finish p")
    assert answer.startswith("fail exit=4 sqlstate=23503") and "start the sink again" in answer, answer
    world.tgt("DELETE FROM team.c WHERE id = 5")
    sink.open().ok("finish p")
    assert rows(world, "p") == [(1, 1, "new")]


def test_a_load_whose_tables_are_gone_or_do_not_fit_is_void(drive, world):
    """Dropped marks would have the sweep remove every row; a shadow that the table outgrew cannot take its place."""
    sink = drive()
    for ends, kind, harm in (("sweep", "marked", "DROP TABLE team.{mark}"), ("sweep", "marked", "DROP TABLE team.{list}"),
                             ("swap", "shadow", "ALTER TABLE team.t ADD COLUMN more int"), ("swap", "shadow", "DROP TABLE team.{new}")):
        sink.ends = ends
        sink.open().ok("abandon stale t", "i t 1 1 one", "commit 1", "begin all q1 t", "commit 2", "r t 1 1 new", "commit 3 t 1 x")
        assert sink.open().ok("state t").startswith(f"{kind} ready=0 changed=0 request=q1 chunk=1 resume=x")
        world.tgt(harm.format(**{name.split("_")[1]: name for name in own_tables(world)}))
        assert sink.open().ok("state t").startswith("none ready=0"), harm
        assert own_tables(world) == []
        sink.ok("begin all q2 t", "commit 4", "r t 2 2 new", "commit 5 t 1 x", "finish t")
        assert rows(world) == [(2, 2, "new")]
    sink.ok("begin all q3 t", "commit 6")
    assert own_tables(world)
    sink.tables = ("u",)  # no longer in the file
    sink.open()
    assert own_tables(world) == []


def test_a_backup_of_the_target_holds_up_no_end(drive, world):
    """A dump reads every table for hours, those beside the team's as well; the end of a snapshot does not wait for it."""
    sink = drive()
    complete(sink)
    sink.ok("begin all q2 t", "commit 3", "r t 1 1 v1", "commit 4 t 1 x")
    dump = world.target.connect(world.db, autocommit=False)
    try:
        for table in ["t", *own_tables(world)]:
            dump.cursor().execute(f"LOCK TABLE team.{table} IN ACCESS SHARE MODE")
        sink.ok("finish t")
        assert rows(world) == [(1, 1, "v1")] and len(own_tables(world)) == 2
        sink.ok("i t 2 2 two", "commit 5")
    finally:
        dump.close()
    assert sink.open().ok("state t").startswith("none ready=1") and own_tables(world) == []


def test_marks_outlive_a_crash_of_the_target(drive, world, target):
    """T5: marks, rows and progress are forgotten together or not at all; a lost mark would be a lost row."""
    sink = drive()
    world.tgt("INSERT INTO team.t SELECT i, i, 'stale' FROM generate_series(1, 3000) i")
    sink.open().ok("begin all q1 t", "commit 1")
    sink.ok(*(f"r t {i} {i} new" for i in range(500, 1500)), "commit 2 t 1 x", *(f"r t {i} {i} new" for i in range(1500, 2000)), "u t 2500 7 -", "commit 3 t 2 y")
    sink.process.kill()
    target.stop("immediate")
    target.start()
    place = sink.open().place() or 0  # commits are asynchronous: the last ones may be gone, all of each
    chunk = int(re.search("chunk=([0-9]+)", sink.ok("state t"))[1])
    assert chunk == max(place - 1, 0)
    if place < 1:
        sink.ok("begin all q1 t", "commit 1")
    if place < 2:
        sink.ok(*(f"r t {i} {i} new" for i in range(500, 1500)), "commit 2 t 1 x")
    if place < 3:
        sink.ok(*(f"r t {i} {i} new" for i in range(1500, 2000)), "u t 2500 7 -", "commit 3 t 2 y")
    assert world.tgt("SELECT count(*) FROM team." + next(t for t in own_tables(world) if "mark" in t)) == [(1500,)]
    assert sink.ok("keys t 10") == '[{"id":2500}]'
    sink.ok("r t 2500 7 seven", "k t 2500", "commit 4 t 3 z", "finish t")
    assert world.tgt("SELECT count(*), count(*) FILTER (WHERE b = 'new'), min(id), max(id) FROM team.t") == [(1501, 1500, 500, 2500)]


def test_a_zombie_moves_no_load(tool, drive, world):
    """T3: begin and end are guarded by the generation as rows are."""
    sink = drive()
    complete(sink)
    sink.ok("begin all q2 t", "commit 3", "r t 1 1 v1", "commit 4 t 1 x")
    world.tgt("UPDATE team.spate_sink SET generation = generation + 1")
    for line in ("finish t", "abandon stale t"):
        answer = sink.say(line)
        assert answer.startswith("fail exit=3") and "another process has taken over sink team" in answer, answer
    assert len(rows(world)) == 5 and len(own_tables(world)) == 2


def test_what_a_load_adds_goes_by_keys(drive, world):
    """T34: neither the target nor marks and list are scanned for a batch, however little is known about them."""
    sink = drive()
    world.tgt("INSERT INTO team.t SELECT i, i, 'stale' FROM generate_series(1, 20000) i; ALTER TABLE team.t SET (autovacuum_enabled = off)")
    sink.open().ok("begin all q1 t", "commit 1")
    sink.ok(*(f"r t {i} {i} new" for i in range(1, 1001)), "commit 2 t 1 x")
    own = own_tables(world)
    world.tgt(";".join(f"ALTER TABLE team.{t} SET (autovacuum_enabled = off)" for t in own))
    names = ["t", *own]

    def scans(column):
        sink.ok("commit 7")  # a session tells its statistics when it does something, once a second
        return {r[0]: r[1] for r in world.tgt(f"SELECT relname, {column} FROM pg_stat_user_tables WHERE schemaname = 'team'") if r[0] in names}

    scratch.until(lambda: scans("n_tup_ins")[next(t for t in own if "mark" in t)] >= 1000, "the statistics of the first chunk", 20)
    before = scans("seq_scan")
    sink.ok(*(f"u t {i} {i} -" for i in range(900, 1300)), *(f"d t {i}" for i in range(1, 301)), "commit 3")  # by COPY
    sink.ok("u t 950 9 -", "u t 5000 9 -", "d t 5001", "commit 4", "m t 960 30000 1 -", "commit 5", "k t 1200", "commit 6 t 2 y")
    found = scratch.until(lambda: (lambda now: now["t"] >= 1000 and now)(scans("idx_scan")), lambda: f"the statistics: {scans('idx_scan')}", 20)
    assert scans("seq_scan") == before, found
    assert world.tgt("SELECT count(*) FROM team." + next(t for t in own if "list" in t)) == [(299,)]


def test_related_tables_and_two_views_of_one_under_load(world):
    """All of it with a connector and a sink: foreign keys, another unique key, unsent values, two tables from one, and the sink
    killed on the way."""
    world.src("CREATE TABLE p (id int PRIMARY KEY, v int, big text); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p, u int UNIQUE DEFERRABLE);"
              "ALTER TABLE p ALTER big SET STORAGE EXTERNAL;"
              "INSERT INTO p SELECT i, i, repeat(md5(i::text), 80) FROM generate_series(1, 900) i; INSERT INTO c SELECT i, 1 + i % 900, i FROM generate_series(1, 900) i")
    world.tgt("CREATE SCHEMA team; CREATE TABLE team.p (id int PRIMARY KEY, v int, big text);"
              "CREATE TABLE team.c (id int PRIMARY KEY, p int REFERENCES team.p DEFERRABLE, u int UNIQUE DEFERRABLE); CREATE TABLE team.q (id int PRIMARY KEY, b text);"
              "INSERT INTO team.p SELECT i, -i, 'stale' FROM generate_series(1, 2000, 3) i; INSERT INTO team.c SELECT i, 1 + (i / 3) * 3, 2000 - i FROM generate_series(1, 1500) i;"
              "INSERT INTO team.q SELECT i, 'stale' FROM generate_series(1, 2000, 7) i")
    world.config["snapshots"] = {"chunk_bytes": "64KiB"}
    world.connector()
    file = world.sink_file("team", {"c": {"from": "public.c"}, "p": {"from": "public.p"}, "q": {"from": "public.p", "columns": {"id": "id", "b": "right(big, 9)"}}})
    stop, failed = threading.Event(), []

    def work():
        connection, number = world.source.connect(world.db), 5000
        try:
            while not stop.is_set():
                number += 1
                connection.cursor().execute(
                    f"UPDATE p SET v = v + 1 WHERE id % 37 = {number % 37}; INSERT INTO p VALUES ({number}, 0, repeat('n', 3000)); INSERT INTO c VALUES ({number}, {number}, {number});"
                    f"DELETE FROM c WHERE p = {number % 900}; DELETE FROM p WHERE id = {number % 900};"
                    f"UPDATE p SET id = -id WHERE id = {(number * 7) % 900} AND NOT EXISTS (SELECT FROM c WHERE c.p = {(number * 7) % 900});"
                    f"UPDATE c x SET u = y.u FROM c y WHERE x.id + y.id = {2 * number % 1800} AND abs(x.id - y.id) = 2")
        except Exception as error:
            failed.append(error)
        connection.close()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        sink = world.sink(file)
        for event in ("snapshot-table .*team.c .*kind=shadow", "streaming"):
            sink.wait_log(f"event={event}")
            sink.kill()
            sink = world.sink(file)
        scratch.until(lambda: world.tgt("SELECT bool_and(snapshotted) FROM team.spate_table") == [(True,)] or not sink.running(), lambda: sink.tail(), 60)
    finally:
        stop.set()
        worker.join()
    assert not failed, failed
    world.wait_equal([("SELECT * FROM p", "SELECT * FROM team.p"), ("SELECT * FROM c", "SELECT * FROM team.c"), ("SELECT id, right(big, 9) FROM p", "SELECT * FROM team.q")])
    assert sink.running() and own_tables(world) == []
