"""The raster of the kinks that a flow met: units against time, layer by layer."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gflow.arguments import ArgumentError, Described
from gflow.kink_log import KinkLog
from gflow.nonsmooth import KinkKind
from gflow.plots.style import ACTIVE, NEGATIVE, new_axes
from gflow.trajectory import Trajectory, single_trajectory

# Marker and colour.
_KINK_STYLES = {
    KinkKind.CROSS_TO_ACTIVE: ("|", "#9aa5b1"),
    KinkKind.CROSS_TO_INACTIVE: ("|", "#5c6975"),
    KinkKind.SLIDE_BEGINS: ("o", ACTIVE),
    KinkKind.SLIDE_ENDS_TO_ACTIVE: ("^", NEGATIVE),
    KinkKind.SLIDE_ENDS_TO_INACTIVE: ("v", NEGATIVE),
    KinkKind.UNIT_DEGENERATES: ("X", "black"),
    KinkKind.SLIDE_BRANCHES: ("*", NEGATIVE),
}
# About so many units are numbered.
_NUMBERED = 12


class _UnitLines(NamedTuple):
    """The line of each kink, and the first line of each layer, with that above the last."""

    of_kinks: Int[np.ndarray, " kinks"]
    firsts: Int[np.ndarray, " layers_and_one"]

    @classmethod
    def of(cls, log: KinkLog) -> "_UnitLines":
        """A line for each unit up to the last one of its layer that met a kink."""
        layer, unit = np.asarray(log.layer), np.asarray(log.unit)
        layers = range(layer.max(initial=0) + 1)
        widths = [int(unit[layer == k].max(initial=0)) + 1 for k in layers]
        firsts = np.cumsum([0, *widths])
        return cls(unit + firsts[layer], firsts)


def kinks(trajectory: Trajectory, *, ax: Axes | None = None) -> Axes:
    """The kinks along a flow: units against log t, by kind, with the layers above one another and
    the units of each numbered from 0. A red line marks a slide."""
    trajectory = single_trajectory("trajectory", trajectory)
    ax = new_axes(ax)
    log = trajectory.kinks
    if log is None:
        got = Described(f"a {trajectory.kind} whose kinks were not located")
        wanted = "a flow on an `EmpiricalRisk` of a network with kinks, with kinks='locate'"
        raise ArgumentError("trajectory", got, wanted)
    # Kinks at 0 are drawn where the logarithmic axis begins.
    time, saved = np.asarray(log.time), np.asarray(trajectory.ts)
    later = np.append(saved[saved > 0], time[time > 0])
    time = np.maximum(time, later.min(initial=np.inf)) if len(later) else time
    kinds, lines = np.asarray(log.kind), _UnitLines.of(log)
    for slide in log.slides(float(trajectory.ts[-1])):
        line, span = slide.unit + lines.firsts[slide.layer], np.array([slide.begin, slide.end])
        ax.plot(np.maximum(span, time.min()), [line, line], color=ACTIVE, lw=3, alpha=0.4)
    for kind, (marker, colour) in _KINK_STYLES.items():
        those = kinds == kind
        if those.any():
            size, edge = (13, 1.6) if marker == "|" else (7, 0)
            style = {"color": colour, "label": kind.label, "ms": size, "mew": edge, "ls": ""}
            ax.plot(time[those], lines.of_kinks[those], marker, **style)
    changed = "flow_time" in trajectory.observed
    ax.set(xlabel="changed time s" if changed else "flow time t", ylabel="unit")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(lines.firsts) > 2:
        _name_layers(ax, lines.firsts)
    if len(time):
        lowest, highest = lines.of_kinks.min(), lines.of_kinks.max()
        ax.set(xscale="log", ylim=(lowest - 0.6, highest + 0.6))
        ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncol=2)
    return ax


def _name_layers(ax: Axes, firsts: Int[np.ndarray, " layers_and_one"]) -> None:
    """Numbers the units of each layer from 0, and names the layers at the right, as in the log."""
    step = max(1, int(np.ceil(firsts[-1] / _NUMBERED)))
    numbered = [(first, k) for first, end in pairwise(firsts) for k in range(0, end - first, step)]
    ax.set_yticks([first + k for first, k in numbered], [str(k) for _, k in numbered])
    for layer, (first, end) in enumerate(pairwise(firsts)):
        if layer:
            ax.axhline(first - 0.5, color="0.8", lw=0.8)
        place = {"xy": (1.01, (first + end - 1) / 2), "xycoords": ("axes fraction", "data")}
        ax.annotate(f"layer {layer}", **place, va="center", rotation=-90, fontsize="small")
