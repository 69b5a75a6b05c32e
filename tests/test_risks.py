from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

import gflow
from gflow.risks.base import check_risk
from gflow.risks.empirical import cross_entropy_loss

KEY = jax.random.key(1)
X, Y = np.linspace(-1, 1, 12).reshape(6, 2), np.array([1.0, -1, 1, 1, -1, 1])
NET = gflow.ShallowNet(2, 5, key=KEY, init="standard_normal")


def outputs(net: Callable = NET) -> np.ndarray:
    return np.array([net(jnp.asarray(row)) for row in X])


def test_squared_loss_is_the_mean_of_squares_without_half():
    np.testing.assert_allclose(
        gflow.EmpiricalRisk(X, Y)(NET), np.mean((outputs() - Y) ** 2), rtol=1e-14
    )


def test_vector_output_sums_over_outputs():
    net = gflow.ShallowNet(2, 5, 3, key=KEY)
    y = np.arange(18.0).reshape(6, 3)
    expected = np.mean(np.sum((outputs(net) - y) ** 2, axis=1))
    np.testing.assert_allclose(gflow.EmpiricalRisk(X, y)(net), expected, rtol=1e-14)


def test_logistic_loss_and_a_loss_of_ones_own():
    logistic = np.mean(np.log1p(np.exp(-Y * outputs())))
    np.testing.assert_allclose(
        gflow.EmpiricalRisk(X, Y, loss="logistic")(NET), logistic, rtol=1e-14
    )
    absolute = gflow.EmpiricalRisk(X, Y, loss=lambda p, t: jnp.abs(p - t))
    np.testing.assert_allclose(absolute(NET), np.mean(np.abs(outputs() - Y)), rtol=1e-14)


def test_cross_entropy():
    net = gflow.ShallowNet(2, 5, 3, key=KEY)
    labels = np.array([0, 1, 2, 0, 1, 2])
    theirs = gflow.EmpiricalRisk(X, labels, loss=optax.softmax_cross_entropy_with_integer_labels)
    ours = gflow.EmpiricalRisk(X, labels, loss="cross-entropy")
    for of_risk in (lambda risk: risk, eqx.filter_grad):
        expected = jax.tree.leaves(of_risk(theirs)(net))
        for one, other in zip(jax.tree.leaves(of_risk(ours)(net)), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)
    for margin in (40.0, 700.0):
        # log(1 + 2 exp(−margin)), without its rounding beside 1.
        small = cross_entropy_loss(jnp.array([0.0, margin, 0.0]), jnp.array(1))
        np.testing.assert_allclose(small, 2 * np.exp(-margin), rtol=1e-12)
    curvature = jax.hessian(cross_entropy_loss)(jnp.array([0.0, 1.0, -800.0]), jnp.array(1))
    assert np.isfinite(np.asarray(curvature)).all()


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        ([0, 1, 2, 0, 1, 3], 3, "`net`: got 3 outputs for labels up to 3, wanted at least 4"),
        ([0, 1, 2, 0, 1, 2], "scalar", r"shape \(classes,\) for the cross-entropy"),
        ([-1, 1, 1, 1, -1, 1], 3, "`y`: got labels .* wanted the numbers of classes, from 0"),
        ([0.5, 1, 1, 1, 0, 1], 3, "wanted the numbers of classes"),
        (np.eye(6), 6, r"`y`: got shape \(6, 6\)"),
    ],
)
def test_classes_are_numbered_from_zero(labels, outputs, message):
    with pytest.raises(ValueError, match=message):
        gflow.EmpiricalRisk(X, labels, loss="cross-entropy")(
            gflow.ShallowNet(2, 5, outputs, key=KEY)
        )


def test_whole_number_labels_reach_a_loss_of_ones_own():
    net = gflow.ShallowNet(2, 5, 3, key=KEY)
    labels = np.array([0, 1, 2, 0, 1, 2])
    risk = gflow.EmpiricalRisk(X, labels, loss=optax.softmax_cross_entropy_with_integer_labels)
    logits = outputs(net)
    chosen = logits[np.arange(6), labels] - np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose(risk(net), -chosen.mean(), rtol=1e-13)


@settings(max_examples=20, deadline=None)
@given(arrays(float, 6, elements=st.floats(0, 5)).filter(lambda a: a.sum() > 1e-3))
def test_weights_are_a_mean(weights):
    risk = gflow.EmpiricalRisk(X, Y, weights)
    expected = np.average((outputs() - Y) ** 2, weights=weights)
    np.testing.assert_allclose(risk(NET), expected, rtol=1e-12)


