"""Pack trained networks into files that a repository or a release can carry.

Reads   models/CoarseSN/, models/MaskCN/ and models/EnhancedSN/ below ROOT: weights and config.json
Writes  OUT/<network>/<network>.safetensors   the weights, in few bits or as float16
        OUT/<network>/config.json             settings and fingerprints of its training
        OUT/SHA256SUMS

    python models/pack.py --ABOUT="trained on ISIC-2017 at 192 px"
    python models/pack.py --FORM=fp16 --OUT=release

predict.py, the Python API, generate_Coarse_mask.py and the evaluation use what lies in models/isic2017/
where no trained weights lie below their root. Networks that are packed already, as of a root that trains
enhanced-SN anew beside the repository's others, are copied as they are. Cost: a minute of one CPU core.
"""
import hashlib
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python models/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from tqdm import tqdm

from dataset.layout import Layout
from engine import checkpoints, cli, files, packing, settings
from engine.errors import InputError
from mbdcnn.predictor import MBDCNN, NETWORKS

# --- What
ROOT = '.'                 # folder that holds models/
RECIPE = 'default'         # default, or a file of recipes/
OUT = 'models/isic2017'    # folder for the packed networks
ABOUT = ''                 # who trained them, on what: said whenever they are used
FORM = 'packed'            # packed, or fp16

# --- FORM=packed
TOLERANCE = 0.04           # relative error of a convolution; each has as few bits as keep it, 2 to 8


def main():
    cfg = settings.resolve(globals(), choices={'FORM': ('packed', 'fp16')}, positive=('TOLERANCE',))
    layout, out = Layout(cfg.ROOT), Layout('.')
    out.models = Path(cfg.OUT)
    if out.models.resolve() == layout.models.resolve():
        raise InputError('OUT is the folder that is read', [cfg.OUT], 'choose another --OUT')
    MBDCNN.load(layout.models, device='cpu', precision='fp32')   # complete, and trained on each other
    renamed, targets = {}, {name: out.run(name) / f'{name}{packing.SUFFIX}' for name in NETWORKS}
    new = [name for name in NETWORKS
           if cfg.FORM == 'fp16' or layout.weights(name).suffix != packing.SUFFIX]
    for name in tqdm(NETWORKS, desc='packing', unit='network'):
        source, target = layout.weights(name), targets[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        if name not in new:   # in few bits once more it would lose twice
            for file in (source, source.with_name('config.json')):
                shutil.copyfile(file, target.with_name(file.name))
        elif cfg.FORM == 'fp16':
            packing.write_half(load(layout, name), target)
        else:
            packing.write(load(layout, name), target, cfg.TOLERANCE, targets.get(BASES.get(name)))
        renamed[files.fingerprint(source)] = files.fingerprint(target)
    for name in new:
        config = checkpoints.read_config(layout.weights(name))
        config.get('versions', {}).pop('host', None)
        config.get('settings', {}).pop('ROOT', None)
        text = json.dumps(config, indent=1)
        for before, now in renamed.items():   # so that the packed networks know each other
            text = text.replace(f'"{before}"', f'"{now}"')
        packed = {'about': cfg.ABOUT, 'of': dict(zip(NETWORKS, renamed, strict=True))}
        files.write_text(out.run(name) / 'config.json',
                         json.dumps(json.loads(text) | {'packed': packed}, indent=1) + '\n')
    written = [out.weights(name) for name in NETWORKS]
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    files.write_text(out.models / 'SHA256SUMS', ''.join(
        f'{digest}  {path.relative_to(out.models).as_posix()}\n' for path, digest in sums.items()))
    MBDCNN.load(out.models, device='cpu', precision='fp32')
    for path in written:
        print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


def load(layout, name):
    """The parameters of a trained network below a root."""
    return checkpoints.load_state(layout.weights(name), layout.command(f'train_{name}.py'))


# Below main(), where settings do not look.
BASES = {'EnhancedSN': 'CoarseSN'}   # {network: the one that it was trained on from}


if __name__ == '__main__':
    cli.launch(main)
