import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

import gflow

plt.switch_backend("agg")


@pytest.fixture(scope="module")
def descents(wave, smooth_net):
    return {
        f"h = {h}": gflow.descend(wave, smooth_net, step_size=h, num_steps=int(10 / h))
        for h in (0.1, 0.05, 0.025)
    }


def draw(function, *arguments, **options) -> Axes:
    _, ax = plt.subplots()
    assert function(*arguments, ax=ax, **options) is ax
    fresh = function(*arguments, **options)
    assert isinstance(fresh, Axes) and fresh is not ax
    ax.figure.canvas.draw()
    plt.close("all")
    return ax


def test_risk_and_gradient_norm(smooth_flow, descents):
    ax = draw(gflow.plots.risk, descents | {"flow": smooth_flow})
    assert len(ax.lines) == 4 and ax.get_xscale() == ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), smooth_flow.risk[1:])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [*descents, "flow"]
    draw(gflow.plots.grad_norm, smooth_flow)
    shifted = draw(gflow.plots.risk, smooth_flow, limit=float(smooth_flow.risk[-1]))
    assert len(shifted.lines[0].get_xdata()) == 198


def test_divergent_curves_do_not_flatten_the_others(smooth_flow, wave, smooth_net):
    wild = gflow.descend(wave, smooth_net, step_size=5.0, num_steps=2000, throw=False)
    assert not wild.succeeded
    ax = draw(gflow.plots.risk, {"wild": wild, "flow": smooth_flow})
    assert ax.get_ylim()[1] <= 100 * smooth_flow.risk[0]


def test_the_legend_of_many_descents_names_every_second_one_and_the_last(descents):
    (one, *_) = descents.values()
    many = {f"h = {k}": one for k in range(14)}
    named = [t.get_text() for t in draw(gflow.plots.risk, many).get_legend().get_texts()]
    assert named == [f"h = {k}" for k in (*range(0, 14, 2), 13)]


def test_distance_and_order(smooth_flow, descents):
    comparisons = {name: gflow.compare(smooth_flow, gd) for name, gd in descents.items()}
    ax = draw(gflow.plots.distance, comparisons)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), comparisons["h = 0.1"].distance[1:])
    order = gflow.observed_order([0.1, 0.05, 0.025], [c.largest for c in comparisons.values()])
    ax = draw(gflow.plots.order, order)
    assert "order" in ax.get_legend().get_texts()[1].get_text()


def test_descents_that_part_from_the_flow_are_open_circles_in_the_figure_of_the_order():
    partings = (gflow.Parting(0.1, 3.0),)
    order = gflow.ConvergenceOrder(1.0, (0.9, 1.1), (0.2, 0.1, 0.05), (2.0, 1.0, 0.5), partings)
    open_circles = draw(gflow.plots.order, order).lines[-1]
    assert open_circles.get_markerfacecolor() == "none"
    assert list(open_circles.get_xdata()) == [0.1]


def overlapping(axis) -> int:
    """The number of neighbouring tick labels that touch."""
    labels = [t for t in axis.get_ticklabels("both") if t.get_text() and t.get_visible()]
    boxes = [label.get_window_extent() for label in labels]
    inside = axis.axes.get_window_extent().padded(1)
    centres = [((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2) for b in boxes]
    vertical = axis.axis_name == "y"
    kept = [
        b
        for b, (x, y) in zip(boxes, centres)
        if (inside.y0 <= y <= inside.y1 if vertical else inside.x0 <= x <= inside.x1)
    ]
    kept.sort(key=lambda b: b.y0 if vertical else b.x0)
    pairs = itertools.pairwise(kept)
    return sum(b.y0 < a.y1 if vertical else b.x0 < a.x1 for a, b in pairs)


@pytest.mark.parametrize("span", [1.5, 4.0, 12.0, 60.0, 1e4])
def test_labels_of_ticks_do_not_touch(span):
    sizes = np.geomspace(0.1 / span, 0.1, 12)
    order = gflow.ConvergenceOrder(1.0, (0.9, 1.1), tuple(sizes), tuple(3 * sizes))
    figure = plt.figure(figsize=(5.2, 3.8), layout="constrained")
    ax = gflow.plots.order(order, ax=figure.add_subplot())
    figure.canvas.draw()
    assert overlapping(ax.xaxis) == overlapping(ax.yaxis) == 0
    assert len([t for t in ax.get_yticklabels() if t.get_text()]) >= 2
    plt.close(figure)


def test_observed_quantities(smooth_flow, descents):
    times = np.asarray(smooth_flow.ts)
    values = {"test risk": 1 / (1 + times), "signs": np.stack([-times, times], axis=1)}
    flow = eqx.tree_at(
        lambda t: t.observed, smooth_flow, values, is_leaf=lambda node: isinstance(node, dict)
    )
    ax = draw(gflow.plots.observed, flow, "test risk")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), values["test risk"][1:])
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "test risk"
    ax = draw(gflow.plots.observed, flow, "signs")
    assert len(ax.lines) == 2 and ax.get_yscale() == "linear"
    with pytest.raises(ValueError, match="`name`: got 'loss', wanted a quantity of flow: 'sig"):
        gflow.plots.observed(flow, "loss")


