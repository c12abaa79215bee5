// An exported recipe's SAM in ONNX Runtime Web: a picture is encoded once, each click then costs one decoding.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

/** The encoder and decoder in a folder that `sam-inspect export --format onnx` wrote. */
export async function load(folder) {
  const recipe = await (await fetched(`${folder}/recipe.json`)).json();
  const graph = async (file) => ort.InferenceSession.create(await (await fetched(`${folder}/${file}`)).arrayBuffer());
  const [encoder, decoder] = [await graph(recipe.encoder.file), await graph(recipe.decoder.file)];
  return { encoder, decoder, side: recipe.encoder.side_px, padding: recipe.encoder.pad_with, labels: recipe.decoder.labels };
}

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** What SAM sees of a picture (anything a canvas draws): scaled into a square view, its features. */
export async function look(sam, picture) {
  const { side, padding } = sam, { width, height } = picture, scale = side / Math.max(width, height);
  const [columns, rows] = [Math.round(width * scale), Math.round(height * scale)];
  const context = new OffscreenCanvas(columns, rows).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, columns, rows);
  const { data } = context.getImageData(0, 0, columns, rows);
  const planes = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++) {
    planes.fill(padding[channel], channel * side * side, (channel + 1) * side * side);
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) planes[(channel * side + y) * side + x] = data[4 * (y * columns + x) + channel];
    }
  }
  const { output_0: features } = await sam.encoder.run({ input_0: new ort.Tensor("float32", planes, [1, 3, side, side]) });
  return { features, width, height, scale };
}

/** The mask of clicks {x, y, on} and a box [x0, y0, x1, y1], pixels of the picture: {bits: Uint8Array of width x height, iou}. */
export async function segment(sam, seen, clicks, box = null) {
  const { labels } = sam;
  const points = [...clicks.flatMap(({ x, y }) => [x, y]), ...(box ?? [0, 0])].map((side) => side * seen.scale);
  const meanings = [...clicks.map(({ on }) => (on ? labels.on : labels.beside)), ...(box ? labels.box : [labels.nothing])];
  const { output_0: logits, output_1: iou } = await sam.decoder.run({
    input_0: seen.features,
    input_1: new ort.Tensor("float32", Float32Array.from(points), [1, meanings.length, 2]),
    input_2: new ort.Tensor("float32", Float32Array.from(meanings), [1, meanings.length]),
  });
  // One click may mean a part or the whole: the best of three. Several mean one thing: the single mask, which is first.
  const place = box || clicks.length > 1 ? 0 : 1 + iou.data.slice(1).reduce((best, each, index, all) => (each > all[best] ? index : best), 0);
  const grid = logits.dims[3];
  const mask = logits.data.subarray(place * grid * grid, (place + 1) * grid * grid);
  return { bits: enlarged(mask, grid, sam.side / grid, seen), iou: iou.data[place] };
}

/** Where logits of a square grid, whose cells are so many pixels of the view wide, are above 0, bilinearly, in the picture. */
function enlarged(logits, grid, cell, { width, height, scale }) {
  const bits = new Uint8Array(width * height);
  const between = (pixel) => {
    const at = Math.min(grid - 1, Math.max(0, ((pixel + 0.5) * scale) / cell - 0.5)), low = Math.min(grid - 2, Math.floor(at));
    return [low, at - low];
  };
  for (let y = 0; y < height; y++) {
    const [row, down] = between(y);
    for (let x = 0; x < width; x++) {
      const [column, right] = between(x), at = row * grid + column;
      const upper = logits[at] * (1 - right) + logits[at + 1] * right;
      const lower = logits[at + grid] * (1 - right) + logits[at + grid + 1] * right;
      bits[y * width + x] = upper * (1 - down) + lower * down > 0;
    }
  }
  return bits;
}
