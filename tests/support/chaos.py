"""Random faults under the loads W1-W7, and the checker at the end: the kill test and the soak."""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from tests.support import scratch, shapes, workloads
from tests.support.proxy import Proxy
from tests.support.standby import LateStandby
from tests.support.world import CHECKER, World

PASSWORD = "chaos"


class Chaos:
    """kafka: the bus is this cluster, which is ours to kill; else the local bus. network: proxies stand before source and
    target (and before the brokers, when the cluster has them), so that connections can be cut. patience: seconds to catch up.
    requests: everything is there before anybody listens, the teams ask for it, and for it again at random (W8).
    late: commits become visible so many seconds after the stream has them (W9); the source is then left alone."""

    def __init__(self, source, target, seed, say=print, kafka=None, network=False, kinds=workloads.USUAL, pause=0.01,
                 patience=90, requests=False, late=0):
        self.requests, self.asked, self.late, self.standby = requests, [], late, None
        self.random, self.seed, self.say = random.Random(seed), seed, say
        self.source, self.target, self.kafka, self.kinds, self.load_pause, self.patience = source, target, kafka, kinds, pause, patience
        self.world = World(source, target, kafka=kafka)
        self.count = {}
        self.proxies = {}
        urls = {}
        if network:
            for name, cluster in (("source", source), ("target", target)):
                cluster.sql(f"DROP ROLE IF EXISTS chaos; CREATE ROLE chaos LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
                self.proxies[name] = [Proxy(cluster.port)]
                urls[name] = cluster.tcp_url(self.world.db, "chaos", PASSWORD, self.proxies[name][0].port)
            self.world.config["source"]["postgres"]["url"] = urls["source"]
            if kafka and kafka.proxies[0]:
                self.proxies["broker"] = kafka.proxies
        workloads.prepare(self.world)
        mode = {"snapshot": "auto" if requests else "manual"}  # manual: all that there is stands in the stream
        self.files = [self.world.sink_file("mirror", {**workloads.MIRROR, **(shapes.MIRROR if requests else {})}, url=urls.get("target"), **mode),
                      self.world.sink_file("words", {**workloads.OWN_WORDS, **(shapes.OWN_WORDS if requests else {})}, url=urls.get("target"), **mode)]
        self.pairs = workloads.mirror_pairs("mirror") + workloads.own_words_pairs("words")
        if requests:
            self.kinds = (*kinds, *workloads.SHAPES)
            shapes.prepare(self.world)
            self.world.config["snapshots"] = {"chunk_bytes": "64KiB"}
            self.files.append(self.world.sink_file("swap", {"w2_accounts": workloads.MIRROR["w2_accounts"], **shapes.MIRROR, **shapes.OWN_WORDS},
                                                   url=urls.get("target"), on_snapshot="swap"))
            self.pairs += shapes.own_words_pairs("words") + shapes.own_words_pairs("swap")
            self.pairs += shapes.pairs("mirror") + shapes.pairs("swap") + [("SELECT * FROM w2_accounts", "SELECT * FROM swap.w2_accounts")]
        self.checkers = []
        self.until_file = os.path.join(self.world.dir, "done")

    def faults(self):
        """One of each kind that this world can have, the likely ones several times."""
        kinds = ["kill connector"] * 7 + ["kill sink"] * 7 + ["stop connector", "stop sink", "freeze connector", "freeze sink"]
        kinds += ["restart source", "restart target", "kill source", "kill target", "terminate walsender", "terminate sink"]
        kinds += [f"{how} {name}" for name in self.proxies for how in ("cut", "cut", "blackhole", "half")]
        if self.requests:
            kinds += ["ask mirror", "ask swap", "ask words", "ask rows", "ask some", "cancel request"] * 2
        if self.kafka:
            kinds += ["kill broker"] * 2 + ["restart broker", "freeze broker"]
        return [kind for kind in kinds if not self.late or not kind.endswith(" source")]

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
        if self.requests:
            workloads.load(self.world)
            shapes.fill(self.world)
        self.start_connector(ready=True)
        self.start_sink()
        world = self.world
        target = world.target.dsn(world.db)
        if self.requests:  # from here on nobody sees half of it any more
            for query, total in (("SELECT sum(balance) FROM mirror.w2_accounts", workloads.BANK_SUM), ("SELECT sum(cents) FROM words.accounts", 100 * workloads.BANK_SUM),
                                 ("SELECT sum(balance) FROM swap.w2_accounts", workloads.BANK_SUM)):
                world.wait_rows(query, [(total,)], self.patience)
            self.checker("bank-swap", "bank", "--target", target, "--query", "SELECT sum(balance) FROM swap.w2_accounts", "--expect", str(workloads.BANK_SUM))
        else:
            workloads.load(self.world)
        if self.late:
            self.standby = LateStandby(self.source, self.late)
        self.checker("bank-mirror", "bank", "--target", target, "--query", "SELECT sum(balance) FROM mirror.w2_accounts", "--expect", str(workloads.BANK_SUM))
        self.checker("bank-words", "bank", "--target", target, "--query", "SELECT sum(cents) FROM words.accounts", "--expect", str(100 * workloads.BANK_SUM))
        self.checker("confirmed", "confirmed", "--source", world.source.dsn(world.db), "--slot", world.slot(), *self.place())

    def place(self):
        """Where the checker of what is confirmed looks."""
        if self.kafka:
            return "--kafka", self.kafka.inside, self.world.stream
        path = self.world.bus["local"]["path"]
        return "--archive", scratch.until(lambda: [base for base, _, files in os.walk(path)
                                                   if os.path.basename(base) == self.world.stream and any(name.endswith(".seg") for name in files)],
                                          "the stream has a file on disk")[0]

    def must_run(self, process):
        """A part that ended by itself is a failure, whatever the tables say."""
        code = process.process.poll()
        if code is not None:
            raise scratch.Failure(f"seed {self.seed}: {process.name} ended by itself with {code}:\n{process.tail(20)}")
        if "event=sink-stopped" in process.text():
            raise scratch.Failure(f"seed {self.seed}: one of the teams stopped:\n{process.tail(20)}")

    def pause(self):
        """Mostly a fraction of a second; sometimes so short that it hits the start, sometimes long enough to catch up."""
        self.wait(self.random.choice((0.03, 0.1, 0.3, 0.5, 0.9)) * (0.5 + self.random.random()))
        for name, process, log in self.checkers:
            if process.poll() not in (None, 0):
                raise scratch.Failure(f"seed {self.seed}: checker {name}: {open(log.name).read()[-2000:]}")

    def wait(self, seconds):
        time.sleep(seconds)  # a random fault time, no condition to wait for

    def stop(self, process, start):
        self.must_run(process)
        code = process.stop(30)
        allowed = {0, -signal.SIGTERM}  # the latter: killed before it could listen
        if self.kafka and process is self.world.connector_process:
            allowed.add(5)  # the broker was away as well, so not all was known to be safe in time
        if code not in allowed:
            raise scratch.Failure(f"seed {self.seed}: SIGTERM ended {process.name} with {code}:\n{process.tail()}")
        start()

    def do(self, fault):
        self.count[fault] = self.count.get(fault, 0) + 1
        how, what = fault.split(" ")
        if how in ("cut", "blackhole", "half"):
            self.disturb(how, self.random.choice(self.proxies[what]))
        elif what in ("connector", "sink"):
            self.do_spate(how, what)
        elif what in ("source", "target"):
            self.do_cluster(how, self.source if what == "source" else self.target)
        elif how in ("ask", "cancel"):
            self.ask(how, what)
        elif what == "walsender":
            self.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [self.world.slot()])
        else:
            self.do_broker(how, self.random.choice(self.kafka.nodes))

    def ask(self, how, what):
        """Nobody waits for the answer: whoever should give it may be dead."""
        self.asked = [process for process in self.asked if process.running()]
        while len(self.asked) > 3:
            self.asked.pop(0).kill()
        if what == "rows":  # prints them, and is its own requester
            arguments = ["--tables", "public.s_*"]
        elif what == "some":
            arguments = ["--sink", "mirror", "--tables", "public.s_parts", "--where", f"v < {self.random.randrange(1, 400)}"]
        elif what == "request":
            code, out, _ = self.world.run("snapshot", "-c", self.world.connector_file(), "--list", seconds=120)  # the broker may be away
            # A load that is cancelled leaves a table between two pictures until it is asked for again, and the sum over swap's
            # accounts is looked at all the time.
            active = [words[0] for words in map(str.split, out.splitlines())
                      if words and re.fullmatch(r"[0-9a-f-]{8,}", words[0]) and words[1] != "swap"]
            if code or not active:
                return
            arguments = ["--cancel", self.random.choice(active)]
        else:
            arguments = ["--sink", what]
        self.asked.append(self.world.snapshot(*arguments, name=f"ask-{what}"))

    def do_spate(self, how, what):
        process = self.world.connector_process if what == "connector" else self.sink
        start = self.start_connector if what == "connector" else self.start_sink
        if how == "stop":
            self.stop(process, start)
            return
        if how == "terminate":
            self.target.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'spate%%'", [self.world.db])
            return
        self.must_run(process)
        if how == "kill":
            process.kill()
            start()
        else:
            process.process.send_signal(signal.SIGSTOP)
            self.wait(self.random.random())
            process.process.send_signal(signal.SIGCONT)

    def do_cluster(self, how, cluster):
        if how == "kill":
            cluster.kill()
            cluster.start_after_kill()
        else:
            cluster.restart(self.random.choice(("fast", "immediate")), 30)

    def do_broker(self, how, node):
        node.wait_ready()  # from the last fault
        if how == "freeze":
            node.freeze()
            self.wait(2 * self.random.random())
            node.thaw()
            return
        if how == "kill":
            node.kill()
        else:
            node.stop()
        if self.random.random() < 0.5:
            self.wait(self.random.random())
        node.launch()  # the next faults come while it starts

    def disturb(self, how, proxy):
        if how != "cut":
            proxy.mode = how
            self.wait(0.2 + 1.5 * self.random.random())
            proxy.mode = "pass"
        if how == "cut" or self.random.random() < 0.5:
            proxy.cut()

    def run(self, faults):
        """faults: an iterable; ends with everything healed, drained and compared."""
        begin = time.monotonic()
        with workloads.Loads(self.world, self.seed, self.kinds, self.load_pause) as loads:
            for fault in faults:
                self.pause()
                self.do(fault)
            transactions = loads.stop()
        ended = time.monotonic()
        if self.kafka:
            for node in self.kafka.nodes:
                node.wait_ready()
        self.must_run(self.world.connector_process)
        self.must_run(self.sink)
        self.world.wait_equal(self.pairs, self.patience)
        equal = time.monotonic()
        found = self.world.check_bus(sample=100, seconds=max(200, 4 * self.patience), truth=self.requests)
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
                 f"{found['repeats']} messages repeated and {found['holes']} holes healed on it")
        if self.requests:
            self.say(f"   {found['ops'].get('snapshot-begin', 0)} times a snapshot began; {found['chunks']} chunks with {found['rows']} rows, "
                     f"{found['dropped']} left out since they had just changed, {found['broken']} chunks broken off")
        self.say("   " + "; ".join(f"sink {name}: {applied} applied, {duplicates} duplicates dropped, {holes} holes" for name, applied, duplicates, holes
                                   in self.counters()))
        self.say(f"   {ended - begin:.0f} s of faults, equal {equal - ended:.0f} s later, the bus read in {time.monotonic() - equal:.0f} s")
        self.say("   " + ", ".join(f"{count} x {fault}" for fault, count in sorted(self.count.items())))
        return found

    def counters(self):
        return [self.world.tgt(f"SELECT sink, applied, duplicates, holes FROM {schema}.spate_sink")[0] for schema in ("mirror", "words", "swap")[:len(self.files)]]

    def keep_logs(self, folder):
        """For whoever looks into a failure."""
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        for path in [os.path.join(self.world.dir, name) for name in os.listdir(self.world.dir) if name.endswith((".log", ".yaml"))] \
                + [self.source.log, self.target.log] + ([node.log for node in self.kafka.nodes] if self.kafka else []):
            if os.path.exists(path):
                name = os.path.basename(path)
                owner = {self.source.log: "source-", self.target.log: "target-"}.get(path, "")
                shutil.copy(path, os.path.join(folder, owner + name))

    def close(self):
        if self.standby:
            self.standby.close()
        with open(self.until_file, "w"):
            pass
        for _, process, log in self.checkers:
            if process.poll() is None:
                process.kill()
            process.wait()
            log.close()
        self.world.close()
        for name in ("source", "target"):
            for proxy in self.proxies.get(name, []):
                proxy.close()
