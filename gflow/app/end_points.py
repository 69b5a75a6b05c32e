"""The critical points that the trajectories of a run lead to, as plain numbers."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from gflow.arguments import ArgumentError
from gflow.critical import CriticalKind, CriticalPoint, GapModes, refine
from gflow.trajectory import Trajectory

# Risks of the same critical point differ by less than this fraction of the risk at the start.
_SAME_RISK = 1e-11


@dataclass(frozen=True)
class EndPoint:
    """The critical point that a trajectory leads to.

    - `kind`, `message`, `risk`, `residual`, `distance`: as in `CriticalPoint`.
    - `dead`, `degenerate`, `active_kinks`: numbers of dead units, of degenerate units, and of pairs
      of a unit and a datum that are on their kink.
    - `zeros`: number of zero eigenvalues; `unexplained`: number of those that dead units and
      rescaling do not explain. `spectrum`: all eigenvalues.
    - `rate`: the exponential rate that the spectrum predicts, None unless it is a minimum.
    - `mode_rates`, `mode_fractions`: the rates of all modes, and the fraction of the gap that each
      carries at the end of the trajectory, or, where the end is the point, before it; none where
      that is not known. `kinks_along`: the number of kinks beside the active ones along which the
      trajectory came to the point, and these modes are.
    - `apart`: the distance from the flow's critical point; `different`: whether risk or kind differ
      from those of the flow's. None if one of the two was not found.
    """

    kind: str
    message: str
    risk: float
    residual: float
    distance: float
    dead: int
    degenerate: int
    active_kinks: int
    zeros: int
    unexplained: int
    spectrum: tuple[float, ...]
    rate: float | None
    mode_rates: tuple[float, ...]
    mode_fractions: tuple[float, ...]
    apart: float | None
    different: bool | None
    kinks_along: int = 0

    @property
    def modes(self) -> GapModes:
        """The modes near the point, none if it is no minimum."""
        rates = np.array(self.mode_rates)
        fractions = self.mode_fractions or (float("nan"),) * len(rates)
        return GapModes(rates, np.array(fractions), self.kinks_along)

    @property
    def found(self) -> bool:
        return self.kind != CriticalKind.NOT_FOUND.value

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "EndPoint":
        known: dict[str, Any] = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
        for name in ("spectrum", "mode_rates", "mode_fractions"):
            known[name] = tuple(facts[name])
        return cls(**known)


def end_points(
    risk: Callable, trajectories: Mapping[str, Trajectory], say: Callable[[str], None]
) -> dict[str, EndPoint]:
    """The end point of each trajectory, those of descents compared with that of the flow.

    `say` is called with a message for each end point that cannot be computed.
    """
    ends: dict[str, EndPoint] = {}
    flow: CriticalPoint | None = None
    for label, trajectory in trajectories.items():
        try:
            point = refine(risk, trajectory.final, approach=trajectory, throw=False)
        except ArgumentError as error:  # too many parameters, or a trajectory that ended in NaN
            say(f"No critical point for {label}: {error}.")
            continue
        of_flow = trajectory.kind == "flow"
        ends[label] = _end_point(point, None if of_flow else flow, trajectory)
        if of_flow and point.found:
            flow = point
    return ends


def _end_point(
    point: CriticalPoint, flow: CriticalPoint | None, trajectory: Trajectory
) -> EndPoint:
    units, modes, apart, different = point.units, point.modes, None, None
    if flow is not None and flow.found and point.found:
        apart = point.distance_to(flow)
        scale = _SAME_RISK * abs(float(trajectory.risk[0]))
        different = abs(point.risk - flow.risk) > scale or point.kind is not flow.kind
    return EndPoint(
        kind=point.kind.value,
        message=point.message,
        risk=point.risk,
        residual=point.residual,
        distance=point.distance,
        dead=0 if units is None else len(units.dead),
        degenerate=0 if units is None else len(units.degenerate),
        active_kinks=len(point.active_kinks),
        zeros=point.zeros.total,
        unexplained=point.zeros.unexplained,
        spectrum=tuple(point.spectrum.eigenvalues.tolist()),
        rate=point.rate,
        mode_rates=() if modes is None else tuple(modes.rates.tolist()),
        mode_fractions=() if modes is None or modes.at_point else tuple(modes.fractions.tolist()),
        apart=apart,
        different=different,
        kinks_along=0 if modes is None else modes.num_kinks_along,
    )
