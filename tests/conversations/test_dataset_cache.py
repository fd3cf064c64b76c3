import json
import os

import numpy as np
import pytest

from discord_lora.console import UserError
from discord_lora.conversations import dataset_cache
from discord_lora.conversations.dataset import make_dataset
from discord_lora.conversations.dataset_cache import (
    DATASET_SETTINGS,
    KEEP,
    DatasetCache,
    open_dataset,
)
from discord_lora.finetuning.run_folder import fingerprint
from discord_lora.messages.training_data import read_training_data
from discord_lora.settings import Settings
from fakes import GEMMA_LIKE, make_tokenizer
from run_scripts import write_chat

SMALL = {"max_seq_length": 128, "context_tokens": 16, "validation_fraction": 0.2}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "chat.jsonl"
    write_chat(path)
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "empty", "content": " "}\nnot JSON\n')
    return Settings(training_data_path=path, **SMALL)


@pytest.fixture
def made(monkeypatch):
    """A list that grows by one whenever a dataset is really made."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return make_dataset(*arguments)

    monkeypatch.setattr(dataset_cache, "make_dataset", counted)
    return calls


def opened(settings, tokenizer):
    said = []
    return open_dataset(settings, lambda: tokenizer, said.append), said


def entries(settings):
    return sorted((settings.training_data_path.parent / "cache").glob("*.npz*"))


def contents(dataset):
    """All of a dataset in a form that `==` compares."""
    return [
        dataset.voice,
        dataset.training_conversations,
        dataset.held_out_conversations,
        dataset.remarks,
        *(
            (
                example.conversation_id,
                example.message_ids,
                example.input_ids.tolist(),
                example.trained.tolist(),
                example.characters,
                example.input_ids.dtype,
                example.trained.dtype,
            )
            for part in (dataset.training_examples, dataset.validation_examples)
            for example in part
        ),
    ]


@pytest.mark.parametrize("voice", [{}, {"persona": "ada"}, {"validation_fraction": 0.0}])
def test_the_cached_dataset_is_the_same_token_for_token(settings, tokenizer, made, voice):
    settings = settings.model_copy(update=voice)
    fresh, _ = opened(settings, tokenizer)
    cached, _ = opened(settings, tokenizer)
    assert len(made) == 1
    assert contents(cached) == contents(fresh)
    assert fingerprint(cached.training_examples) == fingerprint(fresh.training_examples)


def test_ready_conversations_are_cached_as_well(tmp_path, tokenizer, made):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello ✨"}]
    path = tmp_path / "ready.jsonl"
    path.write_text("\n".join([json.dumps({"messages": turns})] * 10))
    settings = Settings(training_data_path=path, **SMALL)
    assert contents(opened(settings, tokenizer)[0]) == contents(opened(settings, tokenizer)[0])
    assert len(made) == 1


def test_the_readers_remarks_are_said_from_the_cache_too(settings, tokenizer):
    _, first = opened(settings, tokenizer)
    _, second = opened(settings, tokenizer)
    assert "left out: empty 1" in first
    assert any(line.startswith("not read: ") for line in first)
    assert second == first


def test_remarks_are_said_once_when_only_the_data_are_known(settings, tokenizer):
    _, first = opened(settings, tokenizer)
    _, other_settings = opened(settings.model_copy(update={"persona": "ada"}), tokenizer)
    assert other_settings == first


@pytest.mark.parametrize(
    "change",
    [
        {"persona": "ada"},
        {"bot_name": "Botty"},
        {"system_prompt": "You chat."},
        {"conversation_gap_minutes": 5.0},
        {"validation_fraction": 0.1},
        {"max_validation_messages": 3},
        {"max_seq_length": 160},
        {"context_tokens": 8},
        {"gradient_accumulation_steps": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_settings_do_not_reuse_the_cache(settings, tokenizer, made, change):
    opened(settings, tokenizer)
    opened(settings.model_copy(update=change), tokenizer)
    assert len(made) == 2


def test_settings_that_do_not_matter_reuse_the_cache(settings, tokenizer, made):
    opened(settings, tokenizer)
    changes = {"learning_rate": 1e-3, "seed": 7, "batch_size": 4, "gradient_accumulation_steps": 4}
    opened(settings.model_copy(update=changes), tokenizer)
    assert len(made) == 1


def test_every_setting_that_a_dataset_depends_on_is_in_the_key(settings, tokenizer):
    class Watched:
        def __init__(self):
            self.names = set()

        def __getattr__(self, name):
            self.names.add(name)
            return getattr(settings, name)

    watched = Watched()
    make_dataset(read_training_data(settings.training_data_path), watched, tokenizer)
    assert watched.names - {"training_data_path"} <= set(DATASET_SETTINGS)


def test_the_cache_gives_nobody_back_who_opted_out_since(settings, tokenizer, made, tmp_path):
    data = settings.training_data_path
    data.write_bytes(data.read_bytes().replace(b'"id-Ada"', b'"42"'))
    ledger = tmp_path / "opted_out.json"
    settings = settings.model_copy(update={"opt_out_file": ledger})
    everybody = targets(opened(settings, tokenizer)[0])
    ledger.write_text("42")
    for _ in range(2):
        dataset, remarks = opened(settings, tokenizer)
        assert any("opted out 27" in line for line in remarks)
    assert len(made) == 2
    assert len(everybody) - len(targets(dataset)) == 27


def targets(dataset):
    examples = [*dataset.training_examples, *dataset.validation_examples]
    return {message_id for example in examples for message_id in example.message_ids}


def test_changed_data_are_read_anew_and_leave_nothing_of_the_old(settings, tokenizer, made):
    opened(settings, tokenizer)
    (old,) = entries(settings)
    write_chat(settings.training_data_path, count=90)
    opened(settings, tokenizer)
    (new,) = entries(settings)
    assert len(made) == 2
    assert new != old


def test_another_tokenizer_or_template_does_not_reuse_the_cache(settings, tokenizer, made):
    opened(settings, tokenizer)
    opened(settings, make_tokenizer(GEMMA_LIKE))
    more = make_tokenizer()
    more.add_tokens(["hello there"])
    opened(settings, more)
    assert len(made) == 3


@pytest.mark.parametrize("name", ["_code_hash", "version"])
def test_other_code_does_not_reuse_the_cache(settings, tokenizer, made, monkeypatch, name):
    opened(settings, tokenizer)
    monkeypatch.setattr(dataset_cache, name, lambda *_: "another")
    opened(settings, tokenizer)
    assert len(made) == 2


@pytest.mark.parametrize("number", ["CACHE_VERSION", "PROMPT_FORMAT_VERSION"])
def test_another_version_does_not_reuse_the_cache(settings, tokenizer, made, monkeypatch, number):
    opened(settings, tokenizer)
    monkeypatch.setattr(dataset_cache, number, 99)
    opened(settings, tokenizer)
    assert len(made) == 2


def cut_off(entry):
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])


def flip_a_bit_of_each_array(entry):
    raw = bytearray(entry.read_bytes())
    for position in range(1000, len(raw), 1000):
        raw[position] ^= 1
    entry.write_bytes(raw)


def empty(entry):
    entry.write_bytes(b"")


def leave_an_array_out(entry):
    with np.load(entry) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "training_lengths"}
    np.savez(entry, **arrays)


def store_pickles(entry):
    np.savez(entry, facts=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    "damage", [cut_off, flip_a_bit_of_each_array, empty, leave_an_array_out, store_pickles]
)
def test_a_damaged_cache_is_rebuilt(settings, tokenizer, made, damage):
    fresh, _ = opened(settings, tokenizer)
    (entry,) = entries(settings)
    damage(entry)
    rebuilt, _ = opened(settings, tokenizer)
    assert len(made) == 2
    opened(settings, tokenizer)
    assert len(made) == 2
    assert contents(rebuilt) == contents(fresh)


def test_an_entry_under_the_name_of_another_is_not_taken(settings, tokenizer, made):
    opened(settings, tokenizer)
    persona = settings.model_copy(update={"persona": "ada"})
    (entry,) = entries(settings)
    taken = DatasetCache(settings.training_data_path).entry(persona, tokenizer)
    entry.rename(taken)
    assert opened(persona, tokenizer)[0].voice.name == "Ada"
    assert len(made) == 2


def test_without_a_place_to_write_the_work_goes_on(settings, tokenizer, made):
    (settings.training_data_path.parent / "cache").write_text("a file where a folder is due")
    first, _ = opened(settings, tokenizer)
    second, _ = opened(settings, tokenizer)
    assert len(made) == 2
    assert contents(first) == contents(second)


def test_a_full_disk_leaves_nothing_half_written(settings, tokenizer, monkeypatch):
    def full(stream, **_arrays):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    opened(settings, tokenizer)
    assert entries(settings) == []


def test_a_file_written_anew_meanwhile_is_not_cached_as_what_it_was(settings, tokenizer):
    def rewrite_and_open():
        write_chat(settings.training_data_path, count=90)
        return tokenizer

    open_dataset(settings, rewrite_and_open, print)
    assert entries(settings) == []


def test_the_cache_keeps_the_latest_used_and_does_not_grow(settings, tokenizer, made):
    variants = [settings.model_copy(update={"context_tokens": n}) for n in range(1, KEEP + 3)]
    for age, variant in enumerate(variants[:KEEP]):
        opened(variant, tokenizer)
        path = DatasetCache(settings.training_data_path).entry(variant, tokenizer)
        os.utime(path, (age, age))
    opened(variants[0], tokenizer)  # used again: the second is now the oldest
    entries(settings)[0].with_name(entries(settings)[0].name + ".part").write_text("abandoned")
    opened(variants[KEEP], tokenizer)
    assert len(entries(settings)) == KEEP
    made.clear()
    opened(variants[0], tokenizer)
    assert made == []
    opened(variants[1], tokenizer)
    assert len(made) == 1


def test_entries_of_other_files_stay(settings, tokenizer, tmp_path):
    opened(settings, tokenizer)
    other = write_chat(tmp_path / "chat.jsonl-2.jsonl")
    opened(settings.model_copy(update={"training_data_path": other}), tokenizer)
    opened(settings.model_copy(update={"persona": "ada"}), tokenizer)
    assert len(entries(settings)) == 3


def test_the_cache_keeps_itself_out_of_git(settings, tokenizer):
    opened(settings, tokenizer)
    ignore = settings.training_data_path.parent / "cache" / ".gitignore"
    assert ignore.read_text(encoding="utf-8") == "*\n"


def test_a_missing_file_is_said_before_a_model_is_looked_for(tmp_path):
    def never():
        raise AssertionError("the model was looked for")

    with pytest.raises(UserError, match="prepare_training_data"):
        open_dataset(Settings(training_data_path=tmp_path / "none.jsonl"), never, print)


def test_a_tokenizer_without_an_identity_is_not_cached(settings, made):
    class Plain:
        """What a tokenizer in pure Python offers."""

        def __init__(self):
            self._real = make_tokenizer()

        def __getattr__(self, name):
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._real, name)

        def __call__(self, *arguments, **options):
            return self._real(*arguments, **options)

    opened(settings, Plain())
    opened(settings, Plain())
    assert len(made) == 2
    assert entries(settings) == []


def test_a_cached_example_packs_like_a_fresh_one(settings, tokenizer):
    from discord_lora.conversations.packing import collate

    fresh, _ = opened(settings, tokenizer)
    cached, _ = opened(settings, tokenizer)
    rows = [collate(it.training_examples[:3]) for it in (fresh, cached)]
    assert rows[0].input_ids.tolist() == rows[1].input_ids.tolist()
    assert rows[0].labels.tolist() == rows[1].labels.tolist()
