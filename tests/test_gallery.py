"""The gallery: experiments that agree with theory, and rows that would say so if they did not."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import gflow
from gflow import gallery
from gflow.app.cli import main
from gflow.gallery import claims

SOURCES = Path(gallery.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant_slope", "generalized_gradients"])
def test_experiments_agree_with_theory(name):
    shown = gallery.exhibit(name)
    assert shown.stands and len(shown.claims) >= 2
    plt.close(shown.figure)


def test_each_experiment_is_in_the_list_short_and_has_a_title():
    files = {path.stem for path in SOURCES.glob("*.py")} - {"__init__", "claims"}
    assert files == set(gallery.NAMES)
    for name in files:
        assert len((SOURCES / f"{name}.py").read_text().splitlines()) <= 80, name
        assert gallery.title(name)


def test_claims_tell_agreement_from_findings():
    near = claims.equal("a", "b", 2.0, 2.0001, 1e-3)
    far = claims.equal("a", "b", 2.0, 2.1, 1e-3)
    assert near.verdict == "agrees" and far.verdict == "disagrees"
    assert claims.equal("a", "b", 2.0, float("nan"), 1e-3).verdict == "disagrees"
    assert far.because("too few steps").verdict == "finding"
    assert far.because("too few steps", seen=False).verdict == "disagrees"
    assert near.because("too few steps").verdict == "agrees" and near.finding == ""
    assert claims.at_most("a", "b", 1.0, 1.0).agrees and claims.at_least("a", "b", 1.0, 1.0).agrees
    assert not claims.at_most("a", "b", 1.0, 1.1).agrees
    assert not claims.at_least("a", "b", 1.0, 0.9).agrees
    figure, _ = claims.panels(2)
    assert claims.Exhibit((near, far.because("known")), figure).stands
    assert not claims.Exhibit((near, far), figure).stands
    plt.close(figure)


def test_the_shown_digits_tell_expected_from_obtained():
    far = claims.equal("a", "b", 1.0, 1.002, 1e-3)
    assert (far.expected, far.obtained) == ("1", "1.002")
    with pytest.raises(gflow.ArgumentError, match="within"):
        claims.equal("a", "b", 1.0, 1.0, 0.0)


@pytest.fixture
def small_gallery(monkeypatch):
    """Experiments that need no time. The second does not agree, and the third raises."""

    def exhibit(name, *, long):
        if name == "rate_one":
            raise ZeroDivisionError("of |x|\nby 0")
        obtained = {"constant_slope": 1.0, "affine_targets": 2.0}[name] + long
        figure, _ = claims.panels(1)
        return claims.Exhibit((claims.equal("one is one", "sums", 1.0, obtained, 1e-6),), figure)

    monkeypatch.setattr("gflow.app.gallery.exhibit", exhibit)
    monkeypatch.setattr("gflow.app.gallery.NAMES", ("constant_slope", "affine_targets"))


def _status(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["gallery", "--no-cache", *arguments])
    return stopped.value.code


def test_the_command_prints_a_line_for_each_claim(small_gallery, capsys, tmp_path):
    assert _status("constant_slope", "--figures", str(tmp_path / "new")) == 0
    out = capsys.readouterr().out
    assert "agrees     one is one: expected 1, obtained 1 [sums]" in out
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "constant_slope.png",
        "constant_slope.svg",
    ]
    assert _status() == 1
    assert "disagrees  one is one: expected 1, obtained 2 [sums]" in capsys.readouterr().out
    assert _status("constant_slope", "--long") == 1


def test_the_command_prints_json(small_gallery, capsys):
    assert _status("--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [c["verdict"] for c in found["affine_targets"]["claims"]] == ["disagrees"]
    assert found["constant_slope"]["title"].startswith("Why descent converges")


def test_the_command_writes_a_page_with_its_figures(small_gallery, capsys, tmp_path):
    page = tmp_path / "shown.md"
    assert _status("--page", str(page)) == 1
    written = page.read_text()
    assert "| agrees | one is one | 1 | 1 | sums |" in written
    assert "| disagrees | one is one | 1 | 2 | sums |" in written
    assert "## Why descent converges" in written and "$$" in written
    for name in ("constant_slope", "affine_targets"):
        assert f"](shown/{name}.png)" in written
        assert (tmp_path / "shown" / f"{name}.png").exists()
    (tmp_path / "file").write_text("")
    assert _status("constant_slope", "--page", str(tmp_path / "file" / "page.md")) == 2
    assert "`page`" in capsys.readouterr().err


def test_an_experiment_that_raises_is_a_failing_row_and_the_others_go_on(
    small_gallery, capsys, tmp_path
):
    both, page = ("rate_one", "constant_slope"), tmp_path / "shown.md"
    assert _status(*both, "--page", str(page), "--figures", str(tmp_path / "figures")) == 1
    out = capsys.readouterr().out
    assert "disagrees  the experiment runs to its end: expected no error, obtained ZeroDiv" in out
    assert "agrees     one is one" in out
    assert r"| no error | ZeroDivisionError: of \|x\| by 0 |" in page.read_text()
    for directory in (tmp_path / "figures", tmp_path / "shown"):
        assert {file.stem for file in directory.iterdir()} == {"constant_slope"}
    assert _status(*both, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [found[name]["claims"][0]["verdict"] for name in both] == ["disagrees", "agrees"]
    assert "ZeroDivisionError" in found["rate_one"]["claims"][0]["obtained"]


def test_papers_on_arxiv_are_links_on_the_page(monkeypatch, tmp_path):
    def exhibit(name, *, long):
        source = "Jentzen, Kröger, arXiv 2102.11840, and calculus"
        return claims.Exhibit((claims.equal("one is one", source, 1.0, 1.0, 1e-6),), None)

    monkeypatch.setattr("gflow.app.gallery.exhibit", exhibit)
    assert _status("linear_rate", "--page", str(tmp_path / "page.md")) == 0
    link = "Jentzen, Kröger, [arXiv 2102.11840](https://arxiv.org/abs/2102.11840), and calculus |"
    assert link in (tmp_path / "page.md").read_text()


def test_the_command_lists_the_experiments(capsys):
    assert _status("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(gallery.NAMES)


def test_unknown_names_and_directories_are_refused(small_gallery, capsys, tmp_path):
    assert _status("no_such") == 2
    assert "`name`: got 'no_such', wanted one of" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert _status("constant_slope", "--figures", str(tmp_path / "file")) == 2
    assert "figures" in capsys.readouterr().err
