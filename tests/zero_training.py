"""DeepSpeed trains a module with an ALBEF model's names for two steps and saves it as its users do."""

import os
from pathlib import Path

import safetensors.torch
import torch
from ranks import deepspeed_without_its_operator
from torch import Tensor, nn

TIED = {  # name -> the name it shares a tensor with
    f"text_encoder{m}.cls.predictions.{other}": f"text_encoder{m}.{name}"
    for m in ("", "_m")
    for other, name in {"decoder.weight": "bert.embeddings.word_embeddings.weight", "decoder.bias": "cls.predictions.bias"}.items()
}


class Named(nn.Module):
    """Its loss is the sum over its own parameters, squared, and those below."""

    def forward(self) -> Tensor:
        own = sum((parameter.float() ** 2).sum() for parameter in self.parameters(recurse=False))
        return own + sum(child() for child in self.children())  # type: ignore[no-any-return]


def module_of(state: dict[str, Tensor]) -> Named:
    """A module whose state_dict is `state`; momentum copies are frozen, queues and integers are buffers, tied tensors are one."""
    root, made = Named(), {}
    for name, value in state.items():
        place: nn.Module = root
        *path, last = name.split(".")
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, Named())
            place = place.get_submodule(part)
        if value.is_floating_point() and "queue" not in name:
            made[name] = nn.Parameter(value.reshape(value.shape or (1,)).clone(), requires_grad="_m." not in name)
    for name, value in state.items():
        path_to, _, last = name.rpartition(".")
        place = root.get_submodule(path_to)
        if name in made:
            place.register_parameter(last, made[TIED.get(name, name)])
        else:
            place.register_buffer(last, value.clone())
    return root


def train(rank: int, ranks: int, folder: Path, stages: dict[str, tuple[int, bool]], state: dict[str, Tensor], port: int) -> None:
    """Save a checkpoint folder for each name (stage, bf16) of `stages`, and beside it `NAME.safetensors` with the parameters as the engine has them."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = deepspeed_without_its_operator()
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for name, (stage, bf16) in stages.items():
        model = module_of(state)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]
        config = {
            "train_batch_size": ranks,
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 100, "sub_group_size": 1000},
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-3), config=config)
        for _ in range(2):
            engine.backward(engine())
            engine.step()
        engine.save_checkpoint(str(folder / name))
        whole = {key: _whole(parameter).clone() for key, parameter in engine.module.named_parameters() if parameter.requires_grad}
        if rank == 0:
            safetensors.torch.save_file(whole, folder / f"{name}.safetensors")


def _whole(parameter: nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    found = safe_get_full_fp32_param(parameter)
    return parameter.detach().float() if found is None else found
