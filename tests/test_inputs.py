"""What users supply: overrides, label files, lists, pictures, and the geometry of the crops."""
import contextlib
import errno
import os
import resource
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataset import crops, extraction, isic, label_csv
from dataset.layout import Layout
from engine import cli, files, images, settings
from engine.errors import InputError
from mbdcnn import predictor
from tests.fuzzing import refused

SCRIPT = '''"""Documentation of the script."""
# --- Where
ROOT = '.'            # folder
RECIPE = 'default'    # recipe

# --- Training
BATCH_SIZE = 16       # images (paper)
RATE = 1e-4           # 1/step (paper)
SCALES = (224, 256)   # px (released)
FLIP = True           # on or off


def main():
    LOCAL = 1
'''
HEADER = 'image_id,melanoma,seborrheic_keratosis\n'
QUICK = hypothesis_settings(max_examples=60, deadline=None,
                            suppress_health_check=[HealthCheck.function_scoped_fixture])


# Settings

@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """Function of command-line words that resolves SCRIPT with a recipe 'paper' at hand."""
    path = tmp_path / 'demo.py'
    path.write_text(SCRIPT)
    recipes = tmp_path / 'recipes'
    recipes.mkdir()
    (recipes / 'paper.toml').write_text('[demo]\nBATCH_SIZE = 8\nSCALES = [224]\n[other]\nX = 1\n')
    (recipes / 'typo.toml').write_text('[demo]\nBATCHSIZE = 8\nRATE = "fast"\n')
    (recipes / 'broken.toml').write_text('[demo\n')
    monkeypatch.setattr(settings, 'RECIPES', recipes)
    namespace = {'__file__': str(path), '__doc__': 'Documentation of the script.'}
    exec(SCRIPT, namespace)
    return lambda *words, **options: settings.resolve(namespace, list(words), **options)


def test_the_constants_are_the_defaults(resolve):
    cfg = resolve()
    assert vars(cfg) == {'ROOT': '.', 'RECIPE': 'default', 'BATCH_SIZE': 16, 'RATE': 1e-4,
                         'SCALES': (224, 256), 'FLIP': True}


def test_scripts_of_two_companions_may_be_called_alike(resolve, tmp_path):
    (tmp_path / 'recipes/paper.toml').write_text('[a.demo]\nBATCH_SIZE = 2\n[demo]\nBATCH_SIZE = 3\n')
    for folder, size in (('companions/a', 2), ('companions/b', 3), ('dataset', 3)):
        script = tmp_path / folder / 'demo.py'
        script.parent.mkdir(parents=True)
        script.write_text(SCRIPT)
        assert settings.resolved(script, {'RECIPE': 'paper'})['BATCH_SIZE'] == size


def test_the_command_line_wins_over_the_recipe_over_the_constants(resolve, capsys):
    cfg = resolve('--RECIPE=paper', '--SCALES=288', '--RATE=1', '--FLIP=False')
    assert (cfg.BATCH_SIZE, cfg.SCALES, cfg.RATE, cfg.FLIP) == (8, (288,), 1.0, False)
    assert isinstance(cfg.RATE, float)
    assert 'BATCH_SIZE = 8   # recipes/paper.toml' in capsys.readouterr().out


def test_a_space_serves_as_well_as_an_equals_sign(resolve):
    assert resolve('--BATCH_SIZE', '3', '--FLIP=False', '--RATE', '-1', '--ROOT', 'a b') == resolve(
        '--BATCH_SIZE=3', '--FLIP=False', '--RATE=-1', '--ROOT=a b')


