#!/usr/bin/env python3
"""Terminals: run -t on the caller's terminal, a console socket, job control, window size."""

import os
import pty
import select
import signal
import socket
import subprocess
import time

import harness
from harness import default_config
from terminal import Terminal


class TerminalTest(harness.ContainerTest):

    def session(self, terminal):
        t = terminal
        t.type("PS1='ready$ '; stty -echo\n")
        t.expect(r"ready\$ $")
        t.type("tty; stty size; [ -t 0 ] && echo is-a-terminal\n")
        out = t.expect(r"is-a-terminal\r\n")
        self.assertRegex(out, r"/dev/(pts/\d+|console)")
        t.resize(33, 101)
        t.type_until("stty size\n", r"33 101\r\n")
        t.type("trap 'echo got-winch' WINCH; echo set\n")
        t.expect(r"set\r\n")
        t.resize(20, 60)
        t.type_until("\n", r"got-winch")
        t.type("sh -c 'echo be''gun; exec sleep 100'\n")
        t.expect(r"begun\r\n")
        t.type("\x03")
        t.type("echo status-$?\n")
        t.expect(r"status-130\r\n")
        t.type("sh -c 'echo be''gun; exec sleep 100'\n")
        t.expect(r"begun\r\n")
        t.type("\x1a")
        t.expect(r"Stopped")
        t.type("jobs; bg; kill %1; wait; echo jobs-done\n")
        t.expect(r"jobs-done\r\n")
        t.type("cat | tr a-z A-Z\n")
        time.sleep(0.3)
        t.type("words\n\x04")
        t.expect(r"WORDS")
        t.type("exit 6\n")

    def test_run_on_the_callers_terminal(self):
        bundle = self.sb.bundle(default_config(["bash", "--norc", "-i"], terminal=True))
        self.sb.containers.append("tty")
        pid, master = pty.fork()
        if pid == 0:
            try:
                command = self.sb.command("run", "--bundle", bundle, "tty")
                os.execvp(command[0], command)
            finally:
                os._exit(127)
        try:
            self.session(Terminal(master))
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    break
                if select.select([master], [], [], 0.05)[0]:
                    try:
                        os.read(master, 4096)
                    except OSError:
                        pass
            else:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.fail("runsc did not end with its shell")
            self.assertEqual(6, os.waitstatus_to_exitcode(status))
        finally:
            os.close(master)

    def test_console_socket(self):
        path = os.path.join(self.sb.dir, "console.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        bundle = self.sb.bundle(default_config(["bash", "--norc", "-i"], terminal=True))
        self.sb.containers.append("console")
        log = open(os.path.join(self.sb.dir, "create.log"), "wb")
        child = subprocess.Popen(self.sb.command("create", "--console-socket", path, "--bundle", bundle, "console"),
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.sb.children.append(child)
        listener.settimeout(20)
        connection, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        self.assertEqual(0, child.wait(20))
        master = fds[0]
        self.assertTrue(os.isatty(master))
        self.assertEqual(0, self.sb.runsc("start", "console").returncode)
        self.session(Terminal(master))
        self.sb.wait_status("console", "stopped")
        os.close(master)
        listener.close()

    def test_exec_with_a_terminal(self):
        id = self.sb.create(default_config(["sleep", "100"]))
        self.sb.runsc("start", id)
        pid, master = pty.fork()
        if pid == 0:
            try:
                command = self.sb.command("exec", "-t", id, "bash", "--norc", "-i")
                os.execvp(command[0], command)
            finally:
                os._exit(127)
        try:
            self.session(Terminal(master))
            self.assertEqual(6, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        finally:
            os.close(master)

    def test_terminal_needs_a_console_when_detached(self):
        bundle = self.sb.bundle(default_config(["sh"], terminal=True))
        self.sb.containers.append("none")
        r = self.sb.runsc("create", "--bundle", bundle, "none")
        self.assertNotEqual(0, r.returncode)
        self.assertIn("console", r.stderr)


if __name__ == "__main__":
    harness.main()
