"""The configuration of the main job: one dataclass, from the command line or a TOML file."""

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gflow.arguments import (
    ArgumentError,
    Described,
    one_of,
    positive,
    positive_int,
)

# Where each solver is; "auto" leaves the choice to `solve_flow`. What needs JAX is imported where
# it is used, so that `--help` answers at once.
SOLVERS_BY_NAME: dict[str, str | None] = {
    "auto": None,
    "bdf5": "gflow.solvers:BDF5",
    "rodas5p": "gflow.solvers:Rodas5P",
    "rock4": "gflow.solvers:ROCK4",
    "rkc2": "gflow.solvers:RKC2",
    "tsit5": "diffrax:Tsit5",
    "dopri5": "diffrax:Dopri5",
    "dopri8": "diffrax:Dopri8",
    "bosh3": "diffrax:Bosh3",
    "heun": "diffrax:Heun",
    "kvaerno3": "diffrax:Kvaerno3",
    "kvaerno5": "diffrax:Kvaerno5",
}


@dataclass(frozen=True)
class Config:
    """The configuration of the main job."""

    data: str = "linnerud"
    """The data: "linnerud" (20 rows, 3 features) or "diabetes" (442 rows, 10 features), tables of
    scikit-learn; a .csv, .tsv, .txt or .parquet file; or a one-dimensional target on [-1, 1]: tent,
    absolute_value, step, affine, parabola, zigzag, wave."""
    target: str | None = None
    """The column to predict, for a file."""
    loss: Literal["squared", "logistic", "cross-entropy"] = "squared"
    """The loss: "squared" for numbers; for a column of classes "logistic" if there are two, with
    one output, or "cross-entropy", with one output for each."""
    features: str | None = None
    """The columns to predict from, separated by commas; by default all others."""
    drop: str | None = None
    """Columns to leave out, separated by commas."""
    missing: Literal["drop", "mean"] | None = None
    """What to do about missing entries: "drop" leaves out their rows, "mean" takes the mean of the
    column."""
    separator: str | None = None
    """The separator of a text file, such as ";" or tab; by default it is found out."""
    encoding: str | None = None
    """The encoding of a text file, such as cp1252 or utf-16; by default it is found out."""
    data_hash: str | None = None
    """The SHA-256 of the file, as a run writes it into its config.toml: another content is
    refused."""
    weight_decay: float = 0.0
    """λ of the weight decay λ/2 ‖θ‖², over all parameters, that is added to the risk."""
    risk: Literal["empirical", "population"] = "empirical"
    """The risk: "empirical", the mean over the data, or "population", the exact integral over the
    interval, for one-dimensional targets."""
    test_fraction: float = 0.0
    """The fraction of the rows that is held out, to observe the risk on them."""
    density: str = "uniform"
    """The density of the population risk: uniform, triangular, parabolic."""
    standardise: bool = True
    """Give features and target mean 0 and standard deviation 1."""
    num_points: int = 100
    """Number of equally spaced points of a one-dimensional target."""
    width: int = 4
    """Number of hidden units."""
    hidden: str | None = None
    """Numbers of units of several hidden layers, separated by commas, such as 16,16; instead of
    width."""
    activation: str = "relu"
    """Activation: relu, leaky_relu, leaky_relu(0.1), identity, tanh, sigmoid, softplus, silu, gelu,
    erf."""
    init: Literal["he", "standard_normal", "ntk", "mean_field"] = "he"
    """Initialisation: he, standard_normal, ntk, mean_field."""
    scale: float = 1.0
    """Factor on all initial parameters."""
    bias: bool = True
    """Hidden and output biases."""
    seed: int = 85
    """Seed of the initial parameters."""
    t1: float | None = None
    """Final flow time; a gradient-descent step of size h is flow time h. By default 1000, or less
    where the descents would take long."""
    follow: float | None = None
    """A later time, up to which only the flow is followed, to find its critical point."""
    num_times: int = 200
    """Number of logarithmically spaced times to save the flow at, besides those of the descents."""
    rtol: float | None = None
    """Relative tolerance of the flow; by default 1e-8, but 1e-6 if ReLU kinks are ignored, and 1e-4
    in float32."""
    atol: float | None = None
    """Absolute tolerance of the flow; by default a hundredth of the relative one, or less for small
    initial parameters."""
    solver: str = "auto"
    """Solver of the flow: auto (Tsit5, or BDF5 or ROCK4 if the flow is stiff), bdf5, rodas5p,
    rock4, rkc2, tsit5, dopri5, dopri8, bosh3, heun, kvaerno3, kvaerno5."""
    kinks: Literal["locate", "all", "ignore"] = "locate"
    """How the flow treats ReLU kinks: "locate" finds each and crosses it or slides along it, "all"
    ends a step at each, "ignore" integrates across them."""
    max_kinks: int = 50_000
    """How many kinks the log holds."""
    max_steps: int = 1_000_000
    """Maximal number of solver steps."""
    step_fractions: tuple[float, ...] | None = None
    """Step sizes of gradient descent, as fractions of 2/sharpness at the start. By default nine
    from 0.8 to 0.0125, and smaller ones down to 0.0016 as long as they take seconds."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point type of parameters and data."""
    checkpoint: bool = True
    """Keep the state of the flow in the run directory now and then, for `gflow resume`."""
    out: str | None = None
    """The run directory; by default a new one in runs/, named after date and time."""
    overwrite: bool = False
    """Replace an existing run directory."""

    def validated(self) -> "Config":
        """A checked copy, with numbers as Python's own.

        **Raises:** `ArgumentError` for the first field that cannot be used.
        """
        from gflow import piecewise
        from gflow.activations import as_activation
        from gflow.networks import named_initialisation

        for name in ("data", "activation", "init"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(name, getattr(self, name), "text")
        for name in (
            "target",
            "features",
            "drop",
            "separator",
            "encoding",
            "data_hash",
            "out",
            "hidden",
        ):
            if not isinstance(getattr(self, name), str | None):
                raise ArgumentError(name, getattr(self, name), "text")
        for name in ("standardise", "bias", "checkpoint", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(name, getattr(self, name), "true or false")
        as_activation(self.activation)
        named_initialisation(self.init, 1, 1)
        one_of("solver", self.solver, SOLVERS_BY_NAME)
        one_of("kinks", self.kinks, ["locate", "all", "ignore"])
        one_of("density", self.density, piecewise.DENSITIES)
        one_of("risk", self.risk, ["empirical", "population"])
        if self.risk == "population" and self.data not in piecewise.NAMED:
            known = ", ".join(piecewise.NAMED)
            raise ArgumentError(
                "data", self.data, f"one of {known}, since the risk is 'population'"
            )
        one_of("loss", self.loss, ["squared", "logistic", "cross-entropy"])
        if self.missing is not None:
            one_of("missing", self.missing, ["drop", "mean"])
        one_of("precision", self.precision, ["float64", "float32"])
        seed = positive_int("seed", self.seed, minimum=0)
        if seed >= 2**32:
            raise ArgumentError("seed", seed, "a whole number below 2^32")
        return dataclasses.replace(
            self,
            test_fraction=self._test_fraction(),
            num_points=positive_int("num_points", self.num_points, minimum=2),
            **self._layers(),
            weight_decay=positive("weight_decay", self.weight_decay, or_zero=True),
            scale=positive("scale", self.scale),
            seed=seed,
            t1=None if self.t1 is None else positive("t1", self.t1),
            follow=self._follow(),
            num_times=positive_int("num_times", self.num_times, minimum=8),
            rtol=None if self.rtol is None else positive("rtol", self.rtol),
            atol=None if self.atol is None else positive("atol", self.atol),
            max_steps=positive_int("max_steps", self.max_steps),
            max_kinks=positive_int("max_kinks", self.max_kinks),
            step_fractions=self._step_fractions(),
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of units of the hidden layers, from below."""
        if self.hidden is None:
            return (self.width,)
        return tuple(int(part) for part in self.hidden.split(","))

    def _layers(self) -> dict[str, Any]:
        """The fields `width` and `hidden`, of which one is used."""
        width = positive_int("width", self.width)
        if self.hidden is None:
            return {"width": width, "hidden": None}
        try:
            widths = [positive_int("hidden", int(part)) for part in self.hidden.split(",")]
        except ValueError:
            wanted = "numbers of units, separated by commas, such as 16,16"
            raise ArgumentError("hidden", self.hidden, wanted) from None
        if len(widths) == 1:
            return {"width": widths[0], "hidden": None}
        if self.risk == "population":
            wanted = "none, since the risk 'population' is that of one hidden layer"
            raise ArgumentError("hidden", self.hidden, wanted)
        if self.init not in ("he", "standard_normal"):
            wanted = "'he' or 'standard_normal', for several hidden layers"
            raise ArgumentError("init", self.init, wanted)
        return {"width": width, "hidden": ",".join(map(str, widths))}

    def _step_fractions(self) -> tuple[float, ...] | None:
        fractions = self.step_fractions
        if fractions is None:
            return None
        if not isinstance(fractions, (list, tuple)):
            raise ArgumentError("step_fractions", fractions, "a list of numbers")
        return tuple(sorted({positive("step_fractions", f) for f in fractions}, reverse=True))

    def _test_fraction(self) -> float:
        fraction = positive("test_fraction", self.test_fraction, or_zero=True)
        if fraction >= 1 or (fraction > 0 and self.risk == "population"):
            wanted = "0 for the population risk" if fraction < 1 else "a number below 1"
            raise ArgumentError("test_fraction", fraction, wanted)
        return fraction

    def _follow(self) -> float | None:
        if self.follow is None:
            return None
        later = positive("follow", self.follow)
        if self.t1 is not None and later <= float(self.t1):
            raise ArgumentError("follow", self.follow, f"a time after t1 = {self.t1:g}")
        return later


def read_config(path: Path) -> Config:
    """The configuration in a TOML file, with defaults for the fields that it lacks.

    **Raises:** `ArgumentError` for a missing file, a file that is not TOML, or an unknown key.
    """
    if not path.is_file():
        raise ArgumentError("config", Described(f"{path}: no such file"), "a TOML file")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        got = Described(f"{path}, which is not TOML ({error})")
        raise ArgumentError("config", got, "lines like `width = 32`") from None
    return from_dict(values, f" in {path}")


def from_dict(values: dict[str, Any], where: str = "") -> Config:
    """The configuration with these fields, and defaults for the others. `where` is added to the
    message about an unknown key."""
    known = [field.name for field in dataclasses.fields(Config)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1, cutoff=0.0)
            wanted = f"a known field; the nearest is {close[0]!r}"
            raise ArgumentError("config", Described(f"unknown key {key!r}{where}"), wanted)
    if isinstance(values.get("hidden"), list):
        values = values | {"hidden": ",".join(map(str, values["hidden"]))}
    if isinstance(values.get("step_fractions"), list):
        values = values | {"step_fractions": tuple(values["step_fractions"])}
    return Config(**values)


def to_dict(config: Config) -> dict[str, Any]:
    """The fields as TOML can hold them, without those that are None.

    Also without `out` and `overwrite`, so that a run from a saved configuration replaces nothing.
    """
    paths = ("out", "overwrite")
    fields = {n: value for n, value in vars(config).items() if value is not None and n not in paths}
    if config.step_fractions is not None:
        fields["step_fractions"] = [float(f) for f in config.step_fractions]
    return fields
