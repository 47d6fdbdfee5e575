"""Line charts: what is drawn lies inside the axes; files; panels in several formats."""
import io

import numpy as np
import pytest
from PIL import Image

from engine import figures
from experiments import line_charts
from experiments.line_charts import Series
from report import charts

K = [10, 30, 50, 100, 150]
ONE = Series('enhanced-SN', K, [78.9, 80.2, None, 79.0, 78.7], [75.6, 77.0, None, 75.7, 75.3],
             [82.0, 83.1, None, 82.0, 81.8], {30: 80.0, 50: 79.5})
TWO = Series('coarse-SN', K, [77.0, 76.0, 75.0, 74.0, 73.0])


@pytest.fixture
def drawn(monkeypatch):
    """draw(series, ...) -> the figure's axes, drawn and not written."""
    figure = []
    monkeypatch.setattr(figures, 'save', lambda found, paths: figure.append(found))

    def draw(series, **options):
        line_charts.draw([line_charts.Panel('K', series, **options)], 'JA', 'Fig. 5', [])
        figure[-1].savefig(io.BytesIO())   # lays it out
        return figure[-1].axes[0]
    return draw


def test_png_and_pdf_are_written_and_equal_runs_give_equal_bytes(tmp_path):
    paths = [tmp_path / name for name in ('a.png', 'a.pdf', 'b.png', 'b.pdf')]
    for written in (paths[:2], paths[2:]):
        line_charts.draw([line_charts.Panel('K', [ONE, TWO])], 'JA', 'Fig. 5', written)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    size = line_charts.WIDTH, line_charts.HEIGHT
    assert Image.open(paths[0]).size == tuple(int(figures.DPI * inches) for inches in size)
    assert paths[1].read_bytes().startswith(b'%PDF') and b'/Type3' not in paths[1].read_bytes()
    assert [path.read_bytes() for path in paths[:2]] == [path.read_bytes() for path in paths[2:]]


@pytest.mark.parametrize('options', [{}, {'log': True}])
def test_all_points_and_bars_lie_inside_the_axes(drawn, options):
    axes = drawn([ONE, TWO], **options)
    box = axes.get_window_extent()
    found = []
    for line in axes.lines:
        pixels = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
        found.append(pixels[np.isfinite(pixels).all(1)])
    found = np.concatenate(found)
    assert len(found) == 4 + 5 + 2 + 8   # points of both, the paper's, ends of bars
    assert (found > [box.x0, box.y0]).all() and (found < [box.x1, box.y1]).all()


def test_labels_that_begin_with_an_underscore_stand_in_the_legend(drawn):
    legend, = drawn([Series('_own', K, TWO.y), ONE]).figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['_own', 'enhanced-SN', 'paper']


def test_ticks_are_the_given_x_and_the_papers_points_are_hollow(drawn):
    axes = drawn([ONE, TWO])
    assert axes.get_xticks().tolist() == K
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(map(str, K))
    diamonds = [line for line in axes.lines if line.get_marker() == 'D']
    assert [line.get_fillstyle() for line in diamonds] == ['none', 'none']
    assert diamonds[0].get_xydata().tolist() == [[30, 80.0], [50, 79.5]] and not len(diamonds[1].get_xydata())
    assert [text.get_text() for text in axes.figure.legends[0].texts] == ['enhanced-SN', 'coarse-SN', 'paper']


def test_texts_on_x_are_spaced_evenly(drawn):
    axes = drawn([Series('a', ['0.01', '0.05', '0.5'], [1, 2, 3], paper={'0.1': 2})])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['0.01', '0.05', '0.5', '0.1']
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]


def test_series_stand_beside_each_other(drawn):
    axes = drawn([TWO, TWO, TWO])
    starts = [container.lines[0].get_transform().transform((10, 75))[0] for container in axes.containers]
    assert np.diff(starts) == pytest.approx(line_charts.DODGE / 72 * figures.DPI)


