"""Works of the networks: losses, maps, training steps, inference, evaluation."""
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks import machine, plain, works_data
from benchmarks.works_data import SIDE, Work, draw, quiet
from companions.label_transfer import data as transfer_data
from companions.label_transfer import toys as transfer_toys
from companions.label_transfer import train_LabelTransfer
from companions.mask2lesion import networks as mask2lesion
from companions.mask2lesion import pairs
from companions.mask2lesion.train_Mask2Lesion import gan_task
from companions.weak_labels import lesions, make_demo_lesions, predictor, shape_scores
from companions.weak_labels import networks as weak_labels
from companions.weak_labels.train_WeakSN import weak_task
from dataset import crops, extraction, isic, splits
from dataset.layout import Layout
from engine import hardware, images, run_folder, scoring, trainer
from mbdcnn import evaluation
from mbdcnn.inference import Classifier, Segmenter
from net import loss
from net.cam import class_activation_map
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_en
from train_CoarseSN import coarse_task
from train_MaskCN import mask_task

BATCH = 16
SCALES = (224, 256, 288)
ALONE = {'rank': 0, 'world': 1}
SETTINGS = {'RECIPE': 'bench', 'AMP': 'auto', 'LEARNING_RATE': 1e-4, 'RESUME': False, 'PATIENCE': 0,
            'BATCH_SIZE': BATCH, 'NUM_WORKERS': -1, 'PICTURES_ON': 'auto', 'COMPILE': 'off',
            'FREEZE_BN': False, 'SYNC_BN': True, 'SEED': 0, 'INPUT_SIZE': SIDE, 'INPUT_SCALING': 'unit',
            'ROTATION': 10.0, 'SHEAR': 0.1, 'SHIFT': (0.0, 0.1), 'ZOOM': (0.9, 1.1), 'FLIPS': True,
            'CENTRE_CROP': (0.5, 1.0), 'CENTRE_CROP_PROBABILITY': 0.5, 'AFFINE_FILTER': 'bilinear',
            'RANK_WEIGHT': 0.05, 'HARD_PIXELS': 30, 'MARGIN': 0.3, 'DICE_CLASSES': 'both',
            'RANK_PADDED': False, 'INITIAL_WEIGHTS': '', 'STEPS': 10**5}


def probabilities(device):
    """A batch of lesion probabilities that need gradients, and masks: (B, 224, 224) float32."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing='ij')
    masks = torch.stack([(x**2 + y**2 < radius).float() for radius in torch.linspace(0.1, 0.6, BATCH)])
    noise = torch.randn(BATCH, SIDE, SIDE) + 2 * masks - 1
    return noise.sigmoid().to(device).requires_grad_(), masks.to(device)


class Pairs(Work):
    """The 900 pairs of hard pixels alone, forward and backward; ours by broadcasting."""

    title, unit = 'rank loss, all pairs of 30 + 30 hard pixels, forward and backward', 'batch of 16'
    asked = '200'

    def hard(self):
        found = plain.hard_pixels(*probabilities(self.device))
        return [value.detach().requires_grad_() for value in found]

    def plain(self):
        background, lesion = self.hard()
        return lambda: plain.pair_loss(background, lesion).backward()

    def ours(self):
        background, lesion = self.hard()
        return lambda: loss.mean_over_pairs(background, 1 - lesion, plain.MARGIN).mean().backward()

    def floor(self):
        """Two lists read, two gradients written."""
        return 'memory', 4 * BATCH * 2 * 2 * plain.HARD_PIXELS


class RankLoss(Work):
    """From probabilities and masks to the gradient, the search for the hard pixels included."""

    title, unit, asked = 'rank loss, search for the hard pixels included', 'batch of 16', '200'

    def plain(self):
        p, y = probabilities(self.device)
        return lambda: plain.pair_loss(*plain.hard_pixels(p, y)).backward()

    def ours(self):
        p, y = probabilities(self.device)
        return lambda: loss.rank_loss(p, y).backward()

    def floor(self):
        """Probabilities and masks read for each of the two lists, one gradient written."""
        return 'memory', 4 * BATCH * SIDE**2 * 5


class Cam(Work):
    """Class activation maps of mask-CN's 14 px features."""

    title, unit, asked = 'class activation maps', 'batch of 16', '10'

    def inputs(self):
        torch.manual_seed(0)
        return (torch.rand(BATCH, 2048, 14, 14, device=self.device), torch.randn(3, 2048, device=self.device),
                torch.randn(BATCH, 3, device=self.device))

    def plain(self):
        features, weight, logits = self.inputs()
        return lambda: plain.class_activation_maps(features, weight, logits)

    def ours(self):
        features, weight, logits = self.inputs()
        features = features.contiguous(memory_format=torch.channels_last)   # as mask-CN gives them
        return lambda: class_activation_map(features, weight, logits.argmax(1))

    def floor(self):
        return 'memory', 4 * BATCH * 2048 * 14**2


