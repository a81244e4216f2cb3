"""Downloads from a local server that breaks off, lies, ignores ranges and recovers."""

import hashlib
import http.server
import json
import resource
import shutil
import ssl
import subprocess

import pytest

from caffe_port.errors import CaffeError, WriteError
from caffe_port.files.checksum import compute_checksum
from solve.run import fetch as module
from solve.run.fetch import fetch
from tests.solve.serving import CONTENT, PAGE, Answer, Handler, serve

SHA1 = 'sha1:' + hashlib.sha1(CONTENT).hexdigest()
SHA256 = 'sha256:' + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with serve() as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'data' / 'net.caffemodel'


def get(server, path, **options):
    fetch(server.url, path, **{'wait': 0.01, 'timeout': 5, **options})


def ranges(server):
    return [asked.get('Range') for asked in server.asked]


def left_over(path):
    """What besides `path` is in its folder."""
    return sorted(each.name for each in path.parent.iterdir() if each != path)


@pytest.mark.parametrize('known', [{}, {'nbytes': len(CONTENT)}, {'checksum': SHA1}])
def test_a_file_comes_whole_and_leaves_nothing_beside_it(server, path, known):
    get(server, path, **known)
    assert path.read_bytes() == CONTENT
    assert left_over(path) == []
    assert compute_checksum(path, SHA256) == SHA256


def test_a_broken_transfer_resumes_where_it_broke_off(server, path):
    server.answers = [Answer(stop=100_000), Answer(stop=50_000), Answer()]
    get(server, path, checksum=SHA256)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, 'bytes=100000-', 'bytes=150000-']
    assert server.asked[1]['If-Range'] == '"1"'


def test_a_second_call_resumes_what_the_first_one_left(server, path):
    server.answers = [Answer(stop=100_000), Answer(status=503)]
    with pytest.raises(CaffeError, match='100000 bytes are kept to resume from'):
        get(server, path, attempts=3)
    assert len(server.asked) == 1 + 3
    assert not path.exists()
    assert left_over(path) == ['net.caffemodel.part', 'net.caffemodel.part.json']
    server.answers, server.asked = [Answer()], []
    get(server, path)
    assert ranges(server) == ['bytes=100000-']
    assert path.read_bytes() == CONTENT
    assert left_over(path) == []


def test_a_server_that_ignores_ranges_begins_anew(server, path):
    server.answers = [Answer(stop=100_000), Answer(ranges=False)]
    get(server, path)
    assert ranges(server) == [None, 'bytes=100000-']
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('heeded', [True, False], ids=['heeds If-Range', 'ignores If-Range'])
def test_parts_of_two_states_of_a_file_are_not_joined(server, path, heeded):
    new = CONTENT[::-1]
    changed = Answer(body=new, etag='"2"', if_range=heeded)
    server.answers = [Answer(stop=100_000), changed, Answer(body=new, etag='"2"')]
    get(server, path)
    assert path.read_bytes() == new


def test_without_a_validator_an_unchecked_part_of_an_earlier_call_is_dropped(server, path):
    server.answers = [Answer(stop=100_000, etag=None), Answer(status=503, etag=None)]
    with pytest.raises(CaffeError, match='503'):
        get(server, path, attempts=1)
    server.answers, server.asked = [Answer(etag=None)], []
    get(server, path)
    assert ranges(server) == [None]
    assert path.read_bytes() == CONTENT


def test_a_part_of_another_address_is_dropped(server, path):
    path.parent.mkdir()
    path.with_name(path.name + '.part').write_bytes(b'x' * 1000)
    path.with_name(path.name + '.part.json').write_text(
        json.dumps({'url': 'http://elsewhere/', 'validator': '"1"'})
    )
    get(server, path)
    assert ranges(server) == [None]
    assert path.read_bytes() == CONTENT


