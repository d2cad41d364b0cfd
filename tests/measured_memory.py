"""Live tensor storage of a run's rank, in bytes, in the midst of a step: python measured_memory.py OUTPUT CONFIG..."""

import gc
import json
import sys
from pathlib import Path

import torch

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from training import distributed
from training.memory import memory_of_rank
from training.training_run import put_together


def storages() -> dict[int, int]:
    """Bytes by address; views share one."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors) if storage.nbytes()}


def measured(path: Path) -> dict[str, object]:
    config = configuration.load(RunConfig, path, [])
    assert config.training is not None
    world = distributed.start(1)
    before = storages()
    run = put_together(config.training, Path(config.run.folder), world)
    (batch,), _ = next(run.loader.from_position(run.state.position))
    of_data = {tensor.untyped_storage().data_ptr() for tensor in vars(batch).values() if isinstance(tensor, torch.Tensor)}
    run.engine.backward(run.engine(batch, run.teacher.model, run.queue, alpha=0.4, step=0).total)
    live = {address: size for address, size in storages().items() if address not in before and address not in of_data}
    predicted = memory_of_rank(run.num_parameters, config.training, world.world_size)
    run.engine.step()
    run.close()
    return {"measured": sum(live.values()), "predicted": predicted.total, "said": str(predicted)}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps([measured(Path(path)) for path in sys.argv[2:]]))
