#!/usr/bin/env python3
"""The items of config.json that lifecycle_test.py leaves out: hooks at their moments, consoles, standard
files, mounts of each kind, cgroups, what is accepted and not enforced; and runsc's output beside runc's."""

import json
import os
import re
import shutil
import socket
import subprocess
import time

import harness
import leftovers
from harness import default_config


class HooksTest(harness.ContainerTest):

    def hook(self, name, script, **kw):
        return [{"path": "/bin/sh", "args": ["sh", "-c", script], **kw}]

    def test_moments_and_states(self):
        """Each kind runs once, in order, with the state of that moment on standard input."""
        log = os.path.join(self.sb.dir, "hooks")
        config = default_config(["sh", "-c", "cat /tmp/start > /tmp/init; exec sleep 100"])
        kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        config["hooks"] = {k: self.hook(k, f"(echo {k}; cat; echo) >> {log}") for k in kinds}
        config["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": [
            "sh", "-c", "cat > /tmp/start; cat /proc/1/comm >> /tmp/start"]}]
        config["annotations"] = {"com.example.key": "value"}
        id = self.sb.create(config)

        def entries():
            with open(log) as f:
                lines = f.read().split("\n")
            return list(zip(lines[0::2], map(json.loads, lines[1::2])))

        self.assertEqual(["prestart", "createRuntime", "createContainer"], [k for k, _ in entries()])
        pid = self.sb.state(id)["pid"]
        for kind, state in entries():
            self.assertEqual({"ociVersion": "1.0.2-dev", "id": id, "status": "creating", "pid": pid,
                              "bundle": state["bundle"], "annotations": {"com.example.key": "value"}}, state, kind)
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        self.assertEqual(("poststart", "running"), (entries()[-1][0], entries()[-1][1]["status"]))
        deadline = time.monotonic() + 10
        init = os.path.join(self.sb.rootfs, "tmp/init")
        while not (os.path.exists(init) and os.path.getsize(init)) and time.monotonic() < deadline:
            time.sleep(0.02)
        with open(init) as f:
            text = f.read()
        state, end = json.JSONDecoder().raw_decode(text)
        self.assertEqual((id, "created"), (state["id"], state["status"]))
        # The program of init has not begun: the hook saw the runtime's stand-in or its name.
        self.assertTrue(text[end:].strip())
        self.sb.runsc("delete", "-f", id)
        self.assertEqual(("poststop", "stopped"), (entries()[-1][0], entries()[-1][1]["status"]))
        self.assertNotIn("pid", entries()[-1][1])
        self.assertEqual(5, len(entries()))

    def test_create_container_hooks_run_in_its_namespaces(self):
        """What it mounts below the root file system the container sees, and the host does not."""
        log = os.path.join(self.sb.dir, "ns")
        shared = os.path.join(self.sb.dir, "shared")
        os.mkdir(shared)
        with open(os.path.join(shared, "file"), "w") as f:
            f.write("from the hook\n")
        config = default_config(["cat", "/mnt/file"])
        config["hooks"] = {
            "createRuntime": self.hook("", f"readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/pid > {log}.1"),
            "createContainer": self.hook("", f"readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/pid > {log}.2 &&"
                                             f"mount --bind {shared} {self.sb.rootfs}/mnt")}
        r = self.sb.run([], config=config)
        self.assertEqual((0, "from the hook\n"), (r.returncode, r.stdout), r.stderr)
        self.assertEqual([], os.listdir(os.path.join(self.sb.rootfs, "mnt")))
        own = [os.readlink(f"/proc/self/ns/{n}") for n in ("mnt", "net", "pid")]
        with open(log + ".1") as f:
            self.assertEqual(own, f.read().split())
        with open(log + ".2") as f:
            for host, container in zip(own, f.read().split()):
                self.assertNotEqual(host, container)

    def test_failing_hooks_end_the_container(self):
        for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart"):
            with self.subTest(kind=kind):
                config = default_config(["sleep", "100"])
                config["hooks"] = {kind: self.hook(kind, "echo why >&2; exit 3")}
                r = self.sb.run([], config=config, timeout=30)
                self.assertEqual(1, r.returncode)
                self.assertEqual(1, len(r.stderr.strip().splitlines()), r.stderr)
                self.assertIn(f"{kind} hook #0 (/bin/sh)", r.stderr)
                self.assertIn("exited with status 3", r.stderr)
                self.assertEqual({}, leftovers.wait_no_processes(self.sb.children))
                self.assertEqual("", self.sb.runsc("list", "-q").stdout)

    def test_hooks_that_take_too_long(self):
        for kind in ("createRuntime", "createContainer", "startContainer"):
            with self.subTest(kind=kind):
                config = default_config(["true"])
                config["hooks"] = {kind: self.hook(kind, "sleep 100", timeout=1)}
                r = self.sb.run([], config=config, timeout=30)
                self.assertEqual(1, r.returncode)
                self.assertIn("timeout", r.stderr)
                self.assertEqual({}, leftovers.wait_no_processes(self.sb.children))


