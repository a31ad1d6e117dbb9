"""Programs whose output and exit status in the sandbox are compared with those in a chroot on the host.

Each program is a shell script NAME.sh, an expect script NAME.exp or a Python program NAME.py. It runs in a fresh writable
view of the same root, once by chroot on the host and once in the sandbox. Comment lines of a script:

    # normalise: SED   both outputs are passed through that sed -E program first, for what must differ (pids, times)
    # overlay          also run with --overlay
    # seconds: N       how long the sandbox may take (300)
    # serial           nothing else runs beside it
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import time
import unittest

import harness

INTERPRETERS = {".sh": "/bin/bash", ".py": "/usr/bin/python3", ".exp": "/usr/bin/expect"}


def comments(script, name):
    """The values of the script's comment lines `# name: value` or `# name`."""
    return [m.group(1) or "" for m in re.finditer(rf"(?m)^# {name}(?:: (.*))?$", script)]


def normalise(text, script):
    for program in comments(script, "normalise"):
        text = subprocess.run(["sed", "-E", program], input=text, text=True, capture_output=True, check=True).stdout
    return text


def run(path, mode, image, flags=()):
    """Runs the program at `path` as "host", "sandbox" or "overlay"; the CompletedProcess and the seconds it took."""
    with open(path) as f:
        script = f.read()
    timeout = int((comments(script, "seconds") or [300])[0])
    with harness.Sandbox(image) as sb:
        program = os.path.join(sb.rootfs, "program")
        shutil.copy(path, program)
        args = [INTERPRETERS[os.path.splitext(path)[1]], "/program"]
        begin = time.monotonic()
        if mode == "host":
            # The limit of harness.default_config().
            r = harness.chroot_run(sb.rootfs, args, timeout=timeout, own_network=image == "programs",
                                   before=["prlimit", "--nofile=1024:4096"])
        else:
            r = sb.run(args, caps=harness.ALL_CAPS, timeout=timeout,
                       flags=[*flags, *(["--overlay"] if mode == "overlay" else [])])
        return r, time.monotonic() - begin


class ComparedTest(unittest.TestCase):
    """The base of a test case whose tests are the programs of one or more folders; see add()."""
    maxDiff = 4000

    def check(self, path, image):
        if os.getuid() != 0:
            self.skipTest("needs root")
        with open(path) as f:
            script = f.read()
        host = None
        for mode in ["host", "sandbox"] + (["overlay"] if comments(script, "overlay") else []):
            r, seconds = run(path, mode, image)
            print(f"{os.path.basename(path)}: {mode} {seconds:.1f} s", file=sys.stderr)
            output = normalise(r.stdout, script)
            host = host or (output, r.returncode)
            self.assertEqual(host[0], output, f"output, {mode}; stderr: {r.stderr[-2000:]}")
            self.assertEqual(host[1], r.returncode, f"exit status, {mode}; stderr: {r.stderr[-2000:]}")

    @classmethod
    def add(cls, folder, image):
        """Makes each program of `folder` a test of this class, on `image` (a key of harness.IMAGES)."""
        for path in sorted(glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), folder, "*.*"))):
            name = os.path.splitext(os.path.basename(path))[0].replace("-", "_")

            def test(self, path=path):
                self.check(path, image)
            with open(path) as f:
                test.serial = bool(comments(f.read(), "serial"))
            setattr(cls, f"test_{name}", test)
