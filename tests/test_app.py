"""app.py: what the page answers to a picture is what the chain finds in it."""
import pytest

import app
from engine import images
from mbdcnn.predictor import MBDCNN
from tests.test_predict import PICTURE
from tests.test_predict import models as models  # a fixture


def test_the_page_answers_with_what_the_chain_finds(models, tmp_path):
    gradio = pytest.importorskip('gradio')
    model = MBDCNN.load(models, 'cpu', 'fp32')
    model.warning = 'Trained on nothing.'
    page = app.page(model, tta=False)
    assert 'Trained on nothing. A research tool' in page.description
    path = tmp_path / 'picture.png'
    images.write_png(path, PICTURE[..., ::-1])
    found, (contours, heat, probabilities, said) = model(path, tta=False), page.fn(str(path))
    assert probabilities == found.class_probabilities and found.label in said
    assert f'{100 * found.area_fraction:.1f} %' in said
    assert contours.shape == heat.shape == PICTURE.shape
    assert (contours != PICTURE).any(2).mean() < 0.5 and (heat != PICTURE).any()
    path.write_text('no picture')
    with pytest.raises(gradio.Error, match='picture.png: is not a readable'):
        page.fn(str(path))
    with pytest.raises(gradio.Error, match='Drop a picture'):
        page.fn(None)
