"""The run folders of experiments: which of them are there, and the commands that make the others.

A job runs below a root of its own, <ROOT>/runs/<name>/, in which everything that it reads is a link
and what it writes is a folder. A run folder is found again by what it was made from, not by its name:
script, settings, data, pretrained file and the outputs that it read. The stages that lie in ROOT
itself (steps 2 to 6 of the README) serve likewise where they are what a job would make.
"""
import json
import os
import shlex
import sys
from pathlib import Path

from dataset import splits
from dataset.layout import Layout
from engine import checkpoints, files, settings
from engine.errors import InputError
from experiments import inputs
from experiments.declarations import REPOSITORY
from mbdcnn import coarse_masks, networks, stages, transfer

RECORD = 'experiment.json'
RUNS = 'runs'
HERE = '.'   # the folder of a job that ROOT itself has done
# Settings that leave what a run gives as it is. The weights themselves are looked at, not their paths.
WITHOUT_EFFECT = {'ROOT', 'RECIPE', 'RESUME', 'DEVICE', 'PICTURES_ON', 'COMPILE', 'NUM_WORKERS',
                  'PRETRAINED'}
FOR_SPEED = {'BATCH_SIZE', 'PANEL_IMAGES'}   # likewise in scripts that train nothing
SUBSETS = {'TRAIN_IMAGES': {'train_MaskCN.py': 'cls'}, 'CROPS_OF_IMAGES': {'generate_Coarse_mask.py': 'cls'}}


