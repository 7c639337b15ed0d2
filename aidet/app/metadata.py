"""Metadata of a file: camera data, prompts and parameters of generators, content credentials.

None of it affects the verdict. Metadata is easily removed and forged: its presence is a hint, its absence is not.
"""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Union

from PIL import ExifTags

from .. import images
from ..images import containers, opening
from . import credentials

# kinds of finding
CAMERA, GENERATOR, CREDENTIALS, OTHER = "camera", "generator", "credentials", "other"
LONGEST = 400  # maximum number of characters of a text that are shown
LARGEST = 40_000_000  # largest number of pixels that are decoded to find text after them
# PNG text chunks that generators write: AUTOMATIC1111 and its forks, ComfyUI, InvokeAI, Fooocus, NovelAI, DALL-E.
_TEXT_KEYS = {
    "parameters", "prompt", "workflow", "invokeai_metadata", "invokeai_graph", "sd-metadata", "dream", "fooocus_scheme",
    "generation_data", "generation time",
}  # fmt: skip
_SOFTWARE = re.compile(
    r"stable.?diffusion|midjourney|dall.?e(?![a-z])|novelai|comfyui|automatic1111|invokeai|firefly|fooocus|flux\b|"
    r"google.{0,20}imagen\b|^imagen\b|\bimagen.?[1-9]|openai|gemini|made with google ai|ideogram|leonardo\.ai",
    re.I,
)
# In a caption or a camera's name these words mean something else as well: Gemini is an observatory, dall'Etna a place
# in Italian, Firefly a camera.
_IN_TEXT = re.compile(
    r"stable.?diffusion|midjourney|dall[·_-]e\b|dall.?e ?[23]\b|novelai|comfyui|automatic1111|invokeai|fooocus|"
    r"made with google ai|leonardo\.ai",
    re.I,
)
_FREE = frozenset(
    "comment description imagedescription usercomment artist author copyright title make model lensmodel".split()
)
_PARAMETERS = re.compile(r"\bSteps: \d+.*\b(Sampler|CFG scale|Seed): ?", re.S)
_AI_SOURCE = re.compile(rb"(trainedAlgorithmicMedia|compositeWithTrainedAlgorithmicMedia|algorithmicMedia)")
_EXIF_SHOWN = {
    "Make": CAMERA, "Model": CAMERA, "LensModel": CAMERA, "DateTimeOriginal": CAMERA, "ExposureTime": CAMERA,
    "FNumber": CAMERA, "ISOSpeedRatings": CAMERA, "FocalLength": CAMERA, "Software": OTHER, "ImageDescription": OTHER,
    "Artist": OTHER, "Copyright": OTHER, "UserComment": OTHER,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One piece of metadata: its kind, its name and its (shortened) text."""

    kind: str
    name: str
    text: str


def read(path: Union[str, Path, bytes], limit: int = 64 << 20) -> List[Finding]:
    """The metadata of an image file.

    Parameters
    ----------
    path : str, Path or bytes
        The file as it was uploaded, or its content; a decoded image has lost most of its metadata.
    limit : int
        Largest number of bytes that are read.

    Returns
    -------
    list of Finding
        Traces of generators first. Damaged metadata is left out without an error.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    if isinstance(path, bytes):
        data = path
    else:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    whole, data = len(data) <= limit, data[:limit]
    found = []
    for part in (_texts, _exif):
        try:
            found += part(data)
        except Exception:  # noqa: BLE001 - damaged metadata, on which Pillow fails in many ways
            continue
    found += _credentials(data, whole)
    order = (GENERATOR, CREDENTIALS, CAMERA, OTHER)
    return sorted(dict.fromkeys(found), key=lambda f: order.index(f.kind))


def _short(value):
    text = " ".join(str(value).split())
    text = "".join(c for c in text if c.isprintable())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _kind_of_text(name, text):
    """``generator`` if a text's name or content shows that a generator wrote it, else ``other``."""
    named = _IN_TEXT if name.lower() in _FREE else _SOFTWARE
    if name.lower() in _TEXT_KEYS or _PARAMETERS.search(text) or named.search(text):
        return GENERATOR
    # ComfyUI writes "prompt:{...}" and "workflow:{...}" into the camera fields of WebP files.
    key = re.match(r"(\w+):(?=[{\[])", text)
    if key and key.group(1).lower() in _TEXT_KEYS:
        return GENERATOR
    if text[:1] in "{[":
        try:
            value = json.loads(text)
        except ValueError:
            return OTHER
        nodes = value.values() if isinstance(value, dict) else []
        if any(isinstance(n, dict) and "class_type" in n for n in nodes):
            return GENERATOR
    return OTHER


def _texts(data):
    try:
        values = _values(data)
    except Exception:  # a workflow may be too large for Pillow
        if not data.startswith(containers.PNG):
            raise
        values = dict(containers.png_texts(io.BytesIO(data)))
    for name, value in values.items():
        # Metadata of other kinds in hexadecimal digits; it may hold the position, which is not shown.
        if name == "XML:com.adobe.xmp" or name.startswith("Raw profile type "):
            continue
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        yield Finding(_kind_of_text(name, text), _short(name), _short(text))


def _values(data):
    """The texts of an image by name, as Pillow reads them."""
    with opening.pillow(io.BytesIO(data)) as image:
        if image.format == "PNG" and image.width * image.height <= LARGEST:
            image.load()  # there may be text after the pixels
        values = dict(getattr(image, "text", None) or {})
        for name in ("comment", "Comment"):
            if image.info.get(name):
                values[name] = image.info[name]
    return values


def _comment(value, order):
    """EXIF's UserComment, in which the first eight bytes name the encoding; ``order``: ``<`` or ``>``, of the file."""
    if not isinstance(value, bytes):
        return str(value)
    head, body = value[:8], value[8:]
    if head.startswith(b"UNICODE"):
        return body.decode(_utf16(body, order), "replace").strip("\0")
    return body.decode("utf-8", "replace").strip("\0")


def _utf16(body, order):
    """The codec of a UTF-16 text. Few writers keep the file's byte order, but every second byte of Latin text is 0."""
    if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return "utf-16"
    big, little = body[::2].count(0), body[1::2].count(0)
    return "utf-16-be" if big > little or (big == little and order == ">") else "utf-16-le"


def _exif(data):
    with images.opened(io.BytesIO(data)) as image:  # HEIC, too, if there is something to read it
        exif = image.getexif()
    values = {**exif, **exif.get_ifd(0x8769)}
    for tag, value in sorted(values.items()):
        name = ExifTags.TAGS.get(tag, "")
        if name not in _EXIF_SHOWN or value in (None, "", b""):
            continue
        text = _short(_comment(value, exif.endian) if name == "UserComment" else value).strip("\0 ")
        if text:
            kind = _kind_of_text(name, text)
            yield Finding(kind if kind == GENERATOR else _EXIF_SHOWN[name], name, text)
    if exif.get_ifd(0x8825):
        # The place where a photograph was taken is private, so it is not shown.
        yield Finding(CAMERA, "GPS", "present, not shown")


def _verified(data, whole):
    """The signature of a manifest, and what is said of it."""
    if not whole:
        return credentials.Signature(""), "its signature was not verified: the file is too large"
    signature = credentials.verify(data)
    said = {
        "trusted": "its signature is valid and the signer trusted",
        "valid": "its signature is valid, the signer is in no list of trusted ones",
        "invalid": f"its signature is NOT VALID: {signature.reason}",
    }
    return signature, said.get(signature.state, f"its signature was not verified: {signature.reason}")


def _credentials(data, whole):
    """C2PA manifests and whether their signature holds, and the IPTC digital source type."""
    store, stated = credentials.find(data), set()
    if store is not None:
        try:
            said = credentials.read(store)
        except ValueError:
            yield Finding(CREDENTIALS, "C2PA", "manifest present, could not be read")
        else:
            signature, verdict = _verified(data, whole)
            who = [f"made with {said.generator}"] * bool(said.generator)
            if signature.signer:
                who.append(f"signed by {signature.signer}")
            elif said.signer:
                who.append(f"signed in the name of {said.signer}")
            text = ", ".join(["manifest present", *who])
            kind = GENERATOR if _SOFTWARE.search(said.generator) else CREDENTIALS
            yield Finding(kind, "C2PA", _short(f"{text}; {verdict}"))
            for action, source, agent in said.actions:
                kind = GENERATOR if _AI_SOURCE.fullmatch(source.encode()) or _SOFTWARE.search(agent) else CREDENTIALS
                stated.add(source)
                words = [source, f"by {agent}" if agent else ""]
                words += ["(in a manifest that is not valid)"] * (signature.state == "invalid")
                yield Finding(kind, _short(f"C2PA {action}".strip()), _short(" ".join(w for w in words if w)))
    match = _AI_SOURCE.search(data)
    if match and match.group().decode() not in stated:
        yield Finding(GENERATOR, "DigitalSourceType", match.group().decode())
