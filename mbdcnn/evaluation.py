"""Section 8 of the evaluation protocol: per-image scores at full size, and what is written of them."""
import csv
import io
import json
import zipfile
import zlib
from itertools import chain

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from dataset import extraction
from dataset.classes import PAPER
from dataset.isic import MASK_SUFFIX
from dataset.layout import Layout
from engine import bootstrap, checkpoints, files, hardware, images, metrics, scoring
from engine.errors import InputError
from engine.samples import to_device
from mbdcnn import networks, paper_scores
from mbdcnn.inference import counts_on_device, place, segment_files

# What a core of a CPU takes at a time; feature maps of more leave its cache (32 crops: a sixth slower).
CROPS_ON_A_CORE, PICTURES_ON_A_CORE = 8, 4
DRAWN_PICTURES = ("The pictures are drawn by a program: the scores say that the software works, and cannot "
                  "be compared with the paper's, which are of ISIC-2017.")

# --- During training: at the networks' resolution, without test-time augmentation


def quick_segmentation(segmenter, data, batch_size, process):
    """Mean scores of a split at the network's resolution: {'JA': ..., ...}; shared by all processes.

    segmenter : Segmenter; data : dataset.splits.Segmentation
    Raises FloatingPointError when an output is not finite.
    batch_size : pictures at a time; on a CPU no more than PICTURES_ON_A_CORE for each core
    """
    def score(batch):
        logit = segmenter(*place(data.images, data.coarse, process.device, batch))
        counts = counts_on_device(logit, to_device(data.masks[batch], process.device))
        return torch.where(logit.isfinite().flatten(1).all(1)[:, None], counts.float(), torch.nan)

    counts = _finite(all_rows(score, len(data.images), batch_size, PICTURES_ON_A_CORE, process))
    means = metrics.segmentation_scores(counts).mean(0)
    return dict(zip(metrics.SEGMENTATION, means.tolist(), strict=True))


def quick_classification(classifier, data, batch_size, process):
    """Scores of the images of a split: {'mean AUC': ..., ..., 'accuracy': ...}; shared by all processes.

    classifier : Classifier, whose ClassTable says what is scored; data : dataset.splits.Classification
    An AUC is NaN where a class is absent.
    Raises FloatingPointError when an output is not finite.
    """
    crops = _finite(crop_probabilities(classifier, data, batch_size, process))
    probabilities, labels = image_probabilities(crops, data)
    tasks = classifier.classes.tasks
    scores = metrics.classification_scores(probabilities, labels, tasks)
    areas = {'mean AUC': scores['mean AUC']} | {f'{task} AUC': scores[task]['AUC'] for task in tasks}
    return {name: float('nan') if area is None else area for name, area in areas.items()} | {
        'accuracy': float((probabilities.argmax(1) == labels).mean())}


def _finite(rows):
    """The same rows. Raises FloatingPointError when one of them holds what is no number."""
    bad = int((~np.isfinite(rows).all(-1)).sum())
    if bad:
        raise FloatingPointError(f'The output for {bad} of {len(rows)} validation pictures is not finite')
    return rows


def crop_probabilities(classifier, data, batch_size, process, description=''):
    """Class probabilities of every crop of a split: (N, C) float64; shared by all processes.

    data : dataset.splits.Classification; description : of the progress bar, none without
    batch_size : crops at a time; on a CPU no more than CROPS_ON_A_CORE for each core
    """
    def classify(batch):
        return classifier.probabilities(*place(data.images, data.coarse, process.device, batch))

    return np.array(all_rows(classify, len(data.images), batch_size, CROPS_ON_A_CORE, process, description))


def all_rows(work, count, batch_size, on_a_core, process, description=''):
    """A row (list of numbers) for each of `count` pictures, in order; the work is shared by all processes.

    work : list of numbers -> tensor (B, columns) on the device; on_a_core : most pictures at a time on a CPU
    """
    if process.device.type == 'cpu':
        batch_size = min(batch_size, on_a_core)
    mine = range(process.rank, count, process.world)
    batches = [list(mine[start:start + batch_size]) for start in range(0, len(mine), batch_size)]
    found = list(tqdm(hardware.on_each_core(work, batches, process.device), total=len(batches),
                      desc=description, unit='batch', disable=not (description and process.main)))
    rows = torch.cat(found).tolist() if found else []   # a GPU is waited for once, not after every batch
    return [row for _, row in sorted(hardware.merge(list(zip(mine, rows, strict=True)), process))]


