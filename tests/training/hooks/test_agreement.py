"""Ranks compare what they should hold alike: nobody disturbs a healthy run, and a difference names what differs."""

from pathlib import Path

import diverging_run
import pytest
import tiny_run
from ranks_of_program import run_ranks


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("what", ["nothing", "feature queue", "student"])
def test_a_difference_between_ranks_ends_the_run_and_says_what_differs(tmp_path: Path, zero_stage: int, what: str) -> None:
    if (zero_stage, what) == (3, "student"):
        pytest.skip("under ZeRO-3 no two ranks hold the same weights")
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(tmp_path / "run", tmp_path / "data", zero_stage=zero_stage, compare_ranks_every_steps=2)
    code, said = run_ranks(diverging_run.__file__, lambda _: [config, what], tmp_path / "said", ranks=2)
    if what == "nothing":
        assert code == 0, said
        return
    assert code == 1, said
    for text in said:
        assert f"RanksDiverged: step 4: the {what} differs between ranks" in text
        assert "it was the same after step 2" in text
