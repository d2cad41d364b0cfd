"""Bytes of remote shards by ranged requests: what breaks off goes on at the byte where it broke, under deadlines, and is counted."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.core import stopping, storage
from pipeline.core.errors import DataError, Stopped, StorageUnreachable

CHUNK_BYTES = 2**17  # what is in memory of a piece on its way to the disk; a buffer of this size stays in the processor's cache, one of 1 MiB does not
CONNECTIONS = 32  # kept open a process; more requests at once open, and close, connections of their own
BUSY = (408, 429)  # what a store may answer besides 5xx when it wants to be asked again
BUSY_CODES = ("RequestTimeout", "SlowDown", "InternalError")
RANGE_IGNORED, MOST_IGNORED = "range_ignored", 8  # a proxy may forget a range now and then; a store that does so in all of these answers does not know them


@dataclass(frozen=True)
class Deadlines:
    """How long a store may keep us waiting, in seconds."""

    connect_s: float = 10.0
    stall_s: float = 20.0  # without a byte: then another request goes on from there
    patience_s: float = 300.0  # for a piece, all its requests and pauses together; other ranks give up on us after NCCL's 600
    patience_when_stopping_s: float = 10.0  # from the first fault after a signal: Slurm kills 30 s after it, and a checkpoint takes time too
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0


DEADLINES = Deadlines()


class Counters:
    """Counts by name, from many threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


class Interrupted(Exception):
    """A request that failed in a way that may pass; `reason` is the name it is counted under."""

    def __init__(self, reason: str, found: object) -> None:
        super().__init__(" ".join(str(found).split()) or type(found).__name__)
        self.reason = reason


class Transport:
    """Fetches ranges of remote objects, from many threads. Counts `requests`, `bytes_fetched` and `retries_<reason>`."""

    def __init__(self, deadlines: Deadlines, counters: Counters) -> None:
        self.deadlines, self.counters = deadlines, counters
        self._s3 = S3Ranges(deadlines)

    def chunks(self, path: str, start: int, end: int, total: int, deadline: float, given_up: threading.Event) -> Iterator[memoryview]:
        """Bytes [start, end) of the object, whose size is `total`, in order and each once; a chunk is gone when the next is asked for.

        At least one request is made; none after `deadline` (of `time.monotonic()`), nor once `given_up` is set or the interpreter ends.

        Raises:
            DataError: the object is missing, may not be read, or is not of the size its manifest says, or its store does not know ranges.
            Stopped: the store still fails at the deadline.
        """
        position, pause, ignored = start, self.deadlines.first_pause_s, 0
        while position < end:
            began = position
            try:
                for chunk in self._request(path, position, end, total):
                    position += len(chunk)
                    self.counters.add("bytes_fetched", len(chunk))
                    yield chunk
                    if position < end and time.monotonic() > deadline:
                        raise Interrupted("slow", f"{position - start} of {end - start} bytes came in the time there was")
                if position < end:
                    raise Interrupted("truncated", f"the answer ends at byte {position} of [{start}, {end})")
            except Interrupted as fault:
                self.counters.add(f"retries_{fault.reason}")
                if position > began:
                    pause, ignored = self.deadlines.first_pause_s, 0
                ignored += fault.reason == RANGE_IGNORED
                if ignored == MOST_IGNORED:
                    raise DataError(f"{path}: its store answers {fault}; take one that knows ranges") from fault  # with a cause: no shard is damaged
                if stopping.stop_reason(None) is not None:
                    deadline = min(deadline, time.monotonic() + self.deadlines.patience_when_stopping_s)
                wait = pause * random.uniform(0.5, 1.5)  # many workers must not come back at once
                if time.monotonic() + wait > deadline or given_up.wait(wait) or not threading.main_thread().is_alive():
                    raise Stopped(f"{path}: cannot be read ({fault}); run the same command again when the storage is back") from fault
                pause = min(2 * pause, self.deadlines.longest_pause_s)

    def _request(self, path: str, start: int, end: int, total: int) -> Iterator[memoryview]:
        self.counters.add("requests")
        if path.startswith(("s3://", "s3a://")):
            return self._s3.chunks(path, start, end, total)
        return _fsspec_chunks(path, start, end, total)


