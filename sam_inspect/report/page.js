// The list: which images, in which order, and only those cards that are on the screen.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const VERDICTS = ["fail", "pass", "error"];

/** An element with properties and children; strings become text, never markup. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role" && name !== "style") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
function svg(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const known = (value) => value !== null && value !== undefined;
const whole = (value) => Math.round(value).toLocaleString("en");
const short = (value) => (!known(value) ? "–" : Math.abs(value) >= 100 ? whole(value) : String(Number(Number(value).toPrecision(3))));
const totalMs = (image) => Object.values(image.ms).reduce((sum, ms) => sum + ms, 0);
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

const images = data.images.map((image, index) => ({
  ...image,
  index,
  area: image.defects.reduce((sum, defect) => sum + defect.area, 0),
  search: image.image.toLowerCase(),
}));
const threshold = images.find((image) => known(image.threshold))?.threshold ?? null;
const hasMaps = images.some((image) => image.pictures["heat"]);

// ---- what is shown -------------------------------------------------------------------------------------------------

const initial = { verdict: "all", query: "", type: "", sort: "score", down: true, layout: "rows", range: null };
const state = { ...initial, current: 0, compare: false };
// Rows show the layers side by side, a grid and the enlarged image one over the other: there a heatmap hides what it marks.
const layers = { rows: { heat: true, mask: true }, grid: { heat: false, mask: true }, detail: { heat: false, mask: true } };
let shown = [];

function readAddress() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const name of ["verdict", "query", "type", "sort", "layout"]) state[name] = parameters.get(name) ?? initial[name];
  if (!["all", ...VERDICTS].includes(state.verdict)) state.verdict = "all";
  if (!Object.hasOwn(keys, state.sort)) state.sort = "score";
  if (![...$("type").options].some((option) => option.value === state.type)) state.type = "";
  if (!["rows", "grid"].includes(state.layout)) state.layout = "rows";
  state.down = parameters.has("up") ? false : state.sort !== "name" || parameters.has("down");
}
function writeAddress() {
  const parameters = new URLSearchParams();
  for (const name of ["verdict", "query", "type", "sort", "layout"]) if (state[name] !== initial[name]) parameters.set(name, state[name]);
  if (state.down !== (state.sort !== "name")) parameters.set(state.down ? "down" : "up", "");
  try { history.replaceState(null, "", `#${parameters}`); } catch { /* not allowed in some viewers: nothing is lost */ }
}

const names = new Intl.Collator("en", { numeric: true });
const keys = {
  score: (a, b) => (a.score ?? -Infinity) - (b.score ?? -Infinity) || 0,
  area: (a, b) => a.area - b.area,
  name: (a, b) => names.compare(a.image, b.image),
};
function fitsType(image) {
  const [kind, value] = [state.type.slice(0, 6), state.type.slice(7)];
  if (kind === "folder") return image.folder === value;
  return image.defects.some((defect) => (defect.label ?? "") === value);
}
function fitsButVerdict(image) {
  if (state.query && !image.search.includes(state.query.toLowerCase())) return false;
  if (state.type && !fitsType(image)) return false;
  return !state.range || (known(image.score) && image.score >= state.range[0] && image.score <= state.range[1]);
}

/** Filters and sorts anew, keeping the current image current where it still fits. */
function refresh(change = {}) {
  const before = shown[state.current];
  Object.assign(state, change);
  const fitting = images.filter(fitsButVerdict);
  const sign = state.down ? -1 : 1;
  shown = fitting.filter((image) => state.verdict === "all" || image.verdict === state.verdict);
  shown.sort((a, b) => sign * keys[state.sort](a, b) || names.compare(a.image, b.image));
  state.current = Math.max(0, shown.indexOf(before));
  drawToolbar(fitting);
  writeAddress();
  layOut();
  drawHistogram();
}

// ---- head and toolbar ----------------------------------------------------------------------------------------------

const count = (verdict) => images.filter((image) => image.verdict === verdict).length;

