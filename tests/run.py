#!/usr/bin/env python3
"""make test: build, unit, contract, sanitizers, fuzz seeds, checks, integration, kill test; one closing line.

T=PATTERN   only what matches (a file name, a test name, or the name of a step)
VERSIONS=.. with the word `versions`: the integration tests on servers of these major versions, one after another
SEED=N      repeats the random parts of a run
CI=true     nothing that needs a Postgres server or a Kafka broker may be skipped
"""
import concurrent.futures
import fnmatch
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests.support import kafka, scratch, servers  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.chdir(ROOT)
PATTERN = os.environ.get("T", "")
CI = os.environ.get("CI", "") not in ("", "0", "false")
JOBS = str(os.cpu_count() or 2)
BIN = {"release": "build/release", "asan": "build/asan"}

NOT_KAFKA = "this run is about Postgres servers"  # why its tests of Kafka are passed by

passed, failed, skipped = 0, [], []
reasons = {}  # of what failed, by name
children = set()


def on_signal(number, _frame):
    """A child is in a session of its own: it hears of the signal once, from here, and cleans up."""
    for child in list(children):
        if child.poll() is None:
            child.send_signal(number)
    for child in list(children):
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
    scratch.clean_up()
    print("interrupted", flush=True)
    os._exit(128 + number)


def wants(*names):
    return not PATTERN or any(PATTERN in name or fnmatch.fnmatch(name, PATTERN) for name in names)


def head(text):
    print(f"== {text}", flush=True)


def call(argv, env=None, timeout=None):
    """Runs a program to its end; returns (exit status, output)."""
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                             errors="replace", env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
                             start_new_session=True, preexec_fn=scratch.child_setup(death_signal=signal.SIGTERM))
    children.add(child)
    try:
        out, _ = child.communicate(timeout=timeout)
        return child.returncode, out
    except subprocess.TimeoutExpired:
        child.kill()
        out, _ = child.communicate()
        return -9, (out or "") + f"\nkilled after {timeout} s\n"
    finally:
        children.discard(child)


def ok(count=1):
    global passed
    passed += count


def fail(name, text=""):
    failed.append(name)
    lines = text.rstrip().splitlines()[-60:]
    print(f"FAILED {name}\n" + "\n".join("   " + line for line in lines), flush=True)


def skip(name, why):
    skipped.append(f"{name}: {why}")


def make(*goals, name):
    code, out = call(["make", "-s", "--no-print-directory", "-j", JOBS, *goals], env={"CI": ""})
    if code:
        fail(name, out)
    return code == 0


def has_goal(goal):
    """Whether the Makefile knows how to make it."""
    code, out = call(["make", "-n", goal])
    return not (code and "No rule to make target" in out)


def build():
    head("build")
    # Warnings are errors here, as in CI.
    code, out = call(["make", "-s", "--no-print-directory", "-j", JOBS, "CI=1", "compile"])
    if code:
        fail("build", out)
        return False
    ok()
    return True


def broker():
    """One broker for whatever does not stop it; its address in SPATE_TEST_BROKERS. With T= the tests in Python start
    their own where they need one."""
    if not wants("contract", "broker", *[os.path.basename(path)[:-2] for path in glob.glob("tests/contract/*_test.c")]):
        return
    head(f"Kafka {kafka.VERSION} for the tests that need a broker")
    begin = time.monotonic()
    try:
        kafka.jars()
        os.environ["SPATE_TEST_BROKERS"] = kafka.KafkaCluster().start().brokers
        ok()
        print(f"   ready in {time.monotonic() - begin:.1f} s", flush=True)
    except (kafka.Missing, scratch.Failure) as why:
        # Missing: not installed, or the jars cannot be fetched here. A broker that does not start is a failure anyway.
        if CI or isinstance(why, scratch.Failure):
            fail("a Kafka broker", str(why))
        else:
            skip("whatever needs a Kafka broker", str(why))
            os.environ["SPATE_NO_KAFKA"] = str(why)  # or each process would try to fetch them


