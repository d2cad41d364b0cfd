"""The oldest key's age against the queue itself, whose rows carry the step that made them."""

import pytest
import torch

from training.feature_queue import UNKNOWN, FeatureQueue
from training.hooks.queue_age import oldest_key_steps


@pytest.mark.parametrize(("queue_size", "global_batch_size"), [(24, 16), (32, 16), (8, 16), (7, 1), (0, 4)])
def test_the_age_is_that_of_the_oldest_row_in_the_queue(queue_size: int, global_batch_size: int) -> None:
    queue = FeatureQueue(queue_size, 2)
    for step in range(1, 12):
        made = queue.ids[queue.ids != UNKNOWN]
        oldest = step - int(made.min()) if len(made) else 0
        assert oldest_key_steps(queue_size, global_batch_size, applied_steps=step - 1) == oldest
        features = torch.zeros(global_batch_size, 2)
        queue.push(features, features, torch.full((global_batch_size,), step))
