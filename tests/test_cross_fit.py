"""Cross-fitting: every training mask is drawn by the coarse-SN that did not see its image."""
import json
import shutil
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset import crops, folds, isic, splits
from dataset.layout import SPLITS, Layout
from engine import cache, checkpoints, files, images
from engine.errors import InputError
from generate_Coarse_mask import list_tasks
from mbdcnn import coarse_masks, networks
from mbdcnn.predictor import MBDCNN
from tests.conftest import STAGES, finish, made_once, run_in_turn, run_script, start_script, wait_for
from tests.test_resume import assert_same_run

K = 2
TRAIN = STAGES['train_CoarseSN.py']
DRAW = STAGES['generate_Coarse_mask.py']
IDS = st.lists(st.text('abc0_', min_size=1, max_size=6), min_size=2, max_size=40, unique=True)


# Folds

@given(IDS, st.integers(2, 6), st.integers(0, 2**32), st.randoms())
def test_folds_are_balanced_and_do_not_depend_on_the_order(ids, k, seed, random):
    fold = folds.assign(ids, k, seed)
    assert fold.keys() == set(ids) and set(fold.values()) <= set(range(1, k + 1))
    sizes = [list(fold.values()).count(number) for number in range(1, k + 1)]
    assert max(sizes) - min(sizes) <= 1
    random.shuffle(ids)
    assert folds.assign(ids, k, seed) == fold


@given(IDS, st.integers(2, 6), st.integers(0, 9))
def test_strata_are_spread_evenly_too(ids, k, seed):
    strata = {image_id: len(image_id) % 3 for image_id in ids}
    fold = folds.assign(ids, k, seed, strata)
    for group in (set(ids), *({i for i in ids if strata[i] == stratum} for stratum in range(3))):
        sizes = [sum(fold[i] == number for i in group) for number in range(1, k + 1)]
        assert max(sizes) - min(sizes) <= 1


def test_folds_change_with_seed_and_number():
    ids = [f'ISIC_{number:07}' for number in range(60)]
    assert folds.assign(ids, 5, 0) == folds.assign(ids, 5, 0)
    assert folds.assign(ids, 5, 0) != folds.assign(ids, 5, 1)
    halves = folds.assign(ids, 2, 0)   # not the pictures that TRAIN_IMAGES=30 takes
    assert {i for i in ids if halves[i] == 1} != set(splits.subset(ids, 30, 0))


def pictures(count=7):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((count, 4, 4, 3), (count, 4, 4))]
    return splits.Segmentation(*arrays, None, [f'p{number}' for number in range(count)], 'whole')


def test_a_fold_is_left_out_without_a_copy():
    data, seen = pictures(), []
    fold = folds.assign(data.names, 3, 0)
    for number in (1, 2, 3):
        part = folds.without(data, 3, number, 0)
        kept = [place for place, name in enumerate(data.names) if fold[name] != number]
        assert part.names == [data.names[place] for place in kept] and part.coarse is None
        for rows, array in ((part.images, data.images), (part.masks, data.masks)):
            assert rows.array is array and len(rows) == len(kept) and rows.shape == array[kept].shape
            assert all(np.array_equal(rows[place], array[row]) for place, row in enumerate(kept))
            assert np.array_equal(rows[[0, -1]], array[[kept[0], kept[-1]]])
            assert np.shares_memory(rows[0], array)
        assert part.fingerprint.startswith(f'whole-without_fold{number}of3-')
        seen += set(data.names) - set(part.names)
    assert sorted(seen) == data.names
    assert folds.without(data, 3, 1, 0).fingerprint != folds.without(data, 3, 1, 1).fingerprint


# The scripts

@dataclass(frozen=True)
class Crossed:
    """layout : with the chain's data and coarse-SN, two fold networks and masks; outputs : {name: text}"""
    layout: Layout
    outputs: dict


def link_network(layout, source, network, *names):
    """Links to files of a run folder of another layout: its weights and config.json, and `names`."""
    layout.run(network).mkdir(parents=True)
    for name in (f'{network}.pth', 'config.json', *names):
        (layout.run(network) / name).symlink_to(source.run(network).resolve() / name)


def link_data(layout, chain):
    """The chain's data and lists, the latter copied, so that a test may change them."""
    theirs = chain.root / 'dataset'
    (layout.root / 'dataset').mkdir(parents=True)
    for name in ('data', 'seg_data', 'cls_data'):
        (layout.root / 'dataset' / name).symlink_to(theirs / name)
    shutil.copytree(theirs / 'ISIC', layout.lists)


