"""The registry, `models.toml`: which models may be used, and where exactly their files are.

Where a home folder has one, a reference is an alias of it, or the hub id or path of one of its entries; nothing else is
opened. A hub model is pinned to a commit; a folder lies in an allowed folder, and no symlink leads out of it.
"""

import re
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from models.errors import ModelNotAllowedError
from models.spec import Frozen, GenerationSpec, explain, is_template_name

FILE_NAME = "models.toml"
Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
HubId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class Entry(Frozen):
    """One model: a hub id with the commit that it is pinned to, or a path."""

    kind: Literal["base", "arm"]
    hub: HubId | None = None
    revision: Commit | None = None
    """The full commit hash; a branch or tag could be moved."""
    path: Annotated[str, StringConstraints(min_length=1)] | None = None
    """A model folder, an adapter folder or a .gguf file, relative to the registry."""
    base: Alias | None = None
    """Of an adapter: the entry that it rides on, whatever it says itself that it was trained on."""

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give either `hub` and `revision`, or `path`")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("a hub id needs a `revision`, the 40 digits of a commit; a path has none")
        if self.path is not None and ".." in Path(self.path).parts:
            raise ValueError("`path` must not contain `..`")
        if self.base is not None and self.kind != "arm":
            raise ValueError("`base` is for an ARM that is an adapter")
        return self


class Registry(Frozen):
    """The contents of a models.toml."""

    file: Path
    folders: tuple[str, ...] = (".",)
    """Folders, relative to the registry, that the files of local models may lie in."""
    allow_templates: bool = False
    """Whether jobs may bring chat templates of their own: programs, although in a sandbox, that can run for long."""
    models: dict[Alias, Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _bases_are_entries(self) -> Self:
        for alias, entry in self.models.items():
            if entry.base is not None and entry.base not in self.models:
                raise ValueError(f"the base {entry.base!r} of {alias!r} is no entry")
        return self

    @cached_property
    def roots(self) -> tuple[Path, ...]:
        """The allowed folders, with symlinks resolved."""
        return tuple((self.file.parent / folder).resolve() for folder in self.folders)

    def find(self, ref: str) -> tuple[str, Entry]:
        """The alias and entry that a reference means.

        Raises:
            ModelNotAllowedError: there is none.
        """
        if (entry := self.models.get(ref)) is not None:
            return ref, entry
        for alias, entry in self.models.items():
            if ref == entry.hub or (entry.path is not None and ref == str(self.file.parent / entry.path)):
                return alias, entry
        raise ModelNotAllowedError(
            f"{ref[:200]!r} is not in the registry {self.file}; it has: {', '.join(sorted(self.models))}"
        )

    def names_of(self, ref: str) -> tuple[str, ...]:
        """Every reference that means the same model as this one.

        Raises:
            ModelNotAllowedError: it means none.
        """
        alias, entry = self.find(ref)
        other = entry.hub if entry.path is None else str(self.file.parent / entry.path)
        return (alias, other) if other is not None else (alias,)

    def path_of(self, alias: str, entry: Entry) -> Path:
        """The path of a local model, after every file of it was checked to lie in an allowed folder.

        Raises:
            ModelNotAllowedError: the path, or a symlink in it, leads out of them.
        """
        assert entry.path is not None
        path = self.file.parent / entry.path
        for one in (path, *(sorted(path.rglob("*")) if path.is_dir() else ())):
            if not any(one.resolve().is_relative_to(root) for root in self.roots):
                raise ModelNotAllowedError(
                    f"{alias!r}: {one} leads out of the folders that {self.file} allows; move it, or add to `folders`"
                )
        return path

    def require(self, spec: GenerationSpec, *, scores: bool = False) -> None:
        """Check that a job names only models of the registry, each for what it is.

        Args:
            spec: of the job.
            scores: it only scores responses; then an ARM may stand in for the base that was not given.

        Raises:
            ModelNotAllowedError: it does not.
        """
        arms = [arm.ref for arm in spec.arms]
        bases = [] if scores and spec.base in arms else [spec.base]
        for kind, ref in (*(("base", base) for base in bases), *(("arm", arm) for arm in arms)):
            alias, entry = self.find(ref)
            if entry.kind != kind:
                raise ModelNotAllowedError(f"{alias!r} is registered as {entry.kind}, and the job wants it as {kind}")
        brought = [one for one in (spec.chat_template, *(arm.template for arm in spec.arms)) if one is not None]
        if not self.allow_templates and not all(map(is_template_name, brought)):
            raise ModelNotAllowedError(
                f"jobs may not bring chat templates of their own: {self.file} does not say `allow_templates = true`"
            )


def registry_of(home: Path) -> Registry | None:
    """The registry of a home folder, read anew each time; None where it has none.

    Raises:
        ModelNotAllowedError: it cannot be read: then nothing may be used.
    """
    file = home / FILE_NAME
    try:
        with file.open("rb") as opened:
            fields = tomllib.load(opened)
        return Registry.model_validate({**fields, "file": file})
    except FileNotFoundError:
        if file.is_symlink():
            raise ModelNotAllowedError(f"{file} is a symlink to nothing") from None
        return None
    except ValidationError as error:
        raise ModelNotAllowedError(f"{file}: {explain(error)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotAllowedError(f"{file}: cannot be read as TOML ({error})") from None


def is_plain_name(name: object) -> bool:
    """Whether a file's name has no folder in it."""
    return isinstance(name, str) and re.fullmatch(r"[\w][\w.-]*", name) is not None
