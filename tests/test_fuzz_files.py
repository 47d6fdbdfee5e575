"""The continuation of test_fuzz.py: checkpoints, pictures, whole scripts."""
import io
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import predict
import reproduce_tables
from dataset import check_data, extraction, list_seg, make_demo_data, ph2
from dataset.layout import Layout
from engine import cache, checkpoints, cli, images
from mbdcnn import networks, predictor
from tests.fuzzing import JSON, JUNK, damaged, damaged_bytes, fuzz, refused, write
from tests.test_training import tiny_network

pytestmark = pytest.mark.filterwarnings('ignore')   # Pillow and PyTorch warn of what is damaged
ODD_TENSORS = [
    torch.zeros(()), torch.zeros(3), torch.full((4,), float('nan')), torch.full((4,), float('inf')),
    *(torch.ones(4).to(dtype) for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)),
    *(torch.zeros(4, 3, 3, 3, dtype=dtype) for dtype in (torch.int8, torch.float64, torch.bfloat16)),
    torch.ones(4).to_sparse(), torch.zeros(1).expand(10**12), torch.zeros(0, 4)]
TENSORS = st.sampled_from(ODD_TENSORS)


def saved(content):
    """Bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# --- Checkpoints

STATE = tiny_network().state_dict()


@fuzz(150)
@given(st.one_of(damaged_bytes(saved(STATE)), damaged(dict(STATE), JSON | TENSORS).map(saved),
                 damaged({'model': dict(STATE), 'step': 3}, JSON | TENSORS).map(saved), JUNK,
                 damaged_bytes(pickle.dumps({'model': [1.5] * 9, 'step': 3}, 2))))
@example(saved({**STATE, 7: torch.zeros(3)}))
@example(saved({**STATE, '1.weight': torch.tensor([1, 2, 3, float('nan')])}))
@example(saved({**STATE, '1.weight': torch.ones(4, dtype=torch.int64)}))
@example(saved({**STATE, '1.weight': torch.ones(4).to_sparse()}))
@example(saved({**STATE, '1.weight': torch.zeros(1).expand(10**12)}))
def test_spoiled_checkpoints(tmp_path, data):
    path, network = tmp_path / 'x.pth', tiny_network()
    path.write_bytes(data)

    def load():
        state = checkpoints.load_state(path, 'train again')
        checkpoints.apply(checkpoints.load_parameters, network, state, path, 'train again')
        return True

    if refused(load, path)[0]:
        assert all(value.isfinite().all() for value in network.state_dict().values())
        assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 2, 8, 8)


class Malicious:
    """Pickles to a call that leaves a trace."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@fuzz(60)
@given(st.data())
def test_no_code_of_a_checkpoint_runs(tmp_path, data):
    path, trace = tmp_path / 'x.pth', tmp_path / 'was_run'
    call = data.draw(st.sampled_from([
        (shutil.copyfile, '/proc/self/stat', str(trace)), (subprocess.call, ['touch', str(trace)]),
        (eval, f'open({str(trace)!r}, "w")'), (exec, f'open({str(trace)!r}, "w")'), (open, str(trace), 'w'),
        (torch.save, 1, str(trace)), (torch.hub.load_state_dict_from_url, f'file://{path}', str(trace)),
        (pickle.loads, pickle.dumps(Malicious(open, str(trace), 'w')))]))
    place = data.draw(st.sampled_from([
        lambda bad: bad, lambda bad: {'model': bad}, lambda bad: {'model': {**STATE, 'x': bad}},
        lambda bad: {**STATE, '1.weight': [bad]}, lambda bad: {bad.call: 1}, lambda bad: ({}, bad)]))
    content = place(Malicious(*call))
    protocol = data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))
    path.write_bytes(data.draw(st.sampled_from([saved, lambda tree: pickle.dumps(tree, protocol)]))(content))
    for load in (checkpoints.load, checkpoints.load_state):
        assert refused(lambda load=load: load(path, 'train again'), path)[1]
    assert not trace.exists()


# The stem and the last layer say which network it is; the rest is then checked name by name.
@pytest.mark.parametrize(('name', 'shape'), [
    ('cls_conv.weight', ()), ('cls_conv.weight', (21, 256, 1, 1)), ('cls_conv.weight', (0, 1)), ('x', (2,))])
