r"""Early alignment: from small weights the flow ends at a spurious stationary point.

Three rows that one hidden layer can fit. From a small balanced start the units of positive
outer weight all turn one way while the risk hardly moves: (w, b) to $\sum_k y_k (x_k, 1)$. The flow
ends where the network is affine on the rows, the least squares line, however many units there are.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import BLACK, Exhibit, at_least, at_most, equal, panels

SOURCE = "Boursier, Flammarion, arXiv 2401.10791"
X, Y = np.array([-0.75, -0.5, 0.125]), np.array([1.1, 0.1, 0.8])
SMALL, LARGE, T1 = 1e-3, 3.0, 2e3
TRAINED = ("w", "b", "v")


def _balanced(width: int, scale: float) -> gflow.ShallowNet:
    """Units with v_j = ±‖(w_j, b_j)‖, and no output bias."""
    units, signs = jax.random.split(jax.random.key(0))
    w, b = scale / np.sqrt(width) * jax.random.normal(units, (2, width))
    v = jax.random.rademacher(signs, (width,)) * jnp.sqrt(w**2 + b**2)
    return gflow.ShallowNet.from_arrays(w[:, None], b, v, 0.0)


def _units(net: gflow.ShallowNet) -> np.ndarray:
    """w + ib of all units."""
    assert net.b is not None
    return np.asarray(net.w[..., 0] + 1j * net.b)


def _alignment(net: gflow.ShallowNet) -> float:
    """The mean cosine of the units with v > 0 and theory's direction, by squared norm."""
    units, towards = _units(net)[np.asarray(net.v) > 0], np.sum(Y * (X + 1j))
    cosines = np.real(units * towards.conj()) / np.abs(units * towards)
    return float(np.average(cosines, weights=np.abs(units) ** 2))


def exhibit(*, long: bool = False) -> Exhibit:
    """60 units; 200 and 1,000, too, if it is long."""
    risk = gflow.EmpiricalRisk(X[:, None], Y)
    ts = np.geomspace(0.01, T1, 400)
    figure, axes = panels(2)
    claims = []
    for width in (60, 200, 1000) if long else (60,):
        flows = [
            gflow.solve_flow(risk, _balanced(width, scale), t1=T1, ts=ts, trainable=TRAINED)
            for scale in (SMALL, LARGE)
        ]
        small, large = flows
        before = int(np.flatnonzero(small.risk > 0.99 * small.risk[0])[-1])
        aligned = _alignment(jax.tree.map(lambda a, k=before: a[k], small.params))
        words = f"{width} units of size {SMALL}"
        claims += [
            equal(f"{words}: limit of the risk", SOURCE, 20.48 / 117, float(small.risk[-1]), 1e-9),
            at_least(f"{words}: mean cosine before it falls by 1 %", SOURCE, 0.99, aligned),
            at_most(f"{width} units of size {LARGE}: risk", SOURCE, 1e-12, float(large.risk[-1])),
        ]
        for flow, scale in zip(flows, (SMALL, LARGE), strict=True):
            axes[0].loglog(ts, flow.risk, label=f"{width} units of size {scale}")
        axes[1].semilogx(ts, np.unwrap(np.angle(_units(small.params)), axis=0), color=BLACK, lw=0.4)
    axes[0].set(xlabel="t", ylabel="risk", ylim=(1e-6, 3))
    axes[0].legend()
    axes[1].set(xlabel="t", ylabel="direction of (w, b), rad")
    return Exhibit(tuple(claims), figure)
