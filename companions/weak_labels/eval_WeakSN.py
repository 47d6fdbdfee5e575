"""Weak labels: score a method's masks against the true ones, in pixels of the patch.

Reads   WeakLabels/<DATA>/ (prepare_...), models/WeakSN_<METHOD>/ (train_WeakSN); for METHOD=ellipse no
        network: the ellipses themselves, which is what the labels are worth
Writes  results/WeakSN_<METHOD>_<SPLIT>.csv   scores of each lesion
        results/WeakSN_<METHOD>_<SPLIT>.json  means with 95 % intervals, and those of the ellipses
        results/WeakSN_<METHOD>_<SPLIT>_masks/  masks at the size of the true ones, <name>_segmentation.png
        results/WeakSN_<METHOD>_<SPLIT>_panel.png  with the masks of all methods that lie in results/

    python -m companions.weak_labels.eval_WeakSN --METHOD=a1l
    python compare.py --SPLIT=Testing --MASKS=weak=results/WeakSN_a1l_Testing_masks,coarse=folder

The second scores the masks of DATA=ISIC beside those of any other method. Results are replaced, also those of
another DATA: a root holds one network of a METHOD. Cost: companions/README.md.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from companions import seen
from companions.weak_labels import REQUIREMENTS, lesions, networks, paper, predictor, shape_scores
from companions.weak_labels.shape_scores import COLUMNS, FRACTIONS, MEANING
from dataset.layout import Layout
from engine import cli, figures, files, hardware, images, scoring, settings
from engine.errors import InputError
from mbdcnn import evaluation, stages
from mbdcnn.inference import enlarged_sum
from mbdcnn.panels import spread

# --- Experiment
ROOT = '.'                # folder that holds WeakLabels/, models/ and results/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, demo
METHOD = 'a1l'            # a1, a1l, acoseg, mask, or ellipse: no network, the approximate target itself
DATA = 'HAM10000'         # folder below WeakLabels/
SPLIT = 'Testing'         # Testing or Validation; Training only with SEEN=True
SEEN = False              # score lesions that the network was trained on, too

# --- What
WEIGHTS = ''              # file beside its config.json; '' = models/WeakSN_<METHOD>/WeakSN_<METHOD>.pth
BATCH_SIZE = 8            # lesions at a time; memory and speed only
PANEL_IMAGES = 8          # lesions in the panel, evenly spread over the split

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def main():
    cfg = settings.resolve(globals(), choices=stages.MACHINE_CHOICES | {
        'METHOD': (*networks.METHODS, ELLIPSE), 'SPLIT': ('Testing', 'Validation', 'Training')},
        positive=('BATCH_SIZE', 'PANEL_IMAGES'), check=check)
    cli.require('skimage', where=REQUIREMENTS)
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    weights = Path(cfg.WEIGHTS) if cfg.WEIGHTS else layout.weights(f'WeakSN_{cfg.METHOD}')
    trained, config = (None, {}) if cfg.METHOD == ELLIPSE else predictor.load(
        layout, cfg.METHOD, process.device, cfg.AMP, weights)
    data = lesions.load(layout, cfg.DATA, cfg.SPLIT)
    check_data(cfg, layout, data, config, weights.parent)
    stem = layout.results / f'WeakSN_{cfg.METHOD}_{cfg.SPLIT}'
    before = files.read_json(stem.with_suffix('.json')).get('data set', cfg.DATA)
    if before != cfg.DATA:
        print(f'{stem}.*: these results of {before} are replaced')
    found = write_masks(cfg, trained, data, stem.with_name(f'{stem.name}_masks'))
    truths = data.masks > 0
    scores = shape_scores.table(found, truths)
    facts = {'split': cfg.SPLIT, 'n': len(data.names), 'data set': cfg.DATA,
             **scoring.summary(scores, COLUMNS),
             'empty masks': int((~found.any((1, 2))).sum()),
             'ellipse': scoring.summary(shape_scores.table(data.ellipses > 0, truths), COLUMNS),
             'weights': files.fingerprint(weights) if trained else '', 'data': data.fingerprint,
             'recipe': config.get('settings', {}).get('RECIPE', 'unknown'), 'settings': vars(cfg),
             'trained': config.get('settings', {}), 'drawn_pictures': lesions.drawn(layout, cfg.DATA),
             'truth': lesions.facts(layout, cfg.DATA).get('truth', '')}
    files.write_csv(stem.with_suffix('.csv'), [('image_id', *COLUMNS), *(
        (name, *(f'{value:.6f}' for value in row)) for name, row in zip(data.names, scores, strict=True))])
    files.write_text(stem.with_suffix('.json'), json.dumps(facts, indent=1) + '\n')
    draw_panel(cfg, layout, data, found, scores, f'{stem}_panel.png')
    show(cfg, layout, facts)
    print(f'written: {stem}.csv, {stem}.json, {stem}_masks/, {stem}_panel.png')


# Below main(), where settings.resolve does not look.
ELLIPSE = 'ellipse'
TITLES = {'a1': 'A1', 'acoseg': 'ACoseg', 'a1l': 'A1+L', 'mask': 'true masks'}   # of the panel's columns


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    return ['SPLIT=Training: the network was trained on these lesions; --SEEN=True scores them all the same'
            ] if cfg.SPLIT == 'Training' and not cfg.SEEN else []


def check_data(cfg, layout, data, config, run):
    """Raise InputError where there is nothing to compare with, or the network saw patches of another size, or
    these lesions. run : folder of the weights"""
    faults, trained_on = [], [] if cfg.SEEN else seen_before(cfg, layout, data, config, run)
    if data.masks is None:
        faults.append(f'{lesions.table(layout, cfg.DATA)}: {cfg.SPLIT} has lesions without a true mask')
    trained = config.get('settings', {})
    if trained and min(trained['INPUT_SIZE']) < data.side:
        faults.append(f'the patches are {data.side} px, the network was trained on {trained["INPUT_SIZE"]}')
    if faults or trained_on:
        raise InputError('These lesions cannot be scored', faults + trained_on,
                         seen.WAYS if trained_on else '')
    if trained and trained['DATA'] != cfg.DATA:
        print(f'the network was trained on {trained["DATA"]}')


def seen_before(cfg, layout, data, config, run):
    """Lines that report lesions which the network was trained on: splits may have been dealt anew since.

    Or others of their groups, where the present splits keep groups together. Runs of earlier versions do not
    name theirs; they must have seen the present training patches.
    """
    trained, table = config.get('settings', {}), lesions.table(layout, cfg.DATA)
    names, groups = seen.names(run), seen.names(run, 'groups') or set()
    if names is not None:
        places = {(row['group'], row['split']) for row in lesions.rows(layout, cfg.DATA)}
        if len(places) > len({group for group, _ in places}):
            groups = set()
        own = trained.get('DATA')
        doubt = '' if own == cfg.DATA else f', if {own} means the same by this name'
        return [f'{table}: {name} is of {cfg.SPLIT} and was trained on{doubt}' if name in names else
                f'{table}: {name} is of {cfg.SPLIT}, and others of its group {group} were trained on{doubt}'
                for name, group in zip(data.names, data.groups, strict=True)
                if name in names or group in groups]
    if trained.get('DATA') != cfg.DATA:
        return []
    present = lesions.load(layout, cfg.DATA, 'Training', trained['TRAIN_IMAGES'], trained['SEED']).fingerprint
    recorded = str(config.get('inputs', {}).get('training'))
    if present.split('-')[0] == recorded.split('-')[0]:   # of the patches: their ellipses may be corrected
        return []
    return [f'{table}: its training lesions are others than those that {run} was trained on, which may be of '
            f'{cfg.SPLIT} now']


def write_masks(cfg, trained, data, folder):
    """Find the masks of all lesions, (N, P, P) bool, and write them at the size of what each patch shows.

    trained : Predictor, None for the ellipses
    """
    targets, found = lesions.mask_names(folder, data.names), np.zeros(data.ellipses.shape, bool)
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.with_name(f'.{folder.name}.lock'), InputError(
            'Two evaluations into one folder', [f'{folder}: another process writes there'],
            'wait for it, or evaluate below another --ROOT')), scoring.being_written(folder):
        for stale in set(folder.glob('*.png')) - set(targets):
            stale.unlink()
        batches = [list(range(start, min(start + cfg.BATCH_SIZE, len(targets))))
                   for start in range(0, len(targets), cfg.BATCH_SIZE)]

        def segment(numbers):
            if trained is None:
                return data.ellipses[numbers].astype(np.float32) - 0.5
            return trained.logits(data.images, numbers)

        device = torch.device('cpu') if trained is None else trained.device
        found_logits = hardware.on_each_core(segment, batches, device)
        shown = tqdm(found_logits, total=len(batches), desc='segmenting', unit='batch')
        for numbers, logits in zip(batches, shown, strict=True):
            found[numbers] = logits >= 0
            for number, logit in zip(numbers, logits, strict=True):
                full = found[number] if data.sizes[number] == logit.shape else (
                    enlarged_sum([logit], data.sizes[number]) >= 0)
                images.write_mask(targets[number], full)
    return found


def draw_panel(cfg, layout, data, found, scores, path):
    """The paper's figure: picture, truth, approximate target, and the masks of all methods that are here."""
    shown = {TITLES[cfg.METHOD]: found} if cfg.METHOD != ELLIPSE else {}
    chosen = spread(len(data.names), cfg.PANEL_IMAGES).tolist()
    for method, title in TITLES.items():
        stem = layout.results / f'WeakSN_{method}_{cfg.SPLIT}'
        record = files.read_json(stem.with_suffix('.json'))
        if title not in shown and record.get('data') == data.fingerprint:
            folder = stem.with_name(f'{stem.name}_masks')
            paths = lesions.mask_names(folder, data.names)
            if not scoring.incomplete(folder) and all(paths[number].is_file() for number in chosen):
                shown[title] = {number: images.resize_mask(images.read_mask(paths[number]),
                                                           (data.side, data.side)) for number in chosen}
    titles = [title for title in TITLES.values() if title in shown]
    iou = scores[:, COLUMNS.index('IoU')]
    rows = [(f'{data.names[number][-20:]}\nIoU {100 * iou[number]:.0f}', [
        data.images[number], data.masks[number], data.ellipses[number],
        *(np.asarray(shown[title][number], np.uint8) for title in titles)]) for number in chosen]
    figures.panel(rows, ['image', 'truth', 'approx. target', *titles], path)


