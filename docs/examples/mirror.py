#!/usr/bin/env python3
"""Follows a stream on Kafka with nothing of spate's: keeps the rows of all tables that have a key, as JSON, in a SQLite file.

    kcat -q -u -C -b BROKERS -X auto.offset.reset=error -t shop -p 0 -o $(mirror.py shop.db) -f '%o %S\\n%s\\n' | mirror.py shop.db -

Kill it whenever you like: rows and position are one transaction, and a second start goes on behind it. Without the dash it
prints where to begin. It ends with words when the topic no longer holds what it has to hear.

With tables behind the dash (schema.table) it also asks for the rows that were there before, once, and prints what is to be
told to the connector; a refusal stands on that topic, too:

    ... | mirror.py shop.db - public.orders public.customers | kcat -q -P -b BROKERS -t shop._control -p 0
"""
import json
import sqlite3
import sys
import time
import uuid as uuids

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript("CREATE TABLE IF NOT EXISTS row (tab TEXT, key TEXT, doc TEXT, met INT, PRIMARY KEY (tab, key));"
                 "CREATE TABLE IF NOT EXISTS place (at INT, epoch INT, uuid TEXT, n INT, pos TEXT);"
                 # What was asked for, as far as it came; met in a row: it came whole since snapshot-begin.
                 "CREATE TABLE IF NOT EXISTS asked (tab TEXT PRIMARY KEY, request TEXT, begun INT, done INT, no INT, token TEXT);"
                 "CREATE TABLE IF NOT EXISTS again (tab TEXT, key TEXT, PRIMARY KEY (tab, key))")
at, epoch, uuid, n, pos = db.execute("SELECT * FROM place").fetchone() or ("beginning", 0, None, 0, "")
if len(sys.argv) == 2:
    sys.exit(print(at))


