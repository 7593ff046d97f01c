"""Who may talk to the brokers, and what is said when somebody may not: TLS, client certificates, SASL, ACLs. Every test ends with a
search for its passwords in all that was logged and printed."""
import os
import re

import pytest

from tests.support import kafka as kafka_support
from tests.support import scratch
from tests.support.cluster import Cluster
from tests.support.kafka import KafkaCluster, Listener
from tests.support.world import World

PASSWORDS = {"alice": "Alice-s3cret", "bob": "Bob-s3cret", "carol": "Carol-s3cret", "wrong": "Wr0ng-s3cret", "later": "Later-s3cret"}
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class Authority:
    """A certificate authority, and what it signed."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        with open(os.path.join(folder, "openssl.cnf"), "w") as config:  # no extensions but those that are asked for
            config.write("[req]\ndistinguished_name = name\n[name]\n")
        self._openssl(name, "-x509", "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")

    def path(self, name, kind):
        return os.path.join(self.folder, f"{name}.{kind}")

    def _openssl(self, name, *arguments):
        scratch.run(["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                     "-config", os.path.join(self.folder, "openssl.cnf"),
                     "-keyout", self.path(name, "key"), "-out", self.path(name, "pem"), *arguments])

    def sign(self, name, hosts="DNS:localhost"):
        self._openssl(name, "-x509", "-CA", self.path(self.name, "pem"), "-CAkey", self.path(self.name, "key"), "-subj", f"/CN={name}",
                      "-addext", f"subjectAltName={hosts}", "-addext", "basicConstraints=critical,CA:FALSE")

    def read(self, name, kind):
        with open(self.path(name, kind)) as file:
            return file.read()

    def keystore(self, name):
        """As a broker's setting."""
        return {"ssl.keystore.type": "PEM", "ssl.keystore.certificate.chain": self.read(name, "pem"), "ssl.keystore.key": self.read(name, "key")}


@pytest.fixture(scope="module")
def authority():
    folder = scratch.directory("spate-ca-")
    ours = Authority(folder, "ours")
    ours.sign("broker")  # for localhost, not for 127.0.0.1
    ours.sign("connector", "DNS:connector.example")
    Authority(folder, "theirs")
    return ours


def users(*names):
    return PLAIN + "".join(f' user_{name}="{PASSWORDS[name]}"' for name in names) + ";"


