"""Tables and figures of experiments.toml, filled from the run folders that are finished."""
from pathlib import Path

import numpy as np

from dataset import cache, isic, sources
from engine import charts, evaluation, figures, hardware, networks, panels, scores, tables
from engine.experiments import points, split_of

ROMAN = {str(number): roman for number, roman in enumerate('I II III IV V VI VII VIII IX X'.split(), 1)}
ROWS = 8   # of a figure of pictures
SELECTED = ("The validation images also chose each network's weights, so its scores on them are too high: "
            'the best of 500 validations adds 1.0 to 1.5 to JA by noise alone, more than the whole gain that '
            'the paper prints from coarse-SN to the full model, 1.1.')


class Exhibits:
    """Fills what Declarations declare from a Library.

    seeds : tuple of training seeds; failed : {Step: why it did not finish}
    """

    def __init__(self, declarations, library, seeds, failed):
        self.declarations, self.library, self.seeds, self.failed = declarations, library, seeds, failed

    # Tables

    def table(self, name):
        """The tables.Table of a declared table, with the paired differences below it."""
        declared = self.declarations.tables[name]
        split, columns = split_of(declared), declared['columns']
        rows, results = [], {}
        for row in declared['rows']:
            paper = dict(zip(columns, row.get('paper', ()), strict=False))
            by_seed, why = self._results(row, split) if 'of' in row else ({}, '')
            found = list(by_seed.values())
            rows.append(tables.Row(row['label'], {
                column: tables.make_cell(paper.get(column), found, column, why) for column in columns},
                printed='of' not in row))
            if 'of' in row:
                results[row['label']] = by_seed
        notes = [f'{row["label"]}: {row["source"]}.' for row in declared['rows'] if 'source' in row]
        notes += [*declared.get('notes', ()), *self._facts(declared['rows'], results, split)]
        for first, second in declared.get('compare', ()):
            notes += _compared(first, second, results, columns[0])
        shown = f'Table {ROMAN.get(name, name)}'
        return tables.Table(shown, declared.get('title', ''), list(columns), rows, notes)

    def _results(self, row, split):
        """({seed: Result} of the seeds that are finished, why there are none or not all)."""
        found, why = {}, ''
        for seed in self.seeds:
            steps = self.declarations.scorings(row, split, seed)
            why = why or next(filter(None, (self.library.too_few(step.needs[0]) for step in steps)), '')
            unfinished = [step for step in steps if not self.library.finished(step)]
            if unfinished:
                why = why or self.failed.get(unfinished[0], 'not run yet')
            elif not why:
                found[seed] = self._read(steps)
        return found, why

    def _read(self, steps):
        paths, labels = [], {}
        for step in steps:
            paths.append(self.library.scores(step))
            if step.script == 'eval_MaskCN.py':
                split = self.library.settings(step)['SPLIT']
                entries = isic.read_classification_list(self.library.data_root(step), split)
                labels |= {isic.image_id_of(path): label for path, label in entries}
        return scores.read(paths, labels)

    def _facts(self, rows, results, split):
        """Sentences on what the numbers are of: split, data, number of images, recipe, seeds."""
        sets = {}   # (split, data): {number of images}
        for row in rows:
            for result in results.get(row.get('label'), {}).values():
                steps = self.declarations.scorings(row, split)
                key = row.get('split', split), ', '.join(dict.fromkeys(step.data for step in steps))
                sets.setdefault(key, set()).add(result.count)
        if not sets:
            return []
        counts = '; '.join(f'{of} {data}'.strip() + f', n = {" or ".join(map(str, sorted(numbers)))} images'
                           for (of, data), numbers in sets.items())
        trained = sorted({len(by_seed) for by_seed in results.values() if by_seed})
        seeds = 'one training of each network, whose chance the intervals do not cover' if trained == [1] \
            else f'{" or ".join(map(str, trained))} training seeds'
        chosen = [SELECTED] if any(of == 'Validation' for of, _ in sets) else []
        return [f'{counts}; recipe {self.library.recipe}; {seeds}.', *chosen]

    # Figures of lines

    def chart(self, name, folder):
        """Draw a declared figure of lines; returns (paths, tables.Table of its points)."""
        declared = self.declarations.figures[name]
        split, score, drawn, table = split_of(declared), declared['score'], [], []
        every, results = iter(points(declared)), {}
        for panel in declared['panels']:
            series = []
            for line in panel['lines']:
                paper = {float(x): y for x, y in line.get('paper', {}).items()}
                cells = []
                for x in panel['x']:
                    label = f'{line["label"]}, {panel["axis"]} = {x}'
                    results[label], why = self._results(next(every), split)
                    found = list(results[label].values())
                    cells.append(tables.make_cell(paper.get(float(x)), found, score, why))
                    table.append(tables.Row(label, {score: cells[-1]}))
                places = panel['x'] if panel.get('log') else list(map(str, panel['x']))
                series.append(_series(line['label'], places, cells))
            drawn.append(charts.Panel(panel['axis'], series, panel.get('log', False)))
        paths = [Path(folder) / f'figure_{name}.{suffix}' for suffix in ('png', 'pdf')]
        charts.draw(drawn, f'{split} {score}, %', declared.get('title', ''), paths)
        rows = [{'label': label, **point} for label, point in zip(results, points(declared), strict=True)]
        return paths, tables.Table(f'Figure {name}', declared.get('title', ''), [score], table,
                                   self._facts(rows, results, split))

    # Figures of pictures

    def panel(self, name, folder):
        """Draw a declared figure of pictures, of the first seed; (paths, why there are none)."""
        declared = self.declarations.figures[name]
        split, of = split_of(declared), {key: self.declarations.step(step) for key, step in
                                         declared['of'].items()}
        scoring = self.declarations.scoring(declared['of']['enhanced mask'], split) \
            if 'enhanced mask' in of else None
        for step in (*of.values(), *filter(None, [scoring])):
            if not self.library.finished(step):
                return [], f'{step.name}: {self.failed.get(step, "not run yet")}'
        pairs = isic.read_segmentation_list(self.library.data_root(scoring or next(iter(of.values()))), split)
        coarse = self._coarse_paths(of.get('coarse mask'), split, pairs)
        maps = {key: self._maps(step, pairs, coarse) for key, step in of.items() if key.startswith('CAM')}
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

    def _coarse_paths(self, step, split, pairs):
        if step is None:
            return None
        folder = self.library.layout(step).coarse_for_segmentation(split)
        return sources.coarse_paths(self.library.layout(step), folder, [image for image, _ in pairs])

    def _maps(self, step, pairs, coarse):
        """Mask-CN's map of every picture: a list of (h, w) float32 arrays."""
        layout = self.library.layout(step)
        side = self.library.settings(step)['INPUT_SIZE']
        machine = self.library.machine
        device = hardware.choose_device(machine.get('DEVICE', 'auto'))
        classifier = networks.load_classifier(
            layout, device, hardware.choose_precision(machine.get('AMP', 'auto'), device))
        found = []
        for start in range(0, len(pairs), 16):
            batch = range(start, min(start + 16, len(pairs)))
            squares = np.stack([cache.read_rgb_square(pairs[number][0], side) for number in batch])
            masks = None
            if classifier.uses_masks:
                masks = np.stack([cache.read_mask_square(coarse[number], side) for number in batch])
            found += list(classifier(*evaluation.place(squares, masks, device))[1][:, 0].cpu().numpy())
        return found

    def _row(self, columns, number, pairs, coarse, maps, scoring, split):
        image = cache.read_rgb_square(pairs[number][0], panels.SIDE)
        pictures = {'image': image, 'truth': cache.read_mask_square(pairs[number][1], panels.SIDE)}
        pictures |= {key: found[number] for key, found in maps.items()}
        caption = pairs[number][0].stem
        if coarse is not None:
            pictures['coarse mask'] = cache.read_mask_square(coarse[number], panels.SIDE)
        if scoring is not None:
            results = self.library.layout(scoring).results
            path = evaluation.predicted_paths(results / f'EnhancedSN_{split}_masks', [caption])[0]
            pictures['enhanced mask'] = cache.read_mask_square(path, panels.SIDE)
        pictures['contours'] = figures.outlined(image, pictures['truth'],
                                                pictures.get('enhanced mask', pictures.get('coarse mask')))
        return caption, [pictures[column] for column in columns]


def _series(label, x, cells):
    """The charts.Series of a line's cells, one a place x on the axis."""
    ends = [[cell.interval and cell.interval[end] for cell in cells] for end in (0, 1)]
    return charts.Series(label, x, [cell.mean for cell in cells], *ends,
                         {place: cell.paper for place, cell in zip(x, cells, strict=True)
                          if cell.paper is not None})


def _compared(first, second, results, column):
    """A sentence on the paired difference of two rows in one column, over the seeds that both have."""
    seeds = [seed for seed in results.get(first, {}) if seed in results.get(second, {})]
    found = scores.paired_difference([results[second][seed] for seed in seeds],
                                     [results[first][seed] for seed in seeds], column) if seeds else None
    if found is None:
        return []
    least = found.p <= 2 / (found.resamples + 1)
    p = f'p {"<=" if least else "="} ' + (f'{found.p:.3f}' if found.p >= scores.SMALL_P else f'{found.p:.1g}')
    return [f'{column}, "{second}" minus "{first}", paired over images: {found.mean:+.1f} '
            f'[{found.low:+.1f}, {found.high:+.1f}], {p}.']
