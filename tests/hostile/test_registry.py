"""What models.toml lets a job name, and every way around it that is shut."""

import re
import shutil

import pytest

from models.errors import ModelNotAllowedError, ModelNotFoundError, ModelsError
from models.references import resolve
from models.registry import registry_of
from models.spec import GenerationSpec
from models.zoo import describe_spec
from worker.admission import admit
from worker.settings import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def spec(base="tiny", *arms, **fields):
    arms = [{"name": f"arm{index}", "ref": ref} for index, ref in enumerate(arms)]
    return GenerationSpec.parse({"base": base, "arms": arms, **fields})


def test_aliases_are_resolved_and_an_adapter_finds_its_registered_backbone(register, home):
    register()
    base, (arm,) = describe_spec(spec("tiny", "nice"), home)
    assert base.source.folder == home / "shelf" / "base"
    assert arm.source.folder == home / "shelf" / "arm"
    assert arm.backbone.folder == base.source.folder


@pytest.mark.parametrize(
    "ref",
    [
        "/etc/passwd", "../shelf/base", "tiny/../nice", "shelf/base", ".", "", "tiny\x00", "TINY",
        "HuggingFaceTB/SmolLM2-135M",
        "https://example.org/model", "file:///etc/passwd", "~root", "s3://bucket/model", "tiny@main", "a" * 4000,
    ],
)  # fmt: skip
def test_nothing_but_the_registry_is_opened(register, home, ref):
    register()
    with pytest.raises(ModelNotAllowedError, match="is not in the registry"):
        resolve(ref, home)


def test_the_whole_path_and_the_hub_id_of_an_entry_mean_that_entry(register, home):
    far = f'[models.far]\nkind = "base"\nhub = "org/far"\nrevision = "{COMMIT}"\n'
    register(far + '[models.near]\nkind = "base"\npath = "shelf/base"')
    registry = registry_of(home)
    assert registry.find("org/far")[0] == "far"
    assert registry.find(str(home / "shelf" / "base"))[0] == "near"


def test_a_hub_model_is_fetched_at_its_pinned_commit(register, home, monkeypatch, good_models):
    register(f'[models.far]\nkind = "base"\nhub = "org/far"\nrevision = "{COMMIT}"')
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda ref, revision, **_: asked.append((ref, revision)) or str(good_models / "base"),
    )
    source = resolve("far", home)
    assert asked == [("org/far", COMMIT)]
    assert (source.ref, source.name, source.origin) == ("far", "far", "org/far")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "models: Field required"),
        ("models = {}", "at least 1"),
        ("nonsense", "cannot be read as TOML"),
        ('[models.x]\nkind = "base"', "either `hub` and `revision`, or `path`"),
        (f'[models.x]\nkind = "base"\npath = "a"\nhub = "a/b"\nrevision = "{COMMIT}"', "either"),
        ('[models.x]\nkind = "base"\nhub = "a/b"', "needs a `revision`"),
        ('[models.x]\nkind = "base"\nhub = "a/b"\nrevision = "main"', "revision"),
        (f'[models.x]\nkind = "base"\npath = "a"\nrevision = "{COMMIT}"', "a path has none"),
        ('[models.x]\nkind = "base"\npath = "../outside"', r"must not contain `\.\.`"),
        ('[models.x]\nkind = "judge"\npath = "a"', "kind"),
        ('[models.x]\nkind = "base"\npath = "a"\ntrust_remote_code = true', "trust_remote_code"),
        ('[models."../x"]\nkind = "base"\npath = "a"', "models"),
        ("\x00", "cannot be read as TOML"),
    ],
)
def test_a_registry_with_a_fault_allows_nothing(register, home, text, message):
    register(text)
    with pytest.raises(ModelNotAllowedError, match=message):
        resolve("x", home)


def test_a_registry_that_cannot_be_read_allows_nothing(home):
    (home / "models.toml").symlink_to(home / "nowhere")
    with pytest.raises(ModelNotAllowedError, match="symlink to nothing"):
        resolve("tiny", home)


def test_a_symlink_out_of_the_allowed_folders_is_refused(register, home, tmp_path):
    register()
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "hunter2"}')
    config = home / "shelf" / "base" / "config.json"
    config.unlink()
    config.symlink_to(secret)
    with pytest.raises(ModelNotAllowedError, match=r"config\.json leads out") as refused:
        resolve("tiny", home)
    assert "hunter2" not in str(refused.value)


def test_a_folder_that_is_a_symlink_out_is_refused_until_the_operator_allows_where_it_leads(
    register, home, tmp_path, good_models
):
    (home / "shelf" / "link").symlink_to(good_models / "base")
    entry = '[models.x]\nkind = "base"\npath = "shelf/link"'
    register(entry)
    with pytest.raises(ModelNotAllowedError, match="leads out"):
        resolve("x", home)
    register(f'folders = ["shelf", "{good_models}"]\n{entry}')
    assert resolve("x", home).folder == home / "shelf" / "link"


