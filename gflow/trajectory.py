"""Trajectories: what `solve_flow` and `descend` return."""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import ArgumentError, Described, PyTree, is_concrete
from gflow.dense import DenseOutput
from gflow.diagnostics import Diagnostics, Switch
from gflow.display import fact_lines, fact_table
from gflow.export import as_dataset, as_table
from gflow.indexing import as_times, increasing_indices, num_filled, saved_places, shortened, taken
from gflow.kink_log import KinkLog
from gflow.parameters import Net
from gflow.pickling import Portable, PortableError
from gflow.results import RESULT_NAMES, RESULTS, SUCCESSES, result_name

if TYPE_CHECKING:
    import pandas
    import xarray

# The fields with an axis of times.
_SAVED = ("ts", "params", "risk", "grad_norm", "diagnostics", "observed")


class TrajectoryError(PortableError, RuntimeError):
    """A run that did not reach its end. `trajectory` holds what was computed until then."""

    def __init__(self, trajectory: "Trajectory"):
        super().__init__(
            f"{trajectory.method}: {trajectory.message}. The run reached t = "
            f"{float(trajectory.ts[-1]):.6g}; `error.trajectory`, or throw=False, gives what was "
            "computed until then."
        )
        self.trajectory = trajectory


class Trajectory(Portable, eqx.Module, Generic[Net]):
    """Parameters along saved times, with the risk, the gradient norm and how far to trust them.

    - `ts`, shape (times,): flow time, or s of a `TimeChanged`; step k of a descent is at time k h.
    - `params`: the network, every array with a leading axis of times; `trajectory[k]` is one
      network, `final` the last; `trajectory[j:k]` is a shorter trajectory, and a loop over a
      trajectory goes through its networks.
    - `risk`, shape (times,): L(θ(t)), over all data also for minibatch descents.
    - `grad_norm`, shape (times,): the norm of the field that was followed, in the trained
      parameters: ‖G(θ(t))‖ of the generalized gradient, or, with located kinks, the norm of the
      minimal-norm Clarke subgradient, which vanishes at critical points with kinks, too. With time
      scales τ, the norm with the squares weighted by τ, so that dL/dt = −grad_norm².
    - `kinks`: the `KinkLog`, None where kinks were not located; `kinks_ignored`: whether the
      network has kinks that were integrated as if they were smooth.
    - `switches`: the solvers that took over on the way, a `Switch` each.
    - `diagnostics`: see `Diagnostics`.
    - `observed`: the quantities that `observe` asked for, by name, each an array with a leading
      axis of times.
    - `dense`: the interpolants of the steps, if `dense=True` asked for them.
    - `stats`: numbers of steps, of field evaluations, and more, by name.
    - `result`: a `RESULTS` member; `message` is its sentence, `succeeded` whether all went well.
    - `kind`: "flow" or "descent"; `method`: the method in words.

    Out of `jax.vmap` it is a batch: each array has the axes `batch_shape` in front.
    `trajectory.member(k)` is one of its trajectories, `members` are all.
    """

    wanted_for_network: ClassVar[str] = "a network: its `final`"

    ts: Float[Array, " times"]
    params: Net
    risk: Float[Array, " times"]
    grad_norm: Float[Array, " times"]
    diagnostics: Diagnostics
    stats: dict[str, Any]
    result: RESULTS
    kind: Literal["flow", "descent"] = eqx.field(static=True)
    method: str = eqx.field(static=True)
    kinks: KinkLog | None = None
    kinks_ignored: bool = eqx.field(static=True, default=False)
    switches: tuple[Switch, ...] = ()
    observed: dict[str, Array] = eqx.field(default_factory=dict)
    dense: DenseOutput | None = None

    @property
    def final(self) -> Net:
        """The network at the last saved time."""
        _require_single(self)
        if is_concrete(self.ts):
            return self[-1]
        return taken(self.params, jnp.sum(jnp.isfinite(self.ts)) - 1)

    @property
    def message(self) -> str:
        """The sentence of `result`."""
        _require_single(self, known=True)
        return RESULTS[self.result]

    @property
    def result_name(self) -> str:
        """The name of the `RESULTS` member."""
        _require_single(self)
        if not is_concrete(self.result):
            raise _traced("trajectory")
        return result_name(self.result)

    @property
    def succeeded(self) -> bool:
        """True if the run reached its end or a stop that was asked for."""
        return self.result_name in SUCCESSES

    def __len__(self) -> int:
        _require_single(self)
        return num_filled(self.ts)

    @overload
    def __getitem__(self, index: int | np.integer) -> Net: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "Trajectory[Net]": ...
    @overload
    def __getitem__(self, index: Array) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        """The network at the saved time of that index, or the trajectory at several of them.

        Several are a slice, a boolean mask, or increasing indices. The part has the statistics and
        the result of the whole run, drifts since its start, and the kinks within its own span of
        time; slides that are under way where it begins are logged as beginning there.

        **Raises:** `IndexError` out of range; `ArgumentError` for indices of other kinds, and for
        none.
        """
        _require_single(self)
        size = len(self)
        if not is_concrete(index):
            return taken(self.params, index)
        if isinstance(index, bool) or not hasattr(index, "__index__") or np.ndim(index):
            return self._at(increasing_indices("index", index, size))
        place = operator.index(index)
        if not -size <= place < size:
            raise IndexError(f"index {place} of a trajectory with {size} saved times")
        return taken(self.params, place % size)

    def __iter__(self) -> Iterator[Net]:
        """The networks at the saved times."""
        return (self[k] for k in range(len(self)))

    def _at(self, rows: Int[np.ndarray, " times"]) -> "Trajectory[Net]":
        """The trajectory at some of its saved times."""
        part = replace(self, **{name: taken(getattr(self, name), rows) for name in _SAVED})
        if self.kinks is None:
            return part
        kinks = self.kinks.used() if is_concrete(self.kinks) else self.kinks
        # Kinks before the first saved time and after the last belong to the run, too.
        whole_start, whole_end = rows[0] == 0, rows[-1] == len(self) - 1
        if not (whole_start and whole_end):
            ts = np.asarray(part.ts) if is_concrete(part.ts) else part.ts
            kinks = kinks.within(-np.inf if whole_start else ts[0], np.inf if whole_end else ts[-1])
        return replace(part, kinks=kinks)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The axes of a trajectory out of `jax.vmap`; () for a single one."""
        return self.ts.shape[:-1]

    def member(self, index: int | tuple[int, ...]) -> "Trajectory[Net]":
        """One trajectory of those out of `jax.vmap`, without the slots past an early end.

        `index` is its place in the batch; for nested batches a tuple, or a part of one, which
        gives a smaller batch.

        **Raises:** `IndexError` out of range; `ArgumentError` for a single trajectory.
        """
        shape, place = self.batch_shape, index if isinstance(index, tuple) else (index,)
        if len(place) > len(shape):
            got = Described(f"{index!r}, in a batch of shape {shape}")
            raise ArgumentError("index", got, f"at most {len(shape)} indices, one for each axis")
        if not all(hasattr(k, "__index__") for k in place):
            raise ArgumentError("index", index, "whole numbers, one for each axis of the batch")
        place = tuple(operator.index(k) for k in place)
        if not all(-size <= k < size for k, size in zip(place, shape)):
            raise IndexError(f"member {index} of a batch of shape {shape}")
        return _trimmed(taken(self, place))

    @property
    def members(self) -> "list[Trajectory[Net]]":
        """All trajectories of those out of `jax.vmap`, the last axis of the batch fastest."""
        return [self.member(place) for place in np.ndindex(self.batch_shape)]

    def __call__(self, t: Any) -> Net:
        """The network at time t; at many times, with a leading axis of times.

        With `solve_flow(..., dense=True)` at any time of the flow, as accurate as the flow; without
        it at saved times.

        **Raises:** `ArgumentError` for other times.
        """
        _require_single(self)
        times = as_times("t", t)
        if self.dense is None:
            more = "; solve_flow(..., dense=True) gives all others" if self.kind == "flow" else ""
            nets = taken(
                self.params, saved_places("t", np.asarray(times), np.asarray(self.ts), more)
            )
        else:
            nets = self._between(times, self.dense)
        return nets if np.ndim(t) else taken(nets, 0)

    def _between(self, times: Any, dense: DenseOutput) -> Net:
        times = dense.within("t", times)
        still = taken(self.params, jnp.zeros(len(times), int))
        return eqx.combine(dense(times), still)

    def collapsed(self) -> bool:
        """Whether so many steps were rejected that the field seems to jump."""
        _require_single(self)
        if "num_rejected_steps" not in self.stats or not is_concrete(self):
            return False
        steps, rejected = (int(self.stats[f"num_{kind}"]) for kind in ("steps", "rejected_steps"))
        # An explicit solver at its bound of stability rejects up to a fifth of smooth steps.
        return steps >= 500 and rejected >= 0.25 * steps

    def advice(self) -> str | None:
        """What to do if the step size collapsed."""
        if not self.collapsed():
            return None
        steps, rejected = (int(self.stats[f"num_{kind}"]) for kind in ("steps", "rejected_steps"))
        collapsed = f"the step size collapsed, and {rejected:,} of {steps:,} steps were rejected"
        if self.kinks_ignored:
            return (
                f"{collapsed}, on kinks that were ignored: "
                'kinks="locate" follows each kink, at the full order of the solver'
            )
        return (
            f"{collapsed}, as at jumps of the gradient that are not located. Kinks of networks are "
            "located on an EmpiricalRisk(x, y, loss=...) with a differentiable loss, not in a risk "
            "of your own. There, a tolerance such as rtol=1e-3 is cheaper, and smooth activations "
            "and losses have no kinks"
        )

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        _require_single(self, known=True)
        self = _trimmed(self)
        ts, risk, grad_norm = (np.asarray(a) for a in (self.ts, self.risk, self.grad_norm))
        steps = f"{int(self.stats['num_steps']):,}"
        if "num_rejected_steps" in self.stats:
            steps += f" ({int(self.stats['num_rejected_steps']):,} rejected)"
        facts = {
            "method": self.method + (", kinks ignored" if self.kinks_ignored else ""),
            "times": f"{len(ts)} saved, t = {ts[0]:.6g} to {ts[-1]:.6g}",
            "risk": f"{risk[0]:.6g} → {risk[-1]:.6g}",
            "gradient norm": f"{grad_norm[0]:.4g} → {grad_norm[-1]:.4g}",
            "parameter norm": _growth(ts - ts[0], self.params),
            "steps": steps,
        }
        if self.kinks is not None:
            counts = self.kinks.counts()
            crossings = counts["cross to active"] + counts["cross to inactive"]
            slides = counts["slide begins"] + counts["unit degenerates"]
            on = len(self.kinks.sliding_at(float(ts[-1])))
            facts["kinks"] = f"{crossings:,} crossings, {slides:,} slides ({on:,} at the end)"
            met = int(self.stats.get("num_kinks", 0))
            if met > len(self.kinks):
                facts["kinks"] += f"; these are the first {len(self.kinks):,} of {met:,} kinks"
            branchings = [b.in_words() for b in self.kinks.branchings()]
            if branchings:
                facts["branchings"] = ", ".join(branchings)
        elif self.kinks_ignored:
            facts["kinks"] = self.advice() or "ignored"
        for name, values in self.observed.items():
            if values.ndim == 1:
                facts[name] = f"{_number(values[0])} → {_number(values[-1])}"
        for name in ("step_size", "rtol", "atol"):
            if name in self.stats:
                facts[name.replace("_", " ")] = f"{float(self.stats[name]):g}"
        if self.kind == "flow":
            facts |= self.diagnostics.summary()
        return facts | {"result": self.message}

    def __repr__(self) -> str:
        if self.ts.ndim == 0 or not is_concrete(self):
            return eqx.tree_pformat(self)
        if self.batch_shape:
            return fact_lines("Trajectories", _batch_summary(self))
        return fact_lines("Trajectory", self.summary())

    def _repr_html_(self) -> str:
        if self.ts.ndim == 0 or not is_concrete(self):
            return f"<pre>{escape(eqx.tree_pformat(self))}</pre>"
        if self.batch_shape:
            return fact_table(_batch_summary(self), caption="Trajectories")
        return fact_table(self.summary(), caption="Trajectory")

    def to_xarray(self) -> "xarray.Dataset":
        """A labelled copy: dimensions time, unit, feature and output, with units and long names.

        Parameters of a `ShallowNet` are the variables w, b, v and c; those of other networks carry
        the path of the leaf. It can be written to netCDF and to Zarr. Complex numbers are two
        variables, of real and imaginary parts; types that files cannot hold are stored in others,
        with the attribute `jax_dtype`. Needs xarray (the extra `gflow-jax[app]`).
        """
        return as_dataset(single_trajectory("trajectory", self))

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with a row for each saved time: risk, grad_norm, energy, and the observed numbers
        as observed_NAME. Needs pandas (the extra `gflow-jax[app]`)."""
        return as_table(single_trajectory("trajectory", self))


