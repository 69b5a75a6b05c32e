"""How `solve_flow` and `descend` turn trained parameters along times into a trajectory."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import ArgumentError, Described, PyTree, is_concrete
from gflow.diagnostics import Diagnostics, balance, layers_of
from gflow.nonsmooth.gradients import squared_norm
from gflow.parameters import TimeScales
from gflow.results import RESULTS, SUCCESSES
from gflow.risks import penalty_of
from gflow.risks.base import shape_of_value
from gflow.trajectory import Trajectory, TrajectoryError


def as_observations(observe: Any, net: PyTree) -> dict[str, Callable[[Any], Array]]:
    """The functions of a network to be observed, by name.

    **Raises:** `ArgumentError` if one cannot be called on `net`, or does not return one array.
    """
    wanted = "functions of a network by name, such as {'test_risk': test_risk}"
    if observe is None:
        return {}
    if not isinstance(observe, Mapping):
        raise ArgumentError("observe", observe, wanted)
    for name, function in observe.items():
        if not isinstance(name, str) or not callable(function):
            raise ArgumentError("observe", Described(f"{name!r}: {function!r}"), wanted)
        found = shape_of_value("observe", f"{name!r}, a function", function, net)
        if jax.tree.structure(found) != jax.tree.structure(0) or isinstance(found, str):
            got = Described(f"{name!r}, which returns {eqx.tree_pformat(found)}")
            raise ArgumentError("observe", got, "functions that return one array each")
    return dict(observe)


# A descent whose risk grows by this factor has left every basin.
_GROWN = 1e3


class States(NamedTuple):
    """Trained parameters with a leading axis of times, and what was integrated with them.

    `dissipated` is ∫‖θ'‖² up to each time; `field_norm` the norm of the field that was followed, if
    that is not the generalized gradient. The first `num_valid` times matter, all if
    None. `risk_at_start` is None if it is still to be computed; the start is at `t0`. `flow_times`
    are those of gradient flow, None if these are the times.
    """

    ts: Float[Array, " times"]
    trained: PyTree
    dissipated: Float[Array, " times"]
    field_norm: Float[Array, " times"] | None = None
    num_valid: Int[Array, ""] | None = None
    risk_at_start: Float[Array, ""] | None = None
    t0: Float[Array, ""] | float = 0.0
    flow_times: Float[Array, " times"] | None = None


def record(
    risk: Callable,
    start: PyTree,
    frozen: PyTree,
    states: States,
    *,
    result: RESULTS,
    observe: Mapping[str, Callable],
    time_scales: TimeScales,
    **rest: Any,
) -> Trajectory:
    """The trajectory through `states` from the trained parameters `start`.

    `rest` are the other fields of `Trajectory`. Jittable; memory beyond the result is that of one
    gradient, and of what is observed.
    """

    def measure(params):
        value, gradient = jax.value_and_grad(lambda p: risk(eqx.combine(p, frozen)))(params)
        net = eqx.combine(params, frozen)
        observed = {name: jnp.asarray(of(net)) for name, of in observe.items()}
        return value, jnp.sqrt(squared_norm(time_scales.of_gradient(gradient))), observed

    values, norms, observed = _along(measure, states)
    at_start = states.risk_at_start
    if at_start is None:
        at_start = risk(eqx.combine(start, frozen))
    result = RESULTS.where(jnp.isfinite(at_start), result, RESULTS.nonfinite_start)
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
        diagnostics=Diagnostics(energy, _balance_drift(risk, frozen, start, states, time_scales)),
        result=result,
        observed=observed,
        **rest,
    )


def _along(measure: Callable[[PyTree], PyTree], states: States) -> PyTree:
    """What is measured at each time; zeros where it does not matter."""
    if states.num_valid is None:
        return jax.lax.map(measure, states.trained)
    num_valid, first = states.num_valid, jax.tree.map(lambda a: a[0], states.trained)
    blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(measure, first))

    def at(entry):
        place, params = entry
        return jax.lax.cond(place < num_valid, measure, lambda _: blank, params)

    return jax.lax.map(at, (jnp.arange(len(states.ts)), states.trained))


def with_retry(make: Callable[[], Trajectory]) -> Trajectory:
    """What `make` records. If Ctrl-C interrupts the recording, it is made again, so that the run is
    not lost."""
    try:
        return make()
    except KeyboardInterrupt:
        trajectory = make()
        return eqx.tree_at(lambda t: t.result, trajectory, RESULTS.interrupted)


def _balance_drift(
    risk: Callable, frozen: PyTree, start: PyTree, states: States, time_scales: TimeScales
) -> Array | None:
    penalty = penalty_of(risk)
    if penalty is not None and not (penalty.only_decays and time_scales.roots is None):
        return None
    try:
        *hidden, last = layers_of(eqx.combine(start, frozen))
    except ArgumentError:
        return None
    still = [part for of in hidden for part in of(frozen)] + [last(frozen).weight]
    if any(part is not None for part in still):
        return None
    of_params = lambda params: balance(eqx.combine(time_scales.scaled(params), frozen))
    at_start, later = of_params(start), jax.vmap(of_params)(states.trained)
    if penalty is None:
        return later - at_start[None, :]
    rate = 2 * penalty.weight_decay.astype(at_start.dtype)
    # Times past an early end are infinite.
    ts = states.ts if states.flow_times is None else states.flow_times
    left = jnp.exp(-rate * jnp.where(jnp.isfinite(ts), ts - states.t0, 0.0))
    return later - left[:, None] * at_start[None, :]


def warned_of_growth(trajectory: Trajectory) -> Trajectory:
    """The trajectory of a descent, with a warning if its risk grew beyond all bounds."""
    if is_concrete(trajectory.risk):
        first, last = np.asarray(trajectory.risk)[[0, -1]]
        if last > _GROWN * first > 0:
            warnings.warn(
                f"the risk grew from {first:.3g} to {last:.3g}: the steps are too long. Gradient "
                "descent is stable for step_size · sharpness up to 2 (`gflow.sharpness`). Take a "
                "smaller step_size",
                stacklevel=3,
            )
    return trajectory


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
