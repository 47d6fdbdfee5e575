"""Mask2Lesion: its networks, losses and schedule, pairs, masks, drawing, training through the one loop."""
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import train_CoarseSN
from companions.mask2lesion import (
    draw_lesions,
    draw_masks,
    eval_Mask2Lesion,
    judgement,
    make_pairs,
    masks,
    networks,
    painter,
    pairs,
    panels,
    train_Mask2Lesion,
)
from companions.mask2lesion.networks import Discriminator, Generator
from companions.mask2lesion.pairs import Pairs
from dataset import pairing, splits
from dataset.layout import Layout
from engine import augment, device_samples, images, run_folder, settings, trainer
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures
from experiments import costs
from experiments.declarations import Declarations
from experiments.run_store import RunStore
from net.norms import InstanceNorm
from tests import conftest, stand_ins, test_training
from tests.stand_ins import VALUES, declare, run_table
from tests.test_gan import assert_same_runs
from tests.test_training import ALONE, SETTINGS, load

no_figures, root, calls = test_training.no_figures, stand_ins.root, stand_ins.calls


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
    torch.testing.assert_close(InstanceNorm()(x), nn.InstanceNorm2d(5)(x))


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


def train(folder, total=8, count=4, every=EVERY, **changes):
    """Train as the script does; returns the task and the held-out pairs."""
    cfg, generator, discriminator = small(**changes)
    train, held_out = drawn_pairs(count, cfg.LOAD_SIZE), drawn_pairs(3, cfg.INPUT_SIZE, seed=1)
    task = train_Mask2Lesion.gan_task(cfg, ALONE, generator, discriminator, train, held_out, total)
    with Run(folder, 'Mask2Lesion', cfg, {}, 'random weights', ALONE, kept=('G', 'D')) as run:
        trainer.fit(task, cfg, run, ALONE, total, every)
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


def test_the_generator_obeys_masks_and_the_discriminator_lives(tmp_path):
    """Also shapes that it never saw: dark on bright, judged by Otsu's threshold."""
    train(tmp_path, 250, 32, every=50, INPUT_SIZE=64, LOAD_SIZE=72, LEVELS=6, WIDTH=8, AMP='auto',
          LEARNING_RATE=1e-3, VALIDATION_IMAGES=3)
    rows = run_folder.read_rows(tmp_path / 'metrics.jsonl')
    assert rows[-1]['Otsu JA'] > 0.9 and rows[-1]['validation L1'] < 0.12
    assert 0.2 < np.mean([row['loss D'] for row in rows[-2:]]) < 0.75
    paint = painter.load(tmp_path / 'G.pth', True, ALONE.device, 'auto')
    rng = np.random.default_rng(3)
    for name in ('triangle', 'square', 'hexagon', 'star'):
        mask = masks.shape(rng, name, 64)
        found = images.otsu_mask(paint(255 * mask))
        assert painter.overlap(found, mask > 0)[0] > 0.8, name


def test_one_pair_can_be_learnt_by_heart(tmp_path):
    train(tmp_path, 200, 1, 40, WIDTH=8, LOAD_SIZE=SIDE, MIRROR=False, LEARNING_RATE=1e-3)
    assert run_folder.read_rows(tmp_path / 'metrics.jsonl')[-1]['G L1'] < 0.05


# --- Pairs as files


@pytest.fixture
def folders(tmp_path):
    """Two folders of three pairs, their masks named in three ways; returns their paths."""
    data = drawn_pairs(3, 40)
    for number, name in enumerate(('ISIC_1_segmentation.png', 'ISIC_2_Segmentation.PNG', 'ISIC_3.png')):
        images.write_png(tmp_path / 'images' / f'ISIC_{number + 1}.png', data.images[number])
        images.write_png(tmp_path / 'masks' / name.replace('PNG', 'png'), data.masks[number])
    (tmp_path / 'masks/ISIC_2_Segmentation.png').rename(tmp_path / 'masks/ISIC_2_Segmentation.PNG')
    return tmp_path / 'images', tmp_path / 'masks'


