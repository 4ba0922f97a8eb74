"""Networks of images and volumes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from benchmarks.symmetry.library import Factory, load_torchaudio


def _timm(name: str, size: int = 64, **options: Any) -> tuple[nn.Module, Any]:
    import timm

    return timm.create_model(name, pretrained=False, **options), torch.randn(2, 3, size, size)


_TIMM = (
    *("convnext_atto", "convnextv2_atto", "dla34", "dm_nfnet_f0"),
    *("eca_nfnet_l0", "eca_resnet33ts", "edgenext_xx_small", "efficientnet_b0", "ese_vovnet19b_dw"),
    *("gcresnext26ts", "ghostnet_100", "ghostnetv2_100", "hrnet_w18_small", "mobilevit_xxs"),
    *("mobilevitv2_050", "nf_regnet_b0", "poolformer_s12", "poolformerv2_s12", "regnety_002"),
    *("res2net50_26w_4s", "resnest14d", "resnet26d", "resnet50_gn", "resnetblur18", "resnetv2_50"),
    *("resnetv2_50d_evos", "seresnet18", "skresnet18", "tf_efficientnetv2_b0"),
)
_TIMM_AT_256 = ("bat_resnext26ts", "botnet26t_256", "halonet26t", "sehalonet33ts", "lambda_resnet26t")


def _torchvision(build: Callable[[Any], nn.Module], *shape: int) -> tuple[nn.Module, Any]:
    return build(import_module("torchvision.models")), torch.randn(shape)


_NO_WEIGHTS = {"weights": None, "weights_backbone": None}


def _detector(name: str, size: int = 64, **options: Any) -> tuple[nn.Module, Any]:
    from torchvision.models import detection

    net = getattr(detection, name)(**_NO_WEIGHTS, num_classes=5, **options)
    with torch.no_grad():
        net.backbone(torch.randn(4, 3, 128, 128))  # statistics of norms, or most boxes have the same score
    return net, [torch.randn(3, size, size)]


def _raft() -> tuple[nn.Module, Any]:
    from torchvision.models.optical_flow import raft_small

    images = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    return raft_small(weights=None), (*images, 2)


def _backbone() -> tuple[nn.Module, Any]:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None), torch.randn(1, 3, 64, 64)


def _segmentation(name: str) -> Factory:
    return lambda: _torchvision(
        lambda m: getattr(m.segmentation, name)(**_NO_WEIGHTS, num_classes=5), 2, 3, 64, 64
    )


def _video(name: str, size: int = 32, frames: int = 8) -> Factory:
    return lambda: _torchvision(
        lambda m: getattr(m.video, name)(weights=None, num_classes=5), 1, 3, frames, size, size
    )


def _smp(name: str, encoder: str = "resnet18", size: int = 64, **options: Any) -> tuple[nn.Module, Any]:
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)(encoder_name=encoder, encoder_weights=None, classes=3, **options)
    return model, torch.randn(2, 3, size, size)


def _monai(name: str, *shape: int, **options: Any) -> tuple[nn.Module, Any]:
    return getattr(import_module("monai.networks.nets"), name)(**options), torch.randn(shape)


_UNET = {"channels": (4, 8, 16), "strides": (2, 2), "in_channels": 1, "out_channels": 2}


def _yolo(config: str) -> tuple[nn.Module, Any]:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(config, nc=3, verbose=False), torch.randn(1, 3, 64, 64)


def _vit(path: str, *shape: int, **options: Any) -> tuple[nn.Module, Any]:
    place, _, name = path.rpartition(".")
    return getattr(import_module(f"vit_pytorch.{place}".rstrip(".")), name)(**options), torch.randn(shape)


_VIT = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}


def _diffusers(name: str, inputs: Callable[[], dict[str, Any]], **options: Any) -> tuple[nn.Module, Any]:
    load_torchaudio()  # which diffusers imports by way of transformers
    return getattr(import_module("diffusers"), name)(**options), inputs()


_BLOCKS_2D = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_CROSS = {
    **_BLOCKS_2D,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}


def _noisy(*shape: int, **further: Any) -> dict[str, Any]:
    return {"sample": torch.randn(shape), "timestep": torch.tensor([3, 5][: shape[0]]), **further}


def _control_net() -> tuple[nn.Module, Any]:
    inputs = _noisy(1, 4, 16, 16, encoder_hidden_states=torch.randn(1, 6, 16))
    inputs["controlnet_cond"] = torch.randn(1, 3, 32, 32)
    return _diffusers(
        "ControlNetModel", lambda: inputs, conditioning_embedding_out_channels=(8, 16), **_CROSS
    )


def _flux() -> tuple[nn.Module, Any]:
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    inputs = {
        "hidden_states": torch.randn(1, 16, 8),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "pooled_projections": torch.randn(1, 10),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.rand(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return _diffusers(
        "FluxTransformer2DModel",
        lambda: inputs,
        **sizes,
        patch_size=1,
        in_channels=8,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    )


def _sd3() -> tuple[nn.Module, Any]:
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "pooled_projections": torch.randn(1, 10),
        "timestep": torch.tensor([3]),
    }
    return _diffusers(
        "SD3Transformer2DModel",
        lambda: inputs,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
    )


def _dit() -> tuple[nn.Module, Any]:
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }
    return _diffusers(
        "DiTTransformer2DModel",
        lambda: inputs,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )


def _open_clip(kind: str) -> tuple[nn.Module, Any]:
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP

    images, text = torch.randn(2, 3, 32, 32), torch.randint(1, 99, (2, 12))
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    language = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
    if kind == "RN":
        vision |= {"layers": (1, 1, 1, 1), "width": 8, "patch_size": None}
    if kind == "CoCa":
        multimodal = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
        pooler = {"attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 2}
        pooled = {**vision, **pooler, "output_tokens": True}
        coca = CoCa(
            32, {**multimodal, "mlp_ratio": 2}, {**language, "embed_cls": True, "output_tokens": True}, pooled
        )
        nn.init.normal_(coca.text_decoder.text_projection, std=0.1)  # left as it was in memory
        return coca, (images, text)
    return CLIP(32, vision, language), (images, text)


NETWORKS: dict[str, dict[str, Factory]] = {
    "timm": {
        **{name: partial(_timm, name) for name in _TIMM},
        **{name: partial(_timm, name, size=256) for name in _TIMM_AT_256},
    },
    "torchvision": {
        "deeplabv3_mobilenet": _segmentation("deeplabv3_mobilenet_v3_large"),
        "fcn_resnet50": _segmentation("fcn_resnet50"),
        "lraspp": _segmentation("lraspp_mobilenet_v3_large"),
        "fasterrcnn_mbv3": partial(_detector, "fasterrcnn_mobilenet_v3_large_320_fpn", min_size=64),
        "fcos": partial(_detector, "fcos_resnet50_fpn", score_thresh=0.0, min_size=64),
        "retinanet": partial(_detector, "retinanet_resnet50_fpn", score_thresh=0.0, min_size=64),
        "ssdlite": partial(_detector, "ssdlite320_mobilenet_v3_large"),
        "rcnn_backbone_fpn": _backbone,
        "raft_small": _raft,
        "mc3_18": _video("mc3_18"),
        "r2plus1d_18": _video("r2plus1d_18"),
        "r3d_18": _video("r3d_18"),
        "s3d": _video("s3d", 224, 16),
        "mvit_v1_b": _video("mvit_v1_b", 224, 16),
        "swin3d_t": _video("swin3d_t", 64, 4),
    },
    "segmentation-models-pytorch": {
        **{
            name: partial(_smp, name)
            for name in (
                *("DeepLabV3", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PSPNet"),
                *("Segformer", "UPerNet", "Unet", "UnetPlusPlus"),
            )
        },
        "PAN": partial(_smp, "PAN", size=128),
        "DPT": lambda: (
            _smp("DPT", "tu-vit_tiny_patch16_224", dynamic_img_size=True)[0],
            torch.randn(1, 3, 64, 64),
        ),
        "Unet_scse": partial(_smp, "Unet", decoder_attention_type="scse"),
    },
    "monai": {
        "AttentionUnet": partial(_monai, "AttentionUnet", 1, 1, 32, 32, spatial_dims=2, **_UNET),
        "BasicUNetPP": partial(
            *(_monai, "BasicUNetPlusPlus", 1, 1, 32, 32),
            spatial_dims=2,
            features=(4, 4, 8, 8, 16, 4),
            out_channels=2,
        ),
        "DynUNet": partial(
            *(_monai, "DynUNet", 1, 1, 32, 32),
            spatial_dims=2,
            in_channels=1,
            out_channels=2,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[4, 8, 16],
        ),
        "HighResNet": partial(
            _monai, "HighResNet", 1, 1, 16, 16, 16, spatial_dims=3, in_channels=1, out_channels=2
        ),
        "SegResNet": partial(
            _monai, "SegResNet", 1, 1, 16, 16, 16, spatial_dims=3, in_channels=1, out_channels=2
        ),
        "SwinUNETR": partial(
            *(_monai, "SwinUNETR", 1, 1, 64, 64),
            in_channels=1,
            out_channels=2,
            feature_size=12,
            spatial_dims=2,
        ),
        "UNETR": partial(
            *(_monai, "UNETR", 1, 1, 32, 32),
            in_channels=1,
            out_channels=2,
            img_size=32,
            feature_size=4,
            hidden_size=32,
            mlp_dim=64,
            num_heads=4,
            spatial_dims=2,
        ),
        "UNet": partial(_monai, "UNet", 1, 1, 32, 32, spatial_dims=2, num_res_units=2, **_UNET),
        "UNet3d": partial(_monai, "UNet", 1, 1, 16, 16, 16, spatial_dims=3, num_res_units=1, **_UNET),
        "VNet": partial(_monai, "VNet", 1, 1, 32, 32, 32, spatial_dims=3, in_channels=1, out_channels=2),
    },
    "ultralytics": {
        name: partial(_yolo, f"{name}.yaml")
        for name in ("yolo11n", "yolo12n", "yolov10n", "yolov5n", "yolov8n")
    },
    "vit-pytorch": {
        "ViT": partial(_vit, "vit.ViT", 1, 3, 32, 32, **_VIT),
        "SimpleViT": partial(_vit, "simple_vit.SimpleViT", 1, 3, 32, 32, **_VIT),
        "DeepViT": partial(_vit, "deepvit.DeepViT", 1, 3, 32, 32, **_VIT),
        "CaiT": partial(_vit, "cait.CaiT", 1, 3, 32, 32, **_VIT, cls_depth=1),
        "T2T": partial(
            *(_vit, "t2t.T2TViT", 1, 3, 32, 32),
            **{k: v for k, v in _VIT.items() if k != "patch_size"},
        ),
        "CCT": partial(
            *(_vit, "cct.CCT", 1, 3, 32, 32),
            img_size=32,
            embedding_dim=32,
            n_conv_layers=1,
            kernel_size=3,
            stride=2,
            padding=1,
            num_layers=2,
            num_heads=2,
            mlp_ratio=2,
            num_classes=5,
        ),
        "CrossFormer": partial(
            *(_vit, "crossformer.CrossFormer", 1, 3, 224, 224),
            num_classes=5,
            dim=(32, 32, 64, 64),
            depth=(1, 1, 1, 1),
        ),
        "LMViT": partial(_vit, "learnable_memory_vit.ViT", 1, 3, 32, 32, **_VIT),
        # Its norms are over the last axis of an image, so it takes as many patches a row as channels.
        "LocalViT": partial(
            _vit,
            "local_vit.LocalViT",
            1,
            3,
            128,
            128,
            **_VIT | {"image_size": 128, "patch_size": 8, "dim": 16},
        ),
        "MaxViT": partial(
            *(_vit, "max_vit.MaxViT", 1, 3, 64, 64),
            num_classes=5,
            dim_conv_stem=16,
            dim=16,
            dim_head=8,
            depth=(1, 1),
            window_size=4,
        ),
        "SmallDS": partial(_vit, "vit_for_small_dataset.ViT", 1, 3, 32, 32, **_VIT),
    },
    "diffusers": {
        "AutoencoderKL": partial(
            *(_diffusers, "AutoencoderKL", lambda: {"sample": torch.randn(1, 3, 32, 32)}),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            **_BLOCKS_2D,
        ),
        "VQModel": partial(
            *(_diffusers, "VQModel", lambda: {"sample": torch.randn(1, 3, 32, 32)}),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=3,
            num_vq_embeddings=16,
            **_BLOCKS_2D,
        ),
        "ControlNet": _control_net,
        "DiT": _dit,
        "Flux": _flux,
        "SD3": _sd3,
        "UNet1D": partial(
            *(_diffusers, "UNet1DModel", lambda: _noisy(1, 14, 32)),
            in_channels=14,
            out_channels=14,
            extra_in_channels=64,
            block_out_channels=(32, 32, 64),
            norm_num_groups=8,
        ),
        "UNet2DCond": partial(
            *(
                _diffusers,
                "UNet2DConditionModel",
                lambda: _noisy(1, 4, 16, 16, encoder_hidden_states=torch.randn(1, 6, 16)),
            ),
            sample_size=16,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **_CROSS,
        ),
        "UNet2D": partial(
            *(_diffusers, "UNet2DModel", lambda: _noisy(1, 3, 16, 16)),
            sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            **_BLOCKS_2D,
        ),
    },
    "open-clip": {kind: partial(_open_clip, kind) for kind in ("ViT", "RN", "CoCa")},
}