function drawCounts() {
  const [fail, pass, error] = VERDICTS.map(count);
  const judged = fail + pass;
  const ms = images.filter((image) => image.verdict !== "error").map(totalMs);
  const mean = ms.length ? ms.reduce((sum, value) => sum + value, 0) / ms.length : 0;
  const fact = (label, value, note, kind = "") =>
    h("div", { className: kind }, h("dt", {}, label), h("dd", {}, note ? `${value} ` : value, note ? h("small", {}, note) : null));
  $("counts").append(
    fact("Fail", whole(fail), judged ? `${((100 * fail) / judged).toFixed(1)} % fail rate` : "", fail ? "fail" : "zero"),
    fact("Pass", whole(pass), "", pass ? "pass" : "zero"),
    fact("Error", whole(error), "", error ? "error" : "zero"),
    fact("Images", whole(images.length)),
    fact("Threshold", short(threshold)),
    fact("Time an image", mean ? `${mean < 10 ? mean.toFixed(1) : whole(mean)} ms` : "–", mean ? `${short(1000 / mean)} a second` : ""),
  );
  $("shares").setAttribute("aria-label", `${plural(fail, "fail")}, ${pass} pass, ${plural(error, "error")}`);
  [fail, pass, error].forEach((number, i) => number && $("shares").append(h("i", { className: VERDICTS[i], style: `flex:${number}` })));
  const stages = {};
  for (const image of images) for (const [stage, value] of Object.entries(image.ms)) stages[stage] = (stages[stage] ?? 0) + value;
  $("stages").textContent = Object.entries(stages).map(([stage, sum]) => `${stage} ${(sum / Math.max(1, ms.length)).toFixed(1)}`).join("  ·  ");
  $("stages").title = "Mean milliseconds of each stage";
  if (data.files.length) $("links").append(...data.files.flatMap((name) => [h("i", {}, "·"), h("a", { href: name }, name)]));
}

function drawTypes() {
  const tally = (values) => [...values.reduce((map, value) => map.set(value, (map.get(value) ?? 0) + 1), new Map())];
  const options = (kind, entries) => entries.sort(([a], [b]) => names.compare(a, b)).map(([value, number]) =>
    h("option", { value: `${kind}:${value}` }, `${value || "(none)"}  (${number})`));
  const folders = tally(images.map((image) => image.folder));
  const labels = tally(images.flatMap((image) => [...new Set(image.defects.map((defect) => defect.label).filter(known))]));
  $("type").append(h("option", { value: "" }, "All types"));
  if (folders.length > 1) $("type").append(h("optgroup", { label: "Folder" }, ...options("folder", folders)));
  if (labels.length) $("type").append(h("optgroup", { label: "Defect" }, ...options("defect", labels)));
  $("type").hidden = folders.length < 2 && !labels.length;
}

function drawToolbar(fitting) {
  const buttons = ["all", ...VERDICTS].map((verdict) => {
    const number = verdict === "all" ? fitting.length : fitting.filter((image) => image.verdict === verdict).length;
    const label = verdict[0].toUpperCase() + verdict.slice(1);
    const button = h("button", { title: `${label} (${verdict[0]})`, onclick: () => refresh({ verdict }) }, `${label} `, h("small", {}, whole(number)));
    button.dataset.verdict = verdict;
    button.setAttribute("aria-pressed", state.verdict === verdict);
    return button;
  });
  const focused = document.activeElement?.dataset?.verdict;
  $("verdicts").replaceChildren(...buttons);
  if (focused) buttons.find((button) => button.dataset.verdict === focused)?.focus();
  if ($("search").value !== state.query) $("search").value = state.query;
  $("type").value = state.type;
  $("sort").value = state.sort;
  $("direction").textContent = state.down ? "↓" : "↑";
  $("direction").title = state.down ? "Highest first" : "Lowest first";
  $("range").hidden = !state.range;
  if (state.range) $("range").textContent = `score ${short(state.range[0])} to ${short(state.range[1])}  ✕`;
  $("shown").textContent = shown.length === images.length ? plural(images.length, "image") : `${whole(shown.length)} of ${plural(images.length, "image")}`;
  $("none").hidden = shown.length > 0;
  for (const button of document.querySelectorAll("[data-layout]")) button.setAttribute("aria-pressed", button.dataset.layout === state.layout);
  drawToggles();
}

function drawToggles() {
  for (const button of document.querySelectorAll("[data-toggle]")) {
    const name = button.dataset.toggle;
    const context = button.closest("#detail") ? "detail" : state.layout;
    button.setAttribute("aria-pressed", name === "compare" ? state.compare : layers[context][name]);
    button.disabled = name === "heat" && !hasMaps;
  }
}

// ---- one image -----------------------------------------------------------------------------------------------------

