#!/usr/bin/env python3
"""Programs of a small Debian root file system, programs/*: output and exit status as in a chroot on the host."""

import comparing
import harness


class ProgramsTest(comparing.ComparedTest):
    pass


ProgramsTest.add("programs", "debian")

if __name__ == "__main__":
    harness.main()