class S3Ranges:
    """Ranged GETs by botocore: the settings and credentials are those s3fs has for the same path, so that what lists a bucket reads it too."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._client: Any = None
        self._lock = threading.Lock()  # clients may be shared by threads, but not made by two at once

    def chunks(self, path: str, start: int, end: int, total: int) -> Iterator[memoryview]:
        """The answer to one request for bytes [start, end) as it comes in.

        Raises:
            Interrupted: it fails in a way that may pass.
            DataError: it fails in a way that will not.
        """
        import botocore.exceptions as boto

        fs, inner = storage.filesystem(path)
        bucket, key, _ = fs.split_path(inner)
        body = None
        try:
            answer = self._connected(fs).get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **fs.req_kw)
            body = answer["Body"]
            _check_range(path, answer.get("ContentRange", ""), start, total)
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while count := body.readinto(buffer):
                yield buffer[:count]
        except boto.ClientError as error:
            if (damage := _damage(path, _status(error), total)) is not None:
                raise damage from None  # without a cause: readers may do without this one shard, whereas what the storage itself says ends the run
            raise _failure(path, error) from error
        except (boto.IncompleteReadError, boto.ResponseStreamingError) as error:
            raise Interrupted("reset" if "reset" in str(error).lower() else "truncated", error) from error
        except boto.ReadTimeoutError as error:
            raise Interrupted("stalled", error) from error
        except (boto.ConnectTimeoutError, boto.EndpointConnectionError, boto.ProxyConnectionError) as error:
            raise Interrupted("connect", error) from error
        except (boto.HTTPClientError, boto.ConnectionError) as error:
            raise Interrupted("reset", error) from error
        except boto.BotoCoreError as error:
            raise DataError(f"{path}: cannot be read ({error}); check the credentials, the region and the endpoint (AWS_ENDPOINT_URL)") from error
        finally:
            if body is not None:
                body.close()

    def _connected(self, fs: Any) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _s3_client(fs, self._deadlines)
            return self._client


def _s3_client(fs: Any, deadlines: Deadlines) -> Any:
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    keys = {"aws_access_key_id": fs.key, "aws_secret_access_key": fs.secret, "aws_session_token": fs.token}
    options = {"endpoint_url": fs.endpoint_url, **({} if fs.anon else keys), **fs.client_kwargs}
    settings = {
        **fs.config_kwargs,
        **({"signature_version": UNSIGNED} if fs.anon else {}),
        "connect_timeout": deadlines.connect_s,
        "read_timeout": deadlines.stall_s,
        "retries": {"total_max_attempts": 1},  # we retry, at the byte, and count
        "max_pool_connections": CONNECTIONS,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return botocore.session.Session(**fs.kwargs).create_client("s3", config=Config(**settings), **{"use_ssl": fs.use_ssl, **given})


def _check_range(path: str, content_range: str, start: int, total: int) -> None:
    """`bytes 100-199/1234`: where the answer begins, and how large the object is."""
    if not content_range.startswith(f"bytes {start}-"):
        raise Interrupted(RANGE_IGNORED, f"a request for bytes {start} on with {content_range or 'the whole object'}")
    size = content_range.rpartition("/")[2]
    if size.isdigit():
        _check_size(path, int(size), total)


def _check_size(path: str, found: int, total: int) -> None:
    if found != total:
        raise DataError(f"{path}: has {found} bytes, the manifest says {total}; copy the shard again")


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _damage(path: str, status: int, total: int) -> DataError | None:
    if status == 404:
        return DataError(f"{path}: not found; the manifest lists it")
    if status == 416:
        return DataError(f"{path}: is shorter than {total} bytes, which the manifest says; copy the shard again")
    return None


def _failure(path: str, error: Any) -> Exception:
    status, code = _status(error), str(error.response.get("Error", {}).get("Code", ""))
    if status >= 500 or status in BUSY or code in BUSY_CODES:
        return Interrupted(f"status_{status}", error)
    if status in (401, 403):
        return DataError(f"{path}: no permission ({error}); check the rights or the credentials")
    return DataError(f"{path}: cannot be read ({error}); check the bucket, the region and the endpoint (AWS_ENDPOINT_URL)")


def _fsspec_chunks(path: str, start: int, end: int, total: int) -> Iterator[memoryview]:
    """Any other store, by its fsspec client, in one chunk."""
    try:
        data = storage.read_range(path, start, end)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError | PermissionError):
            raise
        raise Interrupted("unreachable", error) from error
    except OSError as error:
        raise Interrupted("unreachable", error) from error
    if len(data) > end - start:
        raise Interrupted(RANGE_IGNORED, f"a request for bytes {start} to {end} with {len(data)} bytes")
    if len(data) < end - start:
        _check_size(path, _size(path), total)
    yield memoryview(data)


def _size(path: str) -> int:
    try:
        return storage.size(path)
    except StorageUnreachable as error:
        raise Interrupted("unreachable", error) from error
