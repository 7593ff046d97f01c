"""A Kafka cluster of our own: real brokers in KRaft mode, on free ports, in scratch directories, gone at the end.

    with KafkaCluster() as kafka: ... kafka.brokers ... kafka.wire.create_topic("t") ... kafka.nodes[0].kill()

Every node has a listener without any security for the tests themselves and for the brokers among each other
(its user, ANONYMOUS, may do all). Others are asked for by name:

    KafkaCluster(listeners={"SAFE": Listener("SASL_SSL", {"ssl.keystore.type": "PEM", ...})})
    kafka.address("SAFE")

proxied=True puts a tests/support/proxy.py before each broker, whose address is what clients are told.
"""
import fcntl
import functools
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid

from tests.support import scratch
from tests.support.cluster import free_port
from tests.support.kafka_wire import KafkaError, Wire
from tests.support.proxy import Proxy

VERSION = "4.1.1"
OLDER = "3.7.1"
POM = os.path.join(scratch.ROOT, "tests/kafka/pom.xml")
# A broker of the tests lives for seconds: little heap, quick to start rather than quick at last.
JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData", "-Djava.awt.headless=true",
       "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
       "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS", "-Dorg.slf4j.simpleLogger.showThreadName=false"]


class Missing(Exception):
    """What a broker needs and this machine lacks."""


@functools.lru_cache(None)
def jars(version=VERSION):
    """The directory with the broker's jars; fetched once into build/kafka/VERSION."""
    if os.environ.get("SPATE_NO_KAFKA"):
        raise Missing(os.environ["SPATE_NO_KAFKA"])
    if not shutil.which("java"):
        raise Missing("no java (docker/setup.sh --tests installs it)")
    folder = os.path.join(os.environ.get("SPATE_KAFKA_JARS") or os.path.join(scratch.ROOT, "build/kafka"), version)
    stamp = os.path.join(folder, "complete")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(stamp):
            if not shutil.which("mvn"):
                raise Missing("no mvn to fetch Kafka's jars with (docker/setup.sh --tests installs it)")
            shutil.rmtree(folder, ignore_errors=True)
            done = scratch.run(["mvn", "-q", "-B", "-f", POM, "dependency:copy-dependencies", f"-DoutputDirectory={folder}",
                                f"-Dkafka.version={version}"], timeout=600, check=False)
            if done.returncode or not glob.glob(f"{folder}/kafka_*.jar"):
                raise Missing(f"mvn could not fetch Kafka {version}'s jars (they come from Maven's central repository; it must be "
                              f"reachable once): {scratch.maven_error(done.stdout)}")
            with open(stamp, "w"):
                pass
    return folder


def java(version, *argv, heap="256m", timeout=60, check=True):
    """Runs a main class of Kafka's own tools; takes a second."""
    return scratch.run(["java", f"-Xmx{heap}", *JVM, "-cp", f"{jars(version)}/*", *argv], timeout=timeout, check=check)


class Listener:
    """protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; settings: of this listener, in the broker's words."""

    def __init__(self, protocol, settings=None):
        self.protocol, self.settings = protocol, settings or {}


_formatted = {}


