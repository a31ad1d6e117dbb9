"""Charts: for each suite one picture of all rows, a mark for each runtime on a logarithmic axis."""

import os
import sys

COLORS = ["#0b62a4", "#d1495b", "#2e8b57", "#8f5fbf", "#e08e0b", "#444444", "#17becf"]
MARKS = "osD^vP*X"


def write(folder, results):
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("compare: no charts: python3-matplotlib is missing", file=sys.stderr)
        return
    for suite in results.suites:
        if suite == "sandbox":
            figure = bars(pyplot, results, suite)
        else:
            figure = dots(pyplot, results, suite)
        if figure:
            for kind in ("svg", "png"):
                figure.savefig(os.path.join(folder, f"{suite}.{kind}"), dpi=110, bbox_inches="tight")
            pyplot.close(figure)


def dots(pyplot, results, suite):
    """The ratio to the host of every row; left of the line at 1 is faster than the host."""
    shown = [r for r in results.runtimes if not r.why_not and not r.is_host]
    rows = [row for row in results.rows(suite)
            if any(results.ratio(suite, row, r) for r in shown)]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.24 * len(rows)))
    for i, row in enumerate(rows):
        axes.axhline(i, color="#eeeeee", linewidth=0.8, zorder=0)
        limit = results.target(suite, row).get("target")
        if limit:
            axes.plot([limit, limit], [i - 0.4, i + 0.4], color="#222222", linewidth=2, zorder=2,
                      label="target" if i == 0 else None)
    bases = [r for r in shown if r.base]
    for number, runtime in enumerate(shown):
        points = [(results.ratio(suite, row, runtime), i) for i, row in enumerate(rows)]
        points = [(x, y) for x, y in points if x]
        color = "#aaaaaa" if runtime.base else COLORS[(number - len(bases)) % len(COLORS)]
        axes.scatter([x for x, _ in points], [y for _, y in points], label=runtime.name, s=26,
                     color=color, marker=MARKS[number % len(MARKS)], zorder=3 if runtime.base else 4)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)),
                    [results.target(suite, row).get("about", row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("time, as a multiple of the host's (left is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=6, frameon=False, fontsize=9)
    return figure


def bars(pyplot, results, suite):
    """Each figure in its own unit, a bar for each runtime."""
    shown = [r for r in results.runtimes if not r.why_not and not r.is_host]
    rows = [row for row in results.rows(suite) if any(results.cell(suite, row, r).ok for r in shown)]
    if not rows:
        return None
    columns = 2
    height = (len(rows) + columns - 1) // columns
    figure, grid = pyplot.subplots(height, columns, figsize=(11, 1.9 * height), squeeze=False)
    for axes in grid.flat[len(rows):]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows):
        target = results.target(suite, row)
        able = [r for r in shown if results.cell(suite, row, r).ok]
        values = [results.cell(suite, row, r).median for r in able]
        colors = ["#aaaaaa" if r.base else COLORS[i % len(COLORS)] for i, r in enumerate(able)]
        drawn = axes.barh([r.name for r in able], values, color=colors)
        axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
        limit = target.get("limit", target.get("at_least"))
        if limit is not None:
            axes.axvline(limit, color="#222222", linewidth=2)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_title(f"{target.get('about', row)} ({target.get('unit', '')})", fontsize=8, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
