#!/usr/bin/env python3
"""runsc as a runtime class of containerd's CRI plugin, asked over gRPC as a kubelet does."""

import os
import unittest

import engines
import harness
from engines import IMAGE

try:
    import grpc
except ImportError:  # Debian's package is for Debian's python3
    grpc = None

PAUSE = "localhost/pause:latest"
# NamespaceMode
POD, CONTAINER, NODE, TARGET = range(4)
RUNNING, EXITED = 1, 2


def encode(fields):
    """A protobuf message: {number: int, str, bytes, dict (a message) or list of these}."""
    def varint(n):
        n &= (1 << 64) - 1
        out = bytearray()
        while n > 0x7f:
            out.append(n & 0x7f | 0x80)
            n >>= 7
        return bytes(out + bytes([n]))
    out = b""
    for number, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
                continue
            data = encode(value) if isinstance(value, dict) else \
                value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def decode(data):
    """The fields of a message: numbers as int, all else as bytes; the last of each number."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return value
    while at < len(data):
        key = varint()
        if key & 7 == 0:
            fields[key >> 3] = varint()
        elif key & 7 == 2:
            size = varint()
            fields[key >> 3] = data[at:at + size]
            at += size
        else:
            raise ValueError(f"wire type {key & 7}")
    return fields


class Cri(engines.Engine):
    programs = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"]

    def start(self):
        runtimes = "".join(f"""
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
        BinaryName = "{program}"
""" for name, program in (("runsc", self.runtime_wrapper()), ("runc", "runc")))
        config = self.write("config.toml", f"""
version = 2
root = "{self.dir}/root"
state = "{self.dir}/state"
[grpc]
  address = "{self.dir}/c.sock"
