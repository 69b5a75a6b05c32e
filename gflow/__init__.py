"""Gradient flow of neural networks: continuous flow, discrete descent, and how they compare."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gflow import api
    from gflow.api import *  # noqa: F403

    __all__: list[str] = []
    __all__ += api.__all__


if not TYPE_CHECKING:  # so that type checkers see misspelt names

    def __getattr__(name: str) -> Any:
        """The names of `gflow.api`, imported with the first in use: `gflow --help` needs none."""
        # matplotlib is imported with the first figure; the test set needs no JAX
        if name in ("plots", "testsets"):
            return importlib.import_module(f"gflow.{name}")
        if not name.startswith("__") or name in ("__all__", "__version__"):
            names = vars(importlib.import_module("gflow.api"))
            public = names.get("__all__", ())  # () while it is being imported
            globals().update({n: names[n] for n in (*public, "__all__") if n in names})
            if name in globals():  # a public name, or a module
                return globals()[name]
        raise AttributeError(f"module 'gflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(importlib.import_module("gflow.api").__all__)