def single_trajectory(name: str, value: Any) -> Trajectory:
    """The trajectory, without slots past an early end, as `jax.jit` leaves them.

    **Raises:** `ArgumentError` for a batch out of `jax.vmap`, traced arrays, and what is no
    trajectory.
    """
    if not isinstance(value, Trajectory):
        got = Described(f"a {type(value).__name__}")
        raise ArgumentError(name, got, "a Trajectory, of `solve_flow` or `descend`")
    _require_single(value, name, known=True)
    return _trimmed(value)


def _require_single(
    trajectory: Trajectory, name: str = "trajectory", *, known: bool = False
) -> None:
    shape = trajectory.batch_shape
    if shape:
        got = Described(f"a batch of shape {shape}, as `jax.vmap` makes it")
        wanted = "one trajectory: `trajectory.member(k)`, or each one of `trajectory.members`"
        raise ArgumentError(name, got, wanted)
    if trajectory.ts.ndim == 0:
        raise ArgumentError(name, Described("one without an axis of times"), "saved times")
    if known and not is_concrete(trajectory):
        raise _traced(name)


def _traced(name: str) -> ArgumentError:
    return ArgumentError(name, Described("traced arrays"), "known ones: no jax.jit or jax.vmap")


def _trimmed(trajectory: Trajectory) -> Trajectory:
    """Without the slots past an early end and the unused entries of the log, where known."""
    if trajectory.ts.ndim != 1 or not is_concrete(trajectory):
        return trajectory
    return first_saved(trajectory, num_filled(trajectory.ts))


