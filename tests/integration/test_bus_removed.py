"""What somebody removes or cuts under a running connector, sink and tap: words, no crash, nothing lost that was
acknowledged; what the words say to do works."""
import glob
import os
import shutil

import pytest

from tests.support import scratch


class Town:
    """A connector, a sink and a tap, each started again when it ended, as a supervisor does."""

    def __init__(self, world):
        self.world, self.ended, self.rows = world, [], 0
        world.src("CREATE TABLE t (id serial PRIMARY KEY, v text)")
        self.file = world.connector_file()
        self.sink_file = world.sink_file("team", {"t": {"from": "public.t"}})
        self.start = {"connector": lambda: world.connector(ready=False), "sink": lambda: world.sink(self.sink_file),
                      "tap": lambda: world.spawn("tap", "tap", "-c", self.file, stdout=open(os.devnull, "wb"))}
        self.running = {"connector": world.connector()}
        for name in ("sink", "tap"):
            self.running[name] = self.start[name]()
        self.go(300)
        self.equal()

    def go(self, count):
        self.world.src("INSERT INTO t (v) SELECT repeat('x', 500) FROM generate_series(1, %s)", [count])

    def look(self):
        """Notes who ended, and never by a signal; starts him again."""
        for name, process in self.running.items():
            if not process.running():
                code = process.process.returncode
                assert code >= 0, f"{name} died of signal {-code}:\n{process.tail()}"
                self.ended.append((name, code, process.text()))
                self.running[name] = self.start[name]()

    def stop(self):
        for process in self.running.values():
            if process.running():
                process.kill()

    def equal(self, seconds=60):
        def same():
            self.look()
            want = self.world.src("SELECT count(*), sum(id) FROM t")
            try:
                return self.world.tgt("SELECT count(*), sum(id) FROM team.t") == want
            except Exception:  # the sink has not made it yet
                return False
        scratch.until(same, lambda: f"source and target are equal; ended: {[each[:2] for each in self.ended]}" + self.world.logs(), seconds, 0.1)

    def said(self, word, name=None):
        return any(word in process.text() for process in self.world.processes if name in (None, process.name))


@pytest.fixture
def town(world):
    town = Town(world)
    yield town
    town.stop()


def test_the_shared_memory_is_removed_under_all_of_them(town):
    """All that is durable is on the disk; the rest is sent again by the source."""
    for _ in range(2):
        shutil.rmtree(town.world.hot)
        town.go(300)
        town.equal()
    assert town.said("removed or replaced"), town.world.logs()


def test_a_segment_in_shared_memory_is_cut_under_all_of_them(town):
    world = town.world
    newest = max(glob.glob(os.path.join(world.hot, "shop", "*.seg")))
    os.truncate(newest, 5000)
    town.go(300)

    def told():
        town.look()
        return any(name == "connector" and "was cut" in text for name, _, text in town.ended)
    scratch.until(told, lambda: "the connector says that it was cut" + world.logs(), 30, 0.1)
    town.stop()
    text = next(text for name, _, text in town.ended if name == "connector" and "was cut" in text)
    assert "Stop all that uses this bus and remove the topic's directory in shared memory" in text
    shutil.rmtree(os.path.join(world.hot, "shop"))
    town.running = {name: start() for name, start in town.start.items()}
    town.equal()


def test_the_bus_is_removed_under_all_of_them(town):
    """A new log; the connector goes on where Postgres was told last, and the sink asks for what it missed."""
    world = town.world
    shutil.rmtree(world.bus["local"]["path"])
    town.go(300)

    def told():
        town.look()
        return town.said("removed or moved", "connector")
    scratch.until(told, lambda: "the connector says that it was removed" + world.logs(), 30, 0.1)
    town.go(300)
    town.equal()
