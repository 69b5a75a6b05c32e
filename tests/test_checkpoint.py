"""Flows that were ended on the way and go on from their checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time

import diffrax
import jax
import numpy as np
import pytest

import gflow
from gflow.flow import located, smooth
from gflow.flow.checkpoint import Checkpoint, fingerprint
from tests.helpers.kink_problems import small_problem

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    for module in (located, smooth):
        monkeypatch.setattr(module, "MAX_PIECE_STEPS", 50)


class Killed(BaseException):
    """As a signal would, this passes through everything."""


def kill_after(monkeypatch, count: int, *, switched: bool = False) -> None:
    """Ends the process, as far as Python is concerned, when that many pieces were saved, if asked
    for since another solver took over."""
    save, saved = Checkpoint.save, []

    def dying(self, facts, state, **options):
        save(self, facts, state, last=True)
        if facts["switches"] or not switched:
            saved.append(None)
        if len(saved) == count:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", dying)


def seen_steps(monkeypatch) -> list[int]:
    """The numbers of steps behind each piece that is solved from here on."""
    seen: list[int] = []

    def watched(advance):
        def watching(self, state, max_steps):
            seen.append(int(state.counts.steps))
            return advance(self, state, max_steps)

        return watching

    for made in (located.LocatedRun, smooth.SmoothRun):
        monkeypatch.setattr(made, "advance", watched(made.advance))
    return seen


@pytest.mark.parametrize("kinks", ["locate", "ignore"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_killed_flow_goes_on_to_the_same_end(kinks, count, tmp_path, monkeypatch):
    risk, net = small_problem()
    solve = lambda **more: gflow.solve_flow(risk, net, t1=12.0, kinks=kinks, rtol=1e-6, **more)
    whole = solve(checkpoint=tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, count)
        with pytest.raises(Killed):
            solve(checkpoint=tmp_path / "killed")
    seen = seen_steps(monkeypatch)
    again = solve(checkpoint=tmp_path / "killed")
    assert seen[0] > 0
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params)):
        np.testing.assert_array_equal(one, other)
    assert again.stats["num_steps"] == whole.stats["num_steps"]
    # What has reached its end is there at once.
    seen.clear()
    assert solve(checkpoint=tmp_path / "killed").risk[-1] == whole.risk[-1]
    assert not seen


def test_a_flow_that_changed_its_solver_goes_on_with_that(tmp_path, monkeypatch):
    risk, net = small_problem()
    solve = lambda name: gflow.solve_flow(risk, net, t1=1e5, checkpoint=tmp_path / name)
    whole = solve("whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 2, switched=True)
        with pytest.raises(Killed):
            solve("killed")
    again = solve("killed")
    assert again.method == whole.method == "gradient flow, Tsit5, then BDF5"
    np.testing.assert_array_equal(again.risk, whole.risk)
    assert again.switches[0].time == whole.switches[0].time


def test_a_solver_that_does_not_count_its_work(tmp_path, wave, smooth_net):
    solve = lambda: gflow.solve_flow(
        wave, smooth_net, t1=0.1, solver=diffrax.ImplicitEuler(), rtol=1e-3, checkpoint=tmp_path
    )
    assert solve().risk[-1] == solve().risk[-1]


def test_a_spent_budget_can_be_raised(tmp_path, monkeypatch):
    risk, net = small_problem()
    solve = lambda **more: gflow.solve_flow(risk, net, t1=12.0, checkpoint=tmp_path, **more)
    short = solve(max_steps=60, throw=False)
    assert short.result_name == "max_steps_reached"
    seen = seen_steps(monkeypatch)
    assert solve().succeeded and seen[0] == 60


def test_an_unusable_checkpoint_is_named(tmp_path):
    risk, net = small_problem()
    solve = lambda **more: gflow.solve_flow(
        risk, net, **({"t1": 1.0, "checkpoint": tmp_path} | more)
    )
    solve()
    for change in ({"t1": 1.5}, {"rtol": 1e-7}, {"kinks": "ignore"}, {"trainable": ("v", "c")}):
        with pytest.raises(gflow.ArgumentError, match="`checkpoint`.*another flow"):
            solve(**change)
    (tmp_path / "file").write_text("")
    with pytest.raises(gflow.ArgumentError, match="`checkpoint`.*directory that can be written"):
        solve(checkpoint=tmp_path / "file")
    (kept,) = tmp_path.glob("*.checkpoint")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(gflow.ArgumentError, match="`checkpoint`.*cannot be read"):
        solve()
    with pytest.raises(gflow.ArgumentError, match="`checkpoint`.*traced"):
        jax.jit(lambda w: _end(risk, w, tmp_path))(net.w)


def _end(risk, w, directory):
    net = gflow.ShallowNet.from_arrays(w, None, np.ones(len(w)), 0.0)
    return gflow.solve_flow(risk, net, t1=1.0, checkpoint=directory).risk[-1]


def test_writing_takes_a_bounded_share_of_the_time(tmp_path, monkeypatch):
    clock = iter(np.arange(100.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    kept = Checkpoint(tmp_path, fingerprint(1))
    # By this clock writing takes one second, so that twenty must pass between.
    for k in range(41):
        kept.save({"k": k}, np.zeros(2))
        with next(tmp_path.glob("*.checkpoint")).open("rb") as file:
            last = json.loads(file.readline())["facts"]["k"]
        assert last == (0 if k < 20 else 20 if k < 40 else 40)


SCRIPT = """
import sys, diffrax, jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, gflow
x = jnp.linspace(-1, 1, 40)[:, None]
risk = gflow.EmpiricalRisk(x, jnp.sin(3 * x[:, 0]))
net = gflow.ShallowNet(1, 30, key=jax.random.key(0))
flow = gflow.solve_flow(risk, net, t1=400.0, solver=diffrax.Tsit5(), checkpoint="kept")
np.save(sys.argv[1], np.append(np.asarray(flow.risk), flow.final.w.ravel()))
"""


def test_sigkill(tmp_path):
    def run(name):
        command = [sys.executable, "-c", SCRIPT, name]
        compiled_once = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.Popen(command, cwd=tmp_path, env=compiled_once)

    first = run("first.npy")
    assert first.wait() == 0
    kept = tmp_path / "kept" / "flow.checkpoint"
    kept.unlink()
    killed = run("killed.npy")
    while not kept.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed.npy").exists() and kept.exists()
    assert run("again.npy").wait() == 0
    first, again = (np.load(tmp_path / f"{name}.npy") for name in ("first", "again"))
    np.testing.assert_allclose(again, first, rtol=1e-12, atol=1e-12)
