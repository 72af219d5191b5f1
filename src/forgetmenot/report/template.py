"""The page's templates and style. Python text, so that the code hash of the report covers it.

A light, single-column page: tables scroll sideways inside their own frame, so a phone never has to
scroll the page itself.
"""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #d5d5d5; }
h3 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p, li, dd { overflow-wrap: anywhere; max-width: 60rem; }
a { color: #005a9c; }
td a { color: inherit; text-decoration: underline dotted #8a8a8a; text-underline-offset: 3px; }
nav ul { padding-left: 1.2rem; columns: 2 18rem; }
nav li { padding: .15rem 0; }
.frame { overflow-x: auto; width: fit-content; max-width: 100%; margin: 0 0 .8rem;
  border: 1px solid #d5d5d5; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { background: #f4f5f7; font-weight: 600; white-space: normal; vertical-align: bottom;
  min-width: 4.5rem; }
th a { color: inherit; text-decoration: underline dotted #8a8a8a; text-underline-offset: 3px; }
tr.group a { text-decoration-color: #8a8a8a; }
dt { font-weight: 600; margin-top: .5rem; } dt:target { background: #fff6d6; }
dd { margin-left: 1.2rem; }
th.over { text-align: center; border-bottom: 1px solid #d5d5d5; }
tr + tr td { border-top: 1px solid #ececec; }
tr:first-child > th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; white-space: normal; min-width: 7rem; max-width: 12rem; }
tr:first-child > th:first-child { background: #f4f5f7; }
td:first-child.text { min-width: 8rem; max-width: none; }
tr.reason td:first-child { max-width: none; padding-top: 0; border-top: 0; }
tr.reason div { position: sticky; left: .6rem; max-width: min(56rem, calc(100vw - 5rem)); }
td br + .verdict { font-size: .8rem; }
td .second { text-decoration: underline; text-decoration-thickness: 2px; }
.interval { display: block; color: #555; font-size: .8rem; }
.notes { font-size: .85rem; color: #444; padding-left: 1.2rem; }
.lead { background: #f4f5f7; border-radius: 6px; padding: .6rem 1rem; }
.others { margin: .8rem 0 0 .8rem; padding-left: .8rem; border-left: 4px solid #d9a441; }
.others td:first-child, .others td { background: #fffaf0; }
figure { margin: 1.5rem 0; }
figure img { max-width: min(100%, 42rem); height: auto; display: block; }
figcaption { font-size: .85rem; color: #444; }
.claim { border: 1px solid #d5d5d5; border-radius: 6px; margin: .8rem 0; padding: .6rem .8rem; }
.claim p { margin: 0 0 .4rem; }
.claim .frame { border: 0; }
.verdict { font-weight: 600; white-space: nowrap; padding: .1rem .5rem; border-radius: 4px; }
.supported { background: #d9f0e5; } .contradicted { background: #fbdfd0; }
.undecided { background: #eceef1; } .not-run { background: #fff; border: 1px dashed #8a8a8a; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .75rem; background: #f4f5f7; padding: .6rem; margin: .3rem 0; }
tr.group td:first-child { background: #f4f5f7; font-weight: 600; max-width: none; }
tr.group span { position: sticky; left: .6rem; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem .9rem; padding: 0; list-style: none; }
.run { border-top: 1px solid #ececec; padding: .4rem 0; font-size: .85rem; }
.run:target { background: #fff6d6; }
.run ul { margin: .2rem 0; padding-left: 1.2rem; }
.dag svg { font: 12px system-ui, sans-serif; display: block; }
.dag path { fill: none; stroke: #9aa4b2; stroke-opacity: .55; }
.dag rect { fill: #f4f5f7; stroke: #8a94a3; } .dag a rect { fill: #e8f1f8; }
.dag .head { font-weight: 600; }
@media (max-width: 40rem) {
  .claim { padding: .5rem; } h1 { font-size: 1.35rem; }
  th, td { padding: .35rem .4rem; }
  tr:first-child > th:first-child, td:first-child { min-width: 6.4rem; max-width: 8rem; }
  th a { color: inherit; text-decoration: underline dotted #8a8a8a; text-underline-offset: 3px; }
tr.group a { text-decoration-color: #8a8a8a; }
dt { font-weight: 600; margin-top: .5rem; } dt:target { background: #fff6d6; }
dd { margin-left: 1.2rem; }
th.over { text-align: left; } th.over span { position: sticky; left: 8rem; }
}
"""

PARTS = """
{% macro head(title) %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
{% endmacro %}

{% macro notes(lines) %}
<ul class="notes">{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% endmacro %}

{% macro published(anchors, base) %}
{% for anchor in anchors %}
<div class="others"><p><strong>Published by others</strong> (their models, data and sizes;
not comparable with ours): {{ anchor.paper }}. {{ anchor.title }}. Source: {{ anchor.source }}.
{{ anchor.conditions }}</p>
<div class="frame"><table>
<tr>{% for name in anchor.header %}<th>{{ termed(name, base) }}</th>{% endfor %}</tr>
{% for row in anchor.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div></div>
{% endfor %}
{% endmacro %}

{% macro cell(cell, head, base) %}
{% set shown = number(cell, head) %}
{% if cell.sources %}<a href="{{ base }}#{{ cell.sources[0].anchor }}">
{%- endif %}
{%- if cell.mark == "best" %}<strong>{{ shown[0] }}</strong>
{%- elif cell.mark %}<span class="second">{{ shown[0] }}</span>
{%- else %}{{ shown[0] }}{% endif %}
{% if cell.sources %}</a>{% endif %}
{% if shown[1] %}<span class="interval">{{ shown[1] }}</span>{% endif %}
{% endmacro %}

{% macro termed(text, base) %}
{% set term = term_of(text) %}
{% if term %}<a href="{{ base }}#{{ term.anchor }}" title="{{ term.text }}">{{ text }}</a>
{%- else %}{{ text }}{% endif %}
{% endmacro %}

{% macro headings(part, lead, base) %}
{% set deep = part | selectattr("values") | list %}
<thead><tr>{% for name in lead %}<th{% if deep %} rowspan="2"{% endif %}>
{{- termed(name, base) }}</th>{% endfor %}
{% for heading in part %}
{% if heading.values %}<th class="over" colspan="{{ heading.values | length }}">
{%- else %}<th{% if deep %} rowspan="2"{% endif %}>{% endif %}
<span>{{ termed(heading.text, base) }}</span></th>
{% endfor %}</tr>
{% if deep %}<tr>{% for heading in deep %}{% for value in heading.values %}<th>{{ value }}</th>
{%- endfor %}{% endfor %}</tr>{% endif %}
</thead>
{% endmacro %}

{% macro group(row, width, base) %}
<tr class="group"><td colspan="{{ width }}"><span>{{ termed(row.group, base) }}</span></td></tr>
{% endmacro %}

{% macro single_seeds(grid, base) %}
{% set shown = seeds.columns(grid) %}
{% if shown %}
<details class="seeds"><summary>Single seeds</summary>
{% for part in parts(grid, shown) %}{% set indices = part | sum("columns", []) %}
<div class="frame"><table>
{{ headings(part, ["model", "seed"], base) }}
{% for row in grid.rows %}{% set cells = grid.cells[loop.index0] %}
{% if row.group and loop.changed(row.group) %}
{{ group(row, indices | length + 2, base) }}{% endif %}
{% for seed in seeds.numbers(cells) %}
<tr><td>{{ row.label }}</td><td>{{ seed }}</td>
{% for index in indices %}<td>{{ seeds.shown(cells[index], grid.heads[index], seed) }}</td>
{% endfor %}</tr>
{% endfor %}
{% endfor %}
</table></div>
{% endfor %}
</details>
{% endif %}
{% endmacro %}

{% macro table(grid, base) %}
<p>{{ grid.table.caption }}</p>
{% for part in parts(grid) if grid.rows %}{% set indices = part | sum("columns", []) %}
<div class="frame"><table>
{{ headings(part, ["model"], base) }}
{% for row in grid.rows %}{% set cells = grid.cells[loop.index0] %}
{% if row.group and loop.changed(row.group) %}
{{ group(row, indices | length + 1, base) }}{% endif %}
<tr><td>{{ row.label }}</td>
{% for index in indices %}<td>{{ cell(cells[index], grid.heads[index], base) }}</td>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{{ single_seeds(grid, base) }}
{{ notes(grid.notes) }}
{{ published(grid.anchors, base) }}
{% endmacro %}
"""

TABLE = """
{%- import "parts" as parts with context -%}
{{ parts.head(grid.table.title) }}
<body>
<h1>{{ grid.table.title }}</h1>
{{ parts.table(grid, "../index.html") }}
</body>
</html>
"""

PAGE = """
{%- import "parts" as parts with context -%}
{{ parts.head("forgetmenot: " ~ spec.scale) }}
<body>
<h1>Forgetting in language models with a fixed-size memory: scale <em>{{ spec.scale }}</em></h1>
<p class="lead">{{ spec.description }}</p>
<p>Every number links to the runs it comes from, and those to their manifests. Intervals are 95 %.
Headings of columns lead to the <a href="#glossary">glossary</a>.</p>

<nav><h2>Contents</h2><ul>
<li><a href="#claims">Claims</a></li>
{% for grid in grids %}<li><a href="#table-{{ grid.table.name }}">{{ grid.table.title }}</a></li>
{% endfor %}
<li><a href="#figures">Figures</a></li>
<li><a href="#training">What was trained on what</a></li>
<li><a href="#limits">What these results do not show</a></li>
<li><a href="#glossary">Glossary</a></li>
<li><a href="#papers">What the papers say</a></li>
<li><a href="#dag">Graph of the jobs</a></li>
<li><a href="#runs">Runs and manifests</a></li>
</ul></nav>

{% macro chip(verdict) %}
<span class="verdict {{ verdict | replace(' ', '-') }}">{{ verdict }}</span>
{%- endmacro %}
<h2 id="claims">Claims</h2>
<ul class="chips">{% for v, lines in verdicts %}
<li><a href="#claim-{{ v.claim.id }}">{{ claim_name(v.claim) }}</a> {{ chip(v.verdict) }}</li>
{% endfor %}</ul>
{% for v, lines in verdicts %}
<section class="claim" id="claim-{{ v.claim.id }}">
<p><strong>{{ claim_name(v.claim) }}</strong>
{{ chip(v.verdict) }} {{ v.claim.text }}</p>
<div class="frame"><table>
<tr>{% for name in ("comparison", "effect", "p (Holm)", "samples x seeds") %}
<th>{{ parts.termed(name, "") }}</th>{% endfor %}</tr>
{% for line in lines %}
<tr><td class="text">{{ line.sides }}
{% if lines | length > 1 %}<br>{{ chip(line.verdict) }}{% endif %}</td>
<td>{{ line.effect }}
{% for text in (line.interval, line.by_seed) if text %}
<span class="interval">{{ text }}</span>{% endfor %}</td>
<td>{{ line.p }}</td><td>{{ line.size }}</td></tr>
{% if line.reason %}<tr class="reason"><td colspan="4"><div>{{ line.reason }}</div></td></tr>
{% endif %}
{% endfor %}
</table></div>
<details><summary>Source and runs</summary><p class="notes">{{ claim_source(v.claim, known) }}</p>
<ul class="notes">{% for part in v.parts if part.sources %}<li>{{ known.variant(part.better) }}
{%- if part.worse != part.better %}, {{ known.variant(part.worse) }}{% endif %}:
{% for source in part.sources %}
<a href="#{{ source.anchor }}">{{ known.variant(source.variant) }}, {{ task_name(source.task) }},
seed {{ source.seed }}</a>
{%- if not loop.last %}; {% endif %}{% endfor %}</li>{% endfor %}</ul></details>
</section>
{% else %}<p>This scale tests no claim.</p>{% endfor %}
{% if verdicts %}<p class="notes">{{ claim_method }}</p>{% endif %}

<h2 id="tables">Tables</h2>
{% for grid in grids %}
<h3 id="table-{{ grid.table.name }}">{{ grid.table.title }}</h3>
{{ parts.table(grid, "") }}
<p class="notes">As files: {% for end in ("md", "csv", "tex", "html") %}
 <a href="tables/{{ grid.table.name }}.{{ end }}">{{ end }}</a>{{ "" if loop.last else "," }}
{% endfor %}</p>
{% endfor %}

<h2 id="figures">Figures</h2>
{% for figure in figures %}
<figure id="figure-{{ figure.name }}"><h3>{{ figure.title }}</h3>
<img alt="{{ figure.title }}" src="{{ data_uri(figure.png) }}">
<figcaption>{{ figure.caption }} As files: <a href="figures/{{ figure.name }}.png">png</a>
<a href="figures/{{ figure.name }}.svg">svg</a></figcaption></figure>
{% else %}<p>No result to draw.</p>{% endfor %}

<h2 id="training">What was trained on what</h2>
{% for study in training %}
<h3>{{ study.title }}</h3>
<ul>{% for line in study.lines %}<li>{{ line }}</li>{% endfor %}</ul>
<ul>{% for variant in study.variants %}
<li><strong>{{ variant.label or variant.name }}</strong>: {{ variant.description }}</li>
{% endfor %}</ul>
{% endfor %}
<p>Parameters, steps, tokens and time of each model: see the training tables.
Software and machines: {{ environment | join("; ") }}.</p>

<h2 id="limits">What these results do not show</h2>
<ul>{% for line in limits %}<li>{{ line }}</li>{% endfor %}</ul>
{% if missing %}<h3>Missing results</h3>
<ul>{% for line in missing %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}

<h2 id="glossary">Glossary</h2>
<dl>{% for term in terms %}
<dt id="{{ term.anchor }}">{{ term.name }}</dt><dd>{{ term.text }}</dd>
{% endfor %}</dl>

<h2 id="papers">What the papers say</h2>
{% for name in spec.papers if name in papers %}{% set paper = papers[name] %}
<h3>{{ paper.title }} (arXiv {{ paper.arxiv }})</h3>
<p>{{ paper.status }}</p>
<ul>{% for claim in paper.claims %}<li>{{ claim.text }} (source: {{ claim.source }})</li>
{% endfor %}</ul>
{% endfor %}

<h2 id="dag">Graph of the jobs</h2>
<p>From the manifests; seeds are drawn as one. Models and tasks lead to their runs.</p>
<div class="frame dag">{{ dag | safe }}</div>

<h2 id="runs">Runs and manifests</h2>
{% for run in runs %}
<div class="run" id="{{ run.anchor }}"><strong>{{ run.name }}</strong>
({{ run.study }}; folder <code>{{ run.folder }}</code>)
<ul>{% for seed in run.seeds %}
<li>seed {{ seed.seed }}: <a href="{{ seed.manifest }}">manifest</a>, {{ seed.seconds }} s,
finished {{ seed.finished }}, {{ seed.device }}, commit {{ seed.commit }}, code {{ seed.code }}</li>
{% endfor %}</ul>
<details><summary>What was asked, and of which inputs</summary>
<p class="notes">{{ run.inputs | join("; ") or "no inputs" }}</p>
<pre>{{ run.asked }}</pre></details>
</div>
{% endfor %}
</body>
</html>
"""
