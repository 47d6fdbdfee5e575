"""What a report is made of: evaluations, training logs and configurations below a root."""
import csv
from dataclasses import dataclass

import numpy as np

from dataset import isic
from engine import files, run_folder
from engine.errors import InputError
from experiments.results import read_csv

SPLITS = 'Testing', 'Validation'
NETWORKS = 'CoarseSN', 'MaskCN', 'EnhancedSN'


@dataclass
class Evaluation:
    """One evaluation's files.

    summary : dict, the json; names : image ids; values : (N, 5) scores or (N, 3) probabilities of
    the csv; labels : (N,) class numbers of mask-CN's images. The last three are None where `faults`
    (text) says why.
    """
    summary: dict
    names: list | None = None
    values: np.ndarray | None = None
    labels: np.ndarray | None = None
    faults: str = ''


@dataclass
class Experiment:
    """What lies below a root.

    evaluations : {(network, split): Evaluation}; rows, configs : {network: metrics.jsonl, config.json}
    damaged : lines about files that cannot be read
    """
    layout: object
    evaluations: dict
    rows: dict
    configs: dict
    damaged: list

    @property
    def splits(self):
        """The splits with any evaluation; Testing where there is none at all."""
        return [split for split in SPLITS if any(key[1] == split for key in self.evaluations)] or ['Testing']

    def of(self, network):
        """[(split, Evaluation)] of a network."""
        return [(split, item) for (name, split), item in self.evaluations.items() if name == network]


def gather(layout):
    """Read results/ and models/ into an Experiment; what cannot be read is left out and named."""
    found = Experiment(layout, {}, {}, {}, [])
    for network in NETWORKS:
        for split in SPLITS:
            path = layout.results / f'{network}_{split}.json'
            summary = _read(path, _summary, found.damaged)
            if summary is not None:
                found.evaluations[network, split] = _evaluation(layout, network, split, path, summary)
        rows = _read(layout.run(network) / 'metrics.jsonl', run_folder.read_rows, found.damaged)
        config = _read(layout.run(network) / 'config.json', _json, found.damaged)
        found.rows |= {network: rows} if rows else {}
        found.configs |= {network: config} if config is not None else {}
    return found


def _read(path, parse, damaged):
    """parse(path), or None where it is missing, or damaged: then with a line about it."""
    try:
        return parse(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, csv.Error) as error:
        damaged.append(f'{path.parent.name}/{path.name}: cannot be read ({error})')
        return None


def _json(path):
    return files.json_object(path.read_text(encoding='utf-8'), 'settings')


def _summary(path):
    summary = _json(path)
    summary['n']   # KeyError where it is no evaluation's
    return summary


def _evaluation(layout, network, split, path, summary):
    """Join an evaluation's json with its csv and, for mask-CN, with the labels."""
    damaged = []
    rows = _read(path.with_suffix('.csv'), read_csv, damaged)
    if rows is None:
        return Evaluation(summary, faults=(damaged or [f'{path.stem}.csv is missing'])[0])
    _, names, values = rows
    if len(names) != summary['n']:
        return Evaluation(summary, faults=f'{path.stem}.csv and .json are not of one evaluation')
    labels, faults = _labels(layout, split, names) if network == 'MaskCN' else (None, '')
    return Evaluation(summary, names, values, labels, faults)


def _labels(layout, split, names):
    """((N,) class numbers, '') or (None, why there are none)."""
    try:
        known = isic.read_labels(layout.labels(split))
    except InputError as error:
        return None, f'the labels cannot be read: {error.faults[0]}'
    absent = [name for name in names if name not in known]
    if absent:
        return None, f'{layout.labels(split).name} has no row for {absent[0]}'
    return np.array([known[name] for name in names]), ''
