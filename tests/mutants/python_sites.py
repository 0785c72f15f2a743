"""Where Python can be changed: comparisons, and with or, whole numbers, conditions, statements of functions.

As in c_sites.py, all mutants of a source are in it at once, each behind mutant(n). Left out on purpose: what
stands outside of functions, defaults and annotations, and arithmetic.
"""

from __future__ import annotations

import ast
import copy
from typing import Any

from sites import Mutant

FLIPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
IMPORT = "from mutant_switch import mutant"


class Switches(ast.NodeTransformer):
    """Puts the mutants into the functions of a module, numbered from `first` on."""

    def __init__(self, path: str, first: int) -> None:
        self.path, self.first = path, first
        self.mutants: list[Mutant] = []
        self.in_function = False

    def switch(self, node: ast.AST, change: str) -> ast.Call:
        """mutant(n), which says whether this change is to be made."""
        self.mutants.append(Mutant(self.path, node.lineno, change))
        number = ast.Constant(self.first + len(self.mutants) - 1)
        return ast.Call(ast.Name("mutant", ast.Load()), [number], [])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        before, self.in_function = self.in_function, True
        node.body = [self.visit(statement) for statement in node.body]
        self.in_function = before
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit(self, node: ast.AST) -> Any:
        keeps = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module))
        return super().visit(node) if self.in_function or keeps else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    # --- Expressions

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        plain = copy.deepcopy(node)
        self.generic_visit(node)
        out: ast.expr = node
        for i, op in enumerate(plain.ops):
            other = copy.deepcopy(plain)
            other.ops[i] = FLIPPED[type(op)]()
            change = f"{ast.unparse(plain)} becomes {ast.unparse(other)}"
            flipped = copy.deepcopy(node)
            flipped.ops[i] = other.ops[i]
            out = ast.IfExp(self.switch(plain, change), flipped, out)
        return out

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        plain = copy.deepcopy(node)
        self.generic_visit(node)
        other = copy.deepcopy(node)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        shown = ast.BoolOp(other.op, plain.values)
        return ast.IfExp(
            self.switch(plain, f"{ast.unparse(plain)} becomes {ast.unparse(shown)}"), other, node
        )

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is not int:
            return node
        return ast.BinOp(node, ast.Add(), self.switch(node, f"{node.value} becomes {node.value} + 1"))

    def negated(self, test: ast.expr) -> ast.expr:
        """A condition and its opposite; where it is one comparison, the flip of that does."""
        plain = copy.deepcopy(test)
        new = self.visit(test)
        if isinstance(plain, ast.Compare) and not isinstance(
            plain.ops[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
        ):
            return new
        opposite = ast.UnaryOp(ast.Not(), copy.deepcopy(new))
        return ast.IfExp(self.switch(plain, f"{ast.unparse(plain)} is negated"), opposite, new)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        node.test = self.negated(node.test)
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.iter = self.visit(node.iter)
        node.ifs = [self.negated(test) for test in node.ifs]
        return node

    # --- Statements

    def visit_If(self, node: ast.If) -> ast.AST:
        node.test = self.negated(node.test)
        node.body = [self.visit(statement) for statement in node.body]
        node.orelse = [self.visit(statement) for statement in node.orelse]
        return node

    def dropped(self, node: ast.stmt) -> ast.AST:
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
            return node if isinstance(node.value, ast.Constant) else self.generic_visit(node)
        plain = " ".join(ast.unparse(node).split())
        call = self.switch(node, f"{plain[:90]} is dropped")
        return ast.If(ast.UnaryOp(ast.Not(), call), [self.generic_visit(node)], [])

    visit_Expr = visit_AugAssign = visit_Raise = visit_Continue = visit_Break = dropped

    def visit_Match(self, node: ast.Match) -> ast.AST:
        node.subject = self.visit(node.subject)
        for case in node.cases:  # not their patterns
            case.body = [self.visit(statement) for statement in case.body]
        return node


def woven(path: str, source: str, first: int) -> tuple[str, list[Mutant]]:
    """A Python source with all its mutants, which are numbered from `first` on."""
    tree = ast.parse(source)
    switches = Switches(path, first)
    tree = switches.visit(tree)
    has_text = ast.get_docstring(tree) is not None
    futures = [i for i, node in enumerate(tree.body) if getattr(node, "module", "") == "__future__"]
    tree.body[futures[-1] + 1 if futures else int(has_text) : 0] = ast.parse(IMPORT).body
    return ast.unparse(ast.fix_missing_locations(tree)), switches.mutants
