"""The image generator."""

import torch
from torch import Tensor, nn

INIT_STD = 0.02
SIZE_MULTIPLE = 4  # two doublings


class Generator(nn.Module):
    """Latent codes z (B, latent_dim) -> images (B, channels, size, size) in (0, 1).

    Linear to 128 × size/4 × size/4 and BatchNorm, then two nearest-neighbour upsamplings, each with a 3×3
    convolution, BatchNorm and LeakyReLU(0.2); a last 3×3 convolution and a sigmoid.
    """

    def __init__(self, latent_dim: int, channels: int, size: int) -> None:
        super().__init__()
        if size % SIZE_MULTIPLE:
            raise ValueError(f"image size {size} is not a multiple of {SIZE_MULTIPLE}")
        first = size // SIZE_MULTIPLE
        self.linear = nn.Linear(latent_dim, 128 * first**2)
        self.convolutions = nn.Sequential(
            nn.Unflatten(1, (128, first, first)),
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, channels, size, size)."""
        images: Tensor = self.convolutions(self.linear(latents))
        return images

    @torch.no_grad()
    def reinitialise(self, rng: torch.Generator) -> None:
        """Weights ~ N(0, 0.02), BatchNorm scales ~ N(1, 0.02), biases 0, running statistics reset."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.weight.normal_(1.0, INIT_STD, generator=rng)
                module.bias.zero_()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0.0, INIT_STD, generator=rng)
                if module.bias is not None:
                    module.bias.zero_()
