"""What is said on `<connector>._control`, and the desk of a connector by itself."""
import json
import os
import subprocess
import threading
import uuid

from tests.support import scratch

_built = set()


def tool(name):
    path = os.path.join("build", os.environ.get("SPATE_TOOLS", "release"), "tests", "support", name)
    if name not in _built:
        subprocess.run(["make", "-s", "--no-print-directory", "-C", scratch.ROOT, "VARIANT=" + path.split("/")[1], path], check=True)
        _built.add(name)
    return os.path.join(scratch.ROOT, path)


class Lines:
    """A child that is told lines and says lines."""

    def __init__(self, argv, log=None, uid=None, gid=None):
        self.said, self.lock = [], threading.Lock()
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "ab") if log else None,
                                        preexec_fn=scratch.child_setup(uid, gid), cwd="/")
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            try:
                self.said.append(json.loads(line))
            except (ValueError, RecursionError):
                self.said.append({"op": None, "line": line})

    def tell(self, line):
        with self.lock:
            self.process.stdin.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
            self.process.stdin.flush()

    def wait(self, condition, what, seconds=10, after=0):
        """The first thing said, from number `after` on, for which the condition holds."""
        def look():
            if self.process.poll() is not None:
                raise scratch.Failure(f"{self.process.args} ended")
            return next((said for said in self.said[after:] if condition(said)), None)
        return scratch.until(look, lambda: f"{what}; said so far: {self.said[-6:]}", seconds)

    def close(self):
        self.process.stdin.close()
        code = self.process.wait(10)
        self.thread.join(5)
        return code


class Control(Lines):
    """The topic: everything on it, and a way to write."""

    def __init__(self, world, uid=None, gid=None):
        if world.kafka:
            argv = [f"kafka:{world.kafka.brokers}", f"{world.stream}._control"]
        else:
            argv = [world.bus["local"]["path"], world.bus["local"]["hot"], f"{world.stream}._control"]
        super().__init__([tool("bus_talk"), *argv], uid=uid, gid=gid)

    def ask(self, *tables, request=None, sink="team", at_us=None, **more):
        """Writes a request; returns its id."""
        request = request or str(uuid.uuid4())
        line = {"spate": 1, "op": "request", "request": request, "sink": sink, "tables": list(tables), **more}
        self.tell((f"@{at_us} " if at_us else "") + json.dumps(line))
        return request

    def about(self, request, op, request_op="request", **more):
        self.tell(json.dumps({"spate": 1, "op": op, "request": request, "sink": "team", **more}))

    def answer(self, request, *ops, seconds=10, after=0, **fields):
        return self.wait(lambda said: said.get("request") == request and said.get("op") in ops and "to" in said
                         and all(said.get(k) == v for k, v in fields.items()), f"{ops} {fields} to {request}", seconds, after)

    def answers(self, request):
        return [said for said in self.said if said.get("request") == request and said.get("op") in ("accepted", "refused", "progress")]


class Desk(Lines):
    """tests/support/connector_desk.c: says what it would hand to the data plane."""

    def __init__(self, world, session=1, **changes):
        super().__init__([tool("connector_desk"), world.connector_file(**changes)], os.path.join(world.dir, "desk.log"))
        if session:
            self.session(session)

    def session(self, number, epoch=1):
        self.tell(f"session\t{number}\t{epoch}")

    def order(self, kind, request=None, seconds=10, after=0):
        return self.wait(lambda said: said["kind"] == kind and said["request"] == request, f"{kind} {request}", seconds, after)

    def orders(self, request):
        return [said for said in self.said if said["request"] == request]


def table(name, schema="public", **more):
    return {"schema": schema, "table": name, **more}


def condition(column, op, value):
    return {"column": column, "op": op, "value": value}
