"""Content credentials (C2PA): what a manifest says about how an image was made, and whether its signature holds.

:func:`read` verifies nothing. :func:`verify` does, with the package c2pa-python (``aidet[c2pa]``). That package is an
extra: it is 50 MB, needs Python 3.10 and has no build for every platform. So this file reads manifests itself, with or
without it, and what the page says of a file differs in the signature only.

The manifest store is a tree of JUMBF boxes (ISO/IEC 19566-5) whose claims and assertions are CBOR (RFC 8949). The C2PA
technical specification says where a file contains the store ("Embedding manifests into various file formats") and how
its boxes are named ("Claims"). Compressed manifests, and those outside the file, are not read.
"""

import importlib.util
import io
import os
import re
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Dict, List, Optional, Tuple

DEEPEST = 24  # maximum nesting depth of boxes or values
MOST = 12  # maximum number of actions that are kept
LARGEST = 16 << 20  # maximum size of a store in bytes; a genuine one contains a few small pictures and texts
# X.520 organizationName in a certificate; the name's length and the name follow it.
_ORGANISATION = re.compile(rb"\x06\x03\x55\x04\x0a[\x0c\x13\x14\x16](.)", re.S)


@dataclass
class Credentials:
    """What the manifests of one file say.

    Attributes
    ----------
    generator : str
        The program that made the active manifest, ``""`` if it names none.
    signer : str
        Organisation in the signer's certificate, unverified.
    actions : list of (str, str, str)
        Action (``c2pa.created``), digital source type without its address, software. Those of the active manifest
        come first, then those of the images that it was made from.
    """

    generator: str = ""
    signer: str = ""
    actions: List[Tuple[str, str, str]] = field(default_factory=list)


