"""Flow against descent: distances at matched times, and the order in the step size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from scipy.special import ndtr

from gflow.arguments import ArgumentError, Described, positive
from gflow.display import Shown
from gflow.trajectory import Trajectory, single_trajectory

__all__ = ["Comparison", "ConvergenceOrder", "Parting", "compare", "observed_order"]

# Saved times that an interpolating polynomial passes through.
_NODES = 6
# A descent has parted where its distance over h stays above that of the others by this factor.
_PARTED = 4.0
# Below this fraction of their largest value, distances are errors of the flow.
_TOGETHER = 1e-4
# The standard deviation of the first correction at the largest step size, before data are seen.
_CORRECTION = 0.2


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


class Parting(NamedTuple):
    """A descent that leaves the flow: from `time` on, its distance from the flow over the step size
    stays above that of the descents that follow by a factor of four or more."""

    step_size: float
    time: float


@dataclass(frozen=True, repr=False)
class ConvergenceOrder(Shown):
    """The observed order p of a distance in the step size, distance ≈ C h^p.

    - `value`: p; `interval`: its 95 % interval from the scatter of the fit.
    - `step_sizes`, `distances`: the fitted data. Of comparisons, the distances are typical ones, at
      the median time.
    - `partings`: the descents that parted from the flow, and when. Their distances count up to that
      time. `until`: the last time that counts, None if distances were given as numbers.
    """

    value: float
    interval: tuple[float, float]
    step_sizes: tuple[float, ...]
    distances: tuple[float, ...]
    partings: tuple[Parting, ...] = ()
    until: float | None = None

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        low, high = self.interval
        pairs = zip(self.step_sizes, self.distances)
        parted = [f"h = {p.step_size:.4g} at t = {p.time:.4g}" for p in self.partings]
        return {
            "order": f"{self.value:.3f} (95 % interval {low:.3f} to {high:.3f})",
            "distances": ", ".join(f"{d:.4g} at h = {h:.4g}" for h, d in pairs),
            **({"descents that part": ", ".join(parted)} if parted else {}),
        }

    def __repr__(self) -> str:
        return f"order {self.summary()['order']}"


def observed_order(step_sizes: Any, distances: Any) -> ConvergenceOrder:
    r"""The order p in h from log distance = log C + p log h + a h + noise.

    The term a h is the first correction to C h^p; at the largest step size it is a priori normal
    with standard deviation 0.2, and it is left out below four distinct step sizes. The noise is
    normal, its size unknown, and the interval allows for all of its sizes. Gradient descent follows
    gradient flow with order 1: the global error of Euler's method is at most
    h M (e^{ΛT} − 1)/(2Λ), with the Lipschitz constant Λ of ∇L and M = max ‖∇²L ∇L‖.

    From comparisons the order is that of typical distances, D(h), from the fit of
    log distance(t, h) = A(t) + log D(h) by medians over times and step sizes (Tukey's median
    polish). At kinks the distance depends on how descent steps over them, and some descents may
    come to another side and part from the flow; neither changes a median by much. What a descent
    does after it has parted does not count, and nothing after half of them have.

    **Arguments:**

    - `step_sizes`: at least three. Five or more give a useful interval.
    - `distances`: for each step size a positive number, or the `Comparison` with the flow.

    **Raises:** `ArgumentError` for fewer than three, unequal numbers, values that are not positive,
    or comparisons without a common span.
    """
    if len(step_sizes) != len(distances) or len(step_sizes) < 3:
        got = Described(f"{len(step_sizes)} step sizes and {len(distances)} distances")
        raise ArgumentError("step_sizes", got, "at least three, one for each distance")
    h = np.array([positive("step_sizes", x) for x in step_sizes])
    if (distinct := _num_distinct(h)) < 3:
        got = Described(f"{len(h)} step sizes, {distinct} of them distinct")
        raise ArgumentError("step_sizes", got, "at least three distinct ones")
    if not all(isinstance(d, Comparison) for d in distances):
        d = np.array([positive("distances", x) for x in distances])
        return _fitted_order(h, d)
    ts, logs = _matched(distances)
    parted = _parted(logs - np.log(h)[:, None])
    following = np.sum(~parted, axis=0)
    end = int(np.sum(np.logical_and.accumulate(2 * following >= len(h))))
    typical = np.exp(_effects(np.where(parted, np.nan, logs)[:, :end]))
    partings = [Parting(float(x), float(ts[np.argmax(p)])) for x, p in zip(h, parted) if p.any()]
    return _fitted_order(h, typical, tuple(partings), float(ts[end - 1]))


def _num_distinct(h: np.ndarray) -> int:
    """The number of step sizes, those counted once that differ by rounding only."""
    return 1 + int(np.sum(np.diff(np.sort(np.log(h))) > 1e-6))


def _matched(comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """Times of the comparison with fewest, and log distances there, shape (descents, times)."""
    positive_times = [c.ts[(c.ts > 0) & (c.distance > 0)] for c in comparisons]
    ends = [ts[[0, -1]] for ts in positive_times if len(ts)]
    if len(ends) == len(comparisons):
        first, last = np.max(ends, axis=0)[0], np.min(ends, axis=0)[1] * (1 + 1e-12)
        ts = min(positive_times, key=len)
        ts = ts[(ts >= first) & (ts <= last)]
        if len(ts):
            rows = [
                np.interp(np.log(ts), np.log(times), np.log(c.distance[np.isin(c.ts, times)]))
                for times, c in zip(positive_times, comparisons)
            ]
            logs = np.stack(rows)
            middle = np.median(logs, axis=0)
            apart = middle >= middle.max() + np.log(_TOGETHER)
            return ts[apart], logs[:, apart]
    got = Described("comparisons without a common time at which every distance is positive")
    raise ArgumentError("distances", got, "comparisons of descents with one flow")


def _parted(scaled: np.ndarray) -> np.ndarray:
    """Whether a descent has parted, from the logs of distance over h, shape (descents, times).

    The first time counts for all.
    """
    following = np.quantile(scaled, 0.25, axis=0, method="lower")
    far = scaled > following + np.log(_PARTED)
    far[:, 0] = False
    for_good = np.logical_and.accumulate(far[:, ::-1], axis=1)
    return for_good[:, ::-1]


def _effects(logs: np.ndarray) -> np.ndarray:
    """The logs of the typical distances, by median polish; entries that are NaN do not count."""
    of_rows, of_times = np.zeros(len(logs)), np.zeros(logs.shape[1])
    for _ in range(30):
        of_times = np.nanmedian(logs - of_rows[:, None], axis=0)
        new = np.nanmedian(logs - of_times, axis=1)
        if np.max(np.abs(new - of_rows)) < 1e-10:
            break
        of_rows = new
    return of_rows + np.median(of_times)


def _fitted_order(
    h: np.ndarray, d: np.ndarray, partings: tuple[Parting, ...] = (), until: float | None = None
) -> ConvergenceOrder:
    """The mean and the quantiles of p. Given the size σ of the noise, p is normal; σ is integrated
    over, with density 1/σ a priori."""
    x, y = np.log(h / h.max()), np.log(d)
    design, correction = np.stack([np.ones_like(x), x], axis=1), _CORRECTION * h / h.max()
    if _num_distinct(h) < 4:
        correction = 0 * h  # with the correction any three distances fit exactly
    residual = y - design @ np.linalg.lstsq(design, y)[0]
    floor = 1e-14 * (1 + np.abs(y).max())
    sizes = np.geomspace(floor, 1e4 * (floor + np.abs(residual).max()), 400)
    # In units of σ the noise with the correction has the covariance I + c cᵀ.
    c = correction / sizes[:, None]
    square = np.sum(c**2, axis=1)
    whiten = lambda a: a - (c * ((c @ a) / (1 + square))[:, None])
    columns = [design[:, 0], design[:, 1]]
    gram = np.stack([np.stack([whiten(a) @ b for b in columns], -1) for a in columns], -2)
    force = np.stack([whiten(a) @ residual for a in columns], -1)
    inverse = np.linalg.inv(gram)
    shift = np.einsum("sij,sj->si", inverse, force)
    loss = whiten(residual) @ residual - np.sum(force * shift, axis=1)
    log_odds = -(loss / sizes**2 + np.log1p(square) + np.log(np.linalg.det(gram))) / 2
    log_odds -= (len(h) - 2) * np.log(sizes)
    odds = np.exp(log_odds - log_odds.max())
    odds /= odds.sum()
    centre = (y - residual) @ (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    values, errors = centre + shift[:, 1], sizes * np.sqrt(inverse[:, 1, 1])
    mean = float(odds @ values)
    interval = (
        _quantile(0.025, odds, values, errors),
        _quantile(0.975, odds, values, errors),
    )
    return ConvergenceOrder(
        mean, interval, tuple(map(float, h)), tuple(map(float, d)), partings, until
    )


def _quantile(q: float, odds: np.ndarray, values: np.ndarray, errors: np.ndarray) -> float:
    """That of a mixture of normal distributions, by bisection."""
    low, high = np.min(values - 9 * errors), np.max(values + 9 * errors)
    for _ in range(100):
        middle = (low + high) / 2
        below = odds @ ndtr((middle - values) / errors) < q
        low, high = (middle, high) if below else (low, middle)
    return float((low + high) / 2)
