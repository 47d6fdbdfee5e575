"""Which coarse-SN made the masks of stage 3, so that later stages refuse those of another."""
import json

from dataset import folds, isic, splits
from engine import checkpoints, files
from engine.errors import InputError

RECORD = splits.MADE_BY
SCRIPT = 'generate_Coarse_mask.py'
FOLDS = 'fold_networks'   # the fact that masks of CROSS_FIT have in addition
LARGEST = 1 << 14   # px, side of cached pictures; a damaged record must not fill the disk
ALIKE = 'SEED', 'TRAIN_IMAGES', 'CACHE_SIZE'   # what decides which pictures a fold network sees


def begin(folder, facts):
    """Prepare a mask folder; masks made under other `facts` are removed, the others are kept.

    facts : dict, with 'coarse_sn' the fingerprint of the weights
    Returns {stem: hash} of the pictures that finished masks were drawn from, see splits.is_drawn.
    """
    path, all_masks = folder / RECORD, folder.parent
    if all_masks.is_symlink() and (all_masks.parent / 'experiment.json').is_file():
        raise InputError('These coarse masks belong to another experiment',
                         [f'{all_masks}: is a link to {all_masks.resolve()}'], 'python reproduce_tables.py')
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_abandoned(folder)
    record = files.read_json(path, 'pictures')
    if record.get('facts') != facts:
        record = {}
        path.unlink(missing_ok=True)
        for mask in folder.glob('*.png'):
            mask.unlink()
    files.write_text(path, json.dumps({'facts': facts, 'complete': False}) + '\n')
    return record.get('pictures', {})


def finish(folder, facts, pictures, cfg):
    """Record that the folder holds the masks of all `pictures` (paths), and the Settings that drew them."""
    hashes = files.for_all(files.fingerprint, pictures, f'{folder.name}: reading')
    record = {'facts': facts, 'complete': True, 'masks': len(pictures), 'settings': vars(cfg),
              'pictures': dict(zip([path.stem for path in pictures], hashes, strict=True))}
    files.write_text(folder / RECORD, json.dumps(record) + '\n')


def require(layout, folders):
    """Check that coarse masks are complete, and made alike by models/CoarseSN/CoarseSN.pth.

    Returns how they were made: {'coarse_sn': fingerprint, 'input_size': px, 'views': 1 or 6} and with
    CROSS_FIT 'fold_networks', whose files need not be there any more.
    Raises InputError naming each folder at fault.
    """
    weights = layout.weights('CoarseSN')
    if not weights.is_file():
        raise InputError('Coarse masks cannot be checked', [f'{weights}: is missing'],
                         layout.command('train_CoarseSN.py'))
    present, made, faults, options = checkpoints.fingerprint(weights), {}, [], []
    for folder in folders:
        record = files.read_json(folder / RECORD, 'facts')
        maker = record.get('facts', {}).get('coarse_sn')
        if FOLDS in record.get('facts', {}):
            options = [f'--CROSS_FIT={len(str(record["facts"][FOLDS]).split(","))}']
        if maker is None:
            faults.append(f'{folder}: holds no coarse masks')
        elif maker != present:
            faults.append(f'{folder}: made by another coarse-SN ({maker}) than {weights} ({present})')
        elif not record.get('complete'):
            faults.append(f'{folder}: was not finished')
        else:
            made[folder] = record['facts']
    if any(how != next(iter(made.values())) for how in made.values()):
        faults += [f'{folder}: made as {how}, unlike the others' for folder, how in made.items()]
    if faults:
        raise InputError('Coarse masks cannot be used', faults, layout.command(SCRIPT, *options))
    return next(iter(made.values()))


def read_config(weights_path):
    """As checkpoints.read_config; how masks were made is a dict also where it was written as a text.

    Earlier versions joined the values by spaces: 'fingerprint side views [fold networks]'.
    """
    config = checkpoints.read_config(weights_path)
    made = config.get('inputs', {}).get('coarse_masks')
    words = made.split() if isinstance(made, str) else []
    if len(words) in (3, 4) and all(word.isdecimal() and len(word) < 6 for word in words[1:3]):
        values = words[0], int(words[1]), int(words[2]), *words[3:]
        config['inputs']['coarse_masks'] = dict(zip(('coarse_sn', 'input_size', 'views', FOLDS), values,
                                                    strict=False))
    return config


