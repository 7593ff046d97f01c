"""Fault scenarios between a source, a connector, a bus and a sink (F3-F14 of the fault matrix), each a function of a
stage and of how often its fault comes: short in tests/integration/test_scenarios.py, long in make soak (run_long).

Every scenario begins and ends with all parts running and source and target equal, so that they can follow each other
on one stage in any order.
"""
import contextlib
import os
import random
import re
import signal
import threading
import time
import uuid

from tests.support import scratch, workloads
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy, flip_in
from tests.support.world import World, lsn

SENDER_TIMEOUT = 3  # seconds until the source gives up a silent connector, and the connector a silent source


class Stage:
    """A source of its own behind a proxy, a world over one bus, a connector and a sink, and loads to be switched on.
    kafka: a cluster behind proxies (KafkaCluster(proxied=True)), or None for the local bus."""

    def __init__(self, target, kafka, seed):
        self.kafka, self.seed, self.random = kafka, seed, random.Random(f"{seed} {bool(kafka)}")
        self.source = Cluster("stage", wal_sender_timeout=f"{SENDER_TIMEOUT}s")
        self.certificate()
        self.source.start()
        self.source.sql("CREATE ROLE wire LOGIN SUPERUSER PASSWORD 'wire'")
        self.proxy = Proxy(self.source.port)
        self.world = World(self.source, target, kafka=kafka, heartbeat="200ms")
        workloads.prepare(self.world)
        self.world.src("CREATE TABLE big (id int PRIMARY KEY, v text)")
        self.tables = {**workloads.MIRROR, "big": {"from": "public.big"}}
        self.pairs = workloads.mirror_pairs("mirror") + [("SELECT * FROM public.big", "SELECT * FROM mirror.big")]
        self.world.config["source"]["postgres"]["url"] = self.url()
        self.connector = self.world.connector()
        self.file = self.world.sink_file("mirror", self.tables)
        self.sink = self.world.sink(self.file)
        workloads.load(self.world)

    def certificate(self):
        """So that a connector may come with TLS; what it is signed with is no matter here."""
        key, cert = os.path.join(self.source.data, "server.key"), os.path.join(self.source.data, "server.crt")
        scratch.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                     "-subj", "/CN=localhost", "-keyout", key, "-out", cert])
        os.chmod(key, 0o600)
        for path in (key, cert):
            os.chown(path, self.source.user[0], self.source.user[1])
        self.source.configure(ssl="on")

    def url(self, sslmode="disable"):
        return self.source.tcp_url(self.world.db, "wire", "wire", port=self.proxy.port, sslmode=sslmode)

    @contextlib.contextmanager
    def load(self, kinds=("w1", "w1", "w2", "w3", "w4"), pause=0.01):
        with workloads.Loads(self.world, self.random.random(), kinds=kinds, pause=pause) as loads:
            yield loads

    def done(self):
        """How many rows of W1 were written by now; None while the source is down."""
        try:
            return self.world.src("SELECT coalesce(sum(n), 0) FROM w1_last")[0][0]
        except Exception:
            return None

    def goes_on(self, more=30, seconds=30):
        """Waits until the load has written so much more."""
        before = scratch.until(self.done, "the source answers", seconds)
        scratch.until(lambda: (self.done() or 0) >= before + more, "the load goes on", seconds)

    def sent(self):
        """What the sink holds of it."""
        return self.world.tgt("SELECT coalesce(sum(n), 0) FROM mirror.w1_last")[0][0]

    def sink_goes_on(self, seconds=30):
        before = self.sent()
        scratch.until(lambda: self.sent() > before, lambda: "the sink goes on:" + self.world.logs(), seconds)

    def equal(self, seconds=60):
        self.world.wait_equal(self.pairs, seconds)
        for process in (self.connector, self.sink):
            if not process.running() or "event=sink-stopped" in process.text():
                raise scratch.Failure(f"{process.name} ended by itself:\n{process.tail()}")
        # The source's slot is saved, and need not decode again what all scenarios before wrote (P15).
        self.source.sql("CHECKPOINT")

    def slot(self, column):
        rows = self.source.sql(f"SELECT {column} FROM pg_replication_slots WHERE slot_name = %s", [self.world.slot()])
        return rows[0][0] if rows else None

    def terminate_walsender(self):
        self.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [self.world.slot()])

    def brokers(self, **settings):
        for proxy in self.kafka.proxies:
            for name, value in settings.items():
                setattr(proxy, name, value)

    def finish(self):
        """I2 over everything that happened here."""
        return self.world.check_bus(sample=100, seconds=200)

    def close(self):
        self.world.close()
        self.proxy.close()
        self.source.destroy()


