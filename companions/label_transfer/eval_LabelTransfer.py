"""Label transfer: how good are the masks of a split, beside trivial ways, plain activation maps and students?

Reads   models/LabelTransfer/ (train_LabelTransfer), the split's pictures and masks; where they are there
        models/LabelTransferCAM/ (train_CAM) and models/LabelTransferStudent*/ (train_student)
Writes  results/LabelTransfer_<split>.csv   scores of each picture, method by method
        results/LabelTransfer_<split>.json  means with 95 % intervals, and what was chosen on which pictures
        results/LabelTransfer_<split>_panel.png  real, heat map, fake, mask, composite, recon, outlines
        results/LabelTransferStudent*_<split>_masks/  the students' masks at the pictures' own size; without
        WEIGHTS those of a student that has no row, as one of an earlier generator, are removed

    python -m companions.label_transfer.eval_LabelTransfer --SPLIT=Testing

The checkpoint, alpha of the CRF and the CAM's threshold are chosen on the validation masks. ORACLE adds rows
for which the masks of the evaluated split itself choose among the kept checkpoints; they say so. JA, DI,
pixel-AC, pixel-SE and pixel-SP are of the mask at the picture's own size; AUC and the JA of the best
threshold, which the evaluated masks choose, are of the map at 256 px. Cost: companions/README.md.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from companions import seen
from companions.label_transfer import (
    cams,
    candidates,
    data,
    maps,
    panels,
    scores,
    student,
    trained,
    translator,
    validation,
)
from dataset.layout import Layout
from engine import checkpoints, cli, files, hardware, images, metrics, run_folder, scoring, settings
from engine.errors import InputError
from mbdcnn import evaluation, stages
from mbdcnn.inference import segment_files
from mbdcnn.panels import spread

# --- Experiment
ROOT = '.'                # folder that holds dataset/, LabelTransfer/, models/ and results/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SPLIT = 'Validation'      # Validation or Testing

# --- What
WEIGHTS = ''              # a generator; '' = ROOT/models/LabelTransfer/A2B.pth
DATA = ''                 # folder in the published layout; '' = as the training
SEEN = False              # score pictures that the networks were trained on, too
ORACLE = False            # also let the evaluated masks choose checkpoint and alpha (released); rows say so
METHODS = 'all'           # ways to cut the map: all, or of them, as watershed,normalised-crf
EMPTY_CORNERS = False     # the CRF finds nothing in the picture's corners (released: True)

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


class Table:
    """Scores of ways to find masks. pairs : [(name, picture, mask)] of the evaluated split

    No mask of full size is kept: a split of large photographs would fill the memory. truths : at maps.SIDE
    """

    def __init__(self, pairs, kind):
        self.pairs, self.kind = pairs, kind
        self.counts, self.soft, self.chosen = {}, {}, {}
        self.truths = files.for_all(lambda one: images.resize_mask(
            images.read_mask(one[2], data.GREY), (maps.SIDE, maps.SIDE)) > 0, pairs, 'reading masks')
        self.squares = self.at(maps.SIDE)

    def at(self, side):
        """The pictures squashed to side x side: a list of (side, side, 3) uint8."""
        return files.for_all(lambda one: images.resize_rgb(images.read_rgb(one[1]), (side, side)), self.pairs,
                             'reading pictures')

    def maps_of(self, looker):
        """The map of each picture by a network, in order."""
        for picture in tqdm(self.at(looker.side), desc=type(looker).__name__, unit='picture'):
            yield looker.look(picture)[0]

    def cutters(self, looker, cfg, found):
        """The maps.Cutter of each picture by a network, in order. found : list that takes their maps"""
        for attention, square in zip(self.maps_of(looker), self.squares, strict=True):
            cutter = maps.Cutter(attention, square, self.kind, cfg.EMPTY_CORNERS)
            found.append(cutter.maps[''])
            yield cutter   # not kept: a CRF takes 11 MB

    def add(self, found, chosen):
        """Ways, by their masks of one picture after another: {label: (SIDE, SIDE) or of full size, bool}.

        chosen : {label: by what, in words}
        """
        counts = {label: [] for label in chosen}
        for masks, (_, _, path) in zip(found, self.pairs, strict=True):
            truth = images.read_mask(path, data.GREY) > 0
            for label, mask in masks.items():
                sized = mask if mask.shape == truth.shape else maps.at_size(mask, truth.shape[::-1])
                counts[label].append(metrics.confusion(sized, truth))
        self.counts |= {label: metrics.segmentation_scores(rows) for label, rows in counts.items()}
        self.chosen |= chosen

    def add_soft(self, label, found):
        """What the maps (N, SIDE, SIDE) of a way are worth before they are cut."""
        best, threshold = scores.best_threshold(np.array(found), np.array(self.truths))
        areas = scores.areas(found, self.truths)
        rows = np.stack([areas, best], 1)
        self.soft[label] = {'best threshold': threshold, **scoring.summary(rows[~np.isnan(areas)], SOFT)}

    def add_attention(self, translator, alphas, cfg, threshold):
        """All ways to cut the attention; the masks of the last one. threshold : one more way, chosen on
        validation masks"""
        found, last = [], []

        def masks():
            for cutter in self.cutters(translator, cfg, found):
                cut = {method: cutter.mask(method, alphas.get(method)) for method in cfg.METHODS}
                last.append(cut[cfg.METHODS[-1]])
                yield {'chosen threshold': found[-1] >= threshold, **cut}

        self.add(masks(), {'chosen threshold': f'{BY_VALIDATION}, threshold {threshold:.2f}', **{
            method: BY_VALIDATION + (f', alpha {alphas[method]}' if method in alphas else '')
            for method in cfg.METHODS}})
        self.add_soft('attention', found)
        return last

    def add_trivial(self):
        """Otsu's threshold: dark is lesion on skin; bright is, within the brain and over all."""
        bright = self.kind == 'brain'
        self.add(({'Otsu': images.otsu_mask(square, bright)} for square in self.squares), {'Otsu': ''})
        if bright:
            label = 'Otsu inside the brain'
            self.add(({label: images.otsu_mask(square, True, maps.inside(square, self.kind))}
                      for square in self.squares), {label: ''})

    def summary(self):
        """{label: means and intervals, 'chosen': words}, see scoring.summary."""
        return {label: scoring.summary(scoring.thresholded(rows)) | {'chosen': self.chosen[label]}
                for label, rows in self.counts.items()}


