"""Makes a whole report from results: tables, claims, figures and the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forgetmenot import files
from forgetmenot.report import claims, context, figures, page, render, results, tables
from forgetmenot.report.spec import Claim, Column, Table


def build(
    spec: Mapping[str, Any], papers: Mapping[str, Any], out: Path, final: Path | None = None
) -> list[Path]:
    """Write the report of `spec` (the report stage's request) into `out`; returns its main files.

    `papers` are the files of reports/papers/ by their stem. `final` is where `out` will lie in the
    end, for relative links; by default `out` itself.
    """
    wanted = [
        Table(**{**values, "columns": [Column(**c) for c in values["columns"]]})
        for values in spec["tables"]
    ]
    contexts = sorted({n for table in wanted for n in table.contexts})
    found = results.load(spec["results"], spec["trains"], contexts)
    grids = []
    for table in wanted:
        grid = tables.build(table, spec["studies"], found)
        studies = list(dict.fromkeys(row.study for row in grid.rows))
        grid.notes += context.notes(table.paper, studies, spec, found)
        if table.published and table.published not in papers:
            grid.notes.append(f"reports/papers/{table.published}.yaml is missing.")
        render.write(grid, out / "tables")
        grids.append(grid)
    verdicts = claims.judge([Claim(**values) for values in spec["claims"]], found)
    claims.write(verdicts, out)
    drawn = figures.draw_all(spec["studies"], grids, found, out / "figures")
    text = page.html(spec, papers, found, grids, drawn, verdicts, final or out)
    files.write_text(out / "index.html", text)
    made = [out / "index.html", out / "claims.md"]
    return [*made, *(out / "tables" / f"{grid.table.name}.md" for grid in grids)]
