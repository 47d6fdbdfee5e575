"""Weak labels: ellipses, prepared data sets, clusters, networks, losses, training, scores and evaluation."""
import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import compare
from companions import seen
from companions.weak_labels import (
    clusters,
    ellipses,
    eval_WeakSN,
    lesions,
    make_demo_lesions,
    networks,
    paper,
    predictor,
    preparation,
    prepare_DeepLesion,
    prepare_folder,
    prepare_HAM10000,
    prepare_ISIC,
    prepare_LiTS,
    shape_scores,
    train_WeakSN,
)
from dataset.layout import SPLITS, Layout
from engine import checkpoints, cli, figures, images, scoring, trainer
from engine.errors import InputError
from experiments import costs, results, tables
from experiments.declarations import Declarations
from experiments.reproduction import Reproduction
from experiments.run_store import RunStore
from tests import conftest, stand_ins, test_distributed, test_training
from tests.stand_ins import VALUES, declare, run_table
from tests.test_training import load

no_figures, root, calls = test_training.no_figures, stand_ins.root, stand_ins.calls
REAL = conftest.REPOSITORY.parent / 'shared' / 'realdata'


class Tiny(nn.Module):
    """The parts of a DeepLabv3+ of smp's, with an encoder of a few channels."""

    def __init__(self, _encoder, head):
        super().__init__()
        widths = [4, 4, 8, 8, 12]

        def level(given, width, stride):
            return nn.Sequential(nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width),
                                 nn.ReLU())

        self.encoder = nn.ModuleList(level(given, width, stride) for given, width, stride in zip(
            [3, *widths[:-1]], widths, (2, 2, 2, 2, 1), strict=True))
        self.encoder.out_channels = [3, *widths]
        self.encoder.forward = self.features
        self.decoder = Decoder()
        self.segmentation_head = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Upsample(scale_factor=4))
        self.classification_head = head and nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(head['dropout']),
            nn.Linear(12, head['classes']))

    def features(self, x):
        found = [x]
        for layer in self.encoder:
            found.append(layer(found[-1]))
        return found

    def forward(self, x):
        found = self.encoder(x)
        logits = self.segmentation_head(self.decoder(found))
        return (logits, self.classification_head(found[-1])) if self.classification_head else logits


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.dropout = nn.Conv2d(16, 8, 3, padding=1), nn.Dropout(0.2)

    def forward(self, features):
        deep = nn.functional.interpolate(features[-1], features[2].shape[2:])
        return self.dropout(self.narrow(torch.cat([deep, features[2]], 1)).relu())


def use_tiny(patch):
    """Let all methods be built on Tiny. patch : MonkeyPatch"""
    patch.setattr(networks, 'deeplab', Tiny)
    patch.setattr(networks, 'require', lambda: None)
    patch.setattr(networks, 'HIDDEN', 16)


@pytest.fixture
def tiny(monkeypatch):
    use_tiny(monkeypatch)


SMALL = ('--ENCODER=resnet18', '--INPUT_SIZE=48,48', '--CLUSTERS=3', '--BATCH_SIZE=4', '--LEARNING_RATE=1e-3',
         '--AMP=fp32', '--ENCODER_WEIGHTS=none')


@pytest.fixture(scope='module')
def smp():
    return pytest.importorskip('segmentation_models_pytorch')


