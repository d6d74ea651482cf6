"""docs/troubleshooting.md has every error message that a user can meet, and no other."""

from db.complaints import AWAY, REFUSALS
from tests.docs.messages import GAP, INTERNAL, PAGE, messages, on_page


def test_every_message_of_the_code_is_on_the_page_and_no_other():
    found, there = messages(), on_page()
    missing = [f"{place}: {text}" for text, place in found.items() if text not in there]
    assert missing == [], "add rows: python -m tests.docs.messages"
    assert [text for text in there if text not in found] == []
    assert len(there) == len(set(there))


def test_every_row_says_what_to_do():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert all(len(line.split("|")) == 4 and line.split("|")[2].strip().endswith((".", ":", "…")) for line in rows)


def test_a_message_and_a_class_that_are_new_are_found(tmp_path, monkeypatch):
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "new.py").write_text(
        "class NewError(DatasetError): ...\nclass DatasetError(DbError): ...\n"
        'def f(a):\n    raise NewError(f"{a}: is `new`, " f"or {a}")\n    return x.RowError("code_a", "too " "long")\n'
        "class RowError(ModelsError): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    assert messages() == {f"{GAP}: is 'new', or {GAP}": "db/new.py:4", "too long": "db/new.py:5"}


def test_what_a_database_says_is_explained():
    page = PAGE.read_text()
    for text in (*REFUSALS.values(), *(text for _, text in AWAY)):
        assert text.partition("{reason}")[0].partition(";")[0].strip(": ") in page
    assert all(INTERNAL.values())
