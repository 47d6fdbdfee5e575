"""The class table of an experiment: which classes there are, their order, which of them are scored.

    <root>/dataset/data/classes.toml      without it, the paper's three classes

    classes = ['nv', 'mel', 'bcc']        # two or more; the order is that of mask-CN's outputs
    scored = ['mel', 'bcc']               # each against the rest, the validation score is their mean AUC
    rare = ['mel', 'bcc']                 # 15 crops of a training picture, 9 of the others
    words = { mel = ['melanoma'] }        # what label files may say instead; case does not count

scored is all of them where the file does not say, rare none.
"""
import json
from dataclasses import dataclass, field

from engine import files, settings
from engine.errors import InputError

FILE = 'classes.toml'
MOST = 100       # classes; what is drawn and printed of each is for a few dozen
LONGEST = 40     # characters of a name
# Other columns of the tables, and entries of the json files, in which each class has one of its own.
RESERVED = {
    '1-crop', '9-crop', 'accuracy', 'balanced accuracy', 'bottom', 'ci95', 'confusion', 'data',
    'drawn_pictures', 'file', 'height', 'image', 'image_id', 'left', 'lesion_percent', 'lesion_px',
    'mask_confidence', 'mean', 'mean auc', 'n', 'name', 'network', 'note', 'predicted', 'recipe', 'right',
    'settings', 'split', 'started from', 'top', 'weights', 'width'}


@dataclass(frozen=True)
class ClassTable:
    """names : of the classes, index = class number of mask-CN; scored, rare : some of the names
    words : {name: other words that label files have for it}
    """
    names: tuple
    scored: tuple
    rare: tuple = ()
    words: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.names)

    @property
    def tasks(self):
        """{name: class number} of the scored classes, each against the rest."""
        return {name: self.names.index(name) for name in self.scored}

    def number_of(self, word):
        """Class number that a word of a label file stands for, None where it is no class."""
        return self._numbers().get(plain(word))

    def is_rare(self, number):
        """Whether training cuts 15 crops of a picture of this class number."""
        return self.names[number] in self.rare

    def _numbers(self):
        return {plain(word): number for number, name in enumerate(self.names)
                for word in (name, *self.words.get(name, ()))}

    def record(self):
        """What a run keeps of the table, as json holds it."""
        return {'classes': list(self.names), 'scored': list(self.scored)}


PAPER = ClassTable(('nevus', 'melanoma', 'keratosis'), ('melanoma', 'keratosis'), ('melanoma', 'keratosis'),
                   {'nevus': ('nv',), 'melanoma': ('mel',), 'keratosis': ('seborrheic keratosis',)})


def plain(word):
    """A word as it is compared: case, underscores and spaces around do not count."""
    return ' '.join(str(word).replace('_', ' ').split()).casefold()


def read(folder):
    """The ClassTable of a data folder (Path): that of its classes.toml, else the paper's.

    Raises InputError with every fault of the file.
    """
    path = folder / FILE
    try:
        content = settings.read_toml(path)
    except (FileNotFoundError, NotADirectoryError):
        return PAPER
    except (OSError, ValueError) as error:
        raise _unusable([f'{path}: {error}']) from None
    if faults := faults_of(content):
        raise _unusable([f'{path}: {fault}' for fault in faults])
    return _made(content)


def of_record(record, where):
    """The ClassTable that a run recorded; without a record, the paper's. where : file, for the InputError"""
    if record is None:
        return PAPER
    faults = faults_of(record) if isinstance(record, dict) else ['is no table']
    if faults:
        raise InputError('A run folder is damaged', [f'{where}: classes: {fault}' for fault in faults],
                         'restore the file, or train again')
    return _made(record)


def write(folder, table):
    """Write a ClassTable as the classes.toml of a data folder, where it differs from what is there."""
    parts = {'classes': table.names, 'scored': table.scored, 'rare': table.rare}
    lines = [f'{name} = {json.dumps(list(names), ensure_ascii=False)}' for name, names in parts.items()]
    if table.words:
        lines += ['[words]', *(f'{json.dumps(name)} = {json.dumps(list(words), ensure_ascii=False)}'
                               for name, words in table.words.items())]
    files.write_changed(folder / FILE, '\n'.join(lines) + '\n')


def faults_of(content):
    """What is wrong with a table as toml or json holds it: a list of lines."""
    odd = sorted(set(content) - {'classes', 'scored', 'rare', 'words'})
    faults = [f'{name} is not known; there are classes, scored, rare and words' for name in odd]
    names, words = content.get('classes'), content.get('words', {})
    if not _are_texts(names) or not 2 <= len(names) <= MOST:
        return [*faults, f'classes must be a list of 2 to {MOST} names']
    faults += [f'{name!r}: {fault}' for name in names if (fault := _fault_of_name(name))]
    for part in ('scored', 'rare'):
        listed = content.get(part, [])
        if not _are_texts(listed):
            faults.append(f'{part} must be a list of names')
        else:
            faults += [f'{part}: {name!r} is not among the classes' for name in listed if name not in names]
            faults += [f'{part}: names a class twice'] if len(set(listed)) < len(listed) else []
    if content.get('scored') == []:
        faults.append('scored: names no class')
    if not isinstance(words, dict) or not all(map(_are_texts, words.values())):
        return [*faults, "words must be a table such as { mel = ['melanoma'] }"]
    faults += [f'words: {name!r} is not among the classes' for name in words if name not in names]
    said = [plain(word) for name in names for word in (name, *words.get(name, ()))]
    faults += [f'{word!r} stands for two classes' for word in dict.fromkeys(said) if said.count(word) > 1]
    return faults


def _are_texts(value):
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _fault_of_name(name):
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > LONGEST:
        return f'must be text of 1 to {LONGEST} characters, without spaces around'
    if ',' in name or name.startswith('#'):
        return 'must hold no comma and not begin with #'
    return 'is what another column or entry of the results is called' if name.casefold() in RESERVED else ''


def _made(content):
    names = tuple(content['classes'])
    return ClassTable(names, tuple(content.get('scored', names)), tuple(content.get('rare', ())),
                      {name: tuple(words) for name, words in content.get('words', {}).items()})


def _unusable(faults):
    return InputError('A class table cannot be used', faults,
                      f'README, "Your own data", shows what {FILE} holds; without it, the classes are '
                      f'{", ".join(PAPER.names)}')
