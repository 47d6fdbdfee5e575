"""Section 8 of the evaluation protocol: per-image scores at full size, and what is written of them."""
import contextlib
import csv
import io
import json

import cv2
import filelock
import numpy as np
import torch
from tqdm import tqdm

from dataset.isic import CLASSES, MASK_SUFFIX
from engine import bootstrap, cache, checkpoints, files, hardware, images, metrics
from engine.errors import InputError
from engine.samples import to_device
from mbdcnn import paper_scores
from mbdcnn.inference import counts_on_device

# What a core of a CPU takes at a time; feature maps of more leave its cache (32 crops: a sixth slower).
CROPS_ON_A_CORE, PICTURES_ON_A_CORE = 8, 4

# --- During training: at the networks' resolution, without test-time augmentation


def quick_segmentation(segmenter, data, batch_size, process):
    """Mean scores of a split at the network's resolution: {'JA': ..., ...}; shared by all processes.

    segmenter : Segmenter; data : dataset.splits.Segmentation
    batch_size : pictures at a time; on a CPU no more than PICTURES_ON_A_CORE for each core
    """
    if process.device.type == 'cpu':
        batch_size = min(batch_size, PICTURES_ON_A_CORE)

    def score(batch):
        picture, coarse = place(data.images[batch], at(data.coarse, batch), process.device)
        truth = to_device(data.masks[batch] >> 7, process.device)
        return counts_on_device(segmenter(picture, coarse), truth)

    mine = range(process.rank, len(data.images), process.world)
    found = list(hardware.on_each_core(score, _batches(mine, batch_size), process.device))
    counts = [count for _, count in sorted(hardware.merge(_numbered(mine, found), process))]
    means = metrics.segmentation_scores(counts).mean(0)
    return dict(zip(metrics.SEGMENTATION, means.tolist(), strict=True))


def crop_probabilities(classifier, data, batch_size, process, description=''):
    """Class probabilities of every crop of a split: (N, 3) float64; shared by all processes.

    data : dataset.splits.Classification; description : of the progress bar, none without
    batch_size : crops at a time; on a CPU no more than CROPS_ON_A_CORE for each core
    """
    if process.device.type == 'cpu':
        batch_size = min(batch_size, CROPS_ON_A_CORE)

    def classify(batch):
        return classifier.probabilities(*place(data.images[batch], at(data.coarse, batch), process.device))

    mine = range(process.rank, len(data.images), process.world)
    batches = _batches(mine, batch_size)
    found = list(tqdm(hardware.on_each_core(classify, batches, process.device), total=len(batches),
                      desc=description, unit='batch', disable=not (description and process.main)))
    return np.array([row for _, row in sorted(hardware.merge(_numbered(mine, found), process))])


def _numbered(numbers, found):
    """[(number, row as list)] of the batches' rows; a GPU is waited for once, not after every batch."""
    return list(zip(numbers, torch.cat(found).tolist() if found else [], strict=True))


def image_probabilities(crops, data):
    """Mean over each image's crops: crops (N, 3) -> (images, 3), and the images' labels (images,)."""
    count = np.bincount(data.owners)
    mean = np.stack([np.bincount(data.owners, crops[:, k]) for k in range(crops.shape[1])], 1)
    labels = np.zeros(len(count), int)
    labels[data.owners] = data.labels
    return mean / count[:, None], labels


def whole_image_probabilities(crops, data):
    """Probabilities from each image's first crop alone, the whole image: (images, 3)."""
    return crops[np.unique(data.owners, return_index=True)[1]]


def _batches(numbers, size):
    numbers = list(numbers)
    return [numbers[start:start + size] for start in range(0, len(numbers), size)]


def at(array, batch):
    """array[batch], or None where there is no array."""
    return None if array is None else array[batch]


def place(pictures, coarse, device):
    """uint8 (B, S, S, 3) and coarse masks {0, 255} -> tensors (B, 3, S, S) and {0, 1} on the device."""
    pictures = to_device(pictures, device).permute(0, 3, 1, 2)
    return pictures, None if coarse is None else to_device(coarse >> 7, device)


# --- Full evaluation of a segmentation network


def segment_files(segmenter, paths, coarse_paths, scales, batch_size, device, tta=True):
    """Segment pictures at their full size; a generator over them, in order.

    paths : of the pictures; coarse_paths : their coarse masks, or None
    scales : input sides; the first one is also used alone, without views ("plain")
    Yields {'plain': (H, W) bool, 'tta': (H, W) bool}; 'tta' sums the logits of six views at every
    scale, resized bicubically to full size. Pictures share batches, full-size maps do not pile up.
    """
    for batch in _batches(range(len(paths)), batch_size):
        coarse = None if coarse_paths is None else [coarse_paths[number] for number in batch]
        pictures = [images.read_rgb(paths[number], cover=2 * max(scales)) for number in batch]
        logits = [view_logits(segmenter, *_squares(pictures, coarse, scale), device, tta)
                  for scale in (scales if tta else scales[:1])]   # one (views, B, scale, scale) a scale
        for place_in_batch, number in enumerate(batch):
            size = images.image_size(paths[number])
            found = {'plain': enlarged_sum([logits[0][0, place_in_batch]], size) > 0}
            if tta:
                found['tta'] = enlarged_sum([views[:, place_in_batch].sum(0) for views in logits], size) > 0
            yield found


