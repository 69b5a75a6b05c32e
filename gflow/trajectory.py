"""Trajectories: what `solve_flow` and `descend` return, and how both are recorded."""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from gflow.arguments import is_concrete
from gflow.gradients import squared_norm
from gflow.networks import ShallowNet
from gflow.results import GOOD, RESULT_NAMES, RESULTS

if TYPE_CHECKING:
    import xarray


class TrajectoryError(RuntimeError):
    """A run that did not reach its end. `trajectory` holds what was computed until then."""

    def __init__(self, trajectory: "Trajectory"):
        super().__init__(
            f"{trajectory.method}: {trajectory.message}. The run got to t = "
            f"{float(trajectory.ts[-1]):.6g}; `error.trajectory`, or throw=False, gives what was "
            "computed until then."
        )
        self.trajectory = trajectory


class Diagnostics(eqx.Module):
    """Identities that hold along an exact gradient flow, at the saved times; zero is right.

    - `energy`, shape (times,): L(θ(0)) − L(θ(t)) − ∫₀ᵗ‖θ'‖² ds. Along a descent the integral is
      that of its polygon, Σ‖Δθ‖²/h, and the value is the O(h) by which it departs from the flow.
      Of a flow it is some rtol · L(θ(0)): mostly the error of the integral, not that of L(θ(t)).
      Where kinks are ignored and units slide along them, the integral counts the chatter across the
      kink, so that the drift stays at any tolerance: it then shows the sliding, not the accuracy.
    - `balance`, shape (times, width): the drift of ‖w_i‖² + b_i² − ‖v_i‖² since the start, for each
      unit of a `ShallowNet` with homogeneous activation that is trained as a whole; None otherwise.
    """

    energy: Float[Array, " times"]
    balance: Float[Array, "times width"] | None


KINKS_IGNORED = ", kinks ignored"
KINK_KINDS = (
    "cross to active",
    "cross to inactive",
    "slide begins",
    "slide ends to active",
    "slide ends to inactive",
    "unit degenerates",
)


class Kinks(eqx.Module):
    """The log of kinks met along a flow, in the order of time.

    - `time`, shape (kinks,): when the preactivation of the pair became zero, or its slide ended.
    - `unit`, `datum`: the pair. Rows of data that are equal have one kink, logged for the first.
      Those with parallel normals, as x and −x without biases, can meet theirs at one time, and have
      an entry each.
    - `kind`: an index into `KINK_KINDS`; `names` gives the words.

    Under `jax.jit` and `jax.vmap` the arrays have `max_kinks` entries, of time inf where unused.
    """

    time: Float[Array, " kinks"]
    unit: Int[Array, " kinks"]
    datum: Int[Array, " kinks"]
    kind: Int[Array, " kinks"]

    @property
    def names(self) -> list[str]:
        return [KINK_KINDS[k] for k in np.asarray(self.kind)]

    def __len__(self) -> int:
        return self.time.shape[0]

    def counts(self) -> dict[str, int]:
        """How many there were of each kind."""
        each = np.bincount(np.asarray(self.kind), minlength=len(KINK_KINDS))
        return {name: int(n) for name, n in zip(KINK_KINDS, each)}


