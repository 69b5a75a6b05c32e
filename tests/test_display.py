"""Everything that is returned reads well, as text and as a table in a notebook."""

import copy
import importlib.metadata
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow

TIMES = np.linspace(0.0, 10.0, 60)


@pytest.fixture(scope="module")
def descent() -> gflow.Trajectory:
    quadratic = lambda p: jnp.sum(jnp.array([1.0, 0.5]) * p**2)
    return gflow.descend(quadratic, jnp.ones(2), step_size=0.1, num_steps=60, record=61)


@pytest.fixture(scope="module")
def results(descent, smooth_flow, wave) -> list:
    quadratic = lambda p: jnp.sum(jnp.array([1.0, -0.5]) * p**2)
    squares = gflow.SumOfSquares(lambda x: x[0] * x[1] - 1, jacobian_lipschitz=1.0)
    rate = gflow.fit_rate(TIMES, np.exp(-TIMES))
    times, ones = jnp.array([0.5, 2.0]), jnp.array([1, 1])
    return [
        rate,
        rate.best,
        gflow.compare(descent, descent),
        gflow.observed_order([0.1, 0.2, 0.4], [0.1, 0.2, 0.4]),
        gflow.refine(quadratic, jnp.full(2, 0.01), throw=False),
        gflow.hessian_spectrum(quadratic, jnp.ones(2)),
        gflow.hessian_spectrum(wave, smooth_flow.final, dense_up_to=5, largest=3, smallest=2),
        gflow.lojasiewicz(descent, 0.0),
        gflow.KinkLog(times, ones, ones, ones, jnp.array([0, 2]), ones == 0),
        gflow.KinkLog(times[:0], ones[:0], ones[:0], ones[:0], ones[:0], ones[:0] == 0),
        gflow.chatterjee(squares, np.array([1.6, 1.2])),
        gflow.pl_constants(wave, smooth_flow[:3]),
        smooth_flow.diagnostics,
    ]


@pytest.mark.slow
def test_every_result_has_a_table_a_short_text_and_a_pickle(results):
    for result in results:
        table, text = result._repr_html_(), repr(result)
        assert table.startswith("<table><caption>") and table.endswith("</table>")
        assert text.count("\n") < 8 and len(text) < 1200 and "Array(" not in text + table
        assert repr(pickle.loads(pickle.dumps(result))) == repr(copy.deepcopy(result)) == text
        for fact in result.summary().values():
            assert isinstance(fact, str) and fact


def test_the_log_of_kinks_reads_well():
    log = gflow.KinkLog(
        jnp.array([0.5, 2.0, jnp.inf]),
        *(jnp.array(a) for a in ([0, 0, 0], [1, 1, 0], [3, 3, 0], [0, 2, 0])),
        jnp.array([True, False, False]),
    )
    text = repr(log)
    assert "2 kinks" in text and "t = 0.5 to 2" in text and "slide begins" in text
    traced = []
    jax.jit(lambda log: traced.append(repr(log)) or log.time)(log)
    assert "KinkLog" in traced[0]
    first, second = log
    assert first == (0.5, 0, 1, 3, gflow.KinkKind.CROSS_TO_ACTIVE, True)
    assert second.kind.begins_slide and not second.passed and second.time == 2.0


def test_the_package_names_its_version():
    assert gflow.__version__ == importlib.metadata.version("gflow-jax")
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        _ = gflow.version


def test_completion_offers_what_is_public():
    assert dir(gflow.plots) == sorted(gflow.plots.__all__)
    assert dir(gflow) == sorted(gflow.__all__)
    for name in dir(gflow.plots):
        assert callable(getattr(gflow.plots, name)), name
