"""Objects of S3 and of what speaks its protocol, through the client of s3fs.

s3fs finds credentials, signs, and uploads in parts. What it does not do is done here with the same client: the answer
to a GET says which version of the object its bytes are of, so a read needs no HEAD before it, and a range that came
short is noticed.

Both layers below retry on their own, botocore 5 times with 60 s each by default and s3fs 5 times around that, and
around some calls 5 times more. Here each is told to try once, and `Retry` above them counts and keeps the time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torchslip.storage._fsspec import FsspecClient, filesystem_of
from torchslip.storage._listing import Entry
from torchslip.storage._retry import WrongAnswerError, http_status
from torchslip.storage._s3_get import DirectReader, HttpError, takes
from torchslip.storage._stat import FileStat, too_short

__all__ = ["S3_SCHEMES", "S3Client"]

S3_SCHEMES = ("s3", "s3a")

# botocore's own default of 10 would make more threads than that wait for each other.
_CONNECTIONS = 64


class S3Client(FsspecClient):
    """Operations on the objects below one ``s3://bucket/prefix``."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        path = url.partition("://")[2]
        # One file system, and so one pool of connections, for all buckets and prefixes.
        self._options = s3_options(options)
        self._fs, _ = filesystem_of(
            "s3://",
            self._options,
            depends_on={name: value for name, value in os.environ.items() if name.startswith("AWS_")},
            prepare=_try_once,
        )
        self._bucket, key, _ = self._fs.split_path(path)
        self._prefix = f"{key.strip('/')}/" if key.strip("/") else ""
        self._root = f"{self._bucket}/{self._prefix}".rstrip("/")

    def stat(self, name: str, seconds: float) -> FileStat:
        answer = self._call("head_object", seconds, Key=self._prefix + name)
        return _stat_of(answer, answer["ContentLength"])

    def read_whole(self, name: str, seconds: float) -> tuple[bytes, FileStat | None]:
        return self._get(name, seconds)

    def read_many(
        self, names: Sequence[str], sizes: Sequence[int], seconds: float
    ) -> list[tuple[bytes, FileStat] | None]:
        keys = [self._prefix + name for name in names]
        reader = self._reader() if all(map(takes, keys)) else None
        return [None] * len(keys) if reader is None else reader.many.get(keys, sizes, seconds)

    def read_range(self, name: str, start: int, stop: int, seconds: float) -> tuple[bytes, FileStat | None]:
        try:
            data, found = self._get(name, seconds, f"bytes={start}-{stop - 1}")
        except OSError as error:
            if http_status(error) != 416:
                raise
            raise too_short(f"{self._url}/{name}", self.stat(name, seconds).bytes, start, stop) from error
        if len(data) != stop - start:
            if len(data) < found.bytes < stop:
                raise too_short(f"{self._url}/{name}", found.bytes, start, stop)
            raise WrongAnswerError(f"{len(data)} bytes came instead of {stop - start}")
        return data, found

    def write_if(self, name: str, data: bytes, etag: str | None, seconds: float) -> bool:
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            self._call("put_object", seconds, Key=self._prefix + name, Body=data, **condition)
        except OSError as error:
            # 404: the version to replace is gone. 409: another writer was quicker.
            if isinstance(error, FileExistsError) or http_status(error) in (404, 409, 412):
                return False
            raise
        return True

    def page(self, place: str, recursive: bool, seconds: float) -> tuple[list[Entry], list[str]]:
        arguments = {"ContinuationToken": place} if place else {}
        if not recursive:
            arguments["Delimiter"] = "/"
        answer = self._call("list_objects_v2", seconds, Prefix=self._prefix, **arguments)
        # A key that ends in a slash is what consoles make to show an empty folder.
        entries = [
            (each["Key"][len(self._prefix) :], _stat_of(each, each["Size"]))
            for each in answer.get("Contents", [])
            if not each["Key"].endswith("/")
        ]
        return entries, [answer["NextContinuationToken"]] if answer.get("IsTruncated") else []

    def _call(self, method: str, seconds: float, **arguments: Any) -> Any:
        return self._fs.call_s3(method, Bucket=self._bucket, timeout=seconds, **arguments)

    def _reader(self) -> DirectReader | None:
        return DirectReader.of(self._fs, self._bucket, self._options, _CONNECTIONS)

    def _get(self, name: str, seconds: float, byte_range: str | None = None) -> tuple[bytes, FileStat]:
        key = self._prefix + name
        reader = self._reader() if takes(key) else None
        if reader is not None:
            try:
                return reader.get(key, seconds, byte_range)
            except HttpError as error:
                if error.status == 404:
                    raise FileNotFoundError(str(error)) from error
                if error.status == 403:
                    raise PermissionError(str(error)) from error
                if error.status not in (301, 307, 400):  # the bucket lies in another region: s3fs follows
                    raise
        from fsspec.asyn import sync

        arguments = {"Bucket": self._bucket, "Key": key}
        arguments |= {"ChecksumMode": "ENABLED"} if byte_range is None else {"Range": byte_range}
        answer: tuple[bytes, FileStat] = sync(self._fs.loop, _get_object, self._fs, arguments, timeout=seconds)
        return answer


async def _get_object(fs: Any, arguments: Mapping[str, Any]) -> tuple[bytes, FileStat]:
    answer = await fs._call_s3("get_object", **arguments)
    async with answer["Body"] as body:
        data = await body.read()
    if len(data) != answer["ContentLength"]:
        raise WrongAnswerError(f"{len(data)} bytes came instead of {answer['ContentLength']}")
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return data, _stat_of(answer, int(total) if total.isdigit() else len(data))


def _stat_of(answer: Mapping[str, Any], size: int) -> FileStat:
    modified = answer.get("LastModified")
    etag = answer.get("ETag")
    return FileStat(
        bytes=size,
        etag=etag.strip('"') if etag else None,
        mtime_ns=round(modified.timestamp() * 1e9) if modified is not None else None,
    )


def s3_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of s3fs: those that are given, then the environment, then ours.

    ``S3_ENDPOINT_URL`` comes before ``AWS_ENDPOINT_URL_S3`` and ``AWS_ENDPOINT_URL``, which botocore reads, as it does
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_PROFILE`` and ``AWS_DEFAULT_REGION``.
    Other SDKs read ``AWS_REGION`` too, so it counts here.
    """
    merged = dict(options)
    client = dict(merged.get("client_kwargs") or {})
    config = dict(merged.get("config_kwargs") or {})
    if (endpoint := os.environ.get("S3_ENDPOINT_URL")) and "endpoint_url" not in client:
        merged.setdefault("endpoint_url", endpoint)
    if (region := os.environ.get("AWS_REGION")) and not os.environ.get("AWS_DEFAULT_REGION"):
        client.setdefault("region_name", region)
    config.setdefault("max_pool_connections", _CONNECTIONS)
    config.setdefault("retries", {"total_max_attempts": 1})
    # By default botocore checks each answer; `rclone serve s3` answers for a range with the checksum of the whole.
    config.setdefault("response_checksum_validation", "when_required")
    return {**merged, "client_kwargs": client, "config_kwargs": config}


def _try_once(fs: Any) -> None:
    fs.retries = 1
