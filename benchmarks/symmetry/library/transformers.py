"""Networks of ``transformers``, from small configurations."""

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
_WIDE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_SPEECH: dict[str, Any] = {
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
_BOTH: dict[str, Any] = {
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
_FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _library() -> Any:
    load_torchaudio()
    return import_module("transformers")


def _ids(length: int = 12, key: str = "input_ids") -> dict[str, Any]:
    return {key: torch.randint(3, WORDS, (2, length))}


def _seq2seq() -> dict[str, Any]:
    return _ids() | _ids(6, "decoder_input_ids")


def _pixels(size: int = 32, *, key: str = "pixel_values", batch: int = 2) -> dict[str, Any]:
    return {key: torch.randn(batch, 3, size, size)}


def _samples(length: int = 1000) -> dict[str, Any]:
    return {"input_values": torch.randn(2, length)}


def _any(*shape: int, key: str) -> dict[str, Any]:
    return {key: torch.randn(shape)}


def _clip() -> dict[str, Any]:
    return _ids() | _pixels()


def _network(model: str, config: str, inputs: Inputs, **options: Any) -> tuple[nn.Module, Any]:
    transformers = _library()

    made = getattr(transformers, config)(**options)
    return getattr(transformers, model)(made), inputs()


def _text(name: str, model: str = "Model", **options: Any) -> Factory:
    return partial(_network, f"{name}{model}", f"{name}Config", _ids, **_WIDE | options)


def _decoder(name: str, model: str = "ForCausalLM", **options: Any) -> Factory:
    return _text(name, model, **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | options)


def _image(name: str, model: str = "Model", size: int = 32, **options: Any) -> Factory:
    return partial(_network, f"{name}{model}", f"{name}Config", partial(_pixels, size), **_IMAGE | options)


def _speech(name: str, model: str = "Model", **options: Any) -> Factory:
    return partial(_network, f"{name}{model}", f"{name}Config", _samples, **_SPEECH | options)


def _stages(name: str, model: str, size: int = 64, **options: Any) -> Factory:
    return partial(_network, f"{name}{model}", f"{name}Config", partial(_pixels, size), **options)


def _layoutlm() -> tuple[nn.Module, Any]:
    inputs = _ids() | {"bbox": torch.randint(0, 60, (2, 12, 4)).sort(-1).values}
    return _network("LayoutLMModel", "LayoutLMConfig", lambda: inputs, **_WIDE)


def _gpt2_cache() -> tuple[nn.Module, Any]:
    net, inputs = _decoder("GPT2", "LMHeadModel")()
    past = net.eval()(torch.randint(WORDS, (2, 5)), use_cache=True).past_key_values
    for layer in past.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    return net, {**inputs, "past_key_values": past, "use_cache": True}


def _clip_config() -> tuple[nn.Module, Any]:
    hf = _library()

    text = {**_WIDE, "projection_dim": 16, "eos_token_id": 99}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**_IMAGE, "projection_dim": 16}, projection_dim=16
    )
    return hf.CLIPModel(config), _clip()


def _backbone() -> Any:
    hf = _library()

    return hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
    "num_labels": 3,
}


def _detr(**options: Any) -> tuple[nn.Module, Any]:
    hf = _library()

    config = hf.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_backbone(),
        **_DETR,
        **options,
    )
    return hf.DetrForObjectDetection(config), _pixels(64, batch=1)


def _deformable_detr() -> tuple[nn.Module, Any]:
    hf = _library()

    config = hf.DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_backbone(),
        **_DETR | {"decoder_layers": 2},
        num_feature_levels=3,
    )
    return hf.DeformableDetrForObjectDetection(config), _pixels(64, batch=1)


def _mask2former() -> tuple[nn.Module, Any]:
    hf = _library()

    swin = hf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.Mask2FormerConfig(
        backbone_config=swin,
        use_pretrained_backbone=False,
        backbone=None,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
        num_labels=3,
    )
    return hf.Mask2FormerForUniversalSegmentation(config), _pixels(64, batch=1)


def _rt_detr() -> tuple[nn.Module, Any]:
    hf = _library()

    backbone = hf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = hf.RTDetrConfig(
        backbone_config=backbone,
        use_pretrained_backbone=False,
        backbone=None,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 16, 32],
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=32,
        num_queries=10,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_labels=3,
        num_denoising=0,
        hidden_expansion=0.5,
    )
    return hf.RTDetrForObjectDetection(config), _pixels(64, batch=1)


