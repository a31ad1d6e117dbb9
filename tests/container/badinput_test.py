#!/usr/bin/env python3
"""Programs and bundles that cannot be run: each is one line on stderr and in the JSON log that names
the thing, with runc's exit code, and nothing is left: no state, process, mount or cgroup.

What execve(2) says to damaged programs is compared with the host in programs/elf_variants.py."""

import json
import os
import random
import struct

import harness
import leftovers
from harness import default_config


class BadInputTest(harness.ContainerTest):

    def setUp(self):
        super().setUp()
        self.mounts = leftovers.mounts(self.sb.dir)
        self.log = os.path.join(self.sb.dir, "log.json")
        self.cgroup = f"runsc-bad-{os.getpid()}"
        self.addCleanup(self.check_nothing_left)

    def check_nothing_left(self):
        self.assertEqual({}, leftovers.wait_no_processes(self.sb.children))
        self.assertEqual(self.mounts, leftovers.mounts(self.sb.dir))
        self.assertEqual([], leftovers.cgroups(self.cgroup))
        if os.path.isdir(self.sb.root):
            self.assertEqual([], os.listdir(self.sb.root))

    def write(self, name, data, mode=0o755):
        path = os.path.join(self.sb.rootfs, name)
        with open(path, "wb") as f:
            f.write(data)
        os.chmod(path, mode)

    def run_bad(self, args, bundle=None, env=()):
        config = default_config(args)
        config["process"]["env"] += list(env)
        config["linux"]["cgroupsPath"] = f"/{self.cgroup}"
        bundle = self.sb.bundle(config, name=bundle)
        if os.path.exists(self.log):
            os.unlink(self.log)
        return self.sb.runsc("run", "--bundle", bundle, "bad", flags=["--log", self.log, "--log-format", "json"])

    def check_refused(self, r, word, what):
        self.assertEqual(1, r.returncode, (what, r.stdout, r.stderr))
        lines = r.stderr.strip().splitlines()
        self.assertEqual(1, len(lines), (what, r.stderr))
        self.assertIn(word, lines[0], what)
        with open(self.log) as f:
            errors = [e["msg"] for e in map(json.loads, f) if e["level"] == "error"]
        self.assertEqual(1, len(errors), (what, errors))
        self.assertIn(word, errors[0], what)

    def test_programs_that_cannot_be_executed(self):
        self.write("plain", b"text\n", 0o644)
        self.write("text", b"text\n")
        self.write("empty", b"")
        self.write("short", b"\x7fELF")
        self.write("noint", b"#!/no/such/interpreter\n")
        self.write("loop", b"#!/loop\n")
        self.write("dirint", b"#!/etc\n")
        with open(os.path.join(harness.ROOTFS, "bin/true"), "rb") as f:
            image = f.read()
        name = b"/lib64/ld-linux-x86-64.so.2"
        self.assertIn(name, image)
        self.write("elfnoint", image.replace(name, b"/lib64/ld-missing-x8664.so\0"))
        self.write("elfdirint", image.replace(name, b"/usr" + b"\0" * (len(name) - 4)))
        os.mkfifo(os.path.join(self.sb.rootfs, "fifo"), 0o755)
        os.symlink("link", os.path.join(self.sb.rootfs, "link"))
        for args in (["/no/such/program"], ["missing-program"], ["/etc"], ["/plain"], ["/text"], ["/empty"], ["/short"],
                     ["/noint"], ["/loop"], ["/dirint"], ["/elfnoint"], ["/elfdirint"], ["/fifo"], ["/link"],
                     ["/etc/passwd/x"], ["/" + "n" * 300]):
            with self.subTest(args=args):
                self.check_refused(self.run_bad(args), args[0].strip("/")[:200], args)

    def test_more_than_arg_max(self):
        self.check_refused(self.run_bad(["/bin/true", "x" * 131072]), "/bin/true", "one string")
        self.check_refused(self.run_bad(["/bin/true"] + ["x" * 100000] * 25), "/bin/true", "all strings")
        self.check_refused(self.run_bad(["/bin/true"], env=["X=" + "x" * 131072]), "/bin/true", "environment")
        r = self.run_bad(["/bin/sh", "-c", "echo ${#1}", "sh", "x" * 131071])
        self.assertEqual((0, "131071\n"), (r.returncode, r.stdout), r.stderr)

    def test_bundles_of_any_name(self):
        for name in ("a b", "é ü 漢字", "quote'\"s", "%s%n", "-dash", "new\nline"):
            with self.subTest(name=name):
                r = self.run_bad(["echo", "fine"], bundle=name)
                self.assertEqual((0, "fine\n"), (r.returncode, r.stdout), r.stderr)
                os.rename(os.path.join(self.sb.dir, name), os.path.join(self.sb.dir, name + "-"))
                # An error that names it is one line all the same.
                r = self.sb.runsc("run", "--bundle", os.path.join(self.sb.dir, name), "bad",
                                  flags=["--log", self.log, "--log-format", "json"])
                self.assertEqual((1, 1), (r.returncode, len(r.stderr.strip().splitlines())), r.stderr)
                with open(self.log) as f:
                    self.assertIn(name, json.loads(f.read().splitlines()[-1])["msg"])

    def damaged(self, count_of_cuts, count_of_bytes):
        """A dynamic program cut short, and with changed bytes where the kernel reads."""
        rng = random.Random(19700101)
        with open(os.path.join(harness.ROOTFS, "bin/true"), "rb") as f:
            image = f.read()
        phoff, = struct.unpack_from("<Q", image, 32)
        phentsize, phnum = struct.unpack_from("<HH", image, 54)
        for cut in sorted(rng.sample(range(len(image)), count_of_cuts)):
            yield f"cut {cut}", image[:cut]
        spots = list(range(64)) + list(range(phoff, phoff + phentsize * phnum))
        for _ in range(count_of_bytes):
            damaged = bytearray(image)
            changed = sorted(rng.sample(spots, rng.choice([1, 2, 5])))
            for at in changed:
                damaged[at] = rng.randrange(256)
            yield f"bytes {changed}", bytes(damaged)

    def test_damaged_programs(self):
        """As the container's program: refused in one line, or it ran and ended by itself. Most
        variants are tried by execve inside one container (programs/elf_variants.py)."""
        refused = 0
        for what, image in self.damaged(40, 60):
            self.write("damaged", image)
            r = self.run_bad(["/damaged"])
            if "runsc run failed" in r.stderr:
                self.check_refused(r, "damaged", what)
                refused += 1
            else:
                self.assertIn(r.returncode, (0, 1, 127, 128 + 4, 128 + 5, 128 + 7, 128 + 8, 128 + 11), (what, r.stderr))
        self.assertGreater(refused, 20)


if __name__ == "__main__":
    harness.main()
