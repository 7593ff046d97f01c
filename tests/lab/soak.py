"""make soak BUS=lab: the crowd of tests/lab in large numbers, and power cuts; make lab-arm: some of it on an emulated AArch64.

KILLS=N     kills, freezes in a run (500)
MINUTES=N   the runs again and again until so many minutes are over (once)
SEED=N      of the first time round; each prints its own
"""
import os
import random
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Unit tests whose numbers the environment says: 20 000 power cuts, sleepers and spinners that are killed.
TESTS = {
    "bus_power_test": {"SPATE_POWER_CUTS": 15000},
    "buslab_outage_test": {"SPATE_POWER_CUTS": 5000},
    "buslab_idle_test": {"LAB_ROUNDS": 100000},
}

# title: writers, readers, kills, freezes, rolls, and the rest of the words of buslab_run. N stands for KILLS.
RUNS = {
    "L1 three readers": "5 3 N 0 300 volatile publish",
    "L1 thirty readers": "5 30 N 0 100 volatile publish",
    "L1 durable": "5 4 N 0 100 durable all",
    "L2 three readers": "5 3 0 N 300 volatile publish short",
    "L2 thirty readers": "5 30 0 N 100 volatile publish short",
    "L2 as patient as by default": "8 3 0 N 50 volatile publish",
    "L2 durable": "5 4 0 N 100 durable all short",
    "L1 and L2 together": "8 6 N N 200 durable all short",
    "L1 and L2, large values": "6 4 N N 100 durable large short",
    "L1, large volatile values": "5 4 N 0 50 volatile large",
    "L5": "5 30 0 0 300 volatile",
    "L5 without patience": "8 8 0 0 300 volatile impatient",
    "L10 crashes in roll-over": "5 3 N N 300 durable roll short",
    "L8": "4 8 0 0 100 volatile paced",
}
# Emulated, each step takes ten times as long.
ARM = {
    "L1 on AArch64": "5 3 N 0 40 volatile publish",
    "L1 durable on AArch64": "4 3 N 0 20 durable all",
    "L2 on AArch64": "5 3 0 N 40 volatile publish short",
    "L5 on AArch64": "5 30 0 0 20 volatile",
    "L8 on AArch64": "3 6 0 0 20 volatile paced",
}


def run(program, runs, kills, seed):
    for title, words in runs.items():
        begin = time.monotonic()
        argv = [*program, title, *words.replace("N", str(kills)).split()]
        if subprocess.run(argv, env={**os.environ, "SEED": str(seed)}).returncode:
            print(f"FAILED {title}\n   again with SEED={seed} {' '.join(repr(word) if ' ' in word else word for word in argv)}")
            return False
        print(f"   {title} held, {time.monotonic() - begin:.0f} s", flush=True)
    return True


def run_tests(kills, seed):
    for name, numbers in TESTS.items():
        begin = time.monotonic()
        words = {"SEED": seed, "LAB_KILLS": kills, **numbers}
        done = subprocess.run([f"build/release/tests/unit/{name}"], env={**os.environ, **{key: str(value) for key, value in words.items()}},
                              stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, errors="replace")
        if done.returncode:
            print("\n".join(line for line in done.stdout.splitlines() if " level=info " not in line))
            print(f"FAILED {name}\n   again with {' '.join(f'{key}={value}' for key, value in words.items())} build/release/tests/unit/{name}")
            return False
        print(f"   {name} held with {', '.join(f'{key}={value}' for key, value in numbers.items())}, {time.monotonic() - begin:.0f} s", flush=True)
    return True


def main(arm=False):
    os.chdir(ROOT)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1, 10**6))
    kills = int(os.environ.get("KILLS") or (100 if arm else 500))
    minutes = float(os.environ.get("MINUTES") or 0)
    program = ["qemu-aarch64", "build/arm/tests/support/buslab_run"] if arm else ["build/release/tests/support/buslab_run"]
    begin, rounds = time.monotonic(), 0
    while rounds == 0 or time.monotonic() < begin + 60 * minutes:
        rounds += 1
        print(f"round {rounds}, SEED={seed}, {kills} kills and freezes", flush=True)
        if not run(program, ARM if arm else RUNS, kills, seed) or not (arm or run_tests(kills, seed)):
            return 1
        seed += 1
    print(f"{rounds} passed, 0 failed, 0 skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main(arm="arm" in sys.argv[1:]))
