"""A run's report: one file, everything in it, nothing a record brings is run or fetched."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from support import call

from evalkit.base import canon, statistics
from evalkit.base.errors import Exit
from evalkit.record.signing import attest, keys
from evalkit.show import published, report
from evalkit.show.report import page
from evalkit.show.report.parts import leaves, picture, plots, texts

pytestmark = pytest.mark.usefixtures("in_this_process", "without_lm_eval")

SCRIPT = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
HOSTILE = f"{SCRIPT}\x1b[31mred\x1b[0m \u202ereversed\u202c \u2028 \ud800 {{{{7*7}}}}"


def made(run: Path, **options: Any) -> str:
    """The report of a run, as text."""
    return report.write([run], run.parent / "out.html", report.Options(**options)).read_text(
        "utf-8"
    )


def index(html: str) -> Any:
    """The columns that stand in a report."""
    found = re.search(r'<script type="application/json" id="index">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def kept_texts(html: str) -> list[Any]:
    """Every text in a report."""
    packed = re.findall(r'<script type="text/plain" id="texts-\d+">(.*?)</script>', html)
    return [text for each in packed for text in json.loads(gzip.decompress(base64.b64decode(each)))]


def change_samples(run: Path, change: Any) -> None:
    """Rewrite a run's samples line by line; `change` gives bytes for a parsed sample."""
    path = run / "samples.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    path.write_bytes(gzip.compress(b"".join(change(json.loads(line)) + b"\n" for line in lines)))


