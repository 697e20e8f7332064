"""Source text of one expression becomes a syntax tree, or a CelError with line, column and advice.

Recursive descent over CEL's own grammar, precedence included, minus what cel-strict/1 leaves out:

    expr     = or ["?" or ":" expr]
    or       = and {"||" and}            and   = relation {"&&" relation}
    relation = sum {("==" "!=" "<" "<=" ">" ">=" "in") sum}
    sum      = product {("+" "-") product}     product = unary {("*" "/" "%") unary}
    unary    = "!" unary | "-" member | member
    member   = primary {"." NAME ["(" args ")"] | "[" expr "]"}
    primary  = INT | STRING | true | false | NAME | "(" expr ")" | "[" expr {"," expr} "]"
             | ("has" | "size") "(" expr ")"

Invariants (tests/test_cel_parse.py):
  X3  parse() returns a tree no deeper than MAX_DEPTH, or raises CelError; nothing else, whatever the text.
  X4  Every text that parses here parses in CEL, to the same tree.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import get_close_matches
from typing import Final

from .foreign import FUNCTIONS, LITERALS, WORDS
from .lexer import RESERVED, Token, TokenKind, tokens, unexpected
from .model import (
    INT_MAX,
    MAX_DEPTH,
    Binary,
    Call,
    CelError,
    Conditional,
    Has,
    Ident,
    Index,
    ListLiteral,
    Literal,
    Logic,
    Node,
    Quantifier,
    Select,
    Unary,
)

__all__ = ["parse"]

_STRENGTH: Final = {
    **dict.fromkeys(["==", "!=", "<", "<=", ">", ">=", "in"], 1),
    **dict.fromkeys(["+", "-"], 2),
    **dict.fromkeys(["*", "/", "%"], 3),
}
_OP, _NAME = TokenKind.OP, TokenKind.NAME
_NO_FIELDS: Final = frozenset(("in", "true", "false", "null"))
_NO_NAMES: Final = frozenset(("true", "false", "in", "not", *LITERALS, *RESERVED))
_METHODS: Final = {"startsWith": 1, "endsWith": 1, "contains": 1, "exists": 2, "all": 2}


def parse(source: str) -> Node:
    """The syntax tree of one expression. Raises CelError."""
    if not source.strip():
        raise CelError("the condition is empty; write `always` if the rule has none", source, 0)
    reader = _Parser(source)
    node = reader.expression()
    reader.expect_end()
    return node


class _Parser:
    """Reads tokens left to right. `_nesting` bounds recursion where no node is made yet: ((((...))))."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens = found = tokens(source)
        # "" for anything that is not an operator, so that a string "(" is not a parenthesis.
        self._ops = [
            text if kind is _OP or (text == "in" and kind is _NAME) else "" for kind, text, _, _ in found
        ]
        self._at = 0
        self._nesting = 0
        self._token = found[0]
        self._op = self._ops[0]

    # --- reading tokens ---

    def _next(self) -> Token:
        """The token here; then the one after it is here. The last one, END, stays."""
        token = self._token
        at = self._at + 1
        if at < len(self._ops):
            self._at = at
            self._token = self._tokens[at]
            self._op = self._ops[at]
        return token

    def _is(self, text: str) -> bool:
        return self._op == text

    def _fail(self, message: str, offset: int | None = None) -> CelError:
        return CelError(message, self._source, self._token.start if offset is None else offset)

    def _expect(self, text: str, where: str) -> Token:
        if not self._is(text):
            raise self._fail(f"expected {text!r} {where}, found {_shown(self._token)}")
        return self._next()

    def expect_end(self) -> None:
        token = self._token
        if token.kind is TokenKind.END:
            return
        if token.kind is TokenKind.NAME and token.text in WORDS:
            raise self._fail(f"unexpected {token.text!r}; {WORDS[token.text]}")
        if self._is("?"):
            raise self._fail("a ?: inside ?: needs parentheses here")
        if self._is(")") or self._is("]"):
            raise self._fail(f"unexpected {token.text!r}: nothing is open here that it would close")
        raise self._fail(
            f"expected an operator or the end, found {_shown(token)}; conditions are joined with && or ||"
        )

    def _check_depth[N: Node](self, node: N) -> N:
        if node.depth > MAX_DEPTH:
            raise self._fail(f"nested deeper than {MAX_DEPTH} levels; write several rules", node.start)
        return node

    # --- grammar, loosest binding first ---

    def expression(self) -> Node:
        self._nesting += 1
        if self._nesting > MAX_DEPTH:
            raise self._fail(f"nested deeper than {MAX_DEPTH} levels; write several rules")
        test = self._disjunction()
        if self._is("?"):
            self._next()
            # As in CEL: no bare ?: between ? and :, which two readers could pair differently.
            then = self._disjunction()
            self._expect(":", "of the ?: expression")
            other = self.expression()
            depth = 1 + max(test.depth, then.depth, other.depth)
            test = self._check_depth(
                Conditional(start=test.start, end=other.end, depth=depth, test=test, then=then, other=other)
            )
        self._nesting -= 1
        return test

    def _disjunction(self) -> Node:
        node = self._conjunction()
        return self._chain("||", node, self._conjunction) if self._op == "||" else node

    def _conjunction(self) -> Node:
        node = self._relation()
        return self._chain("&&", node, self._relation) if self._op == "&&" else node

    def _chain(self, op: str, first: Node, operand: Callable[[], Node]) -> Node:
        # One flat node for a whole chain: long rules stay shallow.
        parts = [first]
        while self._op == op:
            self._next()
            parts.append(operand())
        depth = 1 + max(part.depth for part in parts)
        return self._check_depth(
            Logic(start=first.start, end=parts[-1].end, depth=depth, op=op, parts=tuple(parts))
        )

    def _relation(self, level: int = 1) -> Node:
        """Relations (level 1), sums (2) and products (3): left to right, tighter levels first."""
        node = self._unary() if self._op else self._member()
        while (strength := _STRENGTH.get(self._op, 0)) >= level:
            op = self._next().text
            right = self._relation(strength + 1)
            depth = 1 + (node.depth if node.depth > right.depth else right.depth)
            node = Binary(node.start, right.end, depth, op, node, right)
            if depth > MAX_DEPTH:
                self._check_depth(node)
        return node

    def _unary(self) -> Node:
        token = self._token
        if self._is("!"):
            count = 0
            while self._is("!"):
                self._next()
                count += 1
            operand = self._member()
            if count % 2 == 0:  # as in CEL; for bool there is no difference
                return operand
            return self._negation(token, "!", operand)
        if self._is("-"):
            self._next()
            if self._is("-"):
                # CEL reads --x as x, even where -x would overflow: too easy to misread.
                raise self._fail("two minus signs in a row; use parentheses")
            if self._token.kind is TokenKind.INT:
                return self._members(self._integer(self._next(), token.start))
            return self._negation(token, "-", self._member())
        return self._member()

    def _negation(self, token: Token, op: str, operand: Node) -> Node:
        return self._check_depth(
            Unary(start=token.start, end=operand.end, depth=operand.depth + 1, op=op, operand=operand)
        )

    def _member(self) -> Node:
        node = self._primary()
        return self._members(node) if self._op == "." or self._op == "[" else node

    def _members(self, node: Node) -> Node:
        while self._op == "." or self._op == "[":
            if self._next().text == "[":
                if self._is("?"):
                    raise self._fail("optional values ([?...]) are not in cel-strict/1; use has()")
                key = self.expression()
                end = self._expect("]", "after the key").end
                depth = 1 + max(node.depth, key.depth)
                node = Index(start=node.start, end=end, depth=depth, operand=node, key=key)
            else:
                node = self._dotted(node)
            if node.depth > MAX_DEPTH:
                self._check_depth(node)
        return node

    def _dotted(self, operand: Node) -> Node:
        if self._is("?"):
            raise self._fail("optional values (.?) are not in cel-strict/1; use has()")
        token = self._next()
        if token.kind is not TokenKind.NAME or token.text in _NO_FIELDS:
            raise self._fail(f"expected a field name after '.', found {_shown(token)}", token.start)
        if self._op == "(":
            return self._method(operand, token)
        return Select(operand.start, token.end, operand.depth + 1, operand, token.text)

    def _method(self, operand: Node, name: Token) -> Node:
        if name.text == "size":
            raise self._fail("write size(x), not x.size()", name.start)
        if name.text not in _METHODS:
            raise self._fail(_unknown_function(name.text), name.start)
        self._next()
        args, end = self._arguments(name.text, _METHODS[name.text])
        if name.text not in ("exists", "all"):
            depth = 1 + max(operand.depth, args[0].depth)
            return Call(
                start=operand.start, end=end, depth=depth, function=name.text, args=(operand, args[0])
            )
        variable, predicate = args
        if not isinstance(variable, Ident):
            message = f"the first argument of {name.text}() is a new variable name"
            raise self._fail(message, variable.start)
        return Quantifier(
            start=operand.start,
            end=end,
            depth=1 + max(operand.depth, predicate.depth),
            function=name.text,
            over=operand,
            variable=variable.name,
            predicate=predicate,
        )

    def _arguments(self, function: str, count: int) -> tuple[list[Node], int]:
        """The arguments after "(", and where ")" ends."""
        opening = self._tokens[self._at - 1].start
        args: list[Node] = []
        while not self._is(")"):
            args.append(self.expression())
            if not self._is(","):
                break
            self._next()
            if self._is(")"):
                raise self._fail(f"a comma, and no argument of {function}() behind it")
        end = self._expect(")", f"after the arguments of {function}()").end
        if len(args) != count:
            plural = "argument" if count == 1 else "arguments"
            raise self._fail(f"{function}() takes {count} {plural}, found {len(args)}", opening)
        return args, end

    def _primary(self) -> Node:
        token = self._next()
        kind = token.kind
        if kind is TokenKind.NAME:
            if self._op == "(" or token.text in _NO_NAMES:
                return self._name(token)
            return Ident(token.start, token.end, 1, token.text)
        if kind is TokenKind.STRING:
            return Literal(token.start, token.end, 1, token.text)
        if kind is TokenKind.INT:
            return self._integer(token, token.start)
        if token.text == "(":
            node = self.expression()
            # The node covers its parentheses, so that a slice of the source is an expression again.
            if self._is(","):
                raise self._fail("a list is written in brackets: [..., ...]", token.start)
            return node._replace(start=token.start, end=self._expect(")", "to close '('").end)
        if token.text == "[":
            return self._list(token)
        if token.text == ".":
            raise self._fail("names do not start with '.' in cel-strict/1", token.start)
        if token.kind is TokenKind.OP and token.text not in ("&&", "||", "=="):
            message, at = unexpected(self._source, token.start)
            if not message.startswith("unexpected character"):
                raise self._fail(message, at)
        raise self._fail(f"expected a value, found {_shown(token)}", token.start)

    def _integer(self, token: Token, start: int) -> Literal:
        value = int(token.text)
        if start != token.start:  # a minus stands before it, as part of the literal
            value = -value
        elif value > INT_MAX:
            raise self._fail("this integer does not fit into 64 bits", token.start)
        return Literal(start=start, end=token.end, depth=1, value=value)

    def _list(self, opening: Token) -> Node:
        items: list[Node] = []
        while not self._is("]"):
            items.append(self.expression())
            if not self._is(","):
                break
            self._next()
        end = self._expect("]", "to close the list").end
        if not items:
            raise self._fail("an empty list has no type; lists need at least one item", opening.start)
        depth = 1 + max(item.depth for item in items)
        return self._check_depth(ListLiteral(start=opening.start, end=end, depth=depth, items=tuple(items)))

    def _name(self, token: Token) -> Node:
        text = token.text
        if text in ("true", "false"):
            return Literal(start=token.start, end=token.end, depth=1, value=text == "true")
        if text in LITERALS:
            raise self._fail(LITERALS[text], token.start)
        if text == "in":
            raise self._fail("expected a value, found 'in'; for \"not in\" write !(x in y)", token.start)
        if text in RESERVED:
            raise self._fail(f"{text!r} is a reserved word of CEL", token.start)
        if text == "not" and not self._is("("):
            raise self._fail("did you mean '!'?", token.start)
        if self._is("("):
            return self._function(token)
        return Ident(start=token.start, end=token.end, depth=1, name=text)

    def _function(self, name: Token) -> Node:
        if name.text in _METHODS:
            example = "x.exists(v, ...)" if _METHODS[name.text] == 2 else f"x.{name.text}(y)"
            raise self._fail(f"{name.text} is a method: write {example}", name.start)
        if name.text not in ("has", "size"):
            raise self._fail(_unknown_function(name.text), name.start)
        self._next()
        (argument,), end = self._arguments(name.text, 1)
        depth = argument.depth + 1
        if name.text == "size":
            node: Node = Call(start=name.start, end=end, depth=depth, function="size", args=(argument,))
        elif isinstance(argument, Select):
            node = Has(start=name.start, end=end, depth=depth, target=argument)
        else:
            raise self._fail(_what_has_takes(argument), argument.start)
        return self._check_depth(node)


def _shown(token: Token) -> str:
    if token.kind is TokenKind.END:
        return "the end"
    return "a string" if token.kind is TokenKind.STRING else repr(token.text)


def _what_has_takes(argument: Node) -> str:
    if isinstance(argument, Index) and isinstance(argument.key, Literal):
        return f"has() takes a field, not [...]; for a map write {json.dumps(argument.key.value)} in the_map"
    return "has() takes a field, such as has(params.memo)"


def _unknown_function(name: str) -> str:
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    close = get_close_matches(name, ["has", "size", *_METHODS], n=1)
    if close:
        return f"unknown function {name!r}; did you mean {close[0]!r}?"
    return f"unknown function {name!r}; there are has, size, startsWith, endsWith, contains, exists and all"
