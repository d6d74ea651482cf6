"""A chat template is a program of somebody else's: whatever it does, it ends, stays inside, and raises no traceback."""

from hypothesis import given
from hypothesis import strategies as st

from models.errors import RowError
from models.rendering import Renderer, closing_token, writes_replies
from models.spec import GenerationSpec, PromptRow
from models.templates import variables
from tests.fuzz.inputs import any_text, count, inputs, junk
from tests.fuzz.test_boundaries import is_one_line
from tests.tiny_models import make_tokenizer

TOKENIZER = make_tokenizer()

values = st.sampled_from([
    "messages", "messages[0].content", "m.role", "x", "ns.s", "loop.index", "bos_token", "tools", "none", "'ab'", "9",
    "10 ** 12", "[1, 2]", "{'a': 1}", "strftime_now('%d %b')", "namespace(s='ab')", "range(99999)", "cycler(1)",
    "lipsum(9999)", "self", "''.__class__", "joiner('x')", "dict(a=1)", "messages.__init__.__globals__",
])  # fmt: skip
operators = st.sampled_from(["+", "*", "~", "**", "%", "//", "-", "in", "and", "==", "if x else"])
filters = st.sampled_from([
    "upper", "tojson", "tojson(indent=99999999)", "center(999999999)", "join('ab')", "list", "replace('a', 'aaaa')",
    "length", "trim", "map('upper')", "groupby('role')", "format(9)", "indent(9)", "string", "sum", "batch(99999999)",
    "wordwrap(1)", "first", "default('x')", "attr('__class__')", "safe", "nothing",
])  # fmt: skip
expressions = st.recursive(
    values,
    lambda inner: st.one_of(
        st.tuples(inner, operators, inner).map(" ".join).map("({})".format),
        st.tuples(inner, filters).map(" | ".join).map("({})".format),
        inner.map("{}(9)".format),
        inner.map("f({})".format),
        inner.map("{}[::-1]".format),
    ),
    max_leaves=6,
)
texts = st.sampled_from(["a", "\n", "<s>", "{{", "%}", "{#", "-"]) | any_text
GROWS = "{{% set ns = namespace(s=1) %}}{{% for m in range(99) %}}{{% set ns.s = {} %}}{{% endfor %}}{}"
pieces = st.recursive(
    texts | expressions.map("{{{{ {} }}}}".format),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.tuples(expressions, inner).map(lambda some: "{{% for m in {} %}}{}{{% endfor %}}".format(*some)),
        st.tuples(expressions, inner).map(lambda some: "{{% if {} %}}{}{{% endif %}}".format(*some)),
        st.tuples(inner, inner).map(lambda some: "{{% macro f(x) %}}{}{{% endmacro %}}{}".format(*some)),
        st.tuples(expressions, inner).map(lambda some: "{{% set x = {} %}}{}".format(*some)),
        st.tuples(expressions, inner).map(lambda some: GROWS.format(*some)),
        inner.map("{{% generation %}}{}{{% endgeneration %}}".format),
        inner.map("{{% set x %}}{}{{% endset %}}{{{{ x ~ x }}}}".format),
    ),
    max_leaves=6,
)
kwargs = st.dictionaries(st.sampled_from(["x", "m", "tools", "f"]) | any_text, junk, max_size=2) | junk


@inputs(0.15)
@given(template=pieces, given_kwargs=kwargs, tools=junk)
def test_templates(template, given_kwargs, tools):
    count()
    renderer = Renderer(TOKENIZER, template, "tiny")
    row = {"prompt": "Hi", "chat_template_kwargs": given_kwargs, "tools": tools, "documents": tools}
    spec = GenerationSpec.parse({"base": "tiny"})
    try:
        ids = renderer.prompt_ids(PromptRow.parse(row, 0, spec), system="Be kind", raw=False)
        assert all(isinstance(token, int) for token in ids)
    except RowError as error:
        assert error.code == "invalid_prompt"
        assert is_one_line(error)
    assert closing_token(TOKENIZER, template) in range(len(TOKENIZER))
    assert writes_replies(TOKENIZER, template) in {True, False}
    assert isinstance(variables(template), frozenset)
