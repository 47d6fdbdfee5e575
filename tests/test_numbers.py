"""Numbers that can be trusted: none that are not finite are kept, equal seeds give equal bits, and results
say of which data they are."""
import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset import isic, splits
from dataset.layout import Layout
from dataset.splits import Classification, Segmentation
from engine import cache, checkpoints, contents, files, images, run_folder, trainer
from engine.errors import InputError
from engine.run_folder import Run
from mbdcnn.inference import Classifier
from tests.test_inference import PixelNetwork, TinyMaskCN
from tests.test_training import (
    ALONE,
    EVERY,
    SETTINGS,
    TOTAL,
    assert_same_folders,
    blank_panel,
    load,
    rows_of,
    same,
    tiny_network,
    tiny_task,
    train,
)
from train_CoarseSN import coarse_task
from train_EnhancedSN import enhanced_task
from train_MaskCN import mask_task


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(run_folder.figures, 'curves', lambda *given: given[2].write_bytes(b'curve'))


# --- Numbers that are none

def finite(state):
    """True when all tensors of nested dicts are finite."""
    if isinstance(state, dict):
        return all(map(finite, state.values()))
    return not isinstance(state, torch.Tensor) or bool(state.isfinite().all())


def test_inf_in_a_picture_is_found_before_it_reaches_what_is_kept(tmp_path):
    bad = 2

    def spoil(call, loss):
        if call == EVERY:
            task.pictures.images[bad] = np.inf
        return loss

    task = tiny_task(spoil)
    task.pictures.images = task.pictures.images.astype(np.float32)   # uint8 could not hold it
    with pytest.raises(InputError) as error:
        train(tmp_path / 'parts', task)
    listed = str(error.value).partition('from 0): ')[2].partition('\n')[0]
    assert 'The loss of step' in str(error.value) and bad in json.loads(listed)
    assert all(parameter.isfinite().all() for parameter in task.network.parameters())
    for name in ('last.pth', 'CoarseSN.pth'):   # batch norms' statistics among them
        assert finite(load(tmp_path / 'parts', name))
    for folder in ('parts', 'whole'):
        task = tiny_task()
        task.pictures.images = task.pictures.images.astype(np.float32)
        train(tmp_path / folder, task)
    assert_same_folders(tmp_path / 'parts', tmp_path / 'whole')


@pytest.mark.parametrize('rate', [1e9, 1e30])
def test_an_absurd_learning_rate_keeps_nothing_that_is_not_finite(tmp_path, rate):
    said = ''
    try:
        train(tmp_path, LEARNING_RATE=rate)
    except InputError as error:
        said = str(error)
    kept = [name for name in ('last.pth', 'CoarseSN.pth') if (tmp_path / name).exists()]
    assert all(finite(load(tmp_path, name)) for name in kept)
    assert kept if not said else 'step' in said and 'LEARNING_RATE' in said


def one_class(count=6, side=16):
    """Classification data whose images are all nevi."""
    rng = np.random.default_rng(0)
    return Classification(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
                          rng.integers(0, 2, (count, side, side)).astype(np.uint8),
                          np.zeros(count, int), np.arange(count), list('abcdef'), 'x')


STAGE = SETTINGS | {
    'STEPS': TOTAL, 'BATCH_SIZE': 6, 'INPUT_CHANNEL': 4,
    'INPUT_SIZE': 16, 'INPUT_SCALING': 'unit', 'AFFINE_FILTER': 'bilinear',
    'ROTATION': 10.0, 'SHEAR': 0.1, 'SHIFT': (0.0, 0.1), 'ZOOM': (0.9, 1.1), 'FLIPS': True,
    'RANK_WEIGHT': 0.05, 'HARD_PIXELS': 30, 'MARGIN': 0.3, 'DICE_CLASSES': 'both', 'RANK_PADDED': False}


class Classifying(TinyMaskCN):
    def forward(self, x):
        return self.classify(self.features(x))


def test_a_validation_set_of_one_class_is_trained_on_to_the_end(tmp_path, capsys):
    cfg, data = SimpleNamespace(**STAGE), one_class()
    task = mask_task(cfg, ALONE, Classifying(), data, data)
    task.panel = blank_panel
    with Run(tmp_path, 'MaskCN', cfg, {}, 'random weights', ALONE) as run:
        trainer.fit(task, cfg, run, ALONE, TOTAL, EVERY)
    assert [row['mean AUC'] for row in rows_of(tmp_path)] == [None, None]
    assert 'best mean AUC undefined (a class is absent) at step' in capsys.readouterr().out
    assert finite(load(tmp_path, 'MaskCN.pth'))


@pytest.mark.parametrize('make', [
    lambda cfg, data, split: mask_task(cfg, ALONE, Classifying(), data, data),
    lambda cfg, data, split: coarse_task(cfg, ALONE, PixelNetwork(), split, split, TOTAL)])
