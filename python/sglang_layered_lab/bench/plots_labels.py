"""Labels beside points, moved so that they cover neither each other nor points. It knows no benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.text import Text

Boxes = npt.NDArray[np.float64]  # rows of left, bottom, right, top in pixels
RADII = (6.0, 15.0, 26.0, 38.0)  # points from the dot to the label
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # the first is taken if free
DOT, LINE = 4.0, 1.5  # half of the box of a dot, of a place on a line, in pixels
LINE_STEP = 5.0  # pixels between the places on a line
OUTSIDE = 4.0  # a label's area outside of the axes weighs this much more than area on other labels


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
    axis = labels[0].axes
    taken = [_around(axis.transData.transform(place), DOT) for place in dots]
    taken += [_around(place, LINE) for place in _along(axis.transData.transform(line.get_xydata()))]
    taken += [_box(text) for text in others]
    for label in labels:
        boxes = np.array(taken)
        _put(label, min(_offsets(), key=lambda offset: _cost(label, offset, boxes)))
        taken.append(_box(label))


def _offsets() -> Iterator[tuple[float, float]]:
    for radius in RADII:
        yield from ((radius * x, radius * y) for x, y in SIDES)


def _put(label: Any, offset: tuple[float, float]) -> None:
    x, y = offset
    label.set_position(offset)
    label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    label.set_verticalalignment("bottom" if y > 0 else "top" if y < 0 else "center")


def _cost(label: Any, offset: tuple[float, float], taken: Boxes) -> float:
    """Area of the label that lies on other things or outside, and a little for being far."""
    _put(label, offset)
    box = _box(label)
    outside = np.prod(box[2:] - box[:2]) - _shared(box, label.axes.bbox.extents[None])
    return float(_shared(box, taken) + OUTSIDE * outside + 0.1 * max(map(abs, offset)))


def _along(corners: Boxes) -> Iterator[Boxes]:
    for start, end in pairwise(corners):
        num_steps = int(np.hypot(*(end - start)) // LINE_STEP) + 1
        yield from (start + (end - start) * step / num_steps for step in range(num_steps))


def _box(text: Any) -> Boxes:
    """Its letters alone, without the arrow of an annotation."""
    return np.array(Text.get_window_extent(text).extents)


def _around(place: Boxes, half: float) -> Boxes:
    return np.concatenate([place - half, place + half])


def _shared(box: Boxes, others: Boxes) -> float:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.clip(sides, 0.0, None), axis=1).sum())
