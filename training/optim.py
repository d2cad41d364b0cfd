"""Which parameters are decayed, and which learn at another rate."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, temperature_lr_scale: float = 1.0) -> list[dict[str, Any]]:
    """Groups for AdamW: biases and one-dimensional tensors (norms) are not decayed, everything else is.

    The temperature belongs to the decayed: it is 0-d in the original, whose rule looks for exactly one dimension; ours has shape (1,). With a
    `temperature_lr_scale` other than 1 it is a group of its own, whose `lr_scale` the engine multiplies into the learning rate.
    """
    decayed, plain, temperature = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[2] == "temperature" and temperature_lr_scale != 1:
            temperature.append(parameter)
        elif name.rpartition(".")[2] != "temperature" and (parameter.ndim == 1 or name.endswith(".bias")):
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if temperature:
        groups.append({"params": temperature, "weight_decay": weight_decay, "lr_scale": temperature_lr_scale})
    return groups