def test_weights_whose_outputs_overflow_are_refused_in_validation(tmp_path, make):
    """The weights themselves are finite, and so are the losses."""
    cfg, data = SimpleNamespace(**STAGE | {'INITIAL_WEIGHTS': 'theirs.pth'}), one_class()
    task = make(cfg, data, Segmentation(data.images, data.coarse, None, data.names, 'x'))
    (name, network), = task.networks.items()
    assert task.validate()
    for parameter in network.parameters():
        parameter.data.fill_(3e38)
    with Run(tmp_path, name, cfg, {}, 'theirs', ALONE) as run, pytest.raises(
            InputError, match='(?s)6 of 6 validation pictures is not finite after step 0.*LEARNING_RATE'):
        trainer.fit(task, cfg, run, ALONE, TOTAL, EVERY)
    assert not (tmp_path / 'last.pth').exists()


def test_maps_that_are_negative_everywhere_leave_loss_gradient_and_scores_finite():
    teacher, data = TinyMaskCN(), one_class()
    teacher.cls.weight.data = -teacher.cls.weight.data.abs()
    network, cfg = PixelNetwork(), SimpleNamespace(**STAGE)
    classifier = Classifier(teacher, 'unit', 'fp32')
    split = Segmentation(data.images, data.coarse, data.coarse, data.names, 'x')
    task = enhanced_task(cfg, ALONE, network, classifier, split, split, TOTAL)
    batch, = task.stream(0, 1)
    assert (classifier(batch['image'], batch['coarse'])[1] <= 0).all()
    (_, loss, parts), = task.losses({'EnhancedSN': network}, batch)
    loss.backward()
    assert all(value.isfinite() for value in (loss, *parts.values()))
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert all(0 <= value <= 1 for value in task.validate().values())


# --- Names and numbers that can be trusted

@pytest.mark.parametrize('wrap', [torch.nn.DataParallel,
                                  lambda network: torch.compile(torch.nn.DataParallel(network))])
def test_checkpoints_of_wrapped_networks_load_into_bare_ones(tmp_path, wrap):
    wrapped, bare = wrap(tiny_network()), tiny_network()
    bare[0].weight.data.zero_()
    assert all(name.startswith(('module.', '_orig_mod.')) for name in wrapped.state_dict())
    checkpoints.save(wrapped.state_dict(), tmp_path / 'x.pth')
    state = checkpoints.load_state(tmp_path / 'x.pth', '')
    checkpoints.apply(checkpoints.load_parameters, bare, state, 'x.pth', '')
    assert same(dict(bare.state_dict()), dict(tiny_network().state_dict()))


def test_a_seed_gives_the_same_bits_with_any_number_of_workers(tmp_path):
    for name, changes in (('one', {}), ('again', {}), ('loaded', {'NUM_WORKERS': 2}), ('other', {'SEED': 6})):
        train(tmp_path / name, **changes)
    assert_same_folders(tmp_path / 'one', tmp_path / 'again')
    assert_same_folders(tmp_path / 'one', tmp_path / 'loaded')
    one, other = (load(tmp_path / name, 'last.pth')['networks'] for name in ('one', 'other'))
    assert not same(one, other)


# --- Data and its fingerprint

def test_results_name_the_data_that_they_are_of(chain):
    layout = chain.layout
    pairs = isic.read_segmentation_list(layout, 'Validation')
    expected = files.fingerprint(*(path for pair in pairs for path in pair))
    for network in ('CoarseSN', 'EnhancedSN'):
        result = json.loads((layout.results / f'{network}_Validation.json').read_text())
        assert result['data'] == expected and result['weights'].keys() >= {network}
    result = json.loads((layout.results / 'MaskCN_Validation.json').read_text())
    assert result['data'] == splits.classification(layout, 'Validation', 32).fingerprint
    config = json.loads((layout.run('CoarseSN') / 'config.json').read_text())
    for split, size in (('Training', 64), ('Validation', 32)):
        assert config['inputs'][split.lower()] == splits.segmentation(layout, split, size).fingerprint


def test_a_caches_fingerprint_is_of_what_the_files_hold(tmp_path):
    """As when masks were {0, 255} in memory too: trainings begun then go on."""
    mask, other = np.eye(8, dtype=np.uint8), np.zeros((8, 8), np.uint8)
    for name, array in (('a', mask), ('b', other)):
        images.write_mask(tmp_path / f'{name}.png', array)
    found = cache.load(tmp_path / 'cache', 'x', [tmp_path / 'a.png', tmp_path / 'b.png'], 8, 'mask')
    assert np.array_equal(found.pixels, [mask, other])
    assert found.fingerprint == hashlib.sha256((255 * np.stack([mask, other])).tobytes()).hexdigest()[:16]


def overwritten(data):
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data(path.read_bytes()))


