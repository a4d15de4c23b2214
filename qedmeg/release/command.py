"""The command that releases a trained model; see `python conversion/release.py --help`."""

import argparse
import re
from pathlib import Path

from qedmeg.errors import EXIT_DIFFERS, UserError
from qedmeg.release.build import Request, build
from qedmeg.release.checksums import check_sums
from qedmeg.release.upload import TOKEN_VARIABLE, check_push, push

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")

DESCRIPTION = f"""\
Release a trained model: convert a run's checkpoint to a Hugging Face folder, make every check that
conversion/verify.py makes, and write the tokenizer, chat template, generation config, model card,
lineage, settings and checksums beside the weights. What does not verify is not released. With --push
the folder goes to the hub; the token is read from the environment variable {TOKEN_VARIABLE}."""

EPILOG = """\
examples:
  python conversion/release.py --run runs/demo/run-grpo --out runs/demo/release --license apache-2.0
  python conversion/release.py --run runs/grpo --out my-model --results runs/results.sqlite --evaluated mine \\
    --limits limits.md --license apache-2.0 --push my-org/my-model --private
  python conversion/release.py --out my-model --push my-org/my-model      (a release that is there already)

status: 0 released; 1 something differs, and nothing was released; 2 bad input, or the hub refused"""


def main() -> int:
    """Release from the command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="folder of the training run (not needed to --push a release)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest complete one)")
    parser.add_argument("--results", type=Path, help="file of evaluation results")
    parser.add_argument("--evaluated", nargs="+", default=[], metavar="NAME", help="runs of --results for the card")
    parser.add_argument("--license", help="such as apache-2.0; 'other' for one that the hub has no name for")
    parser.add_argument("--name", help="of the model (default: that of --push, else of the folder)")
    parser.add_argument("--base-model", metavar="ORG/NAME", help="the first model's id (default: as far as known)")
    parser.add_argument("--limits", type=Path, metavar="FILE.md", help="Markdown on the model's limits, for the card")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload to the hub, after SHA256SUMS has been checked")
    parser.add_argument("--private", action="store_true", help="of --push: a private repository")
    parser.add_argument("--overwrite", action="store_true", help="replace a release at --out")
    arguments = parser.parse_args()
    request = _request(arguments)
    if arguments.push is not None:
        check_push(arguments.push, arguments.private)
    if request is not None:
        found = build(request)
        print(found.summary())
        if not found.equal:
            print(f"{arguments.out}: not released")
            return EXIT_DIFFERS
        print(f"wrote {arguments.out}")
    if arguments.push is not None:
        check_sums(arguments.out)
        print(push(arguments.out, arguments.push, arguments.private))
    return 0


def _request(arguments: argparse.Namespace) -> Request | None:
    """What is to be built; None where a release is there to be pushed.

    Raises:
        UserError: options that do not go together, or a file that is not there.
    """
    if arguments.run is None:
        if arguments.push is None:
            raise UserError("--run: missing; give the folder of a training run, or --push for a release that is there")
        return None
    if (arguments.results is None) != (not arguments.evaluated):
        raise UserError("--results, --evaluated: give both, the file and the names of its runs, or neither")
    if arguments.private and arguments.push is None:
        raise UserError("--private: is of --push, which was not given")
    if arguments.license is not None and not _LICENSE.fullmatch(arguments.license):
        raise UserError(f"--license: {arguments.license!r}: expected a name of the hub, such as apache-2.0")
    name = arguments.name or arguments.push or arguments.out.resolve().name
    return Request(
        run=arguments.run,
        out=arguments.out,
        name=name,
        step=arguments.step,
        results=arguments.results,
        evaluated=arguments.evaluated,
        license=arguments.license,
        base_model=arguments.base_model,
        limits=_read(arguments.limits),
        overwrite=arguments.overwrite,
    )


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--limits: {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--limits: {path}: not text in UTF-8 ({error.reason})") from None
