"""The news of a copy, entry by entry."""


class Report:
    """Gets the news of a copy, and does nothing with it."""

    def expect(self, content: int) -> None:
        """So many bytes of content will be moved, or are there already."""

    def copied(self, path: bytes, size: int) -> None:
        """An entry is at the target, with `size` bytes of content."""

    def skipped(self, path: bytes, size: int) -> None:
        """A file was there already."""

    def failed(self, path: bytes, kind: int, number: int) -> None:
        """An entry is not there: a kind of entries.FAULTS, and an errno."""

    def progress(self, content: int) -> None:
        """So many bytes of content have been moved, of files that are under way too."""