def call(script, *arguments):
    """What `python -m companions.weak_labels.<script>` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script.__file__, *map(str, arguments)])
        script.main()


def disc(radius, side=80, middle=None):
    middle = side / 2 if middle is None else middle
    y, x = np.mgrid[:side, :side]
    return np.hypot(x - middle, y - middle) <= radius


# --- Ellipses

@pytest.mark.parametrize('angle', [0, 30, 150])
def test_an_ellipse_comes_back_from_its_mask(angle):
    mask = np.zeros((120, 120), np.uint8)
    cv2.ellipse(mask, (60, 60), (20, 40), angle, 0, 360, 1, cv2.FILLED)
    x, y, short, long, turn = found = ellipses.fit(mask)
    assert (x, y) == pytest.approx((60, 60), abs=0.1)
    assert 40.5 <= short <= 41 and 80.5 <= long <= 81
    assert abs((turn - angle + 90) % 180 - 90) < 1
    assert ellipses.overlap(ellipses.draw(found, (120, 120)), mask) >= 0.99


@pytest.mark.parametrize('mask, said', [
    (np.zeros((9, 9)), 'empty'), (np.ones((9, 9)), 'fills'), (np.pad(np.ones((3, 3)), 3), 'has 4 corners')])
def test_masks_without_an_ellipse_are_told_by_rule(mask, said):
    with pytest.raises(ValueError, match=said):
        ellipses.fit(mask)


@pytest.mark.parametrize('turn', [0, 30, 120])
def test_two_diameters_make_the_ellipse(turn):
    """Ends (40,60)-(80,60) and (60,50)-(60,70), turned about (60,60)."""
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    ends = np.array([[-20, 0], [20, 0], [0, -10], [0, 10]]) @ [[cos, sin], [-sin, cos]] + 60
    x, y, short, long, angle = found = ellipses.from_diameters(ends[:2].ravel(), ends[2:].ravel())
    assert (x, y, short, long) == pytest.approx((60, 60, 20, 40))
    around = np.linspace(0, 2 * np.pi, 400)
    outline = 60.5 + np.column_stack([20 * np.cos(around), 10 * np.sin(around)]) @ [[cos, sin], [-sin, cos]]
    fine = cv2.fillPoly(np.zeros((1200, 1200), np.float32), [np.round(10 * outline).astype(np.int32)], 1)
    drawn = ellipses.draw(found, (120, 120))
    assert ellipses.overlap(drawn, cv2.resize(fine, (120, 120), interpolation=cv2.INTER_AREA) > 0.5) >= 0.97
    if not turn:
        assert np.ptp(np.nonzero(drawn)[1]) == 40 and np.ptp(np.nonzero(drawn)[0]) == 20 and angle == 90
    grown = ellipses.draw(found, (120, 120), stroke=5)
    assert np.sqrt(grown.sum() / np.pi) - np.sqrt(drawn.sum() / np.pi) == pytest.approx(2.5, abs=0.3)


def test_diameters_that_do_not_cross_are_refused():
    for short in ((0, 1, 9, 1), (3, 3, 3, 3), (0, 0, np.nan, 1)):
        with pytest.raises(ValueError, match='parallel'):
            ellipses.from_diameters((0, 0, 10, 0), short)


@pytest.mark.skipif(not REAL.is_dir(), reason='the pictures of MedImgSeg are not here')
@pytest.mark.parametrize('where, mean, least', [
    ('mlcb_isic/testA', 0.872, 0.76), ('mlcb_isic/val', 0.895, 0.76), ('brats/test', 0.685, 0.27),
    ('brats/val', 0.681, 0.48)])
def test_ellipses_of_real_masks_fit_as_they_were_measured(where, mean, least):
    paths = sorted((REAL / where / 'labels').glob('*.png'))
    found = [ellipses.overlap(ellipses.draw(ellipses.fit(mask), mask.shape[::-1]), mask)
             for mask in (images.read_mask(path, 127) for path in paths)]
    assert len(found) == 8 and np.mean(found) == pytest.approx(mean, abs=0.01)
    assert min(found) == pytest.approx(least, abs=0.01)
    if where == 'brats/test':   # what LiTS' rule would leave out
        assert min(found) < prepare_LiTS.LEAST_IOU


# --- Splits, clusters

def test_the_originals_random_split():
    found = lesions.at_random(10_012, 1)
    assert [found.count(split) for split in SPLITS] == [7008, 2002, 1002]
    assert found == lesions.at_random(10_012, 1) != lesions.at_random(10_012, 2)


def test_no_group_is_in_two_splits():
    groups = [f'lesion{number // 3}' for number in range(300)]
    found = lesions.by_group(groups, 1)
    assert [found.count(split) for split in SPLITS] == pytest.approx([210, 60, 30], abs=3)
    assert len(set(zip(groups, found, strict=True))) == 100
    assert found == lesions.by_group(groups, 1) != lesions.by_group(groups, 2)
    backwards = lesions.by_group(groups[::-1], 1)   # the order of the pictures says nothing
    assert backwards == found[::-1]


def test_index_files_say_the_split(tmp_path):
    numbers, sizes = np.arange(16_462), (11_522, 3310, 1630)
    parts = np.split(numbers, np.cumsum(sizes)[:2])
    for name, part in zip(('tr_ind', 'val_ind', 'test_ind'), parts, strict=True):
        np.save(tmp_path / f'{name}.npy', part)
    found = lesions.by_files(tmp_path, 16_462)
    assert tuple(found.count(split) for split in SPLITS) == sizes
    with pytest.raises(InputError, match='test_ind.npy: 30 of 1630 numbers are of no lesion'):
        lesions.by_files(tmp_path, 16_432)
    np.save(tmp_path / 'val_ind.npy', numbers[:10])
    with pytest.raises(InputError, match='val_ind.npy: 10 of 10 numbers'):
        lesions.by_files(tmp_path, 16_462)


def random_ellipses(count, seed=0):
    rng = np.random.default_rng(seed)
    short = rng.uniform(10, 40, count)
    return np.column_stack([rng.uniform(40, 80, (count, 2)), short, short + rng.uniform(0, 40, count),
                            rng.uniform(0, 180, count)])


@pytest.mark.parametrize('angle', clusters.ANGLES)
def test_clusters_are_all_there_and_the_same_again(angle):
    found = random_ellipses(80)
    labels = [clusters.fit(found, 9, angle).labels_ for _ in range(2)]
    assert set(labels[0]) == set(range(9)) and (labels[0] == labels[1]).all()
    with pytest.raises(InputError, match='CLUSTERS=81: there are only 80'):
        clusters.fit(found, 81, angle)


def test_test_lesions_have_no_part_in_the_clusters_unless_asked():
    training, validation, others = (random_ellipses(60, seed) for seed in range(3))
    ours, theirs = ([clusters.labels(training, validation, some, 5, 'wrapped', where) for some in (
        others, others[:5])] for where in clusters.FROM)
    assert all((one == other).all() for one, other in zip(*ours, strict=True))
    assert any((one != other).any() for one, other in zip(*theirs, strict=True))
    assert [len(part) for part in ours[0]] == [60, 60]


def test_an_ellipse_turned_by_180_degrees_is_the_same():
    almost, past, across = ((60, 60, 20, 40, angle) for angle in (179.5, 0.5, 90))
    near, far = (np.linalg.norm(np.diff(clusters.features([almost, other], 'wrapped'), axis=0))
                 for other in (past, across))
    assert near < 1 and far == pytest.approx(40, abs=0.1)
    assert np.ptp(clusters.features([almost, past], 'degrees'), 0)[4] == 179


# --- Networks, input, losses

@pytest.mark.parametrize('size', [(384, 480), (128, 128), (120, 120)])
def test_patches_are_reflected_into_the_frame(size):
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (120, 120, 3), np.uint8)
    found = networks.padded(torch.from_numpy(patch).permute(2, 0, 1), size)
    border = [part for length in size for part in ((length - 120) // 2, length - 120 - (length - 120) // 2)]
    expected = cv2.copyMakeBorder(patch, *border, cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(found.permute(1, 2, 0), expected)
    np.testing.assert_array_equal(networks.cropped(found, 120).permute(1, 2, 0), patch)
    if size == (384, 480):
        np.testing.assert_array_equal(expected[132:252, 180:300], patch)


def test_the_input_has_imagenets_statistics_in_rgb_or_in_the_originals_order():
    patch = torch.tensor([255, 0, 51], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 16, 16)
    ours, theirs = (networks.to_input(patch, (16, 16), bgr)[0, :, 0, 0].tolist() for bgr in (False, True))
    assert ours == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
    assert theirs == pytest.approx([(0.2 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225])


def parameters(network):
    return sum(value.numel() for value in network.parameters())


def test_networks_are_the_papers(smp):
    with torch.device('meta'):
        a1, a1l = (networks.build(method, 'resnet101', 45) for method in ('a1', 'a1l'))
    assert parameters(a1) == pytest.approx(45.67e6, abs=5e3)
    assert parameters(a1l) - parameters(a1) == 2048 * 45 + 45
    network = networks.build('a1l', 'resnet18', 4)
    logits, classes = network(torch.rand(2, 3, 32, 48))
    assert logits.shape == (2, 1, 32, 48) and classes.shape == (2, 4)
    classes.sum().backward()
    assert network.encoder.conv1.weight.grad.abs().sum() > 0
    assert next(network.segmentation_head.parameters()).grad is None
    with pytest.raises(InputError, match='ENCODER=resnet1001: cannot be used'):
        networks.build('a1', 'resnet1001')


@pytest.mark.parametrize('swap', [True, False])
def test_attention_of_pairs(smp, swap):
    torch.manual_seed(0)
    network = networks.build('acoseg', 'resnet18', swap=swap).eval()
    x, y, other = torch.rand(3, 2, 3, 32, 32)
    with torch.no_grad():
        of_x, of_y = network(x, y)
        torch.testing.assert_close(network(y, x), (of_y, of_x))
        assert torch.equal(network(x, other)[0], of_x) == (not swap)


def test_the_losses_are_the_printed_sums():
    torch.manual_seed(0)
    logits, classes = torch.randn(3, 1, 8, 8), torch.randn(3, 5)
    target, labels = torch.randint(0, 2, (3, 8, 8)), torch.tensor([0, 4, 2])
    p = logits[:, 0].double().sigmoid()
    mask = -(target * p.log() + (1 - target) * (1 - p).log()).mean().item()
    label = -classes.double().log_softmax(1)[range(3), labels].mean().item()
    total, parts = networks.weighted_loss((logits, classes), target, labels, 50.0, 1.0)
    assert total.item() == pytest.approx(50 * mask + label, abs=1e-5)
    assert (parts['mask'].item(), parts['class'].item()) == pytest.approx((mask, label), abs=1e-6)
    alone, _ = networks.weighted_loss(logits, target, None, 100.0, 1.0)
    assert alone.item() == pytest.approx(100 * mask, abs=1e-4)


@pytest.mark.parametrize('keep', [False, True])
def test_gradients_are_clipped_and_where_asked_never_zeroed(keep):
    """Against PyTorch: with `keep`, zero_grad is simply never called; also after a load."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 2), nn.Linear(4, 2)
    theirs.load_state_dict(ours.state_dict())
    mine = networks.ClippedAdam(ours.parameters(), 0.1, 0.05, keep)
    usual = torch.optim.Adam(theirs.parameters(), 0.1)
    for step in range(6):
        x = torch.randn(3, 4)
        mine.zero_grad(set_to_none=True)
        ours(x).square().sum().backward()
        mine.step()
        if not keep:
            usual.zero_grad()
        theirs(x).square().sum().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        usual.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        if step == 2:   # a resumed training
            state = mine.state_dict()
            mine = networks.ClippedAdam(ours.parameters(), 0.1, 0.05, keep)
            mine.load_state_dict(state)
    with pytest.raises(ValueError, match='sums of the gradients'):
        networks.ClippedAdam(ours.parameters(), 0.1, 0.05, not keep).load_state_dict(mine.state_dict())


def test_imagenet_weights_come_from_a_file_and_never_from_the_network(smp, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    network = networks.build('a1', 'resnet18')
    assert networks.load_encoder(network, 'resnet18', '') == ('random weights', '')
    state = {name: torch.full_like(value, 3) for name, value in network.encoder.state_dict().items()}
    path = tmp_path / 'checkpoints' / 'resnet18-f37072fd.pth'
    path.parent.mkdir()
    torch.save(state | {'fc.weight': torch.zeros(1000, 512), 'fc.bias': torch.zeros(1000)}, path)
    start, found = networks.load_encoder(network, 'resnet18', '')
    assert found and found in start and network.encoder.conv1.weight.unique().tolist() == [3]
    assert networks.load_encoder(network, 'resnet18', 'none')[1] == ''
    with pytest.raises(InputError, match='resnet18-f37072fd.pth(.|\n)*it must be of resnet34'):
        networks.load_encoder(networks.build('a1', 'resnet34'), 'resnet34', str(path))


# --- Scores

def test_scores_of_squares_that_are_five_rows_apart():
    found, truth = np.zeros((2, 60, 60), bool)
    found[20:40, 20:40], truth[25:45, 20:40] = True, True
    scores = shape_scores.score(found, truth)
    expected = {'IoU': 0.6, 'Dice': 0.75, 'VS': 1, 'centre error': 5, 'Hausdorff': 5, 'edge error': 0,
                'perimeter error': 0}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    borders = [np.argwhere(mask & ~(mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1)
                                    & np.roll(mask, -1, 1))) for mask in (found, truth)]
    far = np.linalg.norm(borders[0][:, None] - borders[1][None], axis=2)
    assert scores['average Hausdorff'] == pytest.approx((far.min(0).mean() + far.min(1).mean()) / 2)
    assert scores['Hausdorff'] == max(far.min(0).max(), far.min(1).max())


