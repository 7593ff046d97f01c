#!/usr/bin/env python3
"""Follows a topic of the local bus with nothing of spate's: prints one line of JSON for each record, and for each gap.

    bus_reader.py BUS TOPIC [oldest|now|POSITION [durable|tip [HOT]]]

Shows what is durable, or at the tip (and on volatile topics) all that is published; docs/local-bus.md has the format. It reads
files, maps only the page of watermarks, writes nothing, and looks again every few milliseconds instead of sleeping in a futex.
Bytes that are not UTF-8 come out as lone surrogates (surrogateescape).
"""
import json
import mmap
import os
import struct
import sys
import time

HEADER, UNIT, COMMIT, PAD, END, SPILL, UNCHECKED = 4096, 64, 2, 3, 4, 1, 32
RECORD = struct.Struct("=QQIIIHBB")  # word, ts_ns, idx, crc, keyhash, keylen, type, flags
TABLE = list(range(256))
for _ in range(8):
    TABLE = [c >> 1 ^ (0x82F63B78 if c & 1 else 0) for c in TABLE]


def crc32c(data, crc=0xFFFFFFFF):
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def opened(dir, name):
    try:
        return os.open(os.path.join(dir, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def whole(dir, name, missing=None):
    fd = opened(dir, name)
    with open(fd if fd is not None else missing or sys.exit(f"{dir}/{name} is missing: not made yet, removed or moved"), "rb") as file:
        return file.read()


def note(dir, name, missing=None):  # lines of "name value", replaced as a whole
    text, _, crc = whole(dir, name, missing).rpartition(b"crc ")
    return dict(line.partition(" ")[::2] for line in text.decode().splitlines()) if crc32c(text) == int(crc or b"0", 16) else sys.exit(f"{name} is damaged")


def good(at, head, data):
    word, ts, idx, crc, keyhash, keylen, kind, flags = head
    fields = struct.pack("=QIIQIHBB", at, word & 0xFFFFFFFF, idx, ts, keyhash, keylen, kind, flags)
    return len(data) == word & 0xFFFFFFFF >= keylen and (flags & UNCHECKED or crc == crc32c(fields + data))


class Topic:
    def __init__(self, bus, name, hot, tip):
        real, derived = os.path.realpath(bus), 0xCBF29CE484222325
        for byte in os.fsencode(real):
            derived = (derived ^ byte) * 0x100000001B3 % 2**64
        self.root = hot or f"/dev/shm/spate-{os.stat(real).st_uid}-{derived:016x}"
        hot or not os.path.isdir(self.root) or os.stat(self.root).st_uid in (0, os.geteuid(), os.stat(real).st_uid) or sys.exit(f"{self.root} is a stranger's")
        self.archive, self.hot, self.tip, self.log, self.ctl = os.path.join(real, name), os.path.join(self.root, name), tip, None, None
        self.look()

    def look(self):
        """The shared memory counts when it is of this boot, and of the manifest's incarnation and generation. True: it came or went."""
        m, meta, was, self.ctl = note(self.archive, "manifest"), note(self.root, "bus.meta", os.devnull), self.ctl, None
        if m.get("spate-local-topic") != "1" or self.log not in (None, m["log"]):
            sys.exit(f"the log at {self.archive} was replaced by another one, or is of another version")
        self.log, self.cap, self.first_kept, self.volatile = m["log"], int(m["cap"]), int(m["first"], 16), m["volatile"] != "0"
        self.tip |= self.volatile
        fd = opened(self.hot, "ctl")
        if fd is not None:  # words of 8 bytes, each loaded whole: magic, generation, cap; first at 256, durable at 384
            ctl = memoryview(mmap.mmap(fd, HEADER, prot=mmap.PROT_READ)).cast("Q")
            os.close(fd)
            ours = whole("/proc/sys/kernel/random", "boot_id").decode().strip(), m["hot"], 0x5350415445430002, int(m["generation"]), self.cap
            if (meta.get("boot"), meta.get("hot"), *ctl[:3]) == ours:
                self.ctl, self.first_kept = ctl, max(self.first_kept, ctl[256 // 8])
        return (was and was[1]) != (self.ctl and self.ctl[1])

    def bases(self):
        return [int(n[:16], 16) for dir in (self.hot, self.archive) if dir == self.archive or self.ctl for n in os.listdir(dir) if n[16:] == ".seg"]

    def segment(self, base):
        """The open file; whether it is the archive's, where only what is final stands. What is durable is there for certain."""
        gone = not self.ctl or base < self.ctl[256 // 8]  # or it is a late writer's that slept, and nobody goes on there
        for dir in (self.archive,) if gone else (self.archive, self.hot) if base + self.cap <= self.ctl[384 // 8] else (self.hot, self.archive):
            fd = opened(dir, f"{base:016x}.seg")
            if fd is not None:
                struct.unpack("=QQQI", os.pread(fd, 28, 0).ljust(28)) == (0x5350415445530001, base, self.cap, UNIT) or sys.exit(f"segment {base:016x} is damaged or foreign")
                self.ctl or os.fdatasync(fd)  # what is only in the page cache is not durable
                return fd, dir == self.archive
        return None, False

    def follow(self, target):
        """Yields (pos, next, ts_us, key, value), of a gap only the first two, and None where there is nothing now."""
        while True:
            base = at = target - target % self.cap  # walked to the target from here: what is no record's place is found out
            fd, archived = self.segment(base)
            if fd is None:
                nearest = min((b for b in self.bases() if b >= base), default=base)
                self.look()  # afterwards: the floor moves before files go
                if target < self.first_kept or nearest == base:  # retention took it, or what held it is gone; or it is not there yet
                    yield (target, self.first_kept) if target < self.first_kept else None
                target = max(target, self.first_kept, nearest)  # bases between may never have come to be
                continue
            while True:
                durable, live, head, data = self.ctl[384 // 8] if self.ctl else 0, self.tip and not archived, (0,) * 8, b""
                if not self.ctl or live or at < durable:
                    for _ in 0, 1:  # once more when it is final: what stands behind the word was written before it
                        head = RECORD.unpack(os.pread(fd, RECORD.size, HEADER + at - base).ljust(RECORD.size, b"\0"))
                state, length, keylen = head[0] >> 56, head[0] & 0xFFFFFFFF, head[5]
                size = {COMMIT: (RECORD.size + length + UNIT - 1) & -UNIT, PAD: length, END: UNIT}.get(state, 0)
                sound = 0 < size <= base + self.cap - at and size % UNIT == 0
                if sound and (state == END and length or state == COMMIT and at >= target):
                    data = os.pread(fd, length, HEADER + at - base + RECORD.size)
                    sound = good(at, head, data)
                if at == base + self.cap or sound and state == END:
                    target = struct.unpack("=Q", data)[0] if data else base + self.cap
                    break
                if not sound:  # the end for now; where nobody writes, a recovery will cut the log here
                    if not live and at < durable or state > END:
                        sys.exit(f"the log at {self.archive} is damaged at {at:016x}")
                    yield None
                    if self.look() or base < self.first_kept or base + self.cap <= durable:  # another generation, or forgotten half written
                        target = max(target, at)
                        break
                    continue
                if state == COMMIT and at >= target:
                    key, value = data[:keylen], data[keylen:]
                    if head[6] == SPILL:  # a value that no segment takes: a file called by the record's position
                        ref, value = struct.unpack("=QII", value), whole(self.hot if self.volatile else self.archive, f"{at:016x}.spill", os.devnull)
                        if not value and (self.look() or at < self.first_kept):
                            break  # retention took it meanwhile
                        (len(value), crc32c(value), 0) == ref or sys.exit(f"the spill file of {at:016x} is missing or damaged")
                    target = at + size
                    yield at, target, head[1] // 1000, *(v.decode("utf-8", "surrogateescape") for v in (key, value))
                at += size
                state == COMMIT and at > target and sys.exit(f"{target:016x} is no record's position")
            os.close(fd)


bus, name, start, see, hot = sys.argv[1:] + ["oldest", "durable", None][len(sys.argv) - 3:]
topic, now = Topic(bus, name, hot, see == "tip"), start == "now"
first = max(topic.bases() + [0]) if now else topic.first_kept if start == "oldest" else int(start.split(":")[-1], 16)
for event in topic.follow(first):
    if event is None:
        now = sys.stdout.flush()  # from here on it is shown
        time.sleep(0.01)
    elif not now:
        print(json.dumps(dict(zip(("pos", "next", "ts_us", "key", "value"), [f"local:{at:016x}" for at in event[:2]] + [*event[2:]]))))
