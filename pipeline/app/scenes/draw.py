"""Scenes as pictures: things like stickers, with texture, light and shadow, on painted backgrounds."""

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg

from pipeline.app.scenes.world import BACKGROUNDS, RADIUS, Scene, Thing

RGB = tuple[float, float, float]
Picture = np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3] RGB

PAINT: dict[str, RGB] = {
    "red": (222, 38, 42),
    "orange": (250, 134, 14),
    "yellow": (252, 220, 40),
    "green": (40, 158, 62),
    "blue": (36, 92, 216),
    "purple": (128, 52, 178),
    "pink": (252, 132, 190),
    "white": (246, 246, 244),
}
VARIANTS = 10  # painted sheets of each background; pictures are crops of them
SHEET = 1.5  # side of a sheet, in picture sides
TILE = 96  # px of a texture tile; it covers [-1.25, 1.25] in units of the thing's radius
TILE_REACH = 1.25


class Painter:
    """Draws scenes at one picture size; the sheets of the backgrounds depend on the seed alone."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.sheets = {name: [_sheet(name, size, random.Random(f"{seed}/{name}/{n}")) for n in range(VARIANTS)] for name in BACKGROUNDS}

    def paint(self, scene: Scene, rng: random.Random) -> Picture:
        """Draw a scene; `rng` decides what the ground truth leaves open (sheet, light, tilt, hue)."""
        picture = self._background(scene.background, rng)
        for thing in sorted(scene.things, key=lambda thing: thing.y):  # what lies lower lies nearer: its shadow falls over the others
            self._put(picture, thing, rng)
        return picture

    def _background(self, name: str, rng: random.Random) -> Picture:
        sheet = rng.choice(self.sheets[name])
        room = sheet.shape[0] - self.size
        top, left = rng.randint(0, room), rng.randint(0, room)
        crop = sheet[top : top + self.size, left : left + self.size]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        picture: Picture = cv2.convertScaleAbs(crop, alpha=rng.uniform(0.9, 1.08), beta=rng.uniform(-6, 6))
        return picture

    def _put(self, picture: Picture, thing: Thing, rng: random.Random) -> None:
        radius = RADIUS[thing.size] * self.size * rng.uniform(0.92, 1.0)
        centre = np.array([thing.x, thing.y]) * self.size
        tilt = math.radians(rng.uniform(-14, 14))
        paint = _jittered(PAINT[thing.colour], rng)
        reach = radius * 1.3 + 2
        left, top = (max(0, int(value - reach)) for value in centre)
        right, bottom = (min(self.size, int(value + reach) + 1) for value in centre)
        patch = picture[top:bottom, left:right]
        outline = _rotated(tilt) * radius
        points = _fixed_point(SHAPE_OUTLINES[thing.shape] @ outline.T + centre - (left, top))

        mask = np.zeros(patch.shape[:2], np.uint8)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SHIFT)
        rim = mask.copy()
        cv2.polylines(rim, [points], True, 255, max(2, round(radius * 0.2)), cv2.LINE_AA, _SHIFT)
        fall = np.array([[1, 0, radius * 0.1], [0, 1, radius * 0.14]])
        shadow = cv2.blur(cv2.warpAffine(rim, fall, rim.shape[::-1]), (_odd(radius * 0.3),) * 2)

        shades = _shades(thing.texture, tilt, radius, centre - (left, top), mask.shape)
        body = np.multiply.outer(shades, np.array(paint, np.float32))
        ground = patch.astype(np.float32)
        ground *= (1 - shadow.astype(np.float32) * (0.42 / 255))[..., None]
        ground += (np.float32(252) - ground) * (rim.astype(np.float32) * (0.92 / 255))[..., None]
        ground += (body - ground) * (mask.astype(np.float32) / 255)[..., None]
        patch[:] = np.clip(ground, 0, 255)
        cv2.polylines(patch, [points], True, tuple(channel * 0.45 for channel in paint), max(1, round(radius * 0.05)), cv2.LINE_AA, _SHIFT)


def to_jpeg(picture: Picture, quality: int) -> bytes:
    """JPEG bytes of an RGB picture; 4:4:4, as subsampled chroma would wash out small things."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=quality, colorspace="RGB", colorsubsampling="444")
    return data


