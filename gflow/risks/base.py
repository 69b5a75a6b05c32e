"""The abstract risk."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


class Risk(eqx.Module):
    """A scalar function of a network, `risk(net)`: the mean of a loss over data or inputs."""

    @abstractmethod
    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        """The risk of the network."""
