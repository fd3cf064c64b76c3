"""One number a message: how much it would teach a model about talking here, from 0 to 100.

    score = 100 x own_words x originality
            x (0.20 length + 0.50 information + 0.30 engagement)

Every part is between 0 and 1:

    own_words     the share of the text that is neither link, code, @mention nor :emoji: name,
                  times how much of that is letters: 1 from one half on, falling to 0.3 for a
                  table of numbers, an ASCII drawing or a lone smiley. A bot command has 0.
    originality   the share of words that do not stand among the eight before them (1 from 0.7
                  on), divided by 1 + m log2(copies) for all but the first of the texts that
                  stand in the data more than once. m = (words / 8)^2 up to 1: everybody says
                  "thanks" and "I see, I see".
    length        rises from 0.4 to 1 at 20 characters: short is not bad as such. Falls from 300
                  on, as sqrt(300 / characters): what is longer is written like a post, or pasted.
    information   b / (b + 30) for b bits of surprise (words.surprise_bits): rare words say more
                  than "yes ok", and each further word adds less.
    engagement    0.5 + 0.5 e / (e + 2 c + 1) with e = reactions + 2 x replies received, and c the
                  mean of e in the channel: ten reactions are much in one channel and usual in
                  another. 0.5 is what a message has that nobody reacted to, and all in a private
                  talk, where nobody clicks on reactions.

It is a rule of thumb, made for sorting. What is funny it does not know, and who writes in the
server's second language uses words that are rare here and rates a little higher for it.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report.duplicates import Duplicates
from discord_lora.analysis.report.words import Words

Numbers = npt.NDArray[np.float64]

WEIGHTS = {"length": 0.20, "information": 0.50, "engagement": 0.30}
_COMMAND = r"^[!/$][A-Za-z][\w-]*(?:\s|$)"
_ENOUGH_CHARACTERS, _MANY_CHARACTERS = 20, 300
_ENOUGH_LETTERS = 0.5
_WORTH_OF_SIGNS = 0.3
_ENOUGH_FRESH = 0.7
_HALF_BITS = 30.0
_COMMON_WORDS = 8
_REPLY_WORTH = 2


@dataclass(frozen=True)
class Quality:
    """The parts and the score of every message, in the order of the frame."""

    length: Numbers
    information: Numbers
    originality: Numbers
    own_words: Numbers
    engagement: Numbers

    @property
    def score(self) -> Numbers:
        """From 0 to 100."""
        worth = sum(weight * getattr(self, name) for name, weight in WEIGHTS.items())
        return np.asarray(100 * self.own_words * self.originality * worth)

    def parts_of(self, row: int) -> dict[str, float]:
        """Each part of one message."""
        return {part.name: float(getattr(self, part.name)[row]) for part in fields(self)}


def measure_quality(
    frame: pl.DataFrame, words: Words, duplicates: Duplicates, replies: npt.NDArray[np.int64]
) -> Quality:
    """Rate every message of `frame`."""
    characters = frame["content"].str.len_chars().to_numpy().astype(np.float64)
    return Quality(
        length=_length(characters),
        information=_saturating(words.surprise_bits(), _HALF_BITS),
        originality=_originality(words, duplicates),
        own_words=_own_words(frame["content"], characters, words),
        engagement=_engagement(frame, replies),
    )


def is_command(content: pl.Series) -> npt.NDArray[np.bool_]:
    """What people type to bots: !play, /roll, $price."""
    return content.str.contains(_COMMAND).to_numpy()


def _saturating(amount: Numbers, half: float | Numbers) -> Numbers:
    return np.asarray(amount / (amount + half))


def _length(characters: Numbers) -> Numbers:
    rising = 0.4 + 0.6 * np.minimum(1, characters / _ENOUGH_CHARACTERS)
    return np.asarray(rising * np.minimum(1, np.sqrt(_MANY_CHARACTERS / np.maximum(characters, 1))))


def _originality(words: Words, duplicates: Duplicates) -> Numbers:
    counts = words.counts
    fresh = words.total(words.fresh) / np.maximum(counts, 1)
    matters = np.minimum(1, counts / _COMMON_WORDS) ** 2
    copies = np.maximum(duplicates.copies, duplicates.near_copies)
    copies = np.where(duplicates.first, 1, copies)
    fresh = np.where(counts > 0, np.minimum(1, fresh / _ENOUGH_FRESH), 1)
    return np.asarray(fresh / (1 + matters * np.log2(copies)))


def _own_words(content: pl.Series, characters: Numbers, words: Words) -> Numbers:
    talk = words.talk_characters
    share = np.minimum(1, talk / np.maximum(characters, 1))
    # Blanks between the words are no signs.
    visible = np.maximum(talk - np.maximum(words.counts - 1, 0), 1)
    letters = np.minimum(1, words.letters / visible / _ENOUGH_LETTERS)
    letters = _WORTH_OF_SIGNS + (1 - _WORTH_OF_SIGNS) * letters
    return np.asarray(np.where(is_command(content), 0, share * letters))


def _engagement(frame: pl.DataFrame, replies: npt.NDArray[np.int64]) -> Numbers:
    amount = frame["reactions"].to_numpy() + _REPLY_WORTH * replies.astype(np.float64)
    channel = frame["channel_id"].to_physical().to_numpy()
    usual = np.bincount(channel, weights=amount) / np.maximum(np.bincount(channel), 1)
    return np.asarray(0.5 + 0.5 * _saturating(amount, 2 * usual[channel] + 1))