# --- things

_SHIFT = 4  # cv2 takes polygon corners as integers; this many bits are the fraction


def _fixed_point(points: Any) -> Any:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _odd(value: float) -> int:
    return max(1, int(value)) | 1


def _rotated(angle: float) -> Any:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _jittered(paint: RGB, rng: random.Random) -> RGB:
    """A paint of the same name: a little lighter or darker, each channel a little off."""
    light = rng.uniform(0.92, 1.06)
    red, green, blue = (min(255.0, channel * light + rng.uniform(-9, 9)) for channel in paint)
    return max(0.0, red), max(0.0, green), max(0.0, blue)


def _polar(radius: Callable[[float], float], corners: int) -> Any:
    angles = [2 * math.pi * n / corners for n in range(corners)]
    return np.array([(radius(angle) * math.sin(angle), -radius(angle) * math.cos(angle)) for angle in angles])


def _star() -> Any:
    return _polar(lambda angle: 1.0 if round(angle * 10 / (2 * math.pi)) % 2 == 0 else 0.45, 10) + np.array([0, 0.06])


def _heart() -> Any:
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(angles) ** 3
    y = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return np.stack([x, -y - 2.5], axis=1) / 16.5


def _moon() -> Any:
    outer = [(math.cos(a), math.sin(a)) for a in np.linspace(math.radians(50), math.radians(310), 36)]
    inner = [(0.36 + 0.81 * math.cos(a), 0.81 * math.sin(a)) for a in np.linspace(math.radians(288), math.radians(72), 30)]
    return np.array([*outer, *inner]) + np.array([0.12, 0])


def _cross() -> Any:
    arm, end = 0.32, 0.92
    quarter = [(-arm, -end), (arm, -end), (arm, -arm)]
    return np.array([np.array(corner) @ _rotated(-turn * math.pi / 2) for turn in range(4) for corner in quarter])


SHAPE_OUTLINES: dict[str, Any] = {
    "circle": _polar(lambda _: 0.92, 48),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8,
    "triangle": np.array([(0, -0.95), (0.98, 0.75), (-0.98, 0.75)]),
    "star": _star(),
    "heart": _heart(),
    "moon": _moon(),
    "flower": _polar(lambda angle: 0.5 + 0.5 * abs(math.cos(2.5 * angle)) ** 0.6, 100),
    "cross": _cross(),
}


@functools.cache
def _tile(texture: str) -> Any:
    """How dark the texture's second tone is, 0 to 1, [TILE, TILE]."""
    side = np.linspace(-TILE_REACH, TILE_REACH, TILE)
    x, y = np.meshgrid(side, side)
    waves = {
        "plain": np.full_like(x, -1.0),
        "striped": np.sin((x * 0.8 + y * 0.6) * 2 * math.pi / 0.62),
        "dotted": np.cos(x * 2 * math.pi / 0.62) + np.cos(y * 2 * math.pi / 0.62) - 0.75,
        "checkered": np.sin(x * math.pi / 0.42) * np.sin(y * math.pi / 0.42) * 2,
    }
    return np.clip(waves[texture] * 3 + 0.5, 0, 1).astype(np.float32)


@functools.cache
def _light() -> Any:
    """Brightness of a thing lit from the top left, [TILE, TILE]."""
    side = np.linspace(-TILE_REACH, TILE_REACH, TILE)
    x, y = np.meshgrid(side, side)
    return (1.02 - 0.09 * (x + y) + 0.16 * np.exp(-((x + 0.4) ** 2 + (y + 0.45) ** 2) * 4)).astype(np.float32)


