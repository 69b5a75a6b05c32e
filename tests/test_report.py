"""What the main job makes of a run: tables, report, provenance."""

import dataclasses
import html
import re
import subprocess
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest

import gflow
from gflow.app.analysis import analyse, hovers
from gflow.app.config import Config
from gflow.app.data import Table
from gflow.app.end_points import EndPoint
from gflow.app.figures import panels, write_figures
from gflow.app.plan import final_time, step_fractions
from gflow.app.provenance import provenance
from gflow.app.report import render
from gflow.app.run_directory import Descent, Run
from gflow.app.summary import EndRow, answers, end_rows, summary_rows

ROOT = Path(__file__).parent.parent


def end_point(**fields) -> EndPoint:
    found = {
        "kind": "saddle",
        "message": "One eigenvalue is negative.",
        "risk": 0.25,
        "residual": 1e-15,
        "distance": 0.1,
        "dead": 1,
        "degenerate": 0,
        "active_kinks": 2,
        "zeros": 3,
        "unexplained": 0,
        "spectrum": (0.0, 0.0, 0.0, -1.0),
        "rate": None,
        "mode_rates": (),
        "mode_fractions": (),
        "apart": None,
        "different": None,
    }
    return EndPoint(**found | fields)


@pytest.fixture(scope="module")
def run(wave, smooth_net, smooth_flow) -> Run:
    """A flow with four descents that follow it, and one that ends in NaN."""
    sharpness = gflow.sharpness(wave, smooth_net)
    table = Table(np.asarray(wave.x), np.asarray(wave.y), ("x",), "y", "wave")
    descents = [
        Descent(
            h * sharpness / 2,
            h,
            gflow.descend(wave, smooth_net, step_size=h, num_steps=round(10 / h), throw=False),
        )
        for h in (0.1, 0.05, 0.025, 0.0125)
    ]
    wild = gflow.descend(wave, smooth_net, step_size=5.0, num_steps=2000, throw=False)
    assert not wild.succeeded
    descents.append(Descent(5.0 * sharpness / 2, 5.0, wild))
    return Run(Config(activation="tanh"), table, {}, sharpness, smooth_flow, descents)


def test_the_summary_has_a_row_for_each_trajectory(run):
    analysis = analyse(run)
    flow, *descents = [row.cells() for row in summary_rows(run, analysis)]
    assert flow["method"] == "gradient flow" and flow["h"] == flow["risk gap"] == ""
    assert [cells["h"] for cells in descents] == ["0.1", "0.05", "0.025", "0.0125", "5"]
    largest = analysis.comparisons["h = 0.1"].largest
    assert descents[0]["max distance"] == f"{largest:.3g}"
    assert descents[-1]["risk - limit ~"].startswith("diverged at t = ")
    assert len({tuple(cells) for cells in (flow, *descents)}) == 1


def test_a_row_names_the_status_of_a_rate_that_is_not_called():
    t = np.linspace(1, 50, 100)
    early = gflow.fit_rate(t, 1.0 - 0.2 * np.log(t), known_limit=False)
    level = gflow.fit_rate(t, np.ones(100))
    called = gflow.fit_rate(t, np.exp(-t / 5))
    short = gflow.fit_rate(t := np.geomspace(10, 20, 50), t**-1.5)  # a third of a decade
    shown = [EndRow("flow", end_point(), r).cells()["rate"] for r in (early, level, called, short)]
    assert shown[:2] == ["not yet converged", "may not decay"]
    assert shown[2] == called.formula() and shown[3] == short.formula() + " ?"
    assert EndRow("flow", end_point(), None).cells()["rate"] == ""


