"""What this machine can do at best, and what a piece of work asks of it."""
import platform
import resource
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import hardware

SIDES = {'cpu': (2048, 4096), 'cuda': (4096, 8192, 16384)}   # of the square matrices; the best counts
AT_ONCE = {'cpu': 1, 'cuda': 20}   # calls between two looks at the clock
COPIED = 512 * 2**20          # bytes, well beyond every cache
SECONDS = 1.0                 # for each rate
LINUX_STATUS = Path('/proc/self/status')


def wait(device):
    """Let a GPU finish, so that a clock tells the truth."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    elif device.type == 'mps':
        torch.mps.synchronize()


def rates(device):
    """{precision: FLOP/s, 'fp32': FLOP/s, 'memory': bytes/s}, of matrix products and of a copy, measured now.

    The precision is that in which networks run here. A multiplication and an addition are two operations; a
    copied byte is read and written.
    """
    found = {}
    for name in dict.fromkeys((hardware.choose_precision('auto', device), 'fp32')):
        best, dtype = 0, hardware.DTYPES[name]
        for side in SIDES.get(device.type, SIDES['cpu']):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            best = max(best, 2 * side**3 / _least(lambda a=a, b=b: a @ b, device))
        found[name] = best
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    found['memory'] = 2 * COPIED / _least(lambda: target.copy_(source), device)
    return found


def told(rates):
    """Rates in words."""
    products = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}' for name, rate in rates.items()
                         if name != 'memory')
    return f'matrix products {products}; copies {rates["memory"] / 1e9:.1f} GB/s'


def _least(call, device):
    """Least seconds of a call, repeated for SECONDS."""
    count = AT_ONCE.get(device.type, 1)
    call()
    wait(device)
    best, end = float('inf'), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait(device)
        best = min(best, (time.perf_counter() - start) / count)
    return best


def flops(network, *inputs):
    """Operations of one forward pass of a network, counted by PyTorch from the shapes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


class Memory:
    """Peak memory of a piece of work: of this process above its present state, and of a GPU as a whole."""

    def __init__(self, device):
        if device.type == 'cuda':
            torch.zeros(1, device=device)   # CUDA's own memory is not the work's
            torch.cuda.reset_peak_memory_stats(device)
        self.device, self.before = device, _resident('VmRSS')
        if LINUX_STATUS.exists():
            Path('/proc/self/clear_refs').write_text('5')   # sets the peak to the present

    def peak(self):
        """(bytes on the host, bytes on the GPU or 0)"""
        gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == 'cuda' else 0
        return _resident('VmHWM') - self.before, gpu


def own_memory():
    """Resident memory of this process in bytes, pages of mapped files left out (on Linux)."""
    return _resident('RssAnon')


def _resident(which):
    """A number of Linux's process status in bytes; elsewhere the greatest resident memory instead."""
    if LINUX_STATUS.exists():
        line = next(line for line in LINUX_STATUS.read_text().splitlines() if line.startswith(which))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe(device):
    """The machine in a line."""
    processor = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        names = [line.partition(':')[2].strip() for line in info.read_text().splitlines()
                 if line.startswith('model name')]
        processor = names[0] if names else processor
    gpu = f', {torch.cuda.get_device_name(device)}' if device.type == 'cuda' else ''
    cores = torch.get_num_threads()
    return (f'{cores} core{"s" * (cores > 1)} of {processor}{gpu}; PyTorch {torch.__version__}, precision '
            f'{hardware.choose_precision("auto", device)}')
