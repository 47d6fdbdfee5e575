"""The run folders of experiments: which of them are there, and the commands that make the others.

A step runs below a root of its own, <ROOT>/runs/<name>/, in which everything that it reads is a link
and what it writes is a folder. A run folder is found again by what it was made from, not by its name:
script, settings, data, pretrained file and the outputs that it read. The stages that lie in ROOT
itself (steps 2 to 6 of the README) serve likewise where they are what a step would make.
"""
import json
import os
import shlex
import sys
from pathlib import Path

from dataset import files
from dataset.errors import InputError
from dataset.layout import Layout
from engine import adoption, checkpoints, coarse_masks, listed, networks, settings
from engine.experiments import REPOSITORY
from engine.runs import BEFORE

RECORD = 'experiment.json'
RUNS = 'runs'
HERE = '.'   # the folder of a step that ROOT itself has done
# Settings that leave what a run gives as it is. The weights themselves are looked at, not their paths.
WITHOUT_EFFECT = {'ROOT', 'RECIPE', 'RESUME', 'DEVICE', 'PICTURES_ON', 'COMPILE', 'NUM_WORKERS',
                  'PRETRAINED'}
FOR_SPEED = {'BATCH_SIZE', 'PANEL_IMAGES'}   # likewise in scripts that train nothing
SUBSETS = {'TRAIN_IMAGES': {'train_MaskCN.py': 'cls'}, 'CROPS_OF_IMAGES': {'generate_Coarse_mask.py': 'cls'}}


