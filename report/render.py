"""Pages from the templates in report/templates/: text is escaped, and nothing is left undefined."""
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape


def render(name, **content):
    """A page as text. name : of a template; content : what it shows."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / 'templates'), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters['kept_together'] = kept_together
    page = environment.get_template(name).render(content)
    return page.encode(errors='replace').decode()   # a file name may hold bytes that are no text


def kept_together(words):
    """Words as HTML in which a number stays with its percent sign and behind its equals sign."""
    return Markup(escape(words).replace(' %', Markup('&nbsp;%')).replace(' = ', Markup('&nbsp;=&nbsp;')))
