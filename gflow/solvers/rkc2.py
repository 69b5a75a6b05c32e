r"""The Runge–Kutta–Chebyshev method of second order."""

from collections.abc import Callable
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gflow.arguments import positive_int
from gflow.solvers.stabilised import AbstractStabilised, StabilisedStep


@final
class RKC2(AbstractStabilised):
    r"""The second-order Runge–Kutta–Chebyshev method, stable on
    $[-\tfrac23(s^2-1)(1-\tfrac2{15}\varepsilon),\, 0]$ with s stages, ε = 2/13.

    $$Y_j = (1-\mu_j-\nu_j)\,y_0 + \mu_j Y_{j-1} + \nu_j Y_{j-2}
      + \tilde\mu_j h\,(F_{j-1} - a_{j-1} F_0), \qquad j = 2, \dots, s,$$

    from $w_0 = 1 + \varepsilon/s^2$, $w_1 = T_s'(w_0)/T_s''(w_0)$,
    $b_j = T_j''(w_0)/T_j'(w_0)^2$, $a_j = 1 - b_j T_j(w_0)$, $\mu_j = 2 b_j w_0/b_{j-1}$,
    $\nu_j = -b_j/b_{j-2}$ and $\tilde\mu_j = 2 b_j w_1/b_{j-1}$. The error is estimated by
    $\tfrac1{15}(12(y_0-y_1) + 6h(F_0+F_1)) = \tfrac1{15}h^3y''' + \dots$

    It needs the memory of a dozen vectors for any number of stages, and no Jacobian. It is for
    stiff fields whose Jacobian has a real spectrum, such as gradient flows; small positive
    eigenvalues do no harm.

    **Arguments:**

    - `max_stages`: steps that need more are rejected. In float32 at most 86 are used, since
      rounding errors grow like s².

    Sommeijer, Shampine and Verwer, J. Comput. Appl. Math. 88 (1998) 315.
    """

    max_stages: int = 2000

    def __check_init__(self):
        positive_int("max_stages", self.max_stages, minimum=2)

    def order(self, terms) -> int:
        return 2

    def error_order(self, terms) -> int:
        return 3

    def stages(self, z: Float[Array, ""]) -> Int[Array, ""]:
        s = jnp.ceil(jnp.sqrt(1 + z / 0.653))
        # Rounding errors u grow to about s² u/10 of the change in a step.
        possible = s <= jnp.minimum(self.max_stages, 0.03 / jnp.sqrt(jnp.finfo(z.dtype).eps))
        return jnp.where(possible, jnp.maximum(s, 2), 0).astype(int)

    def advance(self, field: Callable, t0, h, y0, f0, stages: Int[Array, ""]) -> StabilisedStep:
        shift, w1 = _shift_and_scale(stages, h.dtype)
        zero = ChebyshevValues.zero(shift)
        one = zero.next()
        first = zero.b * w1

        def unfinished(c):
            return c[0] <= stages + 1

        def stage(c):
            j, new, old, time, old_time, d, old_d, _ = c
            f = field(t0 + time * h, y0 + d)
            now = new.next()
            mu, nu, a = 2 * (1 + shift) * now.b / new.b, -now.b / old.b, 1 - new.b * new.t
            step = 2 * w1 * now.b / new.b
            next_d = mu * d + nu * old_d + step * h * (f - a * f0)
            next_time = mu * time + nu * old_time + step * (1 - a)
            # The last iteration only evaluates the field.
            going = j <= stages
            pick = lambda new, old: jnp.where(going, new, old)
            times = pick(next_time, time), pick(time, old_time)
            return j + 1, now, new, *times, pick(next_d, d), pick(d, old_d), f

        start = (jnp.asarray(2), one, zero, first, 0 * first, first * h * f0, 0 * f0, f0)
        *_, d, _, f1 = jax.lax.while_loop(unfinished, stage, start)
        return StabilisedStep(d, f1, 0.4 * h * (f0 + f1) - 0.8 * d)


class ChebyshevValues(NamedTuple):
    """T_j and two derivatives at 1 + shift, and the differences of all three from those of T_{j−1}.

    The recurrences of the differences lose no digits for small shifts.
    """

    shift: Float[Array, ""]
    t: Float[Array, ""]
    slope: Float[Array, ""]
    curve: Float[Array, ""]
    dt: Float[Array, ""]
    dslope: Float[Array, ""]
    dcurve: Float[Array, ""]
    degree: Int[Array, ""]

    @classmethod
    def zero(cls, shift) -> "ChebyshevValues":
        """T_0, with the differences from T_{−1} = T_1."""
        one = jnp.ones_like(shift)
        return cls(shift, one, 0 * one, 0 * one, -shift, -one, 0 * one, jnp.asarray(0))

    def next(self) -> "ChebyshevValues":
        """Those of T_{j+1}."""
        dt = self.dt + 2 * self.shift * self.t
        dslope = self.dslope + 2 * self.shift * self.slope + 2 * self.t
        dcurve = self.dcurve + 2 * self.shift * self.curve + 4 * self.slope
        values = (self.t + dt, self.slope + dslope, self.curve + dcurve)
        return ChebyshevValues(self.shift, *values, dt, dslope, dcurve, self.degree + 1)

    @property
    def b(self) -> Float[Array, ""]:
        """b_j = T_j''/T_j'², and b_2 for j < 2."""
        slope = jnp.where(self.degree < 2, 4 * (1 + self.shift), self.slope)
        return jnp.where(self.degree < 2, 4.0, self.curve) / slope**2


def _shift_and_scale(stages: Int[Array, ""], dtype) -> tuple[Array, Array]:
    """w0 − 1 and w1."""
    s = stages.astype(dtype)
    shift = 2 / (13 * s**2)
    root = jnp.sqrt(shift * (2 + shift))
    angle = s * jnp.log1p(shift + root)
    sine, cosine = jnp.sinh(angle), jnp.cosh(angle)
    return shift, sine * root**2 / (cosine * s * root - (1 + shift) * sine)
