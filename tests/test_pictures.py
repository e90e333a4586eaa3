from cam_helpers import pictures
import numpy as np

SIGNED = np.array([[[1.0, -4.0], [0.0, 2.0]]])  # (1, 2, 2): height, width, channels


def test_largest_channel_takes_the_largest_change_either_way():
    np.testing.assert_array_equal(pictures.largest_channel(SIGNED), [[4, 2]])
    np.testing.assert_array_equal(pictures.largest_channel(SIGNED[np.newaxis]), [[[4, 2]]])


def test_around_grey_keeps_the_sign_and_scales_each_image_by_itself():
    pictured = pictures.around_grey(np.stack([SIGNED, 10 * SIGNED, 0 * SIGNED]))
    expected = [[[0.625, 0], [0.5, 0.75]]]
    np.testing.assert_allclose(pictured, [expected, expected, np.full((1, 2, 2), 0.5)])


def test_nothing_changes_in_place():
    kept = SIGNED.copy()
    pictures.largest_channel(SIGNED), pictures.around_grey(SIGNED)
    np.testing.assert_array_equal(SIGNED, kept)
