"""Asks a Kafka broker for what tests need, in its own protocol: topics, settings, offsets, leaders.

Small and without a library: a tool from Kafka's jars would take a second for each question. Only request
versions that Kafka 3.7 and 4.x both know, all from before the protocol's compact encoding.
"""
import socket
import struct
import time

ERRORS = {0: "", 1: "OFFSET_OUT_OF_RANGE", 3: "UNKNOWN_TOPIC_OR_PARTITION", 5: "LEADER_NOT_AVAILABLE", 6: "NOT_LEADER_OR_FOLLOWER",
          7: "REQUEST_TIMED_OUT", 17: "INVALID_TOPIC", 29: "TOPIC_AUTHORIZATION_FAILED", 36: "TOPIC_ALREADY_EXISTS", 37: "INVALID_PARTITIONS",
          38: "INVALID_REPLICATION_FACTOR", 40: "INVALID_CONFIG", 41: "NOT_CONTROLLER", 42: "INVALID_REQUEST"}
TOPIC = 2  # a kind of resource


class KafkaError(Exception):
    """A broker's answer that is an error; the text has its name or number."""

    def __init__(self, code, what):
        super().__init__(f"{what}: {ERRORS.get(code, code)}")
        self.code = code


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        size = struct.calcsize(form)
        value, = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return value

    def i8(self):
        return self.take(">b")

    def i16(self):
        return self.take(">h")

    def i32(self):
        return self.take(">i")

    def i64(self):
        return self.take(">q")

    def text(self):
        size = self.i16()
        if size < 0:
            return None
        self.at += size
        return self.data[self.at - size:self.at].decode()

    def list(self, item):
        return [item() for _ in range(self.i32())]


def text(value):
    if value is None:
        return struct.pack(">h", -1)
    data = value.encode()
    return struct.pack(">h", len(data)) + data


def array(items):
    items = list(items)
    return struct.pack(">i", len(items)) + b"".join(items)


