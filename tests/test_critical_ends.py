"""Critical points at the ends of flows: on kinks, on random problems; none before they converge."""

import importlib
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from benchmarks.reference_flows import reference_flow
from gflow import piecewise
from gflow.critical.landscapes import FlatRisk, SmoothLandscape
from gflow.critical.shallow_landscape import ShallowLandscape
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import ParameterLayout, flat, split_trainable
from tests.helpers.networks_as_vectors import disturbed, norm

pytestmark = pytest.mark.slow


def load(name: str):
    known = reference_flow(name)
    return known.risk, known.net


@pytest.fixture(scope="module")
def sine():
    return load("sine_d1_w20_n40")


def test_a_nonsmooth_critical_point(sine_plane_end):
    risk, flow = sine_plane_end
    point = gflow.refine(risk, flow.final)
    assert point.kind is gflow.CriticalKind.LOCAL_MINIMUM and point.residual < 1e-13
    assert len(point.active_kinks) >= 10
    assert all(0 < kink.weight < 1 for kink in point.active_kinks)
    # It is the set on which the flow slides, and 0 is in the Clarke subdifferential, though far
    # from being the generalized gradient.
    pairs = {(0, kink.unit, kink.datum) for kink in point.active_kinks}
    assert pairs <= flow.kinks.sliding_at(float(flow.ts[-1]))
    assert norm(gflow.clarke_gradient(risk, point.net)) < 1e-13
    assert norm(gflow.generalized_gradient(risk, point.net)) > 1e-5


def directions_along(risk, net, kinks) -> np.ndarray:
    """An orthonormal basis of the directions of θ along some kinks, as columns."""
    places, size = ParameterLayout(net).places, ParameterLayout(net).size
    normals = np.zeros((len(kinks), size))
    for normal, kink in zip(normals, kinks):
        normal[places.w[kink.unit]], normal[places.b[kink.unit]] = risk.x[kink.datum], 1.0
    return np.linalg.svd(normals)[2][np.linalg.matrix_rank(normals) :].T


def test_the_risk_around_a_nonsmooth_minimum(sine_plane_end):
    risk, flow = sine_plane_end
    point = gflow.refine(risk, flow.final)
    theta, unravel = jax.flatten_util.ravel_pytree(point.net)
    # It rises in all directions.
    for seed in range(20):
        assert risk(disturbed(point.net, 1e-4, seed)) > point.risk
    # Along the kinks autodiff has the Hessian of the pattern, of whichever side. Those that are
    # weakly active count as inactive, and are put on that side by some roundings.
    weak = jnp.array([kink.unit for kink in point.weakly_active], int)
    aside = eqx.tree_at(lambda n: n.b, point.net, point.net.b.at[weak].add(-4e-15))
    aside = jax.flatten_util.ravel_pytree(aside)[0]
    hessian = np.asarray(jax.hessian(lambda p: risk(unravel(p)))(aside))
    along = directions_along(risk, point.net, point.active_kinks)
    values, spectrum = np.linalg.eigvalsh(along.T @ hessian @ along), point.spectrum.eigenvalues
    np.testing.assert_allclose(values, spectrum, atol=1e-13 * spectrum[-1])
    # Along all kinks the risk rises as its curvature says. The mean over both signs has no third
    # order, and for steps of length 1e-4 the fourth is some 1e-8 of the second.
    along = directions_along(risk, point.net, point.active_kinks + point.weakly_active)
    for seed in range(20):
        step = along @ (1e-5 * np.random.default_rng(seed).normal(size=along.shape[1]))
        rises = [float(risk(unravel(theta + sign * step))) - point.risk for sign in (1, -1)]
        assert np.mean(rises) == pytest.approx(step @ hessian @ step / 2, rel=1e-7)


@pytest.fixture(scope="module")
def sine_plane_end():
    risk, net = load("sine_d2_w30_n80")
    return risk, gflow.solve_flow(risk, net, t1=1e7, rtol=1e-6)


def test_a_flow_that_has_not_yet_converged_is_refused(sine):
    risk, net = sine
    flow = gflow.solve_flow(risk, net, t1=20.0)
    with pytest.raises(gflow.NotFoundError, match="no critical point") as error:
        gflow.refine(risk, flow.final)
    assert error.value.point.kind is gflow.CriticalKind.NOT_FOUND and not error.value.point.found
    assert gflow.refine(risk, flow.final, throw=False).residual > 1e-3


def test_the_end_of_a_flow_does_not_depend_on_when_it_was_left(sine):
    risk, net = sine
    early, late = (gflow.solve_flow(risk, net, t1=t1).final for t1 in (1e5, 1e8))
    one, two = gflow.refine(risk, early), gflow.refine(risk, late)
    assert one.risk == pytest.approx(two.risk, rel=1e-12) and two.risk > 1e-6
    assert one.kind is two.kind is gflow.CriticalKind.LOCAL_MINIMUM
    assert one.distance > 0.05 and two.distance < 1e-6
    assert one.risk_change < -1e-8


@pytest.mark.parametrize("k", range(3))
def test_slopes_that_are_roundings_do_not_hide_a_minimum(k):
    """Ends of three descents on scikit-learn's Linnerud data, hovering about kinks."""
    arrays = np.load(Path(__file__).parent / "data" / "descents_at_kinks.npz")
    net = gflow.ShallowNet.from_arrays(*(arrays[name][k] for name in ("w", "b", "v", "c")))
    point = gflow.refine(gflow.EmpiricalRisk(arrays["x"], arrays["y"]), net)
    assert point.kind == "local minimum" and len(point.active_kinks) == 5
    assert point.risk == pytest.approx(0.178424, abs=1e-6)


