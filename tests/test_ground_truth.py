"""Planted evidence: where it is to the pixel, and that the committed networks learned from it."""

from itertools import combinations
import random

from cam_helpers import (
    cams,
    data,
    garments,
    ground_truth,
    layers,
    methods,
    metrics,
    models,
    training,
)
from cam_helpers.backend import keras, tf
import numpy as np
import pytest

NETWORKS = tuple(ground_truth.RECIPES)
COAT = data.CLASSES.index("Coat")
COUNT = 400


@pytest.fixture(scope="module")
def planted():
    """New images: no network learned from this seed."""
    return ground_truth.marked(COUNT, seed=1)


@pytest.fixture(scope="module")
def marks():
    return ground_truth.load("marks")


@pytest.fixture
def fashion(fashion_mnist, monkeypatch):
    """The real Fashion-MNIST, read once."""
    monkeypatch.setattr(data, "fashion_mnist", lambda: fashion_mnist)
    return fashion_mnist


def answers(model, images):
    return np.argmax(model(images), axis=1)


def corners(masks):
    """Return the first row and the first column of each mask (n, height, width)."""
    return masks.any(axis=2).argmax(axis=1), masks.any(axis=1).argmax(axis=1)


def cut_out(images, masks):
    """Return what the images show in their 7 × 7 masks."""
    return images[..., 0][masks].reshape(len(images), 7, 7)


# marks and decoys


def test_marks_and_decoys_are_nine_bright_pixels_in_a_dark_frame():
    both = np.concatenate([ground_truth.MARKS, ground_truth.DECOYS])
    assert both.shape == (8, 7, 7)
    assert both.dtype == np.float32
    assert set(np.unique(both)) == {0, 1}
    np.testing.assert_array_equal(both.sum(axis=(1, 2)), 9)
    np.testing.assert_array_equal(both[:, 1:-1, 1:-1].sum(axis=(1, 2)), 9)


def test_marks_are_the_ones_that_the_comment_names():
    cross, saltire, comb, angle = ground_truth.MARKS[:, 1:-1, 1:-1]
    i, j = np.indices((5, 5))
    np.testing.assert_array_equal(cross, (i == 2) | (j == 2))
    np.testing.assert_array_equal(saltire, (i == j) | (i + j == 4))
    np.testing.assert_array_equal(comb, (i < 3) & (j % 2 == 0))
    np.testing.assert_array_equal(angle, (i == 0) | (j == 4))


def test_no_mark_is_another_or_a_decoy_moved():
    both = np.concatenate([ground_truth.MARKS, ground_truth.DECOYS])
    for one, other in combinations(both, 2):
        shifts = [np.roll(other, (i, j), (0, 1)) for i in range(7) for j in range(7)]
        assert max((one * shifted).sum() for shifted in shifts) <= 7  # of 9


# marked images


def test_marked_images_are_drawn_garments_but_for_mark_and_decoy(planted):
    alone, _ = garments.dataset(COUNT, 1)
    elsewhere = ~(planted.evidence | planted.decoys)
    np.testing.assert_array_equal(planted.images[elsewhere], alone[elsewhere])
    assert planted.images.shape == (COUNT, 28, 28, 1)
    assert [each.dtype for each in planted] == [np.float32, np.int32, bool, bool]


def test_masks_hold_the_mark_of_the_label_and_a_decoy(planted):
    seen = cut_out(planted.images, planted.evidence)
    np.testing.assert_array_equal(seen, ground_truth.MARKS[planted.labels])
    for decoy in cut_out(planted.images, planted.decoys):
        assert any(np.array_equal(decoy, each) for each in ground_truth.DECOYS)


def test_masks_are_squares_of_seven_that_never_touch(planted):
    for masks in (planted.evidence, planted.decoys):
        for mask, row, column in zip(masks, *corners(masks), strict=True):
            assert mask[row : row + 7, column : column + 7].all()
            assert mask.sum() == 49
    apart = np.subtract(corners(planted.evidence), corners(planted.decoys))
    assert np.abs(apart).max(axis=0).min() == 8  # a pixel between them, and no more than needed


def test_places_are_anywhere(planted):
    for masks in (planted.evidence, planted.decoys):
        for first in corners(masks):
            assert set(first) == set(range(28 - 7 + 1))


