"""The training loop that the three stages share."""
import math
import signal
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataset.errors import InputError
from dataset.samples import stream
from engine import checkpoints, hardware
from engine.script import Interrupted

STEPS_BETWEEN_AGREEMENTS = 20   # how often processes ask each other whether to stop, or a GPU its loss
GO_ON = ('lower LEARNING_RATE with --RESUME=False, or look at the pictures; last.pth still holds the '
         'last good state')


def poly(start, step, total, power=0.9):
    """Learning rate start * (1 - step / total) ** power, never negative (section 7: a negative base
    would make it complex)."""
    return start * max(0.0, 1 - step / total) ** power


class Stage:
    """What one stage brings to `fit`: its network, data, loss and validation.

    network : nn.Module; dataset : dataset.samples.Pictures
    loss(model, batch) -> (scalar tensor, {name: scalar tensor}); model is the network, perhaps
        wrapped for several devices, and batch is on the device
    validate() -> {name: float}, which holds `monitor`; called in every process
    panel(path) draws some validation pictures
    monitor : name of the validation score to select by, larger is better
    """

    def __init__(self, network, dataset, loss, validate, panel, monitor):
        self.network, self.dataset, self.loss = network, dataset, loss
        self.validate, self.panel, self.monitor = validate, panel, monitor


