#!/usr/bin/env python3
"""Which connections, pipes and counters are moved by lanes, which look-ups answered, and which files read and closed, as
the counts of the sentry's system calls show."""

import json
import time

import harness
from harness import default_config

TIMES = 4000

# Two processes that send messages to one another. The first lines of the child's part change what it is.
PROGRAM = f"""
import ctypes, os, select, socket, sys, time
kind = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
pid = os.fork()
if pid == 0:
    if kind == "other-user":
        os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE
    if kind == "lesser":
        os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
        ctypes.CDLL(None).prctl(4, 1)
    if kind == "undumpable":
        ctypes.CDLL(None).prctl(4, 0)
    end = socket.create_connection(listener.getsockname())
    for i in range({TIMES}):
        message = b"message %d" % i
        end.sendall(message)
        if end.recv(100) != message: os._exit(1)
    os._exit(0)
if kind == "other-user":
    os.setresgid(1001, 1001, 1001); os.setresuid(1001, 1001, 1001)
    ctypes.CDLL(None).prctl(4, 1)
end, _ = listener.accept()
poll = select.epoll()
poll.register(end, select.EPOLLIN)
while True:
    poll.poll(timeout=0)
    data = end.recv(100)
    if not data: break
    end.sendall(data)
print("done", os.waitpid(pid, 0)[1], flush=True)
time.sleep(100)
"""

# Reads a file at its position and elsewhere, and moves in it.
FILE_PROGRAM = f"""
import ctypes, os, sys, time
kind, directory = sys.argv[1:3]
libc = ctypes.CDLL(None)
if kind == "undumpable":
    libc.prctl(4, 0)
path = directory + "/read-again"
with open(path, "wb") as f:
    f.write(bytes(i % 251 for i in range(100000)))
time.sleep(0.02)  # as long as the clock stands where it was changed, each read is noted (relatime)
if kind == "watched":
    watch = libc.inotify_add_watch(libc.inotify_init1(os.O_NONBLOCK), b"/", 0x100)  # IN_CREATE
fd = os.open(path, os.O_RDONLY)
good = True
for i in range({TIMES}):
    at = i * 997 % 90000
    good = good and os.pread(fd, 1, at)[0] == at % 251
    good = good and os.lseek(fd, at + 1, os.SEEK_SET) == at + 1
    good = good and os.read(fd, 100)[99] == (at + 100) % 251
print("done", 0 if good else 1, flush=True)
time.sleep(100)
"""

# Opens and closes a file.
CLOSE_PROGRAM = f"""
import ctypes, fcntl, os, sys, time
kind, directory = sys.argv[1:3]
libc = ctypes.CDLL(None)
path = directory + "/closed-again"
open(path, "w").close()
fd = os.open(path, os.O_RDONLY)
if kind == "watched":
    watch = libc.inotify_add_watch(libc.inotify_init1(os.O_NONBLOCK), b"/", 0x100)  # IN_CREATE
if kind == "locked": fcntl.flock(fd, fcntl.LOCK_SH)
if kind == "removed": path = f"/proc/self/fd/{{fd}}"; os.unlink(directory + "/closed-again")
flags = os.O_RDWR if kind == "written" else os.O_RDONLY
numbers = set()
for i in range({TIMES}):
    numbers.add(again := os.open(path, flags))
    os.close(again)
print("done", len(numbers) - 1, flush=True)
time.sleep(100)
"""

# Two processes with os.read and os.write, over a pair of pipes, of sockets, or of counters: what is written at once is read
# in two halves, the second of which need not be waited for.
PLAIN_PROGRAM = f"""
import ctypes, os, socket, sys, time
kind, what = sys.argv[1:3]
libc = ctypes.CDLL(None)
def channel():
    if what == "pipe":
        there, back = os.pipe(), os.pipe()
        return (back[0], there[1]), (there[0], back[1])
    if what == "unix":
        a, b = (s.detach() for s in socket.socketpair())
        return (a, a), (b, b)
    there, back = libc.eventfd(0, 1), libc.eventfd(0, 1)  # EFD_SEMAPHORE
    return (back, there), (there, back)
mine, theirs = channel()
HALF = (1).to_bytes(8, "little")
MESSAGE = (2).to_bytes(8, "little") if what == "eventfd" else HALF + HALF
def receive(ends):
    return os.read(ends[0], 8) == HALF and os.read(ends[0], 8) == HALF
pid = os.fork()
if pid == 0:
    if kind == "other-user":
        os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
        libc.prctl(4, 1)  # PR_SET_DUMPABLE
    if kind == "undumpable":
        libc.prctl(4, 0)
    for i in range({TIMES}):
        if not receive(theirs) or os.write(theirs[1], MESSAGE) != len(MESSAGE): os._exit(1)
    os._exit(0)
for i in range({TIMES}):
    os.write(mine[1], MESSAGE)
    if not receive(mine): sys.exit(1)
print("done", os.waitpid(pid, 0)[1], flush=True)
time.sleep(100)
"""


