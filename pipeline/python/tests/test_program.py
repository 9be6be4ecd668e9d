"""The program `nepa` from Python: where it is found, `python -m nepa`, `inspect`, `profile`."""

from __future__ import annotations

import html
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import run_python

import nepa
from nepa import _program

posix = pytest.mark.skipif(os.name != "posix", reason="signals and #! are of POSIX")


def fake(folder: Path, code: str) -> str:
    """A program of this Python code, with `report` for the file of `--json`."""
    program = folder / "nepa"
    head = f"#!{sys.executable}\nimport json, os, signal, sys, time\nfrom pathlib import Path\n"
    place = 'report = Path(sys.argv[sys.argv.index("--json") + 1])\n'
    program.write_text(f"{head}{place}{code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_the_program_of_this_python_comes_before_that_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("named", "scripts", "user", "path")}
    for folder in places.values():
        folder.mkdir()
        fake(folder, "")
    schemes = {None: "scripts", sysconfig.get_preferred_scheme("user"): "user"}
    monkeypatch.setattr(sysconfig, "get_path", lambda _, scheme=None: str(places[schemes[scheme]]))
    monkeypatch.setenv("PATH", str(places["path"]))
    monkeypatch.setenv("NEPA_PROGRAM", str(places["named"] / "nepa"))
    for name, folder in places.items():
        program = folder / "nepa"
        assert _program.find() == str(program), name
        program.unlink()
        monkeypatch.delenv("NEPA_PROGRAM", raising=False)
    with pytest.raises(nepa.NepaError, match=r"no program nepa .*NEPA_PROGRAM"):
        _program.find()
    monkeypatch.setenv("NEPA_PROGRAM", str(tmp_path / "absent"))
    with pytest.raises(nepa.NepaError, match=r"NEPA_PROGRAM is '.*absent'"):
        _program.find()


def test_python_m_nepa_is_the_program() -> None:
    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "nepa", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    said = ran("--version")
    assert said.returncode == 0 and said.stdout.startswith("nepa "), said
    assert ran("no-such-command").returncode == 2


def test_messages_are_put_together_again() -> None:
    lines = """\
2026-11-30 19:00:01Z warning: the store is slow
  and answers late
error: cannot read s3://bucket/x: it is
  damaged
  tip: copy it again
  | a table
debug hyper::client: sent

found 3 shards"""
    assert list(_program.messages_of(iter(lines.splitlines(keepends=True)))) == [
        (logging.WARNING, "the store is slow and answers late"),
        (
            logging.ERROR,
            "cannot read s3://bucket/x: it is damaged\ntip: copy it again\n| a table",
        ),
        (logging.DEBUG, "debug hyper::client: sent"),
        (logging.INFO, "found 3 shards"),
    ]


@posix
@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        ("sys.exit('error: no *.parquet\\n  below x')", nepa.DatasetError, "^no .* below x$"),
        ("print('error: bad', file=sys.stderr); sys.exit(2)", nepa.SettingError, "^bad$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", nepa.NepaError, "ended by signal 9"),
        ("", nepa.NepaError, "exit code 0 and without a word"),
    ],
)
def test_what_the_program_says_is_the_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    error: type[nepa.NepaError],
    text: str,
) -> None:
    monkeypatch.setenv("NEPA_PROGRAM", fake(tmp_path, code))
    with pytest.raises(error, match=text) as raised:
        nepa.inspect("x")
    assert type(raised.value) is error


@posix
def test_its_messages_are_logged_and_nothing_is_printed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = """
print("printed")
print("warning: it is slow\\nread 3 shards\\nerror: row group 1 is damaged", file=sys.stderr)
report.write_text(json.dumps({"arguments": sys.argv[1:]}))
sys.exit(1)"""
    monkeypatch.setenv("NEPA_PROGRAM", fake(tmp_path, code))
    with caplog.at_level(logging.INFO, "nepa"):
        found = nepa.inspect(
            [Path("a"), "-b"],
            image_column="image.jpg",
            label_column="",
            split="train",
            strict=True,
            write_index="x.index",
        )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "it is slow"),
        ("INFO", "read 3 shards"),
        ("ERROR", "row group 1 is damaged"),
    ]
    assert {record.name for record in caplog.records} == {"nepa"}
    assert str(found) == "printed"
    assert capfd.readouterr() == ("", "")
    arguments = found["arguments"]
    assert arguments[0] == "inspect" and arguments[-3:] == ["--", "a", "-b"]
    for argument in ("--image-column=image.jpg", "--label-column=", "--strict", "--index=x.index"):
        assert argument in arguments