class Wire:
    """One connection to one of the brokers, made anew when it broke. Questions are asked again until the
    cluster has an answer (a leader that moves, a broker that starts), for at most `seconds`."""

    def __init__(self, brokers, seconds=20):
        self.brokers = [(part.rsplit(":", 1)[0], int(part.rsplit(":", 1)[1])) for part in brokers.split(",")]
        self.seconds, self.connection, self.address, self.number = seconds, None, None, 0

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def _receive(self, size):
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise OSError("the broker closed the connection")
            data += more
        return data

    def ask(self, key, version, body, address=None, timeout=10):
        """One request, one answer, no second try."""
        if self.connection is None or (address and address != self.address):
            self.close()
            self.address = address or self.brokers[self.number % len(self.brokers)]
            self.connection = socket.create_connection(self.address, timeout)
        self.connection.settimeout(timeout)
        self.number += 1
        request = struct.pack(">hhi", key, version, self.number) + text("spate-tests") + body
        try:
            self.connection.sendall(struct.pack(">i", len(request)) + request)
            size, = struct.unpack(">i", self._receive(4))
            reader = Reader(self._receive(size))
        except OSError:
            self.close()
            raise
        reader.i32()
        return reader

    def again(self, question):
        """Repeats a question while the cluster is not ready for it."""
        end = time.monotonic() + self.seconds
        while True:
            try:
                return question()
            except (OSError, KafkaError) as error:
                if isinstance(error, KafkaError) and error.code not in (5, 6, 7, 41):
                    raise
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)

    # Who is there.
    def metadata(self, *topics, address=None, timeout=10):
        """{"brokers": {id: (host, port)}, "topics": {name: {partition: {"leader", "replicas", "isr", "error"}}}, "errors": {name: code}}"""
        body = (array(text(topic) for topic in topics) if topics else struct.pack(">i", -1)) + b"\0"
        answer = self.ask(3, 4, body, address, timeout)
        answer.i32()
        brokers = {}
        for _ in range(answer.i32()):
            node, host, port, _rack = answer.i32(), answer.text(), answer.i32(), answer.text()
            brokers[node] = (host, port)
        cluster, controller = answer.text(), answer.i32()
        found, errors = {}, {}
        for _ in range(answer.i32()):
            error, name, _internal = answer.i16(), answer.text(), answer.i8()
            partitions = {}
            for _ in range(answer.i32()):
                code, index, leader = answer.i16(), answer.i32(), answer.i32()
                partitions[index] = {"leader": leader, "replicas": answer.list(answer.i32), "isr": answer.list(answer.i32), "error": code}
            found[name], errors[name] = partitions, error
        return {"brokers": brokers, "topics": found, "errors": errors, "cluster": cluster, "controller": controller}

    def topics(self):
        return sorted(name for name, error in self.metadata()["errors"].items() if error == 0)

    def partition(self, topic, index=0):
        found = self.metadata(topic)
        if found["errors"][topic]:
            raise KafkaError(found["errors"][topic], topic)
        return found["topics"][topic][index]

    def leader(self, topic, index=0):
        """The leader's id."""

        def ask():
            leader = self.partition(topic, index)["leader"]
            if leader < 0:
                raise KafkaError(5, topic)
            return leader

        return self.again(ask)

    # Topics.
    def _named(self, answer, with_message, what):
        answer.i32()
        for _ in range(answer.i32()):
            name, error = answer.text(), answer.i16()
            message = answer.text() if with_message else None
            if error:
                raise KafkaError(error, f"{what} {name}" + (f" ({message})" if message else ""))

    def create_topic(self, name, partitions=1, replicas=1, **configs):
        """configs: names with _ for the dots (max_message_bytes=100)."""
        settings = array(text(key.replace("_", ".")) + text(str(value)) for key, value in configs.items())
        body = array([text(name) + struct.pack(">ih", partitions, replicas) + array([]) + settings]) + struct.pack(">i", 10000) + b"\0"
        self.again(lambda: self._named(self.ask(19, 2, body), True, "creating topic"))

        def known():
            """Brokers learn of it one after another; 3 means nothing else here than not yet."""
            try:
                return self.partition(name)
            except KafkaError as error:
                raise KafkaError(5, name) if error.code == 3 else error

        self.again(known)
        self.leader(name)

    def delete_topic(self, *names):
        body = array(text(name) for name in names) + struct.pack(">i", 10000)
        self.again(lambda: self._named(self.ask(20, 1, body), False, "deleting topic"))

    def add_partitions(self, name, count):
        body = array([text(name) + struct.pack(">ii", count, -1)]) + struct.pack(">i", 10000) + b"\0"
        self.again(lambda: self._named(self.ask(37, 0, body), True, "adding partitions to topic"))

    def settings(self, topic):
        body = array([struct.pack(">b", TOPIC) + text(topic) + struct.pack(">i", -1)]) + b"\0"

        def ask():
            answer = self.ask(32, 1, body)
            answer.i32(), answer.i32()
            error, message, _kind, _name = answer.i16(), answer.text(), answer.i8(), answer.text()
            if error:
                raise KafkaError(error, f"settings of {topic} ({message})")
            found = {}
            for _ in range(answer.i32()):
                name, value, _read_only, _source, _sensitive = answer.text(), answer.text(), answer.i8(), answer.i8(), answer.i8()
                answer.list(lambda: (answer.text(), answer.text(), answer.i8()))
                found[name] = value
            return found

        return self.again(ask)

    def set(self, topic, **configs):
        """None as a value goes back to the broker's default."""
        changes = array(text(key.replace("_", ".")) + struct.pack(">b", 1 if value is None else 0) + text(None if value is None else str(value))
                        for key, value in configs.items())
        body = array([struct.pack(">b", TOPIC) + text(topic) + changes]) + b"\0"

        def ask():
            answer = self.ask(44, 0, body)
            answer.i32(), answer.i32()
            error, message = answer.i16(), answer.text()
            if error:
                raise KafkaError(error, f"setting {configs} of {topic} ({message})")

        self.again(ask)

    # Records. These go to the leader, whose address the asking listener advertises.
    def _to_leader(self, topic, key, version, body, read):
        def ask():
            found = self.metadata(topic)
            if found["errors"][topic]:
                raise KafkaError(found["errors"][topic], topic)
            leader = found["topics"][topic][0]["leader"]
            if leader not in found["brokers"]:
                raise KafkaError(5, topic)
            return read(self.ask(key, version, body, found["brokers"][leader]))

        return self.again(ask)

    def offset(self, topic, at):
        """at: -1 the next offset to be written, -2 the oldest kept."""

        def read(answer):
            answer.i32(), answer.text(), answer.i32(), answer.i32()
            error, _time, offset = answer.i16(), answer.i64(), answer.i64()
            if error:
                raise KafkaError(error, f"offsets of {topic}")
            return offset

        return self._to_leader(topic, 2, 1, struct.pack(">i", -1) + array([text(topic) + array([struct.pack(">iq", 0, at)])]), read)

    def offsets(self, topic):
        """(the oldest kept, the next to be written)"""
        return self.offset(topic, -2), self.offset(topic, -1)

    def delete_records(self, topic, before):
        """Removes what stands before the offset, as retention would; returns the oldest kept."""

        def read(answer):
            answer.i32(), answer.i32(), answer.text(), answer.i32(), answer.i32()
            low, error = answer.i64(), answer.i16()
            if error:
                raise KafkaError(error, f"deleting records of {topic}")
            return low

        return self._to_leader(topic, 21, 0, array([text(topic) + array([struct.pack(">iq", 0, before)])]) + struct.pack(">i", 10000), read)
