"""The run folders of experiments: which of them are there, and the commands that make the others.

A step runs below a root of its own, <ROOT>/runs/<name>/, in which everything that it reads is a link
and what it writes is a folder. A run folder is found again by what it was made from, not by its name:
script, settings, data, pretrained file and the outputs that it read. The stages that lie in ROOT
itself (steps 2 to 6 of the README) serve likewise where they are what a step would make.
"""
import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

from dataset import files, isic
from dataset.errors import InputError
from dataset.layout import SPLITS, Layout
from engine import checkpoints, coarse_masks, networks, settings
from engine.experiments import REPOSITORY

RECORD = 'experiment.json'
RUNS = 'runs'
HERE = '.'   # the folder of a step that ROOT itself has done
# Settings that leave what a run gives as it is; for scripts that train nothing, the last two as well.
# Paths of weights are left out too: the weights themselves are looked at.
WITHOUT_EFFECT = {'ROOT', 'RECIPE', 'RESUME', 'DEVICE', 'NUM_WORKERS', 'PRETRAINED'}
FOR_SPEED = {'BATCH_SIZE', 'PANEL_IMAGES'}
LISTS = {'train_CoarseSN.py': (('seg', 'Training'), ('seg', 'Validation')),   # that a training reads
         'train_MaskCN.py': (('cls', 'Training'), ('cls', 'Validation')),
         'train_EnhancedSN.py': (('seg', 'Training'), ('seg', 'Validation'))}