class RunStore:
    """The run folders below a root.

    root : str or Path; recipe : name, of every job; processes : of a training, more than one by torchrun
    machine : {NAME: value}, overrides of every job, such as DEVICE
    """

    def __init__(self, root, recipe='default', processes=1, machine=None):
        self.root, self.recipe, self.processes = Path(root), recipe, processes
        self.machine = machine or {}
        self.runs = self.root / RUNS
        self._folders, self._values, self._fingerprints, self._lists = {}, {}, {}, {}

    # What a job is made from

    def values(self, job):
        """{NAME: value} of all constants that a job runs with."""
        if job not in self._values:
            self._values[job] = settings.resolved(REPOSITORY / job.script, {
                'RECIPE': self.recipe, **self.machine, **dict(job.overrides)})
        return self._values[job]

    def settings(self, job):
        """Those of `values` that decide what a job gives; a subset of all images or more counts as 0."""
        ignored = WITHOUT_EFFECT | (set() if job.network else FOR_SPEED)
        values = {name: value for name, value in json.loads(json.dumps(self.values(job))).items()
                  if name not in ignored and not name.endswith('_WEIGHTS')}
        for name, kinds in SUBSETS.items():
            if values.get(name):
                there = inputs.count(self.data_root(job), kinds.get(job.script, 'seg'), 'Training')
                values[name] = 0 if 0 < there <= values[name] else values[name]
        return values

    def too_few(self, job):
        """'only N images' when a job was to train on more images than there are, else ''."""
        wanted = self.values(job).get('TRAIN_IMAGES', 0)
        kind = SUBSETS['TRAIN_IMAGES'].get(job.script, 'seg')
        there = inputs.count(self.data_root(job), kind, 'Training')
        return f'there are only {there} images' if 0 < there < wanted else ''

    def made_from(self, job):
        """What identifies a run of a job: a dict for RECORD. All that it needs must be finished."""
        lists = inputs.read_by(job.script, self.values(job))
        return {'script': job.script, 'settings': self.settings(job),
                'needs': [[self.folder(need), need.script, self.identity(need)] for need in job.before],
                'data': [job.data, self._fingerprint_of_lists(job, lists)],
                'pretrained': self._pretrained(job), 'processes': self.processes if job.network else 1}

    def data_root(self, job):
        """Layout of the root whose dataset/ a job reads."""
        return Layout(self.root / job.data)

    def _fingerprint_of_lists(self, job, lists, of=inputs.fingerprint):
        keys = [(job.data, *one, of) for one in lists]
        for key in keys:
            if key not in self._lists:
                self._lists[key] = of(self.data_root(job), *key[1:3])
        return ' '.join(self._lists[key] for key in keys)

    def _pretrained(self, job):
        """Fingerprint of the file of weights that a training starts from, '' for random ones."""
        values = self.values(job)
        if job.start is not None or not job.network:
            return ''
        if values['INITIAL_WEIGHTS']:
            return self.fingerprint(Path(values['INITIAL_WEIGHTS']))
        if 'PRETRAINED' not in values or values.get('START', 'pretrained') != 'pretrained':
            return ''
        named = {name.removesuffix('_WEIGHTS').lower(): path for name, path in values.items()
                 if name.endswith('_WEIGHTS') and name != 'INITIAL_WEIGHTS'}
        path = networks.choose_pretrained(values['PRETRAINED'], named)[1]
        return '' if path is None else self.fingerprint(path)

    # Where a job's run lies

    def folder(self, job):
        """Folder of a job's run relative to ROOT: an earlier one, or the name that a new one gets."""
        if job not in self._folders:
            found = self._find(job) if all(map(self._has_output, job.before)) else None
            self._folders[job] = found or self._new_folder(job)
        return self._folders[job]

    def look_again(self, job):
        """Find a job's folder anew, now that what it needs is finished."""
        self._folders.pop(job, None)
        return self.folder(job)

    def _find(self, job):
        """A finished run, else ROOT's own stage, else a run that was begun."""
        made_from, begun = self.made_from(job), None
        # Runs of earlier versions recorded sizes and times of their pictures instead of the content.
        lists = inputs.read_by(job.script, self.values(job))
        formerly = made_from | {'data': [job.data, self._fingerprint_of_lists(job, lists, inputs.stamp)]}
        for path in sorted(self.runs.glob(f'*/{RECORD}')):
            record = files.read_json(path, 'made from')
            if any(self._same(record.get('made from', {}), wanted) for wanted in (made_from, formerly)):
                folder = f'{RUNS}/{path.parent.name}'
                if record.get('finished') and self._outputs_exist(job, folder):
                    return folder
                begun = begun or folder
        return HERE if self._done_in_root(job, made_from) else begun

    def _same(self, recorded, made_from):
        recorded = {'processes': 1} | recorded   # before there was a record of it
        others = all(recorded.get(part) == value for part, value in made_from.items() if part != 'settings')
        return others and agree(made_from, recorded.get('settings', {}))

    def _new_folder(self, job):
        taken, number = set(self._folders.values()), 1
        while True:
            name = f'{RUNS}/{job.name}' + (f'-{number}' if number > 1 else '')
            if name not in taken and not (self.root / name).exists():
                return name
            number += 1

    def layout(self, job):
        """Layout of a job's folder."""
        return Layout(self.root / self.folder(job))

    def weights(self, job):
        """Path of the weights that a training step writes."""
        return self.layout(job).weights(job.network)

    def finished(self, job):
        """True when a job's output is complete and made from what it would now be made from."""
        if not self._has_output(job) or self.folder(job) == HERE:
            return self.folder(job) == HERE
        record = files.read_json(self.root / self.folder(job) / RECORD)
        # Masks of pictures that changed, or of a split that was added, are drawn in the same folder.
        return job.script != 'generate_Coarse_mask.py' or any(
            record.get('listed') == self._fingerprint_of_lists(job, inputs.EVERYTHING, of)
            for of in (inputs.fingerprint, inputs.stamp))

    def _has_output(self, job):
        folder = self.folder(job)
        return folder == HERE or (bool(files.read_json(self.root / folder / RECORD).get('finished'))
                                  and self._outputs_exist(job, folder))

    def _outputs_exist(self, job, folder):
        layout = Layout(self.root / folder)
        if job.network:
            return all((layout.root / place / f'{job.network}.pth').is_file()
                       for place in self.outputs(job))
        if job.script == 'generate_Coarse_mask.py':
            return layout.coarse_masks.is_dir()
        return self.scores(job, layout).is_file()

    def scores(self, job, layout=None):
        """Path of the csv that a scoring job writes."""
        values = self.values(job)
        layout = layout or self.layout(job)
        return layout.results / f'{values.get("NETWORK", "MaskCN")}_{values["SPLIT"]}.csv'

    def seconds(self, job):
        """How long a job's run took in all, 0 where that is not known."""
        return files.read_json(self.root / self.folder(job) / RECORD).get('seconds', 0)

    def identity(self, job):
        """Text that changes with a finished job's output."""
        layout = self.layout(job)
        if job.network:
            return ' '.join(self.fingerprint(layout.root / place / f'{job.network}.pth')
                            for place in self.outputs(job))
        if job.script == 'generate_Coarse_mask.py':
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
            self._fingerprints[key] = files.fingerprint(path)
        return self._fingerprints[key]

    def outputs(self, job):
        """Folders below its root that a job writes and others read."""
        folds = self.values(job).get('CROSS_FIT', 0) if job.network else 0
        if folds:
            return [f'models/{job.network}_fold{fold}' for fold in range(1, folds + 1)]
        if job.network:
            return [f'models/{job.network}']
        return ['Coarse_masks'] if job.script == 'generate_Coarse_mask.py' else ['results']

    # Stages that lie in ROOT itself: are they what a job would make of the present data?

    def _done_in_root(self, job, made_from):
        """True when ROOT's own stage is what the job would make, from ROOT's own stages and present data."""
        if job.data or job.start or any(self.folder(need) != HERE for need in job.needs):
            return False
        done = self._drawn_in_root if job.script == 'generate_Coarse_mask.py' else \
            self._trained_in_root if job.network else self._scored_in_root
        try:
            return done(job, made_from, Layout(self.root))
        except InputError:   # a damaged or mixed-up stage serves for nothing; its own script says why
            return False

    def _trained_in_root(self, job, made_from, layout):
        values, pixels = self.values(job), None
        start = made_from['pretrained'] or 'random weights'
        if job.network == 'EnhancedSN' and values.get('START') != 'pretrained':
            start = self.fingerprint(layout.weights('CoarseSN'))
        for place in self.outputs(job):
            weights = layout.root / place / f'{job.network}.pth'
            config = checkpoints.read_config(weights)
            recorded = config.get('settings', {})
            if not (weights.is_file() and config.get('finished') and not recorded.get('INITIAL_WEIGHTS')
                    and agree(made_from, recorded) and start in str(config.get('start'))
                    and config.get('processes', 1) == made_from['processes']):
                return False
            pixels = pixels or inputs.pixels(layout, job.script, values)
            seen = [config.get('inputs', {}).get(part, '') for part in ('training', 'validation')]
            if not pixels <= set('-'.join(seen).split('-')):
                return False
        if job.network == 'CoarseSN' or values.get('TRANSFER') == 'none' or (
                job.network == 'MaskCN' and values['INPUT_CHANNEL'] == 3):
            return True
        names = ('MaskCN',) if job.network == 'MaskCN' else ('MaskCN', 'EnhancedSN')
        transfer.require(layout, values.get('TRANSFER', 'e-layer'),
                         [layout.coarse_for_segmentation('Training')], names)
        return True

    def _drawn_in_root(self, job, made_from, layout):
        values, folders = self.values(job), []
        for kind, split in inputs.EVERYTHING:
            if inputs.path_of(layout, kind, split).is_file():
                entries = inputs.READERS[kind](layout, split)
                if (kind, split) == ('cls', 'Training'):
                    entries = splits.crops_of_subset(entries, values['CROPS_OF_IMAGES'], values['SEED'])
                folders.append(layout.coarse_for_segmentation(split) if kind == 'seg' else
                               layout.coarse_for_classification(split))
                splits.coarse_paths(layout, folders[-1], [picture for picture, _ in entries])
        coarse_masks.require(layout, folders)
        return all(agree(made_from, files.read_json(folder / coarse_masks.RECORD).get('settings', {}))
                   for folder in folders)

    def _scored_in_root(self, job, made_from, layout):
        values, path = self.values(job), self.scores(job, layout).with_suffix('.json')
        network, result = path.stem.partition('_')[0], files.read_json(path, 'weights')
        if not (path.with_suffix('.csv').is_file() and agree(made_from, result.get('settings', {})) and
                result.get('weights', {}).get(network) == self.fingerprint(layout.weights(network))):
            return False
        if network == 'MaskCN':
            return inputs.pixels(layout, job.script, values) <= set(str(result.get('data')).split('-'))
        return result.get('data') == inputs.content(layout, 'seg', values['SPLIT'])

    # Running

    def prepare(self, job):
        """Make a job's folder with links to all that it reads, and its record."""
        folder, made_from = self.root / self.folder(job), self.made_from(job)
        folder.mkdir(parents=True, exist_ok=True)
        own = set(self.outputs(job))
        links = {'dataset': self.root / job.data / 'dataset'}
        for need in job.upstream():
            for place in self.outputs(need):
                if place == 'Coarse_masks' and need.data != job.data:
                    continue   # masks of other pictures
                if place not in own:
                    links.setdefault(place, self.root / self.folder(need) / place)
        for place, target in links.items():
            _link(folder, place, target)
        record = files.read_json(folder / RECORD)
        if record.get('made from') != made_from:
            record = {'made from': made_from, 'finished': False, 'seconds': 0}
        self._write(job, {**record, 'command': self.command(job)})

    def note(self, job, seconds, finished):
        """Add the time of a run to a job's record; finished : whether it reached its end."""
        record = files.read_json(self.root / self.folder(job) / RECORD)
        if job.script == 'generate_Coarse_mask.py':
            record['listed'] = self._fingerprint_of_lists(job, inputs.EVERYTHING)
        self._write(job, {**record, 'finished': finished, 'seconds': round(self.seconds(job) + seconds, 1)})

    def _write(self, job, record):
        files.write_text(self.root / self.folder(job) / RECORD, json.dumps(record, indent=1) + '\n')

    def arguments(self, job):
        """The words of a job's command, for subprocess."""
        launcher = [sys.executable]
        if job.network and self.processes > 1:
            launcher += ['-m', 'torch.distributed.run', f'--nproc-per-node={self.processes}']
        options = {'ROOT': self.root / self.folder(job), 'RECIPE': self.recipe, **self.machine,
                   **dict(job.overrides)}
        if job.start is not None:
            options['INITIAL_WEIGHTS'] = self.weights(job.start)
        if options['RECIPE'] == 'default':
            del options['RECIPE']
        return [*launcher, str(REPOSITORY / job.script),
                *(f'--{name}={_literal(value)}' for name, value in options.items())]

    def command(self, job):
        """A job's command as one would type it; `prepare` must have made the folder's links."""
        words = [job.script if word == str(REPOSITORY / job.script) else word
                 for word in self.arguments(job)[1:]]
        if words[0] == '-m':
            return shlex.join(['torchrun', *words[2:]])
        return shlex.join(['python', *words])

    def unused(self, jobs):
        """Run folders that none of these jobs is: [name]."""
        used = {self.folder(job) for job in jobs}
        return [path.parent.name for path in sorted(self.runs.glob(f'*/{RECORD}'))
                if f'{RUNS}/{path.parent.name}' not in used]


def agree(made_from, recorded):
    """True when recorded settings are those that a job is made from (RunStore.made_from).

    A constant that the script did not have then must have its file top's value, or what runs did
    stages.BEFORE, so that a run stays valid when a later version of the script has one more.
    """
    plain = settings.read_values(REPOSITORY / made_from['script']) | stages.BEFORE
    return isinstance(recorded, dict) and bool(recorded) and all(
        recorded.get(name, json.loads(json.dumps(plain.get(name)))) == value
        for name, value in made_from['settings'].items())


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
