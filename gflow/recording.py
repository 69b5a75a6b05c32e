"""How `solve_flow` and `descend` turn trained parameters along times into a trajectory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import PyTree, is_concrete
from gflow.networks import ShallowNet
from gflow.nonsmooth.gradients import squared_norm
from gflow.results import RESULTS, SUCCESSES
from gflow.trajectory import Diagnostics, Trajectory, TrajectoryError


class States(NamedTuple):
    """Trained parameters with a leading axis of times, and what was integrated with them.

    `dissipated` is ∫‖θ'‖² up to each time; `field_norm` the norm of the field that was followed, if
    that is not the generalized gradient.
    """

    ts: Float[Array, " times"]
    trained: PyTree
    dissipated: Float[Array, " times"]
    field_norm: Float[Array, " times"] | None = None


def record(
    risk: Callable, start: PyTree, frozen: PyTree, states: States, *, result: RESULTS, **rest: Any
) -> Trajectory:
    """The trajectory through `states` from the trained parameters `start`.

    `rest` are the other fields of `Trajectory`. Jittable; memory beyond the result is that of one
    gradient.
    """

    def measure(params):
        value, gradient = jax.value_and_grad(lambda p: risk(eqx.combine(p, frozen)))(params)
        return value, jnp.sqrt(squared_norm(gradient))

    values, norms = jax.lax.map(measure, states.trained)
    at_start = risk(eqx.combine(start, frozen))
    result = RESULTS.where(jnp.isfinite(at_start), result, RESULTS.nonfinite)
    energy = at_start - values - states.dissipated
    times = states.ts.shape[0]
    still = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (times, *a.shape)) if eqx.is_array(a) else a, frozen
    )
    return Trajectory(
        ts=states.ts,
        params=eqx.combine(states.trained, still),
        risk=values,
        grad_norm=norms if states.field_norm is None else states.field_norm,
        diagnostics=Diagnostics(energy, _balance_drift(frozen, start, states.trained)),
        result=result,
        **rest,
    )


def with_retry(make: Callable[[], Trajectory]) -> Trajectory:
    """What `make` records. If Ctrl-C interrupts the recording, it is made again, so that the run is
    not lost."""
    try:
        return make()
    except KeyboardInterrupt:
        trajectory = make()
        return eqx.tree_at(lambda t: t.result, trajectory, RESULTS.interrupted)


def _balance_drift(frozen: PyTree, start: PyTree, trained: PyTree) -> Array | None:
    net = eqx.combine(start, frozen)
    if not isinstance(net, ShallowNet) or not net.activation.homogeneous:
        return None
    if any(getattr(frozen, name) is not None for name in ("w", "b", "v")):
        return None
    return jax.vmap(lambda p: eqx.combine(p, frozen).balance() - net.balance())(trained)


def truncated(trajectory: Trajectory, count: int) -> Trajectory:
    """The trajectory at its first `count` saved times, and the used entries of its log of kinks."""
    if trajectory.kinks is not None:
        used = int(np.isfinite(np.asarray(trajectory.kinks.time)).sum())
        # By NumPy, much faster than a slice of a JAX array for each new length.
        kinks = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[:used]), trajectory.kinks)
        trajectory = eqx.tree_at(lambda t: t.kinks, trajectory, kinks)
    if count == len(trajectory):
        return trajectory
    saved = (
        trajectory.ts,
        trajectory.params,
        trajectory.risk,
        trajectory.grad_norm,
        trajectory.diagnostics,
    )
    kept = jax.tree.map(lambda a: a[:count] if eqx.is_array(a) else a, saved)
    return eqx.tree_at(
        lambda t: (t.ts, t.params, t.risk, t.grad_norm, t.diagnostics), trajectory, kept
    )


def finish(trajectory: Trajectory, *, throw: bool) -> Trajectory:
    """Raises `TrajectoryError` if asked to and the run failed; under a trace, an equinox error."""
    if not throw:
        return trajectory
    if is_concrete(trajectory.result):
        if not trajectory.succeeded:
            raise TrajectoryError(trajectory)
        return trajectory
    good = jnp.stack([trajectory.result == getattr(RESULTS, name) for name in SUCCESSES]).any()
    return trajectory.result.error_if(trajectory, ~good)
