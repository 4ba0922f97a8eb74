"""Networks that read text, or series of numbers as text is read."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.symmetry.library import Factory
from benchmarks.symmetry.library.transformers.base import (
    BOTH,
    FEW_EXPERTS,
    WIDE,
    WORDS,
    any,
    decoder,
    ids,
    network,
    seq2seq,
    text,
)


def _layoutlm() -> tuple[nn.Module, Any]:
    inputs = ids() | {"bbox": torch.randint(0, 60, (2, 12, 4)).sort(-1).values}
    return network("LayoutLMModel", "LayoutLMConfig", lambda: inputs, **WIDE)


def _gpt2_cache() -> tuple[nn.Module, Any]:
    net, inputs = decoder("GPT2", "LMHeadModel")()
    past = net.eval()(torch.randint(WORDS, (2, 5)), use_cache=True).past_key_values
    for layer in past.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    return net, {**inputs, "past_key_values": past, "use_cache": True}


def _patch_tst(name: str, model: str, **options: Any) -> tuple[nn.Module, Any]:
    sizes = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8}
    return network(
        f"{name}{model}",
        f"{name}Config",
        lambda: any(2, 32, 3, key="past_values"),
        **sizes,
        d_model=16,
        **options,
    )


def _autoformer() -> tuple[nn.Module, Any]:
    options = {
        "prediction_length": 4,
        "context_length": 8,
        "lags_sequence": [1, 2],
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_time_features": 1,
        "label_length": 4,
        "moving_average": 3,
    }
    inputs = {
        "past_values": torch.rand(2, 10) + 1,
        "past_time_features": torch.randn(2, 10, 1),
        "past_observed_mask": torch.ones(2, 10),
        "future_values": torch.rand(2, 4) + 1,
        "future_time_features": torch.randn(2, 4, 1),
    }
    return network("AutoformerForPrediction", "AutoformerConfig", lambda: inputs, **options)


_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}


_HYBRID = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}


TEXT: dict[str, Factory] = {
    "albert": text("Albert", "ForMaskedLM", embedding_size=16),
    "bert": text("Bert"),
    "bert_cls": text("Bert", "ForSequenceClassification"),
    "bert_mlm": text("Bert", "ForMaskedLM"),
    "bigbird": text("BigBird", attention_type="original_full"),
    "convbert": text("ConvBert", "ForMaskedLM", embedding_size=32),
    "deberta": text("Deberta", relative_attention=True, pos_att_type="c2p|p2c"),
    "deberta_v2": text(
        "DebertaV2", relative_attention=True, pos_att_type="c2p|p2c", norm_rel_ebd="layer_norm"
    ),
    "distilbert": partial(
        *(network, "DistilBertForSequenceClassification", "DistilBertConfig", ids),
        vocab_size=WORDS,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
    ),
    "electra": text("Electra", "ForPreTraining", embedding_size=16),
    "fnet": text("FNet"),
    "funnel": partial(
        *(network, "FunnelForSequenceClassification", "FunnelConfig", ids),
        vocab_size=WORDS,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=64,
    ),
    "layoutlm": _layoutlm,
    "longformer": text("Longformer", "ForMaskedLM", attention_window=4),
    "modernbert": text("ModernBert", "ForMaskedLM", pad_token_id=0),
    "mpnet": text("MPNet"),
    "nystrom": text("Nystromformer", num_landmarks=4, segment_means_seq_len=12),
    "roberta": text("Roberta", "ForSequenceClassification"),
    "squeezebert": text("SqueezeBert", embedding_size=32),
    "xlnet": partial(
        *(network, "XLNetForSequenceClassification", "XLNetConfig", ids),
        vocab_size=WORDS,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=64,
    ),
}


DECODERS: dict[str, Factory] = {
    "bloom": decoder("Bloom", n_layer=2, n_head=4),
    "cohere": decoder("Cohere"),
    "ctrl": partial(
        *(network, "CTRLLMHeadModel", "CTRLConfig", ids),
        vocab_size=WORDS,
        n_positions=64,
        n_embd=32,
        dff=64,
        n_layer=2,
        n_head=4,
    ),
    "deepseek_v2": decoder("DeepseekV2", **_LATENT, topk_method="greedy"),
    "deepseek_v3": decoder("DeepseekV3", **_LATENT),
    "falcon": decoder("Falcon"),
    "gemma": decoder("Gemma", head_dim=8, num_key_value_heads=2),
    "gemma2": decoder("Gemma2", head_dim=8, num_key_value_heads=2),
    "gemma3": partial(
        *(network, "Gemma3ForCausalLM", "Gemma3TextConfig", ids),
        **WIDE,
        head_dim=8,
        num_key_value_heads=2,
    ),
    "gpt2": decoder("GPT2", "LMHeadModel"),
    "gpt2_cache": _gpt2_cache,
    "gpt_oss": decoder(
        "GptOss", head_dim=8, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    ),
    "gptj": partial(
        *(network, "GPTJForCausalLM", "GPTJConfig", ids),
        vocab_size=WORDS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        rotary_dim=4,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gptneo": partial(
        *(network, "GPTNeoForCausalLM", "GPTNeoConfig", ids),
        vocab_size=WORDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gptneox": decoder("GPTNeoX"),
    "granite": decoder("Granite", num_key_value_heads=2),
    "jamba": decoder(
        "Jamba",
        num_key_value_heads=2,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "llama": decoder("Llama", num_key_value_heads=2),
    "mamba": decoder("Mamba", state_size=8, time_step_rank=4),
    "mamba2": decoder("Mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4, expand=2),
    "mistral": decoder("Mistral", num_key_value_heads=2),
    "mixtral": decoder("Mixtral", num_key_value_heads=2, num_local_experts=4),
    "mpt": partial(
        *(network, "MptForCausalLM", "MptConfig", ids),
        vocab_size=WORDS,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=64,
    ),
    "olmo2": decoder("Olmo2", num_key_value_heads=2),
    "opt": decoder("OPT", ffn_dim=64, word_embed_proj_dim=32),
    "phi": decoder("Phi"),
    "phi3": decoder("Phi3", num_key_value_heads=2),
    "qwen2": decoder("Qwen2", num_key_value_heads=2),
    "qwen2moe": decoder("Qwen2Moe", num_key_value_heads=2, **FEW_EXPERTS, shared_expert_intermediate_size=32),
    "qwen3": decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    "qwen3_next": decoder(
        "Qwen3Next",
        num_key_value_heads=2,
        head_dim=8,
        **FEW_EXPERTS,
        **_HYBRID,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=32,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrent_gemma": decoder(
        "RecurrentGemma",
        lru_width=32,
        num_key_value_heads=1,
        attention_window_size=8,
        block_types=["recurrent", "attention"],
    ),
    "rwkv": decoder("Rwkv", context_length=64, attention_hidden_size=32, use_cache=False),
    "smollm3": decoder("SmolLM3", num_key_value_heads=2),
    "stablelm": decoder("StableLm", num_key_value_heads=2),
    "starcoder2": decoder("Starcoder2", num_key_value_heads=2),
    "xlstm": decoder("xLSTM", hidden_size=128, num_heads=2, num_blocks=2, chunk_size=4),
}


_T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


SEQ2SEQ: dict[str, Factory] = {
    "bart": partial(network, "BartForConditionalGeneration", "BartConfig", seq2seq, **BOTH),
    "bart_direct": partial(network, "BartModel", "BartConfig", seq2seq, **BOTH),
    "marian": partial(network, "MarianMTModel", "MarianConfig", seq2seq, **BOTH),
    "t5": partial(network, "T5ForConditionalGeneration", "T5Config", seq2seq, **_T5),
    "t5_enc": partial(network, "T5EncoderModel", "T5Config", ids, **_T5),
    "t5_gated": partial(
        *(network, "T5ForConditionalGeneration", "T5Config", seq2seq), **_T5, feed_forward_proj="gated-gelu"
    ),
    "autoformer": _autoformer,
    "patchtst": partial(
        *(_patch_tst, "PatchTST", "ForPrediction"),
        num_attention_heads=2,
        ffn_dim=32,
        num_hidden_layers=2,
        prediction_length=4,
    ),
    "patchtsmixer": partial(_patch_tst, "PatchTSMixer", "ForPrediction", num_layers=2, prediction_length=4),
}
