"""The one training loop: supervised trainings and GANs, stopped anywhere and resumed to the last bit."""
import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from engine import checkpoints, hardware
from engine.cli import HANG_UP, Interrupted, ignores_hang_up, is_hang_up
from engine.errors import InputError

SECONDS_BETWEEN_SAVES = 60   # of last.pth, beside best scores and the end: a GPU validates every few seconds
STEPS_BETWEEN_MEANS = 10   # how often a GPU is asked for its losses, and processes whether to stop
GO_ON = ('lower LEARNING_RATE with --RESUME=False, or look at the pictures; last.pth, where there is one, '
         'holds the last good state')
GO_ANEW = 'start anew with --RESUME=False'
ONE_VALUE = 'Expected more than 1 value per channel'   # of PyTorch, from a batch norm


@dataclass
class Task:
    """What a script brings to `fit`. A reader of the script sees its losses and its optimisers there.

    networks : {name: nn.Module}; all go into last.pth, those that Run names are kept as <name>.pth
    optimizers : {name: optimiser}, each with its own rates; `adam` makes one
    stream(first, last) : iterable of the batches of steps first .. last - 1, {name: tensor (B, ...)}
    losses(models, batch) : a generator of (name of an optimiser, its loss, {part: scalar}), once a step for
        supervised training, D then G for a GAN. Each loss is followed by its optimiser's step before the
        generator goes on: code behind a `yield` sees the new weights, code behind the last one ends the
        step (clamp a weight there). models : the networks by name, perhaps wrapped or compiled;
        batch : on the device
    validate() : {name: float}, `monitor` first; called in every process. Raises FloatingPointError when an
        output is not finite. panel(path) draws some pictures
    rate(step) : factor on the optimisers' own learning rates, 1 to keep them
    noted(step, scores) : called after each validation, in the main process and before anything is saved: a
        run that is killed then repeats the step and calls it again
    monitor : score that selects the weights to keep; None keeps the last ones
    chance : the score of a network that has learned nothing; None where there is no such number
    score_start : validate before the first step, and keep what the training starts from where nothing
        later is better
    """
    networks: dict
    optimizers: dict
    stream: Callable
    losses: Callable
    validate: Callable
    panel: Callable
    rate: Callable
    monitor: str | None = None
    chance: float | None = None
    smaller_is_better: bool = False
    score_start: bool = False
    noted: Callable | None = None


def poly(step, total, power=0.9):
    """The factor (1 - step / total) ** power on learning rates, never negative (section 7: a negative base
    would make it complex)."""
    return max(0.0, 1 - step / total) ** power


def adam(network, rate, device, betas=(0.9, 0.999), weight_decay=0.0):
    """Adam over all parameters of a network, in one fused kernel on devices that have it."""
    return torch.optim.Adam(network.parameters(), lr=rate, betas=betas, weight_decay=weight_decay,
                            fused=device.type in ('cpu', 'cuda'))


def fit(task, cfg, run, process, total_steps, validate_every):
    """Train to total_steps, validating every validate_every steps; resume where the run stopped.

    cfg : AMP, COMPILE, PATIENCE, RESUME, SEED; FREEZE_BN and SYNC_BN where networks have batch norms
    Writes kept weights, last.pth, metrics.jsonl and figures into run.folder. Raises Interrupted after
    saving when Ctrl-C, SIGTERM or a hang-up arrives, InputError on a loss or an output that is not finite.
    """
    session = Session(task, cfg, run, process, total_steps)
    progress = session.progress
    if progress.finished(total_steps, cfg.PATIENCE):
        print(f'{run.folder}: already trained, {progress.summary(task)}; '
              f'nothing to do (--RESUME=False starts anew)')
        session.finish(draw=not run.was_finished)   # else it was killed between its last step and its end
        return
    run.go_on()
    print(f'training on {process.world} x {process.device}, {session.precision}, '
          f'steps {progress.step} to {total_steps}')
    stream = task.stream(progress.step, total_steps)
    with Stopping() as stopping, _saving_on_hang_up(session), tqdm(
            total=total_steps, initial=progress.step, unit='step', disable=not process.main) as bar:
        if task.score_start and progress.validations == 0:
            session.validate()
        session.train_mode()
        for batch in stream:
            session.step(batch)
            bar.update()
            if progress.step % STEPS_BETWEEN_MEANS == 0:
                means = {name: f'{mean:.4f}' for name, mean in progress.means().items()}
                bar.set_postfix(means, refresh=False)
            if progress.step % validate_every == 0 or progress.step == total_steps:
                session.validate()
                if progress.finished(total_steps, cfg.PATIENCE):
                    break
                session.train_mode()
            if _asked_to_stop(stopping, progress.step, process):
                session.save()
                raise Interrupted(stopping.signal or signal.SIGTERM)
    session.finish(draw=True)
    print(f'{run.folder}: {progress.summary(task)}')


