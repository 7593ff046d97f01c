"""A source database, a bus, a connector, sinks, a target: one small world per test, on shared clusters."""
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from tests.support import scratch

_number = itertools.count(1)
CHECKER = os.path.join(scratch.ROOT, "tests/checker/check.py")


def binary():
    return os.environ.get("SPATE", os.path.join(scratch.ROOT, "build/release/spate"))


def scalar(value):
    """As JSON writes it, but for what stands beyond 16 bits: there YAML has one escape where JSON has two."""
    return re.sub(r"\\ud([89ab]..)\\ud([c-f]..)", lambda pair: f"\\U{((int('d' + pair[1], 16) - 0xD800) << 10) + int('d' + pair[2], 16) - 0xDC00 + 0x10000:08x}", json.dumps(value))


def yaml(value, indent=0):
    """A mapping as block YAML; scalars are quoted as JSON, which YAML reads the same."""
    out = []
    for key, item in value.items():
        name = key if re.fullmatch(r"(?!(?:null|true|yes)$)[A-Za-z_][\w.]*", key) else scalar(key)
        if isinstance(item, dict):
            out.append(f"{' ' * indent}{name}:\n" + yaml(item, indent + 2) if item else f"{' ' * indent}{name}: {{}}\n")
        elif isinstance(item, list):
            out.append(f"{' ' * indent}{name}: [{', '.join(scalar(i) for i in item)}]\n")
        else:
            out.append(f"{' ' * indent}{name}: {scalar(item)}\n")
    return "".join(out)


class Process:
    """One running spate. Its log goes to a file, of which waits read on from where they were."""

    def __init__(self, world, name, argv, env=None, stdout=None):
        self.world, self.name, self.argv = world, name, argv
        self.log = os.path.join(world.dir, f"{name}.log")
        self.mark = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        log = open(self.log, "ab")
        self.process = subprocess.Popen([binary(), *argv], stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log,
                                        cwd=world.dir, env={**os.environ, **world.env, **(env or {})},
                                        preexec_fn=scratch.child_setup(), start_new_session=True)
        log.close()
        self.pid = self.process.pid
        world.processes.append(self)

    def text(self, whole=False):
        with open(self.log, errors="replace") as log:
            if not whole:
                log.seek(self.mark)
            return log.read()

    def tail(self, lines=12):
        return "".join(self.text().splitlines(True)[-lines:])

    def running(self):
        return self.process.poll() is None

    def wait_log(self, pattern, seconds=30):
        """Waits for a line of this run's log that matches, and returns the match."""
        compiled = re.compile(pattern)

        def look():
            found = compiled.search(self.text())
            if not found and not self.running():
                found = compiled.search(self.text())
                if not found:
                    raise scratch.Failure(f"{self.name} exited with {self.process.returncode} before /{pattern}/:\n{self.tail()}")
            return found

        return scratch.until(look, lambda: f"/{pattern}/ in the log of {self.name}:\n{self.tail()}", seconds)

    def wait_exit(self, seconds=30):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise scratch.Failure(f"{self.name} is still running after {seconds} s:\n{self.tail()}")

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()

    def stop(self, seconds=15):
        """SIGTERM and wait; returns the exit code."""
        if self.running():
            self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(seconds)

    def private_kb(self):
        return private_kb(self.pid)


def private_kb(pid):
    """Memory that is a process' own. A shared mapping that nobody else has mapped just now (a segment of the bus)
    counts as private in the kernel's words, and is not."""
    total, own = 0, False
    with open(f"/proc/{pid}/smaps") as maps:
        for line in maps:
            words = line.split()
            if "-" in words[0] and len(words) >= 5:
                own = words[1].endswith("p")
            elif own and line.startswith("Private_"):
                total += int(words[1])
    return total


class MemoryWatch:
    """Samples the private memory of a process, which may be replaced meanwhile, and keeps the greatest."""

    def __init__(self, get):
        self.get, self.peak, self.samples, self.done = get, 0, 0, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.done.wait(0.02):
            try:
                self.peak = max(self.peak, self.get().private_kb())
                self.samples += 1
            except (OSError, AttributeError):
                pass

    def stop(self):
        self.done.set()
        self.thread.join()
        return self.peak


