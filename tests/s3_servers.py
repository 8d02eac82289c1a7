"""Real S3 servers on loopback, and a proxy before them that does what networks do on bad days."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 10
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def serve(command, log: Path):
    """Run a server that writes its address into `log`; yields ``http://host:port`` once it answers."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield _await_address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _await_address(process, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(found[1])), 1):
                return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} did not start:\n{log.read_text()}")


def moto(folder: Path):
    """All of S3 that tests need, in memory: conditional puts, uploads in parts, listing."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    return serve(command, folder / "moto.log")


def rclone(folder: Path):
    """Real files: the bucket ``b`` is the folder ``folder/b``."""
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
    options = ["--addr", "127.0.0.1:0", "--no-cleanup", "--dir-cache-time", "1ms", "--config", "/dev/null", "-v"]
    return serve([program, "serve", "s3", *options, str(folder)], folder.parent / f"{folder.name}-rclone.log")


def make_bucket(url: str) -> str:
    """A new bucket of the server at `url`; returns its name."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=STOP_SECONDS)
    connection.request("PUT", f"/{name}")
    status = connection.getresponse().status
    connection.close()
    assert status == 200, status
    return name


@dataclass
class Faults:
    """What happens to every n-th request of the chosen ones; 0 for never."""

    methods: tuple[str, ...] = ("GET",)
    only: str = ""  # what the path and query must have in them
    latency_seconds: float = 0.0  # before every answer
    status: int = 503
    status_every: int = 0
    reset_every: int = 0  # the connection is reset in the middle of the body
    short_every: int = 0  # half of the body, under a header that says so
    lie_every: int = 0  # half of the body, under a header that promises all of it
    slow_every: int = 0  # the first byte of the body comes late
    slow_seconds: float = 0.0
    before_answer: dict[int, Callable[[], None]] = field(default_factory=dict)  # number of the request to what to do
    seen: list[tuple[str, str]] = field(default_factory=list)  # method and path of the requests that were counted
    headers: list[dict[str, str]] = field(default_factory=list)  # and their headers


class FaultyProxy:
    """An HTTP server that passes everything on, with `faults`."""

    def __init__(self, upstream: str) -> None:
        self.faults = Faults()
        self.upstream_url = upstream
        self.dropped_headers: tuple[str, ...] = ()  # lower case; as a server that does not know them
        self.lock = threading.Lock()
        self.count = 0
        host, _, port = upstream.removeprefix("http://").partition(":")
        handler = type("Handler", (_Handler,), {"proxy": self, "upstream": (host, int(port))})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def set(self, **faults) -> Faults:
        """Forget the requests so far, and go on with other faults."""
        with self.lock:
            self.count = 0
            self.faults = Faults(**faults)
        return self.faults

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(STOP_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that went away is nothing to print about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self):
        proxy = self.proxy
        with proxy.lock:
            faults = proxy.faults
            if counted := self.command in faults.methods and faults.only in self.path:
                faults.seen.append((self.command, self.path))
                faults.headers.append(dict(self.headers))
                proxy.count += 1
            number = proxy.count
        body = self._read_body()
        if counted:
            time.sleep(faults.latency_seconds)
            faults.before_answer.get(number, lambda: None)()

        def due(every):
            return counted and every and number % every == 0

        if due(faults.status_every):
            self._send(faults.status, {"Content-Length": "0"}, b"")
            return
        status, headers, data = self._forward(body)
        half = data[: len(data) // 2]
        if due(faults.slow_every):
            time.sleep(faults.slow_seconds)
        if due(faults.reset_every) and data:
            self._send(status, headers, half)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif due(faults.lie_every) and data:
            self._send(status, headers, half)
            self.close_connection = True
        elif due(faults.short_every) and data:
            self._send(status, {**headers, "Content-Length": str(len(half))}, half)
        else:
            self._send(status, headers, data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

    def _read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body):
        connection = http.client.HTTPConnection(*self.upstream, timeout=60)
        try:
            dropped = ("transfer-encoding", *self.proxy.dropped_headers)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            headers["Content-Length"] = str(len(body))
            headers["Connection"] = "close"
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            if self.command != "HEAD":
                kept["Content-Length"] = str(len(data))
            return answer.status, kept, data
        finally:
            connection.close()

    def _send(self, status, headers, data):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format, *args):
        pass


_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length-range")
