"""How far a long call has come: a bar, nothing, or what the caller makes of it."""

from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

Progress = bool | Callable[[Sequence], Iterable]


def passes(steps: Sequence, what: str, progress: Progress) -> Iterable:
    """Return steps to go through, which tell on the way how far they have come.

    Parameters
    ----------
    steps
        One for each pass through a network.
    what
        What a bar calls them.
    progress
        True for a bar on stderr, False for none. A callable returns an iterable of the same steps,
        as ``tqdm`` does; what it raises ends the call.
    """
    if callable(progress):
        return progress(steps)
    return tqdm(steps, what, disable=not progress, leave=False)
