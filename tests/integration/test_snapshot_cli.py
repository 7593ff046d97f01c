"""spate snapshot: rows on request, printed or for a sink; what it says when it cannot."""
import json
import os
import re
import signal
import subprocess
import threading
import time

from tests.support import scratch
from tests.support.world import binary

ORDERS = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, country char(2));
CREATE TABLE orders (id int PRIMARY KEY, customer int, status text, placed_at date, note text);
ALTER TABLE orders ALTER note SET STORAGE EXTERNAL;
CREATE TABLE "Odd.name" ("a,b" text, "q""uote" int, v text, PRIMARY KEY ("q""uote", "a,b"));
INSERT INTO customers SELECT i, 'name ' || i, 'DE' FROM generate_series(1, 50) i;
INSERT INTO orders SELECT i, i % 50, CASE WHEN i % 10 = 0 THEN 'open' ELSE 'paid' END, DATE '2026-01-01' + i % 100,
       CASE WHEN i % 100 = 0 THEN repeat('note ', 1000) ELSE '' END FROM generate_series(1, 3000) i;
INSERT INTO "Odd.name" SELECT 'x"' || i, i, 'é' FROM generate_series(1, 5) i;
"""


def shop(world, **more):
    world.src(ORDERS)
    world.config.update(more)
    world.connector()
    return world


def file_of(world):
    """Written once: a command that was just started may still be reading it."""
    path = os.path.join(world.dir, "connector.yaml")
    return path if os.path.exists(path) else world.connector_file()


def ask(world, *arguments, check=None, seconds=60):
    return world.run("snapshot", "-c", file_of(world), *arguments, check=check, seconds=seconds)


def start(world, *arguments):
    """A request that goes on beside the test; its output goes to a file, since nobody reads a pipe meanwhile."""
    path = f"{world.dir}/rows-{time.monotonic_ns()}"
    with open(path, "w") as out:
        process = subprocess.Popen([binary(), "snapshot", "-c", file_of(world), *arguments], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.PIPE, text=True, preexec_fn=scratch.child_setup())
    process.path = path
    return process


def ended(process, seconds=60):
    try:
        error = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise scratch.Failure("spate snapshot does not end: " + process.communicate()[1][-2000:])
    with open(process.path) as file:
        return process.returncode, [json.loads(line) for line in file], error


def fold(lines):
    """What whoever keeps the last line of every key has: {table: {key: row}}."""
    tables = {}
    for line in lines:
        if line["op"] == "truncate":
            for table in line["tables"]:
                tables[table["table"]] = {}
            continue
        rows = tables.setdefault(line["table"], {})
        key = json.dumps(line["key"])
        if line["op"] == "delete":
            rows.pop(key, None)
            continue
        row = dict(line["after"])
        if line["op"] == "update" and line["before"]:
            old = json.dumps({name: line["before"][name] for name in line["key"]})
            row = {**rows.get(old, {}), **row}
            if old != key:
                rows.pop(old, None)
        rows[key] = {**rows.get(key, {}), **row}
    return tables


def source_orders(world):
    return {json.dumps({"id": row[0]}): {"id": row[0], "customer": row[1], "status": row[2], "placed_at": str(row[3]), "note": row[4]}
            for row in world.src("SELECT id, customer, status, placed_at, note FROM orders")}


def test_rows_are_printed_as_they_come(each_world):
    w = shop(each_world)
    _, out, _ = ask(w, "--tables", "public.orders", check=0)
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["op"] for line in lines} == {"read"}
    assert fold(lines) == {"orders": source_orders(w)}

    _, out, err = ask(w, "--tables", "orders", "--where", "status = 'open'", "--where", "placed_at >= 2026-03-01", "--columns", "status",
                      "--rows", "--follow", check=0)
    expected = w.src("SELECT id FROM orders WHERE status = 'open' AND placed_at >= '2026-03-01' ORDER BY id")
    rows = sorted((json.loads(line) for line in out.splitlines()), key=lambda row: row["id"])
    assert rows == [{"id": row[0], "status": "open"} for row in expected] and rows
    assert f"finished, {len(rows)} lines" in err

    _, out, _ = ask(w, "--tables", "public.customers", "--tables", "*.\"Odd.name\"", "--rows", check=0)
    assert len(out.splitlines()) == 55
    assert '{"a,b":"x\\"3","q\\"uote":3,"v":"é"}' in out
    _, out, _ = ask(w, "--tables", "public.\"Odd.name\"", "--where", "\"q\"\"uote\" = 3", "--where", "\"a,b\" is not null", "--rows", check=0)
    assert out == '{"a,b":"x\\"3","q\\"uote":3,"v":"é"}\n'

    _, out, err = ask(w, "--list", check=0)
    assert out == "" and "no request is under way" in err
    _, out, _ = ask(w, "--list", "--all", check=0)
    assert [line.split()[2] for line in out.splitlines()[1:]] == ["finished"] * 4


def test_patterns_mean_what_can_be_read(world):
    w = world
    w.src("CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
          "CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');"
          "INSERT INTO parts SELECT i, '2026-01-05' FROM generate_series(1, 50) i; CREATE TABLE gone (id int PRIMARY KEY)")
    shop(w)
    w.src("INSERT INTO parts VALUES (51, '2026-01-05'); INSERT INTO gone VALUES (1)")
    w.messages("--op", "insert", count=2)  # the stream knows them now
    w.src("DROP TABLE gone")
    _, out, err = ask(w, "--tables", "public.*", check=0)
    counts = {}
    for line in out.splitlines():
        counts[json.loads(line)["table"]] = counts.get(json.loads(line)["table"], 0) + 1
    assert counts == {"orders": 3000, "customers": 50, "Odd.name": 5, "parts": 51}
    assert "public.gone is left out" in err
    # Named whole, a table is asked for whatever the stream knows, and the connector says why not.
    for table, more, why in (("gone", [], "gone"), ("nothing", [], "nothing"), ("parts_a", [], "parts"),
                             ("orders", ["--where", "colour = 7"], "colour"), ("orders", ["--where", "placed_at >= soon"], "placed_at"),
                             ("orders", ["--columns", "statsu"], 'did you mean "status"?')):
        code, out, err = ask(w, "--tables", "public." + table, *more)
        assert (code, out) == (4, ""), err
        assert "was refused" in err and why in err and "What to do" in err
    refused = [line for line in w.connector_process.text().splitlines() if "event=snapshot-refused" in line]
    assert refused and all(' remedy="' in line for line in refused), refused  # who has only the log has the remedy, too
    code, _, err = ask(w, "--tables", "ordres")
    assert code == 2 and "did you mean orders?" in err
    code, _, err = ask(w, "--tables", "public.x*")
    assert code == 2 and "has no such table" in err


def test_arguments_are_checked_before_anything_is_asked(world):
    for arguments, words in ((["--tables", "a.b", "--where", "x like 'y%'"], "expected COLUMN OPERATOR VALUE"), (["--list", "--sink", "s"], "one at a time"),
                             ([], "say what to do"), (["--sink", "s", "--columns", "a"], "file says which columns"), (["public.orders"], "--tables"),
                             (["--list", "--wait", "0"], "--wait takes seconds"), (["--all"], "say what to do"), (["--tables", 'a."b'], "quote is not closed")):
        code, out, err = ask(world, *arguments)
        assert (code, out) == (2, "") and words in err, (arguments, err)


class Writer:
    """Changes orders in every way that there is, with rows that move to other pages, until it is stopped."""

    def __init__(self, world):
        self.world, self.stop = world, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        connection = self.world.source.connect(self.world.db)
        cursor, i = connection.cursor(), 0
        while not self.stop.is_set():
            i += 1
            cursor.execute("UPDATE orders SET status = 'moved' WHERE id = %s", [1 + i * 37 % 3000])
            cursor.execute("UPDATE orders SET customer = customer + 1 WHERE id = %s", [100 * (1 + i % 30)])  # the note is not sent
            cursor.execute("UPDATE orders SET id = id + 10000 WHERE id = %s", [1 + i * 53 % 3000])
            cursor.execute("DELETE FROM orders WHERE id = %s", [1 + i * 71 % 3000])
            cursor.execute("INSERT INTO orders VALUES (%s, 1, 'new', '2026-06-01', '')", [20000 + i])
        connection.close()

    def end(self):
        self.stop.set()
        self.thread.join()


def moved(w):
    return {key: row for key, row in source_orders(w).items() if row["status"] == "moved"}


def test_while_rows_change_the_lines_add_up_to_the_source(world):
    """P94, and rows that an update moves between two chunks: the changes are among the lines."""
    w = shop(world, snapshots={"rows_per_second": 1500, "chunk_bytes": "64KiB", "parallel": 1})
    writer = Writer(w)
    try:
        scratch.until(lambda: len(moved(w)) > 20, "rows fulfil the condition", 20)
        before = moved(w)
        code, some, error = ended(start(w, "--tables", "public.orders", "--where", "status = 'moved'"))
        after = moved(w)
        whole = start(w, "--tables", "public.orders")
        bare = start(w, "--tables", "public.orders", "--rows")
        scratch.until(lambda: all(f'"op":"{op}"' in open(whole.path).read() for op in ("read", "update", "insert", "delete")), lambda: "rows and changes come: " + ask(w, "--list")[1] + w.logs(), 20)
    finally:
        writer.end()
    assert code == 0, error
    assert whole.poll() is None, "it ended while rows were still being changed: read more slowly"
    code, lines, error = ended(whole)
    assert code == 0, error
    truth = source_orders(w)
    assert fold(lines)["orders"] == truth
    assert {"read", "update", "insert", "delete"} == {line["op"] for line in lines}
    code, lines, error = ended(bare)
    assert code == 0, error
    found = {json.dumps({"id": line["id"]}): line for line in lines}
    assert {key: found.get(key) for key in truth} == truth
    # Few rows fulfil a condition, so it is over while they still change: what was so all the time is among them.
    assert {(line["op"], line["after"]["status"]) for line in some} == {("read", "moved")}
    found = fold(some)["orders"]
    steady = {key: row for key, row in before.items() if after.get(key) == row}
    assert steady and {key: found.get(key) for key in steady} == steady


def test_a_connector_that_is_killed_goes_on_with_the_request(world):
    w = shop(world, snapshots={"rows_per_second": 1500, "chunk_bytes": "64KiB"})
    process = start(w, "--tables", "public.orders")
    scratch.until(lambda: os.path.getsize(process.path) > 10000, "rows come", 20)
    w.connector_process.kill()
    w.connector()
    code, lines, error = ended(process)
    assert code == 0, error
    assert fold(lines)["orders"] == source_orders(w)
    assert len(lines) < 2 * 3000  # it did not begin anew


def test_requests_can_be_listed_followed_and_cancelled(world):
    w = shop(world, snapshots={"rows_per_second": 100, "chunk_bytes": "64KiB"})
    process = start(w, "--tables", "public.orders", "--name", "me")
    row = []

    def listed():
        row[:] = [line.split() for line in ask(w, "--list", check=0)[1].splitlines()[1:]]
        return row and row[0][2] in ("reading", "waiting", "accepted")

    scratch.until(listed, "the request is listed", 20)
    request = row[0][0]
    assert row[0][1] == "me"
    scratch.until(lambda: listed() and int(row[0][3]) > 0, "rows have come", 20)
    rows, percent, rate, left = int(row[0][3]), float(row[0][5]), int(row[0][6].removesuffix("/s")), int(row[0][7])
    assert rate <= 100 and left >= int(rows * (100 - percent) / percent / 100) - 1, row  # however fast the first came
    follower = subprocess.Popen([binary(), "snapshot", "-c", file_of(w), "--follow"], stderr=subprocess.PIPE, text=True,
                                preexec_fn=scratch.child_setup())
    assert follower.stderr.readline().startswith(f"me {request}: ")
    code, _, err = ask(w, "--cancel", request)
    assert code == 0 and f"request {request} of me is cancelled" in err
    code, _, error = ended(process, 20)
    assert code == 1 and "cancelled" in error
    assert follower.wait(20) == 1
    follower.stderr.close()
    assert ask(w, "--list", check=0)[1] == ""
    code, _, err = ask(w, "--cancel", "nothing")
    assert code == 2 and "there is no request nothing" in err
    code, _, err = ask(w, "--follow")
    assert code == 2 and "no request is under way" in err and "usage" not in err

    process = start(w, "--tables", "public.orders")
    scratch.until(listed, "the second request is listed", 20)
    process.send_signal(signal.SIGINT)
    code, _, error = ended(process, 20)
    assert code == 1 and "was cancelled before everything came" in error
    states = [line.split()[2] for line in ask(w, "--list", "--all", check=0)[1].splitlines()[1:]]
    assert states == ["cancelled"] * 2


def test_who_is_not_there_is_named(world):
    """What the connector did not confirm is not called cancelled, and what waits says for what."""
    w = shop(world)
    lock = w.source.connect(w.db, autocommit=False)
    lock.cursor().execute("LOCK TABLE orders")
    process = start(w, "--tables", "public.orders", "--name", "me")
    scratch.until(lambda: re.search(r"me +waiting .* ago: .*orders", ask(w, "--list", check=0)[1]), "it says what it waits for", 20)
    request = ask(w, "--list", check=0)[1].splitlines()[1].split()[0]
    w.connector_process.kill()
    code, _, err = ask(w, "--cancel", request)
    assert code == 5 and "no connector answered" in err and "look then" in err
    lock.close()
    process.kill()
    ended(process)


def test_nobody_answers(world):
    w = world
    code, _, err = ask(w, "--tables", "public.orders", "--wait", "1")
    assert code == 5 and "no connector shop has run on this bus yet" in err
    shop(w)
    ask(w, "--list", check=0)
    code, _, err = ask(w, "--sink", "billing", "--wait", "1")
    assert code == 5 and "sink billing did not take the wish up within 1 s" in err and "is it running" in err.lower()
    w.connector_process.stop()
    code, out, err = ask(w, "--tables", "public.orders", "--wait", "1")
    assert (code, out) == (5, "") and "connector shop did not answer within 1 s" in err
    w.connector()  # what was withdrawn is not taken up
    assert ask(w, "--list", check=0)[1] == ""


def test_a_sink_is_told_to_ask(world):
    w = shop(world)
    file = w.sink_file("billing", {"orders": {"from": "public.orders", "columns": {"id": "id", "status": "status"}, "key": ["id"]}}, snapshot="manual")
    sink = w.sink(file)
    w.src("INSERT INTO customers VALUES (1000, 'late', 'DE')")
    w.wait_rows("SELECT count(*) FROM billing.orders", [(0,)], sink=sink)
    code, out, err = ask(w, "--sink", "billing", "--follow")
    assert code == 0, err + w.logs()
    assert len(out.strip()) == 12 and f"billing {out.strip()}: finished, 3000 rows" in err
    w.wait_equal([("SELECT id, status FROM orders", "SELECT id, status FROM billing.orders")])
    w.src("UPDATE orders SET status = 'later' WHERE id < 10")
    w.wait_equal([("SELECT id, status FROM orders", "SELECT id, status FROM billing.orders")])
    # A sink that is just being started hears what comes from then on: the wish is said again.
    sink.stop()
    process = start(w, "--sink", "billing", "--follow")
    scratch.until(lambda: "asked" in ask(w, "--list", check=0)[1], "the wish stands there", 20)
    sink = w.sink(file)
    try:
        error = process.communicate(timeout=40)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise scratch.Failure("the wish was not taken up:" + w.logs())
    assert process.returncode == 0, error
    # What is removed behind its back comes back by a condition, and the rest stays as it is.
    w.tgt("DELETE FROM billing.orders WHERE id <= 100")
    code, _, err = ask(w, "--sink", "billing", "--tables", "public.*", "--where", "id <= 50", "--follow")
    assert code == 0, err + w.logs()
    w.wait_rows("SELECT count(*) FROM billing.orders", [(2950,)], sink=sink)


def documented():
    """The commands of the manual page and of docs/operating.md, as they stand there."""
    found = []
    for name, heading in (("docs/spate-snapshot.1.md", "## EXAMPLES"), ("docs/operating.md", "**By hand**:")):
        with open(os.path.join(scratch.ROOT, name)) as file:
            block = file.read().split(heading)[1].split("```")[1]
        found += [line.split(" #")[0].rstrip() for line in block.splitlines() if line.startswith("spate snapshot ")]
    return found


def test_the_documented_commands_run(world):
    w = world
    commands = documented()
    assert len(commands) >= 10
    shop(w)
    w.sink(w.sink_file("billing", {"orders": {"from": "public.orders", "key": ["id"]}}))
    w.wait_rows("SELECT count(*) FROM billing.orders", [(3000,)])
    scratch.until(lambda: "finished" in ask(w, "--list", "--all", check=0)[1], "the sink's own request is over", 20)
    for command in commands:
        if "--cancel" in command:  # of something that goes on
            continue
        done = subprocess.run(["sh", "-c", re.sub("^spate ", binary() + " ", command)], cwd=w.dir, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30, preexec_fn=scratch.child_setup())
        assert done.returncode == 0, (command, done.stderr, w.logs())
        if "--sink" in command and "--follow" not in command:  # one wish after the other
            w.run("snapshot", "-c", "billing.yaml", "--follow", done.stdout.strip(), check=0)
    w.wait_equal([("SELECT id, status FROM orders", "SELECT id, status FROM billing.orders")])