def test_a_resumed_file_with_a_wrong_checksum_is_fetched_once_more_from_the_start(server, path):
    path.parent.mkdir()
    path.with_name(path.name + '.part').write_bytes(b'x' * 1000)
    path.with_name(path.name + '.part.json').write_text(
        json.dumps({'url': server.url, 'validator': '"1"'})
    )
    get(server, path, checksum=SHA256)
    assert ranges(server) == ['bytes=1000-', None]
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, path):
    server.answers = [Answer(body=CONTENT[::-1])]
    with pytest.raises(CaffeError, match=f'has sha1:[0-9a-f]*, {SHA1} expected'):
        get(server, path, checksum=SHA1)
    assert not path.exists() and left_over(path) == []


@pytest.mark.parametrize('status', [408, 429, 500, 502, 503, 504])
def test_a_server_that_recovers_is_asked_again(server, path, status):
    server.answers = [Answer(status=status), Answer(status=status), Answer()]
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 3


@pytest.mark.parametrize('status', [400, 403, 404, 410])
def test_a_final_status_is_not_tried_again_by_itself(server, path, status):
    server.answers = [Answer(status=status), Answer()]
    with pytest.raises(CaffeError, match=f'{server.url}: HTTP {status}'):
        get(server, path)
    assert len(server.asked) == 1 and left_over(path) == []
    get(server, path)  # the server has recovered, and the user asks again
    assert path.read_bytes() == CONTENT


def test_the_wait_doubles_and_follows_retry_after(server, path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, 'sleep', waits.append)
    server.answers = (
        [Answer(status=503)] * 3
        + [Answer(status=503, Retry_After='7')]
        + [Answer(status=503, Retry_After='9999'), Answer()]
    )
    get(server, path, attempts=6, wait=1)
    assert waits == [1, 2, 4, 7, module.LONGEST_WAIT]


def test_it_gives_up_when_attempts_bring_nothing(server, path):
    server.answers = [Answer(status=503)]
    with pytest.raises(CaffeError, match='503 .*; gave up after 4 attempts without a new byte$'):
        get(server, path, attempts=4)
    assert len(server.asked) == 4 and left_over(path) == []


def test_attempts_that_bring_bytes_do_not_count(server, path):
    server.answers = [Answer(stop=100_000) for _ in range(8)]
    get(server, path, attempts=2)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 8


def test_a_server_that_promises_more_than_it_has_is_given_up(server, path):
    server.answers = [Answer(length=len(CONTENT) + 1, ranges=False)]
    with pytest.raises(CaffeError, match=f'broke off after {len(CONTENT)} of {len(CONTENT) + 1}'):
        get(server, path, attempts=3)
    assert not path.exists()


def test_another_length_than_expected_is_refused_before_it_is_read(server, path):
    server.answers = [Answer(length=1234)]
    with pytest.raises(CaffeError, match='offers 1234 bytes, 700001 expected'):
        get(server, path, nbytes=len(CONTENT))
    assert len(server.asked) == 1 and left_over(path) == []


def test_a_file_cut_short_by_a_lie_of_its_length_is_refused_by_its_checksum(server, path):
    server.answers = [Answer(length=1234)]
    with pytest.raises(CaffeError, match='expected'):
        get(server, path, checksum=SHA256)
    assert not path.exists() and left_over(path) == []


def test_without_any_length_the_known_one_counts(server, path):
    server.answers = [Answer(length='none', stop=100_000), Answer(length='none')]
    get(server, path, nbytes=len(CONTENT))
    assert path.read_bytes() == CONTENT
    server.answers = [Answer(length='none', body=CONTENT + b'more')]
    with pytest.raises(CaffeError, match='sends more than the 700001 bytes expected'):
        get(server, path.with_name('other.caffemodel'), nbytes=len(CONTENT))


@pytest.mark.parametrize(
    'headers', [{'Content_Type': 'text/html; charset=utf-8'}, {}], ids=['by type', 'by content']
)
def test_an_html_page_is_refused_with_its_title(server, path, headers):
    server.answers = [Answer(body=PAGE, **headers)]
    with pytest.raises(CaffeError, match='an HTML page titled "Not here", a file expected'):
        get(server, path)
    assert len(server.asked) == 1 and not path.exists() and left_over(path) == []


def test_an_html_page_in_place_of_the_rest_is_not_appended(server, path):
    server.answers = [
        Answer(stop=100_000),
        Answer(body=PAGE, Content_Type='text/html', ranges=False),
    ]
    with pytest.raises(CaffeError, match='HTML page'):
        get(server, path)
    assert path.with_name(path.name + '.part').read_bytes() == CONTENT[:100_000]


