#!/usr/bin/env python3
"""Isolation: what the processes of a sandbox may do, as the host's /proc shows it, and hostile guests."""

import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
import time
import unittest

import harness
from harness import default_config, status_of

GUEST = os.environ.get("RUNSC_GUEST", "")
# The gofer keeps the file capabilities of its own user namespace, without which it could not give
# new files the owners that the container asks for.
GOFER_CAPS = {0, 1, 2, 3, 4}  # chown, dac_override, dac_read_search, fowner, fsetid


def descendants(pid):
    found, todo = [], [pid]
    children = {}
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            children.setdefault(int(status_of(p)["PPid"]), []).append(int(p))
        except (FileNotFoundError, ProcessLookupError):
            pass
    while todo:
        p = todo.pop()
        found.append(p)
        todo += children.get(p, [])
    return found


def links_of(pid):
    """What the descriptors of a process are."""
    links = []
    try:
        for f in os.listdir(f"/proc/{pid}/fd"):
            links.append(os.readlink(f"/proc/{pid}/fd/{f}"))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return links


def gofer_of(id):
    """The gofer's pid of a container: its command line ends with the container's id."""
    for p in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{p}/cmdline") as f:
                words = f.read().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].startswith("runsc-gofer") and id in words:
            return int(p)
    return None


