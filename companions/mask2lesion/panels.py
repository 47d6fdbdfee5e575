"""Panels of masks and of what is drawn for them, as the paper's figure has them."""
import numpy as np

from engine import figures

COLUMNS = 8


def grid(rows, path, under=None):
    """Write a panel of some masks of each kind, and of the pictures drawn for them below each row.

    rows : {kind: [mask (S, S) of {0, 1}]}; under : {kind: [picture (S, S, 3)]} of the same masks, or None
    """
    lines = []
    for kind, masks in rows.items():
        some = spread(masks)
        blank = [np.full((*masks[0].shape, 3), 255, np.uint8)] * (COLUMNS - len(some))
        lines.append((kind, [*some, *blank]))
        if under is not None:
            lines.append(('drawn', [*spread(under[kind]), *blank]))
    figures.panel(lines, [''] * COLUMNS, path)


def spread(items):
    """Up to COLUMNS of a list's items, evenly spread."""
    return [items[number] for number in np.linspace(0, len(items) - 1, min(COLUMNS, len(items))).astype(int)]
