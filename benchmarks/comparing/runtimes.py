"""The ways a program can be run: on the host in a chroot, or by an OCI runtime's command line.

A Session is one container that is told by lines on its standard input what to measure next, and
answers each with one line: so that all runtimes stand ready and are measured in turn."""

import contextlib
import copy
import ctypes
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests",
                                "container"))
import harness as containers  # noqa: E402  (tests/container/harness.py)

CLONE_NEWNS = 0x00020000
PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """A runtime or the program in it did not do what was asked; the text says what."""


class Runtime:
    """The host, or PATH [ARG...] used as runc is."""

    def __init__(self, name, path=None, args=(), base=False):
        self.name = name
        self.path = path
        self.args = list(args)
        self.bridge_args = []  # that a container needs whose network is the namespace's
        self.base = base  # what others are compared with: no targets apply
        self.why_not = None  # why it can not run here

    @property
    def is_host(self):
        return self.path is None

    @property
    def has_overlay(self):
        """Whether writes to the root file system stay in its memory."""
        return any("overlay" in a for a in self.args)

    def command(self, scratch, *args):
        return [self.path, *self.args, "--root", scratch.state(self), *args]

    def version(self):
        if self.is_host:
            return os.uname().release
        out = subprocess.run([self.path, "--version"], capture_output=True, text=True).stdout
        return out.splitlines()[0].strip() if out else "?"


def parse_runtime(text):
    name, equals, rest = text.partition("=")
    path, *args = rest.split(",")
    if not equals or not name or not path:
        raise SystemExit(f"compare: --runtime {text}: expected NAME=PATH[,ARG...]")
    found = shutil.which(path)
    runtime = Runtime(name, found or path, args)
    if not found:
        runtime.why_not = "not installed"
    return runtime


def enter_own_mounts():
    """A mount namespace of our own: nothing that we mount outlives us. On a machine with cgroup v1
    and an unused v2 hierarchy beside it the latter is taken away here, since crun refuses both."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise SystemExit(f"compare: unshare: {os.strerror(ctypes.get_errno())} (run it as root)")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if os.path.ismount("/sys/fs/cgroup/unified"):
        subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=False)
    # What detaches itself from a runtime's command stays our descendant, to be found and ended.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Favour:
    """Gives all that is measured far more weight on the CPUs than what else the machine does, for
    machines that are not quiet. cgroup v1 alone; nice(1) does not do it where the kernel groups
    processes by session."""

    SHARES = 262144

    def __init__(self):
        self.dir = f"/sys/fs/cgroup/cpu/compare-{os.getpid()}"

    def __enter__(self):
        os.mkdir(self.dir)
        self.write("cpu.shares", self.SHARES)
        self.write("tasks", os.getpid())
        return self

    def __exit__(self, *unused):
        with open(os.path.join(os.path.dirname(self.dir), "tasks"), "w", encoding="utf-8") as f:
            f.write(str(os.getpid()))
        with contextlib.suppress(OSError):
            os.rmdir(self.dir)

    def write(self, name, value):
        with open(os.path.join(self.dir, name), "w", encoding="utf-8") as f:
            f.write(str(value))


class Scratch:
    """A directory for all that a comparison makes; removed with its mounts and containers."""

    def __init__(self, where=None, favour=False):
        self.favour = favour
        self.dir = tempfile.mkdtemp(prefix="compare-", dir=where)
        self.mounts = []
        self.live = []
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for session in list(self.live):
            session.close()
        # Our own mounts, and what runtimes leave in their state directories.
        with open("/proc/self/mounts", encoding="utf-8") as f:
            mounts = [line.split()[1] for line in f]
        for mount in reversed([m for m in mounts if m.startswith(self.dir + "/")]):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def state(self, runtime):
        return os.path.join(self.dir, "state-" + runtime.name)

    def new_dir(self, prefix):
        self.count += 1
        path = os.path.join(self.dir, f"{prefix}-{self.count}")
        os.makedirs(path)
        return path

    def small_root(self, programs):
        """A root with the given static programs {name in /bin: file} alone."""
        root = self.new_dir("root")
        for d in ("proc", "dev", "sys", "tmp", "root", "etc", "bin"):
            os.makedirs(os.path.join(root, d))
        os.chmod(os.path.join(root, "tmp"), 0o1777)
        for name, file in programs.items():
            shutil.copy(file, os.path.join(root, "bin", name))
        return root

    def overlay_root(self, image):
        """A writable view of an image; the changes lie on the scratch directory's disk."""
        base = self.new_dir("overlay")
        upper, work, merged = (os.path.join(base, n) for n in ("upper", "work", "merged"))
        for d in (upper, work, merged):
            os.mkdir(d)
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                        f"lowerdir={image},upperdir={upper},workdir={work}", merged], check=True)
        self.mounts.append(merged)
        return merged

    def remove_root(self, root):
        """Frees what overlay_root() or small_root() took."""
        if root in self.mounts:
            subprocess.run(["umount", "-l", root], check=False)
            self.mounts.remove(root)
            root = os.path.dirname(root)
        shutil.rmtree(root, ignore_errors=True)

    def bundle(self, root, args, env=(), network=None):
        config = containers.default_config(args)
        config["root"]["path"] = root
        config["process"]["env"] += list(env)
        if self.favour:
            config["linux"]["resources"] = {"cpu": {"shares": Favour.SHARES}}
        config = copy.deepcopy(config)
        for namespace in config["linux"]["namespaces"]:
            if network and namespace["type"] == "network":
                namespace["path"] = "/run/netns/" + network
        path = self.new_dir("bundle")
        with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
            json.dump(config, f)
        return path

    def new_id(self):
        self.count += 1
        return f"compare-{os.getpid()}-{self.count}"


