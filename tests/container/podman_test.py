#!/usr/bin/env python3
"""runsc under Podman, beside runc."""

import json
import os
import time

import engines
import harness
from engines import IMAGE


class Podman(engines.Engine):
    programs = ["podman", "conmon", "runc"]

    def start(self):
        self.env["CONTAINERS_CONF"] = self.write("containers.conf", f"""
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=2000:2000"]
log_driver = "k8s-file"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runsc"
tmp_dir = "{self.dir}/tmp"
[engine.runtimes]
runsc = ["{self.runtime_wrapper()}"]
""")
        self.env["CONTAINERS_STORAGE_CONF"] = self.write("storage.conf", f"""
[storage]
driver = "overlay"
graphroot = "{self.dir}/graph"
runroot = "{self.dir}/run"
""")
        r = self.command("load", "-i", engines.make_image(self.path("image.tar")))
        assert r.returncode == 0, r.stderr

    def remove_containers(self):
        self.command("pod", "rm", "-fa", "-t", "0")
        self.command("rm", "-fa", "-t", "0")

    def command(self, *args, **kw):
        return self.run("podman", *args, **kw)


class PodmanTest(engines.EngineTest):
    engine_class = Podman

    def both(self, options, args):
        """`podman run` under runsc does what it does under runc."""
        results = []
        for runtime in ("runsc", "runc"):
            r = self.engine.command("--runtime", runtime, "run", "--rm", *options, IMAGE, *args)
            results.append((r.returncode, r.stdout))
        self.assertEqual(results[1], results[0], f"{options} {args}")
        return results[0]

    def test_options(self):
        shared = self.engine.path("shared")
        os.mkdir(shared)
        self.engine.write("shared/file", "of the host\n")
        self.assertEqual((7, "out\n"), self.both([], ["sh", "-c", "echo out; exit 7"]))
        self.both(["-e", "A=b", "-w", "/tmp", "-u", "www"], ["sh", "-c", "echo $A; pwd; id"])
        self.both(["-v", f"{shared}:/rw", "-v", f"{shared}:/ro:ro", "-v", f"{shared}/file:/file"],
                  ["sh", "-c", "cat /rw/file /file; echo new > /rw/new; echo no > /ro/no; cat /ro/new"])
        self.both(["--read-only", "--tmpfs", "/scratch:size=1m,mode=700"],
                  ["sh", "-c", "touch /no; touch /scratch/yes /tmp/yes; stat -c %a /scratch /tmp"])
        self.both(["--cap-drop", "all", "--ulimit", "nofile=100:200", "--ulimit", "nproc=100:100",
                   "--hostname", "named"],
                  ["sh", "-c", "grep CapEff /proc/self/status; ulimit -n; hostname"])
        self.both(["--sysctl", "net.ipv4.ip_forward=1"], ["cat", "/proc/sys/net/ipv4/ip_forward"])
        self.both(["--uts", "host"], ["hostname"])
        self.both(["--device", "/dev/zero:/dev/mine"], ["stat", "-c", "%F %t %T", "/dev/mine"])
        self.both(["--shm-size", "1m"], ["stat", "-f", "-c", "%b %S", "/dev/shm"])
        self.both(["--security-opt", "no-new-privileges"], ["grep", "NoNewPrivs", "/proc/self/status"])
        self.assertEqual(127, self.both([], ["no-such-program"])[0])
        self.assertEqual(126, self.both([], ["/etc"])[0])
        self.assertIn("init", self.ok("run", "--rm", "--init", IMAGE, "cat", "/proc/1/comm"))

    def test_life(self):
        self.ok("run", "-d", "--name", "c", "--memory", "64m", "--pids-limit", "80", IMAGE, "sh", "-c",
                "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.05; done")
        self.eventually(lambda: self.ok("logs", "c"), "up\n")
        r = self.engine.command("exec", "-w", "/etc", "-e", "A=b", "-u", "33", "c", "sh", "-c",
                                "pwd; echo $A; id -u; exit 4")
        self.assertEqual((4, "/etc\nb\n33\n"), (r.returncode, r.stdout), r.stderr)
        self.assertRegex(self.ok("top", "c", "-o", "pid,comm"), r"1 +sh\n")
        stats = json.loads(self.ok("stats", "--no-stream", "--format", "json", "c"))[0]
        self.assertIn("67.11MB", stats["mem_usage"])
        self.assertGreater(int(stats["pids"]), 2)
        self.ok("pause", "c")
        self.assertEqual("paused\n", self.ok("inspect", "-f", "{{.State.Status}}", "c"))
        self.ok("unpause", "c")
        self.assertEqual("running\n", self.ok("inspect", "-f", "{{.State.Status}}", "c"))
        self.ok("restart", "-t", "5", "c")
        self.eventually(lambda: self.ok("logs", "c"), "up\nterm\nup\n")
        self.ok("stop", "c")
        self.assertEqual("3\n", self.ok("inspect", "-f", "{{.State.ExitCode}}", "c"))
        self.ok("cp", self.engine.write("note", "from outside\n"), "c:/root/note")
        self.ok("start", "c")
        self.assertEqual("from outside\n", self.ok("exec", "c", "cat", "/root/note"))
        self.ok("kill", "-s", "KILL", "c")
        self.assertEqual("137\n", self.ok("wait", "c"))
        self.ok("rm", "c")

    def test_terminal(self):
        t, child = self.engine.terminal("podman", "run", "--rm", "-it", IMAGE, "sh", columns=91)
        t.type_until("stty size; tty\n", r"24 91\r\n/dev/pts/0")
        t.resize(30, 100)
        t.type_until("stty size\n", r"30 100")
        self.check_interrupted(t, child)

    def test_logs_of_100_mb(self):
        self.check_logs_of_100_mb()

    def pod_file(self):
        container = """
  - name: {0}
    image: {1}
    command: ["sh", "-c", "hostname > /shared/{0}; sleep 1000"]
    volumeMounts:
    - name: shared
      mountPath: /shared
"""
        return self.engine.write("pod.yaml", f"""
apiVersion: v1
kind: Pod
metadata:
  name: pod
spec:
  containers:{container.format("one", IMAGE)}{container.format("two", IMAGE)}
  volumes:
  - name: shared
    hostPath:
      path: {self.engine.path("volume")}
      type: DirectoryOrCreate
""")

    def test_pod(self):
        """Two containers of a pod share a volume, the pod's name and its loopback device; one that
        ends leaves the other running."""
        kube = self.pod_file()
        wget = ("wget", "-q", "-O", "-", "http://127.0.0.1:8080/shared/one")
        for runtime in ("runc", "runsc"):
            self.ok("--runtime", runtime, "play", "kube", "--network", "none", kube)
            self.eventually(lambda: self.ok("exec", "pod-one", "cat", "/shared/two"), "^pod\n$")
            self.eventually(lambda: self.ok("exec", "pod-two", "cat", "/shared/one"), "^pod\n$")
            self.ok("exec", "-d", "pod-one", "httpd", "-f", "-p", "127.0.0.1:8080")
            for name in ("pod-one", "pod-two"):
                self.eventually(lambda: self.engine.command("exec", name, *wget).stdout, "^pod\n$")
                self.assertEqual("1\n", self.ok("exec", name, "sh", "-c", "ps | grep -c '[s]leep 1000' "
                                                "> /tmp/n; cat /tmp/n"))
            if runtime == "runsc":
                pids = self.ok("inspect", "-f", "{{.State.Pid}}", "pod-one", "pod-two").split()
                self.assertEqual(["runsc-gofer"] * 2, [open(f"/proc/{p}/comm").read().strip()
                                                       for p in pids])
            self.ok("kill", "pod-two")
            self.eventually(lambda: self.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}",
                                            "pod-two"), "^exited 137\n$")
            self.assertEqual("true\n", self.ok("inspect", "-f", "{{.State.Running}}", "pod-one"))
            self.assertEqual("pod\n", self.ok("exec", "pod-one", *wget))
            self.remove_pod()

    def remove_pod(self):
        # Podman may find its conmon still on its way out of its cgroup.
        def removed():
            self.engine.command("pod", "rm", "-f", "-t", "0", "pod")
            return str(self.engine.command("pod", "exists", "pod").returncode)
        self.eventually(removed, "^1$")
        self.assertEqual("", self.ok("ps", "-aq"))

    def test_pod_commands(self):
        self.ok("pod", "create", "--name", "pod", "--network", "none", "--share", "ipc,net,uts,pid")
        self.ok("run", "-d", "--pod", "pod", "--name", "one", IMAGE, "sleep", "1000")
        self.assertEqual("sleep 1000\n", self.ok("run", "--rm", "--pod", "pod", IMAGE, "sh", "-c",
                                                 "ps -o args | grep '^sleep 1000'"))
        r = self.engine.command("run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", "echo out; exit 5")
        self.assertEqual((5, "out\n"), (r.returncode, r.stdout), r.stderr)
        self.ok("pod", "pause", "pod")
        self.ok("pod", "unpause", "pod")
        self.ok("restart", "-t", "0", "one")
        self.assertEqual("in\n", self.ok("exec", "one", "echo", "in"))
        self.ok("pod", "stop", "-t", "0", "pod")
        self.ok("pod", "start", "pod")
        self.assertEqual("in\n", self.ok("exec", "one", "echo", "in"))
        self.remove_pod()

    def test_hooks(self):
        log = self.engine.path("log")
        stages = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
        for stage in stages:
            self.engine.write(f"hooks/{stage}.json", json.dumps({
                "version": "1.0.0", "when": {"always": True}, "stages": [stage],
                "hook": {"path": "/bin/sh", "args": ["sh", "-c", f"echo {stage} >> {log}"]}}))
        self.ok("--hooks-dir", self.engine.path("hooks"), "run", "--rm", IMAGE, "true")
        with open(log) as f:
            self.assertEqual(stages, f.read().split())

    def test_health(self):
        self.ok("run", "-d", "--name", "c", "--health-cmd", "test -f /healthy", "--health-interval",
                "disable", IMAGE, "sleep", "1000")
        self.assertEqual(1, self.engine.command("healthcheck", "run", "c").returncode)
        self.ok("exec", "c", "touch", "/healthy")
        self.ok("healthcheck", "run", "c")
        self.ok("rm", "-f", "-t", "0", "c")


