"""Every boundary takes anything: what it cannot use it refuses in a clean error of its own."""

import base64
import json
from types import SimpleNamespace

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from pydantic import ValidationError

from db.session import connect, redacted
from models.errors import ModelNotAllowedError, ModelsError, RowError, SpecError
from models.loading import describe
from models.references import resolve
from models.registry import registry_of
from models.rendering import Renderer
from models.spec import GenerationSpec, PromptRow
from models.training.encoding import PairEncoder
from models.training.preferences import BadPair, parse_preference
from tests.fuzz.inputs import SECRET, any_text, as_bytes, count, inputs, junk, pairs, rows, specs, urls
from tests.tiny_models import TEMPLATE, make_tokenizer
from worker import tasks
from worker.admission import admit, admit_row
from worker.cli.errors import one_line
from worker.settings import Settings
from worker.transport import QUEUE, TASK, is_plain_call

GENUINE = {
    "body": base64.b64encode(b"[[7], {}, {}]").decode(),
    "headers": {"id": "a", "task": TASK, "retries": 0, "timelimit": [None, None], "eta": None, "expires": None},
    "properties": {
        "delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": QUEUE}, "body_encoding": "base64",
    },
    "content-type": "application/json",
    "content-encoding": "utf-8",
}  # fmt: skip
bodies = st.tuples(st.lists(junk, max_size=2), st.dictionaries(any_text, junk, max_size=1), junk | st.just({}))


@st.composite
def messages(draw):
    """A genuine message of which one part is anything, or whose call is anything; or anything at all."""
    message = json.loads(json.dumps(GENUINE))
    how = draw(st.sampled_from(["part", "body", "shard", "junk"]))
    if how == "junk":
        return draw(junk)
    if how == "part":
        part = draw(st.sampled_from([message, message["headers"], message["properties"]]))
        part[draw(st.sampled_from(sorted(part)) | any_text)] = draw(junk)
    else:
        body = draw(bodies) if how == "body" else [[draw(st.integers() | junk)], {}, {}]
        message["body"] = base64.b64encode(as_bytes(json.dumps(body))).decode()
    return message


@pytest.fixture
def deliver(monkeypatch):
    """Deliver a message to the task, and return the shard ids that it would run."""
    app = Celery("fuzz", broker="memory://", set_as_current=False)
    ran = []
    monkeypatch.setattr(tasks, "run_shard", lambda service, shard_id: ran.append(shard_id))
    tasks.register(app, SimpleNamespace())

    def run(message):
        ran.clear()
        args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        app.tasks[TASK](*args, **kwargs)
        return list(ran)

    return run


@inputs(0.3)
@given(message=messages())
def test_messages(deliver, message):
    count()
    if is_plain_call(message):
        assert all(type(shard_id) is int and 0 < shard_id < 2**63 for shard_id in deliver(message))


@inputs(0.2)
@given(fields=specs | st.dictionaries(any_text, junk, max_size=3))
def test_specs(home, fields):
    count()
    try:
        spec = GenerationSpec.parse(fields)
        stored = json.loads(json.dumps(spec.model_dump(mode="json"), allow_nan=False))
        assert GenerationSpec.parse(stored) == spec
        admit(spec, Settings(home=home))
    except (SpecError, ModelNotAllowedError) as error:
        assert is_one_line(error)


@pytest.fixture(scope="session")
def renderer(home):
    """The renderer of the tiny base."""
    description = describe("tiny", home)
    return Renderer(description.tokenizer, description.template, "tiny")


@inputs(0.2)
@given(row=rows, raw=st.booleans())
def test_rows(home, renderer, row, raw):
    count()
    spec = GenerationSpec.parse({"base": "tiny", "arms": [{"name": "nice", "ref": "nice"}]})
    try:
        prompt = PromptRow.parse(row, 0, spec)
        admit_row(prompt, Settings(home=home))
        assert all(isinstance(token, int) for token in renderer.prompt_ids(prompt, system=None, raw=raw))
    except RowError as error:
        assert error.code in {"invalid_prompt", "invalid_weights", "invalid_sampling", "prompt_too_large"}
        assert is_one_line(error)


