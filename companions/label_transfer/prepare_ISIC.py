"""Label transfer: choose a root's training pictures, and cut healthy skin from their corners.

Reads   dataset/ISIC/Training_seg.txt and the pictures it lists (stage 1), with CHECK_MASKS their masks, too
Writes  LabelTransfer/healthy/<id>_health.png below ROOT, and beside it healthy_panel.png, some of them;
        LabelTransfer/diseased/, copies of pictures without border, for train_LabelTransfer.py --A

    python -m companions.label_transfer.prepare_ISIC

The diseased pictures are chosen by their corners alone, none of which may be border or shadow: else that, and
not the lesion, would tell the two kinds apart. A healthy patch is a square of random size in a random corner
of a picture; pictures come in random order, until there are COUNT patches. It is refused where the mask has
lesion in it, and where skin is not all that is seen: border or shadow, vignette or pigment, hair, marks of
rulers and bubbles, colours that skin has not (companions/label_transfer/healthy.py holds the rules). The same
settings choose and cut the same. Cost: companions/README.md.
"""
import collections
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from companions.label_transfer import data, healthy
from companions.label_transfer.making import making
from dataset import extraction, isic
from dataset.layout import Layout
from engine import augment, cli, figures, files, images, settings
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds dataset/ and LabelTransfer/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SEED = 0                  # of the order of the pictures, the corners and the sizes

# --- Diseased pictures
DISEASED = 200            # pictures to copy; 0 = all whose corners are no border (paper: 200)

# --- Patches
COUNT = 200               # patches, one of a picture at most; 0 = all that can be cut (paper: 200)
SHARE = 0.2, 0.4          # side, as a share of the picture's short side (paper: different sizes)
SIZE = 256                # px, side of the files (paper)
CHECK_MASKS = True        # refuse a corner that has lesion by the picture's mask; False: by its looks alone


def cut(entry, cfg, maker):
    """The patch of one picture: (name or '', reason why not). entry : (number, picture, mask)"""
    number, path, mask_path = entry
    rng = augment.generator(cfg.SEED, number)
    source = ' '.join(maker.record.contents.of(one) for one in (path, mask_path)[:1 + cfg.CHECK_MASKS])
    share, name, reason = rng.uniform(*cfg.SHARE), f'{path.stem}_health.png', ''
    image = images.read_rgb(path)
    mask = images.read_mask(mask_path) if cfg.CHECK_MASKS else None
    for place in rng.permutation(len(healthy.CORNERS)):
        left, top, right, bottom = healthy.corner_box(image.shape[1::-1], healthy.CORNERS[place], share)
        if mask is not None and mask[top:bottom, left:right].any():
            reason = reason or 'lesion'
            continue
        patch = image[top:bottom, left:right]
        reason = healthy.refusal(patch)
        if not reason:
            maker.put(name, source, images.write_png, images.resize_rgb(patch, (cfg.SIZE, cfg.SIZE)))
            extraction.refuse_changed(path, source.split()[0], maker.record.contents.of(path))
            return name, ''
    return '', reason


def copy_diseased(cfg, layout, paths):
    """Copy the first DISEASED pictures whose corners are no border to LabelTransfer/diseased/."""
    out, found = data.Source(layout).diseased_folder, []
    with making(out, {'version': VERSION, 'seed': cfg.SEED}, layout) as maker:
        for start in range(0, len(paths), AT_ONCE):
            some = paths[start:start + AT_ONCE]
            bare = files.for_all(lambda path: healthy.without_border(images.read_rgb(path)), some,
                                 'looking at corners', summary='Pictures that cannot be used')
            found += [path for path, good in zip(some, bare, strict=True) if good]
            if cfg.DISEASED and len(found) >= cfg.DISEASED:
                break
        for path in found[:cfg.DISEASED or None]:
            maker.put(path.name, maker.record.contents.of(path), files.write_bytes, path.read_bytes())
    if len(found) < max(1, cfg.DISEASED):
        raise InputError('There are too few pictures without border', [
            f'{len(found)} of {len(paths)}, {cfg.DISEASED} are asked for'], f'--DISEASED={len(found)}')
    print(f'{out}: {len(found[:cfg.DISEASED or None])} pictures')


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    good = 0 < cfg.SHARE[0] <= cfg.SHARE[1] <= 0.5
    return [] if good else [f'SHARE={cfg.SHARE}: must be rising numbers above 0, at most 0.5']


def main():
    cfg = settings.resolve(globals(), positive=('SIZE',), least={'SEED': 0, 'COUNT': 0, 'DISEASED': 0},
                           check=check)
    layout = Layout(cfg.ROOT)
    listed = isic.read_segmentation_list(layout, 'Training')
    order = augment.generator(cfg.SEED, ORDER).permutation(len(listed))
    out, cut_as = data.Source(layout).healthy_folder, {
        'version': VERSION, 'seed': cfg.SEED, 'share': list(cfg.SHARE), 'size': cfg.SIZE,
        'masks': cfg.CHECK_MASKS}
    names, reasons = [], collections.Counter()
    copy_diseased(cfg, layout, [listed[number][0] for number in order])
    with making(out, cut_as, layout) as maker:
        for start in range(0, len(order), AT_ONCE):
            some = [(int(number), *listed[number]) for number in order[start:start + AT_ONCE]]
            found = files.for_all(lambda entry: cut(entry, cfg, maker), some, 'cutting patches',
                                  summary='Pictures that cannot be used')
            names += [name for name, _ in found if name]
            reasons.update(reason for _, reason in found if reason)
            if cfg.COUNT and len(names) >= cfg.COUNT:
                break
        names = names[:cfg.COUNT or None]
        maker.wanted &= set(names)
    if cfg.COUNT and len(names) < cfg.COUNT:
        raise InputError('There is too little healthy skin', [f'{out}: {len(names)} patches of '
                         f'{len(listed)} pictures, {cfg.COUNT} are asked for'], f'--COUNT={len(names)}')
    if not names:
        raise InputError('There is no healthy skin', [f'{name}: {n}' for name, n in reasons.items()])
    shown = [images.read_rgb(out / name) for name in names[:COLUMNS**2]]
    figures.panel([('', shown[start:start + COLUMNS]) for start in
                   range(0, len(shown) - len(shown) % COLUMNS or len(shown), COLUMNS)],
                  [''] * min(COLUMNS, len(shown)), out.with_name('healthy_panel.png'))
    refused = ', '.join(f'{name} {count}' for name, count in reasons.most_common())
    print(f'{out}: {len(names)} patches; of the last corner of the other pictures: {refused or "nothing"}')


# Below main(), where settings do not look.
VERSION = 1       # raise it when the same settings cut other patches than before
ORDER = 2**62     # keeps the order's random stream apart from the pictures'
AT_ONCE = 64      # pictures that are read before the patches are counted
COLUMNS = 8


if __name__ == '__main__':
    cli.launch(main)
