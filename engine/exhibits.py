"""Tables and figures of experiments.toml, filled from the run folders that are finished."""
from pathlib import Path

import numpy as np

from dataset import cache, isic, sources
from dataset.layout import Layout
from engine import charts, evaluation, figures, hardware, networks, panels, scores, tables
from engine.experiments import points, split_of

ROMAN = {str(number): roman for number, roman in enumerate('I II III IV V VI VII VIII IX X'.split(), 1)}
ROWS = 8   # of a figure of pictures


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
            if 'of' not in row:
                rows.append(tables.Row(row['label'], {column: tables.make_cell(paper.get(column), [], column)
                                                      for column in columns}, printed=True))
                continue
            results[row['label']], why = self._results(row, split)
            rows.append(tables.Row(row['label'], {
                column: tables.make_cell(paper.get(column), results[row['label']], column, why)
                for column in columns}))
        notes = self._sources(declared) + self._facts(results, split)
        for first, second in declared.get('compare', ()):
            notes += self._compared(first, second, results, columns[0])
        shown = f'Table {ROMAN.get(name, name)}'
        return tables.Table(shown, declared.get('title', ''), list(columns), rows, notes)

    def _results(self, row, split):
        """([Result, one a seed], why there are none); the seeds that are finished."""
        found, why = [], ''
        for seed in self.seeds:
            steps = self.declarations.scorings(row, split, seed)
            unfinished = [step for step in steps if not self.library.finished(step)]
            if unfinished:
                why = self.failed.get(unfinished[0], 'not run yet')
            else:
                found.append(self._read(steps))
        return found, why

    def _read(self, steps):
        paths, labels = [], {}
        for step in steps:
            settings = self.library.settings(step)
            network = settings.get('NETWORK', 'MaskCN')
            paths.append(self.library.layout(step).results / f'{network}_{settings["SPLIT"]}.csv')
            if network == 'MaskCN':
                entries = isic.read_classification_list(self.library.data_root(step), settings['SPLIT'])
                labels |= {isic.image_id_of(path): label for path, label in entries}
        return scores.read(paths, labels)

    @staticmethod
    def _sources(declared):
        return [f'{row["label"]}: {row["source"]}.' for row in declared['rows'] if 'source' in row]

    def _facts(self, results, split):
        """What the numbers are of: split, number of images, recipe, seeds."""
        counts = sorted({result.count for one in results.values() for result in one})
        if not counts:
            return []
        images = ' and '.join(map(str, counts))
        seeds = (f'{len(self.seeds)} training seeds' if len(self.seeds) > 1 else
                 'one training of each network, whose chance the intervals do not cover')
        return [f'{split}, n = {images} images; recipe {self.library.recipe}; {seeds}.']

    def _compared(self, first, second, results, column):
        """A sentence on the paired difference of two rows in one column."""
        a, b = results.get(second), results.get(first)
        if not a or not b or len(a) != len(b):
            return []
        found = scores.paired_difference(a, b, column)
        if found is None:
            return []
        return [f'{column}, "{second}" minus "{first}", paired over images: {found.mean:+.1f} '
                f'[{found.low:+.1f}, {found.high:+.1f}], p = {found.p:.3f}.']

    # Figures of lines

    def chart(self, name, folder):
        """Draw a declared figure of lines; returns (paths, tables.Table of its points)."""
        declared = self.declarations.figures[name]
        split, score, panels_drawn, rows = split_of(declared), declared['score'], [], []
        every, results = iter(points(declared)), {}
        for panel in declared['panels']:
            series = []
            for line in panel['lines']:
                paper = {float(x): y for x, y in line.get('paper', {}).items()}
                cells = []
                for x in panel['x']:
                    found, why = self._results(next(every), split)
                    cells.append(tables.make_cell(paper.get(float(x)), found, score, why))
                    label = f'{line["label"]}, {panel["axis"]} = {x}'
                    rows.append(tables.Row(label, {score: cells[-1]}))
                    results[label] = found
                series.append(charts.Series(
                    line['label'], [str(x) for x in panel['x']], [cell.mean for cell in cells],
                    [cell.interval and cell.interval[0] for cell in cells],
                    [cell.interval and cell.interval[1] for cell in cells],
                    {str(x): paper[float(x)] for x in panel['x'] if float(x) in paper}))
            panels_drawn.append(charts.Panel(panel['axis'], series))
        paths = [Path(folder) / f'figure_{name}.{suffix}' for suffix in ('png', 'pdf')]
        charts.draw(panels_drawn, f'{split} {score}, %', declared.get('title', ''), paths)
        notes = self._facts(results, split)
        return paths, tables.Table(f'Figure {name}', declared.get('title', ''), [score], rows, notes)

    # Figures of pictures

    def panel(self, name, folder):
        """Draw a declared figure of pictures of the first seed; its paths, or none when runs are missing."""
        declared = self.declarations.figures[name]
        split, of = split_of(declared), {key: self.declarations.step(step) for key, step in
                                         declared['of'].items()}
        scoring = self.declarations.scoring(declared['of']['enhanced mask'], split) \
            if 'enhanced mask' in of else None
        if not all(self.library.finished(step) for step in (*of.values(), *filter(None, [scoring]))):
            return []
        pairs = isic.read_segmentation_list(Layout(self.library.root), split)
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
        return paths

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
