#!/usr/bin/env python3
"""Limits of processes and memory as the container sees them, and their changes by `runsc update`."""

import os

import harness
from harness import default_config

# Starts children until it may not, and tells how many there were.
FORK = """
import os, signal
children = []
try:
    while len(children) < 60:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    pass
print(len(children), flush=True)
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


class LimitsTest(harness.ContainerTest):

    def config(self, args, pids, memory=1 << 30):
        config = default_config(args)
        config["linux"]["cgroupsPath"] = f"/runsc-test-limits-{os.getpid()}"
        config["linux"]["resources"] = {"pids": {"limit": pids}, "memory": {"limit": memory}}
        return config

    def check(self, result):
        if result.returncode and "cgroup" in result.stderr:
            self.skipTest(result.stderr)
        return result

    def test_few_processes(self):
        """What serves the container is not counted as its own."""
        for limit in (1, 2, 10, 40):
            r = self.check(self.sb.run(["python3", "-c", FORK],
                                       config=self.config(["python3", "-c", FORK], limit)))
            self.assertEqual((0, f"{limit - 1}\n"), (r.returncode, r.stdout), r.stderr)

    def test_update_is_seen_inside(self):
        try:
            id = self.sb.create(self.config(["sleep", "1000"], 10))
        except AssertionError as e:
            if "cgroup" in str(e):
                self.skipTest(str(e))
            raise
        self.sb.runsc("start", id)
        run = lambda *args: self.sb.runsc("exec", id, *args).stdout
        self.assertEqual("8\n", run("python3", "-c", FORK))
        self.assertIn("MemTotal:        1048576 kB", run("cat", "/proc/meminfo"))
        r = self.sb.runsc("update", "--pids-limit", "20", "--memory", str(512 << 20), id)
        self.assertEqual(0, r.returncode, r.stderr)
        self.assertEqual("18\n", run("python3", "-c", FORK))
        self.assertIn("MemTotal:         524288 kB", run("cat", "/proc/meminfo"))
        self.assertEqual("20\n", run("cat", "/proc/sys/kernel/threads-max"))
        self.assertEqual(0, self.sb.runsc("update", "--pids-limit", "5", id).returncode)
        self.assertEqual("3\n", run("python3", "-c", FORK))
        self.assertIn("MemTotal:         524288 kB", run("cat", "/proc/meminfo"))
        self.sb.runsc("pause", id)
        self.assertIn("is paused", self.sb.runsc("update", "--pids-limit", "6", id).stderr)
        self.sb.runsc("resume", id)


if __name__ == "__main__":
    harness.main()
