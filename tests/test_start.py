"""What new networks start from: the E-layer as the identity, and what runs of before are taken for."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.layout import Layout
from dataset.splits import Segmentation
from engine import files, hardware
from engine.errors import InputError
from engine.settings import RECIPES, resolved
from experiments.run_store import REPOSITORY, RunStore, agree
from mbdcnn import evaluation, networks, stages
from mbdcnn.inference import Segmenter
from net import weights
from net.loss import hybrid_loss
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_d, deeplabv3plus_en
from tests.stand_ins import SYSTEM, declare
from tests.test_predict import awake
from tests.test_training import train

SIDE = 64   # px
SCRIPTS = ('train_CoarseSN.py', 'generate_Coarse_mask.py', 'train_MaskCN.py', 'train_EnhancedSN.py',
           'eval_MaskCN.py', 'eval_EnhancedSN.py', 'reproduce_tables.py')
ALONE = hardware.Process(0, 1, torch.device('cpu'))


def settings(**changes):
    return SimpleNamespace(**{'INITIAL_WEIGHTS': '', 'TRANSFER': 'e-layer', 'E_LAYER_START': 'identity',
                              'E_LAYER_STD': 1.0, 'INPUT_SIZE': SIDE, 'INPUT_SCALING': 'unit',
                              'NUM_CLASSES': 2, 'DROPOUT': True, 'BN_EPS': 0.0,
                              'START': 'coarse-sn'} | changes)


@pytest.fixture(scope='module')
def pictures():
    """Twelve smooth random pictures, (N, S, S, 3) uint8, larger than the network's input."""
    coarse = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (96, 96), mode='bicubic').clamp(0, 1)
    return (255 * smooth).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(scope='module')
def trained(tmp_path_factory, pictures):
    """Layout of a root with a coarse-SN whose batch norms know its pictures; the network."""
    torch.manual_seed(1)
    layout = Layout(tmp_path_factory.mktemp('start'))
    coarse = awake(deeplabv3plus(), networks._calibration_inputs(pictures, settings()))
    with torch.no_grad():   # half of the pixels lesion
        logits = coarse.eval()(networks._calibration_inputs(pictures, settings()))
        coarse.cls_conv.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    layout.run('CoarseSN').mkdir(parents=True)
    torch.save(coarse.state_dict(), layout.weights('CoarseSN'))
    yield layout, coarse
    layout.weights('CoarseSN').unlink()