/** The image with its layers, filling a box of that many pixels or less; `large` takes the large file. */
function picture(image, width, height, { heat = false, mask = false, large = false, what = "original" } = {}) {
  const source = image.pictures[large ? "images" : "thumbs"];
  if (!source || !image.size) return h("span", { className: image.error ? "missing error" : "missing" }, image.error ? "cannot be read" : "no picture saved");
  const [H, W] = image.size;
  const scale = Math.min(width / W, height / H);
  const pic = h("div", { className: "pic", style: `width:${W * scale}px;height:${H * scale}px` });
  pic.append(h("img", { className: "photo", src: source, alt: `${image.file}: ${what}`, loading: "lazy", decoding: "async", draggable: false }));
  if (heat && image.pictures["heat"]) pic.append(h("img", { src: image.pictures["heat"], alt: "", loading: "lazy", decoding: "async", draggable: false }));
  if (mask && image.defects.length) pic.append(outlines(image));
  return pic;
}
function outlines(image) {
  const [H, W] = image.size;
  const drawing = svg("svg", { viewBox: `-0.5 -0.5 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": `${plural(image.defects.length, "defect")} outlined` });
  image.defects.forEach((defect, i) => {
    drawing.append(svg("path", { d: defect.outline, class: "outline halo", "data-defect": i }), svg("path", { d: defect.outline, class: `outline ${defect.source}`, "data-defect": i }));
  });
  return drawing;
}
const badge = (image) => h("span", { className: `verdict ${image.verdict}` }, image.verdict.toUpperCase());

function score(image) {
  if (!known(image.score)) return null;
  const meter = h("span", { className: "meter" });
  if (image.threshold > 0) meter.append(h("i", { style: `width:${Math.min(100, Math.max(0, (50 * image.score) / image.threshold))}%` }), h("u"));
  const note = known(image.threshold) ? `threshold ${short(image.threshold)}` : "";
  return h("div", { className: "score" }, h("b", {}, short(image.score)), image.threshold > 0 ? meter : null, h("span", { className: "muted" }, note));
}

/** The defects as a table, at most `most` lines. */
function defectTable(image, most = Infinity) {
  if (!image.defects.length) return null;
  const columns = [["#", (d, i) => i + 1], ["area px", (d) => whole(d.area)], ["mm²", (d) => short(d.mm2)], ["length px", (d) => whole(d.length)],
    ["score", (d) => short(d.score)], ["mask", (d) => d.source], ["type", (d) => d.label ?? "–"], ["box", (d) => d.box.join(", ")]]
    .filter(([name]) => (name !== "mm²" || image.defects.some((d) => known(d.mm2))) && (name !== "type" || image.defects.some((d) => d.label)));
  const lines = image.defects.length > most ? image.defects.slice(0, Math.max(1, most - 1)) : image.defects;
  const rows = lines.map((defect, i) => {
    const row = h("tr", { className: defect.source }, ...columns.map(([, cell]) => h("td", {}, String(cell(defect, i)))));
    row.dataset.defect = i;
    return row;
  });
  const head = h("thead", {}, h("tr", {}, ...columns.map(([name]) => h("th", { scope: "col" }, name))));
  const table = h("table", { className: "defects" }, head, h("tbody", {}, ...rows));
  const more = image.defects.length - lines.length;
  return more ? h("div", {}, table, h("span", { className: "more" }, `and ${more} more`)) : table;
}

function card(image, place) {
  const folder = image.folder ? h("button", { className: "folder", tabIndex: -1, title: "Only this folder" }, image.folder) : null;
  if (folder) folder.onclick = (event) => { event.stopPropagation(); refresh({ type: state.type ? "" : `folder:${image.folder}` }); };
  const title = h("div", { className: "title" }, badge(image), h("b", { title: image.image }, image.file));
  const article = h("article", { id: `card-${image.index}`, className: `card ${image.verdict} ${state.layout} ${geometry.narrow ? "narrow" : ""}` });
  article.setAttribute("aria-label", `${image.file}, ${image.verdict}${known(image.score) ? `, score ${short(image.score)}` : ""}, ${plural(image.defects.length, "defect")}`);
  article.setAttribute("aria-posinset", place + 1);
  article.setAttribute("aria-setsize", shown.length);
  article.onclick = () => { select(place); openDetail(); };
  const { picWidth, picHeight } = geometry;
  const pane = (options) => h("div", { className: "pane", style: `width:${picWidth}px;height:${picHeight}px` }, picture(image, picWidth, picHeight, options));
  if (state.layout === "grid") {
    const line = h("div", { className: "line" }, h("span", {}, known(image.score) ? short(image.score) : "", image.defects.length ? `  ·  ${plural(image.defects.length, "defect")}` : ""), folder);
    article.append(pane(layers.grid), title, line);
    return article;
  }
  if (folder) title.append(folder);
  const across = paneKinds().length * (picWidth + GAP) - GAP;
  const panes = image.error ? [h("div", { className: "pane", style: `width:${across}px;height:${picHeight}px` }, picture(image))] : paneKinds().map((kind) => pane({ heat: kind === "Heatmap", mask: kind === "Outlines", what: kind.toLowerCase() }));
  const most = Math.floor((geometry.narrow ? 110 : picHeight - 52) / 20) - 1;
  const message = image.error ? h("p", { className: "message" }, image.error) : null;
  article.append(h("div", { className: "panes" }, ...panes), h("div", { className: "what" }, title, score(image), message, defectTable(image, most)));
  return article;
}

// ---- the list: fixed cards, only those in sight are in the document --------------------------------------------------

const GAP = 8;
let geometry = { columns: 1, rowHeight: 200, cardWidth: 0, picWidth: 180, picHeight: 180, narrow: false };
const cards = new Map();
const paneKinds = () => ["Original", ...(layers.rows.heat && hasMaps ? ["Heatmap"] : []), ...(layers.rows.mask ? ["Outlines"] : [])];

function measure() {
  const width = $("list").clientWidth;
  if (state.layout === "grid") {
    const columns = Math.max(1, Math.floor((width + GAP) / (204 + GAP)));
    const cardWidth = (width - GAP * (columns - 1)) / columns;
    const picWidth = cardWidth - 14;
    return { columns, cardWidth, picWidth, picHeight: Math.round(picWidth * 0.86), rowHeight: Math.round(picWidth * 0.86) + 74, narrow: false };
  }
  const panes = paneKinds().length;
  const narrow = width < 860;
  const side = Math.floor(Math.min(184, Math.max(90, (width - (narrow ? 40 : 500) - GAP * panes) / panes)));
  return { columns: 1, cardWidth: width, picWidth: side, picHeight: side, rowHeight: side + 22 + GAP + (narrow ? 170 : 0), narrow };
}

function layOut() {
  geometry = measure();
  cards.clear();
  $("list").replaceChildren();
  $("list").style.height = `${Math.ceil(shown.length / geometry.columns) * geometry.rowHeight}px`;
  const heads = state.layout === "rows" && !geometry.narrow && shown.length ? paneKinds() : [];
  $("columns").replaceChildren(...heads.map((kind) => h("span", { style: `width:${geometry.picWidth}px` }, kind)));
  drawList();
}

function drawList() {
  const { columns, rowHeight, cardWidth } = geometry;
  const top = window.scrollY - ($("list").getBoundingClientRect().top + window.scrollY);
  const first = Math.max(0, (Math.floor(top / rowHeight) - 2) * columns);
  const last = Math.min(shown.length, (Math.ceil((top + innerHeight) / rowHeight) + 2) * columns);
  for (const [place, element] of cards) if (place < first || place >= last) { element.remove(); cards.delete(place); }
  for (let place = first; place < last; place++) {
    if (!cards.has(place)) {
      const element = card(shown[place], place);
      element.style.cssText = `left:${(place % columns) * (cardWidth + GAP)}px;top:${Math.floor(place / columns) * rowHeight}px;width:${cardWidth}px;height:${rowHeight - GAP}px`;
      cards.set(place, element);
      const next = $("list").querySelector(`article[aria-posinset="${place + 2}"]`);
      $("list").insertBefore(element, next);
    }
    const element = cards.get(place);
    element.classList.toggle("current", place === state.current);
    element.tabIndex = place === state.current ? 0 : -1;
  }
}

/** Makes the image at that place of the list the current one and brings it into sight. */
function select(place, focus = true) {
  if (!shown.length) return;
  state.current = Math.min(shown.length - 1, Math.max(0, place));
  const top = $("list").getBoundingClientRect().top + window.scrollY + Math.floor(state.current / geometry.columns) * geometry.rowHeight;
  const covered = document.querySelector(".toolbar").offsetHeight + 8;
  if (top - covered < scrollY) scrollTo({ top: top - covered });
  else if (top + geometry.rowHeight > scrollY + innerHeight) scrollTo({ top: top + geometry.rowHeight - innerHeight });
  drawList();
  if (focus && !$("detail").open) cards.get(state.current)?.focus({ preventScroll: true });
  drawHistogram();
}
