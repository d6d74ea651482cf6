"""The check of a job's spec before it is submitted: models are described, never loaded."""

from pathlib import Path

from models.spec import GenerationSpec


def check_spec(spec: GenerationSpec, home: Path) -> GenerationSpec:
    """Check that the models of a spec can be read and fit together, without reading weights.

    Configurations, tokenizers and the headers of adapters' files are read.

    Args:
        home: converted models are kept under `home/models`; a .gguf file is converted at its first check.

    Returns:
        The spec with today's date, where it has none and a chat template writes one: so that the job's prompts are the
        same on every day and worker.

    Raises:
        ModelNotFoundError, UnsupportedModelError, IncompatibleArmError, SpecError: what is wrong, in one line.
    """
    from models.adapter_files import check_adapter
    from models.templates import today, writes_date
    from models.zoo import describe_spec

    base, arms = describe_spec(spec, home)
    for description in (base, *arms):
        if description.adapter is not None:
            check_adapter(description)
    is_dated = any(writes_date(one.templates) for one in (base, *arms) if one.templates is not None)
    return spec.model_copy(update={"date": today()}) if spec.date is None and is_dated else spec
