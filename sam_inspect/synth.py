"""Drawn parts: a machined flange on a conveyor belt, good or with a defect, with ground truth to the pixel.

The part is a height map with a finish (brushed plate, turned boss). Pose, light and noise are laid over it as a camera
would, so that a defect is seen by the light that it turns away, not as a patch that was pasted in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.errors import UsageError
from sam_inspect.files import make_folder, write_bytes, write_text
from sam_inspect.progress import Progress, silent

Plane = NDArray[np.float32]
Rng = np.random.Generator

IMAGE_HW = (320, 400)
TRAIN_GOOD, TEST_GOOD, TEST_DEFECTIVE = 24, 10, 5
MARKER = "product.json"
SCALE = 2  # Drawn at twice the size; all lengths below are pixels of the finished picture, from its centre.
OUTLINE_RADIUS, EAR_RADIUS, EAR_AT = 98.0, 42.0, 128.0
BORE_RADIUS, BOSS_RADIUS, BOLT_RADIUS = 38.0, 66.0, 15.0
PIN_RADIUS, PIN_AT = 6.0, 82.0
CHAMFER = 2.5
METAL_RGB, BELT_RGB = (0.385, 0.4, 0.42), (0.075, 0.105, 0.115)
DIRT_RGB = ((0.05, 0.045, 0.04), (0.26, 0.10, 0.05), (0.05, 0.10, 0.26), (0.62, 0.57, 0.40))


@dataclass(frozen=True, slots=True, eq=False)
class DrawnPart:
    """A picture of one part.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, the defect; nothing set for a good part.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Surface:
    """The part seen from above before pose and light; planes are float32 at `SCALE` times the picture's size.

    Attributes:
        cover: 1 where there is metal, 0 where one sees the belt.
        height: pixels; its slopes turn the light away.
        finish: brightness of the metal, about 1.
        dirt, dirt_rgb: how much of it something else covers, and of which colour.
        defect: the defect's own share of each pixel.
    """

    cover: Plane
    height: Plane
    finish: Plane
    dirt: Plane
    defect: Plane
    dirt_rgb: tuple[float, float, float] = DIRT_RGB[0]


@dataclass(frozen=True, slots=True)
class Product:
    """What can be drawn.

    Attributes:
        draw: a part of it, by seed, number and defect; None for a good part.
        defects: the types that it may have.
    """

    draw: Callable[[int, int, str | None], DrawnPart]
    defects: tuple[str, ...]


