"""A script's upper-case constants are its settings; this module documents and overrides them.

    cfg = settings.resolve(globals())      # in main(); then cfg.BATCH_SIZE, cfg.ROOT, ...

Order of precedence, weakest first: the constants at the file's top, the script's table in
`recipes/<RECIPE>.toml`, the command line (`--NAME=value` or `--NAME value`). Nothing is executed:
values are literals of the constant's own type.
"""
import ast
import difflib
import io
import sys
import tokenize
import tomllib
from pathlib import Path
from types import SimpleNamespace

from engine.errors import InputError

RECIPES = Path(__file__).resolve().parent.parent / 'recipes'
LIMIT = 2**63   # of whole numbers: 64 bits with a sign
KINDS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'text'}


class Settings(SimpleNamespace):
    """The resolved constants as attributes; `vars(cfg)` is the dict that is stored with a run."""


def resolve(namespace, argv=None, choices=None, positive=(), least=None, check=None):
    """Resolve a script's constants against its recipe and the command line; print what changed.

    namespace : dict                  the script's globals()
    argv : list of str                overrides; default: the command line
    choices : dict name -> tuple      values that a constant may take
    positive : iterable of names      numbers that must be greater than zero
    least : dict name -> number       numbers that must not be smaller
    check : function of the Settings  -> list of further faults
    Returns Settings. Raises InputError that names every bad override; `--help` prints and exits.
    """
    argv = sys.argv[1:] if argv is None else argv
    script = Path(namespace['__file__'])
    values = read_values(script)
    if {'-h', '--help'} & set(argv):
        print(_help(namespace['__doc__'], read_constants(script), values))
        sys.exit(0)

    command_line, faults = _read_arguments(argv, values)
    changed = _override(values, script, command_line, 'command line', faults)
    wrong = {name: f'must be one of {", ".join(map(repr, allowed))}'
             for name, allowed in (choices or {}).items() if values[name] not in allowed}
    wrong |= {name: 'must be greater than zero' for name in positive if not values[name] > 0}
    wrong |= {name: f'must be at least {number}' for name, number in (least or {}).items()
              if values[name] < number}
    faults += [(f'{changed[name]}: ' if name in changed else '') + f'{name}={values[name]!r}: {reason}'
               for name, reason in wrong.items()]
    faults += check(Settings(**values)) if check else []
    _refuse(script, faults)
    for name, source in changed.items():
        print(f'{name} = {values[name]!r}   # {source}')
    return Settings(**values)


def resolved(script, overrides):
    """The settings that `python <script> --NAME=value ...` would run with, as a dict; nothing is run.

    script : path; overrides : dict of literals or text, RECIPE among them
    Raises InputError that names every override that the script would refuse for its name or type.
    """
    values, faults = read_values(script), []
    _override(values, Path(script), overrides, 'overrides', faults)
    _refuse(Path(script), faults)
    return values


def _refuse(script, faults):
    """Raise InputError where there are faults of a script's settings."""
    if faults:
        folder = script.resolve().parent.name
        shown = f'{folder}/{script.name}' if folder in ('dataset', 'models') else script.name
        raise InputError(f'{script.name}: settings that cannot be used', faults,
                         f'python {shown} --help lists every constant')


def _override(values, script, overrides, source, faults):
    """Apply the recipe's table and then `overrides` to `values`; faults are added to the list.

    Returns {name: where its value is from}.
    """
    recipe, changed = overrides.get('RECIPE', values.get('RECIPE', 'default')), {}
    for where, layer in ((f'recipes/{recipe}.toml', _read_recipe(recipe, script.stem, faults)),
                         (source, overrides)):
        for name, given in layer.items():
            try:
                values[name] = convert(name, given, values)
                changed[name] = where
            except (ValueError, RecursionError) as error:
                faults.append(f'{where}: {error}')
    return changed


def read_constants(script):
    """{NAME: (group, comment)} of a script's upper-case constants, in the file's order.

    A group is the nearest banner comment above (`# --- title`); the comment is the one behind
    the value. Both are read from the source, so that the file top is the only documentation.
    """
    source = Path(script).read_text(encoding='utf-8')
    comments = {token.start[0]: token.string.lstrip('# ').strip()
                for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT}
    banners = {line: text.strip('- ') for line, text in comments.items() if text.startswith('---')}
    constants = {}
    for name, node in _assignments(source):
        group = next((banners[line] for line in sorted(banners, reverse=True) if line < node.lineno), '')
        constants[name] = (group, comments.get(node.end_lineno, ''))
    return constants


