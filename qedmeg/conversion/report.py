"""What a conversion or a comparison found, as JSON for programs and Markdown for people."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["equal", "differs", "failed", "not run"]


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    status: Status
    detail: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorResult:
    """One tensor of the Megatron layout, and the Hugging Face tensors that it is made of."""

    name: str
    sources: list[str]
    shape: list[int]
    """Without the padding of the vocabulary."""
    dtypes: list[str]
    """On the first and on the second side."""
    equal: bool
    """Bit for bit; where the dtypes differ, after the first side was rounded to the second's."""
    differing: int
    """Elements that are not equal."""


@dataclass(frozen=True)
class Report:
    """The whole of it. `kind` is hf_to_megatron, megatron_to_hf or verify."""

    kind: str
    first: str
    second: str
    model: str
    checks: list[Check]
    tensors: list[TensorResult]
    notes: list[str]
    seconds: dict[str, float]

    @property
    def equal(self) -> bool:
        """Whether no check found a difference, or failed to look for one."""
        return all(check.status in ("equal", "not run") for check in self.checks)

    @property
    def not_run(self) -> list[str]:
        """Names of the checks that were asked for and could not be made here."""
        return [check.name for check in self.checks if check.status == "not run"]

    def summary(self) -> str:
        """A line for each check, for a terminal."""
        width = max(len(check.name) for check in self.checks)
        return "\n".join(f"{check.name:{width}}  {check.status:8}  {check.detail}" for check in self.checks)


def write(report: Report, folder: Path, stem: str) -> None:
    """Write `STEM.json` and `STEM.md` into a folder."""
    content = {"equal": report.equal, "not_run": report.not_run} | dataclasses.asdict(report)
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(markdown(report))


def markdown(report: Report) -> str:
    """The report as a page: the verdict, a row for each check, a row for each tensor."""
    verdict = "No difference was found." if report.equal else "**They differ.**"
    if report.not_run:
        verdict += f" Not looked at: {', '.join(report.not_run)}."
    lines = [
        f"# {report.kind}: {'equal' if report.equal else 'differs'}",
        "",
        f"{verdict} {report.model}",
        "",
        f"- first: `{report.first}`",
        f"- second: `{report.second}`",
        f"- seconds: {', '.join(f'{name} {seconds:.1f}' for name, seconds in report.seconds.items())}",
        *(f"- {note}" for note in report.notes),
        "",
        *_table(["check", "result", "detail"], [[check.name, check.status, check.detail] for check in report.checks]),
    ]
    if report.tensors:
        rows = [
            [
                f"`{tensor.name}`",
                " × ".join(map(str, tensor.shape)),
                " → ".join(dict.fromkeys(tensor.dtypes)),
                "bit-equal" if tensor.equal else f"{tensor.differing} elements differ",
                ", ".join(f"`{source}`" for source in tensor.sources),
            ]
            for tensor in report.tensors
        ]
        lines += ["", "## Tensors", "", *_table(["Megatron", "shape", "dtype", "result", "Hugging Face"], rows)]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *escaped)]