def add_cam(table, layout, teacher, held_out, process, cfg):
    """Rows of the plain classifier, where it is trained: threshold and alpha are chosen on `held_out`."""
    path = layout.run('LabelTransferCAM') / 'CAM.pth'
    if not path.is_file():
        print(f'{path}: is missing, so that activation maps have no row')
        return
    of = translator.trained_settings(path)

    def pictures(settings):
        return settings['KIND'], *(settings[name] and (layout.root / settings[name]).resolve()
                                   for name in ('DATA', 'A'))   # '' is no path

    if pictures(of) != pictures(teacher.settings):
        print(f'{path}: was trained with another DATA, A or KIND than {teacher.weights}, so that activation '
              'maps have no row')
        return
    if not cfg.SEEN and trained.seen_before(path.parent, teacher.source, table.pairs):
        print(f'{path}: was trained on evaluated pictures, so that activation maps have no row')
        return
    looker = cams.load(path, process.device, cfg.AMP)
    threshold, _ = validation.chosen_threshold(looker.look, held_out, teacher.kind)
    found, chosen = [], {'CAM': f'{BY_VALIDATION}, threshold {threshold:.2f}'}
    if 'crf' in cfg.METHODS:
        alpha, _ = validation.chosen_alphas(looker.look, held_out, teacher.kind, ['crf'],
                                            cfg.EMPTY_CORNERS)['crf']
        chosen['CAM + CRF'] = f'{BY_VALIDATION}, alpha {alpha}'
    table.add(({label: cutter.mask('crf', alpha) if 'CRF' in label else found[-1] >= threshold
                for label in chosen} for cutter in table.cutters(looker, cfg, found)), chosen)
    table.add_soft('CAM', found)


