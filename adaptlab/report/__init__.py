"""Reporting: sinks for measurements, tables, figures, the HTML report and the passport of a study."""

from adaptlab.report.claims import Claim, Verdict, claim, judge
from adaptlab.report.curves import from_journals, load_curves, save_curves
from adaptlab.report.labels import labels_table, print_labels, summarise_labels
from adaptlab.report.landscape.summary import (
    Landscape,
    landscape_curves,
    lines_by_seed,
    summarise_landscape,
    with_lines,
)
from adaptlab.report.landscape.words import print_landscape
from adaptlab.report.numerics import (
    Expectation,
    expectation,
    print_numerics,
    summarise_numerics,
    write_numerics,
)
from adaptlab.report.passport import passport, surroundings
from adaptlab.report.progress import progress
from adaptlab.report.ranks import by_rank
from adaptlab.report.search import finalists, gains_at, print_search, summarise_search, write_search
from adaptlab.report.sink import Sink, journal, null, read_journal, tee, truncate_journal
from adaptlab.report.study import write_report
from adaptlab.report.summary import summarise
from adaptlab.report.table import print_results
from adaptlab.report.updates import add_final, final_means, split_updates
from adaptlab.report.wandb import wandb_sink

__all__ = [
    "Claim",
    "Expectation",
    "Landscape",
    "Sink",
    "Verdict",
    "add_final",
    "by_rank",
    "claim",
    "expectation",
    "final_means",
    "finalists",
    "from_journals",
    "gains_at",
    "journal",
    "judge",
    "labels_table",
    "landscape_curves",
    "lines_by_seed",
    "load_curves",
    "null",
    "passport",
    "print_labels",
    "print_landscape",
    "print_numerics",
    "print_results",
    "print_search",
    "progress",
    "read_journal",
    "save_curves",
    "split_updates",
    "summarise",
    "summarise_labels",
    "summarise_landscape",
    "summarise_numerics",
    "summarise_search",
    "surroundings",
    "tee",
    "truncate_journal",
    "wandb_sink",
    "with_lines",
    "write_numerics",
    "write_report",
    "write_search",
]
