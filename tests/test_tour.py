"""The notebook runs from its first to its last cell."""
from pathlib import Path

import pytest

nbclient = pytest.importorskip('nbclient')
nbformat = pytest.importorskip('nbformat')
NOTEBOOK = Path(__file__).resolve().parent.parent / 'docs' / 'tour.ipynb'


def times_of_files(folder):
    """Of all but locks."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')
            if path.is_file() and not path.name.endswith('.lock')}


def test_the_notebook_runs_on_the_small_root(chain, monkeypatch):
    monkeypatch.setenv('MBDCNN_ROOT', str(chain.root))
    before = times_of_files(chain.root)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {'metadata': {'path': NOTEBOOK.parent}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 6
    text = ''.join(output.get('text', '') for output in outputs)
    assert 'best validation JA' in text and 'mean AUC' in text
    assert times_of_files(chain.root) == before


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get('outputs') and cell.get('execution_count') is None for cell in notebook.cells)
