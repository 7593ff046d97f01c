"""What chunks of a snapshot say, held against the stream that they stand in.

The rule of the weave is that a row of a chunk is true exactly where it stands: for every reader, not only for the one
that asked. So the state of each row is computed from the stream before it, and a `read` that says something else,
or that brings back a row which was deleted, is found where it happens, also when later changes would hide it.
"""
import json

GONE = None


class Wrong(Exception):
    """An invariant does not hold."""


def as_key(values):
    return json.dumps(values, sort_keys=True)


class Rows:
    """What the stream has said by now of one table's rows; most of them nothing."""

    def __init__(self):
        self.known = {}  # key: (v, columns) or GONE
        self.emptied = False  # by a TRUNCATE: what was not said since does not exist

    def change(self, message):
        key, before, op = message["key"], message.get("before"), message["op"]
        if key is None:
            return
        old = key
        if before is not None and all(name in before for name in key):
            old = {name: before[name] for name in key}
        columns = {}
        if op == "update":
            was = self.known.get(as_key(old), GONE)
            if was is not GONE and was[0] == message["v"]:
                columns = {name: was[1][name] for name in message["unchanged"] if name in was[1]}
        if op != "insert":
            self.known[as_key(old)] = GONE
        if op != "delete":
            self.known[as_key(key)] = (message["v"], {**columns, **message["after"]})

    def truncate(self):
        self.known, self.emptied = {}, True

    def read(self, message, here):
        if message["key"] is None:
            return
        key = as_key(message["key"])
        missing = (0, {})  # nothing is known
        was = self.known.get(key, GONE if self.emptied else missing)
        if was is GONE:
            raise Wrong(f"{here}: brings back {key}, which the stream says is deleted: {json.dumps(message)[:400]}")
        v, columns = was
        if v == message["v"]:
            for name, value in message["after"].items():
                if name in columns and columns[name] != value:
                    raise Wrong(f"{here}: {key} has {name} = {json.dumps(value)[:80]}, the stream said {json.dumps(columns[name])[:80]}")
        else:
            columns = {}
        self.known[key] = (message["v"], {**columns, **message["after"]})


class Chunks:
    """log: the messages come from a log in which two writers may have met, and which may lack some."""

    def __init__(self, log, truth):
        self.log, self.truth = log, truth
        self.tables, self.begun, self.taken = {}, set(), {}
        self.open = None
        self.complete = self.broken = self.rows = self.dropped = 0

    def rows_of(self, message):
        return self.tables.setdefault((message["schema"], message["table"]), Rows())

    def take(self, message, here):
        op = message["op"]
        if self.open and op not in ("read", "chunk-end"):
            self.broken, self.open = self.broken + 1, None
        if op in ("insert", "update", "delete"):
            if self.truth:
                self.rows_of(message).change(message)
        elif op == "truncate":
            for table in message["tables"]:
                self.tables.setdefault((table["schema"], table["table"]), Rows()).truncate()
        elif op == "epoch":
            if message["previous"] == "broken":  # changes are missing: nothing is known any more
                self.tables.clear()
        elif op == "snapshot-begin":
            self.begun.add((message["to"], message["request"]))
        elif op in ("chunk", "read", "chunk-end"):
            if not message["to"] or (message["to"], message["request"]) not in self.begun:
                self.wrong(f"{here}: belongs to request {message['request']} of {message['to']}, which has not begun")
            {"chunk": self.chunk, "read": self.read, "chunk-end": self.end}[op](message, here)
        elif op == "ranges-end":
            for table in message["tables"]:
                taken = self.taken.get((message["request"], table["schema"], table["table"]), {"no": 0})["no"]
                if table["chunks"] > taken:
                    self.wrong(f"{here}: counts {table['chunks']} chunks of {table['table']}, there are {taken}")

    def wrong(self, words):
        """What two writers of a log, or a loss of it, may bring about."""
        if not self.log:
            raise Wrong(words)

    def name(self, message):
        return tuple(message[field] for field in ("to", "request", "schema", "table", "by", "no"))

    def chunk(self, message, here):
        if "range" in message:
            begins = self.taken.get((message["request"], message["schema"], message["table"]), {"to": set()})["to"]
            if message["range"]["from"] != "(0,0)" and message["range"]["from"] not in begins:
                self.wrong(f"{here}: begins at {message['range']['from']}, where no chunk ended")
        elif "keys" not in message:
            raise Wrong(f"{here}: has neither a range nor keys")
        self.open = {"name": self.name(message), "reads": 0, "to": message.get("range", {}).get("to"), "dropped": {as_key(key) for key in message["dropped"]}}
        self.dropped += len(message["dropped"])

    def read(self, message, here):
        if not self.open or self.name(message) != self.open["name"]:
            self.wrong(f"{here}: stands outside of its chunk")
            self.broken, self.open = self.broken + 1, None
            return
        if as_key(message["key"]) in self.open["dropped"]:
            raise Wrong(f"{here}: {message['key']} is named as dropped, and is here")
        self.open["reads"] += 1
        self.rows += 1
        if self.truth:
            self.rows_of(message).read(message, here)

    def end(self, message, here):
        chunk, self.open = self.open, None
        if not chunk or self.name(message) != chunk["name"]:
            self.wrong(f"{here}: ends no chunk")
            self.broken += 1
            return
        if message["count"] != chunk["reads"]:
            self.wrong(f"{here}: counts {message['count']} rows, there are {chunk['reads']}")
            self.broken += 1
            return
        taken = self.taken.setdefault((message["request"], message["schema"], message["table"]), {"no": 0, "to": set()})
        if message["no"] > taken["no"] + 1:
            self.wrong(f"{here}: chunk {message['no']} after chunk {taken['no']}")
        taken["no"] = max(taken["no"], message["no"])
        if chunk["to"]:
            taken["to"].add(chunk["to"])
        self.complete += 1
