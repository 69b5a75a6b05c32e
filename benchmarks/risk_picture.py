"""The picture of exact risks: time against width and against rows, error against nodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row

RED, BLUE, GREEN, GREY = "#b5301c", "#2a6f97", "#5d7d3a", "0.35"
# By label: the rows that a curve goes through, and its style. Peers have empty markers.
AGAINST_WIDTH = {
    "PopulationRisk": ({"method": "gflow.PopulationRisk"}, {"color": RED, "marker": "o"}),
    "EmpiricalRisk, $10^6$ rows": (
        {"method": "gflow.EmpiricalRisk", "points": 10**6},
        {"color": RED, "marker": "s", "ls": "--"},
    ),
    "BoxRisk, 2 inputs": ({"method": "gflow.BoxRisk", "inputs": 2}, {"color": BLUE, "marker": "D"}),
    "BoxRisk, 3 inputs": (
        {"method": "gflow.BoxRisk", "inputs": 3},
        {"color": BLUE, "marker": "^", "ls": "--"},
    ),
    "GaussianRisk, 10 inputs": ({"method": "gflow.GaussianRisk"}, {"color": GREEN, "marker": "P"}),
    "Gauss, 1,000 nodes": (
        {"method": "Gauss", "inputs": 1, "points": 1_000},
        {"color": GREY, "marker": "o", "mfc": "white"},
    ),
    "blocks of $10^6$ rows": (
        {"method": "blocks of rows", "inputs": 1, "points": 10**6},
        {"color": GREY, "marker": "s", "mfc": "white", "ls": "--"},
    ),
}
AGAINST_ROWS = {
    "EmpiricalRisk": ({"method": "gflow.EmpiricalRisk"}, {"color": RED, "marker": "s"}),
    "all rows": ({"method": "all rows"}, {"color": GREY, "marker": "o", "mfc": "white"}),
    "blocks of rows": (
        {"method": "blocks of rows"},
        {"color": GREY, "marker": "s", "mfc": "white", "ls": "--"},
    ),
}
RULES = {"Gauss": GREY, "Gauss, split": BLUE}
ERRORS = {"gradient": ("gradient_error", "o", "-"), "risk": ("risk_error", "s", "--")}


def draw(rows: Sequence[Row], width: int, file: Path) -> None:
    """Rows and nodes vary at that width."""
    import matplotlib.pyplot as plt

    rows = [row for row in rows if "error" not in row]
    there = [row for row in rows if row["width"] == width and row["inputs"] == 1]
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 4.6), layout="constrained")
    _times(axes[0], rows, "width", AGAINST_WIDTH)
    axes[0].set(xlabel="width W", title="risk and gradient against width")
    _slopes(axes[0])
    _times(axes[1], there, "points", AGAINST_ROWS)
    axes[1].set(xlabel="rows n", title=f"on data, W = {width}")
    _errors(axes[2], there)
    axes[2].set(xlabel="nodes", ylabel="relative error", title=f"quadrature, W = {width}")
    # The share of the height that a legend takes above the curves.
    for ax, room, place in zip(axes, (0.3, 0.15, 0.0), ("upper left", "upper left", "center")):
        ax.set(xscale="log", yscale="log")
        ax.grid(alpha=0.3, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** room)
        ax.legend(frameon=False, fontsize=8, loc=place, ncols=2)
    figure.savefig(file, dpi=200)
    plt.close(figure)


def _times(ax: Any, rows: Sequence[Row], along: str, curves: dict[str, tuple[Row, dict]]) -> None:
    for label, (wanted, style) in curves.items():
        those = [row for row in rows if all(row.get(key) == a for key, a in wanted.items())]
        points = sorted((row[along], row["ms"] / 1e3) for row in those)
        if points:
            ax.plot(*np.transpose(points), label=label, ms=5, lw=1.4, **style)
    ax.set_ylabel("time of risk and gradient, s")


def _slopes(ax: Any) -> None:
    """Short lines of slope one and two at the foot."""
    ax.set(xscale="log", yscale="log")
    low, high = ax.get_ylim()
    foot = low / 8
    ax.set_ylim(foot / 1.5, high)
    for power, first, last in ((1, 400, 8_000), (2, 5, 20)):
        w = np.array([first, last])
        ax.plot(w, foot * (w / first) ** power, color="0.6", lw=1)
        ax.annotate(
            f"$W^{power}$" if power > 1 else "$W$",
            (last, foot * (last / first) ** power),
            xytext=(3, -2),
            textcoords="offset points",
            color="0.4",
            fontsize=9,
        )


def _errors(ax: Any, rows: Sequence[Row]) -> None:
    exact = [row for row in rows if row["method"] == "gflow.PopulationRisk"]
    for name, (error, marker, line) in ERRORS.items():
        for method, colour in RULES.items():
            points = sorted((row["points"], row[error]) for row in rows if row["method"] == method)
            if points:
                style = {"color": colour, "marker": marker, "ls": line, "mfc": "white"}
                label = f"{method}: {name}"
                ax.plot(*np.transpose(points), label=label, ms=4, lw=1.2, **style)
        for row in exact:
            ax.axhline(row[error], color=RED, ls=line, lw=1.8, label=f"PopulationRisk: {name}")
