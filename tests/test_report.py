"""The report: its numbers, its HTML, roots where parts are missing or damaged, and how a browser shows it."""
import base64
import html
import io
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

from dataset.classes import PAPER
from dataset.layout import Layout
from dataset.splits import Classification
from engine import bootstrap, checkpoints, files, images, scoring
from engine.errors import InputError
from mbdcnn import evaluation, paper_scores
from report import charts
from report import page as report

MOMENT = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
HOSTILE = '<script>alert("x&y")'   # a legal file name
NAMES = [HOSTILE, *(f'ISIC_{number:07}' for number in range(11))]
LABELS = np.array([0, 1, 2] * 4)
SECTIONS = ['Scores', 'Training', 'ROC curves', 'Reliability of the probabilities', 'Overlap with the truth',
            'Best, median and worst pictures', 'Misclassified pictures',
            'Settings, versions, data and weights']
VOID = {'meta', 'img', 'br', 'link', 'input', 'hr'}
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Reader(HTMLParser):
    """Reads a page: faults (tags that do not pair up), attributes, headings, and the text."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.attributes, self.headings, self.words = [], [], [], [], []
        self.feed(page)
        self.close()
        self.faults += self.open
        self.text = re.sub(r'\s+', ' ', ' '.join(self.words))

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ('h1', 'h2', 'h3', 'h4'):
            self.headings.append([int(tag[1]), ''])

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f'</{tag}> at {self.getpos()}')

    def handle_data(self, data):
        if 'style' not in self.open:
            self.words.append(data)
        if self.open and self.open[-1] in ('h1', 'h2', 'h3', 'h4'):
            self.headings[-1][1] += data

    def values(self, attribute):
        return [value for _, name, value in self.attributes if name == attribute]


def write_png(path, array):
    """As images.write_png, without its wait for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def add_pictures(layout, split):
    """Pictures, true masks and the list of step 1."""
    folder, lines = layout.originals(split), []
    y, x = np.mgrid[:30, :40]
    for number, name in enumerate(NAMES):
        colour = np.array([150 + 8 * number, 120, 90])
        inside = (x - 20) ** 2 + (y - 15) ** 2 < (5 + number % 8) ** 2
        write_png(folder / f'Images/{name}.png',
                  np.where(inside[..., None], colour // 2, colour).astype(np.uint8))
        write_png(folder / f'Annotation/{name}_segmentation.png', inside.astype(np.uint8) * 255)
        lines.append(f'Images/{name}.png Annotation/{name}_segmentation.png\n')
    layout.lists.mkdir(parents=True, exist_ok=True)
    layout.segmentation_list(split).write_text(''.join(lines))


def add_segmentation(layout, network, split, **facts):
    """An evaluation of a segmentation network: its summary."""
    rng = np.random.default_rng(len(network))
    scores = {kind: rng.uniform(0.3, 1, (len(NAMES), 5)) for kind in ('plain', 'tta')}
    scores['tta'][0] = 1   # the hostile name comes first
    for name in NAMES:
        found = (rng.random((30, 40)) < 0.5).astype(np.uint8) * 255
        write_png(layout.results / f'{network}_{split}_masks/{name}_segmentation.png', found)
    return evaluation.report_segmentation(layout, network, split, NAMES, scores, facts)


def add_classification(layout, split, labels, **facts):
    """An evaluation of mask-CN, and the labels: its summary."""
    p = np.random.default_rng(3).dirichlet(np.ones(3), len(NAMES)) + 0.4 * np.eye(3)[labels]
    p /= p.sum(1, keepdims=True)
    rows = [f'"{name.replace(chr(34), 2 * chr(34))}",{int(label == 1)},{int(label == 2)}\n'
            for name, label in zip(NAMES, labels, strict=True)]
    layout.data.mkdir(parents=True, exist_ok=True)
    layout.labels(split).write_text('image_id,melanoma,seborrheic_keratosis\n' + ''.join(rows))
    results = {'9-crop': p, '1-crop': p[::-1]}
    return evaluation.report_classification(layout, split, NAMES, results, labels, facts)


class Maps:
    """In mask-CN's place: a map is 1 in the row of its class, and -1 elsewhere."""
    device = torch.device('cpu')

    def __call__(self, pictures, coarse, classes):
        rows = torch.eye(3)[classes] * 2 - 1
        return None, rows[:, None, :, None].expand(-1, 1, 3, 3)


def add_maps(layout, split, labels):
    """The maps of the images that `add_classification` got wrong."""
    _, names, p = evaluation.read_csv(layout.results / f'MaskCN_{split}.csv')
    data = Classification(np.zeros((len(names), 8, 8, 3), np.uint8), None, labels, np.arange(len(names)),
                          list(names), '')
    evaluation.write_error_maps(layout, split, Maps(), data, p, labels, 2)


def add_run(layout, network):
    """A training run of four validations, the last of them without a score."""
    layout.run(network).mkdir(parents=True)
    scores = ('mean AUC', 'melanoma AUC') if network == 'MaskCN' else ('JA', 'DI')
    rows = [{'step': 10 * k, 'loss': 1 / k, 'dice': 0.8 / k, **dict.fromkeys(scores, score)}
            for k, score in enumerate((0.6, 0.7, 0.8, float('nan')), start=1)]
    (layout.run(network) / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (layout.run(network) / 'config.json').write_text(json.dumps(
        {'network': network, 'settings': {'RECIPE': 'paper', 'SHIFT': [0.0, 0.1], 'NOTE': '<b>bold'},
         'versions': {'torch': '9.8.7'}}))


@pytest.fixture(scope='module', autouse=True)
def few_resamples():
    """Intervals are the evaluation's business; a thousand resamples would take most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, 'RESAMPLES', 50)
        yield


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """(layout, {network: summary}, page as text) of a root that lacks nothing."""
    layout = Layout(tmp_path_factory.mktemp('report') / 'root')
    add_pictures(layout, 'Testing')
    facts = {'recipe': 'paper', 'data': 'da7ada7ada7a', 'settings': {'TTA': True}}
    summaries = {network: add_segmentation(layout, network, 'Testing', **facts, **more) for network, more in (
        ('CoarseSN', {}), ('EnhancedSN', {'coarse_sn': 'c0a'}))}
    summaries['MaskCN'] = add_classification(layout, 'Testing', LABELS)
    add_maps(layout, 'Testing', LABELS)
    for network in report.NETWORKS:
        add_run(layout, network)
    return layout, summaries, report.write(layout).read_text(encoding='utf-8')


@pytest.fixture
def empty(tmp_path):
    return Layout(tmp_path / 'root')


# Numbers

def test_every_score_of_the_tables_is_there(full):
    _, summaries, page = full
    page = page.replace('\n', '')
    for network in ('CoarseSN', 'EnhancedSN'):
        for kind in ('with TTA', 'without TTA'):
            scores = summaries[network][kind]
            cells = ''.join(f'<td>{100 * scores[name]:.1f}<small>[{100 * scores["ci95"][name][0]:.1f}, '
                            f'{100 * scores["ci95"][name][1]:.1f}]</small></td>'
                            for name in scoring.COLUMNS)
            assert f'<th scope="row">{network}, {kind}</th>{cells}<td>12</td>' in page
    row = paper_scores.SEGMENTATION['EnhancedSN', 'Testing']
    printed = ''.join(f'<td>{value:.1f}</td>' for value in row.values()) + '<td>–</td>'
    assert f'EnhancedSN, paper</th>{printed}' in page
    nine, one = (summaries['MaskCN'][kind] for kind in ('9-crop', '1-crop'))
    for task in ('melanoma', 'keratosis'):
        for name in ('AP', 'AC', 'SE', 'SP'):
            assert (f'{task} {name}</th><td>–</td><td>{100 * nine[task][name]:.1f}</td>'
                    f'<td>{100 * one[task][name]:.1f}</td>') in page
        low, high = nine['ci95'][f'{task} AUC']
        assert (f'{task} AUC</th><td>{paper_scores.CLASSIFICATION["Testing"][task]}</td><td>'
                f'{100 * nine[task]["AUC"]:.1f}<small>[{100 * low:.1f}, {100 * high:.1f}]</small>') in page
    assert f'mean AUC</th><td>93.8</td><td>{100 * nine["mean AUC"]:.1f}<small>' in page
    assert (f'balanced accuracy</th><td>–</td><td>{100 * nine["balanced accuracy"]:.1f}</td>'
            f'<td>{100 * one["balanced accuracy"]:.1f}</td>') in page


def test_the_confusion_matrix_counts_image_by_image(full):
    layout, summaries, page = full
    decided = evaluation.read_csv(layout.results / 'MaskCN_Testing.csv')[2].argmax(1)
    counts = [[sum((LABELS == true) & (decided == found)) for found in range(3)] for true in range(3)]
    assert summaries['MaskCN']['confusion'] == counts and 0 < np.trace(counts) < len(NAMES)
    matrix = Reader(re.search(r'<table class="matrix">.*?</table>', page, re.S)[0])
    shown = ' '.join(f'{name} ' + ' '.join(f'{n} {100 * n / sum(row):.0f} %' for n in row) + f' {sum(row)}'
                     for name, row in zip(PAPER.names, counts, strict=True))
    assert matrix.text.split('images ')[-1].strip() == shown
    assert summaries['MaskCN']['balanced accuracy'] == pytest.approx(
        np.mean([row[number] / sum(row) for number, row in enumerate(counts)]))


def test_misclassified_pictures_stand_with_both_maps(full):
    layout, summaries, page = full
    _, names, p = evaluation.read_csv(layout.results / 'MaskCN_Testing.csv')
    wrong = sorted(np.flatnonzero(p.argmax(1) != LABELS), key=lambda number: -p[number].max())
    text = Reader(page.partition('id="errors"')[2].partition('</section>')[0]).text
    captions = re.findall(r'found: (\w+) +true: (\w+) +(\S.*?): ([\d.]+) % (\w+), true: (\w+)', text)
    assert captions == [(PAPER.names[p[number].argmax()], PAPER.names[LABELS[number]], names[number],
                         f'{100 * p[number].max():.1f}', PAPER.names[p[number].argmax()],
                         PAPER.names[LABELS[number]]) for number in wrong]
    assert f'{len(wrong)} of {len(names)} images' in text
    image, first, second = (
        cv2.imdecode(np.frombuffer(base64.b64decode(picture['data'].partition(',')[2]), np.uint8), 1)
        for picture in report.errors(layout, 'Testing', report.evaluations_below(layout, [])[
            'MaskCN', 'Testing'])['cases'][0]['pictures'])
    for drawn, number in ((first, p[wrong[0]].argmax()), (second, LABELS[wrong[0]])):
        rows = abs(drawn.astype(int) - image).mean((1, 2))
        assert rows.argmax() // (len(rows) / 3) == number   # heat lies where the map of that class is high


def test_damaged_maps_are_named_and_their_pictures_left_out(full, empty):
    good = evaluation.error_maps_path(full[0], 'Testing')
    assert evaluation.read_error_maps(good)
    add_classification(empty, 'Testing', LABELS)
    path, content = evaluation.error_maps_path(empty, 'Testing'), good.read_bytes()
    foreign = io.BytesIO()
    np.savez(foreign, names=np.array([{}]), classes=np.zeros((1, 2)), maps=np.zeros((1, 2, 3, 3)))
    for data in (b'', b'PK', foreign.getvalue(), *(content[:end] for end in range(9, len(content), 97))):
        path.write_bytes(data)
        with pytest.raises(ValueError):
            evaluation.read_error_maps(path)
    text = Reader(report.page(empty, MOMENT)).text
    assert 'MaskCN_Testing_errors.npz: cannot be read' in text
    assert f'python eval_MaskCN.py --SPLIT=Testing --ROOT={empty.root} makes them' in text
    path.write_bytes(content)   # of this evaluation, but its pictures are gone
    assert f'no picture: not in {empty.originals("Testing") / "Images"}' in Reader(
        report.page(empty, MOMENT)).text


def test_the_difference_is_paired_and_refuses_other_pictures(full):
    layout, summaries, page = full
    found = report.evaluations_below(layout, [])
    table = report.differences(found)['Testing']
    for row in table['rows']:
        mean, test = row['cells']
        between = 100 * (summaries['EnhancedSN'][row['title']] - summaries['CoarseSN'][row['title']])
        assert float(mean['value']) == pytest.approx(between, abs=0.06)
        low, high = map(float, mean['interval'].split(', '))
        assert low < between < high and test.startswith('p ')
    assert [row['title'] for row in table['rows']] == ['JA', 'DI', 'thresholded JA']
    assert 'enhanced-SN minus coarse-SN, with TTA, paired over 12 images; of so few images' in page
    assert 'also chose' not in page   # of validation alone
    assert 'p is not corrected for the number of tests' in page.replace('\n', ' ')
    coarse, enhanced = found['CoarseSN', 'Testing'], found['EnhancedSN', 'Testing']
    before = enhanced | {'summary': enhanced['summary'] | {'coarse_sn': None}}   # as of an earlier version
    assert 'is not recorded' in report.differences(found | {('EnhancedSN', 'Testing'): before})['Testing'][
        'caption']
    order = np.arange(12)[::-1]   # another order of the same pictures
    turned = coarse | {'names': coarse['names'][::-1], 'values': coarse['values'][order]}
    assert report.differences(found | {('CoarseSN', 'Testing'): turned})['Testing'] == table
    for change, why in (({'summary': coarse['summary'] | {'data': 'x'}}, 'not of the same pictures'),
                        ({'names': ('x', *coarse['names'][1:])}, 'not of the same pictures'),
                        ({'summary': coarse['summary'] | {'with TTA': None}}, 'test-time augmentation'),
                        ({'summary': coarse['summary'] | {'scales': [999]}}, 'same input sides'),
                        ({'summary': coarse['summary'] | {'weights': {'CoarseSN': 'x'}}},
                         'builds on another coarse-SN (c0a) than the one that was scored (x)'),
                        ({'values': None, 'faults': 'no csv'}, 'no csv')):
        assert why in report.differences(found | {('CoarseSN', 'Testing'): coarse | change})['Testing']


def test_scores_on_drawn_pictures_stand_without_the_papers(full, empty, capsys):
    """Also where the data are no longer below the root: the evaluation says it."""
    add_segmentation(empty, 'EnhancedSN', 'Testing', drawn_pictures=True)
    add_classification(empty, 'Testing', LABELS, drawn_pictures=True)
    printed, text = capsys.readouterr().out, Reader(report.page(empty, MOMENT)).text
    for words in (printed, text):
        assert evaluation.DRAWN_PICTURES in words and 'paper' not in words.replace("the paper's, which", '')
    assert evaluation.DRAWN_PICTURES not in full[2] and 'EnhancedSN, paper' in full[2]
    add_run(other := Layout(empty.root / 'other'), 'MaskCN')   # real pictures, a network of drawn ones
    (other.run('MaskCN') / 'config.json').write_text(json.dumps({'inputs': {'drawn_pictures': True}}))
    assert 'Trained on pictures that a program drew: MaskCN.' in Reader(report.page(other, MOMENT)).text


def test_curves_rates_and_facts_are_told_in_words(full):
    _, summaries, page = full
    text = Reader(page).text.replace('\xa0', ' ')
    assert 'Best JA: 80.0 % at step 30.' in text and 'Best mean AUC: 80.0 % at step 30.' in text
    assert f'Testing: melanoma AUC {100 * summaries["MaskCN"]["melanoma"]["AUC"]:.1f} %' in text
    assert f'EnhancedSN on Testing: mean {100 * summaries["EnhancedSN"]["JA"]:.1f} %' in text
    for fact in ('da7ada7ada7a', '9.8.7', '0.0, 0.1', 'Recipe: paper', 'not a medical device'):
        assert fact in text


def test_calibration_equals_a_count_image_by_image():
    rng = np.random.default_rng(0)
    probability = np.r_[rng.random(50), 0.0, 1.0]
    happened = rng.random(52) < probability
    counts, predicted, share, error = charts.calibration(probability, happened)
    total = 0
    for number in range(10):
        held = [i for i in range(52) if number == min(9, int(probability[i] * 10))]
        assert counts[number] == len(held) > 0
        assert predicted[number] == pytest.approx(sum(probability[i] for i in held) / len(held))
        assert share[number] == pytest.approx(sum(happened[i] for i in held) / len(held))
        total += abs(sum(probability[i] - happened[i] for i in held)) / 52
    assert error == pytest.approx(total)
    # empty bins count nothing
    assert charts.calibration(np.array([0.25]), np.array([True]))[3] == 0.75


@pytest.mark.parametrize('count', [1, 2, 3, 5, 9, 40])
def test_best_median_and_worst_are_different_pictures(count):
    scores = np.random.default_rng(count).permutation(count) / count
    groups = report.extremes([f'{number:02}' for number in range(count)], scores)
    chosen = [number for numbers in groups.values() for number in numbers]
    assert len(set(chosen)) == len(chosen) == min(9, count if count < 3 else 3 * (count // 3))
    assert scores[groups['Best'][0]] == max(scores)
    assert 'Worst' not in groups or scores[groups['Worst'][-1]] == min(scores)
    if count >= 9:
        assert np.mean(scores[groups['Median']]) == pytest.approx(np.median(scores), abs=1 / count)


# The page as HTML

def test_the_page_is_sound_html_with_all_sections(full):
    reader = Reader(full[2])
    assert reader.faults == []
    levels = [level for level, _ in reader.headings]
    assert [title for level, title in reader.headings if level == 2] == SECTIONS
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert ('html', 'lang', 'en') in reader.attributes
    assert full[2].count('<svg') == full[2].count('role="img" aria-label="') == 6 + 1 + 3 + 2
    pictures = [name for tag, name, _ in reader.attributes if tag == 'img']
    errors = len(LABELS) - np.trace(full[1]['MaskCN']['confusion'])
    assert pictures.count('alt') == pictures.count('src') == 2 * 9 * 4 + 3 * errors
    assert len(full[2]) < 5_000_000


def test_the_page_needs_nothing_from_outside(full):
    reader = Reader(full[2])
    assert all(source.startswith('data:image/') for source in reader.values('src'))
    ids = reader.values('id')
    assert len(set(ids)) == len(ids)
    inner = reader.values('href') + re.findall(r'url\(([^)]*)\)', full[2])
    assert inner and {name.removeprefix('#') for name in inner} <= set(ids)
    outside = re.sub(r'base64,[^"]*', '', full[2])
    assert not re.search(r'https?:|<script|<link|@import|\bon\w+=', outside)


def test_text_of_others_is_escaped(full):
    page = full[2]
    assert '<script' not in page and '<b>' not in page
    assert str(escape(HOSTILE)) in page and '&lt;b&gt;bold' in page
    assert f'{HOSTILE}: image' in Reader(page).values('alt')


def test_the_page_is_a_function_of_the_files(full):
    page = report.page(full[0], MOMENT)
    assert '2024-02-29 12:30+00:00' in page
    assert re.sub(r'<time.*?</time>', '', page) == re.sub(r'<time.*?</time>', '', full[2])


@pytest.mark.parametrize('name', ['$x$', r'$\frac{$', '_a & <b>'])
def test_names_of_classes_stand_in_the_charts_as_they_are(name):
    """They are neither formulas nor left out of legends, as Matplotlib would have it."""
    rows = [{'step': step, 'mean AUC': 0.5, f'{name} AUC': 0.1 * step} for step in range(3)]
    p = np.random.default_rng(0).dirichlet(np.ones(2), 12)
    curves = charts.curve_charts('MaskCN', rows, {name: 1})[-1]
    roc, = charts.roc_charts('Testing', p, np.arange(12) % 2, {name: 1})
    bins = charts.reliability_chart('Testing', name, 1, p, np.arange(12) % 2)
    for drawn, label in ((curves, f'{name} AUC'), (roc, f'{name}, as decided'), (bins, name)):
        assert f'>{escape(label)}</text>' in drawn['svg'].replace('&quot;', '&#34;')


# Roots where something is missing

def test_an_empty_root_is_refused(empty):
    with pytest.raises(InputError, match='nothing to report'):
        report.write(empty)
    assert not (empty.results / 'report.html').exists()


def test_a_training_alone_is_reported(empty):
    add_run(empty, 'CoarseSN')
    text = Reader(report.page(empty, MOMENT)).text
    assert 'CoarseSN: training loss' in text
    for script in ('train_MaskCN.py', 'eval_MaskCN.py --SPLIT=Testing', 'eval_EnhancedSN.py --SPLIT=Testing '
                   f'--NETWORK=CoarseSN --ROOT={empty.root} makes it.'):
        assert f'python {script}' in text


def test_one_evaluation_without_pictures_or_training_is_reported(empty):
    add_segmentation(empty, 'CoarseSN', 'Validation')
    reader = Reader(report.page(empty, MOMENT))
    assert reader.faults == []
    assert [title for level, title in reader.headings if level == 2] == SECTIONS
    assert ('EnhancedSN on Validation is not there yet: '
            'python eval_EnhancedSN.py --SPLIT=Validation') in reader.text
    assert 'MaskCN has no training log: python train_MaskCN.py' in reader.text
    assert scoring.SELECTED.format('') in reader.text
    assert 'Left out: ' in reader.text and 'Validation_seg.txt: is missing' in reader.text
    assert 'Testing' not in reader.text


def test_a_split_of_one_class_has_no_auc_and_no_roc_curve(empty):
    add_classification(empty, 'Validation', np.zeros(len(NAMES), int))
    page = report.page(empty, MOMENT)
    assert 'melanoma AUC</th><td>94.6</td><td>–</td>' in page
    assert 'undefined' in page and 'no ROC curve' in page and 'Reliability diagram' in page
    assert 'melanoma SE</th><td>–</td><td>–</td><td>–</td>' in page   # the paper prints none
    assert 'melanoma SP</th><td>–</td><td>–</td>' not in page


def test_labels_that_were_corrected_since_are_not_mixed_with_earlier_scores(empty):
    add_classification(empty, 'Testing', LABELS)
    path = empty.labels('Testing')
    assert 'has changed since' not in report.page(empty, MOMENT)
    path.write_text(re.sub('[01],[01]\n', '0,0\n', path.read_text()))   # all are nevi
    reader = Reader(report.page(empty, MOMENT))
    assert f'{path.name} has changed since; run eval_MaskCN.py again' in reader.text
    assert 'Reliability diagram' not in reader.text


def test_damaged_and_foreign_files_are_named_and_the_rest_is_reported(empty):
    add_pictures(empty, 'Testing')
    add_segmentation(empty, 'CoarseSN', 'Testing')
    add_segmentation(empty, 'EnhancedSN', 'Testing', weights={'EnhancedSN': '0' * 16})
    add_classification(empty, 'Testing', LABELS)
    add_run(empty, 'CoarseSN')
    empty.labels('Testing').unlink()
    (empty.run('CoarseSN') / 'metrics.jsonl').write_text('{"step"')
    (empty.results / 'EnhancedSN_Testing.csv').write_text('image_id,JA\na,b\n')
    (empty.results / 'MaskCN_Validation.json').write_text('[1]')
    (empty.results / f'CoarseSN_Testing_masks/{HOSTILE}_segmentation.png').unlink()
    checkpoints.save({}, empty.weights('EnhancedSN'))
    reader = Reader(report.page(empty, MOMENT))
    assert reader.faults == []
    for line in ('CoarseSN/metrics.jsonl: cannot be read', 'results/MaskCN_Validation.json: cannot be read',
                 'results/EnhancedSN_Testing.csv: cannot be read', 'the labels cannot be read',
                 f'{HOSTILE}: JA 100.0', 'no picture:', 'evaluated with other weights of EnhancedSN'):
        assert line in reader.text, line
    assert 'CoarseSN on Testing: mean' in reader.text and 'EnhancedSN, with TTA' in reader.text


def test_scores_of_other_networks_or_pictures_than_the_present_are_marked(empty):
    add_pictures(empty, 'Testing')
    checkpoints.save({}, empty.weights('CoarseSN'))
    facts = {'weights': {'CoarseSN': files.fingerprint(empty.weights('CoarseSN'))}}
    add_segmentation(empty, 'CoarseSN', 'Testing', **facts)
    add_segmentation(empty, 'EnhancedSN', 'Testing', weights={'MaskCN': '0' * 16})
    add_classification(empty, 'Testing', LABELS, **facts)
    found = report.evaluations_below(empty, [])
    assert {key: item['outdated'] for key, item in found.items() if item['outdated']} == {
        ('EnhancedSN', 'Testing'): ['EnhancedSN on Testing was evaluated with weights of MaskCN that are no '
                                    'longer in models/.']}
    lines = empty.segmentation_list('Testing').read_text().splitlines(keepends=True)
    empty.segmentation_list('Testing').write_text(''.join(lines[2:]))   # as where splits are dealt anew
    crop = 'ISIC_0000003_9_1.png'
    write_png(empty.crops('Testing') / crop, np.zeros((4, 4), np.uint8))
    empty.classification_list('Testing').write_text(f'{crop} 0\n')
    text = Reader(report.page(empty, MOMENT)).text
    for network, gone in (('CoarseSN', 2), ('EnhancedSN', 2), ('MaskCN', 11)):
        assert (f'{network} on Testing was evaluated on other pictures than those now listed: {gone} of 12 '
                'are no longer, 0 are new.') in text
    for marked in ('CoarseSN, without TTA', 'EnhancedSN, with TTA', '1-crop', 'over 12 images'):
        assert f'{marked} (outdated)' in text
    rows = report.segmentation_scores(found)['Testing']['rows']   # of before: EnhancedSN's alone
    assert [row['title'].endswith('(outdated)') for row in rows] == [False] * 3 + [True] * 2


def test_pictures_are_the_listed_ones_whichever_way_unicode_spells_them(empty, monkeypatch):
    monkeypatch.setitem(globals(), 'NAMES', ['mo\u0308le', *NAMES[1:]])   # as a Mac has it
    add_pictures(empty, 'Testing')
    add_segmentation(empty, 'EnhancedSN', 'Testing', weights={})
    assert report.evaluations_below(empty, [])['EnhancedSN', 'Testing']['outdated'] == []


def test_masks_of_an_interrupted_evaluation_are_not_shown(empty):
    add_pictures(empty, 'Testing')
    add_segmentation(empty, 'CoarseSN', 'Testing')
    segmented = [('CoarseSN', 'Testing', report.evaluations_below(empty, [])['CoarseSN', 'Testing'])]
    assert report.pictures(empty, segmented)[0]['groups']
    (empty.results / 'CoarseSN_Testing_masks' / scoring.INCOMPLETE).touch()
    part, = report.pictures(empty, segmented)
    assert 'was not finished' in part['why'] and not part['groups']


# In a browser

MEASURE = """<!DOCTYPE html><title>measure</title>
<iframe src="report.html" width="1280" height="900"></iframe>
<iframe src="report.html" width="390" height="900"></iframe><pre id="seen"></pre><script>
window.onload = () => {
  const pages = [...document.querySelectorAll('iframe')].map(frame => frame.contentDocument);
  const height = shape => shape.getBoundingClientRect().height;
  const seen = pages.map(page => ({
    width: page.documentElement.scrollWidth, text: page.body.innerText,
    broken: [...page.images].filter(image => !image.naturalWidth).length,
    charts: [...page.querySelectorAll('svg')].filter(chart => height(chart) > 100).length,
    small: [...page.querySelectorAll('svg text')].filter(word => height(word) < 9).length}));
  document.getElementById('seen').textContent = JSON.stringify(seen);
};</script>"""


@pytest.mark.skipif(BROWSER is None, reason='no Chromium is installed')
def test_a_browser_shows_the_page_without_errors_at_desktop_and_phone_width(full, tmp_path):
    shutil.copy(full[0].results / 'report.html', tmp_path)
    (tmp_path / 'measure.html').write_text(MEASURE)

    def browse(page, *options):
        command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
                   '--disable-background-networking', '--disable-component-update', '--disable-sync',
                   f'--user-data-dir={tmp_path / "profile"}', '--enable-logging=stderr', '--v=0',
                   '--allow-file-access-from-files', *options, (tmp_path / page).as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert 'CONSOLE' not in done.stderr, done.stderr
        return done.stdout

    dump = browse('measure.html', '--dump-dom')
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dump, re.S)[1]))
    for page, width in zip(seen, (1280, 390), strict=True):
        assert page['width'] <= width, f'the page scrolls sideways at {width} px'
        assert page['broken'] == page['small'] == 0
        assert page['charts'] == 12
        for words in (*SECTIONS, 'EnhancedSN, with TTA', 'not a medical device', 'melanoma, AUC', HOSTILE):
            assert words in page['text'], words
    browse('report.html', f'--screenshot={tmp_path / "shot.png"}', '--window-size=1280,3000')
    picture = images.read_rgb(tmp_path / 'shot.png')
    assert picture.shape == (3000, 1280, 3) and picture.std() > 10
