"""What ranks tell each other of a step's features, against pushing slice after slice of the global batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import on_each
from tiny_albef import TINY, make_batch, models, pretrainer

from training.distributed import World
from training.engine import push_features
from training.feature_queue import FeatureQueue
from training.objective import StepOutput

RANKS, MICRO_BATCHES, PAIRS, WIDTH = 2, 3, 2, 4


def rows_of(slice_number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image and text features and picture ids of one slice of the global batch."""
    image, text = torch.randn(2, PAIRS, WIDTH, generator=torch.Generator().manual_seed(slice_number))
    return image, text, 2**40 + torch.arange(PAIRS) + PAIRS * slice_number


def output(slice_number: int, with_ids: bool) -> StepOutput:
    image, text, ids = rows_of(slice_number)
    return StepOutput({}, torch.zeros(()), image, text, ids if with_ids else None, {})


def pushed(world: World, size: int, with_ids: bool) -> tuple[FeatureQueue, int]:
    """The queue after a step of this rank, and how often it gathered."""
    gathers, all_gather = [], dist.all_gather_into_tensor
    dist.all_gather_into_tensor = lambda *args: (gathers.append(1), all_gather(*args))
    queue = FeatureQueue(size, WIDTH)
    push_features(queue, world, [output(a * world.world_size + world.rank, with_ids) for a in range(MICRO_BATCHES)])
    dist.all_gather_into_tensor = all_gather
    return queue, len(gathers)


def all_ways(world: World, folder: Path) -> list[tuple[FeatureQueue, int]]:
    return [pushed(world, size, with_ids) for size in (7, 20, 0) for with_ids in (False, True)]


def test_a_step_gathers_features_once_and_ids_where_they_are_read_and_nothing_without_a_queue(tmp_path: Path) -> None:
    for of_rank in on_each(all_ways, tmp_path, RANKS):
        assert [gathers for _, gathers in of_rank] == [1, 2, 1, 2, 0, 0]
        for (queue, _), (size, with_ids) in zip(of_rank, [(size, with_ids) for size in (7, 20, 0) for with_ids in (False, True)], strict=True):
            plain = FeatureQueue(size, WIDTH)
            for number in range(RANKS * MICRO_BATCHES):
                image, text, ids = rows_of(number)
                plain.push(image, text, ids if with_ids else None)
            for name, value in plain.state_dict().items():
                assert torch.equal(torch.as_tensor(queue.state_dict()[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("read", [False, True])
def test_picture_ids_go_to_the_queue_only_where_a_loss_reads_them(read: bool) -> None:
    (student, teacher), batch, queue = models(), make_batch(4, 4), FeatureQueue(10, TINY.embed_dim)
    left = pretrainer(student, 4, itc={"same_image_positives": read})(batch, teacher, queue, 0.4)
    push_features(queue, World(0, 1, torch.device("cpu")), [left])
    assert queue.ids.tolist() == [*([0, 1, 2, 3] if read else [-1] * 4), *[-1] * 6]
    assert torch.equal(queue.text[:4], left.teacher_text_feat)
