#!/usr/bin/env python3
"""Programs of a Debian root file system: output and exit status as in a chroot on the host.

Each program is a shell script in programs/NAME.sh (or a .py file run by python3). It runs in a fresh
writable view of the same root, once by chroot on the host and once in the sandbox. A script that
starts with "# normalise: SED" has both outputs passed through that sed program first, for what must
differ (pids, times); one with "# overlay" is also run with --overlay."""

import glob
import os
import re
import shutil
import subprocess
import unittest

import harness

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


def normalise(text, script):
    for line in script.splitlines():
        m = re.match(r"# normalise: (.*)", line)
        if m:
            text = subprocess.run(["sed", "-E", m.group(1)], input=text, text=True,
                                  capture_output=True, check=True).stdout
    return text


class ProgramsTest(unittest.TestCase):
    maxDiff = 4000

    def check(self, path):
        if os.getuid() != 0:
            self.skipTest("needs root")
        with open(path) as f:
            script = f.read()
        results = []
        interpreter = "/bin/bash" if path.endswith(".sh") else "/usr/bin/python3"
        modes = ["host", "sandbox"] + (["overlay"] if re.search(r"(?m)^# overlay$", script) else [])
        for mode in modes:
            with harness.Sandbox("debian") as sb:
                shutil.copy(path, os.path.join(sb.rootfs, "program"))
                args = [interpreter, "/program"]
                if mode == "host":
                    r = harness.chroot_run(sb.rootfs, args)
                else:
                    flags = ["--overlay"] if mode == "overlay" else []
                    r = sb.run(args, caps=harness.ALL_CAPS, timeout=300, flags=flags)
                results.append((mode, r.returncode, normalise(r.stdout, script), r.stderr))
        host = results[0]
        for other in results[1:]:
            self.assertEqual(host[2], other[2], f"output, {other[0]}; stderr: {other[3][-2000:]}")
            self.assertEqual(host[1], other[1], f"exit status, {other[0]}; stderr: {other[3][-2000:]}")


for path in sorted(glob.glob(os.path.join(PROGRAMS, "*"))):
    name = os.path.splitext(os.path.basename(path))[0].replace("-", "_")
    setattr(ProgramsTest, f"test_{name}", lambda self, path=path: self.check(path))

if __name__ == "__main__":
    harness.main()
