"""Files on disk and on S3 behind one set of functions, written whole or not at all.

Paths are plain strings: `/data/x`, `relative/x`, `s3://bucket/x` or any other fsspec URL. On disk a file is written under a
temporary name, fsynced and renamed; an object store shows an object only when its upload is complete.
"""

import contextlib
import errno
import functools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
import fsspec.config
from fsspec.core import url_to_fs

from pipeline.core.errors import DataError, StorageUnreachable

T = TypeVar("T")

TRANSIENT_ERRNOS = (errno.EIO, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET)  # what s3fs makes of 500, 503 and broken connections
TRANSIENT_BOTO_ERRORS = ("EndpointConnectionError", "HTTPClientError", "ConnectionError")  # with their subclasses
S3_ATTEMPTS = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0


def is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def join(path: str, *parts: str) -> str:
    """Join with single slashes; a trailing slash of the root never becomes an empty object name."""
    return "/".join([path.rstrip("/"), *(part.strip("/") for part in parts)])


@functools.cache
def _bound_s3_waiting() -> None:
    """Let no caller wait for ever for a store that accepts connections and never answers, nor be told what an older listing knows.

    Botocore asks 5 times with 15 s each and s3fs 5 times around that. And a PUT first waits for `100 Continue`, for which aiohttp has no
    time-out at all: without the Expect header the time-out for reading covers it. And s3fs asks its cache of listings even before it reads a
    whole object: what another process wrote since would not be there.
    """
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    session.unregister("before-call.s3", add_expect_header)
    defaults = fsspec.config.conf.setdefault("s3", {})
    defaults.setdefault("config_kwargs", {"retries": {"total_max_attempts": S3_ATTEMPTS, "mode": "standard"}})
    defaults.setdefault("session", session)
    defaults.setdefault("use_listings_cache", False)


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `path` and the path inside it."""
    if path.startswith(("s3://", "s3a://")):
        _bound_s3_waiting()
    try:
        fs, inner = url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise DataError(f"{path}: no storage of this kind ({error}); use a local path or s3://") from error
    return fs, inner


@contextlib.contextmanager
def errors_named(path: str) -> Iterator[None]:
    """Turn what storage libraries raise about a missing or forbidden place into one line that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; check the path, and for s3:// the bucket's name") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission ({error}); check the rights or the credentials") from error
    except (NotADirectoryError, FileExistsError) as error:  # the second from mkdir
        raise DataError(f"{path}: a part of its path is a file, not a folder; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, a file was expected") from error
    except DataError:
        raise
    except Exception as error:
        if not is_local(path) and _may_pass(error):
            raise StorageUnreachable(_unreachable(path, error)) from error
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise DataError(_unreachable(path, error)) from error


def _unreachable(path: str, error: Exception) -> str:
    found = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: storage cannot be reached ({found}); check the bucket, the endpoint (AWS_ENDPOINT_URL) and the network"


def _may_pass(error: Exception) -> bool:
    """Whether a remote storage may answer better in a minute; judged by class names, since boto is imported by s3fs alone."""
    if isinstance(error, TimeoutError | ConnectionError) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS):
        return True
    kind = type(error)
    return kind.__module__.startswith("aiohttp") or any(base.__name__ in TRANSIENT_BOTO_ERRORS for base in kind.__mro__)


def patiently(operation: Callable[[], T], seconds: float) -> T:
    """Call `operation` again, with growing random pauses, while the storage cannot be reached.

    Raises:
        StorageUnreachable: it still could not be after `seconds`.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_S
    while True:
        try:
            return operation()
        except StorageUnreachable:
            wait = pause * random.uniform(0.5, 1.5)  # many workers must not come back at once
            if time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def exists(path: str) -> bool:
    with errors_named(path):
        fs, inner = filesystem(path)
        return bool(fs.exists(inner))


def is_file(path: str) -> bool:
    """Whether one file, and no folder, is there."""
    with errors_named(path):
        fs, inner = filesystem(path)
        return bool(fs.exists(inner)) and fs.info(inner)["type"] == "file"


def size(path: str) -> int:
    """Size in bytes."""
    with errors_named(path):
        fs, inner = filesystem(path)
        return int(fs.size(inner))


def open_read(path: str) -> IO[bytes]:
    with errors_named(path):
        fs, inner = filesystem(path)
        file: IO[bytes] = fs.open(inner, "rb")
        return file


def read_bytes(path: str) -> bytes:
    with errors_named(path):
        fs, inner = filesystem(path)
        data: bytes = fs.cat_file(inner)
        return data


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of the file; fewer where it ends before."""
    if start >= end:  # HTTP has no empty range: a server answers the attempt with the whole object
        return b""
    with errors_named(path):
        fs, inner = filesystem(path)
        try:
            data: bytes = fs.cat_file(inner, start=start, end=end)
        except OSError as error:
            if is_local(path) or error.errno != errno.EINVAL:  # what s3fs makes of "416 Range Not Satisfiable"
                raise
            return b""
        return data


