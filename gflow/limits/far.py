"""A flow at times so late that its law can be told from others, or from a turn."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gflow.flow import solve_flow
from gflow.limits.growth import NormLaw
from gflow.limits.path import Path
from gflow.trajectory import Trajectory

# Slopes are about 1/t, and their squares must not underflow. One solve spans so many decades
# as float64 can tell times apart.
LATEST, _STAGE = 1e140, 1e10
# Powers are followed to so many times the end of the flow.
POWER_FURTHER = 1e20
_TIMES_PER_STAGE, _MAX_STEPS = 40, 20_000
# Where a flow starts again in small steps, these would be roundings of a time so much later.
_SHORT_STAGE = 10.0


@dataclass
class Continuation:
    """What the flow does long after it was left, computed when it is asked for, and once.

    - `risk`, `start`: of the flow. `trained` takes the trained parameters out of a network;
      `trainable` as in `solve_flow`. `progress`: whether to show how far it is.
    """

    risk: Callable[[Any], Any]
    start: float
    trained: Callable[[Any], Any]
    trainable: Any
    progress: bool = False
    _known: dict[NormLaw, Path | None] = field(default_factory=dict)

    def of(self, flow: Trajectory, law: NormLaw) -> Path | None:
        """That of a flow whose norm grows by a law: the part after its end; None if it cannot be
        followed at all."""
        end = float(flow.ts[-1]) - self.start
        known = self._known.get(law)
        # Where the flow has been followed past it, there may be more.
        if known is None or known.end <= end * (1 + 1e-9):
            latest = LATEST if law is NormLaw.LOGARITHM else POWER_FURTHER * end
            known = self._known[law] = far_path(self, flow, min(latest, LATEST))
        return None if known is None else known.after(end)


def far_path(of: Continuation, flow: Trajectory, latest: float) -> Path | None:
    """The flow from its end to t = `latest`, at least, or as far as it can be followed; None if
    that is nowhere.

    Where the norm grows like a power of t or of log t, all else changes by fractions of itself from
    decade to decade, so that each takes a few steps only.
    """
    net, now, paths = flow.final, float(flow.ts[-1]) - of.start, []
    located, stage = flow.kinks is not None or not flow.kinks_ignored, _STAGE
    while now < latest * (1 - 1e-9):
        ts = now * np.geomspace(1.0, stage, _TIMES_PER_STAGE + 1)[1:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = solve_flow(
                of.risk,
                net,
                t0=now,
                t1=ts[-1],
                ts=ts,
                kinks="locate" if located else "ignore",
                trainable=of.trainable,
                max_steps=_MAX_STEPS,
                throw=False,
                progress=of.progress,
            )
        path = Path.of(more, 0.0, of.trained).after(now).known()
        if len(path.t):
            paths.append(path)
            net, now = more.final, path.end
        if not more.succeeded or len(path.t) < len(ts):
            if stage == _SHORT_STAGE:
                break
            stage = _SHORT_STAGE
    return Path.joined(*paths) if paths else None
