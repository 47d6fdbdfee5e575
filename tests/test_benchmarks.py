"""The plain versions compute what ours compute, and the tables say what was measured."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bench, full_run, machine, plain, scaling, works, works_data, works_net
from companions.mask2lesion import networks as mask2lesion
from companions.weak_labels import shape_scores
from dataset import crops, synthetic
from dataset.layout import Layout
from engine import images, metrics, trainer
from experiments import costs
from mbdcnn import evaluation, inference
from mbdcnn.inference import segment_files
from net import loss
from net.cam import class_activation_map
from net.models import Xception_dilation, deeplabv3plus_en

CPU = torch.device('cpu')


def masked_probabilities(seed=0, side=64):
    """Probabilities that need gradients, and masks with more than K pixels of either class."""
    torch.manual_seed(seed)
    masks = torch.zeros(3, side, side)
    masks[:, 8:40, 16:48] = 1
    return torch.rand(3, side, side).requires_grad_(), masks


def test_plain_and_fast_rank_loss_and_their_gradients_agree():
    p, y = masked_probabilities()
    results = []
    for value in (plain.pair_loss(*plain.hard_pixels(p, y)), loss.rank_loss(p, y)):
        p.grad = None
        value.backward()
        results.append((value.detach(), p.grad.clone()))
    assert results[0][0] > 0.1
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


def test_plain_and_fast_pairs_agree():
    p, y = masked_probabilities()
    background, lesion = plain.hard_pixels(p, y)
    ours = loss.mean_over_pairs(background, 1 - lesion, plain.MARGIN).mean()
    torch.testing.assert_close(ours, plain.pair_loss(background, lesion))


def test_the_plain_hybrid_loss_is_ours():
    _, y = masked_probabilities()
    logits = torch.randn(3, 2, 64, 64)
    ours = loss.hybrid_loss(logits, y)
    torch.testing.assert_close(plain.hybrid_loss(logits, y), ours, atol=1e-5, rtol=1e-4)


def test_plain_and_fast_activation_maps_agree():
    torch.manual_seed(0)
    features, weight, logits = torch.rand(2, 40, 5, 5), torch.rand(3, 40) - 0.3, torch.randn(2, 3)
    ours = class_activation_map(features, weight, logits.argmax(1))
    torch.testing.assert_close(ours, plain.class_activation_maps(features, weight, logits))


def test_a_plain_step_of_mask2lesion_is_ours(tmp_path, monkeypatch):
    """In float32 and without dropout: the same losses, from the same weights, in the second step too."""
    def networks(_):
        torch.manual_seed(0)
        return [mask2lesion.initialise(network) for network in (
            mask2lesion.Generator(4, 5, dropout=False), mask2lesion.Discriminator(4))]

    monkeypatch.setattr(works_net.Mask2LesionStep, 'networks', networks)
    monkeypatch.setattr(works_net.Mask2LesionStep, 'size', 32)
    monkeypatch.setitem(works_net.SETTINGS, 'AMP', 'fp32')
    work, found = works_net.Mask2LesionStep(tmp_path, CPU), []
    theirs, ours = work.plain(), work.ours()
    monkeypatch.setattr(trainer.Progress, 'add', lambda _, parts: found.append(
        [parts[name].item() for name in ('G GAN', 'G L1', 'D real', 'D fake')]))
    for _ in range(2):
        expected = theirs()
        ours()
        assert found[-1] == pytest.approx(expected, rel=1e-4)


def test_a_plain_step_and_evaluation_of_weak_labels_are_ours(tmp_path, monkeypatch):
    """In float32 and without dropout: the same losses, in the second step too, and the same scores."""
    pytest.importorskip('segmentation_models_pytorch')
    pytest.importorskip('skimage')
    monkeypatch.setitem(works_net.SETTINGS, 'AMP', 'fp32')
    monkeypatch.setattr(works_net.WeakStep, 'units', 3)
    monkeypatch.setattr(works_net.WeakEvaluation, 'units', 3)
    monkeypatch.setattr(torch.nn.Dropout, 'forward', lambda self, x: x)
    work, found, scores = works_net.WeakStep(tmp_path, CPU), [], []
    theirs, ours = work.plain(), work.ours()
    monkeypatch.setattr(trainer.Progress, 'add', lambda _, parts: found.append(
        [parts[name].item() for name in ('mask', 'class')]))
    for _ in range(2):
        expected = theirs()
        ours()
        assert found[-1] == pytest.approx(expected, rel=2e-3)
    evaluation, score = works_net.WeakEvaluation(tmp_path, CPU), shape_scores.score
    evaluation.precision = 'fp32'
    monkeypatch.setattr(shape_scores, 'score', lambda *masks: scores.append(masks) or score(*masks))
    evaluation.plain()()
    evaluation.ours()()
    for mine, other in zip(scores[:3], scores[3:], strict=True):
        assert (mine[0] != other[0]).mean() < 1e-3 and (mine[1] == other[1]).all()


def test_a_plain_step_of_label_transfer_is_ours(tmp_path, monkeypatch):
    """In float32: the same losses, from the same weights, in the second step too."""
    work, found = works_net.TransferStep(tmp_path, CPU), []
    monkeypatch.setattr(work, 'settings', {'WIDTH': 4, 'D_WIDTH': 4, 'BLOCKS': 1, 'D_LAYERS': (5, 4)})
    monkeypatch.setattr(work, 'size', 32)
    monkeypatch.setitem(works_net.SETTINGS, 'AMP', 'fp32')
    theirs, ours = work.plain(), work.ours()
    # Ours asks a discriminator once where plain asks twice; each time its spectral norms are estimated anew.
    monkeypatch.setattr(torch.nn.utils.parametrizations._SpectralNorm, '_power_method', lambda *_: None)
    names = 'D A', 'D B', 'G adv', 'G cycle', 'G identity', 'G recon', 'G cam'
    monkeypatch.setattr(trainer.Progress, 'add', lambda _, parts: found.append(
        [parts[name].item() for name in names]))
    for _ in range(2):
        expected = theirs()
        ours()
        assert found[-1] == pytest.approx(expected, rel=2e-3)


def test_plain_crops_are_ours(tmp_path):
    work = works_data.Extraction(tmp_path, CPU)
    work.names, work.originals = ['ISIC_0000001'], tmp_path / 'images'
    work.layout = Layout(tmp_path / 'root')
    picture = work.layout.originals('Training') / 'Images' / 'ISIC_0000001.jpg'
    works_data.write_jpg(picture, works_data.draw((640, 480), 0)[0])
    works_data.write_labels(work.layout.data / works_data.LABELS, work.names)
    plain.extract_crops(picture, tmp_path, crops.SCALES_9)
    work.ours()()
    for name in crops.crop_names('ISIC_0000001', crops.SCALES_9):
        theirs, own = (images.read_rgb(folder / name).astype(int)
                       for folder in (tmp_path, work.layout.crops('Training')))
        assert np.abs(theirs - own).mean() < 1   # ours crops and resizes in one step


def test_the_plain_evaluation_finds_the_same_mask(tmp_path):
    torch.manual_seed(0)
    enhanced, mask_cn = deeplabv3plus_en().eval(), Xception_dilation().eval()
    torch.nn.init.normal_(enhanced.cls_conv.weight, std=1.0)   # so that both classes occur
    picture, mask = synthetic.draw(np.random.default_rng(0), 1, 96)
    paths = [tmp_path / 'picture.png', tmp_path / 'coarse.png']
    images.write_png(paths[0], picture)
    images.write_mask(paths[1], mask)
    theirs = plain.segment_at_full_size(enhanced, mask_cn, *paths, (32, 48), CPU)
    classifier = inference.Classifier(mask_cn, 'symmetric', 'fp32')
    segmenter = inference.Segmenter(enhanced, 'unit', 'fp32', classifier)
    ours = next(segment_files(segmenter, paths[:1], paths[1:], (32, 48), 1))['tta']
    assert ours.shape == theirs.shape == picture.shape[:2] and 0 < ours.mean() < 1
    assert (ours == theirs).mean() > 0.98
    counted = metrics.segmentation_scores(metrics.confusion(ours, mask > 0))[0]
    np.testing.assert_allclose(plain.scores(ours, mask > 0), counted)


def test_plain_samples_have_the_networks_form(tmp_path):
    picture, mask = works_data.draw((700, 600), 0)
    images.write_png(tmp_path / 'a.png', picture)
    images.write_mask(tmp_path / 'b.png', mask)
    image, truth = plain.training_sample(tmp_path / 'a.png', tmp_path / 'b.png', 48)
    assert image.shape == (3, 48, 48) and truth.shape == (48, 48)
    assert 0 <= image.min() < image.max() <= 1 and set(truth.unique().tolist()) == {0.0, 1.0}


def test_a_work_is_measured_in_both_versions(tmp_path):
    name = 'pairs'
    row = bench.measure(name, tmp_path, SimpleNamespace(ROUNDS=1, SECONDS=0.1), CPU, {'memory': 1e10})
    assert row['ratio'] == pytest.approx(row['plain']['seconds'] / row['ours']['seconds'])
    assert row['ratio'] > 1
    assert row['share of floor'] == pytest.approx(row['floor']['amount'] / 1e10 / row['ours']['seconds'])
    line = bench.row_of(row)
    assert line.count('|') == len(bench.HEADER) + 1 and works.WORKS[name].title in line


def test_times_and_memory_are_told_in_fitting_units():
    assert [bench.seconds(value) for value in (2.5, 0.0123, 4.56e-5, 1e-8)] == ['2.5 s', '12.3 ms', '45.6 µs',
                                                                              '0.01 µs']
    assert bench.memory({'memory': 3 * 2**20, 'gpu_memory': 0}) == '3 MB'
    assert bench.memory({'memory': 3 * 2**20, 'gpu_memory': 2**30}) == '3 MB + 1024 MB GPU'


def test_operations_are_counted_and_rates_positive(monkeypatch):
    assert machine.flops(torch.nn.Linear(5, 7), torch.zeros(3, 5)) == 2 * 3 * 5 * 7
    for name, value in (('SIDES', {'cpu': (64,)}), ('COPIED', 2**16), ('SECONDS', 0.01)):
        monkeypatch.setattr(machine, name, value)
    assert all(rate > 0 for rate in machine.rates(CPU).values())


@pytest.mark.parametrize('name', ['coarse-SN', 'mask-CN'])   # test_resident.py has the third
def test_every_stage_of_a_full_run_is_measured(name, tmp_path, monkeypatch):
    """At 32 px here; validation pictures are half as large as training pictures, as in the scripts."""
    seen = []
    for function in ('quick_segmentation', 'crop_probabilities'):
        validate = getattr(evaluation, function)
        monkeypatch.setattr(evaluation, function,
                            lambda network, data, *rest, validate=validate: seen.append(data) or validate(
                                network, data, *rest))
    monkeypatch.setattr(full_run, 'draw', lambda size, *rest: works_data.draw((64, 64), *rest))
    monkeypatch.setattr(full_run, 'full_training', lambda _: costs.Training(1000, 4, 20, 150))
    monkeypatch.setitem(works_net.SETTINGS, 'INPUT_SIZE', 32)
    given = SimpleNamespace(IMAGES=4, STEPS=1, WARM=1, ROUNDS=1, PROFILE=False, PICTURES_ON='auto',
                            COMPILE='off')
    row = full_run.measure(name, given, CPU, tmp_path) | {'stage': name}
    assert [data.images.shape for data in seen] == [(4, 32, 32, 3)] * 2
    assert row['full run'] == pytest.approx(
        1000 * row['step'] + 20 * (150 * row['validation'] + 0.1 * row['save']))
    text = full_run.report('a machine', {row['precision']: 1e12, 'memory': 1e10}, [row], plain=1.0)
    assert name in text and 'All three stages' in text


def test_scaling_counts_every_image(tmp_path):
    layout = Layout(tmp_path)
    scaling.prepare(layout, 17)
    assert scaling.extract(layout)['microseconds'] > 0
    assert len(list(layout.crops('Training').glob('*.png'))) == 17 * 9
    assert scaling.load(layout).shape == (17, 224, 224, 3)
    rows = [{'images': count, 'phase': phase, 'microseconds': 10.0, 'megabytes': 5.0}
            for count in (100, 1000) for phase in scaling.PHASES]
    assert scaling.table('a machine', rows).count('10 µs, 5 MB') == 6
    scaling.draw_chart(rows, tmp_path / 'chart.png')
    assert images.image_size(tmp_path / 'chart.png')[0] > 500
