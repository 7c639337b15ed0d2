"""The application without a browser: reading uploads within limits, metadata, pictures, cards, the service."""

import base64
import copy
import html
import io
import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from app_tools import make_onnx
from infer_tools import make_model
from localize_tools import make_localizer, scene
from PIL import Image, PngImagePlugin

import app
from aidet import Detector, images, labels, records, runtime
from aidet.app import cards, credentials, examples, metadata, pictures, server, service, style, uploads, words
from aidet.detector import default, detector, vote
from aidet.errors import UserError
from aidet.labels import zone_around

TINY = uploads.Limits(images=3, megabytes=1, upload_megabytes=2, total_megabytes=2, pixels=10_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    own = make_onnx(folder)
    local = make_localizer(folder / "local.onnx")
    return service.Service([own], limits=uploads.Limits(), votes=3, workers=2, localizer=local)


def png(image, **text):
    info = PngImagePlugin.PngInfo()
    for name, value in text.items():
        info.add_text(name, value)
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def archive(path, entries, **more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **more) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


# --- uploads ---------------------------------------------------------------------------------------------------------
def test_a_zip_is_read_in_natural_order_and_never_unpacked(tmp_path, photo):
    data = png(photo(1, (20, 20)))
    names = [
        "b/10.png",
        "b/2.png",
        "../../evil.png",
        "/abs.png",
        "b/notes.txt",
        "__MACOSX/._2.png",
        ".hidden/1.png",
        "b/",
    ]
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    path = archive(tmp_path / "a.zip", [*((n, data) for n in names), (link, "/etc/passwd")])
    before = sorted(tmp_path.rglob("*"))
    batch = uploads.Batch([path])
    assert [name for name, _ in batch] == ["../../evil.png", "/abs.png", "b/2.png", "b/10.png"]
    assert all(isinstance(source, io.BytesIO) and images.decode(source).size == (20, 20) for _, source in batch)
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize(
    "name, codec", [("照片/一只猫.png", "gbk"), ("照片/猫.png", "utf-8"), ("Größe.png", "cp437"), ("été.png", "cp437")]
)
def test_names_in_an_archive_without_the_mark_of_utf_8(tmp_path, photo, name, codec):
    """Chinese Windows writes GBK; zipfile takes all such names for CP437."""
    raw = name.encode(codec)
    path = archive(tmp_path / "a.zip", [("#" * len(raw), png(photo(1, (20, 20)))), ("%" * len(raw), b"x")])
    data = path.read_bytes().replace(b"#" * len(raw), raw).replace(b"%" * len(raw), raw[:-3] + b"txt")
    path.write_bytes(data)
    batch = uploads.Batch([path])
    assert [(shown, images.decode(source).size) for shown, source in batch] == [(name, (20, 20))]
    assert batch.left_out == [(name[:-3] + "txt", "kind")]


def reasons(batch):
    """The error message when each source is decoded; None if decoding works."""
    found = []
    for _, source in batch:
        try:
            images.decode(source)
            found.append(None)
        except images.ImageError as error:
            found.append(str(error))
    return found


def test_limits_are_a_row_of_the_file_and_not_the_end_of_the_batch(tmp_path, photo):
    photo(1, (200, 100)).save(tmp_path / "large.png")
    (tmp_path / "heavy.bmp").write_bytes(b"BM" + bytes(1 << 20))
    photo(2, (20, 20)).save(tmp_path / "fine.png")
    files = [tmp_path / n for n in ("large.png", "heavy.bmp", "fine.png")]
    large, heavy, fine = reasons(uploads.Batch(files, limits=TINY))
    assert large.startswith("200x100 pixels, more than the limit of 10000; ") and "--max-pixels" in large
    assert heavy == "1.0 MB, more than the limit of 1 MB"
    assert fine is None


def test_a_bomb_is_not_unpacked_beyond_the_limit(tmp_path, photo):
    zeros = archive(tmp_path / "bomb.zip", [(f"{i}.bmp", b"BM" + bytes(50 << 20)) for i in range(2)])
    assert zeros.stat().st_size < 1 << 20
    assert reasons(uploads.Batch([zeros], limits=TINY)) == [
        "unpacks to more than the limit of 1 MB",
        "over the limit of 2 MB of one batch",
    ]
    # A stated size is not trusted, even if it is small: the unpacked bytes are counted.
    lying = bytearray(archive(tmp_path / "lie.zip", [("a.bmp", b"BM" + bytes(3 << 20))]).read_bytes())
    place = lying.index(b"PK\x01\x02")
    lying[place + 24 : place + 28] = struct.pack("<I", 100)
    (tmp_path / "lie.zip").write_bytes(lying)
    assert reasons(uploads.Batch([tmp_path / "lie.zip"], limits=TINY)) != [None]


def test_a_batch_has_a_total(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "BMP")
    data = out.getvalue() + bytes(900_000 - len(out.getvalue()))
    path = archive(tmp_path / "a.zip", [(f"{i}.bmp", data) for i in range(3)])
    assert reasons(uploads.Batch([path], limits=TINY))[:2] == [None, None]
    assert "limit of" in reasons(uploads.Batch([path], limits=TINY))[2]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda p: archive(p, [(f"{i}.png", b"x") for i in range(4)]), "4 images, more than the limit of 3"),
        (lambda p: archive(p, [("readme.txt", b"x")]), "no image in it"),
        (lambda p: p.write_bytes(b"PK\x03\x04 broken"), "is not a zip archive that can be read"),
    ],
)
def test_archives_that_are_refused_whole(tmp_path, make, text):
    path = tmp_path / "a.zip"
    make(path)
    with pytest.raises(UserError, match=text):
        uploads.Batch([path], limits=TINY)


