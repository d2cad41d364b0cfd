"""What the page of Table 1 says is true of the record it is written from."""

from typing import Any

import numpy as np
import pytest

from eval.task import Outcomes
from pipeline.app.studies.intervals import difference, interval
from pipeline.app.studies.study import BOUNDS, row
from pipeline.app.studies.table1 import METRICS, page

CHANGED = "itc minus mlm-itm"


def record(num_seeds: int, wrong_rate: float | None = 0.2, vague_rate: float | None = 0.05) -> dict[str, Any]:
    """Figures of the first two rows, drawn at random."""
    rng = np.random.default_rng(0)
    found: dict[str, list[Outcomes]] = {}
    rows = []
    for metric in METRICS:
        for name in ("mlm-itm", "itc"):
            found[name] = [Outcomes(rng.choice([0.0, 100.0], 40), np.arange(40)) for _ in range(num_seeds)]
            rows.append(row(f"{name}/{metric.case}", metric.unit, interval(found[name], BOUNDS[metric.unit]), metric.note))
        rows.append(row(f"{CHANGED}/{metric.case}", metric.unit, difference(found["itc"], found["mlm-itm"], BOUNDS[metric.unit]), "paired"))
    return {
        "command": "albef study table1 CONFIG", "wrong_rate": wrong_rate, "vague_rate": vague_rate, "runs": 2 * num_seeds, "side_by_side": 2,
        "steps": 700, "evaluate_every_steps": 100, "minutes_of_runs": 1.0, "minutes_in_all": 0.5, "rows": rows,
    }  # fmt: skip


def test_one_seed_is_said_to_be_one_and_its_intervals_to_be_of_pictures_alone() -> None:
    one, three = page(record(1)), page(record(3))
    assert "1 seed a row" in one
    assert "over the pictures alone" in one
    assert "from seed to seed" in one
    assert "Means over the seeds" not in one
    assert "3 seeds a row" in three
    assert "with 3 seeds the t" in three
    assert "pictures alone" not in three


def test_the_share_of_bad_captions_is_the_worlds() -> None:
    assert "with 25 % of its training captions wrong or vague" in page(record(1))
    assert "%" not in page(record(1, None, None)).split("steps a run")[0]


def test_the_number_of_chance_findings_is_that_of_the_differences_shown() -> None:
    shown = page(record(2)).split("## Each row minus")[1].split("What the intervals")[0].count("[")
    text = page(record(2))
    assert shown == 6  # ten metrics, four of which rank by ITC
    assert f"were all {shown} differences zero in truth, about 0.3 of them" in text


@pytest.mark.parametrize("value", [-0.0004, -0.0, 0.0])
def test_zero_has_no_minus(value: float) -> None:
    found = record(1)
    for figure in found["rows"]:
        figure["ours"] = value
    assert "-0.0 " not in page(found)
    assert "-0.000" not in page(found)
    assert str(row("a", "%", interval([Outcomes(np.array([-1e-9, 0.0]), np.arange(2))]), "")["ours"]) == "0.0"


def test_rows_alike_on_every_picture_are_not_given_an_interval_without_width() -> None:
    found = record(1)
    for figure in found["rows"]:
        if figure["case"].startswith(CHANGED):
            figure |= {"ours": 0.0, "low": 0.0, "high": 0.0}
    assert "0, alike on every picture" in page(found)
    assert "[0.0, 0.0]" not in page(found)
