"""A progress bar for long runs."""

import sys
from contextlib import contextmanager


class _Silent:
    def advance(self, amount: int, postfix: str) -> None:
        pass


class _Bar:
    def __init__(self, bar):
        self._bar = bar

    def advance(self, amount: int, postfix: str) -> None:
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(amount)


@contextmanager
def progress_bar(total: int | None, title: str):
    """A bar with `advance(amount, postfix)`; silent for a `total` of None, where standard error is
    not a terminal, and where tqdm (the extra `gflow-jax[app]`) is not installed."""
    if total is None:
        yield _Silent()
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _Silent()
        return
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=total, desc=title, disable=None, leave=False, bar_format=shape) as bar:
        yield _Bar(bar) if not bar.disable else _Silent()
    sys.stderr.flush()
