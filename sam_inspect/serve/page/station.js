// The page of a station: a list of inspections, one of them large, and what a person says of it.

import { ask, json, listen, picture, send } from "./service.js";
import { coloured } from "./masks.js";

const COLOURS = [[255, 59, 107], [64, 156, 255], [255, 176, 32], [76, 201, 140], [190, 120, 255]];
const NEW = [0, 229, 255];
const PAGE = 50, MOST = 1000;
const at = (id) => document.getElementById(id);
const canvas = at("canvas");

/** What the page shows: nothing of it is kept elsewhere. */
const state = {
  rows: [], next: null, current: null, // of the list; the inspection that is shown, whole
  image: null, heat: null, masks: [], changed: false, // of the picture; masks: {mask, defect_type, ...coloured}
  showMask: true, showHeat: false, editing: false, beside: false, // beside: a tap says what is no defect
  clicks: [], box: null, draft: null, drag: null, // of the mask that is being made
};

/** Questions of one kind: an answer counts only while nothing newer was asked, however late it comes. */
function questions() {
  let newest = 0;
  const pending = () => {
    const mine = newest;
    return () => mine === newest;
  };
  return { pending, ask: () => (newest++, pending()) };
}

const lists = questions();
let told = []; // by the line, since the list was asked for last; newest first
const shows = questions();
const drafts = questions();

// The list

function query() {
  const filters = new FormData(at("filters"));
  const asked = new URLSearchParams({ limit: PAGE });
  for (const [name, value] of filters) {
    if (value) asked.set(name, ["since", "until"].includes(name) ? new Date(value).toISOString() : value);
  }
  return asked;
}

async function refill() {
  const counts = lists.ask();
  told = [];
  const page = await json(`v1/inspections?${query()}`);
  if (!counts()) return;
  const missed = told.filter((row) => fits(row) && !page.inspections.some((each) => each.id === row.id));
  Object.assign(state, { rows: [...missed, ...page.inspections], next: page.next });
  drawList();
  if (!state.current && state.rows.length) await show(state.rows[0].id);
}

async function older() {
  const asked = query();
  asked.set("before", state.next);
  const counts = lists.pending();
  at("older").disabled = true;
  try {
    const page = await json(`v1/inspections?${asked}`);
    if (!counts()) return;
    state.rows.push(...page.inspections);
    state.next = page.next;
    drawList();
  } finally {
    at("older").disabled = false;
  }
}

/** A line that never stops must not fill the page: the oldest go, and `older` brings them back. */
function prepend(row) {
  state.rows.unshift(row);
  at("list").prepend(itemOf(row));
  if (state.rows.length <= MOST) return;
  state.rows.length = MOST;
  state.next = state.rows.at(-1).id;
  while (at("list").children.length > MOST) at("list").lastElementChild.remove();
  at("older").hidden = false;
}

function fits(row) {
  const asked = query();
  const reviewed = asked.get("reviewed");
  const plain = ["verdict", "part", "camera"].every((name) => !asked.get(name) || asked.get(name) === row[name]);
  const inTime = (!asked.get("since") || row.done_at >= asked.get("since")) && !asked.get("until");
  return plain && inTime && (!reviewed || String(row.review !== null) === reviewed);
}

function itemOf(row) {
  const item = document.createElement("li");
  item.className = row.verdict;
  item.dataset.id = row.id;
  item.setAttribute("aria-current", row.id === state.current?.id);
  const title = row.serial ?? row.part ?? row.recipe.name;
  const about = [row.part, row.camera, `${row.defects} defect${row.defects === 1 ? "" : "s"}`, row.review?.decision];
  item.append(
    element("b", title),
    element("i", new Date(row.done_at).toLocaleTimeString()),
    element("small", about.filter(Boolean).join(" · ")),
  );
  item.onclick = () => leaves() && show(row.id);
  return item;
}

function drawList() {
  at("list").replaceChildren(...state.rows.map(itemOf));
  at("older").hidden = !state.next;
  const types = new Set(["defect", ...state.masks.map((mask) => mask.defect_type)]);
  at("types").replaceChildren(...[...types].map((type) => Object.assign(document.createElement("option"), { value: type })));
}

function element(name, text) {
  return Object.assign(document.createElement(name), { textContent: text });
}

