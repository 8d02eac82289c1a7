"""GET of many small objects at the same time, by the thread that asks for them.

Threads that each wait for one object hand the interpreter's lock to each other several times per object: 1.2 ms of
processor time for 40 kB with 32 of them, where one thread that waits for all connections together needs 0.15 ms
(2026-11).

This knows only what nearly always happens: status 200, a length, and that many bytes. Whatever else comes, the object
is not read, and who asked reads it in the ordinary way, which tries again and tells what is wrong.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import selectors
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections import deque
from collections.abc import Sequence

from torchslip.storage._s3_sign import Signer
from torchslip.storage._stat import FileStat

__all__ = ["ManyGets"]

_CONNECTIONS = 128  # of a process to a bucket
_AT_ONCE = 64  # of them, the most of one thread
# Threads at once. More of them only wait for the interpreter's lock, and 4 are too few for small batches (2026-11).
_LANES = 8
_BLOCK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 15
_LOOK_SECONDS = 0.5  # between looks at which connections are silent
_SILENCE_SECONDS = 15.0
_KEPT_HEADERS = (b"content-length", b"etag", b"last-modified", b"x-amz-checksum-crc32")
_UNKNOWN_HEADERS = (b"transfer-encoding", b"content-encoding", b"content-range")

Answer = tuple[bytes, FileStat]


class ManyGets:
    """Reads many objects of one bucket, from any number of threads of one process.

    Args:
        base: The URL that keys are appended to.
        signer: Signs for it.
        certificates: The file of those to trust; only for https.
    """

    def __init__(self, base: str, signer: Signer, certificates: str | None) -> None:
        url = urllib.parse.urlsplit(base)
        self._path, self._signer = url.path, signer
        secure = url.scheme == "https"
        self.address = url.hostname or "", url.port or (443 if secure else 80)
        self.context = ssl.create_default_context(cafile=certificates) if secure else None
        self._lanes: deque[_Lane] = deque()  # those that nobody uses now
        self._made = 0
        self._turns = threading.BoundedSemaphore(_LANES)

    def get(self, keys: Sequence[str], sizes: Sequence[int], seconds: float) -> list[Answer | None]:
        """What each object is.

        Args:
            keys: The objects.
            sizes: Their bytes; no more are taken.
            seconds: How long to wait for one of them.

        Returns:
            For each the bytes, and its size and either etag or time; None if anything was unusual.
        """
        if not self._turns.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
            return [None] * len(keys)
        try:
            requests = [self._request(key) for key in keys]
            try:
                lane = self._lanes.pop()
            except IndexError:
                lane = _Lane(self)
                self._made += 1
            share = max(min(_AT_ONCE, _CONNECTIONS // self._made), 1)
            try:
                found = lane.run(requests, sizes, share, seconds)
            except BaseException:
                lane.close()
                self._made -= 1
                raise
            self._lanes.append(lane)
            return found
        finally:
            self._turns.release()

    def _request(self, key: str) -> bytes:
        path = self._path + urllib.parse.quote(key, safe="/~")
        headers = self._signer.headers(path, checksum=True)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return f"GET {path} HTTP/1.1\r\n{lines}Accept-Encoding: identity\r\n\r\n".encode("ascii")


class _Connection:
    """A connection, and the object that is on its way through it."""

    __slots__ = ("answer", "began", "head", "heard", "left", "number", "parts", "ready", "served", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.ready = False  # connected
        self.served = 0  # objects
        self.number: int | None = None
        self.begin(None, time.monotonic())

    def begin(self, number: int | None, now: float) -> None:
        self.number, self.began, self.heard = number, now, now
        self.head = b""
        self.parts: list[bytes] = []
        self.left = -1  # bytes of the body; -1 before its head is complete
        self.answer: _Head | None = None


class _Head:
    """The head of an answer that is as it should be."""

    __slots__ = ("closes", "crc32", "stat")

    def __init__(self, text: bytes) -> None:
        lines = text.split(b"\r\n")
        if lines[0][:13] not in (b"HTTP/1.1 200 ", b"HTTP/1.1 200"):
            raise _UnusualError
        kept: dict[bytes, str] = {}
        self.closes = False
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name in _KEPT_HEADERS:
                kept[name] = value.strip().decode("latin-1")
            elif name == b"connection":
                self.closes = b"close" in value.lower()
            elif name in _UNKNOWN_HEADERS:
                raise _UnusualError
        if not kept.get(b"content-length", "").isdigit():
            raise _UnusualError
        size, etag, modified = int(kept[b"content-length"]), kept.get(b"etag"), kept.get(b"last-modified")
        if etag:
            self.stat = FileStat(size, etag.strip('"'))  # a date takes longer to read than all the rest
        else:
            mtime_ns = round(email.utils.parsedate_to_datetime(modified).timestamp() * 1e9) if modified else None
            self.stat = FileStat(size, None, mtime_ns)
        self.crc32 = kept.get(b"x-amz-checksum-crc32", "-")


class _UnusualError(Exception):
    """Something that the ordinary way of reading deals with."""


class _Lane:
    """The connections that one thread at a time waits for."""

    def __init__(self, store: ManyGets) -> None:
        self._store = store
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._requests: list[bytes] = []
        self._sizes: Sequence[int] = ()
        self._found: list[Answer | None] = []
        self._todo: deque[int] = deque()
        self._repeated: set[int] = set()
        self._connects_left = 0
        self._block = memoryview(bytearray(_BLOCK_BYTES))

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.socket.close()
        self._connections = []
        self._selector.close()

    def run(self, requests: list[bytes], sizes: Sequence[int], share: int, seconds: float) -> list[Answer | None]:
        """See `ManyGets.get`; with `share` connections at most."""
        self._requests, self._sizes, self._found = requests, sizes, [None] * len(requests)
        self._todo, self._repeated = deque(range(len(requests))), set()
        self._connects_left = 2 * share
        for connection in self._connections[share:]:
            self._drop(connection)
        looked = time.monotonic()
        for connection in list(self._connections):
            self._begin(connection, looked)
        while True:
            if self._todo:
                self._connect(share)
            if not any(each.number is not None or not each.ready for each in self._connections):
                return self._found
            for key, _ in self._selector.select(_LOOK_SECONDS):
                self._advance(key.data)
            now = time.monotonic()
            if now - looked > _LOOK_SECONDS:
                looked = now
                self._drop_silent(now, seconds)

    # -- connections

    def _connect(self, share: int) -> None:
        coming = sum(not each.ready for each in self._connections)
        missing = min(len(self._todo) - coming, share - len(self._connections), self._connects_left)
        if missing <= 0:
            return
        self._connects_left -= missing
        try:
            addresses = socket.getaddrinfo(*self._store.address, type=socket.SOCK_STREAM)
        except OSError:
            self._connects_left = 0
            return
        for number in range(missing):
            family, kind, protocol, _, address = addresses[number % len(addresses)]
            made = socket.socket(family, kind, protocol)
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(made)
            self._connections.append(connection)
            self._selector.register(made, selectors.EVENT_WRITE, connection)
            try:
                made.connect(address)
            except BlockingIOError:
                pass
            except OSError:
                self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        """Close a connection; its object, if the server only had closed a connection that was kept, is asked again."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connections.remove(connection)
        number, connection.number = connection.number, None
        unheard = connection.served and connection.left < 0 and not connection.head
        if number is not None and unheard and number not in self._repeated:
            self._repeated.add(number)
            self._todo.append(number)

    def _drop_silent(self, now: float, seconds: float) -> None:
        for connection in list(self._connections):
            waits = connection.number is not None or not connection.ready
            if waits and (now - connection.began > seconds or now - connection.heard > _SILENCE_SECONDS):
                self._repeated.add(-1 if connection.number is None else connection.number)
                self._drop(connection)

    def _advance(self, connection: _Connection) -> None:
        try:
            if connection.ready:
                self._receive(connection)
            else:
                self._establish(connection)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (OSError, _UnusualError, ValueError):
            if connection in self._connections:
                self._drop(connection)

    def _establish(self, connection: _Connection) -> None:
        code = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "no connection")
        context = self._store.context
        if context is not None:
            if not isinstance(connection.socket, ssl.SSLSocket):
                self._selector.unregister(connection.socket)
                connection.socket = context.wrap_socket(
                    connection.socket, server_hostname=self._store.address[0], do_handshake_on_connect=False
                )
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.socket.do_handshake()
        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
        connection.ready = True
        self._begin(connection, time.monotonic())

    # -- objects

    def _begin(self, connection: _Connection, now: float) -> None:
        """Ask for the next object."""
        if not self._todo or not connection.ready:
            return
        number = self._todo.popleft()
        connection.begin(number, now)
        try:
            sent = connection.socket.send(self._requests[number])
        except OSError:
            sent = 0
        if sent != len(self._requests[number]):
            self._drop(connection)

    def _receive(self, connection: _Connection) -> None:
        while True:
            count = connection.socket.recv_into(self._block)
            if not count or connection.number is None:
                raise _UnusualError  # closed by the server, or words that nobody has asked for
            data = self._block[:count]
            if connection.left < 0:
                data = self._read_head(connection, data)
            if connection.left >= 0 and len(data):
                if len(data) > connection.left:
                    raise _UnusualError
                connection.parts.append(bytes(data))
                connection.left -= len(data)
            now = connection.heard = time.monotonic()
            if connection.left == 0:
                self._finish(connection, now)
                return
            if count < _BLOCK_BYTES and self._store.context is None:
                return

    def _read_head(self, connection: _Connection, data: memoryview) -> memoryview:
        before = len(connection.head)
        head = connection.head = connection.head + bytes(data[:_HEAD_BYTES])
        end = head.find(b"\r\n\r\n")
        if end < 0:
            if len(head) >= _HEAD_BYTES:
                raise _UnusualError
            return data[:0]
        connection.answer = _Head(head[:end])
        connection.left = connection.answer.stat.bytes
        if connection.number is None or connection.left != self._sizes[connection.number]:
            raise _UnusualError
        return data[end + 4 - before :]

    def _finish(self, connection: _Connection, now: float) -> None:
        head, number = connection.answer, connection.number
        assert head is not None
        assert number is not None
        data = connection.parts[0] if len(connection.parts) == 1 else b"".join(connection.parts)
        # With a dash it is one of the checksums of the parts.
        if "-" in head.crc32 or base64.b64decode(head.crc32) == zlib.crc32(data).to_bytes(4, "big"):
            self._found[number] = data, head.stat
        connection.number, connection.parts = None, []
        connection.served += 1
        if head.closes:
            self._drop(connection)
        else:
            self._begin(connection, now)
