#!/usr/bin/env python3
"""`runsc events`, and the container's processes by the host's numbers."""

import json
import os
import subprocess
import time

import harness
from harness import default_config


class EventsTest(harness.ContainerTest):

    def create(self, args):
        config = default_config(args)
        config["linux"]["cgroupsPath"] = f"/runsc-test-{os.getpid()}/c"
        config["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 200}}
        try:
            return self.sb.create(config)
        except AssertionError as e:
            if "cgroup" in str(e):
                self.skipTest(f"no right to make cgroups: {e}")
            raise

    def test_stats_once(self):
        id = self.create(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 100"])
        self.sb.runsc("start", id)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            r = self.sb.runsc("events", "--stats", id)
            self.assertEqual(0, r.returncode, r.stderr)
            event = json.loads(r.stdout)
            if event["data"]["cpu"]["usage"]["total"] > 50_000_000:
                break
        self.assertEqual(("stats", id), (event["type"], event["id"]))
        data = event["data"]
        self.assertGreater(data["cpu"]["usage"]["total"], 50_000_000)
        self.assertEqual(64 << 20, data["memory"]["usage"]["limit"])
        self.assertGreater(data["memory"]["usage"]["usage"], 1 << 20)
        self.assertGreater(data["memory"]["raw"]["pgfault"], 0)
        self.assertGreater(data["pids"]["limit"], 200)
        self.assertGreater(data["pids"]["current"], 3)

    def test_intervals_memory_and_the_end(self):
        id = self.create(["dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"])
        events = subprocess.Popen(self.sb.command("events", "--interval", "100ms", id), text=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.sb.children.append(events)
        seen = [json.loads(events.stdout.readline()) for _ in range(3)]
        self.assertEqual(["stats"] * 3, [e["type"] for e in seen])
        self.sb.runsc("start", id)
        out, _ = events.communicate(timeout=30)
        self.assertEqual(0, events.returncode)
        self.assertIn({"type": "oom", "id": id}, [json.loads(line) for line in out.splitlines()])
        r = self.sb.runsc("events", id)
        self.assertEqual(1, r.returncode)
        self.assertIn("not running", r.stderr)

    def test_what_cannot_be_told(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        self.assertIn("has no cgroup", self.sb.runsc("events", id).stderr)
        for bad in ("0s", "5", "x", "-1s", "nans", "1d"):
            self.assertEqual(1, self.sb.runsc("events", "--interval", bad, id).returncode, bad)
        self.assertIn("does not exist", self.sb.runsc("events", "nobody").stderr)

    def test_processes_by_the_numbers_of_the_host(self):
        id = self.create(["sh", "-c", "sleep 100 & sleep 100 & wait"])
        self.sb.runsc("start", id)
        deadline = time.monotonic() + 20
        pids, last = [], None
        # Until all three are what they will be: a fork and then another program.
        while (len(pids) < 3 or pids != last) and time.monotonic() < deadline:
            last = pids
            time.sleep(0.3)
            pids = json.loads(self.sb.runsc("ps", "--format", "json", id).stdout)
        self.assertEqual(3, len(pids))
        self.assertIn(self.sb.state(id)["pid"], pids)
        for pid in pids:
            with open(f"/proc/{pid}/cgroup") as f:
                self.assertIn(f"/runsc-test-{os.getpid()}/c\n", f.read())

    def test_checkpoint_and_restore_are_refused(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        for command in ("checkpoint", "restore"):
            r = self.sb.runsc(command, "--image-path", "/nonexistent", id)
            self.assertEqual(1, r.returncode)
            self.assertIn("does not support " + command, r.stderr)
        self.assertEqual("created", self.sb.state(id)["status"])


if __name__ == "__main__":
    harness.main()