def test_edges_are_counted_as_the_original_counts_them():
    pytest.importorskip('skimage')
    counted = {radius: shape_scores.outline(disc(radius)) for radius in (10, 20, 30)}
    assert [edges for edges, _ in counted.values()] == [64, 128, 224]
    for radius, (_, length) in counted.items():
        assert length == pytest.approx(2 * np.pi * radius, rel=0.06)
    scores = shape_scores.score(disc(10), disc(20))
    assert scores['edge error'] == 32 and scores['perimeter error'] == pytest.approx(20 * np.pi, rel=0.06)
    assert scores['VS'] == pytest.approx(1 - 3 / 5, abs=0.01)


def test_an_empty_mask_is_as_far_as_the_farthest_of_the_others():
    found = np.stack([disc(10), disc(14), disc(0, middle=-9)])
    scores = shape_scores.table(found, np.stack([disc(10)] * 3))
    columns = dict(zip(shape_scores.COLUMNS, scores.T, strict=True))
    for name in shape_scores.DISTANCES:
        assert columns[name][2] == columns[name][1]
    assert columns['IoU'][2] == columns['Dice'][2] == 0 and np.isfinite(scores).all()
    assert columns['Hausdorff'][1] == pytest.approx(4, abs=0.5)
    alone = shape_scores.table(found[2:], [disc(10)])
    assert alone[0, shape_scores.COLUMNS.index('Hausdorff')] == pytest.approx(80 * np.sqrt(2))


def test_nothing_found_where_nothing_is_misses_nothing():
    pytest.importorskip('skimage')
    nothing, something = np.zeros((80, 80), bool), disc(10)
    scores = shape_scores.table(np.stack([nothing, something]), np.stack([nothing, something]))
    assert scores.tolist() == 2 * [[1] * 3 + [0] * 5]
    apart = shape_scores.table(np.stack([nothing, something]), np.stack([nothing, nothing]))
    assert apart[1, 0] == 0 and apart[1, shape_scores.COLUMNS.index('Hausdorff')] > 80   # not as near as that


# --- Preparation

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """A root with 30 drawn lesions in HAM10000's layout, prepared at 40 px: Layout."""
    layout = Layout(tmp_path_factory.mktemp('weak'))
    call(make_demo_lesions, f'--ROOT={layout.root}', '--IMAGES=30', '--SIDE=48')
    call(prepare_HAM10000, f'--ROOT={layout.root}', '--PATCH_SIZE=40')
    return layout


