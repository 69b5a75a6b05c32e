"""Whether the risk still falls, in a direction of little curvature, where a search has ended.

A gradient below the bound of rounding, ε ‖Hessian‖ ‖θ‖, may still be a slope: that of exp(−x) at
x = 30 beside y² is, and leads to infinity.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gflow.critical.landscapes import AbstractLandscape
from gflow.critical.newton import Eigensystem, NewtonResult
from gflow.critical.pattern_landscape import AbstractPatternLandscape

# Components of the gradient with Newton steps up to this, relative to ‖θ‖, are at rest.
_AT_REST = 1e-4
_PROBES, _SIGNIFICANT, _LEAKED = 8, 8.0, 30.0
# On data the gradient is a mean of terms that cancel: a slope counts if the risk changes by so many
# roundings of them where θ changes by its size.
ROUNDINGS = 100.0
# A slope that is there for this fraction of ‖θ‖ is one.
_LASTS = 1e-2
# Lengths over which the slope halves: they shrink towards a critical point, also where the risk is
# of tenth order there, and not on the way to infinity.
_HALVINGS, _SHRINKS, _GROWS = 10, 0.7, 0.95
# How often it has to halve before the way is called endless; and steps on the way.
_ENDLESS, _MAX_STEPS = 5, 300


class Valley(NamedTuple):
    """A direction in which the risk falls, and the slope; whether θ grows in it, and whether the
    slope vanishes over lengths that do not shrink, with the other directions at rest."""

    direction: Float[np.ndarray, " size"]
    slope: float
    outward: bool
    endless: bool


def valley(land: AbstractLandscape, found: NewtonResult, size: float) -> Valley | None:
    """The direction in which the risk falls where a search ended; None if the gradient there is
    rounding, or vanishes next to it. Lengths are measured by `size`, or by ‖θ‖ if that is more.

    Components of the gradient with long Newton steps are compared with their spread over points
    that differ by roundings. A slope is then followed, with the other directions at rest, over the
    lengths in which it halves.
    """
    now, size = Eigensystem.of(found.expansion), max(size, float(np.linalg.norm(found.theta)))
    if not np.isfinite(now.norm):
        return None
    loose = np.abs(now.gradient) > _AT_REST * size * np.abs(now.values)
    if not loose.any():
        return None
    gradient = np.where(loose, known_components(land, found, now), 0.0)
    largest = float(np.max(np.abs(gradient)))
    if largest == 0:
        return None
    # Squares may underflow.
    slope = largest * float(np.linalg.norm(gradient / largest))
    if isinstance(land, AbstractPatternLandscape):
        terms = land.size_of_terms(found.theta, found.expansion.value)
        if slope * size <= ROUNDINGS * np.finfo(gradient.dtype).eps * terms:
            return None
    direction = -(now.vectors @ gradient) / slope
    way = _Way(land, found, direction, slope, size)
    way.follow()
    first, last = way.lengths[0], way.lengths[-1]
    near = first <= _LASTS * size
    # A slope that vanishes at once, or is lost in roundings, is none.
    if near and len(way.lengths) < _HALVINGS and sum(way.lengths) <= _LASTS * size:
        return None
    if near and len(way.lengths) == _HALVINGS and last <= _SHRINKS * first:
        return None
    endless = len(way.lengths) >= _ENDLESS and way.at_rest and last >= _GROWS * first
    return Valley(direction, slope, bool(found.theta @ direction > 0), bool(endless))


def known_components(
    land: AbstractLandscape, found: NewtonResult, now: Eigensystem
) -> Float[np.ndarray, " free"]:
    """The components of the gradient on the eigenvectors, 0 where these are roundings."""
    theta, basis = found.theta, found.expansion.basis
    eps, rng = np.finfo(theta.dtype).eps, np.random.default_rng(0)
    seen = [now.gradient]
    for _ in range(_PROBES):
        aside = 2 * eps * np.abs(theta) * rng.normal(size=len(theta))
        there = land.expansion(land.moved(theta, basis @ (basis.T @ aside)))
        seen.append(now.vectors.T @ there.gradient)
    mean, spread = np.mean(seen, axis=0), np.std(seen, axis=0)
    certain = np.abs(mean) > _SIGNIFICANT * spread
    # Eigenvectors that are known to rounding take some of the other components.
    certain &= np.abs(mean) > _LEAKED * eps * (np.abs(now.vectors.T) @ np.abs(now.vectors @ mean))
    return np.where(certain, mean, 0.0)


class _Way:
    """The way down a valley.

    - `lengths`: over which the slope halves, one after the other; the last one may end without
      that. `at_rest`: whether the slopes across the direction stayed smaller than that along it.
    """

    def __init__(
        self,
        land: AbstractLandscape,
        found: NewtonResult,
        direction: np.ndarray,
        slope: float,
        size: float,
    ):
        self.land, self.direction, self.slope, self.size = land, direction, slope, size
        self.theta, self.basis = found.theta, found.expansion.basis
        self.lengths: list[float] = []
        self.at_rest = True

    def follow(self) -> None:
        """Goes on until the slope has halved ten times, or does not vanish, or vanishes at once."""
        step, begun, slope = 1e-9 * self.size, 0.0, self.slope
        for _ in range(_MAX_STEPS):
            there, gradient = self._beside(step)
            left = -float(gradient @ self.direction)
            if not left >= 0.4 * slope:
                if step < 1e-12 * self.size:
                    break
                step /= 2
                continue
            self.theta, begun = there, begun + step
            across = gradient + left * self.direction
            self.at_rest &= bool(np.linalg.norm(self.basis.T @ across) <= left)
            step *= 1.5 if left > 0.8 * slope else 1.0
            if left <= 0.6 * slope:
                # As long as it would be to the half.
                self.lengths.append(begun * np.log(2) / np.log(slope / left))
                begun, slope = 0.0, left
                if len(self.lengths) == _HALVINGS:
                    return
        self.lengths.append(begun)

    def _beside(self, step: float) -> tuple[np.ndarray, np.ndarray]:
        """Where a step along the direction leads, with the other directions at rest, and the
        gradient there."""
        land, direction = self.land, self.direction
        theta = land.moved(self.theta, step * direction)
        here = land.expansion(theta)
        for _ in range(2):
            across = here.basis - np.outer(direction, direction @ here.basis)
            frame, sizes, _ = np.linalg.svd(across, full_matrices=False)
            now = Eigensystem.of(here._replace(basis=frame[:, sizes > 0.5]))
            # Longer steps belong to directions of little curvature, which stay.
            near = np.abs(now.gradient) <= step * np.abs(now.values)
            back = -now._replace(zero=now.zero | ~near).damped_inverse(0.0)(now.gradient)
            theta = land.moved(theta, back)
            here = land.expansion(theta)
        return theta, here.gradient
