"""The test set: answers that solvers reach, right-hand sides that are gflow's, plain files."""

import json
import subprocess
import sys

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.integrate

import gflow
from benchmarks import testset
from benchmarks.kink_solvers import TimeUp
from gflow import testsets
from gflow.testsets.__main__ import main
from gflow.testsets.references import REFERENCES

SMALL = [name for name in testsets.NAMES if name not in REFERENCES]
SLIDING = [
    "stop_in_finite_time",
    "slide_and_exit",
    "arrive_slide_exit",
    "slide_to_fork",
]


@pytest.fixture(scope="module")
def flows():
    return {name: testsets.known_flow(name) for name in testsets.NAMES}


def test_the_list_is_read_without_jax():
    code = "import sys; from gflow import testsets; assert testsets.NAMES; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "jax.numpy", "equinox"} & {*run.stdout.split()}


def test_flows_are_whole(flows):
    for name, flow in flows.items():
        assert flow.name == name
        assert flow.times[0] > 0 and np.all(np.diff(flow.times) > 0)
        for branch in flow.branches:
            assert branch.shape == (len(flow.times), len(flow.start))
            assert flow.error(branch) == 0
        times = [event.time for event in flow.events]
        assert times == sorted(times)
        assert 0 < flow.accuracy < 1e-7
        assert flow.problem.risk_at(flow.params[-1]) < flow.problem.risk_at(flow.start)


@pytest.mark.parametrize("name", [name for name in SMALL if name not in SLIDING])
def test_a_plain_solver_reaches_the_answers_where_nothing_slides(flows, name):
    flow = flows[name]
    span = 0.0, flow.times[-1]
    found = scipy.integrate.solve_ivp(
        flow.field, span, flow.start, "LSODA", flow.times, rtol=1e-8, atol=1e-10
    )
    # Errors of single steps of 1e-8 add up to some 1e-7 here; a kink costs about as much.
    assert flow.error(found.y.T) < 1e-6


@pytest.mark.parametrize("name", [*SLIDING[:3], "sine_d1_w20_n40", "deep_2-6-5-1_n20"])
def test_descent_of_small_steps_reaches_the_answers_where_it_slides(flows, name):
    flow, step = flows[name], 1e-3
    theta, taken = flow.start, 0
    for time, answer in zip(flow.times, flow.params):
        while time <= 1.2 and taken < round(time / step):
            theta, taken = theta + step * flow.field(0.0, theta), taken + 1
        if time <= 1.2:
            # Descent has an error of order 1 in the step size, with slopes of some tens.
            assert np.linalg.norm(theta - answer) < 20 * step
    assert taken >= 800


@pytest.mark.parametrize(
    "name", ["slide_to_fork", "deep_2-6-5-1_n20", "parabola", "student_and_teacher"]
)
def test_right_hand_sides_are_gflows(flows, name):
    flow = flows[name]
    risk, net = flow.risk(), flow.network()
    np.testing.assert_allclose(flow.problem.risk_at(flow.start), float(risk(net)), rtol=1e-13)
    slopes = eqx.filter_jit(eqx.filter_grad(risk))(net)
    (expected,) = flow.as_vectors(jax.tree.map(lambda a: a[None], eqx.filter(slopes, eqx.is_array)))
    np.testing.assert_allclose(-flow.field(0.0, flow.start), expected, rtol=1e-10, atol=1e-14)


# One program for all three; tests of other files solve the others.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossing", "stop_in_finite_time", "spurious_rest"])
def test_gflow_reaches_the_answers(flows, name):
    known = flows[name]
    options = {"t1": known.times[-1], "ts": known.times, "trainable": known.trainable}
    flow = gflow.solve_flow(known.risk(), known.network(), **options)
    # The default tolerance is 1e-8.
    assert known.error(known.as_vectors(flow.params)) < 1e-8
    np.testing.assert_allclose(flow.kinks.time, [e.time for e in known.events], rtol=1e-8)