@pytest.fixture(scope='session')
def crossed(chain, tmp_path_factory):
    """Two fold networks, the training of the second interrupted and resumed, and the masks they draw."""
    def build(folder):
        layout = Layout(folder / 'root')
        link_data(layout, chain)
        link_network(layout, chain.layout, 'CoarseSN')
        command = 'train_CoarseSN.py', layout.root, *TRAIN, f'--CROSS_FIT={K}'
        process = start_script(*command)
        outputs = {'begun': wait_for(process, 'CoarseSN_fold2: 4 of 8 training pictures')}
        wait_for(process, 'step 1:')
        process.send_signal(signal.SIGTERM)
        outputs['stopped'] = finish(process, 143)
        outputs['resumed'], outputs['drawn'] = run_in_turn(
            command, ('generate_Coarse_mask.py', layout.root, *DRAW, f'--CROSS_FIT={K}'))
        return outputs

    folder, outputs = made_once(tmp_path_factory, 'crossed', build)
    return Crossed(Layout(folder / 'root'), outputs)


@pytest.fixture
def other(crossed, tmp_path):
    """A layout with links to all of `crossed` but its masks; lists and config.json are copies."""
    layout = Layout(tmp_path / 'root')
    link_data(layout, crossed.layout)
    link_network(layout, crossed.layout, 'CoarseSN')
    for number in range(1, K + 1):
        link_network(layout.fold(number), crossed.layout.fold(number), 'CoarseSN', 'last.pth')
    for config in layout.models.glob('*/config.json'):
        text = config.read_text()
        config.unlink()
        config.write_text(text)
    return layout


def change_config(layout, change):
    path = layout.run('CoarseSN') / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def fold_of(layout):
    return folds.assign([image.stem for image, _ in isic.read_segmentation_list(layout, 'Training')], K, 0)


def test_fold_training_stops_and_goes_on_as_one_training(crossed, chain):
    layout, outputs = crossed.layout, crossed.outputs
    assert 'run the same command again' in outputs['stopped']
    first, _, second = outputs['resumed'].partition(f'{layout.fold(2).run("CoarseSN")}: 4 of 8')
    assert 'CoarseSN_fold1: already trained' in first and 'training on' not in first
    assert 'step 2:' in second and 'step 1:' not in second
    assert sorted(path.name for path in layout.models.iterdir()) == ['CoarseSN', 'CoarseSN_fold1',
                                                                     'CoarseSN_fold2']
    assert all(path.is_symlink() for path in layout.run('CoarseSN').iterdir())   # untouched
    caches = sorted(path.name.partition('-')[0] for path in layout.cache.glob('*.npy'))
    assert caches == sorted(f'{split}_seg_{part}' for split in ('Training', 'Validation')
                            for part in ('images', 'masks'))
    configs = [checkpoints.read_config(layout.fold(number).weights('CoarseSN')) for number in (1, 2)]
    assert all(config['network'] == 'CoarseSN' and config['settings']['CROSS_FIT'] == K
               and 'voc.pth' in config['start'] for config in configs)
    seen = [config['inputs']['training'] for config in configs]
    assert all(f'without_fold{number}of2' in text for number, text in enumerate(seen, start=1))


def test_a_fold_network_is_what_plain_training_without_the_fold_makes(crossed, chain, tmp_path):
    """Fold 2, the interrupted one: it saw the pictures of fold 1 and no others."""
    layout = Layout(tmp_path / 'root')
    link_data(layout, chain)
    path, fold = layout.segmentation_list('Training'), fold_of(crossed.layout)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(line for line in lines if fold[line.split('/')[1].partition('.')[0]] == 1))
    assert len(path.read_text().splitlines()) == 4
    run_script('train_CoarseSN.py', layout.root, *TRAIN)
    assert_same_run(crossed.layout.fold(2), layout, 'CoarseSN')
    shutil.rmtree(layout.root)


def drawn_by(segmenter, paths, side):
    """The masks that a coarse-SN draws of pictures in one batch, as the script does."""
    batch = np.stack([cache.read_rgb_square(path, 32) for path in paths])
    logits = segmenter.views(torch.from_numpy(batch).permute(0, 3, 1, 2)).sum(0)
    sizes = [(side, side) if side else images.image_size(path) for path in paths]
    return [images.resize_mask((logit > 0).numpy().astype(np.uint8), size)
            for logit, size in zip(logits, sizes, strict=True)]


