import io
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from gflow import piecewise
from gflow.app.config import Config
from gflow.app.data import TableOptions, load_table
from gflow.app.problem import observed_by, risk_of, start_of
from gflow.arguments import ArgumentError
from gflow.piecewise import PiecewisePolynomial


def load(data, target=None, num_points=20, **options):
    return load_table(str(data), TableOptions(target, **options), num_points=num_points)


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


FRAME = pd.DataFrame({"u": [1.5, 2, 3, 4, 5], "v": [2, 1, 0, 5, 7], "y": [1.0, 2, 3, 5, 4]})
PLAIN = "u,v,y\n1.5,2,1\n2,1,2\n3,0,3\n4,5,5\n5,7,4\n"
LAST = PLAIN.replace("y", "größe")

# How tables are written, and what is said about each.
READABLE = {
    "with its index": (FRAME.to_csv(), "Column 1, without a name, is an index"),
    "with a column of row numbers": (
        FRAME.reset_index(names="ID").to_csv(index=False),
        "Column 'ID' has the numbers of the rows",
    ),
    "with semicolons": (FRAME.to_csv(index=False, sep=";"), "The separator is ';'"),
    "with decimal commas": (
        FRAME.to_csv(index=False, sep=";", decimal=","),
        "Commas in numbers, as in 1,5, are decimal points",
    ),
    "with tabs": (FRAME.to_csv(index=False, sep="\t"), "The separator is a tab"),
    "with spaces": (FRAME.to_string(index=False), "The separator is white space"),
    "with a byte order mark": (PLAIN.encode("utf-8-sig"), ""),
    "with quoted names": ('"u" , "v","y"' + PLAIN[5:], ""),
    "with a separator at the end": (
        PLAIN.replace("\n", ",\n"),
        "Column 4, without a name, is empty",
    ),
    "with such a separator in the rows only": ("u,v,y\n" + PLAIN[6:].replace("\n", ",\n"), ""),
    "with names of rows as R writes them": (
        "u v y\n" + FRAME.to_csv(sep=" ", header=False),
        "The names of the rows, a column without a name, were left out",
    ),
    "with two indices": (
        pd.read_csv(io.StringIO(FRAME.to_csv())).to_csv(),
        "Column 2, without a name, has the numbers of the rows",
    ),
    "with identifiers": (
        FRAME.assign(id=[71, 12, 35, 40, 9]).to_csv(index=False),
        "Column 'id' has another whole number in each row",
    ),
    "with comments": ("# a table\n# of units\n" + PLAIN, "2 lines that begin with # before"),
    "with a mark of comments before the header": ("# a table\n#" + PLAIN, "One line that begins"),
    "as Excel for other programs": ("sep=;\n" + PLAIN.replace(",", ";"), ""),
    "with percent signs": (
        "u,v,y\n1.5%,2,1\n2 %,1,2\n3%,0,3\n4%,5,5\n5%,7,4\n",
        "Marks were left out of the numbers in column 'u', as in 1.5%",
    ),
    "with currencies": (
        "u,v,y\n$1.5,2,1\n$2,1,2\n$3,0,3\n$4,5,5\n$5,7,4\n",
        "Marks were left out of the numbers in column 'u', as in $1.5",
    ),
    "with rows that have no target": (PLAIN + "6,7,\n", "1 of 6 rows have missing entries"),
}


@pytest.mark.parametrize("how", READABLE)
def test_tables_as_people_have_them_are_read(how, tmp_path):
    content, sentence = READABLE[how]
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = load(path, "y", standardise=False, missing="drop")
    assert table.features == ("u", "v") and any(n.startswith(sentence) for n in (*table.notes, ""))
    np.testing.assert_array_equal(table.x, FRAME[["u", "v"]])
    np.testing.assert_array_equal(table.y, FRAME["y"])


@pytest.mark.parametrize(
    ("separator", "large", "negative"),
    [(",", "1'000.5", "\u22122"), (",", "1\u202f000.5", "-2"), (";", "1.000,5", "-2")],
)
def test_numbers_with_typographic_marks(separator, large, negative, tmp_path):
    rows = [("u", "y"), (large, "1"), (negative, "2"), ("3", "4")]
    (tmp_path / "t.csv").write_text("\n".join(separator.join(row) for row in rows))
    table = load(tmp_path / "t.csv", "y", standardise=False)
    np.testing.assert_array_equal(table.x[:, 0], [1000.5, -2, 3])
    assert any("arks were left out" in n or "points mark thousands" in n for n in table.notes)


def test_text_that_is_no_number_stays_text(tmp_path):
    text = "u,s,y\n1,5%,1\n2,high,2\n3,5%,4\n"
    (tmp_path / "t.csv").write_text(text)
    assert load(tmp_path / "t.csv", "y").features == ("u", "s=5%", "s=high")
    (tmp_path / "t.csv").write_text("u,y\n1,5%\n2,10%\n3,5%\n")
    assert load(tmp_path / "t.csv", "y", loss="logistic").classes == ("10%", "5%")


