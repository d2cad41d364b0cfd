"""The global batch as one group over several ranks gives what one rank with a group of that size gives."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import ranks
import tiny_run
import torch
from tiny_albef import TINY, models, ragged_batch
from torch import Tensor

from training import checkpoint
from training.batch import Batch
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.global_group import GlobalGroup
from training.losses import LOSSES
from training.objective import Pretrainer, StepOutput
from training.optim import parameter_groups
from training.step import Negatives

PAIRS, MAX_TOKENS = 12, 14
SHARED_PICTURES = torch.tensor([0, 1, 2, 0, 4, 5, 0, 1, 8, 5, 10, 11])  # of pairs on one rank, and of pairs on different ones


class Case(NamedTuple):
    """One objective over one global batch."""

    alpha: float = 0.4
    image_ids: Tensor = torch.arange(PAIRS)
    losses: Mapping[str, dict[str, Any]] = MappingProxyType({"itc": {}, "itm": {}, "mlm": {}})
    image_for_text: Tensor | None = None  # instead of drawn ones


class Found(NamedTuple):
    """What one step gives; means over ranks."""

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]  # after the optimizer step


BY_PICTURE = {"itc": {"same_image_positives": True}, "itm": {"same_image_negatives": False}, "mlm": {}}
CASES = {
    "without soft targets": Case(alpha=0.0),
    "with soft targets": Case(),
    "with pairs of one picture": Case(image_ids=SHARED_PICTURES, losses=BY_PICTURE),
    "with pairs of one picture and no soft targets": Case(alpha=0.0, image_ids=SHARED_PICTURES, losses=BY_PICTURE),
    "with one picture alone, so that there is no wrong one": Case(image_ids=torch.zeros(PAIRS, dtype=torch.long), losses=BY_PICTURE),
    "with all wrong pictures on the first rank": Case(image_for_text=torch.tensor([1, 2, 3, 0, 0, 0, 1, 1, 1, 2, 2, 3])),
    "with uniform negatives": Case(losses={"itm": {"hard_from_step": None}, "mlm": {}}),
    "with ITM alone": Case(losses={"itm": {}}),
    "with ITC alone": Case(losses={"itc": {}}),
}
TEXT_FOR_IMAGE = torch.arange(PAIRS).roll(5)


def one_step(world: World, case: Case) -> Found:
    """In float64, from the same weights each time."""
    student, teacher = (model.double() for model in models())
    torch.nn.init.normal_(student.itm_head.weight, std=0.5)  # else its answers are too alike to tell wrong rows by
    batch, rows = share(world, case.image_ids)
    group = GlobalGroup(world, MAX_TOKENS) if world.world_size > 1 else None
    pretrainer = Pretrainer(student, {name: LOSSES[name](**options) for name, options in case.losses.items()}, PAIRS, group)
    negatives = None if case.image_for_text is None else Negatives(case.image_for_text[rows], TEXT_FOR_IMAGE[rows])
    output: StepOutput = pretrainer(batch, teacher, queue(), case.alpha, negatives=negatives)
    output.total.backward()
    for parameter in student.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(world.mean(parameter.grad))
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    torch.optim.SGD(parameter_groups(student, 0.02), lr=0.1).step()
    losses, metrics = ({name: world.mean(value.detach().double()) for name, value in named.items()} for named in (output.losses, output.metrics))
    return Found(losses, metrics, gradients, {name: weight.detach() for name, weight in student.named_parameters()})


def share(world: World, image_ids: Tensor) -> tuple[Batch, slice]:
    """This rank's pairs, with texts as long as its own longest, and where they are in the global batch."""
    batch, num_own = dataclasses.replace(ragged_batch(PAIRS, PAIRS), image_ids=image_ids), PAIRS // world.world_size
    rows = slice(world.rank * num_own, (world.rank + 1) * num_own)
    longest = int(batch.attention_mask[rows].sum(dim=1).max())
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name not in ("mlm_positions", "packing")}
    own: dict[str, Any] = {name: value[rows] for name, value in fields.items() if value is not None}
    texts = {name: own[name][:, :longest] for name in ("input_ids", "attention_mask", "masked_ids", "mlm_labels")}
    return dataclasses.replace(batch, **{**own, **texts}), rows


def queue() -> FeatureQueue:
    filled = FeatureQueue(10, TINY.embed_dim)
    filled.ids = torch.arange(10) - 1
    filled.image, filled.text = filled.image.double(), filled.text.double()
    return filled


