"""A skipped step is traced to the loss, the rank and the sample, the weight or the gradient it came from."""

import contextlib
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import NoReturn

import pytest
import ranks
import torch
from tiny_albef import TINY, make_batch, models, pretrainer

from training.batch import Batch
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.losses import LOSSES
from training.model import Albef
from training.objective import Pretrainer, StepOutput
from training.optim import parameter_groups
from training.watch.non_finite import IllMicroBatch, IllSample, SkippedStep, diagnose, non_finite_losses
from training.watch.skipped_steps import SkippedSteps, line

ALONE = World(0, 1, torch.device("cpu"))
FINITE_NORMS = {"image": 1.0, "text": 2.0}


def with_nan_picture(batch: Batch, row: int) -> Batch:
    """The pictures as floats, one of them not a number anywhere."""
    images = batch.pixels(torch.float32)
    images[row] = float("nan")
    return dataclasses.replace(batch, images=images)


def run(batches: list[Batch], student: Albef, teacher: Albef, queue: FeatureQueue) -> list[StepOutput]:
    return [pretrainer(student, 2)(batch, teacher, queue, 0.4) for batch in batches]


def found_in(
    batches: list[Batch], student: Albef, teacher: Albef, queue: FeatureQueue | None = None, norms: dict[str, float] = FINITE_NORMS, world: World = ALONE
) -> SkippedStep:
    queue = queue or FeatureQueue(6, TINY.embed_dim)
    return diagnose(world, 123, batches, run(batches, student, teacher, queue), student, teacher, queue, norms, contextlib.nullcontext)


