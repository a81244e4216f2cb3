"""Write the scores of a net as one HTML file: numbers, classes, confusion, curve, pictures.

The file loads nothing from anywhere, and its Content-Security-Policy forbids it to.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from caffe_port.errors import CaffeError, replacing
from solve.datasets.images import VOID
from solve.datasets.voc import palette
from solve.run.charts import draw_curves, format_number

# How many of the best pictures are shown, and how many of the worst.
SHOWN = 6
# Pixels on the longer side of a picture in the report.
LONGEST = 500
_CONFUSED = 10
_TEMPLATE = Path(__file__).with_name('report.html')
# Two palette entries make the hatching of void.
_HATCH = {VOID - 1: (140, 140, 140), VOID: (216, 216, 216)}


@dataclass(frozen=True)
class ScoredPicture:
    """A scored picture as a report shows it, at most LONGEST pixels on its longer side.

    `image` is H x W x 3 uint8, RGB; `label` and `prediction` are H x W uint8, with 255 for void.
    `iu` has the intersection over union of every class that label or prediction has, by its
    number; `mean_iu` is their mean and `accuracy` the share of labelled pixels that are right,
    both NaN if all is void. They are of the picture at its full size.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    iu: Mapping[int, float]
    mean_iu: float
    accuracy: float

    @classmethod
    def of(
        cls, name: str, image: np.ndarray, label: np.ndarray, prediction: np.ndarray
    ) -> ScoredPicture:
        """Score a picture and make it small.

        `image` is H x W x 3 uint8, RGB, or H x W, any real grey values; `label` and `prediction`
        are H x W class numbers of any type, 255 (void) in `label` where none counts.

        Raises CaffeError if the three differ in size.
        """
        if not image.shape[:2] == label.shape == prediction.shape:
            raise CaffeError(
                f'{name}: image of {image.shape[:2]}, label of {label.shape} and prediction of '
                f'{prediction.shape} must be of one size'
            )
        label, prediction = label.astype(np.uint8), prediction.astype(np.uint8)
        counted = label != VOID
        truth, guess = label[counted], prediction[counted]
        right = np.bincount(truth[truth == guess], minlength=VOID + 1)
        either = np.bincount(truth, minlength=VOID + 1) + np.bincount(guess, minlength=VOID + 1)
        either -= right
        iu = {int(number): float(right[number] / either[number]) for number in either.nonzero()[0]}
        return cls(
            name,
            _shrunk(_rgb(image), Image.Resampling.BILINEAR),
            _shrunk(label, Image.Resampling.NEAREST),
            _shrunk(prediction, Image.Resampling.NEAREST),
            iu,
            float(np.mean(list(iu.values()))) if iu else math.nan,
            float(right.sum() / truth.size) if truth.size else math.nan,
        )


class Extremes:
    """Keeps the best and the worst of the pictures that are added, by mean IU."""

    def __init__(self, count: int = SHOWN):
        self._count = count
        self._best: list[ScoredPicture] = []
        self._worst: list[ScoredPicture] = []

    def add(self, picture: ScoredPicture) -> None:
        """Keep a picture if it is among the extremes so far; one that is all void is not."""
        if math.isnan(picture.mean_iu):
            return
        self._best = sorted([*self._best, picture], key=lambda each: -each.mean_iu)[: self._count]
        self._worst = sorted([*self._worst, picture], key=lambda each: each.mean_iu)[: self._count]

    @property
    def pictures(self) -> list[ScoredPicture]:
        """Those kept, the worst first, each once."""
        kept = {id(picture): picture for picture in (*self._worst, *self._best)}
        return sorted(kept.values(), key=lambda each: each.mean_iu)


