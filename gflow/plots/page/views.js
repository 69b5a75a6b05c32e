// ---- What is seen of a network ---------------------------------------------------------------

function functionFigure(owner, view) {
  const xs = unpack(view.x), values = unpack(view.values), {outputs} = view;
  const points = view.breakpoints, n = xs.length;
  const places = points && unpack(points.places), heights = points && unpack(points.heights);
  const jumps = points && unpack(points.jumps), most = points && largest(jumps);
  // Corners lie between the places at which N is known.
  const curve = (k, output) => {
    const found = [];
    for (let i = 0; i < n; i++) found.push([xs[i], values[(k * n + i) * outputs + output]]);
    if (points && outputs === 1)
      for (let i = k * points.units; i < (k + 1) * points.units; i++)
        if (jumps[i] && Number.isFinite(heights[i])) found.push([places[i], heights[i]]);
    return found.sort((a, b) => a[0] - b[0]);
  };
  const draw = (pen, fig, k) => {
    for (let output = 0; output < outputs; output++) {
      const found = curve(k, output);
      line(pen, found.map((p) => fig.X(p[0])), found.map((p) => fig.Y(p[1])));
    }
  };
  const data = [unpack(story.x), unpack(story.y)];
  return new Figure({
    owner,
    title: `${owner.label}: the function`,
    note: `${points
      ? "Dots are its breakpoints, as large as the jump of the slope: red up, blue down."
      : ""} ${owner.note}`.trim(),
    x: new Axis(...story.span),
    y: new Axis(...story.height),
    names: {x: "x", y: "N(x)"},
    still(pen, fig) {
      data[0].forEach((x, i) => {
        for (let j = 0; j < story.outputs; j++) {
          const y = data[1][i * story.outputs + j];
          if (Number.isFinite(y)) dot(pen, fig.X(x), fig.Y(y), 2, colours.data);
        }
      });
      stroke(pen, colours.soft, 1.5, [6, 4]);
      const [xs, ys] = [0, 1].map((e) => story.target.map((p) => (p[e] === null ? NaN : p[e])));
      line(pen, xs.map((x) => fig.X(x)), ys.map((y) => fig.Y(y)));
      stroke(pen, colours.data, 1.2, [1.5, 3]);
      draw(pen, fig, 0);
      pen.setLineDash([]);
    },
    moving(pen, fig, k) {
      stroke(pen, colours.ink, 1.8);
      draw(pen, fig, k);
      for (let i = 0; points && i < points.units; i++) {
        const at = k * points.units + i;
        if (!Number.isFinite(places[at]) || !jumps[at]) continue;
        const x = fig.X(places[at]), size = Math.sqrt(Math.abs(jumps[at]) / most);
        stroke(pen, ofSign(jumps[at]), 1.2);
        line(pen, [x, x], [fig.box.bottom, fig.box.bottom - 7]);
        if (outputs === 1) dot(pen, x, fig.Y(heights[at]), 1.5 + 5 * size, ofSign(jumps[at]));
      }
    },
  });
}

// What the figures of units share, so that they can be compared: sizes, and a square.
function boundsOf(views) {
  const most = (name) => Math.max(...views.map((v) => largest(unpack(v[name]))));
  const ends = [Infinity, -Infinity, Infinity, -Infinity];
  for (const points of views.map((v) => unpack(v.points)))
    points.forEach((value, i) => {
      const at = 2 * (i % 2);
      if (value < ends[at]) ends[at] = value;
      if (value > ends[at + 1]) ends[at + 1] = value;
    });
  const side = 1.1 * Math.max(ends[1] - ends[0], ends[3] - ends[2]) || 1;
  const axis = (low, high) => new Axis((low + high - side) / 2, (low + high + side) / 2);
  return {weights: most("weights"), lengths: most("lengths"), x: axis(...ends.slice(0, 2)),
    y: axis(...ends.slice(2))};
}

