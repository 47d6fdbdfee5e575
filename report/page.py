"""One self-contained page, results/report.html, of everything that lies in results/ and models/."""
import csv
import itertools
import shlex
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from dataset import isic, label_csv
from engine import bootstrap, files, metrics, run_folder, scoring
from engine.errors import InputError
from mbdcnn import evaluation, networks, paper_scores
from report import charts
from report.render import render

SPLITS = 'Testing', 'Validation'
NETWORKS = networks.NETWORKS
SEGMENTERS = 'CoarseSN', 'EnhancedSN'
GROUP = 3      # pictures in each of best, median and worst
ERRORS = 24    # misclassified pictures that are shown, the most confident first
PAIRED = 'JA', 'DI', 'thresholded JA'   # scores by which enhanced-SN is compared with coarse-SN
OUTDATED = ' (outdated)'   # behind scores of other networks or pictures than the present ones


def write(layout):
    """Write results/report.html from whatever lies in results/ and models/; returns its path.

    layout : dataset.layout.Layout. Raises InputError where there is neither an evaluation nor a run.
    """
    path = layout.results / 'report.html'
    files.write_text(path, page(layout, datetime.now().astimezone()))
    return path


def page(layout, moment):
    """The page as text. moment : datetime that it is dated with; all else follows from the files."""
    damaged = []
    evaluations = evaluations_below(layout, damaged)
    rows, configs = {}, {}
    for name in NETWORKS:
        rows[name] = _read(layout.run(name) / 'metrics.jsonl', run_folder.read_rows, damaged)
        config = _read(layout.run(name) / 'config.json', _json, damaged)
        configs |= {} if config is None else {name: config}
    if not (evaluations or any(rows.values()) or configs):
        raise InputError('There is nothing to report', [f'{layout.results}: holds no evaluation',
                                                        f'{layout.models}: holds no training run', *damaged],
                         'train and evaluate first: stages 2 to 6 of the README')
    recipes = {item['summary'].get('recipe') for item in evaluations.values()}
    recipes |= {config.get('settings', {}).get('RECIPE') for config in configs.values()}
    splits = [split for split in SPLITS if any(key[1] == split for key in evaluations)] or ['Testing']
    classified = [(split, item) for (_, split), item in evaluations.items() if item['labels'] is not None]
    segmented = [(network, split, evaluations[network, split]) for split in splits for network in SEGMENTERS
                 if evaluations.get((network, split), {}).get('values') is not None]
    classes = layout.classes
    drawn = layout.drawn or any(item['summary'].get('drawn_pictures') for item in evaluations.values())
    seen, beside_paper = '' if drawn else networks.of_drawn_pictures(configs), layout.of_paper and not drawn
    return render(
        'report.html', title=f'MB-DCNN: report of {layout.root.resolve().name or layout.root}', moment=moment,
        recipes=sorted(filter(None, recipes)), drawn=evaluation.DRAWN_PICTURES if drawn else seen,
        selected=scoring.SELECTED.format('') if 'Validation' in splits else '',
        warnings=[*damaged, *itertools.chain(*(item['outdated'] for item in evaluations.values()))],
        splits=splits, evaluations=evaluations,
        root='' if layout.root == Path('.') else f' --ROOT={shlex.quote(str(layout.root))}',
        segmentation=segmentation_scores(evaluations, beside_paper), differences=differences(evaluations),
        classification=classification_scores(evaluations, classes.tasks, beside_paper),
        confusion=[confusion(split, item, classes.names) for split, item in classified],
        beside_paper=beside_paper, threshold=scoring.THRESHOLD,
        training={network: rows[network] and charts.curve_charts(network, rows[network], classes.tasks)
                  for network in NETWORKS},
        roc=[chart for split, item in classified
             for chart in charts.roc_charts(split, item['values'], item['labels'], classes.tasks)],
        bins=charts.BINS, reliability=[
            charts.reliability_chart(split, name, number, item['values'], item['labels'])
            for split, item in classified for number, name in enumerate(classes.names)],
        overlap=[charts.overlap_chart(network, split, item['values'][:, 0])
                 for network, split, item in segmented],
        pictures=pictures(layout, segmented),
        errors=[errors(layout, split, item) for split, item in classified],
        facts=facts(evaluations, configs))


