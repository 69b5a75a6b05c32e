"""`descend`: discrete gradient descent, with any optax optimiser, as a trajectory."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gflow.arguments import (
    ArgumentError,
    Described,
    PyTree,
    RealScalar,
    is_concrete,
    positive,
    positive_int,
)
from gflow.nonsmooth.gradients import squared_norm
from gflow.optimisers import Optimiser, as_optimiser
from gflow.parameters import Net, TimeScales, split_trainable
from gflow.programs import program
from gflow.progress import progress_bar
from gflow.recording import (
    States,
    as_observations,
    finish,
    record as record_trajectory,
    warned_of_growth,
    with_retry,
)
from gflow.results import RESULTS
from gflow.risks.base import check_risk
from gflow.trajectory import Trajectory, first_saved

# Recorded steps between pauses for the progress bar; also keeps shapes, and so compilations, few.
_PIECE = 8
# The numbers of slots for records; those that stay empty do not matter up to so many numbers.
_SLOTS = (2, 8, 64, *(4**k for k in range(4, 16)))
_SMALL_RECORDS = 1_000_000


def descend(
    risk: Callable[[Any], Array],
    net: Net,
    optimiser: Callable[..., Any] | optax.GradientTransformation | optax.MultiSteps = optax.sgd,
    *,
    step_size: RealScalar,
    num_steps: int,
    record: Any = 200,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    trainable: Sequence[str] | PyTree | None = None,
    time_scales: PyTree | None = None,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Trajectory[Net]:
    r"""Gradient descent, or any optax optimiser, on a risk from a network:

    $$\theta_{k+1} = \theta_k + u(G(\theta_k)), \qquad t_k = k\,h,$$

    with u = −h G for plain gradient descent of step size h. One compiled loop; its memory does not
    depend on the number of steps.

    **Arguments:**

    - `risk`, `net`, `trainable`, `observe`, `throw`: as in `solve_flow`.
    - `optimiser`: a function from the step size to an optax transformation, such as `optax.sgd`
      (plain gradient descent), `optax.adam` or a `functools.partial` of one; or a transformation.
      With a function, other step sizes run the same compiled loop, and so do other arrays in a
      partial, `partial(optax.adam, b1=jnp.array(0.8))`; a new transformation compiles anew. Labels
      and masks, as of `optax.multi_transform`, are trees like the network or like its trained part.
      Of `optax.lookahead` the fast parameters are recorded.
    - `step_size`: h, the flow time of one step. A transformation has its own learning rate inside;
      then h only sets the times.
    - `num_steps`: the number of steps.
    - `record`: the steps to record: how many (logarithmic, both ends in), or their indices; the
      last step is always recorded.
    - `batch_size`: rows drawn for each step, uniformly with replacement, with `key`; all if None.
      Needs a risk with `minibatch`, such as `EmpiricalRisk`.
    - `time_scales`: τ as in `solve_flow`, factors of the updates: u becomes τ ⊙ u.
    - `progress`: shows a progress bar; Ctrl-C then ends the run with the result "interrupted".

    **Returns:** a `Trajectory` at the recorded steps. Its risk and gradient norm are those of all
    data. A run that diverges keeps the last finite state. Can be used under `jax.jit` and
    `jax.vmap` (with `progress=False`).

    **Raises:** `ArgumentError` (a `ValueError`) for arguments that cannot be used;
    `TrajectoryError` for a run that diverged or was interrupted.
    """
    known = is_concrete(step_size)
    if known:
        step_size = positive("step_size", step_size)
    num_steps = positive_int("num_steps", num_steps)
    _check_batches(risk, batch_size, key)
    trained, frozen = split_trainable(net, trainable)
    scales = TimeScales.of(time_scales, net, trained)
    check_risk(risk, net)
    observations = as_observations(observe, net)
    dtype = jax.tree.leaves(trained)[0].dtype
    h: Any = (np if known else jnp).asarray(step_size, dtype)
    optimiser = _comparable(optimiser)
    problem = DescentProblem(risk, trained, frozen, optimiser, h, batch_size, key, scales)
    method = _method(optimiser, batch_size)
    plan = _plan(record, num_steps, problem)
    if not progress:
        made = _descend(problem, plan, method, observations)
    elif plan.num_marks is not None:
        state, recorded = _run_in_pieces(problem, plan)
        trajectory = with_retry(
            lambda: _record(problem, recorded, state, plan.num_marks, method, observations)
        )
        made = RecordedTrajectory(trajectory, recorded.num_filled)
    else:
        raise ArgumentError("progress", True, "False where JAX traces the descent")
    # Functions can hold traced arrays, too.
    num_filled = made.num_filled if is_concrete(made.num_filled) else plan.num_records
    trajectory = first_saved(made.trajectory, int(num_filled))
    return finish(warned_of_growth(trajectory), throw=throw)


class Plan(NamedTuple):
    """The steps to record, the last one repeated up to one of few lengths; `num_marks` of them, all
    if None, are different."""

    marks: Any
    num_marks: Any

    @property
    def num_records(self) -> int:
        return len(self.marks) if self.num_marks is None else int(self.num_marks)


def _plan(record: Any, num_steps: int, problem: "DescentProblem") -> Plan:
    known = is_concrete(problem)
    size = sum(a.size for a in jax.tree.leaves(problem.trained))
    if isinstance(record, (int, np.integer)):
        return _logarithmic(positive_int("record", record, minimum=2), num_steps, size, known)
    marks = _given_marks(record, num_steps)
    return _with_slots(marks, len(marks), size) if known else Plan(marks, None)


@lru_cache(maxsize=128)
def _logarithmic(count: int, num_steps: int, size: int, known: bool) -> Plan:
    # From the end, because geomspace with one point returns its start.
    most = min(count, num_steps + 1)
    marks = np.geomspace(num_steps, 1, most - 1).round().astype(int)
    marks = np.unique(np.append(0, marks))
    return _with_slots(marks, most, size) if known else Plan(marks, None)


def _with_slots(marks: Int[np.ndarray, " times"], most: int, size: int) -> Plan:
    """With slots for `most` records, so that other numbers of steps compile nothing: one of few
    numbers while records of that `size` are small, and up to an eighth more where they are large.
    """
    slots = next(n for n in _SLOTS if n >= most)
    if slots * size > _SMALL_RECORDS:
        unit = max(1, 2 ** (most.bit_length() - 4))
        slots = -(-most // unit) * unit
    return Plan(np.pad(marks, (0, slots - len(marks)), "edge"), np.asarray(len(marks)))


def _comparable(optimiser: Any) -> Any:
    """With a `functools.partial` as a pytree, equal to another one of equal arguments."""
    if not isinstance(optimiser, partial) or isinstance(optimiser, jax.tree_util.Partial):
        return optimiser
    return jax.tree_util.Partial(optimiser.func, *optimiser.args, **optimiser.keywords)


def _method(optimiser, batch_size: int | None) -> str:
    name = getattr(optimiser, "__name__", type(optimiser).__name__)
    name = {
        "<lambda>": "own optimiser",
        "Partial": "own optimiser",
        "GradientTransformation": "optax",
        "GradientTransformationExtraArgs": "optax",
    }.get(name, name)
    method = "gradient descent" if optimiser is optax.sgd else f"descent, {name}"
    return method if batch_size is None else f"{method}, minibatches of {batch_size}"


class DescentProblem(NamedTuple):
    risk: Any
    trained: PyTree
    frozen: PyTree
    optimiser: Callable | optax.GradientTransformation | optax.MultiSteps
    step_size: Float[Array, ""]
    batch_size: int | None
    key: PRNGKeyArray | None
    time_scales: TimeScales

    def start(self) -> "DescentState":
        no = jnp.zeros((), self.step_size.dtype)
        opt_state = self._optimiser(self._value).init(self.trained)
        return DescentState(jnp.asarray(0), self.trained, opt_state, no, jnp.asarray(True))

    def step(self, state: "DescentState") -> "DescentState":
        """One step; a step that is not finite is not taken."""
        value_of = lambda params: self._value(params, state.step)
        value, gradient = jax.value_and_grad(value_of)(state.params)
        optimiser = self._optimiser(value_of)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params, value)
        updates = self.time_scales.times(updates)
        squared = squared_norm(self.time_scales.scaled(updates))
        new = DescentState(
            state.step + 1,
            optax.apply_updates(state.params, updates),
            opt_state,
            state.dissipated + squared / self.step_size,
            jnp.isfinite(squared) & jnp.isfinite(value),
        )
        old = state._replace(finite=new.finite)
        return jax.tree.map(lambda a, b: jnp.where(new.finite, a, b), new, old)

    def _value(self, params, step=0):
        net = eqx.combine(params, self.frozen)
        if self.batch_size is None or self.key is None:
            return self.risk(net)
        key = jax.random.fold_in(self.key, step)
        rows = jax.random.randint(key, (self.batch_size,), 0, self.risk.num_data)
        return self.risk.minibatch(net, rows)

    def _optimiser(self, value_fn: Callable[[PyTree], Array]) -> Optimiser:
        return as_optimiser(self.optimiser, self.step_size, self.trained, self.frozen, value_fn)


class DescentState(NamedTuple):
    step: Any
    params: PyTree
    opt_state: PyTree
    dissipated: Float[Array, ""]
    finite: Any


class DescentRows(NamedTuple):
    """States at recorded steps."""

    steps: Int[Array, " times"]
    params: PyTree
    dissipated: Float[Array, " times"]


class RecordedDescent(NamedTuple):
    """The recorded states, the first `num_filled` of them valid, and how the descent ended."""

    rows: DescentRows
    num_filled: Any
    result: RESULTS


def run(
    problem: DescentProblem, state: DescentState, marks: Int[Array, " times"]
) -> tuple[DescentState, RecordedDescent]:
    """Goes on from a state, up to the last of the marked steps."""

    def to_mark(state: DescentState, mark):
        unfinished = lambda s: (s.step < mark) & s.finite
        state = jax.lax.while_loop(unfinished, lambda s: problem.step(s), state)
        return state, DescentRows(state.step, state.params, state.dissipated)

    state, rows = jax.lax.scan(to_mark, state, marks)
    # After divergence every further row repeats the last finite state; one of them is kept.
    lost = RESULTS.where(state.step == 0, RESULTS.nonfinite_start, RESULTS.diverged)
    result = RESULTS.where(state.finite, RESULTS.successful, lost)
    new = jnp.append(True, rows.steps[1:] > rows.steps[:-1])
    return state, RecordedDescent(rows, jnp.sum(new), result)


class RecordedTrajectory(NamedTuple):
    """A trajectory with the number of its saved times that are filled."""

    trajectory: Trajectory
    num_filled: Any


@program
def _descend(
    problem: DescentProblem, plan: Plan, method: str, observe: dict[str, Callable]
) -> RecordedTrajectory:
    state, recorded = run(problem, problem.start(), jnp.asarray(plan.marks))
    made = _trajectory(problem, recorded, state, plan.num_marks, method, observe)
    return RecordedTrajectory(made, recorded.num_filled)


_start, _run = program(DescentProblem.start), program(run)


def _run_in_pieces(problem: DescentProblem, plan: Plan) -> tuple[DescentState, RecordedDescent]:
    """The same run with pauses, about one a second, to show where it is."""
    marks = plan.marks[: plan.num_records]
    state, pieces, result, first = _start(problem), [], RESULTS.successful, 0
    budget, h = 64, float(problem.step_size)
    with progress_bar(int(marks[-1]), f"descent, h = {h:.3g}") as bar:
        try:
            while first < len(marks):
                before = int(state.step)
                within = marks[first : first + _PIECE]
                part = within[within <= before + budget]
                # Between two records that are far apart it pauses without recording.
                stops = part if len(part) else np.asarray([before + budget])
                padded: Any = np.pad(stops, (0, _PIECE - len(stops)), "edge")
                start = time.perf_counter()
                state, recorded = _run(problem, state, padded)
                steps, seconds = int(state.step) - before, time.perf_counter() - start
                count = min(int(recorded.num_filled), len(stops))
                result = recorded.result
                diverged = not bool(result == RESULTS.successful)
                if len(part) or diverged:
                    pieces.append(jax.tree.map(lambda a, n=count: a[:n], recorded.rows))
                first += len(part)
                budget = max(64, min(4 * budget, int(steps / max(seconds, 1e-9))))
                bar.advance(steps, f"t = {int(state.step) * h:.4g}")
                if diverged:
                    break
        except KeyboardInterrupt:
            result = RESULTS.interrupted
    return state, _join(pieces, len(plan.marks), problem, result)


def _join(
    pieces: list[DescentRows], times: int, problem: DescentProblem, result: RESULTS
) -> RecordedDescent:
    """The pieces as one, of that many times."""
    if not pieces:
        start = jax.tree.map(lambda a: a[None], problem.trained)
        pieces = [DescentRows(jnp.zeros(1, int), start, jnp.zeros(1, problem.step_size.dtype))]
    filled = jax.tree.map(lambda *a: np.concatenate(a), *pieces)
    rows = jax.tree.map(
        lambda a: np.pad(a, [(0, times - len(a))] + [(0, 0)] * (a.ndim - 1), "edge"),
        filled,
    )
    return RecordedDescent(rows, len(filled.steps), result)


def _trajectory(
    problem: DescentProblem,
    recorded: RecordedDescent,
    state: DescentState,
    num_marks: Int[Array, ""] | None,
    method: str,
    observe: dict[str, Callable],
) -> Trajectory:
    rows = recorded.rows
    return record_trajectory(
        problem.risk,
        problem.trained,
        problem.frozen,
        States(
            rows.steps.astype(problem.step_size.dtype) * problem.step_size,
            rows.params,
            rows.dissipated,
            num_valid=num_marks,
        ),
        stats={
            "num_steps": jnp.asarray(state.step),
            "num_field_evaluations": jnp.asarray(state.step),
            "step_size": problem.step_size,
            **problem.time_scales.stats(problem.trained),
        },
        observe=observe,
        time_scales=problem.time_scales,
        result=recorded.result,
        kind="descent",
        method=method,
    )


_record = program(_trajectory)


def _given_marks(record: Any, num_steps: int) -> Int[np.ndarray, " times"]:
    wanted = f"a number of records, or increasing step indices from 0 to {num_steps}"
    try:
        marks = np.asarray(record)
    except ValueError:  # rows of several lengths
        raise ArgumentError("record", record, wanted) from None
    if marks.ndim != 1 or len(marks) == 0 or not np.issubdtype(marks.dtype, np.integer):
        raise ArgumentError("record", Described(str(record)), wanted)
    if (np.diff(marks) <= 0).any() or marks[0] < 0 or marks[-1] > num_steps:
        raise ArgumentError("record", Described(f"indices {marks[0]} to {marks[-1]}"), wanted)
    return np.unique(np.append(marks, num_steps))


def _check_batches(risk, batch_size, key) -> None:
    if batch_size is None:
        return
    positive_int("batch_size", batch_size)
    if not hasattr(risk, "minibatch"):
        raise ArgumentError("batch_size", batch_size, f"None for a {type(risk).__name__}")
    try:
        jax.random.fold_in(key, 0)
    except (TypeError, ValueError):
        wanted = "one jax.random.key(...) to draw minibatches with"
        raise ArgumentError("key", key, wanted) from None
