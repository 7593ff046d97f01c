"""docs/examples/mirror.py asks for everything, and again where something is stale, by the rules of docs/message-format.md and
with nothing of ours; what it hears and what is said to it are held against the published schemas."""
import json
import os
import sqlite3
import subprocess
import sys
import threading

import jsonschema

from tests.support import scratch
from tests.support.desk import Control
from tests.support.world import binary
from tests.unit.test_json_schema import strict

MIRROR = os.path.join(scratch.ROOT, "docs/examples/mirror.py")


def schemas(name):
    """A validator for each op: all of them at once, as published, take ten times as long."""
    with open(os.path.join(scratch.ROOT, "schemas", f"{name}.schema.json")) as file:
        whole = strict(json.load(file))
    ops = [each["$ref"].rsplit("/", 1)[1] for each in whole["oneOf"]]
    return {op: jsonschema.Draft202012Validator({"$ref": f"#/$defs/{op}", "$defs": whole["$defs"]}) for op in ops}


MESSAGE, CONTROL = schemas("message"), schemas("control")


class Mirror:
    """The program between `spate tap`, with the number of a line as its offset, and the topic of requests."""

    def __init__(self, world, control, *tables):
        self.world, self.control, self.tables = world, control, tables
        self.file = os.path.join(world.dir, "mirror.db")
        self.told, self.ops, self.checked, self.failure = [], {}, 0, None

    def start(self):
        begin = subprocess.run([sys.executable, MIRROR, self.file], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
        begin = 0 if begin == "beginning" else int(begin)
        self.tap = subprocess.Popen([binary(), "tap", "-c", self.world.connector_file(), "--from", "oldest"], stdout=subprocess.PIPE,
                                    preexec_fn=scratch.child_setup())
        self.process = subprocess.Popen([sys.executable, MIRROR, self.file, "-", *self.tables], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, preexec_fn=scratch.child_setup())
        self.threads = [threading.Thread(target=self.feed, args=(self.tap, self.process, begin), daemon=True),
                        threading.Thread(target=self.tell, args=(self.process,), daemon=True)]
        for thread in self.threads:
            thread.start()
        return self

    def feed(self, tap, process, begin):
        try:
            for number, line in enumerate(tap.stdout):
                line = line.rstrip(b"\n")
                if number >= self.checked:
                    self.checked = number + 1
                    message = json.loads(line)
                    self.ops[message["op"]] = self.ops.get(message["op"], 0) + 1
                    MESSAGE[message["op"]].validate(message)
                if number >= begin:
                    process.stdin.write(b"%d %d\n%s\n" % (number, len(line), line))
                    process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it was killed
        except Exception as error:
            self.failure = error

    def tell(self, process):
        for line in process.stdout:
            self.told.append(json.loads(line))
            try:
                CONTROL[self.told[-1]["op"]].validate(self.told[-1])
            except Exception as error:
                self.failure = error
            self.control.tell(line.rstrip(b"\n"))

    def kill(self):
        self.tap.kill()
        self.process.kill()
        self.process.wait()
        for thread in self.threads:
            thread.join(10)
        return self.process.stderr.read().decode()

    def done(self):
        if self.failure:
            raise self.failure
        if self.process.poll() is not None:
            raise scratch.Failure(f"the mirror ended: {self.process.stderr.read().decode()}")
        return self.query("SELECT count(*) = 0 FROM asked WHERE NOT done")[0][0]

    def query(self, text, *args):
        db = sqlite3.connect(self.file, isolation_level=None, timeout=10)
        try:
            return db.execute(text, args).fetchall()
        finally:
            db.close()

    def rows(self, table):
        return sorted((json.loads(doc) for doc, in self.query("SELECT doc FROM row WHERE tab = ?", table)), key=lambda doc: doc["id"])


class Writer(threading.Thread):
    """Partial updates, moved keys, deletes, inserts, until told to stop."""

    def __init__(self, world):
        super().__init__(daemon=True)
        self.world, self.ended, self.failure = world, threading.Event(), None
        self.start()

    def run(self):
        n = 0
        try:
            while not self.ended.wait(0.02):
                n += 1
                self.world.src("UPDATE t SET total = total + 1 WHERE id %% 40 = %s", [n % 40])
                self.world.src("UPDATE t SET id = id + 10000 WHERE id = %s", [n * 7 % 900])
                self.world.src("DELETE FROM t WHERE id = %s", [n * 11 % 900])
                self.world.src("INSERT INTO t VALUES (%s, 0.5, 'new') ON CONFLICT (id) DO UPDATE SET large = 'changed'", [n * 13 % 900])
        except Exception as error:
            self.failure = error

    def end(self):
        self.ended.set()
        self.join(20)
        assert self.failure is None, self.failure


def difference(want, has):
    """Large values shortened."""
    want, has = ({(row["id"], row.get("total"), str(row.get("large"))[:9]) for row in rows} for rows in (want, has))
    return len(want ^ has), sorted(want - has, key=str)[:3], sorted(has - want, key=str)[:3]


def equal(world, mirror, *more):
    names = ("id", "total", "large", "pad", *more)
    want = [dict(zip(names, row)) for row in world.src(f"SELECT id, total::text, {', '.join(names[2:])} FROM t ORDER BY id")]

    has = []

    def look():
        mirror.done()
        has[:] = mirror.rows("public.t")
        return has == want
    scratch.until(look, lambda: "the mirror has every row, and none that is gone: "
                  + f"{len(want)} and {len(has)}; " + str(difference(want, has)), 60, 0.2)


def test_the_documented_rules_make_an_exact_copy(each_world):
    """Under load, with the connector and the follower killed in the middle (F41, F46); then nothing that was not told stays."""
    world = each_world
    world.src("CREATE TABLE t (id int PRIMARY KEY, total numeric, large text, pad text DEFAULT repeat('p', 400)); ALTER TABLE t ALTER large SET STORAGE EXTERNAL;"
              "CREATE TABLE none (id int PRIMARY KEY)")
    world.src("INSERT INTO t SELECT g, g / 4.0, repeat('x', 2500) FROM generate_series(1, 900) g")
    world.config["snapshots"] = {"chunk_bytes": "64KiB", "rows_per_second": 400}
    world.config["source"]["postgres"]["catalog_every"] = "1s"
    connector = world.connector()
    control = Control(world)
    mirror = Mirror(world, control, "public.t", "public.none").start()

    def some(rows):
        def look():
            mirror.done()
            return mirror.query("SELECT count(*) FROM row WHERE met")[0][0] >= rows
        return look
    scratch.until(some(40), lambda: "a part has come:" + world.logs(), 20)
    writer = Writer(world)  # on full pages: rows go where the range has ended already, and come by a change alone
    scratch.until(some(200), lambda: "a part has come:" + world.logs(), 20)
    mirror.kill()
    mirror.query("INSERT INTO row VALUES ('public.t', '{\"id\": -1}', '{\"id\": -1}', 0)")  # deleted long ago, while nobody listened
    mirror.start()
    scratch.until(some(350), lambda: "more has come:" + world.logs(), 20)
    connector.kill()
    world.connector()
    # A program hears `started` and asks at once; this one only listens to the stream, and would wait for 30 s.
    control.wait(lambda said: said["op"] == "started", "the second connector is there", 20, len(control.said) - 1)
    mirror.kill()
    mirror.start()
    scratch.until(mirror.done, lambda: f"it has everything: {mirror.told[-3:]} {control.said[-3:]}" + world.logs(), 60)
    writer.end()
    equal(world, mirror)
    # The follower is done before the connector has heard so.
    control.wait(lambda said: said["op"] == "progress" and said["state"] == "finished", "the connector says that it is over", 20)
    for said in list(control.said):
        CONTROL[said["op"]].validate(said)
    assert {"request", "reread", "finished"} == {told["op"] for told in mirror.told}
    assert {"snapshot-begin", "chunk", "read", "chunk-end", "ranges-end"} <= set(mirror.ops)
    assert any("resume" in table for told in mirror.told if told["op"] == "request" for table in told["tables"])
    world.src("ALTER TABLE t ADD COLUMN more int DEFAULT 7")  # P32: no row of it is in the stream; `stale` is
    equal(world, mirror, "more")
    assert mirror.ops["stale"] > 0
    print(f"\n   told: {[told['op'] for told in mirror.told]}; heard: {mirror.ops}", flush=True)
    mirror.kill()
    control.close()
