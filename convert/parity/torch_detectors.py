"""Published detectors in PyTorch, forward pass and preprocessing, rebuilt from the papers and the authors' public code.

A library has none of these networks: their keys are those of a plain ResNet or ConvNeXt, and only the forward pass
tells them apart, so that a comparison with the library would prove nothing. There is one builder for each family,
``f(plan, source) -> module``, as in :mod:`.torch_models`, and one row of :data:`AUTHORS` for each recipe.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..plan import Plan
from ..reading import Source
from .torch_imports import without_broken_ops
from .torch_models import _timm, _torchvision

if TYPE_CHECKING:
    import torch
    from torch import nn

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
UNIT = ([0.0] * 3, [1.0] * 3)
GREY = ([0.0] * 3, [1 / 255] * 3)
# What the authors' evaluation code does to an image: resize (torchvision's argument and filter), centre crop, mean and
# deviation. Written from their code and not from the recipes, which are compared with it.
AUTHORS: Dict[str, Tuple[Any, Any, Tuple[List[float], List[float]]]] = {
    "aide": (None, None, UNIT),
    "cnnspot": (None, None, IMAGENET),
    "b-free": (None, 504, IMAGENET),
    "bombek1": (None, (776, 392), IMAGENET),
    "c2p-clip": ((224, "bilinear"), 224, CLIP),
    "clipbased": ((224, "bicubic"), 224, CLIP),
    "commfor-224": ((256, "bilinear"), 224, IMAGENET),
    "commfor-384": ((440, "bilinear"), 384, IMAGENET),
    "corvi2023": (None, None, IMAGENET),
    "d3": (None, 224, CLIP),
    "dafilab": ((400, "bilinear"), 380, IMAGENET),
    "dda": (None, 336, CLIP),
    "dire": ((256, "bilinear"), 224, IMAGENET),
    "drct-clip": (None, 224, IMAGENET),
    "drct-convnext": (None, 224, IMAGENET),
    "fatformer": (((256, 256), "bilinear"), 224, IMAGENET),
    "fredect": ((256, "bilinear"), 224, GREY),
    "freqnet": (((256, 256), "bilinear"), None, IMAGENET),
    "gragnaniello2021": (None, None, IMAGENET),
    "gramnet": ((256, "bilinear"), 224, IMAGENET),
    "ladeda": (((256, 256), "bilinear"), None, IMAGENET),
    "lgrad": (((256, 256), "bilinear"), None, IMAGENET),
    "npr": (((256, 256), "bilinear"), None, IMAGENET),
    "rine": (None, 224, CLIP),
    "safe": (None, 256, UNIT),
    "tiny-ladeda": (((256, 256), "bilinear"), None, IMAGENET),
    "univfd": (None, 224, CLIP),
    "yermandy": ((224, "bicubic"), 224, CLIP),
}
# Detectors whose authors treat an image smaller than the crop in a way of their own, which is not rebuilt: such
# photographs take no part in a comparison.
WHOLE_CROPS = {"b-free": 504}


def compared(plan: Plan) -> str:
    """What a verification of one of these networks compares with, for people."""
    return f"the forward pass of {plan.family.name}'s authors, rebuilt in torch from the paper and their public code"


def preprocess(recipe: str, pictures: Sequence[Any]) -> Optional[Tuple[np.ndarray, List[float], List[float], str]]:
    """What the authors of a detector do to photographs.

    Parameters
    ----------
    recipe : str
        Name of the recipe.
    pictures : sequence of PIL.Image.Image, mode RGB

    Returns
    -------
    (numpy.ndarray uint8 (N, H, W, 3), list of float, list of float, str) or None
        The pixels before normalisation, mean and deviation per channel of pixels in [0, 1], and what made the pixels.
        None: nothing is known for the recipe, or the pictures would have different sizes.
    """
    row = AUTHORS.get(recipe)
    if row is None:
        return None
    without_broken_ops()
    from torchvision import transforms as T

    resize, crop, (mean, std) = row
    steps: List[Any] = []
    if resize:
        steps.append(T.Resize(resize[0], getattr(T.InterpolationMode, resize[1].upper())))
    if recipe == "bombek1":
        steps.append(_two_squares)
    elif crop and not recipe.startswith("drct"):
        steps.append(T.CenterCrop(crop))
    elif crop:
        # albumentations rounds the margin down, torchvision to the even number.
        steps.append(lambda p: p.crop(((p.width - crop) // 2, (p.height - crop) // 2) + _ends(p, crop)))
    pixels = [np.asarray(T.Compose(steps)(p) if steps else p) for p in pictures]
    if len({p.shape for p in pixels}) > 1:
        return None
    return np.stack(pixels), mean, std, f"the evaluation of {recipe}'s authors"


def _two_squares(picture):
    """DINOv2's 392 pixels, bicubic, as its authors resize with torchvision; below them SigLIP 2's 384, bilinear."""
    from torchvision.transforms import functional as F

    how = F.InterpolationMode
    above = np.asarray(F.resize(picture, [392, 392], how.BICUBIC))
    below = np.asarray(F.resize(picture, [384, 384], how.BILINEAR))
    return np.concatenate((above, np.pad(below, ((0, 0), (0, 8), (0, 0)))))


def _ends(picture, crop):
    return (picture.width - crop) // 2 + crop, (picture.height - crop) // 2 + crop


def _bottlenecks(cin, width, depth, stride):
    """A stage of torchvision's ResNet-50."""
    without_broken_ops()
    from torch import nn
    from torchvision.models.resnet import Bottleneck

    down = nn.Sequential(nn.Conv2d(cin, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
    first = Bottleneck(cin, width, stride, down)
    return nn.Sequential(first, *[Bottleneck(4 * width, width) for _ in range(depth - 1)])


def _half_resnet(look: Any, classes: Optional[int]) -> "nn.Module":
    """ResNet-50 up to its second stage with a 3x3 stem, behind a function of the image."""
    from torch import nn

    class HalfResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
            self.layer1, self.layer2 = _bottlenecks(64, 64, 3, 1), _bottlenecks(256, 128, 4, 2)
            self.fc1 = nn.Linear(512, classes or 1)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.bn1(self.conv1(look(x))).relu(), 3, 2, 1)
            return self.fc1(self.layer2(self.layer1(x)).mean((2, 3)))

    return HalfResNet()


def _four_patches(x: "torch.Tensor") -> List["torch.Tensor"]:
    """AIDE's windows of one image (3, H, W): least and most detail of its DCT, then the second of each."""
    import torch
    from torch.nn import functional as F

    n = 32
    places = torch.arange(n, dtype=torch.float64)
    waves = torch.cos((places + 0.5) * torch.pi * places[:, None] / n) * (2 / n) ** 0.5
    waves[0] = (1 / n) ** 0.5
    waves = waves.to(x.dtype)
    windows = F.unfold(x[None], n, stride=n // 2)[0].T.reshape(-1, 3, n, n)
    spectra = (waves @ windows @ waves.T).abs().add(1).log()
    diagonal = places[:, None] + places
    grade = torch.zeros(len(windows), dtype=x.dtype)
    for k in range(6):
        band = (diagonal >= n * 2.0 / 6 * k) & (diagonal <= n * 2.0 / 6 * (k + 1))
        grade = grade + 2**k * (spectra * band / band.sum()).sum((1, 2, 3))
    order = grade.sort().indices
    second = 1 if len(order) > 1 else 0
    return [windows[i] for i in (order[0], order[-1], order[second], order[-1 - second])]


def aide(plan: Plan, source: Source) -> "nn.Module":
    """AIDE: patches as its data loader cuts them, high-pass filters, two ResNets, timm's ConvNeXt as in open_clip."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    a = plan.arguments

    def noise():
        net = _torchvision(a["resnet"])
        net.conv1 = nn.Conv2d(30, 64, 7, 2, 3, bias=False)
        return net

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hpf = nn.Sequential()
            self.hpf.hpf = nn.Conv2d(3, 30, 5, padding=2, bias=False)
            self.model_min, self.model_max = noise(), noise()
            trunk = _timm("convnext_xxlarge", depths=a["depths"], dims=a["widths"], num_classes=0, global_pool="")
            trunk.head.global_pool = trunk.head.flatten = nn.Identity()
            self.openclip_convnext_xxl = trunk
            self.convnext_proj = nn.Sequential(nn.Linear(a["widths"][-1], a["projection"]))
            self.fc = nn.Sequential()
            self.fc.fc1 = nn.Linear(a["projection"] + self.model_min.fc.in_features, a["hidden"])
            self.fc.fc2 = nn.Linear(a["hidden"], plan.num_classes or 2)

        def noise(self, net, patch):
            """The features in front of a ResNet's classifier."""
            last, net.fc = net.fc, nn.Identity()
            out = net(self.hpf.hpf(patch))
            net.fc = last
            return out

        def forward(self, x):
            def resized(t):
                return F.interpolate(t, (256, 256), mode="bilinear", align_corners=False)

            def normal(statistics):
                return [torch.tensor(s, dtype=x.dtype).reshape(1, 3, 1, 1) for s in statistics]

            (mean, std), (clip_mean, clip_std) = normal(IMAGENET), normal(CLIP)
            rows = zip(*[_four_patches(image) for image in x])
            patches = [(resized(torch.stack(row)) - mean) / std for row in rows]
            # The two normalisations in a row, as the authors have them.
            whole = (resized(x) - mean) / std * (std / clip_std) + (mean - clip_mean) / clip_std
            seen = self.convnext_proj(self.openclip_convnext_xxl(whole).mean((2, 3)))
            nets = (self.model_min, self.model_max) * 2
            noise = sum(self.noise(net, patch) for net, patch in zip(nets, patches)) / 4
            return self.fc.fc2(F.gelu(self.fc.fc1(torch.cat([seen, noise], 1))))

    return Net()


def _neighbours(x: "torch.Tensor") -> "torch.Tensor":
    from torch.nn.functional import interpolate

    small = interpolate(x, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    return x - interpolate(small, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)


def _diagonal(x: "torch.Tensor") -> "torch.Tensor":
    """Diagonal band of PyWavelets' bior1.3, mirrored edges, resized back with antialiasing as torchvision does."""
    import torch
    from torch.nn import functional as F

    size = x.shape[-2:]
    taps = torch.tensor([0.0, 0.0, 0.5**0.5, -(0.5**0.5), 0.0, 0.0], dtype=x.dtype)
    for axis in (3, 2):
        n = x.shape[axis]
        place = torch.arange(-4, n + 4)
        place = torch.where(place < 0, -1 - place, torch.where(place >= n, 2 * n - 1 - place, place))
        x = x.index_select(axis, place)
        shape = (1, 6) if axis == 3 else (6, 1)
        kernel = taps.reshape(1, 1, *shape).repeat(x.shape[1], 1, 1, 1)
        x = F.conv2d(x, kernel, stride=(1, 2) if axis == 3 else (2, 1), groups=x.shape[1])
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


def npr(plan: Plan, source: Source) -> "nn.Module":
    """NPR: the residual of a nearest-neighbour reduction by two, times 2/3."""
    return _half_resnet(lambda x: _neighbours(x) * 2.0 / 3.0, plan.num_classes)


def safe(plan: Plan, source: Source) -> "nn.Module":
    """SAFE: the diagonal band of a wavelet."""
    return _half_resnet(_diagonal, plan.num_classes)


_SOBEL = {
    "x": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "y": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "left_diagonal": [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]],
    "right_diagonal": [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]],
}


def ladeda(plan: Plan, source: Source) -> "nn.Module":
    """LaDeDa9 or Tiny-LaDeDa: unpadded convolutions, mean over all places."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    tiny = plan.architecture == "tiny_ladeda"
    seen = plan.arguments.get("input_filter", "right_diagonal" if tiny else "neighbours")

    def look(x):
        if seen == "none":
            return x
        if seen == "neighbours":
            return _neighbours(x)
        kernel = torch.tensor(_SOBEL[seen], dtype=x.dtype).reshape(1, 1, 3, 3).repeat(3, 1, 1, 1)
        return F.conv2d(x, kernel, padding=1, groups=3)

    class Block(nn.Module):
        def __init__(self, cin, width, kernel, stride, first):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, kernel, stride, bias=False), nn.BatchNorm2d(width)
            if not tiny:
                self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
                if first:
                    down = nn.Conv2d(cin, 4 * width, 1, stride, bias=False)
                    self.downsample = nn.Sequential(down, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            y = self.bn1(self.conv1(x)).relu()
            y = self.bn2(self.conv2(y)).relu()
            if tiny:
                return y
            y = self.bn3(self.conv3(y))
            x = self.downsample(x) if hasattr(self, "downsample") else x
            lost = x.shape[-1] - y.shape[-1]
            return (y + (x[:, :, :-lost, :-lost] if lost else x)).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            base = 8 if tiny else 64
            self.conv1 = nn.Conv2d(3, base, 1, bias=False)
            self.conv2, self.bn1 = nn.Conv2d(base, base, 3, bias=False), nn.BatchNorm2d(base)
            stages = [(8, 1, 3, 2)] if tiny else [(64, 3, 3, 2), (128, 4, 3, 2), (256, 6, 1, 2), (512, 3, 1, 1)]
            cin = base
            for i, (width, depth, kernel, stride) in enumerate(stages, 1):
                out = width if tiny else 4 * width
                rest = [Block(out, width, 1, 1, False) for _ in range(depth - 1)]
                setattr(self, f"layer{i}", nn.Sequential(Block(cin, width, kernel, stride, True), *rest))
                cin = out
            self.fc = nn.Linear(cin, plan.num_classes or 1)
            self.stages = len(stages)

        def forward(self, x):
            x = look(x) if tiny else look(x) * 2.0 / 3.0
            x = self.bn1(self.conv2(self.conv1(x))).relu()
            for i in range(1, self.stages + 1):
                x = getattr(self, f"layer{i}")(x)
            return self.fc(F.avg_pool2d(x, x.shape[2], 1).flatten(1))

    return Net()


def fredect(plan: Plan, source: Source) -> "nn.Module":
    """FreDect: the logarithm of SciPy's orthonormal DCT in float64, as its authors do, then torchvision's net."""
    import torch
    from torch import nn

    size = plan.arguments["image_size"]
    body = _torchvision(plan.architecture.split("_")[1], num_classes=plan.num_classes)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = body
            self.register_buffer("dct_mean", torch.zeros(3, size, size))
            self.register_buffer("dct_var", torch.ones(3, size, size))

        def forward(self, x):
            from scipy.fft import dctn

            table = torch.from_numpy(dctn(x.double().numpy(), type=2, norm="ortho", axes=(2, 3)))
            table = (torch.log(table.abs() + 1e-12) - self.dct_mean.double()) / self.dct_var.double().sqrt()
            return self.net(table.to(x.dtype))

    model: Any = Net()
    model.aidet_rename = lambda state: {k if k.startswith("dct_") else f"net.{k}": v for k, v in state.items()}
    return model


def freqnet(plan: Plan, source: Source) -> "nn.Module":
    """FreqNet: boxes of frequencies set to zero, and convolutions of the real and the imaginary part, by torch.fft."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def without_low(x, axes):
        z = torch.fft.fftshift(torch.fft.fftn(x, dim=axes, norm="ortho"), dim=axes)
        box = [slice(None)] * 4
        for axis in axes:
            n = x.shape[axis]
            box[axis] = slice(n // 2 - n // 4, n // 2 + n // 4)
        z[tuple(box)] = 0
        return torch.fft.ifftn(torch.fft.ifftshift(z, dim=axes), dim=axes, norm="ortho").real.relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for n, (cin, cout) in enumerate(((3, 64), (64, 64), (256, 256), (256, 256)), 1):
                setattr(self, f"weight{n}", nn.Parameter(torch.randn(cout, cin, 1, 1)))
                setattr(self, f"bias{n}", nn.Parameter(torch.randn(cout)))
                for kind in ("real", "imag"):
                    conv = nn.Conv2d(cout, cout, 1, bias=False)
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                    setattr(self, f"{kind}conv{n}", conv)
            self.layer1, self.layer2 = _bottlenecks(64, 64, 3, 1), _bottlenecks(256, 128, 4, 2)
            self.fc1 = nn.Linear(512, plan.num_classes or 1)

        def first(self, x, n):
            weight, bias, stride = getattr(self, f"weight{n}"), getattr(self, f"bias{n}"), 2 - n % 2
            return F.conv2d(without_low(x, (2, 3)), weight, bias, stride).relu()

        def spectrum(self, x, n):
            z = torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(2, 3))
            z = torch.complex(getattr(self, f"realconv{n}")(z.real), getattr(self, f"imagconv{n}")(z.imag))
            return torch.fft.ifft2(torch.fft.ifftshift(z, dim=(2, 3)), norm="ortho").real.relu()

        def forward(self, x):
            for n in (1, 2):
                x = self.spectrum(without_low(self.first(x, n), (1,)), n)
            x = self.layer1(F.max_pool2d(x, 3, 2, 1))
            for n in (3, 4):
                x = self.spectrum(self.first(x, n), n)
            return self.fc1(self.layer2(x).mean((2, 3)))

    return Net()


def gramnet(plan: Plan, source: Source) -> "nn.Module":
    """Gram-Net: torchvision's ResNet-18 and six branches on Gram matrices."""
    import torch
    from torch import nn

    without_broken_ops()
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock

    def step(cin, cout, stride):
        return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())

    branches = {
        "conv_interi_0": (3, "gi_fc1", "gi_fc2"),
        "conv_inter0_0": (64, "g0_fc1", "g0_fc2"),
        "conv_inter1_0": (64, "g_fc1r", "g_fc2r"),
        "conv_inter2_0": (64, "g2_fc1", "g2_fc2"),
        "conv_inter3_0": (128, "g3_fc1", "g3_fc2"),
        "conv_inter4_0": (256, "g4_fc1", "g4_fc2"),
    }

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    class Net(ResNet):
        def __init__(self):
            super().__init__(BasicBlock, [2, 2, 2, 2])
            del self.fc
            self.scale = Scale()
            self.fcnewr = nn.Sequential(
                nn.Linear(704, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, plan.num_classes or 1)
            )
            for name, (channels, first, second) in branches.items():
                setattr(self, name, step(channels, 32, 1))
                setattr(self, first, step(1, 16, 2))
                setattr(self, second, step(16, 32, 2))

        def forward(self, x):
            stem = self.bn1(self.conv1(x)).relu()
            layers = [x, stem, self.maxpool(stem)]
            for stage in (self.layer1, self.layer2, self.layer3):
                layers.append(stage(layers[-1]))
            parts = [self.layer4(layers[-1]).mean((2, 3))]
            for layer, (name, (_, first, second)) in zip(layers, branches.items()):
                flat = getattr(self, name)(layer).flatten(2)
                gram = torch.einsum("ncp,ndp->ncd", flat, flat)[:, None] / (flat.shape[1] * flat.shape[2])
                parts.append(getattr(self, second)(getattr(self, first)(gram)).mean((2, 3)) * self.scale.scale)
            return self.fcnewr(torch.cat(parts, 1))

    return Net()


