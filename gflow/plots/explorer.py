"""A page to watch: trajectories under one slider of time, as one self-contained HTML page."""

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gflow.arguments import ArgumentError
from gflow.display import fact_lines
from gflow.nonsmooth import KinkKind
from gflow.piecewise import PiecewisePolynomial
from gflow.plots.scenes import Raster, Scene, Scenery, scenery
from gflow.plots.views import Breakpoints, Extent, FunctionView, UnitView, View
from gflow.trajectory import Trajectory

_MOST_FRAMES = 200
# The largest number of 16 bits stands for NaN.
_LEVELS = 2**16 - 2


@dataclass(frozen=True, repr=False)
class Explorer:
    """A page to watch, of `gflow.plots.explore`. It shows itself in a notebook.

    - `html`: the page, with all that it needs.
    - `labels`: those of the trajectories. `num_frames`: the positions of the slider.
    """

    html: str
    title: str
    labels: tuple[str, ...]
    num_frames: int

    def save(self, path: str | Path) -> Path:
        """Writes the page. Any browser opens it, without a network. **Returns:** the path.

        **Raises:** `ArgumentError` if there is no folder for it.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise ArgumentError("path", str(path), "a file in a folder that is there")
        path.write_text(self.html, encoding="utf-8")
        return path

    def embedded(self) -> str:
        """The page as an element of another page; neither changes how the other one looks."""
        return (
            f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self.html)}" '
            'style="width:100%;height:46rem;border:0" loading="lazy"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.embedded()

    def __repr__(self) -> str:
        size = f"{len(self.html.encode()) / 1e6:.2f} MB; `save(path)` writes it"
        facts = {"shows": ", ".join(self.labels), "times": str(self.num_frames), "page": size}
        return fact_lines("Explorer", facts)


def explore(
    trajectories: Trajectory | Mapping[str, Trajectory],
    x: Any = None,
    y: Any = None,
    *,
    target: PiecewisePolynomial | None = None,
    critical_value: float | None = None,
    title: str = "Along the gradient flow",
) -> Explorer:
    """A page with a slider of time over one trajectory, or up to eight by label.

    It shows the function N(x) with its breakpoints, for one input; for more, the units of a
    `ShallowNet`, as directions w/|w| of two inputs, or |v| w on their two leading principal
    directions; for other networks the norms of the arrays of parameters. Below are the kinks and
    slides of each flow, and the risk. At each time, every trajectory is at its nearest saved time.

    **Arguments:**

    - `trajectories`: for the others the times are those of the first flow, at most 200.
    - `x`, shape (n,) or (n, 1), and `y`, shape (n,) or (n, outputs): the data, for one input.
    - `target`: drawn as a line, for one input.
    - `critical_value`: a value of the risk that is marked, such as the `risk` of a `CriticalPoint`.

    **Returns:** an `Explorer`, which shows itself in a notebook; `explore(flow).save("flow.html")`
    writes a page that needs no network.

    **Raises:** `ArgumentError` for batches, more than eight trajectories, and data that do not fit.
    """
    found = scenery(trajectories, x, y, target, critical_value, _MOST_FRAMES)
    labels = tuple(scene.label for scene in found.scenes)
    return Explorer(_page(str(title), _story(found)), str(title), labels, len(found.times))


def _page(title: str, story: dict[str, Any]) -> str:
    """The template with title, style, script and data."""
    folder = resources.files("gflow.plots") / "page"
    read = lambda name: (folder / name).read_text(encoding="utf-8")
    # Within a script only "<" could end it.
    data = json.dumps(story, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": read("style.css"),
        **{name: read(f"{name}.js") for name in ("figures", "views", "controls")},
        "data": data,
    }
    first, *rest = read("page.html").split("{{")
    filled = (part.partition("}}") for part in rest)
    return first + "".join(parts[name] + text for name, _, text in filled)


def _story(found: Scenery) -> dict[str, Any]:
    return {
        "times": [_number(t) for t in found.times],
        "log": found.log_time,
        "span": [_number(end) for end in found.span],
        "height": [_number(end) for end in found.height],
        "x": _packed(found.x, "float32"),
        "y": _packed(found.y, "float32"),
        "outputs": found.y.shape[1],
        "target": [[_number(entry) for entry in row] for row in found.target],
        "critical": found.critical_value,
        "kinds": [kind.label for kind in KinkKind],
        "trajectories": [_trajectory(scene, found.height) for scene in found.scenes],
    }


def _trajectory(scene: Scene, height: Extent) -> dict[str, Any]:
    return {
        "label": scene.label,
        "kind": scene.kind,
        "note": scene.note,
        "times": [_number(t) for t in scene.times],
        "risk": [_number(value) for value in scene.risk],
        "view": _view(scene.view, height),
        "raster": None if scene.raster is None else _raster(scene.raster),
    }


def _view(view: View, height: Extent) -> dict[str, Any]:
    if isinstance(view, FunctionView):
        # What is further off than the figure is high looks the same.
        low, high = height.widened(1.0)
        return {
            "type": "function",
            "x": _packed(view.places, "float32"),
            "values": _levels(np.clip(view.values, low, high)),
            "outputs": view.values.shape[2],
            "breakpoints": view.breakpoints and _breakpoints(view.breakpoints, Extent(low, high)),
        }
    if isinstance(view, UnitView):
        return {
            "type": "units",
            "normalised": view.normalised,
            "axes": view.axes,
            "units": view.weights.shape[1],
            "points": _levels(view.points),
            "weights": _levels(view.weights),
            "lengths": _levels(view.lengths),
        }
    norms = [[_number(norm) for norm in column] for column in view.norms.T]
    return {"type": "norms", "names": view.names, "norms": norms}


def _breakpoints(found: Breakpoints, height: Extent) -> dict[str, Any]:
    seen = np.isfinite(found.heights)
    return {
        "units": found.places.shape[1],
        "places": _levels(np.where(seen, found.places, np.nan)),
        "heights": _levels(np.clip(found.heights, *height)),
        "jumps": _levels(found.jumps),
        "inside": found.inside.tolist(),
    }


def _raster(raster: Raster) -> dict[str, Any]:
    slides = [(s.layer, s.unit, s.datum, _number(s.begin), _number(s.end)) for s in raster.slides]
    return {
        "times": _packed(raster.times, "float32"),
        "layer": _packed(raster.layer, "uint8"),
        "unit": _packed(raster.unit, "uint32"),
        "row": _packed(raster.datum, "uint32"),
        "kind": _packed(raster.kind, "uint8"),
        "slides": slides,
        "met": raster.met.tolist(),
        "sliding": raster.sliding.tolist(),
    }


def _number(value: Any) -> float | None:
    """The number to six digits, which JSON writes shortly; None if it is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _packed(
    array: np.ndarray, kind: Literal["float32", "uint8", "uint16", "uint32"]
) -> dict[str, Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        raw = np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<")).tobytes()
    return {"type": kind, "data": base64.b64encode(raw).decode()}


def _levels(array: np.ndarray) -> dict[str, Any]:
    """The array in 16 bits: levels between its ends, finer than a pixel."""
    low, high = Extent.of(array)
    scale = (high - low) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.round((array - low) / scale * _LEVELS)
    levels = np.where(np.isfinite(array), levels, _LEVELS + 1)
    return _packed(levels, "uint16") | {"low": low, "high": low + scale}
