"""F41: behind a synchronous standby that acknowledges after a second, the usual low and high watermarks lose updates and
bring deleted rows back; what the connector weaves does not. The same tables, the same writers, six seeds."""
import random
import threading
import time

import psycopg2
import pytest

from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.standby import LateStandby
from tests.support.watermark import Watermark
from tests.support.world import World

SEEDS, KEYS, WRITERS, CHUNK = 6, 300, 8, 50
# `large` is kept out of line: an update that leaves it alone comes without it (P94).
TABLE = """CREATE TABLE {0} (id int PRIMARY KEY, v bigint NOT NULL, large text);
ALTER TABLE {0} ALTER large SET STORAGE EXTERNAL;
INSERT INTO {0} SELECT g, g, CASE WHEN g % 2 = 0 THEN repeat(md5(g::text), 80) END FROM generate_series(1, {1}) g"""


class Writer(threading.Thread):
    """Transactions of a few rows on a small space of keys; each waits for the standby."""

    def __init__(self, cluster, db, table, seed):
        super().__init__(daemon=True)
        self.table, self.random, self.done, self.failure = table, random.Random(seed), threading.Event(), None
        self.connection = cluster.connect(db, autocommit=False)
        self.start()

    def run(self):
        try:
            while not self.done.is_set():
                try:
                    with self.connection.cursor() as cursor:
                        for key in sorted(self.random.sample(range(1, KEYS + 1), self.random.choice((1, 2, 4)))):
                            self.write(cursor, key)
                    self.connection.commit()
                except (psycopg2.errors.DeadlockDetected, psycopg2.errors.UniqueViolation, psycopg2.errors.LockNotAvailable):
                    self.connection.rollback()
        except Exception as error:
            self.failure = error

    def write(self, cursor, key):
        kind, v = self.random.random(), self.random.randrange(1 << 40)
        if kind < 0.25:
            cursor.execute(f"DELETE FROM {self.table} WHERE id = %s", [key])
        elif kind < 0.35:  # to a key that may be free
            cursor.execute(f"UPDATE {self.table} SET id = %s, v = %s WHERE id = %s AND NOT EXISTS (SELECT FROM {self.table} WHERE id = %s)",
                           [key % KEYS + 1, v, key, key % KEYS + 1])
        else:
            cursor.execute(f"UPDATE {self.table} SET v = %s WHERE id = %s", [v, key])
            if cursor.rowcount == 0:
                cursor.execute(f"INSERT INTO {self.table} VALUES (%s, %s, CASE WHEN %s THEN repeat('n', 3000) END)", [key, v, kind < 0.6])


@pytest.fixture(scope="module")
def late():
    cluster = Cluster("late", max_connections=120, deadlock_timeout="100ms").start()
    yield cluster
    cluster.destroy()


@pytest.mark.parametrize("bus", ["local", "kafka"])
def test_behind_a_late_standby(bus, late, target, seed, request):
    world = World(late, target, kafka=request.getfixturevalue("kafka") if bus == "kafka" else None)
    tables = [f"t{number}" for number in range(1, SEEDS + 1)]
    standby = naive = None
    writers = []
    try:
        for table in tables:
            world.src(TABLE.format(table, KEYS))
        world.connector()
        naive = Watermark(late, world.db)
        standby = LateStandby(late, 1.0)
        writers = [Writer(late, world.db, table, f"{seed} {table} {number}") for table in tables for number in range(WRITERS)]
        # Some have been delivered and are not visible when the first chunk is read.
        scratch.until(lambda: naive.delivered > 3 * SEEDS * WRITERS, lambda: f"the writers write {naive.failure}", 30)
        files = [world.sink_file(f"team_{table}", {table: {"from": f"public.{table}"}}, snapshot="auto") for table in tables]
        sink = world.sink(*files)
        for low in range(0, KEYS + 1, CHUNK):
            for table in tables:
                naive.read_chunk(table, low, low + CHUNK)
        for table in tables:
            sink.wait_log(rf"event=snapshot-finished [^\n]*\bsink=team_{table}\b", 60)
        for writer in writers:
            writer.done.set()
        for writer in writers:
            writer.join(20)
            assert writer.failure is None, writer.failure
        wrong = {}
        rows = naive.finish()
        for table in tables:
            truth = {(table, number): v for number, v in world.src(f"SELECT id, v FROM {table}")}
            held = {key: v for key, v in rows.items() if key[0] == table}
            wrong[table] = sum(truth.get(key) != held.get(key) for key in {*truth, *held})
        print(f"\n   {bus}: {naive.delivered} changes; wrong keys by watermarks, of {KEYS}: {list(wrong.values())}", flush=True)
        assert all(wrong.values()), f"the control run must fail with every seed, or this test shows nothing: {wrong}"
        world.wait_equal([(f"SELECT * FROM {table}", f"SELECT * FROM team_{table}.{table}") for table in tables])
        world.check_bus(sample=50)
    finally:
        for writer in writers:
            writer.done.set()
        if standby:
            standby.close()
        for writer in writers:
            writer.join(20)
            writer.connection.close()
        if naive:
            naive.close()
        world.close()