def test_learned_function(smooth_flow, wave):
    ax = draw(gflow.plots.learned_function, smooth_flow, wave.x, wave.y)
    last = ax.lines[-1]
    x = np.asarray(last.get_xdata())
    np.testing.assert_allclose(last.get_ydata(), jax.vmap(smooth_flow.final)(x[:, None]))


@pytest.mark.slow
def test_unit_directions_end_where_the_units_end():
    x = jax.random.normal(jax.random.key(0), (20, 3))
    net = gflow.ShallowNet(3, 5, key=jax.random.key(1))
    flow = gflow.solve_flow(gflow.EmpiricalRisk(x, x[:, 0]), net, t1=1.0, rtol=1e-5)
    ax = draw(gflow.plots.unit_directions, flow, ("a", "b", "c"))
    assert sum(len(line.get_xdata()) for line in ax.lines[:2]) == 5
    assert {t.get_text() for t in ax.texts} == {"a", "b", "c"}
    units = np.asarray(flow.final.w * np.abs(flow.final.v)[:, None])
    shown = np.concatenate([np.stack(line.get_data(), axis=1) for line in ax.lines[:2]])
    leading = np.linalg.svd(units)[1][:2]
    np.testing.assert_allclose(np.sum(shown**2), np.sum(leading**2), rtol=1e-10)


def test_networks_that_cannot_be_drawn_are_refused(smooth_flow):
    with pytest.raises(ValueError, match="two or more inputs"):
        gflow.plots.unit_directions(smooth_flow)


@pytest.mark.slow
def test_kinks_and_breakpoints(wave):
    net = gflow.ShallowNet(1, 8, key=jax.random.key(4))
    flow = gflow.solve_flow(wave, net, t1=12.0, rtol=1e-6)
    ax = draw(gflow.plots.kinks, flow)
    shown = sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() != "None")
    assert shown == len(flow.kinks) > 0
    ax = draw(gflow.plots.breakpoints, flow, wave.x)
    assert sum(len(line.get_xdata()) == len(flow) for line in ax.lines) == 8
    legend = {text.get_text() for text in ax.get_legend().get_texts()}
    signs = np.sign(np.asarray(flow.final.v))
    assert legend == {{1: "v > 0", -1: "v < 0"}[sign] for sign in signs}


def test_a_law_that_is_not_called_is_not_drawn_as_if_it_were():
    t = np.geomspace(1, 1e4, 100)
    noise = np.random.default_rng(0).normal(size=100)
    gaps = {"called": t**-1.5, "short": t**-1e-3, "level": 1 + 1e-3 * noise}
    rates = {name: gflow.fit_rate(t, gap) for name, gap in gaps.items()}
    drawn = {name: draw(gflow.plots.gap, t, gaps[name], rate) for name, rate in rates.items()}
    legends = {name: ax.get_legend().get_texts()[1].get_text() for name, ax in drawn.items()}
    assert legends["called"] == rates["called"].formula()
    assert legends["short"] == rates["short"].formula() + ", not called"
    assert legends["level"] == "best fit, not called"


def test_networks_of_several_inputs_have_no_learned_function(smooth_flow):
    wide = gflow.ShallowNet(2, 4, key=jax.random.key(0))
    several = dataclasses.replace(smooth_flow, params=jax.tree.map(lambda a: a[None], wide))
    with pytest.raises(gflow.ArgumentError, match="a network of 2 inputs, wanted a network of one"):
        gflow.plots.learned_function(several, [[0.0, 1.0]], [1.0])