def all_cases(world: World, folder: Path) -> dict[str, Found]:
    return {name: one_step(world, case) for name, case in CASES.items()}


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def on_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    """Every case on each of so many ranks."""
    return ranks.on_each(all_cases, tmp_path_factory.mktemp("ranks"), request.param)


ALONE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_and_weights_after_a_step_are_those_of_one_rank(on_ranks: list[dict[str, Found]], name: str) -> None:
    wanted = one_step(ALONE, CASES[name])
    for of_rank in on_ranks:
        found = of_rank[name]
        torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.metrics, wanted.metrics, rtol=1e-6, atol=1e-9)
        assert found.gradients.keys() == wanted.gradients.keys()
        smallest = 1e-6 * torch.stack([gradient.norm() for gradient in wanted.gradients.values()]).norm()
        for parameter, gradient in wanted.gradients.items():
            assert (found.gradients[parameter] - gradient).norm() <= 1e-8 * max(gradient.norm(), smallest), parameter
        torch.testing.assert_close(found.weights, wanted.weights, rtol=1e-9, atol=1e-12)


def gathered(world: World, folder: Path) -> tuple[Tensor, Tensor]:
    rows = torch.arange(3.0).add(10 * world.rank).requires_grad_()
    texts = GlobalGroup(world, 2).texts(rows.view(3, 1, 1), torch.ones(3, 1, dtype=torch.long))
    (texts.states.flatten() * (world.rank + 1) * torch.arange(1.0, 13.0)).sum().backward()
    assert rows.grad is not None
    return texts.states.detach().flatten(), rows.grad


def test_gathered_texts_are_padded_and_bring_the_gradients_of_all_ranks_home(tmp_path: Path) -> None:
    (first, gradient), (second, other_gradient) = ranks.on_each(gathered, tmp_path)
    assert first.tolist() == second.tolist() == [0, 0, 1, 0, 2, 0, 10, 0, 11, 0, 12, 0]
    assert gradient.tolist() == [3 * slot for slot in (1, 3, 5)]  # ranks weigh it 1 and 2
    assert other_gradient.tolist() == [3 * slot for slot in (7, 9, 11)]


def held(world: World, folder: Path) -> tuple[list[int], list[int]]:
    drawn = torch.tensor([[3, -1, 5], [3, 0, 4]])[world.rank]
    texts, pictures = GlobalGroup(world, 2).texts_for_own_pictures(drawn)
    return texts.tolist(), pictures.tolist()


def test_each_rank_has_the_texts_whose_drawn_picture_it_holds(tmp_path: Path) -> None:
    assert ranks.on_each(held, tmp_path) == [([4], [0]), ([0, 2, 3, 5], [0, 2, 0, 1])]


@pytest.fixture(scope="module")
def one_large_group(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank whose group is the global batch."""
    folder = tmp_path_factory.mktemp("one_large_group")
    done = tiny_run.train(tiny_run.configuration(folder, dataset, group_size=16))
    assert done.returncode == 0, done.stderr
    return folder


def test_on_one_rank_it_is_a_group_of_the_global_batch_bit_for_bit(dataset: Path, one_large_group: Path, tmp_path: Path) -> None:
    assert tiny_run.train(tiny_run.configuration(tmp_path, dataset, negatives="global", group_size=7)).returncode == 0
    assert tiny_run.metrics(tmp_path) == tiny_run.metrics(one_large_group)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_ranks_train_as_one_whose_group_is_the_global_batch(dataset: Path, one_large_group: Path, tmp_path: Path, zero_stage: int) -> None:
    done = tiny_run.train(tiny_run.configuration(tmp_path, dataset, negatives="global", zero_stage=zero_stage), processes=2)
    assert done.returncode == 0, done.stderr
    for found, wanted in zip(tiny_run.metrics(tmp_path), tiny_run.metrics(one_large_group), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5), found["step"]
    ours, theirs = (checkpoint.read(str(run / "train" / "checkpoints")) for run in (tmp_path, one_large_group))
    for name in ("student", "teacher", "queue"):
        # A tenth of one of Adam's steps: where a gradient is 0 in exact arithmetic, as of the keys' biases, it follows the sign of the rounding.
        torch.testing.assert_close(ours.tensors(name), theirs.tensors(name), rtol=1e-4, atol=1e-4)
