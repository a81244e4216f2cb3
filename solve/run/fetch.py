"""Download one file over HTTP or HTTPS: resume, retry, check, and rename it when it is whole."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from caffe_port.errors import CaffeError, WriteError, make_folder
from caffe_port.files.checksum import compute_checksum
from caffe_port.files.table import printable
from solve.run.progress import show_progress

# Statuses of a server that may answer later.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0  # seconds between two attempts
_CHUNK = 1 << 18
_HTML = re.compile(rb'\s*(<!--.*?-->\s*)*<(!doctype\s+html|html)\b', re.I | re.S)
_TITLE = re.compile(rb'<title[^>]*>(.*?)</title', re.I | re.S)
_RANGE = re.compile(r'bytes (\d+)-\d+/(\d+|\*)')


class _Interrupted(Exception):
    """A transfer that ended early and may succeed when tried again, after `wait` seconds."""

    def __init__(self, why: object, wait: float = 0.0):
        super().__init__(str(why))
        self.wait = wait


def fetch(
    url: str,
    path: str | os.PathLike,
    nbytes: int | None = None,
    checksum: str | None = None,
    check: Callable[[Path], object] | None = None,
    attempts: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> None:
    """Download `url` to `path`, which appears only when it is whole and checked.

    Until then the bytes are in `<path>.part`, where the next call resumes. `nbytes` and
    `checksum` ('sha1:...' or 'sha256:...') are what the file must have, where that is known;
    `check` is called with the whole file before the rename and raises CaffeError to refuse it.
    After an attempt that brings no new byte, at most `attempts` - 1 more are made; the waits
    between them start at `wait` seconds and double. A connection that is silent for `timeout`
    seconds counts as broken.

    Raises CaffeError if `path` exists, if the server refuses, answers with an HTML page or
    offers another length, if the checksum differs, or if all attempts fail; WriteError if the
    disk is full.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ('http', 'https'):
        raise CaffeError(f'{url}: must begin with http:// or https://')
    make_folder(path.parent)
    with (
        _Partial(path) as partial,
        show_progress(desc=path.name, unit='B', unit_scale=True, total=nbytes, leave=False) as bar,
    ):
        download = _Download(url, partial, nbytes, checksum, timeout, bar)
        resumed = download.held > 0
        download.complete(attempts, wait)
        try:
            download.verify(check)
        except CaffeError as error:
            # The bytes of an earlier call may be of another file: once more, from the start.
            partial.cut(0)
            if not resumed:
                raise
            bar.write(f'{error}; starts over')
            download.complete(attempts, wait)
            try:
                download.verify(check)
            except CaffeError:
                partial.cut(0)
                raise
        partial.publish()


