"""Own pictures: predict.py as a process, what it writes, and the same chain from Python."""
import csv
import hashlib
import json
import os
import runpy
import shutil
import signal
import struct
import sys
import threading
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

import app
import generate_Coarse_mask
import predict
from dataset import crops, extraction, splits
from dataset.classes import PAPER
from dataset.layout import Layout
from engine import cache, cli, figures, files, images, packing
from engine.errors import InputError
from engine.hardware import Process
from mbdcnn import evaluation, networks, prediction_folder
from mbdcnn.inference import Classifier, Segmenter, enlarged_sum, place, segment, segment_files, squashed
from mbdcnn.predictor import MBDCNN, NETWORKS, Prediction, mask_confidence
from net.cam import class_activation_map
from net.inputs import to_input, to_maskcn_input
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_en
from tests.conftest import run_script

SIDE = 32   # px, the networks' input; enhanced-SN's scales are 32 and 48


def drawn(width, height, seed=0):
    """A smooth coloured picture, (H, W, 3) uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return images.resize_rgb(noise, (width, height))


PICTURE = drawn(150, 110, 5)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A models folder with random networks whose outputs depend visibly on all of their inputs."""
    torch.manual_seed(3)
    layout = Layout(tmp_path_factory.mktemp('chain'))
    pictures = torch.from_numpy(np.stack([drawn(SIDE, SIDE, seed) for seed in range(8)])).permute(0, 3, 1, 2)
    masks, maps = torch.rand(8, SIDE, SIDE) > 0.5, torch.rand(8, 1, SIDE // 16, SIDE // 16)
    built = {'CoarseSN': awake(deeplabv3plus(), to_input(pictures, 'unit')),
             'MaskCN': awake(Xception_dilation(), to_maskcn_input(pictures, masks, 'symmetric')),
             'EnhancedSN': awake(deeplabv3plus_en(), to_input(pictures, 'unit'), maps)}
    balance(*built.values())
    for name, network in built.items():
        layout.run(name).mkdir(parents=True)
        torch.save(network.half().state_dict(), layout.weights(name))   # half the disk
        write_config(layout.models, name, {'settings': {'INPUT_SIZE': SIDE, 'CAM_RELU': True}})
    yield layout.models
    shutil.rmtree(layout.root)   # 260 MB


@torch.no_grad()
def awake(network, *batch):
    """A random network whose batch norms know the spread of its inputs, so that outputs vary with them."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(*batch)
    return network


@torch.no_grad()
def balance(coarse, mask, enhanced):
    """Shift the last biases so that half of PICTURE becomes lesion, and its classes are equally probable."""
    classifier = Classifier(mask, 'symmetric', 'fp32', cam_relu=True)
    chain = MBDCNN(Segmenter(coarse, 'unit', 'fp32'), Segmenter(enhanced, 'unit', 'fp32', classifier),
                   dict.fromkeys(NETWORKS, SIDE), torch.device('cpu'))
    whole = chain.prepare(PICTURE).whole[None]
    logits = segment(chain.coarse, [whole])[0].mean(0)
    coarse.cls_conv.bias[1] -= float(np.median(logits))
    found = chain(PICTURE)
    mask.cls.bias -= torch.tensor(list(found.class_probabilities.values())).log()
    enhanced.cls_conv.bias[1] -= float(np.median(enlarged_sum(found.logits, (SIDE, SIDE)))) / found.views


def write_config(models, name, content):
    (models / name / 'config.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def model(models):
    return MBDCNN.load(models, device='cpu', precision='fp32')


def test_the_page_for_one_picture_shows_what_the_chain_finds(model, tmp_path):
    images.write_png(tmp_path / 'picture.png', PICTURE)
    found = model(PICTURE)   # the mask of all views is half of the picture
    contours, heat, probabilities, said = app.look_at(model, tmp_path / 'picture.png', tta=True)
    assert probabilities == found.class_probabilities and f'The heat map is that of {found.label}.' in said
    assert f'{100 * found.area_fraction:.1f} % of the picture' in said
    assert np.array_equal(contours, figures.outlined(PICTURE, None, found.mask, found.coarse_mask))
    assert np.array_equal(heat, figures.warmed(PICTURE, found.cam))


def test_packed_networks_predict_alike(models, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, 'CLIPPED', [1.0])   # a search is slow, and so are many layers
    monkeypatch.setattr(packing, 'LARGE', 2_000_000)
    monkeypatch.setattr(sys, 'argv', ['pack.py', f'--ROOT={models.parent}', f'--OUT={tmp_path / "packed"}',
                                      '--ABOUT=of noise', '--TOLERANCE=0.07'])
    runpy.run_path('models/pack.py')['main']()
    before = sum(path.stat().st_size for path in models.glob('*/*.pth'))   # in float16
    packed = {path.stem: path for path in (tmp_path / 'packed').glob('*/*.safetensors')}
    assert sorted(packed) == sorted(NETWORKS)
    assert 0.6 < sum(path.stat().st_size for path in packed.values()) / before < 0.8
    beside = tmp_path / 'packed' / 'SHA256SUMS'
    assert {path.stat().st_mode for path in packed.values()} == {beside.stat().st_mode}   # for others to read
    for line in beside.read_text().splitlines():
        digest, _, name = line.partition('  ')
        assert hashlib.sha256((tmp_path / 'packed' / name).read_bytes()).hexdigest() == digest

    monkeypatch.setattr(networks, 'PUBLISHED', tmp_path / 'packed')   # what a fresh clone has
    (tmp_path / 'nothing').mkdir()
    small = MBDCNN.load(tmp_path / 'nothing', device='cpu', precision='fp32')
    assert 'holds no trained networks' in capsys.readouterr().out
    theirs, ours = model(PICTURE, tta=False), small(PICTURE, tta=False)
    assert (theirs.mask == ours.mask).mean() > 0.9
    for name, probability in theirs.class_probabilities.items():
        assert ours.class_probabilities[name] == pytest.approx(probability, abs=0.05)
    networks.or_published(Layout(models.parent))
    assert capsys.readouterr().out == ''   # its own networks come first

    mixed = tmp_path / 'mixed'   # enhanced-SN trained anew beside the packed two
    (mixed / 'models').mkdir(parents=True)
    for name in NETWORKS:
        (mixed / 'models' / name).symlink_to(models / name if name == 'EnhancedSN' else packed[name].parent)
    monkeypatch.setattr(sys, 'argv', ['pack.py', f'--ROOT={mixed}', f'--OUT={tmp_path / "again"}',
                                      '--ABOUT=of more noise', '--TOLERANCE=0.07'])
    runpy.run_path('models/pack.py')['main']()   # two are packed already, and stay as they are
    for name in ('CoarseSN', 'MaskCN'):
        for file in (packed[name], packed[name].with_name('config.json')):
            assert (tmp_path / 'again' / name / file.name).read_bytes() == file.read_bytes()
    MBDCNN.load(tmp_path / 'again', device='cpu', precision='fp32')

    path = packed['EnhancedSN']
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r'EnhancedSN\.safetensors'):
        MBDCNN.load(tmp_path / 'packed', device='cpu', precision='fp32')


def write_good(folder):
    """{file below `folder`: (width, height) as seen} for pictures that can be predicted."""
    (folder / 'a' / 'deep').mkdir(parents=True)
    picture = Image.fromarray(drawn(90, 60))
    turned = Image.Exif()
    turned[images.ORIENTATION] = 6
    picture.save(folder / 'a' / 'turned.jpg', exif=turned)
    picture.save(folder / 'a' / 'same.png')
    picture.save(folder / 'a' / 'same.jpg')
    picture.save(folder / 'a' / 'deep' / 'same.PNG')
    picture.convert('CMYK').save(folder / 'cmyk.jpeg')
    picture.convert('P').save(folder / 'palette & <i>tags</i>.bmp'.replace('/', '-'))
    Image.fromarray(drawn(16, 300).astype(np.uint16)[..., 0] * 257).save(folder / 'grey €.png')
    picture.save(folder / 'a' / 'turned.tif', exif=turned)
    picture.save(folder / 'photo.webp', lossless=True)
    return {'a/turned.tif': (60, 90), 'photo.webp': (90, 60), 'a/turned.jpg': (60, 90),
            'a/same.png': (90, 60), 'a/same.jpg': (90, 60),
            'a/deep/same.PNG': (90, 60), 'cmyk.jpeg': (90, 60), 'grey €.png': (16, 300),
            'palette & <i>tags<-i>.bmp': (90, 60)}


def write_bad(folder):
    """Names of files that cannot be predicted."""
    whole = (folder / 'a' / 'same.jpg').read_bytes()
    giant = bytearray((folder / 'a' / 'same.png').read_bytes())
    giant[16:24] = struct.pack('>II', 30000, 30000)   # the size in its header, and the header's checksum
    giant[29:33] = struct.pack('>I', zlib.crc32(giant[12:29]))
    content = {'truncated.jpg': whole[:len(whole) // 2], 'text.png': b'no picture', 'empty.bmp': b'',
               'bomb.png': giant}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    Image.fromarray(drawn(15, 40)).save(folder / 'tiny.png')
    return [*content, 'tiny.png']


class Page(HTMLParser):
    """Collects what a page links to and says; demands that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.alternatives, self.text = [], set(), [], ''
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links |= {attributes[name] for name in ('href', 'src') if name in attributes}
        if tag == 'img':
            self.alternatives.append(attributes['alt'])
        if tag not in ('img', 'meta'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope='module')
def run(models, tmp_path_factory):
    """One run of predict.py over good and bad files; its output lies within its input."""
    folder = tmp_path_factory.mktemp('pictures')
    good, bad = write_good(folder), write_bad(folder)
    (folder / 'notes.txt').write_text('of no interest')
    Image.fromarray(drawn(40, 40)).save(folder / '.hidden.png')
    out = folder / 'out'
    printed = run_script('predict.py', None, str(folder), str(folder / 'absent.jpg'), f'--MODELS={models}',
                         f'--OUT={out}', '--TTA=False', '--AMP=fp32', '--BATCH_SIZE=3', expect=2)
    with open(out / 'predictions.csv', encoding='utf-8', newline='') as file:
        rows = {os.path.relpath(row['file'], folder): row for row in csv.DictReader(file)}
    return SimpleNamespace(folder=folder, out=out, good=good, bad=[*bad, 'absent.jpg'], rows=rows,
                           printed=printed)


# --- The script


def test_bad_files_are_named_and_the_others_done(run):
    assert set(run.rows) == set(run.good)
    assert f'{len(run.bad)} of {len(run.bad) + len(run.good)} files cannot be used' in run.printed
    for name in run.bad:
        assert str(run.folder / name) in run.printed
    assert run.printed.count('not a medical device') == 1
    assert '.hidden' not in run.printed and f'(1): {run.folder}/notes.txt' in run.printed


def test_every_picture_has_a_mask_of_its_size_and_an_overlay(run):
    assert len({row['name'] for row in run.rows.values()}) == len(run.good)
    for name, (width, height) in run.good.items():
        row = run.rows[name]
        mask = images.read_mask(run.out / 'masks' / f'{row["name"]}.png')
        assert mask.shape == (height, width) and (row['width'], row['height']) == (str(width), str(height))
        overlay = images.read_rgb(run.out / 'overlays' / f'{row["name"]}.jpg')
        assert overlay.shape[0] == height and 2 * width < overlay.shape[1] <= 2 * width + 12
    assert run.rows['a/deep/same.PNG']['name'] == 'a/deep/same'
    assert {run.rows[f'a/same.{kind}']['name'] for kind in ('jpg', 'png')} == {'a/same', 'a/same_2'}
    assert [path.name for path in run.out.rglob('*') if path.name.startswith('.')] == ['.lock']


def test_table_agrees_with_the_masks(run):
    for row in run.rows.values():
        assert tuple(row) == predict.columns_of(PAPER.names)
        p = [float(row[name]) for name in PAPER.names]
        assert sum(p) == pytest.approx(1, abs=1e-5) and row['predicted'] == PAPER.names[np.argmax(p)]
        mask = images.read_mask(run.out / 'masks' / f'{row["name"]}.png') > 0
        assert int(row['lesion_px']) == mask.sum()
        assert float(row['lesion_percent']) == pytest.approx(100 * mask.mean(), abs=1e-4)
        edges = [row[side] for side in ('left', 'top', 'right', 'bottom')]
        if mask.any():
            y, x = np.nonzero(mask)
            assert list(map(int, edges)) == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        else:
            assert edges == [''] * 4
        assert 0 <= float(row['mask_confidence']) <= 1


def test_page_shows_every_file_and_links_to_what_is_there(run):
    source = (run.out / 'index.html').read_text(encoding='utf-8')
    page = Page(source)
    for name in [*run.good, *run.bad]:
        assert str(run.folder / name) in page.text
    assert len(page.alternatives) == len(run.good) and all(page.alternatives)
    assert 'not a medical device' in page.text
    assert not [word for word in ('://', '<script', '<i>') if word in source]
    for link in page.links:
        assert (run.out / unquote(link)).is_file(), link


def test_the_record_says_what_it_ran_with(run, models):
    record = json.loads((run.out / 'predictions.json').read_text())
    for name in NETWORKS:
        path = models / name / f'{name}.pth'
        assert record['networks'][name] == {'file': str(path), 'recipe': 'unknown',
                                            'fingerprint': files.fingerprint(path)}
        assert record['made_with']['weights'][name] == files.fingerprint(path)
    assert record['made_with']['views'] == 1 and record['made_with']['scales'] == [SIDE]
    assert record['settings']['TTA'] is False and record['versions']['torch'] == torch.__version__
    assert record['skipped'] == [str(run.folder / 'notes.txt')] and len(record['faults']) == len(run.bad)
    assert {entry['row']['file']: entry['fingerprint'] for entry in record['pictures'].values()} == {
        str(run.folder / name): files.fingerprint(run.folder / name) for name in run.good}


def launch(monkeypatch, *words):
    """Exit code of predict.py in this process."""
    monkeypatch.setattr(sys, 'argv', ['predict.py', *map(str, words)])
    monkeypatch.setattr(cli.signal, 'signal', lambda *_: None)
    try:
        cli.launch(predict.main)
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def predicted(model, monkeypatch):
    """predicted(out, *words) launches predict.py, the networks left out: the exit code."""
    def predict_quickly(pictures, *_):
        for picture in pictures:
            mask = np.ones(picture.size[::-1], bool)
            yield Prediction(mask, mask, dict(zip(PAPER.names, (0.5, 0.3, 0.2), strict=True)),
                             np.ones((2, 2), np.float32), 1.0, picture.preview, (), 1)

    monkeypatch.setattr(model, 'predict', predict_quickly)
    monkeypatch.setattr(MBDCNN, 'load', lambda *_: model)
    return lambda out, *words: launch(monkeypatch, *words, f'--OUT={out}')


def draw_pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(40, 40, number)).save(folder / name)
    return folder


