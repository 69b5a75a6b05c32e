import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from gflow import piecewise
from gflow.app.data import load_table
from gflow.piecewise import PiecewisePolynomial


def load(data, target=None, standardise=True, num_points=20):
    return load_table(str(data), target, standardise=standardise, num_points=num_points)


def test_linnerud_predicts_the_pulse_from_the_exercises():
    table = load("linnerud", standardise=False)
    assert table.x.shape == (20, 3) and table.features == ("chins", "situps", "jumps")
    # The first man of the table.
    assert table.x[0].tolist() == [5, 162, 60] and table.y[0] == 50


def test_diabetes_is_real_and_standardised():
    table = load("diabetes")
    assert table.x.shape == (442, 10) and len(table.features) == 10
    np.testing.assert_allclose(table.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(table.x.std(axis=0), 1, rtol=1e-12)
    raw = load("diabetes", standardise=False)
    assert raw.y.min() == 25 and raw.y.max() == 346
    assert set(raw.x[:, 1]) == {1.0, 2.0}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_with_text_and_constant_columns(kind, tmp_path):
    frame = pd.DataFrame(
        {
            "colour": ["red", "blue", "red", "green"],
            "size": [1, 2, 3, 4],
            "flat": [7.0, 7, 7, 7],
            "yes": [True, False, True, True],
            "y": [1.5, 2, 0, 3],
        }
    )
    path = tmp_path / f"t.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    table = load(path, "y", standardise=False)
    assert table.features == (
        *("colour=blue", "colour=green", "colour=red"),
        *("size", "flat", "yes"),
    )
    np.testing.assert_array_equal(table.x[:, 2], [1, 0, 1, 0])
    np.testing.assert_array_equal(table.y, [1.5, 2, 0, 3])
    table = load(path, "y")
    assert "flat" not in table.features
    assert any("'flat' was left out" in note for note in table.notes)
    assert any("3 columns of 0 and 1" in note for note in table.notes)


@pytest.mark.parametrize("name", piecewise.NAMED)
def test_named_targets(name):
    table = load(name, num_points=41)
    assert table.x.shape == (41, 1) and np.abs(table.y).max() <= 1.0 + 1e-12
    np.testing.assert_allclose(table.y, [float(piecewise.named(name)(x)) for x in table.x[:, 0]])


def test_shapes_of_named_targets():
    x = np.array([-1.0, -0.5, 0.0, 0.25, 1.0])
    np.testing.assert_allclose(piecewise.tent()(x), 1 - np.abs(x))
    np.testing.assert_allclose(piecewise.absolute_value()(x), np.abs(x))
    np.testing.assert_allclose(piecewise.step()(x), [0, 0, 1, 1, 1])
    np.testing.assert_allclose(piecewise.zigzag()(x), [0, 1, 0, -0.5, 0], atol=1e-15)
    np.testing.assert_allclose(piecewise.wave()(x), [0, -1, 0, 0.75, 0])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 100))
def test_piecewise_polynomials_are_numpys_on_each_piece(pieces, degree, seed):
    rng = np.random.default_rng(seed)
    breakpoints = np.cumsum(rng.uniform(0.1, 1, pieces + 1))
    coefficients = rng.normal(size=(pieces, degree + 1))
    f = PiecewisePolynomial(breakpoints, coefficients)
    assert f.interval == (breakpoints[0], breakpoints[-1])
    for k in range(pieces):
        x = rng.uniform(breakpoints[k], breakpoints[k + 1], 3)
        np.testing.assert_allclose(f(x), np.polyval(coefficients[k, ::-1], x), rtol=1e-12)
    np.testing.assert_allclose(
        f(np.array([breakpoints[-1] + 1])),
        np.polyval(coefficients[-1, ::-1], breakpoints[-1] + 1),
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([0, 1, 1], [[1], [2]]), "breakpoints"),
        (([0], []), "breakpoints"),
        (([0, np.nan], [[1]]), "breakpoints"),
        (([0, 1], [[1], [2]]), "coefficients"),
        (([0, 1], [[np.inf]]), "coefficients"),
    ],
)
def test_bad_pieces_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        PiecewisePolynomial(*arguments)
