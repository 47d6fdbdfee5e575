"""Label transfer: networks and losses, ways to cut a map, data of all kinds, and the scripts in turn."""
import itertools
import json
import shutil
import sys
import weakref
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from companions import seen
from companions.label_transfer import (
    candidates,
    data,
    eval_LabelTransfer,
    generate_masks,
    healthy,
    losses,
    make_toy_data,
    maps,
    networks,
    panels,
    prepare_BraTS,
    prepare_ISIC,
    scores,
    student,
    toys,
    train_CAM,
    train_LabelTransfer,
    train_student,
    trained,
    translator,
    validation,
    volumes,
)
from dataset import pairing
from dataset.layout import Layout
from engine import checkpoints, figures, images, metrics, run_folder, trainer
from engine.errors import InputError
from engine.run_folder import Run
from mbdcnn import networks as coarse_networks
from tests import conftest, test_training
from tests.test_gan import assert_same_runs
from tests.test_training import ALONE, SETTINGS, load

no_figures = test_training.no_figures
HAS_CRF = find_spec('pydensecrf') is not None
needs_crf = pytest.mark.skipif(not HAS_CRF, reason='pydensecrf is not installed')
METHODS = maps.METHODS if HAS_CRF else tuple(name for name in maps.METHODS if 'crf' not in name)
REAL = conftest.REPOSITORY.parent / 'shared' / 'realdata'
SAMPLES = {'BraTS test': ('brats/test', 'brain'), 'BraTS val': ('brats/val', 'brain'),
           'ISIC testA': ('mlcb_isic/testA', 'skin'), 'ISIC val': ('mlcb_isic/val', 'skin')}
needs_samples = pytest.mark.skipif(not (REAL / 'brats').is_dir(), reason='the published samples are not here')


def parameters(network):
    return sum(value.numel() for value in network.parameters())


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- Networks


def test_the_original_sizes_and_shapes():
    with torch.device('meta'):
        assert parameters(networks.Generator()) == pytest.approx(11.27e6, abs=0.01e6)
    assert parameters(networks.Discriminator(54, networks.GLOBAL)) == pytest.approx(37.83e6, abs=0.01e6)
    assert parameters(networks.Discriminator(54, networks.LOCAL)) == pytest.approx(2.34e6, abs=0.01e6)
    torch.manual_seed(0)
    picture = pictures(1, 3, 256, 256)
    with torch.no_grad():
        found = networks.Generator(4)(picture)
        assert found.fake.shape == found.recon.shape == picture.shape and found.logits.shape == (1, 2)
        assert found.mask.shape == (1, 1, 256, 256) and 0 < found.mask.min() < found.mask.max() < 1
        assert found.mask.mean().item() == pytest.approx(0.5, abs=0.05)
        for layers, side in ((networks.GLOBAL, 6), (networks.LOCAL, 30)):
            patches, logits = networks.Discriminator(2, layers)(picture)
            assert patches.shape == (1, 1, side, side) and logits.shape == (1, 2)
    assert networks.UNet(4)(torch.rand(2, 3, 32, 32)).shape == (2, 2, 32, 32)


@pytest.mark.parametrize('layers', [networks.GLOBAL, 4])
def test_the_least_side_is_that_which_the_discriminator_can_read(layers):
    network, least = networks.Discriminator(2, layers), networks.least_side(layers)
    assert networks.least_side(networks.GLOBAL) == 96
    network(pictures(1, 3, least, least))
    with pytest.raises(RuntimeError):
        network(pictures(1, 3, least // 3 * 2, least // 3 * 2))


class Constant(torch.nn.Module):
    """In place of the convolution before the sigmoid: everywhere the same."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x[:, :1], self.value)


@pytest.mark.parametrize('value, idle, busy', [(-1e4, 'changed', 'kept'), (1e4, 'kept', 'changed')])
def test_the_attention_chooses_the_branch(value, idle, busy):
    """Nowhere: the picture stays, and only one branch is drawn; everywhere: only the other is."""
    torch.manual_seed(0)
    network, picture = networks.Generator(4), pictures(1, 3, 32, 32)
    network.attend = Constant(value)

    def fake_without(branch):
        before = [layer.clone() for layer in getattr(network, branch).parameters()]
        for layer in getattr(network, branch).parameters():
            layer.data.add_(0.1)
        found = network(picture)
        for layer, old in zip(getattr(network, branch).parameters(), before, strict=True):
            layer.data.copy_(old)
        return found.fake

    with torch.no_grad():
        found = network(picture)
        mixed = networks.composite(picture, found.fake, found.mask)
        assert torch.equal(mixed, picture) if value < 0 else torch.allclose(mixed, found.fake, atol=1e-6)
        assert torch.equal(fake_without(idle), found.fake) and not torch.equal(fake_without(busy), found.fake)


@pytest.mark.parametrize('batch', [1, 3])
def test_iln_lies_between_instance_and_layer_norm(batch):
    x, layer = torch.randn(batch, 5, 7, 9) * 3 + 20, networks.ILN(5)

    def normed(axes):
        variance, mean = torch.var_mean(x.double(), axes, keepdim=True)   # unbiased
        return ((x - mean) / (variance + 1e-5).sqrt()).float()

    instance, whole = normed((2, 3)), normed((1, 2, 3))
    for rho, wanted in ((1.0, instance), (0.0, whole), (0.3, 0.3 * instance + 0.7 * whole)):
        layer.rho.data.fill_(rho)
        torch.testing.assert_close(layer(x), wanted, atol=2e-5, rtol=1e-4)
    gamma, beta, ada = torch.randn(batch, 5), torch.randn(batch, 5), networks.AdaILN(5)
    wanted = gamma[..., None, None] * (0.9 * instance + 0.1 * whole) + beta[..., None, None]
    torch.testing.assert_close(ada(x, gamma, beta), wanted, atol=1e-4, rtol=1e-4)


def test_low_precision_draws_nearly_the_same():
    """Convolutions in bf16; statistics, class logits, tanh and the mask's enlargement stay float32."""
    torch.manual_seed(0)
    network, picture = networks.Generator(8), pictures(1, 3, 64, 64)
    discriminator = networks.Discriminator(4, 5)
    with torch.no_grad():
        exact, judged = network(picture), discriminator(picture)
        with torch.autocast('cpu', torch.bfloat16):
            found, again = network(picture), discriminator(picture)
    for name in ('logits', 'mask', 'fake', 'recon'):
        assert getattr(found, name).dtype == torch.float32
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), atol=0.05, rtol=0.05)
    for one, other in zip(again, judged, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_a_centred_attention_has_no_level():
    torch.manual_seed(3)
    network, picture = networks.Generator(8), pictures(1, 3, 64, 64)
    with torch.no_grad():
        plain, network.centred = network.look(picture).attention, True
        network.attend.weight.add_(1)   # raises everything
        found = network.look(picture).attention
    assert torch.logit(found).mean().abs() < 1e-5 and found.std() > plain.std()


# --- Losses and training


SIDE = 24


def small(**changes):
    """Settings of a small training."""
    return SimpleNamespace(**SETTINGS | {
        'BATCH_SIZE': 1, 'LEARNING_RATE': 2e-4, 'WEIGHT_DECAY': 2e-5, 'INPUT_SIZE': SIDE,
        'LOAD_SIZE': SIDE + 4, 'FLIPS': True, 'CONTRAST': 0.1, 'WIDTH': 4, 'D_WIDTH': 4, 'BLOCKS': 1,
        'D_LAYERS': (5, 4), 'ATTENTION': 'centred', 'KIND': 'skin', 'SEED': 0,
        'SELECT_BY': 'best-threshold',
        'ADV_WEIGHT': 1.0, 'CYCLE_WEIGHT': 10.0, 'IDENTITY_WEIGHT': 10.0, 'RECON_WEIGHT': 10.0,
        'CAM_WEIGHT': 1000.0, 'JUDGE_COMPOSITES': False} | changes)


def drawn(count, kind, diseased, side, seed=0, mask_side=maps.SIDE):
    """Toy pictures as data.Set."""
    found = [toys.draw(np.random.default_rng([seed, number]), kind, diseased, side)
             for number in range(count)]
    masks = np.stack([images.resize_mask(mask, (mask_side, mask_side)) for _, mask in found])
    return data.Set(np.stack([picture for picture, _ in found]), masks, [f'n{n}' for n in range(count)],
                    f'{kind} {diseased} {seed}')


def small_task(cfg, folder, steps_kept=2):
    """(Task, the six networks) as the script makes them."""
    made = train_LabelTransfer.build(cfg)
    a, b = (drawn(4, cfg.KIND, diseased, cfg.LOAD_SIZE) for diseased in (True, False))
    held_out = drawn(2, cfg.KIND, True, cfg.INPUT_SIZE, 1)
    kept = candidates.Candidates(folder, steps_kept)
    return train_LabelTransfer.transfer_task(
        cfg, ALONE, made, a, b, held_out, drawn(2, cfg.KIND, False, cfg.INPUT_SIZE, 1), kept), made


def test_the_logged_terms_make_the_losses_and_each_step_moves_its_networks_alone(tmp_path):
    task, made = small_task(small(), tmp_path)
    steps = task.losses(task.networks, next(iter(task.stream(0, 1))))

    def state(names):
        return [value.clone() for name in names for value in made[name].parameters()]

    for group, names, others, weights in (
            ('D', train_LabelTransfer.DISCRIMINATORS, train_LabelTransfer.GENERATORS, {'D A': 1, 'D B': 1}),
            ('G', train_LabelTransfer.GENERATORS, train_LabelTransfer.DISCRIMINATORS, {
                'G adv': 1, 'G cycle': 10, 'G identity': 10, 'G recon': 10, 'G cam': 1000})):
        name, loss, parts = next(steps)
        total = sum(weight * parts[part].item() for part, weight in weights.items())
        assert name == group and parts.keys() == weights.keys()
        assert loss.item() == pytest.approx(total, rel=1e-5)
        own, other = state(names), state(others)
        task.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        task.optimizers[name].step()
        assert all(map(torch.equal, state(others), other))
        assert not all(map(torch.equal, state(names), own))
    assert next(steps, None) is None


def test_composites_are_judged_where_that_is_asked_for(tmp_path):
    found = []
    for asked in False, True:
        task, made = small_task(small(JUDGE_COMPOSITES=asked), tmp_path)
        _, loss, _ = next(task.losses(made, next(iter(task.stream(0, 1)))))
        found.append(loss.item())
    assert found[1] > found[0] > 0   # the same pictures, networks and terms, and some more


def test_losses_are_those_of_the_description():
    """From networks that answer by constants: each term by hand."""
    a, b = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), -0.5)

    def generator(shift):
        def draw(x):
            logits = torch.tensor([[1.0, 3.0]]).repeat(len(x), 1)
            return SimpleNamespace(fake=x + shift, recon=x - 0.25, logits=logits,
                                   mask=torch.full_like(x[:, :1], 0.5))
        return draw

    def judge(x):
        return x.mean((1, 2, 3)).view(-1, 1, 1, 1), torch.zeros(len(x), 2)

    step = losses.Exchange(generator(0.1), generator(-0.2), a, b)
    found = {name: float(value) for name, value in step.generators([judge], [judge, judge]).items()}
    said = torch.tensor([1.0, 3.0])
    bce = {wanted: F.binary_cross_entropy_with_logits(said, torch.full((2,), wanted)).item()
           for wanted in (0.0, 1.0)}
    # fake b 0.6, composite 0.55; fake a -0.7, composite -0.6; what says 0 of a whole is 1 away
    assert found['adv'] == pytest.approx(2 * (0.4**2 + 0.45**2 + 2) + 1.7**2 + 1.6**2 + 2)
    assert found['cycle'] == pytest.approx(2 * 0.1) and found['identity'] == pytest.approx(0.1 + 0.2)
    assert found['recon'] == pytest.approx(0.5) and found['cam'] == pytest.approx(2 * (bce[0.0] + bce[1.0]))
    for composites, more in (False, (0, 0)), (True, (0.6**2, 0.55**2)):
        judged = step.discriminators([judge], [judge, judge], composites)
        assert judged['D A'].item() == pytest.approx(0.5**2 + 1 + 0.7**2 + more[0])
        assert judged['D B'].item() == pytest.approx(2 * (1.5**2 + 1 + 0.6**2 + more[1]))


