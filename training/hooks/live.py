"""A live view of a run on rank 0's terminal; log lines scroll by above it."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.core import logs

log = logging.getLogger(__name__)

REFRESH_EVERY_S = 0.25
WINDOW_STEPS = 100  # that speed, waiting and time left are taken from
HISTORY = 40  # steps in a sparkline
BARS = "▁▂▃▄▅▆▇█"


class LiveView:
    """Shows what `record` is given, at most four times a second, and when it is closed.

    Args:
        total_steps, steps_taken: of the run, and by it before this start.
        last_checkpoint: its optimizer step, None while there is none.
        clock: seconds, increasing.
    """

    def __init__(
        self,
        total_steps: int,
        steps_taken: int,
        last_checkpoint: Callable[[], int | None],
        console: Console = logs.console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps, self.last_checkpoint, self._clock = total_steps, last_checkpoint, clock
        self.step, self.values = steps_taken, dict[str, float]()
        self._losses: dict[str, deque[float]] = {}
        self._window = deque([(clock(), steps_taken, 0.0)], maxlen=WINDOW_STEPS + 1)  # end of a step, its number, seconds it waited for data
        self._began = self._shown = clock()
        self._live = Live(self.frame(), console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())  # what goes into a pipe stays there
        self._live.start()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """The values of metrics.jsonl after optimizer step `step`; those of validation come by themselves."""
        self.values |= values
        for name, value in values.items():
            if name.startswith("loss/"):
                self._losses.setdefault(name.removeprefix("loss/"), deque(maxlen=HISTORY)).append(value)
        if step > self.step:
            self.step = step
            self._window.append((self._clock(), step, values.get("data_wait_s", 0.0)))
        if self._clock() - self._shown >= REFRESH_EVERY_S:
            self._show()

    def close(self) -> None:
        """The last frame stays on the terminal."""
        self._show()
        self._live.stop()

    def _show(self) -> None:
        self._shown = self._clock()
        self._live.update(self.frame(), refresh=True)

    def frame(self) -> RenderableType:
        losses = Table.grid(padding=(0, 2))
        for name, history in self._losses.items():
            held_out = f"held out {self.values[f'val/{name}']:.4f}" if f"val/{name}" in self.values else ""
            losses.add_row(f"{name:11}", f"{history[-1]:.4f}", held_out, sparkline(history))
        lines = {"speed": self._speed(), "model": self._model(), "held out": self._held_out(), "run": self._state()}
        return Group(self._header(), losses, *[f"{title:11}  {'   '.join(parts)}" for title, parts in lines.items() if parts])

    def _header(self) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        elapsed = timedelta(seconds=round(self._clock() - self._began))
        bar = ProgressBar(total=self.total_steps, completed=self.step, width=20)
        row.add_row(bar, f"step {self.step:,} of {self.total_steps:,}", f"{100 * self.step // self.total_steps} %", f"{elapsed} here", self._left())
        return row

    def _left(self) -> str:
        seconds, steps = self._measured()
        return f"{timedelta(seconds=round(seconds / steps * (self.total_steps - self.step)))} left" if steps else ""

    def _speed(self) -> list[str]:
        seconds, steps = self._measured()
        if not steps:
            return []
        pairs_per_s = self.values.get("pairs", 0.0) / self.step * steps / seconds  # the global batch is the same in all steps
        waited = sum(wait for _, _, wait in list(self._window)[1:]) / seconds
        device = self._shown_of({"tflops": "{:.3g} TFLOP/s", "mfu": "MFU {:.1%}"})
        return [f"{pairs_per_s:,.1f} pairs/s", f"{steps / seconds:.3g} steps/s", *device, f"waits for data {waited:.1%}"]

    def _model(self) -> list[str]:
        return self._shown_of({"temperature": "temperature {:.4f}", "lr": "lr {:.3g}", "alpha": "alpha {:.3g}", "grad_norm": "gradient norm {:.3g}"})

    def _held_out(self) -> list[str]:
        """What stands beside no loss."""
        names = [name for name in self.values if name.startswith("val/") and name.removeprefix("val/") not in self._losses]
        return [f"{name.removeprefix('val/')} {self.values[name]:.4g}" for name in names]

    def _state(self) -> list[str]:
        saved = self.last_checkpoint()
        checkpoint = "no checkpoint yet" if saved is None else f"checkpoint of step {saved:,}"
        memory = {"memory/allocated_gib": "{:.3g} GiB allocated", "memory/resident_gib": "{:.3g} GiB resident", "memory/peak_gib": "{:.3g} GiB at the most"}
        return [f"{self.values.get('skipped_steps', 0):.0f} skipped", checkpoint, *self._shown_of(memory)]

    def _shown_of(self, forms: Mapping[str, str]) -> list[str]:
        return [form.format(self.values[name]) for name, form in forms.items() if name in self.values]

    def _measured(self) -> tuple[float, int]:
        """Seconds and steps of the window."""
        (begin, first, _), (end, last, _) = self._window[0], self._window[-1]
        return end - begin, last - first if end > begin else 0


def live_view(total_steps: int, steps_taken: int, last_checkpoint: Callable[[], int | None], console: Console = logs.console) -> LiveView | None:
    """The view, or None and a line in the log where the console is no terminal: the same command then also runs in a pipe or under Slurm."""
    if console.is_terminal:
        return LiveView(total_steps, steps_taken, last_checkpoint, console)
    log.info("no live view: standard error is no terminal; metrics.jsonl and tensorboard have every figure of it")
    return None


def sparkline(values: Iterable[float]) -> str:
    """A bar for each value, from the lowest to the highest of them; a value that is not finite is an x."""
    values = list(values)
    finite = [value for value in values if abs(value) < float("inf")]  # nan is less than nothing
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1) + 0.5) if span else 0] if abs(value) < float("inf") else "x" for value in values)