def image_probabilities(crops, data):
    """Mean over each image's crops: crops (N, C) -> (images, C), and the images' labels (images,)."""
    count = np.bincount(data.owners)
    mean = np.stack([np.bincount(data.owners, crops[:, k]) for k in range(crops.shape[1])], 1)
    labels = np.zeros(len(count), int)
    labels[data.owners] = data.labels
    return mean / count[:, None], labels


def whole_image_probabilities(crops, data):
    """Probabilities from each image's first crop alone, the whole image: (images, C)."""
    return crops[np.unique(data.owners, return_index=True)[1]]


# --- Maps of the images that mask-CN takes for another class


def error_maps_path(layout, split):
    """Where `write_error_maps` writes."""
    return layout.results / f'MaskCN_{split}_errors.npz'


def write_error_maps(layout, split, classifier, data, probabilities, labels, batch_size):
    """Write results/MaskCN_<split>_errors.npz: what mask-CN sees in the whole of each misclassified image.

    data : dataset.splits.Classification; probabilities : (images, C), mean over the crops; labels : (images,)
    The file holds names (n,), classes (n, 2), the found and the true one, and their maps (n, 2, h, w).
    """
    decided, firsts = probabilities.argmax(1), np.unique(data.owners, return_index=True)[1]
    wrong = np.flatnonzero(decided != labels)
    classes, maps = np.stack([decided, labels], 1)[wrong], []
    for start in range(0, len(wrong), batch_size):
        batch = slice(start, start + batch_size)
        placed = place(data.images, data.coarse, classifier.device, firsts[wrong[batch]])
        maps.append(np.concatenate([classifier(*placed, torch.from_numpy(numbers))[1].cpu().numpy()
                                    for numbers in classes[batch].T], 1).astype(np.float16))
    file = io.BytesIO()
    np.savez(file, names=np.array([data.names[number] for number in wrong], str), classes=classes,
             maps=np.concatenate(maps) if maps else np.empty((0, 2, 1, 1)))
    files.write_bytes(error_maps_path(layout, split), file.getvalue())


def read_error_maps(path):
    """{image id: ((found class, true class), their maps (2, h, w) float32)} of such a file. Or ValueError."""
    try:
        with np.load(path) as file:   # refuses pickles
            names, classes, maps = (file[name] for name in ('names', 'classes', 'maps'))
        if maps.shape[:2] != classes.shape or classes.shape != (len(names), 2) or maps.ndim != 4:
            raise ValueError('its arrays do not fit')
        return {str(name): (tuple(map(int, pair)), drawn.astype(np.float32))
                for name, pair, drawn in zip(names, classes, maps, strict=True)}
    except (EOFError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from None


# --- Full evaluation of a segmentation network


def require_sound(layout, pairs):
    """Decode all pictures and masks to their ends. Raises InputError naming every fault. pairs : of paths"""
    found = files.for_all(lambda pair: extraction.inspect_pair(*pair)[2], pairs, 'pictures and masks')
    if faults := list(chain.from_iterable(found)):
        raise InputError('Pictures and masks cannot be scored', faults,
                         f'replace or correct these files, then {layout.command("dataset/check_data.py")}')


def predict_to_disk(segmenter, paths, coarse_paths, scales, cfg, folder):
    """Write the masks of pictures (original size, png, named as the challenge wants) while they are found.

    coarse_paths : of the pictures, or None; scales : input sides in px; cfg : BATCH_SIZE, TTA
    A generator of what `inference.segment_files` yields, in order: the mask with TTA, where there is one, is
    the one that is written, and the plain one need not be, since scoring takes arrays. Until all are written
    the folder counts as incomplete, see scoring.being_written.
    Raises InputError when another process writes to the folder.
    """
    targets = predicted_paths(folder, [path.stem for path in paths])
    segmented = segment_files(segmenter, paths, coarse_paths, scales, cfg.BATCH_SIZE, cfg.TTA)
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.with_name(f'.{folder.name}.lock'), InputError(
            'Two evaluations into one folder', [f'{folder}: another process writes there'],
            'wait for it, or evaluate below another --ROOT')), scoring.being_written(folder):
        # Of images that the list no longer has, or temporary files of a killed run; a scorer would meet them.
        for stale in set(folder.glob(f'*{MASK_SUFFIX}*.png')) - set(targets):   # hidden ones too
            stale.unlink()
        for found, target in zip(tqdm(segmented, total=len(paths), desc='segmenting', unit='image'), targets,
                                 strict=True):
            images.write_mask(target, found.get('tta', found['plain']))
            yield found


