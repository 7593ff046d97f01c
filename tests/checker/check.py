#!/usr/bin/env python3
"""The checker: says whether source, bus and targets agree. It shares no code with what it checks.

  check.py tables --source DSN --target DSN --pair SOURCE_SELECT TARGET_SELECT [--pair ...]
      I1: both SELECTs give the same rows. Prints EQUAL or the first rows that differ.
  check.py bank --target DSN --query SELECT --expect VALUE [--reads 100 | --until-file PATH]
      I3: every read of the query gives the value, while changes are being applied.
  check.py confirmed --source DSN --slot NAME --archive DIR --until-file PATH
      I5: samples the slot's confirmed_flush_lsn; at no time is it beyond what the bus' files on disk carry.
  check.py bus (--tap COMMAND | --archive DIR) [--schemas DIR] [--sample N] [--until HEX_LSN]
      I2: n without hole or repeat in each epoch, positions ascend, one `end` per transaction, `at` is right,
      every message (or each Nth, with --sample N) valid against the published JSON Schemas.

Exit 0: holds; 1: does not hold (the text says where); 2: could not be checked.
"""
import argparse
import glob
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import threading
import time

CHANGES = {"insert", "update", "delete", "truncate", "message"}
BETWEEN = {"heartbeat", "epoch", "snapshot-begin", "chunk", "read", "chunk-end", "ranges-end"}
HEAD = ["spate", "op", "n", "at", "epoch", "to", "request", "schema", "table", "pos", "end"]


class Wrong(Exception):
    """An invariant does not hold."""


# ---------------------------------------------------------------- tables (I1)

SESSION = ("SET datestyle=ISO; SET intervalstyle=postgres; SET extra_float_digits=3; SET bytea_output=hex;"
           "SET timezone='UTC'; SET lc_monetary='C'; SET statement_timeout='300s'")


def connect(dsn):
    import psycopg2
    connection = psycopg2.connect(dsn)
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    with connection.cursor() as cursor:
        cursor.execute(SESSION)
    return connection


def digest(connection, query):
    with connection.cursor() as cursor:
        # A digest of the multiset of rows: the sum of both halves of each row's md5, which needs no sorting.
        cursor.execute("SELECT count(*), sum(('x' || left(m, 16))::bit(64)::bigint::numeric), sum(('x' || right(m, 16))::bit(64)::bigint::numeric) "
                       f"FROM (SELECT md5((q.*)::text) AS m FROM ({query}\n) AS q) AS rows")
        return cursor.fetchone()


def all_rows(connection, query):
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT (q.*)::text COLLATE \"C\" AS r FROM ({query}\n) AS q ORDER BY 1")
        return [row[0] for row in cursor.fetchall()]


def show_difference(source, target, pair):
    here, there = all_rows(source, pair[0]), all_rows(target, pair[1])
    counts = {}
    for row in here:
        counts[row] = counts.get(row, 0) + 1
    for row in there:
        counts[row] = counts.get(row, 0) - 1
    lines = [f"  only at the source: {row[:100]}" for row, count in counts.items() if count > 0][:5]
    lines += [f"  only at the target: {row[:100]}" for row, count in counts.items() if count < 0][:5]
    wrong = sum(abs(count) for count in counts.values())
    return f"{len(here)} rows at the source, {len(there)} at the target, {wrong} differ\n" + "\n".join(lines)


def check_tables(options):
    import psycopg2
    if not options.pair:
        raise SystemExit("check.py tables: no --pair given")
    source, target = connect(options.source), connect(options.target)
    failed = 0
    for pair in options.pair:
        try:
            left, right = digest(source, pair[0]), digest(target, pair[1])
        except psycopg2.Error as error:
            print(f"DIFFERENT {pair[1]}: {error}")
            source.rollback(), target.rollback()
            failed += 1
            continue
        if left == right:
            print(f"EQUAL {left[0]} rows: {pair[1]}")
        else:
            print(f"DIFFERENT {pair[1]}: {show_difference(source, target, pair)}")
            failed += 1
    return 1 if failed else 0


# ---------------------------------------------------------------- bank (I3)

