"""What was measured: for each suite, row and runtime the samples, or why there are none."""

import statistics


class Cell:
    """One row in one runtime. Times are in seconds, other figures in the row's own unit."""

    def __init__(self):
        self.samples = []
        self.status = "missing"  # ok, unsupported, failed, not run
        self.why = ""

    def add(self, value):
        self.samples.append(value)
        self.status = "ok"

    def fail(self, status, why):
        self.status, self.why = status, why

    @property
    def ok(self):
        return self.status == "ok" and bool(self.samples)

    @property
    def median(self):
        return statistics.median(self.samples)

    @property
    def spread(self):
        """Half the distance of the quartiles, as a part of the median."""
        if len(self.samples) < 4 or self.median == 0:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / 2 / self.median

    def as_json(self):
        out = {"status": self.status}
        if self.samples:
            out.update(median=self.median, spread=round(self.spread, 4), samples=self.samples)
        if self.why:
            out["why"] = self.why
        return out


class Results:
    def __init__(self, runtimes, targets):
        self.runtimes = runtimes
        self.targets = targets
        self.cells = {}  # (suite, row, runtime name) -> Cell
        self.notes = {}  # (suite, row, runtime name) -> text: details, as memory by process
        self.suites = []

    def cell(self, suite, row, runtime):
        return self.cells.setdefault((suite, row, runtime.name), Cell())

    def rows(self, suite):
        """The suite's rows in the order of the targets, then those without."""
        seen = list(dict.fromkeys(row for s, row, _ in self.cells if s == suite))
        known = [r for r in self.targets.get(suite, {}) if r in seen]
        return known + [r for r in seen if r not in known]

    def target(self, suite, row):
        return self.targets.get(suite, {}).get(row, {})

    def by_name(self, name):
        return next((r for r in self.runtimes if r.name == name), None)

    def base(self, suite, row):
        """The cell that ratios of this row are to, or None."""
        against = self.by_name(self.target(suite, row).get("against", "host"))
        cell = self.cells.get((suite, row, against.name)) if against else None
        return cell if cell and cell.ok else None

    def ratio(self, suite, row, runtime):
        base, cell = self.base(suite, row), self.cell(suite, row, runtime)
        if not base or not cell.ok or base.median <= 0:
            return None
        return cell.median / base.median

    def floor(self, hand_offs):
        """Seconds that a row meets its target with if the host's own call is as quick."""
        host = self.by_name("host")
        cell = self.cells.get(("micro", "spin_hand_off", host.name)) if host else None
        return 1.25 * hand_offs * cell.median if cell and cell.ok and hand_offs else 0.0

    def verdict(self, suite, row, runtime):
        """True (met), False (not met) or None (there is no target, or no value)."""
        target, cell = self.target(suite, row), self.cell(suite, row, runtime)
        if runtime.base or not cell.ok:
            return None
        if "limit" in target:
            return cell.median <= target["limit"]
        if "at_least" in target:
            return cell.median >= target["at_least"]
        limit = target.get("overlay" if runtime.has_overlay and "overlay" in target else "target")
        ratio = self.ratio(suite, row, runtime)
        if limit is None or ratio is None:
            return None
        # Two digits are what the targets have.
        met = round(ratio, 2) <= limit or cell.median <= self.floor(target.get("hand_offs", 0))
        gvisor = self.by_name("gvisor")
        if met and target.get("third") and gvisor and gvisor is not runtime:
            other = self.cell(suite, row, gvisor)
            met = not other.ok or cell.median <= other.median / 3
        return met

    def nonsense(self):
        """What a comparison may not end with: a row without a value that nobody explains."""
        found = []
        for suite in self.suites:
            for row in self.targets.get(suite, {}):
                for runtime in self.runtimes:
                    if runtime.why_not:
                        continue
                    cell = self.cell(suite, row, runtime)
                    if cell.status == "missing":
                        found.append(f"{suite} {row}: no value for {runtime.name}")
                    elif cell.status == "failed":
                        found.append(f"{suite} {row}: {runtime.name}: {cell.why}")
                    elif cell.ok and not all(v >= 0 for v in cell.samples):
                        found.append(f"{suite} {row}: a negative value for {runtime.name}")
        return found
