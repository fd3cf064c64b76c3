"""What each message consists of: links, a bot command, code, few words, a question."""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report.quality import is_command
from discord_lora.analysis.report.words import Words

_LINK: Final = r"(?i)https?://\S+"
_BLANK: Final = r"[\s\x1c-\x1f]"

Mask = npt.NDArray[np.bool_]


def find_content(content: pl.Series, words: Words) -> dict[str, Mask]:
    """Which messages are so, under the names that `data_report.Content` has."""
    has_link = content.str.contains(_LINK).to_numpy()
    counts = words.counts
    return {
        "with_link": has_link,
        "link_only": _link_only(content, has_link),
        "commands": is_command(content),
        "with_code": content.str.contains("```", literal=True).to_numpy(),
        "without_words": (counts == 0) & ~has_link,
        "one_word": counts == 1,
        "up_to_three_words": (counts >= 1) & (counts <= 3),
        "questions": content.str.contains(rf"\?{_BLANK}*$").to_numpy(),
    }


def _link_only(content: pl.Series, has_link: Mask) -> Mask:
    linked = content.filter(pl.Series(has_link))
    rest = linked.str.replace_all(_LINK, "").str.replace_all(rf"{_BLANK}+|[<>|]+", "")
    alone = np.zeros(len(content), np.bool_)
    alone[has_link] = (rest == "").to_numpy()
    return alone
