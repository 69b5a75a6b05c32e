"""Flows on finite data in closed form: crossings, slides, branches, saddles, power laws.

Most have one unit relu(⟨w, x⟩) whose output weight is 1. docs/theory/test_systems.md numbers them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gflow.testsets.known_flow import EventKind, KnownEvent, KnownFlow
from gflow.testsets.problems import LayeredNetwork, OnData, Vector

# Closed forms are as accurate as their evaluation in float64.
ROUNDING = 1e-14


def _unit(*w: float) -> LayeredNetwork:
    """relu(⟨w, x⟩), of which w is trained."""
    return LayeredNetwork({"W1": np.array([w]), "W2": np.ones((1, 1))}, ("W1",))


def _on(network: LayeredNetwork, rows: Sequence[Sequence[float]]) -> OnData:
    """Rows (x_1, ..., x_d, y)."""
    table = np.array(rows, float)
    return OnData(network, table[:, :-1], table[:, -1])


def _solved(name: str, shows: str, source: str, problem: Any, times: Any, *branches: Any, **more):
    answers = tuple(np.reshape(branch, (len(times), -1)) for branch in branches)
    options = {"known": "closed form", "accuracy": ROUNDING} | more
    return KnownFlow(name, shows, source, problem, np.asarray(times, float), answers, **options)


def linear_flow(matrix: Vector, target: Vector, start: Vector, times: Any) -> Vector:
    """θ at the times (k, size) of θ' = target − matrix θ, for a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    t = np.asarray(times, float)[:, None]
    safe = np.where(np.abs(values) < 1e-14, 1.0, values)
    grown = np.where(np.abs(values) < 1e-14, t, -np.expm1(-safe * t) / safe)
    return (np.exp(-values * t) * (start @ vectors) + grown * (target @ vectors)) @ vectors.T