def read_values(script):
    """{NAME: value} of a script's upper-case constants, without running it; they are literals."""
    source = Path(script).read_text(encoding='utf-8')
    return {name: ast.literal_eval(node.value) for name, node in _assignments(source)}


def _assignments(source):
    """(name, node) of every upper-case constant before the first function of a script's source."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            break
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            name = getattr(node.targets[0], 'id', '')
            if name.isupper():
                yield name, node


def _help(documentation, constants, values):
    """The script's docstring, then each constant as it is written, --NAME=default, and its comment."""
    lines, groups = [(documentation or '').strip()], dict.fromkeys(group for group, _ in constants.values())
    for title in groups:
        lines += ['', f'{title}:']
        lines += [f'{f"  --{name}={_literal(values[name])}":<42}  {comment}'
                  for name, (group, comment) in constants.items() if group == title]
    return '\n'.join(lines)


def _read_arguments(argv, values):
    """Command-line words, --NAME=value or --NAME value -> ({NAME: text}, faults)."""
    overrides, faults, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix('--').partition('=')
        if name in values and not equals and words and not words[0].startswith('--'):
            equals, text = '=', words.pop(0)
        if not (word.startswith('--') and name and equals):
            near = _nearest(name, values)
            hint = f' (--{near}=value?)' if near else ''
            faults.append(f'{word}: overrides are written --NAME=value{hint}')
        elif name in overrides:
            faults.append(f'--{name} is given twice')
        else:
            overrides[name] = text
    return overrides, faults


def _nearest(name, values):
    """The setting that a wrong name may stand for, '' where none is like it."""
    return next(iter(difflib.get_close_matches(name.upper(), values, n=1, cutoff=0.4)), '')


def convert(name, given, values):
    """`given` (command-line text or a TOML value) as the type that constant `name` has."""
    if name not in values:
        near = _nearest(name, values)
        raise ValueError(f'{name} is not a setting' + (f'; did you mean {near}?' if near else ''))
    default, value = values[name], given
    try:
        if isinstance(given, str) and not isinstance(default, str):
            value = ast.literal_eval(given.strip())
        return _cast(value, default)
    except (ValueError, TypeError, LookupError, SyntaxError, MemoryError, RecursionError):
        kind = KINDS.get(type(default), f'a list such as {_literal(default)}')
        raise ValueError(f'{name}={given!s:.80}: must be {kind}') from None


def _cast(value, default):
    """A literal as the default's type; only int -> float and list -> tuple convert, else a ValueError."""
    kind = type(default)
    if kind is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        like = default[0] if default else items[0]
        if items and (type(like) is not float or len(items) == len(default)):   # pairs of numbers
            return tuple(_cast(item, like) for item in items)
    elif kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif type(value) is kind and not (kind is int and abs(value) >= LIMIT or kind is str and '\0' in value):
        return value
    raise ValueError


def _read_recipe(recipe, script, faults):
    """The table of `script` in a recipe file ({} where it has none; 'default' has no file)."""
    if recipe == 'default':
        return {}
    known = sorted(path.stem for path in RECIPES.glob('*.toml'))
    if recipe not in known:
        faults.append(f'RECIPE={recipe!r}: must be one of {", ".join(["default", *known])}')
        return {}
    path = RECIPES / f'{recipe}.toml'
    try:
        table = read_toml(path).get(script, {})
        if not isinstance(table, dict):
            raise ValueError(f'{script} must be a table, [{script}]')
        return table
    except (OSError, ValueError) as error:
        faults.append(f'{path.name}: not valid TOML: {error}')
        return {}


def read_toml(path):
    """The tables of a TOML file. Raises OSError or ValueError that says what is wrong with it."""
    try:
        return tomllib.loads(path.read_text(encoding='utf-8-sig'))
    except RecursionError:
        raise ValueError('lists or tables are nested too deeply') from None


def _literal(value):
    return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