def run_small(folder, total=6, every=2, **changes):
    cfg = small(**changes)
    task, made = small_task(cfg, folder)
    kept = train_LabelTransfer.GENERATORS
    with Run(folder, 'LabelTransfer', cfg, {}, 'random weights', ALONE, kept) as run:
        trainer.fit(task, cfg, run, ALONE, total, every)
    return made


def blank(_rows, _titles, path, *_):
    images.write_png(Path(path), np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def no_drawing(monkeypatch, no_figures):
    """Axes are slow to draw."""
    monkeypatch.setattr(figures, 'panel', blank)
    monkeypatch.setattr(figures, 'curves', lambda *given: Path(given[2]).write_bytes(b'curves'))
    monkeypatch.setattr(panels, 'curves', lambda rows, path: Path(path).write_bytes(b'curves'))


def test_a_stopped_and_resumed_training_is_the_undisturbed_one(tmp_path, monkeypatch, no_drawing):
    run_small(tmp_path / 'whole', AMP='bf16')
    asked = itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(trainer.Interrupted):
        patch.setattr(trainer, '_asked_to_stop', lambda *_: next(asked) == 3)
        run_small(tmp_path / 'parts', AMP='bf16')
    torch.manual_seed(99)
    run_small(tmp_path / 'parts', AMP='bf16')
    for folder in ('whole', 'parts'):   # the names of test_gan's networks
        for name, other in zip(train_LabelTransfer.GENERATORS, 'GD', strict=True):
            (tmp_path / folder / f'{other}.pth').symlink_to(tmp_path / folder / f'{name}.pth')
    assert_same_runs(tmp_path / 'whole', tmp_path / 'parts')
    kept = [candidates.Candidates(tmp_path / folder, 2) for folder in ('whole', 'parts')]
    assert kept[0].scores == kept[1].scores and len(kept[0].scores) == 2
    for step in kept[0].scores:
        assert kept[0].path(step).read_bytes() == kept[1].path(step).read_bytes()


def test_rho_stays_a_share_under_an_absurd_rate(tmp_path, no_drawing):
    made = run_small(tmp_path, total=2, LEARNING_RATE=3.0, AMP='fp32')
    shares = [layer.rho for name in train_LabelTransfer.GENERATORS for layer in made[name].modules()
              if isinstance(layer, (networks.ILN, networks.AdaILN))]
    assert len(shares) == 2 * (2 + 2 * 8 + 4)
    assert all(0 <= rho.min() <= rho.max() <= 1 for rho in shares) and any((rho == 1).any() for rho in shares)


def test_the_best_candidates_stay_and_earlier_steps_win_ties(tmp_path):
    kept, state = candidates.Candidates(tmp_path, 2), {'w': torch.zeros(1)}
    for step, score in ((10, 0.3), (20, 0.5), (30, float('nan')), (40, 0.3), (50, 0.6), (50, 0.6)):
        kept.note(step, score, state)
    assert candidates.Candidates(tmp_path, 2).scores == {20: 0.5, 50: 0.6}
    assert sorted(path.parent.name for path in tmp_path.rglob('*.pth')) == ['0000020', '0000050']
    (kept.path(20).parent / 'alphas.json').write_text('{}')   # of masks by this checkpoint
    kept.clear()
    assert not list(tmp_path.rglob('*.pth')) and candidates.Candidates(tmp_path, 2).scores == {}


# --- From map to mask


def blob(side=maps.SIDE, centre=(0.5, 0.5), radius=0.2):
    y, x = np.mgrid[:side, :side] / side
    return np.hypot(y - centre[0], x - centre[1]) < radius


def test_normalisation_undoes_offset_and_scale_within_what_is_shown():
    shown = blob(64, radius=0.4)
    plain = np.where(blob(64, radius=0.15), 0.9, 0.1).astype(np.float32) * shown
    for other in (plain, 0.3 + 0.2 * plain):
        found = maps.normalised(other * shown, shown)
        np.testing.assert_allclose(found, maps.normalised(plain, shown), atol=1e-5)
        assert found[~shown].max() == 0 and found.max() == 1
    assert not maps.normalised(plain, np.zeros_like(shown)).any()


def test_watershed_takes_every_lesion():
    """The original's fifth and later labels kept grey values."""
    centres = [(0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8), (0.5, 0.5)]
    truth = np.any([blob(centre=centre, radius=0.09) for centre in centres], 0)
    found = maps.watershed(truth.astype(np.float32))
    assert all(found[int(256 * y), int(256 * x)] for y, x in centres)
    assert metrics.segmentation_scores(metrics.confusion(found, truth))[0, 0] > 0.8
    assert not maps.watershed(np.zeros((256, 256), np.float32)).all()   # nothing firm: no crash


def test_black_is_never_lesion_of_a_brain_and_may_be_on_skin():
    picture = np.zeros((maps.SIDE, maps.SIDE, 3), np.uint8)
    picture[blob(radius=0.3)] = 120
    attention = np.ones((16, 16), np.float32)
    cutters = {kind: maps.Cutter(attention, picture, kind) for kind in data.KINDS}
    np.testing.assert_array_equal(cutters['brain'].mask('threshold'), picture.any(2))
    assert cutters['skin'].mask('threshold').all()


@needs_crf
def test_the_crf_follows_the_picture_and_may_empty_the_corners():
    picture = np.full((maps.SIDE, maps.SIDE, 3), 220, np.uint8)
    truth = blob(radius=0.25)
    picture[truth] = (90, 60, 50)
    picture = np.clip(picture + np.random.default_rng(0).normal(0, 5, picture.shape), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:16, :16] / 16
    rough = maps.enlarged(np.exp(-np.hypot(y - 0.43, x - 0.57)**2 / 0.1))   # off its place
    found = maps.Cutter(rough, picture, 'skin').mask('crf', 2)
    before, after = scores.overlap([rough > 0.5, found], [truth] * 2)[:, 0]
    assert after > 0.95 > 0.8 > before
    whole = maps.Cutter(np.ones((8, 8)), picture, 'skin', empty_corners=True).mask('crf')
    assert not whole[0, :80].any() and not whole[-1, -79:].any() and whole[128].all() and whole[0, 100]


def spoilt(truth, seed=0):
    """A map (256, 256) as a training may give it, of a mask (256, 256): coarse, too large, noisy."""
    coarse = F.interpolate(torch.from_numpy(truth)[None, None].float(), size=64, mode='area')
    larger = F.max_pool2d(coarse, 3, 1, 1)[0, 0].numpy()
    noise = np.random.default_rng(seed).normal(0, 0.1, larger.shape)
    return maps.enlarged((larger + noise).clip(0, 1))


@needs_crf
@pytest.mark.parametrize('kind', data.KINDS)
def test_the_crf_mends_maps_that_are_too_large_and_noisy(kind):
    picture, mask = toys.draw(np.random.default_rng(1), kind, True, maps.SIDE)
    rough = spoilt(mask > 0)
    found = maps.Cutter(rough, picture, kind).mask('crf', 3)
    before, after = scores.overlap([rough > 0.5, found], [mask > 0] * 2)[:, 0]
    assert after > 0.93 and after > before + 0.09


def test_without_the_package_the_crf_says_what_to_install(monkeypatch):
    monkeypatch.setattr(maps.cli.importlib.util, 'find_spec', lambda _: None)
    maps.require(['threshold', 'normalised-watershed'])
    with pytest.raises(InputError, match='pydensecrf(.|\n)*pip install -r companions/label_transfer/req'):
        maps.require(['crf'])


def test_areas_and_the_best_threshold_are_those_of_the_pixels():
    truth = np.stack([blob(32), np.zeros((32, 32), bool)])
    found = np.where(truth, 0.4, 0.2) + np.random.default_rng(0).uniform(0, 0.1, truth.shape)
    areas = scores.areas(found, truth)
    assert areas[0] == 1 and np.isnan(areas[1])
    rows, threshold = scores.best_threshold(found[:1], truth[:1])
    assert rows[0] > 0.99 and 0.3 <= threshold <= 0.4
    by_hand = [scores.overlap(found[:1] >= level, truth[:1])[0, 0] for level in np.unique(found)]
    assert rows[0] <= max(by_hand) and rows[0] == pytest.approx(max(by_hand), abs=0.03)


# --- The published samples


def sample(name):
    """[(picture, mask (H, W) bool)] of one of SAMPLES, and its kind."""
    folder, kind = SAMPLES[name]
    pairs = pairing.pair_up(REAL / folder / 'images', REAL / folder / 'labels')
    return [(images.read_rgb(picture), images.read_mask(mask, data.GREY) > 0)
            for _, picture, mask in pairs], kind


def mean_overlap(found, pairs):
    return scores.overlap(found, [truth for _, truth in pairs])[:, 0].mean()


@needs_samples
@pytest.mark.parametrize('name, wanted, small', [('BraTS test', 0.911, 0.865), ('BraTS val', 0.890, 0.843),
                                                 ('ISIC testA', 0.973, 0.963), ('ISIC val', 0.974, 0.964)])
def test_watershed_of_perfect_maps_of_the_samples(name, wanted, small):
    """Up to 1.9 points beside what was measured of the original on BraTS, see companions/README.md."""
    pairs, kind = sample(name)
    near = 0.02 if kind == 'brain' else 0.01
    whole = [torch.from_numpy(truth)[None, None].float() for _, truth in pairs]
    perfect = [F.interpolate(truth, size=side, mode='area')[0, 0].numpy()
               for side in (maps.SIDE, 64) for truth in whole]
    found = [maps.watershed(maps.enlarged(attention)) for attention in perfect]
    assert mean_overlap(found[:len(pairs)], pairs) == pytest.approx(wanted, abs=near)
    assert mean_overlap(found[len(pairs):], pairs) == pytest.approx(small, abs=near)


@needs_samples
@needs_crf
@pytest.mark.parametrize('name, alpha, wanted, rough, mended', [('BraTS test', 3, 0.888, 0.652, 0.871),
                                                                ('ISIC testA', 5, 0.968, 0.860, 0.914)])
def test_the_crf_of_area_averaged_and_of_spoilt_maps_of_the_samples(name, alpha, wanted, rough, mended):
    pairs, found = sample(name)[0], {'averaged': [], 'spoilt': [], 'mended': []}
    for number, (picture, truth) in enumerate(pairs):
        crf, bad = maps.Crf(picture), spoilt(truth, number)
        whole = torch.from_numpy(truth)[None, None].float()
        reduced = F.interpolate(whole, size=64, mode='area')[0, 0].numpy()
        found['spoilt'].append(bad > 0.5)
        for what, attention, power in ('averaged', maps.enlarged(reduced), alpha), ('mended', bad, 2):
            found[what].append(maps.without_corners(crf(attention, power)) > 0.5)
    for what, score in ('averaged', wanted), ('spoilt', rough), ('mended', mended):
        assert mean_overlap(found[what], pairs) == pytest.approx(score, abs=0.02)


@needs_samples
@pytest.mark.parametrize('name, wanted, share', [('BraTS test', 0.653, 0.032), ('BraTS val', 0.401, 0.024),
                                                 ('ISIC testA', 0.717, 0.258), ('ISIC val', 0.687, 0.276)])
def test_trivial_baselines_of_the_samples(name, wanted, share):
    pairs, kind = sample(name)
    otsu = [images.otsu_mask(picture, kind == 'brain', maps.inside(picture, kind)) for picture, _ in pairs]
    assert mean_overlap(otsu, pairs) == pytest.approx(wanted, abs=0.005)
    truths = [truth for _, truth in pairs]
    assert scores.overlap(truths, truths).mean() == 1
    everything = [np.ones_like(truth) for truth in truths]
    assert mean_overlap(everything, pairs) == pytest.approx(share, abs=0.001)


@needs_samples
def test_the_published_folders_are_read_under_both_names(tmp_path):
    for name in ('test', 'testA'):
        root = tmp_path / name
        (root / 'data').mkdir(parents=True)
        (root / 'data' / name).symlink_to(REAL / 'brats/test')
        assert len(data.Source(Layout(root), 'data').pairs('Testing')) == 8


# --- Data


def test_other_names_of_folders_and_missing_labels_are_said(tmp_path):
    layout, mask = Layout(tmp_path), np.eye(32, dtype=np.uint8)
    for part in ('563_A_weak', '563_B_weak', 'test/images', 'val/images'):
        images.write_png(tmp_path / 'data' / part / 'one.nii_95.png', np.zeros((32, 32, 3), np.uint8))
    images.write_png(tmp_path / 'data/test/labels/one.nii_95_segmentation.png', 100 * mask + 60 * (1 - mask))
    source = data.Source(layout, 'data')
    paths = *source.diseased(), *source.healthy()
    assert [path.parent.name for path in paths] == ['563_A_weak', '563_B_weak']
    found = data.load_pairs(layout, 'x', source.pairs('Testing'), 16, 32)
    assert found.images.shape == (1, 16, 16, 3) and not found.masks.any()   # 100 is not above 127
    (tmp_path / 'data/valB').mkdir()   # emptied
    assert source.held_out_healthy() == source.healthy()
    for name in 'two', 'two_superpixels':   # as the challenge has them beside its pictures
        images.write_png(tmp_path / f'data/testB/{name}.png', np.zeros((32, 32, 3), np.uint8))
    assert [path.name for path in source.held_out_healthy()] == ['two.png']
    assert source.has('Validation') and not data.Source(layout, 'elsewhere').has('Validation')
    with pytest.raises(InputError, match='labels: is not a folder'):
        source.pairs('Validation')
    images.write_mask(tmp_path / 'data/val/labels/other_segmentation.png', mask)
    with pytest.raises(InputError, match='(?s)one.nii_95.png: has no mask.*other_segmentation.png: has no p'):
        source.pairs('Validation')
    images.write_png(tmp_path / 'data/563_A_weak/more/one.nii_95.png', np.zeros((32, 32, 3), np.uint8))
    assert len(source.diseased()) == 2   # a training writes no masks
    with pytest.raises(InputError, match='A_weak/one.nii_95.png: would have the same.*more/one.nii_95.png'):
        source.pairs('Training')
    with pytest.raises(InputError, match='trainA or [*]_A_weak: is missing(.|\n)*--A=diseased'):
        data.Source(layout, 'nothing').diseased()
    with pytest.raises(InputError, match='nowhere: is missing'):
        data.Source(layout, 'data', a='nowhere').diseased()


@pytest.mark.skipif(find_spec('nibabel') is None, reason='nibabel is not installed')
def test_volumes_become_the_published_layout(tmp_path, capsys):
    import nibabel
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, count) for count in (40, 36, 6)), indexing='ij'))
    brain = (place[0]**2 + place[1]**2) < 0.6
    for number in range(6):
        volume = np.where(brain, rng.uniform(300, 600, brain.shape), 0)
        labels = np.zeros(brain.shape, np.int16)
        labels[14:22, 14:22, :3] = 2
        volume[labels > 0] = 900 + 100 * number
        for what, array in (('flair', volume.astype(np.float32)), ('seg', labels)):
            path = tmp_path / 'in' / f'case{number}' / f'case{number}_{what}.nii.gz'
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    at = f'--ROOT={tmp_path}', '--SLICES=1,4', '--SIZE=36'
    options = *at, f'--IN={tmp_path / "in"}', '--VALIDATION_SHARE=0.2', '--TESTING_SHARE=0.2'
    call(prepare_BraTS, *options)
    out = tmp_path / 'LabelTransfer/BraTS'
    counts = {part: len(list((out / part).rglob('*_flair_*.png'))) for part in
              ('trainA', 'trainB', 'val/images', 'val/labels', 'valB', 'testA/images', 'testA/labels',
               'testB')}
    assert counts == {'trainA': 4, 'trainB': 4, 'val/images': 1, 'val/labels': 1, 'valB': 1,
                      'testA/images': 1, 'testA/labels': 1, 'testB': 1}
    written = {path: path.stat().st_mtime_ns for path in out.rglob('*.png')}
    call(prepare_BraTS, *options)
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*.png')} == written   # all was done
    watched, = data.Source(Layout(tmp_path), 'LabelTransfer/BraTS').held_out_healthy()
    assert watched.parent.name == 'valB'   # the test's stay unseen
    (name, path, mask), = data.Source(Layout(tmp_path), 'LabelTransfer/BraTS').pairs('Testing')
    picture, truth = images.read_rgb(path), images.read_mask(mask) > 0
    assert picture[truth].min() == 255 and truth.sum() == 64   # the tumour is the brightest percent
    assert (picture.any(2) == np.rot90(brain[2:38, :, 1])).mean() > 0.97 and not picture[0, 0].any()
    held = {path.stem.split('_')[0] for part in ('val', 'testA')
            for path in (out / part / 'images').iterdir()}
    assert not held & {path.stem.split('_')[0] for path in (out / 'trainA').iterdir()}
    (tmp_path / 'in/case0/case0_seg.nii.gz').unlink()
    (tmp_path / 'in/case1/case1_flair.nii.gz').rename(tmp_path / 'in/other_flair.nii.gz')
    with pytest.raises(InputError, match='case0 has no case0_seg(.|\n)*case1 has no(.|\n)*other has no'):
        call(prepare_BraTS, *options)
    (tmp_path / 'bad').mkdir()
    for number, what in itertools.product(range(3), ('flair', 'seg')):
        (tmp_path / f'bad/case{number}_{what}.nii').write_bytes(b'no volume')
    with pytest.raises(InputError, match='(?s)case0_flair.nii: cannot be r.*case2_flair.nii: cannot be r'):
        call(prepare_BraTS, *at, f'--IN={tmp_path / "bad"}', '--VALIDATION_SHARE=0.4', '--TESTING_SHARE=0.4')