def test_end_points_that_were_not_found_have_no_numbers(run):
    missing = end_point(kind="not found", message="None is near.", different=None)
    run = Run(run.config, run.table, {}, flow=run.flow, ends={"flow": missing})
    assert end_rows(run, analyse(run)) == []
    first = answers(run, analyse(run))[0]
    assert first.startswith("At t = 10 the flow is not near a critical point. None is")
    run.ends["h = 0.1"] = end_point()
    cells = [row.cells() for row in end_rows(run, analyse(run))]
    assert cells[0]["kind"] == "not found" and cells[0]["risk"] == cells[0]["zero λ"] == ""
    assert (cells[1]["risk"], cells[1]["kinks"], cells[1]["zero λ"]) == ("0.25", "2", "3 of 4")


def test_descents_to_other_critical_points_are_named(run):
    ends = {
        "flow": end_point(kind="degenerate"),
        "h = 0.1": end_point(apart=0.0, different=False),
        "h = 0.05": end_point(apart=2.0, different=True),
    }
    run = Run(run.config, run.table, {}, flow=run.flow, ends=ends)
    text = answers(run, analyse(run))[0]
    assert text.startswith("At t = 10 the flow is 0.1 away from a degenerate critical point, with")
    assert "residual 1.0e-15, on 2 kinks: the risk is not differentiable there. One" in text
    assert text.endswith(" The descents with h = 0.05 lead to other critical points.")
    assert end_rows(run, analyse(run))[2].cells()["apart"] == "2, different"


def test_the_report_shows_a_descent_that_failed(run):
    analysis = analyse(run)
    assert analysis.order is not None
    page = render(run, analysis, "")
    assert page.count("<svg") >= 4 and "diverged at t = " in page and "<td>5</td>" in page
    # The page to watch holds the flow, and the longest and the shortest steps.
    (frame,) = re.findall(r'<iframe [^>]*srcdoc="([^"]*)"', page)
    labels = re.findall(r'"label":"(.*?)"', html.unescape(frame))
    assert labels == ["flow", "h = 5", "h = 0.1", "h = 0.0125"]


def test_the_answers_name_law_and_order_in_plain_words(run):
    called = gflow.fit_rate(t := np.linspace(1, 50, 100), np.exp(-t / 5))
    run = Run(**vars(run) | {"ends": {"flow": end_point(kind="local minimum", rate=0.2)}})
    found = analyse(run)
    analysis = dataclasses.replace(found, rates={"flow": called})
    _, rate, order = answers(run, analysis)
    assert rate.startswith("The risk approaches its limit like exp(-(0.2")
    assert rate.endswith("(95 % interval); the Hessian at the critical point predicts 0.2.")
    # Where the numbers differ, a sentence says why: here the fitted one is a mode without weight.
    end = end_point(rate=0.4, mode_rates=(0.2, 0.4), mode_fractions=(0.01, 0.99))
    run = Run(**vars(run) | {"ends": {"flow": end}})
    reason = answers(run, analysis)[1]
    assert "predicts 0.4, not the fitted 0.2" in reason and "carries 0.01 of the gap" in reason
    assert order.startswith("Descent follows the flow with order 1.0"), order
    assert "part from the flow" not in order
    assert found.order is not None
    parted = dataclasses.replace(found.order, partings=(gflow.Parting(0.05, 3.0),))
    order = answers(run, dataclasses.replace(analysis, order=parted))[-1]
    assert "One descent takes another branch and parts from the flow (h = 0.05 at t = 3)" in order


def test_a_descent_that_goes_up_and_down_at_its_end_hovers_and_has_no_law(run):
    descent = run.descents[0]
    risk = np.asarray(descent.trajectory.risk).copy()
    risk[-30:] = risk[-30] * (1 + 0.1 * np.random.default_rng(0).random(30))
    wavering = eqx.tree_at(lambda t: t.risk, descent.trajectory, risk)
    assert hovers(wavering) and not hovers(descent.trajectory)
    run = Run(**vars(run) | {"descents": [dataclasses.replace(descent, trajectory=wavering)]})
    analysis = analyse(run)
    assert "h = 0.1" not in analysis.rates
    assert summary_rows(run, analysis)[1].cells()["risk - limit ~"] == "hovers"


