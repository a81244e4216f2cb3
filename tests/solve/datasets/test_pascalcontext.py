"""The PASCAL-Context data layer: the lists of names by which annotations become classes."""

from pathlib import Path

import numpy as np
import pytest

from caffe_port.errors import CaffeError
from tests.solve.feeding import Tree, facts


@pytest.fixture
def tree(tmp_path):
    return Tree('pascalcontext', tmp_path)


def list_of(tree, file):
    return Path(tree.params['context_dir'], file)


def first_label(tree):
    layer, blobs = tree.make()
    layer.forward([], blobs)
    return blobs[1].data.copy()


@pytest.mark.parametrize(
    'task, annotation',
    [('diningtable', 'table'), ('bedcloth', 'bedclothes'), ('clothes', 'cloth'), ('sky', 'sky')],
)
def test_a_class_is_found_by_the_name_it_is_annotated_as(tree, task, annotation):
    known = facts('pascalcontext')
    number = known['annotated_classes'].index(annotation) + 1
    shown = first_label(tree)[0, 0][tree.stored('label', '2008_000003') == number]
    assert set(shown) == {known['classes'].index(task)}


def test_numbers_are_those_of_the_file_not_of_its_lines(tree):
    expected, path = first_label(tree), list_of(tree, 'labels.txt')
    path.write_text('\r\n'.join(path.read_text().splitlines()[::-1]))
    np.testing.assert_array_equal(first_label(tree), expected)


def test_59_labels_may_have_the_annotation_names(tree):
    expected, path = first_label(tree), list_of(tree, '59_labels.txt')
    path.write_text(path.read_text().replace('diningtable', 'table'))
    np.testing.assert_array_equal(first_label(tree), expected)


@pytest.mark.parametrize(
    'file, change, message',
    [
        (
            'labels.txt',
            lambda text: text.replace('bedclothes', 'sheets'),
            'lacks bedclothes of the 59 classes',
        ),
        (
            'labels.txt',
            lambda text: text.replace('1: accordion', 'accordion'),
            "'number: name' expected, the number from 1 to 65535; got 'accordion'",
        ),
        ('labels.txt', lambda text: text + '0: zero', "got '0: zero'"),
        ('labels.txt', lambda text: text + '-1: less', "got '-1: less'"),
        ('labels.txt', lambda text: text + '65536: more', "got '65536: more'"),
        ('labels.txt', lambda text: text + '9' * 200 + ': more', "got '999"),
        ('labels.txt', lambda text: text + '460:', "got '460:'"),
        (
            'labels.txt',
            lambda text: text + '3: antenna',
            'number 3 is both airconditioner and antenna',
        ),
        ('labels.txt', lambda text: '', 'empty'),
        ('59_labels.txt', lambda text: text.replace('59: wood', ''), 'number 59 is None, wood'),
        ('59_labels.txt', lambda text: text + '60: zebra', 'number 60 is zebra, None expected'),
        (
            '59_labels.txt',
            lambda text: text.replace('2: bicycle', '2: bird').replace('3: bird', '3: bicycle'),
            'number 2 is bird, bicycle expected',
        ),
    ],
)
def test_lists_of_names_that_are_none_are_refused(tree, file, change, message):
    path = list_of(tree, file)
    path.write_text(change(path.read_text()))
    with pytest.raises(CaffeError) as error:
        tree.make()
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize('file', ['labels.txt', '59_labels.txt'])
def test_missing_lists_of_names_are_named(tree, file):
    list_of(tree, file).unlink()
    with pytest.raises(CaffeError, match=f'{file}: no such file'):
        tree.make()
