#!/usr/bin/env python3
"""--network=host: containers in a network namespace that is joined to another one by a bridge, as engines
lay it out, seen from both sides. The other side runs the same Python outside of any sandbox."""

import hashlib
import os
import re
import subprocess
import sys
import textwrap
import time

import harness
from harness import default_config, status_of

HOST, CONTAINER, SECOND = "10.77.0.1", "10.77.0.2", "10.77.0.3"
HOST6, CONTAINER6 = "fd77::1", "fd77::2"
FLAGS = ["--network=host"]

# Answers each TCP connection with what it sent, one thread for each, and each datagram.
ECHO = """
import socket, sys, threading
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((address, port)); s.listen(1024)
u = socket.socket(family, socket.SOCK_DGRAM)
u.bind((address, port))
def datagrams():
    while True:
        data, peer = u.recvfrom(70000)
        u.sendto(data[::-1], peer)
threading.Thread(target=datagrams, daemon=True).start()
def serve(c):
    while True:
        data = c.recv(65536)
        if not data: break
        c.sendall(data)
    c.close()
print("ready", flush=True)
threads = []
for i in range(count):
    c, _ = s.accept()
    t = threading.Thread(target=serve, args=(c,)); t.start(); threads.append(t)
for t in threads: t.join()
print("served", count, flush=True)
"""
# Uses it: many connections at once, a large transfer, datagrams.
CLIENT = """
import hashlib, random, select, socket, sys, threading
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
u = socket.socket(family, socket.SOCK_DGRAM)
u.settimeout(10)
u.connect((address, port))
for size in (0, 1, 1000, 8000):
    u.send(b"ab" * (size // 2)); assert u.recv(70000) == b"ba" * (size // 2), size
many = [socket.create_connection((address, port), timeout=30) for i in range(count - 1)]
for i, c in enumerate(many): c.sendall(b"connection %d" % i)
for i, c in enumerate(many): assert c.recv(100) == b"connection %d" % i, i
for c in many: c.close()
data = random.Random(1).randbytes(1 << 20) * 32
c = socket.create_connection((address, port), timeout=30)
t = threading.Thread(target=lambda: (c.sendall(data), c.shutdown(socket.SHUT_WR))); t.start()
got = hashlib.sha256()
total = 0
while True:
    part = c.recv(1 << 18)
    if not part: break
    got.update(part); total += len(part)
t.join()
assert total == len(data) and got.digest() == hashlib.sha256(data).digest(), total
print("all is well")
"""


