"""Measured curves beside the laws that they should follow."""

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from gflow.arguments import ArgumentError, Described, RealScalar, one_of, real_array
from gflow.plots.style import ACTIVE, FLOW, NEGATIVE, colours, new_axes, space_ticks

# Curves of fewer points have a dot at each.
_SPARSE = 40
# Legends of more entries have two columns.
_LONG = 5
_COLOURS = (NEGATIVE, ACTIVE, "#e08e45", "#6a994e", "#7b5ea7", "#7fb2d1", "#0b3954", "#8a8d91")
_LAW_STYLES = ("--", ":", "-.", (0, (1, 3)), (0, (8, 3)))


def curves(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    laws: Mapping[str, Callable[[Any], Any] | RealScalar] | None = None,
    x: Literal["log", "linear"] = "log",
    y: Literal["log", "linear"] = "log",
    ordered: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Curves by label, and the laws that they should follow as dashed lines.

    ```python
    t = jnp.geomspace(1, 100, 50)
    gflow.plots.curves({"gap": (t, 9 / t**3)}, laws={"$t^{-3}$": lambda t: 10 / t**3})
    ```

    On a logarithmic axis what is not positive is left out. A label that begins with "_" does not
    appear in the legend. The curve "flow" is black, as in other figures.

    **Arguments:**

    - `curves`: pairs (x, y) by label, of shapes (points,) and (points,), or (lines, points) for
      several lines of one colour.
    - `laws`: functions of an array of x, or numbers. They are drawn as far as the curves reach,
      which a number may widen.
    - `x`, `y`: the kinds of the axes.
    - `ordered`: whether colours go from light to dark, as those of descents in other figures.

    **Raises:** `ArgumentError` for other shapes, and for laws without curves.
    """
    ax = new_axes(ax)
    one_of("x", x, ("log", "linear"))
    one_of("y", y, ("log", "linear"))
    checked = {label: _pair(label, pair) for label, pair in dict(curves).items()}
    sizes, shades = np.linspace(6.5, 4, len(checked)), _colours_of([*checked], ordered)
    for (label, (at, values)), size in zip(checked.items(), sizes if len(checked) > 1 else (4,)):
        at, values = _shown(at, x), _shown(values, y)
        many = len(values) > 3
        style = {"color": shades[label], "lw": 0.8 if many else 1.4, "alpha": 0.6 if many else 1}
        # Curves may coincide: later dots are smaller.
        style |= {"marker": "o", "ms": size} if values.shape[1] < _SPARSE else {}
        ax.plot(at, values.T, **style)[0].set_label(label)
    ax.set(xscale=x, yscale=y)
    _draw_laws(dict(laws or {}), [_shown(at, x) for at, _ in checked.values()], ax)
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            space_ticks(axis)
    if named := len(ax.get_legend_handles_labels()[1]):
        style = {"ncols": 2, "columnspacing": 1} if named > _LONG else {}
        ax.legend(framealpha=0.8, edgecolor="none", fontsize="small", **style)
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def _colours_of(labels: list[str], ordered: bool) -> dict[str, Any]:
    others = [label for label in labels if label != "flow"]
    ordered = ordered or len(others) > len(_COLOURS)
    return {"flow": FLOW} | dict(zip(others, colours(len(others)) if ordered else _COLOURS))


def _pair(label: str, pair: Any) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "l p"]]:
    """x and y of a curve, y with an axis of lines."""
    wanted = "pairs (x, y) of shapes (points,) and (points,) or (lines, points), by label"
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ArgumentError("curves", Described(f"no pair for {label!r}"), wanted)
    at, values = (np.asarray(real_array("curves", part, wanted), float) for part in pair)
    if at.ndim != 1 or values.ndim not in (1, 2) or values.shape[-1] != len(at):
        got = Described(f"shapes {at.shape} and {values.shape} for {label!r}")
        raise ArgumentError("curves", got, wanted)
    return at, np.atleast_2d(values)


def _shown(values: np.ndarray, scale: str) -> np.ndarray:
    """The values, NaN where the axis cannot show them."""
    shown = np.isfinite(values) & ((values > 0) | (scale == "linear"))
    return np.where(shown, values, np.nan)


def _draw_laws(laws: dict[str, Any], places: list[np.ndarray], ax: Axes) -> None:
    """The laws along the reach of the curves, which they do not change."""
    reach = np.concatenate([np.ravel(at) for at in places]) if places else np.array([])
    reach = reach[np.isfinite(reach)]
    if not laws:
        return
    if not len(reach):
        raise ArgumentError("laws", Described("laws alone"), "laws beside curves")
    between = np.geomspace if ax.get_xscale() == "log" else np.linspace
    at = between(reach.min(), reach.max(), 400)
    lines = {label: _along(label, law, at) for label, law in laws.items()}
    for law, values in zip(laws.values(), lines.values()):
        if not callable(law) and (values[0] > 0 or ax.get_yscale() == "linear"):
            ax.update_datalim([(at[0], values[0])])
    ax.autoscale_view()
    window = ax.axis()
    for (label, values), dashes in zip(lines.items(), cycle(_LAW_STYLES)):
        seen = _shown(values, ax.get_yscale())
        ax.plot(at, seen, color=FLOW, lw=1, ls=dashes, label=label, zorder=3)
    ax.axis(window)


def _along(label: str, law: Any, at: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """The values of a law."""
    with np.errstate(all="ignore"):
        values = np.asarray(law(at) if callable(law) else law, float)
    if values.shape not in ((), at.shape):
        got = Described(f"values of shape {values.shape} for {at.shape} in {label!r}")
        raise ArgumentError("laws", got, "functions of an array, or numbers, by label")
    return np.broadcast_to(values, at.shape)
