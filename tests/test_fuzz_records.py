"""The continuation of test_fuzz.py: records of runs, masks, experiments and data, run folders, the report."""
import io
import json
import os
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

import reproduce_tables
from dataset import extraction, fetch, folds, isic, label_csv, make_demo_data, splits
from dataset.layout import DRAWN, Layout
from engine import bootstrap, checkpoints, files, run_folder, settings
from experiments import inputs
from experiments.run_store import RECORD, RunStore
from mbdcnn import coarse_masks, evaluation, networks, predictor
from report import charts
from report import page as report
from tests.fuzzing import (
    JSON,
    JUNK,
    damaged,
    damaged_bytes,
    declaring,
    fuzz,
    holding,
    json_files,
    refused,
    toml_file,
    write,
    write_json,
)
from tests.test_fuzz_files import ODD_TENSORS, STATE, TENSORS, saved
from tests.test_training import train

pytestmark = pytest.mark.filterwarnings('ignore')   # PyTorch warns of what is damaged


# --- Records of runs, masks, experiments and data

CONFIG = {'SEED': 0, 'TRAIN_IMAGES': 0, 'CACHE_SIZE': 16, 'INPUT_SIZE': 16, 'CROSS_FIT': 2, 'RECIPE': 'demo',
          'INPUT_SCALING': 'unit', 'TRANSFER': 'e-layer', 'BN_EPS': 0.0, 'RESUME': True}
COARSE = {'script': 'train_CoarseSN.py', 'PRETRAINED': 'none', 'INPUT_SIZE': 16, 'CACHE_SIZE': 16}
STEPS = toml_file({'experiment': {'coarse': COARSE, 'longer': COARSE | {'EPOCH': 900}, 'masks': {
    'script': 'generate_Coarse_mask.py', 'needs': ['coarse'], 'INPUT_SIZE': 16}}, 'table': {
        '1': {'columns': ['JA'], 'rows': [{'label': 'a', 'of': 'longer'}]}}})
NETWORKS = {'CoarseSN': 'CoarseSN', 'CoarseSN_fold1': 'CoarseSN', 'CoarseSN_fold2': 'CoarseSN',
            'MaskCN': 'MaskCN', 'EnhancedSN': 'EnhancedSN'}   # run folder: network


@pytest.fixture(scope='module', autouse=True)
def no_waiting():
    """Nothing here has to survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda _: None)
        yield


@pytest.fixture
def declare(tmp_path, monkeypatch):
    return declaring(tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Layout of a root with six small pictures a split, prepared and listed, and records of every kind."""
    layout = Layout(tmp_path_factory.mktemp('fuzz') / 'root')
    rng = np.random.default_rng(0)
    for split in ('Training', 'Validation'):
        folder, rows = layout.originals(split), [','.join(label_csv.COLUMNS)]
        for number in range(6):
            name = f'{split}{number}'
            mask = np.eye(20, 24, dtype=np.uint8) * 255
            for path, pixels in ((f'Images/{name}.png', rng.integers(0, 256, (20, 24, 3), np.uint8)),
                                 (f'Annotation/{name}_segmentation.png', mask)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / path)
            rows.append(f'{name},{int(number % 3 == 1)},{int(number % 3 == 2)}')
        write(layout.labels(split), '\n'.join(rows).encode())
        extraction.extract_crops(layout, split)
    extraction.prepare_segmentation(layout, 1600)
    extraction.write_lists(layout, extraction.segmentation_lines, layout.segmentation_list)
    extraction.write_lists(layout, extraction.classification_lines, layout.classification_list)
    masks = layout.coarse_for_segmentation('Training')
    for folder, network in NETWORKS.items():
        write(layout.models / folder / f'{network}.pth', folder.encode())
    facts = {'coarse_sn': files.fingerprint(layout.weights('CoarseSN')), 'input_size': 16, 'views': 6,
             coarse_masks.FOLDS: 'ab,cd'}
    for split in ('Training', 'Validation'):
        for kind, folder in (('seg', layout.coarse_for_segmentation(split)),
                             ('cls', layout.coarse_for_classification(split))):
            cfg = settings.Settings(**CONFIG | {'CROSS_FIT': 0})
            record = coarse_masks.begin(layout, folder, facts, cfg)
            pictures = [path for path, _ in inputs.READERS[kind](layout, split)]
            for picture in pictures:
                shutil.copyfile(picture, folder / f'{picture.stem}.png')
                record.note(f'{picture.stem}.png', record.contents.of(picture))
            coarse_masks.finish(record, pictures)
    data = splits.segmentation(layout, 'Training', 16)
    validation = splits.segmentation(layout, 'Validation', 16).fingerprint
    for number, (folder, network) in enumerate(NETWORKS.items()):
        part = folds.without(data, 2, number, 0).fingerprint if number in (1, 2) else data.fingerprint
        seen = {'training': part, 'validation': validation,
                'coarse_masks': coarse_masks.require(layout, [masks]),
                  'mask_cn': files.fingerprint(layout.weights('MaskCN'))}
        write_json(layout.models / folder / 'config.json', {
            'network': network, 'settings': CONFIG | ({} if number in (1, 2) else {'CROSS_FIT': 0}),
            'inputs': seen, 'start': 'random weights',
            'versions': {'torch': '2'}, 'finished': {'step': 4, 'best': 0.5, 'best_step': 2}})
    drawn = {name: 0.3 if 'SHARE' in name else 6 for name in make_demo_data.RECORDED}
    write_json(layout.data / DRAWN, drawn)
    write_json(layout.data / fetch.RECORD, {'a.zip': {'url': 'https://x', 'size': 1, 'sha256': 'ab'}})
    write(layout.data / 'a.zip', b'')
    write_json(layout.results / 'CoarseSN_Validation.json', {
        'settings': {'NETWORK': 'CoarseSN'}, 'weights': {'CoarseSN': facts['coarse_sn']},
        'data': inputs.content(layout, 'seg', 'Validation')})
    write(layout.results / 'CoarseSN_Validation.csv', b'')
    return layout


