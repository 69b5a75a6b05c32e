"""The spectrum of the Hessian: all eigenvalues, or the extreme ones and the density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from gflow.arguments import (
    ArgumentError,
    Described,
    PyTree,
    RealScalar,
    is_concrete,
    positive,
    positive_int,
)
from gflow.display import Shown
from gflow.hessian.lanczos import STEPS, Extremes, SymmetricOperator, extremes, measures
from gflow.parameters import split_trainable

# Products that are computed together to form the Hessian.
_BATCH = 16


@dataclass(frozen=True, repr=False, eq=False)
class Spectrum(Shown):
    r"""Eigenvalues of a Hessian, $\lambda_1 \le \dots \le \lambda_{size}$, all or the extreme ones.

    - `size`: the number of trained parameters; `complete`: whether all eigenvalues are known.
    - `eigenvalues`, ascending: all, or the `num_smallest` smallest and then the largest.
    - `eigenvectors`, (count, size): of length 1, in the order of
      `jax.flatten_util.ravel_pytree` of the trained parameters; (0, size) if there are none.
    - `residuals`: ‖Hv − λv‖. An eigenvalue lies within this distance of λ, and even within
      residual²/gap if its gap to the other eigenvalues exceeds the residual.
    - `converged`: for each eigenvalue, whether the residual is as small as requested.
    - `checked`: whether a further run from a random vector, orthogonal to those found, showed that
      no copies were missed (True if `complete`).
    - `num_products`: the number of Hessian products, each about the work of two gradients.
    - `zero_below`: eigenvalues count as 0 up to this absolute value.
    - `nodes`, `weights`, (probes, depth): quadratures whose mean is the spectral density. None
      without probes, unless the spectrum is complete.
    """

    size: int
    eigenvalues: Float[np.ndarray, " count"]
    eigenvectors: Float[Array, "vectors size"]
    residuals: Float[np.ndarray, " count"]
    num_smallest: int
    complete: bool
    checked: bool
    tol: float
    num_products: int
    zero_below: float
    nodes: Float[np.ndarray, "probes depth"] | None = field(default=None)
    weights: Float[np.ndarray, "probes depth"] | None = field(default=None)

    @classmethod
    def complete_of(cls, eigenvalues: Any) -> "Spectrum":
        """The complete spectrum with these eigenvalues, without eigenvectors.

        They count as 0 up to 100 · size · ε times the largest absolute value.
        """
        values = np.sort(np.asarray(eigenvalues, float))
        size = len(values)
        rounding = float(np.finfo(float).eps * np.abs(values).max(initial=0.0))
        return cls(
            size=size,
            eigenvalues=values,
            eigenvectors=jnp.zeros((0, size)),
            residuals=np.zeros(size),
            num_smallest=0,
            complete=True,
            checked=True,
            tol=0.0,
            num_products=0,
            zero_below=100 * max(size, 1) * rounding,
        )

    @property
    def sharpness(self) -> float:
        """The largest eigenvalue; NaN if only the smallest ones were requested."""
        return float(self.eigenvalues[-1]) if len(self.largest) else float("nan")

    @property
    def largest(self) -> np.ndarray:
        """The largest eigenvalues, descending; all of them if `complete`."""
        return self.eigenvalues[0 if self.complete else self.num_smallest :][::-1]

    @property
    def smallest(self) -> np.ndarray:
        """The smallest eigenvalues, ascending; all of them if `complete`."""
        return self.eigenvalues if self.complete else self.eigenvalues[: self.num_smallest]

    @property
    def converged(self) -> np.ndarray:
        return self.residuals <= self.tol * np.abs(self.eigenvalues).max(initial=0.0)

    @property
    def num_negative(self) -> int:
        """The number of negative eigenvalues among the known ones."""
        return int(np.sum(self.eigenvalues < -self.zero_below))

    @property
    def num_zero(self) -> int:
        """The number of eigenvalues among the known ones that are 0 up to rounding."""
        return int(np.sum(np.abs(self.eigenvalues) <= self.zero_below))

    @property
    def num_positive(self) -> int:
        """The number of positive eigenvalues among the known ones."""
        return int(np.sum(self.eigenvalues > self.zero_below))

    def density(self, x: Any, width: RealScalar) -> np.ndarray:
        """The spectral density, of integral 1, at x.

        Each eigenvalue is a normal density with standard deviation `width`.

        **Raises:** `ArgumentError` for an incomplete spectrum without probes.
        """
        nodes, weights = self._quadrature()
        width, x = positive("width", width), np.asarray(x, float)
        at = (x[..., None] - nodes.ravel()) / width
        return np.exp(-(at**2) / 2) @ weights.ravel() / (len(nodes) * width * (2 * np.pi) ** 0.5)

    def moment(self, order: int) -> tuple[float, float]:
        """The mean of λ^order over all eigenvalues, and its standard error.

        The error is 0 for a complete spectrum. Otherwise it is estimated from the spread of the
        probes, and NaN for a single one.

        **Raises:** `ArgumentError` for an incomplete spectrum without probes.
        """
        nodes, weights = self._quadrature()
        each = np.sum(weights * nodes ** positive_int("order", order, minimum=0), axis=1)
        if self.complete:
            return float(each[0]), 0.0
        spread = np.std(each, ddof=1) if len(each) > 1 else np.nan
        return float(each.mean()), float(spread / len(each) ** 0.5)

    def _quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        if self.nodes is None or self.weights is None:
            got = Described(f"none, for {self.size:,} parameters")
            raise ArgumentError("probes", got, "at least one, for the density of a large Hessian")
        return self.nodes, self.weights

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        some = lambda values: ", ".join(f"{v:.5g}" for v in values[:3]) + ", …" * (len(values) > 3)
        signs = f"{self.num_negative} negative, {self.num_zero} zero, {self.num_positive} positive"
        late = int(np.sum(~self.converged))
        facts = {
            "parameters": f"{self.size:,}",
            "known": "all eigenvalues" if self.complete else f"{len(self.eigenvalues)} eigenvalues",
            "largest": some(self.largest),
            "smallest": some(self.smallest),
            "signs": f"{signs} (zero up to {self.zero_below:.1g})",
        }
        if not self.complete:
            residual = f"up to {self.residuals.max(initial=0.0):.1g}"
            facts["residuals"] = residual + (f", {late} not converged" if late else "")
            facts["Hessian products"] = f"{self.num_products:,}"
        return {name: text for name, text in facts.items() if text}

    def __repr__(self) -> str:
        if self.complete:
            values = self.eigenvalues
            ends = f", from {values[0]:.6g} to {values[-1]:.6g}" if len(values) else ""
            return (
                f"Spectrum of {self.size:,}: {self.num_negative} negative, {self.num_zero} zero "
                f"(up to {self.zero_below:.1g}), {self.num_positive} positive{ends}"
            )
        some = lambda values: ", ".join(f"{v:.5g}" for v in values[:3]) + ", …" * (len(values) > 3)
        parts = [
            f"{len(values)} {name}: {some(values)}"
            for name, values in (("largest", self.largest), ("smallest", self.smallest))
            if len(values)
        ]
        late = int(np.sum(~self.converged))
        return (
            f"Spectrum of {self.size:,}, the {'; the '.join(parts)}; residuals up to "
            f"{self.residuals.max():.1g}{f' ({late} not converged)' if late else ''}, "
            f"{self.num_products:,} Hessian products"
        )


@runtime_checkable
class HasSpectrum(Protocol):
    """What knows its own Hessian: a critical point on kinks, along these."""

    @property
    def spectrum(self) -> Spectrum: ...


class Hessian(SymmetricOperator):
    """∇²L at a network, in the trained parameters as one vector."""

    risk: Any
    trained: PyTree
    frozen: PyTree

    @property
    def theta(self) -> Array:
        return ravel_pytree(self.trained)[0]

    def prepared(self) -> Callable[[Array], Array]:
        theta, unravel = ravel_pytree(self.trained)
        gradient = jax.grad(lambda p: self.risk(eqx.combine(unravel(p), self.frozen)))
        return jax.linearize(gradient, theta)[1]


def hessian_spectrum(
    risk: Callable[[Any], Array],
    net: PyTree | HasSpectrum,
    *,
    largest: int = 10,
    smallest: int = 10,
    probes: int = 0,
    depth: int = 60,
    trainable: Sequence[str] | PyTree | None = None,
    dense_up_to: int = 1000,
    tol: RealScalar | None = None,
    zero_below: RealScalar | None = None,
    max_products: int = 2000,
    copies: bool = True,
    key: PRNGKeyArray | None = None,
) -> Spectrum:
    r"""The eigenvalues of the Hessian $\nabla^2 L(\theta)$ in the trained parameters.

    All of them are computed up to `dense_up_to` parameters. Beyond, the Hessian is never formed.
    Then the extreme eigenvalues come from Lanczos iteration on Hessian-vector products, and the
    density

    $$\frac{1}{size} \sum_i \delta(\lambda_i) \approx
      \frac{1}{probes} \sum_p \sum_j \omega_{pj} \, \delta(\vartheta_{pj})$$

    from stochastic Lanczos quadrature (Ghorbani, Krishnan and Xiao, arXiv 1901.10159), exact in the
    mean for moments of order below 2 · depth. The Hessian of a ReLU network is that of the fixed
    activation pattern, which is the Hessian away from kinks. On a kink, as at many critical points,
    the unit counts as inactive there, and directions across it are included: a negative eigenvalue
    may belong to a direction in which the risk has a corner. Of a `CriticalPoint` the result is its
    `spectrum`, that of the Hessian along its active kinks, with their curvature; `point.net` has
    the other.

    **Arguments:**

    - `net`: a network, or a critical point.
    - `largest`, `smallest`: the numbers of eigenvalues at either end of a large Hessian.
    - `probes`: the number of random vectors for the density of a large Hessian, 0 for none. Each
      costs `depth` Hessian products.
    - `trainable`: as in `solve_flow`.
    - `tol`: the requested residuals, relative to the largest absolute eigenvalue; by default 1e-6
      for float64 parameters, 1e-4 for float32. Errors of the eigenvalues are mostly of the order of
      the squares of the residuals, and never above these.
    - `zero_below`: eigenvalues count as 0 up to this absolute value; by default 10 · size ·
      (rounding unit) · max|λ|, or the largest residual of a large Hessian if that is more.
    - `max_products`: the budget of products for the eigenvalues, without the density. If it runs
      out, `converged` shows which eigenvalues have not converged.
    - `copies`: whether to search for further copies of the eigenvalues found, by at least 20 more
      products. Without it, a multiple eigenvalue may appear once, followed by a smaller one.
    - `key`: the random key of the starts, by default a fixed one.

    Eigenvalues in the cluster near 0 that most Hessians have converge slowly: the smallest of a
    Hessian without negative eigenvalues may take all `max_products`. The iterations are one
    compiled program for all risks and networks of the same shapes. Its restarts run on the host, so
    not under `jax.jit`.

    **Raises:** `ArgumentError` for arguments out of range, traced arrays, and a Hessian whose
    entries are NaN or infinite.

    ??? example

        ```python
        risk = lambda net: 0.5 * jnp.sum(jnp.array([3.0, -5.0, 0.0]) * net["theta"] ** 2)
        spectrum = gflow.hessian_spectrum(risk, {"theta": jnp.ones(3)})
        assert (spectrum.num_negative, spectrum.num_zero, spectrum.num_positive) == (1, 1, 1)
        assert abs(spectrum.sharpness - 3) < 1e-6
        ```
    """
    if isinstance(net, HasSpectrum):
        return net.spectrum
    largest = positive_int("largest", largest, minimum=0)
    smallest = positive_int("smallest", smallest, minimum=0 if largest else 1)
    probes, depth = positive_int("probes", probes, minimum=0), positive_int("depth", depth)
    dense_up_to = positive_int("dense_up_to", dense_up_to, minimum=0)
    wanted = largest + smallest
    max_products = positive_int("max_products", max_products, minimum=wanted + STEPS)
    trained, frozen = split_trainable(net, trainable)
    if not is_concrete(risk, net):
        wanted = "known ones: outside jax.jit and jax.vmap, where `sharpness` can be used"
        raise ArgumentError("net", Described("traced arrays"), wanted)
    hessian = Hessian(risk, trained, frozen)
    theta = hessian.theta
    tol = positive("tol", _default_tol(theta) if tol is None else tol)
    zero_below = None if zero_below is None else positive("zero_below", zero_below, or_zero=True)
    if theta.size <= max(dense_up_to, wanted):
        return _dense(hessian, tol, zero_below)
    to_ends, to_density = jax.random.split(jax.random.key(0) if key is None else key)
    search = {"tol": tol, "max_products": max_products, "copies": copies, "key": to_ends}
    try:
        found = extremes(hessian, theta, largest, smallest, **search)
    except FloatingPointError:
        raise not_finite() from None
    spectrum = _extreme(found, smallest, tol, zero_below)
    if not probes:
        return spectrum
    nodes, weights = measures(hessian, theta, probes, depth, key=to_density)
    products = spectrum.num_products + nodes.size
    return replace(spectrum, num_products=products, nodes=nodes, weights=weights)


def _extreme(found: Extremes, smallest: int, tol: float, zero_below: float | None) -> Spectrum:
    size = found.vectors.shape[1]
    if zero_below is None:
        zero_below = max(_rounding(found.values, size), float(found.residuals.max()))
    return Spectrum(
        size=size,
        eigenvalues=found.values,
        eigenvectors=found.vectors,
        residuals=found.residuals,
        num_smallest=smallest,
        complete=False,
        checked=found.checked,
        tol=tol,
        num_products=found.num_products,
        zero_below=zero_below,
    )


def _default_tol(theta: Array) -> float:
    return 1e-6 if theta.dtype == jnp.float64 else 1e-4


def _dense(hessian: Hessian, tol: float, zero_below: float | None) -> Spectrum:
    matrix = np.asarray(hessian_columns(hessian))
    if not np.all(np.isfinite(matrix)):
        raise not_finite()
    matrix = (matrix + matrix.T) / 2
    values, vectors = np.linalg.eigh(matrix)
    size = len(values)
    return Spectrum(
        size=size,
        eigenvalues=values,
        eigenvectors=jnp.asarray(vectors.T),
        residuals=np.linalg.norm(matrix @ vectors - values * vectors, axis=0),
        num_smallest=size,
        complete=True,
        checked=True,
        tol=tol,
        num_products=size,
        zero_below=_rounding(values, size) if zero_below is None else zero_below,
        nodes=values[None],
        weights=np.full((1, size), 1 / size, values.dtype),
    )


def _rounding(values: np.ndarray, size: int) -> float:
    return float(10 * size * np.finfo(values.dtype).eps * np.abs(values).max())


def not_finite() -> ArgumentError:
    """What is raised where the Hessian is NaN or infinite."""
    got = Described("parameters where the Hessian is NaN or infinite")
    return ArgumentError("net", got, "a network with a finite Hessian")


@eqx.filter_jit
def hessian_product(hessian: Hessian, v: Float[Array, " size"]) -> Float[Array, " size"]:
    """The product ∇²L v."""
    return hessian.prepared()(v)


@eqx.filter_jit
def hessian_columns(hessian: Hessian) -> Float[Array, "size size"]:
    """The matrix ∇²L."""
    theta = hessian.theta
    # Rows of 0 fill the last batch: a second batch size would be compiled separately.
    rows = jnp.eye(theta.size + -theta.size % _BATCH, theta.size, dtype=theta.dtype)
    return jax.lax.map(hessian.prepared(), rows, batch_size=_BATCH)[: theta.size]
