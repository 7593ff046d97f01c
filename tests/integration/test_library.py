"""The library for other programs as make install puts it in place, its examples, and the reader that needs no library."""
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest

from tests.support import scratch

EXAMPLES = os.path.join(scratch.ROOT, "docs/examples")
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-missing-field-initializers"]


def fnv64(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


class Bus:
    """A directory whose shared memory is found as everybody finds it: by the path."""

    def __init__(self):
        self.path = os.path.join(scratch.directory("spate-l-"), "bus")
        self.hot = f"/dev/shm/spate-{os.getuid()}-{fnv64(os.fsencode(os.path.realpath(self.path))):016x}"
        scratch.at_end(self.reboot)

    def reboot(self):
        """As if the machine had been switched off."""
        shutil.rmtree(self.hot, ignore_errors=True)


@pytest.fixture
def bus():
    made = Bus()
    yield made
    made.reboot()


class Installed:
    def __init__(self, root):
        self.root, self.prefix = root, os.path.join(root, "usr")
        scratch.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, "install", f"DESTDIR={root}", "PREFIX=/usr"], timeout=300)
        self.env = {**os.environ, "PKG_CONFIG_PATH": f"{self.prefix}/lib/pkgconfig", "PKG_CONFIG_SYSROOT_DIR": root,
                    "LD_LIBRARY_PATH": f"{self.prefix}/lib"}

    def flags(self, *which):
        return scratch.run(["pkg-config", *which, "spate-bus"], env=self.env).stdout.split()

    def compile(self, name, *compiler, source=None, libs=("--libs",), more=()):
        out = os.path.join(self.root, name)
        scratch.run([*compiler, source or os.path.join(EXAMPLES, name.split("-")[0] + ".c"), "-o", out, *self.flags("--cflags"), *self.flags(*libs), *more],
                    env=self.env)
        return out


@pytest.fixture(scope="module")
def installed():
    return Installed(scratch.directory("spate-inst-"))


@pytest.fixture(scope="module")
def reader(installed):
    return installed.compile("reader", "cc", "-std=c11", *STRICT)


@pytest.fixture(scope="module")
def writer(installed):
    return installed.compile("writer", "cc", "-std=c11", *STRICT)


@pytest.fixture(scope="module")
def talk():
    path = os.path.join("build", "release", "tests", "support", "library_talk")
    scratch.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, path], timeout=300)
    return os.path.join(scratch.ROOT, path)


