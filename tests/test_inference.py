"""Views, heads and full-size maps against slow loops over tiny networks."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import eval_EnhancedSN
from dataset.classes import PAPER
from dataset.layout import Layout
from dataset.splits import Classification, Segmentation
from engine import cache, figures, files, images, metrics, scoring
from engine.errors import InputError
from engine.hardware import Process
from mbdcnn import evaluation, panels
from mbdcnn.inference import (
    VIEWS,
    Classifier,
    Segmenter,
    counts_on_device,
    draw_coarse,
    maps_of_files,
    mask_of,
    place,
    segment,
    segment_files,
    squashed,
)
from net.cam import class_activation_map
from net.inputs import to_input
from net.loss import lesion_logit

QUICK = settings(max_examples=60, deadline=None)
CPU = torch.device('cpu')
ALONE = Process(0, 1, CPU)
CELL = 4   # px, stride of the tiny mask-CN


class PixelNetwork(nn.Module):
    """A 1x1 convolution instead of a segmentation network: it commutes with every view.

    cam, where there is one, is added to the lesion's channel; ramp breaks the symmetry on request.
    """

    def __init__(self, channels=2, ramp=0.0):
        super().__init__()
        self.conv, self.ramp = nn.Conv2d(3, channels, 1), ramp
        g = torch.Generator().manual_seed(channels)
        self.conv.weight.data = 4 * torch.randn(channels, 3, 1, 1, generator=g)
        self.conv.bias.data = -self.conv.weight.data.sum((1, 2, 3)) / 2   # about half of the pixels

    def forward(self, x, cam=None):
        lesion = self.ramp * torch.linspace(-1, 1, x.shape[3])
        if cam is not None:
            lesion = lesion + F.interpolate(cam, x.shape[2:])
        logits = self.conv(x)
        return torch.cat([logits[:, :-1], logits[:, -1:] + lesion], 1)


class TinyMaskCN(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv1, self.cls = nn.Conv2d(channels, 8, 1), nn.Linear(8, 3)
        g = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g)

    def features(self, x):
        return self.conv1(F.avg_pool2d(x, CELL)).relu()

    def classify(self, features):
        return self.cls(features.mean((2, 3)))


def pictures(seed, count=3, side=16):
    """uint8 images (B, 3, S, S) and coarse masks (B, S, S) of {0, 1}."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8),
            torch.randint(0, 2, (count, side, side), generator=g, dtype=torch.uint8))


def enhanced(ramp=0.0):
    return Segmenter(PixelNetwork(2, ramp), 'unit', 'fp32', Classifier(TinyMaskCN(), 'symmetric', 'fp32'))


# --- Views