def said(process, pattern, since):
    """How often the log says it since then (a length of process.text())."""
    return len(re.findall(pattern, process.text()[since:]))


def expect(condition, words, stage):
    if not condition:
        raise scratch.Failure(words + stage.world.logs())


# ---- F3 ----

def stop_under_load(stage, times=2):
    """SIGTERM: exit 0 within ten seconds, what is durable is confirmed, and nothing is published twice."""
    for _ in range(times):
        with stage.load():
            stage.goes_on()
            begin = time.monotonic()
            code = stage.connector.stop()
            took = time.monotonic() - begin
        expect(code == 0 and took < 10, f"SIGTERM ended the connector with {code} after {took:.1f} s", stage)
        confirmed = stage.slot("confirmed_flush_lsn::text")
        stage.connector = stage.world.connector()
        found = stage.connector.wait_log(r"event=streaming slot=\S+ lsn=(\S+) epoch=\d+ n=(\d+) compare=(\d+)")
        expect(found.group(1) == confirmed, f"it was confirmed {confirmed}, and goes on at {found.group(1)}", stage)
        # Only a transaction that was cut in two may stand beyond what is confirmed.
        if int(found.group(3)):
            beyond = [m for m in stage.world.messages() if m.get("n", 0) > int(found.group(2)) - int(found.group(3)) and m.get("n", 0) <= int(found.group(2))]
            expect(all("end" not in m for m in beyond), f"durable and not confirmed: {beyond[-1]}", stage)
        stage.equal()


# ---- F4 ----

def frozen(stage, times=1):
    """SIGSTOP until the source gives the connection up, in the long form three times as long; then SIGCONT: it says so
    and goes on."""
    least = 3 * SENDER_TIMEOUT if times > 1 else 0
    for _ in range(times):
        mark = len(stage.connector.text())
        with stage.load():
            stage.goes_on()
            begin = time.monotonic()
            stage.connector.process.send_signal(signal.SIGSTOP)
            try:
                scratch.until(lambda: not stage.slot("active") and time.monotonic() - begin > least, "the source gives up the connector", 30)
            finally:
                stage.connector.process.send_signal(signal.SIGCONT)
            stage.world.wait_streaming(stage.connector)
            stage.goes_on()
        expect(said(stage.connector, r"event=disconnected [^\n]*connection", mark), "it does not say that it lost its connection", stage)
        stage.equal()


# ---- F5, F6 ----

def second_connector(stage, times=1):
    """The second one waits, names the owner, and takes over when the first is gone."""
    for _ in range(times):
        second = stage.world.connector(ready=False, name="second")
        pattern = (r"event=disconnected [^\n]*in use by server process (\d+)" if stage.kafka else rf"event=waiting-for-bus [^\n]*\b({stage.connector.pid})\b")
        owner = second.wait_log(pattern).group(1)
        expect(owner == str(stage.slot("active_pid") if stage.kafka else stage.connector.pid), f"it names {owner}", stage)
        with stage.load():
            stage.goes_on()
            stage.connector.kill()
            stage.connector = second
            stage.world.wait_streaming(second)
            stage.goes_on()
        stage.equal()


def zombie(stage, times=1):
    """STOP A, end its session, start B, CONT A. On Kafka B takes the slot and A has to wait for it; on the local bus A
    keeps its lock, so B waits. Whoever streams last, nothing is lost, and what came twice is dropped."""
    for _ in range(times):
        a = stage.connector
        with stage.load():
            stage.goes_on()
            a.process.send_signal(signal.SIGSTOP)
            try:
                stage.terminate_walsender()
                scratch.until(lambda: not stage.slot("active"), "the slot is free")
                b = stage.world.connector(ready=bool(stage.kafka), name="b")
                if stage.kafka:
                    stage.sink_goes_on()
                else:
                    b.wait_log(rf"event=waiting-for-bus [^\n]*\b{a.pid}\b")
            finally:
                a.process.send_signal(signal.SIGCONT)
            stage.goes_on()
            if stage.kafka:
                a.wait_log("in use by server process")
            else:
                stage.world.wait_streaming(a)
            stage.sink_goes_on()
        stage.connector = b if stage.kafka else a
        stage.equal()
        # The other one takes over.
        with stage.load():
            expect(stage.connector.stop() == 0, "it does not stop in order", stage)
            stage.connector = a if stage.kafka else b
            stage.world.wait_streaming(stage.connector, 40)
            stage.goes_on()
        stage.equal()


