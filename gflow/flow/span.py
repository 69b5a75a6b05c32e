"""Over which times a flow goes, and at which it is saved."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import ArgumentError, Described, finite, is_concrete, real_array

# Times to save at that differ from an end by less than this fraction of the later one are that end;
# by two roundings, where they are in float32.
_ROUNDING_OF_TIMES = 1e-14


class Span(NamedTuple):
    """Start and end of a flow, and the times to save it at, inf in slots that are not wanted."""

    t0: Float[Array, ""]
    t1: Float[Array, ""]
    ts: Float[Array, " times"]

    @property
    def num_times(self) -> Int[Array, ""]:
        """How many times are wanted."""
        return jnp.sum(jnp.isfinite(self.ts))

    def padded(self) -> "Span":
        """With as many slots as the next power of two, so that few numbers of times compile."""
        slots = 2 ** max(1, (len(self.ts) - 1).bit_length())
        return self._replace(ts=np.pad(self.ts, (0, slots - len(self.ts)), constant_values=np.inf))

    def filled(self, count: Int[Array, ""]) -> Float[Array, " times"]:
        """The first `count` times to save at, and inf for the others."""
        return jnp.where(jnp.arange(len(self.ts)) < count, self.ts, jnp.inf)


def span_of(t0: Any, t1: Any, ts: Any, dtype: Any) -> Span:
    """The span of these times, by default of 200 to save at."""
    if is_concrete(t0, t1):
        t0 = finite("t0", t0)
        if finite("t1", t1) <= t0:
            raise ArgumentError("t1", t1, f"a finite time after t0 = {t0:g}")
    if ts is None:
        like = np if is_concrete(t0, t1) else jnp
        span = t1 - t0
        # Ten roundings of short spans keep the first gaps distinct; 1e-3 is a natural first time.
        first = like.minimum(1e-3, 1e-5 * span)
        ts = t0 + like.append(0.0, first * (span / first) ** like.linspace(0.0, 1.0, 199))
        ts = like.append(ts[:-1], t1)
    elif is_concrete(ts):
        ts = _given_times(ts, t0, t1)
    as_array: Any = lambda a: (np if is_concrete(a) else jnp).asarray(a, dtype)
    return Span(as_array(t0), as_array(t1), as_array(ts))


def _given_times(ts, t0, t1) -> np.ndarray:
    wanted = f"increasing finite times within [t0, t1] = [{t0}, {t1}]"
    times = real_array("ts", ts, wanted)
    if times.ndim != 1 or len(times) == 0:
        raise ArgumentError("ts", Described(f"an array of shape {times.shape}"), wanted)
    if is_concrete(t0, t1):
        # As np.arange(0, 0.31, 0.1), whose last entry is above 0.3 by a rounding.
        kind = getattr(ts, "dtype", times.dtype)
        exact = not jnp.issubdtype(kind, jnp.floating)
        fraction = 0.0 if exact else 2 * float(jnp.finfo(kind).eps)
        rounding = max(_ROUNDING_OF_TIMES, fraction) * max(abs(t0), abs(t1))
        for end in (t0, t1):
            times = np.where(np.abs(times - end) <= rounding, end, times)
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ArgumentError("ts", Described(f"{times}"), wanted)
    if is_concrete(t0, t1) and (times[0] < t0 or times[-1] > t1):
        raise ArgumentError("ts", Described(f"times {times[0]:.17g} to {times[-1]:.17g}"), wanted)
    return times