def last_round(folder):
    """EMA.pth of the last round of a finished training with EMA, else None. folder : of its rounds

    Each round is begun by the settings of the first, but for what may change; what is of others, earlier
    versions left of another training.
    """
    def begun_with(config):
        kept = {name: value for name, value in config.get('settings', {}).items()
                if name not in run_folder.MAY_CHANGE}
        return kept, config.get('inputs', {}).get('teacher')

    first = checkpoints.read_config(folder / 'round1' / 'EMA.pth')
    path = folder / f'round{first.get("settings", {}).get("ROUNDS")}' / 'EMA.pth'
    last = checkpoints.read_config(path)
    return path if 'finished' in last and begun_with(last) == begun_with(first) else None


def against(path, teacher):
    """Why a student, by the path of its weights or None, has no row beside this teacher; '' where it has."""
    if path is None or not path.is_file():
        return 'is not trained to its end'
    of = checkpoints.read_config(path).get('inputs', {}).get('teacher')
    if of is None:
        return 'does not say from which generator it learnt, but will when train_student has run again'
    return '' if of == teacher.fingerprint else f'learnt from another generator than {teacher.weights}'


def add_students(table, layout, teacher, process, cfg):
    """Rows of the students of this teacher that are trained, and their masks as files."""
    plain, redrawn = (layout.run(f'LabelTransferStudent{kind}') for kind in ('', 'EMA'))
    for label, run, path in (('student', plain, plain / 'student.pth'),
                             ('student, redrawn by its average', redrawn, last_round(redrawn))):
        folder = layout.results / f'{run.name}_{cfg.SPLIT}_masks'
        reason = against(path, teacher)
        if reason:
            if run.is_dir():
                print(f'{run}: {reason}, so that it has no row')
            if not cfg.WEIGHTS:   # else they may be of the generator of this root
                forget(table.pairs, folder)
            continue
        segmenter = student.load(path, process.device, hardware.choose_precision(cfg.AMP, process.device))
        side = translator.trained_settings(path)['INPUT_SIZE']
        pictures = [picture for _, picture, _ in table.pairs]
        found = segment_files(segmenter, pictures, None, [side], 4, tta=False)
        table.add(written(table.pairs, found, folder, label), {label: BY_VALIDATION})


def paths_of(pairs, folder):
    return evaluation.predicted_paths(folder, [name for name, _, _ in pairs])


def written(pairs, found, folder, label):
    """Write the masks of one picture after another, as `segment_files` finds them; a generator of them."""
    with scoring.being_written(folder):
        for path, masks in zip(paths_of(pairs, folder), found, strict=True):
            images.write_mask(path, masks['plain'])
            yield {label: masks['plain']}


def forget(pairs, folder):
    """Remove the masks that `written` wrote in an earlier evaluation: other tables would take them."""
    stale = [path for path in paths_of(pairs, folder) if path.is_file()]
    for path in [*stale, folder / scoring.INCOMPLETE]:
        path.unlink(missing_ok=True)
    if stale:
        print(f'{folder}: {len(stale)} masks of an earlier evaluation were removed')


def add_oracle(table, teacher, process, cfg):
    """Rows of the checkpoint among the kept ones, and of the alpha, that are best on the evaluated masks."""
    held_out, kept = teacher.held_out(cfg.SPLIT), candidates.Candidates(teacher.run, 0)
    best = {}
    for step in tqdm(sorted(kept.scores), desc='oracle', unit='checkpoint'):
        looker = translator.load(kept.path(step), process.device, cfg.AMP)
        alphas = validation.chosen_alphas(looker.look, held_out, teacher.kind, cfg.METHODS, cfg.EMPTY_CORNERS)
        for method in cfg.METHODS:
            alpha, score = alphas.get(method, (None, None))
            if score is None:
                score = validation.scores_of(looker, held_out, held_out, teacher.kind, method)['JA']
            if score > best.get(method, (-1.0,))[0]:
                best[method] = score, step, alpha
    for method, (_, step, alpha) in best.items():
        looker = translator.load(kept.path(step), process.device, cfg.AMP)
        label = f'oracle: {method}'
        words = f'by the masks of {cfg.SPLIT} itself, of {len(kept.scores)} checkpoints: step {step}'
        table.add(({label: cutter.mask(method, alpha)} for cutter in table.cutters(looker, cfg, [])),
                  {label: words + (f', alpha {alpha}' if alpha else '')})


