"""A night that is planned for a 7B model, and what was timed on it, for tests of the plan."""

from dataclasses import dataclass

from discord_lora.analysis.plan.cards import find_card
from discord_lora.analysis.plan.estimates import Machine, fit_data
from discord_lora.analysis.plan.memory import ActivationBytes
from discord_lora.analysis.plan.model_shapes import MODELS
from discord_lora.analysis.plan.night import plan_night, workday
from discord_lora.analysis.plan.time_model import TimeModel
from discord_lora.analysis.plan.timings import Timing, deciding
from discord_lora.settings import load_settings

SETTINGS = load_settings(env_file=None)
MISTRAL = next(shape for shape in MODELS if "Mistral-7B" in shape.name)


@dataclass(frozen=True)
class Example:
    tokens: int
    trained_tokens: int

    def __len__(self):
        return self.tokens


def night(messages, *, timing=None, seconds_per_step=None, settings=SETTINGS):
    """Steps of 16 messages in two micro-batches of 320 tokens."""
    steps = -(-messages // 16)
    rows = [[[Example(160, 100)] * 2] * 2] * steps
    day = workday(rows, [[Example(160, 100)] * 4], settings.save_every_steps)
    made = fit_data(MISTRAL, Machine.of_card(find_card("2080 ti")), settings, [640], 160)
    return plan_night(
        settings, day, made, messages=messages, as_set=day.epoch, largest_row=320, timing=timing,
        seconds_per_step=seconds_per_step,
    )  # fmt: skip


def timing(machine="CPU x 2", settings=SETTINGS, **changes):
    values = {
        "machine": machine,
        "settings": deciding(settings),
        "time": TimeModel(0.1, 0.2, 0.003, 1e-6, 0.001, "calibrated"),
        "activations": ActivationBytes(32, 1000.0, 10.0, 50.0, 1e6),
        "checkpointed": 0,
        "base_bytes": 5e9,
        "start_up_seconds": 12.0,
        "save_seconds": 0.5,
    }
    return Timing(**{**values, **changes})