@pytest.mark.slow
def test_kinks_at_the_start_are_drawn_on_the_logarithmic_axis(wave):
    flow = gflow.solve_flow(wave, gflow.ShallowNet(1, 8, key=jax.random.key(4)), t1=12.0, rtol=1e-6)
    early = eqx.tree_at(lambda f: f.kinks.time, flow, flow.kinks.time.at[:2].set(0.0))
    ax = draw(gflow.plots.kinks, early)
    assert ax.get_xscale() == "log"
    assert min(np.min(line.get_xdata()) for line in ax.lines) > 0


def test_kinks_of_several_layers_are_numbered_in_each(smooth_flow):
    """Three units in layer 0 met kinks, and two in layer 1."""
    columns = [[0.5, 0.6, 0.7], [0, 1, 1], [2, 0, 1], [0, 3, 4], [0, 1, 0], [False] * 3]
    log = gflow.KinkLog(*map(jnp.asarray, columns))
    ax = draw(gflow.plots.kinks, dataclasses.replace(smooth_flow, kinks=log))
    drawn = [np.asarray(line.get_ydata()) for line in ax.lines if line.get_marker() == "|"]
    assert sorted(np.concatenate(drawn)) == [2, 3, 4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2", "0", "1"]
    assert {"layer 0", "layer 1"} <= {text.get_text() for text in ax.texts}


def test_kinks_that_were_not_located_are_refused(smooth_flow):
    with pytest.raises(ValueError, match="were not located"):
        gflow.plots.kinks(smooth_flow)


@pytest.mark.slow
def test_a_flow_of_one_saved_time_can_be_drawn(wave, smooth_net):
    flow = gflow.solve_flow(wave, smooth_net, t1=1.0, ts=[0.0])
    draw(gflow.plots.risk, flow)
    draw(gflow.plots.learned_function, flow, wave.x, wave.y)


def test_spectra(wave, smooth_net):
    full = gflow.hessian_spectrum(wave, smooth_net)
    ax = draw(gflow.plots.spectrum, full)
    shown = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert len(shown[f"{full.num_negative} negative"]) == full.num_negative > 0
    np.testing.assert_array_equal(
        np.sort(shown[f"{full.num_positive} positive"]), full.largest[: full.num_positive][::-1]
    )
    assert ax.get_yscale() == "symlog"
    ends = {"dense_up_to": 0, "largest": 2, "smallest": 1}
    ax = draw(gflow.plots.spectrum, gflow.hessian_spectrum(wave, smooth_net, **ends))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "25"]


def test_the_density_of_a_spectrum_has_its_size_for_an_area(wave, smooth_net):
    ends = {"dense_up_to": 0, "largest": 2, "smallest": 1}
    found = gflow.hessian_spectrum(wave, smooth_net, probes=3, depth=10, **ends)
    ax = draw(gflow.plots.spectrum, found)
    assert ax.get_xscale() == "symlog"
    curve = next(line for line in ax.lines if line.get_label() == "density")
    x, height = (np.asarray(a) for a in curve.get_data())
    threshold = 1e-6 * found.sharpness
    along = ax.xaxis.get_transform().transform(x) / threshold
    height = np.nan_to_num(height)  # what is below the foot is not drawn
    assert np.sum(height) * (along[1] - along[0]) == pytest.approx(25, rel=0.05)


def test_curves_reach_as_far_as_they_are_positive_and_so_do_their_laws():
    x = np.array([0.0, 1.0, 10.0, 100.0])
    laws = {"square": lambda at: at**2, "three": 3}
    ax = draw(gflow.plots.curves, {"one": (x, x - 1), "two": (x, [x, 2 * x])}, laws=laws)
    one, two, other, square, three = ax.lines
    np.testing.assert_array_equal(one.get_ydata(), [np.nan, np.nan, 9, 99])
    np.testing.assert_array_equal(other.get_ydata(), [np.nan, 2, 20, 200])
    assert tuple(two.get_color()) == tuple(other.get_color()) != tuple(one.get_color())
    np.testing.assert_allclose(np.take(square.get_ydata(), [0, -1]), [1, 1e4])
    assert ax.get_ylim()[1] < 1e4 and set(three.get_ydata()) == {3}
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["one", "two", "square", "three"]


