"""Nothing that a run or a chat reads can execute code: a payload is planted in each file of theirs.

Each is read by the real code that reads it, and what must come out is an answer as usual, a file
that is passed over, or a clear sentence.
"""

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from discord_lora.adapter_folder import exchange_adapter, load_adapter
from discord_lora.analysis.morning.history import append_event, read_events
from discord_lora.analysis.plan.timings import FILE_NAME, newest_timing
from discord_lora.base_model import load_base_model, load_tokenizer
from discord_lora.console import UserError
from discord_lora.conversations.chat_template import ChatTemplate
from discord_lora.finetuning.checkpoints import load_newest
from discord_lora.finetuning.manifest import damage
from discord_lora.hardware import detect_hardware
from discord_lora.messages.opt_out import read_opt_outs
from discord_lora.settings import load_settings
from fakes import make_model, make_tokenizer
from made_checkpoints import rewrite_manifest
from run_scripts import run_here, tiny_model_folder, write_chat

PROOF = Path("executed")
"""The payload makes a folder of this name in the current one."""

TRAIN = [
    *("--training-data-path", "chat.jsonl", "--base-model", "tiny", "--quantization", "none"),
    *("--max-steps", "2", "--save-every-steps", "1", "--max-validation-messages", "2"),
    *("--gradient-accumulation-steps", "1"),
]
RUN = Path("adapters/server-tiny")
NEWEST = RUN / "checkpoints" / "step-00000002"


class Payload:
    def __reduce__(self):
        return os.mkdir, (str(PROOF),)


def torch_file(**options):
    file = io.BytesIO()
    torch.save({"optimizer": Payload(), "scheduler": {}, "scaler": {}}, file, **options)
    return file.getvalue()


def numpy_archive():
    file = io.BytesIO()
    np.savez(file, facts=np.array([Payload()], dtype=object))
    return file.getvalue()


