#!/usr/bin/env python3
"""The checker: says whether source, bus and targets agree. It shares no code with what it checks.

  check.py tables --source DSN --target DSN --pair SOURCE_SELECT TARGET_SELECT [--pair ...]
      I1: both SELECTs give the same rows. Prints EQUAL or the first rows that differ.
  check.py bank --target DSN --query SELECT --expect VALUE [--reads 100 | --until-file PATH]
      I3: every read of the query gives the value, while changes are being applied.
  check.py confirmed --source DSN --slot NAME (--archive DIR | --kafka BROKERS TOPIC) --until-file PATH
      I5: samples the slot's confirmed_flush_lsn; at no time is it beyond what the bus carries: its files on disk,
      or what a consumer that is not ours (kcat) reads.
  check.py bus (--tap COMMAND | --archive DIR | --kafka BROKERS TOPIC) [--schemas DIR] [--sample N] [--until HEX_LSN] [--truth]
      I2: n without hole or repeat in each epoch, positions ascend, one `end` per transaction, `at` is right,
      every message (or each Nth, with --sample N) valid against the published JSON Schemas.
      Chunks of a snapshot are whole, counted and begun; with --truth each of their rows is held against what the stream
      said of it before (chunks.py).
      Of Kafka nobody can say that nothing is repeated: there (and with --log) the accepted messages are held against
      all this, a repeated one must be the same byte for byte, and a hole must heal. Kafka's keys must be the rows'.

Exit 0: holds; 1: does not hold (the text says where); 2: could not be checked.
"""
import argparse
import array
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
import zlib

from chunks import Chunks, Wrong

CHANGES = {"insert", "update", "delete", "truncate", "message"}
BETWEEN = {"heartbeat", "stale", "epoch", "snapshot-begin", "chunk", "read", "chunk-end", "ranges-end"}
HEAD = ["spate", "op", "n", "at", "epoch", "to", "request", "schema", "table", "pos", "end"]


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


# ---------------------------------------------------------------- a Kafka topic