def test_views_are_the_identity_three_rotations_and_two_flips():
    x = torch.arange(16.0).reshape(1, 4, 4)
    seen = [forward(x) for forward, _ in VIEWS]
    expected = [x, x.rot90(1, (1, 2)), x.rot90(2, (1, 2)), x.rot90(3, (1, 2)), x.flip(2), x.flip(1)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 6


@QUICK
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
def test_each_view_is_undone_by_its_inverse(seed, batch, height, width):
    x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    for forward, back in VIEWS:
        assert torch.equal(back(forward(x)), x) and torch.equal(forward(back(x)), x)
        assert torch.equal(back(forward(x[:, 0])), x[:, 0])   # masks and logits


@pytest.mark.parametrize('segmenter', [Segmenter(PixelNetwork(2), 'unit', 'fp32'), enhanced()])
def test_views_of_an_equivariant_network_sum_to_six_times_the_plain_logit(segmenter):
    batch, coarse = pictures(1)
    coarse = coarse if segmenter.classifier else None
    plain, views = segmenter(batch, coarse), segmenter.views(batch, coarse)
    assert views.shape == (6, 3, 16, 16) and plain.dtype is torch.float32
    torch.testing.assert_close(views[0], plain)
    torch.testing.assert_close(views.sum(0), 6 * plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('segmenter', [Segmenter(PixelNetwork(1, 2.0), 'unit', 'fp32'), enhanced(2.0)])
def test_views_in_one_batch_are_views_one_by_one(segmenter):
    batch, coarse = pictures(2)
    views = segmenter.views(batch, coarse)
    assert not torch.allclose(views[0], views[4])
    for view, (forward, back) in zip(views, VIEWS, strict=True):
        for number in range(len(batch)):
            alone = segmenter(forward(batch[number:number + 1]), forward(coarse[number:number + 1]))
            torch.testing.assert_close(view[number], back(alone)[0], rtol=1e-4, atol=1e-4)


# --- Segmenter and Classifier

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('scaling', ['unit', 'symmetric', 'whitening'])
def test_a_segmenter_gives_the_lesion_logit_of_either_head(scaling, precision):
    two, one = PixelNetwork(2), PixelNetwork(1)
    one.conv.weight.data = two.conv.weight.data[1:] - two.conv.weight.data[:1]
    one.conv.bias.data = two.conv.bias.data[1:] - two.conv.bias.data[:1]
    batch, _ = pictures(3)
    found = [Segmenter(network, scaling, precision)(batch) for network in (one, two)]
    expected = two(to_input(batch, scaling)).softmax(1)[:, 1]
    for logit in found:
        assert logit.shape == (3, 16, 16) and logit.dtype is torch.float32 and not logit.requires_grad
        torch.testing.assert_close(torch.sigmoid(logit), expected, rtol=0,
                                   atol=1e-5 if precision == 'fp32' else 0.05)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('channels', [3, 4])
def test_a_classifier_gives_probabilities_and_the_cam_of_its_own_class(channels, relu):
    network, (batch, coarse) = TinyMaskCN(channels), pictures(4)
    probabilities, cam = Classifier(network, 'symmetric', 'fp32', relu)(batch, coarse)
    x = batch / 127.5 - 1
    x = torch.cat([x, coarse[:, None].float()], 1) if channels == 4 else x
    features = network.features(x)
    logits = network.classify(features)
    torch.testing.assert_close(probabilities, logits.softmax(1))
    expected = class_activation_map(features, network.cls.weight, logits.argmax(1), relu)
    torch.testing.assert_close(cam, expected)
    assert cam.shape == (3, 1, 4, 4) and not network.training


def test_an_enhanced_segmenter_feeds_the_cam_to_its_network():
    segmenter, (batch, coarse) = enhanced(), pictures(5)
    cam = segmenter.classifier(batch, coarse)[1]
    expected = lesion_logit(segmenter.network(batch / 255.0, cam))
    torch.testing.assert_close(segmenter(batch, coarse), expected)
    assert not torch.allclose(segmenter(batch, 1 - coarse), expected)


@QUICK
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0]))
def test_counts_on_the_device_are_the_metrics_counts(seed, batch, side, share):
    g = torch.Generator().manual_seed(seed)
    logit = torch.randn(batch, side, side, generator=g)
    truth = (torch.rand(batch, side, side, generator=g) < share).to(torch.uint8)
    counts = counts_on_device(logit, truth)
    assert counts.dtype is torch.int64
    for row, found, there in zip(counts.tolist(), logit.numpy() > 0, truth.numpy() > 0, strict=True):
        assert row == metrics.confusion(found, there).tolist()


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e38])
def test_outputs_that_are_not_finite_are_refused_wherever_pictures_are_segmented(tmp_path, value):
    paths, coarse, _ = write_pictures(tmp_path)

    def refused(segmenter, *names):
        for call in (lambda: list(segment_files(segmenter, paths, coarse, (32,), 2, tta=False)),
                     lambda: segment(segmenter, [np.zeros((1, 32, 32, 3), np.uint8)],
                                     [np.zeros((1, 32, 32), np.uint8)])):
            with pytest.raises(InputError, match='not finite') as error:
                call()
            assert all(name in str(error.value) for name in names)

    plain, guided = Segmenter(PixelNetwork(), 'unit', 'fp32', weights='plain.pth'), enhanced()
    plain.network.conv.bias.data[0] = -value
    refused(plain, 'plain.pth')
    guided.classifier.network.cls.weight.data[:] = value   # the fault is its, though enhanced-SN's shows it
    guided.classifier.weights = 'MaskCN.pth'
    if value != 1e38:   # a map is divided by its maximum
        refused(guided, 'MaskCN.pth')
        with pytest.raises(InputError, match='MaskCN.pth'):
            maps_of_files(guided.classifier, paths, coarse, 32)


# --- One path

