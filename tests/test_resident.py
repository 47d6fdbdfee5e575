"""Pictures in a device's memory: the same batches as the loader's; here the device is the CPU."""
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import full_run, works_net
from dataset.splits import Joined
from engine import augment, device_samples, hardware, samples, trainer
from engine.cli import Interrupted
from tests import test_training
from tests.test_training import assert_same_folders, load, tiny_stage, train

CPU = torch.device('cpu')
RANGES = augment.Ranges(crop=(0.5, 1.0), crop_probability=0.5)
# OpenCV 4 rounds the coordinates of a warp to 1/32 pixel, OpenCV 5 does not.
EXACT_WARP = int(cv2.__version__.partition('.')[0]) >= 5
no_figures = test_training.no_figures
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')


def blurred(rng, *shape):
    """uint8 noise that is smooth over some pixels, as photographs are."""
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(one, (0, 0), 2) for one in noise])


def pictures(seed=0, count=7, side=64, size=32, interpolation='bilinear', labels=True):
    """samples.Pictures with images, fine masks and rough ones; labels are optional."""
    rng = np.random.default_rng(seed)
    images = blurred(rng, count, side, side, 3)
    fine = (blurred(rng, count, side, side) > 127).astype(np.uint8)
    rough = (blurred(rng, count, size, size) > 127).astype(np.uint8)
    return samples.Pictures(images, {'mask': fine, 'coarse': rough},
                            rng.integers(0, 3, count) if labels else None, size, RANGES, interpolation, seed)


