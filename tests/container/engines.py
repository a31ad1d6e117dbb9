"""Container engines for the tests: an image of busybox, and Podman, containerd and Docker with
roots, sockets and state of their own below a scratch directory.

Whatever an engine starts ends in close(): the test is a child subreaper (leftovers.py), so that
daemons, shims and containers are its descendants. Environment: RUNSC."""

import ctypes
import fcntl
import hashlib
import io
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import tarfile
import tempfile
import termios
import time
import unittest

import harness
import leftovers
from terminal import Terminal

IMAGE = "localhost/busybox:latest"
BUSYBOX = "/bin/busybox"


def make_image(path, image=IMAGE, command=("sh",)):
    """A docker-archive of one layer: busybox, two users, and the usual directories."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        def add(name, kind=tarfile.DIRTYPE, mode=0o755, data=b"", link=""):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
            tar.addfile(info, io.BytesIO(data))
        for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "var", "var/tmp"):
            add(name)
        add("tmp", mode=0o1777)
        add("etc/passwd", tarfile.REGTYPE, 0o644,
            b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:44::/:/bin/sh\n")
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nwww:x:44:\n")
        with open(BUSYBOX, "rb") as f:
            add("bin/busybox", tarfile.REGTYPE, 0o755, f.read())
        applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
        for name in applets.stdout.split():
            if name != "busybox":
                add("bin/" + name, tarfile.SYMTYPE, 0o777, link="busybox")
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "2000-01-01T00:00:00Z",
        "config": {"Cmd": command, "Env": [harness.PATH]},
        "rootfs": {"type": "layers",
                   "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()]},
    }).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [image], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as tar:
        for member, data in ((name, config), ("layer.tar", layer.getvalue()),
                             ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


CLONE_NEWNS = 0x20000


def leave_mount_namespace():
    """What engines mount is seen by nobody else, and gone with the last of their processes."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


class Engine:
    """The scratch directory and the processes of one engine."""
    flags = []  # of runsc

    def __init__(self):
        leave_mount_namespace()
        self.dir = tempfile.mkdtemp(prefix="runsc-eng-")
        self.env = dict(os.environ, HOME=self.dir)
        self.logs = []
        self.cgroup = "runsc-test-" + os.path.basename(self.dir)[-8:].replace("_", "x")

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as f:
            f.write(text)
        return self.path(name)

    def runtime_wrapper(self):
        """runsc with RUNSC_FLAGS and the flags of the class, as a program that engines can name."""
        flags = [*harness.EXTRA_FLAGS, *self.flags]
        if not flags:
            return harness.RUNSC
        path = self.write("runsc", "#!/bin/sh\nexec %s %s \"$@\"\n" % (harness.RUNSC, " ".join(flags)))
        os.chmod(path, 0o755)
        return path

    def daemon(self, name, command, ready, timeout=120):
        """Starts a daemon and waits until the command `ready` succeeds."""
        log = self.path(name + ".log")
        self.logs.append(log)
        with open(log, "wb") as f:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                                     env=self.env, start_new_session=True)
        deadline = time.monotonic() + timeout
        while not self.succeeds(ready):
            if child.poll() is not None or time.monotonic() > deadline:
                with open(log, errors="replace") as f:
                    raise AssertionError(f"{name} does not start: {f.read()[-2000:]}")
            time.sleep(0.1)
        return child

    def succeeds(self, command):
        try:
            return self.run(*command, timeout=10).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def run(self, *command, timeout=60, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        kw.setdefault("text", True)
        return subprocess.run(command, capture_output=True, timeout=timeout, env=self.env, **kw)

    def terminal(self, *command, rows=24, columns=80):
        """Starts a command on a terminal; returns its other side, and the process."""
        master, slave = pty.openpty()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=self.env,
                                 preexec_fn=lambda: (os.setsid(),
                                                     fcntl.ioctl(0, termios.TIOCSCTTY, 0)))
        os.close(slave)
        return Terminal(master), child

    def remove_containers(self):
        """Through the engine, while it is there."""

    def close(self):
        try:
            self.remove_containers()
        except subprocess.TimeoutExpired:
            pass  # what is left is killed
        # Containers before what watches over them, which may then put things in order.
        for signo, patience in ((signal.SIGTERM, 8), (signal.SIGKILL, 10)):
            for pid in leftovers.descendants(os.getpid()):
                if signo == signal.SIGKILL or not self.is_shim(pid):
                    self.kill(pid, signo)
            deadline = time.monotonic() + patience
            while self.reap() and time.monotonic() < deadline:
                time.sleep(0.05)
        with open("/proc/self/mounts") as f:
            mounts = [line.split()[1] for line in f]
        for mount in reversed(mounts):
            if mount.startswith(self.dir + "/"):
                subprocess.run(["umount", "-l", mount])
        self.remove_cgroups()
        shutil.rmtree(self.dir, ignore_errors=True)

    @staticmethod
    def kill(pid, signo):
        try:
            os.kill(pid, signo)
        except ProcessLookupError:
            pass

    @staticmethod
    def is_shim(pid):
        return "shim" in leftovers.name_of(pid).split(" ")[0]

    @staticmethod
    def reap():
        """Waits for the children that have ended; the descendants that live."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        return leftovers.descendants(os.getpid())

    def remove_cgroups(self):
        """Whatever is empty of ours and of Podman's, which names its groups itself."""
        for top, dirs, files in os.walk("/sys/fs/cgroup", topdown=False):
            if self.cgroup not in top and "/libpod_parent" not in top:
                continue
            for name in files:
                try:
                    os.unlink(os.path.join(top, name))  # Podman takes any directory for a hierarchy
                except OSError:
                    pass
            try:
                os.rmdir(top)
            except OSError:
                pass  # somebody is in it


