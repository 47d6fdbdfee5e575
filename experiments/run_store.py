"""The run folders of experiments: which of them are there, and the commands that make the others.

A job runs below a root of its own, <ROOT>/runs/<name>/, in which everything that it reads is a link
and what it writes is a folder. A run folder is found again by what it was made from, not by its name:
script, settings, data, pretrained file and the outputs that it read. The stages that lie in ROOT
itself (stages 2 to 6 of the README) serve likewise where they are what a job would make.
"""
import itertools
import json
import os
import shlex
import sys
from pathlib import Path

from companions.weak_labels.networks import encoder_file
from dataset import folds, splits
from dataset.layout import Layout
from engine import checkpoints, files, settings
from engine.contents import Contents
from engine.errors import InputError
from experiments import inputs
from experiments.declarations import REPOSITORY
from experiments.toml_schema import DRAWERS, WEAK_EVALUATION, WEAK_TRAINING
from mbdcnn import coarse_masks, networks, stages, transfer

RECORD = 'experiment.json'
RUNS = 'runs'
HERE = '.'   # the folder of a job that ROOT itself has done
# Settings that leave what a run gives as it is. The weights themselves are looked at, not their paths.
WITHOUT_EFFECT = {'ROOT', 'RECIPE', 'RESUME', 'DEVICE', 'PICTURES_ON', 'COMPILE', 'NUM_WORKERS',
                  'PRETRAINED'}
FOR_SPEED = {'BATCH_SIZE', 'PANEL_IMAGES'}   # likewise in scripts that train nothing
SUBSETS = 'TRAIN_IMAGES', 'CROPS_OF_IMAGES'
MASKS = coarse_masks.SCRIPT