def test_squashed_pictures_and_masks_are_resized_one_by_one():
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 30), (32, 32), (20, 90))]
    masks = [rng.integers(0, 2, picture.shape[:2]).astype(np.uint8) for picture in pictures]
    for arrays, resize in ((pictures, images.resize_rgb), (masks, images.resize_mask)):
        for side, found in zip((16, 32), squashed(iter(arrays), (16, 32)), strict=True):
            assert np.array_equal(found, [resize(array, (side, side)) for array in arrays])
    assert np.array_equal(squashed(masks, [32])[0][1], masks[1])


@pytest.mark.parametrize('tta', [True, False])
def test_drawing_evaluating_and_segmenting_one_picture_give_one_mask(tmp_path, tta):
    """At the network's own size nothing is enlarged, so that the three are equal to the last bit."""
    segmenter, rng = Segmenter(PixelNetwork(1, 1.0), 'unit', 'fp32'), np.random.default_rng(2)
    pixels = images.resize_rgb(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (32, 32))
    images.write_png(tmp_path / 'a.png', pixels)
    views = segment(segmenter, [pixels[None]], tta=tta)
    assert [scale.shape for scale in views] == [(6 if tta else 1, 1, 32, 32)]
    drawn = draw_coarse(segmenter, pixels[None], tta)[0]
    evaluated = next(segment_files(segmenter, [tmp_path / 'a.png'], None, (32,), 1, tta))
    assert drawn.dtype == np.uint8 and 0.02 < drawn.mean() < 0.98
    for mask in (mask_of([scale[:, 0] for scale in views], (32, 32)), evaluated['tta' if tta else 'plain']):
        assert np.array_equal(mask, drawn == 1)


def test_the_panel_of_an_evaluation_shows_the_map_that_was_used(tmp_path, monkeypatch):
    segmenter, drawn = enhanced(), []
    paths, coarse, truths = write_pictures(tmp_path)
    monkeypatch.setattr(figures, 'panel', lambda rows, titles, path, errors: drawn.append((rows, titles)))
    scores = np.linspace(0, 1, 25).reshape(5, 5)
    panels.evaluation_panel(segmenter, list(zip(paths, truths, strict=True)), coarse, 32, scores, coarse, 3,
                            tmp_path / 'panel.png')
    (rows, titles), chosen = drawn[0], (0, 2, 4)
    assert titles == ['image', 'truth', 'coarse mask', 'CAM', 'found mask', 'truth, found']
    for (caption, pictures), number in zip(rows, chosen, strict=True):
        width, height = SIZES[number]
        assert f'{width}x{height}  JA {100 * scores[number, 0]:.0f}' in caption
        shape = tuple(round(panels.SIDE * edge / max(SIZES[number])) for edge in (height, width))
        assert {picture.shape[:2] for picture in pictures} == {shape}
        picture, mask = cache.read_rgb_square(paths[number], 32), cache.read_mask_square(coarse[number], 32)
        cam = segmenter.classifier(*place(picture[None], mask[None], CPU))[1][0, 0].numpy()
        assert cam.shape == (8, 8)   # drawn in a batch: on some CPUs the last bits are others
        np.testing.assert_allclose(pictures[3], panels.stretched(cam, pictures[0]), atol=1e-5)
        assert pictures[1].max() == 1 and pictures[2].dtype == np.uint8


def test_the_panel_of_mask_cn_names_classes_and_marks_errors(tmp_path, monkeypatch):
    data, classifier, drawn = crops_of_three_images(), Classifier(TinyMaskCN(), 'symmetric', 'fp32'), []
    whole = [2, 0, 5]   # an image's first crop
    p, cams = classifier(*place(data.images, data.coarse, CPU, whole))
    data.labels[whole] = p.argmax(1) + torch.tensor([0, 1, 0])
    data.labels[:] %= 3   # the second one is wrong
    monkeypatch.setattr(figures, 'save', lambda figure, path: drawn.append(figure))
    panels.classification(classifier, data, CPU, tmp_path / 'panel.png')
    axes = np.reshape(drawn[0].axes, (3, 3))
    assert [one.get_title() for one in axes[0]] == ['image', 'coarse mask', 'map of found class']
    for number, line in enumerate(axes):
        found, label = int(p[number].argmax()), line[0].yaxis.get_label()
        true = PAPER.names[data.labels[whole[number]]]
        assert label.get_text().endswith(f'{"abc"[number]}\n{100 * p[number, found]:.0f} % '
                                         f'{PAPER.names[found]}\ntrue: {true}')
        assert label.get_text().startswith('\u2717') == (number == 1)
        assert (label.get_color() == figures.ERROR) == (number == 1)
        np.testing.assert_array_equal(line[2].images[0].get_array(), figures.warmed(
            data.images[whole[number]], cams[number, 0].numpy()))


