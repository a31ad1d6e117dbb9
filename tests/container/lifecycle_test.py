#!/usr/bin/env python3
"""The OCI lifecycle through the runsc command: states, exit codes, exec, kill, list, hooks."""

import json
import os
import re
import signal
import subprocess
import time

import harness
from harness import default_config


class LifecycleTest(harness.ContainerTest):

    def test_run_passes_output_and_exit_status(self):
        r = self.sb.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
        self.assertEqual((7, "out\n", "err\n"), (r.returncode, r.stdout, r.stderr))

    def test_run_reads_standard_input(self):
        r = self.sb.run(["sort"], stdin="b\na\n")
        self.assertEqual((0, "a\nb\n"), (r.returncode, r.stdout))

    def test_standard_pipes_by_name(self):
        """Opening /dev/stdin and /dev/stdout opens the host's pipes again."""
        r = self.sb.run(["sh", "-c", "read a </dev/stdin; cat /proc/self/fd/0; echo $a >/dev/stdout"],
                        stdin="first\nsecond\n")
        self.assertEqual((0, "second\nfirst\n"), (r.returncode, r.stdout), r.stderr)

    def test_syscalls_tells_counts_and_times(self):
        config = default_config(
            # Of a file system whose look-ups are always the sentry's.
            ["perl", "-e", "-e '/proc/version' for 1..3000; open F, '/etc/passwd'; 1 while <F>; $| = 1;"
             " print \"done\\n\"; sleep 100"])
        id = self.sb.create(config)
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        deadline = time.monotonic() + 20
        while "done" not in self.sb.output(id) and time.monotonic() < deadline:
            time.sleep(0.05)
        r = self.sb.runsc("syscalls", "--format", "json", id)
        self.assertEqual(0, r.returncode, r.stderr)
        calls = {c["name"]: c for c in json.loads(r.stdout)["calls"]}
        stat = next(c for c in (calls.get("stat"), calls.get("newfstatat")) if c and
                    c["count"] >= 3000)
        self.assertLess(stat["count"], 3200)
        self.assertGreater(stat["measured"], 3000 / 400)
        parts = {name: p["meanNs"] for name, p in stat["parts"].items()}
        self.assertEqual({"whole", "handOff", "sentry", "wait", "hostCalls", "gofer"}, set(parts))
        self.assertGreater(parts["handOff"], 0)
        self.assertGreater(parts["sentry"], 0)
        self.assertAlmostEqual(parts["whole"], sum(v for k, v in parts.items() if k != "whole"),
                               delta=0.02 * parts["whole"] + 1)
        self.assertEqual(stat["measured"],
                         sum(n for _, n in stat["parts"]["whole"]["histogram"]))
        table = self.sb.runsc("syscalls", id)
        self.assertEqual(0, table.returncode)
        self.assertIn("SYSCALL", table.stdout.splitlines()[0])
        self.assertNotEqual(0, self.sb.runsc("syscalls", "nobody").returncode)

    def test_run_death_by_signal(self):
        r = self.sb.run(["sh", "-c", "kill -9 $$; sleep 1; exec sh -c 'kill -9 -1; exit 3'"])
        self.assertEqual(3, r.returncode)  # init is immune to its own SIGKILL
        config = default_config(["sleep", "100"])
        id = self.sb.create(config)
        self.sb.runsc("start", id)
        self.sb.runsc("kill", id, "KILL")
        r = self.sb.runsc("wait", id)
        self.assertIn("137", r.stdout + str(r.returncode))

    def test_create_start_state_kill_delete(self):
        id = self.sb.create(default_config(["sh", "-c", "echo started; exec sleep 100"]))
        state = self.sb.state(id)
        self.assertEqual("created", state["status"])
        self.assertGreater(state["pid"], 0)
        self.assertTrue(os.path.exists(f"/proc/{state['pid']}"))
        self.assertEqual("", self.sb.output(id))
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        self.sb.wait_status(id, "running")
        for _ in range(100):
            if self.sb.output(id):
                break
            time.sleep(0.02)
        self.assertEqual("started\n", self.sb.output(id))
        self.assertNotEqual(0, self.sb.runsc("start", id).returncode)
        r = self.sb.runsc("delete", id)
        self.assertNotEqual(0, r.returncode)
        self.assertEqual(1, len(r.stderr.strip().splitlines()), r.stderr)
        self.assertEqual(0, self.sb.runsc("kill", id, "KILL").returncode)
        self.sb.wait_status(id, "stopped")
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)
        self.assertNotEqual(0, self.sb.runsc("state", id).returncode)

    def test_duplicate_and_missing_ids(self):
        config = default_config(["sleep", "100"])
        id = self.sb.create(config)
        bundle = self.sb.bundle(config)
        r = self.sb.runsc("create", "--bundle", bundle, id)
        self.assertNotEqual(0, r.returncode)
        self.assertEqual("created", self.sb.state(id)["status"])
        for command in (["state"], ["start"], ["delete"], ["kill"], ["exec"]):
            r = self.sb.runsc(*command, "no-such-container", *(["true"] if command == ["exec"] else []))
            self.assertNotEqual(0, r.returncode, command)
            self.assertIn("no-such-container", r.stderr)
        for bad in ("../x", "a/b", "", "a" * 2000):
            self.assertNotEqual(0, self.sb.runsc("create", "--bundle", bundle, bad).returncode, bad)

    def test_pid_file_and_list(self):
        id = "listed-container"
        pid_file = os.path.join(self.sb.dir, "pid")
        bundle = self.sb.bundle(default_config(["sleep", "100"]))
        self.sb.containers.append(id)
        with open(os.devnull, "w") as null:
            subprocess.run(self.sb.command("run", "-d", "--pid-file", pid_file, "--bundle", bundle, id),
                           check=True, stdin=null, stdout=null, stderr=null, timeout=60)
        pid = int(open(pid_file).read())
        self.assertEqual(pid, self.sb.state(id)["pid"])
        self.assertEqual(id, self.sb.runsc("list", "-q").stdout.strip())
        listed = json.loads(self.sb.runsc("list", "--format", "json").stdout)
        self.assertEqual([(id, "running", pid)], [(c["id"], c["status"], c["pid"]) for c in listed])
        table = self.sb.runsc("list").stdout.splitlines()
        self.assertRegex(table[0], r"^ID +PID +STATUS +BUNDLE +CREATED +OWNER")

    def test_exec(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        self.sb.runsc("start", id)
        r = self.sb.runsc("exec", "-e", "NAME=value", "--cwd", "/usr", id, "sh", "-c",
                          "echo $NAME $PWD; cat /proc/1/comm; exit 5")
        self.assertEqual((5, "value /usr\nsleep\n"), (r.returncode, r.stdout), r.stderr)
        r = self.sb.runsc("exec", "-u", "1000:2000", id, "id")
        self.assertIn("uid=1000 gid=2000", r.stdout)
        r = subprocess.run(self.sb.command("exec", id, "cat"), input="through", text=True,
                           capture_output=True, timeout=30)
        self.assertEqual("through", r.stdout)
        process = os.path.join(self.sb.dir, "process.json")
        with open(process, "w") as f:
            json.dump({"args": ["sh", "-c", "echo $X"], "env": [harness.PATH, "X=json"], "cwd": "/",
                       "user": {"uid": 0, "gid": 0}}, f)
        self.assertEqual("json\n", self.sb.runsc("exec", "--process", process, id).stdout)
        r = self.sb.runsc("exec", id, "no-such-program")
        self.assertNotEqual(0, r.returncode)
        self.assertIn("no-such-program", r.stderr)

    def test_many_execs_and_kills(self):
        id = self.sb.create(default_config(
            ["sh", "-c", "trap 'echo got' USR1; echo ready; while :; do sleep 0.05; done"]))
        self.sb.runsc("start", id)
        for i in range(100):
            r = self.sb.runsc("exec", id, "sh", "-c", f"echo {i}; exit {i % 7}")
            self.assertEqual((i % 7, f"{i}\n"), (r.returncode, r.stdout), r.stderr)
        running = [subprocess.Popen(self.sb.command("exec", id, "sh", "-c", f"cat; exit {i}"), text=True,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE) for i in range(20)]
        for i, process in enumerate(running):
            out, _ = process.communicate(f"input {i}\n", timeout=30)
            self.assertEqual((i, f"input {i}\n"), (process.returncode, out))
        for i in range(100):
            self.assertEqual(0, self.sb.runsc("kill", id, "USR1").returncode)
        deadline = time.monotonic() + 10
        while "got" not in self.sb.output(id) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertIn("got\n", self.sb.output(id))
        self.assertEqual("running", self.sb.state(id)["status"])

    def test_exec_sees_and_signals_processes(self):
        id = self.sb.create(default_config(["sh", "-c", "sleep 100 & sleep 200 & wait"]))
        self.sb.runsc("start", id)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            r = self.sb.runsc("exec", id, "ps", "-e", "-o", "comm=")
            if r.stdout.split().count("sleep") == 2:
                break
            time.sleep(0.05)
        self.assertEqual(2, r.stdout.split().count("sleep"), r.stdout)
        pids = self.sb.runsc("ps", "--format", "json", id)
        self.assertGreaterEqual(len(json.loads(pids.stdout)), 3)
        self.assertEqual(0, self.sb.runsc("kill", "-a", id, "KILL").returncode)
        self.sb.wait_status(id, "stopped")

    def test_kill_reaches_a_handler(self):
        id = self.sb.create(default_config(
            ["sh", "-c", "trap 'echo got; exit 0' TERM; echo ready; while :; do sleep 0.05; done"]))
        self.sb.runsc("start", id)
        for _ in range(200):
            if "ready" in self.sb.output(id):
                break
            time.sleep(0.02)
        self.assertEqual(0, self.sb.runsc("kill", id, "SIGTERM").returncode)
        self.sb.wait_status(id, "stopped")
        self.assertEqual("ready\ngot\n", self.sb.output(id))
        self.assertNotEqual(0, self.sb.runsc("kill", id, "NOSUCH").returncode)

    def test_config_of_the_process(self):
        def edit(c):
            c["process"]["cwd"] = "/usr/lib"
            c["process"]["user"] = {"uid": 33, "gid": 44, "additionalGids": [55, 66], "umask": 0o27}
            c["process"]["noNewPrivileges"] = True
            c["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
            c["hostname"] = "named"
        r = self.sb.run(["sh", "-c", "pwd; id -u; id -G; umask; ulimit -Sn; ulimit -Hn; hostname; "
                         "grep -E 'NoNewPrivs|CapEff' /proc/self/status"], edit=edit)
        self.assertEqual(["/usr/lib", "33", "44 55 66", "0027", "100", "200", "named"],
                         r.stdout.splitlines()[:7], r.stderr)
        self.assertIn("NoNewPrivs:\t1", r.stdout)

    def test_capabilities(self):
        r = self.sb.run(["sh", "-c", "grep Cap /proc/self/status; chown 1:1 /tmp; echo $?; "
                         "mount -t tmpfs x /mnt 2>/dev/null; echo $?"], caps=["CAP_KILL"])
        self.assertRegex(r.stdout, r"CapEff:\t0000000000000020")
        self.assertRegex(r.stdout, r"CapBnd:\t0000000000000020")
        self.assertEqual(["1", "32"], r.stdout.split()[-2:])

    def test_readonly_root_masked_and_readonly_paths(self):
        def edit(c):
            c["root"]["readonly"] = True
            c["linux"]["maskedPaths"] += ["/etc/passwd", "/usr/share"]
            c["linux"]["readonlyPaths"] += ["/dev/shm"]
        r = self.sb.run(["sh", "-c", "touch /x; touch /proc/sys/kernel/x; touch /dev/shm/x; touch /dev/y; "
                         "wc -c < /etc/passwd; ls /usr/share | wc -l"], edit=edit)
        self.assertEqual(["0", "0"], r.stdout.split())
        for path in ("/x", "/proc/sys/kernel/x", "/dev/shm/x"):
            self.assertRegex(r.stderr, rf"'{path}': (Read-only file system|No such file)")
        self.assertNotIn("/dev/y", r.stderr)

    def test_bind_mounts(self):
        source = os.path.join(self.sb.dir, "shared dir é")
        os.mkdir(source)
        with open(os.path.join(source, "in"), "w") as f:
            f.write("from host")
        mounts = [{"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rw"]},
                  {"destination": "/ro", "type": "bind", "source": source, "options": ["bind", "ro"]},
                  {"destination": "/etc/onefile", "type": "bind", "source": os.path.join(source, "in"),
                   "options": ["bind"]},
                  {"destination": "/scratch", "type": "tmpfs", "source": "t", "options": ["size=1m", "mode=700"]}]
        r = self.sb.run(["sh", "-c", "cat /data/in /etc/onefile; echo to host > /data/out; "
                         "touch /ro/x || echo refused; cat /ro/out; stat -c %a /scratch; "
                         "dd if=/dev/zero of=/scratch/big bs=64k count=100 2>&1 | grep -c 'No space'"],
                        mounts=mounts)
        self.assertEqual("from hostfrom hostrefused\nto host\n700\n1\n", r.stdout, r.stderr)
        self.assertEqual("to host\n", open(os.path.join(source, "out")).read())

    def test_writes_reach_the_root_or_stay_in_the_overlay(self):
        self.sb.run(["sh", "-c", "echo written > /written; mv /etc/hostname /etc/moved 2>/dev/null; sync"])
        self.assertEqual("written\n", open(os.path.join(self.sb.rootfs, "written")).read())
        r = self.sb.run(["sh", "-c", "echo changed > /written; rm -r /usr/share/doc; mkdir /new; cat /written"],
                        flags=["--overlay"])
        self.assertEqual("changed\n", r.stdout, r.stderr)
        self.assertEqual("written\n", open(os.path.join(self.sb.rootfs, "written")).read())
        self.assertTrue(os.path.exists(os.path.join(self.sb.rootfs, "usr/share/doc")))
        self.assertFalse(os.path.exists(os.path.join(self.sb.rootfs, "new")))

    def test_devices(self):
        def edit(c):
            c["linux"]["devices"] = [{"path": "/dev/mynull", "type": "c", "major": 1, "minor": 3,
                                      "fileMode": 0o600, "uid": 5, "gid": 6}]
        r = self.sb.run(["sh", "-c", "stat -c '%F %t %T %a %u %g' /dev/mynull; echo x > /dev/mynull; "
                         "head -c 4 /dev/zero | od -An -tx1; ls -l /dev/fd | grep -c proc"], edit=edit)
        self.assertEqual("character special file 1 3 600 5 6\n 00 00 00 00\n1\n", r.stdout, r.stderr)

    def test_hooks(self):
        log = os.path.join(self.sb.dir, "hooks")
        def hook(name):
            return [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {name} $(cat) >> {log}"]}]
        def edit(c):
            c["hooks"] = {k: hook(k) for k in ("prestart", "createRuntime", "createContainer",
                                               "poststart", "poststop")}
            c["annotations"] = {"com.example": "yes"}
        config = default_config(["sleep", "100"])
        edit(config)
        id = self.sb.create(config)
        self.assertEqual("yes", self.sb.state(id)["annotations"]["com.example"])
        names = [l.split()[0] for l in open(log)]
        self.assertEqual(["prestart", "createRuntime"], names[:2])
        self.sb.runsc("start", id)
        self.assertEqual("poststart", open(log).read().splitlines()[-1].split()[0])
        self.sb.runsc("delete", "-f", id)
        last = open(log).read().splitlines()[-1]
        self.assertEqual("poststop", last.split()[0])
        state = json.loads(last.split(" ", 1)[1])
        self.assertEqual((id, "stopped"), (state["id"], state["status"]))

    def test_spec_features_help(self):
        directory = os.path.join(self.sb.dir, "specdir")
        os.mkdir(directory)
        r = self.sb.runsc("spec", "--bundle", directory)
        self.assertEqual(0, r.returncode, r.stderr)
        spec = json.load(open(os.path.join(directory, "config.json")))
        self.assertEqual(["sh"], spec["process"]["args"])
        features = json.loads(self.sb.runsc("features").stdout)
        self.assertIn("bind", features["mountOptions"])
        self.assertIn("ociVersionMin", features)
        text = self.sb.runsc("--help").stdout
        for command in "create start run exec events kill delete state list ps syscalls wait spec features do".split():
            self.assertRegex(text, rf"(?m)^ +{command}\b", command)

    def test_do(self):
        r = self.sb.runsc("do", "sh", "-c", "echo from do; uname -s; touch /created-by-do")
        self.assertEqual((0, "from do\nLinux\n"), (r.returncode, r.stdout), r.stderr)
        self.assertFalse(os.path.exists("/created-by-do"))

    def test_preserve_fds(self):
        r, w = os.pipe()
        os.set_inheritable(w, True)
        bundle = self.sb.bundle(default_config(["sh", "-c", "echo via fd 3 >&3"]))
        id = "preserve"
        self.sb.containers.append(id)
        # Descriptor 3 of the command is the pipe.
        result = subprocess.run(["sh", "-c", f'exec "$@" 3>&{w}', "sh",
                                 *self.sb.command("run", "--preserve-fds", "1", "--bundle", bundle, id)],
                                pass_fds=(w,), capture_output=True, text=True, timeout=60,
                                stdin=subprocess.DEVNULL)
        os.close(w)
        self.assertEqual(b"via fd 3\n", os.read(r, 100), result.stderr)
        os.close(r)

    def test_cgroups(self):
        def edit(c):
            c["linux"]["cgroupsPath"] = "/runsc-test/limits"
            c["linux"]["resources"] = {"memory": {"limit": 256 << 20}, "pids": {"limit": 100},
                                       "cpu": {"quota": 50000, "period": 100000, "shares": 512}}
        config = default_config(["sleep", "100"])
        edit(config)
        try:
            id = self.sb.create(config)
        except AssertionError as e:
            if "cgroup" in str(e):
                self.skipTest(f"no right to make cgroups: {e}")
            raise
        pid = self.sb.state(id)["pid"]
        text = open(f"/proc/{pid}/cgroup").read()
        self.assertIn("runsc-test/limits", text)
        self.sb.runsc("delete", "-f", id)
        found = subprocess.run(["find", "/sys/fs/cgroup", "-name", "limits", "-path", "*runsc-test*"],
                               capture_output=True, text=True).stdout
        self.assertEqual("", found)


if __name__ == "__main__":
    harness.main()
