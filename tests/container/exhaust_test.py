#!/usr/bin/env python3
"""A guest that uses all its memory, processes, descriptors or disk gets Linux's error or is killed
alone, and the sentry's own memory stays bounded: its resident size is read from the host."""

import os
import subprocess
import threading
import time
import unittest

import harness
import leftovers
import soaking
from harness import default_config

MIB = 1 << 20
MEMORY_LIMIT = 256 * MIB
# A quarter of the container's memory may go into kernel objects (kernel_sandbox.cc); the heap is not
# packed without gaps, and the sentry has a size of its own.
SENTRY_BOUND = MEMORY_LIMIT // 4 + 48 * MIB

# Each fills the kernel with one kind of object until it is refused, or for ever if it may.
HOARDS = {
    "small_files": """
os.mkdir('/dev/shm/d')
def go():
    for n in range(10**9): open(f'/dev/shm/d/{n}', 'w').close()
""",
    "small_files_with_data": """
def go():
    for n in range(10**9):
        with open(f'/tmpfs/{n}', 'wb') as f: f.write(b'x' * 20000)
""",
    "directories": """
def go():
    for n in range(10**9): os.mkdir(f'/tmpfs/{n}')
""",
    "deep_directories": """
os.chdir('/tmpfs')
def go():
    for n in range(10**9): os.mkdir('d'); os.chdir('d')
""",
    "long_links": """
def go():
    for n in range(10**9): os.symlink('x' * 4000, f'/tmpfs/{n}')
""",
    "hard_links": """
open('/tmpfs/f', 'w').close()
def go():
    for n in range(10**9): os.link('/tmpfs/f', '/tmpfs/' + 'x' * 200 + str(n))
""",
    "attributes": """
def go():
    for n in range(10**9):
        open(f'/tmpfs/{n}', 'w').close()
        os.setxattr(f'/tmpfs/{n}', 'user.a', b'x' * 60000)
""",
    "pipes": """
import fcntl
def go():
    for n in range(10**9):
        r, w = os.pipe(); os.set_blocking(w, False)
        try: fcntl.fcntl(w, 1031, 1 << 20)
        except PermissionError: pass
        try:
            while True: os.write(w, b'x' * 65536)
        except BlockingIOError: pass
""",
    "sockets": """
import socket
keep = []
def go():
    for n in range(10**9):
        a, b = socket.socketpair(); a.setblocking(False); keep.extend([a, b])
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
        try:
            while True: a.send(b'x' * 65536)
        except BlockingIOError: pass
""",
    "datagrams": """
import socket
keep = []
def go():
    for n in range(10**9):
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.setblocking(False); keep.extend([a, b])
        try:
            while True: a.send(b'')
        except BlockingIOError: pass
""",
    "files_in_flight": """
import socket
keep = []
def go():
    for n in range(10**9):
        a, b = socket.socketpair(); a.setblocking(False); keep.extend([a, b])
        try:
            while True: socket.send_fds(a, [b'x'], [0] * 250)
        except BlockingIOError: pass
""",
    "epoll": """
import select
ends = [e for i in range(300) for e in os.pipe()]
keep = []
def go():
    for n in range(10**9):
        keep.append(select.epoll())
        for e in ends: keep[-1].register(e)
""",
    "inotify": """
fd = libc.inotify_init1(0)
def go():
    for n in range(10**9):
        os.mkdir(f'/tmpfs/{n}')
        check(libc.inotify_add_watch(fd, f'/tmpfs/{n}'.encode(), 0xfff))
""",
    "timers": """
t = ctypes.c_int()
def go():
    while True: check(libc.syscall(222, 1, None, ctypes.byref(t)))
""",
    "queued_signals": """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
def go():
    while True: check(libc.sigqueue(os.getpid(), 40, None))
""",
    "locks": """
import fcntl, struct
f = open('/tmpfs/f', 'w')
def go():
    for n in range(10**9):
        fcntl.fcntl(f, fcntl.F_SETLK, struct.pack('hhqqi', fcntl.F_WRLCK, 0, n * 2, 1, 0))
""",
    "mappings": """
import mmap
keep = []
def go():
    for n in range(10**9): keep.append(mmap.mmap(-1, 4096, prot=1 + 2 * (n % 2)))
""",
    "mounts": """
def go():
    while True: check(libc.mount(b'x', b'/mnt', b'tmpfs', 0, None))
""",
    "processes": """
def go():
    while True:
        if os.fork() == 0: time.sleep(1000)
""",
    "threads": """
import threading
threading.stack_size(65536)
def go():
    while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""",
    "descriptors_of_many": """
import resource
def go():
    while True:
        if os.fork() == 0:
            try:
                while True: os.eventfd(0)
            except OSError: pass
            time.sleep(1000)
""",
}

