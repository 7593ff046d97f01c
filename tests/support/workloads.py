"""Loads on a source database whose faults are visible (W1-W7 of the fault matrix).

  W1 counters    every row carries its writer and number: loss, doubling and reordering show
  W2 bank        transfers: the sum is constant after every transaction, so half of one shows (I3)
  W3 key churn   updates of the key, delete and insert of the same key, swaps
  W4 large       values that are TOASTed; updates that leave them unchanged, also across a key change (P42)
  W5 bulk        COPY and statements over many rows; COPY's rows share one LSN
  W6 long        transactions of thousands of rows in savepoints, some of which are rolled back
  W7 shape       DDL between and inside transactions, as far as a sink follows without help; TRUNCATE
  W8 shapes      rows of tables of many shapes (shapes.py), while snapshots are asked of them

Each is a thread with a connection of its own; it reconnects when the source goes away, since the clusters
are restarted under it. A commit whose outcome is unknown needs no care: the checker compares with the source.
"""
import io
import random
import threading

import psycopg2

from tests.support import shapes

ACCOUNTS, BALANCE = 60, 1000
BANK_SUM = ACCOUNTS * BALANCE

SCHEMA = f"""
CREATE TABLE w1_counters (writer int, n bigint, at timestamptz DEFAULT clock_timestamp(), note text, PRIMARY KEY (writer, n));
CREATE TABLE w1_last (writer int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE w2_accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE w3_churn (id int PRIMARY KEY, v int NOT NULL, t text);
CREATE TABLE w4_large (id int PRIMARY KEY, small int NOT NULL, large text, other bytea);
ALTER TABLE w3_churn REPLICA IDENTITY FULL;
CREATE TABLE w5_bulk (batch bigint, n int, v text, PRIMARY KEY (batch, n));
CREATE TABLE w6_long (id bigint PRIMARY KEY, part int NOT NULL, v int NOT NULL);
CREATE TABLE w7_shape (id int PRIMARY KEY, v int NOT NULL, t text);
"""

# The target tables: one team takes everything as it is, the other in its own words. Of those `odd` reads a table under
# REPLICA IDENTITY FULL; `heavy` needs values that are not sent again, so its sink keeps a copy of them.
MIRROR = {name: {"from": "public." + name} for name in ("w1_counters", "w1_last", "w2_accounts", "w3_churn", "w4_large", "w5_bulk", "w6_long")}
MIRROR["w7_shape"] = {"from": "public.w7_shape", "columns": {"id": "id", "v": "v", "t": "t"}, "key": ["id"]}
OWN_WORDS = {
    "accounts": {"from": "public.w2_accounts", "columns": {"account": "id", "cents": "balance * 100"}, "key": ["account"]},
    "odd": {"from": "public.w3_churn", "where": "v % 2 = 1", "columns": {"id": "id", "label": "coalesce(t, '-') || ':' || v"}, "key": ["id"]},
    "heavy": {"from": "public.w4_large", "where": "small % 2 = 0 OR length(large) > 20000",
              "columns": {"id": "id", "large": "large", "both": "small || ':' || coalesce(md5(large), '-') || coalesce(length(other), 0)"}, "key": ["id"]},
}


def mirror_pairs(schema):
    whole = [name for name in MIRROR if name != "w7_shape"]
    return [(f"SELECT * FROM public.{name}", f"SELECT * FROM {schema}.{name}") for name in whole] + \
        [("SELECT id, v, t FROM w7_shape", f"SELECT id, v, t FROM {schema}.w7_shape")]


def own_words_pairs(schema):
    return [("SELECT id, balance * 100 FROM w2_accounts", f"SELECT account, cents FROM {schema}.accounts"),
            ("SELECT id, coalesce(t, '-') || ':' || v FROM w3_churn WHERE v % 2 = 1", f"SELECT id, label FROM {schema}.odd"),
            ("SELECT id, large, small || ':' || coalesce(md5(large), '-') || coalesce(length(other), 0) FROM w4_large WHERE small % 2 = 0 OR length(large) > 20000",
             f"SELECT * FROM {schema}.heavy")]


def prepare(world):
    world.src(SCHEMA)


def load(world):
    """The first rows."""
    world.src(f"INSERT INTO w2_accounts SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;"
              "INSERT INTO w3_churn SELECT i, i, 'r' || i FROM generate_series(1, 40) i;"
              "INSERT INTO w4_large SELECT i, 0, (SELECT string_agg(md5(i::text || g), '') FROM generate_series(1, 700) g), "
              "decode(repeat(md5(i::text), 300), 'hex') FROM generate_series(1, 12) i")


