"""What a page to watch holds, and movies."""

import base64
import dataclasses
import functools
import html
import json
import re
import stat

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gflow
from tests.helpers import kink_problems


@pytest.fixture(scope="module")
def problem():
    return kink_problems.small_problem()


@pytest.fixture(scope="module")
def flow(problem):
    return kink_problems.watched_flow(problem)


@pytest.fixture(scope="module")
def descents(problem):
    """One with every step recorded, and one that diverges."""
    descend = functools.partial(gflow.descend, *problem, record=np.arange(601), throw=False)
    sizes = {"h = 0.02": 0.02, "wild": 50.0}
    return {label: descend(step_size=h, num_steps=600) for label, h in sizes.items()}


def with_networks(trajectory, make):
    """The trajectory with other networks at its times, each of a key of its own."""
    nets = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), len(trajectory.ts)))
    return dataclasses.replace(trajectory, params=nets, kinks=None)


def story(explorer) -> dict:
    """The data that the page holds."""
    (text,) = re.findall(r'id="story">(.*?)</script>', explorer.html, flags=re.DOTALL)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def unpacked(packed: dict) -> np.ndarray:
    raw = np.frombuffer(base64.b64decode(packed["data"]), np.dtype(packed["type"]))
    if "low" not in packed:
        return raw
    step = (packed["high"] - packed["low"]) / 65534
    return np.where(raw == 65535, np.nan, packed["low"] + step * raw)


def test_the_page_holds_the_function_and_its_breakpoints_at_each_time(problem, flow):
    risk, _ = problem
    page = story(gflow.plots.explore(flow, risk.x, risk.y))
    (shown,) = page["trajectories"]
    view = shown["view"]
    x = unpacked(view["x"])
    values = unpacked(view["values"]).reshape(60, len(x))
    exact = jax.vmap(lambda net: jax.vmap(net)(jnp.asarray(x)[:, None]))(flow.params)
    # A level of 16 bits is 5e-5 of a span of 3; x in float32.
    np.testing.assert_allclose(values, exact, atol=1e-4)
    points, (w, b) = view["breakpoints"], (np.asarray(a) for a in (flow.params.w, flow.params.b))
    exact = -b / w[:, :, 0]
    places = unpacked(points["places"]).reshape(60, 8)
    seen = np.isfinite(places)
    np.testing.assert_allclose(places[seen], exact[seen], atol=1e-4)
    heights = jax.vmap(jax.vmap(lambda net, at: net(at[None]), (None, 0)))(flow.params, exact)
    found = unpacked(points["heights"]).reshape(60, 8)
    np.testing.assert_allclose(found[seen], heights[seen], atol=1e-4)
    # At the start b = 0, and all breakpoints are one.
    inside = [len(np.unique(row[np.abs(row) <= 1].round(9))) for row in exact]
    assert points["inside"] == inside and inside[0] == 1 and max(inside) > 2
    np.testing.assert_allclose(shown["risk"], flow.risk, rtol=1e-5)


def test_the_page_holds_the_kinks_and_slides_of_the_flow(flow):
    (shown,) = story(gflow.plots.explore(flow))["trajectories"]
    raster, log = shown["raster"], flow.kinks
    np.testing.assert_allclose(unpacked(raster["times"]), log.time, rtol=1e-6)
    for name, column in (("unit", log.unit), ("row", log.datum), ("kind", log.kind)):
        np.testing.assert_array_equal(unpacked(raster[name]), column)
    assert raster["met"] == [int(np.sum(np.asarray(log.time) <= t)) for t in flow.ts]
    assert raster["sliding"] == [len(log.sliding_at(float(t))) for t in flow.ts]
    assert max(raster["sliding"]) > 0
    counts = log.counts()
    assert len(raster["slides"]) == counts["slide begins"] + counts["unit degenerates"]


def test_times_of_kinks_are_flow_times_also_in_another_time(flow):
    changed = np.asarray(flow.ts) ** 2
    other = dataclasses.replace(flow, observed={"flow_time": jnp.asarray(changed)})
    (shown,) = story(gflow.plots.explore(other))["trajectories"]
    np.testing.assert_allclose(shown["times"], changed, rtol=1e-5)
    kinks = np.interp(flow.kinks.time, flow.ts, changed)
    np.testing.assert_allclose(unpacked(shown["raster"]["times"]), kinks, rtol=1e-6)


