"""MLM masks and Gumbel noise: what may be selected, how often, and that only the item decides."""

import numpy as np
import pytest

from training.masking import IGNORED, gumbel_noise, kept_patches, mask_tokens

PAD, CLS, MASK, VOCAB = 0, 2, 4, 1000


def texts(rows: int, length: int) -> np.ndarray:
    ids = np.random.default_rng(0).integers(5, VOCAB, (rows, length))
    ids[:, 0] = CLS
    ids[1::2, length // 2 :] = PAD
    return ids


def keys(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**63, rows).astype(np.uint64)


def masked(item_keys: np.ndarray, ids: np.ndarray, probability: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    return mask_tokens(item_keys, ids, probability=probability, vocab_size=VOCAB, cls_id=CLS, pad_id=PAD, mask_id=MASK)


def test_cls_and_padding_are_never_selected() -> None:
    ids = texts(40, 20)
    hidden, labels = masked(keys(40), ids, probability=0.999)
    special = (ids == CLS) | (ids == PAD)
    assert (labels[special] == IGNORED).all()
    assert (hidden[special] == ids[special]).all()
    assert (labels[~special] != IGNORED).mean() > 0.99


def test_unselected_tokens_stay_and_labels_are_the_original_ids() -> None:
    ids = texts(200, 20)
    hidden, labels = masked(keys(200), ids)
    selected = labels != IGNORED
    assert (hidden[~selected] == ids[~selected]).all()
    assert (labels[selected] == ids[selected]).all()


def test_shares_are_15_percent_of_which_80_10_10() -> None:
    ids = texts(4000, 25)
    hidden, labels = masked(keys(4000), ids)
    selected = labels != IGNORED
    assert selected.sum() / ((ids != CLS) & (ids != PAD)).sum() == pytest.approx(0.15, abs=0.01)
    became, were = hidden[selected], ids[selected]
    assert (became == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (became == were).mean() == pytest.approx(0.1, abs=0.015)
    words = became[(became != MASK) & (became != were)]
    assert len(words) / len(were) == pytest.approx(0.1, abs=0.015)
    assert words.mean() == pytest.approx(VOCAB / 2, rel=0.06)
    assert 0 <= words.min() < words.max() < VOCAB


def test_an_items_mask_depends_on_its_key_and_not_on_its_neighbours_or_the_padding() -> None:
    ids, item_keys = texts(6, 12), keys(6)
    hidden, labels = masked(item_keys, ids, 0.5)
    padded = np.pad(ids, ((0, 0), (0, 7)), constant_values=PAD)
    alone, alone_labels = masked(item_keys[3:4], padded[3:4], 0.5)
    assert (alone[0, :12] == hidden[3]).all()
    assert (alone_labels[0, :12] == labels[3]).all()
    assert (masked(item_keys[::-1].copy(), ids, 0.5)[1] != labels).any()


def test_gumbel_noise_has_the_distribution_it_is_named_for_and_depends_on_the_item_alone() -> None:
    item_keys = keys(500)
    i2t, t2i = gumbel_noise(item_keys, 64)
    assert i2t.dtype == t2i.dtype == np.float32
    for noise in (i2t, t2i):
        assert np.isfinite(noise).all()
        assert noise.mean() == pytest.approx(0.5772, abs=0.03)
        assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.06)
    assert abs(np.corrcoef(i2t.ravel(), t2i.ravel())[0, 1]) < 0.02
    assert (gumbel_noise(item_keys[7:9], 64)[0] == i2t[7:9]).all()


def test_kept_patches_are_distinct_ordered_and_equally_likely_and_depend_on_the_item_alone() -> None:
    item_keys = keys(4000)
    kept = kept_patches(item_keys, 16, 4)
    assert kept.shape == (4000, 4)
    assert (np.diff(kept, axis=1) > 0).all()
    shares = np.bincount(kept.ravel(), minlength=16) / 4000
    assert len(shares) == 16
    assert shares == pytest.approx(np.full(16, 0.25), abs=0.03)
    assert (kept_patches(item_keys[7:9], 16, 4) == kept[7:9]).all()
