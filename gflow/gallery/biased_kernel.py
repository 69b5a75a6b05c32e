r"""Networks in the lazy regime with biased units: their kernel, how few are active, their flow.

For unit inputs, w standard normal, all biases −B and outer weights ±1/√m, the tangent kernel in w
and b tends to

$$H_{ij} = (\rho + 1)\, P(\langle w, x_i\rangle > B, \langle w, x_j\rangle > B),
  \qquad \rho = \langle x_i, x_j\rangle,$$

with an error like m^{-1/2}, and the residuals of the mean of n squares follow
$r(t) \approx e^{-2Ht/n} r(0)$. A unit is active on an input with probability Φ(−B).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm
from scipy.stats import multivariate_normal, norm

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_most, equal, panels

SOURCE = "Yang et al., arXiv 2301.00327"
ROWS, INPUTS, T1 = 6, 4, 12.0
BIASES, WIDTHS, DRAWS = (0.0, 1.0), (64, 256, 1024, 4096), 24


def _net(width: int, bias: float, key: jax.Array) -> gflow.ShallowNet:
    """Each unit twice, with outer weights of both signs, so that N = 0."""
    w = jnp.repeat(jax.random.normal(key, (width // 2, INPUTS)), 2, axis=0)
    signs = jnp.tile(jnp.array([1.0, -1.0]), width // 2)
    b = jnp.full(width, -bias)
    return gflow.ShallowNet.from_arrays(w, b, signs, None, output_scale=width**-0.5)


def _limit(x: np.ndarray, bias: float) -> np.ndarray:
    """H: the kernel of infinite width."""
    cosines = x @ x.T
    chances = np.diag(np.full(len(x), norm.cdf(-bias)))
    for i, j in zip(*np.nonzero(chances == 0), strict=True):
        covariance = np.array([[1, cosines[i, j]], [cosines[i, j], 1]])
        chances[i, j] = multivariate_normal(cov=covariance).cdf([-bias, -bias])  # pyright: ignore[reportArgumentType]
    return (cosines + 1) * chances


def exhibit(*, long: bool = False) -> Exhibit:
    """Flows of 4,096 units, or 32,768 if it is long."""
    width = 32_768 if long else WIDTHS[-1]
    x = np.array(jax.random.normal(jax.random.key(1), (ROWS, INPUTS)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.array(jax.random.rademacher(jax.random.key(2), (ROWS,)), float)
    risk, trained = gflow.EmpiricalRisk(x, y), ("w", "b")
    kernels = jax.jit(jax.vmap(lambda net: gflow.tangent_kernel(risk, net, trained)))
    figure, axes = panels(2)
    claims, ts = [], np.linspace(0, T1, 61)
    for bias, colour in zip(BIASES, (BLACK, RED), strict=True):
        limit, errors = _limit(x, bias), []
        for m in WIDTHS:
            keys = jax.random.split(jax.random.key(m), DRAWS)
            found = kernels(jax.vmap(lambda key, m=m, bias=bias: _net(m, bias, key))(keys))
            errors.append(float(np.sqrt(np.mean((np.asarray(found) - limit) ** 2))))
        slope = -np.polyfit(np.log(WIDTHS), np.log(errors), 1)[0]
        net = _net(width, bias, jax.random.key(3))
        active = float(jnp.mean(jax.vmap(net.preactivations)(risk.x) > 0))
        flow = gflow.solve_flow(risk, net, t1=T1, ts=ts, trainable=trained, rtol=1e-6)
        lazy = np.array([expm(-2 * limit * t / ROWS) @ y for t in ts])
        outputs = np.array([risk.predictions(one) for one in flow])
        away = np.max(np.linalg.norm(y - outputs - lazy, axis=1)) / np.linalg.norm(y)
        words = f"B = {bias:.0f}:"
        claims += [
            equal(f"{words} error of the kernel, power of 1/m", SOURCE, 0.5, float(slope), 0.1),
            equal(f"{words} active units", SOURCE, float(norm.cdf(-bias)), active, 0.05),
            at_most(f"{words} residuals along the flow, off the law", SOURCE, 0.03, float(away)),
        ]
        axes[0].loglog(WIDTHS, errors, "o-", color=colour, label=f"B = {bias:.0f}")
        axes[1].plot(ts, y - outputs, color=colour)
        axes[1].plot(ts[::5], lazy[::5], "o", color=colour, markersize=3)
    axes[0].set(xlabel="number of units", ylabel="error of the kernel")
    axes[0].legend()
    axes[1].set(xlabel="t", ylabel="residuals, and theory")
    return Exhibit(tuple(claims), figure)
