"""Words, repeats, quality, private data, languages: the figures of single messages."""

import random
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discord_lora.analysis.report.columns import MessageColumns, columns_of
from discord_lora.analysis.report.duplicates import _signatures, find_duplicates
from discord_lora.analysis.report.languages import UNCLEAR, languages_of, share_languages
from discord_lora.analysis.report.measure import Options, measure
from discord_lora.analysis.report.private_data import KINDS, find_private_data
from discord_lora.analysis.report.quality import WEIGHTS
from discord_lora.analysis.report.words import read_words
from fakes import say

VOCABULARY = [f"word{n}" for n in range(2_000)]


def texts(*contents):
    return pl.Series("content", contents, dtype=pl.String)


def duplicates_of(*contents):
    return find_duplicates(texts(*contents), read_words(texts(*contents)))


def scores_of(*contents, **fields):
    messages = [say("Ada", it, minute=n, id=str(n), **fields) for n, it in enumerate(contents)]
    return measure(MessageColumns(columns_of(messages)), Options()).score


# --- words ------------------------------------------------------------------------------------


def test_links_code_mentions_and_emoji_names_are_no_words():
    words = read_words(
        texts("Look: https://x.y/z look HERE", "@Bob :wave: hi", "```py\nx```", "😀")
    )
    assert words.counts.tolist() == [3, 1, 0, 0]
    assert words.letters.tolist() == [12, 2, 0, 0]
    assert words.fresh.tolist() == [True, False, True, True]
    assert words.hashes[0] == words.hashes[1] != words.hashes[2]


@given(st.lists(st.text(st.sampled_from("aB é1'.\n"), max_size=12), max_size=20))
@settings(deadline=None)
def test_words_do_not_depend_on_the_messages_around_them(contents):
    together = read_words(texts(*contents))
    for n, content in enumerate(contents):
        alone = read_words(texts(content))
        begin, end = together.starts[n], together.starts[n + 1]
        assert together.hashes[begin:end].tolist() == alone.hashes.tolist()
        assert together.fresh[begin:end].tolist() == alone.fresh.tolist()


def test_rare_words_carry_more_bits():
    words = read_words(texts(*["the tea"] * 50, "the samovar"))
    bits = words.surprise_bits()
    total = 102
    assert bits[0] == pytest.approx(np.log2(total / 51) + np.log2(total / 50), rel=1e-5)
    assert bits[50] == pytest.approx(np.log2(total / 51) + np.log2(total), rel=1e-5)


# --- repeats ----------------------------------------------------------------------------------


def test_exact_repeats_ignore_case_and_blanks_at_the_ends():
    found = duplicates_of("Hi there", "hi there ", "other", "HI THERE")
    assert found.copies.tolist() == [3, 3, 1, 3]
    assert found.first_exact.tolist() == [True, False, True, False]


def test_near_repeats_are_found_and_short_or_different_texts_are_not():
    paste = "did you ever hear the tragedy of darth plagueis the wise i thought not"
    found = duplicates_of(
        paste, paste.replace("wise", "old"), "something else that nobody would ever take for it",
        "hi there", "hi there you", paste + " lol",
    )  # fmt: skip
    assert found.near_copies.tolist() == [3, 3, 1, 1, 1, 3]
    assert found.first.tolist() == [True, False, True, True, True, False]


def test_among_some_messages_only_those_are_copies():
    paste = "did you ever hear the tragedy of darth plagueis the wise i thought not"
    found = duplicates_of(paste, "hi", paste, f"{paste} lol", "hi")
    some = found.among(np.array([False, True, True, True, False]))
    assert some.copies.tolist() == [1, 1, 1]
    assert some.near_copies.tolist() == [1, 2, 2]
    assert some.first.tolist() == [True, True, False]
    assert some.first_exact.tolist() == [True, True, True]
    everything = found.among(np.ones(5, np.bool_))
    assert everything.first.tolist() == [True, True, False, False, False]


def jaccard(one, other):
    first, second = (set(pairwise(text.split())) for text in (one, other))
    return len(first & second) / len(first | second)


def test_a_text_has_the_same_values_whatever_stands_beside_it():
    text = "one two three four five six seven"
    alone, beside = read_words(texts(text)), read_words(texts("before it", text, "after it"))
    first = _signatures(alone, np.array([0]))
    assert np.array_equal(first[:, 0], _signatures(beside, np.arange(3))[:, 1])


def edited(words, share, chance):
    return [chance.choice(VOCABULARY) if chance.random() < share else word for word in words]


def test_random_edits_are_grouped_by_their_true_similarity():
    chance = random.Random(1)
    contents = []
    for _ in range(300):
        words = chance.choices(VOCABULARY, k=30)
        contents += [" ".join(words), " ".join(edited(words, chance.choice((0.03, 0.4)), chance))]
    found = duplicates_of(*contents)
    missed = wrong = 0
    for n in range(0, 600, 2):
        similar = jaccard(contents[n], contents[n + 1])
        joined = found.group[n] == found.group[n + 1]
        missed += similar >= 0.8 and not joined
        wrong += similar < 0.3 and joined
    assert missed <= 3  # likelihood 0.003 each
    assert wrong == 0
    assert (np.bincount(found.group) <= 2).all()


# --- quality ----------------------------------------------------------------------------------


def test_what_is_no_talk_is_at_the_bottom_and_wit_is_not():
    good = "my cat has learned to open the fridge and now judges my diet"
    contents = [
        "https://example.org/a/b", "!play despacito", "```\nx = 1\n```", "@Bob", "?", "ok",
        "born to suffer", good, *["ok"] * 20,
    ]  # fmt: skip
    link, command, code, mention, sign, ok, wit, best, *_ = scores_of(*contents)
    assert link == command == code == mention == 0
    assert 0 < sign < ok < wit < best


