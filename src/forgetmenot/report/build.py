"""Makes a whole report from results: tables, claims, figures and the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forgetmenot import files
from forgetmenot.report import (
    claims,
    context,
    figures,
    latex,
    names,
    page,
    published,
    render,
    results,
    tables,
    verdicts,
)
from forgetmenot.report.spec import Claim, Column, Table, listed


def build(
    spec: Mapping[str, Any],
    papers: Mapping[str, Any],
    out: Path,
    final: Path | None = None,
    root: Path = Path(),
) -> None:
    """Write the report of `spec` (the report stage's request) into `out`.

    `papers` are the files of reports/papers/ by their stem. `final` is where `out` will lie in the
    end, for relative links; by default `out` itself. The folders of results start from `root`.
    """
    wanted = [
        Table(**{**values, "columns": [Column(**c) for c in values["columns"]]})
        for values in spec["tables"]
    ]
    contexts = {n for table in wanted for n in table.contexts}
    tested = [Claim(**values) for values in spec["claims"]]
    contexts |= {n for claim in tested for n in claim.contexts}
    tasks, trains = (
        {key: str(root / folder) for key, folder in spec[kind].items()}
        for kind in ("results", "trains")
    )
    found = results.load(tasks, trains, sorted(contexts))
    grids = []
    for table in wanted:
        grid = tables.build(table, spec["studies"], found)
        studies = list(dict.fromkeys(row.study for row in grid.rows))
        grid.notes += context.notes(table.paper, studies, spec, found)
        grid.anchors, missing = published.anchors(listed(table.published), papers)
        grid.notes += missing
        render.write(grid, out / "tables")
        grids.append(grid)
    stems = [grid.table.name for grid in grids]
    files.write_text(out / "tables" / "all.tex", latex.document(stems))
    known = names.of(spec)
    judged = claims.judge(tested, found, known)
    verdicts.write(judged, known, out)
    drawn = figures.draw_all(spec["studies"], grids, found, known, out / "figures")
    text = page.render(spec, papers, found, grids, drawn, judged, final or out, root)
    files.write_text(out / "index.html", text)
