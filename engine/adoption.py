"""Stages that lie in ROOT itself (steps 2 to 6 of the README): are they what a step would make?"""
from dataset import files
from dataset.errors import InputError
from dataset.layout import SPLITS, Layout
from engine import checkpoints, coarse_masks, listed, transfer


def done_in_root(library, step, made_from):
    """True when ROOT's own stage is what the step would make, from ROOT's own stages and present data."""
    if step.data or any(library.folder(need) != library.HERE for need in step.before):
        return False
    layout = Layout(library.root)
    try:
        if step.network:
            return step.start is None and _trained(library, layout, step, made_from)
        if step.script == 'generate_Coarse_mask.py':
            return _drawn(library, layout, made_from)
        return _scored(library, layout, step, made_from)
    except InputError:   # a damaged or mixed-up stage serves for nothing; its own script says why
        return False


def _trained(library, layout, step, made_from):
    values = made_from['settings']
    for place in library.outputs(step):
        weights = layout.root / place / f'{step.network}.pth'
        config = checkpoints.read_config(weights)
        recorded = config.get('settings', {})
        if not (weights.is_file() and config.get('finished') and not recorded.get('INITIAL_WEIGHTS')
                and library.agrees(step, recorded)
                and config.get('processes', 1) == made_from['processes']
                and _begun_from(library, layout, step, made_from) in str(config.get('start'))
                and not listed.changed_since(layout, listed.read_by(step.script, values),
                                             (weights.parent / 'config.json').stat().st_mtime)):
            return False
    if step.network == 'CoarseSN' or values.get('TRANSFER') == 'none' or (
            step.network == 'MaskCN' and values['INPUT_CHANNEL'] == 3):
        return True
    names = ('MaskCN',) if step.network == 'MaskCN' else ('MaskCN', 'EnhancedSN')
    folders = [layout.coarse_for_segmentation('Training')]
    transfer.require(layout, values.get('TRANSFER', 'e-layer'), folders, names)
    return True


def _begun_from(library, layout, step, made_from):
    """What config.json's words on the start of a training must contain."""
    if step.network == 'EnhancedSN' and made_from['settings'].get('START') != 'pretrained':
        return library.fingerprint(layout.weights('CoarseSN'))
    return made_from['pretrained'] or 'random weights'


def _drawn(library, layout, made_from):
    record = layout.coarse_for_segmentation('Training') / coarse_masks.RECORD
    facts = files.read_json(record)
    coarse_masks.require(layout, [layout.coarse_for_segmentation('Training')])
    return (library.agrees_with(made_from, facts.get('settings', {})) and masks_complete(layout)
            and not listed.changed_since(layout, listed.EVERYTHING, record.stat().st_mtime))


def _scored(library, layout, step, made_from):
    split = made_from['settings']['SPLIT']
    network = made_from['settings'].get('NETWORK', 'MaskCN')
    path = layout.results / f'{network}_{split}.json'
    result = files.read_json(path, 'weights')
    return (library.agrees(step, result.get('settings', {}))
            and result.get('weights', {}).get(network) == library.fingerprint(layout.weights(network))
            and path.with_suffix('.csv').is_file()
            and not listed.changed_since(layout, listed.read_by(step.script, made_from['settings']),
                                         path.stat().st_mtime))


def masks_complete(layout):
    """True when there are finished masks of every split that is listed."""
    return all(files.read_json(folder / coarse_masks.RECORD).get('complete') for split in SPLITS
               for path, folder in ((layout.segmentation_list(split), layout.coarse_for_segmentation(split)),
                                    (layout.classification_list(split),
                                     layout.coarse_for_classification(split)))
               if path.is_file())