def test_each_trajectory_is_at_its_saved_time_nearest_to_that_of_the_slider(flow, descents):
    later = eqx.tree_at(lambda t: t.ts, descents["h = 0.02"], descents["h = 0.02"].ts * 2)
    page = story(gflow.plots.explore({"later": later, "flow": flow}))
    times = np.array(page["times"])
    # Of those of the flow, and of later ones of the descent, every other one.
    assert len(times) == 200 and times[-1] == pytest.approx(24)
    assert set(times[times <= 12]) < {float(f"{t:.6g}") for t in np.asarray(flow.ts)}
    first, second = (np.array(shown["times"]) for shown in page["trajectories"])
    np.testing.assert_allclose(first, np.round(times / 0.04) * 0.04, atol=1e-5)
    np.testing.assert_allclose(second, np.minimum(times, 12))


def test_of_many_saved_times_200_are_shown_with_both_ends(descents):
    page = story(gflow.plots.explore(descents["h = 0.02"]))
    assert len(page["times"]) == 200 and not page["log"]
    assert page["times"][0] == 0 and page["times"][-1] == pytest.approx(12)
    assert page["trajectories"][0]["label"] == "descent"


def test_descents_that_diverge_do_not_flatten_the_others(problem, flow, descents):
    risk, _ = problem
    assert not descents["wild"].succeeded
    page = story(gflow.plots.explore({"flow": flow} | descents, risk.x, risk.y))
    wild = page["trajectories"][2]
    assert wild["note"].startswith("It ended at t = ") and "diverged" in wild["note"].lower()
    low, high = page["height"]
    assert high - low < 6
    for shown in page["trajectories"]:
        jumps = shown["view"]["breakpoints"]["jumps"]
        assert max(abs(jumps["low"]), abs(jumps["high"])) < 100


def test_nan_and_infinity_are_missing(flow):
    risk = np.asarray(flow.risk).copy()
    risk[3:5] = np.nan, np.inf
    broken = eqx.tree_at(
        lambda t: (t.risk, t.params.w), flow, (risk, flow.params.w.at[7].set(np.nan))
    )
    (shown,) = story(gflow.plots.explore(broken))["trajectories"]
    assert shown["risk"][2:6].count(None) == 2
    values = unpacked(shown["view"]["values"]).reshape(60, -1)
    assert np.isnan(values[7]).all() and np.isfinite(values[6]).all()


def test_labels_and_titles_cannot_end_the_script(flow):
    wild = '</script><script>alert("1")</script>'
    found = gflow.plots.explore({wild: flow}, title=f"<b>{wild}{{{{data}}}}")
    assert found.html.count("</script>") == 2 and "<b>" not in found.html
    assert story(found)["trajectories"][0]["label"] == wild
    (inner,) = re.findall(r'srcdoc="([^"]*)"', found._repr_html_())
    assert html.unescape(inner) == found.html


def test_the_page_asks_for_nothing_from_elsewhere(flow, tmp_path):
    found = gflow.plots.explore(flow)
    path = found.save(tmp_path / "flow.html")
    text = path.read_text(encoding="utf-8")
    assert text == found.html and "default-src 'none'" in text
    assert not re.search(r"https?:|\bsrc=|<link|@import|url\(", text)
    assert "200" not in repr(found).split("page")[0] and "60" in repr(found)


def test_units_with_two_inputs_are_directions(flow):
    many = with_networks(flow, lambda key: gflow.ShallowNet(2, 5, key=key))
    (shown,) = story(gflow.plots.explore(many))["trajectories"]
    view = shown["view"]
    points = unpacked(view["points"]).reshape(60, 5, 2)
    w = np.asarray(many.params.w)
    exact = w / np.linalg.norm(w, axis=2, keepdims=True)
    assert view["normalised"]
    np.testing.assert_allclose(points, exact, atol=1e-4)
    weights = unpacked(view["weights"]).reshape(60, 5)
    np.testing.assert_allclose(weights, many.params.v, atol=1e-3)


def test_units_with_more_inputs_are_on_principal_axes_of_the_first_trajectory(flow):
    nets = [lambda key, s=s: gflow.ShallowNet(4, 5, key=key, scale=s) for s in (1.0, 2.0)]
    one, two = (with_networks(flow, make) for make in nets)
    first, second = story(gflow.plots.explore({"one": one, "two": two}))["trajectories"]
    points, larger = (unpacked(t["view"]["points"]).reshape(60, 5, 2) for t in (first, second))
    units = np.abs(one.params.v)[..., None] * np.asarray(one.params.w)
    leading = np.linalg.svd(units[-1])[1][:2]
    np.testing.assert_allclose(np.sum(points[-1] ** 2), np.sum(leading**2), rtol=1e-3)
    seen = np.abs(4 * points) < np.abs(points).max()
    np.testing.assert_allclose(larger[seen], 4 * points[seen], atol=1e-3)


