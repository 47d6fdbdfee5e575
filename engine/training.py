"""The training loop that the three stages share."""
import math
import signal
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dataset import resident, samples
from dataset.errors import InputError
from engine import checkpoints, hardware
from engine.script import Interrupted
from net import weights

SECONDS_BETWEEN_SAVES = 60   # of last.pth, beside best scores and the end: a GPU validates every few seconds
STEPS_BETWEEN_MEANS = 10   # how often a GPU is asked for its losses, and processes whether to stop
GO_ON = ('lower LEARNING_RATE with --RESUME=False, or look at the pictures; last.pth, where there is one, '
         'holds the last good state')
GO_ANEW = 'start anew with --RESUME=False'


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
    session = Session(stage, cfg, run, process, total_steps)
    progress = session.progress
    if progress.finished(total_steps, cfg.PATIENCE):
        print(f'{run.folder}: already trained, {progress.summary(stage.monitor)}; '
              f'nothing to do (--RESUME=False starts anew)')
        if process.main and not run.was_finished:   # it was killed between its last step and its end
            _draw_best(stage, run)
        run.finish(progress.step, progress.best, progress.best_step)
        return
    run.note_processes()
    resides = on_device(stage.dataset, cfg, process)
    loader = batches(stage.dataset, cfg, progress.step, total_steps, process, resides)
    print(f'training on {process.world} x {process.device}, {session.precision}, pictures '
          f'{"in its memory" if resides else "from the host"}, steps {progress.step} to {total_steps}')
    with Stopping() as stopping, tqdm(total=total_steps, initial=progress.step, unit='step',
                                      disable=not process.main) as bar:
        if getattr(cfg, 'INITIAL_WEIGHTS', '') and progress.validations == 0:
            session.validate(0.0)   # what is fine-tuned stays, where training on it makes nothing better
        session.train_mode()
        for batch in loader:
            rate = poly(cfg.LEARNING_RATE, progress.step, total_steps)
            session.step(batch, rate)
            bar.update()
            if progress.step % STEPS_BETWEEN_MEANS == 0:
                bar.set_postfix(progress.shown(), refresh=False)
            if progress.step % validate_every == 0 or progress.step == total_steps:
                session.validate(rate)
                if progress.finished(total_steps, cfg.PATIENCE):
                    break
                session.train_mode()
            if _asked_to_stop(stopping, progress.step, process):
                session.save()
                raise Interrupted(stopping.signal or signal.SIGTERM)
    if process.main:
        _draw_best(stage, run)
        print(f'{run.folder}: {progress.summary(stage.monitor)}')
    run.finish(progress.step, progress.best, progress.best_step)


def on_device(dataset, cfg, process):
    """Whether the training pictures are to lie in the device's memory, see PICTURES_ON."""
    return cfg.PICTURES_ON == 'device' or (cfg.PICTURES_ON == 'auto' and process.device.type == 'cuda'
                                           and resident.fits(dataset, process.device))


def batches(dataset, cfg, first_step, last_step, process, resides):
    """This process's share of the batches of steps first_step .. last_step - 1, an iterable."""
    steps = (cfg.BATCH_SIZE, first_step, last_step, process.rank, process.world)
    if resides:
        return resident.Resident(dataset, process.device).stream(*steps)
    return samples.stream(dataset, *steps, hardware.workers(cfg.NUM_WORKERS, process.device))


def _draw_best(stage, run):
    """The last curves and panel; the latter shows the weights that are kept."""
    best = checkpoints.load_state(run.weights, GO_ANEW)
    checkpoints.apply(weights.load, stage.network, best, run.weights, GO_ANEW)
    run.draw(stage.monitor, stage.panel, final=True)


