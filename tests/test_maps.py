"""benchmarks/maps.py tells a map that knows the lesion from one that does not."""
import json

import numpy as np
import pytest
import torch

from benchmarks import maps
from mbdcnn.inference import Segmenter
from tests.conftest import START, run_script

SIDE = 48


@pytest.fixture
def truth():
    """Masks of nine squares, none in the middle: (9, S, S) bool."""
    found = np.zeros((9, SIDE, SIDE), bool)
    for number, mask in enumerate(found):
        row, column = 4 + 8 * (number // 3), 4 + 12 * (number % 3)
        mask[row:row + 16, column:column + 10] = True
    return found


def test_a_map_of_the_lesion_orders_pixels_and_one_of_the_frame_does_not(truth):
    spot = np.broadcast_to(-np.hypot(*(np.mgrid[:SIDE, :SIDE] - 23.5)), truth.shape)
    noise = np.random.default_rng(0).standard_normal(truth.shape)
    knows, fixed = (maps.order(noise, cam, truth) for cam in (truth.astype(float), spot))
    assert knows['AUC, map'] == knows["map's peak in the lesion"] == 1
    assert fixed['AUC, map'] == pytest.approx(fixed['AUC, spot in the middle'])
    assert fixed['correlation, map and that mean'] == pytest.approx(1)
    assert knows['correlation, map and that mean'] < .6
    assert knows['wrong pixels of coarse-SN'] == pytest.approx(.5, abs=.02)


def test_the_regression_uses_what_a_source_knows_and_nothing_more(truth):
    noise = 9 * np.random.default_rng(0).standard_normal(truth.shape)
    with_truth, with_noise = (maps.masks(noise, cam, truth) for cam in (truth.astype(float), noise[::-1]))
    assert with_truth['JA, logit and map'] > .99
    assert with_noise['JA, logit and map'] < .1 and with_truth['JA, logit'] < .1
    coarse = with_truth["JA, logit and the truth on the map's grid"]   # of 3 x 3 cells
    assert with_truth['JA, logit'] < coarse < .5


def test_a_readout_finds_the_channel_that_knows_the_lesion(truth):
    noise = np.random.default_rng(0).standard_normal((9, 4, 3, 3))
    known = np.concatenate([noise, maps.pooled(truth)[:, None]], 1)
    found = maps.readout(known, truth, ridge=.01)
    np.testing.assert_allclose(found, maps.on_grid(truth), atol=.05)
    assert abs(maps.auc(maps.readout(noise, truth, ridge=1), truth) - .5) < .25


def test_a_source_gains_by_what_the_logit_does_not_say(truth):
    """A mean of the logit over cells, or the logit without its cut, says nothing new; the truth does."""
    rng = np.random.default_rng(0)
    logit = 3 * rng.standard_normal(truth.shape) + 6 * truth - 3
    sources = {'cells': maps.on_grid(logit.clip(-8, 8)), 'uncut': 2 * logit,
               'noise': rng.standard_normal(truth.shape), 'truth': truth.astype(float)}
    found = maps.gains(sources, logit, truth)
    _, without = found.pop('nothing')
    assert all(loss == pytest.approx(without + change) and low <= change <= high
               for _, loss, change, low, high in found.values())
    assert found['truth'][4] < -.05 and found['truth'][0] == 1
    assert all(abs(found[name][2]) < .01 for name in ('cells', 'uncut', 'noise'))


def test_moved_pictures_keep_their_content_and_reflect_at_the_edge():
    picture = torch.arange(2 * 5 * 5).reshape(2, 5, 5)
    assert torch.equal(maps.moved(picture, 0, 0), picture) and maps.moved(None, 1, 1) is None
    down, left = maps.moved(picture, 2, 0), maps.moved(picture, 0, -1)
    assert torch.equal(down[:, 2:], picture[:, :3]) and torch.equal(down[:, 0], picture[:, 2])
    assert torch.equal(left[:, :, :4], picture[:, :, 1:]) and torch.equal(left[:, :, 4], picture[:, :, 3])


def test_what_moves_with_the_lesion_is_told_from_what_stays(truth):
    """Whatever lies around it: a local function of the picture goes along, one of the frame does not."""
    pictures = truth + np.random.default_rng(0).random(truth.shape)
    moved = [maps.moved(pictures, *by) for by in maps.steps(SIDE)]
    for local in (lambda planes: planes, lambda planes: 5 - planes ** 2):
        along, stayed, between = maps.followed(local(pictures), [local(planes) for planes in moved])
        assert along == pytest.approx(1) and stayed == pytest.approx(between) and abs(between) < .5
    along, stayed, between = maps.followed(pictures, [pictures] * 4)
    assert stayed == pytest.approx(1) and along == pytest.approx(between) and abs(between) < .5


class Adds(torch.nn.Module):
    """An enhanced-SN whose lesion logit is the map, times `weight`, beside a fixed one: (B, 1, S, S)."""

    def __init__(self, fixed, weight):
        super().__init__()
        self.fixed, self.weight = fixed, torch.nn.Parameter(torch.tensor(float(weight)))

    def forward(self, x, cam):
        return self.fixed + self.weight * torch.nn.functional.interpolate(cam, x.shape[2:], mode='nearest')


@pytest.mark.parametrize('weight', [0, 4])
def test_an_enhanced_network_that_listens_is_told_from_one_that_does_not(truth, weight):
    """Its maps are the truth on a grid of 12 x 12 cells, which the squares fit; its own logit says no."""
    cells = torch.from_numpy(truth[:, 2::4, 2::4]).float()
    pictures = torch.zeros(9, 3, SIDE, SIDE, dtype=torch.uint8)
    draw = Segmenter(Adds(-1.0, weight), 'unit', 'fp32')

    def see(look, _):
        return torch.cat([look(pictures[some], None, some) for some in ([*range(5)], [*range(5, 9)])]).numpy()

    found = maps.listens(draw, cells[:, None], see, truth)
    own, others, none = (found[f'JA, enhanced-SN, {name}']
                         for name in ('own maps', 'maps of other pictures', 'no map'))
    changed = found['pixels that the map of another picture changes']
    if weight:
        assert none == 0 and others < .4 and own > .7 and changed > .05
    else:
        assert none == others == own == changed == 0


@pytest.mark.parametrize('networks', [('CoarseSN', 'MaskCN'), ('CoarseSN', 'MaskCN', 'EnhancedSN')])
def test_it_measures_trained_networks(sibling, networks):
    layout = sibling(*networks)
    printed = run_script('benchmarks/maps.py', layout.root, '--DEVICE=cpu',
                         f'--XCEPTION_WEIGHTS={START}/xception.pth')
    facts = json.loads((layout.results / 'maps_Validation.json').read_text())
    assert facts['pictures'] == len(layout.segmentation_list('Validation').read_text().splitlines())
    assert all(0 <= facts[name] <= 1 for name in facts if name.startswith(('AUC', 'JA', 'wrong')))
    assert ('JA, enhanced-SN, own maps' in facts) == ('EnhancedSN' in networks)
    gains = facts['gains']
    assert [*gains] == ['nothing', 'map', *(f'{name}, {layer}' for name in ('mask-CN', 'ImageNet Xception')
                                            for layer in maps.LAYERS), "the truth on the map's grid"]
    assert len({tuple(found) for found in gains.values()}) == len(gains)
    assert gains["the truth on the map's grid"][2] < 0
    moves = facts['moves']
    assert len(moves) == 4 and all(-1 <= value <= 1 for values in moves.values() for value in values)
    assert moves['map'] != moves['map, the picture alone moved'] != moves['map, the coarse mask alone moved']
    assert (layout.results / 'maps_Validation.md').read_text() in printed
