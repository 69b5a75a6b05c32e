"""Where a run keeps its results: claims, interruptions, full disks, tables that have changed."""

import errno
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest

import gflow
from gflow.app import experiment, run_directory
from gflow.app.analysis import analyse
from gflow.app.claim import claimed, locked
from gflow.app.config import Config, read_config
from gflow.app.report import render
from gflow.app.run_directory import load_run

SMALL = {
    "data": "wave",
    "num_points": 12,
    "width": 3,
    "activation": "tanh",
    "t1": 2.0,
    "step_fractions": (0.4, 0.2),
    "num_times": 20,
}


NOTHING = SimpleNamespace(analysis=None)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Reports are tested elsewhere, and take seconds."""
    monkeypatch.setattr(experiment, "write_report", lambda directory: NOTHING)


@pytest.fixture
def said() -> list[str]:
    return []


def carried_out(said: list[str], out: Path, **fields) -> experiment.Outcome:
    return experiment.run(Config(**SMALL | {"out": str(out)} | fields), say=said.append)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> experiment.Outcome:
    """A run that nothing disturbed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(experiment, "write_report", lambda directory: NOTHING)
    outcome = carried_out([], tmp_path_factory.mktemp("whole") / "r")
    patch.undo()
    return outcome


def assert_same(run: run_directory.Run, other: run_directory.Run) -> None:
    assert run.trajectories().keys() == other.trajectories().keys() and run.ends == other.ends
    for label, trajectory in run.trajectories().items():
        expected = other.trajectories()[label]
        assert trajectory.result_name == expected.result_name
        for a, b in zip(jax.tree.leaves(trajectory.params), jax.tree.leaves(expected.params)):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def ctrl_c_at_descent(monkeypatch):
    """Presses Ctrl-C in the descent of that number."""

    def install(number: int) -> None:
        calls = iter(range(number + 1))

        def descend(*arguments, **options):
            if next(calls) == number:
                raise KeyboardInterrupt
            return gflow.descend(*arguments, **options)

        monkeypatch.setattr(experiment, "descend", descend)

    return install


@pytest.mark.slow
def test_a_resumed_run_ends_as_it_would_have_ended(whole, said, tmp_path, ctrl_c_at_descent):
    ctrl_c_at_descent(1)
    cut = carried_out(said, tmp_path / "r")
    assert cut.run.status == "interrupted" and len(cut.run.descents) == 1
    stored = load_run(tmp_path / "r")
    assert stored.status == "interrupted" and stored.flow is not None
    written = (tmp_path / "r" / "flow.zarr" / ".zmetadata").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "descend", gflow.descend)
        resumed = experiment.resume(tmp_path / "r", say=said.append)
    assert resumed.run.status == "complete"
    assert_same(resumed.run, whole.run)
    assert_same(load_run(tmp_path / "r"), whole.run)
    # What was complete was not computed again.
    assert (tmp_path / "r" / "flow.zarr" / ".zmetadata").stat().st_mtime_ns == written
    assert not any("descent" in line and "h = 0.44" in line for line in said[-1:])
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_a_run_that_is_complete_is_not_resumed(whole, said):
    assert whole.directory is not None
    experiment.resume(whole.directory, say=said.append)
    assert said == [f"{whole.directory} is complete already."]


