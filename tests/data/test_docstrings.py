import re
from collections import Counter

import pytest

from feedfwd.data.docstrings import FEWEST, docstrings, hide


@pytest.fixture(scope="module")
def found() -> tuple[list[str], list[str]]:
    return docstrings()


def test_descriptions_of_the_library_with_their_modules(found):
    texts, modules = found
    assert len(texts) == len(modules) > 3000
    assert {"zipfile", "asyncio", "email"} <= set(modules)
    assert min(Counter(modules).values()) >= FEWEST
    assert not {module for module in modules if module.startswith("_")} | {"test", "idlelib"} & set(modules)
    assert any(
        m == "zipfile" and "table of contents for the zip file" in t for t, m in zip(texts, modules, strict=True)
    )


def test_no_description_names_its_module(found):
    for text, module in zip(*found, strict=True):
        assert not re.search(rf"\b{module}\b", text, re.IGNORECASE), text


def test_no_description_stands_twice_and_each_is_one_line(found):
    texts, _ = found
    assert len(set(texts)) == len(texts)
    assert not any("\n" in text for text in texts)


def test_only_whole_words_are_hidden():
    assert hide("os: the hosts of an OS, os_path", {"os", "x"}) == "_: the hosts of an _, os_path"
    assert hide("email.message holds Email", {"email", "message"}) == "_._ holds _"


def test_it_is_the_same_every_time(found):
    assert docstrings() == found