def test_an_encrypted_archive_is_refused(tmp_path):
    data = bytearray(archive(tmp_path / "a.zip", [("a.png", b"x")]).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        uploads.Batch([tmp_path / "a.zip"])


def test_names_keep_no_folder_and_no_control_characters():
    assert uploads.safe_name("C:\\x\\..\\a\n\x00b.png") == "ab.png"
    assert uploads.safe_name("/") == "image"


def test_what_an_archive_holds_beside_images_is_counted_and_named(served, tmp_path, photo):
    names = ["1.png", "notes.txt", "__MACOSX/._1.png", "raw.cr2", "a/", "a/b.csv", "a/c.md", "a/d.pdf"]
    path = archive(
        tmp_path / "a.zip", [(n, png(photo(1, (20, 20)))) for n in names[:1]] + [(n, b"x") for n in names[1:]]
    )
    left = served.batch([path]).left_out
    assert left == [(n, "hidden" if "MACOSX" in n else "kind") for n in names[1:] if n != "a/"]
    assert cards.left_out("en", left).replace("\\", "") == (  # without what makes Markdown of a name harmless
        "Left out of the archives (6): notes.txt (not an image), __MACOSX/._1.png (hidden), raw.cr2 (not an "
        "image), a/b.csv (not an image), a/c.md (not an image), and 1 more."
    )
    assert cards.left_out("en", []) == "" and "a/d.pdf" in cards.left_out("zh", left, most=9)
    rude = cards.left_out("en", [("<b>*x*</b>.txt", "kind")])
    assert "<b>" not in rude and "*x*" not in rude


# --- metadata --------------------------------------------------------------------------------------------------------
PARAMETERS = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"


def found(data):
    return [(f.kind, f.name) for f in metadata.read(data)]


def test_generators_are_recognised(photo):
    image = photo(1, (20, 20))
    comfy = json.dumps({"3": {"class_type": "KSampler", "inputs": {}}})
    assert found(png(image, parameters=PARAMETERS)) == [("generator", "parameters")]
    assert found(png(image, prompt=comfy, workflow="{}")) == [("generator", "prompt"), ("generator", "workflow")]
    assert found(png(image, Title=comfy)) == [("generator", "Title")]
    assert found(png(image, Software="NovelAI")) == [("generator", "Software")]
    assert found(png(image, Author="someone")) == [("other", "Author")]
    out = io.BytesIO()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    image.save(out, "JPEG", exif=exif)
    assert found(out.getvalue()) == [("generator", "UserComment")]
    assert metadata.read(out.getvalue())[0].text == PARAMETERS.replace("\n", " ")


def test_a_picture_beyond_pillows_limit_has_its_comment_read(photo):
    out = io.BytesIO()
    photo(1, (20, 20)).save(out, "JPEG", comment=PARAMETERS)
    size = out.getvalue().index(b"\xff\xc0") + 5  # of the picture: 400 million pixels
    large = out.getvalue()[:size] + struct.pack(">2H", 20_000, 20_000) + out.getvalue()[size + 4 :]
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(large))
    assert found(large) == found(out.getvalue()) == [("generator", "comment")]


def test_a_camera_is_shown_and_its_position_is_not(photo):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "EOS"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 30.0)
    out = io.BytesIO()
    photo(1, (20, 20)).save(out, "JPEG", exif=exif)
    assert found(out.getvalue()) == [("camera", "Make"), ("camera", "Model"), ("camera", "GPS")]
    assert all("48" not in f.text for f in metadata.read(out.getvalue()))


# Made with c2pa-python 0.38.1 and a self-made certificate: a generator's manifest in a JPEG of 48 x 36 pixels.
SIGNED = Path(__file__).parents[1] / "data" / "app" / "c2pa.jpg"


