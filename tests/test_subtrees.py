"""subtrees.py: mapped hosts in, what a constrained CA may vouch for out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdgate.errors import ConfigError
from holdgate.subtrees import covers, subtrees, uncovered
from holdgate.surface.spec import HostPattern

# Few labels, so that names collide and stand below each other.
LABEL = st.sampled_from(["a", "b", "api"])
PATTERN = st.lists(st.sampled_from(["a", "b", "{x}"]), max_size=3).map(lambda labels: [*labels, "ok", "test"])


def hosts(*names: str) -> list[HostPattern]:
    return [HostPattern(host=name) for name in names]


@given(st.lists(PATTERN, min_size=1, max_size=6), LABEL)
def test_nc1_every_mapped_host_and_what_it_matches_is_covered(patterns: list[list[str]], label: str) -> None:
    mapped = hosts(*(".".join(labels) for labels in patterns))
    permitted = subtrees(mapped)
    assert uncovered(permitted, mapped) == ()
    for labels in patterns:
        assert covers(permitted, ".".join(label if one == "{x}" else one for one in labels))


@given(st.lists(LABEL, min_size=1, max_size=3), st.lists(LABEL, min_size=1, max_size=4))
def test_nc2_a_subtree_is_itself_and_whole_labels_below_it(permitted: list[str], name: list[str]) -> None:
    inside = name[-len(permitted) :] == permitted
    assert covers([".".join(permitted)], ".".join(name)) is inside


@pytest.mark.parametrize(
    ("name", "inside"),
    [("api.stripe.com", True), ("x.api.stripe.com", True), ("xapi.stripe.com", False), ("stripe.com", False),
     ("api.stripe.com.evil.example", False), ("", False)],
)  # fmt: skip
def test_nc2_names_that_look_alike(name: str, inside: bool) -> None:
    assert covers(("api.stripe.com",), name) is inside


@pytest.mark.parametrize("host", ["{any}.com", "localhost"])
def test_nc3_a_host_that_needs_a_top_level_name_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot cover"):
        subtrees(hosts("api.stripe.com", host))


@pytest.mark.parametrize(
    ("mapped", "expected"),
    [
        pytest.param(hosts("api.b.test", "api.a.test"), ("api.a.test", "api.b.test"), id="sorted"),
        pytest.param(hosts("{b}.s3.{r}.amazonaws.com"), ("amazonaws.com",), id="after the last variable"),
        pytest.param(hosts("a.ok.test", "ok.test"), ("ok.test",), id="a name below another is not repeated"),
        pytest.param([HostPattern(host="a.test", scheme="http", port=80)], (), id="plain HTTP needs no leaf"),
    ],
)
def test_the_fewest_names(mapped: list[HostPattern], expected: tuple[str, ...]) -> None:
    assert subtrees(mapped) == expected


def test_a_map_that_came_later_is_named() -> None:
    permitted = subtrees(hosts("api.stripe.com"))
    assert uncovered(permitted, hosts("api.stripe.com", "slack.com", "{x}.stripe.com")) == (
        "slack.com",
        "{x}.stripe.com",
    )
