"""Flows of known fate: what `gflow.asymptotics` says of them, and theory's numbers beside gflow's.

Twenty flows converge, twenty diverge, and twenty end before their fate shows; the last are not
followed further. The constants are those of exact asymptotics, of the margin problem, which SciPy
solves, and of published limits.
"""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import gflow
from benchmarks import harness
from gflow import piecewise

COLUMNS = {
    "flows": ("family", ""),
    "fate": ("fate", ""),
    "number": ("number", "d"),
    "called so": ("called", "d"),
    "the opposite": ("opposite", "d"),
    "undecided": ("undecided", "d"),
    "seconds": ("run_s", ".0f"),
    "quantity": ("quantity", ""),
    "theory": ("theory", ".9g"),
    "gflow": ("gflow", ".9g"),
    "bound": ("bound", ".1g"),
}


class Flow(NamedTuple):
    """A risk, the network at the start, and the time up to which the flow is solved."""

    risk: Any
    net: Any
    t1: float


class Linear(eqx.Module):
    """N(x) = w·x."""

    w: jax.Array

    def __call__(self, x):
        return self.w @ x


class Point(eqx.Module):
    """A point of the plane."""

    x: jax.Array
    y: jax.Array


def separable(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the plane on both sides of a line, at a distance from it."""
    normal = rng.normal(size=2)
    normal /= np.linalg.norm(normal)
    y = np.where(np.arange(rows) % 2, 1.0, -1.0)
    along = np.array([-normal[1], normal[0]])
    x = np.outer(y * rng.uniform(0.5, 2, rows), normal) + np.outer(rng.normal(size=rows), along)
    return x, y


# ---- flows that diverge -------------------------------------------------------------------------


def jump_target(seed: int, t1: float = 1e6) -> Flow:
    """The indicator of x > ½ on [0, 1]: width 2, a ramp that gets steeper forever."""
    step = piecewise.PiecewisePolynomial([0.0, 0.5, 1.0], [[0.0], [1.0]])
    scale = 1 + 0.5 * np.random.default_rng(seed).uniform() if seed else 1.0
    w, v = 2 * scale, 1.5 * scale
    net = gflow.ShallowNet.from_arrays([[w], [w]], [-w / 4, -3 * w / 4], [v, -v], 0.0)
    return Flow(gflow.PopulationRisk(step, piecewise.uniform(0, 1)), net, t1)


def linear_classifier(seed: int, t1: float = 1e6) -> Flow:
    """Logistic loss of w·x on separable rows: L ~ 1/t, ‖w‖ ~ log t."""
    rng = np.random.default_rng(seed)
    x, y = separable(rng, 8)
    net = Linear(jnp.asarray(rng.normal(size=2)))
    return Flow(gflow.EmpiricalRisk(x, y, loss="logistic"), net, t1)


def homogeneous_classifier(seed: int, t1: float = 1e7) -> Flow:
    """Logistic loss of a ReLU network without biases: L ~ 1/(t log t), ‖θ‖ ~ √log t."""
    x, y = separable(np.random.default_rng(seed), 6)
    net = gflow.ShallowNet(2, 3, key=jax.random.key(seed), use_bias=False)
    return Flow(gflow.EmpiricalRisk(x, y, loss="logistic"), net, t1)


def softplus_valley(seed: int, t1: float = 1e6) -> Flow:
    """softplus(−x) + y²: x ~ log t."""
    x, y = np.random.default_rng(seed).normal(size=2)
    risk = lambda p: jax.nn.softplus(-p.x) + p.y**2
    return Flow(risk, Point(jnp.asarray(x), jnp.asarray(y)), t1)


def inverse_valley(seed: int, t1: float = 1e6) -> Flow:
    """1 + 1/x^k + (y − 1/x)²: x ~ t^{1/(k+2)}."""
    x, y = 1 + np.random.default_rng(seed).uniform(size=2)
    k = 1 + seed % 3
    risk = lambda p: 1 + p.x**-k + (p.y - 1 / p.x) ** 2
    return Flow(risk, Point(jnp.asarray(x), jnp.asarray(y)), t1)


# ---- flows that converge ------------------------------------------------------------------------


def on_a_line(seed: int, t1: float = 1e4) -> Flow:
    """Twelve rows of a sine, 4 ReLU units."""
    x = np.linspace(-1, 1, 12)
    net = gflow.ShallowNet(1, 4, key=jax.random.key(seed))
    return Flow(gflow.EmpiricalRisk(x[:, None], np.sin(3 * x)), net, t1)


def regression(seed: int, t1: float = 1e4) -> Flow:
    """Least squares with eigenvalues from 2 down to 2e-5."""
    rng = np.random.default_rng(seed)
    rows = np.linalg.qr(rng.normal(size=(6, 6)))[0] * np.geomspace(1, 10**-2.5, 6)[:, None]
    y = rows @ rng.normal(size=6)
    return Flow(gflow.EmpiricalRisk(rows * 6**0.5, y * 6**0.5), Linear(jnp.zeros(6)), 100 * t1)


def quartic(seed: int, t1: float = 1e5) -> Flow:
    """1 + (x − 1)⁴ + (y + 1)²: a degenerate minimum, the gap ~ t⁻²."""
    x, y = np.random.default_rng(seed).normal(size=2)
    risk = lambda p: 1 + (p.x - 1) ** 4 + (p.y + 1) ** 2
    return Flow(risk, Point(jnp.asarray(x), jnp.asarray(y)), t1)


def decayed_classifier(seed: int, t1: float = 1e6) -> Flow:
    """The linear classifier with weight decay: it grows like a logarithm at first."""
    risk, net, _ = linear_classifier(seed)
    return Flow(gflow.PenalisedRisk(risk, weight_decay=1e-4), net, t1)


def product(seed: int, t1: float = 1e3) -> Flow:
    """(x y − 1)², a hyperbola of minima."""
    x, y = 0.1 * np.random.default_rng(seed).normal(size=2) + 0.2
    return Flow(lambda p: (p.x * p.y - 1) ** 2, Point(jnp.asarray(x), jnp.asarray(y)), t1)


# ---- flows that end early -----------------------------------------------------------------------


def cubic_pass(seed: int, t1: float = 1e3) -> Flow:
    """A saddle that the flow comes near to, and leaves at t ≈ 2e3 for a minimum."""
    y = 1e-6 * (1 + seed)
    risk = lambda p: p.x**2 + (p.y**2 - 1) ** 2 / 800 + 1
    return Flow(risk, Point(jnp.asarray(1.0), jnp.asarray(y)), t1)


class Family(NamedTuple):
    """Flows of one kind: their fate, a maker for each number, the number, and whether they end
    before it shows."""

    fate: str
    make: Callable[[int], Flow]
    number: int
    early: bool = False


FAMILIES = {
    "jump target": Family("diverges", jump_target, 4),
    "linear classifier": Family("diverges", linear_classifier, 4),
    "homogeneous classifier": Family("diverges", homogeneous_classifier, 4),
    "softplus(-x) + y²": Family("diverges", softplus_valley, 4),
    "1/x^k + (y - 1/x)²": Family("diverges", inverse_valley, 4),
    "ReLU on a line": Family("converges", on_a_line, 4),
    "least squares": Family("converges", regression, 4),
    "quartic": Family("converges", quartic, 4),
    "classifier with decay": Family("converges", decayed_classifier, 4),
    "(xy - 1)²": Family("converges", product, 4),
    "early: jump target": Family("diverges", lambda k: jump_target(k, 30.0), 4, True),
    "early: linear classifier": Family("diverges", lambda k: linear_classifier(k, 30.0), 2, True),
    "early: homogeneous": Family("diverges", lambda k: homogeneous_classifier(k, 100.0), 2, True),
    "early: ReLU on a line": Family("converges", lambda k: on_a_line(k, 3.0), 4, True),
    "early: least squares": Family("converges", lambda k: regression(k, 1.0), 2, True),
    "early: decay": Family("converges", lambda k: decayed_classifier(k, 3e3), 2, True),
    "early: at a saddle": Family("converges", cubic_pass, 2, True),
    "early: (xy - 1)²": Family("converges", lambda k: product(k, 0.3), 2, True),
}


def fates(name: str, number: int, seed: int) -> harness.Row:
    """What is said of the flows of a family."""
    family, begin = FAMILIES[name], time.perf_counter()
    row: harness.Row = {"family": name, "fate": family.fate, "number": number}
    row |= {"called": 0, "opposite": 0, "undecided": 0, "verdicts": []}
    with harness.failure_in(row):
        for k in range(number):
            flow = family.make(seed + k)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = gflow.solve_flow(flow.risk, flow.net, t1=flow.t1)
                follow = flow.t1 if family.early else None
                said = gflow.asymptotics(run, flow.risk, follow=follow)
            same = said.behaviour == family.fate
            open_ = said.behaviour is gflow.Behaviour.UNDECIDED
            row["called"] += same
            row["undecided"] += open_
            row["opposite"] += not same and not open_
            row["verdicts"].append(said.verdict)
    return row | {"run_s": time.perf_counter() - begin}


# ---- numbers of theory --------------------------------------------------------------------------


def number(quantity: str, theory: float, found: float, bound: float) -> harness.Row:
    """A number of theory beside gflow's; farther apart than the bound, they are a failure."""
    row: harness.Row = {"family": "", "quantity": quantity}
    row |= {"theory": float(theory), "gflow": float(found), "bound": bound}
    if not abs(found - theory) <= bound:
        row["error"] = f"{quantity}: {found:.9g} instead of {theory:.9g}"
    return row


def solved(flow: Flow) -> gflow.Trajectory:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gflow.solve_flow(flow.risk, flow.net, t1=flow.t1)


def of_the_jump_target() -> list[harness.Row]:
    """The constant (1/12) √(3√5) of L √t, and the exponents."""
    flow = jump_target(0, 1e8)
    run = solved(flow)
    said = gflow.asymptotics(run, flow.risk)
    constant = float(run.risk[-1] * jnp.sqrt(run.ts[-1]))
    rate = said.risk_rate.value if said.risk_rate is not None else np.nan
    return [
        number("jump: L √t at t = 1e8", (3 * 5**0.5) ** 0.5 / 12, constant, 1e-5),
        number("jump: p of ‖θ‖ ~ t^p", 0.25, said.norm_exponent, 5e-4),
        number("jump: p of L ~ t^-p", 0.5, rate, 5e-4),
        number("jump: limit of the risk", 0.0, said.risk_limit, 1e-8),
    ]


def margin_point(risk: gflow.EmpiricalRisk, net: Any, degree: int) -> np.ndarray:
    """The direction of the KKT point of min ‖θ‖² with all margins at least 1, next to a network, by
    SciPy's SLSQP."""
    theta, unravel = ravel_pytree(net)
    margins = jax.jit(lambda p: risk.y * risk.predictions(unravel(p)))
    slopes = jax.jit(jax.jacobian(margins))
    start = np.asarray(theta) / float(jnp.min(margins(theta))) ** (1 / degree)
    constraint = {
        "type": "ineq",
        "fun": lambda p: np.asarray(margins(p)) - 1,
        "jac": lambda p: np.asarray(slopes(jnp.asarray(p))),
    }
    options = {"ftol": 1e-12, "maxiter": 500}
    found = minimize(
        lambda p: p @ p / 2, start, jac=lambda p: p, constraints=constraint, options=options
    )
    if not found.success:
        raise RuntimeError(found.message)
    return found.x / np.linalg.norm(found.x)


def of_classifiers(seed: int) -> list[harness.Row]:
    """The powers of log t, and the distance of the direction from that of the margin problem."""
    rows = []
    for name, make, degree in (
        ("linear", linear_classifier, 1),
        ("ReLU", homogeneous_classifier, 2),
    ):
        flow = make(seed, 1e8)
        run = solved(flow)
        said = gflow.asymptotics(run, flow.risk)
        log_power = float(said.risk_law.split("^-(")[-1].split(" ")[0])
        there = np.asarray(ravel_pytree(said.direction)[0])
        apart = float(np.linalg.norm(there - margin_point(flow.risk, run.final, degree)))
        rows += [
            number(f"{name}: q of ‖θ‖ ~ (log t)^q", 1 / degree, said.norm_log_exponent, 0.01),
            number(f"{name}: c of L ~ 1/(t log^c t)", 2 - 2 / degree, log_power, 0.02),
            number(f"{name}: direction from the margin's", 0.0, apart, 1e-3),
        ]
    return rows


def of_alignment(t1: float) -> list[harness.Row]:
    """The spurious stationary point of Boursier and Flammarion (JMLR 2025), risk 20.48/117."""
    x, y = np.array([-0.75, -0.5, 0.125]), np.array([1.1, 0.1, 0.8])
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(2, 60)) * 1e-3 / 60**0.5
    v = np.hypot(w, b) * rng.choice([-1.0, 1.0], 60)
    net = gflow.ShallowNet.from_arrays(w[:, None], b, v, None)
    flow = Flow(gflow.EmpiricalRisk(x[:, None], y), net, t1)
    said = gflow.asymptotics(solved(flow), flow.risk)
    return [number(f"spurious point: risk ({said.behaviour})", 20.48 / 117, said.risk_limit, 1e-9)]