class Library:
    """The run folders below a root.

    root : str or Path; recipe : name, of every step; processes : of a training, more than one by torchrun
    machine : {NAME: value}, overrides of every step, such as DEVICE
    """

    def __init__(self, root, recipe='default', processes=1, machine=None):
        self.root, self.recipe, self.processes = Path(root), recipe, processes
        self.machine = machine or {}
        self.runs = self.root / RUNS
        self._folders, self._settings, self._identities, self._data = {}, {}, {}, {}

    # What a step is made from

    def settings(self, step):
        """{NAME: value} that a step runs with, without those that have no effect on what it gives."""
        if step not in self._settings:
            values = settings.resolved(REPOSITORY / step.script, self.overrides(step))
            ignored = WITHOUT_EFFECT | (set() if step.network else FOR_SPEED)
            self._settings[step] = {name: value for name, value in json.loads(json.dumps(values)).items()
                                    if name not in ignored and not name.endswith('_WEIGHTS')}
        return self._settings[step]

    def overrides(self, step):
        """Overrides of a step's command, without ROOT."""
        start = {} if step.start is None else {'INITIAL_WEIGHTS': str(self.weights(step.start))}
        return {'RECIPE': self.recipe, **self.machine, **dict(step.overrides), **start}

    def made_from(self, step):
        """What identifies a run of a step: a dict for RECORD. All that it needs must be finished."""
        return {'script': step.script, 'settings': self.settings(step),
                'needs': [[self.folder(need), need.script, self.identity(need)] for need in step.before],
                'data': [step.data, self._data_identity(step)], 'pretrained': self._pretrained(step)}

    def data_root(self, step):
        """Layout of the root whose dataset/ a step reads."""
        return Layout(self.root / step.data)

    def _data_identity(self, step):
        """A hash of the lists that a step reads, and of the sizes and times of the files in them.

        Masks are drawn of whatever is listed, and drawn again where it changed: see `finished`.
        """
        if step.script == 'generate_Coarse_mask.py':
            return ''
        if step.network:
            return self._hash_of_lists(step.data, LISTS[step.script])
        kind = 'cls' if step.script == 'eval_MaskCN.py' else 'seg'
        return self._hash_of_lists(step.data, [(kind, self.settings(step)['SPLIT'])])

    def _hash_of_lists(self, data, lists):
        for kind, split in lists:
            if (data, kind, split) not in self._data:
                self._data[data, kind, split] = _hash_of_list(Layout(self.root / data), kind, split)
        return ' '.join(self._data[data, kind, split] for kind, split in lists)

    def _everything_listed(self, step):
        return self._hash_of_lists(step.data, [(kind, split) for kind in ('seg', 'cls') for split in SPLITS])

    def _pretrained(self, step):
        """Fingerprint of the file of pretrained weights that a training starts from, '' for none."""
        values = settings.resolved(REPOSITORY / step.script, self.overrides(step))
        if 'PRETRAINED' not in values or values.get('INITIAL_WEIGHTS'):
            return ''
        named = {name.removesuffix('_WEIGHTS').lower(): path for name, path in values.items()
                 if name.endswith('_WEIGHTS') and name != 'INITIAL_WEIGHTS'}
        path = networks.choose_pretrained(values['PRETRAINED'], named)[1]
        return '' if path is None else self._fingerprint(path)

    # Where a step's run lies

    def folder(self, step):
        """Folder of a step's run relative to ROOT: an earlier one, or the name that a new one gets."""
        if step not in self._folders:
            found = self._find(step) if all(map(self.finished, step.before)) else None
            self._folders[step] = found or self._new_folder(step)
        return self._folders[step]

    def look_again(self, step):
        """Find a step's folder anew, now that what it needs is finished."""
        self._folders.pop(step, None)
        return self.folder(step)

    def _find(self, step):
        made_from = self.made_from(step)
        if self._done_in_root(step, made_from):
            return HERE
        for path in sorted(self.runs.glob(f'*/{RECORD}')):
            if _agree(_read(path).get('made from', {}), made_from):
                return f'{RUNS}/{path.parent.name}'
        return None

    def _new_folder(self, step):
        taken, number = set(self._folders.values()), 1
        while True:
            name = f'{RUNS}/{step.name}' + (f'-{number}' if number > 1 else '')
            if name not in taken and not (self.root / name).exists():
                return name
            number += 1

    def layout(self, step):
        """Layout of a step's folder."""
        return Layout(self.root / self.folder(step))

    def weights(self, step):
        """Path of the weights that a training step writes."""
        return self.layout(step).weights(step.network)

    def finished(self, step):
        """True when a step's output is complete and made from what it would now be made from."""
        folder = self.folder(step)
        if folder == HERE:
            return True
        record = _read(self.root / folder / RECORD)
        if step.script == 'generate_Coarse_mask.py' and record.get('listed') != self._everything_listed(step):
            return False
        return bool(record.get('finished'))

    def seconds(self, step):
        """How long a step's run took in all, 0 where that is not known."""
        return _read(self.root / self.folder(step) / RECORD).get('seconds', 0)

    # What ROOT itself has done

    def _done_in_root(self, step, made_from):
        """True when ROOT's own stage is what the step would make, from ROOT's own stages."""
        if step.data or any(self.folder(need) != HERE for need in step.before):
            return False
        layout, same = Layout(self.root), {'settings': made_from['settings']}
        if step.network:
            if made_from['settings'].get('CROSS_FIT') or step.start is not None:
                return False
            config = checkpoints.read_config(layout.weights(step.network))
            begun = made_from['pretrained'] or ('random' if step.script != 'train_EnhancedSN.py' else '')
            return (bool(config.get('finished')) and layout.weights(step.network).is_file()
                    and begun in str(config.get('start'))
                    and _agree({'settings': config.get('settings', {})}, same)
                    and self._belong_together(layout, step))
        if step.script == 'generate_Coarse_mask.py':
            record = _read(layout.coarse_for_segmentation('Training') / coarse_masks.RECORD)
            return (_agree({'settings': record.get('settings', {})}, same)
                    and self._belong_together(layout, step) and _masks_complete(layout))
        network = 'MaskCN' if step.script == 'eval_MaskCN.py' else made_from['settings']['NETWORK']
        result = _read(layout.results / f'{network}_{made_from["settings"]["SPLIT"]}.json')
        return (_agree({'settings': result.get('settings', {})}, same)
                and result.get('weights', {}).get(network) == self._fingerprint(layout.weights(network)))

    @staticmethod
    def _belong_together(layout, step):
        """True when ROOT's stages up to this one were made from each other."""
        try:
            folders = [layout.coarse_for_segmentation('Training')]
            if step.script == 'generate_Coarse_mask.py':
                coarse_masks.require(layout, folders)
            elif step.network in ('MaskCN', 'EnhancedSN') and any(
                    need.script == 'generate_Coarse_mask.py' for need in step.upstream()):
                names = ('MaskCN',) if step.network == 'MaskCN' else ('MaskCN', 'EnhancedSN')
                coarse_masks.require_chain(layout, names, coarse_masks.require(layout, folders))
        except InputError:
            return False
        return True

    def identity(self, step):
        """Text that changes with a finished step's output."""
        layout = self.layout(step)
        if step.network:
            return ' '.join(self._fingerprint(layout.root / place / f'{step.network}.pth')
                            for place in outputs(step, self.settings(step)))
        if step.script == 'generate_Coarse_mask.py':
            record = _read(layout.coarse_for_segmentation('Training') / coarse_masks.RECORD) or _read(
                layout.coarse_for_segmentation('Testing') / coarse_masks.RECORD)
            return ' '.join(str(value) for value in record.get('facts', {}).values())
        return ''

    def _fingerprint(self, path):
        if not Path(path).is_file():
            return ''
        key = str(path), path.stat().st_mtime_ns, path.stat().st_size
        if key not in self._identities:
            self._identities[key] = checkpoints.fingerprint(path)
        return self._identities[key]

    # Running

    def prepare(self, step):
        """Make a step's folder with links to all that it reads, and its record."""
        folder, made_from = self.root / self.folder(step), self.made_from(step)
        folder.mkdir(parents=True, exist_ok=True)
        own = set(outputs(step, made_from['settings']))
        links = {'dataset': self.root / step.data / 'dataset'}
        for need in step.upstream():
            for place in outputs(need, self.settings(need)):
                if place == 'Coarse_masks' and need.data != step.data:
                    continue   # masks of other pictures
                if place not in own:
                    links.setdefault(place, self.root / self.folder(need) / place)
        for place, target in links.items():
            _link(folder / place, target)
        record = _read(folder / RECORD)
        if record.get('made from') != made_from:
            record = {'made from': made_from, 'finished': False, 'seconds': 0}
        self._write(step, {**record, 'command': self.command(step)})

    def note(self, step, seconds, finished):
        """Add the time of a run to a step's record; finished : whether it reached its end."""
        record = _read(self.root / self.folder(step) / RECORD)
        if step.script == 'generate_Coarse_mask.py':
            record['listed'] = self._everything_listed(step)
        self._write(step, {**record, 'finished': finished, 'seconds': round(record['seconds'] + seconds, 1)})

    def _write(self, step, record):
        files.write_text(self.root / self.folder(step) / RECORD, json.dumps(record, indent=1) + '\n')

    def arguments(self, step):
        """The words of a step's command, for subprocess."""
        launcher = [sys.executable]
        if step.network and self.processes > 1:
            launcher += ['-m', 'torch.distributed.run', f'--nproc-per-node={self.processes}']
        options = {'ROOT': self.root / self.folder(step), **self.overrides(step)}
        if options['RECIPE'] == 'default':
            del options['RECIPE']
        return [*launcher, str(REPOSITORY / step.script),
                *(f'--{name}={_literal(value)}' for name, value in options.items())]

    def command(self, step):
        """The command of a step as a reader would type it."""
        words = [step.script if word == str(REPOSITORY / step.script) else word
                 for word in self.arguments(step)[1:]]
        if words[0] == '-m':
            return shlex.join(['torchrun', *words[2:]])
        return shlex.join(['python', *words])

    def unused(self, steps):
        """Run folders that none of these steps is: [name]."""
        used = {self.folder(step) for step in steps}
        return [path.parent.name for path in sorted(self.runs.glob(f'*/{RECORD}'))
                if f'{RUNS}/{path.parent.name}' not in used]


