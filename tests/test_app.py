"""app.py: the page as gradio serves it; what it answers to a picture is tested in test_predict.py."""
import pytest

import app
from engine import images
from mbdcnn.predictor import MBDCNN
from tests.test_predict import PICTURE
from tests.test_predict import models as models  # a fixture

gradio = pytest.importorskip('gradio')


def test_the_page_answers_and_refuses(models, tmp_path):
    model = MBDCNN.load(models, 'cpu', 'fp32')
    model.warning = 'Trained on nothing.'
    page = app.page(model, tta=False)
    assert 'Trained on nothing. A research tool' in page.description
    path = tmp_path / 'picture.png'
    images.write_png(path, PICTURE)
    contours, heat, probabilities, said = page.fn(str(path))
    assert contours.shape == heat.shape == PICTURE.shape and len(probabilities) == 3 and 'heat map' in said
    path.write_text('no picture')
    with pytest.raises(gradio.Error, match='picture.png: is not a readable'):
        page.fn(str(path))
    with pytest.raises(gradio.Error, match='Drop a picture'):
        page.fn(None)
