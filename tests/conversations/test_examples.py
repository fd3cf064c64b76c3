import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discord_lora.conversations import examples as examples_module
from discord_lora.conversations.build import from_ready
from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.prompt_format import (
    PromptFormat,
    persona_voice,
    ready_voice,
    server_voice,
)
from discord_lora.finetuning.run_folder import fingerprint
from discord_lora.messages.record import ReadyConversation, Turn
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


def test_making_examples_a_few_conversations_at_a_time_changes_nothing(monkeypatch):
    talks = [conversation(*chatter(count), id=str(count)) for count in range(1, 30)]
    limits = Limits(256, 20, max_targets=4)
    at_once = make_examples(talks, server(), limits)
    monkeypatch.setattr(examples_module, "_MESSAGES_AT_ONCE", 10)
    in_pieces = make_examples(talks, server(), limits)
    assert [e.message_ids for e in in_pieces] == [e.message_ids for e in at_once]
    assert fingerprint(in_pieces) == fingerprint(at_once)


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


def test_what_a_target_answers_is_read_however_long_it_is():
    question = " ".join(["how are you"] * 60)
    talk = conversation(
        say("Ada", "hi", id="1"),
        say("Bob", question, minute=1, id="2"),
        say("Ada", "fine", minute=2, id="3"),
    )
    prompt_format = PromptFormat(TOKENIZER, persona_voice("Ada", "id-Ada"))
    examples = make_examples([talk], prompt_format, Limits(1024, 20, max_targets=1))
    assert examples[-1].message_ids == ("3",)
    assert question in TOKENIZER.decode(examples[-1].input_ids)


def test_ready_conversations_are_read_as_far_as_there_is_room():
    turns = []
    for number in range(6):
        turns += [
            Turn("user", f"question{number} " + "how are you " * 20),
            Turn("assistant", f"answer{number}", train=True),
        ]
    prompt_format = PromptFormat(TOKENIZER, ready_voice("Bot"))
    talk = from_ready(ReadyConversation("r", tuple(turns)), 0)
    examples = make_examples([talk], prompt_format, Limits(4096, 0, max_targets=2))
    text = TOKENIZER.decode(examples[-1].input_ids)
    assert all(f"question{n}" in text and f"answer{n}" in text for n in range(6))


def test_a_message_without_room_beside_its_own_system_prompt_is_left_out():
    turns = (
        Turn("system", "how are you " * 500),
        Turn("user", "hi"),
        Turn("assistant", "ho", True),
    )
    prompt_format = PromptFormat(TOKENIZER, ready_voice("Bot"))
    talk = from_ready(ReadyConversation("r", turns), 0)
    assert make_examples([talk], prompt_format, Limits(256, 0)) == []
