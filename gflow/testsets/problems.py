"""The right-hand sides of the test set: minus the generalized gradients of risks, in NumPy.

θ is the flat vector of the trained arrays in the order W1, b1, W2, b2, ..., each row by row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from gflow.risks import EmpiricalRisk, GaussianRisk, PopulationRisk

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
ActivationName = Literal["relu", "identity"]


@dataclass(frozen=True)
class LayeredNetwork:
    """A network of affine layers with an activation between them, of which a part is trained.

    - `arrays`: W1 (units, inputs), b1 (units,), W2, ... at the start, without biases that there
      are not. The output is a number.
    - `trained`: the names of those that θ is made of.
    """

    arrays: Mapping[str, Vector]
    trained: tuple[str, ...]
    activation: ActivationName = "relu"

    @property
    def depth(self) -> int:
        """The number of affine layers."""
        return sum(name.startswith("W") for name in self.arrays)

    @property
    def start(self) -> Vector:
        return np.concatenate([self.arrays[name].ravel() for name in self.trained])

    def at(self, theta: Vector) -> dict[str, Vector]:
        """All arrays, those that are trained from θ."""
        shapes = [self.arrays[name].shape for name in self.trained]
        ends = np.cumsum([self.arrays[name].size for name in self.trained])
        parts = np.split(np.asarray(theta, float), ends[:-1])
        found = {name: p.reshape(s) for name, p, s in zip(self.trained, parts, shapes, strict=True)}
        return dict(self.arrays) | found

    def forward(self, theta: Vector, x: Vector) -> tuple[Vector, list[Vector]]:
        """The outputs (n,) at the rows of x, and the preactivations (n, units) of each layer."""
        arrays, a, preactivations = self.at(theta), x, []
        for k in range(1, self.depth + 1):
            z = a @ arrays[f"W{k}"].T + arrays.get(f"b{k}", 0.0)
            preactivations.append(z)
            a = np.maximum(z, 0.0) if self.activation == "relu" else z
        return preactivations[-1][:, 0], preactivations[:-1]

    def backward(self, theta: Vector, x: Vector, slopes: Vector) -> Vector:
        """Σ_n slopes_n ∂N(x_n)/∂θ by the chain rule, with ReLU'(0) = 0."""
        arrays, (_, inner), found = self.at(theta), self.forward(theta, x), {}
        relu = self.activation == "relu"
        below = [x, *(np.maximum(z, 0.0) if relu else z for z in inner)]
        delta = slopes[:, None]
        for k in range(self.depth, 0, -1):
            found |= {f"W{k}": delta.T @ below[k - 1], f"b{k}": delta.sum(axis=0)}
            if k > 1:
                delta = delta @ arrays[f"W{k}"]
                delta = delta * (inner[k - 2] > 0) if relu else delta
        return np.concatenate([found[name].ravel() for name in self.trained])

    def of_gflow(self) -> Any:
        """A `gflow.ShallowNet`, or an `equinox.nn.Sequential` if it is deeper."""
        if self.depth == 2:
            from gflow.networks import ShallowNet

            w, b, v, c = (self.arrays.get(name) for name in ("W1", "b1", "W2", "b2"))
            assert w is not None and v is not None
            bias = None if c is None else c[0]
            return ShallowNet.from_arrays(w, b, v[0], bias, activation=self.activation)
        return self._sequential()

    def _sequential(self) -> Any:
        import equinox as eqx
        import jax
        import jax.numpy as jnp

        layers: list[Any] = []
        for k in range(1, self.depth + 1):
            weight, bias = self.arrays[f"W{k}"], self.arrays.get(f"b{k}")
            rows = "scalar" if k == self.depth else len(weight)
            key = jax.random.key(0)
            new = eqx.nn.Linear(weight.shape[1], rows, use_bias=bias is not None, key=key)
            new = eqx.tree_at(lambda layer: layer.weight, new, jnp.asarray(weight))
            if bias is not None:
                new = eqx.tree_at(lambda layer: layer.bias, new, jnp.asarray(bias))
            layers.append(new)
            if k < self.depth and self.activation == "relu":
                layers.append(eqx.nn.Lambda(jax.nn.relu))
        return eqx.nn.Sequential(layers)

    @property
    def trainable(self) -> tuple[str, ...] | None:
        """`trainable` of `gflow.solve_flow`."""
        if set(self.trained) == set(self.arrays):
            return None
        fields = {"W1": "w", "b1": "b", "W2": "v", "b2": "c"}
        return tuple(fields[name] for name in self.trained)


