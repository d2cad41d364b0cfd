"""CPU seconds and memory of a process and of all it starts."""

import subprocess
import sys
import time

from pipeline.app.bench.usage import measured

GREEDY = "import time; held = bytearray(150_000_000); start = time.process_time()\nwhile time.process_time() - start < 0.5: pass"


def test_a_childs_time_and_memory_count() -> None:
    _, idle = measured(lambda: time.sleep(0.2))
    _, usage = measured(lambda: subprocess.run([sys.executable, "-c", GREEDY], check=True))
    assert usage.cpu_s > 0.5 > idle.cpu_s
    assert usage.peak_rss_bytes > idle.peak_rss_bytes + 100e6
    assert usage.wall_s > 0.4


def test_the_result_is_handed_through() -> None:
    assert measured(lambda: 42)[0] == 42