def outputs(step, values):
    """Folders below its root that a step writes and others read. values : its settings"""
    if step.network and values.get('CROSS_FIT'):
        return [f'models/{step.network}_fold{fold}' for fold in range(1, values['CROSS_FIT'] + 1)]
    if step.network:
        return [f'models/{step.network}']
    return ['Coarse_masks'] if step.script == 'generate_Coarse_mask.py' else ['results']


def _agree(record, made_from):
    """True when a record says the same as `made_from`, but for settings that it does not know.

    So a run stays valid when a later version of a script has a constant more.
    """
    known = record.get('settings', {})
    shared = known.keys() & made_from['settings'].keys()
    return (bool(known) and all(known[name] == made_from['settings'][name] for name in shared)
            and all(record.get(part) == value for part, value in made_from.items() if part != 'settings'))


def _masks_complete(layout):
    """True when there are masks of every split that is listed."""
    return all(_read(folder / coarse_masks.RECORD).get('complete') for split in SPLITS
               for path, folder in ((layout.segmentation_list(split), layout.coarse_for_segmentation(split)),
                                    (layout.classification_list(split),
                                     layout.coarse_for_classification(split)))
               if path.is_file())


def _hash_of_list(layout, kind, split):
    """Hash of a list, and of the sizes and times of the files in it; 'none' without a list."""
    segmentation = kind == 'seg'
    path = layout.segmentation_list(split) if segmentation else layout.classification_list(split)
    folder = layout.segmentation(split) if segmentation else layout.crops(split)
    if not path.is_file():
        return 'none'
    digest = hashlib.sha256()
    for file, word in isic.read_list(path, folder):
        for one in (file, folder / word) if segmentation else (file,):
            if one.is_file():   # a missing mask is for the script to report
                digest.update(f'{one.name} {one.stat().st_size} {one.stat().st_mtime_ns} '.encode())
        digest.update(f'{word}\n'.encode())
    return digest.hexdigest()[:16]


def _link(path, target):
    """Make `path` a relative symbolic link to `target`, whatever link was there before."""
    wanted = os.path.relpath(target, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        if os.readlink(path) == wanted:
            return
        path.unlink()
    elif path.exists():
        raise InputError('A run folder is not as it was made', [f'{path}: is a folder, not a link'],
                         f'remove {path.parent}')
    path.symlink_to(wanted, target_is_directory=True)


def _literal(value):
    return ','.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _read(path):
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