def read_csv(path, classes=PAPER.names, others=None, unbounded=()):
    """(kind, image ids, (N, columns) values) of an evaluation's csv. Raises OSError, ValueError or csv.Error.

    classes : names of mask-CN's; the tables of the paper have the paper's
    others : {kind: columns} of other evaluations, besides 'segmentation' and 'classification'
    unbounded : names of columns that may exceed 1
    """
    with open(path, encoding='utf-8-sig', newline='') as file:
        header, *rows = list(csv.reader(file)) or [[]]
    known = {'segmentation': metrics.SEGMENTATION, 'classification': classes, **(others or {})}
    kind = next((kind for kind, columns in known.items() if header == ['image_id', *columns]), None)
    if kind is None:
        raise ValueError(f'has the columns {",".join(header)[:80]!r}, not those of an evaluation '
                         f'(of mask-CN with {", ".join(classes)})')
    values = np.array([[float(word) for word in row[1:]] for row in rows])   # ValueError where ragged, too
    most = [np.inf if name in unbounded else 1 for name in header[1:]]
    if values.shape != (len(rows), len(header) - 1) or not (
            np.isfinite(values) & (values >= 0) & (values <= most)).all():
        raise ValueError(f'must hold rows of an id and {len(header) - 1} numbers from 0 to 1')
    return kind, tuple(row[0] for row in rows), values


def predicted_paths(folder, names):
    """Where the predicted masks of images lie: `<id>_segmentation.png`, as the challenge names them."""
    return [folder / f'{name}{MASK_SUFFIX}.png' for name in names]


# --- What is written and printed


def report_segmentation(layout, network, split, names, scores, facts):
    """Write results/<network>_<split>.{csv,json} and print the table beside the paper's row.

    scores : {'plain': (N, 5), 'tta': (N, 5)}; facts : dict that goes into the json as it is
    """
    chosen = scores.get('tta', scores['plain'])
    kinds = {'with TTA': scoring.summary(scoring.thresholded(scores['tta'])) if 'tta' in scores else None,
             'without TTA': scoring.summary(scoring.thresholded(scores['plain']))}
    rows = [(name, *(f'{value:.6f}' for value in row)) for name, row in zip(names, chosen, strict=True)]
    return _report(layout, network, split, [('image_id', *metrics.SEGMENTATION), *rows],
                   (kinds['with TTA'] or kinds['without TTA']) | kinds | facts, scoring.COLUMNS,
                   paper_scores.SEGMENTATION.get((network, split), {}),
                   {kind: summary for kind, summary in kinds.items() if summary})


