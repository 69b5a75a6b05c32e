"""The log of the kinks that a flow met."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.nonsmooth.kink_kinds import KinkKind


class KinkLog(eqx.Module):
    """The kinks that a flow met, in the order of time.

    - `time`, shape (kinks,): when the preactivation of the pair became zero, or its slide ended.
    - `unit`, `datum`: the pair. Rows of data that are equal have one kink, logged for the first.
      Rows with parallel normals, as x and −x without biases, can meet theirs at one time, and have
      an entry each.
    - `kind`: a `KinkKind` as an integer; `names` gives the words.

    Under `jax.jit` and `jax.vmap` the arrays have `max_kinks` entries, of time inf where unused.
    """

    time: Float[Array, " kinks"]
    unit: Int[Array, " kinks"]
    datum: Int[Array, " kinks"]
    kind: Int[Array, " kinks"]

    @property
    def names(self) -> list[str]:
        """The kind of each kink in words."""
        return [KinkKind(k).label for k in np.asarray(self.kind)]

    def __len__(self) -> int:
        return self.time.shape[0]

    def counts(self) -> dict[str, int]:
        """How many kinks there were of each kind."""
        each = np.bincount(np.asarray(self.kind), minlength=len(KinkKind))
        return {kind.label: int(each[kind]) for kind in KinkKind}

    def branchings(self) -> list[tuple[float, int]]:
        """Time and unit wherever the flow could have gone on to either side of a kink."""
        there = np.asarray(self.kind) == KinkKind.SLIDE_BRANCHES
        there &= np.isfinite(np.asarray(self.time))
        times, units = np.asarray(self.time)[there], np.asarray(self.unit)[there]
        return [(float(t), int(unit)) for t, unit in zip(times, units)]

    def sliding_at(self, t: float) -> set[tuple[int, int]]:
        """The pairs (unit, datum) that slide at time t."""
        sliding: set[tuple[int, int]] = set()
        columns = (np.asarray(a) for a in (self.time, self.unit, self.datum, self.kind))
        for time, unit, datum, kind in zip(*columns):
            if time > t:
                break
            change = sliding.add if KinkKind(kind).begins_slide else sliding.discard
            change((int(unit), int(datum)))
        return sliding
