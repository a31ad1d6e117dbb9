"""What a container may leave behind: processes, mounts, cgroups, files in the state directory.

The test is a child subreaper, so that every process of a sandbox whose `runsc` has ended is a child
of the test: nothing can hide by changing its name, session or namespace."""

import ctypes
import os
import subprocess
import time

PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stat_of(pid):
    """The fields of /proc/PID/stat behind the command (the state first); None: it has gone."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(pid):
    """A zombie is not: it waits for whoever adopted it."""
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX"


def name_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as f:
            return f.read().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(root):
    """Living processes below `root`, parents first."""
    children = {}
    for p in filter(str.isdigit, os.listdir("/proc")):
        stat = stat_of(p)
        if stat:
            children.setdefault(int(stat[1]), []).append(int(p))
    found = list(children.get(root, []))
    for p in found:
        found += children.get(p, [])
    return [p for p in found if is_alive(p)]


def processes(known=()):
    """{pid: command} of living descendants of the test, those of the Popens `known` left out."""
    expected = set()
    for child in known:
        if child.poll() is None:
            expected |= {child.pid, *descendants(child.pid)}
    # Adopted zombies are reaped: nobody else waits for them.
    popens = {c.pid for c in known}
    for p in filter(str.isdigit, os.listdir("/proc")):
        stat = stat_of(p)
        if stat and stat[0] == "Z" and int(stat[1]) == os.getpid() and int(p) not in popens:
            try:
                os.waitpid(int(p), os.WNOHANG)
            except ChildProcessError:
                pass
    return {p: name_of(p) for p in descendants(os.getpid()) if p not in expected}


def wait_no_processes(known=(), timeout=5):
    """What is still there after `timeout`; {} is as it should be."""
    deadline = time.monotonic() + timeout
    left = processes(known)
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = processes(known)
    return left


def cgroups(name):
    """Directories of that name in any cgroup hierarchy."""
    return subprocess.run(["find", "/sys/fs/cgroup", "-type", "d", "-name", name],
                          capture_output=True, text=True).stdout.split()


def mounts(directory):
    """The host's mount points, those of other tests' scratch directories and of images being made left out."""
    with open("/proc/self/mountinfo") as f:
        points = [line.split()[4] for line in f]
    return sorted(p for p in points if p.startswith(directory + "/") or
                  "/runsc-test-" not in p and ".partial/" not in p)
