"""What do mask-CN's maps know of the lesion that coarse-SN does not? Pixel by pixel, on a split with masks.

Reads   lists, pictures, masks and Coarse_masks/ of SPLIT; models/CoarseSN/, models/MaskCN/ and, where it
        is there, models/EnhancedSN/
Writes  results/maps_<SPLIT>.md and .json

    python benchmarks/maps.py --ROOT=run

Each picture is seen once, at mask-CN's side: coarse-SN's logit, and the map of the class that mask-CN
decides for, as enhanced-SN reads it. How well does each order the pixels (AUC, mean of the pictures),
beside a spot in the middle that knows nothing of the picture? Does a logistic regression on both draw a
better mask than one on the logit alone, or is it surer of its pixels (log loss)? It is fitted to the truth of
four fifths of the very pictures, so that it may do more than enhanced-SN can. Would another map tell it more,
one that a ridge regression reads from mask-CN's layers, fitted in the same way; and did mask-CN learn that,
or did the ImageNet Xception know it (where XCEPTION_WEIGHTS are there)? And when the lesion moves, does the
map? Does enhanced-SN listen: what becomes of its masks when it is given the map of another picture? Ten
minutes or so for 150 pictures of 192 px on two cores without AVX512, without enhanced-SN.
"""
import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tabulate import tabulate
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.models.feature_extraction import create_feature_extractor
from tqdm import tqdm

from dataset import splits
from dataset.layout import Layout
from engine import bootstrap, checkpoints, cli, files, hardware, metrics, settings
from mbdcnn import networks, stages, transfer
from mbdcnn.inference import Classifier, place
from net import weights
from net.inputs import to_maskcn_input
from net.layers import Conv2d
from net.models import Xception_dilation

# --- What
ROOT = '.'                # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'        # table of recipes/<RECIPE>.toml that replaces constants below
SPLIT = 'Validation'      # Training, Validation or Testing
LIMIT = 0                 # pictures, a subset chosen by SEED; 0 = all
SEED = 0
XCEPTION_WEIGHTS = 'models/xception-43020ad28.pth'   # file, see models/README.md; not needed

# --- Machine
BATCH_SIZE = 8            # pictures at a time; memory and speed only
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
DETERMINISTIC = False     # bit-reproducible algorithms also on GPUs, slower


def main():
    cfg = settings.resolve(globals(), positive=('BATCH_SIZE',), choices=stages.MACHINE_CHOICES | {
        'SPLIT': ('Training', 'Validation', 'Testing')})
    process = hardware.start(cfg, alone=True)
    layout = networks.or_published(Layout(cfg.ROOT))
    uses_masks = 'coarse_masks' in transfer.require(
        layout, 'e-layer', [layout.coarse_for_segmentation(cfg.SPLIT)], ('MaskCN',))
    side = networks.trained_settings(layout.weights('MaskCN'), INPUT_SIZE=224)['INPUT_SIZE']
    data = splits.segmentation(layout, cfg.SPLIT, side, uses_masks, limit=cfg.LIMIT, seed=cfg.SEED)
    segmenter = networks.load_segmenter(layout, 'CoarseSN', process.device, cfg.AMP)
    enhanced = networks.load_segmenter(layout, 'EnhancedSN', process.device, cfg.AMP) \
        if layout.weights('EnhancedSN').is_file() else None
    guided = enhanced is not None and enhanced.classifier is not None
    classifier = enhanced.classifier if guided else networks.load_classifier(layout, process.device, cfg.AMP)
    _, xception = networks.choose_pretrained('auto', {'xception': cfg.XCEPTION_WEIGHTS})

    def see(look, name, pictures_by=(0, 0), coarse_by=(0, 0)):
        """What `look` makes of every picture, (N, s, s), when these are moved; look : as those below."""
        def work(batch):
            pictures, coarse = place(data.images, data.coarse, process.device, batch)
            return look(moved(pictures, *pictures_by), moved(coarse, *coarse_by), batch).cpu()

        batches = [batch.tolist() for batch in torch.arange(len(data.images)).split(cfg.BATCH_SIZE)]
        seen = hardware.on_each_core(work, batches, process.device)
        return torch.cat(list(tqdm(seen, name, len(batches), unit='batch'))).numpy()

    def lesion(pictures, *_):
        return segmenter(pictures)

    def cells(pictures, coarse, _):
        return classifier(pictures, coarse)[1][:, 0]

    def activation(*given):
        return enlarged(cells(*given), side)

    def moves(look, name, still, picture=1, coarse=1):
        shifted = [see(look, f'{name}, moved', picture * by, coarse * by) for by in steps(side)]
        return followed(still, shifted)

    truth, logit = np.asarray(data.masks) > 0, see(lesion, 'coarse-SN')
    own = torch.from_numpy(see(cells, 'mask-CN'))
    cam = enlarged(own, side).numpy()
    facts = {'pictures': len(truth), 'side': side} | order(logit, cam, truth) | masks(logit, cam, truth)
    if guided:
        facts |= listens(enhanced, own[:, None], see, truth)
    sources = {'map': cam} | readouts('mask-CN', classifier, see, truth)
    if xception:
        sources |= readouts('ImageNet Xception', untrained(xception, classifier), see, truth)
    facts['gains'] = gains(sources | {"the truth on the map's grid": on_grid(truth)}, logit, truth)
    facts['moves'] = {"coarse-SN's logit": moves(lesion, 'coarse-SN', logit),
                      'map': moves(activation, 'mask-CN', cam)}
    if uses_masks:
        facts['moves'] |= {'map, the picture alone moved': moves(activation, 'mask-CN', cam, coarse=0),
                           'map, the coarse mask alone moved': moves(activation, 'mask-CN', cam, picture=0)}
    path = layout.results / f'maps_{cfg.SPLIT}.md'
    files.write_text(path.with_suffix('.json'), json.dumps(facts, indent=1) + '\n')
    files.write_text(path, table(facts))
    print(f'{table(facts)}\nwritten: {path}, {path.with_suffix(".json").name}')


