"""The log of the kinks that a flow met."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.arguments import ArgumentError, Described, is_concrete
from gflow.display import Shown
from gflow.nonsmooth.kink_kinds import KinkKind


class SlidingPair(NamedTuple):
    """A unit of a layer and a row of data."""

    layer: int
    unit: int
    datum: int


class Branching(NamedTuple):
    """When the flow could have gone on to either side of a kink of a unit of a layer."""

    time: float
    layer: int
    unit: int

    def in_words(self) -> str:
        """Which unit it was, and when."""
        layer = f" of layer {self.layer}" if self.layer else ""
        return f"unit {self.unit}{layer} at t = {self.time:.6g}"


class Slide(NamedTuple):
    """A unit of a layer on its kink at a row of data, from one time to another."""

    layer: int
    unit: int
    datum: int
    begin: float
    end: float


class LoggedKink(NamedTuple):
    """One entry of a log (`KinkLog` says what each is)."""

    time: float
    layer: int
    unit: int
    datum: int
    kind: KinkKind
    passed: bool


class KinkLog(Shown, eqx.Module):
    """The kinks that a flow met, in the order of time.

    - `time`, shape (kinks,): when the preactivation of the pair became zero, or its slide ended.
    - `layer`, `unit`, `datum`: the pair. Layers are counted from the first hidden one, 0, in the
      order in which the network computes them; a layer is what one activation acts on, or one step
      of a max-pooling, and units are its entries. Rows of data that are equal have one kink, logged
      for the first. Rows with parallel normals, as x and −x without biases, can meet theirs at one
      time, and have an entry each.
    - `kind`: a `KinkKind` as an integer; `names` gives the words.
    - `passed`: whether the tolerance cannot feel the kink, so that no step ended there; its time is
      then interpolated.

    `for kink in log` yields a `LoggedKink` with these as numbers, one by one.

    Under `jax.jit` and `jax.vmap` the arrays have `max_kinks` entries, of time inf where unused.
    """

    time: Float[Array, " kinks"]
    layer: Int[Array, " kinks"]
    unit: Int[Array, " kinks"]
    datum: Int[Array, " kinks"]
    kind: Int[Array, " kinks"]
    passed: Bool[Array, " kinks"]

    @property
    def names(self) -> list[str]:
        """The kind of each kink in words."""
        _require_one(self)
        return [KinkKind(k).label for k in np.asarray(self.kind)]

    def __len__(self) -> int:
        return self.time.shape[0]

    def __iter__(self) -> Iterator[LoggedKink]:
        """Each kink in turn."""
        _require_one(self)
        columns = (np.asarray(a)[: self.num_used()].tolist() for a in _columns(self))
        for time, layer, unit, datum, kind, passed in zip(*columns):
            yield LoggedKink(time, layer, unit, datum, KinkKind(kind), passed)

    def counts(self) -> dict[str, int]:
        """How many kinks there were of each kind."""
        _require_one(self)
        each = np.bincount(np.asarray(self.kind), minlength=len(KinkKind))
        return {kind.label: int(each[kind]) for kind in KinkKind}

    def branchings(self) -> list[Branching]:
        """When and at which units the flow could have gone on to either side of a kink."""
        _require_one(self)
        there = np.asarray(self.kind) == KinkKind.SLIDE_BRANCHES
        there &= np.isfinite(np.asarray(self.time))
        columns = (np.asarray(a)[there].tolist() for a in (self.time, self.layer, self.unit))
        return [Branching(*entry) for entry in zip(*columns)]

    def sliding_at(self, t: float) -> set[SlidingPair]:
        """The pairs that slide at time t."""
        _require_one(self)
        sliding: set[SlidingPair] = set()
        columns = (np.asarray(a) for a in _columns(self))
        for time, layer, unit, datum, kind, _ in zip(*columns):
            if time > t:
                break
            change = sliding.add if KinkKind(kind).begins_slide else sliding.discard
            change(SlidingPair(int(layer), int(unit), int(datum)))
        return sliding

    def slides(self, end: float) -> list[Slide]:
        """The slides, in the order in which they end; those under way at the last entry end at the
        time `end`."""
        found: list[Slide] = []
        begun: dict[SlidingPair, float] = {}
        for kink in self:
            pair = SlidingPair(kink.layer, kink.unit, kink.datum)
            if kink.kind.begins_slide:
                begun[pair] = kink.time
            elif kink.kind.ends_slide:
                found.append(Slide(*pair, begun.pop(pair), kink.time))
        return found + [Slide(*pair, begin, end) for pair, begin in begun.items()]

    def title(self) -> str:
        """How many kinks there are."""
        if not is_concrete(self) or self.time.ndim != 1:
            return f"KinkLog of {self.time.shape} entries"
        return f"KinkLog of {len(self.used()):,} kinks"

    def summary(self) -> dict[str, str]:
        """The number of each kind in words, and the span of time."""
        if not is_concrete(self) or self.time.ndim != 1:
            return {}
        log = self.used()
        facts = {kind: f"{count:,}" for kind, count in log.counts().items() if count}
        if len(log):
            facts["times"] = f"t = {log.time[0]:.6g} to {log.time[-1]:.6g}"
            pairs = zip(log.layer.tolist(), log.unit.tolist(), log.datum.tolist())
            facts["pairs"] = f"{len(set(pairs)):,}"
        return facts

    def within(self, first: Any, last: Any) -> "KinkLog":
        """The log from one time to another. Slides that are under way at the first are logged as
        if they began there."""
        like = np if is_concrete(self, first, last) else jnp
        first, last = like.asarray(first), like.asarray(last)
        time, layer, unit, datum, kind, passed = (like.asarray(a) for a in _columns(self))
        size, before = len(self), time < first
        begins = like.isin(kind, like.asarray([k for k in KinkKind if k.begins_slide]))
        # A slide is under way if its begin is the last entry of its pair before the first time.
        order = like.lexsort((like.arange(size), datum, unit, layer))
        pairs = like.stack([layer, unit, datum])[:, order]
        same = like.all(pairs[:, 1:] == pairs[:, :-1], axis=0) & before[order][1:]
        ended = like.argsort(order)
        followed = like.append(same, like.zeros(min(size, 1), bool))[ended]
        under_way = before & begins & ~followed
        time = like.where(under_way, first, time)
        kept = under_way | (~before & (time <= last))
        if like is np:
            chosen = (a[kept] for a in (time, layer, unit, datum, kind, passed))
        else:
            order = jnp.argsort(~kept, stable=True)
            time = jnp.where(kept, time, jnp.inf)
            chosen = (a[order] for a in (time, layer, unit, datum, kind, passed))
        return KinkLog(*jax.device_put(list(chosen)))

    def num_used(self) -> int:
        """The number of entries that are used, the first ones."""
        return int(np.searchsorted(np.asarray(self.time), np.inf))

    def used(self) -> "KinkLog":
        """Without the entries that are not used."""
        count = self.num_used()
        return KinkLog(*jax.device_put([np.asarray(a)[:count] for a in _columns(self)]))


def _columns(log: KinkLog) -> tuple[Array, ...]:
    return log.time, log.layer, log.unit, log.datum, log.kind, log.passed


def _require_one(log: KinkLog) -> None:
    """Raises `ArgumentError` for the logs of a batch."""
    if log.time.ndim != 1:
        got = Described(f"those of a batch, with leading axes of shape {log.time.shape[:-1]}")
        raise ArgumentError("kinks", got, "those of one trajectory, `trajectory.member(k).kinks`")
