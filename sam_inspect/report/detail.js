// One image, large: layers, zoom, its defects. Then the keys, and the start.

const view = { zoom: 1, x: 0.5, y: 0.5 };

function openDetail() {
  if (!shown.length) return;
  if (!$("detail").open) $("detail").showModal();
  $("stages-large").focus();
  resetView();
  drawDetail();
}
function resetView() { Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 }); }

function drawDetail() {
  const image = shown[state.current];
  $("place").textContent = `${whole(state.current + 1)} of ${whole(shown.length)}`;
  $("detail-file").textContent = image.file;
  $("detail-file").title = image.image;
  $("detail-folder").textContent = image.folder;
  drawToggles();
  const wide = image.size && image.size[1] > 1.6 * image.size[0];
  $("stages-large").classList.toggle("stacked", Boolean(state.compare && wide));
  const kinds = state.compare ? ["Original", ...(image.pictures["heat"] ? ["Heatmap"] : []), "Outlines"] : [""];
  $("stages-large").replaceChildren(...kinds.map((kind) => stage(image, kind)));
  $("side").replaceChildren(...sideOf(image));
  placeStages();
}

function stage(image, kind) {
  const options = state.compare ? { heat: kind === "Heatmap", mask: kind === "Outlines" } : layers.detail;
  const pic = picture(image, 100, 100, { ...options, large: true, what: kind ? kind.toLowerCase() : "enlarged" });
  const box = h("div", { className: "stage" }, pic);
  if (image.error) pic.textContent = image.error;
  if (kind) box.append(h("span", { className: "caption" }, kind));
  if (options.mask && pic.classList.contains("pic")) pic.append(...image.defects.map((defect, i) => tag(defect, i, image.size)));
  return box;
}
function tag(defect, i, [H, W]) {
  const below = defect.box[1] / H < 0.06;
  const style = `left:${(100 * defect.box[0]) / W}%;top:${(100 * defect.box[below ? 3 : 1]) / H}%`;
  const element = h("span", { className: `tag ${defect.source} ${below ? "below" : ""}`, style }, `${i + 1}  ${defect.label ? `${defect.label} ` : ""}${short(defect.score)}`);
  element.dataset.defect = i;
  return element;
}

/** Puts each stage's picture where the view says: the same place and zoom in all of them. */
function placeStages() {
  const size = shown[state.current]?.size;
  if (!size) return;
  const [H, W] = size;
  for (const box of $("stages-large").children) {
    const pic = box.querySelector(".pic");
    if (!pic) continue;
    const scale = Math.min((box.clientWidth - 24) / W, (box.clientHeight - 24) / H) * view.zoom;
    const put = (length, room, at) => (length * scale <= room ? (room - length * scale) / 2 : Math.min(0, Math.max(room - length * scale, room / 2 - at * length * scale)));
    pic.style.cssText = `width:${W * scale}px;height:${H * scale}px;left:${put(W, box.clientWidth, view.x)}px;top:${put(H, box.clientHeight, view.y)}px`;
    pic.classList.toggle("sharp", scale * Math.max(1, Math.max(W, H) / 1600) > 3);
  }
  $("zoom").textContent = view.zoom === 1 ? "fit" : `${short(view.zoom)}×`;
}
function zoomBy(factor, x = view.x, y = view.y) {
  const zoom = Math.min(64, Math.max(1, view.zoom * factor));
  const kept = view.zoom / zoom;
  Object.assign(view, { zoom, x: x + (view.x - x) * kept, y: y + (view.y - y) * kept });
  if (zoom === 1) resetView();
  placeStages();
}
function zoomToDefect(i) {
  const image = shown[state.current];
  const defect = image.defects[i];
  if (!defect) return;
  const [H, W] = image.size;
  const [x0, y0, x1, y1] = defect.box;
  const box = $("stages-large").firstElementChild;
  const fit = Math.min(box.clientWidth / W, box.clientHeight / H);
  const zoom = 0.5 * Math.min(box.clientWidth / ((x1 - x0) * fit), box.clientHeight / ((y1 - y0) * fit));
  Object.assign(view, { zoom: Math.min(64, Math.max(1, zoom)), x: (x0 + x1) / 2 / W, y: (y0 + y1) / 2 / H });
  placeStages();
  highlight(i);
}
function highlight(i) {
  for (const pic of $("stages-large").querySelectorAll(".pic")) pic.classList.toggle("dim", i !== null);
  for (const element of $("detail").querySelectorAll("[data-defect]")) element.classList.toggle("on", element.dataset.defect === String(i));
}

function sideOf(image) {
  const parts = [h("div", { className: `big ${image.verdict}` }, badge(image), score(image))];
  if (image.error) parts.push(h("p", { className: "message" }, image.error));
  const table = defectTable(image);
  if (table) {
    for (const row of table.querySelectorAll("tbody tr")) {
      row.onclick = () => zoomToDefect(Number(row.dataset.defect));
      row.onmouseenter = () => highlight(Number(row.dataset.defect));
      row.onmouseleave = () => highlight(null);
    }
    parts.push(h("section", {}, h("h2", {}, plural(image.defects.length, "defect")), table));
  } else if (!image.error) parts.push(h("p", { className: "muted" }, "No defect."));
  if (image.pictures["heat"]) parts.push(h("section", {}, h("h2", {}, "Heatmap"), h("span", { className: "scale" })));
  const facts = [["path", image.image], ["size", image.size ? `${image.size[1]} × ${image.size[0]} px` : "–"],
    ...Object.entries(image.ms).map(([name, ms]) => [name, `${short(ms)} ms`])];
  parts.push(h("section", {}, h("h2", {}, "Image"), h("dl", { className: "plain" }, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))));
  const saved = [["overlay", "overlays"], ["mask", "masks"], ["heatmap", "maps.jpg"], ["map (TIFF)", "maps.tiff"]].filter(([, key]) => image.pictures[key]);
  if (saved.length) parts.push(h("p", { className: "links" }, ...saved.map(([name, key]) => h("a", { href: image.pictures[key], target: "_blank", rel: "noopener" }, name))));
  return parts;
}

