"""Stage 6a: score mask-CN on the validation or test images, from one crop and from nine.

Reads   dataset/ISIC/<split>_crop9_cls.txt and its crops (stage 1), Coarse_masks/<split>_MaskCN/
        (stage 3), models/MaskCN/ (stage 4)
Writes  results/MaskCN_<split>.csv   the class probabilities of each image
        results/MaskCN_<split>.json  AUC, AP, AC, SE, SP of melanoma and of keratosis (of the scored
                                     classes of dataset/data/classes.toml) against the rest, mean AUC
                                     and 95 % intervals, balanced accuracy and the confusion matrix,
                                     from 9 crops and from 1
        results/MaskCN_<split>_challenge.csv  in the challenge's format; of other classes than the paper's in
                                     that of 2018 and 2019, a column each
        results/MaskCN_<split>_errors.npz  of each misclassified image where mask-CN sees the class that
                                     it decided for, and where the true one
        results/report.html         all results and trainings below the root on one page

    python eval_MaskCN.py --SPLIT=Testing

Cost: 9 forward passes for each image, 0.4 s on two CPU cores with bf16 instructions.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from dataset import splits
from dataset.layout import Layout
from engine import cli, hardware, settings
from mbdcnn import coarse_masks, evaluation, inference, networks, stages
from report import page as report

# --- Experiment
ROOT = '.'                # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'        # default (this file), or a file of recipes/, as paper, released, cpu
SPLIT = 'Validation'      # Validation or Testing

# --- Input
INPUT_SIZE = 224          # px, side of the square network input, a multiple of 16 (paper)
BATCH_SIZE = 64           # crops at a time; memory and speed only

# --- Machine
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def main():
    cfg = settings.resolve(globals(), choices=stages.EVALUATION_CHOICES,
                           positive=('BATCH_SIZE', 'INPUT_SIZE'))
    process = hardware.start(cfg, alone=True)
    stages.check_sides([cfg.INPUT_SIZE])
    layout = networks.or_published(Layout(cfg.ROOT))
    classifier = networks.load_classifier(layout, process.device, cfg.AMP)
    if classifier.uses_masks:
        coarse_masks.require(layout, [layout.coarse_for_classification(cfg.SPLIT)], ('MaskCN',))
    networks.require_classes(layout.weights('MaskCN'), layout.classes)
    networks.warn_of_other_size(layout.weights('MaskCN'), cfg.INPUT_SIZE)
    data = splits.classification(layout, cfg.SPLIT, cfg.INPUT_SIZE, classifier.uses_masks)
    crops = evaluation.crop_probabilities(classifier, data, cfg.BATCH_SIZE, process, 'classifying')
    inference.require_finite(crops, classifier)
    probabilities, labels = evaluation.image_probabilities(crops, data)
    results = {'9-crop': probabilities, '1-crop': evaluation.whole_image_probabilities(crops, data)}
    facts = evaluation.provenance(cfg, [layout.weights('MaskCN')], data.fingerprint)
    evaluation.write_error_maps(layout, cfg.SPLIT, classifier, data, probabilities, labels, cfg.BATCH_SIZE)
    evaluation.report_classification(layout, cfg.SPLIT, data.names, results, labels, facts)
    print(f'report: {report.write(layout)}')


if __name__ == '__main__':
    cli.launch(main)
