"""A trajectory as labelled arrays."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from gflow.arguments import PyTree
from gflow.networks import ShallowNet
from gflow.nonsmooth.kink_kinds import KinkKind

if TYPE_CHECKING:
    import xarray

    from gflow.trajectory import Trajectory


def as_dataset(trajectory: "Trajectory") -> "xarray.Dataset":
    """What `Trajectory.to_xarray` returns."""
    import xarray

    variables: dict[str, tuple] = {
        "risk": ("time", np.asarray(trajectory.risk), {"long_name": "risk"}),
        "grad_norm": ("time", np.asarray(trajectory.grad_norm), {"long_name": "gradient norm"}),
        "energy": (
            "time",
            np.asarray(trajectory.diagnostics.energy),
            {"long_name": "energy drift", "units": "units of risk"},
        ),
    }
    if trajectory.diagnostics.balance is not None:
        balance = np.asarray(trajectory.diagnostics.balance)
        variables["balance"] = (("time", "unit"), balance, {"long_name": "balance drift"})
    variables |= {
        name: (dims, np.asarray(array), {"long_name": f"parameter {name}"})
        for name, dims, array in named_parameters(trajectory.params)
    }
    for name, array in trajectory.observed.items():
        dims = ("time", *(f"{name}_{axis}" for axis in range(array.ndim - 1)))
        variables[f"observed_{name}"] = (dims, np.asarray(array), {"long_name": name})
    if trajectory.kinks is not None:
        variables |= {
            f"kink_{name}": ("kink", np.asarray(getattr(trajectory.kinks, name)))
            for name in ("time", "unit", "datum")
        }
        variables["kink_kind"] = (
            "kink",
            np.asarray(trajectory.kinks.kind),
            {"long_name": "kind of kink", "flag_meanings": [k.label for k in KinkKind]},
        )
    flow_time = {"long_name": "flow time", "units": "flow time (h per step of size h)"}
    attributes = {f"stats_{name}": np.asarray(n).item() for name, n in trajectory.stats.items()}
    if isinstance(trajectory.params, ShallowNet):
        attributes |= {
            "activation": trajectory.params.activation.name,
            "output_scale": trajectory.params.output_scale,
        }
    return xarray.Dataset(
        variables,
        coords={"time": ("time", np.asarray(trajectory.ts), flow_time)},
        attrs={
            "kind": trajectory.kind,
            "method": trajectory.method,
            "kinks_ignored": int(trajectory.kinks_ignored),
            "switches": [s.as_list() for s in trajectory.switches],
            "result": trajectory.result_name,
            "message": trajectory.message,
            **attributes,
        },
    )


def named_parameters(params: PyTree) -> list[tuple[str, tuple[str, ...], Array]]:
    """Name, dimensions and array of each leaf of a network with a leading axis of times."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_array))
    rows = []
    for path, array in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        dims = tuple(f"{name}_{axis}" for axis in range(array.ndim - 1))
        if isinstance(params, ShallowNet):
            dims = ShallowNet.axis_names[name][: array.ndim - 1]
        rows.append((name, ("time", *dims), array))
    return rows
