"""The fused objective against a plain one, groups, draws, and what happens at the edges."""

import collections
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_albef import TINY, make_batch, models, pretrainer, ragged_batch
from torch import Tensor

from pipeline.app.bench.plain_step import plain_losses
from pipeline.core.errors import ConfigError
from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.losses import LOSSES
from training.losses.itm import ImageTextMatching, draw_negatives
from training.losses.mlm import tokens_of_groups, weights_of_group_means
from training.model import Albef
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE, ModelConfig
from training.objective import Pretrainer, StepOutput
from training.step import Negatives


def rows_of(batch: Batch, rows: slice) -> Batch:
    cut = {
        field.name: getattr(batch, field.name)[rows]
        for field in dataclasses.fields(batch)
        if field.name not in ("mlm_positions", "packing", "randaugment", "kept_patches")
    }
    return Batch(**cut)


def own(rows: int, group_size: int) -> Tensor:
    """Each row's own column."""
    return torch.arange(group_size) == torch.arange(rows)[:, None] % group_size


def gradients(student: Albef, total: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(total, list(student.parameters()))
    return dict(zip([name for name, _ in student.named_parameters()], found, strict=True))


def negatives_within(groups: int, size: int, shifts: tuple[int, int]) -> Negatives:
    first = size * torch.arange(groups)[:, None]
    image, text = ((first + (torch.arange(size) + shift) % size).flatten() for shift in shifts)
    return Negatives(image, text)


def plain_losses_of_groups(
    student: Albef, teacher: Albef, queue: FeatureQueue, batch: Batch, alpha: float, negatives: Negatives, size: int
) -> dict[str, Tensor]:
    """The mean over groups, each computed apart."""
    of_groups = []
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        own = Negatives(*(index[rows] - start for index in negatives))
        of_groups.append(plain_losses(student, teacher, queue, rows_of(batch, rows), alpha, own).losses)
    return {name: torch.stack([losses[name] for losses in of_groups]).mean() for name in LOSSES}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_fused_step_gives_the_losses_and_gradients_of_the_plain_one(dtype: torch.dtype, tolerance: float, alpha: float, groups: int) -> None:
    student, teacher = (model.to(dtype) for model in models())
    size, batch, queue = 12 // groups, ragged_batch(12, 12 // groups), FeatureQueue(10, TINY.embed_dim)
    queue.image, queue.text = queue.image.to(dtype), queue.text.to(dtype)
    assert len(batch.packing.tokens) < batch.input_ids.numel()
    negatives = negatives_within(groups, size, (1, 3))
    fused = pretrainer(student, size)(batch, teacher, queue, alpha, negatives=negatives)
    plain = plain_losses_of_groups(student, teacher, queue, batch, alpha, negatives, size)
    for name in LOSSES:
        torch.testing.assert_close(fused.losses[name], plain[name], rtol=min(tolerance, 1e-5), atol=0)
    wanted = gradients(student, sum(plain.values(), torch.zeros(())))
    floor = 1e-6 * torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    for name, gradient in gradients(student, fused.total).items():
        if name.endswith("attention.key.bias"):  # zero in exact arithmetic: a constant added to all scores of a row changes no softmax
            assert gradient.norm() <= floor, name
        else:
            assert (gradient - wanted[name]).norm() <= tolerance * torch.maximum(wanted[name].norm(), floor), name


def called(model: Albef) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of what each of a model's modules is given from now on, by its name."""
    shapes: dict[str, list[tuple[int, ...]]] = collections.defaultdict(list)
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, args, name=name: shapes[name].append(tuple(args[0].shape)))
    return shapes


def test_pictures_texts_and_pairs_go_through_in_one_pass_each() -> None:
    (student, teacher), batch, queue = models(), ragged_batch(12, 6), FeatureQueue(10, TINY.embed_dim)
    shapes, tokens = called(student), len(batch.packing.tokens)
    pretrainer(student, 6)(batch, teacher, queue, 0.4)
    assert shapes["image_encoder"] == [(12, 3, 32, 32)]
    assert shapes["text_encoder"] == [(2 * tokens,)]
    assert shapes["fusion_encoder"] == [(3 * tokens + batch.input_ids.numel(), 24)]
    for layer in ("0", "1"):  # once a picture, not once a pair
        assert shapes[f"fusion_encoder.layers.{layer}.cross_attention.key"] == [(12, 5, 32)]
    assert shapes["fusion_encoder.layers.1.ffn"] == [(3 * 12 + len(batch.packing.predicted), 24)]


