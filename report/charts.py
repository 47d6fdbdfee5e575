"""What the report shows: charts as inline SVG, pictures as data."""
import base64
import hashlib
import io
import math
import re

import cv2
import numpy as np
from markupsafe import Markup, escape

from engine import figures, metrics
from mbdcnn import panels
from report.render import CLASS_COLOURS, class_colour

CHART = 4.4, 3.1    # inches; about a phone's width, so that the lettering keeps its size there
SIDE = 340          # px, long side of the pictures; fine enough that both contours can be told apart
JPEG_QUALITY = 82
BINS = 10           # of the reliability diagrams, over [0, 1]
HISTOGRAM_BINS = 20
LINES = 4           # of a chart, at most; more go into a chart of their own
MONITORED = {'CoarseSN': 'JA', 'MaskCN': 'mean AUC', 'EnhancedSN': 'JA'}   # the score that chose the weights
STYLES = tuple({'linestyle': line, 'marker': marker, 'markersize': 4.5}
               for line, marker in zip(('-', '--', ':', '-.'), 'os^D', strict=True))
# Matplotlib knows no CSS variables: it draws in these colours, which stand for one each. What is no class is
# drawn in ink, so that a colour has one meaning.
INK, CLASS = '#010101', [f'#0102{number:02x}' for number in range(len(CLASS_COLOURS))]
VARIABLES = {INK: 'currentColor'} | {colour: class_colour(number) for number, colour in enumerate(CLASS)}
DRAWING = {'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 10, 'hatch.linewidth': 0.6,
           'text.color': INK, 'axes.edgecolor': INK, 'axes.labelcolor': INK, 'xtick.color': INK,
           'ytick.color': INK, 'grid.color': INK, 'hatch.color': INK, 'legend.frameon': False,
           'legend.fontsize': 9, 'axes.spines.top': False, 'axes.spines.right': False,
           'text.parse_math': False}   # classes may be named with dollar signs


def percent(value, factor=100):
    """factor * value with one digit, a dash for what is absent or undefined."""
    return '–' if value is None or not math.isfinite(value) else f'{factor * value:.1f}'


def draw_case(image_path, truth_path, found_path):
    """Image, true mask, found mask and both contours: [{what, data (an URI), width, height}].

    The pictures keep their shape; the long side is SIDE. Raises InputError for unusable files.
    """
    image, (truth, found) = panels.shown(image_path, (truth_path, found_path), SIDE)
    return _tiles({'image': image, 'truth': truth, 'found': found,
                   'contours': figures.outlined(image, truth, found)})


def draw_error(image_path, maps):
    """A picture, and localisation maps over it: as `draw_case`. maps : {what it is of: (h, w)}"""
    image, _ = panels.shown(image_path, (), SIDE)
    return _tiles({'image': image} | {what: figures.warmed(image, cam) for what, cam in maps.items()})


def _tiles(drawn):
    """[{what, data (an URI), width, height}] of {what: picture or mask}, all of one size."""
    return [{'what': what, 'data': _data(array), 'width': array.shape[1], 'height': array.shape[0]}
            for what, array in drawn.items()]


def _data(array):
    """A data URI: jpg of an (H, W, 3) picture, one-bit png of an (H, W) mask."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
        kind, options = 'jpeg', [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    else:
        kind, options = 'png', [cv2.IMWRITE_PNG_BILEVEL, 1]
    data = cv2.imencode(f'.{kind}', array, options)[1]
    return f'data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}'


def chart(draw, label, caption, size=CHART):
    """{svg, caption} of a chart as inline SVG: draw(figure) draws on a Matplotlib figure.

    label : what a screen reader says in place of the chart; caption : the text below it
    """
    import matplotlib  # slow to import
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    file = io.StringIO()
    with matplotlib.rc_context(DRAWING):
        figure = Figure(figsize=size, layout='constrained')
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(file, format='svg', transparent=True,
                       metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type')))
    return {'svg': Markup(_inline(file.getvalue(), label)), 'caption': caption}


def _inline(svg, label):
    """Turn an SVG file of Matplotlib's into an element of a page that holds several of them."""
    svg = re.sub(r'<defs>\s*<style.*?</style>\s*</defs>', '', svg[svg.index('<svg'):], count=1, flags=re.S)
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>',
                 lambda found: f'<svg {found[1]} role="img" aria-label="{escape(label)}">', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;? ?", '', svg)   # the page's own
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    unique = 'c' + hashlib.sha256((label + svg).encode()).hexdigest()[:8]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{unique}{found[1]}"' if found[1] in used else '', svg)
    svg = re.sub(r'(href="#|url\(#)', rf'\g<1>{unique}', svg)
    return svg.replace('xlink:href', 'href').strip()


