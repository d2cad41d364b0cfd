"""Checkpoints: named tensors in safetensors files and a manifest that is written last; no pickle, any world size, disk or S3.

    checkpoints/latest                    name of the newest checkpoint whose files were read back and verified
    checkpoints/step-0000400/
        student.safetensors               fp32 master weights
        teacher.safetensors               fp32 moving average
        optimizer.safetensors             AdamW's moments, `exp_avg.<name>` and `exp_avg_sq.<name>`
        queue.safetensors                 teacher features
        vocab.txt
        extra.safetensors                 of an imported file: what the model has no place for
        manifest.json                     files with bytes, sha256 and tensors; counters, data position, configuration

Where several ranks write, a kind is `student-00001-of-00004.safetensors` and so on, each with whole tensors of its own. A folder without a
manifest is not a checkpoint: whatever was being written when a process died is invisible. A checkpoint of a step that has one already goes to
`step-0000400/again/`, and replaces the other at once, with its manifest.

    layout     what is called how, and which checkpoints are there
    place      where a run's checkpoints are
    reading    open, verify, load
    slices     parts of tensors, without reading the rest
    writing    safetensors as a stream; one process writes a checkpoint
    removal    which checkpoints stay; what dead runs left goes
    patience   again and again, while it may still work
    exchange   what background threads of ranks tell each other
    saver      all ranks write a checkpoint while the training goes on
"""

from training.checkpoint.layout import name_of, steps_in
from training.checkpoint.place import place_of
from training.checkpoint.reading import Checkpoint, folder_of, load_for_evaluation, load_weights, newest, read
from training.checkpoint.removal import forget_after, remove_old
from training.checkpoint.saver import Saver
from training.checkpoint.slices import Slices
from training.checkpoint.writing import write, write_first

__all__ = [
    "Checkpoint",
    "Saver",
    "Slices",
    "folder_of",
    "forget_after",
    "load_for_evaluation",
    "load_weights",
    "name_of",
    "newest",
    "place_of",
    "read",
    "remove_old",
    "steps_in",
    "write",
    "write_first",
]
