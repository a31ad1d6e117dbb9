"""The suite of whole programs: every file of benchmarks/programs is one workload.

A workload is a bash or python file (see programs/README.md). Its container is made and set up once in
each runtime; then one timed run after the other, in all runtimes in turn."""

import ast
import os
import re
import shutil

from .runtimes import Failed, Session

SUITE = "programs"
HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(os.path.dirname(HERE), "programs")


class Workload:
    """The file's name is the row's. Declared in it: about, needs (programs of the image) and seconds
    (roughly, of one run on the host at full size)."""

    def __init__(self, path):
        self.path = path
        self.name, self.kind = os.path.splitext(os.path.basename(path))
        self.about, self.needs, self.seconds = self.name, [], 1.0
        with open(path, encoding="utf-8") as f:
            text = f.read()
        if self.kind == ".py":
            for node in ast.parse(text).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    if node.targets[0].id in ("about", "needs", "seconds"):
                        self.declare(node.targets[0].id, str(ast.literal_eval(node.value)))
        else:
            for key, value in re.findall(r"^# (about|needs|seconds): (.*)$", text, re.M):
                self.declare(key, value)

    def declare(self, key, value):
        if key == "needs":
            self.needs = value.split()
        elif key == "seconds":
            self.seconds = float(value)
        else:
            self.about = value

    def missing(self, image):
        """The first program that the image lacks, or None."""
        for program in self.needs:
            if not any(os.path.lexists(os.path.join(image, d, program))
                       for d in ("usr/local/bin", "usr/bin", "bin", "usr/sbin", "sbin")):
                return program
        return None


def all_workloads(extra=()):
    paths = [os.path.join(FOLDER, n) for n in sorted(os.listdir(FOLDER)) if n.endswith((".sh", ".py"))]
    return [Workload(p) for p in [*paths, *extra]]


class Programs:
    suite = SUITE

    def __init__(self, options, scratch, results, progress):
        self.options, self.scratch, self.results, self.progress = options, scratch, results, progress

    def per_run(self, workload):
        return max(0.05, 1.3 * workload.seconds / self.options.scale)

    def plan(self):
        order = list(self.results.targets.get(self.suite, {}))
        self.todo = [w for w in self.workloads() if self.options.wanted(w.name)]
        self.todo.sort(key=lambda w: order.index(w.name) if w.name in order else len(order))
        count = sum(1 for r in self.results.runtimes if not r.why_not)
        for w in self.todo:
            # The set-up counts as two runs.
            self.progress.plan(count * self.per_run(w) * (self.options.program_rounds + 2))

    def workloads(self):
        return all_workloads(self.options.workload)

    def new_root(self, workload):
        """A view of the image with the workload and its driver."""
        root = self.scratch.overlay_root(self.options.image)
        folder = os.path.join(root, "bench")
        os.mkdir(folder)
        for name in ("driver.sh", "driver.py"):
            shutil.copy(os.path.join(HERE, name), folder)
        shutil.copy(workload.path, os.path.join(folder, "workload" + workload.kind))
        return root

    def start(self, workload, runtime):
        root = self.new_root(workload)
        args = (["python3", "/bench/driver.py"] if workload.kind == ".py"
                else ["bash", "/bench/driver.sh"])
        session = Session(self.scratch, runtime, root, args, [f"SCALE={self.options.scale}"])
        session.root = root
        return session

    def run_one(self, workload):
        able = [r for r in self.results.runtimes if not r.why_not]
        lacks = workload.missing(self.options.image)
        sessions = {}
        timeout = 20 + 60 * workload.seconds / self.options.scale
        for runtime in able:
            cell = self.results.cell(self.suite, workload.name, runtime)
            if lacks:
                cell.fail("unsupported", f"the image has no {lacks}")
                continue
            try:
                sessions[runtime.name] = self.start(workload, runtime)
                sessions[runtime.name].wait_for("ready", timeout)
            except (Failed, OSError) as e:
                cell.fail("failed", f"set-up: {e}")
                self.end(sessions.pop(runtime.name, None))
            self.progress.step(2 * self.per_run(workload), f"{workload.name} in {runtime.name}")
        for round_ in range(self.options.program_rounds):
            for runtime in able:
                session = sessions.get(runtime.name)
                if session:
                    self.sample(workload, runtime, session, timeout, sessions)
                self.progress.step(self.per_run(workload),
                                   f"{workload.name}, round {round_ + 1} in {runtime.name}")
        for session in sessions.values():
            self.end(session)

    def sample(self, workload, runtime, session, timeout, sessions):
        cell = self.results.cell(self.suite, workload.name, runtime)
        try:
            status, microseconds, *words = session.ask("go", "time", timeout).split(" ", 2)
            if status != "0":
                raise Failed(f"status {status}: {' '.join(words)}")
            cell.add(int(microseconds) / 1e6)
        except (Failed, OSError) as e:
            cell.fail("failed", str(e))
            self.end(sessions.pop(runtime.name))

    def end(self, session):
        if session:
            session.close()
            self.scratch.remove_root(session.root)

    def run(self):
        self.results.suites.append(self.suite)
        for workload in self.todo:
            target = self.results.targets.setdefault(self.suite, {}).setdefault(workload.name, {})
            target.setdefault("about", workload.about)
        for workload in self.todo:
            self.run_one(workload)
