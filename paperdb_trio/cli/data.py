"""`paperdb backup`, `restore`, `check`, `export`, `import`: an operator's work on a data directory, or on a
PostgreSQL database.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from paperdb_trio.cli.base import data_option, import_postgres, main, store_option
from paperdb_trio.cli.streams import when_paused
from paperdb_trio.config import Settings
from paperdb_trio.errors import StartupError
from paperdb_trio.files import by_command, replacing
from paperdb_trio.store.administration import Noted
from paperdb_trio.store.copying import Did
from paperdb_trio.store.copying import copy as copy_store
from paperdb_trio.store.sqlite import admin, migrations
from paperdb_trio.store.sqlite import backup as copies
from paperdb_trio.store.sqlite.copying import Directory
from paperdb_trio.store.sqlite.file import EXIT_CORRUPT, connect, database_file, prepare, serving_lock
from paperdb_trio.store.sqlite.file import compact as compact_file
from paperdb_trio.store_url import check_store_url, is_store_url, shown_store_url

EXIT_INCOMPLETE: Final = 10

force_option = click.option("--force", is_flag=True, help="Overwrite an existing file.")
file_type = click.Path(readable=False, path_type=Path)  # our own error for an unreadable file names its owner


@main.command()
@click.argument("file", type=file_type)
@force_option
@data_option
@store_option
def backup(file: Path, force: bool, data: str, store: str) -> None:
    """Copy a snapshot of everything into FILE. A server may be running.

    FILE is one SQLite file. It holds documents, the change log, databases, keys (their hashes) and signing
    secrets: protect it like a key. 'paperdb restore' restores it, with --store as well as with --data.
    """
    if store:
        with replacing(file, force=force) as temporary:
            copies.make_empty(temporary)
            with ExitStack() as stack:
                source = stack.enter_context(closing(_copyable(store, read_only=True)))
                copy_store(source, stack.enter_context(closing(Directory(temporary, read_only=False))))
        size = file.stat().st_size
    else:
        size = copies.backup(data, file, force=force)
    click.echo(f"Backed up {'the PostgreSQL database' if store else data} to {file} ({size:,} bytes).")


@main.command()
@click.argument("file", type=file_type)
@force_option
@data_option
@store_option
def restore(file: Path, force: bool, data: str, store: str) -> None:
    """Replace the database with the backup FILE. Stop the server first.

    Every change log starts anew: a client that resumes with an older cursor gets a gap and fetches the
    documents again. Keys and plans are as in the backup: keys that were revoked since are valid again. A store
    in PostgreSQL is not replaced: give --store a new database.
    """
    if store:
        _restore_into(store, file)
    else:
        copies.restore(file, data, force=force)
    click.echo(f"Restored {'the PostgreSQL database' if store else data} from {file}.")


def _restore_into(store: str, file: Path) -> None:
    copies.verify(file)
    with closing(connect(file, read_only=True)) as connection:
        if migrations.pending(connection, file):
            raise StartupError(
                f"{file} was made by an older version: restore it with --data, and use 'paperdb copy' then"
            )
    with ExitStack() as stack:
        source = stack.enter_context(closing(Directory(file, read_only=True)))
        target = stack.enter_context(closing(_copyable(store, read_only=False)))
        copy_store(source, target, Did(by_command(), "store.restore", str(file)), anew=True)


@main.command()
@data_option
@store_option
def compact(data: str, store: str) -> None:
    """Write the database file anew, without unused space. Stop the server first.

    A server frees space itself, in small steps, in files that this version created or this command has written.
    Needs as much free disk as the file has.
    """
    if store:
        raise StartupError(
            "PostgreSQL frees space itself (autovacuum); VACUUM FULL gives it back to the disk", 2
        )
    before, after = compact_file(data)
    sizes = {"bytesBefore": before, "bytesAfter": after}
    admin.apply(database_file(data), Noted(by_command(), "store.compact", None, None, sizes))
    click.echo(f"Compacted {data}: {before:,} bytes before, {after:,} after.")


@main.command()
@data_option
@store_option
def check(data: str, store: str) -> None:
    """Verify the data directory. Exits with 0 if all is well, 3 if not. A server may be running.

    With --store, the tables of PaperDB are verified; PostgreSQL's own files are for pg_amcheck.
    """
    if store:
        import_postgres()
        from paperdb_trio.store.postgres.check import check as check_tables

        where, report = "The PostgreSQL database", check_tables(store)
    else:
        from paperdb_trio.store.sqlite.check import check as check_file

        file = prepare(data, create=False, write=False, verify=False)
        where, report = str(file), check_file(file)
    for line in report.databases:
        click.echo(line)
    for fault in report.faults:
        click.echo(f"{click.style('damaged', fg='red')}: {fault}")
    if report.faults:
        more = "s" if len(report.faults) > 1 else ""
        raise StartupError(f"{where} is damaged: {len(report.faults)} fault{more}, listed above", EXIT_CORRUPT)
    click.echo(click.style("All is well.", fg="green"))


@main.command()
@click.option("--database", "databases", multiple=True, help="Only this database; can be repeated.")
@click.option("--collection", "collections", multiple=True, help="Only this collection; can be repeated.")
@click.option("--output", type=file_type, help="A file instead of stdout; appears once it is complete.")
@force_option
@data_option
@store_option
def export(
    databases: tuple[str, ...],
    collections: tuple[str, ...],
    output: Path | None,
    force: bool,
    data: str,
    store: str,
) -> None:
    """Print a snapshot of all documents, one per line.

    A line is {"database", "collection", "document"}. A collection's schema, if it has one, follows its
    documents: {"database", "collection", "schema"}. Not exported: keys, plans, the change log (and with it
    seqs and ETags). A server may be running. If nothing reads the output for 20 s in all, the rest waits in a
    temporary file, so that the server's write-ahead log can start over, and PostgreSQL can vacuum.
    """
    from paperdb_trio.cli.spooling import Spooling

    if store:
        import_postgres()
        from paperdb_trio.store.postgres.transfer import export as export_tables

        lines = Spooling(export_tables(store, databases, collections))
    else:
        from paperdb_trio.store.sqlite.transfer import export as export_file

        lines = Spooling(export_file(prepare(data, create=False, write=False), databases, collections))
    with ExitStack() as stack:
        if output is None:
            target: BinaryIO = sys.stdout.buffer
            when_paused(lines.paused)
        else:
            temporary = stack.enter_context(replacing(output, force=force))
            target = stack.enter_context(temporary.open("wb"))
        for line in lines:
            target.write(line + b"\n")
        target.flush()


@main.command("import")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--database", help="Import into this database, whatever the lines say.")
@click.option("--replace", is_flag=True, help="Replace documents that exist already.")
@click.option(
    "--max-document-bytes",
    type=int,
    default=Settings().max_document_bytes,
    envvar="PAPERDB_MAX_DOCUMENT_BYTES",
    show_envvar=True,
    show_default=True,
    help="Bytes of one document's JSON; a running server uses its own setting.",
)
@data_option
@store_option
def import_(
    file: BufferedReader, database: str | None, replace: bool, max_document_bytes: int, data: str, store: str
) -> None:
    """Import the documents and schemas in FILE (or stdin).

    Lines are as 'paperdb export' prints them. A running server writes them itself and sends their events;
    without one, and with --store, this command writes them. Each line succeeds or fails alone. Ids, createdAt
    and updatedAt are kept, or created where missing; databases must exist. A document that exists and differs
    is refused, unless --replace is given. So an import that stopped halfway can simply be repeated.
    """
    from paperdb_trio.import_socket import import_into, import_through
    from paperdb_trio.store.transfer import ImportRequest

    began = time.monotonic()
    request = ImportRequest(database, replace)
    if store:
        import_postgres().prepare(store).close()
        from paperdb_trio.store.postgres.writer import Writer

        writer = Writer(store, lambda _, resume: resume())
        result = import_through(writer, request, file, max_document_bytes)
    else:
        result = import_into(data, request, file, max_document_bytes)
    tally = result.tally
    if tally is not None:
        click.echo(
            f"{tally.inserted:,} documents inserted, {tally.replaced:,} replaced, "
            f"{tally.unchanged:,} unchanged, {tally.schemas:,} schemas, in {time.monotonic() - began:.1f} s"
        )
        for refusal in tally.refusals:
            click.echo(refusal)
    if result.error is not None:
        raise StartupError(f"The import stopped: {result.error}", EXIT_INCOMPLETE)
    if tally is not None and tally.refused:
        raise StartupError(f"{tally.refused:,} lines were refused, the first listed above", EXIT_INCOMPLETE)


@main.command("copy")
@click.option("--from", "source", required=True, metavar="STORE", help="A data directory, or postgresql://…")
@click.option("--to", "target", required=True, metavar="STORE", help="A new directory or PostgreSQL database.")
def copy(source: str, target: str) -> None:
    """Copy a whole store: between data directories and PostgreSQL databases, both ways.

    Documents, change logs, keys, secrets and all that a server keeps, with their ids and seqs: cursors and
    tokens stay good. What is written to the source meanwhile is not in the copy: stop its servers first.
    """
    for place in filter(is_store_url, (source, target)):
        check_store_url(place)
    with ExitStack() as stack:
        one = stack.enter_context(closing(_copyable(source, read_only=True)))
        if not is_store_url(target):
            stack.enter_context(serving_lock(target))
        other = stack.enter_context(closing(_copyable(target, read_only=False)))
        shown = shown_store_url(source) if is_store_url(source) else source
        counts = copy_store(one, other, Did(by_command(), "store.copy", shown))
    click.echo(
        f"Copied {counts['databases']:,} databases with {counts['documents']:,} documents and "
        f"{counts['changes']:,} changes."
    )


def _copyable(place: str, *, read_only: bool) -> Any:
    if is_store_url(place):
        session = import_postgres().prepare(place, create=not read_only)
        from paperdb_trio.store.postgres.copying import Database

        return Database(session, read_only=read_only)
    return Directory(prepare(place, create=not read_only, write=not read_only), read_only=read_only)
