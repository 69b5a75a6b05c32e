"""Flows in another time, dθ/ds = −σ(L, ‖∇L‖) ∇L."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.interpolate import CubicHermiteSpline

import gflow
from gflow.flow.time_changed import TimeChanged
from gflow.flow.time_changed_kinks import TimeChangedPatternRisk
from gflow.nonsmooth.recognition import pattern_risk_of
from gflow.parameters import UNSCALED, split_trainable
from tests.helpers.deep_networks import deep_reference, logged
from tests.helpers.kink_problems import small_problem
from tests.helpers.networks_as_vectors import flat

START = jnp.array([1.2, -1.6])
RADIUS = 2.0
DEEP_END = 1.0
CLIPPED = TimeChanged.clipped(0.5)
LOG_RISK = TimeChanged.log_risk()


def quadratic(theta):
    """½‖θ‖²: its flow goes straight to 0, and ‖θ‖ = RADIUS e^−t."""
    return 0.5 * jnp.sum(theta**2)


def slowed(risk, grad_norm):
    return 1 / (1 + grad_norm**2)


def clipped_radius(s):
    """At speed ½ until ‖θ‖ = ½, at s = 3, and then like e^−s."""
    return np.where(s < 3, RADIUS - s / 2, 0.5 * np.exp(3 - s))


def slowed_radius(s):
    """log r + r²/2 falls like s."""
    start = np.log(RADIUS) + RADIUS**2 / 2
    root = lambda s: scipy.optimize.brentq(
        lambda r: np.log(r) + r**2 / 2 - start + s, 1e-9, 3.0, xtol=1e-14
    )
    return np.array([root(s) for s in s])


@pytest.mark.parametrize(
    ("model", "t1", "radius"),
    [
        (CLIPPED, 4.0, clipped_radius),
        (TimeChanged.clipped(0.5, floor=1.0), 3.0, lambda s: RADIUS * np.exp(-s)),
        (TimeChanged.normalised(), 1.9, lambda s: RADIUS - s),
        (LOG_RISK, 0.99, lambda s: np.sqrt(RADIUS**2 - 4 * s)),
        (TimeChanged(slowed), 3.0, slowed_radius),
    ],
)
def test_quadratic_risks_in_closed_form(model, t1, radius):
    ts = np.linspace(0.0, t1, 20)
    flow = gflow.solve_flow(quadratic, START, t1=t1, ts=ts, model=model)
    exact = radius(ts)
    # Where the speed is not smooth, or large, errors of the steps are amplified.
    np.testing.assert_allclose(jnp.linalg.norm(flow.params, axis=1), exact, rtol=1e-6)
    np.testing.assert_allclose(flow.observed["flow_time"], np.log(RADIUS / exact), atol=1e-6)
    np.testing.assert_allclose(flow.grad_norm, exact, rtol=1e-6)
    assert np.abs(flow.diagnostics.energy).max() < 3e-7
    assert flow.method.startswith("time-changed")


@pytest.mark.slow
def test_a_speed_of_1_is_gradient_flow():
    options = {"t0": 1.0, "t1": 3.0}
    plain = gflow.solve_flow(quadratic, START, **options)
    same = gflow.solve_flow(quadratic, START, model=TimeChanged(lambda risk, norm: 1.0), **options)
    np.testing.assert_allclose(same.observed["flow_time"], plain.ts, rtol=1e-8)
    np.testing.assert_allclose(same.params, plain.params, atol=1e-8)


@pytest.mark.slow
def test_time_scales_a_penalty_and_what_is_trained_go_with_it():
    """Two flows of one orbit, and the balance of weight decay, which is a matter of flow time."""
    data, net = small_problem()
    risk = gflow.PenalisedRisk(data, weight_decay=0.05)
    flow = gflow.solve_flow(risk, net, t1=0.3, model=LOG_RISK)
    assert np.abs(flow.diagnostics.balance).max() < 1e-7
    options = {"time_scales": {"v": 0.5}, "trainable": ("w", "v")}
    flow = gflow.solve_flow(risk, net, t1=0.3, model=LOG_RISK, **options)
    end = float(flow.observed["flow_time"][-1])
    plain = gflow.solve_flow(risk, net, t1=end, kinks="all", **options)
    np.testing.assert_allclose(flat(flow.final), flat(plain.final), atol=1e-7)
    assert np.abs(flow.diagnostics.energy).max() < 1e-7


@pytest.fixture(scope="module")
def plain():
    """Its last two slides end at one time, at t = 18.6."""
    data, net = small_problem()
    return gflow.solve_flow(data, net, t1=18.0, rtol=1e-10, dense=True)


@pytest.mark.slow
@pytest.mark.parametrize("model", [LOG_RISK, TimeChanged.clipped(1.0), TimeChanged.normalised()])
def test_the_orbit_its_kinks_and_its_time_are_those_of_gradient_flow(plain, model):
    """One hidden layer, crossings and two slides."""
    data, net = small_problem()
    flow = gflow.solve_flow(data, net, t1=1.8, model=model)
    times = flow.observed["flow_time"]
    same = plain(times)
    for name in "wbvc":
        # The accuracy of the time-changed flow is rtol = 1e-8, over some 200 steps.
        np.testing.assert_allclose(
            getattr(flow.params, name), getattr(same, name), atol=1e-7, err_msg=name
        )
    met = len(flow.kinks)
    assert met > 2
    for name in ("unit", "datum", "kind"):
        np.testing.assert_array_equal(getattr(flow.kinks, name), getattr(plain.kinks, name)[:met])
    assert np.abs(flow.diagnostics.energy).max() < 1e-7
    assert np.abs(flow.diagnostics.balance).max() < 1e-7


@pytest.mark.slow
def test_deep_kinks_and_slides_are_those_of_an_independent_integrator():
    """Two hidden layers; the flow time at each kink, by cubics through t and dt/ds = 1/L."""
    known = deep_reference("deep_2-6-5-1_n20")
    ts = np.linspace(0, DEEP_END, 400)
    flow = gflow.solve_flow(known.risk, known.own_network(), t1=DEEP_END, ts=ts, model=LOG_RISK)
    met = logged(flow)
    flow_time = CubicHermiteSpline(ts, flow.observed["flow_time"], 1 / flow.risk)
    times = flow_time([kink.time for kink in met])
    assert len(met) > 50 and len({kink.kind for kink in met}) > 3
    for one, other, time in zip(met, known.kinks, times):
        assert one.kind.startswith(other.kind) and one[2:] == other[2:]
        assert abs(time - other.time) < 1e-6
    assert np.abs(flow.diagnostics.energy).max() < 1e-7


@pytest.mark.parametrize("deep", [False, True])
def test_the_jacobian_of_the_field_is_its_derivative(deep):
    data, net = small_problem()
    if deep:
        net = eqx.nn.MLP(1, "scalar", 3, 2, key=jax.random.key(1))
    trained, frozen = split_trainable(net)
    risk = pattern_risk_of(data, trained, frozen, UNSCALED)
    assert risk is not None
    changed = TimeChangedPatternRisk.of(risk, TimeChanged(lambda risk, norm: 1 / (risk + norm**3)))
    y = jnp.append(flat(trained), jnp.array([0.3, 0.1]))
    pattern = changed.start(y[:-1])
    field = lambda y: changed.field(0.0, y, pattern)
    both = lambda y: (changed.jacobian(0.0, y, pattern), jax.jacfwd(field)(y))
    found, exact = jax.jit(both)(y)
    np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [gflow.BDF5(), gflow.Rodas5P(), gflow.ROCK4()])
def test_every_solver_follows_it(plain, solver):
    data, net = small_problem()
    flow = gflow.solve_flow(data, net, t1=1.5, model=LOG_RISK, solver=solver)
    same = plain(flow.observed["flow_time"][-1])
    np.testing.assert_allclose(flat(flow.final), flat(same), atol=3e-7)


@pytest.mark.slow
def test_the_order_of_the_solver_is_kept_through_kinks(plain):
    """Half the step, 2⁻⁵ of the error, in θ and in the flow time."""
    data, net = small_problem()
    errors = []
    for step_size in (0.02, 0.01):
        flow = gflow.solve_flow(data, net, t1=0.8, ts=[0.8], model=LOG_RISK, step_size=step_size)
        same = plain(flow.observed["flow_time"][-1])
        errors.append(np.abs(flat(flow.final) - flat(same)).max())
    assert 4 < np.log2(errors[0] / errors[1]) < 6.5


def test_a_normalised_flow_ends_at_critical_points():
    """It reaches 0 at s = RADIUS, and says so; what there is of it is kept."""
    with pytest.raises(gflow.TrajectoryError, match="changed time ended") as error:
        gflow.solve_flow(quadratic, START, t1=3.0, model=TimeChanged.normalised())
    flow = error.value.trajectory
    assert abs(flow.ts[-1] - RADIUS) < 1e-6
    assert flow.stats["num_steps"] < 1000
    # A tolerance of 1e-10 is left of it.
    assert flow.grad_norm[-1] < 1e-7


@pytest.mark.slow
def test_a_flow_of_the_log_risk_ends_at_minima_of_0():
    """‖θ‖² = RADIUS² − 4s."""
    flow = gflow.solve_flow(quadratic, START, t1=3.0, model=LOG_RISK, throw=False)
    assert flow.result_name == "changed_time_ended"
    assert abs(flow.ts[-1] - RADIUS**2 / 4) < 1e-6


@pytest.mark.parametrize("model", [CLIPPED, LOG_RISK])
def test_speeds_that_fall_with_the_gradient_come_to_rest(model):
    """The log risk at a minimum above 0, and a clipped flow: gradient flow at a constant rate."""
    flow = gflow.solve_flow(lambda p: 1.0 + quadratic(p), START, t1=60.0, model=model)
    assert flow.ts[-1] == 60.0
    assert flow.grad_norm[-1] < 1e-7


def test_at_a_critical_point_a_normalised_flow_has_no_direction():
    flow = gflow.solve_flow(
        quadratic, jnp.zeros(2), t1=1.0, model=TimeChanged.normalised(), throw=False
    )
    assert flow.result_name == "changed_time_ended"
    assert np.all(np.asarray(flow.params) == 0)


@pytest.mark.slow
def test_stops_are_those_of_gradient_flow():
    """Criteria are met at the same points of the orbit."""
    stop = gflow.Stop(progress=1e-3)
    risk = lambda p: 1.0 + quadratic(p)
    plain = gflow.solve_flow(risk, START, t1=1e3, stop=stop)
    flow = gflow.solve_flow(risk, START, t1=1e3, stop=stop, model=TimeChanged(slowed))
    assert flow.result_name == plain.result_name == "reached_progress"
    # Up to the length of one step.
    np.testing.assert_allclose(flow.observed["flow_time"][-1], plain.ts[-1], rtol=0.2)


def test_dense_output_and_a_store_hold_a_time_changed_flow(tmp_path):
    flow = gflow.solve_flow(quadratic, START, t1=3.0, model=CLIPPED, dense=True)
    np.testing.assert_allclose(jnp.linalg.norm(flow(1.234)), clipped_radius(1.234), rtol=1e-7)
    with pytest.warns(UserWarning, match="interpolants"):
        gflow.save_trajectory(flow, tmp_path / "flow")
    loaded = gflow.load_trajectory(tmp_path / "flow", like=START)
    np.testing.assert_array_equal(loaded.observed["flow_time"], flow.observed["flow_time"])
    assert loaded.method == flow.method
    assert flow.to_xarray()["time"].attrs["long_name"] == "changed time"


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_the_same_model(tmp_path):
    options = {"t1": 3.0, "checkpoint": tmp_path}
    cut = gflow.solve_flow(quadratic, START, model=CLIPPED, max_steps=4, throw=False, **options)
    assert cut.result_name == "max_steps_reached"
    flow = gflow.solve_flow(quadratic, START, model=CLIPPED, **options)
    np.testing.assert_allclose(flow.observed["flow_time"][-1], np.log(4.0), rtol=1e-6)
    with pytest.raises(gflow.ArgumentError, match="another flow"):
        gflow.solve_flow(quadratic, START, model=TimeChanged.clipped(0.6), **options)


@pytest.mark.slow
def test_thresholds_in_a_batch():
    flow = lambda c: gflow.solve_flow(quadratic, START, t1=2.0, model=TimeChanged.clipped(c))
    batch = jax.vmap(flow)(jnp.array([0.5, 1.0]))
    for member, threshold in zip(batch.members, (0.5, 1.0)):
        length = np.linalg.norm(np.asarray(member.final))
        # At ‖θ‖ = c the speed has a kink.
        exact = {0.5: 1.0, 1.0: np.exp(-1.0)}[threshold]
        np.testing.assert_allclose(length, exact, rtol=1e-6)


def test_another_threshold_compiles_nothing(compilations):
    gflow.solve_flow(quadratic, START, t1=2.0, model=TimeChanged.clipped(0.7))
    with compilations() as names:
        gflow.solve_flow(quadratic, START, t1=2.0, model=TimeChanged.clipped(0.8, floor=0.1))
    assert names == []


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (1.0, "a function of risk"),
        (lambda risk: risk, "cannot be traced"),
        (lambda risk, norm: float(risk), "cannot be traced"),
        (lambda risk, norm: jnp.ones(2), r"shape \(2,\)"),
        (lambda risk, norm: (risk, norm), "values"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_what_is_no_speed(speed, words):
    with pytest.raises(gflow.ArgumentError, match=words) as error:
        TimeChanged(speed)
    assert "model.speed" in str(error.value)


@pytest.mark.usefixtures("unchecked_annotations")
def test_what_is_no_model():
    with pytest.raises(gflow.ArgumentError, match="`model`: .*TimeChanged"):
        gflow.solve_flow(quadratic, START, t1=1.0, model=slowed)
    with pytest.raises(gflow.ArgumentError, match=r"`model`: .*a speed of -2"):
        gflow.solve_flow(quadratic, START, t1=1.0, model=TimeChanged(lambda risk, norm: -norm))
    with pytest.raises(gflow.ArgumentError, match="observe"):
        observe = {"flow_time": quadratic}
        gflow.solve_flow(quadratic, START, t1=1.0, model=CLIPPED, observe=observe)
    with pytest.raises(gflow.ArgumentError, match="threshold"):
        TimeChanged.clipped(0.0)


def test_the_flow_of_the_log_risk_finds_the_direction_of_the_largest_margin():
    """Separable data: w = ŵ log t + O(1), to t = 1e250; between two times the O(1) is left out."""
    x = np.array([[2.0, 1.0], [1.0, 1.6], [-1.0, -0.2], [-1.5, -2.0], [3.0, 0.5]])
    signs = np.array([1.0, 1.0, -1.0, -1.0, 1.0])
    risk = lambda w: jnp.mean(jnp.log1p(jnp.exp(-signs * (x @ w))))
    flow = gflow.solve_flow(
        risk, jnp.zeros(2), t1=1e4, model=LOG_RISK, stop=gflow.Stop(risk=1e-250), rtol=1e-7
    )
    assert flow.observed["flow_time"][-1] > 1e245
    # min ‖w‖² with margins of at least 1, solved independently.
    margins = {"type": "ineq", "fun": lambda w: signs * (x @ w) - 1}
    best = scipy.optimize.minimize(lambda w: w @ w, [1.0, 1.0], constraints=margins, tol=1e-14).x
    distance = lambda w: np.linalg.norm(w / np.linalg.norm(w) - best / np.linalg.norm(best))
    assert distance(np.asarray(flow.final)) < 3e-3
    middle = int(np.searchsorted(-np.asarray(flow.risk), -1e-125))
    assert distance(np.asarray(flow.final - flow[middle])) < 1e-6
