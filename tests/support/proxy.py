"""A TCP proxy with faults, to stand before a server: pass, cut, blackhole, refuse, flip.

The flip changes bytes inside CopyData messages from the server, so that the garbage reaches the decoder of
the replication stream and not libpq's own framing.
"""
import select
import socket
import struct
import threading


class Proxy:
    def __init__(self, port, host="127.0.0.1"):
        self.target = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.mode = "pass"
        self.flip = None  # a function bytes -> bytes over the payload of one XLogData message
        self.flipped = 0
        self.lock = threading.Lock()
        self.pairs = set()
        self.closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while not self.closing:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, 5)
            except OSError:
                client.close()
                continue
            with self.lock:
                self.pairs.add((client, server))
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client, server):
        pending = bytearray()
        in_copy = False
        try:
            while not self.closing:
                readable, _, _ = select.select([client, server], [], [], 0.1)
                if self.mode == "blackhole":
                    continue
                for side in readable:
                    data = side.recv(65536)
                    if not data:
                        return
                    if side is client:
                        server.sendall(data)
                        continue
                    if not in_copy and b"W\x00\x00\x00" in data:  # CopyBothResponse
                        in_copy = True
                        at = data.index(b"W\x00\x00\x00")
                        client.sendall(data[:at])
                        data = data[at:]
                    if in_copy:
                        pending += data
                        client.sendall(self._framed(pending))
                    else:
                        client.sendall(data)
        except OSError:
            pass
        finally:
            self._close(client, server)

    def _framed(self, pending):
        """Whole protocol messages out of `pending`, each CopyData run through the flip."""
        out = bytearray()
        while len(pending) >= 5:
            length = struct.unpack("!I", pending[1:5])[0]
            if len(pending) < 1 + length:
                break
            message = bytes(pending[:1 + length])
            del pending[:1 + length]
            if self.flip and message[:1] == b"d" and message[5:6] == b"w":  # XLogData: 24 bytes, then pgoutput
                body = self.flip(message[30:])
                if body is not None:
                    self.flipped += 1
                    message = b"d" + struct.pack("!I", 4 + 25 + len(body)) + message[5:30] + body
            out += message
        return bytes(out)

    def _close(self, client, server):
        for side in (client, server):
            try:
                side.close()
            except OSError:
                pass
        with self.lock:
            self.pairs.discard((client, server))

    def cut(self):
        """Breaks all connections there are; new ones pass."""
        with self.lock:
            pairs = list(self.pairs)
        for pair in pairs:
            for side in pair:
                try:
                    side.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.closing = True
        self.listener.close()
        self.cut()
