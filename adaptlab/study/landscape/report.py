"""What a finished study of loss landscapes leaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptlab import report
from adaptlab.study.lab import Lab
from adaptlab.study.provenance import passport

__all__ = ["publish_landscape"]


def publish_landscape(
    folder: Path,
    labs: Mapping[str, Lab],
    study: Any,
    curves: Any,
    results: Mapping[str, Mapping[str, Any]],
    landscape: report.Landscape,
    verdicts: Mapping[str, report.Verdict],
    **page: str,
) -> None:
    """Write a study's results and show them.

    Args:
      folder: the study's.
      labs: what its members shared, by target.
      study: the study's dataclass.
      curves: of all members, see `adaptlab.report.landscape_curves`.
      results: of its members, with what was measured of their lines.
      landscape: what was found.
      verdicts: on the study's claims.
      **page: see `adaptlab.report.landscape.page.write_landscape`.
    """
    from adaptlab.report.landscape.page import write_landscape  # heavy: only now

    first = next(iter(labs.values()))
    corpora = {name: facts for lab in labs.values() for name, facts in lab.provenance["corpora"].items()}
    lab = first._replace(provenance=first.provenance | {"corpora": corpora})
    said, text = passport(lab, study, results, folder), (folder / "config.yaml").read_text()
    report.write_report(folder, curves, results, landscape.summary, said, text, verdicts, figures=False)
    path = write_landscape(folder, landscape, said, text, verdicts, **page)
    report.print_landscape(landscape.summary, verdicts)
    print(f"Report: {path}")
