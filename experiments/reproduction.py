"""Tables and figures of experiments.toml, filled from the run folders that are finished."""
import itertools
from pathlib import Path

import numpy as np

from dataset import isic, splits
from dataset.layout import Layout
from engine import bootstrap, checkpoints, figures, hardware, scoring
from experiments import line_charts, results, tables
from experiments.declarations import points, split_of
from mbdcnn import evaluation, networks, panels
from mbdcnn.inference import maps_of_files

ROMAN = {str(number): roman for number, roman in enumerate('I II III IV V VI VII VIII IX X'.split(), 1)}
ROWS = 8   # of a figure of pictures
# The largest of 500 normal values lies 3.0 deviations above their mean on average. JA of one network's late
# validations has a deviation of 0.2 to 0.5 in docs/measurements.md.
LUCK = (': JA by 0.6 to 1.5 for the best of the 500 validations that the paper has, by noise alone, where it '
        'prints a gain of 1.1 from coarse-SN to the full model')


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
            by_seed, why = self._results(row, split) if 'of' in row else self._of_folder(row, split)
            found = list(by_seed.values())
            rows.append(tables.Row(row['label'], {
                column: tables.make_cell(paper.get(column), found, column, why) for column in columns},
                printed='of' not in row and 'masks' not in row))
            if not rows[-1].printed:
                scored[row['label']] = by_seed
        notes = [f'{row["label"]}: {row["source"]}.' for row in declared['rows'] if 'source' in row]
        for row in declared['rows']:
            notes += self._kept_starts(row, split) if 'of' in row else []
        notes += [*declared.get('notes', ()), *self._facts(declared['rows'], scored, split, columns)]
        pairs = declared.get('compare', ())
        tests = [note for pair in pairs for note in _compared(*pair, scored, columns[0])]
        if tests:
            counts = [result.count for label in itertools.chain(*pairs)
                      for result in scored.get(label, {}).values()]
            notes += [*tests, f'p is not corrected for the number of pairs{bootstrap.of_few(min(counts))}.']
        shown = f'Table {ROMAN.get(name, name)}'
        return tables.Table(shown, declared.get('title', ''), list(columns), rows, notes, name in ROMAN)

    def _results(self, row, split):
        """({seed: Result} of the seeds that are finished, why there are none or not all)."""
        found, why = {}, ''
        for seed in self.seeds:
            jobs = self.declarations.scorings(row, split, seed)
            trained = [next(iter(job.needs), job) for job in jobs]
            without = next(filter(None, map(self.store.too_few, trained)), '')
            unfinished = [job for job in jobs if not self.store.finished(job)]
            if unfinished:
                without = without or self.failed.get(unfinished[0], 'not run yet')
            elif not without:
                labels = {}
                for job in jobs if jobs[0].script == 'eval_MaskCN.py' else ():
                    listed = isic.read_classification_list(self.store.data_root(job), row.get('split', split))
                    labels |= {isic.image_id_of(path): label for path, label in listed}
                found[seed] = results.read([self.store.written(job)[0] for job in jobs], labels)
            why = why or without
        return found, why

    def _kept_starts(self, row, split):
        """A sentence where fine-tuning kept the weights that it began with, [] where it bettered all."""
        tuned = [job.needs[0] for seed in self.seeds for job in self.declarations.scorings(row, split, seed)
                 if job.needs and job.needs[0].start and self.store.finished(job)]
        configs = [checkpoints.read_config(self.store.layout(job).weights(job.network)) for job in tuned]
        kept = sum(config.get('finished', {}).get('best_step') == 0 for config in configs)
        return [f'{row["label"]}: {kept} of {len(tuned)} trainings kept the weights that they began with.'
                ] if kept else []

    def _of_folder(self, row, split):
        """As `_results`, of a row's folder of masks, whoever drew them: one training, for all that is known.

        Raises InputError with every mask that is missing, of no image, or of another size than the truth.
        """
        if 'masks' not in row:
            return {}, ''
        root, split = Layout(self.store.root), row.get('split', split)
        folder = root.root / row['masks']
        if not folder.is_dir():
            return {}, f'{row["masks"]} is not there'
        truths = {image.stem: truth for image, truth in isic.read_segmentation_list(root, split)}
        values, = scoring.score_folders({row['label']: folder}, truths).values()
        return {self.seeds[0]: results.Result('segmentation', (
            results.Part(tuple(truths), values, source=str(folder)),))}, ''

    def _facts(self, rows, scored, split, columns):
        """Sentences on what the numbers in `columns` are of: split, data, number of images, recipe, seeds."""
        sets, drawn = {}, False   # (split, data): {number of images}
        for row in rows:
            for result in scored.get(row.get('label'), {}).values():
                jobs = self.declarations.scorings(row, split) if 'of' in row else []
                drawn |= not jobs and Layout(self.store.root).drawn
                key = row.get('split', split), ', '.join(dict.fromkeys(job.data for job in jobs if job.data))
                sets.setdefault(key, set()).add(result.count)
                drawn |= any(map(self.store.drawn, jobs))
        if not sets:
            return []
        counts = '; '.join(f'{of} {data}'.strip() + f', n = {" or ".join(map(str, sorted(numbers)))} images'
                           for (of, data), numbers in sets.items())
        trained = ' or '.join(map(str, sorted({len(by_seed) for by_seed in scored.values() if by_seed})))
        seeds = f'{trained} training seeds' if trained != '1' else \
            'one training of each network, whose chance the intervals do not cover'
        selected = scoring.SELECTED.format(LUCK if 'JA' in columns else '')
        chosen = [selected] if any(of == 'Validation' for of, _ in sets) else []
        first = [evaluation.DRAWN_PICTURES] if drawn else []
        return [*first, f'{counts}; recipe {self.store.recipe}; {seeds}.', *chosen]

    # Figures

    def chart(self, name, folder):
        """Draw a declared figure of lines; returns (paths, tables.Table of its points)."""
        declared = self.declarations.figures[name]
        split, score, title = split_of(declared), declared['score'], declared.get('title', '')
        drawn, rows, every, scored = [], [], points(declared), {}
        for panel in declared['panels']:
            series = []
            for line in panel['lines']:
                paper = {float(x): y for x, y in line.get('paper', {}).items()}
                cells = []
                for x in panel['x']:
                    label = f'{line["label"]}, {panel["axis"]} = {x}'
                    scored[label], why = self._results(every[len(rows)], split)
                    found = list(scored[label].values())
                    cells.append(tables.make_cell(paper.get(float(x)), found, score, why))
                    rows.append(tables.Row(label, {score: cells[-1]}))
                places = panel['x'] if panel.get('log') else list(map(str, panel['x']))
                series.append(_series(line['label'], places, cells))
            drawn.append(line_charts.Panel(panel['axis'], series, panel.get('log', False)))
        paths = _paths(name, folder)
        line_charts.draw(drawn, f'{split} {score}, %', title, paths)
        facts = self._facts([point | {'label': row.label} for row, point in zip(rows, every, strict=True)],
                            scored, split, [score])
        return paths, tables.Table(f'Figure {name}', title, [score], rows, facts, name.isdigit())

    def panel(self, name, folder):
        """Draw a declared figure of pictures, of the first seed; (paths, why there are none)."""
        declared = self.declarations.figures[name]
        split, columns = split_of(declared), declared['pictures']
        of = self.declarations.pictured(declared)
        for job in of.values():
            if not self.store.finished(job):
                return [], f'{job.name}: {self.failed.get(job, "not run yet")}'
        data = self.store.data_root(of.get('enhanced mask', next(iter(of.values()))))
        pairs = isic.read_segmentation_list(data, split)
        masks = {'truth': [truth for _, truth in pairs]}
        if 'coarse mask' in of:
            layout = self.store.layout(of['coarse mask'])
            masks['coarse mask'] = splits.coarse_paths(layout, layout.coarse_for_segmentation(split),
                                                       [image for image, _ in pairs])
        if 'enhanced mask' in of:
            drawn = self.store.layout(of['enhanced mask']).results / f'EnhancedSN_{split}_masks'
            if why := scoring.incomplete(drawn):   # a scoring of before may be finished all the same
                return [], why
            masks['enhanced mask'] = evaluation.predicted_paths(drawn, [image.stem for image, _ in pairs])
        maps = {key: self._maps(job, pairs, masks.get('coarse mask')) for key, job in of.items()
                if key.startswith('CAM')}
        chosen = panels.spread(len(pairs), ROWS)
        if declared['choose'] == 'maps differ' and len(maps) == 2:
            differ = [-np.abs(a - b).mean() for a, b in zip(*maps.values(), strict=True)]
            chosen = sorted(np.argsort(differ, kind='stable')[:ROWS])
        rows = []
        for number in chosen:
            image, found = panels.shown(pairs[number][0], [paths[number] for paths in masks.values()])
            shown = {'image': image, **dict(zip(masks, found, strict=True))}
            shown |= {key: panels.stretched(drawn[number], image) for key, drawn in maps.items()}
            shown['contours'] = figures.outlined(image, shown['truth'],
                                                 shown.get('enhanced mask', shown.get('coarse mask')))
            rows.append((pairs[number][0].stem, [shown[column] for column in columns]))
        paths = _paths(name, folder)
        figures.panel(rows, columns, paths)
        return paths, ''

    def _maps(self, job, pairs, coarse):
        """Mask-CN's map of every picture: a list of (h, w) float32 arrays."""
        machine = self.store.machine
        device = hardware.choose_device(machine.get('DEVICE', 'auto'))
        classifier = networks.load_classifier(
            self.store.layout(job), device, hardware.choose_precision(machine.get('AMP', 'auto'), device))
        return maps_of_files(classifier, [image for image, _ in pairs],
                             coarse if classifier.uses_masks else None, self.store.values(job)['INPUT_SIZE'])


