"""The feature queue against a plain list that drops its oldest rows."""

import pytest
import torch

from pipeline.core.errors import DataError
from training.feature_queue import FeatureQueue


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [7], [10], [4, 23, 5], [1] * 25])
def test_any_batch_size_overwrites_the_oldest_rows(sizes: list[int]) -> None:
    queue = FeatureQueue(10, 4)
    rows: list[torch.Tensor] = list(queue.image.clone())
    for size in sizes:
        images, texts = torch.randn(2, size, 4)
        queue.push(images, texts)
        rows = [*rows, *images][-10:]
        assert torch.equal(queue.text[(queue.position - 1) % 10], texts[-1])
    oldest_first = torch.roll(queue.image, -queue.position, dims=0)
    assert torch.equal(oldest_first, torch.stack(rows))
    assert queue.position == sum(sizes) % 10


def test_pushing_in_two_halves_equals_pushing_at_once() -> None:
    images, texts = torch.randn(2, 13, 4)
    at_once, in_halves = FeatureQueue(10, 4), FeatureQueue(10, 4)
    at_once.push(images, texts)
    in_halves.push(images[:6], texts[:6])
    in_halves.push(images[6:], texts[6:])
    assert torch.equal(at_once.image, in_halves.image)
    assert at_once.position == in_halves.position


def test_a_fresh_queue_is_unit_vectors_from_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = FeatureQueue(8, 4, seed=3)
    torch.manual_seed(2)
    second = FeatureQueue(8, 4, seed=3)
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.image, first.text)
    torch.testing.assert_close(first.image.norm(dim=1), torch.ones(8))


def test_a_queue_of_no_rows_accepts_features_and_stays_empty() -> None:
    queue = FeatureQueue(0, 4)
    queue.push(torch.randn(3, 4), torch.randn(3, 4))
    assert (queue.size, queue.position) == (0, 0)


def test_a_restored_queue_goes_on_where_it_was() -> None:
    queue, restored = FeatureQueue(8, 4), FeatureQueue(8, 4, seed=9)
    queue.push(torch.randn(5, 4), torch.randn(5, 4), torch.arange(5))
    restored.load_state_dict(queue.state_dict())
    assert torch.equal(restored.text, queue.text)
    assert torch.equal(restored.ids, queue.ids)
    assert restored.position == 5


def test_each_row_keeps_the_id_of_its_picture_and_a_row_without_one_is_like_no_other() -> None:
    queue = FeatureQueue(6, 4)
    assert queue.ids.tolist() == [-1] * 6
    queue.push(torch.randn(4, 4), torch.randn(4, 4), torch.tensor([7, 7, 8, 2**40]))
    assert queue.ids.tolist() == [7, 7, 8, 2**40, -1, -1]
    queue.push(torch.randn(3, 4), torch.randn(3, 4))
    assert queue.ids.tolist() == [-1, 7, 8, 2**40, -1, -1]
    queue.push(torch.randn(8, 4), torch.randn(8, 4), torch.arange(8))
    assert sorted(queue.ids.tolist()) == [2, 3, 4, 5, 6, 7]


def test_a_queue_saved_without_ids_is_restored_with_none() -> None:
    queue = FeatureQueue(6, 4)
    queue.push(torch.randn(2, 4), torch.randn(2, 4), torch.tensor([1, 2]))
    queue.load_state_dict({name: ring for name, ring in FeatureQueue(6, 4, seed=1).state_dict().items() if name != "ids"})
    assert queue.ids.tolist() == [-1] * 6


def test_a_queue_of_another_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(DataError, match=r"\(8, 4\), this run's is \(6, 4\)"):
        FeatureQueue(6, 4).load_state_dict(FeatureQueue(8, 4).state_dict())