def test_a_constant_law_widens_the_axis_until_it_is_seen():
    curve = {"curve": (np.arange(1.0, 5), np.arange(1.0, 5))}
    ax = draw(gflow.plots.curves, curve, laws={"bound": 40}, x="linear", y="linear")
    assert ax.get_ylim()[1] > 40 and ax.get_xscale() == ax.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"curves": {"a": np.ones(3)}}, "no pair for 'a'"),
        ({"curves": {"a": (np.ones(3), np.ones(4))}}, r"shapes \(3,\) and \(4,\) for 'a'"),
        ({"laws": {"b": lambda at: at[:2]}}, "values of shape"),
        ({"curves": {}, "laws": {"b": 1}}, "laws alone"),
        ({"x": "loglog"}, "`x`: got 'loglog'"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(wrong, message, unchecked_annotations):
    with pytest.raises(ValueError, match=message):
        gflow.plots.curves(**({"curves": {"a": (np.ones(3), np.ones(3))}} | wrong))
    plt.close("all")


@pytest.fixture(scope="module")
def falling():
    """A sum of squares, and its flows by the number of parameters that move."""
    starts = {3: jnp.ones(3), 2: jnp.array([1.0, -1.0]), 1: jnp.ones(1), 0: jnp.zeros(2)}
    squares = lambda theta: jnp.arange(1.0, 1 + len(theta)) @ theta**2
    return squares, {k: gflow.solve_flow(squares, start, t1=1.0) for k, start in starts.items()}


def test_the_landscape_of_two_parameters_has_their_values_on_its_axes(falling):
    squares, flows = falling
    ax = draw(gflow.plots.landscape, squares, flows[2])
    np.testing.assert_allclose(np.stack(ax.lines[0].get_data(), axis=1), flows[2].params)
    (contours,) = ax.collections
    # Each level set is one of θ₀² + 2 θ₁².
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        np.testing.assert_allclose(squares(path.vertices.T), level, rtol=0.02)


def test_the_landscape_of_one_parameter_is_the_curve_of_the_risk(falling):
    squares, flows = falling
    ax = draw(gflow.plots.landscape, squares, flows[1])
    curve, path = ax.lines[:2]
    np.testing.assert_allclose(curve.get_ydata(), curve.get_xdata() ** 2)
    np.testing.assert_allclose(path.get_data(), [flows[1].params[:, 0], flows[1].risk])


def test_the_landscape_of_more_parameters_is_around_the_end(falling):
    squares, flows = falling
    ax = draw(gflow.plots.landscape, squares, {"flow": flows[3], "again": flows[3]})
    path = np.stack(ax.lines[0].get_data(), axis=1)
    np.testing.assert_allclose(path[-1], 0, atol=1e-15)
    theta = np.asarray(flows[3].params)
    lengths = np.linalg.norm(theta - theta[-1], axis=1)
    # Two directions have nearly all of the path.
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), lengths, rtol=0.02, atol=1e-3)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["flow", "again"]


def test_landscapes_that_cannot_be_drawn_are_refused(falling):
    squares, flows = falling
    with pytest.raises(ValueError, match="no parameter moves"):
        gflow.plots.landscape(squares, flows[0])
    with pytest.raises(ValueError, match="a network in 'b' of other shapes than in 'a'"):
        gflow.plots.landscape(squares, {"a": flows[2], "b": flows[3]})
    plt.close("all")


def test_panels_have_letters_and_are_filled_row_by_row():
    axes = gflow.plots.panels(4, columns=3)
    assert [ax.texts[0].get_text() for ax in axes] == list("abcd")
    rows = [ax.get_subplotspec().rowspan.start for ax in axes]
    assert rows == [0, 0, 0, 1] and axes[0].figure is axes[3].figure
    with pytest.raises(ValueError, match="at most 26 panels"):
        gflow.plots.panels(27)
    plt.close("all")


def test_several_flows_have_several_colours(smooth_flow):
    for draw_them in (gflow.plots.risk, gflow.plots.grad_norm):
        ax = draw(draw_them, {"one": smooth_flow, "two": smooth_flow})
        assert len({tuple(line.get_color()) for line in ax.lines}) == 2
