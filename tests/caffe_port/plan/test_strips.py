"""Strips computed side by side are those computed one after the other."""

import multiprocessing
import threading
import time

import pytest
import torch

import caffe_port as caffe
from caffe_port.plan import steps, strips
from tests.caffe_port.plan.forced import assert_near, drawn, force, images


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_each_strip_is_computed_once_by_one_thread_alone(threads):
    seen, done, barrier = [], [], threading.Barrier(threads)

    def compute(strip):
        if strip < threads:
            barrier.wait(60)  # all threads are at work at the same time
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        done.append(strip)

    strips.run(compute, range(12))
    assert sorted(done) == list(range(12))
    assert len({thread for thread, *_ in seen}) == threads
    assert {(number, grad) for _, number, grad in seen} == {(1, False)}
    assert torch.get_num_threads() == threads


def test_new_threads_compute_with_as_many_threads_as_before(threads):
    strips.run(lambda strip: None, range(9))
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [threads]


def test_few_strips_are_computed_by_all_threads(threads):
    found = []
    strips.run(lambda strip: found.append((strip, torch.get_num_threads())), range(threads - 1))
    assert found == [(0, threads), (1, threads)]


def test_few_short_strips_are_computed_by_one_thread_each(threads):
    found = []
    strips.run(lambda strip: found.append(torch.get_num_threads()), [0], short=True)
    assert found == [1]


@pytest.mark.parametrize('number', [1, 3, 8])
@pytest.mark.parametrize('rows', [1, 5, 10, 500])
def test_a_copy_is_whole_and_shared_by_all_threads(threads, monkeypatch, number, rows):
    torch.set_num_threads(number)
    run, sizes = strips.run, []

    def counted(compute, all_strips, short):
        sizes.append(len(all_strips))
        run(compute, all_strips, short)

    monkeypatch.setattr(strips, 'run', counted)
    image, to = torch.rand(2, 3, rows, 4), torch.zeros(2, 3, rows, 4)
    strips.copy(image, to)
    assert torch.equal(image, to)
    assert sizes == [{(8, 10): 5}.get((number, rows), min(number, rows))]  # of two rows each


def test_an_error_in_a_strip_is_the_caller_s(threads):
    def compute(strip):
        raise ValueError(strip)

    with pytest.raises(ValueError, match='^0$'):
        strips.run(compute, range(9))


def test_after_an_error_no_strip_writes_any_more(threads):
    values = torch.zeros(20)

    def fail(strip):
        if not strip:
            raise KeyboardInterrupt
        time.sleep(0.05)
        values[strip] = -1

    with pytest.raises(KeyboardInterrupt):
        strips.run(fail, range(20))
    values.zero_()
    time.sleep(0.2)
    assert not values.any()


def test_threads_that_compute_with_other_numbers_of_threads(threads):
    answers = []

    def compute(number):
        torch.set_num_threads(number)
        done = []
        for _ in range(20):
            strips.run(done.append, range(6))
        answers.append(sorted(done) == sorted([*range(6)] * 20) and torch.get_num_threads())

    users = [threading.Thread(target=compute, args=(2 + i % 2,)) for i in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert sorted(answers) == [2, 2, 3, 3]


@pytest.mark.parametrize('count, most, expected', [(23, 4, 4), (13, 14, 5), (0, 4, 1), (2, 64, 1)])
def test_strips_are_even(threads, count, most, expected):
    assert strips.step(count, most) == expected


def test_strips_of_many_threads_are_not_cut_to_nothing(threads):
    torch.set_num_threads(16)
    assert strips.step(13, 14) == 14


@pytest.mark.parametrize('inference', [False, True])
def test_a_net_computes_the_same_with_strips_side_by_side(monkeypatch, threads, inference):
    force(monkeypatch)
    net = drawn('voc_fcn8s', width=16)
    inputs = images(net, (60, 80))
    found = []
    for number in (1, threads):
        torch.set_num_threads(number)
        with torch.inference_mode(inference), torch.no_grad():
            found.append(net.module(**inputs)['score'])
    assert_near(*found, 1e-6)


def test_a_net_trains_the_same_with_strips_side_by_side(monkeypatch, threads):
    force(monkeypatch)
    monkeypatch.setattr(steps, '_STRIP', 2**12)
    found = []
    for number in (1, threads):
        torch.set_num_threads(number)
        net = drawn('voc_fcn32s', 'val', caffe.TRAIN, width=8, drop=0.0)
        for name, values in images(net, (60, 80)).items():
            net.blobs[name].reshape(*values.shape)
            net.blobs[name].data[...] = 0 if name == 'label' else values
        net.forward()
        net.backward()
        found.append([blob.diff.copy() for blobs in net.params.values() for blob in blobs])
    for one, other in zip(*found):
        assert_near(one, other, 1e-5)


def _run_in_child(answers):
    found = []
    torch.set_num_threads(1)
    strips.run(found.append, range(6))
    torch.set_num_threads(2)
    strips.run(found.append, range(6))
    answers.put(sorted(found))


def test_a_fork_has_threads_of_its_own(threads):
    strips.run(lambda strip: None, range(9))
    context = multiprocessing.get_context('fork')
    answers = context.SimpleQueue()
    child = context.Process(target=_run_in_child, args=(answers,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == sorted([*range(6)] * 2)
