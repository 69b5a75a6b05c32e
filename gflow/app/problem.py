"""What a configuration asks for: the table, the risk on it, and the network at the start."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import numpy as np

from gflow import piecewise
from gflow.activations import as_activation
from gflow.app.config import Config
from gflow.app.data import Table, TableOptions, file_hash, load_table
from gflow.arguments import ArgumentError, Described
from gflow.networks import ShallowNet, named_initialisation
from gflow.risks import EmpiricalRisk, PenalisedRisk, PopulationRisk, Risk


def read_table(config: Config, say: Callable[[str], None]) -> Table:
    """The table, whose size and changes are said.

    **Raises:** `ArgumentError` for a table that cannot be used, or is not that of `data_hash`.
    """
    options = TableOptions(**{f.name: getattr(config, f.name) for f in fields(TableOptions)})
    found = file_hash(config.data)
    if config.data_hash is not None and found != config.data_hash:
        got = Described(f"{config.data}, whose content is not that of the run (SHA-256 {found})")
        wanted = "the same file, or no line `data_hash` in the configuration"
        raise ArgumentError("data", got, wanted)
    table = load_table(config.data, options, num_points=config.num_points, say=say)
    rows, columns = table.x.shape
    features = f"{columns} feature{'s' * (columns > 1)}"
    say(f"{table.name}: {rows:,} rows, {features}, target {table.target}.")
    for note in table.notes:
        say(note)
    return table


def with_source(config: Config) -> Config:
    """The configuration with a path to the data that holds in any folder, and their hash."""
    found = file_hash(config.data)
    if found is None:
        return config
    return replace(config, data=str(Path(config.data).resolve()), data_hash=found)


def risk_of(config: Config, table: Table) -> Risk:
    """The risk on the rows to learn from, or the exact one of a target on [-1, 1], with the weight
    decay if there is any."""
    of_data = _risk_of_data(config, table)
    if config.weight_decay == 0:
        return of_data
    return PenalisedRisk(of_data, weight_decay=config.weight_decay)


def _risk_of_data(config: Config, table: Table) -> Risk:
    if config.risk == "population":
        target = piecewise.named(config.data)
        return PopulationRisk(target, piecewise.named_density(config.density, *target.interval))
    return _risk_on(config, table, ~_held_out(config, table))


def observed_by(config: Config, table: Table) -> dict[str, Risk]:
    """What is observed along the trajectories: the risk on the rows that are held out, if any, and
    the risk without weight decay, if there is any."""
    rows = _held_out(config, table)
    observed: dict[str, Risk] = {}
    if rows.any():
        observed["test risk"] = _risk_on(config, table, rows)
    if config.weight_decay > 0:
        observed["risk of the data"] = _risk_of_data(config, table)
    return observed


def _held_out(config: Config, table: Table) -> np.ndarray:
    """True for the rows that are held out, chosen by the seed.

    **Raises:** `ArgumentError` if the fraction leaves no rows on one side.
    """
    rows = len(table.y)
    count = round(config.test_fraction * rows)
    if config.test_fraction > 0 and not 0 < count < rows:
        got = Described(f"{config.test_fraction:g} of {rows} rows, which is {count}")
        raise ArgumentError("test_fraction", got, "rows to learn from, and rows to test")
    return np.random.default_rng(config.seed).permutation(rows) < count


def _risk_on(config: Config, table: Table, rows: np.ndarray) -> EmpiricalRisk:
    x, y = np.asarray(table.x[rows], config.precision), table.y[rows]
    y = y.astype(int) if config.loss == "cross-entropy" else np.asarray(y, config.precision)
    return EmpiricalRisk(x, y, loss=config.loss)


def start_of(config: Config, table: Table) -> ShallowNet | eqx.nn.Sequential:
    """The network at the start, with one output for each class if the loss is cross-entropy."""
    in_size = table.x.shape[1]
    out_size = len(table.classes) if config.loss == "cross-entropy" else "scalar"
    if config.hidden is not None:
        return _deep_start(config, in_size, out_size)
    return ShallowNet(
        in_size,
        config.width,
        out_size,
        key=jax.random.key(config.seed),
        activation=config.activation,
        init=config.init,
        scale=config.scale,
        use_bias=config.bias,
        dtype=config.precision,
    )


def _deep_start(
    config: Config, in_size: int, out_size: int | Literal["scalar"]
) -> eqx.nn.Sequential:
    """A layer for each of the widths, drawn like the hidden layer of a `ShallowNet`."""
    sizes = [in_size, *config.widths, out_size]
    activation, layers = eqx.nn.Lambda(as_activation(config.activation)), []
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), k))
        layer = eqx.nn.Linear(inputs, outputs, config.bias, dtype=config.precision, key=keys[0])
        law = named_initialisation(config.init, int(inputs), 1)
        drawn = [
            None if a is None else config.scale * std * jax.random.normal(key, a.shape, a.dtype)
            for key, std, a in zip(keys, (law.w, law.b), (layer.weight, layer.bias))
        ]
        none = lambda a: a is None
        parts = lambda layer: (layer.weight, layer.bias)
        layers += [eqx.tree_at(parts, layer, tuple(drawn), is_leaf=none), activation]
    return eqx.nn.Sequential(layers[:-1])
