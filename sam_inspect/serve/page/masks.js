// Masks: COCO's run lengths to pixels, and pixels to colour on a canvas.

/** {size: [height, width], counts} -> {width, height, bits}, bits row by row. */
export function decode({ size: [height, width], counts }) {
  const runs = typeof counts === "string" ? runsOf(counts) : counts;
  const bits = new Uint8Array(width * height);
  let place = 0;
  runs.forEach((run, index) => {
    if (index % 2) for (let i = place; i < place + run; i++) bits[(i % height) * width + Math.floor(i / height)] = 1;
    place += run;
  });
  return { width, height, bits };
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

/** A canvas of the mask's size: its pixels thinly coloured, its border strongly. */
export function painted({ width, height, bits }, [red, green, blue]) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  const reach = Math.max(1, Math.round(Math.max(width, height) / 600));
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
