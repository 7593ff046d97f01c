"""make soak: the kill test for long, with servers restarted, sessions ended and processes frozen as well.

KILLS=N     faults in a round (100)
MINUTES=N   rounds until so many minutes are over (10)
SEED=N      of the first round; each round prints its own
"""
import os
import random
import sys
import time

from tests.support import scratch
from tests.support.chaos import Chaos
from tests.support.cluster import Cluster

FAULTS = ["kill connector"] * 4 + ["kill sink"] * 4 + ["stop connector", "restart source", "restart target", "terminate walsender", "freeze connector"]


def main():
    scratch.install_handlers()
    kills = int(os.environ.get("KILLS") or 100)
    minutes = float(os.environ.get("MINUTES") or 10)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1, 10**6))
    end, rounds = time.monotonic() + 60 * minutes, 0
    source, target = Cluster("src", fsync=True).start(), Cluster("tgt", fsync=True).start()
    try:
        while rounds == 0 or time.monotonic() < end:
            rounds += 1
            begin = time.monotonic()
            print(f"round {rounds}, SEED={seed}, {kills} faults", flush=True)
            chaos = Chaos(source, target, seed)
            chaos.start()
            chaos.run(chaos.random.choice(FAULTS) for _ in range(kills))
            chaos.close()
            print(f"   held, {time.monotonic() - begin:.0f} s", flush=True)
            seed += 1
    except (scratch.Failure, KeyboardInterrupt) as failure:
        print(f"FAILED in round {rounds}: {failure or 'interrupted'}\n   again with SEED={seed} KILLS={kills} MINUTES=0")
        return 1
    print(f"{rounds} passed, 0 failed, 0 skipped")
    return 0


if __name__ == "__main__":
    code = main()
    scratch.clean_up()
    sys.exit(code)