def counters(cursor, state, rnd):
    rows = rnd.choice((1, 1, 1, 3, 20))
    cursor.execute("INSERT INTO w1_counters (writer, n, note) SELECT %s, g, %s || g FROM generate_series(%s::bigint, %s::bigint) g",
                   [state["writer"], "note ", state["n"] + 1, state["n"] + rows])
    cursor.execute("INSERT INTO w1_last VALUES (%s, %s) ON CONFLICT (writer) DO UPDATE SET n = EXCLUDED.n", [state["writer"], state["n"] + rows])
    if rnd.random() < 0.05:
        cursor.execute("DELETE FROM w1_counters WHERE writer = %s AND n < %s", [state["writer"], state["n"] - 2000])


def counters_resume(cursor, state):
    cursor.execute("SELECT n FROM w1_last WHERE writer = %s", [state["writer"]])
    row = cursor.fetchone()
    state["n"] = row[0] if row else 0


def bank(cursor, _state, rnd):
    for _ in range(rnd.choice((1, 1, 4))):
        a, b = sorted(rnd.sample(range(1, ACCOUNTS + 1), 2))
        amount = rnd.randrange(-50, 51)
        cursor.execute("UPDATE w2_accounts SET balance = balance - %s WHERE id = %s", [amount, a])
        cursor.execute("UPDATE w2_accounts SET balance = balance + %s WHERE id = %s", [amount, b])


def churn(cursor, _state, rnd):
    a, b = rnd.sample(range(1, 41), 2)
    kind = rnd.randrange(5)
    if kind == 0:
        cursor.execute("DELETE FROM w3_churn WHERE id = %s", [a])
        cursor.execute("INSERT INTO w3_churn VALUES (%s, %s, %s)", [a, rnd.randrange(1000), "again"])
    elif kind == 1:  # swap two keys by way of a third
        cursor.execute("UPDATE w3_churn SET id = -1 WHERE id = %s", [a])
        cursor.execute("UPDATE w3_churn SET id = %s WHERE id = %s", [a, b])
        cursor.execute("UPDATE w3_churn SET id = %s WHERE id = -1", [b])
    elif kind == 2:
        cursor.execute("UPDATE w3_churn SET v = v + 1, t = CASE WHEN random() < 0.2 THEN NULL ELSE 'u' || v END WHERE id IN (%s, %s)", [a, b])
    elif kind == 3:
        cursor.execute("DELETE FROM w3_churn WHERE id = %s", [a])
    else:
        cursor.execute("INSERT INTO w3_churn VALUES (%s, %s, 'new') ON CONFLICT (id) DO UPDATE SET v = w3_churn.v + 1", [a, rnd.randrange(1000)])


def large(cursor, state, rnd):
    a = rnd.randrange(1, 13)
    kind = rnd.randrange(4)
    if kind == 0:
        size = rnd.choice((10, 300, 2000))
        cursor.execute("UPDATE w4_large SET large = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, %s)) WHERE id = %s", [size, a])
    elif kind == 1:  # the large values stay as they are and are not sent
        cursor.execute("UPDATE w4_large SET small = small + 1 WHERE id = %s", [a])
    elif kind == 2:  # key change with unchanged large values
        state["spare"] = state.get("spare", 100) + 1
        cursor.execute("SELECT coalesce(max(id), 0) FROM w4_large")
        spare = max(state["spare"], cursor.fetchone()[0] + 1)
        cursor.execute("UPDATE w4_large SET id = %s WHERE id = %s", [spare, a])
        if rnd.random() < 0.7:
            cursor.execute("UPDATE w4_large SET id = %s, small = small + 1 WHERE id = %s", [a, spare])
    else:
        cursor.execute("DELETE FROM w4_large WHERE id > 12 OR id = %s", [a])
        cursor.execute("INSERT INTO w4_large VALUES (%s, 0, repeat(%s, 3000), NULL)", [a, "word "])


def bulk(cursor, _state, rnd):
    cursor.execute("SELECT coalesce(max(batch), 0) + 1 FROM w5_bulk")
    batch = cursor.fetchone()[0]
    rows = rnd.choice((20, 500, 3000))
    if rnd.random() < 0.7:
        cursor.copy_expert("COPY w5_bulk FROM STDIN", io.StringIO("".join(f"{batch}\t{n}\tcopied {n}\n" for n in range(rows))))
    else:
        cursor.execute("INSERT INTO w5_bulk SELECT %s, g, 'many ' || g FROM generate_series(1, %s) g", [batch, rows])
    kind = rnd.randrange(3)
    if kind == 0:
        cursor.execute("UPDATE w5_bulk SET v = v || '+' WHERE batch = %s", [batch - rnd.randrange(3)])
    elif kind == 1:
        cursor.execute("DELETE FROM w5_bulk WHERE batch < %s", [batch - 4])