def broken(path, data):
    """The file as an interrupted copy or a damaged disk leaves it."""
    good = path.read_bytes()
    return holding(path, data.draw(st.integers(0, len(good) - 2).map(lambda end: good[:end]) | JUNK))


def test_good_records_are_accepted(root, declare):
    for job in map(declare(STEPS).job, ('coarse', 'masks')):
        assert RunStore(root.root).folder(job) == '.'
    fold_of, facts = coarse_masks.cross_fit(root, 2)
    assert len(fold_of) == 6 and facts.keys() == {coarse_masks.FOLDS}
    assert (drawn := predictor._drawing(root))['input_size'] == 16 and drawn['views'] == 6
    assert networks.trained_transfer(root) == 'e-layer'
    assert make_demo_data.read_record(root)['MAX_SIDE'] == 6
    assert fetch.Record(root.data).sha256(root.data / 'a.zip') == 'ab'
    assert len(extraction.segmentation_lines(root, 'Training')) == 6


@fuzz(100)
@given(st.sampled_from(sorted(NETWORKS)), st.data())
def test_spoiled_config_json(root, declare, folder, data):
    path = root.models / folder / 'config.json'
    weights_path = path.with_name(f'{NETWORKS[folder]}.pth')
    cfg = settings.Settings(**CONFIG, ROOT=str(root.root))
    made = coarse_masks.require(root, [root.coarse_for_segmentation('Training')])
    job = declare(STEPS).job('coarse')
    with broken(path, data):
        for use in (lambda: checkpoints.read_config(weights_path), lambda: networks.trained_transfer(root),
                    lambda: networks.warn_of_other_size(weights_path, 16),
                    lambda: coarse_masks.cross_fit(root, 2),
                    lambda: predictor._drawing(root),
                    lambda: coarse_masks.require_chain(root, ('MaskCN', 'EnhancedSN'), made),
                    lambda: evaluation.provenance(cfg, [weights_path], 'x')):
            value, _ = refused(use, root.root)
            json.dumps(value)
        assert RunStore(root.root).folder(job) in ('.', 'runs/coarse')


@fuzz(60)
@given(st.data())
def test_spoiled_made_by_json(root, declare, tmp_path, data):
    folder = root.coarse_for_segmentation('Training')
    path, job = folder / coarse_masks.RECORD, declare(STEPS).job('masks')
    with broken(path, data):
        made, _ = refused(lambda: coarse_masks.require(root, [folder]), folder)
        assert made is None or made['coarse_sn'] == files.fingerprint(root.weights('CoarseSN'))
        store = RunStore(root.root)
        store._folders[job] = '.'   # as if ROOT itself had drawn them
        assert isinstance(store.identity(job), str)
        assert RunStore(root.root).folder(job) in ('.', 'runs/masks')
        write(tmp_path / coarse_masks.RECORD, path.read_bytes())
        refused(lambda: coarse_masks.refuse_to_replace(root, [folder, tmp_path], {'coarse_sn': 'x'}), folder)
        splits.draw_command(root, splits.coarse_record(root, folder).head)
        coarse_masks.begin(root, tmp_path, {'coarse_sn': 'x'}, settings.Settings())
    assert json.loads((tmp_path / coarse_masks.RECORD).read_text())['facts'] == {'coarse_sn': 'x'}