@pytest.mark.parametrize(
    ("losses", "alpha", "student_has", "teacher_has"),
    [
        ({"itc": {}}, 0.4, {"image_encoder", "text_encoder", "image_projection"}, {"image_encoder", "text_encoder", "image_projection"}),
        ({"itm": {}}, 0.0, {"image_encoder", "text_encoder", "image_projection", "fusion_encoder"}, {"image_encoder", "text_encoder", "image_projection"}),
        (
            {"itm": {"hard_from_step": None}, "mlm": {}},
            0.4,
            {"image_encoder", "text_encoder", "fusion_encoder"},
            {"image_encoder", "text_encoder", "fusion_encoder"},
        ),
        ({"itm": {"hard_from_step": None}, "mlm": {}}, 0.0, {"image_encoder", "text_encoder", "fusion_encoder"}, set()),
        ({"itm": {"hard_from_step": 1}, "mlm": {"soft_targets": False}}, 0.4, {"image_encoder", "text_encoder", "fusion_encoder"}, set()),
    ],
)
def test_what_no_loss_reads_is_not_computed(losses: dict[str, dict[str, Any]], alpha: float, student_has: set[str], teacher_has: set[str]) -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(10, TINY.embed_dim)
    of_student, of_teacher = called(student), called(teacher)
    output = Pretrainer(student, {name: LOSSES[name](**options) for name, options in losses.items()}, 4)(batch, teacher, queue, alpha)
    parts = {"image_encoder", "text_encoder", "image_projection", "fusion_encoder"}
    assert parts & set(of_student) == student_has
    assert parts & set(of_teacher) == teacher_has
    assert (output.teacher_image_feat is None) == (output.teacher_text_feat is None) == ("itc" not in losses)


@pytest.mark.parametrize(("losses", "pairs", "texts"), [(["itc"], 12, 0), (["itc", "mlm"], 12, 1), (["itc", "itm"], 0, 1), (["itc", "itm", "mlm"], 0, 2)])
def test_the_last_text_layer_computes_clean_tokens_beside_cls_only_where_they_are_fused(losses: list[str], pairs: int, texts: int) -> None:
    (student, teacher), batch, queue = models(), ragged_batch(12, 6), FeatureQueue(10, TINY.embed_dim)
    shapes = called(student)
    Pretrainer(student, {name: LOSSES[name]() for name in losses}, 6)(batch, teacher, queue, 0.4)
    assert shapes["text_encoder.layers.0.ffn"] == [(pairs + texts * len(batch.packing.tokens), 24)]


@pytest.mark.parametrize("other", [[], ["mlm"]])
def test_itc_and_its_gradients_are_the_same_where_no_clean_text_is_fused(other: list[str]) -> None:
    (student, teacher), batch, queue = models(), ragged_batch(12, 12), FeatureQueue(10, TINY.embed_dim)
    wanted = plain_losses(student, teacher, queue, batch, 0.4, negatives_within(1, 12, (1, 3))).losses["itc"]
    found = Pretrainer(student, {name: LOSSES[name]() for name in ["itc", *other]}, 12)(batch, teacher, queue, 0.4).losses["itc"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    parameters = [parameter for name, parameter in student.named_parameters() if name.startswith("text_encoder") and not name.endswith("key.bias")]
    for one, other_one in zip(*(torch.autograd.grad(loss, parameters) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other_one, rtol=1e-4, atol=1e-7)


def test_two_groups_in_one_micro_batch_equal_two_micro_batches() -> None:
    (student, teacher), batch, queue = models(), make_batch(8, 4), FeatureQueue(10, TINY.embed_dim)
    objective = pretrainer(student, 4)
    together = objective(batch, teacher, queue, 0.4)
    apart = [objective(rows_of(batch, rows), teacher, queue, 0.4) for rows in (slice(0, 4), slice(4, 8))]
    for name in LOSSES:
        torch.testing.assert_close(together.losses[name], (apart[0].losses[name] + apart[1].losses[name]) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.teacher_text_feat, torch.cat([output.teacher_text_feat for output in apart]))


def test_longer_padding_changes_nothing() -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(10, TINY.embed_dim)
    padded = {name: F.pad(getattr(batch, name), (0, 5)) for name in ("input_ids", "attention_mask", "masked_ids")}
    longer = dataclasses.replace(batch, **padded, mlm_labels=F.pad(batch.mlm_labels, (0, 5), value=-100))
    objective = pretrainer(student, 4)
    torch.testing.assert_close(objective(longer, teacher, queue, 0.4).total, objective(batch, teacher, queue, 0.4).total, rtol=1e-5, atol=0)


def test_a_forward_pass_changes_neither_teacher_nor_queue() -> None:
    (student, teacher), queue = models(), FeatureQueue(10, TINY.embed_dim)
    before = [parameter.clone() for parameter in teacher.parameters()] + [queue.image.clone(), queue.text.clone()]
    pretrainer(student, 4)(make_batch(4, 4), teacher, queue, 0.4).total.backward()
    for old, new in zip(before, [*teacher.parameters(), queue.image, queue.text], strict=True):
        assert torch.equal(old, new)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("chosen", [["itc"], ["itm"], ["mlm"], ["itm", "mlm"]])
def test_every_choice_of_losses_works_alone_and_sums_by_weight(chosen: list[str]) -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(0, TINY.embed_dim)
    objective = Pretrainer(student, {name: LOSSES[name](weight=0.5) for name in chosen}, 4)
    output: StepOutput = objective(batch, teacher, queue, 0.4)
    assert list(output.losses) == chosen
    torch.testing.assert_close(output.total, 0.5 * sum(output.losses.values(), torch.zeros(())))


def test_a_batch_with_nothing_to_predict_has_mlm_loss_zero_and_finite_gradients() -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(4, TINY.embed_dim)
    empty = dataclasses.replace(batch, masked_ids=batch.input_ids, mlm_labels=torch.full_like(batch.input_ids, -100))
    output = pretrainer(student, 4)(empty, teacher, queue, 0.4)
    assert output.losses["mlm"].item() == 0
    output.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters() if parameter.grad is not None)


def test_a_group_without_a_selected_token_counts_as_zero() -> None:
    group = torch.tensor([0, 0, 2])
    weights = weights_of_group_means(group, tokens_of_groups(group, 3))
    assert (weights @ torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)).item() == pytest.approx((2 + 0 + 5) / 3)