def _shades(texture: str, tilt: float, radius: float, centre: Any, shape: tuple[int, ...]) -> Any:
    """Brightness of each pixel of a thing, around 1: light times texture, [h, w]."""
    scale = TILE / (2 * TILE_REACH * radius)
    turn = _rotated(-tilt) * scale
    size = (shape[1], shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    middle = TILE / 2

    def warped(tile: Any, matrix: Any) -> Any:
        offset = middle - matrix @ centre
        return cv2.warpAffine(tile, np.column_stack([matrix, offset]), size, flags=flags, borderMode=cv2.BORDER_REPLICATE)

    light = warped(_light(), np.eye(2) * scale)
    return light if texture == "plain" else light * (1 - 0.5 * warped(_tile(texture), turn))


# --- backgrounds: painted once per seed at twice the size, then scaled down


def _sheet(name: str, size: int, rng: random.Random) -> Picture:
    side = round(size * SHEET)
    canvas = _BACKGROUNDS[name](2 * side, rng)
    sheet: Picture = cv2.resize(np.clip(canvas, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_AREA)
    return sheet


def _gradient(side: int, top: RGB, bottom: RGB) -> Any:
    ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    return np.repeat(np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp, side, axis=1)


def _clouds(side: int, rng: random.Random, grain: tuple[float, float]) -> Any:
    """Smooth noise in -1..1 whose spots are `grain` (wide, high) shares of the side, [side, side, 1]."""
    noise = np.random.default_rng(rng.getrandbits(32)).uniform(-1, 1, (max(2, round(1 / grain[1])), max(2, round(1 / grain[0])))).astype(np.float32)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]


def _stroke(canvas: Any, start: tuple[float, float], end: tuple[float, float], paint: RGB, thickness: int) -> None:
    cv2.line(canvas, (round(start[0]), round(start[1])), (round(end[0]), round(end[1])), paint, thickness, cv2.LINE_AA)


def _spot(canvas: Any, x: float, y: float, radius: float, paint: RGB) -> None:
    cv2.circle(canvas, (round(x), round(y)), max(1, round(radius)), paint, -1, cv2.LINE_AA)


def _meadow(side: int, rng: random.Random) -> Any:
    canvas = _gradient(side, (158, 204, 104), (112, 172, 74)) + 9 * _clouds(side, rng, (0.12, 0.09))
    for _ in range(900):
        x, y, length, light = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.012, 0.035) * side, rng.uniform(-24, 26)
        _stroke(canvas, (x, y), (x + rng.uniform(-0.4, 0.4) * length, y - length), (126 + light, 184 + light, 84 + light * 0.6), 2)
    for _ in range(14):
        x, y, petal = rng.uniform(0, side), rng.uniform(0, side), side * 0.006
        for turn in range(5):
            _spot(canvas, x + petal * 1.2 * math.cos(turn * 1.257), y + petal * 1.2 * math.sin(turn * 1.257), petal * 0.8, (244, 246, 232))
        _spot(canvas, x, y, petal * 0.8, (240, 206, 80))
    return canvas


def _beach(side: int, rng: random.Random) -> Any:
    canvas = _gradient(side, (242, 220, 172), (226, 194, 138)) + 7 * _clouds(side, rng, (0.3, 0.05)) + 5 * _clouds(side, rng, (0.01, 0.01))
    for _ in range(260):
        light = rng.uniform(-40, 18)
        _spot(canvas, rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.5, 2.2), (220 + light, 190 + light, 140 + light))
    for _ in range(5):
        x, y, size = rng.uniform(0, side), rng.uniform(0, side), side * rng.uniform(0.012, 0.02)
        for turn in range(-3, 4):  # a shell: a fan of ribs
            _stroke(canvas, (x, y), (x + size * math.sin(turn * 0.3), y - size * math.cos(turn * 0.3)), (250, 238, 220) if turn % 2 else (226, 176, 150), 3)
    return canvas


