"""Keys and values of what the model has read: of a batch that answers, and of quiet channels.

The answers of a batch have different lengths. They stand in one buffer a layer, flush right, so
that the next token of all of them goes into the same column, and whatever attention the model has
works with an ordinary padding mask:

              begin                end
    row 0   . . a a a a a a a a a a | .     . unused
    row 1   . . _ _ _ b b b b b b b | .     _ hidden by the mask
    row 2   . . _ _ _ _ _ _ c c c c | .

A sliding window needs no cache of its own kind: the mask hides what is too far away, and all that
was read can be reused in the next turn.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

HEADROOM = 128
"""Columns that a buffer has in advance, so that it is not copied at every token."""

KeysValues = list[tuple[Tensor, Tensor] | None]
"""One pair of shape (1, heads, tokens, size) a layer; None where a layer shares another's."""


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one conversation, and its keys and values."""

    token_ids: Sequence[int]
    layers: KeysValues

    @property
    def bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in filter(None, self.layers))

    def start(self, length: int) -> Cache:
        """A cache that begins with the first `length` tokens, to go on from."""
        return Cache(layers=[_dynamic_layer(pair, length) for pair in self.layers])


def _dynamic_layer(pair: tuple[Tensor, Tensor] | None, length: int) -> DynamicLayer:
    layer = DynamicLayer()
    if pair is not None:
        keys, values = pair
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys[..., :length, :], values[..., :length, :]
    return layer


def empty_cache() -> Cache:
    """For a prompt of which nothing was read before."""
    return Cache(layer_class_to_replicate=DynamicLayer)


def keys_values(cache: Cache) -> KeysValues:
    """What a cache of one conversation holds."""
    layers: list[Any] = cache.layers
    return [(it.keys, it.values) if it.get_seq_length() else None for it in layers]


class BatchCache(Cache):
    """The cache of the conversations that are being answered."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        """Tokens of each row."""
        self.end = 0
        self._buffers: list[_BatchLayer] = []

    @property
    def begin(self) -> int:
        return self.end - max(self.lengths, default=0)

    def add(self, layers: KeysValues) -> None:
        """One more row, the last."""
        length = next(pair[0].shape[-2] for pair in layers if pair is not None)
        if not self._buffers:
            self._buffers = [_BatchLayer(self) for _ in layers]
            self.layers = list(self._buffers)
        self._make_room(len(self.lengths) + 1, max([*self.lengths, length]) + 1)
        for layer, pair in zip(self._buffers, layers, strict=True):
            if pair is not None:
                layer.place(pair, len(self.lengths))
        self.lengths.append(length)

    def remove(self, row: int) -> KeysValues:
        """Take a row out; the last row gets its place."""
        columns = slice(self.end - self.lengths[row], self.end)
        taken = [layer.row(row, columns) for layer in self._buffers]
        last = len(self.lengths) - 1
        if row != last:
            for layer in self._buffers:
                layer.move(last, row)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.clear()
        return taken

    def clear(self) -> None:
        """Forget all rows and free their memory."""
        self.lengths.clear()
        self.layers, self._buffers, self.end = [], [], 0

    def before_step(self) -> None:
        """Make sure that one more token of each row has a place."""
        self._make_room(len(self.lengths), max(self.lengths) + 1)

    def after_step(self) -> None:
        """The new tokens count. Until now the step could have been repeated."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def padding_mask(self, device: torch.device) -> Tensor:
        """True where a row has a token, its next one included: bool of shape (rows, columns)."""
        lengths = torch.tensor(self.lengths, device=device)
        width = self.end - self.begin + 1
        return torch.arange(width, device=device) >= width - 1 - lengths[:, None]

    def _make_room(self, rows: int, columns: int) -> None:
        """Copy into larger buffers where a row or a column is missing."""
        held = next((it.size for it in self._buffers if it.size), (0, 0))
        # The longest row begins in the buffer, and its next token ends there.
        if held[0] >= rows and columns - 1 <= self.end < held[1]:
            return
        old, new_end = slice(self.begin, self.end), columns - 1
        rows = 1 << (rows - 1).bit_length()  # not a copy of everything for each row that comes
        for layer in self._buffers:
            layer.resize(old, new_end, rows, columns + HEADROOM)
        self.end = new_end


class _BatchLayer(CacheLayerMixin):
    """One layer's keys and values, of shape (rows, heads, columns, size)."""

    def __init__(self, batch: BatchCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch = batch
        self._both: list[Tensor] = []
        """Keys and values; empty before the first row, and where a layer shares another's."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns that there is memory for."""
        return (self._both[0].shape[0], self._both[0].shape[2]) if self._both else None

    def place(self, pair: tuple[Tensor, Tensor], row: int) -> None:
        end, length = self._batch.end, pair[0].shape[-2]
        if not self._both:
            self._both = [_zeros_like(it, 1, end + HEADROOM) for it in pair]
        for buffer, new in zip(self._both, pair, strict=True):
            buffer[row, :, end - length : end] = new[0]
            # What the mask hides is multiplied by nought all the same: an overflow must not stay.
            buffer[row, :, : end - length] = 0

    def row(self, row: int, columns: slice) -> tuple[Tensor, Tensor] | None:
        if not self._both:
            return None
        keys, values = (buffer[row, None, :, columns].clone() for buffer in self._both)
        return keys, values

    def move(self, source: int, target: int) -> None:
        for buffer in self._both:
            buffer[target] = buffer[source]

    def resize(self, old: slice, new_end: int, rows: int, columns: int) -> None:
        new = slice(new_end - (old.stop - old.start), new_end)
        for index, before in enumerate(self._both):
            after = _zeros_like(before, rows, columns)
            held = min(rows, len(before))
            after[:held, :, new] = before[:held, :, old]
            self._both[index] = after

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the memory comes with the first row."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_options: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token a row, which does not count before `after_step`."""
        rows, end = len(key_states), self._batch.end
        for buffer, new in zip(self._both, (key_states, value_states), strict=True):
            buffer[:rows, :, end] = new[:, :, 0]
        keys, values = (buffer[:rows, :, self._batch.begin : end + 1] for buffer in self._both)
        return keys, values

    def get_seq_length(self) -> int:
        return self._batch.end - self._batch.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _zeros_like(tensor: Tensor, rows: int, columns: int) -> Tensor:
    return tensor.new_zeros(rows, tensor.shape[1], columns, tensor.shape[3])


class ChannelCaches:
    """What was last read of each channel, the longest unused dropped first.

    `most_bytes` bounds what is kept. A channel's entry is handed out and put back after the answer.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._read: OrderedDict[Hashable, Read] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._read)

    def take(self, channel: Hashable, prompt: Sequence[int]) -> tuple[Cache, int]:
        """A cache to go on from, and how many tokens of the prompt it holds: all but one at most,
        for the model has to read something."""
        read = self._read.pop(channel, None)
        if read is None:
            return empty_cache(), 0
        self.bytes -= read.bytes
        pairs = zip(read.token_ids, prompt[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return (read.start(common), common) if common else (empty_cache(), 0)

    def put(self, channel: Hashable, read: Read) -> None:
        before = self._read.pop(channel, None)
        self.bytes += read.bytes - (before.bytes if before else 0)
        self._read[channel] = read
        while self.bytes > self.most_bytes:
            self.bytes -= self._read.popitem(last=False)[1].bytes

    def clear(self) -> None:
        self._read.clear()
        self.bytes = 0
