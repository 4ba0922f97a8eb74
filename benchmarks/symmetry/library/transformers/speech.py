"""Networks that read or write sound."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.symmetry.library import Factory
from benchmarks.symmetry.library.transformers.base import BOTH, IMAGE, any, ids, network, speech


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
    return network("VitsModel", "VitsConfig", lambda: {"input_ids": torch.randint(30, (1, 8))}, **options)


def _encodec() -> tuple[nn.Module, Any]:
    options = {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16}
    options |= {"num_lstm_layers": 1, "upsampling_ratios": [4, 2], "num_residual_layers": 1}
    return network("EncodecModel", "EncodecConfig", lambda: any(1, 1, 640, key="input_values"), **options)


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
        return network("UnivNetModel", "UnivNetConfig", lambda: inputs, **options)
    options = {
        "model_in_dim": 10,
        "upsample_initial_channel": 16,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    }
    return network("SpeechT5HifiGan", "SpeechT5HifiGanConfig", lambda: any(1, 6, 10, key=key), **options)


def _whisper(mels: int = 8) -> tuple[nn.Module, Any]:
    options = {**BOTH, "num_mel_bins": mels, "max_source_positions": 16, "max_target_positions": 32}
    del options["max_position_embeddings"]
    inputs = {"input_features": torch.randn(2, mels, 32), **ids(6, "decoder_input_ids")}
    return network("WhisperForConditionalGeneration", "WhisperConfig", lambda: inputs, **options)


def _whisper_waveform() -> tuple[nn.Module, Any]:
    options = {**BOTH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
    del options["max_position_embeddings"]
    options |= {"classifier_proj_size": 16, "num_labels": 3}
    inputs = {"input_features": torch.randn(2, 8, 32)}
    return network("WhisperForAudioClassification", "WhisperConfig", lambda: inputs, **options)


SPEECH: dict[str, Factory] = {
    "ast": partial(
        *(network, "ASTForAudioClassification", "ASTConfig"),
        lambda: any(2, 64, 16, key="input_values"),
        **{k: v for k, v in IMAGE.items() if k != "image_size"},
        max_length=64,
        num_mel_bins=16,
        frequency_stride=8,
        time_stride=8,
    ),
    "encodec": _encodec,
    "hubert": speech("Hubert"),
    "speecht5_hifigan": partial(_hifigan, "SpeechT5"),
    "univnet": partial(_hifigan, "UnivNet"),
    "vits": _vits,
    "w2v_conformer": speech("Wav2Vec2Conformer"),
    "wav2vec2": speech("Wav2Vec2", "ForCTC"),
    "wav2vec2_ln": speech("Wav2Vec2", do_stable_layer_norm=True, feat_extract_norm="layer"),
    "wavlm": speech("WavLM"),
    "whisper": _whisper,
    "whisper_w": _whisper_waveform,
}
