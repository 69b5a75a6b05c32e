"""A run directory as one self-contained HTML page."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gflow import piecewise
from gflow.app.analysis import Analysis, analyse
from gflow.app.config import Config
from gflow.app.figures import Panel, as_svg, explorer_of, panels, write_figures, write_overview
from gflow.app.run_directory import Run, load_run, write_facts
from gflow.app.summary import EndRow, SummaryRow, answers, end_rows, summary_rows
from gflow.display import fact_table

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #63636a; --line: #d9d9de;
        --page: #ffffff; --note: #fff8e6; --code: #f5f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --soft: #a2a2aa; --line: #3a3a40; --page: #161618; --note: #322a12;
          --code: #232327; }
  figure svg { filter: invert(0.93) hue-rotate(180deg); } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 68rem;
       margin: 2.5rem auto; padding: 0 1.5rem; background: var(--page); overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, ul.answers { max-width: 46rem; } p.legend, p.lead { color: var(--soft); font-size: .9rem; }
ul.answers { padding-left: 1.2rem; } ul.answers li { margin: .3rem 0; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child, td:last-child, th:last-child
{ text-align: left; }
.facts td, .facts th { text-align: left; white-space: normal; vertical-align: top; }
.facts th { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr));
           gap: 1.6rem; }
figure { margin: 0; min-width: 0; } figure svg { width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; }
ul.notes { background: var(--note); padding: .7rem 1rem .7rem 2rem; border-radius: .4rem; }
details { margin-top: 1rem; }
pre { background: var(--code); padding: .8rem; overflow-x: auto; }
@media (max-width: 40rem) { body { margin: 1.2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.35rem; } }
"""