class World:
    """kafka: a cluster of tests/support/kafka.py to use as the bus; None: the local bus."""

    def __init__(self, source, target, name=None, heartbeat="1s", kafka=None):
        self.source, self.target, self.kafka = source, target, kafka
        self.name = name or f"w{os.getpid()}_{next(_number)}"
        self.db = self.name
        self.dir = scratch.directory("spate-w-")
        self.hot = scratch.hot_directory(room=1 << 30)
        self.env = {}
        self.processes = []
        self.connector_process = None
        source.create_database(self.db)
        if target:
            target.create_database(self.db)
        # Small segments: many tests start a bus, and rolling over is worth meeting often. test_large has the default.
        self.bus = {"local": {"path": os.path.join(self.dir, "bus"), "hot": self.hot, "segment_bytes": "4MiB"}}
        self.stream = "shop"
        if kafka:  # which many worlds share
            self.bus = {"kafka": {"brokers": kafka.brokers}}
            self.stream = f"shop_{self.name}_{os.urandom(2).hex()}"
        self.config = {
            "connector": self.stream,
            "source": {"postgres": {"url": source.url(self.db), "publication": "spate", "slot": self.slot(), "create": True}},
            "tables": ["public.*"], "bus": self.bus, "heartbeat": heartbeat,
        }
        self.marks = itertools.count(1)
        scratch.at_end(self.stop_all)

    def slot(self):
        return f"spate_{self.name}"

    # Files.
    def write(self, name, value):
        """In one step: a process that is just starting may be reading it."""
        path = os.path.join(self.dir, name)
        with open(path + ".new", "w") as file:
            file.write(value if isinstance(value, str) else yaml(value))
        os.replace(path + ".new", path)
        return path

    def connector_file(self, **changes):
        return self.write("connector.yaml", {**self.config, **changes})

    def sink_config(self, name, tables, schema=None, url=None, **more):
        return {"sink": name, "from": self.stream, "bus": self.bus,
                "into": {"postgres": {"url": url or self.target.url(self.db), "schema": schema or name}},
                "tables": tables, **more}

    def sink_file(self, name, tables, **more):
        return self.write(f"{name}.yaml", self.sink_config(name, tables, **more))

    # Processes.
    def spawn(self, name, *argv, **more):
        return Process(self, name, list(argv), **more)

    def connector(self, *arguments, ready=True, file=None, name="connector", **more):
        process = self.spawn(name, "connector", "-c", file or self.connector_file(), *arguments, **more)
        if name == "connector":
            self.connector_process = process
        if ready:
            self.wait_streaming(process)
        return process

    def wait_streaming(self, process, seconds=30):
        """Streaming is what the source says it is, not what a log line says."""

        def active():
            if not process.running():
                raise scratch.Failure(f"{process.name} exited with {process.process.returncode}:\n{process.tail()}")
            return self.source.sql("SELECT 1 FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid"
                                   " WHERE s.slot_name = %s AND r.state IN ('catchup', 'streaming')", [self.slot()])

        scratch.until(active, lambda: f"the connector streams from {self.slot()}:\n{process.tail()}", seconds)

    def sink(self, *files, name="sink", arguments=(), **more):
        argv = [part for file in files for part in ("-c", file)]
        return self.spawn(name, "sink", *argv, *arguments, **more)

    def snapshot(self, *arguments, file=None, name="snapshot", **more):
        """spate snapshot, running. Its rows go to NAME.log, with what it says."""
        return self.spawn(name, "snapshot", "-c", file or self.connector_file(), *arguments, **more)

    def run(self, *argv, seconds=20, env=None, check=None, stdin=None):
        """Runs spate to its end; returns (exit code, stdout, stderr)."""
        done = subprocess.run([binary(), *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
                              timeout=seconds, cwd=self.dir, env={**os.environ, **self.env, **(env or {})},
                              preexec_fn=scratch.child_setup())
        if check is not None and done.returncode != check:
            raise scratch.Failure(f"spate {' '.join(argv)} exited with {done.returncode}, not {check}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode, done.stdout, done.stderr

    def stop_all(self):
        scratch.forget(self.stop_all)
        for process in self.processes:
            if process.running():
                process.process.kill()
                process.process.wait()

    def close(self):
        self.stop_all()
        for cluster in (self.source, self.target):
            if cluster and cluster.running():
                cluster.drop_database(self.db)
        if self.kafka:
            self.kafka.forget(self.stream)
        if not os.environ.get("KEEP_SCRATCH"):
            for path in (self.hot, self.dir):
                shutil.rmtree(path, ignore_errors=True)

    # SQL on both sides.
    def src(self, text, args=None):
        return self.source.sql(text, args, self.db)

    def tgt(self, text, args=None):
        return self.target.sql(text, args, self.db)

    # Conditions.
    def emit_marker(self):
        """A transactional logical message; whatever was committed before stands before it in the stream.
        Returns an LSN that the `end` of its transaction exceeds."""
        return lsn(self.src("SELECT pg_logical_emit_message(true, 'spate-test', %s)::text", [f"mark {next(self.marks)}"])[0][0])

    def messages(self, *arguments, count=None, until_end=None, seconds=30):
        """What `spate tap --from oldest` prints, parsed: COUNT messages, or as many as there are up to
        the first whose `end` exceeds until_end (None: up to a marker that is written now)."""
        if count is None and until_end is None:
            until_end = self.emit_marker()
        argv = [binary(), "tap", "-c", self.connector_file(), "--from", "oldest", *arguments]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=scratch.child_setup())
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        found, complete = [], False
        try:
            for line in process.stdout:
                found.append(json.loads(line))
                if count is not None and len(found) >= count:
                    complete = True
                    break
                if until_end is not None and found[-1].get("end") and int(found[-1]["end"], 16) > until_end:
                    complete = True
                    break
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
            noise = process.stderr.read()
            process.stderr.close()
            process.wait()
        if not complete:
            raise scratch.Failure(f"tap ended or hung after {len(found)} messages, without what was waited for: {noise[-1000:]}")
        return found

    def wait_rows(self, query, expected, seconds=30, sink=None):
        seen = []

        def look():
            try:
                seen[:] = [self.tgt(query)]
            except Exception as error:  # the sink may not have made the table yet
                seen[:] = [error]
                return False
            return seen[0] == expected

        scratch.until(look, lambda: f"{query} = {str(expected)[:500]}; it is {str(seen[:1])[:500]}; "
                      + "\n".join(p.tail(6) for p in self.processes if p.running() or p is sink), seconds, 0.05)

    def wait_equal(self, pairs, seconds=60):
        """Waits until the checker finds each (source SELECT, target SELECT) equal; last word is the checker's."""
        last = []

        def look():
            last[:] = [self.check_tables(pairs)]
            if last[0][0]:
                self.must_run("connector")
                self.must_run("sink")
            return last[0][0] == 0

        scratch.until(look, lambda: "source and target are equal: " + last[0][1] + self.logs(), seconds, 0.2)

    def must_run(self, command):
        """Waiting is vain when every process of a kind has ended."""
        if not any(p.running() for p in self.processes if p.argv[0] == command):
            raise scratch.Failure(f"no {command} is running" + self.logs())

    def check_tables(self, pairs):
        argv = [sys.executable, CHECKER, "tables", "--source", self.source.dsn(self.db), "--target", self.target.dsn(self.db)]
        for pair in pairs:
            argv += ["--pair", *pair]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def check_bus(self, sample=0, seconds=120, truth=False):
        """Holds the whole stream against I2 and the published schemas; with truth each row of a snapshot against what
        the stream said of it before."""
        argv = [sys.executable, CHECKER, "bus", "--schemas", os.path.join(scratch.ROOT, "schemas"), "--sample", str(sample),
                "--until", f"{self.emit_marker():X}", "--seconds", str(seconds)] + (["--truth"] if truth else [])
        if self.kafka:
            argv += ["--kafka", self.kafka.inside, self.stream]
        else:
            argv += ["--tap", f"{binary()} tap -c {self.connector_file()} --from oldest"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise scratch.Failure("the checker about the bus: " + done.stdout[-3000:] + self.logs())
        return json.loads(done.stdout.splitlines()[-1])

    def logs(self):
        return "".join(f"\n--- {p.name} ({'running' if p.running() else 'exit ' + str(p.process.returncode)})\n{p.tail()}"
                       for p in self.processes[-4:])


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