class RunStore:
    """The run folders below a root.

    root : str or Path; recipe : name, of every job; processes : of a training, more than one by torchrun
    machine : {NAME: value}, overrides of every job, such as DEVICE
    """

    def __init__(self, root, recipe='default', processes=1, machine=None):
        self.root, self.recipe, self.processes = Path(root), recipe, processes
        self.machine = machine or {}
        self.runs = self.root / RUNS
        self._folders, self._values, self._lists = {}, {}, {}
        self._contents = Contents(Layout(root).cache)

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
        values = json.loads(json.dumps(self.values(job)))
        return self._whole(job, {name: value for name, value in values.items()
                                 if name not in ignored and not name.endswith('_WEIGHTS')})

    def _whole(self, job, values):
        """Settings of a run, with 0 for a subset of all images or more; what is no record is left alone."""
        if not isinstance(values, dict):
            return values
        return values | {name: 0 for name in SUBSETS
                         if isinstance(values.get(name), int) and values[name]
                         and 0 < self._training_images(job) <= values[name]}

    def too_few(self, job):
        """'only N images' when a job is declared for more images than there are, else ''; a recipe's number
        is the most that it takes."""
        there, wanted = self._training_images(job), dict(job.overrides).get('TRAIN_IMAGES', 0)
        return f'there are only {there} images' if 0 < there < wanted else ''

    def _training_images(self, job):
        if job.script == WEAK_TRAINING:
            return inputs.count(self.data_root(job), 'weak', self.values(job)['DATA'])
        kind = 'cls' if job.script in ('train_MaskCN.py', MASKS) else 'seg'
        return inputs.count(self.data_root(job), kind, 'Training')

    def made_from(self, job):
        """What identifies a run of a job: a dict for RECORD. All that it needs must be finished."""
        lists = inputs.read_by(job.script, self.values(job))
        return {'script': job.script, 'settings': self.settings(job),
                'needs': [[self.folder(need), need.script, self.identity(need)] for need in job.before],
                'data': [job.data, self._fingerprint_of_lists(job, lists)],
                'pretrained': self._pretrained(job), 'processes': self._processes(job)}

    def _processes(self, job):
        return self.processes if job.network and not job.companion else 1

    def data_root(self, job):
        """Layout of the root whose dataset/ a job reads."""
        return Layout(self.root / job.data)

    def _fingerprint_of_lists(self, job, lists):
        for one in lists:
            if (job.data, *one) not in self._lists:
                self._lists[job.data, *one] = inputs.fingerprint(self.data_root(job), *one)
        return ' '.join(self._lists[job.data, *one] for one in lists)

    def _pretrained(self, job):
        """Fingerprint of the file of weights that a training starts from, '' for random ones."""
        values = self.values(job)
        if job.start is not None or not job.network:
            return ''
        if job.script == WEAK_TRAINING:
            path = encoder_file(values['ENCODER'], values['ENCODER_WEIGHTS'])
            return '' if path is None else self.fingerprint(path)
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
            ready = all(self._has_output(need, self.folder(need)) for need in job.before)
            self._folders[job] = (self._find(job) if ready else None) or self._new_folder(job)
        return self._folders[job]

    def look_again(self, job):
        """Find a job's folder anew, now that what it needs is finished."""
        self._folders.pop(job, None)
        return self.folder(job)

    def _find(self, job):
        """A finished run, else ROOT's own stage, else a run that was begun."""
        made_from, begun = self.made_from(job), None
        for path in sorted(self.runs.glob(f'*/{RECORD}')):
            recorded = files.read_json(path, 'made from').get('made from', {})
            same = made_from | {'settings': None} == recorded | {'settings': None}
            if same and agree(made_from, recorded['settings']):
                folder = f'{RUNS}/{path.parent.name}'
                if self._has_output(job, folder):
                    return folder
                begun = begun or folder
        return HERE if self._done_in_root(job, made_from) else begun

    def _new_folder(self, job):
        taken = set(self._folders.values())
        names = (f'{RUNS}/{job.name}' + (f'-{number}' if number > 1 else '') for number in itertools.count(1))
        return next(name for name in names if name not in taken and not (self.root / name).exists())

    def layout(self, job):
        """Layout of a job's folder."""
        return Layout(self.root / self.folder(job))

    def finished(self, job):
        """True when a job's output is complete and made from what it would now be made from."""
        folder = self.folder(job)
        # Masks of pictures that changed, or of a split that was added, are drawn in the same folder.
        outdated = folder != HERE and job.script == MASKS and (
            self.record(job).get('listed') != self._fingerprint_of_lists(job, inputs.EVERYTHING))
        return self._has_output(job, folder) and not outdated

    def _has_output(self, job, folder):
        record = files.read_json(self.root / folder / RECORD)
        written = self.written(job, Layout(self.root / folder))
        if folder == HERE or not (record.get('finished') and all(path.exists() for path in written)):
            return folder == HERE
        # Networks from elsewhere may have been copied over those that were trained here.
        return record.get('weights') in (None, self._weights(job, written))

    def _weights(self, job, written):
        return [self.fingerprint(path) for path in written] if job.network else None

    def outputs(self, job):
        """Folders below its root that a job writes and others read."""
        if job.script in DRAWERS:
            return [DRAWERS[job.script][0]]
        if not job.network:
            return ['Coarse_masks'] if job.script == MASKS else ['results']
        numbers = range(1, self.values(job).get('CROSS_FIT', 0) + 1)
        name = self._called(job)
        return [f'models/{name}_fold{number}' for number in numbers] or [f'models/{name}']

    def _called(self, job):
        """What a network's run folder, or the results of a scoring, are called."""
        values = self.values(job)
        if job.script in (WEAK_TRAINING, WEAK_EVALUATION):
            return f'WeakSN_{values["METHOD"]}'
        return job.network or values.get('NETWORK', 'MaskCN')

    def drawn(self, job):
        """True where a program drew the pictures that a job reads."""
        return inputs.drawn(self.data_root(job), inputs.read_by(job.script, self.values(job)))

    def written(self, job, layout=None):
        """What there must be when a job has ended, in its own folder or in another `layout`.

        Returns paths: of the weights of each network, of the folder of masks, of the record of what a
        companion drew, or of the csv of scores.
        """
        places = [(layout or self.layout(job)).root / place for place in self.outputs(job)]
        if job.script in DRAWERS:
            return [places[0] / DRAWERS[job.script][1]]
        if job.network:
            weights = 'G' if job.network == 'Mask2Lesion' else self._called(job)
            return [place / f'{weights}.pth' for place in places]
        return places if job.script == MASKS else [
            places[0] / f'{self._called(job)}_{self.values(job)["SPLIT"]}.csv']

    def record(self, job):
        """What is known of a job's run, a dict: 'made from', 'finished', 'seconds' in all, 'command'."""
        return {'seconds': 0} | files.read_json(self.root / self.folder(job) / RECORD)

    def identity(self, job):
        """Text that changes with the output of a finished job that others need."""
        if job.network or job.companion:
            return ' '.join(map(self.fingerprint, self.written(job)))
        records = [files.read_json(self.layout(job).coarse_for_segmentation(split) / coarse_masks.RECORD,
                                   'facts') for split in ('Training', 'Testing')]
        return ' '.join(str(value) for value in (records[0] or records[1]).get('facts', {}).values())

    def fingerprint(self, path):
        """Of a file's content, '' where there is none."""
        found = self._contents.of(path)
        self._contents.keep()
        return found

    # Stages that lie in ROOT itself: are they what a job would make of the present data?

    def _done_in_root(self, job, made_from):
        """True when ROOT's own stage is what the job would make, from ROOT's own stages and present data."""
        if job.companion or job.data or job.start or any(self.folder(need) != HERE for need in job.needs):
            return False
        done = self._drawn_in_root if job.script == MASKS else \
            self._trained_in_root if job.network else self._scored_in_root
        try:
            return done(job, made_from, Layout(self.root))
        except InputError:   # a damaged or mixed-up stage serves for nothing; its own script says why
            return False

    def _trained_in_root(self, job, made_from, layout):
        values, read = self.values(job), None
        start = made_from['pretrained'] or 'random weights'
        if job.network == 'EnhancedSN' and values.get('START') != 'pretrained':
            start = self.fingerprint(layout.weights('CoarseSN'))
        for number, weights in enumerate(self.written(job, layout), start=1):
            config = checkpoints.read_config(weights)
            recorded = config.get('settings', {})
            if not (weights.is_file() and config.get('finished') and not recorded.get('INITIAL_WEIGHTS')
                    and agree(made_from, self._whole(job, recorded)) and not config.get('earlier')
                    and start in str(config.get('start'))
                    and config.get('processes', 1) == made_from['processes']):
                return False
            training, validation = read = read or inputs.read_by_training(
                layout, job.script, values, self._reads_masks(job, layout))
            if values.get('CROSS_FIT'):
                training = folds.without(training, values['CROSS_FIT'], number, values['SEED'])
            seen = {part: str(config.get('inputs', {}).get(part)) for part in ('training', 'validation')}
            if values.get('TRANSFER') == 'mdc':   # behind them come pictures without a mask, of its mask-CN
                seen['training'] = seen['training'][:len(training.fingerprint)]
            if seen != {'training': training.fingerprint, 'validation': validation.fingerprint}:
                return False
        if job.network != 'CoarseSN':
            transfer.require(layout, values.get('TRANSFER', 'e-layer'),
                             [layout.coarse_for_segmentation('Training')],
                             ('MaskCN',) if job.network == 'MaskCN' else ('MaskCN', 'EnhancedSN'))
        return True

    def _reads_masks(self, job, layout):
        """Whether the pictures of a job have coarse masks beside them."""
        values = self.values(job)
        if job.network == 'MaskCN':
            return values['INPUT_CHANNEL'] == 4
        return values.get('TRANSFER') in networks.GUIDED and networks.maskcn_reads_masks(layout)

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
        return all(agree(made_from, self._whole(job, files.read_json(folder / coarse_masks.RECORD).get(
            'settings'))) for folder in folders)

    def _scored_in_root(self, job, made_from, layout):
        values, path = self.values(job), self.written(job, layout)[0]
        network, result = path.stem.partition('_')[0], files.read_json(path.with_suffix('.json'), 'weights')
        if not (path.is_file() and agree(made_from, result.get('settings')) and
                result.get('weights', {}).get(network) == self.fingerprint(layout.weights(network))):
            return False
        if network == 'MaskCN':
            masked = networks.maskcn_reads_masks(layout)
            data = splits.classification(layout, values['SPLIT'], values['INPUT_SIZE'], masked)
            return result.get('data') == data.fingerprint
        return result.get('data') == inputs.content(layout, 'seg', values['SPLIT'])

    # Running

    def prepare(self, job):
        """Make a job's folder with links to all that it reads, and its record."""
        folder, made_from = self.root / self.folder(job), self.made_from(job)
        folder.mkdir(parents=True, exist_ok=True)
        links = {'dataset': self.root / job.data / 'dataset'}
        if job.script in (WEAK_TRAINING, WEAK_EVALUATION):
            links['WeakLabels'] = self.root / job.data / 'WeakLabels'
        for need in job.upstream():
            if need.script != MASKS or need.data == job.data:   # else they are masks of other pictures
                for place in self.outputs(need):
                    links.setdefault(place, self.root / self.folder(need) / place)
        for place in self.outputs(job):
            links.pop(place, None)
        for place, target in links.items():
            _link(folder, place, target)
        record = self.record(job)
        if record.get('made from') != made_from:
            record = {'made from': made_from, 'finished': False, 'seconds': 0}
        self._write(job, record | {'command': self.command(job)})

    def note(self, job, seconds, finished):
        """Add the time of a run to a job's record; finished : whether it reached its end."""
        record = self.record(job)
        if job.script == MASKS:
            record['listed'] = self._fingerprint_of_lists(job, inputs.EVERYTHING)
        if finished and job.network:
            record['weights'] = self._weights(job, self.written(job))
        self._write(job, record | {'finished': finished, 'seconds': round(record['seconds'] + seconds, 1)})

    def _write(self, job, record):
        files.write_text(self.root / self.folder(job) / RECORD, json.dumps(record, indent=1) + '\n')

    def arguments(self, job):
        """The words of a job's command, for subprocess."""
        launcher = [] if self._processes(job) == 1 else [
            '-m', 'torch.distributed.run', f'--nproc-per-node={self.processes}']
        options = {'ROOT': self.root / self.folder(job), 'RECIPE': self.recipe, **self.machine,
                   **dict(job.overrides)}
        if job.start is not None:
            options['INITIAL_WEIGHTS'] = self.written(job.start)[0]
        return [sys.executable, *launcher, str(REPOSITORY / job.script),
                *(f'--{name}={settings.literal(value)}' for name, value in options.items()
                  if (name, value) != ('RECIPE', 'default'))]

    def command(self, job):
        """A job's command as one would type it; `prepare` must have made the folder's links."""
        words = [job.script if word == str(REPOSITORY / job.script) else word
                 for word in self.arguments(job)[1:]]
        return shlex.join(['torchrun', *words[2:]] if words[0] == '-m' else ['python', *words])

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
        path.unlink()
    elif path.exists():
        raise InputError('A run folder is not as it was made', [f'{path}: is a folder, not a link'],
                         f'remove {folder}')
    path.symlink_to(wanted, target_is_directory=True)