@contextlib.contextmanager
def _saving_on_hang_up(session):
    """Save when a step or score can no longer be said because nobody takes the output any more."""
    try:
        yield
    except OSError as error:
        if is_hang_up(error):
            session.save()
        raise


class Session:
    """The moving parts of one call of `fit`, and what is done with them: steps, validations, saves."""

    def __init__(self, task, cfg, run, process, total_steps):
        self.task, self.cfg, self.run, self.process = task, cfg, run, process
        self.total_steps = total_steps
        if process.world > 1 and len(task.optimizers) > 1:   # averaged gradients know of one loss a step
            raise InputError('Several optimisers train in one process', remedy='start without torchrun')
        self.precision = hardware.choose_precision(cfg.AMP, process.device)
        for network in task.networks.values():
            network.to(process.device, memory_format=torch.channels_last)
        # Before last.pth is read: its optimisers hold the rates of the step at which it was saved.
        self.rates = {name: [group['lr'] for group in optimizer.param_groups]
                      for name, optimizer in task.optimizers.items()}
        self.scaler = _scaler(self.precision, process.device)
        self.progress = Progress(task.smaller_is_better)
        state = run.begin(cfg.RESUME)
        if state is not None:
            self._take_up(state)
            self._mend_weights()
        self.models = {name: _distribute(network, process, getattr(cfg, 'SYNC_BN', True), cfg.COMPILE)
                       for name, network in task.networks.items()}
        self._saved = -math.inf
        self._fits = process.device.type != 'cpu' or cfg.COMPILE != 'off'   # a step fits into the memory

    def _named(self, what, optimizer):
        """What a number of an optimiser is called in the log: the bare word where it is the only one."""
        return what if len(self.task.optimizers) == 1 else f'{what} {optimizer}'

    def _take_up(self, state):
        """Go on from last.pth. Raises InputError when it is of another network, or damaged."""
        networks, optimizers = self.task.networks, self.task.optimizers
        try:
            if 'model' in state:   # of a version that knew one network and one optimiser
                state = state | {'networks': dict.fromkeys(networks, state['model']),
                                 'optimizers': dict.fromkeys(optimizers, state['optimizer'])}
            if (state['networks'].keys(), state['optimizers'].keys()) != (networks.keys(), optimizers.keys()):
                raise ValueError('it is of other networks')
            for name, network in networks.items():
                checkpoints.load_parameters(network, state['networks'][name])
            for name, optimizer in optimizers.items():
                _load_optimizer(optimizer, state['optimizers'][name])
            if state['scaler'] and self.precision == 'fp16':
                self.scaler.load_state_dict(state['scaler'])
            self.progress.restore(state['progress'])
            self.run.take_up_rows(self.progress.step, self.progress.validations)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError('A checkpoint cannot be used', [f'{self.run.last}: {error}'], GO_ANEW) from None

    def _mend_weights(self):
        """Write the best weights where last.pth is of their step; InputError where earlier ones are lost."""
        progress, run = self.progress, self.run
        if not (self.process.main and progress.validations):
            return
        if progress.best_step == progress.step:
            if not (run.was_finished and run.holds_weights()):
                self._keep()   # the run may have been killed after last.pth and before them
        elif self.task.monitor and not run.holds_weights():
            raise InputError('The best weights are lost', [
                f'{path}: is missing or damaged; it was of step {progress.best_step}, last.pth is of step '
                f'{progress.step}' for path in run.kept.values()],
                f'bring a copy back; or train anew: remove {run.folder}, then run the same command again')

    def step(self, batch):
        """One step: for each loss in turn its gradient, and its optimiser's step."""
        task, progress, device = self.task, self.progress, self.process.device
        for name, optimizer in task.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group['lr'] = rate * task.rate(progress.step)
        # Whatever a step draws (dropout, noise) is a function of its number: a resumed run draws the same.
        hardware.seed_step(self.cfg.SEED, progress.step, self.process.rank)
        on_gpu = device.type == 'cuda'   # from pinned memory
        batch = {name: tensor.to(device, non_blocking=on_gpu) for name, tensor in batch.items()}
        losses, found = task.losses(self.models, batch), {}
        while True:
            # Entered anew for each loss: until it is left, autocast remembers the weights in low precision,
            # and the optimiser changes them.
            with hardware.autocast(self.precision, device), self._fitting():
                name, loss, parts = next(losses, (None, None, None))
            if name is None:
                break
            if device.type == 'cpu' or progress.step % STEPS_BETWEEN_MEANS == 0:
                _refuse_non_finite(loss, batch, progress.step)   # asking a GPU every time would stall it
            # A generator's loss runs through the discriminator and leaves gradients there; so each optimiser
            # begins by dropping what lies in its own networks.
            task.optimizers[name].zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(task.optimizers[name])
            self.scaler.update(None if self.precision == 'fp16' else 1.0)
            found |= {self._named('loss', name): loss, **parts}
        progress.add(found)
        self._fits = True

    @contextlib.contextmanager
    def _fitting(self):
        """Say of the first step what it lacks: memory, or a second value for a batch norm."""
        free = math.inf if self._fits else hardware.free_memory()
        too_large = InputError(f'A step needs more than the {free / 1e9:.1f} GB of memory that are free',
                               remedy='lower BATCH_SIZE or INPUT_SIZE')
        try:
            with contextlib.nullcontext() if self._fits else hardware.keep_below(free, too_large):
                yield
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise InputError('A batch of one picture is too small for the batch norms', remedy='raise '
                             'BATCH_SIZE to two for each process, or use --FREEZE_BN=True') from None

    def validate(self):
        """Score the networks; save the state to go on from, when the score is the best so far, or the last
        save lies back, or this is the end; keep the best weights."""
        progress, task, run = self.progress, self.task, self.run
        self.refuse_non_finite()
        for network in task.networks.values():
            network.eval()
            hardware.share_buffers(network, self.process)
        speed = progress.speed()
        rates = {self._named('lr', name): optimizer.param_groups[0]['lr'] if progress.step else 0.0
                 for name, optimizer in task.optimizers.items()}
        losses, scores = progress.take_means(self.process), self._scores()
        row = {'step': progress.step, **rates, **losses, **scores}
        best = progress.note_score(math.nan if task.monitor is None else row[task.monitor])
        run.log(row, speed, scores)
        if task.noted and self.process.main:
            task.noted(progress.step, scores)
        waited = time.monotonic() - self._saved
        due = waited >= SECONDS_BETWEEN_SAVES or progress.finished(self.total_steps, self.cfg.PATIENCE)
        if due or (best and task.monitor):
            self.save()
            if self.process.main and best:   # after last.pth, from which they can be made
                self._keep()
        if self.process.main:   # after the saves: a terminal or a pipe may be gone
            shown = '  '.join(f'{name} {value:.4g}' for name, value in row.items() if name != 'step')
            mark = '  *' if best and task.monitor else ''
            tqdm.write(f'step {progress.step}: {shown}  {speed:.2f} steps/s{mark}')
        if progress.step < self.total_steps:
            run.draw(task)
        hardware.barrier(self.process)
        progress.restart_clock()

    def _scores(self):
        try:
            return self.task.validate()
        except FloatingPointError as error:
            raise InputError(f'{error} after step {self.progress.step}', remedy=GO_ON) from None

    def save(self):
        """Write last.pth; never from weights that a loss without a finite value has reached."""
        self.refuse_non_finite()
        if self.process.main:
            states = {kind: {name: part.state_dict() for name, part in parts.items()} for kind, parts in (
                ('networks', self.task.networks), ('optimizers', self.task.optimizers))}
            checkpoints.save({'progress': self.progress.state(), **states,
                              'scaler': self.scaler.state_dict() if self.precision == 'fp16' else {},
                              'run': self.run.defined_by()}, self.run.last)
        self._saved = time.monotonic()

    def _keep(self):
        for name, path in self.run.kept.items():
            state = self.task.networks[name].state_dict()
            checkpoints.save({part: tensor.cpu() for part, tensor in state.items()}, path)

    def finish(self, draw):
        """Mark the run as finished; draw : the last curves and panel. Both want the kept weights."""
        task, run, progress = self.task, self.run, self.progress
        if self.process.main:
            for name, path in run.kept.items():
                state = checkpoints.load_state(path, GO_ANEW)
                checkpoints.apply(checkpoints.load_parameters, task.networks[name], state, path, GO_ANEW)
            if draw:
                run.draw(task, final=True)
        run.finish(progress.step, progress.best, progress.best_step)

    def refuse_non_finite(self):
        """InputError when a loss or a weight is not finite: nothing is saved of such networks."""
        self.progress.refuse_non_finite()
        # Running statistics, too: they overflow while the loss is still finite.
        tensors = [tensor for network in self.task.networks.values()
                   for tensor in network.state_dict().values()]
        if not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()):
            raise InputError(f'A weight is not finite after step {self.progress.step}', remedy=GO_ON)

    def train_mode(self):
        """Training mode; with FREEZE_BN the batch norms keep using their running statistics."""
        for model in self.models.values():
            model.train()
            if getattr(self.cfg, 'FREEZE_BN', False):
                for layer in model.modules():
                    if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                        layer.eval()


