"""What a critical point is: where, of what kind, with which spectrum."""

import enum
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gflow.arguments import PyTree
from gflow.critical.units import UnitGroups
from gflow.display import Shown
from gflow.hessian import Spectrum
from gflow.pickling import Portable, PortableError


class CriticalKind(enum.StrEnum):
    """The kinds of critical points; the value reads well."""

    GLOBAL_MINIMUM = "global minimum"
    LOCAL_MINIMUM = "local minimum"
    SADDLE = "saddle"
    DEGENERATE = "degenerate"
    NOT_FOUND = "not found"

    def __str__(self) -> str:
        return self.value


# Modes that carry a smaller fraction of the gap of the risk do not decide its rate.
CARRIED = 0.1

MINIMA = (CriticalKind.GLOBAL_MINIMUM, CriticalKind.LOCAL_MINIMUM)


class Zeros(NamedTuple):
    """How many eigenvalues of the Hessian are zero to rounding, and how many of these are explained
    by dead and degenerate units, by the symmetry (w, b, v) → (aw, ab, v/a) of the others, with v
    the weights that lead to the next layer, and by neither."""

    total: int
    dead: int
    rescaling: int
    unexplained: int


class GapModes(NamedTuple):
    """The rates 2λ of the modes near a minimum, ascending, with the fraction of the gap of the risk
    at the start that each carries, NaN if the start is the point; and the number of kinks along
    which these modes are since the start lies on them, the active ones not counted."""

    rates: Float[np.ndarray, " modes"]
    fractions: Float[np.ndarray, " modes"]
    num_kinks_along: int = 0

    @property
    def at_point(self) -> bool:
        """Whether the start is the point, so that nothing is known of the fractions."""
        return bool(np.isnan(self.fractions).all())

    @property
    def rate(self) -> float | None:
        """That of the slowest mode that carries a tenth of the gap."""
        carried = ~(self.fractions < CARRIED * np.nansum(self.fractions))
        return float(np.min(self.rates[carried])) if carried.any() else None


class ActiveKink(NamedTuple):
    """A kink where the point is: z = 0 of a unit at a datum, the weight in [0, 1] of the active
    side in the subgradient that vanishes, and the layer of the unit, 0 for the first hidden one."""

    unit: int
    datum: int
    weight: float
    layer: int = 0


@dataclass(frozen=True, repr=False)
class CriticalPoint(Shown, Portable):
    r"""A critical point of a risk, 0 in its Clarke subdifferential, as `refine` found it.

    - `net`: the network there. `risk`: its risk. `kind`: a `CriticalKind`; `message`: why, in a
      sentence.
    - `residual`: the norm of the minimal-norm subgradient in the trained parameters, without those
      of units with w = b = 0, which the flow keeps so.
    - `distance`: how far it is from where the search began, in the trained parameters;
      `risk_change`: its risk minus that of the start. If it is positive, no flow leads here from
      there.
    - `spectrum`: a `Spectrum` of all eigenvalues of the Hessian, without eigenvectors. On kinks it
      is the Hessian of the pattern, in the directions along all active kinks, with the curvature of
      these where they are in several layers. Where a kink lies at
      an edge of the support, the Hessian of the true risk jumps; this is that of the inside.
      `zeros`: how many of the eigenvalues count as zero, and why.
    - `rate`: for a minimum 2λ, λ the smallest positive eigenvalue of those whose eigenvectors carry
      a tenth of the gap of the risk between the start and the point (of all, if the start is the
      point to 1e-7 and there is no `approach`): as long as they do, the risk of a flow falls to its
      limit like exp(−rate · t). Other kinks than the active ones on which the start lies, too, are
      those on which a flow slides to the point: weakly active ones, and those on rows whose loss
      has slope 0 at the point. λ is then an eigenvalue along them, which `spectrum` need not hold.
      None if there is none.
    - `modes`: all such rates, with the fraction of the gap that each carries; None of other kinds.
    - `active_kinks`: the kinks on which the point is, with weights inside (0, 1).
      `weakly_active`: the other kinks where it is. Their weight is 0 or 1: it is critical for that
      side of them alone. Without these the point is `strictly_complementary`: it stays critical on
      its kinks when the data change a little.
    - `descent_directions`: unit vectors of the trained parameters, as networks, along which the
      risk falls.
    - `units`: the hidden units that are dead, degenerate, active everywhere, or alike.
    - `num_steps`: Newton steps. `num_patterns`: how many activation patterns were passed through.
    """

    wanted_for_network: ClassVar[str] = "a network: its `net`"

    net: Any
    risk: float
    residual: float
    kind: CriticalKind
    message: str
    distance: float
    risk_change: float
    spectrum: Spectrum
    zeros: Zeros
    modes: GapModes | None
    active_kinks: tuple[ActiveKink, ...]
    weakly_active: tuple[ActiveKink, ...]
    descent_directions: tuple[PyTree, ...]
    units: UnitGroups | None
    num_steps: int
    num_patterns: int

    @property
    def found(self) -> bool:
        return self.kind is not CriticalKind.NOT_FOUND

    @property
    def is_minimum(self) -> bool:
        return self.kind in MINIMA

    @property
    def rate(self) -> float | None:
        return None if self.modes is None else self.modes.rate

    @property
    def strictly_complementary(self) -> bool:
        return not self.weakly_active

    @property
    def isolated(self) -> bool:
        """Whether no eigenvalue is zero: otherwise critical points may form a manifold."""
        return self.zeros.total == 0

    def distance_to(self, other: "CriticalPoint | PyTree") -> float:
        """‖θ − θ'‖ to another network, over all parameters."""
        there = other.net if isinstance(other, CriticalPoint) else other
        leaves = zip(*(map(_floats, (self.net, there))))
        return math.sqrt(sum(float(jnp.sum((a - b) ** 2)) for a, b in leaves))

    def title(self) -> str:
        """Its kind, its risk, and how well it is known."""
        how = f"risk {self.risk:.12g}, residual {self.residual:.1e}"
        return f"CriticalPoint: {self.kind}, {how}"

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        values, steps = self.spectrum.eigenvalues, self.num_steps
        facts = {
            "kind": f"{self.kind}. {self.message}",
            "found": f"{self.distance:.3g} from the start, in {steps} step{'s' * (steps != 1)}",
        }
        if len(values):
            span = f"{values[0]:.3g} to {values[-1]:.3g}"
            facts["spectrum"] = f"{len(values)} eigenvalues from {span}"
            if self.active_kinks:
                facts["spectrum"] += f", along {_counted(len(self.active_kinks), 'active kink')}"
        if self.rate is not None:
            facts["rate"] = f"{self.rate:.5g}, by the spectrum"
            if self.modes is not None and self.modes.num_kinks_along:
                slid = _counted(self.modes.num_kinks_along, "further kink")
                facts["rate"] += f" along {slid} on which the flow slides"
        if self.active_kinks or self.weakly_active:
            weak = f", {len(self.weakly_active)} weakly active" if self.weakly_active else ""
            facts["kinks"] = f"{len(self.active_kinks)} active{weak}"
        if self.units is not None:
            facts["units"] = str(self.units)
        return facts


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _floats(net: PyTree) -> list:
    return [
        a
        for a in jax.tree.leaves(net)
        if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)
    ]


class NotFoundError(PortableError, RuntimeError):
    """No critical point was found near the start. `point` is where the search ended."""

    def __init__(self, point: CriticalPoint):
        where = "`error.point`, or throw=False, gives where the search ended."
        super().__init__(f"no critical point: {point.message} {where}")
        self.point = point
