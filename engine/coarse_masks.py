"""Which coarse-SN made the masks of step 3, so that later stages refuse those of another."""
import json

from dataset import files
from dataset.errors import InputError
from engine import checkpoints

RECORD = 'made_by.json'
REMEDY = 'python generate_Coarse_mask.py'


def begin(folder, facts):
    """Prepare a mask folder; masks made under other `facts` are removed, the others are kept.

    facts : dict, with 'coarse_sn' the fingerprint of the weights
    """
    path = folder / RECORD
    folder.mkdir(parents=True, exist_ok=True)
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
    """Check that coarse masks are complete and made by models/CoarseSN/CoarseSN.pth.

    Returns the fingerprint of that coarse-SN. Raises InputError naming each folder at fault.
    """
    weights = layout.weights('CoarseSN')
    if not weights.is_file():
        raise InputError('Coarse masks cannot be checked', [f'{weights}: is missing'],
                         'python train_CoarseSN.py')
    present, faults = checkpoints.fingerprint(weights), []
    for folder in folders:
        record = _read(folder / RECORD)
        maker = record.get('facts', {}).get('coarse_sn')
        if maker is None:
            faults.append(f'{folder}: holds no coarse masks')
        elif maker != present:
            faults.append(f'{folder}: made by another coarse-SN ({maker}) than {weights} ({present})')
        elif not record.get('complete'):
            faults.append(f'{folder}: was not finished')
    if faults:
        raise InputError('Coarse masks cannot be used', faults, REMEDY)
    return present


def require_same_for_maskcn(layout, coarse_sn):
    """Check that mask-CN was trained on the masks of the present coarse-SN (or on none)."""
    path = layout.weights('MaskCN')
    maker = checkpoints.read_config(path).get('inputs', {}).get('coarse_sn', coarse_sn)
    if maker != coarse_sn:
        raise InputError('Mask-CN and the coarse masks do not belong together',
                         [f'{path}: was trained on masks of another coarse-SN ({maker}) than the present '
                          f'one ({coarse_sn})'], 'python train_MaskCN.py --RESUME=False')


def _read(path):
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
