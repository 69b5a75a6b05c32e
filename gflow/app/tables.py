"""What the trajectories of a run say: gaps, the order in the step size, rates."""

from dataclasses import dataclass

import numpy as np

from gflow.app.end_points import EndPoint
from gflow.app.run_directory import FURTHER, Descent, Run
from gflow.arguments import ArgumentError
from gflow.compare import Comparison, ConvergenceOrder, compare, observed_order
from gflow.rates import Rate, fit_rate
from gflow.trajectory import Trajectory

# Beyond a quarter of the stability limit the error of descent is not yet proportional to h.
_ASYMPTOTIC = 0.25


@dataclass(frozen=True)
class Analysis:
    """Gaps of the descents to the flow, their order in h, and the rates of all risks, by label."""

    gaps: dict[str, Comparison]
    order: ConvergenceOrder | None
    rates: dict[str, Rate]


def analyse(run: Run) -> Analysis:
    """The analysis of a run, as far as the run got."""
    ended = {label: _rate(t, run.ends.get(label)) for label, t in run.trajectories().items()}
    rates = {label: rate for label, rate in ended.items() if rate is not None}
    if run.flow is None:
        return Analysis({}, None, rates)
    gaps = {d.label: compare(run.flow, d.trajectory) for d in run.descents}
    return Analysis(gaps, _order(run.descents, gaps), rates)


def _rate(trajectory: Trajectory, end: EndPoint | None) -> Rate | None:
    """To the risk of the end point, if one was found, not above the end of the trajectory."""
    try:
        rounding = 1e-12 * float(trajectory.risk[0])
        if end is not None and end.found and end.risk <= float(trajectory.risk[-1]) + rounding:
            gap = trajectory.risk - end.risk
            return fit_rate(trajectory.ts, gap, predicted=end.rate)
        return fit_rate(trajectory.ts, trajectory.risk, known_limit=False)
    except ArgumentError:  # too few points, or a risk that does not decrease
        return None


def blown_up(trajectory: Trajectory) -> float | None:
    """The first recorded time from which on the risk is above ten times its start; None if it is
    not so at the end."""
    risk = np.asarray(trajectory.risk)
    high = ~(risk <= risk[0] + 9 * abs(risk[0]))
    if not high[-1]:
        return None
    return float(trajectory.ts[len(high) - int(np.argmin(high[::-1]))])


def _order(descents: list[Descent], gaps: dict[str, Comparison]) -> ConvergenceOrder | None:
    """The order from the descents with small steps that got to the end."""
    sound = [d for d in descents if d.trajectory.succeeded and blown_up(d.trajectory) is None]
    usable = [d for d in sound if d.fraction <= _ASYMPTOTIC and gaps[d.label].largest > 0]
    if len(usable) < 3:
        return None
    return observed_order([d.step_size for d in usable], [gaps[d.label].largest for d in usable])


COLUMNS = (
    "method",
    "h",
    "h λ/2",
    "steps",
    "seconds",
    "final risk",
    "risk gap",
    "max distance",
    "end distance",
    "risk - limit ~",
)


def rows(run: Run, analysis: Analysis) -> list[tuple[str, ...]]:
    """The summary table of a run, one row for the flow and one for each descent."""
    table = []
    for label, flow in (("flow", run.flow), (FURTHER, run.further)):
        if flow is not None:
            table.append(_row(run, analysis, label, flow, ("", ""), ("", "", "")))
    for d in run.descents:
        gap = analysis.gaps.get(d.label)
        apart = () if gap is None else (gap.risk_gap[-1], gap.largest, gap.distance[-1])
        distances = tuple(f"{value:.3g}" for value in apart) or ("", "", "")
        size = (f"{d.step_size:.4g}", f"{d.fraction:.3g}")
        table.append(_row(run, analysis, d.label, d.trajectory, size, distances))
    return table


