"""The results of the main job, and the directory that holds them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gflow.app.config import Config, read_config, to_dict
from gflow.app.data import Table
from gflow.app.end_points import EndPoint
from gflow.arguments import ArgumentError, Described
from gflow.storage import load_trajectory, save_trajectory
from gflow.trajectory import Trajectory

# The label of the flow after t1.
FURTHER = "flow, further"


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
    - `status`: whether the job was completed; `notes`: warnings for the user, in sentences.
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


def check_vacant(directory: Path, overwrite: bool) -> None:
    """Raises `ArgumentError` unless the directory is free, or a run that may be replaced."""
    if not (directory.exists() or directory.is_symlink()):
        return
    got = Described(f"{directory}, which exists")
    if not overwrite:
        raise ArgumentError("out", got, "a new directory, or `overwrite` to replace that one")
    ours = directory.is_dir() and not directory.is_symlink()
    if not ours or not ((directory / "run.json").is_file() or not any(directory.iterdir())):
        raise ArgumentError("out", got, "a new directory, or a run directory to replace")


@contextmanager
def new_directory(directory: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary directory to fill.

    At the end it is renamed to `directory` if it holds a run.json, and deleted otherwise.

    **Raises:** `ArgumentError` if `directory` cannot be written.
    """
    check_vacant(directory, overwrite)
    directory = directory.parent.resolve() / directory.resolve().name
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    parent_is_new = not directory.parent.exists()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        got = Described(f"{directory}: {error.strerror}")
        raise ArgumentError("out", got, "a directory that can be written") from None
    try:
        yield partial
    finally:
        if (partial / "run.json").is_file():
            old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
            if directory.exists():
                check_vacant(directory, overwrite)
                directory.rename(old)
            partial.rename(directory)
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        if parent_is_new and not any(directory.parent.iterdir()):
            directory.parent.rmdir()


def save_run(run: Run, directory: Path) -> None:
    """Writes a run into an empty directory."""
    import tomli_w
    import xarray

    (directory / "config.toml").write_text(tomli_w.dumps(to_dict(run.config)))
    table = run.table
    xarray.Dataset(
        {"x": (("row", "feature"), table.x), "y": ("row", table.y)},
        coords={"feature": list(table.features)},
        attrs={"name": table.name, "target": table.target, "notes": list(table.notes)},
    ).to_zarr(str(directory / "data.zarr"), zarr_format=2, consolidated=True)
    if run.flow is not None:
        save_trajectory(run.flow, directory / "flow.zarr")
    if run.further is not None:
        save_trajectory(run.further, directory / "further.zarr")
    for k, descent in enumerate(run.descents):
        save_trajectory(descent.trajectory, directory / _descent_name(k))
    facts = {
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
    (directory / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def load_run(directory: Path) -> Run:
    """The run in a directory written by `save_run`.

    **Raises:** `ArgumentError` if there is no run in it, or an incomplete one.
    """
    if not (directory / "run.json").is_file():
        raise ArgumentError("directory", str(directory), "a run directory (one with a run.json)")
    try:
        return _load(directory)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        got = Described(f"{directory}, which is incomplete or damaged ({reason})")
        raise ArgumentError("directory", got, "a run directory as it was written") from None


def _load(directory: Path) -> Run:
    import xarray

    facts: dict[str, Any] = json.loads((directory / "run.json").read_text())
    with xarray.open_zarr(str(directory / "data.zarr"), consolidated=True) as opened:
        data = opened.load()
    table = Table(
        data["x"].to_numpy(),
        data["y"].to_numpy(),
        tuple(str(name) for name in data["feature"].to_numpy()),
        data.attrs["target"],
        data.attrs["name"],
        tuple(data.attrs["notes"]),
    )
    flow, further = directory / "flow.zarr", directory / "further.zarr"
    return Run(
        config=read_config(directory / "config.toml"),
        table=table,
        provenance=facts["provenance"],
        sharpness=facts["sharpness"],
        flow=load_trajectory(flow) if flow.exists() else None,
        descents=[
            Descent(d["fraction"], d["step_size"], load_trajectory(directory / d["file"]))
            for d in facts["descents"]
        ],
        further=load_trajectory(further) if further.exists() else None,
        ends={label: EndPoint.from_dict(end) for label, end in facts.get("ends", {}).items()},
        status=facts["status"],
        notes=facts["notes"],
        seconds=facts["seconds"],
    )


def _descent_name(k: int) -> str:
    return f"descent_{k}.zarr"
