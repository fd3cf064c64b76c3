"""A training state on a tiny model in fp32, and who listens to its run: for tests of the loop."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from discord_lora.analysis.plan.memory import ActivationBytes, MemoryPlan
from discord_lora.conversations.build import build_conversations
from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.packing import plan_training
from discord_lora.conversations.prompt_format import PromptFormat, server_voice
from discord_lora.finetuning.loop import Events
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.finetuning.training_state import build_state, lower_rate, restore, snapshot
from discord_lora.hardware import the_cpu
from discord_lora.settings import load_settings
from fakes import chatter, make_model, make_tokenizer

TOKENIZER = make_tokenizer()


def make_state(
    *,
    dropout=0.0,
    packing=True,
    budget=400,
    epochs=1.0,
    rate=1e-2,
    seed=3,
    plan=None,
    max_targets=8,
):
    prompt_format = PromptFormat(TOKENIZER, server_voice("Bot"))
    conversations = build_conversations(chatter(120), 30)
    examples = make_examples(conversations, prompt_format, Limits(256, 32, max_targets=max_targets))
    plan = plan or plan_training(
        examples, messages_per_step=8, epochs=epochs, max_steps=0, seed=seed
    )
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_dropout=dropout, target_modules="all-linear"
    )
    model = TrainingModel(get_peft_model(make_model(), config))
    settings = load_settings(
        {
            "learning_rate": rate,
            "warmup_ratio": min(2 / plan.steps, 0.99),
            "weight_decay": 0.01,
            "packing": packing,
            "max_tokens_per_microbatch": 400,
            "gradient_checkpointing": "false",
        },
        env_file=None,
    )
    dataset = SimpleNamespace(validation_examples=examples[:6])
    state = build_state(model, plan, dataset, settings, Accelerator(cpu=True), the_cpu())
    assert state.packing == packing
    state.memory = MemoryPlan(budget, 0, 0.0, ActivationBytes(2, 100.0, 10.0, 10.0))
    state.token_budget = budget
    return state


def nobody(_what, _sentence):
    """Is told of incidents that a test is not about."""


@dataclass
class Night:
    """Listens to a run, keeps its checkpoints, and goes back as a session does."""

    state: object
    incidents: list = field(default_factory=list)
    results: list = field(default_factory=list)
    checkpoints: list = field(default_factory=list)
    can_go_back: bool = True

    def events(self, **options):
        return Events(
            stepped=self.results.append,
            save=self.save,
            incident=lambda what, sentence: self.incidents.append((what, sentence)),
            go_back=self.go_back if self.can_go_back else None,
            **options,
        )

    def save(self, step):
        self.checkpoints.append(snapshot(self.state, step, self.state.mishaps.as_progress()))

    def go_back(self):
        mishaps, checkpoint = self.state.mishaps, self.checkpoints.pop()
        restore(self.state, checkpoint)
        self.state.mishaps = mishaps
        lower_rate(self.state)
        return checkpoint.step

    def kinds(self):
        return [what for what, _ in self.incidents]


def weights(state):
    return {name: p.detach().clone() for name, p in state.trainable().items()}