def test_an_interrupt_that_was_lost_ends_the_run_after_the_part(said, tmp_path):
    outcome = experiment.run(
        Config(**SMALL | {"out": str(tmp_path / "r")}),
        say=said.append,
        interrupted=lambda: any(line.startswith("The flow to t") for line in said),
    )
    assert outcome.run.status == "interrupted" and not outcome.run.descents
    assert load_run(tmp_path / "r").flow.succeeded


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_results_of_a_run_on_a_full_disk_are_kept_elsewhere(whole, said, tmp_path, monkeypatch):
    save = run_directory.save_trajectory

    def save_elsewhere(trajectory, path):
        full() if Path(path).is_relative_to(tmp_path / "disk") else save(trajectory, path)

    monkeypatch.setattr(run_directory, "save_trajectory", save_elsewhere)
    monkeypatch.setattr(run_directory.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "disk").mkdir()
    outcome = carried_out(said, tmp_path / "disk" / "r")
    assert outcome.run.status == "complete" and outcome.directory.parent == tmp_path
    complaint = "cannot be written (No space left on device). The run goes on"
    assert sum(complaint in line for line in said) == 1
    assert any(f"The results are in {outcome.directory}" in line for line in said)
    assert_same(load_run(outcome.directory), whole.run)
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.slow
def test_a_run_that_can_be_written_nowhere_still_returns_its_results(said, tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "save_trajectory", full)
    outcome = carried_out(said, tmp_path / "r", step_fractions=())
    assert outcome.directory is None and outcome.run.flow.succeeded
    assert said[-1] == "The results could be written nowhere (No space left on device)."


def test_a_full_disk_leaves_the_old_facts(tmp_path, monkeypatch):
    run_directory.write_facts(tmp_path, {"status": "complete"})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            run_directory.write_facts(tmp_path, {"analysis": {}})
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "complete"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_full_disk_does_not_end_a_flow_with_a_checkpoint(
    wave, smooth_net, smooth_flow, tmp_path, monkeypatch
):
    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match="cannot be written") as warned:
        flow = gflow.solve_flow(wave, smooth_net, t1=10.0, checkpoint=tmp_path)
    assert len([w for w in warned if "cannot be written" in str(w.message)]) == 1
    np.testing.assert_array_equal(flow.risk, smooth_flow.risk)
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_share_a_directory(said, tmp_path):
    out = tmp_path / "r"
    with (
        claimed(out, overwrite=False),
        pytest.raises(gflow.ArgumentError, match="in which another run is going on"),
    ):
        carried_out(said, out, overwrite=True)
    assert not said and not out.exists()


@pytest.mark.slow
def test_a_directory_that_vanishes_costs_no_results(whole, said, tmp_path, monkeypatch):
    flow = experiment.solve_flow

    def solve_flow(*arguments, **options):
        (tmp_path / "r").rename(tmp_path / "moved")
        return flow(*arguments, **options)

    monkeypatch.setattr(experiment, "solve_flow", solve_flow)
    outcome = carried_out(said, tmp_path / "r", checkpoint=False)
    assert outcome.directory == tmp_path / "r_2"
    assert_same(load_run(tmp_path / "r_2"), whole.run)


