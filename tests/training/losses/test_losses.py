"""The objectives a configuration chooses: what their options may be, and which do not go together."""

from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from training.losses import LOSSES, losses_of


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight", [-1, -1e-9, float("nan"), float("inf"), "heavy", None])
def test_a_weight_is_a_number_from_zero_up(name: str, weight: Any) -> None:
    with pytest.raises(ConfigError, match=rf"training\.losses\.{name}\.weight is ") as caught:
        losses_of({"itc": None, name: {"weight": weight}})
    assert "\n" not in str(caught.value)


def test_a_weight_that_yaml_reads_as_text_is_a_number() -> None:
    assert [loss.weight for loss in losses_of({"itc": {"weight": "1e-1"}, "itm": {"weight": 2}, "mlm": {"weight": 0}}).values()] == [0.1, 2.0, 0.0]


def test_soft_targets_written_as_the_text_false_are_off() -> None:
    losses: dict[str, Any] = losses_of({"itc": {"soft_targets": "false"}, "mlm": {"soft_targets": "no"}})
    assert (losses["itc"].soft_targets, losses["mlm"].soft_targets) == (False, False)


@pytest.mark.parametrize("step", [-5, 1.5, "soon"])
def test_hard_negatives_begin_at_a_step_there_is(step: Any) -> None:
    with pytest.raises(ConfigError, match=r"training\.losses\.itm\.hard_from_step is "):
        losses_of({"itc": None, "itm": {"hard_from_step": step}})


@pytest.mark.parametrize("others", [{}, {"mlm": None}, {"itc": {"weight": 0}, "mlm": None}])
@pytest.mark.parametrize("options", [None, {"hard_from_step": 0}, {"hard_from_step": 300}])
def test_hard_negatives_by_similarities_that_nothing_teaches_are_refused_with_the_way_out(others: dict[str, Any], options: dict[str, Any] | None) -> None:
    with pytest.raises(ConfigError, match=r"training\.losses\.itm\.hard_from_step is \d+, .*set hard_from_step to null .*, or add itc") as caught:
        losses_of({**others, "itm": options})
    assert "\n" not in str(caught.value)
    assert list(losses_of({**others, "itm": {"hard_from_step": None}})) == [*others, "itm"]
    assert losses_of({"itc": {"weight": 0.5}, "itm": options})
