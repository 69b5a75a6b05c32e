# pyright: strict
"""A user's script that touches every public name: type checkers know all that it uses.

`make lint` checks it, and `test_house.py` that no name is missing. It is not run.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import numpy as np

import gflow

ZEROS = jax.random.normal(jax.random.key(1), (3,))


def make_problem() -> tuple[gflow.EmpiricalRisk, gflow.ShallowNet]:
    x = np.linspace(-1, 1, 20)
    risk = gflow.EmpiricalRisk(x[:, None], gflow.piecewise.wave()(x))
    print(gflow.PenalisedRisk(risk, lambda net: net.v @ net.v, weight_decay=1e-3).num_data)
    return risk, gflow.ShallowNet(1, 8, key=jax.random.key(0))


def follow(risk: gflow.Risk, net: gflow.ShallowNet) -> gflow.Trajectory[gflow.ShallowNet]:
    stop = gflow.Stop(grad_norm=1e-8)
    solvers: list[diffrax.AbstractSolver[Any]] = [gflow.BDF5(), gflow.Rodas5P()]
    for solver in (*solvers, gflow.ROCK4(), gflow.RKC2()):
        gflow.solve_flow(risk, net, t1=1.0, solver=solver)
    for model in (gflow.TimeChanged.log_risk(), gflow.TimeChanged(lambda risk, norm: 1 / norm)):
        gflow.solve_flow(risk, net, t1=1.0, model=model)
    print(gflow.TimeChanged.clipped(0.1, floor=0.01).speed, gflow.TimeChanged.normalised())
    try:
        return gflow.solve_flow(risk, net, t1=10.0, kinks="locate", stop=stop)
    except gflow.TrajectoryError as error:
        print(error.trajectory.message)
        raise
    except gflow.ArgumentError as error:
        print(error.name)
        raise


def look(flow: gflow.Trajectory[gflow.ShallowNet]) -> None:
    first: gflow.ShallowNet = flow[0]
    print(flow.final.w, first.incoming_norms(), flow.ts, flow.risk, flow.grad_norm)
    diagnostics: gflow.Diagnostics = flow.diagnostics
    print(gflow.balance(flow.final))
    print(diagnostics.energy, diagnostics.balance, flow.result == gflow.RESULTS.successful)
    switches: tuple[gflow.Switch, ...] = flow.switches
    print([(switch.solver, switch.time) for switch in switches], flow.summary())
    kinks: gflow.KinkLog | None = flow.kinks
    if kinks is not None:
        print(kinks.counts(), kinks.sliding_at(1.0), gflow.KinkKind.SLIDE_BEGINS.label)
    activation: gflow.Activation = flow.final.activation
    print(activation.name, flow.final.activation.slope(ZEROS), gflow.__version__)
    part: gflow.Trajectory[gflow.ShallowNet] = flow[2:10]
    nets: list[gflow.ShallowNet] = [*part, flow[np.int64(3)], part.member(()).final]
    print(nets, part.members[0].batch_shape, part.to_pandas(), part.to_xarray())


def compare(risk: gflow.EmpiricalRisk, net: gflow.ShallowNet) -> None:
    flow = follow(risk, net)
    h = 0.1 * 2 / gflow.sharpness(risk, net)
    descent = gflow.descend(risk, net, step_size=h, num_steps=100)
    print(descent.final.v)
    comparison: gflow.Comparison = gflow.compare(flow, descent)
    order: gflow.ConvergenceOrder = gflow.observed_order([1, 2, 4], [1, 2, 4])
    partings: tuple[gflow.Parting, ...] = order.partings
    print(comparison.largest, order.value, order.interval, partings)
    gflow.plots.risk({"flow": flow, "descent": descent})
    page: gflow.plots.Explorer = gflow.plots.explore({"flow": flow}, risk.x, risk.y)
    print(page.html, page.labels, page.num_frames, page.save("flow.html").name)
    print(gflow.plots.movie(flow, "flow.gif", num_frames=20).name)
    gflow.save_trajectory(flow, "flow.zarr")
    print(gflow.load_trajectory("flow.zarr").risk)


def converge(risk: gflow.EmpiricalRisk, flow: gflow.Trajectory[gflow.ShallowNet]) -> None:
    try:
        point: gflow.CriticalPoint = gflow.refine(risk, flow.final)
    except gflow.NotFoundError as error:
        point = error.point
    print(point.kind is gflow.CriticalKind.SADDLE, point.spectrum.eigenvalues, point.rate)
    rate: gflow.Rate = gflow.fit_rate(flow.ts, flow.risk - point.risk, predicted=point.rate)
    print(rate.law, rate.value, rate.interval, rate.status is gflow.RateStatus.CALLED)
    inequality: gflow.Lojasiewicz = gflow.lojasiewicz(flow, point.risk, point.net)
    print(inequality.exponent, inequality.rate.verdict)
    spectrum: gflow.Spectrum = gflow.hessian_spectrum(risk, flow.final)
    print(spectrum.sharpness, gflow.hessian_spectrum(risk, point).num_negative)
    limit: gflow.Asymptotics = gflow.asymptotics(flow, risk, follow=1e4)
    print(limit.behaviour is gflow.Behaviour.DIVERGES, limit.risk_limit, limit.norm_exponent)


def differentiate(risk: gflow.EmpiricalRisk, net: gflow.ShallowNet) -> None:
    print(gflow.generalized_gradient(risk, net).w, gflow.clarke_gradient(risk, net).w)
    print(gflow.smoothed_gradient(risk, net, r=10.0).b, gflow.lowered_biases(net, 0.1).b)
    print(gflow.smoothed(net, 10.0).activation, gflow.EventuallyExact(10.0)(ZEROS))


def certify(risk: gflow.EmpiricalRisk, net: gflow.ShallowNet) -> None:
    residual: Callable[[Any], Any] = lambda x: x[0] * x[1] - 1
    squares = gflow.SumOfSquares(residual, jacobian_lipschitz=1.0)
    print(gflow.cache_compilations("programs").name)
    certificate: gflow.Certificate = gflow.chatterjee(squares, np.array([1.6, 1.2]))
    print(certificate.verdict, certificate.radius)
    envelope: gflow.Envelope = certificate.flow_envelope([0.0, 1.0])
    print(envelope.risk, envelope.distance)
    slopes: type[gflow.SlopeBounds] = gflow.SlopeBounds
    print(slopes, gflow.tangent_kernel(risk, net), gflow.tangent_kernel_min_eigenvalue(risk, net))
    constants: gflow.PLConstants = gflow.pl_constants(risk, follow(risk, net))
    print(constants)


def exact_risks(net: gflow.ShallowNet) -> None:
    wave, uniform = gflow.piecewise.wave(), gflow.piecewise.uniform(-1.0, 1.0)
    print(gflow.PopulationRisk(wave, uniform)(net), gflow.GaussianRisk(net)(net))
    print(gflow.BoxRisk({(0,): 1.0}, [-1.0], [1.0])(net), gflow.__version__.upper())