def test_copies_of_a_case_of_two_years_are_in_one_part():
    cfg = SimpleNamespace(SEED=3, VALIDATION_SHARE=0.3, TESTING_SHARE=0.3)
    old, new = ([f'{year}_2013_{number}_1' for number in range(10)] for year in ('Brats18', 'BraTS19'))
    both, alone = prepare_BraTS.parts_of(sorted(old + new), cfg), prepare_BraTS.parts_of(old, cfg)
    assert [both[name] for name in old] == [both[name] for name in new] == list(alone.values())
    assert ' '.join(alone.values()) == 'train test train test val test val train val train'   # as ever


def skin_root(folder):
    """A root with stage 1's list of eight pictures of 160 px: lesions in the middle, some corners spoilt."""
    layout, rng, lines = Layout(folder), np.random.default_rng(0), []
    for number in range(8):
        picture, mask = toys.draw(rng, 'skin', True, 160)
        picture = images.resize_rgb(images.resize_rgb(picture, (40, 40)), (160, 160))   # toy noise is no skin
        if number == 1:   # border in every corner
            y, x = np.mgrid[:160, :160] - 79.5
            picture[np.hypot(y, x) > 80] = 5
        if number == 2:
            picture[:, ::12] = 40   # hairs
        if number == 3:
            mask[:] = 1
        lines.append(f'Images/p{number}.png Annotation/p{number}_segmentation.png')
        images.write_png(layout.segmentation('Training') / f'Images/p{number}.png', picture)
        images.write_mask(layout.segmentation('Training') / f'Annotation/p{number}_segmentation.png', mask)
    layout.lists.mkdir(parents=True)
    layout.segmentation_list('Training').write_text('\n'.join(lines) + '\n')
    return layout


