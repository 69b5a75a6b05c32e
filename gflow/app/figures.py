"""The figures of a run: for its report, in one picture, and as files."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from gflow import piecewise, plots
from gflow.activations import as_activation
from gflow.app.analysis import Analysis, followed_flow
from gflow.app.run_directory import Run
from gflow.hessian import Spectrum
from gflow.rates import RateStatus
from gflow.trajectory import Trajectory

# The size in inches at which the text of a figure can be read on a telephone.
_SIZE = (5.2, 3.8)


class Panel(NamedTuple):
    """A figure: the name of its file, its caption, and the function that draws it into axes."""

    name: str
    caption: str
    draw: Callable[[Any], Any]


def panels(run: Run, analysis: Analysis) -> list[Panel]:
    """The figures of a run, none without a flow."""
    if run.flow is None:
        return []
    flow, comparisons = run.flow, analysis.comparisons
    trajectories = {d.label: d.trajectory for d in run.descents} | {"flow": flow}
    risk = lambda ax: plots.risk(trajectories, ax=ax)
    found = [Panel("risk", "Risk of the flow and of the descents.", risk)]
    if comparisons:
        caption = "Distance of each descent to the flow at the same time."
        found.append(Panel("distance", caption, lambda ax: plots.distance(comparisons, ax=ax)))
    if (order := analysis.order) is not None:
        caption = "Typical distance against the step size: the order of descent as an integrator."
        found.append(Panel("order", caption, lambda ax: plots.order(order, ax=ax)))
    found += _function_panels(run, flow)
    found += _rate_panels(run, analysis)
    if flow.kinks is not None and len(flow.kinks):
        caption = "Kinks along the flow. Red lines mark slides."
        found.append(Panel("kinks", caption, lambda ax: plots.kinks(flow, ax=ax)))
        shallow = run.config.hidden is None
        if run.table.x.shape[1] == 1 and run.config.bias and shallow:
            x, caption = run.table.x, "Places of the kinks; the data are lines."
            draw = lambda ax: plots.breakpoints(flow, x, ax=ax)
            found.append(Panel("breakpoints", caption, draw))
    return found + _observed_panels(trajectories)


def explorer_of(run: Run) -> plots.Explorer | None:
    """The page to watch: the flow, and the descents with the largest and the smallest steps."""
    if run.flow is None:
        return None
    by_size = sorted(run.descents, key=lambda d: -d.step_size)
    descents = {d.label: d.trajectory for d in [*by_size[:2], *by_size[-1:]]}
    population = run.config.risk == "population"
    one_input = run.table.x.shape[1] == 1 and not population
    squared = run.config.loss == "squared"
    end = run.ends.get("flow")
    return plots.explore(
        {"flow": run.flow} | descents,
        run.table.x if one_input else None,
        # Labels of classes are no values of the function.
        run.table.y if one_input and squared else None,
        target=piecewise.named(run.config.data) if population else None,
        critical_value=end.risk if end is not None and end.found else None,
        title=f"The run on {run.table.name}",
    )


def _function_panels(run: Run, flow: Trajectory) -> list[Panel]:
    """The function of the network along the flow, or its units if it has several inputs."""
    x, y = run.table.x, run.table.y
    if run.config.risk == "population":
        target = piecewise.named(run.config.data)
        density = piecewise.named_density(run.config.density, *target.interval)
        caption = "The function along the flow, the target, and below them the density."
        learned = lambda ax: plots.learned_function(flow, target=target, density=density, ax=ax)
        found = [Panel("function", caption, learned)]
        if run.config.bias and as_activation(run.config.activation).kinked:
            caption = "Places of the kinks; the breakpoints of the target are lines."
            ends = target.breakpoints
            draw = lambda ax: plots.breakpoints(flow, ends, ax=ax)
            found.append(Panel("breakpoints", caption, draw))
        return found
    if run.config.loss == "cross-entropy":
        return []
    if x.shape[1] == 1:
        learned = lambda ax: plots.learned_function(flow, x, y, ax=ax)
        return [Panel("function", "The function along the flow.", learned)]
    if run.config.hidden is not None:
        return []
    names = run.table.features
    caption = "Paths of the hidden units |v| w along the flow. Dots mark their ends."
    return [Panel("units", caption, lambda ax: plots.unit_directions(flow, names, ax=ax))]


def _rate_panels(run: Run, analysis: Analysis) -> list[Panel]:
    found: list[Panel] = []
    followed = followed_flow(run)
    if followed is None:
        return found
    flow, end = followed.trajectory, followed.end
    rate = analysis.rates.get(followed.label)
    if rate is not None and (end is not None or rate.status is RateStatus.CALLED):
        gap = flow.risk if end is None or rate.limit else flow.risk - end.risk
        log_log = lambda ax: plots.gap(flow.ts, gap, rate, x="log", ax=ax)
        log_linear = lambda ax: plots.gap(flow.ts, gap, rate, x="linear", ax=ax)
        slopes = lambda ax: plots.local_slopes(rate, ax=ax)
        above = "Risk above its limit against"
        found += [
            Panel("gap_log", f"{above} log time, and the fitted law.", log_log),
            Panel("gap_linear", f"{above} time, and the fitted law.", log_linear),
            Panel("slopes", "Local slopes of that gap, and their plateau.", slopes),
        ]
    if end is not None and end.spectrum:
        spectrum = Spectrum.complete_of(end.spectrum)
        caption = "Eigenvalues of the Hessian at the flow's critical point."
        draw = lambda ax: plots.spectrum(spectrum, ax=ax)
        found.append(Panel("spectrum", caption, draw))
    return found


def _observed_panels(trajectories: dict[str, Trajectory]) -> list[Panel]:
    """A figure for each quantity that was observed along the flow."""
    found: list[Panel] = []
    for name in trajectories["flow"].observed:
        those = {label: t for label, t in trajectories.items() if name in t.observed}
        draw = lambda ax, name=name, those=those: plots.observed(those, name, ax=ax)
        place = "".join(c if c.isalnum() else "_" for c in name)
        found.append(Panel(f"observed_{place}", f"{name} along the flow and the descents.", draw))
    return found


def write_overview(found: Sequence[Panel], path: Path) -> None:
    """All figures in one picture; none is written if there are no figures."""
    if not found:
        return
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows), layout="constrained")
    for k, panel in enumerate(found):
        panel.draw(figure.add_subplot(rows, columns, k + 1))
    figure.savefig(path, dpi=90)


def write_figures(found: Sequence[Panel], directory: Path) -> None:
    """Each figure as `NAME.svg` and `NAME.pdf`."""
    directory.mkdir(exist_ok=True)
    for panel in found:
        with _drawn(panel) as figure:
            figure.savefig(directory / f"{panel.name}.svg", metadata={"Date": None})
            figure.savefig(directory / f"{panel.name}.pdf", metadata={"CreationDate": None})


def as_svg(panel: Panel) -> str:
    """The figure as an element of a page, without a background."""
    text = io.StringIO()
    with _drawn(panel) as figure:
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


@contextmanager
def _drawn(panel: Panel) -> Iterator[Figure]:
    # With fixed ids the same run has the same figures.
    with rc_context({"svg.hashsalt": f"gflow {panel.name}", "font.size": 10}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        panel.draw(figure.add_subplot())
        yield figure
