"""One line that says what is measured now and how long the rest may take."""

import sys
import time


class Progress:
    """Work is counted in estimated seconds; the estimate is corrected by what the done part took."""

    def __init__(self):
        self.total = 0.0
        self.done = 0.0
        self.begin = time.monotonic()
        self.shown = 0.0

    def plan(self, seconds):
        self.total += seconds

    def step(self, seconds, what):
        """`seconds` of the plan are done; `what` comes now."""
        self.done += seconds
        now = time.monotonic()
        if now - self.shown < (0.2 if sys.stderr.isatty() else 15):
            return
        self.shown = now
        part = min(1.0, self.done / self.total) if self.total else 1.0
        left = "?"
        if part > 0.01:
            seconds_left = int((now - self.begin) * (1 - part) / part)
            left = f"{seconds_left // 60}:{seconds_left % 60:02}"
        line = f"compare: {part:4.0%}, about {left} left: {what}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self):
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        taken = int(time.monotonic() - self.begin)
        print(f"compare: done in {taken // 60}:{taken % 60:02}", file=sys.stderr)
