"""Pages from the templates in report/templates/: text is escaped, and nothing is left undefined."""
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from engine import figures

# Of classes by number, on white and on black paper; more classes begin anew. None is a contour's colour.
CLASS_COLOURS = (('#0b55a0', '#8ec2ff'), ('#a84300', '#ffb27a'), ('#6b3fa0', '#c9a6ff'),
                 ('#6b6b00', '#d6d65c'), ('#5f6368', '#b6bcc4'), ('#00656e', '#6fd3dc'),
                 ('#5d3a1a', '#d9b48f'))


def render(name, **content):
    """A page as text. name : of a template; content : what it shows."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / 'templates'), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters['kept_together'] = kept_together
    environment.filters['class_colour'] = class_colour
    environment.globals |= {'class_colours': CLASS_COLOURS, 'error': figures.ERROR, 'contours': {
        'truth': figures.TRUTH, 'found': figures.PREDICTION, 'coarse': figures.COARSE}}
    page = environment.get_template(name).render(content)
    return page.encode(errors='replace').decode()   # a file name may hold bytes that are no text


def class_colour(number):
    """The colour of a class number as the pages' style sheet knows it."""
    return f'var(--class{number % len(CLASS_COLOURS)})'


def kept_together(words):
    """Words as HTML in which a number stays with its percent sign and behind its equals sign."""
    return Markup(escape(words).replace(' %', Markup('&nbsp;%')).replace(' = ', Markup('&nbsp;=&nbsp;')))
