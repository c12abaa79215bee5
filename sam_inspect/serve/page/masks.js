// Masks: COCO's run lengths to pixels, and pixels to colour on a canvas.

/** A mask {size: [height, width], counts} in a colour: its box in the picture {x, y, width, height}, its `area` in pixels, and `paint`. */
export function coloured(rle, colour) {
  const { bits, ...found } = decode(rle);
  const reach = Math.max(1, Math.round(Math.max(...rle.size) / 600));
  return { ...found, paint: painted(bits, found, colour, reach) };
}

/** {x, y, width, height, area, bits}; bits of the box alone, row by row: a small mask of a large picture is small. */
function decode({ size: [rows], counts }) {
  const spans = spansOf(typeof counts === "string" ? runsOf(counts) : counts);
  const { x, y, width, height } = boxOf(spans, rows);
  const bits = new Uint8Array(width * height);
  let area = 0;
  for (const [first, end] of spans) {
    for (let i = first; i < end; i++) bits[((i % rows) - y) * width + Math.floor(i / rows) - x] = 1;
    area += end - first;
  }
  return { x, y, width, height, bits, area };
}

/** Where the mask is, as [first, end) down the columns of its picture. */
function spansOf(runs) {
  const spans = [];
  let place = 0;
  runs.forEach((run, index) => {
    if (index % 2 && run) spans.push([place, place + run]);
    place += run;
  });
  return spans;
}

function boxOf(spans, rows) {
  if (!spans.length) return { x: 0, y: 0, width: 1, height: 1 };
  const column = (place) => Math.floor(place / rows);
  const [x, right] = [column(spans[0][0]), column(spans.at(-1)[1] - 1)];
  let [y, bottom] = [rows, 0];
  for (const [first, end] of spans) {
    const whole = column(first) !== column(end - 1); // from one column into the next: down to the end and from the top on
    y = Math.min(y, whole ? 0 : first % rows);
    bottom = Math.max(bottom, whole ? rows - 1 : (end - 1) % rows);
  }
  return { x, y, width: right - x + 1, height: bottom - y + 1 };
}

function runsOf(text) {
  const runs = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const bits = text.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
      more = Boolean(bits & 32);
      if (!more && bits & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** A canvas of the size of a mask's box: its pixels thinly coloured, its border, so many pixels wide, strongly. */
function painted(bits, { width, height }, [red, green, blue], reach) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  const set = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!bits[y * width + x]) continue;
      const inside = set(x - reach, y) && set(x + reach, y) && set(x, y - reach) && set(x, y + reach);
      data.data.set([red, green, blue, inside ? 70 : 255], 4 * (y * width + x));
    }
  }
  context.putImageData(data, 0, 0);
  return canvas;
}
