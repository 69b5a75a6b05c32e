r"""Spurious minima of students and teachers: how often, at which values, with which curvature.

Standard normal inputs, k units, as many orthonormal teachers, outer weights 1 and fixed, no biases.
Safran and Shamir counted the ends of gradient descent that are no global minima among 1,000 random
starts; their values are with a factor ½ before the risk.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_most, equal, panels

SOURCE = "Safran, Shamir, arXiv 1712.08968"
# k: how many of 1,000 starts, the lowest value, the smallest eigenvalue of the Hessian.
PUBLISHED = {
    7: (55, 0.0232027149136, 0.01405901),
    8: (126, 0.0215080371715, 0.02134659),
    9: (218, 0.0200141758085, 0.02718209),
}
T1, TRAINED = 300.0, ("w",)


def _student(k: int, key: jax.Array) -> gflow.ShallowNet:
    """With weights as Xavier draws them."""
    w = jax.random.normal(key, (k, k)) / jnp.sqrt(k)
    return gflow.ShallowNet.from_arrays(w, None, jnp.ones(k), 0.0)


def exhibit(*, long: bool = False) -> Exhibit:
    """300 starts for k = 8; 1,000 for k = 7, 8 and 9 if it is long."""
    number = 1_000 if long else 300
    figure, (axes,) = panels(1)
    claims = []
    options = {"t1": T1, "ts": [T1], "trainable": TRAINED, "rtol": 1e-5}
    for k in PUBLISHED if long else (8,):
        count, value, curvature = PUBLISHED[k]
        teacher = gflow.ShallowNet.from_arrays(jnp.eye(k), None, jnp.ones(k), 0.0)
        risk = gflow.GaussianRisk(teacher)
        keys = jax.random.split(jax.random.key(k), number)
        ends = [gflow.solve_flow(risk, _student(k, key), **options) for key in keys]
        risks = np.array([float(end.risk[-1]) for end in ends])
        # Those of the list, to three digits; there are some of higher values.
        stuck = np.flatnonzero(np.abs(risks / 2 - value) < 1e-3 * value)
        point = gflow.refine(risk, ends[stuck[0]].final, trainable=TRAINED)
        chance = count / 1_000
        # Both counts are drawn.
        spread = np.sqrt(chance * (1 - chance) * number * (1 + number / 1_000))
        away = abs(np.sum(risks > 1e-2) - chance * number) / spread
        smallest = float(point.spectrum.eigenvalues[0])
        words = f"k = {k}, {np.sum(risks > 1e-2)} of {number} starts"
        claims += [
            at_most(f"{words} (published: {count} of 1,000): standard errors", SOURCE, 3.0, away),
            equal(f"k = {k}: risk", SOURCE, 2 * value, float(point.risk), 1e-11),
            equal(f"k = {k}: curvature", SOURCE, 2 * curvature, smallest, 1e-6),
        ]
        axes.semilogy(np.sort(np.maximum(risks, 1e-17)), ".", label=f"k = {k}")
    axes.set(xlabel="starts, by risk", ylabel=f"risk at t = {T1:.0f}")
    axes.legend()
    return Exhibit(tuple(claims), figure)