# A file with the certificates (PEM) of those whose signatures are trusted, such as the C2PA trust list.
TRUST = "AIDET_C2PA_TRUST"
# Nothing is fetched: neither manifests that lie elsewhere nor the state of certificates.
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}}
_TYPES = (
    (0, b"\xff\xd8\xff", "image/jpeg"), (0, b"\x89PNG", "image/png"), (8, b"WEBP", "image/webp"),
    (0, b"GIF8", "image/gif"), (0, b"II*\0", "image/tiff"), (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavi", "image/avif"), (4, b"ftyp", "image/heic"), (4, b"JXL ", "image/jxl"),
)  # fmt: skip
_CHANGED = {
    "assertion.dataHash.mismatch": "the image was changed after it was signed",
    "assertion.bmffHash.mismatch": "the image was changed after it was signed",
    "assertion.boxesHash.mismatch": "the image was changed after it was signed",
    "assertion.hashedURI.mismatch": "the manifest was changed after it was signed",
    "claimSignature.mismatch": "the manifest was changed after it was signed",
    "signingCredential.expired": "the signer's certificate had expired",
    "signingCredential.invalid": "the signer's certificate is not fit for it",
}


@dataclass(frozen=True)
class Signature:
    """What became of verifying the active manifest.

    Attributes
    ----------
    state : {"trusted", "valid", "invalid", ""}
        ``valid``: image and manifest are as they were signed, but no list of trusted signers says who the signer is.
        ``""``: not verified.
    reason : str
        Why it is invalid or was not verified.
    signer : str
        Organisation in the certificate whose signature holds, else ``""``.
    """

    state: str
    reason: str = ""
    signer: str = ""


def verify(data: bytes, trust: Optional[str] = None) -> Signature:
    """Verify the signature of the active manifest inside a file, without a network.

    Parameters
    ----------
    data : bytes
        The whole file.
    trust : str, optional
        Path of a file with the certificates (PEM) of trusted signers; default: the environment variable
        ``AIDET_C2PA_TRUST``.
    """
    if not _installed():
        return Signature("", "pip install 'aidet[c2pa]' verifies it")
    kind = next((name for place, start, name in _TYPES if data.startswith(start, place)), None)
    if kind is None:
        return Signature("", "in files of this format it cannot be")
    import c2pa

    settings: Dict[str, Any] = dict(_OFFLINE)
    path = os.environ.get(TRUST) if trust is None else trust
    if path:
        try:
            with open(path, encoding="ascii") as file:
                settings["trust"] = {"trust_anchors": file.read()}
        except (OSError, ValueError) as error:
            return Signature("", f"the list of trusted signers {path!r} cannot be read: {error}")
    try:
        with c2pa.Reader(kind, io.BytesIO(data), context=c2pa.Context.from_dict(settings)) as reader:
            return _judged(reader)
    except Exception as error:  # noqa: BLE001 - of types that the package does not name, for damaged files
        return Signature("", " ".join(str(error).split())[:120])


@cache
def _installed() -> bool:
    return importlib.util.find_spec("c2pa") is not None


def _judged(reader: Any) -> Signature:
    """The :class:`Signature` of what the package found."""
    state = {"Trusted": "trusted", "Valid": "valid"}.get(str(reader.get_validation_state()), "invalid")
    if state == "invalid":
        results = (reader.get_validation_results() or {}).get("activeManifest") or {}
        codes = [str(entry.get("code")) for entry in results.get("failure") or []]
        code = next((c for c in codes if c != "signingCredential.untrusted"), "unknown")
        return Signature(state, next((_CHANGED[c] for c in codes if c in _CHANGED), code))
    info = (reader.get_active_manifest() or {}).get("signature_info") or {}
    return Signature(state, "", str(info.get("issuer") or ""))


def find(data: bytes) -> Optional[bytes]:
    """The manifest store of a file.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, WebP, or another format that stores the boxes in one piece (AVIF, HEIF, TIFF).

    Returns
    -------
    bytes or None
        JUMBF boxes; None if the file has no store.
    """
    if data[:2] == b"\xff\xd8":
        store = _of_jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        store = next((body for kind, body in _chunks(data, 8, ">", True) if kind == b"caBX"), b"")
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        store = next((body for kind, body in _chunks(data, 12, "<", False) if kind == b"C2PA"), b"")
    else:
        place = data.find(b"jumb")
        store = data[place - 4 :] if place >= 4 else b""
    return store if b"jumb" in store[:64] and b"c2pa" in store else None


def read(store: bytes) -> Credentials:
    """Read a manifest store.

    Parameters
    ----------
    store : bytes
        From :func:`find`.

    Returns
    -------
    Credentials

    Raises
    ------
    ValueError
        The boxes are damaged or their type is not supported.
    """
    if len(store) > LARGEST:
        raise ValueError("manifest store too large")
    try:
        return _said([content for _, content in _tree(store, DEEPEST)[0][1] if isinstance(content, list)])
    except (IndexError, TypeError, struct.error):
        raise ValueError("damaged manifest store") from None


def _said(manifests):
    """The :class:`Credentials` of a list of manifests, of which the last is the active one."""
    if not manifests:
        raise ValueError("no manifest that can be read")
    found = Credentials()
    for manifest in reversed(manifests):
        parts = dict(manifest)
        if manifest is manifests[-1]:
            found.generator = _maker(_values(parts.get("c2pa.claim.v2") or parts.get("c2pa.claim")))
            found.signer = _signer(_values(parts.get("c2pa.signature"), whole=True))
        for name, content in parts.get("c2pa.assertions") or []:
            if name.startswith("c2pa.actions"):
                found.actions += _actions(_values(content))
    found.actions = list(dict.fromkeys(found.actions))[:MOST]
    return found


# --- where the store is ----------------------------------------------------------------------------------------------
def _of_jpeg(data):
    """The store from its APP11 segments: the header of the first box is repeated in every segment it is split into."""
    pieces = {}
    for marker, body in _segments(data):
        if marker == 0xEB and body[:2] == b"JP" and len(body) >= 16:
            number, order = struct.unpack(">HI", body[2:8])
            pieces.setdefault(number, []).append((order, body[8:]))
    for parts in pieces.values():
        first, *rest = [body for _, body in sorted(parts, key=lambda p: p[0])]
        head = 16 if first[:4] == b"\0\0\0\1" else 8
        store = first + b"".join(body[head:] for body in rest)
        if b"c2pa" in store:
            return store
    return b""


def _segments(data):
    """(marker, content) of each JPEG segment before the pixels."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        size = struct.unpack_from(">H", data, place + 2)[0]
        yield data[place + 1], data[place + 4 : place + 2 + size]
        place += 2 + max(size, 2)


def _chunks(data, place, order, size_first):
    """(name, body) of each chunk of a PNG (size, name, body, CRC) or RIFF file (name, size, body, padded to even)."""
    while place + 8 <= len(data):
        first, second = data[place : place + 4], data[place + 4 : place + 8]
        name, size = (second, first) if size_first else (first, second)
        size = struct.unpack(order + "I", size)[0]
        yield name, data[place + 8 : place + 8 + size]
        place += 8 + size + (4 if size_first else size % 2)


# --- boxes -----------------------------------------------------------------------------------------------------------
def _boxes(data):
    """(type, body) of each of several consecutive boxes."""
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, place + 8)[0], 16
        size = size or len(data) - place
        if size < head:
            raise ValueError("a box shorter than its head")
        yield kind, data[place + head : place + size]
        place += size


def _tree(data, depth):
    """[(label, content)] of superboxes; content is a subtree, or the bytes of the first box that is not a superbox."""
    if not depth:
        raise ValueError("boxes too deep inside each other")
    out = []
    for kind, body in _boxes(data):
        if kind != b"jumb":
            continue
        inner = list(_boxes(body))
        label = inner[0][1][17:].split(b"\0")[0].decode("utf-8", "replace")
        if any(k == b"jumb" for k, _ in inner):
            out.append((label, _tree(body, depth - 1)))
        else:
            out.append((label, next((b for k, b in inner[1:] if k == b"cbor"), b"")))
    return out


# --- what the boxes say ----------------------------------------------------------------------------------------------
def _values(content, whole=False):
    """The CBOR map of a box, or an empty one if it is missing or damaged. ``whole``: the list of a signature."""
    if isinstance(content, bytes) and content:
        try:
            value = _cbor(content, 0, DEEPEST)[0]
        except (IndexError, TypeError, ValueError, struct.error):
            value = None
        if isinstance(value, list if whole else dict):
            return value
    return [] if whole else {}


def _maker(claim):
    """Name and version of the program that wrote a claim."""
    info = claim.get("claim_generator_info")
    info = info[0] if isinstance(info, list) and info else info
    if isinstance(info, dict) and info.get("name"):
        return " ".join(str(info[k]) for k in ("name", "version") if info.get(k))
    return str(claim.get("claim_generator") or "")


def _actions(assertion):
    """Actions that name a source type or a program."""
    listed = assertion.get("actions")
    for action in listed if isinstance(listed, list) else []:
        if not isinstance(action, dict):
            continue
        agent = action.get("softwareAgent")
        agent = agent.get("name") if isinstance(agent, dict) else agent
        source = str(action.get("digitalSourceType") or "").rstrip("/").rsplit("/", 1)[-1]
        if source or agent:
            yield str(action.get("action") or ""), source, str(agent or "")


def _signer(signature):
    """The organisation that the signer's certificate was issued to: the last one named in it, after the issuer."""
    protected, unprotected = (*signature, None, None)[:2]
    heads = [_values(protected) if isinstance(protected, bytes) else {}, unprotected]
    for head in heads:
        chain = (head.get(33) or head.get("x5chain")) if isinstance(head, dict) else None
        leaf = chain[0] if isinstance(chain, list) and chain else chain
        if isinstance(leaf, bytes):
            names = [leaf[m.end() : m.end() + m.group(1)[0]] for m in _ORGANISATION.finditer(leaf)]
            return names[-1].decode("utf-8", "replace") if names else ""
    return ""


def _cbor(data, place, depth):
    """(value, offset after it) of the CBOR item at ``place``; tags are dropped, and unknown items become None."""
    if not depth:
        raise ValueError("values too deep inside each other")
    kind, size = data[place] >> 5, data[place] & 31
    place += 1
    if kind == 7:
        if size < 24:
            return {20: False, 21: True}.get(size), place
        width = 1 << (size - 24)
        value = struct.unpack_from({2: ">e", 4: ">f", 8: ">d"}[width], data, place)[0] if width in (2, 4, 8) else None
        return value, place + width
    if 24 <= size <= 27:
        width = 1 << (size - 24)
        size, place = int.from_bytes(data[place : place + width], "big"), place + width
    elif size == 31 and 2 <= kind <= 5:
        size = None  # indefinite length, up to a break
    elif size > 27:
        raise ValueError("not CBOR")
    if kind < 2:
        return (size if kind == 0 else -1 - size), place
    if kind == 6:
        return _cbor(data, place, depth - 1)
    if kind < 4 and size is not None:
        if place + size > len(data):
            raise ValueError("a string longer than the data")
        text = data[place : place + size]
        return (text if kind == 2 else text.decode("utf-8", "replace")), place + size
    items = []
    while len(items) < (len(data) if size is None else size * (2 if kind == 5 else 1)):
        if size is None and data[place] == 0xFF:
            place += 1
            break
        value, place = _cbor(data, place, depth - 1)
        items.append(value)
    if kind < 4:
        return (b"" if kind == 2 else "").join(items), place
    if kind == 4:
        return items, place
    return {k: v for k, v in zip(items[::2], items[1::2]) if isinstance(k, (str, int, bytes))}, place