def evaluations_below(layout, damaged):
    """{(network, split): dict} of the evaluations in results/.

    summary : dict, the json; names : image ids; values : (N, 5) scores or (N, C) probabilities of the csv;
    labels : (N,) class numbers of mask-CN's images. The last three are None where `faults` (text) says why.
    outdated : lines, why it is not of the networks in models/ or of the pictures that are listed now
    damaged : list that lines about unusable files are added to
    """
    found, classes = {}, layout.classes
    current = {network: files.fingerprint(layout.weights(network))
               for network in NETWORKS if layout.weights(network).is_file()}
    read = partial(evaluation.read_csv, classes=classes.names)
    for network, split in itertools.product(NETWORKS, SPLITS):
        path = layout.results / f'{network}_{split}.json'
        summary = _read(path, _summary, damaged)
        if summary is None:
            continue
        faults, item = [], dict.fromkeys(('names', 'values', 'labels'))
        rows = _read(path.with_suffix('.csv'), read, faults)
        if rows is None:
            faults = faults or [f'{path.stem}.csv is missing']
        elif len(rows[1]) != summary['n']:
            faults = [f'{path.stem}.csv and .json are not of one evaluation']
        else:
            _, item['names'], item['values'] = rows
            if network == 'MaskCN':
                item['labels'] = _labels(layout.labels(split), classes, item, summary, faults)
        outdated = [*_other_weights(summary, current), *_other_pictures(layout, network, split, item)]
        found[network, split] = item | {'summary': summary, 'faults': ''.join(faults), 'outdated': [
            f'{network} on {split} was evaluated {line}.' for line in outdated]}
    return found


def _read(path, parse, damaged):
    """parse(path), or None where it is missing, or damaged: then with a line about it."""
    try:
        return parse(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, csv.Error) as error:
        damaged.append(f'{path.parent.name}/{path.name}: cannot be read ({error})')
        return None


def _json(path):
    return files.json_object(path.read_text(encoding='utf-8'), 'settings', 'inputs', 'weights')


def _summary(path):
    summary = _json(path)
    if 'n' not in summary:
        raise ValueError('is no evaluation')
    return summary


def _labels(path, classes, item, summary, faults):
    """(N,) class numbers, or None and a line more in `faults`."""
    try:
        known = label_csv.read(path, classes)
        labels = np.array([known[name] for name in item['names']])
        counts = _counts(labels, item['values']).tolist()
        if summary.get('confusion', counts) == counts:
            return labels
        faults.append(f'{path.name} has changed since; run eval_MaskCN.py again')
    except InputError as error:
        faults.append(f'the labels cannot be read: {error.faults[0]}')
    except KeyError as error:
        faults.append(f'{path.name} has no row for {error.args[0]}')
    return None


def _other_weights(summary, current):
    """With what an evaluation was made that is no longer in models/. current : {network: fingerprint}"""
    for part, used in summary.get('weights', {}).items():
        if part not in current:
            yield f'with weights of {part} that are no longer in models/'
        elif current[part] != used:
            yield f'with other weights of {part} than those now in models/'


def _other_pictures(layout, network, split, item):
    """On which pictures, by id, where the list of stage 1 is there and now names others."""
    try:
        if network == 'MaskCN':
            entries = isic.read_list(layout.classification_list(split), layout.crops(split))
        else:
            entries = isic.read_list(layout.segmentation_list(split), layout.segmentation(split))
    except InputError:   # without the pictures: what the scores are of cannot be known
        return
    names, listed = set(map(label_csv.plain_id, item['names'] or ())), {
        isic.image_id_of(path) for path, _ in entries}
    if names and names != listed:
        yield (f'on other pictures than those now listed: {len(names - listed)} of {len(names)} are no '
               f'longer, {len(listed - names)} are new')


def segmentation_scores(evaluations, with_paper=True):
    """{split: table of both segmentation networks, beside the paper's rows where these are wanted}."""
    tables = {}
    for split in SPLITS:
        rows = []
        for network in SEGMENTERS:
            item = evaluations.get((network, split), {})
            summary, mark = item.get('summary', {}), OUTDATED if item.get('outdated') else ''
            printed = paper_scores.SEGMENTATION.get((network, split))
            if printed and with_paper:
                rows.append({'title': f'{network}, paper', 'paper': True, 'cells': [
                    *(charts.percent(printed.get(name), 1) for name in scoring.COLUMNS), '']})
            rows += [{'title': f'{network}, {kind}{mark}', 'cells': [
                *(_score(summary[kind], name) for name in scoring.COLUMNS), str(summary['n'])]}
                for kind in ('with TTA', 'without TTA') if summary.get(kind)]
        if any((network, split) in evaluations for network in SEGMENTERS):
            tables[split] = {'caption': f'{split}: means over images, percent, with 95 % intervals',
                             'header': ['network', *scoring.COLUMNS, 'images'], 'rows': rows}
    return tables