def test_pasting_the_same_again_lowers_the_score():
    paste = "buy my new album now it is the best album of the whole year"
    first, *again = scores_of(*[paste] * 8)
    assert first > 2 * max(again)
    fresh, spam = scores_of("some quite new words here", "spam spam spam spam spam")
    assert fresh > 2 * spam


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
@settings(deadline=None)
def test_every_part_stays_between_0_and_1_and_makes_the_score(contents):
    messages = [say("Ada", it, minute=n, id=str(n), reactions=n) for n, it in enumerate(contents)]
    measures = measure(MessageColumns(columns_of(messages)), Options())
    for row in range(len(contents)):
        parts = measures.quality.parts_of(row)
        assert all(0 <= part <= 1 for part in parts.values()), parts
        worth = sum(weight * parts[name] for name, weight in WEIGHTS.items())
        expected = 100 * parts["own_words"] * parts["originality"] * worth
        assert measures.score[row] == pytest.approx(expected)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


# --- private data -----------------------------------------------------------------------------

PRIVATE = {
    "email": ["write to ann.b+x@mail.example.org!", "ANN@EXAMPLE.ORG"],
    "phone_number": ["call +49 170 1234567", "(555) 123-4567", "my number: 555-123-4567."],
    "key_or_token": ["ghp_" + "a1B2" * 9, "key sk-" + "x" * 40, "AKIA" + "A1" * 8],
    "discord_token": ["M" + "aB" * 12 + ".aBcDeF." + "x" * 30],
    "password": ["password: hunter", "the Passwort = geheim", "password is tea", "Contraseña: x"],
    "ip_address": ["ping 192.168.17.4 please", "8.8.8.8"],
    "payment_card": ["4111 1111 1111 1111", "5500000000000004"],
    "iban": ["DE89 3704 0044 0532 0130 00"],
    "coordinates": ["52.52001, 13.40495", "at 40.7128 N, -74.0060"],
}
HARMLESS = [
    "see you @ 8", "version 1.2.3", "1,000,000 people", "2024-05-01 12:30", "100-200 euros",
    "the password was wrong", "id 1419408018537316453", "3.14159 and 2.71828", "a@b",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, all_ in PRIVATE.items() for t in all_])
def test_private_data_is_found(kind, text):
    found = find_private_data(texts("nothing here", text, "nothing"))
    assert found[kind].tolist() == found["any"].tolist() == [False, True, False]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_a_little_like_it_is_not(text):
    assert not find_private_data(texts(text))["any"].any()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_no_match_of_a_pattern_is_passed_over(kind, data):
    pattern = KINDS[kind].replace(r"(?-u:\b)", r"\b")  # as Python writes it
    content = texts(data.draw(st.from_regex(pattern, alphabet=st.characters(codec="utf-8"))))
    found = find_private_data(content)[kind].tolist()
    assert found == content.str.contains(KINDS[kind]).to_list()


def test_a_message_may_hold_several_kinds():
    found = find_private_data(texts("a@example.org b@example.org 10.0.0.1"))
    assert {kind for kind, mask in found.items() if mask[0]} == {"email", "ip_address", "any"}
    assert found.keys() == {*KINDS, "any"}


# --- languages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "I think that is what they would like to have"),
        ("de", "ich habe das auch noch nicht gesehen aber ich glaube es ist gut"),
        ("fr", "je ne sais pas pourquoi c'est comme ça mais on va voir"),
        ("es", "yo no sé por qué pero está muy bien para mí"),
        ("pt", "eu não sei mas isso é muito bom para você"),
        ("it", "non so che cosa sono questi ma anche la pizza è buona"),
        ("nl", "ik weet het niet maar dat is wel een goed idee voor deze groep"),
        ("pl", "nie wiem czy to jest już gotowe ale może tak"),
        ("cs", "nevím jestli už jsem to viděl ale když není tak nebo"),
        ("sk", "neviem či už som to videl ale keď nie je tak alebo aj"),
        ("sv", "jag vet inte vad det är men vi kan väl se när du kommer"),
        ("da", "jeg ved ikke hvad det er men vi kan også se noget"),
        ("no", "jeg vet ikke hva det er men vi kan også se noe"),
        ("fi", "en tiedä mitä se on mutta nyt ei ole vain niin"),
        ("hu", "nem tudom hogy ez mi de csak az volt még"),
        ("tr", "bu çok güzel bir şey ama ne için değil"),
        ("id", "saya tidak tahu apa ini tapi bisa juga untuk kamu"),
        ("ro", "nu știu ce este asta dar sunt mai bine din"),
        ("ru", "я не знаю"), ("uk", "я не знаю її"), ("el", "δεν ξέρω"), ("ja", "分からないです"),
        ("zh", "我不知道"), ("ko", "몰라요"), ("ar", "لا أعرف"), ("he", "לא יודע"), ("th", "ไม่รู้"),
        (UNCLEAR, "ok lol"), (UNCLEAR, "😀"), (UNCLEAR, "https"),
    ],
)  # fmt: skip
def test_languages(language, text):
    assert languages_of(texts(text)).to_list() == [language]


def test_languages_are_counted_on_an_even_sample():
    counts = share_languages(texts(*["this is what they have"] * 45_000, *["ok"] * 15_000))
    assert sum(counts.values()) == 20_000
    assert counts == {"en": 15_000, UNCLEAR: 5_000}
