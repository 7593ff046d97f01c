"""Where there is no room: shared memory and disk are full, values are large. An error that names path and bytes, and it
heals without a restart (LOCALBUS 8, L11)."""
import os
import re
import subprocess

import pytest

from tests.support import scratch
from tests.support.world import MemoryWatch

MB = 1 << 20
SIZE = int(os.environ.get("SPILL_MB", "300" if os.environ.get("SPATE_LONG") else "24"))
needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


def small(path, size):
    """A file system of so many megabytes."""
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "spate-test", path], check=True)
    scratch.at_end(lambda: subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL, check=False))
    return path


def resize(path, size):
    subprocess.run(["mount", "-o", f"remount,size={size}m", path], check=True)


def fill(path, leave=0):
    """Somebody else takes what room there is, but for `leave` bytes."""
    state = os.statvfs(path)
    name = os.path.join(path, "somebody-else's")
    with open(name, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, state.f_bavail * state.f_frsize - leave))
    return name


def used(path):
    state = os.statvfs(path)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def findings(world, *arguments):
    _, out, _ = world.run("check", "-c", world.connector_file(), *arguments)
    return out


def spills(world):
    folder = os.path.join(world.bus["local"]["path"], world.stream)
    return [name for name in os.listdir(folder) if name.endswith(".spill")]


def go(world, rows=30000, width=400):
    world.src(f"INSERT INTO t (v) SELECT repeat('x', {width}) FROM generate_series(1, {rows})")


COUNT, SUMS = "SELECT count(*) FROM %s", "SELECT count(*), sum(id), sum(length(v)) FROM %s"


def equal(world, sink, seconds=60, query=SUMS):
    world.wait_rows(query % "team.t", world.src(query % "t"), seconds, sink)


