"use strict";
// The curves of a page answer a reader: values at a step, zoom, smoothing. They are drawn without
// this script; it draws them again by the rules of charts.py. All share one view: what is looked at
// in one chart is seen in all of them.
const SIDE = 1000, MARGIN = 0.06, MAX_TICKS = 5, MAX_MARKED = 40;
const SVG = "http://www.w3.org/2000/svg";
const FARTHEST_CLICK = 6; // pixels that a pointer may move and still have clicked

const element = (id) => document.getElementById(id);
const figures = JSON.parse(element("figures").textContent);
const readout = element("readout");
const charts = [...document.querySelectorAll(".plot[data-chart]")].map(chartOf);
const last = Math.max(...charts.map((chart) => chart.last));
const view = { from: 0, to: null, at: null, share: 0.02 }; // to: null is each chart's own last step

function chartOf(plot) {
  const figure = figures[plot.dataset.chart];
  const steps = [...new Set(figure.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const parts = Object.fromEntries(
    ["area", "grid", "levels", "x-ticks", "y-ticks", "x-title"].map((name) => [
      name,
      plot.querySelector(`.${name}`),
    ]),
  );
  const groups = [...plot.querySelectorAll(".series")];
  const reads = [...plot.querySelectorAll(".read")];
  return { ...figure, plot, steps, parts, groups, reads, step: parts["x-title"].textContent };
}

// ---- drawing: as charts.py does -------------------------------------------------------------

function meansOf(y, share) {
  const sums = [0];
  for (const value of y) sums.push(sums[sums.length - 1] + value);
  const reach = Math.max(1, Math.round((y.length * share) / 2));
  return y.map((_, i) => {
    const near = Math.min(reach, i, y.length - 1 - i);
    return (sums[i + near + 1] - sums[i - near]) / (2 * near + 1);
  });
}

function spanOf(values, scale) {
  if (scale === "share") return [-0.02, 1.02];
  let low = Infinity, high = -Infinity;
  for (const value of values) (low = Math.min(low, value)), (high = Math.max(high, value));
  if (scale === "from zero") low = Math.min(low, 0);
  const room = MARGIN * (high - low) || Math.abs(high) / 10 || 1;
  return [scale === "from zero" && low === 0 ? low : low - room, high + room];
}

function ticksOf([from, to], least) {
  const raw = Math.max((to - from) / MAX_TICKS, least);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * (1 - 1e-9));
  const found = [];
  for (let i = Math.ceil(from / step - 1e-9); i <= Math.floor(to / step + 1e-9); i++) {
    found.push([i * step, tickWord(i * step, step)]);
  }
  return found;
}

function tickWord(value, step) {
  if (Math.abs(value) < step / 2) return "0";
  if (step < 1e-3 || step >= 1e6) {
    const power = Math.floor(Math.log10(Math.abs(value)) + 1e-9);
    return `${Number((value / 10 ** power).toFixed(3))}e${power}`.replaceAll("-", "−");
  }
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const form = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString("en-US", form).replaceAll("-", "−");
}

// The indices of the points in view, and one on either side, so that lines leave the square.
function shown(line, from, to) {
  let first = line.x.findIndex((x) => x >= from), end = line.x.findIndex((x) => x > to);
  if (first < 0) first = line.x.length;
  if (end < 0) end = line.x.length;
  return [Math.max(0, first - 1), Math.min(line.x.length, end + 1)];
}

function draw(chart) {
  const from = view.from, to = view.to ?? (chart.last || 1);
  const means = chart.lines.map((line) => line.smooth && view.share && meansOf(line.y, view.share));
  const ranges = chart.lines.map((line) => shown(line, from, to));
  const heights = chart.lines.flatMap((line, i) =>
    ["y", "low", "high"].flatMap((name) => line[name]?.slice(...ranges[i]) ?? []),
  );
  if (view.to === null) heights.push(...chart.levels);
  const span = spanOf(heights.length ? heights : [0, 1], chart.scale);
  const x = (step) => ((SIDE * (step - from)) / (to - from)).toFixed(1);
  const y = (value) => (SIDE * (1 - (value - span[0]) / (span[1] - span[0]))).toFixed(1);
  const path = (xs, ys) => (xs.length ? "M" + xs.map((at, i) => `${x(at)} ${y(ys[i])}`).join("L") : "");
  chart.lines.forEach((line, i) => {
    const xs = line.x.slice(...ranges[i]), ys = line.y.slice(...ranges[i]);
    const paths = { line: path(xs, ys) };
    if (means[i]) paths.mean = path(xs, means[i].slice(...ranges[i]));
    if (!line.smooth && xs.length <= MAX_MARKED) {
      paths.dots = xs.map((at, i) => `M${x(at)} ${y(ys[i])}h0`).join("");
    }
    if (line.high) {
      const high = line.high.slice(...ranges[i]), low = line.low.slice(...ranges[i]).reverse();
      paths.band = path([...xs, ...[...xs].reverse()], [...high, ...low]) + "Z";
    }
    const group = chart.groups[i];
    group.classList.toggle("smooth", Boolean(means[i]));
    for (const kind of ["band", "line", "mean", "dots"]) put(group, kind, paths[kind]);
  });
  const shares = [0, 0.25, 0.5, 0.75, 1].map((share) => [share, `${100 * share}%`]);
  const ticks = chart.scale === "share" ? shares : ticksOf(span, 0);
  const rule = (value) => make("path", { d: `M0 ${y(value)}H${SIDE}` });
  chart.parts.grid.replaceChildren(...ticks.map(([value]) => rule(value)));
  chart.parts.levels.replaceChildren(...chart.levels.map(rule));
  const word = (said, place) => Object.assign(make("text", place), { textContent: said });
  chart.parts["y-ticks"].replaceChildren(
    ...ticks.map(([value, said]) => word(said, { x: "100%", y: `${y(value) / 10}%` })),
  );
  chart.parts["x-ticks"].replaceChildren(
    ...ticksOf([from, to], 1).map(([step, said]) => word(said, { x: `${x(step) / 10}%`, y: "1em" })),
  );
  chart.x = x;
  chart.span = [from, to];
}

function make(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// The path of a kind in a group: changed, added where there is none, taken away where there is no d.
function put(group, kind, d) {
  const there = group.querySelector(`.${kind}`);
  if (!d) there?.remove();
  else if (there) there.setAttribute("d", d);
  else group.append(make("path", { class: kind, d }));
}

// ---- what a reader does ---------------------------------------------------------------------

function written(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const said = size >= 1e-3 && size < 1e7
    ? value.toLocaleString("en-US", { maximumSignificantDigits: size < 1e4 ? 4 : 7, maximumFractionDigits: size < 1e4 ? undefined : 0 })
    : value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return said.replaceAll("-", "−");
}

// What a line says at a step: its value there, or the last before it, then with that step.
function valueAt(line, step) {
  let i = line.x.findLastIndex((x) => x <= step);
  if (i < 0) i = 0;
  let said = written(line.y[i]);
  if (line.high) {
    const ends = readout.dataset.range.replace("{low}", written(line.low[i]));
    said += ` ${ends.replace("{high}", written(line.high[i]))}`;
  }
  if (line.smooth && view.share) {
    said += ` ${readout.dataset.mean.replace("{value}", written(meansOf(line.y, view.share)[i]))}`;
  }
  return line.x[i] === step ? said : `${said} ${atStep(line.x[i])}`;
}

const atStep = (step) => readout.dataset.step.replace("{step}", step.toLocaleString("en-US"));

function nearest(steps, step) {
  return steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));
}

