"""Hidden units that take no part, take part everywhere, or appear twice."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow.activations import PiecewiseLinear
from gflow.networks import ShallowNet
from gflow.risks import BoxRisk, EmpiricalRisk, PopulationRisk

# Directions that differ by less are one.
_SAME = 1e-8


@dataclass(frozen=True)
class Units:
    """Numbers of hidden units of a `ShallowNet`, in groups.

    - `dead`: ReLU units that are active nowhere in the data, or in the support of the density;
      `always_active`: those that are active everywhere there. Empty where this is not known.
    - `degenerate`: w_i = b_i = 0.
    - `duplicates`: groups of units with the same kink and side, (w_i, b_i) being positive multiples
      of each other; of other activations than ReLU, with the same (w_i, b_i).
    """

    dead: tuple[int, ...]
    always_active: tuple[int, ...]
    degenerate: tuple[int, ...]
    duplicates: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        parts = [
            f"{len(units)} {name.replace('_', ' ')}"
            for name, units in vars(self).items()
            if units and name != "duplicates"
        ]
        if self.duplicates:
            parts.append(f"{len(self.duplicates)} groups of duplicates")
        return ", ".join(parts) or "none dead or alike"


def list_units(risk: Any, net: Any, held: frozenset[int] = frozenset()) -> Units | None:
    """The units of a `ShallowNet`; those in `held` slide along a kink, so that they are not dead.
    None for other networks."""
    if not isinstance(net, ShallowNet):
        return None
    w = np.asarray(net.w, float)
    u = w if net.b is None else np.column_stack([w, np.asarray(net.b, float)])
    sizes = np.linalg.norm(u, axis=1)
    degenerate = np.isin(np.arange(len(sizes)), units_at_zero(net))
    activation = net.activation
    homogeneous = isinstance(activation, PiecewiseLinear)
    dead = everywhere = np.zeros(len(u), bool)
    span = _range_of_preactivations(risk, w, 0.0 if net.b is None else np.asarray(net.b, float))
    if span is not None and isinstance(activation, PiecewiseLinear) and activation.kinked:
        lowest, highest = span
        rounding = 1e-12 * np.maximum(sizes, 1e-300)
        kept = np.array([unit in held for unit in range(len(u))])
        dead = (highest <= rounding) & ~kept & (activation.negative_slope == 0)
        everywhere = (lowest >= -rounding) & ~degenerate & ~kept
    of = lambda mask: tuple(np.flatnonzero(mask).tolist())
    alike = u / np.where(sizes > 0, sizes, 1.0)[:, None] if homogeneous else u
    groups = _groups(alike, ~degenerate)
    return Units(of(dead), of(everywhere), of(degenerate), groups)


def units_at_zero(net: ShallowNet) -> tuple[int, ...]:
    """The units with w = b = 0, to 1e-12 of the largest."""
    square = np.sum(np.asarray(net.w, float) ** 2, axis=1)
    sizes = np.sqrt(square if net.b is None else square + np.asarray(net.b, float) ** 2)
    return tuple(np.flatnonzero(sizes <= 1e-12 * np.max(sizes, initial=0.0)).tolist())


def units_at_corners(risk: Any, net: Any) -> tuple[int, ...]:
    """The units at zero, and the dead ReLU units that touch the data or the edge of the support."""
    activation = net.activation if isinstance(net, ShallowNet) else None
    if not isinstance(activation, PiecewiseLinear) or not activation.kinked:
        return ()
    if activation.negative_slope != 0:
        return units_at_zero(net)
    w, b = np.asarray(net.w, float), 0.0 if net.b is None else np.asarray(net.b, float)
    span = _range_of_preactivations(risk, w, b)
    if span is None:
        return units_at_zero(net)
    sizes = np.sqrt(np.sum(w**2, axis=1) + b**2)
    return tuple(np.flatnonzero(np.abs(span[1]) <= 1e-9 * sizes).tolist())


def _range_of_preactivations(risk: Any, w: np.ndarray, b: Any):
    """The least and the largest preactivation of each unit on the data, or in the support."""
    if isinstance(risk, EmpiricalRisk):
        z = w @ np.asarray(risk.x, float).T + np.reshape(b, (-1, 1))
        return z.min(axis=1), z.max(axis=1)
    if isinstance(risk, PopulationRisk):
        low, high = (np.array([end]) for end in risk.density.interval)
    elif isinstance(risk, BoxRisk):
        low, high = np.asarray(risk.low, float), np.asarray(risk.high, float)
    else:
        return None
    middle, half = w @ ((low + high) / 2) + b, np.abs(w) @ ((high - low) / 2)
    return middle - half, middle + half


def _groups(rows: np.ndarray, wanted: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The numbers of rows that are the same, by groups of at least two."""
    left, groups = list(np.flatnonzero(wanted)), []
    scale = np.max(np.abs(rows), initial=0.0)
    while left:
        near = np.max(np.abs(rows[left] - rows[left[0]]), axis=1) <= _SAME * scale
        group = [unit for unit, same in zip(left, near) if same]
        if len(group) > 1:
            groups.append(tuple(int(unit) for unit in group))
        left = [unit for unit, same in zip(left, near) if not same]
    return tuple(groups)
