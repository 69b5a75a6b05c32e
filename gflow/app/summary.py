"""The summary of a run: a row for each trajectory, and one for each end point."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gflow.app.analysis import (
    MAX_ORDER_FRACTION,
    OPEN_ORDER_LENGTH,
    Analysis,
    divergence_time,
    followed_flow,
    hovers,
)
from gflow.app.end_points import EndPoint
from gflow.app.run_directory import FURTHER, Descent, Run
from gflow.comparison import Comparison
from gflow.critical import CriticalKind, disagreement
from gflow.rates import Rate, RateStatus
from gflow.trajectory import Trajectory


@dataclass(frozen=True)
class SummaryRow:
    """The flow or a descent: what it is, its cost, its distance to the flow and its rate.

    `descent` and `comparison` are None for the flow, `rate` is None if there is none.
    """

    method: str
    trajectory: Trajectory
    seconds: float
    rate: Rate | None
    descent: Descent | None = None
    comparison: Comparison | None = None

    text_columns: ClassVar[tuple[str, ...]] = ("method", "risk - limit ~")

    def cells(self) -> dict[str, str]:
        """The printed cells by column."""
        descent, comparison = self.descent, self.comparison
        risk = np.asarray(self.trajectory.risk)
        risk = risk[np.isfinite(risk)]
        return {
            "method": self.method,
            "h": f"{descent.step_size:.4g}" if descent else "",
            "h λ/2": f"{descent.fraction:.3g}" if descent else "",
            "steps": f"{int(self.trajectory.stats['num_steps']):,}",
            "seconds": f"{self.seconds:.2f}",
            "final risk": f"{float(risk[-1]):.6g}" if len(risk) else "-",
            "risk gap": f"{comparison.risk_difference[-1]:.3g}" if comparison else "",
            "max distance": f"{comparison.largest:.3g}" if comparison else "",
            "end distance": f"{comparison.distance[-1]:.3g}" if comparison else "",
            "risk - limit ~": self._outcome(),
        }

    def _outcome(self) -> str:
        """The law of decay, or what ended the trajectory early."""
        if (since := divergence_time(self.trajectory)) is not None:
            return f"diverged at t = {since:.4g}"
        if not self.trajectory.succeeded:
            end = float(np.asarray(self.trajectory.ts)[-1])
            return f"{self.trajectory.result_name.replace('_', ' ')} at t = {end:.4g}"
        return "hovers" if hovers(self.trajectory) else _law(self.rate)


@dataclass(frozen=True)
class EndRow:
    """The end point of a trajectory, and the trajectory's rate, None if there is none."""

    label: str
    end: EndPoint
    rate: Rate | None

    text_columns: ClassVar[tuple[str, ...]] = ("end of", "kind")

    def cells(self) -> dict[str, str]:
        """The printed cells by column; only label, kind and rate if no critical point was found."""
        end, found = self.end, self.end.found
        predicted = "" if end.rate is None else f"exp(-{end.rate:.4g} t)"
        apart = "" if end.apart is None else f"{end.apart:.3g}"
        return {
            "end of": self.label,
            "kind": end.kind,
            "risk": f"{end.risk:.6g}" if found else "",
            "residual": f"{end.residual:.1e}" if found else "",
            "moved": f"{end.distance:.2g}" if found else "",
            "dead": str(end.dead) if found else "",
            "kinks": str(end.active_kinks) if found else "",
            "zero λ": f"{end.zeros} of {len(end.spectrum)}" if found else "",
            "rate": _law(self.rate),
            "predicted": predicted if found and self.rate is not None else "",
            "apart": apart + (", different" if end.different else "") if found else "",
        }