def _dpt() -> tuple[nn.Module, Any]:
    options = {**_IMAGE, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]}
    options |= {"neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16}
    return _network("DPTForDepthEstimation", "DPTConfig", _pixels, **options)


def _upernet() -> tuple[nn.Module, Any]:
    hf = _library()

    config = hf.UperNetConfig(
        backbone_config=hf.ConvNextConfig(
            hidden_sizes=[8, 16, 16, 32],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=16,
        use_auxiliary_head=True,
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        num_labels=3,
    )
    return hf.UperNetForSemanticSegmentation(config), _pixels(64)


def _vits() -> tuple[nn.Module, Any]:
    options = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "flow_size": 16,
        "spectrogram_bins": 9,
        "upsample_initial_channel": 32,
        "upsample_rates": (4, 4),
        "upsample_kernel_sizes": (8, 8),
        "resblock_kernel_sizes": (3,),
        "resblock_dilation_sizes": ((1, 3),),
        "wavenet_dilation_rate": 1,
        "posterior_encoder_num_wavenet_layers": 2,
        "prior_encoder_num_wavenet_layers": 2,
        "prior_encoder_num_flows": 2,
        "duration_predictor_num_flows": 2,
    }
    return _network("VitsModel", "VitsConfig", lambda: {"input_ids": torch.randint(30, (1, 8))}, **options)


def _encodec() -> tuple[nn.Module, Any]:
    options = {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16}
    options |= {"num_lstm_layers": 1, "upsampling_ratios": [4, 2], "num_residual_layers": 1}
    return _network("EncodecModel", "EncodecConfig", lambda: _any(1, 1, 640, key="input_values"), **options)


def _hifigan(name: str, key: str = "spectrogram") -> tuple[nn.Module, Any]:
    if name == "UnivNet":
        options = {
            "model_in_channels": 8,
            "model_hidden_channels": 8,
            "num_mel_bins": 10,
            "resblock_kernel_sizes": [3, 3],
            "resblock_stride_sizes": [4, 4],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "kernel_predictor_hidden_channels": 8,
        }
        inputs = {"input_features": torch.randn(1, 6, 10), "noise_sequence": torch.randn(1, 6, 8)}
        return _network("UnivNetModel", "UnivNetConfig", lambda: inputs, **options)
    options = {
        "model_in_dim": 10,
        "upsample_initial_channel": 16,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    }
    return _network("SpeechT5HifiGan", "SpeechT5HifiGanConfig", lambda: _any(1, 6, 10, key=key), **options)


def _patch_tst(name: str, model: str, **options: Any) -> tuple[nn.Module, Any]:
    sizes = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8}
    return _network(
        f"{name}{model}",
        f"{name}Config",
        lambda: _any(2, 32, 3, key="past_values"),
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
    return _network("AutoformerForPrediction", "AutoformerConfig", lambda: inputs, **options)


def _whisper(mels: int = 8) -> tuple[nn.Module, Any]:
    options = {**_BOTH, "num_mel_bins": mels, "max_source_positions": 16, "max_target_positions": 32}
    del options["max_position_embeddings"]
    inputs = {"input_features": torch.randn(2, mels, 32), **_ids(6, "decoder_input_ids")}
    return _network("WhisperForConditionalGeneration", "WhisperConfig", lambda: inputs, **options)


def _whisper_waveform() -> tuple[nn.Module, Any]:
    options = {**_BOTH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
    del options["max_position_embeddings"]
    options |= {"classifier_proj_size": 16, "num_labels": 3}
    inputs = {"input_features": torch.randn(2, 8, 32)}
    return _network("WhisperForAudioClassification", "WhisperConfig", lambda: inputs, **options)


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

_TEXT: dict[str, Factory] = {
    "albert": _text("Albert", "ForMaskedLM", embedding_size=16),
    "bert": _text("Bert"),
    "bert_cls": _text("Bert", "ForSequenceClassification"),
    "bert_mlm": _text("Bert", "ForMaskedLM"),
    "bigbird": _text("BigBird", attention_type="original_full"),
    "convbert": _text("ConvBert", "ForMaskedLM", embedding_size=32),
    "deberta": _text("Deberta", relative_attention=True, pos_att_type="c2p|p2c"),
    "deberta_v2": _text(
        "DebertaV2", relative_attention=True, pos_att_type="c2p|p2c", norm_rel_ebd="layer_norm"
    ),
    "distilbert": partial(
        *(_network, "DistilBertForSequenceClassification", "DistilBertConfig", _ids),
        vocab_size=WORDS,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
    ),
    "electra": _text("Electra", "ForPreTraining", embedding_size=16),
    "fnet": _text("FNet"),
    "funnel": partial(
        *(_network, "FunnelForSequenceClassification", "FunnelConfig", _ids),
        vocab_size=WORDS,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=64,
    ),
    "layoutlm": _layoutlm,
    "longformer": _text("Longformer", "ForMaskedLM", attention_window=4),
    "modernbert": _text("ModernBert", "ForMaskedLM", pad_token_id=0),
    "mpnet": _text("MPNet"),
    "nystrom": _text("Nystromformer", num_landmarks=4, segment_means_seq_len=12),
    "roberta": _text("Roberta", "ForSequenceClassification"),
    "squeezebert": _text("SqueezeBert", embedding_size=32),
    "xlnet": partial(
        *(_network, "XLNetForSequenceClassification", "XLNetConfig", _ids),
        vocab_size=WORDS,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=64,
    ),
}
_DECODERS: dict[str, Factory] = {
    "bloom": _decoder("Bloom", n_layer=2, n_head=4),
    "cohere": _decoder("Cohere"),
    "ctrl": partial(
        *(_network, "CTRLLMHeadModel", "CTRLConfig", _ids),
        vocab_size=WORDS,
        n_positions=64,
        n_embd=32,
        dff=64,
        n_layer=2,
        n_head=4,
    ),
    "deepseek_v2": _decoder("DeepseekV2", **_LATENT, topk_method="greedy"),
    "deepseek_v3": _decoder("DeepseekV3", **_LATENT),
    "falcon": _decoder("Falcon"),
    "gemma": _decoder("Gemma", head_dim=8, num_key_value_heads=2),
    "gemma2": _decoder("Gemma2", head_dim=8, num_key_value_heads=2),
    "gemma3": partial(
        *(_network, "Gemma3ForCausalLM", "Gemma3TextConfig", _ids),
        **_WIDE,
        head_dim=8,
        num_key_value_heads=2,
    ),
    "gpt2": _decoder("GPT2", "LMHeadModel"),
    "gpt2_cache": _gpt2_cache,
    "gpt_oss": _decoder(
        "GptOss", head_dim=8, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    ),
    "gptj": partial(
        *(_network, "GPTJForCausalLM", "GPTJConfig", _ids),
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
        *(_network, "GPTNeoForCausalLM", "GPTNeoConfig", _ids),
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
    "gptneox": _decoder("GPTNeoX"),
    "granite": _decoder("Granite", num_key_value_heads=2),
    "jamba": _decoder(
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
    "llama": _decoder("Llama", num_key_value_heads=2),
    "mamba": _decoder("Mamba", state_size=8, time_step_rank=4),
    "mamba2": _decoder("Mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4, expand=2),
    "mistral": _decoder("Mistral", num_key_value_heads=2),
    "mixtral": _decoder("Mixtral", num_key_value_heads=2, num_local_experts=4),
    "mpt": partial(
        *(_network, "MptForCausalLM", "MptConfig", _ids),
        vocab_size=WORDS,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=64,
    ),
    "olmo2": _decoder("Olmo2", num_key_value_heads=2),
    "opt": _decoder("OPT", ffn_dim=64, word_embed_proj_dim=32),
    "phi": _decoder("Phi"),
    "phi3": _decoder("Phi3", num_key_value_heads=2),
    "qwen2": _decoder("Qwen2", num_key_value_heads=2),
    "qwen2moe": _decoder(
        "Qwen2Moe", num_key_value_heads=2, **_FEW_EXPERTS, shared_expert_intermediate_size=32
    ),
    "qwen3": _decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    "qwen3_next": _decoder(
        "Qwen3Next",
        num_key_value_heads=2,
        head_dim=8,
        **_FEW_EXPERTS,
        **_HYBRID,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=32,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrent_gemma": _decoder(
        "RecurrentGemma",
        lru_width=32,
        num_key_value_heads=1,
        attention_window_size=8,
        block_types=["recurrent", "attention"],
    ),
    "rwkv": _decoder("Rwkv", context_length=64, attention_hidden_size=32, use_cache=False),
    "smollm3": _decoder("SmolLM3", num_key_value_heads=2),
    "stablelm": _decoder("StableLm", num_key_value_heads=2),
    "starcoder2": _decoder("Starcoder2", num_key_value_heads=2),
    "xlstm": _decoder("xLSTM", hidden_size=128, num_heads=2, num_blocks=2, chunk_size=4),
}
_T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_SEQ2SEQ: dict[str, Factory] = {
    "bart": partial(_network, "BartForConditionalGeneration", "BartConfig", _seq2seq, **_BOTH),
    "bart_direct": partial(_network, "BartModel", "BartConfig", _seq2seq, **_BOTH),
    "marian": partial(_network, "MarianMTModel", "MarianConfig", _seq2seq, **_BOTH),
    "t5": partial(_network, "T5ForConditionalGeneration", "T5Config", _seq2seq, **_T5),
    "t5_enc": partial(_network, "T5EncoderModel", "T5Config", _ids, **_T5),
    "t5_gated": partial(
        *(_network, "T5ForConditionalGeneration", "T5Config", _seq2seq), **_T5, feed_forward_proj="gated-gelu"
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
_SPEECH_NETWORKS: dict[str, Factory] = {
    "ast": partial(
        *(_network, "ASTForAudioClassification", "ASTConfig"),
        lambda: _any(2, 64, 16, key="input_values"),
        **{k: v for k, v in _IMAGE.items() if k != "image_size"},
        max_length=64,
        num_mel_bins=16,
        frequency_stride=8,
        time_stride=8,
    ),
    "encodec": _encodec,
    "hubert": _speech("Hubert"),
    "speecht5_hifigan": partial(_hifigan, "SpeechT5"),
    "univnet": partial(_hifigan, "UnivNet"),
    "vits": _vits,
    "w2v_conformer": _speech("Wav2Vec2Conformer"),
    "wav2vec2": _speech("Wav2Vec2", "ForCTC"),
    "wav2vec2_ln": _speech("Wav2Vec2", do_stable_layer_norm=True, feat_extract_norm="layer"),
    "wavlm": _speech("WavLM"),
    "whisper": _whisper,
    "whisper_w": _whisper_waveform,
}
_CONVNEXT = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_labels": 5}
_SEGFORMER = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}
_IMAGES: dict[str, Factory] = {
    "beit": _image("Beit", "ForImageClassification"),
    "bit": _stages(
        "Bit", "Model", embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_groups=4
    ),
    "blip_vision": partial(_network, "BlipVisionModel", "BlipVisionConfig", _pixels, **_IMAGE),
    "clip": _clip_config,
    "clip_vision": partial(_network, "CLIPVisionModelWithProjection", "CLIPVisionConfig", _pixels, **_IMAGE),
    "convnextv2": _stages("ConvNextV2", "ForImageClassification", **_CONVNEXT),
    "cvt": _stages(
        "Cvt", "ForImageClassification", embed_dim=[8, 16, 32], num_heads=[1, 2, 2], depth=[1, 2, 3]
    ),
    "deformable_detr": _deformable_detr,
    "deit": _image("DeiT", "ForImageClassification"),
    "detr": _detr,
    "dinov2": _image("Dinov2", "ForImageClassification", mlp_ratio=2),
    "dpt": _dpt,
    "focalnet": _stages(
        "FocalNet", "ForImageClassification", image_size=64, embed_dim=8, depths=[1, 1, 1, 1]
    ),
    "glpn": _stages("GLPN", "ForDepthEstimation", **_SEGFORMER, decoder_hidden_size=16),
    "levit": _stages(
        "Levit",
        "ForImageClassification",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "mask2former": _mask2former,
    "mobilevit": _stages(
        "MobileViT",
        "ForImageClassification",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=2,
        neck_hidden_sizes=[8, 8, 16, 24, 24, 32, 64],
    ),
    "poolformer": _stages(
        "PoolFormer", "ForImageClassification", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]
    ),
    "rtdetr": _rt_detr,
    "sam_vision": partial(
        *(_network, "SamVisionModel", "SamVisionConfig", partial(_pixels, 64)),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        output_channels=16,
        global_attn_indexes=[1],
        window_size=4,
        mlp_dim=64,
    ),
    "segformer": _stages("Segformer", "ForSemanticSegmentation", **_SEGFORMER, decoder_hidden_size=16),
    "siglip_vision": partial(_network, "SiglipVisionModel", "SiglipVisionConfig", _pixels, **_IMAGE),
    "superpoint": _stages(
        "SuperPoint",
        "ForKeypointDetection",
        encoder_hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        descriptor_decoder_dim=16,
    ),
    "swin": _stages(
        "Swin",
        "ForImageClassification",
        image_size=64,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "timesformer": partial(
        *(_network, "TimesformerForVideoClassification", "TimesformerConfig"),
        lambda: {"pixel_values": torch.randn(1, 4, 3, 32, 32)},
        **_IMAGE,
        num_frames=4,
    ),
    "upernet": _upernet,
    "videomae": partial(
        *(_network, "VideoMAEForVideoClassification", "VideoMAEConfig"),
        lambda: {"pixel_values": torch.randn(1, 4, 3, 32, 32)},
        **_IMAGE,
        num_frames=4,
    ),
    "vit": _image("ViT", "ForImageClassification"),
    "vit_mae": _image("ViTMAE", decoder_hidden_size=16, decoder_num_hidden_layers=1),
    "vitdet": _image("VitDet", window_block_indices=[0], window_size=2, mlp_ratio=2),
    "yolos": _image("Yolos", "ForObjectDetection", image_size=[32, 32], num_detection_tokens=5),
}

NETWORKS: dict[str, dict[str, Factory]] = {
    "transformers": {**_TEXT, **_DECODERS, **_SEQ2SEQ, **_SPEECH_NETWORKS, **_IMAGES}
}