def test_whole_number_weights_are_repeated_rows():
    repeats = np.array([1, 2, 1, 3, 1, 1])
    risk = gflow.EmpiricalRisk(np.repeat(X, repeats, 0), np.repeat(Y, repeats))
    weighted = gflow.EmpiricalRisk(X, Y, repeats)
    np.testing.assert_allclose(weighted(NET), risk(NET), rtol=1e-14)


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 7)])
def test_minibatches_are_unbiased(weights):
    risk = gflow.EmpiricalRisk(X, Y, weights)
    singles = [risk.minibatch(NET, jnp.array([k])) for k in range(6)]
    np.testing.assert_allclose(np.mean(singles), risk(NET), rtol=1e-13)


def test_any_equinox_module_works():
    net = eqx.nn.MLP(2, "scalar", 4, 2, key=KEY)
    expected = np.mean((outputs(net) - Y) ** 2)
    np.testing.assert_allclose(gflow.EmpiricalRisk(X, Y)(net), expected, rtol=1e-13)


NAN = np.where(np.arange(12).reshape(6, 2) == 5, np.nan, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:, 0], Y), r"`x`: got shape \(6,\), wanted shape \(n, in_size\)"),
        ((X, Y[:5]), r"`y`: got shape \(5,\), wanted \(6,\)"),
        ((X[:0], Y[:0]), "at least one row"),
        ((NAN, Y), r"`x`: got nan at \[2, 1\], wanted finite"),
        ((X, np.array([1, 2, np.inf, 4, 5, 6])), r"`y`: got inf at \[2\]"),
        ((X, Y, np.ones(5)), r"`weights`: got shape \(5,\)"),
        ((X, Y, -np.ones(6)), "no negative weight"),
        ((X, Y, np.zeros(6)), "positive sum"),
        ((X, (Y + 1) / 2, None, "logistic"), "labels -1 and 1"),
        (
            (X, Y, None, "hinge"),
            "got 'hinge', wanted 'squared', .* or a function",
        ),
        (("text", Y), "`x`"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_bad_data_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gflow.EmpiricalRisk(*arguments)


def test_a_network_of_other_output_shape_is_refused():
    net = eqx.nn.MLP(2, 1, 4, 1, key=KEY)
    with pytest.raises(ValueError, match=r"output of shape \(1,\).*wanted the shape of one target"):
        gflow.EmpiricalRisk(X, Y)(net)
    vector = gflow.EmpiricalRisk(X, Y, loss=lambda p, t: jnp.stack([p, t]))
    with pytest.raises(ValueError, match="a scalar for each row"):
        vector(NET)


@pytest.mark.parametrize(
    ("target", "out_size", "words"),
    [
        ((5, 1), "scalar", r"output of shape \(\).*target in y, \(1,\); y\[:, 0\] has"),
        ((5,), 1, r"output of shape \(1,\).*target in y, \(\); out_size='scalar' gives"),
        ((5, 2), 3, r"output of shape \(3,\).*target in y, \(2,\)"),
    ],
)
def test_targets_of_another_shape_are_known_by_shapes_alone(target, out_size, words):
    risk = gflow.EmpiricalRisk(np.ones((5, 1)), np.ones(target))
    with pytest.raises(gflow.ArgumentError, match=f"`net`: got {words}"):
        check_risk(risk, gflow.ShallowNet(1, 3, out_size, key=jax.random.key(0)))


@pytest.mark.parametrize(
    ("risk", "words"),
    [
        (lambda p: p, r"values of shape \(3,\), wanted .* one real number, such as a mean"),
        (lambda p: (p[0], p[1]), "returns a tuple, wanted"),
        (lambda p: jnp.sum(p) + 1j, "to type complex128"),
        (lambda p: jnp.argmax(p), "to type int64"),
        (3.0, "got a float, wanted a function"),
    ],
)
def test_a_risk_is_one_real_number(risk, words):
    with pytest.raises(gflow.ArgumentError, match=f"`risk`: .*{words}"):
        check_risk(risk, jnp.ones(3))


def test_risks_of_every_kind_pass_the_check():
    net = gflow.ShallowNet(1, 3, key=jax.random.key(0))
    for risk in (gflow.EmpiricalRisk(np.ones((5, 1)), np.ones(5)), gflow.GaussianRisk(net)):
        check_risk(risk, net)
    check_risk(lambda p: 1.0, jnp.ones(3))
