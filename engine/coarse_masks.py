"""Which coarse-SN made the masks of step 3, so that later stages refuse those of another."""
import json

from dataset import files
from dataset.errors import InputError
from engine import checkpoints

RECORD = 'made_by.json'
SCRIPT = 'generate_Coarse_mask.py'


def begin(folder, facts):
    """Prepare a mask folder; masks made under other `facts` are removed, the others are kept.

    facts : dict, with 'coarse_sn' the fingerprint of the weights
    """
    path = folder / RECORD
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_abandoned(folder)
    if _read(path).get('facts') != facts:
        path.unlink(missing_ok=True)
        for mask in folder.glob('*.png'):
            mask.unlink()
    files.write_text(path, json.dumps({'facts': facts, 'complete': False}) + '\n')


def finish(folder, facts, count):
    """Record that the folder holds all its `count` masks."""
    files.write_text(folder / RECORD,
                     json.dumps({'facts': facts, 'complete': True, 'masks': count}) + '\n')


def require(layout, folders):
    """Check that coarse masks are complete, and made alike by models/CoarseSN/CoarseSN.pth.

    Returns how they were made as one text (fingerprint of that coarse-SN, input side, views).
    Raises InputError naming each folder at fault.
    """
    weights = layout.weights('CoarseSN')
    if not weights.is_file():
        raise InputError('Coarse masks cannot be checked', [f'{weights}: is missing'],
                         layout.command('train_CoarseSN.py'))
    present, made, faults = checkpoints.fingerprint(weights), {}, []
    for folder in folders:
        record = _read(folder / RECORD)
        maker = record.get('facts', {}).get('coarse_sn')
        if maker is None:
            faults.append(f'{folder}: holds no coarse masks')
        elif maker != present:
            faults.append(f'{folder}: made by another coarse-SN ({maker}) than {weights} ({present})')
        elif not record.get('complete'):
            faults.append(f'{folder}: was not finished')
        else:
            made[folder] = ' '.join(str(value) for value in record['facts'].values())
    if len(set(made.values())) > 1:
        faults += [f'{folder}: made as {how}, unlike the others' for folder, how in made.items()]
    if faults:
        raise InputError('Coarse masks cannot be used', faults, layout.command(SCRIPT))
    return next(iter(made.values()))


def require_chain(layout, names, made):
    """Check that networks were trained on the present coarse masks and on the present mask-CN.

    names : of 'MaskCN' and 'EnhancedSN', in this order; made : what `require` returned
    Networks without a record (the released code's files) pass. Returns mask-CN's fingerprint.
    """
    mask_cn = checkpoints.fingerprint_or_refuse(layout.weights('MaskCN'), layout.command('train_MaskCN.py'))
    for name in names:
        path, redo = layout.weights(name), layout.command(f'train_{name}.py', '--RESUME=False')
        inputs = checkpoints.read_config(path).get('inputs', {})
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


def _read(path):
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
