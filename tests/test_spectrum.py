from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from gflow.hessian import lanczos
from gflow.hessian.lanczos import SymmetricOperator, extremes
from tests.helpers.derivatives import hessian


class Quadratic(eqx.Module):
    """½ ⟨θ, U diag(d) Uᵀ θ⟩ with a Householder reflection U: the eigenvalues are d."""

    d: jax.Array
    u: jax.Array

    def __call__(self, net):
        theta = net["theta"]
        turned = theta - 2 * self.u * (self.u @ theta)
        return 0.5 * jnp.sum(self.d * turned**2)


SIZE = 300


def quadratic(values, *, turned=True, dtype=float):
    u = np.random.default_rng(0).normal(size=len(values))
    u = u / np.linalg.norm(u) if turned else 0 * u
    risk = Quadratic(jnp.asarray(values, dtype), jnp.asarray(u, dtype))
    return risk, {"theta": jnp.ones(len(values), dtype)}


def large(risk, net, **options):
    return gflow.hessian_spectrum(
        risk, net, **({"dense_up_to": 0, "largest": 6, "smallest": 4} | options)
    )


def ends(values, largest=6, smallest=4):
    values = np.sort(values)
    return np.r_[values[:smallest], values[len(values) - largest :]]


def zeros(*values):
    return np.r_[values, np.zeros(SIZE - len(values))]


KNOWN = {
    "rank two": zeros(3.0, -5.0),
    "zero": zeros(),
    "identity": np.ones(SIZE),
    "low rank, repeated": zeros(3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0),
    "two values": np.repeat([-1.0, 1.0], SIZE // 2),
    "evenly spaced": np.linspace(-1.0, 2.0, SIZE),
    # The Krylov space of one start contains one of the three copies, and is not exhausted.
    "hidden copies": np.r_[np.linspace(-1.0, 1.0, SIZE - 3), 3.0, 3.0, 3.0],
    "copies at the lower end": np.r_[np.linspace(-1.0, 1.0, SIZE - 2), -2.0, -2.0],
}


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_known_spectra_without_the_matrix(name, turned):
    values = KNOWN[name]
    spectrum = large(*quadratic(values, turned=turned))
    assert not spectrum.complete and spectrum.checked and spectrum.converged.all()
    # Residuals are below 1e-6 · max|λ|, at most 5e-6, and errors at most residual²/gap where the
    # gap is larger than that: 2.5e-11 over 3/300.
    np.testing.assert_allclose(spectrum.eigenvalues, ends(values), rtol=0, atol=3e-9)
    assert spectrum.sharpness == spectrum.largest[0] == spectrum.eigenvalues[-1]
    v = spectrum.eigenvectors
    np.testing.assert_allclose(v @ v.T, np.eye(10), atol=1e-5)


def test_an_exhausted_krylov_space_gives_no_false_eigenvalues():
    """Two eigenvalues and 0: iterations that continue from rounding errors give ±52 and ±350."""
    risk, net = quadratic(KNOWN["rank two"], turned=False)
    spectrum = large(risk, net, largest=1, smallest=1, probes=5, depth=40)
    np.testing.assert_allclose(spectrum.eigenvalues, [-5.0, 3.0], atol=1e-12)
    assert spectrum.nodes.min() >= -5 - 1e-12 and spectrum.nodes.max() <= 3 + 1e-12
    np.testing.assert_allclose(spectrum.weights.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 12)), min_size=1, max_size=5),
    st.integers(-30, 30),
)
def test_any_multiplicities(blocks, exponent):
    values = np.concatenate([np.full(count, value * 10.0**exponent) for value, count in blocks])
    values = np.r_[values, np.zeros(60 - len(values))]
    spectrum = large(*quadratic(values))
    tol = 1e-6 * np.abs(values).max()
    np.testing.assert_allclose(spectrum.eigenvalues, ends(values), rtol=0, atol=tol)
    assert np.all(spectrum.residuals <= 2 * tol) and spectrum.checked


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 21])
def test_few_parameters_without_the_matrix(size):
    values = np.arange(size) - 1.0
    spectrum = large(*quadratic(values), largest=1, smallest=0)
    np.testing.assert_allclose(spectrum.eigenvalues, [size - 2.0], atol=1e-12)
    assert len(spectrum.smallest) == 0
    lowest = large(*quadratic(values), largest=0, smallest=1)
    np.testing.assert_allclose(lowest.eigenvalues, [-1.0], atol=1e-12)
    assert np.isnan(lowest.sharpness)


