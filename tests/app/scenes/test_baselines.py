import random

import numpy as np
import pytest

from pipeline.app.scenes.baselines import oracle_scores, recalls, retrieval_baselines
from pipeline.app.scenes.captions import Caption, Claim, Phrase, held_out_captions
from pipeline.app.scenes.world import Scene, Thing, make_world


def test_the_oracle_reaches_the_promised_scores_and_the_blind_ones_do_not() -> None:
    scenes = make_world(0, 250, 250).held_out["test"]
    captions = [held_out_captions(scene, random.Random(index)) for index, scene in enumerate(scenes)]
    rows = retrieval_baselines(scenes, captions)
    assert rows["symbolic oracle"]["image_recall@1"] >= 85
    assert rows["symbolic oracle"]["text_recall@1"] >= 90
    assert rows["background and count"]["image_recall@1"] < 15
    assert rows["chance"] == {
        "text_recall@1": 0.4,
        "text_recall@5": pytest.approx(1.99, abs=0.01),
        "text_recall@10": pytest.approx(3.94, abs=0.02),
        "image_recall@1": 0.4,
        "image_recall@5": 2.0,
        "image_recall@10": 4.0,
    }


def test_recall_counts_an_equal_score_against_the_right_one_or_shares_it() -> None:
    scores, owner = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([0, 1])
    assert recalls(scores, owner, ties="lost")["image_recall@1"] == 50.0
    assert recalls(scores, owner, ties="drawn")["image_recall@1"] == 75.0
    assert recalls(scores, owner, ties="lost")["text_recall@1"] == 50.0
    assert recalls(scores, owner, ties="drawn")["text_recall@1"] == 75.0


def test_the_oracle_prefers_a_true_relation_to_a_false_one() -> None:
    star, ball = Thing("red", "star", "plain", "small", 0.2, 0.5), Thing("blue", "circle", "plain", "small", 0.8, 0.5)
    claim = Claim((Phrase(("red", "star", None, None)), Phrase(("blue", "circle", None, None))), relation="left")
    mirrored = (Thing(*star.looks, 0.8, 0.5), Thing(*ball.looks, 0.2, 0.5))
    scores = oracle_scores([Scene("snow", (star, ball)), Scene("snow", mirrored)], [Caption("", claim).claim])
    assert scores[0, 0] > scores[1, 0]
