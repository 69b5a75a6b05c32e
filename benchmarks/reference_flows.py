"""Flows of ReLU networks that an independent integrator followed through every kink.

Relative errors are below 1e-8. `gflow.testsets` holds the data, the networks at saved times and the
kinks.
"""

from typing import NamedTuple

import numpy as np

import gflow
from gflow.testsets.references import DATA, KINDS

NAMES = ("diabetes_w16_n60", "sine_d1_w50_n100", "sine_d2_w30_n80", "sine_d1_w20_n40")


class Kink(NamedTuple):
    time: float
    unit: int
    datum: int
    kind: str


class ReferenceFlow(NamedTuple):
    """The risk and the network at time 0; saved times, θ in the rows of `params` (n, size) and the
    risk there; the kinks in the order of time."""

    risk: gflow.EmpiricalRisk
    net: gflow.ShallowNet
    ts: np.ndarray
    params: np.ndarray
    risks: np.ndarray
    kinks: list[Kink]

    @property
    def t1(self) -> float:
        return float(self.ts[-1])


def reference_flow(name: str) -> ReferenceFlow:
    with np.load(DATA / f"{name}.npz") as saved:
        risk = gflow.EmpiricalRisk(saved["X"], saved["y"])
        net = gflow.ShallowNet.from_arrays(*(saved[f"{letter}0"] for letter in "wbvc"))
        ts = saved["t"]
        params = np.concatenate([saved[a].reshape(len(ts), -1) for a in "wbvc"], axis=1)
        columns = (saved[f"event_{of}"].tolist() for of in ("t", "neuron", "datum", "kind"))
        kinks = [Kink(t, unit, datum, KINDS[kind]) for t, unit, datum, kind in zip(*columns)]
        return ReferenceFlow(risk, net, ts, params, saved["risk"], kinks)
