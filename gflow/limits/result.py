"""What is known of a flow at infinite time."""

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow.critical import CriticalPoint
from gflow.display import Shown
from gflow.limits.growth import NormLaw
from gflow.pickling import Portable
from gflow.rates import Lojasiewicz, Rate
from gflow.trajectory import Trajectory


class Behaviour(enum.StrEnum):
    """What a flow does as time goes to infinity."""

    CONVERGES = "converges"
    """To a critical point."""
    DIVERGES = "diverges"
    """Its norm goes to infinity."""
    UNDECIDED = "undecided"
    """The flow, as far as it was followed, does not show it."""


@dataclass(frozen=True, repr=False)
class Asymptotics(Shown, Portable):
    r"""What a flow does as time goes to infinity, as `asymptotics` found it.

    - `behaviour`: a `Behaviour`: "converges", "diverges", or "undecided"; `reason`: why.
    - `risk_limit`, `risk_limit_interval`: the limit of the risk, a critical value or an asymptotic
      one, and an interval of it.
    - `risk_rate`: the `Rate` of the risk above this limit; None if the gap cannot be fitted.
      `risk_law`: the law in a few letters; beside a norm that grows like a power of the logarithm,
      it is $t^{-1} (\log t)^{-c}$. It is "" where no law is called.
    - `norm_law`: a `NormLaw`: "power", "logarithm", or "none". `norm_exponent`: p of
      $\|\theta\| \sim t^p$, 0 for slower growth; `norm_log_exponent`: q of
      $\|\theta\| \sim (\log t)^q$, 0 for other laws. `norm_interval`: the interval of p or q.
    - `direction`: the limit of θ/‖θ‖, as a network whose trained parameters have norm 1.
      `direction_error`: how far it is open. `direction_distance`: how far the end of the flow is
      from it; `direction_power`: the m with which it is approached, like $\|\theta\|^{-m}$. For a
      flow that converges it is that of the critical point. None and NaN if it is not known.
    - `point`: the `CriticalPoint` of a flow that converges, None of others. `rate_agreement`: a
      sentence on the fitted rate and that of the spectrum there.
    - `length`: the length of the trajectory, with what is left of it; infinite if it diverges, NaN
      if undecided.
    - `theorem`: a `Lojasiewicz` of a flow that converges: sup (1 + t)·gap, and β and C of
      ‖Θ_t − ϑ‖ ≤ C (1 + t)^−β over the times seen, and the Łojasiewicz exponent.
    - `trajectory`: the flow, with the continuation.
    """

    behaviour: Behaviour
    reason: str
    risk_limit: float
    risk_limit_interval: tuple[float, float]
    risk_rate: Rate | None
    risk_law: str
    norm_law: NormLaw
    norm_exponent: float
    norm_log_exponent: float
    norm_interval: tuple[float, float]
    direction: Any
    direction_error: float
    direction_distance: float
    direction_power: float
    point: CriticalPoint | None
    rate_agreement: str
    length: float
    theorem: Lojasiewicz | None
    trajectory: Trajectory[Any]

    @property
    def norm_formula(self) -> str:
        """The law of the norm in a few letters."""
        low, high = self.norm_interval
        half = max((high - low) / 2, 1e-5)
        if self.norm_law is NormLaw.POWER:
            return f"‖θ‖ ~ t^({self.norm_exponent:.4g} ± {half:.1g})"
        if self.norm_law is NormLaw.LOGARITHM:
            return f"‖θ‖ ~ (log t)^({self.norm_log_exponent:.3g} ± {half:.1g})"
        return ""

    @property
    def verdict(self) -> str:
        """What was found, as a sentence."""
        low, high = self.risk_limit_interval
        value = f"{self.risk_limit:.6g} ({low:.6g} to {high:.6g})"
        if self.behaviour is Behaviour.CONVERGES and self.point is not None:
            text = f"The flow converges to a critical point ({self.point.kind}), with risk {value}"
            return f"{text}, like {self.risk_law}." if self.risk_law else f"{text}."
        if self.behaviour is Behaviour.DIVERGES:
            return (
                f"The flow diverges: {self.norm_formula}, and the risk falls to {value} like "
                f"{self.risk_law}."
            )
        return f"Undecided: {self.reason}"

    def title(self) -> str:
        """What the flow does."""
        end = float(self.trajectory.ts[-1])
        return f"Asymptotics: {self.behaviour}, from a flow to t = {end:.4g}"

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        facts = {"verdict": self.verdict}
        if self.behaviour is not Behaviour.UNDECIDED:
            facts["because"] = self.reason
        if self.risk_rate is not None:
            facts["rate"] = self.risk_rate.verdict
        if self.rate_agreement:
            facts["spectrum"] = self.rate_agreement
        if self.norm_law is not NormLaw.NONE:
            facts["norm"] = self.norm_formula
        if self.behaviour is Behaviour.DIVERGES:
            facts["direction"] = (
                f"θ/‖θ‖ is {self.direction_distance:.2g} from its limit, which is known to "
                f"{self.direction_error:.1g}"
            )
            if np.isfinite(self.direction_power):
                nearer = f"comes nearer like ‖θ‖^-{self.direction_power:.2g}"
                facts["direction"] += f", and {nearer}"
        return facts | self._of_the_theorem()

    def _of_the_theorem(self) -> dict[str, str]:
        if self.behaviour is Behaviour.DIVERGES:
            return {
                "theorem": "the rate theorem for non-divergent flows does not apply: "
                f"lim inf ‖θ‖ = ∞, as {self.norm_formula}; the length is infinite",
            }
        if self.theorem is None:
            return {}
        facts = {
            "length": f"{self.length:.6g}",
            "Łojasiewicz": f"α = {self.theorem.exponent:.4g}",
        }
        found = {"(1 + t) gap": self.theorem.risk_bound, "distance": self.theorem.distance_bound}
        for name, bound in found.items():
            if bound is not None:
                by = "" if name == "(1 + t) gap" else f" (1 + t)^-{bound.exponent:.4g}"
                end = "and falls" if bound.falling else "and has not yet fallen"
                facts[name] = f"at most {bound.constant:.4g}{by}, at t = {bound.at:.4g}, {end}"
        return facts