function point(chart, at) {
  chart.parts.area.querySelector(".cursor")?.remove();
  const step = at === null ? null : nearest(chart.steps, at);
  const inside = step !== null && step >= chart.span[0] && step <= chart.span[1];
  if (inside) {
    const x = chart.x(step);
    chart.parts.area.append(make("line", { class: "cursor", x1: x, x2: x, y1: 0, y2: SIDE }));
  }
  chart.parts["x-title"].textContent = inside ? atStep(step) : chart.step;
  chart.reads.forEach((read, i) => {
    read.textContent = inside ? valueAt(chart.lines[i], step) : "";
  });
  return inside ? step : null;
}

function look(at) {
  view.at = at;
  for (const chart of charts) point(chart, at);
}

function zoom(from, to) {
  const whole = to === null || to - from >= last;
  view.from = whole ? 0 : Math.max(0, from);
  view.to = whole ? null : Math.min(last, Math.max(to, view.from + 1));
  element("all-steps").hidden = whole;
  redraw();
}

function redraw() {
  for (const chart of charts) draw(chart), point(chart, view.at);
}

// Where a pointer is, as a step.
function stepAt(chart, event) {
  const box = chart.parts.area.getBoundingClientRect();
  const [from, to] = chart.span;
  const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  return from + share * (to - from);
}