def _load_optimizer(optimizer, state):
    """Take up an optimiser's state. Raises ValueError where Adam's moments do not fit the parameters: its
    fused form does not look itself and would write beyond their ends."""
    for group in state['param_groups']:   # the run may come from another device
        group['fused'] = optimizer.defaults.get('fused')
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items() if isinstance(optimizer, torch.optim.Adam) else ():
        shapes = {'step': torch.Size(), 'exp_avg': parameter.shape, 'exp_avg_sq': parameter.shape}
        if {name: tensor.shape for name, tensor in moments.items()} != shapes:
            raise ValueError("Adam's moments do not fit the network")


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
        raise InputError(f'The loss of step {step} is {loss.item()}', [
            f'{name.removesuffix("index")}pictures (by line of the list, from 0): {batch[name].tolist()}'
            for name in batch if name.endswith('index')], GO_ON)


def _distribute(network, process, sync_bn, mode):
    """Wrap for several processes: gradients are averaged; on GPUs batch norm sees the global batch.

    mode : of torch.compile, or 'off'. The task keeps the network itself, to validate and to save.
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

    def __init__(self, smaller_is_better=False):
        self.step = self.best_step = self.validations = self.best_validation = self.count = 0
        self.smaller_is_better, self.sums = smaller_is_better, {}
        self.best = self.worst = math.inf if smaller_is_better else -math.inf
        self.restart_clock()

    def state(self):
        """Everything as numbers and dicts, for last.pth."""
        return {**{name: getattr(self, name) for name in self.SAVED},
                'sums': {name: float(value) for name, value in self.sums.items()}}

    def restore(self, state):
        """Take up what `state()` gave."""
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

    def means(self):
        """{name: mean} over this process's steps since the last validation."""
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def take_means(self, process):
        """{name: mean} over the steps since the last call and over all processes."""
        own = self.means()
        everyone = hardware.merge([own], process)
        self.sums, self.count = {}, 0
        return {name: sum(row[name] for row in everyone) / len(everyone) for name in own}

    def note_score(self, score):
        """Count a validation; True when it is the best so far.

        A score that is not defined (NaN: a class is absent) is taken as long as no other is known.
        """
        self.validations += 1
        better = score < self.best if self.smaller_is_better else score > self.best
        best = better or (math.isnan(score) and self.best == self.worst)
        if best:
            self.best_step, self.best_validation = self.step, self.validations
            self.best = self.best if math.isnan(score) else score
        return best

    def summary(self, task):
        """'best JA 0.8012 at step 500' for the terminal."""
        if task.monitor is None:
            return f'trained for {self.step} steps'
        score = f'{self.best:.4f}' if math.isfinite(self.best) else 'undefined (a class is absent)'
        learned = '' if task.chance is None or self.best > task.chance or not math.isfinite(self.best) else (
            ', no better than chance: NOTHING WAS LEARNED (lower LEARNING_RATE or train longer)')
        return f'best {task.monitor} {score} at step {self.best_step}{learned}'

    def restart_clock(self):
        self._since, self._from = time.monotonic(), self.step

    def speed(self):
        """Steps a second since the last validation."""
        return (self.step - self._from) / max(time.monotonic() - self._since, 1e-9)


class Stopping:
    """While active, Ctrl-C, SIGTERM and hang-ups set `signal` instead of ending the process at once.

    A second signal of the kind ends it in the usual way.
    """

    def __enter__(self):
        self.signal = None
        numbers = {signal.SIGINT, signal.SIGTERM} | (set() if ignores_hang_up() else {HANG_UP})
        self._before = {number: signal.getsignal(number) for number in numbers}
        for number in self._before:   # one may arrive at once
            signal.signal(number, self._note)
        return self

    def _note(self, number, _frame):
        self.signal = number
        signal.signal(number, self._before[number])

    def __exit__(self, *_error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