class IsolationTest(harness.ContainerTest):

    given = ()  # further files of the host that a test has passed as descriptors

    def start(self, args, **kw):
        config = default_config(args)
        if kw.get("edit"):
            kw["edit"](config)
        id = self.sb.create(config)
        self.sb.runsc("start", id)
        self.sb.wait_status(id, "running")
        return id, self.sb.state(id)["pid"]

    def check_confined(self, pid, caps=frozenset()):
        # Rights and filters are each thread's own.
        for tid in os.listdir(f"/proc/{pid}/task"):
            try:
                s = status_of(f"{pid}/task/{tid}")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                have = {i for i in range(64) if int(s[kind], 16) >> i & 1}
                self.assertLessEqual(have, caps, f"{kind} of thread {tid} of {pid}, {s['Name']}")
            self.assertEqual("1", s["NoNewPrivs"], s["Name"])
            self.assertEqual("2", s["Seccomp"], s["Name"])
        for ns in ("user", "mnt", "pid", "ipc", "uts", "net"):
            self.assertNotEqual(os.readlink(f"/proc/self/ns/{ns}"), os.readlink(f"/proc/{pid}/ns/{ns}"),
                                (ns, pid))

    def check_family(self, id, pid):
        """The sentry and its stubs: rights, root and descriptors."""
        for p in descendants(pid):
            try:
                # By one descriptor: its number may be another process's at any time.
                process = os.open(f"/proc/{p}", os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, ProcessLookupError):
                continue
            try:
                with self.subTest(pid=p, name=status_of(p)["Name"]):
                    root = os.open("root", os.O_RDONLY | os.O_DIRECTORY, dir_fd=process)
                    try:
                        names = os.listdir(root)
                    finally:
                        os.close(root)
                    self.check_confined(p)
                    self.assertNotIn("0", status_of(p)["Uid"].split())
                    os.stat("status", dir_fd=process)  # it is still the one
                    self.assertEqual([], names)
            except (FileNotFoundError, ProcessLookupError):
                self.assertNotEqual(pid, p)  # a stub may end meanwhile
            finally:
                os.close(process)
        for stub in descendants(pid)[1:]:
            links = links_of(stub)
            self.assertLessEqual(len(links), 1, links)
            self.assertTrue(all(l.startswith("socket:") for l in links), links)
        self.check_sentry_descriptors(id, pid)
        self.check_gofer_descriptors(gofer_of(id))

    def check_sentry_descriptors(self, id, pid):
        allowed = re.compile(r"^(socket:|pipe:|anon_inode:|/memfd:|/memory-[0-9a-f]+( \(deleted\))?$|/dev/null|/dev/pts/"
                             r"|(/proc)?/pressure/(cpu|io|memory)$)")
        given = [os.path.join(self.sb.root, id, "exit")]
        # What the container was given as its standard output.
        given += [os.path.join(self.sb.dir, id + end) for end in (".out", ".err")]
        for f in os.listdir(f"/proc/{pid}/fd"):
            outside = f"/proc/{pid}/fd/{f}"
            try:
                link = os.readlink(outside)
            except FileNotFoundError:
                continue  # closed meanwhile
            if allowed.match(link) or link in given or link in self.given:
                continue
            if link == "/":  # the directory of memory files, a tmpfs that nobody else can name
                names = os.listdir(outside)
                self.assertFalse(os.path.samefile("/", outside))
                self.assertTrue(all(n.startswith("memory-") for n in names), names)
                continue
            # What is left must be a file of the container's root.
            if not os.path.exists(outside):
                continue
            inside = self.sb.rootfs + link
            self.assertTrue(link.endswith(" (deleted)") or
                            os.path.exists(inside) and os.path.samefile(inside, outside),
                            f"unexpected descriptor {f} of the sentry: {link}")

    def check_gofer_descriptors(self, gofer):
        """Sockets, and places below the container's mounts."""
        self.assertEqual([], os.listdir(f"/proc/{gofer}/root/"))
        for f in os.listdir(f"/proc/{gofer}/fd"):
            outside = f"/proc/{gofer}/fd/{f}"
            try:
                link, st = os.readlink(outside), os.stat(outside)
            except FileNotFoundError:
                continue
            if re.match(r"^(socket|pipe|anon_inode):", link) or st.st_rdev == os.makedev(1, 3):
                continue
            if link == "/" and stat.S_IMODE(st.st_mode) == 0o500:  # its own /proc/self/fd alone
                self.assertTrue(all(n.isdigit() for n in os.listdir(outside)))
                continue
            inside = self.sb.rootfs + link
            self.assertTrue(link.endswith(" (deleted)") or
                            os.path.lexists(inside) and os.path.samestat(os.lstat(inside), st),
                            f"unexpected descriptor {f} of the gofer: {link}")

    def test_processes_are_confined(self):
        id, pid = self.start(["sh", "-c", "sleep 100 & exec sleep 100"])
        time.sleep(0.3)
        self.assertGreaterEqual(len(descendants(pid)), 3)
        self.check_family(id, pid)

    def test_gofer_is_confined(self):
        id, pid = self.start(["sleep", "100"])
        gofer = gofer_of(id)
        self.assertIsNotNone(gofer)
        self.assertNotIn(gofer, descendants(pid))
        self.check_confined(gofer, caps=GOFER_CAPS)
        self.check_gofer_descriptors(gofer)

    def test_guest_sees_nothing_of_the_host(self):
        r = self.sb.run(["sh", "-c", "ls /proc | grep -E '^[0-9]+$' | wc -l; uname -n; ls /sys/class/net 2>/dev/null; "
                         "cat /proc/mounts | wc -l; ls /dev | sort | tr '\\n' ' '"])
        lines = r.stdout.splitlines()
        self.assertLessEqual(int(lines[0]), 6)
        self.assertEqual("sandbox", lines[1])
        self.assertNotIn("vda", r.stdout)

    def test_paths_do_not_lead_out(self):
        secret = os.path.join(self.sb.dir, "secret")
        with open(secret, "w") as f:
            f.write("SECRET\n")
        root = self.sb.rootfs
        os.symlink(secret, os.path.join(root, "abs"))
        os.symlink("../" * 30 + secret.lstrip("/"), os.path.join(root, "rel"))
        os.symlink("/proc/1/root" + secret, os.path.join(root, "magic"))
        os.mknod(os.path.join(root, "disk"), 0o600 | 0o060000, os.makedev(254, 0))
        os.mknod(os.path.join(root, "mem"), 0o600 | 0o020000, os.makedev(1, 1))
        r = self.sb.run(["sh", "-c", f"cat /abs /rel /magic /disk /mem {secret} ../../../..{secret} "
                         f"/proc/self/root{secret} /proc/1/cwd{secret}; cd /tmp; cat ../../../../..{secret}; "
                         f"echo overwritten > /abs; echo overwritten > /rel; ls -d /proc/self/root/work 2>/dev/null"],
                        timeout=60)
        self.assertNotIn("SECRET", r.stdout)
        self.assertEqual("SECRET\n", open(secret).read())

    def test_directory_moved_out_of_its_mount(self):
        """The host moves a directory of a bind mount elsewhere while a process stands in it: neither
        `..` nor what lies below the new place is there for the process."""
        outside, shared = (os.path.join(self.sb.dir, n) for n in ("outside", "shared"))
        os.makedirs(outside)
        os.makedirs(os.path.join(shared, "a", "b"))
        with open(os.path.join(outside, "secret"), "w") as f:
            f.write("SECRET\n")
        mount = {"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "rw"]}
        id, pid = self.start(
            ["sh", "-c", "cd /shared/a/b; exec 5< /shared/a; echo ready; while [ ! -e /shared/go ]; do sleep 0.02; done; "
             "cat ../secret ../../secret ../../../secret /proc/self/cwd/../../secret /proc/self/fd/5/../secret; "
             "echo x > ../../new; ls ../..; echo done"], edit=lambda c: c["mounts"].append(mount))
        self.wait_output(id, "ready")
        os.rename(os.path.join(shared, "a"), os.path.join(outside, "a"))
        with open(os.path.join(shared, "go"), "w"):
            pass
        self.wait_output(id, "done")
        self.assertNotIn("SECRET", self.sb.output(id))
        self.assertNotIn("secret", self.sb.output(id))
        self.assertEqual(["a", "secret"], sorted(os.listdir(outside)))

    def wait_output(self, id, text):
        deadline = time.monotonic() + 10
        while text not in self.sb.output(id):
            self.assertLess(time.monotonic(), deadline, self.sb.output(id) + self.sb.output(id, "err"))
            time.sleep(0.02)

    def test_sockets_of_the_host_are_not_reached(self):
        """A socket in the root on which a process of the host listens."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(self.sb.rootfs, "s"))
            os.chmod(os.path.join(self.sb.rootfs, "s"), 0o777)
            listener.listen()
            listener.settimeout(0.2)
            r = self.sb.run(["python3", "-c", "import socket\ns = socket.socket(socket.AF_UNIX)\n"
                             "try: s.connect('/s')\nexcept OSError as e: print(e.errno)"])
            self.assertEqual(f"{errno.ECONNREFUSED}\n", r.stdout, r.stderr)
            with self.assertRaises(TimeoutError):
                listener.accept()

    def test_hard_links_do_not_lead_out(self):
        secret = os.path.join(self.sb.dir, "secret")
        with open(secret, "w") as f:
            f.write("SECRET\n")
        os.symlink(secret, os.path.join(self.sb.rootfs, "abs"))
        os.symlink("../" * 30 + secret.lstrip("/"), os.path.join(self.sb.rootfs, "rel"))
        r = self.sb.run(["sh", "-c", f"for s in /abs /rel {secret} ../../..{secret} /proc/1/root{secret}; do "
                         "ln -L $s /hard && cat /hard; ln -P $s /soft && cat /soft; rm -f /hard /soft; done; "
                         "exec 5< /etc/passwd; ln -L /proc/self/fd/5 /byfd; cat /byfd | head -c 4"])
        self.assertNotIn("SECRET", r.stdout)
        self.assertEqual(1, os.stat(secret).st_nlink)

    def test_rename_races_do_not_lead_out(self):
        outside = os.path.join(self.sb.dir, "outside")
        os.makedirs(os.path.join(outside, "d"))
        with open(os.path.join(outside, "d", "f"), "w") as f:
            f.write("SECRET\n")
        shared = os.path.join(self.sb.dir, "shared")
        os.makedirs(os.path.join(shared, "d"))
        with open(os.path.join(shared, "d", "f"), "w") as f:
            f.write("inside\n")
        stop = threading.Event()
        def swap():
            while not stop.is_set():
                try:
                    os.rename(os.path.join(shared, "d"), os.path.join(shared, "e"))
                    os.symlink(os.path.join(outside, "d"), os.path.join(shared, "d"))
                    os.unlink(os.path.join(shared, "d"))
                    os.rename(os.path.join(shared, "e"), os.path.join(shared, "d"))
                    time.sleep(0.001)  # so that the right state is met too
                except OSError:
                    pass
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            r = self.sb.run(["sh", "-c", "i=0; while [ $i -lt 1500 ]; do read x < /shared/d/f && echo $x; "
                             "echo changed > /shared/d/g; i=$((i + 1)); done 2>/dev/null | sort | uniq -c"],
                            mounts=[{"destination": "/shared", "type": "bind", "source": shared,
                                     "options": ["rbind", "rw"]}])
        finally:
            stop.set()
            thread.join()
        self.assertNotIn("SECRET", r.stdout)
        self.assertIn("inside", r.stdout, r.stderr)
        self.assertEqual(["f"], os.listdir(os.path.join(outside, "d")))

    def answers(self, id, timeout=20):
        """Seconds until a new process of the sandbox has answered."""
        start = time.monotonic()
        r = self.sb.runsc("exec", id, "sh", "-c", "echo $((6 * 7)); cat /proc/self/comm", timeout=timeout)
        self.assertEqual((0, "42\ncat\n"), (r.returncode, r.stdout), r.stderr)
        return time.monotonic() - start

    def check_quiet(self, id, pid):
        """Nothing is left of an attack: no process of the host, no descriptor but the expected, and
        each process as confined as before."""
        deadline = time.monotonic() + 20
        while len(descendants(pid)) > 8 and time.monotonic() < deadline:
            time.sleep(0.2)
        # Among them what a stub has forked and not reported.
        self.assertLessEqual(len(descendants(pid)), 8, "stubs without a process of the sandbox")
        self.assertEqual("running", self.sb.state(id)["status"])
        self.check_family(id, pid)

    @harness.serial
    def test_hostile_program(self):
        shutil.copy(os.path.join(GUEST, "guest_hostile"), os.path.join(self.sb.rootfs, "hostile"))
        secret = os.path.join(self.sb.dir, "secret")
        with open(secret, "w") as f:
            f.write("SECRET\n")
        os.chmod(secret, 0o666)
        id, pid = self.start(["sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i > /heartbeat; sleep 0.05; done"])
        self.answers(id)
        beside = sorted(os.listdir(self.sb.dir))
        # Into a file: a process that the attacks leave behind would hold a pipe open.
        path = self.sb.dir + ".hostile"
        self.given = [path]
        self.addCleanup(os.remove, path)
        everything = ["all"] if os.environ.get("RUNSC_TEST_HOSTILE") == "all" else []
        slowest = 0
        with open(path, "w") as out:
            hostile = subprocess.Popen(self.sb.command("exec", "-u", "1000:1000", id, "/hostile", *everything),
                                       stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            self.sb.children.append(hostile)
            deadline = time.monotonic() + (20000 if everything else 900)
            while hostile.poll() is None:
                self.assertLess(time.monotonic(), deadline, "the hostile program does not end")
                time.sleep(2)
                beat = self.read_beat()
                slowest = max(slowest, self.answers(id))
                self.wait_beat(beat)
        with open(path) as f:
            text = f.read()
        self.assertEqual(0, hostile.returncode, text[-2000:])
        found = re.search(r"sites (\d+) hidden (\d+) tried (\d+)", text)
        self.assertTrue(found, text[-2000:])
        self.assertGreater(int(found[2]), 20)
        self.assertGreater(int(found[3]), 900 * int(found[2]) // 2)
        print(f"{text.strip()}; slowest answer beside it {slowest:.2f} s")
        self.check_quiet(id, pid)
        self.assertEqual(beside, sorted(os.listdir(self.sb.dir)))
        with open(secret) as f:
            self.assertEqual("SECRET\n", f.read())

    @harness.serial
    def test_root_of_every_stub(self):
        """Also of those that are made while the sentry confines itself."""
        for _ in range(30):
            id = self.sb.create(default_config(["sleep", "1000"]))
            pid = self.sb.state(id)["pid"]
            for p in descendants(pid):
                try:
                    self.assertEqual([], os.listdir(f"/proc/{p}/root/"), status_of(p)["Name"])
                except (FileNotFoundError, ProcessLookupError):
                    self.assertNotEqual(pid, p)
            self.sb.runsc("delete", "-f", id)

    def test_neighbours_of_a_hostile_process(self):
        """A process that attacks through mailbox, doorbell and descriptors: its neighbours are
        answered rightly and within the same order of magnitude, and nothing of theirs is seen or
        changed."""
        for name in ("hostile_mailbox", "hostile_victim"):
            shutil.copy(os.path.join(GUEST, "guest_" + name), os.path.join(self.sb.rootfs, name))
        id, pid = self.start(["sh", "-c", "echo untouched > /dev/shm/file; chmod 644 /dev/shm/file; "
                              "echo untouched > /file; chmod 644 /file; "
                              # One who may write has them open, so that descriptors that write are at hand.
                              "exec sleep 1000 3<> /dev/shm/file 4<> /file"])
        secret = os.urandom(16).hex()
        inverted = "".join(f"{ord(c) ^ 0xff:02x}" for c in secret)
        victim = self.sb.command("exec", "-u", "1001:1001", id, "/hostile_victim", "4", secret)

        def measure():
            r = subprocess.run(victim, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
            found = re.search(r"rounds (\d+) median_us (\d+) worst_us (\d+) wrong (\d+)", r.stdout)
            self.assertTrue(found, r.stdout + r.stderr)
            return [int(n) for n in found.groups()]

        alone = measure()
        path = self.sb.dir + ".hostile"
        self.given = [path]
        self.addCleanup(os.remove, path)
        seconds = os.environ.get("RUNSC_TEST_HOSTILE_SECONDS", "12")
        with open(path, "w") as out:
            hostile = subprocess.Popen(
                self.sb.command("exec", "-u", "1000:1000", "-e", "HOSTILE_SECRET=" + inverted, id,
                                "/hostile_mailbox", seconds, "/dev/shm/file", "/file", "/etc/passwd"),
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.sb.children.append(hostile)
        time.sleep(0.5)
        beside = []
        while hostile.poll() is None or not beside:
            beside.append(measure())
        with open(path) as f:
            text = f.read()
        print(f"{text.strip()}; alone {alone}, beside it {beside}")
        self.assertEqual(0, hostile.returncode, text)
        self.assertRegex(text, r"rounds [1-9]\d+ .* written 0 seen 0 stuck 0")
        self.assertEqual(0, alone[3])
        for rounds, median, worst, wrong in beside:
            self.assertEqual(0, wrong)
            self.assertLess(median, 10 * alone[1] + 2000)
            self.assertLess(worst, 30_000_000)  # not stalled; how busy the machine is counts too
        r = self.sb.runsc("exec", id, "cat", "/dev/shm/file", "/file")
        self.assertEqual("untouched\nuntouched\n", r.stdout)
        self.check_quiet(id, pid)

    def wait_beat(self, last):
        deadline = time.monotonic() + 10
        while self.read_beat() <= last:
            self.assertLess(time.monotonic(), deadline, "the other process of the sandbox stands still")
            time.sleep(0.05)

    def read_beat(self):
        for _ in range(100):
            with open(os.path.join(self.sb.rootfs, "heartbeat")) as f:
                if text := f.read().strip():  # not between truncation and write
                    return int(text)
            time.sleep(0.01)
        self.fail("no heartbeat")


if __name__ == "__main__":
    harness.main()
