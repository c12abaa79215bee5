"""Inspects with an exported recipe, nothing of sam_inspect: python run_exported.py EXPORT IMAGE... > results.jsonl"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def planes(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def anomaly_map(session, recipe, image):
    looks = {}
    for look in recipe["heatmap"]["inputs"]:
        by = cv2.INTER_AREA if look["height"] < image.shape[0] else cv2.INTER_LINEAR
        looks[look["name"]] = planes(cv2.resize(image, (look["width"], look["height"]), interpolation=by))
    return session.run(None, looks)[0]


def boxes(rise, recipe, blur):
    """(peak, box) of what rises above the threshold, down to a share of its peak, less its blur (as in `prompt.py`)."""
    grow, low = recipe["prompt"]["grow"], recipe["prompt"]["floor"] * recipe["threshold"]
    count, labels = cv2.connectedComponents((rise > low).astype(np.uint8))
    for label in range(1, count):
        peak = rise[labels == label].max()
        if peak > recipe["threshold"]:
            at = np.nonzero((labels == label) & (rise > max(low, grow * peak)))
            first, spans = np.min(at, 1), np.ptp(at, 1) + 1
            parts = 1 + ((first == 0) | (first + spans == rise.shape))  # a border shows one of two, mirrored
            dy, dx = sides = np.ceil(np.sqrt(((parts * spans) ** 2 - blur**2).clip(0)).clip(max(blur / 8, 1)) / parts)
            y, x = np.where(parts == 1, first + (spans - sides) // 2, np.where(first == 0, 0, first + spans - sides))
            yield peak, (x, y, x + dx, y + dy)


def mask(encoder, decoder, recipe, image, rise, blur, peak, box):
    """(H, W) bool: SAM's masks of the box in a square view, voting as the map agrees with them (`choose.py`)."""
    (x0, y0, x1, y1), (height, width), choose = box, image.shape[:2], recipe["choose"]
    side = max(round(recipe["prompt"]["context"] * max(x1 - x0, y1 - y0)), recipe["prompt"]["least_view_px"])
    w, h = min(side, width), min(side, height)
    left, top = np.clip(np.round([(x0 + x1 - w) / 2, (y0 + y1 - h) / 2]), 0, [width - w, height - h]).astype(int)
    crop, px = np.s_[top : top + h, left : left + w], recipe["encoder"]["side_px"]
    columns, rows = round(w * px / max(w, h)), round(h * px / max(w, h))
    shown = np.tile(np.array(recipe["encoder"]["pad_with"], np.float32), (px, px, 1))
    shown[:rows, :columns] = cv2.resize(image[crop], (columns, rows))
    points = np.float32((np.array([[[x0, y0], [x1, y1]]]) - [left, top]) * [columns / w, rows / h])
    asked = [*encoder.run(None, {"input_0": planes(shown)}), points, np.float32([[2, 3]])]
    logits, iou = (answer[0] for answer in decoder.run(None, {f"input_{n}": each for n, each in enumerate(asked)}))
    logits, low = logits[:, : -(-rows // 4), : -(-columns // 4)], choose["from_peak"]
    evidence = np.clip((rise[crop] / peak - low) / (1 - low), 0, 1)
    expected = cv2.resize(evidence, logits.shape[:0:-1], interpolation=cv2.INTER_AREA)[..., None]
    seen = cv2.GaussianBlur(np.float32(logits > 0).transpose(1, 2, 0), (0, 0), 0.7 * blur * columns / w / 4)
    seen = np.clip((seen / seen.max((0, 1)).clip(1e-6) - low) / (1 - low), 0, 1)  # what the map would show of each
    agree = np.minimum(seen, expected).sum((0, 1)) / np.maximum(seen, expected).sum((0, 1))
    weights = np.exp((agree + choose["predicted_iou"] * iou) / 0.1)
    vote = cv2.resize(np.tensordot(weights / weights.sum(), logits, 1), (w, h))
    inside = 1 / (1 + np.exp(-vote)) + evidence > 2 * choose["least_share"]
    return np.pad(inside, ((top, height - top - h), (left, width - left - w)))


def main(folder, images):
    recipe = json.loads((folder / "recipe.json").read_text())
    graphs = [onnxruntime.InferenceSession(str(folder / recipe[n]["file"])) for n in ("heatmap", "encoder", "decoder")]
    for path in images:
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        found = anomaly_map(graphs[0], recipe, image)
        rise = cv2.resize(found, image.shape[1::-1])
        blur = recipe["prompt"]["blur_cells"] * max(np.divide(rise.shape, found.shape))
        masks = [mask(*graphs[1:], recipe, image, rise, blur, *each) for each in boxes(rise, recipe, blur)]
        if masks:
            cv2.imwrite(f"{Path(path).stem}_mask.png", 255 * np.any(masks, 0).astype(np.uint8))
        areas, verdict = [int(each.sum()) for each in masks], "fail" if masks else "pass"
        print(json.dumps({"image": path, "verdict": verdict, "score": float(found.max()), "areas_px": areas}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