# --- Evaluation at the networks' resolution

@pytest.fixture(params=[1, 2])
def cores(request):
    """With two, batches are computed side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('batch_size', [1, 2, 16])
def test_quick_segmentation_is_the_mean_over_images_one_by_one(batch_size, cores):
    rng, segmenter = np.random.default_rng(6), enhanced()
    masks = rng.integers(0, 2, (2, 5, 16, 16)).astype(np.uint8)
    data = Segmentation(rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8), masks[0], masks[1],
                        list('abcde'), '')
    rows = []
    for image, truth, coarse in zip(data.images, data.masks, data.coarse, strict=True):
        logit = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(coarse)[None])
        rows.append(metrics.confusion(logit[0].numpy() > 0, truth > 0))
    expected = dict(zip(metrics.SEGMENTATION, metrics.segmentation_scores(rows).mean(0), strict=True))
    assert evaluation.quick_segmentation(segmenter, data, batch_size, ALONE) == pytest.approx(expected)


def crops_of_three_images():
    """Seven 16 px crops, of three images in a mixed order."""
    rng = np.random.default_rng(7)
    return Classification(rng.integers(0, 256, (7, 16, 16, 3), dtype=np.uint8),
                          rng.integers(0, 2, (7, 16, 16)).astype(np.uint8),
                          np.array([2, 2, 0, 0, 0, 1, 2]), np.array([1, 1, 0, 0, 0, 2, 1]), list('abc'), '')


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('batch_size', [1, 3, 16])
def test_crop_probabilities_in_batches_are_those_one_by_one(batch_size, precision, cores):
    data, classifier = crops_of_three_images(), Classifier(TinyMaskCN(), 'symmetric', precision).folded()
    found = evaluation.crop_probabilities(classifier, data, batch_size, ALONE)
    for row, image, coarse in zip(found, data.images, data.coarse, strict=True):
        alone, _ = classifier(torch.from_numpy(image).permute(2, 0, 1)[None],
                              torch.from_numpy(coarse)[None])
        np.testing.assert_allclose(row, alone[0].numpy(), atol=1e-6)


def test_an_images_probabilities_are_the_mean_over_its_crops():
    data, crops = crops_of_three_images(), np.random.default_rng(8).dirichlet([1, 1, 1], 7)
    found, labels = evaluation.image_probabilities(crops, data)
    np.testing.assert_allclose(found, [crops[[2, 3, 4]].mean(0), crops[[0, 1, 6]].mean(0), crops[5]])
    assert labels.tolist() == [0, 2, 1]
    np.testing.assert_array_equal(evaluation.whole_image_probabilities(crops, data), crops[[2, 0, 5]])


# --- Evaluation at full size

SIZES = ((70, 50), (64, 64), (33, 90), (48, 31), (120, 100))   # width, height


def write_pictures(folder):
    """Smooth pictures, coarse masks and truths as png; returns the three lists of paths."""
    rng, paths = np.random.default_rng(9), []
    for number, (width, height) in enumerate(SIZES):
        image = images.resize_rgb(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height))
        masks = [images.resize_mask(rng.integers(0, 2, (5, 5)).astype(np.uint8), (width, height))
                 for _ in range(2)]
        row = [folder / kind / f'ISIC_{number:07d}.png' for kind in ('image', 'coarse', 'truth')]
        images.write_png(row[0], image)
        for path, mask in zip(row[1:], masks, strict=True):
            images.write_mask(path, mask)
        paths.append(row)
    return zip(*paths, strict=True)


def slow_logits(segmenter, path, coarse_path, scales, tta):
    """One picture, one scale, one view at a time; enlarged by torch's bicubic interpolation."""
    picture, total = images.read_rgb(path), 0
    for scale in scales:
        x = torch.from_numpy(images.resize_rgb(picture, (scale, scale)).copy()).permute(2, 0, 1)[None]
        mask = images.resize_mask(images.read_mask(coarse_path), (scale, scale)) > 0
        mask = torch.from_numpy(mask.astype(np.uint8))[None]
        logit = sum(back(segmenter(forward(x), forward(mask))) for forward, back in VIEWS[:6 if tta else 1])
        total = total + F.interpolate(logit[None], picture.shape[:2], mode='bicubic', align_corners=False)
    return total[0, 0].numpy()


