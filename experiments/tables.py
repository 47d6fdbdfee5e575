"""Tables that set the paper's scores beside ours: text, Markdown, csv and LaTeX."""
import csv
import io
import math
import re
import statistics
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from engine import files
from experiments import results

WIDTH = 110     # characters of a line of text; more columns go into a second block
FIELDS = ('row', 'printed', 'column', 'paper', 'ours', 'difference', 'spread', 'low', 'high', 'seeds', 'note')
LATEX = str.maketrans({
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '#': r'\#', '%': r'\%',
    '_': r'\_', '^': r'\^{}', '~': r'\~{}', '<': '$<$', '>': '$>$', '|': '$|$', '±': r'$\pm$',
    '×': r'$\times$', 'λ': r'$\lambda$', '–': '--', '−': '$-$', '≤': r'$\le$', '≥': r'$\ge$',
    '[': '{[}', ']': '{]}'})   # a bracket after a line's end or a rule would be taken for an argument


@dataclass(frozen=True)
class Cell:
    """One score as printed and as measured; fractions, in every form of a table percent, or pixels."""
    paper: float | None = None
    values: tuple = ()               # ours, one a training seed; empty: not run
    interval: tuple | None = None    # (low, high), bootstrap 95 % over images, of the mean over the seeds
    note: str = ''                   # such as why it is missing
    scale: int = 100                 # what numbers are printed times: 100, or 1 for pixels

    @property
    def mean(self):
        """Ours, over the seeds; None where not run."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self):
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self):
        """Ours minus the paper's; None where one is unknown."""
        return None if self.paper is None or not self.values else self.mean - self.paper


@dataclass(frozen=True)
class Row:
    """A line of a table; `printed` marks one that only the paper has, such as other people's methods."""
    label: str
    cells: dict = field(default_factory=dict)   # {column title: Cell}
    printed: bool = False


@dataclass(frozen=True)
class Table:
    """A table: `name` as printed ('Table VI'), `notes` a list of sentences; `of_paper`, or one of our own."""
    name: str
    title: str
    columns: list
    rows: list
    notes: list = field(default_factory=list)
    of_paper: bool = True


def make_cell(paper, found, column, note=''):
    """The Cell of a score column (results.COLUMNS) from Results, one a training seed; none = not run.

    paper : percent; None or NaN where none is printed. InputError where the seeds hold different images.
    """
    scale = results.scale(column)
    paper = None if paper is None or math.isnan(paper) else paper / scale
    values = tuple(results.score(result, column) for result in found)
    if None in values:
        return Cell(paper, note=note or 'undefined: a part of the images has one class only', scale=scale)
    return Cell(paper, values, results.interval(found, column) if values else None, note, scale)


def write(table, folder, stem):
    """Write <folder>/<stem>.md, .csv and .tex, each completely or not at all; returns the paths."""
    paths = []
    for suffix, text in (('md', to_markdown(table)), ('csv', to_csv(table)), ('tex', to_latex(table))):
        paths.append(Path(folder) / f'{stem}.{suffix}')
        files.write_text(paths[-1], text)
    return paths


def _shown(table):
    """What a reader sees: ([(label, [pieces of each column's cell])], legend, list of notes)."""
    lines = [(row, [row.cells.get(column, Cell()) for column in table.columns]) for row in table.rows]
    cells = [cell for _, line in lines for cell in line]
    spread = ' ± standard deviation over seeds' if any(cell.spread is not None for cell in cells) else ''
    legend = (f'Percent: paper / ours{spread} (difference) [bootstrap 95 % interval over images]; '
              'a dash: not known from print, or not run.')
    if any(cell.scale == 1 for cell in cells):
        legend += ' Errors and distances are in pixels.'
    if any(row.printed for row in table.rows):
        legend += ' Rows with one number a cell are quoted from print.'
    notes = dict.fromkeys(_line(cell.note) for cell in cells if cell.note)   # (a), (b), ..., (aa), ...
    marks = {note: f'({chr(97 + n % 26) * (1 + n // 26)})' for n, note in enumerate(notes)}
    rows = [(row.label, [_pieces(cell, row.printed, marks) for cell in line]) for row, line in lines]
    return rows, legend, [*map(_line, table.notes), *(f'{mark} {note}' for note, mark in marks.items())]


def _line(text):
    """Text on one line: a note may be an error of several."""
    return ' '.join(text.split())


def _pieces(cell, printed, marks):
    """A cell as (paper, '/', ours, spread, difference, interval, mark); what does not apply is ''."""
    alone = printed or (cell.paper is None and not cell.values)
    scale = cell.scale
    return (_scaled(cell.paper, scale), '' if alone else '/', '' if alone else _scaled(cell.mean, scale),
            '' if cell.spread is None else f'± {scale * cell.spread:.1f}',
            # + 0.0: no -0.0
            '' if cell.difference is None else f'({round(scale * cell.difference, 1) + 0.0:+.1f})',
            f'[{", ".join(_scaled(end, scale) for end in cell.interval)}]' if cell.interval else '',
            marks.get(_line(cell.note), ''))


