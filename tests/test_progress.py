"""What long runs show on the way."""

import sys
from types import SimpleNamespace

import pytest

import gflow
from gflow import progress
from gflow.progress import progress_bar
from tests.helpers.kink_problems import small_problem


def test_lines_in_a_pipe(monkeypatch, capsys):
    """One every ten seconds, with the part that is done and where the run is."""
    now = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with progress_bar(200, "gradient flow") as shown:
        for t in (1, 2, 3, 4):
            shown.advance(50, f"t = {t}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["gradient flow  50%, 11 s, t = 2", "gradient flow 100%, 30 s, t = 4"]


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(10, "descent") as shown:
        shown.advance(5, "t = 2")
    assert "descent" in capsys.readouterr().err


def test_nothing_where_nothing_is_asked_for(capsys):
    with progress_bar(None, "descent") as shown:
        shown.advance(5, "t = 2")
    assert not capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("run", ["flow", "descent"])
def test_runs_tell_how_far_they_are(monkeypatch, capsys, run):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    risk, net = small_problem()
    if run == "flow":
        gflow.solve_flow(risk, net, t1=2.0, progress=True)
    else:
        gflow.descend(risk, net, step_size=0.01, num_steps=300, progress=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "100%" in last and "t = " in last
