"""The usual way to weave rows into a change stream, as a control run: low and high watermarks.

A low watermark goes into the log, a chunk is read, a high watermark goes into the log; of the chunk's rows those are
dropped whose key the stream names between the two, the others are taken at the high watermark. That is right
only where a commit is visible once its record is in the log. Behind a synchronous standby it is not (P91, F41): a
change that the stream told before the low watermark is missing in the chunk, and the chunk overwrites it (T15).

The watermarks are committed locally: where they wait for the standby too, each chunk takes the standby's delay
twice, and a race between backends that one acknowledgement wakes remains.
"""
import re
import select
import threading

import psycopg2
import psycopg2.extras

PREFIX = "watermark"
_change = re.compile(r"table public\.(\w+): (INSERT|UPDATE|DELETE): (?:old-key: id\[integer\]:(\d+) new-tuple: )?id\[integer\]:(\d+)(?: v\[bigint\]:(\d+))?")
_message = re.compile(rf"message: transactional: 1 prefix: {PREFIX}, sz: \d+ content:(low|high|end) (\S+)")


class Watermark(threading.Thread):
    """Follows tables (id int PRIMARY KEY, v bigint, ...) of a database from now on into `rows`: {(table, id): v}."""

    def __init__(self, cluster, db):
        super().__init__(daemon=True)
        self.cluster, self.db = cluster, db
        self.slot = f"watermark_{db}"
        self.rows, self.chunks, self.touched, self.open = {}, {}, {}, set()
        self.delivered = self.dropped = 0
        self.failure, self.ended, self.done = None, threading.Event(), threading.Event()
        self.connection = psycopg2.connect(cluster.dsn(db), connection_factory=psycopg2.extras.LogicalReplicationConnection)
        self.cursor = self.connection.cursor()
        self.cursor.create_replication_slot(self.slot, output_plugin="test_decoding")
        self.cursor.start_replication(self.slot, decode=True, options={"skip-empty-xacts": "1", "include-xids": "0"})
        self.sql = cluster.connect(db)
        with self.sql.cursor() as cursor:
            cursor.execute("SET synchronous_commit = local")
        self.start()

    # The reader of chunks.
    def say(self, what, chunk):
        with self.sql.cursor() as cursor:
            cursor.execute("SELECT pg_logical_emit_message(true, %s, %s)", [PREFIX, f"{what} {chunk}"])

    def read_chunk(self, table, low, high):
        chunk = f"{table}:{low}"
        self.say("low", chunk)
        with self.sql.cursor() as cursor:
            cursor.execute(f"SELECT id, v FROM {table} WHERE id >= %s AND id < %s", [low, high])
            self.chunks[chunk] = {(table, number): v for number, v in cursor.fetchall()}
        self.say("high", chunk)

    # The follower of the stream.
    def run(self):
        try:
            while not self.done.is_set():
                message = self.cursor.read_message()
                if message is None:
                    select.select([self.connection], [], [], 0.05)
                else:
                    self.heard(message.payload)
        except Exception as error:
            self.failure = error

    def heard(self, line):
        found = _message.match(line)
        if found:
            self.watermark(*found.groups())
            return
        found = _change.match(line)
        if not found:
            return
        self.delivered += 1
        table, op, old, key, v = found.groups()
        for number in (old, key):
            if number is not None:
                self.rows.pop((table, int(number)), None)
                for chunk in self.open:
                    self.touched[chunk].add((table, int(number)))
        if op != "DELETE":
            self.rows[table, int(key)] = int(v)

    def watermark(self, what, chunk):
        if what == "low":
            self.touched[chunk] = set()
            self.open.add(chunk)
        elif what == "high":
            self.open.remove(chunk)
            for key, v in self.chunks.pop(chunk).items():
                if key in self.touched[chunk]:
                    self.dropped += 1
                else:
                    self.rows[key] = v
        else:
            self.ended.set()

    def finish(self, seconds=30):
        """Waits until all that is committed by now was heard, and returns the rows."""
        self.say("end", "-")
        if not self.ended.wait(seconds):
            raise AssertionError(f"the stream did not bring its last message: {self.failure}")
        return self.rows

    def close(self):
        self.done.set()
        self.join(10)
        self.sql.close()
        self.connection.close()
