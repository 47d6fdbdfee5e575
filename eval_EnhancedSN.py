"""Stage 6b: score enhanced-SN (or coarse-SN) on the validation or test pictures at full size.

Reads   dataset/ISIC/<split>_seg.txt and its pictures (stage 1); models/EnhancedSN/, models/MaskCN/
        and Coarse_masks/<split>_EnhancedSN/ (stages 3 to 5), the latter two as far as enhanced-SN was
        trained to see them; or models/CoarseSN/ alone
Writes  results/<network>_<split>.csv   JA, DI, pixel-AC, pixel-SE, pixel-SP of each picture
        results/<network>_<split>.json  their means with 95 % intervals, with and without TTA
        results/<network>_<split>_masks/  the predicted masks, as the challenge wants them
        results/<network>_<split>_panel.png  some pictures with everything that was found in them
        results/report.html             all results and trainings below the root on one page

    python eval_EnhancedSN.py --SPLIT=Testing
    python eval_EnhancedSN.py --SPLIT=Testing --NETWORK=CoarseSN

Cost: 18 forward passes for each picture, 2.3 s on two CPU cores with bf16 instructions.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import itertools

from dataset import isic, splits
from dataset.layout import Layout
from engine import cli, files, hardware, scoring, settings
from mbdcnn import evaluation, networks, panels, stages, transfer
from report import page as report

# --- Experiment
ROOT = '.'                # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'        # default (this file), or a file of recipes/, as paper, released, cpu
SPLIT = 'Validation'      # Validation or Testing
NETWORK = 'EnhancedSN'    # EnhancedSN or CoarseSN

# --- Test-time augmentation
SCALES = 0,               # px, input sides, multiples of 16; the first alone is "without TTA"
                          # 0: 1, 8/7 and 9/7 of the training's (224, 256, 288: released)
TTA = True                # 6 views at every scale: identity, 3 rotations, 2 flips (released)
BATCH_SIZE = 8            # pictures at a time, each in all views; memory and speed only

# --- Output
PANEL_IMAGES = 12         # pictures in the panel, evenly spread over the split

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def main():
    cfg = settings.resolve(globals(), choices=stages.EVALUATION_CHOICES | {
        'NETWORK': ('EnhancedSN', 'CoarseSN')}, positive=('BATCH_SIZE', 'PANEL_IMAGES'))
    process = hardware.start(cfg, alone=True)
    layout = networks.or_published(Layout(cfg.ROOT))
    scales = networks.scales_of_evaluation(layout.weights(cfg.NETWORK), cfg.SCALES)
    stages.check_sides(scales)
    pairs = isic.read_segmentation_list(layout, cfg.SPLIT)
    pictures, truths = map(list, zip(*pairs, strict=True))
    used, coarse_paths, inputs = [layout.weights(cfg.NETWORK)], None, {}
    evaluation.require_sound(layout, pairs)   # a fault found on the way would leave half of the results
    if cfg.NETWORK == 'EnhancedSN' and (kind := networks.trained_transfer(layout)) in networks.GUIDED:
        folder = layout.coarse_for_segmentation(cfg.SPLIT)
        inputs = transfer.require(layout, kind, [folder], ('MaskCN', 'EnhancedSN'))
        if 'coarse_masks' in inputs:
            coarse_paths = splits.coarse_paths(layout, folder, pictures)
        used.append(layout.weights('MaskCN'))
    networks.warn_of_other_size(used[0], scales[0])
    segmenter = networks.load_segmenter(layout, cfg.NETWORK, process.device, cfg.AMP)
    masks = layout.results / f'{cfg.NETWORK}_{cfg.SPLIT}_masks'
    found = evaluation.predict_to_disk(segmenter, pictures, coarse_paths, scales, cfg, masks)
    scores = scoring.score_arrays(found, truths)   # each picture's masks pass by, plain and with TTA
    names = [picture.stem for picture in pictures]
    facts = evaluation.provenance(cfg, used, files.fingerprint(*itertools.chain(*pairs))) | {'scales': scales}
    if cfg.NETWORK == 'EnhancedSN':
        facts['coarse_sn'] = stages.coarse_sn_below(used[0], inputs)
    evaluation.report_segmentation(layout, cfg.NETWORK, cfg.SPLIT, names, scores, facts)
    panel = layout.results / f'{cfg.NETWORK}_{cfg.SPLIT}_panel.png'
    panels.evaluation_panel(segmenter, pairs, coarse_paths, scales[0],
                            scores['tta' if cfg.TTA else 'plain'], evaluation.predicted_paths(masks, names),
                            cfg.PANEL_IMAGES, panel)
    print(f'predicted masks: {masks}/   panel: {panel}')
    print(f'report: {report.write(layout)}')


if __name__ == '__main__':
    cli.launch(main)
