"""What the trajectories of a run say: gaps, the order in the step size, rates."""

from dataclasses import dataclass

import numpy as np

from gflow.arguments import ArgumentError
from gflow.compare import Gap, Order, compare, observed_order
from gflow.rates import Rate, fit_rate
from gflow.store import Descent, Run
from gflow.trajectory import Trajectory

# Beyond a quarter of the stability limit the error of descent is not yet proportional to h.
_ASYMPTOTIC = 0.25


@dataclass(frozen=True)
class Analysis:
    """Gaps of the descents to the flow, their order in h, and the rates of all risks, by label."""

    gaps: dict[str, Gap]
    order: Order | None
    rates: dict[str, Rate]


def analyse(run: Run) -> Analysis:
    """The analysis of a run, as far as the run got."""
    trajectories = {"flow": run.flow} if run.flow is not None else {}
    trajectories |= {d.label: d.trajectory for d in run.descents}
    rates = {label: rate for label, t in trajectories.items() if (rate := _rate(t)) is not None}
    if run.flow is None:
        return Analysis({}, None, rates)
    gaps = {d.label: compare(run.flow, d.trajectory) for d in run.descents}
    return Analysis(gaps, _order(run.descents, gaps), rates)


def _rate(trajectory: Trajectory) -> Rate | None:
    try:
        return fit_rate(trajectory.ts, trajectory.risk, known_limit=False)
    except ArgumentError:  # too few points, or a risk that does not decrease
        return None


def _order(descents: list[Descent], gaps: dict[str, Gap]) -> Order | None:
    """The order from the descents with small steps that got to the end."""
    small = [d for d in descents if d.fraction <= _ASYMPTOTIC] or descents
    usable = [d for d in small if d.trajectory.succeeded and gaps[d.label].largest > 0]
    if len(usable) < 3:
        return None
    return observed_order([d.step_size for d in usable], [gaps[d.label].largest for d in usable])


COLUMNS = (
    "method",
    "h",
    "of 2/λ",
    "steps",
    "seconds",
    "final risk",
    "max distance",
    "end distance",
    "risk - limit ~",
)


def rows(run: Run, analysis: Analysis) -> list[tuple[str, ...]]:
    """The summary table of a run, one row for the flow and one for each descent."""
    table = []
    if run.flow is not None:
        table.append(
            _row(
                run,
                analysis,
                "flow",
                run.flow,
                (
                    "",
                    "",
                ),
                ("", ""),
            )
        )
    for d in run.descents:
        gap = analysis.gaps.get(d.label)
        distances = ("", "") if gap is None else (f"{gap.largest:.3g}", f"{gap.distance[-1]:.3g}")
        size = (f"{d.step_size:.4g}", f"{d.fraction:.3g}")
        table.append(_row(run, analysis, d.label, d.trajectory, size, distances))
    return table


def _row(run: Run, analysis: Analysis, label, trajectory, size, distances) -> tuple[str, ...]:
    rate = analysis.rates.get(label)
    law = "" if rate is None else _law(rate)
    if not trajectory.succeeded:
        law = f"{trajectory.result_name.replace('_', ' ')} at t = {float(trajectory.ts[-1]):.4g}"
    finite = trajectory.risk[np.isfinite(trajectory.risk)]
    return (
        "gradient flow" if label == "flow" else "descent",
        *size,
        f"{int(trajectory.stats['num_steps']):,}",
        f"{run.seconds.get(label, float('nan')):.2f}",
        f"{float(finite[-1]):.6g}" if len(finite) else "-",
        *distances,
        law,
    )


def _law(rate: Rate) -> str:
    # A mean of squares has no limit below zero: such a fit shows a risk that is still travelling.
    if rate.interval[0] <= 0 or rate.limit < 0:
        return "still travelling"
    return rate.formula() + (" ?" if rate.law == "undecided" else "")
