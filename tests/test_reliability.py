"""The table of docs/reliability.md names tests that exist; no source runs what it reads."""
import ast
import importlib.machinery
import importlib.util
import json
import re
import sys
import tomllib

import pytest

from tests.conftest import REPOSITORY

TABLE = REPOSITORY / 'docs' / 'reliability.md'
SOURCES = sorted(path for places in ('*.py', '[a-z]*/*.py', 'companions/*/*.py')
                 for path in REPOSITORY.glob(places))
VERSIONS = REPOSITORY / '.ci' / 'versions'
# Tests put code into pickles on purpose, and serve files on this machine.
SHIPPED = [path for path in SOURCES if path.relative_to(REPOSITORY).parts[0] != 'tests'] + [VERSIONS]
RUNS_CODE = {'eval', 'exec', 'compile', '__import__'}   # by name; methods of the same name are others
UNSAFE = {'pickle.load', 'pickle.loads', 'pickle.Unpickler', 'marshal.load', 'marshal.loads', 'shelve.open',
          'joblib.load', 'dill.load', 'cloudpickle.load', 'pandas.read_pickle', 'pd.read_pickle', 'yaml.load',
          'os.system', 'os.popen', 'subprocess.getoutput', 'subprocess.getstatusoutput', 'torch.hub.load',
          'ssl._create_unverified_context', 'tempfile.mktemp'}
REFUSED = {'shell': True, 'allow_pickle': True, 'weights_only': False, 'verify': False}   # arguments
PLAIN = re.compile(r'(http|ftp)://(?!(localhost|127\.0\.0\.1|www\.w3\.org/)\b)')   # w3.org: names of XML


# --- The table

def rows():
    """[(promise, [test])] of the table's lines; a test is 'file::name'."""
    lines = [line for line in TABLE.read_text(encoding='utf-8').splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.strip('| ').split(' | ')] for line in lines]
    return [(row[-2], re.findall(r'`(\S+?::\S+?)`', row[-1])) for row in cells]


