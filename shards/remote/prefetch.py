"""Ask for the next block's bytes while the present one is read, so that a node fetches at an even rate instead of all at once at a block's start."""

import contextlib
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.core.errors import AlbefError
from shards import layout
from shards.dataset import Part
from shards.order.epoch import Block, Epochs
from shards.order.locality import byte_ranges, is_remote


@dataclass(frozen=True)
class _Piece:
    """What is asked for at a time: bytes [start, end) of a shard, all in one piece of the cache; the ranks of a node take turns by its number in the shard."""

    source: int
    shard: int
    number: int
    start: int
    end: int


class Prefetch:
    """Follows the steps of one rank; what goes wrong here is met again, and told, by who reads the bytes.

    Args:
        lanes: those of the node.
        turn, turns: this rank's number on the node, and the node's ranks.
        share: of a block, how much the cache has room for beside the blocks in use (0 to 1).
    """

    def __init__(self, parts: Sequence[Part], epochs: Epochs, lanes: Sequence[int], turn: int, turns: int, share: float) -> None:
        self.parts, self.epochs, self.lanes, self.turn, self.turns, self.share = parts, epochs, tuple(lanes), turn, turns, share
        self._asked: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}  # (source, lane) -> the block asked for, and how many of its pieces
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="albef-prefetch")
        self._running: Future[None] | None = None

    def at(self, epoch: int, step: int) -> None:
        """The rank begins this step; returns at once, and does nothing while an earlier call is still at work."""
        if self._running is None or self._running.done():
            self._running = self._thread.submit(self.ask, epoch, step)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def ask(self, epoch: int, step: int) -> None:
        """Announce what is due at this step."""
        with contextlib.suppress(AlbefError):
            for lane in self.lanes:
                for block in self.epochs.blocks(epoch, step, lane):
                    if is_remote(self.parts[block.source].dataset):
                        self._ask_for_what_is_due(block)

    def _ask_for_what_is_due(self, block: Block) -> None:
        """All of the block when nothing was asked of its lane before; then as much of the next one as is due by now."""
        place = (block.source, block.lane)
        if place not in self._asked:
            self._fetch(self._pieces(block))
        following = self.epochs.after(block)
        asked, count = self._asked.get(place, ((-1, -1), 0))
        this = (following.epoch, following.number)
        count = count if asked == this else 0
        pieces = self._pieces(following)
        due = max(count, math.ceil(block.delivered * self.share * len(pieces)))
        self._fetch(pieces[count:due])
        self._asked[place] = (this, due)

    def _pieces(self, block: Block) -> list[_Piece]:
        size = self.parts[block.source].dataset.reader.options.piece_bytes
        return [
            _Piece(block.source, shard, first // size, max(first, start), min(first + size, end))
            for _, shard, start, end in byte_ranges(self.parts, self.epochs, block)
            for first in range(start - start % size, end, size)
        ]

    def _fetch(self, pieces: Sequence[_Piece]) -> None:
        for piece in pieces:
            if piece.number % self.turns == self.turn:
                dataset = self.parts[piece.source].dataset
                entry = dataset.manifest.shards[piece.shard]
                dataset.reader.prefetch(layout.tar_path(dataset.folder, entry.name), piece.start, piece.end, entry.bytes, entry.sha256)
