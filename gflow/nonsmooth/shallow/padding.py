"""Networks and tables padded to few sizes, so that few shapes compile.

Units that are added have w = b = v = 0, and rows that are added have weight 0. Their pairs count as
sliding from the start (`ShallowPatternRisk.start`): their slopes are 0, and they reach no kink. So
every sum over units or rows is what it was; the norms of errors leave the added entries out. Weight
decay does not move what is zero; other penalties could.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.arguments import is_concrete
from gflow.networks import ShallowNet
from gflow.nonsmooth.shallow.kink_geometry import NormalLines
from gflow.nonsmooth.shallow.risk import Added, ShallowPatternRisk
from gflow.nonsmooth.shallow.table_kinks import Inputs, kept_for
from gflow.parameters import ParameterLayout
from gflow.risks import EmpiricalRisk, PenalisedRisk, penalty_of, without_penalty
from gflow.risks.base import Risk

# Larger networks and tables keep their sizes: there every pair costs.
_WIDTHS = (4, 8, 16, 25, 36, 50, 64)
_ROWS = range(8, 513, 8)
_NAMES = ("w", "b", "v", "c")


class PaddedRisk(Risk):
    """The risk of a padded network on a padded table. Its output scale, an array, multiplies v."""

    risk: EmpiricalRisk
    output_scale: Float[np.ndarray, ""]

    def __call__(self, net: Any) -> Float[Array, ""]:
        return self.risk(eqx.tree_at(lambda net: net.v, net, self.output_scale * net.v))

    @property
    def num_data(self) -> int:
        """The number of rows, with those that were added."""
        return self.risk.num_data


class PaddedFlow(NamedTuple):
    """What a flow in padded shapes solves; `parts` are the trained part of the network and the
    other."""

    risk: Risk
    parts: tuple[Any, Any]
    pattern_risk: ShallowPatternRisk


def padded(risk: Any, pattern_risk: Any) -> PaddedFlow | None:
    """A risk and its pattern risk in padded shapes.

    None where shapes are kept: of networks and tables that are large or traced, with time scales,
    and of other risks and networks, subclasses of `EmpiricalRisk` and `ShallowNet` included; with
    other penalties than weight decay, too.
    """
    penalty, risk = penalty_of(risk), without_penalty(risk)
    if penalty is not None and not penalty.only_decays:
        return None
    if type(risk) is not EmpiricalRisk or not isinstance(pattern_risk, ShallowPatternRisk):
        return None
    scaled = pattern_risk.time_scales.roots is not None
    if scaled or risk.rows_in_order is not None or not is_concrete(risk, pattern_risk):
        return None
    net = eqx.combine(pattern_risk.trained, pattern_risk.frozen)
    if type(net) is not ShallowNet:
        return None
    width = _next(_WIDTHS, net.width)
    num_data, num_rows = _next(_ROWS, risk.num_data), _next(_ROWS, len(pattern_risk.rows))
    if width is None or num_data is None or num_rows is None:
        return None
    wide = _with_units(net, width)
    chosen = [n for n in _NAMES if getattr(pattern_risk.trained, n) is not None]
    trained, frozen = (_part(wide, chosen, wanted) for wanted in (True, False))
    inputs = Inputs("w" in chosen, "b" in chosen, net.b is not None)
    make = lambda: _padded_table(risk, pattern_risk, num_data, num_rows)
    table = kept_for(risk, ("padded", net.w.dtype, inputs), make)
    units = np.arange(width) >= net.width
    added = Added(units, table.added, _entries_of(units, trained))
    changed = {"trained": trained, "frozen": frozen, "added": added, **table.parts}
    scale = np.asarray(net.output_scale, net.w.dtype)
    wide_risk = PaddedRisk(table.risk, scale)
    if penalty is not None:
        wide_risk = PenalisedRisk(wide_risk, weight_decay=penalty.weight_decay)
    return PaddedFlow(wide_risk, (trained, frozen), replace(pattern_risk, **changed))


def without_padding(params: ShallowNet, net: ShallowNet) -> ShallowNet:
    """Parameters along times, with a leading axis, in the shapes of `net`, by NumPy."""
    like, structure = jax.tree.flatten(net)
    places = [(slice(None), *map(slice, a.shape)) for a in like]
    cut = [np.asarray(a)[place] for a, place in zip(jax.tree.leaves(params), places)]
    return structure.unflatten(cut)


def _next(sizes: Sequence[int], size: int) -> int | None:
    """The first of the sizes that is large enough; None if all are too small."""
    return next((one for one in sizes if one >= size), None)


# ---- networks ---------------------------------------------------------------------------------


def _with_units(net: ShallowNet, width: int) -> ShallowNet:
    """The network with units of zeros up to a width, and output scale 1."""
    leaves, structure = jax.tree.flatten(net)
    wide = [
        np.asarray(a) if name == "c" else _with_zeros(np.asarray(a), width)
        for name, a in zip(_names(net), leaves)
    ]
    return _with_scale_one(structure).unflatten(wide)


@lru_cache(maxsize=256)
def _with_scale_one(structure: Any) -> Any:
    """The structure of a network with output scale 1, from that of one with any."""
    net = structure.unflatten(range(structure.num_leaves))
    shapes = {"w": (1, 1), "b": (1,), "v": (1,), "c": ()}
    arrays = [None if getattr(net, name) is None else np.zeros(shapes[name]) for name in _NAMES]
    return jax.tree.structure(ShallowNet.from_arrays(*arrays, activation=net.activation))


def _names(net: ShallowNet) -> list[str]:
    """The names of its arrays, in their order."""
    return [name for name in _NAMES if getattr(net, name) is not None]


def _part(net: ShallowNet, names: list[str], wanted: bool) -> Any:
    """The fields of these names, or all others."""
    leaves, structure = jax.tree.flatten(net)
    return structure.unflatten(
        [leaf if (name in names) == wanted else None for name, leaf in zip(_names(net), leaves)]
    )


def _entries_of(units: Bool[np.ndarray, " units"], trained: Any) -> Bool[np.ndarray, " size"]:
    """The entries of θ that belong to these units."""
    return ParameterLayout(trained).of_units(np.flatnonzero(units).tolist(), ("w", "b", "v"))


# ---- tables -----------------------------------------------------------------------------------


class PaddedTable(NamedTuple):
    """A padded table, the `parts` of a pattern risk that depend on it, and which distinct rows were
    added."""

    risk: EmpiricalRisk
    parts: dict[str, Any]
    added: Bool[np.ndarray, " rows"]


def _padded_table(
    risk: EmpiricalRisk, kinks: ShallowPatternRisk, num_data: int, num_rows: int
) -> PaddedTable:
    """With copies of the first datum, of weight 0: their losses are finite where the others are."""
    data, rows = (lambda a: _with_copies(a, num_data)), (lambda a: _with_copies(a, num_rows))
    weights = _with_zeros(np.asarray(kinks.weights), num_data)
    lines, distinct = kinks.lines, len(kinks.rows)
    # Rows that are added share their lines with none.
    own: Any = None
    if lines.line is not None:
        own = np.append(lines.line, np.arange(distinct, num_rows))
    along: Any = rows(lines.along)
    reach: Any = rows(lines.reach)
    parts = {
        "rows": rows(kinks.rows),
        "group": None if kinks.group is None else data(kinks.group),
        "first_datum": rows(kinks.first_datum),
        "y": data(kinks.y),
        "weights": weights,
        "normals": rows(kinks.normals),
        "sizes": rows(kinks.sizes),
        "lines": NormalLines(own, along, reach),
    }
    names = lambda risk: (risk.x, risk.y, risk.weights)
    values = (data(risk.x), data(risk.y), weights.astype(risk.x.dtype))
    wide = eqx.tree_at(names, risk, values, is_leaf=lambda a: a is None)
    return PaddedTable(wide, jax.device_put(parts), np.arange(num_rows) >= distinct)


def _with_zeros(a: np.ndarray, size: int) -> np.ndarray:
    """With rows of zeros up to a size."""
    wide = np.zeros((size, *a.shape[1:]), a.dtype)
    wide[: len(a)] = a
    return wide


def _with_copies(a: Array, size: int) -> np.ndarray:
    """With copies of the first row up to a size."""
    known = np.asarray(a)
    return np.concatenate([known, np.repeat(known[:1], size - len(known), axis=0)])
