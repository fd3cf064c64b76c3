"""What is measured of each message of a real chat equals a computation in plain Python."""

import json
import math
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex

from discord_lora.analysis.report.columns import read_columns
from discord_lora.analysis.report.measure import Options, make_report, measure
from discord_lora.analysis.report.token_counts import token_counter
from discord_lora.messages.prepare import PrepareOptions, prepare
from fakes import SPECIAL, make_tokenizer

PYSCRIPT = Path(__file__).resolve().parents[4] / "shared" / "data" / "pyscript"
LINK = re.compile(r"https?://\S+", re.IGNORECASE)
NOT_TALK = re.compile(
    r"```.*?```|https?://\S+|@\S+|<?a?:\w{2,32}:(?:\d+>)?", re.IGNORECASE | re.DOTALL
)
LONG = 6


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """The messages as lines of JSON, what is measured of them, and the report."""
    if not PYSCRIPT.is_dir():
        pytest.skip("the shared pyscript chat is not beside this repository")
    folder = tmp_path_factory.mktemp("pyscript")
    make_tokenizer().save_pretrained(folder / "tiny")
    path = folder / "training_data.jsonl"
    prepare(PrepareOptions((PYSCRIPT,), path, skip=frozenset({"repeats"})))
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    columns = read_columns(path)
    options = Options(tokenizer="tiny", count_tokens=token_counter(str(folder / "tiny")))
    measures = measure(columns, options)
    return rows, measures, make_report(columns, measures, options), folder / "tiny"


def words_of(text):
    """A letter and the letters, digits, marks and apostrophes after it, in lower case."""
    words, word = [], ""
    for character in [*NOT_TALK.sub("", text).lower(), " "]:
        kind = unicodedata.category(character)[0]
        if kind == "L" or (word and (kind in "MN" or character in "'’")):
            word += character
        elif word:
            words.append(word)
            word = ""
    return words


def is_command(text):
    first = re.split(r"\s", text)[0]
    name = first[1:]
    return (
        first[:1] in tuple("!/$")
        and name[:1].isascii()
        and name[:1].isalpha()
        and all(it.isalnum() or it in "_-" for it in name)
    )


def share_of(text, words):
    """What a message consists of, under the names of the report."""
    link = LINK.search(text) is not None
    return {
        "with_link": link,
        "link_only": link and not set(LINK.sub("", text)) - {*" \t\r\n<>|"},
        "commands": is_command(text),
        "with_code": "```" in text,
        "without_words": not words and not link,
        "one_word": len(words) == 1,
        "up_to_three_words": 1 <= len(words) <= 3,
        "questions": text.rstrip().endswith("?"),
    }


def test_what_the_messages_consist_of(chat):
    rows, _, report, _ = chat
    counted = Counter()
    for row in rows:
        found = share_of(row["content"], words_of(row["content"]))
        counted.update(name for name, is_so in found.items() if is_so)
    measured = {name: getattr(report.content, name) for name in vars(report.content)}
    assert {name: it.messages for name, it in measured.items()} == {
        name: counted[name] for name in measured
    }
    assert all(it.share == it.messages / len(rows) for it in measured.values())
    assert min(counted.values()) > 0


# --- near repeats -----------------------------------------------------------------------------


def similar_pairs(texts):
    """Jaccard similarity of the word pairs of each two long texts that share one."""
    pairs = {n: set(pairwise(words)) for n, words in enumerate(texts) if len(words) >= LONG}
    holding = defaultdict(list)
    found = {}
    for n, own in pairs.items():
        shared = Counter(other for pair in own for other in holding[pair])
        for other, both in shared.items():
            similarity = both / (len(own) + len(pairs[other]) - both)
            if similarity >= 0.4:
                found[other, n] = similarity
        for pair in own:
            holding[pair].append(n)
    return found


def groups_of(texts, similar, least):
    """For each text the oldest that it hangs together with, over pairs of `least` and more."""
    leader = list(range(len(texts)))

    def oldest(n):
        while leader[n] != n:
            n = leader[n]
        return n

    for (one, two), similarity in similar.items():
        if similarity >= least:
            first, second = sorted((oldest(one), oldest(two)))
            leader[second] = first
    return [oldest(n) for n in range(len(texts))]


@pytest.fixture(scope="module")
def grouped(chat):
    """The words of each message, and its group by the strictest and the loosest reading."""
    rows, *_ = chat
    texts = [words_of(row["content"]) for row in rows]
    similar = similar_pairs(texts)
    return texts, groups_of(texts, similar, 0.8), groups_of(texts, similar, 0.4)


