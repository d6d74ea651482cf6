"""What can go wrong with models and rows; every message is written for the user, with the remedy where there is one."""


class ModelsError(Exception):
    """Base of the errors below; `str()` of it is one line for the user."""

    def __str__(self) -> str:
        """One line without control characters, whatever references or texts of others are in it."""
        line = " ".join(super().__str__().split())
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class SpecError(ModelsError):
    """A generation spec, or a part of it, is not valid."""


class ModelNotFoundError(ModelsError):
    """A model reference names nothing that can be read."""


class UnsupportedModelError(ModelsError):
    """A model was found, but this engine cannot run it, or refuses to for safety."""


class ModelNotAllowedError(ModelsError):
    """A model that the operator's registry does not allow, or a registry that cannot be read."""


class ModelMemoryError(ModelsError):
    """The models of a job do not fit into the memory for models, even alone."""


class ModelsInUseError(ModelsError):
    """Models in use leave no memory for others now; another try may find some."""


class IncompatibleArmError(ModelsError):
    """An ARM and a base do not share a tokenizer."""


class RowError(ModelsError):
    """One row cannot be generated; it becomes a failed row, the job goes on.

    `code` is stable and meant for scripts; `str()` is the message for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DeviceLostError(Exception):
    """All that a device is asked for fails in this process from now on; no row or job need be at fault."""
