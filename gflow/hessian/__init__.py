"""Eigenvalues of the Hessian of a risk, matrix-free."""

from gflow.hessian.sharpness import sharpness
from gflow.hessian.spectrum import Spectrum, hessian_spectrum

__all__ = ["Spectrum", "hessian_spectrum", "sharpness"]
