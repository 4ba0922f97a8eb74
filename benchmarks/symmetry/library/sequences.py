"""Networks of sequences and sound."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from benchmarks.symmetry.library import Factory, load_torchaudio

WORDS = 100


def _x_decoder(**options: Any) -> tuple[nn.Module, Any]:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
    wrapper = TransformerWrapper(num_tokens=WORDS, max_seq_len=32, attn_layers=layers)
    return wrapper, torch.randint(WORDS, (2, 12))


def _mamba(seq: bool) -> tuple[nn.Module, Any]:
    from mambapy.mamba import Mamba, MambaConfig

    return Mamba(MambaConfig(d_model=16, n_layers=2, d_state=4, pscan=not seq)), torch.randn(2, 8, 16)


def _audio(name: str, inputs: Any, **options: Any) -> tuple[nn.Module, Any]:
    load_torchaudio()
    return attrgetter(name)(import_module("torchaudio.models"))(**options), inputs


def _audio_encoder() -> tuple[nn.Module, Any]:
    inputs = torch.randn(2, 16, 12), torch.tensor([12, 9])
    return _audio(
        "tacotron2._Encoder", inputs, encoder_embedding_dim=16, encoder_n_convolution=2, encoder_kernel_size=5
    )


def _audio_wav2vec2() -> tuple[nn.Module, Any]:
    return _audio(
        *("wav2vec2_model", torch.randn(2, 1000)),
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(16, 10, 5), (16, 3, 2)],
        extractor_conv_bias=False,
        encoder_embed_dim=32,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=2,
        encoder_num_layers=2,
        encoder_num_heads=4,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        aux_num_out=5,
    )


NETWORKS: dict[str, dict[str, Factory]] = {
    "x-transformers": {
        "decoder": _x_decoder,
        "alibi_talking": partial(_x_decoder, alibi_pos_bias=True, attn_pre_talking_heads=True),
        "memkv_gate": partial(_x_decoder, attn_num_mem_kv=4, attn_gate_values=True),
        "rotary_glu": partial(_x_decoder, rotary_pos_emb=True, ff_glu=True),
        "shift_sandwich": partial(_x_decoder, shift_tokens=1, sandwich_coef=1),
        "simple_relu2": partial(_x_decoder, use_simple_rmsnorm=True, ff_relu_squared=True),
    },
    "mambapy": {"mamba": partial(_mamba, False), "mamba_seq": partial(_mamba, True)},
    "torchaudio": {
        "Conformer": lambda: _audio(
            *("Conformer", (torch.randn(2, 20, 16), torch.tensor([20, 14]))),
            input_dim=16,
            num_heads=2,
            ffn_dim=32,
            num_layers=2,
            depthwise_conv_kernel_size=3,
        ),
        "ConvTasNet": lambda: _audio(
            *("ConvTasNet", torch.randn(1, 1, 400)),
            num_sources=2,
            enc_kernel_size=8,
            enc_num_feats=16,
            msk_num_feats=8,
            msk_num_hidden_feats=16,
            msk_num_layers=2,
            msk_num_stacks=1,
        ),
        "DeepSpeech": lambda: _audio(
            "DeepSpeech", torch.randn(2, 1, 12, 10), n_feature=10, n_hidden=16, n_class=5
        ),
        "Emformer": lambda: _audio(
            *("Emformer", (torch.randn(2, 18, 16), torch.tensor([18, 14]))),
            input_dim=16,
            num_heads=2,
            ffn_dim=32,
            num_layers=2,
            segment_length=4,
            right_context_length=2,
        ),
        "HDemucs": lambda: _audio(
            "HDemucs", torch.randn(1, 2, 4096), sources=["a", "b"], depth=3, nfft=256, channels=8
        ),
        "Tacotron2enc": _audio_encoder,
        "Wav2Letter": lambda: _audio("Wav2Letter", torch.randn(1, 1, 4000), num_classes=5),
        "WaveRNN": lambda: _audio(
            *("WaveRNN", (torch.randn(1, 1, 16), torch.randn(1, 1, 8, 8))),
            upsample_scales=[2, 2],
            n_classes=6,
            hop_length=4,
            n_res_block=1,
            n_rnn=8,
            n_fc=8,
            kernel_size=5,
            n_freq=8,
            n_hidden=8,
            n_output=8,
        ),
        "wav2vec2": _audio_wav2vec2,
    },
}
