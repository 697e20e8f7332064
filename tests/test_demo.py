"""demo/: the story holds with the real client libraries and without them; a broken part is never success."""

import os
import types

import pytest

from holdgate.cli import main
from holdgate.demo import story as story_module
from holdgate.demo.instance import Instance, InstanceError
from holdgate.demo.recorder import Counts
from holdgate.demo.story import Story, tell

NOTHING = Counts(connections=0, requests=0, received_bytes=0)
LIBRARIES = ("stripe", "boto3", "slack_sdk", "requests")


def empty_story():
    counts = types.SimpleNamespace(counts=lambda vendor: NOTHING)
    return Story(gate=None, vendors=counts, clients={})


def refusal(**changes):
    answer = {
        "value": "",
        "raised": "CardError: no",
        "decision": 'DENY;id="r";reason=deny_rule',
        "receipt": "",
    }
    return answer | changes


@pytest.mark.slow
def test_the_demo_holds_with_real_clients(capfd):
    for library in LIBRARIES:
        pytest.importorskip(library)
    assert main(["demo"]) == 0
    said = capfd.readouterr().out
    assert "FAILED" not in said and "not installed" not in said
    for heading in [f"\n{number}. " for number in range(1, 12)]:
        assert heading in said
    assert "29 of 29 checks held" in said


@pytest.mark.slow
def test_the_demo_says_which_libraries_are_missing_and_holds_without_them(capfd, monkeypatch, tmp_path):
    for library in LIBRARIES:
        (tmp_path / f"{library}.py").write_text("raise ImportError('hidden by a test')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert main(["demo"]) == 0
    said = capfd.readouterr().out
    for vendor in story_module.CLIENTS:
        assert f"the client library for {vendor} is not installed" in said


def test_v2_nothing_checked_is_not_a_success(capsys):
    assert story_module._summary(empty_story()) is False


def test_v2_a_part_that_breaks_off_is_a_failure_and_the_others_are_told(capsys):
    told = []

    def breaks(story):
        raise RuntimeError("broken")

    story = empty_story()
    story_module._told(story, breaks)
    story_module._told(story, lambda story: (told.append(1), story.check("fine", True)))
    assert told == [1]
    assert story_module._summary(story) is False
    assert "1 of 2 checks held" in capsys.readouterr().out


@pytest.mark.slow
def test_v2_tell_is_false_when_one_part_fails(monkeypatch, capsys):
    monkeypatch.setattr(story_module, "PARTS", (lambda story: story.check("never", False),))
    monkeypatch.setattr(story_module, "CLIENTS", ())
    assert tell() is False
    assert "FAILED never" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "saw", "held"),
    [
        pytest.param(refusal(), NOTHING, True, id="refused, nothing seen"),
        pytest.param(
            refusal(), Counts(connections=1, requests=0, received_bytes=0), False, id="one connection"
        ),
        pytest.param(refusal(raised="", value="ok"), NOTHING, False, id="the library did not raise"),
        pytest.param(refusal(decision=""), NOTHING, False, id="no decision header"),
        pytest.param(refusal(decision="PERMIT;reason=deny_rule"), NOTHING, False, id="another outcome"),
        pytest.param(refusal(decision="DENY;reason=other"), NOTHING, False, id="another reason"),
    ],
)
def test_v3_a_refusal_holds_only_if_the_vendor_saw_nothing(capsys, answer, saw, held):
    story = empty_story()
    story.refused("x", answer, "DENY", "deny_rule", saw)
    assert all(check.held for check in story.checks) is held


def test_an_instance_that_cannot_start_says_why(tmp_path):
    with pytest.raises(InstanceError, match=r"exit code 2.*\n.*holdgate\.yaml:[\d:]+ unknown key 'nonsense'"):
        with Instance(tmp_path / "gate", connect_to={}, extra="nonsense: 1"):
            raise AssertionError("it started")


@pytest.mark.slow
def test_the_demo_leaves_nothing_behind_unless_it_is_told_to(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(story_module, "PARTS", (lambda story: story.check("fine", True),))
    monkeypatch.setattr(story_module, "CLIENTS", ())
    monkeypatch.setattr(story_module.tempfile, "tempdir", str(tmp_path))
    assert tell() is True and list(tmp_path.iterdir()) == []
    assert tell(keep=True) is True
    kept = list(tmp_path.iterdir())
    assert len(kept) == 1 and f"kept: {kept[0]}" in capsys.readouterr().out
    assert (kept[0] / "state/ledger.db").exists()
