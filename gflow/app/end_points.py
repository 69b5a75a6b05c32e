"""Where the trajectories of a run lead: their critical points, as plain facts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gflow.arguments import ArgumentError
from gflow.critical import CriticalKind, CriticalPoint, refine
from gflow.trajectory import Trajectory

# Risks of one critical point differ by less, as a share of the risk at the start.
_SAME_RISK = 1e-11


@dataclass(frozen=True)
class EndPoint:
    """The critical point that a trajectory leads to.

    - `kind`, `message`, `risk`, `residual`, `distance`: as in `CriticalPoint`.
    - `dead`, `degenerate`, `sliding`: numbers of units, and of kinks on which it is.
    - `zeros`, `unexplained`: eigenvalues that are zero, and those that dead units and rescaling do
      not explain. `spectrum`: all eigenvalues.
    - `rate`: the exponential rate that the spectrum predicts, None for what is no minimum.
    - `apart`: its distance from the flow's. `different`: whether it is another one than the
      flow's, in risk or kind; None where one of the two was not found.
    """

    kind: str
    message: str
    risk: float
    residual: float
    distance: float
    dead: int
    degenerate: int
    sliding: int
    zeros: int
    unexplained: int
    spectrum: tuple[float, ...]
    rate: float | None
    apart: float | None
    different: bool | None

    @property
    def found(self) -> bool:
        return self.kind != CriticalKind.NOT_FOUND.value

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "EndPoint":
        known: dict[str, Any] = {f.name: facts[f.name] for f in fields(cls)}
        known["spectrum"] = tuple(facts["spectrum"])
        return cls(**known)


def end_points(
    risk: Callable, trajectories: Mapping[str, Trajectory], say: Callable[[str], None]
) -> dict[str, EndPoint]:
    """The end point of each trajectory, those of descents compared with that of the flow, as far as
    it was followed."""
    ends: dict[str, EndPoint] = {}
    flow: CriticalPoint | None = None
    for label, trajectory in trajectories.items():
        try:
            point = refine(risk, trajectory.final, throw=False)
        except ArgumentError as error:  # too many parameters, or a run that ended in NaN
            say(f"No end point of {label}: {error}.")
            continue
        of_flow = trajectory.kind == "flow"
        ends[label] = _facts(point, None if of_flow else flow, trajectory)
        if of_flow and point.found:
            flow = point
    return ends


def _facts(point: CriticalPoint, flow: CriticalPoint | None, trajectory: Trajectory) -> EndPoint:
    units, apart, different = point.units, None, None
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
        sliding=len(point.active_kinks),
        zeros=point.zeros.total,
        unexplained=point.zeros.unexplained,
        spectrum=tuple(point.spectrum.eigenvalues.tolist()),
        rate=point.rate,
        apart=apart,
        different=different,
    )
