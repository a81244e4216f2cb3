"""Pictures out: overlays, panels, curves and bars say what they show."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from caffe_port.errors import CaffeError
from solve import plot
from solve.datasets import siftflow, voc
from solve.run import figures, overlays, pictures
from solve.run.metrics import Scores, fast_hist
from tests.solve.feeding import noise
from tests.solve.scored import call

PICTURE = noise('a', 300, 400, 3)
LABELS = np.zeros((300, 400), np.uint8)
LABELS[50:150, 60:200] = 15
LABELS[200:, 300:] = 2


@pytest.fixture
def drawn(monkeypatch):
    """Keep each figure that is saved."""
    figures, save = [], Figure.savefig

    def keep(figure, *arguments, **settings):
        figures.append(figure)
        return save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, 'savefig', keep)
    return figures


def texts(figure):
    return [text.get_text() for text in {id(text): text for text in figure.findobj(Text)}.values()]


def test_the_background_stays_and_classes_are_tinted_with_a_contour():
    shown = np.asarray(overlays.draw_overlay(PICTURE, LABELS, voc.CLASSES)).astype(int)
    assert np.array_equal(shown[:300][LABELS == 0], PICTURE[LABELS == 0])
    inside = np.s_[70:130, 80:180]
    half = (PICTURE[inside].astype(int) + voc.palette()[15]) / 2
    assert abs(shown[:300][inside] - half).max() <= 0.5
    contour = shown[50, 70:190]
    assert (contour == contour[0]).all() and not np.array_equal(contour[0], half[0, 0])


def test_the_legend_has_the_classes_present_with_their_shares(monkeypatch):
    written, draw = [], overlays.ImageDraw.ImageDraw.text

    def keep(self, place, text, **settings):
        written.append((text, place))
        return draw(self, place, text, **settings)

    monkeypatch.setattr(overlays.ImageDraw.ImageDraw, 'text', keep)
    labels = LABELS.copy()
    labels[0, 0] = 7
    shown = overlays.draw_overlay(PICTURE, labels, voc.CLASSES)
    said = ['background 80.0 %', 'person 11.7 %', 'bicycle 8.3 %', 'cat < 0.1 %', 'car < 0.1 %']
    assert [text for text, _ in written] == [said[0], said[1], said[2], said[4]]
    assert shown.width == 400 and shown.height > 300
    for _, (x, y) in written:
        assert x < 400 and y < shown.height - 300


@pytest.mark.parametrize(
    'names, background',
    [(voc.CLASSES, 0), (siftflow.SEMANTIC, -1), (['0', '1'], 0), (['a', 'background'], 1)],
)
def test_the_background_is_the_class_of_that_name(names, background):
    assert overlays.find_background(names) == background


def test_every_class_is_tinted_where_none_is_the_background():
    shown = np.asarray(overlays.draw_overlay(PICTURE, LABELS, siftflow.SEMANTIC)).astype(int)
    half = (PICTURE[20, 20].astype(int) + voc.palette()[0]) / 2
    assert abs(shown[20, 20] - half).max() <= 0.5


@pytest.mark.parametrize('shape', [(1, 1), (1, 700), (700, 1), (5, 9)])
def test_pictures_of_any_size_get_an_overlay(shape):
    shown = overlays.draw_overlay(np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8), 'ab')
    assert shown.width >= shape[1]


@pytest.mark.parametrize('width', [20, 80, 400])
def test_the_legend_of_a_narrow_picture_is_whole(width, monkeypatch):
    ends, draw = [], overlays.ImageDraw.ImageDraw.text

    def keep(self, place, text, **settings):
        ends.append(place[0] + settings['font'].getlength(text))
        return draw(self, place, text, **settings)

    monkeypatch.setattr(overlays.ImageDraw.ImageDraw, 'text', keep)
    labels = np.full((60, width), 18, np.uint8)
    labels[0] = 16
    shown = overlays.draw_overlay(np.zeros((60, width, 3), np.uint8), labels, voc.CLASSES)
    assert len(ends) == 2 and max(ends) <= shown.width
    assert shown.width == 400 or width < 400


def test_void_is_hatched_and_errors_are_red():
    label, prediction = LABELS.copy(), LABELS.copy()
    label[:40] = 255
    prediction[100:120, 100:120] = 3
    shown = pictures.colour_errors(label, prediction)
    red = (shown == pictures._WRONG).all(2)
    assert red.sum() == 400 and red[100:120, 100:120].all()
    for picture in (shown, pictures.colour_labels(label)):
        assert len(np.unique(picture[:40].reshape(-1, 3), axis=0)) == 2
    assert np.array_equal(pictures.colour_labels(LABELS), voc.palette()[LABELS])


def test_a_panel_names_classes_and_says_the_iu_of_each_picture(tmp_path, drawn):
    prediction, label = LABELS.copy(), LABELS.astype(np.float32)
    prediction[50:100, 60:200] = 0
    label[:, 390:] = 255
    shown = pictures.Labelled(prediction, voc.CLASSES, label)
    wrong = pictures.Labelled(prediction, voc.CLASSES, label, errors=True)
    row = [PICTURE, pictures.Labelled(label, voc.CLASSES), shown, wrong]
    figures.draw_panel(['image', 'label', 'prediction', 'errors'], [row, row], tmp_path / 'p.png')
    said = texts(drawn[0])
    known = label != 255
    hist = fast_hist(label[known].astype(int), prediction[known], 21)
    assert said.count(f'mean IU {100 * Scores(hist).mean_iu:.1f} %') == 2
    assert said.count(f'{100 * 7000 / known.sum():.1f} % wrong') == 2
    for text, count in (('person', 2), ('bicycle', 2), ('void', 2), ('image', 1), ('errors', 1)):
        assert said.count(text) == count
    assert 'aeroplane' not in said


def test_bars_stand_for_the_iu_of_each_class_the_best_first(tmp_path, drawn):
    hist = np.array([[8, 2, 0, 0], [0, 9, 1, 0], [0, 0, 0, 0], [9, 0, 0, 1]])
    scores = Scores(np.pad(hist, (0, 1)))
    figures.draw_class_scores(scores, ['a', 'b', 'c', 'd', 'e'], tmp_path / 'bars.svg')
    axes = drawn[0].axes[0]
    order = [text.get_text() for text in axes.get_yticklabels()]
    assert order == ['b', 'a', 'd', 'c', 'e']
    widths = [bar.get_width() for bar in axes.containers[1]]
    assert widths == pytest.approx([75, 100 * 8 / 19, 10, 0, 0])
    assert 'absent' in texts(drawn[0]) and f'mean IU {100 * scores.mean_iu:.1f} %' in texts(
        drawn[0]
    )
    assert (tmp_path / 'bars.svg').read_text().startswith('<?xml')


@pytest.fixture
def chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, time in (('voc_fcn32s', 5), ('voc_fcn16s', 9)):
        (tmp_path / 'chain' / name).mkdir(parents=True)
        lines = [
            dict(iteration=20, time=time, loss=2.0, smoothed_loss=2.5),
            dict(iteration=40, time=time + 1, loss=1.0, smoothed_loss=2.0),
            dict(iteration=40, time=time + 2, mean_iu=0.25, test_loss=float('nan')),
        ]
        text = '\n'.join(map(json.dumps, lines))
        (tmp_path / 'chain' / name / 'log.jsonl').write_text(text)
    return tmp_path / 'chain'


@pytest.mark.parametrize(
    'suffix, start', [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml'), ('PNG', b'\x89PNG')]
)
def test_the_suffix_decides_what_a_curve_is_written_as(suffix, start, chain, monkeypatch, capsys):
    out = f'curve.{suffix}'
    for _ in range(2):  # its own file is replaced
        assert call(monkeypatch, plot.main, 'chain', '--out', out) == 0
    assert capsys.readouterr().out == f'{out}\n' * 2
    assert (chain.parent / out).read_bytes().startswith(start)


def test_a_curve_is_drawn_of_runs_chains_and_log_files(chain, monkeypatch, drawn):
    (chain.parent / 'old.jsonl').write_bytes((chain / 'voc_fcn32s' / 'log.jsonl').read_bytes())
    assert call(monkeypatch, plot.main, 'chain', 'chain/voc_fcn16s', 'old.jsonl') == 0
    legends = [axes.get_legend() for axes in drawn[0].axes]
    said = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    runs = ['voc_fcn32s', 'voc_fcn16s', 'voc_fcn16s', 'old']
    assert said == [[f'{run}: loss' for run in runs], [f'{run}: mean IU' for run in runs]]
    for axes, legend in zip(drawn[0].axes, legends):
        assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert drawn[0].axes[1].lines[0].get_xydata().tolist() == [[40, 25]]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('chain', '--out', 'curve.doc'), 'curve.doc: the suffix must be one of .png, .pdf, .svg'),
        (('none',), 'none/log.jsonl: no such file'),
        (('chain', '--out', 'mine.png'), 'mine.png: exists and is not a drawing of this project'),
        (('chain', '--out', '/proc/self/c.png'), '/proc/self/c.png: not written'),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(arguments, message, chain, monkeypatch, capsys):
    Image.new('RGB', (3, 2)).save('mine.png')
    before = (chain.parent / 'mine.png').read_bytes()
    assert call(monkeypatch, plot.main, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 1 and message in printed
    assert (chain.parent / 'mine.png').read_bytes() == before


def test_a_file_of_another_is_replaced_on_request(chain, monkeypatch):
    Image.new('RGB', (3, 2)).save('mine.png')
    assert call(monkeypatch, plot.main, 'chain', '--out', 'mine.png', '--force') == 0
    assert figures.is_drawing(chain.parent / 'mine.png')


def test_the_help_begins_with_an_example_and_names_the_exit_statuses(monkeypatch, capsys):
    assert call(monkeypatch, plot.main, '--help') == 0
    text = capsys.readouterr().out
    assert text.index('plot.py output/') < text.index('positional arguments')
    assert 'exit status: 0; 2 with one line' in text and text.count('\n') <= 24


def test_curves_without_a_usable_value_are_empty_and_no_error(tmp_path):
    (tmp_path / 'log.jsonl').write_text('{"iteration": 20, "loss": NaN}')
    figures.draw_curve([tmp_path], tmp_path / 'curve.png')
    with pytest.raises(CaffeError, match='not a run'):
        (tmp_path / 'log.jsonl').write_text('nothing\n')
        figures.draw_curve([tmp_path], tmp_path / 'curve.png')
