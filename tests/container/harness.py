"""Drives the runsc binary for the whole-container tests: bundles, containers, clean-up.

Everything a test makes (directories, mounts, containers, processes) is undone in Sandbox.close(),
also when the test fails. Environment: RUNSC (the binary), RUNSC_ROOTFS (a Debian root),
RUNSC_PROGRAMS_ROOTFS (the large one)."""

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

RUNSC = os.environ.get("RUNSC", "runsc")
ROOTFS = os.environ.get("RUNSC_ROOTFS", "/var/cache/runsc/rootfs")
# Images that a Sandbox can have a view of, by name; scripts/rootfs makes them.
IMAGES = {"debian": ROOTFS,
          "programs": os.environ.get("RUNSC_PROGRAMS_ROOTFS", "/var/cache/runsc/programs-rootfs")}
EXTRA_FLAGS = os.environ.get("RUNSC_FLAGS", "").split()

CAPS = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
        "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"]
ALL_CAPS = CAPS + ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE", "CAP_SYS_NICE",
                   "CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_SYS_TTY_CONFIG", "CAP_LEASE",
                   "CAP_NET_ADMIN", "CAP_LINUX_IMMUTABLE"]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def default_config(args, root="rootfs", readonly=False, terminal=False, caps=None):
    caps = CAPS if caps is None else caps
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [PATH, "TERM=xterm", "HOME=/root", "LC_ALL=C"],
            "cwd": "/",
            "capabilities": {k: caps for k in
                             ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 1024}],
            "noNewPrivileges": False,
        },
        "root": {"path": root, "readonly": readonly},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }


class Sandbox:
    """A scratch directory with a runsc root of its own; removes all it made on close()."""

    def __init__(self, rootfs=None, writable=True):
        self.dir = tempfile.mkdtemp(prefix="runsc-test-")
        self.root = os.path.join(self.dir, "state")
        self.mounts = []
        self.containers = []
        self.children = []
        self.rootfs = rootfs
        if rootfs in IMAGES:
            self.rootfs = self.overlay(IMAGES[rootfs])

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def overlay(self, lower):
        """A writable view of a directory that is left unchanged."""
        base = tempfile.mkdtemp(prefix="ovl-", dir=self.dir)
        scratch = os.path.join(base, "scratch")
        os.mkdir(scratch)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", scratch], check=True)
        self.mounts.append(scratch)
        upper, work, merged = (os.path.join(scratch, n) for n in ("upper", "work", "merged"))
        for d in (upper, work, merged):
            os.mkdir(d)
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                        f"lowerdir={lower},upperdir={upper},workdir={work}", merged], check=True)
        self.mounts.append(merged)
        return merged

    def bundle(self, config, name=None, rootfs=None):
        path = os.path.join(self.dir, name or f"bundle-{uuid.uuid4().hex[:8]}")
        os.makedirs(path)
        rootfs = rootfs or self.rootfs
        path_in_config = config.get("root", {}).get("path", "/")
        if rootfs and isinstance(path_in_config, str) and not os.path.isabs(path_in_config):
            config = copy.deepcopy(config)
            config["root"]["path"] = rootfs
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(config, f)
        return path

    def command(self, *args, flags=()):
        return [RUNSC, "--root", self.root, *EXTRA_FLAGS, *flags, *args]

    def runsc(self, *args, flags=(), timeout=60, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(self.command(*args, flags=flags), capture_output=True, text=True,
                              timeout=timeout, **kw)

    def run(self, args, config=None, timeout=120, flags=(), id=None, stdin=None, text=True, env=(),
            mounts=(), caps=None, edit=None):
        """`runsc run` of a program to its end; returns the CompletedProcess."""
        config = config or default_config(args, caps=caps)
        config["process"]["env"] += list(env)
        config["mounts"] += list(mounts)
        if edit:
            edit(config)
        bundle = self.bundle(config)
        id = id or f"t{uuid.uuid4().hex[:10]}"
        self.containers.append(id)
        process = subprocess.Popen(self.command("run", "--bundle", bundle, id, flags=flags),
                                   stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text)
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            self.runsc("delete", "-f", id)
            try:
                out, err = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            raise AssertionError(f"timed out after {timeout} s: {args}\n{out[-2000:]}\n{err[-2000:]}")
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def create(self, config, id=None, flags=(), **kw):
        id = id or f"t{uuid.uuid4().hex[:10]}"
        bundle = self.bundle(config)
        self.containers.append(id)
        out = open(os.path.join(self.dir, id + ".out"), "wb")
        err = open(os.path.join(self.dir, id + ".err"), "wb")
        with out, err:
            result = subprocess.run(self.command("create", "--bundle", bundle, id, flags=flags),
                                    stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=60, **kw)
        if result.returncode:
            raise AssertionError(f"create failed: {self.output(id, 'err')}")
        return id

    def output(self, id, which="out"):
        with open(os.path.join(self.dir, f"{id}.{which}"), errors="replace") as f:
            return f.read()

    def state(self, id):
        result = self.runsc("state", id)
        if result.returncode:
            return {"status": "none", "error": result.stderr}
        return json.loads(result.stdout)

    def wait_status(self, id, status, timeout=10):
        deadline = time.monotonic() + timeout
        state = None
        while time.monotonic() < deadline:
            state = self.state(id)
            if state["status"] == status:
                return state
            time.sleep(0.02)
        raise AssertionError(f"{id} is {state}, not {status}")

    def close(self):
        for id in self.containers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(self.command("delete", "-f", id), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for mount in reversed(self.mounts):
            subprocess.run(["umount", "-l", mount])
        shutil.rmtree(self.dir, ignore_errors=True)


def chroot_command(rootfs, args, own_network=False):
    """The command of the same program on the host, in a chroot of the same files with /proc, /dev
    and a tmpfs; with own_network with a loopback interface of its own (the root must have `ip`)."""
    script = (
        'set -e; r=$1; shift; '
        'mount -t proc proc $r/proc; mount -t tmpfs -o mode=755 dev $r/dev; '
        'mkdir -p $r/dev/pts $r/dev/shm; mount -t devpts -o newinstance,ptmxmode=0666 devpts $r/dev/pts; '
        'mount -t tmpfs shm $r/dev/shm; ln -s pts/ptmx $r/dev/ptmx; '
        'for d in null:3 zero:5 full:7 random:8 urandom:9 tty:0; do n=${d%%:*}; m=${d##*:}; '
        'if [ $n = tty ]; then mknod -m 666 $r/dev/tty c 5 0; else mknod -m 666 $r/dev/$n c 1 $m; fi; done; '
        'ln -s /proc/self/fd $r/dev/fd; ln -s /proc/self/fd/0 $r/dev/stdin; '
        'ln -s /proc/self/fd/1 $r/dev/stdout; ln -s /proc/self/fd/2 $r/dev/stderr; '
        'mount -t sysfs -o ro sysfs $r/sys; hostname sandbox; '
        + ('chroot $r ip link set lo up; ' if own_network else '') +
        'exec chroot $r "$@"')
    network = ["--net"] if own_network else []
    return ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", *network, "--kill-child", "sh", "-c",
            script, "sh", rootfs, *args]


def chroot_environment(env=()):
    return dict(e.split("=", 1) for e in [PATH, "TERM=xterm", "HOME=/root", "LC_ALL=C", *env])


def chroot_run(rootfs, args, stdin=None, timeout=300, env=(), own_network=False, before=()):
    """Runs `args` on the host in a chroot, to its end, by the command `before` if any; returns the CompletedProcess."""
    return subprocess.run(
        [*before, *chroot_command(rootfs, args, own_network)], input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None, capture_output=True, text=True,
        timeout=timeout, env=chroot_environment(env))


class ContainerTest(unittest.TestCase):
    """A test case with a Sandbox in self.sb, closed at its end."""
    rootfs = "debian"

    def setUp(self):
        if os.getuid() != 0:
            self.skipTest("needs root")
        self.sb = Sandbox(self.rootfs)
        self.addCleanup(self.sb.close)


def status_of(pid):
    """The fields of /proc/PID/status. `pid` may be a path below /proc, as PID/task/TID."""
    fields = {}
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields


def serial(test):
    """Marks a test that takes the whole machine: nothing else runs beside it."""
    test.serial = True
    return test


def main():
    """Instead of unittest.main(): FILE [-v] [Class.test..] runs those tests (or all), FILE --list
    names them for ctest. Exits with 77 if everything that was asked for was skipped."""
    # Programs begin with what a shell in the foreground gives them.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    loader = unittest.defaultTestLoader
    tests = []

    def collect(suite):
        for t in suite:
            if isinstance(t, unittest.TestSuite):
                collect(t)
            else:
                tests.append(t)

    module = sys.modules["__main__"]
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    collect(loader.loadTestsFromNames(names, module) if names
            else loader.loadTestsFromModule(module))
    if "--list" in sys.argv:
        for t in tests:
            is_serial = getattr(getattr(t, t._testMethodName), "serial", False)
            print(f"{type(t).__name__}.{t._testMethodName}" + (" serial" if is_serial else ""))
        return
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(tests))
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if len(result.skipped) == result.testsRun else 0)
