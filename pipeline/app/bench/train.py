"""`albef bench train`: the fused step beside the plain one, whole steps; the engine beside the bare step; useful FLOPs; ITC by pieces; on a GPU also MFU."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.app.bench import engine_steps
from pipeline.app.bench.row import BenchRow, alone, compared, measure
from pipeline.app.bench.steps import ALPHA, BASE, DEMO, QUEUE_SIZE, SMALL, Sizes, Steps
from pipeline.app.bench.usage import cpu_seconds_of
from pipeline.core.errors import ConfigError
from training import flops
from training.batch import Batch
from training.compilation import compile_blocks
from training.kernels.contrast import contrast
from training.live_memory import peak_bytes
from training.masking import gumbel_noise, mask_tokens
from training.model_config import ModelConfig
from training.throughput import matrix_product_rate

log = logging.getLogger(__name__)

TOKENS, MASKED_SHARE = 30, 0.15
GROUP_SIZE = 64
ENGINE_PAIRS = 8  # half of SMALL's: the loop's own work shows the more beside a short step, and nine rounds take an hour, not two
CLS, PAD, MASK = 101, 0, 103  # of bert-base-uncased
CHUNK_EXPONENTS = (16, 18, 20, 22)
GPU_BATCHES, GPU_WARM_UP, GPU_STEPS = (64, 128, 256, 512), 3, 10
PLAIN = "the original's passes"


@dataclass(frozen=True)
class Scale:
    """Rounds of the fused and the plain step in turn."""

    rounds: int


def run(cases: Sequence[str], scale: Scale) -> list[BenchRow]:
    """The rows of the cases, in their order.

    Raises:
        ConfigError: there is no such case, or this machine cannot run one.
    """
    if "gpu" in cases and not torch.cuda.is_available():
        others = ",".join(name for name in CASES if name != "gpu")
        raise ConfigError(f"--cases gpu: torch finds no CUDA device on this machine; run it on one that has a GPU, or take others: --cases {others}")
    with _one_thread():
        return measure(cases, CASES, scale)


def default_cases() -> list[str]:
    """All that this machine can run, but for the engine's, which takes a hundred steps a round."""
    return [name for name in CASES if name != "engine" and (name != "gpu" or torch.cuda.is_available())]


def drawn_batch(model: ModelConfig, pairs: int, group_size: int, seed: int = 0) -> Batch:
    """Random pictures and texts of 2 to 30 tokens in equal steps, 16 in the mean whatever the batch, padded to 30 and masked as in training."""
    draw = np.random.default_rng(seed)
    lengths = draw.permutation(np.linspace(2, TOKENS, pairs).round())
    mask = np.arange(TOKENS) < lengths[:, None]
    first = min(MASK + 1, model.vocab_size - 1)
    ids = np.where(mask, draw.integers(first, model.vocab_size, size=mask.shape), PAD)
    ids[:, 0] = CLS
    keys = draw.integers(0, 2**63, size=pairs, dtype=np.uint64)
    masked, labels = mask_tokens(keys, ids, probability=MASKED_SHARE, vocab_size=model.vocab_size, cls_id=CLS, pad_id=PAD, mask_id=MASK)
    gumbel_i2t, gumbel_t2i = gumbel_noise(keys, group_size)
    return Batch(
        images=torch.from_numpy(draw.integers(0, 256, size=(pairs, 3, model.image_size, model.image_size), dtype=np.uint8)),
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        masked_ids=torch.from_numpy(masked),
        mlm_labels=torch.from_numpy(labels),
        gumbel_i2t=torch.from_numpy(gumbel_i2t),
        gumbel_t2i=torch.from_numpy(gumbel_t2i),
        item_keys=keys,
        sample_keys=[str(number) for number in range(pairs)],
    )


