"""A container under load that is to stay alive: what is looked at from outside while a program in it
does its worst, and after that. Used by soak_test.py and scripts/soak."""

import os
import subprocess
import time

import harness
from harness import status_of

MIB = 1 << 20


def children_of(pid):
    """Its children, and whether each is a zombie."""
    found = {}
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = status_of(p)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if status["PPid"] == str(pid):
            found[int(p)] = status["State"].startswith("Z")
    return found


class Soaked:
    """A container whose init sleeps, and that is asked from outside whether it still lives."""

    ANSWER_S = 30     # `runsc exec true`, on a busy machine
    SENTRY_MIB = 320  # what the sentry may hold after the load is gone

    def __init__(self, sandbox, flags=(), caps=None, edit=None):
        self.sb, self.flags = sandbox, list(flags)
        config = harness.default_config(["sleep", "1000000"], caps=caps)
        if edit:
            edit(config)
        self.id = self.sb.create(config, flags=self.flags)
        started = self.sb.runsc("start", self.id, flags=self.flags)
        assert started.returncode == 0, started.stderr
        self.sb.wait_status(self.id, "running")
        self.pid = self.sb.state(self.id)["pid"]
        self.slowest = 0
        self.answers()
        self.stubs = len(children_of(self.pid))

    def answers(self):
        """Seconds until `exec true` has come back. AssertionError if it does not."""
        begin = time.monotonic()
        process = subprocess.Popen(self.sb.command("exec", self.id, "true", flags=self.flags), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, err = process.communicate(timeout=self.ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.id}: no answer to exec within {self.ANSWER_S} s") from None
        assert process.returncode == 0, f"{self.id}: exec true: {process.returncode} {err.strip()[-500:]}"
        took = time.monotonic() - begin
        self.slowest = max(self.slowest, took)
        return took

    def load(self, args, seconds, env=(), user=None):
        """Runs a program in the container to its end, and asks beside it. Its exit status (None: it had to be killed,
        `seconds` and a while after it had begun), and the end of its output."""
        path = os.path.join(self.sb.dir, "load.out")
        who = ["-u", user] if user else []
        with open(path, "w") as out:
            process = subprocess.Popen(
                self.sb.command("exec", *who, *[w for e in env for w in ("-e", e)], self.id, *args, flags=self.flags),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        self.sb.children.append(process)
        deadline = time.monotonic() + seconds
        asked = time.monotonic()
        status = None
        while time.monotonic() < deadline:
            try:
                status = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - asked > 3:
                    self.answers()
                    asked = time.monotonic()
        self.sb.children.remove(process)
        if status is None:
            process.kill()
            process.wait()
        with open(path, errors="replace") as f:
            return status, f.read()[-4000:]

    def end_others(self):
        """Kills what runs in the container beside its init."""
        self.sb.runsc("exec", self.id, "sh", "-c", "kill -9 -1", flags=self.flags)

    def check(self):
        """After the load: the same sentry, it answers, holds little, and no stubs are left without a process."""
        assert self.sb.state(self.id).get("pid") == self.pid, self.sb.state(self.id)
        deadline = time.monotonic() + 20
        while True:
            self.answers()
            stubs = children_of(self.pid)
            rss = int(status_of(self.pid)["VmRSS"].split()[0]) * 1024
            # The pool holds some ready.
            if len(stubs) <= self.stubs + 4 and not any(stubs.values()) and rss < self.SENTRY_MIB * MIB:
                return rss
            assert time.monotonic() < deadline, (f"{len(stubs)} stubs (at first {self.stubs}), zombies "
                                                 f"{sum(stubs.values())}, sentry {rss // MIB} MiB")
            time.sleep(0.5)
