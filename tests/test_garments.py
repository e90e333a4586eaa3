from cam_helpers import garments
from cam_helpers.backend import keras
from cam_helpers.data import CLASSES
import numpy as np
import pytest

T_SHIRT, TROUSER, PULLOVER, DRESS, COAT, SANDAL, SHIRT, SNEAKER, BAG, BOOT = range(10)
SEEDS = range(40)
every_class = pytest.mark.parametrize("class_index", range(10), ids=CLASSES)


def middle(mask):
    """Return the mean row and the mean column of a mask."""
    return np.argwhere(mask).mean(axis=0)


def columns(mask):
    """Return the first and the last column of a mask."""
    found = np.flatnonzero(mask.any(axis=0))
    return found[0], found[-1]


def rows(mask):
    return columns(mask.T)


def drawn_parts(class_index):
    return [garments.draw(class_index, seed)[1] for seed in SEEDS]


def test_classes_are_those_of_fashion_mnist():
    assert tuple(garments._GARMENTS) == CLASSES


@every_class
def test_image_is_grey_on_black(class_index):
    for seed in SEEDS:
        image, _ = garments.draw(class_index, seed)
        assert image.shape == (28, 28, 1)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert 0.25 < image.max() <= 1
        assert not image[[0, 0, -1, -1], [0, -1, 0, -1]].any()  # the corners


@every_class
def test_same_seed_same_garment(class_index):
    image, parts = garments.draw(class_index, 3)
    again, parts_again = garments.draw(class_index, 3)
    np.testing.assert_array_equal(image, again)
    for name in parts:
        np.testing.assert_array_equal(parts[name], parts_again[name])


@every_class
def test_seeds_vary_shape_tone_and_texture(class_index):
    images, parts = zip(*(garments.draw(class_index, seed) for seed in SEEDS), strict=True)
    assert len({image.tobytes() for image in images}) == len(SEEDS)
    silhouettes = {np.any(list(p.values()), axis=0).tobytes() for p in parts}
    assert len(silhouettes) > 0.9 * len(SEEDS)
    insides = [
        image[np.any(list(p.values()), axis=0)] for image, p in zip(images, parts, strict=True)
    ]
    assert np.ptp([inside.mean() for inside in insides]) > 0.3
    assert np.ptp([inside.std() for inside in insides]) > 0.05


@every_class
def test_every_part_is_drawn(class_index):
    for seed in range(150):
        image, parts = garments.draw(class_index, seed)
        assert tuple(parts) == garments.PARTS[class_index]
        for name, mask in parts.items():
            assert mask.shape == (28, 28)
            assert mask.dtype == bool
            assert mask.any(), (name, seed)
            assert (image[mask] > 0).all(), (name, seed)


@every_class
def test_parts_make_up_the_garment(class_index):
    for seed in SEEDS:
        image, parts = garments.draw(class_index, seed)
        masks = np.array(list(parts.values()))
        assert masks.sum(axis=0).max() == 1
        assert image[~masks.any(axis=0)].sum() < 0.2 * image.sum()  # thin edges


@pytest.mark.parametrize("class_index", [T_SHIRT, PULLOVER, COAT, SHIRT])
def test_sleeves_are_on_either_side_of_the_body(class_index):
    for parts in drawn_parts(class_index):
        left, body, right = (middle(parts[n])[1] for n in ("left_sleeve", "body", "right_sleeve"))
        assert left + 4 < body < right - 4


def test_sleeves_are_short_on_t_shirts_long_on_pullovers_and_coats_and_either_on_shirts():
    def lengths(class_index):
        spans = ((rows(p["left_sleeve"]), rows(p["body"])) for p in drawn_parts(class_index))
        return [(sleeve[1] - body[0]) / (body[1] - body[0]) for sleeve, body in spans]

    assert max(lengths(T_SHIRT)) < 0.5
    assert min(lengths(PULLOVER)) > 0.8
    assert min(lengths(COAT)) > 0.7
    assert min(lengths(SHIRT)) < 0.5
    assert max(lengths(SHIRT)) > 0.8


def test_trouser_legs_part_below_the_waist():
    for parts in drawn_parts(TROUSER):
        left, right = parts["left_leg"], parts["right_leg"]
        assert rows(parts["waist"])[1] <= rows(left)[0] + 1
        hem = slice(rows(left)[1] - 3, rows(left)[1])
        assert columns(left[hem])[1] + 1 < columns(right[hem])[0]