class Topic:
    """What kcat reads of a topic's only partition, from the oldest record on; it is started again when it ends."""

    def __init__(self, brokers, topic):
        self.brokers, self.topic = brokers, topic
        self.next, self.process, self.closed = None, None, False

    def records(self):
        """(offset, key, value), without end; close() ends it."""
        while not self.closed:
            self.process = subprocess.Popen(
                ["kcat", "-q", "-E", "-u", "-b", self.brokers, "-C", "-t", self.topic, "-p", "0", "-X", "check.crcs=true",
                 "-X", "fetch.wait.max.ms=50", "-X", "reconnect.backoff.max.ms=500", "-X", "topic.metadata.refresh.interval.ms=1000",
                 "-o", "beginning" if self.next is None else str(self.next), "-f", r"%o\t%k\t%s\n"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
            for line in self.process.stdout:
                if not line.endswith(b"\n"):
                    break  # it was ended in the middle
                offset, key, value = line.rstrip(b"\n").split(b"\t", 2)
                yield int(offset), key, value
                self.next = int(offset) + 1
            self.process.stdout.close()
            self.process.wait()
            time.sleep(0.1)  # it ended by itself: no broker, most likely

    def close(self):
        self.closed = True
        if self.process:
            self.process.kill()


class Greatest(threading.Thread):
    """Follows a topic and knows the greatest `end` of each prefix that it has read."""

    def __init__(self, topic):
        super().__init__(daemon=True)
        self.topic, self.read, self.end = topic, 0, 0

    def run(self):
        for offset, _key, value in self.topic.records():
            found = END.search(value[:600])
            if found:
                self.end = max(self.end, int(found.group(1), 16))
            self.read = offset + 1


def check_confirmed_kafka(options):
    """The slot is read first, then how far the topic reaches: what was confirmed must stand before that."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from tests.support.kafka_wire import KafkaError, Wire
    brokers, name = options.kafka
    topic, wire, source = Topic(brokers, name), Wire(brokers, seconds=0.5), Patient(options.source)
    follower = Greatest(topic)
    follower.start()
    samples, unanswered, waiting = 0, 0, []  # what is confirmed, and the offset before which it must stand
    try:
        while not os.path.exists(options.until_file) or waiting or samples == 0:
            rows = source.rows("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", [options.slot])
            if rows and rows[0][0]:
                try:
                    waiting.append((parse_lsn(rows[0][0]), wire.offset(name, -1)))
                except (OSError, KafkaError):
                    unanswered += 1
            while waiting and follower.read >= waiting[0][1]:
                confirmed, before = waiting.pop(0)
                samples += 1
                if confirmed > follower.end:
                    raise Wrong(f"I5: {confirmed >> 32:X}/{confirmed & 0xFFFFFFFF:X} is confirmed, the topic's {before} records reach only to "
                                f"{follower.end >> 32:X}/{follower.end & 0xFFFFFFFF:X}")
            time.sleep(0.1)
    finally:
        topic.close()
    print(f"{samples} samples, confirmed never beyond the topic ({unanswered} without an answer)")
    return 0


def parse_lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


END = re.compile(rb'"end":"([0-9A-F]{16})"')


def check_confirmed(options):
    if options.kafka:
        return check_confirmed_kafka(options)
    return check_confirmed_archive(options)


def check_confirmed_archive(options):
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
    """log: the messages come from a log that may repeat some and lack others until they are written again."""

    def __init__(self, log=False, truth=False):
        self.chunks = Chunks(log, truth)
        self.log, self.repeats, self.holes, self.hidden, self.in_hole = log, 0, 0, 0, False
        self.sums = array.array("I")  # of the accepted messages of this epoch, by n
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
        if self.log and op in CHANGES | BETWEEN and not self.accepts(message, line, here):
            return message
        self.count[op] = self.count.get(op, 0) + 1
        if op in CHANGES:
            if self.log:
                self.sums.append(zlib.crc32(line.strip()))
            self.change(message, here)
        elif op in BETWEEN:
            self.between(message, here)
        else:
            raise Wrong(f"{here}: unknown op")
        self.chunks.take(message, here)
        return message

    def accepts(self, message, line, here):
        """The rule by which readers of a log with repetitions and holes go: only the next number counts."""
        if message["op"] == "epoch":
            if self.epoch is not None and message["epoch"] <= self.epoch:
                self.repeats += 1
                return False
            self.sums = array.array("I")
            return True
        if self.epoch is None or message["epoch"] > self.epoch:
            return True  # which is wrong, and said so by who looks closer
        if message["epoch"] < self.epoch:
            self.repeats += 1
            return False
        number = message.get("n", message.get("at"))
        if "n" in message and number <= self.n:
            self.repeats += 1
            if self.sums[number - 1] != zlib.crc32(line.strip()):
                raise Wrong(f"{here}: n {number} comes again, and is another message than before")
            return False
        if "n" not in message and (number < self.n or (number == self.n and self.open)):
            self.repeats += 1
            return False
        if number > self.n + (1 if "n" in message else 0):
            self.holes += not self.in_hole
            self.in_hole = True
            self.hidden += 1
            return False
        if message["op"] in ("heartbeat", "stale", "snapshot-begin") and int(message["end"], 16) < self.end:
            self.repeats += 1
            return False
        self.in_hole = False
        return True

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
        if message["op"] in ("heartbeat", "stale", "snapshot-begin"):
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


def topic_lines(brokers, name, seconds):
    """(value, offset, key) of the topic's records."""
    topic = Topic(brokers, name)
    timer = threading.Timer(seconds, topic.close)
    timer.start()
    try:
        for offset, key, value in topic.records():
            yield value, offset, key
    finally:
        timer.cancel()
        topic.close()


def check_bus(options):
    stream = Stream(log=options.log or bool(options.kafka), truth=options.truth)
    schemas = Schemas(options.schemas) if options.schemas else None
    until = int(options.until, 16) if options.until else None
    if options.kafka:
        lines = topic_lines(*options.kafka, options.seconds)
    else:
        lines = tap_lines(options.tap, options.seconds) if options.tap else Archive(options.archive).lines()
    reached = until is None
    for line in lines:
        if options.kafka:
            line, offset, key = line
        message = stream.take(line)
        if options.kafka and (json.loads(key) if key else None) != (None if message["op"] == "read" else message.get("key")):
            raise Wrong(f"offset {offset}: the record's key is {key[:200]!r}, the message's {message.get('key')!r}")
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
                      "repeats": stream.repeats, "holes": stream.holes, "hidden": stream.hidden, "validated": schemas.checked if schemas else 0,
                      "chunks": stream.chunks.complete, "rows": stream.chunks.rows, "dropped": stream.chunks.dropped, "broken": stream.chunks.broken}))
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
    place = confirmed.add_mutually_exclusive_group(required=True)
    place.add_argument("--archive")
    place.add_argument("--kafka", nargs=2, metavar=("BROKERS", "TOPIC"))
    confirmed.add_argument("--until-file", required=True)
    bus = commands.add_parser("bus")
    what = bus.add_mutually_exclusive_group(required=True)
    what.add_argument("--tap")
    what.add_argument("--archive")
    what.add_argument("--kafka", nargs=2, metavar=("BROKERS", "TOPIC"))
    bus.add_argument("--log", action="store_true")
    bus.add_argument("--schemas")
    bus.add_argument("--sample", type=int, default=1)
    bus.add_argument("--until")
    bus.add_argument("--truth", action="store_true")
    bus.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args(argv)
    try:
        return {"tables": check_tables, "bank": check_bank, "confirmed": check_confirmed, "bus": check_bus}[options.command](options)
    except Wrong as wrong:
        print(f"WRONG {wrong}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
