"""Files that are there whole or not at all, and one kind of error whatever the disk says."""

import errno
import os
from pathlib import Path

import pytest

from caffe_port.errors import CaffeError, WriteError, make_folder, replacing


def write(path, content: bytes = b'new') -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@pytest.fixture
def old(tmp_path) -> Path:
    """A file that stands where another is to be written."""
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    return path


def assert_untouched(old: Path) -> None:
    assert old.read_bytes() == b'old' and list(old.parent.iterdir()) == [old]


def test_a_file_takes_the_place_of_another(old):
    write(old)
    assert old.read_bytes() == b'new' and list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize('function', ['fsync', 'replace'])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
def test_what_the_disk_refuses_is_a_write_error(old, monkeypatch, function, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(WriteError, match=f'^{old}: not written: {os.strerror(number)}$'):
        write(old)
    monkeypatch.undo()
    assert_untouched(old)


def test_on_a_file_system_turned_read_only_the_first_error_counts(old, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    message = f'{old}: not written: Read-only file system'
    with pytest.raises(WriteError, match=message), replacing(old) as temporary:
        temporary.write_bytes(b'half')
        for name in ('unlink', 'replace', 'fsync'):
            monkeypatch.setattr(os, name, read_only)
        monkeypatch.setattr(Path, 'unlink', read_only)
    monkeypatch.undo()
    assert old.read_bytes() == b'old'


def test_where_the_temporary_file_cannot_be_removed_the_bodys_error_counts(old, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(LookupError, match='a cat'), replacing(old):
        monkeypatch.setattr(Path, 'unlink', read_only)
        raise LookupError('a cat')
    monkeypatch.undo()
    assert_untouched(old)


def test_a_name_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / ('x' * 300)
    with pytest.raises(WriteError, match='not written: File name too long'):
        write(path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_to_write_in(old):
    with pytest.raises(WriteError, match=f'{old}/inner: not written: Not a directory'):
        write(old / 'inner')
    assert_untouched(old)


def test_a_folder_is_no_file_to_replace(tmp_path):
    (tmp_path / 'folder/inner').mkdir(parents=True)
    with pytest.raises(WriteError, match='folder: not written: '):
        write(tmp_path / 'folder')
    assert [path.name for path in tmp_path.iterdir()] == ['folder']


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WriteError, match='none/file: not written: No such file or directory'):
        write(tmp_path / 'none/file')


@pytest.mark.parametrize('path', ['', '.', '/', 'a\0b', 'a\0b/c'])
def test_what_is_no_name_of_a_file_is_refused(path):
    with pytest.raises(WriteError, match='not written: not the name of a file'):
        write(path)


def test_within_itself_the_outer_body_decides_when_the_file_is_there(old):
    with replacing(old) as outer:
        write(old, b'new')
        assert old.read_bytes() == b'old' and outer.read_bytes() == b'new'
    assert old.read_bytes() == b'new' and list(old.parent.iterdir()) == [old]
    with pytest.raises(LookupError), replacing(old):
        write(old, b'newer')
        raise LookupError
    assert old.read_bytes() == b'new' and list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize(
    'name, said', [('x' * 300, 'File name too long'), ('file/inner', 'Not a dir'), ('a\0b', 'null')]
)
def test_a_folder_that_cannot_be_made_is_a_write_error(old, name, said):
    with pytest.raises(WriteError, match=f'cannot be made: .*{said}'):
        make_folder(old.parent / name)
    assert_untouched(old)


def test_an_error_is_one_printable_line_whatever_names_are_in_it():
    error = CaffeError('a.npz: layer \n\x1b[2J: expected a weight')
    assert str(error) == r'a.npz: layer \n\x1b[2J: expected a weight'