def in_its_place(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize('spoil', [
    overwritten(b''), overwritten(lambda data: data[:-9]), overwritten(lambda data: data[::-1]),
    lambda path: np.save(path, np.ones((2, 4, 4), np.uint8)), lambda path: np.save(path, np.ones((2, 8, 8))),
    in_its_place], ids=['empty', 'cut', 'garbage', 'shape', 'dtype', 'folder'])
def test_damaged_caches_are_made_again(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(contents, 'SETTLED', 0)   # as if the pictures were older than two seconds
    images.write_mask(tmp_path / 'a.png', np.eye(8))

    def load():
        return cache.load(tmp_path / 'cache', 'x', [tmp_path / 'a.png'], 8, 'mask')

    load()
    for kind in ('x-*.npy', 'x-*.json', 'contents/*.json'):
        path = next((tmp_path / 'cache').glob(kind))
        (tmp_path / 'spoilt.npy').write_bytes(path.read_bytes())
        spoil(tmp_path / 'spoilt.npy')
        path.unlink()
        (tmp_path / 'spoilt.npy').rename(path)
        if path.is_dir() and kind != 'contents/*.json':
            with pytest.raises(InputError, match='remove it') as caught:
                load()
            assert caught.value.faults == [f'{path}: is a folder']
            path.rmdir()
        assert np.array_equal(load().pixels, [np.eye(8)])


def test_caches_go_by_what_the_pictures_hold(tmp_path, monkeypatch):
    paths, built, build = [tmp_path / 'a.png', tmp_path / 'b.png'], [], cache._build
    monkeypatch.setattr(cache, '_build', lambda *given: built.append(1) or build(*given))
    for path, value in zip(paths, (0, 1), strict=True):
        images.write_mask(path, np.full((8, 8), value))
        os.utime(path, (1, 1))

    def means():
        return cache.load(tmp_path / 'cache', 'x', paths, 8, 'mask').pixels.mean((1, 2)).tolist()

    assert means() == [0, 1] and len(built) == 1
    for path in paths:
        shutil.copyfile(path, tmp_path / 'copy')
        (tmp_path / 'copy').rename(path)
    assert means() == [0, 1] and len(built) == 1
    paths[0].rename(tmp_path / 'aside'), paths[1].rename(paths[0]), (tmp_path / 'aside').rename(paths[1])
    assert means() == [1, 0] and len(built) == 2


def test_a_picture_that_changes_while_it_is_cached_is_said(tmp_path, monkeypatch):
    path, read = tmp_path / 'a.png', cache.read_mask_square
    images.write_mask(path, np.eye(8))

    def read_and_change(source, size):
        pixels = read(source, size)
        images.write_mask(source, np.ones((8, 8)))
        return pixels

    with monkeypatch.context() as patch, pytest.raises(InputError, match='a.png: changed while it was read'):
        patch.setattr(cache, 'read_mask_square', read_and_change)
        cache.load(tmp_path / 'cache', 'x', [path], 8, 'mask')
    images.write_mask(path, np.eye(8))
    assert np.array_equal(cache.load(tmp_path / 'cache', 'x', [path], 8, 'mask').pixels, [np.eye(8)])


def test_the_fingerprint_changes_with_any_pixel_or_label(root):
    layout, rng = Layout(root), np.random.default_rng(0)
    pairs = isic.read_segmentation_list(layout, 'Training')
    crops = isic.read_classification_list(layout, 'Training')
    for path in (path for pair in pairs for path in pair):
        images.write_mask(path, rng.integers(0, 2, (8, 8), dtype=np.uint8))
    for path, _ in crops:
        images.write_png(path, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))

    def fingerprints():
        return (files.fingerprint(*(path for pair in pairs for path in pair)),
                splits.segmentation(layout, 'Training', 8).fingerprint,
                splits.classification(layout, 'Training', 8, coarse=False).fingerprint)

    def spoil(path):
        pixels = np.array(images.read_rgb(path) if path in dict(crops) else 255 * images.read_mask(path))
        pixels[3, 5] = 255 - pixels[3, 5]
        images.write_png(path, pixels)

    seen = [fingerprints()]
    assert fingerprints() == seen[0]
    for change in (lambda: spoil(pairs[2][0]), lambda: spoil(pairs[1][1])):
        change()
        seen.append(fingerprints())
        assert seen[-1][0] != seen[-2][0] and seen[-1][1] != seen[-2][1] and seen[-1][2] == seen[-2][2]
    spoil(crops[3][0])
    seen.append(fingerprints())
    assert seen[-1][2] != seen[-2][2]
    listed = layout.classification_list('Training')
    listed.write_text(listed.read_text().replace(' 1', ' 2'))
    assert fingerprints()[2] != seen[-1][2] and fingerprints()[:2] == seen[-1][:2]
