"""F3-F14 in their short forms, over both buses (tests/support/scenarios.py has them, and what makes them long)."""
import contextlib

import pytest

from tests.support.scenarios import SCENARIOS, Stage


class Stages:
    """One stage for all scenarios over a bus; a new one when a scenario failed and left it who knows how."""

    def __init__(self, *what):
        self.what, self.stage = what, None

    @contextlib.contextmanager
    def use(self):
        self.stage = self.stage or Stage(*self.what)
        try:
            yield self.stage
        except BaseException:
            self.close()
            raise

    def close(self):
        stage, self.stage = self.stage, None
        if stage:
            stage.close()

    def finish(self, bus):
        """The whole stream is held against I2."""
        try:
            if self.stage:
                found = self.stage.finish()
                print(f"\n   {bus}: {found['n']} changes on the bus over all scenarios", flush=True)
        finally:
            self.close()


@pytest.fixture(scope="module")
def local(target, seed):
    stages = Stages(target, None, seed)
    yield stages
    stages.finish("local")


@pytest.fixture(scope="module")
def kafka_behind_proxies(target, seed, own_kafka):
    stages = Stages(target, own_kafka, seed)
    yield stages
    stages.finish("kafka")


FIXTURES = {"local": "local", "kafka": "kafka_behind_proxies"}
CASES = [pytest.param(bus, scenario, id=f"{number}-{scenario.__name__}-{bus}")
         for bus in FIXTURES for number, scenario, buses in SCENARIOS if bus in buses]


@pytest.mark.parametrize("bus, scenario", CASES)
def test_scenario(bus, scenario, request):
    with request.getfixturevalue(FIXTURES[bus]).use() as stage:
        scenario(stage)
