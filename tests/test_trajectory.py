"""Trajectories in the hands of a user: their parts, batches of them, what they show."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow

KEYS = jax.random.split(jax.random.key(1), 3)
DATA = np.linspace(-1.0, 1.0, 20)
RISK = gflow.EmpiricalRisk(DATA[:, None], np.sin(3 * DATA))
# The third of the three flows ends before t1.
OPTIONS: dict[str, Any] = {"t1": 1.0, "rtol": 1e-3, "stop": gflow.Stop(risk=0.2)}


def follow(key, **options):
    net = gflow.ShallowNet(1, 4, key=key)
    observe = {"bias": lambda net: net.c, "weights": lambda net: net.w}
    return gflow.solve_flow(RISK, net, **OPTIONS, observe=observe, **options)


@pytest.fixture(scope="module")
def flow() -> gflow.Trajectory:
    return follow(KEYS[0], time_scales={"v": 0.5})


@pytest.fixture(scope="module")
def batch() -> gflow.Trajectory:
    return jax.vmap(follow)(KEYS)


@pytest.fixture(scope="module")
def descent() -> gflow.Trajectory:
    net = gflow.ShallowNet(1, 4, key=KEYS[0])
    return gflow.descend(RISK, net, step_size=0.1, num_steps=9, record=np.arange(10))


def same(one, two) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in leaves)


@pytest.mark.slow
@pytest.mark.parametrize("index", [7, -1, np.int32(7), np.uint8(199), jnp.asarray(7)])
def test_an_index_gives_one_network(flow, index):
    assert same(flow[index], jax.tree.map(lambda a: a[index], flow.params))


@pytest.mark.parametrize("index", [10, -11, 1000])
def test_indices_out_of_range_are_refused(descent, index):
    with pytest.raises(IndexError, match=f"index {index} of a trajectory with 10 saved times"):
        descent[index]


def test_a_loop_ends_and_reversed_turns_it(descent):
    nets = list(descent)
    assert len(nets) == len(descent) == 10
    assert same(nets[-1], descent.final) and same(next(reversed(descent)), descent.final)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(2, 6), [2, 3, 4, 5]),
        (slice(-3, None), [7, 8, 9]),
        (slice(None, None, 4), [0, 4, 8]),
        ([0, 3, -1], [0, 3, 9]),
        (np.arange(10) > 7, [8, 9]),
        (jnp.arange(10) > 7, [8, 9]),
    ],
)
def test_several_indices_give_a_shorter_trajectory(descent, index, rows):
    part = descent[index]
    assert isinstance(part, gflow.Trajectory) and len(part) == len(rows)
    for name in ("ts", "params", "risk", "grad_norm", "diagnostics"):
        whole = getattr(descent, name)
        assert same(getattr(part, name), jax.tree.map(lambda a: a[np.array(rows)], whole))
    assert part.stats is descent.stats and "gradient descent" in repr(part)


@pytest.mark.parametrize(
    "index",
    [slice(3, 3), [], slice(None, None, -1), [3, 1], [1, 1], "w", 1.5, True, None, (0, 1)],
    ids=str,
)
def test_other_indices_are_refused(descent, index):
    with pytest.raises(ValueError, match="`index`: got .* wanted a slice, a mask or increasing"):
        descent[index]


@pytest.mark.slow
def test_a_part_keeps_what_was_observed_and_its_own_kinks(flow):
    assert len(flow.kinks) >= 2
    first = int(np.searchsorted(flow.ts, flow.kinks.time[0])) + 1
    part = flow[first:-1]
    assert same(part.observed["weights"], flow.observed["weights"][first:-1])
    times = np.asarray(part.kinks.time)
    assert len(times) == len(flow.kinks) - 1 and times.min() > part.ts[0]
    # The ends of the run count with its first and last saved time.
    assert len(flow[:first].kinks) + len(part.kinks) == len(flow[:].kinks) == len(flow.kinks)
    gflow.plots.kinks(part)


def test_slides_under_way_are_logged_where_a_part_begins():
    kinds = gflow.KinkKind
    log = gflow.KinkLog(
        jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        jnp.zeros(6, int),
        jnp.array([0, 1, 0, 1, 0, 2]),
        jnp.array([0, 0, 0, 0, 0, 1]),
        jnp.array(
            [
                kinds.SLIDE_BEGINS,
                kinds.SLIDE_BEGINS,
                kinds.SLIDE_ENDS_TO_ACTIVE,
                kinds.CROSS_TO_ACTIVE,
                kinds.SLIDE_BEGINS,
                kinds.UNIT_DEGENERATES,
            ]
        ),
        jnp.arange(6) % 2 == 0,
    )
    part = log.within(3.5, 5.0)
    np.testing.assert_array_equal(part.time, [3.5, 4.0, 5.0])
    np.testing.assert_array_equal(part.unit, [1, 1, 0])
    for t in (3.5, 4.5, 5.0):
        assert part.sliding_at(t) == log.sliding_at(t)
    traced = jax.jit(lambda log: log.within(3.5, 5.0))(log)
    assert same(traced.used(), part) and len(traced) == len(log)
    nothing = log.within(7.0, 8.0)
    assert nothing.sliding_at(8.0) == log.sliding_at(8.0)


@pytest.mark.slow
def test_members_are_what_single_flows_are(batch):
    assert batch.batch_shape == (3,) and len(batch.members) == 3
    single = follow(KEYS[2])
    member = batch.member(2)
    # Slots past the early end are gone.
    assert len(member) == len(single) < batch.ts.shape[1]
    np.testing.assert_allclose(member.risk, single.risk, rtol=1e-12)
    np.testing.assert_allclose(member.kinks.time, single.kinks.time, rtol=1e-9)
    np.testing.assert_allclose(member.observed["weights"], single.observed["weights"], rtol=1e-9)
    assert member.result_name == "reached_risk" and same(member, batch.member(-1))
    assert same(member.final, batch.members[2].final)


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        lambda b: b.final,
        lambda b: b[0],
        lambda b: b[1:],
        list,
        len,
        lambda b: b.succeeded,
        lambda b: b.result_name,
        lambda b: b.message,
        lambda b: b.advice(),
        lambda b: b.summary(),
        lambda b: b.to_xarray(),
        lambda b: b.to_pandas(),
        lambda b: gflow.save_trajectory(b, "never"),
        lambda b: gflow.compare(b, b.member(0)),
        lambda b: gflow.compare(b.member(0), b),
        lambda b: gflow.lojasiewicz(b, 0.0),
        lambda b: gflow.pl_constants(RISK, b),
        gflow.plots.risk,
        gflow.plots.grad_norm,
        gflow.plots.kinks,
        gflow.plots.unit_directions,
        gflow.plots.learned_function,
        lambda b: gflow.plots.breakpoints(b, DATA),
        lambda b: jax.jit(lambda t: t.final)(b),
    ],
)
def test_what_makes_no_sense_for_a_batch_names_its_members(batch, use):
    with pytest.raises(ValueError, match=r"trajectory.member\(k\).*trajectory.members"):
        use(batch)


@pytest.mark.slow
def test_a_batch_reads_well(batch):
    text = repr(batch)
    assert "3 (axes (3,))" in text and "3 of 3" in text and "1 reached_risk" in text
    assert f"{batch.member(2).risk[-1]:.6g}" in text and text.count("\n") <= 8
    assert batch._repr_html_().startswith("<table>")


@pytest.mark.slow
def test_members_of_nested_batches():
    descend = lambda key: gflow.descend(
        RISK, gflow.ShallowNet(1, 4, key=key), step_size=0.1, num_steps=9
    )
    keys = jax.random.split(jax.random.key(2), (2, 3))
    batch = jax.vmap(jax.vmap(descend))(keys)
    assert batch.batch_shape == (2, 3) and len(batch.members) == 6
    assert same(batch.member((1, 2)), batch.member(1).member(2))
    assert same(batch.members[5], batch.member((1, 2)))
    for index, error in ((2, IndexError), ((0, 3), IndexError), ((0, 0, 0), ValueError)):
        with pytest.raises(error, match="batch of shape"):
            batch.member(index)
    with pytest.raises(ValueError, match="batch of shape"):
        batch.member((0, 0)).member(0)


def test_a_diverged_member_ends_where_it_diverged():
    net = gflow.ShallowNet(1, 4, key=KEYS[0])
    run = lambda h: gflow.descend(RISK, net, step_size=h, num_steps=99, record=50, throw=False)
    members = jax.vmap(run)(jnp.array([0.1, 1e4])).members
    assert members[0].succeeded and members[1].result_name == "diverged"
    assert len(members[1]) == len(run(1e4)) < len(members[0])


@pytest.mark.slow
def test_under_jit_the_final_network_is_the_last_that_was_reached(batch):
    flow = jax.jit(follow)(KEYS[2])
    assert len(flow) == len(batch.member(2)) < flow.ts.shape[0]
    assert "to inf" not in repr(flow) and len(flow[:].ts) == len(flow)
    assert np.isfinite(flow.final.c) and same(flow.final, flow[-1])
    finals = jax.vmap(lambda key: follow(key).final)(KEYS)
    np.testing.assert_allclose(finals.c, [m.final.c for m in batch.members], rtol=1e-9)
    parts = jax.jit(lambda t: (t[2:9].risk, t[jnp.asarray(3)], list(t[:2])[1]))(flow)
    assert same(parts, (flow.risk[2:9], flow[3], flow[1]))


class Odd(eqx.Module):
    """Leaves of all kinds."""

    weight: jax.Array
    key: jax.Array
    order: jax.Array
    flags: np.ndarray
    activation: Any
    name: str = "odd"

    def __call__(self, x):
        return jnp.sum(self.weight * self.activation(x[self.order]))


@pytest.mark.parametrize(
    ("net", "risk"),
    [
        (jnp.ones(3), lambda p: jnp.sum(p**2)),
        (
            {"a": jnp.zeros(2), "n": jnp.arange(2), "s": "text"},
            lambda p: jnp.sum((p["a"] - 1) ** 2),
        ),
        (eqx.nn.MLP(1, "scalar", 3, 1, key=KEYS[0], activation=jax.nn.gelu), RISK),
        (
            Odd(jnp.ones(1), KEYS[1], jnp.array([0]), np.array([True]), lambda x: x**2),
            RISK,
        ),
    ],
    ids=["array", "dict", "MLP", "leaves of all kinds"],
)
def test_trajectories_of_any_network_read_well(net, risk):
    gd = gflow.descend(risk, net, step_size=0.1, num_steps=3)
    assert "parameter norm" in repr(gd) and "<table>" in gd._repr_html_()
    assert jax.tree.structure(gd[1:].final) == jax.tree.structure(net)
    assert gd.to_xarray().sizes["time"] == 4
    assert list(gd.to_pandas().columns) == ["risk", "grad_norm", "energy"]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_time(flow):
    table = flow.to_pandas()
    assert table.index.name == "time" and len(table) == len(flow)
    np.testing.assert_array_equal(table["observed_bias"], flow.observed["bias"])
    assert "observed_weights" not in table


@pytest.mark.slow
def test_batches_of_other_networks_with_time_scales_have_members():
    observe = {"at_one": lambda net: net(jnp.ones(1))}
    make = lambda key: gflow.descend(
        RISK,
        eqx.nn.MLP(1, "scalar", 3, 1, key=key),
        step_size=0.1,
        num_steps=3,
        time_scales=0.5,
        observe=observe,
    )
    batch = eqx.filter_vmap(make)(KEYS)
    for member, key in zip(batch.members, KEYS):
        np.testing.assert_allclose(member.final(jnp.ones(1)), member.observed["at_one"][-1])
        np.testing.assert_allclose(member.risk, make(key).risk, rtol=1e-12)


@pytest.mark.slow
def test_batches_over_bounds_and_tolerances():
    """The network and the risk are known, and what is given beside them is traced."""
    risk, start = lambda p: jnp.sum((p - 1.0) ** 2), jnp.zeros(1)
    levels = jnp.array([0.1, 0.01])
    solve = lambda level: gflow.solve_flow(
        risk, start, t1=10.0, rtol=1e-6, stop=gflow.Stop(risk=level)
    )
    batch = jax.vmap(solve)(levels)
    for level, member in zip(levels, batch.members):
        assert member.result_name == "reached_risk" and member.risk[-1] <= level
    # The risk exp(-4 t) is at the level at log(10) / 4 and twice that; a step goes beyond.
    first, second = (float(member.ts[-1]) for member in batch.members)
    assert np.log(10) / 4 <= first < 2 * np.log(10) / 4 <= second < 3
    with pytest.raises(gflow.ArgumentError, match="`progress`: .* no jax.vmap"):
        jax.vmap(lambda r: gflow.solve_flow(risk, start, t1=1.0, rtol=r, progress=True))(levels)


def test_the_kinks_of_a_batch_are_those_of_its_members(batch):
    for ask in (
        lambda log: log.counts(),
        lambda log: log.names,
        lambda log: log.sliding_at(1.0),
        lambda log: log.branchings(),
    ):
        with pytest.raises(ValueError, match=r"`kinks`: got those of a batch.*member\(k\)"):
            ask(batch.kinks)
        ask(batch.member(0).kinks)