function unitFigure(owner, view, bounds) {
  const points = unpack(view.points), {units} = view;
  const weights = unpack(view.weights), lengths = unpack(view.lengths);
  const path = (fig, unit, frames) => {
    const at = [...Array(frames).keys()].map((k) => 2 * (k * units + unit));
    return [at.map((i) => fig.X(points[i])), at.map((i) => fig.Y(points[i + 1]))];
  };
  return new Figure({
    owner,
    square: true,
    title: `${owner.label}: the units`,
    note: `${view.normalised
      ? "Dots are directions w/|w|, as large as |v|; rays have the length |v| |w|."
      : "Dots are |v| w, as large as |v|, with their paths."} Red: v > 0, blue: v < 0. ${owner.note}`,
    x: view.normalised ? new Axis(-1.2, 1.2) : bounds.x,
    y: view.normalised ? new Axis(-1.2, 1.2) : bounds.y,
    names: {x: view.axes[0], y: view.axes[1]},
    still(pen, fig) {
      stroke(pen, colours.line, 1.2);
      if (view.normalised) {
        pen.beginPath();
        pen.arc(fig.X(0), fig.Y(0), fig.X(1) - fig.X(0), 0, 2 * Math.PI);
        pen.stroke();
      } else for (let unit = 0; unit < units; unit++) line(pen, ...path(fig, unit, last + 1));
    },
    moving(pen, fig, k) {
      for (let unit = 0; unit < units; unit++) {
        const at = k * units + unit, colour = ofSign(weights[at]);
        const [x, y] = [points[2 * at], points[2 * at + 1]];
        if (!Number.isFinite(x) || !Number.isFinite(y)) continue;
        stroke(pen, colour, 1);
        pen.globalAlpha = 0.6;
        if (view.normalised) {
          const length = lengths[at] / bounds.lengths;
          line(pen, [fig.X(0), fig.X(length * x)], [fig.Y(0), fig.Y(length * y)]);
        } else line(pen, ...path(fig, unit, k + 1));
        pen.globalAlpha = 0.8;
        const size = Math.sqrt(Math.abs(weights[at]) / bounds.weights);
        dot(pen, fig.X(x), fig.Y(y), 1.5 + 6 * size, colour);
        pen.globalAlpha = 1;
      }
    },
  });
}

function normFigure(owner, view) {
  const y = axisOf(view.norms.flat(), view.norms.flat().every((v) => v === null || v > 0));
  return new Figure({
    owner,
    title: `${owner.label}: norms of the parameters`,
    note: owner.note,
    x: timeAxis,
    y,
    overTime: "veiled",
    names: {y: "Euclidean norm"},
    still(pen, fig) {
      view.norms.forEach((norms, j) => {
        stroke(pen, colourOf(j), 1.5);
        line(pen, owner.times.map((t) => fig.X(t)), norms.map((v) => (v === null ? NaN : fig.Y(v))));
      });
    },
    moving(pen, fig, k) {
      const now = fig.X(story.times[k]), onLeft = now > (fig.box.left + fig.box.right) / 2;
      pen.font = "11px system-ui, sans-serif";
      pen.textAlign = onLeft ? "right" : "left";
      pen.textBaseline = "middle";
      const taken = [];
      view.norms.forEach((norms, j) => {
        if (norms[k] === null) return;
        dot(pen, now, fig.Y(norms[k]), 4, colourOf(j));
        let height = fig.Y(norms[k]);
        while (taken.some((other) => Math.abs(other - height) < 12)) height += 3;
        taken.push(height);
        stroke(pen, colours.page, 3);
        pen.strokeText(view.names[j], now + (onLeft ? -8 : 8), height);
        pen.fillText(view.names[j], now + (onLeft ? -8 : 8), height);
      });
    },
  });
}

// ---- Kinks and risk --------------------------------------------------------------------------

