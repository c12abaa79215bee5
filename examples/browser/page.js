// The page: what is clicked, and the mask of it on the picture. ?export=FOLDER says where the exported recipe lies.

import { load, look, segment } from "./segment.js";

const at = (id) => document.getElementById(id);
const canvas = at("canvas"), context = canvas.getContext("2d");
let sam, picture, seen, clicks = [], box = null, pressed = null, answered = Promise.resolve();

async function timed(what, work) {
  at("said").textContent = `${what}…`;
  const start = performance.now(), answer = await work();
  return [answer, `${what}: ${(performance.now() - start).toFixed(0)} ms`];
}

async function open(file) {
  picture = await createImageBitmap(file);
  Object.assign(canvas, { width: picture.width, height: picture.height });
  [clicks, box, seen] = [[], null, null];
  draw(null);
  [seen, at("said").textContent] = await timed("Encoding", () => look(sam, picture));
  at("again").disabled = false;
}

function place(event) {
  const area = canvas.getBoundingClientRect();
  return { x: ((event.clientX - area.left) / area.width) * canvas.width, y: ((event.clientY - area.top) / area.height) * canvas.height };
}

/** Pressed and let go at one place it is a click, at two a box. */
function release(event) {
  const [from, to, on] = [pressed, place(event), event.button === 0];
  pressed = null;
  if (!seen || !from) return;
  if (on && Math.hypot(to.x - from.x, to.y - from.y) > canvas.width / 80) {
    box = [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.max(from.x, to.x), Math.max(from.y, to.y)];
  } else clicks.push({ ...to, on });
  answered = answered.catch(() => {}).then(answer); // a session answers one question after another
}

async function answer() {
  if (!clicks.length && !box) return;
  const [mask, said] = await timed("Decoding", () => segment(sam, seen, clicks, box));
  draw(mask.bits);
  const area_px = mask.bits.reduce((sum, bit) => sum + bit, 0);
  at("said").textContent = `${said}, ${area_px.toLocaleString()} pixels, IoU by SAM's own estimate ${mask.iou.toFixed(2)}`;
}

function draw(bits) {
  context.drawImage(picture, 0, 0);
  if (bits) {
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    bits.forEach((bit, place) => { if (bit) pixels.data[4 * place] = (pixels.data[4 * place] + 255) / 2; });
    context.putImageData(pixels, 0, 0);
  }
  context.lineWidth = canvas.width / 300;
  context.strokeStyle = "#12d18e";
  if (box) context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  for (const { x, y, on } of clicks) {
    context.beginPath();
    context.arc(x, y, Math.max(3, canvas.width / 160), 0, 7);
    context.fillStyle = on ? "#12d18e" : "#ff3b30";
    context.fill();
  }
}

addEventListener("unhandledrejection", (event) => { at("said").textContent = event.reason.message; });
canvas.addEventListener("pointerdown", (event) => { pressed = place(event); canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointerup", release);
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
at("picture").onchange = ({ target }) => target.files[0] && open(target.files[0]);
at("again").onclick = () => { [clicks, box] = [[], null]; draw(null); };

async function start() {
  const folder = new URLSearchParams(location.search).get("export") ?? "export";
  [sam, at("said").textContent] = await timed("Loading the networks", () => load(folder));
  at("picture").disabled = false;
}

start();
