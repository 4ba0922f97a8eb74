"""Small networks after public reports of bugs in tools for pruning, merging and aligning networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.symmetry.library import Factory


class Network(nn.Module):
    """Parts by name, and a function of the network and its inputs as forward."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.3)


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _rotated(x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1])
    a, b = x.chunk(2, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1)


def _attention(queries: int, shared: int, rope: bool = False) -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v = _heads(net.q(x), queries), _heads(net.k(x), shared), _heads(net.v(x), shared)
        q, k = (_rotated(q), _rotated(k)) if rope else (q, k)
        k, v = (part.repeat_interleave(queries // shared, dim=1) for part in (k, v))
        return net.head(net.o(_joined(F.scaled_dot_product_attention(q, k, v))).relu())

    parts = {"q": nn.Linear(6, 4 * queries), "k": nn.Linear(6, 4 * shared), "v": nn.Linear(6, 4 * shared)}
    parts |= {"o": nn.Linear(4 * queries, 8), "head": nn.Linear(8, 3)}
    return Network(forward, **parts), torch.randn(2, 5, 6)


def _attention_of_values() -> tuple[nn.Module, Any]:
    attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=7, batch_first=True)
    net = Network(
        lambda net, q, k, v: net.head(net.attention(q, k, v)[0]), attention=attention, head=nn.Linear(8, 2)
    )
    return net, (torch.randn(2, 4, 8), torch.randn(2, 6, 5), torch.randn(2, 6, 7))


def _pyramid() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x).relu()
        return net.head(torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in (1, 2, 4)], 1))

    return Network(forward, conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8 * 21, 4)), torch.randn(2, 3, 12, 12)


def _unequal_split() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        a, b, c = net.first(x).relu().split([4, 6, 2], 1)
        return net.head(torch.cat((net.left(a), net.right(b), b, c), 1))

    parts = {"first": nn.Linear(5, 12), "left": nn.Linear(4, 3), "right": nn.Linear(6, 3)}
    return Network(forward, **parts, head=nn.Linear(14, 2)), torch.randn(4, 5)


def _expert_loop() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        scores, chosen = net.gate(x).softmax(-1).topk(2, -1)
        mask = F.one_hot(chosen, 3).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for expert, layer in enumerate(net.experts):
            place, row = torch.where(mask[expert])
            out.index_add_(0, row, layer(x[row]) * scores[row, place, None])
        return net.head(out)

    experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3))
    return Network(forward, gate=nn.Linear(6, 3), experts=experts, head=nn.Linear(6, 2)), torch.randn(10, 6)


def _block(convolution: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def _bottleneck() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = (net.expand(net.inside(net.reduce(x))) + net.shortcut(x)).relu()
        return net.head(x.mean((2, 3)))

    parts = {
        "stem": _block(nn.Conv2d(3, 8, 3), 8),
        "reduce": _block(nn.Conv2d(8, 4, 1), 4),
        "inside": _block(nn.Conv2d(4, 4, 3, stride=2, padding=1), 4),
        "expand": nn.Sequential(nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16)),
        "shortcut": nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16)),
        "head": nn.Linear(16, 3),
    }
    return Network(forward, **parts), torch.randn(2, 3, 10, 10)


def _grouped() -> tuple[nn.Module, Any]:
    layers = _block(nn.Conv2d(3, 8, 3), 8), _block(nn.Conv2d(8, 12, 3, groups=4), 12), nn.Conv2d(12, 3, 3)
    return nn.Sequential(*layers), torch.randn(2, 3, 10, 10)


def _residual_mlp() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(x).relu()
        return net.head(x + net.second(x).relu())

    layers = {"first": nn.Linear(6, 10), "second": nn.Linear(10, 10), "head": nn.Linear(10, 3)}
    return Network(forward, **layers), torch.randn(4, 6)


def _parallel_paths() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        return net.head((net.small(x) + net.large(x) + x).relu().mean((2, 3)))

    parts = {"small": nn.Conv2d(8, 8, 1), "large": nn.Conv2d(8, 8, 3, padding=1)}
    return Network(forward, stem=nn.Conv2d(3, 8, 3), **parts, head=nn.Linear(8, 3)), torch.randn(2, 3, 8, 8)


def _vit_with_parameters() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat((net.token.expand(len(x), -1, -1), x), 1) + net.positions
        return net.head(net.encoder(x)[:, 0])

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
    net = Network(
        forward,
        stem=nn.Conv2d(3, 16, 4, stride=4),
        token=_parameter(1, 1, 16),
        positions=_parameter(1, 17, 16),
        encoder=encoder,
        head=nn.Linear(16, 3),
    )
    return net, torch.randn(2, 3, 16, 16)


def _transposed_after_view() -> tuple[nn.Module, Any]:
    layers = nn.Linear(5, 8 * 4), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 4, 2, stride=2)
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 5)


def _joined_to_itself() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(x).relu()
        return net.head(torch.cat((x, x), 1))

    return Network(forward, first=nn.Linear(5, 8), head=nn.Linear(16, 3)), torch.randn(4, 5)


def _c2f() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        parts = list(net.first(x).chunk(2, 1))
        parts += [net.a(parts[-1])]
        parts += [net.b(parts[-1]) + parts[-1]]
        return net.head(net.last(torch.cat(parts, 1)).mean((2, 3)))

    parts = {"first": _block(nn.Conv2d(3, 16, 3), 16), "last": _block(nn.Conv2d(32, 8, 1), 8)}
    parts |= {name: _block(nn.Conv2d(8, 8, 3, padding=1), 8) for name in ("a", "b")}
    return Network(forward, **parts, head=nn.Linear(8, 3)), torch.randn(2, 3, 10, 10)


