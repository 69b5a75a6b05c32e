"""The gallery: claims of the papers behind gflow, each an experiment with theory's number beside
the measured one.

An experiment is a module of this package with a function `exhibit(*, long=False)`, which uses
gflow as anybody would and returns an `Exhibit`. `gflow gallery` lists and runs them.
"""

import importlib

from gflow.arguments import ArgumentError
from gflow.gallery.claims import Claim, Exhibit

# In the order in which they are told.
NAMES = (
    "constant_slope",
    "generalized_gradients",
    "rate_one",
    "relu_chains",
    "degenerate_units",
    "affine_targets",
    "piecewise_affine_targets",
    "constant_targets",
    "dead_networks",
    "chatterjee_criterion",
    "criterion_and_exponent",
    "spurious_minima",
    "early_alignment",
    "jump_target",
    "polynomial_targets",
    "normalised_units",
    "clipped_descent",
    "deep_linear",
    "biased_kernel",
    "threshold_networks",
    "differential_inclusion",
    "linear_rate",
    "orthogonal_data",
    "nearly_orthogonal_data",
    "linear_regions",
    "averaged_sgd",
)

__all__ = ["NAMES", "Claim", "Exhibit", "exhibit", "text", "title"]


def exhibit(name: str, *, long: bool = False) -> Exhibit:
    """Runs an experiment of the gallery, in float64, as `jax.enable_x64(True)` sets it.

    **Arguments:** `name`: one of `gflow.gallery.NAMES`. `long`: with more cases, for minutes.

    **Returns:** its claims and figure. **Raises:** `ArgumentError` for an unknown name.
    """
    import jax

    from gflow.plots.style import space_ticks

    with jax.enable_x64(True):
        shown = _module(name).exhibit(long=long)
    for axis in (axis for ax in shown.figure.axes for axis in (ax.xaxis, ax.yaxis)):
        space_ticks(axis)
    return shown


def title(name: str) -> str:
    """What the experiment is about, in a line."""
    return (_module(name).__doc__ or "").partition("\n")[0].rstrip(".")


def text(name: str) -> str:
    """The claim and its formulas, in Markdown."""
    return (_module(name).__doc__ or "").partition("\n")[2].strip()


def _module(name: str):
    if name not in NAMES:
        raise ArgumentError("name", name, f"one of {', '.join(NAMES)}")
    return importlib.import_module(f"gflow.gallery.{name}")