@pytest.fixture(scope="session")
def pair_encoders():
    """Encoders of pairs for models with a template that shows replies, one that does not, and none."""
    shows = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls }}</s>{% endfor %}"
    headed = shows + "{% if add_generation_prompt %}[assistant]{% endif %}"
    return [
        PairEncoder(make_tokenizer(template), template, max_prompt_tokens=50, max_tokens=100)
        for template in (shows, headed, TEMPLATE, None)
    ]


@inputs(0.2)
@given(row=pairs)
def test_pairs(pair_encoders, row):
    count()
    pair = parse_preference("line 1", row)
    for encoder in pair_encoders:
        encoded = pair if isinstance(pair, BadPair) else encoder.encode(pair)
        if isinstance(encoded, BadPair):
            assert is_one_line(encoded)
        else:
            assert isinstance(pair.prompt_key, str)
            for response in (encoded.chosen, encoded.rejected):
                assert 1 <= response.response_start < len(response.ids) <= 100


@inputs(0.08)
@given(ref=any_text, is_registered=st.booleans())
def test_references(home, tmp_path_factory, ref, is_registered):
    count()
    where = home if is_registered else tmp_path_factory.getbasetemp()
    try:
        resolve(ref, where)
    except ModelsError as error:
        assert is_one_line(error)


fields = st.dictionaries(st.sampled_from(["kind", "hub", "revision", "path", "base"]), any_text | junk, max_size=4)


@st.composite
def registries(draw):
    """Bytes, or an entry with anything in it."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=80))
    lines = [f"{name} = {json.dumps(value)}" for name, value in draw(fields).items()]
    return as_bytes("\n".join([f"[models.{json.dumps(draw(any_text))}]", *lines]))


@inputs(0.05)
@given(content=registries())
def test_registries(tmp_path_factory, content):
    count()
    home = tmp_path_factory.getbasetemp() / "registry"
    home.mkdir(exist_ok=True)
    (home / "models.toml").write_bytes(content)
    try:
        assert registry_of(home).models
    except ModelNotAllowedError as error:
        assert is_one_line(error)


@inputs(0.02)
@given(data=st.data())
def test_model_folders(home, tmp_path_factory, data):
    count()
    folder = tmp_path_factory.mktemp("model")
    for file in (home / "tiny").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    name = data.draw(
        st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
    )
    fields = json.loads((folder / name).read_text())
    key = data.draw(st.sampled_from(sorted(fields)) | any_text)
    content = data.draw(st.binary(max_size=50) | junk.map(lambda value: as_bytes(json.dumps(fields | {key: value}))))
    (folder / name).write_bytes(content)
    try:
        describe(str(folder), tmp_path_factory.getbasetemp())
    except ModelsError as error:
        assert is_one_line(error)


names = st.sampled_from(sorted(f"GENARM_{name.upper()}" for name in Settings.model_fields))


@inputs(0.05)
@given(variables=st.dictionaries(names, any_text.filter(lambda text: "\x00" not in text), max_size=3))
def test_settings(variables):
    count()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, as_bytes(value).decode("utf-8", "surrogateescape"))
        try:
            Settings()
        except ValidationError as error:
            assert one_line(error).startswith("GENARM_")


@inputs(0.1)
@given(url=urls(), home=st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=9))
def test_urls(url, home):
    """Neither what is refused nor what is accepted shows the password that is in it."""
    count()
    for name in ("broker_url", "database_url"):
        try:
            settings = Settings(home=home, **{name: url})
        except ValidationError as error:
            said = [one_line(error), str(error), repr(error)]
        else:
            ledger = connect(settings.effective_database_url)
            broker = settings.broker
            shown = Connection(broker.url, transport_options=broker.options).as_uri()
            said = [redacted(ledger), shown, repr(settings), repr(broker), repr(ledger)]
            ledger.dispose()
        assert all(SECRET not in text for text in said)
        assert len(said[0].splitlines()) <= 1


def is_one_line(error):
    return len(str(error).splitlines()) <= 1