def tap(name, path, env=None):
    """Runs a cmocka program and counts its lines. A program that dies counts as failed."""
    begin = time.monotonic()
    code, out = call([path], env={"CMOCKA_MESSAGE_OUTPUT": "TAP", "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
                                  "UBSAN_OPTIONS": "print_stacktrace=1", **(env or {})}, timeout=240)
    good, bad = 0, 0
    for line in out.splitlines():
        found = re.match(r"(not )?ok \d+ - ?(.*)", line) or re.match(r"(not )?ok \d+ ?(.*)", line)
        if not found:
            continue
        test = found.group(2).split(" #")[0].strip()
        if re.search(r"# *SKIP", line, re.I):
            why = re.split(r"# *SKIP:?", line, flags=re.I)[1].strip() or "the test says so"
            skip(f"{name}: {test}", why)
        elif found.group(1):
            bad += 1
            fail(f"{name}: {test}", "")
        else:
            good += 1
    ok(good)
    if bad or code:
        if not bad:
            fail(name, f"exit status {code}\n{out[-6000:]}")
        else:
            print("\n".join("   " + line for line in out.splitlines() if not line.startswith("ok "))[-4000:])
    elif good == 0 and not re.search(r"# *SKIP", out, re.I):
        fail(name, "it ran no test at all\n" + out[-2000:])
    print(f"   {name}: {good} passed{f', {bad} failed' if bad else ''} ({time.monotonic() - begin:.1f} s)", flush=True)


def cmocka(kind, variant):
    sources = sorted(glob.glob(f"tests/{kind}/*_test.c"))
    names = [os.path.basename(source)[:-2] for source in sources]
    label = kind if variant == "release" else f"{variant} {kind}"
    names = [name for name in names if wants(name, label, kind)]
    if not names:
        return
    head(f"{label} tests in C" + (" under AddressSanitizer and UBSan" if variant == "asan" else ""))
    # Each is built for itself, so that one that does not compile fails alone.
    if not make("-k", f"VARIANT={variant}", *[f"{BIN[variant]}/tests/{kind}/{name}" for name in names], name=f"build of {label} tests"):
        pass
    for name in names:
        path = f"{BIN[variant]}/tests/{kind}/{name}"
        if os.path.exists(path):
            tap(f"{label}/{name}", path, {"SPATE_POWER_CUTS": "20", "LAB_KILLS": "12"} if variant == "asan" else None)


def fuzz_seeds():
    targets = sorted(glob.glob("tests/fuzz/*_fuzz.c"))
    names = [os.path.basename(target)[:-2] for target in targets]
    names = [name for name in names if wants(name, "fuzz")]
    if not names:
        return
    head("replay of the fuzz seeds")
    if not shutil.which("clang"):
        for name in names:
            skip(f"fuzz/{name}", "needs clang (apt-get install clang)")
        return
    code, out = call(["make", "--no-print-directory", "fuzz"], timeout=300)
    if code:
        fail("fuzz", out)
    else:
        ok(len(names))
        print(f"   {', '.join(names)}")


def checks():
    wanted = [goal for goal in ("check-includes", "check-headers", "check-docs") if wants(goal, "checks")]
    if not wanted:
        return
    head("checks: " + ", ".join(wanted))
    for goal in wanted:
        if not has_goal(goal):
            fail(goal, "the Makefile has no such goal")
            continue
        code, out = call(["make", "--no-print-directory", goal])
        if code:
            fail(goal, out)
        else:
            ok()


def pytest(label, *arguments, env=None):
    """Returns what is to be reported of one pytest run: (label, output, its report or None, exit status, seconds)."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.xml")
        argv = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        if PATTERN and not wants(label, *arguments):
            argv += ["-k", PATTERN.replace("*", "")]
        begin = time.monotonic()
        code, out = call(argv, env)
        root = xml.parse(report).getroot() if os.path.exists(report) else None
        return label, out, root, code, time.monotonic() - begin


def report(label, out, root, code, seconds):
    if root is None:
        fail(label, out)
        return
    good, bad = count(label, root, code)
    if good + bad:
        print(f"   {label}: {good} passed{f', {bad} failed' if bad else ''} ({seconds:.0f} s)", flush=True)
    if bad:
        print(out[-12000:])
    else:  # what a test prints with -s is worth reading: figures, seeds
        print("".join(line + "\n" for line in out.splitlines() if line.startswith("   ")), end="", flush=True)


# What is run on the newest server as well: the values, shapes and words of a server, about a minute.
ON_NEWEST = {
    "test_shapes": "", "test_values": "", "test_flow": "every_operation or every_tuple_state or schema_changes or rolled_back",
    "test_fences": "slot_missing or slot_recreated or slot_invalidated or another_plugin", "test_snapshot": "F39 or F40",
    "test_ddl": "follows_what_it_can", "test_check": "finding_of_the_source or own_settings or cannot_be_mended",
}


def newest():
    """Work for the pool; none where Debian's server is the newest, or another is not to be had."""
    label = f"newest: Postgres {servers.NEWEST}"
    if servers.major() == servers.NEWEST or not wants(label):
        return []
    try:
        servers.bin_dir(servers.NEWEST)
    except servers.Missing as why:
        (fail if CI else skip)(label, str(why))
        return []
    files = [path for path in (f"tests/integration/{name}.py" for name in ON_NEWEST) if os.path.exists(path)]
    chosen = " or ".join(f"({name}.py and ({words}))" if words else f"{name}.py" for name, words in ON_NEWEST.items())
    return [(label, [*files, "-s", "-k", f"({chosen}) and not kafka"], {"SPATE_TEST_POSTGRES": str(servers.NEWEST)})]


