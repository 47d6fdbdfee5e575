"""Write the trained networks as ONNX files, for programs that have no PyTorch.

Reads   models/CoarseSN/, models/MaskCN/ and models/EnhancedSN/ (stages 2 to 5)
Writes  onnx/CoarseSN.onnx    picture -> logit
        onnx/MaskCN.onnx      picture, coarse -> probabilities, cam
        onnx/EnhancedSN.onnx  picture, coarse -> logit; mask-CN, whose maps it reads, is inside

    pip install -r requirements-extra.txt
    python export.py --MODELS=demo/models --OUT=demo/onnx

    picture        uint8 (batch, 3, S, S), RGB in 0 to 255, squashed to the network's side S; scaled inside
    coarse         uint8 (batch, S, S) of {0, 1}: coarse-SN's mask, enlarged by nearest neighbour
    logit          float32 (batch, S, S); the lesion is where it exceeds 0
    probabilities  float32 (batch, classes): nevus, melanoma, keratosis, or the classes of the training
    cam            float32 (batch, 1, S/16, S/16): activation map of the likeliest class, maximum 1

The batch is free, S is in the file's metadata with all of this, the weights' fingerprints, and what they
were trained on. One view and one crop: what predict.py averages is left to the caller. Networks that read no
coarse masks lack that input. Each file is run by onnxruntime and appears only if it agrees with PyTorch.

Cost: a minute of one CPU core. A research tool, not a medical device.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import warnings
from pathlib import Path

import numpy as np
import torch

from engine import cli, files, settings
from engine.errors import InputError
from mbdcnn.inference import place
from mbdcnn.predictor import MBDCNN, NOTICE

# --- Folders
MODELS = 'models'         # holds CoarseSN/, MaskCN/ and EnhancedSN/; the demo's are in demo/models
OUT = 'onnx'              # folder for the files

# --- Check
TOLERANCE = 1e-3          # largest difference between ONNX and PyTorch, as a part of the largest output


class Graph(torch.nn.Module):
    """A mbdcnn.inference.Classifier or Segmenter as a module, scaling included."""

    def __init__(self, trained):
        super().__init__()
        self.trained, self.network = trained, trained.network
        if getattr(trained, 'classifier', None) is not None:
            self.classifier = trained.classifier.network

    def forward(self, picture, coarse=None):
        """uint8 (B, 3, S, S), (B, S, S) or None -> what `trained` gives"""
        return self.trained(picture, coarse)


def samples(count, side, inputs):
    """Noise as a graph's inputs, a list of tensors. inputs : their names"""
    rng = np.random.default_rng(count)
    picture = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    coarse = rng.integers(0, 2, (count, side, side), np.uint8)
    return [tensor for tensor in place(picture, coarse if 'coarse' in inputs else None, torch.device('cpu'))
            if tensor is not None]


def write(path, trained, side, inputs, outputs, facts, tolerance):
    """Export one network to `path`, check it, and return the largest difference to PyTorch.

    inputs, outputs : their names; facts : {name: text} for the metadata
    Raises InputError where they disagree; then there is no file.
    """
    graph, batch = Graph(trained).eval(), torch.export.Dim('batch')
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')   # of the exporter's own making
        program = torch.onnx.export(graph, tuple(samples(2, side, inputs)), dynamo=True, verbose=False,
                                    input_names=inputs, output_names=outputs,
                                    dynamic_shapes=({0: batch},) * len(inputs))
    program.model.metadata_props.update(facts)
    with files.replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
        difference = max(disagreement(temporary, graph, samples(count, side, inputs)) for count in (1, 3))
        if not difference <= tolerance:   # a NaN makes every comparison false
            raise InputError(f'{path} would differ from PyTorch by {difference:.1e} of its largest output',
                             remedy='other versions of requirements-extra.txt, or a larger TOLERANCE')
    return difference


def disagreement(path, graph, inputs):
    """Largest difference between a file and PyTorch over all outputs, as a part of the largest value."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_inputs()]
    theirs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    with torch.no_grad():
        ours = graph(*inputs)
    ours = [tensor.numpy() for tensor in (ours if isinstance(ours, tuple) else (ours,))]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(theirs, ours, strict=True))


def facts_of(model, name):
    """What a file's metadata say of a network: {name: text}."""
    side, trained = model.sides[name], model.weights[name]
    return {'side': str(side), 'classes': ','.join(model.classes.names),
            'picture': f'uint8 (batch, 3, {side}, {side}): RGB in 0 to 255, squashed; the graph scales it',
            'coarse': f'uint8 (batch, {side}, {side}) of 0 and 1: the mask of coarse-SN, where it is read',
            'logit': 'the lesion is where it exceeds 0',
            'cam': 'activation map of the likeliest class, maximum 1',
            'weights': trained['fingerprint'], 'recipe': str(trained['recipe']),
            'notice': f'{model.warning} {NOTICE}'.strip()}


def main():
    cfg = settings.resolve(globals(), positive=('TOLERANCE',))
    cli.require('onnx', 'onnxruntime', 'onnxscript')
    model = MBDCNN.load(cfg.MODELS, 'cpu', 'fp32')
    print(' '.join(filter(None, (model.warning, NOTICE))))
    for name, trained, reader, outputs in (
            ('CoarseSN', model.coarse, None, ['logit']),
            ('MaskCN', model.classifier, model.classifier, ['probabilities', 'cam']),
            ('EnhancedSN', model.enhanced, model.enhanced.classifier, ['logit'])):
        inputs = ['picture', 'coarse'] if reader and reader.uses_masks else ['picture']
        path, side = Path(cfg.OUT) / f'{name}.onnx', model.sides[name]
        difference = write(path, trained, side, inputs, outputs, facts_of(model, name), cfg.TOLERANCE)
        print(f'{path}: {", ".join(inputs)} -> {", ".join(outputs)}; S = {side}; largest difference to '
              f'PyTorch {difference:.1e} of the largest output')


if __name__ == '__main__':
    cli.launch(main)
