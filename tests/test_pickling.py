"""Errors and trajectories between processes."""

import concurrent.futures
import copy
import multiprocessing
import pickle
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow

RISK = gflow.EmpiricalRisk(np.linspace(-1, 1, 10)[:, None], np.linspace(-1, 1, 10))


def diverge(activation=jax.nn.relu):
    net = eqx.nn.MLP(1, "scalar", 3, 1, key=jax.random.key(0), activation=activation)
    return gflow.descend(RISK, net, step_size=1e5, num_steps=30)


def lose():
    risk = lambda p: jnp.sum(jnp.exp(-p))
    return gflow.refine(risk, jnp.zeros(2))


def misuse():
    return gflow.EmpiricalRisk(np.ones(3), np.ones(3))


def again(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture
def no_cloudpickle(monkeypatch):
    """As where it is not installed: JAX imports it if it can."""
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)


@pytest.mark.parametrize(
    ("fail", "kind", "attribute"),
    [
        (misuse, gflow.ArgumentError, "name"),
        (diverge, gflow.TrajectoryError, "trajectory"),
        (lose, gflow.NotFoundError, "point"),
    ],
)
def test_errors_keep_type_message_and_attributes(fail, kind, attribute, no_cloudpickle):
    with pytest.raises(kind) as info:
        fail()
    info.value.add_note("a note")
    copied = again(again(info.value))
    assert type(copied) is kind and str(copied) == str(info.value)
    assert repr(getattr(copied, attribute)) == repr(getattr(info.value, attribute))
    assert copied.__notes__ == ["a note"]


def test_trajectories_with_functions_of_jax_are_pickled(no_cloudpickle):
    with pytest.raises(gflow.TrajectoryError) as info:
        diverge()
    trajectory, copied = info.value.trajectory, again(info.value.trajectory)
    assert jax.tree.structure(copied) == jax.tree.structure(trajectory)
    leaves = zip(jax.tree.leaves(copied), jax.tree.leaves(trajectory))
    assert all(a is b if callable(b) else np.array_equal(a, b) for a, b in leaves)
    assert copied.result_name == "diverged"


def test_an_error_arrives_without_the_trajectory_that_cannot_be_pickled(no_cloudpickle):
    with pytest.raises(gflow.TrajectoryError) as info:
        diverge(lambda x: x)
    with pytest.raises(pickle.PicklingError, match="define it by `def` at the top of a module"):
        pickle.dumps(info.value.trajectory)
    copied = again(info.value)
    assert str(copied).startswith(str(info.value))
    assert "`error.trajectory` was left behind" in str(copied) and "<lambda>" in str(copied)
    with pytest.raises(AttributeError, match="was left behind"):
        _ = copied.trajectory
    assert not hasattr(copied, "other")


def test_cloudpickle_is_used_where_it_is_there():
    pytest.importorskip("cloudpickle")
    with pytest.raises(gflow.TrajectoryError) as info:
        diverge(lambda x: x)
    assert again(info.value).trajectory.final(jnp.ones(1)).shape == ()


def test_copies_are_equal_and_need_no_pickle(no_cloudpickle):
    with pytest.raises(gflow.TrajectoryError) as info:
        diverge(lambda x: x)
    trajectory = info.value.trajectory
    for copied in (copy.copy(trajectory), copy.deepcopy(trajectory)):
        assert repr(copied) == repr(trajectory) and copied is not trajectory


@pytest.mark.slow
def test_errors_pass_through_a_pool_of_processes():
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        runs = [pool.submit(run) for run in (misuse, diverge)]
        with pytest.raises(gflow.ArgumentError, match="`x`"):
            runs[0].result()
        with pytest.raises(gflow.TrajectoryError) as info:
            runs[1].result()
        assert len(info.value.trajectory) > 1