# Below main(), where settings.resolve does not look: these are fixed, not settings.
STRIDE = 16            # px of the input in a cell of mask-CN's map
FOLDS = 5
PIXELS = 400           # of a picture, to fit the regression to
LARGEST = 8.0          # logits beyond are as sure; the regression sees them cut
MOVED = 1 / 6          # of the side
LAYERS = {'block11': 728, 'SepConv2': 1024, 'SepConv4': 2048}   # channels: before, in and after the exit flow
RIDGE = 1e4            # of 1e2, 1e3, ... 1e5 the best for most layers of 120 pictures; 1e5 for the last ones


def untrained(path, classifier):
    """What mask-CN's training began with: the ImageNet Xception in the file `path`, which reads RGB alone."""
    network = Xception_dilation(3, bn_eps=networks.EPSILONS['xception'])
    state = checkpoints.load_state(path, networks.WHERE)
    checkpoints.apply(weights.load_imagenet_xception, network, state, path, networks.WHERE)
    placed = networks.placed(network, classifier.device, classifier.precision)
    return Classifier(placed, 'symmetric', classifier.precision)


def layers(classifier):
    """A look at what LAYERS hold of pictures, one above the other: (B, 3800, h, w)."""
    whole = {'leaf_modules': [Conv2d]}   # whose gradients' way cannot be traced
    extract = create_feature_extractor(classifier.network, [*LAYERS], tracer_kwargs=whole)

    def look(pictures, coarse, _):
        x = to_maskcn_input(pictures, coarse if classifier.uses_masks else None, classifier.scaling)
        with torch.no_grad(), hardware.autocast(classifier.precision, x.device):
            return torch.cat([*extract(x).values()], 1).half()
    return look


def readouts(name, classifier, see, truth):
    """`readout` of each of a classifier's LAYERS: {'<name>, <layer>': (N, S, S)}; see : as in `listens`"""
    held = np.split(see(layers(classifier), f'{name}, its layers'), np.cumsum([*LAYERS.values()])[:-1], 1)
    return {f'{name}, {layer}': readout(each, truth) for layer, each in zip(LAYERS, held, strict=True)}


def readout(features, truth, ridge=RIDGE):
    """The map that a ridge regression reads from features (N, C, h, w) at STRIDE: (N, S, S) float32.

    Like `fitted`, each picture's is by one that was fitted to the truth of others. truth (N, S, S) bool
    ridge : its penalty, of standardised channels
    """
    count, channels, height, width = features.shape
    cells, wanted = np.moveaxis(features, 1, -1).reshape(-1, channels), pooled(truth)
    found = cross_val_predict(make_pipeline(StandardScaler(), Ridge(ridge)), cells.astype(np.float32),
                              wanted.ravel(), cv=folds(count, height * width))
    return enlarged(torch.from_numpy(found.reshape(wanted.shape)), truth.shape[1]).numpy()


