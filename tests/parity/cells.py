"""Every cell of the converter's table: how to build the original with random weights and save it in its usual form.

Shared by the parity tests and by ``bench/convert_table.py``. Imported only where torch is installed.
"""

import json
import re
import sys
import types
import zlib
from collections import OrderedDict

import numpy as np

# With a CPU build of torch and torchvision's CUDA wheel, the operators of this module do not register. Tests only.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

HF_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}


class Cell:
    """One family, size and layout.

    Attributes
    ----------
    name : str
        ``family-size-layout``.
    architecture, layout : str
        What the converter has to detect.
    build : callable
        ``build(folder) -> (torch module, path)``: random weights, saved in the real layout.
    size : int
        Side of the input; 0: latents.
    flags : tuple of str
        Further arguments of the command line.
    small : bool
        Cheap enough for ``make parity``.
    recipe : str or None
        Name of a published detector: both sides get photographs through their own preprocessing.
    """

    def __init__(self, architecture, layout, build, size=224, flags=(), small=False, family=None, batch=2, recipe=None):
        self.architecture, self.layout, self.build, self.size = architecture, layout, build, size
        self.flags, self.small, self.batch = tuple(flags), small, batch
        self.name = f"{architecture}-{layout}"
        self.family = family
        self.recipe = recipe
        if recipe:
            self.name, self.flags = f"{recipe}-{architecture}", ("--recipe", recipe, *self.flags)

    def make(self, folder):
        """Build it. The random weights are the same in every run, and different in every cell."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        return self.build(folder)


def shake(model, seed=0, side=128, count=2):
    """Give random values to everything that starts constant, BatchNorm statistics included.

    Norm weights are uniform in 0.6 to 1.4, biases normal. A running mean is that of the layer's input over ``count``
    photos plus noise of 0.2 standard deviations; a running variance is the layer's mean variance times 0.5 to 1.5.
    Statistics drawn without regard to the signal would make it vanish or explode within a few layers of a deep net; the
    logits would then be the same for every image, and the comparison would prove nothing. All channels of a layer share
    its mean variance: two photos leave some channels nearly constant, and dividing by their own deviation would enlarge
    rounding errors from layer to layer, far more than in any trained net. In EfficientNet-B4 the signal of a photo that
    is not among them grows until the net is 1e-3 from its own float64; with all four it is 2e-6 from it.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(t, low, high):
        t.copy_(torch.rand(t.shape, generator=generator) * (high - low) + low)

    def normal(t, std):
        t.copy_(torch.randn(t.shape, generator=generator) * std)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in ("position_bias_table", "pos_embed", "position_embeddings", "_token")):
                normal(p, 0.5)
            elif "layer_scale" in name or name.endswith(".gamma"):
                uniform(p, 0.2, 0.8)
            elif "attn.logit_scale" in name or "self.logit_scale" in name:
                uniform(p, 1.0, 4.9)  # Swin v2 cuts it at log(100) = 4.6
            elif p.ndim == 1 and name.endswith("weight"):
                uniform(p, 0.6, 1.4)
            elif p.ndim == 1:
                normal(p, 0.1)
            elif float(p.std()) < 1e-3 or name.endswith(("head.weight", "head.fc.weight", "classifier.weight")):
                normal(p, 0.05)
        if norms:

            def settle(module, args):
                dims = [d for d in range(args[0].ndim) if d != 1]
                var, mean = torch.var_mean(args[0], dims)
                module.running_mean.copy_(mean + torch.randn(mean.shape, generator=generator) * 0.2 * var.sqrt())
                module.running_var.copy_(var.mean() * (torch.rand(var.shape, generator=generator) + 0.5))

            # In the order of the forward pass: the layers before each one already have their new statistics.
            handles = [m.register_forward_pre_hook(settle) for m in norms]
            model.eval()(torch.from_numpy(photos(side, count)))
            for handle in handles:
                handle.remove()
    return model.eval()


def inputs(cell):
    """Real photos at the cell's size; seeded noise for latents."""
    if cell.recipe:
        from convert.parity import compare, torch_detectors

        made = torch_detectors.preprocess(cell.recipe, pictures(cell))
        assert made is not None, f"no row of AUTHORS for {cell.recipe}"
        return compare.normalised(*made[:3])
    if cell.size == 0:
        return np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    return photos(cell.size, cell.batch)


def pictures(cell):
    """Photographs for a detector's own preprocessing, cut to one size where that does not give one."""
    from aidet.images import decode
    from convert import published
    from convert.parity.compare import photo_path

    paths = [photo_path(f"skimage:{name}") for name in ("chelsea.png", "coffee.png")[: cell.batch]]
    images = [decode(path) for path in paths]
    line = published.load(cell.recipe).transform
    whole = any(name in line for name in ("crop(", "resize((", "two_sizes("))
    return images if whole else [image.crop((0, 0, cell.size, cell.size)) for image in images]


def own_inputs(cell, transform):
    """The same photographs through the converted detector's own line."""
    from aidet.images import Pipeline

    return np.stack([Pipeline(transform)(image) for image in pictures(cell)])


