"""What a trajectory tells of its limit: norms, speeds and risks along the logarithm of time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from gflow.trajectory import Trajectory

DECADE = float(np.log(10.0))


@dataclass(frozen=True)
class Path:
    """A trajectory as arrays, at its times after the start.

    - `t`: the time since the start. `theta`: the trained parameters. `norm`: ‖θ‖.
    - `risk`: L. `speed`: ‖dθ/dt‖.
    """

    t: Float[np.ndarray, " times"]
    theta: Float[np.ndarray, "times size"]
    norm: Float[np.ndarray, " times"]
    risk: Float[np.ndarray, " times"]
    speed: Float[np.ndarray, " times"]

    @classmethod
    def of(cls, flow: Trajectory, start: float, trained: Callable[[Any], Any]) -> "Path":
        """That of a flow; `trained` takes the trained parameters out of a network."""
        t = np.asarray(flow.ts, float) - start
        arrays = jax.tree.leaves(eqx.filter(trained(flow.params), eqx.is_inexact_array))
        rows = [np.asarray(a, float).reshape(len(t), -1) for a in arrays]
        theta, later = np.concatenate(rows, axis=1), t > 0
        columns = theta, np.linalg.norm(theta, axis=1), np.asarray(flow.risk, float)
        columns = (t, *columns, np.asarray(flow.grad_norm, float))
        return cls(*(a[later] for a in columns))

    @property
    def end(self) -> float:
        return float(self.t[-1])

    @property
    def log_t(self) -> Float[np.ndarray, " times"]:
        return np.log(self.t)

    @property
    def length(self) -> float:
        """The length of the polygon through the saved points."""
        return float(np.sum(np.linalg.norm(np.diff(self.theta, axis=0), axis=1)))

    def at(self, values: np.ndarray, log_t: float) -> float:
        """A quantity at a time between saved ones."""
        return float(np.interp(log_t, self.log_t, values))

    def slope(self, values: np.ndarray, decades: tuple[float, float]) -> float:
        """d log(values)/d log t, over so many decades before the end to so many; NaN if fewer than
        three saved times lie there, or a value is not positive."""
        x = self.log_t
        inside = x >= x[-1] - decades[0] * DECADE - 1e-9
        inside &= x <= x[-1] - decades[1] * DECADE + 1e-9
        if inside.sum() < 3 or not np.all(values[inside] > 0):
            return float("nan")
        return float(np.polyfit(x[inside], np.log(values[inside]), 1)[0])

    def last(self, decades: float) -> "Path":
        """The last so many decades."""
        return self._where(self.log_t >= self.log_t[-1] - decades * DECADE - 1e-9)

    def after(self, t: float) -> "Path":
        """What comes after a time."""
        return self._where(self.t > t * (1 + 1e-9))

    def known(self) -> "Path":
        """The part in which all numbers are finite."""
        return self._where(np.isfinite(self.norm) & np.isfinite(self.risk * self.speed))

    @classmethod
    def joined(cls, *paths: "Path") -> "Path":
        """One path after the other."""
        columns = zip(*(vars(path).values() for path in paths))
        return cls(*map(np.concatenate, columns))

    def _where(self, kept: np.ndarray) -> "Path":
        return Path(*(getattr(self, name)[kept] for name in vars(self)))
