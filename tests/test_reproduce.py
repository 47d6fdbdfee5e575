"""reproduce_tables.py as users run it: real scripts at 32 px, stages of an earlier run that serve."""
import csv
import json
import signal

import pytest

from dataset.layout import Layout
from mbdcnn import evaluation
from tests.conftest import STAGES, finish, run_in_turn, run_script, start_script, wait_for

SYSTEM = {'coarse': ('train_CoarseSN.py', []), 'masks': ('generate_Coarse_mask.py', ['coarse']),
          'mask_cn': ('train_MaskCN.py', ['masks']), 'enhanced': ('train_EnhancedSN.py', ['mask_cn'])}
EXHIBITS = """
[table.mine]
title = 'Ways to transfer'
columns = ['JA', 'DI']
rows = [{ label = 'A', of = 'coarse', paper = [78.9, 86.5] }, { label = 'D-Net', of = 'd_net' },
        { label = 'folder', masks = 'runs/scores_d_net-Validation/results/EnhancedSN_Validation_masks' }]
compare = [['A', 'D-Net'], ['A', 'folder']]
[figure.line]
title = 'A line'
score = 'JA'
panels = [{ axis = 'kind', x = [1], lines = [{ label = 'D-Net', of = 'd_net', paper = { 1 = 76.2 } }] }]
[figure.pictures]
pictures = ['image', 'truth', 'coarse mask', 'CAM with mask', 'enhanced mask', 'contours']
choose = 'spread'
of = { 'coarse mask' = 'masks', 'CAM with mask' = 'mask_cn', 'enhanced mask' = 'd_net' }
"""


@pytest.fixture(scope='module')
def declarations(tmp_path_factory):
    """An experiments.toml of the chain's settings; only D-Net is new."""
    text = ''
    for name, (script, needs) in {**SYSTEM, 'd_net': ('train_EnhancedSN.py', ['mask_cn'])}.items():
        options = dict(word.removeprefix('--').split('=', 1) for word in STAGES[script])
        options |= {'TRANSFER': 'd-net', 'EPOCH': 6} if name == 'd_net' else {}
        lines = ''.join(f'{key} = {value!r}\n' for key, value in options.items())
        text += f"[experiment.{name}]\nscript = '{script}'\nneeds = {needs}\n{lines}"
    path = tmp_path_factory.mktemp('declared') / 'mine.toml'
    path.write_text(text + EXHIBITS)
    return path


def test_a_table_and_its_figures_from_beginning_to_end(declarations, sibling):
    layout = sibling('CoarseSN', 'MaskCN', 'EnhancedSN')
    words = ('reproduce_tables.py', layout.root, f'--EXPERIMENTS={declarations}')
    planned, partial = run_in_turn((*words, '--TABLE=mine', '--DRY_RUN=True'),
                                   (*words, '--TABLE=mine', '--FIGURE=pictures', '--RUN=False'))
    assert planned.count('\npython ') == 3      # D-Net and two scorings; the rest lies in ROOT
    assert f'python train_EnhancedSN.py --ROOT={layout.root}/runs/d_net' in planned
    assert '--TRANSFER=d-net' in planned and not (layout.root / 'runs').exists()

    assert 'not run yet' in partial and 'figure pictures: not drawn' in partial
    assert 'EnhancedSN_Validation_masks is not there' in partial

    process = start_script(*words, '--TABLE=mine', '--FIGURE=line,pictures')
    wait_for(process, 'step 2:')   # a validation
    process.send_signal(signal.SIGINT)
    assert 'run the same command again to go on' in finish(process, expect=130)
    record = json.loads((layout.root / 'runs/d_net/experiment.json').read_text())
    assert record['finished'] is False and record['seconds'] > 0
    text = run_script(*words, '--TABLE=mine', '--FIGURE=line,pictures')
    assert 'steps 0 to' not in text             # it went on

    run = Layout(layout.root / 'runs/d_net')
    assert (run.run('EnhancedSN') / 'EnhancedSN.pth').is_file()
    assert run.run('CoarseSN').resolve() == layout.run('CoarseSN').resolve()
    found = [line.split('paired over images: ')[1] for line in text.splitlines() if ' minus "A"' in line]
    assert '"D-Net" minus "A"' in text and len(found) == 2 and found[0] == found[1] and 'n = 6 images' in text
    rows = list(csv.DictReader((layout.results / 'tables/table_mine.csv').read_text().splitlines()))
    ours = {(row['row'], row['column']): float(row['ours']) for row in rows}
    for network, name in (('CoarseSN', 'A'), ('EnhancedSN', 'D-Net'), ('EnhancedSN', 'folder')):
        where = 'coarse' if network == 'CoarseSN' else 'd_net'
        scored = layout.root / f'runs/scores_{where}-Validation/results/{network}_Validation.json'
        for column in ('JA', 'DI'):
            assert ours[name, column] == pytest.approx(100 * json.loads(scored.read_text())[column], abs=0.06)
    assert float(rows[0]['paper']) == 78.9
    assert f'- {evaluation.DRAWN_PICTURES}' in (layout.results / 'tables/table_mine.md').read_text()
    for name in ('line', 'pictures'):
        for suffix in ('png', 'pdf'):
            assert (layout.results / f'figures/figure_{name}.{suffix}').stat().st_size > 5000
    assert (layout.results / 'tables/table_mine.tex').read_text().count(r'\midrule') == 1

    again, listed = run_in_turn((*words, '--TABLE=mine'), (*words, '--LIST=True'))
    assert '6 runs, 6 of them finished' in again and 'python train' not in again
    assert 'finished in ROOT itself' in listed and 'still to run, everything counted once: 0 PFLOP' in listed


def test_requests_that_cannot_be_met_are_refused(tmp_path):
    script = 'reproduce_tables.py'
    nothing, unknown, early = run_in_turn(
        (script, tmp_path), (script, tmp_path, '--TABLE=4,11', '--FIGURE=3'), (script, tmp_path, '--TABLE=4'),
        expect=2)
    assert 'nothing was asked for' in nothing
    assert 'table 11: is not declared' in unknown and 'figure 3: is not declared' in unknown
    assert 'Data are missing' in early and 'dataset/list_seg.py' in early
    assert not (tmp_path / 'runs').exists()