@needs_mounts
def test_L11_a_container_s_shared_memory_is_enough(world):
    """64 MB, and nothing set: the connector, all its topics, a load, a sink that keeps up, one that does not, a large
    value; `spate check` has nothing to say about it."""
    shm = small(os.path.join(world.dir, "shm"), 64)
    world.bus["local"].update(hot=os.path.join(shm, "spate"))
    del world.bus["local"]["segment_bytes"]
    world.src("CREATE TABLE t (id serial PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    go(world)
    assert "shared memory" not in findings(world)
    connector = world.connector()
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
    slow = world.sink(world.sink_file("slow", {"t": {"from": "public.t"}}), name="slow")
    equal(world, sink)
    assert "shared memory" not in findings(world)
    slow.kill()
    most = 0
    for _ in range(2):
        go(world)
        equal(world, sink)
        most = max(most, used(shm))
    world.src(f"INSERT INTO t (v) VALUES (repeat('large', {20 * MB // 5}))")
    equal(world, sink)
    assert spills(world)
    slow = world.sink(world.sink_file("slow", {"t": {"from": "public.t"}}), name="slow")
    world.wait_rows(SUMS % "slow.t", world.src(SUMS % "t"), 60, slow)
    most = max(most, used(shm))
    print(f"   of 64 MB of shared memory {most / MB:.0f} were taken")
    assert 1 * MB < most < 60 * MB
    assert "bus-hot-full" not in connector.text() or "shared memory is full" not in connector.text()
    assert connector.running() and sink.running()


@needs_mounts
def test_L11_what_shared_memory_is_needed_is_said(world):
    shm = small(os.path.join(world.dir, "shm"), 64)
    world.bus["local"].update(hot=os.path.join(shm, "spate"), segment_bytes="64MiB")
    out = findings(world)
    # Four segments of each of four topics.
    assert re.search(r"shared memory has room for 6[0-4] MiB at " + re.escape(shm), out), out
    assert re.search(r"may take 1024 MiB more", out) and "bus.local.segment_bytes" in out, out


@needs_mounts
def test_L11_full_shared_memory_heals(world):
    """Somebody else fills it up. Reading stops, nothing dies; with room again it goes on by itself."""
    shm = small(os.path.join(world.dir, "shm"), 64)
    world.bus["local"].update(hot=os.path.join(shm, "spate"), segment_bytes="2MiB")
    world.src("CREATE TABLE t (id serial PRIMARY KEY, v text)")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
    go(world, 100)
    equal(world, sink)
    other = fill(shm)
    go(world)
    found = connector.wait_log(r'event=bus-hot-full [^\n]*path="?([^\s"]+)[^\n]*missing_bytes=(\d+)[^\n]*')
    assert found.group(1) == os.path.join(shm, "spate") and 1 * MB < int(found.group(2)) <= 2 * MB + 4096, found.group(0)
    assert "bus.local.hot" in found.group(0)
    go(world, 10)
    os.unlink(other)
    equal(world, sink)
    assert connector.running() and sink.running()
    assert connector.text().count("event=streaming") == 1, "it went on, and did not begin anew"


@needs_mounts
@pytest.mark.parametrize("large", [False, True], ids=["archive", "spill"])
def test_L11_a_full_disk_heals(world, large):
    """The disk of the bus has no room for the archive, or for a value that needs a file of its own."""
    disk = small(os.path.join(world.dir, "disk"), 64)
    world.bus["local"].update(path=os.path.join(disk, "bus"), segment_bytes="1MiB")
    world.src("CREATE TABLE t (id serial PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
    go(world, 100)
    equal(world, sink)
    other = fill(disk, 2 * MB if large else 0)
    if large:
        world.src(f"INSERT INTO t (v) VALUES (repeat('large', {10 * MB // 5}))")
    else:
        go(world)
    found = connector.wait_log(r'event=bus-disk-full [^\n]*path="?([^\s"]+)[^\n]*missing_bytes=(\d+)[^\n]*')
    assert found.group(1) == os.path.join(disk, "bus") and "remedy" in found.group(0), found.group(0)
    if large:
        assert 7 * MB < int(found.group(2)) < 10 * MB
    else:
        assert int(found.group(2)) > 0
    os.unlink(other)
    equal(world, sink)
    assert connector.running() and sink.running()
    assert connector.text().count("event=streaming") == 1
    assert len(spills(world)) == large
    world.check_bus(sample=100)


def test_a_value_of_hundreds_of_megabytes(world):
    """In the stream, and in a copy that a new sink asks for; equal at the end, and what it cost is said."""
    world.src("CREATE TABLE t (id serial PRIMARY KEY, small int, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL")
    connector = world.connector()
    sink = world.sink(world.sink_file("team", {"t": {"from": "public.t"}}))
    go(world, 10)
    equal(world, sink)
    watch, sink_watch = MemoryWatch(lambda: connector), MemoryWatch(lambda: sink)
    world.src(f"INSERT INTO t (v) SELECT repeat(md5('one'), {SIZE * MB // 32}); INSERT INTO t (v) VALUES ('behind it')")
    query = "SELECT count(*), sum(id), sum(length(v)), min(md5(v)), max(md5(v)) FROM %s"
    equal(world, sink, 120, query)
    world.src("UPDATE t SET small = id")
    equal(world, sink, 120, "SELECT sum(small), count(*), sum(length(v)) FROM %s")
    peak, sink_peak = watch.stop() // 1024, sink_watch.stop() // 1024
    after = connector.private_kb() // 1024
    print(f"   a value of {SIZE} MB: private memory at most: connector {peak} MB (afterwards {after} MB), sink {sink_peak} MB")
    assert len(spills(world)) == 1
    assert peak < 4 * SIZE + 16 and sink_peak < 3 * SIZE + 16 and after < 2 * SIZE + 16
    late = world.sink(world.sink_file("late", {"t": {"from": "public.t"}}), name="late")
    world.wait_rows(query % "late.t", world.src(query % "t"), 120, late)
    if SIZE < 100:
        assert world.check_bus(sample=10)["ops"]["insert"] == 12
