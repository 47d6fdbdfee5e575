"""The networks that come with the repository, models/isic2017/: whole, small, documented, of use at once."""
import hashlib
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest

import eval_MaskCN
import generate_Coarse_mask
from dataset import synthetic
from dataset.layout import Layout
from engine import files, packing, settings
from engine.errors import InputError
from mbdcnn import coarse_masks, networks
from mbdcnn.networks import PUBLISHED
from mbdcnn.predictor import MBDCNN, NETWORKS

LARGEST, ALL = 50e6, 100e6   # bytes: what a repository's host takes of a file, and what a clone should cost


def test_the_files_are_whole_and_small():
    lines = (PUBLISHED / 'SHA256SUMS').read_text().splitlines()
    digests = {name: digest for digest, _, name in (line.partition('  ') for line in lines)}
    assert sorted(digests) == sorted(f'{name}/{name}{packing.SUFFIX}' for name in NETWORKS)
    for name, digest in digests.items():
        assert hashlib.sha256((PUBLISHED / name).read_bytes()).hexdigest() == digest
    sizes = [path.stat().st_size for path in PUBLISHED.rglob('*') if path.is_file()]
    assert max(sizes) <= LARGEST and sum(sizes) <= ALL
    assert {path.suffix for path in PUBLISHED.rglob('*') if path.is_file()} == {
        packing.SUFFIX, '.json', '.md', ''}   # no file that could hold code, and nothing besides


@pytest.mark.parametrize('name', NETWORKS)
def test_their_configs_say_how_they_were_trained_and_not_on_which_machine(name):
    text = (PUBLISHED / name / 'config.json').read_text()
    config = json.loads(text)
    assert 'ISIC-2017' in config['packed']['about'] and not config['inputs'].get('drawn_pictures')
    assert config['settings']['INPUT_SIZE'] and config['settings']['RECIPE'] != 'demo'
    assert 'host' not in config['versions'] and 'ROOT' not in config['settings'] and '/home' not in text


def test_they_find_drawn_lesions_in_a_clone_without_any_training(tmp_path, capsys):
    """They were trained on photographs alone; a drawn lesion is like enough to one to be found."""
    model = MBDCNN.load(tmp_path, device='cpu', precision='fp32')
    said = capsys.readouterr().out
    assert said.startswith(f'{tmp_path} holds no trained networks') and 'ISIC-2017' in said
    for seed in range(3):
        picture, truth = synthetic.draw(np.random.default_rng(seed), seed, 256)
        found = model(picture, tta=False)
        both = (found.mask & truth.astype(bool)).sum() / (found.mask | truth.astype(bool)).sum()
        assert both > 0.6
        assert sum(found.class_probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_no_masks_are_drawn_that_their_mask_cn_would_refuse(root, monkeypatch):
    monkeypatch.setattr(networks, 'load_segmenter', Mock(side_effect=ZeroDivisionError))   # where it draws
    monkeypatch.setattr(networks, 'load_classifier', Mock())   # which takes seconds
    call(generate_Coarse_mask, root, ZeroDivisionError, '--RECIPE=cpu_long')
    error = call(generate_Coarse_mask, root, InputError, '--TTA=False')
    assert "'input_size': 192" in error.faults[0] and not list(root.glob('Coarse_masks/*/*'))
    remedy = f'python generate_Coarse_mask.py --ROOT={root} --RECIPE=cpu_long'
    layout = networks.or_published(Layout(root))
    folder = layout.coarse_for_classification('Validation')
    assert error.remedy.startswith(f'{remedy}, with --RESUME=False')
    assert call(eval_MaskCN, root, InputError).remedy.startswith(remedy)   # where none are drawn
    made = {'coarse_sn': files.fingerprint(layout.weights('CoarseSN')), 'input_size': 224, 'views': 6}
    coarse_masks.finish(coarse_masks.begin(layout, folder, made, settings.Settings()), [])
    error = call(eval_MaskCN, root, InputError)   # where an earlier version has drawn them
    assert "'input_size': 192" in error.faults[0] and error.remedy.startswith(remedy)

    copied = Layout(root)   # the coarse-SN alone: any drawing will do for a mask-CN of one's own
    shutil.copytree(PUBLISHED / 'CoarseSN', copied.run('CoarseSN'))
    call(generate_Coarse_mask, root, ZeroDivisionError, '--INPUT_SIZE=64', '--RESUME=False')


def call(script, root, expected, *words):
    """Run a script's main() in here; returns what it raised, which must be of the class `expected`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(expected) as error:
        patch.setattr('sys.argv', [f'{script.__name__}.py', f'--ROOT={root}', *words])
        script.main()
    return error.value
