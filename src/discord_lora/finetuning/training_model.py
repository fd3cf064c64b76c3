"""The model as training sees it: a micro-batch in, its summed loss out.

There are two ways to the same loss. The general one is transformers' own and serves any causal
language model. The fast ones replace pieces of it where that is possible; `fast_paths.py` switches
them on after each has proved itself on the loaded model.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from discord_lora.conversations.packing import MicroBatch
from discord_lora.finetuning.head_loss import head_loss
from discord_lora.finetuning.packed_attention import Segments


class TrainingModel(nn.Module):
    """A causal language model whose output is the loss of a micro-batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.has_segments = False
        self.has_head_loss = False

    def forward(self, batch: MicroBatch) -> Tensor:
        """Cross-entropy summed over the micro-batch's target tokens, in nats.

        The head runs at the predicting positions only. No attention mask is passed: from
        positions that start again, and only then, transformers builds the block-diagonal mask
        that keeps packed neighbours apart; `segments` do the same without a mask.
        """
        inputs: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "use_cache": False,
        }
        if self.has_segments:
            inputs["segments"] = Segments.of(batch.lengths, batch.input_ids.device)
        if self.has_head_loss:
            causal = self.causal_model
            hidden = causal.get_decoder()(**inputs).last_hidden_state[0]
            return head_loss(hidden[batch.predictors], causal.get_output_embeddings(), batch.labels)
        logits = self.model(**inputs, logits_to_keep=batch.predictors).logits[0].float()
        return functional.cross_entropy(logits, batch.labels, reduction="sum")

    @property
    def causal_model(self) -> Any:
        """The transformers model with the adapter in its layers."""
        return self.model.get_base_model()

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers, by which accelerate shards a model (FSDP)."""
        here = {type(module).__name__ for module in self.model.modules()}
        return [name for name in self.causal_model._no_split_modules or () if name in here]

    def tie_weights(self) -> None:
        """Embedding and head are one again after accelerate moved them apart (FSDP)."""
        self.causal_model.tie_weights()

    def trainable(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
