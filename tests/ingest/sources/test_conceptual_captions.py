"""Conceptual Captions 3M and 12M in Google's own format: headerless, tabs, raw quotes, and every line accounted for."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.pair import Pair, RejectedRow, Row
from pipeline.core import storage
from pipeline.core.errors import DataError

Read = Callable[..., list[Row]]
Reasons = Callable[[list[Row]], list[tuple[int, str]]]

CC3M = [  # the line, and the caption and URL in it (None: rejected)
    (b"a very typical bus station\thttp://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/AAAAAAAAM6o/_11MuAAKalQ/IMG_3422.JPG?imgmax=800\n", 0),
    (b'sierra looked stunning in this top and this skirt while performing with person at their " i \'m with you " show\thttp://a.com/2.jpg\n', 0),
    (b"caf\xc3\xa9 by night , \xe2\x80\x9c quoted \xe2\x80\x9d\thttps://b.org/3.jpg\r\n", 0),
    (b'" a caption that opens a quote\thttp://a.com/4.jpg\n', 0),
    (b"a nul \x00 inside\thttp://a.com/5.jpg\n", 0),
    (b"x" * 5_000 + b"\thttp://a.com/6.jpg\n", 0),
    (b"a very typical bus station\thttp://a.com/2.jpg\n", 0),  # the URL of line 2 again: the pair table merges it
    (b"caf\xe9 in latin-1\thttp://a.com/8.jpg\n", "not_utf8"),
    (b"two\ttabs\thttp://a.com/9.jpg\n", "wrong_number_of_fields"),
    (b"no tab at all\n", "wrong_number_of_fields"),
    (b"\thttp://a.com/11.jpg\n", "no_caption"),
    (b"no url\t \n", "no_url"),
    (b"the last line has no line feed\thttp://a.com/13.jpg", 0),
]


def test_every_line_of_cc3m_is_a_pair_or_rejected_with_its_number(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_bytes(b"".join(line for line, _ in CC3M))
    rows = read("cc3m", path)
    assert [row.row for row in rows] == list(range(1, len(CC3M) + 1))
    assert reasons_of(rows) == [(number, reason) for number, (_, reason) in enumerate(CC3M, start=1) if reason]
    for row, (line, reason) in zip(rows, CC3M, strict=True):
        if not reason:
            caption, url = line.rstrip(b"\r\n").decode().split("\t")
            assert row == Pair(url, (caption,))


def test_every_line_of_cc12m_keeps_its_person_tokens_and_quotes(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "cc12m.tsv"
    captions = [
        "Metal Design Within Reach Ivory Slipper Chairs - a Pair For Sale - Image 7 of 10",
        '<PERSON> was the first US president to attend "a tournament',
    ]
    captions += ['"quoted" and 6" tall', "it's; 100% \\N, NA", "NULL", "  spaces around  ", "<PERSON>" * 600]
    path.write_text("".join(f"https://a.com/{n}.jpg\t{caption}\n" for n, caption in enumerate(captions)) + "https://a.com/no-caption.jpg\t\n")
    rows = read("cc12m", path)
    assert rows[:-1] == [Pair(f"https://a.com/{n}.jpg", (caption,)) for n, caption in enumerate(captions)]
    assert reasons_of(rows) == [(len(captions) + 1, "no_caption")]


def test_published_hashes_are_joined_by_url_whatever_their_order(tmp_path: Path, read: Read) -> None:
    urls = [f"https://a.com/{n}.jpg?größe={n}" for n in range(25_000)]  # more than two batches
    digests = {url: hashlib.sha256(url.encode()).hexdigest() for url in urls if not url.endswith("7")}
    table = [f"{url}\t{digest.upper() if url.endswith('1') else digest}\t{digest[:32]}\n" for url, digest in digests.items()]
    random.Random(0).shuffle(table)
    table += [f"{urls[0]}\t{'0' * 64}\t{'0' * 32}\n", "https://a.com/elsewhere.jpg\t" + "1" * 64 + "\t" + "2" * 32 + "\n", "not a line of the table\n"]
    lists, hashes = tmp_path / "cc12m.tsv", tmp_path / "cc12m_hashes.tsv"
    lists.write_text("".join(f"{url}\tcaption\n" for url in urls) + "a line without tabs\n")
    hashes.write_text("".join(table))
    rows = read("cc12m", lists, hashes=str(hashes))
    expected = [Pair(url, ("caption",), {"published_sha256": digests[url]} if url in digests else {}) for url in urls]
    assert rows[:-1] == expected
    assert [row.row for row in rows] == list(range(1, 25_002))
    assert rows[-1] == RejectedRow(25_001, "wrong_number_of_fields", "a line without tabs")


def test_a_table_without_hashes_is_refused(tmp_path: Path, read: Read) -> None:
    (tmp_path / "cc12m.tsv").write_text("https://a.com/1.jpg\tcaption\n")
    with pytest.raises(DataError, match=r"cc12m\.tsv: no line with a URL, a SHA-256"):
        read("cc12m", tmp_path / "cc12m.tsv", hashes=str(tmp_path / "cc12m.tsv"))


def test_conceptual_captions_on_s3_give_the_same_rows(tmp_path: Path, s3_bucket: str, read: Read) -> None:
    data = b"".join(line for line, _ in CC3M)
    (tmp_path / "train.tsv").write_bytes(data)
    storage.write_bytes(f"{s3_bucket}/train.tsv", data)
    assert read("cc3m", f"{s3_bucket}/train.tsv") == read("cc3m", tmp_path / "train.tsv")
