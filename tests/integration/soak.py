"""make soak: faults of every kind at random and for long, while snapshots are asked for; the checker at the end.

MINUTES=N   rounds of faults until so many minutes are over (10); then half as long the scenarios of the fault matrix
KILLS=N     faults in a round (100); when given, no scenarios
SEED=N      of the first round; each round prints its own
BUS=        local or kafka (a broker of our own, which is killed as well); lab: the local bus alone (tests/lab/soak.py)
"""
import os
import random
import sys
import time
import traceback

from tests.lab import soak as lab
from tests.support import kafka, scenarios, scratch, workloads
from tests.support.chaos import Chaos
from tests.support.cluster import Cluster


def main():
    if os.environ.get("BUS") == "lab":
        return lab.main()
    scratch.install_handlers()
    kills = int(os.environ.get("KILLS") or 100)
    minutes = float(os.environ.get("MINUTES") or 10)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1, 10**6))
    bus = os.environ.get("BUS") or "local"
    if bus not in ("local", "kafka"):
        print(f"soak: BUS={bus} is none of local, kafka and lab")
        return 2
    end, rounds = time.monotonic() + 60 * minutes, 0
    broker = kafka.KafkaCluster(proxied=True).start() if bus == "kafka" else None
    source, target = Cluster("src", fsync=True).start(), Cluster("tgt", fsync=True).start()
    chaos = None
    try:
        while rounds == 0 or time.monotonic() < end:
            rounds += 1
            begin = time.monotonic()
            print(f"round {rounds}, SEED={seed} BUS={bus}, {kills} faults", flush=True)
            late = 0.7 if seed % 3 == 0 else 0  # every third round behind a synchronous standby (W9)
            chaos = Chaos(source, target, seed, kafka=broker, network=not late, kinds=workloads.ALL, pause=0.02, patience=180, requests=True, late=late)
            kinds = chaos.faults()
            chaos.start()
            chaos.run(chaos.random.choice(kinds) for _ in range(kills))
            chaos.close()
            print(f"   held, {time.monotonic() - begin:.0f} s", flush=True)
            seed += 1
        chaos = None
        if not os.environ.get("KILLS"):
            print(f"scenarios, SEED={seed} BUS={bus}, {minutes / 2:g} minutes", flush=True)
            scenarios.run_long(target, broker, seed, minutes / 2)
            print("   held", flush=True)
    except (Exception, KeyboardInterrupt) as failure:
        if not isinstance(failure, (scratch.Failure, KeyboardInterrupt)):
            traceback.print_exc(file=sys.stdout)
        print(f"FAILED in round {rounds}: {failure or 'interrupted'}")
        if chaos:
            folder = os.path.join(scratch.ROOT, f"build/soak-{bus}-{seed}")
            chaos.keep_logs(folder)
            print(f"   the logs are in {folder}")
            print(f"   again with BUS={bus} SEED={seed} KILLS={kills} MINUTES=0")
        else:  # a scenario; its failure names it
            print(f"   again with BUS={bus} SEED={seed} MINUTES={minutes:g}")
        return 1
    print(f"{rounds} passed, 0 failed, 0 skipped")
    return 0


if __name__ == "__main__":
    code = main()
    scratch.clean_up()
    sys.exit(code)
