"""Shared clusters for a run; a world of its own (databases, bus, processes) for each test."""
import os
import random
import signal

import pytest

from tests.support import kafka as kafka_support
from tests.support import scratch, servers
from tests.support.cluster import Cluster
from tests.support.world import World, binary


def pytest_configure(config):
    scratch.atexit.register(scratch.clean_up)
    signal.signal(signal.SIGTERM, lambda number, frame: pytest.exit(f"signal {number}", 128 + number))


def pytest_report_header(config):
    return f"spate: {binary()}, Postgres: {servers.bin_dir()}, SEED={seed_of_run()}"


_seed = []


def seed_of_run():
    if not _seed:
        _seed.append(int(os.environ.get("SEED") or random.SystemRandom().randrange(1, 10**6)))
    return _seed[0]


@pytest.fixture(scope="session")
def seed():
    """Printed in the report's head; SEED=N repeats it."""
    return seed_of_run()


@pytest.fixture(scope="session")
def source():
    return Cluster("src").start()


@pytest.fixture(scope="session")
def target():
    return Cluster("tgt").start()


@pytest.fixture
def world(source, target):
    for cluster in (source, target):
        if not cluster.running():
            cluster.start()
    new = World(source, target)
    yield new
    new.close()


def need_kafka():
    why = kafka_support.unavailable()
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def kafka():
    """One broker that all tests share, and nobody stops: tests/run.py's, else one of this session."""
    need_kafka()
    if os.environ.get("SPATE_TEST_BROKERS"):
        return kafka_support.Topics(os.environ["SPATE_TEST_BROKERS"])
    return kafka_support.KafkaCluster().start()


@pytest.fixture(scope="module")
def own_kafka():
    """A broker behind a proxy, which a module's tests may kill, cut off and fill; it is mended between them."""
    need_kafka()
    cluster = kafka_support.KafkaCluster("own-kafka", proxied=True).start()
    yield cluster
    cluster.destroy()


@pytest.fixture
def kafka_world(source, target, kafka):
    for cluster in (source, target):
        if not cluster.running():
            cluster.start()
    new = World(source, target, kafka=kafka)
    yield new
    new.close()


@pytest.fixture(params=["local", "kafka"])
def each_world(request, source, target):
    """A world over each bus."""
    for cluster in (source, target):
        if not cluster.running():
            cluster.start()
    new = World(source, target, kafka=request.getfixturevalue("kafka") if request.param == "kafka" else None)
    yield new
    new.close()


@pytest.fixture
def own_source():
    """A source that the test may stop, fill or break."""
    cluster = Cluster("own")
    yield cluster
    cluster.destroy()
