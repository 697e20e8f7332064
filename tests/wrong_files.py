"""Wrong policy, test, bundle and map files, as people write them who know another engine or YAML's habits.

Each entry changes one text of a good file. `¦` marks the place that the message must name; it is not part
of the file. The last column is what the message must say: how to mend it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BUNDLE", "BUNDLES", "MAP", "MAPS", "POLICIES", "POLICY", "SUITE", "SUITES", "Wrong"]

POLICY = """\
apiVersion: holdgate/v1
kind: Policy
metadata: {name: refunds, owner: risk@example.com}
spec:
  surface: payments.refund
  operations: [stripe.PostRefunds]
  constants: {small: 5000, currencies: [eur, usd], caps: {eur: 5000, usd: 6000}}
  rules:
  - id: small
    effect: permit
    when: >-
      params.currency in constants.currencies && params.amount >= 1
      && params.amount <= constants.small
  - id: foreign
    effect: deny
    when: has(params.account) && params.account != "acct_1"
    reason: only our own account
"""

SUITE = """\
apiVersion: holdgate/v1
kind: PolicyTest
metadata: {name: refunds-test}
spec:
  policy: refunds
  defaults:
    params: {amount: 100, currency: eur, live: true}
  cases:
  - name: small
    expect: {outcome: PERMIT, rules: [small]}
  - name: amounts
    matrix: {params.amount: [0, 5000, 5001]}
    expect_each: [SILENCE, PERMIT, SILENCE]
"""

BUNDLE = """\
apiVersion: holdgate/v1
kind: Bundle
metadata: {name: agents, owner: ops@example.com}
spec:
  agent_attrs:
    accounts: list<string>
    tier: {type: int, optional: true}
"""

MAP = """\
apiVersion: holdgate/v1
kind: SurfaceMap
metadata: {name: shop, owner: shop@example.com}
spec:
  hosts: [shop.example]
  principal: {from: header.authorization, as: bearer}
  defaults: {body: {decode: json, content_types: [application/json]}}
  operations:
  - id: buy
    match: {method: POST, path: /orders}
    surface: payments.charge
    effect: commit
    params:
      amount: {from: body.amount, type: int, required: true, material: true}
