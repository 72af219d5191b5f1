"""One hash for all the code that a stage can reach, so that a result knows what made it.

Snakemake sees neither changes in imported modules nor the difference between a comment and a
statement. This hash covers the static import closure of a module inside the project's two packages,
parsed and without comments and docstrings. Modules chosen by name at run time are not imported
statically, hence not covered: whoever plans the job passes them as further roots.
"""

import ast
import hashlib
from pathlib import Path

PACKAGES = ("forgetmenot", "forgetmenot_kernels")
# The tracking store is a view of the results, never a source: changing it makes no result stale.
EXCLUDED = ("forgetmenot.tracking",)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SOURCE_ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (SOURCE_ROOT, SOURCE_ROOT.parent / "kernels")


def code_hash(*modules: str) -> str:
    """Return the hash of the import closure of `modules` in this checkout (see CodeHasher)."""
    return CodeHasher().hash(*modules)


class CodeHasher:
    """Hashes import closures; each file is read once in the life of the object.

    `folders` are the places that hold the project's packages.
    """

    def __init__(self, folders: tuple[Path, ...] = FOLDERS) -> None:
        self.folders = folders
        self._paths: dict[str, Path | None] = {}
        self._imports: dict[str, list[str]] = {}
        self._content: dict[str, str] = {}

    def hash(self, *modules: str) -> str:
        """Return the SHA-256 (hexadecimal) of the import closure of `modules`.

        It does not change with comments, docstrings or formatting, nor between Python versions.
        Raises ModuleNotFoundError when one of `modules` is not a module of the project.
        """
        names = sorted(self.closure(*modules))
        text = "".join(f"{name} {self._content[name]}\n" for name in names)
        return _hash(text.encode())

    def closure(self, *modules: str) -> set[str]:
        """Return the names of all project modules that `modules` import, with themselves."""
        for name in modules:
            if self._path(name) is None:
                places = ", ".join(str(folder) for folder in self.folders)
                raise ModuleNotFoundError(f"{name} is not a module under {places}")
        found: set[str] = set()
        pending = list(modules)
        while pending:
            name = pending.pop()
            if name not in found and not name.startswith(EXCLUDED):
                found.add(name)
                pending.extend(self._read(name))
        return found

    def _read(self, name: str) -> list[str]:
        """Return the project modules that importing `name` may run; note its content's hash."""
        if name not in self._imports:
            path = self._path(name)
            assert path is not None
            tree = ast.parse(path.read_bytes(), filename=str(path))
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            parts = name.split(".")
            # Importing a module also runs the `__init__` of every package above it.
            mentioned = {".".join(parts[:end]) for end in range(1, len(parts))}
            mentioned |= _imports_without_docstrings(tree, package)
            self._imports[name] = sorted(other for other in mentioned if self._path(other))
            self._content[name] = _hash(_dump(tree).encode()) + _data_hash(path)
        return self._imports[name]

    def _path(self, name: str) -> Path | None:
        if name not in self._paths:
            self._paths[name] = None
            if name.split(".")[0] in PACKAGES:
                bases = [folder.joinpath(*name.split(".")) for folder in self.folders]
                files = [base / "__init__.py" for base in bases]
                files += [base.with_suffix(".py") for base in bases]
                self._paths[name] = next((file for file in files if file.is_file()), None)
        return self._paths[name]


def _dump(node: object) -> str:
    """A syntax tree as text, without what is empty: that is where Python versions differ."""
    if isinstance(node, ast.Constant):
        return f"Constant({node.value!r})"
    if isinstance(node, ast.JoinedStr):  # 3.12 puts an empty text behind a nested field
        parts = [part for part in node.values if not _is_empty_text(part)]
        return f"JoinedStr({_dump(parts)})"
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in ([], None)]
        inside = ", ".join(f"{name}={_dump(value)}" for name, value in fields)
        return f"{type(node).__name__}({inside})"
    if isinstance(node, list):
        return f"[{', '.join(map(_dump, node))}]"
    return repr(node)


def _is_empty_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _imports_without_docstrings(tree: ast.Module, package: str) -> set[str]:
    """Return every dotted name that an import at any depth may mean; drop docstrings in place."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            # `from a import b` may name a module or something inside one.
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return names


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, node.module] if node.module else above)


def _data_hash(path: Path) -> str:
    """Hash what a package ships beside its modules, such as templates and kernel tables."""
    if path.name != "__init__.py":
        return ""
    lines = []
    pending = [path.parent]
    while pending:
        for entry in pending.pop().iterdir():
            if entry.name.startswith((".", "__pycache__")):
                continue  # caches of tools
            if entry.is_dir():
                if not (entry / "__init__.py").exists():
                    pending.append(entry)
            elif entry.suffix != ".py":
                content = _hash(entry.read_bytes())
                lines.append(f" {entry.relative_to(path.parent).as_posix()} {content}")
    return "".join(sorted(lines))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