def _paths(name, folder):
    return [Path(folder) / f'figure_{name}.{suffix}' for suffix in ('png', 'pdf')]


def _series(label, x, cells):
    """The line_charts.Series of a line's cells, one a place x on the axis; percent, or pixels."""
    ends = [[cell.interval and cell.scale * cell.interval[end] for cell in cells] for end in (0, 1)]
    means = [None if cell.mean is None else cell.scale * cell.mean for cell in cells]
    return line_charts.Series(label, x, means, *ends, {place: cell.scale * cell.paper for place, cell in
                                                       zip(x, cells, strict=True) if cell.paper is not None})


def _compared(first, second, scored, column):
    """A sentence on the paired difference of two rows in one column, over the seeds that both have."""
    seeds = [seed for seed in scored.get(first, {}) if seed in scored.get(second, {})]
    found = results.paired_difference([scored[second][seed] for seed in seeds],
                                      [scored[first][seed] for seed in seeds], column) if seeds else None
    if found is None:
        return []
    scale = results.scale(column)
    more = any(len(scored[label]) > len(seeds) for label in (first, second))
    alone = f' of seed {", ".join(map(str, seeds))} alone' if more else ''
    mean, low, high = (f'{scale * value:+.1f}' for value in (found.mean, found.low, found.high))
    return [f'{column}, "{second}" minus "{first}"{alone}, paired over images: {mean} [{low}, {high}], '
            f'{bootstrap.p_in_words(found)}.']
