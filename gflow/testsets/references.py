"""Flows through many kinks, which an independent integrator followed at two tolerances.

It is written in NumPy, of order 8, with kinks located by bisection. `data/` holds the tables, the
networks at time 0 and at some times, the kinks, and the difference between the tolerances.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gflow.testsets.known_flow import EventKind, KnownEvent, KnownFlow
from gflow.testsets.problems import LayeredNetwork, OnData

DATA = Path(__file__).parent / "data"
REFERENCES = {
    "sine_d1_w20_n40": "20 units on a wave: slides that begin and end",
    "sine_d1_w50_n100": "50 units on a wave, to t = 100: two hundred kinks",
    "sine_d2_w30_n80": "30 units on two inputs",
    "diabetes_w16_n60": "16 units on ten columns of a medical table: many slides at once",
    "deep_1-12-12-1_n40": "two hidden layers on a wave: kinks of curved surfaces",
    "deep_2-6-5-1_n20": "two hidden layers of few units, on which plain solvers chatter",
}
KINDS: dict[str, EventKind] = {
    "cross": "cross",
    "slide": "slide begins",
    "exit": "slide ends",
}
# The integrator ended two slides at once, and began one of them anew so much later.
_AT_ONCE = 1e-8


def reference(name: str) -> KnownFlow:
    """The flow of that name, one of `REFERENCES`."""
    with np.load(DATA / f"{name}.npz") as saved:
        network, params = (_deep if "sizes" in saved else _shallow)(saved)
        inner = saved["event_layer"] if "sizes" in saved else np.zeros_like(saved["event_t"], int)
        unit, row = ("unit", "row") if "sizes" in saved else ("neuron", "datum")
        columns = (saved["event_t"], saved["event_kind"], inner)
        columns += (saved[f"event_{unit}"], saved[f"event_{row}"])
        listed = zip(*(column.tolist() for column in columns), strict=True)
        events = [KnownEvent(t, KINDS[kind], layer, i, k) for t, kind, layer, i, k in listed]
        events = _without_blinks(events)
        times, scale = saved["t"], np.max(np.linalg.norm(params, axis=1))
        problem = OnData(network, saved["X"], saved["y"])
        accuracy = float(np.max(saved["agreement"]) * np.sqrt(params.shape[1]) / scale)
    return KnownFlow(
        name=name,
        shows=REFERENCES[name],
        source="an independent integrator at two tolerances",
        problem=problem,
        times=times,
        branches=(params,),
        known="certified",
        accuracy=accuracy,
        events=tuple(events),
    )


def _without_blinks(events: list[KnownEvent]) -> list[KnownEvent]:
    """Without slides that end and begin again at once."""
    where = lambda event: (event.layer, event.unit, event.row)
    blinks = {
        n
        for a, one in enumerate(events)
        for b, two in enumerate(events[:a])
        if where(one) == where(two) and (two.kind, one.kind) == ("slide ends", "slide begins")
        if one.time - two.time < _AT_ONCE
        for n in (a, b)
    }
    return [event for n, event in enumerate(events) if n not in blinks]


def _shallow(saved: Any) -> tuple[LayeredNetwork, np.ndarray]:
    w, b, v, c = (saved[f"{letter}0"] for letter in "wbvc")
    arrays = {"W1": w, "b1": b, "W2": v[None], "b2": c[None]}
    params = np.concatenate([saved[a].reshape(len(saved["t"]), -1) for a in "wbvc"], axis=1)
    return LayeredNetwork(arrays, tuple(arrays)), params


def _deep(saved: Any) -> tuple[LayeredNetwork, np.ndarray]:
    """From matrices [W | b], layer after layer."""
    sizes = saved["sizes"].tolist()
    shapes = [(rows, columns + 1) for columns, rows in pairwise(sizes)]
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    arrays: dict[str, np.ndarray] = {}
    for k, (part, shape) in enumerate(zip(np.split(saved["theta0"], ends), shapes, strict=True), 1):
        matrix = part.reshape(shape)
        arrays |= {f"W{k}": matrix[:, :-1], f"b{k}": matrix[:, -1]}
    rows = []
    for theta in saved["theta"]:
        matrices = [p.reshape(s) for p, s in zip(np.split(theta, ends), shapes, strict=True)]
        parts = [half.ravel() for m in matrices for half in (m[:, :-1], m[:, -1])]
        rows.append(np.concatenate(parts))
    return LayeredNetwork(arrays, tuple(arrays)), np.array(rows)