def test_losses_that_are_not_finite_are_named_by_micro_batch() -> None:
    student, teacher = models()
    queue = FeatureQueue(6, TINY.embed_dim)
    healthy, ill = run([make_batch(4, 2), with_nan_picture(make_batch(4, 2, seed=1), 3)], student, teacher, queue)
    assert non_finite_losses([healthy, ill, healthy]) == [{}, {"itc": "nan", "itm": "nan", "mlm": "nan"}, {}]
    infinite = dataclasses.replace(healthy, losses={**healthy.losses, "mlm": torch.tensor(float("-inf"))})
    assert non_finite_losses([infinite]) == [{"mlm": "-inf"}]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_sample_whose_picture_is_not_finite_is_named_and_no_other(bf16: bool) -> None:
    student, teacher = models()
    batches = [make_batch(4, 2), with_nan_picture(make_batch(4, 2, seed=1), 3)]
    queue = FeatureQueue(6, TINY.embed_dim)
    outputs = run(batches, student, teacher, queue)
    found = diagnose(ALONE, 123, batches, outputs, student, teacher, queue, FINITE_NORMS, lambda: torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    (ill,) = found.micro_batches
    assert (ill.rank, ill.micro_batch, set(ill.losses)) == (0, 1, {"itc", "itm", "mlm"})
    assert ill.samples == [IllSample("00003", ["picture", "student's image states", "teacher's image states"])]
    assert (found.weights, found.gradients) == ([], [])
    assert line(found).endswith("; sample 00003 on rank 0 (its picture is not finite)")
    assert line(found).startswith("step 123 skipped: loss/itc is nan on rank 0; ")


def test_a_word_whose_embedding_is_infinite_names_the_weight_and_the_samples_that_have_the_word() -> None:
    student, teacher = models()
    batch = make_batch(4, 2)
    word = next(int(word) for word in batch.input_ids[1, 1:] if (batch.input_ids == word).any(dim=1).sum() == 1)
    with torch.no_grad():
        student.text_encoder.embeddings.word.weight[word] = float("inf")
    found = found_in([batch], student, teacher)
    (ill,) = found.micro_batches
    assert ill.samples == [IllSample("00001", ["student's text states"])]
    assert found.weights == ["student text_encoder.embeddings.word.weight"]
    assert "student text_encoder.embeddings.word.weight holds values that are not finite; sample 00001 on rank 0 (its student's text states are" in line(found)


@pytest.mark.parametrize("ill_one", ["student", "teacher"])
def test_a_weight_that_is_infinite_is_named_in_place_of_all_samples(ill_one: str) -> None:
    towers = dict(zip(("student", "teacher"), models(), strict=True))
    with torch.no_grad():
        towers[ill_one].image_encoder.cls_token[0, 0, 3] = float("inf")
    found = found_in([make_batch(4, 2)], **towers)
    assert found.weights == [f"{ill_one} image_encoder.cls_token"]
    (ill,) = found.micro_batches
    assert (ill.samples, ill.everywhere) == ([], [f"{ill_one}'s image states"])
    assert f"{ill_one} image_encoder.cls_token holds values that are not finite; every row's {ill_one}'s image states on rank 0" in line(found)


def test_a_feature_queue_that_is_not_finite_is_named() -> None:
    queue = FeatureQueue(6, TINY.embed_dim)
    queue.text[4, 1] = float("nan")
    found = found_in([make_batch(4, 2)], *models(), queue)
    assert found.weights == ["feature queue (text)"]
    assert found.micro_batches[0].losses == {"itc": "nan"}
    assert found.micro_batches[0].samples == []


def test_where_no_row_stands_out_all_samples_of_the_micro_batch_are_listed() -> None:
    student, teacher = models()
    queue = FeatureQueue(6, TINY.embed_dim)
    batches = [make_batch(4, 2), make_batch(4, 2, seed=1)]
    healthy, other = run(batches, student, teacher, queue)
    overflowed = dataclasses.replace(other, losses={**other.losses, "mlm": torch.tensor(float("inf"))})  # as in its head, which nobody runs again
    found = diagnose(ALONE, 123, batches, [healthy, overflowed], student, teacher, queue, FINITE_NORMS, contextlib.nullcontext)
    (ill,) = found.micro_batches
    assert ill == IllMicroBatch(0, 1, {"mlm": "inf"}, [IllSample(f"0000{row}", []) for row in range(4)], False, [])
    assert line(found).endswith("no row stands out, it is one of the samples 00000 (rank 0), 00001 (rank 0), 00002 (rank 0), 00003 (rank 0)")


def test_where_all_losses_are_finite_the_towers_whose_gradients_are_not_are_named() -> None:
    found = found_in([make_batch(4, 2)], *models(), norms={"image": float("inf"), "text": 2.0, "fusion": float("nan")})
    assert found == SkippedStep(123, [], [], ["image", "fusion"])
    assert line(found) == "step 123 skipped: all losses are finite, the gradient is not: image, fusion"


def test_looking_again_changes_neither_modes_nor_the_random_numbers_of_the_next_step() -> None:
    torch.manual_seed(0)
    config = TINY.model_copy(update={"hidden_dropout": 0.1, "attention_dropout": 0.1})
    student, teacher = Albef(config).train(), Albef(config).requires_grad_(False).eval()
    batch, queue = with_nan_picture(make_batch(4, 2), 0), FeatureQueue(6, TINY.embed_dim)
    outputs = run([batch], student, teacher, queue)
    before = torch.get_rng_state()
    diagnose(ALONE, 123, [batch], outputs, student, teacher, queue, FINITE_NORMS, contextlib.nullcontext)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_compiled_blocks_are_not_compiled_anew_to_look_again() -> None:
    student, teacher = models()
    batch, queue = with_nan_picture(make_batch(4, 2), 0), FeatureQueue(6, TINY.embed_dim)
    outputs = run([batch], student, teacher, queue)

    def refuse(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> NoReturn:
        raise AssertionError("compiled")

    for module in (*student.image_encoder.blocks, *student.text_encoder.layers):
        module.compile(backend=refuse)
    found = diagnose(ALONE, 123, [batch], outputs, student, teacher, queue, FINITE_NORMS, contextlib.nullcontext)
    assert [sample.key for sample in found.micro_batches[0].samples] == ["00000"]
    with pytest.raises(Exception, match="compiled"):
        student.encode_image(batch.pixels(torch.float32))


def planted_on_second_rank(world: World, folder: Path) -> SkippedStep:
    logging.basicConfig(filename=folder / f"log-{world.rank}.txt")
    batches = [make_batch(4, 2, seed=number + 10 * world.rank) for number in range(2)]
    batches = [dataclasses.replace(batch, sample_keys=[f"r{world.rank}m{number}s{row}" for row in range(4)]) for number, batch in enumerate(batches)]
    if world.rank == 1:
        batches[1] = with_nan_picture(batches[1], 3)
    found = found_in(batches, *models(), world=world)
    records = SkippedSteps(folder, world.rank, keep=10)
    for step in range(123, 126):
        records.add(dataclasses.replace(found, step=step))
    assert records.report().startswith("3 steps, 123 to 125, skipped for a non-finite loss or gradient: ")
    return found


def planted_under_zero_3(world: World, folder: Path) -> tuple[list[SkippedStep], list[bool]]:
    """Five steps of DeepSpeed's engine, the third and the fourth of which are skipped and looked into."""
    os.environ.update(RANK=str(world.rank), LOCAL_RANK=str(world.rank), WORLD_SIZE="2", LOCAL_SIZE="2")
    deepspeed = ranks.deepspeed_without_its_operator()
    torch.manual_seed(0)
    student, teacher = models()
    deepspeed.utils.logging.set_log_level_from_string("error")
    objective = Pretrainer(student, {name: LOSSES[name]() for name in ("itc", "itm")}, 2)
    adamw = torch.optim.AdamW(parameter_groups(student, 0.02), lr=1e-3)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    settings = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 1.0, "zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=objective, optimizer=adamw, config=settings, dist_init_required=False)
    queue, found, applied = FeatureQueue(6, TINY.embed_dim), [], []
    for step in range(1, 6):
        batch = make_batch(4, 2, seed=step + 10 * world.rank)
        batch = with_nan_picture(batch, 2) if world.rank == 1 and step in (3, 4) else batch
        output = engine(batch, teacher, queue, alpha=0.4)
        engine.backward(output.total)
        engine.step()
        applied.append(bool(engine.was_step_applied()))
        if not applied[-1]:
            found.append(diagnose(world, step, [batch], [output], student, teacher, queue, FINITE_NORMS, contextlib.nullcontext))
    return found, applied


@pytest.mark.slow
def test_under_zero_3_every_rank_gathers_the_same_weights_and_training_goes_on(tmp_path: Path) -> None:
    first, second = ranks.on_each(planted_under_zero_3, tmp_path)
    assert first == second
    found, applied = first
    assert applied == [True, True, False, False, True]
    for step, skipped in zip((3, 4), found, strict=True):
        assert (skipped.step, skipped.weights) == (step, [])
        assert [(one.rank, [sample.key for sample in one.samples]) for one in skipped.micro_batches] == [(1, ["00002"])]


@pytest.mark.slow
def test_both_ranks_know_the_sample_planted_on_one_and_the_first_writes_it_down(tmp_path: Path) -> None:
    first, second = ranks.on_each(planted_on_second_rank, tmp_path)
    assert first == second
    (ill,) = first.micro_batches
    assert (ill.rank, ill.micro_batch, [sample.key for sample in ill.samples]) == (1, 1, ["r1m1s3"])
    records = [json.loads(record) for record in (tmp_path / "skipped_steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [123, 124, 125]
    assert records[0] == json.loads(json.dumps(dataclasses.asdict(first)))
    assert (tmp_path / "log-0.txt").read_text().count("sample r1m1s3 on rank 1 (its picture is not finite)") == 3
    assert (tmp_path / "log-1.txt").read_text() == ""
    report = (tmp_path / "skipped_steps.md").read_text()
    for recurring in ("loss/itc", "loss/itm", "loss/mlm", "rank 1", "sample r1m1s3"):
        assert f"| {recurring} | 3 |" in report
