"""Solves of one flow: by gflow, by diffrax through it, and by solvers that call a field."""

import importlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree
from threadpoolctl import threadpool_limits

import gflow
from benchmarks.edge import classical
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.parameters import split_trainable

Kinks = Literal["locate", "all", "ignore"]
SCIPY = ("RK45", "DOP853", "LSODA", "Radau")
# A first solve with so few steps tells what a step costs, and so how many fit in the limit.
PROBE_STEPS = 500


class TimeUp(Exception):
    """The run had not reached its end when its time was over."""


class Problem(NamedTuple):
    """A flow from `net` to time `t1`; `end` are its final parameters, as one vector."""

    name: str
    risk: Any
    net: Any
    t1: float
    end: np.ndarray


class End(NamedTuple):
    """Where a run ended, and its counts; of `solve_flow` the energy drift and its method, too."""

    theta: np.ndarray
    counts: dict[str, int]
    energy: float | None = None
    method: str = ""


# Solves at that rtol; by diffrax, to another time if it is given.
Solve = Callable[..., End]
# The solver for an rtol; None for gflow's choice.
Made = Callable[[float], diffrax.AbstractSolver | None]


def flat(net: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(split_trainable(net)[0])[0])


def flow(
    given: Problem,
    solver: diffrax.AbstractSolver | None,
    kinks: Kinks,
    rtol: float,
    max_steps=10**6,
) -> End:
    """`solve_flow` to the problem's end, and what it did."""
    return end_of(trajectory_of(given, solver, kinks, rtol, max_steps))


def trajectory_of(
    given: Problem,
    solver: diffrax.AbstractSolver | None,
    kinks: Kinks,
    rtol: float,
    max_steps=10**6,
) -> gflow.Trajectory:
    """`solve_flow` to the problem's end."""
    return gflow.solve_flow(
        given.risk,
        given.net,
        t1=given.t1,
        ts=[given.t1],
        rtol=rtol,
        atol=1e-2 * rtol,
        solver=solver,
        kinks=kinks,
        max_steps=max_steps,
        throw=False,
    )


def end_of(trajectory: gflow.Trajectory) -> End:
    """The end of a flow and its counts. **Raises:** TimeUp if its steps ended before."""
    stats = trajectory.stats.items()
    counts = {name.removeprefix("num_"): int(n) for name, n in stats if name.startswith("num_")}
    if not trajectory.succeeded:
        where = f"at t = {float(trajectory.ts[-1]):.3g} after {counts['steps']:,d} steps"
        if "max_steps" in trajectory.message:
            raise TimeUp(where)
        raise RuntimeError(f"{where}: {trajectory.message.split('.')[0]}")
    if (log := trajectory.kinks) is not None:
        counts["slides"] = sum(KinkKind(kind).begins_slide for kind in log.kind.tolist())
        counts["passed"] = int(log.passed.sum())
    energy = float(trajectory.diagnostics.energy[-1])
    return End(flat(trajectory.final), counts, energy, trajectory.method)


def stock(name: str) -> Made:
    return lambda rtol: getattr(diffrax, name)()


def with_gflow(given: Problem, made: Made, kinks: Kinks, limit: float) -> tuple[float, Solve]:
    """The compile time, and solves that take about `limit` seconds at most."""
    probe = lambda steps: flow(given, made(1e-6), kinks, 1e-6, steps)
    compile_s, max_steps = budget(probe, PROBE_STEPS, limit)
    # What depends on the number of steps is compiled here, on a span that takes no time.
    flow(given._replace(t1=1e-9 * given.t1), made(1e-6), kinks, 1e-6, max_steps)

    def solve(rtol: float, t1: float = given.t1) -> End:
        return flow(given._replace(t1=t1), made(rtol), kinks, rtol, max_steps)

    return compile_s, solve


def budget(probe: Callable[[int], End], steps: int, limit: float) -> tuple[float, int]:
    """The seconds that the first of two probes of so many steps compiles, and how many steps take
    `limit` seconds."""
    begin = time.perf_counter()
    _steps_taken(probe, steps)
    between = time.perf_counter()
    taken = _steps_taken(probe, steps)
    spent = time.perf_counter() - between
    return max(between - begin - spent, 0.0), max(steps, int(taken * limit / spent))


def _steps_taken(probe: Callable[[int], End], steps: int) -> int:
    try:
        return probe(steps).counts["steps"]
    except TimeUp:
        return steps


