"""Folders of pictures that a script makes: done is what their record says, nothing else stays in them."""
import contextlib

from dataset import extraction, isic
from engine import images
from engine.contents import Contents, Record
from engine.errors import InputError


class Maker:
    """Writes the files of a folder that are not up to date. record : engine.contents.Record of it"""

    def __init__(self, record):
        self.record, self.wanted = record, set()

    def needs(self, name, source):
        """Whether a file, a path relative to the folder, has to be made from what has this fingerprint."""
        self.wanted.add(name)
        return not self.record.holds(name, source)

    def put(self, name, source, write, pixels):
        """Make a file by write(path, pixels) where it is needed."""
        if self.needs(name, source):
            write(self.record.folder / name, pixels)
            self.record.note(name, source)


@contextlib.contextmanager
def making(folder, settings, layout, above=False):
    """The Maker of an output folder while this process alone writes there; at the end pictures that were not
    wanted go.

    settings : dict; what was made under others is redone
    above : the folder may be in the record of the one above it, see `recorded`
    Raises InputError for a folder with pictures of another origin, or where another process writes.
    """
    there = [path for path in sorted(folder.rglob('*')) if path.suffix.lower() in images.EXTENSIONS]
    if there and not any((place / isic.RECORD).is_file() for place in (folder, folder.parent)[:1 + above]):
        raise InputError('A folder holds pictures of another origin', there[:5], 'choose another --OUT')
    with extraction.at_work(folder, settings, layout) as record:
        maker = Maker(record)
        yield maker
        for path in folder.rglob('*'):
            if (path.suffix.lower() in images.EXTENSIONS
                    and path.relative_to(folder).as_posix() not in maker.wanted):
                path.unlink()
        for name in record.made.keys() - maker.wanted:
            del record.made[name]


def recorded(folder, layout):
    """The Record of a folder of generate_masks, and what the names of its files begin with there.

    Earlier versions kept one record for the masks of all methods, in the folder above.
    """
    contents = Contents(layout.cache)
    if (folder / isic.RECORD).is_file():
        return Record(folder / isic.RECORD, contents), ''
    return Record(folder.parent / isic.RECORD, contents), f'{folder.name}/'
