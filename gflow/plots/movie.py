"""A movie of trajectories, as a file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import animation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from gflow.arguments import ArgumentError, Described, positive, positive_int
from gflow.piecewise import PiecewisePolynomial
from gflow.plots.raster import kinks
from gflow.plots.scenes import Scene, Scenery, labelled_trajectories, scenery
from gflow.plots.style import ACTIVE, FLOW, NEGATIVE
from gflow.plots.trajectories import risk
from gflow.plots.views import FunctionView, NormView, UnitView, View
from gflow.trajectory import Trajectory

# In inches, and pixels of an inch: both sides are even numbers of pixels, as MP4 asks for.
_WIDTH, _HEIGHT, _DOTS = 4.4, 3.8, 100


class _Moving(NamedTuple):
    """What moves in axes, and the function that moves it to a frame."""

    artists: list[Artist]
    to: Callable[[int], Any]


def movie(
    trajectories: Trajectory | Mapping[str, Trajectory],
    path: str | Path,
    x: Any = None,
    y: Any = None,
    *,
    target: PiecewisePolynomial | None = None,
    critical_value: float | None = None,
    num_frames: int = 100,
    seconds: float = 10.0,
) -> Path:
    """A movie of what `explore` shows, as a file: `.gif`, or `.mp4` where ffmpeg is installed.

    **Arguments:** those of `explore`, and

    - `path`: the file. Its ending chooses the format.
    - `num_frames`: of the saved times, so many are shown at most. `seconds`: how long it takes.

    **Returns:** the path.

    **Raises:** `ArgumentError` where `explore` does, for other endings, for `.mp4` without ffmpeg,
    and if there is no folder for the file.
    """
    path = Path(path)
    num_frames = positive_int("num_frames", num_frames)
    seconds = positive("seconds", seconds)
    _check(path)
    found = scenery(trajectories, x, y, target, critical_value, num_frames)
    count = len(found.times)
    kind = animation.PillowWriter if path.suffix.lower() == ".gif" else animation.FFMpegWriter
    rate: Any = count / seconds
    writer = kind(fps=rate)
    figure, moving = _drawn(labelled_trajectories(trajectories), found)
    with writer.saving(figure, str(path), _DOTS):
        for k in range(count):
            for part in moving:
                part.to(k)
            writer.grab_frame()
    return path


def _check(path: Path) -> None:
    if not path.parent.is_dir():
        raise ArgumentError("path", str(path), "a file in a folder that is there")
    ending = path.suffix.lower()
    if ending not in (".gif", ".mp4"):
        raise ArgumentError("path", str(path), "a file that ends in .gif or .mp4")
    if ending == ".mp4" and not animation.FFMpegWriter.isAvailable():
        got = Described(f"{str(path)!r}, but ffmpeg is not on the PATH")
        raise ArgumentError("path", got, "a file that ends in .gif, or ffmpeg installed")


def _drawn(labelled: dict[str, Trajectory], found: Scenery) -> tuple[Figure, list[_Moving]]:
    """The figure, and what moves in it."""
    flows = {s.label: labelled[s.label] for s in found.scenes if s.raster is not None}
    # The raster of a flow in another time is drawn in that time.
    rasters = {label: flow for label, flow in flows.items() if "flow_time" not in flow.observed}
    count = len(found.scenes) + len(rasters) + 1
    columns = min(count, 3 if count != 4 else 2)
    rows = -(-count // columns)
    size = (_WIDTH * columns, _HEIGHT * rows)
    figure = Figure(figsize=size, dpi=_DOTS, layout="constrained")
    places = iter(range(1, count + 1))
    axes = lambda: figure.add_subplot(rows, columns, next(places))
    moving = [_view(scene.view, scene.label, found, axes()) for scene in found.scenes]
    for label, flow in rasters.items():
        ax = kinks(flow, ax=axes())
        ax.set_title(label, fontsize="medium", loc="right")
        later = found.times[found.times > 0]
        if len(later) > 1:
            ax.set_xlim(later[0], later[-1])
        moving.append(_cursor(ax, found))
    ax = risk(labelled, ax=axes())
    if found.critical_value is not None and found.critical_value > 0:
        ax.axhline(found.critical_value, color="0.5", lw=1, ls="--")
    moving += [_cursor(ax, found), _points(ax, found.scenes)]
    title = figure.suptitle("t = 0")
    moving.append(_Moving([title], lambda k: title.set_text(f"t = {found.times[k]:.4g}")))
    _freeze(figure, [artist for part in moving for artist in part.artists])
    return figure, moving


def _freeze(figure: Figure, moving: list[Artist]) -> None:
    """Makes one picture of all that stays: it is drawn once, and stands still."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for artist in moving:
        artist.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    still = np.array(canvas.buffer_rgba())
    for ax in figure.axes:
        ax.set_axis_off()
        for artist in ax.get_children():
            artist.set_visible(False)
    for artist in moving:
        artist.set_visible(True)
    figure.figimage(still, zorder=-1)


