"""Writes the results: JSON with all samples, a Markdown table, charts."""

import json
import os
import re
import time

from . import charts

TITLES = {"micro": "Micro", "programs": "Whole programs", "bridge": "Servers behind a bridge", "sandbox": "The sandbox itself"}


def duration(seconds):
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def machine():
    """The machine in words that name nobody."""
    out = {"kernel": os.uname().release.split("-")[0], "cores": os.cpu_count()}
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        found = re.search(r"^model name\s*: (.*)$", f.read(), re.M)
    out["cpu"] = found.group(1).strip() if found else "?"
    with open("/proc/meminfo", encoding="utf-8") as f:
        out["memory_gib"] = round(int(re.search(r"MemTotal:\s*(\d+)", f.read()).group(1)) / 2**20)
    folder = "/sys/devices/system/cpu/vulnerabilities"
    costs = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            text = f.read().strip()
        if text.startswith("Mitigation"):
            costs.append(f"{name} ({text.partition(': ')[2].split(';')[0].split(',')[0]})")
    out["mitigations"] = costs
    return out


def describe_machine():
    m = machine()
    mitigations = "; mitigations: " + ", ".join(m["mitigations"]) if m["mitigations"] else ""
    return (f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux {m['kernel']}"
            f"{mitigations}")


def value_text(results, suite, row, cell):
    unit = results.target(suite, row).get("unit")
    if unit is None:
        return duration(cell.median)
    return f"{cell.median:.3g} {unit}"


def target_text(target):
    if "limit" in target:
        return f"<= {target['limit']:g}"
    if "at_least" in target:
        return f">= {target['at_least']:g}"
    if "target" not in target:
        return ""
    text = f"{target['target']:g}"
    if "overlay" in target:
        text += f" / {target['overlay']:g} in memory"
    if "against" in target:
        text += f" of {target['against']}"
    return text


def cell_text(results, suite, row, runtime):
    cell = results.cell(suite, row, runtime)
    if runtime.why_not:
        return "-"
    if not cell.ok:
        return cell.status
    ratio = results.ratio(suite, row, runtime)
    base = results.target(suite, row).get("against", "host")
    if runtime.name == base or ratio is None:
        text = value_text(results, suite, row, cell)
    elif suite == "sandbox":
        text = f"{value_text(results, suite, row, cell)} ({ratio:.2f})"
    else:
        text = f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"
    if cell.spread >= 0.005:
        text += f" ±{cell.spread:.0%}"
    verdict = results.verdict(suite, row, runtime)
    if verdict is not None:
        text += " **not met**" if verdict == "not met" else " " + verdict
    return text


def suite_table(results, suite):
    header = ["row", *[r.name for r in results.runtimes], "target"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in results.rows(suite):
        target = results.target(suite, row)
        about = target.get("about", row).replace("|", "\\|")
        cells = [cell_text(results, suite, row, r) for r in results.runtimes]
        lines.append("| " + " | ".join([about, *cells, target_text(target)]) + " |")
    return lines


def summary(results, suite):
    """How many targets each runtime meets."""
    lines = []
    for runtime in results.runtimes:
        verdicts = [results.verdict(suite, row, runtime) for row in results.rows(suite)]
        known = [v for v in verdicts if v is not None]
        if known:
            lines.append(f"{runtime.name} meets "
                         f"{sum(v != 'not met' for v in known)} of {len(known)} targets.")
    return lines


def unexplained(results, suite):
    """Why rows have no value, one line for all runtimes that say the same."""
    lines = []
    for row in results.rows(suite):
        names = {}
        for runtime in results.runtimes:
            cell = results.cell(suite, row, runtime)
            if not runtime.why_not and cell.status in ("failed", "unsupported"):
                names.setdefault(f"{cell.status}: {cell.why}", []).append(runtime.name)
        lines += [f"- {row}, {', '.join(who)}: {why}" for why, who in names.items()]
    return lines


def notes(results, suite):
    return [f"- {row}, {name}: {text}" for (s, row, name), text in results.notes.items()
            if s == suite]


def markdown(results, options):
    lines = [f"Machine: {describe_machine()}.", ""]
    lines.append("The first column of figures is the median time on the host; the others are ratios to it"
                 " (lower is better), with the spread (half the distance between the quartiles).")
    if options.quick:
        lines.append("A quick run: fewer and shorter samples, programs at"
                     f" 1/{options.scale} of their size; targets are meant for the full one.")
    for runtime in results.runtimes:
        if runtime.why_not:
            lines.append(f"{runtime.name} cannot run here: {runtime.why_not}.")
    for suite in results.suites:
        lines += ["", f"### {TITLES[suite]}", "", *suite_table(results, suite), ""]
        lines += summary(results, suite)
        extra = unexplained(results, suite) + notes(results, suite)
        if extra:
            lines += ["", *extra]
    return "\n".join(lines)


def as_json(results, options):
    out = {"machine": machine(), "when": time.strftime("%Y-%m-%d"), "quick": options.quick,
           "runtimes": {}, "suites": {}}
    for r in results.runtimes:
        out["runtimes"][r.name] = {"arguments": r.args, "base": r.base}
        if r.why_not:
            out["runtimes"][r.name]["why_not"] = r.why_not
        else:
            out["runtimes"][r.name]["version"] = r.version()
    for suite in results.suites:
        rows = out["suites"][suite] = {}
        for row in results.rows(suite):
            cells = {}
            for runtime in results.runtimes:
                cell = cells[runtime.name] = results.cell(suite, row, runtime).as_json()
                ratio = results.ratio(suite, row, runtime)
                if ratio is not None:
                    cell["ratio"] = round(ratio, 4)
                verdict = results.verdict(suite, row, runtime)
                if verdict is not None:
                    cell["verdict"] = verdict
                note = results.notes.get((suite, row, runtime.name))
                if note:
                    cell["note"] = note
            rows[row] = {"target": results.target(suite, row), "runtimes": cells}
    return out


def write(folder, results, options):
    with open(os.path.join(folder, "results.json"), "w", encoding="utf-8") as f:
        json.dump(as_json(results, options), f, indent=1)
    with open(os.path.join(folder, "table.md"), "w", encoding="utf-8") as f:
        f.write(markdown(results, options) + "\n")
    charts.write(folder, results)