function step(by) {
  const place = state.rows.findIndex((row) => row.id === state.current?.id);
  const row = state.rows[Math.min(state.rows.length - 1, Math.max(0, place + by))];
  if (row && row.id !== state.current?.id && leaves()) show(row.id);
}

// One inspection

/** Nobody is in the middle of something that another picture would take away. */
const idle = () => !state.editing && !state.changed;

/** Another picture takes masks away that are not saved: only who says so leaves them. */
const leaves = () => !state.changed || confirm("The corrected masks are not saved. Leave them?");

async function show(id, wanted = () => true) {
  const counts = shows.ask();
  const row = await json(`v1/inspections/${id}`);
  const path = `v1/inspections/${id}/image`;
  // Browsers know no TIFF; what nobody can read has no picture at all.
  const image = await picture(path).catch(() => picture(`${path}?as_png=true`)).catch(() => null);
  if (!counts() || !wanted()) return image?.close();
  state.heat?.close();
  state.image?.close();
  const given = row.review?.masks ?? row.inspection.defects.map((defect) => ({ ...defect, defect_type: "" }));
  Object.assign(state, { current: row, image, heat: null, changed: false, editing: false });
  state.masks = given.map((entry, index) => withPaint(entry, index));
  giveUp();
  at("empty").hidden = true;
  at("shown").hidden = false;
  drawFacts();
  drawList();
  if (state.showHeat) await loadHeat();
  draw();
}

function withPaint(entry, index) {
  return { mask: entry.mask, defect_type: entry.defect_type, ...coloured(entry.mask, COLOURS[index % COLOURS.length]) };
}

function drawFacts() {
  const { current: row } = state;
  const ms = Object.values(row.inspection.timings_ms).reduce((sum, each) => sum + each, 0);
  at("verdict").textContent = row.verdict.toUpperCase();
  at("verdict").className = row.verdict;
  const score = row.verdict === "error" ? row.inspection.error : row.threshold === null ? "boxes given" : `score ${row.score.toFixed(2)}, threshold ${row.threshold.toFixed(2)}`;
  const facts = [row.serial, row.part, row.camera, new Date(row.done_at).toLocaleString(), score, `${ms.toFixed(0)} ms`,
    `${row.recipe.name} ${row.recipe.version.slice(0, 6)}`];
  at("facts").textContent = facts.filter(Boolean).join(" · ");
  const review = row.review;
  at("review").textContent = review
    ? `${review.decision === "confirm" ? "Confirmed" : "Overruled"} ${new Date(review.at).toLocaleString()}${review.masks ? ", masks by hand" : ""}`
    : "Nobody has looked at it yet.";
  drawDefects();
}

