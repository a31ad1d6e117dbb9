"""A terminal's other side: what a person types and sees."""

import fcntl
import os
import re
import select
import struct
import termios
import time


class Closed(AssertionError):
    """There is nobody on the other side any more."""


class Terminal:
    """A shell behind a pty master, driven as a person would."""

    def __init__(self, master):
        self.master = master
        self.text = ""

    def expect(self, pattern, timeout=20):
        deadline = time.monotonic() + timeout
        while True:
            m = re.search(pattern, self.text)
            if m:
                before = self.text[:m.end()]
                self.text = self.text[m.end():]
                return before
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} in {self.text!r}")
            try:
                data = os.read(self.master, 4096)
            except OSError:
                data = b""
            if not data:
                raise Closed(f"terminal closed; no {pattern!r} in {self.text!r}")
            self.text += data.decode(errors="replace")

    def type_until(self, text, pattern, timeout=20):
        """Types `text` again and again until `pattern` comes: for what takes effect in its own time."""
        deadline = time.monotonic() + timeout
        while True:
            self.type(text)
            try:
                return self.expect(pattern, timeout=1)
            except Closed:
                raise
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def type(self, text):
        os.write(self.master, text.encode())

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
