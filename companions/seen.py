"""What a network was trained on, by name: an evaluation refuses that, where splits were dealt anew since."""
import json

from engine import files

NAME = 'trained_on.json'   # in the run folder
WAYS = 'prepare the data as they were, or train anew; --SEEN=True scores them all the same'


def note(folder, names, **others):
    """Write the names (text) of what is trained on into a run folder. others : further lists of names"""
    files.write_text(folder / NAME, json.dumps({
        kind: sorted(set(found)) for kind, found in {'names': names, **others}.items()}, indent=1) + '\n')


def names(folder, kind='names'):
    """The names that `note` wrote, a set; None where it has not, as in runs of earlier versions."""
    found = files.read_json(folder / NAME).get(kind)
    return None if found is None else set(found)