def differences(evaluations):
    """{split: table of enhanced-SN minus coarse-SN over the same pictures, or the text why there is none}."""
    tables = {}
    for split in SPLITS:
        coarse, enhanced = (evaluations.get((network, split)) for network in SEGMENTERS)
        if not coarse or not enhanced:
            continue
        tables[split] = _no_difference(coarse, enhanced) or _difference_table(split, coarse, enhanced)
    return tables


def _no_difference(coarse, enhanced):
    """Why two evaluations cannot be compared, '' where they can."""
    if coarse['values'] is None or enhanced['values'] is None:
        return coarse['faults'] or enhanced['faults']
    first, second = coarse['summary'], enhanced['summary']
    if any(first.get(name) != second.get(name) for name in ('n', 'data')) or \
            set(coarse['names']) != set(enhanced['names']):
        return 'the two evaluations are not of the same pictures'
    if bool(first.get('with TTA')) != bool(second.get('with TTA')):
        return 'one evaluation has test-time augmentation and the other has not'
    if first.get('scales') != second.get('scales'):
        return 'the two evaluations are not at the same input sides'
    below, scored = second.get('coarse_sn'), first.get('weights', {}).get('CoarseSN')
    if below and scored and below != scored:
        return f'enhanced-SN builds on another coarse-SN ({below}) than the one that was scored ({scored})'
    return ''


def _difference_table(split, coarse, enhanced):
    kind = 'with TTA' if coarse['summary'].get('with TTA') else 'without TTA'
    order = [coarse['names'].index(name) for name in enhanced['names']]
    scores = [scoring.thresholded(values) for values in (enhanced['values'], coarse['values'][order])]
    rows = []
    for name in PAIRED:
        place = scoring.COLUMNS.index(name)
        found = bootstrap.paired_difference(*(values[:, place] for values in scores))
        mean, low, high = (f'{100 * value:+.1f}' for value in (found.mean, found.low, found.high))
        rows.append({'title': name, 'cells': [{'value': mean, 'interval': f'{low}, {high}'},
                                              bootstrap.p_in_words(found).replace('<=', '≤')]})
    notes = (OUTDATED if coarse['outdated'] or enhanced['outdated'] else '') + bootstrap.of_few(len(order))
    if not enhanced['summary'].get('coarse_sn'):
        notes += '; on which coarse-SN the former builds is not recorded'
    caption = f'{split}: enhanced-SN minus coarse-SN, {kind}, paired over {len(order)} images{notes}'
    return {'caption': caption, 'header': ['score', 'points', 'test'], 'rows': rows}


def classification_scores(evaluations, tasks, with_paper=True):
    """{split: table of mask-CN, beside the paper's column where that is wanted, and whether an AUC in it is
    undefined}. tasks : {name: class number}"""
    tables = {}
    for (network, split), item in evaluations.items():
        if network != 'MaskCN':
            continue
        printed, summary = paper_scores.CLASSIFICATION.get(split, {}), item['summary']
        mark = OUTDATED if item['outdated'] else ''
        kinds = {kind: summary[kind] for kind in ('9-crop', '1-crop') if summary.get(kind)}

        def row(title, paper, cells, printed=printed):
            shown = [charts.percent(printed.get(paper), 1)] if with_paper else []
            return {'title': title, 'cells': [*shown, *cells]}

        rows = [row(f'{task} {name}', task if name == 'AUC' else None, [
            _score({**scores.get(task, {}), 'ci95': scores.get('ci95')}, name, f'{task} {name}')
            for scores in kinds.values()]) for task in tasks for name in metrics.CLASSIFICATION]
        rows += [row(name, name, [_score(scores, name) for scores in kinds.values()])
                 for name in ('mean AUC', 'balanced accuracy')]
        tables[split] = {
            'caption': f'{split}: {summary["n"]} images, percent, with 95 % intervals of the AUCs',
            'header': ['score', *['paper'] * with_paper, *(f'{kind}{mark}' for kind in kinds)],
            'rows': rows,
            'undefined': any(scores.get('mean AUC') is None for scores in kinds.values())}
    return tables


def confusion(split, item, classes):
    """Which classes were taken for which: {split, classes, rows: [(class, images, [(count, share)])]}.

    classes : names
    """
    counts = _counts(item['labels'], item['values'])
    return {'split': split, 'classes': classes, 'rows': [
        (name, int(row.sum()), [(int(count), count / max(1, row.sum())) for count in row])
        for name, row in zip(classes, counts, strict=True)]}


