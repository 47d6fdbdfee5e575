"""Stage 3: draw coarse-SN's masks, which later stages read as an additional channel.

Reads   models/CoarseSN/CoarseSN.pth (stage 2), the lists of stage 1 and the pictures they name
        with CROSS_FIT=5 also models/CoarseSN_fold1/ to CoarseSN_fold5/ (train_CoarseSN.py --CROSS_FIT=5)
Writes  Coarse_masks/{Training,Validation,Testing}_MaskCN/      a 224 px mask for each crop
        Coarse_masks/{Training,Validation,Testing}_EnhancedSN/  a mask of the picture's own size
        as png with values {0, 255}; made_by.json beside them says which coarse-SN drew them, and how

    python generate_Coarse_mask.py
    python generate_Coarse_mask.py --CROSS_FIT=5

With CROSS_FIT the mask of a training image is drawn by the network that was trained without it, so
that these masks are as good as those of new pictures, not better. All others (validation, test, and
images that no fold holds) are drawn by models/CoarseSN.

Run it again after an interruption and it draws what is missing. It replaces masks of another coarse-SN, but
those that the present one drew with other settings only with --RESUME=False. Cost: 6 views of each of the
paper's 45,000 crops and pictures, about 9 PFLOP.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import itertools

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset import crops, folds, isic, splits
from dataset.layout import SPLITS, Layout
from engine import cache, checkpoints, cli, hardware, images, settings
from engine.errors import InputError
from engine.samples import loaders
from mbdcnn import coarse_masks, inference, networks, stages

# --- Experiment
ROOT = '.'                # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'        # default (this file), or a file of recipes/, as paper, released, cpu
RESUME = True             # keep the masks that are there; False deletes them and draws all anew

# --- Masks
INPUT_SIZE = 224          # px, side of coarse-SN's input, a multiple of 16 (paper)
TTA = True                # sum the logits of 6 views: identity, 3 rotations, 2 flips (released)
CROPS_OF_IMAGES = 0       # draw for the crops of this many training images only; 0 = all
SEED = 0                  # which ones: train_MaskCN's TRAIN_IMAGES under this SEED; the folds keep stage 2's
CROSS_FIT = 0             # 2 or more: training masks by the coarse-SNs of stage 2 that did not see the image
BATCH_SIZE = 16           # pictures at a time, each in all views; memory and speed only

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
NUM_WORKERS = -1          # loader processes; -1 = none on a CPU, up to 8 beside a GPU
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


class Files(Dataset):
    """Pictures squashed to size x size: (size, size, 3) uint8, and their number."""

    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        return torch.from_numpy(cache.read_rgb_square(self.paths[number], self.size)), number


def list_tasks(layout, cfg, fold_of):
    """What is to be drawn: [(mask folder, side of the masks, {network: pictures})].

    side : see `draw_masks`; network : 0 for models/CoarseSN, else the number of the fold it did not see
    fold_of : {image id: fold number} of training images. Raises InputError when stage 1 left no list.
    """
    tasks = []
    for split in SPLITS:
        folds_here = fold_of if split == 'Training' else {}
        if layout.classification_list(split).is_file():
            limit = cfg.CROPS_OF_IMAGES if split == 'Training' else 0
            entries = isic.read_classification_list(layout, split)
            entries = splits.crops_of_subset(entries, limit, cfg.SEED)
            groups = by_network(entries, isic.image_id_of, folds_here)
            tasks.append((layout.coarse_for_classification(split), crops.SIDE, groups))
        if layout.segmentation_list(split).is_file():
            entries = isic.read_segmentation_list(layout, split)
            groups = by_network(entries, isic.id_of, folds_here)
            tasks.append((layout.coarse_for_segmentation(split), 0, groups))
    if not tasks:
        isic.read_segmentation_list(layout, 'Training')   # says what is missing, and how to make it
    return tasks


def by_network(entries, id_of, fold_of):
    """{network: its pictures}; an image without a fold is models/CoarseSN's, which is 0."""
    groups = {}
    for path, _ in entries:
        groups.setdefault(fold_of.get(id_of(path), 0), []).append(path)
    return groups


