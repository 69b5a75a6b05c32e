"""The benchmark of the price of an accuracy: what it compares; that its peers solve the flow."""

import jax
import numpy as np
import pytest

from benchmarks import accuracy, drawn_problems, work_precision
from benchmarks.drawn_problems import Size
from benchmarks.kink_solvers import TimeUp, flow
from benchmarks.plain_solvers import with_descent, with_diffrax

TINY = Size(units=4, rows=10, columns=3, t1=0.5)
TINY_FLOW = accuracy.drawn(TINY, draw=0)


def row(method: str, seconds: float, error: float) -> dict:
    return {"method": method, "setting": "1e-06", "run_s": seconds, "distance": error}


def given_up(method: str) -> dict:
    return {"method": method, "setting": "1e-08", "error": f"{TimeUp.__name__}: after 10 steps"}


def test_one_draw_is_one_problem_and_another_draw_is_another():
    first, again, other = (drawn_problems.table(TINY, draw) for draw in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.y, again.y)
    assert not np.allclose(first.y, other.y)


def test_at_each_error_the_fastest_run_that_is_as_accurate_counts():
    # The quick inaccurate run of the peer counts at 1e-3 only.
    rows = [row("gflow", 1.0, 5e-6), row("peer", 0.5, 5e-4), row("peer", 20.0, 1e-6)]
    rows += [given_up("peer")]
    told = {found["decade"]: found for found in accuracy.by_decade(TINY_FLOW, rows, limit=60.0)}
    assert [told[k].get("ratio") for k in (3, 4, 5)] == [0.5, 20.0, 20.0]
    assert "ratio" not in told[6]


@pytest.mark.parametrize(("last", "bound"), [(given_up("peer"), 30.0), (row("peer", 1, 1), None)])
def test_a_peer_is_slower_than_the_limit_only_if_it_was_given_up(last, bound):
    rows = [row("gflow", 2.0, 1e-9), row("peer", 0.5, 5e-4), last]
    *_, told = accuracy.by_decade(TINY_FLOW, rows, limit=60.0)
    assert told.get("ratio_above") == bound


def test_the_front_holds_what_no_other_run_beats_in_time_and_error():
    rows = [row("a", 1.0, 1e-2), row("a", 2.0, 1e-1), row("b", 3.0, 1e-4), given_up("b")]
    assert work_precision.front(rows) == [(1.0, 1e-2), (3.0, 1e-4)]


@pytest.mark.slow
def test_the_peers_solve_the_same_flow():
    end = flow(TINY_FLOW, None, "locate", 1e-8).theta
    _, by_diffrax = with_diffrax(TINY_FLOW, "Tsit5", 16, limit=60.0)
    _, by_descent = with_descent(TINY_FLOW, 16, limit=60.0)
    apart = lambda found: np.linalg.norm(found.theta - end) / np.linalg.norm(end)
    # A solver that ignores kinks is off by some tolerances at each.
    assert apart(by_diffrax(1e-6)()) < 1e-4
    # Descent has an error of order 1 in the step size, a thousandth of the time here.
    coarse, fine = by_descent(5e-3)(), by_descent(5e-4)()
    assert fine.counts["steps"] == 1_000
    assert apart(fine) < 0.2 * apart(coarse)


@pytest.mark.slow
def test_a_peer_is_given_up_at_the_limit():
    late = TINY_FLOW._replace(t1=1e6)
    _, run = with_descent(late, 16, limit=1e-3)
    with pytest.raises(TimeUp):
        run(1e-3)
    _, run = with_diffrax(late, "Bosh3", 16, limit=1e-3)
    found = jax.block_until_ready(run(1e-10))
    with pytest.raises(TimeUp):
        found()