def text(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def loading(tab):
    return db.execute("SELECT 1 FROM asked WHERE tab = ? AND begun AND NOT done", (tab,)).fetchone()


def put(m):
    """One change to the rows; inside a transaction."""
    tab = f'{m.get("schema")}.{m.get("table")}'
    if m["op"] == "truncate":
        for each in m["tables"]:
            for of in ("row", "again"):
                db.execute(f"DELETE FROM {of} WHERE tab = ?", (f'{each["schema"]}.{each["table"]}',))
    elif m["op"] in ("insert", "update", "delete") and m["key"] is not None:
        old = text({name: (m["before"] or m["key"])[name] for name in m["key"]})  # before it moved, if it did
        had = db.execute("SELECT doc, met FROM row WHERE tab = ? AND key = ?", (tab, old)).fetchone()
        for of in ("row", "again"):
            db.execute(f"DELETE FROM {of} WHERE tab = ? AND key = ?", (tab, old))
        if m["op"] != "delete" and m["unchanged"] and loading(tab) and not (had and had[1]):
            db.execute("INSERT OR IGNORE INTO again VALUES (?, ?)", (tab, text(m["key"])))  # a part of a row that did not come yet
        elif m["op"] != "delete":
            kept = json.loads(had[0]) if had else {}
            doc = {**{name: kept[name] for name in m["unchanged"] if name in kept}, **m["after"]}
            whole(tab, m["key"], doc)


def whole(tab, key, doc):
    db.execute("INSERT OR REPLACE INTO row VALUES (?, ?, ?, 1)", (tab, text(key), text(doc)))
    db.execute("DELETE FROM again WHERE tab = ? AND key = ?", (tab, text(key)))


def commit(changes, *place):
    if not db.in_transaction:
        db.execute("BEGIN")
    for change in changes:
        put(change)
    db.execute("DELETE FROM place")
    db.execute("INSERT INTO place VALUES (?, ?, ?, ?, ?)", place)
    db.execute("COMMIT")


def records(stream):
    for head in iter(stream.readline, b""):
        offset, size = map(int, head.split())
        value = stream.read(size + 1)[:size]
        try:
            m = json.loads(value)
            if m["spate"] > 1:
                sys.exit(f"offset {offset} was written by a newer spate: a newer reader is needed")
            yield offset, m
        except (ValueError, TypeError, KeyError):
            print(f"offset {offset} is none of ours, passed by: the numbers show whether it was", file=sys.stderr)


def tell(op, **more):
    """To the connector; answers stand on its topic, and chunks come in the stream."""
    request, = db.execute("SELECT request FROM asked WHERE NOT done").fetchone()
    print(json.dumps({"spate": 1, "op": op, "request": request, "sink": sink, **more}), flush=True)


def ask(again=False):
    global heard, told, lost
    heard, told, lost = time.monotonic(), time.monotonic(), False
    tables = [{**name(tab), **({"resume": token} if token else {}), "chunk": no}
              for tab, no, token in db.execute("SELECT tab, no, token FROM asked WHERE NOT done ORDER BY tab")]
    if tables:
        tell("request", tables=tables, again=again)


def renew():
    """Under another name, from the beginning."""
    global chunk, ranges
    chunk, ranges = None, False
    db.execute("BEGIN")
    db.execute("UPDATE asked SET request = ?, begun = 0, no = 0, token = NULL WHERE NOT done", (f"{sink}-{uuids.uuid4()}",))
    db.execute("DELETE FROM again")
    db.execute("COMMIT")
    ask()


def name(tab):
    return dict(zip(("schema", "table"), tab.split(".", 1)))


def mine(m):
    return m.get("to") == sink and db.execute("SELECT 1 FROM asked WHERE request = ? AND NOT done", (m["request"],)).fetchone()


def hear(m):
    """What was asked for. True: in an open transaction, which the caller ends together with its place."""
    global chunk, reads, heard, ranges, lost
    tab, heard = f'{m.get("schema")}.{m.get("table")}', time.monotonic()
    same = chunk and (chunk["schema"], chunk["table"], chunk["by"], chunk["no"]) == tuple(map(m.get, ("schema", "table", "by", "no")))
    if m["op"] == "snapshot-begin":
        db.execute("BEGIN")
        for each in m["tables"]:
            tab = f'{each["schema"]}.{each["table"]}'
            if not loading(tab):
                db.execute("UPDATE row SET met = 0 WHERE tab = ?", (tab,))
                db.execute("UPDATE asked SET begun = 1 WHERE tab = ?", (tab,))
        return True
    if m["op"] == "chunk":
        chunk, reads = None, []
        no, token = db.execute("SELECT no, token FROM asked WHERE tab = ?", (tab,)).fetchone()
        if loading(tab) and m["no"] == no + 1 and m.get("since", token) == token:
            chunk = m
        elif m["no"] > no:
            lost = True  # another chunk should have come first, or the begin
    elif m["op"] == "read" and same:
        reads.append(m)
    elif m["op"] == "chunk-end" and same:
        asked, chunk = chunk, None
        if len(reads) != m["count"]:
            lost = True
            return False
        db.execute("BEGIN")
        for key in asked.get("keys", []):
            db.execute("DELETE FROM again WHERE tab = ? AND key = ?", (tab, text(key)))
            if key not in asked["dropped"]:  # what changes later is told then; else it is among the rows, or gone
                db.execute("DELETE FROM row WHERE tab = ? AND key = ?", (tab, text(key)))
        for read in reads:
            whole(tab, read["key"], read["after"])
        db.execute("UPDATE asked SET no = ? WHERE tab = ?", (m["no"], tab))
        if "range" in asked:
            lost = ranges = False
            db.execute("UPDATE asked SET token = ? WHERE tab = ?", (m["resume"], tab))
        return True
    elif m["op"] == "ranges-end":
        ends = {f'{each["schema"]}.{each["table"]}': each["resume"] for each in m["tables"]}
        if all((token or "") == ends.get(tab, "") for tab, token in db.execute("SELECT tab, token FROM asked WHERE NOT done")):
            ranges, lost = True, False
        elif not ranges:
            lost = True  # it belongs to chunks that were not taken
        return finish()
    return False


def finish():
    """After ranges-end: asks for what came in parts, and sweeps when there is none of it."""
    global ranges
    if not ranges:
        return False
    keys = {}
    for tab, key in db.execute("SELECT tab, key FROM again WHERE tab IN (SELECT tab FROM asked WHERE NOT done) LIMIT 1000"):
        keys.setdefault(tab, []).append(json.loads(key))
    for tab in keys:
        tell("reread", **name(tab), chunk=db.execute("SELECT no FROM asked WHERE tab = ?", (tab,)).fetchone()[0], keys=keys[tab])
    if keys:
        return False
    if not db.in_transaction:
        db.execute("BEGIN")
    db.execute("DELETE FROM row WHERE NOT met AND tab IN (SELECT tab FROM asked WHERE NOT done)")
    tell("finished")
    db.execute("UPDATE asked SET done = 1")
    ranges = False
    return True


chunk, reads, ranges, lost = None, [], False, False
if not db.execute("SELECT 1 FROM asked").fetchone():
    sink = f"mirror-{uuids.uuid4().hex[:8]}"  # whoever asks has a name of its own
    db.executemany("INSERT INTO asked VALUES (?, ?, 0, 0, 0, NULL)", [(tab, f"{sink}-{uuids.uuid4()}") for tab in sys.argv[3:]])
sink = (db.execute("SELECT request FROM asked").fetchone() or ("-",))[0][:15]
begun, changes, last, last_pos, hole = epoch > 0, [], n, pos, None
ask(again=db.execute("SELECT 1 FROM asked WHERE no > 0").fetchone() is not None)  # chunks may have been lost when it was killed
for offset, m in records(sys.stdin.buffer):
    number = m.get("n", m.get("at", 0))
    if lost and time.monotonic() - told > 2:
        ask(again=True)  # not at once: chunks of before are still on their way
    elif time.monotonic() - heard > 30:
        ask()  # nobody answers, or what was asked is forgotten
    if "n" in m:
        chunk = None  # a chunk is never interrupted by a change, unless its writer died
    elsewhere = m["op"] == "snapshot-begin" and begun and m["epoch"] == epoch and number != n and mine(m)
    if elsewhere and (number < n or not db.execute("SELECT 1 FROM asked WHERE begun AND NOT done").fetchone()):
        renew()  # two writers: its chunks leave out what changed behind that place, and here not all of it counts
    elif begun and at is not None:  # the first record after a restart is the one that was heard last
        if (offset, m["epoch"]) != (at, epoch) or (m["op"] != "epoch" and number != n):
            sys.exit(f"offset {at} held change {n} of epoch {epoch}; now offset {offset} is the first there is: load anew")
        at = None
    elif not begun:  # a new follower: what it can know begins behind the first complete place
        if "end" in m:
            epoch, uuid, n = m["epoch"], m.get("uuid"), 0 if m["op"] == "epoch" else number
            last, last_pos, begun, at = n, m.get("pos", m["end"]), True, None
            if mine(m):
                hear(m)  # the begin of what was asked for
            commit([], offset, epoch, uuid, n, last_pos)
    elif m["epoch"] < epoch:
        pass  # a writer that was thought dead
    elif m["op"] == "epoch":
        if m["epoch"] == epoch and uuid in (None, m["uuid"]):
            continue
        if m["previous"] != {"epoch": epoch, "n": n}:
            sys.exit(f'epoch {m["epoch"]} does not go on from change {n} of epoch {epoch} ({m["why"]}): load anew')
        changes, epoch, uuid, n, last, last_pos, hole = [], m["epoch"], m["uuid"], 0, 0, m["end"], None
        commit([], offset, epoch, uuid, n, last_pos)
    elif m["epoch"] > epoch or number > last + ("n" in m):
        hole = hole or time.monotonic()  # passed by: whoever left it comes back to the missing number
        if time.monotonic() - hole > 60:
            sys.exit(f"change {last + 1} of epoch {epoch} is not in the topic: load anew")
    elif "n" in m and (number > last) != (m["pos"] > last_pos):
        sys.exit(f"change {number} at offset {offset} is of another history: look who else writes to this topic")
    elif "n" in m and number == last + 1:
        last, last_pos, hole = number, m["pos"], None
        changes.append(m)
        if "end" in m:
            n = last
            commit(changes, offset, epoch, uuid, n, last_pos)
            changes = []
    elif mine(m) and number == n and not changes:
        if hear(m):
            finish()
            commit([], offset, epoch, uuid, n, last_pos)
    elif m["op"] == "stale" and number == n and not changes:
        if db.execute("UPDATE asked SET done = 0 WHERE tab = ?", (f'{m["schema"]}.{m["table"]}',)).rowcount:
            renew()  # no message carried what happened there
        commit([], offset, epoch, uuid, n, last_pos)
    elif m["op"] == "heartbeat" and number == n and not changes:
        commit([], offset, epoch, uuid, n, last_pos)  # nothing happened, but older records may be removed
sys.exit("kcat has ended")
