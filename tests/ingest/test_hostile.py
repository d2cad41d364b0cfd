"""The hostile web: whatever servers do, ingest ends soon, stays small, and every row has its outcome."""

import contextlib
import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hostile_web import CHUNKED, UNTIL_CLOSED, Answer, Mute, Site, chunked, never, repeats, response, says, then_closes, zeros_png
from PIL import Image

from ingest import ingest
from ingest.config import IngestConfig

MEGABYTE = 2**20
RSS_LIMIT_BYTES = 2**30
SECONDS_LIMIT = 60


def jpeg(seed: int) -> bytes:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


PICTURE = jpeg(0)
FIRST_MEGABYTE = PICTURE + bytes(MEGABYTE - len(PICTURE))
LARGE_HEAD = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 4000) for number in range(250))  # a megabyte of headers

PAGES: dict[str, tuple[Answer, set[str]]] = {
    # bodies without an end, and ends that come late
    "endless": (repeats(UNTIL_CLOSED, bytes(65536)), {"too_large"}),
    "endless_picture": (repeats(UNTIL_CLOSED + PICTURE, bytes(65536)), {"too_large"}),
    "endless_chunks": (repeats(CHUNKED, b"10000\r\n" + bytes(65536) + b"\r\n"), {"too_large"}),
    "dripped_body": (repeats(response(length=10_000), b"x", every_s=0.1), {"timeout"}),
    "dripped_chunks": (repeats(CHUNKED, b"1\r\nx\r\n", every_s=0.1), {"timeout"}),
    "dripped_head": (repeats(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", every_s=0.1), {"timeout"}),
    "dripped_status": (repeats(b"H", b"", every_s=0.1), {"timeout"}),
    "silent": (never, {"timeout"}),
    "half_a_body_then_silent": (repeats(response(PICTURE[:1000], length=len(PICTURE)), b"", every_s=0.1), {"timeout"}),
    "400_mb_announced_1": (repeats(response(length=400 * MEGABYTE) + PICTURE, bytes(MEGABYTE), 400), {"too_large"}),
    "400_mb_announced_2": (repeats(response(length=400 * MEGABYTE) + PICTURE, bytes(MEGABYTE), 400), {"too_large"}),
    "400_mb_until_closed": (repeats(UNTIL_CLOSED + FIRST_MEGABYTE, bytes(MEGABYTE), 399), {"too_large"}),
    "400_mb_in_chunks": (repeats(CHUNKED, b"100000\r\n" + FIRST_MEGABYTE + b"\r\n", 400), {"too_large"}),
    # heads
    "100_mb_of_headers": (repeats(b"HTTP/1.1 200 OK\r\n", LARGE_HEAD, 100), {"bad_response"}),
    "one_endless_header": (repeats(b"HTTP/1.1 200 OK\r\nX-A: ", b"a" * 65536), {"bad_response"}),
    "an_endless_status_line": (repeats(b"HTTP/1.1 200 ", b"a" * 65536), {"bad_response"}),
    "endlessly_100_continue": (repeats(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), {"timeout", "bad_response"}),
    "not_http": (then_closes(b"\x00\x01\x02 SSH-2.0-nothing\r\n\r\n"), {"bad_response"}),
    "two_lengths": (says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcdefg"), {"bad_response"}),
    "a_negative_length": (says(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcdefg"), {"bad_response"}),
    "a_length_beyond_64_bits": (says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 10**30), {"bad_response"}),
    # chunks
    "a_huge_chunk": (repeats(CHUNKED + b"7fffffffffffffff\r\n", bytes(65536)), {"too_large"}),
    "a_chunk_beyond_64_bits": (then_closes(CHUNKED + b"f" * 40 + b"\r\n" + PICTURE), {"bad_response"}),
    "no_chunk": (then_closes(CHUNKED + b"zz\r\n" + PICTURE), {"bad_response"}),
    "a_cut_chunk": (then_closes(CHUNKED + b"10000\r\n" + PICTURE[:100]), {"truncated"}),
    "an_endless_chunk_extension": (repeats(CHUNKED + b"5;", b"a" * 65536), {"timeout", "bad_response"}),
    "endless_trailers": (repeats(CHUNKED + b"0\r\n", b"X-A: b\r\n" * 10_000), {"timeout", "bad_response"}),
    "well_chunked": (says(chunked(PICTURE[:500], PICTURE[500:])), {"success"}),
    # lengths and kinds
    "shorter_than_announced": (then_closes(response(PICTURE[:-100], length=len(PICTURE))), {"truncated"}),
    "longer_than_announced": (says(response(PICTURE, length=len(PICTURE) // 2)), {"truncated", "decode_failed"}),
    "empty": (says(response()), {"not_an_image"}),
    "html_as_jpeg": (says(response(b"<html>no longer here</html>", "200 OK", "Content-Type: image/jpeg")), {"not_an_image"}),
    "http_1.0": (then_closes(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE), {"success"}),
    "a_gzip_bomb": (says(response(gzip.compress(bytes(400 * MEGABYTE), 1), "200 OK", "Content-Encoding: gzip")), {"too_large"}),
    "gzip": (says(response(gzip.compress(PICTURE), "200 OK", "Content-Encoding: gzip")), {"success"}),
    # pixels
    "bomb_20000_rgb": (says(response(zeros_png(20_000, 20_000))), {"too_large"}),
    "bomb_30000_rgb": (says(response(zeros_png(30_000, 30_000))), {"too_large"}),
    "bomb_65500_one_bit": (says(response(zeros_png(65_500, 65_500, bits=1, colour=0))), {"too_large"}),
    "bomb_20000_rgba_16_bit": (says(response(zeros_png(20_000, 20_000, bits=16, colour=6))), {"too_large"}),
    "as_large_as_allowed": (says(response(zeros_png(8_000, 8_000))), {"success"}),
    # redirects
    "loop": (says(response(b"", "302 Found", "Location: /loop")), {"too_many_redirects"}),
    "ping": (says(response(b"", "307 Temporary", "Location: /pong")), {"too_many_redirects"}),
    "to_private": (says(response(b"", "301 Moved", "Location: http://10.0.0.1/secret.jpg")), {"blocked_address"}),
    "to_metadata": (says(response(b"", "302 Found", "Location: http://169.254.169.254/latest/meta-data/")), {"blocked_address"}),
    "to_a_decimal_address": (says(response(b"", "302 Found", "Location: http://2130706433/")), {"blocked_address"}),
    "to_a_file": (says(response(b"", "302 Found", "Location: file:///etc/passwd")), {"bad_url"}),
    "to_rubbish": (says(response(b"", "302 Found", "Location: http://[::1/\xff")), {"bad_url"}),
    "404": (says(response(b"", "404 Not Found")), {"http_404"}),
    "500": (says(response(b"", "500 Oops")), {"http_5xx"}),
    "noai": (says(response(PICTURE, "200 OK", "X-Robots-Tag: noai")), {"opted_out"}),
}
GOOD = 30


def test_a_bomb_is_a_whole_and_valid_picture() -> None:
    for bits, colour, mode in ((8, 2, "RGB"), (1, 0, "1"), (8, 6, "RGBA")):
        image = Image.open(io.BytesIO(zeros_png(333, 250, bits, colour)))
        assert (image.mode, image.size) == (mode, (333, 250))
        assert not np.asarray(image).any()
        image = Image.open(io.BytesIO(zeros_png(333, 257, bits, colour)))
        image.verify()


@contextlib.contextmanager
def peak_rss_of_children() -> Iterator[dict[int, int]]:
    """The largest resident set seen of each process below this one, in bytes, by pid."""
    peak: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    peak[child.pid] = max(peak.get(child.pid, 0), child.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@pytest.mark.slow
def test_the_hostile_web_ends_within_a_minute_in_a_gigabyte_with_every_row_accounted_for(tmp_path: Path) -> None:
    pages = {path: answer for path, (answer, _) in PAGES.items()} | {"pong": says(response(b"", "307 Temporary", "Location: /ping"))}
    pages |= {f"good/{number}": says(response(jpeg(number))) for number in range(1, GOOD + 1)}
    slow_down = {"soon": says(response(b"", "429 Slow Down", "Retry-After: 1"), response(PICTURE))}
    go_away = dict.fromkeys("abc", says(response(b"", "429 Slow Down", "Retry-After: 86400")))
    with Site(pages) as site, Site(slow_down, address="127.0.0.2") as limited, Site(go_away, address="127.0.0.3") as closed, Mute() as mute:
        expected = {site.url(path): outcomes for path, (_, outcomes) in PAGES.items()}
        expected |= {site.url(f"good/{number}"): {"success"} for number in range(1, GOOD + 1)}
        expected |= {limited.url("soon"): {"success"}, mute.url("a"): {"timeout"}}
        expected |= {closed.url(path): {"http_429"} for path in "abc"}
        expected |= {"http://10.0.0.1/a": {"blocked_address"}, "ftp://example.org/a": {"bad_url"}, "https://no-such-host.invalid/a": {"dns_failed", "timeout"}}
        (tmp_path / "list.jsonl").write_text("".join(json.dumps({"url": url, "caption": "x"}) + "\n" for url in expected))
        config = IngestConfig.model_validate(
            {
                "sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}],
                "output": str(tmp_path / "dataset"),
                "samples_per_shard": len(expected) // 2 + 1,
                "fetch": {"allow_loopback": True, "timeout_s": 5, "attempts": 2},
                "engine": {"processes": 2, "concurrency": 32},
            }
        )
        started = time.monotonic()
        with peak_rss_of_children() as peak:
            result = ingest.run(config, tmp_path / "run")
        seconds = time.monotonic() - started
    print(f"{seconds:.0f} s, peak RSS {sorted((rss // MEGABYTE for rss in peak.values()), reverse=True)[:4]} MiB")  # noqa: T201
    rows = [row for path in sorted((tmp_path / "dataset" / "outcomes").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert sorted(row["url"] for row in rows) == sorted(expected)
    wrong = {row["url"]: (row["outcome"], row["detail"]) for row in rows if row["outcome"] not in expected[row["url"]]}
    assert not wrong
    assert result["samples"] >= GOOD
    assert len(closed.times("a") + closed.times("b") + closed.times("c")) <= 6
    assert limited.times("soon")[1] - limited.times("soon")[0] >= 1
    assert max(peak.values()) <= RSS_LIMIT_BYTES
    assert seconds < SECONDS_LIMIT