def with_store(kind, data, store):
    """Put a C2PA store where the specification requires it; in a JPEG it is split into segments."""
    if kind == "JPEG":
        pieces = [store[:20000], *(store[i : i + 20000] for i in range(20000, len(store), 20000))]
        out = b""
        for number, piece in enumerate(pieces, 1):
            head = store[:8] if number > 1 else b""
            body = b"JP\0\x01" + struct.pack(">I", number) + head + piece
            out += b"\xff\xeb" + struct.pack(">H", len(body) + 2) + body
        return data[:2] + out + data[2:]
    if kind == "PNG":
        return data[:33] + struct.pack(">I", len(store)) + b"caBX" + store + bytes(4) + data[33:]
    return data + b"C2PA" + struct.pack("<I", len(store)) + store


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_content_credentials_are_found(photo, kind, monkeypatch):
    out = io.BytesIO()
    photo(1, (20, 20)).save(out, kind)
    assert found(out.getvalue()) == []
    store = credentials.find(SIGNED.read_bytes())
    assert len(store) > 40000
    signed = with_store(kind, out.getvalue(), store)
    monkeypatch.setattr(credentials, "_installed", lambda: False)  # the store was signed for another image
    assert metadata.read(signed) == metadata.read(SIGNED)
    xmp = b"<x>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</x>"
    assert found(out.getvalue() + xmp) == [("generator", "DigitalSourceType")]


def test_a_manifest_says_who_made_the_image_and_how(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(credentials, "_installed", lambda: False)
    generator, manifest = metadata.read(SIGNED)
    assert (generator.kind, generator.name) == ("generator", "C2PA c2pa.created")
    assert generator.text == "trainedAlgorithmicMedia by Example Diffusion 9"
    assert manifest.text == (
        "manifest present, made with Example Painter 3.1, signed in the name of Example Pictures Ltd; "
        "its signature was not verified: pip install 'aidet[c2pa]' verifies it"
    )
    record = detector.Verdict("a", -2.0, 0.12, 0, "real")
    for language, words_of in (("en", "metadata name a generator"), ("zh", "写有生成工具")):
        assert words_of in cards.verdict(language, record, 0.5, (0.4, 0.6), [generator])
        assert words_of not in cards.verdict(language, record, 0.5, (0.4, 0.6), [manifest])


def box(kind, body):
    return struct.pack(">I", len(body) + 8) + kind + body


def named(label, *inside):
    return box(b"jumb", box(b"jumd", bytes(16) + b"\x03" + label + b"\0") + b"".join(inside))


def test_a_manifest_of_the_first_version_with_its_ingredients():
    """Claims of C2PA 1: one text for the program; an image's own manifest is last, after those of its ingredients."""
    text = b"made by hand/1 c2pa-rs/0.1"
    claim = b"\xa1\x6fclaim_generator" + bytes([0x78, len(text)]) + text
    # {"actions": [_ {"action": "c2pa.created", "digitalSourceType": ".../compositeWith...", 1: 1.5, 2: true}]}
    url = b"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    action = b"\xa4\x66action\x6cc2pa.created\x71digitalSourceType" + bytes([0x78, len(url)]) + url
    action += b"\x01\xfb" + struct.pack(">d", 1.5) + b"\x02\xf5"
    actions = b"\xa1\x67actions\x9f" + action + b"\xff"
    first = named(b"urn:uuid:1", named(b"c2pa.assertions", named(b"c2pa.actions", box(b"cbor", actions))))
    last = named(b"urn:uuid:2", named(b"c2pa.claim", box(b"cbor", claim)))
    said = credentials.read(named(b"c2pa", first, last))
    assert (said.generator, said.signer) == (text.decode(), "")
    assert said.actions == [("c2pa.created", "compositeWithTrainedAlgorithmicMedia", "")]


@pytest.mark.parametrize("program, kind", [("Midjourney/7", "generator"), ("Photo Editor/2", "credentials")])
def test_a_manifest_may_name_a_generator_and_no_actions(photo, program, kind):
    claim = b"\xa1\x6fclaim_generator" + bytes([0x60 + len(program)]) + program.encode()
    store = named(b"c2pa", named(b"urn:uuid:1", named(b"c2pa.claim", box(b"cbor", claim))))
    data = with_store("PNG", png(photo(1, (20, 20))), store)
    assert [(f.kind, f"made with {program};" in f.text) for f in metadata.read(data)] == [(kind, True)]


@pytest.mark.parametrize(
    "store", [named(b"c2pa"), named(b"c2pa", box(b"cbor", b"\xa0")), box(b"jumb", b"c2pa"), b"\0\0\0\x04jumbc2pa"]
)
def test_a_store_that_cannot_be_read_is_still_said_to_be_there(photo, store):
    data = with_store("PNG", png(photo(1, (20, 20))), store)
    assert [f.text for f in metadata.read(data)] == ["manifest present, could not be read"]


def test_deep_or_endless_boxes_end():
    nested = b"c2pa"
    for _ in range(100):
        nested = named(b"c2pa", nested)
    lists = named(b"c2pa", named(b"m", named(b"c2pa.claim", box(b"cbor", b"\x9f" * 100000)), named(b"x", named(b"y"))))
    with pytest.raises(ValueError, match="too deep"):
        credentials.read(nested)
    with pytest.raises(ValueError, match="too large"):
        credentials.read(bytes(credentials.LARGEST + 1))
    assert credentials.read(lists).generator == ""


def test_damaged_credentials_say_nothing_wrong():
    data = SIGNED.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(data[: int(rng.integers(1, len(data)))])
        for place in rng.integers(0, len(broken), 30):
            broken[place] = int(rng.integers(0, 256))
        metadata.read(bytes(broken))


def test_damaged_metadata_says_nothing(photo):
    data = png(photo(1, (30, 30)), parameters=PARAMETERS)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data[: int(rng.integers(1, len(data)))])
        for place in rng.integers(0, len(broken), 5):
            broken[place] = int(rng.integers(0, 256))
        metadata.read(bytes(broken))
    assert metadata.read(b"") == [] and metadata.read(b"\xff\xd8\xff\xeb\0\0") == []


