#!/usr/bin/env python3
"""Runs one static guest test program in a sandbox: run_in_sandbox.py [--FLAG...] PROGRAM [ARG...].

Flags are runsc's own. Exits as the program did. The root file system is a scratch directory that holds the program, /tmp
and the usual mounts alone, so that nothing of the host leaks into a test."""

import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "container"))
import harness  # noqa: E402


def main():
    args = sys.argv[1:]
    flags = []
    while args[0].startswith("--"):
        flags.append(args.pop(0))
    program = os.path.abspath(args.pop(0))
    with harness.Sandbox() as sb:
        root = os.path.join(sb.dir, "root")
        for d in ("proc", "dev", "sys", "tmp", "root", "etc", "bin"):
            os.makedirs(os.path.join(root, d))
        os.chmod(os.path.join(root, "tmp"), 0o1777)
        shutil.copy("/bin/busybox", os.path.join(root, "bin", "busybox"))
        os.symlink("busybox", os.path.join(root, "bin", "sh"))
        os.symlink("busybox", os.path.join(root, "bin", "true"))
        shutil.copy(program, os.path.join(root, "test"))
        sb.rootfs = root
        if os.environ.get("RUNSC_STRACE"):
            flags += ["--strace", "--debug", "--debug-log", os.environ["RUNSC_STRACE"]]
        result = sb.run(["/test", *args], caps=harness.ALL_CAPS, timeout=240, flags=flags,
                        env=["TEST_IN_SANDBOX=1"])
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        return result.returncode


if __name__ == "__main__":
    sys.exit(main())
