"""A trajectory as labelled arrays."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow.activations import Activation, as_activation
from gflow.arguments import ArgumentError, PyTree
from gflow.networks import ShallowNet
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.structure import structure

if TYPE_CHECKING:
    import pandas
    import xarray

    from gflow.trajectory import Trajectory

# Variables that are no parameters, and what the names of others begin with.
_NAMES: tuple[str, ...] = ("time", "risk", "grad_norm", "energy", "balance")
_PREFIXES = ("kink", "switch", "observed")


def as_dataset(trajectory: "Trajectory") -> "xarray.Dataset":
    """What `Trajectory.to_xarray` returns."""
    import xarray

    changed = "flow_time" in trajectory.observed
    columns = [
        Column("time", ("time",), trajectory.ts, "changed time" if changed else "flow time"),
        Column("risk", ("time",), trajectory.risk, "risk"),
        Column("grad_norm", ("time",), trajectory.grad_norm, "gradient norm"),
        Column("energy", ("time",), trajectory.diagnostics.energy, "energy drift"),
    ]
    if trajectory.diagnostics.balance is not None:
        balance = trajectory.diagnostics.balance
        columns.append(Column("balance", ("time", "unit"), balance, "balance drift"))
    columns += named_parameters(trajectory.params)
    known: set[str] = set()
    for name, array in trajectory.observed.items():
        safe = f"observed_{name.replace('/', '_')}"
        while safe in known:
            safe += "_"
        known.add(safe)
        dims = ("time", *(f"{safe}_axis_{axis}" for axis in range(array.ndim - 1)))
        columns.append(Column(safe, dims, array, name))
    if trajectory.kinks is not None:
        columns += [
            Column(f"kink_{name}", ("kink",), getattr(trajectory.kinks, name), f"{name} of kink")
            for name in ("time", "layer", "unit", "datum", "kind", "passed")
        ]
    if trajectory.switches:
        columns += [
            Column(
                f"switch_{name}",
                ("switch",),
                jnp.stack([getattr(switch, name) for switch in trajectory.switches]),
                f"{name.replace('_', ' ')} at change of solver",
            )
            for name in ("time", "num_steps")
        ]
    variables = {name: value for column in columns for name, value in column.variables().items()}
    variables["energy"][2]["units"] = "units of risk"
    flow_time = variables["observed_flow_time" if changed else "time"]
    flow_time[2]["units"] = "flow time (h per step of size h)"
    if "kink_kind" in variables:
        _, values, attributes = variables["kink_kind"]
        attributes["flag_values"] = np.array(list(KinkKind), values.dtype)
        attributes["flag_meanings"] = " ".join(k.label.replace(" ", "_") for k in KinkKind)
    return xarray.Dataset(variables, attrs=_attributes(trajectory)).set_coords("time")


def _attributes(trajectory: "Trajectory") -> dict[str, Any]:
    """Strings and numbers only, which all files can hold."""
    stats = {name: np.asarray(value) for name, value in trajectory.stats.items()}
    attributes = {
        "kind": trajectory.kind,
        "method": trajectory.method,
        "kinks_ignored": int(trajectory.kinks_ignored),
        "result": trajectory.result_name,
        "message": trajectory.message,
        "switch_solvers": " ".join(switch.solver for switch in trajectory.switches),
        "structure": json.dumps(structure(trajectory.params, leading=1)),
        **{f"stats_{name}": value.item() for name, value in stats.items()},
        "stats_dtypes": " ".join(f"{name}:{value.dtype}" for name, value in stats.items()),
    }
    if isinstance(trajectory.params, ShallowNet):
        activation = trajectory.params.activation
        attributes["activation"] = activation.name
        attributes["activation_is_named"] = int(_is_named(activation))
        attributes["output_scale"] = trajectory.params.output_scale
    return attributes


def _is_named(activation: Activation) -> bool:
    """Whether the name of an activation gives it back."""
    try:
        return bool(as_activation(activation.name) == activation)
    except ArgumentError:
        return False


class Column(NamedTuple):
    """An array with its name and dimensions, to be stored."""

    name: str
    dims: tuple[str, ...]
    array: Array
    long_name: str

    def variables(self) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]:
        """As variables of an `xarray.Dataset`, of types that files can hold."""
        array, dims, attributes = self.array, self.dims, {"long_name": self.long_name}
        if (stored_as := _stored_as(array)) is not None:
            attributes["jax_dtype"] = str(array.dtype)
        if stored_as == "key":
            array, dims = jax.random.key_data(array), (*dims, f"{self.name}_key")
            return {self.name: (dims, np.asarray(array).view(np.int32), attributes)}
        if stored_as == "parts":
            values = np.asarray(array)
            return {
                f"{self.name}.{part}": (dims, getattr(values, part), dict(attributes))
                for part in ("real", "imag")
            }
        values = np.asarray(array)
        values = values if stored_as is None else values.astype(stored_as)
        return {self.name: (dims, values, attributes)}

    def read(self, data: "xarray.Dataset") -> Array:
        """The array as it was stored, in the type of this one."""
        stored_as = _stored_as(self.array)
        if stored_as == "parts":
            real, imag = (data[f"{self.name}.{part}"].to_numpy() for part in ("real", "imag"))
            return jnp.asarray((real + 1j * imag).astype(self.array.dtype))
        values = data[self.name].to_numpy()
        if stored_as == "key":
            impl = jax.random.key_impl(self.array)
            return jax.random.wrap_key_data(jnp.asarray(values.view(np.uint32)), impl=impl)
        return jnp.asarray(values, self.array.dtype)


def _stored_as(array: Array) -> str | None:
    """How a type is stored that files cannot hold."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return "key"
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return "parts"
    if array.dtype in (bool, np.float32, np.float64):
        return None
    if jnp.issubdtype(array.dtype, jnp.floating):
        return "float32"
    return None if array.dtype.itemsize > 1 or array.dtype in (np.int8, np.uint8) else "int8"


def named_parameters(params: PyTree) -> list[Column]:
    """The arrays of a network with a leading axis of times."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(params, eqx.is_array))
    columns, known = [], set(_NAMES)
    for path, array in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "_")
        if not name or name.startswith(_PREFIXES) or name in known:
            name = f"params.{name}" if name else "params"
        while name in known:
            name += "_"
        known.add(name)
        dims = tuple(f"{name}_axis_{axis}" for axis in range(array.ndim - 1))
        if isinstance(params, ShallowNet):
            dims = ShallowNet.axis_names[name][: array.ndim - 1]
        columns.append(Column(name, ("time", *dims), array, f"parameter {name}"))
    return columns


def as_table(trajectory: "Trajectory") -> "pandas.DataFrame":
    """What `Trajectory.to_pandas` returns."""
    import pandas

    columns = {
        "risk": trajectory.risk,
        "grad_norm": trajectory.grad_norm,
        "energy": trajectory.diagnostics.energy,
        **{f"observed_{n}": a for n, a in trajectory.observed.items() if a.ndim == 1},
    }
    index = pandas.Index(np.asarray(trajectory.ts), name="time")
    return pandas.DataFrame({n: np.asarray(a) for n, a in columns.items()}, index=index)