def rewritten(folder, call_again):
    """Names of the files of a folder that a second call writes anew."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*.png')}
    call_again()
    return {path.name for path, time in before.items()
            if path.name != 'panel.png' and path.stat().st_mtime_ns != time}


def test_ham10000_is_prepared_split_by_lesion_and_goes_on(drawn, tmp_path, capsys):
    rows = lesions.rows(drawn, 'HAM10000')
    assert len(rows) == 30 and lesions.drawn(drawn, 'HAM10000')
    together = {(row['group'], row['split']) for row in rows}
    assert len(together) == len({row['group'] for row in rows}) < 30
    data = lesions.load(drawn, 'HAM10000', 'Training')
    assert data.images.shape == (len(data.names), 40, 40, 3) and data.sizes[0] == (48, 48)
    for number in range(3):
        drawn_again = ellipses.draw(data.parameters[number], (40, 40))
        assert ellipses.overlap(drawn_again, data.ellipses[number]) > 0.85
        assert ellipses.overlap(data.masks[number], data.ellipses[number]) > 0.7
    source, folder = tmp_path / 'source', lesions.folder(Layout(tmp_path), 'HAM10000')
    source.mkdir()
    for part, count in (('HAM10000_images_part_1', 2), ('HAM10000_images_part_2', 4),
                        ('HAM10000_segmentations_lesion_tschandl', 6)):   # as it is downloaded
        kind = 'masks' if 'seg' in part else 'images'
        place = 2 if part.endswith('2') else 0
        (source / part).mkdir()
        for path in sorted((drawn.root / 'dataset/HAM10000' / kind).iterdir())[place:place + count]:
            (source / part / path.name).write_bytes(path.read_bytes())
    metadata = (drawn.root / 'dataset/HAM10000/HAM10000_metadata.csv').read_text()
    (source / 'HAM10000_metadata.csv').write_text(metadata)
    full = source / 'HAM10000_segmentations_lesion_tschandl' / 'ISIC_0000003_segmentation.png'
    images.write_mask(full, np.ones((48, 48)))
    again = [f'--ROOT={tmp_path}', f'--SOURCE={source}', '--SPLIT=random']
    call(prepare_HAM10000, *again[:2])
    assert '5 lesions of 5 groups leave none for Testing' in capsys.readouterr().out
    (source / 'HAM10000_metadata.csv').write_text(re.sub('HAM_0+[0-9]+', 'HAM_0', metadata))
    call(prepare_HAM10000, *again)
    table = lesions.table(Layout(tmp_path), 'HAM10000').read_text()
    with pytest.raises(InputError, match='Too few groups(.|\n)*of 1 groups leave none for Validation'
                                         '(.|\n)*--SPLIT=random, which tears groups apart$'):
        call(prepare_HAM10000, *again[:2])
    assert lesions.table(Layout(tmp_path), 'HAM10000').read_text() == table   # still what is there
    (source / 'HAM10000_metadata.csv').write_text(metadata)
    call(prepare_HAM10000, *again)
    assert 'ISIC_0000003: the mask fills the picture' in capsys.readouterr().out
    rows = lesions.rows(Layout(tmp_path), 'HAM10000')
    assert [row['name'] for row in rows] == [f'ISIC_000000{number}' for number in (0, 1, 2, 4, 5)]
    assert [row['split'] for row in rows] == lesions.at_random(5, 1)
    assert rewritten(folder, lambda: call(prepare_HAM10000, *again)) == set()
    (folder / 'ellipses/ISIC_0000001.png').unlink()
    images.write_png(source / 'HAM10000_images_part_1/ISIC_0000000.png', np.full((48, 48, 3), 9, np.uint8))
    assert rewritten(folder, lambda: call(prepare_HAM10000, *again)) == {
        'ISIC_0000000.png', 'ISIC_0000001.png'}
    (source / 'HAM10000_metadata.csv').write_text(metadata.replace('HAM_0000002,', 'HAM_0000001,'))
    assert rewritten(folder, lambda: call(prepare_HAM10000, *again)) == {'ISIC_0000002.png'}
    rows = lesions.rows(Layout(tmp_path), 'HAM10000')
    assert [row['group'] for row in rows[:3]] == ['HAM_0000000', 'HAM_0000001', 'HAM_0000001']


def test_all_faults_of_ham10000_are_named_at_once(drawn, tmp_path):
    source = tmp_path / 'source'
    for part in ('images', 'masks'):
        (source / part).mkdir(parents=True)
        for path in sorted((drawn.root / 'dataset/HAM10000' / part).iterdir())[:4]:
            (source / part / path.name).write_bytes(path.read_bytes())
    (source / 'images/ISIC_0000000.png').unlink()
    (source / 'masks/ISIC_0000001_segmentation.png').unlink()
    (source / 'HAM10000_metadata.csv').write_text(
        'lesion_id,image_id\n' + ''.join(f'a,ISIC_000000{number}\n' for number in (0, 1, 2)))
    images.write_mask(source / 'masks/ISIC_0000002_segmentation.png', np.ones((48, 90)))
    with pytest.raises(InputError) as error:
        call(prepare_HAM10000, f'--ROOT={tmp_path}', f'--SOURCE={source}')
    for fault in ('ISIC_0000000_segmentation.png: has no picture', 'ISIC_0000001.png: has no mask',
                  'ISIC_0000003.png: has no row in the metadata', 'ISIC_0000002_segmentation.png: is 90x48'):
        assert fault in str(error.value)
    assert not (tmp_path / 'WeakLabels').exists()
    with pytest.raises(InputError, match=f'HAM10000 is missing(.|\n)*make_demo_lesions --ROOT={tmp_path}$'):
        call(prepare_HAM10000, f'--ROOT={tmp_path}')


def test_hounsfield_units_become_grey_values():
    units = np.array([-1000, -100, 0, 30, 254, 255, 1000])
    assert preparation.windowed(units, (0, 255)).tolist() == [0, 0, 0, 30, 254, 255, 255]
    assert preparation.windowed(units, (-160, 240)).tolist() == [0, 38, 102, 121, 255, 255, 255]


def write_volume(folder, number, tumours, labels=(0, 1, 2)):
    """A NIfTI volume 128 x 128 x 6 and its segmentation; tumours : {slice: [(x, y, half axes)]}."""
    nibabel = pytest.importorskip('nibabel')
    rng, shape = np.random.default_rng(number), (128, 128, 6)
    units, marks = rng.integers(-200, 400, shape).astype(np.int16), np.zeros(shape, np.uint8)
    marks[10:118, 10:118] = labels[1]
    for place, boxes in tumours.items():
        for x, y, wide, high in boxes:
            columns, rows = np.mgrid[:128, :128]
            inside = ((columns - x) / wide)**2 + ((rows - y) / high)**2 <= 1
            marks[..., place].T[inside] = labels[2]   # axes of an image: rows, columns
    for name, array in (('volume', units), ('segmentation', marks)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f'{name}-{number}.nii')
    return units, marks


def test_lits_volumes_become_patches_of_tumours(tmp_path, capsys):
    """Two tumours in a slice are two patches; a line, and what is smaller than 50 px, are left out."""
    source = tmp_path / 'source' / 'part'
    source.mkdir(parents=True)
    units, marks = write_volume(source, 0, {1: [(40, 60, 9, 6), (100, 30, 5, 8)], 4: [(60, 60, 3, 3)]})
    write_volume(source, 1, {0: [(64, 64, 12, 20)], 3: [(5, 64, 8, 8)]})
    write_volume(source, 12, {2: [(64, 64, 10, 10)]})
    options = [f'--ROOT={tmp_path}', f'--SOURCE={tmp_path / "source"}', '--WINDOW=0,255', '--SPLIT=random']
    call(prepare_LiTS, *options)
    said, layout = capsys.readouterr().out, Layout(tmp_path)
    assert 'volume-0_4_1: the tumour has 29 pixels' in said
    rows = {row['name']: row for row in lesions.rows(layout, 'LiTS')}
    assert list(rows) == ['volume-0_1_1', 'volume-0_1_2', 'volume-12_2_1', 'volume-1_0_1', 'volume-1_3_1']
    assert {row['group'] for row in rows.values()} == {'volume-0', 'volume-1', 'volume-12'}
    assert min(rows[name]['iou'] for name in ('volume-0_1_1', 'volume-0_1_2')) > 0.85
    ellipse = images.read_mask(lesions.folder(layout, 'LiTS') / 'ellipses/volume-1_3_1.png')
    assert [rows['volume-1_3_1'][name] for name in lesions.ELLIPSE] == pytest.approx(
        ellipses.fit(ellipse), abs=1e-4)
    # Axes as nibabel has them: x is the second one. 2 * 9 + 1 px and twice 18, halved: 27 either way.
    row = rows['volume-0_1_2']
    assert (row['picture_width'], row['picture_height']) == (54, 54)
    patch = images.read_rgb(lesions.folder(layout, 'LiTS') / 'patches/volume-0_1_2.png')
    mine = units[..., 1][60 - 27:60 + 27, 40 - 27:40 + 27].clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(patch[..., 0], images.resize_rgb(mine, (120, 120)))
    assert rewritten(lesions.folder(layout, 'LiTS'), lambda: call(prepare_LiTS, *options)) == set()
    write_volume(source, 12, {2: [(64, 64, 12, 10)]})
    assert rewritten(lesions.folder(layout, 'LiTS'), lambda: call(prepare_LiTS, *options)) == {
        'volume-12_2_1.png'}
    for number, name in enumerate(('tr_ind', 'val_ind', 'test_ind')):
        np.save(tmp_path / f'{name}.npy', np.arange(2 * number, 2 * number + 2))
    with pytest.raises(InputError, match='LEAST_AREA=50: INDEX_FILES count tumours from one pixel on'):
        call(prepare_LiTS, *options, f'--INDEX_FILES={tmp_path}')
    call(prepare_LiTS, *options, '--LEAST_AREA=1', f'--INDEX_FILES={tmp_path}')
    assert [row['split'] for row in lesions.rows(layout, 'LiTS')] == [split for split in SPLITS for _ in '12']


def test_all_faults_of_lits_are_named_at_once(tmp_path):
    nibabel = pytest.importorskip('nibabel')
    write_volume(tmp_path, 0, {1: [(40, 60, 9, 6)]}, labels=(0, 1, 7))
    write_volume(tmp_path, 1, {1: [(40, 60, 9, 6)]})
    write_volume(tmp_path, 2, {})
    (tmp_path / 'volume-1.nii').write_bytes(b'no volume')
    (tmp_path / 'segmentation-2.nii').unlink()
    other = nibabel.Nifti1Image(np.zeros((8, 8, 2), np.uint8), np.eye(4))
    nibabel.save(other, tmp_path / 'segmentation-0.nii')
    with pytest.raises(InputError) as error:
        call(prepare_LiTS, f'--ROOT={tmp_path}', f'--SOURCE={tmp_path}')
    for fault in ('volume-2.nii: has no segmentation-2', 'volume-1.nii: ', 'segmentation-0.nii: is 8x8x2'):
        assert fault in str(error.value)
    write_volume(tmp_path, 0, {1: [(40, 60, 9, 6)]}, labels=(0, 1, 7))
    for path in tmp_path.glob('*-[12].nii'):
        path.unlink()
    with pytest.raises(InputError, match=r'segmentation-0.nii: holds \[7\]'):
        call(prepare_LiTS, f'--ROOT={tmp_path}', f'--SOURCE={tmp_path}')


COLUMNS = ('File_name', 'Patient_index', 'Study_index', 'Series_ID', 'Key_slice_index',
           'Measurement_coordinates', 'Bounding_boxes', 'Lesion_diameters_Pixel_',
           'Normalized_lesion_location', 'Coarse_lesion_type', 'Possibly_noisy', 'Slice_range',
           'Spacing_mm_px_', 'Image_size', 'DICOM_windows', 'Patient_gender', 'Patient_age', 'Train_Val_Test')


def write_deeplesion(source, count=4):
    """Slices of 16 bits, 1 mm apart (every second one 4 mm), and DL_info.csv with its 18 columns."""
    rows = []
    for number in range(1, count + 1):
        series, middle = f'{number:06}_01_01', (150 + 40 * number, 200)
        folder = source / 'Images_png' / series
        folder.mkdir(parents=True)
        for place in range(8, 13) if number % 2 else (9, 10, 11):
            units = np.full((512, 512), -100 + 10 * place, np.int32)
            cv2.ellipse(units, middle, (20, 10), 30, 0, 360, 60 + 10 * place, cv2.FILLED)
            cv2.imwrite(str(folder / f'{place:03}.png'), (units + 32768).astype(np.uint16))
        turn = np.radians(30)
        along, across = np.array([[20, 20], [-10, 10]]) * [[np.cos(turn), np.sin(turn)],
                                                           [np.sin(turn), np.cos(turn)]]
        middle = np.array(middle) + 1   # the file counts from 1
        ends = np.concatenate([middle - along, middle + along, middle - across, middle + across])
        box = np.concatenate([middle - 25, middle + 25])
        rows.append({'File_name': f'{series}_010.png', 'Patient_index': number, 'Key_slice_index': 10,
                     'Measurement_coordinates': ', '.join(map(str, ends)), 'DICOM_windows': '-175, 275',
                     'Bounding_boxes': ', '.join(map(str, box)), 'Train_Val_Test': min(number, 3),
                     'Spacing_mm_px_': f'0.8, 0.8, {1 if number % 2 else 4}', 'Image_size': '512, 512'})
    write_table(source, rows)
    return rows


def write_table(source, rows):
    with open(source / 'DL_info.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_deeplesion_becomes_patches_with_its_own_diameters(tmp_path):
    layout = Layout(tmp_path)
    table = write_deeplesion(tmp_path / 'source')
    options = [f'--ROOT={tmp_path}', f'--SOURCE={tmp_path / "source"}']
    call(prepare_DeepLesion, *options)
    rows = lesions.rows(layout, 'DeepLesion')
    assert [row['split'] for row in rows] == ['Training', 'Validation', 'Testing', 'Testing']
    expected = np.zeros((120, 120), np.uint8)
    cv2.ellipse(expected, (60, 60), (20, 10), 30, 0, 360, 1, cv2.FILLED)
    folder = lesions.folder(layout, 'DeepLesion')
    for row in rows:
        assert [row[name] for name in lesions.ELLIPSE] == pytest.approx([60, 60, 20, 40, 120], abs=0.01)
        for part in ('ellipses', 'masks'):   # GrabCut finds the bright ellipse
            found = images.read_mask(folder / part / f'{row["name"]}.png')
            assert ellipses.overlap(found, expected) > 0.9
    grey = preparation.windowed
    # 2 mm are two slices of 1 mm (8, 10, 12), and half a slice of 4 mm (9.5, 10, 10.5).
    for row, units in zip(rows, itertools.cycle([(-20, 0, 20), (-5, 0, 5)]), strict=False):
        patch = images.read_rgb(folder / 'patches' / f'{row["name"]}.png')
        np.testing.assert_array_equal(patch[2, 2], grey(np.array(units), (-175, 275)))
    assert 'GrabCut' in lesions.facts(layout, 'DeepLesion')['truth']
    table[1] |= {'Train_Val_Test': 3, 'DICOM_windows': '-175, 25'}
    write_table(tmp_path / 'source', table)
    name = f'{rows[1]["name"]}.png'
    assert rewritten(folder, lambda: call(prepare_DeepLesion, *options)) == {name}
    assert [row['split'] for row in lesions.rows(layout, 'DeepLesion')] == ['Training'] + ['Testing'] * 3
    assert images.read_rgb(folder / 'patches' / name)[2, 2, 1] == grey(np.array(0), (-175, 25))
    area = images.read_mask(folder / f'ellipses/{rows[0]["name"]}.png').sum()
    call(prepare_DeepLesion, *options, '--RECIPE=paper')
    assert images.read_mask(folder / f'ellipses/{rows[0]["name"]}.png').sum() > 1.3 * area


def test_neighbours_that_are_missing_and_unknown_intervals(tmp_path):
    write_deeplesion(tmp_path, 1)
    lesion = {'series': '000001_01_01', 'place': 10, 'interval': 1.0}
    (tmp_path / 'Images_png/000001_01_01/012.png').unlink()

    def places(interval, direction=1, distance=2.0):
        about = lesion | {'interval': interval}
        found = prepare_DeepLesion.neighbour(tmp_path / 'Images_png', about, direction, distance)
        return [(int(path.stem), weight) for path, weight in found]

    assert places(1.0, -1) == [(8, 1.0)] and places(1.0) == [(11, 1.0)]
    assert places(1.25, -1) == [(9, pytest.approx(0.4)), (8, pytest.approx(0.6))]
    assert places(float('nan')) == places(-1.0) == [(10, 1.0)]


def test_all_faults_of_deeplesion_are_named_at_once(tmp_path, capsys):
    rows = write_deeplesion(tmp_path, 4)
    rows[1]['Measurement_coordinates'] = '1, 2, 3'
    rows[2]['File_name'] = '000009_01_01_010.png'
    write_table(tmp_path, rows)
    with pytest.raises(InputError, match="lesion 2: '1, 2, 3' must be 8 numbers(.|\n)*010.png: is missing, "
                                         'of lesion 3(.|\n)*SKIP_ABSENT'):
        call(prepare_DeepLesion, f'--ROOT={tmp_path}', f'--SOURCE={tmp_path}')
    rows[1]['Measurement_coordinates'] = '1, 2, 9, 2, 3, 4, 7, 4'   # parallel
    write_table(tmp_path, rows)
    call(prepare_DeepLesion, f'--ROOT={tmp_path}', f'--SOURCE={tmp_path}', '--SKIP_ABSENT=True')
    assert 'parallel' in capsys.readouterr().out
    assert len(lesions.rows(Layout(tmp_path), 'DeepLesion')) == 2


def test_a_slice_of_another_size_is_named(tmp_path, capsys):
    write_deeplesion(tmp_path, 4)
    odd = tmp_path / 'Images_png/000002_01_01/009.png'
    cv2.imwrite(str(odd), np.full((256, 300), 32768, np.uint16))
    call(prepare_DeepLesion, f'--ROOT={tmp_path}', f'--SOURCE={tmp_path}')
    assert f'{odd}: is 300x256, its key slice 512x512' in capsys.readouterr().out
    assert len(lesions.rows(Layout(tmp_path), 'DeepLesion')) == 3


def test_names_with_dots_stay_whole(tmp_path):
    table = tmp_path / 'diameters.csv'
    table.write_text('\n'.join(['image,x1,y1,x2,y2,x3,y3,x4,y4', *(
        f'{name},10,20,50,20,30,10,30,30' for name in ('scan.001', 'scan.002', 'scan.003.PNG', 'p.jpg'))]))
    found, faults = prepare_folder.read_diameters(table)
    assert list(found) == ['scan.001', 'scan.002', 'scan.003', 'p'] and not faults


@pytest.mark.parametrize('forms', itertools.product(('NFC', 'NFD'), repeat=2))
def test_diameters_are_found_whichever_way_unicode_spells_their_names(tmp_path, forms):
    named, told = (unicodedata.normalize(form, 'm\xf6le') for form in forms)
    images.write_png(tmp_path / 'pictures' / f'{named}.png', np.full((60, 80, 3), 40, np.uint8))
    (tmp_path / 'told.csv').write_text(f'image,x1,y1,x2,y2,x3,y3,x4,y4\n{told}.png,20,30,60,30,40,20,40,40\n')
    (_, path, _, row), = prepare_folder.find(SimpleNamespace(
        IMAGES=tmp_path / 'pictures', MASKS='', DIAMETERS=tmp_path / 'told.csv'))
    assert path.stem == named and row['ends'][0] == [20, 30, 60, 30]


def test_any_folder_with_diameters(tmp_path):
    layout, pictures = Layout(tmp_path), tmp_path / 'pictures'
    for number in range(4):
        images.write_png(pictures / f'p{number}.png', np.full((60, 80), 40 * number, np.uint8))   # grey
    lines = [f'p{number}.png,20,30,60,30,40,20,40,40,patient{min(number, 2)},' for number in range(4)]
    table, header = tmp_path / 'diameters.csv', 'image,x1,y1,x2,y2,x3,y3,x4,y4,group,split'
    table.write_text('\n'.join([header, *(line[:-2] + '0,' for line in lines)]))   # of one patient
    options = [f'--ROOT={tmp_path}', f'--IMAGES={pictures}', f'--DIAMETERS={table}', '--DATA=ct',
               '--PATCH_SIZE=40']
    with pytest.raises(InputError, match='4 lesions of 1 groups leave none for .*Validation(.|\n)*: prepare '
                       'more, or (.*, or )?name the splits in a column of the csv of --DIAMETERS$'):
        call(prepare_folder, *options)
    lines = [line + split for line, split in zip(lines, (*SPLITS, 'Testing'), strict=True)]
    table.write_text('\n'.join([header, *lines]))
    call(prepare_folder, *options)
    rows = lesions.rows(layout, 'ct')
    assert [(row['iou'], row['group'], row['split']) for row in rows] == [
        (None, f'patient{min(number, 2)}', SPLITS[min(number, 2)]) for number in range(4)]
    # Of 80x60, the ellipse of 40x20 px in the middle is 20 x 13.3 px of the patch.
    found = [rows[0][name] for name in lesions.ELLIPSE[:4]]
    assert found == pytest.approx([20, 20, 13.3, 20], abs=0.8)
    assert lesions.load(layout, 'ct', rows[0]['split']).masks is None
    lines[0] = 'p0.png,10,30,70,30,40,20,40,40,patient0,Testing'
    torn = lines[3].replace('Testing', 'Training')
    table.write_text('\n'.join([header, *lines[:3], torn]))
    with pytest.raises(InputError, match='p2 is in Testing and p3 in Training: they belong together'):
        call(prepare_folder, *options)
    lines[3] = torn.replace('patient2', 'patient3')
    table.write_text('\n'.join([header, *lines]))
    assert rewritten(lesions.folder(layout, 'ct'), lambda: call(prepare_folder, *options)) == {
        'p0.png', 'p3.png'}
    rows = lesions.rows(layout, 'ct')
    assert [row['split'] for row in rows] == ['Testing', *SPLITS[1:], 'Training']
    assert rows[0]['long'] == pytest.approx(30, abs=0.8)
    lines = ['p0,1,1,9,1,1,2,9,2', 'p9,0,0,9,0,4,4,4,9', 'p1,x,0,9,0,4,4,4,9']
    table.write_text('\n'.join(['image,x1,y1,x2,y2,x3,y3,x4,y4', *lines]))
    with pytest.raises(InputError) as error:
        call(prepare_folder, *options)
    for fault in ('line 2: its diameters are parallel', 'p9 is no picture', 'line 4: could not convert',
                  'p2.png: has no diameters'):
        assert fault in str(error.value)


def test_pictures_of_16_bits_are_refused(tmp_path):
    for number in range(3):
        depth = np.uint16 if number else np.uint8
        images.write_png(tmp_path / f'images/p{number}.png', np.full((40, 60), 99, depth))
        images.write_mask(tmp_path / f'masks/p{number}.png', ellipses.draw((30, 20, 15, 30, 70), (60, 40)))
    with pytest.raises(InputError) as said:
        call(prepare_folder, f'--ROOT={tmp_path}', f'--IMAGES={tmp_path / "images"}',
             f'--MASKS={tmp_path / "masks"}')
    assert [Path(fault.split(':')[0]).name for fault in said.value.faults] == ['p1.png', 'p2.png']
    assert 'I;16, not of 8 bits' in said.value.faults[0] and not (tmp_path / 'WeakLabels').exists()


def test_any_folder_with_masks(tmp_path):
    """Grey ones, as resampling leaves them, are refused or cut."""
    layout, grey = Layout(tmp_path), 100 * ellipses.draw((30, 20, 15, 30, 70), (60, 40))
    for number in range(5):
        images.write_png(tmp_path / f'images/p{number}.png', np.full((40, 60, 3), 99, np.uint8))
        images.write_png(tmp_path / f'masks/p{number}{"_segmentation" * (number > 0)}.png', 2 * grey)
    options = [f'--ROOT={tmp_path}', f'--IMAGES={tmp_path / "images"}', f'--MASKS={tmp_path / "masks"}',
               '--SPLIT=random']
    with pytest.raises(InputError, match='p0.png: is not a binary mask(.|\n)*p2_segmentation.png: is not'):
        call(prepare_folder, *options)
    call(prepare_folder, *options, '--GREY_ABOVE=127')
    rows = lesions.rows(layout, 'mine')
    assert [row['name'] for row in rows] == [f'p{number}' for number in range(5)]
    assert min(row['iou'] for row in rows) > 0.9
    table = tmp_path / 'diameters.csv'   # measured later
    table.write_text('\n'.join(['image,x1,y1,x2,y2,x3,y3,x4,y4', *(
        f'p{number},10,20,50,20,30,10,30,30' for number in range(5))]))
    call(prepare_folder, *options, '--GREY_ABOVE=127', f'--DIAMETERS={table}')
    assert max(row['iou'] for row in lesions.rows(layout, 'mine')) < 0.8
    (tmp_path / 'masks/p0.png').unlink()
    with pytest.raises(InputError, match='masks: has no mask of p0'):
        call(prepare_folder, *options, '--GREY_ABOVE=127')


# --- Training

def run_root(drawn, folder):
    """A root with the drawn lesions."""
    folder.mkdir(exist_ok=True)
    for name in ('WeakLabels', 'dataset'):
        (folder / name).symlink_to(drawn.root / name)
    return Layout(folder)


def train(layout, method, *options):
    call(train_WeakSN, f'--ROOT={layout.root}', f'--METHOD={method}', *SMALL, *options)
    return layout.run(f'WeakSN_{method}')


@pytest.mark.parametrize('method, options', [('a1l', ['--EPOCH=1']),
                                             ('acoseg', ['--EPOCH=1', '--RECIPE=paper'])])
def test_a_stopped_and_resumed_training_is_the_undisturbed_one(
        tiny, drawn, tmp_path, monkeypatch, method, options):
    """Also with gradients that are never zeroed, and with dropout."""
    for name in ('ROWS', 'COLUMNS'):
        monkeypatch.setattr(clusters, name, 2)
    monkeypatch.setattr(train_WeakSN, 'PANEL_ROWS', 2)
    whole = train(run_root(drawn, tmp_path / 'whole'), method, *options)
    parts, asked = run_root(drawn, tmp_path / 'parts'), itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(trainer.Interrupted):
        patch.setattr(trainer, '_asked_to_stop', lambda *_: next(asked) == 3)
        train(parts, method, *options)
    assert load(parts.run(f'WeakSN_{method}'), 'last.pth')['progress']['step'] == 3
    torch.manual_seed(99)
    other = train(parts, method, *options)
    for name in (f'WeakSN_{method}.pth', 'metrics.jsonl'):
        assert (whole / name).read_bytes() == (other / name).read_bytes()
    rows = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
    assert rows[0]['step'] == 5 and {'mask loss', 'Dice', 'true IoU'} <= rows[0].keys()
    if method == 'a1l':
        assert {'class', 'class accuracy', 'validation class accuracy'} <= rows[0].keys()
        with open(whole / 'clusters.csv') as file:
            table = list(csv.DictReader(file))
        assert len(table) > 20 and {row['cluster'] for row in table} == {'0', '1', '2'}
        assert images.image_size(whole / 'clusters.png')[0] > 200
        meant = (whole / 'clusters.csv').read_bytes()
        with pytest.raises(InputError, match='holds a run with other settings(.|\n)*ANGLE'):
            train(Layout(tmp_path / 'whole'), method, *options, '--ANGLE=degrees')
        assert (whole / 'clusters.csv').read_bytes() == meant


class Stub(nn.Module):
    """A network of one number; its mask is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.bias + 0 * x[:, :1]


