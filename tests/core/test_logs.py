"""The log as a pipe or a job's output file gets it."""

import subprocess
import sys

PROGRAM = "import logging; from pipeline.core import logs; logs.configure(); logging.getLogger('x').info('a line of ' + 30 * 'many words ' + '[not markup] 7')"


def test_a_long_line_in_a_pipe_stays_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line[8:] == " a line of " + 30 * "many words " + "[not markup] 7"
