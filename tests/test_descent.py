import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gflow

KEY = jax.random.key(0)


def quadratic(net):
    """½ Σ λ_i θ_i² for λ = 1, 4."""
    return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * net["theta"] ** 2)


START = {"theta": jnp.array([1.0, -2.0])}


def python_loop(risk, net, optimiser, steps) -> Any:
    state: Any = optimiser.init(net)
    step = jax.jit(lambda p, s: optimiser.update(jax.grad(risk)(p), s, p))
    for _ in range(steps):
        updates, state = step(net, state)
        net = optax.apply_updates(net, updates)
    return net


def test_gradient_descent_on_a_quadratic_is_its_closed_form():
    h = 0.1
    gd = gflow.descend(quadratic, START, step_size=h, num_steps=40, record=np.arange(41))
    k = np.arange(41)[:, None]
    exact = np.array([1.0, -2.0]) * (1 - h * np.array([1.0, 4.0])) ** k
    np.testing.assert_allclose(gd.params["theta"], exact, rtol=1e-12)
    np.testing.assert_allclose(gd.ts, h * np.arange(41), rtol=1e-15)
    np.testing.assert_allclose(gd.risk, 0.5 * np.sum([1, 4] * exact**2, axis=1), rtol=1e-12)
    np.testing.assert_allclose(gd.grad_norm, np.linalg.norm([1, 4] * exact, axis=1), rtol=1e-12)
    assert gd.kind == "descent" and gd.stats["num_steps"] == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimiser",
    [
        optax.adam,
        optax.sgd(0.05, momentum=0.9),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05)),
        optax.lbfgs(),
    ],
    ids=["adam", "momentum", "clipping", "lbfgs"],
)
def test_any_optax_transformation_gives_its_python_loop(optimiser, wave):
    net = gflow.ShallowNet(1, 4, key=KEY)
    run = gflow.descend(wave, net, optimiser, step_size=0.05, num_steps=30, record=[0, 7, 30])
    made = optimiser(0.05) if callable(optimiser) else optimiser
    given: Any = optax.with_extra_args_support(made)
    state: Any = given.init(net)
    params: Any = net
    value_and_grad = jax.jit(jax.value_and_grad(wave))
    for _ in range(30):
        value, gradient = value_and_grad(params)
        extra = {"value": value, "grad": gradient, "value_fn": wave}
        updates, state = given.update(gradient, state, params, **extra)
        params = optax.apply_updates(params, updates)
    for got, expected in zip(jax.tree.leaves(run.final), jax.tree.leaves(params)):
        # The compiled loop sums in another order; thirty steps keep the difference to rounding.
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


def test_the_compiled_loop_is_the_python_loop_to_rounding(wave):
    net = gflow.ShallowNet(1, 4, key=KEY)
    gd = gflow.descend(wave, net, step_size=0.05, num_steps=100)
    expected = python_loop(wave, net, optax.sgd(0.05), 100)
    np.testing.assert_allclose(gd.final.w, expected.w, rtol=1e-12)


def test_recorded_steps():
    gd = gflow.descend(quadratic, START, step_size=0.1, num_steps=1000, record=20)
    steps = np.round(np.asarray(gd.ts) / 0.1).astype(int)
    assert steps[0] == 0 and steps[-1] == 1000 and len(steps) <= 20
    assert (np.diff(steps) > 0).all() and (np.diff(np.diff(steps)) >= 0).all()
    ends = gflow.descend(quadratic, START, step_size=0.1, num_steps=1000, record=2)
    np.testing.assert_allclose(ends.ts, [0, 100])
    short = gflow.descend(quadratic, START, step_size=0.1, num_steps=3)
    np.testing.assert_allclose(short.ts, [0, 0.1, 0.2, 0.3])


def test_the_last_step_is_always_recorded():
    run = gflow.descend(quadratic, START, step_size=0.1, num_steps=50, record=[0, 10])
    np.testing.assert_allclose(run.ts, [0, 1, 5])


def test_memory_is_that_of_the_records():
    from gflow import descent
    from gflow.parameters import UNSCALED, split_trainable

    trained, frozen = split_trainable(START)
    problem = descent.DescentProblem(
        quadratic, trained, frozen, optax.sgd, jnp.array(0.1), None, None, UNSCALED
    )
    lowered = jax.jit(lambda marks: descent.run(problem, problem.start(), marks)).lower(
        jnp.array([0, 10, 10**9])
    )
    # Three records of two parameters; kept steps would take gigabytes.
    sizes: Any = lowered.compile().memory_analysis()
    assert sizes.temp_size_in_bytes + sizes.output_size_in_bytes < 10_000


@pytest.mark.slow
def test_minibatches_are_determined_by_their_key(wave):
    net = gflow.ShallowNet(1, 4, key=KEY)
    run = lambda key, **options: gflow.descend(
        wave, net, step_size=0.05, num_steps=50, batch_size=5, key=key, **options
    )
    one, same, other = run(KEY), run(KEY, progress=True), run(jax.random.key(7))
    assert (one.params.w == same.params.w).all()
    assert not jnp.allclose(one.final.w, other.final.w)
    # The recorded risk is that of all rows.
    np.testing.assert_allclose(one.risk[-1], wave(one.final), rtol=1e-14)


