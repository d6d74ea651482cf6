"""The error messages of the code, found in its syntax trees, and those of docs/troubleshooting.md.

`python -m tests.docs.messages` prints what the page lacks, as rows to fill in, and what it has too many.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PAGE = Path("docs/troubleshooting.md")
PACKAGES = ("db", "models", "worker")
ROOTS = frozenset(
    {"DbError", "ModelsError", "ServiceError", "BrokerUrlError", "UsageError", "Malformed", "RefusedError"}
)
"""What users meet derives from these, or is one."""
INTERNAL = {
    "BaseNotServedError": "a worker hands the shard back",
    "EngineEndedError": "ends a worker's process, which is started anew",
}
"""Errors that no user meets, and why."""
PLAIN = ("worker/settings.py", "models/spec.py", "models/training/settings.py")
"""Files whose ValueErrors pydantic hands on to users."""
GAP = "…"


def messages() -> dict[str, str]:
    """Every message of the code, as a template with gaps, and where it stands."""
    trees = {path: ast.parse(path.read_text()) for name in PACKAGES for path in sorted(Path(name).rglob("*.py"))}
    classes = _user_facing(trees.values())
    found = {}
    for path, tree in trees.items():
        for call in _calls(tree):
            name = _name(call.func)
            is_plain = name == "ValueError" and str(path) in PLAIN
            if (name in classes or is_plain) and (text := _message(call, tree)) is not None:
                found.setdefault(text, f"{path}:{call.lineno}")
    return found


def on_page() -> list[str]:
    """The messages of the page: the first cells of its tables."""
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [row.strip("`") for row in rows]


def _user_facing(trees: Iterator[ast.Module]) -> set[str]:
    """The names of the error classes that users meet."""
    bases = {
        node.name: {_name(base) for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = set(ROOTS)
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found - set(INTERNAL)


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _message(call: ast.Call, tree: ast.Module) -> str | None:
    """The longest text among the arguments of an error, since codes go first; None where it is made elsewhere."""
    texts = [text for argument in call.args if (text := _template(argument)) is not None]
    text = max(texts, key=len, default="")
    words = " ".join(text.replace("`", "'").replace("|", "/").split())
    is_text = " " in words.replace(GAP, "").strip() and any(letter.isalpha() for letter in words)
    return words if is_text else None  # others are codes, or come from a library


def _template(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or "" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return GAP
    if isinstance(node, ast.BinOp):
        return (_template(node.left) or GAP) + (_template(node.right) or GAP)
    return None


if __name__ == "__main__":
    there, found = on_page() if PAGE.exists() else [], messages()
    for text, place in found.items():
        if text not in there:
            print(f"| `{text}` | {place} |")
    for text in there:
        if text not in found:
            print("too many:", text)