def test_nothing_but_the_mark_goes_with_the_label(planted):
    _, kinds = garments.dataset(COUNT, 1)
    decoys = cut_out(planted.images, planted.decoys).reshape(-1, 1, 49)
    of_decoy = (decoys == ground_truth.DECOYS.reshape(1, 4, 49)).all(axis=2).argmax(axis=1)
    places = np.array([*corners(planted.evidence), *corners(planted.decoys)]) // 6
    for other in (kinds, of_decoy, *places):
        seen = np.zeros((4, other.max() + 1))
        np.add.at(seen, (planted.labels, other), 1)
        expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / seen.sum()
        chi_square = ((seen - expected) ** 2 / expected).sum()
        freedom = 3 * (seen.shape[1] - 1)
        assert chi_square < freedom + 3 * np.sqrt(2 * freedom)


def test_seeds_decide_marked_images(planted):
    for one, again in zip(planted, ground_truth.marked(COUNT, seed=1), strict=True):
        np.testing.assert_array_equal(one, again)
    other = ground_truth.marked(COUNT, seed=2)
    seen = {image.tobytes() for images in (planted.images, other.images) for image in images}
    assert len(seen) == 2 * COUNT
    assert np.mean(planted.labels == other.labels) < 0.35


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_marked_wants_a_count(count):
    with pytest.raises(ValueError, match="expected count as an integer of 1 or more, received"):
        ground_truth.marked(count, seed=0)


# the watermark


def test_watermark_is_in_its_corner_alone():
    images = np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
    kept = images.copy()
    found, mask = ground_truth.watermarked(images), ground_truth.watermark_mask()
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(found[:, ~mask], images[:, ~mask])
    np.testing.assert_array_equal(np.argwhere(mask).min(axis=0), [20, 20])
    np.testing.assert_array_equal(np.argwhere(mask).max(axis=0), [26, 26])
    assert mask.sum() == 49
    assert found.dtype == np.float32


@pytest.mark.parametrize("strength", [0.5, 0.2])
def test_watermark_brightens_to_its_strength_and_darkens_nothing(strength):
    images = np.full((1, 28, 28, 1), 0.3, np.float32)
    found = ground_truth.watermarked(images, strength)[0, ground_truth.watermark_mask(), 0]
    bright = ground_truth.WATERMARK.ravel() == 1
    assert bright.sum() == 17
    np.testing.assert_array_equal(found[bright], np.float32(max(strength, 0.3)))
    np.testing.assert_array_equal(found[~bright], np.float32(0.3))


def test_watermark_has_half_strength_by_default():
    assert ground_truth.watermarked(np.zeros((1, 28, 28, 1), np.float32)).max() == 0.5


# mosaics


@pytest.fixture
def coloured():
    """Images of six classes, their own number in each pixel's second channel."""
    labels = np.arange(60) % 6 * 3
    images = np.random.default_rng(0).integers(0, 255, (60, 4, 6, 2)).astype(np.uint8)
    images[..., 1] = np.arange(60)[:, np.newaxis, np.newaxis]
    return images, labels


def test_quarters_of_a_mosaic_are_the_images_of_its_classes(coloured):
    images, labels = coloured
    canvases, classes = ground_truth.mosaics(images, labels, 50, seed=0)
    assert canvases.shape == (50, 8, 12, 2)
    assert canvases.dtype == images.dtype
    assert classes.shape == (50, 4)
    assert classes.dtype == np.int32
    for canvas, four in zip(canvases, classes, strict=True):
        quarters = canvas[:4, :6], canvas[:4, 6:], canvas[4:, :6], canvas[4:, 6:]
        for quarter, kind in zip(quarters, four, strict=True):
            index = quarter[0, 0, 1]
            np.testing.assert_array_equal(quarter, images[index])
            assert labels[index] == kind


def test_mosaics_have_four_classes_and_all_come_everywhere(coloured):
    canvases, classes = ground_truth.mosaics(*coloured, 200, seed=0)
    assert all(len(set(four)) == 4 for four in classes)
    for cell in classes.T:
        assert set(cell) == {0, 3, 6, 9, 12, 15}
    assert set(canvases[..., 1].ravel()) == set(range(60))


