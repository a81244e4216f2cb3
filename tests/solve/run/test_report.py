"""report.html: what it holds, that it needs nothing from elsewhere, and how a browser runs it."""

import base64
import html.parser
import io
import json
import math
import re
import shutil
import socketserver
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from caffe_port.errors import CaffeError, WriteError
from solve.datasets.voc import palette
from solve.run import metrics
from solve.run.report import LONGEST, SHOWN, Extremes, ScoredPicture, write_report

HOSTILE = '<script>"&\'</td></script><!-- {{title}} http'
CLASSES = ('background', 'cat', HOSTILE, 'dog', 'absent')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)


def scored(number, height=40, width=60):
    """A picture of noise whose prediction is the better the higher its number."""
    random = np.random.RandomState(number)
    image = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
    label = np.repeat(np.arange(height)[:, None] * 4 // height, width, 1)
    label[:2] = 255
    wrong = random.rand(height, width) < 1 / (number + 1.5)
    return ScoredPicture.of(
        f'picture {number}', image, label, np.where(wrong, (label + 1) % 4, label % 4)
    )


PICTURES = [scored(number) for number in range(20)]
CONFUSION = np.zeros((5, 5), np.int64)
CONFUSION[:4, :4] = [[900, 50, 30, 20], [10, 500, 0, 90], [7, 0, 93, 0], [0, 200, 0, 300]]
CURVE = [
    {'iteration': 20 * k, 'loss': 1e5 / k, 'smoothed_loss': 9e4 / k, 'lr': 1e-10}
    for k in range(1, 2001)
] + [{'iteration': 10000 * k, 'mean_iu': 0.15 * k, 'geo_mean_iu': 0.2 * k} for k in range(1, 5)]


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp('report') / 'report.html'
    numbers = {'mean IU': '55.12 %', 'loss': 31234.5, 'absent': math.nan, HOSTILE: HOSTILE}
    write_report(path, f'A net {HOSTILE}', numbers, CLASSES, CONFUSION, PICTURES, CURVE)
    return path


class Tree(html.parser.HTMLParser):
    """All start tags with their attributes, and the text in each kind of tag."""

    VOID = {'meta', 'img', 'input', 'rect', 'line', 'polyline'}

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else '', data.strip()))

    def all(self, tag, **attributes):
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


@pytest.fixture(scope='module')
def tree(report):
    return Tree(report.read_text('utf-8'))


def decoded(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition('base64,')[2])))


# Structure.


def test_every_tag_is_closed_and_nothing_is_loaded_from_elsewhere(report, tree):
    for tag, attributes in tree.tags:
        assert tag not in ('link', 'iframe', 'object', 'embed', 'base', 'form', 'a')
        for name, value in attributes.items():
            if name in ('src', 'href', 'srcset', 'data', 'action', 'xlink:href'):
                assert value.startswith('data:image/'), (tag, name, value)
            assert not name.startswith('on')
    text = report.read_text('utf-8')
    assert not re.search(r'https?:|@import|url\(|fetch\(|XMLHttpRequest|WebSocket', text)
    (policy,) = tree.all('meta', **{'http-equiv': 'Content-Security-Policy'})
    assert "default-src 'none'" in policy['content']


def test_names_are_shown_as_they_are(tree):
    assert len(tree.all('script')) == 2  # the counts and the page's own
    assert next(text for tag, text in tree.texts if tag == 'title') == f'A net {HOSTILE}'
    assert ('h1', f'A net {HOSTILE}') in tree.texts
    assert ('dt', HOSTILE) in tree.texts and ('dd', HOSTILE) in tree.texts
    assert ('td', HOSTILE) in tree.texts
    data = next(
        text for tag, text in tree.texts if tag == 'script' and text.startswith('{"classes"')
    )
    assert json.loads(data)['classes'] == list(CLASSES)
    assert json.loads(data)['counts'] == CONFUSION.tolist()


def test_numbers_keep_their_order_and_form(tree):
    assert [text for tag, text in tree.texts if tag == 'dd'] == ['55.12 %', '31,234', '–', HOSTILE]


