"""Whether `notebooks.check` sees stored outputs that are not those of the source."""

import json

import pytest

from notebooks.check import EXECUTED, FOLDER, MOST_BYTES, faults, source_hash


def notebook(*outputs, source="print(1)") -> dict:
    code = {"cell_type": "code", "id": "one", "source": [source], "outputs": list(outputs)}
    prose = {"cell_type": "markdown", "id": "two", "source": ["# In /tmp/prose anything goes"]}
    made = {"cells": [code, prose], "metadata": {}}
    made["metadata"][EXECUTED] = source_hash(made)
    return made


def printed(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


def shown(**data) -> dict:
    kinds = {"text": "text/plain", "image": "image/png"}
    return {"output_type": "display_data", "data": {kinds[k]: v for k, v in data.items()}}


def faults_of(made: dict, tmp_path) -> list[str]:
    path = tmp_path / "made.ipynb"
    path.write_text(json.dumps(made))
    return faults(path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.name)
def test_the_stored_outputs_are_up_to_date(path):
    assert faults(path) == []


@pytest.mark.parametrize(
    "output",
    [
        printed("distance / h = 0.2, h = 1/256, 2/(4λ), (n/2)/3, http://gflow"),
        shown(text=["a ", "figure"], image="AB/home/CD/EF=="),
    ],
)
def test_ordinary_outputs_have_no_faults(output, tmp_path):
    assert faults_of(notebook(output), tmp_path) == []


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (printed("a warning", name="stderr"), "cell one: a message on stderr: a warning"),
        (printed("see /opt/gflow/file.py:3"), "cell one: an absolute path: /opt/gflow/file.py:3"),
        (printed("~/file"), "cell one: an absolute path: ~/file"),
        (shown(text="<Figure at 0x7f12ab34cd>"), "cell one: a memory address: at 0x7f12ab34cd"),
        ({"output_type": "error", "ename": "ValueError"}, "cell one: ValueError in its output"),
    ],
)
def test_what_does_not_belong_in_an_output_is_found(output, fault, tmp_path):
    assert faults_of(notebook(output), tmp_path) == [fault]


def test_code_that_changed_since_is_found(tmp_path):
    made = notebook(printed("1"))
    made["cells"][1]["source"] = ["Other prose."]
    assert faults_of(made, tmp_path) == []
    made["cells"][0]["source"] = ["print(2)"]
    (fault,) = faults_of(made, tmp_path)
    assert fault.startswith("its code changed")
    del made["metadata"][EXECUTED]
    assert len(faults_of(made, tmp_path)) == 1


def test_large_notebooks_are_found(tmp_path):
    (fault,) = faults_of(notebook(shown(image="A" * MOST_BYTES)), tmp_path)
    assert f"{MOST_BYTES:,} are allowed" in fault
