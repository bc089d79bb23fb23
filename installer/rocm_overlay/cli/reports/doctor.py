"""The report of `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import output

if TYPE_CHECKING:
    from rocm_overlay.install.doctor import Examination


def show(result: Examination, *, as_json: bool) -> int:
    """Print findings, worst first; return the exit code."""
    fixed = dict(result.fixed)
    if as_json:
        body = {
            "target": None if result.target is None else result.target.to_json(),
            "state": result.state,
            "findings": [{**one.to_json(), "fixed": fixed.get(one.id)} for one in result.findings],
            "dry_run": result.dry_run,
        }
        output.print_json("doctor", body, ok=result.code == 0)
        return result.code
    if result.target is not None:
        print(output.where(result.target))
    if result.state is not None:
        print(f"state: {result.state}")
    for one in result.findings:
        print(f"\n{one.severity}: {one.id}: {one.kind.meaning}")
        for line in one.evidence:
            print(f"    {line}")
        if one.id in fixed:
            print(f"  fix: {fixed[one.id]}")
        elif one.remedy != "nothing to do":
            print(f"  next: {one.remedy}")
    counts = {name: sum(one.severity == name for one in result.findings) for name in ("problem", "warning", "note")}
    print("\n" + ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items()))
    return result.code