def _squares(pictures, coarse_paths, scale):
    """A batch at one scale: pictures (B, scale, scale, 3), coarse masks (B, scale, scale) or None."""
    squashed = np.stack([images.resize_rgb(picture, (scale, scale)) for picture in pictures])
    if coarse_paths is None:
        return squashed, None
    return squashed, np.stack([cache.read_mask_square(path, scale) for path in coarse_paths])


def view_logits(segmenter, pictures, coarse, device, tta=True):
    """Lesion logits of a batch under the six views, or plainly: (6 or 1, B, S, S) float32 on the host.

    pictures : (B, S, S, 3) uint8; coarse : masks (B, S, S) of {0, 255}, or None
    """
    picture, coarse = place(pictures, coarse, device)
    logits = segmenter.views(picture, coarse) if tta else segmenter(picture, coarse)[None]
    return logits.cpu().numpy()


def enlarged_sum(logits, size):
    """Sum of square logit maps, each resized bicubically to (width, height): (H, W) float32."""
    return sum(cv2.resize(logit, size, interpolation=cv2.INTER_CUBIC) for logit in logits)


def require_equal_sizes(pairs):
    """Raise InputError naming every picture and mask whose sizes (px) differ. pairs : of paths"""
    def fault(pair):
        image, mask = (images.image_size(path) for path in pair)
        return '' if image == mask else (f'{pair[1]}: mask is {mask[0]}x{mask[1]} but the image is '
                                         f'{image[0]}x{image[1]} ({pair[0]})')
    faults = list(filter(None, files.for_all(fault, pairs, 'sizes')))
    if faults:
        raise InputError('Masks and images differ in size', faults, 'python dataset/check_data.py')


def evaluate_segmentation(segmenter, pairs, coarse_paths, cfg, device, mask_folder):
    """Score a segmentation network on a split and export its masks (original size, png).

    Returns (image ids, {'plain': (N, 5) scores, 'tta': (N, 5) scores}); 'tta' only with cfg.TTA.
    Reads cfg.SCALES, BATCH_SIZE, TTA. Raises InputError when another process writes to the folder.
    """
    paths = [image for image, _ in pairs]
    names = [path.stem for path in paths]
    targets = predicted_paths(mask_folder, names)
    segmented = segment_files(segmenter, paths, coarse_paths, cfg.SCALES, cfg.BATCH_SIZE, device, cfg.TTA)
    counts = {}
    with _alone_in(mask_folder, targets):
        for found, (_, truth_path), target in zip(
                tqdm(segmented, total=len(pairs), desc='segmenting', unit='image'), pairs,
                targets, strict=True):
            truth = images.read_mask(truth_path) > 0
            for kind, prediction in found.items():
                counts.setdefault(kind, []).append(metrics.confusion(prediction, truth))
            images.write_png(target, found['tta' if cfg.TTA else 'plain'].astype(np.uint8) * 255)
    return names, {kind: metrics.segmentation_scores(rows) for kind, rows in counts.items()}