@pytest.fixture(scope="module")
def cluster(authority):
    if kafka_support.unavailable():
        pytest.skip(kafka_support.unavailable())
    tls = authority.keystore("broker")
    listeners = {
        "TLS": Listener("SSL", tls),
        "MUTUAL": Listener("SSL", {**tls, "ssl.client.auth": "required", "ssl.truststore.type": "PEM",
                                   "ssl.truststore.certificates": authority.read("ours", "pem")}),
        "LOGIN": Listener("SASL_SSL", {**tls, "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256", "plain.sasl.jaas.config": users("alice", "bob"),
                                       "scram-sha-256.sasl.jaas.config": SCRAM}),
        "CLEAR": Listener("SASL_PLAINTEXT", {"sasl.enabled.mechanisms": "PLAIN", "plain.sasl.jaas.config": users("alice")}),
    }
    with KafkaCluster("safe", listeners=listeners, host="localhost", scram=[f"SCRAM-SHA-256=[name=carol,password={PASSWORDS['carol']}]"],
                      settings={"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                                "super.users": "User:ANONYMOUS;User:alice;User:carol;User:CN=connector"}) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def older():
    """The last broker that takes SCRAM from every librdkafka (K34)."""
    if kafka_support.unavailable():
        pytest.skip(kafka_support.unavailable())
    login = Listener("SASL_PLAINTEXT", {"sasl.enabled.mechanisms": "SCRAM-SHA-256", "scram-sha-256.sasl.jaas.config": SCRAM})
    with KafkaCluster("older", version=kafka_support.OLDER, listeners={"LOGIN": login},
                      scram=[f"SCRAM-SHA-256=[name=carol,password={PASSWORDS['carol']}]"]) as kafka:
        yield kafka


class SafeWorld(World):
    """The bus is a listener of a broker; passwords go into a file."""

    def over(self, cluster, listener, **properties):
        self.address = cluster.address(listener)
        self.bus = {"kafka": {"brokers": self.address, "properties": {key.replace("_", "."): value for key, value in properties.items()}}}
        self.config["bus"] = self.bus
        return self

    def password(self, who):
        self.bus["kafka"]["password_file"] = os.path.join(self.dir, "password")
        temporary = self.write("password.new", PASSWORDS[who] + "\n")
        os.rename(temporary, os.path.join(self.dir, "password"))

    def flows(self, process=None):
        """A row comes through, for a connector and for a reader."""
        if process:
            self.wait_streaming(process)
        else:
            process = self.connector()
        self.src("INSERT INTO t VALUES (1)")
        assert self.messages("*.t", count=1)[0]["op"] == "insert"
        return process

    def tap_waits(self):
        """What a tap says that gets no connection. It waits as well."""
        process = self.spawn("tap", "tap", "-c", self.connector_file(), "--from", "oldest", "-n", "1")
        words = process.wait_log("spate: waiting: .*").group(0)
        assert process.stop() == 0
        return words

    def said(self):
        """All that was logged."""
        found = []
        for name in os.listdir(self.dir):
            if name.endswith(".log"):
                with open(os.path.join(self.dir, name), errors="replace") as log:
                    found.append(log.read())
        return "".join(found)


@pytest.fixture
def safe_world(source, target, cluster):
    new = SafeWorld(source, target, kafka=cluster)
    new.src("CREATE TABLE t (id int PRIMARY KEY)")
    yield new
    said = new.said()
    new.close()
    assert not [word for word in PASSWORDS.values() if word in said]


def test_tls_verifies_by_default(safe_world, cluster, authority):
    safe_world.over(cluster, "TLS", security_protocol="ssl", ssl_ca_location=authority.path("ours", "pem"))
    assert "event=kafka-config" not in safe_world.flows().text()


def test_a_stranger_s_certificate_is_refused(safe_world, cluster, authority):
    """Words, no connection; and it goes on when the right authority is named."""
    safe_world.over(cluster, "TLS", security_protocol="ssl", ssl_ca_location=authority.path("theirs", "pem"))
    process = safe_world.connector(ready=False)
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    assert "not signed by an authority that is trusted here" in words and "ssl.ca.location" in words and "verdict=retry" in words, words
    assert process.stop() == 0
    assert "not signed by an authority" in safe_world.tap_waits()
    assert not [topic for topic in cluster.wire.topics() if topic.startswith(safe_world.stream)]


def test_a_name_that_the_certificate_lacks_is_refused(safe_world, cluster, authority):
    properties = dict(security_protocol="ssl", ssl_ca_location=authority.path("ours", "pem"))
    safe_world.over(cluster, "TLS", **properties)
    safe_world.bus["kafka"]["brokers"] = safe_world.address.replace("localhost", "127.0.0.1")
    process = safe_world.connector(ready=False)
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    assert "for another name" in words and "advertised.listeners" in words, words
    assert process.stop() == 0
    # It can be turned off, and each start says what that means.
    safe_world.bus["kafka"]["properties"]["ssl.endpoint.identification.algorithm"] = "none"
    assert "can pretend to be the broker" in safe_world.flows().text()


def test_a_listener_that_speaks_tls_and_a_client_that_does_not(safe_world, cluster):
    safe_world.over(cluster, "TLS")
    words = safe_world.connector(ready=False).wait_log(r"event=waiting-for-bus .*").group(0)
    assert "security.protocol" in words, words


def test_client_certificates(safe_world, cluster, authority):
    properties = dict(security_protocol="ssl", ssl_ca_location=authority.path("ours", "pem"))
    safe_world.over(cluster, "MUTUAL", **properties)
    process = safe_world.connector(ready=False)
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    assert "ssl.certificate.location" in words and "ssl.key.location" in words, words
    assert process.stop() == 0
    safe_world.over(cluster, "MUTUAL", **properties, ssl_certificate_location=authority.path("theirs", "pem"),
                    ssl_key_location=authority.path("theirs", "key"))
    process = safe_world.connector(ready=False)
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    assert "does not take our certificate" in words and "truststore" in words, words
    assert process.stop() == 0
    safe_world.over(cluster, "MUTUAL", **properties, ssl_certificate_location=authority.path("connector", "pem"),
                    ssl_key_location=authority.path("connector", "key"))
    safe_world.flows()


def test_a_password_over_tls(safe_world, cluster, authority):
    """A wrong one is said and tried again slowly; it goes on when its file is mended."""
    safe_world.over(cluster, "LOGIN", security_protocol="sasl_ssl", ssl_ca_location=authority.path("ours", "pem"), sasl_mechanism="PLAIN",
                    sasl_username="alice")
    safe_world.password("wrong")
    process = safe_world.connector(ready=False)
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    assert "refused the login of User:alice" in words and "password_file is read anew" in words and "verdict=retry" in words, words
    assert "refused the login of User:alice" in safe_world.tap_waits()
    safe_world.password("alice")
    safe_world.flows(process)


def test_no_password_in_the_most_talkative_log(safe_world, cluster, authority):
    safe_world.over(cluster, "LOGIN", security_protocol="sasl_ssl", ssl_ca_location=authority.path("ours", "pem"), sasl_mechanism="PLAIN",
                    sasl_username="alice", sasl_password=PASSWORDS["alice"], debug="all")
    safe_world.config["log_level"] = "debug"
    log = safe_world.flows().text()
    assert "level=debug event=librdkafka" in log and "sasl" in log.lower()


def test_a_password_without_tls(safe_world, cluster):
    """On this machine only: nobody else can listen."""
    safe_world.over(cluster, "CLEAR", security_protocol="sasl_plaintext", sasl_mechanism="PLAIN", sasl_username="alice")
    safe_world.password("alice")
    safe_world.flows()
    safe_world.bus["kafka"]["brokers"] = "kafka.example:9092"
    for command in ("connector", "tap"):
        code, _, err = safe_world.run(command, "-c", safe_world.connector_file())
        assert code == 2 and "in the clear" in err and "sasl_ssl" in err, err


def client_version(world):
    """Of librdkafka, as the log names it."""
    return tuple(int(part) for part in re.search(r"librdkafka=(\d+)\.(\d+)\.(\d+)", world.said()).groups())


def test_scram_and_a_broker_that_refuses_old_clients(safe_world, cluster, authority):
    """K34: right user and password; before 2.6.1 the words say what it is."""
    safe_world.over(cluster, "LOGIN", security_protocol="sasl_ssl", ssl_ca_location=authority.path("ours", "pem"),
                    sasl_mechanism="SCRAM-SHA-256", sasl_username="carol")
    safe_world.password("carol")
    process = safe_world.connector(ready=False)
    process.wait_log("librdkafka=")
    if client_version(safe_world) >= (2, 6, 1):
        safe_world.flows(process)
        return
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    for word in ("K34", "2.6.1", "newer librdkafka", "client certificates", "PLAIN", "sasl_ssl", "verdict=retry"):
        assert word in words, words
    assert "level=warn event=kafka-config" in process.text() and "SCRAM" in process.text()


def test_scram_and_a_password_that_changes(source, target, older):
    """With a broker that takes it. The password is changed under a running connector, which goes on when its file is mended."""
    world = SafeWorld(source, target, kafka=older).over(older, "LOGIN", security_protocol="sasl_plaintext", sasl_mechanism="SCRAM-SHA-256",
                                                        sasl_username="carol")
    try:
        world.src("CREATE TABLE t (id int PRIMARY KEY)")
        world.password("carol")
        process = world.flows()
        kafka_support.java(older.version, "kafka.admin.ConfigCommand", "--bootstrap-server", older.inside, "--alter", "--entity-type", "users",
                           "--entity-name", "carol", "--add-config", f"SCRAM-SHA-256=[password={PASSWORDS['later']}]")
        older.restart()
        process.wait_log("Authentication failed")
        world.password("later")
        world.src("INSERT INTO t VALUES (2)")
        assert [m["key"] for m in world.messages("*.t", count=2)] == [{"id": 1}, {"id": 2}]
        assert process.running() and process.text().count("event=kafka ") == 1
        said = world.said()
        assert not [word for word in PASSWORDS.values() if word in said]
    finally:
        world.close()


def allow(cluster, who, topics, *operations, pattern="prefixed"):
    topics = [part for topic in ([topics] if isinstance(topics, str) else topics) for part in ("--topic", topic)]
    more = [part for operation in operations for part in ("--operation", operation)]
    kafka_support.java(cluster.version, "org.apache.kafka.tools.AclCommand", "--bootstrap-server", cluster.inside, "--add", "--allow-principal",
                       f"User:{who}", "--resource-pattern-type", pattern, *topics, *more)


def test_rights_that_are_missing(safe_world, cluster, authority):
    """The words name the user; it goes on after the grant, and with no more rights than it needs."""
    safe_world.over(cluster, "LOGIN", security_protocol="sasl_ssl", ssl_ca_location=authority.path("ours", "pem"), sasl_mechanism="PLAIN",
                    sasl_username="bob")
    safe_world.password("bob")
    process = safe_world.connector(ready=False)
    words = process.wait_log(r"event=waiting-for-bus .*").group(0)
    for word in ("TOPIC_AUTHORIZATION_FAILED", "User:bob", "kafka-acls.sh", safe_world.stream, "verdict=retry"):
        assert word in words, words
    allow(cluster, "bob", safe_world.stream, "Describe", "Create", "Read", "Write")
    safe_world.flows(process)
    assert "DESCRIBE_CONFIGS" in process.text()


def test_rights_of_a_sink_that_asks(safe_world, cluster, authority):
    """It reads the stream and may not ask: it says so, by name, and asks as soon as it may. It needs no more than docs/kafka.md says."""
    world = safe_world
    over = {"security_protocol": "sasl_ssl", "ssl_ca_location": authority.path("ours", "pem"), "sasl_mechanism": "PLAIN"}
    world.over(cluster, "LOGIN", sasl_username="alice", **over)
    world.password("alice")
    world.src("INSERT INTO t SELECT g FROM generate_series(1, 50) g")
    world.connector()
    world.over(cluster, "LOGIN", sasl_username="bob", **over)
    world.bus["kafka"]["password_file"] = world.write("password.bob", PASSWORDS["bob"] + "\n")
    allow(cluster, "bob", [world.stream, world.stream + "._schemas"], "Read", pattern="literal")
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}, snapshot="auto"))
    words = sink.wait_log(r"[^\n]*_control[^\n]*User:bob[^\n]*|[^\n]*User:bob[^\n]*_control[^\n]*").group(0)
    assert "verdict=retry" in words, words
    allow(cluster, "bob", world.stream + "._control", "Read", pattern="literal")
    sink.wait_log(r"[^\n]*_control[^\n]*Write[^\n]*")
    allow(cluster, "bob", world.stream + "._control", "Write", pattern="literal")
    sink.wait_log("event=snapshot-finished", 60)
    world.wait_equal([("SELECT * FROM t", "SELECT * FROM team.t")])
