"""Where everything of one experiment lies below its root folder (the released code's layout)."""
import copy
import os
import shlex
from pathlib import Path

from dataset import classes

SPLITS = ('Training', 'Validation', 'Testing')
ADDED = 'Training_Add'   # the paper's 1320 extra classification images; optional
DRAWN = 'demo_data.json'   # dataset/make_demo_data.py leaves it with the pictures that it draws
PH2 = 'IMD*.png'           # test pictures of the roots that dataset/prepare_PH2.py makes

# A crop or mask list is named after the data it lists.
SEGMENTATION_LISTS = {split: f'{split}_seg.txt' for split in SPLITS}
CLASSIFICATION_LISTS = {'Training': 'Training_Add_cls.txt',
                        'Validation': 'Validation_crop9_cls.txt',
                        'Testing': 'Testing_crop9_cls.txt'}
CROP_FOLDERS = {'Training': 'Training_Add_resize_crop_cls',
                'Validation': 'Validation_resize_crop9_cls',
                'Testing': 'Testing_resize_crop9_cls'}
LABEL_FILES = {'Training': ('ISIC-2017_Training_Part3_GroundTruth.csv',),
               'Validation': ('ISIC-2017_Validation_Part3_GroundTruth.csv',),
               'Testing': ('ISIC-2017_Test_v2_Part3_GroundTruth.csv',
                           'ISIC-2017_Testing_Part3_GroundTruth.csv'),
               ADDED: ('ISIC-2017_Training_Add_Part3_GroundTruth.csv',)}


class Layout:
    """Paths below `root` (str or Path). Attributes are folders, methods take a split's name."""

    def __init__(self, root):
        self.root = Path(root)
        self.data = self.root / 'dataset' / 'data'
        self.lists = self.root / 'dataset' / 'ISIC'
        self.cache = self.root / 'dataset' / 'cache'
        self.coarse_masks = self.root / 'Coarse_masks'
        self.models = self.root / 'models'
        self.results = self.root / 'results'
        self.coarse_sn = 'CoarseSN'

    @property
    def drawn(self):
        """True when the pictures were drawn by dataset/make_demo_data.py."""
        return os.path.exists(self.data / DRAWN)   # Path.exists raises on overlong names

    @property
    def classes(self):
        """The ClassTable of dataset/data/classes.toml, else the paper's; InputError for a damaged one."""
        return classes.read(self.data)

    @property
    def of_paper(self):
        """True where the pictures may be ISIC-2017's: not drawn, not PH2's, with no class table of their own.

        The paper's scores of PH2 are in reproduce_tables.py alone.
        """
        tested = (self.originals('Testing') / 'Images').glob(PH2)
        return not self.drawn and not os.path.exists(self.data / classes.FILE) and not any(tested)

    def command(self, script, *options):
        """The command that a reader should type for this root: python <script> [--ROOT=...] <options>.

        script : a path without spaces, or '-m <module>'
        """
        root = () if self.root == Path('.') else (f'--ROOT={self.root}',)
        return shlex.join(['python', *script.split(' '), *root, *options])

    def originals(self, split):
        """Folder with `Images/` and `Annotation/` as downloaded; split may also be ADDED."""
        return self.data / f'ISIC-2017_{split}_Data'

    def labels(self, split):
        """The split's label csv: the first of its known names that exists, else the first name."""
        paths = [self.data / name for name in LABEL_FILES[split]]
        return next((path for path in paths if path.exists()), paths[0])

    def segmentation(self, split):
        """Folder that the paths in the split's segmentation list start from.

        Training pictures are prepared (long side limited); the others are read as downloaded.
        """
        if split == 'Training':
            return self.root / 'dataset' / 'seg_data' / 'Training_resize_seg'
        return self.originals(split)

    def crops(self, split):
        """Folder of the split's 224 px classification crops."""
        return self.root / 'dataset' / 'cls_data' / CROP_FOLDERS[split]

    def segmentation_list(self, split):
        return self.lists / SEGMENTATION_LISTS[split]

    def classification_list(self, split):
        return self.lists / CLASSIFICATION_LISTS[split]

    def coarse_for_classification(self, split):
        """Coarse masks of the crops: the 4th input channel of mask-CN in training."""
        return self.coarse_masks / f'{split}_MaskCN'

    def coarse_for_segmentation(self, split):
        """Coarse masks of whole images, original size: mask-CN's 4th channel when it draws CAMs."""
        return self.coarse_masks / f'{split}_EnhancedSN'

    def run(self, network):
        """Run folder of 'CoarseSN', 'MaskCN' or 'EnhancedSN'."""
        return self.models / (self.coarse_sn if network == 'CoarseSN' else network)

    def weights(self, network):
        """The network's best weights, a plain state dict; packed ones where only these are there."""
        path = self.run(network) / f'{network}.pth'
        packed = path.with_suffix('.safetensors')
        return packed if packed.is_file() and not path.is_file() else path

    def fold(self, number):
        """This layout with, for its coarse-SN, the one that is trained without fold `number` (from 1)."""
        other = copy.copy(self)
        other.coarse_sn = f'CoarseSN_fold{number}'
        return other