def names_in(path):
    """Names of a file's test functions, by its syntax; nothing is imported."""
    return {node.name for node in ast.parse(path.read_text(encoding='utf-8')).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')}


def test_every_test_of_the_table_exists():
    named = {name for _, tests in rows() for name in tests}
    files = {file for file, _ in (name.split('::') for name in named)}
    there = {f'{file}::{name}' for file in files for name in names_in(REPOSITORY / 'tests' / file)}
    assert len(named) > 60 and sorted(named - there) == []


def test_every_promise_of_the_table_names_a_test():
    promises = [row for row in rows() if not set(row[0]) <= {'-'} and row[0] != 'promise']
    assert len(promises) > 30
    assert [promise for promise, tests in promises if not tests] == []


def test_the_table_has_the_sixteen_faults_in_order():
    text = TABLE.read_text(encoding='utf-8')
    assert [int(number) for number in re.findall(r'^\| (\d+) \|', text, re.M)] == list(range(1, 17))


# --- What the source must not hold

def name_of(node):
    """'a.b.c' of a name or an attribute, '' of anything else."""
    if isinstance(node, ast.Attribute):
        return f'{name_of(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


def offences(source):
    """What a source does that could run what it reads, or fetch in the open: list of 'line: what'."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in RUNS_CODE | UNSAFE:
                found.append(f'{node.lineno}: {called}')
            arguments = {word.arg: getattr(word.value, 'value', None) for word in node.keywords}
            found += [f'{node.lineno}: {name}={value}' for name, value in REFUSED.items()
                      if name in arguments and arguments[name] in (value, None)]   # None: not a literal
            if called == 'torch.load' and 'weights_only' not in arguments:
                found.append(f'{node.lineno}: torch.load without weights_only=True')
        elif isinstance(node, ast.ImportFrom):
            names = {f'{node.module}.{alias.name}' for alias in node.names}
            found += [f'{node.lineno}: {name}' for name in sorted(names & UNSAFE)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PLAIN.search(node.value):
            found.append(f'{node.lineno}: {node.value[:60]!r}')
    return found


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_runs_what_it_reads_or_fetches_in_the_open(path):
    assert offences(path.read_text(encoding='utf-8')) == []


def test_neither_does_the_notebook():
    cells = json.loads((REPOSITORY / 'docs' / 'tour.ipynb').read_text(encoding='utf-8'))['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    assert code and [offences(text) for text in code] == [[]] * len(code)


@pytest.mark.parametrize('line', [
    'eval("1")', 'exec(text)', 'torch.load(path)', 'torch.load(path, weights_only=False)',
    'torch.load(path, weights_only=safe)', 'subprocess.run(x, shell=True)', 'np.load(p, allow_pickle=True)',
    'pickle.load(file)', 'from pickle import load', 'os.system("ls")', 'URL = "http://example.com/a.zip"',
    'requests.get(url, verify=False)'])
def test_such_lines_are_found(line):
    assert len(offences(line)) == 1


@pytest.mark.parametrize('line', [
    'network.eval()', '# eval(text)', '"""Not by pickle.load."""', 'torch.load(p, weights_only=True)',
    're.compile("a")', 'np.load(path, mmap_mode="r")', 'URL = "https://example.com"', 'x = "http"',
    'ast.literal_eval(text)', 'subprocess.run(["ls"], shell=False)', 'LOCAL = "http://localhost:80/"'])
def test_harmless_lines_are_not(line):
    assert offences(line) == []


def test_no_test_needs_a_shell():
    """In tests, code in pickles and in strings is what is tested; that takes no shell."""
    found = [f'{path.name}:{line}' for path in SOURCES if path not in SHIPPED
             for line in offences(path.read_text(encoding='utf-8'))]
    assert [line for line in found if line.endswith(('shell=True', 'os.system', 'verify=False'))] == []


# --- What is installed

@pytest.fixture
def versions(monkeypatch):
    """.ci/versions as a module."""
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    loader = importlib.machinery.SourceFileLoader('versions', str(VERSIONS))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('versions', loader))
    loader.exec_module(module)
    return module


def test_every_requirement_has_a_lower_and_an_upper_bound(versions):
    lines = [line.partition('#')[0].strip() for name in versions.FILES
             for line in (REPOSITORY / name).read_text(encoding='utf-8').splitlines()]
    found = [re.fullmatch(r'([\w-]+)(.*)', line).groups() for line in lines if line]
    assert len(found) > 15
    assert [name for name, bounds in found if not re.fullmatch(r'>=[\d.]+,<[\d.]+', bounds)] == []


def test_the_oldest_set_is_read_from_the_files(versions, monkeypatch):
    """The lower bounds are written once; of a series that begins later its first version is taken."""
    released = ['9.0', '4.12.0.88', '4.11.0.90', '4.11.0.86', '4.10.0.84', '2.8.0', '2.8.0rc1', '2.7.0']
    monkeypatch.setattr(versions, 'available', lambda python, package: released)
    lines = dict(line.split('==') for line in versions.requirements('oldest', 'python').splitlines())
    text = (REPOSITORY / 'requirements.txt').read_text(encoding='utf-8')
    assert re.search('^torch>=2.8,', text, re.M) and lines['torch'] == '2.8.0'
    assert 'opencv-python-headless>=4.11,' in text and lines['opencv-python-headless'] == '4.11.0.86'
    assert {line.split('>=')[0] for line in text.splitlines() if '>=' in line} < lines.keys()
    newest = set(re.findall('^([\\w-]+)>=', versions.requirements('newest', 'python'), re.M))
    assert newest == lines.keys()
    with pytest.raises(SystemExit, match='(?s)numpy==2.*Remedy'):
        versions.lower_bounds('torch>=2.11,<2.16\nnumpy==2.1\n')


def test_the_quick_tests_of_the_sets_exist(versions):
    there = {path.name for path in (REPOSITORY / 'tests').glob('test_*.py')}
    assert len(versions.QUICK) > 10 and {f'test_{name}.py' for name in versions.QUICK} <= there


def test_downloads_are_https():
    constants = [node.value for path in (REPOSITORY / 'dataset' / 'download.py',
                                         REPOSITORY / 'models' / 'download.py')
                 for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    addresses = [word for text in constants for word in re.findall(r'\w+://', text)]
    assert len(addresses) >= 4 and set(addresses) == {'https://'}


def test_ruff_looks_at_all_of_the_source():
    settings = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text(encoding='utf-8'))['tool']['ruff']
    assert settings['extend-exclude'] == ['docs'] and {'E', 'F', 'B'} <= set(settings['lint']['select'])
    assert settings['line-length'] == 110
