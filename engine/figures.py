"""The pictures that a run draws: curves of loss and score, and panels of validation images."""
import itertools
import math

import cv2
import numpy as np

from engine import files

DPI = 110
TRUTH, PREDICTION, COARSE = (0, 150, 60), (220, 30, 160), (0, 180, 235)   # contours; width tells them, too
ERROR = '#c81e1e'
OPACITY = 0.6        # of heat over a picture
COLUMN_WIDTH = 1.7   # inches


def losses(rows, monitor):
    """Names of the losses in rows as in metrics.jsonl: what stands before the first score, `monitor`."""
    return [name for name in itertools.takewhile(lambda name: name != monitor, rows[-1])
            if name != 'step' and not name.startswith('lr')]   # none where the start alone is scored


def curves(rows, monitor, path, smaller_is_better=False):
    """Draw each training loss, on a scale of its own, and the monitored score over steps.

    rows : list of dicts as in metrics.jsonl, with what the training logs before the scores
    monitor : name of the first score, None where there is none to draw; path : png to write
    """
    names = losses(rows, monitor) + [monitor] * (monitor is not None)
    columns = max(1, math.ceil(math.sqrt(len(names))))
    lines = max(1, math.ceil(len(names) / columns))
    figure, grid = subplots(lines, columns, (3.4 * columns, 3.0 * lines))
    steps = [row['step'] for row in rows]
    for axes, name in itertools.zip_longest(np.ravel(grid), names):
        if name is None:
            axes.axis('off')
            continue
        values, title = [row.get(name, np.nan) for row in rows], name
        axes.plot(steps, values, color='black', marker='.', markersize=3)
        if name == monitor:
            title = f'validation {name}'
            if np.isfinite(values).any():
                best = int(np.nanargmin(values) if smaller_is_better else np.nanargmax(values))
                axes.plot(steps[best], values[best], 'o', color='black', fillstyle='none', markersize=10)
                title += f', best {values[best]:.4f} at step {steps[best]}'
        axes.set_title(title, fontsize=9)
        steps_axis(axes)
        axes.grid(alpha=0.3)
    save(figure, path)


def steps_axis(axes):
    """Whole numbers of steps along x."""
    from matplotlib.ticker import MaxNLocator  # slow to import
    axes.xaxis.set_major_locator(MaxNLocator('auto', integer=True, min_n_ticks=1))
    axes.set_xlabel('step')


def panel(rows, titles, path, errors=()):
    """Draw a grid of pictures, one row an image.

    errors : numbers of the rows to mark, by colour and by a cross before the caption
    rows : list of (caption, [pictures]); a picture is (H, W, 3) uint8, a mask (H, W) uint8 of {0, 1}, or
    (H, W) float in [0, 1] or below, drawn as a heat map
    titles : one a column; path : png or pdf to write, or a list
    """
    tallest = max(picture.shape[0] / picture.shape[1] for _, pictures in rows for picture in pictures)
    figure, grid = subplots(len(rows), len(titles), (
        COLUMN_WIDTH * len(titles), COLUMN_WIDTH * len(rows) * min(1, tallest) + 0.3))
    grid = np.asarray(grid).reshape(len(rows), len(titles))
    for number, (line, (caption, pictures)) in enumerate(zip(grid, rows, strict=True)):
        for axes, picture in zip(line, pictures, strict=True):
            if picture.ndim == 2:
                axes.imshow(picture, cmap='gray' if picture.dtype == np.uint8 else 'inferno', vmin=0, vmax=1)
            else:
                axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
        label = line[0].set_ylabel(caption, fontsize=6)
        if number in errors:
            label.set(text=f'\u2717 {caption}', color=ERROR)
            for spine in (spine for axes in line for spine in axes.spines.values()):
                spine.set(color=ERROR, linewidth=2)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    save(figure, path)


def outlined(image, truth=None, prediction=None, coarse=None):
    """An (H, W, 3) uint8 image with the contours of masks (H, W) > 0: the prediction's thin, others thick."""
    drawn = image.copy()
    width = max(1, min(image.shape[:2]) // 110)
    for mask, colour, thickness in ((truth, TRUTH, 2 * width), (coarse, COARSE, 2 * width),
                                    (prediction, PREDICTION, width)):
        binary = np.zeros(image.shape[:2], np.uint8) if mask is None else (mask > 0).astype(np.uint8)
        contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, colour, thickness, cv2.LINE_AA)
    return drawn


def warmed(image, cam, opacity=OPACITY):
    """An (H, W, 3) uint8 image under the positive part of a localisation map (h, w), maximum 1, as heat.

    opacity : 0 to 1, of the heat where the map is 1
    """
    heat = cv2.resize(cam.clip(0, 1), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = opacity * heat[..., None]
    return (image * (1 - alpha) + colours * alpha).round().astype(np.uint8)


def subplots(rows, columns, size):
    """A figure of `size` (width, height in inches) that needs no display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def save(figure, paths):
    """Write a figure to a path or to several; the suffix says the format."""
    import matplotlib  # slow to import
    from matplotlib.text import Text
    for text in figure.findobj(Text):
        text.set_parse_math(False)   # names may hold dollar signs
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:
        undated = {'metadata': {'CreationDate': None}} if str(path).endswith('.pdf') else {}
        # Type 42: printers of journals refuse matplotlib's usual Type 3 fonts.
        with files.replacing(path) as temporary, matplotlib.rc_context({'pdf.fonttype': 42}):
            figure.savefig(temporary, **undated)