PROGRAM = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def check(r):
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
{setup}
print("ready", flush=True)
sys.stdin.readline()
try:
    go()
except (OSError, MemoryError, RuntimeError) as e:
    print("refused", getattr(e, 'errno', e), flush=True)
time.sleep(1000)
"""


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    return 0


class ExhaustTest(harness.ContainerTest):

    def limited(self, config, memory=MEMORY_LIMIT, pids=None):
        name = f"runsc-exhaust-{os.getpid()}"
        config["linux"]["cgroupsPath"] = f"/{name}"
        config["linux"]["resources"] = {"memory": {"limit": memory}}
        if pids:
            config["linux"]["resources"]["pids"] = {"limit": pids}
        config["mounts"].append({"destination": "/tmpfs", "type": "tmpfs", "source": "t", "options": []})
        return config

    def hoard(self, name, setup):
        """Runs one hoard for a while; the sentry stays small and goes on serving."""
        config = self.limited(default_config(["python3", "-c", PROGRAM.format(setup=setup)], caps=harness.ALL_CAPS),
                              pids=2000)
        id = f"hoard-{name}".replace("_", "-")
        self.sb.containers.append(id)
        child = subprocess.Popen(self.sb.command("run", "--bundle", self.sb.bundle(config), id),
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.sb.children.append(child)
        line = child.stdout.readline()
        if line != "ready\n":
            error = child.stderr.read()
            if "cgroup" in error:
                self.skipTest(error)
            self.fail(f"{line!r} {error}")
        sentry = self.sb.state(id)["pid"]
        refused = threading.Thread(target=child.stdout.readline, daemon=True)
        refused.start()
        child.stdin.write("\n")
        child.stdin.flush()
        peak = 0
        deadline = time.monotonic() + float(os.environ.get("RUNSC_TEST_HOARD_SECONDS", "5"))
        while refused.is_alive() and time.monotonic() < deadline:
            if not leftovers.is_alive(sentry):
                break
            peak = max(peak, resident(sentry))
            time.sleep(0.02)
        self.assertLess(peak, SENTRY_BOUND, name)
        if child.poll() is None:
            # The container is still served, unless the whole of it was killed for its memory.
            r = self.sb.runsc("exec", id, "true")
            self.assertIn(r.returncode, (0, 255, 137), (name, r.stderr))
        self.sb.runsc("delete", "-f", id)
        child.communicate(timeout=30)

    def run_limited(self, args, **kw):
        config = self.limited(default_config(args))
        r = self.sb.run(args, config=config, **kw)
        if "cgroup" in r.stderr and r.returncode == 1:
            self.skipTest(r.stderr)
        return r

    def test_all_memory_without_an_rlimit(self):
        """The one that takes it is killed; its parent goes on."""
        r = self.run_limited(["bash", "-c", """
            python3 -c 'x = []
