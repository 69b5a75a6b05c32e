"""What is compiled, and when: once for each shape, never for a number."""

import gc
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from gflow import program_cache
from gflow.flow.controller import error_norm
from gflow.nonsmooth.shallow import table_kinks
from gflow.programs import program

KEYS = [jax.random.key(seed) for seed in range(4)]


def test_arrays_are_traced_and_other_leaves_are_constants(compilations):
    @program
    def scaled(by, *, net, name):
        return {"out": by * net["a"], "name": name, "none": None}

    net = {"a": jnp.arange(3.0), "kept": "text"}
    with compilations() as names:
        assert scaled(np.asarray(2.0), net=net, name="x")["name"] == "x"
        found = scaled(np.asarray(3.0), net=net, name="x")
        assert scaled(np.asarray(3.0), net=net, name="y")["name"] == "y"
    assert names == ["jit(scaled)"] * 2
    assert found["out"].tolist() == [0, 3, 6] and found["none"] is None
    batch = jax.vmap(lambda by: scaled(by, net=net, name="x")["out"])(jnp.arange(2.0))
    assert batch.shape == (2, 3)


def test_brief_programs_may_stand_within_others():
    brief = partial(program, is_brief=lambda x: x.ndim == 0)(lambda x: 3.0 * x)
    known = jnp.asarray(2.0)
    assert brief(known) == 6.0
    within = lambda y: y * brief(known) + brief(y)
    assert jax.vmap(within)(jnp.ones(2)).tolist() == [9.0, 9.0]
    assert jax.jit(within)(1.0) == 9.0 and jax.grad(within)(1.0) == 9.0


def test_few_numbers_of_saved_times_compile(wave, compilations):
    net = gflow.ShallowNet(1, 3, key=KEYS[0])
    options = {"t1": 2.0, "rtol": 1e-6, "solver": diffrax.Tsit5()}
    pair = gflow.solve_flow(wave, net, ts=[0.5, 1.0], **options)
    with compilations() as names:
        one = gflow.solve_flow(wave, net, ts=[1.0], **options)
    assert names == [] and one.ts.tolist() == [1.0]
    assert one.risk[0] == pair.risk[1]


def test_the_energy_counts_by_itself():
    error = jnp.zeros(10_001).at[-1].set(2.0)
    assert error_norm(None)(error) == 2.0
    assert error_norm(jnp.arange(10_000) > 5)(error) == 2.0
    assert np.isclose(error_norm(None)(error.at[:-1].set(3.0).at[-1].set(0.0)), 3.0, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_other_seeds_times_and_thresholds_compile_nothing(activation, wave, compilations):
    nets = [gflow.ShallowNet(1, 3, key=key, activation=activation) for key in KEYS]
    first = {"t1": 2.0, "ts": [0.5, 1.0], "stop": gflow.Stop(risk=0.01, grad_norm=1e-3)}
    flows = [gflow.solve_flow(wave, nets[0], rtol=1e-6, **first)]
    other = {"t1": 3.0, "ts": [0.1, 3.0], "stop": gflow.Stop(risk=0.02, grad_norm=1e-4)}
    with compilations() as names:
        flows += [gflow.solve_flow(wave, net, rtol=1e-5, **other) for net in nets]
    assert names == []
    if activation == "relu":
        assert len({len(flow.kinks) for flow in flows}) > 1


@pytest.mark.parametrize(("activation", "program"), [("relu", "_advance"), ("tanh", "_integrate")])
def test_all_pieces_of_a_flow_are_one_program(activation, program, wave, compilations):
    net = gflow.ShallowNet(1, 2, key=KEYS[1], activation=activation)
    with compilations() as names:
        flow = gflow.solve_flow(wave, net, t1=300.0, solver=None)
    assert flow.stats["num_steps"] > 600 and not flow.switches
    assert names.count(f"jit({program})") == 1


def test_parts_of_a_trajectory_compile_nothing(wave, compilations):
    flow = gflow.solve_flow(wave, gflow.ShallowNet(1, 3, key=KEYS[0]), t1=2.0)
    with compilations() as names:
        parts = [flow[:5], flow[7:40], flow[::3]]
    assert names == [] and [len(part) for part in parts] == [5, 33, 67]


def test_the_kinks_of_a_table_are_found_once_and_forgotten_with_it(monkeypatch):
    risk = gflow.EmpiricalRisk(jnp.array([[0.1], [0.5], [0.1]]), jnp.array([0.0, 1.0, 2.0]))
    inputs, calls = table_kinks.Inputs(True, True, True), []
    distinct = table_kinks.distinct_rows
    monkeypatch.setattr(table_kinks, "distinct_rows", lambda x: calls.append(x) or distinct(x))
    found = [table_kinks.table_kinks(risk, np.dtype(float), inputs) for _ in range(3)]
    assert len(calls) == 1 and found[0] is found[2]
    known = len(table_kinks._KNOWN)
    del risk
    gc.collect()
    assert len(table_kinks._KNOWN) == known - 1


def test_equal_rows_have_one_kink_under_jit_too():
    risk = gflow.EmpiricalRisk(jnp.array([[0.1], [0.5], [0.1]]), jnp.array([0.0, 1.0, 2.0]))
    found = []

    @jax.jit
    def traced(a):
        found.append(table_kinks.table_kinks(risk, a.dtype, table_kinks.Inputs(True, True, True)))
        return a

    traced(jnp.ones(1))
    assert found[0].first_datum.tolist() == [0, 1] and found[0].group.tolist() == [0, 1, 0]


SCRIPT = """
import sys
import jax
import jax.numpy as jnp
import gflow
jnp.ones(3) + 1  # compiled before
folder = gflow.cache_compilations(*sys.argv[1:])
assert gflow.cache_compilations(*sys.argv[1:]) == folder
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
risk = gflow.EmpiricalRisk(jnp.array([[0.0], [1.0]]), jnp.array([0.0, 1.0]))
net = gflow.ShallowNet(1, 2, key=jax.random.key(0))
gflow.descend(risk, net, step_size=0.1, num_steps=2)
print(folder, hits.count("/jax/compilation_cache/cache_misses"))
"""


@pytest.mark.slow
def test_later_processes_find_compiled_programs(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "default")

    def in_process(*args, **variables):
        command = [sys.executable, "-c", SCRIPT, *args]
        ended = subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, check=True
        )
        folder, misses = ended.stdout.split()
        assert any(Path(folder).iterdir())
        return folder, int(misses)

    given = str(tmp_path / "new" / "given")
    assert in_process(given)[1] > 0 and in_process(given) == (given, 0)
    # What is asked for counts more than what is configured, and that more than the default.
    configured = str(tmp_path / "configured")
    assert in_process(given, JAX_COMPILATION_CACHE_DIR=configured) == (given, 0)
    assert in_process(JAX_COMPILATION_CACHE_DIR=configured)[0] == configured
    assert in_process()[0].startswith(str(tmp_path / "default" / "gflow"))


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    before = program_cache.configured_directory()
    (tmp_path / "file").write_text("")
    with pytest.raises(gflow.ArgumentError, match="`directory`: got .*Not a directory, wanted"):
        gflow.cache_compilations(tmp_path / "file" / "x")
    assert program_cache.configured_directory() == before
