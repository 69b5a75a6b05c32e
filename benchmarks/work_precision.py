"""The pictures of work and precision: error against time and against field evaluations, and the
fronts of the fastest runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import Row

# Colours by family, as (family, colour, line width); markers by solver.
FAMILIES = (
    ("gflow", "#b5301c", 2.6),
    ("diffrax", "#2a6f97", 1.0),
    ("SciPy", "#5d7d3a", 1.0),
    ("CVODE", "#8c6bb1", 1.0),
    ("torchdiffeq", "#b8860b", 1.0),
    ("RK4", "0.35", 1.0),
    ("descent", "#b8860b", 1.0),
)
MARKERS = "osD^vPX*<>"
QUANTITIES = {
    "run_s": "time, s (without compilation)",
    "field_evaluations": "evaluations of the field",
}


def draw(rows: Sequence[Row], titles: Mapping[str, str], limit: float, file: Path) -> None:
    """A column for each problem, with its title. The margin counts the runs without a result."""
    import matplotlib.pyplot as plt

    styles = dict(styles_of(rows))
    figure, axes = plt.subplots(
        len(QUANTITIES),
        len(titles),
        figsize=(4.4 * len(titles), 7.4),
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for column, (problem, title) in zip(axes.T, titles.items()):
        here = [row for row in rows if row["problem"] == problem]
        for ax, (quantity, label) in zip(column, QUANTITIES.items()):
            panel(ax, here, quantity, styles)
            ax.set_xlabel(label)
        failures(column[0], here, styles, f"no result\nwithin {limit:g} s")
        column[0].set_title(title, fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("relative error of the final parameters")
    lines, names = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": min(len(names), 7), "frameon": False}
    figure.legend(lines, names, **place)
    figure.savefig(file, dpi=200)
    plt.close(figure)


def styles_of(rows: Sequence[Row]) -> Iterator[tuple[str, dict]]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for family, colour, width in FAMILIES:
        members = [name for name in methods if name.split()[0] == family]
        for name, marker in zip(members, MARKERS):
            ours = family == "gflow"
            yield (
                name,
                {
                    "color": colour,
                    "lw": width,
                    "marker": marker,
                    "ms": 7 if ours else 5,
                    "mfc": colour if ours else "white",
                    "zorder": 3 if ours else 2,
                },
            )


def panel(ax, rows: Sequence[Row], quantity: str, styles: dict[str, dict]) -> None:
    for name, style in styles.items():
        points = [(row[quantity], row["distance"]) for row in rows if _shown(row, name, quantity)]
        x, y = np.reshape(points, (-1, 2)).T
        ax.plot(x, y, label=name, **style)
    ax.set(xscale="log", yscale="log")
    _widen(ax)
    ax.grid(alpha=0.3, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _widen(ax) -> None:
    """Whole decades in time and evaluations, so that the panels can be read alike."""
    low, high = ax.get_xlim()
    ax.set_xlim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    ax.xaxis.set_minor_formatter("")


def _shown(row: Row, method: str, quantity: str) -> bool:
    return row["method"] == method and "error" not in row and quantity in row


def failures(ax, rows: Sequence[Row], styles: dict[str, dict], heading: str) -> None:
    """The runs without a result, counted by solver, at the right edge."""
    counts = []
    for name in styles:
        own = [row for row in rows if row["method"] == name]
        failed = sum("error" in row for row in own)
        if failed:
            counts.append((name, failed, len(own)))
    if not counts:
        return
    place = {"transform": ax.transAxes, "fontsize": 8, "va": "center", "clip_on": False}
    ax.text(1.02, 0.97, heading, **place)
    for k, (name, failed, tried) in enumerate(counts):
        style = place | {"color": styles[name]["color"]}
        height = 0.88 - 0.06 * k
        ax.text(1.02, height, "×", **style | {"fontsize": 13})
        ax.text(1.08, height, f"{name.split(maxsplit=1)[-1]}: {failed} of {tried}", **style)


def fastest(rows: Sequence[Row], error: float) -> Row | None:
    """The fastest run with at most this error."""
    within = [row for row in rows if row.get("distance", np.inf) <= error and "run_s" in row]
    return min(within, key=lambda row: row["run_s"], default=None)


def draw_fronts(rows: Sequence[Row], titles: Mapping[str, str], file: Path) -> None:
    """A panel for each problem: every run, and the Pareto fronts of gflow and of all others."""
    import matplotlib.pyplot as plt

    styles = dict(styles_of(rows))
    across = min(len(titles), 3)
    down = -(-len(titles) // across)
    size = (4.4 * across, 3.9 * down + 0.5)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(titles) :]:
        ax.set_axis_off()
    for ax, (problem, title) in zip(axes.flat, titles.items()):
        here = [row for row in rows if row["problem"] == problem]
        panel(
            ax, here, "run_s", {name: style | {"lw": 0, "ms": 5} for name, style in styles.items()}
        )
        for family, colour, width in (("gflow", FAMILIES[0][1], 2.6), ("the peers", "0.3", 1.4)):
            own = [
                row for row in here if (row["method"].split()[0] == "gflow") == (family == "gflow")
            ]
            x, y = np.reshape(front(own), (-1, 2)).T
            label = f"front of {family}"
            ax.step(x, y, where="post", color=colour, lw=width, zorder=1, label=label)
        ax.set_title(title, fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("relative error of the final parameters")
    for ax in axes[-1]:
        ax.set_xlabel(QUANTITIES["run_s"])
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=200)
    plt.close(figure)


def front(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Time and error of the runs that no other beats in both, from fast to accurate."""
    front: list[tuple[float, float]] = []
    there = [row for row in rows if "error" not in row]
    for time, error in sorted((row["run_s"], row["distance"]) for row in there):
        if not front or error < front[-1][1]:
            front.append((time, error))
    return front