PAYLOADS = {
    "pickle": pickle.dumps(Payload()),
    "torch": torch_file(),
    "old torch": torch_file(_use_new_zipfile_serialization=False),
    "numpy": numpy_archive(),
    "python": b"import os\nos.mkdir('executed')\n",
}
TEXTS = {
    "python tag": '{"x": !!python/object/apply:os.mkdir [executed]}',
    "py/reduce": '{"py/reduce": [{"py/type": "os.mkdir"}, {"py/tuple": ["executed"]}]}',
    "shell": "$(mkdir executed)`mkdir executed`; mkdir executed #",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with all its files."""
    folder = tmp_path_factory.mktemp("run")
    write_chat(folder / "chat.jsonl", 30)
    tiny_model_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_here(patch, "training/train_lora.py", *TRAIN) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of it as the current folder; fails if the payload ran."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    yield folder
    assert not PROOF.exists(), "the payload ran"


@pytest.fixture
def script(run, monkeypatch, capsys):
    def call(name, *words):
        code = run_here(monkeypatch, name, *words)
        captured = capsys.readouterr()
        text = captured.out + captured.err
        assert code in (0, 2) and "Traceback" not in text, text
        assert code == 0 or re.search("^error: .*", captured.err, re.MULTILINE)
        return code, text

    return call


def train(script, *words):
    return script("training/train_lora.py", *TRAIN, *words)


def chat(script):
    return script("scripts/chat.py", "--message", "hi", "--json", "--max-reply-tokens", "3")


def unfinished(run):
    """As a run was before its adapter was written: the next one reads its checkpoint."""
    (run / RUN / "run.json").unlink()
    (run / RUN / "adapter_model.safetensors").unlink()


def test_the_payloads_work_where_nobody_guards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for open_it in (
        lambda: pickle.loads(PAYLOADS["pickle"]),
        lambda: torch.load(io.BytesIO(PAYLOADS["torch"]), weights_only=False),
        lambda: torch.load(io.BytesIO(PAYLOADS["old torch"]), weights_only=False),
        lambda: np.load(io.BytesIO(PAYLOADS["numpy"]), allow_pickle=True)["facts"],
        lambda: exec(PAYLOADS["python"]),
    ):
        open_it()
        PROOF.rmdir()  # raises where it did not run


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    "name", ["state.pt", "weights.safetensors", "progress.json", "manifest.json"]
)
def test_a_checkpoint(run, name, payload):
    (NEWEST / name).write_bytes(PAYLOADS[payload])
    if name != "manifest.json":
        rewrite_manifest(NEWEST)
        assert damage(NEWEST) == ""
    loaded, passed_over = load_newest(NEWEST.parent)
    assert loaded.step == 1
    assert passed_over[0].startswith(f"step-00000002 ({name} is ")


def test_a_run_that_goes_on(run, script):
    unfinished(run)
    (NEWEST / "state.pt").write_bytes(PAYLOADS["torch"])
    rewrite_manifest(NEWEST)
    code, text = train(script)
    assert code == 0
    assert "step-00000002 (state.pt is not what this version writes" in text
    assert "going on after step 1" in text


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_a_run_is_known_by(run, script, payload):
    unfinished(run)
    whole = (RUN / "identity.json").read_bytes()
    (RUN / "identity.json").write_bytes(PAYLOADS[payload])
    code, text = train(script)
    assert code == 0 and "going on after step 2" in text, "its checkpoints know it"
    assert (RUN / "identity.json").read_bytes() == whole


@pytest.mark.parametrize(
    "name", ["run.json", "adapter_config.json", "adapter_model.safetensors", "README.md"]
)
def test_an_adapter_that_is_talked_to(run, script, name):
    for content in PAYLOADS.values():
        (RUN / name).write_bytes(content)
        code, text = chat(script)
        assert code == (0 if name == "README.md" else 2), text


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_is_exchanged_in_a_running_bot(run, name):
    model = load_adapter(make_model(), RUN)
    other = RUN.with_name("other")
    shutil.copytree(RUN, other)
    (other / name).write_bytes(PAYLOADS["torch"])
    with pytest.raises(UserError, match="cannot be loaded"):
        exchange_adapter(model, other)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_beside_or_in_place_of_the_adapter(run, script, name):
    (RUN / name).write_bytes(PAYLOADS["torch"])
    assert chat(script)[0] == 0
    model = load_adapter(make_model(), RUN)
    (RUN / "adapter_model.safetensors").unlink()
    assert chat(script)[0] == 2
    for read in (load_adapter, exchange_adapter):
        with pytest.raises(UserError):
            read(make_model() if read is load_adapter else model, RUN)


STRANGE_ADAPTERS = {
    "import": {"megatron_config": {"a": 1}, "megatron_core": "evil"},
    "import of a known name": {"megatron_config": {"a": 1}, "megatron_core": "peft.evil"},
    "auto mapping": {"auto_mapping": {"base_model_class": "mkdir", "parent_library": "evil"}},
    "pickle by name": {"init_lora_weights": "corda", "corda_config": {"cache_file": "evil.bin"}},
    "gradients by name": {"init_lora_weights": "lora_ga", "lora_ga_config": {"cache_file": "evil"}},
    "another kind": {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "evil",
                     "tokenizer_kwargs": {"trust_remote_code": True}, "num_virtual_tokens": 1,
                     "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"},
    "no kind": {"peft_type": "EVIL"},
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE_ADAPTERS)
def test_an_adapter_whose_configuration_names_code(run, script, monkeypatch, kind):
    monkeypatch.syspath_prepend(str(run))
    Path("evil.py").write_bytes(PAYLOADS["python"])
    Path("evil.bin").write_bytes(PAYLOADS["torch"])
    path = RUN / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | STRANGE_ADAPTERS[kind]))
    chat(script)
    train(script, "--continue-from", RUN, "--run-name", "more")


# The base model --------------------------------------------------------------------------------

MODEL_FILES = [
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
    *("model.safetensors.index.json", "adapter_config.json", "processor_config.json"),
]


def load_model():
    """As training and chat do; True if it was refused in a sentence."""
    try:
        load_tokenizer("tiny")
        load_base_model("tiny", detect_hardware(), "none")
    except UserError as error:
        assert all(problem.startswith("BASE_MODEL: ") for problem in error.problems)
        return True
    return False


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_base_model(run, name):
    for content in PAYLOADS.values():
        (run / "tiny" / name).write_bytes(content)
        refused = load_model()
        assert refused or name not in {"config.json", "model.safetensors", "tokenizer.json"}


def test_weights_in_the_older_form_are_never_read(run):
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt", "tf_model.h5"):
        (run / "tiny" / name).write_bytes(PAYLOADS["torch"])
    assert not load_model()
    (run / "tiny" / "model.safetensors").unlink()
    assert load_model()


@pytest.mark.parametrize("weights", ["evil.bin", "../evil.bin", "pytorch_model.bin"])
def test_an_index_that_names_a_pickle(run, weights):
    folder = run / "tiny"
    (folder / "model.safetensors").unlink()
    (folder / weights).write_bytes(PAYLOADS["torch"])
    index = {"metadata": {}, "weight_map": dict.fromkeys(make_model().state_dict(), weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model()


CODE_FILES = (
    *("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "custom_generate.py"),
    *("custom_generate/generate.py", "__init__.py", "sitecustomize.py", "transformers.py"),
)
AUTO_MAPS = {
    "config.json": {
        "auto_map": {
            "AutoConfig": "configuration_evil.Config",
            "AutoModelForCausalLM": "modeling_evil.Model",
            "AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.T"],
        },
        "custom_pipelines": {"text-generation": {"impl": "modeling_evil.Model"}},
    },
    "tokenizer_config.json": {
        "auto_map": {"AutoTokenizer": ["tokenization_evil.T", "tokenization_evil.T"]},
        "tokenizer_class": "T",
    },
    "generation_config.json": {"custom_generate": "tiny", "trust_remote_code": True},
}


@pytest.mark.parametrize("own_type", [True, False])
@pytest.mark.parametrize("mapped", [["config.json"], ["tokenizer_config.json"], list(AUTO_MAPS)])
def test_a_model_that_brings_code_along(run, script, mapped, own_type):
    folder = run / "tiny"
    (folder / "custom_generate").mkdir()
    for name in CODE_FILES:
        (folder / name).write_bytes(PAYLOADS["python"])
    for name in mapped:
        plain = json.loads((folder / name).read_text()) | AUTO_MAPS[name]
        if own_type and name == "config.json":
            plain |= {"model_type": "evil", "architectures": ["Model"]}
        (folder / name).write_text(json.dumps(plain))
    refused = load_model()
    assert refused or not own_type or "config.json" not in mapped
    chat(script)
    train(script, "--run-name", "more")


@pytest.mark.parametrize(
    "expression",
    [
        "cycler.__init__.__globals__.os.mkdir('executed')",
        "lipsum.__globals__['os'].mkdir('executed')",
        "''.__class__.__mro__[1].__subclasses__()",
        "self.__init__.__globals__.__builtins__.__import__('os').mkdir('executed')",
        'raise_exception.__globals__.__builtins__.eval(\'__import__("os").mkdir("executed")\')',
        "messages.__class__.__base__.__subclasses__()[0]",
        "('{0.__class__.__init__.__globals__}').format(cycler)",
    ],
)
def test_a_chat_template(run, script, expression):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}{{ " + expression + " }}"
    ChatTemplate.learn(make_tokenizer(text))
    (run / "tiny" / "chat_template.jinja").write_text(text)
    chat(script)
    train(script, "--run-name", "more")


# The data and all the rest ---------------------------------------------------------------------


@pytest.mark.parametrize("content", [*PAYLOADS, *TEXTS])
def test_the_training_data(run, script, content):
    raw = PAYLOADS.get(content) or TEXTS[content].encode()
    Path("chat.jsonl").write_bytes(raw)
    assert train(script)[0] == 2
    write_chat(Path("chat.jsonl"), 30)
    with Path("chat.jsonl").open("ab") as file:
        file.write(b"\n" + raw + b"\n")
    assert train(script, "--run-name", "more")[0] == 0


def test_the_dataset_cache(run, script):
    (entry,) = Path("cache").glob("*.npz")
    good = entry.read_bytes()
    inside = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(inside, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("more.npy", PAYLOADS["pickle"])
    for content in (*PAYLOADS.values(), inside.getvalue()):
        entry.write_bytes(content)
        assert train(script, "--fresh")[0] == 0
        # What is there too much is not looked at; all else is made anew.
        assert entry.read_bytes() in (good, inside.getvalue())


@pytest.mark.parametrize("content", [*PAYLOADS, *TEXTS])
def test_the_settings(run, script, content):
    raw = PAYLOADS.get(content) or f"BOT_NAME='{TEXTS[content]}'\n".encode()
    Path(".env").write_bytes(raw)
    code, _ = train(script)
    assert code == (2 if content in PAYLOADS else 0)
    chat(script)
    if content in TEXTS:
        assert load_settings().bot_name == TEXTS[content]


@pytest.mark.parametrize("content", [*PAYLOADS, *TEXTS])
def test_the_opted_out_the_timings_and_the_history(run, script, content):
    raw = PAYLOADS.get(content) or TEXTS[content].encode()
    Path("data").mkdir()
    path = Path("data/opted_out.json")
    path.write_bytes(raw)
    with pytest.raises(UserError, match="OPT_OUT_FILE"):
        read_opt_outs(path)
    assert train(script, "--run-name", "more")[0] == 2
    path.unlink()
    (run / FILE_NAME).write_bytes(raw)
    assert newest_timing(run, None, load_settings()) is None
    append_event(run, "start", step=0)
    with (run / "history.jsonl").open("ab") as file:
        file.write(raw)
    append_event(run, "end", step=2)
    assert [event["kind"] for event in read_events(run)] == ["start", "end"]