def test_healthy_patches_are_skin_alone(tmp_path, no_drawing):
    layout = skin_root(tmp_path)
    at = f'--ROOT={tmp_path}'
    call(prepare_ISIC, at, '--COUNT=0', '--DISEASED=0', '--SIZE=64')
    folder = tmp_path / 'LabelTransfer'
    assert sorted(path.stem for path in (folder / 'healthy').glob('*.png')) == [
        f'p{number}_health' for number in (0, 4, 5, 6, 7)]
    assert sorted(path.stem for path in (folder / 'diseased').glob('*.png')) == [
        f'p{number}' for number in (0, 2, 3, 4, 5, 6, 7)]
    assert all(not healthy.refusal(images.read_rgb(path)) for path in (folder / 'healthy').glob('*.png'))
    before = {path.name: path.read_bytes() for path in (folder / 'healthy').glob('*.png')}
    call(prepare_ISIC, at, '--COUNT=2', '--DISEASED=2', '--SIZE=64')   # the first two of the same
    after = {path.name: path.read_bytes() for path in (folder / 'healthy').glob('*.png')}
    assert len(after) == 2 and after.items() <= before.items()
    with pytest.raises(InputError, match='5 patches of 8 pictures, 9 are asked for(.|\n)*--COUNT=5'):
        call(prepare_ISIC, at, '--COUNT=9', '--DISEASED=2')
    (tmp_path / 'extraction.json').write_text('{}')   # of whatever lies beside it
    images.write_png(tmp_path / 'other/mine.png', np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InputError, match='mine.png(.|\n)*another --OUT'):
        call(make_toy_data, at, f'--OUT={tmp_path / "other"}')
    assert data.Source(layout).healthy()[0].name in after


