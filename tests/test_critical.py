"""Critical points: the affine target's, those of known flows, and none where there is none."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import piecewise
from gflow.critical.landscape import OfPattern, Smooth
from gflow.flow.switched import switched
from gflow.networks import split_trainable

DATA = Path(__file__).parent / "data"

# f(x) = α x + β on [T0, T1], uniform density.
T0, T1, ALPHA, BETA = -1.0, 2.0, 2.0, 0.5
MIDDLE = ALPHA * (T0 + T1) / 2 + BETA


@pytest.fixture(scope="module")
def affine():
    length = T1 - T0
    target = piecewise.PiecewisePolynomial([T0, T1], [[BETA, ALPHA]])
    density = piecewise.PiecewisePolynomial([T0, T1], [[1 / length]])
    return gflow.PopulationRisk(target, density)


def critical_value(kinks: int) -> float:
    return ALPHA**2 * (T1 - T0) ** 2 / (12 * (kinks + 1) ** 4)


def zig_zag(kinks: int, width: int, seed: int) -> gflow.ShallowNet:
    """The saddle with that many kinks; the other units are dead."""
    rng = np.random.default_rng(seed)
    w, b, v = [], [], []
    for i in range(1, kinks + 1):
        at = T0 + i * (T1 - T0) / (kinks + 1)
        slope = (-1) ** (i + 1) * rng.uniform(0.5, 1.5)
        w.append(slope)
        b.append(-slope * at)
        v.append(2 * ALPHA / (kinks + 1) / slope)
    for _ in range(width - kinks):
        w.append(1.0)
        b.append(-T1 - rng.uniform(0.5, 1.0))
        v.append(rng.normal())
    return gflow.ShallowNet.from_arrays(np.array(w)[:, None], b, v, MIDDLE)


def disturbed(net, size: float, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + size * rng.normal(size=a.shape), net)


def moved(net, direction, size: float):
    return jax.tree.map(lambda a, d: a + size * d, net, direction)


def norm(tree) -> float:
    return float(jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(tree))))


def constant(*units) -> gflow.ShallowNet:
    """Units (w, b, v) that do not act, and a c near that of the best constant."""
    w, b, v = zip(*units)
    return gflow.ShallowNet.from_arrays(np.array(w)[:, None], b, v, MIDDLE + 0.01)


# ---- an affine target (Cheridito, Jentzen and Rossmannek) -------------------------------------


@pytest.mark.parametrize("kinks", [2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_zig_zag_saddles(affine, kinks, seed):
    net = zig_zag(kinks, 4, seed)
    point = gflow.refine(affine, disturbed(net, 1e-3, seed))
    assert point.kind is gflow.Kind.SADDLE
    assert point.risk == pytest.approx(critical_value(kinks), abs=1e-15)
    assert point.residual < 1e-13
    # All that is zero is explained: rescaling of the active units, and the dead ones.
    assert point.zeros == (kinks + 3 * (4 - kinks), 3 * (4 - kinks), kinks, 0)
    assert len(point.units.dead) == 4 - kinks
    # From there the risk falls.
    for direction in point.negative:
        for size in (1e-3, -1e-3):
            assert affine(moved(point.net, direction, size)) < point.risk


def test_dead_units_make_local_minima(affine):
    net = constant((1.0, -3.0, 1.0), (-1.0, -2.0, -1.0), (1.0, -2.5, 0.5), (1.0, -4.0, 2.0))
    point = gflow.refine(affine, net)
    assert point.kind is gflow.Kind.LOCAL_MINIMUM
    assert point.risk == pytest.approx(critical_value(0), abs=1e-14)
    assert point.units.dead == (0, 1, 2, 3) and point.zeros == (12, 12, 0, 0)
    # Only c moves: L = (c − m)² + const.
    assert point.spectrum[-1] == pytest.approx(2.0) and point.rate == pytest.approx(4.0)
    assert float(point.net.c) == pytest.approx(MIDDLE, abs=1e-15)


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        # Units that touch T0 alone: minima where α v > 0; those that touch T1 where α v < 0.
        ((-1.0, T0, 1.0), gflow.Kind.LOCAL_MINIMUM),
        ((-1.0, T0, -1.0), gflow.Kind.SADDLE),
        ((1.0, -T1, -1.0), gflow.Kind.LOCAL_MINIMUM),
        ((1.0, -T1, 1.0), gflow.Kind.SADDLE),
        # w = 0 < b, v = 0; and w = b = 0.
        ((0.0, 1.0, 0.0), gflow.Kind.SADDLE),
        ((0.0, 0.0, 1.0), gflow.Kind.SADDLE),
    ],
)
def test_units_at_the_edge_and_at_zero(affine, unit, kind):
    dead = (1.0, -3.0, 1.0)
    point = gflow.refine(affine, constant(unit, dead, dead, dead))
    assert point.kind is kind
    assert point.risk == pytest.approx(critical_value(0), abs=1e-14)
    assert point.units.duplicates == ((1, 2, 3),)


def test_a_kink_at_the_edge_has_the_rate_of_the_inside(affine):
    # z = T0 − x touches T0: inside it adds 2 r p v ∇z ∇zᵀ, with ∇z = (T0, 1), r = 3, p = 1/3.
    v = 0.1
    dead = (1.0, -3.0, 1.0)
    point = gflow.refine(affine, constant((-1.0, T0, v), dead, dead, dead))
    assert point.kind is gflow.Kind.LOCAL_MINIMUM
    assert point.zeros == (11, 11, 0, 0)
    assert point.spectrum[-2:] == pytest.approx([2 * v * (1 + T0**2), 2.0], rel=1e-9)
    # From the point itself, where no mode is ahead of the others.
    assert gflow.refine(affine, point.net).rate == pytest.approx(4 * v * (1 + T0**2), rel=1e-9)


@pytest.mark.parametrize("outside", [0.0, 1e-12])
def test_a_unit_that_has_just_become_active_everywhere(outside):
    # x² on [-1, 1]: N = 1/3 of two units that are active everywhere, the first with its kink at −1.
    risk = gflow.PopulationRisk(piecewise.parabola(), piecewise.uniform(-1, 1))
    w, b, v = np.array([1.0, 1.0]), np.array([1.0 + outside, 5.0]), np.array([-0.3, 0.3])
    point = gflow.refine(risk, gflow.ShallowNet.from_arrays(w[:, None], b, v, 1 / 3 - v @ b))
    # The parameters are (w, b, v, c). With z = w x + b, the Hessian is ∫ ∇N ∇Nᵀ + r ∇²N.
    x, weights = np.polynomial.legendre.leggauss(5)
    r = 1 / 3 - x**2
    one = np.ones_like(x)
    slopes = np.stack([v[0] * x, v[1] * x, v[0] * one, v[1] * one, *(np.outer(w, x).T + b).T, one])
    hessian = (weights * slopes) @ slopes.T
    for unit in range(2):
        for at, line in ((unit, x), (2 + unit, one)):
            hessian[[at, 4 + unit], [4 + unit, at]] += weights @ (r * line)
    # 2 r p v/|w| of the edge, where r = -2/3 and p = 1/2.
    normal = np.array([-1.0, 0, 1, 0, 0, 0, 0])
    hessian += 2 * (-2 / 3) * 0.5 * v[0] * np.outer(normal, normal)
    assert point.distance < 1e-9
    assert point.spectrum == pytest.approx(np.linalg.eigvalsh(hessian), rel=1e-8, abs=1e-11)


def test_global_minima_and_a_known_optimum(affine):
    net = gflow.ShallowNet.from_arrays(
        [[1.0], [-1.0], [1.0], [1.0]], [2.0, -3.0, -3.0, -4.0], [2.0, 1.0, 1.0, 1.0], -3.5
    )
    point = gflow.refine(affine, disturbed(net, 1e-2, 0))
    assert point.kind is gflow.Kind.GLOBAL_MINIMUM and point.risk < 1e-28
    assert point.units.always_active == (0,)
    one = constant((1.0, -3.0, 1.0), (1.0, -2.5, 0.5), (1.0, -4.0, 2.0), (1.0, -5.0, 2.0))
    assert gflow.refine(affine, one, optimum=critical_value(0)).kind is gflow.Kind.GLOBAL_MINIMUM


# ---- data with kinks ----------------------------------------------------------------------------


def load(name: str):
    r = np.load(DATA / f"{name}.npz")
    net = gflow.ShallowNet.from_arrays(r["w0"], r["b0"], r["v0"], r["c0"])
    return gflow.EmpiricalRisk(r["X"], r["y"]), net


@pytest.fixture(scope="module")
def sine():
    return load("sine_d1_w20_n40")


def test_a_nonsmooth_critical_point(sine_plane_end):
    risk, flow = sine_plane_end
    point = gflow.refine(risk, flow.final)
    assert point.kind is gflow.Kind.LOCAL_MINIMUM and point.residual < 1e-13
    assert len(point.sliding) >= 10
    assert all(0 < kink.weight < 1 for kink in point.sliding)
    # It is the set on which the flow slides, and 0 is in the Clarke subdifferential, though far
    # from being the generalized gradient.
    pairs = {(kink.unit, kink.datum) for kink in point.sliding}
    assert pairs <= flow.kinks_at(float(flow.ts[-1]))
    assert norm(gflow.clarke_gradient(risk, point.net)) < 1e-13
    assert norm(gflow.generalized_gradient(risk, point.net)) > 1e-5
    # A little apart from it, the risk is higher; by less than what its curvature allows.
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert risk(disturbed(point.net, 1e-4, rng.integers(1000))) > point.risk


@pytest.fixture(scope="module")
def sine_plane_end():
    risk, net = load("sine_d2_w30_n80")
    return risk, gflow.solve_flow(risk, net, t1=1e7)


def test_a_flow_that_still_travels_is_refused(sine):
    risk, net = sine
    flow = gflow.solve_flow(risk, net, t1=20.0)
    with pytest.raises(gflow.NotFoundError, match="no critical point") as error:
        gflow.refine(risk, flow.final)
    assert error.value.point.kind is gflow.Kind.NOT_FOUND and not error.value.point.found
    assert gflow.refine(risk, flow.final, throw=False).residual > 1e-3


def test_the_end_of_a_flow_does_not_depend_on_when_it_was_left(sine):
    risk, net = sine
    early, late = (gflow.solve_flow(risk, net, t1=t1).final for t1 in (1e5, 1e8))
    one, two = gflow.refine(risk, early), gflow.refine(risk, late)
    assert one.risk == pytest.approx(two.risk, rel=1e-12) and two.risk > 1e-6
    assert one.kind is two.kind is gflow.Kind.LOCAL_MINIMUM
    assert one.distance > 0.05 and two.distance < 1e-6
    assert one.risk_change < -1e-8


def test_a_repelling_kink_makes_a_saddle():
    # Without biases, x and −x have one kink; the risk falls to both sides of it.
    risk = gflow.EmpiricalRisk(np.array([[1.0], [-1.0]]), np.array([1.0, 1.0]))
    net = gflow.ShallowNet.from_arrays([[0.0], [0.0]], None, [1.0, 1.0], None)
    point = gflow.refine(risk, net, trainable=("w",), radius=1.0, throw=False)
    assert point.risk == 1.0 and point.kind is gflow.Kind.SADDLE
    for direction in point.negative:
        assert risk(eqx.tree_at(lambda n: n.w, net, 0.1 * direction.w)) < 1.0


def test_a_line_that_stops_at_a_kink():
    # L(w) = ((relu(w) + 1)² + (relu(−w) + 1)²)/2, least at the kink w = 0.
    risk = gflow.EmpiricalRisk(np.array([[1.0], [-1.0]]), np.array([-1.0, -1.0]))
    net = gflow.ShallowNet.from_arrays([[0.3]], None, [1.0], None)
    end = gflow.solve_flow(risk, net, t1=0.2, trainable=("w",)).final
    point = gflow.refine(risk, end, radius=2.0, trainable=("w",))
    assert point.kind is gflow.Kind.LOCAL_MINIMUM and point.risk == 1.0
    assert float(point.net.w[0, 0]) == 0.0 and len(point.sliding) == 1
    # Both sides pull with the same force.
    assert point.sliding[0].weight == pytest.approx(0.5)


# ---- the parts ----------------------------------------------------------------------------------


def test_the_risk_of_a_pattern_agrees_with_autodiff(sine):
    risk, net = sine
    trained, frozen = split_trainable(net, None)
    theta = np.asarray(jax.flatten_util.ravel_pytree(trained)[0])
    known = switched(risk, trained, frozen)
    active = np.asarray(known.preactivations(net)) > 0
    ours = OfPattern(known, active).local(theta)
    theirs = Smooth(risk, trained, frozen, np.zeros(len(theta), bool)).local(theta)
    assert ours.value == pytest.approx(theirs.value, rel=1e-14)
    np.testing.assert_allclose(ours.gradient, theirs.gradient, atol=1e-14)
    np.testing.assert_allclose(ours.hessian, theirs.hessian, atol=1e-13)


@pytest.mark.parametrize("power", [2, 4, 6])
def test_degenerate_minima_of_one_parameter(power):
    # L = x^p: the Hessian vanishes at 0 for p > 2, and Newton's method converges linearly.
    point = gflow.refine(lambda net: jnp.sum(net["x"] ** power), {"x": jnp.array([0.1])}, radius=2)
    assert abs(float(point.net["x"][0])) < 1e-13 ** (1 / (power - 1))
    assert point.kind is gflow.Kind.GLOBAL_MINIMUM


def test_kinds_of_smooth_functions():
    at = lambda *x: {"x": jnp.array(x)}
    find = lambda f, *x: gflow.refine(lambda net: f(*net["x"]), at(*x), radius=5, throw=False)
    assert find(lambda x, y: 1 + x**2 + 3 * y**2, 0.1, 0.2).kind is gflow.Kind.LOCAL_MINIMUM
    assert find(lambda x, y: 1 + x**2 - 3 * y**2, 0.1, 0.2).kind is gflow.Kind.SADDLE
    # Degenerate: open to second order, a fall in one direction that only x³ shows.
    assert find(lambda x, y: 1 + x**3 + y**2, 0.1, 0.2).kind is gflow.Kind.SADDLE
    assert find(lambda x, y: 1 + x**4 + y**2, 0.1, 0.2).kind is gflow.Kind.DEGENERATE
    # A circle of minima.
    circle = find(lambda x, y: 1 + (x**2 + y**2 - 1) ** 2, 0.9, 0.3)
    assert circle.kind is gflow.Kind.LOCAL_MINIMUM and circle.zeros.unexplained == 1
    assert circle.rate == pytest.approx(16.0)
    # No critical point at all; and one far away, to which a flow goes forever.
    assert find(lambda x, y: jnp.exp(x) + y**2, 0.1, 0.2).kind is gflow.Kind.NOT_FOUND
    assert find(lambda x, y: x + y, 0.1, 0.2).kind is gflow.Kind.NOT_FOUND


def test_what_cannot_be_used(affine):
    net = zig_zag(2, 4, 0)
    for wrong in ({"radius": -1.0}, {"radius": np.inf}, {"optimum": np.nan}):
        with pytest.raises(gflow.ArgumentError, match=next(iter(wrong))):
            gflow.refine(affine, net, **wrong)
    with_w = lambda w: gflow.ShallowNet.from_arrays(w, net.b, net.v, net.c)
    with pytest.raises(gflow.ArgumentError, match="outside jax.jit"):
        jax.jit(lambda w: gflow.refine(affine, with_w(w)))(net.w)
    with pytest.raises(gflow.ArgumentError, match="not finite"):
        gflow.refine(affine, with_w(net.w.at[0].set(jnp.nan)))


def test_networks_in_single_precision(affine):
    net = zig_zag(2, 4, 0)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), net)
    point = gflow.refine(affine, single)
    assert point.net.w.dtype == jnp.float64 and point.kind is gflow.Kind.SADDLE
    assert point.risk == pytest.approx(critical_value(2), abs=1e-15)
    with jax.enable_x64(False), pytest.raises(gflow.ArgumentError, match="float64"):
        gflow.refine(affine, single)


def test_how_it_reads(affine):
    point = gflow.refine(affine, zig_zag(2, 4, 0))
    text = repr(point)
    assert "saddle" in text and "2 dead" in text and f"{point.risk:.12g}" in text
    assert str(point.kind) == "saddle" and not point.is_minimum and point.rate is None


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
    assert point.kind is gflow.Kind.GLOBAL_MINIMUM and abs(point.risk) < 1e-14
    # The teacher up to rescaling: the products |w| v and the directions.
    ours, theirs = (np.asarray(n.w * jnp.abs(n.v)[:, None]) for n in (point.net, teacher))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert point.zeros == (3, 0, 3, 0)


# ---- what has been taken for a minimum ----------------------------------------------------------


def five_points():
    x = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    return gflow.EmpiricalRisk(x, np.array([0.0, -1.0, 1.0, 1.0, 2.0]))


def test_a_concave_kink_that_is_touched():
    # A line fits the two active rows; the row at the kink is below its target.
    risk, b = five_points(), lambda b: gflow.ShallowNet.from_arrays([[1.0]], [b], [1.0], 0.0)
    assert risk(b(1e-3)) < risk(b(0.0))
    point = gflow.refine(risk, b(0.0))
    assert point.kind is gflow.Kind.SADDLE and len(point.touched) == 1
    assert risk(moved(point.net, point.negative[0], 1e-3)) < point.risk


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_units_at_zero_of_all_activations(activation):
    x = np.linspace(-1, 1, 7)
    y = np.sin(3 * x) + x**2
    zero = np.zeros(2)
    net = gflow.ShallowNet.from_arrays(zero[:, None], zero, zero, y.mean(), activation=activation)
    assert gflow.refine(gflow.EmpiricalRisk(x[:, None], y), net).kind is gflow.Kind.SADDLE


def test_saddles_at_the_origin():
    find = lambda f: gflow.refine(lambda net: f(*net["x"]), {"x": jnp.zeros(3)})
    # A deep linear network; and a fall of fifth order.
    assert find(lambda x, y, z: (x * y * z - 1) ** 2).kind is gflow.Kind.SADDLE
    assert find(lambda x, y, z: 1 + x**2 * y - y**5 + z**4).kind is gflow.Kind.SADDLE
    # Flat to higher order than can be seen is not called a minimum.
    assert find(lambda x, y, z: 1 + (x * y * z) ** 4).kind is not gflow.Kind.SADDLE


def test_risks_below_the_optimum():
    find = lambda f, *x: gflow.refine(lambda net: f(*net["x"]), {"x": jnp.array(x)}, radius=1.0)
    assert find(lambda x, y: x**2 - y**2, 0.0, 0.0).kind is gflow.Kind.SADDLE
    assert find(lambda x, y: x**2 + y**2 - 1, 0.1, 0.1).kind is gflow.Kind.LOCAL_MINIMUM


def test_what_was_passed_in_by_mistake(affine):
    net = zig_zag(2, 4, 0)
    flow = gflow.solve_flow(affine, net, t1=0.1)
    with pytest.raises(gflow.ArgumentError, match="final"):
        gflow.refine(affine, flow)
    with pytest.raises(gflow.ArgumentError, match="to a scalar"):
        gflow.refine(lambda net: net["x"], {"x": jnp.zeros(2)})
    with pytest.raises(gflow.NotFoundError, match="larger `radius`"):
        gflow.refine(lambda net: jnp.sum((net["x"] - 1) ** 2) + 1, {"x": jnp.array([0.8])})
