"""Checkpoints that are complete or absent, hold no code, and say what they were made from."""
from pathlib import Path

import torch

from engine import files, packing
from engine.errors import InputError

USUAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16,   # of parameters
         torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)   # of counters
MOST = 10**9   # numbers of one parameter; a small file can declare more than any memory holds
REPOSITORY = Path(__file__).resolve().parent.parent


def save(content, path):
    """Write tensors, numbers, text, lists and dicts; the previous file survives any failure.

    Raises InputError on a full disk.
    """
    try:
        with files.replacing(path) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)   # given a path, its name would become part of the bytes
    except (OSError, RuntimeError) as error:
        if not _is_full_disk(error):
            raise
        raise InputError('The disk is full', [f'{path}: could not be written; the file that was '
                                              'there before is untouched'],
                         'free some space and run the same command again') from error


def _is_full_disk(error):
    """True when a full disk is behind an error of saving. PyTorch often stumbles over its own positions
    while it handles what the system said, and only that later error arrives here."""
    while error is not None:
        if getattr(error, 'errno', None) in files.NO_ROOM or 'file write failed' in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def load(path, remedy):
    """Read a checkpoint onto the CPU without running code from it (weights_only).

    Raises InputError when the file is missing, truncated or holds anything but data.
    """
    try:
        if str(path).endswith(packing.SUFFIX):
            return packing.read(path)
        return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise InputError('A checkpoint is missing', [f'{path}: is missing'], remedy) from None
    except PermissionError:
        raise
    except Exception as error:   # noqa: BLE001 - torch raises many kinds for a damaged file
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError('A checkpoint cannot be read', [f'{path}: {reason}'],
                         f'it is truncated, or not a weight file; remove it, then: {remedy}'
                         ) from None


def load_state(path, remedy):
    """The network parameters in a checkpoint file: a plain state dict, or one wrapped in a dict.

    Understands this project's files, the released code's (`module.` prefixes) and the common
    wrappings {'model': ...} and {'state_dict': ...}.
    """
    content = load(path, remedy)
    networks = content.get('networks') if isinstance(content, dict) else None
    if isinstance(networks, dict) and len(networks) == 1:   # a last.pth
        content, = networks.values()
    for wrapping in ('model', 'state_dict', 'net'):
        if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
            content = content[wrapping]
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        raise InputError('A checkpoint cannot be used', [f'{path}: holds no network parameters'], remedy)
    odd = [name for name, tensor in content.items() if tensor.layout is not torch.strided
           or tensor.dtype not in USUAL or tensor.numel() > MOST
           or (tensor.is_floating_point() and not bool(tensor.isfinite().all()))]
    if odd:
        raise InputError('A checkpoint cannot be used', [
            f'{path}: {name} holds NaN, infinity or what is no number' for name in odd[:5]], remedy)
    return strip_prefixes(content)


def strip_prefixes(state):
    """Remove the `module.` and `_orig_mod.` that DistributedDataParallel and torch.compile add."""
    def clean(name):
        while name.startswith(('module.', '_orig_mod.')):
            name = name.partition('.')[2]
        return name
    return {clean(name): tensor for name, tensor in state.items()}


def load_parameters(network, state, missing=(), ignored=()):
    """Load `state` and demand that exactly the parameters beginning with `missing` keep their values.

    missing, ignored : prefixes of names; `ignored` ones in `state` are dropped before loading. Older files
    have no `num_batches_tracked`, which no network here makes use of.
    Raises ValueError that names what is missing, unexpected or of another shape.
    """
    state = {name: tensor for name, tensor in strip_prefixes(state).items()
             if not name.startswith(tuple(ignored))}
    own = network.state_dict()
    problems = [f'{name} is missing' for name in own
                if name not in state and not name.startswith(tuple(missing))
                and not name.endswith('num_batches_tracked')]
    problems += [f'{name} is not a parameter of {type(network).__name__}'
                 for name in state if name not in own]
    problems += [f'{name} should not be in the file' for name in state
                 if missing and name in own and name.startswith(tuple(missing))]
    problems += [f'{name} has shape {tuple(state[name].shape)} instead of {tuple(own[name].shape)}'
                 for name in own if name in state and state[name].shape != own[name].shape]
    problems += [f'{name} holds {state[name].dtype} instead of {own[name].dtype}' for name in own
                 if name in state and own[name].is_floating_point() > state[name].is_floating_point()]
    if problems:
        more = f' (and {len(problems) - 5} more)' if len(problems) > 5 else ''
        raise ValueError('; '.join(problems[:5]) + more)
    network.load_state_dict(state, strict=False)


def apply(load_into, network, state, path, remedy, **options):
    """Call a loader of `net.weights` and name the file when the parameters do not fit."""
    try:
        load_into(network, state, **options)
    except (ValueError, KeyError) as error:
        raise InputError('A checkpoint does not fit the network', [f'{path}: {error}'], remedy) from None


def read_config(weights_path):
    """The settings stored beside a best checkpoint, {} where there are none (released code's files)."""
    path = weights_path.parent / 'config.json'
    try:
        return files.json_object(path.read_text(encoding='utf-8'), 'settings', 'inputs')
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise InputError('A run folder is damaged', [f'{path}: {error}'],
                         'restore the file or train again') from None


def found(path):
    """A weight file's path, as looked up from here or else from the repository; it need not exist."""
    return Path(path) if Path(path).is_file() else REPOSITORY / path


def fingerprint_or_refuse(path, remedy):
    """The fingerprint of weights that must be there. Raises InputError when they are not."""
    if not path.is_file():
        raise InputError('A checkpoint is missing', [f'{path}: is missing'], remedy)
    return files.fingerprint(path)