class _Partial:
    """The bytes of a file that have come so far, locked against a second download.

    `origin` is what the server said of them: url and validator (ETag or Last-Modified).
    """

    def __init__(self, path: Path):
        self._path = path
        self.path = path.with_name(f'{path.name}.part')
        self._note = path.with_name(f'{path.name}.part.json')

    def __enter__(self) -> _Partial:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise WriteError(f'{self.path}: not written: {error.strerror}') from error
        self._file: FileIO = os.fdopen(descriptor, 'r+b', buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._path.exists():
                raise CaffeError(f'{self._path}: exists already; move it away to download it again')
        except BaseException as error:
            self.__exit__()
            if isinstance(error, BlockingIOError):
                raise CaffeError(f'{self.path}: another process is downloading it') from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.held:
            self._note.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self._file.close()

    @property
    def held(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def origin(self) -> dict[str, Any]:
        try:
            origin = json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {}
        return origin if isinstance(origin, dict) else {}

    def cut(self, nbytes: int, origin: dict[str, Any] | None = None) -> None:
        """Keep the first `nbytes` bytes; with none, forget their origin or take a new one."""
        with self._writing():
            self._file.truncate(nbytes)
            self._file.seek(nbytes)
            if nbytes == 0:
                self._note.unlink(missing_ok=True)
                if origin:
                    self._note.write_text(json.dumps(origin))

    def append(self, chunk: bytes) -> None:
        with self._writing():
            while chunk:
                chunk = chunk[self._file.write(chunk) :]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(f'{self.path}: not written: {error.strerror}') from error

    def publish(self) -> None:
        """Flush the file to the disk and give it its name."""
        with self._writing():
            os.fsync(self._file.fileno())
            os.replace(self.path, self._path)
            self._note.unlink(missing_ok=True)


class _Download:
    """A download from one server, and its progress."""

    def __init__(
        self,
        url: str,
        partial: _Partial,
        nbytes: int | None,
        checksum: str | None,
        timeout: float,
        bar: tqdm,
    ):
        self._url, self._partial, self._timeout, self._bar = url, partial, timeout, bar
        self._nbytes, self._checksum = nbytes, checksum
        origin = partial.origin
        known = origin.get('validator') or checksum or nbytes
        if origin.get('url') != url or not known or (nbytes and partial.held > nbytes):
            partial.cut(0)

    @property
    def held(self) -> int:
        return self._partial.held

    def complete(self, attempts: int, wait: float) -> None:
        """Transfer until the file is whole."""
        furthest, failed = self.held, 0
        while True:
            try:
                if self.held != self._nbytes:
                    self._transfer()
                return
            except _Interrupted as error:
                failed = 0 if self.held > furthest else failed + 1
                furthest = max(furthest, self.held)
                if failed >= attempts:
                    kept = f'; {self.held} bytes are kept to resume from' if self.held else ''
                    raise CaffeError(
                        f'{self._url}: {error}; gave up after {attempts} attempts '
                        f'without a new byte{kept}'
                    ) from error
                pause = min(error.wait or wait * 2 ** max(failed - 1, 0), LONGEST_WAIT)
                self._bar.write(f'{self._url}: {error}; tries again in {pause:.3g} s')
                time.sleep(pause)

    def _transfer(self) -> None:
        """Ask for the bytes that are missing and append them."""
        with self._response() as response:
            total = self._accept(response)
            self._bar.total, self._bar.n = total, self.held
            self._bar.refresh()
            while chunk := self._read(response):
                if not self.held and _HTML.match(chunk):
                    raise self._not_html(chunk)
                self._partial.append(chunk)
                self._bar.update(len(chunk))
                if total is not None and self.held > total:
                    self._partial.cut(0)
                    raise CaffeError(f'{self._url}: sends more than the {total} bytes expected')
        if total is not None and self.held < total:
            raise _Interrupted(f'broke off after {self.held} of {total} bytes')

    def _response(self) -> http.client.HTTPResponse:
        headers = {'Accept-Encoding': 'identity', 'User-Agent': 'fcn-caffe-port'}
        if self.held:
            headers['Range'] = f'bytes={self.held}-'
            if validator := self._partial.origin.get('validator'):
                headers['If-Range'] = str(validator)
        request = urllib.request.Request(self._url, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise CaffeError(
                    f'{self._url}: certificate refused: {error.reason.verify_message}'
                ) from error
            raise _Interrupted(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(error or type(error).__name__) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """Return what to raise for a status that is no success."""
        if error.code == 416:  # what is held is as long as the file, or longer
            self._partial.cut(0)
            return _Interrupted('HTTP 416, no bytes after those held')
        if error.code in TRANSIENT:
            after = error.headers.get('Retry-After', '')
            return _Interrupted(
                f'HTTP {error.code} {error.reason}', float(after) if after.isdecimal() else 0.0
            )
        return CaffeError(f'{self._url}: HTTP {error.code} {error.reason}')

    def _accept(self, response: http.client.HTTPResponse) -> int | None:
        """Return the length of the whole file, if the server says; begin anew if it wants to."""
        headers = response.headers
        if headers.get_content_type() in ('text/html', 'application/xhtml+xml'):
            raise self._not_html(self._read(response))
        length = _content_length(headers)
        if response.status == 206:
            match = _RANGE.fullmatch(headers.get('Content-Range', ''))
            changed = self._partial.origin.get('validator') not in (None, _validator(headers))
            if not self.held or not match or int(match[1]) != self.held or changed:
                self._partial.cut(0)
                raise _Interrupted('the server sent other bytes than those asked for')
            left = None if length is None else self.held + length
            total = left if match[2] == '*' else int(match[2])
            self._partial.cut(self.held)
        elif response.status == 200:
            self._partial.cut(0, {'url': self._url, 'validator': _validator(headers)})
            total = length
        else:
            raise CaffeError(f'{self._url}: HTTP {response.status}, a file expected')
        if None not in (total, self._nbytes) and total != self._nbytes:
            self._partial.cut(0)
            raise CaffeError(f'{self._url}: offers {total} bytes, {self._nbytes} expected')
        total = self._nbytes if total is None else total
        with suppress(OSError):
            free = shutil.disk_usage(self._partial.path.parent).free
            if total is not None and total - self.held > free:
                raise WriteError(
                    f'{self._partial.path.parent}: {free} bytes free, '
                    f'{total - self.held} needed for {self._url}'
                )
        return total

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(
                f'broke off after {self.held} bytes: {error or type(error).__name__}'
            ) from error

    def _not_html(self, page: bytes) -> CaffeError:
        title = _TITLE.search(page)
        text = ' '.join(title[1].decode('utf-8', 'replace').split())[:80] if title else ''
        named = f' titled "{printable(text)}"' if text else ''
        return CaffeError(f'{self._url}: answers with an HTML page{named}, a file expected')

    def verify(self, check: Callable[[Path], object] | None) -> None:
        """Raise CaffeError unless the file has the length and checksum it must have."""
        if self._nbytes not in (None, self.held):
            raise CaffeError(f'{self._url}: {self.held} bytes came, {self._nbytes} expected')
        if self._checksum:
            found = compute_checksum(self._partial.path, self._checksum)
            if found != self._checksum:
                raise CaffeError(f'{self._url}: has {found}, {self._checksum} expected')
        if check:
            check(self._partial.path)


def _content_length(headers: Message) -> int | None:
    length = headers.get('Content-Length', '')
    return int(length) if length.isdecimal() else None


def _validator(headers: Message) -> str | None:
    """Return what identifies a version of the file: a strong ETag, or its Last-Modified time."""
    etag = headers.get('ETag', '')
    return etag if etag and not etag.startswith('W/') else headers.get('Last-Modified')
