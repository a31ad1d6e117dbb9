#!/usr/bin/env python3
"""kill -9 of the runtime's own processes at any moment: the container counts as stopped within a
second, nothing is left after `delete`, what was synced is there, and other sandboxes go on.

RUNSC_TEST_CRASH_ROUNDS: how many random crashes (default 40). RUNSC_TEST_SEED: which (it is printed)."""

import os
import random
import signal
import subprocess
import time

import harness
import leftovers
from harness import default_config

# Counts up in a file that is synced before the number is printed, with processes beside it.
WRITER = """
import os, subprocess, sys
subprocess.Popen(["sh", "-c", "while :; do sleep 0.01; done"])
fd = os.open("/counter", os.O_RDWR | os.O_CREAT, 0o644)
n = 0
while True:
    n += 1
    os.pwrite(fd, b"%08d" % n, 0)
    os.fsync(fd)
    os.write(1, b"%08d\\n" % n)
"""


class CrashTest(harness.ContainerTest):

    def setUp(self):
        super().setUp()
        self.mounts = leftovers.mounts(self.sb.dir)
        self.cgroup = f"runsc-crash-{os.getpid()}"
        self.number = 0

    def config(self, args):
        config = default_config(args)
        if os.path.isdir("/sys/fs/cgroup"):
            config["linux"]["cgroupsPath"] = f"/{self.cgroup}"
        return config

    def spawn(self, *command):
        """Starts runsc; what the container prints goes to a file."""
        self.number += 1
        out = os.path.join(self.sb.dir, f"out{self.number}")
        with open(out, "wb") as f:
            child = subprocess.Popen(self.sb.command(*command), stdin=subprocess.DEVNULL, stdout=f,
                                     stderr=subprocess.STDOUT)
        self.sb.children.append(child)
        return child, out

    def wait_for(self, what, timeout=20):
        deadline = time.monotonic() + timeout
        while not what():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def family(self, runsc, id):
        """The living processes of a sandbox by role, as far as they are there."""
        roles = {"runsc": [runsc.pid] if runsc.poll() is None else [], "sentry": [], "gofer": [], "stub": []}
        for pid, name in leftovers.processes([c for c in self.sb.children if c is not runsc]).items():
            if pid == runsc.pid or not name.endswith(" " + id) and "runsc-" in name:
                continue
            role = ("gofer" if name.startswith("runsc-gofer") else
                    "sentry" if name.startswith("runsc-sandbox") else None)
            if role:
                roles[role].append(pid)
                if role == "sentry":
                    roles["stub"] += leftovers.descendants(pid)
        return roles

    def check_stopped(self, id, what, since):
        status = None
        while time.monotonic() < since + 1:
            status = self.sb.state(id)["status"]
            if status in ("stopped", "none"):
                return
        self.fail(f"{what}: {status} after {time.monotonic() - since:.2f} s")

    def check_gone(self, id, what):
        r = self.sb.runsc("delete", id)
        if r.returncode and "is incomplete" in r.stderr:
            # It died before it had written its state.
            r = self.sb.runsc("delete", "-f", id)
        if r.returncode:
            # A `run` that lives on has deleted it itself, or it died before there was anything.
            self.assertIn("does not exist", r.stderr, what)
        others = [c for c in self.sb.children if c.poll() is None]
        self.assertEqual({}, leftovers.wait_no_processes(others), what)
        self.assertFalse(os.path.exists(os.path.join(self.sb.root, id)), what)
        self.assertEqual([], leftovers.cgroups(self.cgroup), what)
        self.assertEqual(self.mounts, leftovers.mounts(self.sb.dir), what)

    def check_counter(self, out, what):
        with open(out, "rb") as f:
            printed = [int(line) for line in f.read().split(b"\n")[:-1] if line.isdigit()]
        if not printed:
            return
        with open(os.path.join(self.sb.rootfs, "counter"), "rb") as f:
            self.assertGreaterEqual(int(f.read() or b"0"), printed[-1], what)

    def crash(self, mode, role, delay, id):
        """One container of which a process is killed after `delay` seconds."""
        counter = os.path.join(self.sb.rootfs, "counter")
        if os.path.exists(counter):
            os.unlink(counter)
        what = f"{mode}, kill the {role} after {delay:.3f} s"
        bundle = self.sb.bundle(self.config(["python3", "-c", WRITER]))
        self.sb.containers.append(id)
        child, out = self.spawn(*mode.split(), "--bundle", bundle, id)
        if mode == "create" and role != "runsc":
            self.assertEqual(0, child.wait(20), what)
            if delay > 0.02:
                self.assertEqual(0, self.sb.runsc("start", id).returncode, what)
        time.sleep(delay)
        victims = self.family(child, id)[role]
        if not victims:
            # Not there yet, or already ended: the run goes to its end another way.
            victims = [p for p in self.family(child, id)["sentry"] + self.family(child, id)["runsc"]][:1]
            role = "sentry"
        victim = self.random.choice(victims) if victims else None
        since = time.monotonic()
        if victim:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if role == "stub":
            # A process of the guest has died, as by the host's OOM killer; the rest goes on.
            self.sb.runsc("kill", "--all", id, "KILL")
            since = time.monotonic()
        if role == "runsc" and mode != "run" and self.sb.state(id)["status"] == "created":
            # It had done its work.
            self.sb.runsc("kill", id, "KILL")
            since = time.monotonic()
        self.check_stopped(id, what, since)
        child.wait(20)
        self.check_gone(id, what)
        self.check_counter(out, what)

    def test_random_moments(self):
        rounds = int(os.environ.get("RUNSC_TEST_CRASH_ROUNDS", "40"))
        seed = int(os.environ.get("RUNSC_TEST_SEED", str(random.randrange(1 << 32))))
        print(f"RUNSC_TEST_SEED={seed}", flush=True)
        self.random = random.Random(seed)
        bystander, out = self.spawn("run", "--bundle", self.sb.bundle(default_config(
            ["sh", "-c", "while :; do echo alive; sleep 0.05; done"])), "bystander")
        self.sb.containers.append("bystander")
        self.wait_for(lambda: os.path.getsize(out) > 0)
        for i in range(rounds):
            mode = self.random.choice(["run", "run", "create"])
            role = self.random.choice(["runsc", "sentry", "gofer", "stub"])
            # Where most happens is the start; a guest that works is the other case.
            delay = self.random.choice([self.random.uniform(0, 0.03), self.random.uniform(0, 0.3)])
            self.crash(mode, role, delay, f"crash{i}")
            before = os.path.getsize(out)
            self.wait_for(lambda: os.path.getsize(out) > before)
        self.assertIsNone(bystander.poll())

    def test_runsc_killed_while_a_hook_runs(self):
        """Between create's steps, for each kind of hook that create runs."""
        for kind in ("prestart", "createRuntime", "createContainer"):
            with self.subTest(kind=kind):
                id = f"hook-{kind}"
                mark = os.path.join(self.sb.dir, id)
                config = self.config(["sleep", "100"])
                config["hooks"] = {kind: [{"path": "/bin/sh", "args": [
                    "sh", "-c", f"echo > {mark}; exec sleep 1"]}]}
                self.sb.containers.append(id)
                child, _ = self.spawn("create", "--bundle", self.sb.bundle(config), id)
                self.wait_for(lambda: os.path.exists(mark))
                self.assertEqual("creating", self.sb.state(id)["status"])
                child.kill()
                self.check_stopped(id, kind, time.monotonic())
                child.wait()
                r = self.sb.runsc("start", id)
                self.assertEqual((1, 1), (r.returncode, len(r.stderr.splitlines())), r.stderr)
                # Its children are the test's now, which is to wait for them as init does: a hook inside
                # the sandbox's PID namespace keeps that from ending.
                leftovers.wait_no_processes()
                self.check_gone(id, kind)

    def test_second_runsc_on_a_half_made_directory(self):
        """Each way in which the state can be broken is named in one line, and delete -f clears it."""
        id = self.sb.create(self.config(["sleep", "100"]), id="half")
        directory = os.path.join(self.sb.root, id)
        state = os.path.join(directory, "state.json")
        with open(state) as f:
            good = f.read()
        for text in ("", "{", "[]", "{}", good.replace('"sandbox"', '"other"'), good[:len(good) // 2], None):
            with self.subTest(text=text):
                if text is None:
                    os.unlink(state)
                else:
                    with open(state, "w") as f:
                        f.write(text)
                for command in (["state", id], ["start", id], ["kill", id], ["exec", id, "true"], ["delete", id],
                                ["ps", id]):
                    r = self.sb.runsc(*command)
                    self.assertNotEqual(0, r.returncode, command)
                    self.assertEqual(1, len(r.stderr.splitlines()), r.stderr)
                    self.assertIn("half", r.stderr)
                r = self.sb.runsc("list")
                self.assertEqual((0, 1), (r.returncode, len(r.stdout.splitlines())))
                self.assertIn("half", r.stderr)
        self.assertEqual(0, self.sb.runsc("delete", "-f", id).returncode)
        self.check_gone(id, "half made")


if __name__ == "__main__":
    harness.main()