@pytest.mark.parametrize('words, expected', [
    (['--BATCH_SIEZ=4'], 'BATCH_SIEZ is not a setting; did you mean BATCH_SIZE?'),
    (['--batch_size=4'], 'did you mean BATCH_SIZE?'),
    (['--BATCH_SIZE=4.5'], 'must be a whole number'),
    (['--BATCH_SIZE=True'], 'must be a whole number'),
    (['--RATE=nan'], 'must be a number'),
    (['--FLIP=1'], 'must be True or False'),
    (['--FLIP=yes'], 'must be True or False'),
    (['--SCALES=big'], 'must be a list such as 224,256'),
    (['--SCALES={[]: 1}'], 'must be a list such as'),
    (['--SCALES=__import__("os")'], 'must be a list such as'),
    (['--RATE'], '--RATE: overrides are written --NAME=value (--RATE=value?)'),
    (['--BATCH_SIEZ', '4'], '--BATCH_SIEZ: overrides are written --NAME=value (--BATCH_SIZE=value?)'),
    (['--RATE', '--FLIP=True'], '--RATE: overrides are written'),
    (['--BATCH=4'], 'BATCH is not a setting'),   # no abbreviations
    (['--RATE=1', '--RATE=2'], '--RATE is given twice'),
    (['--RECIPE=papre'], 'must be one of default, broken, paper, typo'),
    (['--RECIPE=broken'], 'broken.toml: not valid TOML'),
    (['--RECIPE=typo'], 'recipes/typo.toml: BATCHSIZE is not a setting; did you mean BATCH_SIZE?'),
    (['--BATCH_SIZE=0'], 'BATCH_SIZE=0: must be greater than zero'),
    (['--ROOT=x'], "ROOT='x': must be one of '.', '..'"),
    (['--ROOT=\udcff'], r"ROOT='\udcff': must be text, in UTF-8"),   # a byte that is none
])
def test_unusable_overrides_are_named(resolve, words, expected):
    with pytest.raises(InputError) as error:
        resolve(*words, choices={'ROOT': ('.', '..')}, positive=('BATCH_SIZE',))
    assert expected in str(error.value)


def test_all_unusable_overrides_are_listed_at_once(resolve):
    with pytest.raises(InputError) as error:
        resolve('--BATCH_SIZE=x', '--NONSENSE=1', '--FLIP=2', 'stray', '--RECIPE=typo')
    assert len(error.value.faults) == 6


def test_help_shows_the_docstring_and_every_constant(resolve, capsys):
    with pytest.raises(SystemExit) as end:
        resolve('--help')
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert 'Documentation of the script.' in text and 'LOCAL' not in text
    for line in ('Training', '--BATCH_SIZE=16', 'images (paper)', '--SCALES=224,256'):
        assert line in text


@QUICK
@given(st.text())
def test_any_override_text_gives_a_value_or_a_value_error(text):
    values = {'A': 1, 'B': 1.0, 'C': (1, 2), 'D': True, 'E': 'x', 'F': ('a',)}
    for name, default in values.items():
        try:
            assert type(settings.convert(name, text, values)) is type(default)
        except ValueError as error:
            assert name in str(error)


# Crops

@QUICK
@given(st.integers(1, 7000), st.integers(1, 5000), st.sampled_from([0, 1, 2]), st.booleans())
def test_crop_boxes_are_centred_inside_the_image(width, height, label, training):
    scales = crops.scales_of(label, training)
    boxes = crops.crop_boxes(width, height, scales)
    assert len(boxes) == len(crops.crop_names('x', scales)) == (15 if training and label else 9)
    assert boxes[0] == (0, 0, width, height)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    for left, top, right, bottom in boxes[1 + len(scales):]:
        assert right - left == bottom - top


def test_crop_names_and_ids():
    names = crops.crop_names('ISIC_0000001', crops.SCALES_15)
    assert names[0] == 'ISIC_0000001.png' and names[-1] == 'ISIC_0000001_15_14.png'
    for name in (*names, *crops.crop_names('ISIC_0000001', crops.SCALES_9)):
        assert isic.image_id_of(Path(name)) == 'ISIC_0000001'