class CoarseStep(Work):
    """One optimisation step of coarse-SN, the batch at hand."""

    title, unit, asked, units = 'coarse-SN, training step, 224 px, batch 16', 'image', '1.8', BATCH
    trained = 'CoarseSN'

    def pictures(self):
        """Drawn training pictures and masks of 448 px as the cache holds them."""
        pairs = [draw((448, 448), number, number % 3) for number in range(2 * self.units)]
        return [np.stack(part) for part in zip(*pairs, strict=True)]

    def plain(self):
        trained, (photos, masks) = self.plain_training(), self.pictures()
        size = SIDE, SIDE
        batch = torch.from_numpy(np.stack([images.resize_rgb(photo, size) for photo in photos[:self.units]]))
        truth = torch.from_numpy(np.stack([images.resize_mask(mask, size) for mask in masks[:self.units]]))
        batch = (batch.permute(0, 3, 1, 2).float() / 255).contiguous().to(self.device)
        truth = (truth > 0).float().to(self.device)
        return lambda: trained.step(batch, truth)

    def plain_training(self):
        torch.manual_seed(0)
        return plain.Training(plain.with_usual_layers(deeplabv3plus()).to(self.device), 1e-4, 10**5)

    def ours(self):
        session = self.session()
        batch = next(iter(session.task.stream(0, 1)))
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        return lambda: session.step(batch)

    def session(self):
        """A training session of the real task, with drawn pictures."""
        cfg = SimpleNamespace(**SETTINGS | {'BATCH_SIZE': self.units})
        process = hardware.Process(device=self.device, **ALONE)
        hardware.seed_step(0, 0, 0)
        task = self.task(cfg, process)
        run = run_folder.Run(self.folder / 'run', self.trained, cfg, {}, 'random weights', process)
        session = trainer.Session(task, cfg, run, process, cfg.STEPS)
        session.train_mode()
        return session

    def task(self, cfg, process):
        photos, masks = self.pictures()
        data = splits.Segmentation(photos, masks, None, list(map(str, range(len(photos)))), 'drawn')
        return coarse_task(cfg, process, deeplabv3plus(), data, data, cfg.STEPS)

    def floor(self):
        """Forward, and twice as much backward."""
        return self.precision, 3 * machine.flops(deeplabv3plus().eval(), torch.zeros(1, 3, SIDE, SIDE))


class CoarseStepOf8(CoarseStep):
    """The same with half of the batch, as the released code was measured."""

    title, asked, units = 'coarse-SN, training step, 224 px, batch 8', '2.5', 8


class MaskStep(CoarseStep):
    """One optimisation step of mask-CN, the batch at hand."""

    title, asked, trained = 'mask-CN, training step, 224 px, batch 16', '', 'MaskCN'

    def plain(self):
        torch.manual_seed(0)
        network = plain.with_usual_layers(Xception_dilation()).to(self.device)
        trained = plain.MaskTraining(network, 1e-4, 10**5)
        photos, masks = (torch.from_numpy(part[:self.units, ::2, ::2]) for part in self.pictures())
        planes = torch.cat([photos.permute(0, 3, 1, 2) / 127.5 - 1, masks[:, None].float()], 1)
        planes, labels = planes.to(self.device), torch.arange(self.units, device=self.device) % 3
        return lambda: trained.step(planes, labels)

    def task(self, cfg, process):
        photos, masks = (part[:, ::2, ::2] for part in self.pictures())
        numbers = np.arange(len(photos))
        data = splits.Classification(photos, masks, numbers % 3, numbers, list(map(str, numbers)), 'drawn')
        cfg.INPUT_CHANNEL, cfg.INPUT_SCALING = 4, 'symmetric'
        return mask_task(cfg, process, Xception_dilation(), data, data)

    def floor(self):
        """Forward, and twice as much backward."""
        return self.precision, 3 * machine.flops(Xception_dilation().eval(), torch.zeros(1, 4, SIDE, SIDE))


