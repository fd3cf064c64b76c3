"""The sentences: what is said, of which messages, and that following one silences it."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from discord_lora.analysis.filtering.choose import Criteria, choose
from discord_lora.analysis.report.columns import MessageColumns, columns_of
from discord_lora.analysis.report.data_report import as_json
from discord_lora.analysis.report.measure import Options, make_report, measure
from fakes import say

SYLLABLES = [f"{one}{two}" for one in ("sun", "moon", "rain", "hill") for two in ("a", "o", "ish")]
LITTLE_OF_EVERYTHING = {"min_quality": 20.0, "drop_near_duplicates": True, "drop_private": True}
GERMAN = "ich habe das auch noch nicht gesehen"
PASTE = "did you ever hear the tragedy of darth plagueis the wise i thought not"


def varied(count, **fields):
    """Messages of which none says what another said, by seven people."""
    chance = random.Random(3)
    return [
        say(
            f"p{n % 7}",
            " ".join([*chance.choices(SYLLABLES, k=7), f"x{n}"]),
            minute=n,
            id=f"v{n}",
            **fields,
        )
        for n in range(count)
    ]


def saying(author, *texts, **fields):
    return [
        say(author, text, minute=500 + n, id=f"{author}{n}", **fields)
        for n, text in enumerate(texts)
    ]


def report_on(messages, **options):
    columns = MessageColumns(columns_of(messages))
    options = Options(**options)
    return make_report(columns, measure(columns, options), options)


def sentences_on(messages):
    return {finding.key: finding.sentence for finding in report_on(messages).findings}


def filtered(messages, **criteria):
    """The messages as the filter writes them."""
    measures = measure(MessageColumns(columns_of(messages)), Options())
    chosen = choose(measures, Criteria(**criteria)).chosen
    return [replace(message, train=bool(it)) for message, it in zip(messages, chosen, strict=True)]


def test_what_was_filtered_as_advised_is_advised_no_more():
    noise = [
        *saying("Link", *(f"https://example.org/{n}" for n in range(20))),
        *saying("Play", *(f"!play song {n}" for n in range(20))),
        *saying("Paste", *[PASTE] * 20),
        *saying("Mail", "write to ann@example.org about the samovar of your grandmother"),
    ]
    messages = [*varied(200), *noise]
    advised = {"link_only", "commands", "near_repeats", "copypasta", "noisy", "private_data"}
    assert advised <= sentences_on(messages).keys()
    after = filtered(messages, **LITTLE_OF_EVERYTHING)
    assert not advised & sentences_on(after).keys()
    assert "filtered_already" in sentences_on(after)


@pytest.mark.parametrize(
    ("noise", "options"),
    [
        (saying("Bo", *(f"https://example.org/{n}" for n in range(30))), "--min-quality 20"),
        (saying("Bo", *[PASTE] * 30), "--drop-near-duplicates"),
        (
            saying("Bo", *[PASTE] * 30, *(f"!roll {n}" for n in range(30))),
            "--min-quality 20 --drop-near-duplicates",
        ),
    ],
)
def test_the_options_that_are_named_leave_the_noise_out(noise, options):
    messages = [*varied(200), *noise]
    sentence = sentences_on(messages)["noisy"]
    assert re.search(r"filter_training_data.py (.*)\)", sentence)[1] == options
    criteria = {
        "min_quality": 20.0 if "--min-quality 20" in options else None,
        "drop_near_duplicates": "--drop-near-duplicates" in options,
    }
    after = filtered(messages, **criteria)
    assert "noisy" not in sentences_on(after)
    if PASTE in {message.content for message in noise}:
        # One of the copies stays, whatever its number.
        assert [message.content for message in after if message.train].count(PASTE) == 1


def test_a_message_is_noise_once():
    report = report_on(saying("Bo", *["!say one two three four five six seven"] * 40))
    assert report.learned.noise.messages == 40
    assert report.learned.noise.share == 1
    assert report.learned.content.commands.share + report.learned.duplicates.near_repeats.share > 1


@pytest.mark.parametrize(
    ("key", "some"),
    [
        ("commands", saying("Bo", *(f"!play song {n} of many songs" for n in range(5)))),
        ("copypasta", saying("Bo", *[PASTE] * 3)),
    ],
)
def test_what_has_advice_is_not_told_to_be_filtered_already(key, some):
    assert "filtered_already" in sentences_on(varied(400))
    found = sentences_on([*varied(400), *some])
    assert key in found
    assert "filtered_already" not in found


def test_a_share_says_whose_it_is_where_there_is_context():
    links = saying("Bo", *(f"https://example.org/{n}" for n in range(100)))
    assert sentences_on([*varied(100), *links])["link_only"].startswith("50 % are link-only")
    context = [replace(message, train=False) for message in varied(50)]
    some = sentences_on([*context, *varied(100)[50:], *links])
    assert some["link_only"].startswith("67 % of the messages to learn from are link-only")


def test_bots_that_are_context_are_no_news():
    bots = saying("Bot", "a notice of the bot about rain", is_bot=True, train=False)
    assert "bots" not in sentences_on([*varied(50), *bots])
    assert "bots" in sentences_on([*varied(50), replace(bots[0], train=True)])


def test_who_dominates_is_who_is_learned_from():
    loud = saying("Loud", *(f"{message.content} again" for message in varied(300)))
    messages = [*varied(100), *loud]
    assert "One author, Loud, wrote" in sentences_on(messages)["dominant_author"]
    assert "dominant_author" not in sentences_on(filtered(messages, without_authors=["Loud"]))
    # There still is somebody to answer.
    assert "one_author" not in sentences_on(filtered(messages, authors=["Loud"]))
    assert "one_author" in sentences_on(loud)


def test_where_all_is_context_nothing_is_judged():
    report = report_on(varied(50, train=False))
    assert report.learned is None
    assert b'"learned": null' in as_json(report)
    assert {finding.key for finding in report.findings} == {
        "very_little_data", "mostly_context", "no_replies",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("german", "english", "said"),
    [
        (19, 100, None), (20, 100, "several_languages"), (49, 0, None), (50, 0, "not_english"),
        (15, 45, None),
    ],
)  # fmt: skip
def test_languages_of_a_handful_of_messages_are_no_advice(german, english, said):
    messages = [
        *saying("Ann", *(f"{GERMAN} {n}" for n in range(german))),
        *saying("Bob", *(f"I think that is what they have {n}" for n in range(english))),
    ]
    found = sentences_on(messages).keys() & {"several_languages", "not_english"}
    assert found == ({said} if said else set())


def test_languages_of_what_is_context_are_no_advice():
    german = saying("Ann", *(f"{GERMAN} {n}" for n in range(60)), train=False)
    english = saying("Bob", *(f"I think that is what they have {n}" for n in range(60)))
    report = report_on([*german, *english])
    assert report.languages.shares == {"de": 0.5, "en": 0.5}
    assert report.learned.languages.shares == {"en": 1}
    assert not {"several_languages", "not_english"} & {it.key for it in report.findings}


@pytest.mark.parametrize(("limit", "train", "said"), [(9, True, True), (10, True, False),
                                                      (9, False, False)])  # fmt: skip
def test_long_messages_are_those_to_learn_from_that_would_be_cut(limit, train, said):
    def count(texts):
        return texts.str.split(" ").list.len().to_numpy()

    messages = [*varied(9), *saying("Ann", "one two three four five six seven eight nine ten",
                                    train=train)]  # fmt: skip
    found = report_on(messages, count_tokens=count, max_seq_length=limit).findings
    sentences = [it.sentence for it in found if it.key == "long_messages"]
    assert len(sentences) == said
    assert all(f"MAX_SEQ_LENGTH={limit} is cut off" in it for it in sentences)


def test_missing_replies_are_told_where_discord_had_some():
    messages = varied(50)
    assert "which Discord knows since November 2020" in sentences_on(messages)["no_replies"]
    old = [replace(it, timestamp=it.timestamp.replace(year=2018)) for it in messages]
    assert "no_replies" not in sentences_on(old)


def test_private_data_that_is_context_is_not_learned():
    messages = [*varied(20), *saying("Ann", "ann@example.org", "bob@example.org")]
    everything = sentences_on(messages)["private_data"]
    assert "2 messages seem to hold private data (email 2)" in everything
    messages[-1] = replace(messages[-1], train=False)
    some = sentences_on(messages)["private_data"]
    assert "1 of the messages to learn from seem to hold private data (email 1)" in some
    assert "--drop-private" in some
    report = report_on(filtered(messages, drop_private=True))
    assert report.private_data.any.messages == 2
    assert "private_data" not in {finding.key for finding in report.findings}


def test_the_first_of_several_copies_keeps_its_score():
    messages = [*varied(50), *saying("Bo", *[PASTE] * 4)]
    originality = measure(MessageColumns(columns_of(messages)), Options()).quality.originality
    assert originality[50] == 1
    assert np.all(originality[51:] < 0.5)