def test_of_wide_networks_the_largest_units_are_seen(flow):
    wide = with_networks(flow, lambda key: gflow.ShallowNet(1, 400, key=key))
    (shown,) = story(gflow.plots.explore(wide))["trajectories"]
    assert shown["view"]["breakpoints"]["units"] == 320
    assert "320 largest of 400" in shown["note"]


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda key: eqx.nn.MLP(1, "scalar", 4, 2, key=key), 1),
        (lambda key: eqx.nn.MLP("scalar", "scalar", 4, 2, key=key), 1),
        (lambda key: eqx.nn.Sequential([eqx.nn.Linear(1, 3, key=key)]), 3),
        (lambda key: gflow.ShallowNet(1, 3, 6, key=key), 4),
    ],
)
def test_networks_with_one_input_are_functions(flow, make, outputs):
    deep = with_networks(flow, make)
    (shown,) = story(gflow.plots.explore(deep))["trajectories"]
    view = shown["view"]
    assert view["type"] == "function" and view["outputs"] == outputs
    x = unpacked(view["x"]).astype(float)
    net = deep.final
    scalar = getattr(net, "in_size", None) == "scalar"
    exact = jax.vmap(lambda at: net(at if scalar else at[None]))(x).reshape(len(x), -1)
    values = unpacked(view["values"]).reshape(60, len(x), outputs)[-1]
    low, high = view["values"]["low"], view["values"]["high"]
    expected = np.clip(exact[:, :outputs], low, high)
    np.testing.assert_allclose(values, expected, atol=1e-4 * (high - low))


def test_other_networks_have_norms_of_their_matrices(flow):
    deep = with_networks(flow, lambda key: eqx.nn.MLP(3, 2, 4, 2, key=key))
    (shown,) = story(gflow.plots.explore(deep))["trajectories"]
    view = shown["view"]
    assert view["names"] == ["layers.0", "layers.1", "layers.2"]
    exact = np.linalg.norm(np.asarray(deep.params.layers[1].weight).reshape(60, -1), axis=1)
    np.testing.assert_allclose(view["norms"][1], exact, rtol=1e-5)


