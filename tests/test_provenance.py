"""How coarse masks were made, as later networks record it: a dict now, a text in earlier versions."""
import json
from types import SimpleNamespace

import pytest

from dataset.layout import Layout
from engine import files
from engine.errors import InputError
from engine.run_folder import Run
from mbdcnn import coarse_masks
from tests.test_training import ALONE

MADE = {'coarse_sn': 'ab12', 'input_size': 224, 'views': 6}
SPLIT_UP = MADE | {'fold_networks': 'cd34,ef56'}


def write_config(path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'weights')
    content = {'settings': {'SEED': 0}, 'inputs': {'coarse_masks': made}}
    path.with_name('config.json').write_text(json.dumps(content))


@pytest.mark.parametrize(('stored', 'read'), [
    (MADE, MADE), ('ab12 224 6', MADE), (SPLIT_UP, SPLIT_UP), ('ab12 224 6 cd34,ef56', SPLIT_UP),
    (None, None)])
def test_records_of_earlier_versions_are_read_as_a_dict(tmp_path, stored, read):
    write_config(tmp_path / 'MaskCN.pth', stored)
    assert coarse_masks.read_config(tmp_path / 'MaskCN.pth')['inputs']['coarse_masks'] == read


@pytest.mark.parametrize('stored', [MADE, 'ab12 224 6'])
def test_a_training_begun_before_goes_on_and_others_do_not(tmp_path, stored):
    write_config(tmp_path / 'MaskCN.pth', stored)
    cfg = SimpleNamespace(SEED=0)
    for made, fits in ((MADE, True), (MADE | {'input_size': 256}, False), (SPLIT_UP, False)):
        with Run(tmp_path, 'MaskCN', cfg, {'coarse_masks': made}, '', ALONE,
                 read_config=coarse_masks.read_config) as run:
            if fits:
                run._refuse_other_settings(coarse_masks.read_config(run.last))
            else:
                with pytest.raises(InputError, match='coarse_masks: .*224.* now'):
                    run._refuse_other_settings(coarse_masks.read_config(run.last))


@pytest.mark.parametrize('stored', [MADE, 'ab12 224 6'])
def test_networks_trained_before_belong_to_the_present_masks(tmp_path, stored):
    layout = Layout(tmp_path)
    write_config(layout.weights('MaskCN'), stored)
    assert coarse_masks.require_chain(layout, ('MaskCN',), MADE) == files.fingerprint(
        layout.weights('MaskCN'))
    with pytest.raises(InputError, match='another coarse-SN or drawing'):
        coarse_masks.require_chain(layout, ('MaskCN',), MADE | {'views': 1})


@pytest.mark.parametrize('text', ['', 'ab12', 'ab12 wide 6'])
def test_a_text_that_says_something_else_is_named(tmp_path, text):
    write_config(tmp_path / 'MaskCN.pth', text)
    with pytest.raises(InputError, match='config.json: coarse_masks is'):
        coarse_masks.read_config(tmp_path / 'MaskCN.pth')