def test_decimals_are_numbers_and_lists_are_not(tmp_path):
    frame = FRAME.assign(u=[Decimal(str(value)) for value in FRAME["u"]])
    frame.to_parquet(tmp_path / "t.parquet")
    table = load(tmp_path / "t.parquet", "y", standardise=False)
    np.testing.assert_array_equal(table.x, FRAME[["u", "v"]])
    FRAME.assign(u=[[1, k] for k in range(5)]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ArgumentError, match="lists in column 'u' .* or `--drop u`"):
        load(tmp_path / "t.parquet", "y")


@pytest.mark.parametrize("separator", ["", "((", '"'])
def test_separators_are_checked(separator, tmp_path):
    (tmp_path / "t.csv").write_text(PLAIN)
    with pytest.raises(ArgumentError, match="`separator`: .* or a regular expression"):
        load(tmp_path / "t.csv", "y", separator=separator)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_are_found_or_taken(encoding, tmp_path):
    (tmp_path / "t.csv").write_bytes(LAST.encode(encoding))
    for option in (None, encoding):
        table = load(tmp_path / "t.csv", "größe", encoding=option)
        assert table.x.shape == (5, 2)
        assert any("was read as" in note for note in table.notes) == (
            option is None and not encoding.startswith("utf-8")
        )


DATES = "when,u,y\n2024-01-05,1,3\n2024-02-05,5,4\n2024-02-07,4,1\n"
GAPS = "u,v,y\n1,,3\n2,5,4\n3,?,4\n4,2,1\n"
CLASSES = "u,v,y\n1,3,a\n2,5,b\n3,4,a\n4,4,b\n"
THREE = "u,v,y\n1,3,a\n2,5,b\n3,4,c\n"
TWICE = "u,y,y\n1,3,1\n2,5,2\n3,4,1\n"

# Tables that need an option: what is said without it, and the option that the sentence names.
MENDED = {
    "missing entries, left out": (
        *(GAPS, "got 2 missing entries in 2 of 4 rows of t.csv, in columns 'v' (2)"),
        ("`--missing drop`", {"missing": "drop"}),
    ),
    "missing entries, filled": (
        GAPS,
        "`--missing drop`",
        ("`--missing mean`", {"missing": "mean"}),
    ),
    "dates": (DATES, "column 'when' of t.csv with dates", ("`--drop when`", {"drop": "when"})),
    "two classes": (
        *(CLASSES, "text in the target column 'y' of t.csv: 'a', 'b'"),
        ("`--loss logistic`", {"loss": "logistic"}),
    ),
    "three classes": (
        THREE,
        "'a', 'b', 'c'",
        ("`--loss cross-entropy`", {"loss": "cross-entropy"}),
    ),
    "two targets": (TWICE, "two columns 'y'", ("`--drop y.1`", {"drop": "y.1"})),
    "infinite entries": (
        *("u,k,y\n1,3,1\n2,inf,2\n3,3,1\n", "got inf in row 2 of column 'k'"),
        ("`--drop k`", {"drop": "k"}),
    ),
    "entries whose squares overflow": (
        *("u,k,y\n1,3,1\n2,1e308,2\n3,3,1\n", "got 1e+308 in row 2 of column 'k'"),
        ("`--drop k`", {"drop": "k"}),
    ),
    "text of many values": (
        "u,s,y\n" + "".join(f"{i},k{i},{i}\n" for i in range(30)),
        *("text column 's' of t.csv with 30 distinct values", ("`--drop s`", {"drop": "s"})),
    ),
    "text among numbers": (
        *("u,v,y\n1,1,2\nn/a?,2,3\n3,1,1\n4,3,4\n", "got 'n/a?' in row 2 of column 'u'"),
        ("`--drop u`", {"drop": "u"}),
    ),
}


@pytest.mark.parametrize("what", MENDED)
def test_other_tables_are_refused_with_the_option_that_mends_them(what, tmp_path):
    text, sentence, (option, options) = MENDED[what]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ArgumentError) as refused:
        load(tmp_path / "t.csv", "y")
    assert sentence in str(refused.value) and option in str(refused.value)
    assert np.isfinite(load(tmp_path / "t.csv", "y", **options).x).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,3,1\n2,4,2\n3,3,1\n", "whose first line has numbers only"),
        ("y\n1\n2\n", "with the one column 'y'"),
        ("u,y\n", "with 0 rows"),
        ("", "t.csv, empty"),
        ("\n\n", "t.csv, empty"),
        ("u,y\n1,2\n2,3,4,5\n", "another `--separator`"),
        ("u,v\n1,2\n2,3\n", "wanted a column of t.csv"),
        ("My table\n\n" + PLAIN, "whose first line is 'My table'"),
        (bytes(range(256)) * 20, "another `--encoding`"),
        ("u,y\n1,2024-01-05\n2,2024-02-05\n", "dates in the target column"),
    ],
)
def test_what_is_no_table_gets_a_sentence(text, sentence, tmp_path):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentError) as refused:
        load(tmp_path / "t.csv", "y")
    assert sentence in str(refused.value)