while True: x.append(bytearray(1 << 20))'
            echo "status $?"; echo alive"""])
        self.assertEqual((0, "status 137\nalive\n"), (r.returncode, r.stdout), r.stderr)

    def test_all_memory_by_init(self):
        r = self.run_limited(["python3", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
        self.assertEqual(137, r.returncode, r.stderr)

    def test_all_memory_of_a_memory_file(self):
        """Pages of tmpfs and memfd are charged to the container too."""
        r = self.run_limited(["bash", "-c", """
            head -c 1G /dev/zero > /tmpfs/big; echo "status $?"; rm -f /tmpfs/big; echo alive"""])
        self.assertIn("status", r.stdout, r.stderr)
        self.assertNotIn("status 0", r.stdout)
        self.assertEqual(0, r.returncode)

    def test_rlimit_as(self):
        r = self.sb.run(["bash", "-c", "ulimit -v 200000; python3 -c 'bytearray(1 << 30)'; echo $?"])
        self.assertEqual("1\n", r.stdout)
        self.assertIn("MemoryError", r.stderr)

    def test_processes_by_rlimit_and_by_the_cgroup(self):
        bomb = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0: time.sleep(1000)
        n += 1
except OSError as e:
    print(e.errno, n, flush=True)
"""
        r = self.sb.run(["python3", "-c", "import resource; resource.setrlimit(6, (60, 60))" + bomb],
                        edit=lambda c: c["process"]["user"].update(uid=1000, gid=1000))
        self.assertEqual("11 59\n", r.stdout, r.stderr)
        config = self.limited(default_config(["python3", "-c", bomb]), pids=100)
        r = self.sb.run([], config=config)
        errno, count = r.stdout.split()
        self.assertEqual("11", errno)
        self.assertLess(int(count), 100)
        self.assertGreater(int(count), 50)

    def test_the_host_kills_stubs_before_the_sentry(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        pid = self.sb.state(id)["pid"]

        def score(pid):
            with open(f"/proc/{pid}/oom_score_adj") as f:
                return int(f.read())
        stubs = soaking.children_of(pid)
        self.assertTrue(stubs)
        for stub in stubs:
            self.assertGreaterEqual(score(stub), score(pid) + 500)

    def test_descriptors(self):
        r = self.sb.run(["python3", "-c", """
import os
n = 0
try:
    while True: os.dup(0); n += 1
except OSError as e:
    print(e.errno, n)
"""])
        self.assertEqual("24 1021\n", r.stdout, r.stderr)

    def fills(self, directory, **kw):
        """Writes until the disk is full: ENOSPC, what was written is there, and room comes back."""
        r = self.sb.run(["bash", "-c", f"""
            cd {directory}
            dd if=/dev/zero of=big bs=64k count=1000 2>&1 | grep -o 'No space left on device'
            [ $(stat -c %s big) -ge 3000000 ] && echo much
            echo more > other || echo refused
            for i in $(seq 3000); do echo x > f$i || break; done 2>&1 | grep -o -m1 'No space left on device'
            rm -f big f*
            echo again > big && cat big"""], **kw)
        self.assertEqual(["No space left on device", "much"], r.stdout.splitlines()[:2], r.stderr)
        self.assertEqual("again", r.stdout.splitlines()[-1])
        self.assertEqual(0, r.returncode)

    def test_disk_of_tmpfs(self):
        self.fills("/scratch", mounts=[{"destination": "/scratch", "type": "tmpfs", "source": "t",
                                        "options": ["size=4m", "nr_inodes=1000"]}])

    def test_disk_of_a_bind_mount(self):
        disk = os.path.join(self.sb.dir, "disk")
        os.mkdir(disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=1000", "t", disk], check=True)
        self.sb.mounts.append(disk)
        self.fills("/disk", mounts=[{"destination": "/disk", "type": "bind", "source": disk, "options": ["bind"]}])

    def test_disk_of_the_root(self):
        """An ext4 file system as the container's root, which fills up."""
        image = os.path.join(self.sb.dir, "image")
        root = os.path.join(self.sb.dir, "small")
        os.mkdir(root)
        with open(image, "wb") as f:
            f.truncate(12 * MIB)
        r = subprocess.run(f"mke2fs -q -t ext4 -O ^has_journal {image} && mount -o loop {image} {root}", shell=True,
                           capture_output=True, text=True)
        if r.returncode:
            self.skipTest(f"no ext4 on a loop device: {r.stderr}")
        self.sb.mounts.append(root)
        for d in ("bin", "proc", "dev", "sys", "tmp"):
            os.mkdir(os.path.join(root, d))
        subprocess.run(["cp", "/bin/busybox", os.path.join(root, "bin")], check=True)
        config = default_config(["/bin/busybox", "sh", "-c", """
            /bin/busybox dd if=/dev/zero of=/big bs=64k count=1000 2>&1 | /bin/busybox grep -o 'No space left on device'
            /bin/busybox rm /big; echo again > /big && /bin/busybox cat /big"""])
        config["root"]["path"] = root
        r = self.sb.run([], config=config)
        self.assertEqual("No space left on device\nagain\n", r.stdout, r.stderr)

    def test_disk_of_the_overlay(self):
        """The layer in memory holds half the container's memory."""
        config = self.limited(default_config(["bash", "-c", """
            (head -c 200M /dev/zero > /big) 2>&1 | grep -o 'No space left'
            rm /big; echo again > /big && cat /big"""]))
        r = self.sb.run([], config=config, flags=["--overlay"])
        self.assertEqual("No space left\nagain\n", r.stdout, r.stderr)


for name, setup in HOARDS.items():
    setattr(ExhaustTest, f"test_hoard_of_{name}", lambda self, name=name, setup=setup: self.hoard(name, setup))

if __name__ == "__main__":
    harness.main()
