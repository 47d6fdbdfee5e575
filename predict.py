"""Segment and classify your own pictures with the trained networks.

Reads   pictures (jpg, png, bmp, tif, webp of any size): files, and folders with all that is below them;
        models/CoarseSN/, models/MaskCN/ and models/EnhancedSN/ (stages 2 to 5)
Writes  predictions/predictions.csv        a row a picture: class probabilities, lesion, confidence; above
                                           all a line that begins with # where the networks have seen
                                           drawn pictures
        predictions/predictions.json       the same, with the networks, settings and files behind it
        predictions/index.html             a page to leaf through
        predictions/masks/<name>.png       the lesion, {0, 255}, at the picture's own size
        predictions/overlays/<name>.jpg    contours of both masks; where mask-CN sees the class

    python predict.py pictures/ --OUT=predictions
    python predict.py one.jpg another.png --MODELS=demo/models

Bad files are listed at the end (exit code 2); the others are predicted. A research tool, not a
medical device.

A second run into the same folder adds to its table and page: what is there of the same content is kept,
also where the picture was moved, what changed is predicted again, and after an interruption the same
command goes on. Predictions of other networks or settings are not mixed in, files that are not of this
program (a mask drawn over by hand, say) are not replaced, and pictures below OUT are not taken: then
nothing is done (exit code 2). What other runs wrote into folders among the pictures is left out and
counted.

Cost: 106 forward passes for each picture, 22 with --TTA=False: about 9 and 1.5 s of one CPU core at
224 px, 3 and 0.7 s with the demo's networks.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from engine import cli, files, hardware, images, run_folder, settings
from engine.errors import InputError
from mbdcnn import panels, stages
from mbdcnn.prediction_folder import (
    ANOTHER,
    PAGE,
    RECORD,
    TABLE,
    PredictionFolder,
    content_of,
    shown,
    wished_name,
)
from mbdcnn.predictor import EXTENSIONS, MBDCNN, NOTICE
from report.render import render

# --- Folders
MODELS = 'models'         # holds CoarseSN/, MaskCN/ and EnhancedSN/; the demo's are in demo/models
OUT = 'predictions'       # an earlier run's pictures stay in its table; no picture is read from below

# --- Prediction
TTA = True                # 6 views of each picture, and 3 scales for the final mask (released)
BATCH_SIZE = 4            # pictures at a time, on a CPU one for each core at least; memory and speed only

# --- Overlays
OVERLAY_SIDE = 1024       # px, long side of each of the two views in an overlay; none is enlarged
CAM_OPACITY = 0.6         # of the heat map where the class activation is highest

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32


def find_pictures(words, folder):
    """Files and folders -> ([(path, wished name)] in their order, each file once; skipped; faults).

    folder : PredictionFolder
    Below folders: every picture that is not hidden and not an output of this program, sorted; wished is the
    path relative to the folder. skipped : files with other endings, links to folders, and folders of other
    predictions with the number of files that these wrote, as text
    faults : lines on folders that cannot be looked into
    Raises InputError for empty words and for pictures below the folder of predictions.
    """
    found, seen, skipped, faults = [], set(), [], []
    refused = ["'': is an empty word, perhaps of a variable that is not set"] if '' in words else []
    for word in filter(None, words):
        place, within = Path(word), os.path.isdir(word)
        for path in _files_below(place, folder, skipped, faults) if within else [place]:
            source = os.path.realpath(path)
            if source in seen or within and folder.is_own(source):
                continue
            seen.add(source)
            if within and path.suffix.lower() not in EXTENSIONS:
                skipped.append(shown(path))
            elif folder.holds(source):
                refused.append(f'{path}: lies below OUT={folder.path}')
            else:
                found.append((path, wished_name(path.relative_to(place) if within else Path(path.name))))
    if refused:
        raise InputError('Pictures cannot be taken from there', refused,
                         f'name files and folders that are there; as for OUT, {ANOTHER}')
    return found, skipped, faults


def _files_below(place, folder, skipped, faults):
    def fault(error):
        faults.append(f'{error.filename}: cannot be looked into: {error.strerror}')

    others, left_out = {}, Counter()   # {output: folder of the other predictions}, how many are there
    for parent, folders, names in os.walk(place, onerror=fault):
        parent = Path(parent)
        if RECORD in names and os.path.realpath(parent) != os.path.realpath(folder.path):
            others |= {Path(f'{parent}/{name}'): parent for name in PredictionFolder(parent).written}
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        skipped += [f'{shown(parent / name)} (a link to a folder)' for name in folders
                    if (parent / name).is_symlink()]
        for path in (parent / name for name in sorted(names) if not name.startswith('.')):
            if path in others:
                left_out[others[path]] += 1
            else:
                yield path
    skipped += [f'{shown(other)} ({count} files of other predictions)' for other, count in left_out.items()]


def predict_all(model, found, folder, cfg, faults, save):
    """Predict and write every picture of `found`, [(path, name)]; folder and faults are filled as they come.

    save : is called about once a minute
    """
    def prepare(entry):
        content = content_of(entry[0])   # before it is read: what changes in between is predicted again
        try:
            return content, model.prepare(entry[0], cfg.OVERLAY_SIDE)
        except InputError as error:
            return content, error

    readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1))   # each may hold a decoded picture
    saved = time.monotonic()
    with readers, tqdm(total=len(found), desc='predicting', unit='picture', disable=not found) as bar:
        step = max(cfg.BATCH_SIZE, hardware.at_once(model.device))   # so that each core has a picture
        for start in range(0, len(found), step):
            batch, good = found[start:start + step], []
            for entry, (content, picture) in zip(batch, readers.map(prepare, batch), strict=True):
                if isinstance(picture, InputError):
                    faults += picture.faults or [picture.summary]
                    bar.update()
                else:
                    good.append((*entry, content, picture))
            predictions = model.predict([picture for *_, picture in good], cfg.TTA, cfg.BATCH_SIZE)
            for (path, name, content, _), prediction in zip(good, predictions, strict=True):
                folder.begin(name)
                write_pictures(folder.path, name, prediction, cfg.CAM_OPACITY)
                folder.add(name, path, content, row_of(path, name, prediction))
                bar.update()
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()


SAVE_EVERY = 60   # seconds; what a kill may cost


def row_of(path, name, prediction):
    """A picture's row of predictions.csv, as text: a dict with `columns_of` its classes as keys."""
    box, classes = prediction.bounding_box or ('',) * 4, prediction.class_probabilities
    values = (shown(path), *(f'{p:.6f}' for p in classes.values()),
              prediction.label, prediction.area, f'{100 * prediction.area_fraction:.4f}', *box,
              f'{prediction.mask_confidence:.4f}', *prediction.mask.shape[::-1], name,
              '' if prediction.area else EMPTY)
    return dict(zip(columns_of(classes), map(str, values), strict=True))


