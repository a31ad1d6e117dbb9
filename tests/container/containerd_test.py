#!/usr/bin/env python3
"""runsc under containerd (ctr, shim io.containerd.runc.v2 with BinaryName), beside runc."""


import subprocess

import engines
import harness
from engines import IMAGE


class Containerd(engines.Engine):
    programs = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"]

    def start(self):
        config = self.write("config.toml", f"""
version = 2
root = "{self.dir}/root"
state = "{self.dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{self.dir}/c.sock"
[ttrpc]
  address = "{self.dir}/t.sock"
""")
        self.env["CONTAINERD_ADDRESS"] = self.path("c.sock")
        self.env["CONTAINERD_NAMESPACE"] = self.cgroup  # also the parent of the cgroups
        self.daemon("containerd", ["containerd", "--config", config], ["ctr", "version"])
        r = self.command("image", "import", engines.make_image(self.path("image.tar")))
        assert r.returncode == 0, r.stderr

    def command(self, *args, **kw):
        return self.run("ctr", *args, **kw)


class ContainerdTest(engines.EngineTest):
    engine_class = Containerd

    def ctr_run(self, options, id, args, runtime="runsc", **kw):
        program = self.engine.runtime_wrapper() if runtime == "runsc" else "runc"
        return self.engine.command("run", "--runc-binary", program, *options, IMAGE, id, *args, **kw)

    def both(self, options, args):
        """`ctr run` under runsc does what it does under runc."""
        results = []
        for runtime in ("runsc", "runc"):
            r = self.ctr_run(["--rm", *options], "c-" + runtime, args, runtime)
            results.append((r.returncode, r.stdout))
        self.assertEqual(results[1], results[0], f"{options} {args}")
        return results[0]

    def task_status(self, id):
        for line in self.ok("tasks", "ls").splitlines():
            if line.split()[0] == id:
                return line.split()[2]
        return "none"

    def test_options(self):
        self.engine.write("file", "of the host\n")
        self.assertEqual((7, "out\n"), self.both([], ["sh", "-c", "echo out; exit 7"]))
        self.both(["--read-only", "--cwd", "/etc", "--env", "A=b", "--mount",
                   f"type=bind,src={self.engine.path('file')},dst=/file,options=rbind:ro"],
                  ["sh", "-c", "pwd; echo $A; cat /file; echo > /file; touch /no"])
        self.both(["--cap-drop", "CAP_KILL", "--seccomp"], ["grep", "CapEff", "/proc/self/status"])
        self.both(["--user", "33:44"], ["id"])
        self.assertEqual(1, self.both([], ["no-such-program"])[0])

    def test_life(self):
        self.assertEqual(0, self.ctr_run(["-d", "--memory-limit", str(64 << 20)], "c", [
            "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"]).returncode)
        self.assertEqual("RUNNING", self.task_status("c"))
        r = self.engine.command("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "echo in; exit 4")
        self.assertEqual((4, "in\n"), (r.returncode, r.stdout), r.stderr)
        self.assertRegex(self.ok("tasks", "metrics", "c"), rf"memory.limit_in_bytes +{64 << 20}")
        self.ok("tasks", "pause", "c")
        self.assertEqual("PAUSED", self.task_status("c"))
        self.ok("tasks", "resume", "c")
        self.assertEqual("RUNNING", self.task_status("c"))
        # The processes by the host's numbers, which are alive and in the container's cgroup.
        self.ok("tasks", "exec", "-d", "--exec-id", "s", "c", "sleep", "1000")
        pids = [int(line.split()[0]) for line in self.ok("tasks", "ps", "c").splitlines()[1:]]
        self.assertGreaterEqual(len(pids), 2)
        for pid in pids:
            with open(f"/proc/{pid}/cgroup") as f:
                self.assertIn(f":/{self.engine.cgroup}/c\n", f.read())
        self.ok("tasks", "kill", "--exec-id", "s", "c")
        r = self.engine.command("tasks", "checkpoint", "c")
        self.assertEqual(1, r.returncode)
        self.assertIn("runsc does not support checkpoint", r.stderr)
        self.ok("tasks", "kill", "-s", "TERM", "c")
        self.eventually(lambda: self.task_status("c"), "STOPPED")
        r = self.engine.command("tasks", "delete", "c")
        self.assertIn("exit code 3", r.stderr)
        self.ok("c", "rm", "c")

    def test_terminal(self):
        t, child = self.engine.terminal(
            "ctr", "run", "--runc-binary", self.engine.runtime_wrapper(), "--rm", "-t", IMAGE, "c", "sh")
        t.type_until("stty size; tty\n", r"24 80\r+\n/dev/pts/0")
        t.type("exit 5\n")
        self.assertEqual(5, child.wait(timeout=20))

    def test_out_of_memory(self):
        log = self.engine.path("events")
        with open(log, "w") as f:
            events = subprocess.Popen(["ctr", "events"], stdout=f, env=self.engine.env)
        self.addCleanup(events.wait)
        self.addCleanup(events.kill)
        r = self.ctr_run(["--rm", "--memory-limit", str(32 << 20)], "c",
                         ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"])
        self.assertEqual(137, r.returncode)
        def read():
            with open(log) as f:
                return f.read()
        self.eventually(read, r'/tasks/oom {"container_id":"c"}')


if __name__ == "__main__":
    harness.main()
