"""The runbook has a heading for whatever a person may meet, and each of its commands exists."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from datastore.alarms import AlarmKind
from datastore.lifecycle import State
from node.inconsistency import Inconsistency
from service.cli import main
from service.explanation import HOLDS, REASONS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^### (\w+) `(\w+)`$", re.MULTILINE)

# These only tell what went on by itself; whoever reads them needs no help.
HARMLESS = {
    "accepted",
    "allowed",
    "attempt_started",
    "block_orphaned",
    "claim",
    "contested",  # always written as contested_bank_reference
    "given_back",
    "instance_refused",
    "lease_expired",
    "mint_proven",
    "never_connected",
    "new_generation",
    "no_slot",
    "re_mined",
    "refused_now",
    "release",
    "report_orphaned",
    "resend",
    "resolve_completed",
    "retry",
    "rival_gave_up",
}


def headed(kind: str) -> list[str]:
    return [name for found, name in HEADING.findall(TEXT) if found == kind]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("Alarm", {kind.value for kind in AlarmKind}),
        ("State", {state.value for state in State}),
        ("Reason", REASONS.keys() - HARMLESS),
        ("Hold", set(HOLDS)),
    ],
)
def test_everything_that_a_person_may_meet_has_its_heading_and_nothing_else_has(kind: str, names: set[str]) -> None:
    assert sorted(headed(kind)) == sorted(names)


def test_what_is_called_harmless_exists() -> None:
    assert HARMLESS - REASONS.keys() == set()


def sections() -> dict[str, str]:
    parts = re.split(r"^### (.+)$", TEXT, flags=re.MULTILINE)[1:]
    return {title: body.split("\n## ")[0] for title, body in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("title", [f"{kind} `{name}`" for kind, name in HEADING.findall(TEXT)])
def test_a_heading_says_what_it_means_how_to_look_what_to_do_and_what_not(title: str) -> None:
    meaning, *bullets = re.split(r"^- \*\*", sections()[title], flags=re.MULTILINE)
    assert meaning.strip().endswith((".", ")."))
    assert [bullet.split("**")[0] for bullet in bullets] == ["Look", "Do", "Do not"]


def commands() -> set[str]:
    return set(re.findall(r"`(bskt [^`]+)`", TEXT))


@pytest.mark.parametrize("text", sorted(commands()))
def test_a_command_of_the_runbook_exists_with_its_options(text: str) -> None:
    command: click.Command = main
    words = text.split()[1:]
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not isinstance(command, click.Group), text
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_a_command_that_needs_a_reason_is_shown_with_it_wherever_it_has_arguments() -> None:
    for text in commands():
        if re.match(r"bskt requests (retry|hold|release|cancel|resolve) ID\b", text) and "--reason" not in text:
            assert text in {
                "bskt requests retry ID --new-generation",  # "with its evidence" follows
                "bskt requests release ID",
            }, text


def anchors() -> set[str]:
    headings = re.findall(r"^##+ (.+)$", TEXT, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_heading() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors()


# ---------------------------------------------------------------------------------------------------------------------
# ops/alerts.yml
# ---------------------------------------------------------------------------------------------------------------------
RULES = [
    rule for group in yaml.safe_load((ROOT / "ops" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
METRICS = set(re.findall(r"^\| `(bskt_\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_exist_and_leads_to_the_runbook(rule: dict[str, Any]) -> None:
    asked = set(re.findall(r"\bbskt_\w+", rule["expr"]))
    assert asked
    assert asked <= METRICS
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/runbook.md"
    kinds = [kind.value for kind in AlarmKind] if "{{" in anchor else [""]
    assert {anchor.replace("{{ $labels.kind }}", kind) for kind in kinds} <= anchors()


def test_every_label_that_an_alert_names_has_a_value_that_is_written() -> None:
    for rule in RULES:
        for name, values in re.findall(r'(\w+)(?:!=|=~|=)"([^"]+)"', rule["expr"]):
            known = {
                "kind": {kind.value for kind in (*AlarmKind, *Inconsistency)},
                "state": {state.value for state in State},
                "to": {state.value for state in State},
                "served": {"true", "false"},
            }[name]
            assert set(values.split("|")) <= known


def test_every_alert_has_a_name_of_its_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
