"""A TCP proxy with faults, to stand before a server: a source, a target, a broker.

mode        what happens to bytes:
  pass        both directions go on
  blackhole   nothing is read or sent, in neither direction; connections stay open and new ones hang
  half        what the server says is held back, what the client says passes
  half-out    what the client says is held back, what the server says passes
  refuse      new connections are closed at once; those there are go on
delay_ms    every byte arrives so much later, in each direction
rate        bytes per second in each direction of each connection; 0 for no limit
cut()       breaks all connections there are; new ones pass
damage      a function bytes -> bytes over what the server says, as it comes off the wire
flip        a function bytes -> bytes over the payload of one XLogData message (Postgres without TLS only)

What is held is not lost: TCP cannot lose bytes in the middle, it can only stop.
"""
import collections
import select
import socket
import struct
import threading
import time

HELD_MOST = 1 << 20  # bytes on their way in one direction; then the sender has to wait, as on a real wire


class Frames:
    """Finds the CopyData messages in what a Postgres server says, so that garbage reaches the decoder of the
    replication stream and not libpq's own framing."""

    def __init__(self, proxy):
        self.proxy, self.pending, self.in_copy = proxy, bytearray(), False

    def feed(self, data):
        out = b""
        if not self.in_copy:
            at = data.find(b"W\x00\x00\x00")  # CopyBothResponse
            if at < 0:
                return data
            self.in_copy = True
            out, data = data[:at], data[at:]
        self.pending += data
        return out + self._whole()

    def _whole(self):
        pending, at, out = self.pending, 0, bytearray()
        while len(pending) - at >= 5:
            length = struct.unpack_from("!I", pending, at + 1)[0]
            if len(pending) - at < 1 + length:
                break
            message = pending[at:at + 1 + length]
            at += 1 + length
            flip = self.proxy.flip
            if flip and message[:1] == b"d" and message[5:6] == b"w":  # XLogData: 24 bytes, then pgoutput
                body = flip(bytes(message[30:]))
                if body is not None:
                    self.proxy.flipped += 1
                    message = b"d" + struct.pack("!I", 4 + 25 + len(body)) + message[5:30] + body
            out += message
        del pending[:at]
        return bytes(out)


class Direction(threading.Thread):
    """One way of one connection."""

    def __init__(self, pair, name, source, sink):
        super().__init__(daemon=True)
        self.pair, self.proxy, self.name = pair, pair.proxy, name
        self.source, self.sink = source, sink
        self.frames = Frames(self.proxy) if name == "in" and self.proxy.protocol == "postgres" else None
        self.queue, self.queued, self.free_at = collections.deque(), 0, 0.0

    def held(self):
        mode = self.proxy.mode
        return mode == "blackhole" or mode == ("half" if self.name == "in" else "half-out")

    def run(self):
        try:
            ended = False
            while not (ended and not self.queue) and not self.pair.over and not self.proxy.closing:
                if self.held():
                    time.sleep(0.02)  # as long as the fault lasts; whoever set it ends it
                    continue
                ended = self.take() or ended
                self.give()
        except (OSError, ValueError):  # ValueError: select on a socket that the other direction closed
            pass
        finally:
            self.pair.close()

    def take(self):
        """Reads what there is; True at the end."""
        now = time.monotonic()
        timeout = 0.1
        if self.queue:
            timeout = min(timeout, max(0.0, max(self.queue[0][0], self.free_at) - now))
        if self.queued >= HELD_MOST:
            time.sleep(timeout)
            return False
        if not select.select([self.source], [], [], timeout)[0] or self.held():
            return False
        data = self.source.recv(65536)
        if not data:
            return True
        if self.name == "in" and self.proxy.damage:
            data = self.proxy.damage(data)
        if self.name == "out" and self.proxy.rewrite:
            data = self.proxy.rewrite(data)
        if self.frames:
            data = self.frames.feed(data)
        if data:
            self.queue.append((time.monotonic() + self.proxy.delay_ms / 1000, data))
            self.queued += len(data)
        self.proxy.passed[self.name] += len(data)
        return False

    def give(self):
        while self.queue and not self.held():
            now = time.monotonic()
            due, data = self.queue[0]
            if due > now or self.free_at > now:
                return
            rate = self.proxy.rate
            piece = data[:max(1, rate // 20)] if rate else data
            self.sink.sendall(piece)
            self.queued -= len(piece)
            if rate:
                self.free_at = now + len(piece) / rate
            if len(piece) < len(data):
                self.queue[0] = (due, data[len(piece):])
            else:
                self.queue.popleft()


class Pair:
    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server, self.over = proxy, client, server, False
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.directions = [Direction(self, "out", client, server), Direction(self, "in", server, client)]

    def start(self):
        for direction in self.directions:
            direction.start()

    def cut(self):
        self.over = True
        for side in (self.client, self.server):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.cut()
        for side in (self.client, self.server):
            side.close()
        with self.proxy.lock:
            self.proxy.pairs.discard(self)


class Proxy:
    """protocol: "postgres" looks for the replication stream, so that flip works; None takes bytes as bytes."""

    def __init__(self, port, host="127.0.0.1", protocol="postgres", listen=0):
        self.target = (host, port)
        self.protocol = protocol
        self.listener = socket.create_server(("127.0.0.1", listen))
        self.port = self.listener.getsockname()[1]
        self.mode, self.delay_ms, self.rate = "pass", 0, 0
        self.damage, self.rewrite, self.flip, self.flipped = None, None, None, 0  # rewrite: what the client sends
        self.passed = {"in": 0, "out": 0}  # bytes taken, for tests that wait for something to be under way
        self.accepted = 0
        self.lock, self.pairs, self.closing = threading.Lock(), set(), False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while not self.closing:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.mode == "refuse" or self.closing:
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, 5)
            except OSError:
                client.close()
                continue
            pair = Pair(self, client, server)
            with self.lock:
                self.pairs.add(pair)
            pair.start()

    def cut(self):
        with self.lock:
            pairs = list(self.pairs)
        for pair in pairs:
            pair.cut()

    def heal(self):
        """Bytes pass again, those that were held first."""
        self.delay_ms, self.rate, self.damage, self.rewrite, self.flip, self.mode = 0, 0, None, None, None, "pass"

    def close(self):
        self.closing = True
        # A thread that waits in accept is woken by shutdown, not by close.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        self.cut()


def flip_in(marker, times=None):
    """For Proxy.damage: turns one bit wherever the marker stands whole in a piece of what is read; counts in
    .count. times: how often at most."""

    def damage(data):
        at = data.find(marker)
        if at < 0 or (times is not None and damage.count >= times):
            return data
        damage.count += 1
        middle = at + len(marker) // 2
        return data[:middle] + bytes([data[middle] ^ 0x01]) + data[middle + 1:]

    damage.count = 0
    return damage
