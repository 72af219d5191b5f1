"""HTML of a table, by the templates that the report's page uses too."""

from functools import cache
from typing import Any

from forgetmenot.report import glossary, layout, seeds, template
from forgetmenot.report.tables import Grid, number


@cache
def environment() -> Any:
    """The jinja2 environment of all templates: everything is escaped, an unknown name fails."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.DictLoader(
            {"parts": template.PARTS, "table": template.TABLE, "page": template.PAGE}
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"number": number, "parts": layout.parts, "seeds": seeds}
    made.globals |= {"style": template.STYLE, "term_of": glossary.of}
    return made


def table(grid: Grid) -> str:
    """One table as a page of its own; its numbers link to the runs on the report's page."""
    text: str = environment().get_template("table").render(grid=grid)
    return text
