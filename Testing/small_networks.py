"""Small classifiers with the building blocks of well-known ones, for comparison with autograd.

torchvision has no build everywhere that PyTorch has; these follow the papers, not its code.
"""

import torch
from torch import nn

CLASSES = 4


def vgg() -> nn.Module:
    """VGG (Simonyan 2015): plain convolutions, max-poolings and dense layers with dropout."""
    layers, inputs = [], 1
    for channels in (8, 16, 24):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = channels
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * inputs, 32),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(32, CLASSES),
    )


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


class _InvertedResidual(nn.Module):
    def __init__(self, channels: int, expanded: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            nn.Hardswish(),
            nn.Conv2d(expanded, expanded, kernel, padding=kernel // 2, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            nn.Hardswish(),
            _SqueezeExcite(expanded),
            nn.Conv2d(expanded, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


def mobilenet_v3() -> nn.Module:
    """MobileNetV3 (Howard 2019): inverted residuals, squeeze and excitation, hard swish."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        _InvertedResidual(16, 32, 3),
        nn.Conv2d(16, 24, 3, 2, 1),
        _InvertedResidual(24, 48, 5),
        _InvertedResidual(24, 48, 5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 32),
        nn.Hardswish(),
        nn.Linear(32, CLASSES),
    )


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.mix = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(self.depthwise(x).permute(0, 2, 3, 1)) * self.scale
        return x + mixed.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """ConvNeXt (Liu 2022): large depthwise kernels, layer normalisation, GELU, layer scale."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 4, 4),
        _ChannelNorm(12),
        _ConvNeXtBlock(12),
        _ConvNeXtBlock(12),
        _ChannelNorm(12),
        nn.Conv2d(12, 24, 2, 2),
        _ConvNeXtBlock(24),
        _ConvNeXtBlock(24),
        nn.AdaptiveAvgPool2d(1),
        _ChannelNorm(24),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