def test_a_path_that_is_absolute_and_outside_is_refused(register, home, good_models):
    register(f'[models.x]\nkind = "base"\npath = "{good_models / "base"}"')
    with pytest.raises(ModelNotAllowedError, match="leads out"):
        resolve("x", home)


def test_a_model_that_went_away_is_named(register, home):
    register('[models.x]\nkind = "base"\npath = "shelf/gone"')
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        resolve("x", home)


def test_an_adapter_cannot_pull_in_a_backbone_that_is_not_registered(register, home, edit, good_models):
    register()
    for elsewhere in ("org/somewhere", "/etc", str(good_models)):
        edit(home / "shelf" / "arm" / "adapter_config.json", base_model_name_or_path=elsewhere)
        with pytest.raises(ModelNotAllowedError, match=re.escape(elsewhere)):
            describe_spec(spec("tiny", "nice"), home)


def test_the_registry_says_what_an_adapter_rides_on(register, home, edit, good_models):
    edit(home / "shelf" / "arm" / "adapter_config.json", base_model_name_or_path="org/of-another-name")
    entries = '[models.tiny]\nkind = "base"\npath = "shelf/base"\n[models.nice]\nkind = "arm"\npath = "shelf/arm"\n'
    register(entries)
    with pytest.raises(ModelNotAllowedError, match=r"of-another-name.*`base = ALIAS`"):
        describe_spec(spec("tiny", "nice"), home)
    register(entries + 'base = "tiny"')
    base, (arm,) = describe_spec(spec("tiny", "nice"), home)
    assert arm.backbone == base.backbone


def test_what_the_registry_says_goes_before_the_job(register, home):
    shutil.copytree(home / "shelf" / "base", home / "shelf" / "other")
    register(
        '[models.tiny]\nkind = "base"\npath = "shelf/base"\n[models.other]\nkind = "base"\npath = "shelf/other"\n'
        '[models.nice]\nkind = "arm"\npath = "shelf/arm"\nbase = "other"'
    )
    base, (arm,) = describe_spec(spec("tiny", "nice"), home)
    assert (arm.backbone.ref, base.backbone.ref) == ("other", "tiny")
    fields = spec("tiny", "nice").model_dump()
    fields["arms"][0]["on_base"] = True
    with pytest.raises(ModelNotAllowedError, match="ride on other alone"):
        describe_spec(GenerationSpec.parse(fields), home)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('[models.a]\nkind = "arm"\npath = "shelf/arm"\nbase = "nonesuch"', "'nonesuch' of 'a' is no entry"),
        ('[models.a]\nkind = "base"\npath = "shelf/base"\nbase = "a"', "for an ARM"),
        ('[models.a]\nkind = "arm"\npath = "shelf/base"\nbase = "a"', "is no adapter"),
    ],
)
def test_a_base_that_means_nothing_is_refused(register, home, line, named):
    register(line)
    with pytest.raises(ModelsError, match=named):
        resolve("a", home)


def test_each_model_serves_as_what_it_is_registered(register, settings, home):
    register()
    settings = settings.model_copy(update={"home": home})
    admit(spec("tiny", "nice"), settings)
    for wrong in (spec("nice"), spec("tiny", "tiny")):
        with pytest.raises(ModelNotAllowedError, match="is registered as"):
            admit(wrong, settings)


def test_scoring_without_a_base_lets_the_arm_stand_in_for_it_and_nothing_else(register, settings, home):
    register()
    settings = settings.model_copy(update={"home": home})
    admit(spec("nice", "nice"), settings, scores=True)
    with pytest.raises(ModelNotAllowedError, match="is registered as arm"):
        admit(spec("nice", "nice"), settings)
    with pytest.raises(ModelNotAllowedError, match="is registered as base"):
        admit(spec("tiny", "tiny"), settings, scores=True)


def test_a_template_in_a_job_is_a_program_and_must_be_allowed(register, settings, home):
    settings = settings.model_copy(update={"home": home})
    arm = {"name": "a", "ref": "nice", "template": "{% for i in range(99999) %}{% endfor %}"}
    wanted = GenerationSpec.parse({"base": "tiny", "arms": [arm]})
    register()
    with pytest.raises(ModelNotAllowedError, match="allow_templates"):
        admit(wanted, settings)
    register("allow_templates = true\n" + (home / "models.toml").read_text())
    admit(wanted, settings)


@pytest.mark.parametrize("shared", [{"broker_url": "redis://r"}, {"database_url": "postgresql://p/x"}])
def test_where_others_can_reach_the_ledger_a_registry_is_required(shared, home):
    with pytest.raises(ModelNotAllowedError, match=r"models\.toml: write one, or set GENARM_ALLOW_ANY_MODEL=true"):
        admit(spec("/etc"), Settings(home=home, **shared))
    admit(spec("/etc"), Settings(home=home, allow_any_model=True, **shared))
    admit(spec("/etc"), Settings(home=home, database_url=None, broker_url=None))
