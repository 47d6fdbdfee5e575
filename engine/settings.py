"""A script's upper-case constants are its settings; this module documents and overrides them.

    cfg = settings.resolve(globals())      # in main(); then cfg.BATCH_SIZE, cfg.ROOT, ...

Order of precedence, weakest first: the constants at the file's top, the script's table in
`recipes/<RECIPE>.toml`, the command line (`--NAME=value` or `--NAME value`). Nothing is executed:
values are literals of the constant's own type.
"""
import argparse
import ast
import contextlib
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
KINDS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'text, in UTF-8'}


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
    constants = read_constants(script)
    values = {name: namespace[name] for name in constants}
    parser = _parser(namespace['__doc__'], constants, values)
    if {'-h', '--help'} & set(argv):
        parser.print_help()
        sys.exit(0)

    command_line, faults = _read_arguments(parser, argv, values)
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


def options(script, values):
    """The words of a command line, --NAME=value, that give a script (path) the settings of an earlier run.

    values : dict, perhaps from a json; ROOT and RESUME are left out, and what the script would not take
    """
    recipe, words = values.get('RECIPE', 'default'), []
    try:
        plain = resolved(script, {'RECIPE': recipe})
    except InputError:   # a recipe that is gone
        recipe, plain = 'default', read_values(script)
    if recipe != 'default':
        words.append(f'--RECIPE={recipe}')
    for name in plain.keys() & values.keys() - {'ROOT', 'RECIPE', 'RESUME'}:
        with contextlib.suppress(ValueError):
            if (value := convert(name, values[name], plain)) != plain[name]:
                words.append(f'--{name}={literal(value)}')
    return sorted(words)


def _refuse(script, faults):
    """Raise InputError where there are faults of a script's settings."""
    if faults:
        folder = script.resolve().parent
        shown = f'{folder.name}/{script.name}' if folder.name in ('dataset', 'models') else script.name
        if folder.parent.name == 'companions':
            shown = f'-m companions.{folder.name}.{script.stem}'
        raise InputError(f'{script.name}: settings that cannot be used', faults,
                         f'python {shown} --help lists every constant')


def _override(values, script, overrides, source, faults):
    """Apply the recipe's table and then `overrides` to `values`; faults are added to the list.

    Returns {name: where its value is from}.
    """
    recipe, changed = overrides.get('RECIPE', values.get('RECIPE', 'default')), {}
    for where, layer in ((f'recipes/{recipe}.toml', _read_recipe(recipe, script, faults)),
                         (source, overrides)):
        for name, given in layer.items():
            try:
                values[name] = convert(name, given, values)
                changed[name] = where
            except ValueError as error:
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


class _Help(argparse.RawDescriptionHelpFormatter):
    """The script's docstring, then each constant as it is written, --NAME=default, and its comment."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=44, width=200)   # a comment stays on one line

    def _format_action_invocation(self, action):
        return f'{action.option_strings[0]}={action.metavar}'


def _parser(documentation, constants, values):
    """Parser of a script's settings, all of them text still; a word without a value gives None."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=(documentation or '').strip(),
                                     formatter_class=_Help, add_help=False, allow_abbrev=False)
    groups = {group: parser.add_argument_group(group) for group, _ in constants.values()}
    for name, (group, comment) in constants.items():
        groups[group].add_argument(f'--{name}', action='append', nargs='?', default=argparse.SUPPRESS,
                                   metavar=literal(values[name]), help=comment.replace('%', '%%'))
    return parser


def _read_arguments(parser, argv, values):
    """Command-line words, --NAME=value or --NAME value -> ({NAME: text}, faults)."""
    known, rest = parser.parse_known_args(argv)
    overrides, faults = {}, []
    for name, texts in vars(known).items():
        if len(texts) > 1:
            faults.append(f'--{name} is given twice')
        elif texts[0] is None:
            rest.append(f'--{name}')
        else:
            overrides[name] = texts[0]
    for word in rest:
        name, equals, text = word.removeprefix('--').partition('=')
        if word.startswith('--') and name and equals:
            overrides[name] = text   # of an unknown name, which `convert` refuses
        else:
            near = _nearest(name, values)
            hint = f' (--{near}=value?)' if near else ''
            faults.append(f'{word}: overrides are written --NAME=value{hint}')
    return overrides, faults


def _nearest(name, values):
    """The setting that a wrong name may stand for, '' where none is like it."""
    return next(iter(difflib.get_close_matches(name.upper(), values, n=1, cutoff=0.4)), '')


def convert(name, given, values):
    """`given` (command-line text or a TOML value) as the type that constant `name` has."""
    if name not in values:
        near = _nearest(name, values)
        raise ValueError(f'{name} is not a setting' + (f'; did you mean {near}?' if near else ''))
    default = values[name]
    if isinstance(given, str) and not isinstance(default, str):
        try:
            given = ast.literal_eval(given.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f'{name}={given}: must be {_kind(default)}') from None
    return _cast(name, given, default)


def _said(value):
    """A value as text; of what is too large or too deep to be written out, its type."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f'<{type(value).__name__}>'


def _cast(name, given, default):
    """Check a literal against the default's type; only int -> float and list -> tuple convert."""
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if isinstance(default, bool) and isinstance(given, bool):
        return given
    if isinstance(default, tuple):
        items = given if isinstance(given, (tuple, list)) else (given,)
        like = default[0] if default else items[0] if items else 0
        if not items or (type(like) is float and len(items) != len(default)):   # pairs of numbers
            raise ValueError(f'{name}={_said(given)}: must be {_kind(default)}')
        return tuple(_cast(name, item, like) for item in items)
    if type(default) is int and type(given) is int and abs(given) < LIMIT:
        return given
    if type(default) is float and number and abs(given) <= sys.float_info.max:
        return float(given)
    if type(default) is str and type(given) is str and '\0' not in given and _is_utf8(given):
        return given
    raise ValueError(f'{name}={_said(given)}: must be {_kind(default)}')


def _is_utf8(text):
    """Whether a text (of the command line, which may hold any bytes) can be written: TensorBoard needs it."""
    return text.encode(errors='replace').decode() == text


def _kind(default):
    return f'a list such as {literal(default)}' if isinstance(default, tuple) else KINDS[type(default)]


def _read_recipe(recipe, script, faults):
    """The table of `script` (path) in a recipe file ({} where it has none; 'default' has no file).

    It is called as the script, or, where scripts of two companions are called alike, [companion.script].
    """
    if recipe == 'default':
        return {}
    known = sorted(path.stem for path in RECIPES.glob('*.toml'))
    if recipe not in known:
        faults.append(f'RECIPE={recipe!r}: must be one of {", ".join(["default", *known])}')
        return {}
    path = RECIPES / f'{recipe}.toml'
    try:
        content, folder = read_toml(path), script.resolve().parent
    except (OSError, ValueError) as error:
        faults.append(f'{path.name}: not valid TOML: {error}')
        return {}
    if folder.parent.name == 'companions' and script.stem in content.get(folder.name, {}):
        content = content[folder.name]
    table = content.get(script.stem, {})
    if not isinstance(table, dict):
        faults.append(f'{path.name}: {script.stem} must be a table, [{script.stem}]')
        return {}
    return table


def read_toml(path):
    """The tables of a TOML file. Raises OSError or ValueError that says what is wrong with it."""
    try:
        return tomllib.loads(path.read_text(encoding='utf-8-sig'))
    except RecursionError:
        raise ValueError('lists or tables are nested too deeply') from None


def literal(value):
    """A value as it is typed on a command line."""
    return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