def _tower(plan: Plan) -> "nn.Module":
    """CLIP's image tower under OpenAI's names."""
    from .torch_towers import _clip_of_openai

    a = {"act": "quick_gelu", "features": "penultimate", **plan.arguments}
    return _clip_of_openai(a, plan.arguments.get("projection"))


def rine(plan: Plan, source: Source) -> "nn.Module":
    """RINE: what the second norm of every block gives for the class token, weighed by a softmax over the blocks."""
    import torch
    from torch import nn

    from .torch_towers import outputs_of

    a = plan.arguments
    width, n = a["embedding"], a["layers"]

    def layers(first):
        cells: List[Any] = [nn.Dropout()]
        for i in range(n):
            cells += [nn.Linear(first if i == 0 else width, width), nn.ReLU(), nn.Dropout()]
        return nn.Sequential(*cells)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = _tower(plan)
            self.alpha = nn.Parameter(torch.randn(1, a["depth"], width))
            self.proj1, self.proj2 = layers(a["width"]), layers(width)
            head = [nn.Linear(width, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.ReLU(), nn.Dropout()]
            self.head = nn.Sequential(*head, nn.Linear(width, plan.num_classes or 1))

        def forward(self, x):
            with outputs_of([block.ln_2 for block in self.visual.transformer.resblocks]) as seen:
                self.visual(x)
            z = (torch.softmax(self.alpha, 1) * self.proj1(torch.stack([t[:, 0] for t in seen], 1))).sum(1)
            return self.head(self.proj2(z))

    return Net()


def d3(plan: Plan, source: Source) -> "nn.Module":
    """D3: shuffled copies and the image, compared by one attention whose softmax runs over the queries."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    a = plan.arguments
    shuffles, originals = a["shuffles"], a.get("originals", 1)
    width, patch, branches = a["width"], a["shuffle_patch"], shuffles + originals

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.fc = nn.Linear(branches * width, plan.num_classes or 1)

        def forward(self, x):
            weights = torch.einsum("nqc,nkc->nqk", self.query(x), self.key(x)) / width**0.5
            return self.fc((weights.softmax(1) @ self.value(x)).flatten(1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.attention_head = _tower(plan), Head()

        def shuffled(self, x, number):
            pieces = F.unfold(x, patch, stride=patch)
            order = np.random.default_rng(a.get("seed", 0) + number).permutation(pieces.shape[2])
            return F.fold(pieces[:, :, torch.from_numpy(order)], x.shape[2:], patch, stride=patch)

        def forward(self, x):
            seen = [self.visual(self.shuffled(x, i)) for i in range(shuffles)]
            return self.attention_head(torch.stack(seen + [self.visual(x)] * originals, 1))

    return Net()


def drct(plan: Plan, source: Source) -> "nn.Module":
    """DRCT: timm's ConvNeXt or CLIP gives an embedding, one linear layer its classes."""
    from torch import nn

    a = plan.arguments

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            from .torch_towers import _clip_of_openai

            self.visual = _clip_of_openai({"act": "quick_gelu", "features": "projection", **a}, a["projection"])

        def forward(self, x):
            return self.visual(x)

    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.fc = Clip(), nn.Linear(a["projection"], a["embedding"])

        def forward(self, x):
            return self.fc(self.model(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            if plan.architecture == "drct_clip":
                self.model: Any = Embed()
            else:
                self.model = _timm(plan.architecture.split("_", 1)[1], num_classes=a["embedding"])
            self.fc = nn.Linear(a["embedding"], plan.num_classes or 2)

        def forward(self, x):
            return self.fc(self.model(x))

    return Net()


def siglip_dinov2(plan: Plan, source: Source) -> "nn.Module":
    """Bombek1's: transformers' SigLIP and timm's DINOv2, each with pixels of its own, and a classifier on both."""
    without_broken_ops()
    import torch
    import transformers
    from torch import nn

    from .torch_towers import timm_sizes

    a = plan.arguments
    s, d = a["siglip"], a["dinov2"]
    config = transformers.SiglipVisionConfig(
        hidden_size=s["width"],
        num_hidden_layers=s["depth"],
        num_attention_heads=s["heads"],
        intermediate_size=s["hidden"],
        patch_size=s["patch_size"],
        image_size=s["image_size"],
    )
    width, hidden = s["width"] + d["width"], a["hidden"]

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            first = [nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.3)]
            second = [nn.Linear(hidden, hidden // 2), nn.GELU(), nn.Dropout(0.3)]
            self.head = nn.Sequential(*first, *second, nn.Linear(hidden // 2, plan.num_classes or 1))

        def forward(self, x):
            return self.head(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.siglip = nn.Module()
            self.siglip.vision_model = transformers.SiglipVisionModel(config)
            self.dinov2 = _timm("vit_large_patch14_dinov2", num_classes=0, **timm_sizes(d))
            self.classifier = Head()

        def forward(self, x):
            above, below = d["image_size"], s["image_size"]
            mean, std = (torch.tensor(v, dtype=x.dtype).reshape(1, 3, 1, 1) for v in IMAGENET)
            pixels = (x * std + mean)[:, :, above : above + below, :below]
            seen = self.siglip.vision_model((pixels - 0.5) / 0.5).pooler_output
            return self.classifier(torch.cat((seen, self.dinov2(x[:, :, :above, :above])), 1))

    return Net()


def _adapter(width: int, bottleneck: int, heads: int, groups: int) -> "nn.Module":
    """FatFormer's forgery-aware adapter on tokens (N, 1 + n * n, width)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.first_conv_layer = nn.Conv1d(width, bottleneck, 1)
            self.second_conv_layer = nn.Conv1d(bottleneck, width, 1)
            self.freq_scale = nn.Parameter(torch.zeros(1))
            self.dwt_norm = nn.GroupNorm(groups, width)
            self.intra_band = nn.MultiheadAttention(width, heads, batch_first=True)
            self.inter_band = nn.MultiheadAttention(width, heads, batch_first=True)
            self.norm_intra, self.norm_inter, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
            self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def bands(self, x):
            """PyWavelets' Haar filters, turned round for a correlation: (N, C, h, w) -> (N, C, 4, h / 2, w / 2)."""
            low, high = x.new_tensor([[1, 1], [1, -1]]) * 0.5**0.5
            kernels = torch.stack([torch.outer(a, b) for a in (low, high) for b in (low, high)])[:, None]
            return F.conv2d(x.flatten(0, 1)[:, None], kernels, stride=2).unflatten(0, x.shape[:2]), kernels

        def forward(self, x):
            n, count, c = x.shape
            side = int((count - 1) ** 0.5)
            y, kernels = self.bands(x[:, 1:].transpose(1, 2).reshape(n, c, side, side))
            y = self.dwt_norm(y.flatten(3)).permute(0, 2, 3, 1)
            across = y.transpose(1, 2).flatten(0, 1)
            y = self.norm_intra(y + self.intra_band(across, across, across)[0].unflatten(0, (n, -1)).transpose(1, 2))
            within = y.flatten(0, 1)
            y = self.norm_inter(y + self.inter_band(within, within, within)[0].unflatten(0, (n, 4)))
            y = self.norm3(y + self.linear2(self.linear1(y).relu()))
            y = y.permute(0, 3, 1, 2).reshape(n * c, 4, side // 2, side // 2)
            y = F.conv_transpose2d(y, kernels, stride=2).reshape(n, c, -1).transpose(1, 2)
            y = torch.cat((torch.zeros_like(x[:, :1]), y), 1)
            down = self.first_conv_layer(x.transpose(1, 2)).relu()
            return 0.1 * self.second_conv_layer(down).transpose(1, 2) + self.freq_scale * y

    return Adapter()


def _fatformer_clip(a: Any) -> "nn.Module":
    """CLIP with adapters under OpenAI's names; ``image`` gives all tokens, ``read`` the features of prompts."""
    import torch
    from torch import nn

    from .torch_towers import _clip_of_openai

    wide, stored = a["text_width"], 1 + a["context"] + a["suffix"]

    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = _clip_of_openai({"act": "quick_gelu", "features": "projection", **a}, wide)
            for i in a["adapted"]:
                made = _adapter(a["width"], a["bottleneck"], a.get("adapter_heads", 8), a.get("groups", 128))
                self.visual.transformer.resblocks[i].forgery_aware_adapter = made
            text = {"width": wide, "depth": a["text_depth"], "patch_size": 1, "image_size": 1, "act": "quick_gelu"}
            self.transformer = _clip_of_openai({**text, "features": "penultimate"}, 0).transformer
            self.positional_embedding = nn.Parameter(torch.randn(stored, wide) * 0.01)
            self.ln_final = nn.LayerNorm(wide)
            self.text_projection = nn.Parameter(torch.randn(wide, wide) * wide**-0.5)
            self.logit_scale = nn.Parameter(torch.tensor(1.0))

        def image(self, x):
            v = self.visual
            x = v.conv1(x).flatten(2).transpose(1, 2)
            x = v.ln_pre(torch.cat((v.class_embedding.expand(len(x), 1, -1), x), 1) + v.positional_embedding)
            for block in v.transformer.resblocks:
                y = block.ln_1(x)
                x = x + block.attn(y, y, y, need_weights=False)[0]
                extra = block.forgery_aware_adapter(x) if hasattr(block, "forgery_aware_adapter") else 0
                x = x + block.mlp(block.ln_2(x)) + extra
            return v.ln_post(x) @ v.proj

        def read(self, prompts, ends):
            mask = torch.full((stored, stored), float("-inf"), dtype=prompts.dtype).triu(1)
            x = prompts + self.positional_embedding
            for block in self.transformer.resblocks:
                y = block.ln_1(x)
                x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
                x = x + block.mlp(block.ln_2(x))
            return self.ln_final(x)[torch.arange(len(x)), ends] @ self.text_projection

    return Clip()


def fatformer(plan: Plan, source: Source) -> "nn.Module":
    """FatFormer: image by image, all tokens of the prompts, every tensor under each of its names."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    a = plan.arguments
    wide, heads, classes = a["text_width"], a.get("heads_between", 12), len(a["ends"])

    class Look(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name
            setattr(self, name, nn.MultiheadAttention(wide, heads, batch_first=True))
            self.norm1, self.norm2 = nn.LayerNorm(wide), nn.LayerNorm(wide)
            self.linear1, self.linear2 = nn.Linear(wide, 4 * wide), nn.Linear(4 * wide, wide)

        def look(self, x, seen):
            x = self.norm1(x + getattr(self, self.name)(x, seen, seen, need_weights=False)[0])
            return self.norm2(x + self.linear2(self.linear1(x).relu()))

    class Prompts(Look):
        def __init__(self):
            super().__init__("patch_basaed_enhancer")
            self.ctx = nn.Parameter(torch.randn(a["context"], wide) * 0.02)
            self.register_buffer("token_prefix", torch.randn(1, 1, wide).repeat(classes, 1, 1) * 0.5)
            rows = torch.randn(classes, a["suffix"], wide) * 0.5
            for row, end in zip(rows, a["ends"]):
                row[end - a["context"] :] = rows[0, -1]  # the padding is the same token everywhere
            self.register_buffer("token_suffix", rows)

    class Net(Look):
        def __init__(self):
            super().__init__("text_guided_interactor")
            self.clip_model, self.language_guided_alignment = _fatformer_clip(a), Prompts()
            # The authors' model holds these a second time.
            self.image_encoder, self.text_encoder = self.clip_model.visual, nn.Module()
            for name in ("transformer", "positional_embedding", "ln_final", "text_projection"):
                setattr(self.text_encoder, name, getattr(self.clip_model, name))
            self.logit_scale = self.clip_model.logit_scale

        def one(self, image):
            """Logits of one image from its tokens (tokens, width)."""
            p, scale = self.language_guided_alignment, self.logit_scale.exp()
            context = p.look(p.ctx[None], image[None]).expand(classes, -1, -1)
            ends = torch.tensor(a["ends"])
            texts = self.clip_model.read(torch.cat((p.token_prefix, context, p.token_suffix), 1), ends)
            patches = self.look(image[None, 1:], texts[None])[0].mean(0)
            unit = F.normalize(texts, dim=-1)
            return scale * unit @ F.normalize(image[0], dim=-1) + scale * unit @ F.normalize(patches, dim=-1)

        def forward(self, x):
            return torch.stack([self.one(image) for image in self.clip_model.image(x)])

    return Net()
