"""What the metadata of a file are taken for: encodings of comments, names of cameras and programs, foreign profiles."""

import io

import pytest
from PIL import Image, PngImagePlugin

from aidet.app import metadata

PARAMETERS = "{}Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"


def jpeg(tags=(), comment=None, kind="JPEG"):
    exif = Image.Exif()
    for tag, value in dict(tags).items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, kind, exif=exif)
    return out.getvalue()


def png(**texts):
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_text(name.replace("_", " "), value)
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def kinds(data):
    return {f.name: f.kind for f in metadata.read(data)}


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le", "utf-16"])
@pytest.mark.parametrize("prompt", ["a cat\n", "一只猫坐在桌子上\n", "猫が机に座る\n"])
def test_a_comment_in_utf_16_is_read_in_either_byte_order(codec, prompt):
    """Stable Diffusion web UI writes them big-endian into every JPEG, whatever the byte order of the file is."""
    text = PARAMETERS.format(prompt)
    (found,) = metadata.read(jpeg(comment=b"UNICODE\0" + text.encode(codec)))
    assert (found.kind, found.text) == ("generator", text.replace("\n", " "))


@pytest.mark.parametrize("make, model", [("Dallmeier electronic", "DF4820HD"), ("Hawkeye", "FIREFLY 8SE")])
def test_a_camera_is_no_generator_for_its_name(make, model):
    assert kinds(jpeg({0x010F: make, 0x0110: model})) == {"Make": "camera", "Model": "camera"}


@pytest.mark.parametrize(
    "name, kind",
    [("Imagenomic Portraiture 3", "other"), ("Visor de imagen", "other"), ("Google Imagen 3", "generator"),
     ("imagen-4.0-generate", "generator"), ("DALL·E 3", "generator"), ("dalle-mini", "generator")],
)  # fmt: skip
def test_programs_that_make_pictures(name, kind):
    assert kinds(jpeg({0x0131: name})) == kinds(png(Software=name)) == {"Software": kind}


def test_comfyui_writes_into_the_camera_fields_of_webp():
    data = jpeg({0x010F: 'workflow:{"nodes": []}', 0x0110: 'prompt:{"3": {"class_type": "KSampler"}}'}, kind="WEBP")
    assert kinds(data) == {"Make": "generator", "Model": "generator"}


@pytest.mark.parametrize("profile", ["exif", "APP1", "xmp", "iptc"])
def test_profiles_in_hexadecimal_digits_are_not_shown(profile):
    assert metadata.read(png(**{f"Raw_profile_type_{profile}": f"\n{profile}\n  8\n4578696600004d4d\n"})) == []
