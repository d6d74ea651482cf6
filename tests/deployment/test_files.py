"""compose.yaml, its overlay and the Dockerfile: they follow their specifications, and name only what exists."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import click
import pytest
import yaml
from compose_spec import PyCompose
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from models.registry import registry_of
from tests.deployment.compose import load
from worker.cli import main
from worker.settings import ENV_PREFIX, Settings

PASSWORDS = {"REDIS_PASSWORD": "redispassword", "POSTGRES_PASSWORD": "postgrespassword"}
OWN_VARIABLES = {"GENARM_VERSION", "GENARM_REGISTRY", "GENARM_MODELS"}
"""Of compose.yaml itself, not of the containers."""


@pytest.fixture(params=[("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")], ids=["cpu", "gpu"])
def files(request):
    return load(*request.param, **PASSWORDS)


def validate(document):
    """Check against the compose specification; raises ValueError."""
    return PyCompose.from_json(json.dumps(document)).to_spec()


def test_the_files_follow_the_compose_specification(files):
    validate({name: value for name, value in files.items() if not name.startswith("x-")})


@pytest.mark.parametrize(
    "spoil",
    [
        {"imag": "x"}, {"image": 7}, {"healthcheck": {"test": 5}}, {"depends_on": {"redis": {"condition": "maybe"}}},
        {"deploy": {"resources": {"limits": {"memory": "8 elephants"}}}}, {"restart": "sometimes"}, {"ports": [{}]},
        {"stop_grace_period": "soon"}, {"deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia"}]}}}},
    ],
)  # fmt: skip
def test_the_check_sees_what_is_wrong(spoil):
    good = {"services": {"worker": {"image": "x"}, "redis": {"image": "x"}}}
    validate(good)
    good["services"]["worker"] |= spoil
    with pytest.raises(ValueError):
        validate(good)


def test_a_password_that_is_not_set_is_named():
    with pytest.raises(KeyError, match="REDIS_PASSWORD: set it"):
        load("compose.yaml", POSTGRES_PASSWORD="x")


def genarm_commands(files):
    for service in files["services"].values():
        for words in (service.get("command"), service.get("healthcheck", {}).get("test", [])[1:]):
            if words and words[0] == "genarm":
                yield words[1:]


def test_every_genarm_command_exists(files):
    commands = list(genarm_commands(files))
    dockerfile = re.search(r"^CMD (\[.*\])$", Path("Dockerfile").read_text(), re.MULTILINE)
    for words in [*commands, json.loads(dockerfile[1])[1:]]:
        command = main
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command is not None, words
    assert ["worker"] in commands and ["db", "upgrade"] in commands and ["health"] in commands


def test_every_variable_exists(files):
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    for service in files["services"].values():
        assert {name for name in service.get("environment", {}) if name.startswith(ENV_PREFIX)} <= known
    texts = [Path(name).read_text() for name in ("compose.yaml", "compose.gpu.yaml", ".env.example", "Dockerfile")]
    mentioned = {name for text in texts for name in re.findall(r"\bGENARM_[A-Z_]+", text)}
    assert mentioned <= known | OWN_VARIABLES


def test_nothing_is_published_beyond_this_machine_and_the_backends_have_no_way_out(files):
    for service in files["services"].values():
        assert all(port.startswith("127.0.0.1:") and service["profiles"] for port in service.get("ports", []))
    assert files["networks"]["ledger"] == {"internal": True}
    for name in ("redis", "postgres", "migrate"):
        assert files["services"][name]["networks"] == ["ledger"]


def test_redis_evicts_nothing_and_wants_a_password(files):
    command = files["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == PASSWORDS["REDIS_PASSWORD"]


def test_our_containers_have_no_rights_and_limits(files):
    worker = files["services"]["worker"]
    assert worker["cap_drop"] == ["ALL"]
    assert worker["read_only"] is True
    assert worker["deploy"]["resources"]["limits"]["memory"]
    grace = int(worker["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["grace_seconds"].default + 10
    for service in files["services"].values():
        assert service.get("restart") or "extends" in service
        assert "latest" not in service.get("image", "")


def test_a_gpu_is_asked_for_in_the_overlay_alone():
    assert "devices" not in json.dumps(load("compose.yaml", **PASSWORDS))
    services = load("compose.yaml", "compose.gpu.yaml", **PASSWORDS)["services"]
    for name, device in (("worker", "0"), ("worker1", "1")):
        (gpu,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert gpu == {"driver": "nvidia", "device_ids": [device], "capabilities": ["gpu"]}
        assert services[name]["image"].endswith("-cuda")
    assert services["worker"]["deploy"]["resources"]["limits"]["memory"] == "8g"


def instructions():
    text = re.sub(r"\\\n", " ", Path("Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_is_built_in_stages_from_what_exists_and_runs_as_nobody():
    lines = instructions()
    assert [word for word, _ in lines].count("FROM") == 2
    ignored = Path(".dockerignore").read_text().splitlines()
    for word, rest in lines:
        if word == "COPY" and not rest.startswith("--from"):
            for source in shlex.split(rest)[:-1]:
                assert Path(source).exists()
                assert f"!{source.removeprefix('./')}" in ignored
    final = lines[max(index for index, (word, _) in enumerate(lines) if word == "FROM") :]
    assert ["USER", "10001"] in final
    assert "pip" not in " ".join(rest for _, rest in final)
    extras = set(re.search(r"'\.\[([\w,]+)\]'", Path("Dockerfile").read_text())[1].split(","))
    assert extras <= set(tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"])
    versions = Path("pyproject.toml").read_text()
    default = re.search(r"GENARM_VERSION:-([\d.]+)", Path("compose.yaml").read_text())[1]
    assert f'version = "{default}"' in versions


def hadolint(text):
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, "--format", "json", "-"], input=text, capture_output=True, text=True, check=False)
    return [(found["code"], found["line"]) for found in json.loads(done.stdout)]


def test_the_dockerfile_has_nothing_that_hadolint_warns_of():
    text = Path("Dockerfile").read_text()
    assert hadolint(text) == []
    assert ("DL3006", 1) in hadolint("FROM debian\n" + text)
    assert "DL3008" in {code for code, _ in hadolint(text.replace("# hadolint ignore=DL3008\n", ""))}


def test_both_images_have_a_compiler():
    """For the kernels on the CPU; on CUDA Triton compiles what starts its kernels. So it is asked of no variant."""
    image = Path("Dockerfile").read_text().split("FROM ")[-1]
    assert re.search(r"apt-get install .* gcc libc6-dev ", image)
    assert "VARIANT" not in image


def installed_with(requirement, pins):
    """The names of all that a requirement brings along here; each must be installed as it is pinned."""
    seen, waiting = set(), [(requirement, "")]
    while waiting:
        one, extra = waiting.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(one.name)
        if name != "genarm":
            assert pins.get(name) == metadata.version(name).partition("+")[0], name  # torch says which build it is
        for inner in {"", *one.extras}:
            if (name, inner) not in seen:
                seen.add((name, inner))
                waiting += [(Requirement(text), inner) for text in metadata.requires(name) or ()]
    return {name for name, _ in seen}


def test_all_that_the_image_installs_is_locked_to_what_the_tests_run_with():
    asked = re.search(r"'\.(\[[\w,]+\])'", Path("Dockerfile").read_text())[1]
    lines = [line for line in Path("constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    found = installed_with(Requirement(f"genarm{asked}"), pins)
    assert {"torch", "celery", "psycopg-binary", "pyarrow", "accelerate"} <= found
    with pytest.raises(AssertionError, match="kombu"):
        installed_with(Requirement("celery"), {name: version for name, version in pins.items() if name != "kombu"})


def test_the_example_registry_is_one_and_allows_what_it_mounts(tmp_path):
    (tmp_path / "models.toml").write_text(Path("examples/models.toml").read_text())
    registry = registry_of(tmp_path)
    assert {alias: entry.kind for alias, entry in registry.models.items()} == {
        "smollm2": "base", "positive": "arm", "plain": "arm",
    }  # fmt: skip
    assert all(Path(f"examples/arms/{arm}/adapter_config.json").is_file() for arm in ("positive", "plain"))


def test_prometheus_scrapes_the_port_that_the_workers_serve(files):
    scrape = yaml.safe_load(Path("monitoring/prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert scrape["names"] == ["worker"]
    assert str(scrape["port"]) == files["services"]["worker"]["environment"]["GENARM_METRICS_PORT"]
