"""Augmentation: one geometry for image and masks, and samples that depend on (seed, position) alone."""
import multiprocessing
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.splits import crops_of_subset, subset
from engine import augment
from engine.device_samples import Resident
from engine.samples import Pictures, stream, unpaired
from net.inputs import to_input, to_maskcn_input

QUICK = settings(max_examples=150, deadline=None)
SEEDS, POSITIONS = st.integers(-2**63, 2**64), st.integers(0, 2**62)
RANGES = augment.Ranges(crop=(0.5, 1.0), crop_probability=0.5)
STILL = augment.Ranges(0.0, 0.0, (0.0, 0.0), (1.0, 1.0), False)
# OpenCV 4 rounds the coordinates of a warp to 1/32 pixel, OpenCV 5 does not.
EXACT_WARP = int(cv2.__version__.partition('.')[0]) >= 5
IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def geometry(seed, position=0, ranges=RANGES):
    return augment.draw(augment.generator(seed, position), ranges)


def noise(seed, *shape):
    return np.random.default_rng(abs(seed)).integers(0, 256, shape, dtype=np.uint8)


def blob(seed, side):
    """(side, side) mask {0, 255} with an irregular outline."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    angle, phase = np.arctan2(y, x), np.random.default_rng(abs(seed)).uniform(0, 6)
    return ((np.hypot(x, y) < 0.5 + 0.15 * np.sin(3 * angle + phase)) * 255).astype(np.uint8)


# --- One geometry

@QUICK
@given(SEEDS, POSITIONS, st.sampled_from([(48, 64), (64, 48), (33, 33)]))
def test_an_array_warps_alike_as_image_and_as_mask(seed, position, sides):
    side, size = sides
    mask, matrix = blob(position, side), geometry(seed, position)
    as_mask = augment.warp(mask, matrix, size, 'nearest')
    as_image = augment.warp(np.dstack([mask, noise(position, side, side), mask]), matrix, size, 'nearest')
    assert np.array_equal(as_image[..., 0], as_mask) and np.array_equal(as_image[..., 2], as_mask)
    assert set(np.unique(as_mask)) <= {0, 255}


@QUICK
@given(SEEDS, POSITIONS, st.sampled_from([(96, 64), (64, 96), (64, 64)]))
def test_thresholded_image_and_mask_differ_at_border_pixels_only(seed, position, sides):
    side, size = sides
    mask, matrix = blob(position, side), geometry(seed, position)
    soft = augment.warp(np.dstack([mask] * 3), matrix, size, 'bilinear')[..., 0]
    hard = augment.warp(mask, matrix, size, 'nearest')
    certain = (soft == 0) | (soft == 255)   # no border between the four pixels around
    assert np.array_equal(soft[certain], hard[certain])
    assert ((soft > 127) != (hard > 127)).mean() < 0.05


@QUICK
@given(SEEDS, POSITIONS)
def test_masks_of_other_sizes_get_the_same_geometry(seed, position):
    matrix = geometry(seed, position)
    fine = augment.warp(blob(position, 448), matrix, 224, 'nearest') > 0
    rough = augment.warp(blob(position, 224), matrix, 224, 'nearest') > 0
    assert (fine != rough).mean() < 0.02   # at the outline


@QUICK
@given(SEEDS, st.sampled_from([(64, 48), (33, 40)]), st.sampled_from(['bilinear', 'nearest']))
def test_a_colour_picture_is_warped_as_its_channels(seed, sides, interpolation):
    picture, matrix = noise(seed, sides[0], sides[0], 3), geometry(seed)
    channels = [augment.warp(picture[..., number].copy(), matrix, sides[1], interpolation)
                for number in range(3)]
    together = augment.warp(picture, matrix, sides[1], interpolation)
    difference = np.abs(together.astype(int) - np.dstack(channels))
    assert difference.max() <= (0 if EXACT_WARP else 1)


@QUICK
@given(SEEDS, st.sampled_from(['bilinear', 'nearest']),
       st.sampled_from([(40, 40, 40), (37, 48, 32), (64, 50, 31), (20, 30, 48)]))
def test_the_warp_is_torchs_affine_grid_and_grid_sample(seed, mode, shape):
    height, width, size = shape
    image, matrix = noise(seed, height, width, 3), geometry(seed)
    warped = torch.from_numpy(augment.warp(image, matrix, size, mode)).permute(2, 0, 1).double()
    grid = F.affine_grid(torch.from_numpy(matrix)[None], (1, 3, size, size), align_corners=False)
    picture = torch.from_numpy(image).permute(2, 0, 1).double()[None]
    expected = F.grid_sample(picture, grid, mode=mode, padding_mode='zeros', align_corners=False)[0]
    difference = (warped - expected).abs()
    if mode == 'bilinear':
        assert difference.max() <= (1 if EXACT_WARP else 10)
        assert difference.mean() <= 1
    else:   # coordinates half-way between two pixels
        assert (difference > 0).double().mean() < (0.002 if EXACT_WARP else 0.02)


@pytest.mark.parametrize('mode', augment.INTERPOLATIONS)
def test_the_identity_changes_nothing(mode):
    image = noise(0, 40, 40, 3)
    assert np.array_equal(augment.warp(image, IDENTITY, 40, mode), image)
    np.testing.assert_allclose(geometry(1, 2, STILL), IDENTITY, atol=1e-12)


def test_what_lies_outside_is_black():
    shifted = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])   # half a picture to the left
    warped = augment.warp(np.full((8, 8), 255, np.uint8), shifted, 8, 'nearest')
    assert (warped[:, :4] == 255).all() and (warped[:, 4:] == 0).all()


# --- The draw

@QUICK
@given(SEEDS, POSITIONS, st.floats(0, 30), st.floats(0, 0.3), st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)))
def test_draws_lie_within_their_ranges(seed, position, rotation, shear, shift):
    zoom = 0.9, 1.1
    ranges = augment.Ranges(rotation, shear, shift, zoom, False)
    matrix = geometry(seed, position, ranges)
    forward = np.linalg.inv(matrix[:, :2])                   # zoom * rotation @ shear along x
    scale, angle = np.hypot(*forward[:, 0]), np.rad2deg(np.arctan2(forward[1, 0], forward[0, 0]))
    skew = np.arctan(np.dot(forward[:, 0], forward[:, 1]) / scale**2)
    moved = -forward @ matrix[:, 2] / 2                      # fraction of the picture
    assert zoom[0] - 1e-9 <= scale <= zoom[1] + 1e-9 and np.linalg.det(forward) == pytest.approx(scale**2)
    assert abs(angle) <= rotation + 1e-6 and abs(skew) <= shear + 1e-6
    assert (np.abs(moved) <= np.array(shift) + 1e-9).all()


def test_draws_reach_their_ranges_and_flips_and_crops_have_their_shares():
    crop = augment.Ranges(0, 0, (0, 0), (1, 1), True, (0.5, 1.0), 0.5)
    matrices = np.array([geometry(3, position, crop) for position in range(2000)])
    sides, flips = np.abs(matrices[:, 0, 0]), matrices[:, [0, 1], [0, 1]] < 0
    assert sides.min() < 0.52 and 0.45 < (sides < 1).mean() < 0.55
    np.testing.assert_allclose(np.abs(matrices[:, 1, 1]), sides)
    assert (np.abs(flips.mean(0) - 0.5) < 0.05).all()
    assert abs((flips[:, 0] & flips[:, 1]).mean() - 0.25) < 0.05
    rotated = augment.Ranges(10.0, 0, (0, 0), (1, 1), False)
    turned = [geometry(3, position, rotated) for position in range(500)]
    angles = np.rad2deg([np.arctan2(matrix[0, 1], matrix[0, 0]) for matrix in turned])
    assert angles.min() < -9.5 and angles.max() > 9.5


def test_a_range_switched_off_leaves_the_other_draws_alone():
    without_crop = augment.Ranges()
    for position in range(50):
        full, cropped = geometry(4, position, without_crop), geometry(4, position)
        side = np.sqrt(np.linalg.det(cropped[:, :2]) / np.linalg.det(full[:, :2]))
        np.testing.assert_allclose(cropped, side * full)


# --- Samples as a function of (seed, position)

def masks(count, side):
    return np.stack([blob(k, side) // 255 for k in range(count)])


def pictures(seed=0, count=7, ranges=RANGES):
    return Pictures(noise(1, count, 24, 24, 3), {'mask': masks(count, 24), 'coarse': masks(count, 16)},
                    np.arange(count) % 3, 16, ranges, seed=seed)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name]))
                                        for name in a)


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) and all(map(same, batches, others))


def test_an_item_has_the_documented_form():
    item = pictures()[5]
    assert item['image'].shape == (3, 16, 16) and item['image'].dtype is torch.uint8
    for name in ('mask', 'coarse'):
        assert item[name].shape == (16, 16) and set(item[name].unique().tolist()) <= {0, 1}
    assert item['label'] == item['index'] % 3
    assert 'label' not in Pictures(noise(1, 2, 24, 24, 3), {}, None, 16, RANGES)[0]


def test_image_masks_and_coarse_masks_of_a_sample_share_one_draw():
    """The released code drew anew for the mask: 0 of 200 pairs matched."""
    drawn = masks(5, 48)
    data = Pictures(np.stack([drawn * 255] * 3, -1), {'mask': drawn, 'coarse': drawn}, None, 32, RANGES,
                    'nearest')
    for position in range(200):
        item = data[position]
        assert torch.equal(item['image'][0], item['mask'] * 255) and torch.equal(item['mask'], item['coarse'])
        assert torch.equal(torch.as_tensor(augment.warp(drawn[item['index']], geometry(0, position), 32,
                                                        'nearest')), item['mask'])


def test_planes_of_many_classes_stay_classes_and_say_what_is_outside():
    """Each picture shrinks to the middle of its sample."""
    classes = noise(2, 3, 24, 24) % 7
    data = Pictures(noise(1, 3, 24, 24, 3), {'seven': classes, 'plain': classes}, None, 16,
                    augment.Ranges(0, 0, (0, 0), (0.5, 0.5), False), outside={'seven': 255})
    for batch in (next(iter(stream(data, 3, 0, 1))), Resident(data, torch.device('cpu')).batch(range(3))):
        expected = np.full((3, 16, 16), 255)
        expected[:, 4:12, 4:12] = classes[batch['index'], 1::3, 1::3]
        assert np.array_equal(batch['seven'], expected)
        assert np.array_equal(batch['plain'], expected * (expected < 255))


def test_unpaired_sets_keep_their_own_order_and_resume():
    def pairs(first):
        return unpaired(photo=stream(pictures(1, 7), 4, first, 6), drawn=stream(pictures(2, 5), 4, first, 6))

    whole = list(pairs(0))
    assert whole[0].keys() == {f'{name}_{part}' for name in ('photo', 'drawn')
                               for part in ('image', 'mask', 'coarse', 'label', 'index')}
    assert_same(whole[2:], pairs(2))
    for batch, alone in zip(whole, stream(pictures(2, 5), 4, 0, 6), strict=True):
        assert same(alone, {name: batch[f'drawn_{name}'] for name in alone})


def test_without_augmentation_the_pictures_come_as_they_are():
    data = Pictures(noise(1, 4, 16, 16, 3), {'mask': masks(4, 16)}, None, 16, STILL)
    for position in range(8):
        item = data[position]
        assert np.array_equal(item['image'].permute(1, 2, 0), data.images[item['index']])
        assert np.array_equal(item['mask'], data.planes['mask'][item['index']])


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_each_epoch_is_another_permutation_of_all_pictures(seed, count):
    data = Pictures(np.zeros((count, 2, 2, 3), np.uint8), {}, None, 2, STILL, seed=seed)
    epochs = [[data.index_at(epoch * count + place) for place in range(count)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 12 or len({tuple(epoch) for epoch in epochs}) == 5


def test_positions_can_be_asked_in_any_order_and_repeatedly():
    forwards, data = [pictures()[position] for position in range(20)], pictures()
    for position in np.random.default_rng(0).permutation(np.repeat(np.arange(20), 2)):
        assert same(data[int(position)], forwards[position])


def test_another_seed_or_position_gives_another_sample():
    items = [pictures(seed)[position]['image'] for seed in (0, 1) for position in (0, 7, 14)]
    assert all(not torch.equal(a, b) for k, a in enumerate(items) for b in items[:k])


def test_python_numpy_and_torch_random_states_play_no_part_and_are_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    first, drawn = pictures()[3], (torch.get_rng_state(), np.random.get_state()[1].copy())
    torch.manual_seed(2)
    assert same(pictures()[3], first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert np.array_equal(np.random.get_state()[1], drawn[1])


def test_workers_change_nothing():
    assert_same(stream(pictures(), 4, 0, 6, workers=0), stream(pictures(), 4, 0, 6, workers=2))


class Uncopied(Pictures):
    def __reduce__(self):
        raise AssertionError('a loader process would get a copy of the pictures')


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere processes cannot share them by a fork')
def test_loader_processes_share_the_pictures_whatever_the_default_of_python():
    data, before = pictures(), multiprocessing.get_start_method(allow_none=True)
    data.__class__ = Uncopied
    multiprocessing.set_start_method('forkserver', force=True)   # as from Python 3.14 on
    try:
        assert_same(stream(pictures(), 4, 0, 2), stream(data, 4, 0, 2, workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize('world', [2, 4])
def test_processes_share_each_batch(world):
    alone = stream(pictures(), 4, 0, 6)
    shares = zip(*(stream(pictures(), 4, 0, 6, rank, world) for rank in range(world)), strict=True)
    assert_same(alone, ({name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                        for parts in shares))


@pytest.mark.parametrize('step', [0, 1, 5, 6])
def test_a_resumed_stream_goes_on_with_the_same_batches(step):
    whole = list(stream(pictures(), 4, 0, 6))
    assert_same(whole[step:], stream(pictures(), 4, step, 6))


# --- Subsets and network input

@QUICK
@given(st.integers(0, 60), st.integers(0, 2**32))
def test_subsets_are_nested_and_keep_the_order(count, seed):
    items = [f'item {k}' for k in range(count)]
    subsets = [subset(items, limit, seed) for limit in range(1, count + 1)]
    for limit, chosen in enumerate(subsets, 1):
        assert len(chosen) == limit and chosen == [item for item in items if item in chosen]
    assert all(set(small) < set(large) for small, large in zip(subsets, subsets[1:], strict=False))
    assert subset(items, 0, seed) == subset(items, count + 5, seed) == items


def test_a_subset_of_images_takes_all_their_crops(tmp_path):
    entries = [(tmp_path / name, k % 3) for k in range(10)
               for name in (f'ISIC_{k}.png', f'ISIC_{k}_9_1.png', f'ISIC_{k}_9_2.png')]
    few, more = (crops_of_subset(entries, limit, 3) for limit in (3, 6))
    assert len(few) == 9 and len(more) == 18 and set(few) < set(more)
    assert few == [entry for entry in entries if entry in few] and crops_of_subset(entries, 0, 3) == entries


@pytest.mark.parametrize('scaling', ['unit', 'symmetric', 'whitening'])
def test_input_scalings(scaling):
    raw = torch.from_numpy(noise(2, 2, 3, 8, 8))
    x = to_input(raw, scaling)
    expected = {'unit': raw / 255.0, 'symmetric': (raw / 255.0 - 0.5) / 0.5,
                'whitening': torch.stack([(p - p.mean()) / p.std() for p in raw / 255.0])}[scaling]
    assert x.dtype is torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    mask = torch.from_numpy(noise(3, 2, 8, 8)) >> 7
    joined = to_maskcn_input(raw, mask, scaling)
    assert torch.equal(joined[:, :3], x) and torch.equal(joined[:, 3], mask.float())
    assert torch.equal(to_maskcn_input(raw, None, scaling), x)
