"""A progress bar for long runs."""

import sys
from contextlib import contextmanager


class _SilentBar:
    def advance(self, amount: int, postfix: str) -> None:
        pass


class _TqdmBar:
    def __init__(self, bar):
        self._bar = bar

    def advance(self, amount: int, postfix: str) -> None:
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(amount)


@contextmanager
def progress_bar(total: int | None, title: str):
    """A bar with the method `advance(amount, postfix)`.

    It shows nothing if `total` is None, if standard error is not a terminal, or if tqdm (the extra
    `gflow-jax[app]`) is not installed.
    """
    if total is None:
        yield _SilentBar()
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _SilentBar()
        return
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=total, desc=title, disable=None, leave=False, bar_format=shape) as bar:
        yield _TqdmBar(bar) if not bar.disable else _SilentBar()
    sys.stderr.flush()
