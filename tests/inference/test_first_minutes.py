"""Run the program of docs/inference.md with a small untrained model."""

import re
from pathlib import Path

from small_inference import RECIPE, REPORTS, save_run, save_scan
from small_raw import chest

from mg3d.inference.load import load
from mg3d.inference.search_index import Entry, IndexWriter

PAGE = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()


def with_lungs():
    """A chest with air inside the body."""
    volume = chest(0)
    volume[:, 8:-7, 6:-6] = -850
    return volume


def make_files(folder):
    """The run, the scan and the index that the program uses."""
    run = save_run(folder / "result" / "tiny", recipes={"ct_rate": RECIPE})
    save_scan(folder / "scan.nii.gz", hu=with_lungs())
    loaded = load(run, device="cpu")
    writer = IndexWriter(folder / "result" / "index", fingerprint=loaded.fingerprint)
    reports = [*REPORTS, "Clear."]
    writer.add([Entry(f"case_{n}", "report", text, loaded.embed_report(text)) for n, text in enumerate(reports)])


def form_of(line):
    """A line without the values that depend on weights and scan."""
    sides = "right|left|anterior|posterior|superior|inferior"
    return re.sub(rf"[-+]?\d[\d.]*|{sides}", "#", line.split("report")[0])


def test_the_program_of_the_page_prints_the_output_of_the_page(tmp_path, monkeypatch, capsys):
    make_files(tmp_path)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    program, shown = re.search(r"```python\n(.*?)```.*?```\n(.*?)```", PAGE, re.DOTALL).groups()
    exec(compile(program, "docs/inference.md", "exec"), {})
    printed = capsys.readouterr()
    assert [form_of(line) for line in printed.out.splitlines()] == [form_of(line) for line in shown.splitlines()]
    assert printed.err == "mg3d: using result/tiny/checkpoints/last.ckpt of the run result/tiny\n"
    assert (tmp_path / "map.nii.gz").is_file()