@QUICK
@given(st.integers(225, 60000))
def test_a_reduced_decode_leaves_the_smallest_crop_224_px(side):
    divisor = next(s for s in (8, 4, 2, 1) if s == 1 or side // extraction.CROP_COVER >= s)
    smallest = min(right - left for left, _, right, _ in
                   crops.crop_boxes(side, side, crops.SCALES_15))
    assert divisor == 1 or smallest / divisor >= crops.SIDE


# 2401x2303: decoded at half its size; odd sides end in a partial pixel.
@pytest.mark.parametrize('size, divisor', [((2401, 2303), 2), ((1500, 1200), 1)])
def test_crops_of_a_reduced_decode_are_those_of_the_full_one(tmp_path, size, divisor):
    picture = smooth_picture(*size)
    layout = Layout(tmp_path)
    folder = layout.originals('Validation') / 'Images'
    folder.mkdir(parents=True)
    Image.fromarray(picture).save(folder / 'large.jpg', quality=95)
    layout.labels('Validation').write_text(HEADER + 'large,0,0\n')
    _, original, found = extraction.read_reduced(folder / 'large.jpg', extraction.CROP_COVER)
    assert (original, found) == (size, divisor)
    extraction.extract_crops(layout, 'Validation')
    full = images.read_rgb(folder / 'large.jpg')
    for name, box in zip(crops.crop_names('large', crops.SCALES_9),
                         crops.crop_boxes(*size, crops.SCALES_9), strict=True):
        reduced = images.read_rgb(layout.crops('Validation') / name)
        expected = images.resize_rgb(full, (224, 224), box)
        difference = np.abs(reduced.astype(int) - expected)
        assert difference.mean() < 1.5 and np.percentile(difference, 99) < 12


def smooth_picture(width, height, seed=0):
    """(height, width, 3) uint8: blobs of colour with some texture, like skin."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    return images.resize_rgb(coarse, (width, height))


# Labels and lists


def labels_of(tmp_path, text):
    path = tmp_path / 'labels.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return label_csv.read(path)


def test_labels_are_read_by_name_not_by_position(tmp_path):
    text = '\ufeffseborrheic_keratosis, image_id,melanoma\r\n0.0,b,1.0\r\n1, a,0\r\n0,c,0.0\r\n'
    assert labels_of(tmp_path, text) == {'b': 1, 'a': 2, 'c': 0}


@pytest.mark.parametrize('text, faults', [
    ('', ['has no rows']),
    ('image_id,melanoma\na,0\n', ['has no column seborrheic_keratosis']),
    (HEADER + 'a,1,1\nb,2,0\nc,,0\nd,0,0\nd,0,0\n,0,0\ne\n',
     ['a is melanoma and seborrheic keratosis at once', "line 3: image_id 'b', melanoma '2'",
      "image_id 'c'", 'd is listed twice', "image_id ''", "image_id 'e'"]),
    (b'\xff\xfe\x00', ['cannot be read']),
    # ISIC 2018 with two columns renamed, HAM10000 with two added
    ('image_id,melanoma,NV,BCC,seborrheic_keratosis,age\na,1.0,0.0,0.0,0.0,1\nb,0.0,1.0,0.0,0.0,50\n'
     'c,0.0,0.0,1.0,0.0,50\nd,0.0,0.0,,0.0,50\n',
     ['line 4: c would be nevus, but BCC is 1.0', 'line 5: d would be nevus, but NV is 0.0']),
    ('image_id,melanoma,seborrheic_keratosis,AKIEC\na,1,0,0\nb,0,0,1\n', ['but AKIEC is 1']),
    (HEADER.strip() + ',dx\na,0,0,nv\nb,1,0,mel\nc,0,0,bcc\nd,0,1,nv\ne,0,0,\n',
     ['c would be nevus, but dx is bcc', 'd would be keratosis, but dx is nv']),
    (HEADER.strip() + ',Diagnosis\na,0,1,seborrheic keratosis\nb,0,0,Basal cell carcinoma\n',
     ['b would be nevus, but Diagnosis is Basal']),
])
def test_unusable_labels_are_listed_at_once(tmp_path, text, faults):
    with pytest.raises(InputError) as error:
        labels_of(tmp_path, text)
    assert len(error.value.faults) == len(faults)
    for fault, line in zip(faults, error.value.faults, strict=True):
        assert fault in line and 'labels.csv' in line


WORDS = ('a', 'b', '0', '1.0', 'nan', '"', ',', '\n', '\r', '\0', ' ', 'x' * 300, '../', '2')
JUNK = st.one_of(st.binary(max_size=200),
                 st.text(max_size=200).map(lambda text: text.encode('utf-8', 'replace')),
                 st.lists(st.sampled_from(WORDS)).map(lambda words: ''.join(words).encode()))


@QUICK
@given(JUNK, st.booleans())
def test_junk_labels_give_a_dict_or_an_input_error(tmp_path, junk, with_header):
    try:
        labels = labels_of(tmp_path, HEADER.encode() * with_header + junk)
        assert set(labels.values()) <= {0, 1, 2}
    except InputError as error:
        assert error.faults


@QUICK
@given(JUNK)
def test_junk_lists_give_pairs_or_an_input_error(tmp_path, junk):
    path = tmp_path / 'x_seg.txt'
    path.write_bytes(junk)
    (tmp_path / 'a').touch()
    try:
        assert all(file.is_file() and label for file, label in isic.read_list(path, tmp_path))
    except InputError as error:
        assert error.faults and 'list_seg.py' in error.remedy


def test_list_faults_name_line_and_file(tmp_path):
    path = tmp_path / 'x_cls.txt'
    path.write_text('a.png 0\n\nb.png\n')
    with pytest.raises(InputError) as error:
        isic.read_list(path, tmp_path)
    assert ['line 1' in fault for fault in error.value.faults] == [True, False, False]
    assert 'list_cls.py' in error.value.remedy


# Pictures

def png_header(width, height):
    """Bytes of a png that declares a size and holds next to nothing."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + png_chunk(b'IDAT', zlib.compress(b'\0'))
            + png_chunk(b'IEND', b''))


