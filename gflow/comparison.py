"""Flow against descent: distances at matched times, and the order in the step size."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gflow.arguments import ArgumentError, Described, positive
from gflow.display import Shown
from gflow.rates.estimates import student_t
from gflow.trajectory import Trajectory, single_trajectory

__all__ = ["Comparison", "ConvergenceOrder", "compare", "observed_order"]

# Saved times that an interpolating polynomial passes through.
_NODES = 6


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Shown):
    """The difference of a second trajectory from a first, at matched times.

    - `ts`, shape (times,): the times, saved in the second trajectory.
    - `distance`, shape (times,): ‖θ_second(t) − θ_first(t)‖ over all parameters.
    - `risk_difference`, shape (times,): L(θ_second(t)) − L(θ_first(t)).
    - `interpolation_error`, shape (times,): an estimate of the error of `distance` at times that
      the first trajectory did not save; exactly 0 at those that it did.
    """

    ts: np.ndarray
    distance: np.ndarray
    risk_difference: np.ndarray
    interpolation_error: np.ndarray

    @property
    def largest(self) -> float:
        """sup_t of the distance over the matched times."""
        return float(np.max(self.distance))

    def title(self) -> str:
        """How many times were matched, and how well."""
        exact = int(np.sum(self.interpolation_error == 0))
        return (
            f"Comparison at {len(self.ts)} times ({exact} saved in both, interpolation "
            f"error of the rest at most {np.max(self.interpolation_error):.1e})"
        )

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        k, end = int(np.argmax(self.distance)), f"{self.distance[-1]:.4g} at the end"
        return {
            "distance": f"largest {self.largest:.4g} at t = {self.ts[k]:.4g}, {end}",
            "risk difference": f"{self.risk_difference[-1]:.4g} at the end",
        }


def compare(flow: Trajectory, other: Trajectory) -> Comparison:
    """The distance of `other` (a descent, say) from `flow` at matched times.

    The matched times are those saved in `other` that lie in the span of `flow`. At times that
    `flow` saved too (to rounding), the difference is exact. At others, `flow` is interpolated by
    polynomials of degree 5 through its saved times, in the variable log(1 + t/τ), where τ is the
    time between the first two. The error of interpolation is estimated by leaving out saved times
    in turn; it is large near kinks. To avoid it, solve the flow with `ts=other.ts`.

    Runs on the host in NumPy, hence not under `jax.jit`.

    **Raises:** `ArgumentError` if the networks differ in shape, no time matches, or one is a batch.
    """
    flow, other = single_trajectory("flow", flow), single_trajectory("other", other)
    ours, theirs = _flat(flow), _flat(other)
    if ours.shape[1] != theirs.shape[1]:
        got = Described(f"a network of {theirs.shape[1]} parameters")
        raise ArgumentError("other", got, f"{ours.shape[1]}, as in `flow`")
    if (found := _shapes(other)) != (wanted := _shapes(flow)):
        raise ArgumentError("other", Described(f"parameters of shapes {found}"), f"{wanted}")
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
    return Comparison(
        ts=ts,
        distance=np.linalg.norm(theirs[inside] - values[:, :-1], axis=1),
        risk_difference=np.asarray(other.risk)[inside] - values[:, -1],
        interpolation_error=errors,
    )


def _flat(trajectory: Trajectory) -> np.ndarray:
    leaves = jax.tree.leaves(eqx.filter(trajectory.params, eqx.is_inexact_array))
    return np.concatenate([np.asarray(a).reshape(a.shape[0], -1) for a in leaves], axis=1)


def _shapes(trajectory: Trajectory) -> str:
    leaves = jax.tree.leaves(eqx.filter(trajectory.params, eqx.is_inexact_array))
    return ", ".join(str(a.shape[1:]) for a in leaves)


def _interpolate(
    nodes: np.ndarray, data: np.ndarray, ts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values at `ts` of data given at `nodes`, and estimates of the norms of their errors."""
    if len(nodes) == 1:
        return np.repeat(data, len(ts), axis=0), np.zeros(len(ts))
    tau = nodes[1] - nodes[0]
    at = lambda t: np.log1p(np.maximum(t - nodes[0], 0.0) / tau)
    s, wanted = at(nodes), at(ts)
    around = _around(np.searchsorted(s, wanted), len(s), min(_NODES, len(s)))
    values = _lagrange(s, data, wanted, around)
    after = np.clip(np.searchsorted(nodes, ts), 1, len(nodes) - 1)
    nearest = np.where(ts - nodes[after - 1] < nodes[after] - ts, after - 1, after)
    close = 8 * np.finfo(ts.dtype).eps * np.maximum(np.abs(ts), tau)
    saved = np.abs(nodes[nearest] - ts) <= close
    values[saved] = data[nearest[saved]]
    return values, np.where(saved, 0.0, _left_out(s, data)[around].max(axis=1))