def _night(side: int, rng: random.Random) -> Any:
    canvas = _gradient(side, (14, 18, 52), (44, 48, 104)) + 9 * _clouds(side, rng, (0.25, 0.16))
    for _ in range(210):
        light = rng.uniform(120, 255)
        _spot(canvas, rng.uniform(0, side), rng.uniform(0, side), rng.choice((1, 1, 1, 2, 2, 3)), (light, light, min(255, light * 1.06)))
    for _ in range(9):
        x, y, ray = rng.uniform(0, side), rng.uniform(0, side), side * rng.uniform(0.008, 0.014)
        _stroke(canvas, (x - ray, y), (x + ray, y), (255, 250, 220), 2)
        _stroke(canvas, (x, y - ray), (x, y + ray), (255, 250, 220), 2)
    return canvas


def _snow(side: int, rng: random.Random) -> Any:
    canvas = _gradient(side, (226, 234, 246), (204, 216, 236))
    for level in range(5):  # drifts, each with its lit edge
        base, phase, swing = side * (0.12 + 0.2 * level), rng.uniform(0, 6), side * rng.uniform(0.015, 0.035)
        edge = [(x, base + swing * math.sin(x / side * rng.uniform(5.0, 5.2) + phase)) for x in range(0, side + 16, 16)]
        shape = np.array([*edge, (side, side), (0, side)])
        light = rng.uniform(-5, 7)
        cv2.fillPoly(canvas, [_fixed_point(shape)], (224 + light, 231 + light, 244 + light), cv2.LINE_AA, _SHIFT)
        cv2.polylines(canvas, [_fixed_point(np.array(edge))], False, (196, 208, 232), 2, cv2.LINE_AA, _SHIFT)
    canvas += 4 * _clouds(side, rng, (0.05, 0.03))
    for _ in range(160):
        _spot(canvas, rng.uniform(0, side), rng.uniform(0, side), rng.choice((1, 2, 2, 3, 4)), (255, 255, 255))
    return canvas


def _water(side: int, rng: random.Random) -> Any:
    canvas = _gradient(side, (120, 204, 216), (58, 150, 182)) + 8 * _clouds(side, rng, (0.3, 0.05))
    for _ in range(150):
        x, y, length = rng.uniform(-20, side), rng.uniform(0, side), rng.uniform(0.03, 0.11) * side
        light = rng.choice((34, 26, -20))
        wave = [(x + length * t / 8, y + side * 0.006 * math.sin(math.pi * t / 8 * 2)) for t in range(9)]
        cv2.polylines(canvas, [_fixed_point(np.array(wave))], False, (96 + light, 184 + light, 204 + light), rng.choice((2, 3)), cv2.LINE_AA, _SHIFT)
    return canvas


def _wood(side: int, rng: random.Random) -> Any:
    canvas = np.empty((side, side, 3), np.float32)
    plank = side // 7
    for top in range(0, side, plank):
        light = rng.uniform(-14, 14)
        canvas[top : top + plank] = (176 + light, 124 + light, 80 + light * 0.8)
        for _ in range(16):
            y, phase, swing = rng.uniform(top, top + plank), rng.uniform(0, 6), rng.uniform(0.4, 3)
            grain = [(x, y + swing * math.sin(x / side * 7 + phase)) for x in range(0, side + 24, 24)]
            dark = light - rng.uniform(6, 22)
            cv2.polylines(canvas, [_fixed_point(np.array(grain))], False, (176 + dark, 124 + dark, 80 + dark), rng.choice((1, 1, 2)), cv2.LINE_AA, _SHIFT)
        _stroke(canvas, (0, top), (side, top), (104, 68, 42), 3)
        joint = rng.uniform(0, side)
        _stroke(canvas, (joint, top), (joint, top + plank), (104, 68, 42), 3)
    return canvas + 6 * _clouds(side, rng, (0.08, 0.02))


_BACKGROUNDS: dict[str, Callable[[int, random.Random], Any]] = {
    "meadow": _meadow,
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "water": _water,
    "wood": _wood,
}
