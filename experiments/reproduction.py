"""Tables and figures of experiments.toml, filled from the run folders that are finished."""
from pathlib import Path

import numpy as np

from dataset import isic, splits
from engine import bootstrap, figures, hardware
from experiments import line_charts, results, tables
from experiments.declarations import points, split_of
from mbdcnn import evaluation, networks, panels
from mbdcnn.inference import maps_of_files

ROMAN = {str(number): roman for number, roman in enumerate('I II III IV V VI VII VIII IX X'.split(), 1)}
ROWS = 8   # of a figure of pictures
SELECTED = ("The validation images also chose each network's weights, so its scores on them are too high: "
            'the best of 500 validations adds 1.0 to 1.5 to JA by noise alone, more than the whole gain that '
            'the paper prints from coarse-SN to the full model, 1.1.')


class Reproduction:
    """The tables and figures that Declarations declare, with the scores and pictures of a RunStore.

    seeds : tuple of training seeds; failed : {Job: why it did not finish}
    """

    def __init__(self, declarations, store, seeds, failed):
        self.declarations, self.store, self.seeds, self.failed = declarations, store, seeds, failed

    # Tables

    def table(self, name):
        """The tables.Table of a declared table, with the paired differences below it."""
        declared = self.declarations.tables[name]
        split, columns = split_of(declared), declared['columns']
        rows, scored = [], {}
        for row in declared['rows']:
            paper = dict(zip(columns, row.get('paper', ()), strict=False))
            by_seed, why = self._results(row, split) if 'of' in row else ({}, '')
            found = list(by_seed.values())
            rows.append(tables.Row(row['label'], {
                column: tables.make_cell(paper.get(column), found, column, why) for column in columns},
                printed='of' not in row))
            if 'of' in row:
                scored[row['label']] = by_seed
        notes = [f'{row["label"]}: {row["source"]}.' for row in declared['rows'] if 'source' in row]
        notes += [*declared.get('notes', ()), *self._facts(declared['rows'], scored, split)]
        for first, second in declared.get('compare', ()):
            notes += _compared(first, second, scored, columns[0])
        shown = f'Table {ROMAN.get(name, name)}'
        return tables.Table(shown, declared.get('title', ''), list(columns), rows, notes)

    def _results(self, row, split):
        """({seed: Result} of the seeds that are finished, why there are none or not all)."""
        found, why = {}, ''
        for seed in self.seeds:
            jobs = self.declarations.scorings(row, split, seed)
            why = why or next(filter(None, (self.store.too_few(job.needs[0]) for job in jobs)), '')
            unfinished = [job for job in jobs if not self.store.finished(job)]
            if unfinished:
                why = why or self.failed.get(unfinished[0], 'not run yet')
            elif not why:
                found[seed] = self._read(jobs)
        return found, why

    def _read(self, jobs):
        paths, labels = [], {}
        for job in jobs:
            paths.append(self.store.scores(job))
            if job.script == 'eval_MaskCN.py':
                split = self.store.settings(job)['SPLIT']
                entries = isic.read_classification_list(self.store.data_root(job), split)
                labels |= {isic.image_id_of(path): label for path, label in entries}
        return results.read(paths, labels)

    def _facts(self, rows, scored, split):
        """Sentences on what the numbers are of: split, data, number of images, recipe, seeds."""
        sets = {}   # (split, data): {number of images}
        for row in rows:
            for result in scored.get(row.get('label'), {}).values():
                jobs = self.declarations.scorings(row, split)
                key = row.get('split', split), ', '.join(dict.fromkeys(job.data for job in jobs))
                sets.setdefault(key, set()).add(result.count)
        if not sets:
            return []
        counts = '; '.join(f'{of} {data}'.strip() + f', n = {" or ".join(map(str, sorted(numbers)))} images'
                           for (of, data), numbers in sets.items())
        trained = sorted({len(by_seed) for by_seed in scored.values() if by_seed})
        seeds = 'one training of each network, whose chance the intervals do not cover' if trained == [1] \
            else f'{" or ".join(map(str, trained))} training seeds'
        chosen = [SELECTED] if any(of == 'Validation' for of, _ in sets) else []
        return [f'{counts}; recipe {self.store.recipe}; {seeds}.', *chosen]

    # Figures of lines

    def chart(self, name, folder):
        """Draw a declared figure of lines; returns (paths, tables.Table of its points)."""
        declared = self.declarations.figures[name]
        split, score, drawn, table = split_of(declared), declared['score'], [], []
        every, scored = iter(points(declared)), {}
        for panel in declared['panels']:
            series = []
            for line in panel['lines']:
                paper = {float(x): y for x, y in line.get('paper', {}).items()}
                cells = []
                for x in panel['x']:
                    label = f'{line["label"]}, {panel["axis"]} = {x}'
                    scored[label], why = self._results(next(every), split)
                    found = list(scored[label].values())
                    cells.append(tables.make_cell(paper.get(float(x)), found, score, why))
                    table.append(tables.Row(label, {score: cells[-1]}))
                places = panel['x'] if panel.get('log') else list(map(str, panel['x']))
                series.append(_series(line['label'], places, cells))
            drawn.append(line_charts.Panel(panel['axis'], series, panel.get('log', False)))
        paths = [Path(folder) / f'figure_{name}.{suffix}' for suffix in ('png', 'pdf')]
        line_charts.draw(drawn, f'{split} {score}, %', declared.get('title', ''), paths)
        rows = [{'label': label, **point} for label, point in zip(scored, points(declared), strict=True)]
        return paths, tables.Table(f'Figure {name}', declared.get('title', ''), [score], table,
                                   self._facts(rows, scored, split))

    # Figures of pictures

    def panel(self, name, folder):
        """Draw a declared figure of pictures, of the first seed; (paths, why there are none)."""
        declared = self.declarations.figures[name]
        split, of = split_of(declared), {key: self.declarations.job(job) for key, job in
                                         declared['of'].items()}
        scoring = self.declarations.scoring(declared['of']['enhanced mask'], split) \
            if 'enhanced mask' in of else None
        for job in (*of.values(), *filter(None, [scoring])):
            if not self.store.finished(job):
                return [], f'{job.name}: {self.failed.get(job, "not run yet")}'
        pairs = isic.read_segmentation_list(self.store.data_root(scoring or next(iter(of.values()))), split)
        coarse = self._coarse_paths(of.get('coarse mask'), split, pairs)
        maps = {key: self._maps(job, pairs, coarse) for key, job in of.items() if key.startswith('CAM')}
        if declared['choose'] == 'maps differ' and len(maps) == 2:
            first, second = maps.values()
            order = np.argsort([-np.abs(a - b).mean() for a, b in zip(first, second, strict=True)],
                               kind='stable')
            chosen = sorted(order[:ROWS])
        else:
            chosen = panels.spread(len(pairs), ROWS)
        rows = [self._row(declared['pictures'], number, pairs, coarse, maps, scoring, split)
                for number in chosen]
        paths = [Path(folder) / f'figure_{name}.{suffix}' for suffix in ('png', 'pdf')]
        figures.panel(rows, declared['pictures'], paths)
        return paths, ''

    def _coarse_paths(self, job, split, pairs):
        if job is None:
            return None
        folder = self.store.layout(job).coarse_for_segmentation(split)
        return splits.coarse_paths(self.store.layout(job), folder, [image for image, _ in pairs])

    def _maps(self, job, pairs, coarse):
        """Mask-CN's map of every picture: a list of (h, w) float32 arrays."""
        layout = self.store.layout(job)
        side = self.store.settings(job)['INPUT_SIZE']
        machine = self.store.machine
        device = hardware.choose_device(machine.get('DEVICE', 'auto'))
        classifier = networks.load_classifier(
            layout, device, hardware.choose_precision(machine.get('AMP', 'auto'), device))
        return maps_of_files(classifier, [image for image, _ in pairs],
                             coarse if classifier.uses_masks else None, side)

    def _row(self, columns, number, pairs, coarse, maps, scoring, split):
        path, caption = pairs[number][0], pairs[number][0].stem
        masks = {'truth': pairs[number][1]}
        if coarse is not None:
            masks['coarse mask'] = coarse[number]
        if scoring is not None:
            folder = self.store.layout(scoring).results / f'EnhancedSN_{split}_masks'
            masks['enhanced mask'], = evaluation.predicted_paths(folder, [caption])
        image, found = panels.shown(path, masks.values())
        pictures = {'image': image, **dict(zip(masks, found, strict=True))}
        pictures |= {key: panels.stretched(found[number], image) for key, found in maps.items()}
        pictures['contours'] = figures.outlined(image, pictures['truth'],
                                                pictures.get('enhanced mask', pictures.get('coarse mask')))
        return caption, [pictures[column] for column in columns]


def _series(label, x, cells):
    """The line_charts.Series of a line's cells, one a place x on the axis; percent."""
    ends = [[cell.interval and 100 * cell.interval[end] for cell in cells] for end in (0, 1)]
    means = [None if cell.mean is None else 100 * cell.mean for cell in cells]
    return line_charts.Series(label, x, means, *ends, {place: 100 * cell.paper for place, cell in
                                                       zip(x, cells, strict=True) if cell.paper is not None})


def _compared(first, second, scored, column):
    """A sentence on the paired difference of two rows in one column, over the seeds that both have."""
    seeds = [seed for seed in scored.get(first, {}) if seed in scored.get(second, {})]
    found = results.paired_difference([scored[second][seed] for seed in seeds],
                                      [scored[first][seed] for seed in seeds], column) if seeds else None
    if found is None:
        return []
    mean, low, high = (f'{100 * value:+.1f}' for value in (found.mean, found.low, found.high))
    least = found.p <= 2 / (found.resamples + 1)
    p = f'p {"<=" if least else "="} {found.p:.{"3f" if found.p >= bootstrap.SMALL_P else "1g"}}'
    return [f'{column}, "{second}" minus "{first}", paired over images: {mean} [{low}, {high}], {p}.']