def png_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


@pytest.mark.parametrize('side', [9600, 60000])
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_decompression_bombs_are_refused_unopened_in_every_thread(tmp_path, side):
    path = tmp_path / 'bomb.png'
    path.write_bytes(png_header(side, side))
    with pytest.raises(InputError) as error:
        files.for_all(images.read_rgb, [path] * 50, 'bombs', workers=8)
    assert error.value.faults == [f'{path}: declares more than 89 megapixels'] * 50


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('keep', [0.02, 0.3, 0.7])
def test_truncated_pictures_are_faults(tmp_path, suffix, keep):
    path = tmp_path / f'a{suffix}'
    Image.fromarray(smooth_picture(200, 150)).save(path)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * keep)])
    size, faults = images.inspect_image(path)
    assert size is None and len(faults) == 1 and str(path) in faults[0]


def save_turned(path, picture, orientation):
    """Save a picture as jpg with an EXIF block of its orientation, a text and an inner block."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    exif[0x10f], exif[0x8769] = 'maker', {0x9003: '2020'}
    Image.fromarray(picture).save(path, exif=exif, quality=95)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_damaged_exif_is_a_fault_or_ignored(tmp_path):
    path = tmp_path / 'a.jpg'
    save_turned(path, smooth_picture(40, 30), 6)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    edits = [{p: rng.integers(256) for p in rng.integers(2, 150, 3)} for _ in range(300)]
    # The second letter of the type of a tag: Pillow's own transpose fails on each of these.
    edits += [{41: 62}, {41: 45}, {41: 84}, {43: 11}, {41: 62, 70: 226}, {65: 92, 67: 16}]
    for edit in edits:
        damaged = bytearray(data)
        for position, value in edit.items():
            damaged[position] = value
        path.write_bytes(damaged)
        _, faults = images.inspect_image(path)
        assert all(str(path) in fault for fault in faults)
        if not any('is damaged' in fault or 'not a readable' in fault for fault in faults):
            assert predictor._read(path, 8)[1] == images.image_size(path)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, orientation):
    path = tmp_path / 'a.jpg'
    save_turned(path, smooth_picture(60, 40), orientation)
    with Image.open(path) as image:
        np.testing.assert_array_equal(predictor._read(path, 60)[0], ImageOps.exif_transpose(image))
    assert images.image_size(path) == ((60, 40) if orientation < 5 else (40, 60))
    assert images.inspect_image(path)[0] == images.image_size(path)
    assert bool(refused(lambda: images.read_rgb(path), path)[1]) == (orientation != 1)


def test_masks_of_any_bit_depth_are_read_and_grey_ones_refused(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:15] = 255
    path = tmp_path / 'm.png'
    Image.fromarray(mask).convert('1').save(path)
    np.testing.assert_array_equal(images.read_mask(path), mask // 255)
    assert images.read_mask(path).sum() == 50
    for white in (255, 65535):
        Image.fromarray(mask.astype(np.uint16) // 255 * white).save(path)
        np.testing.assert_array_equal(images.read_mask(path), mask // 255)
    for grey, bits in (([0, 3, 255], 8), ([0, 300, 30000, 60000], 16), ([0, 255, 65535], 16)):
        Image.fromarray(np.resize(grey, (20, 30)).astype(f'uint{bits}')).save(path)
        with pytest.raises(InputError, match='not a binary mask'):
            images.read_mask(path)


ODD_CHUNKS = {   # of a png, as a copy or another program may leave them
    'cut.png': (b'eXIf', b'MM\0*\0\0'), 'cut_late.png': (b'eXIf', b'MM\0*\0\0'), 'one.png': (b'eXIf', b'M'),
    'phys.png': (b'pHYs', b''), 'plte.png': (b'PLTE', b'a')}


@pytest.mark.parametrize('read', [images.read_rgb, images.read_mask, images.image_size,
                                  lambda path: predictor._read(path, 8),
                                  lambda path: extraction.read_reduced(path, 8)])
def test_what_is_odd_is_named_and_the_others_are_read(tmp_path, read):
    """A pipe, a socket or a device would be waited for."""
    mask = tmp_path / 'good.png'
    Image.fromarray(np.full((30, 40, 3), 255, np.uint8)).save(mask)   # a picture and a mask
    whole = mask.read_bytes()
    for name, (kind, data) in ODD_CHUNKS.items():
        place = whole.rindex(b'IEND') - 4 if 'late' in name else 33
        (tmp_path / name).write_bytes(whole[:place] + png_chunk(kind, data) + whole[place:])
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'device.png').symlink_to('/dev/zero')
    (tmp_path / 'self.png').symlink_to(tmp_path / 'self.png')
    (tmp_path / 'folder.png').mkdir()
    with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
        server.bind('socket.png')
    with pytest.raises(InputError) as error:
        files.for_all(read, sorted(tmp_path.iterdir()), 'reading')
    named = {Path(fault.partition(': ')[0]).stem for fault in error.value.faults}
    assert named - {'cut_late', 'phys', 'plte'} == {
        'cut', 'one', 'pipe', 'device', 'self', 'folder', 'socket'}
    assert 'cut_late' in named or read is images.image_size   # which reads the header alone


def test_too_many_open_files_are_no_fault_of_the_picture(tmp_path, capsys):
    images.write_png(tmp_path / 'a.png', smooth_picture(40, 30))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cli.launch(lambda: images.read_rgb(tmp_path / 'a.png'))   # imports what it needs
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SystemExit) as end:
            cli.launch(lambda: images.read_rgb(tmp_path / 'a.png'))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    said = capsys.readouterr().err
    assert end.value.code == 2 and 'Too many open files' in said and 'ulimit -n' in said, said


# Files

def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / 'a.txt'
    files.write_text(path, 'old')
    with pytest.raises(OSError, match='a.txt'), files.replacing(path) as temporary:
        temporary.write_text('half')
        raise OSError(28, 'No space left on device')
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_a_write_replaces_the_file_instead_of_filling_it_anew(tmp_path):
    path = tmp_path / 'a.txt'
    files.write_text(path, 'old')
    (tmp_path / 'reader').hardlink_to(path)   # as a reader or a kill in the middle would see it
    files.write_text(path, 'new')
    assert (tmp_path / 'reader').read_text() == 'old' and path.read_text() == 'new'


@pytest.mark.parametrize(('number', 'remedy'), [
    (errno.ENOSPC, 'make room'), (errno.EFBIG, 'make room'), (errno.EMFILE, 'ulimit -n'),
    (errno.ENOENT, 'same command again')])
def test_what_the_system_refuses_is_said_without_a_traceback(tmp_path, capsys, number, remedy):
    def main():
        with files.replacing(tmp_path / 'a.txt'):
            raise OSError(number, os.strerror(number))

    with pytest.raises(SystemExit) as end:
        cli.launch(main)
    text = capsys.readouterr().err
    assert end.value.code == 2 and 'a.txt' in text and os.strerror(number) in text
    assert remedy in text.partition('Remedy: ')[2]


@pytest.mark.parametrize(('name', 'module', 'said', 'remedy'), [
    ('OutOfMemoryError', 'torch', '2 GB wanted', 'lower BATCH_SIZE'),
    ('RuntimeError', 'builtins', 'MPS backend out of memory (MPS allocated: 9 GB)', 'lower BATCH_SIZE'),
    ('RuntimeError', 'builtins', 'put_ does not have a deterministic implementation, but you set',
     '--DETERMINISTIC=False'),
    ('RuntimeError', 'builtins', 'DataLoader worker 3 is killed', '--NUM_WORKERS=0'),
    ('RuntimeError', 'builtins', "DefaultCPUAllocator: can't allocate memory: you tried to", 'INPUT_SIZE'),
    ('RuntimeError', 'builtins', 'Too many open files. Communication with the workers is', 'ulimit -n'),
    ('InductorError', 'torch._inductor.exc', 'no compiler g++', '--COMPILE=off')])
def test_errors_of_pytorch_are_said_with_the_remedy(name, module, said, remedy, capsys):
    kind = type(name, (RuntimeError,), {'__module__': module})

    def main():
        raise kind(f'{said}')

    with pytest.raises(SystemExit) as end:
        cli.launch(main)
    text = capsys.readouterr().err
    assert end.value.code == 2 and said in text and remedy in text.partition('Remedy: ')[2]


def test_only_old_temporary_files_are_removed(tmp_path, monkeypatch):
    users = ['.a-xyz.png', '.keep', '.my-notes.txt', 'a-0123456789ab.png', 'a-b.png']
    for name in (*users, '.a-0123456789ab.png', '.a-b-0123456789ab'):
        (tmp_path / name).touch()
    files.remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 7
    monkeypatch.setattr(files, 'ABANDONED_AFTER', -1)
    files.remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == users
