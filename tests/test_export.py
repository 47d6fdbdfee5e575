"""export.py: the three networks as ONNX files that compute what PyTorch computes."""
import numpy as np
import pytest
import torch

import export
from engine.errors import InputError
from mbdcnn.inference import place
from mbdcnn.predictor import MBDCNN
from tests.test_predict import SIDE, drawn
from tests.test_predict import models as models  # a fixture

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
READS = {'CoarseSN': ['picture'], 'MaskCN': ['picture', 'coarse'], 'EnhancedSN': ['picture', 'coarse']}


def run(monkeypatch, models, out, *words):
    monkeypatch.setattr('sys.argv', ['export.py', f'--MODELS={models}', f'--OUT={out}', *words])
    export.main()


def test_the_files_compute_what_pytorch_computes(models, tmp_path, monkeypatch, capsys):
    run(monkeypatch, models, tmp_path)
    assert capsys.readouterr().out.count('largest difference to PyTorch') == 3
    model = MBDCNN.load(models, 'cpu', 'fp32')
    pictures = np.stack([drawn(SIDE, SIDE, seed) for seed in range(5)])   # exported with 2
    given = place(pictures, (pictures[..., 0] > 128).astype(np.uint8), torch.device('cpu'))
    for name, ours in (('CoarseSN', model.coarse(*given)), ('MaskCN', model.classifier(*given)),
                       ('EnhancedSN', model.enhanced(*given))):
        session = onnxruntime.InferenceSession(tmp_path / f'{name}.onnx')
        assert [entry.name for entry in session.get_inputs()] == READS[name]
        found = session.run(None, dict(zip(READS[name], (tensor.numpy() for tensor in given), strict=False)))
        for theirs, own in zip(found, ours if isinstance(ours, tuple) else (ours,), strict=True):
            assert np.allclose(theirs, own.numpy(), rtol=1e-4, atol=1e-4)
        facts = session.get_modelmeta().custom_metadata_map
        assert facts['side'] == str(SIDE) and 'RGB in 0 to 255' in facts['picture']
        assert facts['weights'] == model.weights[name]['fingerprint'] and 'melanoma' in facts['classes']
    before = (tmp_path / 'CoarseSN.onnx').read_bytes()
    with pytest.raises(InputError, match='CoarseSN.onnx would differ from PyTorch by'):
        run(monkeypatch, models, tmp_path, '--TOLERANCE=1e-12')
    assert (tmp_path / 'CoarseSN.onnx').read_bytes() == before and len(list(tmp_path.iterdir())) == 3