def _row(run: Run, analysis: Analysis, label, trajectory, size, distances) -> tuple[str, ...]:
    rate = analysis.rates.get(label)
    law = "" if rate is None else _law(rate)
    if (since := blown_up(trajectory)) is not None:
        law = f"diverged at t = {since:.4g}"
    elif not trajectory.succeeded:
        law = f"{trajectory.result_name.replace('_', ' ')} at t = {float(trajectory.ts[-1]):.4g}"
    finite = trajectory.risk[np.isfinite(trajectory.risk)]
    return (
        {"flow": "gradient flow", FURTHER: "the flow, further"}.get(label, "descent"),
        *size,
        f"{int(trajectory.stats['num_steps']):,}",
        f"{run.seconds.get(label, float('nan')):.2f}",
        f"{float(finite[-1]):.6g}" if len(finite) else "-",
        *distances,
        law,
    )


def _law(rate: Rate) -> str:
    for sign in ("still travelling", "not closing"):
        if rate.reason.startswith(sign):
            return sign
    return rate.formula() + (" ?" if rate.law == "undecided" else "")


END_COLUMNS = (
    "end of",
    "kind",
    "risk",
    "residual",
    "moved",
    "dead",
    "sliding",
    "zero λ",
    "rate",
    "predicted",
    "apart",
)


def end_rows(run: Run, analysis: Analysis) -> list[tuple[str, ...]]:
    """The table of end points, one row for each trajectory; none if there are no end points."""
    table = []
    if not any(end.found for end in run.ends.values()):
        return table
    for label, end in run.ends.items():
        rate = analysis.rates.get(label)
        fitted = "" if rate is None else _law(rate)
        if not end.found:
            empty = ("",) * 6
            table.append((label, end.kind, *empty, fitted, "", ""))
            continue
        apart = "" if end.apart is None else f"{end.apart:.3g}"
        table.append(
            (
                label,
                end.kind,
                f"{end.risk:.6g}",
                f"{end.residual:.1e}",
                f"{end.distance:.2g}",
                str(end.dead),
                str(end.sliding),
                f"{end.zeros} of {len(end.spectrum)}",
                fitted,
                "" if end.rate is None else f"exp(-{end.rate:.4g} t)",
                apart + (", another one" if end.different else ""),
            )
        )
    return table


def end_sentence(run: Run) -> str:
    """What the end points say of the flow and the descents."""
    flow = run.ends.get(FURTHER, run.ends.get("flow"))
    if flow is None:
        return ""
    last = run.flow if run.further is None else run.further
    at = "The end:" if last is None else f"At t = {float(last.ts[-1]):.4g}"
    if not flow.found:
        further = "" if run.further is not None else " `--follow TIME` does."
        return f"{at} the flow is near no critical point. {flow.message}{further}"
    text = f"{at} the flow is on the way to a {flow.kind}. {flow.message}"
    others = {label: end for label, end in run.ends.items() if end.different is not None}
    different = [label for label, end in others.items() if end.different]
    if different:
        text += f" To other critical points lead the descents with {', '.join(different)}."
    elif others:
        text += " Those of the descents that were found have the same risk and kind."
    return text


def flow_end(run: Run) -> tuple[str, Trajectory | None, EndPoint | None]:
    """The label of the flow as far as it was followed, it, and its critical point if found."""
    label, flow = ("flow", run.flow) if run.further is None else (FURTHER, run.further)
    end = run.ends.get(label)
    return label, flow, end if end is not None and end.found else None


def facts(analysis: Analysis) -> dict:
    """The analysis as plain numbers, for run.json."""
    return {
        "gaps": {
            label: {
                "largest_distance": gap.largest,
                "final_distance": float(gap.distance[-1]),
                "final_risk_gap": float(gap.risk_gap[-1]),
            }
            for label, gap in analysis.gaps.items()
        },
        "order": None
        if analysis.order is None
        else {"value": analysis.order.value, "interval": list(analysis.order.interval)},
        "rates": {
            label: {
                "law": rate.law,
                "better": rate.better,
                "verdict": rate.verdict,
                "value": rate.value,
                "interval": list(rate.interval),
                "window": list(rate.window),
                "limit": rate.limit,
            }
            for label, rate in analysis.rates.items()
        },
    }
