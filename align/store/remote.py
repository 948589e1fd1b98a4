"""A folder behind a URL, through fsspec: the far side of a store that several machines share.

An object store has no rename and no folders, so nothing here relies on either; what makes a set of files
one thing is written after them. Credentials come from the environment and stand in no message.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from align.errors import RunError, UserError

CHUNK_BYTES = 8 << 20
DEADLINES = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 4, "mode": "standard"},
    }
}
"""Deadlines of S3, in seconds for one request; a failed one is repeated."""
S3 = ("s3", "s3a")
LOCAL = ("file", "local")
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")


class Remote:
    """Files below a URL by their relative paths.

    Args:
        url: any that fsspec knows, such as ``s3://bucket/prefix``.
        options: of its file system.

    Raises:
        UserError: no such kind of store or bucket, its package is missing, or access is refused.
        RunError: it cannot be reached.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        # A list that is kept would not show what other machines have written since.
        wanted: dict[str, Any] = {"use_listings_cache": False, **(options or {})}
        if protocol in S3:
            wanted = {**DEADLINES, **wanted}
        elif protocol in LOCAL:
            wanted["auto_mkdir"] = True
        import fsspec

        with self._translated(""):
            try:
                self._files, self._root = fsspec.core.url_to_fs(self.url, **wanted)
            except ImportError as error:
                raise UserError(
                    f"stores at {protocol}:// need a package that is not installed",
                    where=self.url,
                    remedy='pip install "keel-align[s3]"' if protocol in S3 else str(error),
                ) from None
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"this store cannot be opened ({error})",
                    where=self.url,
                    remedy="set store to a folder, or to a URL that fsspec knows, such as s3://bucket/prefix",
                ) from error
            if protocol in S3:
                self._files.call_s3("head_bucket", Bucket=self._root.partition("/")[0])

    def place(self, path: str) -> str:
        """Return the URL of a file, for people."""
        return f"{self.url}/{path}"

    def read(self, path: str) -> bytes | None:
        """Read a small file; None where there is none."""
        with self._translated(path):
            try:
                return bytes(self._files.cat_file(self._key(path)))
            except FileNotFoundError:
                return None

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, as a whole."""
        with self._translated(path):
            self._files.pipe_file(self._key(path), content)

    def upload(self, local: Path, path: str) -> str:
        """Copy a file there; returns its version.

        Raises:
            RunError: what arrived is of another size.
        """
        key, size = self._key(path), local.stat().st_size
        with self._translated(path):
            self._files.put_file(str(local), key)
            info = self._files.info(key)
        if info["size"] != size:
            raise RunError(
                f"{info['size']} of {size} bytes arrived",
                where=self.place(path),
                cause="the file changed meanwhile, or the store is full",
                remedy="run again: nothing names the file yet",
            )
        return _version(info)

    def download(self, path: str, local: Path) -> None:
        """Copy a file here; FileNotFoundError where there is none."""
        with self._translated(path):
            self._files.get_file(self._key(path), str(local))

    def digest(self, path: str) -> tuple[int, str]:
        """Size in bytes and sha256 of what lies there, read back."""
        digest, size = hashlib.sha256(), 0
        with (
            self._translated(path),
            self._files.open(self._key(path), "rb", block_size=CHUNK_BYTES) as file,
        ):
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def versions(self, folder: str) -> dict[str, str]:
        """Return all files below a folder, by path, with what changes whenever one is written."""
        with self._translated(folder):
            try:
                files = self._files.find(self._key(folder), detail=True)
            except FileNotFoundError:
                files = {}
        start = len(self._root.rstrip("/")) + 1
        return {key[start:]: _version(info) for key, info in files.items()}

    def remove(self, paths: list[str]) -> None:
        """Delete files; it does not matter whether they are there."""
        for path in paths:
            with self._translated(path):
                try:
                    self._files.rm_file(self._key(path))
                except FileNotFoundError:
                    continue

    def _key(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn failures of any file system into errors for people; a file that is not there stays one."""
        where = self.place(path) if path else self.url
        try:
            yield
        except (UserError, RunError):
            raise
        except FileNotFoundError as error:
            if path:
                raise
            raise UserError(
                f"there is no such bucket ({error})",
                where=where,
                remedy="make it, or correct store",
            ) from error
        except Exception as error:
            kind = type(error).__name__
            if kind in NO_CREDENTIALS:
                raise UserError(
                    "no credentials for this store",
                    where=where,
                    remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
                ) from None
            if isinstance(error, PermissionError):
                raise UserError(
                    f"the store refuses access ({error})",
                    where=where,
                    remedy="let these credentials list, read, write and delete below it",
                ) from error
            # What is neither the system's nor a client library's is a defect of ours.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full and (isinstance(error, OSError) or type(error).__module__ != "builtins"):
                raise RunError(
                    f"the store could not be used: {kind}: {error}",
                    where=where,
                    cause="no way to its server, or the server is overloaded",
                    remedy="run again when it can be reached; everything committed so far is safe",
                ) from error
            raise


def _version(info: Mapping[str, Any]) -> str:
    names = ("ETag", "etag", "md5Hash", "mtime", "created", "LastModified", "last_modified")
    changing = next((info[name] for name in names if info.get(name)), "")
    # Some file systems give seconds where they list, and a date where they are asked for one file.
    plain = changing.timestamp() if isinstance(changing, datetime) else changing
    return f"{plain}/{info['size']}"
