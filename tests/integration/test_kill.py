"""Random kill -9 of the connector and of the sinks under W1-W4 and W8, while snapshots are asked for, and of the broker; the
checker has the last word (F1, F43, F44, F50, F61)."""
import os

import pytest

from tests.support.chaos import Chaos

pytestmark = pytest.mark.kill
KILLS = int(os.environ.get("KILLS") or 25)
ASKS = ["ask mirror", "ask swap", "ask words", "ask rows", "ask some", "cancel request"]


def kill(chaos, faults):
    try:
        chaos.start()
        chaos.random.shuffle(faults)
        chaos.run(faults)
        assert chaos.count == {fault: faults.count(fault) for fault in faults}
    finally:
        chaos.close()


def test_kill_9_at_random(source, target, seed):
    print(f"\n   SEED={seed}: {KILLS} kills of the connector, {KILLS} of the sink process", flush=True)
    kill(Chaos(source, target, seed, requests=True), ["kill connector"] * KILLS + ["kill sink"] * KILLS + ASKS * (KILLS // 8))


def test_kill_9_at_random_over_kafka(source, target, own_kafka, seed):
    kills = KILLS // 2
    print(f"\n   SEED={seed}, Kafka: {kills} kills of the connector, {kills} of the sink process, 3 of the broker", flush=True)
    kill(Chaos(source, target, seed, kafka=own_kafka, requests=True),
         ["kill connector"] * kills + ["kill sink"] * kills + ["kill broker"] * 3 + ASKS * (kills // 8))