def first_saved(trajectory: Trajectory, count: int, max_kinks: int | None = None) -> Trajectory:
    """The trajectory at its first saved times, and the used entries of its log of kinks, up to
    `max_kinks`."""
    lengths: dict[str, int] = {}
    if count < len(trajectory.ts):
        lengths |= dict.fromkeys(_SAVED, count)
    kinks = trajectory.kinks
    if kinks is not None and is_concrete(kinks.time):
        lengths["kinks"] = min(kinks.num_used(), len(kinks) if max_kinks is None else max_kinks)
    return shortened(trajectory, lengths)


def _batch_summary(batch: Trajectory) -> dict[str, str]:
    """The main facts of a batch in words, by name."""
    count = math.prod(batch.batch_shape)
    ts, risk = (np.asarray(a).reshape(count, -1) for a in (batch.ts, batch.risk))
    ends = [num_filled(row) - 1 for row in ts]
    last, final = (a[np.arange(count), ends] for a in (ts, risk))
    found = {name: int(np.sum(batch.result == getattr(RESULTS, name))) for name in RESULT_NAMES}
    return {
        "members": f"{count} (axes {batch.batch_shape}), each by trajectory.member(k)",
        "method": batch.method,
        "times": f"{ts.shape[1]} slots, to t = {last.min():.6g} or later",
        "final risk": f"{final.min():.6g} to {final.max():.6g}, median {np.median(final):.6g}",
        "succeeded": f"{sum(found[name] for name in SUCCESSES)} of {count}",
        "results": ", ".join(f"{number} {name}" for name, number in found.items() if number),
    }


def _number(value: Any) -> str:
    number = np.asarray(value).item()
    return f"{number + 0.0:.6g}" if isinstance(number, (float, complex)) else str(number)


def _growth(t: np.ndarray, params: PyTree) -> str:
    """‖θ‖ from start to end, and its growth in the last decade of t if that is above a tenth."""
    leaves = jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))
    rows = [np.abs(np.asarray(a).astype(complex)).reshape(len(t), -1) for a in leaves]
    with np.errstate(over="ignore"):
        norm = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    words = f"{norm[0]:.4g} → {norm[-1]:.4g}"
    before = np.interp(t[-1] / 10, t, norm)
    if before == 0 or norm[-1] <= 1.1 * before:
        return words
    factor = norm[-1] / before
    growth = f"by {factor - 1:.0%}" if factor < 10 else f"{factor:.3g} times as large"
    return f"{words}, {growth} in the last decade of time"