class Epoch(CoarseStep):
    """Steps as an epoch has them: plain reads and warps the files, ours takes pictures that were decoded once
    (which is not timed) from the cache, or from a GPU's memory."""

    title, asked, loads = 'coarse-SN, training with its data, 1600-px originals', '', True

    def prepare(self):
        self.source = works_data.Samples(self.folder, self.device)
        self.source.draw()

    def plain(self):
        """Beside a GPU the plain samples come from eight loader processes, else from the training's own."""
        trained, workers = self.plain_training(), 8 if self.device.type == 'cuda' else 0
        samples = plain.TrainingSamples(self.source.pairs, BATCH * works_data.STEPS)
        batches = iter(DataLoader(samples, BATCH, num_workers=workers, pin_memory=workers > 0))
        return lambda: trained.step(*(tensor.to(self.device) for tensor in next(batches)))

    def pictures(self):
        return self.source.cached()

    def ours(self):
        session = self.session()
        batches = iter(session.task.stream(0, works_data.STEPS))
        return lambda: session.step(next(batches))


class Mask2LesionStep(Work):
    """One step of Mask2Lesion's discriminator and of its generator, the pair at hand."""

    title, unit, asked = 'Mask2Lesion, step of both networks, 256 px, width 64', 'pair', '1.6'
    size = 256

    def networks(self):
        torch.manual_seed(0)
        return mask2lesion.initialise(mask2lesion.Generator()), mask2lesion.initialise(
            mask2lesion.Discriminator())

    def pair(self):
        photo, mask = draw((self.size, self.size), 0)
        return photo, 255 * mask

    def plain(self):
        trained = plain.GanTraining(*(network.to(self.device) for network in self.networks()))
        photo, mask = self.pair()
        real = (torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous()
        given = (torch.from_numpy(mask)[None, None].float() / 127.5 - 1).repeat(1, 3, 1, 1)
        given, real = given.to(self.device), real.to(self.device)
        return lambda: trained.step(given, real)

    def ours(self):
        cfg = SimpleNamespace(**SETTINGS | {
            'BATCH_SIZE': 1, 'LEARNING_RATE': 2e-4, 'INPUT_SIZE': self.size, 'LOAD_SIZE': self.size,
            'MIRROR': True, 'MASK_FILTER': 'bicubic', 'GAN_LOSS': 'vanilla', 'L1_WEIGHT': 100.0, 'EPOCH': 200,
            'DECAY_EPOCHS': 100, 'VALIDATION_IMAGES': 1})
        process = hardware.Process(device=self.device, **ALONE)
        photo, mask = self.pair()
        data = pairs.Pairs(photo[None], mask[None], ['drawn'], 'drawn')
        task = gan_task(cfg, process, *self.networks(), data, data, cfg.STEPS)
        run = run_folder.Run(self.folder / 'run', 'Mask2Lesion', cfg, {}, 'random weights', process,
                             kept=('G', 'D'))
        session = trainer.Session(task, cfg, run, process, cfg.STEPS)
        session.train_mode()
        batch = {name: tensor.to(self.device) for name, tensor in next(iter(task.stream(0, 1))).items()}
        return lambda: session.step(batch)

    def floor(self):
        """The generator forward and twice backward; the discriminator so on two pictures, and forward and
        backward to its input on a third."""
        one, other = (machine.flops(network.eval(), torch.zeros(1, channels, self.size, self.size))
                      for network, channels in zip(self.networks(), (3, 6), strict=True))
        return self.precision, 3 * one + 8 * other


class WeakStep(Work):
    """One optimisation step of A1+L, the batch at hand."""

    title, unit, asked, units = 'weak labels, A1+L, step, ResNet-18, 128 px, batch 10', 'image', '', 10
    method, clusters = 'a1l', 45

    def network(self):
        torch.manual_seed(0)
        return weak_labels.build(self.method, 'resnet18', self.clusters)

    def cfg(self):
        return SimpleNamespace(**SETTINGS | {
            'METHOD': self.method, 'ENCODER': 'resnet18', 'BATCH_SIZE': self.units, 'LEARNING_RATE': 1e-3,
            'INPUT_SIZE': (128, 128), 'BGR': False, 'MASK_WEIGHT': 50.0, 'CLASS_WEIGHT': 1.0,
            'SELECT': 'mask loss'})

    def data(self):
        """Drawn lesions, whose masks stand for their ellipses, and cluster numbers."""
        pairs = [make_demo_lesions.draw(np.random.default_rng(number), 120) for number in range(self.units)]
        photos, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        names = list(map(str, range(self.units)))
        sizes = [(120, 120)] * self.units
        data = lesions.Lesions(names, photos, masks, masks, np.zeros((self.units, 5)), sizes, 'drawn')
        return data, np.arange(self.units) % self.clusters

    def batch(self):
        """The padded input (B, 3, 128, 128) float32 and targets, as plain takes them."""
        data, labels = self.data()
        patches = torch.from_numpy(data.images).permute(0, 3, 1, 2)
        x = weak_labels.to_input(patches, (128, 128)).contiguous()
        target = weak_labels.padded(torch.from_numpy(data.ellipses), (128, 128)).float()
        return [part.to(self.device) for part in (x, target, torch.from_numpy(labels))]

    def plain(self):
        trained, batch = plain.WeakTraining(self.network().to(self.device)), self.batch()
        return lambda: trained.step(*batch)

    def ours(self):
        cfg, process = self.cfg(), hardware.Process(device=self.device, **ALONE)
        data, labels = self.data()
        task = weak_task(cfg, process, self.network(), data, data, (labels, labels))
        run = run_folder.Run(self.folder / 'run', 'WeakSN_a1l', cfg, {}, 'random weights', process)
        session = trainer.Session(task, cfg, run, process, cfg.STEPS)
        session.train_mode()
        batch = {name: tensor.to(self.device) for name, tensor in next(iter(task.stream(0, 1))).items()}
        return lambda: session.step(batch)

    def floor(self):
        return self.precision, 3 * machine.flops(self.network().eval(), torch.zeros(1, 3, 128, 128))


class WeakEvaluation(WeakStep):
    """Masks of lesions and their scores; plain one by one, ours in a batch."""

    title, units = 'weak labels, A1+L, evaluation, ResNet-18, 128 px', 8

    def plain(self):
        network, (x, *_), (data, _) = self.network().eval().to(self.device), self.batch(), self.data()

        @torch.no_grad()
        def call():
            for number, truth in enumerate(data.masks > 0):
                logits = network(x[number:number + 1])[0][0, 0].cpu().numpy()
                shape_scores.score(weak_labels.cropped(logits, 120) >= 0, truth)
        return call

    def ours(self):
        data, _ = self.data()
        network = self.network().to(self.device, memory_format=torch.channels_last)
        trained = predictor.Predictor(network, self.cfg(), self.precision).folded()
        numbers = list(range(self.units))
        return lambda: shape_scores.table(trained.logits(data.images, numbers) >= 0, data.masks > 0)

    def floor(self):
        return self.precision, machine.flops(self.network().eval(), torch.zeros(1, 3, 128, 128))


class TransferStep(Work):
    """One step of label transfer's four discriminators and of its two generators, the pictures at hand."""

    title, unit, asked = 'label transfer, step of all six networks, 128 px, width 54', 'pair', ''
    size, settings = 128, {'WIDTH': 54, 'D_WIDTH': 54, 'BLOCKS': 4, 'D_LAYERS': (7, 5)}

    def cfg(self):
        return SimpleNamespace(**SETTINGS | {
            'BATCH_SIZE': 1, 'INPUT_SIZE': self.size, 'LOAD_SIZE': self.size, 'FLIPS': False, 'CONTRAST': 0.0,
            'WEIGHT_DECAY': 2e-5, 'ADV_WEIGHT': 1.0, 'CYCLE_WEIGHT': 10.0, 'IDENTITY_WEIGHT': 10.0,
            'RECON_WEIGHT': 10.0, 'CAM_WEIGHT': 1000.0, 'JUDGE_COMPOSITES': False,
            'ATTENTION': 'plain', 'KIND': 'skin', 'SELECT_BY': 'best-threshold'} | self.settings)

    def pictures(self):
        """A lesion, and skin: (size, size, 3) uint8 each."""
        return [transfer_toys.draw(np.random.default_rng(0), 'skin', diseased, self.size)[0]
                for diseased in (True, False)]

    def plain(self):
        trained = plain.TransferTraining({name: network.to(self.device) for name, network in
                                          train_LabelTransfer.build(self.cfg()).items()})
        a, b = ((torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1).contiguous().to(
            self.device) for picture in self.pictures())
        return lambda: trained.step(a, b)

    def ours(self):
        cfg, process = self.cfg(), hardware.Process(device=self.device, **ALONE)
        a, b = (transfer_data.Set(picture[None], None, ['drawn'], 'drawn') for picture in self.pictures())
        task = train_LabelTransfer.transfer_task(cfg, process, train_LabelTransfer.build(cfg), a, b, None, b,
                                                 None)
        run = run_folder.Run(self.folder / 'run', 'LabelTransfer', cfg, {}, 'random weights', process,
                             kept=train_LabelTransfer.GENERATORS)
        session = trainer.Session(task, cfg, run, process, cfg.STEPS)
        session.train_mode()
        batch = {name: tensor.to(self.device) for name, tensor in next(iter(task.stream(0, 1))).items()}
        return lambda: session.step(batch)

    def floor(self):
        """Each generator forward and twice backward on three pictures; each discriminator so on two, and
        forward and backward to its input on two more."""
        made, picture = train_LabelTransfer.build(self.cfg()), torch.zeros(1, 3, self.size, self.size)
        counts = {name: machine.flops(network.eval(), picture) for name, network in made.items()}
        return self.precision, sum(9 * count if name in train_LabelTransfer.GENERATORS else 10 * count
                                   for name, count in counts.items())


class CoarseInference(Work):
    """Lesion logits at the network's own resolution; plain one by one, ours in batches."""

    title, unit, asked, units = 'coarse-SN, inference, 224 px', 'image', '1.9', BATCH

    def network(self):
        torch.manual_seed(0)
        return deeplabv3plus()

    def batch(self):
        torch.manual_seed(1)
        return torch.randint(0, 256, (self.units, 3, SIDE, SIDE), dtype=torch.uint8)

    @torch.no_grad()
    def plain(self):
        network, batch = self.network().eval().to(self.device), self.batch()

        @torch.no_grad()
        def call():
            for image in batch:
                network((image[None].float() / 255).contiguous().to(self.device)).softmax(1).cpu()
        return call

    def ours(self):
        segmenter = Segmenter(self.placed(self.network()), 'unit', self.precision)
        batch = self.batch()
        return lambda: segmenter(batch.to(self.device)).cpu()

    def floor(self):
        return self.precision, machine.flops(self.network().eval(), torch.zeros(1, 3, SIDE, SIDE))


class MaskInference(CoarseInference):
    """Class probabilities; ours also with the map of the class, which plain leaves out."""

    title = 'mask-CN, inference, 224 px'

    def network(self):
        torch.manual_seed(0)
        return Xception_dilation()

    def masks(self):
        return torch.ones(self.units, SIDE, SIDE, dtype=torch.uint8)

    def plain(self):
        network, masks = self.network().eval().to(self.device), self.masks().numpy()
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in self.batch()]

        def call():
            for picture, mask in zip(pictures, masks, strict=True):
                plain.classify(network, picture, mask, self.device)[1].softmax(1).cpu()
        return call

    def ours(self):
        classifier = Classifier(self.placed(self.network()), 'symmetric', self.precision)
        batch, masks = self.batch(), self.masks()
        return lambda: [part.cpu() for part in classifier(batch.to(self.device), masks.to(self.device))]

    def floor(self):
        return self.precision, machine.flops(self.network().eval(), torch.zeros(1, 4, SIDE, SIDE))


