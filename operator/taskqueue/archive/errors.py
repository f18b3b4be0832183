"""What can be wrong with an archive, in words of this project: a server's own are for the log."""

from __future__ import annotations

from enum import StrEnum


class ArchiveTrouble(StrEnum):
    """What is wrong; the value is a condition's reason."""

    UNAVAILABLE = "ArchiveUnavailable"
    LOGIN_REFUSED = "LoginRefused"
    NOT_PERMITTED = "NotPermitted"
    NO_ARCHIVE = "NoArchive"
    FAILED = "ArchiveFailed"


#: What each means, and what to do.
EXPLANATIONS = {
    ArchiveTrouble.UNAVAILABLE: "PostgreSQL does not answer, or cannot write at present",
    ArchiveTrouble.LOGIN_REFUSED: "PostgreSQL refuses the login, or has no such database: check "
    "user, password and database in the Secret",
    ArchiveTrouble.NOT_PERMITTED: "the user of the database may not do what is needed: let it "
    "create tables in its schema, or create them for it as docs/guides/archive.md says",
    ArchiveTrouble.NO_ARCHIVE: "the database has no table taskqueue_archive: check that it is the "
    "one of the TaskQueue's archive, and that the operator has connected to it",
    ArchiveTrouble.FAILED: "PostgreSQL has refused a statement: the log has its words",
}


class ArchiveError(Exception):
    """The archive did not do what it was asked.

    Attributes:
        trouble: what is wrong.
        detail: in the server's or library's words.
    """

    def __init__(self, trouble: ArchiveTrouble, where: str, detail: str) -> None:
        super().__init__(f"{where}: {EXPLANATIONS[trouble]} ({detail})")
        self.trouble = trouble
        self.detail = detail
