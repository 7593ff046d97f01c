"""A synchronous standby that acknowledges late (W9, F41): a walsender's client that says only after `delay` seconds
what it has received. Postgres has the commit record in the WAL at once, the stream delivers it, and until the
acknowledgement nobody's snapshot sees it (P91)."""
import collections
import select
import signal
import threading
import time

import psycopg2
import psycopg2.extras

from tests.support import scratch

NAME = "late"


class LateStandby:
    """From here on every commit on `cluster` that waits for its standbys becomes visible `delay` seconds after its
    record was written; close() ends that. The delay may be changed while it runs."""

    def __init__(self, cluster, delay=1.0):
        self.cluster, self.delay = cluster, delay
        self.failure, self.done = None, threading.Event()
        self.connection = psycopg2.connect(f"host={cluster.dir} port={cluster.port} user=postgres application_name={NAME}",
                                           connection_factory=psycopg2.extras.PhysicalReplicationConnection)
        self.cursor = self.connection.cursor()
        self.cursor.start_replication(start_lsn=cluster.one("SELECT pg_current_wal_flush_lsn()::text"), status_interval=5)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._follow(NAME)
        scratch.until(self._counts, lambda: f"the standby counts as synchronous; {self.failure or cluster.tail()}", 20)

    def _follow(self, names):
        self.cluster.configure(synchronous_standby_names=names)
        self.cluster.process.send_signal(signal.SIGHUP)

    def _counts(self):
        return self.cluster.sql("SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND sync_state = 'sync'", [NAME])

    def _run(self):
        received = collections.deque()  # (when, up to which byte)
        said = 0
        try:
            while not self.done.is_set():
                message = self.cursor.read_message()
                if message is not None:
                    received.append((time.monotonic(), message.data_start + len(message.payload)))
                while received and time.monotonic() - received[0][0] >= self.delay:
                    said = received.popleft()[1]
                if said:
                    self.cursor.send_feedback(write_lsn=said, flush_lsn=said, apply_lsn=said, force=True)
                if message is None:
                    select.select([self.connection], [], [], 0.02)
        except psycopg2.Error as error:
            self.failure = error

    def waiting(self):
        """How many backends have committed and wait for us."""
        return self.cluster.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

    def close(self):
        if self.cluster.running():
            self._follow("")
        self.done.set()
        self.thread.join(10)
        try:
            self.connection.close()
        except psycopg2.Error:
            pass
