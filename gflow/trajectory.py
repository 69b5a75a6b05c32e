"""Trajectories: what `solve_flow` and `descend` return."""

from html import escape
from typing import TYPE_CHECKING, Any, Generic, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import ArgumentError, Described, PyTree, is_concrete
from gflow.dense import DenseOutput
from gflow.display import fact_lines, fact_table
from gflow.export import as_dataset
from gflow.kink_log import KinkLog
from gflow.parameters import Net
from gflow.results import RESULT_NAMES, RESULTS, SUCCESSES

if TYPE_CHECKING:
    import xarray


# Times that differ by this fraction are the same.
_SAME_TIME = 1e-13


class TrajectoryError(RuntimeError):
    """A run that did not reach its end. `trajectory` holds what was computed until then."""

    def __init__(self, trajectory: "Trajectory"):
        super().__init__(
            f"{trajectory.method}: {trajectory.message}. The run reached t = "
            f"{float(trajectory.ts[-1]):.6g}; `error.trajectory`, or throw=False, gives what was "
            "computed until then."
        )
        self.trajectory = trajectory


class Diagnostics(eqx.Module):
    """Drifts of identities at the saved times; all are zero along an exact gradient flow.

    - `energy`, shape (times,): L(θ(0)) − L(θ(t)) − ∫₀ᵗ‖θ'‖² ds, with ‖θ'‖² = Σ θ'²/τ for time
      scales τ. Along a descent the integral is
      that of its polygon, Σ‖Δθ‖²/h, and the drift is of order h. For a flow it is of order
      rtol · L(θ(0)), mostly from the error of the integral, not from that of L(θ(t)). If kinks are
      ignored and units slide along them, the integral counts the chatter across the kink: the drift
      then shows the sliding, at any tolerance, and not the accuracy.
    - `balance`, shape (times, width): the drift of ‖w_i‖² + b_i² − ‖v_i‖² since the start, for each
      unit of a `ShallowNet` with homogeneous activation that is trained as a whole, each square
      divided by its time scale; None otherwise.
    """

    energy: Float[Array, " times"]
    balance: Float[Array, "times width"] | None


class Switch(eqx.Module):
    """A change of solver: the one that took over, when, and after how many steps."""

    solver: str = eqx.field(static=True)
    time: Float[Array, ""]
    num_steps: Int[Array, ""]

    def as_list(self) -> list:
        """Solver, time and number of steps as plain values, for files."""
        return [self.solver, float(self.time), int(self.num_steps)]