class Library:
    """The run folders below a root.

    root : str or Path; recipe : name, of every step; processes : of a training, more than one by torchrun
    machine : {NAME: value}, overrides of every step, such as DEVICE
    """

    HERE = HERE

    def __init__(self, root, recipe='default', processes=1, machine=None):
        self.root, self.recipe, self.processes = Path(root), recipe, processes
        self.machine = machine or {}
        self.runs = self.root / RUNS
        self._folders, self._values, self._fingerprints, self._listed = {}, {}, {}, {}

    # What a step is made from

    def values(self, step):
        """{NAME: value} of all constants that a step runs with."""
        if step not in self._values:
            self._values[step] = settings.resolved(REPOSITORY / step.script, {
                'RECIPE': self.recipe, **self.machine, **dict(step.overrides)})
        return self._values[step]

    def settings(self, step):
        """Those of `values` that decide what a step gives; a subset of all images or more counts as 0."""
        ignored = WITHOUT_EFFECT | (set() if step.network else FOR_SPEED)
        values = {name: value for name, value in json.loads(json.dumps(self.values(step))).items()
                  if name not in ignored and not name.endswith('_WEIGHTS')}
        for name, kinds in SUBSETS.items():
            if values.get(name):
                there = listed.count(self.data_root(step), kinds.get(step.script, 'seg'), 'Training')
                values[name] = 0 if 0 < there <= values[name] else values[name]
        return values

    def too_few(self, step):
        """'only N images' when a step was to train on more images than there are, else ''."""
        wanted = self.values(step).get('TRAIN_IMAGES', 0)
        kind = SUBSETS['TRAIN_IMAGES'].get(step.script, 'seg')
        there = listed.count(self.data_root(step), kind, 'Training')
        return f'there are only {there} images' if 0 < there < wanted else ''

    def made_from(self, step):
        """What identifies a run of a step: a dict for RECORD. All that it needs must be finished."""
        lists = listed.read_by(step.script, self.values(step))
        return {'script': step.script, 'settings': self.settings(step),
                'needs': [[self.folder(need), need.script, self.identity(need)] for need in step.before],
                'data': [step.data, self._fingerprint_of_lists(step, lists)],
                'pretrained': self._pretrained(step), 'processes': self.processes if step.network else 1}

    def data_root(self, step):
        """Layout of the root whose dataset/ a step reads."""
        return Layout(self.root / step.data)

    def _fingerprint_of_lists(self, step, lists):
        for kind, split in lists:
            if (step.data, kind, split) not in self._listed:
                self._listed[step.data, kind, split] = listed.fingerprint(self.data_root(step), kind, split)
        return ' '.join(self._listed[step.data, kind, split] for kind, split in lists)

    def _pretrained(self, step):
        """Fingerprint of the file of weights that a training starts from, '' for random ones."""
        values = self.values(step)
        if step.start is not None or not step.network:
            return ''
        if values['INITIAL_WEIGHTS']:
            return self.fingerprint(Path(values['INITIAL_WEIGHTS']))
        if 'PRETRAINED' not in values or values.get('START', 'pretrained') != 'pretrained':
            return ''
        named = {name.removesuffix('_WEIGHTS').lower(): path for name, path in values.items()
                 if name.endswith('_WEIGHTS') and name != 'INITIAL_WEIGHTS'}
        path = networks.choose_pretrained(values['PRETRAINED'], named)[1]
        return '' if path is None else self.fingerprint(path)

    def agrees(self, step, recorded):
        """True when recorded settings are those of a step.

        A constant that the script did not have then must have its file top's value, or what runs did
        BEFORE, so that a run stays valid when a later version of the script has one more.
        """
        return self.agrees_with({'script': step.script, 'settings': self.settings(step)}, recorded)

    @staticmethod
    def agrees_with(made_from, recorded):
        """As `agrees`, of what `made_from` gave."""
        plain = settings.read_values(REPOSITORY / made_from['script']) | BEFORE
        return isinstance(recorded, dict) and bool(recorded) and all(
            recorded.get(name, json.loads(json.dumps(plain.get(name)))) == value
            for name, value in made_from['settings'].items())

    # Where a step's run lies

    def folder(self, step):
        """Folder of a step's run relative to ROOT: an earlier one, or the name that a new one gets."""
        if step not in self._folders:
            found = self._find(step) if all(map(self._has_output, step.before)) else None
            self._folders[step] = found or self._new_folder(step)
        return self._folders[step]

    def look_again(self, step):
        """Find a step's folder anew, now that what it needs is finished."""
        self._folders.pop(step, None)
        return self.folder(step)

    def _find(self, step):
        """A finished run, else ROOT's own stage, else a run that was begun."""
        made_from, begun = self.made_from(step), None
        for path in sorted(self.runs.glob(f'*/{RECORD}')):
            record = files.read_json(path, 'made from')
            if self._same(record.get('made from', {}), made_from):
                folder = f'{RUNS}/{path.parent.name}'
                if record.get('finished') and self._outputs_exist(step, folder):
                    return folder
                begun = begun or folder
        return HERE if adoption.done_in_root(self, step, made_from) else begun

    def _same(self, recorded, made_from):
        recorded = {'processes': 1} | recorded   # before there was a record of it
        others = all(recorded.get(part) == value for part, value in made_from.items() if part != 'settings')
        return others and self.agrees_with(made_from, recorded.get('settings', {}))

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
        if not self._has_output(step) or self.folder(step) == HERE:
            return self.folder(step) == HERE
        record = files.read_json(self.root / self.folder(step) / RECORD)
        # Masks of pictures that changed, or of a split that was added, are drawn in the same folder.
        return step.script != 'generate_Coarse_mask.py' or record.get('listed') == self._everything(step)

    def _has_output(self, step):
        folder = self.folder(step)
        return folder == HERE or (bool(files.read_json(self.root / folder / RECORD).get('finished'))
                                  and self._outputs_exist(step, folder))

    def _outputs_exist(self, step, folder):
        layout = Layout(self.root / folder)
        if step.network:
            return all((layout.root / place / f'{step.network}.pth').is_file()
                       for place in self.outputs(step))
        if step.script == 'generate_Coarse_mask.py':
            return layout.coarse_masks.is_dir()
        return self.scores(step, layout).is_file()

    def _everything(self, step):
        return self._fingerprint_of_lists(step, listed.EVERYTHING)

    def scores(self, step, layout=None):
        """Path of the csv that a scoring step writes."""
        values = self.values(step)
        layout = layout or self.layout(step)
        return layout.results / f'{values.get("NETWORK", "MaskCN")}_{values["SPLIT"]}.csv'

    def seconds(self, step):
        """How long a step's run took in all, 0 where that is not known."""
        seconds = files.read_json(self.root / self.folder(step) / RECORD).get('seconds', 0)
        return seconds if type(seconds) in (int, float) and 0 <= seconds < 1e12 else 0

    def identity(self, step):
        """Text that changes with a finished step's output."""
        layout = self.layout(step)
        if step.network:
            return ' '.join(self.fingerprint(layout.root / place / f'{step.network}.pth')
                            for place in self.outputs(step))
        if step.script == 'generate_Coarse_mask.py':
            records = [files.read_json(layout.coarse_for_segmentation(split) / coarse_masks.RECORD, 'facts')
                       for split in ('Training', 'Testing')]
            return ' '.join(str(value) for value in (records[0] or records[1]).get('facts', {}).values())
        return ''

    def fingerprint(self, path):
        """Of a file's content, '' where there is none."""
        if not path.is_file():
            return ''
        key = str(path), path.stat().st_mtime_ns, path.stat().st_size
        if key not in self._fingerprints:
            self._fingerprints[key] = checkpoints.fingerprint(path)
        return self._fingerprints[key]

    def outputs(self, step):
        """Folders below its root that a step writes and others read."""
        folds = self.values(step).get('CROSS_FIT', 0) if step.network else 0
        if folds:
            return [f'models/{step.network}_fold{fold}' for fold in range(1, folds + 1)]
        if step.network:
            return [f'models/{step.network}']
        return ['Coarse_masks'] if step.script == 'generate_Coarse_mask.py' else ['results']

    # Running

    def prepare(self, step):
        """Make a step's folder with links to all that it reads, and its record."""
        folder, made_from = self.root / self.folder(step), self.made_from(step)
        folder.mkdir(parents=True, exist_ok=True)
        own = set(self.outputs(step))
        links = {'dataset': self.root / step.data / 'dataset'}
        for need in step.upstream():
            for place in self.outputs(need):
                if place == 'Coarse_masks' and need.data != step.data:
                    continue   # masks of other pictures
                if place not in own:
                    links.setdefault(place, self.root / self.folder(need) / place)
        for place, target in links.items():
            _link(folder, place, target)
        record = files.read_json(folder / RECORD)
        if record.get('made from') != made_from:
            record = {'made from': made_from, 'finished': False, 'seconds': 0}
        self._write(step, {**record, 'command': self.command(step)})

    def note(self, step, seconds, finished):
        """Add the time of a run to a step's record; finished : whether it reached its end."""
        record = files.read_json(self.root / self.folder(step) / RECORD)
        if step.script == 'generate_Coarse_mask.py':
            record['listed'] = self._everything(step)
        self._write(step, {**record, 'finished': finished, 'seconds': round(self.seconds(step) + seconds, 1)})

    def _write(self, step, record):
        files.write_text(self.root / self.folder(step) / RECORD, json.dumps(record, indent=1) + '\n')

    def arguments(self, step):
        """The words of a step's command, for subprocess."""
        launcher = [sys.executable]
        if step.network and self.processes > 1:
            launcher += ['-m', 'torch.distributed.run', f'--nproc-per-node={self.processes}']
        options = {'ROOT': self.root / self.folder(step), 'RECIPE': self.recipe, **self.machine,
                   **dict(step.overrides)}
        if step.start is not None:
            options['INITIAL_WEIGHTS'] = self.weights(step.start)
        if options['RECIPE'] == 'default':
            del options['RECIPE']
        return [*launcher, str(REPOSITORY / step.script),
                *(f'--{name}={_literal(value)}' for name, value in options.items())]

    def command(self, step):
        """A step's command as one would type it; `prepare` must have made the folder's links."""
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


def _link(folder, place, target):
    """Make <folder>/<place> a relative symbolic link to `target`, whatever link was there before."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = os.path.relpath(target.resolve(), path.parent.resolve())
    if path.is_symlink():
        if os.readlink(path) == wanted:
            return
        path.unlink()
    elif path.exists():
        raise InputError('A run folder is not as it was made', [f'{path}: is a folder, not a link'],
                         f'remove {folder}')
    path.symlink_to(wanted, target_is_directory=True)


def _literal(value):
    return ','.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
