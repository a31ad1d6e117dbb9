#!/usr/bin/env python3
"""runsc under Docker, beside runc."""

import os
import subprocess

import engines
import harness
from engines import IMAGE


def program(name):
    """Debian's, whatever else is on the machine."""
    return next((p for p in (f"/usr/bin/{name}", f"/usr/sbin/{name}") if os.path.exists(p)), name)


class Docker(engines.Engine):
    programs = [program("docker"), program("dockerd"), "containerd", "containerd-shim-runc-v2", "runc"]
    # No bridge and no packet filter of the machine's is touched.
    before = []
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]

    def start(self):
        containerd = self.write("containerd.toml", f"""
version = 2
root = "{self.dir}/containerd"
state = "{self.dir}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{self.dir}/c.sock"
[ttrpc]
  address = "{self.dir}/t.sock"
""")
        self.daemon("containerd", ["containerd", "--config", containerd],
                    ["ctr", "--address", self.path("c.sock"), "version"])
        config = self.write("daemon.json",
                            '{"runtimes": {"runsc": {"path": "%s"}}, "default-runtime": "runsc"}'
                            % self.runtime_wrapper())
        self.env["DOCKER_HOST"] = f"unix://{self.dir}/d.sock"
        self.dockerd = self.daemon("dockerd", [
            *self.before, program("dockerd"), "--config-file", config, "--containerd", self.path("c.sock"),
            "--data-root", self.path("data"), "--exec-root", self.path("exec"),
            "--pidfile", self.path("pid"), "--host", self.env["DOCKER_HOST"],
            "--cgroup-parent", "/" + self.cgroup, "--exec-opt", "native.cgroupdriver=cgroupfs",
            *self.network], [program("docker"), "version"])
        r = self.command("load", "-i", engines.make_image(self.path("image.tar")))
        assert r.returncode == 0, r.stderr

    def remove_containers(self):
        names = self.command("ps", "-aq").stdout.split()
        if names:
            self.command("rm", "-f", *names)

    def command(self, *args, **kw):
        return self.run(program("docker"), *args, **kw)


