"""Which parameters are decayed."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: biases and one-dimensional tensors (norms) are not decayed, everything else is.

    The temperature belongs to the decayed: it is 0-d in the original, whose rule looks for exactly one dimension; ours has shape (1,).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_temperature = name.rpartition(".")[2] == "temperature"
        (plain if (parameter.ndim == 1 and not is_temperature) or name.endswith(".bias") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