@pytest.fixture(scope="module", params=["tanh", "relu"])
def middle(request, wave):
    """301 parameters, with the Hessian that `jax.hessian` gives."""
    net = gflow.ShallowNet(1, 100, key=jax.random.key(3), activation=request.param)
    return wave, net, hessian(wave, net)


@pytest.mark.slow
def test_dense_and_matrix_free_agree_with_autodiff(middle):
    risk, net, matrix = middle
    values = np.linalg.eigvalsh(matrix)
    scale = np.abs(values).max()
    dense = gflow.hessian_spectrum(risk, net)
    assert dense.complete and dense.size == dense.num_products == 301
    # Rounding errors of 301 products.
    np.testing.assert_allclose(dense.eigenvalues, values, rtol=0, atol=1e-13 * scale)
    free = large(risk, net, max_products=400)
    # The smallest lie in a cluster; an eigenvalue is within its residual.
    off = np.abs(free.eigenvalues - ends(values))
    assert np.all(off <= free.residuals + 1e-13 * scale) and free.converged.all()
    v = np.asarray(free.eigenvectors)
    exact = np.linalg.norm(v @ matrix - free.eigenvalues[:, None] * v, axis=1)
    np.testing.assert_allclose(free.residuals, exact, atol=1e-13 * scale)
    assert gflow.sharpness(risk, net) == pytest.approx(dense.sharpness, rel=1e-12)


@pytest.mark.slow
def test_zeros_are_counted(wave):
    """Each dead unit has a Hessian of zeros in its three parameters."""
    net = gflow.ShallowNet.from_arrays(
        jnp.full((5, 1), 0.3), jnp.array([-2.0, -2.0, 0.1, 0.2, 0.3]), jnp.full(5, 0.7), 0.1
    )
    values = np.linalg.eigvalsh(hessian(wave, net))
    spectrum = gflow.hessian_spectrum(wave, net)
    # The alive units are linear on all data: (w, b, v) enter through Σ v w and Σ v b + c.
    assert spectrum.num_zero == np.sum(np.abs(values) < 1e-12 * values[-1]) >= 6
    assert spectrum.num_negative == np.sum(values < -1e-12 * values[-1])
    assert spectrum.num_negative + spectrum.num_zero + spectrum.num_positive == 16
    assert f"{spectrum.num_zero} zero" in repr(spectrum)
    strict = gflow.hessian_spectrum(wave, net, zero_below=0.0)
    assert strict.num_zero == np.sum(strict.eigenvalues == 0.0)


@pytest.mark.slow
def test_trained_parameters_only(wave):
    net = gflow.ShallowNet(1, 100, key=jax.random.key(3))
    values = np.linalg.eigvalsh(hessian(wave, net, ("v", "c")))
    for options in ({}, {"dense_up_to": 0, "largest": 3, "smallest": 3}):
        spectrum = gflow.hessian_spectrum(wave, net, trainable=("v", "c"), **options)
        assert spectrum.size == 101
        np.testing.assert_allclose(spectrum.largest[:3], values[:-4:-1], rtol=1e-9)
        np.testing.assert_allclose(spectrum.smallest[:3], 0.0, atol=1e-6 * values[-1])


