"""The suite of servers behind a bridge: each file of benchmarks/bridge has a server, in its container, whose
network namespace hangs on a bridge, and a client on the host, in another namespace on the same bridge."""

import os
import subprocess

from . import programs
from .runtimes import Failed, Session

SUITE = "bridge"
FOLDER = os.path.join(os.path.dirname(programs.HERE), "bridge")
CLIENT = "10.213.0.1"


def ip(*args):
    result = subprocess.run(["ip", *args], capture_output=True, text=True)
    if result.returncode != 0:
        raise Failed(f"ip {' '.join(args)}: {result.stderr.strip()[:200]}")


class Bridge(programs.Programs):
    """The namespaces are named in the mount namespace of the comparison alone, and go with it."""

    suite = SUITE

    def workloads(self):
        return [programs.Workload(os.path.join(FOLDER, name))
                for name in sorted(os.listdir(FOLDER)) if name.endswith(".sh")]

    def run(self):
        self.servers = 0
        if self.todo and any(not w.missing(self.options.image) for w in self.todo):
            os.makedirs("/run/netns", exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "netns", "/run/netns"], check=True)
            ip("netns", "add", self.namespace(0))
            for words in (["link", "add", "bridge", "type", "bridge"], ["link", "set", "bridge", "up"],
                          ["link", "set", "lo", "up"], ["addr", "add", CLIENT + "/16", "dev", "bridge"]):
                ip("-n", self.namespace(0), *words)
        super().run()

    def namespace(self, number):
        return f"compare-{os.getpid()}-{number}"

    def new_server_namespace(self):
        """A namespace on the bridge; its name and its address."""
        self.servers += 1
        name = self.namespace(self.servers)
        address = f"10.213.{self.servers // 250 + 1}.{self.servers % 250 + 1}"
        end = f"veth{self.servers}"
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", end, "netns", self.namespace(0))
        ip("-n", self.namespace(0), "link", "set", end, "master", "bridge", "up")
        ip("-n", name, "addr", "add", address + "/16", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        return name, address

    def start(self, workload, runtime):
        name, address = self.new_server_namespace()
        root = self.new_root(workload)
        server = Session(self.scratch, runtime, root, ["bash", "/bench/driver.sh"],
                         [f"SCALE={self.options.scale}"], network=name, args_there=runtime.bridge_args)
        server.root = root
        client_root = self.new_root(workload)
        client = Session(self.scratch, self.results.by_name("host"), client_root, ["bash", "/bench/driver.sh"],
                         [f"SCALE={self.options.scale}", f"SERVER={address}"], network=self.namespace(0))
        client.root = client_root
        return Pair(server, client, name)

    def end(self, pair):
        if pair:
            super().end(pair.client)
            super().end(pair.server)
            ip("netns", "delete", pair.namespace)


class Pair:
    """The server's session and the client's, which is asked."""

    def __init__(self, server, client, namespace):
        self.server, self.client, self.namespace = server, client, namespace

    def wait_for(self, first_word, timeout):
        self.server.wait_for(first_word, timeout)
        return self.client.wait_for(first_word, timeout)

    def ask(self, *args):
        return self.client.ask(*args)
