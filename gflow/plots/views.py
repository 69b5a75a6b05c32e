"""What is seen of a network at each frame of a page to watch or of a movie: its function, its
units, or the norms of its parameters."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from numpy.polynomial.polynomial import polyval

from gflow.activations import PiecewiseLinear
from gflow.arguments import ArgumentError, Described, PyTree
from gflow.indexing import taken
from gflow.networks import ShallowNet
from gflow.piecewise import PiecewisePolynomial
from gflow.trajectory import Trajectory

# Corners are drawn besides, where they are known.
_NUM_PLACES = 161
# Of more outputs, and of more arrays of parameters, the first ones are seen.
_MOST_OUTPUTS, _MOST_ARRAYS = 4, 12


class Extent(NamedTuple):
    """An interval of inputs or of values."""

    low: float
    high: float

    @classmethod
    def of(cls, *arrays: Any) -> "Extent":
        """From the smallest to the largest finite entry; (−1, 1) if there is none."""
        entries = np.concatenate([np.ravel(np.asarray(a, float)) for a in arrays])
        entries = entries[np.isfinite(entries)]
        return cls(float(entries.min()), float(entries.max())) if len(entries) else cls(-1.0, 1.0)

    def widened(self, fraction: float) -> "Extent":
        """Longer by this fraction at each end; never of length 0."""
        margin = fraction * (self.high - self.low) or 0.1 * abs(self.low) or 1.0
        return Extent(self.low - margin, self.high + margin)


class Breakpoints(NamedTuple):
    """The breakpoints of N(x), one for each unit: the place −b/w, the height N there, and the jump
    of the slope N'. `inside`: how many places there are in the span of the data, of all units."""

    places: Float[np.ndarray, "frames units"]
    heights: Float[np.ndarray, "frames units"]
    jumps: Float[np.ndarray, "frames units"]
    inside: Int[np.ndarray, " frames"]


@dataclass(frozen=True)
class FunctionView:
    """N(x) at places along the span of the data, and its breakpoints if all are known."""

    places: Float[np.ndarray, " places"]
    values: Float[np.ndarray, "frames places outputs"]
    breakpoints: Breakpoints | None
    note: str = ""


@dataclass(frozen=True)
class UnitView:
    """A point in the plane for each hidden unit, with its output weight (its norm if there are
    several outputs).

    - `normalised`: whether points are w/|w|, for two inputs, or else |v| w on two principal axes.
    - `lengths`: |v| |w|. `axes`: names of the coordinates.
    """

    points: Float[np.ndarray, "frames units two"]
    weights: Float[np.ndarray, "frames units"]
    lengths: Float[np.ndarray, "frames units"]
    normalised: bool
    axes: tuple[str, str]
    note: str = ""


@dataclass(frozen=True)
class NormView:
    """The Euclidean norms of the arrays of parameters, by name."""

    names: tuple[str, ...]
    norms: Float[np.ndarray, "frames arrays"]
    note: str = ""


View: TypeAlias = FunctionView | UnitView | NormView


