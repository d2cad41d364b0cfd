"""Training as a Slurm job of two nodes, with the script of the docs: asked to stop and preempted, it queues again and loses no step."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_run
from run_of_ranks import Run
from slurm_cluster import MISSING, Cluster, slurm_cluster
from waiting import wait_until

from training.checkpoint.layout import latest_of

SCRIPT = Path(__file__).parents[2] / "docs" / "train.sbatch"
STEPS = 400
NEEDED = pytest.mark.skipif(bool(MISSING) and os.environ.get("CI") != "true", reason=f"no {', '.join(MISSING)} here (Debian: slurm-wlm, munge)")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    assert not MISSING, f"no {', '.join(MISSING)} here (Debian: slurm-wlm, munge)"
    with slurm_cluster() as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(900)
@NEEDED
def test_a_job_that_is_asked_to_stop_and_one_that_is_preempted_go_on_where_they_saved(cluster: Cluster, tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    whole, job = (
        (tmp_path / name, tiny_run.configuration(tmp_path / name, tmp_path / "data", max_steps=STEPS, save_every_steps=20)) for name in ("whole", "job")
    )
    Run(whole[0], str(whole[0] / "train" / "checkpoints"), whole[1], 2, {}).finish()

    folder, config = job
    environment = {
        **tiny_run.environment(),
        **cluster.environment,
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    asked = Cluster(environment)
    said = folder / "output.txt"
    number = asked.ask("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={said}", SCRIPT, config)
    checkpoints = folder / "train" / "checkpoints"
    for restarts, stop in enumerate((["scancel", "--signal=USR1", number], ["scontrol", "requeue", number])):
        before = latest_of(str(checkpoints)) or ""
        wait_until(lambda before=before: (latest_of(str(checkpoints)) or "") > before, 240)
        assert asked.job(number)["JobState"] == "RUNNING"
        asked.ask(*stop)
        wait_until(lambda restarts=restarts: int(asked.job(number)["Restarts"]) > restarts, 120)
    wait_until(lambda: asked.job(number)["JobState"] == "COMPLETED", 240)
    text = said.read_text()
    assert "training stopped at step" in text
    assert "received SIGUSR1" in text
    assert "received SIGTERM" in text
    assert "2 rank(s)" in text
    assert tiny_run.metrics(folder) == tiny_run.metrics(whole[0])
    assert len(tiny_run.metrics(folder)) == STEPS
