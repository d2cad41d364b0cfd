"""Batches at the edge of what is possible, through the whole objective and real optimizer steps: everything stays finite, nothing raises."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from shards.item_maker import Item, MadeItems
from training.batch import Batch
from training.data import Collate
from training.feature_queue import FeatureQueue
from training.losses import LOSSES
from training.model import Albef
from training.model_config import ModelConfig
from training.objective import Pretrainer, StepOutput
from training.optim import parameter_groups
from training.step import Step
from training.tokenizer import train_vocabulary

CAPTIONS = ["a red dog on the grass", "two cats", "a man with a blue hat and a dog", "grass"]
TOKENIZER = train_vocabulary(CAPTIONS * 20, 100)
TINY = ModelConfig(
    image_size=32, vision_width=32, vision_depth=1, vision_heads=2, text_hidden=24, text_heads=2, text_layers=1, fusion_layers=2, text_intermediate=48,
    vocab_size=TOKENIZER.vocab_size, max_positions=16, hidden_dropout=0.0, attention_dropout=0.0, embed_dim=8, init_std=0.2,
)  # fmt: skip
ALPHA = 0.4


def collated(captions: list[str], pictures: list[int], group_size: int, mlm_probability: float = 0.4) -> Batch:
    """What the loader's collate makes of these captions beside these pictures."""
    images = np.stack([np.random.default_rng(picture).integers(0, 256, (32, 32, 3), dtype=np.uint8) for picture in pictures])
    items = [
        Item(key=1000 + row, sample_key=f"{picture:05d}", sample=picture, caption_index=0, image=images[row], caption=caption)
        for row, (caption, picture) in enumerate(zip(captions, pictures, strict=True))
    ]
    return Collate(TOKENIZER, max_tokens=12, mlm_probability=mlm_probability, group_size=group_size)(MadeItems(items, images))


def trained(
    batch: Batch, group_size: int, *, queue_size: int = 6, bf16: bool = False, temperature: float = 0.07, steps: int = 3, **options: dict[str, object]
) -> list[StepOutput]:
    """The outputs of a few steps with AdamW, teacher and queue; asserts that losses, gradients and weights are finite."""
    torch.manual_seed(0)
    student = Albef(TINY.model_copy(update={"temperature": temperature}))
    teacher = Albef(TINY).requires_grad_(False).eval()
    teacher.load_state_dict(student.state_dict())
    queue = FeatureQueue(queue_size, TINY.embed_dim)
    pretrainer = Pretrainer(student, {name: loss(**options.get(name, {})) for name, loss in LOSSES.items()}, group_size)
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.02), lr=1e-3)
    outputs = []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = pretrainer(batch, teacher, queue, ALPHA, step=step)
        output.total.backward()
        assert all(torch.isfinite(value) for value in (*output.losses.values(), *output.metrics.values(), output.total)), output.losses
        assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters() if parameter.grad is not None)
        optimizer.step()
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.1)
        queue.push(output.teacher_image_feat, output.teacher_text_feat, batch.image_ids)
        outputs.append(output)
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    return outputs