# --- pictures, cards, words ------------------------------------------------------------------------------------------
def test_the_spectrum_shows_a_period(photo):
    image = np.asarray(photo(1, (128, 128))).astype(np.int16)
    image[:, ::4] += 20  # a pattern of period 4 along x: a point at a quarter of the sampling rate
    marked = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    row = np.asarray(pictures.spectrum(marked))[64]
    assert row[64 + 32] == 255 == row[64 - 32]
    assert np.asarray(pictures.spectrum(photo(1, (128, 128))))[64, 96] < 255


def test_pictures_of_a_single_pixel():
    dot = Image.new("RGB", (1, 1), (9, 9, 9))
    assert pictures.spectrum(dot).size == pictures.residual(dot).size == (1, 1)
    assert pictures.overlay(np.zeros((8, 8)), dot).size == (1, 1)


def test_the_overlay_colours_what_speaks_for_generated():
    heat = np.zeros((8, 8))
    heat[:, :4], heat[:, 4:] = 1, -1
    made = np.asarray(pictures.overlay(heat, Image.new("RGB", (64, 64), (128, 128, 128))))
    assert made[32, 8, 0] > made[32, 8, 2] and made[32, 56, 2] > made[32, 56, 0]


@pytest.mark.parametrize(
    "p, text", [(0.0, "<0.1%"), (0.004, "0.4%"), (0.5, "50%"), (0.996, "99.6%"), (0.9999, ">99.9%"), (1.0, ">99.9%")]
)
def test_percent_never_says_certain(p, text):
    assert cards.percent(p) == text


def test_names_and_metadata_are_escaped(served, photo, tmp_path):
    photo(1).save(tmp_path / "a.png")
    bad = "<img src=x onerror=alert(1)>"
    record = served.verdict(tmp_path / "a.png", f"{bad}.png")
    page = cards.verdict("en", record, 0.5, (0.4, 0.6)) + cards.metadata("en", [metadata.Finding("other", bad, bad)])
    broken = cards.verdict("zh", served.verdict(tmp_path / "a.png", bad), 0.5, (0.4, 0.6))
    assert "<img" not in page + broken and "&lt;img" in page


def test_a_file_name_is_no_formula_of_a_spreadsheet():
    rows = [["=1+1.png", "-1.5", "0.18", 0, "real", "ok"], ["-x.png", "", "", "", "", "error: @home"]]
    link = cards.csv_link("en", rows, records.COLUMNS, "scores.csv")
    text = base64.b64decode(link.split("base64,")[1].split('"')[0]).decode("utf-8-sig")
    assert text.splitlines()[1:] == ["'=1+1.png,-1.5,0.18,0,real,ok", "'-x.png,,,,,error: @home"]


ZONES = ((0.5, (0.378, 0.622)), (0.5, (0.5, 0.5)), (0.97, (0.951, 0.981)), (0.9, (0.1, 0.2)), (0.5, (0.0, 1.0)),
         (1 / 3, (0.3, 0.4)),
         (0.0005, (0.0003, 0.0008)), (0.9995, (0.9991, 0.9998)), (0.0, (0.0, 0.0)), (1.0, (1.0, 1.0)))  # fmt: skip


