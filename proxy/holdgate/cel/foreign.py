"""Words that other languages and engines have and cel-strict/1 has not, with what to write instead.

Tables only: the lexer, the parser and the checker look here before they say "unknown". Kubernetes, Cerbos,
OPA, Cedar, AWS IAM, Envoy and Google IAM are where the people come from who write their first rule.

Invariants (tests/test_cel_foreign.py):
  X6  Every entry is reached by an expression that uses the word, and says what to write or where to go.
"""

# ruff: noqa: E501 - a table reads better with one entry on one line
from __future__ import annotations

from typing import Final

__all__ = ["FUNCTIONS", "LITERALS", "NAMES", "SIGNS", "WORDS"]

_TYPED: Final = "conversions are not in cel-strict/1; the surface map declares the type of each parameter"
_REGEX: Final = "regular expressions are not in cel-strict/1; "
_REGEX_INSTEAD: Final = (
    f"{_REGEX}use startsWith(), endsWith(), contains() or `in`, or let the surface map extract a typed field"
)
_TIME: Final = (
    "dates are not in cel-strict/1; use clock.now_s (seconds since 1970), clock.hour_utc, clock.weekday_utc"
)
_TEXT: Final = "texts are compared as sent in cel-strict/1; list the spellings: x in [...], or let the surface map normalise"
_LIST: Final = "is not in cel-strict/1; use x.exists(v, ...), x.all(v, ...), `in` and size(x)"
_OPTIONAL: Final = "optional values are not in cel-strict/1; write has(x.y) && x.y == ..."
_NET: Final = (
    "addresses are texts in cel-strict/1; list them: x in [...], or let the surface map extract a field"
)
_DEFAULT: Final = "there are no default values in cel-strict/1; write has(x.y) && ..."
_MATH: Final = "is not in cel-strict/1; write the comparison, such as a <= b || a <= c"

# Functions and methods, as they are called.
FUNCTIONS: Final[dict[str, str]] = {
    **dict.fromkeys(
        ["matches", "match", "regex", "re_match", "find", "findAll", "like", "glob"], _REGEX_INSTEAD
    ),
    **dict.fromkeys(
        ["int", "string", "bool", "str", "number", "to_number", "parseInt", "format", "sprintf"], _TYPED
    ),
    **dict.fromkeys(
        [
            *(
                "timestamp",
                "date",
                "time",
                "timeSince",
                "getHours",
                "getMinutes",
                "getSeconds",
                "getMilliseconds",
            ),
            *("getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getMonth"),
        ],
        _TIME,
    ),
    **dict.fromkeys(
        ["lower", "upper", "lowerAscii", "upperAscii", "toLowerCase", "toUpperCase", "trim", "strip"], _TEXT
    ),
    **dict.fromkeys(
        [
            "split",
            "join",
            "replace",
            "substring",
            "substr",
            "charAt",
            "indexOf",
            "lastIndexOf",
            "reverse",
            "concat",
        ],
        "texts are not taken apart or joined in cel-strict/1; let the surface map extract a typed field",
    ),
    **{
        name: f"{name}() {_LIST}"
        for name in (
            *(
                "map",
                "filter",
                "exists_one",
                "existsOne",
                "any",
                "some",
                "every",
                "count",
                "isSorted",
                "slice",
            ),
            *(
                "sort",
                "distinct",
                "flatten",
                "first",
                "last",
                "transformList",
                "transformMap",
                "intersects",
                "range",
            ),
            *(
                "containsAll",
                "containsAny",
                "hasIntersection",
                "intersect",
                "isSubset",
                "except",
                "equivalent",
            ),
        )
    },
    **{
        name: f"{name}() {_MATH}"
        for name in ("min", "max", "abs", "greatest", "least", "ceil", "floor", "round")
    },
    "sum": "sum() is not in cel-strict/1; sums over time are `counters` of the policy",
    **dict.fromkeys(
        ["optional", "of", "ofNonZeroValue", "none", "orValue", "or", "hasValue", "value"], _OPTIONAL
    ),
    **dict.fromkeys(["get", "getOrDefault", "default", "coalesce"], _DEFAULT),
    **dict.fromkeys(
        [
            "ip",
            "cidr",
            "isIP",
            "isCIDR",
            "containsIP",
            "containsCIDR",
            "inIPAddrRange",
            "url",
            "isURL",
            "getHost",
        ],
        _NET,
    ),
    "duration": "durations are not in cel-strict/1; write seconds: 15 minutes are 900",
    "quantity": "quantities are not in cel-strict/1; the surface map declares integers, such as minor units of money",
    "uint": "unsigned integers are not in cel-strict/1; write the number alone",
    "double": "floating-point numbers are not in cel-strict/1; use integers (money in minor units)",
    "float": "floating-point numbers are not in cel-strict/1; use integers (money in minor units)",
    "decimal": "decimals are not in cel-strict/1; use integers (money in minor units)",
    "bytes": "bytes are not in cel-strict/1; compare texts",
    "dyn": "dyn() is not in cel-strict/1: every expression has one static type; remove dyn( and )",
    "type": "type() is not in cel-strict/1: every expression has one static type; remove the test",
    "now": "policies cannot ask a clock; use clock.now_s, clock.hour_utc, clock.weekday_utc",
    "len": "did you mean size(x)?",
    "length": "did you mean size(x)?",
    "defined": "did you mean has(x.y)?",
    "exist": "did you mean has(x.y), or x.exists(v, ...)?",
    "includes": "did you mean `item in list`, or text.contains(part)?",
    "startswith": "did you mean startsWith?",
    "starts_with": "did you mean startsWith?",
    "startsWithIgnoreCase": _TEXT,
    "endswith": "did you mean endsWith?",
    "ends_with": "did you mean endsWith?",
    "not": "did you mean !( ... )?",
    "bind": "bind() is not in cel-strict/1; write a constant, or the expression twice",
    "hierarchy": "hierarchies are not in cel-strict/1; use startsWith()",
    "spiffeID": "SPIFFE ids belong to `agents` of the configuration; use agent.id",
    "inGroup": 'write "name" in agent.groups',
    "hasRole": 'write "name" in agent.groups',
}

