"""A server of one file on this machine, which can break off, lie, refuse and recover."""

import http.server
import itertools
import threading
from contextlib import contextmanager

CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), 700_001))
PAGE = b'<!DOCTYPE html>\n<html><head><title>Not\n here</title></head></html>'


class Answer:
    """What the server does with one request; the defaults are an honest server's."""

    def __init__(
        self,
        status=200,
        body=CONTENT,
        length=None,
        stop=None,
        ranges=True,
        etag='"1"',
        if_range=True,
        **headers,
    ):
        self.status, self.body, self.etag = status, body, etag
        self.length, self.stop, self.ranges, self.if_range = length, stop, ranges, if_range
        self.headers = {name.replace('_', '-'): value for name, value in headers.items()}


class Server(http.server.ThreadingHTTPServer):
    """Gives the answers in turn, the last one for ever, and records what was asked."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.answers, self.asked = [Answer()], []
        self.url = f'http://127.0.0.1:{self.server_port}/net.caffemodel'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.server.asked.append(dict(self.headers))
        start, status, body = 0, answer.status, answer.body
        asked = self.headers.get('Range')
        same = not answer.if_range or self.headers.get('If-Range') in (None, answer.etag)
        if status == 200 and asked and answer.ranges and same:
            start = int(asked.removeprefix('bytes=').removesuffix('-'))
            status = 206 if start < len(body) else 416
        self.send_response(status)
        if status == 206:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        if answer.etag:
            self.send_header('ETag', answer.etag)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        body = body[start:] if status in (200, 206) else PAGE
        if answer.length != 'none':
            self.send_header('Content-Length', str(answer.length or len(body)))
        self.end_headers()
        self.wfile.write(body[: answer.stop])

    def log_message(self, *_):
        pass


@contextmanager
def serve():
    """Yield a Server that runs in a thread of its own."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
