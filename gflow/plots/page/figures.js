// Numbers, axes, and figures on two canvases: one for what stays, drawn once for each size, and one
// for what moves, drawn once a frame.

const $ = (id) => document.getElementById(id);
const story = JSON.parse($("story").textContent);
const last = story.times.length - 1;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// ---- Numbers -------------------------------------------------------------------------------

const ARRAYS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array};
const NOT_A_NUMBER = 65535;

function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const raw = new ARRAYS[packed.type](bytes.buffer);
  if (packed.low === undefined) return raw;
  const step = (packed.high - packed.low) / (NOT_A_NUMBER - 1);
  return Float32Array.from(raw, (k) => (k === NOT_A_NUMBER ? NaN : packed.low + step * k));
}

const raised = (k) => [...String(k)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

function words(value, digits = 4) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size === 0 || (size >= 1e-3 && size < 1e5)) return sign + Number(size.toPrecision(digits));
  const [factor, power] = size.toExponential(digits - 1).split("e");
  return `${sign}${Number(factor) === 1 ? "" : `${Number(factor)}·`}10${raised(Number(power))}`;
}

// The frame whose time is nearest.
function frameAt(time) {
  let low = 0, high = last;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (story.times[middle] <= time) low = middle; else high = middle;
  }
  const place = (t) => (story.log ? Math.log(Math.max(t, timeAxis.low)) : t);
  return place(time) - place(story.times[low]) < place(story.times[high]) - place(time) ? low : high;
}

// ---- Axes ----------------------------------------------------------------------------------

class Axis {
  constructor(low, high, log = false) {
    Object.assign(this, {low, high, log});
    [this.a, this.b] = [this.place(low), this.place(high)];
  }
  place(value) { return this.log ? Math.log10(Math.max(value, this.low)) : value; }
  fraction(value) { return (this.place(value) - this.a) / (this.b - this.a); }
  value(fraction) {
    const place = this.a + fraction * (this.b - this.a);
    return this.log ? 10 ** place : place;
  }
  ticks(most) {
    const found = [], decades = this.b - this.a;
    if (this.log && decades >= 1.5) {
      const step = Math.ceil(decades / most);
      for (let k = Math.ceil(this.a - 1e-9); k <= this.b + 1e-9; k += step) found.push(10 ** k);
      return found;
    }
    if (this.log) {
      for (let k = Math.floor(this.a); k <= this.b; k++)
        for (const digit of decades < 0.5 ? [1, 1.5, 2, 3, 4, 5, 6, 8] : [1, 2, 5]) {
          const value = digit * 10 ** k;
          if (value >= this.low && value <= this.high) found.push(value);
        }
      return found;
    }
    const rough = (this.high - this.low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    for (let k = Math.ceil(this.low / step); k * step <= this.high; k++) found.push(k * step);
    return found;
  }
}

function axisOf(values, log) {
  const shown = values.filter((v) => Number.isFinite(v) && v !== null && (!log || v > 0));
  if (!shown.length) return new Axis(log ? 0.1 : 0, 1, log);
  let low = Math.min(...shown), high = Math.max(...shown);
  if (log) return new Axis(low / 1.25, Math.max(high, low * 1.01) * 1.25, true);
  const margin = 0.05 * (high - low) || 0.1 * Math.abs(low) || 1;
  return new Axis(low - margin, high + margin);
}

const later = story.log ? story.times.filter((t) => t > 0) : story.times;
const timeAxis = last
  ? new Axis(later[0], Math.max(story.times[last], later[0] * 1.01), story.log)
  : axisOf(story.times, false);

// ---- Figures -------------------------------------------------------------------------------

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "line", "page", "veil", "active", "negative", "data", "crossing"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  colours.series = style.getPropertyValue("--series").trim().split(/\s+/);
}

const figures = [];

// A square in the colour of a trajectory, as in the figure of the risk.
function swatch(trajectory) {
  const square = document.createElement("span");
  square.className = "swatch";
  square.setAttribute("aria-hidden", "true");
  (trajectory.swatches ??= []).push(square);
  return square;
}

const colourOf = (k) => colours.series[k % colours.series.length];