def test_weights_of_another_network_are_refused(tmp_path, name, shape):
    layout = Layout(tmp_path)
    for network, key in (('CoarseSN', name), ('MaskCN', name.replace('_conv', ''))):
        write(layout.weights(network), saved({key: torch.zeros(shape)}))
    device = torch.device('cpu')
    for load, network in ((lambda: networks.load_segmenter(layout, 'CoarseSN', device, 'fp32'), 'CoarseSN'),
                          (lambda: networks.load_classifier(layout, device, 'fp32'), 'MaskCN')):
        assert refused(load, layout.weights(network))[1]


# --- Pictures

def encoded(mode, form, **options):
    """Bytes of a 48x40 px picture of a mode in a file format."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 4), np.uint8)
    picture = Image.fromarray(pixels[..., :3]).convert('L' if mode == 'I;16' else mode)
    if mode == 'I;16':
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def turned(value, text='maker'):
    exif = Image.Exif()
    exif[images.ORIENTATION], exif[0x10f], exif[0x8769] = value, text, {0x9003: '2020'}
    return exif


GOOD = {
    'rgb.jpg': encoded('RGB', 'JPEG'), 'grey.jpg': encoded('L', 'JPEG'), 'cmyk.jpg': encoded('CMYK', 'JPEG'),
    'progressive.jpg': encoded('RGB', 'JPEG', progressive=True), 'deep.png': encoded('I;16', 'PNG'),
    **{f'turned{value}.jpg': encoded('RGB', 'JPEG', exif=turned(value)) for value in (1, 6, 9, 65535)},
    'turned.png': encoded('RGB', 'PNG', exif=turned(5)),
    'clear.png': encoded('P', 'PNG', transparency=b'\1\2'),
    **{f'{mode}.png': encoded(mode, 'PNG') for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1')},
    **{f'{mode}.bmp': encoded(mode, 'BMP') for mode in ('RGB', 'RGBA', 'L', 'P', '1')}}
REFUSED = [encoded('RGB', 'GIF'), encoded('RGB', 'TIFF'), encoded('RGB', 'WEBP'), encoded('RGB', 'PPM'),
           b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', b'%!PS-Adobe-3.0 EPSF-3.0\n']


@pytest.mark.parametrize('name', GOOD)
@pytest.mark.parametrize('suffix', ['', '.png', '.jpg', '.bmp'])
def test_good_pictures_are_read_whatever_they_are_called(tmp_path, name, suffix):
    path = tmp_path / (name + suffix)   # also under a wrong extension
    path.write_bytes(GOOD[name])
    size = (40, 48) if name in ('turned6.jpg', 'turned.png') else (48, 40)
    pixels, found, _ = predictor._read(path, 32)
    assert pixels.dtype == np.uint8 and pixels.shape == (*size[::-1], 3) and pixels.std() > 10
    assert found == images.image_size(path) == size
    # Data sets are held to more: whatever the check refuses, nothing reads.
    faults = images.inspect_image(path)[1]
    read, error = refused(lambda: images.read_rgb(path), path)
    assert error.faults == faults if faults else np.array_equal(read, pixels)


@fuzz(300)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_spoiled_pictures(tmp_path, name, data):
    path = tmp_path / f'x{name[-4:]}'
    path.write_bytes(data.draw(st.one_of(damaged_bytes(GOOD[name]), damaged_bytes(GOOD[name]), JUNK,
                                         st.sampled_from(REFUSED))))
    for read in (lambda: images.read_rgb(path), lambda: images.read_rgb(path, cover=8),
                 lambda: extraction.read_reduced(path, 8)[0], lambda: cache.read_rgb_square(path, 16),
                 lambda: predictor._read(path, 8)[0]):
        pixels, _ = refused(read, path)
        assert pixels is None or pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    mask, _ = refused(lambda: images.read_mask(path), path)
    assert mask is None or set(np.unique(mask)) <= {0, 1}
    size, _ = refused(lambda: images.image_size(path), path)
    assert size is None or min(size) > 0 and size[0] * size[1] <= Image.MAX_IMAGE_PIXELS
    size, _, faults = extraction.inspect_pair(path, path)
    assert all(str(path) in fault for fault in [*faults, *ph2.inspect((path, path))])
    assert size or faults


@fuzz(60)
@given(st.sampled_from(sorted(GOOD)), st.data())
@example('RGB.png', None)
def test_truncated_pictures_in_every_region(tmp_path, name, data):
    good = GOOD[name]
    path = tmp_path / f'x{name[-4:]}'
    for end in range(0, len(good), 997) if data is None else [data.draw(st.integers(0, len(good) - 1))]:
        path.write_bytes(good[:end])
        whole, _ = refused(lambda: images.read_rgb(path), path)
        # What can be missing without a loss: the marks of the end.
        assert whole is None or end >= len(good) - 16 or not name.startswith('rgb')


SIDES = st.sampled_from([0, 1, 2, 15, 255, 256, 4000, 30_000, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**32 - 1])


@fuzz(60)
@given(SIDES, SIDES, st.sampled_from(['RGB.png', 'RGB.bmp', 'rgb.jpg']))
def test_declared_sizes(tmp_path, width, height, name):
    data, path = bytearray(GOOD[name]), tmp_path / 'x.png'
    place, order, length = {'RGB.png': (16, 'big', 4), 'RGB.bmp': (18, 'little', 4),
                            'rgb.jpg': (GOOD['rgb.jpg'].index(b'\xff\xc0') + 5, 'big', 2)}[name]
    sides = (height % 2**16, width % 2**16) if length == 2 else (width, height)
    data[place:place + 2 * length] = b''.join(side.to_bytes(length, order) for side in sides)
    path.write_bytes(data)
    pixels, _ = refused(lambda: images.read_rgb(path), path)
    rows, columns = sides if length == 2 else sides[::-1]   # a jpg may end in grey
    rows = min(rows, 2**32 - rows) if name == 'RGB.bmp' else rows   # from the top where it is negative
    assert pixels is None or pixels.shape[:2] == (rows, columns)


# --- Scripts, in this process

@pytest.fixture
def run(monkeypatch):
    """run(module, *words) launches a script's main(): (exit code, what it said on stderr)."""
    def call(module, *words):
        said = io.TextIOWrapper(io.BytesIO(), 'utf-8', 'backslashreplace')   # as Python makes its own
        monkeypatch.setattr(sys, 'stderr', said)
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), 'utf-8'))
        monkeypatch.setattr(sys, 'argv', ['script.py', *words])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            cli.launch(module.main)
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
        said.seek(0)
        return code, said.read()
    return call