"""


class Wrong(NamedTuple):
    name: str
    old: str  # "": the new text is the whole file
    new: str
    says: str


_RULES = POLICY[POLICY.index("  - id: small") :]
_LONG = "params.live" + " && params.live" * 290
_WHEN = 'has(params.account) && params.account != "acct_1"'


def _when(name: str, condition: str, says: str) -> Wrong:
    """A wrong condition: in a plain scalar, or in folded text where YAML needs that."""
    if condition.lstrip("¦")[0] in "\"'[!{" or ": " in condition:
        return _folded(name, condition, says)
    return Wrong(name, _WHEN, condition, says)


def _folded(name: str, condition: str, says: str) -> Wrong:
    """A wrong condition, in folded text of its own lines."""
    return Wrong(name, _WHEN, ">-\n      " + condition, says)


POLICIES = [
    # --- the envelope ---
    Wrong(
        "API version of Kubernetes", "holdgate/v1", "¦admissionregistration.k8s.io/v1", "must be holdgate/v1"
    ),
    Wrong("kind of Kubernetes", "kind: Policy", "kind: ¦ValidatingAdmissionPolicy", "did you mean 'Policy'?"),
    Wrong("kind in lower case", "kind: Policy", "kind: ¦policy", "did you mean 'Policy'?"),
    Wrong("no kind", "kind: Policy\n", "", "needs the key 'kind'"),
    Wrong("rules outside spec", "spec:\n", "¦rules: []\nspec:\n", "did you mean under `spec:`?"),
    Wrong("spec misspelt", "spec:", "¦specs:", "did you mean 'spec'?"),
    Wrong("apiversion", "apiVersion:", "¦apiversion:", "did you mean 'apiVersion'?"),
    Wrong(
        "no owner",
        "{name: refunds, owner: risk@example.com}",
        "{¦name: refunds}",
        "who answers for this policy",
    ),
    Wrong("labels of Kubernetes", "owner: risk@example.com", "owner: a, ¦labels: {a: b}", "a comment (#)"),
    Wrong("name with a space", "name: refunds", "name: ¦my refunds", "must be 1-64 letters, digits"),
    Wrong("name with a slash", "name: refunds", "name: ¦payments/refunds", "must be 1-64 letters, digits"),
    Wrong("empty file", "", "¦", "exactly one YAML document expected"),
    Wrong("only comments", "", "¦# nothing here yet\n", "exactly one YAML document expected"),
    Wrong(
        "a list of rules alone",
        "",
        "¦- id: a\n  effect: permit\n",
        "the document must be a mapping, not a list",
    ),
    Wrong("two documents", "kind: Policy\n", "kind: Policy\n¦---\n", "a file of its own"),
    Wrong(
        "an AWS policy",
        "",
        '{¦"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}',
        "looks like an AWS policy",
    ),
    Wrong(
        "a Cerbos policy",
        "",
        "apiVersion: api.cerbos.dev/v1\n¦resourcePolicy:\n  version: default\n",
        "looks like a Cerbos policy",
    ),
    Wrong(
        "Rego", "", "¦package refunds\n\nallow if input.amount < 5000\n", "must be a mapping, not a string"
    ),
    Wrong("an Envoy RBAC", "", "¦name: envoy.filters.http.rbac\nrules: {}\n", "under `metadata:`"),
    # --- the spec ---
    Wrong("resource", "  surface:", "  ¦resource:", "did you mean 'surface'?"),
    Wrong("actions", "  operations:", "  ¦actions:", "did you mean 'operations'?"),
    Wrong("variables", "  constants:", "  ¦variables:", "did you mean 'constants'?"),
    Wrong("validations", "  rules:", "  ¦validations:", "did you mean 'rules'?"),
    Wrong("failurePolicy", "  rules:", "  ¦failurePolicy: Ignore\n  rules:", "whatever fails is SILENCE"),
    Wrong("default effect", "  rules:", "  ¦default: deny\n  rules:", "what no rule permits is SILENCE"),
    Wrong("surface misspelt", "payments.refund\n", "¦payments.refunds\n", "did you mean 'payments.refund'?"),
    Wrong(
        "surface unknown",
        "payments.refund\n",
        "¦stripe\n",
        "there are: data.delete, data.read, payments.refund",
    ),
    Wrong("surface with a star", "payments.refund\n", "¦payments.*\n", "did you mean 'payments.refund'?"),
    Wrong(
        "surface as a list", "surface: payments.refund", "surface: ¦[payments.refund]", "a string, not a list"
    ),
    Wrong(
        "operation misspelt",
        "stripe.PostRefunds]",
        "¦stripe.PostRefund]",
        "did you mean 'stripe.PostRefunds'?",
    ),
    Wrong(
        "operation without vendor",
        "[stripe.PostRefunds]",
        "[¦PostRefunds]",
        "did you mean 'stripe.PostRefunds'?",
    ),
    Wrong(
        "operation as a string", "[stripe.PostRefunds]", "¦stripe.PostRefunds", "must be a list, not a string"
    ),
    Wrong("operation star", "[stripe.PostRefunds]", "[¦'*']", "leave `operations` out"),
    Wrong("no operations", "[stripe.PostRefunds]", "¦[]", "leave it out to mean every operation"),
    Wrong("an operation twice", "[stripe.PostRefunds]", "[stripe.PostRefunds, ¦stripe.PostRefunds]", "twice"),
    Wrong(
        "rules as a mapping", _RULES, "    ¦small: {effect: permit, when: params.live}\n", "must be a list"
    ),
    Wrong("no rules", _RULES, "    ¦[]\n", "needs at least one rule"),
    Wrong(
        "rules without content",
        POLICY[POLICY.index("  rules:") :],
        "  rules:¦\n",
        "must be a list, not nothing",
    ),
    # --- constants ---
    Wrong(
        "float constant",
        "small: 5000",
        "small: ¦50.00",
        "50.00 is a text here; write an integer (money in minor units)",
    ),
    Wrong("constant with an underscore", "small: 5000", "small: ¦5_000", "5_000 is a text here"),
    Wrong("octal constant", "small: 5000", "small: ¦05000", "05000 is a text here"),
    Wrong("quoted constant", "small: 5000", "small: '5000'", "numbers are written without quotes"),
    Wrong("exponent constant", "small: 5000", "small: ¦5e3", "5e3 is a text here"),
    Wrong("constant null", "small: 5000", "small: ¦null", "must not be null"),
    Wrong("constant without value", "small: 5000", "small: ", "must not be null"),
    Wrong("constant too large", "small: 5000", "small: ¦99999999999999999999", "64 bits"),
    Wrong("constant with a dash", "small: 5000", "¦max-amount: 1, small: 5000", "letters, digits and _"),
    Wrong(
        "constant of lists", "[eur, usd]", "¦[[eur], [usd]]", "may hold integers, strings and booleans only"
    ),
    Wrong("mixed list", "[eur, usd]", "¦[eur, 5]", "mixes items of different types"),
    Wrong("empty list", "[eur, usd]", "¦[]", "needs at least one item"),
    # --- rules ---
    Wrong("effect allow", "effect: permit", "effect: ¦allow", "did you mean 'permit'?"),
    Wrong("effect of AWS", "effect: permit", "effect: ¦Allow", "did you mean 'permit'?"),
    Wrong("effect of Cerbos", "effect: deny", "effect: ¦EFFECT_DENY", "did you mean 'deny'?"),
    Wrong("effect forbid", "effect: deny", "effect: ¦forbid", "did you mean 'deny'?"),
    Wrong("effect block", "effect: deny", "effect: ¦block", "did you mean 'deny'?"),
    Wrong("effect in capitals", "effect: permit", "effect: ¦PERMIT", "did you mean 'permit'?"),
    Wrong("effect true", "effect: permit", "effect: ¦true", "must be a string, not the boolean true"),
    Wrong("effect approve", "effect: permit", "effect: ¦approve", "did you mean 'review'?"),
    Wrong("no effect", "    effect: deny\n", "", "a rule needs the key 'effect'"),
    Wrong("no id", "  - id: foreign\n    effect", "  - ¦effect", "a rule needs the key 'id'"),
    Wrong("no condition", f"    when: {_WHEN}\n", "", "a rule needs the key 'when'"),
    Wrong("name for id", "- id: foreign", "- ¦name: foreign", "did you mean 'id'?"),
    Wrong("condition for when", "    when: has", "    ¦condition: has", "did you mean 'when'?"),
    Wrong("expression for when", "    when: has", "    ¦expression: has", "did you mean 'when'?"),
    Wrong("if for when", "    when: has", "    ¦if: has", "did you mean 'when'?"),
    Wrong("message for reason", "    reason:", "    ¦message:", "did you mean 'reason'?"),
    Wrong("no reason", "    reason: only our own account\n", "", "needs a `reason`"),
    Wrong("empty reason", "reason: only our own account", "reason: ¦''", "one sentence"),
    Wrong("priority", "    reason:", "    ¦priority: 10\n    reason:", "the order of rules never matters"),
    Wrong("roles in a rule", "    reason:", "    ¦roles: [admin]\n    reason:", "agent.groups"),
    Wrong("id twice", "id: foreign", "id: ¦small", "exists already in line 9"),
    Wrong("id with a space", "id: foreign", "id: ¦no foreign", "must be 1-64 letters, digits"),
    Wrong("id a number", "id: foreign", "id: ¦1", "must be a string, not the number 1"),
    Wrong("when true", f"when: {_WHEN}", "when: ¦true", "write `when: always`"),
    Wrong("when empty", f"when: {_WHEN}", "when:¦", "write `when: always`"),
    Wrong("when a list", f"when: {_WHEN}", "when: ¦[a, b]", "join the conditions with && or ||"),
    Wrong("when a mapping", f"when: {_WHEN}", "when: ¦{all: [a, b]}", "one text"),
    Wrong(
        "permit always",
        "effect: deny\n    when: " + _WHEN,
        "effect: permit\n    when: ¦always",
        "every request",
    ),
    Wrong(
        "permit true",
        "effect: deny\n    when: " + _WHEN,
        'effect: permit\n    when: ¦"true"',
        "every request",
    ),
    Wrong(
        "permit 1 == 1",
        "effect: deny\n    when: " + _WHEN,
        "effect: permit\n    when: ¦1 == 1",
        "every request",
    ),
    Wrong(
        "permit x || true",
        "effect: deny\n    when: has",
        "effect: permit\n    when: ¦true || has",
        "every request",
    ),
    Wrong(
        "a deny that allows all", "    reason:", "    unsafe_allow_all: ¦true\n    reason:", "remove it here"
    ),
    Wrong("unsafe yes", "    reason:", "    unsafe_allow_all: ¦yes\n    reason:", "true or false"),
    # --- YAML ---
    Wrong(
        "key twice",
        "    reason: only our own account\n",
        "    reason: a\n    ¦reason: b\n",
        "stands in line 17",
    ),
    Wrong("spec twice", "spec:\n", "spec: {}\n¦spec:\n", "duplicate key 'spec'"),
    Wrong("tab", "    effect: deny", "¦\teffect: deny", "use spaces"),
    Wrong("wrong indentation", "    effect: deny", "   ¦effect: deny", "indentation"),
    Wrong("no space after a colon", "effect: deny", "effect:deny\n    ¦when", "`key: value`"),
    Wrong("anchor", "constants: {", "constants: ¦&c {", "anchors (&name)"),
    Wrong("alias", f"when: {_WHEN}", "when: ¦*cond", "aliases (*name)"),
    Wrong("merge key", "constants: {", "constants: {¦<<: {a: 1}, ", "merge keys"),
    Wrong("tag", "small: 5000", "small: ¦!!int 5000", "tags (!name)"),
    Wrong("unquoted !", f"when: {_WHEN}", 'when: ¦!has(params.account) || params.account == "a"', "`>-`"),
    Wrong("unquoted &&", f"when: {_WHEN}", "when: ¦&& params.live", "`>-`"),
    Wrong("begins with a quote", f"when: {_WHEN}", 'when: ¦"eur" == params.currency', "`>-` and a new line"),
    Wrong("begins with a bracket", f"when: {_WHEN}", "when: ¦[1] == [1]", "`>-` and a new line"),
    Wrong("begins with a brace", f"when: {_WHEN}", "when: {¦{ params.live }}", "keys must be plain strings"),
    Wrong("unquoted colon", "reason: only our own account", "reason: refused¦: not ours", "needs quotes"),
    Wrong("ternary unquoted", f"when: {_WHEN}", "when: params.live ? true ¦: false", "needs quotes"),
    Wrong("open quote", "reason: only our own account", 'reason: ¦"only our own account', "closing quote"),
    Wrong("open bracket", "[eur, usd], caps", "¦[eur, usd, caps", "without its `]`"),
    Wrong(
        "typographic quotes in YAML", "reason: only our own account", "reason: ¦“ours”", "not a quote of YAML"
    ),
    Wrong("typographic quotes", '!= "acct_1"', "!= ¦“acct_1”", "typographic quote"),
    Wrong("carriage returns", "kind: Policy\n", "kind: Policy¦\r\n", "plain LF"),
    Wrong("byte order mark", "apiVersion", "¦\ufeffapiVersion", "without BOM"),
    Wrong("NUL", "our own account", "our¦\x00 own account", "U+0000"),
    Wrong("escape character", "our own account", "our¦\x1b[2K own account", "U+001B"),
    Wrong("zero width space", '"acct_1"', '"acct_1¦\u200b"', "ZERO WIDTH SPACE"),
    Wrong("right-to-left override", "own account", "own ¦\u202eaccount", "RIGHT-TO-LEFT OVERRIDE"),
    Wrong("isolate", '"acct_1"', '"¦\u2066acct_1"', "LEFT-TO-RIGHT ISOLATE"),
    Wrong("line separator", "own account", "own¦\u2028account", "LINE SEPARATOR"),
    Wrong("tag characters", '"acct_1"', '"acct_1¦\U000e0041"', "TAG LATIN CAPITAL LETTER A"),
    Wrong("no-break space", "&& params.account !=", "&&¦\u00a0params.account !=", "U+00A0"),
    Wrong("Cyrillic letter", "&& params.account !=", "&& p¦\u0430rams.account !=", "CYRILLIC SMALL LETTER A"),
    # --- names ---
    _when("misspelt parameter", "params.¦amout > 5", "did you mean 'params.amount'?"),
    _when("parameter of another surface", "params.¦bucket == 'a'", "params has no field 'bucket'"),
    _when("forgotten params", "¦amount > 5000", "did you mean 'params.amount'?"),
    _when("const", "params.amount > ¦const.small", "did you mean 'constants'?"),
    _when("constant misspelt", "params.amount > constants.¦smal", "did you mean 'constants.small'?"),
    _when("constant without a root", "params.amount > ¦small", "did you mean 'constants.small'?"),
    _when("Kubernetes object", "¦object.spec.replicas > 5", "Kubernetes' object is `params` here"),
    _when("Cerbos R", "¦R.attr.amount > 5000", "params.<name>"),
    _when("Cerbos request", "request.¦resource.attr.amount > 5", "params.<name>"),
    _when("Cerbos P", '¦P.attr.tier == "gold"', "agent.attrs.<name>"),
    _when("OPA input", "¦input.amount > 5000", "params.<name>"),
    _when("AWS principal", '¦principal.id == "bot"', "agent.id"),
    _when("Google request time", "request.¦time > 5", "clock.now_s"),
    _when("Google resource", '¦resource.name.startsWith("a")', "params.<name>"),
    _when("agent name", 'agent.¦name == "bot"', "did you mean agent.id?"),
    _when("agent roles", '"admin" in agent.¦roles', "did you mean agent.groups?"),
    _when("undeclared attribute", 'agent.attrs.¦team == "a"', "write it into `agent_attrs`"),
    _when("undeclared counter", "counters.¦day.sum < 5", "write it into spec.counters"),
    _when("action name", 'action.¦name == "x"', "did you mean action.operation?"),
    _when("clock now", "clock.¦now > 5", "clock.now_s"),
    _when("approvals role", '¦approvals.role == "a"', "approvals.exists(a, a.role == ...)"),
    _when("counters undeclared", "counters.¦day.sum > 5", "counters has no field"),
    # --- types and guards ---
    _when("unguarded optional", '¦params.account != "acct_1"', "guard it: has(params.account) && ..."),
    _when("guard behind", '¦params.account == "a" && has(params.account)', "guard it"),
    _when("guard of another", '!has(params.tags) && ¦params.account == "a"', "guard it"),
    _when("guard in an or", 'has(params.account) || ¦params.account == "a"', "guard it"),
    _when("text for a number", '¦params.amount > "5000"', "numbers are written without quotes"),
    _when("number for a text", "¦params.currency == 5", "found string and int"),
    _when("no comparison", "¦params.amount", "must be bool, found int"),
    _when("number as bool", "¦params.amount && params.live", "&& needs bool, found int"),
    _when("chained comparison", "¦1 < params.amount < 5000", "write a < b && b < c"),
    _when("map with a dot", "params.amount > ¦constants.caps.eur", '["eur"]'),
    _when("record in brackets", '¦params["amount"] > 5', "write params.amount"),
    _when("list index", "has(params.tags) && ¦params.tags[0] == 'a'", "lists have no [...]"),
    _when("in a text", '"eu" in ¦params.currency', "x.contains(y)"),
    _when("contains of a list", "¦constants.currencies.contains(params.currency)", "`item in list`"),
    _when("joined texts", '¦params.currency + "x" == "eurx"', "+ joins integers only"),
    _when("always fails", "¦1 / 0 == 1", "always fails"),
    # --- what CEL has and the profile has not ---
    _when("regular expression", 'params.currency.¦matches("^eu")', "startsWith()"),
    _when("double", "params.amount > ¦50.00", "50.00 is 5000"),
    _when("unsigned", "params.amount > ¦50u", "without the u"),
    _when("timestamp", '¦timestamp("2026-01-01T00:00:00Z") < 5', "clock.now_s"),
    _when("duration", 'clock.now_s - ¦duration("5m") > 0', "write seconds"),
    _when("now", "¦now() > 5", "clock.now_s"),
    _when("map macro", "size(constants.currencies.¦map(c, c)) > 0", "x.exists(v, ...)"),
    _when("filter macro", "size(constants.currencies.¦filter(c, c == 'eur')) > 0", "x.exists(v, ...)"),
    _when("size method", "constants.currencies.¦size() > 0", "write size(x), not x.size()"),
    _when("length", "¦params.currency.length > 3", "write size(params.currency)"),
    _when("null", "params.amount == ¦null", "has(x.y)"),
    _when("bytes", 'params.currency == ¦b"eur"', "bytes"),
    _when("dyn", "¦dyn(params.amount) > 5", "remove dyn("),
    _when("conversion", '¦int("5") > params.amount', "the surface map declares the type"),
    _when("lower case", 'params.currency.¦lowerAscii() == "eur"', "list the spellings"),
    _when("split", 'params.currency.¦split(",") == ["eur"]', "let the surface map extract"),
    _when("optional chaining", "params.¦?account == 'a'", "use has()"),
    _when("backticks", "params.¦`amount` > 5", "quoted identifiers"),
    _when("map literal", "params.currency in ¦{'eur': 1}", "constants of the policy"),
    _when("has with brackets", 'has(¦constants.caps["eur"])', '"eur" in the_map'),
    _when("has of a root", "has(¦params)", "such as has(params.memo)"),
    _when("comment", "params.amount > 5 ¦// five", "use YAML's #"),
    _when("hexadecimal", "params.amount > ¦0xff", "in decimal"),
    _when("underscore in a number", "params.amount > 5¦_000", "write them together"),
    # --- other languages ---
    _when("and", "params.live ¦and params.amount > 5", "did you mean '&&'?"),
    _when("or", "params.live ¦OR params.amount > 5", "did you mean '||'?"),
    _when("not", "params.live && ¦not params.live", "did you mean '!'?"),
    _when("not in", "params.currency ¦not in ['eur']", "!"),
    _when("True", "params.live == ¦True", "did you mean 'true'?"),
    _when("single =", "params.amount ¦= 5", "did you mean '=='?"),
    _when("triple =", "params.amount ¦=== 5", "did you mean '=='?"),
    _when("<>", "params.amount ¦<> 5", "did you mean '!='?"),
    _when("=>", "params.amount ¦=> 5", "did you mean '>='?"),
    _when("=~", 'params.currency ¦=~ "eu.*"', "startsWith()"),
    _when("single &", "params.live ¦& params.live", "did you mean '&&'?"),
    _when("placeholder", "¦${params.amount} > 5", "name the value"),
    _when("len", "¦len(params.currency) == 3", "size(x)"),
    _when("startswith", 'params.currency.¦startswith("e")', "startsWith"),
    _when("if", "¦if params.live then true", "test ? a : b"),
    _when("between", "params.amount ¦between 1 and 5", "a <= x && x <= b"),
    _when("semicolon", "params.live¦;", "without ';'"),
    _when("two conditions", "params.live ¦params.amount > 5", "joined with && or ||"),
    _when("open parenthesis", "(params.live && params.amount > 5¦", "expected ')'"),
    _when("extra parenthesis", "params.live¦)", "nothing is open"),
    _when("ends with &&", "params.live &&¦", "found the end"),
    _when("single quote open", "params.currency == ¦'eur", "no closing quote"),
    # --- of a word processor, a spreadsheet, a template ---
    _when("list in parentheses", 'params.currency in ¦("eur", "usd")', "written in brackets"),
    _when("greater-or-equal sign", "params.amount ¦\u2265 5", "did you mean '>='?"),
    _when("logical and", "params.live ¦\u2227 params.amount > 5", "did you mean '&&'?"),
    _when("minus sign", "params.amount > ¦\u22125", "did you mean '-'?"),
    _when("full-width sign", "params.amount ¦\uff1e 5", "did you mean '>'?"),
    _when("full-width digit", "params.amount > ¦\uff15", "did you mean '5'?"),
    _when("Greek letter", "p¦\u03b1rams.amount > 5", "plain letters"),
    _when("euro sign", "params.amount <= 50¦\u20ac", "the currency's minor unit"),
    _when("thousands", "params.amount <= 5¦,000", "no comma between thousands"),
    _when("date", "clock.now_s < 2026-¦01-01", "there are no dates"),
    _when("kilo", "params.amount <= 5¦k", "5k is 5000"),
    _when("minutes", "clock.now_s < 5¦m", "in seconds"),
    _when("percent", "params.amount <= 10%¦", "found the end"),
    _when("two ands", "params.live && ¦&& params.live", "found '&&'"),
    _when("like", "params.currency ¦like 'e%'", "startsWith()"),
    _when("is null", "params.account ¦is null", "did you mean '=='?"),
    _when("power", "params.amount ¦** 2 > 1", "powers"),
    _when("ternary without else", "params.live ? true¦", "':' of the ?:"),
    _when("SQL quotes missing", "params.currency == ¦eur", "unknown name 'eur'"),
    _when("approval as a flag", "¦approved", "approvals.exists(a, a.role == ...)"),
    _when("two approvals", "approvals.¦size() >= 2", "write size(x), not x.size()"),
    _when("time as a text", '¦clock.hour_utc < "20:00"', "found int and string"),
    _when("one-armed exists", 'agent.groups.exists¦(g == "x")', "takes 2 arguments"),
    _when("JSON path", "¦$.params.amount > 1", "name the value"),
    _when("has of a text", 'has(¦"params.account")', "such as has(params.memo)"),
    _when("long", _LONG[:4096] + "¦" + _LONG[4096:], "longer than 4096 characters"),
    _when("deep", "(" * 32 + "¦(" * 1 + "(" * 9 + "params.live" + ")" * 42, "nested deeper than 32"),
    Wrong("constant from another", "small: 5000", "small: ¦constants.largest", "not computed"),
    Wrong("constant computed", "small: 5000", "small: ¦50 * 100", "not computed"),
    Wrong("constant in euro", "small: 5000", "small: ¦50 EUR", "in the minor unit"),
    Wrong("constant with a sign", "small: 5000", "small: ¦\u20ac50.00", "in the minor unit"),
    Wrong("constant without end", "small: 5000", "small: ¦.inf", "not computed"),
    Wrong("Cyrillic key", "    effect: deny", "    ¦\u0435ffect: deny", "CYRILLIC SMALL LETTER IE"),
    Wrong("Cyrillic effect", "effect: deny", "effect: ¦d\u0435ny", "CYRILLIC SMALL LETTER IE"),
    Wrong("Greek surface", "payments.refund\n", "¦p\u03b1yments.refund\n", "GREEK SMALL LETTER ALPHA"),
    Wrong("Jinja", "  rules:", "  {¦% if prod %}\n  rules:", "cannot begin with this character"),
    Wrong("Helm", "small: 5000", "small: {¦{ .Values.small }}", "is not expanded here"),
    Wrong("python object", "small: 5000", "small: ¦!!python/name:os.system 1", "tags (!name)"),
    Wrong(
        "more behind the end", "reason: only our own account\n", "reason: a\n...\n¦more: 1\n", "indentation"
    ),
    Wrong("soft hyphen", "payments.refund\n", "pay¦\u00adments.refund\n", "SOFT HYPHEN"),
    Wrong("TOML", "", '¦apiVersion = "holdgate/v1"\n', "must be a mapping, not a string"),
    Wrong("Cedar", "", "¦permit(principal, action, resource);\n", "must be a mapping, not a string"),
    Wrong("binary", "", "¦\x00\x01ELF", "U+0000"),
    Wrong(
        "counter of a day",
        "  rules:",
        "  counters: {d: {key: [agent.id], window: ¦1 day, measure: count}}\n  rules:",
        "24h",
    ),
    Wrong(
        "counter averages",
        "  rules:",
        "  counters: {d: {key: [agent.id], window: 24h, measure: ¦avg(params.amount)}}\n  rules:",
        "sum(params.NAME)",
    ),
    Wrong(
        "counters as a list",
        "  rules:",
        "  counters: ¦[{name: d}]\n  rules:",
        "must be a mapping, not a list",
    ),
    Wrong("mode audit", "  rules:", "  ¦mode: audit\n  rules:", "did you mean 'shadow'?"),
    Wrong("shadow on", "  rules:", "  shadow: ¦on\n  rules:", "true or false"),
    Wrong("rule switched off", "    reason:", "    ¦enabled: false\n    reason:", "remove the rule"),
    Wrong("next version", "holdgate/v1", "¦holdgate/v2", "must be holdgate/v1"),
    Wrong("owners", "owner: risk@example.com", "owner: ¦[a, b]", "a string, not a list"),
    Wrong("a number for a name", "name: refunds", "name: ¦42", "a string, not the number 42"),
    Wrong("nested operations", "[stripe.PostRefunds]", "[¦[stripe.PostRefunds]]", "a string, not a list"),
    Wrong(
        "reason lost in a comment", "reason: only our own account", "reason:¦ #no", "a string, not nothing"
    ),
    # --- places in text of several lines ---
    _folded("second line", "params.live\n      && params.¦amout > 5", "did you mean 'params.amount'?"),
    _folded(
        "third line", 'params.live\n      && params.amount > 1\n      && "x" == ¦params.account', "guard it"
    ),
    Wrong("literal text", _WHEN, "|\n      params.live\n        && params.¦amout > 5\n", "did you mean"),
    Wrong("double-quoted", _WHEN, '"params.currency == \\"eur\\" && params.¦amout > 5"', "did you mean"),
    Wrong("single-quoted", _WHEN, "'params.currency == ''eur'' && params.¦amout > 5'", "did you mean"),
    Wrong("plain, continued", _WHEN, "params.live\n      && params.¦amout > 5", "did you mean"),
    _folded(
        "long folded", " && ".join(["params.live"] * 12) + "\n      && params.¦amout > 5", "did you mean"
    ),
    _folded("letters beyond ASCII", 'params.currency != "é😀"\n      && params.¦amout > 5', "did you mean"),
]

BUNDLES = [
    Wrong("type of Python", "accounts: list<string>", "accounts: ¦list[str]", "did you mean 'list<string>'?"),
    Wrong("type str", "accounts: list<string>", "accounts: ¦str", "did you mean 'string'?"),
    Wrong("type double", "accounts: list<string>", "accounts: ¦double", "must be one of: int, string"),
    Wrong("attributes", "  agent_attrs:", "  ¦attributes:", "did you mean 'agent_attrs'?"),
    Wrong("required", "optional: true", "¦required: false", "allowed: type, optional"),
    Wrong("optional yes", "optional: true", "optional: ¦yes", "must be true or false"),
    Wrong("name with a dash", "    tier:", "    ¦max-tier:", "letters, digits and _"),
    Wrong("an attribute twice", "    tier:", "    ¦accounts:", "duplicate key 'accounts'"),
    Wrong(
        "attributes as a list",
        "    accounts: list<string>\n    tier",
        "    ¦- accounts\n    - tier",
        "a mapping",
    ),
]

SUITES = [
    Wrong("unknown policy", "policy: refunds", "policy: ¦refund", "did you mean 'refunds'?"),
    Wrong("no policy", "  policy: refunds\n", "", "either `policy` or `surface`"),
    Wrong(
        "policy and surface", "  policy: refunds\n", "  policy: refunds\n  surface: a\n", "either `policy` or"
    ),
    Wrong(
        "unknown surface", "policy: refunds", "surface: ¦payments.refnd", "did you mean 'payments.refund'?"
    ),
    Wrong("tests for cases", "  cases:", "  ¦tests:", "did you mean 'cases'?"),
    Wrong(
        "input for with",
        "  - name: small\n",
        "  - name: small\n    ¦input: {params: {amount: 1}}\n",
        "'with'?",
    ),
    Wrong(
        "params outside with",
        "  - name: small\n",
        "  - name: small\n    ¦params: {amount: 1}\n",
        "with: {...}",
    ),
    Wrong("no expectation", "    expect: {outcome: PERMIT, rules: [small]}\n", "", "a case needs `expect`"),
    Wrong("no name", "  - name: small\n    expect", "  - ¦expect", "needs the key 'name'"),
    Wrong("outcome allow", "outcome: PERMIT", "outcome: ¦ALLOW", "did you mean 'PERMIT'?"),
    Wrong("outcome in lower case", "outcome: PERMIT", "outcome: ¦permit", "did you mean 'PERMIT'?"),
    Wrong("outcome review", "outcome: PERMIT", "outcome: ¦REVIEW", "did you mean 'SILENCE'?"),
    Wrong("outcome of Cerbos", "outcome: PERMIT", "outcome: ¦EFFECT_ALLOW", "did you mean 'PERMIT'?"),
    Wrong("decision for outcome", "outcome: PERMIT", "¦decision: PERMIT", "did you mean 'outcome'?"),
    Wrong("unknown reason", "outcome: PERMIT", "outcome: PERMIT, reason: ¦permitted", "must be one of"),
    Wrong(
        "reason of another outcome",
        "outcome: PERMIT",
        "outcome: PERMIT, reason: ¦deny_rule",
        "deny_rule is DENY",
    ),
    Wrong(
        "rule of another effect",
        "outcome: PERMIT, rules: [small]",
        "outcome: DENY, rules: [¦small]",
        "a permit rule",
    ),
    Wrong("unknown rule", "rules: [small]", "rules: [¦smal]", "did you mean 'small'?"),
    Wrong("rules as a text", "rules: [small]", "rules: ¦small", "must be a list"),
    Wrong("PERMIT without a rule", "rules: [small]", "rules: ¦[]", "at least one rule"),
    Wrong("parameter misspelt", "{amount: 100", "{¦amout: 100", "did you mean 'amount'?"),
    Wrong(
        "parameter of another surface",
        "{amount: 100",
        "{¦bucket: a, amount: 100",
        "has no parameter 'bucket'",
    ),
    Wrong("amount as a text", "{amount: 100", '{amount: ¦"100"', "params.amount is int"),
    Wrong("amount with a point", "{amount: 100", "{amount: ¦1.00", "1.00 is a text here; write an integer"),
    Wrong("flag yes", "live: true", "live: ¦yes", "params.live is bool"),
    Wrong("Norway", "currency: eur", "currency: ¦false", "params.currency is string"),
    Wrong(
        "unknown part", "    params: {", "    ¦parameters: {a: 1}\n    params: {", "did you mean 'params'?"
    ),
    Wrong("unknown clock field", "    params: {", "    clock: {¦hour: 3}\n    params: {", "hour_utc"),
    Wrong(
        "clock without zone",
        "    params: {",
        '    clock: {now: ¦"2026-03-02T12:00:00"}\n    params: {',
        "zone",
    ),
    Wrong("clock in words", "    params: {", "    clock: {now: ¦noon}\n    params: {", "a time such as"),
    Wrong("hour 25", "    params: {", "    clock: {hour_utc: ¦25}\n    params: {", "between 0 and 23"),
    Wrong(
        "approvals as a mapping",
        "    params: {",
        "    approvals: ¦{role: a}\n    params: {",
        "a list of mappings",
    ),
    Wrong("approval by", "    params: {", "    approvals: [{¦by: a}]\n    params: {", "allowed: id, role"),
    Wrong("groups as a text", "    params: {", "    agent: {groups: ¦admin}\n    params: {", "a list"),
    Wrong(
        "unknown attribute",
        "    params: {",
        "    agent: {attrs: {¦team: a}}\n    params: {",
        "no attribute 'team'",
    ),
    Wrong(
        "effect of a rule",
        "    params: {",
        "    action: {effect: ¦permit}\n    params: {",
        "read, prepare, commit",
    ),
    Wrong(
        "unknown operation",
        "    params: {",
        "    action: {operation: ¦stripe.X}\n    params: {",
        "PostRefunds",
    ),
    Wrong("matrix of two paths", "[0, 5000, 5001]}", "[0], params.live: [true]}", "one path"),
    Wrong("matrix without params", "{params.amount: [", "{¦amount: [", "params.<name>"),
    Wrong(
        "matrix of an unknown parameter", "{params.amount: [", "{params.amout: ¦[", "did you mean 'amount'?"
    ),
    Wrong("matrix with a wrong type", "[0, 5000, 5001]", "[0, 5000, ¦5001.5]", "5001.5 is a text here"),
    Wrong("matrix without values", "[0, 5000, 5001]", "¦[]", "has no values"),
    Wrong("expectations too few", "[SILENCE, PERMIT, SILENCE]", "¦[SILENCE, PERMIT]", "2 entries for 3"),
    Wrong("expect_each alone", "    matrix: {params.amount: [0, 5000, 5001]}\n", "", "needs a matrix"),
    Wrong("a case name twice", "name: amounts", "name: ¦small", "exists already"),
    Wrong(
        "missing file",
        "  - name: small\n",
        "  - name: small\n    request_file: ¦absent.http\n",
        "no such file",
    ),
    Wrong("no cases", SUITE[SUITE.index("  cases:") :], "  cases: ¦[]\n", "spec.cases is empty"),
]

MAPS = [
    Wrong("effect write", "effect: commit", "effect: ¦write", "read, prepare, commit, channel"),
    Wrong("effekt", "    effect:", "    ¦effekt:", "did you mean 'effect'?"),
    Wrong("endpoint", "  hosts:", "  ¦host:", "did you mean 'hosts'?"),
    Wrong("source misspelt", "body.amount", "¦boddy.amount", "is not a source"),
    Wrong("list unquoted between braces", "{from: body.amount,", "¦{from: body.items[],", '"body.items[]"'),
    Wrong("type number", "type: int", "type: ¦number", "is not one of: int, minor_units"),
    Wrong("path without a slash", "path: /orders", "path: ¦orders", "/"),
    Wrong("zero width in a path", "path: /orders", "path: /ord¦\u200bers", "ZERO WIDTH SPACE"),
    Wrong("bidi in a host", "shop.example]", "shop¦\u202e.example]", "RIGHT-TO-LEFT"),
    Wrong("required yes", "required: true", "required: ¦yes", "true or false"),
]
