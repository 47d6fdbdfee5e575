"""What the pages print can be run: scripts exist, their options are constants, links lead somewhere."""
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from dataset.layout import Layout
from engine import settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = ['README.md', 'models/README.md', 'docs/differences.md', 'docs/measurements.md',
         'benchmarks/NOTES.md', 'companions/README.md']
SCRIPTS = sorted([*ROOT.glob('*.py'), *(path for folder in ('dataset', 'models')
                                        for path in (ROOT / folder).glob('*.py')
                                        if '__main__' in path.read_text(encoding='utf-8'))])
COMPANIONS = sorted(path for path in ROOT.glob('companions/*/*.py')
                    if '__main__' in path.read_text(encoding='utf-8'))
# A script, then options, and files or folders (which end in an extension or a slash).
COMMAND = re.compile(r'(?:python|torchrun --nproc-per-node=\d+) ([\w/]+\.py|-m companions[\w.]+)'
                     r'((?: --?[\w-]+(?:=[^\s`"]+)?| [\w./-]+(?:/|\.jpg|\.png)(?!\S))*)')


def commands():
    """Every command in the pages and in the scripts' docstrings: (where, script, options)."""
    for path in [*(ROOT / page for page in PAGES), *SCRIPTS, *COMPANIONS]:
        for script, options in COMMAND.findall(path.read_text(encoding='utf-8')):
            if script.startswith('-m '):
                script = f'{script.removeprefix("-m ").replace(".", "/")}.py'
            yield (f'{path.name}: {script}{options}', script,
                   [word for word in options.split() if word.startswith('-')])


@pytest.mark.parametrize(('script', 'options'),
                         [pytest.param(script, options, id=name) for name, script, options in commands()])
def test_printed_commands_can_be_run(script, options):
    path = ROOT / script
    assert path.is_file()
    constants = settings.read_constants(path)
    for option in options:
        name = option.removeprefix('--').partition('=')[0]
        assert name in constants or name == 'help', f'{script} has no setting {name}'


def test_every_stage_of_the_readme_is_there():
    printed = {script for name, script, _ in commands() if name.startswith('README.md')}
    stages = {str(path.relative_to(ROOT)) for path in SCRIPTS}
    assert stages <= printed, f'not in the README: {sorted(stages - printed)}'


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files(page):
    folder = (ROOT / page).parent
    links = re.findall(r'\]\(([^)#]+)\)', (ROOT / page).read_text(encoding='utf-8'))
    local = [link for link in links if '://' not in link]
    assert local or page != 'README.md'
    assert [link for link in local if not (folder / link).exists()] == []


@pytest.mark.parametrize('script', SCRIPTS + COMPANIONS, ids=lambda path: path.name)
def test_every_constant_has_a_comment_and_is_used(script):
    text = script.read_text(encoding='utf-8')
    constants = settings.read_constants(script)
    shared = ''.join(path.read_text(encoding='utf-8') for room in ('engine', 'mbdcnn', 'dataset')
                     for path in (ROOT / room).glob('*.py'))
    for name, (group, comment) in constants.items():
        assert group and comment, f'{script.name}: {name} has no group or comment'
        used = re.search(rf"cfg\.{name}\b|'{name}'", text + shared) or name == 'RECIPE'
        assert used, f'{script.name}: {name} is not used'


def make(folder, *words):
    done = subprocess.run(['make', f'--file={ROOT / "Makefile"}', *words], cwd=folder, text=True,
                          capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_make_takes_names_with_spaces(tmp_path):
    python = tmp_path / 'python'   # makes an "environment" and installs nothing
    python.write_text('#!/bin/sh\n[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit 0\n')
    python.chmod(0o755)
    for name in ('requirements.txt', 'my', 'venv', 'demo', 'my demo'):
        (tmp_path / name).mkdir() if 'demo' in name else (tmp_path / name).touch()
    words = 'env', 'VENV=my venv', f'PYTHON={python}'
    assert '-m venv' in make(tmp_path, *words) and (tmp_path / 'my venv' / '.requirements').is_file()
    assert '-m venv' not in make(tmp_path, *words)   # it is there
    assert '--ROOT="my demo"' in make(tmp_path, '--dry-run', 'demo', 'DEMO=my demo', *words[1:])
    make(tmp_path, 'clean-demo', 'DEMO=my demo')
    assert (tmp_path / 'demo').is_dir() and not (tmp_path / 'my demo').exists()


def test_advice_quotes_what_has_spaces():
    words = ['python', 'train_MaskCN.py', '--ROOT=my root', '--RESUME=False']
    assert shlex.split(Layout('my root').command(words[1], words[3])) == words
    assert Layout('run').command('-m companions.x.y', '--A=1') == 'python -m companions.x.y --ROOT=run --A=1'


def test_recipes_name_only_settings_that_exist():
    for recipe in sorted(settings.RECIPES.glob('*.toml')):
        content = tomllib.loads(recipe.read_text(encoding='utf-8'))
        nested = {path.parent.name for path in COMPANIONS} & set(content)
        tables = [(name, content[name], (*SCRIPTS, *COMPANIONS)) for name in content.keys() - nested]
        tables += [(name, table, [path for path in COMPANIONS if path.parent.name == companion])
                   for companion in nested for name, table in content[companion].items()]
        for script, table, known in tables:
            path, = [path for path in known if path.stem == script]
            values = settings.read_constants(path)
            assert set(table) <= set(values), f'{recipe.name}: [{script}] has unknown settings'


def test_every_script_of_a_companion_is_in_its_readme():
    printed = {script for name, script, _ in commands() if name.startswith('README.md')}
    assert {str(path.relative_to(ROOT)) for path in COMPANIONS} <= printed
