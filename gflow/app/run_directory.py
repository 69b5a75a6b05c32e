"""The results of the main job, and the directory that holds them."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax

from gflow.app.claim import RUN_FILE
from gflow.app.config import Config, read_config, to_dict
from gflow.app.data import Table
from gflow.app.end_points import EndPoint
from gflow.app.problem import start_of
from gflow.arguments import ArgumentError, Described
from gflow.storage import load_trajectory, save_trajectory
from gflow.trajectory import Trajectory

# The label of the flow after t1.
FURTHER = "flow, further"
# The folder of the states of flows that are not at their end.
CHECKPOINTS = "checkpoints"


def descent_label(step_size: float) -> str:
    """The label of the descent with that step size."""
    return f"h = {step_size:.3g}"


@dataclass(frozen=True)
class Descent:
    """A descent of the main job: the step size h, its fraction h λ/2 of 2/sharpness, and the
    trajectory."""

    fraction: float
    step_size: float
    trajectory: Trajectory

    @property
    def label(self) -> str:
        return descent_label(self.step_size)


@dataclass
class Run:
    """The results of the main job, as far as it got.

    - `config`, `table`: the configuration and the data. `sharpness`: that of the risk at the start.
    - `flow`, `descents`: the trajectories. `further`: the flow after t1, if it was followed.
    - `ends`: the critical points that the trajectories lead to, by label ("flow" for the flow).
    - `status`: whether the job was completed ("interrupted" while it is going on).
    - `notes`: warnings for the user, in sentences.
    - `seconds`: wall time of each part, compilation included, by label.
    - `provenance`: versions, commit, device and date.
    """

    config: Config
    table: Table
    provenance: dict[str, str]
    sharpness: float = float("nan")
    flow: Trajectory | None = None
    descents: list[Descent] = field(default_factory=list)
    further: Trajectory | None = None
    ends: dict[str, EndPoint] = field(default_factory=dict)
    status: Literal["complete", "interrupted", "failed"] = "complete"
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def trajectories(self) -> dict[str, Trajectory]:
        """All trajectories by label."""
        flows = {"flow": self.flow, FURTHER: self.further}
        found = {label: t for label, t in flows.items() if t is not None}
        return found | {d.label: d.trajectory for d in self.descents}

    def note(self, text: str, say: Callable[[str], None]) -> None:
        """Tells the user, and keeps it for the report, once."""
        if text not in self.notes:
            self.notes.append(text)
        say(text)


class RunFiles:
    """The files of a run in its directory, written part by part.

    `trouble`: why the last attempt to write failed; None if it did not.
    """

    def __init__(self, directory: Path, written: Mapping[str, Trajectory] = MappingProxyType({})):
        self.directory = directory
        self.trouble: OSError | None = None
        self._written = dict(written)

    def write(self, run: Run) -> None:
        """Writes what is not there yet. Each file is replaced as a whole, or stays as it was."""
        import tomli_w

        if not (self.directory / RUN_FILE).is_file():
            config = self.directory / "config.toml"
            config.write_text(tomli_w.dumps(to_dict(run.config)), encoding="utf-8")
            _write_store(self.directory / "data.zarr", lambda path: _save_table(run.table, path))
        for name, trajectory in stores(run).items():
            if self._written.get(name) is not trajectory:
                save = partial(save_trajectory, trajectory)
                _write_store(self.directory / name, save)
                self._written[name] = trajectory
        write_facts(self.directory, _facts(run))

    def keep(self, run: Run, say: Callable[[str], None]) -> None:
        """Writes, too, but a directory that cannot be written does not end the run."""
        try:
            self.write(run)
            self.trouble = None
        except OSError as error:
            if self.trouble is None:
                say(
                    f"{self.directory} cannot be written ({error.strerror or error}). The run goes "
                    "on, and its results are kept elsewhere if that does not change."
                )
            self.trouble = error

    def finish(self, run: Run, say: Callable[[str], None]) -> Path | None:
        """Writes all that is left; if that fails, everything in another directory, which is
        named.

        **Returns:** the directory with the results; None if they could be written nowhere.
        """
        self.keep(run, say)
        if run.status == "complete":
            shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)
        if self.trouble is None:
            return self.directory
        why = self.trouble.strerror or self.trouble
        for make in (partial(_sibling, self.directory), _temporary):
            directory = None
            try:
                directory = make()
                RunFiles(directory).write(run)
            except OSError:
                if directory is not None:
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            say(
                f"The results are in {directory}, since {self.directory} cannot be written ({why})."
            )
            return directory
        say(f"The results could be written nowhere ({why}).")
        return None


def _sibling(directory: Path) -> Path:
    again = 2
    while (path := directory.with_name(f"{directory.name}_{again}")).exists():
        again += 1
    path.mkdir(parents=True)
    return path


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="gflow-"))


def stores(run: Run) -> dict[str, Trajectory]:
    """The trajectories by the name of their store."""
    stores = {} if run.flow is None else {"flow.zarr": run.flow}
    if run.further is not None:
        stores["further.zarr"] = run.further
    return stores | {_descent_name(k): d.trajectory for k, d in enumerate(run.descents)}


def _write_store(path: Path, save: Callable[[Path], None]) -> None:
    partial_path = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial_path, ignore_errors=True)
    try:
        save(partial_path)
        if path.exists():
            shutil.rmtree(path)
        partial_path.rename(path)
    except BaseException:
        shutil.rmtree(partial_path, ignore_errors=True)
        raise


def _save_table(table: Table, path: Path) -> None:
    import xarray

    xarray.Dataset(
        {"x": (("row", "feature"), table.x), "y": ("row", table.y)},
        coords={"feature": list(table.features)},
        attrs={
            "name": table.name,
            "target": table.target,
            "notes": list(table.notes),
            "classes": list(table.classes),
        },
    ).to_zarr(str(path), zarr_format=2, consolidated=True)


def write_facts(directory: Path, facts: Mapping[str, Any]) -> None:
    """Adds facts to run.json, which is replaced as a whole: a full disk leaves the old one."""
    path = directory / RUN_FILE
    stored = json.loads(path.read_text()) if path.is_file() else {}
    new = path.with_name(f"{RUN_FILE}.partial")
    try:
        new.write_text(json.dumps(stored | dict(facts), indent=2) + "\n")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _facts(run: Run) -> dict[str, Any]:
    return {
        "status": run.status,
        "sharpness": run.sharpness,
        "descents": [
            {"file": _descent_name(k), "fraction": d.fraction, "step_size": d.step_size}
            for k, d in enumerate(run.descents)
        ],
        "ends": {label: end.as_dict() for label, end in run.ends.items()},
        "notes": run.notes,
        "seconds": run.seconds,
        "seed": run.config.seed,
        "provenance": run.provenance,
    }


def load_run(directory: Path) -> Run:
    """The run in a directory written by `save_run`.

    **Raises:** `ArgumentError` if there is no run in it, or an incomplete one.
    """
    if not (directory / RUN_FILE).is_file():
        raise ArgumentError("directory", str(directory), "a run directory (one with a run.json)")
    try:
        return _load(directory)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        got = Described(f"{directory}, which is incomplete or damaged ({reason})")
        raise ArgumentError("directory", got, "a run directory as it was written") from None


def _load(directory: Path) -> Run:
    import xarray

    facts: dict[str, Any] = json.loads((directory / RUN_FILE).read_text())
    with xarray.open_zarr(str(directory / "data.zarr"), consolidated=True) as opened:
        data = opened.load()
    table = Table(
        data["x"].to_numpy(),
        data["y"].to_numpy(),
        tuple(str(name) for name in data["feature"].to_numpy()),
        data.attrs["target"],
        data.attrs["name"],
        tuple(data.attrs["notes"]),
        tuple(data.attrs["classes"]),
    )
    flow, further = directory / "flow.zarr", directory / "further.zarr"
    config = read_config(directory / "config.toml")
    like = None
    if config.hidden is not None:
        with jax.enable_x64(config.precision == "float64"):
            like = start_of(config, table)
    return Run(
        config=config,
        table=table,
        provenance=facts["provenance"],
        sharpness=facts["sharpness"],
        flow=load_trajectory(flow, like) if flow.exists() else None,
        descents=[
            Descent(d["fraction"], d["step_size"], load_trajectory(directory / d["file"], like))
            for d in facts["descents"]
        ],
        further=load_trajectory(further, like) if further.exists() else None,
        ends={label: EndPoint.from_dict(end) for label, end in facts.get("ends", {}).items()},
        status=facts["status"],
        notes=facts["notes"],
        seconds=facts["seconds"],
    )


def _descent_name(k: int) -> str:
    return f"descent_{k}.zarr"
