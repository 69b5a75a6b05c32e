"""Dense output: a flow at any time, from the interpolants of its steps."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import PyTree, is_concrete
from gflow.indexing import within
from gflow.parameters import ParameterLayout, TimeScales, unflat


class Steps(NamedTuple):
    """Steps of one solver: step k goes from time `starts[k]` to `ends[k]`, and row k of
    `interpolants` gives the state by the time since its start. The first `num_filled` rows are in
    use.
    """

    starts: Float[Array, " steps"]
    ends: Float[Array, " steps"]
    interpolants: diffrax.AbstractLocalInterpolation
    num_filled: Int[Array, ""]

    @classmethod
    def none_of(cls, interpolant: Any, capacity: int, t: Float[Array, ""]) -> "Steps":
        """Room for as many steps as `capacity`, with interpolants of this structure."""
        rows = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape), a.dtype), interpolant)
        times = jnp.full(capacity, jnp.inf, t.dtype)
        return cls(times, times, rows, jnp.asarray(0))

    def with_step(self, start, end, interpolant, wanted) -> "Steps":
        """With one more step, if `wanted`."""
        place = jnp.where(wanted, self.num_filled, len(self.starts))
        put = lambda rows, row: rows.at[place].set(row, mode="drop")
        return Steps(
            put(self.starts, start),
            put(self.ends, end),
            jax.tree.map(put, self.interpolants, interpolant),
            self.num_filled + wanted,
        )

    def on_host(self) -> "Steps":
        """The filled rows, as arrays of NumPy."""
        count = int(self.num_filled)
        rows = jax.tree.map(lambda a: np.asarray(a)[:count], self._replace(num_filled=jnp.zeros(1)))
        return rows._replace(num_filled=count)


def joined(pieces: list[Steps]) -> tuple[Steps, ...]:
    """Consecutive pieces as one where they are of the same solver."""
    runs: list[list[Steps]] = []
    for piece in pieces:
        if runs and jax.tree.structure(runs[-1][0]) == jax.tree.structure(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    total = lambda run: sum(piece.num_filled for piece in run)
    join = lambda run: jax.tree.map(
        lambda *rows: np.concatenate(rows), *(p._replace(num_filled=np.zeros(1)) for p in run)
    )
    return tuple(join(run)._replace(num_filled=total(run)) for run in runs if total(run) > 0)


class DenseOutput(eqx.Module):
    """The trained parameters at any time between the first and the last step.

    `steps` has one entry for each solver, in the order of time.
    """

    steps: tuple[Steps, ...]
    trained: PyTree
    time_scales: TimeScales

    @property
    def start(self) -> Any:
        return self.steps[0].starts[0]

    @property
    def end(self) -> Any:
        return self.steps[-1].ends[-1]

    def within(self, name: str, ts: Any) -> Any:
        """The times, where they are known those beyond an end by a rounding at that end.

        **Raises:** `ArgumentError` for others beyond an end.
        """
        if not is_concrete(ts, self.start):
            return ts
        return within(name, ts, float(self.start), float(self.end), "the flow")

    def __call__(self, ts: Any) -> PyTree:
        """The trained parameters at times of shape (times,), with a leading axis of times."""
        states: Any = _evaluated(*_steps_at(self.steps[0], ts))
        for steps in self.steps[1:]:
            later: Any = _evaluated(*_steps_at(steps, ts))
            states = jnp.where((ts > steps.starts[0])[:, None], later, states)
        like, scales = self.trained, self.time_scales
        size = ParameterLayout(like).size
        return jax.vmap(lambda y: unflat(like, scales.theta(y[:size])))(states)


def _steps_at(steps: Steps, ts: Any) -> tuple[Any, Any]:
    """The interpolants of the steps that these times are in, and the times since their starts."""
    like = np if is_concrete(steps, ts) else jnp
    ts, ends = like.asarray(ts), like.asarray(steps.ends)
    place: Any = like.clip(like.searchsorted(ends, ts), 0, len(ends) - 1)
    rows = jax.tree.map(lambda a: like.asarray(a)[place], steps.interpolants)
    return rows, ts - like.asarray(steps.starts)[place]


@eqx.filter_jit
def _evaluated(interpolants: Any, since: Float[Array, " times"]) -> Float[Array, "times size"]:
    return jax.vmap(lambda one, elapsed: one.evaluate(elapsed))(interpolants, since)
