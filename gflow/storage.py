"""Trajectories as Zarr stores on disk."""

import errno
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow.arguments import ArgumentError, Described, PyTree
from gflow.diagnostics import Diagnostics, Switch
from gflow.export import Column, named_parameters
from gflow.kink_log import KinkLog
from gflow.networks import ShallowNet
from gflow.results import RESULTS
from gflow.structure import difference, structure
from gflow.trajectory import Trajectory, single_trajectory

if TYPE_CHECKING:
    import xarray


def save_trajectory(trajectory: Trajectory, path: Path | str) -> None:
    """Writes a trajectory as a Zarr store that `xarray.open_zarr(path)` opens.

    Interpolants of `dense=True` are not stored, and a warning says so.

    **Raises:** `FileExistsError` if there is something at the path.
    """
    if Path(path).exists():
        found = "There is something already; remove it, or save under a new path"
        raise FileExistsError(errno.EEXIST, found, str(path))
    if single_trajectory("trajectory", trajectory).dense is not None:
        warnings.warn(
            "a store does not hold the interpolants of dense=True: what is loaded gives the "
            "networks at saved times. pickle keeps all.",
            stacklevel=2,
        )
    data = trajectory.to_xarray()
    data.to_zarr(str(path), mode="w-", zarr_format=2, consolidated=True)


def load_trajectory(path: Path | str, like: PyTree = None) -> Trajectory:
    """The trajectory in a Zarr store written by `save_trajectory`.

    `like` is a network of the structure that was saved, with the same activation, shapes and types.
    A `ShallowNet` needs none, unless its activation is a function of one's own.

    **Raises:** `FileNotFoundError` if there is nothing at the path; `ArgumentError` for what is no
    such store, and where `like` is missing or differs from what was saved.
    """
    data = _opened(Path(path))
    attributes = data.attrs
    if like is None:
        like = _shallow_net(data)
    elif differs := difference(structure(like), json.loads(attributes["structure"])):
        got, saved = differs
        raise ArgumentError("like", Described(got), f"what was saved, {saved}")
    arrays, fixed = eqx.partition(like, eqx.is_array)
    at_times = jax.tree.map(lambda a: a[None], arrays)
    read = [column.read(data) for column in named_parameters(at_times)]
    return Trajectory(
        ts=_array(data, "time"),
        params=eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), read), fixed),
        risk=_array(data, "risk"),
        grad_norm=_array(data, "grad_norm"),
        diagnostics=Diagnostics(
            _array(data, "energy"), _array(data, "balance") if "balance" in data else None
        ),
        stats=_stats(attributes),
        result=getattr(RESULTS, attributes["result"]),
        kind=attributes["kind"],
        method=attributes["method"],
        kinks=_kink_log(data),
        observed=_observed(data),
        kinks_ignored=bool(attributes["kinks_ignored"]),
        switches=_switches(data),
    )


def _opened(path: Path) -> "xarray.Dataset":
    import xarray

    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "There is no store", str(path))
    try:
        with xarray.open_zarr(str(path), consolidated=True) as opened:
            data = opened.load()
    except Exception as error:
        got = Described(f"{str(path)!r}, which cannot be read ({error})")
        raise ArgumentError("path", got, "a store of `save_trajectory`") from None
    if not {"structure", "result", "stats_dtypes"} <= set(data.attrs):
        got = Described(f"{str(path)!r}, which holds something else")
        raise ArgumentError("path", got, "a store of `save_trajectory`, of this version of gflow")
    if data["risk"].dtype == np.float64 and jnp.zeros(()).dtype != jnp.float64:
        warnings.warn(
            f"{str(path)!r} holds numbers in float64, and JAX runs in float32, to which they are "
            "rounded. jax.config.update('jax_enable_x64', True) keeps them.",
            stacklevel=3,
        )
    return data


def _shallow_net(data: "xarray.Dataset") -> ShallowNet:
    """A `ShallowNet` as it was saved."""
    wanted = "a network of the structure that was saved"
    if "activation" not in data.attrs:
        raise ArgumentError("like", Described("None, for a network that is no ShallowNet"), wanted)
    if not data.attrs["activation_is_named"]:
        own = f"None, for a ShallowNet with an activation of one's own, {data.attrs['activation']}"
        raise ArgumentError("like", Described(own), wanted + ", with that function")
    first = {name: _array(data, name)[0] for name in "wbvc" if name in data}
    return ShallowNet.from_arrays(
        **dict.fromkeys("wbvc") | first,
        activation=data.attrs["activation"],
        output_scale=data.attrs["output_scale"],
    )


def _stats(attributes: dict[str, Any]) -> dict[str, Array]:
    types = dict(entry.rsplit(":", 1) for entry in attributes["stats_dtypes"].split())
    return {
        name: jnp.asarray(np.asarray(attributes[f"stats_{name}"], jnp.dtype(kind)))
        for name, kind in types.items()
    }


def _array(data: "xarray.Dataset", name: str) -> Array:
    return jnp.asarray(data[name].to_numpy(), data[name].attrs.get("jax_dtype"))


def _kink_log(data: "xarray.Dataset") -> KinkLog | None:
    if "kink_kind" not in data:
        return None
    names = ("time", "layer", "unit", "datum", "kind", "passed")
    return KinkLog(*(_array(data, f"kink_{name}") for name in names))


def _observed(data: "xarray.Dataset") -> dict[str, Array]:
    observed: dict[str, Array] = {}
    for name in map(str, data):
        attributes = data[name].attrs
        if not name.startswith("observed_") or attributes["long_name"] in observed:
            continue
        kind = jnp.dtype(attributes.get("jax_dtype", data[name].dtype))
        stem = name.rsplit(".", 1)[0] if kind.kind == "c" else name
        column = Column(stem, (), jnp.zeros((), kind), attributes["long_name"])
        observed[column.long_name] = column.read(data)
    return observed


def _switches(data: "xarray.Dataset") -> tuple[Switch, ...]:
    solvers = data.attrs["switch_solvers"].split()
    if not solvers:
        return ()
    columns = (_array(data, f"switch_{name}") for name in ("time", "num_steps"))
    return tuple(Switch(*row) for row in zip(solvers, *columns))
