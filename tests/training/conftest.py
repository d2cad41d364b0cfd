"""What the tests of whole runs train on."""

from pathlib import Path

import pytest
import tiny_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_run.write_dataset(folder)
    return folder
