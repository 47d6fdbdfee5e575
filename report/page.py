"""One self-contained page, results/report.html, of everything that lies in results/ and models/."""
import csv
import shlex
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from dataset import isic
from engine import checkpoints, files, metrics, run_folder
from engine.errors import InputError
from mbdcnn import evaluation, paper_scores
from report import html_parts
from report.html_parts import charts, heading, paragraph, percent, score, table

TEMPLATE = Path(__file__).with_suffix('.html')
SPLITS = 'Testing', 'Validation'
SEGMENTERS = 'CoarseSN', 'EnhancedSN'
NETWORKS = 'CoarseSN', 'MaskCN', 'EnhancedSN'
DRAWN_DATA = 'demo_data.json'   # dataset/make_demo_data.py leaves it with its pictures
GROUP = 3                       # pictures in each of best, median and worst


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


def write(layout):
    """Write results/report.html from whatever lies in results/ and models/; returns its path.

    layout : dataset.layout.Layout. Raises InputError where there is neither an evaluation nor a run.
    """
    path = layout.results / 'report.html'
    files.write_text(path, page(layout, datetime.now().astimezone()))
    return path


def page(layout, moment):
    """The page as text. moment : datetime that it is dated with; all else follows from the files."""
    found = gather(layout)
    if not (found.evaluations or found.rows or found.configs):
        raise InputError('There is nothing to report', [f'{layout.results}: holds no evaluation',
                                                        f'{layout.models}: holds no training run',
                                                        *found.damaged],
                         'train and evaluate first: steps 2 to 6 of the README')
    sections = [('scores', 'Scores', segmentation_scores(found) + classification_scores(found)),
                ('training', 'Training', curves(found)),
                ('roc', 'ROC curves', roc_curves(found)),
                ('reliability', 'Reliability of the probabilities', reliability(found)),
                ('overlap', 'Overlap with the truth', overlaps(found)),
                ('pictures', 'Best, median and worst pictures', pictures(found)),
                ('settings', 'Settings, versions, data and weights', facts(found))]
    links = ''.join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in sections)
    title = f'MB-DCNN: report of {layout.root.resolve().name or layout.root}'
    body = [f'<header>{opening(found, title, moment)}</header>',
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>', '<main>']
    body += [f'<section id="{name}">\n{heading(2, title)}\n' + '\n'.join(parts) + '\n</section>'
             for name, title, parts in sections]
    template = Template(TEMPLATE.read_text(encoding='utf-8'))
    return template.substitute(title=escape(title), body='\n'.join([*body, '</main>']))


# --- Reading


def gather(layout):
    """Read results/ and models/ into an Experiment; what cannot be read is left out and named."""
    found = Experiment(layout, {}, {}, {}, [])
    for network in NETWORKS:
        for split in SPLITS:
            path = layout.results / f'{network}_{split}.json'
            summary = _read(path, evaluation.read_summary, found.damaged)
            if summary is not None:
                found.evaluations[network, split] = _evaluation(layout, network, split, path, summary)
        rows = _read(layout.run(network) / 'metrics.jsonl', _json_lines, found.damaged)
        config = _read(layout.run(network) / 'config.json', _config, found.damaged)
        found.rows |= {network: rows} if rows else {}
        found.configs |= {network: config} if config is not None else {}
    return found


def _read(path, parse, damaged):
    """parse(text of path), or None where it is missing, or damaged: then with a line about it."""
    try:
        return parse(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        damaged.append(f'{path.parent.name}/{path.name}: cannot be read ({error})')
        return None


def _config(text):
    return files.json_object(text, 'settings')


def _json_lines(text):
    return [run_folder.read_row(line) for line in text.splitlines() if line.strip()]


def _evaluation(layout, network, split, path, summary):
    """Join an evaluation's json with its csv and, for mask-CN, with the labels."""
    columns = isic.CLASSES if network == 'MaskCN' else metrics.SEGMENTATION

    def parse(text):
        rows = list(csv.DictReader(text.splitlines()))
        values = np.array([[float(row[name]) for name in columns] for row in rows])
        if not ((values >= 0) & (values <= 1)).all():   # NaN fails too
            raise ValueError('holds other numbers than those from 0 to 1')
        return [row['image_id'] for row in rows], values

    damaged = []
    table_of_images = _read(path.with_suffix('.csv'), parse, damaged)
    if table_of_images is None or not table_of_images[0]:
        return Evaluation(summary, faults=(damaged or [f'{path.stem}.csv is missing or empty'])[0])
    names, values = table_of_images
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


# --- Sections: each returns a list of HTML parts


def opening(found, title, moment):
    """Title, date, recipe, what this is not, and warnings."""
    recipes = {item.summary.get('recipe') for item in found.evaluations.values()}
    recipes |= {str(config.get('settings', {}).get('RECIPE', '')) for config in found.configs.values()}
    date = moment.isoformat(' ', 'minutes')
    parts = [heading(1, title),
             f'<p class="quiet">Written <time datetime="{moment.isoformat()}">{escape(date)}</time>. Recipe: '
             f'{escape(", ".join(sorted(filter(None, recipes))) or "not recorded")}.</p>',
             paragraph('Skin lesion segmentation and classification with MB-DCNN. This is a research tool, '
                       'not a medical device.')]
    if (found.layout.data / DRAWN_DATA).exists():
        parts.append(paragraph('The pictures are drawn by a program (demo data): the scores say that the '
                               'software works, and cannot be compared with the paper.', 'notice'))
    parts += [paragraph(line, 'notice') for line in [*found.damaged, *_outdated(found)]]
    return '\n'.join(parts)


def _outdated(found):
    """Lines about evaluations of weights that are no longer those in models/."""
    current = {network: checkpoints.fingerprint(found.layout.weights(network))
               for network in NETWORKS if found.layout.weights(network).is_file()}
    return [f'{network} on {split} was evaluated with other weights of {part} than those now in models/.'
            for (network, split), item in found.evaluations.items()
            for part, used in (item.summary.get('weights') or {}).items() if current.get(part, used) != used]


def _missing(found, what, script, *options):
    """The line in place of something that a script has not made yet."""
    root = str(found.layout.root)
    words = [script, *options, *([f'--ROOT={shlex.quote(root)}'] if root != '.' else [])]
    return paragraph(f'{what}:', 'missing', 'python ' + ' '.join(words), ' makes it.')


def _evaluated(found, network, split):
    """(Evaluation or None, [the line in its place])."""
    if (network, split) in found.evaluations:
        return found.evaluations[network, split], []
    option = [f'--NETWORK={network}'] if network == 'CoarseSN' else []
    script = 'eval_MaskCN.py' if network == 'MaskCN' else 'eval_EnhancedSN.py'
    return None, [_missing(found, f'{network} on {split} is not there yet', script, f'--SPLIT={split}',
                           *option)]


def segmentation_scores(found):
    """Tables of both segmentation networks beside the paper's rows."""
    parts = [heading(3, 'Segmentation')]
    for split in found.splits:
        rows, marked, lines = [], [], []
        for network in SEGMENTERS:
            item, absent = _evaluated(found, network, split)
            lines += absent
            printed = paper_scores.SEGMENTATION.get((network, split))
            if printed:
                marked.append(f'{network}, paper')
                rows.append([marked[-1], *(percent(printed[name]) for name in metrics.SEGMENTATION), ''])
            for kind in ('with TTA', 'without TTA'):
                scores = item and item.summary.get(kind)
                if scores:
                    cells = [score(scores, name) for name in metrics.SEGMENTATION]
                    rows.append([f'{network}, {kind}', *cells, str(item.summary['n'])])
        if len(lines) < len(SEGMENTERS):
            parts.append(table(f'{split}: means over images, percent, with 95 % intervals',
                               ['network', *metrics.SEGMENTATION, 'images'], rows, marked=marked))
        parts += lines
    return [*parts, paragraph(html_parts.SEGMENTATION_TERMS, 'quiet')]


def classification_scores(found):
    """Tables of mask-CN beside the paper's column."""
    parts = [heading(3, 'Classification')]
    for split in found.splits:
        item, absent = _evaluated(found, 'MaskCN', split)
        parts += absent
        if item is None:
            continue
        printed = paper_scores.CLASSIFICATION.get(split, {})
        kinds = {kind: item.summary[kind] for kind in ('9-crop', '1-crop') if item.summary.get(kind)}
        rows = []
        for task in isic.TASKS:
            of_task = [{**scores.get(task, {}), 'ci95': scores.get('ci95')} for scores in kinds.values()]
            rows += [[f'{task} {name}', percent(printed.get(task) if name == 'AUC' else None),
                      *(score(scores, name, f'{task} {name}') for scores in of_task)]
                     for name in metrics.CLASSIFICATION]
        rows.append(['mean AUC', percent(printed.get('mean AUC')),
                     *(score(scores, 'mean AUC') for scores in kinds.values())])
        parts.append(table(f'{split}: {item.summary["n"]} images, percent, with 95 % intervals of the AUCs',
                           ['score', 'paper', *kinds], rows))
        if any(scores.get('mean AUC') is None for scores in kinds.values()):
            parts.append(paragraph(f'{split}: AUC and AP are undefined where a split holds one class only.'))
    return [*parts, paragraph(html_parts.CLASSIFICATION_TERMS, 'quiet')]


def curves(found):
    """Training loss and validation score of each network."""
    parts = []
    for network in NETWORKS:
        rows = found.rows.get(network)
        parts += [heading(3, network),
                  html_parts.curve_charts(network, rows) if rows else
                  _missing(found, f'{network} has no training log', f'train_{network}.py')]
    return parts


def roc_curves(found):
    """ROC curves of melanoma and keratosis, one chart a split."""
    def draw(split, item):
        scores = metrics.classification_scores(item.values, item.labels, isic.TASKS)
        if all(scores[task]['AUC'] is None for task in isic.TASKS):
            return paragraph(f'{split}: no ROC curve, because the split holds one class only.', 'missing')
        return html_parts.roc_chart(split, item.values, item.labels)
    return _charts_of_probabilities(found, draw)


def reliability(found):
    """Reliability diagrams, three a split."""
    def draw(split, item):
        return '\n'.join(html_parts.reliability_chart(split, name, number, item.values, item.labels)
                         for number, name in enumerate(isic.CLASSES))
    return [paragraph(html_parts.RELIABILITY_TERMS, 'quiet'), *_charts_of_probabilities(found, draw)]


def _charts_of_probabilities(found, draw):
    """draw(split, Evaluation) for each split with probabilities and labels, else the reason."""
    drawn, lines = [], []
    for split in found.splits:
        item, absent = _evaluated(found, 'MaskCN', split)
        lines += absent
        if item is not None and item.labels is None:
            lines.append(paragraph(f'{split}: left out, because {item.faults}', 'missing'))
        elif item is not None:
            drawn.append(draw(split, item))
    return [charts(drawn), *lines] if drawn else lines


def _segmented(found):
    """([(network, split, Evaluation with values)], lines about the others)."""
    usable, lines = [], []
    for split in found.splits:
        for network in SEGMENTERS:
            item, absent = _evaluated(found, network, split)
            lines += absent
            if item is not None and item.values is None:
                lines.append(paragraph(f'{network} on {split}: left out, because {item.faults}', 'missing'))
            elif item is not None:
                usable.append((network, split, item))
    return usable, lines


def overlaps(found):
    """Histograms of the Jaccard index."""
    usable, lines = _segmented(found)
    drawn = [html_parts.overlap_chart(network, split, item.values[:, 0])
             for network, split, item in usable]
    return [charts(drawn), *lines] if drawn else lines


def pictures(found):
    """The best, median and worst pictures of each segmentation network and split."""
    usable, parts = _segmented(found)
    if usable:
        parts.append(paragraph(html_parts.PICTURE_TERMS, 'quiet'))
    for network, split, item in usable:
        parts.append(heading(3, f'{network} on {split}'))
        try:
            pairs = {image.stem: (image, truth)
                     for image, truth in isic.read_segmentation_list(found.layout, split)}
        except InputError as error:
            parts.append(paragraph(f'Left out, because pictures are missing: {error.faults[0]}', 'missing'))
            continue
        groups = extremes(item.names, item.values[:, 0])
        chosen = [number for numbers in groups.values() for number in numbers]
        names = [item.names[number] for number in chosen]
        masks = evaluation.predicted_paths(found.layout.results / f'{network}_{split}_masks', names)
        cases = [(*pairs.get(name, (None, None)), mask) for name, mask in zip(names, masks, strict=True)]
        drawn = dict(zip(chosen, files.for_all(_drawn_or_why, cases, 'report: pictures'), strict=True))
        for title, numbers in groups.items():
            parts += [heading(4, title), '<div class="cases">',
                      *(_case(item, number, drawn[number]) for number in numbers), '</div>']
    return parts


def extremes(names, scores):
    """{'Best': positions, 'Median': ..., 'Worst': ...}, up to GROUP each, no picture twice."""
    order = sorted(range(len(names)), key=lambda number: (-scores[number], names[number]))
    size = max(1, min(GROUP, len(order) // 3))
    middle = (len(order) - size) // 2
    groups, seen = {}, set()
    for title, part in (('Best', order[:size]), ('Worst', order[-size:]),
                        ('Median', order[middle:middle + size])):
        groups[title] = [number for number in part if number not in seen]
        seen.update(part)
    return {title: groups[title] for title in ('Best', 'Median', 'Worst') if groups[title]}


def _drawn_or_why(paths):
    """The pictures of one case, or the text that says why there are none."""
    if paths[0] is None:
        return 'not in the list of step 1'
    try:
        return html_parts.draw_case(*paths)
    except InputError as error:
        return error.faults[0]


def _case(item, number, drawn):
    name, caption = item.names[number], f'{item.names[number]}: JA {100 * item.values[number, 0]:.1f} %'
    if isinstance(drawn, str):
        return paragraph(f'{caption}; no picture: {drawn}', 'missing')
    return html_parts.case(name, caption, drawn)


def facts(found):
    """Where every number comes from, folded away."""
    parts = []
    for (network, split), item in found.evaluations.items():
        content = {part: item.summary.get(part) for part in ('weights', 'settings')}
        parts.append(html_parts.facts(f'Evaluation of {network} on {split}',
                                        {'data': {'fingerprint': item.summary.get('data')}, **content}))
    return parts + [html_parts.facts(f'Training of {network}', config)
                    for network, config in found.configs.items()]
