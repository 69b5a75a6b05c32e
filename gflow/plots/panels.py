"""A table of lettered axes."""

from string import ascii_lowercase

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from gflow.arguments import ArgumentError, positive, positive_int


def panels(
    count: int, *, columns: int = 3, width: float = 3.8, height: float = 3.2
) -> tuple[Axes, ...]:
    """A new figure of so many axes, row by row, with the letters a, b, c, … at their corners.

    ```python
    t = jnp.geomspace(1, 100, 50)
    a, b = gflow.plots.panels(2)
    gflow.plots.curves({"gap": (t, 9 / t**3)}, ax=a)
    gflow.plots.curves({"norm": (t, t**0.25)}, ax=b)
    a.figure.suptitle("A gap and a norm")
    ```

    **Arguments:** `columns`: the most axes in a row. `width`, `height`: of one of them, in inches.

    **Raises:** `ArgumentError` for more than 26 panels, and what is not positive.
    """
    count, columns = positive_int("count", count), positive_int("columns", columns)
    width, height = positive("width", width), positive("height", height)
    if count > len(ascii_lowercase):
        raise ArgumentError("count", count, f"at most {len(ascii_lowercase)} panels in a figure")
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = plt.figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = tuple(figure.add_subplot(rows, columns, 1 + k) for k in range(count))
    for ax, letter in zip(axes, ascii_lowercase):
        ax.spines[["top", "right"]].set_visible(False)
        # Beside what stands above the axes.
        place = {"xy": (0, 1), "xytext": (-26, 5), "textcoords": "offset points"}
        ax.annotate(letter, **place, xycoords="axes fraction", fontsize="large", fontweight="bold")
    return axes