def test_any_branch_is_right_and_leaving_late_is_not(flows):
    flow = flows["slide_to_fork"]
    left, right, stays = flow.branches
    assert flow.error(left) == flow.error(right) == flow.error(stays) == 0
    after = flow.times > flow.events[-1].time
    np.testing.assert_allclose((left * [-1, 1])[after], right[after], rtol=0, atol=1e-12)
    late = np.where(flow.times[:, None] < 1.5, stays, right)
    assert flow.error(late) > 0.05


def test_errors_of_wrong_shapes_and_of_nan(flows):
    flow = flows["crossing"]
    with pytest.raises(gflow.ArgumentError, match=r"params.*shape \(5, 1\)"):
        flow.error(flow.params[:-1])
    assert flow.error(np.full_like(flow.params, np.nan)) == np.inf
    with pytest.raises(gflow.ArgumentError, match="name"):
        testsets.known_flow("O7")
    assert "O7" in testsets.NOT_FLOWS


@pytest.fixture(scope="module")
def plain_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("set") / "new"
    assert main([str(directory)]) == 0
    return directory


def test_plain_files_hold_every_number(flows, plain_files):
    for name, flow in flows.items():
        found = json.loads((plain_files / f"{name}.json").read_text())
        assert flow.error(found["branches"][0]) == 0
        assert found["start"] == flow.start.tolist()
        assert len(found["events"]) == len(flow.events)
    listed = (plain_files / "flows.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed[1:]] == list(testsets.NAMES)


@pytest.mark.parametrize("name", ["crossing", "dead_units"])
def test_the_page_measures_a_solver_without_gflow(plain_files, name, monkeypatch, capsys):
    page = (plain_files / "README.md").read_text()
    assert all(f"| {listed} |" in page for listed in testsets.NAMES)
    monkeypatch.chdir(plain_files)
    code = page.split("```python\n")[1].split("```")[0].replace("crossing.json", f"{name}.json")
    exec(code, {})
    assert float(capsys.readouterr().out.split()[-1]) < 1e-6


def test_the_command_says_what_it_wants(capsys, tmp_path):
    assert main([]) == 2 and main(["--help"]) == 0
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file")]) == 2
    assert "directory" in capsys.readouterr().err


def test_the_benchmark_counts_evaluations_and_gives_up(flows):
    solve = testset.with_scipy("RK45", flows["crossing"], 1e-6, 2_000)
    theta, evaluations = solve()
    assert flows["crossing"].error(theta) < 1e-5 and 0 < evaluations < 2_000
    with pytest.raises(TimeUp, match="after 100 evaluations"):
        testset.with_scipy("RK45", flows["slide_and_exit"], 1e-6, 100)()


def test_the_page_of_the_benchmark_tells_right_from_wrong_and_from_no_answer(tmp_path):
    rows = [
        {"flow": "a_b", "method": "one", "distance": 2e-7, "field_evaluations": 1_200},
        {"flow": "a_b", "method": "two", "distance": 0.25, "field_evaluations": 90},
        {"flow": "c", "method": "one", "error": "TimeUp: after 10 steps"},
        {"flow": "c", "method": "two", "error": "RuntimeError: no"},
    ]
    table = testset.markdown(rows, 1e-6)
    assert "| a b | 2e-7 (1,200) | **2e-1** (90) |" in table
    assert "| c | – | fails |" in table
    told = [row["sentence"] for row in testset.summary(rows, 1e-6)]
    assert told[1] == "two: right on 0 of 2 flows, wrong on 1, without an answer on 1."
    page = tmp_path / "page.md"
    page.write_text(f"before\n{testset.BEGIN.format(page.as_posix())}\nold\n{testset.END}\nafter\n")
    testset.write_page(page, table)
    assert table in page.read_text() and "old" not in page.read_text()
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        testset.write_page(page, table)
