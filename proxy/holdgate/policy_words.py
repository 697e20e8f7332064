"""What people write who know another policy engine: keys and values of their files, and ours instead.

Tables only. The reader of policy files looks here before it guesses by spelling.

Invariants (tests/test_policy_errors.py):
  O6  Every hint is for a word that the format does not have.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BUNDLE_SPEC",
    "CASE",
    "DOCUMENT",
    "EFFECTS",
    "KINDS",
    "METADATA",
    "OUTCOMES",
    "RULE",
    "SPEC",
    "SUITE",
]

_SPEC: Final = "under `spec:`"
_AWS: Final = "`spec: {surface, rules}` with `effect`, `when` (this looks like an AWS policy)"
_CERBOS: Final = "`kind: Policy` with `spec: {surface, rules}` (this looks like a Cerbos policy)"

DOCUMENT: Final = {
    **dict.fromkeys(["surface", "rules", "operations", "constants", "counters", "facts", "cases"], _SPEC),
    **dict.fromkeys(["defaults", "policy", "agent_attrs"], _SPEC),
    **dict.fromkeys(["name", "owner"], "under `metadata:`"),
    **dict.fromkeys(["Version", "Statement", "Effect", "Action", "Resource", "Condition"], _AWS),
    **dict.fromkeys(["resourcePolicy", "principalPolicy", "derivedRoles", "exportVariables"], _CERBOS),
    "version": "'apiVersion: holdgate/v1'",
    "apiversion": "'apiVersion'",
    "api_version": "'apiVersion'",
    "type": "'kind'",
    "status": "nothing (the file has no status)",
    "description": "a comment (#)",
}
METADATA: Final = {
    **dict.fromkeys(["labels", "annotations", "description", "namespace"], "a comment (#)"),
    **dict.fromkeys(["author", "team", "owners", "contact", "maintainer"], "'owner'"),
    "id": "'name'",
    "version": "nothing (the bundle has a revision)",
}
SPEC: Final = {
    **dict.fromkeys(["actions", "action", "operation", "methods", "verbs"], "'operations'"),
    **dict.fromkeys(["surfaces", "resource", "resources", "target", "scope"], "'surface'"),
    **dict.fromkeys(["rule", "statements", "validations", "policies", "Statement"], "'rules'"),
    **dict.fromkeys(["const", "constant", "variables", "vars", "params", "locals", "globals"], "'constants'"),
    **dict.fromkeys(["matchConstraints", "matchConditions", "match"], "'surface' and 'operations'"),
    "failurePolicy": "nothing (whatever fails is SILENCE; there is no other way)",
    "default": "nothing (what no rule permits is SILENCE)",
    "defaultEffect": "nothing (what no rule permits is SILENCE)",
    "effect": "'effect' in a rule",
    "mode": "'shadow'",
    "enforcement": "'shadow'",
    "dryRun": "'shadow'",
    "paramKind": "'constants'",
    "limits": "'counters'",
    "version": "nothing (the bundle has a revision)",
    "owner": "'owner' under `metadata:`",
    "name": "'name' under `metadata:`",
}
RULE: Final = {
    **dict.fromkeys(
        ["condition", "conditions", "expression", "expr", "match", "if", "cel", "where"], "'when'"
    ),
    **dict.fromkeys(["unless", "except"], "'when' with !( ... )"),
    **dict.fromkeys(["name", "rule", "ruleId", "sid", "Sid", "title"], "'id'"),
    **dict.fromkeys(["message", "messageExpression", "description", "comment", "why"], "'reason'"),
    **dict.fromkeys(["decision", "outcome", "then", "verdict", "permission", "Effect"], "'effect'"),
    **dict.fromkeys(["actions", "operations", "action", "operation"], "'operations' under `spec:`"),
    **dict.fromkeys(["surface", "resource", "resources"], "'surface' under `spec:`"),
    **dict.fromkeys(["constants", "variables"], "'constants' under `spec:`"),
    **dict.fromkeys(["priority", "order", "weight"], "nothing (the order of rules never matters)"),
    **dict.fromkeys(["roles", "groups", "principals"], "'when' with \"name\" in agent.groups"),
    **dict.fromkeys(["approvals", "approvers", "approval"], "'when' with approvals.exists(a, a.role == ...)"),
    **dict.fromkeys(["permit", "deny", "review", "allow"], "'effect' and 'when'"),
    "enabled": "nothing (remove the rule, or write `shadow: true` under `spec:`)",
    "disabled": "nothing (remove the rule, or write `shadow: true` under `spec:`)",
    "allow_all": "'unsafe_allow_all'",
    "severity": "nothing (a rule has no severity)",
    "else": "another rule",
}
EFFECTS: Final = {
    **dict.fromkeys(
        ["allow", "allowed", "effect_allow", "accept", "pass", "grant", "permitted", "ok", "yes", "true"],
        "'permit'",
    ),
    **dict.fromkeys(
        [
            *(
                "block",
                "forbid",
                "reject",
                "effect_deny",
                "denied",
                "refuse",
                "disallow",
                "no",
                "drop",
                "silence",
            ),
            *("prohibit", "stop", "false"),
        ],
        "'deny'",
    ),
    **dict.fromkeys(
        ["approve", "approval", "ask", "hold", "escalate", "confirm", "manual", "warn", "audit"], "'review'"
    ),
}
KINDS: Final = {
    **dict.fromkeys(
        [
            *(
                "validatingadmissionpolicy",
                "policies",
                "resourcepolicy",
                "clusterpolicy",
                "constraint",
                "accesspolicy",
            ),
            *("networkpolicy", "rule", "role", "clusterrole", "validatingadmissionpolicybinding"),
        ],
        "'Policy'",
    ),
    **dict.fromkeys(["test", "testsuite", "policytests", "suite", "policytestsuite"], "'PolicyTest'"),
    **dict.fromkeys(["agents", "agent", "attributes", "agentattrs"], "'Bundle'"),
    "surfacemap": "'SurfaceMap', and is it in the right folder",
}
OUTCOMES: Final = {
    **dict.fromkeys(["allow", "allowed", "permitted", "effect_allow", "true", "pass", "ok"], "'PERMIT'"),
    **dict.fromkeys(["denied", "block", "forbid", "effect_deny", "false", "reject"], "'DENY'"),
    **dict.fromkeys(
        [
            "silent",
            "none",
            "review",
            "pending",
            "error",
            "undecided",
            "no_rule_matched",
            "approval_pending",
            "hold",
        ],
        "'SILENCE'",
    ),
}
BUNDLE_SPEC: Final = {
    **dict.fromkeys(["attrs", "attributes", "agents", "agentAttrs", "agent_attributes"], "'agent_attrs'"),
}
SUITE: Final = {
    **dict.fromkeys(["tests", "suite", "suites", "case"], "'cases'"),
    **dict.fromkeys(["policies", "file"], "'policy'"),
    **dict.fromkeys(["given", "input", "inputs", "fixtures", "default", "base"], "'defaults'"),
    "options": "'defaults' with clock: {now: ...}",
}
CASE: Final = {
    **dict.fromkeys(["input", "inputs", "given", "when", "data", "principals", "resources"], "'with'"),
    **dict.fromkeys(["params", "agent", "clock", "action", "approvals"], "'with: {...}' around it"),
    **dict.fromkeys(["expected", "want", "then", "assert", "output", "outcome", "decision"], "'expect'"),
    **dict.fromkeys(["expects", "expect_all"], "'expect_each'"),
    **dict.fromkeys(["id", "title", "description", "case"], "'name'"),
    **dict.fromkeys(["request", "file", "http", "raw"], "'request_file'"),
    **dict.fromkeys(["table", "parameters", "values", "parametrize"], "'matrix'"),
}