class Trajectory(eqx.Module):
    """Parameters along saved times, with the risk, the gradient norm and how far to trust them.

    - `ts`, shape (times,): flow time; step k of a descent of step size h is at time k h.
    - `params`: the network, every array with a leading axis of times; `trajectory[k]` is one
      network, `final` the last.
    - `risk`, shape (times,): L(θ(t)), over all data also for minibatch descents.
    - `grad_norm`, shape (times,): the norm of the field that was followed, in the trained
      parameters: ‖G(θ(t))‖ of the generalized gradient, or, with located kinks, the norm of the
      minimal-norm Clarke subgradient, which vanishes at critical points with kinks, too.
    - `kinks`: the `Kinks` met, None where they were not located.
    - `diagnostics`: see `Diagnostics`.
    - `stats`: numbers of steps, of field evaluations, and more, by name.
    - `result`: a `RESULTS` member; `message` is its sentence, `succeeded` whether all went well.
    - `kind`: "flow" or "descent"; `method`: the method in words.
    """

    ts: Float[Array, " times"]
    params: PyTree
    risk: Float[Array, " times"]
    grad_norm: Float[Array, " times"]
    diagnostics: Diagnostics
    stats: dict[str, Any]
    result: RESULTS
    kind: str = eqx.field(static=True)
    method: str = eqx.field(static=True)
    kinks: Kinks | None = None

    def kinks_at(self, t: float) -> set[tuple[int, int]]:
        """The pairs (unit, datum) that slide at time t."""
        sliding: set[tuple[int, int]] = set()
        if self.kinks is not None:
            log = (np.asarray(a) for a in (self.kinks.time, self.kinks.unit, self.kinks.datum))
            for time, unit, datum, kind in zip(*log, self.kinks.names):
                if time > t:
                    break
                change = sliding.add if kind in KINK_KINDS[2::3] else sliding.discard
                change((int(unit), int(datum)))
        return sliding

    @property
    def final(self) -> PyTree:
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
        return self.result_name in GOOD

    def __len__(self) -> int:
        return self.ts.shape[0]

    def __getitem__(self, index: int) -> PyTree:
        """The network at the saved time of that index."""
        return jax.tree.map(lambda a: a[index] if eqx.is_array(a) else a, self.params)

    def advice(self) -> str | None:
        """What to do about kinks that were ignored, if the step size collapsed on them."""
        if not self.method.endswith(KINKS_IGNORED) or not _single(self):
            return None
        steps, rejected = (int(self.stats[f"num_{kind}"]) for kind in ("steps", "rejected_steps"))
        # An explicit solver at its bound of stability rejects up to a fifth of smooth steps.
        if steps < 500 or rejected < 0.25 * steps:
            return None
        return (
            f"kinks were ignored, and the step size collapsed on them: {rejected:,} of {steps:,} "
            'steps were rejected; kinks="locate" follows each kink, at the full order of the solver'
        )

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        ts, risk, grad_norm = (np.asarray(a) for a in (self.ts, self.risk, self.grad_norm))
        steps = f"{int(self.stats['num_steps']):,}"
        if "num_rejected_steps" in self.stats:
            steps += f" ({int(self.stats['num_rejected_steps']):,} rejected)"
        facts = {
            "method": self.method,
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
            on = len(self.kinks_at(float(ts[-1])))
            facts["kinks"] = f"{crossings:,} crossings, {slides:,} slides ({on:,} at the end)"
        elif self.method.endswith(KINKS_IGNORED):
            facts["kinks"] = self.advice() or "ignored"
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
        width = max(map(len, self.summary()))
        rows = (f"  {name:<{width}}  {text}" for name, text in self.summary().items())
        return "\n".join(["Trajectory", *rows])

    def _repr_html_(self) -> str:
        if not _single(self):
            return f"<pre>{html.escape(eqx.tree_pformat(self))}</pre>"
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self.summary().items()
        )
        return f"<table><caption>Trajectory</caption>{rows}</table>"

    def to_xarray(self) -> "xarray.Dataset":
        """A labelled copy: dimensions time, unit, feature and output, with units and long names.

        Parameters of a `ShallowNet` are the variables w, b, v and c; those of other networks carry
        the path of the leaf. Needs xarray (the extra `gflow-jax[app]`).
        """
        import xarray

        variables: dict[str, tuple] = {
            "risk": ("time", np.asarray(self.risk), {"long_name": "risk"}),
            "grad_norm": ("time", np.asarray(self.grad_norm), {"long_name": "gradient norm"}),
            "energy": (
                "time",
                np.asarray(self.diagnostics.energy),
                {"long_name": "energy drift", "units": "units of risk"},
            ),
        }
        if self.diagnostics.balance is not None:
            balance = np.asarray(self.diagnostics.balance)
            variables["balance"] = (("time", "unit"), balance, {"long_name": "balance drift"})
        variables |= {
            name: (dims, np.asarray(array), {"long_name": f"parameter {name}"})
            for name, dims, array in named_parameters(self.params)
        }
        if self.kinks is not None:
            variables |= {
                f"kink_{name}": ("kink", np.asarray(getattr(self.kinks, name)))
                for name in ("time", "unit", "datum")
            }
            variables["kink_kind"] = (
                "kink",
                np.asarray(self.kinks.kind),
                {"long_name": "kind of kink", "flag_meanings": list(KINK_KINDS)},
            )
        flow_time = {"long_name": "flow time", "units": "flow time (h per step of size h)"}
        attributes = {f"stats_{name}": np.asarray(n).item() for name, n in self.stats.items()}
        if isinstance(self.params, ShallowNet):
            attributes |= {
                "activation": self.params.activation.name,
                "output_scale": self.params.output_scale,
            }
        return xarray.Dataset(
            variables,
            coords={"time": ("time", np.asarray(self.ts), flow_time)},
            attrs={
                "kind": self.kind,
                "method": self.method,
                "result": self.result_name,
                "message": self.message,
                **attributes,
            },
        )


