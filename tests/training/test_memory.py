"""The memory of a rank is what was predicted."""

import json
from pathlib import Path

import measured_memory
import pytest
import tiny_run
from ranks_of_program import run_ranks

MODEL = {"vision_width": 192, "vision_depth": 2, "text_hidden": 192, "text_intermediate": 768, "embed_dim": 64, "vision_heads": 4, "text_heads": 4,
         "text_layers": 2, "fusion_layers": 2}  # fmt: skip
BF16, BF16_PARAMETERS = {"precision": "bf16"}, {"precision": "bf16", "bf16_params": True}
CASES: list[tuple[int, dict[str, object]]] = [
    (0, {}), (1, {}), (2, {}), (3, {}), (0, BF16), (1, BF16), (3, BF16), (1, BF16_PARAMETERS), (3, BF16_PARAMETERS), (1, {"offload": "optimizer"}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_holds_what_was_predicted_within_five_percent(dataset: Path, tmp_path: Path, ranks: int) -> None:
    configs = [
        tiny_run.configuration(tmp_path / f"run-{number}", dataset, zero_stage=stage, model=dict(MODEL), queue_size=2048, **changes)
        for number, (stage, changes) in enumerate(CASES)
    ]
    code, said = run_ranks(measured_memory.__file__, lambda rank: [tmp_path / f"found-{rank}.json", *configs], tmp_path, ranks)
    assert code == 0, said
    for rank in range(ranks):
        for case, found in zip(CASES, json.loads((tmp_path / f"found-{rank}.json").read_text()), strict=True):
            assert found["measured"] == pytest.approx(found["predicted"], rel=0.05), (case, found["said"])