def style(number, label=None):
    """Line style of a chart's line; in its class's colour where it is of a class number."""
    return STYLES[number % LINES] | {'color': INK if label is None else CLASS[label % len(CLASS)]}


def curve_charts(network, rows, tasks):
    """Charts of every training loss, each on a scale of its own, and of validation scores.

    rows : list of dicts as in metrics.jsonl; tasks : {name: class number} of mask-CN's
    """
    charts, losses = [], figures.losses(rows, MONITORED[network])
    if losses:
        charts.append(_loss_chart(network, rows, losses))
    scores = ('mean AUC', *(f'{task} AUC' for task in tasks)) if network == 'MaskCN' else ('JA', 'DI')
    names = [name for name in scores if name in rows[-1]]   # the first row may be that of the start
    return charts + [_score_chart(network, rows, names[start:start + LINES], MONITORED[network], tasks)
                     for start in range(0, len(names), LINES)]


def _loss_chart(network, rows, names):
    steps = [row['step'] for row in rows]
    caption = f'{network}: training {", ".join(names)} over steps, each on a scale of its own.'

    def draw(figure):
        for axes, name in zip(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names,
                              strict=True):
            axes.plot(steps, [row.get(name, np.nan) for row in rows], markevery=_some(steps), **style(0))
            axes.set_ylabel(name)
            axes.grid(alpha=0.2)
        figures.steps_axis(axes)
    return chart(draw, f'Line charts. {caption}', caption, (CHART[0], 1 + 1.05 * len(names)))


def _score_chart(network, rows, names, monitor, tasks):
    """Lines over training steps; the best of the monitored score, which chose the weights, is marked."""
    steps = [row['step'] for row in rows]
    series = {name: [row.get(name, np.nan) for row in rows] for name in names}
    place, caption = None, f'{network}: validation scores over training steps.'
    if np.isfinite(series.get(monitor, np.nan)).any():
        place = int(np.nanargmax(series[monitor]))
        caption += f' Best {monitor}: {100 * series[monitor][place]:.1f} % at step {steps[place]}.'

    def draw(figure):
        axes = figure.subplots()
        shown = {}
        for number, (name, values) in enumerate(series.items()):
            shown[name], = axes.plot(steps, values, markevery=_some(steps),
                                     **style(number, tasks.get(name.removesuffix(' AUC'))))
        if place is not None:
            shown['best'], = axes.plot(steps[place], series[monitor][place], 'o', color=INK, fillstyle='none',
                                       markersize=11)
        axes.set_ylabel('validation score')
        figures.steps_axis(axes)
        axes.grid(alpha=0.2)
        _legend(axes, shown)
    return chart(draw, f'Line chart. {caption}', caption)


def _legend(axes, shown, place='best'):
    """A legend of {label: line}. By themselves, labels that begin with an underscore are left out."""
    axes.legend(list(shown.values()), list(shown), loc=place)


