r"""How many linear regions a classifier of one input has: few, whatever the width and the sample.

The labels are signs of a teacher with r units, and the student is trained on the logistic loss.
Its flow tends in direction to a network of full accuracy with O(r) linear regions. There the units
with kinks between two neighbouring rows of least margin have at most two directions, one for each
orientation. Labels that change r ≥ 2 times need r regions; two kinks in each interval between
changes make 2r − 1, which the flows reach. Regions are counted between kinks that lie 0.03 apart
and change the slope by a hundredth of the sum of all changes.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, equal, panels

SOURCE = "Safran, Vardi, Lee, arXiv 2205.09072"
MOST_ROWS, MOST_UNITS, GRID, TS = 60, 40, jnp.linspace(-1, 1, 501), np.geomspace(1e-1, 1e5, 60)
THREE, FOUR = (-0.6, -0.1, 0.5), (-0.75, -0.25, 0.25, 0.75)
# Where the labels change, rows, units.
CASES = (((-0.5, 0.5), 60, 40), (THREE, 15, 40), (THREE, 60, 10), (THREE, 60, 40), (FOUR, 60, 40))
FEW = "10 units are fewer than the theorem asks for: some starts end at other minima"


def _teacher(changes: np.ndarray) -> gflow.ShallowNet:
    """With a unit for each change of sign, at given places."""
    kinks = np.concatenate([[-1.0], (changes[1:] + changes[:-1]) / 2])
    v = np.array([1.0, -2.0, 2.0, -2.0])[: len(kinks)]
    return gflow.ShallowNet.from_arrays(np.ones((len(v), 1)), -kinks, v, -1 - changes[0])


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
    """8 starts for each case, or 20 if it is long."""
    number, (figure, axes) = 20 if long else 8, panels(2)
    claims, x = [], jax.random.uniform(jax.random.key(0), (MOST_ROWS, 1), minval=-1)
    for changes, rows, width in CASES:
        r, y = len(changes), jnp.sign(jax.vmap(_teacher(np.array(changes)))(x))
        weights = np.arange(MOST_ROWS) < rows
        risk = gflow.EmpiricalRisk(x, y, weights, loss="logistic")
        nets = [_student(width, key) for key in jax.random.split(jax.random.key(1), number)]
        flows = [gflow.solve_flow(risk, net, t1=TS[-1], ts=TS, rtol=1e-4) for net in nets]
        signs = [jnp.sign(risk.predictions(flow.final)) for flow in flows]
        right = np.array([np.mean((y == sign)[weights]) for sign in signs])
        fits = [flow.final for flow, part in zip(flows, right, strict=True) if part == 1]
        outputs = np.array([jax.vmap(net)(GRID[:, None]) for net in fits])
        turns = np.sum(np.diff(np.sign(outputs), axis=1) != 0, axis=1)
        most = max(_regions(net) for net in fits)
        words = f"r = {r}, {rows} rows, {width} units"
        claims += [
            equal(f"{words}: accuracy", SOURCE, 1, right.min(), 1e-4).because(FEW, width < 40),
            equal(f"{words}: mean number of changes of sign", "the labels", r, turns.mean(), 1e-9),
            equal(f"{words}: most regions (published: O(r))", SOURCE, 2 * r - 1, most, 1e-9),
        ]
        axes[0].semilogx(TS, [_regions(net) for net in flows[0]], label=words)
        axes[1].plot(GRID, outputs[0] / np.max(np.abs(outputs[0])))
    axes[1].legend(*axes[0].get_legend_handles_labels(), loc="lower right", fontsize="small")
    axes[0].set(xlabel="t", ylabel="linear regions in (−1, 1)")
    axes[1].set(xlabel="x", ylabel="output, scaled")
    return Exhibit(tuple(claims), figure)