def went_away(error):
    """Whether it is the connection that broke; libpq reports some breaks without an SQLSTATE."""
    import psycopg2
    return isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)) or error.pgcode is None


class Patient:
    """A connection that is made anew when the server was restarted under it."""

    def __init__(self, dsn):
        self.dsn, self.connection = dsn, None

    def rows(self, query, args=None):
        """None while the server is away."""
        import psycopg2
        try:
            if self.connection is None:
                self.connection = psycopg2.connect(self.dsn)
                self.connection.autocommit = True
            with self.connection.cursor() as cursor:
                cursor.execute(query, args)
                return cursor.fetchall()
        except psycopg2.Error as error:
            if not went_away(error):
                raise
            self.connection = None
            return None


def check_bank(options):
    import psycopg2
    target = Patient(options.target)
    reads = 0
    while reads < options.reads or (options.until_file and not os.path.exists(options.until_file)):
        try:
            rows = target.rows(options.query)
        except psycopg2.errors.UndefinedTable:
            rows = None  # not made yet
        if rows:
            reads += 1
            value = rows[0][0]
            if value is not None and str(value) != options.expect:
                raise Wrong(f"I3: read {reads} gave {value}, not {options.expect}: half a transaction was visible")
        time.sleep(options.every)
    print(f"{reads} reads, all {options.expect}")
    return 0


# ---------------------------------------------------------------- the bus' files

class Archive:
    """Reads a topic's segment files on disk, incrementally. Layout: 4096 bytes of header (base position at 8,
    capacity at 16), then records on 64-byte boundaries: word (state:8 slot:12 gen:12 len:32), time, index,
    crc, key hash, key length, type, flags; then key and value."""

    COMMIT, PAD, END = 2, 3, 4

    def __init__(self, directory):
        self.directory, self.done, self.offsets = directory, set(), {}

    def lines(self):
        """The records that have been added since the last call."""
        for path in sorted(glob.glob(os.path.join(self.directory, "*.seg"))):
            if path in self.done:
                continue
            with open(path, "rb") as file:
                capacity = struct.unpack_from("=Q", file.read(4096), 16)[0]
                at = self.offsets.get(path, 0)
                file.seek(4096 + at)
                data = file.read()
            begin = 0
            while begin + 32 <= len(data):
                word, = struct.unpack_from("=Q", data, begin)
                state, length = word >> 56, word & 0xFFFFFFFF
                if state == self.COMMIT:
                    if begin + 32 + length > len(data):
                        break
                    key_length, = struct.unpack_from("=H", data, begin + 28)
                    yield data[begin + 32 + key_length:begin + 32 + length]
                    begin += (32 + length + 63) & ~63
                elif state == self.PAD:
                    begin += length
                else:
                    if state == self.END:
                        self.done.add(path)
                    break
            self.offsets[path] = at + begin
            if at + begin >= capacity:
                self.done.add(path)
            elif path not in self.done:
                return


def parse_lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


END = re.compile(rb'"end":"([0-9A-F]{16})"')


def check_confirmed(options):
    """The slot is read first and the files afterwards: what was confirmed must be in them already."""
    archive, greatest, samples = Archive(options.archive), 0, 0
    source = Patient(options.source)
    while not os.path.exists(options.until_file) or samples == 0:
        rows = source.rows("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", [options.slot])
        row = rows[0] if rows else None
        for line in archive.lines():
            found = END.search(line[:600])
            if found:
                greatest = max(greatest, int(found.group(1), 16))
        if row and row[0] and greatest:
            confirmed = parse_lsn(row[0])
            samples += 1
            if confirmed > greatest:
                raise Wrong(f"I5: {row[0]} is confirmed, the bus' files reach only to {greatest >> 32:X}/{greatest & 0xFFFFFFFF:X}")
        time.sleep(0.1)
    print(f"{samples} samples, confirmed never beyond the durable bus")
    return 0


# ---------------------------------------------------------------- the stream (I2)

