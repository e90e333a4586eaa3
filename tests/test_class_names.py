"""Classes by label, by index, and what comes near."""

import re

from cam_helpers.class_names import find_class
import pytest

LABELS = ["tabby", "tiger_cat", "Persian_cat", "crane", "Cardigan", "cardigan", "crane", "T-shirt"]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("tabby", 0),
        ("tiger_cat", 1),
        ("tiger cat", 1),
        ("Tiger-Cat", 1),
        (" persian  cat ", 2),
        ("Cardigan", 4),
        ("cardigan", 5),
        ("t shirt", 7),
        ("0", 0),
        ("6", 6),
        ("007", 7),
    ],
)
def test_a_class_by_label_or_index(wanted, index):
    assert find_class(wanted, LABELS) == index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "tigr cat",
            "expected the label or index of a class, received 'tigr cat': did you mean "
            "'tiger_cat' or 'Persian_cat'?",
        ),
        ("cat", "received 'cat': did you mean 'tiger_cat' or 'Persian_cat'?"),
        ("zebra", "received 'zebra': give a label of the network's own list, or an index."),
        ("", "received '': give a label of the network's own list, or an index."),
        ("-1", "received '-1': give a label"),
        ("8", "expected a class from 0 to 7, received 8: there are 8."),
        (
            "CRANE",
            "expected a label of one class, received 'CRANE', which is that of 3 and 6: give "
            "the index.",
        ),
        ("CARDIGAN", "which is that of 4 and 5: give the index."),
    ],
)
def test_what_is_no_class_is_refused_with_what_comes_near(wanted, message):
    with pytest.raises(ValueError, match=f"{re.escape(message)}"):
        find_class(wanted, LABELS)


def test_a_label_that_is_a_number_comes_after_the_index():
    digits = ["9", "8", "7", "1"]
    assert [find_class(each, digits) for each in ("9", "8", "1")] == [0, 1, 1]
    with pytest.raises(ValueError, match="from 0 to 3, received 4"):
        find_class("4", digits)


def test_no_more_than_six_are_suggested():
    with pytest.raises(ValueError, match="did you mean") as refused:
        find_class("cat", [f"cat {letter}" for letter in "abcdefghij"])
    assert str(refused.value).count("'cat ") == 6
