"""The same text again, word for word or nearly: exact repeats, near repeats, copypasta.

Exact: equal texts, in lower case and without blanks at the ends.

Near: for texts of six words and more. A text is the set of its word pairs; two texts are near
when these sets have a Jaccard similarity of about 0.6 or more. Sets are compared by MinHash
(Broder 1997): 24 hash functions, the smallest value of each kept; the share of equal values
estimates the similarity with a standard error of 0.1. Candidates are found by locality-sensitive
hashing (8 bands of 3 values): two texts are compared when all values of one band are equal,
each with the first text of its bucket, so the time grows with the texts and not with the pairs.
A pair at 0.6 is found with a likelihood of 0.86, one at 0.8 with 0.997.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report.words import Words

FEWEST_WORDS = 6
SIMILAR = 0.6
_BANDS, _VALUES_A_BAND = 8, 3
_FUNCTIONS = _BANDS * _VALUES_A_BAND
_SLICE_WORDS = 1_000_000
_NONE = np.uint32(0xFFFFFFFF)

COPYPASTA_WORDS = 12
COPYPASTA_COPIES = 3

Whole = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Duplicates:
    """Per message: how many messages have its text, and how many have nearly its text."""

    copies: Whole
    near_copies: Whole
    text: Whole
    """Messages with the same text have the same number here."""

    group: Whole
    """Messages with nearly the same text have the same number here."""

    first: Mask
    """The first message of its group; the others are what dropping near repeats would drop."""

    first_exact: Mask
    """The first message with exactly this text."""

    def among(self, rows: Mask) -> "Duplicates":
        """As if the messages in `rows` were all there are; one entry each."""
        if rows.all():
            return self
        text, group = self.text[rows], self.group[rows]
        return Duplicates(
            copies=_sizes(text),
            near_copies=_sizes(group),
            text=text,
            group=group,
            first=first_of_each(group),
            first_exact=first_of_each(text),
        )


def first_of_each(labels: Whole) -> Mask:
    """Which entries have a label that none before them has."""
    first = np.zeros(len(labels), np.bool_)
    first[np.unique(labels, return_index=True)[1]] = True
    return first


def _sizes(labels: Whole) -> Whole:
    """For each entry how many have its label."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return counts[place].astype(np.int64)


def find_duplicates(content: pl.Series, words: Words) -> Duplicates:
    """Count each message's copies and near copies, itself included."""
    texts = content.str.to_lowercase().str.strip_chars().hash(0).to_numpy()
    _, first, text_of, copies = np.unique(
        texts, return_index=True, return_inverse=True, return_counts=True
    )
    # Number the texts by their first message, so that a group's label is its oldest text.
    long = np.sort(first[words.counts[first] >= FEWEST_WORDS])
    group_of_text = np.arange(len(content))
    group_of_text[long] = long[_group(_signatures(words, long))]
    text = first[text_of]
    group = group_of_text[text]
    sizes = np.bincount(group, minlength=len(content))
    return Duplicates(
        copies=copies[text_of].astype(np.int64),
        near_copies=sizes[group].astype(np.int64),
        text=text,
        group=group,
        first=group == np.arange(len(content)),
        first_exact=text == np.arange(len(content)),
    )


def _signatures(words: Words, rows: Whole) -> npt.NDArray[np.uint32]:
    """The MinHash values of the messages in `rows`: an array of shape (functions, rows)."""
    signatures = np.empty((_FUNCTIONS, len(rows)), np.uint32)
    counts = words.counts[rows]
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(rows):
        before = ends[begin] - counts[begin]
        end = max(begin + 1, int(np.searchsorted(ends, before + _SLICE_WORDS, side="right")))
        signatures[:, begin:end] = _signatures_of_slice(words, rows[begin:end])
        begin = end
    return signatures


def _signatures_of_slice(words: Words, rows: Whole) -> npt.NDArray[np.uint32]:
    counts = words.counts[rows]
    starts = np.cumsum(counts) - counts
    at = np.arange(counts.sum()) + np.repeat(words.starts[rows] - starts, counts)
    hashes = words.hashes[at].astype(np.uint64)
    pairs = _mixed(hashes[:-1] * np.uint64(0x9E3779B1) + hashes[1:])
    pairs = np.append(pairs, np.uint64(0))
    last = starts + counts - 1
    functions = np.random.default_rng(0).integers(1, 1 << 63, (2, _FUNCTIONS), dtype=np.uint64)
    found = np.empty((_FUNCTIONS, len(rows)), np.uint32)
    for number, (times, plus) in enumerate(functions.T):
        values = ((pairs * (times | np.uint64(1)) + plus) >> np.uint64(32)).astype(np.uint32)
        values[last] = _NONE  # the last word of a message has no pair
        found[number] = np.minimum.reduceat(values, starts)
    return found


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread the bits (the finaliser of MurmurHash3), or similar pairs stay similar."""
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    return values


def _group(signatures: npt.NDArray[np.uint32]) -> Whole:
    """For each text the first text of its group."""
    texts = signatures.shape[1]
    label = np.arange(texts)
    pairs: list[tuple[Any, Any]] = []
    for band in signatures.reshape(_BANDS, _VALUES_A_BAND, texts):
        key = _mixed(band[0].astype(np.uint64) << np.uint64(32) | band[1])
        key = _mixed(key + band[2])
        _, first, bucket = np.unique(key, return_index=True, return_inverse=True)
        head = first[bucket]
        other = np.flatnonzero(head != label)
        equal = (signatures[:, other] == signatures[:, head[other]]).mean(axis=0)
        near = other[equal >= SIMILAR]
        pairs.append((head[near], near))
    one = np.concatenate([pair[0] for pair in pairs])
    two = np.concatenate([pair[1] for pair in pairs])
    return _connected(label, one, two)


def _connected(label: Whole, one: Whole, two: Whole) -> Whole:
    """The smallest number that each can be reached from, over the links `one`-`two`."""
    while True:
        before = label.copy()
        smallest = np.minimum(label[one], label[two])
        np.minimum.at(label, one, smallest)
        np.minimum.at(label, two, smallest)
        label = label[label]
        if np.array_equal(label, before):
            return label