@pytest.fixture
def two_threads():
    """As the scripts have: how a sum is split among threads decides its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures('two_threads')
@pytest.mark.parametrize('number', [1, 2])
def test_training_masks_are_drawn_by_the_network_that_did_not_see_the_image(crossed, number):
    layout, fold = crossed.layout, fold_of(crossed.layout)
    cut = [path for path, _ in isic.read_classification_list(layout, 'Training')
           if fold.get(isic.image_id_of(path)) == number][:16]
    whole = [image for image, _ in isic.read_segmentation_list(layout, 'Training')
             if fold[image.stem] == number]
    own, sees = (networks.load_segmenter(layout.fold(k), 'CoarseSN', torch.device('cpu'), 'fp32')
                 for k in (number, K + 1 - number))
    for paths, folder, side in ((cut, layout.coarse_for_classification('Training'), crops.SIDE),
                                (whole, layout.coarse_for_segmentation('Training'), 0)):
        found = [images.read_mask(folder / f'{path.stem}.png') for path in paths]
        assert len(found) >= 4 and all(map(np.array_equal, found, drawn_by(own, paths, side)))
        assert not any(map(np.array_equal, found, drawn_by(sees, paths, side)))


def test_other_masks_are_drawn_by_the_usual_network_and_all_are_recorded_alike(crossed, chain):
    records, fold = {}, fold_of(crossed.layout)
    for split in SPLITS:
        for place in ('coarse_for_classification', 'coarse_for_segmentation'):
            folder, theirs = getattr(crossed.layout, place)(split), getattr(chain.layout, place)(split)
            records[folder] = json.loads((folder / 'made_by.json').read_text())
            names = sorted(path.name for path in theirs.glob('*.png'))
            assert sorted(path.name for path in folder.glob('*.png')) == names
            assert records[folder]['masks'] == len(names)
            other = [name for name in names if (folder / name).read_bytes() != (theirs / name).read_bytes()]
            held = {isic.image_id_of(folder / name) for name in other}   # images that a fold network drew
            assert held <= fold.keys() and bool(held) == (split == 'Training')
    fingerprints = [files.fingerprint(crossed.layout.fold(number).weights('CoarseSN'))
                    for number in (1, 2)]
    for record in records.values():
        assert record['facts'] == {'coarse_sn': files.fingerprint(chain.layout.weights('CoarseSN')),
                                   'input_size': 32, 'views': 6, 'fold_networks': ','.join(fingerprints)}
        assert record['complete'] and record['settings']['CROSS_FIT'] == K
    assert 'Training_MaskCN: ' in crossed.outputs['drawn']   # the extra images, which are in no fold


def test_a_lost_mask_is_drawn_again_and_later_steps_take_the_masks(crossed, chain):
    layout = crossed.layout
    image_id, number = next(iter(fold_of(layout).items()))
    lost = layout.coarse_for_segmentation('Training') / f'{image_id}.png'
    before = images.read_mask(lost)
    lost.unlink()
    draw, train = run_in_turn(
        ('generate_Coarse_mask.py', layout.root, *DRAW, f'--CROSS_FIT={K}'),
        ('train_MaskCN.py', layout.root, *STAGES['train_MaskCN.py'][:2], '--BATCH_SIZE=4',
         '--PRETRAINED=none', '--STEPS=1', '--VALIDATION_CROPS=1'))
    assert f'Training_EnhancedSN by CoarseSN_fold{number}: 3 of 4 masks' in draw
    assert f'Training_EnhancedSN by CoarseSN_fold{3 - number}: 4 of 4 masks' in draw
    assert 'Validation_EnhancedSN: 6 of 6 masks' in draw
    assert (images.read_mask(lost) != before).mean() < 0.01   # drawn alone now: other rounding
    made = coarse_masks.require(layout, [layout.coarse_for_classification('Training')])
    assert 'step 1:' in train
    assert checkpoints.read_config(layout.weights('MaskCN'))['inputs']['coarse_masks'] == made
    assert made.keys() == {'coarse_sn', 'input_size', 'views', 'fold_networks'}

    enhanced = layout.run('EnhancedSN')   # as the released file, without a record
    enhanced.mkdir()
    (enhanced / 'EnhancedSN.pth').symlink_to(chain.layout.weights('EnhancedSN'))
    model = MBDCNN.load(layout.models, 'cpu', 'fp32')
    assert model.sides['CoarseSN'] == 32 and model.coarse_tta
    shutil.rmtree(enhanced)
    shutil.rmtree(layout.run('MaskCN'))


def test_images_without_a_fold_are_the_usual_networks(crossed):
    assigned = dict(list(fold_of(crossed.layout).items())[:5])
    cfg = type('Cfg', (), {'CROPS_OF_IMAGES': 0, 'SEED': 0})
    for folder, _, groups in list_tasks(crossed.layout, cfg, assigned):
        if folder.name.startswith('Training'):
            assert sorted(groups) == [0, 1, 2]
            owners = {isic.image_id_of(path): network for network, paths in groups.items() for path in paths}
            assert {name: network for name, network in owners.items() if network} == assigned
            assert list(owners.values()).count(0) == len(owners) - 5 >= 3
        else:
            assert list(groups) == [0]


# Refusals

def test_numbers_of_folds_that_cannot_be_used_are_refused(chain, sibling):
    layout = sibling('CoarseSN')
    texts = run_in_turn(*(('train_CoarseSN.py', layout.root, *TRAIN, f'--CROSS_FIT={k}') for k in (1, -2, 9)),
                        ('generate_Coarse_mask.py', layout.root, *DRAW, '--CROSS_FIT=1'), expect=2)
    for text, words in zip(texts, ('CROSS_FIT=1: must be 0 (off) or at least 2', 'CROSS_FIT=-2: must be 0',
                                   'CROSS_FIT=9: there are 8 pictures', 'CROSS_FIT=1: must be'), strict=True):
        assert words in text
    assert [path.name for path in layout.models.iterdir()] == ['CoarseSN']


def test_fold_folders_of_another_run_are_refused_before_any_training(other):
    shutil.rmtree(other.fold(1).run('CoarseSN'))
    text = run_script('train_CoarseSN.py', other.root, *TRAIN, f'--CROSS_FIT={K}', '--ROTATION=3', expect=2)
    assert f'{other.fold(2).run("CoarseSN")} holds a run with other settings' in text
    assert 'ROTATION: 10.0' in text and 'training pictures' not in text
    assert not other.fold(1).weights('CoarseSN').exists()


def refused(layout, k=K):
    with pytest.raises(InputError) as caught:
        coarse_masks.cross_fit(layout, k)
    assert f'python train_CoarseSN.py --ROOT={layout.root} --CROSS_FIT={k}' in caught.value.remedy
    return caught.value.faults


def test_fold_networks_that_do_not_fit_are_all_named(other):
    paths = [other.fold(number).weights('CoarseSN') for number in (1, 2, 3)]
    text = run_script('generate_Coarse_mask.py', other.root, *DRAW, '--CROSS_FIT=3', expect=2)
    for fault in (f'{paths[0]}: was trained with CROSS_FIT=2', f'{paths[1]}: was trained with CROSS_FIT=2',
                  f'{paths[2]}: is missing', f'python train_CoarseSN.py --ROOT={other.root} --CROSS_FIT=3'):
        assert fault in text
    assert not other.coarse_masks.exists()

    change_config(other.fold(2), lambda config: config['settings'].update(SEED=7))
    assert refused(other) == [f'{path}: was trained with SEED={seed}, TRAIN_IMAGES=0, CACHE_SIZE=64, unlike '
                              f'the others' for path, seed in zip(paths[:2], (0, 7), strict=True)]
    change_config(other.fold(1), lambda config: config['settings'].update(SEED=7))
    assert [fault.partition(': ')[2][:27] for fault in refused(other)] == ['was trained on other pictur'] * 2
    change_config(other.fold(1), lambda config: config.pop('finished'))
    assert f'{paths[0]}: its training has not finished' in refused(other)
    paths[1].unlink()
    assert f'{paths[1]}: is missing' in refused(other)


def test_folds_of_other_pictures_are_refused(other):
    assert coarse_masks.cross_fit(other, K)[0] == fold_of(other)
    path = other.segmentation_list('Training')
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[1:]))
    assert [fault.partition(': ')[2] for fault in refused(other)] == [
        f'was trained on other pictures than those of {path}'] * 2


def test_the_usual_network_must_not_have_seen_what_no_fold_holds(other):
    """It draws the pictures beyond TRAIN_IMAGES, so it may know none but those that are in folds."""
    data = splits.segmentation(other, 'Training', 64, limit=6)

    def limited(number):
        def change(config):
            config['settings']['TRAIN_IMAGES'] = 6
            config['inputs']['training'] = folds.without(data, K, number, 0).fingerprint
        change_config(other.fold(number), change)

    limited(1), limited(2)
    main = other.weights('CoarseSN')
    assert refused(other) == [f'{main}: was trained on 2 pictures that no fold holds']
    change_config(other, lambda config: config['settings'].update(TRAIN_IMAGES=6))
    assert coarse_masks.cross_fit(other, K)[0].keys() == set(data.names)


def test_a_remedy_for_masks_names_their_cross_fitting(crossed, other):
    shutil.copytree(crossed.layout.coarse_masks, other.coarse_masks)
    folders = [other.coarse_for_segmentation(split) for split in ('Training', 'Validation')]
    assert len(coarse_masks.require(other, folders)) == 4
    path = folders[1] / 'made_by.json'
    record = json.loads(path.read_text())
    del record['facts']['fold_networks']
    path.write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        coarse_masks.require(other, folders)
    assert 'unlike the others' in caught.value.faults[0]
    assert caught.value.remedy == (
        f'python generate_Coarse_mask.py --ROOT={other.root} --AMP=fp32 --CROSS_FIT=2 --INPUT_SIZE=32')
