"""``m2d-hub detect``: events of many files as one table."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.corpus.detect_files import Journal
from m2d_hub.corpus.event_tables import EventRow, FileEvents, write_table

FILES = [
    FileEvents(
        "a.wav", 5.0, [EventRow("a.wav", 0.5, 1.25, "Bell", 0.75), EventRow("a.wav", 2, 3, "Rain", 1.0)]
    ),
    FileEvents("b.wav", 2.5, [EventRow("b.wav", 1.0, 2.5, "Bell\tbig", 0.5)]),
]
EXPECTED = [
    ("a.wav", 0.5, 1.25, "Bell", 0.75),
    ("a.wav", 2, 3, "Rain", 1.0),
    ("b.wav", 1, 2.5, "Bell\tbig", 0.5),
]


def test_csv_json_lines_and_parquet_hold_the_same_rows(tmp_path):
    for suffix in (".csv", ".jsonl", ".parquet"):
        write_table(tmp_path / f"events{suffix}", FILES, 8_000)
    with (tmp_path / "events.csv").open(newline="") as file:
        from_csv = list(csv.DictReader(file))
    from_json = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    from_parquet = pyarrow.parquet.read_table(tmp_path / "events.parquet").to_pylist()
    for rows in (from_csv, from_json, from_parquet):
        found = [
            (row["file"], float(row["start_s"]), float(row["end_s"]), row["label"], float(row["score"]))
            for row in rows
        ]
        assert found == EXPECTED


def test_a_raven_table_counts_times_from_the_first_file_and_offsets_from_each(tmp_path):
    """Raven Pro 1.6 manual: a table over several files has Begin Path and File Offset (s)."""
    path = tmp_path / "events.selections.txt"
    write_table(path, FILES, 8_000)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [float(row["Begin Time (s)"]) for row in rows] == [0.5, 2, 6]
    assert [float(row["End Time (s)"]) for row in rows] == [1.25, 3, 7.5]
    assert [float(row["File Offset (s)"]) for row in rows] == [0.5, 2, 1]
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert {row["View"] for row in rows} == {"Spectrogram 1"}
    assert rows[0]["High Freq (Hz)"] == "8000.0"
    assert rows[2]["Annotation"] == r"Bell\tbig"


def test_audacity_labels_are_start_end_and_label(tmp_path):
    write_table(tmp_path / "a.txt", FILES[:1], 8_000)
    assert (tmp_path / "a.txt").read_text() == "0.500000\t1.250000\tBell\n2.000000\t3.000000\tRain\n"


def test_an_interrupted_job_resumes_with_the_files_that_are_finished(clips, tmp_path):
    for name in ("birds_1.ogg", "speech_it_1.wav"):
        shutil.copy(clips / name, tmp_path)
    whole = m2d_hub.detect_files(tmp_path, tmp_path / "whole.csv", threshold=0.3, device="cpu")
    lines = []

    class Killed(Journal):
        def add(self, file):
            super().add(file)
            lines.append(file)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("m2d_hub.corpus.detect_files.Journal", Killed)
        m2d_hub.detect_files(tmp_path, tmp_path / "again.csv", threshold=0.3, device="cpu")
    journal = tmp_path / "again.csv.partial.jsonl"
    with journal.open("a") as file:
        file.write('{"file": "unfin')  # killed while writing
    with pytest.raises(m2d_hub.ConfigError, match="unfinished job with other settings"):
        m2d_hub.detect_files(tmp_path, tmp_path / "again.csv", threshold=0.4, device="cpu")
    summary = m2d_hub.detect_files(tmp_path, tmp_path / "again.csv", threshold=0.3, device="cpu")
    assert (summary.num_files, summary.num_events) == (2, whole.num_events)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not journal.exists()


def test_the_command_reports_files_that_it_skips_and_refuses_wrong_tables(clips, tmp_path):
    birds, damaged = str(clips / "birds_1.ogg"), str(tmp_path / "damaged.wav")
    Path(damaged).write_bytes(b"RIFF")
    out = tmp_path / "events.csv"
    command = ["detect", birds, damaged, "--device", "cpu", "--out"]
    done = CliRunner().invoke(main, [*command, str(out), "--class-threshold", "Bird=0.5"])
    assert done.exit_code == 3
    assert f"Skipped: {damaged} cannot be read as audio" in done.output
    assert f"{birds}," in out.read_text()
    for wrong, message in (
        (tmp_path / "a.txt", "belong to one recording"),
        (tmp_path / "a.doc", "use one of .csv"),
    ):
        done = CliRunner().invoke(main, [*command, str(wrong)])
        assert done.exit_code == 1
        assert message in done.output