# Below the first function, where settings do not look.
SOFT = 'AUC', 'best-threshold JA'
BY_VALIDATION = 'by validation masks'


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    return maps.method_faults(cfg.METHODS)


def main():
    cfg = settings.resolve(globals(), choices=stages.EVALUATION_CHOICES, check=check)
    cfg.METHODS = maps.named(cfg.METHODS)
    maps.require(cfg.METHODS)
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    teacher = trained.load(layout, process, cfg.AMP, cfg.WEIGHTS, cfg.DATA)
    teacher.require_validation(trained.NEED_MASKS)
    pairs = teacher.pairs(cfg.SPLIT)
    trained_on = [] if cfg.SEEN else trained.seen_before(teacher.run, teacher.source, pairs)
    if trained_on:
        raise InputError('These pictures cannot be scored', trained_on, seen.WAYS)
    alphas = teacher.alphas(cfg.METHODS, cfg.EMPTY_CORNERS)
    table = Table(pairs, teacher.kind)
    table.add_trivial()
    held_out = teacher.held_out('Validation')
    add_cam(table, layout, teacher, held_out, process, cfg)
    threshold, _ = validation.chosen_threshold(teacher.translator.look, held_out, teacher.kind)
    last = table.add_attention(teacher.translator, alphas, cfg, threshold)
    add_students(table, layout, teacher, process, cfg)
    if cfg.ORACLE:
        add_oracle(table, teacher, process, cfg)
    summary = table.summary()
    facts = {'split': cfg.SPLIT, 'n': len(pairs), 'methods': summary, 'maps': table.soft, 'alphas': alphas,
             'chosen on the same pictures': cfg.SPLIT == 'Validation', 'weights': teacher.fingerprint,
             'recipe': teacher.settings.get('RECIPE', 'unknown'), 'settings': vars(cfg)}
    stem = layout.results / f'LabelTransfer_{cfg.SPLIT}'
    files.write_csv(stem.with_suffix('.csv'), [
        ('image_id', *(f'{label} {name}' for label in table.counts for name in metrics.SEGMENTATION)),
        *((name, *(f'{value:.6f}' for value in row)) for (name, _, _), row in
          zip(pairs, np.hstack(list(table.counts.values())), strict=True))])
    files.write_text(stem.with_suffix('.json'), json.dumps(facts, indent=1) + '\n')
    method, numbers = cfg.METHODS[-1], spread(len(pairs), 8)
    panels.draw(teacher.translator, [table.squares[number] for number in numbers],
                [f'{pairs[number][0]}\nJA {100 * table.counts[method][number, 0]:.0f}' for number in numbers],
                f'{stem}_panel.png', [last[number] for number in numbers],
                [table.truths[number] for number in numbers], method)
    show(facts)
    print(f'written: {stem}.csv, {stem}.json, {stem}_panel.png')


def show(facts):
    """Print the tables of masks and of maps."""
    same = facts['chosen on the same pictures']
    note = ': these pictures also chose the checkpoint and alpha' if same else ''
    print(f'\nmasks on {facts["split"]} (n = {facts["n"]}), percent [95 % interval]{note}')
    rows = [[label, *cells(row, metrics.SEGMENTATION), row['chosen']]
            for label, row in facts['methods'].items()]
    print(tabulate(rows, ['', *metrics.SEGMENTATION, 'chosen'], 'plain', disable_numparse=True))
    print('\nmaps at 256 px; the best threshold is chosen by these masks')
    rows = [[label, *cells(row, SOFT)] for label, row in facts['maps'].items()]
    print(tabulate(rows, ['', *SOFT], 'plain', disable_numparse=True) + '\n')


def cells(row, names):
    """'81.2 [79.0, 83.1]' for each name."""
    return [f'{100 * row[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]' for name in names
            for low, high in [row['ci95'][name]]]


if __name__ == '__main__':
    cli.launch(main)
