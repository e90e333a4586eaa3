"""Which class is meant by a name or a number, and which names come near one that there is not."""

from collections.abc import Sequence
import difflib

SUGGESTIONS = 6


def find_class(wanted: str, labels: Sequence[str]) -> int:
    """Return the index of a class that is given by its label or its index.

    Parameters
    ----------
    wanted
        A label, as in ``"tabby"``; case, hyphens and underscores do not matter, so ``"tiger cat"``
        is ``tiger_cat``. Or an index, as in ``"281"``, which goes before a label that is a number.
    labels
        One for each class, in order.

    Raises
    ------
    ValueError
        If there is no such class; the message has the nearest. If several classes have this label,
        as ImageNet's two cranes do; it has their indices.
    """
    is_number = wanted.strip().isdecimal()
    if is_number and int(wanted) < len(labels):
        return int(wanted)
    for same in (str, _plain):  # "Cardigan" is a dog, "cardigan" is not
        found = [index for index, label in enumerate(labels) if same(label) == same(wanted)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"expected a label of one class, received '{wanted}', which is that of "
                f"{' and '.join(map(str, found))}: give the index."
            )
    if is_number:
        raise ValueError(
            f"expected a class from 0 to {len(labels) - 1}, received {int(wanted)}: there are "
            f"{len(labels)}."
        )
    near = _nearest(wanted, labels)
    way_out = (
        f"did you mean {' or '.join(repr(name) for name in near)}?"
        if near
        else ("give a label of the network's own list, or an index.")
    )
    raise ValueError(f"expected the label or index of a class, received '{wanted}': {way_out}")


def _nearest(wanted, labels):
    """Labels with the same word in them, and labels that are spelt alike."""
    plain, words = {_plain(label): label for label in labels}, set(_plain(wanted).split())
    with_word = [label for name, label in plain.items() if words & set(name.split())]
    alike = difflib.get_close_matches(_plain(wanted), plain, SUGGESTIONS, cutoff=0.7)
    return list(dict.fromkeys([*(plain[name] for name in alike), *with_word]))[:SUGGESTIONS]


def _plain(label):
    return " ".join(label.replace("_", " ").replace("-", " ").lower().split())
