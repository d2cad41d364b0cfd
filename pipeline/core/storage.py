"""Files on disk and on S3 behind one set of functions, written whole or not at all.

Paths are plain strings: `/data/x`, `relative/x`, `s3://bucket/x` or any other fsspec URL. On disk a file is written under a
temporary name, fsynced and renamed; an object store shows an object only when its upload is complete.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from pipeline.core.errors import DataError


def is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def join(path: str, *parts: str) -> str:
    """Join with single slashes; a trailing slash of the root never becomes an empty object name."""
    return "/".join([path.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `path` and the path inside it."""
    try:
        fs, inner = url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise DataError(f"{path}: no storage of this kind ({error}); use a local path or s3://") from error
    return fs, inner


@contextlib.contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Turn what storage libraries raise about a missing or forbidden place into one line that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; check the path, and for s3:// the bucket's name") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission ({error}); check the rights or the credentials") from error
    except NotADirectoryError as error:
        raise DataError(f"{path}: a part of its path is a file, not a folder; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, a file was expected") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise DataError(f"{path}: storage cannot be reached ({error}); check the bucket, the endpoint (AWS_ENDPOINT_URL) and the network") from error


def exists(path: str) -> bool:
    with _errors_named(path):
        fs, inner = filesystem(path)
        return bool(fs.exists(inner))


def size(path: str) -> int:
    """Size in bytes."""
    with _errors_named(path):
        fs, inner = filesystem(path)
        return int(fs.size(inner))


def open_read(path: str) -> IO[bytes]:
    with _errors_named(path):
        fs, inner = filesystem(path)
        file: IO[bytes] = fs.open(inner, "rb")
        return file


def read_bytes(path: str) -> bytes:
    with _errors_named(path):
        fs, inner = filesystem(path)
        data: bytes = fs.cat_file(inner)
        return data


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of the file."""
    with _errors_named(path):
        fs, inner = filesystem(path)
        data: bytes = fs.cat_file(inner, start=start, end=end)
        return data


def list_files(path: str) -> list[str]:
    """Names (not paths) of the files directly in a folder, sorted; empty when the folder does not exist."""
    return _names(path, "file")


def list_folders(path: str) -> list[str]:
    """Names (not paths) of the folders directly in a folder, sorted; empty when the folder does not exist."""
    return _names(path, "directory")


def _names(path: str, kind: str) -> list[str]:
    with _errors_named(path):
        fs, inner = filesystem(path)
        fs.invalidate_cache()  # object stores cache listings; another process may have written since
        try:
            entries: list[dict[str, Any]] = fs.ls(inner, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == kind)


def make_folder(path: str) -> None:
    """Create a local folder with its parents; object stores have no folders."""
    if is_local(path):
        with _errors_named(path):
            Path(path.removeprefix("file://")).mkdir(parents=True, exist_ok=True)


def remove(path: str) -> None:
    """Remove a file; removing what is not there is fine."""
    with _errors_named(path):
        fs, inner = filesystem(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(inner)


def remove_tree(path: str) -> None:
    """Remove a folder and everything in it; removing what is not there is fine."""
    with _errors_named(path):
        fs, inner = filesystem(path)
        with contextlib.suppress(FileNotFoundError):
            fs.rm(inner, recursive=True)


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """Open for binary writing; the file appears under its name only when the block ends without an error.

    Raises DataError when the place does not exist or may not be written.
    """
    if is_local(path):
        with _errors_named(path), _atomic_local(Path(path.removeprefix("file://"))) as file:
            yield file
        return
    with _errors_named(path):
        fs, inner = filesystem(path)
        file = fs.open(inner, "wb")
        try:
            yield file
        except BaseException:
            file.discard()  # aborts the multipart upload: nothing of it may become visible or be billed
            raise
        file.close()


@contextlib.contextmanager
def _atomic_local(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as file:
        file.write(data)
