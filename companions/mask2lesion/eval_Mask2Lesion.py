"""Mask2Lesion: do the drawn pictures obey their masks, look like real ones, and are they new?

Reads   models/Mask2Lesion/G.pth (train_Mask2Lesion) or WEIGHTS; dataset/ISIC/<split>_seg.txt and its pictures
        (stage 1); models/CoarseSN/CoarseSN.pth, trained on real pictures (stage 2), where it is there;
        the training pictures that the generator saw
Writes  results/Mask2Lesion_<split>.csv   of each mask: what is found of it in the drawn and the real picture
        results/Mask2Lesion_<split>.json  means with 95 % intervals; colours of lesions and skin; copies
        results/Mask2Lesion_<split>_panel.png  mask, drawn, mask found in it, real, nearest training picture

    python -m companions.mask2lesion.eval_Mask2Lesion --SPLIT=Testing

Adherence is the overlap of the mask that was given with the one that is found in the drawn picture: by
coarse-SN, and by Otsu's threshold (dark is lesion), beside the same of the real pictures of these masks.
Cost: companions/README.md.
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

from companions.mask2lesion import judgement, painter, pairs, panels
from dataset.layout import Layout
from engine import checkpoints, cli, figures, files, hardware, images, scoring, settings
from mbdcnn import inference, networks, stages
from mbdcnn.panels import spread

# --- Experiment
ROOT = '.'                # folder that holds dataset/, models/ and results/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SPLIT = 'Validation'      # Validation or Testing
SEED = 0                  # of the noise

# --- What
WEIGHTS = ''              # a generator, ours or latest_net_G.pth; '' = ROOT/models/Mask2Lesion/G.pth
COARSE_SN = ''            # root whose models/CoarseSN/ judges; '' = ROOT
NOISE = True              # dropout stays on, as in the original's test; False: one picture a mask
TRAIN_IMAGES = 0          # the nearest of this many training pictures; 0 = as many as the generator saw

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def main():
    cfg = settings.resolve(globals(), choices=stages.EVALUATION_CHOICES, least={'SEED': 0, 'TRAIN_IMAGES': 0})
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    weights = Path(cfg.WEIGHTS) if cfg.WEIGHTS else layout.run('Mask2Lesion') / 'G.pth'
    fingerprint = checkpoints.fingerprint_or_refuse(weights, layout.command(TRAIN))
    paint = painter.load(weights, cfg.NOISE, process.device, cfg.AMP)
    judges = {'Otsu': images.otsu_mask} | coarse_judge(Layout(cfg.COARSE_SN or cfg.ROOT), cfg, process)
    trained = checkpoints.read_config(weights).get('settings', {})
    held_out = pairs.load(layout, cfg.SPLIT, '', paint.side, paint.mask_filter)
    seen = pairs.load(layout, 'Training', trained.get('PAIRS', ''), paint.side, paint.mask_filter,
                      cfg.TRAIN_IMAGES or trained.get('TRAIN_IMAGES', 0), trained.get('SEED', 0))
    drawn = np.stack([paint(mask, cfg.SEED, number) for number, mask in
                      enumerate(tqdm(held_out.masks, desc='drawing', unit='picture'))])
    truths = held_out.masks > 127
    both = {'drawn': drawn, 'real': held_out.images}
    found = {(judge, kind): [find(picture) for picture in tqdm(pictures, desc=f'{judge}, {kind}')]
             for judge, find in judges.items() for kind, pictures in both.items()}
    scores = {key: np.array(list(map(painter.overlap, masks, truths))) for key, masks in found.items()}
    distances, nearest, copies = judgement.copies(drawn, held_out.images, seen.images)
    facts = {'split': cfg.SPLIT, 'n': len(drawn), 'adherence': adherence(scores),
             'colours': judgement.colours(both, truths), 'copies': copies, 'weights': fingerprint,
             'recipe': trained.get('RECIPE', 'unknown'), 'settings': vars(cfg),
             'training pictures': len(seen.names), 'data': held_out.fingerprint}
    stem = layout.results / f'Mask2Lesion_{cfg.SPLIT}'
    header = [f'{judge} {name} {kind}' for judge, kind in scores for name in METRICS]
    rows = np.concatenate([*scores.values(), distances[:, None]], axis=1)
    files.write_csv(stem.with_suffix('.csv'), [
        ('image_id', *header, 'distance to the nearest', 'nearest training picture'),
        *((name, *(f'{value:.6f}' for value in row), seen.names[near])
          for name, row, near in zip(held_out.names, rows, nearest, strict=True))])
    files.write_text(stem.with_suffix('.json'), json.dumps(facts, indent=1) + '\n')
    judge = list(judges)[-1]   # coarse-SN where it is there
    shown = [(f'{held_out.names[number]}\nDI {100 * scores[judge, "drawn"][number, 1]:.0f}', [
        truths[number].astype(np.uint8), drawn[number], found[judge, 'drawn'][number].astype(np.uint8),
        held_out.images[number], seen.images[nearest[number]]])
        for number in spread(len(drawn), panels.COLUMNS)]
    titles = ['mask given', 'drawn', f'found by {judge}', 'real', 'nearest seen']
    figures.panel(shown, titles, f'{stem}_panel.png')
    show(facts)
    print(f'written: {stem}.csv, {stem}.json, {stem}_panel.png')


# Below main(), where settings.resolve does not look.
TRAIN = '-m companions.mask2lesion.train_Mask2Lesion'
METRICS = 'JA', 'DI'


def coarse_judge(layout, cfg, process):
    """{'coarse-SN': function of a picture (S, S, 3) -> its mask (S, S) bool}; {} without such weights."""
    weights = layout.weights('CoarseSN')
    if not weights.is_file():
        print(f'{weights}: is missing, so that only a threshold judges')
        return {}
    segmenter = networks.load_segmenter(layout, 'CoarseSN', process.device, cfg.AMP)
    side = networks.trained_settings(weights, INPUT_SIZE=224)['INPUT_SIZE']

    def find(picture):
        logits = inference.segment(segmenter, inference.squashed([picture], [side]), tta=False)
        return inference.mask_of([scale[:, 0] for scale in logits], picture.shape[1::-1])

    return {'coarse-SN': find}


def adherence(scores):
    """{'coarse-SN drawn': {'JA': mean, 'DI': mean, 'ci95': {...}}, ...} of {(judge, kind): (N, 2)}."""
    return {f'{judge} {kind}': scoring.summary(rows, METRICS) for (judge, kind), rows in scores.items()}


def show(facts):
    """Print the adherence, the colours and the distances."""
    print(f'\nmasks found again, {facts["split"]} (n = {facts["n"]}), percent [95 % interval]')
    rows = [[key, *(f'{100 * row[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]'
                    for name in METRICS for low, high in [row['ci95'][name]])]
            for key, row in facts['adherence'].items()]
    print(tabulate(rows, ['', *METRICS], 'plain', disable_numparse=True))
    print('\ncolours in CIELAB: mean over the pictures, and of the deviation within each')
    rows = [[part, kind, *((f'{mean:.1f} ({deviation:.1f})' for mean, deviation in
                            zip(row['mean'], row['deviation'], strict=True)) if row else '---')]
            for part, kinds in facts['colours'].items() for kind, row in kinds.items()]
    print(tabulate(rows, ['', '', 'L*', 'a*', 'b*'], 'plain', disable_numparse=True))
    far = facts['copies']
    print(f'\ndistance to the nearest of {facts["training pictures"]} training pictures, grey levels at '
          f'{judgement.SMALL} px: drawn {far["drawn"]:.1f}, real ones of the split {far["real"]:.1f};\n'
          f'{100 * far["unusually near"]:.0f} % of the drawn ones lie nearer than 95 % of the real ones do\n')


if __name__ == '__main__':
    cli.launch(main)
