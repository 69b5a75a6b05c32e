"""The classical Runge–Kutta method of fourth order with step 1/sharpness, as the flow is followed
in studies of the edge of stability (Cohen et al., arXiv 2103.00065)."""

import math
from collections.abc import Callable
from typing import Any

import jax

# Steps from one sharpness to the next.
STEPS = 250
# The parameters at a time and the evaluations of the field, by a start, the time, and what is
# called with the time reached and the evaluations so far, and raises where the run is to end.
Classical = Callable[[Any, float, Callable[[float, int], None]], tuple[Any, int]]


def classical(field: Callable[[Any], Any], sharpness: Callable[[Any], float]) -> Classical:
    """The solve of dθ/dt = field(θ)."""

    @jax.jit
    def advance(theta, h, number):
        def step(_, y):
            k1 = field(y)
            k2 = field(y + h / 2 * k1)
            k3 = field(y + h / 2 * k2)
            return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(y + h * k3))

        return jax.lax.fori_loop(0, number, step, theta)

    def solve(theta, t1, check):
        t, steps = 0.0, 0
        while t < t1:
            check(t, 4 * steps)
            h = 1 / sharpness(theta)
            number = math.ceil((t1 - t) / h)
            if number <= STEPS:
                h, after = (t1 - t) / number, t1
            else:
                number, after = STEPS, t + STEPS * h
            theta, t, steps = (
                jax.block_until_ready(advance(theta, h, number)),
                after,
                steps + number,
            )
        return theta, 4 * steps

    return solve