def whole_steps(case: str, sizes: Sizes, scale: Scale) -> list[BenchRow]:
    """Forward and backward pass, AdamW, teacher and queue, fp32 on the CPU; the original's in-batch keys are the whole batch, so it is one group."""
    steps, batch = Steps(sizes, sizes.pairs, torch.device("cpu")), drawn_batch(sizes.model, sizes.pairs, sizes.pairs)
    texts = flops.texts_of([batch])
    note = (
        f"{sizes.pairs} pairs, {sizes.model.image_size} px, {TOKENS} text tokens of which {1 - texts.tokens / TOKENS:.0%} padding, queue {sizes.queue_size}, "
        f"fp32, one thread, dropout {sizes.model.hidden_dropout:g}, alpha {ALPHA}; forward, backward, AdamW, teacher and queue"
    )
    steps.fused(batch)  # AdamW makes its moments in the first step
    memory = [[_peak_bytes(steps, way, batch) / 1e9] for way in (steps.fused, steps.plain)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(1, scale.rounds + 1):
        for way, of_way in zip((steps.fused, steps.plain), seconds, strict=True):
            of_way.append(cpu_seconds_of(partial(way, batch))[1])
        log.info("%s: round %d of %d: fused %.2f CPU-s, plain %.2f", case, number, scale.rounds, seconds[0][-1], seconds[1][-1])
    ours, peer = ([sizes.pairs / value for value in of_way] for of_way in seconds)
    above = "the most that tensors hold at once in one step, beyond weights, moments and queue"
    return [
        compared(case, "pairs/CPU-s", ours, peer, PLAIN, note),
        compared(f"{case}-memory", "GB", memory[0], memory[1], PLAIN, above, more_is_better=False),
    ]


def _peak_bytes(steps: Steps, way: Callable[[Batch], None], batch: Batch) -> int:
    steps.optimizer.zero_grad()  # else the gradients of the step before, whose end the record shows and whose beginning it does not
    return peak_bytes(partial(way, batch))


def engine(case: str, sizes: Sizes, scale: Scale) -> list[BenchRow]:
    """What the loop costs above its steps."""
    return engine_steps.overhead(case, sizes, scale.rounds)


def base_flops(scale: Scale) -> list[BenchRow]:  # noqa: ARG001 - counted, not measured
    """By the counter that is checked against torch's; half of the tokens are padding, 15 % are predicted."""
    model, half = BASE.model, TOKENS / 2
    plain = sum(flops.plain_step(model, flops.Texts(TOKENS, TOKENS * MASKED_SHARE, TOKENS), GROUP_SIZE, QUEUE_SIZE).values())
    ways = {
        "padded": (flops.Texts(TOKENS, TOKENS * MASKED_SHARE, TOKENS), "all texts as long as their padding"),
        "packed": (flops.Texts(half, half * MASKED_SHARE, TOKENS), "half the tokens are padding, left out but of ITM's drawn texts"),
    }
    return [
        compared(f"base-flops-{name}", "GFLOP/pair", [_giga_flops(texts)], [plain / 1e9], PLAIN, f"counted, not timed; {note}", more_is_better=False)
        for name, (texts, note) in ways.items()
    ]


def _giga_flops(texts: flops.Texts) -> float:
    return sum(flops.fused_step(BASE.model, texts, GROUP_SIZE, QUEUE_SIZE).values()) / 1e9


def similarities(scale: Scale) -> list[BenchRow]:
    """One direction of ITC, forward and backward, by the size of a piece."""
    return [
        _contrast_row(queue_size, repeats, exponent, scale) for queue_size, repeats in ((QUEUE_SIZE, 3), (DEMO.queue_size, 200)) for exponent in CHUNK_EXPONENTS
    ]


def _contrast_row(queue_size: int, repeats: int, exponent: int, scale: Scale) -> BenchRow:
    draw = torch.Generator().manual_seed(0)
    queries, teacher, keys, queue = (F.normalize(torch.randn(n, 256, generator=draw), dim=1) for n in (*[GROUP_SIZE] * 3, queue_size))
    queries.requires_grad_()

    def work() -> None:
        for _ in range(repeats):
            contrasted = contrast(queries, teacher, keys, [queue], torch.tensor(0.07), ALPHA, GROUP_SIZE, chunk_elements=2**exponent)
            torch.autograd.backward(contrasted.loss.mean())

    seconds = [cpu_seconds_of(work)[1] / repeats for _ in range(scale.rounds)]
    note = f"{GROUP_SIZE} pairs against a queue of {queue_size}, 2^{exponent} similarities at a time"
    return alone(f"contrast-{queue_size}-2^{exponent}", "CPU-ms", [1000 * value for value in seconds], note)


def gpu(scale: Scale) -> list[BenchRow]:
    """Base size in bf16, blocks compiled and not, beside the plain step over the same blocks: pairs per second, memory; and our MFU.

    MFU is against a matrix product of the same run.
    """
    device = torch.device("cuda")
    rate = matrix_product_rate(device, torch.bfloat16)
    rows = [alone("gpu-matrix-product", "TFLOP/s", [rate / 1e12], f"bf16, fastest of a few; {torch.cuda.get_device_name(device)}")]
    for compiled in (False, True):
        for pairs in GPU_BATCHES:
            rows += _gpu_rows(pairs, compiled, device, rate, scale)
    return rows


def _gpu_rows(pairs: int, compiled: bool, device: torch.device, rate: float, scale: Scale) -> list[BenchRow]:
    host_batch = drawn_batch(BASE.model, pairs, GROUP_SIZE)
    useful = sum(flops.fused_step(BASE.model, flops.texts_of([host_batch]), GROUP_SIZE, QUEUE_SIZE).values())
    steps, batch = Steps(BASE, GROUP_SIZE, device, torch.bfloat16), host_batch.to(device)
    if compiled:
        compile_blocks(steps.student)
        compile_blocks(steps.teacher)
    ways = [partial(way, batch) for way in (steps.fused, steps.plain)]
    memory, peer_memory = ([_warm_up(step, device) / 1e9] for step in ways)
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(scale.rounds):
        for step, of_way in zip(ways, speeds, strict=True):
            of_way.append(pairs * GPU_STEPS / _seconds(step))
    case = f"gpu-{pairs}{'-compiled' if compiled else ''}"
    note = (
        f"{pairs} pairs, bf16, {useful / 1e9:.0f} useful GFLOP a pair, whole steps{', blocks compiled' if compiled else ''}; "
        f"ours in groups of {GROUP_SIZE}, the original's in one"
    )
    return [
        compared(case, "pairs/s", *speeds, PLAIN, note),
        alone(f"{case}-mfu", "%", [100 * speed * useful / rate for speed in speeds[0]], note),
        compared(f"{case}-memory", "GB", memory, peer_memory, PLAIN, "allocated at the most, weights and moments included", more_is_better=False),
    ]


def _warm_up(step: Callable[[], None], device: torch.device) -> int:
    """Bytes allocated at the most in the first steps."""
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(GPU_WARM_UP):
        step()
    return torch.cuda.max_memory_allocated(device)


def _seconds(step: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(GPU_STEPS):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


CASES: dict[str, Callable[[Scale], list[BenchRow]]] = {
    "base": partial(whole_steps, "base", BASE),
    "small": partial(whole_steps, "small", SMALL),
    "demo": partial(whole_steps, "demo", DEMO),
    "engine": partial(engine, "engine", replace(SMALL, pairs=ENGINE_PAIRS)),
    "base-flops": base_flops,
    "contrast": similarities,
    "gpu": gpu,
}


@contextmanager
def _one_thread() -> Iterator[None]:
    """More would cost CPU seconds and gain none."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
