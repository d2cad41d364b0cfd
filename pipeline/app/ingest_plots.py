"""The plots of the report's ingest page, as PNGs in base64 so that the report stays one file."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter

from ingest.outcomes import Outcome
from ingest.status import failures
from pipeline.app.ingest_facts import Facts, Histogram
from pipeline.app.plots import as_png

GOOD, BAD, SOFT = "#2563eb", "#dc2626", "#9ca3af"
KINDS = 8  # of failures told apart by colour; the rest is one
TOP_HOSTS = 20
HOST_CHARACTERS = 40
FAILURE_COLOURS = ("#dc2626", "#f59e0b", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#78350f", "#475569")
BAR_INCHES = 0.3


def outcomes_plot(by_source: Mapping[str, Counter[str]]) -> str:
    """A bar for all pictures and one for each source, in shares of it: successes, and what the others ended in."""
    whole = sum(by_source.values(), Counter[str]())
    bars = {"all": whole, **dict(sorted(by_source.items(), key=lambda item: -item[1].total()))}
    kinds = [name for name, _ in failures(whole).most_common(KINDS)]
    figure = Figure(figsize=(11, 1.6 + BAR_INCHES * len(bars)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{name} ({counts.total():,})" for name, counts in bars.items()]
    left = np.zeros(len(bars))
    for kind, colour in zip([Outcome.SUCCESS.value, *kinds, "other"], (GOOD, *FAILURE_COLOURS[: len(kinds)], SOFT), strict=True):
        known = {Outcome.SUCCESS.value, *kinds}
        counted = [counts[kind] if kind != "other" else sum(number for name, number in counts.items() if name not in known) for counts in bars.values()]
        shares = np.array([100 * number / max(counts.total(), 1) for number, counts in zip(counted, bars.values(), strict=True)])
        if shares.any():
            axes.barh(labels, shares, left=left, color=colour, label=kind, height=0.7)
            left += shares
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.margins(y=0.02)
    axes.set_xlabel("% of the pictures")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return _finished(figure, axes)


def failures_plot(outcomes: Mapping[str, int]) -> str:
    """How often each failure ended a picture's way."""
    counted = failures(outcomes).most_common()
    figure = Figure(figsize=(11, 0.9 + BAR_INCHES * len(counted)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in counted], [number for _, number in counted], color=BAD, height=0.7)
    axes.bar_label(bars, [f"{number:,}" for _, number in counted], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.02)
    axes.set_xlabel("pictures")
    return _finished(figure, axes)


def sizes_plot(facts: Facts) -> str:
    """Short sides of the pictures as they came and as they are stored, and the bytes that came."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    last = int(max(np.flatnonzero(facts.original_side.counts + facts.stored_side.counts))) + 1
    for histogram, colour, name in ((facts.original_side, SOFT, "as they came"), (facts.stored_side, GOOD, "as stored")):
        left.stairs(100 * histogram.counts[:last] / histogram.total, histogram.edges[: last + 1], color=colour, fill=True, alpha=0.55, label=name)
    left.set_xlabel("short side, pixels")
    left.set_ylabel("% of the stored pictures")
    left.legend(frameon=False)
    _bars(right, facts.body_bytes, "size of the body", log=EngFormatter("B"))
    return _finished(figure, left, right)


def captions_plot(facts: Facts) -> str:
    """Words of the captions, and captions of the pictures."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, facts.caption_words, "words in a caption (60: or more)", share_of="captions")
    _bars(right, facts.captions_per_picture, "captions of a picture (20: or more)")
    right.xaxis.get_major_locator().set_params(integer=True)
    return _finished(figure, left, right)


def latency_plot(facts: Facts) -> str:
    """Seconds from the first request of a picture to its end, all attempts included."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots()
    _bars(axes, facts.latency_s, "time a picture took, with all attempts", log=EngFormatter("s"), share_of="pictures asked for")
    for share, style in ((0.5, "-"), (0.99, "--")):
        second = facts.latency_s.quantile(share)
        axes.axvline(second, color=BAD, linestyle=style, linewidth=1.2, label=f"{100 * share:.0f} % within {second:.2g} s")
    axes.legend(frameon=False)
    return _finished(figure, axes)


def hosts_plot(facts: Facts) -> str:
    """The hosts that most pictures were asked of: how many, and how many of them came."""
    hosts = facts.hosts.most_common(TOP_HOSTS)
    figure = Figure(figsize=(11, 1.2 + BAR_INCHES * len(hosts)), layout="constrained")
    axes = figure.subplots()
    labels, asked = [_short(host) for host, _ in hosts], [number for _, number in hosts]
    given = [facts.hosts_success[host] for host, _ in hosts]
    positions = np.arange(len(hosts))
    bars = axes.barh(positions, asked, color=SOFT, height=0.7, label="asked for")
    axes.barh(positions, given, color=GOOD, height=0.7, label="stored")
    axes.set_yticks(positions, labels)
    axes.bar_label(bars, [f"{100 * good / number:.0f} %" for good, number in zip(given, asked, strict=True)], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.07, y=0.02)
    axes.set_xlabel("pictures, and the share of them that was stored")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _finished(figure, axes)


def _bars(axes: Axes, histogram: Histogram, label: str, log: Formatter | None = None, share_of: str = "stored pictures") -> None:
    filled = np.flatnonzero(histogram.counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    axes.stairs(100 * histogram.counts[first:last] / histogram.total, histogram.edges[first : last + 1], color=GOOD, fill=True, alpha=0.8)
    if log is not None:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(log)
    axes.set_xlabel(label)
    axes.set_ylabel(f"% of the {share_of}")


def _short(host: str) -> str:
    return host if len(host) <= HOST_CHARACTERS else f"{host[: HOST_CHARACTERS - 1]}…"


def _finished(figure: Figure, *axes: Axes) -> str:
    for one in axes:
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return as_png(figure)
