"""Inspects with an exported recipe, nothing of sam_inspect: python run_exported.py EXPORT IMAGE... > results.jsonl"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def regions(rise, recipe, blur):
    """(peak, where, box) of what rises above the threshold, to a share of its peak, less its blur (`prompt.py`)."""
    grow, low = recipe["prompt"]["grow"], recipe["prompt"]["floor"] * recipe["threshold"]
    count, labels = cv2.connectedComponents((rise > low).astype(np.uint8))
    for alone in (np.where(labels == label, rise, 0) for label in range(1, count)):
        if (peak := alone.max()) > recipe["threshold"]:
            at = np.nonzero(alone > max(low, grow * peak))
            first, spans = np.min(at, 1), np.ptp(at, 1) + 1
            parts = 1 + ((first == 0) | (first + spans == rise.shape))  # a border shows one of two, mirrored
            dy, dx = sides = np.ceil(np.sqrt(((parts * spans) ** 2 - blur**2).clip(0)).clip(max(blur / 8, 1)) / parts)
            y, x = np.where(parts == 1, first + (spans - sides) // 2, np.where(first == 0, 0, first + spans - sides))
            yield peak, np.add(np.unravel_index(alone.argmax(), rise.shape)[::-1], 0.5), [(x, y), (x + dx, y + dy)]


def mask(encoder, decoder, recipe, image, rise, blur, peak, where, box):
    """(H, W) bool: SAM's masks, voting as the map agrees (`choose.py`), of a box, then of what it gave (`ask.py`)."""
    (height, width), choose, px = image.shape[:2], recipe["choose"], recipe["encoder"]["side_px"]
    side = max(round(recipe["prompt"]["context"] * np.ptp(box, 0).max()), recipe["prompt"]["least_view_px"])
    size = w, h = np.minimum(side, (width, height)).astype(int)
    left, top = corner = np.clip(np.round(np.mean(box, 0) - size / 2), 0, (width - w, height - h)).astype(int)
    crop, (columns, rows) = np.s_[top : top + h, left : left + w], np.round(size * px / size.max()).astype(int)
    ways = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])[: 4 if choose["mirrored"] else 1]  # x, y; -1: mirrored
    shown = np.tile(np.array(recipe["encoder"]["pad_with"], np.float32), (len(ways), px, px, 1))
    shown[:, :rows, :columns] = [cv2.resize(image[crop][::y, ::x], (columns, rows)) for x, y in ways]
    seen, low = [encoder.run(None, {"input_0": cv2.dnn.blobFromImage(each)})[0] for each in shown], choose["from_peak"]
    evidence, cells = np.clip((rise[crop] / peak - low) / (1 - low), 0, 1), (-(-columns // 4), -(-rows // 4))
    expected = cv2.resize(evidence, cells, interpolation=cv2.INTER_AREA)[..., None]

    def outline(*prompts):
        sides = []
        for way, features in zip(ways, seen, strict=True):
            xy = [(p - corner - size * (way < 0)) / size * way * (columns, rows) for p in prompts]
            xy = [np.float32([[*p[:-2], *np.sort(p[-2:], 0)]]) for p in xy]
            asked = [{"input_0": features, "input_1": p, "input_2": np.float32([[1, 2, 3][-p.shape[1] :]])} for p in xy]
            logits, iou = (np.hstack(each)[0] for each in zip(*(decoder.run(None, a) for a in asked), strict=True))
            sides.append((logits[:, : cells[1], : cells[0]][:, :: way[1], :: way[0]], iou))
        logits, iou = (np.mean(each, 0) for each in zip(*sides, strict=True))
        would = cv2.GaussianBlur(np.float32(logits > 0).transpose(1, 2, 0), (0, 0), 0.7 * blur * columns / w / 4)
        would = np.clip((would / would.max((0, 1)).clip(1e-6) - low) / (1 - low), 0, 1)  # what the map shows of each
        agree = np.minimum(would, expected).sum((0, 1)) / np.maximum(would, expected).sum((0, 1))
        vote = np.average(logits, 0, np.exp((agree + choose["predicted_iou"] * iou) / 0.1))
        sees = np.uint8(1 / (1 + np.exp(-cv2.resize(vote, (w, h)))) > (2 * choose["least_share"] - evidence).clip(0.01))
        return sees * (np.bincount((part := cv2.connectedComponents(sees)[1]).flat) >= 0.02 * sees.sum())[part]

    x, y, dx, dy = cv2.boundingRect(outline(np.array(box), np.array([where, *box])))
    grown = np.clip([(x - 0.025 * dx, y - 0.025 * dy), (x + 1.025 * dx, y + 1.025 * dy)], 0, size)
    return np.pad(outline(grown + corner), ((top, height - top - h), (left, width - left - w)))


def main(folder, images):
    """Prints a line of JSON for each image, and writes its mask, which is black where it passes."""
    recipe = json.loads((folder / "recipe.json").read_text())
    graphs = [onnxruntime.InferenceSession(str(folder / recipe[n]["file"])) for n in ("heatmap", "encoder", "decoder")]
    for path in images:
        image, looks = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB), {}
        for look in recipe["heatmap"]["inputs"]:
            high, by = look["height"], cv2.INTER_AREA if look["height"] < image.shape[0] else cv2.INTER_LINEAR
            looks[look["name"]] = cv2.dnn.blobFromImage(cv2.resize(image, (look["width"], high), interpolation=by))
        found = graphs[0].run(None, looks)[0]
        rise = cv2.resize(found, image.shape[1::-1])
        blur = recipe["prompt"]["blur_cells"] * max(np.divide(rise.shape, found.shape))
        masks = [mask(*graphs[1:], recipe, image, rise, blur, *each) for each in regions(rise, recipe, blur)]
        cv2.imwrite(f"{Path(path).stem}_mask.png", 255 * np.uint8(np.any([np.zeros(rise.shape), *masks], 0)))
        areas, verdict = [int(each.sum()) for each in masks], "fail" if masks else "pass"
        print(json.dumps({"image": path, "verdict": verdict, "score": float(found.max()), "areas_px": areas}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
