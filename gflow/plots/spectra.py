"""Figures of Hessian spectra."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import SymmetricalLogLocator

from gflow.critical import CriticalPoint
from gflow.hessian import Spectrum
from gflow.plots.style import ACTIVE, NEGATIVE, new_axes


def spectrum(
    spectrum: Spectrum | CriticalPoint, *, linear_below: float | None = None, ax: Axes | None = None
) -> Axes:
    """The eigenvalues of a Hessian, or of the Hessian at a critical point.

    All eigenvalues are drawn by rank. If their density was estimated, it is drawn as eigenvalues
    per decade. The axis is logarithmic on both sides and linear in ±`linear_below`.
    """
    ax = new_axes(ax)
    if isinstance(spectrum, CriticalPoint):
        spectrum = spectrum.spectrum
    values = spectrum.eigenvalues
    if linear_below is None:
        away = np.abs(values[np.abs(values) > spectrum.zero_below])
        if spectrum.complete or spectrum.nodes is None:
            linear_below = 10 ** np.floor(np.log10(away.min(initial=1.0)))
        else:
            linear_below = 1e-6 * np.abs(values).max()
    symmetric = {"value": "symlog", "linthresh": max(linear_below, np.finfo(values.dtype).tiny)}
    if spectrum.complete or spectrum.nodes is None:
        ax.set_yscale(**symmetric)
        locator = SymmetricalLogLocator(base=10, linthresh=symmetric["linthresh"])
        locator.set_params(numticks=11)
        ax.yaxis.set_major_locator(locator)
        _ranks(spectrum, ax)
    else:
        ax.set_xscale(**symmetric)
        _per_decade(spectrum, symmetric["linthresh"], ax)
    ax.legend(frameon=False, fontsize="small")
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def _by_sign(spectrum: Spectrum) -> list[tuple[str, str, np.ndarray]]:
    """A label, a colour and a mask for the eigenvalues of each sign."""
    values, zero = spectrum.eigenvalues, spectrum.zero_below
    signs = np.where(np.abs(values) <= zero, 0, np.sign(values))
    kinds = ((1, "positive", ACTIVE), (0, "zero", "0.55"), (-1, "negative", NEGATIVE))
    return [
        (f"{np.sum(signs == sign):,} {name}", colour, signs == sign)
        for sign, name, colour in kinds
        if (signs == sign).any()
    ]


def _ranks(spectrum: Spectrum, ax: Axes) -> None:
    """Eigenvalues by rank; a gap stands for those that are not known."""
    size, count = spectrum.size, len(spectrum.eigenvalues)
    gap = 0 if spectrum.complete else max(2, count // 5)
    place = np.arange(count, 0, -1)
    place[: 0 if spectrum.complete else spectrum.num_smallest] += gap
    for label, colour, those in _by_sign(spectrum):
        ax.plot(place[those], spectrum.eigenvalues[those], "o", ms=3, color=colour, label=label)
    ax.axhline(0, color="0.7", lw=0.7, zorder=0)
    if gap:
        largest = count - spectrum.num_smallest
        ends = {1: 1, largest: largest, largest + gap + 1: size - count + largest + 1}
        shown = {at: rank for at, rank in (ends | {count + gap: size}).items() if at in place}
        ax.set_xticks(list(shown), [f"{rank:,}" for rank in shown.values()])
    ax.set(xlabel=f"rank among {size:,}", ylabel="Hessian eigenvalue λ")


def _per_decade(spectrum: Spectrum, linear_below: float, ax: Axes) -> None:
    """The density, smoothed over a tenth of a decade, and marks for the extreme eigenvalues."""
    assert spectrum.nodes is not None and spectrum.weights is not None
    to_axis, width = ax.xaxis.get_transform(), 0.1
    along = lambda x: to_axis.transform(np.asarray(x, float)) / linear_below
    at = along(spectrum.nodes.ravel())
    grid = np.linspace(at.min() - 5 * width, at.max() + 5 * width, 1000)
    kernel = np.exp(-(((grid[:, None] - at) / width) ** 2) / 2) / (width * (2 * np.pi) ** 0.5)
    height = spectrum.size * (kernel @ spectrum.weights.ravel()) / len(spectrum.nodes)
    x = to_axis.inverted().transform(grid * linear_below)
    foot = 0.3
    ax.fill_between(x, foot, np.maximum(height, foot), color="0.87", lw=0)
    ax.plot(x, np.where(height > foot, height, np.nan), color="0.35", lw=1.2, label="density")
    for label, colour, those in _by_sign(spectrum):
        ends = spectrum.eigenvalues[those]
        ax.plot(ends, np.full(len(ends), foot), "|", ms=14, mew=1.2, color=colour, label=label)
    ax.axvline(0, color="0.7", lw=0.7, zorder=0)
    top = np.log10(np.abs(spectrum.nodes).max())
    ticks = 10.0 ** np.arange(np.floor(top), np.log10(linear_below) + 0.5, -2)
    ticks = np.concatenate([-ticks, [0], ticks])
    ax.set_xticks(ticks[(ticks >= x[0]) & (ticks <= x[-1])])
    ax.set(yscale="log", ylim=(foot, None), xlabel="Hessian eigenvalue λ")
    ax.set_ylabel(f"eigenvalues per decade, of {spectrum.size:,}")
