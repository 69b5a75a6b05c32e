"""Hidden units that take no part, take part everywhere, or appear twice."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gflow.activations import PiecewiseLinear
from gflow.networks import ShallowNet
from gflow.risks import BoxRisk, EmpiricalRisk, PopulationRisk, without_penalty

# Directions that differ by less are one.
_SAME = 1e-8


@dataclass(frozen=True)
class UnitGroups:
    """Numbers of hidden units, in groups; of several layers they are counted through, from the
    first hidden layer on.

    - `dead`: ReLU units that are active nowhere in the data, or in the support of the density;
      `always_active`: those that are active everywhere there. Empty where this is not known.
    - `degenerate`: w_i = b_i = 0; in several layers, units that are on their kinks at all rows, of
      which the normals depend on each other.
    - `duplicates`: groups of units with the same kink and side, (w_i, b_i) being positive multiples
      of each other; of other activations than ReLU, with the same (w_i, b_i). Not looked for in
      networks with several layers.
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
        if count := len(self.duplicates):
            parts.append(f"{count} group{'s' * (count != 1)} of duplicates")
        return ", ".join(parts) or "none dead or alike"


class PreactivationRange(NamedTuple):
    """The minimum and the maximum preactivation of each unit."""

    low: Float[np.ndarray, " width"]
    high: Float[np.ndarray, " width"]


def list_units(risk: Any, net: Any, on_kinks: frozenset[int] = frozenset()) -> UnitGroups | None:
    """The units of a `ShallowNet`, None for other networks. Those in `on_kinks`, which are held on
    a kink, count as neither dead nor always active."""
    if not isinstance(net, ShallowNet):
        return None
    incoming, norms = (np.asarray(a, float) for a in (net.incoming(), net.incoming_norms()))
    degenerate = np.isin(np.arange(net.width), degenerate_units(net))
    activation = net.activation
    homogeneous = isinstance(activation, PiecewiseLinear)
    dead = everywhere = np.zeros(net.width, bool)
    found = _range_of_preactivations(risk, net)
    if found is not None and isinstance(activation, PiecewiseLinear) and activation.kinked:
        rounding = 1e-12 * np.maximum(norms, 1e-300)
        held = np.isin(np.arange(net.width), list(on_kinks))
        dead = (found.high <= rounding) & ~held & (activation.negative_slope == 0)
        everywhere = (found.low >= -rounding) & ~degenerate & ~held
    of = lambda mask: tuple(np.flatnonzero(mask).tolist())
    alike = incoming / np.where(norms > 0, norms, 1.0)[:, None] if homogeneous else incoming
    groups = _groups(alike, ~degenerate)
    return UnitGroups(of(dead), of(everywhere), of(degenerate), groups)


def degenerate_units(net: ShallowNet) -> tuple[int, ...]:
    """The units with w = b = 0, to 1e-12 of the largest."""
    norms = np.asarray(net.incoming_norms(), float)
    return tuple(np.flatnonzero(norms <= 1e-12 * np.max(norms, initial=0.0)).tolist())


def marginal_units(risk: Any, net: Any) -> tuple[int, ...]:
    """The degenerate units, and the dead ReLU units that touch the data or the edge of the
    support: a small step can make them active."""
    activation = net.activation if isinstance(net, ShallowNet) else None
    if not isinstance(activation, PiecewiseLinear) or not activation.kinked:
        return ()
    found = _range_of_preactivations(risk, net)
    if activation.negative_slope != 0 or found is None:
        return degenerate_units(net)
    touching = np.abs(found.high) <= 1e-9 * np.asarray(net.incoming_norms(), float)
    return tuple(np.flatnonzero(touching).tolist())


def _range_of_preactivations(risk: Any, net: ShallowNet) -> PreactivationRange | None:
    """That on the data, or in the support of the density; None where there is none."""
    risk, w = without_penalty(risk), np.asarray(net.w, float)
    b = 0.0 if net.b is None else np.asarray(net.b, float)
    if isinstance(risk, EmpiricalRisk):
        z = w @ np.asarray(risk.x, float).T + np.reshape(b, (-1, 1))
        return PreactivationRange(z.min(axis=1), z.max(axis=1))
    if isinstance(risk, PopulationRisk):
        low, high = (np.array([end]) for end in risk.density.interval)
    elif isinstance(risk, BoxRisk):
        low, high = np.asarray(risk.low, float), np.asarray(risk.high, float)
    else:
        return None
    middle, half = w @ ((low + high) / 2) + b, np.abs(w) @ ((high - low) / 2)
    return PreactivationRange(middle - half, middle + half)


def _groups(
    rows: Float[np.ndarray, "width dim"], wanted: Bool[np.ndarray, " width"]
) -> tuple[tuple[int, ...], ...]:
    """The numbers of rows that are the same, by groups of at least two."""
    remaining, groups = list(np.flatnonzero(wanted)), []
    scale = np.max(np.abs(rows), initial=0.0)
    while remaining:
        near = np.max(np.abs(rows[remaining] - rows[remaining[0]]), axis=1) <= _SAME * scale
        group = [unit for unit, same in zip(remaining, near) if same]
        if len(group) > 1:
            groups.append(tuple(int(unit) for unit in group))
        remaining = [unit for unit, same in zip(remaining, near) if not same]
    return tuple(groups)