def table(out):
    """{name: row} of a folder's predictions.csv."""
    with open(out / 'predictions.csv', encoding='utf-8', newline='') as file:
        return {row['name']: row for row in csv.DictReader(file)}


def contents(folder):
    """{path: bytes} of the files below a folder, but for the lock."""
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


def test_no_pictures(tmp_path, monkeypatch, capsys):
    (tmp_path / 'notes.txt').write_text('text')
    assert launch(monkeypatch, tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert launch(monkeypatch) == 2
    assert 'python predict.py pictures/' in capsys.readouterr().err


def test_missing_weights_name_the_scripts(tmp_path, monkeypatch, capsys):
    Image.fromarray(drawn(40, 40)).save(tmp_path / 'one.png')
    assert launch(monkeypatch, tmp_path, f'--MODELS={tmp_path}/typo', f'--OUT={tmp_path}/out') == 2
    said = capsys.readouterr().err
    for hint in ('train_CoarseSN.py', 'train_MaskCN.py', 'train_EnhancedSN.py', '--MODELS=demo/models'):
        assert hint in said
    assert not (tmp_path / 'out').exists()
    with pytest.raises(InputError, match='cuda'):
        MBDCNN.load(tmp_path, device='gpu')


def test_an_interrupted_run_keeps_what_is_there_and_goes_on(tmp_path, predicted, monkeypatch):
    folder, out = draw_pictures(tmp_path / 'in', '0.png', '1.png', '2.png'), tmp_path / 'out'
    write, stop, written = predict.write_pictures, [''], []

    def interrupted(out, name, *rest):
        if name in stop:
            images.write_mask(out / 'masks' / f'{name}.png', np.zeros((9, 9)))   # in the middle
            raise KeyboardInterrupt
        written.append(name)
        write(out, name, *rest)

    def run(stop_at, code):
        stop[:] = [stop_at]
        written.clear()
        assert predicted(out, folder, '--BATCH_SIZE=1') == code
        return written, list(table(out))

    monkeypatch.setattr(predict, 'write_pictures', interrupted)
    assert run('1', 130) == (['0'], ['0'])
    assert run('', 0) == (['1', '2'], ['0', '1', '2'])
    assert run('', 0) == ([], ['0', '1', '2'])
    whole = contents(out)
    Image.fromarray(drawn(40, 40, 7)).save(folder / '0.png')   # changed
    assert run('0', 130) == ([], ['0', '1', '2'])
    assert run('', 0) == (['0'], ['0', '1', '2'])
    assert contents(out)[out / 'masks' / '1.png'] == whole[out / 'masks' / '1.png']
    Page((out / 'index.html').read_text(encoding='utf-8'))
    # Another folder's pictures join the table under names of their own.
    assert predicted(out, draw_pictures(tmp_path / 'other', '0.png', '3.png')) == 0
    assert list(table(out)) == ['0', '1', '2', '0_2', '3']
    assert predicted(out, tmp_path) == 0 and len(table(out)) == 5   # its output is not its input


def test_outputs_of_other_predictions_among_the_pictures_are_left_out(tmp_path, predicted, capsys):
    study = draw_pictures(tmp_path / 'study', '0.png', 'masks/mine.png')
    assert predicted(study / 'first', study) == 0 and 'skipped' not in capsys.readouterr().out
    draw_pictures(study / 'first', 'masks/2.png')   # of somebody else
    assert predicted(study / 'first' / 'second', study) == 0
    assert list(table(study / 'first' / 'second')) == ['0', 'first/masks/2', 'masks/mine']
    assert f'(1): {study}/first (7 files of other predictions)' in capsys.readouterr().out
    (study / 'first' / 'masks' / '2.png').unlink()
    assert predicted(study / 'first', study) == 0 and list(table(study / 'first')) == ['0', 'masks/mine']
    images.write_mask(study / 'first' / 'masks' / '0.png', np.eye(40))   # corrected by hand
    third = tmp_path / 'third'
    assert predicted(third, study) == 0 and list(table(third)) == ['0', 'masks/mine']


def test_moved_pictures_keep_their_rows_and_outputs(tmp_path, predicted, monkeypatch):
    folder, out = draw_pictures(tmp_path / 'in', '0.png', '1.png', 'a/1.png'), tmp_path / 'out'
    shutil.copy(folder / '0.png', folder / '2.png')   # of one content
    assert predicted(out, folder) == 0
    before = table(out)
    moved = folder.rename(tmp_path / 'moved')
    (moved / '1.png').rename(moved / 'other.png')
    shutil.copy(moved / 'a' / '1.png', tmp_path / 'copy.png')
    (moved / '0.png').unlink()   # the second of its content is followed by name
    monkeypatch.setattr(predict, 'write_pictures', None)   # nothing is predicted again
    assert predicted(out, moved) == 0
    lie = {'0': 'in/0.png', '1': 'moved/other.png', '2': 'moved/2.png', 'a/1': 'moved/a/1.png'}
    assert table(out) == {name: row | {'file': f'{tmp_path}/{lie[name]}'} for name, row in before.items()}


def test_after_a_kill_what_it_wrote_is_known(tmp_path, predicted, monkeypatch):
    folder, out = draw_pictures(tmp_path / 'in', '0.png', '1.png'), tmp_path / 'out'
    saved = prediction_folder.PredictionFolder.save
    with monkeypatch.context() as patch:   # nothing is saved at the end, as after a SIGKILL
        patch.setattr(prediction_folder.PredictionFolder, 'save',
                      lambda self, done=False, **more: None if done else saved(self, **more))
        assert predicted(out, folder) == 0
    assert not json.loads((out / 'predictions.json').read_text())['pictures']
    assert predicted(out, folder) == 0 and list(table(out)) == ['0', '1']


def test_files_of_others_are_not_replaced_nor_predictions_mixed(tmp_path, predicted, capsys):
    study, out = draw_pictures(tmp_path / 'study', 'one.png', 'two.png'), tmp_path / 'out'
    images.write_mask(study / 'masks' / 'one.png', np.eye(40))
    draw_pictures(out, 'masks/three.png')
    before = contents(tmp_path)
    for where, words, said in (
            (study, [study], study / 'masks' / 'one.png'),
            (out, [out / 'masks' / 'three.png'], out / 'masks' / 'three.png'),
            (study, [draw_pictures(tmp_path / 'new', 'one.png')], study / 'masks' / 'one.png')):
        assert predicted(where, *words) == 2
        said_now = capsys.readouterr().err
        assert f'{said}: ' in said_now and 'name another folder (--OUT=' in said_now
    assert predicted(tmp_path / 'mine', study / 'one.png') == 0
    mine = contents(tmp_path / 'mine')
    assert predicted(tmp_path / 'mine', study / 'two.png', '--TTA=False') == 2
    assert 'views was 6 and is 1' in capsys.readouterr().err
    images.write_mask(tmp_path / 'mine' / 'masks' / 'one.png', np.eye(40))   # corrected by hand
    Image.fromarray(drawn(40, 40, 9)).save(study / 'one.png')
    assert predicted(tmp_path / 'mine', study / 'one.png') == 2
    assert 'one.png: was changed since' in capsys.readouterr().err
    after = contents(tmp_path / 'mine')
    assert {path for path in mine if mine[path] != after[path]} == {tmp_path / 'mine' / 'masks' / 'one.png'}
    before[study / 'one.png'] = (study / 'one.png').read_bytes()
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_prediction_into_a_folder_is_refused(tmp_path, predicted, capsys):
    folder, out = draw_pictures(tmp_path / 'in', '0.png'), tmp_path / 'out'
    out.mkdir()
    with filelock.FileLock(out / '.lock'):
        assert predicted(out, folder) == 2
    said = capsys.readouterr().err
    assert f'{out}: another process writes there' in said and '--OUT=' in said
    assert not contents(out)


def test_names_of_outputs_are_unique_short_text_and_below_the_folder(tmp_path):
    long = tmp_path / ('q' * 200)
    draw_pictures(long, f'{"v" * 179}.png', f'{"w" * 200}/{"v" * 179}.png')   # their last 180 bytes: /vvv...
    draw_pictures(tmp_path / 'names', 'a.jpg', 'a.PNG/x.png', 'a.PNG/x.jpg', 'deep/a.jpg')
    words = ['a/x.jpg', 'b/X.png', 'c/x_2.png', 'a/../a/x.jpg', os.fsdecode(b'\xff.png'), f'{"ö" * 220}.png',
             'e/..png', tmp_path / 'names', long]
    folder = prediction_folder.PredictionFolder(tmp_path / 'out')
    found, skipped, faults = predict.find_pictures(list(map(str, words)), folder)
    named = folder.named(found)
    assert [name for _, name in named] == [
        'x', 'X_2', 'x_2_2', '?', 'ö' * 90, '..png', 'a', 'a.PNG_/x', 'a.PNG_/x_2', 'deep/a', 'v' * 179,
        f'{"v" * 179}_2'] and skipped == faults == []
    assert all(len(part.encode()) < 230 for _, name in named for part in name.split('/'))
    # A record that somebody wrote does not lead out of the folder either.
    columns = predict.columns_of(PAPER.names)
    entry = {'source': str(tmp_path / 'x.png'), 'fingerprint': '', 'row': dict.fromkeys(columns, '')}
    files.write_text(tmp_path / 'out' / 'predictions.json', json.dumps(
        {'pictures': {'../x': entry, str(tmp_path / 'y'): entry, 'z': entry}}))
    folder = prediction_folder.PredictionFolder(tmp_path / 'out')
    with folder.lock(columns):
        pass
    assert folder.named([(tmp_path / 'x.png', 'x')]) == [(tmp_path / 'x.png', 'z')]


def test_odd_inputs_are_named_and_the_others_done(tmp_path, model, predicted, monkeypatch, capsys):
    folder = draw_pictures(tmp_path / os.fsdecode(b'in\xff'), 'gone.png', 'a.jpg', 'a.png/x.png')
    os.mkfifo(folder / 'pipe.png')
    (folder / 'self.png').symlink_to(folder / 'self.png')
    (folder / 'link').symlink_to(folder / 'a.png')

    def load(*_):
        (folder / 'gone.png').unlink()
        return model

    monkeypatch.setattr(MBDCNN, 'load', load)
    out = tmp_path / 'out'
    assert predicted(out, folder) == 2
    printed = capsys.readouterr()
    for name in ('gone.png: is missing', 'pipe.png: is no file', 'self.png: cannot be read'):
        assert f'{folder}/{name}'.encode(errors='backslashreplace').decode() in printed.err
    assert 'link (a link to a folder)' in printed.out and list(table(out)) == ['a', 'a.png_/x']
    for where, words, said in ((out, ['', folder], "'': is an empty word"),
                               ('', [folder], 'OUT= is no folder'),
                               (folder / 'out', [folder], 'must be text, in UTF-8')):
        assert predicted(where, *words) == 2
        assert said in capsys.readouterr().err


def test_a_reader_that_has_gone_costs_nothing(tmp_path, predicted, monkeypatch, capsys):
    folder, (read, write) = draw_pictures(tmp_path / 'in', '0.png', '1.png'), os.pipe()
    write_pictures = predict.write_pictures

    def leave(out, name, *rest):
        write_pictures(out, name, *rest)
        if name == '0':
            os.close(read)

    with open(write, 'w') as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', nobody)
        patch.setattr(predict, 'write_pictures', leave)
        assert predicted(tmp_path / 'out', folder, '--BATCH_SIZE=1') == 128 + signal.SIGPIPE
    said = capsys.readouterr().err
    assert 'nobody reads' in said and 'same command again' in said and '0' in table(tmp_path / 'out')


def test_an_empty_mask_is_flagged(tmp_path, model, monkeypatch, capsys):
    folder, out = draw_pictures(tmp_path / 'in', '0.png'), tmp_path / 'out'
    monkeypatch.setattr(MBDCNN, 'load', lambda *_: model)
    bias = model.enhanced.network.cls_conv.bias
    monkeypatch.setattr(bias, 'data', bias.data + torch.tensor([1e4, 0]).to(bias))
    assert launch(monkeypatch, folder, f'--OUT={out}', '--TTA=False') == 0
    assert f'{predict.EMPTY} (1): {folder}/0.png' in capsys.readouterr().out
    assert table(out)['0']['note'] == predict.EMPTY
    assert predict.EMPTY in Page((out / 'index.html').read_text(encoding='utf-8')).text


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_that_are_not_finite_are_refused(tmp_path, model, monkeypatch, capsys, name):
    """Finite weights, so huge that what is computed with them is not."""
    folder, out = draw_pictures(tmp_path / 'in', '0.png'), tmp_path / 'out'
    monkeypatch.setattr(MBDCNN, 'load', lambda *_: model)
    trained = {'CoarseSN': model.coarse, 'MaskCN': model.classifier, 'EnhancedSN': model.enhanced}[name]
    for parameter in trained.network.parameters():
        monkeypatch.setattr(parameter, 'data', parameter.data * 1e30)
    assert launch(monkeypatch, folder, f'--OUT={out}', '--TTA=False') == 2
    said = capsys.readouterr().err
    assert f'{name}.pth: ' in said and 'not finite' in said and 'LEARNING_RATE' in said
    assert not table(out) and not list(out.glob('*/*'))


# --- From Python


def test_prediction_has_the_shapes_and_types_it_says(model):
    result = model(PICTURE)
    assert result.mask.shape == result.coarse_mask.shape == (110, 150)
    assert result.mask.dtype == result.coarse_mask.dtype == bool
    assert result.probability.dtype == np.float32
    np.testing.assert_array_equal(result.probability > 0.5, result.mask)
    for mask in (result.mask, result.coarse_mask):
        assert 0.1 < mask.mean() < 0.9   # otherwise these tests see little
    assert result.area == result.mask.sum() and result.area_fraction == result.mask.mean()
    assert tuple(result.class_probabilities) == PAPER.names and result.label in PAPER.names
    assert sum(result.class_probabilities.values()) == pytest.approx(1)
    assert result.cam.shape == (SIDE // 16,) * 2 and result.cam.dtype == np.float32
    assert 0 < result.mask_confidence < 1
    np.testing.assert_array_equal(result.preview, PICTURE)


def test_arrays_pil_images_and_paths_are_the_same_picture(model, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / 'one.png')
    turned = Image.fromarray(np.rot90(PICTURE).copy())
    turned.getexif()[images.ORIENTATION] = 6
    alone = model(PICTURE)
    for other in model.batch([Image.fromarray(PICTURE), tmp_path / 'one.png', str(tmp_path / 'one.png'),
                              turned], batch_size=3):
        np.testing.assert_allclose(list(other.class_probabilities.values()),
                                   list(alone.class_probabilities.values()), atol=1e-5)
        assert (other.mask == alone.mask).mean() > 0.999


def test_sixteen_bit_grey_is_scaled_not_clipped(model, tmp_path):
    grey = drawn(60, 40)[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    np.testing.assert_array_equal(model.prepare(tmp_path / 'deep.png').preview, np.stack([grey] * 3, 2))


def test_each_core_has_a_picture_of_its_own_which_changes_nothing(model, monkeypatch):
    prepared = [model.prepare(drawn(60 + 9 * seed, 50, seed)) for seed in range(4)]
    threads, meeting, run = torch.get_num_threads(), threading.Barrier(2, timeout=60), model._run
    try:
        torch.set_num_threads(1)
        alone = list(model.predict(prepared, tta=False))
        torch.set_num_threads(2)

        def meet(pictures, *more):
            meeting.wait()   # a lonely picture would break it
            assert len(pictures) == torch.get_num_threads() == 1
            return run(pictures, *more)

        monkeypatch.setattr(model, '_run', meet)
        together = list(model.predict(prepared, tta=False))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(alone, together, strict=True):
        assert one.class_probabilities == other.class_probabilities
        for name in ('mask', 'coarse_mask', 'cam', 'preview', 'logits'):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len({one.mask.tobytes() for one in alone}) == 4


def test_classes_of_ones_own_are_those_of_prediction_table_and_page(models, tmp_path, monkeypatch):
    names = 'nv', 'mel', 'bkl', 'bcc', 'basal cells'
    for name in ('CoarseSN', 'EnhancedSN'):
        (tmp_path / 'models' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'models' / name).symlink_to(models / name)
    own = shutil.copytree(models / 'MaskCN', tmp_path / 'models' / 'MaskCN')
    state, config = torch.load(own / 'MaskCN.pth'), json.loads((own / 'config.json').read_text())
    for name in ('cls.weight', 'cls.bias'):
        state[name] = torch.cat([state[name], 1.2 * state[name][:2]])
    torch.save(state, own / 'MaskCN.pth')
    inputs = {'classes': {'classes': names, 'scored': names[1:2]}}
    write_config(own.parent, 'MaskCN', config | {'inputs': inputs})
    found = MBDCNN.load(own.parent, device='cpu', precision='fp32')(PICTURE, tta=False)
    assert tuple(found.class_probabilities) == names and found.label in names
    assert sum(found.class_probabilities.values()) == pytest.approx(1)
    images.write_png(tmp_path / 'one.png', PICTURE)
    out = tmp_path / 'out'
    monkeypatch.setattr(sys, 'argv', ['predict.py', str(tmp_path / 'one.png'), f'--MODELS={own.parent}',
                                      f'--OUT={out}', '--TTA=False', '--AMP=fp32'])
    predict.main()
    row, = table(out).values()
    assert tuple(row) == predict.columns_of(names) and row['predicted'] == found.label
    assert {name: float(row[name]) for name in names} == pytest.approx(found.class_probabilities, abs=1e-5)
    page = (out / 'index.html').read_text()
    assert all(f'>{name}</th>' in page for name in names) and 'keratosis' not in page
    monkeypatch.setattr(sys, 'argv', [*sys.argv[:2], f'--MODELS={models}', *sys.argv[3:]])
    with pytest.raises(InputError, match='made otherwise') as error:   # other columns do not share a table
        predict.main()
    assert any('columns was' in line for line in error.value.faults)


@pytest.mark.parametrize('bad', [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3)),
                                 np.zeros((40, 8, 3), np.uint8), Image.new('F', (40, 40)), 'absent.png'])
def test_what_is_no_picture_is_refused(model, bad):
    with pytest.raises(InputError):
        model(bad)


def test_the_chain_equals_the_steps_from_disk(model, tmp_path):
    """Crops, coarse masks and scores as steps 1, 3 and 6 write and read them."""
    layout, name = Layout(tmp_path), 'ISIC_0000001'
    source = layout.originals('Testing') / 'Images' / f'{name}.png'
    images.write_png(source, PICTURE)
    layout.labels('Testing').write_text(f'image_id,melanoma,seborrheic_keratosis\n{name},0.0,1.0\n')
    extraction.extract_crops(layout, 'Testing')
    extraction.files.write_text(layout.classification_list('Testing'), '\n'.join(
        f'{crop} 2' for crop in crops.crop_names(name, crops.SCALES_9)) + '\n')
    process = Process(0, 1, torch.device('cpu'))
    cfg = SimpleNamespace(INPUT_SIZE=SIDE, TTA=True, BATCH_SIZE=4, NUM_WORKERS=0)
    for paths, folder, side in (
            (sorted(layout.crops('Testing').glob('*.png')), layout.coarse_for_classification('Testing'), 224),
            ([source], layout.coarse_for_segmentation('Testing'), 0)):
        record = splits.coarse_record(layout, folder)
        generate_Coarse_mask.draw_masks(model.coarse, paths, record, side, cfg, process)

    data = splits.classification(layout, 'Testing', SIDE)
    expected, _ = evaluation.image_probabilities(
        evaluation.crop_probabilities(model.classifier, data, 64, process), data)
    coarse_path = layout.coarse_for_segmentation('Testing') / source.name
    mask = next(segment_files(model.enhanced, [source], [coarse_path], model.scales, 1))
    result = model(source)
    np.testing.assert_allclose(list(result.class_probabilities.values()), expected[0], atol=1e-5)
    assert (result.coarse_mask == (images.read_mask(coarse_path) > 0)).all()
    whole = cache.read_rgb_square(source, SIDE)[None], cache.read_mask_square(coarse_path, SIDE)[None]
    cam = model.classifier(*place(*whole, process.device), torch.tensor([PAPER.names.index(result.label)]))[1]
    np.testing.assert_allclose(result.cam, cam[0, 0], atol=1e-5)
    assert np.array_equal(result.mask, mask['tta'])
    quick = next(segment_files(model.enhanced, [source], [coarse_path], model.scales, 1, tta=False))
    assert quick.keys() == {'plain'} and np.array_equal(quick['plain'], mask['plain'])


def test_the_map_is_of_the_predicted_class_and_the_mask_as_it_was(model, monkeypatch):
    """The crops may be of another class than the whole picture, whose own map enhanced-SN reads."""
    found = []
    for number in range(len(PAPER.names)):
        crops_say = np.tile(np.eye(len(PAPER.names))[number], (9, 1))
        monkeypatch.setattr(model, '_classify', lambda *_, said=crops_say: said)
        found.append(model(PICTURE, tta=False))
        assert found[-1].label == PAPER.names[number]
        assert np.array_equal(found[-1].mask, found[0].mask)
    coarse, = squashed([found[0].coarse_mask.astype(np.uint8)], [SIDE])
    features, _ = model.classifier._run(*place(model.prepare(PICTURE).squares[0][None], coarse, model.device))
    for number, result in enumerate(found):
        expected = class_activation_map(features, model.classifier.network.cls.weight, [number], relu=True)
        np.testing.assert_allclose(result.cam, expected[0, 0], atol=1e-5)
        assert not np.allclose(result.cam, found[number - 1].cam)


@pytest.fixture
def record(models):
    """record(network, settings, inputs) writes a config.json; the previous one comes back at the end."""
    paths = [models / name / 'config.json' for name in NETWORKS]
    before = [path.read_text() for path in paths]
    yield lambda name, settings, inputs: write_config(models, name, {
        'settings': {'INPUT_SIZE': SIDE} | settings, 'inputs': inputs})
    for path, text in zip(paths, before, strict=True):
        path.write_text(text)


@pytest.mark.parametrize('earlier', ['', '{coarse_sn} {input_size} {views}',
                                     '{coarse_sn} {input_size} {views} ab,cd'])
def test_coarse_masks_are_drawn_as_those_of_the_training(models, record, earlier):
    made = {'coarse_sn': files.fingerprint(models / 'CoarseSN' / 'CoarseSN.pth'), 'input_size': 48,
            'views': 1} | ({'fold_networks': 'ab,cd'} if 'ab' in earlier else {})
    record('MaskCN', {}, {'coarse_masks': earlier.format(**made) or made})   # a text in earlier versions
    record('EnhancedSN', {'INPUT_SIZE': 64}, {'coarse_masks': made})
    model = MBDCNN.load(models, device='cpu')
    assert model.sides == {'CoarseSN': 48, 'MaskCN': 32, 'EnhancedSN': 64} and model.scales == (64, 80)
    assert not model.coarse_tta


@pytest.mark.parametrize(('name', 'settings', 'inputs', 'said'), [
    ('MaskCN', {}, {'coarse_masks': 'another 32 6'}, 'train_MaskCN.py'),
    ('EnhancedSN', {}, {'coarse_masks': 'another 32 6'}, 'generate_Coarse_mask.py'),
    ('MaskCN', {}, {'coarse_masks': {'coarse_sn': 'another', 'input_size': 32, 'views': 6}},
     'train_MaskCN.py'),
    ('EnhancedSN', {}, {'coarse_masks': {'coarse_sn': 'another'}}, 'generate_Coarse_mask.py'),
    ('EnhancedSN', {}, {'mask_cn': 'another'}, 'train_EnhancedSN.py'),
    ('MaskCN', {'INPUT_SIZE': 40}, {}, 'must be one of 16, 32, 48'),
    ('MaskCN', {'INPUT_SIZE': '224'}, {}, 'must be one of 16, 32, 48')])
def test_networks_that_do_not_fit_are_refused(models, record, name, settings, inputs, said):
    record(name, settings, inputs)
    with pytest.raises(InputError, match=said):
        MBDCNN.load(models)


def test_weights_that_have_seen_drawings_say_so_first(models, record, tmp_path, monkeypatch, capsys):
    Image.fromarray(PICTURE).save(tmp_path / 'one.png')
    record('MaskCN', {'CAM_RELU': True}, {'drawn_pictures': True})
    monkeypatch.setattr(sys, 'argv', ['predict.py', f'{tmp_path}/one.png', f'--MODELS={models}',
                                      f'--OUT={tmp_path}/out', '--TTA=False', '--AMP=fp32'])
    predict.main()
    said = 'Trained on pictures that a program drew: MaskCN. '
    settings_end = capsys.readouterr().out.split('# command line\n')[-1]
    assert settings_end.startswith(said)
    lines = (tmp_path / 'out/predictions.csv').read_text().splitlines()
    assert lines[0].startswith(f'# {said}') and lines[1].startswith('file,nevus') and len(lines) == 3
    body = (tmp_path / 'out/index.html').read_text().partition('<body>')[2]
    assert Page(body.partition('</body>')[0]).text.strip().startswith(said)


def test_scales_follow_the_trained_side(tmp_path):
    assert networks.scales_of(224) == (224, 256, 288)
    assert networks.scales_of(128) == (128, 144, 160)
    assert networks.scales_of(32) == (32, 48)
    weights = tmp_path / 'CoarseSN.pth'
    assert networks.scales_of_evaluation(weights, (0,)) == (224, 256, 288)   # as released, without a record
    (tmp_path / 'config.json').write_text('{"settings": {"INPUT_SIZE": 192}}')
    assert networks.scales_of_evaluation(weights, (0,)) == (192, 224, 240)
    assert networks.scales_of_evaluation(weights, (96,)) == (96,)


def test_confidence_falls_with_doubt_and_with_contradiction():
    certain = np.full((6, 16, 16), -20, np.float32)
    certain[:, 4:12, 4:12] = 20
    assert mask_confidence([certain]) == pytest.approx(1, abs=1e-6)
    assert mask_confidence([certain * 0.1]) < 0.9   # p of 0.88 and 0.12
    torn = certain.copy()
    torn[:2, 4:12, 4:8] = -20                       # two of six views leave half of the lesion out
    assert mask_confidence([torn]) == pytest.approx(2 * (32 + 32 * 4 / 6) / (64 + 32 + 32 * 4 / 6), abs=1e-5)
    assert mask_confidence([-abs(certain)]) == 0
