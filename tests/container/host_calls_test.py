#!/usr/bin/env python3
"""A process of the runtime that makes a host call outside its list dies, and the container with it."""

import json
import os
import subprocess
import time

import harness
from harness import default_config
from isolation_test import descendants, gofer_of

INJECT = os.environ.get("RUNSC_INJECT", "")
GETPID, SOCKET, OPEN, EXECVE, PTRACE = 39, 41, 2, 59, 101
GETSOCKOPT, SETSOCKOPT, IOCTL = 55, 54, 16
CALLS = {"socket": (SOCKET, 2, 1, 0), "open": (OPEN, 0, 0, 0), "execve": (EXECVE, 0, 0, 0),
         "ptrace": (PTRACE, 0, 0, 0, 0)}


def stub_of(sentry, text):
    """The stub in which the program runs whose file's name has `text` in it."""
    for p in descendants(sentry)[1:]:
        with open(f"/proc/{p}/maps") as f:
            if text in f.read():
                return p
    return None


class HostCallsTest(harness.ContainerTest):

    def inject(self, pid, *call):
        r = subprocess.run([INJECT, str(pid), *map(str, call)], capture_output=True, text=True, timeout=20)
        self.assertEqual(0, r.returncode, r.stderr)
        return r.stdout.strip()

    def start(self, flags=()):
        id = self.sb.create(default_config(["sleep", "1000"]), flags=flags)
        self.sb.runsc("start", id)
        self.sb.wait_status(id, "running")
        waiter = subprocess.Popen(self.sb.command("wait", id), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.sb.children.append(waiter)
        time.sleep(0.2)
        return id, self.sb.state(id)["pid"], waiter

    def check_ended(self, id, sentry, waiter, status):
        """Within a second every command tells the end, and nothing of the container runs on."""
        self.sb.wait_status(id, "stopped", timeout=2)
        listed = [c for c in json.loads(self.sb.runsc("list", "--format", "json").stdout) if c["id"] == id]
        self.assertEqual(["stopped"], [c["status"] for c in listed])
        out, err = waiter.communicate(timeout=10)
        self.assertEqual(status, json.loads(out)["exitStatus"], out + err)
        self.assertNotEqual(0, self.sb.runsc("exec", id, "true").returncode)
        deadline = time.monotonic() + 2
        while (gofer_of(id) or os.path.exists(f"/proc/{sentry}/ns/pid")) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertIsNone(gofer_of(id))
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)

    def test_sentry(self):
        for name, call in CALLS.items():
            with self.subTest(call=name):
                id, pid, waiter = self.start()
                self.assertEqual("killed 31", self.inject(pid, *call))
                self.check_ended(id, pid, waiter, 128 + 9)

    def test_sentry_with_host_network(self):
        """Sockets of the host are those of the list, and so are their options."""
        stream, cloexec_nonblock = 1, 0o2000000 | 0o4000
        for name, call in {
                "AF_UNIX": (SOCKET, 1, stream | cloexec_nonblock, 0),
                "AF_NETLINK": (SOCKET, 16, 3 | cloexec_nonblock, 0),
                "AF_PACKET": (SOCKET, 17, 3 | cloexec_nonblock, 0),
                "raw": (SOCKET, 2, 3 | cloexec_nonblock, 1),
                "blocking": (SOCKET, 2, stream, 6),
                "SO_ATTACH_FILTER": (SETSOCKOPT, 1000, 1, 26),
                "TCP_ULP": (SETSOCKOPT, 1000, 6, 31),
                "IPT_SO_GET_INFO": (GETSOCKOPT, 1000, 0, 64),
                "SIOCSIFFLAGS": (IOCTL, 1000, 0x8914)}.items():
            with self.subTest(call=name):
                id, pid, waiter = self.start(flags=["--network=host"])
                self.assertEqual("killed 31", self.inject(pid, *call))
                self.check_ended(id, pid, waiter, 128 + 9)
        id, pid, waiter = self.start(flags=["--network=host"])
        self.assertRegex(self.inject(pid, SOCKET, 2, stream | cloexec_nonblock, 6), "^returned [0-9]")
        self.assertEqual("running", self.sb.state(id)["status"])

    def test_gofer(self):
        for name in ("socket", "execve", "ptrace"):
            with self.subTest(call=name):
                id, pid, waiter = self.start()
                self.assertEqual("killed 31", self.inject(gofer_of(id), *CALLS[name]))
                self.check_ended(id, pid, waiter, 128 + 9)

    def test_stub(self):
        for name, call in CALLS.items():
            with self.subTest(call=name):
                id, pid, waiter = self.start()
                self.assertEqual("killed 31", self.inject(stub_of(pid, "sleep"), *call))
                self.check_ended(id, pid, waiter, 128 + 9)

    def test_stub_of_another_process(self):
        """Only the process dies whose stub it was; its parent sees it killed."""
        id = self.sb.create(default_config(["sh", "-c", "sleep 1000; echo status $?; exec tail -f /dev/null"]))
        self.sb.runsc("start", id)
        self.sb.wait_status(id, "running")
        time.sleep(0.3)
        pid = self.sb.state(id)["pid"]
        self.assertEqual("killed 31", self.inject(stub_of(pid, "sleep"), *CALLS["socket"]))
        deadline = time.monotonic() + 5
        while "status" not in self.sb.output(id) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertIn("status 137", self.sb.output(id))
        self.assertEqual("running", self.sb.state(id)["status"])

    def test_calls_on_the_list_go_on(self):
        """What the tests above do is what kills, not the tool."""
        id, pid, waiter = self.start()
        self.assertTrue(self.inject(pid, GETPID).startswith("returned"))
        self.assertEqual("running", self.sb.state(id)["status"])
        self.assertEqual(0, self.sb.runsc("exec", id, "true").returncode)


if __name__ == "__main__":
    harness.main()