def show(cfg, layout, facts):
    """Print the means, those of the ellipses, the paper's where data set and split are the same, and what the
    scores are."""
    def cell(value, bounds, scale):
        return f'{scale * value:.1f} [{scale * bounds[0]:.1f}, {scale * bounds[1]:.1f}]'

    rows = [[label, *(cell(part[name], part['ci95'][name], 100 if name in FRACTIONS else 1)
                      for name in COLUMNS)]
            for label, part in ((cfg.METHOD, facts), ('the ellipse itself', facts['ellipse']))]
    printed = paper.row(layout, cfg.DATA, cfg.SPLIT, cfg.METHOD)
    if printed:
        rows.append(['paper', *(f'{printed[name]:.1f}' if name in printed else '' for name in COLUMNS)])
    rows.append(['', *(MEANING.get(name, '') for name in COLUMNS)])
    print(f'\n{cfg.DATA}, {cfg.SPLIT} (n = {facts["n"]}): percent, pixels of the patch [95 % interval]')
    print(tabulate(list(zip(['', *COLUMNS], *rows, strict=True)), 'firstrow', 'plain', disable_numparse=True))
    if facts['empty masks']:
        print(f'{facts["empty masks"]} masks are empty; their distances count as the largest of the others')
    if facts['truth']:
        print(f'the truth here is {facts["truth"]}')
    if facts['drawn_pictures']:
        print(evaluation.DRAWN_PICTURES)


if __name__ == '__main__':
    cli.launch(main)
