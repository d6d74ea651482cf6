"""`genarm arm check` as people type it."""

import json

from tests.cli.conftest import facts
from tests.tiny_models import make_adapter


def test_check_of_an_arm_with_weights_of_its_own(here, genarm_here, models):
    found = facts(genarm_here("arm", "check", models / "base", models / "arm", "--max-new-tokens", 4, "--json"))

    assert (found["fits"], found["passes_per_token"], found["compute_ratio"]) == (True, 2, 2.0)
    assert found["weight_bytes"] == 2 * found["base"]["weight_bytes"]
    assert found["sample"]["rewards"].keys() == {"arm"}


def test_check_tells_what_an_adapter_costs_and_shows_a_sample(here, genarm_here, models):
    make_adapter(here / "adapter", models / "base")

    done = genarm_here("arm", "check", models / "base", "one=adapter", "two=adapter", "--max-new-tokens", 5)
    found = facts(genarm_here("arm", "check", models / "base", "one=adapter", "--no-sample", "--json"))

    assert done.exit_code == 0, done.output
    assert "ARM one: fits; rides on base," in done.stdout
    assert "1 forward pass per token" in done.stdout
    assert "sample (5 tokens, rewards: one -" in done.stdout
    (arm,) = found["arms"]
    assert (found["fits"], found["sample"], arm["template"]) == (True, None, "backbone")
    assert arm["kv_bytes_per_token"] == found["base"]["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 4
    assert arm["weight_bytes"] == 3 * (4 * (32 + 32) + 4 * (32 + 16)) * 4
    assert found["kv_bytes_per_token"] == 2 * arm["kv_bytes_per_token"]


def test_check_refuses_a_stranger_with_the_remedy_and_exit_code_1(here, genarm_here, models):
    done = genarm_here("arm", "check", models / "base", models / "arm", models / "stranger")
    as_json = genarm_here("arm", "check", models / "base", models / "stranger", "--json")
    nowhere = genarm_here("arm", "check", models / "base", "./nowhere")

    assert done.exit_code == as_json.exit_code == 1
    assert "ARM arm: fits; has weights of its own" in done.stdout
    assert "ARM stranger: does not fit" in done.stdout
    assert "guidance needs an ARM trained with the base's tokenizer" in done.stderr
    assert json.loads(as_json.stdout)["fits"] is False
    assert (nowhere.exit_code, "no such file or folder" in nowhere.stderr) == (2, True)