function answerPointer(chart) {
  const { area } = chart.parts;
  let began = null;
  area.addEventListener("pointerdown", (event) => {
    began = { x: event.clientX, step: stepAt(chart, event), box: make("rect", { class: "selection", y: 0, height: SIDE }) };
    area.setPointerCapture(event.pointerId);
    area.append(began.box);
  });
  area.addEventListener("pointermove", (event) => {
    const step = stepAt(chart, event);
    if (began) {
      const ends = [began.step, step].map((one) => Number(chart.x(one))).sort((a, b) => a - b);
      began.box.setAttribute("x", ends[0]);
      began.box.setAttribute("width", ends[1] - ends[0]);
    }
    look(step);
  });
  const end = (event) => {
    if (!began) return;
    const { x, step } = began;
    began.box.remove();
    began = null;
    const far = event.type === "pointerup" && Math.abs(event.clientX - x) > FARTHEST_CLICK;
    if (far) zoom(...[step, stepAt(chart, event)].sort((a, b) => a - b));
  };
  area.addEventListener("pointerup", end);
  area.addEventListener("pointercancel", end);
  area.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && look(null));
  area.addEventListener("dblclick", () => zoom(0, null));
}

function answerKeys(chart) {
  chart.plot.tabIndex = 0;
  chart.plot.addEventListener("keydown", (event) => {
    const [from, to] = chart.span;
    const seen = chart.steps.filter((step) => step >= from && step <= to);
    const now = view.at === null ? -1 : seen.indexOf(nearest(seen, view.at));
    const middle = view.at ?? (from + to) / 2;
    const act = {
      ArrowRight: () => look(seen[Math.min(now + 1, seen.length - 1)]),
      ArrowLeft: () => look(seen[now < 0 ? seen.length - 1 : Math.max(now - 1, 0)]),
      Home: () => look(seen[0]),
      End: () => look(seen[seen.length - 1]),
      "+": () => zoom(middle - (middle - from) / 2, middle + (to - middle) / 2),
      "-": () => zoom(middle - (middle - from) * 2, middle + (to - middle) * 2),
      Escape: () => (look(null), zoom(0, null)),
    }[event.key];
    if (!act || !seen.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    const keys = [...chart.plot.querySelectorAll(".keys li:not(.level)")];
    const values = keys.map((key) => key.textContent.trim()).join("; ");
    readout.textContent = view.at === null ? "" : `${chart.parts["x-title"].textContent}: ${values}`;
  });
}

for (const chart of charts) draw(chart), answerPointer(chart), answerKeys(chart);
const smoothing = element("smoothing");
smoothing?.addEventListener("input", () => {
  view.share = smoothing.value / 100;
  smoothing.nextElementSibling.textContent = `${smoothing.value}%`;
  redraw();
});
element("all-steps").addEventListener("click", () => zoom(0, null));
document.querySelector(".controls").hidden = false;
