"""Segment and classify your own pictures with the trained networks.

Reads   pictures (jpg, png, bmp of any size): files, and folders with all that is below them;
        models/CoarseSN/, models/MaskCN/ and models/EnhancedSN/ (stages 2 to 5)
Writes  predictions/predictions.csv        a row a picture: class probabilities, lesion, confidence; above
                                           all a line that begins with # where the networks have seen
                                           drawn pictures
        predictions/index.html             a page to leaf through
        predictions/masks/<name>.png       the lesion, {0, 255}, at the picture's own size
        predictions/overlays/<name>.jpg    contours of both masks; where mask-CN sees the class

    python predict.py pictures/ --OUT=predictions
    python predict.py one.jpg another.png --MODELS=demo/models

Bad files are listed at the end (exit code 2); the others are predicted. A research tool, not a
medical device.

Cost: 106 forward passes for each picture, 22 with --TTA=False: about 9 and 1.5 s of one CPU core at
224 px, 3 and 0.7 s with the demo's networks.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataset.isic import CLASSES
from engine import cli, figures, files, images, settings
from engine.errors import InputError
from mbdcnn import stages
from mbdcnn.predictor import MBDCNN
from report.render import render

# --- Folders
MODELS = 'models'         # holds CoarseSN/, MaskCN/ and EnhancedSN/; the demo's are in demo/models
OUT = 'predictions'       # what an earlier run wrote here is replaced, picture by picture

# --- Prediction
TTA = True                # 6 views of each picture, and 3 scales for the final mask (released)
BATCH_SIZE = 4            # pictures at a time, crops in between; memory and speed only

# --- Overlays
OVERLAY_SIDE = 1024       # px, long side of each of the two views in an overlay; none is enlarged
CAM_OPACITY = 0.6         # of the heat map where the class activation is highest

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32


def find_pictures(words, out):
    """[(path, output name)] for files and folders, in their order, each file once.

    Below folders: every jpg, png and bmp that is not hidden and not this script's output, sorted. A name is
    the path relative to its folder without the extension; equal ones are numbered, also where the file
    system ignores case.
    """
    written = {Path(out, part).resolve() for part in ('.', 'masks', 'overlays')}
    found, seen, taken = [], set(), set()
    for word in words:
        place = Path(word)
        for path in _pictures_below(place, written) if os.path.isdir(word) else [place]:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                relative = path.relative_to(place) if path != place else Path(path.name)
                # Less than the 255 bytes that a name may have.
                stem = _shown(relative.with_suffix('')).encode()[-180:].decode(errors='ignore')
                names = (f'{stem}_{number}' if number > 1 else stem for number in itertools.count(1))
                name = next(name for name in names if name.lower() not in taken)
                taken.add(name.lower())
                found.append((path, name))
    return found


def _pictures_below(folder, left_out):
    for parent, folders, names in os.walk(folder):
        parent = Path(parent)
        folders[:] = sorted(name for name in folders
                            if not name.startswith('.') and (parent / name).resolve() not in left_out)
        yield from (parent / name for name in sorted(names)
                    if not name.startswith('.') and Path(name).suffix.lower() in images.EXTENSIONS)


def _shown(path):
    """A path as text that every file can hold; bytes that are no text become question marks."""
    return path.as_posix().encode(errors='replace').decode()


def predict_all(model, found, out, cfg, rows, faults):
    """Predict and write every picture of `found`; rows and faults are filled as they come."""
    def prepare(entry):
        try:
            return model.prepare(entry[0], cfg.OVERLAY_SIDE)
        except InputError as error:
            return error

    readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1))   # each may hold a decoded picture
    with readers, tqdm(total=len(found), desc='predicting', unit='picture') as bar:
        for start in range(0, len(found), cfg.BATCH_SIZE):
            batch, good = found[start:start + cfg.BATCH_SIZE], []
            for entry, picture in zip(batch, readers.map(prepare, batch), strict=True):
                if isinstance(picture, InputError):
                    faults += picture.faults or [picture.summary]
                    bar.update()
                else:
                    good.append((entry, picture))
            predictions = model.predict([picture for _, picture in good], cfg.TTA, cfg.BATCH_SIZE)
            for ((path, name), _), prediction in zip(good, predictions, strict=True):
                write_pictures(out, name, prediction, cfg.CAM_OPACITY)
                rows.append(row_of(path, name, prediction))
                bar.update()


def row_of(path, name, prediction):
    """A picture's row of predictions.csv, as text: a dict with COLUMNS as keys."""
    box = prediction.bounding_box or ('',) * 4
    values = (_shown(path), *(f'{p:.6f}' for p in prediction.class_probabilities.values()),
              prediction.label, prediction.area, f'{100 * prediction.area_fraction:.4f}', *box,
              f'{prediction.mask_confidence:.4f}', *prediction.mask.shape[::-1], name)
    return dict(zip(COLUMNS, map(str, values), strict=True))


