"""Labels beside points, moved so that they cover neither each other nor points. It knows no benchmark."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

RADII = (6.0, 15.0, 26.0, 38.0)  # points from the dot to the label
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # the first is taken if free
DOT = 4.0  # half of the box of a dot in pixels
OUTSIDE = 4.0  # a label that leaves the axes weighs as much as one that covers so many things


def spread(
    figure: Figure, labels: Sequence[Any], dots: Iterable[Any], line: Any, others: Sequence[Any] = ()
) -> None:
    """Move annotations so that they cover as little as possible.

    Args:
        figure: theirs; its layout is done here.
        labels: annotations of points of one axis, the most important first.
        dots: places in data coordinates that labels should leave free.
        line: a drawn line that they should leave free.
        others: texts that labels should leave free.
    """
    figure.draw_without_rendering()
    if not labels:
        return
    data = labels[0].axes.transData
    taken = [Bbox([place - DOT, place + DOT]) for place in map(data.transform, dots)]
    taken += [Text.get_window_extent(text) for text in others]
    path = line.get_path().transformed(data)
    offsets = [(radius * x, radius * y) for radius, (x, y) in product(RADII, SIDES)]

    def cost(label: Any, x: float, y: float) -> float:
        """How many things the label covers there, and a little for being far."""
        _put(label, x, y)
        box = Text.get_window_extent(label)  # its letters alone, without the arrow
        is_inside = all(label.axes.bbox.contains(*corner) for corner in (box.min, box.max))
        covered = box.count_overlaps(taken) + path.intersects_bbox(box, filled=False)
        return float(covered + OUTSIDE * (not is_inside) + max(abs(x), abs(y)) / 1000)

    for label in labels:
        _put(label, *min(offsets, key=lambda offset: cost(label, *offset)))
        taken.append(Text.get_window_extent(label))


def _put(label: Any, x: float, y: float) -> None:
    label.set_position((x, y))
    label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    label.set_verticalalignment("bottom" if y > 0 else "top" if y < 0 else "center")
