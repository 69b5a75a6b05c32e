"""Trajectories at common frames, for a page to watch and for a movie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gflow.arguments import ArgumentError, Described, finite, real_array
from gflow.kink_log import Slide
from gflow.piecewise import PiecewisePolynomial
from gflow.plots.style import flow_times
from gflow.plots.views import Extent, FunctionView, View, Viewer, curve_of, num_inputs
from gflow.trajectory import Trajectory, single_trajectory

# More figures beside one another are too small to read.
_MOST_TRAJECTORIES = 8
# Units of all trajectories together, rows of data, and kinks, that are drawn.
_MOST_UNITS, _MOST_ROWS, _MOST_KINKS = 320, 2000, 10_000


class Raster(NamedTuple):
    """Kinks and slides of a flow, `total` before some crossings were left out. At each frame
    `met` kinks were met, and `sliding` pairs slide."""

    times: Float[np.ndarray, " kinks"]
    layer: Int[np.ndarray, " kinks"]
    unit: Int[np.ndarray, " kinks"]
    datum: Int[np.ndarray, " kinks"]
    kind: Int[np.ndarray, " kinks"]
    slides: list[Slide]
    total: int
    met: Int[np.ndarray, " frames"]
    sliding: Int[np.ndarray, " frames"]


@dataclass(frozen=True)
class Scene:
    """One trajectory at the frames: at each, the saved time nearest to it, with its risk."""

    label: str
    kind: Literal["flow", "descent"]
    times: Float[np.ndarray, " frames"]
    risk: Float[np.ndarray, " frames"]
    view: View
    raster: Raster | None
    note: str


@dataclass(frozen=True)
class Scenery:
    """Scenes with common frames, and what stands in all of them.

    - `times`: those of the frames; `log_time`: whether they are rather even on a logarithmic axis.
    - `x`, `y`: the data, shapes (rows,) and (rows, outputs), for one input.
    - `target`: a curve, NaN where it jumps; `span`, `height`: those of functions that are drawn.
    - `critical_value`: of the risk.
    """

    scenes: list[Scene]
    times: Float[np.ndarray, " frames"]
    log_time: bool
    x: Float[np.ndarray, " rows"]
    y: Float[np.ndarray, "rows outputs"]
    target: Float[np.ndarray, "places two"]
    span: Extent
    height: Extent
    critical_value: float | None


def scenery(
    trajectories: Trajectory | Mapping[str, Trajectory],
    x: Any,
    y: Any,
    target: PiecewisePolynomial | None,
    critical_value: Any,
    most_frames: int,
) -> Scenery:
    """The trajectories, at the saved times of the first flow, and later ones of others; every few
    if these are more than `most_frames`.

    **Raises:** `ArgumentError` for what is no trajectory, too many of them, and data that do not
    fit.
    """
    labelled = labelled_trajectories(trajectories)
    if critical_value is not None:
        critical_value = finite("critical_value", critical_value)
    x = None if x is None else real_array("x", x, "numbers of shape (rows,) or (rows, 1)")
    columns = x.shape[1] if x is not None and x.ndim == 2 else None
    one_input = [t for t in labelled.values() if num_inputs(t, columns) == 1]
    inputs, targets = _data(x, y) if one_input else (np.zeros(0), np.zeros((0, 1)))
    curve = np.zeros((0, 2)) if target is None or not one_input else curve_of(target)
    span = Extent.of(inputs, curve[:, 0])
    frames = _frames(labelled, most_frames)
    viewer = Viewer(span, columns, max(_MOST_UNITS // len(labelled), 1))
    scenes = [_scene(label, t, frames, viewer) for label, t in labelled.items()]
    functions = [s.view.values for s in scenes if isinstance(s.view, FunctionView)]
    return Scenery(
        scenes=scenes,
        times=frames,
        log_time=_is_logarithmic(frames),
        x=inputs,
        y=targets,
        target=curve,
        span=span.widened(0.04),
        height=_height(functions, targets, curve),
        critical_value=critical_value,
    )


def labelled_trajectories(trajectories: Any) -> dict[str, Trajectory]:
    """One trajectory under its kind, or several by label.

    **Raises:** `ArgumentError` for what is no trajectory, and for too many.
    """
    wanted = f"a trajectory, or up to {_MOST_TRAJECTORIES} by label, such as {{'flow': flow}}"
    if isinstance(trajectories, (list, tuple)):
        got = Described(f"a {type(trajectories).__name__} of {len(trajectories)}")
        raise ArgumentError("trajectories", got, wanted)
    if not isinstance(trajectories, Mapping):
        one = single_trajectory("trajectories", trajectories)
        labelled = {one.kind: one}
    else:
        labelled = {str(k): single_trajectory("trajectories", t) for k, t in trajectories.items()}
        if not 1 <= len(labelled) <= _MOST_TRAJECTORIES:
            raise ArgumentError("trajectories", Described(f"{len(labelled)} of them"), wanted)
    for label, trajectory in labelled.items():
        if not len(trajectory.ts):
            raise ArgumentError("trajectories", Described(f"{label!r} without saved times"), wanted)
    return labelled


def _data(x: np.ndarray | None, y: Any) -> tuple[np.ndarray, np.ndarray]:
    if x is None and y is None:
        return np.zeros(0), np.zeros((0, 1))
    if x is None:
        raise ArgumentError("x", None, "the inputs that belong to `y`")
    if x.ndim not in (1, 2) or x.shape[1:] not in ((), (1,)):
        raise ArgumentError("x", x, "shape (rows,) or (rows, 1), for networks with one input")
    inputs = x.ravel()
    targets = np.full(len(inputs), np.nan) if y is None else real_array("y", y, "numbers")
    if targets.ndim not in (1, 2) or len(targets) != len(inputs):
        raise ArgumentError("y", targets, f"shape ({len(inputs)},) or ({len(inputs)}, outputs)")
    every = -(-len(inputs) // _MOST_ROWS) or 1
    return inputs[::every], targets.reshape(len(inputs), -1)[::every]


def _frames(labelled: Mapping[str, Trajectory], most: int) -> Float[np.ndarray, " frames"]:
    flows = [t for t in labelled.values() if t.kind == "flow"] or list(labelled.values())
    times = np.asarray(flow_times(flows[0]), float)
    others = [np.asarray(flow_times(t), float) for t in labelled.values() if t is not flows[0]]
    times = np.unique(np.concatenate([times, *(t[t > times[-1]] for t in others)]))
    times = times[np.isfinite(times)]
    even = np.linspace(0, len(times) - 1, min(most, len(times))).round().astype(int)
    return times[even]


def _is_logarithmic(times: Float[np.ndarray, " frames"]) -> bool:
    """Whether times are more even on a logarithmic axis than on a linear one."""
    later = times[times > 0]
    if times[0] < 0 or len(later) < 3 or later[-1] < 20 * later[0]:
        return False
    uneven = lambda steps: np.std(steps) / np.mean(steps)
    return bool(uneven(np.diff(np.log(later))) < uneven(np.diff(later)))


def _scene(
    label: str, trajectory: Trajectory, frames: Float[np.ndarray, " frames"], viewer: Viewer
) -> Scene:
    saved = np.asarray(flow_times(trajectory), float)
    rows = np.abs(saved[None, :] - frames[:, None]).argmin(axis=1)
    view = viewer.view(trajectory, rows)
    notes = [view.note] if view.note else []
    if not trajectory.succeeded:
        notes.append(f"It ended at t = {saved[-1]:.4g}: {trajectory.message}.")
    raster = _raster(trajectory, frames)
    if raster is not None and raster.total > len(raster.times):
        notes.append(f"{len(raster.times):,} of {raster.total:,} kinks are drawn.")
    risk = np.asarray(trajectory.risk, float)[rows]
    return Scene(label, trajectory.kind, saved[rows], risk, view, raster, " ".join(notes))


def _raster(trajectory: Trajectory, frames: Float[np.ndarray, " frames"]) -> Raster | None:
    log = trajectory.kinks
    if log is None or not len(log):
        return None
    at = lambda times: np.interp(times, np.asarray(trajectory.ts), flow_times(trajectory))
    times = at(np.asarray(log.time, float))
    end = float(trajectory.ts[-1])
    found = [s._replace(begin=float(at(s.begin)), end=float(at(s.end))) for s in log.slides(end)]
    met = np.searchsorted(times, frames, side="right")
    begins, ends = np.array([[s.begin, s.end] for s in found]).reshape(-1, 2).T
    # A slide that goes on at the last time has not ended.
    ends = np.where(ends >= at(end), np.inf, ends)
    before = lambda these: np.searchsorted(np.sort(these), frames, side="right")
    sliding = before(begins) - before(ends)
    kept = _kept(np.asarray(log.kind))
    column = lambda array: np.asarray(array)[kept]
    return Raster(
        times=times[kept],
        layer=column(log.layer),
        unit=column(log.unit),
        datum=column(log.datum),
        kind=column(log.kind),
        slides=found[:_MOST_KINKS],
        total=len(log),
        met=met,
        sliding=sliding,
    )


def _kept(kinds: Int[np.ndarray, " kinks"]) -> Int[np.ndarray, " kept"]:
    """The kinks that are drawn: of too many, those of slides first, and crossings evenly."""
    if len(kinds) <= _MOST_KINKS:
        return np.arange(len(kinds))
    slides = np.flatnonzero(kinds >= 2)[:_MOST_KINKS]
    crossings = np.flatnonzero(kinds < 2)
    room = min(_MOST_KINKS - len(slides), len(crossings))
    even = np.linspace(0, len(crossings) - 1, room).astype(int) if room else []
    return np.sort(np.append(slides, crossings[even]).astype(int))


def _height(functions: list[np.ndarray], y: np.ndarray, curve: np.ndarray) -> Extent:
    """The span of values: that of data and target, or of the first function, and of functions as
    far as these are not much larger."""
    known = Extent.of(y, curve[:, 1])
    if not (np.isfinite(y).any() or len(curve)):
        if not functions:
            return known
        known = Extent.of(functions[0])
    reach = 0.6 * (known.high - known.low)
    first = functions[0] if functions else np.zeros(0)
    seen = Extent.of(np.clip(first, known.low - reach, known.high + reach), [known.low, known.high])
    return seen.widened(0.05)
