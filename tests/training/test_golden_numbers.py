"""One step and three steps of the original code, dropout off, fp32: losses, logits, gradients, teacher, queue and weights must be the same.

Both ways to take a step are held against them: the fused one, which trains, and the plain one, which the fused one is compared with elsewhere.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.app.bench.plain_step import age, plain_losses
from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.losses import LOSSES
from training.model import Albef
from training.model_config import ModelConfig
from training.objective import Pretrainer, StepOutput
from training.optim import parameter_groups
from training.step import Negatives, Step
from training.weights import Published, import_published
from training.weights.names import STUDENT, VARIANTS, key_table

DATA = Path(__file__).parents[1] / "data"
MOMENTUM = 0.995
WAYS = ["fused", "plain"]


def published_keys(sizes: ModelConfig) -> dict[str, str]:
    """Our student's parameters -> their keys in a published pre-training file; of two keys the first."""
    table = key_table(VARIANTS["pretrain"], sizes)
    return {ours.removeprefix(STUDENT): theirs for theirs, ours in reversed(table.items()) if ours.startswith(STUDENT)}


class Golden:
    """One golden folder: its checkpoint in our model, its inputs and its expected numbers."""

    def __init__(self, name: str) -> None:
        self.expected: dict[str, Any] = json.loads((DATA / name / "expected.json").read_text())
        self.tensors = load_file(DATA / name / "expected.safetensors")
        sizes = self.expected["config"]
        self.published: Published = import_published(str(DATA / name / "checkpoint.pth"), vision_heads=sizes["vheads"], text_heads=sizes["heads"])
        config = self.published.config.model_copy(update={"hidden_dropout": 0.0, "attention_dropout": 0.0})
        self.group_size: int = sizes["B"]
        self.student, self.teacher = Albef(config), Albef(config).requires_grad_(False).eval()
        self.student.load_state_dict(self.published.student)
        assert self.published.teacher is not None
        assert self.published.queue is not None
        self.teacher.load_state_dict(self.published.teacher)
        self.queue = FeatureQueue(sizes["queue"], config.embed_dim)
        self.queue.load_state_dict(self.published.queue)

    def name(self, ours: str) -> str:
        """The published name as the original's named_parameters() gives it (the decoder's bias has two names there)."""
        return published_keys(self.student.config)[ours]

    def batch(self, inputs: str, masks: str) -> Batch:
        t, b = self.tensors, self.group_size
        return Batch(
            images=t[f"{inputs}.image"],
            input_ids=t[f"{inputs}.input_ids"],
            attention_mask=t[f"{inputs}.attention_mask"],
            masked_ids=t[f"{masks}.masked_input_ids"],
            mlm_labels=t[f"{masks}.mlm_labels"],
            gumbel_i2t=torch.zeros(b, b),
            gumbel_t2i=torch.zeros(b, b),
            item_keys=np.arange(b, dtype=np.uint64),
            sample_keys=[str(i) for i in range(b)],
        )

    def run(self, batch: Batch, alpha: float, drawn: dict[str, list[int]], way: str = "fused") -> StepOutput:
        """One forward pass; like the original, the teacher moves before its features are used."""
        age(self.teacher, self.student, MOMENTUM)
        if way == "plain":
            losses, image_feat, text_feat = plain_losses(self.student, self.teacher, self.queue, batch, alpha, negatives(drawn))
            return StepOutput(losses, torch.stack(list(losses.values())).sum(), image_feat, text_feat, None, {})
        pretrainer = Pretrainer(self.student, {name: loss() for name, loss in LOSSES.items()}, self.group_size)
        output: StepOutput = pretrainer(batch, self.teacher, self.queue, alpha, negatives=negatives(drawn))
        return output


def negatives(drawn: dict[str, list[int]]) -> Negatives:
    return Negatives(torch.tensor(drawn["negative_image_for_text"]), torch.tensor(drawn["negative_text_for_image"]))


def push(queue: FeatureQueue, output: StepOutput) -> None:
    assert output.teacher_image_feat is not None
    assert output.teacher_text_feat is not None
    queue.push(output.teacher_image_feat, output.teacher_text_feat)


