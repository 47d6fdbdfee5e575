"""Folders of pictures that a script makes: done is what their record says, nothing else may be in them."""
import contextlib

from dataset import extraction, isic
from engine import files, images
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
            self.record.note(name, '')   # it is ours and not done, should a kill come now
            write(self.record.folder / name, pixels)
            self.record.note(name, source)


@contextlib.contextmanager
def making(folder, settings, layout, above=False):
    """The Maker of an output folder while this process alone writes there; at the end pictures that it made
    before and that were not wanted go.

    settings : dict; what was made under others goes at once
    above : the folder may be in the record of the one above it, see `recorded`
    Raises InputError naming all pictures of another origin, which would be trained on, or where another
    process writes.
    """
    there = [path for path in sorted(folder.rglob('[!.]*')) if path.suffix.lower() in images.EXTENSIONS]
    before, prefix = recorded(folder, layout) if above else (Record(folder / isic.RECORD, None), '')
    made = {name.removeprefix(prefix) for name in before.made if name.startswith(prefix)}
    others = [f'{path}: is not of this script' for path in there
              if path.relative_to(folder).as_posix() not in made]
    if others:
        raise InputError('A folder holds pictures of another origin', others,
                         'move them elsewhere, or choose another --OUT')
    with extraction.at_work(folder, settings, layout) as record:
        for place in {path.parent for path in folder.rglob('.*-*')}:
            files.remove_abandoned(place, age=0)
        maker = Maker(record)
        _remove(folder, made - record.made.keys())
        yield maker
        unwanted = record.made.keys() - maker.wanted
        _remove(folder, unwanted)
        for name in unwanted:
            del record.made[name]


def _remove(folder, names):
    for name in names:
        (folder / name).unlink(missing_ok=True)


def recorded(folder, layout):
    """The Record of a folder of generate_masks, and what the names of its files begin with there.

    Earlier versions kept one record for the masks of all methods, in the folder above.
    """
    contents = Contents(layout.cache)
    if (folder / isic.RECORD).is_file():
        return Record(folder / isic.RECORD, contents), ''
    return Record(folder.parent / isic.RECORD, contents), f'{folder.name}/'