def fit(stage, cfg, run, process, total_steps, validate_every):
    """Train to total_steps, validating every validate_every steps; resume where the run stopped.

    Writes best weights, last.pth, metrics.jsonl and figures into run.folder. Raises Interrupted
    after saving when Ctrl-C or SIGTERM arrives, InputError on a loss that is not finite.
    """
    precision = hardware.choose_precision(cfg.AMP, process.device)
    stage.network.to(process.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(stage.network.parameters(), lr=cfg.LEARNING_RATE,
                                 fused=process.device.type in ('cpu', 'cuda'))
    scaler = torch.amp.GradScaler(process.device.type, enabled=precision == 'fp16')
    progress = Progress.restore(run.begin(cfg.RESUME), stage.network, optimizer, scaler)
    if progress.finished(total_steps, cfg.PATIENCE):
        print(f'{run.folder}: already trained, best {stage.monitor} {progress.best:.4f} '
              f'at step {progress.best_step}; nothing to do (--RESUME=False starts anew)')
        return
    model = _distribute(stage.network, process, cfg.SYNC_BN)
    loader = stream(stage.dataset, cfg.BATCH_SIZE, progress.step, total_steps, process.rank,
                    process.world, hardware.workers(cfg.NUM_WORKERS, process.device))
    print(f'training on {process.world} x {process.device}, {precision}, '
          f'steps {progress.step} to {total_steps}')
    with Stopping() as stopping, _bar(progress, total_steps, process) as bar:
        _train_mode(model, cfg.FREEZE_BN)
        for batch in loader:
            rate = poly(cfg.LEARNING_RATE, progress.step, total_steps)
            parts = _step(stage, model, optimizer, scaler, batch, rate, cfg, progress, process, precision)
            progress.add(parts)
            bar.update()
            if progress.step % 10 == 0:
                bar.set_postfix(progress.means(), refresh=False)
            at_end = progress.step == total_steps
            if progress.step % validate_every == 0 or at_end:
                _validate(stage, run, progress, optimizer, scaler, rate, at_end, process)
                if progress.finished(total_steps, cfg.PATIENCE):
                    break
                _train_mode(model, cfg.FREEZE_BN)
            elif _asked_to_stop(stopping, progress.step, process):
                _save(run, progress, stage.network, optimizer, scaler)
                raise Interrupted(stopping.signal or signal.SIGTERM)
    if process.main:
        run.draw(stage.monitor, stage.panel, final=True)
    print(f'{run.folder}: best {stage.monitor} {progress.best:.4f} at step {progress.best_step}')


def _step(stage, model, optimizer, scaler, batch, rate, cfg, progress, process, precision):
    """One optimisation step; returns the loss and its parts as tensors on the device."""
    for group in optimizer.param_groups:
        group['lr'] = rate
    hardware.seed_step(cfg.SEED, progress.step, process.rank)
    batch = {name: tensor.to(process.device, non_blocking=True) for name, tensor in batch.items()}
    with hardware.autocast(precision, process.device):
        loss, parts = stage.loss(model, batch)
    if process.device.type == 'cpu' or progress.step % STEPS_BETWEEN_AGREEMENTS == 0:
        _refuse_non_finite(loss, batch, progress.step)   # asking a GPU every time would stall it
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    progress.step += 1
    return {'loss': loss.detach(), **parts}


def _refuse_non_finite(loss, batch, step):
    """Stop before a loss that is not finite reaches the weights; last.pth holds the last good state."""
    if math.isfinite(loss.item()):
        return
    raise InputError(f'The loss of step {step} is {loss.item()}',
                     [f'pictures (by line of the list, from 0): {batch["index"].tolist()}'],
                     GO_ON)


def _train_mode(model, freeze_bn):
    """Training mode; with freeze_bn the batch norms keep using their running statistics."""
    model.train()
    if freeze_bn:
        for layer in model.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()


def _distribute(network, process, sync_bn):
    """Wrap for several processes: gradients are averaged; on GPUs batch norm sees the global batch."""
    if process.world == 1:
        return network
    if sync_bn and process.device.type == 'cuda':
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    ids = [process.device.index] if process.device.type == 'cuda' else None
    return DistributedDataParallel(network, device_ids=ids, broadcast_buffers=True)


def _validate(stage, run, progress, optimizer, scaler, rate, at_end, process):
    """Score the network, keep it when it is the best so far, and save the state to go on from."""
    stage.network.eval()
    progress.refuse_non_finite()
    speed = progress.speed()
    row = {'step': progress.step, 'lr': rate, **progress.take_means(process), **stage.validate()}
    score = row[stage.monitor]
    progress.validations += 1
    best = not math.isnan(score) and score > progress.best
    if best:
        progress.best, progress.best_step, progress.best_validation = (score, progress.step,
                                                                       progress.validations)
    if process.main:
        run.log(row, speed)
        shown = '  '.join(f'{name} {value:.4g}' for name, value in row.items() if name != 'step')
        tqdm.write(f'step {progress.step}: {shown}  {speed:.2f} steps/s{"  *" if best else ""}')
        if best or not run.weights.exists():
            checkpoints.save(stage.network.state_dict(), run.weights)
    _save(run, progress, stage.network, optimizer, scaler)
    if not at_end:
        run.draw(stage.monitor, stage.panel)
    hardware.barrier(process)
    progress.restart_clock()


def _save(run, progress, network, optimizer, scaler):
    progress.refuse_non_finite()
    if run.process.main:
        checkpoints.save({**progress.state(), 'model': network.state_dict(),
                          'optimizer': optimizer.state_dict(), 'scaler': scaler.state_dict()}, run.last)


def _asked_to_stop(stopping, step, process):
    if process.world == 1:
        return stopping.signal is not None
    return (step % STEPS_BETWEEN_AGREEMENTS == 0
            and hardware.any_process(stopping.signal is not None, process))


def _bar(progress, total_steps, process):
    return tqdm(total=total_steps, initial=progress.step, unit='step', smoothing=0.1,
                disable=not process.main, dynamic_ncols=True)


class Progress:
    """Where a run stands: step, best score, and the losses since the last validation."""

    def __init__(self):
        self.step = self.best_step = self.validations = self.best_validation = self.count = 0
        self.best, self.sums, self.images = float('-inf'), {}, 0
        self.restart_clock()

    @classmethod
    def restore(cls, state, network, optimizer, scaler):
        """Go on from a last.pth, or start when `state` is None."""
        progress = cls()
        if state is not None:
            network.load_state_dict(state['model'])
            optimizer.load_state_dict(state['optimizer'])
            scaler.load_state_dict(state['scaler'])
            for name in progress.state():
                setattr(progress, name, state[name])
        return progress

    def state(self):
        sums = {name: float(value) for name, value in self.sums.items()}
        return {'step': self.step, 'best': self.best, 'best_step': self.best_step, 'count': self.count,
                'validations': self.validations, 'best_validation': self.best_validation, 'sums': sums}

    def finished(self, total_steps, patience):
        """True at the last step, or after `patience` validations without a better score (0 = never)."""
        waited = self.validations - self.best_validation
        return self.step >= total_steps or (patience > 0 and waited >= patience)

    def add(self, parts):
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.count += 1

    def refuse_non_finite(self):
        """InputError when a loss since the last validation was not finite: such weights are not kept."""
        if not all(math.isfinite(float(value)) for value in self.sums.values()):
            raise InputError(f'The loss was not finite before step {self.step}', remedy=GO_ON)

    def means(self):
        return {name: f'{float(value) / self.count:.4f}' for name, value in self.sums.items()}

    def take_means(self, process):
        """{name: mean} over the steps since the last call and over all processes."""
        own = {name: float(value) / self.count for name, value in self.sums.items()}
        everyone = hardware.merge([own], process)
        self.sums, self.count = {}, 0
        return {name: sum(row[name] for row in everyone) / len(everyone) for name in own}

    def restart_clock(self):
        self._since, self._from = time.monotonic(), self.step

    def speed(self):
        """Steps a second since the last validation."""
        return (self.step - self._from) / max(time.monotonic() - self._since, 1e-9)


class Stopping:
    """While active, Ctrl-C and SIGTERM set `signal` instead of ending the process at once.

    A second signal of the kind ends it in the usual way.
    """

    def __enter__(self):
        self.signal = None
        self._before = {number: signal.signal(number, self._note)
                        for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, _frame):
        self.signal = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
