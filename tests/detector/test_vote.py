"""Votes, fusion and views: the arithmetic against the plain formulas, the documented tie rule, and view seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aidet.detector import views, vote
from aidet.detector.views import STABILITY, Views, changed_images
from aidet.errors import UserError
from aidet.labels import sigmoid

SCORES = st.lists(st.floats(-15, 15), min_size=1, max_size=9)


@given(SCORES)
def test_soft_vote_is_the_mean_of_probabilities(scores):
    assert sigmoid(vote.combine_views(scores)) == pytest.approx(sigmoid(np.array(scores)).mean(), abs=1e-12)


@given(SCORES)
def test_hard_vote_is_the_share_of_views_above_the_threshold(scores):
    share = np.mean(sigmoid(np.array(scores)) > 0.5)
    assert sigmoid(vote.combine_views(scores, "hard")) == pytest.approx(share, abs=1.1e-6)


@given(st.lists(st.tuples(st.floats(-15, 15), st.floats(0.01, 100)), min_size=1, max_size=9))
def test_weighed_votes_are_weighted_means(pairs):
    scores, weights = np.array(pairs).T
    p = sigmoid(scores)
    for how, each in (("soft", p), ("hard", p > 0.5)):
        wanted = (weights * each).sum() / weights.sum()
        assert sigmoid(vote.combine_views(scores, how, weights=weights)) == pytest.approx(wanted, abs=1.1e-6)


def test_a_single_view_keeps_its_score_to_the_last_bit():
    for score in (0.1, -37.25, 80.0):
        assert vote.combine_views([score]) == score
        assert vote.Fusion("soft", ["a"], thresholds={"a": 0.2})({"a": score}) == score


def test_confident_scores_are_not_cut_off():
    assert vote.combine_views([40.0, 42.0]) == pytest.approx(40.57, abs=0.01)
    assert vote.Fusion("soft-or", ["a", "b"])({"a": 50.0, "b": 50.0}) == pytest.approx(100.0)


def test_a_tie_is_real():
    assert vote.verdict(vote.combine_views([3.0, -3.0], "hard")) == (0.5, 0, "real")
    assert vote.verdict(vote.combine_views([0.0], "hard"))[1] == 0  # a view on the threshold votes real
    fusion = vote.Fusion("hard", ["a", "b", "c"], weights={"a": 0.1, "b": 0.2, "c": 0.3})
    assert vote.verdict(fusion({"a": 1.0, "b": 1.0, "c": -1.0}))[1:] == (0, "real")


def test_fusions_against_their_formulas():
    scores = {"a": 1.2, "b": -0.4, "c": 0.3}
    p = sigmoid(np.array(list(scores.values())))
    names = list(scores)
    assert sigmoid(vote.Fusion("soft", names)(scores)) == pytest.approx(p.mean())
    weights = {"a": 3, "b": 1, "c": 0}
    assert sigmoid(vote.Fusion("soft", names, weights)(scores)) == pytest.approx((3 * p[0] + p[1]) / 4)
    assert sigmoid(vote.Fusion("soft-or", names)(scores)) == pytest.approx(1 - np.prod(1 - p))
    assert sigmoid(vote.Fusion("hard", names)(scores)) == pytest.approx(2 / 3)
    assert vote.Fusion("score", names, weights)(scores) == pytest.approx((3 * 1.2 - 0.4) / 4)


def test_a_models_threshold_moves_its_boundary():
    fusion = vote.Fusion("hard", ["a", "b"], thresholds={"a": 0.8})
    assert sigmoid(fusion({"a": 1.0, "b": 1.0})) == pytest.approx(0.5)  # sigmoid(1) = 0.73 is below 0.8
    soft = vote.Fusion("soft", ["a", "b"], thresholds={"a": 0.8, "b": 0.8})
    boundary = float(np.log(4))
    assert soft({"a": boundary, "b": boundary}) == pytest.approx(0, abs=1e-12)


def test_a_hard_vote_has_used_a_models_threshold_already():
    fusion = vote.Fusion("soft", ["a", "b"], thresholds={"a": 0.2, "b": 0.2}, voted=True)
    views = np.array([-2.0, -2.0, -2.0, -1.0, 0.0])  # two of five are above .2
    share = vote.combine_views(views, "hard", 0.2)
    assert sigmoid(fusion({"a": share, "b": share})) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: vote.combine_views([1], "mean"), "unknown vote 'mean'"),
        (lambda: views.Views("to_float", weights="details"), "did you mean 'detail'"),
        (lambda: views.Views("to_float", kind=3), r"views \(=3\) must be a name"),
        (lambda: vote.Fusion("softor", ["a"]), "did you mean 'soft-or'"),
        (lambda: vote.Fusion("soft", ["alpha"], weights={"alfa": 1}), "did you mean 'alpha'"),
        (lambda: vote.Fusion("soft", ["a", "b"], weights={"a": 1}), "no value for 'b'"),
        (lambda: vote.Fusion("soft", ["a"], weights={"a": -1}), r"weight of a \(=-1\) must be a number >= 0"),
        (lambda: vote.Fusion("soft", ["a"], weights={"a": 0}), "all 0"),
        (lambda: vote.Fusion("soft", ["a"], thresholds={"a": 1}), r"threshold of a \(=1\) must be between"),
        (lambda: vote.Fusion("soft-or", ["a"], weights={"a": 1}), "takes no weights"),
        (lambda: vote.unsure_zone("0.6,0.4"), "LOW <= HIGH"),
        (lambda: vote.unsure_zone("half"), "two numbers"),
        (lambda: vote.unsure_zone(3), r"unsure \(=3\) must be none or two numbers"),
        (lambda: views.Views("center_crop(8) | normalize(half)", votes=0), r"votes \(=0\) must be a whole number >= 1"),
        (lambda: views.Views("center_crop(8)", votes=3, kind="random_crop(9)"), "9"),
        (lambda: views.Views("center_crop(8)", votes=3, kind="center_crop(8)"), "are not random"),
        (lambda: views.Views("two_sizes(8, bicubic, 6)", flips=True), "two sizes of the picture into one input"),
        (lambda: views.Views("two_sizes(8, bicubic, 6)", votes=3, kind="native"), "two sizes of the picture"),
        (lambda: views.Views("two_sizes(8, bicubic, 6)", votes=3, kind="grid"), "two sizes of the picture"),
        (lambda: views.Views("normalize(half)", votes=3, kind="grid"), "fixed input size"),
    ],
)
def test_wrong_values_are_named(call, text):
    with pytest.raises(UserError, match=text):
        call()


def test_fusion_file(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("fuse: soft\nweights: {a: 0.7, b: 0.3}\nunsure: [0.4, 0.6]\n")
    found = vote.read_fusion(path)
    assert found.pop("decisions").operating_points == {}
    assert found == {"fuse": "soft", "weights": {"a": 0.7, "b": 0.3}, "unsure": [0.4, 0.6], "models": []}
    for text, message in (("weigths: {}", "did you mean 'weights'"), ("- a", "mapping"), ("a: [", "YAML")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            vote.read_fusion(path)
    with pytest.raises(UserError, match="nor a file that exists"):
        vote.read_fusion(tmp_path / "none.yaml")


LINE = "resize(40) | center_crop(32) | to_float"


def test_view_0_is_the_evaluation_view_and_others_depend_on_seed_file_and_number(photo):
    image = photo(1, (90, 70))

    def make(seed=42, key="a.jpg", votes=4):
        return views.Views(LINE, votes, line="random_crop(32) | to_float", seed=seed)(image, key)

    one = make(votes=1)
    first, again = make(), make()
    assert len(first) == 4 and np.array_equal(first[0], one[0])
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    # Fewer votes are a prefix of more: raising the number of votes does not change the views already drawn.
    assert all(np.array_equal(a, b) for a, b in zip(make(votes=2), first))
    for other in (make(seed=1), make(key="b.jpg")):
        assert np.array_equal(other[0], first[0]) and not np.array_equal(other[1], first[1])
    assert not np.array_equal(first[1], first[2])


def test_native_and_grid_views_hold_the_images_own_pixels(photo):
    image = photo(2, (100, 70))
    pixels = np.asarray(image).transpose(2, 0, 1)
    grid = views.Views(LINE, 99, "grid")(image, "a")
    assert len(grid) == 12  # 4 x 3 tiles of 32 cover 100 x 70
    assert np.array_equal(np.rint(grid[0] * 255), pixels[:, :32, :32])
    assert np.array_equal(np.rint(grid[-1] * 255), pixels[:, -32:, -32:])
    assert len(views.Views(LINE, 5, "grid")(image, "a")) == 5
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 32, 32))[0]
    for view in views.Views(LINE, 2, "native")(image, "a"):
        assert (np.rint(view * 255) == windows).all(axis=(-1, -2, -3)).any()


def test_a_pyramid_adds_crops_of_the_half_size_where_one_fits(photo):
    image = photo(2, (100, 70))
    half = np.asarray(image.resize((50, 35), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    views = Views(LINE, 8, "pyramid")(image, "a")
    assert len(views) == 8
    for own, grid in zip(views, Views(LINE, 4, "grid")(image, "a")):
        assert np.array_equal(own, grid)
    windows = np.lib.stride_tricks.sliding_window_view(half, (3, 32, 32))[0]
    for view in views[4:]:
        assert (np.rint(view * 255) == windows).all(axis=(-1, -2, -3)).any()


@pytest.mark.parametrize(
    "size, scaled", [((63, 70), (32, 36)), ((40, 90), (32, 72)), ((20, 28), (32, 45)), ((9, 40), (18, 80))]
)
def test_a_pyramids_other_scale_is_the_nearest_to_half_at_which_a_crop_fits(photo, size, scaled):
    """(9, 40) would have to be enlarged more than twice; the missing part is mirrored."""
    image = photo(3, size)
    views = Views(LINE, 8, "pyramid")(image, "a")
    grids = [Views(LINE, 4, "grid")(i, "a") for i in (image, image.resize(scaled, Image.Resampling.BICUBIC))]
    assert len(views) == sum(map(len, grids))
    for own, grid in zip(views, sum(grids, [])):
        assert np.array_equal(own, grid)
    assert len(Views(LINE, 1, "pyramid")(image, "a")) == 1


def test_five_views_are_the_centre_and_the_corners(photo):
    image = photo(3, (50, 70))
    cut = np.asarray(image)
    found = Views(LINE, 1, "five")
    made = [np.rint(v.transpose(1, 2, 0) * 255) for v in found(image, "a")]
    h, w = cut.shape[:2]
    places = [((h - 32) // 2, (w - 32) // 2), (0, 0), (h - 32, 0), (h - 32, w - 32), (0, w - 32)]
    assert found.count == 5 and len(made) == 5
    assert all(np.array_equal(m, cut[y : y + 32, x : x + 32]) for m, (y, x) in zip(made, places))
    assert len(Views(LINE, 1, "five")(photo(3, (20, 20)), "a")) == 5


def test_a_pyramid_of_an_image_as_large_as_a_crop_is_that_crop(photo):
    assert len(views.Views(LINE, 8, "pyramid")(photo(3, (32, 32)), "a")) == 1


def test_an_image_smaller_than_the_crop_is_mirrored(photo):
    for kind in ("native", "grid", "pyramid"):
        for view in views.Views(LINE, 3, kind)(photo(3, (20, 9)), "a"):
            assert view.shape == (3, 32, 32)


def test_detail_is_the_mean_difference_of_neighbours_in_the_channels_mean():
    view = np.zeros((3, 2, 3), np.float32)
    assert views.detail(view) == 0
    view[:, 0, 1] = 0.3, 0.6, 0.9  # mean 0.6: two of four differences to the right, one of three downwards
    assert views.detail(view) == pytest.approx(0.6 * 2 / 4 + 0.6 / 3)
    view[:, 0, 1] = 0.3, -0.3, 0.0  # colours that cancel out
    assert views.detail(view) == pytest.approx(0, abs=1e-8)
    assert views.detail(np.ones((3, 1, 1), np.float32)) == 0


def test_views_count_by_their_detail():
    pixels = np.full((32, 64, 3), 200, np.uint8)
    pixels[:, 32:] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    line = "center_crop(32) | normalize(half)"
    views = Views(line, 2, "grid", weights="detail")
    plain, rough = views.weigh(views(Image.fromarray(pixels), "a"))
    assert rough > 1000 * plain > 0
    assert plain == pytest.approx((1 / 127.5) ** 2)
    made = Views(line, 2, "grid", weights="detail", flips=True)
    assert made.weigh(made(Image.fromarray(pixels), "a")) == pytest.approx([plain, rough] * 2)
    assert Views(line, 2, "grid").weigh([]) is None


def test_flips_double_the_views(photo):
    views = Views(LINE, 2, flips=True)(photo(4), "a")
    assert len(views) == 4 and np.array_equal(views[2], views[0][:, :, ::-1])


def test_default_views_follow_the_seeds_rule():
    assert views.Views(LINE, 3).others.text == (
        "decode | random_resized_crop((32, 32), scale=(0.8, 1.0)) | hflip | vflip | to_float"
    )


def test_stability_views_change_pixels_and_keep_the_input_size(photo):
    image = photo(5, (90, 70))
    views = Views(LINE)
    changed = [views.first(i) for i in changed_images(image)]
    assert len(changed) == len(STABILITY)
    for view in changed:
        assert view.shape == (3, 32, 32) and not np.array_equal(view, views(image, "")[0])
    flat = Image.new("RGB", (64, 64), (128, 128, 128))
    assert all(np.abs(views.first(i) - 128 / 255).max() < 0.01 for i in changed_images(flat))


@pytest.mark.parametrize("kind", ["random", "native", "grid", "pyramid"])
def test_views_of_a_high_pass_model_are_high_passed(photo, kind):
    image = photo(size=(96, 80))
    views = Views("center_crop(32) | high_pass(3)", votes=4, kind=kind)(image, "a.png")
    assert len(views) == 4
    for view in views:
        assert view.shape == (3, 32, 32) and abs(view.mean()) < 0.02 < np.abs(view).max() and view.min() < 0


def test_a_model_of_two_sizes_votes_over_views_that_end_with_both():
    line = "two_sizes(8, bicubic, 6)"
    made = views.Views(line, votes=2, kind=f"hflip | {line}")
    assert made.size == (14, 8) and made.count == 2
    assert views.Views(line).count == 1
