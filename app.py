"""A page in the browser into which a picture is dropped: mask, activation map and probabilities come out.

Reads   models/CoarseSN/, models/MaskCN/ and models/EnhancedSN/ (stages 2 to 5); the dropped pictures
Writes  nothing of its own; gradio keeps the pictures in its folder of temporary files

    pip install -r requirements-extra.txt
    python app.py --MODELS=demo/models

It serves this machine alone, at http://127.0.0.1:7860, until Ctrl-C; no picture leaves it. For many pictures
there is predict.py. Cost: see there, for each picture. A research tool, not a medical device.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from engine import cli, settings
from engine.errors import InputError
from mbdcnn import panels, stages
from mbdcnn.predictor import MBDCNN, NOTICE

# --- Folders
MODELS = 'models'         # holds CoarseSN/, MaskCN/ and EnhancedSN/; the demo's are in demo/models

# --- Prediction
TTA = True                # 6 views of each picture, and 3 scales for the final mask (released)

# --- Machine
HOST = '127.0.0.1'        # 0.0.0.0 = whoever reaches this machine may use the page, too
PORT = 7860               # of the page
DEVICE = 'auto'           # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'              # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32


def look_at(model, path, tta):
    """What the page shows of a picture: contours, heat (RGB arrays), {class: probability}, a sentence."""
    found = model(path, tta)
    contours, heat = panels.of_prediction(found)
    lesion = (f'The lesion takes {100 * found.area_fraction:.1f} % of the picture (thin contour; thick is '
              f'coarse-SN\'s), confidence of the mask {found.mask_confidence:.2f}.' if found.area else
              'No lesion found: the mask is empty.')
    return contours, heat, found.class_probabilities, f'{lesion} The heat map is that of {found.label}.'


def page(model, tta):
    """The page, a gradio.Interface."""
    import gradio  # slow to import, and not among the requirements

    def answer(path):
        if path is None:
            raise gradio.Error('Drop a picture first')
        try:
            return look_at(model, path, tta)
        except InputError as error:   # gradio's names of its copies tell nobody anything
            raise gradio.Error('; '.join(fault.rpartition('/')[2] for fault in error.faults)
                               or error.summary) from None

    return gradio.Interface(
        answer, gradio.Image(type='filepath', sources=['upload', 'clipboard'], label='picture'),
        # Without gradio's button that would publish them.
        [gradio.Image(label='lesion', buttons=['download', 'fullscreen']),
         gradio.Image(label='where mask-CN sees the class', buttons=['download', 'fullscreen']),
         gradio.Label(label='mask-CN'), gradio.Markdown()],
        title='MB-DCNN', description=' '.join(filter(None, (model.warning, NOTICE))), api_name='predict',
        flagging_mode='never', analytics_enabled=False)


def main():
    cfg = settings.resolve(globals(), choices=stages.MACHINE_CHOICES)
    cli.require('gradio')
    shown = page(MBDCNN.load(cfg.MODELS, cfg.DEVICE, cfg.AMP), cfg.TTA)
    try:
        shown.launch(server_name=cfg.HOST, server_port=cfg.PORT, show_error=True)
    except OSError as error:
        raise InputError(f'The page cannot be served at {cfg.HOST}:{cfg.PORT}', [error],
                         'name another port: --PORT=7861') from None


if __name__ == '__main__':
    cli.launch(main)