class Evaluation(Work):
    """Enhanced-SN with mask-CN's maps: 6 views x 3 scales, scores at full size, the mask written."""

    title, unit, asked, units = 'evaluation of one image, 6 views x 3 scales, 3000x2000 px', 'image', '3', 2

    def prepare(self):
        self.folder.mkdir(exist_ok=True)
        self.triples = [tuple(self.folder / f'{number}{end}' for end in ('.jpg', '_segmentation.png', '.png'))
                        for number in range(self.units)]
        for number, (image, truth, coarse) in enumerate(self.triples):
            if not coarse.exists():
                picture, mask = draw((3000, 2000), number)
                works_data.write_jpg(image, picture)
                images.write_mask(truth, mask)
                images.write_mask(coarse, mask)

    def networks(self):
        torch.manual_seed(0)
        return deeplabv3plus_en(), Xception_dilation()

    def plain(self):
        enhanced, mask_cn = (network.eval().to(self.device) for network in self.networks())

        def call():
            for image, truth_path, coarse in self.triples:
                found = plain.segment_at_full_size(enhanced, mask_cn, image, coarse, SCALES, self.device)
                truth = np.array(Image.open(truth_path)) > 0
                plain.scores(found, truth)
                Image.fromarray(found.astype(np.uint8) * 255).save(self.folder / 'plain.png')
        return call

    def ours(self):
        enhanced, mask_cn = map(self.placed, self.networks())
        classifier = Classifier(mask_cn, 'symmetric', self.precision)
        segmenter = Segmenter(enhanced, 'unit', self.precision, classifier)
        cfg = SimpleNamespace(BATCH_SIZE=4, TTA=True)
        pictures, truths, coarse = zip(*self.triples, strict=True)
        target = self.folder / 'masks'
        target.mkdir(exist_ok=True)

        def call():
            with quiet():
                found = evaluation.predict_to_disk(segmenter, pictures, coarse, SCALES, cfg, target)
                scoring.score_arrays(found, truths)
        return call

    def floor(self):
        enhanced, mask_cn = (network.eval() for network in self.networks())
        total = 0
        for side in SCALES:
            cam = torch.zeros(1, 1, side // 16, side // 16)
            total += machine.flops(enhanced, torch.zeros(1, 3, side, side), cam)
            total += machine.flops(mask_cn, torch.zeros(1, 4, side, side))
        return self.precision, 6 * total


class Validation(Work):
    """Mask-CN's validation: 9 crops of each image and their coarse masks.

    Plain reads the files at each validation, as the released code does; ours decodes them once a training,
    which is not timed.
    """

    title, unit, asked, units = 'classification validation, 9 crops', 'image', '3', 24

    def prepare(self):
        self.layout = Layout(self.folder)
        names = [f'ISIC_{number:07}' for number in range(self.units)]
        folder = self.layout.originals('Validation') / 'Images'
        if not folder.exists():
            for number, name in enumerate(names):
                works_data.write_jpg(folder / f'{name}.jpg', draw((1024, 768), number)[0])
            works_data.write_labels(self.layout.labels('Validation'), names)
            with quiet():
                extraction.extract_crops(self.layout, 'Validation')
            lines = extraction.classification_lines(self.layout, 'Validation')
            self.layout.classification_list('Validation').parent.mkdir()
            self.layout.classification_list('Validation').write_text('\n'.join(lines) + '\n')
            mask = images.resize_mask(draw((1024, 768), 0)[1], (SIDE, SIDE))
            record = splits.coarse_record(self.layout, self.layout.coarse_for_classification('Validation'))
            for path, _ in isic.read_classification_list(self.layout, 'Validation'):
                images.write_mask(record.folder / path.name, mask)
                record.note(path.name, record.contents.of(path))
            record.finish()

    def plain(self):
        torch.manual_seed(0)
        network = Xception_dilation().eval().to(self.device)
        folder = self.layout.coarse_for_classification('Validation')
        paths = [path for path, _ in isic.read_classification_list(self.layout, 'Validation')]

        def call():
            for path in paths:
                coarse = (np.array(Image.open(folder / path.name)) > 0).astype(np.uint8)
                _, logits = plain.classify(network, Image.open(path).convert('RGB'), coarse, self.device)
                logits.softmax(1).cpu().numpy()
        return call

    def ours(self):
        torch.manual_seed(0)
        network = Xception_dilation().to(self.device, memory_format=torch.channels_last)   # as in training
        classifier = Classifier(network, 'symmetric', self.precision)
        with quiet():
            data = splits.classification(self.layout, 'Validation', SIDE)
        process = hardware.Process(device=self.device, **ALONE)
        return lambda: evaluation.crop_probabilities(classifier.folded(), data, 32, process)

    def floor(self):
        crop = machine.flops(Xception_dilation().eval(), torch.zeros(1, 4, SIDE, SIDE))
        return self.precision, crop * (1 + 2 * len(crops.SCALES_9))