class Stream:
    def __init__(self):
        self.epoch = None      # the number of the open epoch
        self.n = 0             # last change counted
        self.whole = 0         # last n of a complete transaction
        self.pos = None        # (commit, ordinal) of the last change
        self.open = None       # the transaction that is not complete: (commit, xid, ts)
        self.end = 0
        self.count = {}
        self.messages = 0

    def take(self, line):
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Wrong(f"message {self.messages + 1} is no JSON ({error}): {line[:200]!r}")
        self.messages += 1
        here = f"message {self.messages} ({message.get('op')}, n {message.get('n', message.get('at'))})"
        if not isinstance(message, dict) or message.get("spate") != 1:
            raise Wrong(f"{here}: not a message of format 1")
        self.head_order(message, here)
        op = message["op"]
        self.count[op] = self.count.get(op, 0) + 1
        if op in CHANGES:
            self.change(message, here)
        elif op in BETWEEN:
            self.between(message, here)
        else:
            raise Wrong(f"{here}: unknown op")
        return message

    def head_order(self, message, here):
        names = list(message)
        order = [name for name in names if name in HEAD]
        if order != sorted(order, key=HEAD.index) or names[:len(order)] != order:
            raise Wrong(f"{here}: the deciding fields do not come first in their order: {names}")

    def between(self, message, here):
        if "n" in message or "at" not in message:
            raise Wrong(f"{here}: must carry `at` and no `n`")
        if message["op"] == "epoch":
            return self.new_epoch(message, here)
        if message["epoch"] != self.epoch:
            raise Wrong(f"{here}: epoch {message['epoch']} inside epoch {self.epoch}")
        if self.open:
            raise Wrong(f"{here}: stands inside transaction {self.open}")
        if message["at"] != self.n:
            raise Wrong(f"{here}: `at` is {message['at']}, the last change was {self.n}")
        if message["op"] == "heartbeat":
            self.take_end(message, here)

    def new_epoch(self, message, here):
        if self.epoch is not None and message["epoch"] != self.epoch + 1:
            raise Wrong(f"{here}: epoch {message['epoch']} follows {self.epoch}")
        previous = message["previous"]
        if self.epoch is None and previous is not None and message["epoch"] == 1:
            raise Wrong(f"{here}: the first epoch names a previous one: {previous}")
        if isinstance(previous, dict) and self.epoch is not None and previous != {"epoch": self.epoch, "n": self.whole}:
            raise Wrong(f"{here}: names {previous}, but epoch {self.epoch} ended with {self.whole}")
        # A new epoch may begin elsewhere: positions start anew and an open transaction is void.
        self.epoch, self.n, self.whole, self.open, self.pos = message["epoch"], 0, 0, None, None
        self.end = int(message["end"], 16)

    def change(self, message, here):
        if self.epoch is None:
            raise Wrong(f"{here}: a change before any epoch message")
        if message["epoch"] != self.epoch:
            raise Wrong(f"{here}: epoch {message['epoch']} inside epoch {self.epoch}")
        if message["n"] != self.n + 1:
            kind = "repeated" if message["n"] <= self.n else "a hole before it"
            raise Wrong(f"{here}: n {message['n']} after {self.n}: {kind}")
        if not re.fullmatch(r"[0-9A-F]{16}\.[0-9A-F]{8}", message["pos"]):
            raise Wrong(f"{here}: pos is {message['pos']}")
        commit, ordinal = (int(part, 16) for part in message["pos"].split("."))
        transaction = (commit, message["xid"], message["ts"])
        if self.pos is not None and (commit, ordinal) <= self.pos:
            raise Wrong(f"{here}: pos {message['pos']} does not ascend")
        if self.open is None:
            if ordinal != 1:
                raise Wrong(f"{here}: a transaction begins with ordinal {ordinal}")
            if commit < self.end:
                raise Wrong(f"{here}: commit {commit:X} lies before the end {self.end:X} that was declared")
        elif transaction != self.open:
            raise Wrong(f"{here}: {transaction} begins inside {self.open}, which had no `end`")
        elif ordinal != self.pos[1] + 1:
            raise Wrong(f"{here}: ordinal {ordinal} after {self.pos[1]}")
        self.n, self.pos, self.open = message["n"], (commit, ordinal), transaction
        if "end" in message:
            if int(message["end"], 16) <= commit:
                raise Wrong(f"{here}: end {message['end']} is not beyond its commit {commit:X}")
            self.take_end(message, here)
            self.whole, self.open = self.n, None

    def take_end(self, message, here):
        end = int(message["end"], 16)
        if end < self.end:
            raise Wrong(f"{here}: end goes back from {self.end:X} to {end:X}")
        self.end = end