def _law(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.status in (RateStatus.NOT_YET_CONVERGED, RateStatus.MAY_NOT_DECAY):
        return rate.status.value
    return rate.formula() + ("" if rate.status is RateStatus.CALLED else " ?")


def summary_rows(run: Run, analysis: Analysis) -> list[SummaryRow]:
    """A row for the flow, for the flow after t1, and for each descent."""
    seconds = lambda label: run.seconds.get(label, float("nan"))
    flows = (("flow", "gradient flow", run.flow), (FURTHER, "the flow, further", run.further))
    rows = [
        SummaryRow(method, flow, seconds(label), analysis.rates.get(label))
        for label, method, flow in flows
        if flow is not None
    ]
    for d in run.descents:
        rate, comparison = analysis.rates.get(d.label), analysis.comparisons.get(d.label)
        rows.append(SummaryRow("descent", d.trajectory, seconds(d.label), rate, d, comparison))
    return rows


def end_rows(run: Run, analysis: Analysis) -> list[EndRow]:
    """A row for each trajectory; none if no critical point was found."""
    if not any(end.found for end in run.ends.values()):
        return []
    return [EndRow(label, end, analysis.rates.get(label)) for label, end in run.ends.items()]


def answers(run: Run, analysis: Analysis) -> list[str]:
    """What came out, in sentences: where the flow leads, how fast, how closely descent follows."""
    found = (_end_answer(run), _rate_answer(run, analysis), _order_answer(run, analysis))
    return [text for text in found if text]


def _end_answer(run: Run) -> str:
    """Where the flow leads, and whether the descents lead to the same critical point."""
    end, followed = run.ends.get(FURTHER, run.ends.get("flow")), followed_flow(run)
    if end is None:
        return ""
    at = "At the end"
    if followed is not None:
        at = f"At t = {float(np.asarray(followed.trajectory.ts)[-1]):.4g}"
    if not end.found:
        further = "" if run.further is not None else " Use `--follow TIME`."
        return f"{at} the flow is not near a critical point. {end.message}{further}"
    degenerate = end.kind == CriticalKind.DEGENERATE.value
    kind = "degenerate critical point" if degenerate else end.kind
    text = f"{at} the flow is {end.distance:.2g} away from a {kind}, with risk {end.risk:.6g} and "
    text += f"residual {end.residual:.1e}"
    if end.active_kinks:
        some = "one kink" if end.active_kinks == 1 else f"{end.active_kinks} kinks"
        text += f", on {some}: the risk is not differentiable there"
    text += f". {end.message}"
    compared = {label: end for label, end in run.ends.items() if end.different is not None}
    different = [label for label, end in compared.items() if end.different]
    if different:
        text += f" The descents with {', '.join(different)} lead to other critical points."
    elif compared:
        text += " The critical points found for the descents have the same risk and kind."
    return text


def _rate_answer(run: Run, analysis: Analysis) -> str:
    """The law of the flow's risk above its limit: of the part that was followed further, or of the
    first one, if a law is called of that alone."""
    followed = followed_flow(run)
    if followed is None:
        return ""
    known = [(followed.label, followed.end), ("flow", run.ends.get("flow"))]
    found = [(analysis.rates[label], end) for label, end in known if label in analysis.rates]
    found.sort(key=lambda of: of[0].status is not RateStatus.CALLED)
    if not found:
        return ""
    rate, end = found[0]
    if rate.status is not RateStatus.CALLED:
        text = f"How fast the risk approaches its limit is open ({rate.reason})"
        best = f"; the best law is {rate.formula()}" if rate.best.is_positive else ""
        return f"{text}{best}. {_spectrum_answer(rate, end)}".strip()
    low, high = rate.tail_interval
    number = {"exponential": "rate", "power": "exponent"}.get(rate.better, "final time")
    text = f"The risk approaches its limit like {rate.formula()}, with the {number} in "
    text += _as_interval(low, high)
    if rate.better == "exponential":
        text += f" on the tail and in {_as_interval(*rate.interval)} for t → ∞"
    text += " (95 % interval)"
    if rate.better == "exponential" and end is not None and end.rate is not None:
        along = end.kinks_along
        slid = f", along {along} kink{'s' * (along != 1)} of the slide," if along else ""
        text += f"; the Hessian at the critical point{slid} predicts {end.rate:.5g}"
    return f"{text}. {_spectrum_answer(rate, end)}".strip()


def _spectrum_answer(rate: Rate, end: EndPoint | None) -> str:
    """Why the spectrum at the critical point predicts another rate, if it does."""
    return disagreement(rate, end.modes) if end is not None and end.mode_rates else ""


def _as_interval(low: float, high: float) -> str:
    """Both ends, with two digits of the length."""
    if not 0 < high - low < np.inf:
        return f"{low:.6g} to {high:.6g}"
    decimals = min(max(1 - int(np.floor(np.log10(high - low))), 0), 15)
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _order_answer(run: Run, analysis: Analysis) -> str:
    order = analysis.order
    if order is None:
        if not run.descents:
            return ""
        return (
            f"No order: fewer than three descents with h λ/2 ≤ "
            f"{MAX_ORDER_FRACTION:g} reached the end."
        )
    text = f"Descent follows the flow with {order!r} in the step size; theory predicts 1."
    if order.interval[1] - order.interval[0] > OPEN_ORDER_LENGTH:
        text = f"With which order descent follows the flow is open: {order!r} in the step size; "
        text += "theory predicts 1. More and smaller `--step-fractions` make the interval shorter."
    if order.partings:
        one = len(order.partings) == 1
        who = "One descent takes" if one else f"{len(order.partings)} descents take"
        parted = ", ".join(f"h = {h:.3g} at t = {t:.3g}" for h, t in order.partings)
        text += f" {who} another branch and part{'s' * one} from the flow ({parted}); the order is "
        text += "that before."
    if hovering := sum(hovers(d.trajectory) for d in run.descents):
        every = "All " * (hovering == len(run.descents) > 1)
        who = "One descent hovers" if hovering == 1 else f"{every}{hovering} descents hover"
        text += f" {who} at the end, with a risk that goes up and down"
        end = run.ends.get("flow")
        on_kinks = end is not None and end.active_kinks > 0
        text += ": steps of one size do not settle on kinks." if on_kinks else "."
    return text
