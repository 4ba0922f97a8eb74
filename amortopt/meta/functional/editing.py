"""How editors are trained and judged, by what the networks answer that they make.

Legend: B networks, N inputs, k numbers of an answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.metanets import Metanet, PictureEditor, ScaleGMNDescent, ScaleGMNEditor


def edited_answers(editor: Metanet, network: nn.Module, params: Params, x: Tensor) -> Tensor:
    """What edited networks answer at inputs [N, ...] that all share, [B, N, k]: the mean over proposals.

    Args:
        editor: The editor.
        network: The networks' architecture.
        params: Networks to edit, [B, ...].
        x: The inputs.
    """
    several = isinstance(editor, (ScaleGMNDescent, ScaleGMNEditor))
    proposals = editor.propose(params) if several else [editor(params)]
    return torch.stack([apply_many(network, each, x) for each in proposals]).mean(0)


def editing_loss(editor: Metanet, network: nn.Module, params: Params, x: Tensor, y: Tensor) -> Tensor:
    """What training lowers: the mean squared error to wanted answers [B, N, k].

    Of a [PictureEditor][amortopt.metanets.PictureEditor] also that of the pictures that it draws from: the
    map of pictures learns much faster so than through the pass alone.

    Other arguments are those of ``edited_answers``.

    Raises:
        ValueError: A `PictureEditor` has another number of pixels than there are wanted answers.
    """
    if not isinstance(editor, PictureEditor):
        return (edited_answers(editor, network, params, x) - y).square().mean()
    drawn, pictures = editor.edit(params)
    if y.shape[1:] != (pictures[0].numel(), 1):
        raise ValueError(
            f"editor.side: got {len(pictures[0])}, expected the side of the pictures, which have "
            f"{y.shape[1]} pixels"
        )
    errors = [apply_many(network, drawn, x) - y, pictures.flatten(1)[..., None] - y]
    return sum((error.square().mean() for error in errors), y.new_zeros(()))
