"""Validation losses: always the same pairs, masks and negatives, whoever computes them and whenever."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ranks
import tiny_albef
import tiny_run
import torch

from pipeline.app.bench.plain_step import plain_losses
from pipeline.core.errors import ConfigError, DataError
from shards.dataset import Dataset
from shards.manifest import publish, read_manifest
from shards.pixels.transforms import EvalTransform
from shards.remote.ranges import RangeReader
from training.batch import Batch
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.hooks.held_out import HeldOut, open_held_out
from training.hooks.validation import Validation
from training.loop import StepDone
from training.losses.itm import draw_negatives
from training.model import Albef
from training.model_config import ModelConfig
from training.objective import Pretrainer
from training.step import Negatives
from training.tokenizer import SPECIAL, Tokenizer

ALONE = World(0, 1, torch.device("cpu"))
TOKENIZER = Tokenizer([*SPECIAL, *tiny_run.WORDS])
WITH_DROPOUT = ModelConfig(**{**tiny_albef.TINY.model_dump(), "vocab_size": TOKENIZER.vocab_size, "hidden_dropout": 0.5, "attention_dropout": 0.5})
GROUP_SIZE = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    tiny_run.write_dataset(folder, samples=30)
    return folder


def held_out(folder: Path, max_pairs: int = 22, world: World = ALONE, manifest: int | None = None) -> HeldOut:
    """Of 22 pairs 5 groups: two ranks have 3 and 2."""
    sizes = {"image_size": WITH_DROPOUT.image_size, "max_tokens": 12, "mlm_probability": 0.4, "max_pairs": max_pairs, "group_size": GROUP_SIZE}
    return HeldOut(open_held_out(str(folder), manifest, world, RangeReader()), TOKENIZER, **sizes)


def trained() -> tuple[Pretrainer, Albef]:
    torch.manual_seed(0)
    student, teacher = Albef(WITH_DROPOUT), Albef(WITH_DROPOUT).requires_grad_(False).eval()
    return tiny_albef.pretrainer(student, 16), teacher


def validation(folder: Path, world: World = ALONE, with_teacher: bool = False, every_steps: int = 2) -> tuple[Validation, list[tuple[int, dict[str, float]]]]:
    pretrainer, teacher = trained()
    found: list[tuple[int, dict[str, float]]] = []

    def record(step: int, values: dict[str, float]) -> None:
        found.append((step, values))

    return Validation(pretrainer, pretrainer, teacher, held_out(folder, world=world), world, record, every_steps=every_steps, with_teacher=with_teacher), found


def values_of_rank(world: World, folder: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    return validation(folder / "data", world, with_teacher=True)[0].values()


def groups_of_rank(folder: Path, rank: int, world_size: int) -> Iterator[list[str]]:
    for batch in held_out(folder).groups(rank, world_size):
        yield batch.sample_keys


def test_values_are_the_same_to_the_last_bit_on_one_rank_and_on_two_of_which_one_has_less_to_do(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data", samples=30)
    assert held_out(tmp_path / "data").num_groups == 5
    torch.set_num_threads(1)
    alone = values_of_rank(ALONE, tmp_path)
    assert ranks.on_each(values_of_rank, tmp_path) == [alone, alone]
    assert {"val/itc", "val/itm", "val/mlm", "val/itm/accuracy", "val/teacher/itc", "val/teacher/itm"} <= set(alone)


def test_two_ranks_take_as_many_passes_and_together_every_group_once(data: Path) -> None:
    alone = list(groups_of_rank(data, 0, 1))
    first, second = (list(groups_of_rank(data, rank, 2)) for rank in (0, 1))
    assert len(first) == len(second) == 3
    assert [first[0], second[0], first[1], second[1], first[2]] == alone
    assert second[2] == alone[-1]  # comes again, so that this rank calls the model as often


def test_a_picture_comes_with_one_caption_at_most(data: Path) -> None:
    keys = [key for group in groups_of_rank(data, 0, 1) for key in group]
    assert len(keys) == len(set(keys)) == 20


def test_values_are_the_means_over_groups_of_the_plain_losses_without_dropout(data: Path) -> None:
    one, _ = validation(data)
    student, teacher = one.pretrainer.student.eval(), one.teacher
    of_groups, accuracies = [], []
    for batch in one.held_out.groups(0, 1):
        same, no_similarity = torch.eye(GROUP_SIZE, dtype=torch.bool), torch.zeros(GROUP_SIZE, GROUP_SIZE)
        negatives = Negatives(draw_negatives(no_similarity, batch.gumbel_t2i, same), draw_negatives(no_similarity, batch.gumbel_i2t, same))
        with torch.no_grad():
            of_groups.append(plain_losses(student, teacher, FeatureQueue(0, WITH_DROPOUT.embed_dim), batch, 0.0, negatives).losses)
            accuracies.append(plain_accuracy(student, batch, negatives))
    student.train()
    found = one.values()
    for name in ("itc", "itm", "mlm"):
        assert found[f"val/{name}"] == pytest.approx(np.mean([losses[name].item() for losses in of_groups]), rel=1e-5)
    assert found["val/itm/accuracy"] == pytest.approx(np.mean(accuracies))


def plain_accuracy(student: Albef, batch: Batch, negatives: Negatives) -> float:
    """Of the pair, the text beside a wrong picture, and the picture beside a wrong text: one after the other."""
    right = []
    image_embeds, text_embeds = student.encode_image(batch.pixels(torch.float32)), student.encode_text(batch.input_ids, batch.attention_mask)
    for row in range(len(batch)):
        wrong_image, wrong_text = int(negatives.image_for_text[row]), int(negatives.text_for_image[row])
        for text, image, label in ((row, row, 1), (row, wrong_image, 0), (wrong_text, row, 0)):
            states = student.fuse(text_embeds[text : text + 1], batch.attention_mask[text : text + 1], image_embeds[image : image + 1])
            right.append(int(student.itm_head(states[:, 0]).argmax()) == label)
    return sum(right) / len(right)


def test_pictures_are_those_of_evaluation(data: Path) -> None:
    dataset = Dataset.open(str(data))
    (batch, *_) = held_out(data).groups(0, 1)
    assert batch.image_ids is not None
    for row in range(GROUP_SIZE):
        wanted = EvalTransform(WITH_DROPOUT.image_size)(dataset.read(int(batch.image_ids[row])).image)
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), wanted)


def test_training_goes_on_as_if_nothing_had_happened(data: Path) -> None:
    one, _ = validation(data, with_teacher=True)
    pretrainer = one.pretrainer.train()
    pretrainer.student.image_encoder.eval()  # a frozen tower
    modes = [module.training for module in (*pretrainer.modules(), *one.teacher.modules())]
    before = pretrainer.losses, pretrainer.group_size
    weights = [weight.clone() for weight in (*pretrainer.parameters(), *one.teacher.parameters())]
    state = torch.get_rng_state()
    first = one.values()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in (*pretrainer.modules(), *one.teacher.modules())] == modes
    assert (pretrainer.losses, pretrainer.group_size) == before
    assert all(torch.equal(old, new) for old, new in zip(weights, (*pretrainer.parameters(), *one.teacher.parameters()), strict=True))
    assert all(parameter.grad is None for parameter in pretrainer.parameters())
    torch.manual_seed(1)
    assert one.values() == first, "the same whenever it runs"


def test_the_teacher_is_measured_in_the_students_place(data: Path) -> None:
    one, _ = validation(data, with_teacher=True)
    one.teacher.load_state_dict(one.pretrainer.student.state_dict())
    values = one.values()
    assert values["val/itm"] == values["val/teacher/itm"]
    with torch.no_grad():
        one.teacher.itm_head.bias[1] += 3.0
    assert one.values()["val/itm"] == values["val/itm"]
    assert one.values()["val/teacher/itm"] != values["val/teacher/itm"]


def test_the_teacher_is_measured_in_the_precision_of_the_run(data: Path) -> None:
    pretrainer, teacher = trained()
    exact, rough = (
        Validation(pretrainer, pretrainer, teacher, held_out(data), ALONE, lambda step, values: None, every_steps=1, with_teacher=True, precision=precision)
        for precision in (torch.float32, torch.bfloat16)
    )
    one, other = exact.values(), rough.values()
    assert one["val/itm"] == other["val/itm"]
    assert one["val/teacher/itm"] != other["val/teacher/itm"]
    assert one["val/teacher/itm"] == pytest.approx(other["val/teacher/itm"], rel=0.05)


def test_it_runs_every_so_many_steps_skipped_ones_included(data: Path) -> None:
    one, found = validation(data, every_steps=2)
    for step in range(1, 6):
        one.after_step(StepDone(step, applied=step != 4, losses={}, micro_batches=[], data_wait_s=0.0, step_s=0.1))
    assert [step for step, _ in found] == [2, 4]
    assert found[0][1] == found[1][1]


def test_only_what_the_run_trains_is_validated(data: Path) -> None:
    pretrainer, teacher = trained()
    del pretrainer.losses["mlm"]
    one = Validation(pretrainer, pretrainer, teacher, held_out(data), ALONE, lambda step, values: None, every_steps=1)
    assert {name for name in one.values() if name.count("/") == 1} == {"val/itc", "val/itm"}


def test_a_damaged_pair_is_replaced_by_the_same_other_one_and_named_once(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_run.write_dataset(tmp_path, samples=30)
    whole = list(held_out(tmp_path).groups(0, 1))
    tar = tmp_path / "00001.tar"
    damaged = bytearray(tar.read_bytes())
    place = damaged.index(b"\xff\xd8\xff")
    damaged[place + 200 : place + 300] = bytes(100)
    tar.write_bytes(damaged)
    pairs = held_out(tmp_path)
    visits = [[batch.sample_keys for batch in pairs.groups(0, 1)] for _ in range(2)]
    assert visits[0] == visits[1]
    damaged_visit = [key for group in visits[0] for key in group]
    differing = sum(one != other for one, other in zip(damaged_visit, [key for batch in whole for key in batch.sample_keys], strict=True))
    assert differing == 1
    assert len([record for record in caplog.records if "quarantined" in record.message]) == 1


def test_a_pinned_manifest_keeps_its_pairs_when_a_newer_one_is_published(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path, samples=30)
    before = [batch.sample_keys for batch in held_out(tmp_path, manifest=1).groups(0, 1)]
    publish(str(tmp_path), read_manifest(str(tmp_path)).shards[:2], outcomes={}, config={})
    assert [batch.sample_keys for batch in held_out(tmp_path, manifest=1).groups(0, 1)] == before
    assert held_out(tmp_path, max_pairs=1000).num_pairs == 20, "the newest has two of three shards"


def test_a_missing_dataset_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training.validation.dataset: .*nowhere"):
        held_out(tmp_path / "nowhere")


def test_fewer_pairs_than_a_group_are_one_group(data: Path) -> None:
    few = held_out(data, max_pairs=3)
    assert (few.num_groups, few.group_size, few.num_pairs) == (1, 3, 3)


def test_one_pair_is_refused_with_its_setting(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.validation: 1 pair\(s\) of .* take max_pairs or a dataset above 1"):
        held_out(data, max_pairs=1)


def values_under_zero_3(world: World, folder: Path) -> tuple[dict[str, float], list[float], list[bool]]:
    """Also losses of the training steps before and after it, and whether parameters are partitioned again afterwards."""
    deepspeed = ranks.deepspeed_without_its_operator()
    os.environ.update(RANK=str(world.rank), LOCAL_RANK=str(world.rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    pretrainer, teacher = trained()
    settings = {"train_micro_batch_size_per_gpu": 16, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=pretrainer, optimizer=optimizer, config=settings, dist_init_required=False)
    one = Validation(engine, pretrainer, teacher, held_out(folder / "data"), world, lambda step, values: None, every_steps=1)
    found = one.values()
    del pretrainer.losses["mlm"]  # steps of those two are enough to see whether training is touched
    losses = []
    for step in range(2):
        torch.manual_seed(step)
        batch = tiny_albef.make_batch(16, 16, seed=world.rank)
        batch.input_ids.clamp_(max=WITH_DROPOUT.vocab_size - 1)
        output = engine(batch, teacher, FeatureQueue(0, WITH_DROPOUT.embed_dim), alpha=0.4)
        engine.backward(output.total)
        engine.step()
        losses.append(output.total.item())
        if folder.name == "validated":
            one.values()
    return found, losses, [parameter.numel() == 0 for parameter in pretrainer.parameters()]


@pytest.mark.slow
def test_under_zero_3_with_an_uneven_number_of_groups_values_are_the_same_and_training_is_not_touched(tmp_path: Path) -> None:
    for name in ("validated", "not"):
        (tmp_path / name).mkdir()
        tiny_run.write_dataset(tmp_path / name / "data", samples=30)
    torch.set_num_threads(1)
    alone = {name: value for name, value in values_of_rank(ALONE, tmp_path / "not").items() if not name.startswith("val/teacher")}
    (found, losses, partitioned), (found_too, *_) = ranks.on_each(values_under_zero_3, tmp_path / "validated")
    assert found == found_too == pytest.approx(alone, rel=1e-6)
    assert all(partitioned)
    assert losses == ranks.on_each(values_under_zero_3, tmp_path / "not")[0][1]
