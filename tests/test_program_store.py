"""Programs on disk: the same numbers, nothing traced, and never a program of something else."""

import functools
import os
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import program_store
from gflow.program_store import ProgramStore

X = np.arange(3.0)


@pytest.fixture
def store(tmp_path):
    return ProgramStore(tmp_path / "programs")


def doubled(store, constants=None, function=gflow.solve_flow, arrays=(X,)) -> tuple[Any, int]:
    """A program under a name of gflow's, and how often it was lowered."""
    calls = []

    def lower():
        calls.append(1)
        return jax.jit(lambda arrays: [2 * a for a in arrays]).lower(list(arrays))

    program = store.program(function, constants, list(arrays), lower)
    return program and (lambda arrays: program(arrays)[0].tolist()), len(calls)


def files(store):
    return sorted(store.folder.iterdir()) if store.folder.exists() else []


def test_a_program_is_lowered_once_and_read_later(store):
    first, lowered = doubled(store)
    again, lowered_again = doubled(ProgramStore(store.folder))
    assert (lowered, lowered_again) == (1, 0) and len(files(store)) == 1
    assert [run([X]) for run in (first, again)] == [[0.0, 2.0, 4.0]] * 2


def test_whatever_a_program_follows_from_is_in_its_name(store, monkeypatch):
    net = gflow.ShallowNet(1, 2, key=jax.random.key(0))
    static = jax.tree.structure
    deep = eqx.nn.MLP(1, 1, 2, 2, key=jax.random.key(0))
    with_tanh = gflow.ShallowNet(1, 2, key=jax.random.key(0), activation="tanh")
    variants = [
        {},
        {"constants": 1},
        {"constants": 1.5},
        {"constants": jax.nn.relu},
        {"constants": functools.partial(jax.nn.elu, alpha=2.0)},
        {"constants": static(net)},
        {"constants": static(with_tanh)},
        {"constants": (static(deep), deep.activation)},
        {"function": gflow.descend},
        {"arrays": (X, X)},
        {"arrays": (X.astype(np.float32),)},
        {"arrays": (jnp.asarray(2.0),)},
    ]
    assert [doubled(store, **variant)[1] for variant in variants] == [1] * len(variants)
    with jax.default_matmul_precision("float32"):
        assert doubled(store)[1] == 1
    monkeypatch.setattr(store, "_source", "of another version")
    assert doubled(store)[1] == 1
    assert len(files(store)) == len(variants) + 2


class OfAUser(eqx.Module):
    x: jax.Array

    def __call__(self):
        return self.x


def loss_of_a_user(prediction, target):
    return abs(prediction - target)


@pytest.mark.parametrize(
    "unknown",
    [
        loss_of_a_user,
        lambda x: x,
        functools.partial(loss_of_a_user, 1.0),
        jax.jit(loss_of_a_user),
        jax.tree.structure(OfAUser(jnp.ones(1))),
        OfAUser(jnp.ones(1)).__call__,
        {"deep": [(OfAUser,)]},
    ],
    ids=["function", "lambda", "partial", "jitted", "module", "method", "class"],
)
def test_what_is_not_known_is_left_to_jax(unknown, store):
    assert doubled(store, unknown) == (None, 0)
    assert not files(store)


def test_only_functions_of_gflow_have_programs_in_the_store(store):
    inner = lambda x: x
    inner.__module__ = "gflow.descent"
    for function in (loss_of_a_user, inner, jax.nn.relu):
        assert doubled(store, function=function) == (None, 0)


def test_a_file_that_cannot_be_read_is_written_anew(store):
    doubled(store)
    (path,) = files(store)
    whole = path.read_bytes()
    for spoilt in (b"", whole[: len(whole) // 2], b"no pickle"):
        path.write_bytes(spoilt)
        program, lowered = doubled(store)
        assert lowered == 1 and program([X]) == [0.0, 2.0, 4.0]
        assert doubled(store)[1] == 0


def test_programs_that_were_not_used_for_longest_make_room(store, monkeypatch):
    names = [doubled(store, number) and files(store) for number in range(3)][-1]
    for age, path in enumerate(names):
        os.utime(path, (1e9 - age, 1e9 - age))
    most = sum(path.stat().st_size for path in names) + 1
    monkeypatch.setattr(program_store, "_MAX_BYTES", most)
    doubled(store, "one more")
    left = files(store)
    assert names[0] in left and names[2] not in left and len(set(left) - set(names)) == 1
    assert sum(path.stat().st_size for path in left) <= most


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    program, lowered = doubled(ProgramStore(tmp_path / "file"))
    assert lowered == 1 and program([X]) == [0.0, 2.0, 4.0]


def test_jax_looks_at_every_number_where_it_is_told_to(store, monkeypatch):
    monkeypatch.setattr(program_store, "_STORES", [store])
    assert program_store.open_store() is store
    with jax.debug_nans(True):
        assert program_store.open_store() is None
    with jax.disable_jit():
        assert program_store.open_store() is None


SCRIPT = """
import hashlib, sys
import jax
import numpy as np
jax.config.update("jax_enable_x64", True)
import equinox as eqx
import gflow
gflow.cache_compilations(sys.argv[1])
traced = []
def note(event, _, **facts):
    if event == "/jax/core/compile/jaxpr_trace_duration":
        traced.append(facts["fun_name"])
jax.monitoring.register_event_duration_secs_listener(note)
x = np.linspace(-1, 1, 12)[:, None]
risk = gflow.EmpiricalRisk(x, np.abs(x[:, 0]))
flow = gflow.solve_flow(risk, gflow.ShallowNet(1, 3, key=jax.random.key(1)), t1=0.5)
found = jax.tree.leaves(eqx.filter(flow, eqx.is_array))
options = {"step_size": 0.1, "num_steps": 3, "batch_size": 2, "key": jax.random.key(0)}
found.append(gflow.descend(risk, flow.final, **options).risk)
of_gflow = {"_prepared", "_begin", "_advance", "_record", "_descend"} & set(traced)
digest = hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in found))
print(len(flow.kinks), digest.hexdigest())
print(*sorted(of_gflow))
"""


@pytest.mark.slow
def test_a_later_process_traces_nothing_and_finds_the_same_numbers(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    run = lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (first, traced), (second, traced_again) = (run().split("\n")[:2] for _ in range(2))
    assert "_advance" in traced and "_record" in traced
    assert traced_again == "" and first == second
    assert int(first.split()[0]) > 0
