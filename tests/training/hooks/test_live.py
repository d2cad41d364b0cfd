"""What the live view shows, how often, and where it keeps away."""

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.logging import RichHandler

from training.hooks.live import LiveView, live_view, sparkline


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=True, width=100, color_system=None), written


def values_of(step: int, loss: float) -> dict[str, float]:
    return {
        "loss/itc": loss, "loss/total": 2 * loss, "temperature": 0.07, "lr": 1e-4, "alpha": 0.4, "grad_norm": 1.5, "pairs": 64.0 * step, "tflops": 382.4,
        "mfu": 0.413, "data_wait_s": 0.05, "skipped_steps": 1.0, "memory/allocated_gib": 31.2, "memory/peak_gib": 58.1,
    }  # fmt: skip


@pytest.fixture
def view() -> Iterator[tuple[LiveView, Clock, io.StringIO]]:
    """Of a run resumed at step 1,000 of 2,000."""
    console, written = terminal()
    clock = Clock()
    one = LiveView(2000, 1000, lambda: 1000, console, clock)
    yield one, clock, written
    one.close()


def text_of(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(view.frame())
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def test_a_frame_reads_like_this(view: tuple[LiveView, Clock, io.StringIO]) -> None:
    one, clock, _ = view
    for number, loss in enumerate((4.0, 3.0, 2.0, float("nan"), 1.0), 1):
        clock.now += 0.5
        one.record(1000 + number, values_of(1000 + number, loss))
    one.record(1005, {"val/itc": 2.5, "val/itm/accuracy": 0.71})
    assert text_of(one) == (
        "━━━━━━━━━━            step 1,005 of 2,000  50 %  0:00:02 here  0:08:18 left\n"
        "itc          1.0000  held out 2.5000  █▆▃x▁\n"
        "total        2.0000                   █▆▃x▁\n"
        "speed        128.0 pairs/s   2 steps/s   382 TFLOP/s   MFU 41.3%   waits for data 10.0%\n"
        "model        temperature 0.0700   lr 0.0001   alpha 0.4   gradient norm 1.5\n"
        "held out     itm/accuracy 0.71\n"
        "run          1 skipped   checkpoint of step 1,000   31.2 GiB allocated   58.1 GiB at the most"
    )


def test_before_the_first_step_there_is_a_frame_too(view: tuple[LiveView, Clock, io.StringIO]) -> None:
    assert "step 1,000 of 2,000" in text_of(view[0])


def test_time_left_follows_the_last_hundred_steps(view: tuple[LiveView, Clock, io.StringIO]) -> None:
    one, clock, _ = view
    for step in range(1001, 1301):
        clock.now += 10.0 if step <= 1200 else 1.0
        one.record(step, values_of(step, 1.0))
    assert "0:11:40 left" in text_of(one)


def test_the_terminal_is_written_to_four_times_a_second_at_most(view: tuple[LiveView, Clock, io.StringIO]) -> None:
    one, clock, written = view
    before = written.getvalue().count("of 2,000")
    for step in range(1001, 1201):
        clock.now += 0.01
        one.record(step, values_of(step, 1.0))
    assert 6 <= written.getvalue().count("of 2,000") - before <= 8, "two seconds"


def test_a_line_of_the_log_is_printed_once_and_the_view_goes_on_below_it() -> None:
    console, written = terminal()
    clock, logger = Clock(), logging.getLogger("test of the live view")
    one = LiveView(10, 0, lambda: None, console, clock)
    logger.propagate, logger.handlers = False, [RichHandler(console=console, show_path=False)]
    clock.now = 1.0
    one.record(1, values_of(1, 1.0))
    logger.warning("a shard was lost")
    above, _, below = written.getvalue().partition("a shard was lost")
    assert "a shard was lost" not in below
    assert "step 1 of 10" in above
    assert "step 1 of 10" in below
    one.close()


def test_the_last_frame_stays(view: tuple[LiveView, Clock, io.StringIO]) -> None:
    one, clock, written = view
    clock.now += 0.01  # too early to be shown by itself
    one.record(1001, values_of(1001, 1.0))
    assert "step 1,001" not in written.getvalue()
    one.close()
    assert "step 1,001 of 2,000" in written.getvalue()


def test_in_a_pipe_there_is_no_view_but_a_line_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pipe = io.StringIO()
    assert live_view(10, 0, lambda: None, Console(file=pipe)) is None
    assert pipe.getvalue() == ""
    assert "no live view: standard error is no terminal" in caplog.text


def test_on_a_terminal_there_is_one() -> None:
    console, written = terminal()
    one = live_view(10, 0, lambda: None, console)
    assert one is not None
    one.close()
    assert "no checkpoint yet" in written.getvalue()


@pytest.mark.parametrize(("values", "bars"), [([], ""), ([3.0, 3.0], "▁▁"), ([0.0, 7.0, float("inf")], "▁█x"), ([float("nan")], "x")])
def test_a_sparkline_goes_from_the_lowest_to_the_highest_finite_value(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