def write_product(folder: Path, product: Product, *, seed: int = 0, progress: Progress = silent) -> Path:
    """Draws a small product in MVTec layout: `train/good`, `test/good`, and `test/TYPE` with `ground_truth/TYPE`.

    Each part has a number of its own, which names its file. The same seed gives the same bytes. In a folder that was
    drawn before, only files that are missing or differ are written, so that one that was interrupted or spoilt is whole
    again and the others keep their time stamps.

    Args:
        folder: made where it is missing.
        product: what is drawn.
        seed: another one draws other parts of the same product.
        progress: shows how far it is.

    Returns:
        `folder`.

    Raises:
        UsageError: the folder holds something else, or another drawn product.
        OutputError: the folder cannot be written, or the disk is full.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UsageError(f"{folder}: holds files, but no drawn product", "choose another folder")
    if any(path.name not in (*product.defects, "good") for path in folder.glob("test/*")):
        raise UsageError(f"{folder}: holds another drawn product", "choose another folder")
    make_folder(folder)
    write_text(folder / MARKER, json.dumps({"drawn_by": "sam_inspect.synth", "seed": seed}) + "\n")
    defective = [kind for kind in product.defects for _ in range(TEST_DEFECTIVE)]
    plan = [("train", None)] * TRAIN_GOOD + [("test", defect) for defect in [None] * TEST_GOOD + defective]
    for number, (split, defect) in enumerate(progress(plan, "draw", len(plan))):
        part = product.draw(seed, number, defect)
        kind = defect or "good"
        _write_png(folder / split / kind / f"{number:03d}.png", part.image[..., ::-1])
        if defect is not None:
            _write_png(folder / "ground_truth" / kind / f"{number:03d}_mask.png", part.mask.astype(np.uint8) * 255)
    return folder


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()
    if not path.is_file() or path.read_bytes() != data:
        make_folder(path.parent)
        write_bytes(path, data)


def draw_part(seed: int, number: int, defect: str | None = None) -> DrawnPart:
    """One part. The same part without its defect is drawn with `defect` None: pose, finish, light and noise stay.

    Args:
        seed: of the product.
        number: of the part.
        defect: one of `DEFECTS`, or None for a good part.
    """
    rng = np.random.default_rng([seed, number])
    surface = _good_surface(rng)
    if defect is not None:
        surface = DEFECTS[defect](surface, np.random.default_rng([seed, number, 1]))
    return _photograph(surface, rng)


# The good part


@cache
def _grid() -> tuple[Plane, Plane]:
    """x and y of each drawn pixel."""
    height, width = IMAGE_HW
    y, x = np.mgrid[: height * SCALE, : width * SCALE].astype(np.float32)
    return (x + 0.5) / SCALE - width / 2, (y + 0.5) / SCALE - height / 2


def _inside_disc(x: float, y: float, radius: float) -> Plane:
    """Distance to a circle, positive inside."""
    grid_x, grid_y = _grid()
    return np.asarray(radius - np.hypot(grid_x - x, grid_y - y), np.float32)


@cache
def _inside_outline() -> Plane:
    """Distance to the hull of the middle disc and the two ears, positive inside (Quilez' uneven capsule, twice)."""
    x, y = np.abs(_grid())
    slope = (OUTLINE_RADIUS - EAR_RADIUS) / EAR_AT
    across = math.sqrt(1 - slope**2)
    along = across * x - slope * y
    flank = OUTLINE_RADIUS - (slope * x + across * y)
    ends = np.where(along < 0, _inside_disc(0, 0, OUTLINE_RADIUS), EAR_RADIUS - np.hypot(x - EAR_AT, y))
    return np.asarray(np.where((along >= 0) & (along <= across * EAR_AT), flank, ends), np.float32)


@cache
def _metal() -> Plane:
    """Distance to the nearest edge of the metal, positive where there is metal."""
    pin = PIN_AT / math.sqrt(2)
    holes = [(0.0, 0.0, BORE_RADIUS), (-EAR_AT, 0.0, BOLT_RADIUS), (EAR_AT, 0.0, BOLT_RADIUS)]
    holes += [(sx * pin, sy * pin, PIN_RADIUS) for sx in (-1, 1) for sy in (-1, 1)]
    return np.asarray(np.min([_inside_outline(), *(-_inside_disc(*hole) for hole in holes)], axis=0), np.float32)


@cache
def _nominal_height() -> Plane:
    """Chamfered edges, the boss, and the stamped mark."""
    height = np.minimum(_metal(), CHAMFER) + 1.8 * np.clip(_inside_disc(0, 0, BOSS_RADIUS) / 2, 0, 1)
    mark = np.zeros(height.shape, np.uint8)
    left, baseline = int((200 - 108) * SCALE), int((160 + 5) * SCALE)
    cv2.putText(mark, "F40", (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.42 * SCALE, 255, SCALE, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(height - mark / 255 * 1.6, (0, 0), 0.4 * SCALE), np.float32)


def _coverage(distance: Plane) -> Plane:
    """Share of each pixel that lies inside, from the distance to the edge."""
    return np.asarray(np.clip(distance * SCALE + 0.5, 0, 1), np.float32)


def _good_surface(rng: Rng) -> _Surface:
    x, y = _grid()
    brushed = _noise(rng, along=70, across=1)
    rings = cv2.GaussianBlur(rng.standard_normal((1, 800)).astype(np.float32), (0, 0), 1.2)[0]
    radius = np.hypot(x - rng.normal(0, 0.6), y - rng.normal(0, 0.6))
    turned = np.interp(radius * 6, np.arange(800), rings / rings.std())
    angle = np.arctan2(y, x) - math.radians(rng.normal(-40, 6))
    glint = np.exp(-((np.sin(angle) / 0.42) ** 2)) - 0.4
    boss = _coverage(_inside_disc(0, 0, BOSS_RADIUS))
    plate = 1 + 0.055 * brushed + 0.03 * _noise(rng, along=16, across=12)
    finish = plate * (1 - boss) + (1.04 + 0.04 * turned + 0.5 * glint) * boss
    empty = np.zeros(x.shape, np.float32)
    return _Surface(_coverage(_metal()), _nominal_height(), np.asarray(finish, np.float32), empty, empty)


def _noise(rng: Rng, along: float, across: float) -> Plane:
    """Noise of standard deviation 1, smooth over `along` pixels in x and `across` in y."""
    size = (int(along * SCALE) | 1, int(across * SCALE) | 1)
    plane = cv2.blur(cv2.blur(rng.standard_normal(_grid()[0].shape, np.float32), size), size)
    return np.asarray(plane / plane.std(), np.float32)


# The camera


def _photograph(surface: _Surface, rng: Rng) -> DrawnPart:
    """The part as it lies on the belt, in the light, through the lens."""
    posed = _posed(surface, rng)
    metal = _rgb(METAL_RGB, posed.finish * np.float32(rng.normal(1, 0.02)))
    metal += (np.array(posed.dirt_rgb, np.float32) - metal) * posed.dirt[..., None]
    metal *= _shading(posed.height)[..., None]
    scene = _belt(rng, posed.cover)
    scene += (metal - scene) * posed.cover[..., None]
    scene *= _light(rng)[..., None]
    return DrawnPart(_exposed(scene, rng), _small(posed.defect) > 0.5)


def _posed(surface: _Surface, rng: Rng) -> _Surface:
    """Turned by a few degrees, moved by a few pixels."""
    height, width = (side * SCALE for side in IMAGE_HW)
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-3, 3), 1.0)
    pose = np.asarray(turn, np.float64)
    pose[:, 2] += rng.uniform(-6, 6, 2) * SCALE

    def moved(plane: Plane) -> Plane:
        return np.asarray(cv2.warpAffine(plane, pose, (width, height), borderMode=cv2.BORDER_REPLICATE), np.float32)

    return _Surface(
        cover=moved(surface.cover),
        height=moved(surface.height),
        finish=moved(surface.finish),
        dirt=moved(surface.dirt),
        defect=moved(surface.defect),
        dirt_rgb=surface.dirt_rgb,
    )