def test_classes_become_numbers_and_are_named(tmp_path):
    (tmp_path / "t.csv").write_text(CLASSES)
    two = load(tmp_path / "t.csv", "y", loss="logistic")
    np.testing.assert_array_equal(two.y, [-1, 1, -1, 1])
    assert two.classes == ("a", "b") and "Class 'a' is -1, class 'b' is 1." in two.notes
    (tmp_path / "t.csv").write_text(THREE)
    three = load(tmp_path / "t.csv", "y", loss="cross-entropy")
    np.testing.assert_array_equal(three.y, [0, 1, 2])
    with pytest.raises(ArgumentError, match="`loss`: got 'logistic' for 3 values"):
        load(tmp_path / "t.csv", "y", loss="logistic")
    (tmp_path / "t.csv").write_text("u,y\n" + "".join(f"{i},{i / 7}\n" for i in range(150)))
    with pytest.raises(ArgumentError, match="no `--loss` for numbers"):
        load(tmp_path / "t.csv", "y", loss="cross-entropy")


def test_missing_text_is_filled_with_the_frequencies_of_its_values(tmp_path):
    (tmp_path / "t.csv").write_text("s,y\nred,1\nblue,2\n,3\nred,4\n")
    table = load(tmp_path / "t.csv", "y", missing="mean", standardise=False)
    np.testing.assert_allclose(table.x[2], [1 / 3, 2 / 3])


def test_columns_are_chosen_by_name(tmp_path):
    (tmp_path / "t.csv").write_text(FRAME.reset_index(names="id").to_csv(index=False))
    assert load(tmp_path / "t.csv", "y", drop="u").features == ("v",)
    assert load(tmp_path / "t.csv", "y", features="v, id").features == ("v", "id")
    for option in ("drop", "features", "target"):
        with pytest.raises(ArgumentError, match=f"`{option}`: got 'uu'.*did you mean 'u'"):
            load(tmp_path / "t.csv", **{"target": "y", option: "uu"})


def test_rows_that_are_held_out_make_the_test_risk():
    config = Config(test_fraction=0.25)
    table = load("linnerud")
    risk, whole = risk_of(config, table), risk_of(Config(), table)
    test = observed_by(config, table)["test risk"]
    assert (risk.num_data, test.num_data, whole.num_data) == (15, 5, 20)
    net = start_of(config, table)
    mean = (15 * float(risk(net)) + 5 * float(test(net))) / 20
    assert mean == pytest.approx(float(whole(net)), rel=1e-12)
    assert observed_by(Config(), table) == {}


@pytest.mark.parametrize(("fraction", "got"), [(0.01, "0.01 of 20 rows, which is 0"), (0.99, "20")])
def test_rows_are_left_to_learn_from_and_to_test(fraction, got):
    with pytest.raises(ValueError, match=f"`test_fraction`: got .*{got}"):
        risk_of(Config(test_fraction=fraction), load("linnerud"))


def table_of(folder, column):
    lines = [f"{k};{text};{k * k}" for k, text in enumerate(column)]
    path = folder / "t.csv"
    path.write_text("\n".join(["size;other;y", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    "texts",
    [
        ["3 km", "4 km", "5 km", "6.5 km"],
        ["1/7", "2/7", "3/7"],
        ["(3.5)", "(4.5)", "(1)"],
        ["2000Q1", "2000Q2", "2000Q3", "2000Q4"],
        ["Anna", "Ben", "Cem", "Dora", "Eva", "Fay", "Gil", "Hal", "Ida"],
    ],
)
def test_text_with_another_value_in_each_row_is_no_category(texts, tmp_path):
    with pytest.raises(ValueError, match="others in [0-9]+ rows.*`--drop other`"):
        load(str(table_of(tmp_path, texts)), "y")
    assert load(str(table_of(tmp_path, texts)), "y", drop="other").x.shape[1] == 1


def test_a_few_repeated_texts_are_categories(tmp_path):
    for texts in (["18-25", "26-40", "18-25", "26-40", "18-25"], ["a", "b", "c"]):
        assert load(str(table_of(tmp_path, texts)), "y").x.shape[1] == 1 + len(set(texts))


def test_a_named_index_of_a_parquet_file_is_a_column(tmp_path):
    frame = pd.DataFrame({"age": [1.0, 2.0, 4.0], "y": [1.0, 0.0, 2.0]}).set_index("age")
    frame.to_parquet(tmp_path / "t.parquet")
    table = load(str(tmp_path / "t.parquet"), "y")
    assert table.features == ("age",)