def _format(version, cluster_id, scram):
    """A formatted directory, made once per run (a JVM's start) and copied: the identity of a node is a file of text."""
    key = (version, tuple(scram))
    if key not in _formatted:
        base = scratch.directory("spate-kfmt-")
        properties = os.path.join(base, "server.properties")
        with open(properties, "w") as file:
            file.write("process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\n"
                       "listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\ncontroller.listener.names=CONTROLLER\n"
                       "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n"
                       f"log.dirs={base}/data\n")
        more = [part for word in scram for part in ("--add-scram", word)]
        java(version, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", properties, *more)
        _formatted[key] = os.path.join(base, "data")
    return _formatted[key]


class Node:
    """One broker, which is a controller too."""

    def __init__(self, cluster, number, data):
        self.cluster, self.number = cluster, number
        self.data = data
        self.log = os.path.join(cluster.dir, f"broker{number}.log")
        self.controller_port = free_port()
        self.ports = {name: free_port() for name in cluster.listeners}
        self.proxy = None
        self.process = None
        self.frozen = False

    def format(self):
        shutil.copytree(_format(self.cluster.version, self.cluster.id, self.cluster.scram), self.data, dirs_exist_ok=True)
        if "metadata.log.dir" in self.cluster.settings:
            shutil.copytree(self.data, self.cluster.settings["metadata.log.dir"], dirs_exist_ok=True)
            self._identify(self.cluster.settings["metadata.log.dir"])
        self._identify(self.data)

    def _identify(self, folder):
        path = os.path.join(folder, "meta.properties")
        with open(path) as file:
            words = file.read()
        words = re.sub(r"node\.id=.*", f"node.id={self.number}", words)
        # A directory's id is 16 bytes in URL-safe base64, not beginning with a dash.
        words = re.sub(r"directory\.id=.*", f"directory.id=A{number_text(uuid.uuid4().int)}", words)
        with open(path, "w") as file:
            file.write(words)

    def write_properties(self):
        cluster = self.cluster
        names = list(cluster.listeners)
        advertised = {name: self.ports[name] for name in names}
        if self.proxy:
            advertised["PROXIED"] = self.proxy.port
        settings = {
            "process.roles": "broker,controller", "node.id": self.number,
            "controller.quorum.voters": ",".join(f"{node.number}@127.0.0.1:{node.controller_port}" for node in cluster.nodes),
            "controller.listener.names": "CONTROLLER", "inter.broker.listener.name": "INTERNAL",
            "listeners": ",".join([f"{name}://127.0.0.1:{self.ports[name]}" for name in names] + [f"CONTROLLER://127.0.0.1:{self.controller_port}"]),
            "advertised.listeners": ",".join(f"{name}://{cluster.host}:{advertised[name]}" for name in names),
            "listener.security.protocol.map": ",".join([f"{name}:{cluster.listeners[name].protocol}" for name in names] + ["CONTROLLER:PLAINTEXT"]),
            "log.dirs": self.data, **cluster.settings,
        }
        for name, listener in cluster.listeners.items():
            for key, value in listener.settings.items():
                settings[f"listener.name.{name.lower()}.{key}"] = value
        path = os.path.join(cluster.dir, f"server{self.number}.properties")
        with open(path, "w") as file:
            for key, value in settings.items():
                file.write(f"{key}={str(value).replace(chr(92), chr(92) * 2).replace(chr(10), chr(92) + 'n')}\n")
        return path

    def launch(self):
        properties = self.write_properties()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(["java", f"-Xmx{self.cluster.heap}", f"-Xms{self.cluster.heap}", *JVM, *self.cluster.jvm,
                                             "-cp", f"{jars(self.cluster.version)}/*", "kafka.Kafka", properties],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.cluster.dir,
                                            start_new_session=True, preexec_fn=scratch.child_setup())
        self.frozen = False

    def start(self, wait=True):
        self.launch()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds=60):
        scratch.until(self.ready, lambda: f"broker {self.number} of {self.cluster.name} is ready; its log: {self.tail()}", seconds, 0.03)

    def ready(self):
        """Whether it answers, and the cluster counts it in."""
        if self.process.poll() is not None:
            raise scratch.Failure(f"{self.cluster.name}: broker {self.number} exited with {self.process.returncode}: {self.tail()}")
        try:
            with socket.create_connection(("127.0.0.1", self.ports["INTERNAL"]), 1):
                pass
            wire = Wire(f"127.0.0.1:{self.ports['INTERNAL']}")
            try:
                return self.number in wire.metadata(timeout=2)["brokers"]
            finally:
                wire.close()
        except (OSError, KafkaError):
            return False

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """kill -9"""
        if self.running():
            self.process.kill()
        if self.process:
            self.process.wait()

    def stop(self, seconds=20):
        """SIGTERM; a broker that can't reach a controller may not end by itself, and is killed then."""
        if self.running():
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def freeze(self):
        if self.running():
            self.process.send_signal(signal.SIGSTOP)
            self.frozen = True

    def thaw(self):
        if self.running():
            self.process.send_signal(signal.SIGCONT)
            self.frozen = False

    def tail(self, lines=15):
        try:
            with open(self.log, errors="replace") as log:
                return "".join(log.readlines()[-lines:])
        except OSError:
            return "(no log)"


def number_text(value):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    out = ""
    for _ in range(20):
        value, rest = divmod(value, len(letters))
        out += letters[rest]
    return out + "A"  # the last character carries two bits only


