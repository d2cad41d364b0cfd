"""The report's plots, as PNGs in base64 so that the report stays one file."""

import base64
import io
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ITM_PRIOR_ENTROPY = 0.6365  # nats, one match to two non-matches: what ITM costs a model that looks at nothing
COLOURS = {"itc": "#2563eb", "itm": "#dc2626", "mlm": "#059669", "total": "#6b7280", "text_recall@1": "#2563eb", "image_recall@1": "#f59e0b"}
SMOOTHING = 25  # steps in the running mean drawn over the raw curve


@dataclass(frozen=True)
class Curves:
    """Lines of metrics.jsonl: one a step, and one for each validation."""

    steps: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    def of(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        lines = [line for line in self.steps if name in line]
        return [line["step"] for line in lines], [line[name] for line in lines]

    def median(self, name: str) -> float:
        return statistics.median(self.of(name)[1])

    def percentile(self, name: str, percent: float) -> float:
        return float(np.percentile(self.of(name)[1], percent))

    def data_wait_share(self) -> float:
        """Time spent waiting for data, as a share of the time of all steps."""
        pairs_per_s, waits = self.of("pairs_per_s")[1], self.of("data_wait_s")[1]
        pairs_per_step: float = self.steps[-1]["pairs"] / self.steps[-1]["step"]
        return sum(waits) / sum(pairs_per_step / rate for rate in pairs_per_s)


def loss_plot(curves: Curves) -> str:
    """The three losses, ITM beside the entropy of its prior."""

    def draw(left: Axes, right: Axes) -> None:
        for name in ("itc", "mlm"):
            _curve(left, curves, f"loss/{name}", name.upper(), COLOURS[name])
        _curve(right, curves, "loss/itm", "ITM", COLOURS["itm"])
        right.axhline(ITM_PRIOR_ENTROPY, color="#9ca3af", linestyle="--", linewidth=1, label="entropy of its prior (0.6365)")
        left.set_ylabel("loss, nats")

    return _two_panels(draw)


def recall_plot(curves: Curves) -> str:
    """Recall at 1 on the validation split, and the ITM loss there."""

    def draw(left: Axes, right: Axes) -> None:
        steps = [line["step"] for line in curves.validation]
        for name in ("text_recall@1", "image_recall@1"):
            left.plot(steps, [line.get(f"val/{name}", math.nan) for line in curves.validation], marker="o", color=COLOURS[name], label=name)
        right.plot(steps, [line.get("val/itm_loss", math.nan) for line in curves.validation], marker="o", color=COLOURS["itm"], label="ITM, hard negatives")
        right.axhline(ITM_PRIOR_ENTROPY, color="#9ca3af", linestyle="--", linewidth=1, label="entropy of its prior (0.6365)")
        left.set_ylabel("%")
        right.set_ylabel("loss, nats")

    return _two_panels(draw)


def schedule_plot(curves: Curves) -> str:
    """What the recipe prescribed: learning rate, weight of the teacher's soft targets, and the temperature that came of it."""

    def draw(left: Axes, right: Axes) -> None:
        left.plot(*curves.of("lr"), color="#2563eb", label="learning rate")
        right.plot(*curves.of("alpha"), color="#f59e0b", label="alpha")
        right.plot(*curves.of("temperature"), color="#059669", label="temperature")

    return _two_panels(draw)


def throughput_plot(curves: Curves) -> str:
    """Pairs per second and the gradient's norm."""

    def draw(left: Axes, right: Axes) -> None:
        _curve(left, curves, "pairs_per_s", "pairs/s", "#2563eb")
        _curve(right, curves, "grad_norm", "gradient norm", "#6b7280")
        left.set_ylim(bottom=0)

    return _two_panels(draw)


def _curve(axes: Axes, curves: Curves, name: str, label: str, colour: str) -> None:
    steps, values = curves.of(name)
    axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
    smooth = [statistics.fmean(values[max(0, end - SMOOTHING) : end]) for end in range(1, len(values) + 1)]
    axes.plot(steps, smooth, color=colour, linewidth=1.8, label=label)


def _two_panels(draw: Callable[[Axes, Axes], None]) -> str:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, right)
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return as_png(figure)


def as_png(figure: Figure) -> str:
    """In base64."""
    return base64.b64encode(png(figure)).decode()


def png(figure: Figure) -> bytes:
    """The file itself."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
