from pathlib import Path

import cv2
import pytest

from pipeline.app.scenes.config import ScenesConfig
from pipeline.app.scenes.contact_sheet import write_contact_sheet
from pipeline.app.scenes.write import write_world
from pipeline.core.errors import DataError


def test_the_contact_sheet_is_a_picture_of_the_asked_for_layout(tmp_path: Path) -> None:
    write_world(ScenesConfig(train=4, validation=2, test=6, picture_size=48, processes=1), tmp_path / "world")
    sheet = cv2.imread(str(write_contact_sheet(tmp_path / "world", tmp_path / "sheet.png", columns=3, rows=2)))
    assert sheet.shape[1] > sheet.shape[0] > 300
    assert sheet.std() > 20


def test_a_missing_world_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="draw the world first"):
        write_contact_sheet(tmp_path, tmp_path / "sheet.png")