[ttrpc]
  address = "{self.dir}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
{runtimes}
""")
        self.write("cni/10-lo.conflist",
                   '{"cniVersion": "0.4.0", "name": "lo", "plugins": [{"type": "loopback"}]}')
        self.env["CONTAINERD_ADDRESS"] = self.path("c.sock")
        self.env["CONTAINERD_NAMESPACE"] = "k8s.io"
        self.daemon("containerd", ["containerd", "--config", config], ["ctr", "version"])
        for image, command in ((IMAGE, ["sh"]), (PAUSE, ["sleep", "1000000"])):
            tar = engines.make_image(self.path("image.tar"), image, command)
            r = self.run("ctr", "image", "import", tar)
            assert r.returncode == 0, r.stderr
        self.channel = grpc.insecure_channel("unix://" + self.path("c.sock"))

    def call(self, method, fields):
        call = self.channel.unary_unary("/runtime.v1.RuntimeService/" + method,
                                        request_serializer=encode, response_deserializer=decode)
        return call(fields, timeout=60)

    def close(self):
        self.channel.close()
        super().close()

    def command(self, *args, **kw):
        return self.run("ctr", *args, **kw)


@unittest.skipIf(grpc is None, "python3-grpcio is not installed")
class CriTest(engines.EngineTest):
    engine_class = Cri

    def pod_config(self, name, pid=CONTAINER):
        return {1: {1: name, 2: "uid-" + name, 3: "default"}, 3: self.engine.path("logs"),
                8: {1: "/" + self.engine.cgroup, 2: {1: {1: NODE, 2: pid, 3: POD}}}}

    def run_pod(self, name, runtime="runsc", **kw):
        os.makedirs(self.engine.path("logs"), exist_ok=True)
        config = self.pod_config(name, **kw)
        return self.engine.call("RunPodSandbox", {1: config, 2: runtime})[1].decode()

    def run_container(self, pod, name, command, mounts=(), pid=CONTAINER, target="", pod_name="pod"):
        config = {1: {1: name}, 2: {1: IMAGE}, 3: list(command), 11: name + ".log",
                  7: [{1: inside, 2: outside} for inside, outside in mounts],
                  15: {2: {3: {1: NODE, 2: pid, 3: POD, 4: target}}}}
        id = self.engine.call("CreateContainer", {1: pod, 2: config, 3: self.pod_config(pod_name, pid)})
        id = id[1].decode()
        self.engine.call("StartContainer", {1: id})
        return id

    def exec(self, id, *command):
        r = self.engine.call("ExecSync", {1: id, 2: list(command), 3: 20})
        return r.get(3, 0), r.get(1, b"").decode() + r.get(2, b"").decode()

    def status(self, id):
        status = decode(self.engine.call("ContainerStatus", {1: id})[1])
        return status.get(3, 0), status.get(7, 0)

    def comm(self, id):
        for line in self.ok("tasks", "ls").splitlines():
            if line.split()[0] == id:
                with open(f"/proc/{line.split()[1]}/comm") as f:
                    return f.read().strip()
        return None

    def check_pod(self, runtime):
        volume = self.engine.path("volume-" + runtime)
        os.mkdir(volume)
        pod = self.run_pod("pod", runtime)
        server = self.run_container(pod, "server", ["sh", "-c", "echo hello > /v/f; hostname; "
                                                    "exec httpd -f -p 127.0.0.1:8089 -h /v"],
                                    mounts=[("/v", volume)])
        client = self.run_container(pod, "client", ["sleep", "1000"], mounts=[("/v", volume)])
        wget = ("wget", "-q", "-O", "-", "http://127.0.0.1:8089/f")
        self.eventually(lambda: self.exec(client, *wget)[1], "^hello\n$")
        self.assertEqual((0, "hello\n"), self.exec(client, "cat", "/v/f"))
        self.assertEqual((3, "out\n"), self.exec(client, "sh", "-c", "echo out; exit 3"))
        self.assertEqual((0, "1\n"), self.exec(client, "sh", "-c", "ps | grep -c ' sleep 1000$'"))
        self.assertEqual((1, "0\n"), self.exec(server, "sh", "-c", "ps | grep -c ' sleep 1000$'"))
        self.exec(server, "sh", "-c", "echo shm > /dev/shm/f")
        self.assertEqual((0, "shm\n"), self.exec(client, "cat", "/dev/shm/f"))
        with open(self.engine.path("logs", "server.log")) as f:
            self.assertRegex(f.read(), r"stdout F ")
        if runtime == "runsc":
            self.assertEqual(["runsc-sentry", "runsc-gofer", "runsc-gofer"],
                             [self.comm(id) for id in (pod, server, client)])
        # One that ends leaves the others; its status is told.
        short = self.run_container(pod, "short", ["sh", "-c", "exit 7"])
        self.eventually(lambda: str(self.status(short)), rf"^\({EXITED}, 7\)$")
        self.engine.call("RemoveContainer", {1: short})
        self.engine.call("StopContainer", {1: server, 2: 0})
        self.eventually(lambda: str(self.status(server)), rf"^\({EXITED}, 137\)$")
        self.assertEqual(RUNNING, self.status(client)[0])
        self.assertEqual((0, "hello\n"), self.exec(client, "cat", "/v/f"))
        # One that shares another's PID namespace, as `kubectl debug --target` has it.
        debug = self.run_container(pod, "debug", ["sleep", "2000"], pid=TARGET, target=client)
        self.assertEqual((0, "1\n"), self.exec(debug, "sh", "-c", "ps | grep -c ' sleep 1000$'"))
        self.engine.call("StopPodSandbox", {1: pod})
        self.eventually(lambda: str(self.status(client)), rf"^\({EXITED}, 137\)$")
        for id in (server, client, debug):
            self.engine.call("RemoveContainer", {1: id})
        self.engine.call("RemovePodSandbox", {1: pod})
        self.assertEqual(1, len(self.ok("tasks", "ls").splitlines()))

    def test_pod(self):
        self.check_pod("runsc")

    def test_pod_of_runc(self):
        """The same is true of runc, so the test is."""
        self.check_pod("runc")

    def test_shared_processes(self):
        pod = self.run_pod("pod", pid=POD)
        one = self.run_container(pod, "one", ["sleep", "1000"], pid=POD)
        two = self.run_container(pod, "two", ["sleep", "2000"], pid=POD)
        self.assertEqual((0, "2\n"), self.exec(two, "sh", "-c", "ps | grep -c ' sleep [12]000$'"))
        self.engine.call("StopContainer", {1: two, 2: 0})
        self.eventually(lambda: str(self.status(two)), rf"^\({EXITED}, 137\)$")
        self.assertEqual((0, "1\n"), self.exec(one, "sh", "-c", "ps | grep -c ' sleep [12]000$'"))


if __name__ == "__main__":
    harness.main()
