"""A run's folder knows where its checkpoints are, and a run is not begun anew beside them."""

from pathlib import Path

import pytest
from saving import ALONE, newest_is, save

from pipeline.core.errors import ConfigError, DataError
from training import checkpoint
from training.checkpoint.place import place_of, refuse_to_begin_anew, remember, remembered


def test_without_a_setting_they_are_below_the_run(tmp_path: Path) -> None:
    assert place_of(str(tmp_path), None) == remembered(str(tmp_path)) == f"{tmp_path}/train/checkpoints"
    refuse_to_begin_anew(tmp_path, str(tmp_path / "elsewhere"))


def test_the_last_place_is_found_by_the_runs_folder_and_no_other_is_begun_in_while_it_has_a_checkpoint(tmp_path: Path) -> None:
    run, place = tmp_path / "run", tmp_path / "place"
    remember(run, str(place))
    written = (run / "train" / "checkpoint_folder.txt").stat().st_mtime_ns
    remember(run, str(place))
    assert (run / "train" / "checkpoint_folder.txt").stat().st_mtime_ns == written, "a full disk must not end a run that could go on"
    refuse_to_begin_anew(run, None)  # nothing has been written there yet
    saver = checkpoint.Saver(str(place), ALONE, keep_last=2, keep_every_steps=None, patience_s=0.0)
    save(saver, 1)
    saver.wait()
    assert checkpoint.folder_of(str(run)) == str(place)
    assert newest_is(run, 1)
    with pytest.raises(ConfigError, match=rf"checkpoint_folder: {run}/train/checkpoints has no checkpoint, but {place} has this run's step-0000001; copy"):
        refuse_to_begin_anew(run, None)
    remember(run, None)
    assert remembered(str(run)) == f"{run}/train/checkpoints"


def test_a_file_is_no_folder_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert checkpoint.folder_of(str(tmp_path / "notes.txt")) is None
    with pytest.raises(DataError, match=r"notes\.txt: no checkpoint here"):
        checkpoint.read(str(tmp_path / "notes.txt"))
