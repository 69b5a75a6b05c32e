"""The interface of a solve: its state, how it advances, and its output."""

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

import diffrax
from jaxtyping import Array, Float

from gflow.dense import Steps
from gflow.flow.output import FlowOutput
from gflow.flow.problem import FlowProblem, Method
from gflow.flow.span import Span
from gflow.kink_log import KinkLog

# The most steps between pauses: for the progress bar, Ctrl-C, checkpoints and the choice of solver;
# and their seconds, roughly.
MAX_PIECE_STEPS, MAX_PIECE_SECONDS = 512, 2.0

State = TypeVar("State")


class Snapshot(NamedTuple):
    """How far a solve has got, in numbers of the host."""

    t: float
    num_steps: int
    num_saved: int
    num_kinks: int
    num_evaluations: int
    step_size: float
    unfinished: bool


class AbstractRun(ABC, Generic[State]):
    """One flow to be solved. Its state is a pytree of arrays, from which it can go on later.

    A run is a pytree, too, but no equinox module: each method of those is made a pytree at each
    call, which takes as long as a step.

    It starts from `phi0`, which is θ in the coordinates of the time scales, and may keep its steps
    for dense output.
    """

    problem: FlowProblem
    method: Method
    span: Span
    phi0: Float[Array, " size"]
    keeps_steps: bool

    @property
    @abstractmethod
    def locates_kinks(self) -> bool:
        """Whether every kink is located."""

    @property
    @abstractmethod
    def is_brief(self) -> bool:
        """Whether compilation takes longer than most of its flows, so that it should be quick."""

    @abstractmethod
    def init(self) -> State:
        """The state at t0."""

    @abstractmethod
    def advance(self, state: State, max_steps: int) -> State:
        """The state at t1, or where a budget, a criterion or a failure ended the flow;
        `max_steps` counts from t0."""

    @abstractmethod
    def output(self, state: State) -> FlowOutput:
        """What has been computed up to a state."""

    @abstractmethod
    def kinks(self, state: State) -> KinkLog | None:
        """The log of kinks in the order of time, if they were located."""

    @abstractmethod
    def snapshot(self, state: State) -> Snapshot:
        """How far a state is."""

    @abstractmethod
    def last_steps(self, state: State) -> Steps | None:
        """The steps since the last pause, for dense output; None if they are not kept."""

    @abstractmethod
    def piece_length(self, num_steps: int, seconds_per_step: float) -> int:
        """The number of steps up to the next pause, after `num_steps` steps that took so long."""

    @abstractmethod
    def room(self, state: State) -> int:
        """For how many slides at a time a state has room; 0 if that is not counted."""

    @abstractmethod
    def with_room(self, state: State, room: int) -> State:
        """A state with room for so many slides."""

    @abstractmethod
    def spectral_radius(self, state: State) -> float:
        """That of the Jacobian of the field."""

    @abstractmethod
    def with_solver(
        self, solver: diffrax.AbstractSolver, state: State
    ) -> tuple["AbstractRun[State]", State]:
        """The run and its state with another solver from here on."""
