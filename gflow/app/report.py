"""A run directory as one self-contained HTML page."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from gflow import piecewise, plots
from gflow.activations import as_activation
from gflow.app.analysis import Analysis, analyse, followed_flow
from gflow.app.run_directory import Run, load_run, write_facts
from gflow.app.summary import EndRow, SummaryRow, end_rows, end_sentence, summary_rows
from gflow.display import fact_table
from gflow.hessian import Spectrum
from gflow.rates import RateStatus
from gflow.trajectory import Trajectory

_STYLE = """
:root { --ink: #1d1d1f; --soft: #6e6e73; --line: #d9d9de; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 68rem;
       margin: 2.5rem auto; padding: 0 1.5rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--soft); margin-top: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child, td:last-child, th:last-child
{ text-align: left; }
.facts td, .facts th { text-align: left; white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr));
           gap: 1.2rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; }
ul.notes { background: #fff8e6; padding: .7rem 1rem .7rem 2rem; border-radius: .4rem; }
details { margin-top: 1rem; } pre { background: #f5f5f7; padding: .8rem; overflow-x: auto; }
"""

_LEGEND = (
    "λ is the largest Hessian eigenvalue at the start. Distances are Euclidean, over all "
    "parameters, at matched times. The risk gap is the risk of the descent minus that of the flow "
    "at the end. Seconds include compilation. The law is the best of an exponential, a power law "
    "and a finite time for the tail of the risk, with its standard error. “?”: another law fits "
    "about equally well, or the tail shows too little of the law. “Not yet converged”: the fitted "
    "limit is below zero, which is impossible for a mean of squares, so t1 is too early for a "
    "rate. “Not decreasing”: the rate may be zero or negative."
)


_END_LEGEND = (
    "The critical point near the end of each trajectory, found by Newton's method across "
    "activation patterns. The residual is the norm of the minimal-norm subgradient at that point. "
    "“Moved” is its distance from the end of the trajectory, “apart” its distance from the flow's "
    "critical point, “kinks” the number of active kinks. In the directions of zero eigenvalues λ "
    "the risk is constant to second order. The rate is fitted to the risk above its value at the "
    "critical point; the predicted rate is twice the smallest positive eigenvalue among the modes "
    "that carry the gap."
)


def write_report(directory: Path) -> Path:
    """Writes the report of a run directory: `report.html`, all figures as `overview.png`, and the
    numbers of the analysis in `run.json`.

    **Returns:** the path of `report.html`.
    """
    run = load_run(directory)
    analysis = analyse(run)
    page = directory / "report.html"
    config = (directory / "config.toml").read_text()
    page.write_text(render(run, analysis, config), encoding="utf-8")
    _write_overview(run, analysis, directory / "overview.png")
    write_facts(directory, {"analysis": analysis.facts()})
    return page


def render(run: Run, analysis: Analysis, config: str) -> str:
    """The page of a run: tables, figures and provenance."""
    parts = [
        f"<h1>{html.escape(_title(run))}</h1>",
        f'<p class="lead">{html.escape(_lead(run))}</p>',
        _notes(run),
        f"<p>{html.escape(_verdict(run, analysis))}</p>",
        _table(summary_rows(run, analysis)),
        f"<p>{_LEGEND}</p>",
        _ends(run, analysis),
        '<h2>Figures</h2><div class="figures">',
        *(_figure(panel) for panel in _panels(run, analysis)),
        "</div>",
        "<h2>Accuracy of the flow</h2>" + _flow_facts(run),
        "<h2>Provenance</h2>",
        fact_table({**run.provenance, "seed": str(run.config.seed)}, css_class="facts"),
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(_title(run))}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _title(run: Run) -> str:
    return f"Gradient flow and gradient descent on {run.table.name}"


_LOSSES = {
    "squared": "mean of squares",
    "logistic": "logistic loss",
    "cross-entropy": "cross-entropy",
}


def _lead(run: Run) -> str:
    c, (n, d) = run.config, run.table.x.shape
    if c.risk == "population":
        low, high = piecewise.named(c.data).interval
        risk = f"target {c.data}; mean of squares under the {c.density} density on "
        risk += f"[{low:g}, {high:g}], integrated exactly"
    else:
        features = f"{n} rows, {d} feature{'s' * (d > 1)}"
        risk = f"{features}, target {run.table.target}; {_LOSSES[c.loss]}"
    return (
        f"One hidden layer of {c.width} {c.activation} units, initialisation {c.init}, seed "
        f"{c.seed}; {risk}; flow time 0 to "
        f"{c.t1:g}; sharpness λ = {run.sharpness:.4g}. {' '.join(run.table.notes)}"
    )


def _notes(run: Run) -> str:
    notes = list(run.notes)
    if run.status != "complete":
        verb = "was" if run.status == "interrupted" else "has"
        notes.insert(0, f"The run {verb} {run.status}; the results so far are kept.")
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _verdict(run: Run, analysis: Analysis) -> str:
    if run.flow is None:
        return "The run ended before the first saved time of the flow."
    text = (
        f"The risk of the flow is {run.flow.risk[0]:.4g} at the start and "
        f"{run.flow.risk[-1]:.4g} at the end."
    )
    if analysis.order is not None:
        text += (
            f" Descent follows the flow with {analysis.order!r} in the step size, measured by the "
            "largest distance; theory predicts 1."
        )
    elif run.descents:
        text += " The order in the step size needs three descents with small steps."
    return text


def _ends(run: Run, analysis: Analysis) -> str:
    if not run.ends:
        return ""
    text = f"<h2>Critical points</h2><p>{html.escape(end_sentence(run))}</p>"
    if rows := end_rows(run, analysis):
        text += f"{_table(rows)}<p>{_END_LEGEND}</p>"
    return text


def _table(rows: Sequence[SummaryRow] | Sequence[EndRow]) -> str:
    """One column for each cell of the rows; "" if there are no rows."""
    if not rows:
        return ""
    line = lambda tag, texts: "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
    body = "".join(f"<tr>{line('td', row.cells().values())}</tr>" for row in rows)
    head = f"<thead><tr>{line('th', rows[0].cells())}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _flow_facts(run: Run) -> str:
    if run.flow is None:
        return "<p>There is no flow.</p>"
    return (
        fact_table(run.flow.summary(), css_class="facts")
        + "<p>The energy drift is L(θ(0)) − L(θ(t)) − ∫‖θ'‖². The balance drift is the change of "
        "‖w‖² + b² − v² of each unit. Both are zero along an exact flow.</p>"
    )


class _Panel(NamedTuple):
    """A figure: its caption, and the function that draws it into axes."""

    caption: str
    draw: Callable[[Any], Any]


def _figure(panel: _Panel) -> str:
    caption = html.escape(panel.caption)
    return f"<figure>{_svg(panel.draw)}<figcaption>{caption}</figcaption></figure>"


def _panels(run: Run, analysis: Analysis) -> list[_Panel]:
    """The figures of a run, none without a flow."""
    if run.flow is None:
        return []
    flow, comparisons = run.flow, analysis.comparisons
    trajectories = {d.label: d.trajectory for d in run.descents} | {"flow": flow}
    risk = lambda ax: plots.risk(trajectories, ax=ax)
    panels = [_Panel("Risk of the flow and of the descents.", risk)]
    if comparisons:
        caption = "Distance of each descent to the flow at the same time."
        panels.append(_Panel(caption, lambda ax: plots.distance(comparisons, ax=ax)))
    if (order := analysis.order) is not None:
        left_out = [d for d in run.descents if d.step_size not in order.step_sizes]
        ended = [d for d in left_out if d.trajectory.succeeded]
        others = [d.step_size for d in ended], [comparisons[d.label].largest for d in ended]
        caption = "Largest distance against the step size: the order of descent as an integrator."
        panels.append(_Panel(caption, lambda ax: plots.order(order, others, ax=ax)))
    panels += _function_panels(run, flow)
    panels += _rate_panels(run, analysis)
    if flow.kinks is not None and len(flow.kinks):
        caption = "Kinks along the flow. Red lines mark slides."
        panels.append(_Panel(caption, lambda ax: plots.kinks(flow, ax=ax)))
        if run.table.x.shape[1] == 1 and run.config.bias:
            x, caption = run.table.x, "Places of the kinks; the data are lines."
            panels.append(_Panel(caption, lambda ax: plots.breakpoints(flow, x, ax=ax)))
    return panels


def _function_panels(run: Run, flow: Trajectory) -> list[_Panel]:
    """The function of the network along the flow, or its units if it has several inputs."""
    x, y = run.table.x, run.table.y
    if run.config.risk == "population":
        target = piecewise.named(run.config.data)
        density = piecewise.named_density(run.config.density, *target.interval)
        caption = "The function along the flow, the target, and below them the density."
        learned = lambda ax: plots.learned_function(flow, target=target, density=density, ax=ax)
        panels = [_Panel(caption, learned)]
        if run.config.bias and as_activation(run.config.activation).kinked:
            caption = "Places of the kinks; the breakpoints of the target are lines."
            ends = target.breakpoints
            panels.append(_Panel(caption, lambda ax: plots.breakpoints(flow, ends, ax=ax)))
        return panels
    if run.config.loss == "cross-entropy":
        return []
    if x.shape[1] == 1:
        learned = lambda ax: plots.learned_function(flow, x, y, ax=ax)
        return [_Panel("The function along the flow.", learned)]
    names = run.table.features
    caption = "Paths of the hidden units |v| w along the flow. Dots mark their ends."
    return [_Panel(caption, lambda ax: plots.unit_directions(flow, names, ax=ax))]


def _rate_panels(run: Run, analysis: Analysis) -> list[_Panel]:
    panels: list[_Panel] = []
    followed = followed_flow(run)
    if followed is None:
        return panels
    flow, end = followed.trajectory, followed.end
    rate = analysis.rates.get(followed.label)
    if rate is not None and (end is not None or rate.status is RateStatus.CALLED):
        gap = flow.risk if end is None or rate.limit else flow.risk - end.risk
        log_log = lambda ax: plots.gap(flow.ts, gap, rate, x="log", ax=ax)
        log_linear = lambda ax: plots.gap(flow.ts, gap, rate, x="linear", ax=ax)
        slopes = lambda ax: plots.local_slopes(rate, ax=ax)
        panels += [
            _Panel("Risk above its limit against log time, and the fitted law.", log_log),
            _Panel("Risk above its limit against time, and the fitted law.", log_linear),
            _Panel("Local slopes of that gap, and their plateau.", slopes),
        ]
    if end is not None and end.spectrum:
        spectrum = Spectrum.complete_of(end.spectrum)
        caption = "Eigenvalues of the Hessian at the flow's critical point."
        panels.append(_Panel(caption, lambda ax: plots.spectrum(spectrum, ax=ax)))
    return panels


def _write_overview(run: Run, analysis: Analysis, path: Path) -> None:
    panels = _panels(run, analysis)
    if not panels:
        return
    num_rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 4.2 * num_rows), layout="constrained")
    for k, panel in enumerate(panels):
        panel.draw(figure.add_subplot(num_rows, 2, k + 1))
    figure.savefig(path, dpi=110)


def _svg(draw: Callable[[Any], Any]) -> str:
    # With fixed ids the same run has the same report.
    with rc_context({"svg.hashsalt": "gflow", "font.size": 10}):
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