def of_a_channel() -> list[harness.Row]:
    """A valley to infinity, whose risk falls to 1 like t^{-1/3}, beside a flat minimum of risk 0.9
    at y = 6."""
    valley = lambda p: 1 + 1 / jnp.sqrt(1 + p.x**2) + (p.y - 1 / (2 + p.x**2)) ** 2
    hole = lambda p: jnp.exp(-((p.y - 6) ** 2)) * (1 - 0.1 * p.x**2 / (1 + p.x**2))
    # Bounded, as exp(-36) x² would end the valley at x = 6e5.
    floor = lambda p: 0.9 + 1e-2 * p.x**2 / (1 + p.x**2)
    risk = lambda p: valley(p) * (1 - hole(p)) + hole(p) * floor(p)
    run = solved(Flow(risk, Point(jnp.asarray(2.0), jnp.asarray(0.1)), 1e6))
    said = gflow.asymptotics(run, risk)
    exponent = said.risk_rate.value if said.risk_rate is not None else np.nan
    return [
        number(f"channel: limit of the risk ({said.behaviour})", 1.0, said.risk_limit, 1e-3),
        number("channel: p of ‖θ‖ ~ t^p", 1 / 3, said.norm_exponent, 1e-3),
        number("channel: p of the gap", 1 / 3, exponent, 2e-2),
    ]


