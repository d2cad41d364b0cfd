"""CPU seconds of a command: also of children that nobody waited for."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.app.bench.process_tree import cpu_seconds
from pipeline.core.errors import AlbefError

BUSY = "import time\nstart = time.process_time()\nwhile time.process_time() - start < 0.6: pass"
LEAVES_AN_ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BUSY!r}])"


def test_an_orphans_seconds_count(tmp_path: Path) -> None:
    assert cpu_seconds([sys.executable, "-c", LEAVES_AN_ORPHAN], os.environ, tmp_path) > 0.6
    assert cpu_seconds([sys.executable, "-c", "pass"], os.environ, tmp_path) < 0.6


def test_a_command_that_fails_gives_no_figure_but_its_output(tmp_path: Path) -> None:
    with pytest.raises(AlbefError, match="no such thing"):
        cpu_seconds([sys.executable, "-c", "raise SystemExit('no such thing')"], os.environ, tmp_path)
