"""Two small networks to try recipes with: features of pictures of any size."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ConvNet", "VisionTransformer", "as_patches", "positions"]


class ConvNet(nn.Module):
    """A residual network of four stages: 0.7 million parameters.

    Args:
        channels: Of the pictures.
    """

    dim = 192

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = _conv(channels, 24, 3, 2)
        self.stages = nn.Sequential(*(_Residual(before, after) for before, after in pairwise((24, 24, 48, 96, 192))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float ``[B, C, H, W]`` to features ``[B, 192]``."""
        maps = self.stages(F.relu(self.stem(images.contiguous(memory_format=torch.channels_last))))
        return torch.as_tensor(maps.mean((2, 3)))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.body = nn.Sequential(_conv(before, after, 3, stride), nn.ReLU(), _conv(after, after, 3, 1))
        self.skip = nn.Identity() if stride == 1 else _conv(before, after, 1, stride)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(maps) + self.skip(maps))


def _conv(before: int, after: int, size: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


class VisionTransformer(nn.Module):
    """Four blocks over patches, with one class token and fixed positions: 0.9 million parameters.

    Args:
        channels: Of the pictures.
        patch: The side of a patch, in pixels.
    """

    dim = 128

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, self.dim)
        self.class_token = nn.Parameter(torch.randn(self.dim) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(self.dim) * 0.02)
        self.blocks = blocks(self.dim, 4)

    def forward(
        self,
        images: torch.Tensor,
        *,
        hidden: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
        ignored: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Float ``[B, C, H, W]`` to tokens ``[B, 1 + N, 128]``, the class token first.

        Args:
            images: With sides of whole patches.
            hidden: Bool ``[B, N]``: patches to replace by the mask token.
            kept: int64 ``[B, K]``: only these patches go in.
            ignored: Bool ``[B, N]``: patches that no other token sees.
        """
        tokens = self.embed(as_patches(images, self.patch))
        if hidden is not None:
            tokens = torch.where(hidden[..., None], self.mask_token, tokens)
        rows, columns = (side // self.patch for side in images.shape[2:])
        tokens = tokens + positions(rows, columns, self.dim, images.device)
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, self.dim))
        tokens = torch.cat((self.class_token.expand(len(tokens), 1, -1), tokens), 1)
        unseen = None if ignored is None else F.pad(ignored, (1, 0))
        return torch.as_tensor(self.blocks(tokens, src_key_padding_mask=unseen))


def blocks(dim: int, depth: int) -> nn.TransformerEncoder:
    """Transformer blocks that normalise first, with a normalisation at the end."""
    block = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, F.gelu, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(block, depth, nn.LayerNorm(dim), enable_nested_tensor=False)


def as_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """``[B, C, H, W]`` to ``[B, N, C * patch * patch]``, row by row."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def positions(rows: int, columns: int, dim: int, device: torch.device) -> torch.Tensor:
    """Sines and cosines of the places of patches, ``[N, dim]``; a picture spans the same range at any size."""
    frequencies = 100.0 ** -torch.linspace(0, 1, dim // 4, device=device)
    angles = [
        (torch.arange(count, device=device) + 0.5)[:, None] * (16 / count) * frequencies for count in (rows, columns)
    ]
    down, across = (torch.cat((each.sin(), each.cos()), 1) for each in angles)
    return torch.cat((down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)), 2).flatten(0, 1)
