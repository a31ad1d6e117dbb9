#!/usr/bin/env python3
"""The ptrace platform (--platform=ptrace): who traces whom, what ends with what, and hosts without
seccomp(2)."""

import ctypes
import json
import os
import signal
import struct
import time

import harness
import leftovers
from harness import default_config, status_of

FLAGS = ["--platform=ptrace"]
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SYS_PRCTL, SYS_SECCOMP = 157, 317
EPERM = 1


def refuse_seccomp():
    """From now on this process may load no seccomp filter."""
    load, equal, ret = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0), (equal, 3, 0, SYS_SECCOMP), (equal, 0, 3, SYS_PRCTL), (load, 0, 0, 16),
               (equal, 0, 1, PR_SET_SECCOMP), (ret, 0, 0, 0x50000 | EPERM), (ret, 0, 0, 0x7fff0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *i) for i in program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        os._exit(99)


class PtraceTest(harness.ContainerTest):

    def start(self, args):
        id = self.sb.create(default_config(args), flags=FLAGS)
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        self.sb.wait_status(id, "running")
        return id, self.sb.state(id)["pid"]

    def stubs(self, sentry):
        return leftovers.descendants(sentry)

    def wait_for(self, what):
        deadline = time.monotonic() + 60
        while not what():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def busy_stub(self, sentry):
        """Of the stubs the one that computes."""
        busy = []
        self.wait_for(lambda: busy.extend(p for p in self.stubs(sentry)
                                          if int((leftovers.stat_of(p) or [0] * 20)[11]) > 10) or busy)
        return busy[0]

    def test_stubs_are_traced(self):
        id, sentry = self.start(["sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000"])
        threads = {t: open(f"/proc/{sentry}/task/{t}/comm").read().strip()
                   for t in os.listdir(f"/proc/{sentry}/task")}
        self.wait_for(lambda: len(self.stubs(sentry)) > 4)
        for p in self.stubs(sentry):
            self.assertEqual("stub-tracer", threads.get(status_of(p)["TracerPid"]), p)
        r = self.sb.runsc("exec", id, "sh", "-c", "python3 -c 'import os, threading\n"
                          "t = [threading.Thread(target=os.getppid) for i in range(20)]\n"
                          "[x.start() for x in t]; [x.join() for x in t]; print(os.getpid() > 1)'")
        self.assertEqual("True\n", r.stdout, r.stderr)

    def test_kill_the_sentry(self):
        _, sentry = self.start(["sh", "-c", "while :; do :; done & while :; do sleep 0.01; done"])
        stubs = self.stubs(sentry)
        self.assertGreater(len(stubs), 1)
        os.kill(sentry, signal.SIGKILL)
        self.wait_for(lambda: not any(leftovers.is_alive(p) for p in stubs))

    def test_kill_a_stub(self):
        """Its process ends alone, threads and all."""
        id, sentry = self.start(["sh", "-c", "while :; do :; done & wait $!; echo status $?; sleep 1000"])
        busy = self.busy_stub(sentry)
        os.kill(busy, signal.SIGKILL)
        os.kill(busy, signal.SIGKILL)
        self.wait_for(lambda: "status 137" in self.sb.output(id))
        self.assertFalse(leftovers.is_alive(busy))
        self.assertEqual("7\n", self.sb.runsc("exec", id, "sh", "-c", "echo 7").stdout)

    def test_stop_and_continue(self):
        """SIGSTOP of a stub by the host holds it, and SIGCONT lets it go on."""
        id, sentry = self.start(["sh", "-c", "i=0; while :; do i=$((i + 1)); "
                                             "[ $((i % 1000)) = 0 ] && echo $i > /beat; done"])
        beat = lambda: self.sb.runsc("exec", id, "cat", "/beat").stdout
        self.wait_for(lambda: beat().strip())
        busy = self.busy_stub(sentry)
        os.kill(busy, signal.SIGSTOP)
        time.sleep(0.2)
        first = beat()
        time.sleep(0.2)
        self.assertEqual(first, beat())
        os.kill(busy, signal.SIGCONT)
        self.wait_for(lambda: beat() not in ("", first))

    def test_delete_leaves_nothing(self):
        id, sentry = self.start(["sh", "-c", "for i in 1 2 3; do (while :; do :; done) & done; wait"])
        stubs = self.stubs(sentry)
        self.assertEqual(0, self.sb.runsc("delete", "-f", id).returncode)
        self.wait_for(lambda: not any(leftovers.is_alive(p) for p in [sentry, *stubs]))

    def test_features(self):
        annotations = json.loads(self.sb.runsc("features").stdout)["annotations"]
        self.assertEqual("available", annotations["runsc.platform.ptrace"])
        self.assertEqual("systrap", annotations["runsc.platform"])
        text = self.sb.runsc("features", "--platforms").stdout
        self.assertEqual("systrap: available, used by --platform=auto\nptrace: available\n", text)
        r = self.sb.runsc("features", preexec_fn=refuse_seccomp)
        annotations = json.loads(r.stdout)["annotations"]
        self.assertEqual("ptrace", annotations["runsc.platform"])
        self.assertRegex(annotations["runsc.platform.systrap"], "^unavailable: .+")

    def run_without_seccomp(self, *flags):
        bundle = self.sb.bundle(default_config(["sh", "-c", "grep Seccomp: /proc/self/status; echo $((6 * 7))"]))
        id = f"noseccomp{len(self.sb.containers)}"
        self.sb.containers.append(id)
        return self.sb.runsc("run", "--bundle", bundle, id, flags=flags, preexec_fn=refuse_seccomp)

    def test_host_without_seccomp(self):
        """Refused unless it was asked for; then it runs on the ptrace platform."""
        for flags in [], FLAGS:
            r = self.run_without_seccomp(*flags)
            self.assertNotEqual(0, r.returncode)
            # Of the two processes that need it, one comes first.
            self.assertRegex(r.stderr, r"seccomp\(2\); --allow-no-seccomp starts without")
        for flags in [], FLAGS:
            r = self.run_without_seccomp("--allow-no-seccomp", *flags)
            self.assertEqual("Seccomp:\t0\n42\n", r.stdout, r.stderr)
        r = self.run_without_seccomp("--allow-no-seccomp", "--platform=systrap")
        self.assertNotEqual(0, r.returncode)
        self.assertIn("platform: ", r.stderr)

    def test_allowing_it_changes_nothing_where_there_is_seccomp(self):
        id = self.sb.create(default_config(["sleep", "1000"]), flags=["--allow-no-seccomp"])
        pid = self.sb.state(id)["pid"]
        self.assertEqual("2", status_of(pid)["Seccomp"])
        name = next(t for t in os.listdir("/proc") if t.isdigit() and
                    leftovers.name_of(int(t)) == f"runsc-gofer gofer {id}")
        self.assertEqual("2", status_of(name)["Seccomp"])


if __name__ == "__main__":
    harness.main()
