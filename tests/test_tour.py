"""The notebook runs from its first to its last cell."""
import re
import shutil
from pathlib import Path

import pytest

nbclient = pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')
NOTEBOOK = Path(__file__).resolve().parent.parent / 'docs' / 'tour.ipynb'


def times_of_files(folder):
    """Of all but locks, and what is remembered of files that were read."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')
            if path.is_file() and not path.name.endswith('.lock') and path.parent.name != 'contents'}


def test_the_notebook_runs_on_the_small_root(chain, monkeypatch, tmp_path):
    """With a cache of its own: other tests write to the chain's."""
    shutil.copytree(chain.layout.cache, tmp_path / 'dataset' / 'cache')
    for name in ('dataset/data', 'dataset/seg_data', 'dataset/cls_data', 'dataset/ISIC', 'models',
                 'Coarse_masks', 'results'):
        (tmp_path / name).symlink_to(chain.root / name)
    monkeypatch.setenv('MBDCNN_ROOT', str(tmp_path))
    before = times_of_files(tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {'metadata': {'path': NOTEBOOK.parent}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 6
    text = ''.join(output.get('text', '') for output in outputs)
    assert 'best validation JA' in text and 'mean AUC' in text
    assert times_of_files(tmp_path) == before


def test_the_notebook_is_stored_with_its_outputs():
    """For those who only read it: small, without a path of the machine that it ran on or a warning."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 6
    texts = [output.text for output in outputs if output.output_type == 'stream' and output.name == 'stdout']
    assert len(texts) + sum(output.output_type == 'display_data' for output in outputs) == len(outputs)
    assert 'mean AUC' in ''.join(texts) and not re.search(r'/(root|home|tmp|Users)/', ''.join(texts))
    assert NOTEBOOK.stat().st_size < 400_000
