"""Localizer: no seams, regions where they are, the network's own score on one tile, words, faults in one line."""

import json

import numpy as np
import pytest
from localize_tools import GRID, POOLING, TILE, make_localizer, scene
from PIL import Image

import aidet
from aidet import images, labels
from aidet.detector import Localization, backends, default, localizer
from aidet.errors import UserError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_localizer(tmp_path_factory.mktemp("localizer") / "l.onnx")


@pytest.fixture(scope="module")
def own(path):
    return aidet.Localizer(path)


# --- tiles -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 80, 96, 97, 128, 500])
def test_tiles_cover_a_side_and_overlap_by_half(length):
    found = localizer.starts(length, TILE, GRID)
    assert found[0] == 0 and found[-1] + TILE >= length and all(x % GRID == 0 for x in found)
    assert found == sorted(set(found)) and all(b - a <= TILE // 2 for a, b in zip(found, found[1:]))
    assert len(found) == 1 or found[-1] + TILE < length + GRID  # at most the rest of a cell is reflected


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (64, 64), (65, 130), (200, 90), (333, 77)])
def test_a_plain_picture_gets_a_plain_map_of_its_size(own, size):
    found = own.localize(Image.new("RGB", size, (170, 100, 60)))
    assert found.cells.shape == (-(-size[1] // GRID), -(-size[0] // GRID)) and found.map.dtype == np.float32
    assert found.map.shape == size[::-1] and np.ptp(found.map) < 1e-6
    value = 8.0 * (170 - 100) * 2 / 255
    assert found.map[0, 0] == pytest.approx(labels.sigmoid(value), abs=1e-6)


def test_where_tiles_differ_at_their_edges_the_mean_leaves_no_step(own, monkeypatch):
    """A network is less sure at the edge of its input: cells change by less than it does, and not at a tile's edge."""
    count = TILE // GRID
    edge = np.zeros((count, count), np.float32)
    edge[[0, -1]] = edge[:, [0, -1]] = 4.0
    monkeypatch.setattr(own, "_maps", lambda batch: np.repeat(edge[None], len(batch), 0))
    logits, _ = own._logits(Image.new("RGB", (640, 640)))
    inner = logits[count:-count, count:-count]
    assert inner.max() - inner.min() < 0.45 * 4.0 and inner.max() < 2.0
    assert logits[0, 0] == 4.0  # covered by one tile only


def test_the_score_is_the_networks_own_on_one_tile(own, tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (TILE, TILE, 3), dtype=np.uint8))
    picture.paste((230, 20, 20), (16, 16, 40, 50))
    outputs = own.backend.every(own._numbers(picture)[None])
    assert outputs["map"].shape == (1, TILE // GRID, TILE // GRID)
    found = own.localize(picture)
    assert found.score == pytest.approx(float(labels.score_from_logits(outputs["logits"], own.order)[0]), abs=1e-5)
    assert found.cells == pytest.approx(labels.sigmoid(outputs["map"][0].astype(np.float64)), abs=1e-6)
    assert found.prob == pytest.approx(1 / (1 + np.exp(-found.score)))
    # The order of the outputs is the sidecar's, and its calibration applies.
    turned = make_localizer(
        tmp_path / "t.onnx", ("generated", "real"), facts={"calibration": {"scale": 0.5, "offset": 1}}
    )
    assert aidet.Localizer(turned).localize(picture).score == pytest.approx(0.5 * (found.score - 1), abs=1e-5)


def test_pooling_does_not_grow_with_the_picture_and_a_small_region_moves_it():
    cells = np.random.default_rng(1).normal(-3, 0.5, (20, 20))
    marked = cells.copy()
    marked[3:8, 3:8] = 4
    for pooling in (POOLING, {"kind": "topk", "share": 0.05, "scale": 1.0, "offset": 0.0}):
        plain = localizer.pooled(cells, pooling)
        assert localizer.pooled(np.tile(cells, (3, 3)), pooling) == pytest.approx(plain)
        assert localizer.pooled(marked, pooling) - plain > 5  # the mean of all cells moves by 0.4
    assert np.isfinite(localizer.pooled(np.full(4, 1e4), POOLING))
    assert localizer.pooled(np.array([1.0, 2.0, 3.0]), {"kind": "topk", "share": 0.34, "scale": 2, "offset": 1}) == 6


def test_the_background_of_every_picture_is_brought_towards_one_level(tmp_path, own):
    rng, rule = np.random.default_rng(2), {"quantile": 0.25, "part": 0.75, "level": -4.0}
    cells = rng.normal(-3, 0.5, (20, 20))
    cells[2:6, 2:6] += 3
    one, other = (localizer.levelled(c, rule) for c in (cells, cells + 2))
    assert np.ptp(other - one) < 1e-9 and (other - one)[0, 0] == pytest.approx(2 * 0.25)
    assert np.quantile(localizer.levelled(cells, {**rule, "part": 1.0}), 0.25) == pytest.approx(-4)
    assert localizer.levelled(cells, None) is cells
    # The map and the score of a localizer whose sidecar has it.
    picture = scene((301, 203), (96, 48, 208, 160))
    moved = aidet.Localizer(make_localizer(tmp_path / "m.onnx", settings={"background": rule}))
    before, _ = own._logits(picture)
    after, found = localizer.levelled(before, rule), moved.localize(picture)
    assert found.cells == pytest.approx(labels.sigmoid(after), abs=1e-6)
    assert found.score == pytest.approx(localizer.pooled(after, POOLING), abs=1e-5)
    assert found.score != pytest.approx(own.localize(picture).score, abs=0.01)


# --- regions ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("box", [(96, 48, 208, 160), (0, 0, 70, 50), (250, 130, 301, 203), (33, 7, 150, 190)])
def test_a_region_is_found_to_within_a_cell(own, box):
    size = (301, 203)
    found = own.localize(scene(size, box))
    assert found.where is not None and np.abs(np.subtract(found.where, box)).max() <= GRID
    true = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
    ring = 2 * GRID * (box[2] - box[0] + box[3] - box[1]) / 2 / (size[0] * size[1])
    assert abs(found.area - true) < ring
    middle = (box[1] + box[3]) // 2, (box[0] + box[2]) // 2
    assert found.map[middle] > 0.9 and found.map.min() < 0.1
    assert found.score > own.localize(scene(size)).score + 3


def test_words_say_how_much_and_where(own):
    half, whole = own.localize(scene((320, 160), (32, 16, 128, 96))), own.localize(scene((320, 160), (0, 0, 320, 128)))
    assert half.found == "partly" and half.where == (32, 16, 128, 96) and half.area == pytest.approx(0.15)
    assert half.words == "partly generated: 15% of the picture, the largest region 96 x 80 pixels at (32, 16)"
    assert whole.words == "mostly or wholly generated: 80% of the picture" and whole.where == (0, 0, 320, 128)
    none = own.localize(scene((320, 160)))
    assert (none.words, none.where, none.area) == ("no generated region found", None, 0.0)
    small = own.localize(scene((100, 19), (0, 0, 100, 19)))
    assert small.words == "too little evidence: shorter side under 20 pixels" and small.found == "unsure"
    assert json.loads(json.dumps(half.to_dict()))["where"] == [32, 16, 128, 96]


def test_the_largest_region_is_boxed_and_less_than_the_least_area_is_none():
    cells = np.zeros((10, 10), np.float32)
    cells[0, 0], cells[4:6, 4:6], cells[6, 6], cells[2, 8:] = 0.9, 0.9, 0.9, 0.9
    found = Localization(cells, 16, (150, 155), 0.0)
    assert found.where == (64, 64, 112, 112)  # cells that touch at a corner are one region
    assert found.area == pytest.approx((16 * 16 * 7 + 6 * 16) / (150 * 155))  # the last column has 6 pixels
    few = Localization(cells, 16, (150, 155), 0.0, min_area=0.1)
    assert few.where is None and few.area == found.area and few.found == "none"


def test_too_plain_a_picture_is_too_little_evidence(tmp_path, photo):
    strict = aidet.Localizer(
        make_localizer(tmp_path / "p.onnx", facts={"evidence": {"min_side": 0, "min_detail": 2.0}})
    )
    assert strict.localize(scene((200, 100))).words.startswith("too little evidence: plain colour")
    assert strict.localize(photo(1, (200, 100))).reason == ""
    # Without a rule in the sidecar: half a tile.
    usual = aidet.Localizer(make_localizer(tmp_path / "u.onnx", facts={"evidence": None}))
    assert usual.localize(scene((200, 31))).reason == "shorter side under 32 pixels"


# --- maps ------------------------------------------------------------------------------------------------------------
def test_the_map_is_made_in_bands_and_in_sixteen_bits(own):
    found = own.localize(scene((130, 600), (30, 200, 100, 400)))
    whole, picture = found.map, found.picture()
    assert (found.rows(250, 300) == whole[250:300]).all()
    assert picture.size == (130, 600) and picture.mode == "I;16"
    assert (np.asarray(picture) == np.rint(whole * 65535)).all() and 0 <= whole.min() and whole.max() <= 1
    # At the centre of a cell the map is the cell's value.
    flat = Localization(np.array([[0, 1]], np.float32), 16, (32, 16), 0.0).map
    assert flat[3, 7] < 0.04 and flat[3, 24] > 0.96 and (np.diff(flat[0]) >= 0).all() and (flat == flat[0]).all()


def test_the_map_does_not_depend_on_the_workers(path, photo):
    picture = photo(3, (500, 330))
    one, four = (aidet.Localizer(path, workers=n).localize(picture) for n in (1, 4))
    assert (one.cells == four.cells).all() and one.score == four.score and np.ptp(one.cells) > 0.5


def test_sources_of_every_kind_agree(own, tmp_path):
    picture = scene((90, 70), (10, 10, 60, 50))
    picture.save(tmp_path / "a.png")
    found = own.localize(picture)
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.asarray(picture)):
        assert (own.localize(source).cells == found.cells).all()
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(images.ImageError, match="not an image"):
        own.localize(tmp_path / "b.png")


@pytest.mark.skipif(aidet.runtime.version_of("openvino") is None, reason="pip install 'aidet[openvino]'")
def test_openvino_gives_the_same_map(path, own):
    other = aidet.Localizer(path, backend="openvino")
    assert other.backend_name == "openvino"
    picture = scene((150, 100), (40, 30, 90, 80))
    found, expected = other.localize(picture), own.localize(picture)
    assert found.cells == pytest.approx(expected.cells, abs=1e-5) and found.score == pytest.approx(
        expected.score, abs=1e-4
    )


def test_mindspore_gives_both_outputs():
    """Smaller batches than the first are padded, in every output."""
    import mindspore as ms

    made = backends.MindSpore(lambda x: (x.mean((1, 2, 3))[:, None], x[:, 0] * 2), "CPU")
    batch = np.random.default_rng(0).random((5, 3, 4, 4), dtype=np.float32)
    assert made.every(batch[:2])["map"].shape == (2, 4, 4)
    found = made.every(batch)
    assert found["map"] == pytest.approx(batch[:, 0] * 2) and found["logits"].shape == (5, 1)
    assert (made(batch) == found["logits"]).all()
    single = backends.MindSpore(lambda x: ms.ops.mean(x, (2, 3)), "CPU", compiled=False)
    assert single(batch) == pytest.approx(batch.mean((2, 3)), abs=1e-6)


# --- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, text",
    [
        ({"grid": 0}, "localization.grid .=0. must be a whole number >= 1"),
        ({"tile": 40}, "localization.tile .=40. must be a multiple of grid"),
        ({"threshold": 1}, "localization.threshold .=1. must be between 0 and 1"),
        ({"min_area": -0.1}, "localization.min_area .=-0.1. must be between"),
        ({"pooling": "logsum"}, "unknown pooling 'logsum'; .*logsumexp"),
        ({"pooling": {"kind": "topk", "sharpness": 1}}, "pooling has sharpness .=1.; it takes numbers share"),
        ({"pooling": {"kind": "logsumexp", "sharpness": 0}}, "pooling has sharpness .=0.;"),
        ({"pooling": 3}, "localization.pooling .=3. must be a name"),
        (
            {"background": {"quantile": 0.25}},
            "localization.background .=.* must be a mapping with the numbers quantile",
        ),
        (
            {"background": {"quantile": 0.25, "part": 2, "level": 0}},
            "localization.background.part .=2. must be between",
        ),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(tmp_path, settings, text):
    with pytest.raises(UserError, match=text):
        aidet.Localizer(make_localizer(tmp_path / "l.onnx", settings=settings))


def test_what_is_no_localizer_says_so(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is no localizer: its sidecar has no 'localization'"):
        aidet.Localizer(make_localizer(tmp_path / "l.onnx", facts={"localization": None}))
    with pytest.raises(UserError, match="'gone.onnx' does not exist"):
        aidet.Localizer("gone.onnx")
    monkeypatch.setattr(default, "LOCALIZER", tmp_path / "aidet_partial.ckpt")
    with pytest.raises(UserError, match="the default localizer, .*aidet_partial.ckpt, does not exist here; name one"):
        aidet.Localizer()
    small = make_localizer(tmp_path / "s.onnx")
    data = small.read_bytes().replace(b'"grid": 16', b'"grid": 32')
    small.write_bytes(data)
    with pytest.raises(
        UserError, match=r"must give an output 'map' of shape \(1, 2, 2\), it gives one of shape \(1, 4, 4\)"
    ):
        aidet.Localizer(small).localize(scene((64, 64)))
