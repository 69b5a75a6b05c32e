"""Chatterjee's criterion for convergence to a global minimum, proved over a ball or refuted, and
tangent kernels."""

from gflow.certificates.activation_bounds import SlopeBounds as SlopeBounds
from gflow.certificates.bounds import SumOfSquares as SumOfSquares
from gflow.certificates.chatterjee import (
    Certificate as Certificate,
    Envelope as Envelope,
    chatterjee as chatterjee,
)
from gflow.certificates.tangent_kernel import (
    PLConstants as PLConstants,
    pl_constants as pl_constants,
    tangent_kernel as tangent_kernel,
    tangent_kernel_min_eigenvalue as tangent_kernel_min_eigenvalue,
)