def photos(side, count):
    """Photos of scikit-image, normalised: float32 (count, 3, side, side). Seeded smooth noise where it is missing."""
    from PIL import Image

    from convert.parity.compare import photo_path
    from convert.parity.torch_reference import PHOTOS

    rng = np.random.default_rng(1)
    rows = []
    for name in PHOTOS[:count]:
        path = photo_path(name)
        if path is None:
            image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        else:
            image = Image.open(path).convert("RGB")
        image = image.resize((side, side), Image.Resampling.BICUBIC)
        rows.append((np.asarray(image, np.float32) / 255 - 0.45) / 0.22)
    return np.ascontiguousarray(np.stack(rows).transpose(0, 3, 1, 2), np.float32)


def state(model):
    """The state dict as plain contiguous tensors."""
    return OrderedDict((k, v.detach().clone().contiguous()) for k, v in model.state_dict().items())


# ---- ways to save ------------------------------------------------------------------------------------------------


def as_pth(folder, tensors, **kwargs):
    path = folder / "weights.pth"
    torch.save(tensors, path, **kwargs)
    return path


def as_safetensors(folder, tensors):
    from safetensors.torch import save_file

    save_file(dict(tensors), folder / "model.safetensors")
    return folder / "model.safetensors"


def as_npz(folder, tensors):
    np.savez(folder / "model.npz", **{k: v.numpy() for k, v in tensors.items()})
    return folder / "model.npz"


# ---- builders ----------------------------------------------------------------------------------------------------


def torchvision_model(name, **kwargs):
    import torchvision

    return shake(getattr(torchvision.models, name)(weights=None, **kwargs))


def timm_model(name, count=2, **kwargs):
    """timm's net; its statistics are those of ``count`` photographs."""
    import timm

    return shake(timm.create_model(name, pretrained=False, **kwargs), count=count)


def torchvision(name, **kwargs):
    def make(folder):
        model = torchvision_model(name, **kwargs)
        return model, as_pth(folder, state(model))

    return make


def timm(name, config=None, **kwargs):
    """timm's own hub form: model.safetensors and, where ambiguous, its config.json."""

    def make(folder):
        model = timm_model(name, **kwargs)
        path = as_safetensors(folder, state(model))
        if config:
            facts = {"architecture": name, **({"model_args": kwargs} if kwargs else {})}
            (folder / "config.json").write_text(json.dumps(facts))
            path = folder
        return model, path

    return make


