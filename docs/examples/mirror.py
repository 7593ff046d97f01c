#!/usr/bin/env python3
"""Follows a stream on Kafka with nothing of spate's: keeps the rows of all tables that have a key, as JSON, in a SQLite file.

    kcat -q -u -C -b BROKERS -X auto.offset.reset=error -t shop -p 0 -o $(mirror.py shop.db) -f '%o %S\\n%s\\n' | mirror.py shop.db -

Kill it whenever you like: rows and position are one transaction, and a second start goes on behind it. Without the dash it
prints where to begin. It ends with words when the topic no longer holds what it has to hear.
"""
import json
import sqlite3
import sys
import time

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.executescript("CREATE TABLE IF NOT EXISTS row (tab TEXT, key TEXT, doc TEXT, PRIMARY KEY (tab, key));"
                 "CREATE TABLE IF NOT EXISTS place (at INT, epoch INT, uuid TEXT, n INT, pos TEXT)")
at, epoch, uuid, n, pos = db.execute("SELECT * FROM place").fetchone() or ("beginning", 0, None, 0, "")
if len(sys.argv) == 2:
    sys.exit(print(at))


def text(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def put(m):
    """One change to the rows; inside a transaction."""
    tab = f'{m.get("schema")}.{m.get("table")}'
    if m["op"] == "truncate":
        for each in m["tables"]:
            db.execute("DELETE FROM row WHERE tab = ?", (f'{each["schema"]}.{each["table"]}',))
    elif m["op"] in ("insert", "update", "delete") and m["key"] is not None:
        old = text({name: (m["before"] or m["key"])[name] for name in m["key"]})  # before it moved, if it did
        had = db.execute("SELECT doc FROM row WHERE tab = ? AND key = ?", (tab, old)).fetchone()
        db.execute("DELETE FROM row WHERE tab = ? AND key = ?", (tab, old))
        if m["op"] != "delete":
            kept = json.loads(had[0]) if had else {}
            doc = {**{name: kept[name] for name in m["unchanged"] if name in kept}, **m["after"]}
            db.execute("INSERT OR REPLACE INTO row VALUES (?, ?, ?)", (tab, text(m["key"]), text(doc)))


def commit(changes, *place):
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


begun, changes, last, last_pos, hole = epoch > 0, [], n, pos, None
for offset, m in records(sys.stdin.buffer):
    number = m.get("n", m.get("at", 0))
    if begun and at is not None:  # the first record after a restart is the one that was heard last
        if (offset, m["epoch"]) != (at, epoch) or (m["op"] != "epoch" and number != n):
            sys.exit(f"offset {at} held change {n} of epoch {epoch}; now offset {offset} is the first there is: load anew")
        at = None
    elif not begun:  # a new follower: what it can know begins behind the first complete place
        if "end" in m:
            epoch, uuid, n = m["epoch"], m.get("uuid"), 0 if m["op"] == "epoch" else number
            last, last_pos, begun, at = n, m.get("pos", m["end"]), True, None
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
    elif m["op"] == "heartbeat" and number == n and not changes:
        commit([], offset, epoch, uuid, n, last_pos)  # nothing happened, but older records may be removed
sys.exit("kcat has ended")
