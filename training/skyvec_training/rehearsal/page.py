"""A report as tables on the terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from skyvec_training.rehearsal.report import GIB, Report

PLAN = (
    "tokens without their padding in all layers but attention",
    "attention in one kernel: no table of scores is written, masked and read again",
    "targets sorted by domain on the host: no boolean gather, no waiting of the GPU for a shape",
    "one table for the codes of all domains: no loop over absent ones",
    "loss, norm and counts stay on the GPU: a step never waits for a number",
    "as large a microbatch as memory takes; checkpointing only where it must be",
)
"""How training gets beyond the published MFU; docs/training/rehearsal.md says what was measured."""


def page_of(report: Report) -> RenderableType:
    """Everything that is known, and what is not."""
    head = (
        f"{report.size} ({report.model_parameters / 1e9:.2f} G parameters) on {report.ranks} "
        f"{report.gpu}, {report.strategy} over {report.shard}, "
        f"{report.microbatches} x {report.microbatch} objects a rank, "
        f"checkpointing {'on' if report.activation_checkpointing else 'off'}; rank {report.rank} "
        f"holds {report.rank_parameters / 1e6:.2f} M parameters"
    )
    return Group(
        Text(head, style="bold"),
        _memory(report), _traffic(report), _work(report), _fill(report), _time(report),
        Text("Beyond the published runs by: " + "; ".join(PLAN) + "."),
        Text("A rehearsal cannot tell: " + "; ".join(report.unknown) + ".", style="dim"),
    )  # fmt: skip


def show(report: Report, console: Console) -> None:
    """Print it."""
    console.print(page_of(report))


def _memory(report: Report) -> Table:
    table = _table("Memory of one GPU, GiB", "parameters", "gradients", "optimizer",
                   "gathered weights", "activations", "messages", "peak", "of")  # fmt: skip
    m = report.memory
    sizes = (m.parameters, m.gradients, m.optimizer, m.gathered, m.activations, m.messages,
             m.peak, report.memory_of_gpu)  # fmt: skip
    table.add_row(*(f"{size / GIB:.2f}" for size in sizes))
    return table


def _traffic(report: Report) -> Table:
    table = _table("Messages of one step", "kind", "dtype", "among", "count", "GB")
    for line in report.traffic:
        table.add_row(line.kind, line.dtype, str(line.ranks), str(line.count),
                      f"{line.bytes / 1e9:.3f}")  # fmt: skip
    return table


def _work(report: Report) -> Table:
    table = _table("Work of one GPU in a step", "counted TFLOP", "full budgets", "tokens alone",
                   "padding", "checkpoint, GB")  # fmt: skip
    table.add_row(
        f"{report.flops_counted / 1e12:.2f}",
        f"{report.flops_of_budgets / 1e12:.2f}",
        f"{report.flops_useful / 1e12:.2f}",
        f"{1 - report.flops_useful / report.flops_of_budgets:.0%}",
        f"{report.checkpoint_bytes / 1e9:.1f}",
    )
    return table


def _fill(report: Report) -> Table:
    table = _table("How full the budgets are", "object", "input", "output")
    for name, fill in report.fill.items():
        table.add_row(name, f"{fill['input_fill']:.2f}", f"{fill['output_fill']:.2f}")
    return table


def _time(report: Report) -> Table:
    t = report.time
    table = _table("Expected time (arithmetic)", "", "MFU", "multiply, ms", "messages, ms",
                   "step, ms", "days", "GPU hours")  # fmt: skip
    messages = f"{1e3 * t.bandwidth_seconds:.0f} + {1e3 * t.latency_seconds:.0f}"
    table.add_row(
        "this plan", f"{t.mfu:.1%}", f"{1e3 * t.multiply_seconds:.0f}", messages,
        f"{1e3 * t.step_seconds:.0f} to {1e3 * t.step_seconds_without_overlap:.0f}",
        f"{t.days:.2f}", f"{t.gpu_hours:,.0f}",
    )  # fmt: skip
    if report.published:
        p = report.published
        table.add_row(f"AION-1, {p['gpus']:.0f} H100", f"{p['mfu']:.1%}", "", "",
                      f"{1e3 * p['step_seconds']:.0f}", f"{p['days']:.2f}",
                      f"{p['gpu_hours']:,.0f}")  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if not place else "right")
    return table