def test_a_report_holds_every_score_and_every_sample(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    record, html = support.read(run), made(run)
    for name, result in (record["groups"] | record["tasks"]).items():
        assert name in html
        for value in result["metrics"].values() if name in record["groups"] else ():
            assert f"{value['value']:.4f}" in html
    columns = {leaf["name"]: leaf for leaf in index(html)["leaves"]}
    for name, task in record["tasks"].items():
        right = sum(map(int, columns[name]["scores"]))
        metric = record["tasks"][name]["metrics"][columns[name]["metric"]]
        assert right / task["n"] == pytest.approx(metric["value"])
    assert len(kept_texts(html)) == 210
    assert "CONSISTENT" in html and len(html) < 300_000


def test_a_report_may_fetch_nothing_and_run_its_own_script_only(tmp_path: Path) -> None:
    html = made(support.finished(tmp_path))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy and "default-src &#39;none&#39;" in policy[1]
    (code,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", html)
    assert not re.search(r" (on\w+|style)=", re.sub(r"<script.*?</script>", "", html, flags=re.S))


def test_a_report_is_the_same_bytes_again(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    assert made(run) == made(run)


def test_what_a_hostile_model_said_stays_text(tmp_path: Path) -> None:
    """Script tags, terminal codes, bidirectional overrides, lone surrogates, template code, a line
    of a megabyte, invalid UTF-8."""
    run = support.finished(tmp_path)

    def poison(sample: Any) -> bytes:
        if sample["task"] == "demo_cot_calendar":
            sample["resps"] = [[HOSTILE]]
            sample["target"] = HOSTILE
            if sample["doc_id"] == 1:
                sample["resps"] = [["x" * 1_000_000]]
            if sample["doc_id"] == 2:
                return json.dumps(sample, ensure_ascii=False).encode("utf-8", "replace") + b"\xff"
        return json.dumps(sample).encode()

    change_samples(run, poison)
    record = support.read(run)
    record["model"]["reference"] = record["suite"]["system_instruction"] = HOSTILE
    record["environment"]["cpu"] = HOSTILE
    support.write(run, record)
    html = made(run)
    assert "BROKEN" in html and "1 samples could not be read" in html
    assert html.count("<script>") == 1 and "alert(1)</script>" not in html
    assert "<img" not in html and "49" not in re.search(r"<h1>(.*?)</h1>", html, re.S)[1]  # type: ignore[index]
    assert not set("\x1b\u202e\u2028") & set(html) and "U+202E" in html and "U+001B" in html
    said = [text for text in kept_texts(html) if text.get("texts") == [HOSTILE]]
    assert said and all(len(json.dumps(text)) < 50_000 for text in kept_texts(html))


def test_a_record_that_is_none_gets_a_page_that_says_so(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    (run / "record.json").write_text('{"schema": "evalkit/record/4"}')
    html = made(run)
    assert "BROKEN" in html and "is a required property" in html and "samples-title" not in html


def test_groups_that_hold_each_other_end(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    record = support.read(run)
    record["groups"]["demo_cot"]["subtasks"] = ["demo_letters"]
    record["groups"]["demo_letters"]["subtasks"] = ["demo_letters", "demo_cot"]
    support.write(run, record)
    assert "BROKEN" in made(run)


def test_an_unfinished_run_shows_what_it_has(tmp_path: Path) -> None:
    html = made(support.executed(tmp_path))
    assert "UNFINISHED" in html and "696 of 696 requests answered" in html
    assert "demo_letters_days" in html and "CONSISTENT" not in html
    (tmp_path / "planned").mkdir()
    assert "0 of 696 requests answered" in made(support.planned(tmp_path / "planned"))


def test_the_command_names_the_file_and_leaves_the_record_consistent(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    ran = call("report", run, "--json").done()
    told = json.loads(ran.out)
    assert told == {"file": str(run / "report.html"), "bytes": (run / "report.html").stat().st_size}
    assert call("verify", run).done().out.splitlines()[-1].startswith("CONSISTENT")
    call("report", tmp_path / "nothing").refused(3, "no such run folder")
    call("report", tmp_path).refused(3, "neither a record nor a planned run")


def test_a_selection_spreads_over_a_task_and_takes_close_and_flagged_ones() -> None:
    chosen = texts.Texts(2)
    chosen.begin(5_000)
    for number in range(5_000):
        text = {"id": number, "prompt": hashlib.sha256(b"%d" % number).hexdigest() * 40}
        chosen.offer(1.0 + number if number % 7 else number / 1e4, number == 4_321, text)
    packed, count = chosen.end()
    ids = [each["id"] for each in json.loads(gzip.decompress(base64.b64decode(packed)))]
    assert len(ids) == count and ids == sorted(ids) and len(packed) <= texts.ROOM // 2
    assert {0, 7, 4_321} <= set(ids) and max(ids) > 4_900


def test_all_samples_are_kept_whole_when_asked() -> None:
    chosen = texts.Texts(1, everything=True)
    chosen.begin(2)
    for number in range(2):
        chosen.offer(None, False, {"id": number, "prompt": "x" * 100_000})
    (first, _) = json.loads(gzip.decompress(base64.b64decode(chosen.end()[0])))
    assert len(first["prompt"]) == 100_000


def test_calibration_and_margins_count_every_document() -> None:
    sure, rights = [0.25, 0.95, 0.95, 1.0], [0.0, 1.0, 0.0, 1.0]
    found = plots.calibration(sure, rights)
    assert [point.count for point in found.points] == [1, 3]
    assert found.error == pytest.approx((0.25 + 3 * abs(2.9 / 3 - 2 / 3)) / 4)
    drawn = plots.histogram([0.0, 0.5, 1.0, 50.0], rights)
    assert sum(bar.num_right + bar.num_wrong for bar in drawn.bars) == 4
    assert sum(bar.num_right for bar in drawn.bars) == 2


def test_wilson_is_the_published_interval() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    low, high = statistics.wilson(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert statistics.wilson(0.0, 10)[0] == 0 and statistics.wilson(1.0, 10)[1] > 1 - 1e-9


def test_hidden_characters_are_spelled_out_and_markup_is_escaped() -> None:
    assert str(page.visible("a\u200bb<c>")) == 'a<span class="hidden">U+200B</span>b&lt;c&gt;'
    assert "more characters" in str(page.visible("x" * 5_000))
    assert leaves.CLOSE_CALL in leaves.FLAGS


def test_two_runs_compared_show_every_flip_with_both_answers(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(run, other)

    def flip(sample: Any) -> bytes:
        if sample["task"] == "demo_qa" and sample["doc_id"] < 4:
            sample["acc"] = sample["acc_norm"] = 1.0 - sample["acc_norm"]
        return json.dumps(sample).encode()

    change_samples(other, flip)
    record = support.read(other)
    values = [json.loads(line) for line in
              gzip.decompress((other / "samples.jsonl.gz").read_bytes()).splitlines()]  # fmt: skip
    for metric in ("acc", "acc_norm"):
        scores = [sample[metric] for sample in values if sample["task"] == "demo_qa"]
        record["tasks"]["demo_qa"]["metrics"][f"{metric},none"]["value"] = sum(scores) / len(scores)
    support.write(other, record)
    out = tmp_path / "compared.html"
    assert call("report", run, other, "--out", out).done().out == f"{out}\n"
    html = out.read_text("utf-8")
    (columns,) = index(html)["leaves"]
    assert columns["name"] == "demo_qa" and columns["ids"] == [0, 1, 2, 3]
    told = kept_texts(html)
    assert [[side["label"] for side in text["sides"]] for text in told] == [["A", "B"]] * 4
    assert all(side["choices"] for text in told for side in text["sides"])
    assert "demo_letters" in html and "B against A" in html and html.count("<script>") == 1


def test_a_site_lists_every_record_and_links_its_report(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    broken = shutil.copytree(run, run.parent / "broken")
    (broken / "record.json").write_text("{}")
    out = tmp_path / "public"
    ran = call("report", "--site", tmp_path / "results", "--out", out).done()
    assert ran.out == f"{out / 'index.html'}\n"
    html = (out / "index.html").read_text("utf-8")
    links = re.findall(r'<th scope="row">\s*<a href="([^"]+)"', html)
    assert sorted(links) == sorted(f"demo/{name}/report.html" for name in ("broken", run.name))
    assert all((out / link).is_file() for link in links)
    assert "BROKEN" in html and "CONSISTENT" in html and html.count("<script>") == 1
    badges = [(out / link).with_name("badge.svg").read_text() for link in links]
    assert sorted("BROKEN" in badge for badge in badges) == [False, True]
    for path in (out, *out.rglob("*")):  # another user serves it
        assert path.stat().st_mode & 0o004 and (path.is_file() or path.stat().st_mode & 0o001)
    call("report", "--site", tmp_path / "results").refused(2, "usage: evalkit report")
    call("report", "--site", out, "--out", out).refused(3, "no record is below it")
    call("report").refused(2, "usage: evalkit report")


def test_a_published_figure_stands_beside_the_score_with_its_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(metric: str, value: float, differs: str | None) -> published.Published:
        return published.Published(
            "demo", "demo_qa", metric, 0, value, 0.01, "a harness", differs, "a paper, table 1"
        )

    rows = (row("acc", 0.34, None), row("acc_norm", 0.9123, "the answer is read from a text"))
    monkeypatch.setattr(published, "rows", lambda: rows)
    html = made(support.finished(tmp_path))
    assert "the same, within two standard errors" in html and html.count('class="published"') == 1
    assert "another: the answer is read from a text" in html and "0.9123" in html


def test_what_signers_and_witnesses_found_is_shown(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    author, witness = keys.make(tmp_path / "author"), keys.make(tmp_path / "witness")
    attest.sign(run, keys.private(tmp_path / "author", lambda: ""))
    claim = {"verdict": "NUMERICS", "cause": "<b>other</b> numerics", "samples": 210, "failed": 0}
    private = keys.private(tmp_path / "witness", lambda: "")
    attest.sign(run, private, attest.REPRODUCTION, claim)
    html = made(run)
    assert author.fingerprint in html and witness.fingerprint in html
    assert "NUMERICS" in html and "&lt;b&gt;other&lt;/b&gt; numerics" in html


def test_a_signed_reproduction_is_shown_where_both_are_compared(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    again, other = tmp_path / "again", tmp_path / "other"
    for copy in (again, other):
        shutil.copytree(run, copy)
        support.write(copy, support.read(copy) | {"execution": copy.name.encode().hex().zfill(32)})
    keys.make(tmp_path / "key")
    claim = {
        "verdict": "NUMERICS",
        "cause": "another <i>thread</i> count",
        "record": canon.sha256_file(again / "record.json"),
    }
    attest.sign(run, keys.private(tmp_path / "key", lambda: ""), attest.REPRODUCTION, claim)
    out = tmp_path / "compared.html"
    call("report", run, again, "--out", out).done()
    html = out.read_text("utf-8")
    assert "B reproduces A" in html and "another &lt;i&gt;thread&lt;/i&gt; count" in html
    call("report", run, other, "--out", out).done()
    assert "reproduces" not in out.read_text("utf-8")


def test_packs_are_read_where_runs_are(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    packs = [Path(call("pack", run, *how).done().out.strip()) for how in ((), ("--public",))]
    shown = Path(call("report", packs[0]).done().out.strip())
    assert shown == run.with_name(f"{run.name}.html") and kept_texts(shown.read_text("utf-8"))
    hidden = Path(call("report", packs[1]).done().out.strip())
    assert hidden != shown and "a public pack" in hidden.read_text("utf-8")
    assert (
        call("export", "--to", "csv", *packs[:1]).done().out
        == call("export", "--to", "csv", run).done().out
    )
    told = call("compare", packs[0], run).done().out
    assert (
        f"- A: demo (evalkit record, run {support.read(run)['ids']['run'][7:19]}), {packs[0]}\n"
        in told
    )
    call("compare", run, packs[1]).refused(2, "a public pack leaves out the samples")
    packs[0].write_bytes(packs[0].read_bytes()[:500])
    call("report", packs[0]).refused(1, "not a pack of evalkit's")


def test_the_head_says_what_ran_on_what_and_how_to_check_it(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    record = support.read(run)
    html = made(run, pack="https://example.org/demo.tar.gz")
    assert '<span class="muted">parameters</span> 205k' in html
    assert '<a href="https://example.org/demo.tar.gz"' in html
    assert "evalkit verify demo.tar.gz" in html
    assert f"@misc{{evalkit-{record['ids']['run'][7:19]}," in html
    assert "% evalkit: " + record["ids"]["run"] in html and '<abbr title="Worked examples' in html
    hostile = made(run, pack="javascript:alert(1)")
    assert 'href="javascript' not in hostile and "javascript:alert(1)" in hostile
    assert 'property="og:title" content="demo on demo"' in html


def test_signers_on_the_readers_list_stand_in_report_site_and_badge(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    key = keys.make(tmp_path / "author")
    attest.sign(run, keys.private(tmp_path / "author", lambda: ""))
    allowed = tmp_path / "signers"
    allowed.write_text(f"a-lab {(tmp_path / 'author.pub').read_text()}")
    picture, out = tmp_path / "badge.svg", tmp_path / "public"
    how = ("--allowed-signers", allowed)
    page = Path(call("report", run, *how, "--badge", picture).done().out.strip())
    assert "SIGNED" in page.read_text() and "a-lab" in page.read_text()
    assert "SIGNED by a-lab" in picture.read_text()
    call("report", "--site", tmp_path / "results", "--out", out, *how).done()
    assert "SIGNED by a-lab" in next(out.glob("*/*/badge.svg")).read_text()
    assert "SIGNED" in (out / "index.html").read_text()
    assert "CONSISTENT" in Path(call("report", run).done().out.strip()).read_text() and key


def test_a_page_of_three_runs_has_a_matrix_and_marks_a_broken_side(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    others = [shutil.copytree(run, tmp_path / name) for name in ("second", "third")]
    (others[1] / "results.json").write_text("{}")
    out = tmp_path / "three.html"
    call("report", run, *others, "--out", out).done()
    html = out.read_text()
    assert html.count('class="matrix"') == 1 and "C: BROKEN" in html
    assert html.count("contradicts itself:</b> no difference below can be relied on") == 1
    best = html[html.index('class="matrix"') :]
    assert best.count("number best") == 8  # four tasks of two runs; the broken one has none


def test_a_watched_run_is_written_until_it_is_finished(tmp_path: Path) -> None:
    run = support.executed(tmp_path)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        call("finish", run).done()

    pages = [path.read_text() for path in report.watch(run, None, report.Options(), wait)]
    assert len(pages) == 2 and len(waited) == 1
    assert "UNFINISHED" in pages[0] and "CONSISTENT" in pages[1]


def test_a_page_with_an_address_brings_a_picture_of_its_scores(tmp_path: Path) -> None:
    """Sites that show links fetch an image from an address of its own."""
    from PIL import Image

    run, out = support.finished(tmp_path), tmp_path / "a page.html"
    where = "https://example.org/runs/a%20page.html"
    call("report", run, "--out", out, "--address", where).done()
    assert '<meta property="og:image" content="https://example.org/runs/a%20page.png">' in (
        out.read_text("utf-8")
    )
    with Image.open(out.with_suffix(".png")) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (picture.WIDTH, picture.HEIGHT))
        score = support.read(run)["groups"]["demo_letters"]["metrics"]["acc,none"]["value"]
        at = picture.TRACK + picture.TRACK_WIDTH * score
        assert drawn.getpixel((round(at), 272 + 18)) == (0x24, 0x56, 0xC5)  # the first task's score
    assert "og:image" not in made(run)


def test_a_site_with_an_address_brings_a_picture_of_each_run(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    forged = shutil.copytree(run, run.parent / "forged")
    edited = support.read(forged)
    edited["model"]["reference"] = SCRIPT * 9  # wider than any picture
    support.write(forged, edited)
    where = ("--site", run.parent, "--out", tmp_path / "public", "--address", "https://a.org/x")
    call("report", *where).done()
    for path in (tmp_path / "public").rglob("report.html"):
        address = f"https://a.org/x/{path.parent.relative_to(tmp_path / 'public')}/report.png"
        assert f'content="{address}"' in path.read_text("utf-8")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_an_address_and_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = support.finished(tmp_path), tmp_path / "page.html"
    for wrong in ("example.org/page.html", "javascript:alert(1)", "https://a.org/'\"><script>"):
        refused = call("report", run, "--out", out, "--address", wrong)
        assert refused.code == Exit.USAGE and "is no http or https address" in refused.err
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused = call("report", run, "--out", out, "--address", "https://example.org/page.html")
    assert refused.code == Exit.MISSING and "evalkit-lm[picture]" in refused.err
    assert not out.exists()
