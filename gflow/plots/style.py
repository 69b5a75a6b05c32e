"""The colours of all figures, and the axes they are drawn into."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FLOW = "black"
ACTIVE, NEGATIVE = "#c44536", "#2a6f97"


def new_axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax
