"""Random kill -9 of the connector and of the sinks under W1-W4; the checker has the last word (F1, F61)."""
import os

import pytest

from tests.support.chaos import Chaos

pytestmark = pytest.mark.kill
KILLS = int(os.environ.get("KILLS") or 25)


def test_kill_9_at_random(source, target, seed):
    print(f"\n   SEED={seed}: {KILLS} kills of the connector, {KILLS} of the sink process", flush=True)
    chaos = Chaos(source, target, seed)
    try:
        chaos.start()
        faults = ["kill connector"] * KILLS + ["kill sink"] * KILLS
        chaos.random.shuffle(faults)
        chaos.run(faults)
        assert chaos.count == {"kill connector": KILLS, "kill sink": KILLS}
    finally:
        chaos.close()