@fuzz(40)
@given(st.data())
def test_spoiled_results_of_root(root, declare, data):
    declared, path = declare(STEPS), root.results / 'CoarseSN_Validation.json'
    job = declared.scoring('coarse', 'Validation')
    assert RunStore(root.root).folder(job) == '.'
    with holding(path, data.draw(json_files(json.loads(path.read_bytes())))):
        assert RunStore(root.root).folder(job) in ('.', 'runs/scores_coarse-Validation')


@fuzz(60)
@given(st.data())
def test_spoiled_experiment_json(root, declare, data):
    declared = declare(STEPS)
    store, job = RunStore(root.root), declared.job('longer')
    store.prepare(job)
    store.note(job, 1.5, True)
    path = root.root / store.folder(job) / RECORD
    wanted = [('table', '1', declared.tables['1'])]
    try:
        with holding(path, data.draw(json_files(json.loads(path.read_bytes())))):
            store = RunStore(root.root)
            reproduce_tables.show_list(store, wanted, {wanted[0][:2]: declared.jobs_of(wanted[0][2])},
                                       reproduce_tables.measured_rates(store, declared, (0,)))
            store.prepare(job)
            store.note(job, 1.5, False)
            record = json.loads((store.root / store.folder(job) / RECORD).read_text())
        assert record['seconds'] >= 1.5 and record['made from']['script'] == 'train_CoarseSN.py'
    finally:
        shutil.rmtree(root.root / 'runs')


@fuzz(30)
@given(st.data())
def test_broken_records_of_data(root, data):
    for path, use in ((root.segmentation('Training') / isic.RECORD,
                       lambda: extraction.segmentation_lines(root, 'Training')),
                      (root.crops('Training') / isic.RECORD,
                       lambda: extraction.classification_lines(root, 'Training')),
                      (root.data / fetch.RECORD, lambda: fetch.Record(root.data)),
                      (root.data / DRAWN,   # whose pictures are not drawn
                       lambda: make_demo_data.claim(root, {'SEED': 1}))):
        with broken(path, data):
            assert refused(use, root.root)[1]
    assert len(list((root.originals('Training') / 'Images').iterdir())) == 6


# --- Run folders

@pytest.fixture(scope='module')
def finished_run(tmp_path_factory):
    """Folder of a small training of eight steps."""
    folder = tmp_path_factory.mktemp('run') / 'CoarseSN'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.figures, 'curves', lambda rows, monitor, path, _: None)
        train(folder)
    return folder


@st.composite
def spoiled_states(draw, good):
    """Bytes instead of a last.pth: damaged ones, another content, or a part of it that does not fit."""
    state = torch.load(io.BytesIO(good), weights_only=True)
    part = draw(st.sampled_from(['', 'networks', 'progress', 'optimizers', 'bytes', 'moments']))
    if part == 'bytes':
        return draw(damaged_bytes(good))
    if part == 'moments':
        state['optimizers']['Adam']['state'][0]['exp_avg'] = draw(TENSORS)
    elif part == 'optimizers':
        state[part] = draw(st.one_of(JSON, st.fixed_dictionaries({'Adam': JSON})))
    elif part == 'networks':
        state[part] = {'CoarseSN': draw(damaged(dict(state[part]['CoarseSN']), JSON | TENSORS))}
    elif part:
        del state[part][draw(st.sampled_from(sorted(state[part])))]
    else:
        state = draw(st.one_of(JSON, st.just(state['networks']), st.just({'progress': state['progress']})))
    return saved(state)