def test_pictures_that_others_put_into_a_made_folder_stay_and_are_named(tmp_path):
    out, own = tmp_path / 'LabelTransfer/brain', [tmp_path / f'LabelTransfer/brain/{place}' for place in (
        'trainB/mine.png', 'val/images/mine.jpg')]
    options = f'--ROOT={tmp_path}', '--SIZE=24', '--HELD_OUT_IMAGES=1', '--HEALTHY_TEST_IMAGES=1'
    call(make_toy_data, *options, '--TRAIN_IMAGES=3')
    for path in own:
        path.write_bytes((out / 'trainB/trainB_000.png').read_bytes())
    for count in 3, 2:   # the same, and under another head
        with pytest.raises(InputError) as said:
            call(make_toy_data, *options, f'--TRAIN_IMAGES={count}')
        assert said.value.faults == [f'{path}: is not of this script' for path in own]
        assert len(list(out.rglob('*.png'))) == 3 + 3 + 2 + 2 + 1 + 1
    for path in own:
        path.unlink()

    def killed(path, pixels):
        images.write_png(path, pixels)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_toy_data.images, 'write_mask', killed)
        call(make_toy_data, *options, '--TRAIN_IMAGES=2')
    call(make_toy_data, *options, '--TRAIN_IMAGES=2')   # what the killed one left is known
    assert len(list(out.rglob('*.png'))) == 2 + 2 + 2 + 2 + 1


@pytest.mark.parametrize('spoil, said', [
    (lambda patch: patch, ''), (lambda patch: patch * 0.2, 'border'),
    (lambda patch: patch * np.linspace(0.7, 1, 96)[:, None], 'shade'),
    (lambda patch: np.where((np.arange(96) % 24 < 2)[:, None], patch - 50, patch), 'hair'),
    (lambda patch: np.where((np.arange(96) % 24 < 2)[:, None], patch + 40, patch), 'marks'),
    (lambda patch: np.where((np.arange(96) < 20)[:, None], (110, 150, 200), patch), 'colour')])
def test_what_is_no_skin_is_refused(spoil, said):
    patch = np.full((96, 96, 3), (205, 165, 150)) + np.random.default_rng(0).normal(0, 2, (96, 96, 1))
    assert healthy.refusal(np.clip(spoil(patch), 0, 255).astype(np.uint8)) == said


# --- The scripts, one after the other