COLUMNS = ('file', *CLASSES, 'predicted', 'lesion_px', 'lesion_percent', 'left', 'top', 'right', 'bottom',
           'mask_confidence', 'width', 'height', 'name')


def write_pictures(out, name, prediction, opacity):
    """Write a picture's mask and overlay below `out`, each completely or not at all."""
    images.write_mask(out / 'masks' / f'{name}.png', prediction.mask)
    drawn = cv2.cvtColor(overlay(prediction, opacity), cv2.COLOR_RGB2BGR)
    data = cv2.imencode('.jpg', drawn, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    files.write_bytes(out / 'overlays' / f'{name}.jpg', data.tobytes())


def overlay(prediction, opacity):
    """Two views side by side, (h, about 2 w, 3) uint8: contours of coarse (thick) and final mask (thin);
    the positive part of the class's activation map as a heat map over the picture, opacity 0 to 1."""
    picture = prediction.preview
    size = picture.shape[1::-1]
    coarse, mask = (images.resize_mask(mask.astype(np.uint8), size)
                    for mask in (prediction.coarse_mask, prediction.mask))
    gap = np.full((size[1], 1 + size[0] // 100, 3), 255, np.uint8)
    return np.hstack([figures.outlined(picture, None, mask, coarse), gap,
                      figures.warmed(picture, prediction.cam, opacity)])


def write_page(path, rows, faults, warning=''):
    """Write a page of all predictions. rows : those of predictions.csv; faults : lines on unusable files;
    warning : the model's"""
    cards = [row | {
        'title': Path(row['file']).name, 'overlay': f'overlays/{row["name"]}.jpg',
        'mask': f'masks/{row["name"]}.png', 'mask_confidence': f'{float(row["mask_confidence"]):.2f}',
        'lesion_percent': f'{float(row["lesion_percent"]):.1f}',
        'classes': [(name, f'{100 * float(row[name]):.1f}') for name in CLASSES]} for row in rows]
    files.write_text(path, render('predictions.html', cards=cards, faults=faults, notice=NOTICE,
                                  warning=warning))


NOTICE = 'A research tool, not a medical device: do not base a diagnosis on it.'


def main():
    words = [word for word in sys.argv[1:] if not word.startswith('-')]
    overrides = [word for word in sys.argv[1:] if word.startswith('-')]
    cfg = settings.resolve(globals(), overrides, stages.MACHINE_CHOICES, ('BATCH_SIZE', 'OVERLAY_SIDE'))
    out = Path(cfg.OUT)
    found = find_pictures(words, out)
    if not found:
        raise InputError('There are no pictures to predict',
                         [f'{word}: holds no jpg, png or bmp' for word in words],
                         'name files or folders: python predict.py pictures/ --OUT=predictions')
    if out.exists() and not out.is_dir():
        raise InputError(f'OUT={out} is a file', remedy='name a folder')
    if not 0 <= cfg.CAM_OPACITY <= 1:
        raise InputError(f'CAM_OPACITY={cfg.CAM_OPACITY} must be from 0 to 1')
    model = MBDCNN.load(cfg.MODELS, cfg.DEVICE, cfg.AMP)
    print(' '.join(filter(None, (model.warning, NOTICE))))
    rows, faults = [], []
    try:
        predict_all(model, found, out, cfg, rows, faults)
    finally:   # also of an interrupted run: the table holds what is finished
        first = [[f'# {model.warning}']] if model.warning else []
        files.write_csv(out / 'predictions.csv', [*first, COLUMNS, *(row.values() for row in rows)])
        write_page(out / 'index.html', rows, faults, model.warning)
        print(f'{len(rows)} of {len(found)} pictures predicted: {out}/predictions.csv, {out}/index.html')
    if faults:
        raise InputError(f'{len(faults)} of {len(found)} files cannot be used; the others are predicted',
                         faults, 'replace or remove them')


if __name__ == '__main__':
    cli.launch(main)