def test_a_micro_batch_that_cannot_be_cut_into_groups_is_refused() -> None:
    student, teacher = models()
    with pytest.raises(ConfigError, match="6 pairs is not a multiple of group_size 4"):
        pretrainer(student, 4)(make_batch(6, 4), teacher, FeatureQueue(0, TINY.embed_dim), 0.0)


def test_hard_negatives_never_pick_the_positive_even_when_it_saturates() -> None:
    sim = torch.full((8, 4), -120.0)
    sim[torch.arange(8), torch.arange(8) % 4] = 120.0
    for seed in range(50):
        torch.manual_seed(seed)
        drawn = draw_negatives(sim, -torch.log(-torch.log(torch.rand(8, 4))), own(8, 4))
        assert (drawn != torch.arange(8) % 4).all()


def test_hard_negatives_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([9.0, 0.0, 1.0, 2.0])  # column 0 is the row's own
    rows = 40_000
    sim = logits.repeat(rows, 1)
    gumbel = -torch.log(-torch.log(torch.rand(sim.shape)))
    drawn = draw_negatives(sim, gumbel, own(rows, 4))[torch.arange(len(sim)) % 4 == 0]
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(found, torch.cat([torch.zeros(1), logits[1:].softmax(0)]), atol=0.015, rtol=0)


def test_without_soft_targets_a_loss_is_its_own_at_alpha_0() -> None:
    student, teacher = models()
    batch, queue = make_batch(6, 6), FeatureQueue(10, TINY.embed_dim)
    hard = pretrainer(student, 6)(batch, teacher, queue, 0.0).losses
    for name in ("itc", "mlm"):
        other = "mlm" if name == "itc" else "itc"
        losses = pretrainer(student, 6, **{name: {"soft_targets": False}})(batch, teacher, queue, 0.4).losses
        assert losses[name].item() == pytest.approx(hard[name].item(), rel=1e-6)
        assert losses[other].item() != pytest.approx(hard[other].item(), rel=1e-5)


