"""Draw what the samples show: five of VOC's objects, and backgrounds for them.

Everything is drawn larger than shown and then reduced, for smooth edges. Coordinates run
from 0 to 1, right and down; an object has a square of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Random = np.random.RandomState
Colour = tuple[int, ...]
Point = tuple[float, float]

_FINER = 2
# What places are made of; draw_place's map holds their indices.
REGIONS = ('wall', 'floor', 'sky', 'grass', 'building', 'sidewalk', 'road', 'line')


def shade(colour: Colour, factor: float) -> Colour:
    """Return `colour` darker (below 1) or lighter, toward white (above 1)."""
    if factor <= 1:
        return tuple(round(value * factor) for value in colour)
    return tuple(round(value + (255 - value) * min(factor - 1, 1)) for value in colour)


def pick(rng: Random, *choices: Any) -> Any:
    return choices[rng.randint(len(choices))]


class Pen:
    """Draw on a transparent picture in coordinates of 0..1.

    `regions` gets the same shapes, filled with the index of the current `region`.
    """

    def __init__(self, width: int, height: int):
        self.image = Image.new('RGBA', (width * _FINER, height * _FINER))
        self.regions = Image.new('L', self.image.size)
        self.region = REGIONS[0]
        self._draws = ImageDraw.Draw(self.image), ImageDraw.Draw(self.regions)

    def _draw(self, shape: str, points: Iterable[Point], colour: Colour, **settings: Any) -> None:
        width, height = self.image.size
        at = [(x * width, y * height) for x, y in points]
        for draw, ink in zip(self._draws, (colour, REGIONS.index(self.region))):
            getattr(draw, shape)(at, fill=ink, **settings)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, r: float = 0) -> None:
        """Draw a rectangle with corners of radius `r`."""
        radius = r * self.image.width
        self._draw('rounded_rectangle', [(x0, y0), (x1, y1)], colour, radius=radius)

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw('ellipse', [(x - rx, y - ry), (x + rx, y + ry)], colour)

    def shape(self, points: Iterable[Point], colour: Colour) -> None:
        self._draw('polygon', points, colour)

    def line(self, points: Iterable[Point], colour: Colour, width: float) -> None:
        pixels = max(1, round(width * self.image.width))
        self._draw('line', points, colour, width=pixels, joint='curve')


# Objects.


def bottle(pen: Pen, rng: Random) -> None:
    glass = pick(rng, (24, 140, 150), (20, 120, 175), (40, 155, 135))
    paper = pick(rng, (250, 232, 190), (255, 214, 120), (246, 246, 238))
    half, neck = rng.uniform(0.21, 0.25), rng.uniform(0.065, 0.08)
    across = neck, neck, neck * 1.4, half * 0.88, half, half, half * 0.9
    side = list(zip(across, (0.1, 0.26, 0.31, 0.41, 0.48, 0.94, 0.98)))
    right = [(0.5 + x, y) for x, y in reversed(side)]
    pen.shape([(0.5 - x, y) for x, y in side] + right, glass)
    pen.shape([(0.5 + 0.45 * x, y) for x, y in side] + right, shade(glass, 0.78))
    pen.line([(0.5 - half * 0.72, 0.5), (0.5 - half * 0.72, 0.93)], shade(glass, 1.5), 0.028)
    pen.line([(0.5 - neck * 0.5, 0.13), (0.5 - neck * 0.5, 0.27)], shade(glass, 1.5), 0.02)
    for top, bottom, ink in (0.56, 0.83, paper), (0.595, 0.62, None), (0.77, 0.795, None):
        pen.box(0.5 - half, top, 0.5 + half, bottom, ink or shade(glass, 0.6))
    pen.disc(0.5, 0.695, 0.05, pick(rng, (222, 92, 60), (240, 160, 40), (180, 60, 90)))
    cap = pick(rng, (200, 60, 50), (235, 180, 60), (60, 60, 75))
    pen.box(0.5 - neck * 1.25, 0.02, 0.5 + neck * 1.25, 0.115, cap, 0.015)


def bus(pen: Pen, rng: Random) -> None:
    paint = pick(rng, (214, 48, 42), (232, 92, 28), (240, 168, 20))
    glass, top = (176, 216, 236), rng.uniform(0.13, 0.2)
    pen.box(0.02, top, 0.98, 0.84, paint, 0.06)
    pen.box(0.02, 0.74, 0.98, 0.84, shade(paint, 0.72), 0.04)
    pen.box(0.06, top, 0.94, top + 0.045, shade(paint, 1.45), 0.02)
    middle = (top + 0.84) / 2
    for row, bottom in ((top + 0.085, middle - 0.055), (middle + 0.02, 0.66)):
        for x in (0.06, 0.22, 0.38, 0.54, 0.70):
            pen.box(x, row, x + 0.13, bottom, glass, 0.018)
            gleam = [(x + 0.03, bottom), (x + 0.07, bottom), (x + 0.11, row), (x + 0.07, row)]
            pen.shape(gleam, shade(glass, 1.55))
    pen.box(0.06, middle - 0.03, 0.94, middle - 0.005, (252, 240, 214))
    pen.box(0.855, top + 0.085, 0.98, middle - 0.055, shade(glass, 0.85), 0.018)
    pen.box(0.855, middle + 0.02, 0.965, 0.79, shade(glass, 0.72), 0.018)
    pen.line([(0.91, middle + 0.02), (0.91, 0.79)], shade(paint, 0.6), 0.012)
    pen.disc(0.06, 0.73, 0.022, (255, 240, 170))
    for x in (0.22, 0.72):
        pen.disc(x, 0.84, 0.105, shade(paint, 0.5))
        for r, ink in (0.092, (42, 42, 50)), (0.045, (196, 198, 204)), (0.016, (90, 92, 98)):
            pen.disc(x, 0.855, r, ink)


def pottedplant(pen: Pen, rng: Random) -> None:
    clay = pick(rng, (196, 98, 60), (178, 84, 58), (206, 122, 78))
    green = pick(rng, (38, 128, 58), (58, 142, 48), (30, 112, 74))
    spread = np.linspace(-1.35, 1.35, 9)
    for angle in spread[np.argsort(-np.abs(spread))]:  # the middle ones in front
        turn = angle + rng.uniform(-0.08, 0.08)
        length = 0.62 - 0.16 * abs(angle) / 1.35 - rng.uniform(0, 0.04)
        half, light = rng.uniform(0.1, 0.125), rng.uniform(0.75, 1.25)
        _leaf(pen, turn, length, half, shade(green, light))
    pen.shape([(0.28, 0.66), (0.72, 0.66), (0.655, 0.98), (0.345, 0.98)], clay)
    pen.shape([(0.56, 0.66), (0.72, 0.66), (0.655, 0.98), (0.54, 0.98)], shade(clay, 0.85))
    pen.box(0.25, 0.61, 0.75, 0.71, shade(clay, 1.12), 0.02)
    pen.box(0.27, 0.71, 0.72, 0.73, shade(clay, 0.7))


def _leaf(pen: Pen, turn: float, length: float, half: float, colour: Colour) -> None:
    """Draw a pointed leaf, `turn` radians clockwise from upright, drooping a little."""
    along = np.linspace(0, 1, 13)
    bend = turn + 0.35 * turn * along

    def edge(across: np.ndarray) -> list[Point]:
        x = 0.5 + np.sin(bend) * along * length + np.cos(bend) * across
        y = 0.66 - np.cos(bend) * along * length + np.sin(bend) * across
        return list(zip(x, y))

    width = half * np.sin(np.pi * along**0.85)
    left, spine, right = edge(-width), edge(0 * width), edge(width)
    pen.shape(left + spine[::-1], colour)
    pen.shape(right + spine[::-1], shade(colour, 0.82))
    pen.line(spine[:-1], shade(colour, 1.3), 0.01)


def sheep(pen: Pen, rng: Random) -> None:
    wool = pick(rng, (246, 242, 232), (240, 234, 222), (250, 246, 240))
    skin = pick(rng, (58, 50, 54), (78, 62, 56), (46, 46, 58))
    for x in (0.3, 0.41, 0.66, 0.77):
        pen.box(x - 0.032, 0.7, x + 0.032, 0.96, shade(skin, 0.9), 0.02)
        pen.box(x - 0.036, 0.91, x + 0.036, 0.97, shade(skin, 0.6), 0.02)
    centre, around = (0.55, 0.52), np.linspace(0, 2 * math.pi, 15)[:-1]
    puffs = [(centre[0] + 0.3 * math.cos(a), centre[1] + 0.2 * math.sin(a)) for a in around]
    pen.disc(*centre, 0.33, shade(wool, 0.9), 0.23)
    for x, y in sorted(puffs, key=lambda puff: puff[1], reverse=True):
        lit = 1 - 0.2 * (y - 0.3) / 0.45
        pen.disc(x, y, rng.uniform(0.105, 0.125), shade(wool, min(lit, 1)))
    for _ in range(14):
        x, y = centre + rng.uniform(-1, 1, 2) * (0.25, 0.15)
        pen.disc(x, y, 0.085, shade(wool, 0.95 - 0.12 * (y - 0.3) / 0.45))
        pen.disc(x - 0.012, y - 0.014, 0.075, shade(wool, 1 - 0.1 * (y - 0.3) / 0.45))
    nod = rng.uniform(-0.03, 0.05)
    for x in (0.065, 0.325):
        pen.disc(x, 0.4 + nod, 0.065, shade(skin, 0.85), 0.034)
    pen.disc(0.195, 0.47 + nod, 0.11, skin, 0.155)
    for x, y in ((0.13, 0.35), (0.2, 0.325), (0.265, 0.35), (0.2, 0.37)):
        pen.disc(x, y + nod, 0.06, shade(wool, 0.97))
    for x in (0.15, 0.24):
        pen.disc(x, 0.46 + nod, 0.024, (250, 250, 250))
        pen.disc(x - 0.004, 0.464 + nod, 0.013, (20, 20, 24))
    for x in (0.175, 0.215):
        pen.disc(x, 0.575 + nod, 0.01, shade(skin, 0.4))


def tvmonitor(pen: Pen, rng: Random) -> None:
    frame = pick(rng, (38, 40, 48), (52, 46, 58), (30, 36, 44))
    pen.shape([(0.43, 0.78), (0.57, 0.78), (0.6, 0.92), (0.4, 0.92)], shade(frame, 1.15))
    pen.box(0.26, 0.9, 0.74, 0.95, frame, 0.02)
    pen.box(0.02, 0.12, 0.98, 0.82, frame, 0.04)
    left, top, right, bottom = 0.065, 0.165, 0.935, 0.745
    sky = pick(rng, (92, 64, 178), (48, 74, 196), (126, 58, 168))
    for band in range(8):
        y = top + (bottom - top) * band / 8
        pen.box(left, y, right, bottom, shade(sky, 1 + 0.55 * band / 8))
    pen.disc(rng.uniform(0.25, 0.75), 0.37, 0.085, (255, 222, 120))
    peak = rng.uniform(0.3, 0.45)
    pen.shape([(left, bottom), (left, 0.62), (peak, 0.42), (0.66, bottom)], shade(sky, 0.55))
    pen.shape([(0.38, bottom), (peak + 0.32, 0.5), (right, 0.66), (right, bottom)], shade(sky, 0.4))
    pen.shape([(left, top), (0.36, top), (0.2, 0.42), (left, 0.42)], shade(sky, 1.25))
    pen.disc(0.5, 0.782, 0.014, (120, 230, 140))


OBJECTS: dict[str, Callable[[Pen, Random], None]] = {
    draw.__name__: draw for draw in (bottle, bus, pottedplant, sheep, tvmonitor)
}


def draw_object(name: str, side: int, rng: Random) -> Image.Image:
    """Draw one of OBJECTS as an RGBA picture of side x side pixels, perhaps mirrored, tilted."""
    pen = Pen(side, side)
    OBJECTS[name](pen, rng)
    image = pen.image
    if rng.randint(2):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR)
    return image.resize((side, side), Image.Resampling.BOX)


# Places.


def room(pen: Pen, horizon: float, rng: Random) -> None:
    wall = pick(rng, (214, 202, 186), (190, 204, 208), (216, 196, 196), (200, 206, 188))
    floor = pick(rng, (168, 136, 108), (150, 128, 112), (182, 156, 124))
    pen.region = 'wall'
    pen.box(0, 0, 1, 1, wall)
    pattern = rng.randint(3)
    for x in np.arange(0.02, 1, 0.09):
        if pattern == 0:
            pen.box(x, 0, x + 0.045, horizon, shade(wall, 0.95))
        for y in np.arange(0.03, horizon, 0.1) if pattern == 1 else ():
            pen.disc(x, y, 0.012, shade(wall, 0.9), 0.015)
    pen.region = 'floor'
    pen.box(0, horizon, 1, 1, floor)
    pen.region = 'wall'
    pen.box(0, horizon - 0.035, 1, horizon, shade(wall, 1.4))
    pen.region = 'floor'
    for y in np.linspace(horizon, 1, 5)[1:]:
        pen.line([(0, y), (1, y)], shade(floor, 0.86), 0.006)
    for x in np.linspace(-0.6, 1.6, 12):
        pen.line([(0.5 + (x - 0.5) * 0.6, horizon), (x, 1)], shade(floor, 0.9), 0.005)


def meadow(pen: Pen, horizon: float, rng: Random) -> None:
    sky = pick(rng, (178, 208, 226), (196, 214, 222), (226, 210, 196))
    grass = pick(rng, (168, 180, 116), (178, 174, 112), (156, 172, 124))
    pen.region = 'sky'
    for band in range(10):
        pen.box(0, horizon * band / 10, 1, 1, shade(sky, 1 + 0.05 * band))
    for _ in range(rng.randint(2, 4)):
        x, y = rng.uniform(0, 1), rng.uniform(0.06, 0.3)
        for dx, dy, r in ((-0.08, 0.015, 0.045), (0, 0, 0.06), (0.08, 0.015, 0.05)):
            pen.disc(x + dx, y + dy, r * 1.3, shade(sky, 1.6), r * 0.8)
    pen.region = 'grass'
    across = np.linspace(0, 1, 30)
    for lift, factor in ((0.1, 0.9), (0.04, 1.0)):
        waves = np.sin(across * rng.uniform(4, 8) + rng.uniform(0, 6))
        hills = zip(across, horizon - lift * (0.5 + 0.5 * waves))
        pen.shape([(0, 1), *hills, (1, 1)], shade(grass, factor))
    for _ in range(70):
        x, y = rng.uniform(0, 1), rng.uniform(horizon + 0.02, 1)
        blade = [(x, y), (x + rng.uniform(-0.01, 0.01), y - 0.03)]
        pen.line(blade, shade(grass, pick(rng, 0.86, 1.15)), 0.006)


def street(pen: Pen, horizon: float, rng: Random) -> None:
    sky = pick(rng, (206, 216, 224), (224, 212, 204), (196, 208, 220))
    road = pick(rng, (150, 150, 154), (162, 156, 150), (138, 142, 150))
    pen.region = 'sky'
    pen.box(0, 0, 1, 1, sky)
    pen.region = 'building'
    left = -0.05
    while left < 1:
        right, top = left + rng.uniform(0.14, 0.24), rng.uniform(0.12, 0.38)
        stone = pick(rng, (188, 176, 170), (172, 180, 188), (200, 188, 168))
        house = shade(stone, rng.uniform(0.92, 1.1))
        pen.box(left, top, right, horizon, house)
        for y in np.arange(top + 0.05, horizon - 0.08, 0.11):
            for x in np.arange(left + 0.025, right - 0.03, 0.06):
                pen.box(x, y, x + 0.03, y + 0.055, shade(house, 0.86))
        left = right
    pen.region = 'sidewalk'
    pen.box(0, horizon, 1, horizon + 0.07, shade(road, 1.4))
    pen.region = 'road'
    pen.box(0, horizon + 0.07, 1, 1, road)
    pen.region = 'line'
    for x in np.arange(rng.uniform(-0.2, 0), 1, 0.28):
        pen.box(x, 0.88, x + 0.15, 0.905, shade(road, 1.6))


BACKGROUNDS: dict[str, Callable[[Pen, float, Random], None]] = {
    draw.__name__: draw for draw in (room, meadow, street)
}


def draw_place(
    width: int, height: int, rng: Random, places: Sequence[str]
) -> tuple[Image.Image, np.ndarray]:
    """Draw one of `places`, names of BACKGROUNDS, as a background of width x height pixels.

    Returns the picture, RGB, and its map: H x W uint8, indices of REGIONS.
    """
    pen, size = Pen(width, height), (width, height)
    horizon = rng.uniform(0.58, 0.72)
    BACKGROUNDS[pick(rng, *places)](pen, horizon, rng)
    regions = np.asarray(pen.regions.resize(size, Image.Resampling.NEAREST))
    return pen.image.convert('RGB').resize(size, Image.Resampling.BOX), regions


# Put together.


def paste(scene: Image.Image, piece: Image.Image, x: int, y: int) -> np.ndarray:
    """Put an RGBA `piece` into the RGB `scene` with a soft shadow; return where it covers."""
    side = piece.width
    shadow, covered = (Image.new('L', scene.size) for _ in range(2))
    under = (x + side * 0.1, y + side * 0.9, x + side * 0.9, y + side * 1.02)
    ImageDraw.Draw(shadow).ellipse(under, 110)
    scene.paste((40, 36, 40), mask=shadow.filter(ImageFilter.GaussianBlur(4)))
    scene.paste(piece, (x, y), piece)
    covered.paste(piece.getchannel('A'), (x, y))
    return np.asarray(covered) > 127


def light(scene: Image.Image, rng: Random) -> np.ndarray:
    """Light a picture from one side and add grain: H x W x 3 uint8, RGB."""
    width, height = scene.size
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width) * math.cos(angle)
    down = np.linspace(-1, 1, height)[:, np.newaxis] * math.sin(angle)
    blurred = Image.fromarray(rng.normal(0, 1, (7, 7)).astype(np.float32))
    patches = np.asarray(blurred.resize((width, height), Image.Resampling.BICUBIC))
    gain = rng.uniform(0.9, 1.06) * (1 + 0.1 * (across + down) + 0.03 * patches)
    lit = np.asarray(scene, np.float32) * gain[:, :, np.newaxis]
    lit += rng.normal(0, 4.5, (height, width, 1))
    return np.clip(lit, 0, 255).astype(np.uint8)
