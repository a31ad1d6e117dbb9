#!/usr/bin/env python3
"""Isolation: what the processes of a sandbox may do, as the host's /proc shows it, and hostile guests."""

import os
import re
import shutil
import subprocess
import threading
import time
import unittest

import harness
from harness import default_config

GUEST = os.environ.get("RUNSC_GUEST", "")
# The gofer keeps the file capabilities of its own user namespace, without which it could not give
# new files the owners that the container asks for.
GOFER_CAPS = {0, 1, 2, 3, 4}  # chown, dac_override, dac_read_search, fowner, fsetid


def status_of(pid):
    fields = {}
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields


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

    def start(self, args, **kw):
        config = default_config(args)
        if kw.get("edit"):
            kw["edit"](config)
        id = self.sb.create(config)
        self.sb.runsc("start", id)
        self.sb.wait_status(id, "running")
        return id, self.sb.state(id)["pid"]

    def check_confined(self, pid, caps=frozenset()):
        s = status_of(pid)
        for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            have = {i for i in range(64) if int(s[kind], 16) >> i & 1}
            self.assertLessEqual(have, caps, f"{kind} of {pid} {s['Name']}")
        self.assertEqual("1", s["NoNewPrivs"], s["Name"])
        self.assertEqual("2", s["Seccomp"], s["Name"])
        for ns in ("user", "mnt", "pid", "ipc", "uts", "net"):
            self.assertNotEqual(os.readlink(f"/proc/self/ns/{ns}"), os.readlink(f"/proc/{pid}/ns/{ns}"),
                                (ns, s["Name"]))

    def test_processes_are_confined(self):
        id, pid = self.start(["sh", "-c", "sleep 100 & exec sleep 100"])
        time.sleep(0.3)
        family = descendants(pid)
        self.assertGreaterEqual(len(family), 3)
        for p in family:
            with self.subTest(pid=p, name=status_of(p)["Name"]):
                self.check_confined(p)
                self.assertEqual([], os.listdir(f"/proc/{p}/root/"))
                uids = set(status_of(p)["Uid"].split())
                self.assertNotIn("0", uids)
        for stub in family[1:]:
            links = [os.readlink(f"/proc/{stub}/fd/{f}") for f in os.listdir(f"/proc/{stub}/fd")]
            self.assertLessEqual(len(links), 1, links)
            self.assertTrue(all(l.startswith("socket:") for l in links), links)
        allowed = re.compile(r"^(socket:|pipe:|anon_inode:|/memfd:|/memory-[0-9a-f]+( \(deleted\))?$|/dev/null|/dev/pts/)")
        for f in os.listdir(f"/proc/{pid}/fd"):
            link = os.readlink(f"/proc/{pid}/fd/{f}")
            if allowed.match(link) or link == os.path.join(self.sb.root, id, "exit"):
                continue
            if link in [os.path.join(self.sb.dir, id + end) for end in (".out", ".err")]:
                continue  # what the container was given as its standard output
            if link == "/":  # the directory of memory files, a tmpfs that nobody else can name
                names = os.listdir(f"/proc/{pid}/fd/{f}")
                self.assertFalse(os.path.samefile("/", f"/proc/{pid}/fd/{f}"))
                self.assertTrue(all(n.startswith("memory-") for n in names), names)
                continue
            # What is left must be a file of the container's root.
            inside, outside = self.sb.rootfs + link, f"/proc/{pid}/fd/{f}"
            self.assertTrue(os.path.exists(inside) and os.path.samefile(inside, outside),
                            f"unexpected descriptor {f} of the sentry: {link}")

    def test_gofer_is_confined(self):
        id, pid = self.start(["sleep", "100"])
        gofer = gofer_of(id)
        self.assertIsNotNone(gofer)
        self.assertNotIn(gofer, descendants(pid))
        self.check_confined(gofer, caps=GOFER_CAPS)

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

    @unittest.skipUnless(os.environ.get("RUNSC_TEST_HOSTILE"),
                         "set RUNSC_TEST_HOSTILE=1: a guest that jumps into the stub's own futex wait "
                         "cannot be killed alone yet, and the program then does not end")
    def test_hostile_program(self):
        shutil.copy(os.path.join(GUEST, "guest_hostile"), os.path.join(self.sb.rootfs, "hostile"))
        id, pid = self.start(["sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i > /heartbeat; sleep 0.05; done"])
        other = harness.Sandbox("debian")
        self.addCleanup(other.close)
        # Into a file: a process that the attacks leave behind would hold a pipe open.
        path = os.path.join(self.sb.dir, "hostile.out")
        with open(path, "w") as out:
            r = subprocess.run(self.sb.command("exec", "-u", "1000:1000", id, "/hostile", "1",
                                               os.environ.get("RUNSC_TEST_HOSTILE_SITES", "6")),
                               stdout=out, stderr=subprocess.STDOUT, timeout=600, stdin=subprocess.DEVNULL)
        text = open(path).read()
        self.assertEqual(0, r.returncode, text[-2000:])
        self.assertRegex(text, r"sites [1-9]\d* hidden \d+ tried [1-9]")
        print(text.strip()[-200:])
        before = open(os.path.join(self.sb.rootfs, "heartbeat")).read()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if open(os.path.join(self.sb.rootfs, "heartbeat")).read() != before:
                break
            time.sleep(0.05)
        else:
            self.fail("the other process of the sandbox has stopped")
        self.assertEqual("running", self.sb.state(id)["status"])
        for p in descendants(pid)[1:]:
            try:
                links = [os.readlink(f"/proc/{p}/fd/{f}") for f in os.listdir(f"/proc/{p}/fd")]
            except (FileNotFoundError, ProcessLookupError):
                continue
            self.assertLessEqual(len(links), 1, links)


if __name__ == "__main__":
    harness.main()
