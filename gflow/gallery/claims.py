"""What an experiment of the gallery shows: claims, theory's number beside gflow's, and a figure."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gflow.arguments import ArgumentError

# The colours of all figures, in the order in which series get them.
BLACK, RED, AMBER, BLUE, GREEN = "black", "#c44536", "#e0a458", "#2a6f97", "#588157"


@dataclass(frozen=True)
class Claim:
    """What a paper says, beside what was measured.

    - `says`: the claim in a sentence; `source`: where it stands.
    - `expected`, `obtained`: theory's value and the measured one.
    - `agrees`: whether they agree. `finding`: why not, where they do not and that is understood.
    """

    says: str
    source: str
    expected: str
    obtained: str
    agrees: bool
    finding: str = ""

    @property
    def verdict(self) -> Literal["agrees", "finding", "disagrees"]:
        """One word for the row."""
        if self.agrees:
            return "agrees"
        return "finding" if self.finding else "disagrees"

    def as_json(self) -> dict[str, Any]:
        """The fields and the verdict."""
        return asdict(self) | {"verdict": self.verdict}

    def because(self, finding: str, seen: bool = True) -> "Claim":
        """The claim with the reason why it does not hold, if it does not and the reason is seen."""
        return replace(self, finding=finding) if seen and not self.agrees else self


def equal(says: str, source: str, expected: float, obtained: float, within: float) -> Claim:
    """A claim on a number, which holds within a relative error."""
    agrees = abs(obtained - expected) <= within * abs(expected)
    digits = max(3, min(15, _digits(within)))
    shown = f"{expected:.{digits}g}", f"{obtained:.{digits}g}"
    return Claim(says, source, *shown, agrees=bool(agrees))


def at_most(says: str, source: str, bound: float, obtained: float) -> Claim:
    """A claim that a number is at most a bound."""
    return Claim(says, source, f"≤ {bound:.6g}", f"{obtained:.6g}", bool(obtained <= bound))


def at_least(says: str, source: str, bound: float, obtained: float) -> Claim:
    """A claim that a number is at least a bound."""
    return Claim(says, source, f"≥ {bound:.6g}", f"{obtained:.6g}", bool(obtained >= bound))


def _digits(within: float) -> int:
    """How many digits a relative error leaves, with one more to see it by."""
    if not 0 < within < 1:
        raise ArgumentError("within", within, "a relative error, positive and less than 1")
    return len(f"{1 / within:.0f}") + 1


@dataclass(frozen=True)
class Exhibit:
    """The outcome of one experiment: its claims and a figure, None if it ended in an error."""

    claims: tuple[Claim, ...]
    figure: Figure | None

    @property
    def stands(self) -> bool:
        """Whether each claim agrees, or is a finding."""
        return all(claim.verdict != "disagrees" for claim in self.claims)


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels side by side, and their axes, whose series have the colours."""
    size = (3.7 * number, 2.9)
    figure, axes = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.set_prop_cycle(color=(BLACK, RED, AMBER, BLUE, GREEN))
    return figure, list(axes[0])
