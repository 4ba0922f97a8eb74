"""Small configurations that many networks share, their inputs, and how a network is made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import nn

from benchmarks.symmetry.library import Factory, load_torchaudio

Inputs: TypeAlias = Callable[[], dict[str, Any]]

WORDS = 100


WIDE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


SPEECH: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 20,
}


BOTH: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def library() -> Any:
    load_torchaudio()
    return import_module("transformers")


def ids(length: int = 12, key: str = "input_ids") -> dict[str, Any]:
    return {key: torch.randint(3, WORDS, (2, length))}


def seq2seq() -> dict[str, Any]:
    return ids() | ids(6, "decoder_input_ids")


def pixels(size: int = 32, *, key: str = "pixel_values", batch: int = 2) -> dict[str, Any]:
    return {key: torch.randn(batch, 3, size, size)}


def samples(length: int = 1000) -> dict[str, Any]:
    return {"input_values": torch.randn(2, length)}


def any(*shape: int, key: str) -> dict[str, Any]:
    return {key: torch.randn(shape)}


def network(model: str, config: str, inputs: Inputs, **options: Any) -> tuple[nn.Module, Any]:
    transformers = library()

    made = getattr(transformers, config)(**options)
    return getattr(transformers, model)(made), inputs()


def text(name: str, model: str = "Model", **options: Any) -> Factory:
    return partial(network, f"{name}{model}", f"{name}Config", ids, **WIDE | options)


def decoder(name: str, model: str = "ForCausalLM", **options: Any) -> Factory:
    return text(name, model, **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | options)


def image(name: str, model: str = "Model", size: int = 32, **options: Any) -> Factory:
    return partial(network, f"{name}{model}", f"{name}Config", partial(pixels, size), **IMAGE | options)


def speech(name: str, model: str = "Model", **options: Any) -> Factory:
    return partial(network, f"{name}{model}", f"{name}Config", samples, **SPEECH | options)


def stages(name: str, model: str, size: int = 64, **options: Any) -> Factory:
    return partial(network, f"{name}{model}", f"{name}Config", partial(pixels, size), **options)
