"""The frozen model under the adapter: finding it, its tokenizer, its 4-bit weights."""

import json
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.pytorch_utils import Conv1D

from discord_lora.analysis.plan.model_shapes import MODELS, NF4_BYTES, Linear, ModelShape
from discord_lora.console import UserError
from discord_lora.hardware import Hardware, freed_at_once
from discord_lora.sample import SAMPLE_MODEL_SOURCE, is_sample

# Their bars and notices would run through ours; what matters is said by this project.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

Report = Callable[[str], None]

WEIGHTS_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ["model*.safetensors", WEIGHTS_INDEX]
"""As transformers names them. Some publishers keep the same in other forms beside them."""

SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
"""That a config may write down under other names (GPT-2: `n_layer`), and answers to under these."""


def model_shape(name: str, location: str) -> ModelShape:
    """The sizes of BASE_MODEL, called `name`, which lies at `location`.

    No weights are fetched, and of the usual models nothing at all.

    Raises:
        UserError: it cannot be had, or is no decoder.
    """
    published = SAMPLE_MODEL_SOURCE if is_sample(name) else name
    known = next((shape for shape in MODELS if shape.name == published), None)
    if known is not None:
        return replace(known, name=name)
    try:
        return shape_of(_without_weights(location), name)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"BASE_MODEL: {name} is no decoder of the usual kind: its time and memory cannot be "
            "modelled. Training itself may work."
        ) from None


def shape_of(model: Any, name: str) -> ModelShape:
    """The sizes of a model, called `name`, with or without weights and adapter.

    Its linear layers are counted: a config does not say whether MLPs are gated.

    Raises:
        KeyError, TypeError, ValueError: as `ModelShape.from_config`.
    """
    counted = tuple(linear_sizes(model))
    text = model.config.get_text_config()
    plain = model.config.to_dict() | text.to_dict()
    plain |= {key: getattr(text, key) for key in SIZES if hasattr(text, key)}
    plain.pop("text_config", None)
    # What the widest layer reads is what an MLP holds inside.
    plain["intermediate_size"] = max(layer.inputs for layer in counted)
    return replace(ModelShape.from_config(plain, name), counted=counted)


def load_tokenizer(location: str) -> Any:
    """The model's tokenizer. Raises UserError if there is none to be had."""
    return _from_hub(AutoTokenizer.from_pretrained, location)


def fetch_weights(
    location: str, hardware: Hardware, quantization: str, sharded_over: int = 0
) -> float:
    """Have the weights of a model of the hub on this computer; returns the seconds it took.

    With a bar in a terminal. What was fetched before it was cut off is not fetched again.

    Raises:
        UserError: memory would not hold them, or they cannot be had.
    """
    if weights_are_here(location):
        return 0.0
    check_memory(location, hardware, quantization, sharded_over)
    begun = time.monotonic()
    enable_progress_bars()
    try:
        snapshot_download(location, allow_patterns=WEIGHT_FILES)
    except Exception as error:  # each of its ways to the hub has errors of its own
        raise UserError(_hub_problem(location, error)) from error
    finally:
        disable_progress_bars()
    return time.monotonic() - begun


