"""Stage 5: train enhanced-SN, coarse-SN guided by mask-CN's localisation maps (paper section III-C).

Reads   dataset/ISIC/{Training,Validation}_seg.txt and the pictures they list (stage 1)
        models/CoarseSN/CoarseSN.pth (stage 2; not with START=pretrained), Coarse_masks/*_EnhancedSN/ (3),
        models/MaskCN/MaskCN.pth (stage 4); no coarse masks for a mask-CN of RGB alone. TRANSFER=mdc:
        the classification list, its crops and Coarse_masks/Training_MaskCN/; none: stages 1 and 2 alone
Writes  models/EnhancedSN/  EnhancedSN.pth (best weights), last.pth (to go on from), config.json,
        metrics.jsonl, curves.png, panel.png, tensorboard/

    python train_EnhancedSN.py
    torchrun --nproc-per-node=2 train_EnhancedSN.py

Run it again after an interruption and it goes on where it stopped. Cost: that of coarse-SN and a
tenth more, for mask-CN's forward pass.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from dataset import splits
from dataset.layout import Layout
from engine import cli, device_samples, hardware, settings, trainer
from mbdcnn import evaluation, networks, panels, stages, transfer
from mbdcnn.inference import Segmenter
from net.inputs import to_input
from net.loss import hybrid_loss

# --- Experiment
ROOT = '.'                     # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'             # default (this file), or a file of recipes/, as paper, released, cpu
RESUME = True                  # go on from models/EnhancedSN/last.pth; False starts anew
SEED = 0                       # of the E-layer's weights, the order of the pictures, their augmentation

# --- Network
NUM_CLASSES = 2                # output channels, those of coarse-SN: 2 (released) or 1 (paper)
TRANSFER = 'e-layer'           # of mask-CN's maps: e-layer (paper), d-net or mdc (paper, Table VII), none
START = 'coarse-sn'            # coarse-sn (paper, III-C), or pretrained: without stage 2 (Table VI, B)
PRETRAINED = 'auto'            # with START=pretrained, as in train_CoarseSN.py; the files likewise
VOC_WEIGHTS = 'models/deeplabv3plus_xception_VOC2012_epoch46_all.pth'   # file, see models/README.md
XCEPTION65_WEIGHTS = 'models/xception65.tf_in1k.pth'                    # file, see models/README.md
XCEPTION_WEIGHTS = 'models/xception-43020ad28.pth'                      # file, see models/README.md
SMALL_START = True             # with START=pretrained, as in train_CoarseSN.py
E_LAYER_START = 'identity'     # identity: the pyramid passes through it (ours), or random (released)
E_LAYER_STD = 1.0              # identity: deviation of its weights for the maps, beside ones for the pyramid
PROXY_THRESHOLD = 0.3          # mdc: part of a map's maximum from which on a pixel counts as lesion
INITIAL_WEIGHTS = ''           # fine-tune from, as other/models/EnhancedSN/EnhancedSN.pth; '' = coarse-SN
CAM_RELU = False               # drop the negative evidence from the localisation maps (released: kept)
DROPOUT = True                 # three dropout layers, 0.5, 0.5 and 0.1 (released)
BN_EPS = 0.0                   # of batch norms; 0 = that of the weights it starts from, so coarse-SN's
FREEZE_BN = False              # batch norms keep their running statistics while training

# --- Optimisation
EPOCH = 500                    # passes over the training pictures (paper)
BATCH_SIZE = 16                # pictures a step, over all processes together (paper)
LEARNING_RATE = 5e-5           # Adam, decayed by (1 - step / steps) ** 0.9 (released; paper 1e-4)
PATIENCE = 0                   # stop after this many validations without a better JA; 0 = never
VALIDATE_EVERY = 1             # epochs between two validations (released)
TRAIN_IMAGES = 0               # train on this many pictures only, nested subsets; 0 = all

# --- Loss
DICE_CLASSES = 'both'          # both (released) or lesion (paper)
RANK_WEIGHT = 0.05             # lambda of the hybrid loss; 0 = Dice alone (paper)
HARD_PIXELS = 30               # K, hard pixels of lesion and of background in an image (paper)
MARGIN = 0.3                   # by which lesion pixels shall outrank background pixels (paper)
RANK_PADDED = False            # lists shorter than K are filled with zero errors (released)

# --- Input and augmentation
INPUT_SIZE = 224               # px, side of the square network input, a multiple of 16 (paper)
CACHE_SIZE = 448               # px, side of the decoded pictures; twice the input: 1 sample in 80 is enlarged
INPUT_SCALING = 'unit'         # unit x/255 (released), symmetric, whitening (paper)
ROTATION = 10.0                # degrees, either way (paper)
SHEAR = 0.1                    # radians, either way (paper)
SHIFT = 0.0, 0.1               # fraction of width and of height, either way (released: vertical only)
ZOOM = 0.9, 1.1                # factor (paper)
FLIPS = True                   # horizontal and vertical, each in half of the samples (paper)
CENTRE_CROP = 0.5, 1.0         # side of a centre crop as a fraction of the picture's (paper)
CENTRE_CROP_PROBABILITY = 0.5  # share of the samples that are cropped (released)
AFFINE_FILTER = 'bilinear'     # bilinear or nearest (released) for the picture; masks are nearest

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: augmented in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower
SYNC_BN = True                 # several GPUs: batch norm over the global batch


def enhanced_task(cfg, process, network, classifier, train, validation, steps):
    """What the training loop needs to know of enhanced-SN.

    classifier : the trained mask-CN that guides it, None with TRANSFER=mdc or none
    train, validation : dataset.splits.Segmentation, with coarse masks where mask-CN reads them
    """
    planes = {'mask': train.masks} | ({} if train.coarse is None else {'coarse': train.coarse})
    pictures = stages.pictures(cfg, train.images, planes)
    segmenter = Segmenter(network, cfg.INPUT_SCALING, hardware.choose_precision(cfg.AMP, process.device),
                          classifier)

    def losses(models, batch):
        """batch : 'image' (B, 3, S, S), 'mask' and perhaps 'coarse' (B, S, S), all uint8"""
        maps = () if classifier is None else (classifier(batch['image'], batch.get('coarse'))[1],)
        logits = models['EnhancedSN'](to_input(batch['image'], cfg.INPUT_SCALING), *maps)
        loss, dice, rank = hybrid_loss(logits, batch['mask'], cfg.RANK_WEIGHT, cfg.HARD_PIXELS, cfg.MARGIN,
                                       cfg.DICE_CLASSES, cfg.RANK_PADDED)
        yield 'EnhancedSN', loss, {'dice': dice, 'rank': rank}

    return trainer.Task(
        networks={'EnhancedSN': network},
        optimizers={'EnhancedSN': trainer.adam(network, cfg.LEARNING_RATE, process.device)},
        stream=lambda first, last: device_samples.batches(pictures, cfg, process, first, last),
        losses=losses,
        rate=lambda step: trainer.poly(step, steps),
        validate=lambda: evaluation.quick_segmentation(segmenter.folded(), validation, cfg.BATCH_SIZE,
                                                       process),
        panel=lambda path: panels.segmentation(segmenter, validation, process.device, path),
        monitor='JA', chance=0.0, score_start=bool(cfg.INITIAL_WEIGHTS))


def main():
    cfg = settings.resolve(globals(), choices=stages.SEGMENTATION_CHOICES | {
        'TRANSFER': tuple(networks.ENHANCED), 'START': networks.STARTS,
        'PRETRAINED': networks.PRETRAINED_SN, 'E_LAYER_START': networks.E_LAYER_STARTS},
        positive=stages.SEGMENTATION_POSITIVE)
    process = hardware.start(cfg)
    stages.check_numbers(cfg, process)
    layout = Layout(cfg.ROOT)
    guided = cfg.TRANSFER in networks.GUIDED
    inputs = transfer.require(layout, cfg.TRANSFER, [
        layout.coarse_for_segmentation(split) for split in ('Training', 'Validation')] if guided else [
        layout.coarse_for_classification('Training')])
    masked = guided and 'coarse_masks' in inputs
    with hardware.main_first(process):
        train = splits.segmentation(layout, 'Training', cfg.CACHE_SIZE, coarse=masked,
                                    limit=cfg.TRAIN_IMAGES, seed=cfg.SEED)
        validation = splits.segmentation(layout, 'Validation', cfg.INPUT_SIZE, coarse=masked)
    hardware.seed_step(cfg.SEED, 0, 0)
    network, start = networks.enhanced_for_training(cfg, layout, train.images)
    if cfg.TRANSFER == 'mdc':
        train = transfer.with_proxies(train, layout, cfg, inputs, process)

    classifier = networks.load_classifier(layout, process.device, cfg.AMP, cfg.CAM_RELU) if guided else None
    steps, every = stages.steps(cfg, len(train.images))
    task = enhanced_task(cfg, process, network, classifier, train, validation, steps)
    with stages.open_run(layout, 'EnhancedSN', cfg, process, train, validation, start, inputs) as run:
        trainer.fit(task, cfg, run, process, steps, every)
    hardware.finish()


if __name__ == '__main__':
    cli.launch(main)
