"""The colours of all figures, and the axes they are drawn into."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gflow.trajectory import Trajectory

FLOW = "black"
ACTIVE, NEGATIVE = "#c44536", "#2a6f97"


def new_axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def colours(count: int) -> np.ndarray:
    """Colours from light (first) to dark (last)."""
    return plt.get_cmap("viridis_r")(np.linspace(0.15, 0.95, max(count, 1)))


def colours_of(kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The colours of trajectories by label, from their kinds; a flow that is the only one has
    none, since it is black."""
    flows = [label for label, kind in kinds.items() if kind == "flow"]
    others = [label for label in kinds if flows != [label]]
    return dict(zip(others, colours(len(others))))


def flow_times(trajectory: Trajectory) -> np.ndarray:
    """The times of gradient flow, also of a flow in another time."""
    return np.asarray(trajectory.observed.get("flow_time", trajectory.ts))


def space_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis of few decades at 1, 2 and 5, in plain numbers, and one of many at
    powers of ten alone, so that no labels touch."""
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_formatter(NullFormatter())
    if axis.get_scale() == "log" and 0 < low < high and np.log10(high / low) < 1.7:
        few = np.log10(high / low) < 0.5
        axis.set_major_locator(LogLocator(subs=range(1, 10) if few else (1, 2, 5), numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
