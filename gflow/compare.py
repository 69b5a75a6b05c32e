"""Flow against descent: distances at matched times, and the order in the step size."""

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import numpy as np

from gflow.arguments import ArgumentError, Described, positive
from gflow.rates import student_t
from gflow.trajectory import Trajectory

_NODES = 6


@dataclass(frozen=True, repr=False, eq=False)
class Gap:
    """How far one trajectory is from another, at the saved times of the second.

    - `ts`, shape (times,): the times.
    - `distance`, shape (times,): ‖θ_second(t) − θ_first(t)‖ over all parameters.
    - `risk_gap`, shape (times,): L(θ_second(t)) − L(θ_first(t)).
    - `interpolation_error`, shape (times,): an estimate of the error of `distance` where a time was
      not saved in the first trajectory; exactly 0 where it was.
    """

    ts: np.ndarray
    distance: np.ndarray
    risk_gap: np.ndarray
    interpolation_error: np.ndarray

    @property
    def largest(self) -> float:
        """sup_t of the distance over the matched times."""
        return float(np.max(self.distance))

    def __repr__(self) -> str:
        k = int(np.argmax(self.distance))
        exact = int(np.sum(self.interpolation_error == 0))
        return (
            f"Gap at {len(self.ts)} times ({exact} saved in both, interpolation error of the rest "
            f"at most {np.max(self.interpolation_error):.1e})\n"
            f"  distance  largest {self.largest:.4g} at t = {self.ts[k]:.4g}, "
            f"{self.distance[-1]:.4g} at the end\n"
            f"  risk gap  {self.risk_gap[-1]:.4g} at the end"
        )


def compare(flow: Trajectory, other: Trajectory) -> Gap:
    """The distance of `other` (a descent, say) from `flow` at matched times.

    The matched times are those saved in `other` that lie in the span of `flow`. Where `flow` was
    saved at the same time (to rounding) the difference is exact; in between `flow` is interpolated
    by polynomials of degree 5 through its saved times in the variable log(1 + t/τ), τ being its
    first gap, and the difference from degree 3 is reported as error estimate. For differences
    without it, solve the flow with `ts=other.ts`.

    Runs on the host, in NumPy, so not under `jax.jit`.

    **Raises:** `ArgumentError` if the networks differ in shape or no time matches.
    """
    ours, theirs = _flat(flow), _flat(other)
    if ours.shape[1] != theirs.shape[1]:
        got = Described(f"a network of {theirs.shape[1]} parameters")
        raise ArgumentError("other", got, f"{ours.shape[1]}, as in `flow`")
    nodes, ts = np.asarray(flow.ts), np.asarray(other.ts)
    slack = 4 * np.finfo(ts.dtype).eps * nodes[-1]
    inside = (ts >= nodes[0] - slack) & (ts <= nodes[-1] + slack)
    if not inside.any():
        got = Described(f"times {ts[0]:g} to {ts[-1]:g}")
        wanted = f"some within those of `flow`, {nodes[0]:g} to {nodes[-1]:g}"
        raise ArgumentError("other", got, wanted)
    ts = ts[inside]
    data = np.concatenate([ours, np.asarray(flow.risk)[:, None]], axis=1)
    values, errors = _interpolate(nodes, data, ts)
    return Gap(
        ts=ts,
        distance=np.linalg.norm(theirs[inside] - values[:, :-1], axis=1),
        risk_gap=np.asarray(other.risk)[inside] - values[:, -1],
        interpolation_error=np.linalg.norm(errors[:, :-1], axis=1),
    )


def _flat(trajectory: Trajectory) -> np.ndarray:
    leaves = jax.tree.leaves(eqx.filter(trajectory.params, eqx.is_inexact_array))
    return np.concatenate([np.asarray(a).reshape(a.shape[0], -1) for a in leaves], axis=1)


def _interpolate(
    nodes: np.ndarray, data: np.ndarray, ts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values at `ts` of data given at `nodes`, and their error estimates."""
    if len(nodes) == 1:
        return np.repeat(data, len(ts), axis=0), np.zeros((len(ts), data.shape[1]))
    tau = nodes[1] - nodes[0]
    at = lambda t: np.log1p(np.maximum(t - nodes[0], 0.0) / tau)
    s, wanted = at(nodes), at(ts)
    high, low = (_lagrange(s, data, wanted, min(n, len(nodes))) for n in (_NODES, _NODES - 2))
    nearest = np.argmin(np.abs(nodes[None, :] - ts[:, None]), axis=1)
    close = 8 * np.finfo(ts.dtype).eps * np.maximum(np.abs(ts), tau)
    saved = (np.abs(nodes[nearest] - ts) <= close)[:, None]
    return np.where(saved, data[nearest], high), np.where(saved, 0.0, high - low)


def _lagrange(s: np.ndarray, data: np.ndarray, wanted: np.ndarray, count: int) -> np.ndarray:
    """Lagrange interpolation through the `count` nodes around each wanted place."""
    first = np.clip(np.searchsorted(s, wanted) - count // 2, 0, len(s) - count)
    index = first[:, None] + np.arange(count)
    near = s[index]
    others = ~np.eye(count, dtype=bool)
    apart = np.where(others, near[:, :, None] - near[:, None, :], 1.0)
    ahead = np.where(others, (wanted[:, None] - near)[:, None, :], 1.0)
    weights = np.prod(ahead / apart, axis=2)
    return np.einsum("tk,tkp->tp", weights, data[index])


@dataclass(frozen=True)
class Order:
    """The observed order p of a distance in the step size, distance ≈ C h^p.

    - `value`: p; `interval`: its 95 % confidence interval from the scatter of the fit.
    - `step_sizes`, `distances`: what was fitted.
    """

    value: float
    interval: tuple[float, float]
    step_sizes: tuple[float, ...]
    distances: tuple[float, ...]

    def __repr__(self) -> str:
        low, high = self.interval
        return f"order {self.value:.3f} (95 % interval {low:.3f} to {high:.3f})"


def observed_order(step_sizes: Sequence[float], distances: Sequence[float]) -> Order:
    """The order in h by least squares of log distance = log C + p log h + a h.

    The last term is the first correction to C h^p, and is fitted from four step sizes on; without
    it the largest step sizes would bias the order. Gradient descent follows gradient flow with
    order 1 (THEORY: global error at most h M (e^{ΛT} − 1)/(2Λ)).

    **Arguments:** `step_sizes`, `distances`: at least three of each, positive.
    """
    if len(step_sizes) != len(distances) or len(step_sizes) < 3:
        got = Described(f"{len(step_sizes)} step sizes and {len(distances)} distances")
        raise ArgumentError("step_sizes", got, "at least three, one for each distance")
    h = np.array([positive("step_sizes", x) for x in step_sizes])
    d = np.array([positive("distances", x) for x in distances])
    columns = [np.ones_like(h), np.log(h)] + ([h / h.max()] if len(h) >= 4 else [])
    design = np.stack(columns, axis=1)
    solution, *_ = np.linalg.lstsq(design, np.log(d))
    freedom = len(h) - design.shape[1]
    variance = np.sum((np.log(d) - design @ solution) ** 2) / freedom
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1])
    reach = student_t(freedom) * error
    p = float(solution[1])
    return Order(p, (p - reach, p + reach), tuple(map(float, h)), tuple(map(float, d)))
