#!/usr/bin/env python3
"""Pods: several containers in one sentry, by the annotations of containerd's CRI and of CRI-O."""

import os
import signal
import subprocess
import time

import harness

NAMES = {"cri": ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
         "cri-o": ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID")}
PYTHON = "/usr/bin/python3"
# Reaps what it is left, as a pod's pause program does.
PAUSE = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
IDLE = ["sleep", "1000"]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(p) for p in f.read().split()]


def roles(ids):
    """What the processes of these containers are: "boot" for a sentry, "gofer". Others run beside this test."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                args = f.read().decode(errors="replace").rstrip("\0").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if args[0] in ("runsc-sandbox", "runsc-gofer") and args[-1] in ids:
            found.append(args[1])
    return sorted(found)


class PodTest(harness.ContainerTest):
    rootfs = "debian"

    def pod(self, args=PAUSE, edit=None, names="cri"):
        config = harness.default_config(args)
        config["annotations"] = {NAMES[names][0]: "sandbox", NAMES[names][1]: "unused"}
        if edit:
            edit(config)
        id = self.sb.create(config)
        self.ok("start", id)
        return id

    def config(self, pod, args, share=("network", "ipc", "uts"), names="cri", edit=None, caps=None):
        """As the CRI plugin makes it: what is shared has the path of the sandbox's namespace."""
        config = harness.default_config(args, caps=caps)
        config["annotations"] = dict(zip(NAMES[names], ("container", pod)))
        sentry = self.sb.state(pod).get("pid", 0)
        files = {"network": "net"}
        for ns in config["linux"]["namespaces"]:
            if ns["type"] in share:
                ns["path"] = f"/proc/{sentry}/ns/{files.get(ns['type'], ns['type'])}"
        if edit:
            edit(config)
        return config

    def join(self, pod, args, start=True, id=None, **kw):
        id = self.sb.create(self.config(pod, args, **kw), id=id)
        if start:
            self.ok("start", id)
        return id

    def ok(self, *args, **kw):
        r = self.sb.runsc(*args, **kw)
        self.assertEqual(0, r.returncode, f"{args}: {r.stderr}")
        return r.stdout

    def exec(self, id, *args):
        return self.sb.runsc("exec", id, *args)

    def shell(self, id, script):
        r = self.exec(id, "sh", "-c", script)
        self.assertEqual(0, r.returncode, r.stdout + r.stderr)
        return r.stdout

    def eventually(self, look, wanted, seconds=10):
        deadline = time.monotonic() + seconds
        while (seen := look()) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(wanted, seen)

    def test_one_sentry(self):
        for names in NAMES:
            pod = self.pod(names=names)
            one = self.join(pod, IDLE, names=names)
            two = self.join(pod, IDLE, names=names)
            self.assertEqual(["boot", "gofer", "gofer", "gofer"], roles((pod, one, two)))
            pids = [self.sb.state(id)["pid"] for id in (pod, one, two)]
            self.assertEqual(3, len(set(pids)), pids)
            for id in (one, two, pod):
                self.ok("delete", "-f", id)

    def test_shared_and_own(self):
        pod = self.pod()
        one = self.join(pod, IDLE)
        two = self.join(pod, IDLE)
        self.assertEqual("sandbox\n", self.shell(one, "hostname"))
        links = {id: self.shell(id, "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts;"
                                    "echo; readlink /proc/self/ns/pid /proc/self/ns/mnt").split("\n\n")
                 for id in (pod, one, two)}
        self.assertEqual(links[one][0], links[two][0])
        self.assertEqual(links[one][0], links[pod][0])
        self.assertEqual(3, len({tuple(l[1].split()) for l in links.values()}), links)
        for id in (pod, one, two):
            self.assertEqual("1\n", self.shell(id, "ls /proc | grep -c '^1$'"))
        # Each sees its own processes alone, and no more than a root of its own.
        self.shell(one, "sleep 500 > /dev/null 2>&1 &")
        self.assertEqual("0", self.shell(two, "ps ax | grep -c '[s]leep 500' || true").strip())
        self.assertEqual("0", self.shell(pod, "ps ax | grep -c '[s]leep 500' || true").strip())
        self.assertEqual("1", self.shell(one, "ps ax | grep -c '[s]leep 500'").strip())
        listed = self.ok("ps", one)
        self.assertIn("sleep 1000", listed)
        self.assertIn("sleep 500", listed)
        self.assertNotIn("sleep 500", self.ok("ps", two))
        # System V and POSIX IPC.
        self.shell(one, f"{PYTHON} -c \"import ctypes; l=ctypes.CDLL(None); "
                        "assert l.shmget(77, 4096, 0o1666) >= 0\"")
        self.shell(two, f"{PYTHON} -c \"import ctypes; l=ctypes.CDLL(None); "
                        "assert l.shmget(77, 4096, 0o666) >= 0\"")

    def test_own_namespaces(self):
        """A namespace without a path is a new one; one that is not named is the pod's."""
        pod = self.pod()

        def edit(config):
            config["hostname"] = "other"
        alone = self.join(pod, IDLE, share=(), edit=edit)
        self.assertEqual("other\n", self.shell(alone, "hostname"))
        self.assertEqual("sandbox\n", self.shell(pod, "hostname"))
        links = "readlink /proc/self/ns/net /proc/self/ns/ipc"
        self.assertNotEqual(self.shell(pod, links), self.shell(alone, links))
        self.shell(alone, f"{PYTHON} -c \"import socket; s=socket.create_server(('127.0.0.1', 80)); "
                   "socket.create_connection(('127.0.0.1', 80))\"")

        def drop(config):
            config["linux"]["namespaces"] = [{"type": "mount"}]
        shared = self.join(pod, IDLE, edit=drop)
        links += " /proc/self/ns/uts /proc/self/ns/pid"
        self.assertEqual(self.shell(pod, links), self.shell(shared, links))

    def test_localhost(self):
        pod = self.pod()
        server = self.join(pod, [PYTHON, "-c", "import socket\n"
                                 "s=socket.create_server(('127.0.0.1', 8080)); u=socket.socket(socket.AF_UNIX)\n"
                                 "u.bind('\\0pod'); u.listen()\n"
                                 "print('up', flush=True)\n"
                                 "while True:\n c,_=s.accept(); c.sendall(b'over tcp'); c.close()\n"
                                 " c,_=u.accept(); c.sendall(b'over unix'); c.close()"])
        self.eventually(lambda: self.sb.output(server), "up\n")
        ask = (f"{PYTHON} -c \"import socket; s=socket.create_connection(('127.0.0.1', 8080)); "
               "u=socket.socket(socket.AF_UNIX); print(s.recv(100)); u.connect('\\0pod'); print(u.recv(100))\"")
        client = self.join(pod, IDLE)
        self.assertEqual("b'over tcp'\nb'over unix'\n", self.shell(client, ask))
        self.assertEqual("b'over tcp'\nb'over unix'\n", self.shell(pod, ask))
        stranger = self.join(pod, IDLE, share=("ipc",))
        self.assertNotEqual(0, self.exec(stranger, "sh", "-c", ask).returncode)

    def test_shared_pid_namespace(self):
        pod = self.pod()
        one = self.join(pod, IDLE, share=("pid", "network"))
        two = self.join(pod, ["sh", "-c", "sleep 2000 & sleep 3000 & wait"], share=("pid", "network"))
        self.eventually(lambda: self.shell(one, "ps -eo args | grep -c '^sleep [123]000'").strip(), "3")
        # Each command is about its own container, whatever the numbers.
        self.assertNotIn("sleep 2000", self.ok("ps", one))
        self.assertIn("sleep 2000", self.ok("ps", two))
        self.ok("kill", two, "KILL")
        self.sb.wait_status(two, "stopped")
        self.eventually(lambda: self.shell(one, "ps -eo args | grep -c '^sleep [123]000'").strip(), "1")
        self.ok("delete", two)
        # A container whose PID namespace is that of another member.
        third = self.join(pod, IDLE)

        def follow(config):
            config["linux"]["namespaces"][0]["path"] = f"/proc/{self.sb.state(third)['pid']}/ns/pid"
        fourth = self.join(pod, IDLE, edit=follow)
        self.assertEqual(self.shell(third, "readlink /proc/1/ns/pid"),
                         self.shell(fourth, "readlink /proc/1/ns/pid"))
        self.assertNotEqual(self.shell(one, "readlink /proc/1/ns/pid"),
                            self.shell(third, "readlink /proc/1/ns/pid"))

    def test_exit_status(self):
        """As an engine's shim sees it: the process of the pid file, reparented to a subreaper."""
        pod = self.pod()
        libc_prctl = 36  # PR_SET_CHILD_SUBREAPER
        import ctypes
        ctypes.CDLL(None).prctl(libc_prctl, 1, 0, 0, 0)
        self.addCleanup(ctypes.CDLL(None).prctl, libc_prctl, 0, 0, 0, 0)
        for args, wanted in ((["sh", "-c", "exit 7"], 7), (["true"], 0),
                             ([PYTHON, "-c", "import ctypes; ctypes.string_at(0)"], 128 + 11), (IDLE, 128 + 9)):
            id = self.join(pod, args, start=False)
            pid = self.sb.state(id)["pid"]
            waiter = subprocess.Popen(self.sb.command("wait", id), stdout=subprocess.PIPE, text=True)
            self.ok("start", id)
            if args == IDLE:
                self.ok("kill", id, "KILL")
            _, status = os.waitpid(pid, 0)
            self.assertEqual(wanted, os.waitstatus_to_exitcode(status), args)
            self.assertIn(f'"exitStatus":{wanted}', waiter.communicate(timeout=10)[0])
            self.assertEqual("stopped", self.sb.state(id)["status"])
            self.ok("delete", id)
        self.assertEqual("running", self.sb.state(pod)["status"])
        r = self.sb.run(["sh", "-c", "echo hi; exit 3"], config=self.config(pod, ["sh", "-c", "echo hi; exit 3"]))
        self.assertEqual((3, "hi\n"), (r.returncode, r.stdout), r.stderr)
        r = self.sb.run(["/no/such"], config=self.config(pod, ["/no/such"]))
        self.assertIn("no such file", r.stderr)
        self.assertEqual("running", self.sb.state(pod)["status"])

    def test_ends_apart(self):
        pod = self.pod()
        one, two = self.join(pod, IDLE), self.join(pod, IDLE)
        self.ok("kill", one, "TERM")  # init without a handler ignores it
        time.sleep(0.1)
        self.assertEqual("running", self.sb.state(one)["status"])
        self.shell(one, "sleep 400 > /dev/null 2>&1 &")
        self.ok("kill", "--all", one, "KILL")
        self.sb.wait_status(one, "stopped")
        self.ok("delete", one)
        self.assertEqual("alive\n", self.shell(two, "echo alive"))
        # The gofer of one that is killed takes along that one alone.
        three = self.join(pod, IDLE)
        os.kill(self.sb.state(three)["pid"], signal.SIGKILL)
        self.sb.wait_status(three, "stopped")
        self.eventually(lambda: self.ok("wait", three), f'{{"id":"{three}","exitStatus":137}}\n')
        self.ok("delete", three)
        self.assertEqual("alive\n", self.shell(two, "echo alive"))
        # Same id again.
        self.join(pod, IDLE, id=three)
        self.assertEqual("again\n", self.shell(three, "echo again"))
        # The sandbox takes all along.
        self.ok("delete", "-f", pod)
        for id in (two, three):
            self.sb.wait_status(id, "stopped")
            self.assertIn("137", self.ok("wait", id))
            self.ok("delete", id)

    def test_created_and_never_started(self):
        pod = self.pod()
        one = self.join(pod, IDLE, start=False)
        self.assertEqual("created", self.sb.state(one)["status"])
        self.ok("delete", "-f", one)
        two = self.join(pod, IDLE, start=False)
        self.ok("kill", two, "KILL")
        self.sb.wait_status(two, "stopped")
        self.ok("delete", two)

    def test_pause(self):
        """One that is paused stands still, the pod's first too; the others go on."""
        counts = os.path.join(self.sb.dir, "counts")
        os.mkdir(counts)

        def mount(config):
            config["mounts"].append({"destination": "/counts", "type": "bind", "source": counts,
                                     "options": ["rbind", "rw"]})

        def count(name):
            return ["sh", "-c", f"i=0; while :; do i=$((i+1)); echo $i >> /counts/{name}; done"]

        def moves(name):
            path = os.path.join(counts, name)
            before = os.path.getsize(path)
            time.sleep(0.3)
            return os.path.getsize(path) != before
        pod = self.pod(count("pod"), edit=mount)
        one = self.join(pod, count("one"), edit=mount)
        two = self.join(pod, count("two"), edit=mount)
        for paused, others in ((one, ("pod", "two")), (pod, ("one", "two"))):
            name = "pod" if paused == pod else "one"
            self.ok("pause", paused)
            self.assertEqual("paused", self.sb.state(paused)["status"])
            time.sleep(0.1)
            self.assertFalse(moves(name))
            for other in others:
                self.assertTrue(moves(other), other)
            self.ok("resume", paused)
            self.assertTrue(moves(name))
        self.ok("pause", one)
        self.ok("kill", one, "KILL")
        self.sb.wait_status(one, "stopped")
        self.ok("delete", one)
        self.assertTrue(moves("two"))

    def test_limits(self):
        pod = self.pod()

        def limit(config):
            config["linux"]["resources"] = {"pids": {"limit": 10}, "memory": {"limit": 64 << 20},
                                            "cpu": {"quota": 100000, "period": 100000}}
        one = self.join(pod, IDLE, edit=limit)
        two = self.join(pod, IDLE)
        forks = (f"{PYTHON} -c \"import os,time\nn=0\ntry:\n for n in range(20):\n"
                 "  if os.fork() == 0: time.sleep(1); os._exit(0)\n n=20\nexcept OSError: pass\nprint(n)\"")
        self.assertIn(int(self.shell(one, forks)), range(5, 10))
        self.assertEqual("20\n", self.shell(two, forks))
        self.assertEqual("1\n", self.shell(one, "nproc"))
        self.assertIn("MemTotal:          65536 kB", self.shell(one, "cat /proc/meminfo"))
        self.assertNotIn("MemTotal:          65536 kB", self.shell(two, "cat /proc/meminfo"))
        self.ok("update", "--pids-limit", "200", one)
        self.assertEqual("20\n", self.shell(one, forks))

    def test_volume(self):
        """A directory of the host in both: coherent names, sizes, bytes and mappings."""
        shared = os.path.join(self.sb.dir, "shared")
        os.mkdir(shared)

        def mount(config):
            config["mounts"].append({"destination": "/shared", "type": "bind", "source": shared,
                                     "options": ["rbind", "rw"]})
        pod = self.pod()
        one, two = self.join(pod, IDLE, edit=mount), self.join(pod, IDLE, edit=mount)
        for i in range(20):
            self.shell(one, f"stat /shared/f{i} 2>/dev/null; echo {i} > /shared/f{i}")
            self.assertEqual(f"{i}\n", self.shell(two, f"cat /shared/f{i}; rm /shared/f{i}"))
            self.assertEqual("", self.shell(one, "ls /shared"))
        counter = (f"{PYTHON} -c \"import mmap,os,time; f=os.open('/shared/m', os.O_RDWR|os.O_CREAT); "
                   "os.ftruncate(f, 4096); m=mmap.mmap(f, 4096); ")
        self.shell(one, counter + "m[0:5]=b'hello'\"")
        self.assertEqual("b'hello'\n", self.shell(two, counter + "print(m[0:5])\""))

    def test_hostile(self):
        pod = self.pod()

        def refused(config, text):
            r = self.sb.runsc("create", "--bundle", self.sb.bundle(config), "refused")
            self.assertNotEqual(0, r.returncode)
            self.assertIn(text, r.stderr)
            self.assertEqual(1, r.stderr.count("\n"), r.stderr)
            self.assertEqual("none", self.sb.state("refused")["status"])
        refused(self.config("no-such", IDLE, share=()), "is no container of this runtime")
        refused(self.config("../" + pod, IDLE, share=()), "invalid container ID")

        def forget(config):
            del config["annotations"][NAMES["cri"][1]]
        refused(self.config(pod, IDLE, edit=forget), "does not say of which")
        one = self.join(pod, IDLE)
        refused(self.config(one, IDLE, share=()), "has no sandbox of its own")

        def host(config):
            config["linux"]["namespaces"][1]["path"] = "/proc/1/ns/net"
        refused(self.config(pod, IDLE, edit=host), "is not that of a container of the pod")
        self.ok("kill", pod, "KILL")
        self.sb.wait_status(pod, "stopped")
        refused(self.config(pod, IDLE, share=()), "is stopped")

    def test_isolation(self):
        """A container with all capabilities reaches no other one's root or processes."""
        pod = self.pod()
        secret = self.join(pod, ["sh", "-c", "echo secret > /dev/shm/secret; exec sleep 1000"])
        prober = self.join(pod, IDLE, caps=harness.ALL_CAPS)
        out = self.shell(prober, "for p in /proc/[0-9]*; do ls $p/root/dev/shm; done; ls /dev/shm;"
                                 "ls /proc | grep -c '^[0-9]'; kill -9 -1; true")
        self.assertNotIn("secret", out)
        self.assertEqual("secret\n", self.shell(secret, "cat /dev/shm/secret"))
        self.assertEqual("running", self.sb.state(pod)["status"])

    def test_creator_that_dies(self):
        """What `runsc run` in the foreground made in a sandbox goes with it."""
        pod = self.pod()
        bundle = self.sb.bundle(self.config(pod, IDLE))
        self.sb.containers.append("gone")
        run = subprocess.Popen(self.sb.command("run", "--bundle", bundle, "gone"),
                               stdin=subprocess.DEVNULL)
        self.sb.wait_status("gone", "running")
        run.kill()
        run.wait()
        self.sb.wait_status("gone", "stopped")
        self.ok("delete", "gone")
        self.assertEqual("alive\n", self.shell(pod, "echo alive"))

    def test_nothing_is_left(self):
        """Containers that come and go leave no descriptor, process or mount in the sentry."""
        pod = self.pod()
        sentry = self.sb.state(pod)["pid"]

        def held():
            with open(f"/proc/{sentry}/status") as f:
                threads = next(int(l.split()[1]) for l in f if l.startswith("Threads"))
            return len(os.listdir(f"/proc/{sentry}/fd")), threads
        for round in range(3):
            for _ in range(5):
                id = self.join(pod, ["sh", "-c", "ls -R /usr/share/doc > /dev/null; exec sleep 1000"])
                self.shell(id, "cat /etc/passwd > /dev/null")
                self.ok("delete", "-f", id)
            time.sleep(0.3)
            if round == 0:
                before = held()
        after = held()
        self.assertLessEqual(after[0], before[0] + 2, (before, after))

    def test_fifty(self):
        pod = self.pod()
        ids = [self.join(pod, IDLE) for _ in range(50)]
        self.assertEqual("49\n", self.shell(ids[49], "echo 49"))
        for id in ids[:49]:
            self.ok("delete", "-f", id)
        self.assertEqual("49\n", self.shell(ids[49], "echo 49"))
        self.ok("delete", "-f", pod)
        self.sb.wait_status(ids[49], "stopped")


if __name__ == "__main__":
    harness.main()