@pytest.mark.parametrize('scores, ends, best', [([1.0] * 20, 6, 1), ([3, 2, 2.5, 1, 4, 4, 4, 4, 4, 4], 9, 4)])
def test_training_ends_after_five_epochs_without_a_better_loss_and_keeps_the_best(
        drawn, tmp_path, monkeypatch, scores, ends, best):
    seen, given = [], iter(scores)
    monkeypatch.setattr(networks, 'build', lambda *_: Stub())
    monkeypatch.setattr(networks, 'require', lambda: None)
    original = train_WeakSN.weak_task

    def task(cfg, process, network, *rest):
        made = original(cfg, process, network, *rest)
        made.validate = lambda: seen.append(network.bias.item()) or {'mask loss': float(next(given))}
        made.panel = test_training.blank_panel
        return made

    monkeypatch.setattr(train_WeakSN, 'weak_task', task)
    folder = train(run_root(drawn, tmp_path), 'a1', '--EPOCH=50')
    assert len(seen) == ends
    kept = torch.load(folder / 'WeakSN_a1.pth', weights_only=True)
    assert kept['bias'].item() == seen[best - 1] and len(set(seen)) == ends


@pytest.mark.parametrize('options, said', [
    (['--INPUT_SIZE=100,128'], 'multiples of 16'), (['--INPUT_SIZE=32,32'], 'the patches are 40 px'),
    (['--DATA=nothing'], 'nothing is not prepared(.|\n)*prepare_folder'),
    (['--METHOD=acoseg', '--BATCH_SIZE=3'], 'multiple of 2, 4 or'),
    (['--METHOD=acoseg', '--BATCH_SIZE=2'], 'multiple of 2, 4 or'),
    (['--CLUSTERS=99'], 'CLUSTERS=99: there are'),
    (['--METHOD=a2'], "must be one of 'a1'")])