def huggingface(model_class, config_class, save="folder", **kwargs):
    """``save_pretrained`` with two classes in the order of many published detectors: 0 generated, 1 real."""

    def make(folder):
        import transformers

        labels = {0: "artificial", 1: "human"}
        config = getattr(transformers, config_class)(
            id2label=labels, label2id={v: k for k, v in labels.items()}, **kwargs
        )
        model = shake(getattr(transformers, model_class)(config))
        model.save_pretrained(folder)
        side = kwargs.get("image_size", 224)
        processor = {**HF_PROCESSOR, "size": {"height": side, "width": side}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        if save == "npz":
            from safetensors.torch import load_file

            (folder / "npz").mkdir()
            return model, as_npz(folder / "npz", load_file(folder / "model.safetensors"))
        if save == "running":
            (folder / "pth").mkdir()
            return model, as_pth(folder / "pth", state(model))
        return model, folder

    return make


def lukemelas(size):
    """EfficientNet-PyTorch's file from timm's port of the same net, renamed by a second, independent table."""

    def make(folder):
        model = timm_model(f"tf_efficientnet_{size}")
        flat, names = {}, OrderedDict()
        first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
        other = {
            "conv_pw": "_expand_conv",
            "bn1": "_bn0",
            "conv_dw": "_depthwise_conv",
            "bn2": "_bn1",
            "conv_pwl": "_project_conv",
            "bn3": "_bn2",
        }
        top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
        for key, value in state(model).items():
            parts = key.split(".")
            if parts[0] != "blocks":
                names[".".join([top[parts[0]], *parts[1:]])] = value
                continue
            n = flat.setdefault((parts[1], parts[2]), len(flat))
            if parts[3] == "se":
                names[f"_blocks.{n}._se_{parts[4].split('_')[1]}.{parts[5]}"] = value
            else:
                names[f"_blocks.{n}.{(first if parts[1] == '0' else other)[parts[3]]}.{parts[4]}"] = value
        return model, as_pth(folder, names, _use_new_zipfile_serialization=False)

    return make


def stacked_b6(folder, side=128):
    """The net of fake_or_real: B6 with its 1000-way head, dropout and a second linear layer."""
    model = shake(nn.Sequential(torchvision_model("efficientnet_b6"), nn.Dropout(0.5), nn.Linear(1000, 2)), side=side)
    return model, as_pth(folder, {"state_dict": state(model)})


def timm_old_swin(name, **kwargs):
    """Swin before timm 0.9: merging belongs to the stage before, one layer as head, stored masks and indices."""

    def make(folder):
        model = timm_model(name, **kwargs)
        old = OrderedDict()
        for key, value in state(model).items():
            parts = key.split(".")
            if len(parts) > 2 and parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
            key = ".".join(parts).replace("head.fc.", "head.")
            old[key] = value
        size, window = kwargs.get("img_size", 224), kwargs.get("window_size", 7)
        for s, depth in enumerate(len(layer.blocks) for layer in model.layers):
            side = size // 4 // 2**s
            for b in range(depth):
                old[f"layers.{s}.blocks.{b}.attn.relative_position_index"] = torch.zeros(
                    window**2, window**2, dtype=torch.long
                )
                if b % 2 and side > window:
                    old[f"layers.{s}.blocks.{b}.attn_mask"] = torch.zeros((side // window) ** 2, window**2, window**2)
        return model, as_pth(folder, {"model": old})

    return make


def microsoft_swin_v2(name, tables=True, **kwargs):
    """Swin v2 in Microsoft's names: merges belong to the stage before, one head layer, tables of offsets stored."""

    def make(folder):
        model = timm_model(name, **kwargs)
        old = OrderedDict()
        for key, value in state(model).items():
            parts = key.split(".")
            if len(parts) > 2 and parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
            old[".".join(parts).replace("head.fc.", "head.")] = value
        if not tables:
            (folder / "config.json").write_text(json.dumps({"architecture": name, "model_args": kwargs}))
            return model, as_pth(folder, {"model": old})
        for s, layer in enumerate(model.layers):
            for b, block in enumerate(layer.blocks):
                root = f"layers.{s}.blocks.{b}."
                for table in ("relative_coords_table", "relative_position_index"):
                    old[f"{root}attn.{table}"] = getattr(block.attn, table).clone()
                if block.attn_mask is not None:
                    old[root + "attn_mask"] = block.attn_mask.clone()
        return model, as_pth(folder, {"model": old})

    return make


def nodown(folder):
    """GRIP-UNINA's ResNet-50: stride 1 in the first convolution and the max-pool, one output, their wrapper."""
    import torchvision

    model = torchvision.models.resnet50(weights=None, num_classes=1)
    model.conv1.stride, model.maxpool.stride = (1, 1), 1
    return shake(model, side=64), as_pth(folder, {"model": state(model), "epoch": 3})


def resnet_mlp(name):
    """torchvision's trunk with ash12321/sdxl-detector-resnet50's head: Linear, BatchNorm, ReLU between Dropouts."""

    def make(folder):
        import torchvision

        model = getattr(torchvision.models, name)(weights=None)
        width = model.fc.in_features
        model.fc = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(width, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(512, 2),
        )
        return shake(model), as_pth(folder, state(model))

    return make


def drct_resnet(name):
    """DRCT's wrapper: the trunk ends in an embedding of 1024, a second linear layer makes two classes of it."""

    def make(folder):
        class Detector(nn.Module):
            def __init__(self):
                super().__init__()
                import torchvision

                self.model = getattr(torchvision.models, name)(weights=None, num_classes=1024)
                self.fc = nn.Linear(1024, 2)

            def forward(self, x):
                return self.fc(self.model(x))

        model = shake(Detector())
        return model, as_pth(folder, state(model))

    return make


def meta_convnext(folder):
    """Meta's own ConvNeXt names, from timm's net."""
    model = timm_model("convnext_tiny")
    names = OrderedDict()
    for key, value in state(model).items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.").replace("head.fc.", "head.")
        parts = key.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            key = ".".join(["downsample_layers", parts[1], *parts[3:]])
        elif parts[0] == "stages":
            key = ".".join(["stages", parts[1], parts[3], *parts[4:]])
            key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        names[key] = value
    return model, as_pth(folder, {"model": names})


class Reconstruct(nn.Module):
    """diffusers' autoencoder through the mean of its posterior."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x):
        return self.vae.decode(self.vae.encode(x).latent_dist.mode()).sample


def _vae(widths, scaling=0.18215):
    from diffusers import AutoencoderKL

    n = len(widths)
    return shake(
        AutoencoderKL(
            block_out_channels=widths,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=scaling,
            down_block_types=("DownEncoderBlock2D",) * n,
            up_block_types=("UpDecoderBlock2D",) * n,
        )
    )


_OLD = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))


def vae(layout, widths=(32, 64, 128, 128), scaling=0.18215):
    """AutoencoderKL under one of its naming schemes."""

    def make(folder):
        net = _vae(widths, scaling)
        if layout == "diffusers":
            net.save_pretrained(folder)
            return Reconstruct(net), folder
        tensors = state(net)
        if layout == "diffusers-old":
            for new, old in _OLD:
                tensors = OrderedDict(
                    (k.replace(f"attentions.0.{new}.", f"attentions.0.{old}."), v) for k, v in tensors.items()
                )
            return Reconstruct(net), as_pth(folder, tensors)
        tensors = OrderedDict((ldm_name(k, len(widths)), ldm_value(k, v)) for k, v in tensors.items())
        if layout == "ldm":
            tensors["loss.logvar"] = torch.zeros(())
            return Reconstruct(net), as_pth(folder, {"state_dict": tensors})
        tensors = OrderedDict(("first_stage_model." + k, v) for k, v in tensors.items())
        tensors["model.diffusion_model.out.2.weight"] = torch.zeros(4, 8, 3, 3)
        tensors["cond_stage_model.logit_scale"] = torch.zeros(())
        return Reconstruct(net), as_safetensors(folder, tensors)

    return make


def ldm_name(key, stages):
    """A diffusers key in the names of latent-diffusion (a second, independent table)."""
    import re

    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{stages - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{stages - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = (
        key.replace("mid_block.attentions.0.", "mid.attn_1.")
        .replace("group_norm", "norm")
        .replace("conv_norm_out", "norm_out")
    )
    for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        key = key.replace(f"attn_1.{new}.", f"attn_1.{old}.")
    return key.replace("conv_shortcut", "nin_shortcut")


def ldm_value(key, value):
    """latent-diffusion's attention is made of 1x1 convolutions."""
    return value[:, :, None, None].contiguous() if "attentions.0.to_" in key and key.endswith("weight") else value


def aekl(old):
    """AIGC-clf's classifier on the encoder, as its npz."""

    def make(folder):
        net = _vae((32, 64, 64, 64))

        class Classifier(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.quant_conv = net.encoder, net.quant_conv
                self.clf = nn.Sequential(
                    nn.Linear(1024, 256), nn.SiLU(), nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, 2)
                )

            def forward(self, x):
                return self.clf(net.encode(x).latent_dist.mode().flatten(1))

        model = shake(Classifier())
        tensors = state(model)
        for new, name in _OLD if old else ():
            tensors = OrderedDict(
                (k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."), v) for k, v in tensors.items()
            )
        return model, as_npz(folder, tensors)

    return make


def tiny(half):
    """diffusers' AutoencoderTiny, one half, on images in [0, 1]."""

    def make(folder):
        from diffusers import AutoencoderTiny

        net = shake(AutoencoderTiny())
        net.save_pretrained(folder)

        class Half(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x):
                return net.encoder(x * 2 - 1) if half == "encoder" else (net.decoder(x) + 1) / 2

        return Half().eval(), folder

    return make


def tiny_sequential(half):
    """The same net under the published numbering (the decoder's begins with the clamp)."""

    def make(folder):
        model, _ = tiny(half)(folder)
        tensors = OrderedDict()
        for key, value in state(getattr(model.net, half).layers).items():
            number, rest = key.split(".", 1)
            tensors[f"{int(number) + (half == 'decoder')}.{rest}"] = value.half()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.half().float())
        (folder / "sequential").mkdir()
        return model, as_pth(folder / "sequential", tensors)

    return make


def akamaster(depth):
    """CIFAR ResNet with the prefix of DataParallel and the trainer's wrapper, from the published description."""

    def make(folder):
        from convert.parity import torch_models

        plan = types.SimpleNamespace(architecture=f"cifar_resnet{depth}", num_classes=10)
        model = shake(torch_models.cifar_resnet(plan, None), side=32)
        tensors = OrderedDict(("module." + k, v) for k, v in state(model).items())
        return model, as_pth(folder, {"state_dict": tensors, "best_prec1": 91.0}, _use_new_zipfile_serialization=False)

    return make


def aics(attention):
    """CIFAKE_CNN; the counter of the attention's BatchNorm tells the variants apart."""

    def make(folder):
        from convert.parity import torch_models

        name = "cifake_cnn_srm" if attention else "cifake_cnn"
        model = shake(torch_models.cifake(types.SimpleNamespace(architecture=name, num_classes=1), None), side=32)
        model.attend.bn.num_batches_tracked.fill_(7 if attention else 0)
        return model, as_pth(folder, state(model))

    return make


def published(family, architecture, classes, wrap=None, side=128, **arguments):
    """A detector of ``convert/detectors``: its authors' network with random weights, wrapped as they save it."""

    def make(folder):
        from convert.parity import torch_detectors

        plan = types.SimpleNamespace(architecture=architecture, num_classes=classes, arguments=arguments)
        model = shake(getattr(torch_detectors, family)(plan, None), side=side)
        return model, (wrap or as_pth)(folder, state(model))

    return make


def with_settings(folder, tensors):
    """As SAFE's trainer saves it, its command line included."""
    import argparse

    return as_pth(folder, {"model": tensors, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=0.1)})


def net_c(folder, tensors):
    return as_pth(folder, {"netC": tensors})


def with_texts(folder, tensors):
    """As FatFormer saves it: also the table of tokens, and the wavelet's filters in every adapter."""
    made = OrderedDict(tensors)
    for key in tensors:
        if key.endswith("freq_scale"):
            stem = key[: -len("freq_scale")]
            for name in ("dwt_transform.h", "idwt_transform.g"):
                made.update(
                    {f"{stem}{name}{n}_{axis}": torch.ones(1, 1, 2, 1) for n in "01" for axis in ("col", "row")}
                )
    wide = tensors["clip_model.ln_final.weight"].shape[0]
    made["clip_model.token_embedding.weight"] = torch.randn(20, wide)
    return as_pth(folder, {"model": made})


def with_lora(folder, tensors, rank=32):
    """As Bombek1 saves its detector: what peft and its own layers add to queries and values is apart from the rest."""
    made = OrderedDict()
    for key, value in tensors.items():
        stem, leaf = key.rsplit(".", 1)
        ours = re.fullmatch(r"dinov2\..*\.qkv", stem)
        theirs = re.fullmatch(r"siglip\..*\.(q|v)_proj", stem)
        if stem.startswith("siglip."):
            stem = "siglip.base_model.model." + stem[len("siglip.") :]
        if not ours and not theirs:
            made[f"{stem}.{leaf}"] = value
            continue
        name = "" if ours else ".default"
        frozen = f"{stem}.{'original' if ours else 'base_layer'}.{leaf}"
        if leaf == "weight":
            down, up = torch.randn(rank, value.shape[1]) * 0.05, torch.randn(value.shape[0], rank) * 0.05
            made.update({f"{stem}.lora_A{name}.weight": down, f"{stem}.lora_B{name}.weight": up})
            value = (value.double() - 64 / rank * (up.double() @ down.double())).float()
        made[frozen] = value
    return as_pth(folder, {"model_state_dict": made, "config": {"lora_rank": rank, "lora_alpha": 64}, "epoch": 3})


def fredect_files(folder, tensors):
    """The network, and the two maps of coefficients as bare tensors."""
    for name in ("dct_mean", "dct_var"):
        torch.save(tensors.pop(name), folder / name)
    torch.save({"netC": OrderedDict((k[len("net.") :], v) for k, v in tensors.items())}, folder / "FreDect.pth")
    return folder


def fredect(architecture, side):
    def make(folder):
        from convert.parity import torch_detectors

        plan = types.SimpleNamespace(architecture=architecture, num_classes=1, arguments={"image_size": side})
        model = torch_detectors.fredect(plan, None)
        with torch.no_grad():  # the log of a photograph's coefficients is about 2, with a spread of 2
            model.dct_mean.copy_(2 + torch.rand(3, side, side))
            model.dct_var.copy_(3 + torch.rand(3, side, side))
        model = shake(model, side=side)
        return model, fredect_files(folder, state(model))

    return make


# ---- the table ---------------------------------------------------------------------------------------------------


def _cells():
    from towers import tower_cells

    resnet = {
        "resnet18": ("basic", [64, 128, 256, 512], [2, 2, 2, 2]),
        "resnet34": ("basic", [64, 128, 256, 512], [3, 4, 6, 3]),
        "resnet50": ("bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3]),
        "resnet101": ("bottleneck", [256, 512, 1024, 2048], [3, 4, 23, 3]),
        "resnet152": ("bottleneck", [256, 512, 1024, 2048], [3, 8, 36, 3]),
    }
    for name, (kind, widths, depths) in resnet.items():
        hf = {"layer_type": kind, "hidden_sizes": widths, "depths": depths}
        args = ("ResNetForImageClassification", "ResNetConfig")
        yield Cell(name, "hf", huggingface(*args, **hf), 160, small=name == "resnet18")
        yield Cell(name, "torchvision", torchvision(name), 160, small=name == "resnet50")
        yield Cell(name, "timm", timm(name), 160)
        if name in ("resnet18", "resnet50"):
            yield Cell(name, "npz", huggingface(*args, save="npz", **hf), 160, small=name == "resnet18")
    for name in ("resnet18", "resnet50"):
        yield Cell(name, "torchvision-mlp", resnet_mlp(name), 160, small=name == "resnet18")
        yield Cell(name, "drct", drct_resnet(name), 160, small=name == "resnet18")
    yield Cell("resnet50_nodown", "grip", nodown, 64, flags=("--layout", "grip"), small=True)
    for depth in (20, 32, 44, 56, 110):
        yield Cell(f"cifar_resnet{depth}", "akamaster", akamaster(depth), 32, small=depth == 20)
    yield Cell("cifake_cnn", "aics", aics(False), 32, small=True)
    yield Cell("cifake_cnn_srm", "aics", aics(True), 32, small=True)
    for name in ("squeezenet1_0", "squeezenet1_1"):
        yield Cell(name, "torchvision", torchvision(name), 160, small=name == "squeezenet1_1")
    for size in ("small", "large"):
        yield Cell(
            f"mobilenet_v3_{size}_100", "torchvision", torchvision(f"mobilenet_v3_{size}"), 160, small=size == "small"
        )
    yield from _efficientnet_cells()
    yield from _transformer_cells()
    yield from tower_cells()
    yield from _swin_v2_cells()
    yield from _convnext_v2_cells()
    yield from _efficientnet_v2_cells()
    yield from _beit_cells()
    yield from _mobilenet_v2_cells()
    yield from _resnest_cells()
    for size in ("tiny", "small", "base"):
        dims = {
            "tiny": ([96, 192, 384, 768], [3, 3, 9, 3]),
            "small": ([96, 192, 384, 768], [3, 3, 27, 3]),
            "base": ([128, 256, 512, 1024], [3, 3, 27, 3]),
        }[size]
        name = f"convnext_{size}"
        yield Cell(name, "torchvision", torchvision(name), 128, small=size == "tiny")
        yield Cell(name, "timm", timm(name), 128)
        yield Cell(
            name,
            "hf",
            huggingface("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=dims[0], depths=dims[1]),
            128,
        )
    yield Cell("convnext_tiny", "meta", meta_convnext, 128)
    full = (128, 256, 512, 512)
    for layout in ("diffusers", "diffusers-old", "ldm", "ldm-pipeline"):
        yield Cell("autoencoder_kl", layout, vae(layout), 64, small=layout != "diffusers-old")
        cell = Cell("autoencoder_kl", layout, vae(layout, full, 0.13025), 64)
        cell.name = f"autoencoder_kl_full-{layout}"
        yield cell
    yield Cell("aekl_clf", "aekl", aekl(False), 128, flags=("--positive", "1"), small=True)
    yield Cell("aekl_clf", "aekl-old", aekl(True), 128, flags=("--positive", "1"))
    for half in ("encoder", "decoder"):
        size = 64 if half == "encoder" else 0
        yield Cell(f"taesd_{half}", "sequential", tiny_sequential(half), size, small=half == "encoder")
        yield Cell(f"taesd_{half}", f"diffusers-{half}", tiny(half), size, flags=("--layout", f"diffusers-{half}"))


def _efficientnet_cells():
    sides = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}
    hf = {  # width, depth, head, the blocks whose input has an odd size (google/efficientnet-b*)
        "b0": (1.0, 1.0, 1280, []),
        "b1": (1.0, 1.1, 1280, [16]),
        "b2": (1.1, 1.2, 1408, [5, 8, 16]),
        "b3": (1.2, 1.4, 1536, [5, 18]),
        "b4": (1.4, 1.8, 1792, [6]),
        "b5": (1.6, 2.2, 2048, [13, 27]),
        "b6": (1.8, 2.6, 2304, [31]),
        "b7": (2.0, 3.1, 2560, [18]),
    }
    for size, side in sides.items():
        name = f"efficientnet_{size}"
        batch = 2 if side < 400 else 1
        yield Cell(name, "torchvision", torchvision(name), 128, small=size == "b0")
        # A file alone could be either of timm's two ports; its config.json or --layout says which.
        yield Cell(name, "timm", timm(name), 128, flags=("--layout", "timm"))
        yield Cell(name, "timm-tf", timm(f"tf_{name}", config=True), 128, small=size == "b0")
        yield Cell(name, "lukemelas", lukemelas(size), 128)
        width, depth, head, odd = hf[size]
        yield Cell(
            name,
            "hf",
            huggingface(
                "EfficientNetForImageClassification",
                "EfficientNetConfig",
                width_coefficient=width,
                depth_coefficient=depth,
                hidden_dim=head,
                image_size=side,
                depthwise_padding=odd,
            ),
            side,
            batch=batch,
            small=size == "b0",
        )
    for size in ("lite0", "lite1", "lite2"):
        yield Cell(f"efficientnet_{size}", "timm-tf", timm(f"tf_efficientnet_{size}", config=True), 128)
        yield Cell(f"efficientnet_{size}", "lukemelas", lukemelas(size), 128, small=size == "lite0")
    yield Cell("efficientnet_b6", "stacked", stacked_b6, 128, flags=("--positive", "1"))


def meta_convnext_v2(name):
    """Meta's own ConvNeXt V2 names, from timm's net."""

    def make(folder):
        model = timm_model(name)
        names = OrderedDict()
        for key, value in state(model).items():
            key = (
                key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.").replace("head.fc.", "head.")
            )
            parts = key.split(".")
            if parts[0] == "stages" and parts[2] == "downsample":
                key = ".".join(["downsample_layers", parts[1], *parts[3:]])
            elif parts[0] == "stages":
                key = ".".join(["stages", parts[1], *parts[3:]])
                key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
                key = key.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
            if ".grn." in key:
                value = value[None, None, None]
            elif "pwconv" in key and key.endswith("weight"):
                value = value.flatten(1)
            names[key] = value
        return model, as_pth(folder, {"model": names})

    return make


def _convnext_v2_cells():
    for size, widths, depths in (
        ("atto", [40, 80, 160, 320], [2, 2, 6, 2]),
        ("femto", [48, 96, 192, 384], [2, 2, 6, 2]),
        ("pico", [64, 128, 256, 512], [2, 2, 6, 2]),
        ("nano", [80, 160, 320, 640], [2, 2, 8, 2]),
        ("tiny", [96, 192, 384, 768], [3, 3, 9, 3]),
        ("base", [128, 256, 512, 1024], [3, 3, 27, 3]),
        ("large", [192, 384, 768, 1536], [3, 3, 27, 3]),
    ):
        name, small = f"convnext_v2_{size}", size == "atto"
        hf = huggingface("ConvNextV2ForImageClassification", "ConvNextV2Config", hidden_sizes=widths, depths=depths)
        yield Cell(name, "hf", hf, 128, small=small)
        yield Cell(name, "timm", timm(f"convnextv2_{size}"), 128, small=small)
    yield Cell("convnext_v2_atto", "meta", meta_convnext_v2("convnextv2_atto"), 128, small=True)


def _efficientnet_v2_cells():
    for size in ("b0", "b1", "b2", "b3", "s", "m", "l"):
        name = f"efficientnetv2_{size}"
        yield Cell(name, "timm-tf", timm(f"tf_{name}", config=True), 128, small=size == "b0")
        if size in ("s", "m", "l"):
            yield Cell(name, "timm", timm(name, config=True), 128)
            yield Cell(name, "torchvision", torchvision(f"efficientnet_v2_{size}"), 128, small=size == "s")
        else:
            # timm registers its own trainings of the base sizes only as ports with other settings.
            own = timm(f"tf_{name}", pad_type="", bn_eps=1e-5)
            yield Cell(name, "timm", own, 128, flags=("--layout", "timm"), small=size == "b0")


def _beit_cells():
    args = ("BeitForImageClassification", "BeitConfig")
    options = {"use_relative_position_bias": True, "use_mean_pooling": True}

    def sizes(width, depth, heads, hidden, side):
        ours = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        return {**ours, "intermediate_size": hidden, "image_size": side, **options}

    small = sizes(48, 2, 4, 96, 64)
    yield Cell("beit", "hf", huggingface(*args, **small), 64, small=True)
    yield Cell("beit", "hf5", huggingface(*args, save="running", **small), 64, small=True)
    token = {**small, "use_mean_pooling": False, "use_absolute_position_embeddings": True}
    cell = Cell("beit", "hf", huggingface(*args, layer_scale_init_value=0.0, **token), 64, small=True)
    cell.name = "beit_token-hf"
    yield cell
    reduced = timm("beit_base_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2)
    yield Cell("beit", "timm", reduced, 64, small=True)
    for name, size, full in (
        ("beit_b_16", "base", (768, 12, 12, 3072, 224)),
        ("beit_l_16", "large", (1024, 24, 16, 4096, 224)),
    ):
        yield Cell(name, "hf", huggingface(*args, **sizes(*full)))
        yield Cell(name, "timm", timm(f"beit_{size}_patch16_224"))


def _mobilenet_v2_cells():
    args = ("MobileNetV2ForImageClassification", "MobileNetV2Config")
    for width, label in ((0.35, "035"), (1.0, "100"), (1.4, "140")):
        for layout, make in (
            ("hf", huggingface(*args, depth_multiplier=width)),
            ("torchvision", torchvision("mobilenet_v2", width_mult=width)),
            ("timm", timm(f"mobilenetv2_{label}")),
        ):
            cell = Cell("mobilenet_v2", layout, make, 96 if width < 1 else 160, small=width < 1)
            cell.name = f"mobilenet_v2_{label}-{layout}"
            yield cell
    make = huggingface(*args, depth_multiplier=0.35, tf_padding=False, layer_norm_eps=1e-5)
    cell = Cell("mobilenet_v2", "hf", make, 96)
    cell.name = "mobilenet_v2_035_symmetric-hf"
    yield cell


def _resnest_cells():
    # At 72 pixels the maps have odd sizes, where the two ways to pool differ.
    yield Cell("resnest", "timm", timm("resnest14d"), 72, small=True)
    yield Cell("resnest50d", "timm", timm("resnest50d"), 160)


SMALL_SWIN_V2 = {"embed_dim": 24, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4}


def _swin_v2_cells():
    args = ("Swinv2ForImageClassification", "Swinv2Config")
    small = {**SMALL_SWIN_V2, "pretrained_window_sizes": (3, 3, 2)}
    yield Cell("swin_v2", "hf", huggingface(*args, image_size=64, **small), 64, small=True)
    name = "swinv2_tiny_window8_256"
    yield Cell("swin_v2", "timm", timm(name, config=True, img_size=64, **small), 64, small=True)
    yield Cell("swin_v2", "microsoft", microsoft_swin_v2(name, img_size=64, **small), 64, small=True)
    full = {
        "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24], 8, (0, 0, 0, 0)),
        "small": (96, [2, 2, 18, 2], [3, 6, 12, 24], 16, (0, 0, 0, 0)),
        "base": (128, [2, 2, 18, 2], [4, 8, 16, 32], 16, (0, 0, 0, 0)),
        "large": (192, [2, 2, 18, 2], [6, 12, 24, 48], 16, (12, 12, 12, 6)),
    }
    for size, (width, depths, heads, window, pretrained) in full.items():
        hf = {"embed_dim": width, "depths": depths, "num_heads": heads, "pretrained_window_sizes": pretrained}
        make = huggingface(*args, image_size=256, window_size=window, **hf)
        yield Cell(f"swin_v2_{size}", "hf", make, 256)
        name = f"swinv2_{size}_window{'12to16_192to256' if size == 'large' else f'{window}_256'}"
        yield Cell(f"swin_v2_{size}", "timm", timm(name, config=True), 256)


def _transformer_cells():
    swin = {
        "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
        "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
        "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
        "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
    }
    args = ("SwinForImageClassification", "SwinConfig")
    for size, (width, depths, heads) in swin.items():
        name = f"swin_{size}"
        hf = {"embed_dim": width, "depths": depths, "num_heads": heads}
        yield Cell(name, "hf", huggingface(*args, **hf), small=size == "tiny")
        yield Cell(name, "timm", timm(f"{name}_patch4_window7_224"))
        yield Cell(name, "timm-old", timm_old_swin(f"{name}_patch4_window7_224"), small=size == "tiny")
        if size != "large":
            yield Cell(
                name,
                "torchvision",
                torchvision({"tiny": "swin_t", "small": "swin_s", "base": "swin_b"}[size]),
                small=size == "tiny",
            )
        if size in ("base", "large"):
            for layout, make in (
                ("hf", huggingface(*args, image_size=384, window_size=12, **hf)),
                ("timm", timm(f"{name}_patch4_window12_384")),
                ("timm-old", timm_old_swin(f"{name}_patch4_window12_384", img_size=384, window_size=12)),
            ):
                cell = Cell(name, layout, make, 384, batch=1)
                cell.name = f"{name}_384-{layout}"
                yield cell
    yield Cell(
        "swin_tiny", "npz", huggingface(*args, save="npz", embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])
    )
    yield Cell(
        "swin_tiny",
        "hf5",
        huggingface(*args, save="running", embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
    )
    for key, (label, width, heads) in {"t": ("tiny", 192, 3), "s": ("small", 384, 6), "b": ("base", 768, 12)}.items():
        for side in (224, 384):
            hf = {
                "hidden_size": width,
                "num_attention_heads": heads,
                "intermediate_size": 4 * width,
                "image_size": side,
            }
            batch = 2 if side == 224 else 1
            yield Cell(
                f"vit_{key}_16_{side}",
                "timm",
                timm(f"vit_{label}_patch16_224", img_size=side),
                side,
                batch=batch,
                small=key == "t" and side == 224,
            )
            yield Cell(
                f"vit_{key}_16_{side}",
                "hf",
                huggingface("ViTForImageClassification", "ViTConfig", **hf),
                side,
                batch=batch,
                small=key == "t" and side == 224,
            )
            yield Cell(
                f"deit_{key}_16_{side}",
                "timm",
                timm(f"deit_{label}_distilled_patch16_224", img_size=side),
                side,
                batch=batch,
            )
            yield Cell(
                f"deit_{key}_16_{side}",
                "hf-deit",
                huggingface("DeiTForImageClassification", "DeiTConfig", **hf),
                side,
                batch=batch,
            )
    hf = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    yield Cell("vit_t_16_224", "hf5", huggingface("ViTForImageClassification", "ViTConfig", save="running", **hf))
    yield Cell(
        "deit_t_16_224", "hf-deit-teacher", huggingface("DeiTForImageClassificationWithTeacher", "DeiTConfig", **hf)
    )


TWO_TOWERS = {
    "siglip": {"width": 128, "depth": 1, "heads": 2, "hidden": 192, "patch_size": 14, "image_size": 384},
    "dinov2": {"width": 64, "depth": 1, "heads": 1, "hidden": 128, "patch_size": 14, "image_size": 392},
    "hidden": 32,
}


FAT = {
    **{"width": 256, "depth": 4, "hidden": 512, "heads": 4, "patch_size": 28, "image_size": 224},
    **{"adapted": [1, 3], "bottleneck": 16, "text_width": 192, "text_depth": 2, "context": 3, "suffix": 9},
    "ends": [6, 7],
}
SMALL_AIDE = {"depths": [1, 1, 2, 1], "widths": [16, 24, 32, 48], "resnet": "resnet18", "projection": 16, "hidden": 32}


def _detector_cells():
    aide = published("aide", "aide", 2, with_settings, side=256, **SMALL_AIDE)
    yield Cell("aide", "aide", aide, 256, small=True, recipe="aide")
    freqnet = published("freqnet", "freqnet", 1, side=256)
    yield Cell("freqnet", "freqnet", freqnet, 256, small=True, recipe="freqnet")
    yield Cell("npr_resnet50", "npr", published("npr", "npr_resnet50", 1), 256, small=True, recipe="npr")
    safe = published("safe", "safe_resnet50", 2, with_settings)
    yield Cell("safe_resnet50", "safe", safe, 256, small=True, recipe="safe")
    yield Cell("ladeda9", "ladeda", published("ladeda", "ladeda9", 1, input_filter="neighbours"), 256, recipe="ladeda")
    tiny = published("ladeda", "tiny_ladeda", 1, input_filter="right_diagonal")
    yield Cell("tiny_ladeda", "ladeda", tiny, 256, small=True, recipe="tiny-ladeda")
    yield Cell("fredect_resnet50", "fredect", fredect("fredect_resnet50", 224), 224, recipe="fredect")
    gramnet = published("gramnet", "gramnet_resnet18", 1, net_c)
    yield Cell("gramnet_resnet18", "gramnet", gramnet, 224, small=True, recipe="gramnet")
    tower = {"width": 128, "depth": 2, "hidden": 320, "heads": 2, "patch_size": 8, "image_size": 40}
    rine = published("rine", "rine", 1, side=40, **tower, embedding=32, layers=2)
    yield Cell("rine", "rine", rine, 40, ("--layout", "rine"), small=True)
    d3 = published("d3", "d3", 1, side=40, **tower, shuffles=1, shuffle_patch=8)
    yield Cell("d3", "d3", d3, 40, ("--layout", "d3"), small=True)
    on_clip = published("drct", "drct_clip", 2, side=40, **tower, projection=48, embedding=64)
    yield Cell("drct_clip", "drct-clip", on_clip, 40, small=True)
    # The published inputs, patches and depth of one block.
    both = published("siglip_dinov2", "siglip_dinov2", 1, with_lora, **TWO_TOWERS)
    yield Cell("siglip_dinov2", "siglip_dinov2", both, 776, small=True, recipe="bombek1")
    fat = published("fatformer", "fatformer", 2, with_texts, **FAT)
    yield Cell("fatformer", "fatformer", fat, 224, small=True, recipe="fatformer")
    drct = published("drct", "drct_convnext_base", 2, embedding=1024)
    yield Cell("drct_convnext_base", "drct", drct, 224, recipe="drct-convnext")


CELLS = [*_cells(), *_detector_cells()]


def output(model, x):
    """The original's logits (or reconstruction), in the type of ``x``."""
    from convert.parity.torch_reference import plain

    with torch.no_grad():
        return plain(model(torch.from_numpy(x))).numpy()
