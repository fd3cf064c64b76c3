"""Sample answers and report cost training nothing: no bit of the result, no run, no mode."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rich.console import Console

from discord_lora.adapter_folder import load_adapter
from discord_lora.analysis.morning.history import append_event, read_events
from discord_lora.analysis.morning.morning_html import REPORT_FILE
from discord_lora.base_model import load_base_model
from discord_lora.console import Interrupted
from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.packing import collate
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice
from discord_lora.finetuning import for_the_morning as morning
from discord_lora.finetuning.fast_paths import choose_paths
from discord_lora.finetuning.packed_attention import NAME
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.hardware import detect_hardware
from discord_lora.inference.sample_answers import SampleAnswers
from fakes import FAMILIES, conversation, make_model_of, make_tokenizer, say

TOKENIZER = make_tokenizer()
ADA = persona_voice("Ada", "id-Ada")


def examples():
    talk = [
        conversation(
            say("Bob", f"hello there {'you ' * (9 * n)}", minute=0),
            say("Ada", f"I am fine {n} thank you", minute=1),
            id=f"c{n}",
        )
        for n in range(6)
    ]
    return make_examples(talk, PromptFormat(TOKENIZER, ADA), Limits(256, 32))


def answering(count=3):
    return SampleAnswers(lambda: TOKENIZER, ADA, examples(), count)


def trained_model(folder, quantization):
    """As training has it: fast pieces on, the adapter's weights no longer zero."""
    base = load_base_model(str(folder), detect_hardware(), quantization)
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear")
    model = TrainingModel(get_peft_model(base, lora))
    paths = choose_paths(model, examples())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.train(), paths


def state_of(model, **changes):
    return SimpleNamespace(accelerator=Accelerator(cpu=True), training_model=model, **changes)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_training_answers_as_its_saved_adapter_will(tmp_path, family, quantization):
    """Prompts of different lengths, longer than the windows: wrong masks would show."""
    make_model_of(family).save_pretrained(tmp_path / "base")
    model, paths = trained_model(tmp_path / "base", quantization)
    assert len(paths.fast) >= 3
    before = model.causal_model.config._attn_implementation
    assert (before == NAME) == ("attention" in paths.fast)
    event = partial(append_event, tmp_path)
    morning.note_answers(state_of(model), answering(), 7, pytest.fail, event)
    assert model.causal_model.config._attn_implementation == before
    assert all(module.training for module in model.modules())
    (event,) = read_events(tmp_path)
    assert (event["kind"], event["step"]) == ("answers", 7)
    assert 0 < event["seconds"] < 60

    model.model.save_pretrained(tmp_path / "adapter")
    base = load_base_model(str(tmp_path / "base"), detect_hardware(), quantization)
    fresh = load_adapter(base, tmp_path / "adapter")
    assert event["answers"] == answering()(fresh)
    with fresh.disable_adapter():
        assert event["answers"] != answering()(fresh), "the adapter has a say"


def test_what_is_learned_next_is_the_same_to_the_bit(tmp_path):

    make_model_of("llama").save_pretrained(tmp_path / "base")
    ends = []
    for asked in (False, True):
        model, _ = trained_model(tmp_path / "base", "nf4")
        torch.manual_seed(5)
        for _ in range(2):
            if asked:
                event = partial(append_event, tmp_path)
                morning.note_answers(state_of(model), answering(), 1, pytest.fail, event)
            model(collate(examples())).backward()
        drawn = torch.rand(3)
        ends.append(([p.grad.clone() for p in model.trainable().values()], drawn))
    assert torch.equal(ends[0][1], ends[1][1])
    assert all(torch.equal(*pair) for pair in zip(ends[0][0], ends[1][0], strict=True))


def test_answers_that_fail_cost_themselves_only(tmp_path):
    model, _ = trained_model(_saved(tmp_path), "none")
    said = []

    def fail(_model):
        raise ZeroDivisionError("a bug")

    morning.note_answers(state_of(model), fail, 7, said.append, partial(append_event, tmp_path))
    (sentence,) = said
    assert sentence.startswith("no sample answers after step 7: ZeroDivisionError: a bug (")
    assert "test_for_the_morning.py, line" in sentence
    assert read_events(tmp_path) == []
    assert model.causal_model.config._attn_implementation == NAME


def test_of_several_processes_only_the_main_one_answers_and_all_meet(tmp_path):
    model, _ = trained_model(_saved(tmp_path), "none")
    waited = []
    other = SimpleNamespace(
        is_main_process=False,
        distributed_type="MULTI_CPU",
        wait_for_everyone=lambda: waited.append(1),
    )
    state = SimpleNamespace(accelerator=other, training_model=model)
    morning.note_answers(state, lambda _model: pytest.fail("asked"), 1, pytest.fail, pytest.fail)
    assert waited == [1]


def _saved(tmp_path):
    make_model_of("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("error", [None, Interrupted("saved"), RuntimeError("a bug")])
def test_however_a_run_ends_its_report_is_written(tmp_path, error):
    append_event(tmp_path, "plan", run="ada", steps=9)
    console = Console(record=True, width=80)
    try:
        with morning.report_at_the_end(tmp_path, console, is_main_process=True):
            append_event(tmp_path, "end", step=9, outcome="finished")
            if error:
                raise error
    except Exception as raised:
        assert raised is error
    assert b"Finished" in (tmp_path / REPORT_FILE).read_bytes()
    text = console.export_text()
    assert "Finished at" in text and REPORT_FILE in text.replace("\n", "")


def test_a_second_ctrl_c_waits_for_no_report(tmp_path):
    append_event(tmp_path, "plan", run="ada")
    with (
        pytest.raises(KeyboardInterrupt),
        morning.report_at_the_end(tmp_path, Console(), is_main_process=True),
    ):
        raise KeyboardInterrupt
    assert not (tmp_path / REPORT_FILE).exists()


def test_other_processes_write_no_report(tmp_path):
    append_event(tmp_path, "plan", run="ada")
    with morning.report_at_the_end(tmp_path, Console(), is_main_process=False):
        pass
    assert not (tmp_path / REPORT_FILE).exists()


def test_a_report_that_fails_is_said_and_costs_nothing(tmp_path, monkeypatch):
    append_event(tmp_path, "plan", run="ada")
    (tmp_path / REPORT_FILE).mkdir()
    said = []
    morning.write_report_or_say(tmp_path, said.append)
    assert "report.html cannot be written" in said[0]
    monkeypatch.setattr(morning, "write_report", lambda _folder: 1 / 0)
    morning.write_report_or_say(tmp_path, said.append)
    assert "ZeroDivisionError" in said[1] and "line" in said[1]