def missing(pictures, record):
    """(picture, fingerprint of its file) of those whose mask a folder's record does not hold."""
    contents = record.contents.of_all(pictures, f'{record.folder.name}: reading')
    return [(path, content) for path, content in zip(pictures, contents, strict=True)
            if not record.holds(f'{path.stem}.png', content)]


def draw_masks(segmenter, pictures, record, side, cfg, process, by=''):
    """Write a mask for each picture (path) that has none yet.

    record : of the masks' folder, as coarse_masks.begin returns it
    side : of the square masks in px, or 0 for each picture's own size; by : a word on who draws
    Raises InputError naming every picture that changed before its mask was written.
    """
    folder, changed, todo = record.folder, [], missing(pictures, record)
    print(f'{folder}{by}: {len(pictures) - len(todo)} of {len(pictures)} masks are there')
    loader = DataLoader(Files([path for path, _ in todo], cfg.INPUT_SIZE), cfg.BATCH_SIZE,
                        **loaders(hardware.workers(cfg.NUM_WORKERS, process.device)))
    for batch, numbers in tqdm(loader, desc=folder.name, unit='batch', disable=not todo):
        masks = inference.draw_coarse(segmenter, batch.numpy(), cfg.TTA)
        for mask, number in zip(masks, numbers.tolist(), strict=True):
            path, content = todo[number]
            size = (side, side) if side else images.image_size(path)
            target = folder / f'{path.stem}.png'
            images.write_mask(target, images.resize_mask(mask, size))
            if record.contents.of(path) == content:
                record.note(target.name, content)
            else:
                changed.append(f'{path}: changed while it was read')
    if changed:
        raise InputError('Pictures changed', changed, 'run the same command again')


def main():
    cfg = settings.resolve(globals(), choices=stages.MACHINE_CHOICES, positive=('INPUT_SIZE', 'BATCH_SIZE'))
    process = hardware.start(cfg, alone=True)
    stages.check_sides([cfg.INPUT_SIZE])
    folds.check(cfg.CROSS_FIT)
    layout = networks.or_published(Layout(cfg.ROOT))
    fold_of, fold_networks = coarse_masks.cross_fit(layout, cfg.CROSS_FIT) if cfg.CROSS_FIT else ({}, {})
    tasks = list_tasks(layout, cfg, fold_of)

    weights = layout.weights('CoarseSN')
    # Before loading: a training that still runs may replace the file in between.
    facts = {'coarse_sn': checkpoints.fingerprint_or_refuse(weights, layout.command('train_CoarseSN.py')),
             'input_size': cfg.INPUT_SIZE, 'views': 6 if cfg.TTA else 1, **fold_networks}
    if layout.models == networks.PUBLISHED:   # whose mask-CN alone will read the masks
        coarse_masks.require_chain(layout, ('MaskCN',), facts)
    with coarse_masks.lock(layout):
        if cfg.RESUME:
            coarse_masks.refuse_to_replace(layout, [folder for folder, _, _ in tasks], facts)
        segmenters = {}
        for number in sorted({0, *fold_of.values()}):
            place = layout.fold(number) if number else layout
            segmenters[number] = networks.load_segmenter(place, 'CoarseSN', process.device, cfg.AMP)
            networks.warn_of_other_size(place.weights('CoarseSN'), cfg.INPUT_SIZE)
        # Before a folder is begun: that removes masks of another drawing, and it counts as incomplete.
        images.require_photographs([
            path for folder, _, groups in tasks for path, _ in missing(
                list(itertools.chain(*groups.values())),
                coarse_masks.opened(layout, folder, facts, anew=not cfg.RESUME)[0])])
        for folder, side, groups in tasks:
            record = coarse_masks.begin(layout, folder, facts, cfg, anew=not cfg.RESUME)
            for number, pictures in sorted(groups.items()):
                by = f' by {layout.fold(number).coarse_sn}' if number else ''
                draw_masks(segmenters[number], pictures, record, side, cfg, process, by)
            coarse_masks.finish(record, list(itertools.chain(*groups.values())))


if __name__ == '__main__':
    cli.launch(main)
