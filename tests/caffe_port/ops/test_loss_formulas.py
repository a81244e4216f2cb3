"""Losses and measures, against their formulas."""

import numpy as np
import pytest
from scipy import special

import caffe_port as caffe
from caffe_port.files import caffemodel
from tests.formulas import RANDOM, X, check, draw, run
from tests.vectors import assert_close

# Losses and measures.

LABELS = RANDOM(4).randint(0, 3, (2, 4, 5)).astype(np.float32)
IGNORED = np.where(RANDOM(5).rand(2, 4, 5) < 0.3, 255, LABELS).astype(np.float32)
NORMS = {
    'FULL': lambda valid: 40,
    'VALID': lambda valid: valid,
    'BATCH_SIZE': lambda valid: 2,
    'NONE': lambda valid: 1,
}


def softmax_loss(x, labels, axis, divisor, ignore=255):
    log_prob = np.moveaxis(special.log_softmax(x, axis), axis, -1).reshape(-1, x.shape[axis])
    labels = labels.reshape(-1).astype(int)
    return -sum(row[label] for row, label in zip(log_prob, labels) if label != ignore) / divisor


@pytest.mark.parametrize(
    'text, mode',
    [
        *((f'normalization: {mode}', mode) for mode in NORMS),
        ('', 'VALID'),
        ('normalize: true', 'VALID'),
        ('normalize: false', 'BATCH_SIZE'),
        ('normalize: false normalization: FULL', 'FULL'),
    ],
)
@pytest.mark.parametrize('ignore', [False, True])
def test_softmax_loss_normalization(text, mode, ignore):
    labels = IGNORED if ignore else LABELS
    divisor = NORMS[mode](int((labels != 255).sum()))
    check(
        'SoftmaxWithLoss',
        f'loss_param {{ {"ignore_label: 255" if ignore else ""} {text} }}',
        lambda x, _: softmax_loss(x, labels, 1, divisor),
        X,
        labels,
        fixed=[1],
    )


@pytest.mark.parametrize('axis', [0, -1])
def test_softmax_loss_along_other_axes_counts_what_comes_before_as_the_batch(axis):
    rest = np.delete(X.shape, axis)
    labels = RANDOM(1).randint(0, X.shape[axis], rest).astype(np.float32)
    batch = max(int(np.prod(X.shape[: axis % 4])), 1)
    check(
        'SoftmaxWithLoss',
        f'softmax_param {{ axis: {axis} }} loss_param {{ normalize: false }}',
        lambda x, _: softmax_loss(x, labels, axis, batch),
        X,
        labels,
        fixed=[1],
    )


def test_softmax_loss_gives_the_probabilities_to_a_second_top():
    net = run('SoftmaxWithLoss', '', X, LABELS, tops=2)
    assert_close(net.blobs['t1'].data, special.softmax(X.astype(np.float64), 1), 1e-5)
    before = net.backward()['b0'].copy()
    net.blobs['t1'].diff[...] = 100
    assert np.array_equal(net.backward()['b0'], before), 'it passes no gradient'


def test_a_loss_weight_scales_the_gradient_not_the_value():
    plain, weighted = (run('SoftmaxWithLoss', text, X, LABELS) for text in ('', 'loss_weight: 3'))
    assert plain.blobs['t0'].data == weighted.blobs['t0'].data
    assert_close(weighted.backward()['b0'], 3 * plain.backward()['b0'], 1e-6)


@pytest.mark.parametrize(
    'type_, settings',
    [
        ('SoftmaxWithLoss', 'loss_param { ignore_label: 255 }'),
        ('SigmoidCrossEntropyLoss', 'loss_param { ignore_label: 255 normalization: VALID }'),
    ],
)
def test_an_image_of_ignored_labels_has_loss_0(type_, settings):
    shape = X.shape if type_.startswith('Sig') else LABELS.shape
    net = run(type_, settings, X, np.full(shape, 255, np.float32))
    assert net.blobs['t0'].data == 0 and not net.backward()['b0'].any()


def test_the_softmax_loss_clamps_its_value_and_not_its_gradient():
    scores = np.array([[0, 1000]], np.float32)
    net = run('SoftmaxWithLoss', '', scores, np.zeros(1, np.float32))
    assert net.blobs['t0'].data == pytest.approx(-np.log(np.finfo(np.float32).tiny))
    assert np.array_equal(net.backward()['b0'], [[-1, 1]])


