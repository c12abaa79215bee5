// How the scores are spread: the inspected images above the line, the good parts of the calibration below it.

const BINS = 64;
let bars = null;

function bin(values, low, width) {
  const counts = new Array(BINS).fill(0);
  for (const value of values) counts[Math.min(BINS - 1, Math.max(0, Math.floor((value - low) / width)))]++;
  return counts;
}

function countBars() {
  const scored = images.filter((image) => known(image.score));
  const every = [...scored.map((image) => image.score), ...data.calibration];
  if (every.length < 2 || (threshold === null && !data.calibration.length)) return null;
  const bounds = threshold === null ? every : [...every, threshold];
  const low = bounds.reduce((a, b) => Math.min(a, b));
  const high = bounds.reduce((a, b) => Math.max(a, b));
  const margin = (high - low || 1) * 0.03;
  const width = (high - low + 2 * margin) / BINS;
  const of = (verdict) => bin(scored.filter((image) => image.verdict === verdict).map((image) => image.score), low - margin, width);
  return { low: low - margin, width, fail: of("fail"), pass: of("pass"), good: bin(data.calibration, low - margin, width) };
}

/** Round numbers across the range, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(Number(value.toPrecision(10)));
  return found;
}

function drawHistogram() {
  bars ??= countBars() ?? false;
  $("histogram").hidden = !bars;
  if (!bars) return;
  const drawing = $("histogram").querySelector("svg");
  const across = drawing.clientWidth || 600;
  const high = bars.low + BINS * bars.width;
  const x = (value) => ((value - bars.low) / (high - bars.low)) * across;
  const base = data.calibration.length ? 84 : 112;
  const floor = data.calibration.length ? 112 : base;
  drawing.setAttribute("viewBox", `0 0 ${across} 132`);
  const parts = [];
  const tallest = Math.max(1, ...bars.fail.map((number, i) => number + bars.pass[i]));
  const deepest = Math.max(1, ...bars.good);
  const step = across / BINS;
  const bar = (kind, i, y, height) => parts.push(svg("rect", { class: kind, x: i * step + 0.5, y, width: Math.max(1, step - 1), height }));
  for (let i = 0; i < BINS; i++) {
    const pass = bars.pass[i] && Math.max(1.5, (bars.pass[i] / tallest) * (base - 16));
    const fail = bars.fail[i] && Math.max(1.5, (bars.fail[i] / tallest) * (base - 16));
    if (pass) bar("pass", i, base - pass, pass);
    if (fail) bar("fail", i, base - pass - fail, fail);
    if (bars.good[i]) bar("good", i, base + 1, Math.max(1.5, (bars.good[i] / deepest) * (floor - base - 2)));
  }
  parts.push(svg("line", { class: "axis", x1: 0, x2: across, y1: base + 0.5, y2: base + 0.5 }));
  for (const value of ticks(bars.low, high, Math.max(3, across / 90))) parts.push(svg("text", { x: x(value), y: 127, "text-anchor": "middle" }, short(value)));
  if (threshold !== null) parts.push(...thresholdLine(x(threshold), floor, across));
  if (state.range) parts.push(svg("rect", { class: "brush", x: x(state.range[0]), width: Math.max(1, x(state.range[1]) - x(state.range[0])), y: 0, height: floor }));
  const here = shown[state.current];
  if (here && known(here.score)) parts.push(svg("path", { class: "here", d: `M${x(here.score)} ${base}l-4.5 8h9z` }));
  drawing.replaceChildren(...parts);
}

function thresholdLine(at, floor, across) {
  const right = at < across - 110;
  return [
    svg("line", { class: "threshold", x1: at, x2: at, y1: 2, y2: floor + 3 }),
    svg("text", { class: "limit", x: at + (right ? 5 : -5), y: 11, "text-anchor": right ? "start" : "end" }, `threshold ${short(threshold)}`),
  ];
}

function drawHistogramKey() {
  const key = (kind, text) => h("span", {}, h("i", { className: `swatch ${kind}` }), text);
  const parts = [h("span", {}, h("b", {}, "Scores")), key("fail", "fail"), key("pass", "pass")];
  if (data.calibration.length) parts.push(key("good", `${plural(data.calibrated_on, "good part")} of the calibration, below`));
  $("histogram-key").append(...parts, h("span", { className: "hint" }, "drag to filter"));
}

/** Dragging over the bars filters by score; a click clears. */
function watchHistogram() {
  const drawing = $("histogram").querySelector("svg");
  let from = null;
  const at = (event) => {
    const box = drawing.getBoundingClientRect();
    return bars.low + (Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))) * BINS * bars.width;
  };
  drawing.onpointerdown = (event) => { from = at(event); drawing.setPointerCapture(event.pointerId); };
  drawing.onpointermove = (event) => {
    if (from === null) return;
    state.range = [Math.min(from, at(event)), Math.max(from, at(event))];
    drawHistogram();
  };
  drawing.onpointerup = (event) => {
    const wide = from !== null && Math.abs(at(event) - from) > bars.width * 0.5;
    from = null;
    refresh({ range: wide ? state.range : null });
  };
}