def weights_are_here(location: str) -> bool:
    """Whether a model lies on this computer; asks nobody else."""
    if Path(location).is_dir():
        return True
    try:
        folder = Path(snapshot_download(location, local_files_only=True))
        if (folder / "model.safetensors").exists():
            return True
        # Not all of it may be there, which the hub's library does not always know.
        index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        return all((folder / name).exists() for name in index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def load_base_model(
    location: str, hardware: Hardware, quantization: str, *, sharded_over: int = 0
) -> Any:
    """The frozen model on the device, its linear layers in NF4 if asked for.

    With `sharded_over` so many cards the model stays off the card (in one process; it is empty in
    the others): accelerate deals the weights out.

    Raises:
        UserError: model not found, no network, or not enough memory.
    """
    _refuse_pickled(location)
    fetch_weights(location, hardware, quantization, sharded_over)
    check_memory(location, hardware, quantization, sharded_over)
    config = _from_hub(AutoConfig.from_pretrained, location)
    options: dict[str, Any] = {
        "dtype": hardware.dtype,
        # SDPA cannot cap scores, as Gemma 2 does.
        "attn_implementation": "eager" if _caps_scores(config) else "sdpa",
        "use_safetensors": True,
    }
    if quantization == "nf4":
        options["device_map"] = {"": hardware.device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=hardware.dtype,
        )
    with freed_at_once():
        model = _from_hub(AutoModelForCausalLM.from_pretrained, location, **options)
    model.requires_grad_(False)
    if quantization != "nf4":
        return model if sharded_over else model.to(hardware.device)
    _stay_differentiable(model)
    return model


def _refuse_pickled(location: str) -> None:
    """The index of the safetensors may name other files, and transformers would read them."""
    index = Path(location) / WEIGHTS_INDEX
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # there is none, or transformers says what is wrong with it
    if strange := [file for file in files if not str(file).endswith(".safetensors")]:
        raise UserError(
            f"BASE_MODEL: {index} names {str(strange[0])[:60]}, which is no safetensors file; "
            "download the model again from its publisher."
        )


def _caps_scores(config: Any) -> bool:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _stay_differentiable(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights when they are first evaluated.

    On CPUs with AVX512-BF16 it would do so, into a bf16 form through which no gradient passes:
    whatever is trained after the first held-out loss would be trained on wrong gradients.
    """
    layers: list[Any] = linear_layers(model)
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _from_hub(load: Callable[..., Any], location: str, **options: Any) -> Any:
    """Load from a folder, the cache or the hub; what goes wrong there in one sentence."""
    try:
        return load(location, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, SafetensorError, HTTPError) as error:
        raise UserError(_hub_problem(location, error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"BASE_MODEL: memory ran out while {location} was loaded; close other programs or "
            "choose a smaller model."
        ) from error


def _hub_problem(location: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if Path(location).is_dir():
        return (
            f"BASE_MODEL: the folder {location} does not hold a model this can load: {text[:300]}"
        )
    if "gated" in text.lower() or re.search(r"\b40[13] (Client|Forbidden|Unauthorized)", text):
        return (
            f"BASE_MODEL: {location} is gated or unknown; accept its licence on "
            f"https://huggingface.co/{location} and put your token into HF_TOKEN."
        )
    if re.search(r"connect|offline|couldn't reach|outgoing traffic", text, re.IGNORECASE):
        return (
            f"BASE_MODEL: {location} is not on this computer and huggingface.co cannot be reached; "
            "connect to the internet, or set BASE_MODEL to a model folder or to 'sample'."
        )
    return f"BASE_MODEL: {location} cannot be loaded: {text[:300]}. Check the name and the network."


def reads_at_once(location: str) -> int | None:
    """The longest text in tokens that the model was made for; None if it does not say.

    Raises:
        UserError: there is no such model to be had.
    """
    config = _from_hub(AutoConfig.from_pretrained, location).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def check_memory(
    location: str, hardware: Hardware, quantization: str, sharded_over: int = 0
) -> None:
    """Refuse before minutes of loading what cannot fit afterwards.

    Raises:
        UserError: the weights need more than is free.
    """
    needed = weight_bytes(location, hardware, quantization) // max(1, sharded_over)
    free = hardware.free_bytes()
    if needed > free:
        advice = "choose a smaller BASE_MODEL" if quantization == "nf4" else "set QUANTIZATION=nf4"
        raise UserError(
            f"BASE_MODEL: the weights of {location} need {needed / 1e9:.1f} GB and "
            f"{hardware.name} has {free / 1e9:.1f} GB free; close other programs or {advice}."
        )


def linear_layers(model: Any) -> list[nn.Linear]:
    """The layers that quantization packs: all linear ones but the head."""
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]


def linear_sizes(model: Any) -> list[Linear]:
    """The layers that quantization packs, also where they are GPT-2's kind; no adapter's."""
    head = model.get_output_embeddings()
    sizes = []
    for path, module in model.named_modules():
        name = path.removesuffix(".base_layer").rpartition(".")[2]
        if module is head or ".lora_" in path:
            continue
        if isinstance(module, nn.Linear):
            sizes.append(Linear(name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            sizes.append(Linear(name, module.nx, module.nf))
    return sizes


def weight_bytes(location: str, hardware: Hardware, quantization: str) -> int:
    """Bytes of the loaded weights, from the model's configuration alone."""
    model = _without_weights(location)
    unquantized = torch.finfo(hardware.dtype).bits // 8
    total = sum(parameter.numel() for parameter in model.parameters())
    in_linear = sum(layer.inputs * layer.outputs for layer in linear_sizes(model))
    linear_bytes = NF4_BYTES if quantization == "nf4" else unquantized
    return int(in_linear * linear_bytes + (total - in_linear) * unquantized)


def _without_weights(location: str) -> Any:
    """The model as its configuration describes it. Raises UserError if it writes no text."""
    config = _from_hub(AutoConfig.from_pretrained, location)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError:
        raise UserError(
            f"BASE_MODEL: {location} is not a model that writes text one token after the other; "
            "choose a causal language model such as mistralai/Mistral-7B-Instruct-v0.3."
        ) from None
