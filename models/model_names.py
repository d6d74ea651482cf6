"""Names of models: in references, and in adapters, which name the model that they were trained on in many ways."""

import re
from pathlib import Path, PureWindowsPath

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
GGUF_QUANTISATION = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)
QUANTISED = re.compile(
    r"(-unsloth)?-((bnb|mlx|hqq|torchao|gptq|awq)-?)?(4-?bit|8-?bit)$"
    r"|[-_.]((gptq|awq|bnb|exl2|hqq|aqlm|gguf|int4|int8|nf4|fp8)(-(int4|int8|int3|4bit|8bit|dynamic|static))?)$"
    r"|[-_.]quantized\.w\d+a\d+$",
    re.IGNORECASE,
)
"""How quantised copies of a model are named after it: -bnb-4bit, -GPTQ-Int4, -AWQ and the like."""
SNAPSHOT = re.compile(r"(?:^|/)models--([^/]+?)(?:--([^/]+))?/snapshots/([^/]+)$")
"""A model in the cache of huggingface_hub."""


def model_name(ref: str) -> str:
    """The last part of a reference, without `.gguf` and its quantisation suffix."""
    last = Path(ref.rstrip("/")).name
    if last.endswith(".gguf"):
        last = GGUF_QUANTISATION.sub("", last.removesuffix(".gguf"))
    return last


def declared_model(text: str) -> str:
    """What an adapter says it was trained on, as a reference that means something on this machine.

    Slashes at the end are dropped, a Windows path is written with slashes, and a folder in another machine's cache of
    the hub is the hub id that it is named after.
    """
    ref = text.strip()
    if "\\" in ref:
        ref = PureWindowsPath(ref).as_posix()
    ref = ref.rstrip("/") or ref
    if (snapshot := SNAPSHOT.search(ref)) is not None and not Path(ref).exists():
        organisation, name, _ = snapshot.groups()
        return organisation if name is None else f"{organisation}/{name}"
    return ref


def is_same_model(declared: str, base_ref: str, base_name: str, *, base_is_hubs: bool) -> bool:
    """Whether an adapter that names the model `declared` was trained on a base that it does not name exactly.

    It was where one side is local and both have one name, and where the adapter names a quantised copy of the base. Two
    ids of the hub are two models.

    Args:
        base_ref: the base's hub id or path.
        base_name: the last part of it.
        base_is_hubs: it comes from the hub.
    """
    name = model_name(declared)
    original = QUANTISED.sub("", name)
    if base_is_hubs and HUB_ID.match(declared) and original == name:
        return declared.casefold() == base_ref.casefold()
    return base_name.casefold() in (name.casefold(), original.casefold())