def call(script, *arguments):
    """What `python -m companions.mask2lesion.<script>` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script.__file__, *arguments])
        script.main()


def test_two_folders_become_pix2pixs_files_and_back(folders, tmp_path):
    data, out = drawn_pairs(3, 40), tmp_path / 'pairs'
    options = [f'--IMAGES={folders[0]}', f'--MASKS={folders[1]}', f'--OUT={out}']
    command = [sys.executable, '-m', 'companions.mask2lesion.make_pairs', *options]
    done = subprocess.run(command, cwd=conftest.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and '3 pairs' in done.stdout, done.stderr
    for number in range(3):
        both = images.read_rgb(out / 'train' / f'ISIC_{number + 1}.png')
        np.testing.assert_array_equal(both[:, :40], np.repeat(data.masks[number][..., None], 3, 2))
        np.testing.assert_array_equal(both[:, 40:], data.images[number])
    read = pairs.load(None, 'Training', str(out), 40, 'bicubic')
    np.testing.assert_array_equal(read.images, data.images)
    np.testing.assert_array_equal(read.masks, data.masks)
    assert read.names == ['ISIC_1', 'ISIC_2', 'ISIC_3']
    smooth, sharp = (pairs.load(None, 'Training', str(out), 30, kind) for kind in pairs.MASK_FILTERS)
    assert len(np.unique(smooth.masks)) > 3 and set(np.unique(sharp.masks)) == {0, 255}
    assert smooth.fingerprint != sharp.fingerprint


def test_a_root_becomes_pix2pixs_files(drawn_root):
    call(make_pairs, f'--ROOT={drawn_root.root}')
    folder = drawn_root.root / 'Mask2Lesion/pairs'
    for split, phase, count in (('Training', 'train', 6), ('Validation', 'test', 3)):
        ours = pairs.load(None, split, str(folder), 40, 'bicubic')
        theirs = pairs.load(drawn_root, split, '', 40, 'bicubic')
        assert ours.names == theirs.names and len(list((folder / phase).glob('*.png'))) == count
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.masks, theirs.masks)


def test_a_training_starts_from_public_weights_and_reads_prepared_files(folders, tmp_path):
    out, weights = tmp_path / 'pairs', tmp_path / 'latest_net_G.pth'
    layout = Layout(tmp_path)   # no test/: it looks at training pictures
    pairs.write_combined(pairing.pair_up(*folders), out / 'train', layout)
    torch.save(published('instance'), weights)
    options = [f'--ROOT={tmp_path}', f'--PAIRS={out}', f'--INITIAL_WEIGHTS={weights}', *TINY, '--STEPS=1']
    with pytest.raises(InputError, match='instance norm, not with batch norm(.|\n)*--NORM=instance'):
        call(train_Mask2Lesion, *options, '--NORM=batch')
    with pytest.raises(InputError, match='latest_net_G.pth: (.|\n)*shape(.|\n)*WIDTH'):
        call(train_Mask2Lesion, *options[:3], *TINY[1:], '--WIDTH=8')
    call(train_Mask2Lesion, *options, '--LEARNING_RATE=1e-9')
    name = 'model.model.0.weight'
    kept = load(tmp_path / 'models/Mask2Lesion', 'G.pth')
    torch.testing.assert_close(kept[name], published('instance')[name])


def test_pictures_and_masks_pair_up_whichever_way_unicode_spells_their_names(tmp_path):
    image, mask = tmp_path / 'images/mo\u0308le.png', tmp_path / 'masks/m\xf6le_segmentation.png'
    for path in image, mask:
        images.write_mask(path, np.eye(8))
    assert pairing.pair_up(image.parent, mask.parent) == [('m\xf6le', image, mask)]


def test_all_folders_that_make_no_pairs_are_named_before_any_is_written(folders, tmp_path):
    images.write_png(folders[0] / 'ISIC_4.png', np.zeros((40, 40, 3), np.uint8))
    images.write_png(folders[1] / 'ISIC_5.png', np.zeros((40, 40), np.uint8))
    images.write_png(folders[1] / 'ISIC_3.png', np.zeros((41, 40), np.uint8))
    images.write_png(folders[1] / 'ISIC_1.png', np.zeros((40, 40), np.uint8))
    (folders[0] / 'ISIC_2.png').write_bytes(b'no picture')
    options = [f'--IMAGES={folders[0]}', f'--MASKS={folders[1]}', f'--OUT={tmp_path / "pairs"}']
    with pytest.raises(InputError) as error:
        call(make_pairs, *options)
    for fault in ('ISIC_4.png: has no mask', 'ISIC_5.png: has no picture', 'ISIC_3.png: is 40x41 but',
                  'ISIC_1 is there twice', 'ISIC_2.png: is not a readable'):
        assert fault in str(error.value)
    assert not (tmp_path / 'pairs').exists()


def test_masks_with_grey_values_are_refused_or_cut_where_asked(folders, tmp_path):
    grey = np.full((40, 40), 100, np.uint8)
    grey[:20] = 200
    images.write_png(folders[1] / 'ISIC_3.png', grey)
    options = [f'--IMAGES={folders[0]}', f'--MASKS={folders[1]}', f'--OUT={tmp_path / "pairs"}']
    with pytest.raises(InputError, match='ISIC_3.png: is not a binary mask(.|\n)*GREY_ABOVE'):
        call(make_pairs, *options)
    call(make_pairs, *options, '--GREY_ABOVE=127', '--PHASE=test')
    mask, _ = pairs.read_combined(tmp_path / 'pairs/test/ISIC_3.png')
    assert mask[:20].min() == 255 and mask[20:].max() == 0
    images.write_png(tmp_path / 'pairs/test/other.png', np.zeros((40, 80, 3), np.uint8))
    for path in (folders[0] / 'ISIC_1.png', folders[1] / 'ISIC_1_segmentation.png'):
        path.unlink()
    call(make_pairs, *options, '--GREY_ABOVE=127', '--PHASE=test')
    assert [path.name for path in sorted((tmp_path / 'pairs/test').glob('*.png'))] == [
        'ISIC_2.png', 'ISIC_3.png', 'other.png']
    with pytest.raises(InputError, match='ISIC_3.png: is not a binary mask'):
        call(make_pairs, *options, '--PHASE=test')
    for path in (folders[0] / 'ISIC_3.png', folders[1] / 'ISIC_3.png'):
        path.unlink()
    call(make_pairs, *options, '--PHASE=test')   # ISIC_3 was made with GREY_ABOVE=127
    assert [path.name for path in sorted((tmp_path / 'pairs/test').glob('*.png'))] == [
        'ISIC_2.png', 'other.png']


def test_pairs_overwrite_neither_their_sources_nor_files_of_others(folders, tmp_path, monkeypatch):
    """Also not after a call that was stopped, which the same command finishes."""
    options = [f'--MASKS={folders[1]}', f'--OUT={tmp_path}']
    pictures = folders[0].rename(tmp_path / 'train')
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    with pytest.raises(InputError) as error:
        call(make_pairs, f'--IMAGES={pictures}', *options)
    assert all(f'{pictures / name}: is one of the pictures' in str(error.value) for name in before)
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before
    options += [f'--IMAGES={pictures}', '--PHASE=test']
    images.write_png(tmp_path / 'test/ISIC_3.png', np.zeros((40, 80, 3), np.uint8))
    with pytest.raises(InputError, match='test/ISIC_3.png: is of another origin'):
        call(make_pairs, *options)
    (tmp_path / 'test/ISIC_3.png').unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pairs.Record, 'note', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        call(make_pairs, *options)
    assert list((tmp_path / 'test').glob('*.png'))
    for _ in range(2):
        call(make_pairs, *options)
    assert len(list((tmp_path / 'test').glob('*.png'))) == 3


def test_all_files_that_make_no_pairs_are_named_before_any_is_written(drawn_root, tmp_path):
    """Of both splits, also where the header says nothing of the fault."""
    shutil.copytree(drawn_root.root / 'dataset', tmp_path / 'dataset')
    layout = Layout(tmp_path)
    grey = layout.segmentation('Training') / 'Annotation/drawn5_segmentation.png'
    images.write_png(grey, np.full((48, 48), 100, np.uint8))
    cut = layout.segmentation('Validation') / 'Images/drawn2.png'
    cut.write_bytes(cut.read_bytes()[:-900])
    with pytest.raises(InputError, match=f'{grey}: is not a binary mask(.|\n)*{cut}: is damaged'):
        call(make_pairs, f'--ROOT={tmp_path}')
    assert not (tmp_path / 'Mask2Lesion').exists()


def test_a_subset_is_the_one_of_coarse_sn(root):
    layout = Layout(root)
    for limit in (1, 2, 3):
        ours = pairs.load(layout, 'Training', '', 16, 'nearest', limit, seed=4)
        theirs = splits.segmentation(layout, 'Training', 16, limit=limit, seed=4)
        assert ours.names == theirs.names
        np.testing.assert_array_equal(ours.masks, 255 * theirs.masks)
        np.testing.assert_array_equal(ours.images, theirs.images)


# --- Masks


@pytest.mark.parametrize('name', masks.CORNERS)
def test_shapes_are_what_they_are_called(name):
    drawn = [masks.shape(np.random.default_rng(seed), name, 128) for seed in range(6)]
    assert len({mask.tobytes() for mask in drawn}) == 6
    np.testing.assert_array_equal(drawn[0], masks.shape(np.random.default_rng(0), name, 128))
    for mask in drawn:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline, = contours
        corners = len(cv2.approxPolyDP(outline, 0.03 * cv2.arcLength(outline, True), True))
        solid = cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline))
        assert corners == masks.CORNERS[name] if masks.CORNERS[name] else corners > 5
        assert solid < 0.8 if name == 'star' else solid > 0.94
        assert 0.02 < mask.mean() < 0.5
        (_, _), axes, _ = cv2.minAreaRect(outline)
        if name in ('circle', 'square', 'ellipse'):
            assert (min(axes) / max(axes) < 0.85) == (name == 'ellipse')


def test_elastic_masks_are_seeded_deformations():
    pytest.importorskip('torchvision')
    mask = drawn_pairs(1, 128).masks[0] // 255
    random_state = torch.random.get_rng_state()
    found = [masks.elastic(np.random.default_rng(seed), [mask], 1000.0, 10.0)[0] for seed in (0, 0, 1)]
    assert torch.equal(random_state, torch.random.get_rng_state())
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any() and set(np.unique(found[0])) == {0, 1}
    for other in found:
        assert 0.3 < painter.overlap(other > 0, mask > 0)[0] < 0.97
        assert cv2.connectedComponents(other)[0] == 2


def test_masks_that_cannot_be_deformed_are_passed_over(tmp_path, no_panels):
    """Empty, tiny and full ones; the others come as they did, and again."""
    pytest.importorskip('torchvision')
    good, bad = drawn_pairs(1, 48).masks[0], np.zeros((3, 48, 48), np.uint8)
    bad[1, 20:22, 20:22], bad[2] = 255, 255
    for name, mask in zip('abcd', (*bad, good), strict=True):
        images.write_png(tmp_path / 'masks' / f'{name}.png', mask)
    options = ['--KIND=elastic', '--SIZE=48', f'--MASKS={tmp_path / "masks"}']
    records = []
    for count in (6, 4):
        call(draw_masks, *options, f'--COUNT={count}', f'--OUT={tmp_path / "out"}')
        records.append(json.loads((tmp_path / 'out/masks.json').read_text())['masks'])
    assert len(records[0]) == 6 and {about['what'] for about in records[0].values()} == {'d, deformed'}
    assert records[1].items() <= records[0].items()
    (tmp_path / 'masks/d.png').unlink()
    with pytest.raises(InputError, match='No usable mask(.|\n)*--MASKS=folder'):
        call(draw_masks, *options, '--COUNT=1', f'--OUT={tmp_path / "none"}')


def test_the_shape_model_learns_size_first_and_gives_its_masks_back():
    y, x = np.mgrid[:64, :64] - 31.5
    circles = np.stack([(np.hypot(x, y) < radius) for radius in range(6, 26)]).astype(np.uint8)
    model = masks.ShapeModel(circles, 3)
    again = [model.mask(score, 64) for score in model.scores]
    assert min(painter.overlap(mask > 0, circle > 0)[0] for mask, circle in
               zip(again, circles, strict=True)) > 0.9
    scores, walk = zip(*model.walk(1, 5, 1.0, 64), strict=True)
    areas = [mask.sum() for mask in walk]
    assert np.diff(scores).max() < 0 and scores[2] == pytest.approx(0, abs=1e-9)
    assert (np.diff(areas) < 0).all() or (np.diff(areas) > 0).all()
    np.testing.assert_array_equal(*(model.sample(np.random.default_rng(0), 32) for _ in range(2)))
    with pytest.raises(InputError, match='no component 4'):
        model.walk(4, 5, 1.0, 64)
    with pytest.raises(InputError, match='at least two masks'):
        masks.ShapeModel(circles[:1], 3)


def test_a_mask_off_the_middle_is_the_same_shape():
    mask = masks.shape(np.random.default_rng(0), 'hexagon', 64)
    offset = masks._offset(mask)
    assert abs(offset).max() > 0.05
    middle = masks.moved(mask, -offset)
    assert abs(masks._offset(middle)).max() < 0.01 and middle.sum() == mask.sum()
    distance = masks.signed_distance(mask)
    np.testing.assert_array_equal(distance > 0, mask > 0)
    assert masks.signed_distance(np.ones((8, 8), np.uint8)).min() > 0


# --- Drawing and judging, on one small root


TINY = ('--WIDTH=4', '--D_WIDTH=4', '--LEVELS=6', '--INPUT_SIZE=64', '--LOAD_SIZE=72', '--TRAIN_IMAGES=4')


@pytest.fixture
def no_panels(monkeypatch):
    monkeypatch.setattr(panels, 'grid', lambda *_: None)


@pytest.fixture(scope='module')
def drawn_root(tmp_path_factory):
    """A root with drawn pairs, a trained small generator, masks of all kinds, lesions for them: Layout."""
    root = tmp_path_factory.mktemp('mask2lesion')
    layout = Layout(root)
    for split, count, seed in (('Training', 6, 0), ('Validation', 3, 1)):
        data, folder = drawn_pairs(count, 48, seed), layout.segmentation(split)
        lines = []
        for name, image, mask in zip(data.names, data.images, data.masks, strict=True):
            lines.append(f'Images/{name}.png Annotation/{name}_segmentation.png')
            images.write_png(folder / 'Images' / f'{name}.png', image)
            images.write_png(folder / 'Annotation' / f'{name}_segmentation.png', mask)
        layout.lists.mkdir(parents=True, exist_ok=True)
        layout.segmentation_list(split).write_text('\n'.join(lines) + '\n')
    at = f'--ROOT={root}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.figures, 'curves', lambda *given: given[2].write_bytes(b'curve'))
        patch.setattr(panels, 'COLUMNS', 2)   # axes are slow to draw
        call(train_Mask2Lesion, at, *TINY, '--STEPS=4')
        call(draw_masks, at, '--KIND=real,shapes,pca,walks', '--COUNT=3', '--SIZE=48', '--TRAIN_IMAGES=4')
        call(draw_lesions, at)
        call(eval_Mask2Lesion, at)
    return layout


def test_a_training_leaves_its_two_networks(drawn_root):
    folder = drawn_root.run('Mask2Lesion')
    for name in ('G.pth', 'D.pth', 'last.pth', 'panel.png', 'metrics.jsonl'):
        assert (folder / name).is_file()
    config = json.loads((folder / 'config.json').read_text())
    assert config['settings']['NORM'] == 'instance' and config['finished']['step'] == 4
    with pytest.raises(InputError, match='NORM'):   # goes on as it began
        call(train_Mask2Lesion, f'--ROOT={drawn_root.root}', *TINY, '--STEPS=6', '--NORM=batch')


def test_masks_of_all_kinds_are_there_and_come_again(drawn_root, tmp_path, no_panels):
    folder = drawn_root.root / 'Mask2Lesion/masks'
    record = json.loads((folder / 'masks.json').read_text())
    kinds = [about['kind'] for about in record['masks'].values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        'real': 3, 'shapes': 3, 'pca': 3, 'walk_pc1': 7, 'walk_pc3': 7}
    there = {path.stem.removesuffix('_segmentation') for path in folder.glob('*.png')}
    assert there == set(record['masks'])
    real = {name.removeprefix('real_') for name in record['masks'] if name.startswith('real')}
    assert real <= set(splits.subset([f'drawn{number}' for number in range(6)], 4, 0))
    call(draw_masks, f'--ROOT={drawn_root.root}', '--KIND=real,shapes,pca,walks', '--COUNT=3', '--SIZE=48',
         '--TRAIN_IMAGES=4', f'--OUT={tmp_path / "again"}')
    again = json.loads((tmp_path / 'again/masks.json').read_text())
    assert again['content'] == record['content'] and again['masks'] == record['masks']
    for options, said in ((['--KIND=moon'], 'moon must be(.|\n)*-m companions.mask2lesion.draw_masks --help'),
                          ([f'--OUT={drawn_root.root / "Mask2Lesion/lesions/Images"}'], 'of another origin'),
                          (['--KIND=elastic', f'--MASKS={folder}'], 'MASKS and OUT are one folder')):
        with pytest.raises(InputError, match=said):
            call(draw_masks, f'--ROOT={drawn_root.root}', *options)
    assert len(list(folder.glob('*.png'))) == len(there)


def test_masks_drawn_by_hand_stay_where_others_are_drawn_anew(tmp_path, monkeypatch, no_panels):
    """Also after a call that was stopped halfway."""
    options, write = [f'--OUT={tmp_path}', '--KIND=shapes', '--SIZE=48'], images.write_mask
    call(draw_masks, *options, '--COUNT=2')
    write(tmp_path / 'mine_segmentation.png', np.eye(48))

    def stopped(path, mask):
        write(path, mask)
        if '0006' in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images, 'write_mask', stopped)
        call(draw_masks, *options, '--COUNT=8')
    call(draw_masks, *options, '--COUNT=1')
    assert [path.name for path in sorted(tmp_path.glob('*.png'))] == [
        'mine_segmentation.png', 'shapes_0000_circle_segmentation.png']


def test_masks_of_the_working_folder_have_their_panel_beside_it(tmp_path, monkeypatch):
    panel = []
    monkeypatch.setattr(panels, 'grid', lambda shown, path: panel.append(path))
    (tmp_path / 'drawn').mkdir()
    monkeypatch.chdir(tmp_path / 'drawn')
    call(draw_masks, '--OUT=.', '--KIND=shapes', '--COUNT=1', '--SIZE=48')
    assert panel == [tmp_path / 'drawn_panel.png']


@pytest.mark.parametrize('kind', ['real', 'elastic', 'real,pca'])
def test_all_real_masks_that_are_bad_are_named_before_any_is_written(tmp_path, kind):
    for name in 'abc':
        grey = np.full((48, 48), 255 if name == 'b' else 100, np.uint8)
        images.write_png(tmp_path / 'masks' / f'{name}.png', grey)
    count = 0 if kind == 'real' else 1
    with pytest.raises(InputError, match='a.png: is not a binary(.|\n)*c.png: is not a binary'):
        call(draw_masks, f'--KIND={kind}', f'--COUNT={count}', f'--MASKS={tmp_path / "masks"}',
             f'--OUT={tmp_path / "out"}')
    assert not (tmp_path / 'out').exists()


def test_every_mask_has_its_picture_and_its_place_on_the_page(drawn_root, tmp_path, no_panels):
    folder = drawn_root.root / 'Mask2Lesion/lesions'
    names = json.loads((drawn_root.root / 'Mask2Lesion/masks/masks.json').read_text())['masks']
    page = (folder / 'index.html').read_text()
    linked = re.findall(r'src="([^"]+)"', page)
    assert len(linked) == 2 * len(names) + 3 and all((folder / path).is_file() for path in linked)
    for name in names:
        picture = images.read_rgb(folder / f'Images/{name}.png')
        mask = images.read_mask(folder / f'Annotation/{name}_segmentation.png')
        assert picture.shape == (64, 64, 3) and mask.shape == (64, 64)
        given, drawn = pairs.read_combined(folder / f'pairs/{name}.png')
        np.testing.assert_array_equal(given, 255 * mask)
        np.testing.assert_array_equal(drawn, picture)
    contents = [json.loads((folder / 'lesions.json').read_text())['content']]
    for options in ([], ['--SEED=1'], ['--NOISE=False']):
        call(draw_lesions, f'--ROOT={drawn_root.root}', f'--OUT={tmp_path / "again"}', *options)
        contents.append(json.loads((tmp_path / 'again/lesions.json').read_text())['content'])
    assert contents[0] == contents[1] and len(set(contents)) == 3


def test_files_of_others_stay_where_lesions_are_drawn_anew(drawn_root, tmp_path, monkeypatch, no_panels):
    """Also after a call that was stopped halfway; none is overwritten."""
    given, out = tmp_path / 'masks', tmp_path / 'out'
    options = [f'--ROOT={drawn_root.root}', f'--MASKS={given}', f'--OUT={out}']
    for name in 'ab':
        images.write_mask(given / f'{name}.png', np.eye(48))
    call(draw_lesions, *options)
    mine = out / 'Annotation/c_segmentation.png'
    images.write_mask(mine, np.eye(32))
    before = mine.read_bytes()
    (given / 'a.png').unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images, 'write_mask', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        call(draw_lesions, *options)
    call(draw_lesions, *options)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob('*.png')) == [
        'Annotation/b_segmentation.png', 'Annotation/c_segmentation.png', 'Images/b.png', 'pairs/b.png']
    images.write_mask(given / 'c.png', np.eye(48))
    with pytest.raises(InputError, match='c_segmentation.png: is of another origin'):
        call(draw_lesions, *options)
    with pytest.raises(InputError, match='MASKS lies in OUT'):
        call(draw_lesions, options[0], f'--MASKS={out / "Annotation"}', options[2])
    assert mine.read_bytes() == before and (out / 'Images/b.png').is_file()


def test_what_cannot_be_drawn_is_said(drawn_root, tmp_path):
    at = f'--ROOT={drawn_root.root}'
    for options, said in (([f'--ROOT={tmp_path}'], 'draw_masks'),
                          ([at, '--WEIGHTS=nowhere.pth'], 'is missing'),
                          ([at, f'--OUT={drawn_root.root}'], 'of another origin')):
        with pytest.raises(InputError, match=said):
            call(draw_lesions, *options)
    folder = tmp_path / 'batch'
    folder.mkdir()
    torch.save(published('batch'), folder / 'G.pth')
    (folder / 'config.json').write_text('{"settings": {"NORM": "instance"}}')
    with pytest.raises(InputError, match='batch norm, not with instance norm'):
        call(draw_lesions, at, f'--WEIGHTS={folder / "G.pth"}', f'--OUT={tmp_path / "out"}')


def test_a_split_without_lesions_has_dashes_for_their_colours(capsys):
    pictures, lesion = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16), bool)
    eval_Mask2Lesion.show({'split': 'Validation', 'n': 2, 'adherence': {}, 'training pictures': 4,
                           'colours': judgement.colours({'drawn': pictures}, lesion),
                           'copies': {'drawn': 0, 'real': 0, 'unusually near': 0}})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['lesion', 'drawn', '-', '-', '-'] in rows and ['skin', 'drawn', *['0.0', '(0.0)'] * 3] in rows


def test_the_evaluation_counts_what_it_says(drawn_root):
    summary = json.loads((drawn_root.results / 'Mask2Lesion_Validation.json').read_text())
    data, generator = drawn_pairs(3, 48, 1), drawn_root.run('Mask2Lesion') / 'G.pth'
    paint = painter.load(generator, True, ALONE.device, 'auto')
    real = np.stack([images.resize_rgb(image, (64, 64)) for image in data.images])
    given = np.stack([pairs.squash_mask(mask, 64, 'bicubic') for mask in data.masks])
    drawn = np.stack([paint(mask, 0, number) for number, mask in enumerate(given)])
    for kind, pictures in (('drawn', drawn), ('real', real)):
        overlaps = [painter.overlap(images.otsu_mask(picture), mask > 127)
                    for picture, mask in zip(pictures, given, strict=True)]
        row = summary['adherence'][f'Otsu {kind}']
        assert [row['JA'], row['DI']] == pytest.approx(np.mean(overlaps, 0))
        assert row['ci95']['DI'][0] <= row['DI'] <= row['ci95']['DI'][1]
    assert summary['training pictures'] == 4 and 'coarse-SN drawn' not in summary['adherence']
    rows = (drawn_root.results / 'Mask2Lesion_Validation.csv').read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith('image_id,Otsu JA drawn,Otsu DI drawn,Otsu JA real')


def test_colours_and_copies_are_measured():
    lesion = np.zeros((2, 16, 16), bool)
    lesion[:, 4:12, 4:12] = True
    pictures = np.where(lesion[..., None], (0, 0, 0), (255, 255, 255)).astype(np.uint8)
    found = judgement.colours({'drawn': pictures}, lesion)
    assert found['lesion']['drawn']['mean'] == pytest.approx([0, 0, 0], abs=0.01)
    assert found['skin']['drawn']['mean'] == pytest.approx([100, 0, 0], abs=0.01)
    rng = np.random.default_rng(0)
    seen, other = (rng.integers(0, 256, (count, 32, 32, 3), np.uint8) for count in (5, 8))
    far, numbers, summary = judgement.copies(seen[[3, 1]], other, seen)
    assert far.tolist() == [0, 0] and numbers.tolist() == [3, 1]
    assert summary == {'drawn': 0, 'real': pytest.approx(100, abs=10), 'unusually near': 1}


# --- New pairs for coarse-SN


def test_extra_pairs_join_the_training_and_leave_its_start_and_its_steps(drawn_root, tmp_path, monkeypatch):
    values = settings.resolved('train_CoarseSN.py', {
        'ROOT': str(drawn_root.root), 'PRETRAINED': 'none', 'INPUT_SIZE': 16, 'CACHE_SIZE': 32, 'EPOCH': 3,
        'BATCH_SIZE': 2, 'TRAIN_IMAGES': 4, 'EXTRA_RATIO': 2.0, 'AMP': 'fp32'})
    layout = Layout(tmp_path)
    (tmp_path / 'dataset').symlink_to(drawn_root.root / 'dataset')
    (tmp_path / 'Mask2Lesion').symlink_to(drawn_root.root / 'Mask2Lesion')
    seen = []

    def network(cfg, given):
        seen.append(len(given))
        return test_training.tiny_network(), 'random weights'

    def fit(task, cfg, run, process, steps, every):
        seen.append((steps, every, len(task.stream(0, 1).dataset)))

    monkeypatch.setattr(train_CoarseSN.networks, 'coarse_for_training', network)
    monkeypatch.setattr(train_CoarseSN.trainer, 'fit', fit)
    data = splits.segmentation(layout, 'Training', 32, limit=4)
    for folder in ('', 'Mask2Lesion/lesions'):
        cfg = settings.Settings(**values | {'EXTRA_PAIRS': folder})
        train_CoarseSN.train_one(cfg, ALONE, layout, data, data)
    assert seen == [4, (6, 2, 4), 4, (6, 2, 12)]
    joined = splits.with_extra(data, layout, 'Mask2Lesion/lesions', 32, 1.5, seed=1)
    assert joined.names[:4] == data.names and len(joined.names) == len(joined.images) == 10
    assert joined.fingerprint.startswith(data.fingerprint) and joined.fingerprint != data.fingerprint
    name = joined.names[-1]
    picture = images.read_rgb(drawn_root.root / f'Mask2Lesion/lesions/Images/{name}.png')
    np.testing.assert_array_equal(joined.images[9], images.resize_rgb(picture, (32, 32)))
    assert len(splits.with_extra(data, layout, 'Mask2Lesion/lesions', 32, 0).names) == 4 + 23
    (tmp_path / 'odd/Images').mkdir(parents=True)
    (tmp_path / 'odd/Annotation').mkdir()
    images.write_png(tmp_path / 'odd/Images/a.png', np.zeros((32, 32, 3), np.uint8))
    images.write_png(tmp_path / 'odd/Annotation/b_segmentation.png', np.zeros((32, 32), np.uint8))
    with pytest.raises(InputError, match='a.png: has no mask(.|\n)*b_segmentation.png: has no picture'
                                         '(.|\n)*holds 1 pairs, 4 are asked for'):
        splits.with_extra(data, layout, 'odd', 32, 1)


# --- The experiment


def test_the_declared_generators_see_the_pairs_of_their_row_alone():
    declared = Declarations(conftest.REPOSITORY / 'experiments.toml', VALUES)
    for n in (100, 300, 600):
        arms = {arm: declared.job(f'm2l_{arm}_n{n}') for arm in ('plain', 'classical', 'drawn', 'both')}
        extra = {name: value for name, value in arms['both'].overrides if name != 'TRAIN_IMAGES'}
        assert extra == {'EXTRA_PAIRS': 'Mask2Lesion/lesions'}   # EXTRA_RATIO = 1 is the file top's
        for name in ('drawn', 'both'):
            scripts = {Path(job.script).stem: dict(job.overrides) for job in arms[name].upstream()}
            assert scripts['train_Mask2Lesion'] == {'TRAIN_IMAGES': n}
            assert scripts['draw_masks'].get('COUNT', 100) == scripts['draw_masks']['TRAIN_IMAGES'] == n
        for with_drawn, without in (('drawn', 'plain'), ('both', 'classical')):
            assert set(arms[with_drawn].overrides) - set(arms[without].overrides) == set(extra.items())
        assert len({dict(job.overrides)['TRAIN_IMAGES'] for job in arms.values()}) == 1


COMPANIONS = """
[experiment.generator]
script = 'companions/mask2lesion/train_Mask2Lesion.py'
TRAIN_IMAGES = 2
[experiment.masks]
script = 'companions/mask2lesion/draw_masks.py'
COUNT = 2
[experiment.lesions]
script = 'companions/mask2lesion/draw_lesions.py'
needs = ['generator', 'masks']
[experiment.drawn]
script = 'train_CoarseSN.py'
needs = ['lesions']
EXTRA_PAIRS = 'Mask2Lesion/lesions'
[table.x]
columns = ['DI']
rows = [{ label = 'drawn', of = 'drawn' }]
"""


def test_runs_of_companions_feed_a_training_and_are_not_repeated(tmp_path, root, calls):
    store, failed = run_table(declare(tmp_path, COMPANIONS), root, 'x')
    assert not failed and [name for _, name, _ in calls] == ['generator', 'masks', 'lesions', 'drawn',
                                                            'scores_drawn-Validation']
    for run, place, source in (('lesions', 'models/Mask2Lesion', 'generator'),
                               ('lesions', 'Mask2Lesion/masks', 'masks'),
                               ('drawn', 'Mask2Lesion/lesions', 'lesions')):
        assert (root / 'runs' / run / place).resolve() == (root / 'runs' / source / place).resolve()
    calls.clear()
    assert run_table(declare(tmp_path, COMPANIONS), root, 'x')[1] == {} and calls == []
    changed = COMPANIONS.replace('COUNT = 2', 'COUNT = 3')   # other masks: the generator stays
    assert run_table(declare(tmp_path, changed), root, 'x')[1] == {}
    assert [name for _, name, _ in calls] == ['masks-2', 'lesions-2', 'drawn-2', 'scores_drawn-Validation-2']
    job = declare(tmp_path, COMPANIONS).job('generator')
    assert RunStore(root, processes=2).command(job).startswith('python companions/mask2lesion/train_Mask2Les')
    assert 0 < costs.of_job(job, store.values(job), Layout(root)) < 100
    with pytest.raises(InputError, match='generator trains no network that could be scored'):
        declare(tmp_path, COMPANIONS.replace("of = 'drawn'", "of = 'generator'"))
