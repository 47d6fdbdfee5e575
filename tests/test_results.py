"""Scores of evaluation files: against metrics and sklearn, by hand, and what the bootstrap must obey."""
import numpy as np
import pytest

from dataset.classes import PAPER
from dataset.layout import Layout
from engine import bootstrap, metrics
from engine.errors import InputError
from experiments import results
from experiments.results import Part, Result
from mbdcnn import evaluation


def paired(first, second, column):
    return results.paired_difference([first], [second], column)


def ids(count, start=0):
    return tuple(f'ISIC_{number:07d}' for number in range(start, start + count))


def segmentation(*parts):
    """A Result of lists of JA, one a part; the other columns are 0."""
    made, start = [], 0
    for values in parts:
        table = np.zeros((len(values), 5))
        table[:, 0] = values
        made.append(Part(ids(len(values), start), table))
        start += len(values)
    return Result('segmentation', tuple(made))


def classified(seed, count=120, start=0, lean=0.8, decimals=2):
    """A Part with all classes, some probabilities tied."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, count - 3)])
    p = rng.gamma(1.0, size=(count, 3)) + lean * np.eye(3)[labels]
    return Part(ids(count, start), np.round(p / p.sum(1, keepdims=True), decimals), labels)


def classification(*parts):
    return Result('classification', parts)


# --- Reading

def test_what_the_evaluations_write_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, 'RESAMPLES', 200)
    layout, rng = Layout(tmp_path), np.random.default_rng(0)
    values = rng.random((7, 5))
    summary = evaluation.report_segmentation(layout, 'EnhancedSN', 'Testing', ids(7), {'plain': values}, {})
    found = results.read([layout.results / 'EnhancedSN_Testing.csv'])
    assert found.kind == 'segmentation' and found.count == 7 and found.parts[0].names == ids(7)
    assert found.parts[0].labels is None
    np.testing.assert_allclose(found.parts[0].values, values, atol=1e-6)
    for column in metrics.SEGMENTATION:
        assert results.score(found, column) == pytest.approx(summary[column], abs=1e-6)
        assert results.interval(found, column) == pytest.approx(
            summary['ci95'][column], abs=1e-6)

    part = classified(1, 60)
    summary = evaluation.report_classification(layout, 'Testing', part.names, {'9-crop': part.values},
                                               part.labels, {})
    labels = dict(zip(part.names, part.labels.tolist(), strict=True)) | {'another': 1}
    found = results.read([layout.results / 'MaskCN_Testing.csv'], labels)
    assert found.kind == 'classification' and found.parts[0].labels.tolist() == part.labels.tolist()
    for task in PAPER.tasks:
        for name in metrics.CLASSIFICATION:
            assert results.score(found, f'{task} {name}') == pytest.approx(summary[task][name])
    for column in ('mean AUC', 'melanoma AUC', 'keratosis AUC'):
        assert results.interval(found, column) == pytest.approx(
            summary['ci95'][column])


@pytest.mark.parametrize(('picture', 'of_isic'), [('ISIC_0000001.jpg', True), ('IMD003.png', False)])
def test_scores_on_ph2_stand_without_the_papers_of_isic(tmp_path, monkeypatch, capsys, picture, of_isic):
    monkeypatch.setattr(bootstrap, 'RESAMPLES', 200)
    layout = Layout(tmp_path)
    path = layout.originals('Testing') / 'Images' / picture
    path.parent.mkdir(parents=True)
    path.touch()
    evaluation.report_segmentation(layout, 'EnhancedSN', 'Testing', ids(3), {'plain': np.eye(3, 5)}, {})
    part = classified(1, 60)
    evaluation.report_classification(layout, 'Testing', part.names, {'9-crop': part.values}, part.labels, {})
    assert capsys.readouterr().out.count(' paper ') == 2 * of_isic


def test_every_bad_file_and_missing_label_is_named(tmp_path):
    head = 'image_id,nevus,melanoma,keratosis\n'
    texts = {'good': head + 'a,0.2,0.3,0.5\nb,1,0,0\n', 'short': head + 'c,0.2,0.3\nd,0.2,0.3,0.5\n',
             'range': head + 'e,0.2,1.3,0.5\n', 'nan': head + 'f,nan,0,0\n', 'word': head + 'g,x,0,0\n',
             'empty': '', 'rows': head, 'other': 'image,melanoma\nq,1\n',
             'mixed': 'image_id,JA,DI,pixel-AC,pixel-SE,pixel-SP\nz,1,1,1,1,1\n'}
    paths = [tmp_path / f'{name}.csv' for name in (*texts, 'missing', 'binary')]
    for path, text in zip(paths, texts.values(), strict=False):
        path.write_text(text)
    paths[-1].write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(InputError) as caught:
        results.read(paths, {'a': 0, 'd': 1})
    faults = caught.value.faults
    for name in ('short', 'range', 'nan', 'word', 'empty', 'rows', 'other', 'missing', 'binary'):
        assert sum(f'{name}.csv: cannot be read' in fault for fault in faults) == 1, name
    assert f'{paths[0]}: b has no label' in faults and 'must be of one kind' in faults[-1]
    assert len(faults) == 11
    with pytest.raises(InputError, match='a has no label'):
        results.read(paths[:1])
    assert results.read([tmp_path / 'mixed.csv']).kind == 'segmentation'


# --- Scores

@pytest.mark.parametrize('seed', range(3))
def test_scores_are_those_of_metrics_and_folds_are_averaged(seed):
    parts = classified(seed), classified(seed + 10, 80, 200, lean=0.2)
    columns = [f'{task} {name}' for task in PAPER.tasks for name in metrics.CLASSIFICATION] + ['mean AUC']
    assert set(columns) == set(results.COLUMNS['classification'])
    for column in columns:
        each = []
        for part in parts:
            expected = metrics.classification_scores(part.values, part.labels, PAPER.tasks)
            task, name = column.split()
            each.append(expected[column] if column == 'mean AUC' else expected[task][name])
            assert results.score(classification(part), column) == pytest.approx(each[-1], abs=1e-9)
        assert results.score(classification(*parts), column) == pytest.approx(np.mean(each), abs=1e-9)


def test_scales_of_the_folds_do_not_matter():
    first, second = classified(1), classified(2, start=500)
    scaled = Part(second.names, second.values * 0.01, second.labels)
    assert results.score(classification(first, second), 'mean AUC') \
        == results.score(classification(first, scaled), 'mean AUC')


def test_images_of_all_folds_count_alike_in_segmentation():
    assert results.score(segmentation([0.0], [1.0, 1.0, 1.0]), 'JA') == 0.75
    assert results.score(segmentation([0.0], [1.0, 1.0, 1.0]), 'DI') == 0.0


def test_one_class_alone_gives_none():
    part = classified(1, 40)
    bare = Part(part.names, part.values, np.where(part.labels == 2, 0, part.labels))   # as PH2 is
    assert results.score(classification(bare), 'keratosis AUC') is None
    assert results.score(classification(bare), 'mean AUC') is None
    assert results.interval(classification(bare), 'keratosis SE') is None
    assert paired(classification(bare), classification(bare), 'mean AUC') is None
    low, high = results.interval(classification(bare), 'melanoma AUC')
    assert low < results.score(classification(bare), 'melanoma AUC') < high
    other = Part(ids(40, 100), part.values, part.labels)
    assert results.score(classification(other, bare), 'keratosis AUC') is None


def test_columns_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match="'JA' is not a score of a classification"):
        results.score(classification(classified(0)), 'JA')
    with pytest.raises(ValueError, match='not a score of a segmentation'):
        results.interval(segmentation([1.0]), 'mean AUC')


# --- Intervals

def test_intervals_cover_the_truth():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(60):
        low, high = results.interval(segmentation(rng.beta(8, 2, 80)), 'JA')
        covered += low <= 0.8 <= high   # the mean of Beta(8, 2)
    assert covered >= 52   # 56 expected, as the coverage at n = 80 is 94 %


def test_folds_are_resampled_apart():
    halves = segmentation([0.2] * 20, [0.8] * 30)   # no spread within a fold
    assert results.interval(halves, 'JA') == pytest.approx((0.56, 0.56))
    low, high = results.interval(segmentation([0.2] * 20 + [0.8] * 30), 'JA')
    assert low < 0.5 and high > 0.62


def test_the_interval_over_seeds_is_that_of_their_mean():
    rng = np.random.default_rng(4)
    first, second = rng.random(50), rng.random(50)
    both = results.interval([segmentation(first), segmentation(second)], 'JA')
    assert both == pytest.approx(results.interval(segmentation((first + second) / 2), 'JA'))
    assert results.interval([segmentation(first)], 'JA') == results.interval(segmentation(first), 'JA')


# --- Paired differences

def test_equal_results_differ_by_nothing():
    for result, column in ((segmentation(np.random.default_rng(5).random(40)), 'JA'),
                           (classification(classified(5), classified(6, start=900)), 'mean AUC')):
        assert paired(result, result, column) == bootstrap.Difference(0.0, 0.0, 0.0, 1.0, 1000)


def test_a_constant_shift_is_found_exactly():
    values = np.random.default_rng(6).random(40) * 0.9
    found = paired(segmentation(values + 0.05), segmentation(values), 'JA')
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.p == 2 / (bootstrap.MOST_RESAMPLES + 1)
    back = paired(segmentation(values), segmentation(values + 0.05), 'JA')
    assert back.mean == pytest.approx(-0.05) and back.p == found.p


def test_pairs_are_by_id_not_by_place():
    part = classified(7)
    order = np.random.default_rng(0).permutation(len(part.names))
    shuffled = Part(tuple(np.array(part.names)[order].tolist()), part.values[order], part.labels[order])
    found = paired(classification(part), classification(shuffled), 'melanoma AP')
    assert found == bootstrap.Difference(0.0, 0.0, 0.0, 1.0, 1000)


def test_pairing_narrows_the_interval_and_p_follows_it():
    rng = np.random.default_rng(8)
    hard = rng.random(100) * 0.8   # how easy each image is, for both
    a, b = (segmentation(hard + shift + 0.02 * rng.random(100)) for shift in (0.01, 0.0))
    found = paired(a, b, 'JA')
    low, high = results.interval(a, 'JA')
    assert found.mean == pytest.approx(results.score(a, 'JA') - results.score(b, 'JA'))
    assert 0 < found.low < found.mean < found.high and found.high - found.low < (high - low) / 10
    assert found.p < 0.05
    noise = paired(segmentation(rng.random(100)), segmentation(rng.random(100)), 'JA')
    assert (noise.low < 0 < noise.high) == (noise.p > 0.05)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(9)
    ps = [paired(segmentation(rng.random(60)), segmentation(rng.random(60)), 'JA').p
          for _ in range(60)]
    assert np.mean(ps) == pytest.approx(0.5, abs=0.12) and sum(p < 0.1 for p in ps) <= 14


def test_seeds_are_averaged_within_each_resample():
    rng = np.random.default_rng(10)
    a, b = rng.random((3, 50)), rng.random((3, 50))
    found = results.paired_difference(list(map(segmentation, a)), list(map(segmentation, b)), 'JA')
    expected = paired(segmentation(a.mean(0)), segmentation(b.mean(0)), 'JA')
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.p))
    with pytest.raises(ValueError, match='3 and 2 results'):
        results.paired_difference(list(map(segmentation, a)), list(map(segmentation, b[:2])), 'JA')


def test_other_images_or_labels_or_folds_are_refused():
    part = classified(11, 20)
    cut = Part(part.names[1:], part.values[1:], part.labels[1:], 'cut.csv')
    other = Part(part.names, part.values, np.append(part.labels[:-1], (part.labels[-1] + 1) % 3), 'other.csv')
    whole = classification(part)
    for wrong, words in ((cut, f'cut.csv: {part.names[0]} is missing'),
                         (other, f'{part.names[-1]} has the class')):
        with pytest.raises(InputError, match=words):
            paired(whole, classification(wrong), 'mean AUC')
        with pytest.raises(InputError, match=words):
            results.interval([whole, classification(wrong)], 'mean AUC')
    with pytest.raises(InputError, match='one of 2 parts'):
        paired(whole, classification(part, classified(3, start=99)), 'mean AUC')