class EngineTest(unittest.TestCase):
    """A test case with an engine in self.engine, closed at its end, and skipped without it."""
    engine_class = None

    def setUp(self):
        if os.getuid() != 0:
            self.skipTest("needs root")
        for program in self.engine_class.programs:
            if shutil.which(program) is None:
                self.skipTest(f"{program} is not installed")
        self.engine = self.engine_class()
        self.addCleanup(self.engine.close)
        self.engine.start()

    def ok(self, *args, **kw):
        """The engine's command succeeds; its standard output."""
        r = self.engine.command(*args, **kw)
        self.assertEqual(0, r.returncode, f"{args}: {r.stdout} {r.stderr}")
        return r.stdout

    def eventually(self, what, want, timeout=20):
        """`what()` comes to match the regular expression."""
        deadline = time.monotonic() + timeout
        while True:
            last = what()
            try:
                return self.assertRegex(last, want)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def check_interrupted(self, terminal, child):
        """A shell on `terminal` passes ^C on to what it runs, and its exit status on to the engine's client."""
        terminal.type("echo be''gin; sleep 1000\n")
        terminal.expect("begin\r\n")
        terminal.type_until("\x03", "# ")
        terminal.type("exit 5\n")
        self.assertEqual(5, child.wait(timeout=20))

    def check_logs_of_100_mb(self):
        """Where the engine keeps logs: every byte arrives."""
        line = "0123456789" * 99 + "012345678"
        self.ok("run", "-d", "--name", "big", IMAGE, "sh", "-c", f"yes {line} | head -c 100000000")
        self.assertEqual("0\n", self.ok("wait", "big", timeout=120))
        logs = self.engine.command("logs", "big", timeout=120).stdout
        self.assertEqual(100_000_000, len(logs))
        self.assertEqual({line}, set(logs.split()))


class HostNetworkTest(EngineTest):
    """What tests of an engine's networks share. The engine's beside() runs a program where its bridges are."""
    serve = ["sh", "-c", "mkdir /www; hostname > /www/name; exec httpd -f -p 80 -h /www"]

    def fetch(self, url):
        r = self.engine.beside(BUSYBOX, "wget", "-q", "-O", "-", url, timeout=20)
        return r.stdout + r.stderr

    def server(self, name, *options):
        """Starts a server of its own name on port 80."""
        self.ok("run", "-d", "--name", name, "--hostname", name, *options, IMAGE, *self.serve)