def named_parameters(params: PyTree) -> list[tuple[str, tuple[str, ...], Array]]:
    """Name, dimensions and array of each leaf of a network with a leading axis of times."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_array))
    rows = []
    for path, array in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        dims = tuple(f"{name}_{axis}" for axis in range(array.ndim - 1))
        if isinstance(params, ShallowNet):
            dims = ShallowNet.axis_names[name][: array.ndim - 1]
        rows.append((name, ("time", *dims), array))
    return rows


def record(
    risk,
    frozen: PyTree,
    start: PyTree,
    ts: Float[Array, " times"],
    trained: PyTree,
    dissipated: Float[Array, " times"],
    grad_norm: Float[Array, " times"] | None = None,
    *,
    result: RESULTS,
    **rest: Any,
) -> Trajectory:
    """The trajectory of trained parameters with a leading axis of times.

    `start` are the trained parameters at time zero, `dissipated` is ∫‖θ'‖² up to each time,
    `grad_norm` the norm of the field if it is not the generalized gradient; `rest` are the other
    fields of `Trajectory`. Jittable; memory beyond the result is that of one gradient.
    """

    def measure(params):
        value, gradient = jax.value_and_grad(lambda p: risk(eqx.combine(p, frozen)))(params)
        return value, jnp.sqrt(squared_norm(gradient))

    values, norms = jax.lax.map(measure, trained)
    at_start = risk(eqx.combine(start, frozen))
    result = RESULTS.where(jnp.isfinite(at_start), result, RESULTS.nonfinite)
    energy = at_start - values - dissipated
    times = ts.shape[0]
    still = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (times, *a.shape)) if eqx.is_array(a) else a, frozen
    )
    return Trajectory(
        ts=ts,
        params=eqx.combine(trained, still),
        risk=values,
        grad_norm=norms if grad_norm is None else grad_norm,
        diagnostics=Diagnostics(energy, _balance_drift(frozen, start, trained)),
        result=result,
        **rest,
    )


def recorded(make: Callable[[], Trajectory]) -> Trajectory:
    """What `make` records; if Ctrl-C falls into it, once more, so that the run is not lost."""
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


def keep_first(trajectory: Trajectory, count: int) -> Trajectory:
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


def finish(trajectory: Trajectory, *, throw: bool) -> Trajectory:
    """Raises `TrajectoryError` if asked to and the run failed; under a trace, an equinox error."""
    if not throw:
        return trajectory
    if is_concrete(trajectory.result):
        if not trajectory.succeeded:
            raise TrajectoryError(trajectory)
        return trajectory
    good = jnp.stack([trajectory.result == getattr(RESULTS, name) for name in GOOD]).any()
    return trajectory.result.error_if(trajectory, ~good)
