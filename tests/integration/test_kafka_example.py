"""docs/examples/mirror.py, a follower that knows nothing of spate but the message format, over a real broker."""
import json
import os
import shlex
import sqlite3
import subprocess
import sys

from tests.support import scratch

MIRROR = os.path.join(scratch.ROOT, "docs/examples/mirror.py")


class Mirror:
    def __init__(self, world):
        self.world, self.file = world, os.path.join(world.dir, "mirror.db")

    def start(self):
        """The command line of its own manual, with our broker."""
        me = f"{sys.executable} {shlex.quote(MIRROR)} {shlex.quote(self.file)}"
        line = (f"kcat -q -u -C -b {self.world.kafka.brokers} -X auto.offset.reset=error -t {self.world.stream} -p 0 -o $({me}) -f '%o %S\\n%s\\n'"
                f" | {me} -")
        self.process = subprocess.Popen(["bash", "-c", line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        start_new_session=True, preexec_fn=scratch.child_setup())
        return self

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        return self.process.communicate()[0]

    def rows(self, table):
        db = sqlite3.connect(self.file)
        try:
            return sorted((json.loads(doc) for doc, in db.execute("SELECT doc FROM row WHERE tab = ?", (table,))), key=lambda doc: doc["id"])
        except sqlite3.OperationalError:
            return None  # not made yet, or being written
        finally:
            db.close()

    def wait_equal(self, seconds=20):
        want = [{"id": id, "total": total, "large": large} for id, total, large in self.world.src("SELECT id, total::text, large FROM t ORDER BY id")]
        scratch.until(lambda: self.rows("public.t") == want,
                      lambda: f"the mirror has {len(want)} rows; it lacks or differs in {self.difference(want)}; it said {self.kill()}", seconds)

    def difference(self, want):
        has = self.rows("public.t") or []
        return [str(row)[:80] for row in want if row not in has][:5], [str(row)[:80] for row in has if row not in want][:5]


def prepare(world):
    world.src("CREATE TABLE t (id int PRIMARY KEY, total numeric, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL;"
              "CREATE TABLE nokey (v int)")
    world.connector()
    return Mirror(world).start()


def test_a_follower_of_the_format_alone_is_exact(kafka_world, kafka):
    """Every kind of change; killed in between, it goes on where it was; repeated, older and foreign records change nothing."""
    world = kafka_world
    mirror = prepare(world)
    world.src("INSERT INTO t SELECT g, g / 4.0, repeat('x', 5000) FROM generate_series(1, 300) g; INSERT INTO nokey VALUES (1)")
    mirror.wait_equal()
    for n in range(4):
        world.src("UPDATE t SET total = total + 1 WHERE id %% 2 = 0; UPDATE t SET id = id + 1000 WHERE id %% 7 = %s AND id < 1000", [n])
        mirror.kill()
        world.src("DELETE FROM t WHERE id %% 11 = %s; INSERT INTO t VALUES (%s, NULL, NULL)", [n, 5000 + n])
        # What a writer does that was thought dead: what it had, once more and out of its place.
        old = kafka.consume(world.stream)[20 * n:20 * n + 40]
        kafka.produce(world.stream, b"".join(value + b"\n" for _, _, value in old))
        kafka.produce(world.stream, b"no message of ours\n")
        mirror.start()
        mirror.wait_equal()
    assert world.connector_process.stop() == 0
    world.connector("--new-epoch")  # nothing was lost, so it goes on
    world.src("TRUNCATE t; INSERT INTO t VALUES (1, 'NaN', NULL)")
    mirror.wait_equal()
    assert "none of ours" in mirror.kill()


def test_a_follower_sees_that_something_is_missing(kafka_world, kafka):
    """An epoch does not go on from where it is, or retention overtook it: it says so instead of going on."""
    world = kafka_world
    mirror = prepare(world)
    world.src("INSERT INTO t SELECT g, 1, '' FROM generate_series(1, 10) g")
    mirror.wait_equal()
    before = mirror.rows("public.t")
    mirror.kill()
    assert world.connector_process.stop() == 0
    world.src("INSERT INTO t VALUES (11, 1, '')")
    world.src("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [world.slot()])  # row 11 never comes
    world.connector("--new-epoch")
    out = mirror.start().process.communicate(timeout=20)[0]
    assert "epoch 2 does not go on from change 10 of epoch 1" in out and "load anew" in out, out
    kafka.wire.delete_records(world.stream, kafka.wire.offsets(world.stream)[1])
    out = mirror.start().process.communicate(timeout=20)[0]
    assert "out of range" in out.lower(), out
    world.src("INSERT INTO t VALUES (12, 1, '')")
    assert mirror.rows("public.t") == before