def test_classes_have_the_scores_of_the_release(tree):
    scores = metrics.Scores(CONFUSION)
    cells = [found['data-value'] for found in tree.all('td')]
    rows = [cells[start : start + 4] for start in range(0, len(cells), 4)]
    assert [row[0] for row in rows] == list(CLASSES)
    for row, iu, accuracy, labelled in zip(rows, scores.iu, scores.accuracy, CONFUSION.sum(1)):
        if not labelled:
            assert row[1:3] == ['', '']
            continue
        assert float(row[1]) == pytest.approx(iu, rel=1e-5)
        assert float(row[2]) == pytest.approx(accuracy, rel=1e-5)
        assert float(row[3]) == pytest.approx(labelled / CONFUSION.sum(), rel=1e-5)
    widths = [found['style'] for found in tree.all('b')]
    assert widths == [f'width:{100 * iu:.1f}%' for iu in scores.iu[:4]]
    swatches = [found['style'] for found in tree.all('span', **{'class': 'swatch'})]
    assert swatches[:5] == [f'background:#{bytes(colour).hex()}' for colour in palette()[:5]]


def test_the_matrix_has_a_cell_for_every_share_that_can_be_seen(report):
    text = report.read_text('utf-8')
    cells = re.search(r'<g class="cells">(.*?)</g>', text)[1]
    opacities = re.findall(r'fill-opacity="([\d.]+)"', cells)
    shares = CONFUSION[:4] / CONFUSION[:4].sum(1, keepdims=True)
    assert [float(each) for each in opacities] == pytest.approx(
        np.sqrt(shares[shares > 0]), abs=0.006
    )
    assert '>dog <small>taken for</small> cat</span><span>40.0<' in text


def test_the_worst_and_the_best_pictures_are_shown(tree):
    shown = [text for tag, text in tree.texts if tag == 'h4' or text.startswith('picture ')]
    order = sorted(PICTURES, key=lambda each: each.mean_iu)
    wanted = [each.name for each in order[: -SHOWN - 1 : -1] + order[:SHOWN]]
    assert [text for text in shown if text.startswith('picture ')] == wanted
    assert len(tree.all('figure')) == 2 * SHOWN
    assert len(tree.all('img')) == 3 * 2 * SHOWN


def test_labels_are_in_the_classes_colours_and_void_is_hatched(report, tree):
    best = max(PICTURES, key=lambda each: each.mean_iu)
    (found,) = tree.all('img', alt=f'label of {best.name}')
    image = decoded(found['src'])
    assert image.mode == 'P' and image.info['transparency'] == 0  # background
    pixels = np.asarray(image.convert('RGB'))
    labelled = best.label != 255
    assert (pixels[labelled] == palette()[best.label[labelled]]).all()
    assert len(np.unique(pixels[~labelled].reshape(-1, 3), axis=0)) == 2
    (found,) = tree.all('img', alt=f'prediction for {best.name}')
    pixels = np.asarray(decoded(found['src']).convert('RGB'))
    assert (pixels == palette()[best.prediction]).all()


def test_the_curve_is_thinned_and_ends_where_the_log_does(report):
    text = report.read_text('utf-8')
    lines = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', text)
    assert [css for css, _ in lines] == ['faint', 'first', 'first', 'second']
    assert all(len(points.split()) <= 601 for _, points in lines)
    ends = [float(points.split()[-1].split(',')[0]) for _, points in lines[:2]]
    assert ends == [348.0, 348.0]
    assert 'iteration 40,000: geo mean IU 80' in text


def test_a_report_is_bounded_however_large_its_pictures_are(tmp_path):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (1500, 2000, 3)).astype(np.uint8)
    label = random.randint(0, 5, (1500, 2000))
    picture = ScoredPicture.of('large', image, label, label)
    assert picture.image.shape == (375, LONGEST, 3)
    assert picture.label.shape == picture.prediction.shape == (375, LONGEST)
    path = tmp_path / 'report.html'
    write_report(path, 'large', {}, CLASSES, CONFUSION, [picture] * 50)
    assert path.stat().st_size < 12 * 600_000


