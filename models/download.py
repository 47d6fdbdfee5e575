"""Fetch, check and put in place the pretrained weights that training can start from.

Reads   a release of pytorch-image-models (xception), or a file that you have (voc, xception65)
Writes  models/xception-43020ad28.pth, models/deeplabv3plus_xception_VOC2012_epoch46_all.pth or
        models/xception65.tf_in1k.pth, and models/downloads.json with their sizes and hashes

    python models/download.py
    python models/download.py --WEIGHTS=voc --VOC_FILE=where/it/is.pth
    python models/download.py --WEIGHTS=xception65

A file appears under its name only when it loads into the network that it is for. Costs 91 MB for
mask-CN (xception); 220 MB (voc) or 152 MB (xception65) for coarse-SN's encoder.
"""
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python models/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import torch

from dataset import fetch
from engine import checkpoints, cli, files, settings
from engine.errors import InputError
from net import weights
from net.models import Xception_dilation, deeplabv3plus

# --- What
RECIPE = 'default'      # default, or a file of recipes/
WEIGHTS = 'xception'    # xception (mask-CN), voc (coarse-SN, paper) or xception65 (coarse-SN without voc)
FOLDER = 'models'       # where the training scripts look

# --- Sources
XCEPTION_URL = ('https://github.com/huggingface/pytorch-image-models/releases/download/'
                'v0.1-cadene/xception-43020ad28.pth')   # ImageNet Xception under Cadene's names
XCEPTION_SHA256 = '43020ad28'   # first digits that its sha256 must have (its name); empty = any
VOC_FILE = ''           # the VOC file where you have put it; it is on Google Drive alone
SOURCE = ''             # xception65: a .safetensors or .pth file; empty = through the package timm

# --- Network
TIMEOUT = 30.0          # seconds without a byte after which an attempt ends
RETRIES = 5             # further attempts after one that brought nothing


def main():
    cfg = settings.resolve(globals(), choices={'WEIGHTS': tuple(MAKERS)}, positive=('TIMEOUT',))
    name, make = MAKERS[cfg.WEIGHTS]
    path = Path(cfg.FOLDER) / name
    record = fetch.Record(cfg.FOLDER)
    if not path.exists():
        make(cfg, path)
    found = fetch.verify(path, record.sha256(path), 'its source')
    check(cfg.WEIGHTS, path)
    record.note(path, cfg.XCEPTION_URL if cfg.WEIGHTS == 'xception' else '', found)
    print(f'{path} loads ({fetch.readable(fetch.file_size(path))}, sha256 {found})')


# Below main(), where settings.resolve does not look: these are fixed, not settings.
REMEDY = 'remove it and run the same command again'
VOC_PAGE = 'https://github.com/YudeWang/deeplabv3plus-pytorch'
TIMM_NAME = 'xception65.tf_in1k'
TIMM_PAGE = f'https://huggingface.co/timm/{TIMM_NAME}/resolve/main/model.safetensors'
NO_TIMM = (f'fetch {TIMM_PAGE} with a browser, then: python models/download.py --WEIGHTS=xception65 '
           '--SOURCE=model.safetensors')


def check(kind, path, state=None, remedy=REMEDY):
    """Raise InputError unless a file fills the part of the network that weights of its kind are for.

    state : dict of tensors, where the file's content is at hand already; remedy : what to do otherwise
    """
    build, load = {'xception': (Xception_dilation, weights.load_imagenet_xception),
                   'voc': (deeplabv3plus, weights.load_voc),
                   'xception65': (deeplabv3plus, weights.load_timm_xception65)}[kind]
    with torch.device('meta'):
        network = build()   # without values: drawing random ones would take longer
    state = state or checkpoints.load_state(path, remedy)
    checkpoints.apply(load, network.to_empty(device='cpu'), state, path, remedy)


def make_xception(cfg, path):
    """Download the ImageNet Xception."""
    fetch.download(cfg.XCEPTION_URL, path, cfg.TIMEOUT, cfg.RETRIES, cfg.XCEPTION_SHA256,
                   partial(check, 'xception'))


def make_voc(cfg, path):
    """Copy the VOC file into place."""
    source = Path(cfg.VOC_FILE)
    if not cfg.VOC_FILE or not source.is_file():
        raise InputError('The VOC weights are on Google Drive, where no script may fetch them',
                         [f'VOC_FILE={cfg.VOC_FILE!r}: is no file'],
                         f'open {VOC_PAGE}, follow the link to {path.name} in its README, then: '
                         'python models/download.py --WEIGHTS=voc --VOC_FILE=<where it is>')
    check('voc', source)
    files.write_bytes(path, source.read_bytes())


def make_xception65(cfg, path):
    """Rename timm's aligned Xception-65 into our encoder and write it."""
    state = read_timm(Path(cfg.SOURCE)) if cfg.SOURCE else from_timm_package()
    check('xception65', cfg.SOURCE or f'timm {TIMM_NAME}', state, f'use the file of {TIMM_NAME}: {TIMM_PAGE}')
    checkpoints.save(weights.encoder_from_timm(state), path)


def read_timm(path):
    """State dict under timm's names from a .safetensors or PyTorch file."""
    if path.suffix != '.safetensors':
        return checkpoints.load_state(path, NO_TIMM)
    try:
        from safetensors.torch import load_file
        return load_file(path)
    except Exception as error:   # noqa: BLE001 - not installed, or an exception type of its own
        raise InputError('A weight file cannot be read', [f'{path}: {error}'], NO_TIMM) from None


def from_timm_package():
    """State dict under timm's names, fetched by timm from the Hugging Face hub."""
    try:
        import timm
        return timm.create_model(TIMM_NAME, pretrained=True).state_dict()
    except Exception as error:   # noqa: BLE001 - it is missing, or it or the hub raise one of many kinds
        raise InputError('timm could not fetch its weights', [f'{TIMM_NAME}: {error!r:.160}'],
                         f'pip install timm (requirements-extra.txt), or {NO_TIMM}') from None


MAKERS = {'xception': ('xception-43020ad28.pth', make_xception),
          'voc': ('deeplabv3plus_xception_VOC2012_epoch46_all.pth', make_voc),
          'xception65': ('xception65.tf_in1k.pth', make_xception65)}


if __name__ == '__main__':
    cli.launch(main)
