"""A local HTTP server with the faults that real ones have."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class FileServer:
    """What is served, how badly, and what was asked for."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)  # one entry a request
    honours_range: bool = True
    cut_after: int | None = None  # body bytes after which the connection is closed
    stall_after: int | None = None  # body bytes after which nothing more comes until `released`
    released: threading.Event = field(default_factory=threading.Event)
    content_range: str | None = None  # a lie in place of the true one


@pytest.fixture
def server() -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.ranges.append(asked)
            body = state.files.get(self.path.removeprefix("/"))
            if body is None:
                self.send_error(404)
                return
            start = 0
            if asked and state.honours_range:
                match = re.fullmatch(r"bytes=(\d+)-", asked)
                assert match
                start = int(match[1])
                if start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                true_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.send_header("Content-Range", state.content_range or true_range)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self._send(body[start:])

        def _send(self, body: bytes) -> None:
            if state.stall_after is not None:
                self.wfile.write(body[: state.stall_after])
                self.wfile.flush()
                state.released.wait()
                self.close_connection = True
            elif state.cut_after is not None:
                self.wfile.write(body[: state.cut_after])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = FileServer(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield state
        state.released.set()
        http.shutdown()
        thread.join()