def test_panels_share_the_y_axis_and_the_colours_of_their_labels(monkeypatch):
    figure = []
    monkeypatch.setattr(figures, 'save', lambda found, paths: figure.append(found))
    other = Series('another', ['0.1', '0.3'], [60.0, 61.0])
    same = Series('enhanced-SN', ['0.1', '0.3'], [62.0, 63.0], [None, None], [None, None], {'0.3': 80.0})
    panels = [line_charts.Panel('K', [ONE], log=True), line_charts.Panel('margin', [other, same])]
    line_charts.draw(panels, 'JA', 'Fig. 5', [])
    first, second = figure[0].axes
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[0] < 60
    assert (first.get_xscale(), second.get_xscale()) == ('log', 'linear')
    assert [text.get_text() for text in figure[0].legends[0].texts] == ['enhanced-SN', 'another', 'paper']
    colours = [[container.lines[0].get_color() for container in axes.containers] for axes in (first, second)]
    assert colours == [['C0'], ['C1', 'C0']]


@pytest.mark.parametrize('series', [[], [Series('a', [], [])], [Series('a', [5], [None])],
                                    [Series('a', [5], [70.0], [70.0], [70.0])]])
def test_little_or_nothing_to_draw(drawn, series):
    low, high = drawn(series).get_ylim()
    assert low < high and np.isfinite([low, high]).all()


def test_panels_in_several_formats(tmp_path):
    picture = np.full((20, 30, 3), 128, np.uint8)
    paths = [tmp_path / 'panel.png', tmp_path / 'panel.pdf']
    figures.panel([('one', [picture])], ['image'], paths)
    assert all(path.stat().st_size > 500 for path in paths)


@pytest.mark.parametrize('monitor, smaller, step', [('JA', False, 3), ('JA', True, 6), (None, False, None)])
def test_curves_of_a_gan_with_a_score_or_without(monkeypatch, tmp_path, monitor, smaller, step):
    figure, rows = [], [{'step': k, 'lr D': 1e-4, 'lr G': 1e-4, 'loss D': 0.5, 'loss G': 0.4, 'JA': 1 / k}
                        for k in (3, 6)]
    monkeypatch.setattr(figures, 'save', lambda found, paths: figure.append(found))
    figures.curves(rows, monitor, tmp_path / 'curves.png', smaller)
    axes = {axes.get_title().partition(',')[0]: axes for axes in figure[0].axes if axes.get_title()}
    assert [*axes] == ['loss D', 'loss G', f'validation {monitor}' if monitor else 'JA']
    assert axes['loss D'].get_ylim() != axes['loss G'].get_ylim()   # scales of their own
    best = [one.get_title() for one in figure[0].axes if one.get_title().endswith(f'at step {step}')]
    assert len(best) == (monitor is not None)
    assert all(float(tick).is_integer() for one in axes.values() for tick in one.get_xticks())


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('trained', [[], [{'step': 4, 'lr': 1e-4, 'loss': 0.5, 'dice': 0.4, 'JA': 0.8}]])
def test_a_start_that_was_scored_has_a_place_on_the_curves(monkeypatch, tmp_path, trained):
    figure, rows = [], [{'step': 0, 'lr': 0.0, 'JA': 0.9}, *trained]
    monkeypatch.setattr(figures, 'save', lambda found, paths: figure.append(found))
    figures.curves(rows, 'JA', tmp_path / 'curves.png')
    *losses, right = (axes for axes in figure[0].axes if axes.get_title())
    assert [axes.get_title() for axes in losses] == ['loss', 'dice'] * bool(trained)
    assert right.lines[0].get_xdata().tolist() == [row['step'] for row in rows]
    drawn = [chart['caption'] for chart in charts.curve_charts('CoarseSN', rows, {})]
    assert any('training loss, dice' in caption for caption in drawn) == bool(trained)