class Session:
    """A program that answers lines, in one runtime."""

    def __init__(self, scratch, runtime, root, args, env=(), network=None, args_there=()):
        """`network`: the name of the network namespace (ip-netns(8)), for which the runtime gets
        `args_there` too."""
        self.scratch = scratch
        self.runtime = runtime
        self.id = scratch.new_id()
        self.log = os.path.join(scratch.dir, self.id + ".stderr")
        self.pending = b""
        environment = None
        if runtime.is_host:
            command = containers.chroot_command(root, args)
            if network:
                command = ["ip", "netns", "exec", network, *command]
            environment = containers.chroot_environment(env)
        else:
            command = runtime.command(scratch, *args_there, "run", "--bundle",
                                      scratch.bundle(root, args, env, network), self.id)
        with open(self.log, "wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=err, env=environment)
        scratch.live.append(self)

    def read_line(self, timeout):
        deadline = time.monotonic() + timeout
        while b"\n" not in self.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"no answer in {timeout:.0f} s")
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got:
                raise Failed(f"ended: {self.last_words()}")
            self.pending += got
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode(errors="replace")

    def wait_for(self, first_word, timeout):
        """Reads to a line that begins with the word, and returns the rest of it."""
        deadline = time.monotonic() + timeout
        while True:
            line = self.read_line(max(0.1, deadline - time.monotonic()))
            word, _, rest = line.partition(" ")
            if word == first_word:
                return rest

    def ask(self, line, first_word, timeout):
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as e:
            raise Failed(f"ended: {self.last_words()}") from e
        return self.wait_for(first_word, timeout)

    def last_words(self):
        try:
            status = self.process.wait(2)
        except subprocess.TimeoutExpired:
            status = "none yet"
        with open(self.log, errors="replace", encoding="utf-8") as f:
            lines = [line.strip() for line in f if line.strip()]
        return f"status {status}" + (f", {lines[-1][:200]}" if lines else "")

    def close(self):
        if self not in self.scratch.live:
            return
        self.scratch.live.remove(self)
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            if not self.runtime.is_host:
                delete(self.scratch, self.runtime, self.id)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()


def delete(scratch, runtime, container):
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(runtime.command(scratch, "delete", "-f", container),
                       stdin=subprocess.DEVNULL, capture_output=True, timeout=30)


def probe(scratch, runtime, root, args):
    """Runs a program that ends at once; a runtime that fails gets its `why_not`."""
    if runtime.is_host or runtime.why_not:
        return
    container = scratch.new_id()
    command = runtime.command(scratch, "run", "--bundle", scratch.bundle(root, args), container)
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                timeout=30)
    except (OSError, subprocess.TimeoutExpired) as e:
        runtime.why_not = str(e)
        delete(scratch, runtime, container)
        return
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        runtime.why_not = (lines[-1] if lines else f"status {result.returncode}")[:200]


def descendants(pid):
    """All processes below `pid`."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as f:
                    parent = int(f.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found
