"""One measurement in a process of its own: `child.py <work> <version> <folder> <device> <seconds>`.

Prints a line of JSON: least seconds of one unit, the floor, peak memory above that before the work.
"""
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import machine, works

LEAST, MOST = 2, 200   # repetitions, after a first that does not count
AHEAD = 40             # batches, more than eight loader processes keep ready


def main():
    name, version, folder, device, seconds = sys.argv[1:]
    device = torch.device(device)
    torch.backends.cudnn.benchmark = True   # for both versions, as the scripts have it
    work = works.WORKS[name](Path(folder) / name, device)
    work.prepare()
    memory = machine.Memory(device)
    times = work.times(version) if hasattr(work, 'times') else repeated(
        getattr(work, version)(), device, float(seconds), work.loads and device.type == 'cuda')
    on_host, on_gpu = memory.peak()
    if work.elsewhere:
        on_host = on_gpu = None
    print(json.dumps({'seconds': min(times) / work.units, 'repetitions': len(times), 'floor': work.floor(),
                      'memory': on_host, 'gpu_memory': on_gpu}))


def repeated(call, device, seconds, loaded=False):
    """Seconds of each repetition of a call; the first, which warms up, is left out.

    loaded : with batches of loader processes, which may have fetched many before the clock starts: those are
    used up first, and one mean counts, since a batch that is ready says nothing about the next
    """
    call()
    if loaded:
        for _ in range(AHEAD):
            call()
        machine.wait(device)
        start = time.perf_counter()
        for _ in range(AHEAD):
            call()
        machine.wait(device)
        return [(time.perf_counter() - start) / AHEAD]
    machine.wait(device)
    times = []
    while len(times) < LEAST or (sum(times) < seconds and len(times) < MOST):
        start = time.perf_counter()
        call()
        machine.wait(device)
        times.append(time.perf_counter() - start)
    return times


if __name__ == '__main__':
    main()