class Viewer:
    """Makes the views of several trajectories, on the same axes.

    `span`: of the inputs, if there is one input. `columns`: of the data, if there are data.
    `most_units`: of more units, those with the largest output weights times input weights on the
    way are seen.
    """

    def __init__(self, span: Extent, columns: int | None, most_units: int):
        self.span, self.columns, self.most_units = span, columns, most_units
        self._axes: dict[int, _Principal] = {}
        self._bounds: dict[str, float] = {}

    def view(self, trajectory: Trajectory, rows: Int[np.ndarray, " frames"]) -> View:
        """What is seen of the trajectory at these of its saved times."""
        nets = trajectory.params
        shallow = isinstance(nets, ShallowNet)
        if num_inputs(trajectory, self.columns) == 1:
            return self._function(trajectory, rows)
        if shallow and nets.in_size >= 2:
            return self._units(taken(nets, rows))
        return _norms(taken(nets, rows))

    def _function(self, trajectory: Trajectory, rows: Int[np.ndarray, " frames"]) -> FunctionView:
        margin = self.span.widened(0.04)
        places = np.linspace(*margin, _NUM_PLACES)
        nets = taken(trajectory.params, rows)
        at, found, note = np.tile(places, (len(rows), 1)), None, ""
        if isinstance(nets, ShallowNet) and isinstance(nets.activation, PiecewiseLinear):
            found, note = self._breakpoints(nets, nets.activation.negative_slope)
            within = np.clip(np.nan_to_num(found.places, nan=margin.low), *margin)
            at = np.concatenate([at, within], axis=1)
        at = at.astype(np.asarray(trajectory.risk).dtype)
        values = values_along(nets, at).astype(float).reshape(*at.shape, -1)
        if values.shape[2] > _MOST_OUTPUTS:
            note = f"{note} The first {_MOST_OUTPUTS} of {values.shape[2]} outputs.".strip()
        if found is not None:
            outside = (found.places < margin.low) | ~(found.places <= margin.high)
            heights = np.where(outside, np.nan, values[:, _NUM_PLACES:, 0])
            found = found._replace(heights=heights)
        return FunctionView(places, values[:, :_NUM_PLACES, :_MOST_OUTPUTS], found, note)

    def _breakpoints(self, nets: ShallowNet, slope: float) -> tuple[Breakpoints, str]:
        w, v = np.asarray(nets.w, float)[:, :, 0], np.asarray(nets.v, float)
        b = np.zeros_like(w) if nets.b is None else np.asarray(nets.b, float)
        v = v if v.ndim == 2 else np.linalg.norm(v, axis=2)
        with np.errstate(all="ignore"):
            jumps = (1 - slope) * nets.output_scale * v * np.abs(w)
            places = np.where(w != 0, -b / w, np.nan)
        inside = (places >= self.span.low) & (places <= self.span.high) & (jumps != 0)
        # Units that slide at one row share their place, up to roundings.
        rounding = 1e-9 * (self.span.high - self.span.low)
        shared = np.sort(np.where(inside, places, np.inf), axis=1)
        with np.errstate(invalid="ignore"):
            new = np.diff(shared, axis=1, prepend=-np.inf) > rounding
        count = np.sum(new & np.isfinite(shared), axis=1)
        kept, note = self._largest(jumps)
        jumps, places = jumps[:, kept], places[:, kept]
        jumps, unknown = self._bounded("jumps", jumps), np.full_like(places, np.nan)
        return Breakpoints(places, unknown, jumps, count), note

    def _units(self, nets: ShallowNet) -> UnitView:
        w, v = np.asarray(nets.w, float), np.asarray(nets.v, float)
        v = v if v.ndim == 2 else np.linalg.norm(v, axis=2)
        with np.errstate(all="ignore"):
            sizes = np.linalg.norm(w, axis=2)
            lengths = np.abs(v) * sizes
            kept, note = self._largest(lengths)
            w, v, sizes = w[:, kept], v[:, kept], sizes[:, kept]
            units = np.abs(v)[..., None] * w
            v = self._bounded("weights", v)
            lengths = self._bounded("lengths", lengths[:, kept])
            if w.shape[2] == 2:
                points = w / np.where(sizes > 0, sizes, np.nan)[..., None]
                return UnitView(points, v, lengths, True, ("w₁/|w|", "w₂/|w|"), note)
            axes = self._axes.setdefault(w.shape[2], _Principal.of(units))
            names = (f"first principal direction ({axes.fractions[0]:.0%})",)
            names += (f"second principal direction ({axes.fractions[1]:.0%})",)
            points = self._bounded("points", units @ axes.axes.T)
            return UnitView(points, v, lengths, False, names, note)

    def _bounded(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values, those far beyond the first trajectory's, as of descents that diverge, cut off."""
        if name not in self._bounds:
            each = np.abs(values).reshape(len(values), -1).max(axis=1, initial=0.0)
            each = each[np.isfinite(each)]
            if len(each):
                self._bounds[name] = min(each.max(), 20 * np.median(each)) or each.max()
        bound = self._bounds.get(name, 0.0) or 1.0
        return np.clip(values, -bound, bound)

    def _largest(self, sizes: Float[np.ndarray, "frames units"]) -> tuple[Any, str]:
        width = sizes.shape[1]
        if width <= self.most_units:
            return slice(None), ""
        order = np.argsort(-np.max(np.nan_to_num(np.abs(sizes), posinf=0.0), axis=0))
        return np.sort(order[: self.most_units]), f"The {self.most_units} largest of {width} units."


class _Principal(NamedTuple):
    """The two leading principal directions of units, and their fractions of the squares."""

    axes: Float[np.ndarray, "two inputs"]
    fractions: Float[np.ndarray, " two"]

    @classmethod
    def of(cls, units: Float[np.ndarray, "frames units inputs"]) -> "_Principal":
        """Those at the last frame at which all units are finite; any, if there is none."""
        finite = np.flatnonzero(np.isfinite(units).all(axis=(1, 2)))
        last = units[finite[-1]] if len(finite) else np.zeros(units.shape[1:])
        scale = np.abs(last).max(initial=0.0) or 1.0
        last = np.concatenate([last / scale, np.zeros((2, units.shape[2]))])  # two rows or more
        _, singular, axes = np.linalg.svd(last, full_matrices=False)
        squares = singular**2
        # The signs of singular vectors are arbitrary.
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
        return cls((signs * axes)[:2], squares[:2] / (squares.sum() or 1.0))


def num_inputs(trajectory: Trajectory, columns: int | None) -> int | None:
    """The number of inputs of its networks; None where neither they nor the number of columns of
    the data say it."""
    size = getattr(trajectory.params, "in_size", columns)
    if isinstance(size, int) and size != 1:
        return size
    return 1 if _takes(trajectory, () if size == "scalar" else (1,)) else None


def curve_of(function: PiecewisePolynomial) -> Float[np.ndarray, "places two"]:
    """Points (x, f(x)) along a function, with NaN between its pieces, where it may jump."""
    ends = np.asarray(function.breakpoints, float)
    places = max(200 // (len(ends) - 1), 3)
    parts: list[np.ndarray] = []
    for (left, right), polynomial in zip(pairwise(ends), np.asarray(function.coefficients)):
        piece = np.linspace(left, right, places)
        parts.append(np.stack([piece, polyval(piece, polynomial)], axis=1))
        parts.append(np.full((1, 2), np.nan))
    return np.concatenate(parts)


def values_along(nets: PyTree, at: Float[np.ndarray, "times places"]) -> np.ndarray:
    """N(x) of each network of one input, at its own places, shape (times, places) or (times,
    places, outputs).

    **Raises:** `ArgumentError` for outputs of more axes.
    """
    scalar = getattr(nets, "in_size", None) == "scalar"
    values = np.asarray(_values_along(nets, jax.device_put(at if scalar else at[..., None])))
    if values.ndim > 3:
        got = Described(f"output of shape {values.shape[2:]}")
        raise ArgumentError("trajectory", got, "networks with output of shape () or (k,)")
    return values


@eqx.filter_jit
def _values_along(nets: PyTree, at: Shaped[Array, "times places ..."]) -> Array:
    along = lambda net, places: jax.vmap(net)(places)
    return eqx.filter_vmap(along, in_axes=(eqx.if_array(0), 0))(nets, at)


def _takes(trajectory: Trajectory, shape: tuple[int, ...]) -> bool:
    """Whether its networks map an input of this shape to one of at most one axis."""
    one = jax.ShapeDtypeStruct(shape, np.asarray(trajectory.risk).dtype)
    try:
        output = eqx.filter_eval_shape(taken(trajectory.params, 0), one)
    except Exception:  # whatever a network of the user raises for another shape
        return False
    return isinstance(output, jax.ShapeDtypeStruct) and len(output.shape) <= 1


def _norms(nets: PyTree) -> NormView:
    found: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(nets, eqx.is_inexact_array)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found[name] = np.abs(np.asarray(leaf).astype(complex))
    # Biases are many and small.
    matrices = {name: a for name, a in found.items() if a.ndim >= 3} or found
    chosen = dict(list(matrices.items())[:_MOST_ARRAYS])
    with np.errstate(over="ignore"):
        norms = [np.linalg.norm(a.reshape(len(a), -1), axis=1) for a in chosen.values()]
    left = len(matrices) - len(chosen)
    note = f"The first {_MOST_ARRAYS} of {len(matrices)} arrays." if left else ""
    names = tuple(name.removesuffix(".weight") for name in chosen)
    return NormView(names, np.stack(norms, axis=1) if norms else np.zeros((0, 0)), note)