def _counts(labels, probabilities):
    """(C, C): of the images of each class, how many are most probably of each."""
    from sklearn.metrics import confusion_matrix  # slow to import
    return confusion_matrix(labels, probabilities.argmax(1), labels=range(probabilities.shape[1]))


def _score(scores, name, interval=None):
    """A table cell: a score in percent, and its interval (`name`'s or `interval`'s) where there is one."""
    low_high = (scores.get('ci95') or {}).get(interval or name)
    value = charts.percent(scores.get(name))
    return {'value': value, 'interval': ', '.join(map(charts.percent, low_high))} if low_high else value


def pictures(layout, segmented):
    """The best, median and worst pictures of each segmentation network and split.

    Returns [{title, why, groups: [(title, [case])]}]; a case has a name, a caption and `pictures`. Where
    there are no pictures, the text `why` says so.
    """
    parts = []
    for network, split, item in segmented:
        parts.append({'title': f'{network} on {split}', 'why': '', 'groups': []})
        try:
            listed = isic.read_segmentation_list(layout, split)
        except InputError as error:
            parts[-1]['why'] = error.faults[0]
            continue
        folder = layout.results / f'{network}_{split}_masks'
        if why := scoring.incomplete(folder):
            parts[-1]['why'] = why
            continue
        pairs = {image.stem: (image, truth) for image, truth in listed}
        names, scores = item['names'], item['values'][:, 0]
        groups = extremes(names, scores)
        chosen = [number for numbers in groups.values() for number in numbers]
        masks = evaluation.predicted_paths(folder, [names[number] for number in chosen])
        paths = [(*pairs.get(names[number], (None, None)), mask)
                 for number, mask in zip(chosen, masks, strict=True)]
        drawn = dict(zip(chosen, files.for_all(_drawn_or_why, paths, 'report: pictures'), strict=True))
        parts[-1]['groups'] = [(title, [{
            'name': names[number], 'caption': f'{names[number]}: JA {charts.percent(scores[number])} %',
            **drawn[number]} for number in numbers]) for title, numbers in groups.items()]
    return parts


def errors(layout, split, item):
    """Misclassified pictures, the most confident first: {split, count, of, cases, why}, see `pictures`."""
    decided, labels, names = item['values'].argmax(1), item['labels'], item['names']
    wrong = sorted(np.flatnonzero(decided != labels), key=lambda number: -item['values'][number].max())
    classes = layout.classes.names
    found = {'split': split, 'count': len(wrong), 'of': len(names), 'cases': [], 'why': ''}
    path, faults = evaluation.error_maps_path(layout, split), []
    maps = _read(path, evaluation.read_error_maps, faults)
    if wrong and maps is None:
        return found | {'why': ''.join(faults) or f'{path.name} is missing'}
    originals, _ = isic.scan_folder(layout.originals(split) / 'Images', 'pictures')

    def case(number):
        name, pair = names[number], (int(decided[number]), int(labels[number]))
        of, drawn = maps.get(name, (None, None))
        shown = {'name': name, 'caption': f'{name}: {charts.percent(item["values"][number].max())} % '
                                          f'{classes[pair[0]]}, true: {classes[pair[1]]}'}
        if name not in originals:
            return shown | {'why': f'not in {layout.originals(split) / "Images"}'}
        if of != pair:
            return shown | {'why': f'{path.name} is of another evaluation'}
        titles = [f'found: {classes[pair[0]]}', f'true: {classes[pair[1]]}']
        try:
            seen = dict(zip(titles, drawn, strict=True))
            return shown | {'pictures': charts.draw_error(originals[name], seen)}
        except InputError as error:
            return shown | {'why': error.faults[0]}

    return found | {'cases': files.for_all(case, wrong[:ERRORS], 'report: errors')}


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
        return {'why': 'not in the list of stage 1'}
    try:
        return {'pictures': charts.draw_case(*paths)}
    except InputError as error:
        return {'why': error.faults[0]}


def facts(evaluations, configs):
    """Where every number comes from: [(title, {part: {name: value}})]."""
    return [*((f'Evaluation of {network} on {split}', {
        'data': {'fingerprint': item['summary'].get('data')}, 'weights': item['summary'].get('weights'),
        'settings': item['summary'].get('settings')}) for (network, split), item in evaluations.items()),
        *((f'Training of {network}', {part: values for part, values in config.items()
                                      if isinstance(values, dict)})
          for network, config in configs.items())]