function watchStages() {
  const area = $("stages-large");
  let last = null;
  const within = (event) => {
    const pic = (event.target.closest(".stage") ?? area).querySelector(".pic")?.getBoundingClientRect();
    return pic ? [(event.clientX - pic.left) / pic.width, (event.clientY - pic.top) / pic.height] : [0.5, 0.5];
  };
  area.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(Math.exp(-event.deltaY / 400), ...within(event)); }, { passive: false });
  area.ondblclick = (event) => (view.zoom > 1 ? (resetView(), placeStages()) : zoomBy(4, ...within(event)));
  area.onpointerdown = (event) => { last = [event.clientX, event.clientY]; area.setPointerCapture(event.pointerId); };
  area.onpointerup = () => { last = null; };
  area.onpointermove = (event) => {
    const pic = last && area.querySelector(".pic")?.getBoundingClientRect();
    if (!pic) return;
    view.x = Math.min(1, Math.max(0, view.x - (event.clientX - last[0]) / pic.width));
    view.y = Math.min(1, Math.max(0, view.y - (event.clientY - last[1]) / pic.height));
    last = [event.clientX, event.clientY];
    placeStages();
  };
}

// ---- keys ----------------------------------------------------------------------------------------------------------

function move(by) {
  select(state.current + by);
  if ($("detail").open) { resetView(); drawDetail(); }
}
function toggle(name) {
  if (name === "compare") state.compare = !state.compare;
  else {
    const context = $("detail").open ? "detail" : state.layout;
    layers[context][name] = !layers[context][name];
  }
  if ($("detail").open) return drawDetail();
  refresh();
  select(state.current);
}
function filter(verdict) {
  refresh({ verdict });
  if (!$("detail").open) return;
  if (shown.length) { resetView(); drawDetail(); } else $("detail").close();
}
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("sam-inspect-theme", theme); } catch { /* no storage: it lasts as long as the page */ }
}
const turnTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

const common = {
  j: () => move(1), k: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1),
  f: () => filter("fail"), p: () => filter("pass"), e: () => filter("error"), a: () => filter("all"),
  h: () => toggle("heat"), m: () => toggle("mask"), t: turnTheme, "?": () => $("help").showModal(),
};
const inList = {
  ArrowDown: () => move(geometry.columns), ArrowUp: () => move(-geometry.columns),
  Home: () => select(0), End: () => select(shown.length - 1), Enter: openDetail,
  g: () => { refresh({ layout: state.layout === "rows" ? "grid" : "rows" }); select(state.current); },
  "/": () => { $("search").focus(); $("search").select(); },
};
const inDetail = {
  ArrowDown: () => move(1), ArrowUp: () => move(-1), c: () => toggle("compare"),
  "+": () => zoomBy(1.6), "=": () => zoomBy(1.6), "-": () => zoomBy(1 / 1.6), 0: () => { resetView(); placeStages(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const field = event.target.closest("input, select, textarea");
  if (field) {
    if (event.key === "Escape" || (event.key === "Enter" && field === $("search"))) { field.blur(); select(state.current); event.preventDefault(); }
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, a, summary")) return;
  const open = $("detail").open;
  if (open && /^[1-9]$/.test(event.key)) return zoomToDefect(Number(event.key) - 1);
  const action = (open ? inDetail : inList)[event.key] ?? common[event.key];
  if (action) { event.preventDefault(); action(); }
});

// ---- start ---------------------------------------------------------------------------------------------------------

function watch() {
  $("search").oninput = () => refresh({ query: $("search").value });
  $("type").onchange = () => refresh({ type: $("type").value });
  $("sort").onchange = () => refresh({ sort: $("sort").value, down: $("sort").value !== "name" });
  $("direction").onclick = () => refresh({ down: !state.down });
  $("range").onclick = () => refresh({ range: null });
  $("reset").onclick = () => refresh({ verdict: "all", query: "", type: "", range: null });
  $("theme").onclick = turnTheme;
  $("help-button").onclick = () => $("help").showModal();
  for (const button of document.querySelectorAll("[data-toggle]")) button.onclick = () => toggle(button.dataset.toggle);
  for (const button of document.querySelectorAll("[data-layout]")) button.onclick = () => refresh({ layout: button.dataset.layout });
  const does = { previous: () => move(-1), next: () => move(1), in: () => zoomBy(1.6), out: () => zoomBy(1 / 1.6), fit: inDetail[0], close: () => $("detail").close() };
  for (const button of document.querySelectorAll("[data-do]")) button.onclick = does[button.dataset.do];
  $("detail").onclose = () => select(state.current);
  addEventListener("scroll", drawList, { passive: true });
  addEventListener("resize", () => { layOut(); drawHistogram(); placeStages(); });
  addEventListener("hashchange", () => { readAddress(); refresh(); });
  watchHistogram();
  watchStages();
}

drawCounts();
drawTypes();
drawHistogramKey();
readAddress();
watch();
refresh();
