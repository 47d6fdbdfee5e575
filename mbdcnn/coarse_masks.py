"""Which coarse-SN made the masks of stage 3, so that later stages refuse those of another."""
from dataset import folds, isic, splits
from engine import checkpoints, files
from engine.errors import InputError
from mbdcnn import networks

RECORD = splits.MADE_BY
SCRIPT = splits.DRAWN_BY
FOLDS = 'fold_networks'   # the fact that masks of CROSS_FIT have in addition
ALIKE = 'SEED', 'TRAIN_IMAGES', 'CACHE_SIZE'   # what decides which pictures a fold network sees


def lock(layout):
    """The lock of all coarse masks of a root, while this process draws them.

    Raises InputError when another process draws, or when the masks are another experiment's.
    """
    folder = layout.coarse_masks
    if folder.is_symlink() and (layout.root / 'experiment.json').is_file():
        raise InputError('These coarse masks belong to another experiment',
                         [f'{folder}: is a link to {folder.resolve()}'],
                         'python generate_Coarse_mask.py draws them anew below the --ROOT that they lie in; '
                         'below runs/, experiment.json beside them has the whole command')
    folder.mkdir(parents=True, exist_ok=True)
    return files.lock(folder / '.lock', InputError(
        'Two programs that draw coarse masks', [f'{folder}: another process draws there'],
        'wait for it, or draw below another --ROOT'))


def refuse_to_replace(layout, folders, facts):
    """Raise InputError where masks would be replaced that are of the present networks, but drawn otherwise.

    facts : as for `begin`. Masks of other networks serve for nothing any more and do not count.
    """
    faults, command = [], ''
    for folder in folders:
        count, record = len(list(folder.glob('*.png'))), splits.coarse_record(layout, folder)
        before = record.head.get('facts', {})
        if not count or before == facts or _of_other_networks(before, facts):
            continue
        words = ', '.join(f'{name}={before.get(name)}' for name in facts | before
                          if before.get(name) != facts.get(name))
        faults.append(f'{folder}: {count} masks that were drawn with {words}' if before else
                      f'{folder}: {count} masks, and no {RECORD} that says how they were drawn')
        command = command or (before and splits.draw_command(layout, record.head))
    if faults:
        keep = f'{command}, to keep them; ' if command else ''
        raise InputError('Coarse masks would be deleted', faults,
                         f'{keep}another --ROOT, to have both; --RESUME=False, to delete them and draw anew')


def _of_other_networks(before, facts):
    """True when masks with the facts `before` were drawn by other networks than those of `facts`."""
    return before.get('coarse_sn', facts['coarse_sn']) != facts['coarse_sn'] or (
        FOLDS in before and FOLDS in facts and before[FOLDS] != facts[FOLDS])


def opened(layout, folder, facts, anew=False):
    """(engine.contents.Record of a mask folder, whether `begin` keeps its masks); else it holds none."""
    record = splits.coarse_record(layout, folder)
    keep = record.head.get('facts') == facts and not anew
    if not keep:
        record.made.clear()
    return record, keep