# ---- F7, F8, F10: sessions and servers that end ----

def walsender_terminated(stage, times=6):
    """It comes back at once, however often: a pause that grows is for what fails in the same place again (I8)."""
    slowest = 0
    with stage.load():
        for _ in range(times):
            stage.goes_on(10)
            stage.sink_goes_on()
            stage.terminate_walsender()
            begin = time.monotonic()
            stage.world.wait_streaming(stage.connector)
            slowest = max(slowest, time.monotonic() - begin)
    expect(slowest < 2.5, f"it took {slowest:.1f} s to come back", stage)
    stage.equal()


def fast_restarts(stage, times=3):
    """A shutdown in order waits for us to confirm all of the WAL (P10): it must not wait long."""
    with stage.load():
        for _ in range(times):
            stage.goes_on(20)
            took = stage.source.stop("fast", 30)
            expect(took < 5, f"the shutdown took {took:.1f} s", stage)
            stage.source.start()
        stage.world.wait_streaming(stage.connector)
    stage.equal()


def immediate_restarts(stage, times=3):
    """What was confirmed is not saved yet when the server dies: it comes again (P15), and is found on the bus."""
    compared = before = 0
    mark = len(stage.connector.text())
    before = stage.world.tgt("SELECT duplicates FROM mirror.spate_sink")[0][0]
    with stage.load():
        for _ in range(times):
            stage.goes_on(40)
            stage.source.restart("immediate")
            stage.world.wait_streaming(stage.connector)
    stage.equal()
    compared = sum(int(count) for count in re.findall(r"event=streaming [^\n]* compare=(\d+)", stage.connector.text()[mark:]))
    expect(compared > 0, "nothing came again: the test does not test what it should", stage)
    after = stage.world.tgt("SELECT duplicates FROM mirror.spate_sink")[0][0]
    expect(after == before, f"{after - before} changes were published twice", stage)


# ---- F9 ----

def source_stops_while_the_bus_is_down(stage, times=1):
    """What cannot be made durable is not confirmed, so a source that stops in order is held up; at most until it
    gives up a connector that no longer answers it."""
    for _ in range(times):
        with stage.load():
            stage.goes_on()
            stage.brokers(mode="blackhole")
            stage.goes_on()
            try:
                took = stage.source.stop("fast", 60)
            finally:
                stage.brokers(mode="pass")
        expect(took < SENDER_TIMEOUT + 6, f"the shutdown took {took:.1f} s, wal_sender_timeout is {SENDER_TIMEOUT} s", stage)
        stage.source.start()
        stage.world.wait_streaming(stage.connector, 60)
        stage.equal()


# ---- F11, F12, F13: the network ----

def cut_mid_transaction(stage, times=2):
    """A transaction with savepoints that were rolled back; the connection breaks while it is being sent."""
    for turn in range(times):
        base = turn % 3 * 20000
        with stage.source.connect(stage.world.db, autocommit=False) as connection, connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM big WHERE id BETWEEN {base} AND {base + 19999}")
            for part in range(5):
                low = base + part * 1500
                cursor.execute(f"INSERT INTO big SELECT g, repeat('x', 100) FROM generate_series({low}, {low + 1499}) g")
                cursor.execute(f"SAVEPOINT s; UPDATE big SET v = 'never' WHERE id BETWEEN {low} AND {low + 300}; ROLLBACK TO s")
            before = stage.proxy.passed["in"]
            connection.commit()
        at = stage.random.randint(50_000, 600_000)
        scratch.until(lambda: stage.proxy.passed["in"] > before + at, "the transaction is under way", 20, 0.001)
        stage.proxy.cut()
    stage.equal()


def blackhole(stage, times=1):
    """The source falls silent. Both sides notice by themselves, and the connector within its read timer."""
    for _ in range(times):
        mark = len(stage.connector.text())
        with stage.load():
            stage.goes_on()
            begin = time.monotonic()
            stage.proxy.mode = "blackhole"
            try:
                scratch.until(lambda: said(stage.connector, "event=disconnected [^\n]*taken for dead", mark), lambda: "it notices:\n" + stage.connector.tail(), 20)
                took = time.monotonic() - begin
            finally:
                stage.proxy.mode = "pass"
                stage.proxy.cut()
            stage.world.wait_streaming(stage.connector)
        expect(took < 2 * SENDER_TIMEOUT + 1, f"it took {took:.1f} s to notice, the read timer is {SENDER_TIMEOUT} s", stage)
        stage.equal()


