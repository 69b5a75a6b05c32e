"""Flow against descent: distances at matched times."""

from dataclasses import dataclass

import equinox as eqx
import jax
import numpy as np

from gflow.arguments import ArgumentError, Described
from gflow.display import Shown
from gflow.trajectory import Trajectory, single_trajectory

__all__ = ["Comparison", "compare"]

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