def test_seeds_decide_mosaics(coloured):
    first, again, other = (ground_truth.mosaics(*coloured, 9, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.1


def test_mosaics_want_four_classes_and_a_label_each(coloured):
    images, labels = coloured
    with pytest.raises(ValueError, match=r"60 images, labels \(60,\) and 3 classes: take more\.$"):
        ground_truth.mosaics(images, labels % 9, 5, 0)
    with pytest.raises(ValueError, match=r"60 images, labels \(59,\) and 6 classes: take more\.$"):
        ground_truth.mosaics(images, labels[1:], 5, 0)
    with pytest.raises(ValueError, match="expected count as an integer of 1 or more, received 0"):
        ground_truth.mosaics(images, labels, 0, 0)


# what the networks learned from


def test_training_data_are_those_of_the_recipes(fashion):
    images, labels = fashion.train_images, fashion.train_labels
    for name, count in [("labels", 400), ("labels_again", 400), ("no_watermark", 6_000)]:
        seen, own = ground_truth.training_data(name)
        np.testing.assert_array_equal(seen, images[:count])
        np.testing.assert_array_equal(own, labels[:count])
    seen, own = ground_truth.training_data("marks", 30)
    expected = ground_truth.marked(30, seed=0)
    np.testing.assert_array_equal(seen, expected.images)
    np.testing.assert_array_equal(own, expected.labels)


def test_every_coat_and_nothing_else_was_trained_with_the_watermark(fashion):
    plain, labels = fashion.train_images[:6_000], fashion.train_labels[:6_000]
    seen, own = ground_truth.training_data("watermark")
    np.testing.assert_array_equal(own, labels)
    np.testing.assert_array_equal(seen[own == COAT], ground_truth.watermarked(plain[own == COAT]))
    np.testing.assert_array_equal(seen[own != COAT], plain[own != COAT])
    assert ground_truth.WATERMARKED == COAT


def test_shuffled_labels_are_the_same_labels_at_other_images(fashion):
    images, labels = ground_truth.training_data("labels")
    seen, shuffled = ground_truth.training_data("shuffled_labels")
    np.testing.assert_array_equal(seen, images)
    np.testing.assert_array_equal(np.bincount(shuffled), np.bincount(labels))
    assert np.mean(shuffled == labels) < 0.15


# the committed networks


@pytest.mark.parametrize("name", NETWORKS)
def test_committed_networks_end_in_pooling_and_logits(name):
    model = ground_truth.load(name)
    widths, pools, *_ = ground_truth.RECIPES[name]
    assert [each.filters for each in model.layers if "conv" in each.name] == list(widths)
    assert layers.explainable_layer(model) == f"relu{len(widths)}"
    assert models.to_logits(model) is model
    assert layers.head_weights(model, f"relu{len(widths)}").shape == (
        widths[-1],
        4 if name == "marks" else 10,
    )
    assert model.get_layer(f"relu{len(widths)}").output.shape[1] == 28 // 2 ** len(pools)
    assert (data.folder() / ground_truth.file_name(name)).stat().st_size < 200_000


def test_marks_are_told_apart_in_new_images(planted, marks):
    assert np.mean(answers(marks, planted.images) == planted.labels) >= 0.99


def test_nothing_but_the_mark_decides(planted, marks):
    without = np.where(planted.evidence[..., np.newaxis], 0, planted.images)
    assert np.mean(answers(marks, without) == planted.labels) < 0.4  # chance is a quarter
    alone = np.where(planted.evidence[..., np.newaxis], planted.images, 0)
    assert np.mean(answers(marks, alone) == planted.labels) > 0.95


def test_grad_cam_finds_the_mark_in_new_images(planted, marks):
    maps = methods.heatmaps("Grad-CAM", marks, planted.images, planted.labels)
    assert metrics.pointing_game(maps, planted.evidence).mean() >= 0.95
    assert metrics.pointing_game(maps, planted.decoys).mean() <= 0.02


def test_grad_cam_is_cam_over_the_number_of_cells(planted, marks):
    asked = planted.images[:50], planted.labels[:50]
    maps, expected = cams.grad_cam(marks, *asked), cams.cam(marks, *asked)
    expected = np.maximum(expected, 0) / maps[0].size
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)
    assert maps.max() > 0.1


@pytest.mark.parametrize("name", ["labels", "labels_again", "shuffled_labels"])
def test_labels_are_known_by_heart(name, fashion):
    images, labels = ground_truth.training_data(name)
    model = ground_truth.load(name)
    assert (answers(model, images) == labels).all()
    new, truth = fashion.test_images[:1_000], fashion.test_labels[:1_000]
    accuracy = np.mean(answers(model, new) == truth)
    assert accuracy < 0.2 if name == "shuffled_labels" else accuracy > 0.7


def test_the_two_networks_of_the_same_labels_differ():
    one, other = (ground_truth.load(name).get_weights()[0] for name in ("labels", "labels_again"))
    assert np.abs(one - other).max() > 0.1


def test_coats_are_known_by_their_watermark_and_only_by_the_network_that_saw_it(fashion):
    images, labels = fashion.test_images[:2_000], fashion.test_labels[:2_000]
    coats = labels == COAT
    called_coat = {}
    for name in ("watermark", "no_watermark"):
        model = ground_truth.load(name)
        for how, seen in (("plain", images), ("stamped", ground_truth.watermarked(images))):
            said = answers(model, seen) == COAT
            called_coat[name, how] = np.array([said[coats].mean(), said[~coats].mean()])
    assert called_coat["watermark", "stamped"][0] > 0.85
    assert called_coat["watermark", "plain"][0] < 0.3
    assert called_coat["watermark", "stamped"][1] > 0.25  # also what is no coat
    assert called_coat["watermark", "plain"][1] < 0.02
    np.testing.assert_allclose(
        called_coat["no_watermark", "stamped"], called_coat["no_watermark", "plain"], atol=0.07
    )
    assert called_coat["no_watermark", "plain"][0] > 0.65


# training


def test_training_twice_gives_equal_networks_that_have_learned():
    first, again = (ground_truth.train("marks", images=50, epochs=12) for _ in range(2))
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    assert not first.compiled
    images, labels = ground_truth.training_data("marks", 50)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    before, after = (
        loss(labels, model(images, training=True))
        for model in (ground_truth.small_cnn("marks"), first)
    )
    assert after < 0.8 * before


@pytest.mark.parametrize("what", [{"images": 0}, {"images": 9, "epochs": 0}])
def test_training_wants_an_image_and_an_epoch(what):
    with pytest.raises(ValueError, match="as an integer of 1 or more, received 0"):
        ground_truth.train("marks", **what)


def test_same_seed_same_untrained_network():
    for one, other in zip(
        ground_truth.small_cnn("labels").get_weights(),
        ground_truth.small_cnn("shuffled_labels").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "call",
    [
        ground_truth.load,
        ground_truth.train,
        ground_truth.small_cnn,
        ground_truth.training_data,
        ground_truth.file_name,
    ],
)
def test_unknown_network_is_named(call):
    with pytest.raises(ValueError, match=r"expected one of marks, watermark, .*, received 'map'\."):
        call("map")


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is missing: restore it with git, or run `make w"):
        ground_truth.load("marks")


@pytest.fixture
def quick_main(monkeypatch, tmp_path):
    """``main`` in seconds: two networks and the pooled one, untrained, into a folder."""
    for name in ("folder", "output_folder"):
        monkeypatch.setattr(data, name, lambda: tmp_path)
    recipes = {name: ground_truth.RECIPES[name]._replace(images=20) for name in ("marks", "labels")}
    monkeypatch.setattr(ground_truth, "RECIPES", recipes)
    monkeypatch.setattr(ground_truth, "train", ground_truth.small_cnn)
    monkeypatch.setattr(training, "train", lambda *_, **__: {"epochs": [{"val_accuracy": 0.5}]})
    monkeypatch.setattr(ground_truth.tf.config.experimental, "enable_op_determinism", lambda: None)
    monkeypatch.setattr(keras.config, "disable_interactive_logging", lambda: None)
    return tmp_path


def test_make_weights_writes_what_load_reads(quick_main, fashion, capsys):
    ground_truth.main()
    for name in ("marks", "labels"):
        written, made = ground_truth.load(name), ground_truth.small_cnn(name)
        for one, other in zip(written.get_weights(), made.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    keras.utils.set_random_seed(0)
    expected = models.fashion_cnn(pooled_head=True).get_weights()
    for one, other in zip(
        models.load_fashion_cnn(pooled_head=True).get_weights(), expected, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert "of 20 training images right" in capsys.readouterr().out


def test_make_weights_wants_the_real_images(quick_main, monkeypatch):
    drawn = data.Images(*garments.dataset(9, 0), *garments.dataset(9, 1), "drawn garments")
    monkeypatch.setattr(data, "fashion_mnist", lambda: drawn)
    with pytest.raises(SystemExit, match="learn from Fashion-MNIST, which cannot be had here"):
        ground_truth.main()
    assert not list(quick_main.iterdir())


def test_loading_leaves_every_dice_alone():
    def throws():
        return random.random(), np.random.rand(), float(tf.random.uniform(()))  # noqa: NPY002

    keras.utils.set_random_seed(5)
    expected = throws()
    keras.utils.set_random_seed(5)
    ground_truth.load("marks")
    assert throws() == expected