def root_of(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a continuous function of opposite signs at both ends is 0, to rounding."""
    import scipy.optimize

    options = {"xtol": 1e-15, "rtol": 1e-15}
    return float(scipy.optimize.brentq(function, low, high, **options))  # pyright: ignore[reportArgumentType]


def _active_rows(problem: OnData, active: Sequence[int], start: Any, times: Any) -> Vector:
    """w at the times while these rows are active, for a single unit."""
    x, y, scale = problem.x[list(active)], problem.y[list(active)], 2 / len(problem.y)
    return linear_flow(scale * x.T @ x, scale * y @ x, np.asarray(start, float), times)


def _events(kind: EventKind, time: float, *rows: int) -> tuple[KnownEvent, ...]:
    return tuple(KnownEvent(float(time), kind, 0, 0, row) for row in rows)


def _crossing() -> KnownFlow:
    t, at = np.array([0.3, 0.6, 0.8, 1.5, 4.0]), np.log(2)
    w = np.where(t < at, 1 - 2 * np.exp(-t), 2 - 2 * np.exp(at - t))
    problem = _on(_unit(-1.0), [(1, 2), (-1, -1)])
    events = _events("cross", at, 0, 1)
    return _solved("crossing", "crosses two kinks at once", "O1", problem, t, w, events=events)


def _stop_in_finite_time() -> KnownFlow:
    t, at = np.array([0.3, 0.6, 0.8, 1.5, 4.0]), np.log(2)
    w = np.where(t < at, 2 * np.exp(-t) - 1, 0.0)
    problem = _on(_unit(1.0), [(1, -1), (-1, -1)])
    shows, events = "stops on two kinks in finite time", _events("slide begins", at, 0, 1)
    return _solved("stop_in_finite_time", shows, "O2", problem, t, w, events=events)


def _spurious_rest() -> KnownFlow:
    t, at = np.array([0.3, 0.6, 0.8, 1.5, 4.0]), np.log(2)
    problem = _on(_unit(-1.0), [(1, 1), (-1, -1)])
    shows = "passes w = 0, where autodiff has slope 0 although the risk is analytic"
    w, events = 1 - 2 * np.exp(-t), _events("cross", at, 0, 1)
    return _solved("spurious_rest", shows, "O3", problem, t, w, events=events)


def _slide_and_exit() -> KnownFlow:
    t, at = np.array([0.3, 0.6, 0.9, 1.2, 3.0, 12.0]), np.log(2.5)
    problem = _on(_unit(0.0, 2.5), [(1, 0, -1), (-1, 0, -1), (1, 1, 3), (0, 1, 7)])
    sliding = np.column_stack([0 * t, 5 - 2.5 * np.exp(-t)])
    after = _active_rows(problem, (1, 2, 3), (0.0, 4.0), np.maximum(t - at, 0))
    w = np.where(t[:, None] < at, sliding, after)
    events = _events("slide begins", 0.0, 0, 1) + _events("slide ends", at, 0, 1)
    shows = "starts on a kink, slides along it and leaves it"
    return _solved("slide_and_exit", shows, "O4", problem, t, w, events=events)


def _arrive_slide_exit() -> KnownFlow:
    t = np.array([0.1, 0.2, 0.3, 0.6, 1.0, 1.2, 3.0, 20.0])
    begins = 1.5 * np.log(7 / 6)
    ends = begins + 0.75 * np.log(3)
    problem = _on(_unit(1.0, 1.0), [(1, 0, -8), (1, 1, 4), (0, 1, 6)])
    before = _active_rows(problem, (0, 1, 2), (1.0, 1.0), t)
    sliding = np.column_stack([0 * t, 5 - 3 * np.exp(-4 / 3 * (t - begins))])
    after = _active_rows(problem, (1, 2), (0.0, 4.0), np.maximum(t - ends, 0))
    w = np.where(t[:, None] < begins, before, np.where(t[:, None] < ends, sliding, after))
    events = _events("slide begins", begins, 0) + _events("slide ends", ends, 0)
    shows = "arrives at a kink, slides along it and leaves on the other side"
    return _solved("arrive_slide_exit", shows, "O15", problem, t, w, events=events)


def _slide_to_fork() -> KnownFlow:
    """N = relu(wx) + c: the slide on w = 0 repels from c = 1 on."""
    rows = [(1, 1), (-1, 1), (0, -2)]
    arrays = {"W1": [[0.1]], "b1": [0.0], "W2": [[1.0]], "b2": [2.0]}
    arrays = {name: np.array(array) for name, array in arrays.items()}
    problem = _on(LayeredNetwork(arrays, ("W1", "b2")), rows)
    # Row 0 is active for w > 0: (w, c)' = −⅔(w + c − 1, w + 3c); by symmetry w < 0 mirrors it.
    matrix, target = np.array([[1.0, 1], [1, 3]]) * 2 / 3, np.array([2 / 3, 0])
    inside = lambda start, times: linear_flow(matrix, target, np.array(start), times)
    begins = root_of(lambda t: inside((0.1, 2.0), [t])[0, 0], 0.0, 0.25)
    c0 = inside((0.1, 2.0), [begins])[0, 1]
    forks = begins + np.log(c0) / 2
    t = np.array([0.05, 0.3, 0.6, 1.0, 2.0, 10.0])
    sliding = np.column_stack([0 * t, c0 * np.exp(-2 * (t - begins))])
    start = np.where(t[:, None] < begins, inside((0.1, 2.0), t), sliding)
    right = inside((0.0, 1.0), np.maximum(t - forks, 0))
    branches = [np.where(t[:, None] < forks, start, side * right) for side in ((-1, 1), (1, 1))]
    events = _events("slide begins", begins, 0, 1) + _events("slide branches", forks, 0, 1)
    shows = "slides to a point from which it leaves to either side, or to none: three branches"
    source = "a linear equation on each side"
    return _solved("slide_to_fork", shows, source, problem, t, *branches, start, events=events)


def _dead_units() -> KnownFlow:
    t = np.array([0.1, 0.5, 2.0, 10.0])
    x, y = np.linspace(0, 1, 5), np.array([0.0, 1, -1, 2, 3])
    arrays = {"W1": [[-1.0], [0.5]], "b1": [-0.5, -2.0], "W2": [[1.0, -1.0]], "b2": [3.0]}
    arrays = {name: np.array(array) for name, array in arrays.items()}
    problem = OnData(LayeredNetwork(arrays, tuple(arrays)), x[:, None], y)
    theta = np.tile(problem.network.start, (len(t), 1))
    theta[:, -1] = y.mean() + (3 - y.mean()) * np.exp(-2 * t)
    shows = "no unit is active: only the output bias moves, to the mean"
    return _solved("dead_units", shows, "O9", problem, t, theta)


def _output_layer() -> KnownFlow:
    t, x = np.array([0.1, 1.0, 10.0, 100.0, 1e4]), np.linspace(-1, 1, 20)
    w = np.where(np.arange(8) % 2, -1.0, 1.0)
    b = -w * np.linspace(-0.8, 0.8, 8)
    arrays = {"W1": w[:, None], "b1": b, "W2": np.zeros((1, 8)), "b2": np.zeros(1)}
    problem = OnData(LayeredNetwork(arrays, ("W2", "b2")), x[:, None], np.sin(3 * x))
    features = np.column_stack([np.maximum(x[:, None] * w + b, 0), np.ones(20)])
    matrix, target = features.T @ features / 10, features.T @ problem.y / 10
    answer = linear_flow(matrix, target, np.zeros(9), t)
    shows = "only the output layer moves: a stiff linear equation"
    return _solved("output_layer", shows, "O14", problem, t, answer, accuracy=1e-10)


def _product(name: str, shows: str, start: tuple[float, float], goal: float, t: Any) -> KnownFlow:
    """N = v w at x = 1: with v² − w² = D and 2vw = D sinh s, e^s obeys a Riccati equation."""
    w, v = start
    arrays = {"W1": np.array([[w]]), "W2": np.array([[v]])}
    network = LayeredNetwork(arrays, ("W1", "W2"), "identity")
    difference, goal = abs(v * v - w * w), float(goal)
    if difference == 0:
        g = goal / (1 + (goal / w**2 - 1) * np.exp(-4 * goal * t))
        large = small = np.sqrt(g)
    else:
        s = riccati(-2 * difference, 4 * goal, np.arcsinh(2 * v * w / difference), t)
        large, small = np.sqrt(difference) * np.cosh(s / 2), np.sqrt(difference) * np.sinh(s / 2)
    answer = np.column_stack([small, large] if abs(v) > abs(w) else [large, small])
    source = "O10" if difference == 0 else "O11"
    return _solved(name, shows, source, _on(network, [(1, goal)]), t, answer)


def riccati(a: float, b: float, s0: float, t: Any) -> Vector:
    """s at the times t of s' = a sinh s + b, by the equation of tanh(s/2) = p."""
    # p' = a p + b (1 − p²)/2 has rests r±; (p − r₊)/(p − r₋) is an exponential.
    root = np.sqrt(a * a + b * b)
    high, low = (a + root) / b, (a - root) / b
    ratio = (np.tanh(s0 / 2) - high) / (np.tanh(s0 / 2) - low) * np.exp(-root * np.asarray(t))
    return 2 * np.arctanh((high - low * ratio) / (1 - ratio))


def _relu_chain() -> KnownFlow:
    t, start = np.array([1.0, 10.0, 100.0, 1e4, 1e6]), 1.2
    arrays = {f"W{k}": np.array([[start]]) for k in (1, 2, 3)}
    problem = _on(LayeredNetwork(arrays, tuple(arrays)), [(1, 0)])
    w = (start**-4.0 + 8 * t) ** -0.25
    shows = "w₃ relu(w₂ relu(w₁)) falls to 0 like a power of t"
    return _solved("relu_chain", shows, "O11", problem, t, np.column_stack([w, w, w]))


def _orthonormal_rows() -> KnownFlow:
    y, size, t = np.array([1.0, 2.0, -1.0, -0.5]), 1e-3, np.array([1.0, 3.0, 5.0, 8.0, 20.0])
    up, down = np.maximum(y, 0), np.maximum(-y, 0)
    high, low = np.linalg.norm(up), np.linalg.norm(down)
    root = np.sqrt(size)
    arrays = {"W1": root * np.array([up / high, down / low]), "W2": root * np.array([[1.0, -1]])}
    problem = OnData(LayeredNetwork(arrays, tuple(arrays)), np.eye(4), y)
    # Of a unit of size s: u' = 4us(1 − u/s)/n.
    modes = [s / (1 + (s / size - 1) * np.exp(-s * t)) for s in (high, low)]
    p, q = np.sqrt(modes)
    inner = np.column_stack([np.outer(p, up / high), np.outer(q, down / low)])
    answer = np.column_stack([inner, p, -q])
    shows = "from saddle to saddle; each unit stays on the kinks of the other's rows"
    return _solved("orthonormal_rows", shows, "O10", problem, t, answer)


def _aligned_modes() -> KnownFlow:
    t, root = np.array([0.5, 1.0, 1.2, 2.0, 5.0]), np.sqrt(1e-3)
    return _product("aligned_modes", "two linear layers from near a saddle", (root, root), 1.5, t)


def _product_of_two() -> KnownFlow:
    t = np.array([0.1, 0.5, 1.0, 2.0, 5.0])
    return _product("product", "(uv − 1)², which is smooth: a control", (1.6, 1.2), 1.0, t)


CLOSED_FORMS: dict[str, Callable[[], KnownFlow]] = {
    "crossing": _crossing,
    "stop_in_finite_time": _stop_in_finite_time,
    "spurious_rest": _spurious_rest,
    "slide_and_exit": _slide_and_exit,
    "arrive_slide_exit": _arrive_slide_exit,
    "slide_to_fork": _slide_to_fork,
    "orthonormal_rows": _orthonormal_rows,
    "dead_units": _dead_units,
    "output_layer": _output_layer,
    "aligned_modes": _aligned_modes,
    "product": _product_of_two,
    "relu_chain": _relu_chain,
}