class Trajectory(eqx.Module, Generic[Net]):
    """Parameters along saved times, with the risk, the gradient norm and how far to trust them.

    - `ts`, shape (times,): flow time; step k of a descent of step size h is at time k h.
    - `params`: the network, every array with a leading axis of times; `trajectory[k]` is one
      network, `final` the last.
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
    """

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
        return self[-1]

    @property
    def message(self) -> str:
        """The sentence of `result`."""
        return RESULTS[self.result]

    @property
    def result_name(self) -> str:
        """The name of the `RESULTS` member."""
        return next(n for n in RESULT_NAMES if bool(self.result == getattr(RESULTS, n)))

    @property
    def succeeded(self) -> bool:
        """True if the run reached its end or a stop that was asked for."""
        return self.result_name in SUCCESSES

    def __len__(self) -> int:
        return self.ts.shape[0]

    def __getitem__(self, index: int) -> Net:
        """The network at the saved time of that index."""
        return jax.tree.map(lambda a: a[index] if eqx.is_array(a) else a, self.params)

    def __call__(self, t: Any) -> Net:
        """The network at time t; at many times, with a leading axis of times.

        With `solve_flow(..., dense=True)` at any time of the flow, as accurate as the flow; without
        it at saved times.

        **Raises:** `ArgumentError` for other times.
        """
        times = np.atleast_1d(np.asarray(t, float)) if is_concrete(t) else jnp.atleast_1d(t)
        if self.dense is not None:
            return self._at_any_time(times, one=jnp.ndim(t) == 0)
        saved = np.asarray(self.ts)
        nearest = np.abs(saved[None, :] - times[:, None]).argmin(axis=1)
        unsaved = np.abs(saved[nearest] - times) > _SAME_TIME * np.abs(times)
        if unsaved.any():
            wanted = "saved times" + (
                "; solve_flow(..., dense=True) gives all others" if self.kind == "flow" else ""
            )
            raise ArgumentError("t", Described(f"{times[unsaved][0]:.17g}"), wanted)
        places = nearest if np.ndim(t) else nearest[0]
        return jax.tree.map(lambda a: a[places] if eqx.is_array(a) else a, self.params)

    def _at_any_time(self, times: Any, *, one: bool) -> Net:
        dense = self.dense
        assert dense is not None
        if is_concrete(times, dense):
            start, end = float(dense.start), float(dense.end)
            outside = ~((times >= start) & (times <= end))
            if outside.any():
                wanted = f"times of the flow, {start:.6g} to {end:.6g}"
                raise ArgumentError("t", Described(f"{times[outside][0]:.17g}"), wanted)
        trained = dense(times)
        spread = lambda a: jnp.broadcast_to(a[:1], (len(times), *a.shape[1:]))
        still = jax.tree.map(lambda a: spread(a) if eqx.is_array(a) else a, self.params)
        params = eqx.combine(trained, still)
        return jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, params) if one else params

    def collapsed(self) -> bool:
        """Whether so many steps were rejected that the field seems to jump."""
        if "num_rejected_steps" not in self.stats or not _single(self):
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
            f"{collapsed}, as at jumps of the gradient that are not located. Kinks are "
            "located for a ShallowNet on an EmpiricalRisk with a differentiable loss. For other "
            "networks with ReLU a tolerance such as rtol=1e-3 is cheaper, and a smooth activation "
            "has no kinks"
        )

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
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
            branchings = [f"unit {unit} at t = {t:.6g}" for t, unit in self.kinks.branchings()]
            if branchings:
                facts["branchings"] = ", ".join(branchings)
        elif self.kinks_ignored:
            facts["kinks"] = self.advice() or "ignored"
        for name, values in self.observed.items():
            if values.ndim == 1:
                facts[name] = f"{values[0]:.6g} → {values[-1]:.6g}"
        for name in ("step_size", "rtol", "atol"):
            if name in self.stats:
                facts[name.replace("_", " ")] = f"{float(self.stats[name]):g}"
        if self.kind == "flow":
            facts["energy drift"] = f"{np.nanmax(np.abs(self.diagnostics.energy)):.2g}"
            if self.diagnostics.balance is not None:
                facts["balance drift"] = f"{np.nanmax(np.abs(self.diagnostics.balance)):.2g}"
        return facts | {"result": self.message}

    def __repr__(self) -> str:
        if not _single(self):
            return eqx.tree_pformat(self)
        return fact_lines("Trajectory", self.summary())

    def _repr_html_(self) -> str:
        if not _single(self):
            return f"<pre>{escape(eqx.tree_pformat(self))}</pre>"
        return fact_table(self.summary(), caption="Trajectory")

    def to_xarray(self) -> "xarray.Dataset":
        """A labelled copy: dimensions time, unit, feature and output, with units and long names.

        Parameters of a `ShallowNet` are the variables w, b, v and c; those of other networks carry
        the path of the leaf. Needs xarray (the extra `gflow-jax[app]`).
        """
        return as_dataset(self)


def _single(trajectory: Trajectory) -> bool:
    """False under a trace and for trajectories with batch axes, as from `jax.vmap`."""
    return is_concrete(trajectory) and trajectory.ts.ndim == 1


def _growth(t: np.ndarray, params: PyTree) -> str:
    """‖θ‖ from start to end, and its growth in the last decade of t if that is above a tenth."""
    leaves = [np.asarray(leaf).reshape(len(t), -1) for leaf in jax.tree.leaves(params)]
    norm = np.linalg.norm(np.concatenate(leaves, axis=1), axis=1)
    words = f"{norm[0]:.4g} → {norm[-1]:.4g}"
    before = np.interp(t[-1] / 10, t, norm)
    if norm[-1] <= 1.1 * before:
        return words
    return words + f", by {norm[-1] / before - 1:.0%} in the last decade of time"