@pytest.mark.parametrize(
    'text, mode',
    [
        *((f'normalization: {mode}', mode) for mode in NORMS),
        ('', 'BATCH_SIZE'),
        ('normalize: true', 'VALID'),
        ('normalize: false', 'BATCH_SIZE'),
    ],
)
@pytest.mark.parametrize('ignore', [False, True])
def test_sigmoid_cross_entropy_normalization(text, mode, ignore):
    scores = 4 * draw(2, 20)
    targets = RANDOM(6).rand(2, 20).astype(np.float32)
    targets[:, ::4] = 255 if ignore else 1
    valid = targets != 255
    divisor = NORMS[mode](int(valid.sum()))

    def formula(x, _):
        t = targets.astype(np.float64)
        losses = t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
        return losses[valid].sum() / divisor

    check(
        'SigmoidCrossEntropyLoss',
        f'loss_param {{ {"ignore_label: 255" if ignore else ""} {text} }}',
        formula,
        scores,
        targets,
        fixed=[1],
    )


def test_sigmoid_cross_entropy_ignores_by_the_targets_integer_part():
    net = run(
        'SigmoidCrossEntropyLoss',
        'loss_param { ignore_label: 0 }',
        np.ones((1, 2)),
        np.array([[0.75, 1]]),
    )
    assert net.blobs['t0'].data == pytest.approx(np.log1p(np.exp(-1)))


def test_euclidean_loss_is_half_the_mean_of_squared_distances():
    check(
        'EuclideanLoss',
        '',
        lambda a, b: np.square(a - b.reshape(a.shape)).sum() / 4,
        X,
        draw(2, 60, seed=1),
    )


def test_multinomial_logistic_loss_is_the_mean_nll():
    prob = special.softmax(draw(4, 3), 1)
    labels = np.array([0, 2, 1, 1])
    check(
        'MultinomialLogisticLoss',
        '',
        lambda p, _: -np.log(p[np.arange(4), labels]).mean(),
        prob,
        labels,
        fixed=[1],
    )


def test_multinomial_logistic_loss_clamps_a_probability_at_1e_20():
    net = run('MultinomialLogisticLoss', '', np.array([[0, 1]]), np.zeros(1))
    assert net.blobs['t0'].data == pytest.approx(-np.log(1e-20))
    assert net.backward()['b0'][0, 0] == pytest.approx(-1e20)


def test_losses_weigh_1_by_default_and_other_tops_0():
    net = run('EuclideanLoss', '', X, X)
    assert net.blobs['t0'].diff == 1
    assert run('Reduction', '', X).blobs['t0'].diff == 0
    assert run('Reduction', 'loss_weight: 0.5', X).blobs['t0'].diff == 0.5


@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_accuracy_counts_labels_among_the_best(top_k):
    rank = (np.take_along_axis(X, LABELS.astype(int)[:, None], 1) <= X).sum(1)
    right = rank <= top_k
    net = run('Accuracy', f'accuracy_param {{ top_k: {top_k} }}', X, LABELS, tops=2)
    assert net.blobs['t0'].data == pytest.approx(right.mean())
    assert net.blobs['t1'].data == pytest.approx([right[c == LABELS].mean() for c in range(3)])


def test_accuracy_leaves_ignored_labels_out_and_counts_a_tie_as_wrong():
    scores = np.array([[0, 1], [1, 0], [2, 2], [0, 1]], np.float32)
    labels = np.array([1, 9, 0, 0])
    net = run('Accuracy', 'accuracy_param { ignore_label: 9 }', scores, labels, tops=2)
    assert net.blobs['t0'].data == pytest.approx(1 / 3)
    assert net.blobs['t1'].data.tolist() == [0, 1]
    none = run('Accuracy', 'accuracy_param { ignore_label: 9 }', scores, np.full(4, 9))
    assert none.blobs['t0'].data == 0


def test_argmax_over_all_but_the_batch():
    x = X.reshape(2, -1)
    order = np.argsort(-x, 1, kind='stable')[:, :3]
    net = run('ArgMax', 'argmax_param { top_k: 3 out_max_val: true }', X)
    assert net.blobs['t0'].shape == (2, 2, 3, 1)
    assert np.array_equal(net.blobs['t0'].data[:, 0, :, 0], order)
    assert np.array_equal(net.blobs['t0'].data[:, 1, :, 0], np.take_along_axis(x, order, 1))
    assert np.array_equal(run('ArgMax', '', X).blobs['t0'].data, order[:, None, :1, None])
    assert run('ArgMax', '', draw(3)).blobs['t0'].data.shape == (3, 1, 1)


