"""Mask2Lesion: its networks, losses and schedule, pairs, masks, drawing, training through the one loop."""
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from companions.mask2lesion import networks, train_Mask2Lesion
from companions.mask2lesion.networks import Discriminator, Generator
from companions.mask2lesion.pairs import Pairs
from engine import augment, device_samples, trainer
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures
from tests import test_training
from tests.test_gan import assert_same_runs
from tests.test_training import ALONE, SETTINGS, load

no_figures = test_training.no_figures


def parameters(network):
    return sum(value.numel() for value in network.parameters())


def test_the_original_sizes():
    generator, discriminator = Generator(), Discriminator()
    assert (parameters(generator), parameters(discriminator)) == (54_409_603, 2_767_809)
    assert parameters(Generator(norm='batch')) == 54_413_955   # one bias, and the norms' own
    assert parameters(Generator(16)) == pytest.approx(3.40e6, rel=0.005)
    with torch.no_grad():
        drawn = Generator(4)(torch.rand(1, 3, 256, 256) * 2 - 1)
        assert drawn.shape == (1, 3, 256, 256) and drawn.abs().max() <= 1
        assert Discriminator(4)(torch.zeros(1, 6, 256, 256)).shape == (1, 1, 30, 30)


def test_one_patch_sees_70_pixels(monkeypatch):
    monkeypatch.setattr(networks, '_norm', lambda *_: nn.Identity())   # instance norm sees the whole picture
    pictures = torch.rand(1, 6, 256, 256, requires_grad=True)
    torch.manual_seed(0)
    Discriminator(8)(pictures)[0, 0, 15, 15].backward()
    rows, columns = torch.nonzero(pictures.grad.abs().sum((0, 1)), as_tuple=True)
    assert [int(places.max() - places.min()) + 1 for places in (rows, columns)] == [70, 70]


@pytest.mark.parametrize('norm', networks.NORMS)
def test_first_weights(norm):
    torch.manual_seed(0)
    for network in map(networks.initialise, (Generator(16, norm=norm), Discriminator(16, norm))):
        for name, value in network.named_parameters():
            if name.endswith('bias'):
                assert not value.any()
            elif value.ndim == 4:
                assert value.std().item() == pytest.approx(0.02, rel=0.1), name
            else:
                assert value.mean().item() == pytest.approx(1, abs=0.02), name


def test_dropout_is_the_only_noise():
    torch.manual_seed(0)
    network, masks = Generator(4, 8), torch.rand(1, 3, 256, 256)
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5] * 3
    with torch.no_grad():
        assert not torch.equal(network(masks), network(masks))
        assert torch.equal(network.eval()(masks), network(masks))
        quiet = Generator(4, 8, dropout=False)
        assert torch.equal(quiet(masks), quiet(masks))


@pytest.mark.parametrize('batch', [1, 3])
def test_instance_norm_is_pytorchs(batch):
    x = torch.randn(batch, 5, 7, 9) * 3 + 1
    torch.testing.assert_close(networks.InstanceNorm()(x), nn.InstanceNorm2d(5)(x))


@pytest.mark.parametrize('kind, real, fake', [   # -log sigmoid(2), -log(1 - sigmoid(2)); (2 - 1)^2, 2^2
    ('vanilla', 0.126928, 2.126928), ('lsgan', 1.0, 4.0)])
def test_gan_losses(kind, real, fake):
    logits = torch.full((2, 1, 3, 3), 2.0)
    assert networks.gan_loss(logits, True, kind).item() == pytest.approx(real, abs=1e-5)
    assert networks.gan_loss(logits, False, kind).item() == pytest.approx(fake, abs=1e-5)


def test_the_learning_rate_falls_linearly_over_the_last_hundred_epochs():
    factor = [train_Mask2Lesion.decay(10 * epoch + 9, 2000, 200, 100) for epoch in range(200)]
    assert factor[:100] == [1] * 100
    assert factor[100] == pytest.approx(1 - 1 / 101) and factor[199] == pytest.approx(1 - 100 / 101)
    assert min(factor) > 0


# --- Public checkpoints


