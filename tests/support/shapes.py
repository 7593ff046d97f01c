"""Tables of many shapes, full before anybody listens, and a writer that moves their rows: what snapshots are asked of.

Keys of odd texts and of two columns, partitions between which rows move, an identity of the whole row, a table that is
truncated, rewritten and altered; in each large values kept out of line, so that updates come without them (P94), and
pages with room, so that rows move.
"""
import json

ROWS = 400

SCHEMA = """
CREATE TABLE s_text (k text PRIMARY KEY, v int NOT NULL, large text) WITH (fillfactor = 70);
CREATE TABLE s_pair (a int, b text, v int NOT NULL, large text, note text, PRIMARY KEY (b, a)) WITH (fillfactor = 70);
CREATE TABLE s_parts (id int PRIMARY KEY, v int NOT NULL, large text) PARTITION BY RANGE (id);
CREATE TABLE s_parts_a PARTITION OF s_parts FOR VALUES FROM (MINVALUE) TO (150);
CREATE TABLE s_parts_b PARTITION OF s_parts FOR VALUES FROM (150) TO (300);
CREATE TABLE s_parts_c PARTITION OF s_parts DEFAULT;
CREATE TABLE s_full (id int PRIMARY KEY, v int NOT NULL, large text);
ALTER TABLE s_full REPLICA IDENTITY FULL;
CREATE TABLE s_plain (id int PRIMARY KEY, v int NOT NULL, large text) WITH (fillfactor = 70);
""" + "".join(f"ALTER TABLE {table} ALTER large SET STORAGE EXTERNAL;" for table in
              ("s_text", "s_pair", "s_parts", "s_parts_a", "s_parts_b", "s_parts_c", "s_full", "s_plain"))

# The columns of the key, and how the key of number n is spelled.
KEYS = {
    "s_text": (("k",), lambda n: ("%s \"'\\\u00e9\t%d" % ("Aa"[n % 2], n),)),
    "s_pair": (("a", "b"), lambda n: (n % 20, f"b{n // 20}")),
    "s_parts": (("id",), lambda n: (n,)),
    "s_full": (("id",), lambda n: (n,)),
    "s_plain": (("id",), lambda n: (n,)),
}
NAMED = {"s_plain": {"columns": {"id": "id", "v": "v", "large": "large"}, "key": ["id"]}}
MIRROR = {table: {"from": f"public.{table}", **NAMED.get(table, {})} for table in KEYS}
# What may be missing in an update decides here which rows there are, and what they look like: a copy of the sink's own.
OWN_WORDS = {"late_" + table: {"from": f"public.{table}", "where": "v % 2 = 1 OR large IS NULL",
                               "columns": {**{name: name for name in KEYS[table][0]}, "both": "v || ':' || coalesce(md5(large), '-')"},
                               "key": list(KEYS[table][0])} for table in ("s_text", "s_pair", "s_parts", "s_plain")}


def pairs(schema):
    return [(f"SELECT {'id, v, large' if table in NAMED else '*'} FROM public.{table}", f"SELECT * FROM {schema}.{table}") for table in KEYS]


def own_words_pairs(schema):
    return [(f"SELECT {', '.join(KEYS[name[5:]][0])}, v || ':' || coalesce(md5(large), '-') FROM public.{name[5:]} WHERE v % 2 = 1 OR large IS NULL",
             f"SELECT * FROM {schema}.{name}") for name in OWN_WORDS]


def prepare(world):
    world.src(SCHEMA)


def fill(world, rows=ROWS):
    for table, (columns, spell) in KEYS.items():
        keys = json.dumps([{**dict(zip(columns, spell(n))), "n": n} for n in range(rows)])
        kinds = ", ".join(f"{name} {'text' if name in ('k', 'b') else 'int'}" for name in columns)
        world.src(f"INSERT INTO {table} ({', '.join(columns)}, v, large) SELECT {', '.join(columns)}, n, CASE WHEN n %% 2 = 0 THEN repeat(md5(n::text), 70 + n %% 50) END "
                  f"FROM json_to_recordset(%s) AS r ({kinds}, n int)", [keys])


def write(cursor, state, rnd):
    """One transaction's worth."""
    cursor.execute("SET LOCAL deadlock_timeout = '20ms'")
    if rnd.random() < 0.01:
        rare(cursor, rnd)
        return
    for table in sorted(rnd.choices(list(KEYS), k=rnd.choice((1, 1, 2, 5)))):  # in one order: fewer deadlocks
        one(cursor, state, rnd, table)


def one(cursor, state, rnd, table):
    columns, spell = KEYS[table]
    rows = state.get("rows", ROWS)
    key, other = spell(rnd.randrange(rows)), spell(rnd.randrange(rows))
    where = " AND ".join(f"{name} = %s" for name in columns)
    kind = rnd.random()
    if kind < 0.40:  # the large value stays, and is not sent
        cursor.execute(f"UPDATE {table} SET v = v + 1 WHERE {where}", key)
    elif kind < 0.55:
        cursor.execute(f"UPDATE {table} SET v = v + 1, large = repeat(md5(random()::text), %s) WHERE {where}", (rnd.choice((1, 80, 120)), *key))
    elif kind < 0.70:
        cursor.execute(f"DELETE FROM {table} WHERE {where}", key)
    elif kind < 0.85:
        cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}, v, large) VALUES ({', '.join(['%s'] * len(columns))}, %s, repeat(md5(random()::text), %s)) "
                       f"ON CONFLICT ({', '.join(columns)}) DO UPDATE SET v = excluded.v", (*key, rnd.randrange(1 << 20), rnd.choice((0, 2, 90))))
    elif kind < 0.97:  # to another key, which must be free; the large value is not sent (P42)
        cursor.execute(f"UPDATE {table} SET {', '.join(f'{name} = %s' for name in columns)}, v = v + 1 WHERE {where} "
                       f"AND NOT EXISTS (SELECT FROM {table} WHERE {where})", (*other, *key, *other))
    else:
        cursor.execute(f"UPDATE {table} SET v = v + 1 WHERE v %% 5 = %s", [rnd.randrange(5)])


def rare(cursor, rnd):
    """Whatever ends what was read of a table so far: its rows are others, or elsewhere."""
    cursor.execute("SET LOCAL lock_timeout = '2s'")
    kind = rnd.randrange(6)
    if kind == 0:
        cursor.execute("TRUNCATE s_plain")
        cursor.execute("INSERT INTO s_plain SELECT g, g, repeat(md5(g::text), 80) FROM generate_series(0, %s) g", [rnd.randrange(ROWS)])
    elif kind == 1:
        cursor.execute("TRUNCATE s_plain, s_full")
    elif kind == 2:
        cursor.execute("CLUSTER s_plain USING s_plain_pkey")
    elif kind == 3:
        cursor.execute("ALTER TABLE s_plain ADD COLUMN IF NOT EXISTS more text DEFAULT 'd'")
    elif kind == 4:
        cursor.execute("ALTER TABLE s_plain DROP COLUMN IF EXISTS more")
    else:
        cursor.execute("INSERT INTO s_plain SELECT g, g, NULL FROM generate_series(0, %s) g ON CONFLICT (id) DO NOTHING", [ROWS])
