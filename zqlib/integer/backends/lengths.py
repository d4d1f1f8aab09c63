"""How many frames of every tensor are valid: which tensors share that, and who changes it."""

from zqlib.integer.operators import Conv1d, Conv2d, Operator, Positions
from zqlib.integer.program import Outline

__all__ = ["rows_of_lengths"]


def rows_of_lengths(program: Outline) -> tuple[dict[str, int], list[tuple[Operator, int, int]]]:
    """A row for the lengths of every tensor, and the operators that begin a new one.

    Returns:
        The row of every tensor, by name, 0 for the features; and in order of execution the
        operators that change lengths, with the rows that they read and write.
    """
    rows = {program.input: 0}
    changes: list[tuple[Operator, int, int]] = []
    for operator in program.operators:
        row = rows[operator.reads[0]]
        if not _keeps_lengths(operator):
            changes.append((operator, row, 1 + len(changes)))
            row = len(changes)
        rows[operator.output] = row
    return rows, changes


def _keeps_lengths(operator: Operator) -> bool:
    match operator:
        case Conv1d():
            span = operator.dilation * (operator.weight.shape[2] - 1)
            return operator.stride == 1 and 2 * operator.padding == span
        case Conv2d() | Positions():
            return False
        case _:
            return True