def long(cursor, state, rnd):
    cursor.execute("SELECT coalesce(max(id), 0) FROM w6_long")
    top = cursor.fetchone()[0]
    for part in range(rnd.choice((2, 5, 9))):
        cursor.execute("SAVEPOINT outside")
        rows = rnd.choice((10, 400, 3000))
        cursor.execute("INSERT INTO w6_long SELECT g, %s, 0 FROM generate_series(%s, %s) g", [part, top + 1, top + rows])
        cursor.execute("SAVEPOINT inside")
        cursor.execute("UPDATE w6_long SET v = v + 1 WHERE id > %s AND id %% 3 = 0", [top - 500])
        if rnd.random() < 0.4:
            cursor.execute("ROLLBACK TO SAVEPOINT inside")
        if rnd.random() < 0.3:
            cursor.execute("ROLLBACK TO SAVEPOINT outside")
        else:
            top += rows
    if rnd.random() < 0.5:
        cursor.execute("DELETE FROM w6_long WHERE id < %s", [top - 20000])


def shape(cursor, _state, rnd):
    """What DDL a sink that names its columns follows by itself."""
    def write():
        a = rnd.randrange(1, 60)
        cursor.execute("INSERT INTO w7_shape (id, v, t) VALUES (%s, %s, 'w') ON CONFLICT (id) DO UPDATE SET v = w7_shape.v + 1", [a, rnd.randrange(100)])
        cursor.execute("DELETE FROM w7_shape WHERE id = %s", [rnd.randrange(1, 60)])

    write()
    cursor.execute("SET LOCAL lock_timeout = '2s'")
    cursor.execute(rnd.choice((
        "ALTER TABLE w7_shape ADD COLUMN IF NOT EXISTS extra int", "ALTER TABLE w7_shape ADD COLUMN IF NOT EXISTS more text DEFAULT 'd'",
        "ALTER TABLE w7_shape DROP COLUMN IF EXISTS extra", "ALTER TABLE w7_shape DROP COLUMN IF EXISTS more",
        "ALTER TABLE w7_shape REPLICA IDENTITY FULL", "ALTER TABLE w7_shape REPLICA IDENTITY DEFAULT",
        "CREATE INDEX IF NOT EXISTS w7_index ON w7_shape (v)", "DROP INDEX IF EXISTS w7_index",
        "ALTER TABLE w7_shape ALTER t SET STORAGE EXTERNAL", "TRUNCATE w7_shape", "ANALYZE w7_shape")))
    write()


LOADS = {"w1": (counters, counters_resume), "w2": (bank, None), "w3": (churn, None), "w4": (large, None), "w5": (bulk, None), "w6": (long, None),
         "w7": (shape, None), "w8": (shapes.write, None)}
SLOWER = {"w5": 200, "w6": 600, "w7": 30}  # how many times the others' pause
USUAL = ("w1", "w1", "w2", "w2", "w3", "w4")
ALL = USUAL + ("w5", "w6", "w7")
SHAPES = ("w8", "w8", "w8")


class Load(threading.Thread):
    def __init__(self, world, kind, number, seed, pause):
        super().__init__(daemon=True)
        self.world, self.kind, self.pause = world, kind, pause * SLOWER.get(kind, 1)
        self.random = random.Random(f"{seed}-{kind}-{number}")
        self.state = {"writer": number}
        self.done, self.transactions, self.failure = threading.Event(), 0, None

    def run(self):
        step, resume = LOADS[self.kind]
        while not self.done.is_set():
            connection = None
            try:
                connection = self.world.source.connect(self.world.db, autocommit=False)
                with connection.cursor() as cursor:
                    if resume:
                        resume(cursor, self.state)
                        connection.commit()
                    while not self.done.is_set():
                        before = dict(self.state)
                        step(cursor, self.state, self.random)
                        if self.random.random() < 0.05:
                            connection.rollback()
                            self.state = before
                        else:
                            connection.commit()
                            self.transactions += 1
                        if resume:
                            resume(cursor, self.state)
                            connection.commit()
                        self.done.wait(self.pause * self.random.random() * 2)
            except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.DeadlockDetected,
                    psycopg2.errors.UniqueViolation, psycopg2.errors.LockNotAvailable):
                self.done.wait(0.05)  # restarted, or two of us met: go on with a new connection
            except Exception as error:
                if getattr(error, "pgcode", "none") is not None:  # no SQLSTATE: the connection broke
                    self.failure = error
                    return
                self.done.wait(0.05)
            finally:
                if connection is not None:
                    connection.close()


class Loads:
    """with Loads(world, seed): ... - a thread for each of the kinds."""

    def __init__(self, world, seed, kinds=USUAL, pause=0.01):
        self.threads = [Load(world, kind, number, seed, pause) for number, kind in enumerate(kinds)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def stop(self):
        for thread in self.threads:
            thread.done.set()
        for thread in self.threads:
            thread.join(60)
        for thread in self.threads:
            if thread.failure:
                raise thread.failure
        return sum(thread.transactions for thread in self.threads)

    def __exit__(self, kind, value, trace):
        for thread in self.threads:
            thread.done.set()
        if kind is None:
            self.stop()
