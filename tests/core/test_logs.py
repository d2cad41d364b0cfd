"""The log as a pipe or a job's output file gets it."""

import subprocess
import sys
from pathlib import Path

from small_disk import fill, small_disk

PROGRAM = "import logging; from pipeline.core import logs; logs.configure(); logging.getLogger('x').info('a line of ' + 30 * 'many words ' + '[not markup] 7')"


def test_a_long_line_in_a_pipe_stays_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line[8:] == " a line of " + 30 * "many words " + "[not markup] 7"


def test_a_full_disk_is_told_once_and_not_with_a_traceback_a_line(tmp_path: Path) -> None:
    program = "import logging, pathlib, sys; from pipeline.core import logs; logs.configure(pathlib.Path(sys.argv[1]), rank=1)\n"
    program += "for _ in range(50): logging.info(200 * 'x')"
    with small_disk(tmp_path / "disk", mib=1) as folder:
        fill(folder / "of-another-user")
        done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{folder}/log-rank1.txt: No space left on device; lines may be missing in it"]