# Names that begin an expression, or `name.field`.
NAMES: Final[dict[str, str]] = {
    "object": "Kubernetes' object is `params` here: what the surface map extracts from the request",
    "oldObject": "there is no earlier state of the object; a policy sees the request: params.<name>",
    "namespaceObject": "there is no namespace object; a policy sees the request: params.<name>",
    "authorizer": "there is no authorizer; permissions are rules of policies",
    "variables": "there are no variables in cel-strict/1; use constants.<name>, or write the expression out",
    "input": "OPA's input is params.<name>, agent.<name> and action.<name> here",
    "data": "OPA's data is constants.<name> of the policy here",
    "R": "Cerbos' R.attr.<name> is params.<name> here",
    "P": "Cerbos' P is agent here: agent.id, agent.groups, agent.attrs.<name>",
    "V": "Cerbos' V has no counterpart; use constants.<name>, or write the expression out",
    "C": "Cerbos' C.<name> is constants.<name> here",
    "G": "Cerbos' G has no counterpart; use constants.<name>",
    "globals": "there are no globals; use constants.<name>",
    "runtime": "there is no runtime; an agent's roles are agent.groups",
    "principal": "the caller is agent here: agent.id, agent.groups; the credential's fingerprint is action.principal",
    "user": "the caller is agent here: agent.id, agent.groups, agent.attrs.<name>",
    "subject": "the caller is agent here: agent.id, agent.groups, agent.attrs.<name>",
    "caller": "the caller is agent here: agent.id, agent.groups, agent.attrs.<name>",
    "identity": "the caller is agent here: agent.id, agent.groups, agent.attrs.<name>",
    "resource": "what is acted on is params.<name>; operation and host are action.operation and action.host",
    "context": "Cedar's context is params.<name>, clock.<name> and approvals here",
    "aws": "condition keys of AWS are not known here; use params.<name>, agent.<name>, clock.<name>",
    "source": "source addresses are `match` of the configuration's agents; use agent.id",
    "destination": "the destination is action.host",
    "connection": "connections are `match` of the configuration's agents; use agent.id",
    "origin": "source addresses are `match` of the configuration's agents; use agent.id",
    "auth": "the caller is agent here: agent.id, agent.groups",
    "headers": "headers are not read by policies; let the surface map extract a parameter: params.<name>",
    "body": "the body is not read by policies; the surface map extracts parameters: params.<name>",
    "http": "a policy sees the recognised action: action.operation, params.<name>",
    "method": "a policy sees the recognised action: action.operation, params.<name>",
    "path": "a policy sees the recognised action: action.operation, params.<name>",
    "url": "a policy sees the recognised action: action.operation, action.host, params.<name>",
    "host": "did you mean action.host?",
    "operation": "did you mean action.operation?",
    "surface": "the surface is `surface:` of the policy; there is no need to test it",
    "env": "environment variables decide nothing; use constants.<name>",
    "time": "use clock.now_s (seconds since 1970), clock.hour_utc, clock.weekday_utc",
    "now": "use clock.now_s (seconds since 1970)",
    "date": "use clock.now_s (seconds since 1970), clock.hour_utc, clock.weekday_utc",
    "consts": "did you mean 'constants'?",
    "vars": "did you mean 'constants'?",
    "param": "did you mean 'params'?",
    "parameters": "did you mean 'params'?",
    "args": "did you mean 'params'?",
    "arguments": "did you mean 'params'?",
    "attr": "an agent's attributes are agent.attrs.<name>",
    "approval": "approvals are a list; write approvals.exists(a, a.role == ...)",
    "approved": "approvals are a list; write approvals.exists(a, a.role == ...)",
    "always": "`when: always` stands alone; in an expression write true",
    "never": "write false, or remove the rule",
    "default": "what no rule permits is SILENCE; there is nothing to write for it",
    "math": f"math {_MATH}",
    "sets": f"sets {_LIST}",
    "lists": f"lists {_LIST}",
    "strings": "the strings library is not in cel-strict/1; there are startsWith, endsWith, contains and size",
    "optional": _OPTIONAL,
    "regex": _REGEX_INSTEAD,
    "cel": "cel.bind() is not in cel-strict/1; write a constant, or the expression twice",
    "action.name": "did you mean action.operation?",
    "action.id": "did you mean action.operation?",
    "action.surface": "the surface is `surface:` of the policy; there is no need to test it",
    "action.method": "a policy sees the recognised action: action.operation, params.<name>",
    "action.path": "a policy sees the recognised action: action.operation, params.<name>",
    "action.params": "parameters are params.<name>",
    "agent.name": "did you mean agent.id?",
    "agent.role": 'did you mean "name" in agent.groups?',
    "agent.roles": "did you mean agent.groups?",
    "agent.group": "did you mean agent.groups?",
    "agent.attr": "did you mean agent.attrs?",
    "agent.attributes": "did you mean agent.attrs?",
    "clock.now": "did you mean clock.now_s (seconds since 1970)?",
    "clock.hour": "did you mean clock.hour_utc?",
    "clock.weekday": "did you mean clock.weekday_utc (Sunday is 0)?",
    "clock.day": "did you mean clock.weekday_utc (Sunday is 0)?",
    "clock.minute": "there are no minutes; use clock.now_s (seconds since 1970) or clock.hour_utc",
    "request.resource": "Cerbos' request.resource.attr.<name> is params.<name> here",
    "request.principal": "Cerbos' request.principal is agent here: agent.id, agent.groups, agent.attrs.<name>",
    "request.auxData": "tokens are not read by policies; an agent's attributes are agent.attrs.<name>",
    "request.object": "Kubernetes' request.object is params.<name> here",
    "request.operation": "did you mean action.operation?",
    "request.userInfo": "the caller is agent here: agent.id, agent.groups",
    "request.user": "the caller is agent here: agent.id, agent.groups",
    "request.auth": "the caller is agent here: agent.id, agent.groups",
    "request.time": "use clock.now_s (seconds since 1970), clock.hour_utc, clock.weekday_utc",
    "request.method": "a policy sees the recognised action: action.operation, params.<name>",
    "request.path": "a policy sees the recognised action: action.operation, params.<name>",
    "request.url": "a policy sees the recognised action: action.operation, action.host, params.<name>",
    "request.host": "did you mean action.host?",
    "request.headers": "headers are not read by policies; let the surface map extract a parameter: params.<name>",
    "request.body": "the body is not read by policies; the surface map extracts parameters: params.<name>",
    "request.params": "parameters are params.<name>",
    "request.query": "the query is not read by policies; the surface map extracts parameters: params.<name>",
    "approvals.role": "approvals are a list; write approvals.exists(a, a.role == ...)",
}

