#!/usr/bin/env python3
"""`cmake --install`: one program, hardened, that runs a container from where it was put."""

import os
import re
import subprocess
import tempfile

import harness
from harness import RUNSC, default_config


class InstallTest(harness.ContainerTest):

    def setUp(self):
        super().setUp()
        prefix = tempfile.mkdtemp(dir=self.sb.dir)
        build = os.path.dirname(os.path.dirname(RUNSC))
        subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True, stdout=subprocess.DEVNULL)
        self.files = [os.path.relpath(os.path.join(d, f), prefix)
                      for d, _, names in os.walk(prefix) for f in names]
        self.program = os.path.join(prefix, "bin", "runsc")

    def test_one_program_runs_from_there(self):
        self.assertEqual(["bin/runsc"], self.files)
        bundle = self.sb.bundle(default_config(["echo", "installed"]))
        self.sb.containers.append("installed")
        r = subprocess.run([self.program, "--root", self.sb.root, "run", "--bundle", bundle, "installed"],
                           stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                           env={"PATH": "/usr/bin:/bin"})
        self.assertEqual((0, "installed\n", ""), (r.returncode, r.stdout, r.stderr))

    def test_hardening(self):
        def readelf(*flags):
            return subprocess.run(["readelf", "-W", *flags, self.program], check=True, capture_output=True,
                                  text=True).stdout
        self.assertRegex(readelf("-h"), r"Type:\s+DYN")  # position-independent
        segments = readelf("-l")
        self.assertIn("GNU_RELRO", segments)
        self.assertRegex(segments, r"GNU_STACK.* RW ")
        self.assertIsNone(re.search(r"LOAD.* RWE ", segments))
        dynamic = readelf("-d")
        self.assertIn("BIND_NOW", dynamic)
        self.assertNotIn("NEEDED", dynamic)  # static
        symbols = readelf("-s")
        self.assertIn("__stack_chk_fail", symbols)
        self.assertIn("_chk\n", symbols)  # _FORTIFY_SOURCE


if __name__ == "__main__":
    harness.main()