@pytest.mark.parametrize('start, std', [('identity', 0.0), ('identity', 1.0), ('random', 1.0)])
def test_enhanced_sn_begins_with_the_validation_score_of_coarse_sn(trained, pictures, start, std, capsys):
    """Whatever the map, where its weights are 0; else without one."""
    layout, coarse = trained
    cfg = settings(E_LAYER_START=start, E_LAYER_STD=std)
    enhanced, said = networks.enhanced_for_training(cfg, layout, pictures)
    assert ('its E-layer as the identity' in said) == (start == 'identity')
    assert 'goes on with' not in capsys.readouterr().out
    record = layout.run('CoarseSN') / 'config.json'
    record.write_text('{"settings": {"INPUT_SCALING": "whitening"}}')
    networks.enhanced_for_training(cfg, layout, pictures)
    record.unlink()
    assert 'trained with INPUT_SCALING=whitening and goes on with unit' in capsys.readouterr().out
    rng = np.random.default_rng(2)
    masks = np.repeat(np.repeat(rng.integers(0, 2, (12, 8, 8), dtype=np.uint8), 8, 1), 8, 2)
    shown = np.ascontiguousarray(pictures[:, :SIDE, :SIDE])
    data = Segmentation(shown, masks, None, list(map(str, range(12))), '')

    def classifier(images, _coarse):
        return None, (torch.rand(len(images), 1, SIDE // 16, SIDE // 16) - 0.5) * (std == 0)

    found = [evaluation.quick_segmentation(Segmenter(network, 'unit', 'fp32', maps), data, 4, ALONE)['JA']
             for network, maps in ((coarse, None), (enhanced, classifier))]
    assert 0.2 < found[0] < 0.8
    assert (abs(found[0] - found[1]) < 1e-3) == (start == 'identity')


@pytest.mark.parametrize('std', [0.0, 1.0])
def test_the_e_layer_is_the_identity_in_both_modes_beside_the_map(trained, pictures, std):
    _, coarse = trained
    x = networks._calibration_inputs(pictures, settings())
    maps = torch.randn(len(x), 1, SIDE // 16, SIDE // 16) * (std == 0)   # any map, where its weights are 0
    enhanced = deeplabv3plus_en()
    torch.manual_seed(3)   # the dropout with which the batch norm is set
    weights.load_coarse_into_enhanced(enhanced, coarse.state_dict(), x, std)
    state = enhanced.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in coarse.state_dict().items()
               if not name.endswith('num_batches_tracked'))
    for training in (False, True):
        found = []
        for network, seen in ((coarse, ()), (enhanced, (maps,))):
            network.load_state_dict({name: state[name] for name in network.state_dict()})
            torch.manual_seed(3)
            found.append(network.train(training)(x, *seen))
        scale = float(found[0].detach().std())
        assert float((found[0] - found[1]).detach().abs().max()) < 1e-3 * scale, training
    (found[1][:, 1] - found[1][:, 0]).square().mean().backward()
    gradient = enhanced.cam_conv[0].weight.grad[:, 256]
    assert ((gradient != 0).float().mean() > 0.5) == (std == 0)   # from a map alone
    column = enhanced.cam_conv[0].weight.detach()[:, 256, 0, 0]
    assert float(column.std()) == pytest.approx(std, rel=.2) and abs(float(column.mean())) <= .2 * std


def test_the_decoder_soon_uses_a_map_that_knows_more_than_the_picture(trained, pictures):
    """Masks that the pictures do not show, and the maps do, other ones in each step: the default start
    learns to read them, weights at zero do not."""
    _, coarse = trained
    x = networks._calibration_inputs(pictures[:4], settings())

    def loss_after_training(std):
        torch.manual_seed(6)
        enhanced = deeplabv3plus_en(dropout=False)
        weights.load_coarse_into_enhanced(enhanced, coarse.state_dict(), x, std)
        with torch.no_grad():
            features, low_level = enhanced.backbone(x)
            pyramid = enhanced.aspp(features)
        decoder = torch.nn.ModuleList([enhanced.cam_conv, enhanced.cat_conv, enhanced.cls_conv])
        optimizer = torch.optim.Adam(decoder.parameters(), 1e-4)
        losses = []
        for _ in range(15):
            cells = torch.rand(len(x), 1, SIDE // 16, SIDE // 16).round()
            masks = torch.nn.functional.interpolate(cells, scale_factor=16)[:, 0].to(torch.uint8)
            logits = enhanced.decode(enhanced.cam_conv(torch.cat([pyramid, cells], 1)), low_level)
            losses.append(hybrid_loss(logits, masks)[0])
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        return float(torch.stack(losses[-3:]).mean().detach())

    assert loss_after_training(1.0) < 0.8 * loss_after_training(0.0)


def test_one_picture_is_enough(pictures):
    enhanced = deeplabv3plus_en()
    inputs = networks._calibration_inputs(pictures[:1], settings())
    weights.load_coarse_into_enhanced(enhanced, deeplabv3plus().state_dict(), inputs)
    assert all(tensor.isfinite().all() for tensor in enhanced.state_dict().values())
    assert inputs.shape == (2, 3, SIDE, SIDE)


def test_the_calibration_sees_pictures_as_training_will(pictures):
    inputs = networks._calibration_inputs(pictures, settings(INPUT_SCALING='symmetric'))
    assert inputs.shape == (12, 3, SIDE, SIDE) and inputs.min() < -0.5
    torch.testing.assert_close(inputs, 2 * networks._calibration_inputs(pictures, settings()) - 1)


@pytest.mark.parametrize('script', ['train_CoarseSN.py', 'train_EnhancedSN.py'])
@pytest.mark.parametrize('recipe, expected', [('default', 0.01), ('paper', 0.01), ('released', 1.0)])
def test_the_last_convolution_starts_as_the_recipe_says(script, recipe, expected):
    values = resolved(REPOSITORY / script, {'RECIPE': recipe, 'PRETRAINED': 'none'})
    network, _ = networks.coarse_for_training(SimpleNamespace(**values | {'NUM_CLASSES': 2}), None)
    assert float(network.cls_conv.weight.detach().std()) == pytest.approx(expected, rel=0.15)


def test_the_released_recipe_starts_as_the_release():
    enhanced = resolved(REPOSITORY / 'train_EnhancedSN.py', {'RECIPE': 'released'})
    mask, scored = (resolved(REPOSITORY / script, {'RECIPE': 'released'})
                    for script in ('train_MaskCN.py', 'eval_MaskCN.py'))
    assert mask['AMP'] == scored['AMP'] == 'fp32'
    assert enhanced['E_LAYER_START'] == 'random' and enhanced['BN_EPS'] == mask['BN_EPS'] == 1e-5
    assert mask['PRETRAINED_EXIT_FLOW'] is False


# --- Epsilon of the batch norms

def epsilons(network):
    return {layer.eps for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)}


@pytest.mark.parametrize('build', [deeplabv3plus, deeplabv3plus_en, deeplabv3plus_d, Xception_dilation])
def test_one_epsilon_holds_for_the_whole_network(build):
    with torch.device('meta'):
        assert epsilons(build()) == {1e-5} and epsilons(build(bn_eps=1e-3)) == {1e-3}


def test_the_epsilon_is_that_of_the_first_weights(tmp_path):
    files = {}
    for name in ('VOC', 'XCEPTION65', 'XCEPTION'):
        (tmp_path / name).write_text('')
        files[f'{name}_WEIGHTS'] = str(tmp_path / name)
    for choice, expected in (('voc', 1e-5), ('xception65', 1e-3), ('xception', 1e-3), ('none', 1e-5),
                             ('auto', 1e-5)):
        cfg = settings(BN_EPS=0.0, PRETRAINED=choice, **files)
        assert networks.epsilon(cfg) == expected == networks.initial_inputs(cfg)['bn_eps']
        assert networks.epsilon(settings(**vars(cfg) | {'BN_EPS': 1e-4})) == 1e-4
    mask = settings(BN_EPS=0.0, PRETRAINED='auto', XCEPTION_WEIGHTS=files['XCEPTION_WEIGHTS'])
    assert networks.epsilon(mask) == 1e-3
    layout = Layout(tmp_path)
    assert networks.epsilon(settings(), layout) == 1e-5   # a coarse-SN without record
    record(layout, 'CoarseSN', bn_eps=1e-3)
    assert networks.epsilon(settings(), layout) == 1e-3
    tuned = settings(INITIAL_WEIGHTS=str(layout.weights('CoarseSN')), PRETRAINED='none')
    layout.weights('CoarseSN').write_text('')
    assert networks.epsilon(tuned) == 1e-3


def record(layout, network, **inputs):
    layout.run(network).mkdir(parents=True, exist_ok=True)
    (layout.run(network) / 'config.json').write_text(json.dumps({'settings': {'SEED': 0}, 'inputs': inputs}))


def test_the_record_of_another_stage_is_refused(tmp_path):
    path = Layout(tmp_path).weights('MaskCN')
    path.parent.mkdir(parents=True)
    (path.parent / 'config.json').write_text(json.dumps({'network': 'CoarseSN', 'settings': {'SEED': 0}}))
    with pytest.raises(InputError, match='is of CoarseSN, not of MaskCN'):
        networks.trained_settings(path)
    assert networks.trained_settings(path.with_stem('CoarseSN')) == {'SEED': 0}
    assert networks.trained_settings(path.with_stem('mine')) == {'SEED': 0}   # weights to start from


@pytest.mark.parametrize('inputs, expected', [({}, 1e-5), ({'bn_eps': 1e-3}, 1e-3)])
def test_a_trained_network_is_used_with_its_epsilon(tmp_path, monkeypatch, inputs, expected):
    layout = Layout(tmp_path)
    built = {'CoarseSN': deeplabv3plus(), 'MaskCN': Xception_dilation(), 'EnhancedSN': deeplabv3plus_en()}
    monkeypatch.setattr(networks.checkpoints, 'load_state', lambda path, _: built[path.stem].state_dict())
    monkeypatch.setattr(networks, 'placed', lambda network, *_: network)   # not folded
    for name in built:
        record(layout, name, **inputs)
    coarse, enhanced = (networks.load_segmenter(layout, name, ALONE.device, 'fp32')
                        for name in ('CoarseSN', 'EnhancedSN'))
    for network in (coarse.network, enhanced.network, enhanced.classifier.network):
        assert epsilons(network) == {expected}


def test_a_run_goes_on_with_the_epsilon_it_began_with(tmp_path):
    train(tmp_path / 'new', inputs={'bn_eps': 1e-3})
    with pytest.raises(InputError, match='bn_eps: 0.001 in .*, 1e-05 now'):
        train(tmp_path / 'new', inputs={'bn_eps': 1e-5})
    train(tmp_path / 'new', inputs={'bn_eps': 1e-3}, total=10, BN_EPS=1e-3)   # now said, it was taken over
    train(tmp_path / 'old')
    with pytest.raises(InputError, match='bn_eps: 1e-05 in .*, 0.001 now'):
        train(tmp_path / 'old', inputs={'bn_eps': 1e-3}, read_config=stages.read_config)
    train(tmp_path / 'old', inputs={'bn_eps': 1e-5}, total=10, read_config=stages.read_config)


def test_an_enhanced_sn_without_masks_belongs_to_the_coarse_sn_it_starts_from(tmp_path):
    layout, cfg = Layout(tmp_path), settings(TRANSFER='none')
    layout.run('CoarseSN').mkdir(parents=True)
    layout.weights('CoarseSN').write_text('one')
    inputs = networks.initial_inputs(cfg, layout)
    assert inputs['coarse_sn'] == files.fingerprint(layout.weights('CoarseSN'))
    train(tmp_path / 'new', inputs=inputs)
    train(tmp_path / 'old', inputs={name: inputs[name] for name in inputs if name != 'coarse_sn'})
    train(tmp_path / 'old', inputs=inputs)   # a run of before they said so goes on
    layout.weights('CoarseSN').write_text('another')
    with pytest.raises(InputError, match='coarse_sn: .* now'):
        train(tmp_path / 'new', inputs=networks.initial_inputs(cfg, layout))
    for other in ({'START': 'pretrained', 'PRETRAINED': 'none'},
                  {'INITIAL_WEIGHTS': str(layout.weights('CoarseSN'))}):
        assert 'coarse_sn' not in networks.initial_inputs(settings(**other), layout)


# --- Runs of before

@pytest.mark.parametrize('words', ['coarse-SN', "coarse-SN's decoder, its first layer from random weights"])
def test_a_run_of_before_belongs_to_the_coarse_sn_that_its_start_names(tmp_path, words):
    train(tmp_path)
    path = tmp_path / 'config.json'
    start = {'start': f'{words} (CoarseSN.pth, sha256 12ab...)'}
    path.write_text(json.dumps(json.loads(path.read_text()) | start))
    with pytest.raises(InputError, match="coarse_sn: '12ab' in .*, '34cd' now"):
        train(tmp_path, inputs={'training': 'a', 'coarse_sn': '34cd'}, read_config=stages.read_config)
    train(tmp_path, inputs={'training': 'a', 'coarse_sn': '12ab'}, read_config=stages.read_config)


@pytest.mark.parametrize('inputs, config, below', [
    ({'coarse_masks': {'coarse_sn': 'masks'}, 'mask_cn': 'x'}, {'inputs': {'coarse_sn': 'start'}}, 'masks'),
    ({'mask_cn': 'x'}, {'inputs': {'coarse_sn': 'start'}}, 'start'),
    ({}, {'inputs': {'training': 'a'}, 'start': 'coarse-SN (CoarseSN.pth, sha256 12ab...)'}, '12ab'),
    ({}, {'inputs': {'training': 'a'}, 'start': 'random weights'}, None), ({}, {}, None)])
def test_the_coarse_sn_below_is_that_of_the_masks_or_of_the_start(tmp_path, inputs, config, below):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert stages.coarse_sn_below(tmp_path / 'EnhancedSN.pth', inputs) == below


def test_a_run_of_before_the_constant_had_a_random_e_layer(tmp_path):
    made = {'script': 'train_EnhancedSN.py', 'settings': {'SEED': 0, 'E_LAYER_START': 'identity'}}
    assert not agree(made, {'SEED': 0})
    assert agree(made | {'settings': {'SEED': 0, 'E_LAYER_START': 'random'}}, {'SEED': 0})
    assert agree(made, json.loads(json.dumps(made['settings'])))


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_recipe_fits_every_script(script):
    for path in RECIPES.glob('*.toml'):
        assert resolved(REPOSITORY / script, {'RECIPE': path.stem})['RECIPE'] == path.stem


def test_the_long_recipe_trains_on_all_pictures_at_one_side():
    long = {script: resolved(REPOSITORY / script, {'RECIPE': 'cpu_long'}) for script in SCRIPTS}
    assert {values.get('INPUT_SIZE', 192) for values in long.values()} == {192}
    assert not any(values.get('TRAIN_IMAGES') or values.get('CROPS_OF_IMAGES') for values in long.values())
    assert long['eval_EnhancedSN.py']['SCALES'] == (192, 224)


# --- Enhanced-SN without a coarse-SN (Table VI, B)

@pytest.mark.parametrize('transfer, words', [('e-layer', 'random weights'), ('none', 'random weights')])
def test_enhanced_sn_can_start_as_coarse_sn_does(tmp_path, pictures, transfer, words, capsys):
    cfg = settings(START='pretrained', PRETRAINED='none', SMALL_START=True, TRANSFER=transfer, VOC_WEIGHTS='',
                   BN_EPS=0.0)
    torch.manual_seed(4)
    network, said = networks.enhanced_for_training(cfg, Layout(tmp_path), pictures)   # there is no coarse-SN
    assert said.startswith(words) and ('E-layer as the identity' in said) == (transfer == 'e-layer')
    assert f'enhanced-SN starts from {said}' in capsys.readouterr().out
    assert float(network.cls_conv.weight.detach().std()) < 0.02 and epsilons(network) == {1e-5}
    cfg.BN_EPS = 1e-3
    assert networks.initial_inputs(cfg, Layout(tmp_path))['bn_eps'] == 1e-3


def test_the_pretrained_file_belongs_to_a_run_that_starts_from_it(tmp_path, root):
    file = tmp_path / 'xception.pth'
    file.write_text('weights')
    declared = declare(tmp_path, SYSTEM + f"""
[experiment.alone]
script = 'train_EnhancedSN.py'
needs = ['mask_cn']
START = 'pretrained'
PRETRAINED = 'xception'
XCEPTION_WEIGHTS = '{file}'
[experiment.guided]
script = 'train_EnhancedSN.py'
needs = ['mask_cn']
PRETRAINED = 'xception'
XCEPTION_WEIGHTS = '{file}'
""")
    store = RunStore(root)
    assert store._pretrained(declared.job('alone')) == store.fingerprint(file)
    assert store._pretrained(declared.job('guided')) == ''
    assert store.settings(declared.job('guided')) == store.settings(declared.job('enhanced'))
