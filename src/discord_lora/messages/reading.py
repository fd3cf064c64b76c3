"""The first pass: every file into the store, what cannot be read into the rejects."""

from collections.abc import Callable

from discord_lora.messages.account import PrepareReport
from discord_lora.messages.detect import HEAD_BYTES, Format, detect_format
from discord_lora.messages.inputs import InputFile, Inputs
from discord_lora.messages.record import ReadyConversation, Reject
from discord_lora.messages.sources.base import Channel, Export, ParsedMessage, SourceItems, Warned
from discord_lora.messages.sources.data_package import (
    DataPackages,
    read_data_package_csv,
    read_data_package_json,
)
from discord_lora.messages.sources.discordchatexporter_csv import read_discordchatexporter_csv
from discord_lora.messages.sources.discordchatexporter_html import read_discordchatexporter_html
from discord_lora.messages.sources.discordchatexporter_json import read_discordchatexporter_json
from discord_lora.messages.sources.generic import read_generic_csv, read_generic_json
from discord_lora.messages.store import MessageStore

_READERS: dict[Format, Callable[[InputFile], SourceItems]] = {
    Format.DISCORDCHATEXPORTER_JSON: read_discordchatexporter_json,
    Format.DISCORDCHATEXPORTER_CSV: read_discordchatexporter_csv,
    Format.DISCORDCHATEXPORTER_HTML: read_discordchatexporter_html,
    Format.GENERIC_JSON: read_generic_json,
    Format.GENERIC_CSV: read_generic_csv,
}


class Reader:
    """Reads files one at a time, so that no more than one is ever in memory."""

    def __init__(
        self,
        store: MessageStore,
        report: PrepareReport,
        on_reject: Callable[[Reject], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._store = store
        self._report = report
        self._on_reject = on_reject
        self._on_bytes = on_bytes
        self._packages = DataPackages(())

    def read(self, inputs: Inputs) -> None:
        """Read all files, one at a time."""
        self._packages = DataPackages(inputs.files)
        for reject in inputs.rejects:
            self._reject(reject)
        done = 0
        for file in inputs.files:
            self._count_bytes_of(file, done)
            self._read_file(file)
            done += file.size
            self._on_bytes(done)

    def _count_bytes_of(self, file: InputFile, done_before: int) -> None:
        read = 0

        def count(number: int) -> None:
            nonlocal read
            # A file may be looked at twice: it never counts for more than its size.
            read = min(read + number, file.size)
            self._on_bytes(done_before + read)

        file.on_bytes = count

    def _read_file(self, file: InputFile) -> None:
        if self._packages.is_private_or_index(file):
            return
        try:
            with file.open() as stream:
                head = stream.read(HEAD_BYTES)
            kind, remark = detect_format(head, file)
            self._report.files[kind] += 1
            if items := self._items_of(file, kind):
                self._take_all(items, file)
            elif kind is Format.UNKNOWN:
                self._report.unrecognised.append(Reject(file.name, "whole file", remark))
            elif remark:
                self._reject(Reject(file.name, "whole file", remark))
        except OSError as error:
            self._reject(Reject(file.name, "whole file", str(error) or "it cannot be opened"))
        if file.problem:
            self._reject(Reject(file.name, "from a damaged place on", file.problem))

    def _items_of(self, file: InputFile, kind: Format) -> SourceItems | None:
        if kind is Format.DATA_PACKAGE_JSON:
            return read_data_package_json(file, self._packages.of(file))
        if kind is Format.DATA_PACKAGE_CSV:
            return read_data_package_csv(file, self._packages.of(file))
        reader = _READERS.get(kind)
        return reader(file) if reader else None

    def _take_all(self, items: SourceItems, file: InputFile) -> None:
        export = Export(Channel("", file.stem, file.stem), 0)
        latest_time = 0
        for item in items:
            if isinstance(item, ParsedMessage):
                if not item.time:
                    # Neither date nor id tell when: it stays behind the message before it.
                    item.time = latest_time + 1
                latest_time = item.time
                self._store.add(item, export)
            elif isinstance(item, Export):
                export = item
            elif isinstance(item, ReadyConversation):
                self._report.conversations += 1
                self._store.add_conversation(item)
            elif isinstance(item, Warned):
                self._report.warnings.append(item.text)
            else:
                self._reject(item)

    def _reject(self, reject: Reject) -> None:
        self._report.rejects += 1
        self._report.first_reject = self._report.first_reject or reject
        self._on_reject(reject)