def assert_alike(ours, expected, interpolation='bilinear'):
    """Equal but for the rounding of the interpolation."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape and ours[name].dtype == tensor.dtype
        difference = (ours[name].long() - tensor.long()).abs()
        if name == 'image' and interpolation == 'bilinear':
            assert difference.max() <= (1 if EXACT_WARP else 10) and difference.double().mean() < 1
        elif name in ('image', 'mask', 'coarse'):   # coordinates half-way between two pixels
            assert (difference > 0).double().mean() < (0.002 if EXACT_WARP else 0.02)
        else:
            assert torch.equal(ours[name], tensor)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 10**6), st.sampled_from([(64, 32), (48, 48), (40, 64)]),
       st.sampled_from(['bilinear', 'nearest']), st.booleans())
def test_batches_on_the_device_are_the_loaders(seed, first, sides, interpolation, labels):
    own = pictures(seed, 7, *sides, interpolation, labels)
    expected = list(samples.stream(own, 4, first, first + 2))
    ours = list(device_samples.Resident(own, CPU).stream(4, first, first + 2))
    assert len(ours) == 2
    for batch, wanted in zip(ours, expected, strict=True):
        assert_alike(batch, wanted, interpolation)


def test_processes_share_each_batch():
    own = device_samples.Resident(pictures(), CPU)
    whole, = own.stream(6, 5, 6)
    parts = [batch for rank in range(3) for batch in own.stream(6, 5, 6, rank, 3)]
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


def test_joined_and_memory_mapped_pictures_are_moved_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(device_samples, 'PICTURES_AT_ONCE', 2)
    first, second = pictures(1, 3), pictures(2, 4)
    np.save(tmp_path / 'images.npy', first.images)
    mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
    joined = samples.Pictures(Joined(mapped, second.images),
                              {'mask': Joined(first.masks['mask'], second.masks['mask'])}, None, 32, RANGES)
    ours = device_samples.Resident(joined, CPU)
    assert np.array_equal(ours.images.numpy(), np.concatenate([first.images, second.images]))
    assert_alike(ours.batch(range(7)), next(iter(samples.stream(joined, 7, 0, 1))))


def test_the_host_draws_and_the_source_stays_as_it_is():
    own = pictures()
    before, state = own.images.copy(), torch.get_rng_state()
    batch = device_samples.Resident(own, CPU).batch(range(4))
    batch['image'].fill_(0)
    assert np.array_equal(own.images, before) and torch.equal(torch.get_rng_state(), state)


def test_training_from_device_memory_is_exact_over_an_interruption(tmp_path, monkeypatch):
    train(tmp_path / 'whole', PICTURES_ON='device')
    steps = []

    def stop_after(step, loss):
        steps.append(step)
        return loss

    asked = iter([False] * 5 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(trainer, '_asked_to_stop', lambda *_: next(asked))
        with pytest.raises(Interrupted):
            train(tmp_path / 'parts', tiny_stage(stop_after), PICTURES_ON='device')
    assert len(steps) == 6
    train(tmp_path / 'parts', PICTURES_ON='device')
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')


def losses(folder):
    return [row['loss'] for row in test_training.rows_of(folder)]


def test_training_from_device_memory_is_that_of_the_loader(tmp_path):
    for where in ('host', 'device'):
        train(tmp_path / where, PICTURES_ON=where)
    assert losses(tmp_path / 'device') == pytest.approx(losses(tmp_path / 'host'), rel=2e-3)
    assert losses(tmp_path / 'device')[0] != losses(tmp_path / 'device')[1]


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler on a CPU')
def test_a_compiled_network_trains_as_the_plain_one(tmp_path):
    """Names in the files are those of the network itself."""
    for mode in ('off', 'default'):
        stage = tiny_stage()
        stage.network[3].p = 0.0   # dropout draws other numbers when compiled
        train(tmp_path / mode, stage, COMPILE=mode)
    one, other = (load(tmp_path / mode, 'CoarseSN.pth') for mode in ('off', 'default'))
    assert one.keys() == other.keys()
    assert losses(tmp_path / 'default') == pytest.approx(losses(tmp_path / 'off'), rel=1e-4)


@pytest.mark.parametrize('where', ['host', 'device'])
def test_deterministic_training_gives_the_same_bits_twice(tmp_path, where):
    hardware.start(SimpleNamespace(DEVICE='cpu', DETERMINISTIC=True))
    try:
        assert torch.are_deterministic_algorithms_enabled()
        for name in ('one', 'two'):
            train(tmp_path / name, PICTURES_ON=where, AMP='bf16')
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_folders(tmp_path / 'one', tmp_path / 'two')


@pytest.mark.parametrize('kind', ['cpu', pytest.param('cuda', marks=needs_gpu)])
def test_a_step_of_enhanced_sn_never_waits_for_a_gpu(tmp_path, kind):
    """Steps between two looks at the losses, with PyTorch told to raise where the host would wait."""
    device = torch.device(kind)
    process = hardware.Process(0, 1, device)
    cfg = SimpleNamespace(**works_net.SETTINGS | {'IMAGES': 4, 'INPUT_SIZE': 64, 'BATCH_SIZE': 2})
    stage = full_run.enhanced_stage(cfg, process)
    own = device_samples.Resident(stage.dataset, device)
    with test_training.Run(tmp_path, 'CoarseSN', cfg, {}, 'random weights', process) as run:
        session = trainer.Session(stage, cfg, run, process, 20)
        session.train_mode()
        try:
            for number, batch in enumerate(own.stream(2, 0, 5)):
                if kind == 'cuda':
                    torch.cuda.set_sync_debug_mode('error' if number > 2 else 'default')
                session.step(batch, 1e-4)
        finally:
            if kind == 'cuda':
                torch.cuda.set_sync_debug_mode('default')
    assert session.progress.step == 5 and session.progress.take_means(process)['loss'] > 0


@needs_gpu
def test_batches_in_gpu_memory_are_the_loaders():
    own = pictures()
    batch = device_samples.Resident(own, torch.device('cuda', 0)).batch(range(8))
    assert device_samples.fits(own, torch.device('cuda', 0))
    ours = {name: tensor.cpu() for name, tensor in batch.items()}
    assert_alike(ours, next(iter(samples.stream(own, 8, 0, 1))))