class ConfigTest(harness.ContainerTest):

    def test_standard_files(self):
        """Pipes are in lifecycle_test; files and /dev/null here, with their positions and flags."""
        paths = [os.path.join(self.sb.dir, n) for n in ("in", "out", "err")]
        with open(paths[0], "w") as f:
            f.write("skipped\nfirst\nsecond\n")
        with open(paths[1], "w") as f:
            f.write("before\n")
        bundle = self.sb.bundle(default_config(
            ["sh", "-c", "cat; echo out; echo err >&2; [ -t 0 ] || echo no terminal; stat -Lc %F /dev/stdin /dev/stdout"]))
        self.sb.containers.append("files")
        with open(paths[0]) as i, open(paths[1], "a") as o, open(paths[2], "w") as e:
            os.lseek(i.fileno(), 8, os.SEEK_SET)
            r = subprocess.run(self.sb.command("run", "--bundle", bundle, "files"), stdin=i, stdout=o, stderr=e,
                               timeout=60)
            self.assertEqual(0, r.returncode)
            # The position is shared, as between processes of one host.
            self.assertEqual(21, os.lseek(i.fileno(), 0, os.SEEK_CUR))
        with open(paths[1]) as f:
            self.assertEqual("before\nfirst\nsecond\nout\nno terminal\nregular file\nregular file\n", f.read())
        with open(paths[2]) as f:
            self.assertEqual("err\n", f.read())

    def test_console_size(self):
        """Of a console that goes to a socket; in the foreground the caller's terminal has the say."""
        config = default_config(["stty", "size"], terminal=True)
        config["process"]["consoleSize"] = {"height": 41, "width": 123}
        path = os.path.join(self.sb.dir, "console.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(20)
        bundle = self.sb.bundle(config)
        self.sb.containers.append("size")
        with open(os.path.join(self.sb.dir, "size.log"), "wb") as log:
            child = subprocess.Popen(self.sb.command("run", "-d", "--console-socket", path, "--bundle", bundle, "size"),
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.sb.children.append(child)
        connection, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        self.assertEqual(0, child.wait(20))
        text = b""
        try:
            while True:
                text += os.read(fds[0], 4096)
        except OSError:
            pass
        os.close(fds[0])
        listener.close()
        self.assertEqual(b"41 123\r\n", text)

    def test_mounts_of_each_kind(self):
        source = os.path.join(self.sb.dir, "source")
        os.makedirs(os.path.join(source, "below"))
        with open(os.path.join(source, "program"), "w") as f:
            f.write("#!/bin/sh\necho ran\n")
        os.chmod(os.path.join(source, "program"), 0o755)
        subprocess.run(["mount", "-t", "tmpfs", "t", os.path.join(source, "below")], check=True)
        self.sb.mounts.append(os.path.join(source, "below"))
        with open(os.path.join(source, "below/file"), "w") as f:
            f.write("below\n")
        mounts = [
            {"destination": "/rw", "type": "bind", "source": source, "options": ["rbind"]},
            {"destination": "/ro", "type": "none", "source": source, "options": ["rbind", "ro"]},
            {"destination": "/noexec", "type": "bind", "source": source, "options": ["bind", "noexec", "nosuid", "nodev"]},
            {"destination": "/t", "type": "tmpfs", "source": "tt", "options": ["size=128k", "mode=1755", "nr_inodes=50"]},
            {"destination": "relative", "type": "tmpfs", "source": "tt"},
            {"destination": "/link/x", "type": "tmpfs", "source": "tt"},
            {"destination": "/q", "type": "mqueue", "source": "mqueue"}]
        os.symlink("/etc", os.path.join(self.sb.rootfs, "link"))
        r = self.sb.run(["sh", "-c", """
            cat /rw/below/file /ro/below/file; /rw/program; /noexec/program || echo "no exec"
            echo x > /ro/x || echo read-only; echo x > /ro/below/x || echo read-only
            stat -c '%a' /t; df -k /t | awk 'NR == 2 { print $2, $1 }'; df -i /t | awk 'NR == 2 { print $2 }'
            awk '$2 == "/relative" || $2 == "/etc/x" || $2 == "/q" { print $2, $3 }' /proc/mounts | sort
            grep ' /noexec ' /proc/mounts | grep -o 'nosuid,nodev,noexec'"""], mounts=mounts)
        self.assertEqual("below\nbelow\nran\nno exec\nread-only\nread-only\n1755\n128 tt\n50\n/etc/x tmpfs\n/q mqueue\n"
                         "/relative tmpfs\nnosuid,nodev,noexec\n", r.stdout, r.stderr)

    def test_propagation_of_mounts(self):
        def fields(mounts, root=None):
            config = default_config(["cat", "/proc/self/mountinfo"])
            config["mounts"] += mounts
            if root is not None:
                config["linux"]["rootfsPropagation"] = root
            r = self.sb.run([], config=config)
            self.assertEqual(0, r.returncode, r.stderr)
            found = {}
            for line in r.stdout.splitlines():
                words = line.split()
                found[words[4]] = [re.sub(r"\d+", "N", w) for w in words[6:words.index("-")]]
            return found

        source = os.path.join(self.sb.dir, "source")
        os.makedirs(source)
        tmpfs = {"type": "tmpfs", "source": "t"}
        mounts = [{"destination": "/mnt/shared", "options": ["shared"], **tmpfs},
                  {"destination": "/mnt/alone", "options": ["runbindable"], **tmpfs},
                  {"destination": "/mnt/bound", "type": "bind", "source": source, "options": ["bind", "rshared"]}]
        found = fields(mounts)
        self.assertEqual([[], ["shared:N"], ["unbindable"], ["shared:N"]],
                         [found[p] for p in ("/", "/mnt/shared", "/mnt/alone", "/mnt/bound")])
        found = fields(mounts, "shared")
        self.assertEqual([["shared:N"], ["unbindable"]], [found[p] for p in ("/", "/mnt/alone")])
        found = fields(mounts, "rshared")
        self.assertEqual({("shared:N",)}, {tuple(f) for f in found.values()})
        config = default_config(["true"])
        config["linux"]["rootfsPropagation"] = "nonsense"
        r = self.sb.run([], config=config)
        self.assertNotEqual(0, r.returncode)
        self.assertIn("nonsense", r.stderr)

    def test_namespaces_and_their_ids(self):
        config = default_config(["sh", "-c", "echo $$; hostname; readlink /proc/self/ns/uts; cat /proc/self/uid_map"])
        config["hostname"] = "named-" + "x" * 50
        config["linux"]["namespaces"].append({"type": "cgroup"})
        r = self.sb.run([], config=config)
        lines = r.stdout.splitlines()
        self.assertEqual(["1", config["hostname"]], lines[:2], r.stderr)
        self.assertNotEqual(os.readlink("/proc/self/ns/uts"), lines[2])

    def test_all_rlimits(self):
        names = ["AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS",
                 "RTPRIO", "RTTIME", "SIGPENDING", "STACK"]
        config = default_config(["cat", "/proc/self/limits"])
        config["process"]["rlimits"] = [
            {"type": f"RLIMIT_{n}", "soft": (1 << 33) + i, "hard": (1 << 34) + i} for i, n in enumerate(names)
            if n != "NOFILE"] + [{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000}]
        r = self.sb.run([], config=config)
        found = set(re.findall(r"(\d+) +(\d+)", r.stdout))
        for i, n in enumerate(names):
            expected = ("1000", "2000") if n == "NOFILE" else (str((1 << 33) + i), str((1 << 34) + i))
            self.assertIn(expected, found, n)

    def test_default_devices(self):
        r = self.sb.run(["sh", "-c", """
            for d in null zero full random urandom tty ptmx; do stat -Lc "$d %F %t:%T %a" /dev/$d; done
            echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1; head -c 1 /dev/zero > /dev/full
            [ $(head -c 100 /dev/urandom | wc -c) = 100 ] && echo random
            (: < /dev/tty); readlink /dev/fd /dev/stdin /dev/ptmx"""])
        self.assertEqual(["null character special file 1:3 666", "zero character special file 1:5 666",
                          "full character special file 1:7 666", "random character special file 1:8 666",
                          "urandom character special file 1:9 666", "tty character special file 5:0 666",
                          "ptmx character special file 5:2 666", " 00 00 00", "random", "/proc/self/fd", "/proc/self/fd/0",
                          "pts/ptmx"], r.stdout.splitlines(), r.stderr)
        self.assertIn("No space left on device", r.stderr)
        self.assertIn("No such device or address", r.stderr)

    def test_what_is_not_enforced_is_logged(self):
        config = default_config(["true"])
        config["process"]["apparmorProfile"] = "some-profile"
        config["process"]["selinuxLabel"] = "some:label"
        config["linux"]["mountLabel"] = "some:label"
        config["linux"]["intelRdt"] = {"closID": "x"}
        config["linux"]["resources"] = {"blockIO": {"weight": 10}, "rdma": {"mlx": {"hcaHandles": 3}}}
        log = os.path.join(self.sb.dir, "log")
        r = self.sb.run([], config=config, flags=["--log", log, "--log-format", "json"])
        self.assertEqual(0, r.returncode, r.stderr)
        with open(log) as f:
            entries = [json.loads(line) for line in f]
        text = " ".join(e["msg"] for e in entries if e["level"] == "warning")
        self.assertIn("not enforced", text)
        for item in ("process.apparmorProfile", "process.selinuxLabel",
                     "linux.mountLabel", "linux.intelRdt", "linux.resources.blockIO", "linux.resources.rdma"):
            self.assertIn(item, text)

    def test_what_is_missing_is_said(self):
        for flags, word in ((["--platform=kvm"], "kvm is not implemented"), (["--network=nonsense"], "nonsense")):
            with self.subTest(flags=flags):
                r = self.sb.runsc("run", "x", flags=flags)
                self.assertEqual((1, 1), (r.returncode, len(r.stderr.strip().splitlines())), r.stderr)
                self.assertIn(word, r.stderr)


class CgroupTest(harness.ContainerTest):

    def read(self, name, file):
        for directory in leftovers.cgroups(name):
            path = os.path.join(directory, file)
            if os.path.exists(path):
                with open(path) as f:
                    return f.read().strip()
        return None

    def test_limits_are_set_and_hold_all_processes(self):
        name = f"runsc-limits-{os.getpid()}"
        config = default_config(["sleep", "100"])
        config["linux"]["cgroupsPath"] = f"/{name}"
        config["linux"]["resources"] = {"memory": {"limit": 256 << 20}, "pids": {"limit": 77},
                                        "cpu": {"quota": 50000, "period": 100000, "shares": 512}}
        try:
            id = self.sb.create(config)
        except AssertionError as e:
            if "cgroup" in str(e):
                self.skipTest(f"no right to make cgroups: {e}")
            raise
        self.sb.runsc("start", id)
        for v1, v2, value1, value2 in (("memory.limit_in_bytes", "memory.max", "268435456", "268435456"),
                                       ("pids.max", "pids.max", str(2 * 77 + 192), str(2 * 77 + 192)),
                                       ("cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"),
                                       ("cpu.shares", "cpu.weight", "512", "20")):
            self.assertIn((self.read(name, v1), self.read(name, v2)),
                          ((value1, None), (None, value2), (value1, value2)), v1)
        # The sentry, the gofer and every stub are in it.
        for pid, command in leftovers.processes(self.sb.children).items():
            with open(f"/proc/{pid}/cgroup") as f:
                self.assertIn(f"/{name}", f.read(), command)
        self.sb.runsc("delete", "-f", id)
        self.assertEqual([], leftovers.cgroups(name))

    def test_a_parent_of_others_stays(self):
        top = f"runsc-parent-{os.getpid()}"
        # Who made it is gone first, so nobody removes it, as with runc.
        self.addCleanup(lambda: [os.rmdir(d) for d in leftovers.cgroups(top)])
        ids = []
        for n in ("one", "two"):
            config = default_config(["sleep", "100"])
            config["linux"]["cgroupsPath"] = f"/{top}/{n}"
            try:
                ids.append(self.sb.create(config))
            except AssertionError as e:
                if "cgroup" in str(e):
                    self.skipTest(f"no right to make cgroups: {e}")
                raise
        self.sb.runsc("delete", "-f", ids[0])
        self.assertEqual([], leftovers.cgroups("one"))
        self.assertNotEqual([], leftovers.cgroups("two"))
        self.sb.runsc("delete", "-f", ids[1])
        self.assertEqual([], leftovers.cgroups("two"))

    def test_update(self):
        name = f"runsc-update-{os.getpid()}"
        config = default_config(["sleep", "100"])
        config["linux"]["cgroupsPath"] = f"/{name}"
        config["linux"]["resources"] = {"memory": {"limit": 256 << 20}, "pids": {"limit": 77}}
        try:
            id = self.sb.create(config)
        except AssertionError as e:
            if "cgroup" in str(e):
                self.skipTest(f"no right to make cgroups: {e}")
            raise

        def limits():
            return (self.read(name, "memory.limit_in_bytes") or self.read(name, "memory.max"), self.read(name, "pids.max"))

        # Of the host's tasks, see runsc/cgroup/cgroup.h.
        def host(limit):
            return str(2 * limit + 192)

        self.assertEqual(("268435456", host(77)), limits())
        r = self.sb.runsc("update", "--memory", str(512 << 20), id)
        self.assertEqual(0, r.returncode, r.stderr)
        self.assertEqual(("536870912", host(77)), limits())
        r = self.sb.runsc("update", "--pids-limit", "-1", id)
        self.assertEqual(0, r.returncode, r.stderr)
        self.assertEqual(("536870912", "max"), limits())
        path = os.path.join(self.sb.dir, "resources.json")
        with open(path, "w") as f:
            json.dump({"memory": {"limit": 300 << 20}, "pids": {"limit": 55}}, f)
        r = self.sb.runsc("update", "-r", path, id)
        self.assertEqual(0, r.returncode, r.stderr)
        self.assertEqual(("314572800", host(55)), limits())
        for args in (["--memory", "lots", id], ["-r", "/no/such", id], ["--memory", "1", "no-such"]):
            r = self.sb.runsc("update", *args)
            self.assertEqual((1, 1), (r.returncode, len(r.stderr.strip().splitlines())), r.stderr)

    def test_bad_cgroup_paths(self):
        for path in ("/../outside", "a/../../b"):
            config = default_config(["true"])
            config["linux"]["cgroupsPath"] = path
            r = self.sb.run([], config=config)
            self.assertEqual((1, 1), (r.returncode, len(r.stderr.strip().splitlines())), r.stderr)
            self.assertIn("cgroupsPath", r.stderr)
        config = default_config(["true"])
        config["linux"]["cgroupsPath"] = "not-a-slice"
        r = self.sb.run([], config=config, flags=["--systemd-cgroup"])
        self.assertEqual((1, 1), (r.returncode, len(r.stderr.strip().splitlines())), r.stderr)
        self.assertIn("slice:prefix:name", r.stderr)


class FreezeTest(harness.ContainerTest):

    def test_pause_and_resume(self):
        """Nothing runs between the two, and nothing is lost; state, list and exec tell."""
        config = default_config(["sh", "-c", "(while :; do echo a; sleep 0.01; done) & while :; do echo b; sleep 0.01; done"])
        id = self.sb.create(config)
        self.assertEqual(1, self.sb.runsc("pause", id).returncode)
        self.sb.runsc("start", id)
        out = os.path.join(self.sb.dir, f"{id}.out")

        def grows(seconds):
            before = os.path.getsize(out)
            deadline = time.monotonic() + seconds
            while os.path.getsize(out) == before and time.monotonic() < deadline:
                time.sleep(0.01)
            return os.path.getsize(out) > before

        for _ in range(3):
            self.assertTrue(grows(10))
            self.assertEqual(0, self.sb.runsc("pause", id).returncode)
            self.assertEqual("paused", self.sb.state(id)["status"])
            self.assertIn(" paused ", self.sb.runsc("list").stdout)
            self.assertFalse(grows(0.3))
            for command in (["exec", id, "true"], ["ps", id], ["kill", id, "TERM"], ["pause", id], ["delete", id],
                            ["start", id]):
                r = self.sb.runsc(*command)
                self.assertNotEqual(0, r.returncode, command)
                self.assertEqual(1, len(r.stderr.strip().splitlines()), r.stderr)
            self.assertEqual(0, self.sb.runsc("resume", id).returncode)
            self.assertEqual("running", self.sb.state(id)["status"])
            self.assertTrue(grows(10))
            self.assertEqual(0, self.sb.runsc("exec", id, "true").returncode)
        r = self.sb.runsc("resume", id)
        self.assertEqual(1, r.returncode)
        self.assertIn("container not paused", r.stderr)
        self.sb.runsc("pause", id)
        self.assertEqual(0, self.sb.runsc("kill", id, "KILL").returncode)
        self.sb.wait_status(id, "stopped", timeout=2)
        self.assertEqual(1, self.sb.runsc("pause", id).returncode)
        self.assertEqual(0, self.sb.runsc("delete", id).returncode)
        self.assertEqual({}, leftovers.wait_no_processes(self.sb.children))

    def test_delete_of_a_paused_container(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        self.sb.runsc("start", id)
        self.assertEqual(0, self.sb.runsc("pause", id).returncode)
        self.assertEqual(0, self.sb.runsc("delete", "-f", id).returncode)
        self.assertEqual({}, leftovers.wait_no_processes(self.sb.children))


# The id of both; runc names its cgroup by it, so each run of these tests has its own.
SAME = f"same{os.getpid()}"


class RuncTest(harness.ContainerTest):
    """The same commands given to runc and to runsc: exit codes, and the shape of what they print."""

    def setUp(self):
        super().setUp()
        self.runc = shutil.which("runc")
        if not self.runc:
            self.skipTest("there is no runc")
        self.bundle = self.sb.bundle(default_config(["sleep", "1000"]))
        self.roots = {self.runc: os.path.join(self.sb.dir, "runc-state"), harness.RUNSC: self.sb.root}
        self.addCleanup(lambda: self.call(self.runc, "delete", "-f", SAME))
        self.sb.containers.append(SAME)

    def call(self, program, *args):
        return subprocess.run([program, "--root", self.roots[program], *args], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, cwd=self.bundle)

    def both(self, *args):
        a, b = (self.call(p, *args) for p in self.roots)
        self.assertEqual(a.returncode, b.returncode, (args, a.stderr, b.stderr))
        self.assertEqual(len(a.stderr.strip().splitlines()), len(b.stderr.strip().splitlines()),
                         (args, a.stderr, b.stderr))
        return a.stdout, b.stdout

    @staticmethod
    def shape(text):
        """Numbers, times and a table's widths, which follow from them, have no part in it."""
        return re.sub(r" {2,}", "  ", re.sub(r"\d+", "0", text))

    def test_life(self):
        for program in self.roots:
            # Not to a pipe: the container keeps it open.
            errors = os.path.join(self.sb.dir, "errors")
            with open(os.devnull, "w") as null, open(errors, "w") as e:
                code = subprocess.run([program, "--root", self.roots[program], "create", SAME], cwd=self.bundle,
                                      stdin=null, stdout=null, stderr=e, timeout=60).returncode
            with open(errors) as e:
                why = e.read()
            if code and program == self.runc:
                self.skipTest(f"runc does not run here: {why}")
            self.assertEqual(0, code, why)
        self.both("create", SAME)
        for stage in ("created", "running", "stopped"):
            for args in (["list"], ["list", "-f", "json"], ["state", SAME]):
                a, b = self.both(*args)
                self.assertEqual(self.shape(a), self.shape(b), (stage, args))
            self.assertEqual(*self.both("list", "-q"))
            self.both("list", "-f", "nonsense")
            a, b = self.both("ps", SAME)
            # The host's ps makes its columns as wide as the largest process id.
            self.assertEqual(self.shape(a.splitlines()[0]), self.shape(b.splitlines()[0]))
            self.assertEqual(len(a.splitlines()), len(b.splitlines()))
            a, b = self.both("ps", "-f", "json", SAME)
            self.assertEqual(len(json.loads(a) or []), len(json.loads(b) or []))
            for args in (["exec", SAME, "sh", "-c", "exit 9"], ["exec", SAME, "/no/such"], ["exec", SAME, "nosuch"],
                         ["exec", SAME], ["exec", "--cwd", "/usr", SAME, "pwd"], ["exec", "-u", "5:6", SAME, "id"],
                         ["exec", "-u", "name", SAME, "id"], ["exec", "-e", "A=b", SAME, "printenv", "A"],
                         ["kill", SAME, "NOSUCH"], ["kill", SAME, "0"], ["kill", SAME, "WINCH"],
                         ["start", SAME, "more"], ["kill", "-a", SAME, "0"]):
                a, b = self.both(*args)
                if args[0] == "exec":
                    self.assertEqual(a, b, args)
            if stage == "created":
                self.both("start", SAME)
            elif stage == "running":
                self.both("start", SAME)
                self.both("delete", SAME)
                self.both("kill", SAME, "KILL")
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline and any(
                        '"stopped"' not in self.call(p, "state", SAME).stdout for p in self.roots):
                    time.sleep(0.02)
        self.both("start", SAME)
        self.both("delete", SAME)
        for args in (["state", SAME], ["delete", SAME], ["delete", "-f", SAME], ["kill", SAME], ["start", SAME],
                     ["exec", SAME, "true"], ["ps", SAME], ["list"], ["list", "-f", "json"], ["state"],
                     ["state", "--nonsense", "x"], ["nonsense"], ["--nonsense"], ["run"], ["create", "a/b"]):
            a, b = self.both(*args)
            if args[0] == "list":
                self.assertEqual(a, b)

    def test_help_has_runcs_options(self):
        for command in ("create", "run", "exec", "kill", "delete", "list", "pause", "ps", "resume", "spec", "start", "state"):
            a, b = (self.call(p, command, "--help") for p in self.roots)
            self.assertEqual(0, b.returncode)
            options = [set(re.findall(r"(?<![-\w])--?[a-z][-a-z]*", r.stdout.split("OPTIONS:")[-1])) for r in (a, b)
                       ] if "OPTIONS:" in a.stdout else [set(), set()]
            self.assertLessEqual(options[0], options[1] | {"--rootless"}, command)

    def test_a_run_that_fails(self):
        with open(os.path.join(self.sb.rootfs, "text"), "w") as f:
            f.write("text")
        os.chmod(os.path.join(self.sb.rootfs, "text"), 0o755)
        path = os.path.join(self.bundle, "config.json")
        with open(path) as f:
            good = json.load(f)
        for args in (["/no/such"], ["nosuch"], ["/etc"], ["/etc/passwd"], ["/text"], ["sh", "-c", "exit 77"],
                     ["sh", "-c", "kill -9 $$; exit 4"], ["true", "x" * 140000]):
            with open(path, "w") as f:
                json.dump({**good, "process": {**good["process"], "args": args}}, f)
            self.both("run", SAME)
        for text in ("", "{", "[]", json.dumps({**good, "root": None})):
            with open(path, "w") as f:
                f.write(text)
            self.both("run", SAME)
        os.unlink(path)
        self.both("run", SAME)


if __name__ == "__main__":
    harness.main()