def columns_of(classes):
    """The columns of predictions.csv. classes : names"""
    return ('file', *classes, 'predicted', 'lesion_px', 'lesion_percent', 'left', 'top', 'right', 'bottom',
            'mask_confidence', 'width', 'height', 'name', 'note')


EMPTY = 'no lesion found: the mask is empty'


def write_pictures(out, name, prediction, opacity):
    """Write a picture's mask and overlay below `out`, each completely or not at all."""
    images.write_mask(out / 'masks' / f'{name}.png', prediction.mask)
    drawn = cv2.cvtColor(overlay(prediction, opacity), cv2.COLOR_RGB2BGR)
    data = cv2.imencode('.jpg', drawn, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    files.write_bytes(out / 'overlays' / f'{name}.jpg', data.tobytes())


def overlay(prediction, opacity):
    """Two views side by side, (h, about 2 w, 3) uint8: contours of coarse (thick) and final mask (thin);
    the positive part of the class's activation map as a heat map over the picture, opacity 0 to 1."""
    contours, heat = panels.of_prediction(prediction, opacity)
    gap = np.full((len(heat), 1 + heat.shape[1] // 100, 3), 255, np.uint8)
    return np.hstack([contours, gap, heat])


def write_page(path, classes, rows, faults, warning=''):
    """Write a page of all predictions. classes : names; rows : those of predictions.csv; faults : lines on
    unusable files; warning : the model's"""
    cards = [row | {
        'title': Path(row['file']).name, 'overlay': f'overlays/{row["name"]}.jpg',
        'mask': f'masks/{row["name"]}.png', 'mask_confidence': f'{float(row["mask_confidence"]):.2f}',
        'lesion_percent': f'{float(row["lesion_percent"]):.1f}',
        'classes': [(name, f'{100 * float(row[name]):.1f}') for name in classes]} for row in rows]
    files.write_text(path, render('predictions.html', cards=cards, faults=faults, notice=NOTICE,
                                  warning=warning))


def made_with(model, cfg):
    """What decides a prediction besides its picture, as predictions.json holds it."""
    scales = model.scales if cfg.TTA else model.scales[:1]
    return {'weights': {name: facts['fingerprint'] for name, facts in model.weights.items()},
            'precision': model.enhanced.precision, 'input sizes': model.sides, 'scales': list(scales),
            'views': 6 if cfg.TTA else 1, 'views of coarse masks': 6 if cfg.TTA and model.coarse_tta else 1,
            'OVERLAY_SIDE': cfg.OVERLAY_SIDE, 'CAM_OPACITY': cfg.CAM_OPACITY,
            'columns': list(columns_of(model.classes.names))}


def summarise(named, folder, skipped):
    """Print what a run did; named : its [(path, name)]"""
    rows = [folder.pictures[name]['row'] for _, name in named if name in folder.pictures]
    for title, lines in (('skipped, not taken for pictures', skipped),
                         (EMPTY, [row['file'] for row in rows if row['note'] == EMPTY])):
        if lines:
            more = f', and {len(lines) - SHOWN} more (see {RECORD})' if len(lines) > SHOWN else ''
            print(f'{title} ({len(lines)}): {", ".join(lines[:SHOWN])}{more}')
    print(f'{len(rows)} of {len(named)} pictures predicted: {folder.path}/{TABLE}, {folder.path}/{PAGE}')


SHOWN = 10   # names in a line of the terminal


def main():
    words = [word for word in sys.argv[1:] if not word.startswith('-')]
    overrides = [word for word in sys.argv[1:] if word.startswith('-')]
    cfg = settings.resolve(globals(), overrides, stages.MACHINE_CHOICES, ('BATCH_SIZE', 'OVERLAY_SIDE'))
    if not cfg.OUT or os.path.lexists(cfg.OUT) and not os.path.isdir(cfg.OUT):
        raise InputError(f'OUT={cfg.OUT} is no folder', remedy='name one, which need not be there')
    if not 0 <= cfg.CAM_OPACITY <= 1:
        raise InputError(f'CAM_OPACITY={cfg.CAM_OPACITY} must be from 0 to 1')
    folder = PredictionFolder(cfg.OUT)
    found, skipped, faults = find_pictures(words, folder)
    if not found:
        raise InputError('There are no pictures to predict',
                         [*faults, *(f'{word}: holds no jpg, png, bmp, tif or webp' for word in words)],
                         'name files or folders: python predict.py pictures/ --OUT=predictions')
    model = MBDCNN.load(cfg.MODELS, cfg.DEVICE, cfg.AMP)
    print(' '.join(filter(None, (model.warning, NOTICE))))
    with folder.lock(columns_of(model.classes.names)):
        predict_into(folder, model, found, skipped, faults, cfg)
    if faults:
        raise InputError(f'{len(faults)} of {len(found)} files cannot be used; the others are predicted',
                         faults, 'replace or remove them')


def predict_into(folder, model, found, skipped, faults, cfg):
    """Bring a locked folder up to date with the pictures that were found."""
    folder.follow(found)
    named = folder.named(found)
    folder.require_own([name for _, name in named], made_with(model, cfg))

    def save(done=False):
        rows = [entry['row'] for entry in folder.pictures.values()]
        first = [[f'# {model.warning}']] if model.warning else []
        files.write_csv(folder.path / TABLE, [*first, folder.columns, *(row.values() for row in rows)])
        write_page(folder.path / PAGE, model.classes.names, rows, faults, model.warning)
        folder.save(done, networks=model.weights, settings=vars(cfg), skipped=skipped, faults=faults,
                    versions=run_folder.versions(model.device))

    known = [(path, name) for path, name in named if name in folder.pictures]
    contents = files.for_all(lambda entry: content_of(entry[0]), known, 'comparing')
    done = {name for (_, name), content in zip(known, contents, strict=True) if folder.is_done(name, content)}
    if done:
        print(f'{len(done)} of {len(named)} pictures were predicted before')
    todo = [(path, name) for path, name in named if name not in done]
    folder.claim([name for _, name in todo], made_with(model, cfg))
    try:
        predict_all(model, todo, folder, cfg, faults, save)
    finally:   # also of an interrupted run: the table holds what is finished
        save(done=True)
        summarise(named, folder, skipped)


if __name__ == '__main__':
    cli.launch(main)