class Following:
    """A program that prints one line for each record, until it is closed."""

    def __init__(self, argv, env=None):
        self.out = os.path.join(scratch.directory("spate-f-"), "out")
        self.argv = argv
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, preexec_fn=scratch.child_setup())
        scratch.at_end(self.close)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def lines(self):
        with open(self.out, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().split("\n")[:-1]  # whole ones

    def wait(self, condition, what, seconds=40):
        def look():
            lines = self.lines()
            if self.process.poll() is not None:
                raise scratch.Failure(f"{self.argv[:3]} ended before {what}: {lines[-2:]}")
            return condition(lines) and lines

        return scratch.until(look, lambda: f"{what}: {len(self.lines())} lines, {[line[:200] for line in self.lines()[-2:]]}", seconds)


def python_reader(bus, topic, *more):
    return Following([sys.executable, os.path.join(EXAMPLES, "bus_reader.py"), bus.path, topic, *more])


def as_c(line):
    """A line of the Python reader as the C reader writes it."""
    m = json.loads(line)
    pos, after = m["pos"][6:], m["next"][6:]
    return f"{pos} {m['value']}" if "value" in m else f"lost: {pos} {after}"


def test_the_examples_are_built_by_each_compiler_and_understand_each_other(installed, reader, writer, bus):
    """Shared and static, C and C++."""
    readers = [reader, installed.compile("reader-static", "cc", libs=("--static", "--libs"), more=["-static", "-pthread"])]
    writers = [writer]
    for compiler, language in (("clang", "c"), ("g++", "c++")):
        if shutil.which(compiler):
            readers.append(installed.compile(f"reader-{compiler}", compiler, "-x", language, *STRICT))
            writers.append(installed.compile(f"writer-{compiler}", compiler, "-x", language, *STRICT))
    said = [f"{os.path.basename(program)} says {i}" for program in writers for i in range(3)]
    for i, program in enumerate(writers):
        assert subprocess.run([program, bus.path, "notes"], input="\n".join(said[3 * i:3 * i + 3]).encode(), env=installed.env).returncode == 0
    for program in readers:
        following = Following([program, bus.path, "notes"], installed.env)
        following.wait(lambda lines: [line[17:] for line in lines] == said, f"{program} reads {said}")
        following.close()


def test_nothing_but_the_interface_can_be_seen(installed):
    header = open(f"{installed.prefix}/include/spate/bus.h").read()
    declared = set(re.findall(r"^SPATEBUS_API [^;]*?\b(spatebus_\w+)\(", header, re.M))
    shared = scratch.run(["nm", "-D", "--defined-only", f"{installed.prefix}/lib/libspatebus.so"]).stdout
    static = scratch.run(["nm", "-g", "--defined-only", f"{installed.prefix}/lib/libspatebus.a"]).stdout
    assert len(declared) > 20
    assert set(re.findall(r" T (\w+)@@SPATEBUS_1$", shared, re.M)) == declared
    assert set(re.findall(r" [A-Z] (\w+)$", static, re.M)) == declared
    assert {line.split()[-1] for line in shared.splitlines()} == {f"{name}@@SPATEBUS_1" for name in declared} | {"SPATEBUS_1"}
    assert "libspatebus.so.1" in scratch.run(["readelf", "-d", f"{installed.prefix}/lib/libspatebus.so"]).stdout
    manual = open(f"{installed.prefix}/share/man/man3/spatebus.3").read().replace("\\", "")
    assert sorted(name for name in declared if name not in manual) == []
    version = scratch.run([f"{installed.prefix}/bin/spate", "--version"]).stdout
    assert scratch.run(["pkg-config", "--modversion", "spate-bus"], env=installed.env).stdout.strip() in version
    loaded = f"import ctypes; lib = ctypes.CDLL({installed.prefix + '/lib/libspatebus.so.1'!r}); lib.spatebus_version.restype = ctypes.c_char_p; print(lib.spatebus_version().decode())"
    assert scratch.run([sys.executable, "-c", loaded]).stdout.strip() in version


def test_many_programs_at_once_keep_one_order(installed, reader, writer, bus):
    lines = 2000
    writing = [subprocess.Popen([writer, bus.path, "notes"], stdin=subprocess.PIPE, env=installed.env, text=True, preexec_fn=scratch.child_setup()) for _ in range(3)]
    scratch.until(lambda: os.path.exists(os.path.join(bus.path, "notes", "manifest")), "there is a topic")
    following = [Following([reader, bus.path, "notes"], installed.env), Following([reader, bus.path, "notes"], installed.env), python_reader(bus, "notes")]
    for number in range(lines):
        for who, process in enumerate(writing):
            process.stdin.write(f"{who} {number}\n")
    for process in writing:
        process.stdin.close()
        assert process.wait(60) == 0
    got = [each.wait(lambda seen: len(seen) >= 3 * lines, "all lines of all writers") for each in following]
    got[2] = [as_c(line) for line in got[2]]
    assert got[0] == got[1] == got[2]
    for who in range(3):
        assert [line.split()[2] for line in got[0] if line.split()[1] == str(who)] == [str(number) for number in range(lines)]


def test_other_programs_stand_beside_a_connector(installed, reader, writer, world):
    """The stream as bytes, as tap shows it; and a topic of somebody else's on the same bus."""
    hot = world.bus["local"].pop("hot")
    here = Bus()
    here.path = world.bus["local"]["path"]
    here.hot = f"/dev/shm/spate-{os.getuid()}-{fnv64(os.fsencode(os.path.realpath(here.path))):016x}"
    world.src("CREATE TABLE t (id int PRIMARY KEY)")
    world.connector()
    following = Following([reader, here.path, world.stream], installed.env)
    python = python_reader(here, world.stream)
    assert subprocess.run([writer, here.path, "notes"], input=b"a note\n", env=installed.env).returncode == 0
    world.src("INSERT INTO t SELECT generate_series(1, 200)")
    until = world.emit_marker()
    seen = [json.dumps(m) for m in world.messages(until_end=until)]

    def tapped(lines):
        return [json.dumps(json.loads(line.split(" ", 1)[1])) for line in lines][:len(seen)]

    following.wait(lambda lines: tapped(lines) == seen, "the C reader has what tap shows")
    python.wait(lambda lines: tapped(map(as_c, lines)) == seen, "the Python reader has what tap shows")
    assert world.connector_process.stop() == 0
    here.reboot()
    assert os.path.isdir(hot)


class Talker:
    """library_talk write: lines go in, and it says which are durable."""

    def __init__(self, talk, bus, topic="t", retention=0, *more):
        self.argv = [talk, "write", bus.path, topic, str(1 << 20), str(retention), *more]
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        bufsize=1, preexec_fn=scratch.child_setup())
        assert self.process.stdout.readline() == "open\n"

    def say(self, *lines):
        for line in lines:
            self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self):
        out = self.process.communicate()[0]
        assert self.process.returncode == 0, out[-500:]

    def kill(self):
        """How many of its lines it had said to be durable."""
        self.process.kill()
        told = [int(line.split()[1]) for line in self.process.communicate()[0].splitlines() if line.startswith("durable ")]
        assert told == list(range(1, len(told) + 1))
        return len(told)