def test_exact_risks():
    """In (v, c) the Hessian is 2 E[a aᵀ] for the features a = (relu(w x + b), 1)."""
    risk = gflow.PopulationRisk(gflow.piecewise.wave(), gflow.piecewise.uniform(-1, 1))
    net = gflow.ShallowNet(1, 4, key=jax.random.key(5), init="standard_normal")
    spectrum = gflow.hessian_spectrum(risk, net, trainable=("v", "c"))
    x = (np.arange(100_000) + 0.5) / 50_000 - 1
    a = np.maximum(x[:, None] * np.asarray(net.w)[:, 0] + np.asarray(net.b), 0)
    a = np.concatenate([a, np.ones((len(x), 1))], axis=1)
    values = np.linalg.eigvalsh(2 * a.T @ a / len(x))
    # The error of the midpoint rule is about (2e-5)².
    np.testing.assert_allclose(spectrum.eigenvalues, values, rtol=0, atol=1e-8 * values[-1])


@pytest.mark.slow
def test_float32(wave):
    net = gflow.ShallowNet(1, 100, key=jax.random.key(3), activation="tanh", dtype=jnp.float32)
    risk = gflow.EmpiricalRisk(wave.x.astype(jnp.float32), wave.y.astype(jnp.float32))
    wide = jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, net)
    values = np.linalg.eigvalsh(hessian(wave, wide))
    free = large(risk, net, largest=3, smallest=0)
    assert free.eigenvalues.dtype == np.float32 and free.converged.all()
    # Some tens of rounding errors, each 1.2e-7 of the largest eigenvalue.
    rounding = 5e-6 * values[-1]
    assert np.all(np.abs(free.eigenvalues - values[-3:]) <= free.residuals + rounding)
    assert abs(free.sharpness - values[-1]) <= rounding
    dense = gflow.hessian_spectrum(risk, net)
    np.testing.assert_allclose(dense.eigenvalues, values, rtol=0, atol=rounding)


@pytest.mark.slow
def test_moments_of_the_density(middle):
    risk, net, matrix = middle
    exact = gflow.hessian_spectrum(risk, net)
    some = large(risk, net, largest=1, smallest=0, probes=40, depth=30)
    for order, trace in ((1, np.trace(matrix)), (2, np.sum(matrix**2))):
        assert exact.moment(order)[0] == pytest.approx(trace / 301, rel=1e-12)
        mean, error = some.moment(order)
        # Four standard errors: once in 16,000 keys.
        assert abs(mean - trace / 301) < 4 * error < trace / 301
    assert some.moment(0)[0] == pytest.approx(1.0, rel=1e-12)
    assert some.num_products == 40 * 30 + large(risk, net, largest=1, smallest=0).num_products


def test_a_probe_has_the_moments_of_its_own_measure():
    """⟨v, A^m v⟩ for m < 2 · depth, where v is the start of the quadrature."""
    values = np.linspace(-1.0, 2.0, SIZE)
    spectrum = large(*quadratic(values), largest=1, smallest=0, probes=400, depth=4)
    for order in range(8):
        mean, error = spectrum.moment(order)
        assert abs(mean - np.mean(values**order)) <= 4 * error + 1e-12
    # The standard error of a uniform law on the sphere: √(2 Var λ / (n + 2) / probes).
    assert spectrum.moment(1)[1] == pytest.approx((1.5 / 302 / 400) ** 0.5, rel=0.2)


