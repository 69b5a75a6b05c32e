r"""How many linear regions a classifier of one input has: few, whatever the width and the sample.

The labels are signs of a teacher with r units, and the student is trained on the logistic loss.
Its flow tends in direction to a network of full accuracy with O(r) linear regions: the kinks of its
many units gather at a few places. Regions are counted between kinks that lie 0.03 apart and change
the slope by a hundredth of the sum of all changes. Here two kinks for each unit of the teacher are
enough, 2r + 1 regions.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_least, at_most, panels

SOURCE = "Safran, Vardi, Lee, arXiv 2205.09072"
UNITS, MOST_ROWS, MOST_UNITS = 3, 60, 40
CASES = ((15, 10), (15, 40), (60, 10), (60, 40))
GRID = jnp.linspace(-1, 1, 501)
TS = np.geomspace(1e-1, 1e5, 60)
FEW = "10 units are fewer than the theorem asks for: some starts end at other minima"


def _teacher() -> gflow.ShallowNet:
    """With signs that change at −0.6, −0.1 and 0.5."""
    return gflow.ShallowNet.from_arrays(
        np.ones((UNITS, 1)), [1.0, 0.35, -0.2], [1.0, -2.0, 2.0], -0.4
    )


def _student(width: int, key: jax.Array) -> gflow.ShallowNet:
    """A small balanced start; the units beyond the width are dead."""
    keys, used = jax.random.split(key), jnp.arange(MOST_UNITS) < width
    w, b = 0.3 / np.sqrt(width) * jax.random.normal(keys[0], (2, MOST_UNITS))
    v = jax.random.rademacher(keys[1], (MOST_UNITS,)) * jnp.sqrt(w**2 + b**2)
    w, b, v = (jnp.where(used, a, dead) for a, dead in ((w, 0.0), (b, -1.0), (v, 0.0)))
    return gflow.ShallowNet.from_arrays(w[:, None], b, v, None)


def _regions(net: gflow.ShallowNet) -> int:
    """The number of linear regions in (−1, 1)."""
    w, b, v = (np.asarray(a) for a in (net.w[:, 0], net.b, net.v))
    used = (w != 0) & (np.abs(b) < np.abs(w))
    places, jumps = -b[used] / w[used], v[used] * np.abs(w[used])
    order = np.argsort(places)
    groups = np.cumsum(np.diff(places[order], prepend=-1) > 0.03)
    changes = np.abs(np.bincount(groups, jumps[order]))
    return 1 + int(np.sum(changes > 0.01 * np.sum(changes)))


def exhibit(*, long: bool = False) -> Exhibit:
    """One start for each number of rows and units, or 5 if it is long."""
    figure, axes = panels(2)
    claims, x = [], jax.random.uniform(jax.random.key(0), (MOST_ROWS, 1), minval=-1)
    y = jnp.sign(jax.vmap(_teacher())(x))
    for rows, width in CASES:
        weights = np.arange(MOST_ROWS) < rows
        risk = gflow.EmpiricalRisk(x, y, weights, loss="logistic")
        nets = [_student(width, key) for key in jax.random.split(jax.random.key(1), 20)]
        nets = nets[: 5 if long else 1]
        flows = [gflow.solve_flow(risk, net, t1=TS[-1], ts=TS, rtol=1e-4) for net in nets]
        signs = [jnp.sign(risk.predictions(flow.final)) for flow in flows]
        right = min(float(np.mean((y == sign)[weights])) for sign in signs)
        most = max(_regions(flow.final) for flow in flows)
        words = f"{rows} rows, {width} units"
        claims += [
            at_least(f"{words}: accuracy", SOURCE, 1.0, right).because(FEW, seen=width < 40),
            at_most(f"{words}: linear regions", SOURCE, 2 * UNITS + 1, most),
        ]
        axes[0].semilogx(TS, [_regions(net) for net in flows[0]], label=words)
        output = jax.vmap(flows[0].final)(GRID[:, None])
        axes[1].plot(GRID, output / jnp.max(jnp.abs(output)))
    axes[0].legend()
    axes[0].set(xlabel="t", ylabel="linear regions in (−1, 1)")
    axes[1].plot(x, y, "k|")
    axes[1].set(xlabel="x", ylabel="output, scaled, and labels")
    return Exhibit(tuple(claims), figure)
