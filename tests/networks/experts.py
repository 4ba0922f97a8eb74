"""Mixtures of experts, and networks over ids and over several inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.base import family, inputs, several, tokens


class Siamese(nn.Module):
    """One encoder for two inputs, compared unit by unit; two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        self.head, self.other = nn.Linear(5, 2), nn.Linear(10, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        a, b = self.encoder(a), self.encoder(b)
        joint = torch.hstack([a, b])
        return {"distance": self.head((a - b).abs()), "class": self.other(F.relu(joint))}


class TwoTowers(nn.Module):
    """Two encoders and the scalar product of what they say, with cosine normalisation and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.EmbeddingBag(7, 4, mode="mean")
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        a, b = F.normalize(self.image(image), dim=-1), F.normalize(self.text(ids), dim=-1)
        return self.temperature.exp() * a @ b.t(), (a * b).sum(-1)


class BagOfWords(nn.Module):
    """The mean of embeddings, padding left out by a mask, and a dense classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0).unsqueeze(-1).to(self.fc.weight.dtype)
        x = (self.embed(ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return F.log_softmax(self.head(F.relu(self.fc(x))), dim=-1)


class Bilinear(nn.Module):
    """``nn.Bilinear`` of two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(3, 6)
        self.join, self.head = nn.Bilinear(5, 6, 4), nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.join(torch.tanh(self.a(a)), torch.relu(self.b(b)))))


class Factors(nn.Module):
    """A user embedding times an item embedding: matrix factorisation with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.user_bias, self.item_bias = nn.Embedding(5, 1), nn.Embedding(6, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        score = torch.sum(self.users(user) * self.items(item), dim=-1)
        return score + (self.user_bias(user) + self.item_bias(item)).squeeze(-1)


class Experts(nn.Module):
    """A soft gate over experts that are slices of stacked tensors."""

    def __init__(self, experts: int = 3, inner: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(5, experts)
        self.w1, self.b1 = (
            nn.Parameter(torch.randn(experts, 5, inner)),
            nn.Parameter(torch.randn(experts, inner)),
        )
        self.w2, self.b2 = nn.Parameter(torch.randn(experts, inner, 6)), nn.Parameter(torch.randn(experts, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(torch.einsum("nf,efh->neh", x, self.w1) + self.b1)
        y = torch.einsum("neh,eho->neo", h, self.w2) + self.b2
        return self.head((self.gate(x).softmax(-1).unsqueeze(-1) * y).sum(1))


class ExpertModules(nn.Module):
    """A soft gate over experts that are modules."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(5, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6)) for _ in range(experts)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(torch.einsum("ne,neo->no", F.softmax(self.gate(x), dim=-1), y))


class RoutedExperts(nn.Module):
    """Each example is weighed over its two best experts, the others count nothing."""

    def __init__(self, experts: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.stem, self.gate, self.chosen = nn.Linear(5, 6), nn.Linear(6, experts, bias=False), chosen
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(experts, 6, 4) / 2),
            nn.Parameter(torch.randn(experts, 4, 6) / 2),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        scores, index = torch.topk(self.gate(x), self.chosen, dim=-1)
        weights = torch.zeros_like(self.gate(x)).scatter(-1, index, scores.softmax(-1))
        h = torch.relu(torch.einsum("nf,efh->enh", x, self.w1))
        y = torch.bmm(h, self.w2)
        return self.head(x + torch.einsum("ne,enf->nf", weights, y))


class Gathered(nn.Module):
    """The parameters of each example's best expert are looked up, as in Switch Transformers."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(5, experts), nn.Linear(4, 3)
        self.weight, self.bias = (
            nn.Parameter(torch.randn(experts, 4, 5)),
            nn.Parameter(torch.randn(experts, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        probability, best = self.gate(x).softmax(dim=-1).max(dim=-1)
        y = torch.bmm(self.weight[best], x.unsqueeze(-1)).squeeze(-1) + self.bias[best]
        return self.head(torch.relu(y) * probability.unsqueeze(-1))


X = inputs(4, 5)

CASES = (
    family("siamese", Siamese, several(inputs(3, 4), inputs(3, 4)), permuted=(6, 5), scaled=5, flipped=6),
    family("two-towers", TwoTowers, several(inputs(3, 6), tokens(7, 3, 4)), permuted=(4,), flipped=4),
    family("bag-of-words", BagOfWords, tokens(9, 3, 5), permuted=(4, 5), scaled=9, flipped=4),
    family(
        "nn-bilinear", Bilinear, several(inputs(3, 4), inputs(3, 3)),
        permuted=(5, 6, 4), scaled=10, flipped=5,
    ),
    family(
        "matrix-factors", Factors, several(tokens(5, 4), tokens(6, 4)), permuted=(4,), scaled=4, flipped=4
    ),
    family("experts", Experts, X, permuted=(3, 4, 4, 4, 6), scaled=18, flipped=6),
    family("expert-modules", ExpertModules, X, permuted=(4, 4, 4, 6), scaled=18, flipped=6),
    # The experts themselves may be permuted too, which a rule for top-k cannot see from its indices.
    family("experts-routed", RoutedExperts, X, permuted=(6, 4, 4, 4, 4), scaled=22),
    family("experts-gathered", Gathered, X, permuted=(4,), scaled=4),
)  # fmt: skip
"""Mixtures, and several inputs."""
