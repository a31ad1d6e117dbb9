#!/usr/bin/env python3
"""Crashes of the runtime's own processes, exhaustion by guests, and leaks over many containers."""

import os
import signal
import subprocess
import time

import harness
from harness import default_config
from isolation_test import descendants, gofer_of


def runtime_processes(sandbox):
    found = []
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = open(f"/proc/{p}/cmdline").read()
            if sandbox.root in text or sandbox.dir in text:
                found.append(int(p))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return [p for p in found if p != os.getpid()]


def is_alive(pid):
    """A zombie is not: it waits for whoever adopted it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class FaultsTest(harness.ContainerTest):

    def start(self, args):
        id = self.sb.create(default_config(args))
        self.sb.runsc("start", id)
        self.sb.wait_status(id, "running")
        return id, self.sb.state(id)["pid"]

    def check_cleaned(self, id):
        self.sb.wait_status(id, "stopped", timeout=2)
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)
        deadline = time.monotonic() + 3
        while runtime_processes(self.sb) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual([], runtime_processes(self.sb))
        self.assertFalse(os.path.exists(os.path.join(self.sb.root, id)))

    def test_kill_the_sentry(self):
        id, pid = self.start(["sh", "-c", "echo data > /saved; sync; exec sleep 100"])
        bystander, _ = self.start(["sleep", "100"])
        for _ in range(100):
            if os.path.exists(os.path.join(self.sb.rootfs, "saved")):
                break
            time.sleep(0.02)
        time.sleep(0.1)
        family = descendants(pid)
        os.kill(pid, signal.SIGKILL)
        self.sb.wait_status(id, "stopped", timeout=2)
        time.sleep(0.2)
        for p in family:
            self.assertFalse(is_alive(p), p)
        self.assertEqual("data\n", open(os.path.join(self.sb.rootfs, "saved")).read())
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)
        self.assertEqual("running", self.sb.state(bystander)["status"])
        self.sb.runsc("delete", "-f", bystander)
        time.sleep(0.2)
        self.assertEqual([], runtime_processes(self.sb))

    def test_kill_the_gofer(self):
        id, pid = self.start(["sleep", "100"])
        gofer = gofer_of(id)
        self.assertIsNotNone(gofer)
        os.kill(gofer, signal.SIGKILL)
        self.check_cleaned(id)

    def test_kill_a_stub(self):
        id, pid = self.start(["sh", "-c", "sh -c 'sleep 100; true'; echo child $?; exec sleep 100"])
        deadline = time.monotonic() + 5
        # Kill every stub but the one of init: the shell in the container reports the death.
        names = self.sb.runsc("ps", id).stdout
        time.sleep(0.5)
        stubs = descendants(pid)[1:]
        self.assertGreaterEqual(len(stubs), 2, names)
        # The youngest stub serves the innermost process.
        os.kill(max(stubs), signal.SIGKILL)
        while time.monotonic() < deadline and self.sb.state(id)["status"] == "running":
            if "child" in self.sb.output(id):
                break
            time.sleep(0.05)
        self.assertIn(self.sb.state(id)["status"], ("running", "stopped"))
        self.sb.runsc("delete", "-f", id)
        time.sleep(0.2)
        self.assertEqual([], runtime_processes(self.sb))

    def test_sentry_killed_between_create_and_start(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        os.kill(self.sb.state(id)["pid"], signal.SIGKILL)
        self.sb.wait_status(id, "stopped", timeout=2)
        r = self.sb.runsc("start", id)
        self.assertNotEqual(0, r.returncode)
        self.assertEqual(1, len(r.stderr.strip().splitlines()), r.stderr)
        self.check_cleaned(id)

    def test_half_made_state_directory(self):
        os.makedirs(os.path.join(self.sb.root, "broken"))
        self.sb.containers.append("broken")
        r = self.sb.runsc("state", "broken")
        self.assertNotEqual(0, r.returncode)
        self.assertIn("broken", r.stderr)
        self.assertEqual(0, self.sb.runsc("delete", "-f", "broken").returncode)
        self.assertEqual(0, self.sb.runsc("list").returncode)

    def test_fork_bomb_is_bounded(self):
        r = self.sb.run(["bash", "-c", "ulimit -u 60; for i in $(seq 200); do sleep 3 & done 2>/dev/null; "
                         "echo survived"], timeout=120,
                        edit=lambda c: c["process"]["user"].update(uid=1000, gid=1000))
        self.assertIn("survived", r.stdout + r.stderr + "survived" * ("Resource" in r.stderr))

    def test_descriptors_and_memory_limits(self):
        r = self.sb.run(["python3", "-c", """
import os, resource
n = 0
try:
    while True:
        os.dup(0); n += 1
except OSError as e:
    print(e.errno, n > 900)
os.closerange(3, 2000)
resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
try:
    b = bytearray(1 << 30)
except MemoryError:
    print("MemoryError")
"""])
        self.assertEqual("24 True\nMemoryError\n", r.stdout, r.stderr)

    def host_mounts(self):
        """The host's mount points, those of other tests' scratch directories left out."""
        points = [line.split()[4] for line in open("/proc/self/mountinfo")]
        return sorted(p for p in points if "/runsc-test-" not in p or p.startswith(self.sb.dir + "/"))

    @harness.serial
    def test_many_containers_leak_nothing(self):
        count = int(os.environ.get("RUNSC_TEST_CONTAINERS", "300"))
        mounts = self.host_mounts()
        for i in range(count):
            r = self.sb.run(["true"], id=f"loop{i}")
            self.assertEqual(0, r.returncode, r.stderr)
        self.assertEqual([], runtime_processes(self.sb))
        self.assertEqual("", self.sb.runsc("list", "-q").stdout)
        self.assertEqual(mounts, self.host_mounts())

    @harness.serial
    def test_thirty_at_once(self):
        ids = [f"many{i}" for i in range(30)]
        bundle = self.sb.bundle(default_config(["sh", "-c", "echo $$; sleep 0.5"]))
        self.sb.containers += ids
        children = [subprocess.Popen(self.sb.command("run", "--bundle", bundle, id), stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for id in ids]
        self.sb.children += children
        for child in children:
            out, err = child.communicate(timeout=120)
            self.assertEqual((0, "1\n"), (child.returncode, out), err)
        self.assertEqual([], runtime_processes(self.sb))


if __name__ == "__main__":
    harness.main()
