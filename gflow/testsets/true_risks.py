"""Flows on true risks: units that collapse, in closed form, and smooth ones, certified."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gflow.testsets.closed_forms import ROUNDING, riccati, root_of
from gflow.testsets.known_flow import KnownEvent, KnownFlow
from gflow.testsets.problems import LayeredNetwork, OnDensity, OnGaussian, Vector

SYMMETRIC = np.array([-1.0, 1.0])
ZERO = np.zeros((1, 1))


def _unit(trained: tuple[str, ...], **arrays: float) -> LayeredNetwork:
    shaped = {n: np.full((1, 1) if n[0] == "W" else 1, a) for n, a in arrays.items()}
    return LayeredNetwork(shaped, trained)


def _collapsing(name: str, shows: str, source: str, problem: OnDensity, at: float, t, answer, **to):
    events = (KnownEvent(float(at), "collapse", 0, 0, None),)
    options = {"known": "closed form", "accuracy": ROUNDING} | to
    return KnownFlow(name, shows, source, problem, t, (answer,), events=events, **options)


def _collapse() -> KnownFlow:
    from scipy.integrate import quad

    names = ("W1", "b1", "W2", "b2")
    problem = OnDensity(_unit(names, W1=0.0, b1=0.5, W2=1.0, b2=1.0), SYMMETRIC, ZERO)
    # In the time τ with dτ = 2N dt the unit moves on a hyperbola, and reaches b = 0 at τ₀.
    last, size = np.log(3) / 2, np.sqrt(0.75)
    speed = lambda tau: 2 * (0.75 * np.sinh(last - tau) * np.cosh(last - tau) + 1 - tau)
    passed = lambda tau: quad(lambda a: 1 / speed(a), 0, tau, epsabs=0, epsrel=2e-14)[0]
    at = passed(last)
    t = np.array([0.1, 0.2, 0.3, 0.4, 1.0, 5.0])
    invert = lambda time: root_of(lambda tau: passed(tau) - time, 0, last)
    tau = np.array([invert(time) if time < at else last for time in t])
    c = (1 - tau) * np.exp(-2 * np.maximum(t - at, 0))
    unit = size * np.sinh(last - tau), size * np.cosh(last - tau)
    answer = np.column_stack([0 * t, *unit, c])
    shows = "a unit reaches w = b = 0 in finite time, and stays"
    return _collapsing("collapse", shows, "O5", problem, at, t, answer, accuracy=1e-13)


def _frozen_output_collapse() -> KnownFlow:
    network = _unit(("W1", "b1"), W1=0.0, b1=0.5, W2=1.0, b2=1.0)
    t, at = np.array([0.05, 0.1, 0.2, 0.3, 1.0]), np.log(1.5) / 2
    answer = np.column_stack([0 * t, np.maximum(1.5 * np.exp(-2 * t) - 1, 0)])
    shows = "a unit collapses at full speed, with its output weight held"
    problem = OnDensity(network, SYMMETRIC, ZERO)
    return _collapsing("frozen_output_collapse", shows, "O16", problem, at, t, answer)


def _unit_to_zero() -> KnownFlow:
    """v relu(wx) with v² − w² = D and 2vw = D sinh s: s' = −D sinh(s)/3 − ⅔."""
    w, v = 0.5, 1.0
    network = _unit(("W1", "W2"), W1=w, W2=v)
    target = np.array([-1.0, 0.0, 1.0]), np.array([[0.0, 0.0], [0.0, -1.0]])
    difference = v * v - w * w
    s0 = np.arcsinh(2 * v * w / difference)
    s_at = lambda time: riccati(-difference / 3, -2 / 3, s0, time)
    at = root_of(lambda time: float(s_at(time)), 0, 20)
    t = np.array([0.2, 0.5, 0.8, 1.2, 2.0, 10.0])
    s = np.where(t < at, s_at(np.minimum(t, at)), 0.0)
    answer = np.sqrt(difference) * np.column_stack([np.sinh(s / 2), np.cosh(s / 2)])
    shows = "a unit without bias reaches 0 against a target with a kink, and stays"
    return _collapsing("unit_to_zero", shows, "O17", OnDensity(network, *target), at, t, answer)


def certified(field: Any, start: Vector, times: Vector) -> tuple[Vector, float]:
    """θ at the times by Dopri8, and its largest relative difference from LSODA's."""
    from scipy.integrate import solve_ivp

    span = 0.0, times[-1]
    solve = lambda method, rtol: (
        solve_ivp(field, span, start, method, times, rtol=rtol, atol=1e-2 * rtol).y.T
    )
    one, two = solve("DOP853", 1e-13), solve("LSODA", 1e-12)
    scale = np.max(np.linalg.norm(one, axis=1))
    return one, float(np.max(np.linalg.norm(one - two, axis=1)) / scale)


def _parabola() -> KnownFlow:
    w, b, v = [[1.0], [-0.5]], [-0.3, 0.4], [[0.8, -0.6]]
    arrays = {"W1": np.array(w), "b1": np.array(b), "W2": np.array(v), "b2": np.array([0.1])}
    network = LayeredNetwork(arrays, tuple(arrays))
    problem = OnDensity(network, np.array([0.0, 1.0]), np.array([[0.0, 0.0, 1.0]]))
    t = np.array([1.0, 5.0, 20.0])
    answer, accuracy = certified(problem.field, network.start, t)
    shows = "two units on x²: a smooth flow of moving breakpoints"
    source = "O6; SciPy's DOP853 and LSODA"
    return KnownFlow("parabola", shows, source, problem, t, (answer,), "certified", accuracy)


def _student_and_teacher() -> KnownFlow:
    """In polar coordinates about the teacher, where it is two equations."""
    size, angle, t = 0.5, 2.5, np.array([0.5, 1.0, 2.0, 5.0, 10.0])
    start = size * np.array([np.cos(angle), np.sin(angle)])
    arrays = {"W1": start[None], "W2": np.ones((1, 1))}
    problem = OnGaussian(LayeredNetwork(arrays, ("W1",)), np.array([1.0, 0.0]))

    def polar(_: float, state: Vector) -> Vector:
        radius, phi = state
        grown = (np.sin(phi) + (np.pi - phi) * np.cos(phi)) / np.pi - radius
        return np.array([grown, -(np.pi - phi) * np.sin(phi) / (np.pi * radius)])

    found, accuracy = certified(polar, np.array([size, angle]), t)
    radius, phi = found.T
    answer = np.column_stack([radius * np.cos(phi), radius * np.sin(phi)])
    shows = "one unit turns to its teacher, on Gaussian inputs"
    source = "O13; SciPy's DOP853 and LSODA, in polar coordinates"
    name, known = "student_and_teacher", "certified"
    return KnownFlow(name, shows, source, problem, t, (answer,), known, accuracy)


TRUE_RISKS: dict[str, Callable[[], KnownFlow]] = {
    "collapse": _collapse,
    "frozen_output_collapse": _frozen_output_collapse,
    "unit_to_zero": _unit_to_zero,
    "parabola": _parabola,
    "student_and_teacher": _student_and_teacher,
}