def test_a_dead_run_without_results_is_taken_over(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.lock").write_text("")
    (tmp_path / "r" / "run.json").write_text('{"status": "interrupted"}')
    with claimed(tmp_path / "r", overwrite=False) as directory:
        assert [path.name for path in directory.iterdir()] == ["run.lock"]
    assert not directory.exists()


def test_results_of_a_dead_run_are_not(whole, tmp_path, said, ctrl_c_at_descent):
    ctrl_c_at_descent(0)
    carried_out(said, tmp_path / "r")
    with pytest.raises(gflow.ArgumentError, match="or `gflow resume .*` if it is unfinished"):
        carried_out(said, tmp_path / "r")


@pytest.mark.slow
def test_a_run_is_replaced_by_one_with_results_only(said, tmp_path):
    carried_out(said, tmp_path / "r", step_fractions=())
    before = (tmp_path / "r" / "run.json").read_text()
    with pytest.raises(gflow.ArgumentError, match="scale"):
        carried_out(said, tmp_path / "r", scale=1e200, overwrite=True)
    assert (tmp_path / "r" / "run.json").read_text() == before
    assert load_run(tmp_path / "r").flow.succeeded
    carried_out(said, tmp_path / "r", seed=1, step_fractions=(), overwrite=True)
    assert load_run(tmp_path / "r").config.seed == 1
    assert not {"replaced", "run.lock"} & {path.name for path in (tmp_path / "r").iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_written_into_what_is_no_run(overwrite, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with (
        pytest.raises(gflow.ArgumentError, match="`out`: got"),
        claimed(tmp_path, overwrite=overwrite),
    ):
        pass
    with pytest.raises(gflow.ArgumentError, match="`out`: got"), locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_written_configuration_holds_in_any_folder_and_for_that_table_only(
    said, tmp_path, monkeypatch
):
    rows = "".join(f"{x},{x * x}\n" for x in np.linspace(-1, 1, 12))
    (tmp_path / "t.csv").write_text("x,y\n" + rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    carried_out(said, Path("r"), data="t.csv", target="y", step_fractions=())
    written = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert written["data"] == str(tmp_path / "t.csv") and "out" not in written
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = read_config(tmp_path / "r" / "config.toml")
    assert experiment.run(config, say=said.append).run.status == "complete"
    (tmp_path / "t.csv").write_text("x,y\n0,0\n" + rows)
    with pytest.raises(gflow.ArgumentError, match="whose content is not that of the run"):
        experiment.run(config, say=said.append)
    # A run that is resumed has its table with it.
    assert load_run(tmp_path / "r").table.x.shape == (12, 1)


DEEP = {"hidden": "3,2", "weight_decay": 0.1, "activation": "relu", "scale": 0.5}


@pytest.mark.slow
def test_a_run_of_two_hidden_layers_with_weight_decay_is_resumed_and_shown(
    said, tmp_path, ctrl_c_at_descent
):
    whole = carried_out(said, tmp_path / "whole", **DEEP).run
    ctrl_c_at_descent(1)
    carried_out(said, tmp_path / "r", **DEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "descend", gflow.descend)
        resumed = experiment.resume(tmp_path / "r", say=said.append).run
    assert_same(resumed, whole)
    stored = load_run(tmp_path / "r")
    assert_same(stored, whole)
    flow = stored.flow
    assert [layer.weight.shape for layer in flow.final.layers[::2]] == [(3, 1), (2, 3), (1, 2)]
    assert np.abs(flow.diagnostics.balance).max() < 1e-7 and flow.kinks is not None
    squares = sum(np.sum(np.square(a)) for a in jax.tree.leaves(eqx.filter(flow[0], eqx.is_array)))
    penalty = flow.risk[0] - flow.observed["risk of the data"][0]
    np.testing.assert_allclose(penalty, 0.05 * squares, rtol=1e-12)
    page = render(stored, analyse(stored), "")
    assert "5 hidden units in 2 layers" in page and "2 hidden layers of 3 and 2 relu" in page
    assert "weight decay λ = 0.1" in page and "Kinks along the flow" in page


def test_hidden_layers_in_files_and_of_one_layer(tmp_path):
    (tmp_path / "c.toml").write_text("hidden = [8, 4]\n")
    assert read_config(tmp_path / "c.toml").validated().widths == (8, 4)
    one = Config(hidden=" 16").validated()
    assert one.hidden is None and one.width == 16 and one.widths == (16,)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["logistic", "cross-entropy"])
def test_classes_are_learned(loss, said, tmp_path):
    rng = np.random.default_rng(0)
    rows = "".join(f"{x},{'high' if x > 0 else 'low'}\n" for x in rng.normal(size=12))
    (tmp_path / "t.csv").write_text("x,level\n" + rows)
    outcome = carried_out(
        said, tmp_path / "r", data=str(tmp_path / "t.csv"), target="level", loss=loss, t1=20.0
    )
    flow = outcome.run.flow
    assert flow.risk[-1] < 0.3 * flow.risk[0] and any("'high'" in line for line in said)
    outputs = jax.vmap(flow.final)(outcome.run.table.x)
    found = outputs > 0 if loss == "logistic" else outputs[:, 1] > outputs[:, 0]
    np.testing.assert_array_equal(found, outcome.run.table.y > 0)
    assert load_run(tmp_path / "r").table.classes == ("high", "low")
