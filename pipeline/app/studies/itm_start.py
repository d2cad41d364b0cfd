"""What makes ITM start: one thing changed at a time around the demo's setting, and the held-out ITM loss as training goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.suite import read_outcomes
from eval.tasks.retrieval.matching import PRIOR_ENTROPY
from pipeline.app.plots import png
from pipeline.app.studies.grid import Overrides, Run
from pipeline.app.studies.intervals import difference, interval
from pipeline.app.studies.study import BOUNDS, Row, Study, rendered, row

DEMO = "demo"
SETTINGS: Overrides = (
    "training.max_steps=800",
    "training.alpha_start_step=800",  # hard targets throughout: the teacher's are another study
    "training.evaluate_every_steps=80",
    "training.save_every_steps=400",
    "training.keep_last=1",
    "training.torch_threads=1",
    "eval.tasks.retrieval.gallery=0",
)
# By what they ask: name of the run -> how the plot calls it and what it changes of the demo's setting.
FACTORS: dict[str, dict[str, tuple[str, Overrides]]] = {
    "when negatives become hard": {
        "hard-from-0": ("from the start (ALBEF)", ("training.losses.itm.hard_from_step=0",)),
        "hard-from-100": ("from step 100", ("training.losses.itm.hard_from_step=100",)),
        DEMO: ("from step 300 (demo)", ()),
        "hard-from-600": ("from step 600", ("training.losses.itm.hard_from_step=600",)),
        "hard-never": ("never", ("training.losses.itm.hard_from_step=null",)),
    },
    "weight of ITM": {
        "weight-1": ("1 (ALBEF)", ("training.losses.itm.weight=1",)),
        DEMO: ("3 (demo)", ()),
        "weight-10": ("10", ("training.losses.itm.weight=10",)),
    },
    "fusion layers": {
        "fusion-1": ("1", ("training.model.fusion_layers=1",)),
        DEMO: ("2 (demo)", ()),
        "fusion-4": ("4", ("training.model.fusion_layers=4",)),
    },
    "learning rate": {
        "rate-3e-4": ("3e-4", ("training.optimizer.peak_lr=3.0e-4",)),
        DEMO: ("1e-3 (demo)", ()),
        "rate-2e-3": ("2e-3", ("training.optimizer.peak_lr=2.0e-3",)),
    },
    "ALBEF's own": {
        "albef": ("hard from the start, weight 1", ("training.losses.itm.hard_from_step=0", "training.losses.itm.weight=1")),
        DEMO: ("demo", ()),
    },
}
METRICS = {"itm_loss": "nats", "itc/text_recall@1": "%", "reranked/text_recall@1": "%", "itc/image_recall@1": "%", "reranked/image_recall@1": "%"}
STARTED_BELOW = 0.95 * PRIOR_ENTROPY  # of the validation's 128 pairs, three random ones each: nearer the prior is chance
COLOURS = ("#2563eb", "#f59e0b", "#dc2626", "#059669", "#7c3aed")
PICTURE = "itm_start.png"


def variants() -> dict[str, Overrides]:
    """Every variant once; the demo's own first, which all plots share."""
    changes = {name: change for of_factor in FACTORS.values() for name, (_, change) in of_factor.items()}
    return {DEMO: changes[DEMO], **changes}


def tell(runs: Sequence[Run]) -> list[Row]:
    """Of each variant the held-out figures after the last step, what re-ranking adds, and the step at which ITM had started."""
    return [one for variant in dict.fromkeys(run.variant for run in runs) for one in _tell_one(variant, [run for run in runs if run.variant == variant])]


def _tell_one(variant: str, runs: Sequence[Run]) -> list[Row]:
    found = [read_outcomes(run.folder, "retrieval") for run in runs]
    rows = [
        row(f"{variant}/{name}", unit, interval([one[name] for one in found], BOUNDS[unit]), "held-out scenes, after the last step")
        for name, unit in METRICS.items()
    ]
    for recall in ("text_recall@1", "image_recall@1"):
        gain = difference([one[f"reranked/{recall}"] for one in found], [one[f"itc/{recall}"] for one in found], BOUNDS["%"])
        rows.append(row(f"{variant}/re-ranking adds to {recall}", "%", gain, "re-ranked by ITM minus ITC, paired by picture"))
    started = [_started(*run.curve("val/itm_loss")) for run in runs]
    rows.append({"case": f"{variant}/started at step", "unit": "step", "ours": started[0], "peer": None, "peer_name": None, "ratio": None,
                 "note": f"first evaluation from which the validation's ITM loss stays below {STARTED_BELOW:.3f}; null: never", "seeds": started})  # fmt: skip
    return rows


def _started(steps: Sequence[int], losses: Sequence[float]) -> int | None:
    """The first step from which the loss never comes back to the prior's."""
    above = [place for place, loss in enumerate(losses) if loss >= STARTED_BELOW]
    first = above[-1] + 1 if above else 0
    return steps[first] if first < len(steps) else None


def plot(runs: Sequence[Run]) -> bytes:
    """The held-out ITM loss over the steps, a panel for each question asked of at least two variants."""
    found = {variant: [run for run in runs if run.variant == variant] for variant in variants()}
    shown = {factor: {name: title for name, (title, _) in of.items() if found[name]} for factor, of in FACTORS.items()}
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    for place, (factor, titles) in enumerate((factor, titles) for factor, titles in shown.items() if len(titles) > 1):
        axes = figure.add_subplot(2, 3, place + 1)
        for (name, title), colour in zip(titles.items(), COLOURS, strict=False):
            _draw(axes, found[name], title, colour)
        axes.axhline(PRIOR_ENTROPY, color="#9ca3af", linestyle="--", linewidth=1)
        axes.set_title(factor, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("held-out ITM loss, nats")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


def _draw(axes: Axes, runs: Sequence[Run], title: str, colour: str) -> None:
    """The mean over the seeds, and each seed thin beside it."""
    curves = [run.curve("val/itm_loss") for run in runs]
    for steps, losses in curves if len(curves) > 1 else ():
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(curves[0][0], np.mean([losses for _, losses in curves], axis=0), color=colour, linewidth=1.8, marker=".", label=title)


def page(record: Mapping[str, Any]) -> str:
    """docs/itm_start.md from the committed figures alone."""
    figures = {figure["case"]: figure for figure in record["rows"]}
    factors = {factor: {name: title for name, (title, _) in of.items() if f"{name}/itm_loss" in figures} for factor, of in FACTORS.items()}
    return rendered("itm_start.md.jinja", record=record, figures=figures, factors=factors, prior=PRIOR_ENTROPY, below=STARTED_BELOW, picture=PICTURE)


ITM_START = Study("itm-start", variants(), seeds=1, settings=SETTINGS, tell=tell, page=page, pictures=lambda runs: {PICTURE: plot(runs)}, always=(DEMO,))