function drawDefects() {
  at("save").hidden = !state.changed;
  at("defects").tBodies[0].replaceChildren(...state.masks.map((entry, index) => {
    const line = document.createElement("tr");
    const swatch = element("span", "");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${COLOURS[index % COLOURS.length]})`;
    const remove = element("button", "✕");
    remove.title = "Take this mask away";
    remove.onclick = () => change(() => state.masks.splice(index, 1));
    for (const content of [swatch, entry.defect_type || "found", `${entry.area.toLocaleString()} px`, remove]) {
      const cell = document.createElement("td");
      cell.append(content);
      line.append(cell);
    }
    return line;
  }));
}

function change(work) {
  work();
  state.masks = state.masks.map((entry, index) => withPaint(entry, index));
  state.changed = true;
  drawDefects();
  draw();
}

async function loadHeat() {
  const counts = shows.pending();
  const heat = await picture(`v1/inspections/${state.current.id}/heatmap`).catch(() => null);
  if (!counts()) return heat?.close();
  state.heat = heat;
  if (!heat) complain("There is no heatmap of it.");
}

// The picture

function placed() {
  const scale = Math.min(canvas.width / state.image.width, canvas.height / state.image.height);
  const [width, height] = [state.image.width * scale, state.image.height * scale];
  return { scale, left: (canvas.width - width) / 2, top: (canvas.height - height) / 2, width, height };
}

function draw() {
  const ratio = devicePixelRatio;
  Object.assign(canvas, { width: canvas.clientWidth * ratio, height: canvas.clientHeight * ratio });
  at("edit-button").disabled = at("mask-button").disabled = at("heat-button").disabled = !state.image;
  if (!state.image) return;
  const context = canvas.getContext("2d");
  const { scale, left, top, width, height } = placed();
  context.drawImage(state.showHeat && state.heat ? state.heat : state.image, left, top, width, height);
  const lay = ({ paint, x, y, width: w, height: h }) => context.drawImage(paint, left + x * scale, top + y * scale, w * scale, h * scale);
  if (state.showMask || state.editing) state.masks.forEach(lay);
  if (state.draft) lay(state.draft);
  const box = state.drag ?? state.box;
  context.lineWidth = 2 * ratio;
  context.strokeStyle = `rgb(${NEW})`;
  if (box) context.strokeRect(left + box[0] * scale, top + box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
  for (const click of state.clicks) {
    context.beginPath();
    context.arc(left + click.x * scale, top + click.y * scale, 5 * ratio, 0, 7);
    context.fillStyle = click.on ? "#12d18e" : "#ff3b30";
    context.fill();
    context.strokeStyle = "#fff";
    context.stroke();
  }
  for (const [id, on] of [["mask-button", state.showMask], ["heat-button", state.showHeat], ["edit-button", state.editing],
    ["beside", state.beside]]) {
    at(id).setAttribute("aria-pressed", on);
  }
  canvas.classList.toggle("editing", state.editing);
  at("editing").hidden = !state.editing;
  at("keep").disabled = !state.draft;
}

// Correcting: clicks and a box, SAM answers

function pixel(event) {
  const { scale, left, top } = placed();
  const area = canvas.getBoundingClientRect();
  const [x, y] = [(event.clientX - area.left) * devicePixelRatio, (event.clientY - area.top) * devicePixelRatio];
  const limit = (value, most) => Math.min(most, Math.max(0, value));
  return [limit((x - left) / scale, state.image.width), limit((y - top) / scale, state.image.height)];
}

canvas.addEventListener("pointerdown", (event) => {
  if (!state.editing) return;
  canvas.setPointerCapture(event.pointerId);
  const [x, y] = pixel(event);
  state.start = { x, y, on: event.button === 0 && !event.shiftKey && !state.beside, px: event.clientX, py: event.clientY };
});
canvas.addEventListener("pointermove", (event) => {
  const start = state.start;
  if (!start?.on || Math.hypot(event.clientX - start.px, event.clientY - start.py) < 6) return;
  const [x, y] = pixel(event);
  state.drag = [Math.min(x, start.x), Math.min(y, start.y), Math.max(x, start.x), Math.max(y, start.y)];
  draw();
});
canvas.addEventListener("pointerup", () => {
  const start = state.start;
  state.start = null;
  if (!start) return;
  if (state.drag) state.box = state.drag;
  else state.clicks.push({ x: start.x, y: start.y, on: start.on });
  state.drag = null;
  segment();
});
canvas.addEventListener("contextmenu", (event) => event.preventDefault());

async function segment() {
  const counts = drafts.ask();
  draw();
  const points = (on) => state.clicks.filter((click) => click.on === on).map(({ x, y }) => [x, y]);
  const wanted = { inspection: state.current.id, on: points(true), off: points(false), box: state.box };
  if (!wanted.on.length && !wanted.box) {
    state.draft = null;
    return draw();
  }
  const answer = await send(`v1/recipes/${encodeURIComponent(state.current.recipe.name)}/segment`, "POST", wanted);
  if (!counts()) return;
  state.draft = answer.mask && { mask: answer.mask, ...coloured(answer.mask, NEW) };
  draw();
}

function keep() {
  if (!state.draft) return;
  change(() => state.masks.push({ mask: state.draft.mask, defect_type: at("type").value.trim() || "defect" }));
  giveUp();
  draw();
}

function takeBack() {
  if (state.clicks.length) state.clicks.pop();
  else state.box = null;
  segment();
}

function giveUp() {
  drafts.ask();
  Object.assign(state, { clicks: [], box: null, draft: null, drag: null, start: null });
}

function edit() {
  if (!state.image) return;
  state.editing = !state.editing;
  giveUp();
  draw();
}

// What a person says

async function review(decision) {
  const said = state.current.review?.masks?.map(({ mask, defect_type }) => ({ mask, defect_type }));
  const isDefective = (state.current.verdict === "fail") === (decision === "confirm");
  const masks = state.changed
    ? state.masks.map(({ mask, defect_type }) => ({ mask, defect_type: defect_type || "defect" }))
    : said && said.length > 0 === isDefective ? said : undefined; // those of another opinion go with it
  const row = await send(`v1/inspections/${state.current.id}/review`, "PUT", { decision, ...(masks && { masks }) });
  if (state.current.id === row.id) Object.assign(state, { current: row, changed: false });
  reviewed(row);
  drawFacts();
}

function reviewed(row) {
  const known = state.rows.find((each) => each.id === row.id);
  if (known) known.review = row.review;
  drawList();
}

/** With masks as they really are: the verdict was right if it says whether there are any. */
const save = () => review((state.masks.length > 0) === (state.current.verdict === "fail") ? "confirm" : "overrule");

async function upload(file) {
  if (!leaves()) return;
  const form = new FormData();
  form.append("image", file);
  const answer = await ask(`v1/recipes/${encodeURIComponent(at("recipe").value)}/inspect`, { method: "POST", body: form });
  await show(answer.headers.get("x-inspection-id"));
}

// Around it

let complaint;

function complain(text) {
  clearTimeout(complaint);
  Object.assign(at("problem"), { textContent: text, hidden: false });
  complaint = setTimeout(() => { at("problem").hidden = true; }, 6000);
}

addEventListener("unhandledrejection", (event) => complain(event.reason?.message ?? String(event.reason)));

const toggle = {
  m: () => { state.showMask = !state.showMask; draw(); },
  h: async () => {
    state.showHeat = !state.showHeat;
    if (state.showHeat && !state.heat) await loadHeat();
    draw();
  },
  e: edit,
  x: () => { state.beside = !state.beside; draw(); },
  f: () => { at("follow").checked = !at("follow").checked; },
  j: () => step(1),
  k: () => step(-1),
  c: () => review("confirm"),
  o: () => review("overrule"),
  s: () => state.changed && save(),
  "?": () => at("help").showModal(),
  Enter: keep,
  Backspace: takeBack,
  Escape: () => { giveUp(); draw(); },
};

addEventListener("keydown", (event) => {
  const writing = event.target.closest("input:not([type=checkbox]), select, dialog");
  const onButton = event.key === "Enter" && event.target.closest("button, a, label");
  if (writing || onButton || event.ctrlKey || event.metaKey || event.altKey) return;
  const work = toggle[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!work || (!state.current && event.key !== "?" && event.key !== "f")) return;
  event.preventDefault();
  work();
});
for (const [id, key] of [["mask-button", "m"], ["heat-button", "h"], ["edit-button", "e"], ["confirm", "c"], ["overrule", "o"],
  ["save", "s"], ["help-button", "?"], ["keep", "Enter"], ["back", "Backspace"], ["beside", "x"]]) {
  at(id).onclick = () => toggle[key]();
}
// A mouse leaves no button focused, so that Enter means the mask and not the button that was clicked last.
addEventListener("click", (event) => { if (event.detail) event.target.closest?.("button")?.blur(); });
at("older").onclick = older;
at("filters").onchange = refill;
at("filters").onsubmit = (event) => { event.preventDefault(); refill(); };
at("upload").onchange = async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) await upload(file);
};
at("labels").onclick = async (event) => {
  event.preventDefault();
  const blob = await (await ask("v1/labels")).blob();
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "labels.zip" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
at("detail").ondragover = (event) => { event.preventDefault(); at("detail").classList.add("dropping"); };
at("detail").ondragleave = () => at("detail").classList.remove("dropping");
at("detail").ondrop = (event) => {
  event.preventDefault();
  at("detail").classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) upload(file);
};
at("theme").onclick = () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("sam_inspect theme", theme);
};
document.documentElement.dataset.theme =
  localStorage.getItem("sam_inspect theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
new ResizeObserver(draw).observe(canvas);

const recipes = await json("v1/recipes");
at("recipe").replaceChildren(...recipes.map(({ name }) => element("option", name)));
await refill();
const tell = {
  inspection(row) {
    told = [row, ...told].slice(0, PAGE);
    if (!fits(row)) return;
    if (!state.rows.some((each) => each.id === row.id)) prepend(row);
    if (at("follow").checked && idle() && row.id !== state.current?.id) show(row.id, idle);
  },
  /** Somebody, here or at another screen. */
  review(row) {
    reviewed(row);
    if (row.id !== state.current?.id || row.review.at === state.current.review?.at) return;
    if (idle()) return show(row.id, idle);
    state.current.review = row.review;
    drawFacts();
  },
};
listen(tell, (on) => at("link").classList.toggle("on", on), state.rows[0]?.id);