def _scaled(value, scale):
    return '-' if value is None else f'{scale * value:.1f}'


def to_text(table, width=WIDTH):
    """The table for the terminal, in blocks of as many columns as `width` characters hold."""
    rows, legend, notes = _shown(table)
    labels = [_line(label) for label, _ in rows]
    columns = [[title, *_aligned([pieces[place] for _, pieces in rows])]
               for place, title in enumerate(table.columns)]
    wide = 2 + max(len(text) for column in columns for text in column)
    some = max(1, (width - max(map(len, labels), default=0)) // wide)   # columns of a block
    blocks = [tabulate(list(zip(['', *labels], *columns[start:start + some], strict=True)), 'firstrow',
                       'plain', disable_numparse=True, preserve_whitespace=True)
              for start in range(0, len(columns), some)]
    head, below = ('\n'.join(textwrap.fill(text, width, break_on_hyphens=False) for text in texts)
                   for texts in ((f'{table.name}. {table.title}', legend), notes))
    lines = '\n\n'.join([head, *blocks, below]).split('\n')
    return '\n'.join(line.rstrip() for line in lines).rstrip() + '\n'


def _aligned(rows):
    """Tuples of pieces -> lines in which the pieces stand below each other."""
    widths = [max(map(len, pieces)) for pieces in zip(*rows, strict=True)]
    return [' '.join(piece.rjust(width) for piece, width in zip(row, widths, strict=True) if width)
            for row in rows]


def to_markdown(table):
    """The table for GitHub: `80.0 / 79.1 (-0.9) [76.0, 82.1]` in each cell, and what that means."""
    rows, legend, notes = _shown(table)
    lines = [[_markdown(label), *(' '.join(filter(None, pieces)) for pieces in cells)]
             for label, cells in rows]
    text = [f'### {_markdown(table.name)}. {_markdown(table.title)}', '', legend, '',
            tabulate(lines, ['', *map(_markdown, table.columns)], 'github', disable_numparse=True)]
    text += ['', *(f'- {_markdown(note)}' for note in notes)] if notes else []
    return '\n'.join(text) + '\n'


def _markdown(text):
    return re.sub(r'([\\|*<`])', r'\\\1', _line(text))


def to_csv(table):
    """The table with one line for each cell, columns FIELDS: percents with four digits, '' = unknown."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator='\n')
    lines.writerow(FIELDS)
    for row in table.rows:
        for column in table.columns:
            cell = row.cells.get(column, Cell())
            numbers = (cell.paper, cell.mean, cell.difference, cell.spread, *(cell.interval or (None, None)))
            lines.writerow([row.label, 'yes' if row.printed else 'no', column,
                            *('' if number is None else f'{cell.scale * number:.4f}' for number in numbers),
                            len(cell.values), _line(cell.note)])
    return text.getvalue()


def to_latex(table):
    """The table as a floating environment (package booktabs); intervals stand below the scores.

    More than two columns span both columns of a two-column page.
    """
    (rows, legend, notes), kind = _shown(table), 'table*' if len(table.columns) > 2 else 'table'
    slug = re.sub(r'[^a-z0-9]+', '-', table.name.lower()).strip('-')
    lines = []
    for label, cells in rows:
        gap = r'\addlinespace[2pt] ' if lines else ''
        lines.append([gap + _latex(label), *map(_latex_cell, cells)])
        if any(piece[5] for piece in cells):
            lines.append(['', *(rf'{{\scriptsize {piece[5]}}}' if piece[5] else '' for piece in cells)])
    tabular = tabulate(lines, ['', *map(_latex, table.columns)], 'latex_raw', disable_numparse=True,
                       colalign=('left', *['center'] * len(table.columns)))
    for rule in (r'\toprule', r'\midrule', r'\bottomrule'):   # its own booktabs form escapes once more
        tabular = tabular.replace(r'\hline', rule, 1)
    origin = f' ({table.name} of the original paper)' if table.of_paper else ''
    caption = _latex(f'{table.title or table.name}{origin}. {legend}')
    text = [rf'\begin{{{kind}}}[t]', r'\centering', rf'\caption{{{caption}}}', rf'\label{{tab:{slug}}}',
            r'\footnotesize', r'\setlength{\tabcolsep}{4pt}', tabular]
    if notes:
        text += [r'\par\smallskip', r'\begin{minipage}{\linewidth}', r'\footnotesize\raggedright',
                 '\\par\n'.join(map(_latex, notes)), r'\end{minipage}']
    return '\n'.join([*text, rf'\end{{{kind}}}']) + '\n'


def _latex(text):
    return _line(text).translate(LATEX)


def _latex_cell(pieces):
    """All of a cell but its interval."""
    shown = [piece for place, piece in enumerate(pieces) if piece and place != 5]
    return ' '.join('--' if piece == '-' else piece.replace('(-', '($-$').replace('±', r'$\pm$')
                    for piece in shown)