@dataclass(frozen=True)
class OnData:
    """The mean of squares over rows x (n, inputs) with targets y (n,), without ½."""

    network: LayeredNetwork
    x: Vector
    y: Vector

    def risk_at(self, theta: Vector) -> float:
        return float(np.mean((self.network.forward(theta, self.x)[0] - self.y) ** 2))

    def field(self, t: float, theta: Vector) -> Vector:
        residuals = self.network.forward(theta, self.x)[0] - self.y
        return -self.network.backward(theta, self.x, 2 / len(self.y) * residuals)

    def risk_of_gflow(self) -> "EmpiricalRisk":
        from gflow.risks import EmpiricalRisk

        return EmpiricalRisk(self.x, self.y)

    def as_json(self) -> dict[str, Any]:
        return {"kind": "data", "x": self.x.tolist(), "y": self.y.tolist()}


# Exact for polynomials up to degree 7; integrands of quadratic targets have degree 4.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)


@dataclass(frozen=True)
class OnDensity:
    """The mean of squares over inputs that are uniform between the first and the last breakpoint
    of the target, of one input: `coefficients` (pieces, degree + 1) are those of 1, x, x², ...
    Integrals are exact, by Gauss's rule between all kinks."""

    network: LayeredNetwork
    breakpoints: Vector
    coefficients: Vector

    def _nodes(self, theta: Vector) -> tuple[Vector, Vector, Vector]:
        """Inputs (n, 1), targets and weights of a rule that is exact at θ."""
        arrays = self.network.at(theta)
        w, b = arrays["W1"][:, 0], arrays.get("b1", 0.0 * arrays["W1"][:, 0])
        kinks = (-b / np.where(w == 0, np.inf, w)).clip(self.breakpoints[0], self.breakpoints[-1])
        ends = np.unique(np.concatenate([self.breakpoints, kinks]))
        half = np.diff(ends)[:, None] / 2
        x = (ends[:-1, None] + half * (1 + _NODES)).ravel()
        piece = np.searchsorted(self.breakpoints, x).clip(1, len(self.coefficients)) - 1
        powers = x[:, None] ** np.arange(self.coefficients.shape[1])
        weights = (half * _WEIGHTS).ravel() / np.ptp(self.breakpoints)
        return x[:, None], np.sum(self.coefficients[piece] * powers, axis=1), weights

    def risk_at(self, theta: Vector) -> float:
        x, y, weights = self._nodes(theta)
        return float(weights @ (self.network.forward(theta, x)[0] - y) ** 2)

    def field(self, t: float, theta: Vector) -> Vector:
        x, y, weights = self._nodes(theta)
        residuals = self.network.forward(theta, x)[0] - y
        return -self.network.backward(theta, x, 2 * weights * residuals)

    def risk_of_gflow(self) -> "PopulationRisk":
        from gflow import piecewise
        from gflow.risks import PopulationRisk

        target = piecewise.PiecewisePolynomial(self.breakpoints, self.coefficients)
        ends = self.breakpoints[[0, -1]].tolist()
        return PopulationRisk(target, piecewise.uniform(*ends))

    def as_json(self) -> dict[str, Any]:
        arrays = {"breakpoints": self.breakpoints, "coefficients": self.coefficients}
        found = {name: array.tolist() for name, array in arrays.items()}
        return {"kind": "uniform density on one input", "target": found}


@dataclass(frozen=True)
class OnGaussian:
    """The mean of squares over standard normal inputs, of one unit relu(⟨w, x⟩) whose output
    weight is 1 and fixed, against a teacher relu(⟨u, x⟩)."""

    network: LayeredNetwork
    teacher: Vector

    @cached_property
    def _size(self) -> float:
        return float(np.linalg.norm(self.teacher))

    def _angle(self, w: Vector) -> float:
        cosine, size = w @ self.teacher, self._size * np.linalg.norm(w)
        sine = np.sqrt(max(size**2 - cosine**2, 0.0))
        return float(np.arctan2(sine, cosine))

    def risk_at(self, theta: Vector) -> float:
        phi, sizes = self._angle(theta), self._size * np.linalg.norm(theta)
        both = sizes / (2 * np.pi) * (np.sin(phi) + (np.pi - phi) * np.cos(phi))
        return float((theta @ theta + self._size**2) / 2 - 2 * both)

    def field(self, t: float, theta: Vector) -> Vector:
        phi = self._angle(theta)
        turned = self._size * np.sin(phi) / np.linalg.norm(theta) * theta
        return (turned + (np.pi - phi) * self.teacher) / np.pi - theta

    def risk_of_gflow(self) -> "GaussianRisk":
        from gflow.networks import ShallowNet
        from gflow.risks import GaussianRisk

        return GaussianRisk(ShallowNet.from_arrays([self.teacher], None, [1.0], None))

    def as_json(self) -> dict[str, Any]:
        return {"kind": "standard normal inputs", "teacher": self.teacher.tolist()}
