"""One self-contained page, results/report.html, of everything that lies in results/ and models/."""
import shlex
from datetime import datetime
from pathlib import Path

from dataset import isic
from engine import files, metrics
from engine.errors import InputError
from mbdcnn import evaluation, paper_scores
from report import charts
from report.data import NETWORKS, gather
from report.render import render

SEGMENTERS = 'CoarseSN', 'EnhancedSN'
DRAWN_DATA = 'demo_data.json'   # dataset/make_demo_data.py leaves it with its pictures
GROUP = 3                       # pictures in each of best, median and worst


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
    recipes = {item.summary.get('recipe') for item in found.evaluations.values()}
    recipes |= {config.get('settings', {}).get('RECIPE') for config in found.configs.values()}
    classified = [(split, item) for split, item in found.of('MaskCN') if item.labels is not None]
    segmented = [(network, split, item) for split in found.splits for network in SEGMENTERS
                 for where, item in found.of(network) if where == split and item.values is not None]
    return render(
        'report.html', title=f'MB-DCNN: report of {layout.root.resolve().name or layout.root}', moment=moment,
        recipes=sorted(filter(None, recipes)), drawn=(layout.data / DRAWN_DATA).exists(),
        warnings=[*found.damaged, *_outdated(found)], splits=found.splits, evaluations=found.evaluations,
        root='' if layout.root == Path('.') else f' --ROOT={shlex.quote(str(layout.root))}',
        segmentation=segmentation_scores(found), classification=classification_scores(found),
        training={network: network in found.rows and charts.curve_charts(network, found.rows[network])
                  for network in NETWORKS},
        roc=[charts.roc_chart(split, item.values, item.labels) for split, item in classified],
        bins=charts.BINS, reliability=[
            charts.reliability_chart(split, name, number, item.values, item.labels)
            for split, item in classified for number, name in enumerate(isic.CLASSES)],
        overlap=[charts.overlap_chart(network, split, item.values[:, 0])
                 for network, split, item in segmented],
        pictures=pictures(found, segmented), facts=facts(found))


def _outdated(found):
    """Lines about evaluations of weights that are no longer those in models/."""
    current = {network: files.fingerprint(found.layout.weights(network))
               for network in NETWORKS if found.layout.weights(network).is_file()}
    return [f'{network} on {split} was evaluated with other weights of {part} than those now in models/.'
            for (network, split), item in found.evaluations.items()
            for part, used in (item.summary.get('weights') or {}).items() if current.get(part, used) != used]


# --- What the template shows of each section


def segmentation_scores(found):
    """{split: table of both segmentation networks beside the paper's rows}."""
    tables = {}
    for split in found.splits:
        rows = []
        for network in SEGMENTERS:
            item = found.evaluations.get((network, split))
            printed = paper_scores.SEGMENTATION.get((network, split))
            if printed:
                rows.append({'title': f'{network}, paper', 'paper': True, 'cells': [
                    *(charts.percent(printed[name], 1) for name in metrics.SEGMENTATION), '']})
            for kind in ('with TTA', 'without TTA'):
                scores = item and item.summary.get(kind)
                if scores:
                    rows.append({'title': f'{network}, {kind}', 'cells': [
                        *(_score(scores, name) for name in metrics.SEGMENTATION), str(item.summary['n'])]})
        if any((network, split) in found.evaluations for network in SEGMENTERS):
            tables[split] = {'caption': f'{split}: means over images, percent, with 95 % intervals',
                             'header': ['network', *metrics.SEGMENTATION, 'images'], 'rows': rows}
    return tables


def classification_scores(found):
    """{split: table of mask-CN beside the paper's column, and whether an AUC in it is undefined}."""
    tables = {}
    for split, item in found.of('MaskCN'):
        printed = paper_scores.CLASSIFICATION.get(split, {})
        kinds = {kind: item.summary[kind] for kind in ('9-crop', '1-crop') if item.summary.get(kind)}
        rows = []
        for task in isic.TASKS:
            of_task = [{**scores.get(task, {}), 'ci95': scores.get('ci95')} for scores in kinds.values()]
            rows += [{'title': f'{task} {name}', 'cells': [
                charts.percent(printed.get(task) if name == 'AUC' else None, 1),
                *(_score(scores, name, f'{task} {name}') for scores in of_task)]}
                for name in metrics.CLASSIFICATION]
        rows.append({'title': 'mean AUC', 'cells': [
            charts.percent(printed.get('mean AUC'), 1),
            *(_score(scores, 'mean AUC') for scores in kinds.values())]})
        tables[split] = {
            'caption': f'{split}: {item.summary["n"]} images, percent, with 95 % intervals of the AUCs',
            'header': ['score', 'paper', *kinds], 'rows': rows,
            'undefined': any(scores.get('mean AUC') is None for scores in kinds.values())}
    return tables


def _score(scores, name, interval=None):
    """A table cell: a score in percent, and its interval (`name`'s or `interval`'s) where there is one."""
    low_high = (scores.get('ci95') or {}).get(interval or name)
    value = charts.percent(scores.get(name))
    return {'value': value, 'interval': ', '.join(map(charts.percent, low_high))} if low_high else value


def pictures(found, segmented):
    """The best, median and worst pictures of each segmentation network and split.

    Returns [{title, why, groups: [(title, [case])]}]; a case has a name, a caption and `pictures`. Where
    there are no pictures, the text `why` says so.
    """
    parts = []
    for network, split, item in segmented:
        part = {'title': f'{network} on {split}', 'why': '', 'groups': []}
        parts.append(part)
        try:
            pairs = {image.stem: (image, truth)
                     for image, truth in isic.read_segmentation_list(found.layout, split)}
        except InputError as error:
            part['why'] = error.faults[0]
            continue
        groups = extremes(item.names, item.values[:, 0])
        chosen = [number for numbers in groups.values() for number in numbers]
        names = [item.names[number] for number in chosen]
        masks = evaluation.predicted_paths(found.layout.results / f'{network}_{split}_masks', names)
        paths = [(*pairs.get(name, (None, None)), mask) for name, mask in zip(names, masks, strict=True)]
        drawn = dict(zip(chosen, files.for_all(_drawn_or_why, paths, 'report: pictures'), strict=True))
        part['groups'] = [(title, [{
            'name': item.names[number], 'caption': f'{item.names[number]}: JA '
            f'{charts.percent(item.values[number, 0])} %', **drawn[number]} for number in numbers])
            for title, numbers in groups.items()]
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
    """{'pictures'} of one case, or {'why'} there are none."""
    if paths[0] is None:
        return {'why': 'not in the list of step 1'}
    try:
        return {'pictures': charts.draw_case(*paths)}
    except InputError as error:
        return {'why': error.faults[0]}


def facts(found):
    """Where every number comes from: [(title, {part: {name: value}})]."""
    return [*((f'Evaluation of {network} on {split}', {
        'data': {'fingerprint': item.summary.get('data')}, 'weights': item.summary.get('weights') or {},
        'settings': item.summary.get('settings') or {}})
        for (network, split), item in found.evaluations.items()),
        *((f'Training of {network}', {part: values for part, values in config.items()
                                      if isinstance(values, dict)})
          for network, config in found.configs.items())]
