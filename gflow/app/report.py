"""A run directory as one self-contained HTML page."""

import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from gflow import piecewise
from gflow.activations import as_activation
from gflow.app.run_directory import Run, load_run
from gflow.app.tables import (
    COLUMNS,
    END_COLUMNS,
    Analysis,
    analyse,
    end_rows,
    end_sentence,
    facts,
    flow_end,
    rows,
)
from gflow.display import fact_table

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
    "λ is the largest Hessian eigenvalue at the start; distances are Euclidean, over all "
    "parameters, at matched times; seconds include compilation. The law is the best of an "
    "exponential, a power law and a finite time for the tail of the decrease of the risk, with its "
    "standard error. “?”: it could not be told from another one, or too little of it is seen. "
    "“Still travelling”: its limit is below zero, which no mean of squares can have, so that t1 is "
    "too early for a rate; “not closing”: the rate may be zero. The risk gap is that of the "
    "descent over the flow at the end."
)


_END_LEGEND = (
    "The critical point nearby, found by Newton's method across activation patterns; the residual "
    "is the norm of the minimal-norm subgradient there, “moved” the distance from the end of the "
    "trajectory. Zero eigenvalues λ are those of directions in which nothing changes to second "
    "order. The fitted rate is that of the risk to its value at the critical point; the predicted "
    "one is twice the least positive eigenvalue of the modes that carry the gap. “Apart” is the "
    "distance from the flow's critical point."
)


def write_report(directory: Path) -> Path:
    """Writes `report.html` and `overview.png`, all its figures, from the run directory's files, and
    the numbers of the analysis into its `run.json`.

    **Returns:** the path of the page.
    """
    run = load_run(directory)
    analysis = analyse(run)
    page = directory / "report.html"
    config = (directory / "config.toml").read_text()
    page.write_text(render(run, analysis, config), encoding="utf-8")
    _write_overview(run, analysis, directory / "overview.png")
    path = directory / "run.json"
    stored = json.loads(path.read_text()) | {"analysis": facts(analysis)}
    path.write_text(json.dumps(stored, indent=2) + "\n")
    return page


