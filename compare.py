"""Compare the masks of any methods on one split: one scorer, intervals, paired tests.

Reads   dataset/ISIC/<split>_seg.txt and the true masks that it lists (stage 1)
        a folder of masks for each method, ours or of anybody: one binary png an image, at the picture's own
        size, named <id>_segmentation.png as the challenge wants, or <id>.png
Writes  results/compare_<split>.csv   every score of each picture, method by method
        results/compare_<split>.json  means with 95 % intervals, and all paired differences
        results/compare_<split>.md    both as tables, which are also printed
        results/compare_<split>.png   each pair's JA, picture by picture
        results/<baseline>_<split>_masks/  with BASELINES: the masks that nothing was trained for

    python compare.py --SPLIT=Testing --MASKS=ours=results/EnhancedSN_Testing_masks,other=folder
    python compare.py --MASKS=ours=folder,other=folder,third=folder --REFERENCE=ours --BASELINES=otsu,middle

A difference of two methods is tested over the same pictures (paired bootstrap, two-sided). Of many tests some
succeed by chance: p (Holm) is corrected for the number of pairs, for each score by itself; with a REFERENCE
there are fewer of them. Masks that are missing, too many, no masks or of another size are all named before
anything is written.

Cost: 0.06 s for each mask of 6 megapixels on one core, the true ones included.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import itertools
import json
import re
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dataset import isic
from dataset.layout import Layout
from engine import bootstrap, cli, figures, files, images, scoring, settings
from engine.errors import InputError

# --- What is compared
ROOT = '.'                # folder that holds dataset/ and results/
SPLIT = 'Testing'         # Validation or Testing
MASKS = ''                # name=folder,name=folder: a short name for each method, and where its masks lie
REFERENCE = ''            # name of the method that all others are tested against; '' = every pair
BASELINES = ''            # scored, too, untrained: otsu (dark pixels), middle (an ellipse), or otsu,middle

# --- Scores and tests
THRESHOLD = 0.65          # a JA below it counts as 0 in "thresholded JA" (the challenge of 2018)

# --- Machine
NUM_WORKERS = 0           # threads that decode masks; 0 = one for each core


def parse_masks(text):
    """'name=folder,name=folder' -> {name: Path}, as named from here. Raises InputError for every bad part."""
    folders, faults = {}, []
    for part in filter(None, text.split(',')):
        name, _, folder = part.partition('=')
        if not folder or not re.fullmatch(r'[\w.+-]+', name):
            faults.append(f'{part!r}: must be name=folder, the name of letters, digits and .+-_')
        elif name in folders:
            faults.append(f'{part!r}: the name {name} must be given once')
        else:
            folders[name] = Path(folder)
    if faults or not folders:
        raise InputError('MASKS must say whose masks are compared', faults,
                         '--MASKS=ours=results/EnhancedSN_Testing_masks,other=folder')
    return folders


def baselines(cfg):
    """Names of the baselines that are asked for."""
    return [name for name in cfg.BASELINES.split(',') if name]


def check(cfg):
    """Faults of names, a list of lines."""
    given = [*parse_masks(cfg.MASKS), *baselines(cfg)]
    faults = [f'BASELINES: {name} is none of {", ".join(WITHOUT_TRAINING)}'
              for name in baselines(cfg) if name not in WITHOUT_TRAINING]
    faults += [f'{name} is the name of several methods' for name in {*given} if given.count(name) > 1]
    if cfg.REFERENCE and cfg.REFERENCE not in given:
        faults.append(f'REFERENCE={cfg.REFERENCE} must be one of {", ".join(given)}')
    return faults if 0 <= cfg.THRESHOLD <= 1 else [*faults, f'THRESHOLD={cfg.THRESHOLD} must be from 0 to 1']


def middle_mask(image):
    """An ellipse in the middle of an image (H, W, 3), a quarter of it: (H, W) bool."""
    y, x = ((2 * np.arange(side) + 1) / side - 1 for side in image.shape[:2])
    return x**2 + y[:, None]**2 <= 1 / np.pi


WITHOUT_TRAINING = {'otsu': images.otsu_mask, 'middle': middle_mask}


def write_baselines(layout, cfg, pictures):
    """Write the masks of cfg.BASELINES, one a picture; returns {name: folder}."""
    folders = {name: layout.results / f'{name}_{cfg.SPLIT}_masks' for name in baselines(cfg)}

    def draw_masks(path):
        image = images.read_rgb(path)
        for name, folder in folders.items():
            images.write_mask(folder / called(path), WITHOUT_TRAINING[name](image).astype(np.uint8))

    def called(path):
        return f'{path.stem}{scoring.SUFFIX}.png'

    for folder in folders.values():   # masks of pictures that the list no longer has
        for stale in {*folder.glob('*.png')} - {folder / called(path) for path in pictures}:
            stale.unlink()

    if folders:
        files.for_all(draw_masks, pictures, 'baselines', cfg.NUM_WORKERS)
    return folders


def compare(scores, reference=''):
    """Every paired difference: a list of dicts, score by score, fractions.

    scores : {method: (N, 6)}, see scoring.COLUMNS; p_holm is corrected for the pairs of methods in a score.
    reference : the method that is subtracted from each other one; '' = of every two the second
    """
    pairs = list(itertools.combinations(scores, 2)) if not reference else [
        (name, reference) for name in scores if name != reference]
    found = []
    for place, column in enumerate(scoring.COLUMNS):
        tests = [bootstrap.paired_difference(scores[first][:, place], scores[second][:, place])
                 for first, second in pairs]
        corrected = scoring.holm([test.p for test in tests])
        for (first, second), test, p_holm in zip(pairs, tests, corrected, strict=True):
            found.append({'score': column, 'first': first, 'second': second, 'mean': test.mean,
                          'ci95': [test.low, test.high], 'p': test.p, 'p_holm': float(p_holm),
                          'resamples': test.resamples})
    return found


def markdown(summary):
    """The json's content as text: a table of means, and one of differences where there are any."""
    def percent(value, bounds, sign=''):
        low, high = (f'{100 * bound:{sign}.1f}' for bound in bounds)
        return f'{100 * value:{sign}.1f} [{low}, {high}]'

    rows = [[name, *(percent(scores[column], scores['ci95'][column]) for column in scoring.COLUMNS)]
            for name, scores in summary['methods'].items()]
    parts = [f'{summary["split"]}, n = {summary["n"]}: mean over the pictures in percent [95 % interval]; '
             f'thresholded JA counts those below {100 * summary["threshold"]:g} % as 0',
             tabulate(rows, ['method', *scoring.COLUMNS], 'github', disable_numparse=True)]
    if summary['differences']:
        rows = [[found['score'], f'{found["first"]} - {found["second"]}',
                 percent(found['mean'], found['ci95'], '+'), f'{found["p"]:.2g}', f'{found["p_holm"]:.2g}']
                for found in summary['differences']]
        parts += [f'Paired over the pictures{bootstrap.of_few(summary["n"])}', tabulate(
            rows, ['score', 'difference', 'points', 'p', 'p (Holm)'], 'github', disable_numparse=True)]
    if summary['split'] == 'Validation':
        parts.append(scoring.SELECTED.format(''))
    return '\n\n'.join(parts) + '\n'


