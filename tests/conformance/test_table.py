"""The table in docs/guarantees.md says what the tests show."""

from tests.conformance.table import PAGE, modules, statements, written


def test_the_table_is_up_to_date() -> None:
    """``python -m tests.conformance.table`` writes it anew."""
    page = PAGE.read_text()

    assert written(page) == page


def test_a_number_is_one_statement() -> None:
    """Several tests may show it in parts; all of them quote it, and no other chapter has it."""
    numbers: list[int] = []
    for module in modules():
        for statement in statements(module):
            numbers.append(statement.number)

            assert 1 == len(set(statement.words)), statement.number

    assert sorted(set(numbers)) == sorted(numbers)
