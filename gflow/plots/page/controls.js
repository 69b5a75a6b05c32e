// ---- The table of numbers --------------------------------------------------------------------

const COLUMNS = [
  ["t", "t", (t, k) => words(t.times[k])],
  ["risk", "risk L", (t, k) => words(t.risk[k])],
  ["breakpoints", "breakpoints", (t, k) => t.view.breakpoints?.inside[k]],
  ["kinks", "kinks met", (t, k) => t.raster?.met[k]],
  ["sliding", "sliding", (t, k) => t.raster?.sliding[k]],
];

function table() {
  const cells = [];
  const shown = COLUMNS.filter(([, , of]) => story.trajectories.some((t) => of(t, 0) !== undefined));
  const head = $("readout").tHead.insertRow();
  for (const name of ["shown", ...shown.map((c) => c[1])]) {
    const cell = head.appendChild(document.createElement("th"));
    cell.scope = "col";
    cell.textContent = name;
  }
  story.trajectories.forEach((t, j) => {
    const row = $("readout").tBodies[0].insertRow();
    const label = row.appendChild(document.createElement("th")).appendChild(document.createElement("label"));
    label.parentElement.scope = "row";
    const box = label.appendChild(document.createElement("input"));
    Object.assign(box, {type: "checkbox", checked: t.shown});
    box.addEventListener("change", () => { t.shown = box.checked; arrange(); });
    label.append(swatch(t), t.label);
    for (const [name, , of] of shown) {
      const cell = row.insertCell();
      cell.dataset.name = name;
      cells.push((k) => (cell.textContent = of(t, k) ?? ""));
    }
  });
  return (k) => cells.forEach((fill) => fill(k));
}

// ---- Time ------------------------------------------------------------------------------------

let frame = 0, asked = false, playing = false, since = 0;

function show(k) {
  frame = Math.min(Math.max(k, 0), last);
  if (asked) return;
  asked = true;
  requestAnimationFrame(draw);
}

function draw() {
  asked = false;
  const text = `t = ${words(story.times[frame])}`;
  $("time").value = frame;
  $("time").setAttribute("aria-valuetext", text);
  $("now").textContent = text;
  fill(frame);
  for (const fig of figures) if (fig.visible) fig.drawMoving(frame);
}

function play(on) {
  playing = on && last > 0;
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  if (!playing) return;
  if (frame === last) show(0);
  since = performance.now();
  requestAnimationFrame(advance);
}

// All frames in ten seconds; in few steps where less motion is wanted.
function advance(now) {
  if (!playing) return;
  const [pace, stride] = calm.matches ? [500, Math.ceil((last + 1) / 20)] : [10_000 / (last + 1), 1];
  const due = Math.floor((now - since) / pace);
  if (due > 0) {
    since += due * pace;
    show(frame + due * stride);
  }
  if (frame === last) play(false); else requestAnimationFrame(advance);
}

function arrange() {
  for (const fig of figures) fig.element.hidden = fig.owner !== undefined && !fig.owner.shown;
  readColours();
  story.trajectories.forEach((t, j) => {
    for (const square of t.swatches) square.style.background = colourOf(j);
  });
  for (const fig of figures) {
    fig.fit();
    if (fig.visible) fig.drawStill();
  }
  show(frame);
  grow();
}

// ---- Hands -----------------------------------------------------------------------------------

function follow(fig) {
  const {drawing} = fig;
  const place = (event) => {
    const box = drawing.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const drag = (event) => {
    const [x] = place(event), {left, right} = fig.box;
    play(false);
    show(frameAt(timeAxis.value(Math.min(Math.max((x - left) / (right - left), 0), 1))));
  };
  drawing.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    drawing.setPointerCapture(event.pointerId);
    // A finger may be about to scroll.
    if (event.pointerType === "mouse") drag(event);
    tell(fig, event, place(event));
  });
  drawing.addEventListener("pointerup", (event) => {
    if (event.pointerType !== "mouse") drag(event);
  });
  drawing.addEventListener("pointermove", (event) => {
    if (drawing.hasPointerCapture(event.pointerId)) drag(event);
    tell(fig, event, place(event));
  });
  drawing.addEventListener("pointerleave", () => tell(fig, null, [-1e3, -1e3]));
}

function tell(fig, event, [x, y]) {
  if (!fig.hover) return;
  const text = fig.hover(x, y, fig), tip = $("tip");
  if (tip.hidden && !text) return;
  tip.hidden = !text;
  show(frame);
  if (!text) return;
  tip.textContent = text;
  $("event").textContent = text;
  const left = event.pageX - tip.offsetWidth / 2, most = innerWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.min(Math.max(left, 4), Math.max(most, 4))}px`;
  tip.style.top = `${event.pageY - tip.offsetHeight - 14}px`;
}

// From kink to kink of the first flow that is shown.
function step(by) {
  const fig = figures.find((f) => f.hover && f.owner.shown);
  if (!fig) return;
  const {times, told} = fig.owner.kinks, now = story.times[frame];
  let next = fig.current === undefined ? -1 : fig.current + by;
  if (fig.at !== frame) {
    const first = times.findIndex((t) => t > now);
    next = by > 0 ? (first < 0 ? times.length - 1 : first) : (first < 0 ? times.length : first) - 1;
  }
  fig.current = Math.min(Math.max(next, 0), times.length - 1);
  fig.hover(0, 0, fig, fig.current);
  $("event").textContent = told(fig.current);
  play(false);
  fig.at = frameAt(times[fig.current]);
  show(fig.at);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const from = event.target.tagName, moves = {
    ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10,
    Home: -Infinity, End: Infinity,
  };
  const sideways = /^(ArrowLeft|ArrowRight|Home|End)$/.test(event.key);
  if (event.key === " " && from !== "BUTTON" && event.target.type !== "checkbox") play(!playing);
  // Elsewhere the others scroll the page.
  else if (event.key in moves && (event.target.id === "time" || sideways)) {
    play(false);
    show(frame + moves[event.key]);
  } else return;
  event.preventDefault();
}

// ---- The page --------------------------------------------------------------------------------

const SHOWN_AT_FIRST = 3;
story.trajectories.forEach((t, j) => (t.shown = j < SHOWN_AT_FIRST));
const bounds = boundsOf(story.trajectories.map((t) => t.view).filter((v) => v.type === "units"));
const MAKERS = {function: functionFigure, units: unitFigure, norms: normFigure};
for (const t of story.trajectories) MAKERS[t.view.type](t, t.view, bounds);
for (const t of story.trajectories) if (t.raster) rasterFigure(t);
riskFigure();
const fill = table();

$("time").max = last;
$("time").addEventListener("input", () => { play(false); show($("time").valueAsNumber); });
$("play").addEventListener("click", () => play(!playing));
document.addEventListener("keydown", keys);
document.querySelector(".events").hidden = !story.trajectories.some((t) => t.raster);
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
figures.filter((fig) => fig.overTime).forEach(follow);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", arrange);

// Within another page the frame is as high as the content.
function grow() {
  try {
    if (frameElement) frameElement.style.height = `${document.body.scrollHeight + 4}px`;
  } catch { /* another origin may not know the frame */ }
}

let width = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  arrange();
}).observe(document.body);
