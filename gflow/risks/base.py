"""The abstract risk."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


class Risk(eqx.Module):
    """A scalar function of a network, `risk(net)`: a mean of losses over data, or an integral."""

    @abstractmethod
    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        """The risk of the network."""
