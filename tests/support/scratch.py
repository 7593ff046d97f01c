"""Scratch directories, child processes that die with us, and waiting for conditions.

Everything that a run makes is registered here and removed on success, failure, Ctrl-C and SIGTERM. Should the
run itself be killed, its children get a signal from the kernel (PR_SET_PDEATHSIG).
"""
import atexit
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_cleanups = []
leave_running = False  # the demo's KEEP=1: children and scratch directories outlive us
_lock = threading.RLock()


class Failure(Exception):
    """A condition that did not come true; the text says which, and what was seen instead."""


def at_end(function):
    """Registers a clean-up; they run last in, first out."""
    with _lock:
        _cleanups.append(function)
    return function


def abandon():
    """Forgets all clean-ups: what is there stays."""
    with _lock:
        _cleanups.clear()


def forget(function):
    with _lock:
        if function in _cleanups:
            _cleanups.remove(function)


def clean_up():
    while True:
        with _lock:
            if not _cleanups:
                return
            function = _cleanups.pop()
        try:
            function()
        except Exception as error:  # one failed clean-up must not keep the others from running
            print(f"clean-up: {error}", file=sys.stderr)


def _on_term(signum, _frame):
    raise SystemExit(128 + signum)


def install_handlers():
    """For the programs of a run: clean up however it ends."""
    atexit.register(clean_up)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_term)


def directory(prefix="spate-"):
    """A scratch directory that other users may walk through, short enough for socket paths (107 bytes)."""
    base = tempfile.gettempdir()
    if len(base) > 60 or not others_may_enter(base):
        base = "/tmp"
    path = tempfile.mkdtemp(prefix=prefix, dir=base)
    os.chmod(path, 0o755)
    at_end(lambda: os.environ.get("KEEP_SCRATCH") or shutil.rmtree(path, ignore_errors=True))
    return path


def others_may_enter(path):
    while True:
        if not os.stat(path).st_mode & 0o001:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def hot_directory(room=0):
    """A directory for the hot part of a bus, removed at the end: in shared memory where that has room (containers
    often have 64 MB), else on the disk, which is slower and as right."""
    base = None
    if os.access("/dev/shm", os.W_OK):
        state = os.statvfs("/dev/shm")
        base = "/dev/shm" if state.f_bavail * state.f_frsize >= room else None
    path = tempfile.mkdtemp(prefix="spate-run-", dir=base)
    at_end(lambda: shutil.rmtree(path, ignore_errors=True))
    return path


def unprivileged():
    """(uid, gid, name) under which a Postgres server may run: it refuses root."""
    if os.getuid() != 0:
        return os.getuid(), os.getgid(), pwd.getpwuid(os.getuid()).pw_name
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid, name
        except KeyError:
            pass
    raise Failure("running as root, and there is neither a user postgres nor a user nobody to run servers as")


def child_setup(uid=None, gid=None, death_signal=signal.SIGKILL):
    """What a child does between fork and exec. The death signal comes after setuid, which clears it."""

    def setup():
        if uid is not None and os.getuid() == 0 and uid != 0:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        if not leave_running:
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    return setup


def run(argv, timeout=60, check=True, uid=None, gid=None, env=None, **more):
    """Runs a program to its end and returns it with its output as text."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
                          env=env, preexec_fn=child_setup(uid, gid), cwd="/" if uid is not None else None, **more)
    if check and done.returncode:
        raise Failure(f"{' '.join(argv)} exited with {done.returncode}:\n{done.stdout}")
    return done


def maven_error(output):
    """The line that says why; Maven writes a page around it."""
    lines = [line for line in output.splitlines() if "[ERROR]" in line]
    return (lines or output.splitlines() or ["it said nothing"])[0][:600]


def run_with_input(argv, text, timeout=60):
    """Runs a program that reads `text` (str or bytes)."""
    done = subprocess.run(argv, input=text if isinstance(text, bytes) else text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=timeout, preexec_fn=child_setup())
    if done.returncode:
        raise Failure(f"{' '.join(argv)} exited with {done.returncode}:\n{done.stdout.decode(errors='replace')}")
    return done


def until(condition, what, seconds=30.0, every=0.02):
    """Waits until condition() returns something true, and returns that. A deadline, never a fixed sleep."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise Failure(f"after {seconds:g} s still not: {what() if callable(what) else what}")
        time.sleep(every)