def test_skirt_is_below_the_bodice_and_wider():
    for parts in drawn_parts(DRESS):
        assert middle(parts["bodice"])[0] < middle(parts["belt"])[0] < middle(parts["skirt"])[0]
        assert np.ptp(columns(parts["skirt"])) > np.ptp(columns(parts["bodice"]))


def test_coat_opens_from_top_to_hem_between_its_lapels():
    for parts in drawn_parts(COAT):
        assert np.ptp(rows(parts["opening"])) > 0.9 * np.ptp(rows(parts["body"]))
        collar, opening = columns(parts["collar"]), columns(parts["opening"])
        assert collar[0] < opening[0] <= opening[1] < collar[1]


def test_shirt_buttons_run_down_the_middle_below_the_collar():
    for parts in drawn_parts(SHIRT):
        buttons, body = parts["buttons"], parts["body"]
        assert abs(middle(buttons)[1] - middle(body)[1]) < 1
        assert np.ptp(columns(buttons)) <= 3
        assert np.ptp(rows(buttons)) > 0.5 * np.ptp(rows(body))
        assert middle(parts["collar"])[0] < rows(buttons)[0]


@pytest.mark.parametrize("class_index", [SANDAL, SNEAKER, BOOT])
def test_sole_is_under_the_shoe(class_index):
    for parts in drawn_parts(class_index):
        above = [middle(parts[n])[0] for n in parts if n not in ("sole", "heel")]
        assert max(above) < middle(parts["sole"])[0]


def test_shoes_point_left():
    for parts in drawn_parts(SANDAL):
        assert columns(parts["toe_strap"])[1] < columns(parts["ankle_strap"])[0]
    for parts in drawn_parts(SNEAKER):
        assert middle(parts["laces"])[1] < middle(parts["upper"])[1]
    for parts in drawn_parts(BOOT):
        assert columns(parts["foot"])[0] + 5 < columns(parts["shaft"])[0]


def test_boot_heel_is_on_the_right_and_lowest():
    for parts in drawn_parts(BOOT):
        assert columns(parts["sole"])[1] <= columns(parts["heel"])[0]
        assert rows(parts["heel"])[1] > rows(parts["sole"])[1]


def test_bag_handle_is_above_the_bag_and_clasp_on_its_flap():
    for parts in drawn_parts(BAG):
        assert rows(parts["handle"])[1] < rows(parts["body"])[0] + 1
        assert middle(parts["flap"])[0] < middle(parts["clasp"])[0] < middle(parts["body"])[0]


@pytest.mark.parametrize("count", [0, 7, 60, 123])
def test_dataset_is_balanced(count):
    images, labels = garments.dataset(count, 0)
    assert images.shape == (count, 28, 28, 1)
    assert images.dtype == np.float32
    assert labels.shape == (count,)
    assert labels.dtype == np.int32
    assert np.ptp(np.bincount(labels, minlength=10)) <= 1


def test_dataset_is_shuffled():
    _, labels = garments.dataset(60, 0)
    assert (np.diff(labels) % 10 == 1).mean() < 0.5
    assert (np.diff(labels) == 0).mean() < 0.5


def test_same_dataset_seed_same_garments():
    for first, second in zip(garments.dataset(50, 4), garments.dataset(50, 4), strict=True):
        np.testing.assert_array_equal(first, second)


def test_no_image_twice_within_or_across_dataset_seeds():
    images = np.concatenate([garments.dataset(300, seed)[0] for seed in (0, 1)])
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize(
    ("class_index", "error"),
    [(10, ValueError), (-1, ValueError), (2.0, TypeError), ("Coat", TypeError)],
)
def test_unknown_class_is_named(class_index, error):
    with pytest.raises(error) as raised:
        garments.draw(class_index, 0)
    expected = f"class_index must be an integer from 0 to 9; received {class_index!r}."
    assert str(raised.value) == expected


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (10, -1)])
def test_negative_count_or_seed_is_refused(count, seed):
    with pytest.raises(ValueError, match="negative"):
        garments.dataset(count, seed)


def test_small_network_tells_unseen_garments_apart():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*garments.dataset(4_000, 0), epochs=4, verbose=0)
    _, accuracy = model.evaluate(*garments.dataset(1_000, 1), verbose=0)
    assert accuracy >= 0.95