def test_full_minibatch_mean_is_the_gradient(wave):
    # One step on each row: the mean of the updates is the full gradient step.
    net = gflow.ShallowNet(1, 4, key=KEY)
    full = gflow.descend(wave, net, step_size=0.1, num_steps=1)
    rows = jnp.arange(wave.num_data)
    ends = jax.vmap(lambda k: jax.grad(lambda n: wave.minibatch(n, k[None]))(net).w)(rows)
    np.testing.assert_allclose(net.w - 0.1 * ends.mean(axis=0), full.final.w, rtol=1e-12)


@pytest.mark.parametrize("progress", [False, True])
def test_divergence_is_reported_and_keeps_the_finite_part(progress):
    options = {"step_size": 1.0, "num_steps": 5000, "progress": progress}
    run = gflow.descend(quadratic, START, **options, throw=False)
    assert run.result_name == "diverged" and not run.succeeded
    # |1 - h λ| = 3: the state overflows after log 1e308 / log 3 = 646 steps or so.
    assert 300 < run.ts[-1] < 700 and jnp.isfinite(run.params["theta"]).all()
    with pytest.raises(gflow.TrajectoryError, match="diverged: .* less than 2/sharpness"):
        gflow.descend(quadratic, START, **options)


def test_growth_that_is_still_finite_is_warned_of():
    with pytest.warns(UserWarning, match="the risk grew from .* smaller step_size"):
        run = gflow.descend(quadratic, START, step_size=1.0, num_steps=50)
    assert run.risk[-1] > 1e3 * run.risk[0]


def test_one_compilation_serves_all_step_sizes(wave):
    net = gflow.ShallowNet(1, 3, key=KEY)
    calls = []

    def counting(net):
        calls.append(1)
        return wave(net)

    gflow.descend(counting, net, step_size=0.1, num_steps=64, record=10)
    traced = len(calls)
    for h in (0.05, 0.025):
        gflow.descend(counting, net, step_size=h, num_steps=64, record=10)
    # Each call looks at the shape of the risk, and no more.
    assert len(calls) == traced + 2


@pytest.mark.parametrize(
    "optimiser_for",
    [
        lambda h: optax.sgd,
        lambda h: functools.partial(optax.sgd, momentum=0.5),
        lambda h: functools.partial(optax.sgd, momentum=jnp.array(h)),
    ],
)
def test_other_numbers_compile_nothing(optimiser_for, wave, compilations):
    net = gflow.ShallowNet(1, 3, key=KEY)
    run = lambda h, **options: gflow.descend(
        wave, net, optimiser_for(h), step_size=h, num_steps=round(30 / h), **options
    )
    assert 64 < len(run(0.1)) < 200
    with compilations() as names:
        runs = {h: run(h) for h in (0.099, 0.05, 0.02)}
        run(0.1, record=150)
        run(0.1, record=np.arange(0, 300, 3))
    assert names == []
    for h, each in runs.items():
        np.testing.assert_allclose(each.ts[-1], h * round(30 / h), rtol=1e-15)
        assert (jnp.diff(each.ts) > 0).all() and (each.risk > 0).all()
        np.testing.assert_allclose(each.risk[-1], wave(each.final), rtol=1e-14)


def test_large_records_get_few_empty_slots():
    from gflow.descent import _with_slots

    marks = np.arange(200)
    assert _with_slots(marks, 200, 10).marks.shape == (256,)
    assert _with_slots(marks, 200, 10**6).marks.shape == (208,)
    assert (_with_slots(marks, 201, 10**6).marks[200:] == 199).all()


def test_vmap_over_step_sizes():
    sizes = jnp.array([0.1, 0.2])
    many = jax.vmap(
        lambda h: gflow.descend(quadratic, START, step_size=h, num_steps=20, throw=False).risk
    )(sizes)
    for risk, h in zip(many, (0.1, 0.2)):
        single = gflow.descend(quadratic, START, step_size=h, num_steps=20)
        np.testing.assert_allclose(risk, single.risk, rtol=1e-12)


def test_trainable_and_throw_under_jit(wave):
    net = gflow.ShallowNet(1, 4, key=KEY)
    run = jax.jit(
        lambda h: gflow.descend(wave, net, step_size=h, num_steps=10, trainable=("v",)).params.w
    )
    assert (run(0.1)[-1] == net.w).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "`step_size`: got 0.0, wanted a finite positive number"),
        ({"step_size": float("nan")}, "`step_size`"),
        ({"num_steps": 0}, "`num_steps`: got 0, wanted a whole number of at least 1"),
        ({"record": 1}, "`record`"),
        ({"record": [0, 99]}, "`record`: got indices 0 to 99, wanted .* from 0 to 10"),
        ({"record": [3, 2]}, "`record`"),
        ({"batch_size": 0, "key": KEY}, "`batch_size`"),
        ({"batch_size": 4}, "`key`"),
    ],
)
def test_bad_arguments_are_named(arguments, message, wave, smooth_net):
    with pytest.raises(ValueError, match=message):
        gflow.descend(wave, smooth_net, **({"step_size": 0.1, "num_steps": 10} | arguments))


def test_minibatches_need_a_risk_with_rows(smooth_net):
    with pytest.raises(ValueError, match="`batch_size`: got 4, wanted None for a function"):
        gflow.descend(quadratic, START, step_size=0.1, num_steps=2, batch_size=4, key=KEY)