def half_deaf(stage, times=1):
    """One direction only: what the connector says no longer arrives, and the source gives it up."""
    for _ in range(times):
        with stage.load():
            stage.goes_on()
            stage.proxy.mode = "half-out"
            try:
                scratch.until(lambda: not stage.slot("active"), "the source gives the connection up", 20)
            finally:
                stage.proxy.mode = "pass"
                stage.proxy.cut()
            stage.world.wait_streaming(stage.connector)
        stage.equal()


def slow_network(stage, times=1):
    """200 ms and 50 kB/s, to the source and to the brokers: late, and never disconnected."""
    mark, seconds = len(stage.connector.text()), 3 * times
    slow = {"delay_ms": 200, "rate": 50_000}
    for name, value in slow.items():
        setattr(stage.proxy, name, value)
    if stage.kafka:
        stage.brokers(**slow)
    try:
        end = time.monotonic() + seconds
        with stage.load(kinds=("w1", "w2", "w3"), pause=0.1):
            scratch.until(lambda: time.monotonic() > end, "the load runs for a while on a slow network", seconds + 5)
        stage.equal(120)
    finally:
        stage.proxy.heal()
        if stage.kafka:
            for proxy in stage.kafka.proxies:
                proxy.heal()
    expect(not said(stage.connector, "event=(disconnected|reconnecting)", mark), "it was disconnected", stage)


# ---- F14: bits that change on the way ----

def flipped_under_tls(stage, times=1):
    """TLS notices: the connection is over, nothing of it was believed, and it is read again."""
    expect(stage.connector.stop() == 0, "it does not stop in order", stage)
    stage.world.config["source"]["postgres"]["url"] = stage.url("require")
    stage.proxy.protocol = None
    try:
        stage.connector = stage.world.connector()
        mark = len(stage.connector.text())
        for _ in range(times):
            before = said(stage.connector, "event=disconnected", mark)

            def noticed():
                """The bit may have been one of the connection that only watches the slot: then once more."""
                if not stage.proxy.damage or stage.proxy.damage.count:
                    stage.proxy.damage = flip_once(2000)
                    stage.world.src("DELETE FROM big WHERE id >= 900000; INSERT INTO big SELECT 900000 + g, md5(g::text) FROM generate_series(1, 1000) g")
                return said(stage.connector, "event=disconnected", mark) > before

            scratch.until(noticed, lambda: "the damage is noticed:\n" + stage.connector.tail(), 20, 0.5)
            stage.proxy.damage = None
            stage.equal()
    finally:
        stage.proxy.heal()
        stage.proxy.protocol = "postgres"
        stage.world.config["source"]["postgres"]["url"] = stage.url()
    expect(said(stage.connector, r"event=disconnected [^\n]*(SSL|TLS)", mark), "it does not say that TLS failed", stage)
    expect(stage.connector.stop() == 0, "it does not stop in order", stage)
    stage.connector = stage.world.connector()


def flip_once(after):
    """One bit, when so many bytes have passed."""
    def damage(data):
        damage.seen += len(data)
        if damage.count or damage.seen < after:
            return data
        damage.count = 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1:]

    damage.seen = damage.count = 0
    return damage


def flipped_between_broker_and_sink(stage, times=1):
    """The checksum of a batch is wrong (K28): it is never applied. When the wire is whole again it is read again."""
    for _ in range(times):
        marker = uuid.uuid4().hex
        stage.brokers(damage=flip_in(marker.encode()))
        damaged = stage.kafka.proxies[0].damage
        try:
            stage.world.src("INSERT INTO big VALUES (-1, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v", [marker])
            scratch.until(lambda: damaged.count >= 2, "the batch was sent damaged, and again", 30)
            held = stage.world.tgt("SELECT v FROM mirror.big WHERE id = -1")
            expect(not held or held[0][0] != marker and len(held[0][0]) == 32 and not near(held[0][0], marker), f"a damaged value was applied: {held}", stage)
        finally:
            stage.brokers(damage=None)
        if not stage.sink.running():  # it may stop with the offset, and is started again
            expect("offset" in stage.sink.text(), "it stopped without naming the offset", stage)
            stage.sink = stage.world.sink(stage.file)
        stage.equal()