@contextlib.contextmanager
def _alone_in(folder, targets):
    """Hold a folder of masks, rid of those that are not among `targets`: a scorer would meet them.

    They are of images that the list no longer has, or temporary files of a run that was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f'.{folder.name}.lock'))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError('Two evaluations into one folder', [f'{folder}: another process writes there'],
                         'wait for it, or evaluate below another --ROOT') from None
    try:
        for stale in set(folder.glob(f'*{MASK_SUFFIX}*.png')) - set(targets):   # hidden ones too
            stale.unlink()
        yield
    finally:
        lock.release()


def predicted_paths(folder, names):
    """Where the predicted masks of images lie: `<id>_segmentation.png`, as the challenge names them."""
    return [folder / f'{name}{MASK_SUFFIX}.png' for name in names]


# --- What is written and printed


def report_segmentation(layout, network, split, names, scores, facts):
    """Write results/<network>_<split>.{csv,json} and print the table beside the paper's row.

    scores : {'plain': (N, 5), 'tta': (N, 5)}; facts : dict that goes into the json as it is
    """
    chosen = scores.get('tta', scores['plain'])
    stem = layout.results / f'{network}_{split}'
    files.remove_abandoned(layout.results)
    _write_csv(stem.with_suffix('.csv'), ('image_id', *metrics.SEGMENTATION),
               [(name, *(f'{value:.6f}' for value in row)) for name, row in zip(names, chosen, strict=True)])
    summary = {'network': network, 'split': split, 'n': len(names), **_means(chosen),
               'with TTA': _means(scores['tta']) if 'tta' in scores else None,
               'without TTA': _means(scores['plain']), **facts}
    files.write_text(stem.with_suffix('.json'), json.dumps(summary, indent=1) + '\n')
    columns = [('paper', paper_scores.SEGMENTATION.get((network, split), {}), None)]
    columns += [(name, summary[key], summary[key]['ci95']) for name, key in
                (('with TTA', 'with TTA'), ('without TTA', 'without TTA')) if summary[key]]
    _print_heading(summary)
    _print_table(metrics.SEGMENTATION, columns)
    print(f'written: {stem}.csv, {stem}.json')
    return summary


def _means(scores):
    means, bounds = scores.mean(0), bootstrap.interval_of_means(scores)
    return {**dict(zip(metrics.SEGMENTATION, means.tolist(), strict=True)),
            'ci95': dict(zip(metrics.SEGMENTATION, bounds.tolist(), strict=True))}


def report_classification(layout, split, names, results, labels, facts):
    """Write results/MaskCN_<split>.{csv,json}, the challenge's csv, and print the table.

    results : {'9-crop': (N, 3) probabilities, '1-crop': (N, 3)}; labels : (N,) class numbers
    """
    stem = layout.results / f'MaskCN_{split}'
    files.remove_abandoned(layout.results)
    chosen = results['9-crop']
    _write_csv(stem.with_suffix('.csv'), ('image_id', *CLASSES),
               [(name, *(f'{value:.8f}' for value in row)) for name, row in zip(names, chosen, strict=True)])
    _write_csv(layout.results / f'MaskCN_{split}_challenge.csv',
               ('image', 'melanoma', 'seborrheic_keratosis'),
               [(name, f'{row[1]:.8f}', f'{row[2]:.8f}') for name, row in zip(names, chosen, strict=True)])
    scored = {kind: {**metrics.classification_scores(p, labels),
                     'ci95': bootstrap.intervals_of_areas(p, labels, metrics.TASKS)}
              for kind, p in results.items()}
    summary = {'network': 'MaskCN', 'split': split, 'n': len(names), **scored['9-crop'], **scored, **facts}
    files.write_text(stem.with_suffix('.json'), json.dumps(summary, indent=1) + '\n')
    _print_heading(summary)
    rows = [f'{task} {name}' for task in metrics.TASKS for name in metrics.CLASSIFICATION] + ['mean AUC']
    printed = paper_scores.CLASSIFICATION.get(split, {})
    columns = [('paper', {f'{task} AUC': printed.get(task) for task in metrics.TASKS}
                | {'mean AUC': printed.get('mean AUC')}, None)]
    columns += [(kind, _flat(scored[kind]), scored[kind]['ci95']) for kind in results]
    _print_table(rows, columns)
    absent = [task for task in metrics.TASKS if scored['9-crop'][task]['AUC'] is None]
    if absent:
        print(f'AUC and AP of {" and ".join(absent)} are undefined: the split holds one class only')
    print(f'written: {stem}.csv, {stem}.json, {stem}_challenge.csv')
    return summary


def _flat(scores):
    flat = {f'{task} {name}': scores[task][name] for task in metrics.TASKS
            for name in metrics.CLASSIFICATION}
    return {**flat, 'mean AUC': scores['mean AUC']}


def _print_heading(summary):
    print(f'\n{summary["network"]} on {summary["split"]} (n = {summary["n"]}, recipe '
          f'{summary.get("recipe", "unknown")}), percent [95 % interval]')


def _print_table(rows, columns):
    """columns : [(title, {row: value}, {row: [low, high]} or None)]; the paper's are percent already."""
    width = max(map(len, rows)) + 2
    print(' ' * width + ''.join(title.rjust(22) for title, _, _ in columns))
    for row in rows:
        cells = []
        for title, values, bounds in columns:
            value, scale = values.get(row), 1 if title == 'paper' else 100
            cell = '-' if value is None else f'{scale * value:.1f}'
            if value is not None and bounds and bounds.get(row):
                cell += f' [{100 * bounds[row][0]:.1f}, {100 * bounds[row][1]:.1f}]'
            cells.append(cell.rjust(22))
        print(row.ljust(width) + ''.join(cells))


def _write_csv(path, header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    files.write_text(path, text.getvalue())


def provenance(cfg, weight_paths, data_fingerprint):
    """What a result was computed from, for the json: recipe, settings, weights, data, versions.

    The recipe is the one that the first of the networks was trained by.
    """
    trained = {path.stem: checkpoints.read_config(path) for path in weight_paths}
    recipes = {name: config.get('settings', {}).get('RECIPE', 'unknown') for name, config in trained.items()}
    return {'recipe': recipes[weight_paths[0].stem], 'settings': vars(cfg), 'data': data_fingerprint,
            'weights': {path.stem: checkpoints.fingerprint(path) for path in weight_paths},
            'started from': {name: config.get('start') for name, config in trained.items()}}
