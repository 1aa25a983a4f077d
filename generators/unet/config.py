"""Configurations of the three networks, U-Net, super-resolution U-Net and classifier, and what they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

AttentionOrder = Literal["head-major", "qkv-major"]
Resampling = Literal["biggan", "conv", "pool"]
Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]

NORM_GROUPS = 32
CHANNEL_MULTS: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        8: (1, 2),
        16: (1, 2),
        32: (1, 2, 2, 2),
        64: (1, 2, 3, 4),
        128: (1, 1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
        512: (0.5, 1, 1, 2, 2, 4, 4),
    }
)
"""Channel multipliers of each image size: Tables 11 and 12; 32 as in Nichol & Dhariwal 2021; 8 and 16 our own."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The part that U-Net and classifier share (Dhariwal & Nichol 2021, section 3 and Table 11).

    `attention_resolutions` are in pixels: an attention block follows every residual block of the levels
    whose feature maps have that side; the middle block always has one. Heads are given either by their
    number (`heads`) or by their width (`head_channels`), which wins where both stand.
    """

    image_size: int
    in_channels: int = 3
    channels: int = 128
    channel_mult: tuple[float, ...] | None = None
    """Width of each resolution level over `channels`, finest first; None takes the usual ones of the image size."""
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    heads: int = 4
    head_channels: int | None = 64
    attention_order: AttentionOrder = "head-major"
    """Layout of the query, key and value rows: `head-major` is the reference's default ("legacy"),
    `qkv-major` its "new attention order". Shapes cannot show which one a file has."""
    resampling: Resampling = "biggan"
    """`biggan`: inside residual blocks; `conv`: strided or following convolutions; `pool`: without weights."""
    adaptive_norm: bool = True
    """AdaGN (scale and shift from the embedding); False adds the embedding before the norm (Table 3)."""
    rescale_residual: bool = False
    """Divide the sum of every residual block by sqrt(2) (Table 1's ablation; no released model does)."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Fill in the multipliers, and refuse what no network can be built from, naming both values."""
        if self.channel_mult is None:
            object.__setattr__(self, "channel_mult", self.usual_channel_mult())
        if not self.multipliers:
            raise ValueError("channel_mult is empty; expected one multiplier or more")
        factor = 2 ** (len(self.multipliers) - 1)
        if self.image_size < 1 or self.image_size % factor:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {factor}, which {len(self.multipliers)} "
                f"resolution levels need: change image_size or channel_mult {self.multipliers}"
            )
        if self.num_res_blocks < 1:
            raise ValueError(f"num_res_blocks is {self.num_res_blocks}; expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")
        for mult in self.multipliers:
            width = int(mult * self.channels)
            if width < 1 or width % NORM_GROUPS:
                raise ValueError(
                    f"channels {self.channels} times multiplier {mult} is {width}, which GroupNorm's "
                    f"{NORM_GROUPS} groups do not divide: choose a multiple of {NORM_GROUPS}"
                )
        for resolution in self.attention_resolutions:
            if resolution not in self.level_sizes:
                raise ValueError(
                    f"attention resolution {resolution} is no level of this network; its levels are "
                    f"{', '.join(map(str, self.level_sizes))}"
                )
        for width in self.attention_widths:
            self.heads_of(width)

    def usual_channel_mult(self) -> tuple[float, ...]:
        """The multipliers that the papers give networks of this size; ValueError where they give none."""
        if self.image_size not in CHANNEL_MULTS:
            raise ValueError(
                f"image_size {self.image_size} has no usual channel multipliers (there are for "
                f"{', '.join(map(str, CHANNEL_MULTS))}); give channel_mult, such as [1, 2, 2]"
            )
        return CHANNEL_MULTS[self.image_size]

    @property
    def multipliers(self) -> tuple[float, ...]:
        """`channel_mult`, which is never None once the configuration stands."""
        assert self.channel_mult is not None
        return self.channel_mult

    @property
    def input_channels(self) -> int:
        """Channels that the first convolution reads."""
        return self.in_channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(int(mult * self.channels) for mult in self.multipliers)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Side of each level's feature maps in pixels, finest first."""
        return tuple(self.image_size // 2**level for level in range(len(self.multipliers)))

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Channels of every attention block: the chosen levels' and the middle's."""
        chosen = [w for w, size in zip(self.widths, self.level_sizes, strict=True) if self.has_attention(size)]
        return (*chosen, self.widths[-1])

    @property
    def embedding_width(self) -> int:
        """Channels of the timestep (and class) embedding."""
        return 4 * self.channels

    def has_attention(self, size: int) -> bool:
        """Whether a level of that side has attention blocks."""
        return size in self.attention_resolutions

    def heads_of(self, width: int, heads: int | None = None) -> int:
        """Number of heads of an attention block with `width` channels."""
        if self.head_channels is not None:
            if self.head_channels < 1 or width % self.head_channels:
                raise ValueError(f"head_channels {self.head_channels} does not divide the attention width {width}")
            return width // self.head_channels
        count = self.heads if heads is None else heads
        if count < 1 or width % count:
            raise ValueError(f"heads {count} does not divide the attention width {width}")
        return count


@dataclass(frozen=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """A denoising U-Net: image and timestep (and class) in, prediction of the same size out."""

    out_channels: int = 6
    """3, or 6 where the variance is learned beside the prediction."""
    num_classes: int | None = None
    """Number of classes it is conditioned on; None for an unconditional model."""
    heads_upsample: int | None = None
    """Heads in the decoder where they differ from the encoder's; without effect beside `head_channels`."""

    def __post_init__(self) -> None:
        """Check the parts that a classifier lacks, too."""
        super().__post_init__()
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; expected 1 or more, or none")
        if self.heads_upsample is not None:
            for width in self.attention_widths:
                self.heads_of(width, self.heads_upsample)


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(UNetConfig):
    """A U-Net that denoises while it sees the image at a lower resolution (section 3.3 of Saharia et al. 2021)."""

    low_resolution: int
    """Side of the images that it enlarges, in pixels."""

    def __post_init__(self) -> None:
        """The small images must be smaller."""
        super().__post_init__()
        if not 1 <= self.low_resolution < self.image_size:
            raise ValueError(
                f"low_resolution is {self.low_resolution}; expected less than image_size {self.image_size}"
            )

    def usual_channel_mult(self) -> tuple[float, ...]:
        """As for plain networks, but at 512 pixels those of 256 (Table 13)."""
        return CHANNEL_MULTS[256] if self.image_size == 512 else super().usual_channel_mult()

    @property
    def input_channels(self) -> int:
        """The noisy image and the enlarged one beside it."""
        return 2 * self.in_channels


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(EncoderConfig):
    """A classifier of noisy images: image and timestep in, class logits out (section 4.1)."""

    num_classes: int = 1000
    pool: Pool = "attention"

    def __post_init__(self) -> None:
        """Attention pooling splits its heads by width, as the released classifiers do."""
        super().__post_init__()
        if self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; a classifier needs 2 or more")
        if self.pool == "attention" and self.head_channels is None:
            raise ValueError("pool 'attention' needs head_channels; give head_channels or choose another pool")