def render(run: Run, analysis: Analysis, config: str) -> str:
    """The page for a run: a summary, the table, the figures and the provenance."""
    parts = [
        f"<h1>{html.escape(_title(run))}</h1>",
        f'<p class="lead">{html.escape(_lead(run))}</p>',
        _notes(run),
        f"<p>{html.escape(_verdict(run, analysis))}</p>",
        '<div class="wide">' + _table(COLUMNS, rows(run, analysis)) + "</div>",
        f"<p>{_LEGEND}</p>",
        _ends(run, analysis),
        '<h2>Figures</h2><div class="figures">',
        *(_figure(_svg(draw), caption) for draw, caption in _figures(run, analysis)),
        "</div>",
        "<h2>How far to trust the flow</h2>" + _flow_facts(run),
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


def _lead(run: Run) -> str:
    c, (n, d) = run.config, run.table.x.shape
    if c.risk == "population":
        low, high = piecewise.named(c.data).interval
        risk = f"target {c.data}; mean of squares under the {c.density} density on "
        risk += f"[{low:g}, {high:g}], integrated exactly"
    else:
        features = f"{n} rows, {d} feature{'s' * (d > 1)}"
        risk = f"{features}, target {run.table.target}; mean of squares"
    return (
        f"One hidden layer of {c.width} {c.activation} units, initialisation {c.init}, seed "
        f"{c.seed}; {risk}; flow time 0 to "
        f"{c.t1:g}; sharpness λ = {run.sharpness:.4g}. {' '.join(run.table.notes)}"
    )


def _notes(run: Run) -> str:
    notes = list(run.notes)
    if run.status != "complete":
        notes.insert(0, f"This run was {run.status}: it holds what was computed until then.")
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _verdict(run: Run, analysis: Analysis) -> str:
    if run.flow is None:
        return "The run ended before the flow had its first saved time."
    text = f"The flow took the risk from {run.flow.risk[0]:.4g} to {run.flow.risk[-1]:.4g}."
    if analysis.order is not None:
        text += (
            f" Descent follows it with {analysis.order!r} in the step size, by the largest distance"
            " over the span; theory says 1."
        )
    elif run.descents:
        text += " Fewer than three descents have small enough steps for an order in the step size."
    return text


def _ends(run: Run, analysis: Analysis) -> str:
    if not run.ends:
        return ""
    text = f"<h2>Where they lead</h2><p>{html.escape(end_sentence(run))}</p>"
    if lines := end_rows(run, analysis):
        text += f'<div class="wide">{_table(END_COLUMNS, lines)}</div><p>{_END_LEGEND}</p>'
    return text


def _table(columns, lines) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _flow_facts(run: Run) -> str:
    if run.flow is None:
        return "<p>There is no flow.</p>"
    return (
        fact_table(run.flow.summary(), css_class="facts")
        + "<p>The energy drift is L(θ(0)) − L(θ(t)) − ∫‖θ'‖², the balance drift that of "
        "‖w‖² + b² − v² of each unit; along an exact flow both are zero.</p>"
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _figures(run: Run, analysis: Analysis) -> list[tuple[Callable[[Any], Any], str]]:
    """A function that draws each figure into given axes, and its caption."""
    if run.flow is None:
        return []
    from gflow import plots

    trajectories = {d.label: d.trajectory for d in run.descents} | {"flow": run.flow}
    drawn: list[tuple[Callable[[Any], Any], str]] = [
        (lambda ax: plots.risk(trajectories, ax=ax), "Risk of the flow and of the descents.")
    ]
    if analysis.gaps:
        caption = "Distance of each descent to the flow at the same time."
        drawn.append((lambda ax: plots.distance(analysis.gaps, ax=ax), caption))
    observed = analysis.order
    if observed is not None:
        out = [d for d in run.descents if d.step_size not in observed.step_sizes]
        others = (
            [d.step_size for d in out],
            [analysis.gaps[d.label].largest for d in out if d.trajectory.succeeded],
        )
        caption = "Largest distance against the step size: the order of descent as an integrator."
        drawn.append((lambda ax: plots.order(observed, others, ax=ax), caption))
    flow, x = run.flow, run.table.x
    if run.config.risk == "population":
        target = piecewise.named(run.config.data)
        density = piecewise.named_density(run.config.density, *target.interval)
        caption = "The function along the flow, the target, and the density at the foot."
        learned = lambda ax: plots.learned_function(flow, target=target, density=density, ax=ax)
        drawn.append((learned, caption))
        if run.config.bias and as_activation(run.config.activation).kinked:
            caption = "The places of the kinks; lines where a piece of the target ends."
            drawn.append((lambda ax: plots.breakpoints(flow, target.breakpoints, ax=ax), caption))
    elif x.shape[1] == 1:
        y = run.table.y
        caption = "The function along the flow."
        drawn.append((lambda ax: plots.learned_function(flow, x, y, ax=ax), caption))
    else:
        names = run.table.features
        caption = "The hidden units |v| w along the flow, from small to their place at the end."
        drawn.append((lambda ax: plots.unit_directions(flow, names, ax=ax), caption))
    drawn += _rate_figures(run, analysis)
    if run.flow.kinks is not None and len(run.flow.kinks):
        caption = "The kinks met: a red line while a unit slides along one."
        drawn.append((lambda ax: plots.kinks(flow, ax=ax), caption))
        if run.table.x.shape[1] == 1 and run.config.bias:
            caption = "The places of the kinks among the data; slides lie on the lines."
            drawn.append((lambda ax: plots.breakpoints(flow, x, ax=ax), caption))
    return drawn


def _rate_figures(run: Run, analysis: Analysis) -> list[tuple[Callable[[Any], Any], str]]:
    from gflow import plots
    from gflow.hessian.spectrum import Spectrum

    drawn: list[tuple[Callable[[Any], Any], str]] = []
    label, flow, end = flow_end(run)
    rate = analysis.rates.get(label)
    if flow is not None and rate is not None and (end is not None or rate.law != "undecided"):
        gap = flow.risk if end is None or rate.limit else flow.risk - end.risk
        for x, axis in (("log", "log-time"), ("linear", "time")):
            draw = lambda ax, x=x: plots.gap(flow.ts, gap, rate, x=x, ax=ax)
            drawn.append((draw, f"Risk above its limit, over {axis}, and the law."))
        caption = "Local slopes of that gap, with the plateau found."
        drawn.append((lambda ax: plots.local_slopes(rate, ax=ax), caption))
    if end is not None and end.spectrum:
        spectrum = Spectrum.complete_of(end.spectrum)
        caption = "Eigenvalues of the Hessian at the flow's critical point."
        drawn.append((lambda ax: plots.spectrum(spectrum, ax=ax), caption))
    return drawn


def _write_overview(run: Run, analysis: Analysis, path: Path) -> None:
    from matplotlib.figure import Figure

    figures = _figures(run, analysis)
    if not figures:
        return
    lines = -(-len(figures) // 2)
    figure = Figure(figsize=(11, 4.2 * lines), layout="constrained")
    for k, (draw, _) in enumerate(figures):
        draw(figure.add_subplot(lines, 2, k + 1))
    figure.savefig(path, dpi=110)


def _svg(draw) -> str:
    from matplotlib.figure import Figure

    # Fixed ids keep a report made again identical.
    with matplotlib.rc_context({"svg.hashsalt": "gflow", "font.size": 10}):
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