def near(a, b):
    return sum(x != y for x, y in zip(a, b)) == 1


def flipped_on_the_disk(stage, times=1):
    """The local bus: a bit of a record that the sink has not read changes on the disk. The sink stops and names the
    place; put back, all goes on."""
    for _ in range(times):
        expect(stage.sink.stop() == 0, "it does not stop in order", stage)
        marker = uuid.uuid4().hex.encode()
        stage.world.src("INSERT INTO big VALUES (-2, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v", [marker.decode()])
        # Shared memory is taken as it is; so enough is written behind the record that it leaves there.
        stage.world.src("DELETE FROM big WHERE id >= 800000; INSERT INTO big SELECT 800000 + g, repeat('x', 2000) FROM generate_series(1, 2500) g")
        scratch.until(lambda: not list(find(marker, stage.world.hot)), "the record has left the shared memory")
        places = list(find(marker, stage.world.bus["local"]["path"]))
        expect(places, "the record is in no file", stage)
        change(places, marker, marker[:7] + bytes([marker[7] ^ 1]) + marker[8:])
        try:
            stage.sink = stage.world.sink(stage.file)
            stage.sink.wait_log(r"event=sink-stopped [^\n]*(checksum|damaged)[^\n]*[0-9a-f]{16}|event=sink-stopped [^\n]*[0-9a-f]{16}[^\n]*(checksum|damaged)")
            expect(stage.sink.wait_exit() not in (0, None), "it ended as if all were well", stage)
            expect(stage.world.tgt("SELECT v FROM mirror.big WHERE id = -2") == [], "a damaged value was applied", stage)
        finally:
            change(places, None, marker)
        stage.sink = stage.world.sink(stage.file)
        stage.equal()
        stage.world.src("DELETE FROM big WHERE id = -2")
        stage.equal()


def find(marker, *folders):
    """(file, offset) of every place where it stands."""
    for folder in folders:
        for base, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(base, name)
                try:
                    with open(path, "rb") as file:
                        data = file.read()
                except FileNotFoundError:  # a temporary one, or one that has just left
                    continue
                at = data.find(marker)
                while at >= 0:
                    yield path, at
                    at = data.find(marker, at + 1)


def change(places, old, new):
    for path, at in places:
        with open(path, "r+b") as file:
            file.seek(at)
            if old is not None and file.read(len(old)) != old:
                raise scratch.Failure(f"{path} changed meanwhile")
            file.seek(at)
            file.write(new)


# (name in the matrix, function, buses)
SCENARIOS = [
    ("F3", stop_under_load, ("local", "kafka")),
    ("F4", frozen, ("local", "kafka")),
    ("F5", second_connector, ("local", "kafka")),
    ("F6", zombie, ("local", "kafka")),
    ("F7", walsender_terminated, ("local", "kafka")),
    ("F8", fast_restarts, ("local", "kafka")),
    ("F9", source_stops_while_the_bus_is_down, ("kafka",)),
    ("F10", immediate_restarts, ("local", "kafka")),
    ("F11", cut_mid_transaction, ("local", "kafka")),
    ("F12", blackhole, ("local", "kafka")),
    ("F12", half_deaf, ("local", "kafka")),
    ("F13", slow_network, ("local", "kafka")),
    ("F14", flipped_under_tls, ("local", "kafka")),
    ("F14", flipped_between_broker_and_sink, ("kafka",)),
    ("F14", flipped_on_the_disk, ("local",)),
]


def run_long(target, kafka, seed, minutes, factor=5, say=print):
    """For make soak: scenarios at random on one stage, each with its fault `factor` times, until the minutes are over."""
    stage = Stage(target, kafka, seed)
    bus, count, end = "kafka" if kafka else "local", {}, time.monotonic() + 60 * minutes
    try:
        stage.equal()
        while time.monotonic() < end or not count:
            number, scenario, buses = stage.random.choice(SCENARIOS)
            if bus not in buses:
                continue
            try:
                scenario(stage, factor)
            except scratch.Failure as failure:
                raise scratch.Failure(f"{number} {scenario.__name__} on the {bus} bus, seed {seed}: {failure}") from failure
            count[scenario.__name__] = count.get(scenario.__name__, 0) + 1
        found = stage.finish()
        say(f"   {bus}: {found['n']} changes on the bus, " + ", ".join(f"{times} x {name}" for name, times in sorted(count.items())))
        return found
    finally:
        stage.close()
