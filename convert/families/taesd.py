"""TAESD family: numbered keys of one sequence, and diffusers' AutoencoderTiny."""

from typing import Optional, Tuple

from aidet.errors import UserError

from . import Arguments, Config, Family, Layout, Taps, Tensors, shape

SEQUENTIAL = (
    ("one", "{i}.weight", "{i}.weight"),
    ("one", "{i}.bias", "{i}.bias"),
    ("wb", "{i}.conv.{j}", "{i}.conv.{j}"),
    ("w", "{i}.skip", "{i}.skip"),
    ("w", "{i}.pool.0", "{i}.pool.0"),
    ("ln", "{i}.pool.1", "{i}.pool.1"),
    ("w", "{i}.pool.3", "{i}.pool.3"),
)
# diffusers' DecoderTiny leaves the clamp out of its numbering.
DIFFUSERS_ENCODER = tuple((k, t, "encoder.layers." + s) for k, t, s in SEQUENTIAL)
DIFFUSERS_DECODER = tuple((k, t, "decoder.layers." + s.replace("{i}", "{i-1}")) for k, t, s in SEQUENTIAL)
LAYOUTS = (
    Layout("sequential", (r"\d+\.conv\.0\.weight", r"\d+\.conv\.4\.weight"), SEQUENTIAL),
    Layout(
        "diffusers-encoder",
        (r"encoder\.layers\.1\.conv\.0\.weight",),
        DIFFUSERS_ENCODER,
        drop=((r"decoder\..*", "the other half; convert it with --layout diffusers-decoder"),),
    ),
    Layout(
        "diffusers-decoder",
        (r"decoder\.layers\.2\.conv\.0\.weight",),
        DIFFUSERS_DECODER,
        drop=((r"encoder\..*", "the other half; convert it with --layout diffusers-encoder"),),
    ),
)


def infer(layout: Layout, tensors: Tensors, config: Config) -> Tuple[str, Arguments]:
    """Encoder or decoder from the position of the first convolution, the variant from widths and branches."""
    if layout.name == "diffusers-encoder":
        last = max(int(k.split(".")[2]) for k in tensors if k.startswith("encoder.layers."))
        return "taesd_encoder", {"latent_channels": shape(tensors, f"encoder.layers.{last}.weight")[0]}
    if layout.name == "diffusers-decoder":
        return "taesd_decoder", {"latent_channels": shape(tensors, "decoder.layers.0.weight")[1]}
    pool = any(".pool." in k for k in tensors)
    first = shape(tensors, "0.weight")
    if first is None:
        width, latent = shape(tensors, "1.weight")[:2]
        if width == 256:
            return "taesana_decoder", {"latent_channels": latent}
        return "taesd_decoder", {"latent_channels": latent, "pool": pool}
    last = max(int(k.split(".")[0]) for k in tensors)
    latent = shape(tensors, f"{last}.weight")[0]
    if first[:2] == (32, 3):
        return "taesana_encoder", {"latent_channels": latent}
    if first[:2] == (64, 3):
        return "taesd_encoder", {"latent_channels": latent, "pool": pool}
    raise UserError(f"a tiny autoencoder that begins with a convolution of shape {first} is not known")


def transform(architecture: str, layout: Layout, arguments: Arguments) -> Optional[str]:
    """Pixels in [0, 1], sides a multiple of the factor; a decoder takes latents and has no pipeline."""
    if "decoder" in architecture:
        return None
    return f"decode | center_crop({256 if 'sana' in architecture else 128}) | to_float()"


def taps(architecture: str) -> Taps:
    """Every layer of the sequence but the last, whose output is the net's."""
    kind = architecture.split("_")[1]
    count = {"taesd_encoder": 15, "taesd_decoder": 20, "taesana_encoder": 18, "taesana_decoder": 30}[architecture]
    rows = []
    for i in range(count - 1):
        names = {"sequential": str(i)}
        if kind == "encoder" or i > 0:
            names[f"diffusers-{kind}"] = f"{kind}.layers.{i - (kind == 'decoder')}"
        rows.append((f"layers.{i}", names))
    return rows


FAMILY = Family(
    "taesd",
    ("taesd_encoder", "taesd_decoder", "taesana_encoder", "taesana_decoder"),
    LAYOUTS,
    infer,
    transform,
    taps=taps,
)