class DockerTest(engines.EngineTest):
    engine_class = Docker

    def both(self, options, args):
        """`docker run` under runsc does what it does under runc."""
        results = []
        for runtime in ("runsc", "runc"):
            r = self.engine.command("run", "--runtime", runtime, "--rm", *options, IMAGE, *args)
            results.append((r.returncode, r.stdout))
        self.assertEqual(results[1], results[0], f"{options} {args}")
        return results[0]

    def inspect(self, name, what):
        return self.ok("inspect", "-f", "{{.%s}}" % what, name).strip()

    def test_options(self):
        shared = self.engine.path("shared")
        os.mkdir(shared)
        self.engine.write("shared/file", "of the host\n")
        self.assertEqual((7, "out\n"), self.both([], ["sh", "-c", "echo out; exit 7"]))
        self.both(["-e", "A=b", "-w", "/tmp", "-u", "www"], ["sh", "-c", "echo $A; pwd; id"])
        self.both(["-v", f"{shared}:/rw", "-v", f"{shared}:/ro:ro", "-v", f"{shared}/file:/file"],
                  ["sh", "-c", "cat /rw/file /file; echo new > /rw/new; echo no > /ro/no; cat /ro/new"])
        self.both(["--read-only", "--tmpfs", "/scratch:size=1m,mode=700"],
                  ["sh", "-c", "touch /no; touch /scratch/yes; stat -c %a /scratch; df -k /scratch"])
        self.both(["--cap-drop", "all", "--ulimit", "nofile=100:200", "--hostname", "named"],
                  ["sh", "-c", "grep CapEff /proc/self/status; ulimit -n; hostname"])
        self.both(["--oom-score-adj", "100", "--group-add", "5"],
                  ["sh", "-c", "id; cat /proc/self/oom_score_adj"])
        self.both(["--sysctl", "net.ipv4.ip_forward=1"], ["cat", "/proc/sys/net/ipv4/ip_forward"])
        self.both(["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined"],
                  ["grep", "-E", "NoNewPrivs|Seccomp:", "/proc/self/status"])
        self.both(["--device", "/dev/zero:/dev/mine"], ["stat", "-c", "%F %t %T", "/dev/mine"])
        self.both(["-v", "volume:/etc"], ["ls", "/etc"])
        self.assertEqual(127, self.both([], ["no-such-program"])[0])
        self.assertEqual(126, self.both([], ["/etc"])[0])

    def test_limits(self):
        self.assertEqual("docker-init\n", self.ok("run", "--rm", "--init", IMAGE, "cat", "/proc/1/comm"))
        self.assertEqual("1\n", self.ok("run", "--rm", "--cpus", "1", IMAGE, "nproc"))
        fork = "for i in $(seq 60); do sleep 0.5 & done; wait"
        r = self.engine.command("run", "--rm", "--pids-limit", "50", IMAGE, "sh", "-c", fork)
        self.assertIn("Resource temporarily unavailable", r.stderr)
        self.assertEqual(0, self.engine.command("run", "--rm", IMAGE, "sh", "-c", fork).returncode)
        # The processes that serve the container count as its own.
        self.ok("run", "-d", "--name", "c1", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50",
                IMAGE, "sleep", "1000")
        pid = self.inspect("c1", "State.Pid")
        with open(f"/proc/{pid}/cgroup") as f:
            memory = next(line.split(":")[2].strip() for line in f if ":memory:" in line or "::" in line)
        self.assertIn(self.engine.cgroup, memory)
        stats = self.ok("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "c1")
        self.assertRegex(stats, r"^[0-9.]+MiB / 64MiB [0-9]+\n")

    def test_life(self):
        self.ok("run", "-d", "--name", "c1", IMAGE, "sh", "-c",
                "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.05; done")
        self.eventually(lambda: self.ok("logs", "c1"), "up\n")
        r = self.engine.command("exec", "-w", "/etc", "-e", "A=b", "-u", "www", "c1", "sh", "-c",
                                "pwd; echo $A; id -g; exit 4")
        self.assertEqual((4, "/etc\nb\n44\n"), (r.returncode, r.stdout), r.stderr)
        # As the host sees them: the sandbox, and what runs the container's code.
        self.assertIn(self.inspect("c1", "State.Pid"), self.ok("top", "c1", "-o", "pid").split())
        self.ok("pause", "c1")
        self.assertEqual("paused", self.inspect("c1", "State.Status"))
        self.assertIn("paused", self.engine.command("exec", "c1", "true").stderr)
        self.ok("unpause", "c1")
        self.ok("cp", self.engine.write("note", "from outside\n"), "c1:/root/note")
        self.assertEqual("from outside\n", self.ok("exec", "c1", "cat", "/root/note"))
        self.ok("exec", "c1", "sh", "-c", "echo from inside > /root/note")
        self.ok("cp", "c1:/root/note", self.engine.path("back"))
        with open(self.engine.path("back")) as f:
            self.assertEqual("from inside\n", f.read())
        self.ok("update", "--memory", "100m", "--memory-swap", "200m", "c1")
        self.assertIn("MemTotal:         102400 kB", self.ok("exec", "c1", "cat", "/proc/meminfo"))
        self.ok("restart", "-t", "5", "c1")
        self.eventually(lambda: self.ok("logs", "c1"), "up\nterm\nup\n")
        self.ok("stop", "c1")
        self.assertEqual("3", self.inspect("c1", "State.ExitCode"))
        self.ok("start", "c1")
        self.ok("kill", "-s", "KILL", "c1")
        self.assertEqual("137\n", self.ok("wait", "c1"))
        self.ok("rm", "c1")

    def test_health_restart_and_out_of_memory(self):
        log = self.engine.path("events")
        with open(log, "w") as f:
            events = subprocess.Popen([program("docker"), "events"], stdout=f, env=self.engine.env)
        self.addCleanup(events.wait)
        self.addCleanup(events.kill)
        self.ok("run", "-d", "--name", "h1", "--health-cmd", "test -f /healthy", "--health-interval",
                "100ms", "--health-retries", "1", IMAGE, "sleep", "1000")
        self.eventually(lambda: self.inspect("h1", "State.Health.Status"), "^unhealthy$")
        self.ok("exec", "h1", "touch", "/healthy")
        self.eventually(lambda: self.inspect("h1", "State.Health.Status"), "^healthy$")
        self.ok("run", "-d", "--name", "r1", "--restart", "on-failure:1", IMAGE, "sh", "-c",
                "echo run; exit 1")
        self.eventually(lambda: self.ok("logs", "r1"), "run\nrun\n")
        self.assertEqual(137, self.engine.command("run", "--name", "m1", "--memory", "32m", IMAGE, "dd",
                                                  "if=/dev/zero", "of=/dev/null", "bs=64M",
                                                  "count=1").returncode)
        self.assertEqual("true", self.inspect("m1", "State.OOMKilled"))
        def read():
            with open(log) as f:
                return f.read()
        self.eventually(read, "container oom .*name=m1")

    def test_terminals(self):
        t, child = self.engine.terminal(program("docker"), "run", "--rm", "-it", "--name", "c1", IMAGE,
                                        "sh", columns=91)
        t.type_until("stty size; tty\n", r"24 91\r\n/dev/pts/0")
        t.resize(30, 100)
        t.type_until("stty size\n", r"30 100")
        e, inner = self.engine.terminal(program("docker"), "exec", "-it", "c1", "sh", columns=77)
        e.type_until("stty size; tty\n", r"24 77\r\n/dev/pts/1")
        e.type("exit 6\n")
        self.assertEqual(6, inner.wait(timeout=20))
        self.check_interrupted(t, child)

    def test_logs_of_100_mb(self):
        self.check_logs_of_100_mb()

    def test_build(self):
        self.engine.write("build/copied", "a file\n")
        self.engine.write("build/Dockerfile", f"""
FROM {IMAGE}
RUN uname -v > /kernel && echo built > /built && chmod 600 /built && ln -s built /link
COPY copied /copied
USER www
WORKDIR /tmp
RUN id -un > who && cat /copied
ENV A=b
CMD cat who /copied; echo $A; ls -l /built | cut -c1-10; readlink /link
""")
        self.engine.env["DOCKER_BUILDKIT"] = "0"
        self.ok("build", "-t", "built", self.engine.path("build"))
        self.assertEqual("www\na file\nb\n-rw-------\nbuilt\n", self.ok("run", "--rm", "built"))
        # The steps have run in the sandbox.
        self.assertEqual(self.ok("run", "--rm", IMAGE, "uname", "-v"),
                         self.ok("run", "--rm", "--runtime", "runc", "built", "cat", "/kernel"))


class DockerWithBridge(Docker):
    """With bridges, in a network namespace of its own."""
    before = ["unshare", "--net"]
    network = []


class DockerBridgeTest(engines.EngineTest):
    engine_class = DockerWithBridge

    def test_networks(self):
        """A network of the engine's is made and removed for the container, which has its own loopback
        device alone."""
        self.ok("network", "create", "mine")
        for network in ("bridge", "mine", "host", "none"):
            self.ok("run", "-d", "--name", network, "--network", network, "--hostname", "named", IMAGE,
                    "sleep", "1000")
            self.assertEqual("lo\n", self.ok("exec", network, "sh", "-c", "ls /sys/class/net"))
            self.assertIn("127.0.0.1", self.ok("exec", network, "ip", "addr"))
            self.assertIn("localhost", self.ok("exec", network, "cat", "/etc/hosts"))
        self.ok("run", "--rm", "--network", "container:mine", IMAGE, "true")
        self.ok("rm", "-f", "bridge", "mine", "host", "none")
        self.ok("network", "rm", "mine")


class DockerWithHostNetwork(DockerWithBridge):
    before = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    flags = ["--network=host"]

    def beside(self, *args, **kw):
        """Runs a program where the engine's bridges are."""
        return self.run("nsenter", "-t", str(self.dockerd.pid), "-n", *args, **kw)


class DockerHostNetworkTest(engines.HostNetworkTest):
    """The engine's networks reach into the container and out of it with --network=host."""
    engine_class = DockerWithHostNetwork
    def test_published_ports(self):
        self.server("web", "-p", "8080:80", "-p", "9090:90/udp")
        self.eventually(lambda: self.fetch("http://127.0.0.1:8080/name"), "^web\n")
        self.eventually(lambda: self.fetch("http://172.17.0.1:8080/name"), "^web\n")
        address = self.inspect("web", "NetworkSettings.IPAddress")
        self.assertEqual("web\n", self.fetch(f"http://{address}/name"))
        self.assertIn(address, self.ok("exec", "web", "ip", "addr", "show", "dev", "eth0"))
        # A restart gets a network of its own again.
        self.ok("restart", "-t", "1", "web")
        self.eventually(lambda: self.fetch("http://127.0.0.1:8080/name"), "^web\n")
        # What is published is all that is reached, by a container of the same bridge too.
        self.assertEqual("web\n", self.ok("run", "--rm", IMAGE, "wget", "-q", "-O", "-", f"http://{address}/name"))
        self.assertIn("refused", self.fetch(f"http://{address}:81/name"))

    def inspect(self, name, what):
        return self.ok("inspect", "-f", "{{.%s}}" % what, name).strip()

    def test_user_network(self):
        """Two containers find each other by name, through the engine's resolver."""
        self.ok("network", "create", "mine")
        self.server("one", "--network", "mine")
        self.server("two", "--network", "mine")
        for client, server in (("one", "two"), ("two", "one")):
            self.eventually(lambda: self.ok("exec", client, "wget", "-q", "-O", "-", f"http://{server}/name"),
                            f"^{server}\n")
        # With runc in the place of one of them.
        self.assertEqual("one\n", self.ok("run", "--rm", "--runtime", "runc", "--network", "mine", IMAGE,
                                          "wget", "-q", "-O", "-", "http://one/name"))
        # In the network of another container, and in the engine's own.
        self.assertEqual("one\n", self.ok("run", "--rm", "--network", "container:one", IMAGE, "wget", "-q",
                                          "-O", "-", "http://127.0.0.1/name"))
        self.assertIn("docker0", self.ok("run", "--rm", "--network", "host", IMAGE, "ip", "addr"))
        self.assertEqual("lo\n", self.ok("run", "--rm", "--network", "none", IMAGE, "ls", "/sys/class/net"))

    def test_build_with_network(self):
        self.server("web")
        url = f"http://{self.inspect('web', 'NetworkSettings.IPAddress')}/name"
        self.engine.write("build/Dockerfile", f"FROM {IMAGE}\nRUN wget -q -O /got {url}\nCMD cat /got\n")
        self.engine.env["DOCKER_BUILDKIT"] = "0"
        self.ok("build", "-t", "built", self.engine.path("build"))
        self.assertEqual("web\n", self.ok("run", "--rm", "built"))


if __name__ == "__main__":
    harness.main()
