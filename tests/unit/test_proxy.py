"""The proxy does to bytes what its modes say, and gives back what it held."""
import socket
import threading
import time

import pytest

from tests.support import scratch
from tests.support.proxy import Proxy, flip_in

HELD = 0.15  # how long nothing has to come for a direction to be called held


@pytest.fixture
def proxy():
    """Before a server that says back what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo(connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    proxy = Proxy(server.getsockname()[1], protocol=None)
    yield proxy
    proxy.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def client(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.settimeout(10)
        yield connection


def there_and_back(client, data):
    begin = time.monotonic()
    threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
    got = bytearray()
    while len(got) < len(data):
        got += client.recv(1 << 20)
    return bytes(got), time.monotonic() - begin


def test_pass(client):
    data = bytes(range(256)) * 20000
    assert there_and_back(client, data)[0] == data


@pytest.mark.parametrize("mode, out", [("blackhole", 0), ("half-out", 0), ("half", 5)])
def test_what_is_held_comes_later(proxy, client, mode, out):
    there_and_back(client, b"first")
    before = dict(proxy.passed)
    proxy.mode = mode
    client.sendall(b"later")
    scratch.until(lambda: proxy.passed["out"] - before["out"] == out, "what passes has passed")
    client.settimeout(HELD)
    with pytest.raises(socket.timeout):
        client.recv(100)
    assert (proxy.passed["out"] - before["out"], proxy.passed["in"] - before["in"]) == (out, 0)
    proxy.mode = "pass"
    client.settimeout(10)
    assert client.recv(100) == b"later"


def test_delay_and_rate(proxy, client):
    proxy.delay_ms = 60
    assert there_and_back(client, b"x")[1] >= 0.12
    proxy.delay_ms, proxy.rate = 0, 40000
    assert there_and_back(client, bytes(8000))[1] >= 0.15
    proxy.heal()
    assert there_and_back(client, bytes(1 << 20))[0] == bytes(1 << 20)


def test_one_bit(proxy, client):
    proxy.damage = flip_in(b"marker", times=1)
    assert there_and_back(client, b"a marker b")[0] == b"a marjer b"
    assert there_and_back(client, b"a marker b")[0] == b"a marker b" and proxy.damage.count == 1


def test_cut_and_refuse(proxy, client):
    there_and_back(client, b"x")
    proxy.mode = "refuse"
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as refused:
        assert refused.recv(10) == b""
    assert there_and_back(client, b"y")[0] == b"y"  # who was there stays
    proxy.mode = "pass"
    proxy.cut()
    try:
        assert client.recv(10) == b""
    except ConnectionResetError:
        pass
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as again:
        assert there_and_back(again, b"z")[0] == b"z"
