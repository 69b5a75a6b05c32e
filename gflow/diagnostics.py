"""What a run says of itself: drifts of identities, and changes of solver."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import is_concrete
from gflow.display import Shown


class Diagnostics(Shown, eqx.Module):
    """Drifts of identities at the saved times; all are zero along an exact gradient flow.

    - `energy`, shape (times,): L(θ(0)) − L(θ(t)) − ∫₀ᵗ‖θ'‖² ds, with ‖θ'‖² = Σ θ'²/τ for time
      scales τ. Along a descent the integral is that of its polygon, Σ‖Δθ‖²/h, and the drift is of
      order h. For a flow it is of order rtol · L(θ(0)), mostly from the error of the integral, not
      from that of L(θ(t)). If kinks are ignored and units slide along them, the integral counts the
      chatter across the kink: the drift then shows the sliding, at any tolerance, and not the
      accuracy.
    - `balance`, shape (times, width): the drift of ‖w_i‖² + b_i² − ‖v_i‖² since the start, for each
      unit of a `ShallowNet` with homogeneous activation that is trained as a whole, each square
      divided by its time scale; None otherwise.
    """

    energy: Float[Array, " times"]
    balance: Float[Array, "times width"] | None

    def summary(self) -> dict[str, str]:
        """The largest drifts in words, by name."""
        drifts = {"energy": self.energy, "balance": self.balance}
        return {
            f"{name} drift": f"{np.nanmax(np.abs(np.asarray(drift)), initial=0.0):.2g}"
            for name, drift in drifts.items()
            if drift is not None and is_concrete(drift)
        }


class Switch(eqx.Module):
    """A change of solver: the one that took over, when, and after how many steps."""

    solver: str = eqx.field(static=True)
    time: Float[Array, ""]
    num_steps: Int[Array, ""]

    def as_list(self) -> list:
        """Solver, time and number of steps as plain values, for files."""
        return [self.solver, float(self.time), int(self.num_steps)]
