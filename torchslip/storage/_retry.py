"""Trying again: what a network does wrong once, it seldom does wrong five times."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torchslip.errors import StorageError, TorchslipError

__all__ = ["Retry", "WrongAnswerError", "http_status", "is_transient", "of_network"]

_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 8
DEADLINE_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0

_ATTEMPTS_VARIABLE = "TORCHSLIP_STORAGE_ATTEMPTS"
_DEADLINE_VARIABLE = "TORCHSLIP_STORAGE_DEADLINE_SECONDS"

_TRANSIENT_STATUS = (408, 425, 429)  # and all from 500 on, save 501, which says "never"
_TRANSIENT_ERRNO = {
    *(errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH),
    getattr(errno, "EREMOTEIO", errno.EIO),
}
_PERMANENT = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_NETWORK_PACKAGES = {"aiobotocore", "aiohttp", "botocore", "httpx", "http", "requests", "urllib3"}
_PERMANENT_NAMES = {"NoCredentialsError", "ParamValidationError", "PartialCredentialsError", "ProfileNotFound"}

# Without a state: the user's seeds stay as they are, and forked workers draw different pauses.
_JITTER = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Retry:
    """How often an operation on a storage is tried, and for how long.

    The pause before attempt n is drawn from 0 to ``first_pause_seconds * 2**(n - 1)``, at most `max_pause_seconds`, so
    that a thousand readers that failed together do not come back together.

    Attributes:
        attempts: How often in all; 1 to try once.
        deadline_seconds: After this time an operation fails, whatever it was doing.
        first_pause_seconds: Longest pause after the first attempt.
        max_pause_seconds: Longest pause at all.
    """

    attempts: int = ATTEMPTS
    deadline_seconds: float = DEADLINE_SECONDS
    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    max_pause_seconds: float = MAX_PAUSE_SECONDS

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.deadline_seconds <= 0 or self.first_pause_seconds < 0:
            raise ValueError(f"attempts and deadline_seconds must be greater than 0; got {self}.")

    @classmethod
    def of(cls, options: Retry | Mapping[str, Any] | None) -> Retry:
        """From an argument, else from the environment, else the defaults.

        Args:
            options: Some of the attributes by name; those that are missing come from ``TORCHSLIP_STORAGE_ATTEMPTS`` and
                ``TORCHSLIP_STORAGE_DEADLINE_SECONDS``.
        """
        if isinstance(options, Retry):
            return options
        values: dict[str, Any] = {}
        for name, variable, kind in (
            ("attempts", _ATTEMPTS_VARIABLE, int),
            ("deadline_seconds", _DEADLINE_VARIABLE, float),
        ):
            if text := os.environ.get(variable):
                try:
                    values[name] = kind(text)
                except ValueError:
                    raise ValueError(f"{variable} must be a number; got {text!r}.") from None
        return cls(**{**values, **(options or {})})

    def run(self, what: str, attempt: Callable[[float], T]) -> T:
        """Call `attempt` until it returns.

        Args:
            what: The operation and its URL, for the error: ``Reading s3://bucket/key``.
            attempt: Gets the seconds that are left, which it must not exceed where it can help it.

        Raises:
            StorageError: If every attempt failed with what could pass; names `what`, the attempts and the last cause.
            Exception: What `attempt` raised, if trying again is of no use: a file that is not there, say.
        """
        begin = time.monotonic()
        for number in range(1, self.attempts + 1):
            left = self.deadline_seconds - (time.monotonic() - begin)
            try:
                return attempt(left)
            except Exception as error:
                if not is_transient(error):
                    raise
                longest = min(self.first_pause_seconds * 2 ** (number - 1), self.max_pause_seconds)
                pause = _JITTER.uniform(0, longest)
                passed = time.monotonic() - begin
                if number == self.attempts or passed + pause >= self.deadline_seconds:
                    raise StorageError(
                        f"{what} failed {number} {'time' if number == 1 else 'times'} in {passed:.1f} s; the last "
                        f"error was {_text_of(error)}. {_ATTEMPTS_VARIABLE} and {_DEADLINE_VARIABLE} allow more."
                    ) from error
                _LOGGER.warning("%s failed, again in %.1f s: %s", what, pause, _text_of(error))
                time.sleep(pause)
        raise AssertionError  # the last attempt returned or raised


def is_transient(error: BaseException) -> bool:
    """Whether the same operation may succeed when it is tried again."""
    if isinstance(error, WrongAnswerError):
        return True
    if isinstance(error, (TorchslipError, *_PERMANENT)):
        return False
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUS or (status >= 500 and status != 501)
    if isinstance(error, TimeoutError | asyncio.TimeoutError | ConnectionError | EOFError):
        return True
    if type(error).__name__ in _PERMANENT_NAMES:
        return False
    if of_network(error):
        return True
    return isinstance(error, OSError) and (error.errno is None or error.errno in _TRANSIENT_ERRNO)


def of_network(error: BaseException) -> bool:
    """Whether an HTTP client raised this; they have no common base class."""
    return type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status that led to an error, where its class or its cause tells."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(error, "status", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


class WrongAnswerError(OSError):
    """A server sent fewer or more bytes than it was asked for."""


def _text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
