"""Devices, precision, determinism, and the processes of a torchrun launch."""
import contextlib
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from engine import cli
from engine.errors import InputError

DEVICES = ('auto', 'cpu', 'cuda', 'mps')
PRECISIONS = ('auto', 'bf16', 'fp16', 'fp32')
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
COMPILATIONS = ('default', 'reduce-overhead', 'max-autotune')   # modes of torch.compile
WORKERS_AUTO = -1
MOST_AT_ONCE = 16   # items of `on_each_core`: each holds feature maps of 100 to 200 MB
LEAST_FILES, FILES = 256, 1024   # open at once: what loader processes need, and what they get where allowed
PATIENCE = timedelta(hours=3)   # processes wait for one that decodes all pictures
CONTAINER = Path('/sys/fs/cgroup')   # where Linux tells a container its limits


@dataclass(frozen=True)
class Process:
    """One process of a run. rank 0 of world = 1 without torchrun; device : torch.device."""
    rank: int
    world: int
    device: torch.device

    @property
    def main(self):
        """True in the one process that writes files and prints."""
        return self.rank == 0


def start(cfg, alone=False):
    """Join the torchrun launch, if there is one, and choose this process's device.

    alone : the script cannot share its work. Reads cfg.DEVICE and cfg.DETERMINISTIC.
    Raises InputError when the device is not there, or cannot be one of several.
    """
    rank, world = cli.processes()
    if alone and world > 1:
        raise InputError('This stage runs in one process', remedy='start it with python, without torchrun')
    device = choose_device(cfg.DEVICE, int(os.environ.get('LOCAL_RANK', 0)) if world > 1 else 0)
    if device.type == 'mps' and world > 1:   # no backend of torch.distributed knows it
        raise InputError("Several processes cannot train on Apple's GPU",
                         remedy='--DEVICE=cpu, or start it with python, without torchrun')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    if cfg.DETERMINISTIC:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not cfg.DETERMINISTIC
    if world > 1 and not dist.is_initialized():
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=PATIENCE)
    return Process(rank, world, device)


def finish():
    """Leave the process group of a torchrun launch."""
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(name, local_rank=0):
    """torch.device for 'auto' (CUDA, else Apple MPS, else CPU) or a device by name."""
    there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    available = [kind for kind in there if there[kind]]
    name = available[0] if name == 'auto' else name
    if name not in available:
        raise InputError(f'DEVICE={name} is not available here', remedy=f'available: {", ".join(available)}')
    if name == 'cuda' and local_rank >= torch.cuda.device_count():
        raise InputError(f'Process {local_rank} has no GPU: there are {torch.cuda.device_count()}',
                         remedy='lower --nproc-per-node')
    return torch.device('cuda', local_rank) if name == 'cuda' else torch.device(name)


def choose_precision(name, device):
    """'bf16', 'fp16' or 'fp32'. 'auto': bf16 where the hardware multiplies it, fp16 on older GPUs.

    Apple MPS and CPUs without bf16 instructions compute in float32, which is faster there than
    emulation.
    """
    if name != 'auto':
        return name
    if device.type == 'cuda':
        return 'bf16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'fp16'
    # PyTorch has no public question for this.
    multiplies = any(getattr(torch.cpu, name, bool)()
                     for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return 'bf16' if device.type == 'cpu' and multiplies else 'fp32'


def autocast(precision, device):
    """Context in which the network computes; float32 needs none."""
    if precision == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def at_once(device):
    """How many items `on_each_core` has under way if there are as many."""
    return min(torch.get_num_threads(), MOST_AT_ONCE) if device.type == 'cpu' else 1


def on_each_core(function, items, device):
    """function(item) of a list of items, in order; a generator. It must not compute gradients.

    On a CPU each core takes an item of its own, so that no core waits for the others after every
    layer: an eighth faster on two cores. Other devices take one item after the other.
    """
    cores = torch.get_num_threads()
    threads = min(at_once(device), len(items))
    if threads < 2:
        yield from map(function, items)
        return
    waiting = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,))
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)   # what threads of later begin with


def workers(setting, device):
    """Number of loader processes: the setting, or with -1 some beside an NVIDIA GPU and none elsewhere
    (a CPU has better to do, and Apple's would have to copy the cached pictures to each)."""
    number = setting
    if setting == WORKERS_AUTO:
        share = (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        number = min(8, max(1, share)) if device.type == 'cuda' else 0
    if number:
        _allow_files()
    return number


def _allow_files():
    """Raise the limit on open files to what loader processes need: each tensor that they hand over is one.

    Below it a batch may never arrive. Raises InputError where the limit cannot be raised far enough.
    """
    if os.name != 'posix':
        return
    import resource  # Windows has none
    allowed, most = (math.inf if limit == resource.RLIM_INFINITY else limit
                     for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if allowed < FILES:
        allowed = min(FILES, most)
        if allowed < LEAST_FILES:
            raise InputError(f'Loader processes need {LEAST_FILES} open files; {allowed} are allowed',
                             remedy='allow more (`ulimit -n 1024`), or load without them: --NUM_WORKERS=0')
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def free_memory():
    """Bytes of memory and swap that a process can still get; infinity on systems that do not say."""
    try:
        facts = dict(line.split()[:2] for line in Path('/proc/meminfo').read_text().splitlines())
        free = 1024 * (int(facts['MemAvailable:']) + int(facts['SwapFree:']))
    except (OSError, LookupError, ValueError):
        return math.inf
    with contextlib.suppress(OSError, ValueError):   # a container may have less than its machine
        free = min(free, _left_to_container())
    return free


def _left_to_container():
    """Bytes that a container may still take; its cache of files makes room. OSError, ValueError: no limit."""
    left = int((CONTAINER / 'memory.max').read_text())
    with contextlib.suppress(OSError, LookupError, ValueError):
        left -= int((CONTAINER / 'memory.current').read_text())
        facts = dict(line.split() for line in (CONTAINER / 'memory.stat').read_text().splitlines())
        left += int(facts['inactive_file'])
    return left


def keep_below(limit, refusal):
    """Context that raises `refusal` when a forward pass keeps more than `limit` bytes for its gradient.

    Else the system kills the process that asks for more memory than there is, without a word.
    """
    seen, kept = set(), 0

    def keep(tensor):
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept += storage.nbytes()
        if kept > limit:
            raise refusal
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)


def seed_step(seed, step, rank):
    """Make everything random in a step a function of (seed, step, rank), so that a resumed run is exact."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def any_process(flag, process):
    """True in all processes when `flag` is true in one of them."""
    return any(merge([flag], process))


def merge(rows, process):
    """Join the lists that each process has; the result is the same in all of them."""
    if process.world == 1:
        return rows
    parts = [None] * process.world
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


@contextlib.contextmanager
def main_first(process):
    """Let the main process go through the block alone, then the others: files are made only once."""
    if not process.main:
        barrier(process)
    yield
    if process.main:
        barrier(process)


def share_buffers(network, process):
    """Give all processes the first one's batch norm statistics, so that they validate one network."""
    if process.world > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def barrier(process):
    """Wait for all processes."""
    if process.world > 1:
        dist.barrier()