class Session:
    """The moving parts of one call of `fit`, and what is done with them: steps, validations, saves."""

    def __init__(self, stage, cfg, run, process, total_steps):
        self.stage, self.cfg, self.run, self.process = stage, cfg, run, process
        self.total_steps = total_steps
        self.precision = hardware.choose_precision(cfg.AMP, process.device)
        stage.network.to(process.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(stage.network.parameters(), lr=cfg.LEARNING_RATE,
                                          fused=process.device.type in ('cpu', 'cuda'))
        self.scaler = _scaler(self.precision, process.device)
        self.progress = Progress()
        state = run.begin(cfg.RESUME)
        if state is not None:
            self._take_up(state)
            self._complete(checkpoints.on_cpu(state['model']))
        self.model = _distribute(stage.network, process, cfg.SYNC_BN, cfg.COMPILE)
        self._saved = -math.inf

    def _take_up(self, state):
        """Go on from last.pth. Raises InputError when it is of another network, or damaged."""
        try:
            weights.load(self.stage.network, state['model'])
            for group in state['optimizer']['param_groups']:   # the run may come from another device
                group['fused'] = self.optimizer.defaults['fused']
            self.optimizer.load_state_dict(state['optimizer'])
            if not all(_fit(*pair) for pair in self.optimizer.state.items()):
                raise ValueError("Adam's moments do not fit the network")
            if state['scaler'] and self.precision == 'fp16':
                self.scaler.load_state_dict(state['scaler'])
            self.progress.restore(state['progress'])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError('A checkpoint cannot be used', [f'{self.run.last}: {error}'], GO_ANEW) from None

    def step(self, batch, rate):
        """One optimisation step at learning rate `rate`."""
        progress, device = self.progress, self.process.device
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        hardware.seed_step(self.cfg.SEED, progress.step, self.process.rank)
        on_gpu = device.type == 'cuda'   # from pinned memory
        batch = {name: tensor.to(device, non_blocking=on_gpu) for name, tensor in batch.items()}
        with hardware.autocast(self.precision, device):
            loss, parts = self.stage.loss(self.model, batch)
        if device.type == 'cpu' or progress.step % STEPS_BETWEEN_MEANS == 0:
            _refuse_non_finite(loss, batch, progress.step)   # asking a GPU every time would stall it
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.precision == 'fp16' else 1.0)
        progress.add({'loss': loss, **parts})

    def validate(self, rate):
        """Score the network; save the state to go on from, when the score is the best so far, or the last
        save lies back, or this is the end; keep the best weights."""
        progress, stage, run = self.progress, self.stage, self.run
        self.refuse_non_finite()
        stage.network.eval()
        hardware.share_buffers(stage.network, self.process)
        speed = progress.speed()
        row = {'step': progress.step, 'lr': rate, **progress.take_means(self.process), **stage.validate()}
        best = progress.note_score(row[stage.monitor])
        if self.process.main:
            run.log(row, speed)
            shown = '  '.join(f'{name} {value:.4g}' for name, value in row.items() if name != 'step')
            tqdm.write(f'step {progress.step}: {shown}  {speed:.2f} steps/s{"  *" if best else ""}')
        waited = time.monotonic() - self._saved
        if best or waited >= SECONDS_BETWEEN_SAVES or progress.finished(self.total_steps, self.cfg.PATIENCE):
            self.save()
        if self.process.main and best:   # after last.pth, see _complete
            checkpoints.save(checkpoints.on_cpu(stage.network.state_dict()), run.weights)
        if progress.step < self.total_steps:
            run.draw(stage.monitor, stage.panel)
        hardware.barrier(self.process)
        progress.restart_clock()

    def save(self):
        """Write last.pth; never from weights that a loss without a finite value has reached."""
        self.refuse_non_finite()
        if self.process.main:
            checkpoints.save({'progress': self.progress.state(), 'model': self.stage.network.state_dict(),
                              'optimizer': self.optimizer.state_dict(),
                              'scaler': self.scaler.state_dict() if self.precision == 'fp16' else {}},
                             self.run.last)
        self._saved = time.monotonic()

    def _complete(self, model):
        """Save the best weights when the run was killed after last.pth and before them."""
        if not self.process.main or self.progress.best_step != self.progress.step:
            return
        kept = checkpoints.load(self.run.weights, GO_ANEW) if self.run.weights.exists() else {}
        same = isinstance(kept, dict) and kept.keys() == model.keys() and all(
            isinstance(kept[name], torch.Tensor) and torch.equal(kept[name], model[name]) for name in model)
        if not same:
            checkpoints.save(model, self.run.weights)

    def refuse_non_finite(self):
        """InputError when a loss or a weight is not finite: nothing is saved of such a network."""
        self.progress.refuse_non_finite()
        state = self.stage.network.state_dict()   # running statistics overflow while the loss is still finite
        if not bool(torch.stack([tensor.isfinite().all() for tensor in state.values()]).all()):
            raise InputError(f'A weight is not finite after step {self.progress.step}', remedy=GO_ON)

    def train_mode(self):
        """Training mode; with FREEZE_BN the batch norms keep using their running statistics."""
        self.model.train()
        if self.cfg.FREEZE_BN:
            for layer in self.model.modules():
                if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                    layer.eval()


def _fit(parameter, moments):
    """True when Adam can go on with what it kept of a parameter; its fused form does not look itself."""
    shapes = {'exp_avg': parameter.shape, 'exp_avg_sq': parameter.shape, 'step': torch.Size()}
    return moments.keys() == shapes.keys() and all(
        isinstance(moments[name], torch.Tensor) and checkpoints.is_usable(moments[name])
        and moments[name].shape == shape and moments[name].dtype == torch.float32
        for name, shape in shapes.items())


