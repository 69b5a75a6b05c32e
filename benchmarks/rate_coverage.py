"""How often intervals of rates hold the truth, and how often a law is called where there is none.

Quadratics with 5 to 60 modes to 4, 10 and 30 over the slowest rate, and sums of two exponentials:
the interval of the rate for t → ∞, over the cases whose slowest mode carries 1 % or more of the gap
at the end. Gaps outside the laws: called, and the interval of `Rate.predict` misses the gap within
the next decade of time. Flows on data, with and without kinks, and on exact risks: the interval
against the spectrum at the limit.
"""

import sys
import warnings
from typing import Any

import jax
import numpy as np

import gflow
from benchmarks import gap_families, harness
from benchmarks.gap_families import KINDS, Gap

LENGTHS = (4.0, 10.0, 30.0)
MIN_SHARE = 0.01
# Times after the last one, over it, at which predictions are compared.
AHEAD = np.array([1.5, 2.0, 4.0, 10.0])
# What has to hold: coverage; at 30 over the slowest rate the median width over the rate, and the
# fraction of cases that are called; the fraction of wrong calls outside the laws.
MIN_COVERAGE, MAX_WIDTH, MIN_CALLED, MAX_WRONG = 0.92, 0.10, 0.5, 0.02
COLUMNS = {
    "family": ("family", ""),
    "cases": ("cases", "d"),
    "held": ("held", ".3f"),
    "width": ("width / rate", ".3f"),
    "called": ("called", ".3f"),
    "next decade": ("predicted", ".3f"),
    "wrong": ("wrong", "d"),
    "ms": ("run_ms", ".0f"),
}


def fitted(gap: Gap) -> gflow.Rate | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gflow.fit_rate(gap.ts, gap.values)
        except gflow.ArgumentError:  # too few points above rounding
            return None


def predicts(rate: gflow.Rate, gap: Gap) -> bool:
    """Whether the gap stays within its predicted interval over the next decade. Gaps that are 0 in
    double precision count as within."""
    ts = AHEAD * gap.ts[-1]
    truth, found = gap.curve(ts), rate.predict(ts)
    return bool(np.all((truth < 1e-300) | ((found.low <= truth) & (truth <= found.high))))


def coverage(name: str, gaps: list[Gap]) -> harness.Row:
    """Of the interval for t → ∞."""
    spent, rates = harness.timed(lambda _: [fitted(gap) for gap in gaps], 1)
    pairs = [(r, g) for r, g in zip(rates, gaps) if r is not None and g.share >= MIN_SHARE]
    held, width, called, ahead = [], [], [], []
    for rate, gap in pairs:
        assert gap.rate is not None
        low, high = rate.asymptotic.interval
        held.append(low <= gap.rate <= high)
        width.append((high - low) / gap.rate)
        called.append(rate.law == "exponential")
        if called[-1]:
            ahead.append(predicts(rate, gap))
    return {
        "family": name,
        "cases": len(pairs),
        "held": float(np.mean(held)),
        "width / rate": float(np.median(width)),
        "called": float(np.mean(called)),
        "predicted": float(np.mean(ahead)) if ahead else 1.0,
        "run_ms": 1e3 * spent / len(gaps),
    }


def outside(kind: str, gaps: list[Gap]) -> harness.Row:
    """Of gaps outside the laws: those that are called, and those of them that are wrong."""
    spent, rates = harness.timed(lambda _: [fitted(gap) for gap in gaps], 1)
    called = [(r, g) for r, g in zip(rates, gaps) if r is not None and r.law != "undecided"]
    right = [predicts(rate, gap) for rate, gap in called]
    return {
        "family": kind,
        "cases": len(gaps),
        "called": len(called) / len(gaps),
        "predicted": float(np.mean(right)) if right else 1.0,
        "wrong": len(right) - sum(right),
        "run_ms": 1e3 * spent / len(gaps),
    }


def flows(kind: str, count: int, seed: int) -> harness.Row:
    """Of flows of a kind, against the spectrum at their limits."""
    held: list[bool] = []
    width: list[float] = []
    called: list[bool] = []
    for k in range(count):
        rate, predicted = _flow_rate(*FLOWS[kind](seed + k))
        if rate is None or predicted is None:
            continue
        low, high = rate.asymptotic.interval
        held.append(low <= predicted <= high)
        width.append((high - low) / predicted)
        called.append(rate.law == "exponential")
    return {
        "family": kind,
        "cases": len(held),
        "held": float(np.mean(held)) if held else 1.0,
        "width / rate": float(np.median(width)) if width else 0.0,
        "called": float(np.mean(called)) if called else 0.0,
    }


