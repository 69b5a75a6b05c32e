"""Chatterjee's criterion for convergence to a global minimum, proved or refuted over a ball, and
tangent kernels."""

from gflow.certificates.activation_bounds import SlopeBounds
from gflow.certificates.bounds import SumOfSquares
from gflow.certificates.chatterjee import Certificate, Envelope, chatterjee
from gflow.certificates.tangent_kernel import (
    PLConstants,
    pl_constants,
    tangent_kernel,
    tangent_kernel_min_eigenvalue,
)

__all__ = [
    "Certificate",
    "Envelope",
    "PLConstants",
    "SlopeBounds",
    "SumOfSquares",
    "chatterjee",
    "pl_constants",
    "tangent_kernel",
    "tangent_kernel_min_eigenvalue",
]
