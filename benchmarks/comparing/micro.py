"""The micro suite: guest_micro waits in every runtime, and each row is measured in all of them in turn."""

import os
import subprocess
import time

from .runtimes import Failed, Session

SUITE = "micro"
ROW_TIMEOUT = 30
FILES_SETTLE = 2.5  # seconds


class Micro:
    def __init__(self, options, scratch, results, progress):
        self.options, self.scratch, self.results, self.progress = options, scratch, results, progress
        self.program = os.path.join(options.guests, "guest_micro")
        self.sessions = {}
        self.per_row = 0.02 + 2.2 * options.min_time  # seconds of one sample

    def rows(self):
        out = subprocess.run([self.program, "--list"], capture_output=True, text=True, check=True)
        names = [line.split("/")[0] for line in out.stdout.splitlines() if line.strip()]
        order = list(self.results.targets.get(SUITE, {}))
        names.sort(key=lambda n: order.index(n) if n in order else len(order))
        return [n for n in names if self.options.wanted(n)]

    def plan(self):
        self.todo = self.rows()
        count = sum(1 for r in self.results.runtimes if not r.why_not)
        self.progress.plan(len(self.todo) * self.options.micro_rounds * count * self.per_row)

    def session(self, runtime):
        session = self.sessions.get(runtime.name)
        if session is None:
            session = Session(self.scratch, runtime, self.roots[runtime.name],
                              ["/bin/guest_micro", f"--benchmark_min_time={self.options.min_time}"])
            self.sessions[runtime.name] = session
            session.wait_for("ready", ROW_TIMEOUT)
        return session

    def drop(self, runtime):
        session = self.sessions.pop(runtime.name, None)
        if session:
            session.close()

    def sample(self, row, runtime):
        """One measurement. False if the row is not to be tried again there."""
        cell = self.results.cell(SUITE, row, runtime)
        try:
            answer = self.session(runtime).ask(row, "row", ROW_TIMEOUT)
        except (Failed, OSError) as e:
            cell.fail("failed", str(e))
            self.drop(runtime)
            return False
        name, status, *rest = answer.split(" ", 2)
        if name != row or status != "ok":
            cell.fail(status if status in ("unsupported", "failed") else "failed", " ".join(rest))
            return False
        cell.add(float(rest[0].split()[0]) / 1e9)
        return True

    def run(self):
        self.results.suites.append(SUITE)
        able = [r for r in self.results.runtimes if not r.why_not]
        programs = {"guest_micro": self.program,
                    "true": os.path.join(self.options.guests, "guest_true")}
        self.roots = {r.name: self.scratch.small_root(programs) for r in able}
        # As the files of an image are: not written a moment ago.
        time.sleep(FILES_SETTLE)
        for row in self.todo:
            left = list(able)
            for round_ in range(self.options.micro_rounds):
                for runtime in list(left):
                    if not self.sample(row, runtime):
                        left.remove(runtime)
                self.progress.step(self.per_row * len(able), f"{row}, round {round_ + 1}")
        for runtime in able:
            self.drop(runtime)