@pytest.mark.parametrize('curve', [None, [], [{'iteration': 3}], [{'iteration': 1, 'loss': 2.5}]])
def test_little_or_nothing_to_show_is_shown(tmp_path, curve):
    path = tmp_path / 'report.html'
    write_report(path, 'empty', {}, ['one'], np.zeros((1, 1), int), [], curve)
    tree = Tree(path.read_text('utf-8'))
    assert len(tree.all('polyline')) == (1 if curve and 'loss' in curve[0] else 0)


@pytest.mark.parametrize(
    'values',
    [
        [1e-3, 1e3],
        [5, 5],
        [1, 9.9],
        [0.1, 0.1000001],
        [3e4, 3.3e4],
        [2e4, 3e6],
        [1.21e6, 1.27e6],
        [math.nan, 4],
        [0, -1, 2],
    ],
)
def test_curves_of_any_range_stay_in_their_chart(tmp_path, values):
    path = tmp_path / 'report.html'
    curve = [{'iteration': k, 'loss': value} for k, value in enumerate(values)]
    write_report(path, 'curve', {}, ['one'], np.ones((1, 1), int), [], curve)
    (points,) = re.findall(r'<polyline[^>]*points="([^"]*)"', path.read_text('utf-8'))
    for x, y in (map(float, point.split(',')) for point in points.split()):
        assert 56 <= x <= 348 and 30 <= y <= 178
    ticks = re.findall(r'<text x="50"[^>]*>([^<]*)<', path.read_text('utf-8'))
    assert len(ticks) >= 2 and max(map(len, ticks)) <= 8  # what 50 pixels hold


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / 'report.html'
    with pytest.raises(CaffeError, match=r'confusion of shape \(4, 4\), 5 x 5 expected'):
        write_report(path, '', {}, CLASSES, CONFUSION[:4, :4])
    with pytest.raises(CaffeError, match='255 classes, 1 to 254 expected'):
        write_report(path, '', {}, ['c'] * 255, np.zeros((255, 255), int))
    with pytest.raises(CaffeError, match='x: image of .* must be of one size'):
        ScoredPicture.of('x', np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(WriteError):
        write_report(tmp_path / 'none' / 'report.html', '', {}, CLASSES, CONFUSION)
    assert list(tmp_path.iterdir()) == []


# Pictures.


def test_a_picture_is_scored_as_the_release_scores_a_set_of_one():
    random = np.random.RandomState(3)
    label, prediction = random.randint(0, 5, (2, 30, 50))
    label[:3] = 255
    picture = ScoredPicture.of('x', np.zeros((30, 50, 3), np.uint8), label, prediction)
    scores = metrics.Scores(metrics.fast_hist(label.ravel(), prediction.ravel(), 5))
    assert [picture.iu[number] for number in range(5)] == pytest.approx(scores.iu)
    assert picture.mean_iu == pytest.approx(scores.mean_iu)
    assert picture.accuracy == pytest.approx(scores.overall_accuracy)


def test_extremes_are_those_of_all_pictures_however_many():
    extremes = Extremes(3)
    for picture in PICTURES:
        extremes.add(picture)
    nothing = np.full((4, 4), 255)
    extremes.add(ScoredPicture.of('void', np.zeros((4, 4)), nothing, nothing * 0))
    order = sorted(PICTURES, key=lambda each: each.mean_iu)
    assert extremes.pictures == order[:3] + order[-3:]


def test_few_pictures_are_shown_once_each():
    extremes = Extremes(3)
    for picture in PICTURES[:4]:
        extremes.add(picture)
    assert sorted(each.name for each in extremes.pictures) == [p.name for p in PICTURES[:4]]


# In a browser.

PROBE = """<script>
var found = {errors: [], blocked: []};
addEventListener('error', function (event) {
  found.errors.push(String(event.message || event.target.tagName));
}, true);
addEventListener('unhandledrejection', function (event) {
  found.errors.push(String(event.reason));
});
addEventListener('securitypolicyviolation', function (event) {
  found.blocked.push(event.blockedURI);
});
</script>"""
DRIVER = """<script>
addEventListener('load', function () {
  function names() {
    return Array.from(document.querySelectorAll('tbody tr'), function (row) {
      return row.cells[0].textContent;
    });
  }
  function opacities(figure) {
    return ['.label', '.prediction'].map(function (css) {
      return Number(getComputedStyle(figure.querySelector(css)).opacity);
    });
  }
  function slide(fade, value) {
    var input = fade.querySelector('input');
    input.value = value;
    input.dispatchEvent(new Event('input', {bubbles: true}));
  }
  var heads = document.querySelectorAll('th button'), figures = document.querySelectorAll('figure');
  found.before = names();
  heads[1].click();
  found.byIu = names();
  found.sorted = document.querySelectorAll('th')[1].getAttribute('aria-sort');
  heads[1].click();
  found.byIuAscending = names();
  heads[0].click();
  found.byName = names();
  found.sortedHeads = document.querySelectorAll('th[aria-sort]').length;

  var first = figures[0].querySelector('.fade');
  found.slides = ['0', '0.5', '1', '1.5', '2'].map(function (value) {
    slide(first, value);
    return opacities(figures[0]);
  });
  first.querySelectorAll('button')[1].click();
  found.stop = [opacities(figures[0]), first.querySelector('input').value];
  found.other = opacities(figures[1]);
  slide(document.querySelector('.fade.all'), '0');
  found.all = Array.from(figures, opacities);

  var tip = document.getElementById('tip'), box;
  var matrix = document.querySelector('.matrix');
  matrix.scrollIntoView();
  box = matrix.querySelector('.frame').getBoundingClientRect();
  function point(column, row) {
    matrix.dispatchEvent(new PointerEvent('pointermove', {
      bubbles: true,
      clientX: box.left + (column + 0.5) * box.width / 5,
      clientY: box.top + (row + 0.5) * box.height / 5
    }));
    return [tip.hidden, tip.textContent];
  }
  found.tips = [point(1, 3), point(3, 3), point(0, 4), point(-1, 0)];
  found.images = Array.from(document.images, function (image) { return image.naturalWidth; });
  found.requests = performance.getEntriesByType('resource').map(function (each) {
    return each.name.slice(0, 40);
  });
  found.wide = [document.documentElement.scrollWidth, innerWidth];
  var note = document.createElement('pre');
  note.id = 'found';
  note.textContent = JSON.stringify(found);
  document.body.append(note);
});
</script>"""


class Listener(socketserver.StreamRequestHandler):
    """Stands where the browser believes its proxy: notes the first line of every request."""

    def handle(self):
        self.server.lines.append(self.rfile.readline().decode('latin-1').strip())


def browse(page, folder, *options):
    """Open a page in headless Chromium; what the probe found, and what the proxy was asked."""
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Listener) as proxy:
        proxy.lines, proxy.daemon_threads = [], True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={'poll_interval': 0.05})
        thread.start()
        port = proxy.server_address[1]
        try:
            done = subprocess.run(
                [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run']
                + ['--disable-background-networking', '--disable-component-update']
                + ['--disable-sync', '--disable-quic', '--disable-default-apps']
                + ['--disable-domain-reliability', '--disable-client-side-phishing-detection']
                + [f'--proxy-server=127.0.0.1:{port}', '--proxy-bypass-list=<-loopback>']
                + [f'--user-data-dir={folder / "profile"}', '--virtual-time-budget=5000']
                + [*options, '--dump-dom', page.as_uri()],
                capture_output=True,
                text=True,
                timeout=120,
            )
        finally:
            proxy.shutdown()
            thread.join()
    note = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert note, done.stderr[-2000:]
    # The browser asks its maker's hosts of its own accord, with any page.
    own = re.compile(
        r'CONNECT [\w.-]*\.(google|googleapis|gvt1)\.com:|\w+ http://\S*\.gvt1\.com/|'
        r'\w+ http://[\w.-]*\.google(apis)?\.com/'
    )
    return json.loads(html.unescape(note[1])), [line for line in proxy.lines if not own.match(line)]


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')


@pytest.fixture(scope='module')
def browsed(report, tmp_path_factory):
    """What a browser finds in the report, with a script in it that clicks and slides."""
    folder = tmp_path_factory.mktemp('browser')
    page = folder / 'probed.html'
    text = report.read_text('utf-8').replace('<head>', f'<head>{PROBE}', 1)
    page.write_text(text.replace('</body>', f'{DRIVER}</body>'), 'utf-8')
    return browse(page, folder, '--window-size=1280,900')


@needs_chromium
def test_no_script_fails_and_nothing_is_asked_of_anywhere(browsed):
    found, asked = browsed
    assert found['errors'] == [] and found['blocked'] == []
    assert [name for name in found['requests'] if not name.startswith('data:')] == []
    assert asked == []
    assert len(found['images']) == 3 * 2 * SHOWN and all(found['images'])


@needs_chromium
def test_the_probe_sees_requests_and_errors(tmp_path):
    """The test above can fail: a page that does both is found out."""
    page = tmp_path / 'page.html'
    loads = '<img src="http://example.invalid/x.png"><script>throw new Error("oops")</script>'
    driver = DRIVER.replace("'load', function () {", "'load', function () { try {", 1)
    driver = driver.replace('  var note =', '  } catch (error) {}\n  var note =')
    page.write_text(f'<html><head>{PROBE}</head><body>{loads}{driver}</body></html>')
    found, asked = browse(page, tmp_path)
    assert any('oops' in error for error in found['errors'])
    assert any('example.invalid' in line for line in asked)


@needs_chromium
def test_the_table_sorts(browsed):
    found, _ = browsed
    scores = metrics.Scores(CONFUSION)
    order = [CLASSES[number] for number in np.argsort(-scores.iu[:4])]
    assert found['before'] == list(CLASSES)
    assert found['byIu'] == [*order, 'absent']  # without a value, so last both ways
    assert found['sorted'] == 'descending'
    assert found['byIuAscending'] == [*order[::-1], 'absent']
    assert found['byName'] == [HOSTILE, 'absent', 'background', 'cat', 'dog']
    assert found['sortedHeads'] == 1


@needs_chromium
def test_the_slider_fades_from_image_over_label_to_prediction(browsed):
    found, _ = browsed
    wanted = [[0, 0], [0.4, 0], [0.8, 0], [0.4, 0.4], [0, 0.8]]
    assert np.array(found['slides']) == pytest.approx(np.array(wanted), abs=1e-6)
    assert found['stop'] == [[0.8, 0], '1']
    assert found['other'] == [0, 0.8]  # as it was: prediction
    assert found['all'] == [[0, 0]] * (2 * SHOWN)


@needs_chromium
def test_the_matrix_tells_what_a_cell_counts(browsed):
    found, _ = browsed
    assert found['tips'][0] == [False, 'dog taken for cat: 40.00 % of it, 200 pixels']
    assert found['tips'][1] == [False, 'dog found: 60.00 % of it, 300 pixels']
    assert found['tips'][2] == [False, 'absent is in no label']
    assert found['tips'][3][0] is True


@needs_chromium
@pytest.mark.parametrize('width', [1280, 400])
def test_nothing_sticks_out_of_the_page(report, tmp_path, width):
    frame = tmp_path / 'frame.html'  # a window of its own has at least 500 pixels
    shutil.copy(report, tmp_path / 'report.html')
    frame.write_text(
        f'<body style="margin:0"><iframe src="report.html" width="{width}" height="900"></iframe>'
        '<script>addEventListener("load", function () {'
        ' var page = document.querySelector("iframe").contentDocument.documentElement;'
        ' var note = document.createElement("pre"); note.id = "found";'
        ' note.textContent = JSON.stringify([page.scrollWidth, page.clientWidth]);'
        ' document.body.append(note); });</script>'
    )
    found, _ = browse(frame, tmp_path, '--allow-file-access-from-files')
    assert found[0] <= found[1] <= width
