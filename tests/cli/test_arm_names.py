"""`--arm [NAME=]REF`: folders of any name are found, and nothing is understood in two ways."""

import pytest

from models.errors import SpecError
from tests.tiny_models import make_adapter
from worker.cli.options import arms_of


def name_and_ref(text):
    (arm,) = arms_of([(text, 1.0)], [], [])
    return arm["name"], arm["ref"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("plain", "plain"), ("step=100-loss=0.2", "step-100-loss-0.2"), ("my arm", "my-arm"), ("a, b", "a-b"),
        ("a:b", "a:b"), ("a#b", "a#b"), ("~tilde", "~tilde"), ("モデル", "モデル"), ("=", "-"), ("--arm", "--arm"),
        ("100%", "100%"), ("it's \"it\"", "it's-\"it\""),
    ],
)  # fmt: skip
def test_a_folder_of_any_name(tmp_path, monkeypatch, folder, name):
    path = tmp_path / "in=side" / folder
    path.mkdir(parents=True)
    assert name_and_ref(str(path)) == (name, str(path))
    assert name_and_ref(f"mine={path}") == ("mine", str(path))
    monkeypatch.chdir(path.parent)
    assert name_and_ref(f"./{folder}") == name_and_ref(folder) == name_and_ref(f"{folder}/") == (name, str(path))
    assert name_and_ref(f"mine={folder}") == ("mine", str(path))
    monkeypatch.chdir(path)
    assert name_and_ref(".") == (name, str(path))


@pytest.mark.parametrize(
    ("text", "name", "ref"),
    [
        ("org/model", "model", "org/model"),
        ("mine=org/model", "mine", "org/model"),
        ("mine=/no/step=7", "mine", "/no/step=7"),
        ("/no/step=7", "step-7", "/no/step=7"),
        ("./no/step=7", "step-7", "./no/step=7"),
    ],
)
def test_what_is_not_here_is_looked_for_later(text, name, ref):
    assert name_and_ref(text) == (name, ref)


def test_what_may_mean_two_folders_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a=b", "b"):
        (tmp_path / folder).mkdir()
    with pytest.raises(SpecError, match=r"may mean two folders; write \./a=b, or a=\./b"):
        name_and_ref("a=b")
    assert name_and_ref("./a=b") == ("a-b", str(tmp_path / "a=b"))
    assert name_and_ref("a=./b") == ("a", str(tmp_path / "b"))


@pytest.mark.parametrize("text", ["my arm=org/model", "=org/model", "a,b=org/model"])
def test_a_name_that_is_none_is_refused(text):
    with pytest.raises(SpecError, match=r"cannot be an ARM's name.*NAME=REF"):
        name_and_ref(text)


@pytest.mark.parametrize("text", ["/", "x" * 200])
def test_a_folder_without_a_usable_name_asks_for_one(text):
    with pytest.raises(SpecError, match="NAME=REF"):
        name_and_ref(text)


def test_an_arm_is_said_to_ride_on_the_base(here, genarm_here, models, edit):
    make_adapter(here / "step=7", models / "base")
    edit(here / "step=7" / "adapter_config.json", base_model_name_or_path="/home/alice/elsewhere")
    check = ("arm", "check", models / "base", "step=7", "--no-sample")

    alone, said, other = (
        genarm_here(*check, *more) for more in ((), ("--arm-on-base", "step-7"), ("--arm-on-base", "x"))
    )

    assert (alone.exit_code, "--arm-on-base NAME" in alone.stderr) == (2, True)
    assert (said.exit_code, "ARM step-7: fits; rides on base," in said.stdout) == (0, True), said.output
    assert (other.exit_code, "no ARM has this name (there are: step-7)" in other.stderr) == (2, True)


@pytest.mark.parametrize("declared", [None, r"C:\Users\alice\models\base", "unsloth/base-bnb-4bit"])
def test_a_base_of_another_machine_is_known_by_its_name(here, genarm_here, models, edit, declared):
    make_adapter(here / "adapter", models / "base")
    edit(here / "adapter" / "adapter_config.json", base_model_name_or_path=declared)
    done = genarm_here("arm", "check", models / "base", "adapter", "--no-sample")
    assert (done.exit_code, "rides on base," in done.stdout) == (0, True), done.output
