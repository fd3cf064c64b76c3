"""What is said and written when nothing can be predicted, or much."""

from types import SimpleNamespace

import torch

from discord_lora.analysis.plan.memory import RESERVE_BYTES, ActivationBytes, MemoryPlan
from discord_lora.analysis.plan.night import RunTime
from discord_lora.finetuning import prediction
from discord_lora.finetuning.prediction import announce, doubts_when_loaded, foresee
from discord_lora.hardware import Hardware
from discord_lora.settings import load_settings

CPU = Hardware(torch.device("cpu"), "CPU", torch.float32, "no", 16 * 10**9)
ACTIVATIONS = ActivationBytes(layers=2, layer=1000.0, layer_input=10.0, outside=50.0)


def state(processes=1, main=True, weight=None, kept_by_optimizer=None):
    return SimpleNamespace(
        optimizer=SimpleNamespace(state=kept_by_optimizer or {}),
        trainable=lambda: {} if weight is None else {"lora": weight},
        accelerator=SimpleNamespace(num_processes=processes, is_main_process=main),
        plan=SimpleNamespace(steps=100, steps_per_epoch=200),
        memory=MemoryPlan(500, 0, 1e6, ACTIVATIONS),
    )


def tell(tmp_path, monkeypatch, night):
    monkeypatch.setattr(prediction, "foresee", lambda *_: night)
    said, events = [], []
    log = SimpleNamespace(
        history=tmp_path / "logs" / "mine",
        go_on="python x",
        say=said.append,
        event=lambda kind, **values: events.append({"kind": kind, **values}),
    )
    announce(
        state(), load_settings(env_file=None), CPU, log, voice="Bot", first_step=0, largest_row=500
    )
    return said, events


def test_the_end_is_said_and_written(tmp_path, monkeypatch):
    night = SimpleNamespace(
        as_set_time=RunTime(10, 100, 5, 5, "calibrated"), peak_bytes=3e9, peak_source="modelled"
    )
    said, (event,) = tell(tmp_path, monkeypatch, night)
    assert said[0].startswith("mine ends about ")
    assert (event["kind"], event["run"], event["steps"]) == ("plan", "mine", 100)
    assert (event["seconds"], event["label"]) == (120, "calibrated")
    assert (event["peak_bytes"], event["peak_label"]) == (3e9, "modelled"), "not what was measured"
    assert (event["voice"], event["hardware"], event["command"]) == ("Bot", "CPU", "python x")


def test_what_is_not_known_is_not_invented(tmp_path, monkeypatch):
    said, (event,) = tell(tmp_path, monkeypatch, None)
    assert said == []
    assert not {"seconds", "label", "peak_bytes", "peak_label"} & event.keys()


def test_several_processes_are_not_predicted():
    assert foresee(state(processes=2), load_settings(env_file=None), CPU) is None


def test_checkpointing_is_doubted_only_where_memory_would_do(monkeypatch):
    settings = load_settings({"gradient_checkpointing": "true"}, env_file=None)
    for free, doubted in ((10e9, 1), (1e9, 0)):
        monkeypatch.setattr(Hardware, "free_bytes", lambda _self, free=free: free)
        assert len(doubts_when_loaded(state(), settings, CPU, None, 500)) == doubted
    monkeypatch.setattr(Hardware, "free_bytes", lambda _self: 10e9)
    assert doubts_when_loaded(state(), load_settings(env_file=None), CPU, None, 500) == []


def test_gradients_that_are_there_need_no_more_memory(monkeypatch):
    settings = load_settings({"gradient_checkpointing": "true"}, env_file=None)
    weight = torch.nn.Parameter(torch.zeros(25_000_000))
    needed = ACTIVATIONS.needed(500, checkpointed=0) + RESERVE_BYTES["cpu"]
    monkeypatch.setattr(Hardware, "free_bytes", lambda _self: needed - 90e6)
    assert doubts_when_loaded(state(weight=weight), settings, CPU, None, 500) == []
    weight.grad = torch.zeros(25_000_000)
    assert len(doubts_when_loaded(state(weight=weight), settings, CPU, None, 500)) == 1


def test_in_a_run_that_goes_on_the_optimizers_states_need_no_more_memory(monkeypatch):
    settings = load_settings({"gradient_checkpointing": "true"}, env_file=None)
    weight = torch.nn.Parameter(torch.zeros(10_000_000))
    optimizer = torch.optim.AdamW([weight])
    needed = ACTIVATIONS.needed(500, checkpointed=0) + RESERVE_BYTES["cpu"]
    monkeypatch.setattr(Hardware, "free_bytes", lambda _self: needed - 110e6)

    def doubts():
        training = state(weight=weight, kept_by_optimizer=optimizer.state)
        return doubts_when_loaded(training, settings, CPU, None, 500)

    weight.grad = torch.zeros(10_000_000)
    assert doubts() == []
    optimizer.step()  # two moments of 40 MB
    assert len(doubts()) == 1
