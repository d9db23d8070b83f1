"""`sfumato audit --reading-kit` and `--score-readings`: what people recognise in reconstructions."""

from __future__ import annotations

from pathlib import Path

import typer

from sfumato.cli.output import percent, prepare, print_json, print_table, write_result
from sfumato.cli.progress import bars
from sfumato.errors import AuditError


def make_reading_kit(
    *, obfuscator: str | None, data: str | None, label_column: str | None, seed: int, out: Path | None, as_json: bool
) -> None:
    """Write a page for readers, and its key, from the folder of an audit; `data` is None for the audit's own."""
    from sfumato.lab.audit.readings import make_kit
    from sfumato.lab.audit.result_store import stored_images
    from sfumato.lab.audit.schema import AuditResult
    from sfumato.lab.data import load_train_test
    from sfumato.lab.report.reading_kit import KEY, PAGE, write_kit

    if obfuscator is None:
        raise AuditError("--reading-kit needs the folder of an audit: sfumato audit audits/NAME-standard --reading-kit")
    folder = Path(obfuscator)
    audit = AuditResult.read(folder / "audit.json")
    reconstructed = None if audit.best is None else stored_images(folder / "work", f"{audit.best.key}-all")
    if reconstructed is None:
        raise AuditError(f"{folder / 'work'} holds no reconstructions of the best attacker; run the audit again")
    with bars(quiet=as_json) as shown:
        train, test, _ = load_train_test(
            data or audit.data.source,
            size=(audit.target.height, audit.target.width),
            label_column=label_column,
            progress=shown.progress,
        )
    train, test = train.subset(audit.data.train_images), test.subset(audit.data.test_images)
    kit, place = make_kit(audit, reconstructed, train, test, seed=seed), out or folder / "reading-kit"
    write_kit(kit, place)
    if as_json:
        page, key = str(place / PAGE), str(place / KEY)
        print_json({"page": page, "key": key, "kit": kit.key.kit, "questions": len(kit.shown)})
        return
    typer.echo(
        f"{len(kit.shown)} questions for readers: {place / PAGE}\n"
        f"the key, not for readers: {place / KEY}\n"
        f"then: sfumato audit {place} --score-readings ANSWERS.json"
    )


def score_reading_kit(*, obfuscator: str | None, files: list[Path], out: Path | None, as_json: bool) -> None:
    """Print how often readers recognised the image."""
    from sfumato.lab.audit.readings import score_readings
    from sfumato.lab.report.reading_kit import KEY

    if obfuscator is None:
        raise AuditError("--score-readings needs the folder of the kit: sfumato audit KIT --score-readings FILE")
    prepare(out)
    found = score_readings(Path(obfuscator) / KEY, files)
    write_result(out, found.as_json)
    if as_json:
        print_json(found.as_json)
        return
    rows = [
        (one.kind, percent(one.correct, 1), f"{percent(one.low, 1)} to {percent(one.high, 1)}", f"{one.answers:,}")
        for one in found.scores
    ]
    chance = percent(found.scores[0].chance, 1)
    title = f"{found.obfuscator}, reconstructed by {found.attacker}; {len(found.by_reader)} readers, chance {chance}"
    print_table(("shown", "recognised", "95 % interval", "answers"), rows, numbers=(1, 2, 3), title=title)
    if found.recognisability is not None:
        typer.echo(f"recognisability: {found.recognisability:.2f} (0: the label alone, 1: the image)")