def gains(sources, logit, truth):
    """What sources add to coarse-SN's logit: {name: [AUC, log loss with it, change by it, low, high]}.

    The regression without them has the logit as it is, cut, and on the map's grid: neither what is cut off
    nor what a mean over cells tells counts as a source's. The interval is over pictures, 95 %.
    sources : {name: (N, S, S)}; logit (N, S, S) float, truth (N, S, S) bool
    """
    cut = np.clip(logit, -LARGEST, LARGEST)
    given = [cut, logit, on_grid(cut)]
    without, found = log_losses(given, truth), {}
    for name, source in sources.items():
        change = bootstrap.paired_difference(log_losses([*given, source], truth), without)
        found[name] = [auc(source, truth), float(without.mean() + change.mean),
                       *map(float, (change.mean, change.low, change.high))]
    return {'nothing': [auc(logit, truth), float(without.mean())]} | found


def log_losses(sources, truth):
    """Log loss of each picture's pixels under `fitted`: (N,)."""
    return np.array([log_loss(mask.ravel(), found.ravel(), labels=[False, True])
                     for mask, found in zip(truth, fitted(sources, truth), strict=True)])


def listens(enhanced, own, see, truth):
    """Enhanced-SN with its own maps, with the map of the picture before, and with none: {what: JA or share}.

    enhanced : Segmenter with its mask-CN; own : the maps that this draws, (N, 1, h, w)
    see(look, name) : what `look` makes of every picture; truth : (N, S, S) bool
    """
    def with_maps(maps):
        def look(pictures, _, batch):
            known = copy.copy(enhanced)
            known.classifier = lambda *_: (None, maps[batch].to(pictures.device))
            return known(pictures)
        return look

    found = {name: see(with_maps(maps), f'enhanced-SN, {name}') > 0 for name, maps in {
        'own maps': own, 'maps of other pictures': own.roll(1, 0), 'no map': torch.zeros_like(own)}.items()}
    return {f'JA, enhanced-SN, {name}': jaccard(masks, truth) for name, masks in found.items()} | {
        'pixels that the map of another picture changes':
            float((found['own maps'] != found['maps of other pictures']).mean())}


def order(logit, cam, truth):
    """How each source orders the pixels: {what: AUC}; logit, cam (N, S, S) float, truth (N, S, S) bool."""
    row, column = np.mgrid[:truth.shape[1], :truth.shape[2]] - (truth.shape[1] - 1) / 2
    middle, mean = -np.hypot(row, column), cam.mean(0)
    peaks = cam.reshape(len(cam), -1).argmax(1)
    return {'AUC, coarse-SN': auc(logit, truth), 'AUC, map': auc(cam, truth),
            'AUC, spot in the middle': auc([middle] * len(truth), truth),
            "AUC, mean of all pictures' maps": auc([mean] * len(truth), truth),
            'correlation, map and that mean': likeness(cam, [mean] * len(cam)),
            "map's peak in the lesion": float(truth.reshape(len(truth), -1)[range(len(truth)), peaks].mean()),
            'wrong pixels of coarse-SN': float(((logit > 0) != truth).mean())}


def auc(scores, truth):
    """Area under the ROC curve over a picture's pixels, mean of the pictures that have both kinds of them."""
    areas = [roc_auc_score(mask.ravel(), np.ravel(score))
             for score, mask in zip(scores, truth, strict=True) if mask.any() and not mask.all()]
    return float(np.mean(areas)) if areas else float('nan')


def masks(logit, cam, truth):
    """JA of masks: of coarse-SN, and of regressions, each picture by one that was not fitted to it."""
    certain = np.clip(logit, -LARGEST, LARGEST)
    return {'JA, coarse-SN': jaccard(logit > 0, truth), 'JA, logit': regressed([certain], truth),
            'JA, logit and map': regressed([certain, cam], truth),
            "JA, logit and the truth on the map's grid": regressed([certain, on_grid(truth)], truth)}


def pooled(planes):
    """Means (N, h, w) of planes (N, S, S) over the map's cells."""
    return avg_pool2d(torch.from_numpy(planes).float()[:, None], STRIDE)[:, 0].numpy()


