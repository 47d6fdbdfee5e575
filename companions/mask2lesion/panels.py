"""Panels of masks and of what is drawn for them, as the paper's figure has them."""
import numpy as np

from engine import figures
from mbdcnn.panels import spread

COLUMNS = 8


def grid(rows, path, under=None):
    """Write a panel of some masks of each kind, and of the pictures drawn for them below each row.

    rows : {kind: [mask (S, S) of {0, 1}]}; under : {kind: [picture (S, S, 3)]} of the same masks, or None
    """
    lines = []
    for kind, masks in rows.items():
        chosen = spread(len(masks), COLUMNS)
        blank = [np.full((*masks[0].shape, 3), 255, np.uint8)] * (COLUMNS - len(chosen))
        lines.append((kind, [*(masks[number] for number in chosen), *blank]))
        if under is not None:
            lines.append(('drawn', [*(under[kind][number] for number in chosen), *blank]))
    figures.panel(lines, [''] * COLUMNS, path)