class PodmanWithHostNetwork(Podman):
    """With bridges, in a network namespace that a process holds."""
    programs = [*Podman.programs, "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns"]
    flags = ["--network=host"]
    inside = []  # the words that enter it

    def start(self):
        holder = self.daemon("holder", ["unshare", "--net", "sh", "-c", "ip link set lo up; exec sleep 1000"],
                             ["true"])
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            time.sleep(0.01)
        self.inside = ["nsenter", "-t", str(holder.pid), "-n"]
        super().start()
        with open(self.env["CONTAINERS_CONF"], "a") as f:
            f.write(f"""
[network]
network_backend = "netavark"
network_config_dir = "{self.dir}/networks"
""")

    def command(self, *args, **kw):
        return self.beside("podman", *args, **kw)

    def beside(self, *args, **kw):
        """Runs a program where the engine's bridges are."""
        return self.run(*self.inside, *args, **kw)


class PodmanHostNetworkTest(engines.HostNetworkTest):
    """The engine's networks reach into the container and out of it with --network=host."""
    engine_class = PodmanWithHostNetwork
    def test_published_ports(self):
        self.server("web", "--network", "bridge", "-p", "8080:80")
        address = self.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web").strip()
        self.eventually(lambda: self.fetch(f"http://{address}/name"), "^web\n")
        # From where the engine is, by the packet filter's rules.
        gateway = self.ok("inspect", "-f", "{{.NetworkSettings.Gateway}}", "web").strip()
        self.assertEqual("web\n", self.fetch(f"http://{gateway}:8080/name"))
        self.assertIn("refused", self.fetch(f"http://{address}:81/name"))

    def test_user_network(self):
        """Two containers find each other by name, through the engine's resolver."""
        self.ok("network", "create", "mine")
        self.server("one", "--network", "mine")
        self.server("two", "--network", "mine")
        for client, server in (("one", "two"), ("two", "one")):
            self.eventually(lambda: self.engine.command("exec", client, "wget", "-q", "-O", "-",
                                                        f"http://{server}/name").stdout, f"^{server}\n")
        self.assertEqual("one\n", self.ok("run", "--rm", "--network", "container:one", IMAGE, "wget", "-q",
                                          "-O", "-", "http://127.0.0.1/name"))

    def test_pod(self):
        """The containers of a pod share its network, though each is in a sandbox of its own."""
        self.ok("pod", "create", "--name", "pod", "--network", "none", "--infra-image", IMAGE,
                "--infra-command", "sleep 1000")
        self.ok("run", "-d", "--pod", "pod", IMAGE, *self.serve)
        self.eventually(lambda: self.engine.command("run", "--rm", "--pod", "pod", IMAGE, "wget", "-q", "-O", "-",
                                                    "http://127.0.0.1/name").stdout, "^(web|pod)\n")


if __name__ == "__main__":
    harness.main()