def _on_data(seed: int, activation: str) -> tuple[Any, gflow.ShallowNet]:
    """6 units on 12 normal rows."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=12)
    net = gflow.ShallowNet(2, 6, key=jax.random.key(seed), activation=activation)
    return gflow.EmpiricalRisk(x, y), net


def _of_a_teacher(seed: int) -> tuple[Any, gflow.ShallowNet]:
    """A student of 2 units, or 1, and a teacher of 2 on normal inputs in 3 dimensions."""
    keys = jax.random.split(jax.random.key(seed))
    teacher = gflow.ShallowNet(3, 2, key=keys[0], use_bias=False)
    student = gflow.ShallowNet(3, 2 - seed % 2, key=keys[1], use_bias=False)
    return gflow.GaussianRisk(teacher), student


FLOWS = {
    "ReLU on data": lambda seed: _on_data(seed, "relu"),
    "tanh on data": lambda seed: _on_data(seed, "tanh"),
    "exact risks": _of_a_teacher,
}


def _flow_rate(risk: Any, net: gflow.ShallowNet) -> tuple[gflow.Rate | None, float | None]:
    """The rate of a flow, and the slowest rate of the spectrum at its limit, along the kinks on
    which it slides; None if it ends near no minimum, before 20 over that rate, or on kinks along
    which it does not slide, or if the slowest mode carries less than 1 % of the gap at the end of
    the tail."""
    # Tails after the last kink may be short.
    flow: Any = gflow.solve_flow(risk, net, t1=1e5, ts=np.geomspace(1e-3, 1e5, 800))
    point = gflow.refine(risk, flow.final, approach=flow, throw=False)
    gap = np.asarray(flow.risk) - point.risk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rate = gflow.fit_rate(flow, gap)
        except gflow.ArgumentError:
            return None, None
    last = int(np.searchsorted(np.asarray(flow.ts), rate.window[1] * (1 + 1e-9))) - 1
    end = float(flow.ts[last])
    there = gflow.refine(risk, flow[last], approach=flow[: last + 1], throw=False)
    if point.modes is None or there.modes is None:
        return None, None
    if len(point.modes.rates) == 0 or len(there.modes.rates) == 0:
        return None, None
    sliding = 0 if flow.kinks is None else len(flow.kinks.sliding_at(end))
    along = len(there.active_kinks) + there.modes.num_kinks_along
    # Where minima are not isolated, the nearest to a time is not quite the limit.
    slowest, share = float(point.modes.rates[0]), there.modes.fractions[0]
    if sliding != along or abs(there.risk - point.risk) > 1e-12:
        return None, None
    return (rate, slowest) if slowest * end >= 20 and share >= MIN_SHARE else (None, None)


def summary(rows: list[harness.Row]) -> list[harness.Row]:
    """A sentence for each bound, with whether it holds."""
    found = []

    def add(ok: bool, text: str) -> None:
        found.append({"sentence": f"{'holds' if ok else 'FAILS'}: {text}", "holds": ok})

    for row in rows:
        if "held" in row and row["cases"]:
            text = f"{row['family']}: {row['held']:.3f} of the intervals hold the truth"
            add(row["held"] >= MIN_COVERAGE, text)
        if row["family"] == "quadratics to 30":
            add(row["width / rate"] <= MAX_WIDTH, f"median width {row['width / rate']:.3f}")
        if row["family"] in ("quadratics to 30", "two exponentials"):
            add(row["called"] >= MIN_CALLED, f"{row['family']}: {row['called']:.3f} called")
    lawless = [row for row in rows if "wrong" in row]
    wrong, cases = sum(row["wrong"] for row in lawless), sum(row["cases"] for row in lawless)
    add(wrong <= MAX_WRONG * cases, f"{wrong} of {cases} gaps outside the laws called wrongly")
    return found


def main() -> int:
    options = harness.parser("rate_coverage", __doc__, precisions=("float64",))
    options.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    options.add_argument("--flows", type=int, default=0, help="flows of each kind to follow (0)")
    args = harness.start(options)
    count, lawless = (10, 12) if args.quick else (200, 400)
    rows = []
    for length in LENGTHS:
        rng = np.random.default_rng([args.seed, int(length)])
        gaps = [gap_families.quadratic(rng, length) for _ in range(count)]
        rows.append(coverage(f"quadratics to {length:g}", gaps))
    rng = np.random.default_rng([args.seed, 2])
    gaps = [gap_families.two_exponentials(rng) for _ in range(count)]
    rows.append(coverage("two exponentials", gaps))
    if args.flows:
        rows += [flows(kind, args.flows, 1000 * args.seed) for kind in FLOWS]
    for k, kind in enumerate(KINDS):
        rng = np.random.default_rng([args.seed, 100 + k])
        number = lawless // len(KINDS) + (k < lawless % len(KINDS))
        gaps = [gap_families.lawless(rng, kind) for _ in range(number)]
        rows.append(outside(kind, gaps))
    told = summary(rows)
    code = harness.report(args, rows, COLUMNS, told)
    return int(bool(code or not all(sentence["holds"] for sentence in told)))


if __name__ == "__main__":
    sys.exit(main())