def report_classification(layout, split, names, results, labels, facts):
    """Write results/MaskCN_<split>.{csv,json}, the challenge's csv, and print the table.

    results : {'9-crop': (N, C) probabilities, '1-crop': (N, C)}; labels : (N,) class numbers
    """
    classes, tasks = layout.classes, layout.classes.tasks
    # So many digits that float32 and means of nine survive: ties and ranks are those of the json's scores.
    rows = [(name, *(f'{value:.12g}' for value in row))
            for name, row in zip(names, results['9-crop'], strict=True)]
    challenge = layout.results / f'MaskCN_{split}_challenge.csv'
    if classes.names == PAPER.names:   # of 2017, which leaves the nevi out; else of 2018 and 2019
        submitted = [('image', 'melanoma', 'seborrheic_keratosis'), *((row[0], *row[2:]) for row in rows)]
    else:
        submitted = [('image', *classes.names), *rows]
    files.write_csv(challenge, submitted)
    scored = {kind: {**metrics.classification_scores(p, labels, tasks),
                     'ci95': bootstrap.intervals_of_areas(p, labels, tasks)} for kind, p in results.items()}
    flat = {kind: {f'{task} {name}': scores[task][name] for task in tasks for name in metrics.CLASSIFICATION}
            | {name: scores[name] for name in ('mean AUC', 'balanced accuracy', 'ci95')}
            for kind, scores in scored.items()}
    printed = paper_scores.CLASSIFICATION.get(split, {})
    paper = {name if name == 'mean AUC' else f'{name} AUC': area for name, area in printed.items()}
    summary = _report(layout, 'MaskCN', split, [('image_id', *classes.names), *rows],
                      {**scored['9-crop'], **scored, **facts},
                      [name for name in flat['9-crop'] if name != 'ci95'], paper, flat, f', {challenge}')
    absent = [task for task in tasks if scored['9-crop'][task]['AUC'] is None]
    if absent:
        print(f'AUC, AP and one of SE and SP of {" and ".join(absent)} are undefined: the split holds one '
              'class only')
    return summary


def _report(layout, network, split, rows, content, shown, paper, kinds, more=''):
    """Write results/<network>_<split>.{csv,json} and print the scores `shown`; returns the json's content.

    rows : of the csv, the header first; content : of the json; paper : {score: percent}
    kinds : {column title: {score: fraction, ..., 'ci95': {score: [low, high]}}}; more : files written besides
    """
    stem = layout.results / f'{network}_{split}'
    files.remove_abandoned(layout.results)
    files.write_csv(stem.with_suffix('.csv'), rows)
    summary = {'network': network, 'split': split, 'n': len(rows) - 1, **content}
    files.write_text(stem.with_suffix('.json'), json.dumps(summary, indent=1) + '\n')

    def cell(scores, name):
        if scores[name] is None:
            return '-'
        low, high = scores['ci95'].get(name) or (None, None)
        bounds = '' if low is None else f' [{100 * low:.1f}, {100 * high:.1f}]'
        return f'{100 * scores[name]:.1f}{bounds}'

    print(f'\n{network} on {split} (n = {summary["n"]}, recipe {summary.get("recipe", "unknown")}), '
          'percent [95 % interval]')
    columns = {title: [cell(scores, name) for name in shown] for title, scores in kinds.items()}
    if summary.get('drawn_pictures'):
        print(DRAWN_PICTURES)
    elif layout.of_paper:
        columns = {'paper': [paper.get(name, '-') for name in shown], **columns}
    print(tabulate({'': shown, **columns}, 'keys', 'plain', disable_numparse=True,
                   colalign=('left', *['right'] * len(columns))))
    if split == 'Validation':
        print(scoring.SELECTED.format(''))
    print(f'written: {stem}.csv, {stem}.json{more}')
    return summary


def provenance(cfg, weight_paths, data_fingerprint):
    """What a result was computed from, for the json: recipe, settings, weights, data.

    The recipe is the one that the first of the networks was trained by; drawn_pictures : a program drew the
    data. Prints a line when it drew those of the training alone.
    """
    drawn = Layout(cfg.ROOT).drawn
    trained = {path.stem: checkpoints.read_config(path) for path in weight_paths}
    if not drawn and (said := networks.of_drawn_pictures(trained)):
        print(said)
    recipes = {name: config.get('settings', {}).get('RECIPE', 'unknown') for name, config in trained.items()}
    return {'recipe': recipes[weight_paths[0].stem], 'settings': vars(cfg), 'data': data_fingerprint,
            'drawn_pictures': drawn,
            'weights': {path.stem: files.fingerprint(path) for path in weight_paths},
            'started from': {name: config.get('start') for name, config in trained.items()}}