def published(norm, width=4, levels=6):
    """A generator's parameters under the names of junyanz's unet, written down as that code builds it."""
    def level(prefix, depth):
        outer, inner = (width * min(2**max(number, 0), 8) for number in (depth - 1, depth))
        innermost, first, norms = depth == levels - 1, 1, norm == 'batch'
        yield f'{prefix}.{first}.weight', (inner, outer, 4, 4)
        if not norms:
            yield f'{prefix}.{first}.bias', (inner,)
        if not innermost:
            yield from normed(f'{prefix}.2', inner, norms)
            yield from level(f'{prefix}.3.model', depth + 1)
        up = f'{prefix}.{3 if innermost else 5}'
        yield f'{up}.weight', (inner * (1 if innermost else 2), outer, 4, 4)
        if not norms:
            yield f'{up}.bias', (outer,)
        yield from normed(f'{prefix}.{4 if innermost else 6}', outer, norms)

    def normed(prefix, channels, affine):
        for part in ('weight', 'bias') if affine else ():
            yield f'{prefix}.{part}', (channels,)
        for part in ('running_mean', 'running_var'):   # instance norms of old PyTorch had them, too
            yield f'{prefix}.{part}', (channels,)

    shapes = [('model.model.0.weight', (width, 3, 4, 4)), ('model.model.3.bias', (3,)),
              ('model.model.3.weight', (2 * width, 3, 4, 4)), *level('model.model.1.model', 1)]
    if norm == 'instance':
        shapes.append(('model.model.0.bias', (width,)))
    torch.manual_seed(1)
    return {name: torch.rand(shape) * 0.1 + 0.01 for name, shape in shapes}


@pytest.mark.parametrize('norm', networks.NORMS)
def test_public_checkpoints_load_and_tell_their_norm(norm, tmp_path):
    path, other = tmp_path / 'latest_net_G.pth', {'instance': 'batch', 'batch': 'instance'}[norm]
    state = published(norm)
    torch.save(state, path)
    network = networks.load_generator(path)
    kept = {name for name in state if norm == 'batch' or 'running' not in name}
    own = {name: value for name, value in network.state_dict().items() if 'tracked' not in name}
    assert own.keys() == kept and all(torch.equal(own[name], state[name]) for name in kept)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(InputError, match=f'{norm} norm, not with {other} norm'):
        networks.load_generator(path, other)
    torch.save({'model.model.1.model.1.weight': state['model.model.1.model.1.weight']}, path)
    with pytest.raises(InputError, match='has no model.model.0.weight'):
        networks.load_generator(path)


# --- Training


SIDE, EVERY = 32, 3


def drawn_pairs(count, size, seed=0):
    """Dark ellipses on bright skin: Pairs of `size` px."""
    rng, y, x = np.random.default_rng(seed), *np.mgrid[:size, :size] / size
    images, masks = [], []
    for _ in range(count):
        (cy, cx), (ry, rx) = rng.uniform(0.4, 0.6, 2), rng.uniform(0.15, 0.35, 2)
        mask = ((y - cy) / ry)**2 + ((x - cx) / rx)**2 < 1
        picture = np.where(mask[..., None], (120, 75, 60), (215, 170, 150)).astype(float)
        picture += rng.normal(0, 8, (size, size, 1))
        images.append(picture.clip(0, 255).astype(np.uint8))
        masks.append(mask.astype(np.uint8) * 255)
    names = [f'drawn{number}' for number in range(count)]
    return Pairs(np.stack(images), np.stack(masks), names, f'drawn {seed}')


def small(**changes):
    """Settings and networks of a small training: (cfg, G, D)."""
    cfg = SimpleNamespace(**SETTINGS | {
        'BATCH_SIZE': 1, 'LEARNING_RATE': 2e-4, 'INPUT_SIZE': SIDE, 'LOAD_SIZE': SIDE + 4, 'MIRROR': True,
        'MASK_FILTER': 'bicubic', 'GAN_LOSS': 'vanilla', 'L1_WEIGHT': 100.0, 'EPOCH': 4, 'DECAY_EPOCHS': 2,
        'VALIDATION_IMAGES': 2, 'LEVELS': 5, 'WIDTH': 4} | changes)
    torch.manual_seed(0)
    return (cfg, networks.initialise(Generator(cfg.WIDTH, cfg.LEVELS)),
            networks.initialise(Discriminator(cfg.WIDTH)))


