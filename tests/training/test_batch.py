"""A batch keeps what the host counted of it, wherever its tensors are."""

import dataclasses

import pytest
import torch
from tiny_albef import ragged_batch
from torch import Tensor

from training.batch import Batch


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    packing = batch.packing
    grids = {"tokens": packing.tokens, "predicted": packing.predicted}
    named = {**vars(batch), "predicted_slots": packing.predicted_slots, "mlm_tokens": packing.mlm_tokens}
    named |= {f"{name}.{field}": value for name, grid in grids.items() for field, value in vars(grid).items()}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def test_other_texts_are_counted_and_packed_anew() -> None:
    batch = ragged_batch(12, 6)
    labels = torch.full_like(batch.mlm_labels, -100).index_fill(1, torch.tensor(0), 7)
    other = dataclasses.replace(batch, attention_mask=torch.ones_like(batch.attention_mask), mlm_labels=labels)
    assert len(other.packing.tokens) == batch.input_ids.numel() > len(batch.packing.tokens)
    assert other.mlm_positions.tolist() == list(range(0, batch.input_ids.numel(), batch.input_ids.shape[1]))


def test_moving_a_batch_counts_nothing() -> None:
    batch = ragged_batch(12, 6)
    moved = batch.to("meta")  # where counting is an error
    assert all(value.device.type == "meta" for value in tensors_of(moved).values())
    assert {name: value.shape for name, value in tensors_of(moved).items()} == {name: value.shape for name, value in tensors_of(batch).items()}
    assert moved.sample_keys == batch.sample_keys


def test_pinning_asks_for_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(tensor) or tensor.clone())
    batch = ragged_batch(12, 6)
    pinned = batch.pinned()
    assert {id(tensor) for tensor in asked} == {id(tensor) for tensor in tensors_of(batch).values()}
    assert not {id(tensor) for tensor in asked} & {id(tensor) for tensor in tensors_of(pinned).values()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_tensors_of_a_pinned_batch_are_pinned_and_laid_out_as_before() -> None:
    batch = dataclasses.replace(ragged_batch(12, 6), images=torch.zeros(12, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
    pinned = batch.pinned()
    for name, value in tensors_of(batch).items():
        assert tensors_of(pinned)[name].is_pinned(), name
        assert torch.equal(tensors_of(pinned)[name], value)
        assert tensors_of(pinned)[name].stride() == value.stride()