class Topics:
    """What can be asked of any cluster, ours or one that somebody else started."""

    def __init__(self, brokers):
        self.brokers = brokers
        self.wire = Wire(brokers)

    def forget(self, stream):
        """Removes a stream's topics, if the cluster is there to be asked."""
        if not self.running():
            return
        try:
            names = [name for name in self.wire.topics() if name == stream or name.startswith(stream + ".")]
            if names:
                self.wire.delete_topic(*names)
        except (OSError, KafkaError):
            pass

    def running(self):
        return True

    @property
    def inside(self):
        return self.brokers

    def produce(self, topic, lines, *arguments):
        """Through kcat: one record per line; with -K as an argument keys as well."""
        scratch.run_with_input(["kcat", "-q", "-b", self.brokers, "-P", "-t", topic, "-p", "0", *arguments], lines)

    def consume(self, topic, start="beginning", seconds=30):
        """What the topic holds now, read by kcat: [(offset, key or None, value)], bytes as they are."""
        done = subprocess.run(["kcat", "-q", "-b", self.brokers, "-C", "-t", topic, "-p", "0", "-o", str(start), "-e",
                               "-X", "check.crcs=true", "-X", "fetch.wait.max.ms=10", "-f", r"%o %K %S\n%k%s\n"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=seconds, preexec_fn=scratch.child_setup())
        if done.returncode:
            raise scratch.Failure(f"kcat could not read {topic}: {done.stderr.decode(errors='replace')}")
        found, data, at = [], done.stdout, 0
        while at < len(data):
            end = data.index(b"\n", at)
            offset, key_size, size = (int(word) for word in data[at:end].split())
            at = end + 1
            key = data[at:at + key_size] if key_size >= 0 else None
            at += max(key_size, 0)
            found.append((offset, key, data[at:at + size]))
            at += size + 1
        return found


def unavailable():
    """Why there can be no broker here; None if there can. In CI that is a failure, and Missing says it."""
    try:
        jars()
        return None
    except Missing as missing:
        if os.environ.get("CI", "") not in ("", "0", "false"):
            raise
        return str(missing)


class KafkaCluster(Topics):
    """nodes: 1 or 3; settings: of the brokers; scram: ["SCRAM-SHA-256=[name=u,password=p]"]; data: a function number -> directory
    for the log, where a test wants it on a small file system."""

    def __init__(self, name="kafka", nodes=1, version=VERSION, listeners=None, proxied=False, heap=None, settings=None, scram=(), jvm=(),
                 host="127.0.0.1", data=None):
        jars(version)
        self.name, self.version, self.host = name, version, host
        self.id = "c3BhdGUtdGVzdHMtbm9kZQ"  # 16 bytes in base64
        self.scram, self.jvm = list(scram), list(jvm)
        self.heap = heap or ("512m" if nodes == 1 else "256m")
        self.dir = scratch.directory(f"spate-{name}-")
        self.listeners = {"INTERNAL": Listener("PLAINTEXT"), **({"PROXIED": Listener("PLAINTEXT")} if proxied else {}), **(listeners or {})}
        self.settings = {
            "offsets.topic.replication.factor": nodes, "transaction.state.log.replication.factor": nodes, "transaction.state.log.min.isr": 1,
            "offsets.topic.num.partitions": 2, "transaction.state.log.num.partitions": 2,
            "auto.create.topics.enable": "false", "delete.topic.enable": "true", "num.network.threads": 2, "num.io.threads": 4,
            "group.initial.rebalance.delay.ms": 0, "controlled.shutdown.enable": "true",
            # A broker that was killed may come back as soon as its old session is over, so that is short.
            "broker.session.timeout.ms": 1500 if nodes == 1 else 3000, "broker.heartbeat.interval.ms": 300,
            "controller.quorum.election.timeout.ms": 500, "controller.quorum.fetch.timeout.ms": 1500,
            "controller.quorum.election.backoff.max.ms": 200, "replica.lag.time.max.ms": 3000, "log.segment.delete.delay.ms": 1000,
            "log.retention.check.interval.ms": 2000, **(settings or {}),
        }
        self.nodes = []
        for number in range(1, nodes + 1):
            self.nodes.append(Node(self, number, data(number) if data else os.path.join(self.dir, f"data{number}")))
        if proxied:
            for node in self.nodes:
                node.proxy = Proxy(node.ports["PROXIED"], protocol="kafka")
        for node in self.nodes:
            node.format()
        super().__init__(self.address("INTERNAL"))
        if proxied:
            self.brokers = self.address("PROXIED")
        scratch.at_end(self.destroy)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.destroy()

    def address(self, listener):
        return ",".join(f"{self.host}:{node.proxy.port if listener == 'PROXIED' else node.ports[listener]}" for node in self.nodes)

    @property
    def inside(self):
        """The address past the proxies, for those who check."""
        return self.address("INTERNAL")

    @property
    def proxies(self):
        return [node.proxy for node in self.nodes]

    def start(self, wait=True):
        for node in self.nodes:
            node.launch()
        if wait:
            for node in self.nodes:
                node.wait_ready()
        return self

    def stop(self):
        for node in self.nodes:
            if node.running():
                node.process.terminate()
        for node in self.nodes:
            node.stop(3 if len(self.nodes) > 1 else 20)

    def kill(self):
        for node in self.nodes:
            node.kill()

    def restart(self, how="kill"):
        begin = time.monotonic()
        self.kill() if how == "kill" else self.stop()
        self.start()
        return time.monotonic() - begin

    def running(self):
        return all(node.running() for node in self.nodes)

    def destroy(self):
        scratch.forget(self.destroy)
        self.wire.close()
        for node in self.nodes:
            node.kill()
            if node.proxy:
                node.proxy.close()
        if not os.environ.get("KEEP_SCRATCH"):
            shutil.rmtree(self.dir, ignore_errors=True)
