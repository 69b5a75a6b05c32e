r"""The nonsmooth flow as a differential inclusion: a linear rate along its slides, and SGD near it.

$\dot\theta \in -\partial L(\theta)$ with the Clarke subdifferential of the mean of squares over n
rows, ReLU, more units than rows. Along solutions L falls by the squared distance of 0 from ∂L. They
tend to a network θ* that fits. With J the Jacobian of its outputs there, and P the projection to
the directions along the kinks on which the solution slides,

$$L(t) \sim C e^{-4 \lambda_{\min}(JPJ^\top) t / n} .$$

Stochastic descent with step h follows a solution with an error like √h.
"""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_least, at_most, equal, panels

SOURCE = "Polaczyk, Cyranka, arXiv 2201.12052"
ROWS, INPUTS, WIDTH, T1 = 6, 2, 40, 120.0
STEPS, SHORT = (1e-2, 1e-3, 1e-4), 1.0


def _rate(x: np.ndarray, flow: gflow.Trajectory) -> float:
    """4 λ_min(JPJᵀ)/n at the end of the flow."""
    w, b, v = (np.asarray(a) for a in (flow.final.w, flow.final.b, flow.final.v))
    z, rows = x @ w.T + b, np.column_stack([x, np.ones(len(x))])
    inner = np.einsum("ki,kf->kif", (z > 0) * v, rows)
    for unit, slides in enumerate((np.abs(z) < 1e-12).T):
        if np.any(slides):
            normals = np.linalg.qr(rows[slides].T)[0]
            inner[:, unit] -= inner[:, unit] @ normals @ normals.T
    outer = np.column_stack([np.maximum(z, 0), np.ones(len(x))])
    jacobian = np.column_stack([inner.reshape(len(x), -1), outer])
    return 4 / len(x) * np.linalg.svd(jacobian, compute_uv=False)[-1] ** 2


def _distance(risk: gflow.EmpiricalRisk, net: gflow.ShallowNet, step: float, runs: int) -> float:
    """The root mean square distance of SGD from the flow at t = 1."""
    goal, _ = ravel_pytree(gflow.solve_flow(risk, net, t1=SHORT, ts=[SHORT]).final)
    options = {"step_size": step, "num_steps": round(SHORT / step), "record": [0], "batch_size": 1}
    keys = jax.random.split(jax.random.key(0), runs)
    ends = [ravel_pytree(gflow.descend(risk, net, key=key, **options).final)[0] for key in keys]
    return float(np.sqrt(np.mean(np.sum((np.array(ends) - goal) ** 2, axis=1))))


def exhibit(*, long: bool = False) -> Exhibit:
    """6 flows and 12 descents for each step, or 60 and 100 if it is long."""
    x, y = (np.array(jax.random.normal(jax.random.key(k), (ROWS, INPUTS))) for k in range(2))
    risk, ts = gflow.EmpiricalRisk(x, y[:, 0]), np.linspace(0, T1, 121)
    keys = jax.random.split(jax.random.key(0), 60 if long else 6)
    nets = [gflow.ShallowNet(INPUTS, WIDTH, key=key) for key in keys]
    flows = [gflow.solve_flow(risk, net, t1=T1, ts=ts) for net in nets]
    rates = np.array([_rate(x, flow) for flow in flows])
    falls = np.array([np.log(flow.risk[-11] / flow.risk[-1]) for flow in flows])
    settled = [flow.kinks is None or flow.kinks.time[-1] < ts[-11] for flow in flows]
    quotients = (falls / (ts[-1] - ts[-11]) / rates)[settled]
    last = max(float(flow.risk[-1]) for flow in flows)
    drift = max(float(np.max(np.abs(flow.diagnostics.energy))) for flow in flows)
    errors = [_distance(risk, nets[0], step, 100 if long else 12) for step in STEPS]
    power = np.log10(errors[1] / errors[2])
    words = f"{len(flows)} flows"
    claims = (
        at_most(f"{words}: largest risk at t = {T1:.0f}", SOURCE, 1e-5, last),
        equal("past their kinks: rate over theory's", SOURCE, 1, float(np.median(quotients)), 2e-3),
        at_least("smallest, as faster modes add", SOURCE, 0.998, float(min(quotients))),
        at_most(f"{words}: L(0) − L(t) − ∫ dist(0, ∂L)²", SOURCE, 1e-7, drift),
        equal("distance of SGD at t = 1: power of h", SOURCE, 0.5, float(power), 0.15),
    )
    figure, axes = panels(2)
    for flow, rate in zip(flows, rates, strict=True):
        law = flow.risk[-1] * np.exp(rate * (T1 - ts))
        axes[0].semilogy(ts, flow.risk, color=BLACK, linewidth=0.8)
        axes[0].semilogy(ts[60:], law[60:], "--", color=RED, linewidth=0.8)
    axes[0].set(xlabel="t", ylabel="risk, and theory")
    law = errors[2] * np.sqrt(np.array(STEPS) / STEPS[2])
    axes[1].loglog(STEPS, errors, "o", STEPS, law, "--")
    axes[1].set(xlabel="step of SGD", ylabel="distance from the flow")
    return Exhibit(claims, figure)
