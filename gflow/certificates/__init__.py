"""Chatterjee's criterion for convergence to a global minimum, proved over a ball or refuted, and
tangent kernels."""

from gflow.certificates.bounds import SumOfSquares as SumOfSquares
from gflow.certificates.chatterjee import (
    Certificate as Certificate,
    Envelope as Envelope,
    chatterjee as chatterjee,
)
from gflow.certificates.slopes import SlopeBounds as SlopeBounds
from gflow.certificates.tangent_kernel import (
    PLConstants as PLConstants,
    pl_constants as pl_constants,
    smallest_eigenvalue as smallest_eigenvalue,
    tangent_kernel as tangent_kernel,
)
