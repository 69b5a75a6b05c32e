"""Figures of rates."""

from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from gflow.arguments import one_of
from gflow.plots.style import ACTIVE, FLOW, NEGATIVE, new_axes
from gflow.rates import Rate
from gflow.rates.local_slopes import Plateau


def gap(
    ts: Any,
    gap: Any,
    rate: Rate,
    *,
    x: Literal["log", "linear"] = "log",
    ax: Axes | None = None,
) -> Axes:
    """A gap and the law that fits best over the tail, on a logarithmic axis of gaps. The legend
    says if this law is not called.

    **Arguments:**

    - `ts`, `gap`, shape (times,): as for `fit_rate`; `rate.limit` is subtracted from `gap`.
    - `x`: the axis of times. A power law is a straight line on "log", an exponential on "linear".
    """
    one_of("x", x, ("log", "linear"))
    ax = new_axes(ax)
    t, g = np.asarray(ts), np.asarray(gap) - rate.limit
    shown = (g > 0) & ((t > 0) | (x == "linear"))
    ax.plot(t[shown], g[shown], color=FLOW, lw=1.3, label="gap")
    start, end = rate.window
    tail = np.geomspace(start, end, 200) if x == "log" else np.linspace(start, end, 200)
    with np.errstate(divide="ignore"):
        law = rate(tail)
    label = rate.formula() if rate.best.is_positive else "best fit"
    label += ", not called" if rate.law == "undecided" else ""
    ax.plot(tail, law, color=ACTIVE, lw=4, alpha=0.45, label=label, zorder=1)
    ax.axvspan(start, end, color="0.94", zorder=0, lw=0)
    ax.set(xscale=x, yscale="log", xlabel="flow time t", ylabel="L − L∞")
    ax.legend(frameon=False, fontsize="small")
    return ax


def local_slopes(
    rate: Rate, *, kind: Literal["exponential", "power"] | None = None, ax: Axes | None = None
) -> Axes:
    """The local slopes of a gap, with their plateau.

    `kind`: "power" for −d log gap / d log t, "exponential" for −d log gap / dt; by default that of
    the better law, and "exponential" for a finite time.
    """
    if kind is None:
        kind = "power" if rate.better == "power" else "exponential"
    one_of("kind", kind, ("exponential", "power"))
    ax = new_axes(ax)
    slopes, power = rate.slopes, kind == "power"
    values, plateau = (
        (slopes.exponent, slopes.exponent_plateau) if power else (slopes.rate, slopes.rate_plateau)
    )
    ax.plot(slopes.ts, values, ".-", color=FLOW, ms=3, lw=0.8)
    if plateau is not None:
        _mark_plateau(ax, plateau, power)
    if rate.better == kind:
        low, high = rate.tail_interval
        ax.axhspan(low, high, color=ACTIVE, alpha=0.25, lw=0, zorder=0)
        label = f"fit, {rate.tail_value:.4g}"
        ax.plot(rate.window, [rate.tail_value] * 2, color=ACTIVE, lw=1.2, label=label)
    if plateau is not None:
        ax.set_ylim(0, 2 * plateau.value)
    ylabel = "−d log gap / d log t" if power else "−d log gap / dt"
    ax.set(xscale="log" if power else "linear", xlabel="flow time t", ylabel=ylabel)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _mark_plateau(ax: Axes, plateau: Plateau, power: bool) -> None:
    length = f"{plateau.length:.2g} " + ("decades" if power else "times 1/r")
    ax.plot(
        [plateau.start, plateau.end],
        [plateau.value] * 2,
        color=NEGATIVE,
        lw=5,
        alpha=0.4,
        solid_capstyle="butt",
        label=f"plateau {plateau.value:.4g}, {length}",
    )


def rate_figure(ts: Any, risk_gap: Any, rate: Rate) -> Any:
    """Four panels: the gap against log t and against t, and below them its local slopes."""
    fig, axes = plt.subplots(2, 2, figsize=(9.5, 6.5), layout="constrained")
    gap(ts, risk_gap, rate, x="log", ax=axes[0, 0])
    gap(ts, risk_gap, rate, x="linear", ax=axes[0, 1])
    local_slopes(rate, kind="power", ax=axes[1, 0])
    local_slopes(rate, kind="exponential", ax=axes[1, 1])
    return fig