def cross_fit(layout, k):
    """Who draws which training image with CROSS_FIT=`k`: ({image id: fold number}, additional facts).

    Raises InputError naming each network of train_CoarseSN.py --CROSS_FIT=k that is missing, unfinished,
    not trained like the others, or trained on other pictures than the present ones.
    """
    trained, faults = {}, []
    for number in range(1, k + 1):
        path = layout.fold(number).weights('CoarseSN')
        config = checkpoints.read_config(path)
        found = config.get('settings', {}).get('CROSS_FIT')
        if not path.is_file():
            faults.append(f'{path}: is missing')
        elif found != k:
            faults.append(f'{path}: was trained with CROSS_FIT={found}')
        elif not config.get('finished'):   # an interrupted training leaves its best weights so far
            faults.append(f'{path}: its training has not finished')
        elif _counts(config) is None:
            faults.append(f'{path.parent / "config.json"}: its {", ".join(ALIKE)} are no training\'s')
        else:
            trained[path] = number, config
    how = {path: ', '.join(f'{name}={config["settings"][name]}' for name in ALIKE)
           for path, (_, config) in trained.items()}
    fold_of = {}
    if len(set(how.values())) > 1:
        faults += [f'{path}: was trained with {words}, unlike the others' for path, words in how.items()]
    elif trained:
        fold_of, other = _on_present_pictures(layout, k, trained)
        faults += other
    if faults:
        raise InputError(f'Masks cannot be drawn with CROSS_FIT={k}', faults,
                         f'{layout.command("train_CoarseSN.py", f"--CROSS_FIT={k}")}, with '
                         '--RESUME=False where networks are to be replaced')
    return fold_of, {FOLDS: ','.join(checkpoints.fingerprint(path) for path in trained)}


def _on_present_pictures(layout, k, trained):
    """({image id: fold number}, faults) of fold networks that were trained alike.

    trained : {path of weights: (fold number, config)}
    """
    seed, limit, size = _counts(next(iter(trained.values()))[1])
    data = splits.segmentation(layout, 'Training', size, limit=limit, seed=seed)
    faults = [f'{path}: was trained on other pictures than those of {layout.segmentation_list("Training")}'
              for path, (number, config) in trained.items()
              if config.get('inputs', {}).get('training') != folds.without(data, k, number, seed).fingerprint]
    fold_of = folds.assign(data.names, k, seed)
    main = layout.weights('CoarseSN')
    if main.is_file():   # it draws what no fold holds
        seed, limit, _ = _counts(checkpoints.read_config(main)) or (0, 0, 0)   # of released weights: all
        seen = splits.subset(isic.read_segmentation_list(layout, 'Training'), limit, seed)
        outside = sum(image.stem not in fold_of for image, _ in seen)
        if outside:
            faults.append(f'{main}: was trained on {outside} pictures that no fold holds')
    return fold_of, faults


def _counts(config):
    """The settings ALIKE in a config.json; None where one is absent, or no number that a training takes."""
    values = [config.get('settings', {}).get(name) for name in ALIKE]
    return values if all(type(value) is int and 0 <= value < 2**63 for value in values) and (
        0 < values[2] <= LARGEST) else None


def require_chain(layout, names, made):
    """Check that networks were trained on the present coarse masks and on the present mask-CN.

    names : of 'MaskCN' and 'EnhancedSN', in this order; made : what `require` returned
    Networks without a record (the released code's files) pass. Returns mask-CN's fingerprint.
    """
    mask_cn = checkpoints.fingerprint_or_refuse(layout.weights('MaskCN'), layout.command('train_MaskCN.py'))
    for name in names:
        path, redo = layout.weights(name), layout.command(f'train_{name}.py', '--RESUME=False')
        inputs = read_config(path).get('inputs', {})
        faults = []
        if inputs.get('coarse_masks', made) != made:
            faults.append(f'{path}: was trained on masks of another coarse-SN or drawing '
                          f'({inputs["coarse_masks"]}) than the present ones ({made})')
        if inputs.get('mask_cn', mask_cn) != mask_cn:
            faults.append(f'{path}: was trained with another mask-CN ({inputs["mask_cn"]}) than the '
                          f'present one ({mask_cn})')
        if faults:
            raise InputError('The stages do not belong together', faults, redo)
    return mask_cn
