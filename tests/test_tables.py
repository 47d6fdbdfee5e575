"""Tables in their four forms: exact text of a small one, and what must hold for any."""
import csv
import io
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from experiments import results, tables
from experiments.tables import Cell, Row, Table

QUICK = settings(max_examples=40, deadline=None)

SMALL = Table('Table VI', 'What each stage gives', ['JA', 'mean_AUC'], [
    Row('Yuan & Lo', {'JA': Cell(0.765)}, printed=True),
    Row('coarse-SN', {'JA': Cell(0.789, (0.681,), (0.648, 0.715)),
                      'mean_AUC': Cell(note='undefined:\n  one class')}),
    Row('#1, 5 %', {'JA': Cell(0.8, (1.0, 0.99), (0.76, 1.0)),
                    'mean_AUC': Cell(None, (0.9704,), (0.95, 0.981))}),
    Row('full', {'JA': Cell(0.8, (0.7996,)), 'mean_AUC': Cell(0.97)}),
], ['n = 150 images.'])

TEXT = """\
Table VI. What each stage gives
Percent: paper / ours ± standard deviation over seeds (difference) [bootstrap 95 % interval over images]; a
dash: not known from print, or not run. Rows with one number a cell are quoted from print.

           JA                                       mean_AUC
Yuan & Lo  76.5                                        -
coarse-SN  78.9 / 68.1       (-10.8)  [64.8, 71.5]     -                     (a)
#1, 5 %    80.0 / 99.5 ± 0.7 (+19.5) [76.0, 100.0]     - / 97.0 [95.0, 98.1]
full       80.0 / 80.0        (+0.0)                97.0 /    -

n = 150 images.
(a) undefined: one class
"""

MARKDOWN = """\
### Table VI. What each stage gives

Percent: paper / ours ± standard deviation over seeds (difference) [bootstrap 95 % interval over images]; \
a dash: not known from print, or not run. Rows with one number a cell are quoted from print.

|           | JA                                      | mean_AUC              |
|-----------|-----------------------------------------|-----------------------|
| Yuan & Lo | 76.5                                    | -                     |
| coarse-SN | 78.9 / 68.1 (-10.8) [64.8, 71.5]        | - (a)                 |
| #1, 5 %   | 80.0 / 99.5 ± 0.7 (+19.5) [76.0, 100.0] | - / 97.0 [95.0, 98.1] |
| full      | 80.0 / 80.0 (+0.0)                      | 97.0 / -              |

- n = 150 images.
- (a) undefined: one class
"""

CSV = """\
row,printed,column,paper,ours,difference,spread,low,high,seeds,note
Yuan & Lo,yes,JA,76.5000,,,,,,0,
Yuan & Lo,yes,mean_AUC,,,,,,,0,
coarse-SN,no,JA,78.9000,68.1000,-10.8000,,64.8000,71.5000,1,
coarse-SN,no,mean_AUC,,,,,,,0,undefined: one class
"#1, 5 %",no,JA,80.0000,99.5000,19.5000,0.7071,76.0000,100.0000,2,
"#1, 5 %",no,mean_AUC,,97.0400,,,95.0000,98.1000,1,
full,no,JA,80.0000,79.9600,-0.0400,,,,1,
full,no,mean_AUC,97.0000,,,,,,0,
"""

LATEX = r"""\begin{table}[t]
\centering
\caption{What each stage gives (Table VI of the original paper). Percent: paper / ours $\pm$ standard deviation over seeds (difference) {[}bootstrap 95 \% interval over images{]}; a dash: not known from print, or not run. Rows with one number a cell are quoted from print.}
\label{tab:table-vi}
\footnotesize
\setlength{\tabcolsep}{4pt}
\begin{tabular}{lcc}
\toprule
                              &              JA               &         mean\_AUC          \\
\midrule
 Yuan \& Lo                   &             76.5              &             --             \\
 \addlinespace[2pt] coarse-SN &     78.9 / 68.1 ($-$10.8)     &           -- (a)           \\
                              &  {\scriptsize [64.8, 71.5]}   &                            \\
 \addlinespace[2pt] \#1, 5 \% & 80.0 / 99.5 $\pm$ 0.7 (+19.5) &         -- / 97.0          \\
                              &  {\scriptsize [76.0, 100.0]}  & {\scriptsize [95.0, 98.1]} \\
 \addlinespace[2pt] full      &      80.0 / 80.0 (+0.0)       &         97.0 / --          \\
\bottomrule
\end{tabular}
\par\smallskip
\begin{minipage}{\linewidth}
\footnotesize\raggedright
n = 150 images.\par
(a) undefined: one class
\end{minipage}
\end{table}
"""  # noqa: E501  a paragraph is one line


def test_the_four_forms_of_a_small_table():
    assert tables.to_markdown(SMALL) == MARKDOWN
    assert tables.to_csv(SMALL) == CSV
    assert tables.to_latex(SMALL) == LATEX
    assert 'original paper' not in tables.to_latex(replace(SMALL, of_paper=False))
    assert tables.to_text(SMALL) == TEXT


def test_the_example_cell():
    table = Table('T', 't', ['JA'], [Row('ours', {'JA': Cell(0.8, (0.791,), (0.76, 0.821))})])
    assert '| ours | 80.0 / 79.1 (-0.9) [76.0, 82.1] |' in tables.to_markdown(table)
    assert 'seeds' not in tables.to_markdown(table) and 'print.' not in tables.to_markdown(table)


