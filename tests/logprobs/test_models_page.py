"""The page of models says what the tests run, and what becomes of it."""

from fixtures.models_page import PAGE, table


def test_the_page_of_models_is_that_of_the_tests():
    written = "".join(line for line in PAGE.read_text(encoding="utf-8").splitlines(True) if line.startswith("| "))
    assert written == table(), "run `python -m fixtures.models_page` in tests/"
