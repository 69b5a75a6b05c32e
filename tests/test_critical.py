"""Critical points of smooth and of true risks: the affine target's, degenerate ones, and none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import piecewise
from gflow.critical import ActiveKink
from tests.helpers.affine_target import (
    MIDDLE,
    T0,
    T1,
    affine_risk,
    constant,
    critical_value,
    zig_zag,
)
from tests.helpers.networks_as_vectors import disturbed, moved


@pytest.fixture(scope="module")
def affine():
    return affine_risk()


# ---- an affine target (Cheridito, Jentzen and Rossmannek) -------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kinks", [2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_zig_zag_saddles(affine, kinks, seed):
    net = zig_zag(kinks, 4, seed)
    point = gflow.refine(affine, disturbed(net, 1e-3, seed))
    assert point.kind is gflow.CriticalKind.SADDLE
    assert point.risk == pytest.approx(critical_value(kinks), abs=1e-15)
    assert point.residual < 1e-13
    # All that is zero is explained: rescaling of the active units, and the dead ones.
    assert point.zeros == (kinks + 3 * (4 - kinks), 3 * (4 - kinks), kinks, 0)
    assert len(point.units.dead) == 4 - kinks
    # From there the risk falls.
    for direction in point.descent_directions:
        for size in (1e-3, -1e-3):
            assert affine(moved(point.net, direction, size)) < point.risk


def test_dead_units_make_local_minima(affine):
    net = constant((1.0, -3.0, 1.0), (-1.0, -2.0, -1.0), (1.0, -2.5, 0.5), (1.0, -4.0, 2.0))
    point = gflow.refine(affine, net)
    assert point.kind is gflow.CriticalKind.LOCAL_MINIMUM
    assert point.risk == pytest.approx(critical_value(0), abs=1e-14)
    assert point.units.dead == (0, 1, 2, 3) and point.zeros == (12, 12, 0, 0)
    # Only c moves: L = (c − m)² + const.
    assert point.spectrum.sharpness == pytest.approx(2.0) and point.rate == pytest.approx(4.0)
    assert float(point.net.c) == pytest.approx(MIDDLE, abs=1e-15)


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        # Units that touch T0 alone: minima where α v > 0; those that touch T1 where α v < 0.
        ((-1.0, T0, 1.0), gflow.CriticalKind.LOCAL_MINIMUM),
        ((-1.0, T0, -1.0), gflow.CriticalKind.SADDLE),
        ((1.0, -T1, -1.0), gflow.CriticalKind.LOCAL_MINIMUM),
        ((1.0, -T1, 1.0), gflow.CriticalKind.SADDLE),
        # w = 0 < b, v = 0; and w = b = 0.
        ((0.0, 1.0, 0.0), gflow.CriticalKind.SADDLE),
        ((0.0, 0.0, 1.0), gflow.CriticalKind.SADDLE),
    ],
)
def test_units_at_the_edge_and_at_zero(affine, unit, kind):
    dead = (1.0, -3.0, 1.0)
    point = gflow.refine(affine, constant(unit, dead, dead, dead))
    assert point.kind is kind
    assert point.risk == pytest.approx(critical_value(0), abs=1e-14)
    assert point.units.duplicates == ((1, 2, 3),)
    assert "1 group of duplicates" in str(point.units)


def test_a_kink_at_the_edge_has_the_rate_of_the_inside(affine):
    # z = T0 − x touches T0: inside it adds 2 r p v ∇z ∇zᵀ, with ∇z = (T0, 1), r = 3, p = 1/3.
    v = 0.1
    dead = (1.0, -3.0, 1.0)
    point = gflow.refine(affine, constant((-1.0, T0, v), dead, dead, dead))
    assert point.kind is gflow.CriticalKind.LOCAL_MINIMUM
    assert point.zeros == (11, 11, 0, 0)
    expected = [2 * v * (1 + T0**2), 2.0]
    assert point.spectrum.eigenvalues[-2:] == pytest.approx(expected, rel=1e-9)
    # From the point itself, where no mode is ahead of the others.
    assert gflow.refine(affine, point.net).rate == pytest.approx(4 * v * (1 + T0**2), rel=1e-9)


@pytest.mark.slow
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
    expected = np.linalg.eigvalsh(hessian)
    assert point.spectrum.eigenvalues == pytest.approx(expected, rel=1e-8, abs=1e-11)


def test_global_minima_and_a_known_optimum(affine):
    net = gflow.ShallowNet.from_arrays(
        [[1.0], [-1.0], [1.0], [1.0]], [2.0, -3.0, -3.0, -4.0], [2.0, 1.0, 1.0, 1.0], -3.5
    )
    point = gflow.refine(affine, disturbed(net, 1e-2, 0))
    assert point.kind is gflow.CriticalKind.GLOBAL_MINIMUM and point.risk < 1e-28
    assert point.units.always_active == (0,)
    one = constant((1.0, -3.0, 1.0), (1.0, -2.5, 0.5), (1.0, -4.0, 2.0), (1.0, -5.0, 2.0))
    assert (
        gflow.refine(affine, one, optimum=critical_value(0)).kind
        is gflow.CriticalKind.GLOBAL_MINIMUM
    )


# ---- smooth functions and bad input -------------------------------------------------------------


@pytest.mark.parametrize("power", [2, 4, 6])
def test_degenerate_minima_of_one_parameter(power):
    # L = x^p: the Hessian vanishes at 0 for p > 2, and Newton's method converges linearly.
    point = gflow.refine(lambda net: jnp.sum(net["x"] ** power), {"x": jnp.array([0.1])}, radius=2)
    assert abs(float(point.net["x"][0])) < 1e-13 ** (1 / (power - 1))
    assert point.kind is gflow.CriticalKind.GLOBAL_MINIMUM


def test_kinds_of_smooth_functions():
    at = lambda *x: {"x": jnp.array(x)}
    find = lambda f, *x: gflow.refine(lambda net: f(*net["x"]), at(*x), radius=5, throw=False)
    assert find(lambda x, y: 1 + x**2 + 3 * y**2, 0.1, 0.2).kind is gflow.CriticalKind.LOCAL_MINIMUM
    assert find(lambda x, y: 1 + x**2 - 3 * y**2, 0.1, 0.2).kind is gflow.CriticalKind.SADDLE
    # Degenerate: open to second order, a fall in one direction that only x³ shows.
    assert find(lambda x, y: 1 + x**3 + y**2, 0.1, 0.2).kind is gflow.CriticalKind.SADDLE
    assert find(lambda x, y: 1 + x**4 + y**2, 0.1, 0.2).kind is gflow.CriticalKind.DEGENERATE
    # A circle of minima.
    circle = find(lambda x, y: 1 + (x**2 + y**2 - 1) ** 2, 0.9, 0.3)
    assert circle.kind is gflow.CriticalKind.LOCAL_MINIMUM and circle.zeros.unexplained == 1
    assert circle.rate == pytest.approx(16.0)
    # No critical point at all; and one far away, to which a flow goes forever.
    assert find(lambda x, y: jnp.exp(x) + y**2, 0.1, 0.2).kind is gflow.CriticalKind.NOT_FOUND
    assert find(lambda x, y: x + y, 0.1, 0.2).kind is gflow.CriticalKind.NOT_FOUND


def test_the_rate_is_that_of_the_modes_that_carry_the_gap():
    risk = lambda net: 1 + net["x"][0] ** 2 + 10 * net["x"][1] ** 2
    rate = lambda *x: gflow.refine(risk, {"x": jnp.array(x)}, radius=2.0).rate
    # The eigenvalues are 2 and 20, and the gap falls like exp(−2λt).
    assert rate(1e-4, 1.0) == pytest.approx(40.0) and rate(0.1, 1.0) == pytest.approx(40.0)
    assert rate(1.0, 0.1) == pytest.approx(4.0)


def test_what_cannot_be_used(affine):
    net = zig_zag(2, 4, 0)
    for wrong in ({"radius": -1.0}, {"radius": np.inf}, {"optimum": np.nan}):
        with pytest.raises(gflow.ArgumentError, match=next(iter(wrong))):
            gflow.refine(affine, net, **wrong)
    with_w = lambda w: gflow.ShallowNet.from_arrays(w, net.b, net.v, net.c)
    with pytest.raises(gflow.ArgumentError, match="outside jax.jit"):
        jax.jit(lambda w: gflow.refine(affine, with_w(w)))(net.w)
    with pytest.raises(gflow.ArgumentError, match="not finite, wanted a network of finite risk"):
        gflow.refine(affine, with_w(net.w.at[0].set(jnp.nan)))


def test_networks_in_single_precision(affine):
    net = zig_zag(2, 4, 0)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), net)
    point = gflow.refine(affine, single)
    assert point.net.w.dtype == jnp.float64 and point.kind is gflow.CriticalKind.SADDLE
    assert point.risk == pytest.approx(critical_value(2), abs=1e-15)


def test_where_jax_runs_in_single_precision():
    x = np.linspace(-1, 1, 7)
    with jax.enable_x64(False):
        risk = gflow.EmpiricalRisk(x[:, None], x + x**2)
        net = gflow.ShallowNet.from_arrays([[1.0]], [2.0], [1.0], -2.0)
        point = gflow.refine(risk, net, trainable=("v", "c"), radius=1.0)
        assert point.net.v.dtype == jnp.float32 and "float64" in point.message
    # Least squares, of data that are rounded to float32.
    exact = np.linalg.lstsq(np.stack([x + 2, np.ones(7)], axis=1), x + x**2)[0]
    assert point.kind is gflow.CriticalKind.LOCAL_MINIMUM and point.residual < 1e-14
    assert [float(point.net.v[0]), float(point.net.c)] == pytest.approx(exact, rel=1e-6)


def test_how_it_reads(affine):
    point = gflow.refine(affine, zig_zag(2, 4, 0))
    text = repr(point)
    assert "saddle" in text and "2 dead" in text and f"{point.risk:.12g}" in text
    assert str(point.kind) == "saddle" and not point.is_minimum and point.rate is None
    values = point.spectrum.eigenvalues
    assert f"{len(values)} eigenvalues from {values[0]:.3g} to {values[-1]:.3g}" in text


def test_the_spectrum_counts_zeros_as_the_kind_does(affine):
    point = gflow.refine(affine, zig_zag(2, 4, 0))
    spectrum = point.spectrum
    assert spectrum.complete and spectrum.size == 13
    assert spectrum.num_zero == point.zeros.total == 8
    # The bound on rounding that `refine` documents: 100 P ε of the largest.
    largest = np.abs(spectrum.eigenvalues).max()
    assert spectrum.zero_below == pytest.approx(100 * 13 * np.finfo(float).eps * largest)


# ---- what has been taken for a minimum ----------------------------------------------------------


def five_points():
    x = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    return gflow.EmpiricalRisk(x, np.array([0.0, -1.0, 1.0, 1.0, 2.0]))


def test_a_concave_kink_that_is_touched():
    # A line fits the two active rows; the row at the kink is below its target.
    risk, b = five_points(), lambda b: gflow.ShallowNet.from_arrays([[1.0]], [b], [1.0], 0.0)
    assert risk(b(1e-3)) < risk(b(0.0))
    point = gflow.refine(risk, b(0.0))
    assert point.kind is gflow.CriticalKind.SADDLE and not point.strictly_complementary
    # The row 0, on the inactive side.
    assert point.weakly_active == (ActiveKink(unit=0, datum=2, weight=0.0),)
    assert risk(moved(point.net, point.descent_directions[0], 1e-3)) < point.risk


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_units_at_zero_of_all_activations(activation):
    x = np.linspace(-1, 1, 7)
    y = np.sin(3 * x) + x**2
    zero = np.zeros(2)
    net = gflow.ShallowNet.from_arrays(zero[:, None], zero, zero, y.mean(), activation=activation)
    assert gflow.refine(gflow.EmpiricalRisk(x[:, None], y), net).kind is gflow.CriticalKind.SADDLE


def test_saddles_at_the_origin():
    find = lambda f: gflow.refine(lambda net: f(*net["x"]), {"x": jnp.zeros(3)})
    # A deep linear network; and a fall of fifth order.
    assert find(lambda x, y, z: (x * y * z - 1) ** 2).kind is gflow.CriticalKind.SADDLE
    assert find(lambda x, y, z: 1 + x**2 * y - y**5 + z**4).kind is gflow.CriticalKind.SADDLE
    # A fall of higher order than can be seen is not called a minimum.
    assert not find(lambda x, y, z: 1 - (x * y * z) ** 4).is_minimum


@pytest.mark.slow
def test_deep_networks_at_zero_are_no_minima():
    x = np.linspace(-1, 1, 7)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(3 * x))
    net = eqx.nn.MLP(1, "scalar", 3, 4, activation=jnp.tanh, key=jax.random.key(0))
    zero = jax.tree.map(lambda a: 0 * a if eqx.is_inexact_array(a) else a, net)
    mean = eqx.tree_at(lambda n: n.layers[-1].bias, zero, jnp.full(1, np.sin(3 * x).mean() + 0.5))
    assert not gflow.refine(risk, mean, radius=2.0).is_minimum


def test_risks_below_the_optimum():
    find = lambda f, *x: gflow.refine(lambda net: f(*net["x"]), {"x": jnp.array(x)}, radius=1.0)
    assert find(lambda x, y: x**2 - y**2, 0.0, 0.0).kind is gflow.CriticalKind.SADDLE
    assert find(lambda x, y: x**2 + y**2 - 1, 0.1, 0.1).kind is gflow.CriticalKind.LOCAL_MINIMUM


@pytest.mark.slow
def test_what_was_passed_in_by_mistake(affine):
    net = zig_zag(2, 4, 0)
    flow = gflow.solve_flow(affine, net, t1=0.1)
    with pytest.raises(gflow.ArgumentError, match="final"):
        gflow.refine(affine, flow)
    with pytest.raises(gflow.ArgumentError, match="to a scalar"):
        gflow.refine(lambda net: net["x"], {"x": jnp.zeros(2)})
    with pytest.raises(gflow.NotFoundError, match="larger `radius`"):
        gflow.refine(lambda net: jnp.sum((net["x"] - 1) ** 2) + 1, {"x": jnp.array([0.8])})


# ---- what runs to infinity ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("risk", "x"),
    [
        (lambda x: jax.nn.softplus(-x), 30.0),
        (lambda x: jax.nn.softplus(-x), 200.0),
        (lambda x: 1 + 1 / x, 1e6),
        (lambda x: 1 / jnp.log(x), 1e9),
    ],
)
def test_nothing_is_critical_where_the_risk_falls_to_infinity(risk, x):
    of_both = lambda net: risk(net["x"]) + net["y"] ** 2
    point = gflow.refine(of_both, {"x": jnp.array(x), "y": jnp.array(1e-3)}, throw=False)
    assert not point.found and "infinity" in point.message


@pytest.mark.parametrize("power", [4, 6, 10])
def test_a_degenerate_minimum_is_critical_though_its_slope_is_known(power):
    risk = lambda net: 1 + (net["x"] - 1) ** power + net["y"] ** 2
    point = gflow.refine(risk, {"x": jnp.array(1.05), "y": jnp.array(1e-3)})
    assert point.kind is gflow.CriticalKind.DEGENERATE


def far_from_zero(power, curvature=1.0):
    """1 + c ((x − 1e6)/1e5)^power + y²."""
    return lambda p: 1 + curvature * ((p["x"] - 1e6) / 1e5) ** power + p["y"] ** 2


@pytest.mark.parametrize(
    ("x", "power"), [(1.05e6, 4), (1.001e6, 4), (1.0002e6, 4), (1.01e6, 6), (1.001e6, 6)]
)
def test_flat_minima_are_not_where_the_search_began(x, power):
    # The slope there, 4e-11 for (1.001e6, 4), is below ε ‖Hessian‖ ‖θ‖.
    point = gflow.refine(far_from_zero(power), {"x": jnp.array(x), "y": jnp.array(0.5)})
    assert point.kind is gflow.CriticalKind.DEGENERATE
    # What is left to gain is a rounding of the risk.
    assert abs((float(point.net["x"]) - 1e6) / 1e5) ** power <= 1e-14


@pytest.mark.parametrize("curvature", [1e-3, 1e-5])
def test_minima_of_little_curvature_are_reached(curvature):
    start = {"x": jnp.array(1.001e6), "y": jnp.array(0.5)}
    point = gflow.refine(far_from_zero(2, curvature), start)
    assert float(point.net["x"]) == pytest.approx(1e6, rel=1e-9) and point.risk == 1.0


def test_a_quartic_minimum_is_still_degenerate():
    risk = lambda p: p["x"] ** 4 + p["y"] ** 2
    point = gflow.refine(risk, {"x": jnp.array(1.0), "y": jnp.array(0.0)}, radius=2.0)
    assert abs(float(point.net["x"])) < 1e-5 and point.residual < 1e-14 and not point.isolated


@pytest.mark.parametrize("size", [1e-17, 1e-12])
def test_starts_within_rounding_of_the_origin(size):
    risk = lambda net: 1 + net["x"] ** 2 + net["y"] ** 2
    point = gflow.refine(risk, {"x": jnp.array(size), "y": jnp.array(-size)})
    assert point.kind is gflow.CriticalKind.LOCAL_MINIMUM


@pytest.mark.slow
def test_the_flow_slides_along_kinks_of_rows_that_are_fitted_exactly():
    # Across them ∂L/∂z has no jump at the limit; the Hessian of one side has the rate 0.102.
    rng = np.random.default_rng(9973003)
    risk = gflow.EmpiricalRisk(rng.normal(size=(12, 2)), rng.normal(size=12))
    net = gflow.ShallowNet(2, 6, key=jax.random.key(9973003))
    flow = gflow.solve_flow(risk, net, t1=1e5, ts=np.geomspace(1e-3, 1e5, 800))
    point = gflow.refine(risk, flow.final, approach=flow)
    # Whether roundings look like a jump does not matter.
    along = len(point.active_kinks) + point.modes.num_kinks_along
    assert along == len(flow.kinks.sliding_at(400.0)) == 3
    rate = gflow.fit_rate(flow, flow.risk - point.risk)
    assert point.rate == pytest.approx(rate.tail_value, rel=2e-3)


def test_the_rate_is_that_along_the_kinks_on_which_the_flow_slides():
    x = np.linspace(-1, 1, 12)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(3 * x))
    flow = gflow.solve_flow(risk, gflow.ShallowNet(1, 4, key=jax.random.key(5)), t1=300.0)
    point = gflow.refine(risk, flow.final)
    assert len(flow.kinks.sliding_at(300.0)) == point.modes.num_kinks_along == 2
    # The Hessian along both kinks, by autodiff; on one side of them it is 11 % off.
    rate = gflow.fit_rate(flow.ts, flow.risk - point.risk)
    assert point.rate == pytest.approx(rate.value, rel=5e-3)


def test_the_error_of_a_solver_at_rest_is_no_way_to_the_point():
    # The start is 1e-6 off in the direction of the fast mode, as a stiff solver leaves it.
    risk = lambda p: 0.5 * (0.1 * p["x"] ** 2 + 40 * p["y"] ** 2) + (p["z"] - 3) ** 2
    ts = np.geomspace(1, 1e3, 60)
    states = {"x": np.exp(-0.1 * ts), "y": np.full(60, 1e-6), "z": np.full(60, 3.0)}
    start = {name: jnp.asarray(values[0]) for name, values in states.items()}
    flow = gflow.solve_flow(risk, start, t1=1e3, ts=ts)
    flow = eqx.tree_at(lambda f: f.params, flow, jax.tree.map(jnp.asarray, states))
    alone = gflow.refine(risk, flow.final)
    along = gflow.refine(risk, flow.final, approach=flow)
    assert alone.rate == pytest.approx(80) and along.rate == pytest.approx(0.2)
    # A part that was at rest all the time does not say.
    assert gflow.refine(risk, flow.final, approach=flow[-8:]).modes.at_point


# ---- more parameters than a dense Hessian can have ----------------------------------------------


@pytest.mark.slow
def test_kinds_without_a_dense_hessian():
    curvature = jnp.linspace(1.0, 3.0, 4001)
    start = 1 + 1e-3 * np.random.default_rng(0).normal(size=4001)
    find = lambda c, f: gflow.refine(
        lambda net: 1 + jnp.sum(c * (net["x"] - 1) ** 2) + f(net["x"][0]),
        {"x": jnp.asarray(start)},
        throw=False,
    )
    least = find(curvature, lambda x: 0.1 * (x - 1) ** 4)
    assert least.kind is gflow.CriticalKind.LOCAL_MINIMUM and least.residual < 1e-12
    assert not least.spectrum.complete and least.spectrum.sharpness == pytest.approx(6.0)
    bent = find(curvature.at[7].set(-1.0), lambda x: 0.0)
    assert bent.kind is gflow.CriticalKind.SADDLE
    assert abs(float(bent.descent_directions[0]["x"][7])) == pytest.approx(1.0)
    # With no curvature of its own the first parameter goes to infinity.
    assert not find(curvature.at[0].set(0.0), lambda x: jax.nn.softplus(-20 * x)).found
