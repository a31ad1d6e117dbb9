"""The sandbox's own figures: starts, memory and CPU of idle ones, many at once, reachable host calls."""

import contextlib
import os
import subprocess
import time

from . import seccomp
from .runtimes import Failed, Session, delete, descendants

SUITE = "sandbox"
START_TIMEOUT = 60
IDLE_SECONDS = 10
STARTS = ("run_true", "create_start", "exec_true")
ONE_IDLE = ("idle_memory", "idle_cpu", "sentry_calls", "gofer_calls", "stub_calls")
MANY = ("many", "many_memory")


def read_text(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def pss_kib(pid):
    """Proportional memory of a process, 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in read_text(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def cpu_ms(pid):
    """CPU time of a process in milliseconds, of nanosecond resolution where the host keeps it."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                total += int(read_text(f"/proc/{pid}/task/{thread}/schedstat").split()[0])
    return total / 1e6


def role(pid):
    """What a process of a sandbox is, by its name and command line."""
    with contextlib.suppress(OSError):
        words = read_text(f"/proc/{pid}/cmdline").split("\0")
        comm = read_text(f"/proc/{pid}/comm").strip()
        first = os.path.basename(words[0]) if words and words[0] else comm
        for name in ("gofer", "boot", "sandbox"):
            if name in words[1:] or first.endswith(name):
                return "sentry" if name in ("boot", "sandbox") else name
        if "create" in words or "run" in words:
            return "command"
        if first.startswith("stub") or comm.startswith("stub") or not words[0]:
            return "stub"
        return comm
    return "gone"


def available_mib():
    for line in read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Sandbox:
    def __init__(self, options, scratch, results, progress):
        self.options, self.scratch, self.results, self.progress = options, scratch, results, progress
        self.root = None

    def able(self):
        """No host here: it has no sandbox."""
        return [r for r in self.results.runtimes if not r.why_not and not r.is_host]

    def plan(self):
        self.rows = [r for r in self.results.targets.get(SUITE, {}) if self.options.wanted(r)]
        self.starts = [r for r in STARTS if r in self.rows]
        self.idle = any(r in self.rows for r in ONE_IDLE)
        self.many = any(r in self.rows for r in MANY)
        count = len(self.able())
        self.progress.plan(0.15 * count * len(self.starts) * self.options.sandbox_rounds)
        self.progress.plan((IDLE_SECONDS + 1) * self.idle)
        self.progress.plan(0.2 * count * self.options.sandboxes * self.many)

    def cell(self, row, runtime):
        return self.results.cell(SUITE, row, runtime)

    def run(self):
        self.results.suites.append(SUITE)
        guests = self.options.guests
        self.root = self.scratch.small_root({
            "true": os.path.join(guests, "guest_true"), "idle": os.path.join(guests, "guest_idle"),
            "sh": "/bin/busybox"})
        for row in self.rows:
            for runtime in self.results.runtimes:
                if runtime.is_host:
                    self.cell(row, runtime).fail("not run", "the host has no sandbox")
        if self.starts:
            self.measure_starts()
        if self.idle:
            self.measure_idle()
        if self.many:
            for runtime in self.able():
                self.measure_many(runtime)

    # Starts.

    def command(self, runtime, *args):
        # No pipe: a created container keeps the descriptors.
        log = os.path.join(self.scratch.dir, "command.log")
        with open(log, "wb") as err:
            result = subprocess.run(runtime.command(self.scratch, *args), stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=err, timeout=START_TIMEOUT)
        if result.returncode != 0:
            words = read_text(log).strip().splitlines()
            raise Failed(f"{args[0]}: {words[-1][:200] if words else result.returncode}")

    def measure_starts(self):
        bundle = self.scratch.bundle(self.root, ["/bin/true"])
        holders = {}
        for runtime in self.able():
            if "exec_true" in self.starts:
                holders[runtime.name] = Session(self.scratch, runtime, self.root, ["/bin/idle"])
        for round_ in range(self.options.sandbox_rounds):
            for row in self.starts:
                for runtime in self.able():
                    self.measure_start(row, runtime, bundle, holders.get(runtime.name))
                    self.progress.step(0.15, f"{row}, round {round_ + 1} in {runtime.name}")
        for session in holders.values():
            session.close()

    def measure_start(self, row, runtime, bundle, holder):
        cell = self.cell(row, runtime)
        if cell.status == "failed":
            return
        container = self.scratch.new_id()
        try:
            if row == "exec_true" and not cell.samples:
                holder.wait_for("idle", START_TIMEOUT)
            begin = time.monotonic()
            if row == "run_true":
                self.command(runtime, "run", "--bundle", bundle, container)
            elif row == "create_start":
                self.command(runtime, "create", "--bundle", bundle, container)
                self.command(runtime, "start", container)
            else:
                self.command(runtime, "exec", holder.id, "/bin/true")
            cell.add((time.monotonic() - begin) * 1e3)
        except (Failed, OSError, subprocess.TimeoutExpired) as e:
            cell.fail("failed", str(e))
        finally:
            if row == "create_start":
                delete(self.scratch, runtime, container)

    # One idle sandbox each, all at rest at the same time.

    def measure_idle(self):
        sessions = {}
        for runtime in self.able():
            before = set(descendants(os.getpid()))
            session = Session(self.scratch, runtime, self.root, ["/bin/idle"])
            sessions[runtime.name] = session
            try:
                session.wait_for("idle", START_TIMEOUT)
            except Failed as e:
                for row in ONE_IDLE:
                    self.cell(row, runtime).fail("failed", str(e))
                continue
            time.sleep(0.5)
            session.pids = [p for p in descendants(os.getpid()) if p not in before]
        able = [r for r in self.able() if self.cell("idle_memory", r).status != "failed"]
        begin = {r.name: {p: cpu_ms(p) for p in sessions[r.name].pids} for r in able}
        for second in range(IDLE_SECONDS):
            time.sleep(1)
            self.progress.step(1, f"idle for {second + 1} s")
        for runtime in able:
            pids = sessions[runtime.name].pids
            spent = sum(cpu_ms(p) - begin[runtime.name][p] for p in pids)
            self.cell("idle_cpu", runtime).add(round(max(0.0, spent), 2))
            self.measure_memory(runtime, pids)
            self.measure_calls(runtime, pids)
        for session in sessions.values():
            session.close()

    def measure_memory(self, runtime, pids):
        by_role = {}
        for pid in pids:
            by_role.setdefault(role(pid), []).append(pss_kib(pid) / 1024)
        # The command that waits for the container's end is not the sandbox's: in the note alone.
        total = sum(sum(v) for name, v in by_role.items() if name != "command")
        application = self.application_mib()
        self.cell("idle_memory", runtime).add(round(max(0.0, total - application), 2))
        self.results.notes[(SUITE, "idle_memory", runtime.name)] = ", ".join(
            f"{name}{f' x{len(v)}' if len(v) > 1 else ''} {sum(v):.2f} MiB"
            for name, v in sorted(by_role.items(), key=lambda item: -sum(item[1])))

    def application_mib(self):
        """The idle program's own memory, alone on the host."""
        if not hasattr(self, "application"):
            program = subprocess.Popen([os.path.join(self.root, "bin", "idle")],
                                       stdout=subprocess.PIPE)
            program.stdout.readline()
            self.application = pss_kib(program.pid) / 1024
            program.kill()
            program.wait()
            program.stdout.close()
        return self.application

    def measure_calls(self, runtime, pids):
        """The greatest number of host calls that a process of each role may make. Of several the
        ones with the most filters count: what made them (a zygote) has fewer and runs no guest."""
        found = {}
        for pid in pids:
            found.setdefault(role(pid), []).append(pid)
        for row, name in (("sentry_calls", "sentry"), ("gofer_calls", "gofer"), ("stub_calls", "stub")):
            cell = self.cell(row, runtime)
            programs = []
            for pid in found.get(name, []):
                with contextlib.suppress(OSError):
                    programs.append(seccomp.filters(pid))
            if programs:
                most = max(len(p) for p in programs)
                cell.add(max(len(seccomp.reachable(p)) for p in programs if len(p) == most))
            else:
                cell.fail("not run", f"no process of this kind ({', '.join(sorted(found))})")

    # Many at once.

    def measure_many(self, runtime):
        count = self.options.sandboxes
        memory = available_mib()
        floor = 0.08 * memory
        bundle = self.scratch.bundle(self.root, ["/bin/sh", "-c", "read line"])
        hold_read, hold_write = os.pipe()
        containers, why = [], ""
        begin = time.monotonic()
        try:
            with open(os.path.join(self.scratch.dir, "many.log"), "wb") as log:
                while len(containers) < count:
                    if available_mib() < floor:
                        why = "the machine's memory is used up"
                        break
                    container = self.scratch.new_id()
                    result = subprocess.run(
                        runtime.command(self.scratch, "run", "--detach", "--bundle", bundle, container),
                        stdin=hold_read, stdout=log, stderr=log, timeout=START_TIMEOUT)
                    containers.append(container)
                    if result.returncode != 0:
                        containers.pop()
                        why = read_text(log.name).strip().splitlines()[-1][:200]
                        break
                    self.progress.step(0.2, f"{len(containers)} sandboxes of {runtime.name}")
            seconds = time.monotonic() - begin
            time.sleep(1)
            alive = sum(1 for c in containers if self.is_running(runtime, c))
            self.cell("many", runtime).add(alive)
            if containers:
                used = max(0.0, memory - available_mib())
                self.cell("many_memory", runtime).add(round(used / len(containers), 2))
                self.results.notes[(SUITE, "many", runtime.name)] = (
                    f"{1e3 * seconds / len(containers):.0f} ms each" + (f"; then: {why}" if why else ""))
            else:
                self.cell("many_memory", runtime).fail("failed", why)
        except (OSError, subprocess.TimeoutExpired) as e:
            for row in MANY:
                self.cell(row, runtime).fail("failed", str(e))
        finally:
            os.close(hold_write)
            os.close(hold_read)
            for i, container in enumerate(containers):
                delete(self.scratch, runtime, container)
                self.progress.step(0, f"deleting {i + 1} of {len(containers)} of {runtime.name}")

    def is_running(self, runtime, container):
        result = subprocess.run(runtime.command(self.scratch, "state", container),
                                capture_output=True, text=True, timeout=START_TIMEOUT)
        return '"running"' in result.stdout
