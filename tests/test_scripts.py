"""The scripts of steps 2 to 6 as processes: what they write, what they skip and what they refuse."""
import csv
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from dataset import isic, splits
from dataset.classes import PAPER
from dataset.layout import SPLITS
from engine import cli, files, images, metrics, settings
from engine.errors import InputError
from engine.trainer import poly
from mbdcnn import coarse_masks, evaluation, networks
from mbdcnn.inference import place
from tests.conftest import REPOSITORY, STAGES, figure, finish, run_in_turn, run_script, start_script, wait_for

NETWORKS = {'CoarseSN': 857, 'MaskCN': 276, 'EnhancedSN': 864}   # entries of the state dict
INPUTS = {'CoarseSN': set(), 'MaskCN': {'coarse_masks', 'classes'},
          'EnhancedSN': {'coarse_masks', 'mask_cn', 'coarse_sn'}}
SCORES = ['image_id', 'JA', 'DI', 'pixel-AC', 'pixel-SE', 'pixel-SP']


def state(folder):
    """{relative path: (bytes, inode)} of the files below a folder; a rewritten file has a new inode."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino)
            for path in sorted(folder.rglob('*')) if path.is_file()}


def read_csv(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def read_rows(layout, network):
    lines = (layout.run(network) / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


# What is written

def test_no_stage_prints_a_warning(chain):
    assert {script: text for script, text in chain.outputs.items() if 'Warning' in text} == {}


@pytest.mark.parametrize('network', NETWORKS)
def test_weights_are_plain_state_dicts(chain, network):
    weights = torch.load(chain.layout.weights(network), weights_only=True)
    assert len(weights) == NETWORKS[network]
    assert all(isinstance(value, torch.Tensor) and value.isfinite().all() for value in weights.values())
    assert not any(name.startswith(('module.', '_orig_mod.')) for name in weights)


def test_enhanced_sn_starts_from_coarse_sn(chain):
    coarse, enhanced = (torch.load(chain.layout.weights(network), weights_only=True)
                        for network in ('CoarseSN', 'EnhancedSN'))
    assert {name.partition('.')[0] for name in enhanced.keys() - coarse.keys()} == {'cam_conv'}
    name = 'backbone.conv1.weight' if 'backbone.conv1.weight' in coarse else next(iter(coarse))
    moved = (enhanced[name] - coarse[name]).abs().max()
    assert 0 < moved < 2 * 5e-5 * 2   # two steps of Adam


@pytest.mark.parametrize(('network', 'steps', 'total', 'start', 'scores'), [
    ('CoarseSN', [2, 4], 4, 1e-4, {'dice', 'rank', *SCORES[1:]}),
    ('MaskCN', [3, 6, 9], 9, 1e-4, {'mean AUC', 'melanoma AUC', 'keratosis AUC', 'accuracy'}),
    ('EnhancedSN', [2], 2, 5e-5, {'dice', 'rank', *SCORES[1:]})])
def test_metrics_have_a_row_for_each_validation(chain, network, steps, total, start, scores):
    rows = read_rows(chain.layout, network)
    assert [row['step'] for row in rows] == steps
    for row in rows:
        assert row.keys() == {'step', 'lr', 'loss'} | scores
        assert row['lr'] == pytest.approx(start * poly(row['step'] - 1, total))
        assert 0 < row['loss'] < 5 and all(0 <= row[name] <= 1 for name in scores - {'rank'})
    monitor = 'mean AUC' if network == 'MaskCN' else 'JA'
    best = max(rows, key=lambda row: row[monitor])
    assert f'best {monitor} {best[monitor]:.4f} at step {best["step"]}' in chain.outputs[
        f'train_{network}.py']


@pytest.mark.parametrize('network', NETWORKS)
def test_config_holds_settings_inputs_and_versions(chain, network):
    config = json.loads((chain.layout.run(network) / 'config.json').read_text())
    assert config['network'] == network
    constants = settings.read_constants(REPOSITORY / f'train_{network}.py')
    assert config['settings'].keys() == constants.keys()
    assert config['settings']['INPUT_SIZE'] == 32 and config['settings']['SHIFT'] == [0.0, 0.1]
    assert config['inputs'].keys() == {'training', 'validation', 'initial_weights', 'drawn_pictures',
                                       'bn_eps'} | INPUTS[network]
    assert config['inputs']['drawn_pictures'] is True
    coarse, mask = (files.fingerprint(chain.layout.weights(name)) for name in ('CoarseSN', 'MaskCN'))
    drawn = {'coarse_sn': coarse, 'input_size': 32, 'views': 6}
    assert config['inputs'].get('coarse_masks', drawn) == drawn
    assert config['inputs'].get('mask_cn', mask) == mask
    assert config['inputs'].get('coarse_sn', coarse) == coarse
    assert {'CoarseSN': 'voc.pth', 'MaskCN': 'xception.pth', 'EnhancedSN': 'CoarseSN.pth'}[network] in (
        config['start'])
    assert config['versions']['torch'] == torch.__version__ and config['versions']['threads'] == 2


@pytest.mark.parametrize('network', NETWORKS)
def test_a_run_draws_curves_and_a_panel(chain, network):
    for name in ('curves.png', 'panel.png'):
        picture = figure(chain.layout.run(network) / name)
        assert min(picture.shape[:2]) > 100 and picture.std() > 10
    assert list(chain.layout.run(network).glob('tensorboard/events.*'))


@pytest.mark.parametrize('split', SPLITS)
def test_coarse_masks_fit_what_they_were_drawn_for(chain, split):
    layout, sizes = chain.layout, set()
    crops = isic.read_classification_list(layout, split)
    pictures = isic.read_segmentation_list(layout, split)
    for folder, paths in ((layout.coarse_for_classification(split), [path for path, _ in crops]),
                          (layout.coarse_for_segmentation(split), [path for path, _ in pictures])):
        assert {path.name for path in folder.iterdir()} == {
            'made_by.json', *(f'{path.stem}.png' for path in paths)}
        for path in paths:
            mask = images.read_mask(folder / f'{path.stem}.png')   # refuses other values than 0 and 255
            assert mask.shape[::-1] == images.image_size(path)
            sizes.add(mask.shape)
        record = json.loads((folder / 'made_by.json').read_text())
        drawn_with = record.pop('settings')
        assert drawn_with.keys() == settings.read_constants(REPOSITORY / 'generate_Coarse_mask.py').keys()
        assert drawn_with['INPUT_SIZE'] == 32 and drawn_with['ROOT'] == str(chain.root)
        assert record.pop('made') == {f'{path.stem}.png': [
            files.fingerprint(path), files.fingerprint(folder / f'{path.stem}.png')] for path in paths}
        assert record == {'complete': True, 'masks': len(paths), 'facts': {
            'coarse_sn': files.fingerprint(layout.weights('CoarseSN')), 'input_size': 32, 'views': 6}}
    assert (224, 224) in sizes and len(sizes) > 1


def test_coarse_masks_show_what_coarse_sn_found(chain):
    folders = [chain.layout.coarse_for_classification(split) for split in SPLITS]
    shares = {images.read_mask(path).mean() for folder in folders for path in folder.glob('*.png')}
    assert len(shares) > 40 and min(shares) < 0.7 < max(shares)   # they depend on the picture


@pytest.mark.parametrize('network', ['CoarseSN', 'EnhancedSN'])
def test_segmentation_results_agree_with_each_other(chain, network):
    stem = chain.layout.results / f'{network}_Validation'
    rows, result = read_csv(f'{stem}.csv'), json.loads(stem.with_suffix('.json').read_text())
    assert list(rows[0]) == SCORES and len(rows) == 6
    assert result['network'] == network and result['split'] == 'Validation' and result['n'] == 6
    assert set(SCORES[1:]) | {'ci95', 'with TTA', 'without TTA'} <= result.keys()
    for name in SCORES[1:]:
        mean = np.mean([float(row[name]) for row in rows])
        assert result[name] == pytest.approx(mean, abs=1e-6)
        for scores in (result, result['with TTA'], result['without TTA']):
            low, high = scores['ci95'][name]
            assert 0 <= low <= scores[name] <= high <= 1
        assert result['with TTA'][name] == result[name]
    assert result['with TTA'] != result['without TTA']
    used = {'CoarseSN': ['CoarseSN'], 'EnhancedSN': ['EnhancedSN', 'MaskCN']}[network]
    assert result['weights'] == {
        name: files.fingerprint(chain.layout.weights(name)) for name in used}
    assert result.get('coarse_sn') == (
        files.fingerprint(chain.layout.weights('CoarseSN')) if network == 'EnhancedSN' else None)
    assert figure(stem.with_name(f'{stem.name}_panel.png')).std() > 10
    assert '<html' in (chain.layout.results / 'report.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('network', ['CoarseSN', 'EnhancedSN'])
def test_predicted_masks_are_those_that_were_scored(chain, network):
    stem = chain.layout.results / f'{network}_Validation'
    rows = {row['image_id']: row for row in read_csv(f'{stem}.csv')}
    pairs = isic.read_segmentation_list(chain.layout, 'Validation')
    folder = stem.with_name(f'{stem.name}_masks')
    assert {path.name for path in folder.iterdir()} == {
        f'{image.stem}_segmentation.png' for image, _ in pairs}
    for image, mask in pairs:
        found = images.read_mask(folder / f'{image.stem}_segmentation.png') > 0
        assert found.shape[::-1] == images.image_size(image)
        scores = metrics.segmentation_scores(metrics.confusion(found, images.read_mask(mask) > 0))[0]
        printed = [float(rows[image.stem][name]) for name in SCORES[1:]]
        np.testing.assert_allclose(printed, scores, atol=1e-6)


def test_classification_results_agree_with_each_other(chain):
    stem = chain.layout.results / 'MaskCN_Validation'
    rows, result = read_csv(f'{stem}.csv'), json.loads(stem.with_suffix('.json').read_text())
    assert list(rows[0]) == ['image_id', *PAPER.names] and len(rows) == 6
    p = np.array([[float(row[name]) for name in PAPER.names] for row in rows])
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    truth = {image_id: label for image_id, _, label in isic.classification_images(chain.layout, 'Validation')}
    expected = metrics.classification_scores(p, [truth[row['image_id']] for row in rows], PAPER.tasks)
    for crops in ('9-crop', '1-crop'):
        for task in ('melanoma', 'keratosis'):
            assert {'AUC', 'AP', 'AC', 'SE', 'SP'} <= result[crops][task].keys()
            assert f'{task} AUC' in result[crops]['ci95']
        low, high = result[crops]['ci95']['mean AUC']
        assert 0 <= low <= high <= 1
    for task in ('melanoma', 'keratosis'):
        assert result[task] == result['9-crop'][task] == pytest.approx(expected[task])
    assert result['mean AUC'] == pytest.approx(expected['mean AUC'])
    assert result['9-crop'] != result['1-crop']
    decided, labels = p.argmax(1), np.array([truth[row['image_id']] for row in rows])
    maps = evaluation.read_error_maps(stem.with_name(f'{stem.name}_errors.npz'))
    assert {name: pair for name, (pair, _) in maps.items()} == {
        row['image_id']: (found, label) for row, found, label in zip(rows, decided, labels, strict=True)
        if found != label} != {}
    data = splits.classification(chain.layout, 'Validation', 32, whole_only=True)
    classifier = networks.load_classifier(chain.layout, torch.device('cpu'), 'fp32')
    for name, (pair, drawn) in maps.items():
        whole = place(data.images, data.coarse, classifier.device, [data.names.index(name)] * 2)
        expected = classifier(*whole, torch.tensor(pair))[1][:, 0]
        np.testing.assert_allclose(drawn, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('script', ['eval_MaskCN.py', 'eval_EnhancedSN.py', 'eval_CoarseSN'])
def test_scores_on_drawn_pictures_are_printed_without_the_papers(chain, script):
    """DRAWN_PICTURES speaks of the paper, once."""
    printed = chain.outputs[script]
    assert evaluation.DRAWN_PICTURES in printed and printed.count('paper') == 1
    network = {'eval_MaskCN.py': 'MaskCN', 'eval_CoarseSN': 'CoarseSN'}.get(script, 'EnhancedSN')
    result = json.loads((chain.layout.results / f'{network}_Validation.json').read_text())
    assert result['drawn_pictures'] is True


def test_challenge_file_has_its_columns_and_the_same_probabilities(chain):
    stem = chain.layout.results / 'MaskCN_Validation'
    challenge, rows = read_csv(f'{stem}_challenge.csv'), read_csv(f'{stem}.csv')
    assert list(challenge[0]) == ['image', 'melanoma', 'seborrheic_keratosis']
    assert [list(row.values()) for row in challenge] == [
        [row['image_id'], row[PAPER.names[1]], row[PAPER.names[2]]] for row in rows]


# Running again

def test_a_finished_training_has_nothing_to_do(chain, sibling):
    layout = sibling()
    shutil.copytree(chain.layout.run('MaskCN'), layout.run('MaskCN'))
    layout.run('CoarseSN').symlink_to(chain.layout.run('CoarseSN'))   # whose masks it reads
    before = state(layout.run('MaskCN'))
    text = run_script('train_MaskCN.py', layout.root, *STAGES['train_MaskCN.py'])
    assert 'nothing to do' in text
    after = state(layout.run('MaskCN'))
    configs = [json.loads(found.pop('config.json')[0]) for found in (before, after)]
    for config in configs:   # the copy's root, and the state of the checkout, may differ
        del config['settings']['ROOT'], config['versions']
    assert configs[0] == configs[1] and configs[0]['finished']
    assert {name: data for name, (data, _) in after.items()} == {
        name: data for name, (data, _) in before.items()}


def test_masks_are_drawn_only_where_they_are_missing(chain, sibling):
    layout = sibling('CoarseSN', masks='copy')
    lost = layout.coarse_for_segmentation('Validation') / 'ISIC_9100002.png'
    before = state(layout.coarse_masks)
    lost.unlink()
    text = run_script('generate_Coarse_mask.py', layout.root, *STAGES['generate_Coarse_mask.py'])
    assert 'Validation_EnhancedSN: 5 of 6 masks are there' in text
    assert 'Training_EnhancedSN: 8 of 8 masks are there' in text
    after = state(layout.coarse_masks)
    kept = [name for name in before if name.endswith('.png') and before[name][1] == after[name][1]]
    assert len(kept) >= len(list(layout.coarse_masks.rglob('*.png'))) - 1
    assert after.keys() == before.keys()   # made_by.json names another ROOT now
    assert all(after[name][0] == before[name][0] for name in before if name.endswith('.png'))


def test_masks_that_were_interrupted_are_refused_and_go_on(chain, sibling):
    layout = sibling('CoarseSN')
    layout.coarse_masks.unlink()
    options = *STAGES['generate_Coarse_mask.py'], '--BATCH_SIZE=4'
    process = start_script('generate_Coarse_mask.py', layout.root, *options)
    wait_for(process, '| 3/')   # of the training crops' batches
    process.terminate()
    assert 'run the same command again' in finish(process, 143)
    folder = layout.coarse_for_classification('Training')
    drawn = len(list(folder.glob('*.png')))
    assert 0 < drawn < len(isic.read_classification_list(layout, 'Training'))
    with coarse_masks.lock(layout):   # as if the first were still there
        refused, text = run_in_turn(('generate_Coarse_mask.py', layout.root, '--INPUT_SIZE=48'),
                                    ('train_MaskCN.py', layout.root, *STAGES['train_MaskCN.py']), expect=2)
    assert f'{layout.coarse_masks}: another process draws there' in refused
    command = f'python generate_Coarse_mask.py --ROOT={layout.root} --AMP=fp32 --BATCH_SIZE=4 --INPUT_SIZE=32'
    assert 'was not finished' in text and f'Remedy: {command}\n' in text
    facts = json.loads((folder / 'made_by.json').read_text())['facts']
    for change in ({'input_size': 224}, {'views': 1}, {'fold_networks': 'a,b'}):
        with pytest.raises(InputError) as caught:   # without the settings that the masks were begun with
            coarse_masks.refuse_to_replace(layout, [folder], facts | change)
        words = ''.join(f'{name}={facts.get(name)}' for name in change)
        assert caught.value.faults == [f'{folder}: {drawn} masks that were drawn with {words}']
        assert command in caught.value.remedy and '--RESUME=False' in caught.value.remedy
    coarse_masks.refuse_to_replace(layout, [folder], facts | {'coarse_sn': 'retrained', 'views': 1})
    assert f'{drawn} of' in run_script(*shlex.split(command)[1:2], None, *shlex.split(command)[2:])
    for path in chain.layout.coarse_masks.rglob('*.png'):
        assert (layout.coarse_masks / path.relative_to(chain.layout.coarse_masks)).read_bytes() == (
            path.read_bytes()), path


def test_masks_of_earlier_pictures_or_drawn_unlike_the_others_are_refused(sibling):
    layout = sibling('CoarseSN', masks='copy')
    folders = [layout.coarse_for_classification(split) for split in ('Training', 'Validation')]
    crops = [path for path, _ in isic.read_classification_list(layout, 'Validation')]
    assert len(splits.coarse_paths(layout, folders[1], crops)) == len(crops)
    record = json.loads((folders[1] / 'made_by.json').read_text())
    record['made'][f'{crops[4].stem}.png'][0] = 'of another picture'
    (folders[1] / 'made_by.json').write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        splits.coarse_paths(layout, folders[1], crops)
    assert len(caught.value.faults) == 1 and str(crops[4]) in caught.value.faults[0]
    assert 'python generate_Coarse_mask.py' in caught.value.remedy
    coarse_masks.require(layout, folders)
    record = json.loads((folders[1] / 'made_by.json').read_text())
    record['facts']['input_size'] = 64
    (folders[1] / 'made_by.json').write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        coarse_masks.require(layout, folders)
    assert all('unlike the others' in fault for fault in caught.value.faults)
    assert 'python generate_Coarse_mask.py' in caught.value.remedy


# Settings

def test_scripts_explain_themselves():
    scripts = sorted(path.name for path in REPOSITORY.glob('*.py'))
    assert set(STAGES) <= set(scripts)
    texts = run_in_turn(*((script, None, '--help') for script in scripts))
    for script, text in zip(scripts, texts, strict=True):
        constants = settings.read_constants(REPOSITORY / script)
        assert script in ('compare.py', 'export.py') or {'DEVICE', 'AMP'} <= constants.keys()
        assert all(f'--{name}=' in text for name in constants)
        assert f'python {script}' in text and 'Reads ' in text and 'Writes ' in text


ALL_SCRIPTS = [path for path in (*REPOSITORY.glob('*.py'), *REPOSITORY.glob('[a-su-z]*/*.py'),   # not tests/
                                 *REPOSITORY.glob('companions/*/*.py'))
               if 'cli.launch(main)' in path.read_text()]


def test_outside_the_environment_a_script_says_how_to_make_it():
    for script in ALL_SCRIPTS:
        done = subprocess.run([sys.executable, '-S', script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stdout == '', script
        problem, remedy = done.stderr.splitlines()
        assert sys.executable in problem and 'torch, numpy, cv2, PIL' in problem, script
        assert '`make env`' in remedy and '.venv/bin/activate`' in remedy
    names = importlib.metadata.packages_distributions()
    required = re.findall(r'^[\w-]+', (REPOSITORY / 'requirements.txt').read_text(), re.MULTILINE)
    assert {name.lower() for package in cli.PACKAGES for name in names[package]} >= {
        name.lower() for name in required} and len(required) == len(cli.PACKAGES)


def test_missing_extras_are_named():
    with pytest.raises(InputError, match='needs no_such, nor_such\n.*install -r requirements-extra'):
        cli.require('json', 'no_such', 'nor_such')


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    """The first package of others that a script imports presses it."""
    for name in ('numpy', 'torch', 'cv2', 'tqdm', 'filelock', 'PIL'):
        (tmp_path / f'{name}.py').write_text('import os, signal, time\n'
                                             'os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n')
    assert len(ALL_SCRIPTS) > 18
    for script in ALL_SCRIPTS:
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60,
                              env=os.environ | {'PYTHONPATH': str(tmp_path)})
        assert done.returncode == 130 and done.stdout == '', script
        assert done.stderr.split('\n') == ['', 'interrupted before anything had begun', ''], script


def test_settings_that_cannot_be_used_are_refused(chain, tmp_path):
    text, sizes, scales, changed = run_in_turn(
        ('train_MaskCN.py', tmp_path, '--STEP=3', '--AMP=fp8', '--EPOCH'),
        ('train_CoarseSN.py', tmp_path, '--INPUT_SIZE=40'),
        ('eval_EnhancedSN.py', tmp_path, '--SCALES=224,250'),
        ('train_MaskCN.py', chain.root, *STAGES['train_MaskCN.py'], '--ROTATION=20'), expect=2)
    assert 'STEP is not a setting; did you mean STEPS?' in text
    assert "AMP='fp8': must be one of" in text and '--NAME=value' in text
    assert 'multiple of 16' in sizes and '40 px' in sizes
    assert 'multiple of 16' in scales and '250 px' in scales and '224 px' not in scales
    assert 'ROTATION: 10.0' in changed and '20.0 now' in changed and '--RESUME=False' in changed
    assert not list(tmp_path.iterdir())


# Stages out of order

def test_a_missing_stage_is_named(chain, sibling, tmp_path_factory):
    empty = tmp_path_factory.mktemp('empty')
    coarse, mask, alone = sibling('CoarseSN'), sibling('CoarseSN', 'MaskCN'), sibling('MaskCN')
    needed = {('train_CoarseSN.py', empty): 'python dataset/list_seg.py',
              ('generate_Coarse_mask.py', empty): 'python dataset/list_seg.py',
              ('train_MaskCN.py', empty): 'python train_CoarseSN.py',
              ('train_MaskCN.py', empty, '--INPUT_CHANNEL=3'): 'python dataset/list_cls.py',
              ('eval_EnhancedSN.py', empty): 'python dataset/list_seg.py',
              ('eval_MaskCN.py', coarse.root): 'python train_MaskCN.py',
              ('generate_Coarse_mask.py', alone.root): 'python train_CoarseSN.py',
              ('train_EnhancedSN.py', coarse.root): 'python train_MaskCN.py',
              ('eval_EnhancedSN.py', mask.root): 'python train_EnhancedSN.py'}
    for command, text in zip(needed, run_in_turn(*needed, expect=2), strict=True):
        remedy = text.partition('Remedy: ')[2]
        assert f'{needed[command]} --ROOT={command[1]}' in remedy and 'missing' in text, text
    assert not list(empty.rglob('*.pth'))


def replace_coarse_sn(layout):
    """Another coarse-SN in place of the one that drew the masks; returns its fingerprint."""
    path = layout.weights('CoarseSN')
    weights = torch.load(path, weights_only=True)
    weights['cls_conv.bias'][0] += 1e-6
    path.unlink()   # the link
    torch.save(weights, path)
    return files.fingerprint(path)


def test_masks_of_another_coarse_sn_are_refused(sibling):
    layout = sibling('CoarseSN', 'MaskCN', 'EnhancedSN', masks='copy')
    present = replace_coarse_sn(layout)
    scripts = ('train_MaskCN.py', 'train_EnhancedSN.py', 'eval_EnhancedSN.py', 'eval_MaskCN.py')
    commands = [(script, layout.root, *STAGES[script]) for script in scripts]
    for text in run_in_turn(*commands, expect=2):
        assert f'than {layout.weights("CoarseSN")} ({present})' in text
        assert f'Remedy: python generate_Coarse_mask.py --ROOT={layout.root}' in text
    for record in layout.coarse_masks.glob('*/made_by.json'):   # as if drawn anew
        facts = json.loads(record.read_text())
        facts['facts']['coarse_sn'] = present
        record.write_text(json.dumps(facts))
    for text in run_in_turn(*commands[1:], expect=2):
        assert 'was trained on masks of another coarse-SN' in text and present in text
        assert f'Remedy: python train_MaskCN.py --ROOT={layout.root} --RESUME=False' in text
    assert not layout.results.exists()


def cut(path):
    """Replace a link to a file by the first half of that file."""
    whole = path.resolve().read_bytes()
    path.unlink()
    path.write_bytes(whole[:len(whole) // 2])


def enlarge(path):
    """Replace a link to weights by weights that are finite, but so huge that what they give is not."""
    huge = {name: tensor * 1e30 for name, tensor in torch.load(path, weights_only=True).items()}
    path.unlink()
    torch.save({name: tensor.bfloat16() for name, tensor in huge.items()}, path)   # half the disk


def test_damaged_files_are_named_with_a_remedy(chain, sibling):
    coarse, mask, last, huge = (sibling(*networks) for networks in (
        ['CoarseSN'], ['CoarseSN', 'MaskCN'], ['CoarseSN', 'MaskCN'], ['CoarseSN', 'MaskCN']))
    cut(coarse.weights('CoarseSN'))
    cut(mask.weights('MaskCN'))
    unfinished = last.run('MaskCN') / 'last.pth'
    unfinished.symlink_to(chain.layout.run('MaskCN') / 'last.pth')
    cut(unfinished)
    enlarge(huge.weights('MaskCN'))
    enlarged = sibling('CoarseSN')
    enlarged.coarse_masks.unlink()
    enlarge(enlarged.weights('CoarseSN'))
    spoilt = sibling('CoarseSN', masks='copy')
    masks = {path: path.read_bytes() for path in spoilt.coarse_masks.rglob('*') if path.is_file()}
    (spoilt.root / 'dataset').unlink()
    shutil.copytree(chain.root / 'dataset', spoilt.root / 'dataset')
    pictures = [isic.read_classification_list(spoilt, 'Training')[0][0],
                isic.read_classification_list(spoilt, 'Testing')[-1][0],
                isic.read_segmentation_list(spoilt, 'Training')[1][0]]
    for picture in pictures:
        cut(picture)
    *texts, drawn, scored, looked_at = run_in_turn(*(
        (script, layout.root, *STAGES[script]) for script, layout in (
            ('generate_Coarse_mask.py', coarse), ('eval_MaskCN.py', mask), ('train_MaskCN.py', last),
            ('generate_Coarse_mask.py', enlarged), ('eval_MaskCN.py', huge),
            ('generate_Coarse_mask.py', spoilt))), expect=2)
    assert all(f'  - {picture}: is damaged' in looked_at for picture in pictures)
    assert masks == {path: path.read_bytes() for path in masks}   # nothing is drawn, removed or begun
    for text, path in ((drawn, enlarged.weights('CoarseSN')), (scored, huge.weights('MaskCN'))):
        assert f'{path}: ' in text and 'not finite' in text and 'LEARNING_RATE' in text, text
    assert not list(enlarged.coarse_masks.rglob('*.png')) and not huge.results.exists()
    for text, path, remedy in zip(texts, (coarse.weights('CoarseSN'), mask.weights('MaskCN'), unfinished), (
            'python train_CoarseSN.py', 'python train_MaskCN.py', '--RESUME=False'), strict=True):
        assert f'{path}: ' in text and 'truncated' in text and remedy in text.partition('Remedy: ')[2]
    assert set(STAGES['train_CoarseSN.py']) < set(texts[0].split())   # as it was trained
    assert unfinished.is_file()   # it is the user's to remove
