"""A drawn bottle: its glossy mouth seen from above, whole, broken or dirty, with ground truth to the pixel.

What MVTec AD's bottles show, so that tests and trials run the case of broken bottles without the real pictures. All is
drawn in polar coordinates about the mouth; light falls from a ring lamp with four windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_inspect.synth import DrawnPart, Product

Plane = NDArray[np.float32]
Rng = np.random.Generator

SIDE_PX = 360
SCALE = 2  # Drawn at twice the size; all lengths below are pixels of the finished picture, from its centre.
BODY_RADIUS, LIP_OUTER, LIP_INNER, FLOOR_RADIUS = 158.0, 104.0, 68.0, 44.0
LAMP_RGB, GLASS_RGB, EDGE_RGB = (0.86, 0.87, 0.86), (0.075, 0.045, 0.03), (0.42, 0.22, 0.09)
DIRT_RGB = ((0.80, 0.80, 0.76), (0.12, 0.22, 0.42), (0.55, 0.45, 0.30))


def draw_bottle(seed: int, number: int, defect: str | None = None) -> DrawnPart:
    """One bottle. The same bottle without its defect is drawn with `defect` None: place, light and noise stay.

    Args:
        seed: of the product.
        number: of the bottle.
        defect: one of `BOTTLE_DEFECTS`, or None for a good one.
    """
    rng = np.random.default_rng([seed, number, 7])
    centre, turn, light = rng.normal(0, 1.5, 2), rng.normal(0, 0.05), rng.normal(1, 0.03)
    radius, angle = _polar(centre, turn)
    scene = _glass(radius, angle, rng)
    mask = np.zeros(radius.shape, np.float32)
    if defect is not None:
        scene, mask = BOTTLE_DEFECTS[defect](scene, radius, angle, np.random.default_rng([seed, number, 8]))
    return DrawnPart(_exposed(scene * np.float32(light), rng), _small(mask) > 0.5)


@cache
def _grid() -> tuple[Plane, Plane]:
    y, x = np.mgrid[: SIDE_PX * SCALE, : SIDE_PX * SCALE].astype(np.float32)
    return (x + 0.5) / SCALE - SIDE_PX / 2, (y + 0.5) / SCALE - SIDE_PX / 2


def _polar(centre: NDArray[np.float64], turn: float) -> tuple[Plane, Plane]:
    x, y = (axis - np.float32(offset) for axis, offset in zip(_grid(), centre, strict=True))
    return np.asarray(np.hypot(x, y), np.float32), np.asarray(np.arctan2(y, x) + turn, np.float32)


def _glass(radius: Plane, angle: Plane, rng: Rng) -> Plane:
    """The whole bottle on its light table, (H, W, 3)."""
    windows = np.clip(np.cos(2 * angle - 0.6), 0, 1) ** 3
    body = _inside(radius, BODY_RADIUS)
    thin = np.exp(-(((radius - BODY_RADIUS) / 9) ** 2)) + 0.35 * np.exp(-(((radius - 124) / 5) ** 2))
    across = (radius - (LIP_OUTER + LIP_INNER) / 2) / ((LIP_OUTER - LIP_INNER) / 2)
    lip = _inside(radius, LIP_OUTER) * (1 - _inside(radius, LIP_INNER))
    gloss = np.exp(-(((across + 0.45) / 0.10) ** 2)) * (0.35 + 0.65 * windows)
    gloss += 0.5 * np.exp(-(((across - 0.62) / 0.13) ** 2)) * (0.3 + 0.7 * np.roll(windows, 40 * SCALE, 0))
    floor = 0.35 * np.exp(-(((radius - FLOOR_RADIUS) / 4) ** 2)) + 0.12 * _inside(radius, FLOOR_RADIUS)
    inside = _inside(radius, LIP_INNER)
    grain = 1 + 0.05 * _noise(rng, 5) + 0.03 * _noise(rng, 24)
    scene = _rgb(LAMP_RGB, 1 - 0.04 * (radius / SIDE_PX))
    glass = _rgb(GLASS_RGB, grain) + _rgb(EDGE_RGB, 0.55 * thin * grain + floor * inside)
    glass += _rgb((0.9, 0.92, 0.95), 0.75 * gloss * lip) + _rgb(EDGE_RGB, 0.22 * lip * (1 - across**2))
    return np.asarray(scene + (glass - scene) * body[..., None], np.float32)


# The defects


def _broken(scene: Plane, radius: Plane, angle: Plane, rng: Rng, span: float, depth: float) -> tuple[Plane, Plane]:
    """A piece out of the lip: what is left is a fracture of bright and dark facets with a glinting edge."""
    at = rng.uniform(-math.pi, math.pi)
    away = (angle - at + math.pi) % (2 * math.pi) - math.pi
    rough = 3.0 * _noise(rng, 7) + 1.5 * _noise(rng, 2)
    reach = 1 - np.abs(2 * away / span) ** rng.uniform(1.6, 3.0)
    outer = LIP_INNER + depth * np.clip(reach, 0, 1) ** 0.6 + rough
    inner = LIP_INNER - 3 - 0.4 * np.abs(rough)
    inside = np.minimum(outer - radius, radius - inner)
    share = np.clip(inside * SCALE / 2 + 0.5, 0, 1) * (reach > 0)
    facets = np.clip(0.22 + 0.16 * _noise(rng, 9) + 0.10 * _noise(rng, 3), 0.02, 0.9)
    edge = np.exp(-((inside / 1.6) ** 2)) * (0.5 + 0.3 * _noise(rng, 6))
    fracture = _rgb((0.62, 0.52, 0.42), facets + 0.7 * np.clip(edge, 0, 1))
    return np.asarray(scene + (fracture - scene) * share[..., None], np.float32), np.asarray(share, np.float32)


def _broken_large(scene: Plane, radius: Plane, angle: Plane, rng: Rng) -> tuple[Plane, Plane]:
    return _broken(scene, radius, angle, rng, rng.uniform(0.9, 1.9), rng.uniform(20, 34))


def _broken_small(scene: Plane, radius: Plane, angle: Plane, rng: Rng) -> tuple[Plane, Plane]:
    return _broken(scene, radius, angle, rng, rng.uniform(0.22, 0.45), rng.uniform(9, 17))


def _contamination(scene: Plane, radius: Plane, angle: Plane, rng: Rng) -> tuple[Plane, Plane]:
    """Something that fell in: a lump or a fluff on the inner wall or the floor."""
    at, away = rng.uniform(-math.pi, math.pi), rng.uniform(5, LIP_INNER - 14)
    x, y = _grid()
    dx, dy = x - away * math.cos(at), y - away * math.sin(at)
    turn, long = rng.uniform(0, math.pi), rng.uniform(1.0, 2.6)
    along, across = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    size = rng.uniform(7, 20)
    inside = size * (1 + 0.22 * _noise(rng, 8)) - np.hypot(along / long, across) + 1.2 * _noise(rng, 2)
    share = np.clip(inside * SCALE / 2 + 0.5, 0, 1) * _inside(radius, LIP_INNER - 2)
    colour = DIRT_RGB[rng.integers(len(DIRT_RGB))]
    dirt = _rgb(colour, np.clip(0.75 + 0.2 * _noise(rng, 4), 0.2, 1.2))
    return np.asarray(scene + (dirt - scene) * share[..., None], np.float32), np.asarray(share, np.float32)


Defect = Callable[[Plane, Plane, Plane, Rng], tuple[Plane, Plane]]
BOTTLE_DEFECTS: dict[str, Defect] = {
    "broken_large": _broken_large,
    "broken_small": _broken_small,
    "contamination": _contamination,
}
BOTTLE = Product(draw_bottle, tuple(BOTTLE_DEFECTS))


def _inside(radius: Plane, limit: float) -> Plane:
    """1 inside a circle, 0 outside, soft over a pixel."""
    return np.asarray(np.clip((limit - radius) * SCALE / 2 + 0.5, 0, 1), np.float32)


def _noise(rng: Rng, size_px: float) -> Plane:
    """Noise of standard deviation 1, smooth over `size_px`."""
    side = max(4, round(SIDE_PX / size_px))
    plane = cv2.resize(
        rng.standard_normal((side, side), np.float32), (SIDE_PX * SCALE,) * 2, interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(plane / plane.std(), np.float32)


def _rgb(colour: tuple[float, float, float], brightness: Plane | NDArray[np.float64]) -> Plane:
    return np.asarray(brightness, np.float32)[..., None] * np.array(colour, np.float32)


def _exposed(scene: Plane, rng: Rng) -> NDArray[np.uint8]:
    light = _small(np.asarray(cv2.GaussianBlur(scene, (0, 0), 0.5 * SCALE), np.float32))
    picture = np.sqrt(np.clip(light, 0, 1)) * 255 + 1.6 * rng.standard_normal(light.shape, np.float32)
    return np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)


def _small(plane: Plane) -> Plane:
    return np.asarray(cv2.resize(plane, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.float32)