@pytest.mark.parametrize("threshold, zone", ZONES)
def test_a_verdict_never_contradicts_itself(threshold, zone):
    """The word, the sentence with its numbers as they are written, and what is said of re-saved versions agree."""
    near = [b + d for b in (threshold, *zone) for d in (-1e-3, -1e-4, -1e-6, 0, 1e-6, 1e-4, 1e-3)]
    grid = [p for p in (*np.linspace(0.001, 0.999, 97), 1e-6, 1 - 1e-6, 0.4996, 0.5004, *near) if 0 < p < 1]
    for p in grid:
        label, decision = labels.decide(p, threshold, zone)
        versions = dict(zip(("original", "a", "b", "c"), (p, p, min(p + 0.01, 1 - 1e-9), max(p - 0.01, 1e-9))))
        record = detector.Verdict("a.png", float(labels.logit(p)), p, label, decision, stability=versions)
        card = cards.verdict("en", record, threshold, zone)
        assert f"<h2>{words.say('en', decision)}</h2>" in card and f'data-decision="{decision}"' in card
        text = html.unescape(re.search(r"Probability of generated: (.*?)</p>", card).group(1))
        said, rest = re.fullmatch(r"<b>(.+?)%</b>, (.*)", text).groups()
        low, high = (0, 0.1) if said[0] == "<" else (99.9, 100) if said[0] == ">" else (float(said), float(said))
        stated = [float(n) for n in re.findall(r"([\d.]+)%", rest)]
        if decision == "unsure":
            assert rest.startswith("in the unsure zone") and stated[0] <= high and low <= stated[1], (p, text)
        elif "exactly" in rest:
            assert p == threshold and decision == "real"
        elif decision == "generated":
            assert rest.startswith("above") and low >= stated[0] and (low, high) != (stated[0],) * 2, (p, text)
        else:
            assert rest.startswith("below") and high <= stated[0] and (low, high) != (stated[0],) * 2, (p, text)
        others = sum(labels.decide(v, threshold, zone)[1] != decision for k, v in versions.items() if k != "original")
        assert ("the same verdict" in card) == (others == 0)
        assert (f"Weak: {others} of 3 re-saved" in card) == (others > 0)


def test_a_large_image_is_resaved_in_its_middle_and_says_so(served, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "RESAVED", 3000)
    image = photo(1, (120, 100))
    assert service.middle(image).size == (60, 50) and service.middle(photo(1, (60, 50))).size == (60, 50)
    image.save(tmp_path / "a.png")
    found = served.verdict(tmp_path / "a.png", "a.png")
    alone = served.detector.score(tmp_path / "a.png", root=tmp_path)
    assert found.score == alone.score  # the verdict is still that of the whole image
    part = served.resaved(service.middle(image), "a.png")
    assert found.stability == part
    found.prob, found.stability = 0.9, dict.fromkeys(part, 0.1)  # the middle looks otherwise than the whole
    assert service.flips(found, 0.5) == [name for name in part if name != "original"]
    assert "Weak: 6 of 6" in cards.verdict("en", found, 0.5, (0.5, 0.5))
    assert "made from the middle of this large image, 60 x 50" in cards.verdict(
        "en", found, 0.5, (0.4, 0.6), part="60 x 50"
    )


def luminance(colour):
    """Relative luminance, WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode, colours", [("light", style.LIGHT), ("dark", style.DARK)])
def test_every_text_has_contrast(mode, colours):
    """WCAG 2 AA; badges are written in the colour of the ground on the colour of the verdict."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for name in ("text", "soft", "real", "generated", "unsure", "error"):
        for ground in (colours["ground"], style.PAGE[mode]):
            assert contrast(colours[name], ground) >= 4.5, (mode, name, ground)
    assert all(f"--ai-{name}: {colours[name]}" in style.CSS for name in colours)
    assert "opacity" not in re.sub(r"\.aidet-tick {[^}]*}", "", style.CSS)  # would lower the contrast of a text


def test_the_examples_are_what_they_are_called(tmp_path):
    found = examples.found(tmp_path)
    assert [e.caption for e in found[:2]] == ["example_hedgehog", "example_sofa"]
    for example in found:
        kind, _, what = words.say("en", example.caption).partition(": ")
        assert kind == ("generated" if example in found[:2] else "photograph") and what
        with Image.open(example.thumbnail) as small:
            assert max(small.size) <= 2 * examples.SIDE
    sources = (examples.SAMPLES / "SOURCES.md").read_text(encoding="utf-8")
    shipped = [p for p in examples.SAMPLES.iterdir() if p.name != "SOURCES.md"]
    assert shipped and all(f"`{p.name}`" in sources and p.stat().st_size < 150_000 for p in shipped)


