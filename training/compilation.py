"""torch.compile of a model's blocks, each on its own: ZeRO's hooks between them would break a graph of the whole step."""

import os
import shutil

import torch
import torch.fx.experimental._config as shapes

from pipeline.core.errors import ConfigError
from training.model import Albef

GRAPHS_PER_BLOCK = 32  # torch's 8 are fewer than the kinds of a fusion layer: first or last, student or teacher, drawn rows or none, padded or packed


def require_compiler(device: torch.device) -> None:
    """What torch.compile would miss only at the first step, in a traceback: on a CPU it writes C++, which CXX, else g++, is to compile.

    Raises ConfigError when there is none.
    """
    if device.type != "cpu":
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"training.compile is true, but there is no C++ compiler {compiler}; install g++, name another one in CXX, or set it to false")


def compile_blocks(model: Albef) -> int:
    """In place, at each block's first use; returns how many. Names of parameters stay. Pictures have one shape; numbers of tokens vary from batch to batch."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS_PER_BLOCK)
    shapes.use_duck_shape = False  # else two sizes that are once equal by chance (most selected words, heads, rows) make a graph for that case alone
    for block in model.image_encoder.blocks:
        block.compile()
    for block in (*model.text_encoder.layers, *model.fusion_encoder.layers):
        block.compile(dynamic=True)
    return len(model.image_encoder.blocks) + len(model.text_encoder.layers) + len(model.fusion_encoder.layers)
