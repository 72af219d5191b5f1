"""The page's template and style. Kept as Python text so that the code hash of the report covers it.

A light, single-column page: tables scroll sideways inside their own frame, so a phone never has to
scroll the page itself.
"""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #d5d5d5; }
h3 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p, li, dd { overflow-wrap: anywhere; }
a { color: #005a9c; }
td a { color: inherit; text-decoration: underline dotted #8a8a8a; text-underline-offset: 3px; }
nav ul { padding-left: 1.2rem; columns: 2 18rem; }
.frame { overflow-x: auto; border: 1px solid #d5d5d5; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { background: #f4f5f7; font-weight: 600; }
tr + tr td { border-top: 1px solid #ececec; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  white-space: normal; min-width: 7rem; max-width: 12rem; }
th:first-child { background: #f4f5f7; }
td.text { text-align: left; white-space: normal; min-width: 16rem; }
.interval { display: block; color: #555; font-size: .8rem; }
.notes { font-size: .85rem; color: #444; padding-left: 1.2rem; }
.lead { background: #f4f5f7; border-radius: 6px; padding: .6rem 1rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: min(100%, 42rem); height: auto; display: block; }
figcaption { font-size: .85rem; color: #444; }
.verdict { font-weight: 600; white-space: nowrap; padding: .1rem .5rem; border-radius: 4px; }
.supported { background: #d9f0e5; } .contradicted { background: #fbdfd0; }
.undecided, .no-result { background: #eceef1; }
summary { cursor: pointer; }
tr.group td { background: #f4f5f7; font-weight: 600; }
tr:target td { background: #fff6d6; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>forgetmenot: {{ spec.scale }}</title>
<style>{{ style }}</style>
</head>
<body>
{% macro notes(lines) %}
<ul class="notes">{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% endmacro %}
{% macro published(paper) %}
<details><summary>Figures that others published: {{ paper.title }} (their models, data and sizes;
not comparable with ours)</summary>
{% for table in paper.tables %}
<p>{{ table.title }}. Source: {{ table.source }}.{% if table.note %} {{ table.note }}{% endif %}</p>
<div class="frame"><table>
<tr>{% for name in table.header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table></div>
{% endfor %}</details>
{% endmacro %}
<h1>Forgetting in language models with a fixed-size memory: scale <em>{{ spec.scale }}</em></h1>
<p class="lead">{{ spec.description }}</p>
<p>Every number links to the runs it comes from, and those to their manifests. Intervals are 95 %.
</p>

<nav><h2>Contents</h2><ul>
<li><a href="#claims">Claims</a></li>
{% for grid in grids %}<li><a href="#table-{{ grid.table.name }}">{{ grid.table.title }}</a></li>
{% endfor %}
<li><a href="#figures">Figures</a></li>
<li><a href="#training">What was trained on what</a></li>
<li><a href="#limits">What these results do not show</a></li>
<li><a href="#papers">What the papers say</a></li>
<li><a href="#runs">Runs and manifests</a></li>
</ul></nav>

<h2 id="claims">Claims</h2>
{% if verdicts %}
<div class="frame"><table>
<tr><th>claim</th><th>verdict</th><th>effect</th><th>p (Holm)</th><th>samples x seeds</th></tr>
{% for v in verdicts %}
<tr><td class="text">{{ v.claim.text }}</td>
<td><span class="verdict {{ v.verdict | replace(' ', '-') }}">{{ v.verdict }}</span></td>
{% for text in claim_numbers(v) %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="notes">{{ claim_method }}</p>
<ul class="notes">{% for v in verdicts %}
<li><strong>{{ v.claim.id }}</strong>: {{ v.claim.source }}
{% if v.reason %} Verdict: {{ v.reason }}.{% endif %}
{% if v.claim.note %} {{ v.claim.note }}{% endif %}
{% for source in v.sources %}{% if loop.first %} Runs: {% endif %}
<a href="#{{ source.anchor }}">{{ source.variant }}/{{ source.task }}/seed{{ source.seed }}</a>
{%- if not loop.last %}, {% endif %}{% endfor %}</li>
{% endfor %}</ul>
{% else %}<p>This scale tests no claim.</p>{% endif %}

<h2 id="tables">Tables</h2>
{% for grid in grids %}
<h3 id="table-{{ grid.table.name }}">{{ grid.table.title }}</h3>
<p>{{ grid.table.caption }}</p>
<div class="frame"><table>
<tr><th>model</th>{% for head in grid.heads %}<th>{{ head.text }}</th>{% endfor %}</tr>
{% for row in grid.rows %}{% set cells = grid.cells[loop.index0] %}
{% if row.group and loop.changed(row.group) %}
<tr class="group"><td>{{ row.group }}</td><td colspan="{{ grid.heads | length }}"></td></tr>
{% endif %}
<tr><td>{{ row.label }}</td>
{% for cell in cells %}{% set shown = number(cell, grid.heads[loop.index0]) %}
<td>{% if cell.sources %}<a href="#{{ cell.sources[0].anchor }}">
{%- if cell.best %}<strong>{{ shown[0] }}</strong>{% else %}{{ shown[0] }}{% endif %}</a>
{%- else %}{{ shown[0] }}{% endif %}
{% if shown[1] %}<span class="interval">{{ shown[1] }}</span>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="notes">As files: {% for end in ("md", "csv", "tex") %}
 <a href="tables/{{ grid.table.name }}.{{ end }}">{{ end }}</a>{{ "" if loop.last else "," }}
{% endfor %}</p>
{{ notes(grid.notes) }}
{% if grid.table.published in papers %}{{ published(papers[grid.table.published]) }}{% endif %}
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

<h2 id="papers">What the papers say</h2>
{% for name in spec.papers if name in papers %}{% set paper = papers[name] %}
<h3>{{ paper.title }} (arXiv {{ paper.arxiv }})</h3>
<p>{{ paper.status }}</p>
<ul>{% for claim in paper.claims %}<li>{{ claim.text }} (source: {{ claim.source }})</li>
{% endfor %}</ul>
{% endfor %}

<h2 id="runs">Runs and manifests</h2>
<div class="frame"><table>
<tr><th>run</th><th>seed</th><th>seconds</th><th>finished</th><th>device</th><th>commit</th>
<th>code</th><th>manifest</th></tr>
{% for run in runs %}
<tr{% if run.anchor %} id="{{ run.anchor }}"{% endif %}><td>{{ run.name }}</td>
<td>{{ run.seed }}</td>
<td>{{ run.seconds }}</td><td>{{ run.finished }}</td><td>{{ run.device }}</td>
<td>{{ run.commit }}</td><td>{{ run.code }}</td>
<td><a href="{{ run.manifest }}">manifest</a></td></tr>
{% endfor %}
</table></div>
</body>
</html>
"""
