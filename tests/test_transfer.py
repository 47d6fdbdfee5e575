"""How mask-CN's maps reach the segmentation network (E-layer, D-Net, MDC, none); fine-tuning; end marks."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset import isic, splits
from dataset.layout import Layout
from engine import cache, checkpoints, files, images, run_folder
from engine.errors import InputError
from mbdcnn import networks, stages, transfer
from mbdcnn.inference import place
from mbdcnn.predictor import MBDCNN
from net import weights
from net.models import deeplabv3plus, deeplabv3plus_d
from tests.conftest import STAGES, figure, made_once, run_in_turn
from tests.test_training import ALONE, tiny_task, train
from tests.test_weights import constants, left_alone, names, untouched

ENHANCED = STAGES['train_EnhancedSN.py']
EVALUATION = '--SCALES=32,48', '--AMP=fp32', '--TTA=False'
MASKED = 4   # training pictures with a mask in the run of MDC
READS = {'d-net': {'coarse_masks', 'mask_cn'}, 'mdc': {'coarse_masks', 'mask_cn'}, 'none': set(),
         'rgb': {'mask_cn'}}   # inputs of each run beside the pictures
USED = {'d-net': {'EnhancedSN', 'MaskCN'}, 'mdc': {'EnhancedSN'}, 'none': {'EnhancedSN'},
        'rgb': {'EnhancedSN', 'MaskCN'}}   # weights of each evaluation


# --- D-Net

@pytest.fixture(scope='module')
def coarse_state():
    """Constants for coarse-SN, but for the convolution of which D-Net takes a part."""
    with torch.device('meta'):
        state = constants(deeplabv3plus().state_dict())
    return state | {'cat_conv.0.weight': torch.randn(256, 304, 3, 3)}


def test_dnet_has_the_decoder_under_its_names_and_the_map_as_its_only_input():
    with torch.device('meta'):
        own, plain = deeplabv3plus_d(1).state_dict(), deeplabv3plus(1).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    assert {name.partition('.')[0] for name in own} == {'cam_conv', 'cat_conv', 'cls_conv'}
    assert shapes.pop('cam_conv.0.weight') == (256, 1, 1, 1)
    assert shapes.pop('cat_conv.0.weight') == (256, 256, 3, 3)
    assert len(shapes) == 21 and all(shapes[name] == tuple(plain[name].shape)
                                     for name in shapes if not name.startswith('cam_conv.'))


@pytest.mark.parametrize('side', [224, 256, 288])
def test_dnet_gives_logits_of_the_pictures_size(side):
    with torch.device('meta'):
        network = deeplabv3plus_d(1).eval()
        cells = side // 16
        logits = network(torch.empty(2, 3, side, side), torch.empty(2, 1, cells, cells))
    assert logits.shape == (2, 1, side, side)


def test_dnet_sees_the_map_and_not_the_picture():
    network, cam = deeplabv3plus_d().eval(), torch.rand(1, 1, 2, 2)
    with torch.no_grad():
        one, other, flipped = (network(torch.rand(1, 3, 32, 32), seen) for seen in (cam, cam, cam.flip(3)))
    assert torch.equal(one, other) and not torch.equal(one, flipped)


def test_dnet_keeps_exactly_its_first_convolution_random(coarse_state):
    network = untouched(deeplabv3plus_d)
    weights.load_coarse_decoder(network, coarse_state)
    assert left_alone(network) == names(network, 'cam_conv.')
    for name, tensor in network.state_dict().items():
        if name == 'cat_conv.0.weight':
            assert torch.equal(tensor, coarse_state[name][:, :256])
        elif not name.startswith('cam_conv.'):
            assert torch.equal(tensor, coarse_state[name]), name


def test_dnets_decoder_is_that_of_coarse_sn_on_the_pyramid(coarse_state):
    coarse, network = deeplabv3plus().eval(), deeplabv3plus_d().eval()
    with torch.no_grad():
        coarse.cat_conv[0].weight[:, 256:] = 0   # what coarse-SN's encoder adds at stride 4
        weights.load_coarse_decoder(network, coarse.state_dict())
        network.cam_conv = torch.nn.Identity()
        pyramid = torch.randn(1, 256, 2, 2)
        expected = coarse.decode(pyramid, torch.randn(1, 256, 8, 8))
        torch.testing.assert_close(network(None, pyramid), expected)


@pytest.mark.parametrize('change, complaint', [
    ({'cat_conv.4.weight': None}, 'cat_conv.4.weight is missing'),
    ({'cat_conv.0.weight': torch.zeros(256, 300, 3, 3)}, 'cat_conv.0.weight has shape (256, 300, 3, 3)'),
    ({'cls_conv.weight': torch.zeros(1, 256, 1, 1)}, 'cls_conv.weight has shape (1, 256, 1, 1) instead of'),
    ({'cam_conv.0.bias': torch.zeros(256)}, 'cam_conv.0.bias should not be in the file'),
    ({'other.weight': torch.zeros(1)}, 'other.weight is not a parameter of deeplabv3plus_d')])
def test_what_is_no_coarse_sn_is_refused(coarse_state, change, complaint):
    state = {name: tensor for name, tensor in (coarse_state | change).items() if tensor is not None}
    with pytest.raises(ValueError) as error:
        weights.load_coarse_decoder(untouched(deeplabv3plus_d), state)
    assert complaint in str(error.value)


# --- MDC: pictures without a mask

def slow_proxy(cam, size, threshold):
    """One map (h, w) as a mask (size, size): bilinear by pixel centres, written as loops."""
    enlarged = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = (min(max((place + 0.5) * side / size - 0.5, 0), side - 1)
                    for place, side in ((row, cam.shape[0]), (column, cam.shape[1])))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, cam.shape[0] - 1), min(left + 1, cam.shape[1] - 1)
            upper = cam[top, left] * (1 - x + left) + cam[top, right] * (x - left)
            lower = cam[bottom, left] * (1 - x + left) + cam[bottom, right] * (x - left)
            enlarged[row, column] = upper * (1 - y + top) + lower * (y - top)
    lesion = enlarged >= threshold * enlarged.max() if enlarged.max() > 0 else np.zeros((size, size))
    return lesion.astype(np.uint8)


@pytest.mark.parametrize('threshold', [0.3, 0.7, 0.95])
def test_proxy_masks_are_those_of_a_slow_loop(threshold):
    maps = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    maps[1], maps[2] = -abs(maps[1]), 0   # a class without any evidence has no lesion
    crops = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    data = splits.Unmasked(crops, None, crops, list('abcde'), '')

    def classifier(pictures, coarse):
        assert coarse is None
        return None, torch.from_numpy(maps[pictures[:, 0, 0, 0].numpy()])[:, None]

    found = transfer.proxy_masks(classifier, data, 24, threshold, 2, ALONE)
    assert found.shape == (5, 24, 24) and found.dtype == np.uint8
    assert not found[1:3].any() and all(found[number].any() for number in (0, 3, 4))
    for mask, cam in zip(found, maps, strict=True):
        assert np.array_equal(mask, slow_proxy(cam, 24, threshold))


def test_joined_arrays_are_one():
    whole = np.arange(20).reshape(5, 2, 2)
    joined = splits.Joined(whole[:3], whole[3:])
    assert joined.shape == (5, 2, 2) and len(joined) == 5
    assert np.array_equal(np.stack(list(joined)), whole) and np.array_equal(joined[-1], whole[4])
    with pytest.raises(IndexError):
        joined[5]


def test_the_pictures_of_extra_images_are_the_originals_where_they_are(tmp_path):
    layout, rng = Layout(tmp_path), np.random.default_rng(0)

    def draw(path, side):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        images.write_png(path, pixels)
        return pixels

    listed = ('a', 'a_9_1', 'b', 'b_15_2', 'c')
    crops = {name: draw(layout.crops('Training') / f'{name}.png', 32) for name in listed}
    draw(layout.segmentation('Training') / 'Images' / 'a.png', 64)
    images.write_png(layout.segmentation('Training') / 'Annotation' / 'a_segmentation.png',
                     np.zeros((64, 64), np.uint8))
    original = draw(layout.originals('Training_Add') / 'Images' / 'b.png', 64)
    layout.lists.mkdir(parents=True)
    layout.segmentation_list('Training').write_text('Images/a.png Annotation/a_segmentation.png\n')
    layout.classification_list('Training').write_text(''.join(f'{name}.png 0\n' for name in listed))
    found = splits.unmasked(layout, ['a'], 32, 64, coarse=False)
    assert found.names == ['b', 'c'] and found.coarse is None
    assert np.array_equal(found.crops, [crops['b'], crops['c']])
    assert np.array_equal(found.pictures, [original, images.resize_rgb(crops['c'], (64, 64))])
    with pytest.raises(InputError, match='without a pixel mask(.|\n)*--EXTRA=True(.|\n)*--TRAIN_IMAGES'):
        splits.unmasked(layout, ['a', 'b', 'c'], 32, 64, coarse=False)


def proxies(layout, **changes):
    """(real pictures, the same with proxies) of an experiment, as train_EnhancedSN.py makes them."""
    cfg = SimpleNamespace(**{'INPUT_SIZE': 32, 'CACHE_SIZE': 64, 'CAM_RELU': False, 'AMP': 'fp32',
                             'PROXY_THRESHOLD': 0.3, 'BATCH_SIZE': 3, 'SEED': 0} | changes)
    real = splits.segmentation(layout, 'Training', cfg.CACHE_SIZE, limit=MASKED, seed=cfg.SEED)
    inputs = transfer.require(layout, 'mdc', [layout.coarse_for_classification('Training')])
    return real, transfer.with_proxies(real, layout, cfg, inputs, ALONE)


def test_pictures_with_proxy_masks_follow_those_with_real_ones(chain, capsys):
    layout = chain.layout
    real, data = proxies(layout)
    ids = {isic.image_id_of(path) for path, _ in isic.read_classification_list(layout, 'Training')}
    assert data.names[:MASKED] == real.names and data.names[MASKED:] == sorted(ids - set(real.names))
    assert data.coarse is None and len(data.images) == len(data.masks) == len(ids) == len(data.names)
    assert all(np.array_equal(data.images[number], real.images[number]) and np.array_equal(
        data.masks[number], real.masks[number]) for number in range(MASKED))
    paths = {image.stem: image for image, _ in isic.read_segmentation_list(layout, 'Training')}
    classifier = networks.load_classifier(layout, ALONE.device, 'fp32')
    areas = []
    for number in range(MASKED, len(ids)):
        name = data.names[number]
        if name in paths:
            assert np.array_equal(data.images[number], cache.read_rgb_square(paths[name], 64))
        crop = cache.read_rgb_square(layout.crops('Training') / f'{name}.png', 32)
        mask = cache.read_mask_square(layout.coarse_for_classification('Training') / f'{name}.png', 32)
        cam = classifier(*place(crop[None], mask[None], ALONE.device))[1]
        expected = slow_proxy(cam[0, 0].numpy(), 64, 0.3)
        assert (data.masks[number] != expected).mean() < 0.005   # rounding, and batches of another size
        areas.append(data.masks[number].mean())
    said = capsys.readouterr().out
    assert f'{len(areas)} proxy masks beside {MASKED} real ones' in said
    assert f'mean area {100 * np.mean(areas):.1f} %' in said


def test_the_fingerprint_changes_with_proxies_and_threshold(chain, sibling):
    other = sibling('CoarseSN', 'MaskCN')
    path = other.weights('MaskCN')
    state = torch.load(path, weights_only=True)
    state['cls.bias'][0] += 1e-6
    path.unlink()   # the link
    torch.save(state, path)
    found = [proxies(layout, **changes)[1].fingerprint for layout, changes in (
        (chain.layout, {}), (chain.layout, {}), (chain.layout, {'PROXY_THRESHOLD': 0.31}),
        (chain.layout, {'CAM_RELU': True}), (other, {}))]
    assert found[0] == found[1] and len(set(found)) == 4


@pytest.mark.parametrize('value', [0.0, -0.1, 1.01])
def test_a_threshold_that_no_map_has_is_refused(value):
    cfg = SimpleNamespace(INPUT_SIZE=32, BATCH_SIZE=4, SHEAR=0.1, PROXY_THRESHOLD=value)
    with pytest.raises(InputError, match='PROXY_THRESHOLD'):
        stages.check_numbers(cfg, ALONE)


# --- The scripts

@pytest.fixture(scope='session')
def trained(chain, tmp_path_factory):
    """{case: (Layout, what training and evaluation printed)}; each root holds only what the case needs.

    rgb : a mask-CN without coarse masks; again : coarse-SN trained on, what TRANSFER=none should be
    """
    def build(base):
        commands = []
        for case, (linked, options) in {
                'd-net': (('CoarseSN', 'MaskCN'), ('--TRANSFER=d-net',)),
                'mdc': (('CoarseSN', 'MaskCN'), ('--TRANSFER=mdc', f'--TRAIN_IMAGES={MASKED}')),
                'none': (('CoarseSN',), ('--TRANSFER=none',)), 'rgb': (('CoarseSN',), ()),
                'again': ((), ('--LEARNING_RATE=5e-5',
                               f'--INITIAL_WEIGHTS={chain.layout.weights("CoarseSN")}'))}.items():
            layout = Layout(base / case)
            layout.models.mkdir(parents=True)
            (layout.root / 'dataset').symlink_to(chain.root / 'dataset')
            for network in linked:
                layout.run(network).symlink_to(chain.layout.run(network))
            if 'MaskCN' in linked:
                layout.coarse_masks.symlink_to(chain.layout.coarse_masks)
            if case == 'rgb':
                commands.append(('train_MaskCN.py', layout.root, *STAGES['train_MaskCN.py'],
                                 '--INPUT_CHANNEL=3'))
            script = 'train_CoarseSN.py' if case == 'again' else 'train_EnhancedSN.py'
            commands.append((script, layout.root, *ENHANCED, *options))
            if case != 'again':
                commands.append(('eval_EnhancedSN.py', layout.root, *EVALUATION))
        printed = {}
        for command, text in zip(commands, run_in_turn(*commands), strict=True):
            printed.setdefault(command[1].name, []).append(text)
        return printed

    base, printed = made_once(tmp_path_factory, 'transfer', build)
    return {case: (Layout(base / case), texts) for case, texts in printed.items()}


@pytest.mark.parametrize('case', READS)
def test_every_transfer_is_trained_scored_and_recorded(trained, case):
    layout, printed = trained[case]
    config = checkpoints.read_config(layout.weights('EnhancedSN'))
    assert config['inputs'].keys() == {'training', 'validation', 'drawn_pictures', 'initial_weights',
                                       'bn_eps', 'coarse_sn'} | READS[case]
    assert config['settings']['TRANSFER'] == {'rgb': 'e-layer'}.get(case, case)
    assert 'coarse-SN' in config['start'] and 'CoarseSN.pth' in config['start']
    result = json.loads((layout.results / 'EnhancedSN_Validation.json').read_text())
    assert result['n'] == 6 and result['weights'] == {
        name: files.fingerprint(layout.weights(name)) for name in USED[case]}
    panels = [figure(path) for path in (layout.run('EnhancedSN') / 'panel.png',
                                                 layout.results / 'EnhancedSN_Validation_panel.png')]
    assert all(panel.std() > 10 for panel in panels)
    assert 'Warning' not in ''.join(printed)
    assert layout.coarse_masks.exists() == ('coarse_masks' in READS[case])
    assert (f'proxy masks beside {MASKED} real ones' in printed[0]) == (case == 'mdc')


def test_panels_show_what_guides_the_network(trained):
    width = {case: figure(layout.results / 'EnhancedSN_Validation_panel.png').shape[1]
             for case, (layout, _) in trained.items() if case in READS}
    assert width['mdc'] == width['none'] < width['rgb'] < width['d-net']   # no guides, CAM, mask and CAM


def test_none_is_coarse_sn_trained_on(trained):
    """Same samples, schedule and dropout: the same weights bit for bit."""
    enhanced, coarse = (checkpoints.load_state(trained[case][0].run(network) / 'last.pth', '')
                        for case, network in (('none', 'EnhancedSN'), ('again', 'CoarseSN')))
    assert enhanced.keys() == coarse.keys()
    assert all(torch.equal(enhanced[name], coarse[name]) for name in coarse)


def test_an_rgb_mask_cn_guides_without_coarse_masks(trained):
    layout, _ = trained['rgb']
    segmenter = networks.load_segmenter(layout, 'EnhancedSN', ALONE.device, 'fp32')
    assert not segmenter.classifier.uses_masks and not networks.maskcn_reads_masks(layout)
    assert transfer.require(layout, 'e-layer', [layout.coarse_masks]).keys() == {'mask_cn'}


@pytest.mark.parametrize('case', READS)
def test_the_chain_predicts_with_every_transfer(chain, trained, case):
    layout, _ = trained[case]
    if not layout.weights('MaskCN').exists():
        layout.run('MaskCN').symlink_to(chain.layout.run('MaskCN'))
    model = MBDCNN.load(layout.models, 'cpu', 'fp32')
    assert (model.enhanced.classifier is None) == (case in ('mdc', 'none'))
    found = model(sorted((layout.originals('Validation') / 'Images').glob('*.jpg'))[0], tta=False)
    assert found.mask.any() and found.cam.shape == (2, 2)
    assert sum(found.class_probabilities.values()) == pytest.approx(1)


def test_an_unknown_transfer_in_a_run_folder_is_refused(tmp_path):
    layout = Layout(tmp_path)
    assert networks.trained_transfer(layout) == 'e-layer'   # weights of before, and of the release
    layout.run('EnhancedSN').mkdir(parents=True)
    (layout.run('EnhancedSN') / 'config.json').write_text('{"settings": {"TRANSFER": "f-layer"}}')
    with pytest.raises(InputError, match="TRANSFER is 'f-layer'(.|\n)*one of e-layer, d-net, mdc, none"):
        networks.trained_transfer(layout)


# --- Fine-tuning

def fine_tune(network, path, **changes):
    cfg = SimpleNamespace(**{'INITIAL_WEIGHTS': str(path), 'PRETRAINED': 'voc', 'VOC_WEIGHTS': 'missing.pth',
                             'NUM_CLASSES': 3 if network == 'MaskCN' else 2, 'DROPOUT': True,
                             'RELU_SKIP': False, 'INPUT_CHANNEL': 4, 'TRANSFER': 'd-net',
                             'BN_EPS': 0.0, 'START': 'coarse-sn', 'INPUT_SCALING': 'unit',
                             'SMALL_START': True} | changes)
    if network == 'MaskCN':
        return networks.mask_for_training(cfg)
    build = networks.coarse_for_training if network == 'CoarseSN' else networks.enhanced_for_training
    return build(cfg, None) if network == 'CoarseSN' else build(cfg, None, None)


@pytest.mark.parametrize('network', ['CoarseSN', 'MaskCN', 'EnhancedSN'])
def test_initial_weights_are_loaded_before_any_other(chain, trained, capsys, network):
    layout = trained['d-net'][0] if network == 'EnhancedSN' else chain.layout
    path = layout.weights(network)
    found, start = fine_tune(network, path, INPUT_SCALING='whitening')
    state = torch.load(path, weights_only=True)
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    assert f'({path.name}, sha256 {files.fingerprint(path)}...)' in start
    said = capsys.readouterr().out
    assert f'starts from {start}' in said and 'goes on with whitening' in said


def test_initial_weights_are_recorded(chain, trained):
    path, own = (layout.weights('CoarseSN') for layout in (chain.layout, trained['again'][0]))
    config = checkpoints.read_config(own)
    assert config['settings']['INITIAL_WEIGHTS'] == str(path)
    assert files.fingerprint(path) in config['start']


@pytest.mark.parametrize('network, changes, complaint', [
    ('CoarseSN', {'NUM_CLASSES': 1}, 'cls_conv.weight has shape'),
    ('MaskCN', {'INPUT_CHANNEL': 3}, 'conv1.weight has shape'),
    ('CoarseSN', {'INITIAL_WEIGHTS': 'nowhere/CoarseSN.pth'}, 'nowhere/CoarseSN.pth: is missing'),
    ('MaskCN', {'INITIAL_WEIGHTS': 'nowhere/MaskCN.pth'}, 'nowhere/MaskCN.pth: is missing'),
    ('EnhancedSN', {'TRANSFER': 'e-layer'}, 'backbone.* is missing')])
def test_initial_weights_must_fit(chain, trained, network, changes, complaint):
    layout = trained['d-net'][0] if network == 'EnhancedSN' else chain.layout
    with pytest.raises(InputError, match=complaint) as error:
        fine_tune(network, layout.weights(network), **changes)
    assert 'INITIAL_WEIGHTS must be weights of' in error.value.remedy


# --- Finished runs

@pytest.fixture
def mark(tmp_path, monkeypatch):
    """mark() -> "finished" in the config.json of the run in tmp_path; figures are not drawn."""
    monkeypatch.setattr(run_folder.figures, 'curves', lambda rows, monitor, path, _: None)
    return lambda: checkpoints.read_config(tmp_path / 'CoarseSN.pth').get('finished')


def test_a_run_is_marked_when_it_reaches_its_end(tmp_path, mark):
    train(tmp_path, tiny_task(scores=[0.5, 0.25]))
    assert mark() == {'step': 8, 'best': 0.5, 'best_step': 4}
    before = (tmp_path / 'config.json').read_bytes()
    train(tmp_path)   # nothing to do
    assert (tmp_path / 'config.json').read_bytes() == before
    config = json.loads(before)
    del config['finished']   # a run from before there were marks
    (tmp_path / 'config.json').write_text(json.dumps(config))
    train(tmp_path)
    assert mark() == {'step': 8, 'best': 0.5, 'best_step': 4}


def test_a_run_that_goes_on_loses_its_mark_until_the_end(tmp_path, mark):
    train(tmp_path, tiny_task(scores=[0.5, 0.25]))
    task, seen = tiny_task(scores=[0.75]), []
    validate = task.validate
    task.validate = lambda: seen.append(mark()) or validate()
    train(tmp_path, task, total=12)
    assert seen == [None] and mark() == {'step': 12, 'best': 0.75, 'best_step': 12}


def test_a_run_that_is_interrupted_has_no_mark(tmp_path, mark):
    def stop(step, loss):
        if step == 5:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tiny_task(before_loss=stop))
    assert mark() is None and (tmp_path / 'CoarseSN.pth').exists()
    train(tmp_path)
    assert mark()['step'] == 8


def test_patience_ends_in_a_mark_too(tmp_path, mark):
    train(tmp_path, tiny_task(scores=[0.5, 0.25]), total=40, PATIENCE=1)
    assert mark() == {'step': 8, 'best': 0.5, 'best_step': 4}


def test_a_score_that_is_not_defined_is_null(tmp_path, mark):
    train(tmp_path, tiny_task(scores=[math.nan, math.nan]))
    assert mark() == {'step': 8, 'best': None, 'best_step': 8}