def test_a_batch_is_a_table_with_thumbnails(served, photo, tmp_path):
    photo(1).save(tmp_path / "a.png")
    (tmp_path / "<b>.png").write_bytes(b"x")
    found, small, _ = served.batch([tmp_path / "a.png", tmp_path / "<b>.png"], thumbnails=True)
    table = cards.table("en", [["", *cards.row(r)] for r in found], small)
    assert table.count("<th ") == 5 and table.count("data:image/jpeg") == 1 and "<b>.png" not in table
    assert "white-space: nowrap" in re.search(r"\.aidet-table th {(.*?)}", style.CSS, re.S).group(1)
    assert cards.table("en", [], []) == "" and cards.table("zh", [["now", "a", "real", "9%", "ok"]]).count("<th ") == 5


def test_every_text_is_there_in_both_languages():
    for key, pair in words.WORDS.items():
        assert len(pair) == 2 and all(pair), key
        fields = [sorted(part.split("}")[0] for part in text.split("{")[1:]) for text in pair]
        assert fields[0] == fields[1], key
        assert any("\u4e00" <= c <= "\u9fff" for c in pair[1]), key
    assert words.language_of("zh-CN,zh;q=0.9") == "zh" and words.language_of("en, zh") == "en" == words.language_of(
        None
    )


# --- the service -----------------------------------------------------------------------------------------------------
def test_the_verdict_is_the_detectors(served, photo, tmp_path):
    photo(3).save(tmp_path / "3.png")
    mine = served.verdict(tmp_path / "3.png", "3.png")
    theirs = Detector(served.detector.models[0].path, votes=3).score([tmp_path / "3.png"], root=tmp_path)[0]
    assert mine.score == theirs.score and mine.views == theirs.views
    assert len(mine.stability) == 7 and served.verdict(tmp_path / "3.png", "3.png", stability=False).stability == {}
    assert served.decided(mine, 1.0, (0, 0)).decision == "real"
    assert served.decided(mine, 0.0, (0, 0)).decision == "generated"
    assert served.decided(mine, 0.5, (0, 1)).decision == "unsure"
    answer = service.as_json(mine, 0.5, (0.4, 0.6), [])
    assert json.loads(json.dumps(answer))["models"]["tiny"]["probability"] == pytest.approx(mine.prob)
    assert answer["models"]["tiny"]["views"] == mine.views["tiny"] and len(mine.views["tiny"]) == 3
    assert all(0 < p < 1 for p in mine.views["tiny"])


def test_changes_of_sides_are_counted_at_the_threshold(served, photo, tmp_path):
    photo(3).save(tmp_path / "3.png")
    record = served.verdict(tmp_path / "3.png", "3.png")
    values = sorted(record.stability.values())
    assert service.flips(record, 0.0) == []
    between = (values[0] + values[-1]) / 2
    first = record.stability["original"]
    expected = [k for k, v in record.stability.items() if (v > between) != (first > between)]
    assert expected and service.flips(record, between) == expected
    assert "Weak:" in cards.verdict("en", record, between, (0, 0))


def test_a_batch_keeps_its_order_and_its_errors(served, photo, tmp_path):
    for i in range(5):
        photo(i).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"nonsense")
    seen = []
    files = [tmp_path / f"{i}.png" for i in range(5)]
    rows, small, left = served.batch(files, progress=lambda i, n: seen.append((i, n)), thumbnails=True)
    assert [bool(image) for image in small] == [True, True, False, True, True] and left == []
    assert [r.path for r in rows] == [f"{i}.png" for i in range(5)] and [r.ok for r in rows].count(False) == 1
    assert rows[2].status == "error: not an image that Pillow can read" and seen[-1] == (5, 5)
    assert [r.score for r in rows if r.ok] == [served.verdict(f, f.name).score for f in files if f.name != "2.png"]
    assert cards.score_rows(rows)[2][:5] == ["2.png", "", "", "", ""]


def test_heat_map(served, photo, tmp_path):
    photo(1, (64, 48)).save(tmp_path / "a.png")
    made = served.heat(tmp_path / "a.png", "a.png")
    assert made.picture.size == (64, 48) and 0 < made.without < 1
    shown = cards.heat_map("en", pictures.uri(made.picture), made.without, served.verdict(tmp_path / "a.png").prob)
    assert "speaks for generated" in shown and 'alt="The image, grey' in shown
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(images.ImageError):
        served.heat(tmp_path / "b.png")


