"""The paper's Table 1 on a world whose captions are often wrong or vague: does each part of the method help, and how sure is that?"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from eval.suite import read_outcomes
from eval.task import Outcomes
from pipeline.app.studies.grid import Overrides, Run
from pipeline.app.studies.intervals import CONFIDENCE, RESAMPLES, difference, interval
from pipeline.app.studies.study import BOUNDS, Row, Study, rendered, row


class TableRow(NamedTuple):
    """A row of the paper's table, as what it changes of the row before it."""

    name: str
    title: str
    change: Overrides


ROWS = (
    TableRow("mlm-itm", "MLM + ITM", ()),
    TableRow("itc", "+ ITC", ("training.losses.itc.soft_targets=false",)),
    TableRow("hard-negatives", "+ hard negatives", ("training.losses.itm.hard_from_step=300",)),
    TableRow("mod-itc", "+ MoD on ITC", ("training.losses.itc.soft_targets=true",)),
    TableRow("mod-mlm", "+ MoD on MLM", ("training.losses.mlm.soft_targets=true",)),
)
TITLES = {of.name: of.title for of in ROWS}


class Metric(NamedTuple):
    """A figure of each row: a metric of a benchmark, and how the page calls it."""

    task: str
    name: str
    title: str
    unit: str
    note: str

    @property
    def case(self) -> str:
        return f"{self.task}/{self.name}"


METRICS = (
    Metric("retrieval", "itc/text_recall@1", "TR@1", "%", "ITC, held-out scenes"),
    Metric("retrieval", "itc/image_recall@1", "IR@1", "%", "ITC, held-out scenes"),
    Metric("retrieval", "reranked/text_recall@1", "TR@1 re-ranked", "%", "best by ITC re-ranked by ITM"),
    Metric("retrieval", "reranked/image_recall@1", "IR@1 re-ranked", "%", "best by ITC re-ranked by ITM"),
    Metric("retrieval", "itm/text_recall@1", "TR@1 by ITM alone", "%", "every pair of the first pictures and their first captions"),
    Metric("retrieval", "itm/image_recall@1", "IR@1 by ITM alone", "%", "every pair of the first pictures and their first captions"),
    Metric("contrast", "swap_colour/itm", "swapped colours", "%", "ITM; chance 50"),
    Metric("contrast", "swap_left_right/itm", "swapped sides", "%", "ITM; chance 50"),
    Metric("masked_words", "accuracy", "masked words", "%", "MLM, one hidden word a held-out caption"),
    Metric("masked_words", "loss", "masked words' loss", "nats", "MLM, one hidden word a held-out caption; lower is better"),
)
ITC_METRICS = {metric.case for metric in METRICS if metric.name.startswith(("itc/", "reranked/"))}  # say nothing of a model that learned no ITC


def tell(runs: Sequence[Run]) -> list[Row]:
    """Each metric of each row, then each row minus the row before it."""
    found = {run.variant: [one for one in runs if one.variant == run.variant] for run in runs}
    outcomes = {(name, metric): [_outcomes(run, metric) for run in of_row] for name, of_row in found.items() for metric in METRICS}
    rows = [
        row(f"{name}/{metric.case}", metric.unit, interval(outcomes[name, metric], BOUNDS[metric.unit]), metric.note) for name in found for metric in METRICS
    ]
    for before, after in _neighbours(found):
        for metric in METRICS:
            change = difference(outcomes[after, metric], outcomes[before, metric], BOUNDS[metric.unit])
            note = f"paired by seed and picture; {'the interval excludes 0' if change.excludes_zero else 'the interval holds 0'}"
            rows.append(row(_difference(after, before, metric), metric.unit, change, note))
    return rows


def page(record: Mapping[str, Any]) -> str:
    """docs/table1.md from the committed figures alone."""
    figures = {figure["case"]: figure for figure in record["rows"]}
    names = [name for name in TITLES if any(case.startswith(f"{name}/") for case in figures)]
    steps = _neighbours(names)
    compared = [_difference(after, before, metric) for before, after in steps for metric in METRICS if _is_comparable(before, metric)]
    return rendered(
        "table1.md.jinja", record=record, figures=figures, names=names, steps=steps, titles=TITLES, metrics=METRICS, itc_metrics=ITC_METRICS,
        num_compared=len(compared), confidence=CONFIDENCE, resamples=RESAMPLES, sentences=[_sentence(figures, before, after) for before, after in steps],
    )  # fmt: skip


def _sentence(figures: Mapping[str, Row], before: str, after: str) -> str:
    """What the differences of two neighbouring rows come to."""
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "no difference shown": []}
    for metric in METRICS:
        if not _is_comparable(before, metric):
            continue
        figure = figures[_difference(after, before, metric)]
        if figure["low"] <= 0 <= figure["high"]:
            verdicts["no difference shown"].append(metric.title)
        else:
            verdicts["better" if (figure["ours"] > 0) != (metric.unit == "nats") else "worse"].append(metric.title)
    return f"**{TITLES[after]}**: " + "; ".join(f"{verdict} in {', '.join(titles)}" for verdict, titles in verdicts.items() if titles) + "."


def _is_comparable(before: str, metric: Metric) -> bool:
    """The first row learns no ITC, so nothing is said of what ITC adds to its ranking."""
    return before != ROWS[0].name or metric.case not in ITC_METRICS


def _difference(after: str, before: str, metric: Metric) -> str:
    return f"{after} minus {before}/{metric.case}"


def _neighbours(names: Iterable[str]) -> list[tuple[str, str]]:
    """Rows that follow one another in the table and are both there."""
    return [(before.name, after.name) for before, after in pairwise(ROWS) if {before.name, after.name} <= set(names)]


def _outcomes(run: Run, metric: Metric) -> Outcomes:
    return read_outcomes(run.folder, metric.task)[metric.name]


def _cumulative() -> dict[str, Overrides]:
    changes = accumulate((of.change for of in ROWS), lambda before, change: (*before, *change))
    return {of.name: change for of, change in zip(ROWS, changes, strict=True)}


TABLE1 = Study("table1", _cumulative(), seeds=3, settings=(), tell=tell, page=page, pictures=lambda _: {})
