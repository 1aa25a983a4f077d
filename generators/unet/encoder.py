"""The encoder half: built once, used by the U-Net, the upsampler and the classifier."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from generators.unet.config import EncoderConfig
from generators.unet.layers import AttentionBlock, Downsample, ResBlock, timestep_embedding, without_autocast


class Stage(nn.Sequential):
    """Layers in a row; those that are conditioned are given the embedding."""

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, H, W) to the feature map of the last layer."""
        for layer in self:
            x = layer(x, activated_embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class Encoder(nn.Module):
    """Embeddings, encoder levels and middle block of ADM's networks, in the order of OpenAI's files.

    The convolutions may be of a narrower type than the rest (`generators.unet.precision`); norms, embeddings
    and the output head are float32 always, under autocast too.
    """

    recompute_activations = False
    """Keep only the stages' outputs for the backward pass and compute the rest again: less memory, more work."""

    def __init__(self, config: EncoderConfig, label_classes: int | None = None) -> None:
        super().__init__()
        self.encoder_config = config
        embedding = config.embedding_width
        self.time_embed = nn.Sequential(
            nn.Linear(config.channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        if label_classes is not None:
            self.label_emb = nn.Embedding(label_classes, embedding)
        width = config.widths[0]
        stages = [Stage(nn.Conv2d(config.input_channels, width, 3, padding=1))]
        self.skip_widths = [width]
        for level, (level_width, size) in enumerate(zip(config.widths, config.level_sizes, strict=True)):
            for _ in range(config.num_res_blocks):
                stages.append(self.residual_stage(width, level_width, size))
                width = level_width
                self.skip_widths.append(width)
            if level < len(config.widths) - 1:
                stages.append(Stage(self.downsampler(width)))
                self.skip_widths.append(width)
        self.input_blocks = nn.ModuleList(stages)
        self.middle_block = Stage(self.res_block(width, width), self.attention(width), self.res_block(width, width))

    def res_block(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        """A residual block as the configuration wants it."""
        config = self.encoder_config
        return ResBlock(
            in_channels,
            out_channels,
            config.embedding_width,
            adaptive_norm=config.adaptive_norm,
            dropout=config.dropout,
            rescale=config.rescale_residual,
            resample=resample,
        )

    def attention(self, width: int, heads: int | None = None) -> AttentionBlock:
        """An attention block as the configuration wants it."""
        config = self.encoder_config
        return AttentionBlock(width, config.heads_of(width, heads), config.attention_order)

    def residual_stage(self, in_channels: int, out_channels: int, size: int, heads: int | None = None) -> Stage:
        """A residual block, and attention where feature maps of that size have it."""
        stage = Stage(self.res_block(in_channels, out_channels))
        if self.encoder_config.has_attention(size):
            stage.append(self.attention(out_channels, heads))
        return stage

    def downsampler(self, width: int) -> nn.Module:
        """What ends a level: BigGAN's block, or a downsampling layer with or without weights."""
        if self.encoder_config.resampling == "biggan":
            return self.res_block(width, width, nn.AvgPool2d(2))
        return Downsample(width, learned=self.encoder_config.resampling == "conv")

    def time_embedding(self, timesteps: Tensor) -> Tensor:
        """Embedding (B, E) of timesteps (B,), float32; of a whole schedule it can be computed once."""
        with without_autocast(timesteps.device):
            embedding: Tensor = self.time_embed(timestep_embedding(timesteps, self.encoder_config.channels))
            return embedding

    def run(self, stage: nn.Module, x: Tensor, activated_embedding: Tensor) -> Tensor:
        """A stage's output, which is kept alone where activations are to be recomputed."""
        if self.recompute_activations and torch.is_grad_enabled():
            out: Tensor = checkpoint(stage, x, activated_embedding, use_reentrant=False)
        else:
            out = stage(x, activated_embedding)
        return out

    def encode(self, x: Tensor, activated_embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The middle feature map of (B, C, H, W) images, and every stage's output, finest first.

        `activated_embedding` is SiLU of the (B or 1, E) embedding, which every block starts from.
        """
        x = x.to(self.input_blocks[0][0].weight.dtype)  # type: ignore[index]
        skips = []
        for stage in self.input_blocks:
            x = self.run(stage, x, activated_embedding)
            skips.append(x)
        return self.run(self.middle_block, x, activated_embedding), skips
