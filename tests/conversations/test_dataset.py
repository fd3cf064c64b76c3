from pathlib import Path

import pytest

from discord_lora.console import UserError
from discord_lora.conversations.dataset import choose_voice, find_persona, make_dataset
from discord_lora.messages.record import ReadyConversation, Turn
from discord_lora.messages.training_data import TrainingData
from discord_lora.settings import Settings
from fakes import chatter, make_tokenizer, say


def data(messages=(), conversations=()):
    made = TrainingData()
    made.messages.extend(messages)
    made.conversations.extend(conversations)
    return made


def test_a_persona_is_found_by_id_user_name_and_nickname_in_any_case():
    people = [say("Heron | calm"), say("Ada", minute=1)]
    people[0] = type(people[0])(
        **{f: getattr(people[0], f) for f in people[0].__slots__ if f != "username"},
        username="calm.heron",
    )
    for name in ("id-Heron | calm", "calm.heron", "CALM.HERON", "heron | calm", "@calm.heron"):
        assert find_persona(people, name).author == "Heron | calm"


def test_an_unknown_persona_names_the_nearest():
    with pytest.raises(UserError, match=r"nobody.*called adda.*nearest.*ada \(2 messages\)"):
        find_persona(chatter(5), "adda")


def test_an_ambiguous_persona_asks_for_an_id():
    people = [say("Sam", id="1"), say("Sam", id="2", minute=1)]
    twin = type(people[1])(
        **{f: getattr(people[1], f) for f in people[1].__slots__ if f != "author_id"},
        author_id="other",
    )
    with pytest.raises(UserError, match="2 people are called sam; use an id: id-Sam"):
        find_persona([people[0], twin], "sam")


def test_only_the_personas_messages_count():
    dataset = make_dataset(
        data(chatter(300)), Settings(persona="ada", validation_fraction=0.2), make_tokenizer()
    )
    learned = sum(e.targets for e in dataset.training_examples)
    held_out = sum(e.targets for e in dataset.validation_examples)
    assert learned + held_out == 100
    assert 15 <= held_out <= 25


def test_the_measured_part_of_the_held_out_messages_is_bounded():
    settings = Settings(
        validation_fraction=0.5, max_validation_messages=60, max_seq_length=256, context_tokens=16
    )
    dataset = make_dataset(data(chatter(400)), settings, make_tokenizer())
    assert 40 <= sum(e.targets for e in dataset.validation_examples) <= 80


def test_ready_conversations_choose_their_own_voice():
    ready = ReadyConversation("r", (Turn("user", "hi"), Turn("assistant", "ho", train=True)))
    voice = choose_voice(data(conversations=[ready]), Settings(bot_name="Botty"))
    assert (voice.kind, voice.name) == ("ready", "Botty")


def test_nothing_to_train_on_is_said_in_one_sentence():
    with pytest.raises(UserError, match="no message to train on"):
        make_dataset(
            data(chatter(10, train=False)),
            Settings(training_data_path=Path("x.jsonl")),
            make_tokenizer(),
        )


def test_a_system_prompt_that_leaves_no_room_is_refused():
    settings = Settings(system_prompt="hello " * 900)
    with pytest.raises(UserError, match="SYSTEM_PROMPT"):
        make_dataset(data(chatter(10)), settings, make_tokenizer())
