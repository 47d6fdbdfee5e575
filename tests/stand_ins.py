"""Stand-ins for the stage scripts and small declarations, so that whole graphs of experiments run in a
blink. Fixtures for the tests of experiments/declarations.py and experiments/run_store.py."""
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companions.weak_labels import shape_scores
from dataset.layout import Layout
from engine import files, settings
from experiments import runner
from experiments.declarations import Declarations
from experiments.run_store import RunStore
from experiments.toml_schema import DRAWERS
from mbdcnn import coarse_masks

VALUES = {'FOLDS': 4, 'CROSS_FIT': 3}
DRAWN = {Path(script).name: places for script, places in DRAWERS.items()}
SYSTEM = """
[experiment.coarse]
script = 'train_CoarseSN.py'
[experiment.masks]
script = 'generate_Coarse_mask.py'
needs = ['coarse']
[experiment.mask_cn]
script = 'train_MaskCN.py'
needs = ['masks']
[experiment.enhanced]
script = 'train_EnhancedSN.py'
needs = ['mask_cn']
"""
SWEEP = """
[experiment.'enhanced_k{k}']
for.k = [10, 30]
script = 'train_EnhancedSN.py'
needs = ['mask_cn']
HARD_PIXELS = '{k}'
[table.K]
columns = ['JA']
rows = [{ label = 'ten', of = 'enhanced_k10', paper = [79.0] }, { label = 'thirty', of = 'enhanced_k30' },
        { label = 'default', of = 'enhanced' },
        { label = 'theirs', paper = [76.5], source = 'a leaderboard' }]
compare = [['ten', 'thirty']]
"""


@pytest.fixture
def root(tmp_path):
    """A root with lists of four segmentation and four classification images a split, 16 px each."""
    layout = Layout(tmp_path / 'root')
    for split in ('Training', 'Validation'):
        for folder, listed, lines in (
                (layout.segmentation(split), layout.segmentation_list(split),
                 [f'Images/{split}{n}.png Annotation/{split}{n}_segmentation.png' for n in range(4)]),
                (layout.crops(split), layout.classification_list(split),
                 [f'{split}{n}.png {n % 3}' for n in range(4)])):
            for name in (word for line in lines for word in line.split() if word.endswith('.png')):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([*name.encode()]).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray((pixels[..., 0] > 127) * np.uint8(255) if name.endswith('_segmentation.png')
                                else pixels).save(folder / name)
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text('\n'.join(lines) + '\n')
    return layout.root


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the scripts; a list of (script, run folder, overrides) of what was called."""
    made = []

    def call(words):
        options = dict(word.removeprefix('--').split('=', 1) for word in words[2:])
        script, layout = Path(words[1]).name, Layout(options.pop('ROOT'))
        made.append((script, layout.root.name, options))
        seen = sorted(str(path.relative_to(layout.root)) + path.read_text()
                      for path in layout.models.glob('*/*.pth'))
        content = hashlib.sha256(f'{script} {options} {seen}'.encode()).hexdigest()
        if 'weak_labels' in words[1]:
            name = f'WeakSN_{options.get("METHOD", "a1l")}'
            if script.startswith('train'):
                layout.run(name).mkdir(parents=True)
                layout.weights(name).write_text(content)
            else:
                layout.results.mkdir(parents=True, exist_ok=True)
                values = [int(content[n], 16) / 15 for n in range(4)]
                files.write_csv(layout.results / f'{name}_{options.get("SPLIT", "Testing")}.csv', [
                    ('image_id', *shape_scores.COLUMNS),
                    *((f'lesion{n}', value, 0.5, 0.5, *[7.5] * 5) for n, value in enumerate(values))])
        elif 'companions' in words[1]:
            made_by = [path.read_text() for path in sorted(layout.root.glob('Mask2Lesion/*/*.json'))]
            content = hashlib.sha256(f'{content} {made_by}'.encode()).hexdigest()
            place, name = ('models/Mask2Lesion', 'G.pth') if script.startswith('train') else DRAWN[script]
            (layout.root / place).mkdir(parents=True)
            (layout.root / place / name).write_text(content)
        elif script == 'generate_Coarse_mask.py':
            for split in ('Training', 'Validation'):
                for of in (layout.coarse_for_segmentation, layout.coarse_for_classification):
                    coarse_masks.finish(coarse_masks.begin(
                        layout, of(split), {'coarse_sn': content}, settings.Settings()), [])
        elif script.startswith('train'):
            network = script.removeprefix('train_').removesuffix('.py')
            folds = int(options.get('CROSS_FIT', 0))
            for name in [f'{network}_fold{n}' for n in range(1, folds + 1)] or [network]:
                layout.run(name).mkdir(parents=True)
                (layout.run(name) / f'{network}.pth').write_text(content + name)
        else:
            network = options.get('NETWORK', 'MaskCN' if script == 'eval_MaskCN.py' else 'EnhancedSN')
            values = [int(content[n], 16) / 15 for n in range(4)]
            rows = [f'Validation{n},{value},0.5,0.5,0.5,0.5' for n, value in enumerate(values)]
            if network == 'MaskCN':
                rows = [f'Validation{n},{value},0.2,0.1' for n, value in enumerate(values)]
            header = 'nevus,melanoma,keratosis' if network == 'MaskCN' else 'JA,DI,pixel-AC,pixel-SE,pixel-SP'
            layout.results.mkdir(parents=True, exist_ok=True)
            (layout.results / f'{network}_Validation.csv').write_text(
                '\n'.join([f'image_id,{header}', *rows]) + '\n')
        return 0

    monkeypatch.setattr(runner, 'call', call)
    return made


def declare(tmp_path, text):
    path = tmp_path / 'mine.toml'
    path.write_text(text)
    return Declarations(path, VALUES)


def run_table(declared, root, name, seeds=(0,)):
    """Run what a table needs with a new RunStore; returns (store, failed)."""
    store, failed = RunStore(root), {}
    runner.run(store, declared.jobs_of(declared.tables[name], seeds), failed)
    return store, failed