def test_pairs_of_one_picture_are_each_others_positives_where_asked_in_the_group_and_in_the_queue() -> None:
    (student, teacher), queue = models(), FeatureQueue(6, TINY.embed_dim)
    queue.push(torch.eye(4, TINY.embed_dim), torch.eye(4, TINY.embed_dim).roll(1, dims=0), torch.tensor([2, 9, 0, 9]))
    batch = dataclasses.replace(make_batch(4, 4), image_ids=torch.tensor([0, 2, 0, 7]))
    output = pretrainer(student, 4, itc={"same_image_positives": True})(batch, teacher, queue, 0.0)

    target = torch.cat([batch.image_ids, queue.ids]) == batch.image_ids[:, None]
    assert target.sum(dim=1).tolist() == [3, 2, 3, 1]
    directions = []
    for own, others, ring in (("image", "text", queue.text), ("text", "image", queue.image)):
        step = plain_losses(student, teacher, queue, batch, 0.0, Negatives(torch.tensor([1, 0, 3, 2]), torch.tensor([1, 0, 3, 2])))
        queries = {"image": student.image_feat(student.encode_image(batch.pixels(torch.float32))),
                   "text": student.text_feat(student.encode_text(batch.input_ids, batch.attention_mask))}[own]  # fmt: skip
        keys = torch.cat([{"image": step.teacher_image_feat, "text": step.teacher_text_feat}[others], ring])
        log_probability = (queries @ keys.T / student.temperature).log_softmax(dim=1)
        directions.append(-(log_probability * target / target.sum(dim=1, keepdim=True)).sum(dim=1).mean())
    assert output.losses["itc"].item() == pytest.approx((sum(directions) / 2).item(), rel=1e-5)  # type: ignore[union-attr]


def test_negatives_are_uniform_before_hard_from_step_and_stay_in_their_group() -> None:
    (student, teacher), batch, queue = models(), make_batch(8, 4), FeatureQueue(0, TINY.embed_dim)
    logits = {}
    for step in (9, 10):
        torch.manual_seed(0)
        objective = Pretrainer(student, {"itm": ImageTextMatching(hard_from_step=10)}, 4)
        logits[step] = objective(batch, teacher, queue, 0.0, step=step).losses["itm"].item()
    uniform = (draw_negatives(torch.zeros(8, 4), noise, own(8, 4)) for noise in (batch.gumbel_t2i, batch.gumbel_i2t))
    first = torch.tensor([0, 0, 0, 0, 4, 4, 4, 4])
    given = Negatives(*(first + drawn for drawn in uniform))
    always_hard = Pretrainer(student, {"itm": ImageTextMatching()}, 4)
    assert always_hard(batch, teacher, queue, 0.0, negatives=given).losses["itm"].item() == pytest.approx(logits[9])
    assert always_hard(batch, teacher, queue, 0.0).losses["itm"].item() == pytest.approx(logits[10])
    assert logits[9] != logits[10]
    never_hard = Pretrainer(student, {"itm": ImageTextMatching(hard_from_step=None)}, 4)
    assert never_hard(batch, teacher, queue, 0.0, step=10**9).losses["itm"].item() == pytest.approx(logits[9])


def test_the_temperature_gets_its_gradient_and_is_clamped_as_a_function() -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(4, TINY.embed_dim)
    pretrainer(student, 4)(batch, teacher, queue, 0.4).total.backward()
    assert student.temperature.grad is not None
    assert student.temperature.grad.abs().item() > 0
    with torch.no_grad():
        student.temperature.fill_(3.0)
    assert pretrainer(student, 4)(batch, teacher, queue, 0.4).metrics["temperature"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE / 10, MAX_TEMPERATURE * 2])
def test_a_temperature_beyond_its_bounds_counts_as_the_nearer_one_in_the_fused_step_and_in_the_plain(temperature: float) -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(4, TINY.embed_dim)
    bound = TINY.model_copy(update={"temperature": min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)})
    assert ModelConfig(**bound.model_dump()) == bound
    with pytest.raises(ValueError, match="temperature"):
        ModelConfig(**{**bound.model_dump(), "temperature": temperature})
    negatives, losses = negatives_within(1, 4, (1, 2)), []
    for value in (temperature, bound.temperature):
        with torch.no_grad():
            student.temperature.fill_(value)
        losses += [pretrainer(student, 4)(batch, teacher, queue, 0.4).losses["itc"], plain_losses(student, teacher, queue, batch, 0.4, negatives).losses["itc"]]
    assert [loss.item() for loss in losses] == pytest.approx([losses[-1].item()] * 4, rel=1e-5)


def test_uint8_pictures_are_normalised_with_clips_constants() -> None:
    batch = make_batch(2, 2)
    plain = (batch.images.double() / 255 - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    ).view(3, 1, 1)
    torch.testing.assert_close(batch.pixels(torch.float32), plain.float(), atol=1e-5, rtol=0)


def test_bf16_autocast_stays_close_to_fp32() -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(10, TINY.embed_dim)
    negatives = Negatives(torch.tensor([1, 2, 3, 0]), torch.tensor([1, 2, 3, 0]))
    exact = pretrainer(student, 4)(batch, teacher, queue, 0.4, negatives=negatives).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = pretrainer(student, 4)(batch, teacher, queue, 0.4, negatives=negatives).total
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
