"""Small modules of plain PyTorch: what a person may bring who does not use transformers."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A layer of a transformer, pre-norm."""

    def __init__(self, channels=32, heads=4, neurons=48):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.q, self.k, self.v, self.o = (nn.Linear(channels, channels) for _ in range(4))
        self.up, self.down = nn.Linear(channels, neurons), nn.Linear(neurons, channels)

    def forward(self, x):
        batch, tokens, _ = x.shape
        written = (part(self.norm1(x)) for part in (self.q, self.k, self.v))
        q, k, v = (each.view(batch, tokens, self.heads, -1).transpose(1, 2) for each in written)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self.o(attended)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A classifier of texts."""

    def __init__(self, layers=2):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, token_ids):
        x = self.embed(token_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class TorchEncoder(nn.Module):
    """A classifier of texts made of PyTorch's own layers, whose attention is an `nn.MultiheadAttention`."""

    def __init__(self, norm_first=False, layers=2):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, token_ids):
        return self.head(self.encoder(self.embed(token_ids)).mean(1))


class Pictures(nn.Module):
    """A classifier of images: convolutions and batch norms."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, pixels):
        x = F.relu(self.norm1(self.first(pixels)))
        x = F.relu(self.norm2(self.second(x)))
        return self.head(x.mean((2, 3)))


class Stage(nn.Module):
    """Two convolutions beside a shortcut without parameters, as in the ResNets for CIFAR-10."""

    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, (channels - channels_in) // 2

    def forward(self, x):
        written = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return (x + written).relu()


class Residual(nn.Module):
    """A classifier of images with residual stages."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.stages = nn.Sequential(Stage(8, 8, 1), Stage(8, 16, 2), Stage(16, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, pixels):
        return self.head(self.stages(self.norm(self.first(pixels)).relu()).mean((2, 3)))


class Scales(nn.Module):
    """A segmenter of images whose head, beside its layers, reads a concatenation of two scales."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList([Stage(8, 8, 1), Stage(8, 16, 2)])
        self.near, self.far = nn.Conv2d(8, 6, 1), nn.Conv2d(16, 4, 1)
        self.fuse, self.classifier = nn.Conv2d(10, 12, 3, padding=1), nn.Conv2d(12, 5, 1)

    def forward(self, pixels):
        near = self.layers[0](self.first(pixels).relu())
        far = F.interpolate(self.far(self.layers[1](near)).relu(), scale_factor=2.0)
        return self.classifier(self.fuse(torch.cat([self.near(near).relu(), far], 1)).relu())


class Pooled(nn.Module):
    """A classifier of texts with a perceptron behind the mean of its tokens."""

    def __init__(self):
        super().__init__()
        self.body = Transformer()
        self.body.head = nn.Identity()
        self.up, self.down = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, token_ids):
        return self.down(F.gelu(self.up(self.body(token_ids))))


def perturbed(module):
    """The module in evaluation mode, with weights and statistics that are not those of the start."""
    torch.manual_seed(0)
    with torch.no_grad():
        statistics = [each for name, each in module.named_buffers() if "running_" in name]
        for tensor in (*module.parameters(), *statistics):
            tensor.add_(0.1 * torch.rand_like(tensor))
    return module.eval()


def token_ids(tokens=9):
    """A sample of a text."""
    return {"token_ids": torch.randint(0, 50, (1, tokens), generator=torch.Generator().manual_seed(0))}


def pixels():
    """A sample of an image."""
    return {"pixels": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


class Bottleneck(nn.Module):
    """A block of three convolutions with batch norms beside a shortcut."""

    def __init__(self, channels=8, inner=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(x + self.bn3(self.conv3(inner)))


class Bottlenecks(nn.Module):
    """A classifier of images: a stem, blocks that add to one stream, and a pooled head."""

    def __init__(self, blocks=2):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(Bottleneck() for _ in range(blocks)))
        self.head = nn.Linear(8, 5)

    def forward(self, pixels):
        return self.head(self.blocks(F.relu(self.norm(self.stem(pixels)))).mean((2, 3)))


class PaddingConv2d(nn.Conv2d):
    """Pads by itself, so that a stride of 1 returns as many places as it reads, and holds a module that does it."""

    def __init__(self, channels_in, channels, size, stride=1):
        super().__init__(channels_in, channels, size, stride)
        self.border = nn.ZeroPad2d(((size - stride) // 2, (size - stride + 1) // 2) * 2)

    def forward(self, x):
        return F.conv2d(self.border(x), self.weight, self.bias, self.stride)


class ScaledConv2d(nn.Conv2d):
    """Works with its weight times a number, as networks with an equalised learning rate do."""

    def __init__(self, channels_in, channels, size):
        super().__init__(channels_in, channels, size, padding=size // 2)

    def forward(self, x):
        return F.conv2d(x, 0.5 * self.weight, self.bias, self.stride, self.padding)


class Convolved(nn.Module):
    """Two convolutions of some class, beside a shortcut where they return as many channels as they read."""

    def __init__(self, kind, channels_in, inner, channels):
        super().__init__()
        self.up, self.down = kind(channels_in, inner, 3), kind(inner, channels, 3)
        self.shortcut = channels_in == channels

    def forward(self, x):
        written = self.down(F.relu(self.up(x)))
        return x + written if self.shortcut else written


class Padding(nn.Module):
    """A classifier of images whose convolutions are of some class; one lies behind all blocks and reads the last."""

    def __init__(self, kind=PaddingConv2d):
        super().__init__()
        self.stem = PaddingConv2d(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(Convolved(kind, 8, 12, 8), Convolved(kind, 8, 14, 6))
        self.last, self.head = PaddingConv2d(6, 10, 1), nn.Linear(10, 5)

    def forward(self, pixels):
        return self.head(F.relu(self.last(self.blocks(self.stem(pixels)))).mean((2, 3)))