@posix
def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
Path(__file__).with_name("pid").write_text(str(os.getpid()))
time.sleep(600)"""
    program = fake(tmp_path, code)
    said = run_python(
        """
        import os, pathlib, signal, sys, threading, time
        import nepa

        place = pathlib.Path(sys.argv[1]).with_name("pid")

        def interrupt():
            while not place.exists() or not place.read_text():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            nepa.inspect("x")
        except KeyboardInterrupt:
            try:
                os.kill(int(place.read_text()), 0)
            except ProcessLookupError:
                print("gone")
        """,
        program,
        NEPA_PROGRAM=program,
        timeout=60,
    )
    assert said == "gone\n"


def test_inspect_says_what_a_data_set_holds(
    photos: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index = tmp_path / "photos.index"
    found = nepa.inspect(photos, samples=64, write_index=index)
    assert found["rows"] == 192 and found["shards"]["count"] == 3
    assert found["sample"]["formats"] == [{"format": "PNG", "images": 64}]
    assert found["labels"]["column"].startswith("column `label`")
    assert found["index"]["bytes"] == index.stat().st_size
    # Row groups of 16 small pictures are too small.
    assert len(found.warnings) == 1 and "tiny row groups" in found.warnings[0]
    assert found.failed == []
    assert "rows         192\n" in repr(found)
    assert json.loads(json.dumps(found.to_dict())) == dict(found)
    assert capfd.readouterr() == ("", "")


def test_inspect_names_a_row_group_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    shard = next(photos.iterdir())
    data = bytearray(shard.read_bytes())
    # The first page's header.
    data[4:40] = b"\xff" * 36
    (tmp_path / shard.name).write_bytes(data)
    found = nepa.inspect(tmp_path)
    assert len(found.failed) == 1 and "row group 0" in found.failed[0]
    assert f"error: {found.failed[0]}" in repr(found)


def test_inspect_refuses_in_words(tmp_path: Path) -> None:
    with pytest.raises(nepa.DatasetError, match="there is nothing at all below"):
        nepa.inspect(tmp_path / "absent")
    with pytest.raises(nepa.SettingError, match="samples is -1"):
        nepa.inspect(tmp_path, samples=-1)
    with pytest.raises(nepa.SettingError, match="urls is"):
        nepa.inspect([])


def test_profile_names_what_limits(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = nepa.profile(
        photos,
        seconds=2,
        batch_size=16,
        image_size=32,
        decode_threads=1,
        max_requests=4,
        shuffle_window_bytes=(1 << 20) + 1,
        consumer=10.5,
    )
    assert found["images_per_second"]["median"] > 0
    assert (found["batch"], found["image_size"]) == (16, 32)
    assert (found["decode_threads"], found["max_requests"]) == (1, 4)
    assert found.verdict["limit"] == "consumer"
    assert "images/s" in repr(found) and "\nlimit " in repr(found)
    assert repr(found) in str(found) or len(repr(found)) < len(str(found))
    assert found.html.startswith("<!DOCTYPE html>")
    shown = found._repr_html_()
    _, _, rest = shown.partition('srcdoc="')
    page, _, _ = rest.partition('"')
    assert shown.startswith("<iframe ") and html.unescape(page) == found.html
    assert capfd.readouterr() == ("", "")


def test_profile_refuses_in_words(photos: Path) -> None:
    with pytest.raises(nepa.SettingError, match="seconds is 0"):
        nepa.profile(photos, seconds=0)
    with pytest.raises(nepa.SettingError, match=r"batch_size is 1\.5"):
        nepa.profile(photos, batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(nepa.SettingError, match="image-size"):
        nepa.profile(photos, image_size=1 << 20)
    with pytest.raises(nepa.DatasetError, match="no shard"):
        nepa.profile(photos, split="nosuchsplit", seconds=1)


@posix
def test_ctrl_c_ends_a_profile(photos: Path) -> None:
    said = run_python(
        """
        import os, signal, sys, threading, time
        import nepa

        def interrupt():
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        started = time.monotonic()
        try:
            nepa.profile(sys.argv[1], seconds=600)
        except KeyboardInterrupt:
            assert time.monotonic() - started < 15
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no child")
        """,
        photos,
        timeout=60,
    )
    assert said == "no child\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
