"""The picture of late times: seconds against the horizon, and error against seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Row
from benchmarks.work_precision import failures, panel, styles_of

# Colour and marker by solver, as (in the rows, in the legend, colour, marker).
SOLVERS = (
    ("gflow", "gflow's choice", "#b5301c", "o"),
    ("gflow Rodas5P", "gflow Rodas5P", "#d99a2b", "D"),
    ("diffrax Tsit5", "diffrax Tsit5", "#2a6f97", "s"),
    ("diffrax Kvaerno5", "diffrax Kvaerno5", "#5d7d3a", "^"),
)
LINES = ("-", "--", ":")
# Solvers of gflow beside its choice.
OTHERS = {"gflow BDF5": "#e0662f", "gflow Rodas5P": "#d99a2b", "gflow ROCK4": "#8a2f66"}


def draw(
    rows: Sequence[Row],
    horizons: Mapping[str, str],
    precisions: Mapping[str, str],
    limit: float,
    file: str,
) -> None:
    """A panel for all flows of `horizons`, and one for each of `precisions`; by name, with what the
    picture calls them."""
    import matplotlib.pyplot as plt

    number = 1 + len(precisions)
    size = (5.2 * number, 5.4)
    figure, axes = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
    first, *others = axes[0]
    _horizons(first, [row for row in rows if row["study"] == "horizon"], horizons, limit)
    late = [row for row in rows if row["study"] == "precision"]
    styles = dict(styles_of(late))
    for name in OTHERS.keys() & styles.keys():
        styles[name] |= {"color": OTHERS[name], "mfc": OTHERS[name], "lw": 1.6, "ms": 6}
    for ax, (name, title) in zip(others, precisions.items()):
        here = [row for row in late if row["problem"] == name]
        panel(ax, here, "run_s", styles)
        failures(ax, here, styles, f"no result\nwithin {limit:g} s")
        ax.set_title(title, fontsize="medium")
        ax.set(xlabel="time, s (without compilation)")
        ax.set(ylabel="relative error of the final parameters")
        ax.axhline(1e-6, color="0.5", lw=0.8, ls=":")
    lines, names = others[0].get_legend_handles_labels() if others else ([], [])
    figure.legend(lines, names, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    figure.savefig(file, dpi=200)
    plt.close(figure)


def _horizons(ax: Any, rows: Sequence[Row], names: Mapping[str, str], limit: float) -> None:
    """Colours are solvers, lines are flows; a cross stands where a solver came no further."""
    for k, (solver, label, colour, marker) in enumerate(SOLVERS):
        style = {"color": colour, "marker": marker, "ms": 5, "lw": 1.6}
        ax.plot([], [], label=label, **style)
        for name, line in zip(names, LINES):
            own = [row for row in rows if (row["method"], row["problem"]) == (solver, name)]
            good = [(row["t1"], row["run_s"]) for row in own if "error" not in row]
            if good:
                ax.plot(*np.transpose(good), ls=line, **style)
            failed = [row["t1"] for row in own if "error" in row]
            if failed:
                # Side by side where several come no further.
                t = failed[0] * 1.3 ** (k - 2.5)
                start = good[-1] if good else (t, limit)
                ax.plot([start[0], t], [start[1], limit], ls=line, color=colour, lw=1.0)
                ax.plot(t, limit, "x", color=colour, ms=8, mew=1.6)
    for name, line in zip(names, LINES):
        ax.plot([], [], color="0.2", ls=line, label=names[name])
    ax.plot([], [], "x", color="0.2", ms=8, mew=1.6, label=f"not within {limit:g} s")
    ax.set(xscale="log", yscale="log", xlabel="horizon t", title="rtol $10^{-8}$")
    ax.set_ylabel("time, s (without compilation)")
    ax.title.set_fontsize("medium")
    ax.grid(alpha=0.3, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    low, high = ax.get_ylim()
    # Room for the legend above the curves.
    ax.set_ylim(low, high * (high / low) ** 0.45)
    ax.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
