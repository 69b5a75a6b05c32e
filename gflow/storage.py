"""Trajectories as Zarr stores on disk."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from gflow.activations import as_activation
from gflow.arguments import ArgumentError, Described, PyTree
from gflow.export import named_parameters
from gflow.kink_log import KinkLog
from gflow.networks import ShallowNet
from gflow.results import RESULTS
from gflow.trajectory import Diagnostics, Switch, Trajectory


def save_trajectory(trajectory: Trajectory, path: Path | str) -> None:
    """Writes a trajectory as a Zarr store that `xarray.open_zarr(path)` opens."""
    trajectory.to_xarray().to_zarr(str(path), mode="w-", zarr_format=2, consolidated=True)


def load_trajectory(path: Path | str, like: PyTree = None) -> Trajectory:
    """The trajectory in a Zarr store written by `save_trajectory`.

    `like` is a network of the right structure; a `ShallowNet` needs none.
    """
    import xarray

    with xarray.open_zarr(str(path), consolidated=True) as opened:
        data = opened.load()
    attributes = data.attrs
    if like is None:
        if not _is_known(attributes.get("activation")):
            wanted = "a network of the structure that was saved"
            raise ArgumentError(
                "like",
                Described("None for a network that is not a ShallowNet of a named activation"),
                wanted,
            )
        like = _shallow_net(data)
    arrays = [jnp.asarray(data[name].to_numpy()) for name, _, _ in named_parameters(like)]
    variables, fixed = eqx.partition(like, eqx.is_array)
    params = eqx.combine(jax.tree.unflatten(jax.tree.structure(variables), arrays), fixed)
    balance = jnp.asarray(data["balance"].to_numpy()) if "balance" in data else None
    stats = {
        name.removeprefix("stats_"): jnp.asarray(value)
        for name, value in attributes.items()
        if name.startswith("stats_")
    }
    return Trajectory(
        ts=jnp.asarray(data["time"].to_numpy()),
        params=params,
        risk=jnp.asarray(data["risk"].to_numpy()),
        grad_norm=jnp.asarray(data["grad_norm"].to_numpy()),
        diagnostics=Diagnostics(jnp.asarray(data["energy"].to_numpy()), balance),
        stats=stats,
        result=getattr(RESULTS, attributes["result"]),
        kind=attributes["kind"],
        method=attributes["method"],
        kinks=_kink_log(data),
        observed={
            name.removeprefix("observed_"): jnp.asarray(data[name].to_numpy())
            for name in map(str, data)
            if name.startswith("observed_")
        },
        kinks_ignored=bool(attributes["kinks_ignored"]),
        switches=tuple(
            Switch(solver, jnp.asarray(time), jnp.asarray(num_steps))
            for solver, time, num_steps in attributes["switches"]
        ),
    )


def _kink_log(data) -> KinkLog | None:
    if "kink_kind" not in data:
        return None
    names = ("time", "unit", "datum", "kind")
    return KinkLog(*(jnp.asarray(data[f"kink_{name}"].to_numpy()) for name in names))


def _is_known(activation: str | None) -> bool:
    try:
        return activation is not None and bool(as_activation(activation))
    except ArgumentError:
        return False


def _shallow_net(data) -> ShallowNet:
    first = {name: data[name].to_numpy()[0] if name in data else None for name in "wbvc"}
    return ShallowNet.from_arrays(
        **first,
        activation=data.attrs["activation"],
        output_scale=data.attrs["output_scale"],
    )
