"""surfaces/README.md: map, policy, test and request under "A map of your own" work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from holdgate.cli import main

PAGE = Path(__file__).resolve().parents[1] / "surfaces/README.md"
CONFIG = """\
version: 1
node: edge-1
state_dir: ./state
listen: {explicit: 127.0.0.1:8080}
surfaces: [./surfaces]
policies: [./policies]
agents: [{id: bot, match: {source: [127.0.0.1/32]}}]
"""


@pytest.mark.checkout
def test_a_map_of_your_own_works_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = PAGE.read_text(encoding="utf-8").partition("## A map of your own\n")[2].partition("\n## ")[0]
    files = re.findall(r"```yaml\n# (\S+)\n(.*?)```", chapter, re.DOTALL)
    head, _, body = re.findall(r"```http\n(.*?)\n```", chapter, re.DOTALL)[0].partition("\n\n")
    request = head.replace("\n", "\r\n") + "\r\n\r\n" + body
    for name, text in [*files, ("surfaces/crm/examples/mail.http", request), ("holdgate.yaml", CONFIG)]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    monkeypatch.chdir(tmp_path)
    for words in re.findall(r"^\$ holdgate (.*?)(?: +#.*)?$", chapter, re.MULTILINE):
        assert main(words.split()) == 0, words
    said = capsys.readouterr().out
    assert "no findings" in said and "PERMIT permit_rule" in said and "3 of 3 cases passed" in said