def test_a_narrow_terminal_gets_blocks_of_columns():
    text = tables.to_text(SMALL, width=60)
    assert [line.split() for line in text.splitlines() if line.startswith('   ')] == [['JA'], ['mean_AUC']]
    assert text.count('\ncoarse-SN') == 2 and text.count('one class') == 1
    assert max(map(len, text.splitlines())) <= 60


def test_files_are_written(tmp_path):
    paths = tables.write(SMALL, tmp_path / 'new', 'table_6')
    assert [path.name for path in paths] == ['table_6.md', 'table_6.csv', 'table_6.tex']
    assert [path.read_text(encoding='utf-8') for path in paths] == [MARKDOWN, CSV, LATEX]
    assert len(list((tmp_path / 'new').iterdir())) == 3


# --- Cells

def test_numbers_of_a_cell():
    cell = Cell(80.0, (78.0, 79.0, 83.0))
    assert (cell.mean, cell.spread, cell.difference) == (80.0, statistics.stdev([78, 79, 83]), 0.0)
    assert (Cell(80.0).mean, Cell(80.0).spread, Cell(80.0).difference) == (None, None, None)
    assert Cell(None, (7.0,)).difference is None and Cell(8.0, (7.0,)).spread is None


def test_cells_from_results():
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(30)))
    runs = [results.Result('segmentation', (results.Part(names, rng.random((30, 5))),)) for _ in range(2)]
    cell = tables.make_cell(80.0, runs, 'DI')
    assert cell.values == tuple(results.score(run, 'DI') for run in runs)
    assert cell.interval == results.interval(runs, 'DI') and cell.interval[0] < cell.mean < cell.interval[1]
    assert tables.make_cell(80.0, [], 'DI', 'not run') == Cell(0.8, (), None, 'not run')
    assert tables.make_cell(float('nan'), [], 'DI') == Cell()
    single = results.Result('classification', (
        results.Part(names, rng.dirichlet([1, 1, 1], 30), np.zeros(30, int)),))
    undefined = tables.make_cell(97.0, [single], 'mean AUC')
    assert undefined.values == () and undefined.interval is None and 'one class' in undefined.note
    other = results.Result('segmentation', (results.Part(names[:9], rng.random((9, 5))),))
    with pytest.raises(InputError):
        tables.make_cell(80.0, [runs[0], other], 'JA')


# --- Any table

WORDS = st.text(st.characters(codec='utf-8', exclude_categories=('C', 'Z')), min_size=1, max_size=12)
FRACTIONS = st.floats(0, 1)
CELLS = st.builds(Cell, st.none() | FRACTIONS, st.lists(FRACTIONS, max_size=3).map(tuple),
                  st.none() | st.tuples(FRACTIONS, FRACTIONS), st.just('') | WORDS)
ANY = st.lists(WORDS, min_size=1, max_size=4, unique=True).flatmap(lambda columns: st.builds(
    Table, WORDS, WORDS, st.just(columns),
    st.lists(st.builds(Row, WORDS, st.dictionaries(st.sampled_from(columns), CELLS), st.just(False)),
             min_size=1, max_size=4),
    st.lists(WORDS, max_size=2)))


@QUICK
@given(ANY)
def test_csv_parses_back(table):
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(table))))
    expected = [(row.label, column, row.cells.get(column, Cell()))
                for row in table.rows for column in table.columns]
    assert len(lines) == len(expected)
    for line, (label, column, cell) in zip(lines, expected, strict=True):
        assert (line['row'], line['column'], line['note']) == (label, column, cell.note)
        assert int(line['seeds']) == len(cell.values)
        for name, number in (('paper', cell.paper), ('ours', cell.mean), ('spread', cell.spread),
                             ('difference', cell.difference), ('low', (cell.interval or [None])[0])):
            assert line[name] == '' if number is None else abs(float(line[name]) - 100 * number) < 1e-4


@QUICK
@given(ANY)
def test_latex_is_balanced_and_escaped(table):
    text = tables.to_latex(table)
    opened = []
    for verb, name in re.findall(r'\\(begin|end)\{([a-z*]+)\}', text):
        if verb == 'begin':
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    plain = re.sub(r'\\[\\{}$&#%_^~]', '', text)   # without escaped characters
    assert plain.count('{') == plain.count('}') and plain.count('$') % 2 == 0
    assert not re.search('[%#_^~]', plain)
    body = text.partition(r'\toprule')[2].partition(r'\bottomrule')[0]
    lines = body.strip().split('\\\\')[:-1]
    for line in lines:
        assert re.sub(r'\\&', '', line).count('&') == len(table.columns)
        assert re.match(r'\s*[^\s[*]', line)   # no label is taken for an argument
    assert tables.to_markdown(table).count('\n|') == len(table.rows) + 2


def test_special_characters():
    table = Table('Fig. 5', r'a_b % & # $ {x} ~ ^ \ <', ['λ|'], [Row('[13] x|*', {})])
    latex = re.sub(' +', ' ', tables.to_latex(table))
    assert r'a\_b \% \& \# \$ \{x\} \~{} \^{} \textbackslash{} $<$ (Fig. 5' in latex
    assert r'\label{tab:fig-5}' in latex and '{[}13{]} x$|$* & --' in latex and r' & $\lambda$$|$' in latex
    assert r'| [13] x\|\* | - |' in re.sub(' +', ' ', tables.to_markdown(table))


def test_wide_tables_span_the_page():
    table = Table('T', 't', ['a', 'b', 'c'], [Row('r', {})])
    assert tables.to_latex(table).startswith('\\begin{table*}') and '{lccc}' in tables.to_latex(table)
