"""A test set of nonsmooth gradient flows: flows of small networks whose answers are known.

Each is a `KnownFlow`: a network, a risk, a start, and θ at some times, in closed form or certified:
two integrations agree on it, by two methods or by one at two tolerances. Its right-hand side is
NumPy alone, so that any solver can be measured. `python -m gflow.testsets DIR` writes all of them
as plain files.
"""

from gflow.arguments import ArgumentError
from gflow.testsets.closed_forms import CLOSED_FORMS
from gflow.testsets.known_flow import KnownEvent, KnownFlow
from gflow.testsets.problems import OnData, OnDensity, OnGaussian
from gflow.testsets.references import REFERENCES, reference
from gflow.testsets.true_risks import TRUE_RISKS

_BUILDERS = CLOSED_FORMS | TRUE_RISKS
NAMES = (*_BUILDERS, *REFERENCES)

# The test systems of docs/theory/test_systems.md that are no flows.
NOT_FLOWS = {
    "O7": "critical values and zig-zag saddles, where a flow rests",
    "O8": "identities that hold along every flow",
    "O12": "steps of descent",
    "O18": "two integrals",
    "O19": "kinds of critical points of smooth functions",
    "O20": "synthetic gaps of known law",
}

__all__ = [
    "NAMES",
    "NOT_FLOWS",
    "KnownEvent",
    "KnownFlow",
    "OnData",
    "OnDensity",
    "OnGaussian",
    "known_flow",
]


def known_flow(name: str) -> KnownFlow:
    """The flow of that name, one of `NAMES`. **Raises:** `ArgumentError` for an unknown name."""
    if name in REFERENCES:
        return reference(name)
    if name not in _BUILDERS:
        raise ArgumentError("name", name, f"one of {', '.join(NAMES)}")
    return _BUILDERS[name]()
