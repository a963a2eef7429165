"""A digest of a custom objective's source, which changes when the objective is edited or is that of another file.

The digest covers the function, or the class of a method, and the statements of its file that it uses, directly or
through other names. It does not cover comments, docstrings, layout, other files, values held by a closure or a
`partial`, and the rest of the file: so a script that is edited to ask for more trials can resume its study.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from types import CodeType
from typing import Any

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def source_digest(objective: Any) -> str | None:
    """Return a digest of an objective's source; None if it cannot be read: `python -c`, a prompt, compiled code."""
    while isinstance(objective, functools.partial):
        objective = objective.func
    if not inspect.isroutine(objective):
        objective = type(objective).__call__
    code = getattr(inspect.unwrap(objective), "__code__", None)
    if code is None:
        return None
    try:
        lines, _ = inspect.findsource(code)
        tree = ast.parse("".join(lines))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    found = _definition(tree, code)
    if found is None:
        return None
    _drop_docstrings(tree)
    text = "\n".join(map(ast.unparse, [found, *_used(tree, found)]))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _definition(tree: ast.Module, code: CodeType) -> ast.AST | None:
    """Return the definition of a function, or the class that it is a method of; None if there is no single one."""
    found = []
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min((part.lineno for part in node.decorator_list), default=node.lineno)
                same = (node.name, first) == (code.co_name, code.co_firstlineno)
            else:
                same = isinstance(node, ast.Lambda) and (code.co_name, code.co_firstlineno) == ("<lambda>", node.lineno)
            if same:
                found.append(parent if isinstance(parent, ast.ClassDef) else node)
    return found[0] if len(found) == 1 else None  # several: two lambdas in one line


def _used(tree: ast.Module, found: ast.AST) -> list[ast.stmt]:
    """Return the statements of a file that bind the names that a definition uses, in the order of the file."""
    binding = [(statement, _bound(statement)) for statement in tree.body]
    names, used = _read(found), list[ast.stmt]()
    while new := [one for one, bound in binding if bound & names and one not in used and one is not found]:
        used += new
        names = names.union(*map(_read, new))
    return [statement for statement in tree.body if statement in used]


def _read(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def _bound(statement: ast.stmt) -> set[str]:
    """Return the module-level names that a statement binds."""
    if isinstance(statement, Definition):
        return {statement.name}
    bound = set[str]()
    for part in ast.walk(statement):
        if isinstance(part, Definition):
            bound.add(part.name)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            bound |= {(name.asname or name.name).partition(".")[0] for name in part.names}
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            bound.add(part.id)
    return bound


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, Definition) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