def _one_channel() -> tuple[nn.Module, Any]:
    layers = (
        nn.Conv2d(3, 1, 3),
        nn.BatchNorm2d(1),
        nn.ReLU(),
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )
    return nn.Sequential(*layers), torch.randn(2, 3, 10, 10)


def _queries() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        memory = net.stem(x).flatten(2).transpose(1, 2)
        return net.head(net.decoder(net.queries.expand(len(x), -1, -1), memory))

    layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    parts = {"stem": nn.Conv2d(3, 16, 4, stride=4), "queries": _parameter(1, 5, 16)}
    net = Network(forward, **parts, decoder=nn.TransformerDecoder(layer, 2), head=nn.Linear(16, 3))
    return net, torch.randn(2, 3, 16, 16)


def _lstm_with_norm() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.norm(net.lstm(x)[0])[:, -1])

    parts = {"lstm": nn.LSTM(5, 8, batch_first=True), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 2)}
    return Network(forward, **parts), torch.randn(2, 6, 5)


def _pooled_attention() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, 2) for part in net.qkv(net.stem(x)).chunk(3, -1))
        k, v = (F.max_pool1d(part.flatten(0, 1).transpose(1, 2), 2).transpose(1, 2) for part in (k, v))
        k, v = k.unflatten(0, (-1, 2)), v.unflatten(0, (-1, 2))
        y = F.scaled_dot_product_attention(q, k, v) + q
        return net.head(_joined(y).mean(1))

    parts = {"stem": nn.Linear(5, 8), "qkv": nn.Linear(8, 48), "head": nn.Linear(16, 2)}
    return Network(forward, **parts), torch.randn(2, 6, 5)


def _fused_projection(by: str) -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        qkv = net.qkv(net.stem(x)).reshape(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if by == "unbind" else (qkv[0], qkv[1], qkv[2])
        return net.head(_joined((q @ k.transpose(-1, -2) / 3).softmax(-1) @ v))

    parts = {"stem": nn.Linear(5, 8), "qkv": nn.Linear(8, 48), "head": nn.Linear(16, 2)}
    return Network(forward, **parts), torch.randn(2, 6, 5)


def _shuffled() -> tuple[nn.Module, Any]:
    layers = (
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.PixelShuffle(2),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8)


def _cells() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            h = net.cell(step, h)
        return net.head(h)

    return Network(forward, cell=nn.GRUCell(5, 8), head=nn.Linear(8, 2)), torch.randn(2, 4, 5)


def _wide_and_deep() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor, ids: Tensor) -> Tensor:
        wide = net.wide(x) + net.table(ids).sum(1)
        return wide + net.deep(torch.cat((x, net.embed(ids).flatten(1)), 1))

    deep = nn.Sequential(nn.Linear(5 + 12, 16), nn.ReLU(), nn.Linear(16, 1))
    parts = {
        "wide": nn.Linear(5, 1),
        "table": nn.Embedding(10, 1),
        "embed": nn.Embedding(10, 4),
        "deep": deep,
    }
    return Network(forward, **parts), (torch.randn(4, 5), torch.randint(10, (4, 3)))


def _coordinates() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        rows, columns = net.shared(torch.cat((rows, columns), 2)).split([x.shape[2], x.shape[3]], 2)
        return net.head(
            (x * net.rows(rows).sigmoid() * net.columns(columns.transpose(2, 3)).sigmoid()).mean((2, 3))
        )

    parts = {
        "shared": _block(nn.Conv2d(8, 4, 1), 4),
        "rows": nn.Conv2d(4, 8, 1),
        "columns": nn.Conv2d(4, 8, 1),
    }
    return Network(forward, stem=nn.Conv2d(3, 8, 3), **parts, head=nn.Linear(8, 2)), torch.randn(2, 3, 8, 9)


def _flattened() -> tuple[nn.Module, Any]:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 16), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(16, 2)), torch.randn(2, 3, 8, 8)


def _masked() -> tuple[nn.Module, Any]:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(x).relu()
        return net.head(x * net.mask.sigmoid())

    return Network(forward, first=nn.Linear(5, 8), mask=_parameter(1, 8), head=nn.Linear(8, 2)), torch.randn(
        4, 5
    )


NETWORKS: dict[str, dict[str, Factory]] = {
    "written-out": {
        "cisco9_gqa": lambda: _attention(4, 2),
        "mergekit199_rope": lambda: _attention(4, 2, rope=True),
        "onnxsim1103_mqa": lambda: _attention(4, 1),
        "mtt7_mha_value": _attention_of_values,
        "nni4160_spp": _pyramid,
        "oto50_unequal_split_shared": _unequal_split,
        "pt154559_expert_loop": _expert_loop,
        "rebasin10_bottleneck_shortcut": _bottleneck,
        "rebasin6_grouped_conv": _grouped,
        "rebasin8_residual_mlp": _residual_mlp,
        "snimu25_parallel_paths": _parallel_paths,
        "tp101_vit_params": _vit_with_parameters,
        "tp125_linear_view_convT": _transposed_after_view,
        "tp146_cat_self": _joined_to_itself,
        "tp147_c2f": _c2f,
        "tp179_one_channel": _one_channel,
        "tp188_detr_queries": _queries,
        "tp276_lstm_ln": _lstm_with_norm,
        "tp287_mvit_pool": _pooled_attention,
        "tp393_qkv_index": lambda: _fused_projection("index"),
        "tp393_qkv_unbind": lambda: _fused_projection("unbind"),
        "tp420_pixelshuffle": _shuffled,
        "tp44_gru_cell_loop": _cells,
        "tp481_wide_deep": _wide_and_deep,
        "tp503_coordatt": _coordinates,
        "tp50_conv_flatten_linear": _flattened,
        "tp510_broadcast_mask": _masked,
    }
}