def _some(points):
    """How many points of a line share a marker."""
    return max(1, len(points) // 15)


def roc_charts(split, probabilities, labels, tasks):
    """ROC curves of the tasks, LINES in a chart, with the points that the arg-max decision reaches. Without
    any, the {text} that says why. tasks : {name: class number}"""
    scores = metrics.classification_scores(probabilities, labels, tasks)
    areas = {task: scores[task]['AUC'] for task in tasks if scores[task]['AUC'] is not None}
    if not areas:
        return [{'text': f'{split}: no ROC curve, because the split holds one class only.'}]
    parts = list(areas.items())
    return [_roc_chart(split, probabilities, labels, scores, dict(parts[start:start + LINES]), tasks)
            for start in range(0, len(areas), LINES)]


def _roc_chart(split, probabilities, labels, scores, areas, tasks):
    from sklearn.metrics import roc_curve

    def draw(figure):
        axes, shown = figure.subplots(), {}
        for number, (task, area) in enumerate(areas.items()):
            false, true, _ = roc_curve(labels == tasks[task], probabilities[:, tasks[task]])
            look = style(number, tasks[task])
            shown[f'{task}, AUC {100 * area:.1f} %'], = axes.plot(false, true, markevery=_some(false), **look)
            shown[f'{task}, as decided'], = axes.plot(
                1 - scores[task]['SP'], scores[task]['SE'], linestyle='', marker=look['marker'], color=INK,
                fillstyle='none', markersize=10)
        shown['guessing'], = axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 4)))
        axes.set(xlabel='1 - specificity', ylabel='sensitivity', aspect='equal')
        axes.grid(alpha=0.2)
        _legend(axes, shown, 'lower right')
    told = ', '.join(f'{task} AUC {100 * area:.1f} %' for task, area in areas.items())
    caption = (f'{split}: {told}; 9 crops, n = {len(labels)}. "As decided": the point that the most '
               'probable class reaches.')
    return chart(draw, f'ROC curves. {caption}', caption, (CHART[0], 4.2))


def calibration(probability, happened):
    """Bins of a predicted probability: (counts, mean predicted, share that happened, calibration error).

    probability : (N,) in [0, 1]; happened : (N,) bool. Arrays of BINS; an empty bin's means are NaN.
    The error is the mean over images of |mean predicted - share| of the image's bin.
    """
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid='ignore'):
        predicted = np.bincount(bins, probability, BINS) / counts
        share = np.bincount(bins, happened, BINS) / counts
    return counts, predicted, share, float(np.nansum(counts * abs(predicted - share)) / counts.sum())


def reliability_chart(split, name, number, probabilities, labels):
    """How often a class was true among images of one predicted probability, and how many they are."""
    counts, predicted, share, error = calibration(probabilities[:, number], labels == number)
    held = counts > 0
    low, high = _wilson(share[held], counts[held])

    def draw(figure):
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
        perfect, = top.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 4)))
        top.vlines(predicted[held], low, high, color=CLASS[number % len(CLASS)], linewidth=1, alpha=0.6)
        observed, = top.plot(predicted[held], share[held], color=CLASS[number % len(CLASS)], **STYLES[0])
        top.set(ylabel='observed share', ylim=(-0.04, 1.04), xlim=(0, 1))
        top.legend([perfect, observed], ['perfect', name], loc='upper left')
        top.grid(alpha=0.2)
        bars = bottom.bar((np.arange(BINS) + 0.5) / BINS, counts, 0.8 / BINS, facecolor='none', hatch='////',
                          edgecolor=CLASS[number % len(CLASS)])
        bottom.bar_label(bars, fontsize=8, padding=1)
        bottom.set(xlabel=f'predicted probability of {name}', ylabel='images', ylim=(0, 1.3 * counts.max()))
    caption = f'{split}, {name}: expected calibration error {100 * error:.1f} % (n = {len(labels)}).'
    return chart(draw, f'Reliability diagram. {caption}', caption, (CHART[0], 4.0))


def _wilson(share, counts, z=1.96):
    """95 % intervals of observed shares: (low, high)."""
    middle = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return middle - half, middle + half


def overlap_chart(network, split, overlaps):
    """Histogram of the Jaccard index over images."""
    mean, median = float(np.mean(overlaps)), float(np.median(overlaps))

    def draw(figure):
        axes = figure.subplots()
        axes.hist(overlaps, np.linspace(0, 1, HISTOGRAM_BINS + 1), facecolor='none', hatch='////',
                  edgecolor=INK)
        axes.axvline(mean, color=INK, linewidth=2, linestyle='--', label=f'mean {100 * mean:.1f}')
        axes.axvline(median, color=INK, linestyle=':', linewidth=2, label=f'median {100 * median:.1f}')
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel='Jaccard index (JA)', ylabel='images', xlim=(0, 1))
        axes.legend(loc='upper left')
    caption = (f'{network} on {split}: mean {100 * mean:.1f} %, median {100 * median:.1f} %, '
               f'worst {100 * min(overlaps):.1f} % (n = {len(overlaps)}).')
    return chart(draw, f'Histogram of the Jaccard index. {caption}', caption)
