"""The directive ``conventions-table``: ``bnnumba.CONVENTIONS`` as a table."""

from docutils.parsers.rst.directives.tables import ListTable
from docutils.statemachine import StringList

from bnnumba import CONVENTIONS

_HEAD = ["name", "system", "momentum weighs", "theirs", "here", "eps", "correction"]


def _row(name, convention):
    ours = convention.options()
    weighs = "the new" if convention.weighs_new else "the old"
    return [
        f"``{name}``",
        convention.system,
        "samples, all the same" if convention.momentum is None else weighs,
        "none" if convention.momentum is None else convention.momentum,
        ours["momentum"],
        f"``{ours['eps']:g}``",
        ours["correction"],
    ]


class ConventionsTable(ListTable):
    """A list table whose rows are the conventions."""

    has_content = True
    required_arguments = optional_arguments = 0

    def run(self):
        self.options = {"header-rows": 1, "widths": "auto"}
        rows = [_HEAD, *(_row(*item) for item in CONVENTIONS.items())]
        lines = [f"{'-' if i else '* -'} {cell}" for row in rows for i, cell in enumerate(row)]
        lines = [line if line.startswith("* ") else f"  {line}" for line in lines]
        self.content = StringList(lines, source="bnnumba.CONVENTIONS")
        return super().run()


def setup(app):
    """Offer the directive."""
    app.add_directive("conventions-table", ConventionsTable)
    return {"parallel_read_safe": True}