def draw(scores, differences, path):
    """A scatter of JA for each tested pair; above the diagonal are pictures where the second is better.

    scores : {method: (N, 6)}; differences : what `compare` returns
    """
    tests = [found for found in differences if found['score'] == 'JA']
    columns = min(len(tests), 4)
    rows = -(-len(tests) // columns)
    figure, grid = figures.subplots(rows, columns, (1 + 3.2 * columns, 0.6 + 3.2 * rows))
    for axes in np.ravel(grid)[len(tests):]:
        axes.axis('off')
    for found, axes in zip(tests, np.ravel(grid), strict=False):
        first, second = found['first'], found['second']
        axes.plot([0, 1], [0, 1], color='black', linewidth=0.8)
        axes.scatter(scores[first][:, 0], scores[second][:, 0], s=14, alpha=0.5, linewidths=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal', xlabel=f'JA of {first}',
                 ylabel=f'JA of {second}')
        axes.set_title(f'{first} - {second}: {100 * found["mean"]:+.1f}, p (Holm) {found["p_holm"]:.2g}',
                       fontsize=8)
        axes.grid(alpha=0.3)
    figures.save(figure, path)


def main():
    cfg = settings.resolve(globals(), choices={'SPLIT': ('Validation', 'Testing')}, check=check)
    layout, folders = Layout(cfg.ROOT), parse_masks(cfg.MASKS)
    listed = isic.read_segmentation_list(layout, cfg.SPLIT)
    truths = {image.stem: truth for image, truth in listed}
    found = scoring.score_folders(folders, truths, cfg.NUM_WORKERS)
    drawn = write_baselines(layout, cfg, [image for image, _ in listed])
    folders |= drawn
    found |= scoring.score_folders(drawn, truths, cfg.NUM_WORKERS)
    scores = {name: scoring.thresholded(values, cfg.THRESHOLD) for name, values in found.items()}
    summary = {'split': cfg.SPLIT, 'n': len(truths), 'threshold': cfg.THRESHOLD,
               'methods': {name: {'folder': str(folders[name]), **scoring.summary(values)}
                           for name, values in scores.items()},
               'differences': compare(scores, cfg.REFERENCE)}
    stem = layout.results / f'compare_{cfg.SPLIT}'
    files.write_csv(stem.with_suffix('.csv'), [
        ['image_id', *(f'{name} {column}' for name in scores for column in scoring.COLUMNS)],
        *([image_id, *(f'{value:.6f}' for value in row)]
          for image_id, row in zip(truths, np.hstack(list(scores.values())), strict=True))])
    files.write_text(stem.with_suffix('.json'), json.dumps(summary, indent=1) + '\n')
    text = markdown(summary)
    files.write_text(stem.with_suffix('.md'), text)
    print(f'\n{text}\nwritten: {stem}.csv, {stem}.json, {stem}.md')
    stem.with_suffix('.png').unlink(missing_ok=True)   # of an earlier comparison
    if len(scores) > 1:
        draw(scores, summary['differences'], stem.with_suffix('.png'))
        print(f'scatter: {stem}.png')


if __name__ == '__main__':
    cli.launch(main)
