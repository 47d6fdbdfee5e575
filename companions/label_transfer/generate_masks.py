"""Label transfer: masks of a split from the generator's attention, one folder for each way to cut it.

Reads   models/LabelTransfer/A2B.pth (train_LabelTransfer) or WEIGHTS; the pictures that it was trained on, or
        DATA or A in place of them
Writes  LabelTransfer/masks/<SPLIT>/ below ROOT, or OUT:  threshold/, watershed/, crf/ and the same three
        after normalisation, normalised-<...>/, each with <id>_segmentation.png at the picture's own size, as
        compare.py and the challenge want them; map/<id>.png, the attention itself

    python -m companions.label_transfer.generate_masks --SPLIT=Testing
    python compare.py --SPLIT=Testing --MASKS=ours=LabelTransfer/masks/Testing/normalised-crf,other=folder

Alpha of the CRF is chosen on the validation masks. A later run redoes what is missing or changed; masks of
METHODS that it is not asked for stay as they are.
Cost: companions/README.md.
"""
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np
from tqdm import tqdm

from companions.label_transfer import data, maps, trained
from companions.label_transfer.making import making, recorded
from dataset.isic import MASK_SUFFIX
from dataset.layout import Layout
from engine import cli, hardware, images, settings
from mbdcnn import stages

# --- Experiment
ROOT = '.'                # folder that holds dataset/, LabelTransfer/ and models/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SPLIT = 'Testing'         # Training, Validation or Testing

# --- What
WEIGHTS = ''              # a generator; '' = ROOT/models/LabelTransfer/A2B.pth
DATA = ''                 # folder in the published layout; '' = as the training
A = ''                    # folder of pictures for SPLIT=Training; '' = as the training
OUT = ''                  # folder; '' = ROOT/LabelTransfer/masks/<SPLIT>

# --- From map to mask
METHODS = 'all'           # ways to cut the map: all, or of them, as watershed,normalised-crf
ALPHA = 0                 # of the CRF, 1 to 8; 0 = chosen on the validation masks
EMPTY_CORNERS = False     # the CRF finds nothing in the picture's corners (released: True)

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    return maps.method_faults(cfg.METHODS) + (
        [] if cfg.ALPHA in (0, *maps.ALPHAS) else [f'ALPHA={cfg.ALPHA}: must be from 0 to 8'])


def main():
    cfg = settings.resolve(globals(), choices=stages.MACHINE_CHOICES | {'SPLIT': data.SPLITS}, check=check)
    methods = maps.named(cfg.METHODS)
    maps.require(methods)
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    teacher = trained.load(layout, process, cfg.AMP, cfg.WEIGHTS, cfg.DATA, cfg.A)
    pairs = teacher.source.pairs(cfg.SPLIT)
    images.require_photographs([path for _, path, _ in pairs])
    crfs = [method for method in methods if method.endswith('crf')]
    alphas = dict.fromkeys(crfs, cfg.ALPHA) if cfg.ALPHA else teacher.alphas(crfs, cfg.EMPTY_CORNERS)
    out = Path(cfg.OUT) if cfg.OUT else layout.root / 'LabelTransfer' / 'masks' / cfg.SPLIT
    drawn_as = {'version': maps.VERSION, 'weights': teacher.fingerprint, 'kind': teacher.kind}
    of_crf = {method: {'alpha': alpha, 'empty_corners': cfg.EMPTY_CORNERS}
              for method, alpha in alphas.items()}
    with contextlib.ExitStack() as stack:
        makers = {
            way: stack.enter_context(making(out / way, drawn_as | of_crf.get(way, {}), layout, above=True))
            for way in dict.fromkeys(('map', *methods))}
        for name, path, _ in tqdm(pairs, desc='cutting maps', unit='picture'):
            places = {way: f'{name}{"" if way == "map" else MASK_SUFFIX}.png' for way in makers}
            content = makers['map'].record.contents.of(path)
            needed = [way for way, maker in makers.items() if maker.needs(places[way], content)]
            if not needed:
                continue
            picture = images.read_rgb(path)
            size = picture.shape[1::-1]
            cutter = maps.Cutter(teacher.translator.look(picture)[0], maps.at_side(picture), teacher.kind,
                                 cfg.EMPTY_CORNERS)
            for way in needed:
                if way == 'map':
                    write, pixels = images.write_png, images.resize_rgb(
                        np.round(255 * cutter.maps['']).astype(np.uint8), size)
                else:
                    write, pixels = images.write_mask, maps.at_size(cutter.mask(way, alphas.get(way)), size)
                makers[way].put(places[way], content, write, pixels)
    words = ', '.join(f'alpha of {method} {alpha}' for method, alpha in alphas.items())
    print(f'{out}: masks of {len(pairs)} pictures, {", ".join(methods)}; {words}'.rstrip('; '))
    older = [method for method in maps.METHODS if method not in methods and (out / method).is_dir()
             and recorded(out / method, layout)[0].head.get('weights', '') not in ('', teacher.fingerprint)]
    if older:
        print(f'{out}: masks of another generator are those in {", ".join(older)}; '
              f'--METHODS={",".join(older)} draws them anew')


if __name__ == '__main__':
    cli.launch(main)