@pytest.mark.parametrize('axis', [1, -1])
def test_argmax_along_an_axis_gives_places_or_values(axis):
    order = np.flip(np.argsort(X, axis), axis).take([0, 1], axis)
    for values in (False, True):
        net = run(
            'ArgMax',
            f'argmax_param {{ axis: {axis} top_k: 2 out_max_val: {str(values).lower()} }}',
            X,
        )
        expected = np.take_along_axis(X, order, axis) if values else order
        assert np.array_equal(net.blobs['t0'].data, expected)


def test_argmax_of_equals_is_the_later():
    assert run('ArgMax', 'argmax_param { axis: 1 }', np.ones((1, 4))).blobs['t0'].data == 3


# Losses that compare pairs, or weigh mistakes.

MATRIX = draw(3, 3, seed=7, low=0.2)


def infogain(x, labels, matrix, axis, divisor, ignore=255):
    log_prob = np.moveaxis(special.log_softmax(x, axis), axis, -1).reshape(-1, x.shape[axis])
    return (
        -sum(
            matrix.reshape(log_prob.shape[1], -1)[label] @ row
            for row, label in zip(log_prob, labels.reshape(-1).astype(int))
            if label != ignore
        )
        / divisor
    )


@pytest.fixture
def matrix_file(tmp_path, monkeypatch) -> str:
    caffemodel.write_blob(tmp_path / 'gain.binaryproto', MATRIX.reshape(1, 1, 3, 3))
    monkeypatch.chdir(tmp_path)
    return 'gain.binaryproto'


@pytest.mark.parametrize('mode', [*NORMS, ''])
@pytest.mark.parametrize('ignore', [False, True])
def test_infogain_loss_normalization(mode, ignore, matrix_file):
    labels = IGNORED if ignore else LABELS
    divisor = NORMS[mode or 'VALID'](int((labels != 255).sum()))
    settings = (
        f'loss_param {{ {"ignore_label: 255" if ignore else ""} '
        f'{f"normalization: {mode}" if mode else ""} }}'
    )
    check(
        'InfogainLoss',
        settings,
        lambda x, _, __: infogain(x, labels, MATRIX, 1, divisor),
        X,
        labels,
        MATRIX,
        fixed=[1, 2],
    )
    check(
        'InfogainLoss',
        f'{settings} infogain_loss_param {{ source: "{matrix_file}" }}',
        lambda x, _: infogain(x, labels, MATRIX, 1, divisor),
        X,
        labels,
        fixed=[1],
    )


@pytest.mark.parametrize('axis', [0, 2, -1])
def test_infogain_loss_along_other_axes(axis):
    size, matrix = X.shape[axis], draw(X.shape[axis], X.shape[axis], seed=2)
    labels = RANDOM(1).randint(0, size, np.delete(X.shape, axis)).astype(np.float32)
    batch = max(int(np.prod(X.shape[: axis % 4])), 1)
    check(
        'InfogainLoss',
        f'infogain_loss_param {{ axis: {axis} }} loss_param {{ normalization: BATCH_SIZE }}',
        lambda x, _, __: infogain(x, labels, matrix, axis, batch),
        X,
        labels,
        matrix,
        fixed=[1, 2],
    )


def test_infogain_loss_of_the_unit_matrix_is_the_softmax_loss():
    one = run('InfogainLoss', '', X, LABELS, np.eye(3), tops=2)
    other = run('SoftmaxWithLoss', '', X, LABELS, tops=2)
    for top in ('t0', 't1'):
        assert_close(one.blobs[top].data, other.blobs[top].data, 1e-6)
    assert_close(one.backward()['b0'], other.backward()['b0'], 1e-6)
    assert not one.blobs['b2'].diff.any()


def test_infogain_loss_clamps_a_probability_at_1e_20_and_its_gradient_does_not():
    scores = np.array([[0, 1000]], np.float32)
    net = run('InfogainLoss', '', scores, np.zeros(1), np.array([[2, 1], [0, 0]]))
    assert net.blobs['t0'].data == pytest.approx(-2 * np.log(1e-20))
    assert np.array_equal(net.backward()['b0'], [[-2, 3 - 1]])