@pytest.mark.slow
def test_the_report_fits_telephones_and_dark_screens(run):
    page = render(run, analyse(run), "")
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.count('<div class="wide"><table>') >= 1
    # A white rectangle behind a figure would glare on a dark page.
    assert "fill: #ffffff" not in page.split("<body>")[1].split("</svg>")[0]
    assert "as the steps get smaller" in page.lower()


@pytest.mark.slow
def test_each_figure_is_a_file_of_its_own(run, tmp_path):
    flow = eqx.tree_at(
        lambda t: t.observed,
        run.flow,
        {"test risk": 1 + np.asarray(run.flow.ts)},
        is_leaf=lambda node: isinstance(node, dict),
    )
    run = Run(**vars(run) | {"flow": flow})
    found = [p for p in panels(run, analyse(run)) if p.name in ("risk", "observed_test_risk")]
    write_figures(found, tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"{p.name}.{kind}" for p in found for kind in ("svg", "pdf")}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("rows", "features", "follow", "t1"),
    [(20, 3, None, 1000.0), (20, 3, 500.0, 50.0), (100_000, 30, None, 10.0)],
)
def test_the_final_time_of_a_large_table_is_earlier_and_a_note_says_so(rows, features, follow, t1):
    table = Table(np.zeros((rows, features)), np.zeros(rows), (), "y", "large")
    run, said = Run(Config(follow=follow), table, {}, sharpness=5.0), []
    assert final_time(run, said.append) == t1
    assert run.notes == said and len(said) == (rows > 20)
    assert not said or "`--t1` sets the end" in said[0]


@pytest.mark.parametrize(
    ("rows", "t1", "given", "smallest"),
    [
        (20, 50.0, None, 0.0016),
        (20, 1000.0, None, 0.005),
        (20, 50.0, (0.4, 0.2), 0.2),
        (100_000, 100.0, None, 0.0125),
    ],
)
def test_finer_steps_are_taken_where_they_are_cheap_and_none_are_given(rows, t1, given, smallest):
    table = Table(np.zeros((rows, 3)), np.zeros(rows), (), "y", "table")
    run = Run(Config(step_fractions=given), table, {}, sharpness=4.6)
    fractions = step_fractions(run, t1)
    assert fractions[-1] == smallest and (given is None or fractions == given)
    # Times of larger steps are times of the smaller ones.
    ratios = fractions[0] / np.array(fractions)
    np.testing.assert_allclose(ratios, np.round(ratios), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "finer"),
    [
        ({"precision": "float32"}, False),
        ({"kinks": "ignore"}, False),
        ({"kinks": "ignore", "activation": "tanh"}, True),
        ({"rtol": 1e-5}, False),
        ({"rtol": 1e-9}, True),
    ],
)
def test_finer_steps_need_a_flow_with_a_smaller_error(options, finer):
    table = Table(np.zeros((20, 3)), np.zeros(20), (), "y", "table")
    run = Run(Config(**options), table, {}, sharpness=4.6)
    assert (step_fractions(run, 50.0)[-1] < 0.0125) == finer


def test_an_order_with_a_long_interval_is_called_open(run):
    analysis = analyse(run)
    assert analysis.order is not None
    wide = dataclasses.replace(analysis.order, interval=(0.2, 2.9))
    text = answers(run, dataclasses.replace(analysis, order=wide))[-1]
    assert text.startswith("With which order descent follows the flow is open: order 1.0")
    assert "(95 % interval 0.200 to 2.900)" in text and "`--step-fractions`" in text


def test_provenance_names_the_hardware():
    facts = provenance()
    assert {"device", "processor", "cores", "memory"} <= set(facts)
    assert int(facts["cores"]) >= 1 and all(facts.values())


def test_provenance_has_the_commit_of_a_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert head.stdout.startswith(provenance()["commit"].rstrip("+"))
