"""InceptionV3 as it was released for TensorFlow in December 2015, over torch-fidelity's names of its weights.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", as all published FIDs use it. It
differs from torchvision's network in its average pools, which leave padding out of the mean, in the maximum in
place of the mean in the pool branch of its last block, in the epsilon of its norms and in its 1008 classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = 299
POOL_FEATURES = 2048
CLASSES = 1008
NORM_EPSILON = 0.001


class Convolution(nn.Module):
    """Convolution, batch norm with its running statistics, ReLU; padded to keep the size, or not at all."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int | tuple[int, int], *, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else 0
        self.conv = nn.Conv2d(channels, out_channels, (height, width), stride=stride, padding=padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W'], not negative."""
        return F.relu_(self.bn(self.conv(x)))

    def of_means(self, x: Tensor) -> Tensor:
        """The same of each value's mean with its neighbours, [B, C, H, W] to [B, C', H, W].

        The mean is taken after the 1x1 convolution, which is linear, over its fewer channels.
        """
        return F.relu_(_mean_of_neighbours(self.bn(self.conv(x))))

    def fold(self) -> None:
        """Fold the norm into the convolution, in float64: (w * x - mean) * scale + bias is one convolution."""
        norm = self.bn
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = self.conv.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        self.conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.conv.bias = nn.Parameter(bias.float(), requires_grad=False)
        self.bn = nn.Identity()


def _mean_of_neighbours(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Block35(nn.Module):
    """A block on maps of 35 x 35: [B, C, 35, 35] to [B, 224 + pool_channels, 35, 35]."""

    def __init__(self, channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 64, 1)
        self.branch5x5_1 = Convolution(channels, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.branch_pool = Convolution(channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches in TensorFlow's order."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double_three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double_three, self.branch_pool.of_means(x)], dim=1)


class Reduction17(nn.Module):
    """From maps of 35 x 35 to 17 x 17: [B, C, 35, 35] to [B, C + 480, 17, 17]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(channels, 384, 3, stride=2, padded=False)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2, padded=False)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches in TensorFlow's order."""
        double_three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double_three, F.max_pool2d(x, 3, stride=2)], dim=1)


class Block17(nn.Module):
    """A block on maps of 17 x 17: [B, 768, 17, 17] to the same; the first 192 channels are its 1x1 branch."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(768, 192, 1)
        self.branch7x7_1 = Convolution(768, inner, 1)
        self.branch7x7_2 = Convolution(inner, inner, (1, 7))
        self.branch7x7_3 = Convolution(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Convolution(768, inner, 1)
        self.branch7x7dbl_2 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_3 = Convolution(inner, inner, (1, 7))
        self.branch7x7dbl_4 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_5 = Convolution(inner, 192, (1, 7))
        self.branch_pool = Convolution(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches in TensorFlow's order."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double_seven = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double_seven = self.branch7x7dbl_5(self.branch7x7dbl_4(double_seven))
        return torch.cat([self.branch1x1(x), seven, double_seven, self.branch_pool.of_means(x)], dim=1)


class Reduction8(nn.Module):
    """From maps of 17 x 17 to 8 x 8: [B, 768, 17, 17] to [B, 1280, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(768, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2, padded=False)
        self.branch7x7x3_1 = Convolution(768, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2, padded=False)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches in TensorFlow's order."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class Block8(nn.Module):
    """A block on maps of 8 x 8: [B, C, 8, 8] to [B, 2048, 8, 8]; the last one takes maxima in its pool branch."""

    def __init__(self, channels: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Convolution(channels, 320, 1)
        self.branch3x3_1 = Convolution(channels, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3))
        self.branch3x3_2b = Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1))
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches in TensorFlow's order."""
        three = self.branch3x3_1(x)
        double_three = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pool = self.branch_pool
        pooled = pool(F.max_pool2d(x, 3, stride=1, padding=1)) if self.last else pool.of_means(x)
        threes = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        double_threes = [self.branch3x3dbl_3a(double_three), self.branch3x3dbl_3b(double_three)]
        return torch.cat([self.branch1x1(x), *threes, *double_threes, pooled], dim=1)


class InceptionNetwork(nn.Module):
    """The whole network, 24 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = Block35(192, pool_channels=32)
        self.Mixed_5c = Block35(256, pool_channels=64)
        self.Mixed_5d = Block35(288, pool_channels=64)
        self.Mixed_6a = Reduction17(288)
        self.Mixed_6b = Block17(128)
        self.Mixed_6c = Block17(160)
        self.Mixed_6d = Block17(160)
        self.Mixed_6e = Block17(192)
        self.Mixed_7a = Reduction8()
        self.Mixed_7b = Block8(1280, last=False)
        self.Mixed_7c = Block8(POOL_FEATURES, last=True)
        self.fc = nn.Linear(POOL_FEATURES, CLASSES)

    def stem(self, x: Tensor) -> Tensor:
        """Images [B, 3, 299, 299], about -1 to 1, to maps [B, 192, 35, 35]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        return F.max_pool2d(x, 3, stride=2)

    def blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of the stem to `Mixed_6d` [B, 768, 17, 17] and the pooled `Mixed_7c` [B, 2048]; neither is negative."""
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        middle = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        top = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(middle))))
        return middle, top.mean(dim=(2, 3))

    def logits(self, pool: Tensor) -> Tensor:
        """Logits [B, 1008] of pool features, without the bias: ADM's evaluator leaves it out."""
        return F.linear(pool, self.fc.weight)

    def fold(self) -> None:
        """Fold every norm into its convolution: the network is for inference from then on."""
        for module in self.modules():
            if isinstance(module, Convolution):
                module.fold()
