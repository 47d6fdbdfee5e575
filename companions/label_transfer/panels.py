"""Panels of what a generator sees and draws, and the curves of its map's quality."""
import numpy as np

from companions.label_transfer import maps
from engine import figures, images
from net.inputs import to_pictures

TITLES = ('real', 'heat map', 'fake', 'mask', 'composite', 'recon')
CURVES = ('JA', 'AUC', 'best-threshold JA', 'JA at 0.5')


def row(translator, picture):
    """The six pictures of TITLES for one picture (H, W, 3) uint8."""
    from companions.label_transfer.networks import composite
    found, placed = translator.draw(picture)
    heat = found.heat[0].cpu().numpy()
    heat = (heat - heat.min()) / max(np.ptp(heat), 1e-6)
    real, fake, mixed, recon = (to_pictures(one)[0] for one in (
        placed, found.fake, composite(placed, found.fake, found.mask), found.recon))
    return [real, maps.enlarged(heat, translator.side), fake, found.mask[0, 0].cpu().numpy(), mixed, recon]


def draw(translator, pictures, names, path, masks=None, truths=None, said='found'):
    """Write a panel, a row a picture. masks, truths : bool arrays of any size, drawn as outlines last"""
    rows, titles = [], [*TITLES, *([f'truth, {said}'] if masks is not None else [])]
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        shown = row(translator, picture)
        if masks is not None:
            size = shown[0].shape[1::-1]
            outlines = [images.resize_mask(one[number].astype(np.uint8), size) for one in (truths, masks)]
            shown.append(figures.outlined(shown[0], *outlines))
        rows.append((name, shown))
    figures.panel(rows, titles, path)


def curves(rows, path):
    """Draw the validation curves: how well the map ranks, and how well it is cut, over steps.

    rows : of metrics.jsonl
    """
    figure, axes = figures.subplots(1, 1, (5.6, 3.4))
    steps = [one['step'] for one in rows]
    for name, style in zip(CURVES, ('k-', 'C0--', 'C1-.', 'C2:'), strict=True):
        axes.plot(steps, [one.get(name, np.nan) for one in rows], style, marker='.', markersize=4, label=name)
    axes.set(ylim=(0, 1), title='attention on validation pictures')
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figures.steps_axis(axes)
    figures.save(figure, path)
