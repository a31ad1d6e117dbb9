#!/usr/bin/env python3
"""A guest of random system calls (tests/guest/random_calls.cc) does not stop the sandbox. scripts/soak does the
same for longer."""

import os
import re
import shutil
import time

import harness
import soaking

GUEST = os.environ.get("RUNSC_GUEST", "")


class SoakTest(harness.ContainerTest):

    def soak(self, flags):
        shutil.copy(os.path.join(GUEST, "guest_random_calls"), os.path.join(self.sb.rootfs, "random_calls"))
        soaked = soaking.Soaked(self.sb, flags, caps=harness.ALL_CAPS)
        seed = os.environ.get("RUNSC_TEST_SEED", str(int(time.time())))
        status, text = soaked.load(["/random_calls", "--seconds", "12", "--seed", seed], 120, env=["TEST_IN_SANDBOX=1"])
        self.assertEqual(0, status, f"seed {seed}: {text}")
        found = re.search(r"calls (\d+) numbers (\d+) .* stuck 0", text)
        self.assertTrue(found, f"seed {seed}: {text}")
        self.assertGreater(int(found[1]), 1000)
        rss = soaked.check()
        print(f"seed {seed}: {text.strip()}; slowest answer {soaked.slowest:.2f} s, sentry {rss >> 20} MiB")

    @harness.serial
    def test_random_calls(self):
        self.soak([])

    @harness.serial
    def test_random_calls_in_strict_mode(self):
        self.soak(["--strict"])


if __name__ == "__main__":
    harness.main()
