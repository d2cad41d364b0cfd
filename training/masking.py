"""Random draws of a training step, keyed by item: MLM masks, the Gumbel noise of hard negatives, and the patches that are kept."""

import numpy as np
from jaxtyping import Float, Int, UInt64

from shards.random_stream import uniforms

IGNORED = -100  # label of a position MLM does not predict

# Streams of the items' counter hash; those below 100 belong to the loader.
MLM_SELECT, MLM_REPLACE, MLM_WORD, GUMBEL_I2T, GUMBEL_T2I, PATCHES = range(101, 107)

Keys = UInt64[np.ndarray, " b"]
Ids = Int[np.ndarray, "b l"]


def mask_tokens(item_keys: Keys, input_ids: Ids, *, probability: float, vocab_size: int, cls_id: int, pad_id: int, mask_id: int) -> tuple[Ids, Ids]:
    """`(masked_ids, labels)`: each token but [CLS] and padding is selected with `probability`.

    Of the selected, 80 % become [MASK], 10 % a word drawn uniformly from the whole vocabulary, 10 % stay as they are.
    """
    length = input_ids.shape[1]
    selectable = (input_ids != cls_id) & (input_ids != pad_id)
    selected = selectable & (uniforms(item_keys, MLM_SELECT, length) < probability)
    replace = uniforms(item_keys, MLM_REPLACE, length)
    words = np.minimum((uniforms(item_keys, MLM_WORD, length) * vocab_size).astype(np.int64), vocab_size - 1)
    masked = np.where(selected & (replace < 0.8), mask_id, input_ids)
    masked = np.where(selected & (replace >= 0.8) & (replace < 0.9), words, masked)
    return masked, np.where(selected, input_ids, IGNORED)


def gumbel_noise(item_keys: Keys, group_size: int) -> tuple[Float[np.ndarray, "b g"], Float[np.ndarray, "b g"]]:
    """Float32 noise `(i2t, t2i)`: the argmax of logits + noise is a draw from their softmax (the Gumbel-max trick)."""
    i2t, t2i = (-np.log(-np.log(uniforms(item_keys, stream, group_size))) for stream in (GUMBEL_I2T, GUMBEL_T2I))
    return i2t.astype(np.float32), t2i.astype(np.float32)


def kept_patches(item_keys: Keys, num_patches: int, num_kept: int) -> Int[np.ndarray, "b k"]:
    """For each item `num_kept` of its patches, drawn without repetition and in ascending order: numbers from 0 to num_patches - 1."""
    return np.sort(np.argsort(uniforms(item_keys, PATCHES, num_patches), axis=1)[:, :num_kept], axis=1)
