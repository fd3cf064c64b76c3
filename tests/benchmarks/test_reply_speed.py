"""What the benchmark of replies measures: the same work at once and in turn, and both starts."""

import asyncio

import reply_speed
from discord_lora.conversations.prompt_format import server_voice
from discord_lora.inference.local_backend import LocalBackend
from fakes import chatter, conversation, make_model, make_tokenizer
from run_scripts import run_here


def test_it_answers_every_channel_and_measures_both_starts(capsys):
    backend = LocalBackend(
        make_model(), make_tokenizer(), server_voice("Bot"), max_prompt_tokens=400
    )
    talks = [conversation(*chatter(10 + n)) for n in range(3)]
    rates, start = asyncio.run(reply_speed.measure(backend, talks, 2, 4, print))
    assert [it.channels for it in rates] == [1, 3]
    assert min(it.replies_per_minute for it in rates) > 0
    # One to warm up, two a channel in both ways, and three for the starts of each channel.
    assert backend.status().replies == 1 + 2 * 2 * 3 + 3 * 3
    assert start.seconds_with_cache > 0
    assert start.seconds_without > 0
    reply_speed.show(rates, start)
    assert "3 channels at once" in capsys.readouterr().out
    backend.close_now()


def test_a_number_that_makes_no_sense_is_said(monkeypatch, capsys):
    assert run_here(monkeypatch, "benchmarks/reply_speed.py", "--channels", "0") == 2
    assert "at least 1" in capsys.readouterr().err
