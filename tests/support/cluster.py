"""Private Postgres clusters: unprivileged, in a scratch directory, on a free port, gone at the end."""
import os
import shutil
import signal
import socket
import subprocess
import time

import psycopg2
import psycopg2.extensions

from tests.support import scratch, servers
from tests.support.servers import bin_dir

_template = {}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _template_dir(user, programs, options):
    """initdb once per run and copy it: a cluster then costs a tenth of a second. Copies share their system
    identifier, so a test that needs another cluster asks for its own initdb."""
    key = (programs, *options)
    if key not in _template:
        uid, gid, _ = user
        base = scratch.directory("spate-pg-")
        os.chown(base, uid, gid)
        path = os.path.join(base, "template")
        _initdb(path, user, programs, options)
        _template[key] = path
    return _template[key]


def _initdb(path, user, programs, options):
    uid, gid, _ = user
    scratch.run([programs + "/initdb", "-D", path, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8",
                 "--locale=C", *options], uid=uid, gid=gid, timeout=120)


class Cluster:
    """settings: postgresql.conf; fsync is off unless asked for, since few tests are about the disk.
    major: another server than the one this run is about. standby_of: a cluster that may be stopped for a moment, since
    its files are copied (the fetched servers have no pg_basebackup); ours is a hot standby of it, streaming."""

    def __init__(self, name, fsync=False, own_initdb=False, major=None, standby_of=None, **settings):
        self.name = name
        self.programs = standby_of.programs if standby_of else servers.bin_dir(major)
        self.user = scratch.unprivileged()
        uid, gid, _ = self.user
        self.dir = scratch.directory(f"spate-{name}-")
        os.chown(self.dir, uid, gid)
        self.data = os.path.join(self.dir, "data")
        self.log = os.path.join(self.dir, "postgres.log")
        self.port = free_port()
        self.process = None
        if standby_of:
            standby_of.lend(self)
        elif own_initdb:
            _initdb(self.data, self.user, self.programs, [])
        else:
            scratch.run(["cp", "-a", _template_dir(self.user, self.programs, []), self.data])
        self.settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.dir,
            "unix_socket_permissions": "0777", "fsync": "on" if fsync else "off", "full_page_writes": "on" if fsync else "off",
            "wal_level": "logical", "max_wal_senders": 20, "max_replication_slots": 20, "max_connections": 60,
            "shared_buffers": "64MB", "max_wal_size": "2GB", "wal_sender_timeout": "10s", "max_slot_wal_keep_size": "20GB", "logging_collector": "off",
            "log_line_prefix": "'%m [%p] %d '", "autovacuum_naptime": "10s",
        }
        if standby_of:
            self.settings["primary_conninfo"] = f"'host={standby_of.dir} port={standby_of.port} user=postgres dbname=postgres'"
        self.settings.update(settings)
        with open(os.path.join(self.data, "pg_hba.conf"), "w") as hba:
            hba.write("local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self.configure()
        scratch.at_end(self.destroy)

    def lend(self, standby):
        """Its files, as a standby's that begins where they are now."""
        running = self.running()
        if running:
            self.stop()
        scratch.run(["cp", "-a", self.data, standby.data])
        with open(os.path.join(standby.data, "standby.signal"), "w"):
            pass
        if running:
            self.start()

    def promote(self, seconds=30):
        self.sql("SELECT pg_promote(true, %s)", [seconds])

    def configure(self, **settings):
        self.settings.update(settings)
        with open(os.path.join(self.data, "postgresql.auto.conf"), "w") as conf:
            for key, value in self.settings.items():
                text = str(value)
                conf.write(f"{key} = {text if text.startswith(chr(39)) else chr(39) + text + chr(39)}\n")

    def start(self, wait=True):
        uid, gid, _ = self.user
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([self.programs + "/postgres", "-D", self.data], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, cwd="/", start_new_session=True,
                                            preexec_fn=scratch.child_setup(uid, gid, signal.SIGQUIT))
        if wait:
            scratch.until(self._accepts, lambda: f"{self.name} accepts connections; its log: {self.tail()}", 60)
        return self

    def _accepts(self):
        if self.process.poll() is not None:
            raise scratch.Failure(f"{self.name}: postgres exited with {self.process.returncode}: {self.tail()}")
        try:
            psycopg2.connect(self.dsn()).close()
            return True
        except psycopg2.OperationalError:
            return False

    def stop(self, mode="fast", seconds=60):
        """Returns how long it took."""
        number = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        begin = time.monotonic()
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise scratch.Failure(f"{self.name}: {mode} shutdown did not finish in {seconds} s: {self.tail()}")
        self.process = None
        return time.monotonic() - begin

    def kill(self):
        """kill -9 of the postmaster; its children notice and end. Whoever starts it again waits for them."""
        if self.running():
            self.process.kill()
        if self.process:
            self.process.wait()
        self.process = None

    def start_after_kill(self, seconds=30):
        """The dead server's children may hold its shared memory for a moment, and its port."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.start()
            except scratch.Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def restart(self, mode="fast", seconds=60):
        took = self.stop(mode, seconds)
        self.start()
        return took

    def running(self):
        return self.process is not None and self.process.poll() is None

    def destroy(self):
        scratch.forget(self.destroy)
        if self.running():
            try:
                self.stop("immediate", 20)
            except scratch.Failure:
                os.killpg(self.process.pid, signal.SIGKILL)
        if not os.environ.get("KEEP_SCRATCH"):
            shutil.rmtree(self.dir, ignore_errors=True)

    def tail(self, lines=15):
        try:
            with open(self.log, errors="replace") as log:
                return "".join(log.readlines()[-lines:])
        except OSError:
            return "(no log)"

    # Where it is, in libpq's words.
    def dsn(self, db="postgres", user="postgres"):
        return f"host={self.dir} port={self.port} dbname={db} user={user}"

    def url(self, db="postgres", user="postgres"):
        """Over the Unix socket."""
        return f"postgres://{user}@/{db}?host={self.dir}&port={self.port}"

    def tcp_url(self, db="postgres", user="postgres", password=None, port=None, sslmode="disable"):
        secret = f":{password}" if password else ""
        return f"postgres://{user}{secret}@127.0.0.1:{port or self.port}/{db}?sslmode={sslmode}"

    def connect(self, db="postgres", user="postgres", autocommit=True):
        connection = psycopg2.connect(self.dsn(db, user))
        connection.autocommit = autocommit
        return connection

    def sql(self, text, args=None, db="postgres", user="postgres"):
        """Runs it and returns the last statement's rows, or None."""
        connection = self.connect(db, user)
        try:
            with connection.cursor() as cursor:
                cursor.execute(text, args)
                return cursor.fetchall() if cursor.description else None
        finally:
            connection.close()

    def one(self, text, args=None, db="postgres", user="postgres"):
        return self.sql(text, args, db, user)[0][0]

    def version(self):
        """The server's number: 150018."""
        return int(self.one("SHOW server_version_num"))

    def create_database(self, name):
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE template0')

    def drop_database(self, name):
        self.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database=%s AND active", [name])
        scratch.until(lambda: not self.sql("SELECT 1 FROM pg_replication_slots WHERE database=%s AND active", [name]),
                      f"the slots of {name} are free")
        self.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database=%s", [name])
        self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
