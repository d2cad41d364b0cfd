"""MLM's head and cross-entropy in pieces against the same formulas over all logits."""

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch import Tensor

from training.kernels.vocabulary import Decoder, vocabulary_cross_entropy

WORDS, WIDTH = 50, 6


def decoder(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    return Decoder(*(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((rows, WIDTH), (WORDS, WIDTH), (WORDS,))))


def trainable(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Decoder:
    return Decoder(*(tensor.requires_grad_() for tensor in decoder(rows, seed, dtype)))


def plain(student: Decoder, teacher: Decoder, labels: Tensor, row_weights: Tensor, alpha: float) -> Tensor:
    logits = F.linear(*student)
    hard = F.cross_entropy(logits, labels, reduction="none")
    soft = -(F.linear(*teacher).softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)
    return ((1 - alpha) * hard + alpha * soft) @ row_weights


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 11])
def test_loss_and_gradients_equal_those_of_all_logits(alpha: float, rows: int) -> None:
    student, teacher = trainable(rows, 0), decoder(rows, 1)
    labels, row_weights = torch.arange(rows) * 7 % WORDS, torch.linspace(0.1, 1, rows, dtype=torch.float64)
    wanted = plain(student, teacher, labels, row_weights, alpha)
    for chunk_elements in (1, 3 * WORDS, 10**6):
        found = vocabulary_cross_entropy(student, teacher, labels, row_weights, alpha, chunk_elements)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        ours, theirs = torch.autograd.grad(3 * found, list(student)), torch.autograd.grad(3 * wanted, list(student), retain_graph=True)
        for gradient, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gradients_equal_finite_differences(alpha: float) -> None:
    teacher, labels, row_weights = decoder(5, 1), torch.tensor([0, 3, 3, 49, 7]), torch.full((5,), 0.2, dtype=torch.float64)

    def loss(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return vocabulary_cross_entropy(Decoder(states, weight, bias), teacher, labels, row_weights, alpha, 2 * WORDS)

    assert torch.autograd.gradcheck(loss, tuple(trainable(5, 0)))


def test_single_precision_stays_within_1e_5_of_double() -> None:
    labels, row_weights = torch.arange(30) % WORDS, torch.full((30,), 1 / 30)
    exact = vocabulary_cross_entropy(decoder(30, 0), decoder(30, 1), labels, row_weights.double(), 0.4)
    rough = vocabulary_cross_entropy(decoder(30, 0, torch.float32), decoder(30, 1, torch.float32), labels, row_weights, 0.4, 4 * WORDS)
    assert rough.item() == pytest.approx(exact.item(), rel=1e-5)


def test_autocast_rounds_the_products_and_not_the_softmax() -> None:
    student, teacher, labels = trainable(30, 0, torch.float32), decoder(30, 1, torch.float32), torch.arange(30) % WORDS
    row_weights = torch.full((30,), 1 / 30)
    exact = vocabulary_cross_entropy(student, teacher, labels, row_weights, 0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = vocabulary_cross_entropy(student, teacher, labels, row_weights, 0.4)
    assert rough.dtype == torch.float32
    assert 0 < abs(rough.item() - exact.item()) < 0.01 * exact.item()
    for gradient, other in zip(torch.autograd.grad(rough, list(student)), torch.autograd.grad(exact, list(student)), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - other).norm() < 0.02 * other.norm()


def test_saturated_logits_leave_a_finite_loss_and_finite_gradients() -> None:
    student, teacher = (Decoder(*(1e4 * tensor.detach() for tensor in decoder(8, seed, torch.float32))) for seed in (0, 1))
    student = Decoder(*(tensor.requires_grad_() for tensor in student))
    loss = vocabulary_cross_entropy(student, teacher, torch.arange(8), torch.full((8,), 1 / 8), 0.4)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, list(student)))


def test_logits_of_all_rows_are_never_there() -> None:
    rows, student, teacher = 40, trainable(40, 0, torch.float32), decoder(40, 1, torch.float32)
    with LargestTensor() as largest:
        vocabulary_cross_entropy(student, teacher, torch.arange(rows), torch.full((rows,), 1 / rows), 0.4, 4 * WORDS).backward()
    assert largest.elements <= WORDS * WIDTH < rows * WORDS  # the decoder's weight