# Words that stand where an operator would.
WORDS: Final[dict[str, str]] = {
    **dict.fromkeys(["and", "AND", "And"], "did you mean '&&'?"),
    **dict.fromkeys(["or", "OR", "Or"], "did you mean '||'?"),
    **dict.fromkeys(["not", "NOT", "Not"], "did you mean '!'?"),
    **dict.fromkeys(["is", "eq", "equals", "EQ"], "did you mean '=='?"),
    **dict.fromkeys(["IN", "In", "within", "of"], "did you mean 'in'?"),
    **dict.fromkeys(["ne", "lt", "le", "gt", "ge", "gte", "lte"], "did you mean one of != < <= > >=?"),
    **dict.fromkeys(["matches", "like", "LIKE", "=~"], _REGEX_INSTEAD),
    **dict.fromkeys(["contains", "startsWith", "endsWith"], "it is a method: write x.contains(y)"),
    **dict.fromkeys(["between", "BETWEEN"], "write a <= x && x <= b"),
    "if": "write the condition: test ? a : b, or test && a",
    "then": "write test ? a : b",
    "else": "write test ? a : b",
    "exists": "write has(x.y), or list.exists(v, ...)",
}

# Words that stand where a value would.
LITERALS: Final[dict[str, str]] = {
    **dict.fromkeys(["True", "TRUE"], "did you mean 'true'?"),
    **dict.fromkeys(["False", "FALSE"], "did you mean 'false'?"),
    **dict.fromkeys(
        ["null", "None", "nil", "undefined", "NULL"],
        "null is not in cel-strict/1; test presence with has(x.y)",
    ),
    "const": "'const' is a reserved word of CEL; did you mean 'constants'?",
    "if": "'if' is a reserved word of CEL; write test ? a : b, or test && a",
    "for": "'for' is a reserved word of CEL; write x.exists(v, ...) or x.all(v, ...)",
}

