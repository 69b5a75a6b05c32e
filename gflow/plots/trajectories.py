"""Figures of trajectories and of their comparisons."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.ticker import NullLocator

from gflow.arguments import ArgumentError, Described
from gflow.comparison import Comparison
from gflow.convergence import ConvergenceOrder
from gflow.indexing import taken
from gflow.networks import ShallowNet
from gflow.piecewise import PiecewisePolynomial
from gflow.plots.style import (
    ACTIVE,
    FLOW,
    NEGATIVE,
    colours_of,
    flow_times,
    new_axes,
    space_ticks,
)
from gflow.plots.views import curve_of, num_inputs, values_along
from gflow.trajectory import Trajectory, single_trajectory

# From so many descents on, a legend with all of them would cover the figure.
_CROWDED = 11


class _Curve(NamedTuple):
    ts: Any
    values: Any
    kind: str


def _labelled(items: Any, label: str) -> dict[str, Any]:
    if isinstance(items, (list, tuple)):
        name = "comparisons" if label == "descent" else "trajectories"
        got = Described(f"a {type(items).__name__} of {len(items)}")
        raise ArgumentError(name, got, "one, or several by label, such as {'h = 0.1': one}")
    return dict(items) if isinstance(items, Mapping) else {label: items}


def _trajectories(items: Any) -> dict[str, Trajectory]:
    labelled = _labelled(items, "flow")
    return {name: single_trajectory("trajectories", t) for name, t in labelled.items()}


def _legend_labels(coloured: Collection[str]) -> dict[str, str]:
    """The labels in the legend, in which a line that begins with "_" does not appear.

    Of many every second one appears, and the last. Colours tell where the others are.
    """
    every, names = 1 if len(coloured) < _CROWDED else 2, list(coloured)
    shown = {*names[::every], *names[-1:]}
    return {name: name if name in shown else f"_{name}" for name in names}


def _along_time(curves: dict[str, _Curve], ax: Axes, ylabel: str, *, coincide: bool = True) -> Axes:
    """Curves of positive values against flow time on logarithmic axes.

    Curves that may `coincide` remain visible: later ones are narrower and in front, and a flow that
    is the only one is in front of all.
    """
    colours = colours_of({name: curve.kind for name, curve in curves.items()})
    labels = _legend_labels(colours)
    widest = 1.4 + coincide * min(0.5 * len(colours), 2.0)
    widths = dict(zip(colours, np.linspace(widest, 1.4, len(colours))))
    for name, curve in curves.items():
        ts, values = np.asarray(curve.ts), np.asarray(curve.values)
        # Divergence to 1e300 would flatten everything else.
        shown = (ts > 0) & np.isfinite(values) & (values > 0)
        label = labels.get(name, name)
        style = {"color": colours.get(name), "label": label, "lw": widths.get(name)}
        if name not in colours:
            style |= {"color": FLOW, "lw": 1.1, "ls": (0, (6, 3)), "zorder": 3}
        ax.plot(ts[shown], values[shown], **style)
    ax.set(xlabel="flow time t", ylabel=ylabel)
    if any(np.size(line.get_xdata()) for line in ax.lines):
        ax.set(xscale="log", yscale="log")
        space_ticks(ax.yaxis)
    else:
        ax.text(0.5, 0.5, "no positive values yet", transform=ax.transAxes, ha="center")
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize="small")
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def risk(
    trajectories: Trajectory | Mapping[str, Trajectory],
    *,
    limit: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """L(θ(t)) − `limit` against t, for one trajectory, or for several by label."""
    curves = {
        name: _Curve(flow_times(t), np.asarray(t.risk) - limit, t.kind)
        for name, t in _trajectories(trajectories).items()
    }
    ax = _along_time(curves, new_axes(ax), "risk L" if limit == 0 else f"L − {limit:.4g}")
    top = max((float(curve.values[0]) for curve in curves.values()), default=1.0)
    if ax.get_ylim()[1] > 1e3 * top > 0:
        ax.set_ylim(top=10 * top)
    return ax


def grad_norm(
    trajectories: Trajectory | Mapping[str, Trajectory], *, ax: Axes | None = None
) -> Axes:
    """‖G(θ(t))‖ against t, for one trajectory, or for several by label."""
    labelled = _trajectories(trajectories)
    curves = {name: _Curve(flow_times(t), t.grad_norm, t.kind) for name, t in labelled.items()}
    return _along_time(curves, new_axes(ax), "gradient norm ‖G‖")


def distance(comparisons: Comparison | Mapping[str, Comparison], *, ax: Axes | None = None) -> Axes:
    """‖θ_descent(t) − θ_flow(t)‖ against t, for one comparison, or for several by label."""
    labelled = _labelled(comparisons, "descent")
    curves = {name: _Curve(c.ts, c.distance, "descent") for name, c in labelled.items()}
    return _along_time(curves, new_axes(ax), "distance to the flow", coincide=False)


def order(observed: ConvergenceOrder, *, ax: Axes | None = None) -> Axes:
    """Distances against step size, with a line of slope 1. Open circles are descents that part from
    the flow; their distances are those before."""
    ax = new_axes(ax)
    h, d = np.array(observed.step_sizes), np.array(observed.distances)
    reach = np.array([h.min(), h.max()])
    level = np.exp(np.median(np.log(d / h)))
    ax.plot(reach, level * reach, color="0.6", lw=1, label="slope 1", zorder=1)
    low, high = observed.interval
    label = f"order {observed.value:.3f} ({low:.3f} to {high:.3f})"
    parted = np.isin(h, [parting.step_size for parting in observed.partings])
    ax.plot(h[~parted], d[~parted], "o", color=FLOW, label=label)
    if parted.any():
        ax.plot(h[parted], d[parted], "o", color=FLOW, mfc="none", label="part from the flow")
    ax.set(xscale="log", yscale="log", xlabel="step size h", ylabel="typical distance to the flow")
    shown = _spread(h)
    ax.set_xticks(shown, [f"{size:.2g}" for size in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    space_ticks(ax.yaxis)
    ax.legend(frameon=False, fontsize="small")
    ax.grid(alpha=0.25, lw=0.6, which="both")
    return ax


def _spread(sizes: np.ndarray) -> list[float]:
    """The step sizes, largest first, without those whose labels would touch."""
    reach, shown = np.log(sizes.max() / sizes.min()), []
    for size in np.sort(sizes)[::-1]:
        if not shown or np.log(shown[-1] / size) > 0.14 * reach:
            shown.append(float(size))
    return shown


def observed(
    trajectories: Trajectory | Mapping[str, Trajectory], name: str, *, ax: Axes | None = None
) -> Axes:
    """A quantity that was observed against t, for one trajectory, or for several by label. The
    entries of a vector are one line each.

    The axis of the quantity is logarithmic if all of its values are positive.
    """
    ax = new_axes(ax)
    labelled = _labelled(trajectories, "flow")
    for label, trajectory in labelled.items():
        if name not in trajectory.observed:
            known = ", ".join(map(repr, trajectory.observed)) or "none were observed"
            raise ArgumentError("name", name, f"a quantity of {label}: {known}")
    colours = colours_of({label: t.kind for label, t in labelled.items()})
    labels = _legend_labels(colours)
    smallest = np.inf
    for label, trajectory in labelled.items():
        ts, values = flow_times(trajectory), np.asarray(trajectory.observed[name])
        values = values.reshape(len(ts), -1)[ts > 0]
        smallest = min(smallest, values.min(initial=np.inf))
        style = {"color": colours.get(label, FLOW), "lw": 1.3}
        if label not in colours:
            style |= {"ls": (0, (6, 3)), "zorder": 3}
        for line in ax.plot(ts[ts > 0], values, **style)[:1]:
            line.set_label(labels.get(label, label))
    ax.set(xscale="log", xlabel="flow time t", ylabel=name)
    if smallest > 0:
        ax.set_yscale("log")
        space_ticks(ax.yaxis)
    if len(labelled) > 1:
        ax.legend(frameon=False, fontsize="small")
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def breakpoints(trajectory: Trajectory, x: Any, *, ax: Axes | None = None) -> Axes:
    """The paths of the kinks −b_i/w_i in input space, for a network with one input.

    The data `x` are horizontal lines; during a slide a path lies on one of them. Paths are coloured
    by the sign of v_i at the end.
    """
    trajectory = single_trajectory("trajectory", trajectory)
    ax = new_axes(ax)
    net = trajectory.params
    if not isinstance(net, ShallowNet) or net.in_size != 1 or net.b is None or np.ndim(net.v) != 2:
        wanted = "one of a ShallowNet with one input, biases and scalar output"
        raise ArgumentError("trajectory", Described("another trajectory"), wanted)
    ts, x = flow_times(trajectory), np.ravel(np.asarray(x))
    w, b = np.asarray(net.w)[:, :, 0], np.asarray(net.b)
    with np.errstate(divide="ignore", invalid="ignore"):
        paths = np.where(w != 0, -b / w, np.nan)
    for place in np.unique(x):
        ax.axhline(place, color="0.9", lw=0.7, zorder=0)
    up = np.asarray(net.v)[-1] > 0
    for those, colour, text in ((up, ACTIVE, "v > 0"), (~up, NEGATIVE, "v < 0")):
        for line in ax.plot(ts, paths[:, those], color=colour, lw=1.1)[:1]:
            line.set_label(text)
    margin = 0.15 * np.ptp(x)
    ax.set(ylim=(x.min() - margin, x.max() + margin), xlabel="flow time t", ylabel="kink −b/w")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncol=2)
    if (ts > 0).any():
        ax.set_xscale("log")
    return ax


def learned_function(
    trajectory: Trajectory,
    x: Any = None,
    y: Any = None,
    *,
    target: PiecewisePolynomial | None = None,
    density: PiecewisePolynomial | None = None,
    num_curves: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """N(x) of a network with one input at logarithmic times, coloured by time.

    **Arguments:**

    - `x`, shape (n,) or (n, 1), and `y`, shape (n,): the data, drawn as dots.
    - `target`: drawn as a line. `density`: drawn below the curves.
    """
    trajectory = single_trajectory("trajectory", trajectory)
    if (inputs := num_inputs(trajectory, None)) != 1:
        got = Described("another network" if inputs is None else f"a network of {inputs} inputs")
        wanted = "a network of one input; for more, `unit_directions` or `explore`"
        raise ArgumentError("trajectory", got, wanted)
    ax = new_axes(ax)
    x = None if x is None else np.ravel(np.asarray(x))
    low, high = (-1.0, 1.0) if target is None else target.interval
    low, high = (low, high) if x is None else (x.min(), x.max())
    margin = 0.04 * (high - low)
    grid = np.linspace(low - margin, high + margin, 601).astype(np.asarray(trajectory.risk).dtype)
    ts = flow_times(trajectory)
    if not (ts > 0).any():
        ts = np.array([1.0])  # only the start was saved
    first = max(ts[-1] * 1e-4, ts[ts > 0][0])
    wanted = np.geomspace(first, ts[-1], num_curves)
    shown = np.unique(np.append(0, np.abs(ts[:, None] - wanted).argmin(axis=0)))
    norm, colours = LogNorm(first, ts[-1]), plt.get_cmap("viridis_r")
    values = values_along(taken(trajectory.params, shown), np.tile(grid, (len(shown), 1)))
    if values.ndim != 2:
        raise ArgumentError("trajectory", Described("vector output"), "a network of scalar output")
    if x is not None and y is not None:
        ax.plot(x, np.asarray(y), ".", color="0.55", ms=5, label="data", zorder=1)
    for index, curve in zip(shown, values):
        if index == 0:
            ax.plot(grid, curve, color="0.75", lw=1.2, ls=":", label="start")
        else:
            ax.plot(grid, curve, color=colours(norm(ts[index])), lw=1.3)
    for function, draw in ((target, _draw_target), (density, _draw_density)):
        if function is not None:
            draw(function, ax)
    ax.set(xlabel="x", ylabel="N(x)")
    ax.legend(frameon=False, fontsize="small")
    ax.figure.colorbar(ScalarMappable(norm, colours), ax=ax, label="flow time t")
    return ax


def _draw_target(target: PiecewisePolynomial, ax: Axes) -> None:
    ax.plot(*curve_of(target).T, color="0.1", lw=1.6, ls=(0, (4, 2)), label="target")


def _draw_density(density: PiecewisePolynomial, ax: Axes) -> None:
    grid = np.linspace(*density.interval, 401)
    height = np.asarray(density(grid))
    foot, top = ax.get_ylim()
    foot -= 0.15 * (top - foot)
    shape = foot + 0.13 * (top - foot) * height / height.max()
    ax.fill_between(grid, foot, shape, color="0.85", label="density")
    ax.set_ylim(foot, top)


def unit_directions(trajectory: Trajectory, features: Any = (), *, ax: Axes | None = None) -> Axes:
    """The paths of the hidden units |v_i| w_i, projected on their two leading principal directions
    at the end. A dot marks the end of each path, coloured by the sign of v_i.

    `features`: names of the inputs. The six inputs with the longest projections are drawn as lines.
    """
    trajectory = single_trajectory("trajectory", trajectory)
    ax = new_axes(ax)
    net = trajectory.params
    if not isinstance(net, ShallowNet) or np.ndim(net.v) != 2 or net.in_size < 2:
        wanted = "one of a ShallowNet with two or more inputs and scalar output"
        raise ArgumentError("trajectory", Described("another trajectory"), wanted)
    w, v = np.asarray(net.w), np.asarray(net.v)
    units = np.abs(v)[..., None] * w
    _, singular, axes = np.linalg.svd(units[-1], full_matrices=False)
    fractions = singular**2 / np.sum(singular**2)
    paths = units @ axes[:2].T
    reach = 1.08 * np.abs(paths).max()
    colours = [to_rgba(ACTIVE if sign > 0 else NEGATIVE) for sign in v[-1]]
    lines = LineCollection(list(paths.swapaxes(0, 1)), colors=colours, lw=0.8, alpha=0.55)
    ax.add_collection(lines)
    for sign, colour, text in ((1, ACTIVE, "v > 0"), (-1, NEGATIVE, "v < 0")):
        those = np.sign(v[-1]) == sign
        ax.plot(*paths[-1, those].T, "o", ms=4.5, color=colour, label=text)
    inputs = axes[:2].T
    for k in np.argsort(-np.linalg.norm(inputs, axis=1))[: 6 if len(features) else 0]:
        tip = inputs[k] / np.linalg.norm(inputs, axis=1).max() * 0.85 * reach
        ax.plot(*np.stack([0 * tip, tip], axis=1), color="0.8", lw=0.9, zorder=0)
        x, y = 1.06 * tip
        ax.text(x, y, str(features[k]), color="0.45", fontsize="small", ha="center", va="center")
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set_xlabel(f"first principal direction ({fractions[0]:.0%})")
    ax.set_ylabel(f"second principal direction ({fractions[1]:.0%})")
    ax.legend(frameon=False, fontsize="small")
    ax.grid(alpha=0.25, lw=0.6)
    return ax
