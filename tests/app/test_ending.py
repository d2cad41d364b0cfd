"""A command's exit code stands, whatever signals come while its interpreter ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pipeline.app.cli import main

class Late:
    '''Its end comes after Python has given its signal handlers up.'''

    def __del__(self, write=os.write, kill=os.kill, own=os.getpid(), number=int(sys.argv.pop())):
        write(1, b"late")
        kill(own, number)

late = Late()
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("arguments", "code"), [(["train", "absent.yaml"], 2), (["train", "--help"], 0)])
def test_a_signal_at_the_very_end_does_not_take_the_place_of_the_exit_code(arguments: list[str], code: int, number: int, tmp_path: Path) -> None:
    """As `srun --kill-on-bad-exit` sends to every rank once the first one has ended with 4."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments, str(int(number))], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("late"), "no signal was sent"
