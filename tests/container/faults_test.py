#!/usr/bin/env python3
"""Known crashes of the runtime's own processes, and leaks over many containers. Crashes at random
moments are in crash_test.py, exhaustion by guests in exhaust_test.py."""

import os
import signal
import subprocess
import time

import harness
import leftovers
from harness import default_config
from isolation_test import descendants, gofer_of


class FaultsTest(harness.ContainerTest):

    def setUp(self):
        super().setUp()
        self.mounts = leftovers.mounts(self.sb.dir)

    def start(self, args):
        id = self.sb.create(default_config(args))
        self.sb.runsc("start", id)
        self.sb.wait_status(id, "running")
        return id, self.sb.state(id)["pid"]

    def check_nothing_left(self):
        self.assertEqual({}, leftovers.wait_no_processes(self.sb.children))
        self.assertEqual("", self.sb.runsc("list", "-q").stdout)
        self.assertEqual([], os.listdir(self.sb.root))
        self.assertEqual(self.mounts, leftovers.mounts(self.sb.dir))

    def check_stopped_and_gone(self, id):
        self.sb.wait_status(id, "stopped", timeout=1)
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)
        self.check_nothing_left()

    def test_kill_the_sentry(self):
        id, pid = self.start(["sh", "-c", "echo data > /saved; sync; exec sleep 100"])
        bystander, _ = self.start(["sleep", "100"])
        saved = os.path.join(self.sb.rootfs, "saved")
        deadline = time.monotonic() + 10
        while not (os.path.exists(saved) and os.path.getsize(saved)) and time.monotonic() < deadline:
            time.sleep(0.02)
        family = descendants(pid)
        os.kill(pid, signal.SIGKILL)
        self.sb.wait_status(id, "stopped", timeout=1)
        deadline = time.monotonic() + 5
        while any(map(leftovers.is_alive, family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual([], [p for p in family if leftovers.is_alive(p)])
        with open(saved) as f:
            self.assertEqual("data\n", f.read())
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)
        self.assertEqual("running", self.sb.state(bystander)["status"])
        self.assertEqual(0, self.sb.runsc("exec", bystander, "true").returncode)
        self.sb.runsc("delete", "-f", bystander)
        self.check_nothing_left()

    def test_kill_the_gofer(self):
        id, _ = self.start(["sleep", "100"])
        gofer = gofer_of(id)
        self.assertIsNotNone(gofer)
        os.kill(gofer, signal.SIGKILL)
        self.check_stopped_and_gone(id)

    def test_kill_a_stub(self):
        """Its process has died by SIGKILL, as its parent sees; the others go on."""
        id, pid = self.start(["sh", "-c", "python3 -c 'import time; time.sleep(100)'; echo child $?; exec sleep 100"])

        def maps_python(stub):
            try:
                with open(f"/proc/{stub}/maps") as f:
                    return "python3" in f.read()
            except (FileNotFoundError, ProcessLookupError):
                return False

        stubs = []
        deadline = time.monotonic() + 10
        while not stubs and time.monotonic() < deadline:
            stubs = [p for p in descendants(pid) if maps_python(p)]
        self.assertEqual(1, len(stubs))
        os.kill(stubs[0], signal.SIGKILL)
        while self.sb.output(id) == "" and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual("child 137\n", self.sb.output(id))
        self.assertEqual("running", self.sb.state(id)["status"])
        self.assertEqual(0, self.sb.runsc("exec", id, "true").returncode)
        self.sb.runsc("delete", "-f", id)
        self.check_nothing_left()

    def test_sentry_killed_between_create_and_start(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        os.kill(self.sb.state(id)["pid"], signal.SIGKILL)
        self.sb.wait_status(id, "stopped", timeout=1)
        r = self.sb.runsc("start", id)
        self.assertNotEqual(0, r.returncode)
        self.assertEqual(1, len(r.stderr.strip().splitlines()), r.stderr)
        self.check_stopped_and_gone(id)

    @harness.serial
    def test_many_containers_leak_nothing(self):
        count = int(os.environ.get("RUNSC_TEST_CONTAINERS", "300"))
        descriptors = len(os.listdir("/proc/self/fd"))
        for i in range(count):
            r = self.sb.run(["true"], id=f"loop{i}")
            self.assertEqual(0, r.returncode, r.stderr)
        self.check_nothing_left()
        self.assertEqual(descriptors, len(os.listdir("/proc/self/fd")))

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
        self.check_nothing_left()


if __name__ == "__main__":
    harness.main()