def write_report(
    path: str | os.PathLike,
    title: str,
    numbers: Mapping[str, str | float],
    classes: Sequence[str],
    confusion: np.ndarray,
    pictures: Iterable[ScoredPicture] = (),
    curve: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write a scoring as one HTML file that needs no other.

    `numbers` are shown in their order, floats to four digits and text as it is; `confusion` is
    n x n counts of pixels, rows labels, columns predictions, for the n `classes`. Of `pictures`
    the SHOWN worst and the SHOWN best are shown. `curve` is the lines of a run's log.jsonl
    (iteration, loss, smoothed_loss, mean_iu and others that end in _mean_iu).
    Classes have VOC's colours.

    Raises CaffeError if `confusion` is not n x n, or for more than 254 classes; WriteError if
    the disk refuses the file.
    """
    n = len(classes)
    confusion = np.asarray(confusion)
    if confusion.shape != (n, n):
        raise CaffeError(f'{path}: confusion of shape {confusion.shape}, {n} x {n} expected')
    if not 0 < n < VOID:
        raise CaffeError(f'{path}: {n} classes, 1 to {VOID - 1} expected')
    colours = palette()
    parts = {
        'title': html.escape(title),
        'numbers': _numbers(numbers),
        'classes': _classes(classes, confusion, colours),
        'confusion': _confusion(classes, confusion),
        'curve': draw_curves(curve or ()),
        'pictures': _pictures(pictures, classes, colours),
    }
    text = re.sub(r'\{\{(\w+)\}\}', lambda mark: parts[mark[1]], _TEMPLATE.read_text('utf-8'))
    with replacing(path) as temporary:
        temporary.write_text(text, 'utf-8')


def _percent(share: float, digits: int = 1) -> str:
    return f'{100 * share:.{digits}f}' if math.isfinite(share) else '–'


def _numbers(numbers: Mapping[str, str | float]) -> str:
    tiles = ''.join(
        f'<div class="card"><dt>{html.escape(what)}</dt>'
        f'<dd>{html.escape(format_number(value))}</dd></div>'
        for what, value in numbers.items()
    )
    return f'<dl class="numbers">{tiles}</dl>' if tiles else ''


def _swatch(colour: np.ndarray) -> str:
    return (
        f'<span class="swatch" style="background:#{bytes(colour.astype(np.uint8)).hex()}"></span>'
    )


def _classes(classes: Sequence[str], confusion: np.ndarray, colours: np.ndarray) -> str:
    """Return the table of classes: IU as a bar, accuracy, share of the labelled pixels."""
    right, labelled, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(divide='ignore', invalid='ignore'):
        iu = right / (labelled + predicted - right)
        accuracy = right / labelled
        share = labelled / confusion.sum()
    heads = ''.join(
        f'<th scope="col" class="{css}" data-kind="{kind}" data-first="{first}"{extra}>'
        f'<button type="button">{text}</button></th>'
        for text, css, kind, first, extra in (
            ('class', '', 'text', 'ascending', ''),
            ('IU, %', 'bar', 'number', 'descending', ''),
            ('accuracy, %', '', 'number', 'descending', ''),
            ('pixels, %', 'share', 'number', 'descending', ''),
        )
    )
    rows = []
    for number, name in enumerate(map(html.escape, classes)):
        values = [_value(each[number]) for each in (iu, accuracy, share)]
        bar = (
            '<i class="none"></i>'
            if math.isnan(iu[number])
            else f'<i><b style="width:{100 * iu[number]:.1f}%"></b></i>'
        )
        rows.append(
            f'<tr{"" if labelled[number] else " class=absent"}>'
            f'<td data-value="{name}">{_swatch(colours[number])}{name}</td>'
            f'<td class="bar" data-value="{values[0]}"><span>{bar}'
            f'<em>{_percent(iu[number])}</em></span></td>'
            f'<td data-value="{values[1]}">{_percent(accuracy[number])}</td>'
            f'<td class="share" data-value="{values[2]}">{_percent(share[number])}</td></tr>'
        )
    absent = sum(not count for count in labelled)
    note = 'Click a head to sort.' + (
        f' Grey: {absent} {"class" if absent == 1 else "classes"} in no label.' if absent else ''
    )
    return (
        f'<section><h2>Classes</h2><p class="note">{note}</p><div class="card">'
        f'<table class="sorts"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
        '</table></div></section>'
    )


def _value(share: float) -> str:
    """Return what a table sorts by: six digits, or nothing if there is no value."""
    return f'{share:.6g}' if math.isfinite(share) else ''


def _confusion(classes: Sequence[str], confusion: np.ndarray) -> str:
    """Return the confusion matrix as SVG, rows as shares of a class, and its largest entries."""
    n = len(classes)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 20 if n <= 24 else 13
    font = min(11, side - 2)
    margin = int(min(max(map(len, classes)), 20) * font * 0.58) + 16
    size = margin + n * side + 2
    cells = ''.join(
        f'<rect x="{margin + column * side}" y="{margin + row * side}" width="{side}" '
        f'height="{side}" fill-opacity="{math.sqrt(shares[row, column]):.2f}"/>'
        for row, column in np.argwhere(shares >= 0.0005)
    )
    texts = []
    for number, name in enumerate(classes):
        short = html.escape(name if len(name) <= 20 else f'{name[:19]}…')
        middle = margin + number * side + side / 2
        texts.append(
            f'<text x="{margin - 6}" y="{middle + font / 3:.1f}" text-anchor="end">{short}</text>'
            f'<text transform="translate({middle + font / 3:.1f} {margin - 6}) rotate(-90)">'
            f'{short}</text>'
        )
    counts = json.dumps(
        {
            'classes': list(classes),
            'counts': confusion.tolist(),
            'left': margin,
            'top': margin,
            'side': side,
        }
    ).replace('<', '\\u003c')
    scale = ''.join(
        f'<span><i style="opacity:{math.sqrt(share):.2f}"></i>{100 * share:g} %</span>'
        for share in (0.01, 0.05, 0.2, 0.5, 1)
    )
    return (
        '<section><h2>Confusion</h2><p class="note">Rows are labels, columns predictions. A cell '
        'is the share of its label that is predicted so.</p><div class="beside"><div class="card">'
        f'<div class="scroll"><svg class="matrix" viewBox="0 0 {size} {size}" '
        f'style="max-width:{1.25 * size:.0f}px;--least:{0.9 * size:.0f}px" font-size="{font}" '
        'role="img" aria-label="confusion matrix">'
        f'<g>{"".join(texts)}</g><g class="cells">{cells}</g>'
        f'<rect class="frame" x="{margin}" y="{margin}" width="{n * side}" height="{n * side}"/>'
        f'<g id="cross" style="display:none"><rect x="{margin}" width="{n * side}" '
        f'height="{side}"/><rect y="{margin}" width="{side}" height="{n * side}"/></g>'
        f'</svg></div><div class="scale">{scale}</div></div>'
        f'{_most_confused(classes, confusion, shares)}</div>'
        f'<script type="application/json" id="counts">{counts}</script></section>'
    )


def _most_confused(classes: Sequence[str], confusion: np.ndarray, shares: np.ndarray) -> str:
    """List the wrong predictions that take the largest shares of a label."""
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, shares)
    order = np.argsort(-wrong, axis=None, kind='stable')[:_CONFUSED]
    lines = ''.join(
        f'<li><span>{html.escape(classes[row])} <small>taken for</small> '
        f'{html.escape(classes[column])}</span><span>{_percent(wrong[row, column])}</span></li>'
        for row, column in zip(*np.unravel_index(order, wrong.shape))
        if wrong[row, column]
    )
    if not lines:
        return ''
    return (
        f'<div class="card"><ol class="confused"><li><small>largest, % of the label</small></li>'
        f'{lines}</ol></div>'
    )


# Pictures.


def _rgb(image: np.ndarray) -> np.ndarray:
    """Return H x W x 3 uint8 of a picture; stretch the values of a grey one."""
    if image.ndim == 3:
        return image.astype(np.uint8)
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _shrunk(array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    height, width = array.shape[:2]
    factor = LONGEST / max(height, width)
    if factor >= 1:
        return array
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(array).resize(size, resampling))


def _pictures(
    pictures: Iterable[ScoredPicture], classes: Sequence[str], colours: np.ndarray
) -> str:
    order = sorted(
        (each for each in pictures if math.isfinite(each.mean_iu)), key=lambda each: each.mean_iu
    )
    if not order:
        return ''
    # With few pictures, show half as worst and half as best.
    worst = order[: min(SHOWN, (len(order) + 1) // 2)]
    best = order[len(worst) :][-SHOWN:][::-1]
    shown = ''.join(
        f'<h3>{title}</h3><div class="pictures">'
        f'{"".join(_figure(each, classes, colours) for each in group)}</div>'
        for title, group in (('Best', best), ('Worst', worst))
        if group
    )
    return (
        '<section><h2>Pictures</h2><p class="note">By mean IU over the classes that a picture '
        'or its prediction has; beside a class, its IU in percent. The slider below moves all '
        'pictures.</p>'
        f'{_fade("all pictures", "fade all")}{shown}</section>'
    )


def _fade(name: str, css: str) -> str:
    stops = ''.join(
        f'<button type="button" value="{value}">{text}</button>'
        for value, text in enumerate(('image', 'label', 'prediction'))
    )
    return (
        f'<div class="{css}"><input type="range" min="0" max="2" step="0.01" value="2" '
        f'aria-label="{html.escape(name)}: image, label, prediction"><span>{stops}</span></div>'
    )


def _figure(picture: ScoredPicture, classes: Sequence[str], colours: np.ndarray) -> str:
    name = html.escape(picture.name)
    clear = classes.index('background') if 'background' in classes else None
    present = [
        f'<li>{_swatch(colours[number])}{html.escape(classes[number])}'
        f'<small>{_percent(iu, 0)}</small></li>'
        for number, iu in picture.iu.items()
        if number < len(classes)
    ]
    if (picture.label == VOID).any():
        present.append('<li><span class="swatch void"></span>void</li>')
    return (
        '<figure class="card"><div class="stack">'
        f'<img class="image" src="{_jpeg(picture.image)}" alt="{name}">'
        f'<img class="label" src="{_png(picture.label, colours, clear)}" alt="label of {name}">'
        f'<img class="prediction" src="{_png(picture.prediction, colours, clear)}" '
        f'alt="prediction for {name}"></div>'
        f'<figcaption><h4><span>{name}</span><span>IU {_percent(picture.mean_iu)} %</span></h4>'
        f'{_fade(picture.name, "fade")}<ul class="present">{"".join(present)}</ul></figcaption>'
        '</figure>'
    )


def _jpeg(image: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, 'JPEG', quality=85, optimize=True)
    return f'data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}'


def _png(labels: np.ndarray, colours: np.ndarray, background: int | None) -> str:
    """Encode labels as a palette PNG in the classes' colours, void hatched, background clear."""
    rows, columns = np.indices(labels.shape)
    stripe = ((rows + columns) // 4 % 2).astype(np.uint8)
    image = Image.fromarray(np.where(labels == VOID, VOID - stripe, labels))
    table = np.zeros((VOID + 1, 3), np.uint8)
    table[: len(colours)] = colours[: VOID + 1]
    for number, colour in _HATCH.items():
        table[number] = colour
    image.putpalette(table.tobytes())
    stream = io.BytesIO()
    image.save(stream, 'PNG', optimize=True, transparency=background)
    return f'data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'
