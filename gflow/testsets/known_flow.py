"""A flow whose answer is known."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gflow.arguments import ArgumentError
from gflow.testsets.problems import OnData, OnDensity, OnGaussian, Vector

if TYPE_CHECKING:
    from gflow.risks import EmpiricalRisk, GaussianRisk, PopulationRisk

EventKind = Literal["cross", "slide begins", "slide ends", "slide branches", "collapse"]


@dataclass(frozen=True)
class KnownEvent:
    """Where the field jumps: a unit's preactivation reaches 0 at a row, or the unit collapses.

    `layer` counts hidden layers from 0; `row` is None for a collapse, which is of a whole unit.
    """

    time: float
    kind: EventKind
    layer: int
    unit: int
    row: int | None


@dataclass(frozen=True)
class KnownFlow:
    """A gradient flow with θ at some times.

    - `name`, `shows`: what it is called, and what a solver meets on it; `source`: where the answer
      comes from.
    - `problem`: the network at time 0 and what it is fitted to.
    - `times` (k,); `branches`: θ (k, size) at these times, of each solution where there are
      several, else of the one.
    - `known`: "closed form", or "certified": two integrations without gflow agree, by two methods
      or by one at two tolerances. `accuracy`: the relative error of the answer, as `error` measures
      it: rounding, or the difference between these two.
    - `events`: in the order of time; empty where they are not known.

    The answer is the solution in the sense of Filippov, with the gradient of minimal norm on kinks.
    `field` is minus the generalized gradient, with ReLU'(0) = 0, as autodiff has it: on kinks on
    which the solution slides it is another.
    """

    name: str
    shows: str
    source: str
    problem: OnData | OnDensity | OnGaussian
    times: Vector
    branches: tuple[Vector, ...]
    known: Literal["closed form", "certified"]
    accuracy: float
    events: tuple[KnownEvent, ...] = ()

    @property
    def start(self) -> Vector:
        """θ at time 0, the trained arrays in the order W1, b1, W2, b2, ..., row by row."""
        return self.problem.network.start

    @property
    def params(self) -> Vector:
        """θ (k, size) at `times`, of the first branch."""
        return self.branches[0]

    @property
    def slides(self) -> bool:
        """Whether the solution is known to slide along kinks."""
        return any(event.kind.startswith("slide") for event in self.events)

    def field(self, t: float, theta: Vector) -> Vector:
        """dθ/dt at θ (size,), in NumPy; t is not used."""
        return self.problem.field(t, theta)

    def error(self, params: Any) -> float:
        """How far θ (k, size) at `times` is from the answer: the largest distance at a time, over
        the largest norm of the answer, from the nearest branch. NaN counts as infinite.

        **Raises:** `ArgumentError` for an array of another shape.
        """
        params = np.asarray(params, float)
        if params.shape != self.params.shape:
            raise ArgumentError("params", params, f"an array of shape {self.params.shape}")
        found = [_distance(params, branch) for branch in self.branches]
        return min(found)

    def network(self) -> Any:
        """The network at time 0, for gflow: a `gflow.ShallowNet`, or an `equinox.nn.Sequential`."""
        return self.problem.network.of_gflow()

    def risk(self) -> "EmpiricalRisk | PopulationRisk | GaussianRisk":
        """The risk, for gflow."""
        return self.problem.risk_of_gflow()

    @property
    def trainable(self) -> tuple[str, ...] | None:
        """`trainable` of `gflow.solve_flow`."""
        return self.problem.network.trainable

    def as_vectors(self, networks: Any) -> Vector:
        """θ (k, size) from `params` of a `gflow.Trajectory`, networks with a leading time axis."""
        import jax

        from gflow.parameters import split_trainable

        leaves = jax.tree.leaves(split_trainable(networks, self.trainable)[0])
        return np.concatenate([np.asarray(a).reshape(len(a), -1) for a in leaves], axis=1)

    def as_json(self) -> dict[str, Any]:
        """All of it as numbers, words and lists."""
        network = self.problem.network
        return {
            "name": self.name,
            "shows": self.shows,
            "source": self.source,
            "activation": network.activation,
            "arrays": {name: array.tolist() for name, array in network.arrays.items()},
            "trained": list(network.trained),
            "risk": self.problem.as_json(),
            "start": self.start.tolist(),
            "times": self.times.tolist(),
            "branches": [branch.tolist() for branch in self.branches],
            "known": self.known,
            "accuracy": self.accuracy,
            "events": [vars(event) for event in self.events],
        }


def _distance(params: Vector, answer: Vector) -> float:
    scale = np.max(np.linalg.norm(answer, axis=1))
    found = float(np.max(np.linalg.norm(params - answer, axis=1)) / scale)
    return found if np.isfinite(found) else np.inf