def _scaler(precision, device):
    """Loss scaling for fp16. For other precisions on GPUs it scales by 1 (a step sets it back) and only
    skips optimisation steps whose gradients are not finite, so that such a step never reaches the weights,
    although the loss itself is looked at only now and then."""
    if precision == 'fp16' or device.type != 'cuda':
        return torch.amp.GradScaler(device.type, enabled=precision == 'fp16')
    return torch.amp.GradScaler(device.type, init_scale=1.0)


def _refuse_non_finite(loss, batch, step):
    """Stop before a loss that is not finite reaches the weights; last.pth holds the last good state."""
    if not math.isfinite(loss.item()):
        raise InputError(f'The loss of step {step} is {loss.item()}',
                         [f'pictures (by line of the list, from 0): {batch["index"].tolist()}'], GO_ON)


def _distribute(network, process, sync_bn, mode):
    """Wrap for several processes: gradients are averaged; on GPUs batch norm sees the global batch.

    mode : of torch.compile, or 'off'. The stage keeps the network itself, to validate and to save.
    """
    if process.world > 1:
        on_gpu = process.device.type == 'cuda'
        if sync_bn and on_gpu:
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = DistributedDataParallel(network, device_ids=[process.device.index] if on_gpu else None)
    return network if mode == 'off' else torch.compile(network, mode=mode)


def _asked_to_stop(stopping, step, process):
    if process.world == 1:
        return stopping.signal is not None
    now = process.device.type == 'cpu' or step % STEPS_BETWEEN_MEANS == 0
    return now and hardware.any_process(stopping.signal is not None, process)


class Progress:
    """Where a run stands: step, best score, and the losses since the last validation."""

    SAVED = ('step', 'best', 'best_step', 'validations', 'best_validation', 'count')

    def __init__(self):
        self.step = self.best_step = self.validations = self.best_validation = self.count = 0
        self.best, self.sums = float('-inf'), {}
        self.restart_clock()

    def state(self):
        """Everything as numbers and dicts, for last.pth."""
        return {**{name: getattr(self, name) for name in self.SAVED},
                'sums': {name: float(value) for name, value in self.sums.items()}}

    def restore(self, state):
        """Take up what `state()` gave."""
        numbers = {name: state[name] for name in self.SAVED} | state['sums']
        if not all(type(value) in (int, float) for value in numbers.values()) or not all(
                type(state[name]) is int and state[name] >= 0 for name in self.SAVED if name != 'best'):
            raise ValueError('its progress is not that of a training')
        for name in (*self.SAVED, 'sums'):
            setattr(self, name, state[name])
        self.restart_clock()

    def finished(self, total_steps, patience):
        """True at the last step, or after `patience` validations without a better score (0 = never)."""
        waited = self.validations - self.best_validation
        return self.step >= total_steps or (patience > 0 and waited >= patience)

    def add(self, parts):
        """Count one step with its losses {name: tensor}; they stay on the device."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.count += 1
        self.step += 1

    def refuse_non_finite(self):
        """InputError when a loss since the last validation was not finite: such weights are not kept."""
        if not all(math.isfinite(float(value)) for value in self.sums.values()):
            raise InputError(f'The loss was not finite before step {self.step}', remedy=GO_ON)

    def shown(self):
        """{name: mean since the last validation} as text, for the progress bar."""
        return {name: f'{float(value) / self.count:.4f}' for name, value in self.sums.items()}

    def take_means(self, process):
        """{name: mean} over the steps since the last call and over all processes."""
        own = {name: float(value) / self.count for name, value in self.sums.items()}
        everyone = hardware.merge([own], process)
        self.sums, self.count = {}, 0
        return {name: sum(row[name] for row in everyone) / len(everyone) for name in own}

    def note_score(self, score):
        """Count a validation; True when it is the best so far.

        A score that is not defined (NaN: a class is absent) is taken as long as no other is known.
        """
        self.validations += 1
        best = score > self.best or (math.isnan(score) and self.best == float('-inf'))
        if best:
            self.best_step, self.best_validation = self.step, self.validations
            self.best = self.best if math.isnan(score) else score
        return best

    def summary(self, monitor):
        """'best JA 0.8012 at step 500' for the terminal."""
        score = f'{self.best:.4f}' if math.isfinite(self.best) else 'undefined (a class is absent)'
        return f'best {monitor} {score} at step {self.best_step}'

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
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:   # one may arrive at once
            signal.signal(number, self._note)
        return self

    def _note(self, number, _frame):
        self.signal = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