class Figure {
  // `still` and `moving` draw; `square`: both axes have one unit; `owner`: whose figure it is.
  constructor({title, note, x, y, still, moving, square, owner, overTime, names, hover}) {
    Object.assign(this, {x, y, still, moving, square, owner, overTime, names, hover});
    this.element = document.createElement("figure");
    const caption = this.element.appendChild(document.createElement("figcaption"));
    if (owner) caption.appendChild(swatch(owner));
    caption.append(title);
    const drawing = this.element.appendChild(document.createElement("div"));
    drawing.className = "drawing" + (overTime ? " over-time" : "");
    drawing.setAttribute("role", "img");
    drawing.setAttribute("aria-label", note ? `${title}. ${note}` : title);
    this.pens = [0, 1].map(() => drawing.appendChild(document.createElement("canvas")).getContext("2d"));
    this.drawing = drawing;
    if (note) this.element.appendChild(document.createElement("small")).textContent = note;
    $("figures").appendChild(this.element);
    figures.push(this);
  }
  fit() {
    const {width, height} = this.drawing.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    Object.assign(this, {width, height});
    for (const pen of this.pens) {
      pen.canvas.width = Math.round(width * ratio);
      pen.canvas.height = Math.round(height * ratio);
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.box = {left: 48, right: width - 16, top: 20, bottom: height - 34};
    if (this.square) {
      const side = Math.min(this.box.right - this.box.left, this.box.bottom - this.box.top);
      const middle = (this.box.left + this.box.right) / 2;
      Object.assign(this.box, {left: middle - side / 2, right: middle + side / 2});
      this.box.bottom = this.box.top + side;
    }
  }
  X(value) { return this.box.left + this.x.fraction(value) * (this.box.right - this.box.left); }
  Y(value) { return this.box.bottom - this.y.fraction(value) * (this.box.bottom - this.box.top); }
  get visible() { return !this.element.hidden && this.width > 0; }
  inside(pen, draw) {
    const {left, right, top, bottom} = this.box;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, right - left, bottom - top);
    pen.clip();
    draw();
    pen.restore();
  }
  drawStill() {
    const pen = this.pens[0], {left, right, top, bottom} = this.box;
    pen.clearRect(0, 0, this.width, this.height);
    pen.font = "11px system-ui, sans-serif";
    pen.lineWidth = 1;
    pen.strokeStyle = colours.line;
    pen.fillStyle = colours.soft;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const tick of this.x.ticks(Math.max(2, Math.floor((right - left) / 62)))) {
      line(pen, [this.X(tick), this.X(tick)], [top, bottom]);
      pen.fillText(words(tick, 3), this.X(tick), bottom + 4);
    }
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const rows = this.names?.ticks || this.y.ticks(Math.max(2, Math.floor((bottom - top) / 34)));
    for (const tick of rows) {
      const [value, text] = Array.isArray(tick) ? tick : [tick, words(tick, 3)];
      line(pen, [left, right], [this.Y(value), this.Y(value)]);
      pen.fillText(text, left - 5, this.Y(value));
    }
    pen.textBaseline = "bottom";
    pen.fillText(this.names?.x ?? "flow time t", right, this.height - 1);
    pen.textAlign = "left";
    pen.fillText(this.names?.y ?? "", left, top - 3);
    this.inside(pen, () => this.still?.(pen, this));
  }
  drawMoving(k) {
    const pen = this.pens[1];
    pen.clearRect(0, 0, this.width, this.height);
    this.inside(pen, () => {
      if (this.overTime) {
        const now = this.X(story.times[k]);
        if (this.overTime === "veiled") {
          pen.fillStyle = colours.veil;
          pen.fillRect(now, this.box.top, this.box.right - now, this.box.bottom - this.box.top);
        }
        stroke(pen, colours.soft, 1);
        line(pen, [now, now], [this.box.top, this.box.bottom]);
      }
      this.moving(pen, this, k);
    });
  }
}

function stroke(pen, colour, width, dash = []) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.setLineDash(dash);
}

// A line through points; it breaks where one is missing.
function line(pen, xs, ys) {
  pen.beginPath();
  let broken = true;
  for (let i = 0; i < xs.length; i++) {
    if (!Number.isFinite(xs[i]) || !Number.isFinite(ys[i])) broken = true;
    else if (broken) { pen.moveTo(xs[i], ys[i]); broken = false; }
    else pen.lineTo(xs[i], ys[i]);
  }
  pen.stroke();
}

function dot(pen, x, y, radius, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

const largest = (values) => values.reduce((most, v) => Math.max(most, Math.abs(v) || 0), 0) || 1;
const ofSign = (value) => (value < 0 ? colours.negative : colours.active);