class Weighted(eqx.Module):
    """⟨w, x⟩, which one number is an input of, too."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(self.w * x)


def test_the_columns_of_the_data_are_the_inputs_of_networks_that_do_not_say(flow):
    own = with_networks(flow, lambda key: Weighted(jax.random.normal(key, (3,))))
    kind = lambda *data: story(gflow.plots.explore(own, *data))["trajectories"][0]["view"]["type"]
    assert kind(np.zeros((4, 3)), np.zeros(4)) == "norms"
    assert kind(np.zeros((4, 1)), np.zeros(4)) == "function"


def test_without_data_the_target_sets_the_span(flow):
    step = gflow.piecewise.step()
    page = story(gflow.plots.explore(flow, target=step))
    assert page["span"] == pytest.approx([-1.08, 1.08])
    # A jump is no line.
    (gap, _) = [k for k, (x, _) in enumerate(page["target"]) if x is None]
    before, after = (page["target"][k][1] for k in (gap - 1, gap + 1))
    assert before != after and story(gflow.plots.explore(flow))["target"] == []


def test_flows_without_kinks_and_single_times_have_pages(flow):
    none, smooth = flow[:2], dataclasses.replace(flow, kinks=None)
    assert len(none.kinks) == 0
    for trajectory in (none, flow[:1], smooth):
        (shown,) = story(gflow.plots.explore(trajectory))["trajectories"]
        assert shown["raster"] is None


def test_a_page_with_eight_wide_networks_and_a_thousand_kinks_each_is_small(flow):
    wide = with_networks(flow, lambda key: gflow.ShallowNet(1, 100, key=key))
    copies = -(-1000 // len(flow.kinks))
    log = jax.tree.map(lambda a: jnp.repeat(a, copies), flow.kinks)
    long = dataclasses.replace(wide, kinks=dataclasses.replace(log, kind=0 * log.kind))

    def size(trajectories):
        return len(gflow.plots.explore(trajectories).html)

    # What belongs to times is in proportion to their number, here 60 of at most 200.
    eight = {f"flow {k}": long for k in range(8)}
    once = size(dataclasses.replace(long[:1], kinks=log))
    assert 8 * once + (size(eight) - 8 * once) * 200 / 60 < 1.6e6


def test_of_too_many_kinks_those_of_slides_are_kept(flow):
    copies = -(-11_000 // len(flow.kinks))
    log = jax.tree.map(lambda a: jnp.repeat(a, copies), flow.kinks)
    crossings = dataclasses.replace(log, kind=jnp.zeros_like(log.kind).at[::1000].set(6))
    begins = crossings.kind.at[jnp.arange(len(log)) % 1000 == 0].set(2)
    long = dataclasses.replace(flow, kinks=dataclasses.replace(crossings, kind=begins))
    (shown,) = story(gflow.plots.explore(long))["trajectories"]
    kinds = unpacked(shown["raster"]["kind"])
    assert len(kinds) == 10_000 and np.sum(kinds == 2) == np.sum(np.asarray(begins) == 2)
    assert f"10,000 of {len(log):,} kinks" in shown["note"]


X, Y = np.zeros(4), np.zeros(4)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda t: [t, t], {}, "`trajectories`: got a list of 2, wanted a trajectory, or up to 8"),
        (lambda t: {}, {}, "`trajectories`: got 0 of them"),
        (lambda t: dict.fromkeys(range(9), t), {}, "`trajectories`: got 9 of them"),
        (lambda t: t.final, {}, "`trajectories`: got a ShallowNet, wanted a Trajectory"),
        (lambda t: t, {"x": np.zeros((4, 2))}, "`x`: got an array of shape (4, 2)"),
        (lambda t: t, {"x": "text"}, "`x`: got 'text', wanted numbers of shape (rows,)"),
        (lambda t: t, {"y": Y}, "`x`: got None, wanted the inputs that belong to `y`"),
        (lambda t: t, {"x": X, "y": np.zeros(3)}, "`y`: got an array of shape (3,)"),
        (lambda t: t, {"critical_value": np.nan}, "`critical_value`: got nan"),
    ],
)
def test_misuse_is_named(flow, change, arguments, message):
    with pytest.raises(gflow.ArgumentError, match=re.escape(message)):
        gflow.plots.explore(change(flow), **arguments)


def test_a_page_needs_a_folder(flow, tmp_path):
    with pytest.raises(gflow.ArgumentError, match="`path`: got .*, wanted a file in a folder"):
        gflow.plots.explore(flow).save(tmp_path / "none" / "flow.html")


def test_a_movie_has_its_frames_and_its_length(problem, flow, descents, tmp_path):
    risk, _ = problem
    path = tmp_path / "flow.gif"
    options = {"critical_value": 0.01, "num_frames": 4, "seconds": 2.0}
    several = {"flow": flow, "wild": descents["wild"]}
    assert gflow.plots.movie(several, path, risk.x, risk.y, **options) == path
    with Image.open(path) as film:
        frames = []
        for k in range(film.n_frames):
            film.seek(k)
            frames.append(np.asarray(film.convert("L"), float))
        assert len(frames) == 4 and film.info["duration"] == 500
    assert np.abs(frames[-1] - frames[0]).max() > 100


def test_mp4_needs_ffmpeg_which_gets_every_frame(flow, tmp_path, monkeypatch):
    deep = with_networks(flow, lambda key: eqx.nn.MLP(3, 2, 4, 2, key=key))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(gflow.ArgumentError, match=r"ffmpeg is not on the PATH, wanted .* \.gif"):
        gflow.plots.movie(deep, tmp_path / "flow.mp4")
    # One that keeps what it is given.
    fake = tmp_path / "ffmpeg"
    fake.write_text(
        '#!/bin/sh\nfor last; do :; done\necho "$@" > "$last.said"\n/bin/cat > "$last"\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    gflow.plots.movie(deep, tmp_path / "flow.mp4", num_frames=3, seconds=1.0)
    said = (tmp_path / "flow.mp4.said").read_text()
    width, height = (int(n) for n in re.search(r"-s (\d+)x(\d+)", said).groups())
    assert width % 2 == height % 2 == 0
    assert (tmp_path / "flow.mp4").stat().st_size == 3 * 4 * width * height


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flow.avi", {}, r"wanted a file that ends in \.gif or \.mp4"),
        ("none/flow.gif", {}, "wanted a file in a folder that is there"),
        ("flow.gif", {"num_frames": 0}, "`num_frames`: got 0"),
        ("flow.gif", {"seconds": -1.0}, r"`seconds`: got -1\.0"),
    ],
)
def test_misuse_of_movies_is_named(flow, tmp_path, name, options, message):
    with pytest.raises(gflow.ArgumentError, match=message):
        gflow.plots.movie(flow, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())