def without_copies(golden: Golden, model: Albef) -> dict[str, Tensor]:
    return {golden.name(ours): parameter for ours, parameter in model.named_parameters()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_losses_of_one_step_equal_the_originals(alpha: float, way: str) -> None:
    golden = Golden("albef_tiny")
    expected = golden.expected["results"][f"alpha{alpha}"]
    output = golden.run(golden.batch("input", f"alpha{alpha}"), alpha, expected, way)
    for name in LOSSES:
        assert output.losses[name].item() == pytest.approx(expected[f"loss_{name}"], rel=1e-5)
    assert output.total.item() == pytest.approx(expected["loss_total"], rel=1e-5)


def test_features_and_matching_logits_equal_the_originals() -> None:
    golden = Golden("albef_tiny")
    batch, student = golden.batch("input", "alpha0.4"), golden.student
    step = Step(batch, student, golden.teacher, golden.queue, 0.4, 4, 0, negatives(golden.expected["results"]["alpha0.4"]))
    assert step.texts.clean is not None
    text_embeds = batch.packing.tokens.pad(step.texts.clean)
    ours = {
        "out.image_embeds": step.image_embeds,
        "out.text_embeds": text_embeds,
        "out.image_feat": step.image_feat,
        "out.text_feat": step.text_feat,
        "out.fusion_embeds": student.fuse(text_embeds, batch.attention_mask, step.image_embeds),
        "alpha0.4.itm_logits": student.itm_head(torch.cat(step.fuse(LOSSES["itm"]().fusion_rows(step)))),
    }
    real = batch.attention_mask.bool()
    for name, value in ours.items():
        wanted = golden.tensors[name]
        if "text_embeds" in name or "fusion" in name:
            value, wanted = value[real], wanted[real]
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gradient_norms_equal_the_originals(alpha: float, way: str) -> None:
    golden = Golden("albef_tiny")
    expected = golden.expected["results"][f"alpha{alpha}"]
    golden.run(golden.batch("input", f"alpha{alpha}"), alpha, expected, way).total.backward()
    wanted = expected["grad_norm"]
    floor = 1e-6 * float(np.linalg.norm(list(wanted.values())))
    found = {name: parameter.grad.norm().item() for name, parameter in without_copies(golden, golden.student).items() if parameter.grad is not None}
    assert set(found) == set(wanted)
    for name, norm in wanted.items():
        assert abs(found[name] - norm) <= 1e-3 * max(norm, floor), name


@pytest.mark.parametrize("way", WAYS)
def test_stored_gradients_equal_the_originals_element_by_element(way: str) -> None:
    golden = Golden("albef_tiny")
    golden.run(golden.batch("input", "alpha0.4"), 0.4, golden.expected["results"]["alpha0.4"], way).total.backward()
    parameters = without_copies(golden, golden.student)
    for name in [name for name in golden.tensors if name.startswith("grad.")]:
        gradient, wanted = parameters[name.removeprefix("grad.")].grad, golden.tensors[name]
        assert gradient is not None
        assert (gradient.reshape(wanted.shape) - wanted).norm() <= 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("way", WAYS)
def test_teacher_and_queue_after_the_step_equal_the_originals(way: str) -> None:
    golden = Golden("albef_tiny")
    output = golden.run(golden.batch("input", "alpha0.4"), 0.4, golden.expected["results"]["alpha0.4"], way)
    push(golden.queue, output)
    torch.testing.assert_close(golden.queue.image, golden.tensors["after.image_queue"].T, atol=1e-6, rtol=0)
    torch.testing.assert_close(golden.queue.text, golden.tensors["after.text_queue"].T, atol=1e-6, rtol=0)
    assert golden.queue.position == int(golden.tensors["after.queue_ptr"])
    found = without_copies(golden, golden.teacher)
    for name, norm in golden.expected["after_momentum_norm"].items():
        root, _, rest = name.partition(".")
        ours = f"{root.removesuffix('_m')}.{rest}"
        if ours in found:
            assert found[ours].norm().item() == pytest.approx(norm, rel=1e-6), name


@pytest.mark.parametrize("way", WAYS)
def test_three_optimizer_steps_equal_the_originals(way: str) -> None:
    golden = Golden("albef_three_steps")
    start = copy.deepcopy(golden.student), copy.deepcopy(golden.teacher)
    recipe = golden.expected["optimizer"]
    adamw = torch.optim.AdamW(parameter_groups(golden.student, recipe["weight_decay"]), lr=recipe["lr"], betas=recipe["betas"], eps=recipe["eps"])
    for number, expected in enumerate(golden.expected["steps"]):
        output = golden.run(golden.batch(f"step{number}", f"step{number}"), expected["alpha"], expected, way)
        for name in LOSSES:
            assert output.losses[name].item() == pytest.approx(expected[f"loss_{name}"], rel=1e-5), (number, name)
        adamw.zero_grad()
        output.total.backward()
        adamw.step()
        push(golden.queue, output)
        assert golden.student.temperature.item() == pytest.approx(expected["temperature_after"], rel=1e-5)
    _assert_moved_alike(golden, "", start[0], golden.student)
    _assert_moved_alike(golden, "_m", start[1], golden.teacher)
    torch.testing.assert_close(golden.queue.image, golden.tensors["after.image_queue"].T, atol=1e-5, rtol=0)
    torch.testing.assert_close(golden.queue.text, golden.tensors["after.text_queue"].T, atol=1e-5, rtol=0)


def _assert_moved_alike(golden: Golden, suffix: str, before: Albef, after: Albef) -> None:
    """Distance to the expected weights, relative to how far they moved."""
    old, new = without_copies(golden, before), without_copies(golden, after)
    compared = 0
    for name, parameter in new.items():
        root, _, rest = name.partition(".")
        wanted = golden.tensors.get(f"after.{root}{suffix}.{rest}" if rest else f"after.{name}{suffix}")
        if wanted is None:
            continue
        moved = (wanted - old[name].reshape(wanted.shape)).norm()
        assert (parameter.reshape(wanted.shape) - wanted).norm() <= 1e-3 * moved, name + suffix
        compared += 1
    assert compared >= 2