def call(script, *arguments):
    """What `python -m companions.label_transfer.<script>` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script.__file__, *arguments])
        script.main()


TINY = ('--WIDTH=4', '--INPUT_SIZE=48', '--LOAD_SIZE=48', '--VALIDATE_EVERY=3')
NETWORK = (*TINY, '--D_WIDTH=4', '--D_LAYERS=5,4', '--BLOCKS=1', '--LEARNING_RATE=2e-3')
STUDENT = ('--ROUNDS=2', '--STEPS=4', '--VALIDATE_EVERY=2', '--WIDTH=4', '--INPUT_SIZE=48',
           '--CACHE_SIZE=48', '--METHOD=normalised-watershed', '--DECAY=0.5')
METHOD_LIST = f'--METHODS={",".join(METHODS)}'


class Counted(maps.Cutter):
    """Knows how many there were at once."""

    alive, most = weakref.WeakSet(), 0

    def __init__(self, *given):
        super().__init__(*given)
        self.alive.add(self)
        Counted.most = max(self.most, len(self.alive))


@pytest.fixture(scope='module')
def trained_root(tmp_path_factory):
    """A root in which a small generator, a plain classifier and both students are trained and scored."""
    root = tmp_path_factory.mktemp('label_transfer')
    at, of = f'--ROOT={root}', ('--DATA=LabelTransfer/skin', '--KIND=skin')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, 'panel', blank)
        patch.setattr(maps, 'ALPHAS', range(1, 3))   # each costs a CRF a picture
        patch.setattr(maps, 'Cutter', Counted)
        patch.setattr(figures, 'curves', lambda *given: Path(given[2]).write_bytes(b'curves'))
        patch.setattr(panels, 'curves', lambda rows, path: Path(path).write_bytes(b'curves'))
        call(make_toy_data, at, '--KIND=skin', '--SIZE=48', '--TRAIN_IMAGES=6', '--HELD_OUT_IMAGES=3',
             '--HEALTHY_TEST_IMAGES=3')
        call(train_LabelTransfer, at, *of, *NETWORK, '--STEPS=9', '--KEEP=2')
        call(train_CAM, at, *of, *TINY, '--STEPS=3')
        call(generate_masks, at, '--SPLIT=Training', METHOD_LIST)
        for ema in (False, True):
            call(train_student, at, *STUDENT, f'--EMA={ema}')
        call(generate_masks, at, METHOD_LIST)
        call(eval_LabelTransfer, at, '--SPLIT=Testing', METHOD_LIST, '--ORACLE=True')
    return Layout(root)


def test_validation_masks_choose_the_checkpoint(trained_root):
    folder = trained_root.run('LabelTransfer')
    rows = run_folder.read_rows(folder / 'metrics.jsonl')
    best = max(rows, key=lambda row: row['JA'])
    config = json.loads((folder / 'config.json').read_text())
    assert config['finished'] == {'step': 9, 'best': best['JA'], 'best_step': best['step']}
    kept = candidates.Candidates(folder, 2)
    assert kept.scores == {row['step']: row['JA'] for row in
                           sorted(rows, key=lambda row: (-row['JA'], row['step']))[:2]}
    same = load(folder, 'A2B.pth'), checkpoints.load(kept.path(best['step']), '')
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert {'AUC', 'best-threshold JA', 'JA at 0.5', 'CAM accuracy', 'G cam', 'G adv', 'G cycle',
            'G identity', 'G recon', 'D A', 'D B'} <= rows[0].keys()
    with pytest.raises(InputError, match='CAM_WEIGHT'):   # goes on as it began
        call(train_LabelTransfer, f'--ROOT={trained_root.root}', '--DATA=LabelTransfer/skin', *NETWORK,
             '--STEPS=12', '--KEEP=2', '--CAM_WEIGHT=5')


def test_masks_lie_at_their_own_size_and_say_what_drew_them(trained_root, tmp_path, capsys):
    folder = trained_root.root / 'LabelTransfer/masks/Testing'
    source = data.Source(trained_root, 'LabelTransfer/skin')
    names = [name for name, _, _ in source.pairs('Testing')]
    assert len(names) == 3
    for method in METHODS:
        for name in names:
            path = folder / method / f'{name}_segmentation.png'
            assert images.read_mask(path).shape == (48, 48)
    look = translator.load(trained_root.run('LabelTransfer') / 'A2B.pth', ALONE.device, 'auto')
    name, picture, _ = source.pairs('Testing')[0]
    picture = images.read_rgb(picture)
    cutter = maps.Cutter(look.look(picture)[0], maps.at_side(picture), 'skin')
    np.testing.assert_array_equal(
        images.read_mask(folder / f'normalised-threshold/{name}_segmentation.png') > 0,
        maps.at_size(cutter.mask('normalised-threshold'), (48, 48)))
    path = folder / 'map' / f'{name}.png'
    before = path.stat().st_mtime_ns
    call(generate_masks, f'--ROOT={trained_root.root}', METHOD_LIST)   # nothing changed: nothing is redone
    assert path.stat().st_mtime_ns == before
    masks = {path: path.stat().st_mtime_ns for path in folder.rglob('*.png')}
    call(generate_masks, f'--ROOT={trained_root.root}', '--METHODS=threshold', '--EMPTY_CORNERS=True')
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*.png')} == masks   # other methods' stay
    images.write_mask(tmp_path / 'threshold' / 'old.png', np.zeros((8, 8)))   # as earlier versions left it
    (tmp_path / 'extraction.json').write_text('{"made": {"threshold/old.png": ["", ""]}}')
    call(generate_masks, f'--ROOT={trained_root.root}', '--METHODS=threshold', f'--OUT={tmp_path}')
    assert {path.name for path in (tmp_path / 'threshold').glob('*.png')} == {
        f'{name}_segmentation.png' for name in names}
    of_other = tmp_path / 'threshold/extraction.json'   # a generator that was trained anew since
    of_other.write_text(json.dumps(json.loads(of_other.read_text()) | {'weights': 'older'}))
    assert 'another generator' not in capsys.readouterr().out
    call(generate_masks, f'--ROOT={trained_root.root}', '--METHODS=watershed', f'--OUT={tmp_path}')
    assert 'masks of another generator are those in threshold; --METHODS=thr' in capsys.readouterr().out
    with pytest.raises(InputError, match='moon must be of(.|\n)*ALPHA=9'):
        call(generate_masks, f'--ROOT={trained_root.root}', '--METHODS=moon', '--ALPHA=9')


def test_the_table_holds_what_was_scored_and_marks_the_oracle(trained_root):
    summary = json.loads((trained_root.results / 'LabelTransfer_Testing.json').read_text())
    rows, source = summary['methods'], data.Source(trained_root, 'LabelTransfer/skin')
    folder = trained_root.root / 'LabelTransfer/masks/Testing'
    pairs = source.pairs('Testing')
    truths = [images.read_mask(mask) > 0 for _, _, mask in pairs]
    for method in METHODS:
        found = [images.read_mask(folder / method / f'{name}_segmentation.png') > 0
                 for name, _, _ in pairs]
        wanted = scores.overlap(found, truths).mean(0)
        assert [rows[method][name] for name in metrics.SEGMENTATION] == pytest.approx(wanted.tolist())
        assert rows[method]['chosen'].startswith('by validation masks')
        words = rows[f'oracle: {method}']['chosen']
        assert words.startswith('by the masks of Testing itself, of 2 checkpoints')
        low, high = rows[method]['ci95']['JA']
        assert low <= rows[method]['JA'] <= high
    squares = [maps.at_side(images.read_rgb(path)) for _, path, _ in pairs]
    otsu = [maps.at_size(images.otsu_mask(square), (48, 48)) for square in squares]
    assert rows['Otsu']['JA'] == pytest.approx(scores.overlap(otsu, truths)[:, 0].mean())
    assert {'CAM', 'student', 'student, redrawn by its average'} <= rows.keys()
    for label, run in ('student', 'Student'), ('student, redrawn by its average', 'StudentEMA'):
        folder = trained_root.results / f'LabelTransfer{run}_Testing_masks'
        found = [images.read_mask(folder / f'{name}_segmentation.png') > 0 for name, _, _ in pairs]
        assert rows[label]['JA'] == pytest.approx(scores.overlap(found, truths)[:, 0].mean())
    assert ('CAM + CRF' in rows) == HAS_CRF and not summary['chosen on the same pictures']
    assert summary['maps'].keys() == {'CAM', 'attention'} and 0 <= summary['maps']['attention']['AUC'] <= 1
    lines = (trained_root.results / 'LabelTransfer_Testing.csv').read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith('image_id,Otsu JA')
    kept = candidates.Candidates(trained_root.run('LabelTransfer'), 0)
    assert len(kept.scores) == 2   # neither CRF nor oracle removes checkpoints
    assert Counted.most == 2   # each has a CRF of 11 MB: the present picture's and the one before it


def test_alpha_is_that_of_the_best_validation_masks(trained_root, monkeypatch):
    held_out = drawn(2, 'skin', True, 48, 5)
    asked = []

    class Cutter:
        def __init__(self, *_):
            self.truth = held_out.masks[len(asked) // 8] > 0

        def mask(self, method, alpha):
            asked.append(alpha)
            return self.truth & (np.arange(maps.SIDE) < 128 + 30 * min(alpha, 8 - alpha))

    monkeypatch.setattr(maps, 'Cutter', Cutter)
    found = validation.chosen_alphas(lambda _: (None, 0), held_out, 'skin', ['threshold', 'normalised-crf'])
    assert found == {'normalised-crf': (4, 1.0)} and asked == 2 * list(range(1, 9))


def test_alpha_is_chosen_on_pictures_as_they_are_scored_and_kept_beside_the_weights(
        trained_root, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(validation, 'chosen_alphas',
                        lambda *given: asked.append(given[1]) or {'crf': (3, 0.5)})
    for name in 'A2B.pth', 'config.json':
        (tmp_path / name).write_bytes((trained_root.run('LabelTransfer') / name).read_bytes())
    for _ in range(2):
        teacher = trained.load(trained_root, ALONE, 'auto', tmp_path / 'A2B.pth')
        assert teacher.alphas(['crf', 'threshold'], False) == {'crf': 3}
    held_out, = asked   # once
    for picture, (_, path, _) in zip(held_out.images, teacher.pairs('Validation'), strict=True):
        np.testing.assert_array_equal(picture, maps.at_side(images.read_rgb(path)))
    assert json.loads((tmp_path / 'alphas.json').read_text())['facts']['weights'] == teacher.fingerprint
    assert len(list(trained_root.cache.glob('LabelTransfer_Validation-*.npy'))) == 1   # the training's, too


def test_students_learn_the_teachers_masks_and_their_average_redraws_them(trained_root, capsys):
    plain = json.loads((trained_root.run('LabelTransferStudent') / 'config.json').read_text())
    folder = trained_root.run('LabelTransferStudentEMA')
    rounds = [json.loads((folder / f'round{number}/config.json').read_text()) for number in (1, 2)]
    assert plain['inputs']['masks'] == rounds[0]['inputs']['masks'] != rounds[1]['inputs']['masks']
    assert [one['finished']['step'] for one in (plain, *rounds)] == [4, 2, 2]
    average, network = (load(folder / 'round2', f'{name}.pth') for name in ('EMA', 'student'))
    assert average.keys() == network.keys()
    assert any(not torch.equal(average[name], network[name]) for name in average)
    capsys.readouterr()
    call(train_student, f'--ROOT={trained_root.root}', *STUDENT, '--EMA=True')
    assert capsys.readouterr().out.count('already trained') == 2   # the redrawn masks are the same again


def test_masks_of_another_teacher_or_picture_are_not_learnt(trained_root, tmp_path, monkeypatch):
    teacher = trained.load(trained_root, ALONE, 'auto')
    (first, path, _), (second, other, _), *rest = teacher.pairs('Training')
    for layout, weights in (trained_root, 'older'), (Layout(tmp_path), teacher.fingerprint):
        with pytest.raises(InputError, match='crf: holds no masks as(.|\n)*--SPLIT=Training --METHODS=crf'):
            train_student.teacher_masks(layout, [(first, path, None)], 'crf', 16, weights)
    pairs = [(first, path, None), (second, path, None), ('new', other, None), *rest]
    with pytest.raises(InputError) as said:
        train_student.teacher_masks(trained_root, pairs, 'threshold', 16, teacher.fingerprint)
    assert [Path(fault).name for fault in said.value.faults] == [
        f'{second}_segmentation.png: is not as it was drawn of the present picture',
        'new_segmentation.png: is missing']
    old = tmp_path / 'LabelTransfer/masks/Training'   # as earlier versions recorded them
    shutil.copytree(trained_root.root / 'LabelTransfer/masks/Training/threshold', old / 'threshold')
    record = json.loads((old / 'threshold/extraction.json').read_text())
    (old / 'threshold/extraction.json').unlink()
    record['made'] = {f'threshold/{name}': entry for name, entry in record['made'].items()}
    (old / 'extraction.json').write_text(json.dumps(record))
    masks = train_student.teacher_masks(Layout(tmp_path), teacher.pairs('Training'), 'threshold', 16,
                                        teacher.fingerprint)
    assert masks.shape == (6, 16, 16)
    monkeypatch.setattr(train_student.maps, 'VERSION', train_student.maps.VERSION + 1)
    with pytest.raises(InputError, match='threshold: holds no masks as'):
        train_student.teacher_masks(trained_root, pairs[:1], 'threshold', 16, teacher.fingerprint)


def test_rows_are_of_the_evaluated_generator_alone(trained_root, tmp_path, capsys, monkeypatch):
    layout, table = Layout(tmp_path), SimpleNamespace(
        pairs=[('a', None, None)], cutters=lambda *_: [], add=lambda _, chosen: rows.extend(chosen),
        add_soft=lambda *_: None)
    (tmp_path / 'models').mkdir()
    for name in 'LabelTransferCAM', 'LabelTransferStudent':
        layout.run(name).symlink_to(trained_root.run(name))
    rounds = layout.run('LabelTransferStudentEMA')
    shutil.copytree(trained_root.run(rounds.name), rounds)
    shutil.copytree(rounds / 'round2', rounds / 'round3')   # of three rounds, a training before
    old, last, first = (rounds / f'round{number}/config.json' for number in (3, 2, 1))
    old.write_text(old.read_text().replace('"ROUNDS": 2', '"ROUNDS": 3'))
    begun = first.read_text()
    first.write_text(begun.replace('"RESUME": true', '"RESUME": false'))   # which may change between rounds
    assert eval_LabelTransfer.last_round(rounds) == rounds / 'round2/EMA.pth'
    teacher, cfg = trained.load(trained_root, ALONE, 'auto'), SimpleNamespace(
        AMP='auto', SPLIT='Testing', WEIGHTS='', METHODS=(), SEEN=False)
    stale, own = (layout.results / f'LabelTransferStudent_Testing_masks/{name}_segmentation.png'
                  for name in ('a', 'mine'))
    for path in stale, own:
        images.write_mask(path, np.ones((4, 4)))
    for fingerprint, weights, wanted in ((teacher.fingerprint, '', 2), ('other', 'B2A.pth', 0),
                                         ('other', '', 0)):
        assert stale.is_file()
        rows, cfg.WEIGHTS = [], weights
        eval_LabelTransfer.add_students(table, layout, replace(teacher, fingerprint=fingerprint), ALONE, cfg)
        assert len(rows) == wanted == 2 - capsys.readouterr().out.count('learnt from another generator')
    assert own.is_file() and not stale.exists()   # where the generator is the root's
    for path in first, last:
        path.write_text(path.read_text().replace('"teacher"', '"else"'))   # of an earlier version
    eval_LabelTransfer.add_students(table, layout, teacher, ALONE, cfg)
    assert rows == ['student'] and 'does not say from which generator' in capsys.readouterr().out
    rows.clear()
    first.write_text(first.read_text().replace('"SEED": 0', '"SEED": 1'))   # begun anew, round 2 is to come
    eval_LabelTransfer.add_students(table, layout, teacher, ALONE, cfg)
    assert rows == ['student'] and 'is not trained to its end' in capsys.readouterr().out
    other = replace(teacher, settings=teacher.settings | {'DATA': 'LabelTransfer/brain'})
    eval_LabelTransfer.add_cam(table, layout, other, None, ALONE, cfg)
    assert rows == ['student'] and 'was trained with another DATA' in capsys.readouterr().out
    monkeypatch.setattr(validation, 'chosen_threshold', lambda *_: (0.5, 1.0))
    spelt = teacher.settings | {'DATA': str(tmp_path / 'models/../LabelTransfer/skin')}
    eval_LabelTransfer.add_cam(table, layout, replace(teacher, settings=spelt), None, ALONE, cfg)
    assert rows == ['student', 'CAM']   # the same folder, spelt otherwise


def test_pictures_that_were_trained_on_are_not_scored_in_later_parts(
        trained_root, tmp_path, capsys):
    skin, run = tmp_path / 'LabelTransfer/skin', Layout(tmp_path).run('LabelTransfer')
    shutil.copytree(trained_root.root / 'LabelTransfer/skin', skin)
    for name in 'LabelTransfer', 'LabelTransferCAM':
        shutil.copytree(trained_root.run(name), Layout(tmp_path).run(name))
    source = data.Source(Layout(tmp_path), 'LabelTransfer/skin')

    def found():
        return trained.seen_before(run, source, source.pairs('Testing'))

    names = (run / seen.NAME).read_bytes()
    (run / seen.NAME).unlink()   # as in runs of earlier versions
    assert not found()
    tested = skin / 'testA/images/trainA_003.png'
    (skin / 'trainA/trainA_003.png').rename(tested)
    images.write_mask(skin / 'testA/labels/trainA_003_segmentation.png', np.eye(48))
    assert found() == [f'{skin / "trainA"}: holds others than {run} was trained on, which may be tested now']
    (run / seen.NAME).write_bytes(names)
    assert found() == [f'{tested}: trainA_003 was trained on']
    options = f'--ROOT={tmp_path}', '--SPLIT=Testing', '--METHODS=threshold'
    with pytest.raises(InputError, match='trainA_003 was trained on(.|\n)*--SEEN=True'):
        call(eval_LabelTransfer, *options)
    teacher, cfg = trained.load(Layout(tmp_path), ALONE, 'auto'), SimpleNamespace(SEEN=False)
    table = SimpleNamespace(pairs=teacher.pairs('Testing'))
    eval_LabelTransfer.add_cam(table, Layout(tmp_path), teacher, None, ALONE, cfg)
    assert 'was trained on evaluated pictures, so that' in capsys.readouterr().out
    other = skin.with_name('other')   # the same cases, parted otherwise
    shutil.copytree(skin, other)
    shutil.move(skin / 'testA/labels/trainA_003_segmentation.png', tmp_path)
    tested.rename(skin / 'trainA/trainA_003.png')   # as the training knows them
    source = data.Source(Layout(tmp_path), 'LabelTransfer/other')
    assert found() == [f'{other / "testA/images/trainA_003.png"}: trainA_003 was trained on']
    source = data.Source(Layout(tmp_path), 'LabelTransfer/skin')
    assert not found()
    (skin / 'trainA/trainA_003.png').rename(tested)
    shutil.move(tmp_path / 'trainA_003_segmentation.png', skin / 'testA/labels')
    tested.rename(skin / 'trainA/renumbered.png')
    (skin / 'testA/labels/trainA_003_segmentation.png').unlink()
    assert not found()   # the pictures trained on are others now, those that are tested are not among them


def test_cases_are_told_by_their_pictures():
    assert {data.case_of(name) for name in (   # the last as published
        'Brats18_2013_1_1_flair_90', 'BraTS19_2013_1_1_flair_115', 'Brats18_2013_1_1_flair.nii_95')} == {
            '2013_1_1'}
    assert data.case_of('ISIC_0000001_health') == data.case_of('ISIC_0000001') == 'ISIC_0000001'


def student_root(trained_root, folder):
    """The path of a root with the generator and its masks, and no student."""
    for part in 'dataset', 'LabelTransfer', 'models/LabelTransfer':
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).symlink_to(trained_root.root / part)
    return folder


def test_rounds_that_are_begun_anew_leave_none_of_an_earlier_training(
        trained_root, tmp_path, monkeypatch, no_drawing):
    options = f'--ROOT={student_root(trained_root, tmp_path)}', *STUDENT, '--EMA=True'
    rounds = Layout(tmp_path).run('LabelTransferStudentEMA')
    shutil.copytree(trained_root.run(rounds.name), rounds)
    with monkeypatch.context() as patch, pytest.raises(trainer.Interrupted):
        patch.setattr(trainer, '_asked_to_stop', lambda *_: True)
        call(train_student, *options, '--SEED=1', '--RESUME=False')
    assert [path.name for path in rounds.iterdir()] == ['round1']
    call(train_student, *options, '--SEED=1')   # round 2 of the former seed would be refused
    assert eval_LabelTransfer.last_round(rounds) == rounds / 'round2/EMA.pth'


def test_coarse_sn_may_be_the_student(trained_root, tmp_path, monkeypatch, no_figures):
    for module in student, coarse_networks:   # coarse-SN itself takes seconds
        monkeypatch.setattr(module, 'deeplabv3plus', lambda *_, **__: networks.UNet(4))
    student_root(trained_root, tmp_path)
    options = f'--ROOT={tmp_path}', *STUDENT, '--STUDENT=coarse-sn', '--XCEPTION_WEIGHTS=mine.pth'
    with pytest.raises(InputError, match='mine.pth: is missing'):
        call(train_student, *options, '--PRETRAINED=xception')
    call(train_student, *options, '--PRETRAINED=none')
    folder = Layout(tmp_path).run('LabelTransferStudent')
    assert json.loads((folder / 'config.json').read_text())['settings']['NUM_CLASSES'] == 2
    found = student.load(folder / 'student.pth', ALONE.device, 'fp32').network.state_dict()
    kept = load(folder, 'student.pth')
    assert found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)


def test_an_average_follows_the_network():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    average = student.average_of(network)
    start = average[0].weight.clone()
    network[0].weight.data += 1
    network[1].num_batches_tracked += 7
    student.follow(average, network, 0.75)   # of seven batches: (1 + 7) / (10 + 7) of it stay
    torch.testing.assert_close(average[0].weight, start + 9 / 17)
    assert average[1].num_batches_tracked == 7 and not average[0].weight.requires_grad
    network[1].num_batches_tracked += 993
    student.follow(average, network, 0.75)
    torch.testing.assert_close(average[0].weight, start + 1 - 0.75 * 8 / 17)


def test_what_cannot_be_used_is_said(trained_root, tmp_path):
    for script, options, said in (
            (train_LabelTransfer, ['--INPUT_SIZE=64', '--LOAD_SIZE=60'], 'at least 96(.|\n)*D_LAYERS=7,5'),
            (train_LabelTransfer, ['--INPUT_SIZE=98'], 'INPUT_SIZE=98: must be a multiple of 4'),
            (train_LabelTransfer, ['--D_LAYERS=7'], 'must be two numbers'),
            (generate_masks, ['--METHODS=threshold'], 'A2B.pth: is missing(.|\n)*train_LabelTransfer'),
            (prepare_BraTS, [], 'IN must name'), (prepare_ISIC, ['--SHARE=0.5,0.2'], 'rising numbers')):
        if script is prepare_BraTS and find_spec('nibabel') is None:
            continue
        with pytest.raises(InputError, match=said):
            call(script, f'--ROOT={tmp_path}', *options)
    for script in train_LabelTransfer, train_CAM:
        with pytest.raises(InputError, match='skin: holds skin, KIND is brain(.|\n)*--KIND=skin'):
            call(script, f'--ROOT={trained_root.root}', '--DATA=LabelTransfer/skin', '--KIND=brain')
    lonely = tmp_path / 'A2B.pth'
    lonely.write_bytes((trained_root.run('LabelTransfer') / 'A2B.pth').read_bytes())
    with pytest.raises(InputError, match='config.json: is missing'):
        call(generate_masks, f'--ROOT={trained_root.root}', f'--WEIGHTS={lonely}', '--METHODS=threshold')


def test_without_validation_masks_it_is_said_what_works(trained_root, tmp_path):
    root = student_root(trained_root, tmp_path / 'root')
    (root / 'models/LabelTransfer').unlink()
    run, skin = root / 'models/LabelTransfer', trained_root.root / 'LabelTransfer/skin'
    shutil.copytree(trained_root.run('LabelTransfer'), run)
    config = json.loads((run / 'config.json').read_text())
    config['settings'] |= {'DATA': '', 'A': str(skin / 'trainA'), 'B': str(skin / 'trainB')}   # two folders
    (run / 'config.json').write_text(json.dumps(config))
    at, out = f'--ROOT={root}', f'--OUT={tmp_path / "out"}'
    for script, options, said in (
            (train_student, STUDENT, 'need validation masks'),
            (eval_LabelTransfer, ['--METHODS=threshold'], 'need validation masks'),
            *[(generate_masks, [out, '--SPLIT=Training', '--METHODS=crf'], '--ALPHA=1 to 8')] * HAS_CRF):
        with pytest.raises(InputError, match=f'(?s)Validation_seg.txt: is missing.*{said}'):
            call(script, at, *options)
    call(generate_masks, at, out, '--SPLIT=Training', '--METHODS=threshold')


def test_unusable_pictures_are_all_named_before_any_map_is_cut(trained_root, tmp_path):
    for number in range(3):
        path = tmp_path / f'a/p{number}.png'
        images.write_png(path, np.full((48, 48, 3), 99, np.uint8))
        if number:
            path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match='(?s)p1.png.*p2.png'):
        call(generate_masks, f'--ROOT={trained_root.root}', '--SPLIT=Training', '--METHODS=threshold',
             f'--A={tmp_path / "a"}', f'--OUT={tmp_path / "out"}')
    assert not (tmp_path / 'out').exists()


def test_figures_are_drawn(trained_root, tmp_path):
    look = translator.load(trained_root.run('LabelTransfer') / 'A2B.pth', ALONE.device, 'auto')
    shown = drawn(1, 'skin', True, 48)
    panels.draw(look, shown.images, shown.names, tmp_path / 'panel.png', shown.masks > 0, shown.masks > 0)
    panels.curves(run_folder.read_rows(trained_root.run('LabelTransfer') / 'metrics.jsonl'),
                  tmp_path / 'curves.png')
    for name in ('panel.png', 'curves.png'):
        assert images.image_size(tmp_path / name)[0] > 300
    assert volumes.picture(np.ones((4, 6), bool), 8).shape == (8, 8)


def test_training_windows_are_whole_pixels_of_the_picture():
    """Of 20 px, 16: any offset from 0 to 4, both flips; nothing is interpolated."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), np.uint8)
    part = data.Set(picture, None, ['a'], '')
    cfg = SimpleNamespace(INPUT_SIZE=16, LOAD_SIZE=20, FLIPS=True, SEED=0)
    view = np.lib.stride_tricks.sliding_window_view(picture[0], (16, 16), (0, 1))
    seen_at = set()
    for name, pictures in data.training_sets(cfg, part, part).items():
        for position in range(100):
            window = pictures[position]['image'].numpy()
            seen_at |= {(name, *place, *turns) for place in itertools.product(range(5), repeat=2)
                        for turns in itertools.product((1, -1), repeat=2)
                        if np.array_equal(view[place][:, ::turns[0], ::turns[1]], window)}
    assert len({one[0] for one in seen_at}) == 2 and len(seen_at) > 100
    for number in 1, 2:
        assert {one[number] for one in seen_at} == set(range(5))
        assert {one[number + 2] for one in seen_at} == {1, -1}


def test_the_map_that_is_cut_is_the_mask_of_the_composites_in_float32():
    torch.manual_seed(0)
    network = networks.Generator(8, 1).eval()
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    looker = translator.Translator(network, 32, torch.device('cpu'), 'bf16')
    found, _ = looker.draw(picture)
    attention, _ = looker.look(picture)
    np.testing.assert_array_equal(attention, found.mask[0, 0].numpy())
    assert attention.shape == (32, 32) and found.attention.dtype == torch.float32
    assert len(np.unique(found.attention)) > 30   # of 64 cells: sigmoid's values keep their digits
