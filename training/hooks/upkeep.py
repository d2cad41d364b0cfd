"""Saving, evaluating and stopping, in this order, so that whatever ends a run leaves a checkpoint."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from pipeline.core import stopping
from pipeline.core.errors import Stopped
from shards.quarantine import Entry, num_samples
from training import checkpoint, snapshot
from training.hooks.report import Report
from training.loop import StepDone
from training.quarantine_budget import QuarantineBudget, write_quarantine
from training.training_run import TrainingRun
from training.watch.heartbeat import Heartbeat

log = logging.getLogger(__name__)


class Upkeep:
    """Comes after the hooks: it may end the run."""

    def __init__(self, run: TrainingRun, report: Report, heartbeat: Heartbeat, evaluate: Callable[[str], dict[str, float]] | None) -> None:
        self._run, self._report, self._heartbeat, self._evaluate = run, report, heartbeat, evaluate
        self._saver = checkpoint.Saver(run.checkpoints, run.world, run.config.keep_last, run.config.keep_every_steps, run.config.save_patience_s)
        dataset = run.loader.dataset
        self._budget = QuarantineBudget(run.config.quarantine_budget, dataset.num_samples, dataset.name_of)

    def check_quarantine(self) -> None:
        """Raises BelowFloor when more is in quarantine than the budget allows."""
        self._budget.check(self._run.loader.quarantine)

    def after_step(self, done: StepDone, stop_for: str | None) -> None:
        """`stop_for` is why the run is to end after this step; the same on every rank."""
        run, config = self._run, self._run.config
        reason, within_budget = self._asked_of_all(stop_for)
        scored = self._evaluate is not None and config.evaluate_every_steps is not None and done.step % config.evaluate_every_steps == 0
        ends = reason is not None or not within_budget or done.step >= run.total_steps
        if ends or scored or done.step % config.save_every_steps == 0:
            self._save()
        if ends or scored:
            self._wait()
        if scored:
            self._score(done.step)
        self._budget.check([] if within_budget else run.loader.quarantine)
        if reason and (stop_for or done.step < run.total_steps):
            raise Stopped(f"training stopped at step {done.step} of {run.total_steps}: {reason}; {stopping.how_to_continue(reason)}")

    def checkpoint_steps(self) -> list[int]:
        """Of the checkpoints that are there; every rank must call."""
        self._wait()
        steps: list[int] = self._run.world.from_first(checkpoint.steps_in(self._run.checkpoints) if self._run.world.rank == 0 else None)
        return steps

    def save_now(self) -> None:
        """And wait until it is written."""
        self._save()
        self._wait()

    def close(self) -> None:
        """The save in flight is finished, whatever ends the run: a process that ends in the middle of one aborts."""
        with self._heartbeat.busy("save", self._run.state.step):
            self._saver.close()

    def last_checkpoint(self) -> str:
        saved = self._newest()
        log.info("stage train: %d of %d steps taken; checkpoint %s", self._run.state.step, self._run.total_steps, saved)
        return saved

    def _asked_of_all(self, stop_for: str | None) -> tuple[str | None, bool]:
        """Why to stop, and whether the quarantine is within its budget: the same answers on every rank, so that all stop at the same step.

        Raises Stopped where the checkpoint before could not be written.
        """
        run = self._run
        own = stop_for or stopping.stop_reason(run.folder)
        shared, unshared = run.loader.quarantine_counts
        asked = torch.tensor([float(own is not None), float(unshared), float(self._saver.failed)], device=run.world.device)
        anyone, unshared_by_all, failed = run.world.sum(asked).tolist()
        if failed:
            self._wait()  # which raises on every rank
        within_budget = self._budget.allows(shared + round(unshared_by_all))  # of what several ranks met too much is counted: then count exactly
        within_budget = within_budget or self._budget.allows(num_samples(run.loader.share_quarantine(run.world.of_all)))
        return (own or "another rank was asked to stop") if anyone else None, within_budget

    def _save(self) -> None:
        """Take a snapshot and begin to write it; training may go on at once."""
        run, began = self._run, time.perf_counter()
        self._wait()  # for the save before, else a rank would hold two snapshots
        self._heartbeat.beat("save", run.state.step)
        quarantine = run.loader.share_quarantine(run.world.of_all)
        sources = _summed(run.world.of_all(run.loader.sources(run.state.position, quarantine)))
        tensors = snapshot.take(run.partition, run.teacher, run.queue)
        files = {"vocab.txt": run.tokenizer.vocabulary_file()} if run.world.rank == 0 else {}
        self._saver.save(run.state.step, tensors, files, self._record(quarantine, sources), before_publishing=self._report.settle)
        if run.world.rank == 0:
            self._write_quarantine(quarantine)
        self._report.add({"checkpoint/stall_s": time.perf_counter() - began, **self._saver.figures()})

    def _wait(self) -> None:
        """For the save in flight, however long the storage takes."""
        with self._heartbeat.busy("save", self._run.state.step):
            self._saver.wait()

    def _write_quarantine(self, quarantine: list[Entry]) -> None:
        try:
            write_quarantine(self._run.folder / "train", quarantine, self._budget)
        except OSError as error:  # the checkpoint has it, too
            log.warning("quarantine.json cannot be written now: %s", error)

    def _score(self, step: int) -> None:
        """On rank 0, while the others wait."""
        run, evaluate = self._run, self._evaluate
        assert evaluate is not None
        with self._heartbeat.busy("evaluate", step):
            scores = run.world.together(lambda: evaluate(self._newest()) if run.world.rank == 0 else {})
        self._report.record(step, {f"val/{name}": value for name, value in scores.items()})

    def _newest(self) -> str:
        return checkpoint.read(self._run.checkpoints, self._run.config.save_patience_s).path

    def _record(self, quarantine: list[Entry], sources: dict[str, dict[str, float]]) -> dict[str, Any]:
        run = self._run
        state = {**asdict(run.state), "adam_step": float(run.partition.steps[0]), "queue_position": run.queue.position,
                 "manifest": run.loader.dataset.pinned, "quarantine": quarantine, "sources": sources}  # fmt: skip
        return {"state": state, "model": run.student.config.model_dump(mode="json"), "training": run.config.model_dump(mode="json")}


def _summed(ranks: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each dataset: what every rank knows of the order, and the bytes that all of them read."""
    return {name: {**counters, "bytes": sum(rank[name]["bytes"] for rank in ranks)} for name, counters in ranks[0].items()}
