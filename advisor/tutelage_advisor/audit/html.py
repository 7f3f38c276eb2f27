"""The audit as one HTML file that needs nothing else: no script, no font, no image from elsewhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.datacheck import Finding
    from tutelage_advisor.audit.report import Audit

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2024;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
.verdict{display:inline-block;padding:.2rem .7rem;border-radius:.4rem;font-weight:600;color:#fff}
.ready{background:#18794e}.needs-work{background:#8f5a00}.insufficient{background:#b42318}
details{border:1px solid #d0d5dd;border-radius:.5rem;margin:.5rem 0;padding:.5rem .8rem}summary{cursor:pointer}
.error{border-left:5px solid #b42318}.warning{border-left:5px solid #d98600}.note{border-left:5px solid #667085}
.tag{font-size:.8rem;text-transform:uppercase;letter-spacing:.03em;color:#475467}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #eaecf0;padding:.3rem;text-align:left;vertical-align:top}
td:last-child{overflow-wrap:anywhere}.rows{font:12px/1.4 ui-monospace,monospace;overflow-wrap:anywhere;color:#475467}
@media(prefers-color-scheme:dark){body{background:#111418;color:#e6e8eb}details{border-color:#344054}td,th{border-color:#344054}
.tag,.rows{color:#a4acb9}}
"""
_ROWS_SHOWN = 500


def page(report: Audit) -> str:
    """The whole report as HTML. All that comes from the data is escaped."""
    readiness = report.readiness
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in readiness.reasons)
    findings = "".join(map(_finding, report.findings)) or "<p>Nothing was found.</p>"
    failed = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in report.failed_checks.items())
    partly = "" if report.whole else f"<p>Only the first {report.rows} rows were looked at.</p>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Audit of {escape(report.data)}</title><style>{_STYLE}</style></head><body>
<h1>Audit of {escape(report.data)}</h1>
<p><span class="verdict {readiness.verdict}">{readiness.verdict.replace("-", " ")}</span>
{readiness.examples} usable of {report.rows} rows; quality: {readiness.quality}; {report.seconds:.1f} s</p>{partly}
<ul>{reasons}</ul>
<h2>Findings</h2>{findings}
{f"<h2>Checks that could not run</h2><ul>{failed}</ul>" if failed else ""}
<h2>Looked for</h2><p>{escape(", ".join(report.checks))}</p>
</body></html>
"""


def _finding(finding: Finding) -> str:
    evidence = "".join(
        f"<tr><td>{item.row or ''}</td><td>{escape(item.place)}</td><td>{escape(item.shown)}</td></tr>"
        for item in finding.evidence
    )
    table = f"<table><tr><th>Row</th><th>Place</th><th>What</th></tr>{evidence}</table>" if evidence else ""
    numbers = ", ".join(map(str, finding.rows[:_ROWS_SHOWN]))
    more = f" … and {len(finding.rows) - _ROWS_SHOWN} more" if len(finding.rows) > _ROWS_SHOWN else ""
    rows = f'<p class="rows">Rows: {numbers}{more}</p>' if finding.rows else ""
    safe = " <em>(safe: tutelage data fix leaves them out)</em>" if finding.fix else ""
    return f"""<details class="{finding.severity}"{" open" if finding.severity == "error" else ""}>
<summary><span class="tag">{finding.severity} · {escape(finding.check)}</span><br>{escape(finding.message)}</summary>
<p>{escape(finding.advice)}{safe}</p>{table}{rows}</details>
"""
