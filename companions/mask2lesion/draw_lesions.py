"""Mask2Lesion: draw a picture for each mask of a folder.

Reads   models/Mask2Lesion/G.pth (train_Mask2Lesion) or WEIGHTS; Mask2Lesion/masks/ (draw_masks) or MASKS
Writes  Mask2Lesion/lesions/ below ROOT, or OUT:  Images/<name>.png and Annotation/<name>_segmentation.png,
        new pairs for train_CoarseSN.py --EXTRA_PAIRS; pairs/<name>.png as [mask | picture]; sources/, real
        pictures that masks were made of; lesions.json; panel.png; index.html to leaf through. Those of an
        earlier call are removed; other files in the folder stay

    python -m companions.mask2lesion.draw_lesions
    python -m companions.mask2lesion.draw_lesions --MASKS=masks --OUT=drawn
    python -m companions.mask2lesion.draw_lesions --WEIGHTS=latest_net_G.pth --MASKS=masks

The same settings give the same pictures. Cost: companions/README.md.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from companions.mask2lesion import painter, pairs, panels
from dataset import pairing
from dataset.isic import MASK_SUFFIX
from dataset.layout import Layout
from engine import cache, checkpoints, cli, files, hardware, images, settings
from engine.errors import InputError
from mbdcnn import stages

# --- Experiment
ROOT = '.'                # folder that holds models/ and Mask2Lesion/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SEED = 0                  # of the noise

# --- What
WEIGHTS = ''              # a generator, ours or latest_net_G.pth; '' = ROOT/models/Mask2Lesion/G.pth
MASKS = ''                # folder of binary png files; '' = ROOT/Mask2Lesion/masks
OUT = ''                  # folder; '' = ROOT/Mask2Lesion/lesions
NOISE = True              # dropout stays on, as in the original's test; False: one picture a mask

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def main():
    cfg = settings.resolve(globals(), choices=stages.MACHINE_CHOICES, least={'SEED': 0})
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    here = layout.root / 'Mask2Lesion'
    masks, out = Path(cfg.MASKS or here / 'masks'), Path(cfg.OUT or here / 'lesions')
    weights = Path(cfg.WEIGHTS) if cfg.WEIGHTS else layout.run('Mask2Lesion') / 'G.pth'
    before = earlier(out, masks)
    found = read_masks(masks, layout)
    fingerprint = checkpoints.fingerprint_or_refuse(weights, layout.command(TRAIN))
    paint = painter.load(weights, cfg.NOISE, process.device, cfg.AMP)
    known = files.read_json(masks / 'masks.json', 'masks').get('masks', {})
    sources = {name: source_of(known.get(name, UNKNOWN)) for name in found}
    own = begin(out, before, found, filter(None, sources.values()))
    kinds, shown, under = {}, {}, {}
    for number, (name, mask) in enumerate(tqdm(found.items(), desc='drawing', unit='picture')):
        drawn = paint(255 * mask, cfg.SEED, number)
        small = images.resize_mask(mask, drawn.shape[1::-1])
        images.write_png(out / 'Images' / f'{name}.png', drawn)
        images.write_mask(out / 'Annotation' / f'{name}{MASK_SUFFIX}.png', small)
        images.write_png(out / 'pairs' / f'{name}.png', pairs.combined(small, drawn))
        about, source = known.get(name, UNKNOWN), sources[name]
        if source:
            images.write_png(out / source_name(source), cache.read_rgb_square(source, paint.side))
        kinds.setdefault(about['kind'], []).append({
            'name': name, 'what': about['what'], 'image': f'{name}.png', 'mask': f'{name}{MASK_SUFFIX}.png',
            'source': source and Path(source_name(source)).name})
        shown.setdefault(about['kind'], []).append(small)
        under.setdefault(about['kind'], []).append(drawn)
    panels.grid(shown, out / 'panel.png', under)
    files.write_text(out / 'index.html', page(kinds, str(weights), paint.side))
    facts = {'weights': fingerprint, 'masks': files.fingerprint(*pairing.mask_files(masks).values()),
             'content': files.fingerprint(*(out / 'Images' / f'{name}.png' for name in found)),
             'drawn': len(found), 'files': own}
    files.write_text(out / RECORD, json.dumps({'settings': vars(cfg), **facts}) + '\n')
    print(f'{out}: {len(found)} pictures, {out / "index.html"}')


# Below main(), where settings.resolve does not look.
RECORD = 'lesions.json'
TRAIN, DRAW_MASKS = (f'-m companions.mask2lesion.{name}' for name in ('train_Mask2Lesion', 'draw_masks'))
UNKNOWN = {'kind': 'masks', 'what': '', 'of': []}   # of a mask that draw_masks did not make


def read_masks(folder, layout):
    """{name: mask (H, W) of {0, 1}} of a folder. Raises InputError naming every file that is no such mask."""
    if not folder.is_dir():
        raise InputError('There are no masks', [f'{folder}: is missing'], layout.command(DRAW_MASKS))
    paths = pairing.mask_files(folder)
    read = files.for_all(images.read_mask, paths.values(), 'reading masks', summary='Masks cannot be used')
    return dict(zip(paths, read, strict=True))


def earlier(out, masks):
    """Names of the pictures of an output folder that RECORD lists, those of this script.

    Raises InputError for a folder that this script did not make, and for masks that lie in it.
    """
    own = files.read_json(out / RECORD).get('files')
    if own is None and out.is_dir() and any(out.iterdir()):
        raise InputError('A folder holds files of another origin', [
            f'{out}: is not empty, and no {RECORD} says what was drawn'], 'choose another --OUT')
    if masks.resolve().is_relative_to(out.resolve()):
        raise InputError('MASKS lies in OUT', [f'{masks}: its masks would be removed'],
                         'choose another --OUT')
    return set(own or ())


def begin(out, before, names, sources):
    """Remove the pictures of an earlier run; names of those that will be written, which RECORD lists now.

    before : of `earlier`; names : of the masks; sources : paths, of `source_of`
    Raises InputError naming every other file that would be overwritten.
    """
    own = sorted({*map(source_name, sources), *(path for name in names for path in (
        f'Images/{name}.png', f'Annotation/{name}{MASK_SUFFIX}.png', f'pairs/{name}.png'))})
    others = [f'{out / path}: is of another origin' for path in own
              if path not in before and (out / path).exists()]
    if others:
        raise InputError('Drawn pictures would overwrite other files', others, 'choose another --OUT')
    files.write_text(out / RECORD, json.dumps({'files': sorted({*before, *own})}) + '\n')   # not finished
    for path in before:
        (out / path).unlink(missing_ok=True)
    return own


def source_of(about):
    """Path of the real picture of a mask, '' where there is none. about : of masks.json"""
    return next((path for path in about['of'][1:] if Path(path).is_file()), '')


def source_name(path):
    """Where a real picture is copied to, squashed, below OUT."""
    return f'sources/{Path(path).stem}.png'


def page(kinds, weights, side):
    """index.html as text. kinds : {kind: [dict of name, what, image, mask, source]}"""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.get_template('lesions.html').render(
        kinds=kinds, weights=weights, side=side, total=sum(map(len, kinds.values())))


if __name__ == '__main__':
    cli.launch(main)