def test_infogain_loss_says_what_is_wrong_with_its_matrix(matrix_file):
    source = f'infogain_loss_param {{ source: "{matrix_file}" }}'
    for settings, bottoms, message in (
        ('', [X, LABELS], 'must be the third bottom, or in the file'),
        ('infogain_loss_param { source: "none.binaryproto" }', [X, LABELS], 'none.binaryproto'),
        (source, [X, LABELS[:1]], 'labels for scores'),
        (source, [draw(2, 4), np.zeros(2)], 'for 4 classes, expected 4 x 4'),
        ('', [X, LABELS, np.eye(4)], r'matrix \(4, 4\) for 3 classes, expected 3 x 3'),
        (f'{source} loss_param {{ normalize: true }}', [X, LABELS], 'give normalization'),
    ):
        with pytest.raises(caffe.CaffeError, match=rf'^layer \(InfogainLoss\): .*{message}'):
            run('InfogainLoss', settings, *bottoms)


def test_the_infogain_matrix_is_no_parameter(matrix_file):
    net = run('InfogainLoss', f'infogain_loss_param {{ source: "{matrix_file}" }}', X, LABELS)
    assert not net.params and not net.module.state_dict()


@pytest.mark.parametrize(
    'settings, power',
    [('', 1), ('hinge_loss_param { norm: L1 }', 1), ('hinge_loss_param { norm: L2 }', 2)],
)
@pytest.mark.parametrize('shape', [(4, 3), (4, 3, 1, 1)])
def test_hinge_loss_is_one_against_all(settings, power, shape):
    labels = np.array([0, 2, 1, 1])

    def formula(x, _):
        signs = np.where(np.arange(3) == labels[:, None], 1, -1)
        return (np.maximum(0, 1 - signs * x.reshape(4, 3)) ** power).sum() / 4

    check('HingeLoss', settings, formula, draw(*shape), labels, fixed=[1])


def test_hinge_loss_has_no_gradient_exactly_at_the_margin():
    net = run('HingeLoss', '', np.array([[1, -1, 0]]), np.zeros(1))
    assert net.backward()['b0'].tolist() == [[0, 0, 1]]


ALIKE = np.array([1, 0, 0, 2, 0, 0.5])  # the last counts as 0


@pytest.mark.parametrize(
    'settings, margin, legacy',
    [('', 1, False), ('margin: 2.5', 2.5, False), ('margin: 6 legacy_version: true', 6, True)],
)
@pytest.mark.parametrize('shape', [(6, 3), (6, 3, 1, 1)])
def test_contrastive_loss_pulls_alike_pairs_together_and_pushes_others_apart(
    settings, margin, legacy, shape
):
    def formula(a, b, _):
        squares = np.square(a - b).reshape(6, -1).sum(1)
        apart = (
            np.maximum(0, margin - squares)
            if legacy
            else np.maximum(0, margin - np.sqrt(squares)) ** 2
        )
        return np.where(ALIKE >= 1, squares, apart).sum() / 12

    a = draw(*shape)
    check(
        'ContrastiveLoss',
        f'contrastive_loss_param {{ {settings} }}',
        formula,
        a,
        a + draw(*shape, seed=1) / 2,
        ALIKE,
        fixed=[2],
    )


def test_contrastive_loss_divides_by_the_distance_and_a_little_more():
    a, b = np.array([[3e-4, 0], [1, 1]]), np.array([[0, 0], [1, 1]])
    net = run('ContrastiveLoss', '', a, b, np.zeros(2))
    expected = -(1 - 3e-4) / (3e-4 + 1e-4) * 3e-4 / 2
    net.backward()
    assert_close(net.blobs['b0'].diff, np.array([[expected, 0], [0, 0]]), 1e-4)
    assert np.array_equal(net.blobs['b1'].diff, -net.blobs['b0'].diff)


def test_losses_of_pairs_and_classes_refuse_shapes_that_do_not_fit():
    for type_, bottoms in (
        ('ContrastiveLoss', [draw(2, 3), draw(2, 4), np.zeros(2)]),
        ('ContrastiveLoss', [X, X, np.zeros(2)]),
        ('ContrastiveLoss', [draw(2, 3), draw(2, 3), np.zeros(3)]),
        ('HingeLoss', [draw(2, 3), np.zeros(3)]),
    ):
        with pytest.raises(caffe.CaffeError, match=rf'^layer \({type_}\): '):
            run(type_, '', *bottoms)
