"""A whole training state on a tiny model in fp32, for tests of the loop."""

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import get_scheduler

from discord_lora.analysis.plan.memory import ActivationBytes, MemoryPlan
from discord_lora.conversations.build import build_conversations
from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.packing import plan_training
from discord_lora.conversations.prompt_format import PromptFormat, server_voice
from discord_lora.finetuning.fast_paths import choose_paths
from discord_lora.finetuning.training_model import TrainingModel
from discord_lora.finetuning.training_state import TrainingState, keep_gradients
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
    assert choose_paths(model).packing
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    scheduler = get_scheduler("cosine", optimizer, 2, plan.steps)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    keep_gradients(model.trainable().values())
    return TrainingState(
        accelerator=accelerator,
        model=prepared,
        training_model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        plan=plan,
        validation=examples[:6],
        memory=MemoryPlan(budget, 0, 0.0, ActivationBytes(2, 100.0, 10.0, 10.0)),
        token_budget=budget,
        packing=packing,
    )


def weights(state):
    return {name: p.detach().clone() for name, p in state.trainable().items()}
