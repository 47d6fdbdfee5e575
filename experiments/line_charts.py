"""Line charts of a score over a hyperparameter, with intervals and the paper's points: Figs. 5, 6, 8, 9."""
from dataclasses import dataclass, field

import numpy as np

from engine import figures

WIDTH, PANEL_WIDTH, HEIGHT = 6.4, 4.2, 3.6   # inches: at least, for each panel, and of all
DODGE = 8           # points between series, so that their error bars do not cover each other
MARKERS = 'osv^PX'


@dataclass(frozen=True)
class Series:
    """One line: y over x, None where not run; low and high are the bars' ends, None without."""
    label: str
    x: list                                     # numbers, or texts, which are spaced evenly
    y: list
    low: list | None = None
    high: list | None = None
    paper: dict = field(default_factory=dict)   # {x: the paper's y}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: series over one quantity; the ticks are their x. log : logarithmic x."""
    xlabel: str
    series: list
    log: bool = False


def draw(panels, ylabel, title, paths):
    """Draw panels beside each other into every path of `paths`, the suffix saying the format (png, pdf).

    They share the y axis, and equally labelled series a colour. The paper's points are hollow diamonds.
    """
    from matplotlib.lines import Line2D  # slow to import
    drawn = [one for panel in panels for one in panel.series]
    styles = {label: number for number, label in enumerate(dict.fromkeys(one.label for one in drawn))}
    figure, grid = figures.subplots(1, len(panels), (max(WIDTH, PANEL_WIDTH * len(panels)), HEIGHT))
    grid = np.atleast_1d(grid)
    heights = _range(y for one in drawn for values in (one.y, one.low, one.high, one.paper.values())
                     for y in values or () if y is not None)
    handles = {}
    for axes, panel in zip(grid, panels, strict=True):
        handles |= _panel(axes, panel, styles)
        axes.set_ylim(*heights)
    if any(one.paper for one in drawn):
        handles['paper'] = Line2D([], [], color='dimgray', marker='D', fillstyle='none', linestyle='none')
    grid[0].set_ylabel(ylabel)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    figures.save(figure, paths)


def _panel(axes, panel, styles):
    """The series of one panel, side by side: {label: what a legend shows of it}.

    styles : {label: number of colour and marker}
    """
    from matplotlib.transforms import ScaledTranslation  # slow to import
    ticks = list(dict.fromkeys(x for one in panel.series for x in (*one.x, *one.paper)))
    named = any(isinstance(x, str) for x in ticks)
    place = {x: number if named else x for number, x in enumerate(ticks)}
    axes.set(xlabel=panel.xlabel, xscale='log' if panel.log else 'linear')
    drawn = {}
    for number, one in enumerate(panel.series):
        shift = (number - (len(panel.series) - 1) / 2) * DODGE
        move = ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
        style = styles[one.label]
        marker = MARKERS[style % len(MARKERS)]
        drawn[one.label] = _draw(axes, one, place, f'C{style % 10}', marker, axes.transData + move)
    axes.set_xticks(list(place.values()), list(map(str, ticks)))
    axes.minorticks_off()
    axes.set_xlim(*_range(place.values(), panel.log))   # matplotlib's own is misled by the shifts
    axes.grid(alpha=0.3)
    return drawn


def _draw(axes, one, place, colour, marker, transform):
    """One series: its line with bars, open where a point was not run, and the paper's points; the former."""
    y, low, high = (np.array(values, dtype=float) for values in (one.y, one.low or one.y, one.high or one.y))
    bars = axes.errorbar([place[x] for x in one.x], y, [y - low, high - y], color=colour, marker=marker,
                         markersize=5, capsize=3 if one.low else 0, linewidth=1.3, elinewidth=1,
                         transform=transform)
    axes.plot([place[x] for x in one.paper], list(one.paper.values()), 'D', color=colour, fillstyle='none',
              markersize=8, transform=transform)
    return bars


def _range(values, log=False):
    """Ends of an axis: all values, and a margin of 8 %."""
    values = np.fromiter(values, dtype=float)
    values = np.log10(values) if log else values
    if not values.size:
        return 0, 1
    margin = 0.08 * np.ptp(values) or 0.5
    ends = values.min() - margin, values.max() + margin
    return tuple(10 ** end for end in ends) if log else ends
