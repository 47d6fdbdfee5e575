"""Stage 0 as it is used: the challenge, the extra pictures and the weights, from a server on this machine."""
import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from dataset import download, fetch, label_csv
from dataset.layout import Layout
from engine import checkpoints, settings
from engine.errors import InputError
from mbdcnn import networks
from net import weights
from net.models import Xception_dilation, deeplabv3plus
from tests.conftest import REPOSITORY, run_script
from tests.test_fetch import serving, zipped
from tests.test_weights import cadene_name, constants

# --- The challenge

NAMES = {'Training': 'Training', 'Validation': 'Validation', 'Testing': 'Test_v2'}


def picture(seed, suffix='.jpg'):
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(pixels, (60, 40)))[1].tobytes()


def challenge():
    """{name: bytes} of the challenge's nine files, three pictures in each split."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 255
    mask, contents = cv2.imencode('.png', mask)[1].tobytes(), {}
    for number, name in enumerate(NAMES.values()):
        ids = [f'ISIC_{100 * number + k:07d}' for k in range(3)]
        begin = f'ISIC-2017_{name}_'
        pictures = [(f'{begin}Data/{i}.jpg', picture(100 * number + k)) for k, i in enumerate(ids)]
        contents[f'{begin}Data.zip'] = zipped([
            *pictures, (f'{begin}Data/', b''), (f'{begin}Data/{ids[0]}_superpixels.png', picture(0, '.png')),
            (f'{begin}Data/{begin}Data_metadata.csv', b'image_id,age_approximate,sex\n'),
            (f'__MACOSX/{begin}Data/._{ids[0]}.jpg', b'x')])
        contents[f'{begin}Part1_GroundTruth.zip'] = zipped(
            [(f'{begin}Part1_GroundTruth/{i}_segmentation.png', mask) for i in ids])
        rows = [f'{i},{float(k == 1)},{float(k == 2)}\n' for k, i in enumerate(ids)]
        contents[f'{begin}Part3_GroundTruth.csv'] = (
            'image_id,melanoma,seborrheic_keratosis\n' + ''.join(rows)).encode()
    return contents


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, 'PAUSE', 0.0)
    monkeypatch.setenv('no_proxy', '*')
    with serving({}) as server:
        yield server


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """run('--NAME=value', ...) -> what dataset/download.py printed; its layout is run.layout."""
    server.files = challenge()

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['download.py', f'--ROOT={tmp_path / "root"}', '--RETRIES=0',
                                          f'--BASE_URL={server.url}', '--TIMEOUT=5', *words])
        download.main()
        return capsys.readouterr().out

    run.layout = Layout(tmp_path / 'root')
    return run


def requests(server, method='GET'):
    return [name for command, name, _ in server.log if command == method]


def test_the_challenge_arrives_as_stage_1_reads_it(server, run):
    text = run()
    data = run.layout.data
    assert 'PH2Dataset' in text and 'Testing: 3 pictures, 3 masks, 3 labels (the challenge has 600)' in text
    names = sorted(str(path.relative_to(data)) for path in data.rglob('*.*') if path.suffix in (
        '.jpg', '.png', '.csv') and path.name[0] != '.')
    assert names == sorted(
        [f'ISIC-2017_{split}_Data/{kind}' for number, split in enumerate(NAMES) for k in range(3)
         for kind in (f'Images/ISIC_{100 * number + k:07d}.jpg',
                      f'Annotation/ISIC_{100 * number + k:07d}_segmentation.png')]
        + [f'ISIC-2017_{name}_Part3_GroundTruth.csv' for name in NAMES.values()])
    assert 'no faults' in run_script('dataset/check_data.py', run.layout.root)
    record = json.loads((data / 'downloads.json').read_text())
    assert record['ISIC-2017_Test_v2_Data.zip'] == {
        'url': server.url + 'ISIC-2017_Test_v2_Data.zip', 'members': 3,
        'size': len(server.files['ISIC-2017_Test_v2_Data.zip']),
        'sha256': fetch.sha256_of(data / 'ISIC-2017_Test_v2_Data.zip')}
    server.log.clear()
    run()
    assert server.log == []   # everything is there


def test_fetched_zips_can_go_and_are_not_fetched_again(server, run):
    run('--KEEP_ZIPS=False', '--SPLITS=Validation')
    assert not list(run.layout.data.glob('*.zip'))
    server.log.clear()
    assert 'Validation: 3 pictures, 3 masks' in run('--KEEP_ZIPS=False', '--SPLITS=Validation')
    assert server.log == []
    next(run.layout.originals('Validation').glob('Images/*')).unlink()
    run('--SPLITS=Validation')
    assert requests(server) == ['ISIC-2017_Validation_Data.zip']


def test_zips_that_lie_there_need_no_network_and_stay(server, run, tmp_path):
    for name, content in server.files.items():
        (tmp_path / 'zips').mkdir(exist_ok=True)
        (tmp_path / 'zips' / name).write_bytes(content)
    text = run(f'--ZIPS={tmp_path / "zips"}', '--KEEP_ZIPS=False')
    assert server.log == [] and 'Training: 3 pictures, 3 masks, 3 labels' in text
    assert len(list((tmp_path / 'zips').iterdir())) == 9


def test_a_run_killed_while_unpacking_goes_on(server, run, monkeypatch):
    real, calls = fetch._unpack_member, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(fetch, '_unpack_member', dying)
    with pytest.raises(KeyboardInterrupt):
        run('--SPLITS=Training', '--NUM_WORKERS=1')
    images = run.layout.originals('Training') / 'Images'
    first, = images.iterdir()
    stamp = first.stat().st_mtime_ns
    (images / 'ISIC_0000001.jpg').write_bytes(b'too short')
    monkeypatch.setattr(fetch, '_unpack_member', lambda *words: (calls.append(words), real(*words)))
    server.log.clear()
    calls.clear()
    run('--SPLITS=Training', '--KEEP_ZIPS=False')
    assert 'ISIC-2017_Training_Data.zip' not in requests(server)
    assert len(calls) == 2 + 3 and first.stat().st_mtime_ns == stamp
    assert len(list(images.iterdir())) == 3 and not list(run.layout.data.glob('*.zip'))


def test_a_file_that_changed_since_it_was_recorded_is_refused(server, run):
    run('--SPLITS=Validation')
    path = run.layout.data / 'ISIC-2017_Validation_Data.zip'
    path.write_bytes(path.read_bytes() + b'x')
    with pytest.raises(InputError, match=r'Data.zip: sha256 is .{64}, not(.|\n)*remove it and run'):
        run('--SPLITS=Validation')
    path.unlink()
    next(run.layout.originals('Validation').glob('Images/*')).unlink()
    server.files[path.name] += b'x'
    with pytest.raises(InputError, match='not the one that it should be'):
        run('--SPLITS=Validation')


def test_a_damaged_zip_can_be_fetched_anew(server, run):
    name = 'ISIC-2017_Validation_Data.zip'
    good = server.files[name]
    server.files[name] = good[:50] + bytes([good[50] ^ 255]) + good[51:]
    with pytest.raises(InputError, match='remove the archive'):
        run('--SPLITS=Validation')
    (run.layout.data / name).unlink()
    server.files[name] = good
    assert 'Validation: 3 pictures' in run('--SPLITS=Validation')


def test_too_little_space_is_said_before_anything_is_fetched(server, run, monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda _: usage._replace(free=2000))
    with pytest.raises(InputError, match='not enough space(.|\n)*needs .* kB, 2 kB are free'):
        run()
    assert requests(server) == [] and len(requests(server, 'HEAD')) == 9


def test_a_page_instead_of_labels_is_refused(server, run):
    server.files['ISIC-2017_Validation_Part3_GroundTruth.csv'] = b'<html>log in first</html>'
    with pytest.raises(InputError, match='has no'):
        run('--SPLITS=Validation')
    assert not list(run.layout.data.glob('*.csv*'))


def test_settings_that_cannot_be_used_are_listed(run):
    run.layout.data.mkdir(parents=True)
    (run.layout.data / 'demo_data.json').write_text('{}')
    with pytest.raises(InputError, match="NUM_WORKERS(.|\n)*'Test' must be one of(.|\n)*drawn pictures"):
        run('--SPLITS=Test', '--NUM_WORKERS=-1')


def test_the_script_ends_with_a_message_and_code_2(server, tmp_path):
    text = run_script('dataset/download.py', tmp_path, f'--BASE_URL={server.url}', expect=2)
    assert 'ISIC-2017_Training_Data.zip: HTTP 404' in text and 'Remedy' in text


# --- The extra pictures

def extra_of(layout, metadata):
    """Lay out what isic-cli would have brought: three folders of one picture each, one csv."""
    folder = layout.data / 'isic-cli'
    for k in range(4):
        (folder / str(k)).mkdir(parents=True)
        (folder / str(k) / f'ISIC_900000{k}.JPG').write_bytes(picture(k))
    (folder / '0' / 'metadata.csv').write_text(metadata)
    return folder


def test_the_route_to_the_extra_pictures_is_printed(server, run):
    server.files['ids.csv'] = ''.join(f'ISIC_{9000000 + k}.jpg\n' for k in range(120)).encode()
    text = run('--EXTRA=True', f'--EXTRA_URL={server.url}ids.csv')
    assert '120 extra pictures are named' in text and requests(server) == ['ids.csv']
    assert 'isic image download --search "$search"' in text and 'isic metadata download --search' in text
    searches = (run.layout.data / 'Extra_searches.txt').read_text().splitlines()
    assert len(searches) == 3 and searches[0].startswith('isic_id:ISIC_9000000 OR isic_id:ISIC_9000001 OR')


def test_what_isic_cli_brought_is_joined(server, run):
    server.files['ids.csv'] = b''.join(b'ISIC_900000%d\n' % k for k in range(6))
    extra_of(run.layout, 'isic_id,copyright_license,diagnosis_1,diagnosis_2,diagnosis_3\n'
             'ISIC_9000000,CC-0,Benign,Benign melanocytic proliferations,Nevus\n'
             'ISIC_9000001,CC-0,Malignant,Malignant melanocytic proliferations (Melanoma),Melanoma in situ\n'
             'ISIC_9000002,CC-0,Benign,Benign epidermal proliferations,Seborrheic keratosis\n'
             'ISIC_9000003,CC-0,Benign,Benign epidermal proliferations,Solar lentigo\n'
             'ISIC_9000005,CC-0,Benign,,Nevus\nISIC_1234567,CC-0,Benign,,Nevus\n')
    text = run('--EXTRA=True', f'--EXTRA_URL={server.url}ids.csv')
    assert '3 of 6 joined' in text and 'nevus 1, melanoma 1, keratosis 1' in text
    for line in ('ISIC_9000003: its diagnosis is none of', 'ISIC_9000004: no picture',
                 'ISIC_9000005: no picture'):
        assert line in text
    assert run.layout.labels('Training_Add').read_text() == (
        'image_id,melanoma,seborrheic_keratosis\nISIC_9000000,0.0,0.0\nISIC_9000001,1.0,0.0\n'
        'ISIC_9000002,0.0,1.0\n')
    images = run.layout.originals('Training_Add') / 'Images'
    assert sorted(path.name for path in images.iterdir()) == [f'ISIC_900000{k}.jpg' for k in range(3)]


@pytest.mark.parametrize('row, name', [
    ({'diagnosis': 'nevus'}, 'nevus'), ({'diagnosis': 'melanoma'}, 'melanoma'),
    ({'diagnosis': 'seborrheic keratosis'}, 'keratosis'), ({'diagnosis': 'nevus sebaceus'}, None),
    ({'diagnosis_3': 'Nevus', 'diagnosis_4': 'Blue nevus'}, 'nevus'), ({}, None),
    ({'diagnosis_3': 'Melanoacanthoma', 'diagnosis_1': 'Benign'}, None),
    ({'diagnosis_2': 'Flat melanotic pigmentations - not melanocytic nevus'}, None),
    ({'diagnosis_3': 'Melanoma Invasive', 'diagnosis_4': 'Melanoma Invasive, Associated with a nevus'},
     'melanoma'), ({'diagnosis_3': 'Nevus', 'diagnosis': 'melanoma'}, None)])
def test_diagnoses_of_the_archive_become_classes(row, name):
    assert label_csv.class_of(row) == name


@pytest.mark.parametrize('content', [b'', b'ISIC_9000000\n../../etc\n', b'<html>404</html>'])
def test_an_id_list_that_is_none_is_refused(server, run, content):
    server.files['ids.csv'] = content
    with pytest.raises(InputError, match='list of extra pictures'):
        run('--EXTRA=True', f'--EXTRA_URL={server.url}ids.csv')
    assert not (run.layout.data / 'Extra_images.csv').exists()


# --- Weights

SCRIPT = REPOSITORY / 'models' / 'download.py'


@pytest.fixture
def place(server, tmp_path, monkeypatch, capsys):
    """place('--NAME=value', ...) -> what models/download.py printed; it writes to tmp_path/models."""
    def place(*words):
        spec = importlib.util.spec_from_file_location('models_download', SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', ['download.py', f'--FOLDER={tmp_path / "models"}',
                                          '--RETRIES=0', *words])
        module.main()
        return capsys.readouterr().out
    return place


def file_of(tmp_path, state):
    """Bytes of a checkpoint; tensors of one constant take no room in it."""
    torch.save(state, tmp_path / 'source.pth')
    return (tmp_path / 'source.pth').read_bytes()


def test_the_xception_is_fetched_checked_and_kept(server, place, tmp_path):
    with torch.device('meta'):
        own = Xception_dilation(3, 1000).state_dict()
    server.files['x.pth'] = file_of(tmp_path, constants({cadene_name(name): own[name] for name in own}))
    url, digits = f'{server.url}x.pth', fetch.sha256_of(tmp_path / 'source.pth')[:9]
    words = f'--XCEPTION_URL={url}', f'--XCEPTION_SHA256={digits}'
    path = tmp_path / 'models' / 'xception-43020ad28.pth'
    assert f'{path} loads' in place(*words)
    assert json.loads((path.parent / 'downloads.json').read_text())[path.name]['url'] == url
    server.files.clear()
    assert f'{path} loads' in place(*words)   # it is there
    path.write_bytes(b'damaged')
    with pytest.raises(InputError, match='not the one that it should be'):
        place(*words)


@pytest.mark.parametrize('content, complaint', [
    (b'<html>log in first</html>', 'cannot be read'),
    ({'conv1.weight': torch.zeros(32, 3, 3, 3)}, 'is missing')])
def test_weights_that_do_not_load_do_not_stay(server, place, tmp_path, content, complaint):
    server.files['x.pth'] = content if isinstance(content, bytes) else file_of(tmp_path, content)
    with pytest.raises(InputError, match=complaint):
        place(f'--XCEPTION_URL={server.url}x.pth', '--XCEPTION_SHA256=')
    assert not list((tmp_path / 'models').glob('xception*'))
    with pytest.raises(InputError, match='sha256 is .* not 43020ad28'):
        place(f'--XCEPTION_URL={server.url}x.pth')


def test_the_voc_file_is_checked_and_copied(place, tmp_path):
    with pytest.raises(InputError, match='Google Drive(.|\n)*--VOC_FILE='):
        place('--WEIGHTS=voc')
    with torch.device('meta'):
        own = deeplabv3plus(21).state_dict()
    content = file_of(tmp_path, constants({f'module.{name}': own[name] for name in own}))
    place('--WEIGHTS=voc', f'--VOC_FILE={tmp_path / "source.pth"}')
    assert (tmp_path / 'models' / 'deeplabv3plus_xception_VOC2012_epoch46_all.pth').read_bytes() == content


def test_timms_file_is_renamed_and_written_for_the_encoder(place, tmp_path, monkeypatch):
    with torch.device('meta'):
        own = deeplabv3plus().backbone.state_dict()
    theirs = {ours: layer for layer, ours in weights._timm_layers().items()}
    names = {name: f'{theirs[name.rpartition(".")[0]]}.{name.rpartition(".")[2]}' for name in own}
    state = constants({names[name]: own[name] for name in own} | {'head.fc.bias': torch.empty(1000)})
    file_of(tmp_path, state)
    place('--WEIGHTS=xception65', f'--SOURCE={tmp_path / "source.pth"}')
    path = tmp_path / 'models' / 'xception65.tf_in1k.pth'
    written = checkpoints.load_state(path, '')
    assert set(written) == {f'backbone.{name}' for name in own}
    variance = written['backbone.block9.sepconv2.bn1.running_var']
    expected = state[names['block9.sepconv2.bn1.running_var']] + 1e-3
    torch.testing.assert_close(variance + 1e-5, expected)
    place('--WEIGHTS=xception65')   # there already: checked alone
    cfg = SimpleNamespace(PRETRAINED='auto', VOC_WEIGHTS='missing.pth', XCEPTION65_WEIGHTS=str(path),
                          XCEPTION_WEIGHTS=str(path), INPUT_SCALING='unit', NUM_CLASSES=2, DROPOUT=True,
                          INITIAL_WEIGHTS='', BN_EPS=0.0, SMALL_START=True)
    network, _ = networks.coarse_for_training(cfg, None)   # not the transplant, which would need pictures
    assert network.backbone.bn2.eps == 1e-3   # its own now; the file has it in the variance
    torch.testing.assert_close(network.backbone.bn2.running_var + 1e-3 - 1e-5,
                               written['backbone.bn2.running_var'])
    monkeypatch.setitem(sys.modules, 'timm', None)
    path.unlink()
    with pytest.raises(InputError, match='pip install timm .*, or (.|\n)*model.safetensors'):
        place('--WEIGHTS=xception65')


def test_every_constant_of_the_weights_script_has_a_comment_and_is_used():
    text = SCRIPT.read_text()
    for name, (group, comment) in settings.read_constants(SCRIPT).items():
        assert group and comment and (name == 'RECIPE' or f'cfg.{name}' in text), name