class Network:
    """Two network namespaces, each held by a process: one with a bridge, and one for containers."""

    def __init__(self, test):
        self.test = test
        self.outer, self.inner = self.hold(), self.hold()
        try:
            self.ip(self.outer, "link add br0 type bridge")
        except subprocess.CalledProcessError:
            test.skipTest("this host has no bridges")
        for ns in (self.outer, self.inner):
            self.ip(ns, "link set lo up")
        self.ip(self.outer, f"addr add {HOST}/24 dev br0")
        self.ip(self.outer, f"addr add {HOST6}/64 dev br0 nodad")
        self.ip(self.outer, "link set br0 up")
        self.join(self.inner, "veth0", CONTAINER, CONTAINER6)

    def hold(self):
        child = subprocess.Popen(["unshare", "--net", "sleep", "1000"], stdin=subprocess.DEVNULL)
        self.test.addCleanup(child.wait)
        self.test.addCleanup(child.kill)
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{child.pid}/ns/net") == own:
            time.sleep(0.01)
        return child.pid

    def ip(self, ns, words):
        return subprocess.run(["nsenter", "-t", str(ns), "-n", "ip", *words.split()], check=True,
                              capture_output=True, text=True).stdout

    def join(self, ns, name, address, address6):
        self.ip(self.outer, f"link add {name} type veth peer name eth0 netns {ns}")
        self.ip(self.outer, f"link set {name} master br0 up")
        self.ip(ns, f"addr add {address}/24 dev eth0")
        self.ip(ns, f"addr add {address6}/64 dev eth0 nodad")
        self.ip(ns, "link set eth0 up")
        self.ip(ns, f"route add default via {HOST}")

    def outside(self, *args, **kw):
        """Starts a program beside the bridge."""
        child = subprocess.Popen(["nsenter", "-t", str(self.outer), "-n", *args], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
        self.test.addCleanup(child.stdout.close)
        self.test.addCleanup(child.wait)
        self.test.addCleanup(child.kill)
        return child


class NetworkTest(harness.ContainerTest):

    def setUp(self):
        super().setUp()
        self.net = Network(self)

    def config(self, args, ns=None, **kw):
        config = default_config(args, **kw)
        for n in config["linux"]["namespaces"]:
            if n["type"] == "network":
                n["path"] = f"/proc/{ns or self.net.inner}/ns/net"
        return config

    def start(self, args, **kw):
        id = self.sb.create(self.config(args, **kw), flags=FLAGS)
        self.assertEqual(0, self.sb.runsc("start", id).returncode)
        return id

    def await_output(self, id, text, timeout=20):
        deadline = time.monotonic() + timeout
        while text not in self.sb.output(id):
            self.assertLess(time.monotonic(), deadline, self.sb.output(id) + self.sb.output(id, "err"))
            time.sleep(0.05)

    def inside(self, args, timeout=120, **kw):
        r = self.sb.run(args, config=self.config(args, **kw), flags=FLAGS, timeout=timeout)
        self.assertEqual(0, r.returncode, r.stdout + r.stderr)
        return r.stdout

    def python_inside(self, text, **kw):
        return self.inside(["python3", "-c", textwrap.dedent(text)], **kw)

    def check_outside(self, child, want, timeout=60):
        out, _ = child.communicate(timeout=timeout)
        self.assertEqual((0, want), (child.returncode, out))

    def test_server_inside(self):
        for address, port, count in ((CONTAINER, 80, 300), (CONTAINER6, 81, 20)):
            id = self.start(["python3", "-c", ECHO, address, str(port), str(count)])
            self.await_output(id, "ready")
            client = self.net.outside(sys.executable, "-c", CLIENT, address, str(port), str(count))
            self.check_outside(client, "all is well\n")
            self.await_output(id, f"served {count}")

    def test_client_inside(self):
        for address, count in ((HOST, 300), (HOST6, 20)):
            server = self.net.outside(sys.executable, "-c", ECHO, address, "7000", str(count))
            self.assertEqual("ready\n", server.stdout.readline())
            self.assertEqual("all is well\n", self.inside(["python3", "-c", CLIENT, address, "7000", str(count)]))
            self.check_outside(server, f"served {count}\n")

    def test_two_containers(self):
        """They talk over the bridge, each in a namespace of its own, and do not see each other's sockets."""
        other = self.net.hold()
        self.net.ip(other, "link set lo up")
        self.net.join(other, "veth1", SECOND, "fd77::3")
        id = self.start(["python3", "-c", ECHO, "0.0.0.0", "7", "5"])
        self.await_output(id, "ready")
        self.assertEqual("all is well\n", self.inside(["python3", "-c", CLIENT, CONTAINER, "7", "5"], ns=other))
        # In one namespace too.
        id = self.start(["python3", "-c", ECHO, "127.0.0.1", "7", "5"])
        self.await_output(id, "ready")
        self.assertIn("7F:0007 ", self.sb.runsc("exec", id, "cat", "/proc/net/tcp").stdout.replace("0100007F", "7F"))
        self.assertNotIn(":0007 ", self.inside(["cat", "/proc/net/tcp"]))
        self.assertEqual("all is well\n", self.inside(["python3", "-c", CLIENT, "127.0.0.1", "7", "5"]))

    def test_http(self):
        id = self.start(["python3", "-m", "http.server", "80", "--directory", "/usr/bin"])
        with open(os.path.join(self.sb.rootfs, "usr/bin/perl"), "rb") as f:
            want = hashlib.sha256(f.read()).hexdigest()
        fetch = "import hashlib, urllib.request as u; print(hashlib.sha256(u.urlopen(%r).read()).hexdigest())"
        deadline = time.monotonic() + 20
        while True:
            client = self.net.outside(sys.executable, "-c", fetch % f"http://{CONTAINER}/perl")
            out, _ = client.communicate(timeout=30)
            if client.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.assertEqual(want + "\n", out)
        # busybox's client inside, of a server outside.
        server = self.net.outside(sys.executable, "-u", "-m", "http.server", "8000", "--directory",
                                  os.path.join(self.sb.rootfs, "usr/bin"))
        self.assertIn("Serving", server.stdout.readline())
        out = self.inside(["sh", "-c", f"busybox wget -q -O - http://{HOST}:8000/perl | sha256sum"])
        self.assertEqual(want, out.split()[0])

    def test_interfaces(self):
        """What programs learn of the network is what is there."""
        want = self.net.ip(self.net.inner, "addr")
        got = self.inside(["busybox", "ip", "addr"])
        for word in re.findall(r"inet6? \S+|link/\S+ \S+", want):
            self.assertIn(word, got)
        self.assertEqual(sorted(self.net.ip(self.net.inner, "route").split()),
                         sorted(self.inside(["busybox", "ip", "route"]).split()
                                + ["proto", "kernel"]))
        mac = re.search(r"eth0.*\n\s+link/ether (\S+)", want).group(1)
        self.assertEqual(f"{mac}\n1500\neth0\nlo\n", self.inside(
            ["sh", "-c", "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net"]))
        self.assertRegex(self.inside(["cat", "/proc/net/dev", "/proc/net/if_inet6", "/proc/net/route"]),
                         r"(?s)eth0:.*fd770000000000000000000000000002.*eth0\t00000000\t01004D0A")
        self.assertEqual(f"{CONTAINER}\n[(1, 'lo'), (2, 'eth0')]\n", re.sub(r"\(\d+, 'eth0'\)", "(2, 'eth0')", self.python_inside(f"""
            import socket
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.connect(("{HOST}", 9))
            print(s.getsockname()[0])
            print(socket.if_nameindex())
            """)))

    def test_low_ports_and_ping(self):
        """The container's capability decides, though nobody needs one in the namespace."""
        bind = "import socket; s = socket.socket(); s.bind(('', 80)); print('bound')"
        self.assertEqual("bound\n", self.inside(["python3", "-c", bind]))
        r = self.sb.run([], config=self.config(["python3", "-c", bind], caps=["CAP_SETUID"]), flags=FLAGS)
        self.assertIn("PermissionError: [Errno 13]", r.stderr)
        config = self.config(["python3", "-c", bind], caps=["CAP_SETUID"])
        config["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "80"}
        self.assertEqual("bound\n", self.sb.run([], config=config, flags=FLAGS).stdout)
        echo = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); print('made')"
        r = self.sb.run([], config=self.config(["python3", "-c", echo]), flags=FLAGS)
        self.assertIn("PermissionError: [Errno 13]", r.stderr)
        echo = ("import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); "
                f"s.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]) + b'data', ('{HOST}', 0)); r = s.recv(100); "
                "print(r[0], r[8:])")
        config = self.config(["python3", "-c", echo])
        config["linux"]["sysctl"] = {"net.ipv4.ping_group_range": "0 0"}
        self.assertEqual("0 b'data'\n", self.sb.run([], config=config, flags=FLAGS).stdout)

    def test_confinement(self):
        """The sentry lives in the namespace without rights over it; what could change it or look at others
        is refused."""
        id = self.start(["sleep", "1000"])
        pid = self.sb.state(id)["pid"]
        self.assertEqual(os.readlink(f"/proc/{self.net.inner}/ns/net"), os.readlink(f"/proc/{pid}/ns/net"))
        for task in os.listdir(f"/proc/{pid}/task"):
            fields = status_of(f"{pid}/task/{task}")
            self.assertEqual({"0000000000000000"}, {fields[c] for c in ("CapEff", "CapPrm", "CapInh", "CapAmb")})
            self.assertEqual("2", fields["Seccomp"])
        # An abstract name of the namespace is not one of the container's.
        abstract = subprocess.Popen(
            ["nsenter", "-t", str(self.net.inner), "-n", sys.executable, "-uc",
             "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0secret'); s.listen(); print('up'); s.accept()"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.addCleanup(abstract.stdout.close)
        self.addCleanup(abstract.wait)
        self.addCleanup(abstract.kill)
        self.assertEqual("up\n", abstract.stdout.readline())
        self.assertEqual("ok\n", self.python_inside("""
            import errno, fcntl, socket, struct
            def fails(code, f, *args):
                try: f(*args)
                except OSError as e: assert e.errno == code, (e, f, args)
                else: raise AssertionError((f, args))
            fails(errno.ECONNREFUSED, socket.socket(socket.AF_UNIX).connect, '\\0secret')
            fails(errno.EPERM, socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            fails(errno.EPERM, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
            fails(errno.EPROTONOSUPPORT, socket.socket, socket.AF_INET, socket.SOCK_STREAM, 132)
            s = socket.socket()
            fails(errno.EPERM, fcntl.ioctl, s, 0x8914, struct.pack('16sH22x', b'eth0', 0))  # SIOCSIFFLAGS
            fails(errno.ENOPROTOOPT, s.setsockopt, socket.SOL_SOCKET, 26, b'x' * 16)  # SO_ATTACH_FILTER
            fails(errno.ENOPROTOOPT, s.setsockopt, socket.IPPROTO_TCP, 31, b'tls')  # TCP_ULP
            fails(errno.EPERM, s.setsockopt, socket.SOL_SOCKET, 36, 1)  # SO_MARK
            n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            n.send(struct.pack('IHHII', 32, 17, 5, 1, 0) + struct.pack('BBHiII', 0, 0, 0, 2, 0, 0))  # RTM_DELLINK
            assert struct.unpack_from('i', n.recv(4096), 16)[0] == -errno.EPERM
            print('ok')
            """, caps=harness.ALL_CAPS))

    def test_new_and_shared_namespaces(self):
        """Without a path there is a new one, with its loopback device up; without any entry, the caller's."""
        args = ["sh", "-c", "ls /sys/class/net; busybox ip addr show dev lo | grep -c 127.0.0.1"]
        self.assertEqual("lo\n1\n", self.sb.run(args, flags=FLAGS).stdout)
        config = default_config(["sleep", "1000"])
        config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "network"]
        id = self.sb.create(config, flags=FLAGS)
        own = os.readlink("/proc/self/ns/net")
        self.assertEqual(own, os.readlink(f"/proc/{self.sb.state(id)['pid']}/ns/net"))
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
        self.assertIn("is not allowed in the host's network namespace",
                      self.sb.run([], config=config, flags=FLAGS).stderr)

    def test_flags(self):
        """Other networks: the sandbox's own loopback device, and one that is not there yet."""
        r = self.sb.run([], config=self.config(["ls", "/sys/class/net"]), flags=["--network=none"])
        self.assertEqual("lo\n", r.stdout, r.stderr)
        self.assertIn("network sandbox is not implemented yet",
                      self.sb.run(["true"], flags=["--network=sandbox"]).stderr)


if __name__ == "__main__":
    harness.main()