def _left_out(s: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The error at each node of the interpolation through its neighbours, without the node.

    For smooth data this exceeds the error between the nodes. It also shows a kink between two
    nodes, which a comparison of polynomials of different degree through the same nodes would miss.
    """
    count = min(_NODES + 1, len(s))
    everyone = np.arange(len(s))
    around = _around(everyone, len(s), count)
    others = around[around != everyone[:, None]].reshape(len(s), count - 1)
    return np.linalg.norm(data - _lagrange(s, data, s, others), axis=1)


def _around(places: np.ndarray, size: int, count: int) -> np.ndarray:
    """The indices of the `count` nodes around each place."""
    return np.clip(places - count // 2, 0, size - count)[:, None] + np.arange(count)


def _lagrange(s: np.ndarray, data: np.ndarray, wanted: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Lagrange interpolation at each wanted place through the nodes of these indices."""
    near = s[index]
    others = ~np.eye(index.shape[1], dtype=bool)
    apart = np.where(others, near[:, :, None] - near[:, None, :], 1.0)
    ahead = np.where(others, (wanted[:, None] - near)[:, None, :], 1.0)
    weights = np.prod(ahead / apart, axis=2)
    return np.einsum("tk,tkp->tp", weights, data[index])


@dataclass(frozen=True, repr=False)
class ConvergenceOrder(Shown):
    """The observed order p of a distance in the step size, distance ≈ C h^p.

    - `value`: p; `interval`: its 95 % confidence interval from the scatter of the fit.
    - `step_sizes`, `distances`: the fitted data.
    """

    value: float
    interval: tuple[float, float]
    step_sizes: tuple[float, ...]
    distances: tuple[float, ...]

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        low, high = self.interval
        pairs = zip(self.step_sizes, self.distances)
        return {
            "order": f"{self.value:.3f} (95 % interval {low:.3f} to {high:.3f})",
            "distances": ", ".join(f"{d:.4g} at h = {h:.4g}" for h, d in pairs),
        }

    def __repr__(self) -> str:
        return f"order {self.summary()['order']}"


def observed_order(step_sizes: Any, distances: Any) -> ConvergenceOrder:
    """The order in h by least squares of log distance = log C + p log h + a h.

    The last term is the first correction to C h^p. It is fitted if there are four or more distinct
    step sizes; without it, the largest step sizes would bias the order. Gradient descent follows
    gradient flow with order 1: the global error of Euler's method is at most
    h M (e^{ΛT} − 1)/(2Λ), with the Lipschitz constant Λ of ∇L and M = max ‖∇²L ∇L‖.

    **Arguments:** `step_sizes`, `distances`: at least three of each, positive, with three distinct
    step sizes. Five or more give a useful interval: three or four leave one degree of freedom for
    the scatter.

    **Raises:** `ArgumentError` for fewer than three distinct step sizes, unequal numbers, or values
    that are not positive.
    """
    h, d = _checked(step_sizes, distances)
    distinct = _num_distinct(h)
    columns = [np.ones_like(h), np.log(h)] + ([h / h.max()] if distinct >= 4 else [])
    design = np.stack(columns, axis=1)
    solution, *_ = np.linalg.lstsq(design, np.log(d))
    freedom = len(h) - design.shape[1]
    variance = np.sum((np.log(d) - design @ solution) ** 2) / freedom
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1])
    reach = student_t(freedom) * error
    p = float(solution[1])
    return ConvergenceOrder(p, (p - reach, p + reach), tuple(map(float, h)), tuple(map(float, d)))


def _checked(step_sizes: Any, distances: Any) -> tuple[np.ndarray, np.ndarray]:
    """The step sizes and the distances, at least three different step sizes among them."""
    if np.ndim(step_sizes) != 1 or np.ndim(distances) != 1:
        got = Described(f"shapes {np.shape(step_sizes)} and {np.shape(distances)}")
        raise ArgumentError("step_sizes", got, "two lists of numbers")
    if len(step_sizes) != len(distances) or len(step_sizes) < 3:
        got = Described(f"{len(step_sizes)} step sizes and {len(distances)} distances")
        raise ArgumentError("step_sizes", got, "at least three, one for each distance")
    h = np.array([positive("step_sizes", x) for x in step_sizes])
    d = np.array([positive("distances", x) for x in distances])
    if (distinct := _num_distinct(h)) < 3:
        got = Described(f"{len(h)} step sizes, {distinct} of them distinct")
        raise ArgumentError("step_sizes", got, "at least three distinct ones")
    return h, d


def _num_distinct(h: np.ndarray) -> int:
    """The number of step sizes, those counted once that differ by rounding only."""
    return 1 + int(np.sum(np.diff(np.sort(np.log(h))) > 1e-6))