def _shading(height: Plane) -> Plane:
    """Brightness by slope, for light from above left."""
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=SCALE / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=SCALE / 8)
    return np.asarray(np.clip(1 + 0.4 * np.tanh(0.6 * slope_x + 0.8 * slope_y), 0.3, 1.5), np.float32)


def _belt(rng: Rng, cover: Plane) -> Plane:
    """Woven rubber with the part's shadow on it, and darkness in the holes."""
    x, y = _grid()
    weave = np.sin((x + y) * 0.9 + rng.uniform(0, 2 * np.pi)) * np.sin((x - y) * 0.9 + rng.uniform(0, 2 * np.pi))
    rubber = 1 + 0.10 * weave + 0.035 * _noise(rng, along=30, across=10) + 0.07 * _noise(rng, along=1, across=1)
    shift = np.array([[1, 0, 5 * SCALE], [0, 1, 7 * SCALE]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, shift, cover.shape[::-1]), (0, 0), 5 * SCALE)
    return _rgb(BELT_RGB, np.asarray(rubber * (1 - 0.65 * shadow), np.float32))


def _light(rng: Rng) -> Plane:
    """A lamp above left: brighter there by a tenth."""
    x, y = _grid()
    angle, fall = math.radians(rng.normal(225, 8)), rng.normal(0.12, 0.015)
    return np.asarray(1 + fall * (x * math.cos(angle) + y * math.sin(angle)) / 200, np.float32)


def _exposed(scene: Plane, rng: Rng) -> NDArray[np.uint8]:
    """Through the lens and the sensor: blur, finished size, gamma, noise."""
    light = _small(np.asarray(cv2.GaussianBlur(scene, (0, 0), 0.55 * SCALE), np.float32))
    picture = np.sqrt(np.clip(light, 0, 1)) * 255 + 1.8 * rng.standard_normal(light.shape, np.float32)
    return np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)


def _rgb(colour: tuple[float, float, float], brightness: Plane) -> Plane:
    return brightness[..., None] * np.array(colour, np.float32)


def _small(plane: Plane) -> Plane:
    height, width = IMAGE_HW
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA), np.float32)


# The defects


def _scratch(surface: _Surface, rng: Rng) -> _Surface:
    """A thin curved groove whose raised lips glint."""
    line = _curve(rng, length=rng.uniform(40, 120), bend=rng.uniform(0.05, 0.2))
    stroke = _stroke(line, width=rng.uniform(2.4, 3.8)) * surface.cover
    groove = cv2.GaussianBlur(stroke, (0, 0), 0.4 * SCALE)
    bright = 1 + groove * (0.3 + 0.08 * _noise(rng, along=4, across=4))
    return replace(surface, height=surface.height - 0.9 * groove, finish=surface.finish * bright, defect=stroke)


def _dent(surface: _Surface, rng: Rng) -> _Surface:
    """A soft hollow where something fell on it."""
    radius = rng.uniform(10, 21)
    x, y = _spot(rng, clear=radius * 0.7)
    inside = _blob(rng, x, y, radius, rough=0.06)
    share = np.clip(inside / (0.65 * radius), 0, 1)
    hollow = share * share * (3 - 2 * share) * surface.cover
    return replace(
        surface,
        height=surface.height - (1.0 + 0.45 * radius) * hollow,
        finish=surface.finish * (1 - 0.12 * hollow),
        defect=_coverage(inside - 0.08 * radius) * surface.cover,
    )