def test_what_cannot_be_trained_is_said(tiny, drawn, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        call(train_WeakSN, f'--ROOT={run_root(drawn, tmp_path).root}', '--ENCODER=resnet18', *options)


@conftest.IN_SOAK
def test_two_processes_share_the_batches(smp, drawn, tmp_path):
    """Batch norms and dropout differ; the steps, and what is validated, do not."""
    options = [*SMALL[:3], *SMALL[-2:], '--METHOD=acoseg', '--EPOCH=2', '--LEARNING_RATE=1e-5',
               '--BATCH_SIZE=8']
    torchrun, rows = test_distributed.TORCHRUN, {}
    for name, launcher in (('one', ()), ('two', torchrun)):
        layout = run_root(drawn, tmp_path / name)
        script = 'companions/weak_labels/train_WeakSN.py'
        conftest.run_script(script, layout.root, *options, launcher=launcher)
        folder = layout.run('WeakSN_acoseg')
        rows[name] = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        assert json.loads((folder / 'config.json').read_text())['processes'] == 1 + bool(launcher)
    assert [row['step'] for row in rows['two']] == [row['step'] for row in rows['one']]
    for one, two in zip(rows['one'], rows['two'], strict=True):
        assert two['mask loss'] == pytest.approx(one['mask loss'], rel=0.1)


def test_a_script_without_its_packages_says_how_to_install_them(drawn, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, 'find_spec', lambda name: None)
    for script, package in ((train_WeakSN, 'segmentation_models_pytorch'), (eval_WeakSN, 'skimage'),
                            (prepare_LiTS, 'nibabel')):
        with pytest.raises(InputError, match=f'{package}\nRemedy: pip install -r companions/weak_labels/req'):
            call(script, f'--ROOT={drawn.root}')


# --- Evaluation

@pytest.fixture(scope='module')
def trained(drawn, tmp_path_factory):
    """A root with the drawn lesions and A1 of three epochs: Layout."""
    layout = run_root(drawn, tmp_path_factory.mktemp('trained'))
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        train(layout, 'a1', '--EPOCH=3')
    return layout


def test_the_evaluation_scores_what_the_network_finds(trained, tiny, drawn, capsys):
    pytest.importorskip('skimage')
    at = [f'--ROOT={trained.root}', '--METHOD=a1', '--AMP=fp32']
    with pytest.raises(InputError, match='trained on these lesions; --SEEN=True'):
        call(eval_WeakSN, *at, '--SPLIT=Training')
    call(eval_WeakSN, *at, '--SPLIT=Validation')
    said = capsys.readouterr().out
    assert all(name in said for name in shape_scores.COLUMNS) and 'drawn by a program' in said
    assert all(meaning in said for meaning in shape_scores.MEANING.values())
    header, = (line for line in said.splitlines() if 'the ellipse itself' in line)
    assert 'paper' not in header
    data = lesions.load(drawn, 'HAM10000', 'Validation')
    config = json.loads((trained.run('WeakSN_a1') / 'config.json').read_text())['settings']
    network = networks.build('a1', 'resnet18')
    checkpoints.load_parameters(network, checkpoints.load_state(trained.weights('WeakSN_a1'), ''))
    plain = predictor.Predictor(network, predictor.used(config), 'fp32')
    logits = plain.logits(data.images, list(range(len(data.names))))
    stem = trained.results / 'WeakSN_a1_Validation'
    rows = results.read([f'{stem}.csv']).parts[0]
    truths = data.masks > 0
    expected = shape_scores.table(logits >= 0, truths)
    assert rows.names == tuple(data.names)   # folded batch norms change no pixel that is far from the edge
    np.testing.assert_allclose(rows.values[:, :3], expected[:, :3], atol=0.01)
    facts = json.loads(Path(f'{stem}.json').read_text())
    floor = shape_scores.table(data.ellipses > 0, truths).mean(0)
    assert [facts['ellipse'][name] for name in shape_scores.COLUMNS] == pytest.approx(floor.tolist())
    assert facts['ci95']['IoU'][0] <= facts['IoU'] <= facts['ci95']['IoU'][1] and facts['drawn_pictures']
    paths = lesions.mask_names(Path(f'{stem}_masks'), data.names)
    assert [images.image_size(path) for path in paths] == data.sizes
    assert images.image_size(Path(f'{stem}_panel.png'))[0] > 300


def test_masks_of_an_interrupted_evaluation_are_not_in_the_panel_of_another(drawn, tmp_path, monkeypatch):
    data, layout, titles = lesions.load(drawn, 'HAM10000', 'Validation'), Layout(tmp_path), []
    folder = layout.results / 'WeakSN_a1_Validation_masks'
    for path, size in zip(lesions.mask_names(folder, data.names), data.sizes, strict=True):
        images.write_mask(path, np.ones(size[::-1], np.uint8))
    (layout.results / 'WeakSN_a1_Validation.json').write_text(json.dumps({'data': data.fingerprint}))
    monkeypatch.setattr(figures, 'panel', lambda rows, columns, path: titles.append(columns[3:]))
    cfg = SimpleNamespace(METHOD='mask', SPLIT='Validation', PANEL_IMAGES=2)
    shown = data, data.masks, np.ones((len(data.names), len(shape_scores.COLUMNS))), ''
    eval_WeakSN.draw_panel(cfg, layout, *shown)
    (folder / scoring.INCOMPLETE).touch()
    eval_WeakSN.draw_panel(cfg, layout, *shown)
    assert titles == [['A1', 'true masks'], ['true masks']]


def test_lesions_that_were_trained_on_are_not_scored_in_a_later_split(trained, tiny, drawn, tmp_path):
    pytest.importorskip('skimage')
    layout, name = Layout(tmp_path), 'WeakSN_a1'
    for part in f'models/{name}', 'WeakLabels':
        shutil.copytree(trained.root / part, tmp_path / part)
    at, record = [f'--ROOT={tmp_path}', '--METHOD=a1', '--AMP=fp32'], layout.run(name) / seen.NAME
    rows = lesions.rows(layout, 'HAM10000')
    moved, other = (next(row for row in rows if row['split'] == split) for split in ('Training', 'Testing'))
    for row in rows:
        row['long'] += 1   # measured anew
    lesions.write(layout, 'HAM10000', rows)
    names = record.read_bytes()
    for _ in range(2):
        call(eval_WeakSN, *at)
        record.unlink(missing_ok=True)   # as in runs of earlier versions
    moved['split'], other['split'] = 'Testing', 'Training'
    lesions.write(layout, 'HAM10000', rows)
    with pytest.raises(InputError, match='its training lesions are others than those(.|\n)*--SEEN=True'):
        call(eval_WeakSN, *at)
    record.write_bytes(names)
    with pytest.raises(InputError) as said:
        call(eval_WeakSN, *at)
    table = lesions.table(layout, 'HAM10000')
    assert said.value.faults == [f'{table}: {moved["name"]} is of Testing and was trained on']
    call(eval_WeakSN, *at, '--SEEN=True')
    shutil.copytree(table.parent, table.parent.with_name('HAM10000_anew'))   # the same, prepared again
    with pytest.raises(InputError, match=f'{moved["name"]} is of Testing .* trained on, if HAM10000 means'):
        call(eval_WeakSN, *at, '--DATA=HAM10000_anew')   # of other data, names may be alike by chance
    moved['split'] = 'Training'
    kept = json.loads(names)['groups'][0]
    third = next(row for row in rows if row['split'] == 'Testing' and row is not moved)
    for row in rows:   # each a group of its own, but one whose other pictures were trained on and are gone
        row['group'] = kept if row is third else row['name']
    lesions.write(layout, 'HAM10000', rows)
    with pytest.raises(InputError) as said:
        call(eval_WeakSN, *at)
    assert said.value.faults == [
        f'{table}: {third["name"]} is of Testing, and others of its group {kept} were trained on']
    next(row for row in rows if row['split'] == 'Training')['group'] = kept   # torn apart, as by SPLIT=random
    lesions.write(layout, 'HAM10000', rows)
    call(eval_WeakSN, *at)


def test_the_ellipses_alone_are_scored_without_a_network(drawn, tmp_path, capsys):
    pytest.importorskip('skimage')
    layout = run_root(drawn, tmp_path)
    call(eval_WeakSN, f'--ROOT={tmp_path}', '--METHOD=ellipse')
    facts = json.loads((layout.results / 'WeakSN_ellipse_Testing.json').read_text())
    assert facts['IoU'] == facts['ellipse']['IoU'] > 0.7 and facts['weights'] == ''
    (layout.results / 'WeakSN_ellipse_Testing.json').write_text(json.dumps(facts | {'data set': 'LiTS'}))
    call(eval_WeakSN, f'--ROOT={tmp_path}', '--METHOD=ellipse')
    said = capsys.readouterr().out
    assert said.count('results of') == 1 and 'ellipse_Testing.*: these results of LiTS are replaced' in said


def test_a_pair_network_sees_each_picture_beside_the_next(tiny, drawn):
    data, cfg = lesions.load(drawn, 'HAM10000', 'Validation'), SimpleNamespace(
        METHOD='acoseg', ENCODER='resnet18', INPUT_SIZE=(48, 48), BGR=False)
    torch.manual_seed(0)
    network = networks.build('acoseg', 'resnet18').eval()
    used, count = predictor.Predictor(network, cfg, 'fp32'), len(data.names)
    whole = used.logits(data.images, list(range(count)))
    for number in (0, count - 1):   # in whatever batch
        np.testing.assert_allclose(used.logits(data.images, [number])[0], whole[number], atol=1e-5)
    pictures = [networks.to_input(torch.from_numpy(data.images[[number]]).permute(0, 3, 1, 2), (48, 48))
                for number in (count - 1, 0)]
    with torch.no_grad():
        expected = networks.cropped(network(*pictures)[0][:, 0], 40)
    np.testing.assert_allclose(whole[-1], expected[0], atol=1e-5)


@pytest.mark.parametrize('method', ['a1l', 'acoseg'])
def test_folded_networks_find_the_same(smp, drawn, method):
    data, cfg = lesions.load(drawn, 'HAM10000', 'Validation'), SimpleNamespace(
        METHOD=method, ENCODER='resnet18', INPUT_SIZE=(48, 48), BGR=False)
    torch.manual_seed(0)
    network = networks.build(method, 'resnet18', 3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    used = predictor.Predictor(network, cfg, 'fp32')
    plain, folded = (one.frames(data.images, [0, 1])[0] for one in (used, used.folded()))
    torch.testing.assert_close(folded, plain, atol=1e-4, rtol=1e-3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in used.folded().network.modules())


def test_masks_of_isic_stand_beside_those_of_any_method(tiny, root):
    pytest.importorskip('skimage')
    layout = Layout(root)
    for split in ('Training', 'Validation'):
        for image in sorted((layout.segmentation(split) / 'Images').glob('*.png')):
            number = int(image.stem[-1])
            mask = ellipses.draw((28, 20, 18, 24 + number, 20), (56, 40))
            images.write_mask(layout.segmentation(split) / f'Annotation/{image.stem}_segmentation.png', mask)
            images.write_png(image, np.repeat(200 - 90 * mask[..., None], 3, 2).astype(np.uint8))
    call(prepare_ISIC, f'--ROOT={root}', '--PATCH_SIZE=40')
    rows = lesions.rows(layout, 'ISIC')
    assert [row['split'] for row in rows] == ['Training'] * 4 + ['Validation'] * 4
    train(layout, 'a1', '--DATA=ISIC', '--EPOCH=1')
    call(eval_WeakSN, f'--ROOT={root}', '--METHOD=a1', '--DATA=ISIC', '--SPLIT=Validation')
    folder = layout.results / 'WeakSN_a1_Validation_masks'
    call(compare, f'--ROOT={root}', '--SPLIT=Validation', f'--MASKS=weak={folder}')
    facts = json.loads((layout.results / 'compare_Validation.json').read_text())
    assert facts['n'] == 4 and 0 <= facts['methods']['weak']['JA'] <= 1
    for part in ('Images/Validation0.png', 'Annotation/Validation0_segmentation.png'):   # split anew
        (layout.segmentation('Validation') / part).rename(layout.segmentation('Training') / part)
    ours, theirs = map(layout.segmentation_list, SPLITS[:2])
    line, rest = theirs.read_text().split('\n', 1)
    ours.write_text(f'{ours.read_text()}{line}\n')
    theirs.write_text(rest)
    call(prepare_ISIC, f'--ROOT={root}', '--PATCH_SIZE=40')
    assert [row['split'] for row in lesions.rows(layout, 'ISIC')] == ['Training'] * 5 + ['Validation'] * 3


def test_the_papers_row_stands_beside_its_own_split_alone(drawn, tmp_path):
    layout, about = Layout(tmp_path), {'side': 120, 'lesions': 10_012, 'drawn': False}
    for chosen, there in (({'SPLIT': 'random', 'SEED': 1}, True), ({'SPLIT': 'group', 'SEED': 1}, False)):
        lesions.write_facts(layout, 'HAM10000', about | {'settings': chosen})
        assert bool(paper.row(layout, 'HAM10000', 'Testing', 'a1l')) == there
        assert paper.row(layout, 'HAM10000', 'Validation', 'a1l') == {}
    about |= {'settings': {'SPLIT': 'random', 'SEED': 1}}
    for other in {'lesions': 9}, {'side': 240}, {'drawn': True}:
        lesions.write_facts(layout, 'HAM10000', about | other)
        assert paper.row(layout, 'HAM10000', 'Testing', 'a1l') == {} == paper.row(
            layout, 'mine', 'Testing', 'a1')


# --- The experiment

def test_declared_methods_differ_in_what_they_are_called_alone():
    declared = Declarations(conftest.REPOSITORY / 'experiments.toml', VALUES)
    for data in ('HAM10000', 'LiTS', 'DeepLesion', 'ISIC'):
        for method in networks.METHODS:
            own = dict(declared.job(f'weak_{method}_{data}').overrides)
            assert own.keys() <= {'METHOD', 'DATA'} and own.get('METHOD', 'a1l') == method
            assert own.get('DATA', 'HAM10000') == data
            scoring = declared.scoring(f'weak_{method}_{data}', 'Testing', seed=1)
            assert scoring.script.endswith('eval_WeakSN.py')
            assert dict(scoring.overrides).get('METHOD', 'a1l') == method
        floor = declared.scoring(f'weak_ellipse_{data}', 'Testing', seed=2)
        assert floor.needs == () and floor == declared.scoring(f'weak_ellipse_{data}', 'Testing')


WEAK = """
[experiment.'weak_{method}']
for.method = ['a1', 'a1l']
script = 'companions/weak_labels/train_WeakSN.py'
METHOD = '{method}'
ENCODER = 'resnet18'
[experiment.floor]
script = 'companions/weak_labels/eval_WeakSN.py'
METHOD = 'ellipse'
[table.x]
split = 'Testing'
columns = ['IoU', 'Hausdorff']
rows = [{ label = 'floor', of = 'floor' }, { label = 'A1', of = 'weak_a1', paper = [82.65, 10.23] },
        { label = 'A1+L', of = 'weak_a1l' }]
compare = [['A1', 'A1+L']]
"""


def test_weak_labels_in_the_graph_of_experiments(tmp_path, drawn, calls):
    """Run once, run again where lesions change; pixels are printed as pixels."""
    layout = Layout(tmp_path / 'root')
    for name in ('WeakLabels', 'dataset'):
        (layout.root / name).parent.mkdir(exist_ok=True)
        subprocess.run(['cp', '-r', drawn.root / name, layout.root / name], check=True)
    store, failed = run_table(declare(tmp_path, WEAK), layout.root, 'x', seeds=(0, 1))
    assert not failed and [name for _, name, _ in calls] == [
        'scores_floor-Testing', 'weak_a1', 'scores_weak_a1-Testing', 'weak_a1l', 'scores_weak_a1l-Testing',
        'weak_a1-seed1', 'scores_weak_a1-seed1-Testing', 'weak_a1l-seed1', 'scores_weak_a1l-seed1-Testing']
    assert (layout.root / 'runs/weak_a1/WeakLabels').resolve() == (layout.root / 'WeakLabels').resolve()
    table = Reproduction(declare(tmp_path, WEAK), store, (0, 1), failed).table('x')
    text = tables.to_text(table)
    assert 'Errors and distances are in pixels' in text and 'drawn by a program' in ' '.join(text.split())
    cell = table.rows[1].cells['Hausdorff']
    assert cell.paper == 10.23 and cell.mean == pytest.approx(7.5)
    assert '10.2 / 7.5' in ' '.join(text.split())
    assert table.rows[1].cells['IoU'].paper == pytest.approx(0.8265)
    calls.clear()
    assert run_table(declare(tmp_path, WEAK), layout.root, 'x')[1] == {} and calls == []
    call(prepare_HAM10000, f'--ROOT={layout.root}', '--PATCH_SIZE=32')
    assert run_table(declare(tmp_path, WEAK), layout.root, 'x')[1] == {} and len(calls) == 5
    job = declare(tmp_path, WEAK).job('weak_a1')
    assert 0 < costs.of_job(job, RunStore(layout.root).values(job), layout) < 10