def test_where_lies_over_the_image(served, tmp_path):
    scene((320, 200), (32, 48, 128, 112)).save(tmp_path / "a.png")
    found, image = served.localize(tmp_path / "a.png")
    assert image.size == (320, 200) and found.where == (32, 48, 128, 112)
    made = np.asarray(pictures.layer(found, side=160))
    assert made.shape == (100, 160, 4) and made[40, 40, 3] > 240 and made[80, 120, 3] < 15
    frame = made[24:56, 16:64, 3]
    assert (frame[[0, -1]] == 255).all() and (frame[:, [0, -1]] == 255).all()
    assert pictures.preview(image).size == image.size and pictures.preview(image, 80).size == (80, 50)
    shown = cards.where("en", "data:a", "data:b", found.found, found.area)
    assert "Partly generated: 9.6% of the picture" in shown and 'type="range"' in shown and 'alt="The image' in shown
    small = cards.where("zh", "data:a", "data:b", "unsure", 0.5, "shorter side under 128 pixels")
    assert "证据不足：短边不足 128 像素" in small
    answer = json.loads(json.dumps(service.located("a/b.png", found)))
    assert (
        answer["file"] == "b.png"
        and answer["where"] == [32, 48, 128, 112]
        and served.about()["localizer"]["grid"] == 16
    )
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(images.ImageError):
        served.localize(tmp_path / "b.png")
    without = copy.copy(served)
    without.localizer = None
    with pytest.raises(UserError, match="no localizer here; start the application with --localizer"):
        without.localize(tmp_path / "a.png")
    assert "localizer" not in without.about()


def test_the_default_localizer_is_offered_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(default, "LOCALIZER", tmp_path / "aidet_partial.ckpt")
    assert default.localizer_if_any(None) is None and default.localizer_if_any("a.ckpt") == "a.ckpt"
    (tmp_path / "aidet_partial.ckpt").touch()
    assert default.localizer_if_any(None) == str(tmp_path / "aidet_partial.ckpt")
    assert default.localizer_if_any("none") is None


@pytest.mark.parametrize("threshold", [None, 0.0, 0.1, 0.3333, 0.72134, 0.97, 1.0])
@pytest.mark.parametrize("unsure", [None, "none", "0.21234,0.81"])
def test_every_part_gives_the_same_word_for_a_score(served, threshold, unsure):
    """Detector and infer.py, the HTTP interface, the page (whose sliders hold three digits) and Xihe."""
    path = served.detector.models[0].path
    given = Detector(path, threshold=threshold, unsure=unsure)
    mine = copy.copy(served)
    mine.detector, mine.threshold = given, given.threshold
    mine.unsure = given.unsure or (given.threshold, given.threshold)
    if unsure is None:
        assert given.unsure == zone_around(given.threshold)
    words = set()
    for score in np.linspace(-8, 8, 401):
        prob, label, word = vote.verdict(float(score), given.threshold, given.unsure)
        record = detector.Verdict("a", float(score), prob, label, word)
        slid = round(mine.threshold, 3), tuple(round(end, 3) for end in mine.unsure)
        rules = [mine.rule(), mine.rule(*slid), mine.rule(slid[0]), mine.rule(mine.threshold, mine.unsure)]
        assert {mine.decided(record, *rule).decision for rule in rules} == {word}, (score, word, rules)
        assert record.decision == labels.decide(prob, given.threshold, given.unsure)[1]
        words.add(word)
    assert ("unsure" in words) == (unsure == "0.21234,0.81" or (unsure is None and 0 < given.threshold < 1))


def test_the_rule_of_the_page_is_the_detectors(served):
    own = served.threshold, served.unsure
    assert served.rule() == own and served.unsure == served.detector.unsure
    shown = round(served.threshold, 3), tuple(round(end, 3) for end in served.unsure)  # as the sliders hold them
    assert served.rule(*shown) == own
    threshold, zone = served.rule(0.9)
    assert (threshold, zone) == (0.9, zone_around(0.9)) and zone[0] < 0.9 < zone[1]
    assert served.rule(0.9, (0.4, 0.6)) == (0.9, (0.4, 0.6)) and served.rule(0.9, "none") == (0.9, (0.9, 0.9))


@pytest.mark.parametrize("values, text", [((1.5, None), "between 0 and 1"), ((0.5, (0.9, 0.1)), "LOW <= HIGH")])
def test_wrong_thresholds(served, values, text):
    with pytest.raises(UserError, match=text):
        served.rule(*values)


# --- the command line ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "argv, text",
    [
        (["--ckpt", "missing.onnx"], "does not exist"),
        (["--prt", "1"], "did you mean '--port'"),
        (["--ckpt", "a", "--port", "99999"], "--port"),
        (["--ckpt", "a", "--max-images", "0"], "--max-images"),
    ],
)
def test_wrong_options(argv, text):
    if runtime.version_of("gradio") is None:
        pytest.skip("Gradio 6 needs Python 3.10")
    with pytest.raises(UserError, match=text):
        app.run(argv)