def begin(layout, folder, facts, cfg, anew=False):
    """Ready a mask folder; returns its engine.contents.Record, to which finished masks are to be noted.

    Masks made under other `facts`, or all when `anew`, are removed and counted on the screen.
    facts : dict, with 'coarse_sn' the fingerprint of the weights; cfg : the Settings that draw
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_abandoned(folder, age=0)
    record, keep = opened(layout, folder, facts, anew)
    record.begin({'facts': facts, 'complete': False, 'settings': vars(cfg)}, keep)
    former = [] if keep else list(folder.glob('*.png'))
    for mask in former:
        mask.unlink()
    if former:
        print(f'{folder}: {len(former)} masks of another drawing are removed')
    return record


def finish(record, pictures):
    """Record that a folder holds the masks of all `pictures` (paths)."""
    for picture in pictures:
        source, own = record.made[f'{picture.stem}.png']
        if not own:   # taken over from an earlier version
            record.note(f'{picture.stem}.png', source)
    record.finish(record.head | {'complete': True, 'masks': len(pictures)})


def require(layout, folders, names=()):
    """Check that coarse masks are complete, and made alike by models/CoarseSN/CoarseSN.pth.

    names : of networks that must have been trained on them, see `require_chain`
    Returns how they were made: {'coarse_sn': fingerprint, 'input_size': px, 'views': 1 or 6} and with
    CROSS_FIT 'fold_networks', whose files need not be there any more.
    Raises InputError naming each folder at fault.
    """
    weights = layout.weights('CoarseSN')
    if not weights.is_file():
        raise InputError('Coarse masks cannot be checked', [f'{weights}: is missing'],
                         f'{layout.command("train_CoarseSN.py")}, or copy the coarse-SN that drew them to '
                         f'{weights.parent}/')
    present, made, faults, drawn = files.fingerprint(weights), {}, [], {}
    for folder in folders:
        record = files.read_json(folder / RECORD, 'facts', 'settings')
        facts = record.get('facts', {})
        if FOLDS in facts or not drawn:
            drawn = record
        if 'coarse_sn' not in facts:
            faults.append(f'{folder}: holds no coarse masks')
        elif facts['coarse_sn'] != present:
            faults.append(f'{folder}: made by another coarse-SN ({facts["coarse_sn"]}) than {weights} '
                          f'({present})')
        elif not record.get('complete'):
            faults.append(f'{folder}: was not finished')
        else:
            made[folder] = facts
    if any(how != next(iter(made.values())) for how in made.values()):
        faults += [f'{folder}: made as {how}, unlike the others' for folder, how in made.items()]
    if faults:
        raise InputError('Coarse masks cannot be used', faults,
                         published_remedy(layout) or splits.draw_command(layout, drawn))
    made = next(iter(made.values()))
    if names:
        require_chain(layout, names, made)
    return made


def require_chain(layout, names, made):
    """Check that networks were trained on the present coarse masks and on the present mask-CN.

    names : of 'MaskCN' and 'EnhancedSN', in this order; made : what `require` returned
    Networks without a record (the released code's files) pass. Returns mask-CN's fingerprint.
    """
    mask_cn = checkpoints.fingerprint_or_refuse(layout.weights('MaskCN'), layout.command('train_MaskCN.py'))
    for name in names:
        path, inputs, faults = layout.weights(name), read_config(layout.weights(name)).get('inputs', {}), []
        if inputs.get('coarse_masks', made) != made:
            faults.append(f'{path}: was trained on masks of another coarse-SN or drawing '
                          f'({inputs["coarse_masks"]}) than the present ones ({made})')
        if inputs.get('mask_cn', mask_cn) != mask_cn:
            faults.append(f'{path}: was trained with another mask-CN ({inputs["mask_cn"]}) than the '
                          f'present one ({mask_cn})')
        if faults:
            raise InputError('The stages do not belong together', faults, published_remedy(layout) or
                             layout.command(f'train_{name}.py', '--RESUME=False'))
    return mask_cn


def published_remedy(layout):
    """How the masks are drawn which the networks of the repository know; '' for a layout with others."""
    if layout.models != networks.PUBLISHED:
        return ''
    recipe = read_config(layout.weights('MaskCN')).get('settings', {}).get('RECIPE', 'default')
    return (f'{layout.command(SCRIPT, f"--RECIPE={recipe}")}, with --RESUME=False where masks of another '
            'drawing are to be deleted')


def read_config(weights_path):
    """As checkpoints.read_config; how masks were made is a dict also where it was written as a text.

    Earlier versions joined the values by spaces: 'fingerprint side views [fold networks]'.
    """
    config = checkpoints.read_config(weights_path)
    made = config.get('inputs', {}).get('coarse_masks')
    if isinstance(made, str):
        try:
            coarse_sn, side, views, *fold_networks = made.split()
            config['inputs']['coarse_masks'] = {
                'coarse_sn': coarse_sn, 'input_size': int(side), 'views': int(views),
                **({FOLDS: fold_networks[0]} if fold_networks else {})}
        except ValueError:
            raise InputError('A run folder is damaged', [
                f'{weights_path.with_name("config.json")}: coarse_masks is {made!r}'],
                'restore the file, or train again') from None
    return config


def cross_fit(layout, k):
    """Who draws which training image with CROSS_FIT=`k`: ({image id: fold number}, additional facts).

    Raises InputError naming each network of train_CoarseSN.py --CROSS_FIT=k that is missing, unfinished,
    not trained like the others, or trained on other pictures than the present ones.
    """
    trained, faults, fold_of = {}, [], {}
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
        else:
            trained[path] = number, config
    how = {path: ', '.join(f'{name}={config["settings"][name]}' for name in ALIKE)
           for path, (_, config) in trained.items()}
    if len(set(how.values())) > 1:
        faults += [f'{path}: was trained with {words}, unlike the others' for path, words in how.items()]
    elif trained:
        fold_of, other = _on_present_pictures(layout, k, trained)
        faults += other
    if faults:
        raise InputError(f'Masks cannot be drawn with CROSS_FIT={k}', faults,
                         f'{layout.command("train_CoarseSN.py", f"--CROSS_FIT={k}")}, with '
                         '--RESUME=False where networks are to be replaced')
    return fold_of, {FOLDS: ','.join(map(files.fingerprint, trained))}


def _on_present_pictures(layout, k, trained):
    """({image id: fold number}, faults) of fold networks that were trained alike.

    trained : {path of weights: (fold number, config)}
    """
    seed, limit, size = (next(iter(trained.values()))[1]['settings'][name] for name in ALIKE)
    data = splits.segmentation(layout, 'Training', size, limit=limit, seed=seed)
    faults = [f'{path}: was trained on other pictures than those of {layout.segmentation_list("Training")}'
              for path, (number, config) in trained.items()
              if config.get('inputs', {}).get('training') != folds.without(data, k, number, seed).fingerprint]
    fold_of, main = folds.assign(data.names, k, seed), layout.weights('CoarseSN')
    if main.is_file():   # it draws what no fold holds; released weights have seen all
        its = checkpoints.read_config(main).get('settings', {})
        seen = splits.subset(isic.read_segmentation_list(layout, 'Training'), its.get('TRAIN_IMAGES', 0),
                             its.get('SEED', 0))
        outside = sum(isic.id_of(image) not in fold_of for image, _ in seen)
        if outside:
            faults.append(f'{main}: was trained on {outside} pictures that no fold holds')
    return fold_of, faults