def _chip(surface: _Surface, rng: Rng) -> _Surface:
    """A piece broken out of the outer edge; the break is rough and slopes down to it."""
    rim = np.abs(_inside_outline()) < 0.5 / SCALE
    spot = rng.integers(np.count_nonzero(rim))
    x, y = (float(plane[rim][spot]) for plane in _grid())
    inside = _blob(rng, x, y, rng.uniform(10, 20), rough=0.2)
    gone, broken = _coverage(inside - 3), _coverage(inside)
    rough = _noise(rng, along=1.5, across=1.5)
    return replace(
        surface,
        cover=surface.cover * (1 - gone),
        height=surface.height - np.clip(inside, 0, 4) * 0.9 + 0.4 * rough * broken,
        finish=surface.finish * (1 + broken * (0.15 * rough - 0.45)),
        defect=broken * surface.cover,
    )


def _contamination(surface: _Surface, rng: Rng) -> _Surface:
    """A fibre, or a few particles, lying on the metal."""
    if rng.random() < 0.5:
        line = _curve(rng, length=rng.uniform(40, 90), bend=rng.uniform(0.15, 0.4))
        dirt = _stroke(line, width=rng.uniform(2.6, 3.8), taper=False)
    else:
        x, y = _spot(rng, clear=14)
        near = rng.normal(0, 11, (int(rng.integers(1, 4)), 2))
        blobs = [_blob(rng, x + dx, y + dy, rng.uniform(4, 10), rough=0.2) for dx, dy in near]
        dirt = _coverage(np.max(blobs, axis=0))
    colour = DIRT_RGB[int(rng.integers(len(DIRT_RGB)))]
    dirt = dirt * surface.cover
    raised = cv2.GaussianBlur(dirt, (0, 0), 0.8 * SCALE)
    height = surface.height + 1.2 * raised
    return replace(surface, height=height, dirt=0.9 * dirt, dirt_rgb=colour, defect=dirt)


DEFECTS: dict[str, Callable[[_Surface, Rng], _Surface]] = {
    "chip": _chip,
    "contamination": _contamination,
    "dent": _dent,
    "scratch": _scratch,
}
FLANGE = Product(draw_part, tuple(DEFECTS))


def _spot(rng: Rng, clear: float) -> tuple[float, float]:
    """A place on the metal, `clear` pixels from its edges."""
    places = np.argwhere(_metal() > clear)
    row, column = places[rng.integers(len(places))]
    x, y = _grid()
    return float(x[row, column]), float(y[row, column])


def _blob(rng: Rng, x: float, y: float, radius: float, rough: float) -> Plane:
    """Distance to an uneven round outline, positive inside."""
    grid_x, grid_y = _grid()
    angle = np.arctan2(grid_y - y, grid_x - x)
    waves = [np.cos(k * angle + rng.uniform(0, 2 * np.pi)) * rng.normal(0, rough / k**0.5) for k in (2, 3, 5)]
    return np.asarray(radius * (1 + sum(waves)) - np.hypot(grid_x - x, grid_y - y), np.float32)


def _curve(rng: Rng, length: float, bend: float) -> NDArray[np.float64]:
    """(40, 2) points x, y of a bent line, of 50 tries the first that lies on the metal, or nearly so."""
    step = np.linspace(-0.5, 0.5, 40)[:, None]
    tries: list[tuple[float, NDArray[np.float64]]] = []
    for _ in range(50):
        angle = rng.uniform(0, 2 * np.pi)
        along, across = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        line = np.array(_spot(rng, clear=3)) + length * (step * along + bend * (4 * step**2 - 0.3) * across)
        at = np.clip(np.rint(_on_grid(line)).astype(int), 0, np.array(_metal().shape[::-1]) - 1)
        share = float(np.mean(_metal()[at[:, 1], at[:, 0]] > 1))
        tries.append((share, line))
        if share > 0.97:
            break
    return max(tries, key=lambda tried: tried[0])[1]


def _on_grid(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points x, y from the picture's centre as column, row of the drawn planes."""
    return np.asarray((line + np.array(IMAGE_HW[::-1]) / 2) * SCALE - 0.5)


def _stroke(line: NDArray[np.float64], width: float, taper: bool = True) -> Plane:
    """Share of each pixel that a brush of `width` pixels along `line` covers, thinner at its ends with `taper`."""
    plane = np.zeros(_metal().shape, np.uint8)
    at = np.rint(_on_grid(line) * 16).astype(int)  # OpenCV's fixed point, four bits
    for index, (start, end) in enumerate(pairwise(at)):
        share = math.sin(math.pi * (index + 1) / len(line)) ** 0.4 if taper else 1.0
        cv2.line(plane, start.tolist(), end.tolist(), 255, max(2, round(width * SCALE * share)), cv2.LINE_AA, 4)
    return np.asarray(plane / np.float32(255), np.float32)