class Schemas:
    """The published schemas, held by a validator that is not ours."""

    def __init__(self, directory):
        import jsonschema
        paths = sorted(glob.glob(os.path.join(directory, "*.schema.json")))
        if not paths:
            raise SystemExit(f"check.py: no *.schema.json in {directory}")
        documents = {}
        for path in paths:
            with open(path) as file:
                documents[os.path.basename(path)] = json.load(file)
        store = {}
        for name, document in documents.items():
            store[name] = document
            if "$id" in document:
                store[document["$id"]] = document
        main = documents.get("message.schema.json")
        if main is None:
            raise SystemExit(f"check.py: no message.schema.json in {directory}")
        kind = jsonschema.validators.validator_for(main)
        kind.check_schema(main)
        try:
            from referencing import Registry, Resource
            registry = Registry().with_resources(
                [(name, Resource.from_contents(document)) for name, document in store.items()])
            self.validator = kind(main, registry=registry)
        except (ImportError, TypeError):  # jsonschema before 4.18
            self.validator = kind(main, resolver=jsonschema.RefResolver(main.get("$id", ""), main, store=store))
        self.checked = 0

    def hold(self, message):
        self.checked += 1
        error = next(iter(self.validator.iter_errors(message)), None)
        if error:
            where = "/".join(str(part) for part in error.absolute_path)
            deeper = "; ".join(e.message[:150] for e in sorted(error.context or [], key=lambda e: -len(e.absolute_path))[:3])
            raise Wrong(f"not valid against the schema at /{where}: {error.message[:300]} ({deeper}): {json.dumps(message)[:500]}")


def tap_lines(command, seconds):
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield from process.stdout
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()


def check_bus(options):
    stream = Stream()
    schemas = Schemas(options.schemas) if options.schemas else None
    until = int(options.until, 16) if options.until else None
    lines = tap_lines(options.tap, options.seconds) if options.tap else Archive(options.archive).lines()
    reached = until is None
    for line in lines:
        message = stream.take(line)
        if schemas and (options.sample <= 1 or stream.messages % options.sample == 1):
            schemas.hold(message)
        if until is not None and stream.open is None and stream.end > until:
            reached = True
            break
    lines.close()
    if not reached:
        raise Wrong(f"the stream ended at {stream.end:X} (message {stream.messages}), before {until:X}")
    if stream.messages == 0:
        raise Wrong("there is no message at all")
    print(json.dumps({"messages": stream.messages, "n": stream.n, "epoch": stream.epoch, "ops": stream.count,
                      "validated": schemas.checked if schemas else 0}))
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(prog="check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tables = commands.add_parser("tables")
    tables.add_argument("--source", required=True)
    tables.add_argument("--target", required=True)
    tables.add_argument("--pair", nargs=2, action="append", metavar=("SOURCE_SELECT", "TARGET_SELECT"))
    bank = commands.add_parser("bank")
    bank.add_argument("--target", required=True)
    bank.add_argument("--query", required=True)
    bank.add_argument("--expect", required=True)
    bank.add_argument("--reads", type=int, default=100)
    bank.add_argument("--every", type=float, default=0.02)
    bank.add_argument("--until-file")
    confirmed = commands.add_parser("confirmed")
    confirmed.add_argument("--source", required=True)
    confirmed.add_argument("--slot", required=True)
    confirmed.add_argument("--archive", required=True)
    confirmed.add_argument("--until-file", required=True)
    bus = commands.add_parser("bus")
    what = bus.add_mutually_exclusive_group(required=True)
    what.add_argument("--tap")
    what.add_argument("--archive")
    bus.add_argument("--schemas")
    bus.add_argument("--sample", type=int, default=1)
    bus.add_argument("--until")
    bus.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args(argv)
    try:
        return {"tables": check_tables, "bank": check_bank, "confirmed": check_confirmed, "bus": check_bus}[options.command](options)
    except Wrong as wrong:
        print(f"WRONG {wrong}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