def test_near_repeats_lie_between_those_that_are_certain_and_those_that_are_possible(chat, grouped):
    _, measures, report, _ = chat
    texts, strict, loose = grouped
    repeats = [len(texts) - len(set(groups)) for groups in (strict, loose)]
    assert 10 < repeats[0] <= report.duplicates.near_repeats.messages <= repeats[1]
    # By similarities estimated from 24 values: one in a thousand may fall to the other side.
    found = measures.duplicates.group
    parted = sum(found[n] != found[strict[n]] for n in range(len(texts)) if len(texts[n]) >= LONG)
    joined = sum(loose[n] != loose[found[n]] for n in range(len(texts)) if len(texts[n]) >= LONG)
    assert parted + joined <= len(texts) / 1000


# --- the quality score ------------------------------------------------------------------------


def parts_of(row, words, copies, bits, replies, usual):
    """Each part of the score by the formula that quality.py documents."""
    text, count = row["content"], len(words)
    fresh = sum(word not in words[max(0, n - 8) : n] for n, word in enumerate(words))
    talk = len(NOT_TALK.sub("", text).strip())
    letters = sum(map(len, words)) / max(talk - max(count - 1, 0), 1)
    signs = 0.3 + 0.7 * min(1, letters / 0.5)
    engaged = row["reactions"] + 2 * replies
    return {
        "length": (0.4 + 0.6 * min(1, len(text) / 20)) * min(1, math.sqrt(300 / len(text))),
        "information": bits / (bits + 30),
        "originality": (min(1, fresh / count / 0.7) if count else 1)
        / (1 + min(1, count / 8) ** 2 * math.log2(copies)),
        "own_words": 0 if is_command(text) else min(1, talk / len(text)) * signs,
        "engagement": 0.5 + 0.5 * engaged / (engaged + 2 * usual + 1),
    }


def surprise(words, frequency, total):
    fresh = (word for n, word in enumerate(words) if word not in words[max(0, n - 8) : n])
    return sum(math.log2(total / frequency[word]) for word in fresh)


def copies_of(rows, texts, strict, loose):
    """How many copies there are of each text (1 for the first), None where readings differ."""
    exact = defaultdict(list)
    for n, row in enumerate(rows):
        exact[row["content"].lower().strip()].append(n)
    sizes = Counter(strict), Counter(loose)
    found = []
    for n, row in enumerate(rows):
        if len(texts[n]) < LONG:
            same = exact[row["content"].lower().strip()]
            found.append(1 if same[0] == n else len(same))
        elif sizes[0][strict[n]] == sizes[1][loose[n]]:
            found.append(1 if strict[n] == n else sizes[0][strict[n]])
        else:
            found.append(None)
    return found


def test_the_quality_score_is_that_of_the_formula(chat, grouped):
    rows, measures, report, _ = chat
    texts, strict, loose = grouped
    frequency = Counter(word for words in texts for word in words)
    replies = Counter(row["reply_to"] for row in rows)
    engaged = defaultdict(list)
    for row in rows:
        engaged[row["channel_id"]].append(row["reactions"] + 2 * replies[row["id"]])
    scores, differences = [], []
    for n, copies in enumerate(copies_of(rows, texts, strict, loose)):
        if copies is None:
            continue
        bits = surprise(texts[n], frequency, frequency.total())
        usual = statistics.fmean(engaged[rows[n]["channel_id"]])
        parts = parts_of(rows[n], texts[n], copies, bits, replies[rows[n]["id"]], usual)
        worth = 0.2 * parts["length"] + 0.5 * parts["information"] + 0.3 * parts["engagement"]
        scores.append(100 * parts["own_words"] * parts["originality"] * worth)
        differences.append(abs(scores[-1] - measures.score[n]))
    assert len(scores) > 0.98 * len(rows)
    # Words are counted in a million buckets there: a few rare ones share one.
    assert np.mean(differences) < 0.02
    assert max(differences) < 1
    assert abs(report.quality.score.median - statistics.median_low(scores)) <= 1
    low = sum(score < 20 for score in scores) / len(scores)
    assert report.quality.low.share == pytest.approx(low, abs=0.02)


# --- tokens -----------------------------------------------------------------------------------


def byte_letters():
    """GPT-2's letter for each byte: itself where it can be seen, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in seen)
    return {byte: chr(byte) for byte in seen} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


def test_tokens_are_those_of_byte_pair_encoding(chat):
    rows, _, report, folder = chat
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    letters = byte_letters()
    special = re.compile("|".join(map(re.escape, SPECIAL)))
    piece = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    known = {}

    def tokens_of(text):
        if text not in known:
            parts = [letters[byte] for byte in text.encode()]
            while pairs := [it for it in pairwise(parts) if it in ranks]:
                best = min(pairs, key=ranks.__getitem__)
                at = next(n for n, it in enumerate(pairwise(parts)) if it == best)
                parts[at : at + 2] = ["".join(best)]
            known[text] = len(parts)
        return known[text]

    counts = [
        len(special.findall(row["content"]))
        + sum(tokens_of(it) for text in special.split(row["content"]) for it in piece.findall(text))
        for row in rows
    ]
    found = report.lengths.tokens
    assert (found.count, found.total, found.longest) == (len(rows), sum(counts), max(counts))
    assert found.median == statistics.median_low(counts)
