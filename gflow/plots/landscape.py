"""The risk around the path of a flow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes

from gflow.arguments import ArgumentError, Described, PyTree
from gflow.indexing import taken
from gflow.plots.scenes import labelled_trajectories
from gflow.plots.style import FLOW, colours_of, new_axes
from gflow.trajectory import Trajectory

_POINTS, _NUM_LEVELS, _BATCH = {1: 401, 2: 101}, 18, 512


def landscape(
    risk: Callable[[Any], Array],
    trajectories: Trajectory | Mapping[str, Trajectory],
    *,
    ax: Axes | None = None,
) -> Axes:
    """The risk as a function of the parameters that move, with the paths of one trajectory, or of
    several by label. A circle marks the start, a dot the end.

    One parameter gives the curve of the risk, two give its level sets. With more parameters, the
    level sets are those in the plane through the end of the first flow in which its path varies
    most; the paths are projected on it. Between two level sets lies the same area.

    **Arguments:** `risk`: the risk of `solve_flow`. `trajectories`: of one network.

    **Raises:** `ArgumentError` for networks of several shapes, and if no parameter moves.
    """
    labelled = labelled_trajectories(trajectories)
    ax = new_axes(ax)
    plane = _Plane.of(labelled)
    paths = {label: plane.coordinates(flow) for label, flow in labelled.items()}
    flows = [label for label, flow in labelled.items() if flow.kind == "flow"]
    sides = _sides([paths[label] for label in flows or paths])
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    steps = jax.device_put(grid.reshape(-1, len(sides)) - plane.origin)
    values = _risks(risk, plane.end, plane.directions, steps)
    values = np.asarray(values, float).reshape(grid.shape[:-1])
    if len(sides) == 1:
        ax.plot(sides[0], values, color="0.6", lw=1.2, zorder=1)
        heights = {label: np.asarray(flow.risk) for label, flow in labelled.items()}
        paths = {k: np.stack([path[:, 0], heights[k]], axis=1) for k, path in paths.items()}
    else:
        levels = np.unique(np.nanquantile(values, np.linspace(0, 1, _NUM_LEVELS + 2)[1:-1]))
        ax.contour(*sides, values.T, levels=levels, colors="0.75", linewidths=0.7, zorder=1)
    _draw_paths(labelled, paths, ax)
    window = {"xlim": sides[0][[0, -1]]} | ({"ylim": sides[1][[0, -1]]} if len(sides) == 2 else {})
    ylabel = plane.names[1] if len(sides) == 2 else "risk L"
    ax.set(xlabel=plane.names[0], ylabel=ylabel, **window)
    return ax


@dataclass(frozen=True)
class _Plane:
    """A line or plane of parameters: `end` and, with a leading axis, `directions` from there.

    `origin`: the coordinates of `end`.
    """

    end: PyTree
    directions: PyTree
    origin: Float[np.ndarray, " axes"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, labelled: Mapping[str, Trajectory]) -> "_Plane":
        thetas = {label: _flat(flow) for label, flow in labelled.items()}
        first = min(labelled, key=lambda label: labelled[label].kind != "flow")
        shapes = {label: _shapes(flow) for label, flow in labelled.items()}
        if other := next((k for k in shapes if shapes[k] != shapes[first]), None):
            got = Described(f"a network in {other!r} of other shapes than in {first!r}")
            raise ArgumentError("trajectories", got, "trajectories of one network")
        theta = thetas[first]
        end, size = theta[-1], theta.shape[1]
        moving = np.zeros(size, bool)
        for path in thetas.values():
            moving |= np.any(path != theta[0], axis=0)
        if not moving.any():
            got = Described("trajectories along which no parameter moves")
            raise ArgumentError("trajectories", got, "a path, for its landscape")
        if moving.sum() <= 2:
            which = np.flatnonzero(moving)
            axes, origin = np.eye(size)[which], end[which]
            names = tuple(_entry_names(labelled[first])[k] for k in which)
        else:
            _, singular, axes = np.linalg.svd(theta - end, full_matrices=False)
            fractions = (singular**2 / np.sum(singular**2))[:2]
            axes, origin = axes[:2], np.zeros(len(axes[:2]))
            order = ("first", "second")
            names = tuple(f"{o} principal direction ({p:.1%})" for o, p in zip(order, fractions))
        net = taken(labelled[first].params, len(theta) - 1)
        return cls(net, _unflattened(net, axes), origin, names)

    def coordinates(self, trajectory: Trajectory) -> Float[np.ndarray, "times axes"]:
        """Those of the projections of a path."""
        axes = np.concatenate(
            [np.asarray(a).reshape(len(a), -1) for a in jax.tree.leaves(self.directions)], axis=1
        )
        ends = jax.tree.leaves(eqx.filter(self.end, eqx.is_inexact_array))
        end = np.concatenate([np.ravel(np.asarray(a)) for a in ends])
        return self.origin + (_flat(trajectory) - end) @ axes.T


def _floats(trajectory: Trajectory) -> list[Any]:
    return jax.tree.leaves(eqx.filter(trajectory.params, eqx.is_inexact_array))


def _shapes(trajectory: Trajectory) -> list[tuple[int, ...]]:
    return [a.shape[1:] for a in _floats(trajectory)]


def _flat(trajectory: Trajectory) -> Float[np.ndarray, "times parameters"]:
    arrays = [np.asarray(a) for a in _floats(trajectory)]
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


def _entry_names(trajectory: Trajectory) -> list[str]:
    """The name of each parameter, such as w[0, 1]."""
    floats = eqx.filter(trajectory.params, eqx.is_inexact_array)
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(floats):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "θ"
        places = np.ndindex(leaf.shape[1:])
        names += [f"{name}[{', '.join(map(str, place))}]" if place else name for place in places]
    return names


def _unflattened(net: PyTree, axes: Float[np.ndarray, "axes parameters"]) -> PyTree:
    """The axes as trees of the floats of the network, each array with a leading axis."""
    leaves, structure = jax.tree.flatten(eqx.filter(net, eqx.is_inexact_array))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [part.reshape(-1, *leaf.shape) for part, leaf in zip(np.split(axes, ends, 1), leaves)]
    return structure.unflatten([a.astype(leaf.dtype) for a, leaf in zip(parts, leaves)])


def _sides(paths: list[np.ndarray]) -> list[np.ndarray]:
    """The points of each axis of the landscape, around these paths."""
    together = np.concatenate(paths)
    together = together[np.isfinite(together).all(axis=1)]
    low, high = together.min(axis=0), together.max(axis=0)
    reach = (high - low).max() or 1.0
    margin = 0.25 * np.maximum(high - low, 0.1 * reach)
    count = _POINTS[together.shape[1]]
    return [np.linspace(a - m, b + m, count) for a, b, m in zip(low, high, margin)]


@eqx.filter_jit
def _risks(
    risk: Any, end: PyTree, directions: PyTree, steps: Float[Array, "points axes"]
) -> Float[Array, " points"]:
    """The risk at each end + Σ steps · directions, some at a time."""
    floats, rest = eqx.partition(end, eqx.is_inexact_array)

    def at(step):
        moved = lambda a, d: a + jnp.tensordot(step.astype(d.dtype), d, 1)
        return risk(eqx.combine(jax.tree.map(moved, floats, directions), rest))

    return jax.lax.map(at, steps, batch_size=_BATCH)


def _draw_paths(labelled: Mapping[str, Trajectory], paths: dict[str, Any], ax: Axes) -> None:
    colours = colours_of({label: flow.kind for label, flow in labelled.items()})
    for label, path in paths.items():
        colour, descent = colours.get(label, FLOW), labelled[label].kind != "flow"
        style = {"lw": 0.7, "marker": ".", "ms": 3} if descent else {"lw": 1.4, "zorder": 3}
        ax.plot(*path.T, label=label, color=colour, **style)
        ax.plot(*path[0], "o", color=colour, mfc="white", ms=4.5, zorder=4)
        ax.plot(*path[-1], "o", color=colour, ms=4.5, zorder=4)
    if len(labelled) > 1:
        ax.legend(framealpha=0.9, edgecolor="none", fontsize="small").set_zorder(5)