@fuzz(50)
@given(st.data())
def test_spoiled_run_folders(tmp_path, finished_run, monkeypatch, data):
    monkeypatch.setattr(run_folder.figures, 'curves', lambda rows, monitor, path, _: None)
    folder = tmp_path / 'CoarseSN'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished_run, folder)
    name = data.draw(st.sampled_from(['last.pth', 'metrics.jsonl', 'config.json', 'CoarseSN.pth']))
    good = (folder / name).read_bytes()
    if name == 'metrics.jsonl':
        lines = good.splitlines()
        spoiled = data.draw(json_files(json.loads(lines[0]))) + b'\n' + lines[1]
    elif name == 'config.json':
        spoiled = good[:data.draw(st.integers(0, len(good) - 2))]
    elif name == 'last.pth':
        spoiled = data.draw(spoiled_states(good))
    else:
        spoiled = data.draw(st.one_of(damaged_bytes(good), damaged(dict(STATE), JSON | TENSORS).map(saved)))
    (folder / name).write_bytes(spoiled)
    task, _ = refused(lambda: train(folder, total=10), folder)
    if task:
        assert all(value.isfinite().all() for value in task.network.state_dict().values())
        assert json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])['step'] >= 8


@pytest.mark.parametrize('odd', [tensor for tensor in ODD_TENSORS if tensor.dim() < 4])
def test_moments_of_another_network_are_refused(tmp_path, finished_run, odd):
    """Adam's fused form would write beyond their ends."""
    folder = tmp_path / 'CoarseSN'
    shutil.copytree(finished_run, folder)
    state = torch.load(folder / 'last.pth', weights_only=True)
    state['optimizers']['Adam']['state'][0]['exp_avg'] = odd
    write(folder / 'last.pth', saved(state))
    assert refused(lambda: train(folder, total=10), folder / 'last.pth')[1]


# --- The report

@pytest.fixture(scope='module')
def reported(tmp_path_factory):
    """Layout of a root with results, records and logs of every kind, but without pictures."""
    layout, names = Layout(tmp_path_factory.mktemp('report') / 'root'), [f'i{number}' for number in range(6)]
    rng, labels = np.random.default_rng(0), np.array([0, 1, 2] * 2)
    facts = {'recipe': 'demo', 'data': 'a', 'settings': {'SCALES': [1, 2]}, 'weights': {'CoarseSN': 'x'}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, 'RESAMPLES', 20)
        p = rng.dirichlet(np.ones(3), 6)
        evaluation.report_segmentation(layout, 'CoarseSN', 'Testing', names, {
            'plain': rng.random((6, 5)), 'tta': rng.random((6, 5))}, facts)
        evaluation.report_classification(layout, 'Testing', names, {'9-crop': p, '1-crop': p}, labels, facts)
    rows = [f'{name},{int(label == 1)},{int(label == 2)}' for name, label in zip(names, labels, strict=True)]
    write(layout.labels('Testing'), '\n'.join([','.join(label_csv.COLUMNS), *rows]).encode())
    write_json(layout.run('CoarseSN') / 'config.json', {'settings': {'RECIPE': 'demo'}, 'start': 'x'})
    write(layout.run('CoarseSN') / 'metrics.jsonl',
          b'{"step": 4, "loss": 0.5, "JA": 0.5}\n{"step": 8, "loss": 0.4, "JA": null}\n')
    return layout


@fuzz(60)
@given(st.data())
def test_spoiled_results_are_named_in_the_report(reported, monkeypatch, data):
    def chart(draw, label, caption, size=None):
        if path.suffix != '.json':   # the charts are not of these
            draw(Figure())   # without the time that it takes to write it
        return {'svg': '', 'caption': caption}

    monkeypatch.setattr(charts, 'chart', chart)
    path = data.draw(st.sampled_from([
        reported.results / 'CoarseSN_Testing.json', reported.results / 'MaskCN_Testing.json',
        reported.results / 'CoarseSN_Testing.csv', reported.results / 'MaskCN_Testing.csv',
        reported.run('CoarseSN') / 'config.json', reported.run('CoarseSN') / 'metrics.jsonl']))
    good = path.read_bytes()
    if path.suffix == '.csv':
        spoiled = data.draw(damaged_bytes(good))
    elif path.suffix == '.jsonl':
        spoiled = data.draw(json_files(json.loads(good.splitlines()[0]))) + b'\n' + good.splitlines()[1]
    else:
        spoiled = data.draw(json_files(json.loads(good)))
    with holding(path, spoiled):
        page = report.page(reported, datetime(2024, 2, 29, tzinfo=UTC))
    assert page.encode() and page.rstrip().endswith('</html>')
    if b'{' not in spoiled and path.suffix == '.json':
        assert path.name in page
