"""Saving, evaluating and stopping, in this order, so that whatever ends a run leaves a checkpoint."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.core import stopping, storage
from pipeline.core.errors import Stopped
from shards.quarantine import Entry, num_samples
from training import checkpoint, snapshot
from training.hooks.report import Report
from training.loop import StepDone
from training.quarantine_budget import QuarantineBudget, write_quarantine
from training.training_run import TrainingRun

log = logging.getLogger(__name__)


class Upkeep:
    """The last hook: it may end the run."""

    def __init__(self, run: TrainingRun, report: Report, evaluate: Callable[[Path], dict[str, float]] | None) -> None:
        self._run, self._report, self._evaluate = run, report, evaluate
        dataset = run.loader.dataset
        self._budget = QuarantineBudget(run.config.quarantine_budget, dataset.num_samples, dataset.name_of)

    def check_quarantine(self) -> None:
        """Raises BelowFloor when more is in quarantine than the budget allows."""
        self._budget.check(self._run.loader.quarantine)

    def after_step(self, done: StepDone) -> None:
        run, config = self._run, self._run.config
        reason, within_budget = self._asked_of_all()
        scored = self._evaluate is not None and config.evaluate_every_steps is not None and done.step % config.evaluate_every_steps == 0
        if reason or scored or not within_budget or done.step % config.save_every_steps == 0 or done.step >= run.total_steps:
            path = self._save()
            if scored and self._report.metrics and self._evaluate:
                self._report.metrics.record(done.step, {f"val/{name}": value for name, value in self._evaluate(Path(path)).items()})
            run.world.barrier()
        self._budget.check([] if within_budget else run.loader.quarantine)
        if reason and done.step < run.total_steps:
            raise Stopped(f"training stopped at step {done.step} of {run.total_steps}: {reason}; {stopping.how_to_continue(reason)}")

    def last_checkpoint(self) -> str:
        saved = checkpoint.read(self._run.checkpoints).path
        log.info("stage train: %d of %d steps taken; checkpoint %s", self._run.state.step, self._run.total_steps, saved)
        return saved

    def close(self) -> None:
        pass

    def _asked_of_all(self) -> tuple[str | None, bool]:
        """Why to stop, and whether the quarantine is within its budget: the same answers on every rank, so that all stop at the same step."""
        run = self._run
        own = stopping.stop_reason(run.folder)
        if run.state.skipped_in_a_row >= run.config.max_skipped_in_a_row:
            own = f"{run.state.skipped_in_a_row} steps in a row were skipped for a non-finite loss or gradient"
        shared, unshared = run.loader.quarantine_counts
        asked = torch.tensor([float(own is not None), float(unshared)], device=run.world.device)
        anyone, unshared_by_all = run.world.sum(asked).tolist()
        within_budget = self._budget.allows(shared + round(unshared_by_all))  # of what several ranks met too much is counted: then count exactly
        within_budget = within_budget or self._budget.allows(num_samples(run.loader.share_quarantine(run.world.of_all)))
        return (own or "another rank was asked to stop") if anyone else None, within_budget

    def _save(self) -> str:
        run = self._run
        quarantine = run.loader.share_quarantine(run.world.of_all)
        sources = _summed(run.world.of_all(run.loader.sources(run.state.position, quarantine)))
        tensors = snapshot.take(run.partition, run.teacher, run.queue)
        everything: list[snapshot.Tensors] = run.world.of_all(tensors)
        if run.world.rank == 0:
            merged: snapshot.Tensors = {}
            for share in everything:
                for kind, named in share.items():
                    merged.setdefault(kind, {}).update(named)
            checkpoint.write(run.checkpoints, run.state.step, merged, run.tokenizer, self._record(quarantine, sources))
            write_quarantine(run.folder / "train", quarantine, self._budget)
            checkpoint.remove_old(run.checkpoints, run.config.keep_last)
        run.world.barrier()
        return storage.join(run.checkpoints, checkpoint.name_of(run.state.step))

    def _record(self, quarantine: list[Entry], sources: dict[str, dict[str, float]]) -> dict[str, Any]:
        run = self._run
        state = {**asdict(run.state), "adam_step": float(run.partition.steps[0]), "queue_position": run.queue.position,
                 "manifest": run.loader.dataset.pinned, "quarantine": quarantine, "sources": sources}  # fmt: skip
        return {"state": state, "model": run.student.config.model_dump(mode="json"), "training": run.config.model_dump(mode="json")}


def _summed(ranks: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each dataset: what every rank knows of the order, and the bytes that all of them read."""
    return {name: {**counters, "bytes": sum(rank[name]["bytes"] for rank in ranks)} for name, counters in ranks[0].items()}
