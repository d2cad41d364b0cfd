"""How old ITC's further keys are."""


def oldest_key_steps(queue_size: int, global_batch_size: int, applied_steps: int) -> int:
    """Of the keys in the queue that the next step reads, how many applied steps ago the oldest was made; 0 where there are none.

    While the queue is not full yet, the noise it began with does not count.
    """
    return min(-(-queue_size // global_batch_size), applied_steps)