_LEGEND = (
    "λ is the largest Hessian eigenvalue at the start. Distances are Euclidean, over all "
    "parameters, at matched times. The risk gap is the risk of the descent minus that of the flow "
    "at the end. Seconds include compilation. The law is the best of an exponential, a power law "
    "and a finite time for the tail of the risk, with its standard error. “?”: another law fits "
    "about equally well, or the tail shows too little of the law. “Not yet converged”: the fitted "
    "limit is below zero, which is impossible for a mean of squares, so t1 is too early for a "
    "rate. “May not decay”: the rate may be zero or negative. “Hovers”: the risk goes up and down "
    "at the end, as on kinks, on which steps of one size do not settle."
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


class Report(NamedTuple):
    """The page of a run and the analysis that it shows."""

    page: Path
    analysis: Analysis


def write_report(directory: Path, *, figures: bool = False) -> Report:
    """Writes the report of a run directory: `report.html`, all figures as `overview.png`, and the
    numbers of the analysis in `run.json`.

    `figures`: also write each figure to the folder `figures`, as SVG and PDF.

    **Returns:** the path of `report.html`, and the analysis.
    """
    run = load_run(directory)
    analysis = analyse(run)
    page = directory / "report.html"
    config = (directory / "config.toml").read_text()
    page.write_text(render(run, analysis, config), encoding="utf-8")
    write_overview(panels(run, analysis), directory / "overview.png")
    if figures:
        write_figures(panels(run, analysis), directory / "figures")
    write_facts(directory, {"analysis": analysis.facts()})
    return Report(page, analysis)


def render(run: Run, analysis: Analysis, config: str) -> str:
    """The page of a run: tables, figures and provenance."""
    sentences = answers(run, analysis) or ["The run ended before the first saved time of the flow."]
    items = "".join(f"<li>{html.escape(text)}</li>" for text in sentences)
    parts = [
        f"<h1>{html.escape(_title(run))}</h1>",
        f"<p>{html.escape(_question(run))}</p>",
        f'<ul class="answers">{items}</ul>',
        _notes(run),
        f'<p class="lead">{html.escape(_lead(run))}</p>',
        _table(summary_rows(run, analysis)),
        f'<p class="legend">{_LEGEND}</p>',
        _ends(run, analysis),
        _page_to_watch(run),
        '<h2>Figures</h2><div class="figures">',
        *(_figure(panel) for panel in panels(run, analysis)),
        "</div>",
        "<h2>Accuracy of the flow</h2>" + _flow_facts(run),
        "<h2>Provenance</h2>",
        fact_table({**run.provenance, "seed": str(run.config.seed)}, css_class="facts"),
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark">'
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


def _question(run: Run) -> str:
    """What was asked, for readers who do not know the field."""
    c, (n, d) = run.config, run.table.x.shape
    count, layers = sum(c.widths), len(c.widths)
    units = f"{count} hidden unit{'s' * (count > 1)}" + f" in {layers} layers" * (layers > 1)
    if c.risk == "population":
        learned = f"the function {c.data}"
    else:
        columns = f"{d} feature{'s' * (d > 1)} of {n} rows"
        learned = f"to predict {run.table.target} from the {columns} of {run.table.name}"
    text = (
        f"A neural network with {units} learns {learned}. Its risk is {_risk_in_words(c)}. "
        "Training lowers the risk step by step (gradient descent). As the steps get smaller, the "
        "path of the parameters approaches a continuous one, the gradient flow. This run asks "
        "where the flow ends, how fast the risk gets there, and how closely descent follows."
    )
    if run.flow is not None:
        start, end = (float(run.flow.risk[k]) for k in (0, -1))
        text += f" Along the flow the risk fell from {start:.4g} to {end:.4g}."
    return text


def _risk_in_words(config: Config) -> str:
    decay = config.weight_decay
    penalty = f" plus a penalty for large parameters, {decay:g}/2 ‖θ‖²" if decay > 0 else ""
    return f"the {_LOSSES[config.loss]}{penalty}"


def _lead(run: Run) -> str:
    c, (n, d) = run.config, run.table.x.shape
    if c.risk == "population":
        low, high = piecewise.named(c.data).interval
        risk = f"target {c.data}; mean of squares under the {c.density} density on "
        risk += f"[{low:g}, {high:g}], integrated exactly"
    else:
        features = f"{n} rows, {d} feature{'s' * (d > 1)}"
        risk = f"{features}, target {run.table.target}; {_LOSSES[c.loss]}"
    if c.weight_decay > 0:
        risk += f"; weight decay λ = {c.weight_decay:g}"
    layers = f"One hidden layer of {c.width}"
    if c.hidden is not None:
        layers = f"{len(c.widths)} hidden layers of {' and '.join(map(str, c.widths))}"
    return (
        f"{layers} {c.activation} units, initialisation {c.init}, seed "
        f"{c.seed}; {risk}; flow time 0 to "
        f"{_end(run)}; sharpness λ = {run.sharpness:.4g}. {' '.join(run.table.notes)}"
    )


def _notes(run: Run) -> str:
    notes = list(run.notes)
    if run.status != "complete":
        verb = "was" if run.status == "interrupted" else "has"
        notes.insert(0, f"The run {verb} {run.status}; the results so far are kept.")
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _end(run: Run) -> str:
    return "its end" if run.config.t1 is None else f"{run.config.t1:g}"


def _ends(run: Run, analysis: Analysis) -> str:
    if not run.ends:
        return ""
    if not (rows := end_rows(run, analysis)):
        return ""
    return f'<h2>Critical points</h2>{_table(rows)}<p class="legend">{_END_LEGEND}</p>'


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
        + '<p class="legend">The energy drift is L(θ(0)) − L(θ(t)) − ∫‖dθ/dt‖². The balance drift '
        "is the change of ‖w‖² + b² − v² of each unit, with the weights into and out of it, beyond "
        "that by weight decay. Both are zero along an exact flow.</p>"
    )


def _page_to_watch(run: Run) -> str:
    page = explorer_of(run)
    return "" if page is None else f"<h2>Along the flow</h2>{page.embedded()}"


def _figure(panel: Panel) -> str:
    caption = html.escape(panel.caption)
    return f"<figure>{as_svg(panel)}<figcaption>{caption}</figcaption></figure>"