function rasterFigure(owner) {
  const {raster} = owner, layer = unpack(raster.layer), unit = unpack(raster.unit);
  const times = unpack(raster.times), row = unpack(raster.row), kind = unpack(raster.kind);
  // A line for each unit up to the last one of its layer that met a kink.
  const tops = [];
  layer.forEach((l, i) => (tops[l] = Math.max(tops[l] ?? 0, unit[i] + 1)));
  const firsts = [0];
  for (let l = 0; l < tops.length; l++) firsts.push(firsts[l] + (tops[l] ?? 1));
  const at = (i) => firsts[layer[i]] + unit[i];
  const lines = [...times.keys()].map(at);
  const [low, high] = [Math.min(...lines), Math.max(...lines)], ticks = [];
  const every = Math.max(1, Math.ceil((high - low + 1) / 12));
  for (let l = 0; l + 1 < firsts.length; l++)
    for (let u = 0; firsts[l] + u < firsts[l + 1]; u += every)
      if (firsts[l] + u >= low && firsts[l] + u <= high)
        ticks.push([firsts[l] + u, firsts.length > 2 ? `${l} · ${u}` : String(u)]);
  const height = (fig) => Math.min(7, Math.max(1.5, 0.4 * (fig.Y(low) - fig.Y(low + 1))));
  const mark = (pen, fig, i) => {
    const [x, y, h] = [fig.X(times[i]), fig.Y(lines[i]), height(fig)];
    if (kind[i] < 2) {
      stroke(pen, colours.crossing, kind[i] ? 1.6 : 1);
      return line(pen, [x, x], [y - h, y + h]);
    }
    const colour = kind[i] === 2 ? colours.active : kind[i] === 5 ? colours.ink : colours.negative;
    dot(pen, x, y, Math.max(2.5, 0.6 * h), colour);
  };
  const told = (i) =>
    (firsts.length > 2 ? `layer ${layer[i]}, ` : "") +
    `unit ${unit[i]}, row ${row[i]}, t = ${words(times[i])}: ${story.kinds[kind[i]]}`;
  owner.kinks = {times, told};
  let marked = -1;
  return new Figure({
    owner,
    title: `${owner.label}: kinks of the units`,
    note: "Strokes are crossings, heavier if the unit becomes inactive at the row; red lines are slides.",
    x: timeAxis,
    y: new Axis(low - 0.7, high + 0.7),
    overTime: "veiled",
    names: {y: firsts.length > 2 ? "layer · unit" : "unit", ticks},
    still(pen, fig) {
      pen.globalAlpha = 0.45;
      for (const [l, u, , begin, end] of raster.slides) {
        stroke(pen, colours.active, Math.max(2, 0.8 * height(fig)));
        const y = fig.Y(firsts[l] + u);
        line(pen, [fig.X(begin), fig.X(end)], [y, y]);
      }
      pen.globalAlpha = 1;
      for (let i = 0; i < times.length; i++) mark(pen, fig, i);
    },
    moving(pen, fig) {
      if (marked < 0) return;
      stroke(pen, colours.ink, 1.5);
      pen.beginPath();
      pen.arc(fig.X(times[marked]), fig.Y(lines[marked]), 9, 0, 2 * Math.PI);
      pen.stroke();
    },
    // What is said of the kink near a place, if there is one.
    hover(x, y, fig, only = -1) {
      let nearest = 14 ** 2;
      marked = only;
      for (let i = 0; only < 0 && i < times.length; i++) {
        const away = (fig.X(times[i]) - x) ** 2 + (fig.Y(lines[i]) - y) ** 2;
        if (away < nearest) [nearest, marked] = [away, i];
      }
      return marked < 0 ? "" : told(marked);
    },
  });
}

function riskFigure() {
  const all = story.trajectories, critical = story.critical;
  // Divergence would flatten everything else.
  const flow = all.find((t) => t.kind === "flow") ?? all[0];
  const cap = 10 * largest(flow.kind === "flow" ? flow.risk : flow.risk.slice(0, 1));
  const log = flow.risk.some((v) => v > 0);
  const values = all.flatMap((t) => t.risk).filter((v) => v !== null && v <= cap);
  const colour = (t) => colourOf(all.indexOf(t));
  // Flows lie in front, narrower, so that what is behind them remains visible.
  const shown = () => [...all].filter((t) => t.shown).sort((s, t) => (s.kind > t.kind) - (s.kind < t.kind));
  return new Figure({
    title: "Risk",
    note: critical === null ? "" : `Dashed: the critical value ${words(critical, 6)}.`,
    x: timeAxis,
    y: axisOf(critical === null ? values : [...values, critical], log),
    overTime: "veiled",
    names: {y: "risk L"},
    still(pen, fig) {
      if (critical !== null) {
        stroke(pen, colours.soft, 1.2, [6, 4]);
        line(pen, [fig.box.left, fig.box.right], [fig.Y(critical), fig.Y(critical)]);
      }
      for (const t of shown()) {
        stroke(pen, colour(t), t.kind === "flow" ? 1.4 : 2.6);
        const xs = t.times.map((s) => (s < timeAxis.low ? NaN : fig.X(s)));
        line(pen, xs, t.risk.map((v) => (v === null ? NaN : fig.Y(v))));
      }
    },
    moving(pen, fig, k) {
      for (const t of shown().filter((t) => t.risk[k] !== null))
        dot(pen, fig.X(t.times[k]), fig.Y(t.risk[k]), t.kind === "flow" ? 3.5 : 5, colour(t));
    },
  });
}