def test_without_the_default_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(default, "CKPT", tmp_path / "aidet_default.ckpt")
    with pytest.raises(
        UserError, match="no --ckpt given and the default detector, .*aidet_default.ckpt, .* does not exist here"
    ):
        app.run([])


def test_gradio_of_another_age_is_refused(monkeypatch):
    monkeypatch.setattr("aidet.runtime.version_of", lambda name: "3.21.0")
    if server.sys.version_info >= server.PYTHON:
        with pytest.raises(UserError, match="needs Gradio 6, found 3.21.0"):
            server.require_gradio()
        monkeypatch.setattr("aidet.runtime.version_of", lambda name: None)
        with pytest.raises(UserError, match="needs Gradio 6, which is not installed; run: pip install 'aidet.onnx"):
            server.require_gradio()
    monkeypatch.setattr(server.sys, "version_info", (3, 9, 1))
    with pytest.raises(UserError, match="needs Python 3.10 or newer, this is 3.9"):
        server.require_gradio()


@pytest.mark.parametrize(
    "text, kind",
    [("Vista dall'Etna, agosto 2019", "other"), ("Foto: Gemini Observatory", "other"), ("Solder flux residue", "other"),
     ("foto dalle Dolomiti", "other"), ("Made with DALL-E 3", "generator"), ("by Midjourney v6", "generator")],
)  # fmt: skip
def test_a_caption_names_a_generator_only_in_words_that_mean_nothing_else(text, kind):
    exif = Image.Exif()
    exif[0x010E] = text
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "JPEG", exif=exif)
    found = {f.name: f.kind for f in metadata.read(buffer.getvalue())}
    assert found["ImageDescription"] == kind


def test_a_thumbnail_is_the_picture_that_is_scored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 100), (200, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(tmp_path / "deep.png")

    def shown(name):
        data = pictures.thumbnail(tmp_path / name).partition(",")[2]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    assert shown("turned.jpg").height > shown("turned.jpg").width
    assert min(shown("clear.png").getpixel((30, 30))) > 250
    assert shown("deep.png").size == (40, 40)


def test_each_view_is_counted_at_the_line_that_it_votes_at(tmp_path):
    points = {"balanced": {"threshold": 0.6}, "few-false-alarms": {"threshold": 0.9}}
    make_model(tmp_path / "a.ckpt", operating_points=points, operating_point="balanced")
    hard = service.Service([tmp_path / "a.ckpt"], vote="hard", operating_point="few-false-alarms")
    assert hard.lines(0.5) == {"a": 0.9}, "a vote's own line, not that of the share of votes"
    assert hard.about()["models"][0]["threshold"] == 0.9
    assert service.Service([tmp_path / "a.ckpt"]).lines(0.3) == {"a": 0.3}, "the slider's"
    (tmp_path / "one.yaml").write_text(
        "models: [a.ckpt]\nthresholds: {a: 0.5}\ncalibration: {scale: 0.5, offset: 1.0, prior: 0.5}\n"
    )
    fused = service.Service([tmp_path / "one.yaml"])
    # A view of probability p counts if half of (its log-odds - 1) is above the page's line.
    assert fused.lines(0.5)["a"] == pytest.approx(labels.sigmoid(1.0))


def test_a_thumbnail_is_read_as_the_picture_is_scored(tmp_path, photo):
    photo(1, (300, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    score, small = images.Reading(truncated="score"), images.Reading(max_pixels=100)
    assert not pictures.thumbnail(tmp_path / "cut.jpg") and not pictures.thumbnail(tmp_path / "whole.jpg", small)
    for source in (tmp_path / "cut.jpg", io.BytesIO((tmp_path / "cut.jpg").read_bytes())):
        assert pictures.thumbnail(source, score).startswith("data:image/jpeg")
    running = service.Service([make_onnx(tmp_path)], truncated="score")
    found = running.batch([tmp_path / "cut.jpg"], thumbnails=True)
    assert found.records[0].ok and "rows are missing" in found.records[0].note and found.thumbnails[0]


def test_an_image_of_the_largest_size_can_be_uploaded(monkeypatch):
    assert uploads.Limits.of(200, 32, 50_000_000) == uploads.Limits()
    given = {}
    monkeypatch.setattr(server, "serve", lambda *_, limits, **more: given.update(vars(limits)))
    app.run(["--ckpt", "x.onnx", "--max-megabytes", "600"])
    assert given["megabytes"] == given["upload_megabytes"] == given["total_megabytes"] == 600