@pytest.mark.parametrize('batch_size', [2, 16])
@pytest.mark.parametrize('segmenter', [Segmenter(PixelNetwork(1, 1.0), 'unit', 'fp32'), enhanced(1.0)])
def test_full_size_maps_are_those_of_one_image_at_a_time(tmp_path, segmenter, batch_size):
    paths, coarse, _ = write_pictures(tmp_path)
    scales = 32, 48, 64
    masks = coarse if segmenter.classifier else None
    found = list(segment_files(segmenter, paths, masks, scales, batch_size))
    alone = list(segment_files(segmenter, paths, coarse, scales, batch_size, tta=False))
    for row, plain, path, coarse_path, size in zip(found, alone, paths, coarse, SIZES, strict=True):
        assert plain.keys() == {'plain'} and np.array_equal(plain['plain'], row['plain'])
        for kind, used, tta in (('plain', scales[:1], False), ('tta', scales, True)):
            expected = slow_logits(segmenter, path, coarse_path, used, tta)
            assert row[kind].shape == expected.shape == size[::-1] and row[kind].dtype == bool
            certain = np.abs(expected) > 1e-3   # two bicubic implementations round differently
            assert certain.mean() > 0.98
            assert np.array_equal(row[kind][certain], expected[certain] > 0)
            assert 0.02 < row[kind].mean() < 0.98


def test_evaluation_scores_and_exports_masks_of_the_pictures_own_size(tmp_path):
    segmenter = Segmenter(PixelNetwork(), 'unit', 'fp32')
    paths, _, truths = write_pictures(tmp_path)
    cfg = SimpleNamespace(BATCH_SIZE=3, TTA=True)
    found = evaluation.predict_to_disk(segmenter, paths, None, (32, 48), cfg, tmp_path / 'out')
    scores = scoring.score_arrays(found, truths)
    for number, (path, truth) in enumerate(zip(paths, truths, strict=True)):
        exported = images.read_mask(tmp_path / 'out' / f'{path.stem}_segmentation.png')
        counts = metrics.confusion(exported > 0, images.read_mask(truth) > 0)
        assert exported.shape == SIZES[number][::-1]
        np.testing.assert_allclose(metrics.segmentation_scores(counts)[0], scores['tta'][number])
    assert scores['plain'].shape == (5, 5)
    truth_of = {path.stem: truth for path, truth in zip(paths, truths, strict=True)}
    again = scoring.score_folders({'ours': tmp_path / 'out'}, truth_of)
    assert np.array_equal(again['ours'], scores['tta'])


def test_all_faults_of_pictures_and_masks_are_named_before_one_is_segmented(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    paths, _, truths = write_pictures(layout.originals('Testing'))
    files.write_text(layout.segmentation_list('Testing'), ''.join(
        f'image/{path.name} truth/{path.name}\n' for path in paths))
    for number in (1, 3):
        images.write_png(truths[number], np.full(SIZES[number][::-1], 9, np.uint8))
    paths[2].write_bytes(paths[2].read_bytes()[:-200])
    images.write_mask(truths[4], np.ones((9, 9), np.uint8))
    monkeypatch.setattr('sys.argv', ['eval_EnhancedSN.py', f'--ROOT={tmp_path}', '--SPLIT=Testing',
                                     '--NETWORK=CoarseSN'])
    with pytest.raises(InputError) as error:
        eval_EnhancedSN.main()
    for fault, path, words in zip(error.value.faults, (truths[1], paths[2], truths[3], truths[4]), (
            'not a binary mask', 'is damaged', 'not a binary mask', 'is 9x9 px'), strict=True):
        assert fault.startswith(f'{path}: ') and words in fault
    assert not layout.results.exists()
