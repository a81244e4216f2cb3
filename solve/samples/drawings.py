"""What the sample data show: five of VOC's objects, and places to put them.

Everything is drawn larger than shown and then reduced, for smooth edges. An object
is drawn on a square of its own, in coordinates from 0 to 1, right and down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

_FINER = 2
ALL_PLACES = ('room', 'meadow', 'street')
# What places are made of; draw_place's map holds their indices.
REGIONS = ('wall', 'floor', 'sky', 'grass', 'building', 'sidewalk', 'road', 'line')


def shade(colour: Colour, factor: float) -> Colour:
    """Return `colour` darker (below 1) or lighter, toward white (above 1)."""
    if factor <= 1:
        return tuple(round(value * factor) for value in colour)
    return tuple(round(value + (255 - value) * min(factor - 1, 1)) for value in colour)


class Pen:
    """Draws on a transparent width x height picture in coordinates of 0..1.

    Whatever is drawn also goes to `regions`, as the index of the `region` it is part of.
    """

    def __init__(self, width: int, height: int):
        self.image = Image.new('RGBA', (width * _FINER, height * _FINER))
        self.regions = Image.new('L', self.image.size)
        self.region = REGIONS[0]
        self._draw, self._map = ImageDraw.Draw(self.image), ImageDraw.Draw(self.regions)

    def _both(self, colour: Colour) -> tuple[tuple[ImageDraw.ImageDraw, Colour | int], ...]:
        return (self._draw, colour), (self._map, REGIONS.index(self.region))

    def _at(self, x: float, y: float) -> Point:
        return x * self.image.width, y * self.image.height

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, radius: float = 0
    ) -> None:
        for draw, ink in self._both(colour):
            draw.rounded_rectangle(
                (*self._at(x0, y0), *self._at(x1, y1)), radius * self.image.width, ink
            )

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        for draw, ink in self._both(colour):
            draw.ellipse((*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)), ink)

    def shape(self, points: Iterable[Point], colour: Colour) -> None:
        corners = [self._at(x, y) for x, y in points]
        for draw, ink in self._both(colour):
            draw.polygon(corners, ink)

    def line(self, points: Iterable[Point], colour: Colour, width: float) -> None:
        corners = [self._at(x, y) for x, y in points]
        for draw, ink in self._both(colour):
            draw.line(corners, ink, max(1, round(width * self.image.width)), 'curve')


def _pick(rng: np.random.RandomState, *choices):
    return choices[rng.randint(len(choices))]


def bottle(pen: Pen, rng: np.random.RandomState) -> None:
    glass = _pick(rng, (24, 140, 150), (20, 120, 175), (40, 155, 135))
    paper = _pick(rng, (250, 232, 190), (255, 214, 120), (246, 246, 238))
    half, neck = rng.uniform(0.21, 0.25), rng.uniform(0.065, 0.08)
    side = [
        (neck, 0.1),
        (neck, 0.26),
        (neck * 1.4, 0.31),
        (half * 0.88, 0.41),
        (half, 0.48),
        (half, 0.94),
        (half * 0.9, 0.98),
    ]
    outline = [(0.5 - x, y) for x, y in side] + [(0.5 + x, y) for x, y in reversed(side)]
    pen.shape(outline, glass)
    pen.shape(
        [(0.5 + 0.45 * x, y) for x, y in side] + [(0.5 + x, y) for x, y in reversed(side)],
        shade(glass, 0.78),
    )
    pen.line([(0.5 - half * 0.72, 0.5), (0.5 - half * 0.72, 0.93)], shade(glass, 1.5), 0.028)
    pen.line([(0.5 - neck * 0.5, 0.13), (0.5 - neck * 0.5, 0.27)], shade(glass, 1.5), 0.02)
    pen.box(0.5 - half, 0.56, 0.5 + half, 0.83, paper)
    pen.box(0.5 - half, 0.595, 0.5 + half, 0.62, shade(glass, 0.6))
    pen.box(0.5 - half, 0.77, 0.5 + half, 0.795, shade(glass, 0.6))
    pen.disc(0.5, 0.695, 0.05, _pick(rng, (222, 92, 60), (240, 160, 40), (180, 60, 90)))
    pen.box(
        0.5 - neck * 1.25,
        0.02,
        0.5 + neck * 1.25,
        0.115,
        _pick(rng, (200, 60, 50), (235, 180, 60), (60, 60, 75)),
        0.015,
    )


def bus(pen: Pen, rng: np.random.RandomState) -> None:
    paint = _pick(rng, (214, 48, 42), (232, 92, 28), (240, 168, 20))
    top = rng.uniform(0.13, 0.2)
    glass = (176, 216, 236)
    pen.box(0.02, top, 0.98, 0.84, paint, 0.06)
    pen.box(0.02, 0.74, 0.98, 0.84, shade(paint, 0.72), 0.04)
    pen.box(0.06, top, 0.94, top + 0.045, shade(paint, 1.45), 0.02)
    middle = (top + 0.84) / 2
    for row, bottom in ((top + 0.085, middle - 0.055), (middle + 0.02, 0.66)):
        for left in (0.06, 0.22, 0.38, 0.54, 0.70):
            pen.box(left, row, left + 0.13, bottom, glass, 0.018)
            pen.shape(
                [
                    (left + 0.03, bottom),
                    (left + 0.07, bottom),
                    (left + 0.11, row),
                    (left + 0.07, row),
                ],
                shade(glass, 1.55),
            )
    pen.box(0.06, middle - 0.03, 0.94, middle - 0.005, (252, 240, 214))
    pen.box(0.855, top + 0.085, 0.98, middle - 0.055, shade(glass, 0.85), 0.018)
    pen.box(0.855, middle + 0.02, 0.965, 0.79, shade(glass, 0.72), 0.018)
    pen.line([(0.91, middle + 0.02), (0.91, 0.79)], shade(paint, 0.6), 0.012)
    pen.disc(0.06, 0.73, 0.022, (255, 240, 170))
    for x in (0.22, 0.72):
        pen.disc(x, 0.84, 0.105, shade(paint, 0.5))
        pen.disc(x, 0.855, 0.092, (42, 42, 50))
        pen.disc(x, 0.855, 0.045, (196, 198, 204))
        pen.disc(x, 0.855, 0.016, (90, 92, 98))


def pottedplant(pen: Pen, rng: np.random.RandomState) -> None:
    clay = _pick(rng, (196, 98, 60), (178, 84, 58), (206, 122, 78))
    green = _pick(rng, (38, 128, 58), (58, 142, 48), (30, 112, 74))
    spread = np.linspace(-1.35, 1.35, 9)
    for angle in spread[np.argsort(-np.abs(spread))]:  # the middle ones in front
        turn = angle + rng.uniform(-0.08, 0.08)
        _leaf(
            pen,
            (0.5, 0.66),
            turn,
            0.62 - 0.16 * abs(angle) / 1.35 - rng.uniform(0, 0.04),
            rng.uniform(0.1, 0.125),
            shade(green, rng.uniform(0.75, 1.25)),
        )
    pen.shape([(0.28, 0.66), (0.72, 0.66), (0.655, 0.98), (0.345, 0.98)], clay)
    pen.shape([(0.56, 0.66), (0.72, 0.66), (0.655, 0.98), (0.54, 0.98)], shade(clay, 0.85))
    pen.box(0.25, 0.61, 0.75, 0.71, shade(clay, 1.12), 0.02)
    pen.box(0.27, 0.71, 0.72, 0.73, shade(clay, 0.7))


def _leaf(pen: Pen, root: Point, turn: float, length: float, half: float, colour: Colour) -> None:
    """A pointed leaf from `root`, `turn` radians clockwise from upright, drooping a little."""

    def place(along: float, across: float) -> Point:
        bend = turn + 0.35 * turn * along
        return (
            root[0] + math.sin(bend) * along * length + math.cos(bend) * across,
            root[1] - math.cos(bend) * along * length + math.sin(bend) * across,
        )

    steps = np.linspace(0, 1, 13)
    width = half * np.sin(np.pi * steps**0.85)
    left = [place(t, -w) for t, w in zip(steps, width)]
    right = [place(t, w) for t, w in zip(steps, width)]
    spine = [place(t, 0) for t in steps]
    pen.shape(left + spine[::-1], colour)
    pen.shape(right + spine[::-1], shade(colour, 0.82))
    pen.line(spine[:-1], shade(colour, 1.3), 0.01)


def sheep(pen: Pen, rng: np.random.RandomState) -> None:
    wool = _pick(rng, (246, 242, 232), (240, 234, 222), (250, 246, 240))
    skin = _pick(rng, (58, 50, 54), (78, 62, 56), (46, 46, 58))
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
    pen.disc(0.065, 0.4 + nod, 0.065, shade(skin, 0.85), 0.034)
    pen.disc(0.325, 0.4 + nod, 0.065, shade(skin, 0.85), 0.034)
    pen.disc(0.195, 0.47 + nod, 0.11, skin, 0.155)
    for x, y in ((0.13, 0.35), (0.2, 0.325), (0.265, 0.35), (0.2, 0.37)):
        pen.disc(x, y + nod, 0.06, shade(wool, 0.97))
    for x in (0.15, 0.24):
        pen.disc(x, 0.46 + nod, 0.024, (250, 250, 250))
        pen.disc(x - 0.004, 0.464 + nod, 0.013, (20, 20, 24))
    pen.disc(0.175, 0.575 + nod, 0.01, shade(skin, 0.4))
    pen.disc(0.215, 0.575 + nod, 0.01, shade(skin, 0.4))


def tvmonitor(pen: Pen, rng: np.random.RandomState) -> None:
    frame = _pick(rng, (38, 40, 48), (52, 46, 58), (30, 36, 44))
    pen.shape([(0.43, 0.78), (0.57, 0.78), (0.6, 0.92), (0.4, 0.92)], shade(frame, 1.15))
    pen.box(0.26, 0.9, 0.74, 0.95, frame, 0.02)
    pen.box(0.02, 0.12, 0.98, 0.82, frame, 0.04)
    left, top, right, bottom = 0.065, 0.165, 0.935, 0.745
    sky = _pick(rng, (92, 64, 178), (48, 74, 196), (126, 58, 168))
    bands = 8
    for band in range(bands):
        y = top + (bottom - top) * band / bands
        pen.box(left, y, right, bottom, shade(sky, 1 + 0.55 * band / bands))
    pen.disc(rng.uniform(0.25, 0.75), 0.37, 0.085, (255, 222, 120))
    peak = rng.uniform(0.3, 0.45)
    pen.shape([(left, bottom), (left, 0.62), (peak, 0.42), (0.66, bottom)], shade(sky, 0.55))
    pen.shape([(0.38, bottom), (peak + 0.32, 0.5), (right, 0.66), (right, bottom)], shade(sky, 0.4))
    pen.shape([(left, top), (0.36, top), (0.2, 0.42), (left, 0.42)], shade(sky, 1.25))
    pen.disc(0.5, 0.782, 0.014, (120, 230, 140))


OBJECTS: dict[str, Callable[[Pen, np.random.RandomState], None]] = {
    'bottle': bottle,
    'bus': bus,
    'pottedplant': pottedplant,
    'sheep': sheep,
    'tvmonitor': tvmonitor,
}


def draw_object(name: str, side: int, rng: np.random.RandomState) -> Image.Image:
    """Draw one of OBJECTS as an RGBA picture of side x side pixels, a little turned and lit."""
    pen = Pen(side, side)
    OBJECTS[name](pen, rng)
    image = pen.image
    if rng.randint(2):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR)
    return image.resize((side, side), Image.Resampling.BOX)


def draw_place(
    width: int, height: int, rng: np.random.RandomState, places: Sequence[str] = ALL_PLACES
) -> tuple[Image.Image, np.ndarray]:
    """Draw a background of width x height pixels: one of `places`.

    Returns the picture, RGB, and what is where: H x W uint8, indices of REGIONS.
    """
    pen = Pen(width, height)
    horizon = rng.uniform(0.58, 0.72)
    _PLACES[_pick(rng, *places)](pen, horizon, rng)
    regions = pen.regions.resize((width, height), Image.Resampling.NEAREST)
    return (
        pen.image.convert('RGB').resize((width, height), Image.Resampling.BOX),
        np.asarray(regions),
    )


def _room(pen: Pen, horizon: float, rng: np.random.RandomState) -> None:
    wall = _pick(rng, (214, 202, 186), (190, 204, 208), (216, 196, 196), (200, 206, 188))
    floor = _pick(rng, (168, 136, 108), (150, 128, 112), (182, 156, 124))
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


def _meadow(pen: Pen, horizon: float, rng: np.random.RandomState) -> None:
    sky = _pick(rng, (178, 208, 226), (196, 214, 222), (226, 210, 196))
    grass = _pick(rng, (168, 180, 116), (178, 174, 112), (156, 172, 124))
    pen.region = 'sky'
    for band in range(10):
        pen.box(0, horizon * band / 10, 1, 1, shade(sky, 1 + 0.05 * band))
    for _ in range(rng.randint(2, 4)):
        x, y = rng.uniform(0, 1), rng.uniform(0.06, 0.3)
        for dx, dy, r in ((-0.08, 0.015, 0.045), (0, 0, 0.06), (0.08, 0.015, 0.05)):
            pen.disc(x + dx, y + dy, r * 1.3, shade(sky, 1.6), r * 0.8)
    x = np.linspace(0, 1, 30)
    pen.region = 'grass'
    for lift, factor in ((0.1, 0.9), (0.04, 1.0)):
        hills = horizon - lift * (0.5 + 0.5 * np.sin(x * rng.uniform(4, 8) + rng.uniform(0, 6)))
        pen.shape([(0, 1), *zip(x, hills), (1, 1)], shade(grass, factor))
    for _ in range(70):
        x, y = rng.uniform(0, 1), rng.uniform(horizon + 0.02, 1)
        pen.line(
            [(x, y), (x + rng.uniform(-0.01, 0.01), y - 0.03)],
            shade(grass, _pick(rng, 0.86, 1.15)),
            0.006,
        )


def _street(pen: Pen, horizon: float, rng: np.random.RandomState) -> None:
    sky = _pick(rng, (206, 216, 224), (224, 212, 204), (196, 208, 220))
    road = _pick(rng, (150, 150, 154), (162, 156, 150), (138, 142, 150))
    pen.region = 'sky'
    pen.box(0, 0, 1, 1, sky)
    pen.region = 'building'
    left = -0.05
    while left < 1:
        width, top = rng.uniform(0.14, 0.24), rng.uniform(0.12, 0.38)
        house = shade(
            _pick(rng, (188, 176, 170), (172, 180, 188), (200, 188, 168)), rng.uniform(0.92, 1.1)
        )
        pen.box(left, top, left + width, horizon, house)
        for y in np.arange(top + 0.05, horizon - 0.08, 0.11):
            for x in np.arange(left + 0.025, left + width - 0.03, 0.06):
                pen.box(x, y, x + 0.03, y + 0.055, shade(house, 0.86))
        left += width
    pen.region = 'sidewalk'
    pen.box(0, horizon, 1, horizon + 0.07, shade(road, 1.4))
    pen.region = 'road'
    pen.box(0, horizon + 0.07, 1, 1, road)
    pen.region = 'line'
    for x in np.arange(rng.uniform(-0.2, 0), 1, 0.28):
        pen.box(x, 0.88, x + 0.15, 0.905, shade(road, 1.6))


_PLACES = {'room': _room, 'meadow': _meadow, 'street': _street}


def paste(scene: Image.Image, piece: Image.Image, x: int, y: int) -> np.ndarray:
    """Put an RGBA `piece` into the RGB `scene` with a soft shadow; return where it covers."""
    side = piece.width
    shadow = Image.new('L', scene.size)
    ImageDraw.Draw(shadow).ellipse(
        (x + side * 0.1, y + side * 0.9, x + side * 0.9, y + side * 1.02), 110
    )
    scene.paste((40, 36, 40), mask=shadow.filter(ImageFilter.GaussianBlur(4)))
    scene.paste(piece, (x, y), piece)
    covered = Image.new('L', scene.size)
    covered.paste(piece.getchannel('A'), (x, y))
    return np.asarray(covered) > 127


def light(scene: Image.Image, rng: np.random.RandomState) -> np.ndarray:
    """Light a picture from one side and add grain: H x W x 3 uint8, RGB."""
    width, height = scene.size
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width) * math.cos(angle)
    down = np.linspace(-1, 1, height)[:, np.newaxis] * math.sin(angle)
    patches = Image.fromarray(rng.normal(0, 1, (7, 7)).astype(np.float32))
    patches = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC))
    gain = rng.uniform(0.9, 1.06) * (1 + 0.1 * (across + down) + 0.03 * patches)
    lit = np.asarray(scene, np.float32) * gain[:, :, np.newaxis]
    lit += rng.normal(0, 4.5, (height, width, 1))
    return np.clip(lit, 0, 255).astype(np.uint8)
