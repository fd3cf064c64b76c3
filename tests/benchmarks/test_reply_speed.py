"""What the benchmark of replies measures: the same work at once and in turn, and both starts."""

import asyncio
import statistics
from dataclasses import replace

import reply_speed
from discord_lora.conversations.prompt_format import server_voice
from discord_lora.inference.local_backend import LocalBackend
from fakes import chatter, conversation, make_model, make_tokenizer
from run_scripts import run_here


def test_it_answers_every_channel_and_measures_both_kinds_of_turn(capsys):
    backend = LocalBackend(
        make_model(), make_tokenizer(), server_voice("Bot"), max_prompt_tokens=2000
    )
    talks = [conversation(*chatter(20 + n)) for n in range(3)]
    measured = asyncio.run(reply_speed.measure(backend, talks, 2, 4, print))
    for rates, replies in ((measured.first, 3), (measured.going_on, 2 * 3)):
        one, many = rates
        assert (one.channels, many.channels) == (1, 3)
        assert one.replies == many.replies == replies
        assert min(one.seconds, many.seconds) > 0
        # The same work either way.
        assert one.tokens_read == many.tokens_read
        assert one.tokens_written == many.tokens_written > 1
    # A talk that goes on reads what was said since; the first reply reads it all.
    first, going_on = measured.first[0], measured.going_on[0]
    assert first.tokens_read == statistics.mean(prompt_lengths(backend, talks))
    assert going_on.tokens_read < first.tokens_read / 3
    assert backend.status().replies == 1 + 2 * (3 + 2 * 3)
    assert measured.start.seconds_with_cache > 0
    assert measured.start.seconds_without > 0
    reply_speed.show(measured)
    assert "3 channels" in capsys.readouterr().out
    backend.close_now()


def prompt_lengths(backend, talks):
    for said in talks:
        # Two turns, of a question and an answer each, and the first answer come after it.
        yield len(backend.prompt(replace(said, messages=said.messages[:-5])))


def test_what_the_bot_wrote_stands_in_the_talk_for_its_next_turn():
    backend = LocalBackend(
        make_model(), make_tokenizer(), server_voice("Bot"), max_prompt_tokens=2000
    )
    channel = reply_speed.Channel(backend, "one", conversation(*chatter(20)), 2, 4)
    before = channel.shown().messages
    asyncio.run(channel.reply())
    *same, answer, question = channel.shown().messages
    assert (*same,) == before
    assert answer.author == "Bot" and answer.content
    assert question == conversation(*chatter(20)).messages[-4]
    backend.close_now()


def test_a_number_that_makes_no_sense_is_said(monkeypatch, capsys):
    assert run_here(monkeypatch, "benchmarks/reply_speed.py", "--channels", "0") == 2
    assert "at least 1" in capsys.readouterr().err