@pytest.mark.parametrize("endless", [True, False])
def test_a_slope_beside_many_eigenvalues_is_seen_without_a_hessian(endless, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gflow.critical.refine"), "_MAX_PARAMETERS", 10)
    rng = np.random.default_rng(0)
    curvatures, start = jnp.asarray(10 ** rng.uniform(-2, 1, 200)), 1 + 1e-3 * rng.normal(size=200)
    tail = lambda x: jax.nn.softplus(-30 * x) if endless else 1e-3 * (x - 1) ** 2
    risk = lambda p: tail(p["x"][0]) + jnp.sum(curvatures[1:] * (p["x"][1:] - 1) ** 2) / 2
    point = gflow.refine(risk, {"x": jnp.asarray(start)}, throw=False)
    assert point.found is not endless


def test_a_repelling_kink_makes_a_saddle():
    # Without biases, x and −x have one kink; the risk falls to both sides of it.
    risk = gflow.EmpiricalRisk(np.array([[1.0], [-1.0]]), np.array([1.0, 1.0]))
    net = gflow.ShallowNet.from_arrays([[0.0], [0.0]], None, [1.0, 1.0], None)
    point = gflow.refine(risk, net, trainable=("w",), radius=1.0, throw=False)
    assert point.risk == 1.0 and point.kind is gflow.CriticalKind.SADDLE
    for direction in point.descent_directions:
        assert risk(eqx.tree_at(lambda n: n.w, net, 0.1 * direction.w)) < 1.0


def test_a_line_that_stops_at_a_kink():
    # L(w) = ((relu(w) + 1)² + (relu(−w) + 1)²)/2, least at the kink w = 0.
    risk = gflow.EmpiricalRisk(np.array([[1.0], [-1.0]]), np.array([-1.0, -1.0]))
    net = gflow.ShallowNet.from_arrays([[0.3]], None, [1.0], None)
    end = gflow.solve_flow(risk, net, t1=0.2, trainable=("w",)).final
    point = gflow.refine(risk, end, radius=2.0, trainable=("w",))
    assert point.kind is gflow.CriticalKind.LOCAL_MINIMUM and point.risk == 1.0
    assert float(point.net.w[0, 0]) == 0.0 and len(point.active_kinks) == 1
    # Both sides pull with the same force.
    assert point.active_kinks[0].weight == pytest.approx(0.5)


def test_the_risk_of_a_pattern_agrees_with_autodiff(sine):
    risk, net = sine
    trained, frozen = split_trainable(net, None)
    theta = np.asarray(flat(trained))
    known = ShallowPatternRisk.of(risk, trained, frozen)
    active = np.asarray(known.z(net)) > 0
    ours = ShallowLandscape(known, active).expansion(theta)
    held = np.zeros(len(theta), bool)
    theirs = SmoothLandscape(FlatRisk(risk, trained, frozen), held).expansion(theta)
    assert ours.value == pytest.approx(theirs.value, rel=1e-14)
    np.testing.assert_allclose(ours.gradient, theirs.gradient, atol=1e-14)
    np.testing.assert_allclose(ours.hessian, theirs.hessian, atol=1e-13)


# ---- random problems ----------------------------------------------------------------------------


def data_on_a_line(k: int):
    x = np.linspace(-1, 1, 12)
    net = gflow.ShallowNet(1, 8, key=jax.random.key(k))
    return gflow.EmpiricalRisk(x[:, None], np.sin(3 * x + k)), net


def under_a_tent(k: int):
    net = gflow.ShallowNet(1, 4, key=jax.random.key(k), init="standard_normal")
    return gflow.PopulationRisk(piecewise.tent(), piecewise.uniform()), net


@pytest.mark.parametrize("problem", [data_on_a_line, under_a_tent])
def test_the_ends_of_flows_on_random_problems(problem):
    for k in range(12):
        risk, net = problem(k)
        flow = gflow.solve_flow(risk, net, t1=1e5, throw=False)
        point = gflow.refine(risk, flow.final, throw=False)
        start = float(flow.grad_norm[0])
        assert point.found == (flow.grad_norm[-1] < 1e-7 * start)
        assert not point.found or point.residual < 1e-12 * start
        # The start of a flow is near no critical point.
        assert not gflow.refine(risk, net, throw=False).found
        if isinstance(risk, gflow.EmpiricalRisk) and not point.units.degenerate:
            assert norm(gflow.clarke_gradient(risk, point.net)) < 1e-12 * start


def test_students_near_their_teacher():
    teacher = gflow.ShallowNet(2, 3, key=jax.random.key(0), use_bias=False)
    point = gflow.refine(gflow.GaussianRisk(teacher), disturbed(teacher, 1e-3, 0))
    assert point.kind is gflow.CriticalKind.GLOBAL_MINIMUM and abs(point.risk) < 1e-14
    # The teacher up to rescaling: the products |w| v and the directions.
    ours, theirs = (np.asarray(n.w * jnp.abs(n.v)[:, None]) for n in (point.net, teacher))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert point.zeros == (3, 0, 3, 0)
