"""The words of all messages as one array of numbers, on which the other measures are built.

    content   "Look: https://x.y look HERE"     "lol"
    talk      "Look:  look HERE"                "lol"      links, code, mentions, emoji names out
    hashes    [h(look) h(look) h(here)           h(lol)]   one 32-bit number a word
    starts    [0                                 3      4]
    fresh     [True    False   True              True]     not among the eight words before

A word is a letter and the letters, digits, marks and apostrophes after it, in lower case. Two
words share a number about once in four billion pairs, which no figure here would show.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

_THREADS = 2
_SLICE = 50_000
"""Messages at a time: bounds the memory that the texts of the words take."""

_LOOK_BACK = 8
_BUCKET_BITS = 20
_NOT_TALK = r"(?is)```.*?```|https?://\S+|@\S+|<?a?:\w{2,32}:(?:\d+>)?"
_WORD = r"\p{L}[\p{L}\p{M}\p{N}'’]*"

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Words:
    """See the picture above; `letters` and `talk_characters` are per message."""

    hashes: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    fresh: npt.NDArray[np.bool_]
    letters: npt.NDArray[np.int64]
    talk_characters: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Words of each message."""
        return np.diff(self.starts)

    def total(self, values: npt.NDArray[np.generic]) -> Numbers:
        """The sum over each message's words of `values`, which has one value a word."""
        sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
        return np.asarray(sums[self.starts[1:]] - sums[self.starts[:-1]])

    def surprise_bits(self) -> Numbers:
        """Bits that each message's fresh words carry: the sum of log2(all words / this word).

        Shannon's self-information under the data's own word frequencies, which are counted in
        a million buckets: a rare word that shares one with another seems less rare.
        """
        bucket = self.hashes >> np.uint32(32 - _BUCKET_BITS)
        frequency = np.bincount(bucket, minlength=1 << _BUCKET_BITS)
        bits = np.zeros(len(frequency), np.float32)
        seen = frequency > 0
        bits[seen] = np.log2(len(bucket) / frequency[seen])
        return self.total(np.where(self.fresh, bits[bucket], np.float32(0)))


def read_words(content: pl.Series) -> Words:
    """The words of each text in `content`."""
    slices = [content.slice(begin, _SLICE) for begin in range(0, len(content), _SLICE)]
    # polars and numpy let go of Python's lock, so two slices really run at once.
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(_words_of_slice, slices or [content]))
    counts = np.concatenate([part[1] for part in parts])
    return Words(
        hashes=np.concatenate([part[0] for part in parts]),
        starts=np.concatenate(([0], np.cumsum(counts))),
        fresh=np.concatenate([part[2] for part in parts]),
        letters=np.concatenate([part[3] for part in parts]),
        talk_characters=np.concatenate([part[4] for part in parts]),
    )


def _words_of_slice(content: pl.Series) -> tuple[npt.NDArray[Any], ...]:
    talk = content.str.replace_all(_NOT_TALK, "")
    found = talk.str.to_lowercase().str.extract_all(_WORD)
    counts = found.list.len().to_numpy().astype(np.int64)
    words = found.explode(empty_as_null=False)
    hashes = (words.hash(0).to_numpy() >> np.uint64(32)).astype(np.uint32)
    starts = np.concatenate(([0], np.cumsum(counts)))
    lengths = np.concatenate(([0], np.cumsum(words.str.len_chars().to_numpy(), dtype=np.int64)))
    return (
        hashes,
        counts,
        _fresh(hashes, np.repeat(starts[:-1], counts)),
        lengths[starts[1:]] - lengths[starts[:-1]],
        talk.str.strip_chars().str.len_chars().to_numpy().astype(np.int64),
    )


def _fresh(hashes: npt.NDArray[np.uint32], first: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which words differ from the eight before them; `first` is where each one's message starts."""
    position = np.arange(len(hashes)) - first
    fresh = np.ones(len(hashes), np.bool_)
    for lag in range(1, min(_LOOK_BACK, len(hashes) - 1) + 1):
        fresh[lag:] &= (hashes[lag:] != hashes[:-lag]) | (position[lag:] < lag)
    return fresh