def list_files(path: str) -> list[str]:
    """Names (not paths) of the files directly in a folder, sorted; empty when the folder does not exist."""
    return _names(path, "file")


@dataclass(frozen=True)
class Listed:
    """A file of a listing: its size in bytes, and what changes with its content: the ETag, or on disk the time it was written."""

    size: int
    version: str


def list_sizes(path: str) -> dict[str, Listed]:
    """The files directly in a folder, by name, sorted; empty when the folder does not exist. One request for a thousand of them."""
    found = {}
    for name, entry in sorted(_entries(path, "file").items()):
        version = entry.get("ETag") or entry.get("mtime") or entry.get("LastModified")
        found[name] = Listed(int(entry["size"] or 0), str(version).strip('"'))
    return found


def list_folders(path: str) -> list[str]:
    """Names (not paths) of the folders directly in a folder, sorted; empty when the folder does not exist."""
    return _names(path, "directory")


def _names(path: str, kind: str) -> list[str]:
    return sorted(_entries(path, kind))


def _entries(path: str, kind: str) -> dict[str, dict[str, Any]]:
    with errors_named(path):
        fs, inner = filesystem(path)
        fs.invalidate_cache()  # object stores other than S3 may keep listings; another process may have written since
        try:
            entries: list[dict[str, Any]] = fs.ls(inner, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries if entry["type"] == kind}


def make_folder(path: str) -> None:
    """Create a local folder with its parents; object stores have no folders."""
    if is_local(path):
        with errors_named(path):
            Path(path.removeprefix("file://")).mkdir(parents=True, exist_ok=True)


def remove(path: str) -> None:
    """Remove a file; removing what is not there is fine."""
    with errors_named(path):
        fs, inner = filesystem(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(inner)


def remove_tree(path: str) -> None:
    """Remove a folder and everything in it; removing what is not there is fine."""
    with errors_named(path):
        fs, inner = filesystem(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm(inner, recursive=True)


@contextlib.contextmanager
def atomic_write(path: str, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open for binary writing; the file appears under its name only when the block ends without an error.

    Raises DataError when the place does not exist or may not be written.
    """
    if is_local(path):
        with errors_named(path), _atomic_local(Path(path.removeprefix("file://")), durable) as file:
            yield file
        return
    with errors_named(path):
        fs, inner = filesystem(path)
        file = fs.open(inner, "wb")
        try:
            yield file
            file.close()
        except BaseException:
            with contextlib.suppress(Exception):  # the storage may be gone; abort_uploads cleans up then
                file.discard()  # aborts the multipart upload: nothing of it may become visible or be billed
            file.closed = True  # else the garbage collector would try to finish the upload
            raise


@contextlib.contextmanager
def _atomic_local(path: Path, durable: bool) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str, data: bytes, durable: bool = True) -> None:
    """Write a whole file atomically; not `durable` spares the disk an fsync where only a crash of the machine would lose the file."""
    with atomic_write(path, durable) as file:
        file.write(data)


def create(path: str, data: bytes) -> bool:
    """Write a small file unless one of this name exists; False when it does. Of several processes that try at once, one succeeds."""
    with errors_named(path):
        if is_local(path):
            return _created_locally(Path(path.removeprefix("file://")), data)
        fs, inner = filesystem(path)
        try:
            fs.pipe_file(inner, data, mode="create")  # S3: If-None-Match
        except FileExistsError:
            return False
        except OSError as error:
            if "PreconditionFailed" not in str(error) and "pre-conditions" not in str(error):
                raise
            return False
        return True


def _created_locally(path: Path, data: bytes) -> bool:
    """A hard link to a complete file: unlike O_EXCL it never shows a file that is still empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.write_bytes(data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def abort_uploads(folder: str) -> int:
    """Abort multipart uploads that were begun below an s3:// folder and never finished (they are billed until then); returns how many.

    Only for who holds the folder: an upload in work is not told from one whose process died.
    """
    if not folder.startswith(("s3://", "s3a://")):
        return 0
    with errors_named(folder):
        fs, inner = filesystem(folder)
        bucket, _, prefix = inner.partition("/")
        uploads = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/" if prefix else "").get("Uploads", [])
        for upload in uploads:  # a call lists up to 1,000; more would need a thousand workers killed at once
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(uploads)