def bodies(lines):
    return [line.split(" ", 1)[1] for line in lines]


def test_L3_the_python_reader_sees_what_the_library_sees_over_kills_rolls_and_recoveries(talk, bus, seed):
    """Both follow all the time; then both once more from the oldest. Each durable line is there once, in order."""
    rng, certain, everything = random.Random(seed), [], []
    following = None
    for turn in range(8):
        talker = Talker(talk, bus)
        if not following:
            following = [Following([talk, "read", bus.path, "t", "0"]), python_reader(bus, "t")]
        lines = [f"{turn}.{i} " + chr(97 + i % 26) * rng.choice((3, 100, 5000, 60000)) for i in range(rng.randrange(20, 45))]
        talker.say(*lines)
        everything += lines
        if turn % 4 == 1:
            talker.end()
            certain += lines
        else:
            certain += lines[:talker.kill()]
        if turn in (3, 5):
            bus.reboot()
    talker = Talker(talk, bus)
    talker.say("the end")
    talker.end()
    live = [each.wait(lambda lines: lines and "the end" in lines[-1], "the end is read") for each in following]
    live[1] = [as_c(line) for line in live[1]]
    assert live[0] == live[1]
    anew = [Following([talk, "read", bus.path, "t", "0"]), python_reader(bus, "t")]
    for each, of in zip(anew, (lambda line: line, as_c)):
        assert [of(line) for line in each.wait(lambda lines: lines and "the end" in lines[-1], "the end is read anew")] == live[0]
    read = bodies(live[0])
    assert len(set(read)) == len(read)
    assert [line for line in everything + ["the end"] if line in set(read)] == read
    assert [line for line in certain if line not in set(read)] == []
    # Somewhere in the middle, and a place that is no record's.
    middle = live[0][len(live[0]) // 2].split()[0]
    python_reader(bus, "t", middle).wait(lambda lines: lines and as_c(lines[-1]) == live[0][-1] and as_c(lines[0]).startswith(middle), "from the middle on")
    lost = python_reader(bus, "t", f"{int(middle, 16) + 8:x}")
    assert lost.process.wait(20) == 1
    assert "is no record's position" in lost.lines()[-1]


def both_from(talk, bus, position, last, *see):
    """What both readers show from a position up to the line `last`."""
    pair = [Following([talk, "read", bus.path, "t", position, *see[:1]]), python_reader(bus, "t", position if position != "0" else "oldest", *see)]
    seen = [each.wait(lambda lines: lines and last in lines[-1], f"{last!r} is read from {position}") for each in pair]
    for each in pair:
        each.close()
    return seen[0], [as_c(line) for line in seen[1]]


def test_L6_a_volatile_topic_has_the_same_gap_for_both(talk, bus):
    """Its last two segments stay; after a reboot nothing does."""
    talker = Talker(talk, bus, "t", 0, "volatile")
    talker.say("first")
    first = both_from(talk, bus, "0", "first", "tip")[0][0].split()[0]
    talker.say(*["x" * 50000] * 100, "last")
    c, python = both_from(talk, bus, first, "last", "tip")
    assert c == python
    assert c[0].startswith(f"lost: {first} ") and len(c) < 100
    oldest = c[0].split()[2]
    assert c[1].startswith(oldest)
    c, python = both_from(talk, bus, oldest, "last", "tip")
    assert c == python and not c[0].startswith("lost")
    end = c[-1].split()[0]
    talker.kill()
    bus.reboot()
    talker = Talker(talk, bus, "t", 0, "volatile")
    talker.say("anew")
    c, python = both_from(talk, bus, end, "anew", "tip")
    assert c == python
    assert c[0].startswith(f"lost: {end} ") and len(c) == 2
    talker.kill()


def test_L6_what_retention_took_is_the_same_gap_for_both(talk, bus):
    """Three segments of a megabyte stay, of ten; both report exactly the same stretch, and the rest is whole."""
    talker = Talker(talk, bus, "t", 3 << 20)
    talker.say("first")
    first = both_from(talk, bus, "0", "first")[0][0].split()[0]
    following = [Following([talk, "read", bus.path, "t", first]), python_reader(bus, "t", first)]
    lines = [f"{i} " + "x" * 50000 for i in range(200)]
    talker.say(*lines, "last")
    for each in following:
        each.wait(lambda seen: seen and "last" in seen[-1], "who follows misses nothing or says what")
    archive = os.path.join(bus.path, "t")
    scratch.until(lambda: len([name for name in os.listdir(archive) if name.endswith(".seg")]) <= 4, lambda: f"retention: {os.listdir(archive)}")
    talker.end()
    c, python = both_from(talk, bus, first, "last")
    assert c == python
    assert c[0].startswith(f"lost: {first} ") and c[1].startswith(c[0].split()[2])
    assert bodies(c[1:]) == (lines + ["last"])[-(len(c) - 1):]
    assert 20 < len(c) < 150


def test_a_value_that_no_segment_takes_is_read_by_both(talk, bus):
    """Spilled to a file of its own; over a kill as well. Damage is said, and where."""
    talker = Talker(talk, bus)
    talker.say("small", "*3000000", "*700000", "last")
    c, python = both_from(talk, bus, "0", "last")
    assert c == python
    assert [len(body) for body in bodies(c)] == [5, 3000000, 700000, 4]
    spilled = c[1].split()[0]
    scratch.until(lambda: talker.process.poll() is None and os.path.exists(os.path.join(bus.path, "t", f"{spilled}.spill")), "its file is there")
    talker.kill()
    assert both_from(talk, bus, "0", "last") == (c, c)
    bus.reboot()
    assert both_from(talk, bus, "0", "last") == (c, c)
    with open(os.path.join(bus.path, "t", f"{spilled}.spill"), "r+b") as file:
        file.seek(1234567)
        file.write(b"!")
    for reader in (Following([talk, "read", bus.path, "t", spilled]), python_reader(bus, "t", spilled)):
        assert reader.process.wait(20) == 1
        assert "damaged" in reader.lines()[-1] and spilled in reader.lines()[-1]


def test_L6_a_reader_that_is_slower_than_the_writer_hears_of_each_loss(talk, bus):
    """Where a number is missing there is a gap, and nowhere else; the positions of a gap are where the log was left and entered."""
    talker = Talker(talk, bus, "t", 0, "volatile")
    talker.say("0 " + "x" * 1500)
    following = python_reader(bus, "t", "oldest", "tip")
    following.wait(lambda lines: lines, "it follows")
    for number in range(1, 12000):
        talker.say(f"{number} " + "x" * 1500, *["*300000"] * (number % 50 == 0))  # some in files of their own
    talker.say("12000")
    lines = following.wait(lambda lines: lines and json.loads(lines[-1]).get("value") == "12000", "the end is read")
    number, gap, left, gaps = -1, False, None, 0
    for line in map(json.loads, lines):
        assert left is None or left == line["pos"]
        left = None if "value" in line else line["next"]
        gap, gaps = gap or "value" not in line, gaps + ("value" not in line)
        if line.get("value", "-")[0].isdigit():
            said = int(line["value"].split()[0])
            assert said == number + 1 or gap and said > number, (number, said)
            number, gap = said, False
    assert gaps > 0
    talker.kill()


def test_who_only_reads_hears_as_well_that_the_bus_was_removed(talk, bus):
    """Nobody writes any more: there is no other word of it."""
    talker = Talker(talk, bus)
    talker.say("a line")
    talker.end()
    following = [Following([talk, "read", bus.path, "t", "0"]), python_reader(bus, "t")]
    for each in following:
        each.wait(lambda lines: lines, "the line is read")
    shutil.rmtree(bus.path)
    for each in following:
        assert each.process.wait(20) == 1
        assert "removed or moved" in each.lines()[-1]


def test_a_reader_may_begin_now(talk, bus):
    talker = Talker(talk, bus)
    talker.say("old", "older")
    both_from(talk, bus, "0", "older")
    following, number = python_reader(bus, "t", "now"), itertools.count()

    def tick():
        talker.say(f"tick {next(number)}")
        return following.lines()

    lines = scratch.until(tick, "what comes is shown", every=0.05)
    assert all(re.fullmatch(r"tick \d+", json.loads(line)["value"]) for line in lines)
    talker.kill()