class Field:
    """dθ/dt on NumPy arrays, for solvers that call it from outside: counts, and keeps the time."""

    def __init__(self, given: Problem, limit: float):
        trained, frozen = split_trainable(given.net)
        self.theta0, unravel = ravel_pytree(trained)
        self.limit = limit
        field = lambda theta: (
            -jax.grad(lambda p: given.risk(eqx.combine(unravel(p), frozen)))(theta)
        )
        self._field, self._jacobian = jax.jit(field), jax.jit(jax.jacfwd(field))
        network = lambda theta: eqx.combine(unravel(theta), frozen)
        sharpness = lambda theta: float(gflow.sharpness(given.risk, network(theta), tol=1e-2))
        self.classical = classical(field, sharpness)

    def restart(self) -> None:
        self.calls, self.start = 0, time.perf_counter()

    def check(self, t: float) -> None:
        if time.perf_counter() - self.start > self.limit:
            raise TimeUp(f"at t = {t:.3g} after {self.calls:,d} evaluations")

    def __call__(self, t: float, theta: np.ndarray) -> np.ndarray:
        self.check(t)
        self.calls += 1
        return np.array(self._field(theta))

    def jacobian(self, t: float, theta: np.ndarray) -> np.ndarray:
        self.check(t)
        return np.array(self._jacobian(theta))


# The final parameters from t = 0 to t1, by a field, a start, t1, rtol and atol.
Host = Callable[[Field, np.ndarray, float, float, float], np.ndarray]


def with_host(
    given: Problem, host: Host, limit: float, jacobian: bool = True
) -> tuple[float, Solve]:
    """The compile time of the field, with its `jacobian` if the solver needs it, and solves."""
    field = Field(given, limit)
    theta0 = np.array(field.theta0)
    begin = time.perf_counter()
    field.restart()
    field(0.0, theta0)
    if jacobian:
        field.jacobian(0.0, theta0)
    compile_s = time.perf_counter() - begin

    def solve(rtol: float) -> End:
        field.restart()
        # Several threads on small matrices cost Radau and LSODA more than they bring.
        with threadpool_limits(1):
            end = host(field, theta0, given.t1, rtol, 1e-2 * rtol)
        return End(end, {"field_evaluations": field.calls})

    return compile_s, solve


def scipy_host(method: str) -> Host:
    def host(field, theta0, t1, rtol, atol):
        jacobian = {"jac": field.jacobian} if method in ("LSODA", "Radau", "BDF") else {}
        found = scipy.integrate.solve_ivp(
            field, (0.0, t1), theta0, method=method, rtol=rtol, atol=atol, **jacobian
        )
        if not found.success:
            raise RuntimeError(f"at t = {found.t[-1]:.3g}: {found.message}")
        return found.y[:, -1]

    return host


def cvode_host(method: str, cvode: Any, jacobian: bool = False) -> Host:
    def host(field, theta0, t1, rtol, atol):
        def into(t, theta, out):
            out[:] = field(t, theta)

        def jacobian_into(t, theta, _, out):
            out[:] = field.jacobian(t, theta)

        options = {"jacfn": jacobian_into} if jacobian else {}
        options |= {"method": method, "rtol": rtol, "atol": atol, "max_num_steps": 10**9}
        solver = cvode.CVODE(into, **options)
        found = solver.solve(np.array([0.0, t1]), theta0)
        if not found.success:
            raise RuntimeError(f"at t = {found.t[-1]:.3g}: {found.message}")
        return found.y[-1]

    return host


def classical_host(field, theta0, t1, rtol, atol) -> np.ndarray:
    """The classical Runge–Kutta method with step 1/sharpness, without tolerances."""

    def check(t: float, evaluations: int) -> None:
        field.calls = evaluations
        field.check(t)

    theta, field.calls = field.classical(theta0, t1, check)
    return np.asarray(theta)


def torch_host(torch: Any, torchdiffeq: Any) -> Host:
    def host(field, theta0, t1, rtol, atol):
        there = lambda t, theta: torch.from_numpy(field(float(t), theta.numpy()))
        times = torch.tensor([0.0, t1], dtype=torch.float64)
        start = torch.from_numpy(theta0)
        found = torchdiffeq.odeint(there, start, times, rtol=rtol, atol=atol, method="dopri5")
        return found[-1].numpy()

    return host


def imported(name: str) -> Any:
    """The module, None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def hosts() -> dict[str, Host]:
    found = {f"SciPy {method}": scipy_host(method) for method in SCIPY}
    if cvode := imported("sksundae.cvode"):
        found |= {f"CVODE {method}": cvode_host(method, cvode) for method in ("BDF", "Adams")}
    if torchdiffeq := imported("torchdiffeq"):
        found["torchdiffeq dopri5"] = torch_host(imported("torch"), torchdiffeq)
    return found
