"""The page: opens offline, shows every table, figure and claim, and leads to the manifests."""

import re
from pathlib import Path
from typing import Any

import pytest

from forgetmenot.errors import UserError
from forgetmenot.report import published
from forgetmenot.report.build import build
from forgetmenot.report.figures import variant_styles

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def report(write_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    spec["tables"][0] |= {"published": "gated_deltanet"}
    spec["tables"][0]["columns"][0] |= {"label": "accuracy (%)", "axis_label": "pairs"}
    spec["claims"] = [
        {
            "id": "lte_wins",
            "paper": "lte",
            "text": "laLTE beats GDN <b>clearly</b>",
            "source": "a test",
            "study": "recall",
            "task": "recall",
            "metric": "accuracy",
            "better": "gdn_lte",
            "worse": "gdn",
        }
    ]
    kept = (
        '{"tokens": ["a", " b\\n", ""], "layers": [{"layer": 2, "heads": [[true, false, true]]}]}'
    )
    Path(spec["results"]["recall/gdn_lte/seed0/recall"], "kept.json").write_text(kept)
    (Path(spec["results"]["recall/gdn/seed1/recall"]) / "results.json").unlink()
    out = tmp_path / "reports" / "smoke"
    build(spec, published.read_all(ROOT / "reports" / "papers"), out)
    return out


def test_the_page_needs_no_network_and_has_every_image_inside(report: Path) -> None:
    text = (report / "index.html").read_text()
    sources = re.findall(r"<img[^>]*\bsrc=\"([^\"]+)\"", text)
    assert len(sources) == len(list((report / "figures").glob("*.png"))) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    without_images = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", without_images)
    assert 'name="viewport"' in text


def test_every_link_leads_somewhere(report: Path) -> None:
    text = (report / "index.html").read_text()
    places = set(re.findall(r'id="([^"]+)"', text))
    links = re.findall(r'href="([^"]+)"', text)
    assert any(link.endswith("gdn_lte/seed1/recall/manifest.json") for link in links)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in places
        else:
            assert (report / link).is_file()


def test_the_page_shows_verdicts_missing_results_and_limits(report: Path) -> None:
    text = (report / "index.html").read_text()
    assert "laLTE beats GDN &lt;b&gt;clearly&lt;/b&gt;" in text
    assert 'class="verdict supported"' in text
    assert "a stand-in &lt;corpus&gt; &amp; more" in text
    assert "recall/gdn/seed1/recall" in text
    assert "The paper&#39;s own table is not available to this project." in text
    assert "abcdef0123" in text
    assert "their models, data and sizes;\nnot comparable with ours" in text


def test_figures_are_png_and_svg_and_the_same_every_time(
    report: Path, write_results: Any, tmp_path: Path
) -> None:
    names = {path.stem for path in (report / "figures").glob("*.svg")}
    assert names == {
        "kept_count_recall_gdn_lte",
        "kept_map_recall_gdn_lte_seed0",
        "learning_curves_recall",
        "lines_recall",
    }
    for name in names:
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(PNG)
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    spec["tables"] = []
    build(spec, {}, tmp_path / "again")
    for end in ("png", "svg"):
        file = f"figures/learning_curves_recall.{end}"
        assert (tmp_path / "again" / file).read_bytes() == (report / file).read_bytes()


def test_a_report_without_any_result_is_still_made(write_results: Any, tmp_path: Path) -> None:
    spec = write_results({"gdn": 0.3})
    spec["trains"] = {key: str(tmp_path / "none") for key in spec["trains"]}
    spec["results"] = {key: str(tmp_path / "none") for key in spec["results"]}
    build(spec, {}, tmp_path / "empty")
    text = (tmp_path / "empty" / "index.html").read_text()
    assert text.count("manifest.json does not exist") == 4
    assert "reports/papers/lte.yaml is missing" in text


def test_published_files_are_complete_and_a_bad_one_is_named(tmp_path: Path) -> None:
    papers = published.read_all(ROOT / "reports" / "papers")
    assert {"lte", "prosg", "gated_deltanet"} <= set(papers)
    for name in ("lte", "prosg"):  # no number may be printed as theirs
        assert papers[name]["tables"] == []
        assert papers[name]["claims"]
    (tmp_path / "bad.yaml").write_text("title: x\n")
    with pytest.raises(UserError, match=r"bad\.yaml: keys missing: arxiv"):
        published.read_all(tmp_path)


def test_a_variant_looks_the_same_in_every_study() -> None:
    studies = {
        "one": {"paper": "lte", "variants": [{"name": "gdn"}, {"name": "swa"}, {"name": "lte"}]},
        "two": {"paper": "lte", "variants": [{"name": "gdn"}, {"name": "lte"}, {"name": "nsa"}]},
        "three": {"paper": "prosg", "variants": [{"name": "rwkv4"}, {"name": "gdn"}]},
    }
    assert variant_styles(studies) == {"gdn": 0, "swa": 1, "lte": 2, "nsa": 3, "rwkv4": 4}


def test_the_graph_has_every_job_and_leads_to_the_runs(report: Path) -> None:
    text = (report / "index.html").read_text()
    graph = text[text.index("<svg") : text.index("</svg>")]
    for words in ("recall: GDN, 2 seeds", "recall: recall", "report", "mqar"):
        assert f">{words}</text>" in graph
    assert 'href="#run-recall-gdn-train"' in graph
    # data to models, models to their task, the task to the report
    assert graph.count("<path") == 3 + 3 + 1


def test_every_number_leads_to_its_runs_and_each_to_its_manifest(report: Path) -> None:
    text = (report / "index.html").read_text()
    cells = re.findall(r'<a href="#(run-[^"]+)"><?', text[text.index('id="table-recall"') :])
    assert {"run-recall-gdn-recall", "run-recall-gdn_lte-recall"} <= set(cells)
    run = text[text.index('id="run-recall-gdn_lte-recall"') :]
    run = run[: run.index("</details>")]
    assert run.count(">manifest</a>") == 2
    assert "&#34;task&#34;: &#34;recall&#34;" in run  # what was asked