@pytest.fixture(params=[False, True], ids=["fp32", "bf16"])
def bf16(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("queue_size", [0, 6])
def test_one_sample_is_matched_with_itself_and_has_no_negatives(bf16: bool, queue_size: int) -> None:
    first = trained(collated(CAPTIONS[:1], [0], 1), 1, queue_size=queue_size, bf16=bf16)[0]
    if queue_size == 0:
        assert first.losses["itc"].item() == pytest.approx(0, abs=1e-6)  # a choice among one


def test_the_itm_loss_of_one_sample_is_a_third_of_its_positive() -> None:
    batch = collated(CAPTIONS[:1], [0], 1)
    torch.manual_seed(0)
    student = Albef(TINY)
    output = Pretrainer(student, {"itm": LOSSES["itm"]()}, 1)(batch, student, FeatureQueue(0, TINY.embed_dim), 0.0)
    embeds = student.encode_text(batch.input_ids, batch.attention_mask)
    positive = student.itm_head(student.fuse(embeds, batch.attention_mask, student.encode_image(batch.pixels(torch.float32)))[:, 0])
    assert output.losses["itm"].item() == pytest.approx(-positive.log_softmax(dim=1)[0, 1].item() / 3, rel=1e-5)


@pytest.mark.parametrize("apart", [True, False])
def test_all_the_same_picture(bf16: bool, apart: bool) -> None:
    trained(collated(CAPTIONS, [7] * 4, 4), 4, bf16=bf16, itm={"same_image_negatives": apart}, itc={"same_image_positives": not apart})


def test_all_the_same_pair(bf16: bool) -> None:
    trained(collated([CAPTIONS[0]] * 4, [7] * 4, 4), 4, bf16=bf16)


def test_empty_captions_are_the_first_token_alone(bf16: bool) -> None:
    batch = collated([""] * 4, [0, 1, 2, 3], 4)
    assert batch.attention_mask.sum(dim=1).tolist() == [1] * 4
    outputs = trained(batch, 4, bf16=bf16)
    assert [output.losses["mlm"].item() for output in outputs] == [0.0] * 3


def test_one_empty_caption_among_others(bf16: bool) -> None:
    trained(collated(["", *CAPTIONS[1:]], [0, 1, 2, 3], 2), 2, bf16=bf16)


def test_nothing_masked(bf16: bool) -> None:
    batch = collated(CAPTIONS, [0, 1, 2, 3], 2, mlm_probability=1e-9)
    assert (batch.mlm_labels == -100).all()
    outputs = trained(batch, 2, bf16=bf16)
    assert [output.losses["mlm"].item() for output in outputs] == [0.0] * 3


@pytest.mark.parametrize("pictures", [[0, 1, 2, 3], [7, 7, 7, 7]])
def test_similarity_saturated_at_the_lowest_temperature(bf16: bool, pictures: list[int]) -> None:
    outputs = trained(collated(CAPTIONS, pictures, 4), 4, bf16=bf16, temperature=0.001)
    assert outputs[0].metrics["temperature"].item() == pytest.approx(0.001)


def test_all_of_it_at_once(bf16: bool) -> None:
    for options in itertools.product([True, False], repeat=3):
        choices = {"itm": {"same_image_negatives": options[0]}, "mlm": {"soft_targets": options[1]}, "itc": {"same_image_positives": options[2]}}
        trained(collated([""], [7], 1), 1, queue_size=0, bf16=bf16, temperature=0.001, **choices)


def test_captions_of_the_pairs_own_picture_are_never_drawn_where_they_are_no_negatives() -> None:
    pictures = [3, 3, 5, 8, 8, 8, 1, 2]
    torch.manual_seed(0)
    student = Albef(TINY)
    queue = FeatureQueue(0, TINY.embed_dim)
    matching = LOSSES["itm"](same_image_negatives=False)
    for seed in range(20):
        batch = collated([CAPTIONS[row % 4] for row in range(8)], pictures, 4)
        noise = -torch.log(-torch.log(torch.rand((2, 8, 4), generator=torch.Generator().manual_seed(seed))))
        step = Step(dataclasses.replace(batch, gumbel_i2t=noise[0], gumbel_t2i=noise[1]), student, student, queue, 0.0, 4, 0)
        _, wrong_pictures, wrong_texts = matching.fusion_rows(step)
        assert wrong_pictures.image is not None
        assert wrong_texts.text is not None
        for row, partner in [*enumerate(wrong_pictures.image.tolist()), *enumerate(wrong_texts.text.tolist())]:
            assert pictures[row] != pictures[partner]
            assert row // 4 == partner // 4


def test_under_patch_dropout_the_student_sees_the_kept_patches_and_the_teacher_all(bf16: bool) -> None:
    collate = Collate(TOKENIZER, 12, 0.4, 4, num_patches=4, num_kept_patches=1)
    batch = collated(CAPTIONS, [0, 1, 2, 3], 4)
    items = [Item(1000 + row, "", row, 0, picture, CAPTIONS[row]) for row, picture in enumerate(batch.images.permute(0, 2, 3, 1).numpy())]
    thinned = collate(MadeItems(items, batch.images.permute(0, 2, 3, 1).numpy()))
    assert thinned.kept_patches is not None
    assert thinned.kept_patches.shape == (4, 1)
    student = Albef(TINY)
    step = Step(thinned, student, student, FeatureQueue(0, TINY.embed_dim), 0.0, 4, 0)
    assert (step.image_embeds.shape[1], step.teacher_image_embeds.shape[1]) == (2, 5)
    trained(thinned, 4, bf16=bf16)
