"""Flows to late times, and the solvers that follow them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix as optx

import gflow
from benchmarks import harness, reference_flows
from benchmarks.kink_solvers import (
    End,
    Field,
    Host,
    Made,
    Problem,
    Solve,
    classical_host,
    cvode_host,
    flow,
    imported,
    scipy_host,
    stock,
    with_gflow,
    with_host,
)

POPULATION, TANH = "population_w16", "tanh_w16_n40"
SINES = {10: "sine_w10_n40", 20: "sine_d1_w20_n40", 50: "sine_d1_w50_n100", 100: "sine_w100_n100"}
SINE = SINES[20]
RTOLS = (1e-4, 1e-6, 1e-8)
OWN: dict[str, tuple[Made, Sequence[float]]] = {
    "gflow": (lambda rtol: None, (1e-5, 1e-6, 1e-7, 1e-8, 1e-9)),
    "gflow BDF5": (lambda rtol: gflow.BDF5(), (1e-5, 1e-6, 1e-8, 1e-9)),
    "gflow Rodas5P": (lambda rtol: gflow.Rodas5P(), (1e-5, 1e-6, 1e-8)),
    "gflow ROCK4": (lambda rtol: gflow.ROCK4(), (1e-5, 1e-6, 1e-7)),
}


def _kvaerno5(finder: Callable[[float], Any]) -> Made:
    return lambda rtol: diffrax.Kvaerno5(root_finder=finder(rtol))


def _newton_gmres(rtol: float) -> Any:
    # As arrays, or each tolerance would be compiled anew.
    tolerances: Any = {"rtol": jnp.asarray(rtol), "atol": jnp.asarray(1e-2 * rtol)}
    return optx.Newton(**tolerances, linear_solver=lineax.GMRES(**tolerances))


DIFFRAX: dict[str, Made] = {
    "diffrax Tsit5": stock("Tsit5"),
    "diffrax Kvaerno5": stock("Kvaerno5"),
    "diffrax Kvaerno5, κ = 1": _kvaerno5(
        lambda rtol: diffrax.with_stepsize_controller_tols(diffrax.VeryChord)(kappa=1.0)
    ),
    "diffrax Kvaerno5, GMRES": _kvaerno5(_newton_gmres),
}


def hosted() -> dict[str, Host]:
    found = {f"SciPy {method}": scipy_host(method) for method in ("LSODA", "BDF", "Radau")}
    if cvode := imported("sksundae.cvode"):
        found["CVODE BDF"] = cvode_host("BDF", cvode, jacobian=True)
    return found


class Way(NamedTuple):
    """A solver of a flow: its tolerances, and what compiles and returns its solve."""

    name: str
    rtols: Sequence[float]
    prepare: Callable[[Problem, float], tuple[float, Solve]]


def own(quick: bool) -> Iterator[Way]:
    for name, (made, rtols) in OWN.items():
        yield Way(name, rtols[1::2] if quick else rtols, partial(_own, made))


def _own(made: Made, given: Problem, limit: float) -> tuple[float, Solve]:
    def solve(rtol: float, t1: float = given.t1) -> End:
        return flow(given._replace(t1=t1), made(rtol), "locate", rtol)

    # A choice is made late in a flow, so that no short one would compile all.
    first, again = (harness.timed(lambda _: solve(1e-6).theta, 1)[0] for _ in range(2))
    return first - again, solve


def _classical(given: Problem, limit: float) -> tuple[float, Solve]:
    field = Field(given, limit)
    theta0 = np.array(field.theta0)

    def solve(rtol: float, t1: float = given.t1) -> End:
        field.restart()
        end = classical_host(field, theta0, t1, rtol, 0.0)
        return End(end, {"field_evaluations": field.calls})

    # A short run compiles all.
    return harness.timed(lambda _: solve(0.0, 1e-9 * given.t1).theta, 1)[0], solve


def peers(quick: bool) -> Iterator[Way]:
    rtols = RTOLS[1:2] if quick else RTOLS
    for name, made in DIFFRAX.items():
        prepare = lambda given, limit, m=made: with_gflow(given, m, "ignore", limit)
        yield Way(name, rtols, prepare)
    for name, host in hosted().items():
        yield Way(name, rtols, lambda given, limit, h=host: with_host(given, h, limit))
    yield Way("RK4", (0.0,), _classical)


def problem(name: str) -> Problem:
    """The flow of that name, of which neither time nor end are set."""
    if name in reference_flows.NAMES:
        known = reference_flows.reference_flow(name)
        return _from(name, known.risk, known.net)
    if name == POPULATION:
        risk = gflow.PopulationRisk(gflow.piecewise.tent(), gflow.piecewise.uniform())
        return _from(name, risk, gflow.ShallowNet(1, 16, key=jax.random.key(0)))
    if name == TANH:
        net = gflow.ShallowNet(1, 16, key=jax.random.key(0), activation="tanh")
        return _from(name, _sine(40), net)
    width = next(width for width, known in SINES.items() if known == name)
    net = gflow.ShallowNet(1, width, key=jax.random.key(width), init="ntk")
    return _from(name, _sine(int(name.split("_n")[1])), net)


def _sine(rows: int) -> gflow.EmpiricalRisk:
    """Rows of sin 3x."""
    x = jnp.linspace(-1.0, 1.0, rows)
    return gflow.EmpiricalRisk(x[:, None], jnp.sin(3 * x))


def _from(name: str, risk: Any, net: gflow.ShallowNet) -> Problem:
    return Problem(name, risk, net, 0.0, np.zeros(0))


class Ends(NamedTuple):
    """Final parameters by two methods of gflow in tight runs, and how far they are apart."""

    by_rodas5p: np.ndarray
    by_bdf5: np.ndarray
    apart: float


def tight(given: Problem) -> Ends:
    first = flow(given, gflow.Rodas5P(), "locate", 1e-11).theta
    second = flow(given, gflow.BDF5(), "locate", 1e-10).theta
    return Ends(first, second, float(np.linalg.norm(first - second) / np.linalg.norm(first)))
