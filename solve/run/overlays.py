"""Draw classes over a picture: tints, contours and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from solve.datasets.voc import palette

TINT = 0.5  # share of the class's colour
_INK, _PAPER, _EDGE = (32, 32, 32), (255, 255, 255), (150, 150, 150)


def draw_overlay(rgb: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return a picture, H x W x 3 uint8, with its classes over it and a legend below it.

    The background stays as it was: the class of that name or, of classes without names, class 0.
    Other classes are tinted, and a contour is drawn around each.
    """
    colours, background = palette(), find_background(names)
    shown = rgb.copy()
    tinted = labels != background
    mixed = (1 - TINT) * rgb[tinted] + TINT * colours[labels[tinted]]
    shown[tinted] = mixed.round().astype(np.uint8)
    width = max(1, round(min(labels.shape) / 250))
    inner = _contour(labels, width) & tinted
    outer = _contour(labels, 2 * width) & tinted & ~inner
    shown[outer] = (0.6 * colours[labels[outer]]).astype(np.uint8)
    shown[inner] = (255 - 0.5 * (255 - colours[labels[inner]])).astype(np.uint8)
    legend = _draw_legend(labels, names, colours, rgb.shape[1], rgb.shape[0])
    whole = Image.new('RGB', (legend.width, rgb.shape[0] + legend.height), _PAPER)
    whole.paste(Image.fromarray(shown), (0, 0))
    whole.paste(legend, (0, rgb.shape[0]))
    return whole


def format_share(share: float) -> str:
    """Write a share of the pixels in percent; one that is not 0 never reads so."""
    return f'{100 * share:.1f} %' if share >= 0.0005 else '< 0.1 %'


def find_background(names: Sequence[str]) -> int:
    """Return the class named background, 0 of classes without names, -1 where there is none."""
    if 'background' in names:
        return list(names).index('background')
    return 0 if names[0] == '0' else -1


def _contour(labels: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels that have another class within `width` pixels up, down, left or right."""
    found = np.zeros(labels.shape, bool)
    for distance in range(1, width + 1):
        down = labels[distance:] != labels[:-distance]
        right = labels[:, distance:] != labels[:, :-distance]
        found[distance:] |= down
        found[:-distance] |= down
        found[:, distance:] |= right
        found[:, :-distance] |= right
    return found


def _draw_legend(
    labels: np.ndarray, names: Sequence[str], colours: np.ndarray, width: int, height: int
) -> Image.Image:
    """Return a strip with the classes present, the largest first, and their shares.

    It is as wide as the picture, or as the widest of its texts.
    """
    import matplotlib  # for its font; a picture without legend need not wait for it

    size = int(np.clip(min(width, height) / 24, 11, 80))
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), size
    )
    counts = np.bincount(labels.ravel(), minlength=len(names))
    present = [number for number in np.argsort(-counts, kind='stable') if counts[number]]
    line, gap = round(1.7 * size), round(0.5 * size)
    places, x, y, strip = [], gap, gap, width
    for number in present:
        text = f'{names[number]} {format_share(counts[number] / labels.size)}'
        takes = round(size + 0.4 * size + font.getlength(text) + 1.2 * size)
        if x > gap and x + takes - size > width:
            x, y = gap, y + line
        places.append((number, text, x, y))
        x += takes
        strip = max(strip, x - round(0.7 * size))
    legend = Image.new('RGB', (strip, y + line), _PAPER)
    draw = ImageDraw.Draw(legend)
    for number, text, x, y in places:
        colour = tuple(int(value) for value in colours[number])
        if number == find_background(names):
            draw.rectangle((x, y, x + size, y + size), fill=_PAPER, outline=_EDGE)
        else:
            draw.rectangle((x, y, x + size, y + size), fill=colour, outline=_EDGE)
        draw.text((x + 1.4 * size, y + size / 2), text, fill=_INK, font=font, anchor='lm')
    return legend