def refuses(result, *words):
    """True when the script ended with exit code 2 and said these words and a remedy, no traceback."""
    code, said = result
    return code == 2 and 'Traceback' not in said and all(
        str(word) in said for word in ('error: ', 'Remedy: ', *words))


def test_scripts_end_with_a_message(run, tmp_path, monkeypatch):
    layout = Layout(tmp_path / 'root')
    folder = layout.originals('Validation')
    for name in ('Images/a.jpg', 'Annotation/a_segmentation.png'):
        write(folder / name, GOOD['rgb.jpg'][:-300])
    write(layout.labels('Validation'), b'image_id,melanoma\n"')
    root = f'--ROOT={layout.root}'
    assert refuses(run(check_data, root), 'a.jpg: is damaged', layout.labels('Validation'))
    write(folder / 'Images' / 'b\udcff.png', GOOD['RGB.png'])
    write(folder / 'Annotation' / 'b\udcff_segmentation.png', GOOD['1.png'])
    assert refuses(run(list_seg, root), r'b\udcff', 'no UTF-8')
    assert refuses(run(check_data, root), r'b\udcff', 'no UTF-8')
    toml = tmp_path / 'x.toml'
    write(toml, b'[table]\n1 = [[[]]]\n[experiment.a]\nneeds = 3\nfor = "x"\n')
    said = toml, 'table.1', 'for must'
    assert refuses(run(reproduce_tables, f'--EXPERIMENTS={toml}', '--LIST=True'), *said)
    assert refuses(run(reproduce_tables, f'--EXPERIMENTS={tmp_path}', '--LIST=True'), tmp_path)
    words = '--SEEDS=1e400', '--FOLDS=nan', '--=x', '--ROOT'
    assert refuses(run(reproduce_tables, *words), 'SEEDS', 'FOLDS', '=x')
    assert refuses(run(make_demo_data, f'--ROOT={toml}'), toml, 'cannot be written')
    assert refuses(run(make_demo_data, f'--ROOT={"a" * 5000}'), 'aaa')
    for network in predictor.NETWORKS:
        write(layout.weights(network), b'PK\3\4' + bytes(99))
    words = str(folder), f'--MODELS={layout.models}', f'--OUT={tmp_path}/out'
    assert refuses(run(predict, *words), 'CoarseSN.pth')
