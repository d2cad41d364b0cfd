"""A rank that cannot read its data ends the run with all others, instead of leaving them to wait for it."""

from pathlib import Path

import pytest
import tiny_run
import unreadable_run
from ranks_of_program import run_ranks


@pytest.mark.slow
def test_when_one_ranks_data_fail_all_ranks_end_with_its_exit_code_and_one_line(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(tmp_path / "run", tmp_path / "data", save_every_steps=2)
    code, said = run_ranks(unreadable_run.__file__, lambda _: [config], tmp_path / "said", ranks=2, timeout_s=120)
    assert code == 4, said
    assert ["the store does not answer" in text for text in said] == [False, True]
    assert tiny_run.train(config, processes=2).returncode == 0
    assert [record["step"] for record in tiny_run.metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