def versions():
    """All integration tests on each version, without what is about Kafka or about no server at all."""
    apart = ("kafka", "test_docs", "test_config", "test_checker", "test_large", "test_bus_records")
    files = [path for path in sorted(glob.glob("tests/integration/test_*.py")) if not any(word in path for word in apart)]
    os.environ["SPATE_NO_KAFKA"] = NOT_KAFKA
    os.environ["SPATE_LONG"] = "1"  # what is too long for make test
    if not make("VARIANT=failpoints", "compile", name="build with failpoints"):
        return
    for major in map(int, (os.environ.get("VERSIONS") or "14 16 17 18").split()):
        head(f"integration tests on Postgres {major}")
        try:
            servers.bin_dir(major)
        except servers.Missing as why:
            fail(f"Postgres {major}", str(why))
            continue
        env = {"SPATE_TEST_POSTGRES": str(major), "SPATE_LONG": "1"}
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(pytest, f"{major} {os.path.basename(path)[:-3]}", path, "-s", env=env) for path in files]
            for job in concurrent.futures.as_completed(jobs):
                report(*job.result())


def integration():
    """File by file, three at a time: they wait for servers and disks more than they compute. The longest go first."""
    files = sorted(glob.glob("tests/integration/test_*.py"))
    first = ["test_size", "test_scenarios", "test_failpoints", "test_snapshot", "test_kafka_broker", "test_kill", "test_faults", "test_kafka", "test_large", "test_flow", "test_sink_refusals"]
    files.sort(key=lambda path: next((i for i, name in enumerate(first) if name in path), len(first)))
    head("integration tests and kill test, on servers of their own")
    if not PATTERN and not make("VARIANT=failpoints", "compile", name="build with failpoints"):
        return
    also = newest()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        work = [(os.path.basename(path)[:-3], [path, "-s"], None) for path in files]
        work[3:3] = also
        jobs = [pool.submit(pytest, label, *arguments, env=env) for label, arguments, env in work]
        for job in concurrent.futures.as_completed(jobs):
            report(*job.result())


def count(label, root, code):
    good = bad = 0
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name')}"
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is not None:
            failed.append(name)
            reasons[name] = wrong.get("message", "") or (wrong.text or "")
            bad += 1
        elif case.find("skipped") is not None:
            why = case.find("skipped").get("message", "")
            if why == NOT_KAFKA:
                continue
            skip(f"{label} {name}" if label.startswith("newest") else name, why)
            if CI and not why.startswith(("needs root", "needs PostgreSQL")) and "make test-versions" not in why:
                failed.append(f"{name} was skipped, which CI does not allow")
        else:
            ok()
            good += 1
    if code not in (0, 5) and not bad:  # 5: nothing matched
        failed.append(f"{label}: pytest ended with {code}")
        bad += 1
    return good, bad


def main():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    begin = time.monotonic()
    if not os.environ.get("SEED"):
        import random
        os.environ["SEED"] = str(random.SystemRandom().randrange(1, 10**6))
    print(f"SEED={os.environ['SEED']}" + (f" T={PATTERN}" if PATTERN else ""), flush=True)
    scratch.atexit.register(scratch.clean_up)
    if "versions" in sys.argv[1:]:
        if build():
            versions()
    elif build():
        broker()
        cmocka("unit", "release")
        cmocka("contract", "release")
        checks()
        cmocka("unit", "asan")
        fuzz_seeds()
        head("unit tests in Python")
        report(*pytest("unit", "tests/unit"))
        integration()
    if skipped:
        print("\nskipped:")
        for line in skipped:
            print("  " + line)
    if failed:
        print("\nfailed:")
        for line in failed:
            print("  " + line)
            for reason in reasons.get(line, "").strip().splitlines()[:30]:  # whoever sees only the end of this needs it
                print("     " + reason[:300])
        print(f"repeat the random parts with SEED={os.environ['SEED']}")
    print(f"\n{time.monotonic() - begin:.0f} s", flush=True)
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
