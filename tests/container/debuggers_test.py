#!/usr/bin/env python3
"""strace, ltrace and gdb inside the sandbox, as Debian has them, on a small program in debuggers/.

The root is that of scripts/rootfs --debug, made at the first run."""

import os
import shutil
import subprocess
import unittest

import harness

# Starts the program that waits, and goes on when it does; $! is its pid.
WAITING = "rm -f /waiting; /program wait >/waiting & until grep -sq waiting /waiting; do sleep 0.1; done; "

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))


class DebuggersTest(unittest.TestCase):
    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        if os.getuid() != 0:
            raise unittest.SkipTest("needs root")
        made = subprocess.run([os.path.join(TOP, "scripts", "rootfs"), "--debug"], check=True,
                              capture_output=True, text=True, timeout=900)
        cls.sb = harness.Sandbox()
        cls.addClassCleanup(cls.sb.close)
        cls.sb.rootfs = root = cls.sb.overlay(made.stdout.strip().splitlines()[-1])
        shutil.copy(os.path.join(HERE, "debuggers", "program.c"), os.path.join(root, "program.c"))
        cls.run_ok(["gcc", "-g", "-O0", "-pthread", "-o", "/program", "/program.c"])

    @classmethod
    def run_ok(cls, args, status=0, timeout=120):
        r = cls.sb.run(args, timeout=timeout, caps=harness.ALL_CAPS)
        if r.returncode != status:
            raise AssertionError(f"{args}: {r.returncode}\n{r.stdout[-3000:]}\n{r.stderr[-3000:]}")
        return r

    def shell(self, script, status=0):
        return self.run_ok(["/bin/bash", "-c", script], status)

    def gdb(self, *commands, args="", status=0):
        line = " ".join(f"-ex '{c}'" for c in commands)
        return self.shell(f"gdb -q -batch -nx -ex 'set confirm off' {line} --args /program {args}"
                          " 2>&1", status).stdout

    # --- strace ---

    def test_strace_shows_calls(self):
        r = self.run_ok(["strace", "-o", "/out", "/program"], status=15)
        self.assertEqual("result 15 total 15\n", r.stdout)
        out = self.shell("cat /out").stdout
        self.assertRegex(out, r'(?m)^execve\("/program", \["/program"\], 0x[0-9a-f]+ /\* \d+ vars \*/\) = 0$')
        self.assertRegex(out, r'(?m)^openat\(AT_FDCWD, ".*libc\.so\.6", O_RDONLY\|O_CLOEXEC\) = 3$')
        self.assertIn('write(1, "result 15 total 15\\n", 19)', out)
        self.assertIn("exit_group(15)", out)
        self.assertIn("+++ exited with 15 +++", out)

    def test_strace_follows_forks(self):
        r = self.shell("strace -f -o /out sh -c 'echo one | cat; /bin/true & wait; exit 3'; echo $?")
        self.assertEqual("one\n3\n", r.stdout)
        out = self.shell("cat /out").stdout
        self.assertEqual(4, out.count("+++ exited with "), out[-2000:])
        self.assertIn('execve("/bin/true"', out)
        self.assertIn("+++ exited with 3 +++", out)

    def test_strace_threads(self):
        self.run_ok(["strace", "-f", "-o", "/out", "/program", "threads"], status=20)
        out = self.shell("cat /out").stdout
        self.assertEqual(5, out.count("+++ exited with "), out[-2000:])
        self.assertEqual(4, out.count("CLONE_THREAD"))

    def test_strace_counts(self):
        r = self.shell("strace -c -f /program threads; echo $?")
        self.assertIn("result 20", r.stdout)
        self.assertRegex(r.stderr, r"(?m)^\s*100\.00\s+\d+\.\d+\s+\d+\s+\d+\s+(\d+\s+)?total$")

    def test_strace_with_seccomp(self):
        r = self.shell("strace -f --seccomp-bpf -e trace=write -o /out /program; cat /out", 0)
        self.assertIn('write(1, "result 15', r.stdout)
        self.assertNotIn("mmap", r.stdout)

    def test_strace_attaches(self):
        r = self.shell(WAITING + "timeout 2 strace -o /out -p $!; "
                       "kill -0 $! && echo alive; kill $!; wait $!; cat /out")
        self.assertIn("alive", r.stdout)
        self.assertRegex(r.stdout, r"clock_nanosleep\(CLOCK_REALTIME, 0, \{tv_sec=0, tv_nsec=50000000\}, NULL\) = 0")

    def test_strace_tampers(self):
        r = self.shell("strace -e trace=write -e inject=write:error=EBADF -o /out /program; cat /out")
        self.assertNotIn("\nresult", "\n" + r.stdout)
        self.assertIn("EBADF (Bad file descriptor) (INJECTED)", r.stdout)

    def test_strace_signals(self):
        r = self.shell("strace -o /out /program fault; cat /out")
        self.assertIn("--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x10} ---", r.stdout)
        self.assertIn("+++ killed by SIGSEGV", r.stdout)

    # --- ltrace ---

    def test_ltrace(self):
        r = self.shell("ltrace -o /out /program; cat /out")
        self.assertRegex(r.stdout, r"printf\(.*15.*\)")
        self.assertIn("+++ exited (status 15) +++", r.stdout)

    # --- gdb ---

    def test_gdb_runs(self):
        out = self.gdb("run")
        self.assertIn("result 15 total 15", out)
        self.assertIn("exited with code 017", out)

    def test_gdb_breaks_and_steps(self):
        out = self.gdb("break add", "run", "backtrace", "print a", "continue", "print a", "finish",
                       "next", "step", "stepi", "nexti", "info registers rip", "delete", "continue")
        self.assertIn("Breakpoint 1, add (a=1, b=0)", out)
        self.assertRegex(out, r"#1 .* in sum_up \(n=5\)")
        self.assertRegex(out, r"#2 .* in main ")
        self.assertIn("$1 = 1", out)
        self.assertIn("$2 = 2", out)
        self.assertIn("Value returned is $3 = 3", out)
        self.assertIn("result 15 total 15", out)

    def test_gdb_calls_and_sets(self):
        out = self.gdb("break sum_up", "run", "print add(40, 2)", "set var total = 100",
                       "delete", "continue")
        self.assertIn("$1 = 42", out)
        self.assertIn("result 15 total 115", out)

    def test_gdb_watches(self):
        out = self.gdb("set can-use-hw-watchpoints 0", "break main", "run", "watch total",
                       "continue", "continue", "delete", "continue")
        self.assertIn("Old value = 0\nNew value = 1", out)
        self.assertIn("Old value = 1\nNew value = 3", out)
        self.assertIn("result 15 total 15", out)

    def test_gdb_threads(self):
        out = self.gdb("break add if a == 2 && b == 1", "run", "info threads", "thread apply all bt 1",
                       "delete", "continue", args="threads")
        self.assertRegex(out, r'Thread \d+ "program" hit Breakpoint 1, add \(a=2, b=1\)')
        self.assertIn("result 20 total 20", out)

    def test_gdb_sees_faults(self):
        out = self.gdb("run", "print $_siginfo.si_signo", "print $_siginfo._sifields._sigfault.si_addr",
                       "backtrace", args="fault")
        self.assertIn("Program received signal SIGSEGV", out)
        self.assertIn("$1 = 11", out)
        self.assertIn("0x10", out)

    def test_gdb_attaches(self):
        r = self.shell(WAITING + "gdb -q -batch -nx -p $! -ex 'break add' "
                       "-ex continue -ex backtrace -ex 'print a' -ex delete -ex detach 2>&1; "
                       "sleep 0.2; kill -0 $! && echo alive; kill $!; wait $!; true")
        self.assertIn("sum_up (n=3)", r.stdout)
        self.assertIn("$1 = 1", r.stdout)
        self.assertIn("alive", r.stdout)

    def test_gdb_follows_forks(self):
        r = self.shell("gdb -q -batch -nx -ex 'set detach-on-fork off' -ex 'set follow-fork-mode child' "
                       "-ex 'catch exec' -ex run -ex 'info inferiors' -ex kill --args sh -c '/program; true' 2>&1")
        self.assertIn("/program", r.stdout)

    def test_gdb_floating_point(self):
        out = self.gdb("break main", "run", "print $xmm0.v4_int32[0]", "set var $xmm0.v4_int32[0] = 77",
                       "print $xmm0.v4_int32[0]", "info registers mxcsr", "continue")
        self.assertIn("$2 = 77", out)
        self.assertRegex(out, r"mxcsr\s+0x1f80")


if __name__ == "__main__":
    harness.main()
