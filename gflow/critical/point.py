"""What a critical point is: where, of what kind, with which spectrum."""

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

from gflow.critical.units import Units


class CriticalKind(enum.Enum):
    """Of what kind a critical point is; the value reads well."""

    GLOBAL_MINIMUM = "global minimum"
    LOCAL_MINIMUM = "local minimum"
    SADDLE = "saddle"
    DEGENERATE = "degenerate"
    NOT_FOUND = "not found"

    def __str__(self) -> str:
        return self.value


MINIMA = (CriticalKind.GLOBAL_MINIMUM, CriticalKind.LOCAL_MINIMUM)


class Zeros(NamedTuple):
    """How many eigenvalues of the Hessian are zero to rounding, and of these how many are explained
    by units that are dead or degenerate, by the symmetry (w, b, v) → (aw, ab, v/a) of the others,
    and by nothing of this kind."""

    total: int
    dead: int
    rescaling: int
    unexplained: int


class Sliding(NamedTuple):
    """A kink on which the point is: z = 0 of a unit at a datum, and the weight of the active side
    in the subgradient that vanishes, within (0, 1)."""

    unit: int
    datum: int
    weight: float


@dataclass(frozen=True)
class CriticalPoint:
    r"""A critical point of a risk, 0 in its Clarke subdifferential, as `refine` found it.

    - `net`: the network there. `risk`: its risk. `kind`: a `CriticalKind`; `message`: why, in a
      sentence.
    - `residual`: the norm of the minimal-norm subgradient in the trained parameters; units with
      w = b = 0 apart, which the flow keeps so.
    - `distance`: how far it is from where the search began, in the trained parameters;
      `risk_change`: its risk less that of the start. Above zero, no flow leads here from there.
    - `spectrum`: eigenvalues of the Hessian, ascending; of that of the pattern, in the directions
      along all kinks on which the point is; of a true risk, where a kink is at an edge of the
      support, on which the Hessian jumps, of the inside, whence a flow comes. `zeros`: how many of
      them are zero, and why.
    - `rate`: for a minimum 2λ, λ the least positive eigenvalue of those whose eigenvectors carry a
      tenth of the gap of the risk between the start and the point (of all, if the start is the
      point to 1e-7): as long as they do, the risk of a flow falls to its limit like exp(−rate · t).
      None if there is none.
    - `sliding`: the kinks on which the point is, with their multipliers. `touched`: pairs of unit
      and datum at a kink of which the multiplier is 0 or 1: the point is critical for one side of
      it alone. Without these, `strictly` complementary, the point stays critical on its kinks when
      the data change a little.
    - `negative`: unit vectors of the trained parameters, as networks in a list, along which the
      risk falls.
    - `units`: the hidden units that are dead, degenerate, active everywhere, or alike.
    - `num_steps`: Newton steps. `num_patterns`: how many activation patterns were passed through.
    """

    net: Any
    risk: float
    residual: float
    kind: CriticalKind
    message: str
    distance: float
    risk_change: float
    spectrum: Float[np.ndarray, " free"]
    zeros: Zeros
    rate: float | None
    sliding: tuple[Sliding, ...]
    touched: tuple[tuple[int, int], ...]
    negative: tuple[PyTree, ...]
    units: Units | None
    num_steps: int
    num_patterns: int

    @property
    def found(self) -> bool:
        return self.kind is not CriticalKind.NOT_FOUND

    @property
    def is_minimum(self) -> bool:
        return self.kind in MINIMA

    @property
    def strictly(self) -> bool:
        return not self.touched

    @property
    def isolated(self) -> bool:
        """Whether no eigenvalue is zero: otherwise critical points may form a manifold."""
        return self.zeros.total == 0

    def distance_to(self, other: "CriticalPoint | PyTree") -> float:
        """‖θ − θ'‖ to another network, over all parameters."""
        there = other.net if isinstance(other, CriticalPoint) else other
        leaves = zip(*(map(_floats, (self.net, there))))
        return float(np.sqrt(sum(float(jnp.sum((a - b) ** 2)) for a, b in leaves)))

    def __repr__(self) -> str:
        lines = [
            f"CriticalPoint: {self.kind}, risk {self.risk:.12g}, residual {self.residual:.1e}",
            f"  {self.message}",
            f"  {self.distance:.3g} from the start, in {self.num_steps} steps",
        ]
        if len(self.spectrum):
            low, high = self.spectrum[0], self.spectrum[-1]
            lines.append(f"  {len(self.spectrum)} eigenvalues from {low:.3g} to {high:.3g}")
        if self.units is not None:
            lines.append(f"  units: {self.units}")
        return "\n".join(lines)


def _floats(net: PyTree) -> list:
    return [
        a
        for a in jax.tree.leaves(net)
        if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)
    ]


class NotFoundError(RuntimeError):
    """No critical point was found near the start. `point` is where the search ended."""

    def __init__(self, point: CriticalPoint):
        where = "`error.point`, or throw=False, gives where the search ended."
        super().__init__(f"no critical point: {point.message} {where}")
        self.point = point


def as_net(trained: PyTree, theta: np.ndarray) -> PyTree:
    """A vector of trained parameters as they stand in the network, None for the others."""
    _, unravel = ravel_pytree(trained)
    return unravel(jnp.asarray(theta))