def test_the_density_is_that_of_the_eigenvalues():
    values = np.linspace(-1.0, 2.0, SIZE)
    risk, net = quadratic(values)
    x = np.linspace(-3.0, 4.0, 701)
    exact = gflow.hessian_spectrum(risk, net).density(x, 0.2)
    normal = np.exp(-(((x[:, None] - values) / 0.2) ** 2) / 2) / (0.2 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(exact, normal.mean(axis=1), rtol=1e-6, atol=1e-9)
    assert np.sum(exact) * 0.01 == pytest.approx(1.0, rel=1e-6)
    some = large(risk, net, largest=1, smallest=0, probes=40, depth=40).density(x, 0.2)
    # The weight of each probe within a width has a relative spread of about √(2/(0.2·170)).
    assert np.abs(some - exact).max() < 0.1 * exact.max()


class CountedProducts(SymmetricOperator):
    """A diagonal map that counts its products."""

    d: jax.Array
    counted: list = eqx.field(static=True)

    def prepared(self):
        def product(v):
            jax.debug.callback(lambda _: self.counted.append(1), v[0])
            return self.d * v

        return product


def test_products_are_counted():
    operator = CountedProducts(jnp.linspace(-1.0, 2.0, SIZE), [])
    options = {"tol": 1e-3, "copies": True, "max_products": 1000, "key": jax.random.key(0)}
    found = extremes(operator, jnp.ones(SIZE), 3, 2, **options)
    jax.effects_barrier()
    assert found.checked and found.num_products == len(operator.counted)


def test_products_are_limited():
    values = np.linspace(-1.0, 2.0, SIZE)
    spectrum = large(*quadratic(values), max_products=50)
    assert spectrum.num_products == 50 and not spectrum.checked
    assert not spectrum.converged.any() and "10 not converged" in repr(spectrum)
    # Ritz values lie inside the eigenvalues that they approximate, here by less than a residual.
    off = spectrum.eigenvalues - ends(values)
    assert np.all(off[:4] > 0) and np.all(off[4:] < 0)
    assert np.all(np.abs(off) < 2 * spectrum.residuals.max())


def test_new_data_of_the_same_shape_take_the_same_programs():
    programs: Any = (lanczos.lanczos_run, lanczos.rayleigh_quotients)
    compiled = lambda: [program._cached._cache_size() for program in programs]
    risk, net = quadratic(np.linspace(-1.0, 2.0, SIZE))
    large(risk, net)
    before = compiled()
    other, _ = quadratic(np.linspace(-2.0, 3.0, SIZE))
    assert large(other, net).sharpness == pytest.approx(3.0, rel=1e-9)
    assert compiled() == before


def test_without_a_search_for_copies():
    values = KNOWN["hidden copies"]
    with_copies = large(*quadratic(values), largest=3, smallest=0)
    without = large(*quadratic(values), largest=1, smallest=0, copies=False)
    assert without.sharpness == pytest.approx(3.0, rel=1e-9)
    assert without.num_products < with_copies.num_products and not without.checked


@pytest.mark.slow
def test_misuse(wave, smooth_net):
    spectrum = gflow.hessian_spectrum
    for options, name in (
        ({"largest": -1}, "largest"),
        ({"largest": 0, "smallest": 0}, "smallest"),
        ({"probes": -1}, "probes"),
        ({"depth": 0}, "depth"),
        ({"tol": 0.0}, "tol"),
        ({"zero_below": -1.0}, "zero_below"),
        ({"max_products": 10}, "max_products"),
        ({"trainable": ("u",)}, "trainable"),
    ):
        with pytest.raises(gflow.ArgumentError, match=name):
            spectrum(wave, smooth_net, **options)
    with pytest.raises(gflow.ArgumentError, match="outside jax.jit"):
        eqx.filter_jit(lambda net: spectrum(wave, net).sharpness)(smooth_net)
    broken = eqx.tree_at(lambda n: n.c, smooth_net, jnp.array(jnp.nan))
    for dense_up_to in (1000, 0):
        with pytest.raises(gflow.ArgumentError, match="NaN or infinite"):
            spectrum(wave, broken, largest=1, smallest=0, dense_up_to=dense_up_to)
    free = large(wave, smooth_net, largest=2, smallest=0)
    for ask in (lambda: free.density(0.0, 1.0), lambda: free.moment(1)):
        with pytest.raises(gflow.ArgumentError, match="probes"):
            ask()
    with pytest.raises(gflow.ArgumentError, match="width"):
        spectrum(wave, smooth_net).density(0.0, 0.0)
