r"""The sites of a flat jaxpr at which slopes jump, found from its operations.

At a site the result is one of two, $t$ where $z > 0$ and $f$ elsewhere, that agree where $z = 0$:

$$a = t\,[z > 0] + f\,[z \le 0], \qquad t - f = c z + O(z^2) .$$

So are maxima and minima of two arrays, absolute values, and choices by a comparison with a number,
such as leaky ReLU. Next to the kink a changes its slope by the factor c of that of z.
"""

import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from gflow.nonsmooth.deep.flattening import (
    SMOOTH,
    called_name,
    evaluated,
    holds,
    inner_jaxprs,
)

_COMPARISONS = {"gt", "ge", "lt", "le"}
_KINKS = {"max", "min", "abs", "select_n", "reduce_max", "reduce_min", "clamp"}
_KINKS |= {"reduce_window_max", "reduce_window_min", "cummax", "cummin", "sort", "top_k"}
# Their values jump, or their slopes do in ways that are not looked into.
_UNKNOWN = {"floor", "ceil", "round", "sign", "rem", "argmax", "argmin", "sort", "top_k", "cummax"}
_UNKNOWN |= {"cummin", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"}
_LOOPS = {"scan", "while", "cond"}
# What acts on each entry by itself.
_ENTRYWISE = {"add", "sub", "mul", "div", "neg", "exp", "exp2", "expm1", "log", "log1p", "tanh"}
_ENTRYWISE |= {"logistic", "sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow", "erf", "erfc"}
_ENTRYWISE |= {"sin", "cos", "atan2", "max", "min", "abs", "select_n", "convert_element_type"}
_ENTRYWISE |= {"broadcast_in_dim", "copy", "copy_p", *_COMPARISONS}
_NEVER_NEGATIVE = {"exp", "exp2", "square", "abs", "logistic", "sqrt", "rsqrt", "cosh"}
_KEEPS_SIGN = {"reduce_sum", "reduce_max", "reduce_min", "reshape", "broadcast_in_dim", "squeeze"}
_KEEPS_SIGN |= {"transpose", "slice", "convert_element_type", "concatenate", "add", "mul", "div"}
_KEEPS_SIGN |= {"max", "min", "copy", "rev", "gather", "dynamic_slice", "select_and_gather_add"}
_KEEPS_SIGN |= {
    "select_n",
    "stop_gradient",
    "expand_dims",
    "reduce_window_max",
    "reduce_window_sum",
    "pad",
}
_OF_NUMBERS: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
} | dict.fromkeys(("convert_element_type", "broadcast_in_dim", "copy", "reshape"), float)

# Differences of the two results that count as none, in trials with numbers of size 1.
_SAME = 1e-9


class Threshold(NamedTuple):
    """The `number` that values `base` are compared with, and which case is chosen above it."""

    base: Any
    number: float
    above: int


class InnerChoice(NamedTuple):
    """An operation that chooses, and which of its cases above the threshold."""

    eqn: JaxprEqn
    above: int


class Site(NamedTuple):
    """An operation where slopes jump: which kind it is, and of which `shape` its z.

    Of a choice, the `comparison`, the operations `between` its base and the two results, and the
    choices `within` these by the same comparison, which are no sites of their own. At units with
    `ties` two quantities are compared.
    """

    kind: str
    shape: tuple[int, ...]
    ties: bool = False
    comparison: "Threshold | None" = None
    between: tuple[JaxprEqn, ...] = ()
    within: tuple["InnerChoice", ...] = ()


class Findings(NamedTuple):
    """The `sites` of a jaxpr by the number of their operation, the operations whose result is their
    first or second argument, and what can have kinks that are not followed."""

    sites: dict[int, Site]
    same_as: dict[int, int]
    reasons: tuple[str, ...]


def find_sites(jaxpr: Jaxpr, trained: Sequence[bool]) -> Findings:
    """Looks through a flat jaxpr, whose arguments are `trained` or not."""
    return _Finder(jaxpr, trained).findings()


