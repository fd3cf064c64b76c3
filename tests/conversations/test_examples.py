import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice, server_voice
from fakes import chatter, conversation, make_tokenizer, say

TOKENIZER = make_tokenizer()


def server():
    return PromptFormat(TOKENIZER, server_voice("Bot"))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 80),
    max_seq_length=st.integers(160, 600),
    context_tokens=st.integers(0, 60),
    max_targets=st.one_of(st.none(), st.integers(1, 20)),
    persona=st.booleans(),
)
def test_every_target_is_learned_once_and_every_example_fits(
    count, max_seq_length, context_tokens, max_targets, persona
):
    voice = persona_voice("Ada", "id-Ada") if persona else server_voice("Bot")
    talk = conversation(*chatter(count))
    limits = Limits(max_seq_length, context_tokens, max_targets)
    examples = make_examples([talk], PromptFormat(TOKENIZER, voice), limits)
    learned = [message_id for example in examples for message_id in example.message_ids]
    assert learned == [m.id for m in talk.messages if voice.is_target(m)]
    for example in examples:
        assert len(example) <= max_seq_length
        assert max_targets is None or example.targets <= max_targets
        assert example.trained.sum() > 0
        assert not example.trained[0]


def test_an_oversize_conversation_is_cut_at_its_longest_silence():
    minutes = [0, 1, 2, 3, 15, 16, 17, 18]
    talk = conversation(*(say("Ada", "hello there", minute=m, id=str(m)) for m in minutes))
    first, second = make_examples([talk], server(), Limits(1024, 0, max_targets=4))
    assert first.message_ids == ("0", "1", "2", "3")
    assert second.message_ids == ("15", "16", "17", "18")


def test_the_cut_off_context_is_repeated_as_context():
    talk = conversation(*(say("Ada", f"word{n}", minute=n, id=str(n)) for n in range(8)))
    prompt_format = server()
    _, second = make_examples([talk], prompt_format, Limits(1024, 40, max_targets=4))
    text = TOKENIZER.decode(second.input_ids)
    assert "word3" in text and "word4" in text
    trained = TOKENIZER.decode(second.input_ids[second.trained])
    assert "word3" not in trained and "word4" in trained


def test_long_talk_that_nobody_learns_from_is_not_read_in_full():
    crowd = [say("Bob", "I am fine " * 5, minute=n, id=f"b{n}") for n in range(60)]
    talk = conversation(
        say("Ada", "hi", minute=-1, id="a1"), *crowd, say("Ada", "ho", minute=99, id="a2")
    )
    prompt_format = PromptFormat(TOKENIZER, persona_voice("Ada", "id-Ada"))
    examples = make_examples([talk], prompt_format, Limits(1024, 100))
    assert [e.message_ids for e in examples] == [("a1",), ("a2",)]
    assert all(len(e) < 250 for e in examples)


@pytest.mark.parametrize("length", [5_000, 100_000])
def test_a_message_longer_than_the_model_reads_is_cut_short(length):
    talk = conversation(say("Bob", "hi"), say("Ada", "hello " * length, minute=1))
    (first, second) = make_examples([talk], server(), Limits(256, 64, max_targets=1))
    assert first.targets == second.targets == 1
    assert len(second) == 256
    assert second.trained.sum() > 200


def test_a_conversation_without_targets_makes_no_example():
    assert make_examples([conversation(say("Bob", train=False))], server(), Limits(256, 0)) == []


def test_characters_count_the_targets_alone():
    talk = conversation(say("Bob", "12345"), say("Ada", "123", minute=1))
    prompt_format = PromptFormat(TOKENIZER, persona_voice("Ada", "id-Ada"))
    (example,) = make_examples([talk], prompt_format, Limits(256, 64))
    assert example.characters == 3
    assert example.input_ids.dtype == np.int32
