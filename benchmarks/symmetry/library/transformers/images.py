"""Networks that read images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.symmetry.library import Factory
from benchmarks.symmetry.library.transformers.base import (
    IMAGE,
    WIDE,
    ids,
    image,
    library,
    network,
    pixels,
    stages,
)


def _clip() -> dict[str, Any]:
    return ids() | pixels()


def _clip_config() -> tuple[nn.Module, Any]:
    hf = library()

    text = {**WIDE, "projection_dim": 16, "eos_token_id": 99}
    config = hf.CLIPConfig(text_config=text, vision_config={**IMAGE, "projection_dim": 16}, projection_dim=16)
    return hf.CLIPModel(config), _clip()


def _backbone() -> Any:
    hf = library()

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
    hf = library()

    config = hf.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_backbone(),
        **_DETR,
        **options,
    )
    return hf.DetrForObjectDetection(config), pixels(64, batch=1)


def _deformable_detr() -> tuple[nn.Module, Any]:
    hf = library()

    config = hf.DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_backbone(),
        **_DETR | {"decoder_layers": 2},
        num_feature_levels=3,
    )
    return hf.DeformableDetrForObjectDetection(config), pixels(64, batch=1)


def _mask2former() -> tuple[nn.Module, Any]:
    hf = library()

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
    return hf.Mask2FormerForUniversalSegmentation(config), pixels(64, batch=1)


def _rt_detr() -> tuple[nn.Module, Any]:
    hf = library()

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
    return hf.RTDetrForObjectDetection(config), pixels(64, batch=1)


def _dpt() -> tuple[nn.Module, Any]:
    options = {**IMAGE, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]}
    options |= {"neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16}
    return network("DPTForDepthEstimation", "DPTConfig", pixels, **options)


def _upernet() -> tuple[nn.Module, Any]:
    hf = library()

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
    return hf.UperNetForSemanticSegmentation(config), pixels(64)


_CONVNEXT = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_labels": 5}


_SEGFORMER = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}


IMAGES: dict[str, Factory] = {
    "beit": image("Beit", "ForImageClassification"),
    "bit": stages(
        "Bit", "Model", embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_groups=4
    ),
    "blip_vision": partial(network, "BlipVisionModel", "BlipVisionConfig", pixels, **IMAGE),
    "clip": _clip_config,
    "clip_vision": partial(network, "CLIPVisionModelWithProjection", "CLIPVisionConfig", pixels, **IMAGE),
    "convnextv2": stages("ConvNextV2", "ForImageClassification", **_CONVNEXT),
    "cvt": stages(
        "Cvt", "ForImageClassification", embed_dim=[8, 16, 32], num_heads=[1, 2, 2], depth=[1, 2, 3]
    ),
    "deformable_detr": _deformable_detr,
    "deit": image("DeiT", "ForImageClassification"),
    "detr": _detr,
    "dinov2": image("Dinov2", "ForImageClassification", mlp_ratio=2),
    "dpt": _dpt,
    "focalnet": stages("FocalNet", "ForImageClassification", image_size=64, embed_dim=8, depths=[1, 1, 1, 1]),
    "glpn": stages("GLPN", "ForDepthEstimation", **_SEGFORMER, decoder_hidden_size=16),
    "levit": stages(
        "Levit",
        "ForImageClassification",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "mask2former": _mask2former,
    "mobilevit": stages(
        "MobileViT",
        "ForImageClassification",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=2,
        neck_hidden_sizes=[8, 8, 16, 24, 24, 32, 64],
    ),
    "poolformer": stages(
        "PoolFormer", "ForImageClassification", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]
    ),
    "rtdetr": _rt_detr,
    "sam_vision": partial(
        *(network, "SamVisionModel", "SamVisionConfig", partial(pixels, 64)),
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
    "segformer": stages("Segformer", "ForSemanticSegmentation", **_SEGFORMER, decoder_hidden_size=16),
    "siglip_vision": partial(network, "SiglipVisionModel", "SiglipVisionConfig", pixels, **IMAGE),
    "superpoint": stages(
        "SuperPoint",
        "ForKeypointDetection",
        encoder_hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        descriptor_decoder_dim=16,
    ),
    "swin": stages(
        "Swin",
        "ForImageClassification",
        image_size=64,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "timesformer": partial(
        *(network, "TimesformerForVideoClassification", "TimesformerConfig"),
        lambda: {"pixel_values": torch.randn(1, 4, 3, 32, 32)},
        **IMAGE,
        num_frames=4,
    ),
    "upernet": _upernet,
    "videomae": partial(
        *(network, "VideoMAEForVideoClassification", "VideoMAEConfig"),
        lambda: {"pixel_values": torch.randn(1, 4, 3, 32, 32)},
        **IMAGE,
        num_frames=4,
    ),
    "vit": image("ViT", "ForImageClassification"),
    "vit_mae": image("ViTMAE", decoder_hidden_size=16, decoder_num_hidden_layers=1),
    "vitdet": image("VitDet", window_block_indices=[0], window_size=2, mlp_ratio=2),
    "yolos": image("Yolos", "ForObjectDetection", image_size=[32, 32], num_detection_tokens=5),
}