def on_grid(planes):
    """Planes (N, S, S) as a map of them would be: means over its cells, enlarged."""
    return enlarged(torch.from_numpy(pooled(planes)), planes.shape[1]).numpy()


def enlarged(maps, side):
    """Maps (N, h, w) as (N, side, side); tensors."""
    return interpolate(maps[:, None], (side, side), mode='bilinear')[:, 0]


def folds(pictures, parts=1):
    """Cross-validation over pictures, each of which is `parts` samples in a row."""
    return PredefinedSplit(np.repeat(np.arange(pictures) % min(FOLDS, pictures), parts))


def regressed(sources, truth):
    """JA of what is more likely lesion than not under `fitted`."""
    return jaccard(fitted(sources, truth) > 0.5, truth)


def fitted(sources, truth):
    """Probability of lesion (N, S, S) by a logistic regression on sources (N, S, S) each, cross-validated
    over the pictures."""
    sources = np.stack(sources, -1)
    rng, found = np.random.default_rng(0), np.empty(truth.shape, np.float32)
    chosen = rng.integers(0, truth[0].size, (len(truth), PIXELS))
    flat = sources.reshape(len(truth), -1, sources.shape[-1])
    for known, asked in folds(len(truth)).split():
        pixels = known[:, None], chosen[known]
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(flat[pixels].reshape(-1, sources.shape[-1]), truth.reshape(len(truth), -1)[pixels].ravel())
        for picture in asked:
            found[picture] = model.predict_proba(flat[picture])[:, 1].reshape(truth[picture].shape)
    return found


def jaccard(found, truth):
    """Mean JA of masks (N, S, S) bool."""
    counts = [metrics.confusion(one, mask) for one, mask in zip(found, truth, strict=True)]
    return float(metrics.segmentation_scores(np.array(counts))[:, metrics.SEGMENTATION.index('JA')].mean())


def steps(side):
    """The four moves, an array of rows (pixels down, pixels right)."""
    return round(MOVED * side) * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])


def moved(planes, down, right):
    """Pictures (..., S, S) moved by whole pixels; at the edge the reflection of what is there comes in."""
    if planes is None:
        return None
    rows, columns = (np.pad(np.arange(side), abs(by), 'reflect')[abs(by) - by:][:side]
                     for side, by in zip(planes.shape[-2:], (down, right), strict=True))
    return planes[..., rows[:, None], columns]


def followed(still, shifted):
    """Does a plane go with what it shows, when this moves? Three correlations, means over pictures and moves.

    still : (N, S, S), of the pictures as they are; shifted : the same of the moved ones, for each of `steps`
    Returns [what is found after the move and before, the latter moved along: 1 if it goes with the lesion,
    after and before as it was: 1 if it stays, before and before moved along: what the other one is then].
    """
    along = [moved(still, *by) for by in steps(still.shape[-1])]
    before = [still] * len(along)
    return [float(np.mean(list(map(likeness, some, others))))
            for some, others in ((shifted, along), (shifted, before), (along, before))]


def likeness(planes, others):
    """Mean correlation of planes (N, S, S) with others."""
    return float(np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1]
                          for one, other in zip(planes, others, strict=True)]))


def table(facts):
    """What was found, as Markdown; shares and correlations in percent."""
    def rows(known, *heads):
        return tabulate([(name, *values) for name, values in known.items()], ['', *heads], 'github',
                        disable_numparse=True)

    def percent(values):
        return [f'{100 * one:.1f}' for one in values]

    def gained(area, loss, *change):
        shown = '{:+.4f} [{:+.4f}, {:+.4f}]'.format(*change) if change else ''
        return [*percent([area]), f'{loss:.4f}', shown]

    single = {name: [one] if isinstance(one, int) else percent([one])
              for name, one in facts.items() if not isinstance(one, dict)}
    return '\n\n'.join([
        rows(single, ''), "Regressions on coarse-SN's logit and",
        rows({name: gained(*values) for name, values in facts['gains'].items()},
             'AUC alone', 'log loss', 'change'),
        f'Everything moved by {round(MOVED * facts["side"])} px; correlations:',
        rows({name: percent(values) for name, values in facts['moves'].items()},
             'with itself moved along', 'with itself as it was', 'between these two')]) + '\n'


if __name__ == '__main__':
    cli.launch(main)