def test_what_the_check_refuses_gets_no_name(server, path):
    def check(partial):
        assert partial.read_bytes() == CONTENT
        raise CaffeError('not weights')

    with pytest.raises(CaffeError, match='not weights'):
        get(server, path, check=check)
    assert not path.exists() and left_over(path) == []


def test_a_part_longer_than_the_file_begins_anew(server, path):
    path.parent.mkdir()
    path.with_name(path.name + '.part').write_bytes(CONTENT + b'more')
    path.with_name(path.name + '.part.json').write_text(
        json.dumps({'url': server.url, 'validator': '"1"'})
    )
    get(server, path)
    assert ranges(server) == [f'bytes={len(CONTENT) + 4}-', None]
    assert path.read_bytes() == CONTENT


def test_a_whole_part_is_not_asked_for_again(server, path):
    path.parent.mkdir()
    path.with_name(path.name + '.part').write_bytes(CONTENT)
    path.with_name(path.name + '.part.json').write_text(
        json.dumps({'url': server.url, 'validator': '"1"'})
    )
    get(server, path, nbytes=len(CONTENT), checksum=SHA256)
    assert server.asked == [] and path.read_bytes() == CONTENT


def test_an_existing_file_is_never_replaced(server, path):
    path.parent.mkdir()
    path.write_bytes(b'mine')
    with pytest.raises(CaffeError, match='exists already'):
        get(server, path)
    assert path.read_bytes() == b'mine' and server.asked == [] and left_over(path) == []


def test_two_downloads_of_one_file_do_not_meet(server, path):
    path.parent.mkdir()
    with (
        module._Partial(path),
        pytest.raises(CaffeError, match='another process is downloading it'),
    ):
        get(server, path)


def test_an_interrupt_keeps_what_has_come(server, path, monkeypatch):
    server.answers = [Answer(stop=100_000), Answer(status=503)]

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, 'sleep', stop)
    with pytest.raises(KeyboardInterrupt):
        get(server, path)
    assert path.with_name(path.name + '.part').read_bytes() == CONTENT[:100_000]


def test_a_full_disk_is_named_before_a_byte_is_written(server, path, monkeypatch):
    usage = shutil.disk_usage('/')._replace(free=1000)
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(WriteError, match='1000 bytes free, 700001 needed'):
        get(server, path)


def test_a_disk_that_fills_up_is_no_reason_to_try_again(server, path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(WriteError, match='net.caffemodel.part: not written: File too large'):
            get(server, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.asked) == 1
    get(server, path)
    assert ranges(server) == [None, 'bytes=300000-']
    assert path.read_bytes() == CONTENT


def test_a_refused_connection_is_tried_again_and_named(path):
    with pytest.raises(CaffeError, match='refused; gave up after 2 attempts'):
        fetch('http://127.0.0.1:9/net.caffemodel', path, attempts=2, wait=0.01, timeout=5)


def test_a_silent_server_ends_by_the_timeout(server, path):
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as silent:  # accepts, never answers
        url = f'http://127.0.0.1:{silent.server_port}/net.caffemodel'
        with pytest.raises(CaffeError, match='timed out; gave up after 2 attempts'):
            fetch(url, path, attempts=2, wait=0.01, timeout=0.2)


@pytest.mark.parametrize('url', ['file:///etc/passwd', 'ftp://host/file', 'net.caffemodel'])
def test_other_addresses_are_refused(path, url):
    with pytest.raises(CaffeError, match='must begin with http'):
        fetch(url, path)
    assert not path.parent.exists()


@pytest.mark.skipif(not shutil.which('openssl'), reason='needs openssl to make a certificate')
def test_https_wants_a_certificate_it_can_check(server, path, tmp_path, monkeypatch):
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=127.0.0.1']
        + ['-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = server.url.replace('http:', 'https:')
    with pytest.raises(CaffeError, match='certificate refused: self.signed certificate'):
        get(server, path)
    monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    get(server, path, checksum=SHA256)
    assert path.read_bytes() == CONTENT
