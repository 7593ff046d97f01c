"""Random faults under the loads W1-W4, and the checker at the end: the kill test and the soak."""
import os
import random
import signal
import subprocess
import sys
import time

from tests.support import scratch, workloads
from tests.support.world import CHECKER, World


class Chaos:
    def __init__(self, source, target, seed, say=print):
        self.random, self.seed, self.say = random.Random(seed), seed, say
        self.world = World(source, target)
        self.count = {}
        workloads.prepare(self.world)
        self.files = [self.world.sink_file("mirror", workloads.MIRROR), self.world.sink_file("words", workloads.OWN_WORDS)]
        self.checkers = []
        self.until_file = os.path.join(self.world.dir, "done")

    # The parts are started from this thread alone: a child dies with the thread that made it.
    def start_connector(self, ready=False):
        self.world.connector(ready=ready)

    def start_sink(self):
        self.sink = self.world.sink(*self.files)

    def checker(self, name, *arguments):
        log = open(os.path.join(self.world.dir, f"check-{name}.log"), "w+")
        process = subprocess.Popen([sys.executable, CHECKER, *arguments, "--until-file", self.until_file], stdout=log, stderr=subprocess.STDOUT,
                                   preexec_fn=scratch.child_setup())
        scratch.at_end(lambda: process.poll() is None and process.kill())
        self.checkers.append((name, process, log))

    def start(self):
        self.start_connector(ready=True)
        self.start_sink()
        workloads.load(self.world)
        world = self.world
        target = world.target.dsn(world.db)
        self.checker("bank-mirror", "bank", "--target", target, "--query", "SELECT sum(balance) FROM mirror.w2_accounts", "--expect", str(workloads.BANK_SUM))
        self.checker("bank-words", "bank", "--target", target, "--query", "SELECT sum(cents) FROM words.accounts", "--expect", str(100 * workloads.BANK_SUM))
        archive = scratch.until(lambda: [base for base, _, files in os.walk(world.bus["local"]["path"])
                                         if os.path.basename(base) == "shop" and any(name.endswith(".seg") for name in files)],
                                "the stream has a file on disk")[0]
        self.checker("confirmed", "confirmed", "--source", world.source.dsn(world.db), "--slot", world.slot(), "--archive", archive)

    def must_run(self, process):
        """A part that ended by itself is a failure, whatever the tables say."""
        code = process.process.poll()
        if code is not None:
            raise scratch.Failure(f"seed {self.seed}: {process.name} ended by itself with {code}:\n{process.tail(20)}")
        if "event=sink-stopped" in process.text():
            raise scratch.Failure(f"seed {self.seed}: one of the teams stopped:\n{process.tail(20)}")

    def pause(self):
        """Mostly a fraction of a second; sometimes so short that it hits the start, sometimes long enough to catch up."""
        time.sleep(self.random.choice((0.03, 0.1, 0.3, 0.5, 0.9)) * (0.5 + self.random.random()))  # a random fault time, no condition to wait for
        for name, process, log in self.checkers:
            if process.poll() not in (None, 0):
                raise scratch.Failure(f"seed {self.seed}: checker {name}: {open(log.name).read()[-2000:]}")

    def do(self, fault):
        self.count[fault] = self.count.get(fault, 0) + 1
        world = self.world
        if fault == "kill connector":
            self.must_run(world.connector_process)
            world.connector_process.kill()
            self.start_connector()
        elif fault == "kill sink":
            self.must_run(self.sink)
            self.sink.kill()
            self.start_sink()
        elif fault == "stop connector":
            self.must_run(world.connector_process)
            code = world.connector_process.stop()
            if code not in (0, -signal.SIGTERM):  # killed before it could listen
                raise scratch.Failure(f"seed {self.seed}: SIGTERM ended the connector with {code}:\n{world.connector_process.tail()}")
            self.start_connector()
        elif fault == "restart source":
            world.source.restart(self.random.choice(("fast", "immediate")), 30)
        elif fault == "restart target":
            world.target.restart(self.random.choice(("fast", "immediate")), 30)
        elif fault == "terminate walsender":
            world.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [world.slot()])
        elif fault == "freeze connector":
            process = world.connector_process
            self.must_run(process)
            process.process.send_signal(signal.SIGSTOP)
            time.sleep(self.random.random())
            process.process.send_signal(signal.SIGCONT)

    def run(self, faults):
        """faults: an iterable; ends with everything healed, drained and compared."""
        with workloads.Loads(self.world, self.seed) as loads:
            for fault in faults:
                self.pause()
                self.do(fault)
            transactions = loads.stop()
        self.must_run(self.world.connector_process)
        self.must_run(self.sink)
        pairs = workloads.mirror_pairs("mirror") + workloads.own_words_pairs("words")
        self.world.wait_equal(pairs, 90)
        found = self.world.check_bus(sample=100, seconds=200)
        with open(self.until_file, "w"):
            pass
        for name, process, log in self.checkers:
            code = process.wait(60)
            with open(log.name) as text:
                words = text.read()
            if code:
                raise scratch.Failure(f"seed {self.seed}: checker {name}: {words[-2000:]}")
            self.say(f"   {name}: {words.strip()}")
        self.say(f"   {transactions} transactions, {found['n']} changes on the bus, {found['ops'].get('heartbeat', 0)} heartbeats, "
                 + ", ".join(f"{count} x {fault}" for fault, count in sorted(self.count.items())))
        return found

    def close(self):
        with open(self.until_file, "w"):
            pass
        for _, process, log in self.checkers:
            if process.poll() is None:
                process.kill()
            process.wait()
            log.close()
        self.world.close()