def _cursor(ax: Axes, found: Scenery) -> _Moving:
    line = ax.axvline(found.times[-1], color="0.5", lw=1)
    first = max(found.times[0], ax.get_xlim()[0])
    return _Moving([line], lambda k: line.set_xdata([max(found.times[k], first)] * 2))


def _points(ax: Axes, scenes: list[Scene]) -> _Moving:
    (dots,) = ax.plot([], [], "o", color=ACTIVE, ms=5, zorder=4)
    low = ax.get_xlim()[0]

    def move(k: int) -> None:
        dots.set_data([max(s.times[k], low) for s in scenes], [s.risk[k] for s in scenes])

    return _Moving([dots], move)


def _view(view: View, label: str, found: Scenery, ax: Axes) -> _Moving:
    ax.set_title(label, fontsize="medium")
    ax.grid(alpha=0.25, lw=0.6)
    if isinstance(view, FunctionView):
        return _function(view, found, ax)
    if isinstance(view, UnitView):
        return _units(view, ax)
    return _norms(view, found, ax)


def _function(view: FunctionView, found: Scenery, ax: Axes) -> _Moving:
    ax.locator_params(axis="x", nbins=5)  # beside others the panel is narrow
    for column in found.y.T:
        ax.plot(found.x, column, ".", color="0.55", ms=5, zorder=1)
    ax.plot(*found.target.T, color="0.3", lw=1.2, ls=(0, (4, 2)))
    ax.set(xlim=found.span, ylim=found.height, xlabel="x", ylabel="N(x)")
    lines = [ax.plot([], [], color=FLOW, lw=1.5)[0] for _ in range(view.values.shape[2])]
    dots = ax.scatter([], [], zorder=3)

    def move(k: int) -> None:
        for line, values in zip(lines, view.values[k].T):
            line.set_data(*_with_corners(view, k, values))
        if view.breakpoints is not None:
            places, heights, jumps, _ = view.breakpoints
            _place(dots, places[k], heights[k], jumps[k])

    return _Moving([*lines, dots], move)


def _with_corners(view: FunctionView, k: int, values: np.ndarray) -> np.ndarray:
    curve = np.stack([view.places, values])
    if view.breakpoints is not None and view.values.shape[2] == 1:
        corners = np.stack([view.breakpoints.places[k], view.breakpoints.heights[k]])
        curve = np.concatenate([curve, corners[:, np.isfinite(corners).all(axis=0)]], axis=1)
    return curve[:, np.argsort(curve[0])]


def _units(view: UnitView, ax: Axes) -> _Moving:
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel=view.axes[0], ylabel=view.axes[1])
    points = np.where(np.isfinite(view.points), view.points, np.nan)
    if view.normalised:
        angle = np.linspace(0, 2 * np.pi, 200)
        ax.plot(np.cos(angle), np.sin(angle), color="0.85", lw=1, zorder=0)
    else:
        ax.add_collection(LineCollection(list(points.swapaxes(0, 1)), colors="0.85", lw=0.8))
        ax.autoscale()
    dots = ax.scatter([], [], zorder=3)
    return _Moving(
        [dots], lambda k: _place(dots, points[k, :, 0], points[k, :, 1], view.weights[k])
    )


def _place(dots: Any, xs: np.ndarray, ys: np.ndarray, sizes: np.ndarray) -> None:
    """Dots there, as large as the sizes, coloured by their signs."""
    seen = np.isfinite(xs) & np.isfinite(ys) & np.isfinite(sizes)
    xs, ys, sizes = xs[seen], ys[seen], sizes[seen]
    dots.set_offsets(np.stack([xs, ys], axis=1))
    dots.set_sizes(6 + 60 * np.abs(sizes) / (np.abs(sizes).max(initial=0.0) or 1.0))
    dots.set_color(np.where(sizes < 0, NEGATIVE, ACTIVE))


def _norms(view: NormView, found: Scenery, ax: Axes) -> _Moving:
    later = found.times > 0
    for name, norms in zip(view.names, view.norms.T):
        ax.plot(found.times[later], norms[later], lw=1.3, label=name)
    ax.set(xlabel="flow time t", ylabel="Euclidean norm", yscale="log")
    if found.log_time:
        ax.set_xscale("log")
    ax.legend(frameon=False, fontsize="small")
    return _cursor(ax, found)