# Look-ups of the same paths. The first lines change who asks.
LOOKUPS = f"""
import os, sys, tempfile, time
kind = sys.argv[1]
d = tempfile.mkdtemp(); os.chmod(d, 0o755)
if kind == "root": os.makedirs(d + d)
files = d + d if kind == "root" else d
open(files + "/f", "w").close(); os.symlink("f", files + "/l")
if kind == "user": os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
if kind == "child" and os.fork(): os.wait(); print("done", flush=True); time.sleep(100)
if kind == "root": os.chroot(d)
if kind == "relative": os.chdir(d)
at = "" if kind == "relative" else d + "/"
for i in range({TIMES}):
    os.stat(at + "f"); os.lstat(at + "l"); os.access(at + "f", os.R_OK)
    if os.readlink(at + "l") != "f": sys.exit(1)
    try: os.open(at + "missing", os.O_RDONLY)
    except FileNotFoundError: pass
if kind == "child": sys.exit(0)
print("done", flush=True)
time.sleep(100)
"""


class LanesTest(harness.ContainerTest):

    def lookups(self, kind, flags=()):
        """How many look-ups of the program were the sentry's, for each that it makes."""
        id = self.sb.create(default_config(["python3", "-c", LOOKUPS, kind]), flags=flags)
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        deadline = time.monotonic() + 60
        while "done" not in self.sb.output(id) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual("done\n", self.sb.output(id), self.sb.output(id, "err"))
        r = self.sb.runsc("syscalls", "--format", "json", id)
        self.assertEqual(0, r.returncode, r.stderr)
        calls = {c["name"]: c["count"] for c in json.loads(r.stdout)["calls"]}
        self.sb.runsc("kill", id, "KILL")
        names = ("stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "openat")
        return sum(calls.get(name, 0) for name in names) / (5 * TIMES)

    def test_lookups_are_answered_without_the_sentry(self):
        for kind in ("plain", "user", "child", "relative"):
            self.assertLess(self.lookups(kind), 0.2, kind)

    def test_lookups_of_others_are_not(self):
        self.assertGreaterEqual(self.lookups("root"), 1)
        self.assertGreaterEqual(self.lookups("plain", flags=["--lanes=off"]), 1)

    def counts(self, kind, flags=(), program=PROGRAM, what="", names=("sendto",)):
        id = self.sb.create(default_config(["python3", "-c", program, kind, what]), flags=flags)
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        deadline = time.monotonic() + 60
        while "done" not in self.sb.output(id) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual("done 0\n", self.sb.output(id), self.sb.output(id, "err"))
        r = self.sb.runsc("syscalls", "--format", "json", id)
        self.assertEqual(0, r.returncode, r.stderr)
        calls = {c["name"]: c["count"] for c in json.loads(r.stdout)["calls"]}
        self.sb.runsc("kill", id, "KILL")
        return sum(calls.get(name, 0) for name in names)

    def plain_counts(self, what, kind="equals", flags=()):
        return self.counts(kind, flags, PLAIN_PROGRAM, what, ("read", "write"))

    def file_counts(self, kind, directory, flags=()):
        return self.counts(kind, flags, FILE_PROGRAM, directory, ("read", "pread64", "lseek"))

    def test_files_are_read_without_the_sentry(self):
        for directory in ("/tmp", "/dev/shm"):
            self.assertLess(self.file_counts("plain", directory), TIMES / 4, directory)

    def test_unless_somebody_is_to_be_told(self):
        self.assertGreaterEqual(self.file_counts("watched", "/tmp"), 3 * TIMES)
        self.assertGreaterEqual(self.file_counts("undumpable", "/tmp"), 3 * TIMES)
        self.assertGreaterEqual(self.file_counts("plain", "/tmp", flags=["--lanes=off"]), 3 * TIMES)

    def test_files_are_closed_without_the_sentry(self):
        for directory in ("/tmp", "/dev/shm"):
            closes = lambda kind, **flags: self.counts(kind, program=CLOSE_PROGRAM, what=directory, names=("close",), **flags)
            self.assertLess(closes("plain"), TIMES / 4, directory)
            for kind in ("watched", "locked", "removed", "written"):
                self.assertGreaterEqual(closes(kind), TIMES, (directory, kind))
            self.assertGreaterEqual(closes("plain", flags=["--lanes=off"]), TIMES, directory)

    def test_equals_move_bytes_themselves(self):
        self.assertLess(self.counts("equals"), TIMES / 4)

    def test_who_may_become_the_other_shares_his(self):
        self.assertLess(self.counts("lesser", names=("sendto", "recvfrom")), TIMES / 4)

    def test_unless_they_are_not_to(self):
        self.assertGreaterEqual(self.counts("equals", flags=["--lanes=off"]), 2 * TIMES)

    def test_others_share_none(self):
        # One end may be moved by its own process, the other is not.
        for kind in ("other-user", "undumpable"):
            self.assertGreaterEqual(self.counts(kind), TIMES, kind)

    def test_pipes_sockets_and_counters(self):
        for what in ("pipe", "unix", "eventfd"):
            self.assertLess(self.plain_counts(what), TIMES / 4, what)
            self.assertGreaterEqual(self.plain_counts(what, flags=["--lanes=off"]), 6 * TIMES, what)

    def test_others_share_none_of_them(self):
        # The ends of one of the two are moved by itself, those of the other are not.
        for what in ("pipe", "unix", "eventfd"):
            for kind in ("other-user", "undumpable"):
                self.assertGreaterEqual(self.plain_counts(what, kind), 3 * TIMES, (what, kind))


if __name__ == "__main__":
    harness.main()