# Signs that a word processor or a mathematician writes.
ALIKE: Final[dict[str, str]] = {
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "∧": "&&",
    "\u2228": "||",
    "¬": "!",
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": "*",
    "÷": "/",
    "∈": "in",
}

# Signs of other languages, longest first where one begins another.
SIGNS: Final[tuple[tuple[str, str], ...]] = (
    ("===", "did you mean '=='?"),
    ("!==", "did you mean '!='?"),
    ("<>", "did you mean '!='?"),
    ("=>", "did you mean '>='? A greater-or-equal sign has its = last"),
    ("=<", "did you mean '<='? A less-or-equal sign has its = last"),
    ("=~", _REGEX_INSTEAD),
    (":=", "there are no assignments; use constants.<name>"),
    ("??", _DEFAULT),
    ("->", "unexpected '->'; fields are named with '.'"),
    ("**", "powers are not in cel-strict/1"),
    ("++", "unexpected '++'; write x + 1"),
    ("${", "there are no placeholders; name the value: params.<name>"),
    ("{{", "there are no placeholders; name the value: params.<name>"),
    ("$", "names have no '$' here; name the value: params.<name>"),
    ("@", "unexpected '@'"),
    (";", "one expression, without ';'; join conditions with && or ||"),
    ("^", "unexpected '^'; powers and exclusive or are not in cel-strict/1"),
    ("~", f"unexpected '~'; {_REGEX}use startsWith(), endsWith(), contains()"),
    (
        "#",
        "comments do not stand inside a folded condition (the text goes on behind them); put them above `when:`",
    ),
    ("\\", "unexpected '\\'; lines of a condition continue without a sign"),
    ("%{", "there are no placeholders; name the value: params.<name>"),
    ("{", "map and message literals ({...}) are not in cel-strict/1; maps are constants of the policy"),
    ("}", "unexpected '}'"),
    ("`", "quoted identifiers (`...`) are not in cel-strict/1"),
    ("&", "unexpected '&'; did you mean '&&'?"),
    ("|", "unexpected '|'; did you mean '||'?"),
    ("=", "unexpected '='; did you mean '=='?"),
)
