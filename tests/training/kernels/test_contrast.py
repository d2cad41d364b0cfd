"""ITC in pieces against the same formulas over one matrix."""

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch import Tensor

from training.kernels.contrast import PictureIds, contrast

GROUP, WIDTH = 4, 6


def features(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1).to(dtype)


def plain(
    queries: Tensor, teacher: Tensor | None, group_keys: Tensor, queue: Tensor, temperature: Tensor, alpha: float, ids: PictureIds | None = None
) -> tuple[Tensor, Tensor]:
    """One softmax over a whole row of similarities a pair, group by group."""
    losses, correct = [], []
    for first in range(0, len(queries), GROUP):
        rows = slice(first, first + GROUP)
        keys = torch.cat([group_keys[rows], queue])
        hard = torch.eye(GROUP, len(keys), dtype=queries.dtype)
        if ids is not None:
            hard = (ids.batch[rows, None] == torch.cat([ids.batch[rows], *ids.further])).to(queries.dtype)
            hard = hard / hard.sum(dim=1, keepdim=True)
        target = (1 - alpha) * hard
        if teacher is not None:
            target = target + alpha * (teacher[rows] @ keys.T / temperature).softmax(dim=1).detach()
        sim = queries[rows] @ keys.T / temperature
        losses.append(-(target * sim.log_softmax(dim=1)).sum(dim=1))
        correct.append(sim.argmax(dim=1) == torch.arange(GROUP))
    return torch.cat(losses), torch.cat(correct)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [0, 1, 37])
@pytest.mark.parametrize("with_ids", [False, True])
def test_losses_gradients_and_accuracy_equal_those_of_the_whole_matrix(alpha: float, size: int, with_ids: bool) -> None:
    queries, temperature = features(12, 0).requires_grad_(), torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    teacher, keys, queue = features(12, 1), features(12, 2), features(size, 3)
    ids = PictureIds(torch.tensor([7, 7, 1, 2, 3, 4, 5, 5, 5, 6, 8, 7]), [torch.arange(size) % 9 - 1]) if with_ids else None
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    for chunk_elements in (1, 60, 10**6):
        found = contrast(queries, teacher, keys, [queue], temperature, alpha, GROUP, ids, chunk_elements)
        wanted, correct = plain(queries, teacher, keys, queue, temperature, alpha, ids)
        torch.testing.assert_close(found.loss, wanted, rtol=1e-9, atol=1e-9)
        assert (found.correct == correct).all()
        ours = torch.autograd.grad(found.loss @ weights, [queries, temperature])
        theirs = torch.autograd.grad(wanted @ weights, [queries, temperature])
        for gradient, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_ids", [False, True])
def test_gradients_equal_finite_differences(with_ids: bool) -> None:
    queries, temperature = features(4, 0).requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    teacher, keys, queue = features(4, 1), features(4, 2), features(9, 3)
    ids = PictureIds(torch.tensor([0, 0, 1, 2]), [torch.arange(9) - 1]) if with_ids else None

    def loss(queries: Tensor, temperature: Tensor) -> Tensor:  # the teacher's side carries no gradient, so its temperature is held
        hard = contrast(queries, None, keys, [queue], temperature, 0.0, GROUP, ids, chunk_elements=8).loss
        sim = queries @ torch.cat([keys, queue]).T / temperature
        soft_target = (teacher @ torch.cat([keys, queue]).T / 0.3).softmax(dim=1)
        return 0.6 * hard - 0.4 * (soft_target * sim.log_softmax(dim=1)).sum(dim=1)

    assert torch.autograd.gradcheck(lambda q, t: contrast(q, None, keys, [queue], t, 0.0, GROUP, ids, chunk_elements=8).loss, (queries, temperature))
    whole = torch.autograd.grad(contrast(queries, teacher, keys, [queue], temperature, 0.4, GROUP, ids, chunk_elements=8).loss.sum(), [queries, temperature])
    for gradient, other in zip(whole, torch.autograd.grad(loss(queries, temperature).sum(), [queries, temperature]), strict=True):
        torch.testing.assert_close(gradient, other)


def test_further_keys_may_come_in_any_number_of_parts() -> None:
    queries, teacher, keys, further = (features(rows, seed) for seed, rows in enumerate((8, 8, 8, 21)))
    ids, further_ids, temperature = torch.arange(8) // 3, torch.arange(21) % 5 - 1, torch.tensor(0.07, dtype=torch.float64)
    whole = contrast(queries, teacher, keys, [further], temperature, 0.4, GROUP, PictureIds(ids, [further_ids]))
    parts, parts_of_ids = further.split([4, 0, 17]), further_ids.split([4, 0, 17])
    found = contrast(queries, teacher, keys, parts, temperature, 0.4, GROUP, PictureIds(ids, parts_of_ids), chunk_elements=40)
    torch.testing.assert_close(found.loss, whole.loss, rtol=1e-12, atol=1e-12)


def test_single_precision_stays_within_1e_5_of_double() -> None:
    inputs, queue = [features(12, seed) for seed in range(3)], features(500, 3)
    exact = contrast(*inputs, [queue], torch.tensor(0.07, dtype=torch.float64), 0.4, GROUP).loss
    rough = contrast(*(tensor.float() for tensor in inputs), [queue.float()], torch.tensor(0.07), 0.4, GROUP, chunk_elements=240).loss
    torch.testing.assert_close(rough.double(), exact, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_reach_the_similarities() -> None:
    inputs, queue = [features(12, seed, torch.float32) for seed in range(3)], features(50, 3, torch.float32)
    outside = contrast(*inputs, [queue], torch.tensor(0.07), 0.4, GROUP).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrast(*inputs, [queue], torch.tensor(0.07), 0.4, GROUP).loss
    assert (inside == outside).all()


@pytest.mark.parametrize("temperature", [0.001, 0.5])
def test_saturated_similarities_leave_finite_losses_and_gradients(temperature: float) -> None:
    queries = features(8, 0, torch.float32).requires_grad_()
    opposite = -queries.detach()
    for keys in (queries.detach(), opposite):
        loss = contrast(queries, queries.detach(), keys, [opposite, opposite], torch.tensor(temperature), 0.4, GROUP, chunk_elements=64).loss
        (gradient,) = torch.autograd.grad(loss.sum(), [queries])
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


def test_no_matrix_of_all_similarities_is_made() -> None:
    pairs, size = 16, 4096
    queries, teacher, keys, queue = (features(rows, seed, torch.float32) for seed, rows in enumerate((pairs, pairs, pairs, size)))
    with LargestTensor() as largest:
        contrast(queries.requires_grad_(), teacher, keys, [queue], torch.tensor(0.07), 0.4, GROUP, chunk_elements=1024).loss.sum().backward()
    assert largest.elements <= 1024 < pairs * size