class _Finder:
    """What is known of the variables of a flat jaxpr: which depend on trained arguments, which have
    a say in the result, which are never negative, and which are numbers."""

    def __init__(self, jaxpr: Jaxpr, trained: Sequence[bool]):
        self.jaxpr = jaxpr
        self.maker = {var: n for n, eqn in enumerate(jaxpr.eqns) for var in eqn.outvars}
        self.moves = {var for var, moves in zip(jaxpr.invars, trained) if moves}
        self.numbers: dict[Any, float] = {}
        self.never_negative: set[Any] = set()
        for eqn in jaxpr.eqns:
            self._note(eqn)
        self.matters: set[Any] = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
        for eqn in reversed(jaxpr.eqns):
            if eqn.primitive.name != "stop_gradient" and self.matters & set(eqn.outvars):
                self.matters |= {v for v in eqn.invars if not isinstance(v, Literal)}

    def _note(self, eqn: JaxprEqn) -> None:
        name, args = eqn.primitive.name, eqn.invars
        known = [self.number(a) for a in args]
        if any(not isinstance(a, Literal) and a in self.moves for a in args):
            # Questions of a number being finite are answered by yes.
            if name != "is_finite" and not (name in ("ne", "eq") and args[0] is args[1]):
                self.moves |= set(eqn.outvars)
        elif args and name in _OF_NUMBERS and None not in known:
            self.numbers[eqn.outvars[0]] = _OF_NUMBERS[name](*known)
        signs = [self.is_never_negative(a) for a in (args[1:] if name == "select_n" else args)]
        even = name == "integer_pow" and eqn.params["y"] % 2 == 0
        squared = name == "mul" and args[0] is args[1]
        kept = name in _KEEPS_SIGN and bool(args) and all(signs)
        if name in _NEVER_NEGATIVE or even or squared or kept or (name == "max" and any(signs)):
            self.never_negative |= set(eqn.outvars)

    def number(self, atom: Any) -> float | None:
        """The number that all entries are, if it is known."""
        if isinstance(atom, Literal):
            return float(atom.val) if np.ndim(atom.val) == 0 else None
        return self.numbers.get(atom)

    def is_never_negative(self, atom: Any) -> bool:
        number = self.number(atom)
        if number is not None:
            return not number < 0
        return not isinstance(atom, Literal) and atom in self.never_negative

    def depends(self, atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in self.moves

    def findings(self) -> Findings:
        sites: dict[int, Site] = {}
        same_as: dict[int, int] = {}
        reasons: list[str] = []
        within: list[JaxprEqn] = []
        # From the end, as a choice comes after those within it.
        for n, eqn in reversed(list(enumerate(self.jaxpr.eqns))):
            if not self.matters & set(eqn.outvars) or not any(map(self.depends, eqn.invars)):
                continue
            if any(eqn is one for one in within):
                continue
            found = self._looked_into(eqn)
            if isinstance(found, Site):
                within += [inner.eqn for inner in found.within]
                if found.kind != "smooth":
                    sites[n] = found
            elif isinstance(found, int):
                same_as[n] = found
            elif found is not None and found not in reasons:
                reasons.append(found)
        return Findings(dict(sorted(sites.items())), same_as, tuple(reversed(reasons)))

    def _looked_into(self, eqn: JaxprEqn) -> Site | int | str | None:
        """A site, which argument the result is, a reason why kinks are not followed, or None."""
        name = eqn.primitive.name
        if name in ("max", "min"):
            return self._of_two(eqn)
        if name == "abs":
            return None if self.is_never_negative(eqn.invars[0]) else Site("abs", _shape(eqn))
        if name == "select_n":
            return self._choice(eqn)
        if name in _UNKNOWN:
            return f"`{name}`"
        if any(holds(inner, _KINKS | _UNKNOWN) for inner in inner_jaxprs(eqn)):
            called = name if name in _LOOPS else called_name(eqn)
            return None if called in SMOOTH else f"a maximum or a choice within `{called}`"
        choices = [a for a in eqn.invars if self.depends(a) and _is_bool(a)]
        if choices and name not in _COMPARISONS:
            return f"a comparison that `{name}` makes use of"
        return None

    def _of_two(self, eqn: JaxprEqn) -> Site | int | None:
        a, b = eqn.invars
        if eqn.primitive.name == "max":
            for place, (one, other) in enumerate(((a, b), (b, a))):
                bound = self.number(other)
                never_below = bound is not None and bound <= 0 and self.is_never_negative(one)
                if bound == -np.inf or never_below:
                    return place
        elif np.inf in (self.number(a), self.number(b)):
            return 0 if self.number(b) == np.inf else 1
        return Site(eqn.primitive.name, _shape(eqn), self.depends(a) and self.depends(b))

    def _choice(self, eqn: JaxprEqn) -> Site | str | None:
        atoms: Any = eqn.invars
        chosen, *cases = atoms
        if not self.depends(chosen):
            return None
        comparison = self._comparison(eqn)
        if comparison is None:
            return "a choice by a condition that is no comparison with a number"
        between = self._between(comparison.base, cases)
        if between is None:
            return "a choice between functions of more than what is compared"
        site = Site("choice", _shape(eqn), False, comparison, between)
        site = site._replace(within=self._within(site, eqn))
        jump, bend = self._at_threshold(site, eqn)
        if not jump <= _SAME:
            return "a choice whose value jumps"
        return site if bend > _SAME else site._replace(kind="smooth")

    def _comparison(self, eqn: JaxprEqn) -> Threshold | None:
        """The comparison by which one of two cases is chosen; None if it is not by one with a
        number."""
        chosen: Any = eqn.invars[0]
        made = self.maker.get(chosen)
        if len(eqn.invars) != 3 or made is None:
            return None
        compared = self.jaxpr.eqns[made]
        name, (left, right) = compared.primitive.name, (*compared.invars, None)[:2]
        if name not in _COMPARISONS:
            return None
        base, threshold, turned = left, self.number(right), False
        if threshold is None:
            base, threshold, turned = right, self.number(left), True
        if threshold is None or isinstance(base, Literal):
            return None
        return Threshold(base, threshold, int((name in ("gt", "ge")) != turned))

    def _within(self, site: Site, eqn: JaxprEqn) -> tuple[InnerChoice, ...]:
        """The choices by the same comparison that a choice alone makes use of."""
        users = (*site.between, eqn)
        found = []
        for one in site.between:
            if one.primitive.name != "select_n" or site.comparison is None:
                continue
            own = self._comparison(one)
            if own is None or own[:2] != site.comparison[:2]:
                continue
            others = [e for e in self.jaxpr.eqns if one.outvars[0] in e.invars]
            if all(any(e is user for user in users) for e in others):
                found.append(InnerChoice(one, own.above))
        return tuple(found)

    def _at_threshold(self, site: Site, eqn: JaxprEqn) -> tuple[float, float]:
        """By how much the values of a choice differ at its threshold, and their slopes, at most in
        some trials with other values for what else they need."""
        comparison = site.comparison
        assert comparison is not None
        base, rng = comparison.base.aval, np.random.default_rng(0)

        def trial(var):
            number = self.number(var)
            draw = rng.uniform(0.5, 1.5, var.aval.shape) if number is None else number
            return jnp.full(var.aval.shape, draw, var.aval.dtype)

        def tried(at):
            value = cache(trial)
            of_base = lambda b: cases_of(site, eqn, value, b).apart
            apart, slope = jax.jvp(of_base, (at,), (jnp.ones_like(at),))
            return jnp.stack([jnp.max(jnp.abs(apart)), jnp.max(jnp.abs(slope))])

        look = jax.jit(lambda at: jnp.maximum(tried(at), tried(at)))

        with jax.ensure_compile_time_eval():
            jump, bend = look(jnp.full(base.shape, comparison.number, base.dtype))
        return float(jump), float(bend)

    def _between(self, base: Any, cases: Sequence[Any]) -> tuple[JaxprEqn, ...] | None:
        """The operations that lead from the base to the cases, if they act on each entry by
        itself."""
        needed, used = {c for c in cases if not isinstance(c, Literal)}, []
        last = max((self.maker.get(c, -1) for c in needed), default=-1)
        reached = self._reached_from(base)
        for eqn in reversed(self.jaxpr.eqns[: last + 1]):
            if not needed & set(eqn.outvars) or base in eqn.outvars:
                continue
            if not reached & set(eqn.outvars):
                continue
            name, shape = eqn.primitive.name, base.aval.shape
            if name not in _ENTRYWISE or _shape(eqn) != shape:
                return None
            used.append(eqn)
            needed |= {a for a in eqn.invars if not isinstance(a, Literal)}
        return tuple(reversed(used))

    def _reached_from(self, base: Any) -> set[Any]:
        reached = {base}
        for eqn in self.jaxpr.eqns:
            if any(not isinstance(a, Literal) and a in reached for a in eqn.invars):
                reached |= set(eqn.outvars)
        return reached


def _shape(eqn: JaxprEqn) -> tuple[int, ...]:
    made: Any = eqn.outvars[0].aval
    return tuple(made.shape)


def _is_bool(atom: Any) -> bool:
    return not isinstance(atom, Literal) and atom.aval.dtype == bool


class Cases(NamedTuple):
    """The results of a choice above its threshold and below, as functions of the base that go on
    beyond it."""

    above: Any
    below: Any

    @property
    def apart(self) -> Any:
        return self.above - self.below


def cases_of(site: Site, eqn: JaxprEqn, value: Callable[[Any], Any], base: Any) -> Cases:
    """The results of a choice from its base; `value` gives what else they need."""
    comparison = site.comparison
    assert comparison is not None

    def on(above: bool) -> Any:
        known: dict[Any, Any] = {comparison.base: base}
        get = lambda a: a.val if isinstance(a, Literal) else known[a] if a in known else value(a)
        chosen = lambda of, place: get(of.invars[1 + (place if above else 1 - place)])
        for one in site.between:
            inner = [choice for choice in site.within if choice.eqn is one]
            if inner:
                known[one.outvars[0]] = chosen(one, inner[0].above)
            else:
                known.update(zip(one.outvars, evaluated(one, [get(a) for a in one.invars])))
        return jnp.broadcast_to(chosen(eqn, comparison.above), base.shape)

    return Cases(on(True), on(False))
