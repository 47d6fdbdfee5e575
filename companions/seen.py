"""What a network was trained on, by name: an evaluation refuses that, where splits were dealt anew since."""
import json

from engine import files

NAME = 'trained_on.json'   # in the run folder
WAYS = 'prepare the data as they were, or train anew; --SEEN=True scores them all the same'


def note(folder, names):
    """Write the names (text) of what is trained on into a run folder."""
    files.write_text(folder / NAME, json.dumps({'names': sorted(set(names))}, indent=1) + '\n')


def names(folder):
    """The names that `note` wrote, a set; None where it has not, as in runs of earlier versions."""
    found = files.read_json(folder / NAME).get('names')
    return None if found is None else set(found)
