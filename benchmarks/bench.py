"""Ours against a plain version of what the released code does, side by side on this machine.

Reads   nothing; it draws its own pictures and uses random weights
Writes  <OUT>/bench.md, <OUT>/bench.json

    python benchmarks/bench.py
    python benchmarks/bench.py --ONLY=rank_loss,cam

Every measurement runs in a process of its own; plain and ours take turns, ROUNDS times each, and
the least time counts (anything else that the machine does only adds). The floor is the work, counted
in operations or bytes, over the machine's own rate for matrix products or copies, which is measured
first. Run it on an otherwise idle machine: about 18 minutes on two cores.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from benchmarks import machine, works
from engine import cli, files, hardware, settings
from engine.errors import InputError

# --- What
RECIPE = 'default'             # table of recipes/<RECIPE>.toml that replaces constants below
ONLY = ''                      # names of works, as rank_loss,cam; '' = all
ROUNDS = 2                     # processes of each version of a work
SECONDS = 4.0                  # of repetitions in each of them, at the least
OUT = 'results/benchmarks'     # folder of bench.md and bench.json

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu


def main():
    cfg = settings.resolve(globals(), choices={'DEVICE': hardware.DEVICES}, positive=('ROUNDS', 'SECONDS'))
    names = [name for name in cfg.ONLY.split(',') if name] or list(works.WORKS)
    unknown = [name for name in names if name not in works.WORKS]
    if unknown:
        raise InputError('Unknown works', unknown, f'choose among {", ".join(works.WORKS)}')
    device = hardware.choose_device(cfg.DEVICE)
    rates = machine.rates(device)
    about = machine.describe(device)
    print(f'{about}\n{machine.told(rates)} (read and written)\n')
    rows = []
    with tempfile.TemporaryDirectory(prefix='bench-') as folder:
        for name in names:
            rows.append(measure(name, Path(folder), cfg, device, rates))
            print(row_of(rows[-1]), flush=True)
    facts = {'machine': about, 'rates': rates, 'rounds': cfg.ROUNDS, 'works': rows}
    files.write_text(Path(cfg.OUT) / 'bench.json', json.dumps(facts, indent=1) + '\n')
    files.write_text(Path(cfg.OUT) / 'bench.md', table(facts))
    print(f'\n{table(facts)}\nwritten: {cfg.OUT}/bench.md, {cfg.OUT}/bench.json')


# Below main(), where settings.resolve does not look: these are fixed, not settings.
HEADER = ('quantity', 'plain', 'ours', 'ratio', 'asked', 'floor', 'share of floor', 'memory plain',
          'memory ours')


def measure(name, folder, cfg, device, rates):
    """One work in both versions, in turns: a dict for bench.json. Seconds are those of one unit."""
    work, found = works.WORKS[name], {'plain': [], 'ours': []}
    versions = [version for version in found if version in work.versions]
    for version in versions * cfg.ROUNDS:
        found[version].append(run_child(name, version, folder, device, cfg.SECONDS))
    row = {'name': name, 'title': work.title, 'unit': work.unit, 'asked': work.asked}
    for version in versions:
        best = min(found[version], key=lambda one: one['seconds'])
        row[version] = {'seconds': best['seconds'], 'spread': [one['seconds'] for one in found[version]],
                        'memory': max((one['memory'] for one in found[version]), key=lambda size: size or 0),
                        'gpu_memory': best['gpu_memory']}
    kind, amount = best['floor']
    if kind:
        row['floor'] = {'of': kind, 'amount': amount, 'seconds': amount / rates[kind]}
        row['share of floor'] = row['floor']['seconds'] / row['ours']['seconds']
    if 'plain' in row:
        row['ratio'] = row['plain']['seconds'] / row['ours']['seconds']
    return row


def run_child(name, version, folder, device, seconds):
    """Measure in a new process; returns what benchmarks/child.py prints."""
    done = subprocess.run([sys.executable, Path(__file__).with_name('child.py'), name, version, folder,
                           str(device), str(seconds)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f'{name}, {version}: exit code {done.returncode}\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def table(facts):
    """The results as Markdown."""
    lines = [f'{facts["machine"]}; {machine.told(facts["rates"])}.', '',
             row_of(dict(zip(HEADER, HEADER, strict=True))), '|---' * len(HEADER) + '|']
    return '\n'.join(lines + [row_of(row) for row in facts['works']]) + '\n'


def row_of(row):
    """A row of `measure`, or the header, as a line of the table."""
    if 'title' not in row:
        return '| ' + ' | '.join(row.values()) + ' |'
    cells = [f'{row["title"]}, per {row["unit"]}']
    cells += [seconds(row[version]['seconds']) if version in row else '' for version in ('plain', 'ours')]
    cells += [f'{row["ratio"]:.3g}' if 'ratio' in row else '', row['asked']]
    cells += [seconds(row['floor']['seconds']), f'{100 * row["share of floor"]:.0f} % ({row["floor"]["of"]})'
              ] if 'floor' in row else ['', '']
    cells += [memory(row[version]) if version in row else '' for version in ('plain', 'ours')]
    return '| ' + ' | '.join(cells) + ' |'


def seconds(value):
    """A time with three digits in the unit that suits it."""
    units = ('s', 1), ('ms', 1e-3), ('µs', 1e-6)
    unit, size = next((one for one in units if value >= one[1]), units[-1])
    return f'{value / size:.3g} {unit}'


def memory(version):
    """Peak memory above that before the work, in the round in which it was most; '' where it is not known."""
    if version['memory'] is None:
        return ''
    gpu = f' + {version["gpu_memory"] / 2**20:.0f} MB GPU' if version['gpu_memory'] else ''
    return f'{version["memory"] / 2**20:.0f} MB{gpu}'


if __name__ == '__main__':
    cli.launch(main)