def train(folder, total=8, count=4, **changes):
    """Train as the script does; returns the task and the held-out pairs."""
    cfg, generator, discriminator = small(**changes)
    train, held_out = drawn_pairs(count, cfg.LOAD_SIZE), drawn_pairs(3, cfg.INPUT_SIZE, seed=1)
    task = train_Mask2Lesion.gan_task(cfg, ALONE, generator, discriminator, train, held_out, total)
    with Run(folder, 'Mask2Lesion', cfg, {}, 'random weights', ALONE, kept=('G', 'D')) as run:
        trainer.fit(task, cfg, run, ALONE, total, EVERY)
    return task, held_out


@pytest.mark.parametrize('changes', [{'LEVELS': 6, 'INPUT_SIZE': 64, 'LOAD_SIZE': 70, 'AMP': 'bf16'},
                                     {'GAN_LOSS': 'lsgan', 'BATCH_SIZE': 2}])
def test_a_stopped_and_resumed_training_is_the_undisturbed_one(tmp_path, monkeypatch, changes):
    train(tmp_path / 'whole', **changes)
    asked = itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(trainer.Interrupted):
        patch.setattr(trainer, '_asked_to_stop', lambda *_: next(asked) == 5)
        train(tmp_path / 'parts', **changes)
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == 5
    torch.manual_seed(99)
    train(tmp_path / 'parts', **changes)
    assert_same_runs(tmp_path / 'whole', tmp_path / 'parts')


def test_each_loss_reaches_one_network_alone():
    cfg, generator, discriminator = small()
    data = drawn_pairs(2, cfg.LOAD_SIZE)
    task = train_Mask2Lesion.gan_task(cfg, ALONE, generator, discriminator, data, data, 2)
    losses = task.losses(task.networks, next(iter(task.stream(0, 1))))
    name, loss, parts = next(losses)
    loss.backward()
    assert name == 'D' and all(value.grad is None for value in generator.parameters())
    assert all(value.grad is not None for value in discriminator.parameters())
    assert loss.item() == pytest.approx((parts['D fake'] + parts['D real']).item() / 2)
    discriminator.zero_grad(set_to_none=True)
    name, loss, parts = next(losses)
    loss.backward()
    assert name == 'G' and all(value.grad is None for value in discriminator.parameters())
    assert all(value.grad is not None for value in generator.parameters())
    assert loss.item() == pytest.approx((parts['G GAN'] + 100 * parts['G L1']).item(), rel=1e-5)
    assert next(losses, None) is None and all(value.requires_grad for value in discriminator.parameters())


def test_windows_are_the_originals(monkeypatch):
    """Offsets 0 to 29 of 286 px for 256, whole pixels, alike for picture and mask; mirrored in half."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 286, 286, 3), np.uint8)
    pictures = Pictures(picture, {'mask': picture[..., 0]}, None, 256, augment.Window(286, 256))
    places, view = set(), np.lib.stride_tricks.sliding_window_view(picture[0, ..., 0], (256, 256))
    for position in range(60):
        item = pictures[position]
        seen = item['image'].numpy()
        np.testing.assert_array_equal(seen[0], item['mask'].numpy())
        places_tried = itertools.product(range(31), repeat=2)
        found = [(*place, mirrored) for place in places_tried for mirrored in (False, True)
                 if (view[place][0, :9] == seen[0][0, ::-1 if mirrored else 1][:9]).all()]
        (top, left, mirrored), = found
        window = view[top, left][:, ::-1] if mirrored else view[top, left]
        np.testing.assert_array_equal(seen[0], window)
        places.add((top, left, mirrored))
    tops, lefts, mirrored = zip(*places, strict=True)
    assert min(tops + lefts) >= 0 and max(tops + lefts) <= 29 and max(tops) > 24 and max(lefts) > 24
    assert 15 < sum(mirrored) < 45
    batch = device_samples.Resident(pictures, ALONE.device).batch(range(4))
    np.testing.assert_array_equal(batch['image'], np.stack([pictures[place]['image'] for place in range(4)]))


def test_without_a_margin_windows_are_the_picture():
    matrix = augment.draw(np.random.default_rng(0), augment.Window(64, 64, mirror=False))
    np.testing.assert_array_equal(matrix, np.eye(2, 3))