def of_a_polynomial_target(t1: float) -> list[harness.Row]:
    """x² by two softplus units, log(1 + e^z), on [-1, 1]: the risk falls to 0 at infinity, where
    the units are quadratics."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    risk = gflow.EmpiricalRisk(nodes[:, None], nodes**2, weights)
    w = np.array([0.7, -0.7])
    net = gflow.ShallowNet.from_arrays(
        w[:, None], np.zeros(2), np.full(2, 4 / 0.49), -8 / 0.49 * np.log(2), activation="softplus"
    )
    said = gflow.asymptotics(solved(Flow(risk, net, t1)), risk)
    return [number(f"softplus on x²: limit ({said.behaviour})", 0.0, said.risk_limit, 1e-5)]


def summary(rows: list[harness.Row]) -> list[harness.Row]:
    known = [row for row in rows if "called" in row]
    total = lambda name, chosen: sum(row[name] for row in chosen)
    parts = []
    for fate in ("converges", "diverges"):
        some = [r for r in known if r["fate"] == fate and not r["family"].startswith("early")]
        parts.append(f"{total('called', some)} of {total('number', some)} flows are called {fate}")
    early = [row for row in known if row["family"].startswith("early")]
    sentence = (
        f"{parts[0]}, {parts[1]}; of {total('number', early)} that end early "
        f"{total('undecided', early)} are left open; {total('opposite', known)} of all are called "
        "the opposite."
    )
    return [{"sentence": sentence, "opposite": total("opposite", known)}]


def main() -> int:
    options = harness.parser("asymptotics", __doc__, precisions=("float64",))
    options.add_argument("--seed", type=int, default=0, help="the first seed of the random flows")
    args = harness.start(options)
    rows = [
        fates(name, 1 if args.quick else family.number, args.seed)
        for name, family in FAMILIES.items()
    ]
    for measured in (
        of_the_jump_target,
        lambda: of_classifiers(args.seed),
        lambda: of_alignment(1e4 if args.quick else 1e5),
        of_a_channel,
        lambda: of_a_polynomial_target(1e4 if args.quick else 1e6),
    ):
        row: harness.Row = {"family": "", "quantity": "not computed"}
        with harness.failure_in(row):
            rows += measured()
        rows += [row] if "error" in row else []
    code = harness.report(args, rows, COLUMNS, summary(rows))
    return int(bool(code or any(row.get("opposite") for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
